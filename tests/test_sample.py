"""Sampling: the cache changes nothing, the window rule, the stop token, top-k and top-p."""
import os

import pytest
import tiktoken
import torch
from torch._dynamo.testing import CompileCounter

from lib.data import stream_text
from lib.fast import prepare_for_sampling, use_fixed_steps
from model import ARCHITECTURES, Attention, Cache, sample_token
from test_model import build, every_variant


@every_variant
def test_cached_generation_equals_uncached(options):
    """Token for token: greedy and seeded, prompts of different lengths, and past block_size."""
    model = build(**options)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    for settings in dict(temperature=0.0), dict(temperature=1.5, top_k=17, top_p=0.9, seed=5):
        cached = list(model.generate(prompts, 25, **settings))
        assert cached == list(model.generate(prompts, 25, cached=False, **settings))
    for row, prompt in enumerate(prompts):  # a prompt's text does not depend on the others in the batch
        alone = [token for token, in model.generate([prompt], 25, temperature=0.0)]
        together = [tokens[row] for tokens in model.generate(prompts, 25, temperature=0.0)]
        assert alone == [token for token in together if token is not None]
        assert len(alone) == 25


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # without residual, norms see bfloat16
@every_variant
def test_weights_that_are_cast_once_change_nothing(options):
    """To the bit: autocast would make the same of them for each token."""
    model, idx = build(**options), torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before, _ = model(idx)
        after, _ = prepare_for_sampling(model, torch.bfloat16)(idx)
    assert torch.equal(before, after)
    assert any(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@every_variant
def test_under_autocast_the_cache_holds_what_the_matmuls_read(options):
    """Token after token in bfloat16 gives the states of the whole window, from rows half as large."""
    model = prepare_for_sampling(build(**options), torch.bfloat16)
    x, cache = model.embed(torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])), Cache(13)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole = model.run_blocks(x)
        one_by_one = torch.cat([model.run_blocks(token, cache=cache) for token in x.split(1, dim=1)], dim=1)
        use_fixed_steps(model)
        start, cache_of_steps = model.embed(torch.tensor([[1, 2], [6, 7]])), Cache(13)
        steps = [model.run_blocks(part, cache=cache_of_steps) for part in (start, *x[:, 2:].split(1, dim=1))]
    assert {rows.dtype for rows in cache.rows.values()} == {torch.bfloat16}
    torch.testing.assert_close(one_by_one, whole, atol=0.05, rtol=0.05)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=0.05, rtol=0.05)


@every_variant
def test_steps_of_fixed_shape_equal_the_plain_ones(options):
    """The states to 1e-5 and the text token by token, past block_size and with two texts written in turns."""
    plain, fixed = build(**options), build(**options)
    use_fixed_steps(fixed)
    x, caches = plain.embed(torch.randint(31, (3, 13))), (Cache(13), Cache(13))
    with torch.no_grad():
        for part in x.split([4] + [1] * 9, dim=1):
            expected, states = (model.run_blocks(part, cache=cache) for model, cache in zip((plain, fixed), caches))
            torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    assert hasattr(caches[1], "step") and not hasattr(caches[0], "step")
    first, second = (fixed.generate(prompts, 40, temperature=0.0) for prompts in ([[1, 2, 3], [4]], [[5, 6]]))
    in_turns = list(zip(first, second))
    assert [a for a, _ in in_turns] == list(plain.generate([[1, 2, 3], [4]], 40, temperature=0.0))[:len(in_turns)]
    assert [b for _, b in in_turns] == list(plain.generate([[5, 6]], 40, temperature=0.0))


def test_a_new_mixing_module_is_sampled_plainly(monkeypatch):
    """It may use the cache in its own way, even if it is derived from a module that has a fixed form."""
    class Another(Attention):
        pass
    monkeypatch.setitem(ARCHITECTURES, "another", ARCHITECTURES["gpt"] | {"steps": [[Another]]})
    model = build(model_type="another")
    before = list(model.generate([[1, 2]], 20))
    use_fixed_steps(model)
    assert "run_blocks" not in vars(model) and list(model.generate([[1, 2]], 20)) == before


def test_a_drawn_token_is_that_of_multinomial():
    """From the same generator; tokens without probability are never drawn."""
    logits = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)) - torch.tensor([1e9] + [0.0] * 6)
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    sorted_logits, idx = logits.sort(dim=-1, descending=True)
    expected = idx.gather(1, torch.multinomial(sorted_logits.softmax(dim=-1), 1, generator=theirs))[:, 0]
    drawn = sample_token(logits, 1.0, None, None, ours)
    assert torch.equal(drawn, expected) and set(drawn.tolist()) == {1, 2, 3, 4, 5, 6}


def test_greedy_generation_follows_the_window_rule():
    """The next token is the argmax over all tokens so far; when they fill block_size the older half goes."""
    model, window, text = build(), [1, 2, 3], []
    for _ in range(40):
        if len(window) > 13:
            window = window[-6:]
        text.append(model(torch.tensor([window]))[0][0, -1].argmax().item())
        window.append(text[-1])
    assert [token for token, in model.generate([[1, 2, 3]], 40, temperature=0.0)] == text


def test_generation_stops_at_the_stop_token_row_by_row():
    """The stop token is the last of its row; other rows go on."""
    model = build()
    full = list(zip(*model.generate([[1], [2]], 20, temperature=1.0, seed=3)))
    stop = full[0][4]
    rows = list(zip(*model.generate([[1], [2]], 20, temperature=1.0, seed=3, stop_token=stop)))
    for row, all_tokens in zip(rows, full):
        n = all_tokens.index(stop) + 1 if stop in all_tokens else 20
        assert [token for token in row if token is not None] == list(all_tokens[:n])


def test_top_k_and_top_p_keep_the_likeliest_tokens():
    """Drawn tokens lie in the set that each rule keeps, and all of that set is drawn."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(2000, 4)
    generator = torch.Generator().manual_seed(0)

    def draw(temperature=1.0, top_k=None, top_p=None):
        return sample_token(logits, temperature, top_k, top_p, generator)

    assert set(draw().tolist()) == {0, 1, 2, 3}
    assert set(draw(temperature=1e-40).tolist()) == set(draw(temperature=0).tolist()) == {1}
    assert set(draw(top_k=2).tolist()) == {1, 3}
    assert set(draw(top_p=0.69).tolist()) == {1, 3}
    assert set(draw(top_p=0.71).tolist()) == {1, 2, 3}
    assert set(draw(top_p=0.01).tolist()) == {1}
    share = draw(temperature=0.5).eq(1).float().mean().item()
    assert share == pytest.approx(0.16 / 0.30, abs=0.05)


# ------------------------------------------------------------------------------------------------------------
# the script

def test_sample_continues_a_prompt_without_the_data(run):
    """The tokenizer comes with the checkpoint; a seed gives the same text, another seed another."""
    run("train.py")
    os.remove("data")
    arguments = "--out_dir=out", "--start=3 times", "--num_samples=2", "--max_new_tokens=30"
    status, out, err = run("sample.py", *arguments)
    first, second = out.split("\n" + "-" * 80 + "\n")[:2]
    assert status == 0 and first.startswith("3 times") and second.startswith("3 times") and first != second
    assert "tokens" in err
    assert run("sample.py", *arguments)[1] == out


def test_the_end_of_a_text_is_not_printed(run, monkeypatch):
    """A sample that ends with the end-of-text token shows its text alone."""
    run("train.py")
    monkeypatch.setattr("model.LanguageModel.generate", lambda *_: iter([[104], [105], [256]]))
    assert run("sample.py", "--out_dir=out", "--num_samples=1")[1] == "hi\n" + "-" * 80 + "\n"


def test_sample_reads_the_prompt_from_a_file(run):
    """FILE:path, with text that is more than ASCII."""
    run("train.py")
    with open("prompt.txt", "w", encoding="utf-8") as f:
        f.write("zwölf 🎲")
    status, out, _ = run("sample.py", "--out_dir=out", "--start=FILE:prompt.txt", "--num_samples=1")
    assert status == 0 and out.startswith("zwölf 🎲")


@pytest.mark.parametrize("works", [True, False])
def test_compiled_samples_are_the_same(works, run, monkeypatch):
    """With one compilation for all tokens, or without one, which is said, where torch.compile does not work."""
    def broken(*_):
        raise RuntimeError("no compiler")
    counter = CompileCounter()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step: compile(step, backend=counter) if works else broken)
    run("train.py")
    arguments = "--out_dir=out", "--start=3 times", "--num_samples=2", "--max_new_tokens=30"
    expected = run("sample.py", *arguments)[1]
    status, out, _ = run("sample.py", *arguments, "--compile=true")
    assert status == 0 and out.endswith(expected) and ("does not work here" in out) != works
    assert counter.frame_count == works


def test_bad_sample_input_is_refused(run, refused):
    """Each is one line that says what is wrong, status 2."""
    run("train.py")
    with open("latin1.txt", "wb") as f:
        f.write("zwölf".encode("latin-1"))
    for message, argument in [
        ("top_k", "--top_k=0"), ("top_p", "--top_p=0.0"), ("temperature", "--temperature=-1"),
        ("num_samples", "--num_samples=0"), ("12 tokens, the window 11", "--start=" + "x" * 12),
        ("cannot read nowhere.txt", "--start=FILE:nowhere.txt"),
        ("wrong byte at offset 2", "--start=FILE:latin1.txt"), ("no checkpoint", "--out_dir=nowhere"),
        ("not available", "--device=cuda:9"), ("did you mean", "--tmperature=1"),
    ]:
        refused(message, "sample.py", "--out_dir=out", argument)
    refused("needs --fast=true", "sample.py", "--out_dir=out", "--compile=true", "--fast=false")


def test_stream_text_waits_for_whole_characters():
    """Bytes of one character arrive together; a broken one becomes a replacement mark."""
    tokenizer = tiktoken.Encoding("byte", pat_str=".", special_tokens={},
                                  mergeable_ranks={bytes([i]): i for i in range(256)})
    assert list(stream_text(tokenizer, "é🎲".encode())) == ["", "é", "", "", "", "🎲", ""]
    assert "".join(stream_text(tokenizer, b"a\xff\xf0")) == "a\ufffd\ufffd"

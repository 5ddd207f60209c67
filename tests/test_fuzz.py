"""On random input, the configurator, prepare.py, the models and sampling work, or raise an error of one line.

Each test tries a few examples; `python -m pytest -m slow` tries up to 10,000.
"""
import contextlib
import io
import tempfile
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conftest import HERE
from configurator import configure, read_settings
from lib.data import build_tokenizer, load_meta, load_tokens
from model import ARCHITECTURES, CHOICES, COUNTS, LanguageModel, ModelConfig
from prepare import prepare

SOURCES = "train.py", "model.py"
DEFAULTS = {key: setting for name in SOURCES for key, setting in read_settings(f"{HERE}/{name}", marked=True).items()}


def examples(few, many, *strategies):
    """Decorate a test so that it tries `few` values of the strategies and, where slow tests run, `many`."""
    def decorate(test):
        @pytest.mark.parametrize("n", [few, pytest.param(many, marks=pytest.mark.slow)])
        def run_test(n):
            options = dict(max_examples=n, deadline=None, derandomize=True, database=None,
                           suppress_health_check=list(HealthCheck))
            settings(**options)(given(*strategies)(test))()
        run_test.__doc__ = test.__doc__
        return run_test
    return decorate


def one_line_or(result):
    """Return result(), or None if it raises an error that run_script turns into one line."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return result()
        except (ValueError, OSError) as e:
            assert str(e).strip()
    return None


# ------------------------------------------------------------------------------------------------------------
# configurator

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6)
KEYS = st.sampled_from(sorted(DEFAULTS)) | st.text("abc_", max_size=5)
VALUES = LITERALS.map(repr) | st.text(max_size=20) | st.text("0123456789+-*/().eE[], ", max_size=20)
ARGUMENTS = st.builds("--{}={}".format, KEYS, VALUES) | st.text(max_size=9).map("--".__add__)
LINES = st.builds("{} = {}".format, KEYS, VALUES) | st.text(max_size=30)


@examples(100, 10_000, st.lists(ARGUMENTS, max_size=4), st.lists(LINES, max_size=3) | st.binary(max_size=60))
def test_any_arguments_are_settings_or_one_line(arguments, content):
    """Every value has one of the types that its key takes, or configure raises an error of one line."""
    assume(not {"--help", "-h"} & set(arguments))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.py")
        content = content if isinstance(content, bytes) else "\n".join(content).encode(errors="replace")
        path.write_bytes(content)
        for argv in arguments, [str(path)], [*arguments, str(path)]:
            config = one_line_or(lambda argv=argv: configure(argv, *SOURCES))
            for key, value in (config or {}).items():
                kinds = [kind.partition("[")[0] for kind in DEFAULTS[key].types]
                assert type(value).__name__ in kinds, (key, value)


# ------------------------------------------------------------------------------------------------------------
# prepare

CORNERS = ["<|endoftext|>", "<|endoftext|>" * 3, "\r\n \r", "\U0001f600" * 50, "\0", "\ufeff", "a" * 10_000]


def visible(text):
    """List the characters that prepare.py never drops, unlike white space and a byte order mark."""
    return [c for c in text if not c.isspace() and c != "\ufeff"]


@examples(5, 100, st.lists(st.text() | st.sampled_from(CORNERS), max_size=5), st.binary(max_size=200),
          st.sampled_from(["byte", "bpe"]), st.booleans())
def test_any_text_is_prepared_or_one_line(texts, garbage, tokenizer, binary):
    """The prepared documents decode to the whole text, or prepare raises an error of one line and leaves nothing."""
    content = garbage if binary else "<|endoftext|>".join(texts).encode(errors="replace")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(content)
        meta = one_line_or(lambda: prepare(
            dataset="a", input=f"{folder}/a.txt", tokenizer=tokenizer, vocab_size=300, text_key="text",
            val_fraction=0.5, max_mb=0, data_dir=folder))
        if meta is None:
            assert not Path(folder, "a").exists()
            return
        meta, found = load_meta(f"{folder}/a"), []
        for side in "train", "val":
            ids = load_tokens(f"{folder}/a", side, meta).tolist()
            assert ids[-1] == meta["eot_id"] and len(ids) == meta[side]["tokens"]
            found.append(build_tokenizer(meta).decode_bytes([i for i in ids if i != meta["eot_id"]]))
        given_text, kept = content.decode().replace("<|endoftext|>", ""), b"".join(found).decode()
        assert Counter(visible(given_text)) == Counter(visible(kept))


@pytest.mark.slow
def test_a_line_of_ten_megabytes_is_prepared():
    """A text of 10 MB without a line break is prepared, and no byte of it is lost."""
    text = "".join(f"{i} " for i in range(1_500_000))[:10_000_000]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_text(text, encoding="utf-8")
        meta = prepare(dataset="a", input=f"{folder}/a.txt", tokenizer="bpe", vocab_size=500, text_key="text",
                       val_fraction=0.1, max_mb=0, data_dir=folder)
        assert meta["train"]["bytes"] + meta["val"]["bytes"] == len(text)


# ------------------------------------------------------------------------------------------------------------
# models and sampling

@st.composite
def configs(draw):
    """Draw a ModelConfig that makes a model."""
    choice = {key: draw(st.sampled_from([*choices, "auto"])) for key, choices in CHOICES.items()
              if key != "model_type"}
    sizes = {key: draw(st.integers(COUNTS[key], 4)) for key in ("n_layer", "n_head", "mixer_heads", "kernel_size",
                                                                "parallel", "mlp_ratio")}
    flags = {key: draw(st.booleans()) for key in ("expanded", "toeplitz", "tie", "residual", "post_norm")}
    try:
        config = ModelConfig(model_type=draw(st.sampled_from(sorted(ARCHITECTURES))),
                             block_size=draw(st.integers(1, 9)), n_embd=draw(st.integers(1, 24)),
                             vocab_size=draw(st.integers(1, 40)),
                             embd_std=draw(st.sampled_from([0.02, 1.0, "auto"])), **choice, **sizes, **flags)
        with torch.device("meta"):
            LanguageModel(config)
        return config
    except ValueError as e:
        assert "divisible" in str(e) or "even width" in str(e), e
        assume(False)


@examples(25, 500, configs(), st.integers(0, 2 ** 31))
def test_any_model_learns_generates_and_sees_no_future(config, seed):
    """The loss and gradients are finite, cached and uncached sampling agree, and no logit sees a later token."""
    torch.manual_seed(seed)
    model, T, V = LanguageModel(config), config.block_size, config.vocab_size
    idx = torch.randint(V, (2, T))
    logits, loss = model(idx, idx)
    loss.backward()
    assert logits.shape == (2, T, V) and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    t = seed % T
    changed = idx.clone()
    changed[:, t] = (changed[:, t] + 1) % V
    with torch.no_grad():
        assert torch.equal(model(changed)[0][:, :t], model(idx)[0][:, :t])
        prompts = [row[:1 + seed % T].tolist() for row in idx]
        cached, plain = (list(model.generate(prompts, 5, temperature=0, cached=c)) for c in (True, False))
    assert cached == plain and len(cached) == 5


@examples(20, 500, st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=4), st.integers(0, 20),
          st.sampled_from([0, 0.01, 1.0, 50.0]), st.none() | st.integers(1, 99),
          st.none() | st.floats(0.01, 1), st.none() | st.integers(0, 30))
def test_any_prompts_are_continued_or_refused(prompts, n, temperature, top_k, top_p, stop_token):
    """Each row has n new tokens or ends with the stop token; an empty or too long prompt is refused."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(block_size=7, n_layer=1, n_embd=8, vocab_size=31)).eval()
    with torch.no_grad():
        steps = model.generate(prompts, n, temperature, top_k, top_p, stop_token=stop_token)
        if not prompts or not all(1 <= len(prompt) <= 7 for prompt in prompts):
            with pytest.raises(ValueError, match="a prompt has 1 to"):
                list(steps)
            return
        rows = [[token for token in row if token is not None] for row in zip(*steps)]
    assert all(0 <= token < 31 for row in rows for token in row)
    assert all(len(row) == n or row[-1] == stop_token for row in rows)


def test_every_field_of_a_model_is_tried():
    """configs() draws every field of ModelConfig but two; a new field must be added to it."""
    tried = {*CHOICES, *COUNTS, "expanded", "toeplitz", "tie", "residual", "post_norm", "embd_std"}
    assert {f.name for f in fields(ModelConfig)} == tried | {"dropout", "causal"}

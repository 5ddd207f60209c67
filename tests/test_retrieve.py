"""Retrieval: losses and metrics by hand, pads that nobody sees, and runs that end well."""
import csv
import io
import json
import math
import os
import shlex
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import retrieve
from configurator import configure
from conftest import HERE, flip
from lib.retrieval import (Encoder, best_passages, cached_backward, drop_tokens, embed, epoch_batch, evaluate_scores,
                           hard_negatives, info_nce, is_right, list_pairs, load_encoder, match_batch, match_logits,
                           measure_baseline, nearest_wrong, pad, pair_order)
from model import LanguageModel, ModelConfig

B, T, C, V = 5, 7, 12, 31
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
IDS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9], [2, 7]]
TINY = ["--pairs=sums", "--dataset=tiny", "--block_size=13", "--n_layer=1", "--n_embd=12", "--n_head=3",
        "--batch_size=8", "--micro_batch_size=4", "--max_iters=6", "--max_seconds=0", "--warmup_iters=2",
        "--eval_queries=11", "--log_interval=2", "--sizes=2,4", "--baselines=", "--compile=false",
        "--dtype=float32", "--device=cpu"]


def build(**options):
    torch.manual_seed(1)
    options = dict(block_size=T, n_layer=2, n_embd=C, n_head=3, vocab_size=V) | options
    return LanguageModel(ModelConfig(**options)).eval()


class Letters:
    """A tokenizer of one token a letter."""

    def encode_ordinary_batch(self, texts):
        return [[ord(letter) - ord("a") for letter in text] for text in texts]


# ------------------------------------------------------------------------------------------------------------
# embeddings

@pytest.mark.parametrize("pooling", ["mean", "last", "second_to_last"])
@pytest.mark.parametrize("model_type", ["mixer", "gpt", "llama", "hybrid"])
def test_pads_on_the_right_are_not_seen(model_type, pooling):
    """Whatever stands there, and however wide: the embedding is that of the text alone."""
    model = build(model_type=model_type)
    together = [embed(model, *pad(IDS, T, "right", pad_id), pooling) for pad_id in (0, 30)]
    torch.testing.assert_close(*together, rtol=0, atol=0)
    for ids, e in zip(IDS, together[0]):
        h = model.run_blocks(model.embed(torch.tensor([ids])))[0]
        one = {"mean": h.mean(dim=0), "last": h[-1], "second_to_last": h[-2 if len(ids) > 1 else -1]}[pooling]
        torch.testing.assert_close(e, one / one.norm(), atol=1e-5, rtol=1e-4)


def test_left_padding_puts_the_text_at_the_end():
    """The last position holds the last token; `last` reads it there."""
    idx, real = pad(IDS, T, "left", 30)
    assert idx[0].tolist() == [30, 30, 30, 30, 3, 1, 4] and real.sum(dim=1).tolist() == [3, 7, 1, 4, 2]
    model = build()
    h = model.run_blocks(model.embed(idx))
    e = embed(model, idx, real, "last")
    torch.testing.assert_close(e, h[:, -1] / h[:, -1].norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["mixer", "llama"])
def test_states_are_read_after_the_final_norm_on_demand(model_type):
    """As the norm says, by mean and by last token; a mixer has no such norm, and its states stay as they are."""
    model = build(model_type=model_type)
    with torch.no_grad():
        for weight in model.final_norm.parameters():
            weight.copy_(torch.arange(1, C + 1))
    idx, real = pad(IDS[:1], 3, "right", 0)
    h = model.run_blocks(model.embed(idx))[0]
    if model_type == "llama":
        h = torch.nn.functional.rms_norm(h, (C,), eps=1e-5) * torch.arange(1, C + 1)
    for pooling, e in ("mean", h.mean(dim=0)), ("last", h[-1]):
        found = embed(model, idx, real, pooling, normed_states=True)
        torch.testing.assert_close(found[0], e / e.norm(), atol=1e-5, rtol=1e-4)


def test_dropped_tokens_are_a_share():
    """The rest keeps its order, a text keeps a token, and share 0 keeps all."""
    rng = np.random.default_rng(3)
    texts = [list(range(997))] * 5 + [[7]] * 50
    thinned = drop_tokens(texts, 0.3, rng)
    assert 0.65 * 5 * 997 < sum(map(len, thinned[:5])) < 0.75 * 5 * 997 and thinned[0] != thinned[1]
    assert all(tokens == sorted(set(tokens)) for tokens in thinned) and thinned[5:] == texts[5:]
    assert drop_tokens(texts, 0.0, rng) == texts


@pytest.mark.parametrize("padding", ["right", "left"])
def test_an_embedding_does_not_depend_on_the_other_texts(padding):
    """Alone, in parts of 2, or all at once; long texts are cut, an empty one is an end of text."""
    encoder = Encoder(build(), Letters(), 30, padding=padding)
    texts = ["abc", "hello", "", "zyxwvuts" * 9, "b"]
    e = encoder.encode(texts)
    assert e.dtype == np.float32 and e.shape == (5, C)
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts, batch_size=2), e, atol=1e-6)
    for text, one in zip(texts, e):
        np.testing.assert_allclose(encoder.encode(text), one, atol=1e-6)
    np.testing.assert_allclose(encoder.encode("zyxwvut"), e[3], atol=1e-6)
    assert encoder.encode([]).shape == (0, C)


# ------------------------------------------------------------------------------------------------------------
# losses

@pytest.mark.parametrize("n_extra", [0, 3])
def test_info_nce_is_the_double_loop(n_extra):
    """Both directions, without the duplicates of the right passage; hard negatives are for queries only."""
    torch.manual_seed(2)
    q, p, extra = (torch.nn.functional.normalize(torch.randn(n, C), dim=1) for n in (B, B, n_extra))
    ids, temperature, total = [4, 7, 4, 1, 9], 0.07, 0.0
    for i in range(B):
        right = math.exp(q[i] @ p[i] / temperature)
        others = [j for j in range(B) if ids[j] != ids[i]]
        to_passages = right + sum(math.exp(q[i] @ p[j] / temperature) for j in others)
        to_passages += sum(math.exp(q[i] @ negative / temperature) for negative in extra)
        to_queries = right + sum(math.exp(q[j] @ p[i] / temperature) for j in others)
        total -= (math.log(right / to_passages) + math.log(right / to_queries)) / (2 * B)
    right = torch.tensor([[one == other for other in ids] for one in ids])
    loss = info_nce(q, p, right, temperature, *([extra] if n_extra else []))
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_gradient_caching_is_the_whole_batch():
    """The same loss and gradients, from parts of 2 texts."""
    gradients = []
    for cached in False, True:
        model = build()
        encoder = Encoder(model, Letters(), 30)
        parts = [encoder.parts(ids, 2) for ids in (IDS, IDS[::-1])]
        orders = [order for _, order in parts]

        def loss(*embeddings, orders=orders):
            q, p = (e[order] for e, order in zip(embeddings, orders))
            return info_nce(q, p, torch.eye(B, dtype=torch.bool), 0.1)
        if cached:
            value = cached_backward([functions for functions, _ in parts], loss, torch.device("cpu"), NO_SCALER)
        else:
            value = loss(*(torch.cat([encode() for encode in functions]) for functions, _ in parts))
            value.backward()
        gradients.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 9
    for whole, parts in zip(*gradients):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_gradient_caching_is_scaled():
    """The gradients are those without a scaler, times its scale; the loss is not scaled."""
    results = []
    for scaler in NO_SCALER, torch.amp.GradScaler("cpu", init_scale=8.0):
        encoder = Encoder(build(), Letters(), 30)
        parts = [encoder.parts(ids, 2)[0] for ids in (IDS, IDS[::-1])]
        loss = cached_backward(parts, lambda q, p: (q @ p.T).exp().sum(), torch.device("cpu"), scaler)
        results.append((loss, torch.cat([p.grad.flatten() for p in encoder.model.parameters() if p.grad is not None])))
    (loss, gradient), (same_loss, scaled) = results
    assert loss == same_loss and gradient.abs().max() > 1e-3
    torch.testing.assert_close(scaled, 8 * gradient)


@pytest.mark.parametrize("backward_draws", [False, True])
def test_gradient_caching_has_the_dropout_of_the_whole_batch(backward_draws):
    """The same loss, gradients and later random numbers, at dropout 0.3, even if a backward pass draws numbers too."""
    results = []
    for cached in False, True:
        encoder = Encoder(build(dropout=0.3).train(), Letters(), 30)
        if backward_draws:
            encoder.model.wte.weight.register_hook(lambda gradient: gradient + 0 * torch.rand(()))
        parts = [encoder.parts(ids, 2)[0] for ids in (IDS, IDS[::-1])]
        torch.manual_seed(5)

        def loss(q, p):
            return info_nce(q, p, torch.eye(B, dtype=torch.bool), 0.1)
        if cached:
            value = cached_backward(parts, loss, torch.device("cpu"), NO_SCALER)
        else:
            value = loss(*[torch.cat([encode() for encode in functions]) for functions in parts])
            value.backward()
        results.append([value.detach(), torch.rand(3),
                        *(p.grad for p in encoder.model.parameters() if p.grad is not None)])
    for whole, cached in zip(*results):
        torch.testing.assert_close(cached, whole, atol=1e-6, rtol=1e-5)


def test_a_passage_that_answers_a_query_is_no_negative():
    """Neither for the query, nor the query for the passage: the loss does not depend on how similar they are."""
    torch.manual_seed(2)
    q, p = torch.randn(2, 3, C, requires_grad=True).unbind()
    pairs = list_pairs([[0, 2], [1], [3]])
    batch = torch.tensor([[0, 0], [0, 2], [2, 3]])
    right = is_right(batch[:, :1], batch[:, 1], pairs)
    assert right.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    scores = q @ p.T
    scores.retain_grad()
    info_nce(scores, torch.eye(3), right, 1.0).backward()
    assert scores.grad[0, 1] == scores.grad[1, 0] == 0 and scores.grad[0, 2] > 0 and scores.grad[2, 0] > 0


def test_the_right_passages_are_known_by_their_indices():
    """As a loop over the lists says, for passages that are right for nobody or for several."""
    gold = [[4, 0], [], [4], [2, 3, 1]]
    found = is_right(torch.arange(4)[:, None], torch.arange(5), list_pairs(gold))
    assert found.tolist() == [[passage in right for passage in range(5)] for right in gold]


def test_hard_negatives_are_wrong():
    """The nearest passage that is right for none; None if all are right."""
    vectors = {"q": [1, 0], "r": [0, 1], "a": [1, 0], "b": [0.8, 0.6], "c": [0.6, 0.8]}
    encoder = SimpleNamespace(encode=lambda texts: np.array([vectors[text] for text in texts], dtype=np.float32))
    gold = [[0, 1], [2], [0, 1, 2]]
    assert nearest_wrong(encoder, ["q", "r", "q"], ["a", "b", "c"], gold) == [2, 1, None]


def test_hard_negatives_answer_no_query_of_the_batch():
    """The nearest wrong passages in the order of the queries, without None and the answers to other queries."""
    nearest, gold = [3, None, 0, 4, 3], [[0, 1], [2], [1], [3], [2]]
    assert hard_negatives(nearest, [4, 1, 2], gold) == [3, 0]
    assert hard_negatives(nearest, [4, 0, 2], gold) == [3, 3]
    assert hard_negatives(nearest, [0, 3, 4], gold) == [4]
    assert hard_negatives(nearest, [1], gold) == []


def test_an_epoch_has_each_pair_once():
    """But for the rest of a batch; each epoch has another order, and a seed has its own, drawn once per epoch."""
    pairs = torch.arange(2 * 103).view(103, 2)
    drawn = pair_order.cache_info().misses
    epochs = [torch.cat([epoch_batch(pairs, 7, seed, it) for it in range(14 * n, 14 * (n + 1))])
              for seed in (7, 8) for n in range(2)]
    assert pair_order.cache_info().misses == drawn + 4
    for n, epoch in enumerate(epochs):
        assert len(set(epoch[:, 0].tolist())) == 98 and (epoch[:, 1] == epoch[:, 0] + 1).all()
        assert not any(torch.equal(epoch, other) for other in epochs[:n])


def test_the_matcher_gets_one_right_passage():
    """It stands at `target`, and nowhere else; the query comes first."""
    queries, passages = torch.arange(11.0)[:, None] + 100, torch.arange(11.0)[:, None]
    rows = torch.arange(11).repeat(40)
    x, candidates, target = match_batch(queries, passages, rows, 6, torch.Generator().manual_seed(0))
    assert x.shape == (440, 6, 1) and torch.equal(x[:, 0, 0], rows + 100.0)
    assert torch.equal(x[:, 1:, 0] == rows[:, None], torch.nn.functional.one_hot(target, 5).bool())
    assert set(target.tolist()) == set(range(5)) and torch.equal(x[:, 1:, 0], candidates.float())
    assert set(x[rows == 3, 1:].flatten().tolist()) == set(range(11))


def test_the_matcher_sees_all_passages():
    """Each logit depends on each position: there is no mask."""
    matcher = build(block_size=6, vocab_size=1, causal=False)
    x = torch.randn(2, 6, C, requires_grad=True)
    logits = match_logits(matcher, x)
    assert logits.shape == (2, 5)
    for i in range(5):
        gradient, = torch.autograd.grad(logits[0, i], x, retain_graph=True)
        assert (gradient[0].abs().sum(dim=1) > 0).all() and not gradient[1].any()


# ------------------------------------------------------------------------------------------------------------
# metrics

def test_metrics_by_hand():
    """Ranks 1, 2 and 3 of 3 passages; a tie counts against us."""
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.0], [0.9, 0.5, 0.5], [0.2, 0.2, 0.1]])
    values = evaluate_scores(scores, [[0], [1], [2], [0]], 3, [1, 3, 4])
    assert values["mrr10"].tolist() == [1, 0.5, pytest.approx(1 / 3), 0.5]
    assert values["recall_1"].tolist() == values["top1_3"].tolist() == [1, 0, 0, 0]
    assert values["recall_10"].tolist() == values["top1_1"].tolist() == [1, 1, 1, 1]
    assert "top1_4" not in values


def test_a_perfect_judge_of_several_right_passages():
    """It puts both answers first, in either order: recall_1 = top1_n = mrr10 = 1 for all n that can be drawn."""
    gold = [[3, 0], [1], [2, 4]]
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.8, 0.3], [0.0, 0.7, 0.0, 0.0, 0.0], [0.1, 0.1, 0.5, 0.1, 0.5]])
    values = evaluate_scores(scores, gold, 5, [2, 3, 4, 5])
    assert "top1_4" in values and "top1_5" not in values  # the first query has but 3 wrong passages
    assert all(value.tolist() == [1, 1, 1] for value in values.values())
    beaten = evaluate_scores(scores, [[1, 2], [1], [0, 4]], 5, [4])
    assert beaten["mrr10"].tolist() == [0.25, 1, 0.5] and beaten["top1_4"].tolist() == [0, 1, 0]


def test_scores_that_are_no_numbers_are_wrong():
    values = evaluate_scores(torch.full((1, 4), math.nan), [[2]], 4, [2])
    assert values["recall_1"].item() == values["top1_2"].item() == 0


def test_candidates_are_a_fair_draw():
    """By random scores 1 of n comes first; the candidates of a small n are among those of a large one."""
    P, N = 64, 4000
    gold = [[i % P] for i in range(N)]
    scores = torch.rand(N, P, generator=torch.Generator().manual_seed(1))
    values = evaluate_scores(scores, gold, P, [2, 8, 64])
    for n in 2, 8, 64:
        assert values[f"top1_{n}"].mean().item() == pytest.approx(1 / n, abs=4 * (1 / n / N) ** 0.5)
    assert (values["top1_2"] >= values["top1_8"]).all() and (values["top1_8"] >= values["top1_64"]).all()
    assert torch.equal(values["top1_64"], values["recall_1"])


def test_a_rank_beyond_ten_counts_nothing():
    scores = -torch.arange(40.0)[None]
    for gold, rank in (9, 10), (10, 11):
        values = evaluate_scores(scores, [[gold]], 40, [])
        assert values["mrr10"].item() == (0.1 if rank == 10 else 0)
        assert values["recall_10"].item() == (rank <= 10) and values["recall_100"].item() == 1


def test_search_in_blocks_is_search():
    """For one query and for several, a last block that is not full, and fewer passages than asked for."""
    queries, passages = torch.randn(55, C, generator=torch.Generator().manual_seed(3)).split([5, 50])
    for few in queries, queries[:1]:
        scores, indices = best_passages(few, passages, 7, block=8)
        expected, order = (few @ passages.T).sort(descending=True)
        assert torch.equal(indices, order[:, :7])
        torch.testing.assert_close(scores, expected[:, :7])
        assert best_passages(few, passages[:3], 7)[1].shape == (len(few), 3)


# ------------------------------------------------------------------------------------------------------------
# baselines and the use from a notebook

def test_bm25_of_stop_words_is_0():
    """A query without any word that counts finds nothing, and the others are measured."""
    passages = ["the cat sleeps", "a dog barks", "it rains"]
    row = measure_baseline("bm25", ["what is it", "?", "dog"], passages, [[0], [2], [1]], [2])
    assert row["recall_1"] == row["top1_2"] == pytest.approx(1 / 3, abs=1e-5)


@pytest.mark.parametrize("text, says_so", [("不知道什么时候下雨", True), ("わたしは猫です", True), ("ไม่รู้", True),
                                           ("the cat 猫", False), ("дождь идёт", False), ("비가 옵니다", False)])
def test_bm25_without_spaces_between_words_says_so(capsys, text, says_so):
    """Chinese, Japanese, Thai; not English with a sign, Russian or Korean."""
    measure_baseline("bm25", [text, "cat"], [text, f"{text} 2"], [[0], [1]], [2])
    assert ("without spaces" in capsys.readouterr().out) == says_so


def test_a_baseline_that_fails_says_why(capsys, monkeypatch):
    """Also one that fails when it is used, and a package that is not there; ~ is the home folder."""
    class Broken:
        def __init__(self, path):
            self.path = path

        def encode(self, texts, normalize_embeddings):
            raise RuntimeError(f"{self.path} is too large")
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Broken))
    assert measure_baseline("~/minilm", ["a"], ["b"], [[0]], [1]) is None
    assert capsys.readouterr().out == "no baseline ~/minilm: /home/ann/minilm is too large\n"
    monkeypatch.setitem(sys.modules, "bm25s", None)
    assert measure_baseline("bm25", ["a"], ["b"], [[0]], [1]) is None
    assert capsys.readouterr().out == "no baseline bm25: pip install bm25s\n"


def test_arguments_of_encode_are_honoured_or_refused():
    """Tensors, lists, lengths and a bar; what it does not know is a TypeError, and so is a text that is none."""
    encoder, texts = Encoder(build(), Letters(), 30), ["abc", "d"]
    e = encoder.encode(texts)
    assert torch.equal(encoder.encode(texts, convert_to_tensor=True), torch.from_numpy(e))
    parts = encoder.encode(texts, convert_to_numpy=False, show_progress_bar=False)
    assert type(parts) is list and torch.equal(torch.stack(parts), torch.from_numpy(e))
    long = encoder.encode(texts, normalize_embeddings=False)
    h = encoder.model.run_blocks(encoder.model.embed(torch.tensor([[0, 1, 2]])))[0]
    np.testing.assert_allclose(long[0], h.mean(dim=0).detach(), atol=1e-5)
    np.testing.assert_allclose(long / np.linalg.norm(long, axis=1, keepdims=True), e, atol=1e-5)
    for unknown in dict(prompt="query: "), dict(truncate_dim=8), dict(batchsize=1):
        with pytest.raises(TypeError):
            encoder.encode(texts, **unknown)
    with pytest.raises(TypeError, match="not NoneType"):
        encoder.encode(["a", None])


def test_an_embedding_model_needs_its_mask():
    with pytest.raises(ValueError, match="needs its mask"):
        Encoder(build(causal=False), Letters(), 30)


def settings(*arguments):
    return SimpleNamespace(**configure([*TINY, *arguments], "retrieve.py", "model.py"))


def test_nothing_is_learned_where_every_passage_is_right(tmp_path):
    """One query and all passages: a loss of 0, from InfoNCE and from the matcher, called as in a notebook."""
    pairs = ["abc"], ["def", "ghij", "k", "lmnopq"], [[2, 0, 1, 3]]
    args = settings(f"--out_dir={tmp_path}/a", "--batch_size=3", "--max_iters=2", "--n_context=4")
    row, caught = retrieve.train_infonce(Encoder(build(block_size=13), Letters(), 30), {}, pairs, pairs, args)
    assert caught == 0 and row["loss"] == 0 and row["recall_1"] == 1 and row["train_pairs"] == 6
    row, _ = retrieve.train_match(Encoder(build(), Letters(), 30), {}, pairs, pairs, args)
    assert row["loss"] == 0


@pytest.mark.parametrize("padding, widths", [("right", {32, 64, 101}), ("left", {101})])
def test_texts_are_padded_to_few_widths(padding, widths):
    """Powers of two, at most block_size, and never less than the text."""
    encoder = Encoder(build(block_size=101), Letters(), 30, padding=padding)
    chosen = [encoder.width(length) for length in range(1, 102)]
    assert set(chosen) == widths and all(width >= length for length, width in enumerate(chosen, 1))


@pytest.mark.parametrize("grad_cache", ["false", "true"])
def test_all_widths_are_compiled_before_the_clock_starts(grad_cache, tmp_path, monkeypatch):
    """The longest text is in no early batch, and yet its width is seen before the log begins."""
    seen = []

    def compiled(function):
        def record(model, idx, *arguments):
            seen.append((idx.size(1), torch.is_grad_enabled()))
            return function(model, idx, *arguments)
        return record

    def start(*arguments):
        seen.append("start")
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(retrieve, "start_log", start)
    pairs = ["a"] * 7, [*"bcdefg", "h" * 70], [[i] for i in range(7)]
    args = settings(f"--out_dir={tmp_path}", "--batch_size=2", "--compile=true", f"--grad_cache={grad_cache}")
    retrieve.train_infonce(Encoder(build(block_size=101), Letters(), 30), {}, pairs, pairs, args)
    before, after = seen[:seen.index("start")], seen[seen.index("start") + 1:]
    assert set(after) <= set(before) and {width for width, _ in before} == {32, 64, 101}


# ------------------------------------------------------------------------------------------------------------
# the script

@pytest.fixture
def pairs_run(run, tmp_path):
    """run, with a set of pairs data/sums."""
    os.rename("data", "tiny_data")
    os.mkdir("data")
    os.symlink(os.path.realpath("tiny_data/tiny"), "data/tiny")
    with open("sums.jsonl", "w", encoding="utf-8") as f:
        for i in range(200):
            f.write(json.dumps({"query": f"{i} + {i}", "passage": f"makes {i + i}"}) + "\n")
    status, _, err = run("prepare.py", "--pairs=sums.jsonl", "--dataset=sums", "--val_fraction=0.2")
    assert status == 0, err
    return run


def table(folder, name="retrieve"):
    with open(f"{folder}/{name}.csv", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def content(path):
    with open(path, "rb") as f:
        return f.read()


def without_times(rows):
    """What must not depend on how often a run was stopped."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "pairs_per_sec")} for row in rows]


def tensors(value):
    """All tensors in nested dicts and lists, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for inner in values for tensor in tensors(inner)]


def assert_same_run(a, b):
    """Checkpoints to the last bit, with the optimizers; log and table but for the times."""
    for name in "ckpt.pt", "best.pt":
        one, other = (torch.load(f"{folder}/{name}", weights_only=True) for folder in (a, b))
        for checkpoint in one, other:
            del checkpoint["config"]["out_dir"], checkpoint["state"]["seconds"]
        assert one["config"] == other["config"] and one["state"] == other["state"]
        assert len(tensors(one)) == len(tensors(other)) > 20
        assert all(map(torch.equal, tensors(one), tensors(other)))
    for name in "log", "retrieve":
        rows, others = without_times(table(a, name)), without_times(table(b, name))
        for row in rows + others:
            row.pop("model", "")
        assert rows == others


def test_a_retriever_is_trained_measured_and_searched(pairs_run):
    """Log, table, figure and checkpoint; a second measurement finds the same; a search saves its index."""
    run = pairs_run
    longer = "--max_iters=60", "--eval_interval=40", "--log_interval=30", "--learning_rate=1e-2"
    status, out, err = run("retrieve.py", *TINY, "--out_dir=a", *longer)
    assert status == 0, err
    with open("a/log.csv", encoding="utf-8", newline="") as f:
        log = list(csv.DictReader(f))
    assert [row["iter"] for row in log] == ["0", "30", "40", "60"] and log[-1]["pairs"] == "480"
    assert float(log[-1]["loss"]) < 0.8 * float(log[1]["loss"])
    row, = table("a")
    assert row["train_pairs"] == "480" and 0 <= float(row["top1_4"]) <= float(row["top1_2"]) <= 1
    assert os.path.getsize("a/retrieve.png") > 1000
    before = content("a/retrieve.csv")
    for out_dir in "both", "a":
        run("retrieve.py", *TINY, f"--out_dir={out_dir}", "--compare=a,a")
        assert [r["mrr10"] for r in table(out_dir, "compare")] == [row["mrr10"]] * 2
    assert content("a/retrieve.csv") == before and not os.path.exists("both/retrieve.csv")
    search = [*TINY, "--out_dir=a", "--query=7 + 7", "--top=3"]
    status, out, err = run("retrieve.py", *search)
    assert status == 0 and out.count("makes") == 3
    index, = (name for name in os.listdir("a") if name.startswith("index"))
    assert np.load(f"a/{index}")["e"].shape == (200, 12)
    for damage in lambda path: os.truncate(path, 100), lambda path: flip(path, 5000):
        damage(f"a/{index}")
        assert run("retrieve.py", *search)[1] == out
    with open("notes.txt", "w", encoding="utf-8") as f:
        f.write("one\n\ntwo\n\n\n\nthree")
    out = run("retrieve.py", *search, "--corpus=notes.txt")[1]
    assert sorted(hit[7:].split("\n       ") for hit in out.strip().split("\n\n")) == [
        ["notes.txt:1", "one"], ["notes.txt:3", "two"], ["notes.txt:7", "three"]]


def test_a_program_asks_line_by_line(pairs_run, monkeypatch):
    """One line of JSON per line that is not blank, and nothing else; fusion puts the passage with the word first."""
    assert pairs_run("retrieve.py", *TINY, "--out_dir=a")[0] == 0
    os.makedirs("notes/deep")
    with open("notes/deep/a.md", "w", encoding="utf-8") as f:
        f.write("# Title\n\nThe rent is due.\n\nNothing else\n")
    with open("notes/b.txt", "wb") as f:
        f.write(b"\xff is no text")
    arguments = "retrieve.py", *TINY, "--out_dir=a", "--corpus=notes", "--query=-", "--json=true", "--fusion=true"
    monkeypatch.setattr("sys.stdin", io.StringIO("nothing\n\n what rent?\n"))  # a window is shorter than the note
    status, out, err = pairs_run(*arguments)
    assert status == 0 and "not searched: 1, such as this one: notes/b.txt" in err
    first, second = map(json.loads, out.splitlines())
    assert (first["query"], second["query"]) == ("nothing", "what rent?")
    assert len(first["hits"]) == len(second["hits"]) == 2
    assert first["hits"][0].items() >= {"file": "notes/deep/a.md", "line": 5, "text": "Nothing else"}.items()
    assert second["hits"][0]["line"] == 3 and "rent" in second["hits"][0]["text"]


def test_fusion_is_measured_in_a_row_of_its_own(pairs_run):
    """Beside the rows of BM25 and of the model, under a name of its own."""
    assert pairs_run("retrieve.py", *TINY, "--out_dir=a")[0] == 0
    arguments = "--out_dir=b", "--compare=a", "--fusion=true", "--baselines=bm25"
    status, _, err = pairs_run("retrieve.py", *TINY, *arguments)
    assert status == 0, err
    assert [(row["model"], row["method"]) for row in table("b", "compare")] == [
        ("bm25", ""), ("a", "infonce"), ("a and bm25", "fusion")]


def test_gradient_caching_and_hard_negatives_train(pairs_run):
    """The cached run is the plain one; train.py can give the start, and another run the negatives."""
    for name, arguments in [("plain", []), ("cached", ["--grad_cache=true"])]:
        assert pairs_run("retrieve.py", *TINY, f"--out_dir={name}", *arguments)[0] == 0
    assert float(table("plain")[0]["loss"]) == pytest.approx(float(table("cached")[0]["loss"]), rel=1e-4)
    pairs_run("train.py", "--block_size=13")
    shapeless = [a for a in TINY if not a.startswith(("--block", "--n_"))]
    more = "--init_from=out", "--hard_from=plain", "--out_dir=hard"
    status, _, err = pairs_run("retrieve.py", *shapeless, *more)
    assert status == 0, err


def test_training_in_float16_is_training(pairs_run):
    """Cached or not, and for the matcher: the losses of float32, but for a few steps that the scaler skips."""
    for arguments in [], ["--grad_cache=true"], ["--method=match", "--n_context=5"]:
        losses = []
        for dtype in "float32", "float16":
            more = "--max_iters=20", f"--out_dir={dtype}", f"--dtype={dtype}"
            assert pairs_run("retrieve.py", *TINY, *arguments, *more)[0] == 0
            losses.append(float(table(dtype)[0]["loss"]))
        assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_matcher_is_trained(pairs_run):
    """On the frozen embeddings of a fresh model."""
    match = "--method=match", "--n_context=5", "--matcher_layers=1", "--pooling=second_to_last"
    status, out, err = pairs_run("retrieve.py", *TINY, *match, "--out_dir=match")
    assert status == 0, err
    assert "among 4 passages" in out and table("match")[0]["method"] == "match 5"
    logged = float(table("match", "log")[-1]["held_out_loss"])
    assert logged == pytest.approx(float(table("match")[0]["loss"]), abs=1e-6)


def test_bad_retrieval_input_is_refused(pairs_run, refused):
    """Each is one line that says what is wrong, status 2."""
    for message, argument in [
        ("method must be", "--method=dpr"), ("pooling must be", "--pooling=max"),
        ("padding must be", "--padding=up"),
        ("budget", "--max_iters=0"), ("n_context is at most", "--method=match --n_context=500"),
        ("n_context must be", "--method=match --n_context=2"),
        ("temperature", "--temperature=0"), ("is for a model from scratch", "--init_from=out"),
        ("no checkpoint", "--hard_from=nowhere"), ("--corpus is the text", "--corpus=notes.txt"),
        ("cannot read", "--pairs=nowhere"), ("batch_size must be", "--batch_size=0"),
        ("no trained retriever in nowhere; train one", "--query=a --out_dir=nowhere"),
        ("prepare.py --pairs=sums.jsonl --dataset=own_pairs && python", "--query=a --out_dir=no --corpus=sums.jsonl"),
        ("no file or folder my", "--query=a --corpus=my"), ("no dataset in", "--dataset=nowhere"),
    ]:
        refused(message, "retrieve.py", *TINY, *argument.split())


def test_the_search_of_the_readme_works(pairs_run):
    """Its lines of Python, on the notes of somebody."""
    status, _, err = pairs_run("retrieve.py", *TINY, "--out_dir=out/retrieve_tiny")
    assert status == 0, err
    notes = ["1 times 1", "the water bill is due in May", "28 times 28 is 784, says the clerk."]
    with open("notes.txt", "w", encoding="utf-8") as f:
        f.write("\n\n".join(notes))
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as f:
        program = f.read().partition("```python\nfrom lib.retrieval import load_encoder\n")[2].partition("```")[0]
    printed = []
    exec("from lib.retrieval import load_encoder\n" + program, {"print": printed.append})
    assert program.count("\n") == 4 and printed[0] in notes


SAVES = ["--max_iters=10", "--eval_interval=4", "--log_interval=3", "--sizes=999"]  # too many to plot


@pytest.mark.parametrize("arguments", [
    ["--dropout=0.2", "--token_dropout=0.3", "--grad_cache=true", "--hard_from=hard"], ["--dtype=float16"],
    ["--optimizer=muon"],
    ["--method=match", "--n_context=5", "--optimizer=muon"], ["--method=match", "--n_context=5", "--init_from=hard"]])
def test_a_killed_run_resumes_to_the_same_bits(pairs_run, monkeypatch, arguments):
    """Ended in its 8th step without saving: the newer rows of its log are written again, and all else is the same."""
    assert pairs_run("retrieve.py", *TINY, "--out_dir=hard", "--seed=2")[0] == 0
    start = [argument for argument in TINY if "--init_from=hard" not in arguments or
             not argument.startswith(("--block", "--n_"))]
    used = match_logits if "--method=match" in arguments else info_nce
    calls = []

    def used_until_killed(*inputs):
        if torch.is_grad_enabled():
            calls.append(inputs)
        if torch.is_grad_enabled() and len(calls) == 9:  # the first is the throwaway step
            raise MemoryError("killed")
        return used(*inputs)
    assert pairs_run("retrieve.py", *start, *SAVES, *arguments, "--out_dir=straight")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(f"lib.retrieval.{used.__name__}", used_until_killed)
        assert pairs_run("retrieve.py", *start, *SAVES, *arguments, "--out_dir=killed")[0] == 1
    assert [row["iter"] for row in table("killed", "log")] == ["0", "3", "4", "6"]
    saved = torch.load("killed/ckpt.pt", weights_only=True)
    assert saved["state"]["iter"] == 4
    assert ("momentum" in saved["optimizer"]["param_groups"][0]) == ("--optimizer=muon" in arguments)
    if "--hard_from=hard" in arguments:
        os.remove("hard/ckpt.pt")  # the checkpoint has the hard negatives
    status, _, err = pairs_run("retrieve.py", *start, *SAVES, *arguments, "--out_dir=killed", "--init_from=resume")
    assert status == 0, err
    assert [row["iter"] for row in table("killed", "log")] == ["0", "3", "4", "6", "8", "9", "10"]
    assert_same_run("straight", "killed")


def test_a_finished_run_has_nothing_to_do(pairs_run):
    """Resumed, it writes its table again, and its log and checkpoint stay as they are; a larger budget goes on."""
    arguments = [*TINY, "--out_dir=a"]
    assert pairs_run("retrieve.py", *arguments)[0] == 0
    files = {name: content(f"a/{name}") for name in ("ckpt.pt", "best.pt", "log.csv", "retrieve.csv")}
    os.remove("a/retrieve.csv")
    assert pairs_run("retrieve.py", *arguments, "--init_from=resume")[0] == 0
    assert {name: content(f"a/{name}") for name in files} == files
    assert pairs_run("retrieve.py", *arguments, "--init_from=resume", "--max_iters=8")[0] == 0
    assert [row["iter"] for row in table("a", "log")] == ["0", "2", "4", "6", "8"]
    row, = table("a")
    assert row["train_pairs"] == "64" and float(row["seconds"]) > float(table("a", "log")[3]["seconds"])


def test_the_best_checkpoint_stays(pairs_run):
    """best.pt is that of the highest MRR in the log, the last one of several."""
    arguments = "--max_iters=30", "--eval_interval=2", "--learning_rate=0.3", "--out_dir=a"
    assert pairs_run("retrieve.py", *TINY, *arguments)[0] == 0
    rows = [row for row in table("a", "log") if row["mrr10"]]
    best = max(rows, key=lambda row: (float(row["mrr10"]), int(row["iter"])))
    assert torch.load("a/best.pt", weights_only=True)["state"]["iter"] == int(best["iter"]) < 30


@pytest.mark.parametrize("arguments", [["--dropout=0.2"], ["--method=match", "--n_context=5"]])
def test_throwaway_steps_change_nothing(pairs_run, monkeypatch, arguments):
    """With one of them or with three, the losses are the same."""
    def use_thrice(function, use, on):
        for _ in range(3):
            use(function)
        return function
    assert pairs_run("retrieve.py", *TINY, *arguments, "--out_dir=one")[0] == 0
    monkeypatch.setattr("lib.device.compile_or_not", use_thrice)
    assert pairs_run("retrieve.py", *TINY, *arguments, "--out_dir=three")[0] == 0
    assert_same_run("one", "three")


def test_only_the_same_run_goes_on(pairs_run, refused):
    """Not with other settings, other pairs or another kind of checkpoint; nothing is moved or written."""
    arguments = [*TINY, "--out_dir=a", "--init_from=resume"]
    refused("no checkpoint a/ckpt.pt", "retrieve.py", *arguments)
    assert pairs_run("retrieve.py", *TINY, "--out_dir=a")[0] == 0
    before = content("a/ckpt.pt")
    refused("trained with n_layer=1, not 2", "retrieve.py", *arguments, "--n_layer=2")
    refused("trained with optimizer=adamw, not muon", "retrieve.py", *arguments, "--optimizer=muon")
    refused("trained with pooling=mean, not last", "retrieve.py", *arguments, "--pooling=last")
    refused("trained with method=infonce", "retrieve.py", *arguments, "--method=match", "--n_context=5")
    with open("data/sums/train.jsonl", "a", encoding="utf-8") as f:
        f.write('{"query": "1 + 2", "passage": "makes 3"}\n')
    refused("sums has changed", "retrieve.py", *arguments)
    assert content("a/ckpt.pt") == before and not os.path.exists("a.1")
    assert pairs_run("train.py", "--out_dir=b")[0] == 0
    refused("b/ckpt.pt is no run of retrieve.py", "retrieve.py", *TINY, "--out_dir=b", "--init_from=resume")


@pytest.mark.parametrize("objective", ["autoencode", "bidirectional"])
def test_only_causal_models_are_trained(pairs_run, refused, objective):
    """The others are refused with a way out, before anything is written; a matcher may read their embeddings."""
    assert pairs_run("train.py", "--block_size=13", f"--objective={objective}", "--max_iters=2")[0] == 0
    shapeless = [a for a in TINY if not a.startswith(("--block", "--n_"))]
    refused(f"objective={objective}", "retrieve.py", *shapeless, "--init_from=out", "--out_dir=a")
    assert not os.listdir("a")
    match = "--method=match", "--n_context=5", "--init_from=out", "--out_dir=b"
    status, _, err = pairs_run("retrieve.py", *shapeless, *match)
    assert status == 0, err


def test_a_matcher_is_saved(pairs_run, refused):
    """Another run moves it aside, its embeddings are those of its encoder, and it can embed no text."""
    assert pairs_run("retrieve.py", *TINY, "--out_dir=encoder")[0] == 0
    shapeless = [a for a in TINY if not a.startswith(("--block", "--n_"))]
    match = [*shapeless, "--method=match", "--n_context=5", "--out_dir=a"]
    assert pairs_run("retrieve.py", *match, "--init_from=encoder")[0] == 0
    assert table("a")[0]["model"] == "encoder"
    saved = content("a/ckpt.pt")
    refused("holds a matcher of embeddings", "retrieve.py", *TINY, "--out_dir=a", "--query=7 + 7")
    assert pairs_run("retrieve.py", *match, "--init_from=encoder", "--seed=5")[0] == 0
    assert content("a.1/ckpt.pt") == saved
    assert pairs_run("retrieve.py", *TINY, "--out_dir=encoder", "--seed=5")[0] == 0
    refused("the model of its embeddings has changed", "retrieve.py", *match, "--init_from=resume", "--seed=5")


def test_a_checkpoint_knows_how_its_states_are_read(pairs_run):
    """Trained after the final norm, it is measured and searched after it; the index of the other one is not taken."""
    llama = [*TINY, "--model_type=llama", "--n_head=2", "--out_dir=a"]
    assert pairs_run("retrieve.py", *llama, "--normed_states=true")[0] == 0
    encoder, checkpoint = load_encoder("a")
    assert encoder.normed_states and load_encoder("a", normed_states=False)[0].normed_states
    encoded, checksum = encoder.encode("7 + 7"), encoder.checksum()
    encoder.normed_states = False
    assert not np.allclose(encoder.encode("7 + 7"), encoded, atol=1e-3) and encoder.checksum() != checksum
    del checkpoint["retrieval"]["normed_states"]  # as in a checkpoint of an earlier time
    torch.save(checkpoint, "a/ckpt.pt")
    assert not load_encoder("a")[0].normed_states and load_encoder("a", normed_states=True)[0].normed_states


@pytest.mark.parametrize("method, number", [("infonce", signal.SIGTERM), ("match", signal.SIGINT)])
def test_a_signal_ends_training_with_what_there_is(pairs_run, monkeypatch, method, number):
    """After its iteration: checkpoint, log, table, status 128 + its number, and a command that goes on exactly."""
    used = {"infonce": info_nce, "match": match_logits}[method]
    calls = []

    def used_until_interrupted(*arguments):
        if torch.is_grad_enabled():
            calls.append(arguments)
        if torch.is_grad_enabled() and len(calls) == 4:  # the first is the throwaway step
            signal.raise_signal(number)
        return used(*arguments)
    arguments = [*TINY, f"--method={method}", "--max_iters=10", "--n_context=5"]
    with monkeypatch.context() as patch:
        patch.setattr(f"lib.retrieval.{used.__name__}", used_until_interrupted)
        status, out, err = pairs_run("retrieve.py", *arguments, "--out_dir=a b")
    assert status == 128 + number, err
    row, = table("a b")
    assert row["train_pairs"] == "24" and 0 < float(row["loss"]) < 10
    assert [row["iter"] for row in table("a b", "log")] == ["0", "2", "3"]
    assert torch.load("a b/ckpt.pt", weights_only=True)["made_by"] == "retrieve.py"
    if method == "infonce":
        assert 0 <= float(row["mrr10"]) <= 1 and load_encoder("a b/ckpt.pt", "cpu")
    command = shlex.split(out.rpartition("go on with: ")[2])
    assert command[:2] == ["python", "retrieve.py"]
    status, _, err = pairs_run(*command[1:])
    assert status == 0, err
    assert pairs_run("retrieve.py", *arguments, "--out_dir=straight")[0] == 0
    weights = [tensors(torch.load(f"{folder}/ckpt.pt", weights_only=True)["model"]) for folder in ("a b", "straight")]
    assert all(map(torch.equal, *weights))
    stopped, straight = (without_times(table(folder, "log")) for folder in ("a b", "straight"))
    assert [row for row in stopped if row["iter"] != "3"] == straight


def test_a_run_is_moved_aside_only_for_training(pairs_run, refused):
    """Not by a query that is blank, nor by settings that are refused; then with its table and picture."""
    arguments = [*TINY, "--out_dir=a"]
    assert pairs_run("retrieve.py", *arguments)[0] == 0
    files = {name: content(f"a/{name}") for name in ("ckpt.pt", "log.csv", "retrieve.csv", "retrieve.png")}
    refused("--query is empty", "retrieve.py", *arguments, "--seed=5", "--query=")
    refused("--query is empty", "retrieve.py", *arguments, "--seed=5", "--query= \t")
    refused("no checkpoint", "retrieve.py", *arguments, "--hard_from=nowhere")
    refused("needs its mask", "retrieve.py", *arguments, "--causal=false")
    refused("needs its mask", "retrieve.py", *arguments, "--causal=false", "--pretrain_seconds=9")
    assert {name: content(f"a/{name}") for name in files} == files
    assert pairs_run("retrieve.py", *arguments, "--seed=5")[0] == 0
    assert {name: content(f"a.1/{name}") for name in files} == files


def test_fewer_held_out_passages_than_candidates(pairs_run):
    """A table without top1_n, no picture, status 0."""
    status, out, err = pairs_run("retrieve.py", *TINY, "--out_dir=a", "--sizes=999", "--eval_queries=1")
    assert status == 0, err
    assert not os.path.exists("a/retrieve.png") and "too few" in out
    assert table("a")[0]["top1_999"] == "" and table("a")[0]["recall_100"] == "1.0"


def test_a_pretrained_model_has_the_settings(pairs_run, monkeypatch):
    """Another width, budget or seed gives another model, not a traceback; equal settings give the same one."""
    class InThisProcess:  # a process that starts train.py would take seconds
        def __init__(self, command):
            self.status, _, self.err = pairs_run("train.py", *command[2:])

        def wait(self):
            assert self.status == 0, self.err
            return self.status
    monkeypatch.setattr("subprocess.Popen", InThisProcess)
    monkeypatch.setattr("lib.device.measure_peak_flops", lambda *_: 1e12)  # it takes a second

    def pretrained(*arguments):
        args = settings("--out_dir=a", "--pretrain_seconds=0.3", *arguments)
        encoder, _ = retrieve.build_encoder(args, "cpu", torch.float32)
        return encoder.model.lm_head.weight
    first = pretrained()
    assert torch.equal(first, pretrained())
    assert pretrained("--n_embd=20", "--n_head=5").shape[1] == 20
    others = [pretrained("--pretrain_seconds=0.02"), pretrained("--seed=2"), pretrained("--pretrain_rate=1e-3")]
    assert not any(torch.equal(first, other) for other in others)


def test_home_is_found_in_every_path(pairs_run, tmp_path, monkeypatch):
    """~ in corpus, init_from, hard_from and compare."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    os.makedirs("home")
    assert pairs_run("retrieve.py", *TINY, "--out_dir=home/a")[0] == 0
    with open("home/notes.txt", "w", encoding="utf-8") as f:
        f.write("one\n\ntwo")
    with open("home/notes.jsonl", "w", encoding="utf-8") as f:
        f.write('{"passage": "three"}\n')
    for corpus, text in ("notes.txt", "two"), ("notes.jsonl", "three"):
        status, out, err = pairs_run("retrieve.py", *TINY, "--out_dir=~/a", "--query=a", f"--corpus=~/{corpus}")
        assert status == 0 and text in out, err
    shapeless = [a for a in TINY if not a.startswith(("--block", "--n_"))]
    for paths in ["--compare=~/a"], ["--init_from=~/a", "--hard_from=~/a"]:
        status, _, err = pairs_run("retrieve.py", *shapeless, "--out_dir=b", *paths)
        assert status == 0, err


def test_a_search_where_nothing_can_be_written(pairs_run):
    """The hits are printed, and a line says that the index is not kept."""
    assert pairs_run("retrieve.py", *TINY, "--out_dir=a")[0] == 0
    search = [*TINY, "--out_dir=a", "--query=7 + 7", "--top=3"]
    hits = pairs_run("retrieve.py", *search)[1]
    index, = (name for name in os.listdir("a") if name.startswith("index"))
    os.remove(f"a/{index}")
    os.mkdir(f"a/{index}.tmp")  # the root user could write into a folder that is closed to all
    status, out, err = pairs_run("retrieve.py", *search)
    assert status == 0 and out.endswith(hits) and f"cannot write a/{index}" in out, err

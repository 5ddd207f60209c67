"""Pairs and retrieval: no leaks between the sides, losses and metrics by hand, pads that nobody sees."""
import csv
import json
import math
import os

import numpy as np
import pytest
import torch

import pairs
from conftest import flip
from model import LanguageModel, ModelConfig
from pairs import (choose_held_out, docstring_pairs, further_pairs, load_pairs, prepare_pairs,
                   split_python_pairs, split_rows, unique)
from retrieval import (Encoder, best_passages, cached_backward, drop_tokens, embed, evaluate_scores,
                       info_nce, match_batch, match_logits, pad)

B, T, C, V = 5, 7, 12, 31
IDS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9], [2, 7]]
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
# pairs

SOURCE = '''
class Reader:
    """Reads the lines of a file, one after the other.

    Slowly.
    """

    def next_line(self, skip_blank=True):
        """Return the next line,
        or None at the end."""
        line = self.file.readline()
        return self.next_line() if skip_blank and not line.strip() else line

    def short(self):
        """A docstring that is long enough."""
        return 1

    async def undocumented(self): return await self.file.read(), "no docstring, though long enough to be one"

    def terse(self, a, b, c, d):
        """Too short."""
        return [a + b + c + d for _ in range(100)], [a * b * c * d for _ in range(100)]

def one_line(): "A docstring that stands on the line of its function, which leaves no body at all"
'''


def test_docstrings_become_queries_and_their_code_passages():
    """The first paragraph on one line; the code without it, with all else that is in it; no short ones."""
    found = dict(docstring_pairs(SOURCE))
    queries = ["Reads the lines of a file, one after the other.", "Return the next line, or None at the end."]
    assert list(found) == queries
    assert found[queries[1]] == (
        "def next_line(self, skip_blank=True):\n    line = self.file.readline()\n"
        "    return self.next_line() if skip_blank and not line.strip() else line")
    first = found[queries[0]]
    assert first.startswith("class Reader:\n") and "Slowly" not in first and '"""Too short."""' in first


def test_further_pairs_of_source():
    """Later paragraphs, names of what has no docstring (the name is not in the code), and comments."""
    source = '''
def fetch(url):
    """Short.

    Raises an error when
    the server says no.
    """
    return urlopen(url, timeout=10, headers={"User-Agent": "a browser of some kind", "Accept": "*/*"}).read()

def parseHTTPResponse_lines2(text):
    # the header ends at the first empty line,
    # whatever it says
    head, _, body = text.partition("an empty line that is long enough")
    return parseHTTPResponse_lines2(body) if head else dict(line.split(": ") for line in head)
'''
    found = list(further_pairs(source))
    assert [query for query, _ in found] == [
        "Raises an error when the server says no.", "parse http response lines 2",
        "the header ends at the first empty line, whatever it says"]
    assert found[0][1].startswith("def fetch(url):\n    return urlopen(url")
    assert found[1][1].startswith("def _(text):\n") and "return _(body)" in found[1][1]
    assert found[2][1].startswith("head, _, body") and found[2][1].endswith("for line in head)")
    assert list(further_pairs("def f(:")) == []


def test_further_pairs_are_for_training_only(monkeypatch):
    """The same pairs are held out with them and without."""
    source = SOURCE + "# a comment that is long enough\nx = [" + 40 * "1, " + "]\n"
    monkeypatch.setattr("pairs.split_python", lambda _: iter([("train", source), ("val", source)]))
    plain, more = (list(split_python_pairs(0.5, more)) for more in (False, True))
    assert len(more) > len(plain) == 4
    assert [pair for pair in more if pair[0] == "val"] == [pair for pair in plain if pair[0] == "val"]


@pytest.mark.parametrize("source", ["def f(:", "x = '\\0'\0", "(" * 5000, "é = 1\x0c\nclass \ud800: pass"])
def test_source_that_does_not_parse_has_no_pairs(source):
    assert list(docstring_pairs(source)) == []


def test_no_passage_is_on_both_sides_and_no_pair_twice():
    """A passage stays where it came first; blank texts are out."""
    given = [("train", "a", "x"), ("val", "b", "x"), ("train", "c", "x"), ("val", "d", "y"),
             ("train", "e", "y"), ("train", "a", "x"), ("val", " ", "z"), ("val", "f", "\n")]
    assert list(unique(given)) == [("train", "a", "x"), ("train", "c", "x"), ("val", "d", "y")]


def test_sides_go_by_the_passage():
    """Whatever the query; about val_fraction of the passages are held out."""
    rows = [("", {"q": f"query {i}", "p": f"passage {i % 400}"}) for i in range(1200)]
    sides = {}
    for side, _, passage in split_rows(rows, "q", "p", 0.25):
        assert sides.setdefault(passage, side) == side
    assert 70 < list(sides.values()).count("val") < 130


def test_passages_of_ms_marco_and_lists():
    """Those that were selected; all of a list; a single one."""
    marco = {"passage_text": ["a", "b", "c"], "is_selected": [0, 1, 1]}
    for value, texts in (marco, ["b", "c"]), (["d", "e"], ["d", "e"]), ("f", ["f"]), ([], []):
        found = split_rows([("", {"query": "q", "passage": value})], "query", "passage", 0.5)
        assert [(q, p) for _, q, p in found] == [("q", text) for text in texts]


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """A set of pairs data/sums, made from a .jsonl file."""
    monkeypatch.chdir(tmp_path)
    with open("sums.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"question": f"{i} + {j}", "reply": f"makes {i + j}é"}) + "\n"
                     for i in range(20) for j in range(20))
    return prepare_pairs("sums.jsonl", "sums", "question", "reply", 0.3, "made")


def test_a_set_of_pairs_is_written_and_read(sums):
    """Every pair on one side, texts as they were, several queries a passage."""
    sides = [load_pairs("made/sums", side) for side in ("train", "val")]
    assert [len(queries) for queries, _, _ in sides] == list(sums["pairs"].values())
    assert sum(sums["pairs"].values()) == 400
    assert not set(sides[0][1]) & set(sides[1][1]) and len(sides[0][1]) + len(sides[1][1]) == 39
    for queries, passages, gold in sides:
        assert all(passages[g] == f"makes {eval(query)}é" for query, g in zip(queries, gold))


def test_held_out_queries_have_their_passages(sums):
    """The same ones each time, and other passages beside them."""
    held_out = choose_held_out(*load_pairs("made/sums", "val"), 7, 9)
    queries, passages, gold = held_out
    assert len(queries) == 7 and len(set(passages)) == len(passages) <= 9
    assert all(passages[g] == f"makes {eval(query)}é" for query, g in zip(queries, gold))
    assert held_out == choose_held_out(*load_pairs("made/sums", "val"), 7, 9)


def test_bad_pairs_are_refused(refused, tmp_path):
    """One line, status 2, nothing written."""
    for name, text in [("empty", ""), ("keys", '{"query": "a", "answer": "b"}\n'), ("broken", '{"query": \n'),
                       ("blank", '{"query": "a", "passage": " "}\n'),
                       ("number", '{"query": 1, "passage": "a"}')]:
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for message, argument in [
        ("0 pairs to train on", "empty.jsonl"), ("no 'passage' among the keys", "keys.jsonl"),
        ("line 1 is not JSON", "broken.jsonl"), ("0 pairs to train on", "blank.jsonl"),
        ("'query' is not text", "number.jsonl"), ("no file nowhere.jsonl", "nowhere.jsonl"),
    ]:
        refused(message, "prepare.py", f"--pairs={argument}", "--data_dir=new")
    refused("lies between 0 and 1", "prepare.py", "--pairs=empty.jsonl", "--val_fraction=1.5")
    assert not (tmp_path / "new").exists() or os.listdir(tmp_path / "new") == []


def test_hub_pairs_from_their_own_columns(tmp_path, monkeypatch):
    """Local parquet files with the columns that the sets of the hub have."""
    import pyarrow
    import pyarrow.parquet
    monkeypatch.chdir(tmp_path)
    for name, columns in {
        "msmarco": {"query": [f"q{i}" for i in range(40)], "passages": [
            {"is_selected": [0, 1], "passage_text": [f"wrong {i}", f"right {i}"]} for i in range(40)]},
        "squad": {"question": [f"q{i}" for i in range(40)], "context": [f"right {i}" for i in range(40)]},
    }.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), f"{name}.parquet")
        load = {"path": "parquet", "data_files": {"train": f"{name}.parquet"}}
        monkeypatch.setitem(pairs.HUB, name, (load, *pairs.HUB[name][1:]))
        meta = prepare_pairs(name, "python", "query", "passage", 0.3, "made")
        assert meta["name"] == f"{name}_pairs" and sum(meta["pairs"].values()) == 40
        queries, passages, gold = load_pairs(f"made/{name}_pairs", "train")
        assert all(passages[g] == f"right {query[1:]}" for query, g in zip(queries, gold))


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
    loss = info_nce(q, p, torch.tensor(ids), temperature, *([extra] if n_extra else []))
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
            return info_nce(q, p, torch.arange(B), 0.1)
        if cached:
            value = cached_backward([functions for functions, _ in parts], loss)
        else:
            value = loss(*(torch.cat([encode() for encode in functions]) for functions, _ in parts))
            value.backward()
        gradients.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 9
    for whole, parts in zip(*gradients):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_the_matcher_gets_one_right_passage():
    """It stands at `target`, and nowhere else; the query comes first."""
    queries, passages = torch.arange(11.0)[:, None] + 100, torch.arange(11.0)[:, None]
    rows = torch.arange(11).repeat(40)
    x, target = match_batch(queries, passages, rows, 6, torch.Generator().manual_seed(0))
    assert x.shape == (440, 6, 1) and torch.equal(x[:, 0, 0], rows + 100.0)
    assert torch.equal(x[:, 1:, 0] == rows[:, None], torch.nn.functional.one_hot(target, 5).bool())
    assert set(target.tolist()) == set(range(5))
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
    values = evaluate_scores(lambda a, b: scores[a:b], 4, torch.tensor([0, 1, 2, 0]), 3, [1, 3, 4], block=3)
    assert values["mrr10"].tolist() == [1, 0.5, pytest.approx(1 / 3), 0.5]
    assert values["recall_1"].tolist() == values["top1_3"].tolist() == [1, 0, 0, 0]
    assert values["recall_10"].tolist() == values["top1_1"].tolist() == [1, 1, 1, 1]
    assert "top1_4" not in values


def test_candidates_are_a_fair_draw():
    """By random scores 1 of n comes first; the candidates of a small n are among those of a large one."""
    P, N = 64, 4000
    gold = torch.arange(N) % P
    scores = torch.rand(N, P, generator=torch.Generator().manual_seed(1))
    values = evaluate_scores(lambda a, b: scores[a:b], N, gold, P, [2, 8, 64])
    for n in 2, 8, 64:
        assert values[f"top1_{n}"].mean().item() == pytest.approx(1 / n, abs=4 * (1 / n / N) ** 0.5)
    assert (values["top1_2"] >= values["top1_8"]).all() and (values["top1_8"] >= values["top1_64"]).all()
    assert torch.equal(values["top1_64"], values["recall_1"])


def test_a_rank_beyond_ten_counts_nothing():
    scores = -torch.arange(40.0)[None]
    for gold, rank in (9, 10), (10, 11):
        values = evaluate_scores(lambda a, b: scores, 1, torch.tensor([gold]), 40, [])
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


def table(folder):
    with open(f"{folder}/retrieve.csv", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


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
    run("retrieve.py", *TINY, "--out_dir=both", "--compare=a,a")
    assert [r["mrr10"] for r in table("both")] == [row["mrr10"]] * 2
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
    assert sorted(line[7:] for line in out.split("\n") if line) == ["one", "three", "two"]


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


def test_a_matcher_is_trained(pairs_run):
    """On the frozen embeddings of a fresh model."""
    match = "--method=match", "--n_context=5", "--matcher_layers=1", "--pooling=second_to_last"
    status, out, err = pairs_run("retrieve.py", *TINY, *match, "--out_dir=match")
    assert status == 0, err
    assert "among 4 passages" in out and table("match")[0]["method"] == "match 5"


def test_bad_retrieval_input_is_refused(pairs_run, refused):
    """Each is one line that says what is wrong, status 2."""
    for message, argument in [
        ("method must be", "--method=dpr"), ("pooling must be", "--pooling=max"),
        ("padding must be", "--padding=up"),
        ("budget", "--max_iters=0"), ("n_context goes from 3", "--method=match --n_context=500"),
        ("temperature", "--temperature=0"), ("is for a model from scratch", "--init_from=out"),
        ("no checkpoint", "--hard_from=nowhere"),
        ("cannot read", "--pairs=nowhere"), ("batch_size must be", "--batch_size=0"),
        ("no checkpoint", "--query=a --out_dir=nowhere"), ("no dataset in", "--dataset=nowhere"),
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
        program = f.read().partition("```python\nfrom retrieval import load_encoder\n")[2].partition("```")[0]
    printed = []
    exec("from retrieval import load_encoder\n" + program, {"print": printed.append})
    assert program.count("\n") == 4 and printed[0] in notes

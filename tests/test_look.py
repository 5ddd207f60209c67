"""look.py draws the matrices of every architecture, and splits the loss by position and by what can be looked up."""
import os

import pytest
import torch

import look as script
from lib.data import build_tokenizer, load_meta, load_tokens, validation_windows
from lib.plots import plot_mixing, plot_positions, plot_recall
from lib.runs import read_rows
from look import (checkpoint_paths, matrix_names, measure, mixing_rows, position_rows, split_by_recall, start_of_text,
                  token_names)
from model import ARCHITECTURES, LanguageModel, MaskedConv, ModelConfig
from prepare import prepare
from train import get_batch

LAYERS, WINDOW, HEADS = 2, 11, 5
IDS = [1, 2, 3, 4, 5, 6, 7]


def build(**options):
    torch.manual_seed(1)
    shape = dict(block_size=WINDOW, n_layer=LAYERS, n_embd=20, n_head=HEADS, vocab_size=29)
    return LanguageModel(ModelConfig(**shape | options)).eval()


def is_png(path):
    """Whether a file is a PNG with more in it than a white page."""
    with open(path, "rb") as f:
        content = f.read()
    return content.startswith(b"\x89PNG") and len(content) > 5_000


# ------------------------------------------------------------------------------------------------------------
# matrices

HEAD_NAMES = [f"attention head {n}" for n in range(1, HEADS + 1)]


@pytest.mark.parametrize("options, names", [
    (dict(model_type="mixer"), ["W"]),
    (dict(model_type="mixer", toeplitz=True), ["W"]),
    (dict(model_type="mixer", kernel_size=3), ["W 1", "W 2", "W 3"]),
    (dict(model_type="mixer", mixer_heads=2, expanded=True), ["W 1", "W 2", "W 3", "W 4"]),
    (dict(model_type="gpt"), HEAD_NAMES),
    (dict(model_type="llama", n_head=1), ["attention head"]),
    (dict(model_type="hybrid"), [*HEAD_NAMES, "W"]),
    (dict(model_type="hybrid_parallel"), [*HEAD_NAMES, "W"]),
])
def test_every_matrix_has_a_name(options, names):
    """There are as many names as matrices in a layer; heads have the size of the prompt, W that of the window."""
    model = build(**options)
    assert matrix_names(model.blocks[0]) == names
    assert len(model.mixing(torch.tensor([IDS]))[1]) == len(names)
    rows = mixing_rows(model, IDS, [*"abcdefg"])
    assert [name for name, _, _ in rows] == names
    for name, matrices, tokens in rows:
        size = len(IDS) if "head" in name else WINDOW
        assert matrices.shape == (LAYERS, size, size)
        assert tokens == ([*"abcdefg"] if "head" in name else None)
        assert torch.equal(matrices.isnan(), torch.ones(LAYERS, size, size).triu(1).bool())


def test_the_order_of_a_hybrid_is_that_of_its_steps(monkeypatch):
    """With the mixer before attention, W comes first in the names and in the matrices."""
    steps = ARCHITECTURES["hybrid"]["steps"][::-1]
    monkeypatch.setitem(ARCHITECTURES, "hybrid", ARCHITECTURES["hybrid"] | {"steps": steps})
    model = build(model_type="hybrid")
    (name, matrices, _), *heads = mixing_rows(model, IDS, None)
    conv = [module for module in model.modules() if isinstance(module, MaskedConv)]
    assert name == "W" and [name for name, _, _ in heads] == HEAD_NAMES
    for matrix, module in zip(matrices, conv):
        torch.testing.assert_close(matrix.nan_to_num(), module.weight[0].detach())


def test_a_head_is_shown_for_the_prompt():
    """The rows of its map add up to 1, and another prompt changes it; W is the weight of the model."""
    for ids in IDS, IDS[::-1]:
        rows = mixing_rows(build(model_type="hybrid"), ids, None)
        heads = torch.stack([matrices for _, matrices, _ in rows[:-1]]).nan_to_num()      # (heads, layers, T, T)
        torch.testing.assert_close(heads.sum(dim=-1), torch.ones(HEADS, LAYERS, len(ids)))
        if ids is IDS:
            before, W = heads, rows[-1][1]
    assert not torch.allclose(before, heads)
    assert torch.equal(W.nan_to_num(), rows[-1][1].nan_to_num())


def test_names_of_tokens_show_what_they_are(tiny_data):
    """A space is a dot and a line end is \\n; long tokens are cut, and a byte of a character is a mark."""
    tokenizer = build_tokenizer(load_meta(tiny_data / "tiny"))
    assert token_names(tokenizer, b"a \n$\xc3") == ["a", "\u00b7", "\\n", "$", "\ufffd"]

    class Words:
        def decode_single_token_bytes(self, token):
            return [b" unbelievable", b" believable"[:10]][token]
    assert token_names(Words(), [0, 1]) == ["\u00b7unbeliev\u2026", "\u00b7believabl"]


def test_the_prompt_is_the_start_of_a_document():
    """A short document is whole, a long one has 24 tokens; an empty one is the end of text alone."""
    data = torch.arange(100, 200).numpy()
    assert start_of_text(data, 139) == list(range(100, 139))
    assert start_of_text(data, 99) == list(range(100, 124))
    assert start_of_text(data, 100) == [100]


def test_a_model_without_matrices_is_said(monkeypatch, capsys):
    """A module that mixes tokens need not have a matrix; one with too many shows the first of them."""
    model = build(model_type="mixer", kernel_size=9)
    drawn, path = [], os.path.join("run", "mixing.png")
    monkeypatch.setattr(script, "plot_mixing", lambda rows, *_: drawn.append([name for name, _, _ in rows]))
    monkeypatch.setattr(script, "token_names", lambda *_: None)
    script.draw_mixing(model, None, IDS, "run")
    assert drawn == [[f"W {n}" for n in range(1, 9)]]
    assert capsys.readouterr().out == f"{path} shows the first 8 of 9 matrices per layer\n"
    monkeypatch.delattr(MaskedConv, "mixing")
    script.draw_mixing(model, None, IDS, "run")
    assert len(drawn) == 1 and capsys.readouterr().out.startswith(f"no {path}: ")


# ------------------------------------------------------------------------------------------------------------
# losses

def test_losses_are_split_by_hand():
    """Five tokens count; two are recallable, and one of these is right. A token behind the end counts nowhere."""
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 6.0, 0.0]])
    right = torch.tensor([[True, True, False], [True, False, False]])
    recalled = torch.tensor([[False, False, True], [True, False, False]])
    targets = torch.tensor([[3, 4, 5], [6, 7, -1]])
    assert split_by_recall(losses, right, recalled, targets) == pytest.approx(
        dict(recallable=2 / 5, recall_loss=2.25, other_loss=3.0, recall_accuracy=0.5))
    none = torch.zeros_like(recalled)
    assert split_by_recall(losses, right, none, targets) == pytest.approx(
        dict(recallable=0.0, recall_loss=None, other_loss=13.5 / 5, recall_accuracy=None))
    assert position_rows("a", losses, targets) == [
        dict(name="a", position=t, loss=loss) for t, loss in ((1, 0.75), (2, 4.0), (3, 4.0))]
    shorter = torch.tensor([[3, 4, -1], [6, 7, -1]])
    assert len(position_rows("a", losses * (shorter >= 0), shorter)) == 2


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_measured_losses_have_the_mean_of_the_model(model_type, tiny_data):
    """Over windows in several batches, and a smaller last one."""
    meta = load_meta(tiny_data / "tiny")
    data = load_tokens(tiny_data / "tiny", "val", meta)
    model = build(model_type=model_type, vocab_size=meta["vocab_size"])
    losses, right, recalled, targets = measure(model, data, n_windows=7, batch_size=3)
    assert losses.shape == right.shape == recalled.shape == targets.shape == (7, WINDOW)
    starts = validation_windows(len(data), WINDOW, 7)
    idx, same_targets = get_batch(data, starts, WINDOW, torch.device("cpu"))
    assert torch.equal(targets, same_targets)
    with torch.no_grad():
        logits, loss = model(idx, targets)
    assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.equal(right, logits.argmax(dim=-1) == targets)


def test_windows_of_documents_are_measured_from_their_beginning(tmp_path):
    """In documents aXbY|bYaX, the recallable tokens are the values behind the bar, and pads do not count."""
    prepare(dataset="recall", input="", tokenizer="bpe", vocab_size=4096, text_key="text", val_fraction=0.1, max_mb=0,
            data_dir=str(tmp_path), n_documents=150, n_pairs=2, n_keys=7, n_values=5)
    meta = load_meta(tmp_path / "recall")
    data = load_tokens(tmp_path / "recall", "val", meta)
    model = build(vocab_size=meta["vocab_size"])
    losses, _, recalled, targets = measure(model, data, 7, 3, end_of_text=meta["eot_id"])
    assert recalled.int().tolist() == [[0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0]] * 7
    assert ((targets >= 0).sum(dim=0) > 0).tolist() == [True] * 9 + [False] * 2
    assert [row["position"] for row in position_rows("a", losses, targets)] == list(range(1, 10))


def test_checkpoints_are_in_the_order_of_training(tmp_path):
    """iter_10.pt comes after iter_9.pt, and the last one at the end, also in a folder whose name is a pattern."""
    folder = tmp_path / "run_12[3]"
    folder.mkdir()
    for name in "iter_10.pt", "iter_9.pt", "iter_100.pt", "ckpt.pt", "best.pt", "log.csv":
        (folder / name).touch()
    names = [os.path.basename(path) for path in checkpoint_paths(str(folder))]
    assert names == ["iter_9.pt", "iter_10.pt", "iter_100.pt", "ckpt.pt"]


# ------------------------------------------------------------------------------------------------------------
# figures and the script

def test_figures_are_drawn_of_any_rows(tmp_path):
    """One run or several, a checkpoint or several, tokens with signs that mean something to a plotter, long windows."""
    matrices = torch.rand(3, 4, 4) - 0.5
    rows = [("head", matrices, ["$", "$$", "\\n", "_^{"]), ("W", torch.zeros(3, 70, 70), None)]
    plot_mixing(rows, tmp_path / "a.png")
    plot_mixing([("W", torch.zeros(1, 1, 1), None)], tmp_path / "b.png")
    row = dict(name="out/mixer", iter=0, tokens=10_000, recallable=0.2, recall_loss=2.0, other_loss=4.0,
               recall_accuracy=0.1)
    nothing = row | dict(name="out/llama", recallable=0.0, recall_loss=None, recall_accuracy=None)
    plot_recall([row, nothing], tmp_path / "c.png")
    plot_recall([row, row | dict(tokens=20_000), nothing], tmp_path / "d.png")
    rows = [dict(name=name, position=t, loss=5 / t) for name in ("out/mixer", "out/gpt") for t in range(1, 150)]
    plot_positions(rows, tmp_path / "e.png")
    assert all(is_png(tmp_path / f"{name}.png") for name in "abcde")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_is_looked_at(model_type, run):
    """A run gets three figures and two tables, whose numbers agree with the log of the run."""
    run("train.py", f"--model_type={model_type}")
    status, out, err = run("look.py", "--out_dir=out", "--prompt=3 times", "--n_windows=32")
    assert (status, err) == (0, "")
    assert all(is_png(f"out/{name}.png") for name in ("mixing", "positions", "recall"))
    log, (row,) = read_rows("out/log.csv"), read_rows("out/recall.csv")
    assert f"out  20  {20 * 3 * WINDOW}  0." in out
    assert (row["name"], row["iter"], row["tokens"]) == ("out", 20, 20 * 3 * WINDOW)
    for column in "recall_loss", "other_loss", "recall_accuracy":
        assert row[column] == pytest.approx(log[-1][column], rel=1e-4)
    positions = read_rows("out/positions.csv")
    assert [row["position"] for row in positions] == list(range(1, WINDOW + 1))
    mean = sum(row["loss"] for row in positions) / WINDOW
    assert mean == pytest.approx(log[-1]["val_loss"], rel=1e-4)


def test_kept_checkpoints_are_shown_over_training(run, monkeypatch):
    """Each checkpoint of each run has a row, the last one only once; mixing.png stands in the folder of its run."""
    run("train.py", "--out_dir=runs/a", "--keep_every=8")
    run("train.py", "--out_dir=runs/b", "--model_type=gpt", "--keep_every=10")
    status, _, err = run("look.py", "--compare=runs/*", "--out_dir=both", "--n_windows=5")
    assert (status, err) == (0, "")
    rows = read_rows("both/recall.csv")
    assert [(row["name"], row["iter"]) for row in rows] == [
        *((os.path.join("runs", "a"), i) for i in (0, 8, 16, 20)),
        *((os.path.join("runs", "b"), i) for i in (0, 10, 20))]
    assert rows[0]["other_loss"] > rows[3]["other_loss"]
    assert sorted(os.listdir("both")) == ["positions.csv", "positions.png", "recall.csv", "recall.png"]
    assert is_png("runs/a/mixing.png") and is_png("runs/b/mixing.png")


def test_runs_on_documents_are_measured_on_documents(run, tmp_path):
    """A run with windows of documents is looked at in them, and shown a whole document as its prompt."""
    prepare(dataset="recall", input="", tokenizer="bpe", vocab_size=4096, text_key="text", val_fraction=0.1, max_mb=0,
            data_dir=str(tmp_path / "made"), n_documents=150, n_pairs=2, n_keys=7, n_values=5)
    run("train.py", "--dataset=recall", "--data_dir=made", "--windows=document")
    status, _, err = run("look.py", "--out_dir=out", "--data_dir=made")
    assert (status, err) == (0, "")
    row, = read_rows("out/recall.csv")
    assert row["recallable"] == pytest.approx(2 / 9)
    assert len(read_rows("out/positions.csv")) == 9


def test_bad_look_input_is_refused(run, refused):
    """Bad input ends with status 2 and one line that says what is wrong."""
    run("train.py", "--max_iters=1")
    run("train.py", "--max_iters=1", "--objective=autoencode", "--out_dir=auto")
    for message, argument in [
        ("no checkpoint", "--out_dir=nowhere"), ("no checkpoint", "--compare=out,nowhere"),
        ("out/ckpt.pt is a checkpoint", "--compare=out/ckpt.pt"),
        ("n_windows must be in [1, inf)", "--n_windows=0"), ("batch_size must be in [1, inf)", "--batch_size=0"),
        ("cannot read nowhere.txt", "--prompt=FILE:nowhere.txt"),
        ("was trained with objective=autoencode", "--compare=auto"),
        ("no dataset in", "--data_dir=nowhere"),
    ]:
        refused(message, "look.py", "--out_dir=out", argument)
    assert not os.path.exists("nowhere")


def test_a_dataset_that_has_changed_is_refused(run, refused):
    """Its validation text may have been the training text of the run."""
    run("train.py", "--max_iters=1")
    checkpoint = torch.load("out/ckpt.pt", weights_only=True)
    checkpoint["meta"]["crc32"]["val.bin"] += 1
    torch.save(checkpoint, "out/ckpt.pt")
    refused("data/tiny has changed since out/ckpt.pt was trained", "look.py", "--out_dir=out")

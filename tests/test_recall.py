"""What a window tells by itself: recallable targets, windows of one document, and what the log says of them."""
import os
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import HERE, TINY
from lib.data import load_meta, load_tokens, validation_windows
from lib.objectives import build_model, loss_by_position, recallable, token_losses
from lib.runs import load_model, read_log
from lib.sources import copy_documents, recall_documents
from model import ModelConfig
from prepare import prepare
from results.guesses import by_count, by_order, count_orders
from train import get_batch

CPU, END = torch.device("cpu"), 256
MEASURES = "val_loss", "recall_loss", "other_loss", "recall_accuracy"
DOCUMENTS = ["--dataset=recall", "--data_dir=made", "--windows=document"]


@pytest.fixture
def recall_data(tmp_path):
    """The dataset made/recall: 150 documents of 3 pairs, which are 14 tokens."""
    prepare(dataset="recall", input="", tokenizer="bpe", vocab_size=4096, text_key="text", val_fraction=0.1, max_mb=0,
            data_dir=str(tmp_path / "made"), n_documents=150, n_pairs=3, n_keys=7, n_values=5)
    return tmp_path / "made" / "recall"


def windows_of(text, length):
    """One window of a text that ends its document, (1, length) each: idx and targets."""
    data = np.array([*text.encode(), END], dtype=np.uint16)
    return get_batch(data, [0], length, CPU, END)


def by_loops(idx, targets):
    """Which targets are recallable, by a search through all earlier pairs of each window."""
    found = torch.zeros_like(idx, dtype=torch.bool)
    for b, (tokens, nexts) in enumerate(zip(idx.tolist(), targets.tolist())):
        pairs = list(zip(tokens, nexts))
        for t, pair in enumerate(pairs):
            found[b, t] = pair in pairs[:t] and pair[1] >= 0
    return found


# ------------------------------------------------------------------------------------------------------------
# recallable targets

@pytest.mark.parametrize("text, marks", [
    ("aXbY|bYaX", "000001010"),
    ("aaaa", "0110"),
    ("abcabcabx", "000111100"),
    ("abacabac", "00001110"),
    ("x", "0"),
])
def test_a_target_is_recallable_if_its_pair_stood_earlier(text, marks):
    """By hand: the mark of a token is 1 if the pair of it and the next token stood to its left."""
    idx, targets = windows_of(text, len(text))
    assert recallable(idx, targets).tolist() == [[mark == "1" for mark in marks]]


def test_recallable_targets_are_those_that_a_search_finds():
    """Random windows over few and over the largest ids, some targets of -1; no window knows another one's pairs."""
    generator = torch.Generator().manual_seed(0)
    for low, high in (0, 3), (0, 7), (2 ** 20 - 3, 2 ** 20):
        ids = torch.randint(low, high, (5, 32), generator=generator)
        idx, targets = ids[:, :-1], ids[:, 1:]
        targets = targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.2, -1)
        found = recallable(idx, targets)
        assert torch.equal(found, by_loops(idx, targets)) and found.any() and not found.all()
        for b in range(5):
            assert torch.equal(found[b:b + 1], recallable(idx[b:b + 1], targets[b:b + 1]))


@pytest.mark.parametrize("n_pairs, n_keys, n_values", [(8, 26, 26), (1, 1, 1), (2, 2, 2), (3, 5, 4), (36, 36, 57)])
def test_the_values_behind_the_bar_are_what_can_be_looked_up(n_pairs, n_keys, n_values):
    """The keys of a recall document are distinct, both halves have the same pairs, nothing else comes again."""
    for text in recall_documents(50, n_pairs, n_keys, n_values):
        first, second = text.split("|")
        pairs = [first[i:i + 2] for i in range(0, len(first), 2)]
        assert sorted(pairs) == sorted(second[i:i + 2] for i in range(0, len(second), 2))
        keys, values = zip(*pairs)
        assert len({*keys}) == n_pairs and not {*keys} & {*values}
        idx, targets = windows_of(text, 4 * n_pairs + 2)
        places = recallable(idx, targets)[0].nonzero()[:, 0].tolist()
        assert places == list(range(2 * n_pairs + 1, 4 * n_pairs + 1, 2))


def test_a_copy_is_the_text_again():
    """Random letters of the alphabet, the bar, and the same letters; behind the first, all can be looked up."""
    texts = list(copy_documents(50, 5, 13))
    assert len({*texts}) == 50 and {*"".join(texts)} == {*"abcde|"}
    for text in texts:
        first, second = text.split("|")
        assert first == second and len(first) == 13
        idx, targets = windows_of(text, 28)
        assert recallable(idx, targets)[0, 14:26].all()


def test_alphabets_that_are_too_small_are_refused():
    """The keys are distinct, and with fewer values than pairs few orders would do."""
    for sizes in (3, 2, 5), (3, 5, 2):
        with pytest.raises(ValueError, match="3 pairs need as many"):
            next(recall_documents(10, *sizes))


# ------------------------------------------------------------------------------------------------------------
# the loss of each target

@pytest.mark.parametrize("objective", ["causal", "autoencode", "bidirectional"])
@pytest.mark.parametrize("model_type", ["mixer", "gpt", "llama", "hybrid"])
def test_losses_of_tokens_are_those_of_the_logits(model_type, objective, monkeypatch):
    """In several parts they equal the losses of all logits, are 0 and not right at -1, and their mean is the loss."""
    monkeypatch.setattr("lib.fast.LOGITS", 150)
    torch.manual_seed(1)
    model = build_model(objective, ModelConfig(model_type=model_type, block_size=11, n_layer=2, n_embd=12, n_head=3,
                                               vocab_size=31)).eval()
    ids = torch.randint(31, (5, 8))
    idx, targets = ids[:, :-1], ids[:, 1:].masked_fill(torch.rand(5, 7) < 0.3, -1)
    with torch.no_grad():
        logits, loss = model(idx, targets)
        answers = idx.masked_fill(targets < 0, -1) if objective == "autoencode" else targets
        answers = torch.where(torch.rand(5, 7) < 0.5, logits.argmax(-1), answers).masked_fill(targets < 0, -1)
        losses, right = token_losses(model, idx, answers)
        expected = F.cross_entropy(logits.mT, answers, ignore_index=-1, reduction="none")
        torch.testing.assert_close(losses, expected)
        assert torch.equal(right, logits.argmax(-1) == answers) and right.any() and not right.all()
        assert not losses[targets < 0].any() and not right[targets < 0].any()
        answers = idx.masked_fill(targets < 0, -1) if objective == "autoencode" else targets
        losses, _ = token_losses(model, idx, answers)
        torch.testing.assert_close(losses.sum() / (targets >= 0).sum(), loss)


def test_positions_have_the_mean_of_their_own_targets():
    """Targets of -1 do not count."""
    losses = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [5.0, 4.0, 7.0]])
    targets = torch.tensor([[4, 4, -1], [4, -1, -1], [4, 4, 4]])
    assert loss_by_position(losses, targets).tolist() == [3.0, 3.0, 7.0]


# ------------------------------------------------------------------------------------------------------------
# windows of one document

def test_a_window_ends_with_its_document():
    """The end of text is a target that counts; behind it there is no token of a neighbour and no target."""
    E = END
    data = np.array([5, 6, 7, E, 8, E, 9, 10, 11, 12, 13, 14, E], dtype=np.uint16)
    idx, targets = get_batch(data, [0, 4, 6], 5, CPU, E)
    assert idx.tolist() == [[5, 6, 7, E, E], [8, E, E, E, E], [9, 10, 11, 12, 13]]
    assert targets.tolist() == [[6, 7, E, -1, -1], [E, -1, -1, -1, -1], [10, 11, 12, 13, 14]]
    idx, targets = get_batch(data, [6], 7, CPU, E)
    assert idx.tolist() == [[9, 10, 11, 12, 13, 14, E]] and targets.tolist() == [[10, 11, 12, 13, 14, E, -1]]


@pytest.mark.parametrize("block_size", [17, 11])
@pytest.mark.parametrize("objective", ["causal", "bidirectional", "autoencode"])
def test_a_run_on_documents_resumes_exactly(block_size, objective, run, recall_data):
    """Across the end of an epoch, with documents that are padded or cut: losses and weights to the last bit."""
    arguments = [*DOCUMENTS, f"--block_size={block_size}", "--batch_size=11", "--dropout=0.2", "--lr_decay_iters=20",
                 f"--objective={objective}", "--model_type=hybrid"]
    assert run("train.py", *arguments, "--out_dir=straight")[0] == 0
    assert run("train.py", *arguments, "--out_dir=halves", "--max_iters=7")[0] == 0
    status, _, err = run("train.py", *arguments, "--out_dir=halves", "--init_from=resume")
    assert status == 0, err
    straight, halves = (torch.load(f"{name}/ckpt.pt", weights_only=True) for name in ("straight", "halves"))
    assert straight["state"]["position"] == halves["state"]["position"] and straight["state"]["position"][0] == 1
    for key in straight["model"]:
        assert torch.equal(straight["model"][key], halves["model"][key])
    rows = read_log("straight")[-1], read_log("halves")[-1]
    for key in (*MEASURES, "train_loss"):
        assert rows[0][key] == rows[1][key]


def test_two_processes_read_the_documents_of_one(run, recall_data):
    """torchrun, two gloo processes: the losses and the recall of one process, to 1e-5."""
    arguments = [*DOCUMENTS, "--block_size=17", "--gradient_accumulation_steps=2", "--max_iters=6", "--eval_interval=3"]
    assert run("train.py", *arguments, "--out_dir=one")[0] == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, f"{HERE}/train.py", *TINY, *arguments, "--out_dir=two"], text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    one, two = read_log("one"), read_log("two")
    for key in (*MEASURES, "train_loss"):
        values = [[float(row[key]) for row in rows if row[key]] for rows in (one, two)]
        assert values[0] and values[0] == pytest.approx(values[1], abs=1e-5)


def test_a_document_is_a_sample_of_its_own(run, recall_data):
    """The sample at the end begins as a validation document does, and nothing follows its end of text."""
    _, out, _ = run("train.py", *DOCUMENTS, "--block_size=17", "--sample_tokens=200", "--max_iters=60")
    sample = out.split("):\n\n", 1)[1]
    first = load_tokens(recall_data, "val", load_meta(recall_data))[0]
    assert sample[0] == chr(first) and sample.count("<|endoftext|>") <= 1
    assert "<|endoftext|>" not in sample or sample.strip().endswith("<|endoftext|>")


# ------------------------------------------------------------------------------------------------------------
# the columns of the log

def means_of(model, batches):
    """The measures of a model over single windows, from all logits and by loops."""
    losses, right, recalled = [], [], []
    for idx, targets in batches:
        with torch.no_grad():
            logits, marks = model(idx)[0], by_loops(idx, targets)
        for t in (targets[0] >= 0).nonzero()[:, 0].tolist():
            losses.append(F.cross_entropy(logits[0, t], targets[0, t]).item())
            right.append(logits[0, t].argmax().item() == targets[0, t].item())
            recalled.append(marks[0, t].item())
    losses, right, recalled = np.array(losses), np.array(right), np.array(recalled)
    return [losses.mean(), losses[recalled].mean(), losses[~recalled].mean(), right[recalled].mean()]


def test_columns_are_those_of_packed_windows_by_hand(run, tiny_data):
    """Loss, loss on recallable and on other targets, and recall, of the fixed windows one by one."""
    run("train.py", "--batch_size=5")
    model, _, _ = load_model("out")
    tokens = load_tokens("data/tiny", "val", load_meta("data/tiny")).astype(np.int64)
    batches = []
    for start in validation_windows(len(tokens), 11, 32).tolist():
        window = torch.from_numpy(tokens[start:start + 12])[None]
        batches.append((window[:, :-1], window[:, 1:]))
    last = [float(read_log("out")[-1][key]) for key in MEASURES]
    assert last == pytest.approx(means_of(model, batches), abs=1e-5)


@pytest.mark.parametrize("block_size", [17, 11])
def test_columns_are_those_of_all_documents_by_hand(block_size, run, recall_data):
    """Each validation document is a window, whole or cut, and each of its tokens counts alike."""
    status, out, err = run("train.py", *DOCUMENTS, f"--block_size={block_size}", "--batch_size=5", "--max_iters=30")
    assert status == 0 and "% of recallable tokens right" in out, err
    model, _, _ = load_model("out")
    tokens = load_tokens(recall_data, "val", load_meta(recall_data)).tolist()
    batches = []
    while tokens:
        n = tokens.index(END) + 1
        document, tokens = torch.tensor([tokens[:n][:block_size + 1]]), tokens[n:]
        batches.append((document[:, :-1], document[:, 1:]))
    assert 3 < len(batches) < 32
    last = [float(read_log("out")[-1][key]) for key in MEASURES]
    assert last == pytest.approx(means_of(model, batches), abs=1e-5)


@pytest.mark.parametrize("objective", ["autoencode", "bidirectional"])
def test_other_objectives_have_no_recall(objective, run):
    """A model that sees the answer, or what follows it, does not look it up: the columns are empty."""
    run("train.py", f"--objective={objective}", "--max_iters=3")
    row = read_log("out")[-1]
    assert row["val_loss"] and [row[key] for key in MEASURES[1:]] == ["", "", ""]


def test_windows_without_recallable_targets_leave_cells_empty(run, recall_data):
    """The first half of a recall document, cut before its bar, repeats nothing."""
    run("train.py", *DOCUMENTS, "--block_size=5", "--max_iters=3")
    row = read_log("out")[-1]
    assert row["recall_loss"] == row["recall_accuracy"] == "" and row["other_loss"] == row["val_loss"]


# ------------------------------------------------------------------------------------------------------------
# guesses

@pytest.mark.parametrize("n_pairs", [2, 3, 5])
def test_orders_without_old_neighbours_are_counted(n_pairs):
    """count_orders gives the number of orders in which no pair follows its old neighbour, as trying all of them does,
    and by_order the share that the best of all guesses has right."""
    orders = [order for order in permutations(range(n_pairs))
              if all(b != a + 1 for a, b in zip(order, order[1:]))]
    assert count_orders(-2, set(range(n_pairs))) == len(orders)
    best = 0
    for place in range(n_pairs):
        nexts = {}
        for order in orders:
            nexts.setdefault(order[:place], []).append(order[place])
        best += sum(max(map(places.count, places)) for places in nexts.values())
    assert sum(map(by_order, orders)) * n_pairs == pytest.approx(best)


def test_a_guess_by_count_takes_the_value_that_is_left_most_often():
    """Among X, X and Y, the guess X is right in 2 of 3 cases; among X and Y, in 1 of 2; a single value is sure."""
    assert by_count("XXY", [0, 2, 1]) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert by_count("XXY", [2, 1, 0]) == pytest.approx((2 / 3 + 1 + 1) / 3)

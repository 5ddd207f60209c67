"""compare.py: budgets are kept, widths are solved, and what has finished is not repeated."""
import csv
import os
from dataclasses import fields

import pytest

from compare import series, size_of, solve_n_embd
from model import ModelConfig

SHAPE = dict(block_size=11, n_layer=2, n_embd=24, n_head=3)
BASE = dict(SHAPE, dataset="tiny", batch_size=3, eval_iters=1, log_interval=4, eval_interval=10,
            warmup_iters=5, learning_rate=1e-2, compile=False, dtype="float32")


@pytest.fixture
def compare(run, monkeypatch):
    """compare(*arguments) -> (status, output, rows of compare.csv); its base is for the tiny data."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with open("base.py", "w", encoding="utf-8") as f:
        f.writelines(f"{key} = {value!r}\n" for key, value in BASE.items())

    def compare(*arguments):
        fixed = "--base=base.py", "--out_dir=out", "--sample_tokens=5", "--device=cpu"
        status, out, err = run("compare.py", *fixed, *arguments)
        rows = []
        if os.path.exists("out/compare.csv"):
            with open("out/compare.csv", encoding="utf-8", newline="") as f:
                rows = list(csv.DictReader(f))
        return status, out + err, rows
    return compare


def test_variants_are_trained_on_equal_tokens_and_not_repeated(compare):
    """A row for each variant and seed, a table, a figure; a killed run goes on, the finished ones stay."""
    arguments = '--variants={"a": {}, "b": {"model_type": "llama"}}', "--amount=500", "--n_seeds=2"
    status, out, rows = compare(*arguments)
    assert status == 0, out
    assert [row["name"] + row["seed"] for row in rows] == ["a1337", "a1338", "b1337", "b1338"]
    assert {float(row["tokens"]) for row in rows} == {528}  # 16 iterations of 33 tokens: the first past 500
    assert rows[0]["val_loss"] != rows[1]["val_loss"] and float(rows[0]["val_loss"]) < 6
    assert os.path.getsize("out/compare.png") > 1000
    with open("out/compare.md", encoding="utf-8") as f:
        text = f.read()
    assert "## What a writes\n\n    def" in text and text.count("| 1 ") == 1 and "| b " in text
    before = os.stat("out/b_1338/ckpt.pt").st_mtime_ns
    os.remove("out/a_1338/ckpt.pt")
    status, out, again = compare(*arguments)
    assert status == 0 and [row["val_loss"] for row in again] == [row["val_loss"] for row in rows]
    assert os.stat("out/b_1338/ckpt.pt").st_mtime_ns == before and out.count("ready in") == 0


def test_equal_flops_are_equal_within_a_step(compare):
    """The cheaper model gets more tokens."""
    variants = '--variants={"a": {}, "b": {"n_embd": 12}}'
    status, out, rows = compare(variants, "--budget=flops", "--amount=2e7")
    assert status == 0, out
    for row in rows:
        step = 3 * float(row["flops_per_token"]) * 33
        assert 0 <= float(row["train_flops"]) - 2e7 < step + 3 * float(row["flops_per_token"])
    assert float(rows[1]["tokens"]) > 2 * float(rows[0]["tokens"])


def test_losses_are_drawn_over_a_setting(compare):
    """x_3 and x_7 are points of one line x, at the values of the setting, which gets a column; each point is
    the mean over the seeds, with their range; all variants are trained on the dataset that is named."""
    variants = ('--variants={"x_3": {"block_size": 3, "dataset": "no"}, "x_7": {"block_size": 7}, '
                '"llama": {"model_type": "llama"}}')
    status, out, rows = compare(variants, "--amount=200", "--n_seeds=2", "--over=block_size",
                                "--dataset=tiny")
    assert status == 0, out
    assert [row["block_size"] for row in rows] == ["3", "3", "7", "7", "11", "11"]
    assert os.path.getsize("out/over.png") > 1000
    drawn = series(({"name": row["name"], "val_loss": float(row["val_loss"]),
                     "block_size": int(row["block_size"])} for row in rows), "block_size")
    losses = [float(row["val_loss"]) for row in rows]
    assert drawn == {"x": {3: losses[:2], 7: losses[2:4]}, "llama": {11: losses[4:]}}


def test_other_objectives_are_compared(compare):
    """Twice the blocks count, no text is written, and accuracies are of the right tokens: a window of one
    token is what an autoencoder finds, but does not say which one is next."""
    shape = '"block_size": 1, "batch_size": 33'
    variants = (f'--variants={{"a": {{{shape}, "objective": "autoencode", "norm": "layernorm"}}, '
                f'"b": {{{shape}, "objective": "bidirectional"}}, "c": {{{shape}}}}}')
    status, out, rows = compare(variants, "--amount=4e4", "--n_seeds=1")
    assert status == 0, out
    sizes = [int(row["parameters"]) for row in rows]
    assert sizes[0] == sizes[1] > 1.4 * sizes[2]
    accuracies = [float(row["token_accuracy"]) for row in rows]
    assert accuracies[0] == 1 and 0.1 < accuracies[2] < 0.8
    with open("out/compare.md", encoding="utf-8") as f:
        assert f.read().count("## What") == 1


@pytest.mark.parametrize("what", ["parameters", "flops"])
def test_the_solved_width_is_the_nearest(what):
    """No other multiple of the heads comes nearer to the target; a model is as large as itself."""
    mixer = {field.name: field.default for field in fields(ModelConfig)} | SHAPE | {"objective": "causal"}
    target = size_of(mixer, 31, what)
    assert solve_n_embd(mixer, 31, what, target) == 24
    llama = mixer | {"model_type": "llama"}
    best = solve_n_embd(llama, 31, what, target)
    errors = {n: abs(size_of(llama | {"n_embd": n}, 31, what) - target) for n in range(6, 60, 6)}
    assert best % 6 == 0 and best != 24 and errors[best] == min(errors.values())


def test_bad_comparisons_are_refused(compare):
    """One line, status 2."""
    for message, argument in [
        ("budget must be", "--budget=watts"), ("match must be", "--match=size"),
        ("must name at least", "--variants={}"), ("has a dict", '--variants={"a": 1}'),
        ("no_such_key, which train.py", '--variants={"a": {"no_such_key": 1}}'),
        ("config file nowhere.py", "--base=nowhere.py"), ("a name of letters", '--variants={"../a": {}}'),
        ("no dataset in", '--variants={"a": {"dataset": "no"}}'),
        ("over: 'dataset' is neither a number", "--over=dataset"), ("over: 'no' is", "--over=no"),
        ("n_embd 24 is not divisible", '--variants={"a": {"model_type": "gpt", "n_head": 5}}'),
    ]:
        status, out, _ = compare(argument)
        assert status == 2 and message in out and out.count("\n") == 1, out

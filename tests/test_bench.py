"""bench.py: every kind of step runs, and the figures follow from each other."""
import json

import pytest

SMALL = ["--models=mixer,llama", "--n_embd=12", "--n_layer=1", "--vocab_size=31", "--n_head=3",
         "--block_sizes=8,6", "--batch_sizes=2", "--repeats=2", "--warm_up=1", "--compile=false",
         "--device=cpu", "--dtype=float32"]


@pytest.mark.parametrize("what", ["train", "sample", "sample_uncached", "invert", "infonce",
                                  "infonce_one_query", "match"])
def test_every_kind_of_step_is_measured(run, what):
    """A row for each model and length; rates and shares follow from time and FLOPs."""
    status, out, err = run("bench.py", *SMALL, f"--what={what}", "--json_path=speed.json")
    assert status == 0, err
    with open("speed.json", encoding="utf-8") as f:
        saved = json.load(f)
    assert [(row["model"], row["T"]) for row in saved["rows"]] == [
        ("mixer", 8), ("llama", 8), ("mixer", 6), ("llama", 6)] and out.count(f"{what} ") == 4
    for row in saved["rows"]:
        seconds = row["ms"] / 1e3
        assert row["per_second"] == pytest.approx(row["items"] / seconds)
        assert row["share_of_peak"] == pytest.approx(row["flops"] / seconds / saved["peak_flops"])
    assert saved["rows"][0]["ratio"] == 1


def test_flops_are_those_of_the_shapes(run):
    """A training step of a mixer, counted by hand: forward and twice that backward."""
    run("bench.py", *SMALL, "--models=mixer", "--block_sizes=8", "--json_path=speed.json")
    with open("speed.json", encoding="utf-8") as f:
        row, = json.load(f)["rows"]
    B, T, C, V = 2, 8, 12, 31
    mlp, conv, head = 2 * T * (C * 4 * C + 4 * C * C), 2 * T * T * C, 2 * T * C * V
    assert row["flops"] == 3 * B * (mlp + conv + head) and row["items"] == B * T


def test_bad_bench_input_is_refused(refused):
    """One line, status 2."""
    for message, argument in [("what takes train", "--what=fly"), ("model_type must be", "--models=rnn"),
                              ("must be 1 or more", "--batch_sizes=0"), ("must be 1 or more", "--repeats=0")]:
        refused(message, "bench.py", *SMALL, argument)

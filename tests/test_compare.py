"""compare.py keeps budgets, solves for widths, and repeats no finished run."""
import csv
import os
import subprocess
from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch

import train
from compare import size_of, solve_n_embd, write_sample
from configurator import configure
from lib import runs
from lib.data import build_tokenizer, load_meta
from lib.plots import series
from lib.runs import different_setting, load_checkpoint, train_run
from model import ModelConfig

SHAPE = dict(block_size=11, n_layer=2, n_embd=24, n_head=3)
BASE = dict(SHAPE, dataset="tiny", batch_size=3, eval_iters=1, log_interval=4, eval_interval=10,
            warmup_iters=5, learning_rate=1e-2, compile=False, dtype="float32")


@pytest.fixture
def compare(run, monkeypatch):
    """Return compare(*arguments) -> (status, output, rows of compare.csv), whose base trains on the tiny data."""
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


@pytest.fixture
def in_process(monkeypatch):
    """Run train.py in this process, because a new process for each run would take minutes."""
    def start(command):
        status = 0
        try:
            train.main(SimpleNamespace(**configure(command[2:], "train.py", "model.py")))
        except FloatingPointError as e:
            print(e)
            status = 1
        return SimpleNamespace(wait=lambda: status)
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(Popen=start))


def test_variants_are_trained_on_equal_tokens_and_not_repeated(compare, in_process, monkeypatch):
    """Each variant and seed gets a row; the same command again trains only the run that is missing, as a process."""
    arguments = '--variants={"a": {}, "b": {"model_type": "llama"}}', "--amount=500", "--n_seeds=2"
    monkeypatch.setenv("MPLBACKEND", "module://no_such_backend")  # a notebook may leave such a name behind
    status, out, rows = compare(*arguments)
    monkeypatch.delenv("MPLBACKEND")
    assert status == 0, out
    assert [row["name"] + row["seed"] for row in rows] == ["a1337", "a1338", "b1337", "b1338"]
    assert {float(row["tokens"]) for row in rows} == {528}  # 16 iterations of 33 tokens exceed 500
    assert rows[0]["val_loss"] != rows[1]["val_loss"] and float(rows[0]["val_loss"]) < 6
    assert os.path.getsize("out/compare.png") > 1000
    with open("out/curves.csv", encoding="utf-8", newline="") as f:
        last = {(row["name"], row["seed"]): row for row in csv.DictReader(f)}
    for row in rows:
        end = last[row["name"], row["seed"]]
        assert float(end["val_loss"]) == float(row["val_loss"])
        assert float(end["train_flops"]) == pytest.approx(float(row["train_flops"]))
    with open("out/compare.md", encoding="utf-8") as f:
        text = f.read()
    assert "## What a writes\n\n    def" in text and text.count("| 1 ") == 1 and "| b " in text
    before = os.stat("out/b_1338/ckpt.pt").st_mtime_ns
    os.remove("out/a_1338/ckpt.pt")
    monkeypatch.setattr(runs, "subprocess", subprocess)
    runs.LOCKS.clear()  # this process has made the runs above
    status, out, again = compare(*arguments)
    assert status == 0 and [row["val_loss"] for row in again] == [row["val_loss"] for row in rows]
    assert os.stat("out/b_1338/ckpt.pt").st_mtime_ns == before and out.count("ready in") == 0


def test_changed_settings_are_trained_anew(compare, in_process):
    """A changed variant is trained anew under its old name, its row has the new loss, and the old run is kept."""
    _, _, before = compare('--variants={"a": {}, "b": {}}', "--amount=300")
    status, out, after = compare('--variants={"a": {"learning_rate": 1e-5}, "b": {}}', "--amount=300")
    assert status == 0 and "learning_rate=0.01, not 1e-05" in out and out.count("ready in") == 1
    assert float(after[0]["learning_rate"]) == 1e-5 and after[0]["val_loss"] > before[0]["val_loss"]
    assert after[1] == before[1]
    assert load_checkpoint("out/a_1337.1")["config"]["learning_rate"] == 1e-2


def test_a_run_of_another_budget_is_trained_anew(compare, in_process):
    """A longer or a continued run is no substitute, because the learning rate falls until the budget is used up."""
    _, _, before = compare('--variants={"a": {}}', "--amount=300")
    _, out, shorter = compare('--variants={"a": {}}', "--amount=100")
    assert "max_tokens=300, not 100" in out and float(shorter[0]["tokens"]) == 132
    _, out, longer = compare('--variants={"a": {}}', "--amount=300")
    assert "max_tokens=100, not 300" in out and longer[0]["val_loss"] == before[0]["val_loss"]
    _, out, longer = compare('--variants={"a": {}}', "--amount=1e-3", "--budget=seconds")
    assert "max_tokens=300, not 0" in out


def test_only_runs_some_and_keeps_the_rows_of_others(compare, in_process):
    """--only leaves the other rows as they are, and warns of each whose settings have changed since its run."""
    _, _, before = compare('--variants={"a": {}, "b": {"n_embd": 12}}', "--amount=300", "--over=n_embd")
    variants = '--variants={"a": {"learning_rate": 0.1}, "b": {"n_embd": 18}, "c": {}}'
    status, out, after = compare(variants, "--amount=300", "--only=c")
    assert status == 0, out
    assert after[:2] == before and [row["name"] for row in after] == ["a", "b", "c"]
    assert "warning: out/a_1337 was trained with learning_rate=0.01, not 0.1" in out
    assert "warning: out/b_1337 was trained with n_embd=12, not 18" in out
    with open("out/compare.md", encoding="utf-8") as f:
        text = f.read()
    assert all(f"| {name} " in text and f"## What {name} writes" in text for name in "abc")
    status, out, _ = compare(variants, "--only=d")
    assert status == 2 and "d" in out and out.count("\n") == 1


def test_a_run_of_another_model_py_is_named(compare, in_process):
    """A reused run that was made by another model.py causes a warning; --rerun=true trains it anew."""
    arguments = '--variants={"a": {}}', "--amount=200"
    _, out, _ = compare(*arguments)
    assert "warning" not in out
    checkpoint = load_checkpoint("out/a_1337")
    torch.save(checkpoint | {"model_py": checkpoint["model_py"] + 1}, "out/a_1337/ckpt.pt")
    before = os.stat("out/a_1337/ckpt.pt").st_mtime_ns
    _, out, _ = compare(*arguments)
    assert out.count("warning: out/a_1337 was trained with another model.py") == 1
    assert os.stat("out/a_1337/ckpt.pt").st_mtime_ns == before
    _, out, _ = compare(*arguments, "--rerun=true")
    assert "warning" not in out and os.path.exists("out/a_1337.1/ckpt.pt")
    assert load_checkpoint("out/a_1337")["model_py"] == checkpoint["model_py"]


def test_an_older_run_has_the_defaults_of_newer_settings(compare, in_process):
    """A run from before a setting and before checksums of model.py is reused, with a warning, and its row stays."""
    arguments = '--variants={"a": {}}', "--amount=200", "--over=n_layer"
    _, _, before = compare(*arguments)
    checkpoint = load_checkpoint("out/a_1337")
    del checkpoint["config"]["optimizer"], checkpoint["model_config"]["post_norm"], checkpoint["model_py"]
    torch.save(checkpoint, "out/a_1337/ckpt.pt")
    status, out, after = compare(*arguments)
    assert status == 0 and out.count("ready in") == 0 and after == before
    assert "was trained with another model.py" in out and not os.path.exists("out/a_1337.1")
    status, out, _ = compare('--variants={"a": {"optimizer": "muon"}}', "--amount=200")
    assert status == 0 and "was trained with optimizer=adamw, not muon: training it anew" in out


def test_a_sample_ends_before_the_end_of_the_text(run, monkeypatch):
    """The token that ends a text is not shown."""
    meta = load_meta("data/tiny")
    config = ModelConfig(**SHAPE)
    model = SimpleNamespace(config=config, generate=lambda *_, **__: iter([[ord("x")], [meta["eot_id"]]]))
    checkpoint = {"config": {}, "model_config": asdict(config), "meta": meta}
    monkeypatch.setattr("compare.load_model", lambda *_: (model, build_tokenizer(meta), checkpoint))
    assert write_sample("out", SimpleNamespace(prompt="def", sample_tokens=5, seed=1), "cpu") == "defx"


def test_budget_and_text_count_as_settings(run):
    """A run with another budget, or on other text under the same dataset name, has different settings."""
    config = ModelConfig(**SHAPE)
    settings = BASE | {"data_dir": "data", "max_tokens": 500, "max_seconds": 0.0}
    checkpoint = {"config": settings, "model_config": asdict(config), "meta": load_meta("data/tiny")}
    assert different_setting(checkpoint, settings) == ""
    for key, value in ("max_tokens", 200), ("max_seconds", 9.0):
        wanted = settings | {key: value}
        assert different_setting(checkpoint, wanted) == ""
        assert different_setting(checkpoint, wanted, with_budgets=True) == f"{key}={settings[key]}, not {value}"
    checkpoint["meta"] = {"crc32": {"train.bin": 1}}
    assert "another text in data" in different_setting(checkpoint, settings)


@pytest.mark.parametrize("status, error", [(1, ChildProcessError), (2, ChildProcessError), (-9, ChildProcessError),
                                           (130, InterruptedError), (143, InterruptedError), (-2, InterruptedError)])
def test_a_stopped_run_is_no_failed_one(status, error, monkeypatch, tmp_path):
    """A comparison goes on after a run that failed, but ends after a run that Ctrl-C or SIGTERM has stopped."""
    monkeypatch.setattr(runs.subprocess, "Popen", lambda *_: SimpleNamespace(wait=lambda: status))
    with pytest.raises(error):
        train_run(tmp_path / "run", max_iters=5)
    assert not issubclass(InterruptedError, ChildProcessError)


def test_the_others_go_on_without_a_variant_that_fails(compare, in_process):
    """The comparison goes on after a run that diverges; its table and its exit status report the failure."""
    variants = '--variants={"bad": {"learning_rate": 1e9, "grad_clip": 0.0}, "good": {}}'
    for _ in range(2):
        status, out, rows = compare(variants, "--amount=900")
        assert status == 1 and [row["name"] for row in rows] == ["good"], out
        assert out.splitlines()[-1] == "error: 1 of 2 runs failed, as they say above: bad_1337"
        with open("out/compare.md", encoding="utf-8") as f:
            text = f.read()
        assert "| failed | bad_1337 " in text and "| 1      | good " in text


def test_home_is_expanded_in_paths(compare, tmp_path, monkeypatch):
    """The ~ in base, out_dir and data_dir stands for the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    arguments = "--base=~/base.py", "--out_dir=~/home", "--data_dir=~/data", '--variants={"a": {}}', "--amount=100"
    status, out, _ = compare(*arguments)
    assert status == 0 and os.path.exists(tmp_path / "home" / "compare.csv") and not os.path.exists("~"), out


def test_equal_flops_are_equal_within_a_step(compare, in_process):
    """Each run ends within one step of the budget, so that the cheaper model gets more tokens."""
    variants = '--variants={"a": {}, "b": {"n_embd": 12}}'
    status, out, rows = compare(variants, "--budget=flops", "--amount=2e7")
    assert status == 0, out
    for row in rows:
        step = 3 * float(row["flops_per_token"]) * 33
        assert 0 <= float(row["train_flops"]) - 2e7 < step + 3 * float(row["flops_per_token"])
    assert float(rows[1]["tokens"]) > 2 * float(rows[0]["tokens"])


def test_losses_are_drawn_over_a_setting(compare, in_process):
    """The setting of --over gets a column, and x_3 and x_7 become points of one line x, each with the losses of
    all seeds. --dataset overrides the dataset of a variant."""
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


def test_some_settings_of_all_variants_are_set_at_once(compare, in_process):
    """--windows and --eval_interval override those of a variant and of train.py, and nothing else."""
    variants = '--variants={"a": {"windows": "packed", "batch_size": 2, "eval_interval": 5}, "b": {}}'
    status, out, _ = compare(variants, "--amount=100", "--windows=document", "--eval_interval=77")
    assert status == 0, out
    used = []
    for name in "ab":
        config = runs.load_checkpoint(f"out/{name}_1337")["config"]
        used.append([config[key] for key in ("windows", "eval_interval", "batch_size")])
    assert used == [["document", 77, 2], ["document", 77, 3]]


def test_other_objectives_are_compared(compare, in_process):
    """Both sets of blocks are counted, only the causal model writes a sample, and each accuracy has the right
    targets: from a window of one token, an autoencoder finds this token, but nothing tells the next one for sure."""
    shape = '"block_size": 1, "batch_size": 33, "eval_interval": 2000, "learning_rate": 0.03'
    variants = (f'--variants={{"a": {{{shape}, "objective": "autoencode", "norm": "layernorm"}}, '
                f'"b": {{{shape}, "objective": "bidirectional"}}, "c": {{{shape}}}}}')
    status, out, rows = compare(variants, "--amount=1e4", "--n_seeds=1")
    assert status == 0, out
    sizes = [int(row["parameters"]) for row in rows]
    assert sizes[0] == sizes[1] > 1.4 * sizes[2]
    accuracies = [float(row["token_accuracy"]) for row in rows]
    assert accuracies[0] == 1 and 0.1 < accuracies[2] < 0.8
    with open("out/compare.md", encoding="utf-8") as f:
        assert f.read().count("## What") == 1


@pytest.mark.parametrize("what", ["parameters", "flops"])
def test_the_solved_width_is_the_nearest(what):
    """No other multiple of the heads comes nearer to the target; the size of a model gives its own width."""
    mixer = {field.name: field.default for field in fields(ModelConfig)} | SHAPE | {"objective": "causal"}
    target = size_of(mixer, 31, what)
    assert solve_n_embd(mixer, 31, what, target) == 24
    llama = mixer | {"model_type": "llama"}
    best = solve_n_embd(llama, 31, what, target)
    errors = {n: abs(size_of(llama | {"n_embd": n}, 31, what) - target) for n in range(6, 60, 6)}
    assert best % 6 == 0 and best != 24 and errors[best] == min(errors.values())


def test_bad_comparisons_are_refused(compare):
    """Each bad comparison ends with one line and status 2 before anything is trained."""
    for message, argument in [
        ("budget must be one of", "--budget=watts"), ("match must be", "--match=size"),
        ("names at least one", "--variants={}"), ("a dict of settings", '--variants={"a": 1}'),
        ("variants: a: --n_ebmd is no setting; did you mean n_embd?", '--variants={"a": {"n_ebmd": 1}}'),
        ("config file nowhere.py", "--base=nowhere.py"), ("a name of letters", '--variants={"../a": {}}'),
        ("a name of letters", '--variants={"": {}}'), ("a name of letters", "--variants={1: 2}"),
        ("no dataset in", '--variants={"a": {"dataset": "no"}}'),
        ("over: 'dataset' is neither a number", "--over=dataset"), ("over: 'no' is", "--over=no"),
        ("over: 'name' is", "--over=name"),
        ("b: n_embd 24 is not divisible", '--variants={"a": {}, "b": {"model_type": "gpt", "n_head": 5}}'),
        ("a: --learning_rate must be in (0, inf)", '--variants={"a": {"learning_rate": -1}}'),
        ("a: --n_layer takes int", '--variants={"a": {"n_layer": "two"}}'),
        ("compare.py sets max_iters itself", '--variants={"a": {"max_iters": 5}}'),
        ("no_mask: causal=False with the objective", '--variants={"a": {}, "no_mask": {"causal": false}}'),
        ("no_mask: causal=False with the objective",
         '--variants={"no_mask": {"causal": false, "objective": "bidirectional"}}'),
        ("amount must be in (0, inf)", "--amount=0"), ("amount must be in (0, inf)", "--amount=-1e6"),
        ("n_seeds must be in [1, inf)", "--n_seeds=0"), ("seed must be in [0, inf)", "--seed=-1"),
        ("sample_tokens must be in [1, inf)", "--sample_tokens=0"),
    ]:
        status, out, _ = compare(argument)
        assert status == 2 and message in out and out.count("\n") == 1, out
    assert not os.path.exists("out")

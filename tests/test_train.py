"""Training: exact resume, the files of a run, budgets, data order, processes, and bad input."""
import csv
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from conftest import HERE, TINY, flip
from lib.data import epoch_starts, training_windows, validation_windows
from lib.objectives import build_model
from model import LanguageModel, ModelConfig
from train import COLUMNS, get_batch, show


def read_log(out_dir):
    with open(f"{out_dir}/log.csv", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def losses(out_dir):
    """What must not depend on how often a run was stopped; the times in the log may."""
    return [{k: row[k] for k in ("iter", "tokens", "train_loss", "val_loss", "lr", "grad_norm")}
            for row in read_log(out_dir)]


def weights(out_dir, name="ckpt.pt"):
    return torch.load(f"{out_dir}/{name}", weights_only=True)["model"]


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------------------
# resume

@pytest.mark.parametrize("model", [
    [], ["--model_type=hybrid", "--gradient_accumulation_steps=2"], ["--dtype=float16"],
    ["--optimizer=muon", "--kernel_size=2"], ["--optimizer=muon", "--model_type=hybrid", "--dtype=float16"]])
def test_resume_is_exact(run, model):
    """20 iterations in one go = 10, stop, 10 more: losses and weights to the last bit, dropout included."""
    arguments = ["--dropout=0.2", "--lr_decay_iters=20", "--eval_interval=5", *model]
    assert run("train.py", "--out_dir=straight", *arguments)[0] == 0
    assert run("train.py", "--out_dir=halves", *arguments, "--max_iters=10")[0] == 0
    assert run("train.py", "--out_dir=halves", *arguments, "--init_from=resume")[0] == 0
    assert losses("straight") == losses("halves")
    assert [row["iter"] for row in losses("straight")] == ["0", "4", "5", "8", "10", "12", "15", "16", "20"]
    assert same_weights(weights("straight"), weights("halves"))
    assert os.path.getsize("straight/ckpt.pt") == pytest.approx(os.path.getsize("halves/ckpt.pt"), rel=0.01)


def test_resume_with_another_optimizer_is_refused(run, refused):
    """Muon's state is of no use to AdamW, and the other way round; the weights can be a start for either."""
    run("train.py", "--max_iters=2")
    run("train.py", "--max_iters=2", "--out_dir=muon", "--optimizer=muon")
    refused("out/ckpt.pt was trained with optimizer=adamw, not muon", "train.py", "--init_from=resume",
            "--optimizer=muon")
    refused("muon/ckpt.pt was trained with optimizer=muon, not adamw", "train.py", "--init_from=resume",
            "--out_dir=muon")
    assert run("train.py", "--max_iters=2", "--init_from=muon")[0] == 0


def test_an_older_checkpoint_lacks_newer_settings(run):
    """A setting that a checkpoint does not know had its default: the run goes on, is evaluated, and is a start."""
    run("train.py", "--out_dir=straight")
    run("train.py", "--max_iters=10", "--lr_decay_iters=20")
    checkpoint = torch.load("out/ckpt.pt", weights_only=True)
    del checkpoint["config"]["optimizer"], checkpoint["config"]["objective"], checkpoint["model_config"]["post_norm"]
    torch.save(checkpoint, "out/ckpt.pt")
    for arguments in ["--eval_only=true"], ["--init_from=out", "--out_dir=tuned", "--max_iters=1"], \
            ["--init_from=resume"]:
        status, _, err = run("train.py", *arguments)
        assert status == 0, err
    assert same_weights(weights("out"), weights("straight"))


def test_resume_after_a_kill_forgets_what_was_not_saved(run):
    """Rows of the log that are newer than the checkpoint are written again, not twice."""
    run("train.py", "--out_dir=whole")
    run("train.py", "--out_dir=killed", "--max_iters=10", "--lr_decay_iters=20")
    with open("killed/log.csv", "a", encoding="utf-8") as f:
        f.write("12,396,0.5,3.0,,,0.001,1,1000,0.1\n")
    run("train.py", "--out_dir=killed", "--init_from=resume")
    iters = [row["iter"] for row in read_log("killed")]
    assert iters == sorted(set(iters), key=int) and iters[-1] == "20"
    assert losses("killed")[-1] == losses("whole")[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(number, run, tiny_data, tmp_path):
    """In the middle: status 128 + its number, a checkpoint; resumed, the run ends as the undisturbed one."""
    arguments = ["--max_iters=300", "--log_interval=1", "--eval_interval=1000"]
    command = [sys.executable, f"{HERE}/train.py", *TINY, *arguments, "--out_dir=stopped"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    for line in process.stdout:
        if line.startswith("iter      5"):
            process.send_signal(number)
            break
    out = process.stdout.read()
    assert process.wait() == 128 + number
    assert "--init_from=resume" in out and 5 <= int(read_log("stopped")[-1]["iter"]) < 300
    assert run("train.py", *arguments, "--out_dir=stopped", "--init_from=resume")[0] == 0
    assert run("train.py", *arguments, "--out_dir=straight")[0] == 0
    assert same_weights(weights("stopped"), weights("straight"))


def test_two_processes_equal_one(run, tiny_data):
    """torchrun, two gloo processes: the windows, losses and weights of one process, to 1e-5."""
    arguments = ["--gradient_accumulation_steps=2", "--max_iters=10", "--eval_interval=5", "--log_interval=1"]
    run("train.py", *arguments, "--out_dir=one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, f"{HERE}/train.py", *TINY, *arguments, "--out_dir=two"], text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    one, two = read_log("one"), read_log("two")
    assert [row["iter"] for row in one] == [row["iter"] for row in two]
    for key in "train_loss", "val_loss":
        values = [[float(row[key]) for row in rows if row[key]] for rows in (one, two)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
    for a, b in zip(weights("one").values(), weights("two").values()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def torchrun(code, *arguments):
    """stdout of two processes that each change train.py by some code, which knows `rank`, and run it."""
    with open("changed.py", "w", encoding="utf-8") as f:
        f.write(f"import os, sys, time\nsys.path.insert(0, {HERE!r})\nimport torch\nimport train\n"
                f"rank = int(os.environ['RANK'])\n{code}\n"
                "train.run_script(train.main, 'train.py', 'model.py')\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "changed.py",
               *TINY, "--gradient_accumulation_steps=2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=200,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_evaluate_together(run):
    """With --eval_only, one process prints the loss that the run has logged, and they leave together."""
    run("train.py", "--max_iters=4", "--gradient_accumulation_steps=2")
    out = torchrun("""
def leave(leave=train.leave_processes):
    leave()
    os.write(1, b'left\\n')
train.leave_processes = leave""", "--eval_only=true", "--warmup_iters=50")
    assert out.count("validation loss") == 1 == out.count("warmup_iters") and out.count("left") == 2
    assert f"validation loss {float(read_log('out')[-1]['val_loss']):.4f}" in out


def test_no_process_compiles_if_one_cannot(run):
    """Rank 1 has no compiler: nobody waits for ever, and rank 0 goes on without compilation too."""
    out = torchrun("""
def compile(function, **_):
    def compiled(*arguments, **options):
        if rank == 1:
            raise RuntimeError('no C++ compiler')
        return function(*arguments, **options)
    return compiled

def checked(run, stop, train=train.train):
    compiled = [module for module in run.raw_model.modules() if 'forward' in vars(module)]
    os.write(1, f'rank {rank}: {len(compiled)} compiled\\n'.encode())
    return train(run, stop)
torch.compile, train.train = compile, checked""", "--compile=true", "--max_iters=3")
    assert out.count("torch.compile does not work here (RuntimeError)") == 1
    assert "rank 0: 0 compiled" in out and "rank 1: 0 compiled" in out
    assert read_log("out")[-1]["iter"] == "3"


def test_time_spent_saving_is_no_training_for_any_process(run):
    """Rank 0 takes longer to save than max_seconds: the others, which wait, do not end the run."""
    torchrun("""
def slowly(run, keeps, save=train.save):
    time.sleep(2)
    save(run, keeps)
train.save = slowly""", "--max_iters=0", "--max_seconds=1", "--eval_interval=100000", "--log_interval=1000")
    last = read_log("out")[-1]
    assert float(last["seconds"]) > 0.5 and int(last["iter"]) > 1


@pytest.mark.parametrize("objective, options", [
    ("causal", dict(model_type="hybrid", kernel_size=2)), ("causal", dict(toeplitz=True, kernel_size=2, tie=True)),
    ("causal", dict(model_type="gpt")), ("autoencode", dict(causal=False))])
def test_muon_moves_the_matrices_and_adamw_the_rest(objective, options):
    """Steps equal those of PyTorch's optimizers on copies of the weights, a matrix for each tap of a convolution."""
    torch.manual_seed(0)
    model = build_model(objective, ModelConfig(block_size=13, n_layer=2, n_embd=20, n_head=5, vocab_size=31, **options))
    matrices, others = {}, {}
    for name, p in model.named_parameters():
        is_vector = p.dim() == 1 or "conv" in name and model.config.toeplitz
        if is_vector or name.startswith(("wte", "wpe", "lm_head")):
            others[name] = torch.nn.Parameter(p.detach().clone())
        else:
            parts = p.detach().clone() if p.dim() == 3 else p.detach().clone()[None]
            matrices[name] = [torch.nn.Parameter(part) for part in parts]
    muon = torch.optim.Muon(sum(matrices.values(), []), 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    decayed = [p for p in others.values() if p.dim() > 1]
    adamw = torch.optim.AdamW(decayed, 0.01, (0.9, 0.95), weight_decay=0.1)
    adamw.add_param_group({"params": [p for p in others.values() if p.dim() == 1], "weight_decay": 0.0})
    optimizer = train.MuonAndAdamW(model, model.configure_optimizers(0.1, 1.0, (0.9, 0.95)))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(3):
        idx = torch.randint(31, (3, 11))
        model(idx, idx)[1].backward()
        for name, p in model.named_parameters():
            if name in others:
                others[name].grad = p.grad.clone()
            else:
                for part, grad in zip(matrices[name], p.grad if p.dim() == 3 else p.grad[None]):
                    part.grad = grad.clone()
        train.optimizer_step(model, optimizer, scaler, 0.01, 0.0)
        muon.step()
        adamw.step()
        for name, p in model.named_parameters():
            expected = others[name] if name in others else torch.stack(list(matrices[name])).view(p.shape)
            if "conv" in name and p.dim() == 3 and model.config.causal:
                assert expected.triu(1).abs().max() > 1e-4 and (p.triu(1) == 0).all()
                with torch.no_grad():
                    for part in matrices[name]:
                        part.tril_()
                expected = expected.tril()
            torch.testing.assert_close(p, expected)
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_that_is_not_finite_skips_the_step():
    """The float16 path: a scaled step is the plain one; after an infinite gradient the scale is halved."""
    results = []
    for enabled in False, True:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
        scaler.scale(model(torch.ones(2, 5)).square().sum()).backward()
        norm = train.optimizer_step(model, optimizer, scaler, 0.1, 1.0)
        results.append(torch.cat([norm.view(1), model.weight.detach().flatten()]))
    torch.testing.assert_close(*results)
    scaler.scale(model(torch.full((2, 5), math.inf)).sum()).backward()
    norm = train.optimizer_step(model, optimizer, scaler, 0.1, 1.0)
    assert not norm.isfinite() and scaler.get_scale() == 4.0
    assert torch.equal(model.weight.detach().flatten(), results[1][1:])


def test_paths_may_hold_spaces_umlauts_and_a_home(run, monkeypatch, tmp_path):
    """Trained, resumed and sampled from in such folders; what the run says to call next is quoted."""
    home = tmp_path / "my hôme"
    home.mkdir()
    (tmp_path / "data").rename(home / "alle Daten")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    folders = "--out_dir=~/ein Lauf ü", "--data_dir=~/alle Daten"
    status, out, err = run("train.py", *folders, "--max_iters=4", "--sample_tokens=3")
    assert status == 0 and f"python sample.py --out_dir='{home}/ein Lauf ü'" in out, err
    status, out, err = run("train.py", *folders, "--max_iters=6", "--init_from=resume")
    assert status == 0 and (home / "ein Lauf ü" / "loss.png").exists(), err
    status, out, err = run("sample.py", folders[0], "--num_samples=1", "--max_new_tokens=3")
    assert status == 0 and "-----" in out, err


def test_fine_tuning_starts_from_the_weights_of_a_checkpoint(run):
    """init_from=path takes the weights alone: iteration 0, and the loss that the other run ended with."""
    run("train.py", "--out_dir=first")
    run("train.py", "--out_dir=second", "--init_from=first/ckpt.pt", "--max_iters=4")
    assert losses("second")[0]["iter"] == "0"
    assert losses("second")[0]["val_loss"] == losses("first")[-1]["val_loss"]


# ------------------------------------------------------------------------------------------------------------
# what a run leaves behind

def test_files_of_a_run(run):
    """Two checkpoints, log, config and curve; nothing temporary; a sample at the end."""
    status, out, _ = run("train.py", "--out_dir=out/a", "--sample_tokens=7")
    assert status == 0 and "a sample" in out
    names = ".lock", "best.pt", "ckpt.pt", "config.json", "log.csv", "loss.png"
    assert sorted(os.listdir("out/a")) == [*names]
    with open("out/a/config.json", encoding="utf-8") as f:
        config = json.load(f)
    assert config["learning_rate"] == 1e-2 and config["vocab_size"] == 257 and config["norm"] == "layernorm"
    header = ("iter,tokens,seconds,train_loss,val_loss,val_bpb,lr,grad_norm,tok_per_sec,mfu,"
              "recall_loss,other_loss,recall_accuracy")
    assert ",".join(read_log("out/a")[0]) == header
    last = read_log("out/a")[-1]
    assert float(last["val_loss"]) < math.log(257)
    assert not [key for key in weights("out/a") if key.startswith(("_orig_mod", "module"))]
    state = torch.load("out/a/best.pt", weights_only=True)["state"]
    assert state["best_val_loss"] == pytest.approx(min(float(r["val_loss"]) for r in read_log("out/a")
                                                       if r["val_loss"]), abs=1e-6)


def test_a_sample_of_a_document_does_not_show_its_end(run, monkeypatch):
    """A document ends where the model ends it; text without gaps goes on, and shows where one document ends."""
    monkeypatch.setattr(LanguageModel, "generate", lambda *_, **__: iter([[ord("x")], [256]]))
    for windows, end in ("document", "x\n"), ("packed", "x<|endoftext|>\n"):
        _, out, _ = run("train.py", "--max_iters=1", f"--windows={windows}", "--sample_tokens=5")
        assert out.endswith(end), out


def test_a_model_of_documents_wants_a_beginning(run):
    """It has never seen what comes before one, so train.py names a command with a beginning."""
    _, out, _ = run("train.py", "--max_iters=1", "--windows=document", "--sample_tokens=5")
    command = re.search(r"python (sample.py .*)\):", out).group(1)
    assert run(*shlex.split(command), "--max_new_tokens=3")[0] == 0
    status, _, err = run(*shlex.split(command)[:2])
    assert status == 2 and "give its beginning by --start" in err


def test_bits_per_byte_are_those_of_the_byte_tokenizer(run, tiny_data):
    """With bytes as tokens, bits per byte are the loss over ln 2, times the end-of-text tokens' share."""
    run("train.py", "--max_iters=1")
    with open(tiny_data / "tiny" / "meta.json", encoding="utf-8") as f:
        val = json.load(f)["val"]
    assert val["tokens"] == val["bytes"] + val["documents"]
    row = read_log("out")[0]
    expected = float(row["val_loss"]) / math.log(2) * (1 + val["documents"] / val["bytes"])
    assert float(row["val_bpb"]) == pytest.approx(expected, abs=1e-5)


def test_a_new_run_moves_the_old_one_aside(run):
    """Forgetting --init_from=resume loses nothing."""
    run("train.py", "--seed=1")
    old = weights("out")
    status, out, _ = run("train.py", "--seed=2")
    assert status == 0 and "it is now in out.1" in out
    assert same_weights(old, weights("out.1")) and not same_weights(old, weights("out"))


@pytest.mark.parametrize("has_links", [True, False])
def test_checkpoints_are_kept_every_so_often(has_links, run, monkeypatch):
    """Each is evaluated, and stays when the run goes on, and is moved aside with it; others are replaced."""
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: os.stat("nothing of this name"))
    arguments = ["--keep_every=7", "--lr_decay_iters=20"]
    run("train.py", *arguments, "--max_iters=12")
    assert [*sorted(Path("out").glob("iter*"))] == [Path("out/iter_0.pt"), Path("out/iter_7.pt")]
    run("train.py", *arguments, "--init_from=resume")
    run("train.py", "--out_dir=short", "--max_iters=7", "--lr_decay_iters=20")
    assert same_weights(weights("out", "iter_7.pt"), weights("short"))
    rows = read_log("out")
    assert [row["iter"] for row in rows if row["val_loss"]] == ["0", "7", "10", "12", "14", "20"]
    run("train.py", "--seed=2")
    assert sorted(path.name for path in Path("out.1").glob("iter*")) == ["iter_0.pt", "iter_14.pt", "iter_7.pt"]
    assert not [*Path("out").glob("iter*")]


@pytest.mark.parametrize("budget, tokens", [
    ("--max_tokens=300", 330), ("--max_tokens=330", 330), ("--max_iters=7", 231)])
def test_budgets_are_kept(run, budget, tokens):
    """The run ends with the first iteration that uses the budget up, and is evaluated and saved there."""
    run("train.py", budget)
    assert int(read_log("out")[-1]["tokens"]) == tokens and read_log("out")[-1]["val_loss"]


def test_a_budget_of_seconds_ends_the_run(run):
    """max_seconds alone: the run ends soon after it, and the learning rate has come down to min_lr."""
    run("train.py", "--max_iters=0", "--max_seconds=0.5", "--min_lr=1e-4")
    last = read_log("out")[-1]
    assert float(last["seconds"]) >= 0.5 and float(last["lr"]) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_follows_its_schedule(run, schedule):
    """Linear warm-up over 5 iterations, then the curve down to min_lr at the end."""
    run("train.py", f"--schedule={schedule}", "--log_interval=1", "--min_lr=1e-3")
    for row in read_log("out"):
        it = int(row["iter"])
        left = 1 - it / 20 if schedule == "linear" else (1 + math.cos(math.pi * it / 20)) / 2
        expected = 1e-2 * (it + 1) / 5 if it < 5 else 1e-3 + 9e-3 * left
        assert float(row["lr"]) == pytest.approx(expected, rel=1e-5)


def test_evaluation_does_not_depend_on_batch_size_or_seed_of_the_data(run):
    """The same windows in batches of 2, 7 and 1000 give the same loss."""
    values = []
    for batch_size in 2, 7, 1000:
        run("train.py", f"--batch_size={batch_size}", "--max_iters=1")
        values.append(float(read_log("out")[0]["val_loss"]))
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)


def test_training_does_not_depend_on_how_often_it_is_evaluated(run):
    """Evaluation changes neither the order of the data nor dropout."""
    run("train.py", "--out_dir=rare", "--dropout=0.3", "--eval_interval=20")
    run("train.py", "--out_dir=often", "--dropout=0.3", "--eval_interval=1")
    assert same_weights(weights("rare"), weights("often"))


def test_gradient_accumulation_equals_a_larger_batch(run):
    """2 x 3 windows give the step of 1 x 6."""
    run("train.py", "--max_iters=5", "--out_dir=a", "--batch_size=6")
    run("train.py", "--max_iters=5", "--out_dir=b", "--batch_size=3", "--gradient_accumulation_steps=2")
    for a, b in zip(weights("a").values(), weights("b").values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_missing_embedded_data_is_prepared(run, monkeypatch):
    """The dataset python is made on the first run, by prepare.py, and its failure is the run's."""
    calls = []

    def fake_run(command):
        calls.append(command)
        return subprocess.CompletedProcess(command, 3)
    monkeypatch.setattr(subprocess, "run", fake_run)
    status, out, err = run("train.py", "--dataset=python", "--data_dir=elsewhere")
    assert status == 1 and "preparing it" in out and "prepare.py has failed" in err
    assert calls[0][1].endswith("prepare.py") and "--data_dir=elsewhere" in calls[0]


# ------------------------------------------------------------------------------------------------------------
# the order of the data

def test_an_epoch_reads_each_window_once():
    """Without replacement, without overlap, inside the data; another epoch or seed has another order."""
    starts = np.sort(epoch_starts(1009, 13, 7, 0))
    assert (np.diff(starts) == 13).all() and starts[0] >= 0 and starts[-1] + 13 < 1009
    assert starts[0] < 13 and starts[-1] + 2 * 13 >= 1009
    orders = [epoch_starts(1009, 13, seed, epoch).tolist() for seed in (7, 8) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_windows_go_on_where_they_stopped():
    """Taken 1, 5 or 300 at a time, across the ends of epochs, the sequence is the same."""
    whole, end = training_windows(1009, 13, 7, (0, 0), 300)
    for step in 1, 5, 60:
        position, parts = (0, 0), []
        for _ in range(300 // step):
            taken, position = training_windows(1009, 13, 7, position, step)
            parts += taken
        assert parts == whole and position == end
    n = len(epoch_starts(1009, 13, 7, 0))
    assert sorted(whole[:n]) == sorted(epoch_starts(1009, 13, 7, 0).tolist())


def test_validation_windows_are_fixed():
    """The same ones at each call, in the data, each once; all there are if more are asked for."""
    windows = validation_windows(1009, 13, 20)
    assert windows.tolist() == validation_windows(1009, 13, 20).tolist()
    assert len(set(windows)) == 20 and (windows % 13 == 0).all() and windows.max() + 13 < 1009
    assert len(validation_windows(1009, 13, 10_000)) == 1008 // 13


def test_targets_are_the_next_tokens():
    """idx and targets are shifted by one."""
    data = np.arange(100, dtype=np.uint16)
    idx, targets = get_batch(data, [0, 50], 7, torch.device("cpu"))
    assert idx.tolist() == [list(range(7)), list(range(50, 57))] and torch.equal(targets, idx + 1)


# ------------------------------------------------------------------------------------------------------------
# what goes wrong

def test_a_loss_that_is_not_finite_stops_the_run(run):
    """One line, status 1, and the checkpoint from before is whole."""
    arguments = "--learning_rate=1e30", "--grad_clip=0.0", "--warmup_iters=0", "--norm=none"
    code, _, err = run("train.py", *arguments)
    assert code == 1 and "not finite" in err and err.count("\n") == 1
    assert all(torch.isfinite(w).all() for w in weights("out").values())


@pytest.mark.parametrize("message, arguments", [
    ("did you mean learning_rate?", ["--learning_rat=1"]),
    ("takes int", ["--n_layer=two"]),
    ("nowhere.py", ["nowhere.py"]),
    ("python prepare.py --dataset=nowhere", ["--dataset=nowhere"]),
    ("block_size 100000", ["--block_size=100000"]),
    ("not divisible by n_head", ["--model_type=gpt", "--n_head=3"]),
    ("kernel_size must be in [1, inf)", ["--kernel_size=0"]),
    ("model_type must be mixer or gpt", ["--model_type=mixr"]),
    ("device 'cuda:9' is not available", ["--device=cuda:9"]),
    ("device 'gpu' is not available", ["--device=gpu"]),
    ("dtype must be one of auto | float32", ["--dtype=int8"]),
    ("batch_size must be in [1, inf)", ["--batch_size=0"]),
    ("grad_clip must be in [0, inf)", ["--grad_clip=-1"]),
    ("seed must be in [0, inf)", ["--seed=-1"]),
    ("sees its answer", ["--causal=false"]),
    ("sees its answer", ["--causal=false", "--objective=bidirectional"]),
    ("give the run a budget", ["--max_iters=0"]),
    ("schedule must be", ["--schedule=step"]),
    ("learning_rate must be", ["--learning_rate=1e999"]),
    ("no checkpoint", ["--init_from=resume"]),
    ("no checkpoint", ["--init_from=scrach"]),
])
def test_bad_arguments_are_refused(refused, message, arguments):
    """Each is one line that says what is wrong, status 2, before anything is written."""
    refused(message, "train.py", *arguments)
    assert not os.path.exists("out")


@pytest.mark.parametrize("message, damage", [
    ("should have", lambda d: os.truncate(d / "train.bin", 1001)),
    ("should have", lambda d: os.remove(d / "val.bin")),
    ("damaged", lambda d: (d / "meta.json").write_text("{")),
    ("train.bin is damaged", lambda d: flip(d / "train.bin", 1000)),
    ("val.bin is damaged", lambda d: flip(d / "val.bin", -1)),
    ("damaged", lambda d: flip(d / "tokenizer.tiktoken", -2)),
    ("damaged", lambda d: flip(d / "meta.json", (d / "meta.json").read_text().index('"eot_id": ') + 10)),
])
def test_damaged_data_is_refused(refused, message, damage, tiny_data):
    """Truncated, missing or foreign files: never trained on."""
    shutil.copytree(tiny_data / "tiny", "broken/tiny")
    damage(Path("broken/tiny"))
    refused(message, "train.py", "--data_dir=broken")


def test_a_foreign_or_damaged_checkpoint_is_refused(run, refused):
    """Another model, a truncated file, another kind of file: one line, and the file stays as it is."""
    run("train.py")
    refused("was trained with n_layer=2", "train.py", "--init_from=resume", "--n_layer=3")
    refused("was trained with model_type=mixer", "train.py", "--init_from=resume", "--model_type=llama")
    shutil.copy("out/ckpt.pt", "flipped.pt")
    flip("flipped.pt", os.path.getsize("flipped.pt") // 2)
    refused("flipped.pt is damaged", "train.py", "--init_from=flipped.pt")
    os.truncate("out/ckpt.pt", 5000)
    refused("damaged", "train.py", "--init_from=resume")
    assert os.path.getsize("out/ckpt.pt") == 5000
    with open("out/ckpt.pt", "w", encoding="utf-8") as f:
        f.write("hello")
    refused("damaged", "train.py", "--init_from=resume")


class Payload:
    def __reduce__(self):
        return open, ("payload_ran", "w")


@pytest.mark.parametrize("dump", [torch.save, lambda payload, f: pickle.dump(payload, f, 2)])
def test_a_checkpoint_with_code_is_refused_and_runs_nothing(refused, dump):
    """A real pickle payload that would create a file."""
    os.makedirs("out")
    with open("out/ckpt.pt", "wb") as f:
        dump({"model": Payload()}, f)
    refused("damaged or no checkpoint", "train.py", "--init_from=resume")
    refused("damaged or no checkpoint", "sample.py", "--out_dir=out")
    assert not os.path.exists("payload_ran")


def test_an_out_dir_that_cannot_be_written_is_an_error(refused):
    """A file stands where the folder should be."""
    with open("out", "w", encoding="utf-8") as f:
        f.write("in the way")
    refused("cannot use the folder out", "train.py")


# ------------------------------------------------------------------------------------------------------------
# resume and evaluation with other settings

def test_a_finished_run_is_evaluated(run):
    """--eval_only=true prints the validation loss of its log, and writes nothing."""
    run("train.py")
    before = {name: os.stat(f"out/{name}").st_mtime_ns for name in os.listdir("out")}
    status, out, err = run("train.py", "--eval_only=true")
    assert status == 0 and f"validation loss {float(read_log('out')[-1]['val_loss']):.4f}" in out, err
    assert before == {name: os.stat(f"out/{name}").st_mtime_ns for name in os.listdir("out")}


def test_resume_takes_the_optimizer_settings_of_the_command_line(run):
    """Changed weight_decay and betas take effect, those of all groups, and config.json shows what was used."""
    run("train.py", "--max_iters=10", "--lr_decay_iters=20")
    assert "another" not in run("train.py", "--init_from=resume", "--max_iters=12", "--lr_decay_iters=20")[1]
    _, out, _ = run("train.py", "--init_from=resume", "--weight_decay=0.7", "--beta1=0.5", "--beta2=0.6")
    assert out.count("trained with another weight_decay and beta1 and beta2") == 1
    groups = torch.load("out/ckpt.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.7, 0.0]
    assert [tuple(group["betas"]) for group in groups] == [(0.5, 0.6)] * 2
    with open("out/config.json", encoding="utf-8") as f:
        assert json.load(f)["weight_decay"] == 0.7


def test_resume_on_changed_data_forgets_the_best_loss(run, tiny_data):
    """A loss on other text is no record to beat: best.pt is written anew, and a line says why."""
    run("train.py", "--max_iters=10", "--lr_decay_iters=20")
    checkpoint = torch.load("out/ckpt.pt", weights_only=True)
    checkpoint["meta"]["crc32"]["val.bin"] += 1
    checkpoint["state"]["best_val_loss"] = 0.0
    torch.save(checkpoint, "out/ckpt.pt")
    status, out, _ = run("train.py", "--init_from=resume")
    assert status == 0 and "has changed since" in out
    assert 0 < torch.load("out/best.pt", weights_only=True)["state"]["best_val_loss"] < 10


def test_resume_needs_a_checkpoint_of_train_py(run, refused):
    """A retriever's says what made it; its weights can be a start."""
    run("train.py")
    checkpoint = torch.load("out/ckpt.pt", weights_only=True)
    torch.save(checkpoint | {"made_by": "retrieve.py", "optimizer": None}, "out/ckpt.pt")
    refused("is a checkpoint of retrieve.py", "train.py", "--init_from=resume")


def test_a_run_goes_on_in_another_format(run):
    """The checkpoint of a float32 run has no state of a GradScaler: a new one begins, and ends with float16."""
    assert run("train.py")[0] == 0
    for dtype, max_iters in ("float16", 30), ("bfloat16", 40):
        assert run("train.py", "--init_from=resume", f"--dtype={dtype}", f"--max_iters={max_iters}")[0] == 0
        checkpoint = torch.load("out/ckpt.pt", weights_only=True)
        assert checkpoint["state"]["iter"] == max_iters
        assert bool(checkpoint["scaler"]) == (dtype == "float16")
    assert float(read_log("out")[-1]["val_loss"]) < float(read_log("out")[0]["val_loss"])


def test_resume_without_a_log_starts_a_new_one(run):
    """The log is no part of what a run needs."""
    run("train.py", "--max_iters=10", "--lr_decay_iters=20")
    os.remove("out/log.csv")
    assert run("train.py", "--init_from=resume")[0] == 0
    assert [row["iter"] for row in read_log("out")] == ["12", "16", "20"]


def test_the_folder_is_named_by_the_model(run):
    """The same config with another architecture does not land in the other one's folder."""
    for model_type in "mixer", "llama":
        status, out, err = run("train.py", "--out_dir=out/{model_type}_tiny", f"--model_type={model_type}",
                               "--max_iters=1")
        assert status == 0 and f"out/{model_type}_tiny/ckpt.pt" in out, err
    assert sorted(os.listdir("out")) == ["llama_tiny", "mixer_tiny"]


def test_hours_past_a_day_are_shown(capsys):
    """The time left of a run of weeks: 1 % of it took 10,000 s."""
    row = dict.fromkeys(COLUMNS, 0.0) | dict(iter=1, seconds=1e4, train_loss=None, val_loss=None, val_bpb=None)
    show(row, progress=0.01)
    assert "eta 275:00:00" in capsys.readouterr().out


def test_a_folder_named_wandb_is_not_the_package(run, refused):
    """Refused before anything is written or moved, the same way each time."""
    os.makedirs("wandb")
    run("train.py")
    old = weights("out")
    for _ in range(2):
        refused("pip install wandb", "train.py", "--wandb_log=true")
    assert same_weights(old, weights("out")) and not os.path.exists("out.1")


def test_a_long_warm_up_is_named(run):
    """The run goes on."""
    status, out, _ = run("train.py", "--warmup_iters=50")
    assert status == 0 and "warmup_iters 50 is more than max_iters 20" in out

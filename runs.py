"""Runs of train.py, each a folder: their checkpoints and logs, and the lock on one that is at work."""
import contextlib
import csv
import os
import signal
import subprocess
import sys
import zipfile

import torch

from common import replacing
from configurator import fail
from dataset import build_tokenizer
from model import ModelConfig
from objectives import OBJECTIVES

LOCKS = {}  # folder -> open file: the lock is held while it is open


def load_checkpoint(path):
    """What train.py saved, on the CPU; weights_only: a file that carries code is refused and runs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch.load does not look at the checksums
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        ModelConfig(**checkpoint["model_config"])
        return checkpoint
    except FileNotFoundError:
        fail(f"no checkpoint {path}; train one first: python train.py config/mixer_tiny.py")
    except Exception as e:  # torch.load raises a dozen types on a damaged file
        fail(f"{path} is damaged or no checkpoint of ours ({type(e).__name__}); is best.pt beside it whole?")


def load_model(path, device):
    """(model in eval mode on device, tokenizer, checkpoint) of a checkpoint file."""
    checkpoint = load_checkpoint(path)
    kind = OBJECTIVES[checkpoint["config"].get("objective", "causal")]
    model = kind(ModelConfig(**checkpoint["model_config"]))
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as e:
        fail(f"{path} does not fit its own model_config: {str(e).splitlines()[-1].strip()}")
    return model.to(device).eval(), build_tokenizer(checkpoint["meta"]), checkpoint


def lock_folder(folder):
    """Keep other processes from using the folder until this one ends, however it ends; if another one has it,
    that is an error. Windows has no such locks: there it does nothing."""
    with contextlib.suppress(ImportError):
        import fcntl
        LOCKS[folder] = open(os.path.join(folder, ".lock"), "w", encoding="utf-8")
        try:
            fcntl.lockf(LOCKS[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            fail(f"another process is at work in {folder}: wait for it, or choose another --out_dir")


def start_log(out_dir, columns, keep_until=None):
    """Make out_dir with a log.csv in it.

    A resumed run keeps the rows up to iteration keep_until: if it was killed, it logged more than it saved. A
    new one (None) moves what is there into out_dir/previous: nobody loses a run by starting another.
    """
    log_path, rows = os.path.join(out_dir, "log.csv"), []
    try:
        os.makedirs(out_dir, exist_ok=True)
        lock_folder(out_dir)
        if keep_until is not None:
            with open(log_path, encoding="utf-8", newline="") as f:
                rows = [row for row in csv.DictReader(f) if int(row["iter"]) <= keep_until]
        elif os.path.exists(os.path.join(out_dir, "ckpt.pt")):
            previous = os.path.join(out_dir, "previous")
            os.makedirs(previous, exist_ok=True)
            for name in "ckpt.pt", "best.pt", "log.csv", "config.json", "loss.png":
                with contextlib.suppress(FileNotFoundError):
                    os.replace(os.path.join(out_dir, name), os.path.join(previous, name))
            print(f"{out_dir} held a run, now in {previous} (train.py continues one by --init_from=resume)")
    except (OSError, KeyError, ValueError) as e:
        fail(f"cannot use out_dir {out_dir}: {e}")
    with replacing(log_path, "w") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def train_run(out_dir, **settings):
    """Have train.py make the run out_dir with these settings (a budget among them), or go on with it; it does
    nothing if that has finished. If train.py fails, the program ends with one line, status 1."""
    path, init_from = os.path.join(out_dir, "ckpt.pt"), "scratch"
    if os.path.exists(path):
        used, init_from = load_checkpoint(path)["state"], "resume"
        for budget, unit in ("max_iters", "iter"), ("max_tokens", "tokens"), ("max_seconds", "seconds"):
            if 0 < settings.get(budget, 0) <= used[unit]:
                return
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py")
    settings = settings | {"out_dir": out_dir, "init_from": init_from}
    child = subprocess.Popen([sys.executable, script, *(f"--{k}={v}" for k, v in settings.items())])
    # Ctrl-C reaches train.py too, which saves and ends; SIGTERM is passed on, or it would train on by itself
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: child.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    status = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if status:
        fail("train.py has stopped, as it says above; the same command will go on from there", status=1)

"""
Runs: their folders, checkpoints, logs and locks, how another script starts one, and the signals that stop it.
"""
import contextlib
import csv
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, fields

import torch

from configurator import HERE, read_defaults
from lib.data import build_tokenizer, crc32, load_meta, text_sums, try_lock
from lib.objectives import build_model
from model import ModelConfig

RUN_FILES = ("ckpt.pt", "best.pt", "log.csv", "config.json", "loss.png", "retrieve.csv", "retrieve.json",
             "retrieve.png", "mixing.png", "positions.png", "positions.csv", "recall.png", "recall.csv")
KEPT = re.compile(r"iter_\d+\.pt")  # a checkpoint that train.py has kept, named by its iteration
BUDGETS = {"max_iters": "iter", "max_tokens": "tokens", "max_seconds": "seconds"}  # setting -> state of a run
LOCKS = {}  # folder -> open file: the lock is held while it is open


# ------------------------------------------------------------------------------------------------------------
# files and folders


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """Write to a temporary file that takes the place of `path` at the end.

    If that fails, `path` stays as it was. Raises OSError that says so.
    """
    temporary = f"{path}.tmp"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)  # save_checkpoint, killed, may have left a link to best.pt there
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # on the disk before the old file goes
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save raises RuntimeError while it handles an OSError
        with contextlib.suppress(OSError):
            os.remove(temporary)
        reason = getattr(e if isinstance(e, OSError) else e.__context__, "strerror", None) or str(e)
        raise OSError(f"cannot write {path}: {reason.lower()}") from None


def make_folder(folder):
    """Make a folder if it is not there. Raises ValueError, naming it, if that cannot be done."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise ValueError(f"cannot use the folder {folder}: {e.strerror.lower()}") from None


def lock_folder(folder):
    """Keep other processes from using the folder until this one ends. Raises ValueError if another one has it."""
    LOCKS.pop(folder, None)  # closing an older file of this process would end the new lock
    LOCKS[folder] = try_lock(os.path.join(folder, ".lock"))
    if not LOCKS[folder]:
        raise ValueError(f"another process is at work in {folder}: wait for it, or choose another folder")


def move_run_aside(out_dir):
    """Move a run that is in out_dir into the first free folder out_dir.1, out_dir.2, ..., so that none is lost."""
    if not os.path.exists(os.path.join(out_dir, "ckpt.pt")):
        return
    folder, n = os.path.abspath(out_dir), 1
    while os.path.exists(f"{folder}.{n}"):
        n += 1
    aside = f"{folder}.{n}"
    os.makedirs(aside)
    for name in os.listdir(out_dir):
        if name in RUN_FILES or KEPT.fullmatch(name):
            os.replace(os.path.join(out_dir, name), os.path.join(aside, name))
    print(f"{out_dir} held a run; it is now in {os.path.relpath(aside)} (a run goes on with "
          "--init_from=resume)")


def start_log(out_dir, columns, keep_until=None):
    """Make out_dir, lock it, and start a log.csv in it.

    A resumed run keeps the rows up to iteration keep_until: if it was killed, it logged more than it saved. A new
    run (None) first moves aside a run that is there. Raises ValueError if out_dir cannot be used.
    """
    log_path, rows = os.path.join(out_dir, "log.csv"), []
    make_folder(out_dir)
    try:
        lock_folder(out_dir)
        if keep_until is None:
            move_run_aside(out_dir)
        elif os.path.exists(log_path):
            rows = [row for row in read_log(out_dir) if int(row["iter"]) <= keep_until]
    except (OSError, KeyError) as e:
        raise ValueError(f"cannot use out_dir {out_dir}: {e}") from None
    write_rows(log_path, columns, rows)


def read_log(out_dir):
    """The rows of a run's log.csv, as dicts of texts."""
    with open(os.path.join(out_dir, "log.csv"), encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def read_rows(path):
    """The rows of a CSV file of ours, as dicts: a number is an int or a float, an empty cell None.

    A column `name` holds texts. There are no rows if there is no file.
    """
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
    for row in rows:
        row |= {key: json.loads(text or "null") for key, text in row.items() if key != "name"}
    return rows


def append_row(path, row):
    """Add a row, a list, to a CSV file; a float is written with 7 digits, None as nothing."""
    cells = [f"{value:.7g}" if isinstance(value, float) else value for value in row]
    try:
        with open(path, "a", encoding="utf-8", newline="") as f:
            csv.writer(f, lineterminator="\n").writerow(cells)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror.lower()}") from None


def write_rows(path, columns, rows):
    """Write a CSV file of rows, which are dicts: those of their values that are in columns."""
    with replacing(path, "w") as f:
        writer = csv.DictWriter(f, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# ------------------------------------------------------------------------------------------------------------
# checkpoints


def build_config(settings, vocab_size):
    """The ModelConfig of a script's settings, a dict of which it takes its own keys. Raises ValueError."""
    known = {f.name: settings[f.name] for f in fields(ModelConfig) if f.name in settings}
    return ModelConfig(**known | {"vocab_size": vocab_size})


def used_settings(checkpoint):
    """All settings of the run that made a checkpoint, a dict; a setting that is newer has its default."""
    settings = {key: setting.value for key, setting in read_defaults("train.py").items()}
    settings.update(checkpoint["config"])
    settings.update(asdict(ModelConfig(**checkpoint["model_config"])))
    return settings


def model_checksum():
    """The checksum of model.py, by which a checkpoint tells the code that made it from today's."""
    return crc32(inspect.getfile(ModelConfig))


def link_or_copy(source, path):
    """Give a file a second name; some file systems have no links, and get a copy."""
    try:
        os.link(source, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
    except OSError:
        with replacing(path) as f, open(source, "rb") as saved:
            shutil.copyfileobj(saved, f)


def save_checkpoint(checkpoint, folder, is_best, keeps=False):
    """Write ckpt.pt in one go, best.pt if it is the best so far, and iter_N.pt if it `keeps` that of iteration N.

    These are names of one file where that is possible; each ckpt.pt is a new file, so that iter_N.pt stays as it is.
    best.pt comes first: after a kill between the two, the run goes on from the older ckpt.pt and writes both anew.
    """
    best, last = os.path.join(folder, "best.pt"), os.path.join(folder, "ckpt.pt")
    with replacing(best if is_best else last) as f:
        torch.save(checkpoint, f)
    if is_best:
        link_or_copy(best, last)
    if keeps:
        link_or_copy(last, os.path.join(folder, f"iter_{checkpoint['state']['iter']}.pt"))


def load_checkpoint(path, mmap=False):
    """The checkpoint, on the CPU, in a file or in a run's folder (its ckpt.pt).

    mmap: its tensors stay in the file, which may then be replaced but not written to; Windows lets nobody replace
    such a file, so there they are read. A file that carries code is refused, and none of its code runs. Raises
    FileNotFoundError if there is none, ValueError if it is damaged or no checkpoint of ours.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "ckpt.pt")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch.load does not look at the checksums
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and os.name != "nt")
        ModelConfig(**checkpoint["model_config"])
        return checkpoint
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint {path}; train one first: python train.py "
                                "config/mixer_tiny.py") from None
    except Exception as e:  # torch.load raises a dozen types on a damaged file
        raise ValueError(f"{path} is damaged or no checkpoint of ours ({type(e).__name__}); is best.pt beside it "
                         "whole?") from None


def load_model(path, device="cpu"):
    """(model in eval mode on device, tokenizer, checkpoint) of a checkpoint file or of a run's folder."""
    checkpoint = load_checkpoint(path)
    if checkpoint["config"].get("method") == "match":
        raise ValueError(f"{path} holds a matcher of embeddings, which reads no text: choose a run of another kind")
    model = build_model(used_settings(checkpoint)["objective"], ModelConfig(**checkpoint["model_config"]))
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as e:
        raise ValueError(f"{path} does not fit its own model_config: {str(e).splitlines()[-1].strip()}") from None
    return model.to(device).eval(), build_tokenizer(checkpoint["meta"]), checkpoint


def restore_optimizer(optimizer, scaler, checkpoint):
    """Have them go on from a checkpoint. The optimizer keeps its own learning rate, decay and betas."""
    options = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": options})
    if checkpoint["scaler"]:  # it is empty if the run had another number format
        scaler.load_state_dict(checkpoint["scaler"])


def resume_command(script):
    """The command that goes on with the run of this process: its own arguments, but for --init_from."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--init_from")]
    return shlex.join(["python", script, *arguments, "--init_from=resume"])


# ------------------------------------------------------------------------------------------------------------
# runs that are started by other scripts, and stopped by signals


def different_setting(checkpoint, settings, with_budgets=False):
    """The first of the settings that a checkpoint was not made with, as "key=old, not new"; "" if there is none.

    The text of the dataset is one of them. Budgets count on demand: a run that goes on to a larger budget is not the
    run that had it from the start, as the learning rate falls until the budget is used up.
    """
    used = used_settings(checkpoint)
    wanted = settings | asdict(build_config(settings, used["vocab_size"]))
    for key, value in wanted.items():
        if key in ("device", "init_from", "out_dir", "data_dir", "verify") or key in BUDGETS and not with_budgets:
            continue
        if used.get(key) != value:
            return f"{key}={used.get(key)}, not {value}"
    data = os.path.join(settings.get("data_dir", "data"), settings.get("dataset", ""))
    is_there = os.path.exists(os.path.join(data, "meta.json"))
    if is_there and text_sums(load_meta(data)) != text_sums(checkpoint["meta"]):
        return f"another text in {data} than today's"
    return ""


def train_run(out_dir, **settings):
    """Have train.py make the run out_dir with these settings (a budget among them), or go on with it.

    A finished run is not repeated. A run with other settings is moved aside and trained anew. Raises
    ChildProcessError if train.py fails, InterruptedError if a signal has stopped it.
    """
    init_from = "scratch"
    if os.path.exists(os.path.join(out_dir, "ckpt.pt")):
        checkpoint = load_checkpoint(out_dir)
        if different := different_setting(checkpoint, settings):
            print(f"{out_dir} was trained with {different}: training it anew", flush=True)
        else:
            init_from = "resume"
            for budget, unit in BUDGETS.items():
                if 0 < settings.get(budget, 0) <= checkpoint["state"][unit]:
                    return
    script = os.path.join(HERE, "train.py")
    settings = settings | {"out_dir": out_dir, "init_from": init_from}
    child = subprocess.Popen([sys.executable, script, *(f"--{key}={value}" for key, value in settings.items())])
    # Ctrl-C reaches train.py too, which saves and ends; SIGTERM is passed on, or it would train on by itself.
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: child.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    status = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if status > 128 or -status in handlers:
        raise InterruptedError("train.py was stopped by a signal; the same command continues from there")
    if status:
        raise ChildProcessError(f"train.py has failed for {out_dir}, as it says above")


class StopSignals:
    """Within `with StopSignals() as stop`, Ctrl-C, SIGTERM or SIGHUP set stop.caught to their number.

    The loop looks at it and ends after its iteration. A second signal ends the program at once. Afterwards all
    handlers are as before, also in a notebook.
    """

    def __enter__(self):
        self.caught, self.before = 0, {}
        for name in "SIGINT", "SIGTERM", "SIGHUP":
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP: so do we
                self.before[number] = signal.signal(number, self.catch)
        return self

    def catch(self, number, frame):
        self.caught = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

"""What several scripts need: files that are replaced in one go, device and dtype, checkpoints, runs."""
import contextlib
import csv
import ctypes
import os
import signal
import subprocess
import sys
import time
import zipfile

import torch

from configurator import fail
from dataset import build_tokenizer
from model import ModelConfig
from objectives import OBJECTIVES

with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has these
    # Freed memory is kept, for the next step: having it zeroed by the system anew took a fifth of the time.
    M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
    ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
LOCKS = {}  # folder -> open file: the lock is held while it is open


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """Write to a temporary file that takes the place of `path` at the end. If that fails, `path` stays as it
    was, and the program ends with one line, status 1."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # on the disk before the old file goes
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save raises the second while it handles the first
        with contextlib.suppress(OSError):
            os.remove(temporary)
        reason = getattr(e if isinstance(e, OSError) else e.__context__, "strerror", None) or str(e)
        fail(f"cannot write {path}: {reason.lower()}", status=1)


def choose_device(name):
    """torch.device for "auto" (CUDA, then MPS, then CPU) or a name; one that is missing here is an error."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        fail(f"device {name!r} is not available here; --device=auto takes the best one that is")


def choose_dtype(name, device):
    """torch.dtype of matmuls for "auto" or a name: bfloat16 where it is fast, else float16 on CUDA."""
    if name == "auto":
        if device.type == "cuda":
            name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        else:
            has = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
            name = "bfloat16" if has.get("amx_bf16") or has.get("avx512_bf16") else "float32"
    if name not in ("float32", "bfloat16", "float16"):
        fail(f"dtype {name!r} is not one of auto, float32, bfloat16, float16")
    if name == "float16" and device.type != "cuda":
        fail("dtype 'float16' needs a CUDA device; --dtype=auto takes what is fast here")
    return getattr(torch, name)


def autocast(device, dtype):
    """Context in which matmuls run in dtype."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def measure_peak_flops(device, dtype):
    """FLOP/s of a large matmul on this machine (best of 5): what model FLOP utilisation is a share of."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best


def peak_memory_mb(device):
    """The most memory that this process has had so far: on a CUDA device, else in RAM (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    with contextlib.suppress(ImportError):
        import resource
        unit = 2 ** (20 if sys.platform == "darwin" else 10)  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def load_checkpoint(path):
    """What train.py saved, on the CPU; weights_only: a file that carries code is refused and runs nothing."""
    try:
        if zipfile.ZipFile(path).testzip():  # torch.load does not look at the checksums
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


def read_prompt(text):
    """The text of a prompt: as it stands, or, for FILE:path, what the file holds."""
    if not text.startswith("FILE:"):
        return text
    path = os.path.expanduser(text.removeprefix("FILE:"))
    try:
        with open(path, encoding="utf-8", newline="") as f:
            return f.read()
    except OSError as e:
        fail(f"cannot read {path}: {e.strerror.lower()}")
    except UnicodeDecodeError as e:
        fail(f"{path} is not UTF-8 text: wrong byte at offset {e.start}")

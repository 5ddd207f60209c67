"""What several scripts need: files that are replaced in one go, device and number format, prompts."""
import contextlib
import ctypes
import os
import sys
import time

import torch

from configurator import fail

with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has these
    # Freed memory is kept, for the next step: having it zeroed by the system anew took a fifth of the time.
    M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
    ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


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


def clip_gradients(model, max_norm):
    """Scale all gradients so that their norm, a tensor that is returned, is at most max_norm; 0: no limit."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    # On a CPU it can be looked at without waiting, and most steps need no pass over all gradients to times 1.
    if max_norm and (not norm.is_cpu or norm > max_norm):
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


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

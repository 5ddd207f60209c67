"""
The machine: device, number format, processes, compilation, peak FLOP/s and memory.
"""
import contextlib
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed as dist

from lib.fast import use_fast_functions


def setup(device, dtype, fast=True):
    """Prepare this process for a script; returns (torch.device, torch.dtype of the matmuls).

    device: auto, cpu, cuda, cuda:1 or mps; dtype: auto, float32, bfloat16 or float16. Changes global state: the
    memory allocator, the compiler's cache, TF32, the current CUDA device, and four functions of model.py, which become
    those of lib/fast.py, or the plain ones if `fast` is false.
    Raises ValueError for a device or a dtype that is not available here.
    """
    keep_freed_memory()
    find_compiler_cache()
    device = choose_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32 on CUDA
    use_fast_functions(fast)
    return device, choose_dtype(dtype, device)


def keep_freed_memory():
    """Have glibc keep freed memory for the next step: otherwise the system zeroes the pages again at every step."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no mallopt
        M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def find_compiler_cache():
    """Give PyTorch another folder for its compiler's cache if it cannot make its own: it does so even uncompiled."""
    path = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    try:
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # a folder that is there may be closed to us
    except OSError:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()


def choose_device(name):
    """torch.device for "auto" (CUDA, then MPS, then CPU) or a name. Raises ValueError if it is not available."""
    rank = os.environ.get("LOCAL_RANK")  # torchrun sets it
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available() and rank is None:  # gloo cannot exchange gradients on MPS
            name = "mps"
        elif shutil.which("nvidia-smi"):
            say(f"running on the CPU: PyTorch cannot use the NVIDIA GPU of this machine ({complaint_about('cuda')})")
    if name == "cuda" and rank is not None:  # each process has a GPU of its own
        name = f"cuda:{rank}"
    if complaint := complaint_about(name):
        raise ValueError(f"device {name!r} is not available here: {complaint}")
    return torch.ones(1, device=name).device


def complaint_about(device):
    """The first line of what PyTorch says if it cannot compute on a device, such as a card too old for it; else ""."""
    try:
        torch.ones(1, device=device)
        return ""
    except (RuntimeError, AssertionError) as e:
        return str(e).splitlines()[0]


def choose_dtype(name, device):
    """torch.dtype of matmuls for "auto" or a name: bfloat16 where it is fast, else float16 on CUDA."""
    if name == "auto":
        if device.type == "cuda":
            name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        else:
            capabilities = {}
            if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
                capabilities = torch.cpu.get_capabilities()
            is_fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
            name = "bfloat16" if is_fast else "float32"
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {name!r} is not one of auto, float32, bfloat16, float16")
    if name == "float16" and device.type not in ("cuda", "cpu"):
        raise ValueError(f"dtype 'float16' is not for {device.type}; --dtype=auto takes the one that is fast here")
    return getattr(torch, name)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def autocast(device, dtype):
    """Context in which matmuls run in dtype."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


# ------------------------------------------------------------------------------------------------------------
# processes; torchrun sets RANK, LOCAL_RANK and WORLD_SIZE


def join_processes(device, backend="auto"):
    """(rank, world_size) of this process, (0, 1) without torchrun. `leave_processes` is its end."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        import torch.distributed.nn  # noqa: F401 - imported later, its default arguments would hold the group
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        if backend == "nccl":  # tensors on the CPU go through gloo
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
        else:
            dist.init_process_group(backend)
    return rank, world_size


def leave_processes():
    """All processes leave together: one that is still at work would lose its connections."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def say(message):
    """Print a message, in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, flush=True)


def across_ranks(values, op=dist.ReduceOp.SUM):
    """A list of floats reduced over all processes, so that all of them decide alike. It does not wait for a GPU."""
    if not dist.is_initialized():
        return values
    values = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(values, op)
    return values.tolist()


# ------------------------------------------------------------------------------------------------------------
# compilation and measures


def trust_new_compiler():
    """Spare PyTorch its trials of what the C++ compiler can do, which take a quarter of the first compilation.

    GCC and Clang know the vector instructions that PyTorch uses from version 12 on.
    """
    with contextlib.suppress(OSError, ValueError, ImportError, AttributeError):
        from torch._inductor.config import cpp  # to set its environment variable would be too late after import torch
        command = [os.environ.get("CXX", "g++"), "-dumpversion"]
        version = subprocess.run(command, capture_output=True, text=True).stdout
        if sys.platform == "linux" and int(version.split(".")[0]) >= 12 and cpp.vec_isa_ok is None:
            cpp.vec_isa_ok = True


def compile_or_not(function, use, on=True):
    """torch.compile(function) where that works, else function itself; use(f) runs a candidate f once.

    That run compiles, so that a clock which starts afterwards does not count compilation. It raises what the plain
    function raises.
    """
    if on:
        trust_new_compiler()
        compiled = torch.compile(function)
        try:
            use(compiled)
            return compiled
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # no C++ compiler, an unsupported platform: torch raises many types here
            say_uncompiled(e)
    use(function)
    return function


def compile_model(model, use, on=True):
    """Compile a model in place where that works; use() runs a step of it once, which compiles.

    All processes go on with compiled models, or none does. use() must not communicate: if it failed in one process, the
    others would wait for ever. One compiled block could serve all blocks and take less time to compile, but with
    torch.compiler.nested_compile_region of PyTorch 2.13 the errors of a GPT's gradients are as large as the gradients.
    """
    if on:
        trust_new_compiler()
        model.forward = torch.compile(model.forward)
        error = None
        try:
            result = use()
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # as above
            error = e
        if across_ranks([float(error is not None)]) == [0]:
            return result
        uncompile_model(model)
        if error:
            say_uncompiled(error)
    return use()


def uncompile_model(model):
    """Take back what compile_model did: sampling has another shape at each token, which would be compiled anew."""
    vars(model).pop("forward", None)


def say_uncompiled(error):
    print(f"torch.compile does not work here ({type(error).__name__}): going on without it, slower", flush=True)


def measure_peak_flops(device, dtype):
    """FLOP/s of a large matmul on this machine, the median of many; MFU is the share of it that a model reaches.

    A GPU takes a second: it slows down when it gets warm, and is faster on ones than on random numbers.
    """
    size, seconds = (8192, 1.0) if device.type == "cuda" else (2048, 0.3)
    if device.type == "cpu" and dtype == torch.float16:
        size = 512  # most CPUs compute it slowly
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the device
        times.append(time.perf_counter() - start)
    if device.type == "cuda":
        del a
        torch.cuda.reset_peak_memory_stats(device)  # peak_memory_mb is that of the training
    return 2 * size ** 3 / statistics.median_low(times)


def peak_memory_mb(device):
    """The most memory, in MiB, that this process has held: on a CUDA device, else in RAM (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    with contextlib.suppress(ImportError):
        import resource
        unit = 2 ** (20 if sys.platform == "darwin" else 10)  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

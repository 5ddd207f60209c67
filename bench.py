"""
Speed of training, sampling, inversion and retrieval, several models interleaved in one run, beside what this
machine can do at most: a large matmul, and a large copy.

    python bench.py --models=mixer,llama,gpt                         # a training step of each
    python bench.py --what=sample,sample_uncached --batch_sizes=1,32 # with a cache, and without
    python bench.py --what=train,invert,infonce --n_embd=128 --n_layer=4 --json_path=speed.json
    python bench.py --models=mixer --block_sizes=256,512,1024,2048   # growth with the length of the window
    python bench.py --what=mix_dense,mix,mix_fft --block_sizes=1024,4096 --batch_sizes=1  # the mixing alone
    python bench.py --models=mixer --profile_path=profile.csv        # where the time of a step goes

Medians of `repeats` steps, one of each kind and model in turn, so that what else the machine does falls on
all alike. It asserts nothing. FLOPs are those of the matmuls by their shapes (model.py, estimate_flops).
"""
import csv
import itertools
import json
import os
import sys
import time
from dataclasses import fields
from math import log
from statistics import linear_regression, median
from types import SimpleNamespace

import torch

from common import choose_device, choose_dtype, measure_peak_flops, replacing
from configurator import configure, fail
from model import ModelConfig
from steps import STEPS

# defaults: change them by a config file and by --key=value; several values are separated by commas
what = ["train"]              # steps: train, sample, sample_uncached, ... (all of them: STEPS in steps.py)
models = ["mixer", "llama", "hybrid", "gpt"]  # kinds of models
block_sizes = [512]           # T, tokens in a window
batch_sizes = [4]             # B, windows, samples, prompts, pairs, texts or queries
n_embd = 256                  # C, channels
n_layer = 8                   # blocks
vocab_size = 4096             # V
repeats = 15                  # steps of each that are timed
warm_up = 3                   # and before that, untimed
device = "auto"               # auto | cpu | cuda | cuda:1 | mps
dtype = "auto"                # auto | float32 | bfloat16 | float16, of the matmuls
compile = True                # torch.compile, but not for the kinds sample and sample_uncached
json_path = ""                # file for all of it
csv_path = ""                 # file for the rows
profile_path = ""             # file for the operations that take most of each step's time
seed = 1337                   # of weights and tokens
# end of defaults


def timed(call):
    """Seconds of a call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def warmed(call):
    """The same, after an untimed call: in use a step follows one of its own, not one of another model, which
    leaves the caches of the processor full of what is not needed."""
    call()
    return timed(call)


def measure_copy():
    """Bytes a second of a large copy, read and written (best of 5)."""
    size = 2 ** (28 if device.type == "cpu" else 30)  # far more than any cache holds
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / min(timed(lambda: b.copy_(a)) for _ in range(5))


def profile(call, top=15):
    """Rows of the operations that take most of a call's time, means of 5 calls."""
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            timed(call)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    spent = {(e.key, e.count / 5): getattr(e, kind) / 5e3 for e in profiler.key_averages()}  # ms
    return [dict(operation=key, calls=n, ms=ms, share=ms / sum(spent.values()))
            for (key, n), ms in sorted(spent.items(), key=lambda item: -item[1])[:top]]


def write_csv(path, header, rows):
    """Rows, dicts of the same keys, below the command that made them and what the machine can do."""
    with replacing(path, "w") as f:
        f.write(f"# python bench.py {' '.join(sys.argv[1:])}; {device}, {dtype}, torch {torch.__version__}, "
                f"{header}\n")
        writer = csv.DictWriter(f, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.5g}" if isinstance(value, float) else value
                          for key, value in row.items()} for row in rows)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    config = configure(sys.argv[1:], os.path.join(here, "model.py"), __file__)
    globals().update(config)
    if not set(what) <= set(STEPS):
        fail(f"what takes {', '.join(STEPS)}, not {', '.join(set(what) - set(STEPS))}")
    if min(repeats, *batch_sizes, *block_sizes) < 1:
        fail("repeats, batch_sizes and block_sizes must be 1 or more")
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    shape = {f.name: config[f.name] for f in fields(ModelConfig)}
    peak, copy = measure_peak_flops(device, dtype), measure_copy()
    print(f"{device}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}: a large matmul reaches "
          f"{peak / 1e12:.3f} TFLOP/s, a large copy {copy / 1e9:.1f} GB/s")
    run = SimpleNamespace(device=device, dtype=dtype, compile=compile, seed=seed)
    rows, operations = [], []
    if profile_path:
        from torch._inductor import config as inductor  # slow to import
        inductor.cpp.enable_kernel_profile = True  # or what it has compiled for a CPU stays without a name
    for T, B in itertools.product(block_sizes, batch_sizes):
        torch.compiler.reset()  # or after eight shapes it would go on without compiling, and say nothing
        group, calls = [], []
        for kind, name in itertools.product(what, models):
            torch.manual_seed(seed)
            try:
                c = ModelConfig(**shape | dict(model_type=name, block_size=T))
            except ValueError as e:
                fail(e)
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                step = STEPS[kind](c, B, run)
                for _ in range(warm_up):
                    step.call()
            except torch.OutOfMemoryError:
                print(f"{kind:17} {name:16} T {T:5} B {B:3}  out of memory", flush=True)
                continue
            memory = (torch.cuda.max_memory_allocated() - before) / 2 ** 20 if device.type == "cuda" else None
            calls.append(step.call)
            group.append(dict(what=kind, model=name, T=T, B=B, unit=step.unit, items=step.items,
                              flops=step.flops, bytes=step.bytes, memory_mb=memory))
        times = [[warmed(call) for call in calls] for _ in range(repeats)]
        for row, seconds in zip(group, zip(*times)):
            typical = median(seconds)
            row |= dict(ms=1e3 * typical, per_second=row["items"] / typical,
                        ratio=median(a / b for a, b in zip(seconds, (turn[0] for turn in times))),
                        tflops=row["flops"] / typical / 1e12, share_of_peak=row["flops"] / typical / peak,
                        share_of_copy=row["bytes"] / typical / copy if row["bytes"] else None)
            extra = f"  {100 * row['share_of_copy']:5.1f} % of the copy's GB/s" if row["bytes"] else ""
            extra += f"  {row['memory_mb']:8.0f} MB" if row["memory_mb"] else ""
            print(f"{row['what']:17} {row['model']:16} T {T:5} B {B:3}  {row['ms']:9.2f} ms  "
                  f"{row['per_second']:11,.1f} {row['unit']}/s  {row['tflops']:7.3f} TFLOP/s  "
                  f"{100 * row['share_of_peak']:5.1f} % of peak  {row['ratio']:6.2f} x the time "
                  f"of the first{extra}", flush=True)
        rows += group
        if profile_path:
            operations += [dict(what=row["what"], model=row["model"], T=T, B=B) | found
                           for row, call in zip(group, calls) for found in profile(call)]
        step = calls = None  # or a sampling generator would outlive the interpreter, which complains
    for kind, name, B in itertools.product(what, models, batch_sizes):
        line = [row for row in rows if (row["what"], row["model"], row["B"]) == (kind, name, B)]
        if len({row["T"] for row in line}) > 2:
            fit = linear_regression([log(row["T"]) for row in line], [log(row["ms"]) for row in line])
            print(f"{kind:17} {name:16} B {B:3}  time grows as T to the power of {fit.slope:.2f}")
    if not rows:
        fail("nothing of it fits into memory: lower --batch_sizes or --block_sizes", status=1)
    if json_path:
        with replacing(json_path, "w") as f:
            used = dict(device=str(device), dtype=str(dtype), torch=torch.__version__)
            json.dump({"settings": config | used, "peak_flops": peak, "copy_bytes": copy, "rows": rows}, f,
                      indent=1)
    machine = (f"{torch.get_num_threads()} threads; a large matmul reaches {peak / 1e12:.3f} TFLOP/s, "
               f"a large copy {copy / 1e9:.1f} GB/s")
    if csv_path:
        write_csv(csv_path, machine, rows)
    if profile_path:
        write_csv(profile_path, machine, operations)

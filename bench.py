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
from dataclasses import fields, replace
from math import log, log2
from statistics import linear_regression, median

import torch
import torch.nn as nn
from torch.nn import functional as F

from common import autocast, choose_device, choose_dtype, clip_gradients, measure_peak_flops, replacing
from configurator import configure, fail
from fast import BLOCK_SHARE, toeplitz_product, triangular_product
from inversion import descend, distances, hidden_states
from model import Attention, LanguageModel, MaskedConv, ModelConfig
from retrieval import embed, info_nce, match_batch, match_logits
from sample import generate

# defaults: change them by a config file and by --key=value; several values are separated by commas
what = ["train"]              # train, sample, sample_uncached, invert, infonce, infonce_one_query, match,
                              # the product of a convolution alone: mix_dense, mix (by blocks), mix_fft
models = ["mixer", "llama", "hybrid", "gpt"]  # kinds of models
block_sizes = [512]           # T, tokens in a window
batch_sizes = [4]             # B, windows, samples, prompts or pairs
n_embd = 256                  # C, channels
n_layer = 8                   # blocks
vocab_size = 4096             # V
repeats = 15                  # steps of each that are timed
warm_up = 3                   # and before that, untimed
device = "auto"               # auto | cpu | cuda | cuda:1 | mps
dtype = "auto"                # auto | float32 | bfloat16 | float16, of the matmuls
compile = True                # torch.compile, but for sampling
json_path = ""                # file for all of it
csv_path = ""                 # file for the rows
profile_path = ""             # file for the operations that take most of each step's time
seed = 1337                   # of weights and tokens
# end of defaults


def train_step(c, B):
    """Forward, backward, clipping and AdamW. Returns (step, items a step, their name, FLOPs a step)."""
    model = LanguageModel(c).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95))
    forward = torch.compile(model) if compile else model
    idx = torch.randint(c.vocab_size, (2, B, c.block_size), device=device)

    def step():
        with autocast(device, dtype):
            loss = forward(*idx, return_logits=False)[1]
        loss.backward()
        clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tokens = B * c.block_size
    return step, tokens, "tokens", 3 * model.estimate_flops() * tokens


def sample_step(c, B, cached=True):
    """One token of each of B samples, in a window that is between half and wholly full."""
    model = LanguageModel(c).to(device).eval()
    tokens = generate(model, [[0] * (c.block_size // 2)] * B, 10 ** 9, top_k=50, cached=cached)
    T = 3 * c.block_size // 4  # behind about so many others

    def step():
        with autocast(device, dtype):
            next(tokens)
    flops = model.estimate_flops(T) * B * (1 if cached else T)
    return step, B, "tokens", flops, bytes_read(model, B, T) if cached else None


def invert_step(c, B):
    """One step of descent for B prompts: forward, and backward to the input alone."""
    model = LanguageModel(c).to(device).eval().requires_grad_(False)
    model.run_blocks = torch.compile(model.run_blocks) if compile else model.run_blocks
    x = torch.randn(B, c.block_size, c.n_embd, device=device)
    target, mask = hidden_states(model, x + 1, None), torch.ones(x.shape[:2], device=device)

    def step():
        with autocast(device, dtype):
            descend(lambda x: distances(hidden_states(model, x, None), target, mask, "l1"), x,
                    torch.full((B,), 1e-3, device=device), steps=1)
    blocks = model.estimate_flops() - 2 * model.lm_head.weight.numel()
    return step, B, "prompts x steps", 2 * blocks * B * c.block_size


def infonce_step(c, B, one_query=False):
    """Embeddings of B pairs of texts as long as the window, the loss between all of them, AdamW. one_query:
    only the first query, among all passages, as the paper's code does it."""
    model = LanguageModel(c).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95))
    encode = torch.compile(embed) if compile else embed
    idx = torch.randint(c.vocab_size, (2, B, c.block_size), device=device)
    real, ids = torch.ones_like(idx[0], dtype=torch.bool), torch.arange(B, device=device)
    n = 1 if one_query else B

    def step():
        with autocast(device, dtype):
            q, p = encode(model, idx[0][:n], real[:n]), encode(model, idx[1], real)
        loss = F.cross_entropy(q @ p.T / 0.05, ids[:1]) if one_query else info_nce(q, p, ids, 0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    blocks = model.estimate_flops() - 2 * model.lm_head.weight.numel()
    return step, n, "pairs", 3 * blocks * (n + B) * c.block_size


def match_step(c, B):
    """B sequences of a frozen query and T - 1 passages, drawn on the device; the matcher's loss, AdamW."""
    matcher = LanguageModel(replace(c, vocab_size=1, causal=False)).to(device)
    optimizer = matcher.configure_optimizers(0.1, 1e-3, (0.9, 0.95))
    logits = torch.compile(match_logits) if compile else match_logits
    queries, passages = F.normalize(torch.randn(2, 2 ** 14, c.n_embd, device=device), dim=-1)
    generator = torch.Generator(device).manual_seed(seed)

    def step():
        rows = torch.randint(len(queries), (B,), generator=generator, device=device)
        x, target = match_batch(queries, passages, rows, c.block_size, generator)
        with autocast(device, dtype):
            loss = F.cross_entropy(logits(matcher, x).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step, B, "samples", 3 * matcher.estimate_flops() * B * c.block_size


def mix_step(c, B, product, flops, toeplitz=False):
    """The product of one masked convolution, forward and backward, by one of the ways to do it."""
    T, C = c.block_size, c.n_embd
    W = torch.randn(1, T, *([] if toeplitz else [T]), device=device, requires_grad=True)  # (1, T[, T])
    x, grad = (torch.randn(B, T, C, device=device) for _ in range(2))
    x.requires_grad_()
    run = torch.compile(product) if compile else product

    def step():
        with autocast(device, dtype):
            y = run(W, x)
        y.backward(grad.to(y.dtype))
        W.grad = x.grad = None
    return step, B * T, "tokens", 3 * flops(T) * B * C


def bytes_read(model, B, T):
    """Bytes that one more token of B samples must read, behind T others: weights, and what is cached."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attended = sum(2 * m.c_proj.in_features for m in model.modules() if isinstance(m, Attention))
    mixed = sum(m.width for m in model.modules() if isinstance(m, MaskedConv))
    return model.lm_head.weight.element_size() * (linear + B * T * (attended + mixed))


STEPS = {"train": train_step, "sample": sample_step, "invert": invert_step, "infonce": infonce_step,
         "match": match_step,
         "sample_uncached": lambda c, B: sample_step(c, B, cached=False),
         "infonce_one_query": lambda c, B: infonce_step(c, B, one_query=True),
         "mix_dense": lambda c, B: mix_step(c, B, lambda W, x: W[0].tril() @ x, lambda T: 2 * T * T),
         "mix": lambda c, B: mix_step(c, B, lambda W, x: triangular_product(W[0], x),
                                      lambda T: 2 * T * T * BLOCK_SHARE),
         "mix_fft": lambda c, B: mix_step(c, B, lambda W, x: toeplitz_product(W, [x]),
                                          lambda T: 2 * 5 * T * log2(2 * T), toeplitz=True)}


def timed(step):
    """Seconds of a call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_copy():
    """Bytes a second of a large copy, read and written (best of 5)."""
    a = torch.ones(2 ** 26 if device.type == "cpu" else 2 ** 30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * len(a) / min(timed(lambda: b.copy_(a)) for _ in range(5))


def profile(step, top=15):
    """Rows of the operations that take most of a call's time, of 5 calls: (operation, calls, ms, share)."""
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            timed(step)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: getattr(e, kind), reverse=True)
    total = sum(getattr(e, kind) for e in events)
    return [(e.key, e.count / 5, getattr(e, kind) / 5e3, getattr(e, kind) / total) for e in events[:top]]


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
    rows, operations = [], []
    if profile_path:
        from torch._inductor import config as inductor  # slow to import
        inductor.cpp.enable_kernel_profile = True  # or what it has compiled for a CPU stays without a name
    for T, B in itertools.product(block_sizes, batch_sizes):
        group, steps = [], []
        for kind, name in itertools.product(what, models):
            torch.manual_seed(seed)
            try:
                c = ModelConfig(**shape | dict(model_type=name, block_size=T))
            except ValueError as e:
                fail(e)
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step, items, unit, flops, *read = STEPS[kind](c, B)
            for _ in range(warm_up):
                step()
            memory = (torch.cuda.max_memory_allocated() - before) / 2 ** 20 if device.type == "cuda" else None
            steps.append(step)
            group.append(dict(what=kind, model=name, T=T, B=B, unit=unit, items=items, flops=flops,
                              bytes=read[0] if read else None, memory_mb=memory))
        times = [[timed(step) for step in steps] for _ in range(repeats)]
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
        for row, step in zip(group, steps if profile_path else []):
            keys = {key: row[key] for key in ("what", "model", "T", "B")}
            operations += [keys | dict(zip(("operation", "calls", "ms", "share"), found))
                           for found in profile(step)]
        del step, steps  # or a sampling generator would outlive the interpreter, which complains
    if len(set(block_sizes)) > 2:
        for kind, name, B in itertools.product(what, models, batch_sizes):
            line = [row for row in rows if (row["what"], row["model"], row["B"]) == (kind, name, B)]
            fit = linear_regression([log(row["T"]) for row in line], [log(row["ms"]) for row in line])
            print(f"{kind:17} {name:16} B {B:3}  time grows as T to the power of {fit.slope:.2f}")
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

"""
Speed of training, sampling, inversion and retrieval, several models interleaved in one run, beside what this
machine can do at most: a large matmul, and a large copy.

    python bench.py --models=mixer,llama,gpt                         # a training step of each
    python bench.py --what=sample,sample_uncached --batch_sizes=1,32 # with a cache, and without
    python bench.py --what=train,invert,infonce --n_embd=128 --n_layer=4 --json_path=speed.json
    python bench.py --models=mixer --block_sizes=256,512,1024,2048   # growth with the length of the window

Medians of `repeats` steps, one of each model in turn, so that what else the machine does falls on all alike.
It asserts nothing. FLOPs are those of the matmuls by their shapes (model.py, estimate_flops).
"""
import itertools
import json
import os
import sys
import time
from dataclasses import fields, replace
from statistics import median

import torch
from torch.nn import functional as F

from common import autocast, choose_device, choose_dtype, measure_peak_flops, replacing
from configurator import configure, fail
from inversion import descend, distances, hidden_states
from model import LanguageModel, ModelConfig
from retrieval import embed, info_nce, match_batch, match_logits
from sample import generate

# defaults: change them by a config file and by --key=value; several values are separated by commas
what = ["train"]              # train, sample, sample_uncached, invert, infonce, infonce_one_query, match
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tokens = B * c.block_size
    return step, tokens, "tokens", 3 * model.estimate_flops() * tokens


def sample_step(c, B, cached=True):
    """One token of each of B samples, in a window that is between half and wholly full."""
    model = LanguageModel(c).to(device).eval()
    tokens = generate(model, [[0] * (c.block_size // 2)] * B, 10 ** 9, top_k=50, cached=cached)

    def step():
        with autocast(device, dtype):
            next(tokens)
    T = 1 if cached else 3 * c.block_size // 4
    return step, B, "tokens", model.estimate_flops(3 * c.block_size // 4) * T * B


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


STEPS = {"train": train_step, "sample": sample_step, "invert": invert_step, "infonce": infonce_step,
         "match": match_step,
         "sample_uncached": lambda c, B: sample_step(c, B, cached=False),
         "infonce_one_query": lambda c, B: infonce_step(c, B, one_query=True)}


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
    rows = []
    for kind, T, B in itertools.product(what, block_sizes, batch_sizes):
        group, steps = [], []
        for name in models:
            torch.manual_seed(seed)
            try:
                c = ModelConfig(**shape | dict(model_type=name, block_size=T))
            except ValueError as e:
                fail(e)
            step, items, unit, flops = STEPS[kind](c, B)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for _ in range(warm_up):
                step()
            memory = torch.cuda.max_memory_allocated() / 2 ** 20 if device.type == "cuda" else None
            steps.append(step)
            group.append(dict(what=kind, model=name, T=T, B=B, unit=unit, items=items, flops=flops,
                              memory_mb=memory))
        times = [[timed(step) for step in steps] for _ in range(repeats)]
        for row, seconds in zip(group, zip(*times)):
            row |= dict(ms=1e3 * median(seconds), per_second=row["items"] / median(seconds),
                        tflops=row["flops"] / median(seconds) / 1e12, ratio=median(a / b for a, b in zip(
                            seconds, (turn[0] for turn in times))))
            row["share_of_peak"] = row["tflops"] * 1e12 / peak
            memory = f"  {row['memory_mb']:8.0f} MB" if row["memory_mb"] else ""
            print(f"{kind:17} {row['model']:16} T {T:5} B {B:3}  {row['ms']:9.2f} ms  "
                  f"{row['per_second']:11,.1f} {row['unit']}/s  {row['tflops']:7.3f} TFLOP/s  "
                  f"{100 * row['share_of_peak']:5.1f} % of peak  {row['ratio']:6.2f} x the time "
                  f"of {models[0]}{memory}", flush=True)
        rows += group
        del step, steps  # or a sampling generator would outlive the interpreter, which complains
    if json_path:
        with replacing(json_path, "w") as f:
            used = dict(device=str(device), dtype=str(dtype), torch=torch.__version__)
            json.dump({"settings": config | used, "peak_flops": peak, "copy_bytes": copy, "rows": rows}, f,
                      indent=1)

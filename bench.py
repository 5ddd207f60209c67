"""
Measure training, sampling, inversion and retrieval beside the most that this machine can do: a large matmul and copy.

    python bench.py --models=mixer,llama,gpt                         # a training step of each
    python bench.py --what=sample,sample_uncached --batch_sizes=1,32 # with a cache, and without
    python bench.py --what=train,invert,infonce --n_embd=128 --n_layer=4 --json_path=speed.json
    python bench.py --models=mixer --block_sizes=256,512,1024,2048   # growth with the length of the window
    python bench.py --what=mix_dense,mix,mix_fft --block_sizes=1024,4096 --batch_sizes=1  # the mixing alone
    python bench.py --models=mixer --profile_path=profile.csv        # where the time of a step goes

Each time is the median of `repeats` steps. The kinds of steps and the models take turns, so that whatever else the
machine does slows all of them alike. FLOPs are counted from the shapes of the matmuls, with dense T x T products
whichever kernel runs (estimate_flops in model.py), except for the kind mix_fft, which counts those of the FFT. Keys of
ModelConfig can be given as well.
"""
import csv
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, log, log2
from statistics import linear_regression, median
from types import SimpleNamespace
from typing import NamedTuple

from configurator import run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lib.device import autocast, compile_model, compile_or_not, dtype_name, measure_peak_flops, setup
from lib.fast import fft_product, fixed_step, masked_product, prepare_for_sampling, use_fixed_steps
from lib.inversion import descend, distances, hidden_states
from lib.retrieval import Encoder, best_passages, embed, info_nce, match_batch, match_logits, pad
from lib.runs import build_config, replacing
from model import Cache, LanguageModel

# defaults: change them with a config file and with --key=value; several values are separated by commas
what = ["train"]              # kinds of steps: train, sample, sample_uncached, ... (all of them: STEPS below)
models = ["mixer", "llama", "hybrid", "gpt"]  # architectures
block_sizes = [512]           # [1, inf) T: tokens in a window
batch_sizes = [4]             # [1, inf) B: windows, samples, prompts, pairs, texts or queries
n_embd = 256                  # [1, inf) C: channels
n_layer = 8                   # [1, inf) blocks
vocab_size = 4096             # [1, inf) V: tokens in the vocabulary
repeats = 15                  # [1, inf) timed steps of each kind and model
warm_up = 3                   # [0, inf) untimed steps before them
device = "auto"               # auto, cpu, cuda, cuda:1 or mps
dtype = "auto"                # auto | float32 | bfloat16 | float16: number format of the matmuls
compile = True                # torch.compile, except for train_matmuls, sample, sample_uncached, encode and search
fast = True                   # faster equivalents of four functions of model.py (lib/fast.py)
json_path = ""                # file for everything
csv_path = ""                 # file for the rows
profile_path = ""             # file for the operations that take most of the time of each step
seed = 1337                   # [0, inf) draws weights and tokens
# end of defaults

N_VECTORS = 10 ** 6  # vectors that are searched
N_TEXTS = 16         # texts to encode, times B


# ------------------------------------------------------------------------------------------------------------
# the kinds of steps. Each takes a ModelConfig c, a number B, and `run` with device, dtype, compile and seed. The
# arguments one_query, one_by_one, padded and whole do what the paper's code does.


class Step(NamedTuple):
    call: Callable
    items: int  # how many `unit`s a call handles
    unit: str
    flops: float
    bytes: int | None = None  # how many a call must read, where reading limits it


def compiled(function, run, *inputs, **options):
    """The function, compiled for such inputs if the settings say so and this machine can."""
    def use(f):
        with autocast(run.device, run.dtype):
            f(*inputs, **options)
    return compile_or_not(function, use, run.compile)


def build(c, run, max_norm=inf):
    """(model, update): update(loss) is a step of AdamW, with gradients clipped to a norm if there is a limit."""
    model = LanguageModel(c).to(run.device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95))

    def update(loss):
        loss.backward()
        if max_norm < inf:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, update


def flops_of_blocks(model, T=None):
    """Forward FLOPs per token in a window of T tokens, without the head."""
    return model.estimate_flops(T) - 2 * model.lm_head.weight.numel()


def train(c, B, run):
    """Forward, backward, clipping and AdamW, as in train.py."""
    model, update = build(c, run, max_norm=1.0)
    idx, targets = torch.randint(c.vocab_size, (2, B, c.block_size), device=run.device)

    def call():
        with autocast(run.device, run.dtype):
            loss = model(idx, targets, return_logits=False)[1]
        update(loss)
    compile_model(model, call, run.compile)
    tokens = B * c.block_size
    return Step(call, tokens, "tokens", 3 * model.estimate_flops() * tokens)


def train_matmuls(c, B, run):
    """The matmuls of a training step, attention among them: the time that it would take if all else were free."""
    matmuls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in function.name() or "attention" in function.name():
                matmuls.append((function, args, kwargs or {}))
            return function(*args, **kwargs or {})
    step = train(c, B, SimpleNamespace(**vars(run) | {"compile": False}))
    with Recorder():
        step.call()

    @torch.no_grad()
    def call():
        for function, args, kwargs in matmuls:
            function(*args, **kwargs)
    return step._replace(call=call)


def sample(c, B, run, cached=True, compile=False):
    """One more token of each of B samples, in a window that is three quarters full or a little more."""
    model = prepare_for_sampling(LanguageModel(c).to(run.device).eval(), run.dtype)
    T = max(1, 3 * c.block_size // 4)
    reread = 0 if cached else T - 1  # tokens that go through the blocks again
    flops = B * (model.estimate_flops(T) + reread * flops_of_blocks(model, T))
    n_bytes = bytes_read(model, B, T, run) if cached else None
    if compile and run.compile:  # as sample.py does it
        use_fixed_steps(model, torch.compile(partial(fixed_step, model)))
    steps = model.generate([[0] * T] * B, 10 ** 9, top_k=50, cached=cached)

    def call():
        with autocast(run.device, run.dtype):
            next(steps)
    return Step(call, B, "tokens", flops, n_bytes)


@torch.no_grad()
def bytes_read(model, B, T, run):
    """Bytes that one more token of B samples must read after T others: the weights, and what a cache holds."""
    cache = Cache(T)
    with autocast(run.device, run.dtype):
        model.run_blocks(model.embed(torch.zeros(1, T, dtype=torch.int64, device=run.device)), cache=cache)
    bytes_per_sample = sum(x.nbytes for x in [*cache.rows.values(), *cache.states.values()])
    n_weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return run.dtype.itemsize * n_weights + B * bytes_per_sample


def invert(c, B, run):
    """One step of descent for B prompts (1 in the paper's code): forward, and backward to the input alone."""
    model = LanguageModel(c).to(run.device).eval().requires_grad_(False)
    x = torch.randn(B, c.block_size, c.n_embd, device=run.device, requires_grad=True)     # (B, T, C)
    target = hidden_states(model, x.detach() + 1, None)                                   # (B, T, C)
    mask = torch.ones(x.shape[:2], device=run.device)                                     # (B, T)
    size = torch.full((B,), 1e-3, device=run.device)                                      # (B,)
    model.run_blocks = compiled(model.run_blocks, run, x, None, None)

    def call():
        with autocast(run.device, run.dtype):
            descend(lambda x: distances(hidden_states(model, x, None), target, mask, "l1"), x, size, steps=1)
    return Step(call, B, "prompts x steps", 2 * flops_of_blocks(model) * B * c.block_size)


def infonce(c, B, run, one_query=False):
    """Embeddings of B pairs of whole windows, the loss between all of them (one_query: of the first query), AdamW."""
    model, update = build(c, run)
    queries, passages = torch.randint(c.vocab_size, (2, B, c.block_size), device=run.device)
    real, n = torch.ones_like(queries, dtype=torch.bool), 1 if one_query else B
    right, first = torch.eye(B, device=run.device).bool(), torch.zeros(1, device=run.device).long()
    encode = compiled(embed, run, model, passages, real)

    def call():
        with autocast(run.device, run.dtype):
            q, p = encode(model, queries[:n], real[:n]), encode(model, passages, real)    # (n, C), (B, C)
        loss = F.cross_entropy(q @ p.T / 0.05, first) if one_query else info_nce(q, p, right, 0.05)
        update(loss)
    return Step(call, n, "pairs", 3 * flops_of_blocks(model) * (n + B) * c.block_size)


def match(c, B, run, one_by_one=False):
    """B sequences of a frozen query and T - 1 passages, drawn together or one by one; the matcher's loss, AdamW."""
    matcher, update = build(replace(c, vocab_size=1, causal=False), run)
    queries, passages = F.normalize(torch.randn(2, 2 ** 14, c.n_embd, device=run.device), dim=-1)
    generator = torch.Generator(run.device).manual_seed(run.seed)
    logits = compiled(match_logits, run, matcher, torch.randn(B, c.block_size, c.n_embd, device=run.device))

    def call():
        rows = torch.randint(len(queries), (B,), generator=generator, device=run.device)
        if one_by_one:
            drawn = [match_batch(queries, passages, row, c.block_size, generator) for row in rows.split(1)]
            x = torch.cat([x for x, _, _ in drawn])                                       # (B, T, C)
            target = torch.cat([target for _, _, target in drawn])                        # (B,)
        else:
            x, _, target = match_batch(queries, passages, rows, c.block_size, generator)
        with autocast(run.device, run.dtype):
            loss = F.cross_entropy(logits(matcher, x).float(), target)
        update(loss)
    return Step(call, B, "samples", 3 * matcher.estimate_flops() * B * c.block_size)


def encode(c, B, run, padded=False):
    """Embeddings of texts of 1 to T tokens, B of similar length at a time, or padded to T as they come.

    FLOPs are those of the tokens alone.
    """
    encoder = Encoder(LanguageModel(c).to(run.device).eval(), None, 0, dtype=run.dtype)
    lengths = torch.randint(1, c.block_size + 1, (N_TEXTS * B,)).tolist()
    ids = [[1] * length for length in lengths]

    @torch.no_grad()
    def call():
        if not padded:
            for part in encoder.parts(ids, B)[0]:
                part()
            return
        for start in range(0, len(ids), B):
            idx, real = pad(ids[start:start + B], c.block_size, "right", 0)               # (B, T) each
            with autocast(run.device, run.dtype):
                embed(encoder.model, idx.to(run.device), real.to(run.device))
    flops = sum(length * flops_of_blocks(encoder.model, length) for length in lengths)
    return Step(call, len(ids), "texts", flops)


def search(c, B, run, whole=False):
    """The 100 nearest of a million vectors to each of B queries, in blocks, or by sorting the whole of its scores."""
    vectors = torch.randn(N_VECTORS, c.n_embd, device=run.device)
    queries = torch.randn(B, c.n_embd, device=run.device)

    def call():
        if whole:
            for query in queries:
                (vectors @ query).sort(descending=True)
        else:
            best_passages(queries, vectors, 100)
    return Step(call, B, "queries", 2 * vectors.numel() * B, vectors.nbytes)


def mix(c, B, run, product, toeplitz=False):
    """The product(W, x) of one masked convolution, forward and backward. W is (T, T), or (T,) of a Toeplitz matrix."""
    T, C = c.block_size, c.n_embd
    W = torch.randn([T] if toeplitz else [T, T], device=run.device, requires_grad=True)
    x = torch.randn(B, T, C, device=run.device, requires_grad=True)
    grad = torch.randn(B, T, C, device=run.device)
    forward = compiled(product, run, W, x)

    def call():
        with autocast(run.device, run.dtype):
            y = forward(W, x)
        y.backward(grad.to(y.dtype))
        W.grad = x.grad = None
    flops = 10 * T * log2(2 * T) if toeplitz else 2 * T * T  # per channel, with an FFT or a dense product
    return Step(call, B * T, "tokens", 3 * flops * B * C)


STEPS = {
    "train": train,
    "train_matmuls": train_matmuls,
    "sample": sample,
    "sample_compiled": partial(sample, compile=True),
    "sample_uncached": partial(sample, cached=False),
    "invert": invert,
    "infonce": infonce,
    "infonce_one_query": partial(infonce, one_query=True),
    "match": match,
    "match_one_by_one": partial(match, one_by_one=True),
    "encode": encode,
    "encode_padded": partial(encode, padded=True),
    "search": search,
    "search_whole": partial(search, whole=True),
    "mix_dense": partial(mix, product=lambda W, x: W.tril() @ x),
    "mix": partial(mix, product=masked_product),
    "mix_fft": partial(mix, product=fft_product, toeplitz=True),
}


# ------------------------------------------------------------------------------------------------------------
# measuring


def timed(call, device):
    """Seconds of a call, until the device is done."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def measure_copy(device):
    """Bytes per second that a large copy reads and writes, the best of 5."""
    size = 2 ** (28 if device.type == "cpu" else 30)  # far more than any cache holds
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / min(timed(lambda: b.copy_(a), device) for _ in range(5))


def profile(call, device, top=15):
    """Rows of the operations that take most of a call's time, means of 5 calls."""
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            timed(call, device)
    events, kind = profiler.key_averages(), "self_cpu_time_total"
    if device.type == "cuda":  # the events of the CPU that start kernels would count their time once more
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        kind = "self_device_time_total"
    events = sorted(events, key=lambda event: getattr(event, kind), reverse=True)
    total = sum(getattr(event, kind) for event in events)
    rows = []
    for event in events[:top]:
        spent = getattr(event, kind)  # microseconds of all 5 calls
        rows.append(dict(operation=event.key, calls=event.count / 5, ms=spent / 5e3, share=spent / total))
    return rows


def prepare_step(kind, name, T, B, run, args):
    """(row without times, call) of a kind of step of a model, or None if it needs too much memory."""
    torch.manual_seed(args.seed)
    c = build_config(vars(args) | {"model_type": name, "block_size": T}, args.vocab_size)
    on_cuda = run.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        step = STEPS[kind](c, B, run)
        for _ in range(args.warm_up):
            step.call()
    except torch.OutOfMemoryError:
        print(f"{kind:17} {name:16} T {T:5} B {B:3}  out of memory", flush=True)
        return None
    memory = (torch.cuda.max_memory_allocated() - before) / 2 ** 20 if on_cuda else None
    row = dict(what=kind, model=name, T=T, B=B, unit=step.unit, items=step.items, flops=step.flops, bytes=step.bytes,
               memory_mb=memory)
    return row, step.call


def measure_group(T, B, run, args, peak, copy):
    """(rows, operations) of all kinds of steps and models at one length and batch size, in turns."""
    torch.compiler.reset()  # after eight shapes it would go on without compiling, and say nothing
    prepared = [prepare_step(kind, name, T, B, run, args) for kind, name in itertools.product(args.what, args.models)]
    prepared = [pair for pair in prepared if pair]
    seconds = [[] for _ in prepared]
    for _ in range(args.repeats):
        for (_, call), times in zip(prepared, seconds):
            call()  # untimed: in use a step follows its own kind, whose data are still in the processor's caches
            times.append(timed(call, run.device))
    operations = []
    for (row, call), times in zip(prepared, seconds):
        typical = median(times)
        row |= dict(ms=1e3 * typical, per_second=row["items"] / typical,
                    ratio=median(a / b for a, b in zip(times, seconds[0])), tflops=row["flops"] / typical / 1e12,
                    share_of_peak=row["flops"] / typical / peak,
                    share_of_copy=row["bytes"] / typical / copy if row["bytes"] else None)
        extra = f"  {100 * row['share_of_copy']:5.1f} % of the copy's GB/s" if row["bytes"] else ""
        extra += f"  {row['memory_mb']:8.0f} MB" if row["memory_mb"] else ""
        print(f"{row['what']:17} {row['model']:16} T {T:5} B {B:3}  {row['ms']:9.2f} ms  {row['per_second']:11,.1f} "
              f"{row['unit']}/s  {row['tflops']:7.3f} TFLOP/s  {100 * row['share_of_peak']:5.1f} % of peak  "
              f"{row['ratio']:6.2f} x the time of the first{extra}", flush=True)
        if args.profile_path:
            place = {key: row[key] for key in ("what", "model", "T", "B")}
            operations += [place | found for found in profile(call, run.device)]
    return [row for row, _ in prepared], operations


def print_growth(rows):
    """Print the exponents of T with which the times grow, where there are three lengths or more."""
    lines = {}
    for row in rows:
        lines.setdefault((row["what"], row["model"], row["B"]), []).append(row)
    for (kind, name, B), line in lines.items():
        if len({row["T"] for row in line}) > 2:
            fit = linear_regression([log(row["T"]) for row in line], [log(row["ms"]) for row in line])
            print(f"{kind:17} {name:16} B {B:3}  time grows as T to the power of {fit.slope:.2f}")


def write_csv(path, header, rows):
    """Write rows, dicts with the same keys, below a comment line with the command and the machine."""
    with replacing(path, "w") as f:
        f.write(f"# python bench.py {' '.join(sys.argv[1:])}; {header}\n")
        writer = csv.DictWriter(f, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})


def main(args):
    """Measure, print and write. Raises ValueError for a kind that does not exist, MemoryError if nothing fits."""
    if unknown := [kind for kind in args.what if kind not in STEPS]:
        raise ValueError(f"what takes {', '.join(STEPS)}, not {', '.join(unknown)}")
    device, dtype = setup(args.device, args.dtype, args.fast)
    run = SimpleNamespace(device=device, dtype=dtype, compile=args.compile, seed=args.seed)
    peak, copy = measure_peak_flops(device, dtype), measure_copy(device)
    at_most = f"a large matmul reaches {peak / 1e12:.3f} TFLOP/s, a large copy {copy / 1e9:.1f} GB/s"
    print(f"{device}, {dtype_name(dtype)}, torch {torch.__version__}: {at_most}")
    if args.profile_path:
        from torch._inductor import config as inductor  # slow to import
        inductor.cpp.enable_kernel_profile = True  # otherwise compiled operations on a CPU have no names
    rows, operations = [], []
    for T, B in itertools.product(args.block_sizes, args.batch_sizes):
        more_rows, more_operations = measure_group(T, B, run, args, peak, copy)
        rows += more_rows
        operations += more_operations
    print_growth(rows)
    if not rows:
        raise MemoryError("nothing of it fits into memory: lower --batch_sizes or --block_sizes")
    if args.json_path:
        used = vars(args) | dict(device=str(device), dtype=str(dtype), torch=torch.__version__)
        with replacing(args.json_path, "w") as f:
            json.dump({"settings": used, "peak_flops": peak, "copy_bytes": copy, "rows": rows}, f, indent=1)
    header = f"{device}, {dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads; {at_most}"
    for path, table in (args.csv_path, rows), (args.profile_path, operations):
        if path:
            write_csv(path, header, table)


if __name__ == "__main__":
    run_script(main, "bench.py", "model.py")

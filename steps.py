"""
The steps that bench.py times: training, sampling, inversion, retrieval, and the product of one convolution.

Each function takes a ModelConfig c, a number B of windows, samples, prompts, pairs or texts, and `run`, which
has device, dtype, compile and seed; it returns a Step. "The reference way" is how the paper's code does it.
"""
from collections.abc import Callable
from dataclasses import replace
from math import log2
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common import autocast, clip_gradients
from fast import entries_in_blocks, toeplitz_product, triangular_product
from inversion import descend, distances, hidden_states
from model import Attention, LanguageModel, MaskedConv
from retrieval import Encoder, best_passages, embed, info_nce, match_batch, match_logits, pad
from sample import generate, prepare_for_sampling

N_VECTORS = 10 ** 6  # that are searched
N_TEXTS = 16         # texts to encode, times B


class Step(NamedTuple):
    call: Callable      # does the step once
    items: int          # how many `unit`s that is
    unit: str
    flops: float        # of its matmuls, by their shapes
    bytes: int | None = None  # that it must read, where that is what limits it


def compiled(function, run):
    return torch.compile(function) if run.compile else function


def build(c, run):
    """A model and its optimizer."""
    model = LanguageModel(c).to(run.device)
    return model, model.configure_optimizers(0.1, 1e-3, (0.9, 0.95))


def train(c, B, run):
    """Forward, backward, clipping and AdamW, as in train.py."""
    model, optimizer = build(c, run)
    forward = compiled(model, run)
    idx = torch.randint(c.vocab_size, (2, B, c.block_size), device=run.device)

    def call():
        with autocast(run.device, run.dtype):
            loss = forward(*idx, return_logits=False)[1]
        loss.backward()
        clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tokens = B * c.block_size
    return Step(call, tokens, "tokens", 3 * model.estimate_flops() * tokens)


def train_matmuls(c, B, run):
    """The matmuls of that step, attention among them, and nothing else: its time if all else were free."""
    matmuls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in function.name() or "scaled_dot_product" in function.name():
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
    """One token of each of B samples, in a window that is three quarters full or a little more."""
    model = prepare_for_sampling(LanguageModel(c).to(run.device).eval(), run.dtype)
    if compile and run.compile:  # as sample.py does it
        model.run_blocks = torch.compile(model.run_blocks, dynamic=True)
    T = max(1, 3 * c.block_size // 4)
    tokens = generate(model, [[0] * T] * B, 10 ** 9, top_k=50, cached=cached)

    def call():
        with autocast(run.device, run.dtype):
            next(tokens)
    flops = B * (model.estimate_flops(T) + (0 if cached else (T - 1) * flops_of_blocks(model, T)))
    return Step(call, B, "tokens", flops, bytes_read(model, B, T, run.dtype) if cached else None)


def bytes_read(model, B, T, dtype):
    """Bytes that one more token of B samples must read, behind T others: weights, and what is cached."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attended = sum(2 * m.c_proj.in_features for m in model.modules() if isinstance(m, Attention))
    mixed = sum(m.width for m in model.modules() if isinstance(m, MaskedConv))
    return dtype.itemsize * (linear + B * T * (attended + mixed))


def flops_of_blocks(model, T=None):
    """Forward FLOPs a token in a window of T tokens, without the head."""
    return model.estimate_flops(T) - 2 * model.lm_head.weight.numel()


def invert(c, B, run):
    """One step of descent for B prompts (the reference way: 1): forward, and backward to the input alone."""
    model = LanguageModel(c).to(run.device).eval().requires_grad_(False)
    model.run_blocks = compiled(model.run_blocks, run)
    x = torch.randn(B, c.block_size, c.n_embd, device=run.device)
    target, mask = hidden_states(model, x + 1, None), torch.ones(x.shape[:2], device=run.device)

    def call():
        with autocast(run.device, run.dtype):
            descend(lambda x: distances(hidden_states(model, x, None), target, mask, "l1"), x,
                    torch.full((B,), 1e-3, device=run.device), steps=1)
    return Step(call, B, "prompts x steps", 2 * flops_of_blocks(model) * B * c.block_size)


def infonce(c, B, run, one_query=False):
    """Embeddings of B pairs of texts as long as the window, the loss between all of them, AdamW. one_query:
    only the first query, among all passages, the reference way."""
    model, optimizer = build(c, run)
    encode = compiled(embed, run)
    idx = torch.randint(c.vocab_size, (2, B, c.block_size), device=run.device)
    real, ids = torch.ones_like(idx[0], dtype=torch.bool), torch.arange(B, device=run.device)
    n = 1 if one_query else B

    def call():
        with autocast(run.device, run.dtype):
            q, p = encode(model, idx[0][:n], real[:n]), encode(model, idx[1], real)
        loss = F.cross_entropy(q @ p.T / 0.05, ids[:1]) if one_query else info_nce(q, p, ids, 0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Step(call, n, "pairs", 3 * flops_of_blocks(model) * (n + B) * c.block_size)


def match(c, B, run, one_by_one=False):
    """B sequences of a frozen query and T - 1 passages, drawn on the device; the matcher's loss, AdamW.
    one_by_one: each sequence is put together by itself, the reference way."""
    matcher, optimizer = build(replace(c, vocab_size=1, causal=False), run)
    logits = compiled(match_logits, run)
    queries, passages = F.normalize(torch.randn(2, 2 ** 14, c.n_embd, device=run.device), dim=-1)
    generator = torch.Generator(run.device).manual_seed(run.seed)

    def draw(rows):
        return match_batch(queries, passages, rows, c.block_size, generator)

    def call():
        rows = torch.randint(len(queries), (B,), generator=generator, device=run.device)
        x, target = map(torch.cat, zip(*map(draw, rows.split(1)))) if one_by_one else draw(rows)
        with autocast(run.device, run.dtype):
            loss = F.cross_entropy(logits(matcher, x).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Step(call, B, "samples", 3 * matcher.estimate_flops() * B * c.block_size)


def encode(c, B, run, padded=False):
    """Embeddings of texts of 1 to T tokens, B at a time, those of similar length together. padded: as they
    come, each padded to the whole window, the reference way. FLOPs are those of the tokens alone."""
    encoder = Encoder(LanguageModel(c).to(run.device).eval(), None, 0, dtype=run.dtype)
    lengths = torch.randint(1, c.block_size + 1, (N_TEXTS * B,)).tolist()
    ids = [[1] * length for length in lengths]

    @torch.no_grad()
    def call():
        if not padded:
            return [part() for part in encoder.parts(ids, B)[0]]
        for start in range(0, len(ids), B):
            with autocast(run.device, run.dtype):
                idx, real = pad(ids[start:start + B], c.block_size, "right", 0)
                embed(encoder.model, idx.to(run.device), real.to(run.device))
    return Step(call, len(ids), "texts", sum(n * flops_of_blocks(encoder.model, n) for n in lengths))


def search(c, B, run, whole=False):
    """The 100 nearest of a million vectors to each of B queries, in blocks of memory. whole: one query at a
    time, all scores of which are sorted."""
    vectors = torch.randn(N_VECTORS, c.n_embd, device=run.device)
    queries = torch.randn(B, c.n_embd, device=run.device)

    def call():
        if not whole:
            return best_passages(queries, vectors, 100)
        for query in queries:
            (vectors @ query).sort(descending=True)
    return Step(call, B, "queries", 2 * vectors.numel() * B, 4 * vectors.numel())


def mix(c, B, run, product, flops, toeplitz=False):
    """The product of one masked convolution, forward and backward, by one of the ways to do it."""
    T, C = c.block_size, c.n_embd
    W = torch.randn(1, T, *([] if toeplitz else [T]), device=run.device, requires_grad=True)  # (1, T[, T])
    x, grad = (torch.randn(B, T, C, device=run.device) for _ in range(2))
    x.requires_grad_()
    forward = compiled(product, run)

    def call():
        with autocast(run.device, run.dtype):
            y = forward(W, x)
        y.backward(grad.to(y.dtype))
        W.grad = x.grad = None
    return Step(call, B * T, "tokens", 3 * flops(T) * B * C)


STEPS = {
    "train": train,
    "train_matmuls": train_matmuls,
    "sample": sample,
    "sample_compiled": lambda *a: sample(*a, compile=True),
    "sample_uncached": lambda *a: sample(*a, cached=False),
    "invert": invert,
    "infonce": infonce,
    "infonce_one_query": lambda *a: infonce(*a, one_query=True),
    "match": match,
    "match_one_by_one": lambda *a: match(*a, one_by_one=True),
    "encode": encode,
    "encode_padded": lambda *a: encode(*a, padded=True),
    "search": search,
    "search_whole": lambda *a: search(*a, whole=True),
    "mix_dense": lambda *a: mix(*a, lambda W, x: W[0].tril() @ x, lambda T: 2 * T * T),
    "mix": lambda *a: mix(*a, lambda W, x: triangular_product(W[0], x), lambda T: 2 * entries_in_blocks(T)),
    "mix_fft": lambda *a: mix(*a, lambda W, x: toeplitz_product(W, [x]), lambda T: 2 * 5 * T * log2(2 * T),
                              toeplitz=True),
}

"""
The methods of invert.py: inputs that give a model's hidden states, by descent and by trying tokens, and how
many of the true tokens they hold (arXiv 2409.01482, on input representation).

Shapes: B prompts, T tokens, C channels, V vocabulary. Prompts of different lengths are padded with id -1.
"""
import math

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import Cache


def matched_positions(idx, last_n=0):
    """Mask (B, T) of the last last_n tokens of each prompt, of all for 0; pads (id -1) are never in it."""
    real = idx >= 0
    from_end = real.flip(1).cumsum(1).flip(1)  # 1 at the last token
    return real & (from_end <= (last_n or idx.size(1)))


def hidden_states(model, x, layer, cache=None):
    """Embeddings (B, T, C) -> hidden states after `layer` blocks, or, for "norm", after the final norm; a
    model without one is given one without weights."""
    h = model.run_blocks(x, None if layer == "norm" else layer, cache)
    if layer != "norm":
        return h
    return F.layer_norm(h, h.shape[-1:]) if isinstance(model.final_norm, nn.Identity) else model.final_norm(h)


def distances(a, b, mask, metric):
    """L1 norm, L2 norm or 1 - cosine between a and b (B, T, C), summed over mask (B, T), as (B,)."""
    if metric == "cosine":
        return ((1 - F.cosine_similarity(a, b, dim=-1)) * mask).sum(dim=1)
    return (torch.linalg.vector_norm(a - b, ord=int(metric[1]), dim=-1) * mask).sum(dim=1)


def random_start(n_prompts, T, C, seed):
    """N(0, 1), (n_prompts, T, C); each prompt has its own generator and depends on no other."""
    generators = [torch.Generator().manual_seed(10_000 * seed + i) for i in range(n_prompts)]
    return torch.stack([torch.randn(T, C, generator=generator) for generator in generators])


def descend(loss, x, size, steps, adam=False):
    """x (rows, T, C) after so many steps down loss(x) (rows,): x <- x - size * gradient, where size (rows,)
    falls linearly to a tenth, as in the paper; with `adam` the direction is Adam's (arXiv 1412.6980)."""
    mean = square = 0.0
    for step in range(steps):
        direction, = torch.autograd.grad(loss(x.requires_grad_()).sum(), x)
        if adam:
            mean, square = 0.9 * mean + 0.1 * direction, 0.999 * square + 0.001 * direction ** 2
            root = (square / (1 - 0.999 ** (step + 1))).sqrt()
            direction = mean / (1 - 0.9 ** (step + 1)) / (root + 1e-12)
        x = x.detach() - (1 - 0.9 * step / max(steps - 1, 1)) * size[:, None, None] * direction
    return x


def invert(model, idx, start, method="gd", lrs=(0.02,), steps=500, metric="l1", layer=None, last_n=0,
           batch_size=64):
    """Inputs whose hidden states come near those of the tokens, (n_lr, B, T, C).

    idx (B, T): ids, -1 for pads. start (B, T, C): N(0, 1); "adam" takes it and the learning rates times the
    embedding's standard deviation, "gd", the paper's, as they are. Each prompt at each learning rate is a row
    of the batch with a loss of its own: its gradient, its steps and its end are those that it has alone.
    """
    B, scale = idx.size(0), model.wte.weight.std().item() if method == "adam" else 1.0
    mask, sizes, inputs = matched_positions(idx, last_n), scale * torch.tensor(lrs, device=idx.device), []
    with torch.no_grad():
        target = hidden_states(model, model.embed(idx.clamp(min=0)), layer)               # (B, T, C)
    for rows in torch.arange(len(lrs) * B, device=idx.device).split(batch_size):
        b = rows % B
        def loss(x, b=b):
            return distances(hidden_states(model, x, layer), target[b], mask[b], metric)
        inputs.append(descend(loss, scale * start[b], sizes[rows // B], steps, method == "adam"))
    return torch.cat(inputs).view(len(lrs), *start.shape)


def decode(x, wte, pinv):
    """x (T, C) -> tokens: the likeliest by pseudo-inverse, as in the paper, (T, 5), and that of the nearest
    embedding, (T, 1). wte (V, C), pinv (C, V)."""
    return (x @ pinv).topk(min(5, len(wte))).indices, torch.cdist(x, wte).argmin(dim=1, keepdim=True)


def hamming(found, idx, counted):
    """Share of counted positions (B, T) whose token in idx is not among the n found (B, T, n), as (B,)."""
    missed = (found != idx[..., None]).all(dim=-1)
    return (missed & counted).sum(dim=1) / counted.sum(dim=1)


def recover_exactly(model, ids, layer=None, tolerance=1e-4, batch_size=256, steps=20):
    """Tokens ids (T,) from all their hidden states (the idea of arXiv 2510.15511): the tokens found, and how
    many candidates were tried for each. For causal models.

    The state at t depends on tokens 0 .. t only: when those before t are known, of V candidates the right one
    gives it exactly. A short descent on the embedding at t says where to look: candidates are tried in
    batches, the nearest first, until one fits within the tolerance (times the state's norm).
    """
    wte, cache, found, tried = model.wte.weight.detach(), Cache(model.config.block_size), [], []
    with torch.no_grad():
        target = hidden_states(model, model.embed(ids[None]), layer)[0]                   # (T, C)
    for h in target:
        def errors(x, h=h):
            """Embeddings (n, 1, C) of a next token -> relative distance of its hidden state, (n,)"""
            branch = Cache(cache.length + 1)
            branch.length = cache.length
            branch.rows = {key: rows[..., :branch.block_size, :].repeat_interleave(len(x), dim=0)
                           for key, rows in cache.rows.items()}
            return (hidden_states(model, x, layer, branch)[:, 0] - h).norm(dim=1) / h.norm()

        # from some token, not from 0, where the norms make every derivative huge
        guess = descend(errors, wte[:1, None], 0.4 * wte.std()[None], steps, adam=True)[0]     # (1, C)
        best_error, count = math.inf, 0
        with torch.no_grad():
            for candidates in torch.cdist(guess, wte)[0].argsort().split(batch_size):
                error, rank = errors(wte[candidates, None]).min(dim=0)
                if error < best_error:
                    best, best_error = candidates[rank], error
                if error <= tolerance:
                    count += rank.item() + 1
                    break
                count += len(candidates)
            hidden_states(model, wte[best][None, None], layer, cache)  # joins the known tokens
        found.append(best.item())
        tried.append(count)
    return found, tried

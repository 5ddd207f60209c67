"""
Inversion: finding the tokens behind a model's hidden states, and counting how many are right (paper, section 3).

`invert` descends from noise; `recover_exactly` tries tokens. Letters in shapes: B prompts, T tokens in a prompt,
C channels, V tokens in the vocabulary. Shorter prompts are padded at their end with the id -1.
"""
import math

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import Cache


def matched_positions(idx, last_n=0):
    """The mask (B, T) of the last last_n tokens of each prompt idx (B, T), or of all for 0; pads are never in it."""
    real = idx >= 0
    from_end = real.flip(1).cumsum(1).flip(1)  # 1 at the last token
    return real & (from_end <= (last_n or idx.size(1)))


def hidden_states(model, x, layer=None, cache=None):
    """Embeddings x (B, T, C) -> hidden states (B, T, C) after `layer` blocks (None: all blocks).

    The layer "norm" is the final norm after all blocks; a model without one gets a norm without weights.
    """
    if layer != "norm":
        return model.run_blocks(x, layer, cache)
    h = model.run_blocks(x, None, cache)
    if isinstance(model.final_norm, nn.Identity):
        return F.layer_norm(h, h.shape[-1:])
    return model.final_norm(h)


def distances(a, b, mask, metric):
    """Distances between a and b (B, T, C), summed over the mask (B, T) -> (B,). metric: l1, l2 or cosine."""
    if metric == "cosine":
        apart = 1 - F.cosine_similarity(a, b, dim=-1)                                     # (B, T)
    else:
        apart = torch.linalg.vector_norm(a - b, ord={"l1": 1, "l2": 2}[metric], dim=-1)
    return (apart * mask).sum(dim=1)


def random_start(n_prompts, T, C, seed):
    """Draw N(0, 1), (n_prompts, T, C), from one generator per prompt, so that no prompt depends on the others."""
    generators = [torch.Generator().manual_seed(10_000 * seed + i) for i in range(n_prompts)]
    return torch.stack([torch.randn(T, C, generator=generator) for generator in generators])


def descend(loss, x, size, steps, adam=False):
    """x (rows, T, C) after `steps` steps x <- x - size * direction down the loss, a function x -> (rows,).

    As in the paper, the direction is the gradient, and the step size (rows,) falls linearly to a tenth. With `adam`
    the direction is Adam's (arXiv 1412.6980).
    """
    mean = square = 0.0
    for step in range(steps):
        direction, = torch.autograd.grad(loss(x.requires_grad_()).sum(), x)
        if adam:
            mean = 0.9 * mean + 0.1 * direction
            square = 0.999 * square + 0.001 * direction ** 2
            root = (square / (1 - 0.999 ** (step + 1))).sqrt()
            direction = mean / (1 - 0.9 ** (step + 1)) / (root + 1e-12)
        falling = 1 - 0.9 * step / max(steps - 1, 1)
        x = x.detach() - falling * size[:, None, None] * direction
    return x


def invert(model, idx, start, method="gd", lrs=(0.02,), steps=500, metric="l1", layer=None, last_n=0, batch_size=64):
    """Inputs (n_lr, B, T, C) whose hidden states come near to those of the tokens idx (B, T), one per step size.

    start (B, T, C) is N(0, 1). "gd", as in the paper, takes start and step sizes as they are; "adam" scales both by
    the standard deviation of the embedding. batch_size rows, each one prompt at one step size, descend together,
    with the same steps as alone.
    """
    B, scale = idx.size(0), model.wte.weight.std().item() if method == "adam" else 1.0
    sizes = scale * torch.tensor(lrs, device=idx.device)                                  # (n_lr,)
    mask = matched_positions(idx, last_n)                                                 # (B, T)
    with torch.no_grad():
        target = hidden_states(model, model.embed(idx.clamp(min=0)), layer)               # (B, T, C)
    found = []
    for rows in torch.arange(len(lrs) * B, device=idx.device).split(batch_size):
        prompt = rows % B

        def loss(x, prompt=prompt):
            return distances(hidden_states(model, x, layer), target[prompt], mask[prompt], metric)
        found.append(descend(loss, scale * start[prompt], sizes[rows // B], steps, method == "adam"))
    return torch.cat(found).view(len(lrs), *start.shape)


def decode(x, wte, pinv):
    """Inputs x (T, C) -> the 5 likeliest tokens by pinv (C, V), wte's pseudo-inverse, (T, 5); the nearest, (T, 1)."""
    likeliest = (x @ pinv).topk(min(5, len(wte))).indices
    return likeliest, torch.cdist(x, wte).argmin(dim=1, keepdim=True)


def hamming(found, idx, counted):
    """The share of counted positions (B, T) whose token idx (B, T) is not among the n found (B, T, n) -> (B,)."""
    missed = (found != idx[..., None]).all(dim=-1)
    return (missed & counted).sum(dim=1) / counted.sum(dim=1)


def repeat(cache, n):
    """Copy a Cache for n texts that each continue it by one token."""
    copy = Cache(cache.length + 1)
    copy.length = cache.length
    for key, rows in cache.rows.items():
        copy.rows[key] = rows[..., :copy.block_size, :].repeat_interleave(n, dim=0)
    for key, state in cache.states.items():
        copy.states[key] = state.repeat_interleave(n, dim=0)
    return copy


def recover_exactly(model, ids, layer=None, tolerance=1e-4, batch_size=256, steps=20):
    """Find tokens ids (T,) from all their hidden states, for causal models (the idea of arXiv 2510.15511).

    Returns the tokens found, and how many candidates were tried for each. The state at t depends on tokens 0 .. t
    only, so once the tokens before t are known, the right one of V candidates gives the state exactly. Candidates
    are tried in batches, those nearest to the end of a short descent first, until the error is within the tolerance.
    """
    wte = model.wte.weight.detach()                                                       # (V, C)
    known, tokens, tried = Cache(model.config.block_size), [], []
    with torch.no_grad():
        target = hidden_states(model, model.embed(ids[None]), layer)[0]                   # (T, C)
    for h in target:
        def errors(x, h=h):
            """Embeddings (n, 1, C) of the next token -> the relative errors of their hidden states, (n,)."""
            states = hidden_states(model, x, layer, repeat(known, len(x)))[:, 0]           # (n, C)
            return (states - h).norm(dim=1) / h.norm()

        # Descent starts at some token. At 0 the norms make every derivative huge.
        guess = descend(errors, wte[:1, None], 0.4 * wte.std()[None], steps, adam=True)[0]     # (1, C)
        order = torch.cdist(guess, wte)[0].argsort()                                       # (V,)
        best, best_error, count = order[0], math.inf, 0  # the first one, if all errors are nan
        with torch.no_grad():
            for candidates in order.split(batch_size):
                error, rank = errors(wte[candidates, None]).min(dim=0)
                if error < best_error:
                    best, best_error = candidates[rank], error
                if error <= tolerance:
                    count += rank.item() + 1
                    break
                count += len(candidates)
            hidden_states(model, wte[best][None, None], layer, known)  # adds it to the known tokens
        tokens.append(best.item())
        tried.append(count)
    return tokens, tried

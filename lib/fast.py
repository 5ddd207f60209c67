"""
Faster equivalents of functions of model.py: the same results (tests/test_fast.py) in less time or memory.

`use_fast_functions()` puts four of them in place, for all models. `prepare_for_sampling` and `use_fixed_steps` change
the forward of the layers of one model. results/speed.md says what each is worth. Letters in shapes: B batch, T and S
tokens, C channels, V vocabulary, N rows.
"""
import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

import model

LOGITS = 2 ** 21    # logits computed at once, about: they stay in the cache of a CPU core
PARTS = 16          # most parts in which a CPU computes the logits
PARTS_ON_GPU = 4    # most parts on a GPU, which wants large matmuls and has no such cache
BLOCKS_FROM = 256   # shortest window in which a CPU gains by skipping the zeros above the diagonal
BLOCKS_FROM_ON_GPU = 1024  # shortest such window on a GPU; in shorter ones, moving the data takes as long
BLOCK_ROWS = 128    # fewest rows in a block of the matrix: thinner blocks cost more than they save
BLOCKS = 8          # most blocks of a matrix: more save little, and each is compiled
FFT_FROM = 4096     # shortest window in which a Toeplitz product is faster with an FFT
FEW_ROWS = 64       # most rows with which a CPU multiplies faster by parts of the weights

PLAIN = {name: getattr(model, name)
         for name in ("masked_product", "toeplitz_product", "attention", "linear_cross_entropy")}


def use_fast_functions(on=True):
    """Put the functions of this file in place of those of the same name in model.py, or put those back."""
    for name, plain in PLAIN.items():
        setattr(model, name, globals()[name] if on else plain)


def matmul_dtype(x):
    """The dtype in which a matmul of x runs here: autocast's, if it is on, or that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def refuse_second_derivatives():
    """Raise RuntimeError in a backward pass with create_graph=True: its second derivatives would be wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError("lib/fast.py has first derivatives only: call use_fast_functions(False), or --fast=false")


# ------------------------------------------------------------------------------------------------------------
# head and loss


def linear_cross_entropy(x, weight, targets):
    """The mean loss, in nats per token, of the logits x @ weight.T; targets of -1 are ignored.

    x (..., C), weight (V, C), targets (...) int64. Under autocast the matmuls run in its dtype, the rest in float32.
    """
    x, targets = x.flatten(0, -2), targets.flatten()
    if torch.is_grad_enabled():
        return LinearCrossEntropy.apply(x, weight, targets)
    total, W, rows = 0.0, weight.to(matmul_dtype(x)), rows_per_part(x, weight)
    for x_part, target in zip(x.split(rows), targets.split(rows)):
        total += F.cross_entropy(F.linear(x_part, W).float(), target, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum()


def rows_per_part(x, W):
    """How many rows of x (N, C) meet W (V, C) at once: parts of one size, as each size is compiled."""
    n_parts = min(-(-len(x) * len(W) // LOGITS), PARTS if x.is_cpu else PARTS_ON_GPU)
    return -(-len(x) // n_parts)


def loss_of_part(x, W, target, W_grad):
    """Summed loss of rows x (N, C), W (V, C), target (N, 1), and its gradient for x; adds that for W to W_grad."""
    logits, counts = (x @ W.T).float(), target >= 0                                       # (N, V), (N, 1)
    highest = logits.amax(dim=1, keepdim=True)                                            # (N, 1)
    exp = (logits - highest).exp()  # serves the loss and its gradient
    total = exp.sum(dim=1, keepdim=True)                                                  # (N, 1)
    loss = ((highest + total.log() - logits.gather(1, target.clamp(min=0))) * counts).sum()
    ids = torch.arange(len(W), device=x.device)                                           # (V,)
    grad = (exp * (counts / total) - ((target == ids) * counts).float()).to(x.dtype)      # (N, V)
    W_grad += grad.T @ x                                                                  # (V, C)
    return loss, grad @ W


class LinearCrossEntropy(torch.autograd.Function):
    """The loss and its gradient without the logits of all tokens, the largest tensor of a training step by far.

    A few rows of logits at a time are computed, turned into their gradient, and forgotten. With
    p = softmax(x W^T): loss = -mean log p[target], and d loss / d logits = (p - one_hot(target)) / N.
    """

    @staticmethod
    def forward(ctx, x, weight, targets):
        dtype = matmul_dtype(x)
        W = weight.to(dtype)                                                              # (V, C)
        rows = rows_per_part(x, W)
        loss, x_grads, W_grad = 0.0, [], torch.zeros_like(W, dtype=torch.float32)
        for x_part, target in zip(x.to(dtype).split(rows), targets[:, None].split(rows)):
            part_loss, x_grad = loss_of_part(x_part, W, target, W_grad)
            loss += part_loss
            x_grads.append(x_grad)
        n = (targets >= 0).sum()
        ctx.save_for_backward(torch.cat(x_grads), W_grad, n)
        return loss / n

    @staticmethod
    def backward(ctx, loss_grad):
        refuse_second_derivatives()
        x_grad, W_grad, n = ctx.saved_tensors
        scale = loss_grad / n  # in float32, and only now: in float16 gradients divided by n would vanish
        return x_grad.float() * scale, W_grad * scale, None


# ------------------------------------------------------------------------------------------------------------
# mixing of tokens


def masked_product(W, x, start=0):
    """W.tril(start) @ x; in long windows without most of the multiplications by zero.

    Each block of rows meets only the columns up to its last row: (n + 1) / 2n of the work for n blocks.
    """
    B, T, C = x.shape
    if start or T < (BLOCKS_FROM_ON_GPU if x.is_cuda else BLOCKS_FROM):
        if x.is_cuda:  # one matrix for the whole batch would need transposed copies of x and of the result
            return torch.bmm(W.tril(start).expand(B, -1, -1), x)
        return PLAIN["masked_product"](W, x, start)
    dtype = matmul_dtype(x)
    columns = x.to(dtype).transpose(0, 1).reshape(T, B * C)
    return TriangularProduct.apply(W.to(dtype), columns).view(T, B, C).transpose(0, 1)


def row_blocks(T):
    """[(first row, the one after the last)] of the blocks of T rows."""
    rows = max(BLOCK_ROWS, -(-T // BLOCKS))
    return [(i, min(i + rows, T)) for i in range(0, T, rows)]


class TriangularProduct(torch.autograd.Function):
    """W.tril() @ x, W (T, T), x (T, N) -> (T, N)."""

    @staticmethod
    def forward(ctx, W, x):
        W = W.tril()
        ctx.save_for_backward(W, x)
        return torch.cat([W[i:j, :j] @ x[:j] for i, j in row_blocks(len(W))])

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivatives()
        W, x = ctx.saved_tensors
        T = len(W)
        x_grad = torch.cat([W[i:, i:j].T @ grad[i:] for i, j in row_blocks(T)])           # (T, N)
        W_grad = torch.cat([F.pad(grad[i:j] @ x[:j].T, (0, T - j)) for i, j in row_blocks(T)])  # (T, T)
        return W_grad.tril(), x_grad


def toeplitz_product(w, x, start=0):
    """model.toeplitz_product with a window that slides over w; from FFT_FROM tokens on with an FFT, O(T log T)."""
    S = len(w)
    if S >= FFT_FROM and not start:
        return fft_product(w, x)
    padded = F.pad(w.flip(0), (0, S - 1))  # row t is [w[t], ..., w[0], 0, ...]: a window on this, (2S - 1,)
    return padded.unfold(0, S, 1)[:S - start].flip(0) @ x


def fft_product(w, x):
    """model.toeplitz_product of all rows with an FFT, however short the window: w (T,), x (B, T, C) -> (B, T, C)."""
    n = 2 * len(w)  # padded, so that the circular convolution of the FFT does not wrap around
    spectrum = torch.fft.rfft(w.float(), n)[:, None] * torch.fft.rfft(x.float(), n, dim=1)
    return torch.fft.irfft(spectrum, n, dim=1)[:, :len(w)].type_as(x)


def attention(q, k, v, causal=True, dropout=0.0):
    """model.attention; on a CPU in blocks of queries, as PyTorch's fused kernel is slow there."""
    is_causal_window = causal and q.size(-2) == k.size(-2)
    if q.is_cpu and is_causal_window and not dropout:
        return attention_in_blocks(q.contiguous(), k.contiguous(), v.contiguous())[0]
    return PLAIN["attention"](q, k, v, causal, dropout)


@torch.library.custom_op("masked_mixers::attention_in_blocks", mutates_args=())
def attention_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Causal attention and its weights; each block of queries meets only the keys up to its last query.

    q, k, v (B, nh, T, hs) -> (B, nh, T, hs) and per block (B, nh, rows, keys). It is an operator, which the compiler
    leaves as it is: compiled block by block it takes longer to compile and is no faster.
    """
    blocks, outputs, weights = row_blocks(q.size(-2)), [], []
    q = q * q.size(-1) ** -0.5
    for i, j in blocks:
        scores = q[:, :, i:j] @ k[:, :, :j].mT                                            # (B, nh, j - i, j)
        scores[..., i:] += torch.full((j - i, j - i), -math.inf, dtype=q.dtype).triu(1)
        weights.append(scores.softmax(dim=-1))
        outputs.append(weights[-1] @ v[:, :, :j])
    return torch.cat(outputs, dim=2), weights


@attention_in_blocks.register_fake
def _(q, k, v):
    return torch.empty_like(q), [q.new_empty(*q.shape[:2], j - i, j) for i, j in row_blocks(q.size(-2))]


@torch.library.custom_op("masked_mixers::attention_in_blocks_backward", mutates_args=())
def attention_in_blocks_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor,
                                 weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients for q, k and v, from that of the result."""
    scale, q_grads = q.size(-1) ** -0.5, []
    k_grad, v_grad = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    for (i, j), p in zip(row_blocks(q.size(-2)), weights):
        part = grad[:, :, i:j]                                                            # (B, nh, j - i, hs)
        p_grad = part @ v[:, :, :j].mT                                                    # (B, nh, j - i, j)
        scores_grad = torch._softmax_backward_data(p_grad, p, -1, p.dtype)                # (B, nh, j - i, j)
        q_grads.append(scores_grad @ k[:, :, :j])
        k_grad[:, :, :j] += scores_grad.mT @ q[:, :, i:j]
        v_grad[:, :, :j] += p.mT @ part
    return torch.cat(q_grads, dim=2) * scale, (k_grad * scale).to(k.dtype), v_grad.to(v.dtype)


@attention_in_blocks_backward.register_fake
def _(grad, q, k, v, weights):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def keep_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1])


def backward_of_attention(ctx, grad, _):
    refuse_second_derivatives()
    q, k, v, *weights = ctx.saved_tensors
    return attention_in_blocks_backward(grad.contiguous(), q, k, v, weights)


attention_in_blocks.register_autograd(backward_of_attention, setup_context=keep_for_backward)


# ------------------------------------------------------------------------------------------------------------
# few rows: sampling, search


def linear_of_few_rows(x, weight, bias=None):
    """F.linear: x (..., C), weight (N, C), bias (N,) -> (..., N), with parts of the weights where that is faster.

    On a CPU, a product of one row, or of a few, with a float32 matrix runs on a single core. As a batch of
    products with parts of the matrix it runs on all.
    """
    (N, C), parts = weight.shape, math.gcd(len(weight), 8)
    if not x.is_cpu or x.numel() > FEW_ROWS * C or matmul_dtype(x) != torch.float32:
        return F.linear(x, weight, bias)
    W, rows = weight.view(parts, -1, C), x.reshape(-1, C)                   # (parts, N/parts, C), (rows, C)
    if len(rows) <= 4 and not torch.compiler.is_compiling():  # this form reads the weights twice as fast
        y = (W @ rows.T.expand(parts, C, -1)).view(N, -1).T                               # (rows, N)
    else:
        y = (rows.expand(parts, -1, C) @ W.mT).transpose(0, 1)                    # (rows, parts, N/parts)
    y = y.reshape(*x.shape[:-1], N)
    return y if bias is None else y + bias


@torch.no_grad()
def prepare_for_sampling(language_model, dtype):
    """The same model, changed for inference: faster for few rows, weights in dtype, and CUDA graphs on CUDA.

    A head that is tied to the embedding keeps its dtype. Autocast would cast the weights too, but anew for each token,
    which takes longer than the matmuls of a token.
    """
    for module in language_model.modules():
        if isinstance(module, (nn.Linear, model.MaskedConv)) and module.weight is not language_model.wte.weight:
            module.weight.data = module.weight.to(dtype)
        if isinstance(module, nn.Linear):
            module.forward = partial(linear_of_few_rows, weight=module.weight, bias=module.bias)
    if language_model.wte.weight.is_cuda:
        use_fixed_steps(language_model)
    return language_model


# ------------------------------------------------------------------------------------------------------------
# sampling with steps of fixed shape: one CUDA graph, or one compilation, serves all positions. A step reads all
# block_size rows of the cache and masks those behind its token; on a GPU this costs less than a hundred launches.


class FixedCache(NamedTuple):
    rows: dict              # those of a Cache
    position: torch.Tensor  # (1,) int64: where the one token stands that a step reads

    def append(self, key, x):
        """Put x (B, ..., 1, C) at the position, and return all rows, (B, ..., block_size, C)."""
        return self.rows[key].index_copy_(-2, self.position, x)


def use_fixed_steps(language_model, step=None):
    """Have run_blocks read a token that follows a cache with step(x, position, rows): `fixed_step`, or that compiled.

    It replaces the forward of the modules in FIXED_FORMS, and returns True. It returns False, and changes nothing, if
    a module that mixes tokens is new, and so has no fixed form here.
    """
    mixing = [module for block in language_model.blocks for group in block.mix for module in group]
    if not language_model.config.causal or {type(module) for module in mixing} - {model.Mixer, model.Attention}:
        return False
    for module in language_model.modules():
        if type(module) in FIXED_FORMS:
            module.forward = partial(FIXED_FORMS[type(module)], module)
    step = step or partial(fixed_step, language_model)
    language_model.run_blocks = partial(run_blocks_by_steps, language_model, step)
    return True


def run_blocks_by_steps(language_model, step, x, n_layer=None, cache=None):
    """LanguageModel.run_blocks; one token (B, 1, C) inside the window, behind others, goes through the step."""
    is_step = cache and 0 < cache.length < cache.block_size and x.size(1) == 1
    if not is_step or n_layer is not None or language_model.training:
        return model.LanguageModel.run_blocks(language_model, x, n_layer, cache)
    position = torch.full((1,), cache.length, device=x.device)
    if not hasattr(cache, "step"):  # a graph reads and writes the rows of this cache
        cache.step = capture(step, x, position, cache.rows) if x.is_cuda else step
    cache.length += 1
    return cache.step(x, position, cache.rows)


def capture(step, x, position, rows):
    """The step as a CUDA graph: one launch instead of one per kernel, always in the same memory."""
    x, position, kind = x.clone(), position.clone(), x.device.type
    graph = torch.cuda.CUDAGraph()
    # Without its cache, as autocast frees the casts in it: the graph would read freed memory.
    with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
        step(x, position, rows)  # once before: libraries set themselves up, and torch.compile compiles
        with torch.cuda.graph(graph):
            y = step(x, position, rows)

    def replay(new_x, new_position, rows):
        x.copy_(new_x)
        position.copy_(new_position)
        graph.replay()
        return y.clone()
    return replay


def fixed_step(language_model, x, position, rows):
    """Embedding x (B, 1, C) of the token at a position (1,) through all blocks -> (B, 1, C); writes into the rows."""
    if language_model.wpe:
        x = x + language_model.wpe(position)
    for block in language_model.blocks:
        x = block(x, FixedCache(rows, position))
    return x


def fixed_conv(conv, x, cache=None):
    """MaskedConv.forward; in a step the position's row of the matrix times the cached rows."""
    if not isinstance(cache, FixedCache):
        return model.MaskedConv.forward(conv, x, cache)
    t, k = cache.position, conv.kernel_size
    if conv.rotary:
        x = conv.rotary(x, t)
    x = cache.append(conv, x.to(conv.weight.dtype))                                       # (B, T, C)
    T, C = x.shape[1:]
    padded = F.pad(x, ((k - 1) // 2, k // 2))                                             # (B, T, C + k - 1)
    lag = (t - torch.arange(T, device=x.device))[None]                                    # (1, T)
    y = conv.bias[t]                                                                      # (1,)
    for j in range(k):
        row = conv.weight[j, lag.clamp(min=0)] if conv.toeplitz else conv.weight[j, t]    # (1, T)
        y = y + row.masked_fill(lag < 0, 0) @ padded[..., j:j + C]
    return y                                                                              # (B, 1, C)


def fixed_attention(attention, x, cache=None):
    """Attention.forward; in a step a mask hides the rows behind the position."""
    if not isinstance(cache, FixedCache):
        return model.Attention.forward(attention, x, cache)
    q, k, v = attention.qkv(x, cache.position)                                            # (B, nh, 1, hs)
    k, v = cache.append((attention, "k"), k), cache.append((attention, "v"), v)           # (B, nh, T, hs)
    seen = torch.arange(k.size(-2), device=x.device) <= cache.position                    # (T,)
    y = F.scaled_dot_product_attention(q, k, v, seen[None])                               # (B, nh, 1, hs)
    return attention.c_proj(y.transpose(1, 2).reshape(x.shape))


def fixed_rotary(rotary, x, start):
    """Rotary.forward; in a step `start` is a tensor (1,)."""
    if not isinstance(start, torch.Tensor):
        return model.Rotary.forward(rotary, x, start)
    return rotary.rotate(x, rotary.cos[start], rotary.sin[start])


FIXED_FORMS = {model.MaskedConv: fixed_conv, model.Attention: fixed_attention, model.Rotary: fixed_rotary}

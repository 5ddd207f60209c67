"""
Fast paths: what model.py says plainly, faster or in less memory, and equal to it (tests/test_fast.py). What
each is worth stands in results/README.md. Shapes: B batch, T tokens, C channels, V vocabulary, N rows.
"""
import math

import torch
from torch.nn import functional as F

LOGITS = 2 ** 21  # logits at once, about: they stay in the cache of a CPU core
PARTS = 16        # but no more parts than this: each is compiled, and a GPU wants large ones
BLOCK_ROWS = 128  # at least, in a block of a triangular matrix: thinner ones take longer than what they spare
BLOCKS = 8        # at most: more spare little, and each is compiled
FEW_ROWS = 64     # up to which a CPU multiplies them sooner by parts of the weights


def matmul_dtype(x):
    """That of a matmul of x here: under autocast its dtype, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# ------------------------------------------------------------------------------------------------------------
# head and loss

def linear_cross_entropy(x, weight, targets):
    """The mean cross-entropy, in nats, of the logits x W^T: x (..., C), weight (V, C), targets (...) int64;
    -1 is not counted. Under autocast the matmuls run in its dtype, all else in float32."""
    x, targets = x.flatten(0, -2), targets.flatten()                                      # (N, C), (N,)
    if torch.is_grad_enabled():
        return LinearCrossEntropy.apply(x, weight, targets)
    return F.cross_entropy(F.linear(x, weight).float(), targets, ignore_index=-1)


class LinearCrossEntropy(torch.autograd.Function):
    """linear_cross_entropy with gradients, without the logits of all tokens, the largest tensor of a training
    step by far: a few rows of them at a time are made, turned into their gradient, and forgotten. With
    p = softmax(x W^T): loss = -mean log p[target], d loss / d logits = (p - one_hot(target)) / N."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        dtype = matmul_dtype(x)
        W, ids = weight.to(dtype), torch.arange(len(weight), device=x.device)             # (V, C), (V,)
        rows = max(LOGITS // len(weight), -(-len(x) // PARTS))
        loss, x_grads, W_grad = 0.0, [], 0.0
        for x_part, target in zip(x.to(dtype).split(rows), targets[:, None].split(rows)):
            logits, counts = (x_part @ W.T).float(), target >= 0               # (rows, V) and (rows, 1)
            highest = logits.amax(dim=1, keepdim=True)                                    # (rows, 1)
            exp = (logits - highest).exp()  # of which both the loss and its gradient are made
            total = exp.sum(dim=1, keepdim=True)                                          # (rows, 1)
            loss += ((highest + total.log() - logits.gather(1, target.clamp(min=0))) * counts).sum()
            grad = (exp * (counts / total) - ((target == ids) * counts).float()).to(dtype)
            x_grads.append(grad @ W)                                                      # (rows, C)
            W_grad += (grad.T @ x_part).float()                                           # (V, C)
        n = (targets >= 0).sum()
        ctx.save_for_backward(torch.cat(x_grads), W_grad, n)
        return loss / n

    @staticmethod
    def backward(ctx, loss_grad):
        x_grad, W_grad, n = ctx.saved_tensors
        scale = loss_grad / n  # here, in float32: in float16 gradients over n would vanish
        return x_grad.float() * scale, W_grad * scale, None


# ------------------------------------------------------------------------------------------------------------
# long windows

def triangular_product(W, x):
    """W.tril() @ x, W (T, T), x (B, T, C) -> (B, T, C), without most of the multiplications by zero: each
    block of rows meets only the columns up to its last; of n blocks that are (n + 1) / 2n of all."""
    dtype, (B, T, C) = matmul_dtype(x), x.shape
    columns = x.to(dtype).transpose(0, 1).reshape(T, B * C)
    return TriangularProduct.apply(W.to(dtype), columns).view(T, B, C).transpose(0, 1)


def row_blocks(T):
    """[(first row, the one after the last)] of the blocks of T rows."""
    rows = max(BLOCK_ROWS, -(-T // BLOCKS))
    return [(i, min(i + rows, T)) for i in range(0, T, rows)]


def entries_in_blocks(T):
    """How many of the T * T entries of W the blocks meet."""
    return sum((j - i) * j for i, j in row_blocks(T))


class TriangularProduct(torch.autograd.Function):
    """W.tril() @ x, W (T, T), x (T, N) -> (T, N)."""

    @staticmethod
    def forward(ctx, W, x):
        W = W.tril()
        ctx.save_for_backward(W, x)
        return torch.cat([W[i:j, :j] @ x[:j] for i, j in row_blocks(len(W))])

    @staticmethod
    def backward(ctx, grad):
        W, x = ctx.saved_tensors
        T = len(W)
        x_grad = torch.cat([W[i:, i:j].T @ grad[i:] for i, j in row_blocks(T)])           # (T, N)
        W_grad = torch.cat([F.pad(grad[i:j] @ x[:j].T, (0, T - j)) for i, j in row_blocks(T)])  # (T, T)
        return W_grad.tril(), x_grad


def toeplitz_product(w, taps):
    """sum_j sum_{s <= t} w[j, t - s] taps[j][s] by FFT, in O(T log T): w (k, T), taps k of (B, T, C) ->
    (B, T, C)."""
    T = w.size(1)
    n = 2 * T  # padded, so that the circular convolution of the FFT does not wrap around
    w = torch.fft.rfft(w.float(), n)                                                      # (k, T + 1)
    y = sum(w_j[:, None] * torch.fft.rfft(tap.float(), n, dim=1) for w_j, tap in zip(w, taps))
    return torch.fft.irfft(y, n, dim=1)[:, :T].type_as(taps[0])


# ------------------------------------------------------------------------------------------------------------
# few rows: sampling, search

def linear_of_few_rows(x, weight, bias=None):
    """F.linear: x (..., C), weight (N, C), bias (N) -> (..., N). On a CPU, a product of one row, or of a few,
    with a float32 matrix runs on a single core; as a batch of products with parts of it, it runs on all."""
    (N, C), parts = weight.shape, math.gcd(len(weight), 8)
    if not x.is_cpu or x.numel() > FEW_ROWS * C or matmul_dtype(x) != torch.float32:
        return F.linear(x, weight, bias)
    W, rows = weight.view(parts, -1, C), x.reshape(-1, C)                   # (parts, N/parts, C), (rows, C)
    if len(rows) <= 4 and not torch.compiler.is_compiling():  # reads the weights twice as fast from memory
        y = (W @ rows.T.expand(parts, C, -1)).view(N, -1).T                               # (rows, N)
    else:
        y = (rows.expand(parts, -1, C) @ W.mT).transpose(0, 1)                    # (rows, parts, N/parts)
    y = y.reshape(*x.shape[:-1], N)
    return y if bias is None else y + bias

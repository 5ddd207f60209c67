"""
The head and its cross-entropy in one, without the logits of all tokens in memory at once.

Over a large vocabulary the logits are the largest tensor of a training step by far. Here a few rows of them
at a time are made, turned into their gradient, and forgotten, which is faster too (results/README.md, speed).
With N tokens, p = softmax(x W^T), loss = -mean log p[target], d loss / d logits = (p - one_hot(target)) / N.
"""
import torch
from torch.nn import functional as F

LOGITS = 2 ** 21  # about so many at once: they stay in the cache of a CPU core
PARTS = 16        # but no more parts than this: each is compiled, and a GPU wants large ones


def linear_cross_entropy(x, weight, targets):
    """The mean cross-entropy, in nats, of the logits x W^T: x (..., C), weight (V, C), targets (...) int64;
    -1 is not counted. Under autocast the matmuls run in its dtype, all else in float32."""
    x, targets = x.flatten(0, -2), targets.flatten()                                      # (N, C), (N,)
    if torch.is_grad_enabled():
        return LinearCrossEntropy.apply(x, weight, targets)
    return F.cross_entropy(F.linear(x, weight).float(), targets, ignore_index=-1)


class LinearCrossEntropy(torch.autograd.Function):
    """linear_cross_entropy with gradients, which forward computes already, part by part."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        W, ids = weight.to(dtype), torch.arange(len(weight), device=x.device)             # (V, C), (V,)
        rows = max(LOGITS // len(weight), -(-len(x) // PARTS))
        loss, x_grads, W_grad = 0.0, [], 0.0
        for x_part, target in zip(x.to(dtype).split(rows), targets[:, None].split(rows)):
            logits, counts = x_part @ W.T, target >= 0                         # (rows, V) and (rows, 1)
            log_sum = logits.float().logsumexp(dim=1, keepdim=True)                       # (rows, 1)
            loss += ((log_sum - logits.gather(1, target.clamp(min=0)).float()) * counts).sum()
            grad = (((logits.float() - log_sum).exp() - (target == ids).float()) * counts).to(dtype)
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

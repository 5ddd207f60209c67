"""fast.py: each fast path equals the plain one; the loss in parts never holds all logits."""
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import model
from lib import fast
from lib.fast import linear_cross_entropy, linear_of_few_rows, masked_product, row_blocks, toeplitz_product

B, T, C, V = 3, 7, 5, 31


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that is made in it."""
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.fixture
def parts(monkeypatch):
    """parts(rows): from now on the loss is computed in parts of so many rows."""
    def parts(rows):
        monkeypatch.setattr(fast, "LOGITS", rows * V)
        monkeypatch.setattr(fast, "PARTS", 10 ** 9)
    return parts


def random_input(seed=0):
    """x (B, T, C), weight (V, C), both with gradients, and targets (B, T), some of them -1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, C, generator=generator, requires_grad=True)
    weight = torch.randn(V, C, generator=generator, requires_grad=True)
    targets = torch.randint(V, (B, T), generator=generator)
    targets[:, ::4] = -1
    return x, weight, targets


def gradients(loss, *tensors):
    return torch.autograd.grad(3 * loss, tensors)  # times 3: a gradient that comes from behind counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 21, 1000])
def test_loss_and_gradients_are_those_of_all_logits(rows, dtype, parts):
    """In parts that divide the rows and that do not; in bfloat16 under autocast, to its precision."""
    parts(rows)
    x, weight, targets = random_input()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        logits = F.linear(x, weight).float().flatten(0, 1)
        expected = F.cross_entropy(logits, targets.flatten(), ignore_index=-1)
        loss = linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=0.02, atol=0.005)
    for ours, theirs in zip(gradients(loss, x, weight), gradients(expected, x, weight)):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_logits_are_never_there_all_at_once(parts):
    """Neither forward nor backward makes a tensor of B T V elements; PyTorch's own loss does."""
    parts(2)
    x, weight, targets = random_input()
    with Largest() as ours:
        gradients(linear_cross_entropy(x, weight, targets), x, weight)
    with Largest() as theirs:
        logits = F.linear(x, weight).flatten(0, 1)
        gradients(F.cross_entropy(logits, targets.flatten(), ignore_index=-1), x, weight)
    assert theirs.numel == B * T * V and ours.numel <= V * C < B * T * V


def test_without_gradients_the_loss_is_the_same(parts):
    """An evaluation gets the loss of a training step, and does not make all logits at once either."""
    parts(2)
    x, weight, targets = random_input()
    with torch.no_grad(), Largest() as largest:
        loss = linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(loss, linear_cross_entropy(x, weight, targets))
    assert largest.numel <= V * C


def test_float16_gradients_do_not_vanish(parts):
    """The division by the number of tokens comes last, in float32: in float16, p / 65,536 has two digits."""
    parts(4096)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(65_536, 2, generator=generator, requires_grad=True)
    weight = torch.randn(V, 2, generator=generator, requires_grad=True)
    targets = torch.randint(V, (65_536,), generator=generator)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = linear_cross_entropy(x, weight, targets)
    for ours, theirs in zip(gradients(loss, x, weight),
                            gradients(F.cross_entropy(F.linear(x, weight), targets), x, weight)):
        assert (ours - theirs).norm() < 2e-3 * theirs.norm()


# ------------------------------------------------------------------------------------------------------------
# long windows

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 7, 8, 61])
def test_triangular_product_is_the_masked_one(tokens, dtype, monkeypatch):
    """With its gradients, that of the masked entries 0, whatever the number of tokens; x need not be
    contiguous. In blocks of 3 rows, or in at most 8 of more."""
    monkeypatch.setattr(fast, "BLOCK_ROWS", 3)
    monkeypatch.setattr(fast, "BLOCKS_FROM", 1)
    assert row_blocks(tokens)[-1][1] == tokens and len(row_blocks(tokens)) == min(-(-tokens // 3), 8)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(tokens, tokens, generator=generator, requires_grad=True)
    x = torch.randn(B, C, tokens, generator=generator).mT.requires_grad_()
    out = torch.randn(B, tokens, C, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        ours, theirs = masked_product(W, x), W.tril() @ x
    assert ours.dtype == theirs.dtype == dtype and ours.shape == theirs.shape
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.02, atol=0.1)
    torch.testing.assert_close(ours, theirs, **tolerance)
    our_grads, their_grads = (torch.autograd.grad(y, (W, x), out.to(dtype)) for y in (ours, theirs))
    for our_grad, their_grad in zip(our_grads, their_grads):
        torch.testing.assert_close(our_grad, their_grad, **tolerance)
    assert not torch.autograd.grad(masked_product(W, x).sum(), W)[0].triu(1).any()


@pytest.mark.parametrize("fft_from", [1, 100])
@pytest.mark.parametrize("tokens, start", [(1, 0), (2, 0), (13, 0), (13, 5)])
def test_toeplitz_product_is_the_sum_that_it_stands_for(tokens, start, fft_from, monkeypatch):
    """By a loop over t and s, by FFT and by a sliding window, for all rows or those behind cached tokens."""
    monkeypatch.setattr(fast, "FFT_FROM", fft_from)
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(tokens, generator=generator), torch.randn(B, tokens, C, generator=generator)
    expected = torch.zeros(B, tokens, C)
    for t in range(tokens):
        for s in range(t + 1):
            expected[:, t] += w[t - s] * x[:, s]
    torch.testing.assert_close(toeplitz_product(w, x, start), expected[:, start:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T, S", [(1, 1), (7, 7), (1, 7), (3, 7)])
def test_attention_is_the_softmax_of_masked_scores(T, S, causal):
    """The plain and the fast one, for whole windows and behind cached tokens: query t sees keys up to S - T + t."""
    if not causal and T != S:
        return
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, 2, n, C, generator=generator) for n in (T, S, S))
    scores = torch.full((B, 2, T, S), -float("inf"))
    for t in range(T):
        seen = S - T + t + 1 if causal else S
        scores[:, :, t, :seen] = (q[:, :, t, None] * k[:, :, :seen]).sum(-1) / C ** 0.5
    expected = scores.softmax(-1) @ v
    for function in model.attention, fast.attention:
        torch.testing.assert_close(function(q, k, v, causal), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 7, 61])
def test_attention_in_blocks_is_that_of_pytorch(tokens, compiled, dtype, monkeypatch):
    """The result and the gradients equal PyTorch's; q, k and v are views, as they are in a model."""
    monkeypatch.setattr(fast, "BLOCK_ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, tokens, 3, 2, C, generator=generator).to(dtype).requires_grad_()
    out = torch.randn(B, 2, tokens, C, generator=generator).to(dtype)

    def blocks(qkv):
        return fast.attention(*qkv.permute(2, 0, 3, 1, 4))
    ours = (torch.compile(blocks, backend="aot_eager", fullgraph=True) if compiled else blocks)(qkv)
    theirs = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
    assert "attention_in_blocks" in str(fast.attention(*qkv.permute(2, 0, 3, 1, 4)).grad_fn)
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.02, atol=0.1)
    torch.testing.assert_close(ours, theirs, **tolerance)
    for our_grad, their_grad in zip(torch.autograd.grad(ours, qkv, out), torch.autograd.grad(theirs, qkv, out)):
        torch.testing.assert_close(our_grad, their_grad, **tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 1, 5), (1, 7, 5), (13, 5, 5), (5,)])
@pytest.mark.parametrize("outputs", [31, 24, 20])
def test_linear_of_few_rows_is_linear(shape, outputs, bias):
    """Whatever the weight's rows are divisible by, for few rows of x and for many (13 * 5); to the bit under
    autocast, where it is left to F.linear."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(outputs, 5, generator=generator)
    bias = torch.randn(outputs, generator=generator) if bias else None
    torch.testing.assert_close(linear_of_few_rows(x, weight, bias), F.linear(x, weight, bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_of_few_rows(x, weight, bias), F.linear(x, weight, bias))

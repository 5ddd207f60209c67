"""An autoencoder decodes from one vector, and a bidirectional model never sees the token that it predicts."""
import pytest
import torch

from model import ModelConfig
from lib.objectives import Autoencoder, Bidirectional

B, T, C, V = 3, 7, 12, 31
MODELS = ["mixer", "gpt", "llama", "hybrid"]


def build(kind, **options):
    torch.manual_seed(1)
    options = dict(block_size=11, n_layer=2, n_embd=C, n_head=3, vocab_size=V) | options
    return kind(ModelConfig(**options))


def tokens(n=T):
    return torch.randint(V, (B, n), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", [Autoencoder, Bidirectional])
def test_a_tied_head_starts_as_the_embedding(kind):
    """Its weights are drawn once, with embd_std, although these models draw theirs a second time."""
    model = build(kind, model_type="llama", tie=True, embd_std=3.0, vocab_size=997)
    assert model.lm_head.weight is model.wte.weight
    assert model.wte.weight.std().item() == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("model_type", MODELS)
def test_the_decoder_knows_one_vector(model_type):
    """The logits at every position depend on the last of the encoder's states and on no other state."""
    model = build(Autoencoder, model_type=model_type)
    states = model.run_blocks(model.embed(tokens())).detach().requires_grad_()
    model.run_blocks = lambda x: states
    logits, _ = model(tokens())
    for t in range(T):
        gradient, = torch.autograd.grad(logits[:, t].sum(), states, retain_graph=True)
        assert not gradient[:, :-1].any() and gradient[:, -1].any()


def test_rotary_attention_cannot_decode_one_vector():
    """From identical inputs, a Llama makes the same logits at every position, unless its positions are learned."""
    for options, same in (dict(), True), (dict(position="learned"), False):
        logits, _ = build(Autoencoder, model_type="llama", **options)(tokens())
        assert torch.allclose(logits, logits[:, :1].expand_as(logits), atol=1e-4) == same
    logits, _ = build(Autoencoder, model_type="mixer")(tokens())
    assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-2)


def test_an_autoencoder_learns_its_input():
    """The loss is the cross-entropy with the input as its own target, and the model can overfit one batch."""
    model, idx = build(Autoencoder, n_embd=48), tokens()
    logits, loss = model(idx, idx.roll(1))
    torch.testing.assert_close(loss, torch.nn.CrossEntropyLoss()(logits.transpose(1, 2), idx))
    optimizer = model.configure_optimizers(0.0, 3e-3, (0.9, 0.95))
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(idx, idx)[1]
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("model_type", MODELS)
def test_the_answer_is_never_seen(model_type):
    """The gradient of the logits at t is exactly 0 at token t + 1, and not 0 at any other token."""
    model = build(Bidirectional, model_type=model_type)
    x = model.embed(tokens()).detach().requires_grad_()
    logits, _ = model.head(model.hidden(x))
    for t in range(T):
        gradient, = torch.autograd.grad(logits[:, t].sum(), x, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 2)) > 0
        assert seen.tolist() == [s != t + 1 for s in range(T)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_texts_have_no_future(n):
    """The reverse stream adds nothing to a text of one or two tokens."""
    model, idx = build(Bidirectional), tokens(n)
    logits, loss = model(idx, idx)
    forward_only, _ = model.head(model.run_blocks(model.embed(idx)))
    assert logits.shape == (B, n, V) and loss.isfinite()
    assert torch.equal(logits[:, -2:], forward_only[:, -2:]) and (n < 3) == torch.equal(logits, forward_only)


@pytest.mark.parametrize("kind", [Autoencoder, Bidirectional])
def test_all_weights_learn_and_are_counted(kind):
    """Every parameter has a gradient, and the FLOPs count both sets of blocks."""
    model, idx = build(kind), tokens(11)
    model(idx, idx.roll(-1, 1))[1].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    blocks = 2 * 2 * (2 * 8 * C * C + 2 * 11 * C)  # each of 2 * 2 blocks has an MLP and a matrix
    assert model.estimate_flops(11) == blocks + 2 * C * V

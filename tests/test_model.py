"""The models are causal, and every layer equals an independent reference. T, C and B differ in all tests."""
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib import fast
from model import Attention, Cache, LanguageModel, MaskedConv, Mixer, ModelConfig, Rotary

B, T, V = 3, 11, 31
VARIANTS = {
    "mixer": {},
    "gpt": dict(model_type="gpt"),
    "llama": dict(model_type="llama"),
    "hybrid": dict(model_type="hybrid"),
    "hybrid_parallel": dict(model_type="hybrid_parallel"),
    "kernel_4": dict(kernel_size=4),
    "kernel_3": dict(kernel_size=3),
    "expanded": dict(expanded=True),
    "parallel_2": dict(parallel=2),
    "heads_2": dict(mixer_heads=2),
    "toeplitz": dict(toeplitz=True),
    "toeplitz_kernel_2": dict(toeplitz=True, kernel_size=2),
    "everything": dict(expanded=True, parallel=2, mixer_heads=2, kernel_size=4, norm="rmsnorm",
                       position="rope", final_norm=True, mlp="swiglu", bias=False, tie=True, init="normal",
                       embd_std=0.1),
    "mixer_learned_positions": dict(position="learned", norm="none"),
    "residual_off": dict(model_type="hybrid_parallel", residual=False),
    "gpt_rope": dict(model_type="gpt", position="rope"),
    "first_gpt": dict(model_type="gpt", post_norm=True, final_norm=False, tie=True),
    "llama_without_positions": dict(model_type="llama", position="none"),
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def build(seed=0, **options):
    """Build a small model whose every weight is random, so that no test passes because a weight is zero."""
    torch.manual_seed(seed)
    sizes = dict(block_size=13, n_layer=2, n_embd=20, n_head=5, vocab_size=V)
    model = LanguageModel(ModelConfig(**sizes | options))
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def random_tokens(rows=B, length=T):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


@every_variant
def test_a_changed_token_leaves_earlier_logits_bit_identical(options):
    """A change of token t changes the logits from t on, and not one bit of the logits before it."""
    model, idx = build(**options), random_tokens()
    logits, _ = model(idx)
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        new_logits, _ = model(changed)
        assert torch.equal(logits[:, :t], new_logits[:, :t])
        assert not torch.allclose(logits[:, t:], new_logits[:, t:])


@every_variant
def test_gradient_reaches_exactly_the_inputs_up_to_t(options):
    """The gradient of logits[t] with respect to input[s] is exactly 0 for s > t, and not 0 for s <= t."""
    model = build(**options)
    x = model.embed(random_tokens()).detach().requires_grad_()
    for t in (0, 4, T - 1):
        gradient, = torch.autograd.grad(model.head(model.run_blocks(x))[0][:, t].square().sum(), x)
        size = gradient.abs().sum(dim=(0, 2))
        assert (size[t + 1:] == 0).all()
        assert (size[:t + 1] > 0).all()


def test_a_mixer_without_mask_sees_all_tokens():
    """With causal=False, the first hidden state depends on every token, in a mixer and in a Llama."""
    for model_type in "mixer", "llama":
        model = build(model_type=model_type, causal=False)
        x = model.embed(random_tokens()).detach().requires_grad_()
        gradient, = torch.autograd.grad(model.run_blocks(x)[:, 0].square().sum(), x)
        assert (gradient.abs().sum(dim=(0, 2)) > 0).all()


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
def test_masked_convolution_equals_naive_loops(kernel_size):
    """Conv(x)[t, c] is b[t] plus the sum over s <= t and taps j of W[j, t, s] x[s, c + j - (k-1)//2], 0 outside."""
    conv = MaskedConv(build(kernel_size=kernel_size).config, 7)
    torch.nn.init.normal_(conv.weight)  # the masked half too: it must not count
    torch.nn.init.normal_(conv.bias)
    x, C = torch.randn(2, 5, 7), 7
    expected = torch.zeros_like(x)
    for t in range(5):
        for c in range(C):
            total = conv.bias[t].expand(2).clone()
            for s in range(t + 1):
                for j in range(kernel_size):
                    if 0 <= c + j - (kernel_size - 1) // 2 < C:
                        total += conv.weight[j, t, s] * x[:, s, c + j - (kernel_size - 1) // 2]
            expected[:, t, c] = total
    torch.testing.assert_close(conv(x), expected)


def test_masked_convolution_equals_conv1d_with_a_triangular_weight():
    """At T = block_size, MaskedConv equals torch's own conv1d over tokens."""
    conv = MaskedConv(build(kernel_size=3).config, 7)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 13, 7)
    weight = torch.stack([W.tril() for W in conv.weight], dim=-1)
    torch.testing.assert_close(conv(x), F.conv1d(x, weight, conv.bias, padding=1))


@every_variant
def test_masked_weights_have_no_gradient_and_stay_zero(options):
    """Above the diagonal, the gradient is zero, and so are the weights after training steps with weight decay."""
    model = build(**options)
    convs = [m for m in model.modules() if isinstance(m, MaskedConv) and not m.toeplitz]
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95))
    idx = random_tokens()
    for _ in range(3):
        model(idx, idx)[1].backward()
        for conv in convs:
            assert (conv.weight.grad.triu(1) == 0).all() and conv.weight.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
        assert all((conv.weight.triu(1) == 0).all() for conv in convs)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_toeplitz_by_fft_equals_toeplitz_by_matrix(kernel_size, monkeypatch):
    """The matrix is w[t - s] below the diagonal and 0 above, and all products agree in values and gradients."""
    conv = MaskedConv(build(toeplitz=True, kernel_size=kernel_size).config, 7)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    expected = [[[w[t - s].item() if s <= t else 0.0 for s in range(5)] for t in range(5)]
                for w in conv.weight]
    assert conv.mixing(torch.zeros(1, 5, 7)).tolist() == expected
    x = torch.randn(2, T, 7, requires_grad=True)
    results = []
    for is_fast, fft_from in (False, 1), (True, 1), (True, 10_000):
        fast.use_fast_functions(is_fast)
        monkeypatch.setattr(fast, "FFT_FROM", fft_from)
        y = conv(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, conv.weight])])
    for plain, by_fft, by_window in zip(*results):
        torch.testing.assert_close(by_fft, plain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(by_window, plain, rtol=1e-4, atol=1e-4)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fast_functions_change_nothing(options, dtype, monkeypatch):
    """Fast and plain functions give the same logits, loss and gradients, in float32 and in bfloat16."""
    monkeypatch.setattr(fast, "BLOCK_ROWS", 3)
    monkeypatch.setattr(fast, "BLOCKS_FROM", 1)
    monkeypatch.setattr(fast, "FFT_FROM", 1)
    monkeypatch.setattr(fast, "LOGITS", 4 * V)
    model, idx = build(**options), random_tokens()
    results = []
    for is_fast in False, True:
        fast.use_fast_functions(is_fast)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits, loss = model(idx, idx)
        results.append([logits, loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, other in zip(*results):
        if dtype == torch.float32:
            torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)
        else:
            assert (other - plain).norm() <= 0.05 * plain.norm() + 1e-3


@every_variant
def test_a_short_window_uses_the_top_left_corner(options):
    """The logits of the first tokens do not depend on how many tokens follow them."""
    model, idx = build(**options), random_tokens()
    torch.testing.assert_close(model(idx[:, :5])[0], model(idx)[0][:, :5])


@every_variant
def test_a_window_longer_than_block_size_is_an_error(options):
    """The error names both the number of tokens and the block_size."""
    with pytest.raises(ValueError, match="14 tokens do not fit into block_size 13"):
        build(**options)(random_tokens(2, 14))


def test_attention_equals_torch_multi_head_attention():
    """With the same weights, Attention equals nn.MultiheadAttention with a causal mask."""
    ours = build(model_type="gpt").blocks[0].mix[0][0]
    theirs = torch.nn.MultiheadAttention(20, 5, batch_first=True)
    theirs.load_state_dict({"in_proj_weight": ours.c_attn.weight, "in_proj_bias": ours.c_attn.bias,
                            "out_proj.weight": ours.c_proj.weight, "out_proj.bias": ours.c_proj.bias})
    x = torch.randn(B, T, 20)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask, is_causal=True)[0])


@pytest.mark.parametrize("post_norm", [False, True])
def test_a_block_equals_torch_encoder_layer(post_norm):
    """With the same weights, the blocks of both GPTs equal nn.TransformerEncoderLayer with norms first and last."""
    block = build(model_type="gpt", post_norm=post_norm).blocks[0]
    theirs = torch.nn.TransformerEncoderLayer(20, 5, 80, 0.0, F.gelu, batch_first=True, norm_first=not post_norm)
    names = {"mix.0.0.c_attn.": "self_attn.in_proj_", "mix.0.0.c_proj.": "self_attn.out_proj.",
             "mix_norm.0.": "norm1.", "mlp.c_fc.": "linear1.", "mlp.c_proj.": "linear2.", "mlp_norm.": "norm2."}
    weights = block.state_dict()
    theirs.load_state_dict({name + kind: weights[own + kind] for own, name in names.items()
                            for kind in ("weight", "bias")})
    x, mask = torch.randn(B, T, 20), torch.nn.Transformer.generate_square_subsequent_mask(T)
    torch.testing.assert_close(block(x), theirs(x, mask, is_causal=True))


def test_rotary_positions_are_relative_and_keep_lengths():
    """The product q(m) . k(n) depends on m - n alone, and rotation by complex numbers gives the same."""
    rotary, q, k = Rotary(50, 14), torch.randn(14), torch.randn(14)
    at = lambda x, position: rotary(x[None], position)[0]  # noqa: E731
    products = torch.stack([at(q, m + 7) @ at(k, m) for m in range(40)])
    torch.testing.assert_close(products, products[:1].expand(40), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(at(q, 7) @ at(k, 0), at(q, 8) @ at(k, 0))
    angles = 29 / 10000.0 ** (torch.arange(7) / 7)
    complex_q = torch.complex(q[:7], q[7:]) * torch.polar(torch.ones(7), angles)
    torch.testing.assert_close(at(q, 29), torch.cat([complex_q.real, complex_q.imag]), rtol=1e-4, atol=1e-4)


def test_hybrids_combine_the_two_mixers_as_the_paper_says():
    """A hybrid has a residual step of attention, then one of convolution; a parallel hybrid has one step of both."""
    x = torch.randn(B, T, 20)
    block = build(model_type="hybrid").blocks[0]
    y = x + block.mix[0][0](block.mix_norm[0](x))
    y = y + block.mix[1][0](block.mix_norm[1](y))
    torch.testing.assert_close(block(x), y + block.mlp(block.mlp_norm(y)))
    block = build(model_type="hybrid_parallel").blocks[0]
    (attention, conv), normed = block.mix[0], block.mix_norm[0](x)
    assert isinstance(attention, Attention) and isinstance(conv, Mixer)
    y = x + attention(normed) + conv(normed)
    torch.testing.assert_close(block(x), y + block.mlp(block.mlp_norm(y)))


def test_blocks_and_mlps_can_be_left_out():
    """Without an MLP, a block ends after the step that mixes tokens; without a block, only the last token counts."""
    x = torch.randn(B, T, 20)
    block = build(mlp_ratio=0).blocks[0]
    torch.testing.assert_close(block(x), x + block.mix[0][0](block.mix_norm[0](x)))
    assert build(mlp_ratio=3).blocks[0].mlp.c_fc.weight.shape == (60, 20)
    model, idx = build(n_layer=0), torch.randint(V, (B, T))
    torch.testing.assert_close(model(idx)[0], model.wte.weight[idx] @ model.lm_head.weight.T)


def test_llama_mlp_and_norms_equal_their_formulas():
    """A Llama has SwiGLU with a hidden width of 4C, RMSNorm, and no biases anywhere."""
    model = build(model_type="llama")
    block, x = model.blocks[0], torch.randn(B, T, 20)
    mlp = block.mlp
    gate = x @ mlp.c_gate.weight.T
    expected = (gate * gate.sigmoid() * (x @ mlp.c_fc.weight.T)) @ mlp.c_proj.weight.T
    torch.testing.assert_close(mlp(x), expected)
    assert mlp.c_fc.weight.shape == (80, 20)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.mlp_norm.weight
    torch.testing.assert_close(block.mlp_norm(x), normed)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_initialisation_is_the_one_that_the_config_names():
    """Embedding, convolution and MLP have the standard deviations of the named initialisation."""
    big = dict(block_size=64, n_embd=128, n_head=4, n_layer=1, vocab_size=4096)
    model = LanguageModel(ModelConfig(**big))
    assert model.wte.weight.std().item() == pytest.approx(1.0, rel=0.02)
    conv = model.blocks[0].mix[0][0].conv[0]
    lower = conv.weight[0][torch.ones(64, 64).tril().bool()]
    assert lower.abs().max() <= 1 / 8 and lower.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    model = LanguageModel(ModelConfig(model_type="llama", **big))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    model = LanguageModel(ModelConfig(**big, embd_std=0.3))
    assert model.wte.weight.std().item() == pytest.approx(0.3, rel=0.02)


@every_variant
def test_loss_is_the_cross_entropy_of_the_logits(options):
    """The loss is in nats per token, ignores targets of -1, and is the same when no logits are returned."""
    model, idx = build(**options), random_tokens()
    targets = random_tokens().roll(1, 0)
    targets[0, 3:] = -1
    logits, loss = model(idx, targets)
    assert logits.shape == (B, T, V)
    log_p = logits.log_softmax(-1)
    counted = [-log_p[b, t, targets[b, t]] for b in range(B) for t in range(T) if targets[b, t] >= 0]
    torch.testing.assert_close(loss, torch.stack(counted).mean())
    nothing, same_loss = model(idx, targets, return_logits=False)
    assert nothing is None and torch.equal(loss, same_loss)


@every_variant
def test_every_variant_overfits_one_batch(options):
    """Every parameter has a gradient, and 100 steps bring the loss of one batch far down."""
    model, idx = build(**options).train(), random_tokens()
    optimizer = model.configure_optimizers(0.0, 1e-2, (0.9, 0.95))
    for _ in range(100):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        loss.backward()
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        optimizer.step()
        optimizer.zero_grad()
    assert not unused
    assert loss.item() < 0.3


@every_variant
def test_flops_equal_those_that_torch_counts(options):
    """estimate_flops equals the count of torch's own FlopCounterMode, at T != C."""
    model = build(**options)
    # the counter does not know fused attention
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(random_tokens(1, 8))
    assert model.estimate_flops(8) * 8 == counter.get_total_flops()


def test_fast_functions_do_not_change_the_flops(monkeypatch):
    """By convention, FLOPs count dense T x T matrices, whichever kernel runs."""
    monkeypatch.setattr(fast, "BLOCKS_FROM", 1)
    flops = [build(**options).estimate_flops() for options in VARIANTS.values()]
    fast.use_fast_functions()
    assert flops == [build(**options).estimate_flops() for options in VARIANTS.values()]


def test_a_mixing_module_without_flops_is_an_error():
    """A mixing module without flops(T) raises an error, rather than count as 0."""
    model = build()
    model.blocks[0].mix[0][0] = torch.nn.Linear(20, 20)
    with pytest.raises(ValueError, match=r"Linear has no method flops\(T\)"):
        model.estimate_flops()


@every_variant
def test_mixing_matrices_mix(options):
    """Each layer's matrices (heads, T, T) are lower triangular, and those of the first reproduce its mixing."""
    model, idx = build(**options), random_tokens(1)
    matrices = model.mixing(idx)
    assert len(matrices) == 2 and all(layer.shape[1:] == (T, T) for layer in matrices)
    assert all((layer.triu(1) == 0).all() and layer.tril().abs().sum() > 0 for layer in matrices)
    block, x = model.blocks[0], model.run_blocks(model.embed(idx), n_layer=0)
    if not model.config.post_norm:
        x = block.mix_norm[0](x)
    for module in block.mix[0]:
        if isinstance(module, Attention):
            _, _, v = module.qkv(x)                                                       # (1, nh, T, hs)
            y = matrices[0][:5] @ v[0]
            torch.testing.assert_close(module.c_proj(y.transpose(0, 1).reshape(1, T, 20)), module(x))
            torch.testing.assert_close(matrices[0][:5].sum(-1), torch.ones(5, T))
    if options in ({}, dict(toeplitz=True)):
        expected = matrices[0][0] @ x + block.mix[0][0].conv[0].bias[:T, None]
        torch.testing.assert_close(expected, block.mix[0][0](x))


def test_wrong_shapes_are_refused_with_a_sentence():
    """Token ids without a batch, missing layers, a full cache and a flat list as a prompt raise a ValueError."""
    model = build()
    with pytest.raises(ValueError, match=r"shape \(B, T\)"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="n_layer must be 0 to 2"):
        model.run_blocks(model.embed(random_tokens()), n_layer=9)
    cache = Cache(13)
    model.run_blocks(model.embed(random_tokens(B, 13)), cache=cache)
    with pytest.raises(ValueError, match="14 tokens do not fit into block_size 13"):
        model.run_blocks(model.embed(random_tokens(B, 1)), cache=cache)
    with pytest.raises(ValueError, match="list of lists of token ids"):
        list(model.generate([1, 2, 3], 4))


def test_loss_can_be_differentiated_twice_or_says_that_it_cannot():
    """The plain loss has the right second derivatives; the fast loss refuses instead of giving zeros."""
    model, idx = build(), random_tokens()
    x = model.run_blocks(model.embed(idx)).detach().requires_grad_()

    def squared_gradient():
        gradient, = torch.autograd.grad(model.head(x, idx, return_logits=False)[1], x, create_graph=True)
        return gradient.square().sum()
    second, = torch.autograd.grad(squared_gradient(), x)
    step = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    before = squared_gradient().item()
    x.data += step
    assert squared_gradient().item() - before == pytest.approx((second * step).sum().item(), rel=0.05)
    fast.use_fast_functions()
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(squared_gradient(), x)
    fast.use_fast_functions(False)
    parameters = dict(model.named_parameters())
    loss = lambda p: torch.func.functional_call(model, p, (idx, idx))[1]  # noqa: E731
    gradients = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(model(idx, idx)[1], list(parameters.values()))
    for name, gradient in zip(parameters, expected):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_for_matrices_only():
    """Only matrices are decayed, not biases and norms, and every parameter is in exactly one group."""
    model = build()
    decayed, plain = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95)).param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert all(p.dim() > 1 for p in decayed["params"]) and all(p.dim() == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("options, message", [
    (dict(model_type="mixr"), "model_type must be mixer"),
    (dict(model_type="gpt", n_embd=21), "not divisible by n_head"),
    (dict(mixer_heads=3), "not divisible by mixer_heads"),
    (dict(kernel_size=0), "kernel_size must be an int of 1 or more"),
    (dict(norm="batchnorm"), "norm must be layernorm"),
    (dict(dropout=1.0), "dropout must be in"),
    (dict(embd_std=-1.0), "embd_std must be a positive number"),
    (dict(bias="maybe"), "bias must be True or False"),
    (dict(model_type="llama", n_embd=15), "even width"),
    (dict(toeplitz=True, causal=False), "toeplitz"),
])
def test_a_config_that_makes_no_model_is_refused(options, message):
    """The ValueError names the key."""
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("options", [VARIANTS["mixer"], VARIANTS["hybrid"], VARIANTS["everything"]])
def test_compiled_graph_is_whole(options):
    """torch.compile sees one graph without breaks, and compiles it once for all batches of one shape."""
    torch._dynamo.reset()
    model, idx = build(**options).train(), random_tokens()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for shift in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(idx.roll(shift, 0), idx)[1]
        loss.backward()
    assert counter.frame_count == 1

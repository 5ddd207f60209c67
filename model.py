"""
Masked mixers and the models they are compared with (arXiv 2409.01482, "the paper").

A masked mixer is a language model with a masked convolution over tokens in the place of self-attention. All
models here are the same code but for one swap point, TOKEN_MIXING: mixer, GPT, Llama and two hybrids. Shapes:
B batch, T tokens, C = n_embd channels, V = vocab_size, nh heads of size hs, k = kernel_size.

    model = LanguageModel(ModelConfig(model_type="mixer", block_size=128, n_layer=4, n_embd=128))
    logits, loss = model(idx, targets)         # idx, targets (B, T) -> logits (B, T, V), loss in nats a token
"""
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fast import entries_in_blocks, linear_cross_entropy, matmul_dtype, toeplitz_product, triangular_product

# What "auto" stands for: each architecture as the paper's section 2 has it. Set a key to override it.
MIXER = dict(position="none", norm="layernorm", mlp="gelu", bias=True, final_norm=False,
             init="torch", embd_std=1.0)
GPT = dict(MIXER, position="learned", final_norm=True, init="normal", embd_std=0.02)
LLAMA = dict(GPT, position="rope", norm="rmsnorm", mlp="swiglu", bias=False)
HYBRID = dict(LLAMA, init="torch", embd_std=1.0)  # why: see init_weights
AUTO = {"mixer": MIXER, "gpt": GPT, "llama": LLAMA, "hybrid": HYBRID, "hybrid_parallel": HYBRID}
CHOICES = {"model_type": AUTO, "position": ("none", "learned", "rope"), "mlp": ("gelu", "swiglu"),
           "norm": ("layernorm", "rmsnorm", "none"), "init": ("torch", "normal"), "bias": (True, False),
           "final_norm": (True, False)}
COUNTS = "block_size", "vocab_size", "n_layer", "n_embd", "n_head", "kernel_size", "mixer_heads", "parallel"
BLOCKS_FROM = 256   # tokens from which the masked product pays without the zeros above its diagonal (fast.py)
FFT_FROM = 4096     # and those from which FFT beats it if the matrix is Toeplitz
PLAIN_UP_TO = 256   # and those up to which, on a CPU, attention is faster without PyTorch's fused kernel


@dataclass
class ModelConfig:
    """Everything that defines a model. Raises ValueError, naming the key, for values that make none."""
    # defaults
    model_type: str = "mixer"         # mixer | gpt | llama | hybrid | hybrid_parallel
    block_size: int = 512             # T: the longest window of tokens
    n_layer: int = 8                  # blocks
    n_embd: int = 1024                # C: channels
    n_head: int = 4                   # attention heads (gpt, llama, hybrids)
    dropout: float = 0.0              # on the embedding, in attention and on what each residual step adds
    kernel_size: int = 1              # k: taps of the masked convolution along the channels
    mixer_heads: int = 1              # heads of the mixer, each C/heads wide with a convolution of its own
    parallel: int = 1                 # masked convolutions whose outputs are summed
    expanded: bool = False            # two masked convolutions with a GELU between them, instead of one
    toeplitz: bool = False            # W[t, s] = w[t - s]: T weights a layer instead of T * T
    causal: bool = True               # False takes the mask away: every token sees all others
    position: str = "auto"            # none | learned | rope
    norm: str = "auto"                # layernorm | rmsnorm | none, before each residual step
    final_norm: bool | str = "auto"   # a norm before the head
    mlp: str = "auto"                 # gelu: C -> 4C -> C | swiglu: half as many parameters again
    bias: bool | str = "auto"         # biases in Linear and LayerNorm (a convolution always has its own)
    residual: bool = True             # False: what a step computes takes the place of x
    tie: bool = False                 # the head uses the embedding's weights
    embd_std: float | str = "auto"    # standard deviation of the token embedding at the start
    init: str = "auto"           # other weights: torch: PyTorch's own for Linear, Conv1d | normal: N(0, 0.02)
    # end of defaults
    vocab_size: int = 4096            # V: given by the data

    def __post_init__(self):
        for key, value in AUTO.get(self.model_type, {}).items():
            if getattr(self, key) == "auto":
                setattr(self, key, value)
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} must be {' or '.join(map(str, known))}; got {getattr(self, key)!r}")
        for key in COUNTS:
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise ValueError(f"{key} must be an int of 1 or more; got {getattr(self, key)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {self.dropout}")
        if isinstance(self.embd_std, str) or not 0 < self.embd_std < math.inf:
            raise ValueError(f"embd_std must be a positive number or 'auto'; got {self.embd_std!r}")
        for key, module in ("n_head", Attention), ("mixer_heads", Mixer):
            width, rest = divmod(self.n_embd, getattr(self, key))
            used = module in sum(TOKEN_MIXING[self.model_type], [])
            if used and (rest or self.position == "rope" and width % 2):
                raise ValueError(f"n_embd {self.n_embd} is not divisible by {key} {getattr(self, key)}, "
                                 "or not into the even widths that position 'rope' needs")
        if self.toeplitz and not self.causal:
            raise ValueError("toeplitz has weights for the past only: it needs causal=True")


class Cache:
    """What the layers remember of the tokens they have seen, so that one more token costs one more row of
    work: attention keeps its keys and values, a masked convolution its inputs, in the dtype of its matmul."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.length = 0  # tokens that have gone through all layers
        self.rows = {}   # key -> (..., block_size, C), of which the first `length` rows are filled

    def append(self, key, x):
        """Put rows x (..., T, C) after those under `key`; returns all of them, (..., length + T, C)."""
        if key not in self.rows:
            self.rows[key] = x.new_empty(*x.shape[:-2], self.block_size, x.size(-1))
        stop = self.length + x.size(-2)
        self.rows[key][..., self.length:stop, :] = x
        return self.rows[key][..., :stop, :]


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864): turns channel pairs (i, i + hs/2) by position times frequency."""

    def __init__(self, block_size, width):
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)                     # (hs/2,)
        angles = torch.arange(block_size)[:, None] * frequencies                          # (T, hs/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, start):
        """x (..., T, hs), the first row at position `start` -> the same shape."""
        cos, sin = self.cos[start:start + x.size(-2)], self.sin[start:start + x.size(-2)]
        a, b = x.float().chunk(2, dim=-1)                                                # (..., T, hs/2) each
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


class Attention(nn.Module):
    """Multi-head causal self-attention, with rotary positions if the config says so."""

    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.dropout, self.causal = config.dropout, config.causal
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias)  # queries, keys and values of all heads
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.rotary = Rotary(config.block_size, C // self.n_head) if config.position == "rope" else None

    def forward(self, x, cache=None):
        B, T, C = x.size()
        start = cache.length if cache else 0
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                             # (B, nh, T, hs) each
        if self.rotary:
            q, k = self.rotary(q, start), self.rotary(k, start)
        if cache:
            k, v = cache.append((self, "k"), k), cache.append((self, "v"), v)         # (B, nh, start + T, hs)
        mask = None
        if start and T > 1:  # behind cached tokens, query t sees keys up to start + t, unlike with is_causal
            mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device).tril(start)
        with sdpa_kernel(SDPBackend.MATH) if x.is_cpu and T <= PLAIN_UP_TO else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0,
                                               is_causal=self.causal and not start)       # (B, nh, T, hs)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))

    def flops(self, T):
        return 2 * 2 * T * T * self.c_proj.in_features  # q k^T, and the attention weights times v


class MaskedConv(nn.Module):
    """The masked convolution: Conv(x)[t, c] = b[t] + sum_{s <= t} sum_j W[j, t, s] x[s, c + j - (k-1)//2].

    One (T, T) matrix a tap j, shared by all channels; its rows are the positions. The mask is applied to W in
    forward, so masked entries have gradient 0: they start at 0 and stay there. A window shorter than
    block_size uses the top left corner of W. With `toeplitz`, W[t, s] = w[t - s].
    """

    def __init__(self, config, width):
        super().__init__()
        T, self.kernel_size, self.width = config.block_size, config.kernel_size, width
        self.causal, self.toeplitz = config.causal, config.toeplitz
        self.weight = nn.Parameter(torch.empty(self.kernel_size, *([T] if self.toeplitz else [T, T])))
        self.bias = nn.Parameter(torch.empty(T))
        self.rotary = Rotary(T, width) if config.position == "rope" else None

    def rows(self, start, stop):
        """Rows start .. stop - 1 of the masked matrix, (k, stop - start, stop)."""
        if self.toeplitz:  # row t is [w[t], ..., w[0], 0, ...]: a window on w reversed and padded
            w = F.pad(self.weight[:, :stop].flip(1), (0, stop - 1))                       # (k, 2 stop - 1)
            return w.unfold(1, stop, 1)[:, :stop - start].flip(1)
        W = self.weight[:, start:stop, :stop]
        return W.tril(start) if self.causal else W

    def forward(self, x, cache=None):
        T, C, k = *x.shape[1:], self.kernel_size
        start = cache.length if cache else 0
        if self.rotary:
            x = self.rotary(x, start)
        if cache:
            x = cache.append(self, x.to(matmul_dtype(x)))                           # (B, S, C), S = start + T
        padded = F.pad(x, ((k - 1) // 2, k // 2)) if k > 1 else x                         # (B, S, C + k - 1)
        taps = [padded[..., j:j + C] for j in range(k)]                                   # (B, S, C) each
        y = self.bias[start:start + T, None]                                              # (T, 1)
        if self.toeplitz and not cache and T >= FFT_FROM:
            return y + toeplitz_product(self.weight[:, :T], taps)
        in_blocks = self.in_blocks(T) and not cache
        for W, tap in zip(self.weight[:, :T, :T] if in_blocks else self.rows(start, start + T), taps):
            y = y + (triangular_product(W, tap) if in_blocks else W @ tap)                # (T, S) @ (B, S, C)
        return y

    def in_blocks(self, T):
        return self.causal and not self.toeplitz and T >= BLOCKS_FROM

    def flops(self, T):
        if self.toeplitz and T >= FFT_FROM:  # k + 1 transforms of 2T reals a channel, 2.5 n log2 n each
            return (self.kernel_size + 1) * 2.5 * 2 * T * math.log2(2 * T) * self.width
        return 2 * self.kernel_size * self.width * (entries_in_blocks(T) if self.in_blocks(T) else T * T)


class Mixer(nn.Module):
    """Token mixing by masked convolutions, in the paper's variants: `mixer_heads` heads that each see C/h
    channels, each the sum of `parallel` paths, each path one convolution, or two with a GELU between them
    (`expanded`)."""

    def __init__(self, config):
        super().__init__()
        C, h = config.n_embd, config.mixer_heads
        def path():
            return nn.ModuleList(MaskedConv(config, C // h) for _ in range(2 if config.expanded else 1))
        self.heads = nn.ModuleList(nn.ModuleList(path() for _ in range(config.parallel)) for _ in range(h))
        self.c_in = nn.Linear(C, C, bias=config.bias) if h > 1 else nn.Identity()  # h projections C -> C/h
        self.c_proj = nn.Linear(C, C, bias=config.bias) if h > 1 else nn.Identity()

    def forward(self, x, cache=None):
        mixed = []
        for paths, part in zip(self.heads, self.c_in(x).chunk(len(self.heads), dim=-1)):  # part (B, T, C/h)
            outputs = [path[0](part, cache) for path in paths]
            if len(paths[0]) > 1:
                outputs = [path[1](F.gelu(y), cache) for path, y in zip(paths, outputs)]
            mixed.append(sum(outputs[1:], outputs[0]))
        return self.c_proj(torch.cat(mixed, dim=-1) if len(mixed) > 1 else mixed[0])      # (B, T, C)


# The one swap point between the architectures: the residual steps of a Block that carry information across
# tokens. The modules of one step read the same normed x, and their outputs are added.
TOKEN_MIXING = {
    "mixer": [[Mixer]],
    "gpt": [[Attention]],
    "llama": [[Attention]],
    "hybrid": [[Attention], [Mixer]],
    "hybrid_parallel": [[Attention, Mixer]],
}


class MLP(nn.Module):
    """Channel mixing, each token by itself: C -> 4C -> C."""

    def __init__(self, config):
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.c_fc = nn.Linear(C, 4 * C, bias=bias)
        self.c_gate = nn.Linear(C, 4 * C, bias=bias) if config.mlp == "swiglu" else None
        self.c_proj = nn.Linear(4 * C, C, bias=bias)

    def forward(self, x):
        return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x) if self.c_gate else F.gelu(self.c_fc(x)))


def build_norm(config):
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=1e-5) if config.norm == "rmsnorm" else nn.Identity()


class Block(nn.Module):
    """Pre-norm residual block: x <- x + f(norm(x)) for each step f of token mixing, and then for the MLP."""

    def __init__(self, config):
        super().__init__()
        steps = TOKEN_MIXING[config.model_type]
        self.mix = nn.ModuleList(nn.ModuleList(module(config) for module in step) for step in steps)
        self.mix_norm = nn.ModuleList(build_norm(config) for _ in steps)
        self.mlp = MLP(config)
        self.mlp_norm = build_norm(config)
        self.dropout, self.residual = nn.Dropout(config.dropout), config.residual

    def forward(self, x, cache=None):
        for norm, step in zip(self.mix_norm, self.mix):
            normed, x = norm(x), x if self.residual else 0                                # (B, T, C)
            for mix in step:
                x = x + self.dropout(mix(normed, cache))
        normed, x = self.mlp_norm(x), x if self.residual else 0
        return x + self.dropout(self.mlp(normed))


class LanguageModel(nn.Module):
    """Token embedding, n_layer Blocks, head. Input (B, T) with T <= block_size."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = build_norm(config) if config.final_norm else nn.Identity()
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()
        if config.tie:
            self.lm_head.weight = self.wte.weight

    @torch.no_grad()
    def init_weights(self):
        """All initialisation.

        init="torch", as in the paper's mixer: U(-1/sqrt(n), 1/sqrt(n)) for n inputs, in Linear (by PyTorch)
        and in the convolution (n = T tokens times k taps). init="normal", as in its transformers: N(0, 0.02);
        a convolution gets N(0, 0.02 / sqrt(n)), as a sum over all tokens would drown embeddings of 0.02. But
        a hybrid learns late from there (results/README.md): hybrids start as mixers do.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and self.config.init == "normal":
                module.weight.normal_(0, 0.02)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, MaskedConv):
                scale = 1 / math.sqrt(self.config.block_size * self.config.kernel_size)
                if self.config.init == "normal":
                    module.weight.normal_(0, 0.02 * scale)
                    module.bias.zero_()
                else:
                    module.weight.uniform_(-scale, scale)
                    module.bias.uniform_(-scale, scale)
                if module.causal and not module.toeplitz:
                    module.weight.tril_()  # without a gradient, what is 0 now stays 0, also in checkpoints
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, self.config.embd_std)

    def embed(self, idx):
        """Token ids (B, T) -> their embeddings, without position, (B, T, C)."""
        return self.wte(idx)

    def run_blocks(self, x, n_layer=None, cache=None):
        """Embeddings (B, T, C) through position and the first n_layer blocks (all if None) -> (B, T, C),
        before the final norm. With a cache, x are the tokens that follow those in it. Raises ValueError past
        block_size."""
        start = cache.length if cache else 0
        stop = start + x.size(1)
        if stop > self.config.block_size:
            raise ValueError(f"{stop} tokens do not fit into block_size {self.config.block_size}")
        if self.wpe:
            x = x + self.wpe.weight[start:stop]
        x = self.dropout(x)
        for block in self.blocks[:n_layer]:
            x = block(x, cache)
        if cache:
            cache.length = stop
        return x

    def head(self, x, targets=None, return_logits=True):
        """Hidden states (..., C), not normed yet -> logits (..., V) and the mean cross-entropy in nats, None
        without targets (...), of which -1 is not counted. return_logits=False: None, which is cheaper."""
        x = self.final_norm(x)
        logits = self.lm_head(x) if return_logits or targets is None else None
        return logits, None if targets is None else linear_cross_entropy(x, self.lm_head.weight, targets)

    def forward(self, idx, targets=None, return_logits=True):
        """idx, targets (B, T) int64 -> logits (B, T, V) and loss, as head has them."""
        return self.head(self.run_blocks(self.embed(idx)), targets, return_logits)

    def configure_optimizers(self, weight_decay, learning_rate, betas):
        """AdamW that decays matrices and embeddings, but neither biases nor norms."""
        params = list(self.parameters())
        groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)

    def estimate_flops(self, T=None):
        """Forward FLOPs a token in a window of T tokens (block_size if None), by the shapes of the matmuls: a
        (T, T) weight works for all C channels, so 6 N would be far off. Training costs 3 times that."""
        T = T or self.config.block_size
        linear = sum(2 * T * m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        mixing = sum(m.flops(T) for m in self.modules() if isinstance(m, (Attention, MaskedConv)))
        return (linear + mixing) / T

    def parameter_counts(self):
        """{role: number of parameters}: wte, wpe, mix, mix_norm, mlp, mlp_norm, final_norm, lm_head."""
        counts = Counter()
        for name, p in self.named_parameters():  # wte.weight, blocks.0.mlp.c_fc.weight, ...
            parts = name.split(".")
            counts[parts[2] if parts[0] == "blocks" else parts[0]] += p.numel()
        return dict(counts)

"""
Masked mixers, and the models they are compared with (arXiv 2409.01482, "the paper").

A masked mixer replaces self-attention with one learned lower-triangular T x T matrix per layer. All models here
share one Block; they differ in the modules that mix tokens, which ARCHITECTURES names. This file needs PyTorch alone.

    model = LanguageModel(ModelConfig(model_type="mixer", block_size=128, n_layer=4, n_embd=128))
    logits, loss = model(idx, targets)     # idx, targets (B, T) -> logits (B, T, V), loss in nats per token

Letters in shapes: B windows in a batch, T tokens in a window (block_size at most), C channels (n_embd),
V tokens in the vocabulary (vocab_size), nh attention heads of hs channels each.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

# ------------------------------------------------------------------------------------------------------------
# The four functions in which a model spends its time, in their plainest form. The scripts use the faster equivalents
# in lib/fast.py instead. If you change a function here, run with --fast=false to see the effect. For sampling,
# lib/fast.py also replaces the forward of Linear, and, on a GPU or compiled, of MaskedConv, Attention and Rotary.


def masked_product(W, x, start=0):
    """Row t of the result is the sum over s <= start + t of W[t, s] x[s].

    W (T, S): the rows of the matrix for the tokens from `start` on; x (B, S, C), S = start + T -> (B, T, C).
    """
    return W.tril(start) @ x


def toeplitz_product(w, x, start=0):
    """Row t of the result is the sum over s <= start + t of w[start + t - s] x[s]: a Toeplitz matrix, constant along
    its diagonals. w (S,), x (B, S, C) -> (B, S - start, C)."""
    S = x.size(1)
    s = torch.arange(S, device=x.device)
    lag = s[start:, None] - s                                                            # (S - start, S)
    return masked_product(w[lag.clamp(min=0)], x, start)  # a negative lag is in the future, which is masked


def attention(q, k, v, causal=True, dropout=0.0):
    """Attention of the last T of S tokens: q (B, nh, T, hs), k and v (B, nh, S, hs) -> (B, nh, T, hs)."""
    T, S = q.size(-2), k.size(-2)
    mask = None
    if causal and 1 < T < S:  # PyTorch's is_causal would compare query 0 with key 0, not with key S - T
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal and T == S)


def linear_cross_entropy(x, weight, targets):
    """Mean loss, in nats per token, of the logits x @ weight.T: x (..., C), weight (V, C), targets (...) int64.

    Targets of -1 are ignored.
    """
    logits = F.linear(x, weight).float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)


# ------------------------------------------------------------------------------------------------------------
# token mixing


class MaskedConv(nn.Module):
    """Conv(x)[t, c] = b[t] + sum over s <= t and taps j of W[j, t, s] x[s, c + j - (k-1)//2]; paper, section 2.

    With kernel size k = 1, the paper's main model, this is W.tril() @ x + b: one T x T matrix, the same for
    every channel and every text. Its rows are the positions, so that a mixer needs no other positional encoding.
    A window shorter than block_size uses the top left corner. Masked weights have no gradient and stay at 0.
    """

    def __init__(self, config, width):
        super().__init__()
        T = config.block_size
        self.kernel_size, self.width = config.kernel_size, width
        self.causal, self.toeplitz = config.causal, config.toeplitz
        shape = (self.kernel_size, T) if self.toeplitz else (self.kernel_size, T, T)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(T))
        self.rotary = Rotary(T, width) if config.position == "rope" else None

    def forward(self, x, cache=None):
        T, C = x.shape[1:]
        start = cache.length if cache else 0
        if self.rotary:
            x = self.rotary(x, start)
        if cache:
            x = cache.append(self, x.to(self.weight.dtype))                               # (B, S, C), S = start + T
        k = self.kernel_size
        padded = F.pad(x, ((k - 1) // 2, k // 2)) if k > 1 else x                         # (B, S, C + k - 1)
        y = self.bias[start:start + T, None]                                              # (T, 1)
        for j in range(k):
            y = y + self.product(j, padded[..., j:j + C], start)
        return y                                                                          # (B, T, C)

    def product(self, j, x, start=0):
        """Tap j's matrix times x (B, S, C): its rows for the tokens from `start` on, (B, S - start, C)."""
        S = x.size(1)
        if self.toeplitz:
            return toeplitz_product(self.weight[j, :S], x, start)
        W = self.weight[j, start:S, :S]
        return masked_product(W, x, start) if self.causal else W @ x

    def flops(self, T):
        """Forward FLOPs of a window of T tokens: a dense T x T product, whichever kernel computes it."""
        return 2 * self.kernel_size * T * T * self.width

    def mixing(self, x):
        """x (B, T, C) -> the (k, T, T) matrices that mix its tokens."""
        identity = torch.eye(x.size(1), device=x.device)[None]                            # (1, T, T)
        return torch.cat([self.product(j, identity) for j in range(self.kernel_size)])


class Mixer(nn.Module):
    """Token mixing by masked convolutions, with the paper's variants.

    `mixer_heads` heads each see C/heads channels. Each head is the sum of `parallel` paths. A path is one masked
    convolution, or, if `expanded`, two with a GELU between them.
    """

    def __init__(self, config):
        super().__init__()
        C, heads = config.n_embd, config.mixer_heads
        if C % heads:
            raise ValueError(f"n_embd {C} is not divisible by mixer_heads {heads}")
        self.heads, self.parallel, self.expanded = heads, config.parallel, config.expanded
        n_paths = heads * config.parallel
        self.conv = nn.ModuleList(MaskedConv(config, C // heads) for _ in range(n_paths))
        self.conv2 = nn.ModuleList(MaskedConv(config, C // heads) for _ in range(n_paths if self.expanded else 0))
        self.c_in = nn.Linear(C, C, bias=config.bias) if heads > 1 else None
        self.c_proj = nn.Linear(C, C, bias=config.bias) if heads > 1 else None

    def forward(self, x, cache=None):
        if self.heads == 1:
            return self.head(0, x, cache)
        parts = self.c_in(x).chunk(self.heads, dim=-1)                                    # (B, T, C/heads) each
        mixed = [self.head(h, part, cache) for h, part in enumerate(parts)]
        return self.c_proj(torch.cat(mixed, dim=-1))                                      # (B, T, C)

    def head(self, h, x, cache):
        paths = []
        for i in range(h * self.parallel, (h + 1) * self.parallel):
            y = self.conv[i](x, cache)
            paths.append(self.conv2[i](F.gelu(y), cache) if self.expanded else y)
        return sum(paths[1:], start=paths[0])                                             # (B, T, C/heads)


class ShortConv(nn.Module):
    """Mix each token with the one before it, channel by channel: y[t] = a x[t] + b x[t - 1] (arXiv 2212.14052)."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, config.n_embd).uniform_(-0.7, 0.7))  # as nn.Conv1d of two inputs

    def forward(self, x, cache=None):
        last = torch.zeros_like(x[:, :1])  # zeros stand before the first token of a text     (B, 1, C)
        if cache:
            last = cache.states.get(self, last)
            cache.states[self] = x[:, -1:]
        before = torch.cat([last, x[:, :-1]], dim=1)                                      # (B, T, C)
        return self.weight[0] * x + self.weight[1] * before

    def flops(self, T):
        """There is no matmul."""
        return 0


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864): turns channel pairs (i, i + hs/2) by position times frequency."""

    def __init__(self, block_size, width):
        super().__init__()
        if width % 2:
            raise ValueError(f"position 'rope' needs heads of an even width, and they have {width} channels")
        frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)                     # (hs/2,)
        angles = torch.arange(block_size)[:, None] * frequencies                          # (block_size, hs/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, start):
        """x (..., T, hs), whose first row stands at position `start` -> the same shape."""
        stop = start + x.size(-2)
        cos, sin = self.cos[start:stop], self.sin[start:stop]                             # (T, hs/2) each
        return self.rotate(x, cos, sin)

    @staticmethod
    def rotate(x, cos, sin):
        a, b = x.float().chunk(2, dim=-1)                                                 # (..., T, hs/2) each
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


class Attention(nn.Module):
    """Multi-head causal self-attention, with rotary positions if the config says so."""

    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        if C % self.n_head:
            raise ValueError(f"n_embd {C} is not divisible by n_head {self.n_head}")
        self.dropout, self.causal = config.dropout, config.causal
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias)  # queries, keys and values of all heads
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.rotary = Rotary(config.block_size, C // self.n_head) if config.position == "rope" else None

    def qkv(self, x, start=0):
        """x (B, T, C) -> queries, keys and values, (B, nh, T, hs) each."""
        B, T, C = x.size()
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.rotary:
            q, k = self.rotary(q, start), self.rotary(k, start)
        return q, k, v

    def forward(self, x, cache=None):
        q, k, v = self.qkv(x, cache.length if cache else 0)
        if cache:
            k, v = cache.append((self, "k"), k), cache.append((self, "v"), v)             # (B, nh, S, hs)
        y = attention(q, k, v, self.causal, self.dropout if self.training else 0.0)       # (B, nh, T, hs)
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))                            # (B, T, C)

    def flops(self, T):
        """Forward FLOPs of q k^T and of its product with v, besides those of the Linear layers."""
        return 2 * 2 * T * T * self.c_proj.in_features

    def mixing(self, x):
        """x (B, T, C) -> the (nh, T, T) attention weights of its first window."""
        q, k, _ = self.qkv(x[:1])
        scores = (q @ k.mT)[0].float() / math.sqrt(q.size(-1))                            # (nh, T, T)
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        return scores.softmax(dim=-1)


# The one swap point between architectures. `steps` are the residual steps of a Block that mix tokens: the modules of
# one step read the same normed x, and their outputs are added. The other keys are the meaning of "auto", as in the
# paper. A new architecture needs a class with forward(x, cache) and flops(T), and an entry here.
ARCHITECTURES = {
    "mixer": dict(steps=[[Mixer]], position="none", norm="layernorm", mlp="gelu", bias=True, final_norm=False,
                  init="torch", embd_std=1.0),
    "gpt": dict(steps=[[Attention]], position="learned", norm="layernorm", mlp="gelu", bias=True, final_norm=True,
                init="normal", embd_std=0.02),
    "llama": dict(steps=[[Attention]], position="rope", norm="rmsnorm", mlp="swiglu", bias=False, final_norm=True,
                  init="normal", embd_std=0.02),
    "hybrid": dict(steps=[[Attention], [Mixer]], position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
                   final_norm=True, init="torch", embd_std=1.0),
    "mixer_first": dict(steps=[[Mixer], [Attention]], position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
                        final_norm=True, init="torch", embd_std=1.0),
    "llama_short": dict(steps=[[ShortConv], [Attention]], position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
                        final_norm=True, init="torch", embd_std=1.0),
    "hybrid_parallel": dict(steps=[[Attention, Mixer]], position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
                            final_norm=True, init="torch", embd_std=1.0),
}
CHOICES = {"model_type": ARCHITECTURES, "position": ("none", "learned", "rope"), "mlp": ("gelu", "swiglu"),
           "norm": ("layernorm", "rmsnorm", "none"), "init": ("torch", "normal"), "bias": (True, False),
           "final_norm": (True, False)}
COUNTS = dict(block_size=1, vocab_size=1, n_layer=0, n_embd=1, n_head=1, kernel_size=1, mixer_heads=1, parallel=1,
              mlp_ratio=0)  # the least that each can be


@dataclass
class ModelConfig:
    """Everything that defines a model. Raises ValueError, naming the key, for a value that is out of range."""
    # defaults: the interval or the list of choices in front of a comment is what the scripts accept
    model_type: str = "mixer"         # mixer, gpt, llama, hybrid, ...: an entry of ARCHITECTURES
    block_size: int = 512             # [1, inf) T: the longest window of tokens
    n_layer: int = 8                  # [0, inf) blocks; without one, the next token is guessed from the last one
    n_embd: int = 1024                # [1, inf) C: channels
    n_head: int = 4                   # [1, inf) attention heads (gpt, llama, hybrids)
    dropout: float = 0.0              # [0, 1) on the embedding, in attention, and on the output of each step
    kernel_size: int = 1              # [1, inf) k: taps of the masked convolution along the channels
    mixer_heads: int = 1              # [1, inf) heads of the mixer, each with a convolution of its own
    parallel: int = 1                 # [1, inf) masked convolutions whose outputs are summed
    expanded: bool = False            # two masked convolutions with a GELU between them, instead of one
    toeplitz: bool = False            # W[t, s] = w[t - s]: T weights per layer instead of T * T
    causal: bool = True               # false removes the mask: every token sees all others
    position: str = "auto"            # auto | none | learned | rope
    norm: str = "auto"                # auto | layernorm | rmsnorm | none: of each residual step
    post_norm: bool = False           # x <- norm(x + f(x)), as in the first GPT; false: x <- x + f(norm(x))
    final_norm: bool | str = "auto"   # a norm before the head
    mlp: str = "auto"                 # auto | gelu | swiglu: swiglu has half as many weights again
    mlp_ratio: int = 4                # [0, inf) hidden channels of the MLP, times C; 0: no MLP
    bias: bool | str = "auto"         # biases in Linear and LayerNorm (a convolution always has its own)
    residual: bool = True             # false: the output of a step replaces x, instead of being added to it
    tie: bool = False                 # the head shares the weights of the embedding
    embd_std: float | str = "auto"    # (0, inf) initial standard deviation of token embedding and learned positions
    init: str = "auto"                # auto | torch | normal: the other weights, see LanguageModel.init_weights
    # end of defaults
    vocab_size: int = 4096            # V: given by the data

    def __post_init__(self):
        for key, known in CHOICES.items():
            if getattr(self, key) == "auto" and key != "model_type":
                setattr(self, key, ARCHITECTURES[self.model_type][key])
            if getattr(self, key) not in known:
                raise ValueError(f"{key} must be {' or '.join(map(str, known))}; got {getattr(self, key)!r}")
        for key, least in COUNTS.items():
            if type(getattr(self, key)) is not int or getattr(self, key) < least:
                raise ValueError(f"{key} must be an int of {least} or more; got {getattr(self, key)!r}")
        if self.embd_std == "auto":
            self.embd_std = ARCHITECTURES[self.model_type]["embd_std"]
        if isinstance(self.embd_std, str) or not 0 < self.embd_std < math.inf:
            raise ValueError(f"embd_std must be a positive number or 'auto'; got {self.embd_std!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {self.dropout}")
        if self.toeplitz and not self.causal:
            raise ValueError("a Toeplitz mixer has weights for the past only: toeplitz needs causal=True")


# ------------------------------------------------------------------------------------------------------------
# the rest of the model


class MLP(nn.Module):
    """Channel mixing, each token by itself: C -> mlp_ratio C -> C, with GELU or SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__()
        C, hidden, bias = config.n_embd, config.mlp_ratio * config.n_embd, config.bias
        self.c_fc = nn.Linear(C, hidden, bias=bias)
        self.c_gate = nn.Linear(C, hidden, bias=bias) if config.mlp == "swiglu" else None
        self.c_proj = nn.Linear(hidden, C, bias=bias)

    def forward(self, x):
        if self.c_gate:
            return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))
        return self.c_proj(F.gelu(self.c_fc(x)))


def build_norm(config):
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=1e-5) if config.norm == "rmsnorm" else nn.Identity()


class Block(nn.Module):
    """Residual block: x <- x + f(norm(x)) for each step f that mixes tokens, and then for the MLP.

    With post_norm, x <- norm(x + f(x)): the block before GPT-2, whose output is already normed.
    """

    def __init__(self, config):
        super().__init__()
        steps = ARCHITECTURES[config.model_type]["steps"]
        self.mix = nn.ModuleList(nn.ModuleList(module(config) for module in step) for step in steps)
        self.mix_norm = nn.ModuleList(build_norm(config) for _ in steps)
        self.mlp = MLP(config) if config.mlp_ratio else None
        self.mlp_norm = build_norm(config) if config.mlp_ratio else None
        self.dropout = nn.Dropout(config.dropout)
        self.residual, self.post_norm = config.residual, config.post_norm

    def forward(self, x, cache=None):
        for norm, step in zip(self.mix_norm, self.mix):
            inputs = x if self.post_norm else norm(x)                                     # (B, T, C)
            x = x if self.residual else torch.zeros_like(x)
            for mix in step:
                x = x + self.dropout(mix(inputs, cache))
            if self.post_norm:
                x = norm(x)
        if not self.mlp:
            return x
        inputs = x if self.post_norm else self.mlp_norm(x)
        x = x if self.residual else torch.zeros_like(x)
        x = x + self.dropout(self.mlp(inputs))
        return self.mlp_norm(x) if self.post_norm else x


class Cache:
    """What the layers remember of earlier tokens, so that one more token costs one more row of work.

    Attention keeps keys and values and a masked convolution its inputs, by `append`; a recurrence keeps a state of
    fixed size, a tensor (B, ...) in `states`.
    """

    def __init__(self, block_size):
        self.block_size = block_size
        self.length = 0   # tokens that have gone through all layers
        self.rows = {}    # key -> (B, ..., block_size, C), of which the first `length` rows are filled
        self.states = {}  # key -> (B, ...)

    def append(self, key, x):
        """Put rows x (B, ..., T, C) behind those under `key`, and return all of them, (B, ..., length + T, C)."""
        if key not in self.rows:
            self.rows[key] = x.new_zeros(*x.shape[:-2], self.block_size, x.size(-1))
        stop = self.length + x.size(-2)
        self.rows[key][..., self.length:stop, :] = x
        return self.rows[key][..., :stop, :]


class LanguageModel(nn.Module):
    """Token embedding, n_layer Blocks, head. It reads (B, T) token ids, T <= block_size."""

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
        """Draw all weights but those of norms and ShortConv, which start by themselves.

        init="torch", as in the paper's mixers: U(-1/sqrt(n), 1/sqrt(n)) for n inputs, in Linear (by PyTorch) and in
        the convolution (n = block_size times taps). init="normal", as in its transformers: N(0, 0.02), and
        N(0, 0.02 / sqrt(n)) in the convolution, whose sum over all tokens would drown embeddings of 0.02. Hybrids
        learn late from there (results/architectures.md), so they start as mixers do.
        """
        for module in self.modules():
            if module is self.lm_head and module.weight is self.wte.weight:
                continue  # a tied head starts as the embedding does
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
                    module.weight.tril_()  # zeros without a gradient stay zeros, in checkpoints too
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, self.config.embd_std)

    def embed(self, idx):
        """Token ids (B, T) -> their embeddings (B, T, C), without positions. Raises ValueError for other shapes."""
        if idx.dim() != 2:
            raise ValueError(f"token ids have the shape (B, T), a batch of windows; got {tuple(idx.shape)}")
        return self.wte(idx)

    def run_blocks(self, x, n_layer=None, cache=None):
        """Embeddings (B, T, C) through positions and the first n_layer blocks (None: all) -> (B, T, C).

        The result is not yet normed by the final norm. With a cache, x are the tokens that follow those in it.
        Raises ValueError beyond block_size tokens or beyond the last block.
        """
        start = cache.length if cache else 0
        stop = start + x.size(1)
        if stop > self.config.block_size:
            raise ValueError(f"{stop} tokens do not fit into block_size {self.config.block_size}")
        if not 0 <= (n_layer or 0) <= len(self.blocks):
            raise ValueError(f"n_layer must be 0 to {len(self.blocks)}, as the model has no more; got {n_layer}")
        if self.wpe:
            x = x + self.wpe.weight[start:stop]
        x = self.dropout(x)
        for block in self.blocks[:n_layer]:
            x = block(x, cache)
        if cache:
            cache.length = stop
        return x

    def head(self, x, targets=None, return_logits=True):
        """Hidden states (..., C) through the final norm -> logits (..., V) and the mean loss in nats per token.

        Without targets (...) the loss is None. A training step needs no logits: return_logits=False returns None.
        """
        x = self.final_norm(x)
        logits = self.lm_head(x) if return_logits or targets is None else None
        loss = None if targets is None else linear_cross_entropy(x, self.lm_head.weight, targets)
        return logits, loss

    def forward(self, idx, targets=None, return_logits=True):
        """idx, targets (B, T) int64 -> logits (B, T, V) and loss, as `head` returns them."""
        return self.head(self.run_blocks(self.embed(idx)), targets, return_logits)

    @torch.no_grad()
    def mixing(self, idx):
        """The matrices that mix the tokens of one window idx (1, T): for each layer a tensor (heads, T, T).

        A mixer has its masked W, the same for every text; attention has its weights for this text.
        """
        matrices = []

        def keep(module, inputs):
            matrices[-1].append(module.mixing(inputs[0]))
        x = self.run_blocks(self.embed(idx), n_layer=0)
        for block in self.blocks:
            matrices.append([])
            hooks = [m.register_forward_pre_hook(keep) for m in block.modules() if hasattr(m, "mixing")]
            x = block(x)
            for hook in hooks:
                hook.remove()
        return [torch.cat(layer) for layer in matrices]

    def configure_optimizers(self, weight_decay, learning_rate, betas):
        """AdamW that decays matrices and embeddings, but neither biases nor norms."""
        params = list(self.parameters())
        groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)

    def estimate_flops(self, T=None):
        """Forward FLOPs per token in a window of T tokens (None: block_size); a training step costs 3 times that.

        Matmuls are counted by their shapes: 6 N would be far off, as a (T, T) matrix serves all C channels. Raises
        ValueError if a module that mixes tokens has no flops(T).
        """
        T = T or self.config.block_size
        mixing_modules = [module for block in self.blocks for step in block.mix for module in step]
        for module in mixing_modules:
            if not any(hasattr(m, "flops") for m in module.modules()):
                raise ValueError(f"{type(module).__name__} has no method flops(T): give it one")
        linear = sum(2 * T * m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        mixing = sum(m.flops(T) for m in self.modules() if hasattr(m, "flops"))
        return (linear + mixing) / T

    @torch.inference_mode()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0, stop_token=None,
                 cached=True):
        """Continue a batch of prompts; yields after each step a list with the new token id of each prompt.

        prompts: B lists of 1 to block_size ids, of any lengths. An entry is None while its prompt is still being
        read and after its text has ended, by max_new_tokens or with stop_token. temperature 0 is greedy; top_k keeps
        the k likeliest tokens, top_p the fewest that add up to p. cached=False computes the whole window for each
        token, with the same result. Raises ValueError for prompts that are no lists, empty or too long.

        There is no position beyond block_size: when the window is full, its older half is dropped and the newer half
        is read again from position 0.
        """
        block_size, device = self.config.block_size, self.wte.weight.device
        if not all(isinstance(prompt, list) for prompt in prompts):
            raise ValueError("prompts are a list of lists of token ids: generate([[1, 2, 3]], ...) for a single one")
        lengths = [len(prompt) for prompt in prompts] or [0]
        if min(lengths) < 1 or max(lengths) > block_size:
            raise ValueError(f"a prompt has 1 to block_size = {block_size} tokens")
        generator = torch.Generator(device).manual_seed(seed)
        step = min(lengths)
        idx = torch.tensor([prompt[:step] for prompt in prompts], device=device)          # (B, step)
        cache, unread = Cache(block_size), idx
        n_left = [max_new_tokens] * len(prompts)
        while any(n_left):
            if idx.size(1) > block_size:
                idx = idx[:, -max(1, block_size // 2):]
                cache.length, cache.states, unread = 0, {}, idx
            x = self.run_blocks(self.embed(unread if cached else idx), cache=cache if cached else None)
            tokens = sample_token(self.head(x[:, -1])[0], temperature, top_k, top_p, generator).tolist()
            new = [None] * len(prompts)
            for b, prompt in enumerate(prompts):
                if step < len(prompt):  # the prompt is still being read, and has the next token itself
                    tokens[b] = prompt[step]
                elif n_left[b]:
                    new[b] = tokens[b]
                    n_left[b] = 0 if tokens[b] == stop_token else n_left[b] - 1
            yield new
            unread = torch.tensor(tokens, device=device)[:, None]                         # (B, 1)
            idx, step = torch.cat([idx, unread], dim=1), step + 1


def sample_token(logits, temperature, top_k, top_p, generator):
    """Logits (B, V) -> one token id per row, (B,)."""
    if temperature < 1e-6:  # logits divided by less would overflow
        return logits.argmax(dim=-1)
    V = logits.size(-1)
    logits, idx = (logits.float() / temperature).topk(min(top_k or V, V))                 # (B, k), likeliest first
    p = logits.softmax(dim=-1)
    if top_p and top_p < 1:
        p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0.0)  # the tokens before it add up to top_p already
    # Token i has the largest p[i] / Exp(1) with probability p[i]. torch.multinomial would wait for the device.
    race = p / torch.empty_like(p).exponential_(generator=generator)
    return idx.gather(1, race.argmax(dim=-1, keepdim=True))[:, 0]

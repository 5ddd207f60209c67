"""
Masked mixers and the models they are compared with (arXiv 2409.01482, "the paper").

A masked mixer is a language model in which a convolution over tokens, masked to be causal, stands where a transformer
has self-attention. All the models here are the same code but for one swap point, `token_mixing`: mixer, GPT, Llama and
two hybrids. Shapes: B batch, T tokens, C = n_embd channels, V = vocab_size, nh heads of size hs, k = kernel_size.

    model = LanguageModel(ModelConfig(model_type="mixer", block_size=128, n_layer=4, n_embd=128))
    logits, loss = model(idx, targets)         # idx, targets (B, T) -> logits (B, T, V), loss in nats a token
"""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

# What "auto" stands for: each architecture as the paper's section 2 describes it. Set a key to override it.
TRANSFORMER = dict(position="rope", norm="rmsnorm", final_norm=True, mlp="swiglu", bias=False, embd_std=0.02, init="normal")
AUTO = {
    "mixer": dict(position="none", norm="layernorm", final_norm=False, mlp="gelu", bias=True, embd_std=1.0, init="torch"),
    "gpt": dict(position="learned", norm="layernorm", final_norm=True, mlp="gelu", bias=True, embd_std=0.02, init="normal"),
    "llama": TRANSFORMER,
    "hybrid": TRANSFORMER,
    "hybrid_parallel": TRANSFORMER,
}
CHOICES = {"model_type": AUTO, "position": ("none", "learned", "rope"), "norm": ("layernorm", "rmsnorm", "none"),
           "mlp": ("gelu", "swiglu"), "init": ("torch", "normal"), "bias": (True, False), "final_norm": (True, False)}
FFT_FROM = 2048  # tokens from which a Toeplitz matrix is multiplied by FFT: below it the dense product is faster


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
    tie: bool = False                 # the head uses the embedding's weights
    embd_std: float | str = "auto"    # standard deviation of the token embedding at the start
    init: str = "auto"                # other weights: torch: PyTorch's own for Linear and Conv1d | normal: N(0, 0.02)
    # end of defaults
    vocab_size: int = 4096            # V: given by the data

    def __post_init__(self):
        for key, value in AUTO.get(self.model_type, {}).items():
            if getattr(self, key) == "auto":
                setattr(self, key, value)
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} must be one of {', '.join(map(str, choices))}; got {getattr(self, key)!r}")
        for key in "block_size", "vocab_size", "n_layer", "n_embd", "n_head", "kernel_size", "mixer_heads", "parallel":
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise ValueError(f"{key} must be an int of 1 or more; got {getattr(self, key)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {self.dropout}")
        if not isinstance(self.embd_std, (int, float)) or not 0 < self.embd_std < math.inf:
            raise ValueError(f"embd_std must be a positive number or 'auto'; got {self.embd_std!r}")
        attends, mixes = self.model_type != "mixer", self.model_type not in ("gpt", "llama")
        if attends and self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if mixes and self.n_embd % self.mixer_heads:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by mixer_heads {self.mixer_heads}")
        if self.position == "rope" and (attends and self.n_embd // self.n_head % 2
                                        or mixes and self.n_embd // self.mixer_heads % 2):
            raise ValueError("position 'rope' turns channels in pairs: n_embd / heads must be even")
        if self.toeplitz and not self.causal:
            raise ValueError("toeplitz has weights for the past only; it needs causal=True")


class Cache:
    """What the layers remember of the tokens they have seen, so that each further token costs one row of work:
    attention keeps keys and values, a masked convolution its inputs."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.length = 0  # tokens that have gone through all layers
        self.rows = {}   # key -> (..., block_size, C), of which the first `length` rows are filled

    def append(self, key, x):
        """Add rows x (..., T, C) to those under `key`; returns all of them, (..., length + T, C)."""
        if key not in self.rows:
            self.rows[key] = x.new_empty(*x.shape[:-2], self.block_size, x.size(-1))
        stop = self.length + x.size(-2)
        self.rows[key][..., self.length:stop, :] = x
        return self.rows[key][..., :stop, :]


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864): turns channel pairs (i, i + hs/2) by position times frequency."""

    def __init__(self, block_size, width):
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)                     # (hs/2,)
        angles = torch.arange(block_size)[:, None] * frequencies                          # (T, hs/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, start):
        """x (..., T, hs), the first row at position `start` -> the same shape."""
        cos, sin = self.cos[start:start + x.size(-2)], self.sin[start:start + x.size(-2)]
        a, b = x.float().chunk(2, dim=-1)                                                 # (..., T, hs/2) each
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


class Attention(nn.Module):
    """Multi-head causal self-attention, with rotary positions if the config says so."""

    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout, self.causal = config.n_head, config.dropout, config.causal
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        rope = config.position == "rope"
        self.rotary = Rotary(config.block_size, config.n_embd // config.n_head) if rope else None

    def forward(self, x, cache=None):
        B, T, C = x.size()
        start = cache.length if cache else 0
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                              # (B, nh, T, hs) each
        if self.rotary:
            q, k = self.rotary(q, start), self.rotary(k, start)
        if cache:
            k, v = cache.append((self, "k"), k), cache.append((self, "v"), v)             # (B, nh, start + T, hs)
        # with tokens in the cache, query t sees the keys up to start + t; SDPA's own causal mask knows no such offset
        mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device).tril(start) if start and T > 1 else None
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0,
                                           is_causal=self.causal and not start)           # (B, nh, T, hs)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))

    def flops(self, T):
        return 2 * 2 * T * T * self.c_proj.in_features  # q k^T, and the weights times v


class MaskedConv(nn.Module):
    """The masked convolution: Conv(x)[t, c] = b[t] + sum_{s <= t} sum_j W[j, t, s] x[s, c + j - (k-1)//2].

    One (T, T) matrix a tap, shared by all channels; its rows are the positions. The mask is applied to W in forward,
    so masked entries have gradient 0; they start at 0 and stay there. A window shorter than block_size uses the top
    left corner of W. With `toeplitz`, W[t, s] = w[t - s].
    """

    def __init__(self, config, width):
        super().__init__()
        T, k = config.block_size, config.kernel_size
        self.kernel_size, self.causal, self.toeplitz, self.width = k, config.causal, config.toeplitz, width
        self.weight = nn.Parameter(torch.empty(k, T) if config.toeplitz else torch.empty(k, T, T))
        self.bias = nn.Parameter(torch.empty(T))
        self.rotary = Rotary(T, width) if config.position == "rope" else None

    def rows(self, start, stop):
        """Rows start .. stop - 1 of the masked matrix, (k, stop - start, stop)."""
        if self.toeplitz:  # row t is [w[t], ..., w[0], 0, ...]: a window that slides over w reversed and padded
            w = F.pad(self.weight[:, :stop].flip(1), (0, stop - 1))                       # (k, 2 stop - 1)
            return w.unfold(1, stop, 1)[:, :stop - start].flip(1)
        W = self.weight[:, start:stop, :stop]
        return W.tril(start) if self.causal else W

    def forward(self, x, cache=None):
        T, C = x.shape[1:]
        start = cache.length if cache else 0
        if self.rotary:
            x = self.rotary(x, start)
        if cache:
            x = cache.append(self, x)                                                     # (B, S, C), S = start + T
        left = (self.kernel_size - 1) // 2
        x = F.pad(x, (left, self.kernel_size - 1 - left))                                 # (B, S, C + k - 1)
        taps = [x[..., j:j + C] for j in range(self.kernel_size)]                         # (B, S, C) each
        if self.toeplitz and not cache and T >= FFT_FROM:
            y = self.multiply_by_fft(taps)
        else:
            y = sum(W @ tap for W, tap in zip(self.rows(start, start + T), taps))         # (T, S) @ (B, S, C)
        return y + self.bias[start:start + T, None]

    def multiply_by_fft(self, taps):
        """The Toeplitz product in O(T log T): taps, k of (B, T, C) -> (B, T, C)."""
        T = taps[0].size(1)
        n = 2 * T  # padded, so that the circular convolution of the FFT does not wrap around
        w = torch.fft.rfft(self.weight[:, :T].float(), n)                                 # (k, T + 1)
        y = sum(w_j[:, None] * torch.fft.rfft(tap.float(), n, dim=1) for w_j, tap in zip(w, taps))
        return torch.fft.irfft(y, n, dim=1)[:, :T].type_as(taps[0])

    def flops(self, T):
        if self.toeplitz and T >= FFT_FROM:  # k + 1 transforms of 2T reals, 2.5 n log2 n each, for each channel
            return (self.kernel_size + 1) * 2.5 * 2 * T * math.log2(2 * T) * self.width
        return 2 * self.kernel_size * T * T * self.width


class Expanded(nn.Module):
    """Two masked convolutions with a GELU between them."""

    def __init__(self, config, width):
        super().__init__()
        self.conv_in, self.conv_out = MaskedConv(config, width), MaskedConv(config, width)

    def forward(self, x, cache=None):
        return self.conv_out(F.gelu(self.conv_in(x, cache)), cache)


class Sum(nn.ModuleList):
    """Modules that read the same input and are added."""

    def forward(self, x, cache=None):
        return sum(module(x, cache) for module in self)


class MultiHead(nn.Module):
    """Heads of a mixer: project C -> C/h for each of the h heads, mix tokens there, concatenate, project C -> C."""

    def __init__(self, config, heads):
        super().__init__()
        self.c_in = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)  # the projections of all heads
        self.heads = nn.ModuleList(heads)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, cache=None):
        parts = self.c_in(x).chunk(len(self.heads), dim=-1)                               # (B, T, C/h) each
        return self.c_proj(torch.cat([head(part, cache) for head, part in zip(self.heads, parts)], dim=-1))


def mixer(config):
    """The masked convolution in the variant that the config names."""
    def conv(width):
        convs = [(Expanded if config.expanded else MaskedConv)(config, width) for _ in range(config.parallel)]
        return Sum(convs) if config.parallel > 1 else convs[0]
    heads = [conv(config.n_embd // config.mixer_heads) for _ in range(config.mixer_heads)]
    return MultiHead(config, heads) if config.mixer_heads > 1 else heads[0]


def token_mixing(config):
    """The one swap point between the architectures: the residual steps of a Block that carry information across
    tokens. Each is a module (B, T, C) -> (B, T, C) that takes the cache as its second argument."""
    match config.model_type:
        case "mixer":
            return [mixer(config)]
        case "gpt" | "llama":
            return [Attention(config)]
        case "hybrid":
            return [Attention(config), mixer(config)]
        case "hybrid_parallel":
            return [Sum([Attention(config), mixer(config)])]


def build_norm(config):
    match config.norm:
        case "layernorm":
            return nn.LayerNorm(config.n_embd, bias=config.bias)
        case "rmsnorm":
            return nn.RMSNorm(config.n_embd, eps=1e-5)
    return nn.Identity()


class MLP(nn.Module):
    """Channel mixing: each token by itself, C -> 4C -> C."""

    def __init__(self, config):
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.c_fc = nn.Linear(C, 4 * C, bias=bias)
        self.c_gate = nn.Linear(C, 4 * C, bias=bias) if config.mlp == "swiglu" else None
        self.c_proj = nn.Linear(4 * C, C, bias=bias)

    def forward(self, x):
        h = F.silu(self.c_gate(x)) * self.c_fc(x) if self.c_gate else F.gelu(self.c_fc(x))    # (B, T, 4C)
        return self.c_proj(h)


class Block(nn.Module):
    """Pre-norm residual block: x <- x + mix(norm(x)) for each token mixing step, then x <- x + MLP(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.mix = nn.ModuleList(token_mixing(config))
        self.mix_norm = nn.ModuleList(build_norm(config) for _ in self.mix)
        self.mlp = MLP(config)
        self.mlp_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        for norm, mix in zip(self.mix_norm, self.mix):
            x = x + self.dropout(mix(norm(x), cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class LanguageModel(nn.Module):
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
        """All initialisation."""
        config = self.config
        for module in self.modules():
            if isinstance(module, nn.Linear) and config.init == "normal":  # else: PyTorch's own, U(+-1/sqrt(fan_in))
                module.weight.normal_(0, 0.02)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, MaskedConv):
                if config.init == "normal":
                    module.weight.normal_(0, 0.02)
                    module.bias.zero_()
                else:  # as nn.Conv1d(T, T, k) does
                    bound = 1 / math.sqrt(config.block_size * config.kernel_size)
                    module.weight.uniform_(-bound, bound)
                    module.bias.uniform_(-bound, bound)
                if config.causal and not config.toeplitz:
                    module.weight.tril_()  # masked entries get no gradient: 0 now is 0 for ever, also in checkpoints
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, config.embd_std)

    # the pieces of forward, for inversion and retrieval

    def embed(self, idx):
        """Token ids (B, T) -> their embeddings, without position, (B, T, C)."""
        return self.wte(idx)

    def run_blocks(self, x, n_layer=None, cache=None):
        """Embeddings (B, T, C) through position and the first n_layer blocks (all if None) -> (B, T, C), before the
        final norm. With a cache, x are the tokens that follow those in it. Raises ValueError past block_size."""
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

    def head(self, x):
        """Hidden states (..., C) -> logits (..., V)."""
        return self.lm_head(self.final_norm(x))

    def forward(self, idx, targets=None, return_logits=True):
        """idx, targets (B, T) int64 -> logits (B, T, V), and the mean cross-entropy in nats (None without targets).
        A target of -1 is not counted. return_logits=False gives None for the logits: they are most of the memory of
        a training step, and torch.compile need not keep what is not returned."""
        logits = self.head(self.run_blocks(self.embed(idx)))                              # (B, T, V)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)
        return logits if return_logits else None, loss

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0, stop_token=None,
                 cached=True):
        """Continue a batch of prompts; yields after each step a list with one new token id a prompt.

        prompts: B lists of 1 .. block_size ids, of any lengths. An entry is None while a longer prompt is still being
        read, and after a row has its max_new_tokens or its stop_token (which is yielded). temperature 0 is greedy.
        top_k keeps the k likeliest tokens, top_p the fewest whose probabilities add up to p.

        The window: a model has no position past block_size. When the window is full, its older half is dropped and
        the newer half is read again from position 0, so a token costs O(T C) a layer, and one in T/2 a new reading.
        """
        config, device = self.config, self.wte.weight.device
        if not prompts or min(map(len, prompts)) < 1 or max(map(len, prompts)) > config.block_size:
            raise ValueError(f"a prompt has 1 to block_size = {config.block_size} tokens")
        generator = torch.Generator(device).manual_seed(seed)
        idx = torch.tensor([prompt[:min(map(len, prompts))] for prompt in prompts], device=device)  # (B, shortest)
        cache, unread, step = Cache(config.block_size), idx, idx.size(1)
        left = [max_new_tokens] * len(prompts)
        while any(left):
            if idx.size(1) > config.block_size:
                idx = idx[:, -max(1, config.block_size // 2):]
                cache, unread = Cache(config.block_size), idx
            x = self.run_blocks(self.embed(unread if cached else idx), cache=cache if cached else None)
            drawn = sample_token(self.head(x[:, -1]), temperature, top_k, top_p, generator).tolist()
            # a row still inside its prompt takes the prompt's token
            tokens = [prompt[step] if step < len(prompt) else token for prompt, token in zip(prompts, drawn)]
            new = [token if step >= len(prompt) and n else None for prompt, token, n in zip(prompts, tokens, left)]
            yield new
            left = [n if token is None else 0 if token == stop_token else n - 1 for token, n in zip(new, left)]
            unread = torch.tensor(tokens, device=device)[:, None]                         # (B, 1)
            idx, step = torch.cat([idx, unread], dim=1), step + 1

    def configure_optimizers(self, weight_decay, learning_rate, betas):
        """AdamW that decays matrices and embeddings, not biases and norms."""
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)

    def estimate_flops(self, T=None):
        """Forward FLOPs a token in a window of T tokens (block_size if None), by the shapes of the matmuls: a
        parameter of a (T, T) matrix works for all C channels, so 6 N would be far off. Training costs 3 times this."""
        T = T or self.config.block_size
        linear = sum(2 * T * m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        mixing = sum(m.flops(T) for m in self.modules() if isinstance(m, (Attention, MaskedConv)))
        return (linear + mixing) / T

    def parameter_table(self):
        """Text: the parameters by role."""
        roles = {"token embedding": self.wte, "position embedding": self.wpe, "token mixing": [b.mix for b in self.blocks],
                 "channel mixing": [b.mlp for b in self.blocks], "head": None if self.config.tie else self.lm_head}
        counts = {role: sum(p.numel() for p in nn.ModuleList(m if isinstance(m, list) else [m]).parameters())
                  for role, m in roles.items() if m}
        total = sum(p.numel() for p in self.parameters())
        counts |= {"norms": total - sum(counts.values()), "total": total}
        return "\n".join(f"{role:20}{n:>14,}" for role, n in counts.items() if n)


def sample_token(logits, temperature, top_k, top_p, generator):
    """Logits (B, V) -> one token id a row, (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]                     # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p:
        ordered, order = logits.sort(descending=True)
        p = ordered.softmax(dim=-1)
        ordered = ordered.masked_fill(p.cumsum(dim=-1) - p >= top_p, -math.inf)  # what comes before it is enough
        logits = logits.scatter(1, order, ordered)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


def config_dict(config):
    return asdict(config)

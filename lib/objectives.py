"""
Training objectives besides next-token prediction: autoencoding and bidirectional prediction (arXiv 2409.01482). Both
reuse the Blocks of model.py. This file also measures the loss on each target.

Letters in shapes: B batch, T tokens, C channels, V vocabulary.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F

from lib.fast import rows_per_part
from model import Block, LanguageModel


class Autoencoder(LanguageModel):
    """Squeeze a text through one vector, and learn to give the text back.

    The blocks of the encoder read the text. The hidden state of its last position, repeated T times, goes through
    the blocks of the decoder and the head. The targets are the tokens of the input itself.

    Rotary positions do not help a decoder whose inputs are all the same: whatever its weights, attention averages the
    same vector at every position, so that all positions give the same token. A masked convolution has a row of its
    own for each position. It is so in the paper; position="learned", which is added to the decoder's input too, is
    the control.
    """

    def __init__(self, config):
        super().__init__(config)
        self.decoder = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.init_weights()  # anew, of the decoder too

    def hidden(self, x):
        """Embeddings (B, T, C) -> the states of the decoder (B, T, C)."""
        h = self.run_blocks(x)
        x = h[:, -1:].expand_as(h)  # all that the decoder knows
        if self.wpe:
            x = x + self.wpe.weight[:x.size(1)]
        for block in self.decoder:
            x = block(x)
        return x

    def forward(self, idx, targets=None, return_logits=True):
        """As LanguageModel.forward; the loss is that of idx, without the tokens whose target is -1."""
        answers = None if targets is None else idx.masked_fill(targets < 0, -1)
        return self.head(self.hidden(self.embed(idx)), answers, return_logits)


class Bidirectional(LanguageModel):
    """Predict token t + 1 from all other tokens.

    A forward stream sees the tokens up to t, and a reverse stream sees the tokens from t + 2 on. Each stream has
    blocks of its own. They meet only in a sum before the head, because a block that mixed them would hand the answer
    on to the next block.

    The reverse stream consists of causal blocks on the reversed text. Position t gets their state at t + 2, which has
    seen t + 2 and all later tokens. The last two positions have no such state.
    """

    def __init__(self, config):
        super().__init__(config)
        self.reverse_blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.init_weights()

    def hidden(self, x):
        """Embeddings (B, T, C) -> the sum of both streams (B, T, C)."""
        h = x.flip(1) if self.wpe is None else x.flip(1) + self.wpe.weight[:x.size(1)]
        for block in self.reverse_blocks:
            h = block(h)
        return self.run_blocks(x) + F.pad(h.flip(1)[:, 2:], (0, 0, 0, min(2, x.size(1))))

    def forward(self, idx, targets=None, return_logits=True):
        """As LanguageModel.forward."""
        return self.head(self.hidden(self.embed(idx)), targets, return_logits)


OBJECTIVES = {"causal": LanguageModel, "autoencode": Autoencoder, "bidirectional": Bidirectional}


def build_model(objective, config):
    """The model for an objective. Raises ValueError for settings that exclude each other."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be {' or '.join(OBJECTIVES)}; got {objective!r}")
    if not config.causal and objective != "autoencode":
        raise ValueError(f"causal=False with the objective {objective!r} would train a model that sees its answer: "
                         "leave the mask on")
    return OBJECTIVES[objective](config)


def recallable(idx, targets):
    """Which targets the window itself tells (B, T): the same pair of a token and its target stood earlier in it.

    idx, targets (B, T). Most of the gap between attention and convolutions is in these targets (Zoology, arXiv
    2312.04927). Targets of -1 are not recallable.
    """
    pairs, places = (idx * 2 ** 32 + targets).sort(dim=1, stable=True)  # equal pairs stand side by side, in order
    again = torch.zeros_like(pairs, dtype=torch.bool)
    again[:, 1:] = pairs[:, 1:] == pairs[:, :-1]
    return torch.zeros_like(again).scatter(1, places, again) & (targets >= 0)


def token_losses(model, idx, targets):
    """The loss of each target in nats, and whether it is the likeliest token: idx, targets (B, T) -> (B, T) each.

    They are 0 and False where the target is -1. For an autoencoder, pass idx as the targets. All logits, (B, T, V),
    could take gigabytes: some rows of them are computed at a time.
    """
    hidden = getattr(model, "hidden", model.run_blocks)
    x = model.final_norm(hidden(model.embed(idx))).flatten(0, 1)                          # (B*T, C)
    rows, losses, right = rows_per_part(x, model.lm_head.weight), [], []
    for x_part, target in zip(x.split(rows), targets.flatten().split(rows)):
        logits = model.lm_head(x_part).float()                                            # (rows, V)
        losses.append(F.cross_entropy(logits, target, ignore_index=-1, reduction="none"))
        right.append(logits.argmax(dim=-1) == target)
    return torch.cat(losses).view(targets.shape), torch.cat(right).view(targets.shape)


def loss_by_position(losses, targets):
    """The mean loss at each position of the window, (T,): losses and targets (B, T), as token_losses has them."""
    return losses.sum(dim=0) / (targets >= 0).sum(dim=0)

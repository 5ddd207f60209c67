"""
What a model is trained for besides the next token: autoencoding, and bidirectional prediction (arXiv
2409.01482).

Both reuse the Blocks of model.py. Shapes: B batch, T tokens, C channels, V vocabulary.
"""
import torch.nn as nn
from torch.nn import functional as F

from model import Block, LanguageModel


class Autoencoder(LanguageModel):
    """The text through one vector: the blocks of the encoder; the last position's hidden state, repeated T
    times, through the blocks of the decoder; the head; the loss is that of the input itself.

    Rotary positions do not help a decoder of identical inputs: what attention averages is the same anywhere,
    so that all positions give the same token; a masked convolution has a row of its own for each position.
    So it is in the paper; position="learned", which is added to the decoder's input too, is the control.
    """

    def __init__(self, config):
        super().__init__(config)
        self.decoder = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.init_weights()  # anew, of the decoder too

    def forward(self, idx, targets=None, return_logits=True):
        """As LanguageModel.forward; any targets ask for the loss, which is that of idx."""
        h = self.run_blocks(self.embed(idx))                                              # (B, T, C)
        x = h[:, -1:].expand_as(h)  # all that the decoder knows
        if self.wpe:
            x = x + self.wpe.weight[:idx.size(1)]
        for block in self.decoder:
            x = block(x)
        return self.head(x, None if targets is None else idx, return_logits)


class Bidirectional(LanguageModel):
    """Predicts token t + 1 from all others: a forward stream sees tokens up to t, a reverse stream those from
    t + 2 on. Each has blocks of its own; they meet in a sum before the head, since a block that mixed them
    would hand the answer on to the next block.

    The reverse stream is causal blocks on the reversed text: their state at t + 2, which has seen t + 2 and
    all that follow, is what position t gets. The last two positions have no such state.
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

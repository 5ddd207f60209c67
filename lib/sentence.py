"""
From texts to embeddings: all that an encoder needs besides model.py. `python retrieve.py --export=FOLDER` copies both
files into a folder that sentence-transformers loads without this repository:

    SentenceTransformer(FOLDER, trust_remote_code=True).encode(["read a csv file"])

Letters in shapes: N texts, T tokens, C channels.
"""
import base64
import json
import os
from dataclasses import asdict

import tiktoken
import torch
from torch import nn
from torch.nn import functional as F

try:
    from .model import LanguageModel, ModelConfig  # its copy in the exported folder
except ImportError:
    from model import LanguageModel, ModelConfig


def tokenize(texts, tokenizer, block_size, end_of_text):
    """N texts -> N lists of 1 to block_size token ids; an empty text becomes an end of text."""
    beginnings = [text[:40 * block_size] for text in texts]  # few tokens have more than 40 characters
    return [tokens[:block_size] or [end_of_text] for tokens in tokenizer.encode_ordinary_batch(beginnings)]


def pad(ids, width, padding, pad_id):
    """N lists of 1 to width token ids -> (idx (N, width), real (N, width)); real is False where idx is a pad."""
    lengths = torch.tensor([[len(tokens)] for tokens in ids])                            # (N, 1)
    places = torch.arange(width)
    real = places < lengths if padding == "right" else places >= width - lengths         # (N, width)
    idx = torch.full(real.shape, pad_id)
    idx[real] = torch.tensor([token for tokens in ids for token in tokens])
    return idx, real


def embed(model, idx, real, pooling="mean", normalize=True, normed_states=False):
    """Tokens and pads, idx and real (N, T) from `pad` -> embeddings (N, C), float32, of length 1 if normalize.

    An embedding is the mean of the last hidden states, or the state of the last or second-to-last token, before or
    after the final norm. Pads on the right change nothing, because no token of a causal model sees what follows it.
    Pads on the left, as in the paper, are seen, so each text is padded to block_size and always has the same ones.
    """
    # Compiled for a CPU, the gradient of the lookup adds token by token, no faster with two threads than with one.
    x = torch.compiler.disable(model.embed)(idx)                                         # (N, T, C)
    h = model.run_blocks(x)
    if normed_states:
        h = model.final_norm(h)
    if pooling == "mean":
        e = (h * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    else:
        last = real.size(1) - 1 - real.flip(1).int().argmax(dim=1)                       # (N,)
        back = (real.sum(dim=1) > 1).long() if pooling == "second_to_last" else 0  # a lone token is last and first
        e = h[torch.arange(len(h), device=h.device), last - back]
    return F.normalize(e.float(), dim=-1) if normalize else e.float()


class SentenceEncoder(nn.Module):
    """The only module of an exported SentenceTransformer: its embeddings are those of `Encoder` in float32.

    The methods are those that sentence-transformers 6 asks of a module
    (https://sbert.net/docs/sentence_transformer/usage/custom_models.html); two older names serve its version 5.
    """
    save_in_root = True  # its files stand in the exported folder itself

    def __init__(self, config, tokenizer, pooling="mean", padding="right", normed_states=False):
        super().__init__()
        self.model = LanguageModel(ModelConfig(**config))
        self.model.lm_head = nn.Identity()  # no embedding needs the head
        self.tokenizer = tokenizer
        self.options = {"pooling": pooling, "padding": padding, "normed_states": normed_states}
        self.max_seq_length = self.model.config.block_size

    def preprocess(self, inputs, prompt=None, **_):
        """N texts, each behind the prompt -> their tokens (N, T) and a mask (N, T) that is False for pads."""
        texts = [(prompt or "") + text for text in inputs]
        end_of_text, padding = self.tokenizer.eot_token, self.options["padding"]
        ids = tokenize(texts, self.tokenizer, self.max_seq_length, end_of_text)
        width = max(map(len, ids)) if padding == "right" else self.model.config.block_size
        idx, real = pad(ids, width, padding, end_of_text)
        return {"input_ids": idx, "attention_mask": real}

    def forward(self, features):
        """Add the embeddings (N, C) to the features that `preprocess` has made."""
        features["sentence_embedding"] = embed(self.model, features["input_ids"], features["attention_mask"].bool(),
                                               self.options["pooling"], normed_states=self.options["normed_states"])
        return features

    def get_embedding_dimension(self):
        return self.model.config.n_embd

    tokenize, get_sentence_embedding_dimension = preprocess, get_embedding_dimension  # in version 5

    def save(self, output_path, **_):
        """Write config.json, tiktoken.json and model.safetensors into a folder."""
        import safetensors.torch
        ranks = self.tokenizer._mergeable_ranks
        tokenizer = {"name": self.tokenizer.name, "pat_str": self.tokenizer._pat_str,
                     "special_tokens": self.tokenizer._special_tokens,
                     "mergeable_ranks": {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}}
        config = {"config": asdict(self.model.config)} | self.options
        for name, content in ("config.json", config), ("tiktoken.json", tokenizer):
            with open(os.path.join(output_path, name), "w", encoding="utf-8") as f:
                json.dump(content, f, indent=1)
        with open(os.path.join(output_path, "model.safetensors"), "wb") as f:
            f.write(safetensors.torch.save(self.model.state_dict()))

    @classmethod
    def load(cls, model_name_or_path, subfolder="", token=None, cache_folder=None, revision=None,
             local_files_only=False, **_):
        """The module that `save` has written into a folder, or into a repository on the Hugging Face hub."""
        import safetensors.torch
        folder = os.path.join(model_name_or_path, subfolder)
        if not os.path.isdir(folder):
            from sentence_transformers.util import load_dir_path
            folder = load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        with open(os.path.join(folder, "tiktoken.json"), encoding="utf-8") as f:
            tokenizer = json.load(f)
        ranks = tokenizer["mergeable_ranks"]
        tokenizer["mergeable_ranks"] = {base64.b64decode(token): rank for token, rank in ranks.items()}
        module = cls(tokenizer=tiktoken.Encoding(**tokenizer), **config)
        module.model.load_state_dict(safetensors.torch.load_file(os.path.join(folder, "model.safetensors")))
        return module.eval()

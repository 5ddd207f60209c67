"""
The methods of retrieve.py: embeddings of texts, the InfoNCE loss, a matcher of frozen embeddings, and how
often the right passage comes first (arXiv 2409.01482, on retrieval).

Shapes: B pairs, N texts, P passages, T tokens, C channels, n candidates. Embeddings have unit length.
"""
import math
import os

import numpy as np
import torch
from torch.nn import functional as F

from common import autocast
from configurator import fail
from fast import linear_of_few_rows
from runs import load_model

POOLINGS = ("mean", "last", "second_to_last")
PADDINGS = ("right", "left")


# ------------------------------------------------------------------------------------------------------------
# embeddings

def pad(ids, width, padding, pad_id):
    """N lists of 1 to width token ids -> (idx (N, width), real (N, width): which of them are tokens)."""
    idx, real = np.full((len(ids), width), pad_id), np.zeros((len(ids), width), dtype=bool)
    for row, tokens in enumerate(ids):
        columns = slice(0, len(tokens)) if padding == "right" else slice(width - len(tokens), width)
        idx[row, columns], real[row, columns] = tokens, True
    return torch.from_numpy(idx), torch.from_numpy(real)


def embed(model, idx, real, pooling="mean"):
    """Tokens idx (N, T), of which `real` (N, T) are no pads -> embeddings (N, C), float32.

    mean: of the last hidden states of all tokens; last, second_to_last: that of one token. Pads on the right
    change nothing, as no token of a causal model sees what follows; pads on the left, as the paper has them,
    are seen, but a text that is always padded to block_size has always the same.
    """
    h = model.run_blocks(model.embed(idx))                                                # (N, T, C)
    if pooling == "mean":
        e = (h * real[..., None]).sum(dim=1)  # the length of the vector goes, so a sum is as good as the mean
    else:
        last = real.size(1) - 1 - real.flip(1).int().argmax(dim=1)                        # (N,)
        back = (real.sum(dim=1) > 1).long() if pooling == "second_to_last" else 0  # of one token, that one
        e = h[torch.arange(len(h), device=h.device), last - back]
    return F.normalize(e.float(), dim=-1)


def drop_tokens(ids, share, rng):
    """Lists of token ids, each token left out with probability `share` (but never all of a text): to a model
    that sees its training texts many times, other ones each time."""
    return [[t for t, kept in zip(tokens, rng.random(len(tokens)) >= share) if kept] or tokens
            for tokens in ids]


def batches_by_length(ids, block_size, padding, batch_size):
    """Yields (rows, width): indices of batch_size texts of similar length, and what to pad them to: on the
    right a multiple of 32, so that few shapes are compiled and little work is done on pads."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        longest = len(ids[rows[-1]])
        yield rows, block_size if padding == "left" else min(-(-longest // 32) * 32, block_size)


class Encoder:
    """A model and its tokenizer as an embedding model: `encode` has the signature of sentence-transformers,
    which MTEB takes too. Texts are cut to block_size tokens; an empty one is an end of text."""

    def __init__(self, model, tokenizer, end_of_text, pooling="mean", padding="right", dtype=torch.float32):
        self.model, self.tokenizer, self.end_of_text = model, tokenizer, end_of_text
        self.pooling, self.padding, self.dtype = pooling, padding, dtype

    def tokenize(self, texts):
        """Lists of 1 to block_size token ids. Of a long text only the beginning is read: few tokens have more
        than 40 characters."""
        size = self.model.config.block_size
        ids = self.tokenizer.encode_ordinary_batch([text[:40 * size] for text in texts])
        return [tokens[:size] or [self.end_of_text] for tokens in ids]

    def parts(self, ids, batch_size, embed=embed):
        """Lists of token ids -> (functions, order): each computes the embeddings of a part of them, with
        gradients if they are on; order (N,) puts their rows, one after the other, back in place."""
        device, rows, functions = self.model.wte.weight.device, [], []
        for part, width in batches_by_length(ids, self.model.config.block_size, self.padding, batch_size):
            batch = pad([ids[row] for row in part], width, self.padding, self.end_of_text)
            def encode(batch=batch):
                with autocast(device, self.dtype):
                    return embed(self.model, *(tensor.to(device) for tensor in batch), self.pooling)
            functions.append(encode)
            rows += part
        return functions, torch.tensor(rows, device=device).argsort()

    @torch.no_grad()
    def encode(self, sentences, batch_size=128, **_):
        """A text or N texts -> unit embeddings (C,) or (N, C), a float32 array."""
        if isinstance(sentences, str):
            return self.encode([sentences])[0]
        functions, order = self.parts(self.tokenize(list(sentences)), batch_size)
        none = torch.zeros(0, self.model.config.n_embd, device=order.device)
        return torch.cat([none, *(encode() for encode in functions)])[order].cpu().numpy()


def load_encoder(folder, device="cpu", dtype=torch.float32, pooling="mean", padding="right"):
    """(Encoder, checkpoint) of a run of retrieve.py, pooled and padded as it was trained, or of train.py."""
    device = torch.device(device)
    model, tokenizer, checkpoint = load_model(os.path.join(folder, "ckpt.pt"), device)
    if not model.config.causal:
        fail(f"the model in {folder} has no mask: what it makes of a text would depend on pads")
    options = {"pooling": pooling, "padding": padding} | checkpoint.get("retrieval", {})
    return Encoder(model, tokenizer, checkpoint["meta"]["eot_id"], dtype=dtype, **options), checkpoint


# ------------------------------------------------------------------------------------------------------------
# losses

def info_nce(q, p, passage_ids, temperature, extra=None):
    """Mean cross-entropy, in both directions, of finding the passage of each query among those of the batch,
    and the query of each passage (arXiv 1807.03748).

    q, p (B, C): embeddings of pairs. passage_ids (B,): equal ids are the same passage, which is then no
    negative. extra (M, C): passages that are right for none of the queries (hard negatives).
    """
    scores = q @ p.T / temperature                                                        # (B, B)
    same = passage_ids[:, None] == passage_ids
    same.fill_diagonal_(False)
    scores = scores.masked_fill(same, float("-inf"))
    target = torch.arange(len(q), device=q.device)
    to_queries = F.cross_entropy(scores.T, target)
    if extra is not None:
        scores = torch.cat([scores, q @ extra.T / temperature], dim=1)                    # (B, B + M)
    return (F.cross_entropy(scores, target) + to_queries) / 2


def cached_backward(encode_parts, loss):
    """Gradients of loss(*embeddings), and its value, in the memory of one part at a time (gradient caching,
    arXiv 2101.06983); the same as those of the whole batch.

    encode_parts: for each argument of the loss, a list of functions that compute a part of its rows.
    """
    with torch.no_grad():
        parts = [[encode() for encode in functions] for functions in encode_parts]
    leaves = [torch.cat(tensors).requires_grad_() for tensors in parts]
    value = loss(*leaves)
    value.backward()
    for functions, tensors, leaf in zip(encode_parts, parts, leaves):
        for encode, gradient in zip(functions, leaf.grad.split([len(tensor) for tensor in tensors])):
            encode().backward(gradient)
    return value.detach()


def match_batch(queries, passages, rows, n_context, generator):
    """Input of the matcher: for the pairs `rows` (B,) of frozen embeddings, (N, C) each, a sequence of the
    query and n_context - 1 passages, (B, n_context, C), and where among these its own stands, (B,).

    The others are drawn by index on the device that holds the embeddings; none of them is the right one.
    """
    N, B, n = len(queries), len(rows), n_context - 1
    steps = torch.randint(1, N, (B, n), generator=generator, device=rows.device)          # (B, n)
    candidates = (rows[:, None] + steps) % N  # a step of 1 to N - 1 never comes back to the row itself
    target = torch.randint(n, (B,), generator=generator, device=rows.device)
    candidates[torch.arange(B, device=rows.device), target] = rows
    return torch.cat([queries[rows][:, None], passages[candidates]], dim=1), target


def match_logits(matcher, x):
    """Sequences x (B, 1 + n, C) of a query and n passages -> logits (B, n). matcher: a LanguageModel without
    mask and with a vocabulary of 1, whose head gives a number a position."""
    return matcher.head(matcher.run_blocks(x))[0][:, 1:, 0]


# ------------------------------------------------------------------------------------------------------------
# how good it is

def evaluate_scores(score, n_queries, gold, n_passages, sizes, seed=0, block=256):
    """How often the right passage comes first: {"top1_32": (B,), ..., "mrr10", "recall_1", ...}, one value a
    query, float64 tensors.

    score(start, stop) -> scores (stop - start, P) of queries against all P passages; gold (B,): index of the
    right one. top1_n: it stands alone above n - 1 others, drawn with this seed, the same for every model;
    the others of a smaller n are among those of a larger. A tie counts against us. mrr10 (1/rank, 0 beyond
    rank 10) and recall_k (rank <= k) are among all passages.
    """
    sizes = [n for n in sizes if n <= n_passages]
    columns = [*(f"top1_{n}" for n in sizes), "mrr10", "recall_1", "recall_10", "recall_100"]
    results = {column: [] for column in columns}
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n_queries, block):
        stop = min(start + block, n_queries)
        scores = torch.as_tensor(score(start, stop)).float().cpu()                        # (B, P)
        right = scores.gather(1, gold[start:stop, None])                                  # (B, 1)
        beaten = (scores >= right).scatter(1, gold[start:stop, None], False)              # (B, P)
        rank = 1 + beaten.sum(dim=1)
        for row, g in zip(beaten, gold[start:stop]):
            others = torch.randperm(n_passages - 1, generator=generator)[:max(sizes, default=1) - 1]
            first = row[others + (others >= g)].cumsum(0) == 0  # of n - 1 others, none beats the right one
            for n in sizes:
                results[f"top1_{n}"].append(float(first[n - 2]) if n > 1 else 1.0)
        results["mrr10"] += torch.where(rank <= 10, 1 / rank.double(), 0.0).tolist()
        for k in 1, 10, 100:
            results[f"recall_{k}"] += (rank <= k).double().tolist()
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in results.items()}


def measure(score, n_queries, gold, n_passages, sizes):
    """What evaluate_scores gives as {column: mean}, and half of the 95 % intervals, under "interval"."""
    values = evaluate_scores(score, n_queries, torch.tensor(gold), n_passages, sizes)
    half = {key: round(1.96 * value.std().item() / math.sqrt(len(value)), 5) for key, value in values.items()}
    return {key: round(value.mean().item(), 5) for key, value in values.items()} | {"interval": half}


def embedding_scores(encode, queries, passages):
    """The `score` of evaluate_scores for a function encode(texts) -> unit embeddings (N, C), an array."""
    q, p = torch.from_numpy(encode(queries)), torch.from_numpy(encode(passages))
    return lambda start, stop: q[start:stop] @ p.T


def baseline_scores(name, queries, passages):
    """The same for "bm25", or for a model of sentence-transformers, by name or path; None, with a line that
    says why, where the package is missing or the model is not found."""
    try:
        if name == "bm25":
            import bm25s
            index = bm25s.BM25()
            index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
            words = bm25s.tokenize(queries, return_ids=False, show_progress=False)
            return lambda start, stop: np.stack([index.get_scores(query) for query in words[start:stop]])
        from sentence_transformers import SentenceTransformer
        model = SentenceTransformer(name)
    except ImportError as e:
        return print(f"no baseline {name}: pip install {(e.name or name).replace('_', '-')}")
    except Exception as e:  # a hub, a network and a dozen file formats
        return print(f"no baseline {name}: {(str(e) or type(e).__name__).splitlines()[0]}")
    return embedding_scores(lambda texts: model.encode(texts, normalize_embeddings=True), queries, passages)


def best_passages(queries, passages, k, block=65536):
    """(scores, indices), each (Q, k), of the k of passages (P, C) that are nearest to each of queries (Q, C),
    best first; the scores of `block` passages are in memory at a time."""
    scores, indices = [], []
    for start in range(0, len(passages), block):
        part = linear_of_few_rows(queries, torch.as_tensor(passages[start:start + block]))   # (Q, block)
        top = part.topk(min(k, part.size(1)))
        scores.append(top.values)
        indices.append(top.indices + start)
    scores, indices = torch.cat(scores, dim=1), torch.cat(indices, dim=1)
    top = scores.topk(min(k, scores.size(1)))
    return top.values, indices.gather(1, top.indices)

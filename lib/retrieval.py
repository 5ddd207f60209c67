"""
The methods of retrieve.py: embeddings, the order of the pairs, the InfoNCE loss and the matcher, then measures
(arXiv 2409.01482). Search is in lib/search.py.

Letters in shapes: B pairs in a batch, N texts or pairs, P passages, T tokens, C channels, n candidates.
"""
import hashlib
import inspect
import json
import math
import os
import shutil
from dataclasses import asdict
from functools import lru_cache, partial

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from lib.device import autocast, choose_device
from lib.fast import linear_of_few_rows
from lib.runs import load_model
from lib.search import fuse, word_scorer
from lib.sentence import SentenceEncoder, embed, pad, tokenize
from model import LanguageModel


def drop_tokens(ids, share, rng):
    """Leave out each token of N lists with probability `share`, but never all tokens of a list."""
    thinned = []
    for tokens in ids:
        kept = rng.random(len(tokens)) >= share
        thinned.append([token for token, stays in zip(tokens, kept) if stays] or tokens)
    return thinned


class Encoder:
    """A model and its tokenizer as an embedding model: encoder.encode(texts).

    A text is cut to block_size tokens, and an empty one becomes an end of text. The model needs its mask. Programs that
    want a SentenceTransformer take what export_encoder writes.
    """

    def __init__(self, model, tokenizer, end_of_text, pooling="mean", padding="right", dtype=torch.float32,
                 normed_states=False):
        if not model.config.causal:
            raise ValueError("an embedding model needs its mask: with causal=False it would see the padding")
        self.model, self.tokenizer, self.end_of_text = model, tokenizer, end_of_text
        self.pooling, self.padding, self.normed_states, self.dtype = pooling, padding, normed_states, dtype

    def options(self):
        """How the embedding is made from the hidden states: what a checkpoint keeps, and load_encoder takes."""
        return {"pooling": self.pooling, "padding": self.padding, "normed_states": self.normed_states}

    def checksum(self):
        """A hash of the weights and the options, on which all embeddings depend."""
        digest = hashlib.blake2b(str(self.options()).encode(), digest_size=16)
        for weight in self.model.state_dict().values():
            digest.update(weight.cpu().numpy())
        return digest.hexdigest()

    def tokenize(self, texts):
        """N texts -> N lists of 1 to block_size token ids. Raises TypeError for anything but texts."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a text to encode has the type str, not {type(text).__name__}")
        return tokenize(texts, self.tokenizer, self.model.config.block_size, self.end_of_text)

    def embed_batch(self, idx, real, embed, normalize):
        device = self.model.wte.weight.device
        with autocast(device, self.dtype):
            return embed(self.model, idx.to(device), real.to(device), self.pooling, normalize, self.normed_states)

    def width(self, length):
        """The width to which texts of up to `length` tokens are padded: a power of two, as each width is compiled."""
        block_size = self.model.config.block_size
        if self.padding == "left":
            return block_size
        return min(max(32, 2 ** (length - 1).bit_length()), block_size)

    def parts(self, ids, batch_size, embed=embed, normalize=True):
        """N lists of token ids -> (functions, order): each function embeds up to batch_size texts of similar length.

        torch.cat of their results, indexed by order (N,), has the order of the texts.
        """
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        functions = []
        for start in range(0, len(ids), batch_size):
            rows = by_length[start:start + batch_size]
            width = self.width(len(ids[rows[-1]]))
            idx, real = pad([ids[row] for row in rows], width, self.padding, self.end_of_text)
            functions.append(partial(self.embed_batch, idx, real, embed, normalize))
        return functions, torch.tensor(by_length, device=self.model.wte.weight.device).argsort()

    @torch.no_grad()
    def encode(self, sentences, batch_size=128, normalize_embeddings=True, convert_to_tensor=False,
               show_progress_bar=None, convert_to_numpy=True):
        """A text or N texts -> float32 embeddings (C,) or (N, C): an array, a tensor, or else a list of tensors."""
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        functions, order = self.parts(self.tokenize(texts), batch_size, normalize=normalize_embeddings)
        parts = [torch.zeros(0, self.model.config.n_embd, device=order.device)]  # the result for no texts
        for function in tqdm(functions, disable=not show_progress_bar):
            parts.append(function())
        e = torch.cat(parts)[order]
        if isinstance(sentences, str):
            e = e[0]
        if convert_to_tensor:
            return e
        return e.cpu().numpy() if convert_to_numpy else list(e)


def load_encoder(path, device="cpu", dtype=torch.float32, **options):
    """(Encoder, checkpoint) of a checkpoint file or a run's folder.

    options: pooling, padding and normed_states; a run of retrieve.py has its own.
    """
    model, tokenizer, checkpoint = load_model(os.path.expanduser(path), choose_device(device))
    options = options | checkpoint.get("retrieval", {})
    return Encoder(model, tokenizer, checkpoint["meta"]["eot_id"], dtype=dtype, **options), checkpoint


def export_encoder(encoder, folder):
    """Write a new folder that SentenceTransformer(folder, trust_remote_code=True) loads without this repository.

    Raises ValueError if there is such a folder, or for a model that is no causal language model, and OSError if it
    cannot be written.
    """
    if type(encoder.model) is not LanguageModel:
        raise ValueError("only a model trained with objective=causal can be exported")
    folder = os.path.abspath(os.path.expanduser(folder))
    if os.path.exists(folder):
        raise ValueError(f"{folder} exists: give --export a new folder")
    module = SentenceEncoder(asdict(encoder.model.config), encoder.tokenizer, **encoder.options())
    module.model.load_state_dict(encoder.model.state_dict(), strict=False)  # there is no head
    description = {"modules": [{"idx": 0, "name": "0", "path": "", "type": "sentence.SentenceEncoder"}],
                   "config_sentence_transformers": {"model_type": "SentenceTransformer", "prompts": {},
                                                    "default_prompt_name": None, "similarity_fn_name": "cosine"}}
    temporary = f"{folder}.{os.getpid()}.tmp"
    try:
        os.makedirs(temporary, exist_ok=True)
        module.save(temporary)
        for name, content in description.items():
            with open(os.path.join(temporary, f"{name}.json"), "w", encoding="utf-8") as f:
                json.dump(content, f, indent=1)
        for copied in LanguageModel, SentenceEncoder:
            shutil.copy(inspect.getfile(copied), temporary)
        os.rename(temporary, folder)
    except OSError as e:
        raise OSError(f"cannot write {folder}: {(e.strerror or str(e)).lower()}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------
# pairs and losses


def list_pairs(gold):
    """The pairs (N, 2) of indices, in ascending order: a query and a passage that is right for it."""
    return torch.tensor([(query, passage) for query, right in enumerate(gold) for passage in sorted(right)])


@lru_cache(maxsize=1)  # as every batch of an epoch needs it
def pair_order(n_pairs, seed, epoch):
    """The order of the pairs in an epoch, (n_pairs,)."""
    return np.random.default_rng((seed, epoch)).permutation(n_pairs)


def epoch_batch(pairs, size, seed, it):
    """`size` pairs for iteration `it`; an epoch is a seeded permutation without its incomplete last batch."""
    epoch, place = divmod(it, len(pairs) // size)
    order = pair_order(len(pairs), seed, epoch)
    return pairs[order[place * size:(place + 1) * size]]


def best_passages(queries, passages, k, block=65536):
    """(scores, indices), each (Q, k): the k of P passages (P, C) nearest to each query (Q, C), best first."""
    scores, indices = [], []
    for start in range(0, len(passages), block):  # all scores at once could fill the memory
        part = linear_of_few_rows(queries, torch.as_tensor(passages[start:start + block]))  # (Q, block)
        top = part.topk(min(k, part.size(1)))
        scores.append(top.values)
        indices.append(top.indices + start)
    top = torch.cat(scores, dim=1).topk(min(k, len(passages)))
    return top.values, torch.cat(indices, dim=1).gather(1, top.indices)


def nearest_wrong(encoder, queries, passages, gold):
    """For each query the index of the wrong passage that the encoder puts first, or None if all are right."""
    q, p = torch.from_numpy(encoder.encode(queries)), torch.from_numpy(encoder.encode(passages))
    k = 1 + max(len(right) for right in gold)  # the first k passages cannot all be right
    found = torch.cat([best_passages(part, p, k)[1] for part in q.split(64)])  # all scores at once fill the memory
    nearest = []
    for indices, right in zip(found.tolist(), gold):
        nearest.append(next((index for index in indices if index not in right), None))
    return nearest


def hard_negatives(nearest, queries, gold):
    """The nearest wrong passages of the queries, all of them indices, without those that answer one of the queries."""
    answers = {passage for query in queries for passage in gold[query]}
    found = [nearest[query] for query in queries]
    return [passage for passage in found if passage is not None and passage not in answers]


def is_right(queries, passages, pairs):
    """Indices, two tensors that broadcast -> bool; pairs (N, 2): all (query, right passage) in ascending order."""
    n_passages = pairs[:, 1].max() + 1
    known = pairs[:, 0] * n_passages + pairs[:, 1]                                       # (N,) one number per pair
    wanted = queries * n_passages + passages
    return known[torch.searchsorted(known, wanted).clamp(max=len(known) - 1)] == wanted


def info_nce(q, p, right, temperature, extra=None):
    """Mean cross-entropy of finding the passage of each query, and the query of each passage (arXiv 1807.03748).

    q, p (B, C): embeddings of B pairs. right (B, B), bool: right[i, j] says that passage j answers query i; off the
    diagonal, such a passage is no negative. extra (M, C): passages that answer none of the queries.
    """
    scores = q @ p.T / temperature                                                       # (B, B)
    target = torch.arange(len(q), device=q.device)
    scores = scores.masked_fill(right & (target[:, None] != target), -math.inf)
    to_queries = F.cross_entropy(scores.T, target)
    if extra is not None:
        scores = torch.cat([scores, q @ extra.T / temperature], dim=1)                   # (B, B + M)
    return (F.cross_entropy(scores, target) + to_queries) / 2


def cached_backward(encode_parts, loss, device, scaler):
    """Leave the gradients of loss(*embeddings) in the model, with one part in memory at a time; returns the loss.

    A first pass computes the embeddings, and a second one takes their gradients back to the weights (arXiv
    2101.06983). A part starts both times from the same state of the generator, so that its dropout is the same.
    encode_parts: per argument of the loss, a list of functions that each give some rows. The gradients are multiplied
    by the scale of the GradScaler, but the loss is not.
    """
    random = torch if device.type == "cpu" else torch.get_device_module(device)  # has the generator of dropout
    parts, states = [], []
    with torch.no_grad():
        for functions in encode_parts:
            parts.append([])
            for encode in functions:
                states.append(random.get_rng_state())
                parts[-1].append(encode())
    leaves = [torch.cat(tensors).requires_grad_() for tensors in parts]
    value = loss(*leaves)
    scaler.scale(value).backward()
    for functions, tensors, leaf in zip(encode_parts, parts, leaves):
        gradients = leaf.grad.split([len(tensor) for tensor in tensors])
        for encode, gradient in zip(functions, gradients):
            random.set_rng_state(states.pop(0))
            encode().backward(gradient)
    return value.detach()


def match_batch(queries, passages, rows, n_context, generator):
    """Draw the matcher's input for pairs `rows` (B,) among N pairs of frozen embeddings, queries and passages (N, C).

    Returns sequences (B, n_context, C) of a query and n = n_context - 1 passages; candidates (B, n), the pairs to
    which the passages belong; and target (B,), the place of the query's own passage.
    """
    N, B, n = len(queries), len(rows), n_context - 1
    steps = torch.randint(1, N, (B, n), generator=generator, device=rows.device)
    candidates = (rows[:, None] + steps) % N  # a step of 1 to N - 1 never comes back to the row itself
    target = torch.randint(n, (B,), generator=generator, device=rows.device)
    candidates[torch.arange(B, device=rows.device), target] = rows
    return torch.cat([queries[rows][:, None], passages[candidates]], dim=1), candidates, target


def match_logits(matcher, x):
    """Sequences x (B, 1 + n, C) of a query and n passages -> logits (B, n), from a LanguageModel with V = 1."""
    return matcher.head(matcher.run_blocks(x))[0][:, 1:, 0]


# ------------------------------------------------------------------------------------------------------------
# measures


def evaluate_scores(scores, gold, n_passages, sizes):
    """How often a right passage comes first: {"top1_32": (N,), ..., "mrr10", "recall_1", ...}, float64, per query.

    scores: yields the scores (P,) of all passages, query by query. gold: per query a list of its right passages, of
    which the best one counts. A tie counts against us. top1_n: it stands above n - 1 wrong passages, drawn at random
    but the same for every model; those of a smaller n are among those of a larger. mrr10 (1/rank, 0 beyond rank 10)
    and recall_k (rank <= k) are among all passages.
    """
    sizes = [n for n in sizes if n <= n_passages + 1 - max(map(len, gold))]
    results = []
    generator = torch.Generator().manual_seed(0)
    for row, right in zip(scores, gold):
        row = torch.as_tensor(row).float().cpu()                                         # (P,)
        is_wrong = torch.ones(n_passages, dtype=torch.bool)
        is_wrong[right] = False
        beats = ~(row[is_wrong] < row[right].max())  # true for a score that is not a number, too
        drawn = torch.randperm(len(beats), generator=generator)[:max(sizes, default=1) - 1]
        unbeaten = [True] + (beats[drawn].cumsum(0) == 0).tolist()  # by the first 0, 1, 2, ... of them
        rank = 1 + beats.sum().item()
        reciprocal = 1 / rank if rank <= 10 else 0
        results.append([*(unbeaten[n - 1] for n in sizes), reciprocal, rank <= 1, rank <= 10, rank <= 100])
    columns = [*(f"top1_{n}" for n in sizes), "mrr10", "recall_1", "recall_10", "recall_100"]
    return dict(zip(columns, torch.tensor(results, dtype=torch.float64).T))


def measure(scores, gold, n_passages, sizes):
    """Average the results of evaluate_scores; "interval" holds half of each 95 % confidence interval."""
    row = {"interval": {}}
    for column, values in evaluate_scores(scores, gold, n_passages, sizes).items():
        deviation = values.std().item() if len(values) > 1 else math.nan
        row[column] = round(values.mean().item(), 5)
        row["interval"][column] = round(1.96 * deviation / math.sqrt(len(values)), 5)
    return row


def measure_encoder(encode, queries, passages, gold, sizes, fusion=False):
    """`measure` for a function encode(texts) -> embeddings (N, C) of length 1, an array; fusion adds scores by BM25."""
    q, p = torch.from_numpy(encode(queries)), torch.from_numpy(encode(passages))
    scores = (row for part in q.split(256) for row in part @ p.T)
    if fusion:
        score_words = word_scorer(passages)
        scores = (fuse(row, score_words(query)) for row, query in zip(scores, queries))
    return measure(scores, gold, len(passages), sizes)


def measure_baseline(name, queries, passages, gold, sizes):
    """`measure` for "bm25" or a sentence-transformers model; prints why and returns None if it does not work here."""
    try:
        if name == "bm25":
            return measure(map(word_scorer(passages), queries), gold, len(passages), sizes)
        from sentence_transformers import SentenceTransformer
        encode = partial(SentenceTransformer(os.path.expanduser(name)).encode, normalize_embeddings=True)
        return measure_encoder(encode, queries, passages, gold, sizes)
    except ImportError as e:
        print(f"no baseline {name}: pip install {(e.name or name).replace('_', '-')}")
    except Exception as e:  # a hub, a network, a dozen file formats, anybody's models
        print(f"no baseline {name}: {(str(e) or type(e).__name__).splitlines()[0]}")

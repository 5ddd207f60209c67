"""
Retrieval: train a model to find the passage that answers a query, and measure it (arXiv 2409.01482).

    python retrieve.py config/retrieve_tiny.py                        # train and measure: docstring -> code
    python retrieve.py --out_dir=out/retrieve_tiny --query="read a csv file"         # search the passages
    python retrieve.py --out_dir=out/retrieve_tiny --query="rent" --corpus=notes.txt # or your own text
    python retrieve.py --compare=out/a,out/b                          # measure several again, in one table
    python retrieve.py --method=match --init_from=out/mixer_tiny      # the paper's matcher of embeddings

`infonce` trains the model itself, each query of a batch against each passage and the other way round. Into
out_dir go ckpt.pt, log.csv, retrieve.csv, .json and .png. Pairs come from prepare.py --pairs=...
"""
import csv
import hashlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common import autocast, choose_device, choose_dtype, clip_gradients, replacing
from configurator import configure, fail
from dataset import build_tokenizer, load_meta, prepare_missing
from documents import Unusable, read_input, read_jsonl, text_of
from figures import plot_accuracies
from model import LanguageModel, ModelConfig
from pairs import choose_held_out, load_pairs
from retrieval import (PADDINGS, POOLINGS, Encoder, baseline_scores, best_passages, cached_backward,
                       drop_tokens, embed, embedding_scores, info_nce, load_encoder, match_batch,
                       match_logits, measure)
from runs import load_checkpoint, start_log, train_run

# defaults: change them by a config file and by --key=value
out_dir = "out/retrieve"        # folder of the run
method = "infonce"              # infonce: train the model | match: train a matcher of frozen embeddings
pairs = "python_pairs"          # folder in data_dir, made by prepare.py --pairs=...
data_dir = "data"               # where pairs and datasets are
init_from = ""                  # run of train.py or retrieve.py that gives the model; empty: from scratch
dataset = "python"              # from scratch: whose tokenizer it takes, and its text, if it is pretrained
pretrain_seconds = 0.0          # from scratch: first train it as a language model for so long
pretrain_rate = 4e-3            # and with this learning rate
pooling = "mean"                # mean | last | second_to_last: which hidden states are the embedding
padding = "right"               # right | left
temperature = 0.05              # of the cosine
batch_size = 128                # pairs an iteration, each a negative for all others
micro_batch_size = 64           # texts in one forward pass
grad_cache = False              # hold one such pass in memory at a time: slower by a forward pass, exact
token_dropout = 0.0             # share of the tokens of a training text that are left out, others each time
hard_from = ""                  # run whose nearest wrong passages join the batch as hard negatives
n_context = 32                  # match: positions of the matcher, the query and n_context - 1 passages
matcher_layers = 4              # match: its blocks
max_iters = 0                   # the run ends when the first of two budgets is used up; 0: no limit
max_seconds = 300.0             # seconds of training, not of evaluation
learning_rate = 2e-3            # peak of the schedule: warm-up, then cosine to 0
weight_decay = 0.1              # of matrices and embeddings
warmup_iters = 50               # iterations of linear rise to learning_rate
grad_clip = 1.0                 # largest norm of the gradient
eval_interval = 0               # iterations between rows of log.csv with accuracies; 0: at the end only
log_interval = 50               # iterations between lines of the log
eval_queries = 2000             # held-out pairs that are queries
sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]  # numbers of candidates, if there are so many
max_passages = 2000             # held-out passages, the queries' own among them; 0: all
baselines = ["bm25"]            # beside it: bm25, and names or paths of sentence-transformers models
compare: list[str] = []         # runs to measure again, instead of training
query = ""                      # search instead of training
corpus = ""                     # for search: file or folder of text, or .jsonl; empty: those of the pairs
top = 5                         # passages that a search prints
seed = 1337                     # of weights and order of the pairs
device = "auto"                 # auto | cpu | cuda | cuda:1 | mps
dtype = "auto"                  # auto | float32 | bfloat16 | float16, of the matmuls
compile = True                  # torch.compile
# end of defaults
here = os.path.dirname(os.path.abspath(__file__))
config = configure(sys.argv[1:], __file__, os.path.join(here, "model.py"))
globals().update(config)
for key, choices in ("method", ("infonce", "match")), ("pooling", POOLINGS), ("padding", PADDINGS):
    if config[key] not in choices:
        fail(f"{key} must be {' or '.join(choices)}; got {config[key]!r}")
for key in "batch_size", "micro_batch_size", "log_interval", "eval_queries", "top", "matcher_layers":
    if config[key] < 1:
        fail(f"{key} must be 1 or more; got {config[key]}")
if min(max_iters, max_seconds) < 0 or not max(max_iters, max_seconds):
    fail("give the run a budget: max_iters or max_seconds above 0, and none below")
if not 0 <= token_dropout < 1:
    fail(f"token_dropout must be in [0, 1); got {token_dropout}")
if not temperature > 0 or not 0 < learning_rate < math.inf:
    fail(f"temperature and learning_rate must be positive; got {temperature} and {learning_rate}")
device = choose_device(device)
dtype = choose_dtype(dtype, device)
folder = os.path.join(data_dir, pairs)
if pairs in ("python_pairs", "python_more_pairs") and not corpus:
    prepare_missing(folder, f"--pairs={pairs.removesuffix('_pairs')}")

# ------------------------------------------------------------------------------------------------------------
# search: embeddings of the corpus stay in out_dir, under a name made of model and corpus

if query:
    encoder, checkpoint = load_encoder(out_dir, device, dtype)
    try:
        if not corpus:
            texts = load_pairs(folder, "train")[1] + load_pairs(folder, "val")[1]
        elif corpus.endswith(".jsonl"):
            texts = [text_of(where, row, "passage") for where, row in read_jsonl(corpus)]
        else:  # paragraphs
            documents = read_input(Path(os.path.expanduser(corpus)), "text")
            texts = [text.strip() for document in documents for text in document.split("\n\n")]
    except Unusable as e:
        fail(*e.args)
    texts = [text for text in dict.fromkeys(texts) if text.strip()] or fail(f"no text in {corpus}")
    digest = hashlib.blake2b(digest_size=16)
    for part in (*(t.numpy() for t in checkpoint["model"].values()), "\0".join(texts).encode()):
        digest.update(part)
    index_path = os.path.join(out_dir, f"index-{digest.hexdigest()}.npz")
    try:
        e = np.load(index_path)["e"]
    except Exception:  # there is none yet, or it is damaged, in one of many ways
        e = encoder.encode(texts)
        with replacing(index_path) as f:
            np.savez(f, e=e)
    scores, found = best_passages(torch.from_numpy(encoder.encode([query])), torch.from_numpy(e), top)
    for score, i in zip(scores[0], found[0]):
        print(f"{score:.3f}  " + texts[i].replace("\n", "\n       "), end="\n\n")
    raise SystemExit(0)

# ------------------------------------------------------------------------------------------------------------
# data and model

train_queries, train_passages, train_gold = load_pairs(folder, "train")
queries, passages, gold = choose_held_out(*load_pairs(folder, "val"), eval_queries, max_passages)
print(f"{len(train_gold):,} pairs to train on; {len(queries):,} held-out queries, {len(passages):,} passages")


def measure_here(score):
    """Accuracies on the held-out pairs, as a part of a row of results."""
    return measure(score, len(queries), gold, len(passages), sizes)


def new_encoder():
    """(Encoder, meta) of the model to train: that of init_from, or one from scratch, perhaps pretrained."""
    torch.manual_seed(seed)
    given = [f.name for f in fields(ModelConfig) if f.name in config and config[f.name] != f.default]
    if init_from:
        if given:
            fail(f"{given[0]} is for a model from scratch; that of {init_from} has its own")
        encoder, checkpoint = load_encoder(init_from, device, dtype)
        encoder.pooling, encoder.padding = pooling, padding
        return encoder, checkpoint["meta"]
    if dataset == "python":
        prepare_missing(os.path.join(data_dir, dataset), "--dataset=python")
    meta = load_meta(os.path.join(data_dir, dataset))
    try:
        shape = ModelConfig(**{f.name: config[f.name] for f in fields(ModelConfig) if f.name in config},
                            vocab_size=meta["vocab_size"])
    except ValueError as e:
        fail(e)
    model = LanguageModel(shape)
    if pretrain_seconds:
        path = os.path.join(out_dir, "pretrained")
        keys = {key: value for key, value in asdict(shape).items() if key != "vocab_size"}
        train_run(path, **keys, dataset=dataset, data_dir=data_dir, device=device, seed=seed, max_iters=0,
                  max_seconds=pretrain_seconds, learning_rate=pretrain_rate, batch_size=16, warmup_iters=100,
                  log_interval=100, sample_tokens=0)
        model.load_state_dict(load_checkpoint(os.path.join(path, "ckpt.pt"))["model"])
    return Encoder(model.to(device), build_tokenizer(meta), meta["eot_id"], pooling, padding, dtype), meta


# ------------------------------------------------------------------------------------------------------------
# training

LOG_COLUMNS = "iter,pairs,seconds,loss,lr,pairs_per_sec,top1_32,top1_128,top1_1024,mrr10".split(",")


def optimize(model, step, pairs_per_step, evaluate=None):
    """The training loop: step(it) leaves gradients and returns the loss, a tensor; evaluate() -> {column:
    accuracy} for the log. Returns the last mean loss, the pairs, and the seconds, without compilation and
    evaluation."""
    optimizer = model.configure_optimizers(weight_decay, learning_rate, (0.9, 0.95))
    start_log(out_dir, LOG_COLUMNS)
    clock = time.perf_counter()
    step(0)  # compiles, outside the budget
    optimizer.zero_grad(set_to_none=True)
    print(f"ready in {time.perf_counter() - clock:.0f} s", flush=True)
    it, seconds, loss, losses, logged, clock = 0, 0.0, math.nan, [], (0, 0.0), time.perf_counter()
    while True:
        seconds, clock = seconds + time.perf_counter() - clock, time.perf_counter()
        progress = max(used / budget for used, budget in ((it, max_iters), (seconds, max_seconds)) if budget)
        done = progress >= 1
        warm_up = (it + 1) / warmup_iters if it < warmup_iters else 1
        lr = learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
        evaluates = evaluate and (done or eval_interval and it % eval_interval == 0)
        if evaluates or done or it and it % log_interval == 0:
            loss, losses = torch.stack(losses).mean().item() if losses else loss, []
            if it and not math.isfinite(loss):
                fail(f"the loss is not finite at iteration {it}: lower --learning_rate", status=1)
            speed = (it - logged[0]) * pairs_per_step / max(seconds - logged[1], 1e-9)
            row = dict(zip(LOG_COLUMNS, (it, it * pairs_per_step, seconds, loss, lr, speed)))
            row = {key: f"{value:.6g}" for key, value in (row | (evaluate() if evaluates else {})).items()}
            print(" | ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            with open(os.path.join(out_dir, "log.csv"), "a", encoding="utf-8", newline="") as f:
                csv.DictWriter(f, LOG_COLUMNS, restval="", lineterminator="\n").writerow(row)
            logged, clock = (it, seconds), time.perf_counter()
        if done:
            return loss, it * pairs_per_step, seconds
        losses.append(step(it))
        clip_gradients(model, grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        it += 1


def batch_of(it, size):
    """Indices of the training pairs of iteration `it`: seeded epochs without replacement, an incomplete last
    batch left out."""
    epoch, place = divmod(it, len(train_gold) // size)
    order = np.random.default_rng((seed, epoch)).permutation(len(train_gold))
    return order[place * size:(place + 1) * size].tolist()


def nearest_wrong():
    """For each training query the passage that the model of hard_from puts first among the wrong ones."""
    encoder, _ = load_encoder(hard_from, device, dtype)
    q, p = (torch.from_numpy(encoder.encode(texts)) for texts in (train_queries, train_passages))
    nearest = torch.cat([best_passages(part, p, 2)[1] for part in q.split(64)]).tolist()  # 64: for the memory
    return [second if first == right else first for (first, second), right in zip(nearest, train_gold)]


def train_infonce():
    """Train the model by InfoNCE; returns its row of results."""
    encoder, meta = new_encoder()
    model, size = encoder.model, min(batch_size, len(train_gold))
    query_ids, passage_ids = encoder.tokenize(train_queries), encoder.tokenize(train_passages)
    hard = nearest_wrong() if hard_from else None
    compiled = torch.compile(embed) if compile else embed

    def step(it):
        rows = batch_of(it, size)
        own = [train_gold[i] for i in rows]
        sets = [[query_ids[i] for i in rows], [passage_ids[p] for p in own]]
        if hard and (extra := [passage_ids[hard[i]] for i in rows if hard[i] not in own]):
            sets.append(extra)  # one that is right for another query of the batch is a negative as it is
        rng = np.random.default_rng((seed, it))
        sets = [drop_tokens(ids, token_dropout, rng) for ids in sets] if token_dropout else sets
        functions, orders = zip(*(encoder.parts(ids, micro_batch_size, compiled) for ids in sets))

        def loss(*embeddings):
            q, p, *extra = (e[order] for e, order in zip(embeddings, orders))
            return info_nce(q, p, torch.tensor(own, device=device), temperature, *extra)
        model.train()
        if grad_cache:
            return cached_backward(functions, loss)
        value = loss(*(torch.cat([encode() for encode in parts]) for parts in functions))
        value.backward()
        return value.detach()

    def evaluate():
        model.eval()
        row = measure_here(embedding_scores(encoder.encode, queries, passages))
        with replacing(os.path.join(out_dir, "ckpt.pt")) as f:
            torch.save({"model": model.state_dict(), "model_config": asdict(model.config), "meta": meta,
                        "config": config, "retrieval": {"pooling": pooling, "padding": padding}}, f)
        return {key: row[key] for key in LOG_COLUMNS if key in row}
    loss, n_pairs, seconds = optimize(model, step, size, evaluate)
    row = dict(model=out_dir, method="infonce", pairs=pairs, seed=seed, train_pairs=n_pairs, seconds=seconds)
    return row | dict(loss=loss) | measure_here(embedding_scores(encoder.encode, queries, passages))


def train_match():
    """Train a matcher on frozen embeddings of the model; returns its row of results."""
    encoder, _ = new_encoder()
    encoder.model.eval()
    frozen = {}
    for side, qs, ps, own in (("train", train_queries, train_passages, train_gold),
                              ("val", queries, passages, gold)):
        arrays = encoder.encode(qs), encoder.encode(ps)[own]
        frozen[side] = [torch.from_numpy(e).to(device) for e in arrays]                   # (N, C) each
    n_pairs = {side: len(q) for side, (q, _) in frozen.items()}
    if not 3 <= n_context <= min(n_pairs.values()):
        fail(f"n_context goes from 3 to the number of pairs ({min(n_pairs.values())}); got {n_context}")
    C = frozen["train"][0].size(1)
    torch.manual_seed(seed)
    matcher = LanguageModel(ModelConfig(block_size=n_context, n_layer=matcher_layers, n_embd=C, vocab_size=1,
                                        causal=False)).to(device)
    forward, generator = torch.compile(match_logits) if compile else match_logits, torch.Generator(device)
    generator.manual_seed(seed)

    def loss_of(side, rows, generator):
        x, target = match_batch(*frozen[side], rows, n_context, generator)
        with autocast(device, dtype):  # x of variance 1, as a mixer's embeddings are
            return F.cross_entropy(forward(matcher, x * C ** 0.5).float(), target)

    def step(it):
        rows = torch.randint(n_pairs["train"], (batch_size,), generator=generator, device=device)
        loss = loss_of("train", rows, generator)
        loss.backward()
        return loss.detach()
    _, n_seen, seconds = optimize(matcher, step, batch_size)
    generator.manual_seed(0)
    with torch.no_grad():
        rows = torch.arange(n_pairs["val"], device=device)[:n_pairs["val"] // batch_size * batch_size or None]
        val = torch.stack([loss_of("val", part, generator) for part in rows.split(batch_size)]).mean().item()
    print(f"held-out cross-entropy among {n_context - 1} passages: {val:.4f} (by chance "
          f"{math.log(n_context - 1):.4f})")
    name = init_from or f"untrained {encoder.model.config.model_type}"
    return dict(model=name, method=f"match {n_context}", pairs=pairs, seed=seed, train_pairs=n_seen,
                seconds=seconds, loss=val)


# ------------------------------------------------------------------------------------------------------------
# results

try:
    os.makedirs(out_dir, exist_ok=True)
except OSError as e:
    fail(f"cannot use out_dir {out_dir}: {e.strerror.lower()}")
rows = []
for name in baselines:
    if score := baseline_scores(name, queries, passages):
        rows.append(dict(model=name, pairs=pairs) | measure_here(score))
if compare:
    for name in compare:
        encoder, checkpoint = load_encoder(name, device, dtype)
        row = dict(model=name, method="infonce", pairs=pairs, seed=checkpoint["config"]["seed"])
        rows.append(row | measure_here(embedding_scores(encoder.encode, queries, passages)))
else:
    rows.append(train_infonce() if method == "infonce" else train_match())
columns = [*"model,method,pairs,seed,train_pairs,seconds,loss".split(","), *(f"top1_{n}" for n in sizes),
           *"mrr10,recall_1,recall_10,recall_100".split(",")]
shown = [column for column in columns if any(column in row for row in rows)]
lines = [shown, *([f"{row[c]:.4g}" if type(row.get(c)) is float else str(row.get(c, "")) for c in shown]
                  for row in rows)]
widths = [max(map(len, cells)) for cells in zip(*lines)]
print("", *("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines), sep="\n")
with replacing(os.path.join(out_dir, "retrieve.csv"), "w") as f:
    writer = csv.DictWriter(f, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
with replacing(os.path.join(out_dir, "retrieve.json"), "w") as f:
    json.dump({"settings": config | {"device": str(device), "dtype": str(dtype)}, "torch": torch.__version__,
               "rows": rows}, f, indent=1)

if method == "infonce":
    plot_accuracies(rows, sizes, os.path.join(out_dir, "retrieve.png"))

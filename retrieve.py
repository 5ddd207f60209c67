"""
Retrieval: train a model to find the passage that answers a query, and measure it (arXiv 2409.01482).

    python retrieve.py config/retrieve_tiny.py                        # train and measure: docstring -> code
    python retrieve.py --out_dir=out/retrieve_tiny --query="read a csv file"         # search the passages
    python retrieve.py --out_dir=out/retrieve_tiny --query="rent" --corpus=notes.txt # or your own text
    python retrieve.py --compare=out/a,out/b                          # measure several again, in one table
    python retrieve.py --method=match --init_from=out/mixer_tiny      # the paper's matcher of embeddings

The method `infonce` trains the model itself: in a batch, each query must find its passage, and each passage its query.
Into out_dir go ckpt.pt, log.csv, and retrieve.csv, .json and .png. Pairs come from prepare.py --pairs=...
"""
import contextlib
import hashlib
import json
import math
import os
import time
from dataclasses import asdict, fields
from functools import partial

from configurator import run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import numpy as np
import torch
from torch.nn import functional as F

from lib.data import build_tokenizer, load_meta, prepare_missing
from lib.device import autocast, compile_or_not, dtype_name, setup
from lib.plots import plot_accuracies
from lib.retrieval import (Encoder, best_passages, cached_backward, drop_tokens, embed, info_nce, is_right,
                           load_encoder, match_batch, match_logits, measure_baseline, measure_encoder)
from lib.runs import (StopSignals, append_row, build_config, make_folder, replacing, start_log, train_run, write_rows)
from lib.sources import choose_held_out, load_pairs, read_input
from model import LanguageModel, ModelConfig
from train import optimizer_step

# defaults: change them by a config file and by --key=value
out_dir = "out/retrieve"        # folder of the run
method = "infonce"              # infonce | match: train the model, or a matcher of frozen embeddings
pairs = "python_pairs"          # folder in data_dir, made by prepare.py --pairs=...
data_dir = "data"               # where pairs and datasets are
init_from = ""                  # run of train.py or retrieve.py that gives the model; empty: from scratch
dataset = "python"              # from scratch: the dataset whose tokenizer, and text to pretrain on, it takes
pretrain_seconds = 0.0          # [0, inf) from scratch: seconds of training as a language model, first
pretrain_rate = 4e-3            # (0, inf) learning rate during these seconds
pooling = "mean"                # mean | last | second_to_last: the hidden states that make the embedding
padding = "right"               # right | left
temperature = 0.05              # (0, inf) cosines are divided by it
batch_size = 128                # [1, inf) pairs per iteration, each a negative for all others
micro_batch_size = 64           # [1, inf) texts in one forward pass
grad_cache = False              # hold one such pass in memory at a time: exact, but it takes one more
token_dropout = 0.0             # [0, 1) share of the tokens left out of a training text, other ones each time
hard_from = ""                  # run whose nearest wrong passages join the batch as hard negatives
n_context = 32                  # [3, inf) match: positions of the matcher, the query and n_context - 1 passages
matcher_layers = 4              # [1, inf) match: its blocks
max_iters = 0                   # [0, inf) the run ends when the first of two budgets is used up; 0: no limit
max_seconds = 300.0             # [0, inf) seconds of training, without compilation and evaluation; 0: no limit
learning_rate = 2e-3            # (0, inf) peak of the schedule: warm-up, then cosine to 0
weight_decay = 0.1              # [0, inf) AdamW: decay of matrices and embeddings
warmup_iters = 50               # [0, inf) iterations of linear rise to learning_rate
grad_clip = 1.0                 # [0, inf) largest norm of the gradient; 0: no clipping
eval_interval = 0               # [0, inf) iterations between rows of the log with accuracies; 0: only the last
log_interval = 50               # [1, inf) iterations between lines of the log
eval_queries = 2000             # [1, inf) held-out queries
sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]  # [1, inf) numbers of candidates, if there are so many
max_passages = 2000             # [0, inf) held-out passages, with the right ones among them; 0: all
baselines = ["bm25"]            # to compare with: bm25, and names or paths of sentence-transformers models
compare: list[str] = []         # runs to measure again, instead of training
query: str | None = None        # text to search for, instead of training
corpus = ""                     # for a search: file or folder of text, or .jsonl; empty: the passages of the pairs
top = 5                         # [1, inf) passages that a search prints
seed = 1337                     # [0, inf) fixes initial weights and the order of the pairs
device = "auto"                 # auto, cpu, cuda, cuda:1 or mps
dtype = "auto"                  # auto | float32 | bfloat16 | float16: number format of the matmuls
compile = True                  # torch.compile; where it does not work, the run goes on without it
fast = True                     # faster equals of four functions of model.py (lib/fast.py)
# end of defaults

LOG_COLUMNS = "iter,pairs,seconds,loss,lr,pairs_per_sec,top1_32,top1_128,top1_1024,mrr10".split(",")


def read_corpus(path):
    """The passages of a .jsonl file, or the paragraphs of a file or folder of text."""
    path = os.path.expanduser(path)
    if path.lower().endswith(".jsonl"):
        return list(read_input(path, "passage"))
    return [text.strip() for document in read_input(path, "text") for text in document.split("\n\n")]


def embed_corpus(encoder, texts, folder):
    """Embeddings (P, C) of the texts, kept in a file of the folder whose name depends on the model and the texts."""
    digest = hashlib.blake2b(digest_size=16)
    for weight in encoder.model.state_dict().values():
        digest.update(weight.cpu().numpy())
    digest.update("\0".join([encoder.pooling, encoder.padding, *texts]).encode())
    path = os.path.join(folder, f"index-{digest.hexdigest()}.npz")
    with contextlib.suppress(Exception):  # a damaged file can raise almost anything
        return np.load(path)["e"]
    embeddings = encoder.encode(texts)
    try:
        with replacing(path) as f:
            np.savez(f, e=embeddings)
    except OSError as e:
        print(f"the next search has to embed the texts again: {e}")
    return embeddings


def search(encoder, query, texts, top, folder):
    """The texts nearest to the query, best first: [(cosine, text), ...]. Their embeddings stay in the folder."""
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if not texts:
        raise ValueError("there is no text to search in")
    embeddings = torch.from_numpy(embed_corpus(encoder, texts, folder))
    scores, indices = best_passages(torch.from_numpy(encoder.encode([query])), embeddings, top)
    return [(score, texts[i]) for score, i in zip(scores[0].tolist(), indices[0].tolist())]


def optimize(model, function, use, step, evaluate, pairs_per_iter, scaler, args):
    """The training loop: step(it, function) leaves scaled gradients in the model and returns the loss, a tensor.

    The function is compiled by a throwaway use(function), so that this is not timed. evaluate() -> {column: measure}
    also runs at the end, which comes by a budget or a signal. Returns (columns of the table together with the last
    measures, the number of the signal or 0).
    """
    clock = time.perf_counter()
    function = compile_or_not(function, use, args.compile)
    model.zero_grad(set_to_none=True)
    print(f"ready in {time.perf_counter() - clock:.0f} s", flush=True)
    optimizer = model.configure_optimizers(args.weight_decay, args.learning_rate, (0.9, 0.95))
    start_log(args.out_dir, LOG_COLUMNS)
    it, seconds, loss, losses, logged_iter, logged_seconds = 0, 0.0, math.nan, [], 0, 0.0
    with StopSignals() as stop:
        clock = time.perf_counter()
        while True:
            used = [(it, args.max_iters), (seconds + time.perf_counter() - clock, args.max_seconds)]
            progress = max(amount / budget for amount, budget in used if budget)
            warm_up = min(1, (it + 1) / max(1, args.warmup_iters))
            lr = args.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
            caught = stop.caught
            done = progress >= 1 or caught
            evaluates = done or (args.eval_interval and it % args.eval_interval == 0)

            if evaluates or (it and it % args.log_interval == 0):
                if losses:
                    loss, losses = torch.stack(losses).mean().item(), []  # waits for the device
                    if not math.isfinite(loss):
                        raise FloatingPointError(f"the loss is not finite at iteration {it}: lower --learning_rate")
                seconds += time.perf_counter() - clock  # stands still during evaluation
                speed = (it - logged_iter) * pairs_per_iter / max(seconds - logged_seconds, 1e-9)
                logged_iter, logged_seconds = it, seconds
                measures = evaluate() if evaluates else {}
                values = dict(zip(LOG_COLUMNS, (it, it * pairs_per_iter, seconds, loss, lr, speed))) | measures
                print(" | ".join(f"{key} {values[key]:.6g}" for key in LOG_COLUMNS if key in values), flush=True)
                append_row(os.path.join(args.out_dir, "log.csv"), [values.get(key) for key in LOG_COLUMNS])
                clock = time.perf_counter()
            if done:
                row = dict(pairs=args.pairs, seed=args.seed, train_pairs=it * pairs_per_iter, seconds=seconds,
                           loss=loss)
                return row | measures, caught

            losses.append(step(it, function))
            optimizer_step(model, optimizer, scaler, lr, args.grad_clip)
            it += 1


def list_pairs(gold):
    """The pairs (N, 2) of indices, in ascending order: a query and a passage that is right for it."""
    return torch.tensor([(query, passage) for query, right in enumerate(gold) for passage in sorted(right)])


def epoch_batch(pairs, size, seed, it):
    """`size` pairs for iteration `it`; an epoch is a seeded permutation without its incomplete last batch."""
    epoch, place = divmod(it, len(pairs) // size)
    order = np.random.default_rng((seed, epoch)).permutation(len(pairs))
    return pairs[order[place * size:(place + 1) * size]]


def nearest_wrong(encoder, queries, passages, gold):
    """For each query the index of the wrong passage that the encoder puts first, or None if all are right."""
    q, p = torch.from_numpy(encoder.encode(queries)), torch.from_numpy(encoder.encode(passages))
    k = 1 + max(len(right) for right in gold)  # the first k passages cannot all be right
    found = torch.cat([best_passages(part, p, k)[1] for part in q.split(64)])  # all scores at once fill the memory
    nearest = []
    for indices, right in zip(found.tolist(), gold):
        nearest.append(next((index for index in indices if index not in right), None))
    return nearest


def train_infonce(encoder, meta, training, held_out, args):
    """Train the encoder's model by InfoNCE; returns its row of the table, and the number of a signal or 0.

    training, held_out: (queries, passages, gold) from load_pairs. meta: the tokenizer's, for ckpt.pt.
    """
    model, device = encoder.model, encoder.model.wte.weight.device
    queries, passages, gold = training
    query_ids, passage_ids = encoder.tokenize(queries), encoder.tokenize(passages)
    pairs = list_pairs(gold)
    pairs_on_device, size = pairs.to(device), min(args.batch_size, len(pairs))
    hard = []
    if args.hard_from:
        hard = nearest_wrong(load_encoder(args.hard_from, device, encoder.dtype)[0], *training)
    scaler = torch.amp.GradScaler(device.type, enabled=encoder.dtype == torch.float16)
    longest = max(map(len, query_ids + passage_ids))
    widths = sorted({encoder.width(length) for length in range(1, longest + 1)})

    def backward(encode_parts, loss):
        """Leave the scaled gradients of loss(*embeddings) in the model; encode_parts as in cached_backward."""
        if args.grad_cache:
            return cached_backward(encode_parts, loss, device, scaler)
        value = loss(*[torch.cat([encode() for encode in functions]) for functions in encode_parts])
        scaler.scale(value).backward()
        return value.detach()

    def step(it, embed):
        batch = epoch_batch(pairs, size, args.seed, it)                                  # (B, 2)
        asked, own = batch.T.tolist()
        sets = [[query_ids[i] for i in asked], [passage_ids[i] for i in own]]
        if hard:
            answers = {passage for query in asked for passage in gold[query]}
            extra = [hard[query] for query in asked if hard[query] not in answers | {None}]
            if extra:
                sets.append([passage_ids[i] for i in extra])
        if args.token_dropout:
            rng = np.random.default_rng((args.seed, it))
            sets = [drop_tokens(ids, args.token_dropout, rng) for ids in sets]
        parts = [encoder.parts(ids, args.micro_batch_size, embed) for ids in sets]
        batch = batch.to(device)
        right = is_right(batch[:, :1], batch[:, 1], pairs_on_device)                     # (B, B)

        def loss(*embeddings):
            q, p, *extra = [e[order] for e, (_, order) in zip(embeddings, parts)]
            return info_nce(q, p, right, args.temperature, *extra)
        model.train()
        return backward([functions for functions, _ in parts], loss)

    def use(embed):
        model.train()
        for width in widths:  # each is compiled, even if the first batch does not have it
            functions, _ = encoder.parts([[0] * width] * args.micro_batch_size, args.micro_batch_size, embed)
            backward([functions], torch.sum)
        step(0, embed)

    def evaluate():
        model.eval()
        with replacing(os.path.join(args.out_dir, "ckpt.pt")) as f:
            torch.save({"made_by": "retrieve.py", "model": model.state_dict(), "model_config": asdict(model.config),
                        "meta": meta, "config": vars(args),
                        "retrieval": {"pooling": encoder.pooling, "padding": encoder.padding}}, f)
        return measure_encoder(encoder.encode, *held_out, args.sizes)
    row, caught = optimize(model, embed, use, step, evaluate, size, scaler, args)
    return dict(model=args.out_dir, method="infonce") | row, caught


def train_match(encoder, meta, training, held_out, args):
    """Train a matcher on frozen embeddings of the encoder; takes and returns what train_infonce does."""
    device, C, n = encoder.model.wte.weight.device, encoder.model.config.n_embd, args.n_context - 1
    encoder.model.eval()
    sides = []  # training and held-out: per pair the embeddings of query and passage (N, C), and all pairs (N, 2)
    for queries, passages, gold in training, held_out:
        pairs = list_pairs(gold)
        q, p = encoder.encode(queries, convert_to_tensor=True), encoder.encode(passages, convert_to_tensor=True)
        sides.append((q[pairs[:, 0]], p[pairs[:, 1]], pairs.to(device)))
        if len(pairs) <= n:
            raise ValueError(f"n_context is at most the number of pairs, {len(pairs)}; got {args.n_context}")
    torch.manual_seed(args.seed)
    matcher = LanguageModel(ModelConfig(block_size=n + 1, n_layer=args.matcher_layers, n_embd=C, vocab_size=1,
                                        causal=False)).to(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    scaler = torch.amp.GradScaler(device.type, enabled=encoder.dtype == torch.float16)

    def loss_of(side, rows, generator, function):
        q, p, pairs = side
        x, candidates, target = match_batch(q, p, rows, n + 1, generator)
        also_right = is_right(pairs[rows, :1], pairs[candidates, 1], pairs)              # (B, n)
        also_right.scatter_(1, target[:, None], False)
        with autocast(device, encoder.dtype):  # x of variance 1, as a mixer's embeddings are
            logits = function(matcher, x * C ** 0.5).float()
        return F.cross_entropy(logits.masked_fill(also_right, -math.inf), target)

    def step(it, function):
        rows = torch.randint(len(sides[0][0]), (args.batch_size,), generator=generator, device=device)
        loss = loss_of(sides[0], rows, generator, function)
        scaler.scale(loss).backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate():
        N, B, same_draws = len(sides[1][0]), args.batch_size, torch.Generator(device).manual_seed(0)
        rows = torch.arange(N, device=device)[:N // B * B or N]  # whole batches, if there is one
        losses = [loss_of(sides[1], part, same_draws, match_logits) for part in rows.split(B)]
        loss = torch.stack(losses).mean().item()
        print(f"held-out cross-entropy among {n} passages: {loss:.4f} (by chance {math.log(n):.4f})")
        return {"held_out_loss": loss}
    row, caught = optimize(matcher, match_logits, partial(step, 0), step, evaluate, args.batch_size, scaler, args)
    row["loss"] = row.pop("held_out_loss")
    name = args.init_from or f"untrained {encoder.model.config.model_type}"
    return dict(model=name, method=f"match {args.n_context}") | row, caught


def build_encoder(args, device, dtype):
    """(Encoder, meta) of the model to train: the one of init_from, or one from scratch, perhaps pretrained."""
    torch.manual_seed(args.seed)
    path = args.init_from
    if path:
        for field in fields(ModelConfig):
            if getattr(args, field.name, field.default) != field.default:
                raise ValueError(f"{field.name} is for a model from scratch; the one of {path} has its own")
    else:
        folder = os.path.join(args.data_dir, args.dataset)
        if args.dataset == "python":
            prepare_missing(folder, "--dataset=python")
        meta = load_meta(folder)
        model = LanguageModel(build_config(vars(args), meta["vocab_size"])).to(device)
        encoder = Encoder(model, build_tokenizer(meta), meta["eot_id"], args.pooling, args.padding, dtype)
        if not args.pretrain_seconds:
            return encoder, meta
        path = os.path.join(args.out_dir, f"pretrained_{args.pretrain_seconds:g}_s")  # train_run may exceed a budget
        settings = {key: value for key, value in asdict(model.config).items() if key != "vocab_size"}
        train_run(path, **settings, dataset=args.dataset, data_dir=args.data_dir, device=args.device, dtype=args.dtype,
                  compile=args.compile, fast=args.fast, seed=args.seed, max_iters=0, batch_size=16, warmup_iters=100,
                  max_seconds=args.pretrain_seconds, learning_rate=args.pretrain_rate, log_interval=100,
                  sample_tokens=0)
    encoder, checkpoint = load_encoder(path, device, dtype)
    encoder.pooling, encoder.padding = args.pooling, args.padding
    return encoder, checkpoint["meta"]


def write_results(rows, args, device, dtype):
    """Write the rows as retrieve.csv, .json and .png into out_dir, and print them as a table."""
    path, top1 = os.path.join(args.out_dir, "retrieve"), [f"top1_{n}" for n in args.sizes]
    columns = ["model", "method", "pairs", "seed", "train_pairs", "seconds", "loss", *top1, "mrr10", "recall_1",
               "recall_10", "recall_100"]
    write_rows(f"{path}.csv", columns, rows)
    with replacing(f"{path}.json", "w") as f:
        used = dict(device=str(device), dtype=dtype_name(dtype))
        json.dump({"settings": vars(args) | used, "torch": torch.__version__, "rows": rows}, f, indent=1)
    columns = [column for column in columns if any(column in row for row in rows)]
    if set(columns) & set(top1):
        plot_accuracies(rows, args.sizes, f"{path}.png")
    elif args.method == "infonce":
        print(f"no {path}.png: too few held-out passages for {min(args.sizes, default='any')} candidates")
    lines = [columns]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    for line in [[], *lines]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


def main(args):
    """Search, measure or train. Raises SystemExit with 128 + the number of a signal that stopped it."""
    if args.query is not None and not args.query.strip():
        raise ValueError("--query is empty: give the text to search for, or leave --query out to train")
    if args.corpus and args.query is None:
        raise ValueError("--corpus is the text to search in: give the text to search for by --query")
    if not max(args.max_iters, args.max_seconds):
        raise ValueError("give the run a budget: max_iters or max_seconds above 0")
    device, dtype = setup(args.device, args.dtype, args.fast)
    folder = os.path.join(args.data_dir, args.pairs)
    if args.pairs in ("python_pairs", "python_more_pairs") and not args.corpus:
        prepare_missing(folder, f"--pairs={args.pairs.removesuffix('_pairs')}")
    if args.query is not None:
        encoder, _ = load_encoder(args.out_dir, device, dtype)
        if args.corpus:
            texts = read_corpus(args.corpus)
        else:
            texts = load_pairs(folder, "train")[1] + load_pairs(folder, "val")[1]
        for score, text in search(encoder, args.query, texts, args.top, args.out_dir):
            print(f"{score:.3f}  " + text.replace("\n", "\n       "), end="\n\n")
        return
    training = load_pairs(folder, "train")
    held_out = choose_held_out(*load_pairs(folder, "val"), args.eval_queries, args.max_passages)
    print(f"{sum(map(len, training[2])):,} pairs to train on; {len(held_out[0]):,} held-out queries, "
          f"{len(held_out[1]):,} passages")
    make_folder(args.out_dir)
    rows, caught = [], 0
    for name in args.baselines:
        measures = measure_baseline(name, *held_out, args.sizes)
        if measures:
            rows.append(dict(model=name, pairs=args.pairs) | measures)
    for name in args.compare:
        encoder, checkpoint = load_encoder(name, device, dtype)
        row = dict(model=name, method="infonce", pairs=args.pairs, seed=checkpoint["config"]["seed"])
        rows.append(row | measure_encoder(encoder.encode, *held_out, args.sizes))
    if not args.compare:
        encoder, meta = build_encoder(args, device, dtype)
        train = train_infonce if args.method == "infonce" else train_match
        row, caught = train(encoder, meta, training, held_out, args)
        rows.append(row)
    write_results(rows, args, device, dtype)
    if caught:
        raise SystemExit(128 + caught)


if __name__ == "__main__":
    run_script(main, "retrieve.py", "model.py")

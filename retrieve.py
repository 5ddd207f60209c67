"""
Retrieval: train a model to find the passage that answers a query, and measure it (arXiv 2409.01482).

    python retrieve.py config/retrieve_tiny.py                        # train and measure: docstring -> code
    python retrieve.py config/retrieve_tiny.py --init_from=resume     # go on where it stopped, exactly
    python retrieve.py --out_dir=out/retrieve_tiny --query="read a csv file"         # search the passages
    python retrieve.py --out_dir=out/retrieve_tiny --query="rent" --corpus=notes     # or your own files
    python retrieve.py --out_dir=out/retrieve_tiny --query=- --json=true < queries   # a query per line, for programs
    python retrieve.py --out_dir=out/retrieve_tiny --export=out/tiny  # for sentence-transformers and MTEB
    python retrieve.py --compare=out/a,out/b                          # measure several again, in one table
    python retrieve.py --method=match --init_from=out/mixer_tiny      # the paper's matcher of embeddings

The method `infonce` trains the model itself: in a batch, each query must find its passage, and each passage its query.
Into out_dir go ckpt.pt (the last), best.pt (the most accurate), log.csv, and retrieve.csv, .json and .png; a
comparison is written to compare.csv, .json and .png instead. Pairs come from prepare.py --pairs=...
"""
import math
import os
import time
from dataclasses import asdict, fields
from functools import partial
from json import dump
from types import SimpleNamespace

from configurator import run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import numpy as np
import torch
from torch.nn import functional as F

from lib.data import build_tokenizer, crc32, load_meta, prepare_missing
from lib.device import autocast, compile_or_not, dtype_name, setup
from lib.plots import plot_accuracies
from lib.retrieval import (Encoder, cached_backward, drop_tokens, embed, epoch_batch, export_encoder, hard_negatives,
                           info_nce, is_right, list_pairs, load_encoder, match_batch, match_logits, measure_baseline,
                           measure_encoder, nearest_wrong)
from lib.runs import (StopSignals, append_row, build_config, load_checkpoint, make_folder, model_checksum, replacing,
                      restore_optimizer, resume_command, save_checkpoint, start_log, train_run, write_rows)
from lib.search import answer_queries
from lib.sources import choose_held_out, load_pairs
from model import LanguageModel, ModelConfig
from train import MuonAndAdamW, optimizer_step

# defaults: change them by a config file and by --key=value
out_dir = "out/retrieve"        # folder of the run
method = "infonce"              # infonce | match: train the model, or a matcher of frozen embeddings
pairs = "python_pairs"          # folder in data_dir, made by prepare.py --pairs=...
data_dir = "data"               # where pairs and datasets are
init_from = ""                  # resume, or a run of train.py or retrieve.py that gives the model; empty: from scratch
dataset = "python"              # from scratch: the dataset whose tokenizer, and text to pretrain on, it takes
pretrain_seconds = 0.0          # [0, inf) from scratch: seconds of training as a language model, first
pretrain_rate = 4e-3            # (0, inf) learning rate during these seconds
pooling = "mean"                # mean | last | second_to_last: the hidden states that make the embedding
padding = "right"               # right | left
normed_states = False           # read the hidden states after the final norm, which not all models have
temperature = 0.05              # (0, inf) cosines are divided by it
batch_size = 128                # [1, inf) pairs per iteration, each a negative for all others
micro_batch_size = 64           # [1, inf) texts in one forward pass
grad_cache = False              # keep one such pass in memory at a time: the same gradients, but each pass runs twice
token_dropout = 0.0             # [0, 1) share of the tokens left out of a training text, other ones each time
hard_from = ""                  # run whose nearest wrong passages join the batch as hard negatives
n_context = 32                  # [3, inf) match: positions of the matcher, the query and n_context - 1 passages
matcher_layers = 4              # [1, inf) match: its blocks
max_iters = 0                   # [0, inf) the run ends when the first of two budgets is used up; 0: no limit
max_seconds = 300.0             # [0, inf) seconds of training, without compilation and evaluation; 0: no limit
optimizer = "adamw"             # adamw | muon: Muon for matrices, and AdamW for embeddings, head and vectors
learning_rate = 2e-3            # (0, inf) peak of the schedule: warm-up, then cosine to 0
weight_decay = 0.1              # [0, inf) AdamW: decay of matrices and embeddings
warmup_iters = 50               # [0, inf) iterations of linear rise to learning_rate
grad_clip = 1.0                 # [0, inf) largest norm of the gradient; 0: no clipping
eval_interval = 100             # [0, inf) iterations between evaluations, which save checkpoints; 0: only the last
log_interval = 50               # [1, inf) iterations between lines of the log
eval_queries = 2000             # [1, inf) held-out queries
sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]  # [1, inf) numbers of candidates, up to all passages
max_passages = 2000             # [0, inf) held-out passages, or more if more are right ones; 0: all
baselines = ["bm25"]            # to compare with: bm25, and names or paths of sentence-transformers models
compare: list[str] = []         # runs to measure again, instead of training
query: str | None = None        # text to search for, instead of training; -: each line of the standard input
corpus = ""                     # for a search: file or folder of .txt, .md, .rst, .py, .jsonl; empty: passages of pairs
top = 5                         # [1, inf) hits that a search prints
json = False                    # print one line of JSON per query
fusion = False                  # add the scores of BM25: in a search, and in a further row for each of `compare`
export = ""                     # new folder for sentence-transformers, to write instead of training
seed = 1337                     # [0, inf) fixes initial weights and the order of the pairs
device = "auto"                 # auto, cpu, cuda, cuda:1 or mps
dtype = "auto"                  # auto | float32 | bfloat16 | float16: number format of the matmuls
compile = True                  # torch.compile; where it does not work, the run goes on without it
fast = True                     # faster equivalents of functions of model.py (lib/fast.py)
# end of defaults

LOG_COLUMNS = "iter,pairs,seconds,loss,lr,pairs_per_sec,top1_32,top1_128,top1_1024,mrr10,held_out_loss".split(",")
# Settings that cannot change when a run goes on, and neither can those of the model.
FIXED = ("method", "pairs", "pooling", "padding", "normed_states", "hard_from", "n_context", "matcher_layers",
         "optimizer", "eval_queries", "max_passages")


# ------------------------------------------------------------------------------------------------------------
# the run


def load_run(args, kept):
    """The checkpoint in out_dir from which a run goes on. Sets args.init_from to what the run began with.

    kept: see build_run. Raises ValueError if the checkpoint is of another kind, or has other settings or other pairs.
    """
    path = os.path.join(args.out_dir, "ckpt.pt")
    checkpoint = load_checkpoint(path)
    from_weights = f"start from its weights: --init_from={path}"
    if "pairs_crc32" not in checkpoint:  # train.py has made it, or an earlier retrieve.py
        raise ValueError(f"{path} is no run of retrieve.py that can go on; {from_weights}")
    before, now = {"optimizer": "adamw"} | checkpoint["config"], vars(args)  # older runs had no other
    for key in [*FIXED, *checkpoint["model_config"]]:
        if key in before and before[key] != now[key]:
            raise ValueError(f"{path} was trained with {key}={before[key]}, not {now[key]}: use its config")
    if checkpoint["pairs_crc32"] != kept["pairs_crc32"]:
        raise ValueError(f"{args.pairs} has changed since {path} was saved; {from_weights}")
    if checkpoint["model_py"] != kept["model_py"]:
        print(f"model.py has changed since {path} was saved")
    args.init_from = before["init_from"]
    return checkpoint


def build_run(model, kept, checkpoint, dtype, args):
    """The model with its optimizer, scaler and state, as the checkpoint has them, or new ones if there is none.

    kept: what else the checkpoints of the run will hold, as a dict.
    """
    optimizer = model.configure_optimizers(args.weight_decay, args.learning_rate, (0.9, 0.95))
    if args.optimizer == "muon":
        optimizer = MuonAndAdamW(model, optimizer)
    scaler = torch.amp.GradScaler(model.wte.weight.device.type, enabled=dtype == torch.float16)
    # loss_sum and loss_count are of the iterations since log_interval was last reached; loss is the last logged mean.
    state = {"iter": 0, "seconds": 0.0, "loss_sum": 0.0, "loss_count": 0, "loss": math.nan, "measures": {},
             "best_score": -math.inf}
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        restore_optimizer(optimizer, scaler, checkpoint)
        state |= checkpoint["state"]
    return SimpleNamespace(model=model, optimizer=optimizer, scaler=scaler, state=state, kept=kept, args=args,
                           resumed=checkpoint is not None)


def save(run, score):
    """Write ckpt.pt, with all that the run needs to go on exactly, and best.pt if no score was higher."""
    is_best = score >= run.state["best_score"]
    run.state["best_score"] = max(score, run.state["best_score"])
    checkpoint = {"made_by": "retrieve.py", "model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(),
                  "scaler": run.scaler.state_dict(), "state": run.state, "model_config": asdict(run.model.config),
                  "config": vars(run.args)}
    save_checkpoint(checkpoint | run.kept, run.args.out_dir, is_best)


def optimize(run, forward, run_once, step, evaluate, pairs_per_iter):
    """The training loop: step(it, forward) leaves scaled gradients in the model and returns the loss, a tensor.

    A throwaway run_once(forward) compiles the function `forward`, so that this is not timed. evaluate() returns the
    measures, {column: number}, and a score that is highest for the best checkpoint; it also runs at the end, which
    comes by a budget or a signal. Returns (columns of the table with the last measures, the number of the signal or 0).
    """
    args, state = run.args, run.state
    clock = time.perf_counter()
    forward = compile_or_not(forward, run_once, args.compile)
    run.model.zero_grad(set_to_none=True)
    print(f"ready in {time.perf_counter() - clock:.0f} s", flush=True)
    start_log(args.out_dir, LOG_COLUMNS, state["iter"] if run.resumed else None)
    loss_sum = torch.tensor(state["loss_sum"], device=run.model.wte.weight.device)
    first_iter, logged_iter, logged_seconds = state["iter"], state["iter"], state["seconds"]
    with StopSignals() as stop:
        clock = time.perf_counter()
        while True:
            it, caught = state["iter"], stop.caught
            used = [(it, args.max_iters), (state["seconds"] + time.perf_counter() - clock, args.max_seconds)]
            progress = max(amount / budget for amount, budget in used if budget)
            warm_up = min(1, (it + 1) / max(1, args.warmup_iters))
            lr = args.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
            done = progress >= 1 or caught
            is_due = done or (args.eval_interval > 0 and it % args.eval_interval == 0)
            evaluates = is_due and (it > first_iter or not run.resumed)  # a resumed run did so before it stopped

            if evaluates or (it % args.log_interval == 0 and it > first_iter):
                state["loss_sum"] = loss_sum.item()  # waits for the device, so that the clock is right
                state["seconds"] += time.perf_counter() - clock  # stands still during evaluation and saving
                if state["loss_count"]:
                    state["loss"] = state["loss_sum"] / state["loss_count"]
                if not math.isfinite(state["loss_sum"]):
                    raise FloatingPointError(f"the loss is not finite at iteration {it}: lower --learning_rate")
                speed = (it - logged_iter) * pairs_per_iter / max(state["seconds"] - logged_seconds, 1e-9)
                logged_iter, logged_seconds = it, state["seconds"]
                measures, score = evaluate() if evaluates else ({}, None)
                row = dict(iter=it, pairs=it * pairs_per_iter, seconds=state["seconds"], loss=state["loss"], lr=lr,
                           pairs_per_sec=speed) | measures
                print(" | ".join(f"{key} {row[key]:.6g}" for key in LOG_COLUMNS if key in row), flush=True)
                append_row(os.path.join(args.out_dir, "log.csv"), [row.get(key) for key in LOG_COLUMNS])
                if it % args.log_interval == 0:
                    state["loss_sum"], state["loss_count"] = 0.0, 0
                    loss_sum.zero_()
                if evaluates:
                    state["measures"] = measures
                    save(run, score)
                clock = time.perf_counter()
            if done:
                row = dict(train_pairs=it * pairs_per_iter, seconds=state["seconds"], loss=state["loss"])
                return row | state["measures"], caught

            # Dropout and the draws of the matcher depend on the iteration alone: no generator has a state to save.
            torch.manual_seed(np.random.SeedSequence((args.seed, it)).generate_state(1).item())
            loss_sum += step(it, forward)
            optimizer_step(run.model, run.optimizer, run.scaler, lr, args.grad_clip)
            state["iter"] += 1
            state["loss_count"] += 1


# ------------------------------------------------------------------------------------------------------------
# the two methods


def train_infonce(encoder, kept, training, held_out, args, checkpoint=None):
    """Train the encoder's model by InfoNCE; returns its row of the table, and the number of a signal or 0.

    training, held_out: (queries, passages, gold) from load_pairs. kept: see build_run. The run continues a checkpoint.
    """
    model, device = encoder.model, encoder.model.wte.weight.device
    queries, passages, gold = training
    query_ids, passage_ids = encoder.tokenize(queries), encoder.tokenize(passages)
    pairs = list_pairs(gold)
    pairs_on_device, size = pairs.to(device), min(args.batch_size, len(pairs))
    hard = checkpoint["hard"] if checkpoint else []
    if args.hard_from and not checkpoint:
        hard = nearest_wrong(load_encoder(args.hard_from, device, encoder.dtype)[0], *training)
    run = build_run(model, kept | {"retrieval": encoder.options(), "hard": hard}, checkpoint, encoder.dtype, args)
    longest = max(map(len, query_ids + passage_ids))
    widths = sorted({encoder.width(length) for length in range(1, longest + 1)})

    def backward(encode_parts, loss):
        """Leave the scaled gradients of loss(*embeddings) in the model; encode_parts as in cached_backward."""
        if args.grad_cache:
            return cached_backward(encode_parts, loss, device, run.scaler)
        embeddings = []
        for functions in encode_parts:
            embeddings.append(torch.cat([encode() for encode in functions]))
        value = loss(*embeddings)
        run.scaler.scale(value).backward()
        return value.detach()

    def step(it, embed):
        batch = epoch_batch(pairs, size, args.seed, it)                                  # (B, 2)
        asked, own = batch.T.tolist()
        sets = [[query_ids[i] for i in asked], [passage_ids[i] for i in own]]
        extra = hard_negatives(hard, asked, gold) if hard else []
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

    def run_once(embed):
        model.train()
        for width in widths:  # each is compiled, even if the first batch does not have it
            functions, _ = encoder.parts([[0] * width] * args.micro_batch_size, args.micro_batch_size, embed)
            backward([functions], torch.sum)
        step(0, embed)

    def evaluate():
        model.eval()
        measures = measure_encoder(encoder.encode, *held_out, args.sizes)
        return measures, measures["mrr10"]
    row, caught = optimize(run, embed, run_once, step, evaluate, size)
    return dict(model=args.out_dir, method="infonce") | row, caught


def train_match(encoder, kept, training, held_out, args, checkpoint=None):
    """Train a matcher on frozen embeddings of the encoder; takes and returns what train_infonce does."""
    device, C, n = encoder.model.wte.weight.device, encoder.model.config.n_embd, args.n_context - 1
    encoder.model.eval()
    kept = kept | {"encoder": encoder.checksum()}
    if checkpoint and checkpoint["encoder"] != kept["encoder"]:
        raise ValueError(f"the run in {args.out_dir} cannot go on: the model of its embeddings has changed")
    sides = []  # training and held-out: per pair the embeddings of query and passage (N, C), and all pairs (N, 2)
    for queries, passages, gold in training, held_out:
        pairs = list_pairs(gold)
        if len(pairs) <= n:
            raise ValueError(f"n_context is at most the number of pairs, {len(pairs)}; got {args.n_context}")
        q, p = encoder.encode(queries, convert_to_tensor=True), encoder.encode(passages, convert_to_tensor=True)
        sides.append((q[pairs[:, 0]], p[pairs[:, 1]], pairs.to(device)))
    torch.manual_seed(args.seed)
    matcher = LanguageModel(ModelConfig(block_size=n + 1, n_layer=args.matcher_layers, n_embd=C, vocab_size=1,
                                        causal=False)).to(device)
    run = build_run(matcher, kept, checkpoint, encoder.dtype, args)

    def loss_of(side, rows, generator, function):
        q, p, pairs = side
        x, candidates, target = match_batch(q, p, rows, n + 1, generator)
        also_right = is_right(pairs[rows, :1], pairs[candidates, 1], pairs)              # (B, n)
        also_right.scatter_(1, target[:, None], False)
        with autocast(device, encoder.dtype):  # x of variance 1, as a mixer's embeddings are
            logits = function(matcher, x * C ** 0.5).float()
        return F.cross_entropy(logits.masked_fill(also_right, -math.inf), target)

    def step(it, function):
        rows = torch.randint(len(sides[0][0]), (args.batch_size,), device=device)
        loss = loss_of(sides[0], rows, None, function)
        run.scaler.scale(loss).backward()
        return loss.detach()

    @torch.no_grad()
    def evaluate():
        N, B = len(sides[1][0]), args.batch_size
        same_draws = torch.Generator(device).manual_seed(0)
        n_rows = N // B * B or N  # whole batches, if there is one
        rows = torch.arange(n_rows, device=device)
        losses = [loss_of(sides[1], part, same_draws, match_logits) for part in rows.split(B)]
        loss = torch.stack(losses).mean().item()
        print(f"held-out cross-entropy among {n} passages: {loss:.4f} (by chance {math.log(n):.4f})")
        return {"held_out_loss": loss}, -loss
    row, caught = optimize(run, match_logits, partial(step, 0), step, evaluate, args.batch_size)
    row["loss"] = row.pop("held_out_loss")
    name = args.init_from or f"untrained {encoder.model.config.model_type}"
    return dict(model=name, method=f"match {args.n_context}") | row, caught


# ------------------------------------------------------------------------------------------------------------
# the script


def build_encoder(args, device, dtype, resumes=False):
    """(Encoder, meta) of a model from scratch, perhaps pretrained, or of init_from, or of the run that goes on.

    Raises ValueError if the model of init_from cannot be trained here, or if settings contradict it.
    """
    torch.manual_seed(args.seed)
    path = args.init_from
    if resumes and args.method == "infonce":  # which has trained the model of its encoder
        path = os.path.join(args.out_dir, "ckpt.pt")
    elif path:
        for field in fields(ModelConfig):
            if getattr(args, field.name, field.default) != field.default:
                raise ValueError(f"{field.name} is for a model from scratch; the one of {path} has its own")
    else:
        folder = os.path.join(args.data_dir, args.dataset)
        if args.dataset == "python":
            prepare_missing(folder, "--dataset=python")
        meta = load_meta(folder)
        model = LanguageModel(build_config(vars(args), meta["vocab_size"])).to(device)
        encoder = Encoder(model, build_tokenizer(meta), meta["eot_id"], args.pooling, args.padding, dtype,
                          args.normed_states)
        if not args.pretrain_seconds:
            return encoder, meta
        # A folder for each budget, because train_run would take a longer run for a shorter one.
        path = os.path.join(args.out_dir, f"pretrained_{args.pretrain_seconds:g}_s")
        settings = {key: value for key, value in asdict(model.config).items() if key != "vocab_size"}
        train_run(path, **settings, dataset=args.dataset, data_dir=args.data_dir, device=args.device, dtype=args.dtype,
                  compile=args.compile, fast=args.fast, seed=args.seed, max_iters=0, batch_size=16, warmup_iters=100,
                  max_seconds=args.pretrain_seconds, learning_rate=args.pretrain_rate, log_interval=100,
                  sample_tokens=0)
    encoder, checkpoint = load_encoder(path, device, dtype)
    objective = checkpoint["config"].get("objective", "causal")
    if args.method == "infonce" and objective != "causal":
        raise ValueError(f"{path} was trained with objective={objective}, but this trains causal models only: give "
                         "--init_from a run of train.py with objective=causal")
    encoder.pooling, encoder.padding, encoder.normed_states = args.pooling, args.padding, args.normed_states
    return encoder, checkpoint["meta"]


def write_results(rows, args, device, dtype):
    """Write the rows as retrieve.csv, .json and .png into out_dir, or as compare.*, and print them as a table."""
    path = os.path.join(args.out_dir, "compare" if args.compare else "retrieve")  # out_dir may hold a run
    top1 = [f"top1_{n}" for n in args.sizes]
    columns = ["model", "method", "pairs", "seed", "train_pairs", "seconds", "loss", *top1, "mrr10", "recall_1",
               "recall_10", "recall_100"]
    write_rows(f"{path}.csv", columns, rows)
    with replacing(f"{path}.json", "w") as f:
        used = dict(device=str(device), dtype=dtype_name(dtype))
        dump({"settings": vars(args) | used, "torch": torch.__version__, "rows": rows}, f, indent=1)
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
    if args.corpus and args.query is None:
        raise ValueError("--corpus is the text to search in: give the text to search for by --query")
    if args.export:
        export_encoder(load_encoder(args.out_dir)[0], args.export)
        print(f"load it with SentenceTransformer({args.export!r}, trust_remote_code=True)")
        return
    if args.query is not None:
        def load():
            device, dtype = setup(args.device, args.dtype, args.fast)
            return load_encoder(args.out_dir, device, dtype)[0]
        return answer_queries(args, load)
    if not max(args.max_iters, args.max_seconds):
        raise ValueError("give the run a budget: max_iters or max_seconds above 0")
    device, dtype = setup(args.device, args.dtype, args.fast)
    folder = os.path.join(args.data_dir, args.pairs)
    if args.pairs in ("python_pairs", "python_more_pairs"):
        prepare_missing(folder, f"--pairs={args.pairs.removesuffix('_pairs')}")
    training = load_pairs(folder, "train")
    held_out = choose_held_out(*load_pairs(folder, "val"), args.eval_queries, args.max_passages)
    print(f"{sum(map(len, training[2])):,} pairs to train on; {len(held_out[0]):,} held-out queries, "
          f"{len(held_out[1]):,} passages")
    kept = {"model_py": model_checksum(),
            "pairs_crc32": [crc32(os.path.join(folder, f"{side}.jsonl")) for side in ("train", "val")]}
    checkpoint = load_run(args, kept) if args.init_from == "resume" else None
    make_folder(args.out_dir)
    rows, caught = [], 0
    for name in args.baselines:
        measures = measure_baseline(name, *held_out, args.sizes)
        if measures:
            rows.append(dict(model=name, pairs=args.pairs) | measures)
    for name in args.compare:
        encoder, compared = load_encoder(name, device, dtype)
        used = compared["config"]
        row = dict(model=name, method=used.get("method", ""), pairs=args.pairs, seed=used["seed"])
        rows.append(row | measure_encoder(encoder.encode, *held_out, args.sizes))
        if args.fusion:
            row |= dict(model=f"{name} and bm25", method="fusion")
            rows.append(row | measure_encoder(encoder.encode, *held_out, args.sizes, fusion=True))
    if not args.compare:
        encoder, kept["meta"] = build_encoder(args, device, dtype, resumes=checkpoint is not None)
        train = train_infonce if args.method == "infonce" else train_match
        row, caught = train(encoder, kept, training, held_out, args, checkpoint)
        rows.append(dict(pairs=args.pairs, seed=args.seed) | row)
    write_results(rows, args, device, dtype)
    if caught:
        print(f"stopped by a signal; go on with: {resume_command('retrieve.py')}")
        raise SystemExit(128 + caught)


if __name__ == "__main__":
    run_script(main, "retrieve.py", "model.py")

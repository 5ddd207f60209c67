"""
Input inversion: how much of its input does a model keep? (arXiv 2409.01482, on input representation)

    python invert.py --out_dir=out/mixer_tiny                    # a checkpoint, on windows of its dataset
    python invert.py --out_dir=out/mixer_tiny --methods=exact --start="import os, sys"
    python invert.py --compare=out/mixer_tiny,out/llama_tiny --layers=each --windows=16,32,64,128
    python invert.py config/invert_untrained.py --n_embd=512     # fresh models of any kind and size
    python invert.py config/invert_table.py                      # the README's table; --quick=true: a taste

Given hidden states alone, descent looks for an input that has them; the Hamming metric is the share of tokens
that do not come back. That says how easily an input is found; `exact`, which tries tokens, says whether it is
there at all. Into out_dir go invert.csv, .json and .png, and of several runs efficiency.png: do those that
keep their input learn faster?
"""
import csv
import itertools
import json
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict, fields
from glob import glob
from statistics import correlation, fmean, pstdev

import torch
import torch.nn as nn

from common import autocast, choose_device, choose_dtype, read_prompt, replacing
from configurator import configure, fail
from dataset import build_tokenizer, load_meta, load_tokens, validation_windows
from figures import save_figure
from inversion import (decode, distances, hamming, hidden_states, invert, matched_positions, random_start,
                       recover_exactly)
from model import LanguageModel, ModelConfig
from runs import load_checkpoint, load_model, train_run

# defaults: change them by a config file and by --key=value; several values are separated by commas
out_dir = "out/mixer_tiny"   # folder of the run, and of the results
compare: list[str] = []      # folders of several runs, instead of the one in out_dir; "out/tiny/*" is many
models: list[str] = []       # fresh models instead of runs: mixer,llama; their sizes are ModelConfig's keys
embd_stds: list[float] = []  # each of them with each of these embd_std
inits: list[str] = []        # and with each of these init
train_tokens = 0             # above 0: each also trained on so many tokens, as a run inside out_dir
methods = ["gd", "adam"]     # gd: the paper's | adam: in units of the embedding's std | exact: by trying
lrs = [0.02, 0.2, 2.0]       # step sizes of gd at the start; they fall to a tenth
adam_lrs = [0.1]             # those of adam, times the standard deviation of the embedding
steps = 500                  # of descent
metric = "l1"                # l1 | l2 | cosine, summed over positions
last_n = 0                   # 0: the states of all positions are matched; n: only those of the last n
layers = ["all"]             # and after which blocks: all | each: one by one | 1,3 | norm: the final norm
windows: list[int] = []      # T, tokens a prompt: 16,64; none: block_size
start = ""                   # text of the prompts, or FILE:path; empty: validation windows of the dataset
n_prompts = 4                # how many prompts
dataset = ""                 # folder in data_dir; empty: what the run was trained on, "python" if fresh
data_dir = "data"            # where datasets are
seed = 1337                  # of the descent's start, and of the weights of fresh models
seeds = 1                    # so many, from seed on
batch_size = 64              # rows (prompts times step sizes) that descend together
show = 1                     # prompts whose recovered text is printed
resume = False               # keep the rows of out_dir/invert.json and compute what is missing
quick = False                # of fresh models: mixer and llama, one seed and init, into out_dir + "_quick"
device = "auto"              # auto | cpu | cuda | cuda:1 | mps
dtype = "float32"            # auto | float32 | bfloat16 | float16, of the matmuls in descent
# end of defaults

COLUMNS = ("model,trained,embedding_std,seed,method,lr,metric,matched,layer,T,"  # these ten tell rows apart
           "hamming_top1,hamming_top5,hamming_nearest,distance,shifted_distance,seconds").split(",")
FREE = ("out_dir compare models embd_stds inits methods layers windows seed seeds batch_size show resume "
        "device").split()  # settings that may change when rows are kept
TRAINING = dict(batch_size=32, learning_rate=4e-3, warmup_iters=100, max_iters=0, eval_interval=200,
                eval_iters=5, log_interval=100, sample_tokens=0)  # of fresh models, besides train_tokens


def check(key, items, choices):
    """Ends the program if one of the items is none of the choices."""
    for item in items:
        if item not in choices:
            fail(f"{key}: {item!r} is out of range; possible: {', '.join(choices)}")


def mark(tokens, truth, tokenizer):
    """Text of tokens on one line, those that are not the true ones [in brackets]."""
    texts = [tokenizer.decode_single_token_bytes(token).decode(errors="replace") for token in tokens]
    return repr("".join(f"[{text}]" if a != b else text for text, a, b in zip(texts, tokens, truth)))


def format_table(rows):
    """Lines of an aligned table. Rows that differ in their seed only are one line: Hamming top 1 as mean and
    standard deviation over n prompts (of all seeds), the rest as means."""
    keys, groups = [key for key in COLUMNS[:10] if key != "seed"], {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    lines = [[*keys, "n", "top1", "std", *COLUMNS[11:]]]
    for key, group in groups.items():
        top1 = [value for row in group for value in row["top1_by_prompt"]]
        means = [f"{fmean(row[column] for row in group):.4g}" for column in COLUMNS[11:]]
        lines.append([*key, str(len(top1)), f"{fmean(top1):.3f}", f"{pstdev(top1):.3f}", *means])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def plot(rows, path):
    """Hamming top 1 by layer (longest T) and by T (last layer), a line a model and method, each point at the
    best of its step sizes."""
    def draw(axes):
        for ax, x, other in zip(axes, ("layer", "T"), ("T", "layer")):
            curves = {}  # {label: {x: {lr: [Hamming of each seed]}}}
            for row in rows:
                same = [r[other] for r in rows if r["model"] == row["model"] and r["layer"] != "norm"]
                if row["layer"] != "norm" and row[other] == max(same):
                    name = "{model} (trained: {trained}, std {embedding_std}) {method} {matched}"
                    points = curves.setdefault(name.format(**row), {}).setdefault(row[x], {})
                    points.setdefault(row["lr"], []).append(row["hamming_top1"])
            for label, points in curves.items():
                best = [min(map(fmean, points[at].values())) for at in sorted(points)]
                ax.plot(sorted(points), best, "o--" if ") adam" in label else "o-", ms=3, label=label)
            ticks = sorted({at for points in curves.values() for at in points})
            ax.set(xlabel=x, ylabel="Hamming top 1: share not recovered", ylim=(-0.03, 1.03), xticks=ticks)
            ax.grid(alpha=0.3)
        axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(path, draw, ncols=2, figsize=(11, 4.5), sharey=True)


def rank(values):
    """Ranks of values, from 0; equal ones get their mean."""
    return [fmean(i for i, other in enumerate(sorted(values)) if other == value) for value in values]


def plot_efficiency(rows, path):
    """Does a model that keeps its input learn faster, as the paper proposes (section 4)? A point a run: its
    last validation loss over the share of tokens that come back at the best step size. Prints the
    correlation of their ranks for each kind of inversion; of equal shares there is none."""
    kinds, losses = {}, {}  # {kind: {run: {lr: [Hamming of each seed]}}}, {run: loss}
    for row in rows:
        kind = "{method}, {matched}, block {layer}, T {T}".format(**row)
        by_lr = kinds.setdefault(kind, {}).setdefault(row["model"], {})
        by_lr.setdefault(row["lr"], []).append(row["hamming_top1"])
        with open(os.path.join(row["model"], "log.csv"), encoding="utf-8", newline="") as f:
            losses[row["model"]] = [float(r["val_loss"]) for r in csv.DictReader(f) if r["val_loss"]][-1]
    shares = {}
    for kind, runs in kinds.items():
        shares[kind] = [1 - min(map(fmean, by_lr.values())) for by_lr in runs.values()]
        ranks = rank(shares[kind]), rank([losses[run] for run in runs])
        r = f"{correlation(*ranks):.2f}" if min(len(set(of)) for of in ranks) > 1 else "none"
        print(f"{kind}: rank correlation of share and loss {r}, {len(runs)} runs")

    def draw(ax):
        for kind, runs in kinds.items():
            ax.plot(shares[kind], [losses[run] for run in runs], "o", ms=4, label=kind)
            names = {re.sub(r"_\d+$", "", os.path.basename(run)): (share, losses[run])
                     for share, run in zip(shares[kind], runs)}  # seeds of a model have one name
            for name, at in names.items():
                ax.annotate(name, at, fontsize=5)
        ax.set(xlabel="share of tokens that come back", ylabel="validation loss, nats a token")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    save_figure(path, draw, figsize=(7, 5))


def fresh_models(seeds):
    """The models of the settings models, embd_stds and inits, with each seed, untrained and trained: a list
    of (first columns of its rows, ModelConfig, meta, dataset, checkpoint or None)."""
    found, name_of_data = [], dataset or "python"
    meta = load_meta(os.path.join(data_dir, name_of_data))
    options = {f.name: config[f.name] for f in fields(ModelConfig) if f.name in config}
    for name, std, init, seed in itertools.product(models, embd_stds or [options["embd_std"]],
                                                   inits or [options["init"]], seeds):
        options |= dict(model_type=name, embd_std=std, init=init, vocab_size=meta["vocab_size"])
        try:
            c, own_init = ModelConfig(**options), ModelConfig(model_type=name).init
        except ValueError as e:
            fail(e)
        run = dict(model=f"{name} init={c.init}", trained="no", embedding_std=c.embd_std, seed=seed)
        found.append((run, c, meta, name_of_data, None))
        if train_tokens and (seed == seeds[0] or c.init == own_init):  # all would take twice as long
            path = os.path.join(out_dir, f"{name}_{c.init}_{c.embd_std:g}_{seed}", "ckpt.pt")
            found.append((run | dict(trained="yes"), c, meta, name_of_data, path))
    return found


def saved_models(seeds):
    """Those of the runs in `compare`, or of the one in out_dir, in the same form; a seed is the descent's."""
    found = []
    folders = [sorted(filter(os.path.isdir, glob(pattern))) or [pattern] for pattern in compare]
    for folder in sum(folders, []) or [out_dir]:
        path = os.path.join(folder, "ckpt.pt")
        state = load_checkpoint(path)
        c, data = ModelConfig(**state["model_config"]), dataset or state["config"]["dataset"]
        run = dict(model=os.path.normpath(folder), trained="yes", embedding_std=c.embd_std)
        found += [(run | dict(seed=seed), c, state["meta"], data, path) for seed in seeds]
    return found


def plan_tasks(found):
    """What to do with the models, so that all is checked before anything takes time: a list of (run,
    ModelConfig, checkpoint, tokenizer, prompts (B, T), method, layer, T)."""
    plan = []
    for run, c, meta, data, path in found:
        tokenizer, folder = build_tokenizer(meta), os.path.join(data_dir, data)
        ids = tokenizer.encode_ordinary(text) if text else load_tokens(folder, "val", meta)
        longest = min(c.block_size, len(ids) if text else len(ids) - 1)
        Ts = windows or [longest]
        T = max(Ts)  # shorter windows see the beginning of the longest
        if min(Ts) < 1 or T > longest:
            fail(f"windows can have 1 to {longest} tokens, by block_size and the text; got {Ts}")
        starts = range(0, len(ids), T) if text else validation_windows(len(ids), T, n_prompts)
        pieces = [torch.tensor([*map(int, ids[i:i + T])]) for i in starts[:n_prompts]]
        prompts = nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=-1)   # (B, T)
        depths = {str(n): [n] for n in range(1, c.n_layer + 1)}
        depths |= {"all": [c.n_layer], "each": [*range(1, c.n_layer + 1)], "norm": ["norm"]}
        check("layers", layers, depths)
        if "exact" in methods and (last_n or not c.causal):
            fail("exact needs a causal model, and the states of all positions: --last_n=0")
        for method, layer, T in itertools.product(methods, sum((depths[item] for item in layers), []), Ts):
            plan.append((run, c, path, tokenizer, prompts, method, layer, T))
    return plan


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    config = configure(sys.argv[1:], __file__, os.path.join(here, "model.py"))
    if config["quick"]:
        config |= dict(models=["mixer", "llama"], inits=["auto"], seeds=1, layers=["all"],
                       train_tokens=config["train_tokens"] // 2, out_dir=config["out_dir"] + "_quick")
    globals().update(config)
    if min(steps, n_prompts, seeds, batch_size) < 1:
        fail("steps, n_prompts, seeds and batch_size must be 1 or more")
    given = [f.name for f in fields(ModelConfig) if f.name in config and config[f.name] != f.default]
    if given and not models or "model_type" in given:
        fail(f"{given[0]} is for fresh models, which are named by --models=mixer,llama")
    sizes = {"gd": lrs, "adam": adam_lrs, "exact": [""]}
    check("metric", [metric], ("l1", "l2", "cosine"))
    check("methods", methods, sizes)
    text = read_prompt(start)
    if start and not text:
        fail(f"no prompt: {start.removeprefix('FILE:')} is empty")
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)

    all_seeds = range(seed, seed + seeds)
    plan = plan_tasks(fresh_models(all_seeds) if models else saved_models(all_seeds))
    rows, json_path, loaded = [], os.path.join(out_dir, "invert.json"), None
    settings = {key: value for key, value in config.items() if key not in FREE}
    if resume and os.path.exists(json_path):
        with open(json_path, encoding="utf-8") as f:
            saved = json.load(f)
        if saved["settings"] != settings:
            fail(f"{json_path} was made with other settings: choose another --out_dir, or --resume=false")
        rows = saved["rows"]
    with suppress(OSError):  # replacing says what is wrong
        os.makedirs(out_dir, exist_ok=True)
    print("", *COLUMNS, sep="  ")
    for i, (run, c, path, tokenizer, prompts, method, layer, T) in enumerate(plan, 1):
        head = run | dict(method=method, layer=layer, T=T)
        if any(head.items() <= row.items() for row in rows):
            continue
        if loaded != run:
            if models and path:
                shape = {key: value for key, value in asdict(c).items() if key != "vocab_size"}
                train_run(os.path.dirname(path), **TRAINING, **shape, max_tokens=train_tokens,
                          dataset=dataset or "python", data_dir=data_dir, device=device, seed=run["seed"])
            torch.manual_seed(run["seed"])
            model, loaded = load_model(path, device)[0] if path else LanguageModel(c), run
            model = model.to(device).eval().requires_grad_(False)
            wte = model.wte.weight                                                        # (V, C)
            pinv = torch.linalg.pinv(wte.cpu()).to(device)                                # (C, V)
        idx, clock = prompts[:, :T].to(device), time.perf_counter()                       # (B, T)
        noise, shift = (random_start(len(idx), T, c.n_embd, run["seed"] + n).to(device) for n in (0, 1))
        if method == "exact":
            found, tried = zip(*(recover_exactly(model, ids[ids >= 0], layer) for ids in idx))
            found = nn.utils.rnn.pad_sequence([wte[tokens] for tokens in found], batch_first=True)
            x = found[None]                                                               # (1, B, T, C)
        else:
            with autocast(device, dtype):  # x (n_lr, B, T, C)
                x = invert(model, idx, noise, method, sizes[method], steps, metric, layer, last_n, batch_size)
        mask, e = matched_positions(idx, last_n), wte[idx.clamp(min=0)]                   # (B, T), (B, T, C)
        target = hidden_states(model, e, layer)
        left = [distances(hidden_states(model, y, layer), target, mask, metric) for y in x]  # n_lr of (B,)
        shifted = hidden_states(model, e + 0.05 * wte.std() * shift, layer)  # a yardstick, as in the paper
        shifted = distances(shifted, target, mask, metric).cpu()  # (B,); waits for the device
        seconds = round(time.perf_counter() - clock, 2)  # of the batch: its prompts and step sizes share them
        for lr, y, distance in zip(sizes[method], x, left):
            top5, nearest = map(torch.stack, zip(*(decode(row, wte, pinv) for row in y)))
            if method == "exact":
                top5, counts = nearest, sum(tried, [])  # an embedding's nearest is itself
                print(f"   tried {fmean(counts):.1f} of {len(wte)} candidates a token, at most {max(counts)}")
            counted = {f"last{last_n}:self": mask, f"last{last_n}:non-self": (idx >= 0) & ~mask}
            for matched, positions in (counted if last_n else {"all": mask}).items():
                scores = [hamming(tokens, idx, positions) for tokens in (top5[..., :1], top5, nearest)]
                means = [float(f"{value.nanmean():.5g}") for value in (*scores, distance, shifted)]
                row = head | dict(lr=lr, metric=metric, matched=matched) | dict(zip(COLUMNS[10:], means))
                row |= dict(seconds=seconds, top1_by_prompt=scores[0][~scores[0].isnan()].tolist())
                rows.append(row | (dict(tried=tried) if method == "exact" else {}))
                print(f"{i}/{len(plan)}", *(row[key] for key in COLUMNS), sep="  ", flush=True)
            for tokens, truth in list(zip(top5[..., 0].tolist(), idx.tolist()))[:show]:
                truth = [token for token in truth if token >= 0]
                print("   true", mark(truth, truth, tokenizer), "\n  found", mark(tokens, truth, tokenizer))
        with replacing(os.path.join(out_dir, "invert.csv"), "w") as f:
            f.write(",".join(COLUMNS) + "\n")
            f.writelines(",".join(str(row[key]) for key in COLUMNS) + "\n" for row in rows)
        with replacing(json_path, "w") as f:
            json.dump({"settings": settings, "torch": torch.__version__, "rows": rows}, f, indent=1)
    print("\n".join(["", *format_table(rows)]))
    plot(rows, os.path.join(out_dir, "invert.png"))
    if compare:
        plot_efficiency(rows, os.path.join(out_dir, "efficiency.png"))

"""
Compare architectures: train several models under one budget, and show what came of it.

    python compare.py config/compare_tiny.py                                  # a table, a figure, and samples
    python compare.py config/compare_tiny.py --budget=seconds --amount=60 --n_seeds=3
    python compare.py config/compare_tiny.py --match=parameters               # all as large as the first

A compare file names a config of train.py, `base`, and `variants`: {name: {key: value, ...}, ...}. Each is a
run of train.py inside out_dir; the same command goes on where it stopped, and repeats nothing that is done.
Into out_dir go compare.csv (a row a run), compare.md (a row a variant, and their samples), compare.png and,
with `over`, over.png.
"""
import csv
import json
import os
import re
import sys
from dataclasses import fields
from statistics import fmean

import torch

from common import choose_device, replacing
from configurator import configure, fail
from dataset import get_batch, load_meta, load_tokens, stream_text, validation_windows
from figures import save_figure
from model import ModelConfig
from objectives import OBJECTIVES
from runs import load_model, train_run
from sample import generate

# defaults: change them by a config file and by --key=value
out_dir = "out/compare"           # folder of the runs, and of the results
base = "config/mixer_tiny.py"     # config of train.py that all variants start from
dataset = ""                      # what all are trained on; empty: as base and variants say
variants = {"mixer": {}, "llama": {"model_type": "llama"}}  # name: what it has besides
budget = "tokens"                 # what is equal: tokens | seconds | flops, of training
amount = 1e6                      # so much of it
match = ""                        # solve n_embd for as many as the first has: parameters | flops (a token)
over = ""                         # draw final losses over a setting or column; x_32, x_64 make a line x
n_seeds = 1                       # runs of each variant
seed = 1337                       # of the first of them; the next takes one more
prompt = "def"                    # of the samples: a space at the end belongs to the next token
sample_tokens = 120               # tokens of each
data_dir = "data"                 # where datasets are
device = "auto"                   # auto | cpu | cuda | cuda:1 | mps
# end of defaults

COLUMNS = ("name,seed,n_embd,parameters,flops_per_token,learning_rate,tokens,seconds,tok_per_sec,train_flops,"
           "peak_memory_mb,train_loss,val_loss,val_bpb,token_accuracy").split(",")
STYLES = "o-", "s--", "^:"  # of the first ten lines of a figure, the next, and those after
SHAPE = [f.name for f in fields(ModelConfig) if f.name != "vocab_size"]


def build(settings, vocab_size):
    """The model that train.py would make of its settings, without memory for its weights."""
    try:
        config = ModelConfig(**{key: settings[key] for key in SHAPE}, vocab_size=vocab_size)
    except ValueError as e:
        fail(e)
    with torch.device("meta"):
        return OBJECTIVES[settings["objective"]](config)


def size_of(settings, vocab_size, what):
    """Number of parameters, or of forward FLOPs a token."""
    model = build(settings, vocab_size)
    return sum(p.numel() for p in model.parameters()) if what == "parameters" else model.estimate_flops()


def solve_n_embd(settings, vocab_size, what, target):
    """The n_embd, a multiple of twice the heads (for rotary positions), whose size comes nearest to target.
    Size grows with n_embd, so bisection finds it."""
    step = 2 * settings["n_head"] * settings["mixer_heads"]
    low, high = 1, 2
    while size_of(settings | {"n_embd": high * step}, vocab_size, what) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        below = size_of(settings | {"n_embd": middle * step}, vocab_size, what) < target
        low, high = (middle, high) if below else (low, middle)
    return step * min((low, high), key=lambda n: abs(
        size_of(settings | {"n_embd": n * step}, vocab_size, what) - target))


def plan_runs(defaults, given):
    """[(name, settings of train.py)] of all variants and seeds. What was solved for n_embd is printed."""
    runs, target = [], None
    for name, overrides in given.items():
        if not isinstance(overrides, dict) or not name.replace("_", "").replace("-", "").isalnum():
            fail(f"variants: {name!r} is a name of letters, digits, - and _, and has a dict of settings")
        for key in overrides:
            if key not in defaults:
                fail(f"variants: {name} sets {key}, which train.py does not have")
        settings = defaults | overrides | ({"dataset": dataset} if dataset else {})
        vocab_size = load_meta(os.path.join(data_dir, settings["dataset"]))["vocab_size"]
        if match:
            target = target or size_of(settings, vocab_size, match)
            settings["n_embd"] = solve_n_embd(settings, vocab_size, match, target)
            print(f"{name}: n_embd {settings['n_embd']}, {match} "
                  f"{size_of(settings, vocab_size, match) / target:.3f} of {next(iter(given))}'s")
        flops = 3 * size_of(settings, vocab_size, "flops")
        settings |= dict(max_iters=0, max_tokens=0, max_seconds=0.0, sample_tokens=0, data_dir=data_dir)
        if budget == "seconds":
            settings["max_seconds"] = amount
        else:
            settings["max_tokens"] = int(amount if budget == "tokens" else amount / flops)
        runs += [(name, settings | {"seed": s}) for s in range(seed, seed + n_seeds)]
    return runs


@torch.no_grad()
def token_accuracy(model, settings, meta, n_windows=64):
    """Share of tokens of the validation text that the model holds for the most probable: next tokens, or, of
    an autoencoder, those of its input."""
    data, T = load_tokens(os.path.join(data_dir, settings["dataset"]), "val", meta), settings["block_size"]
    starts, right = validation_windows(len(data), T, n_windows).tolist(), []
    for start in starts:
        idx, targets = get_batch(data, [start], T, device)                                # (1, T)
        wanted = idx if settings["objective"] == "autoencode" else targets
        right.append((model(idx)[0].argmax(dim=-1) == wanted).float().mean().item())
    return fmean(right)


def read_run(folder, name, settings):
    """The row of a finished run; its points of validation loss, (tokens, seconds, FLOPs, loss); and what it
    writes, None if it does not predict the next token."""
    model, tokenizer, checkpoint = load_model(os.path.join(folder, "ckpt.pt"), device)
    with open(os.path.join(folder, "log.csv"), encoding="utf-8", newline="") as f:
        log = list(csv.DictReader(f))
    flops, last = model.estimate_flops(), {key: float(value or "nan") for key, value in log[-1].items()}
    row = dict(name=name, seed=settings["seed"], n_embd=settings["n_embd"], flops_per_token=flops,
               parameters=sum(p.numel() for p in model.parameters()), learning_rate=settings["learning_rate"],
               tok_per_sec=last["tokens"] / last["seconds"], train_flops=3 * flops * last["tokens"],
               peak_memory_mb=checkpoint.get("peak_memory_mb"))
    row |= {key: last[key] for key in ("tokens", "seconds", "train_loss", "val_loss", "val_bpb")}
    row["token_accuracy"] = token_accuracy(model, settings, checkpoint["meta"])
    points = [(float(r["tokens"]), float(r["seconds"]), 3 * flops * float(r["tokens"]), float(r["val_loss"]))
              for r in log if r["val_loss"]]
    if settings["objective"] != "causal":
        return row, points, None
    end_of_text = checkpoint["meta"]["eot_id"]
    ids = tokenizer.encode_ordinary(prompt)[:model.config.block_size] or [end_of_text]
    tokens = (token for token, in generate(model, [ids], sample_tokens, 0.8, top_k=200, seed=seed,
                                           stop_token=end_of_text))
    return row, points, prompt + "".join(stream_text(tokenizer, tokens))


def format_table(rows):
    """Markdown: a line a variant, means over the seeds, ranked by validation loss, with its range."""
    groups = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    ranked = sorted(groups.items(), key=lambda item: fmean(row["val_loss"] for row in item[1]))
    lines = [["rank", "model", "parameters", "MFLOP a token", "tokens", "seconds", "tokens/s", "peak MB",
              "val loss", "range", "bits a byte", "token accuracy"]]
    for rank, (name, group) in enumerate(ranked, 1):
        mean = {key: fmean(row[key] or 0 for row in group) for key in COLUMNS[2:]}
        losses = [row["val_loss"] for row in group]
        cells = ("{parameters:,.0f}|{mflop:.2f}|{tokens:,.0f}|{seconds:.0f}|{tok_per_sec:,.0f}|"
                 "{peak_memory_mb:.0f}|{val_loss:.3f}|{low:.3f} to {high:.3f}|{val_bpb:.3f}|"
                 "{token_accuracy:.3f}")
        extra = dict(mflop=mean["flops_per_token"] / 1e6, low=min(losses), high=max(losses))
        lines.append([str(rank), name, *cells.format(**mean, **extra).split("|")])
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    cells = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plot(curves, path):
    """Validation loss over tokens, seconds and FLOPs: the mean over the seeds, and their range as a band."""
    def draw(axes):
        for i, (name, runs) in enumerate(curves.items()):
            n = min(map(len, runs))  # runs of a time budget differ by an evaluation
            losses = [[run[j][3] for run in runs] for j in range(1, n)]  # an untrained model says nothing
            for ax, column, label in zip(axes, range(3), ("tokens", "seconds", "training FLOPs")):
                x = [fmean(run[j][column] for run in runs) for j in range(1, n)]
                style = dict(color=f"C{i % 10}")
                ax.plot(x, [fmean(of) for of in losses], STYLES[i // 10 % 3], ms=3, label=name, **style)
                ax.fill_between(x, [min(of) for of in losses], [max(of) for of in losses], alpha=0.2, **style)
                ax.set(xlabel=label)
        axes[0].set(ylabel="validation loss, nats a token")
        for ax in axes:
            ax.grid(alpha=0.3)
        axes[2].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    save_figure(path, draw, ncols=3, figsize=(14, 4.5), sharey=True)


def series(rows, over):
    """{line: {value of `over`: losses of the seeds}}: variants whose names differ in a last _NUMBER only are
    one line."""
    lines = {}
    for row in rows:
        points = lines.setdefault(re.sub(r"_\d+$", "", row["name"]), {})
        points.setdefault(row[over], []).append(row["val_loss"])
    return lines


def plot_over(rows, over, path):
    """Final validation loss over `over`, both logarithmic: means over the seeds, and their range."""
    def draw(ax):
        from matplotlib.ticker import EngFormatter  # as slow to import as the rest of it
        for name, points in series(rows, over).items():
            x, losses = zip(*sorted(points.items()))
            means = [fmean(of) for of in losses]
            down, up = zip(*((mean - min(of), max(of) - mean) for mean, of in zip(means, losses)))
            ax.errorbar(x, means, (down, up), marker="o", ms=3, label=name)
        ax.set(xscale="log", yscale="log", xlabel=over.replace("_", " "),
               ylabel="final validation loss, nats a token")
        ticks = []
        for x in sorted({row[over] for row in rows}):
            ticks += [x] if not ticks or x > 1.6 * ticks[-1] else []  # no label over another
        ax.set_xticks(ticks)
        ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter(EngFormatter(places=1) if ticks[-1] > 1e4 else "{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.grid(alpha=0.3, which="both")
        ax.legend()
    save_figure(path, draw, figsize=(7, 4.5))


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    config = configure(sys.argv[1:], __file__)
    globals().update(config)
    for key, choices in ("budget", ("tokens", "seconds", "flops")), ("match", ("", "parameters", "flops")):
        if config[key] not in choices:
            fail(f"{key} must be {' or '.join(filter(None, choices))}; got {config[key]!r}")
    if not variants or min(n_seeds, sample_tokens) < 1 or not 0 < amount < float("inf"):
        fail("variants must name at least one, and n_seeds, sample_tokens and amount must be above 0")
    defaults = configure([base], os.path.join(here, "train.py"), os.path.join(here, "model.py"))
    if over and over not in COLUMNS and type(defaults.get(over)) not in (int, float):
        fail(f"over: {over!r} is neither a number among train.py's settings nor a column of compare.csv")
    columns = list(dict.fromkeys([*COLUMNS, over] if over else COLUMNS))
    defaults["device"] = device
    device = choose_device(device)
    rows, curves, samples = [], {}, {}
    for name, settings in plan_runs(defaults, variants):
        folder = os.path.join(out_dir, f"{name}_{settings['seed']}")
        print(f"--- {folder}", flush=True)
        train_run(folder, **{key: settings[key] for key in settings.keys() - {"out_dir", "init_from"}})
        row, points, text = read_run(folder, name, settings)
        rows.append({over: settings.get(over)} | row)
        curves.setdefault(name, []).append(points)
        if text is not None:
            samples.setdefault(name, text)
        with replacing(os.path.join(out_dir, "compare.csv"), "w") as f:
            writer = csv.DictWriter(f, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    table = format_table(rows)
    with replacing(os.path.join(out_dir, "compare.md"), "w") as f:
        f.write(f"# Equal {budget}: {amount:g}\n\n{table}\n\nBase {base}; variants {json.dumps(variants)}.\n")
        for name, text in samples.items():
            f.write(f"\n## What {name} writes\n\n" + "".join(f"    {line}\n" for line in text.split("\n")))
    plot(curves, os.path.join(out_dir, "compare.png"))
    if over:
        plot_over(rows, over, os.path.join(out_dir, "over.png"))
    print(table)

"""
Compare architectures: train several models under one budget, and show what each has learned.

    python compare.py config/compare_tiny.py                                  # a table, figures, and samples
    python compare.py config/compare_tiny.py --budget=seconds --amount=60 --n_seeds=3
    python compare.py config/compare_tiny.py --match=parameters               # all as large as the first one
    python compare.py config/compare_tiny.py --only=mixer,llama               # these two; the other rows stay

A compare file names a config of train.py, `base`, and `variants`: {name: {key: value, ...}, ...}. Each variant and
seed is a run of train.py in a folder inside out_dir. The same command continues where it stopped and repeats no
finished run; a run whose settings have changed is moved aside and trained anew. Into out_dir it writes compare.csv
(a row per run), curves.csv (a row per evaluation), compare.md (a table with a row per variant, and samples),
compare.png and, with `over`, over.png.
"""
import json
import os
import re
from bisect import bisect_left
from statistics import fmean

from configurator import configure, run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import torch

from lib.data import document_starts, load_meta, load_tokens, stream_text, validation_windows
from lib.device import setup
from lib.objectives import build_model
from lib.plots import grouped, plot_curves, plot_over
from lib.runs import (build_config, different_setting, load_checkpoint, load_model, lock_folder, make_folder,
                      model_checksum, move_run_aside, read_log, read_rows, replacing, train_run, used_settings,
                      write_rows)
from train import get_batch

# defaults: change them by a config file and by --key=value
out_dir = "out/compare"           # folder of the runs and of the results
base = "config/mixer_tiny.py"     # the config of train.py from which all variants start
dataset = ""                      # the dataset of all variants; empty: the one that base and variants name
windows = ""                      # likewise packed or document; empty: what base and variants name
eval_interval = 0                 # [0, inf) likewise iterations between evaluations; 0: what base and variants say
variants = {"mixer": {}, "llama": {"model_type": "llama"}}  # name: its settings besides those of base
only: list[str] = []              # names of the variants to run now; the other rows of compare.csv stay
rerun = False                     # train anew even where a finished run has the same settings
budget = "tokens"                 # tokens | seconds | flops: what is equal, counted in training alone
amount = 1e6                      # (0, inf) how much of it each run may use
match = "none"                    # none | parameters | flops: solve n_embd so that each has as many as the first
over = ""                         # a setting or column: draw final losses over it; x_32 and x_64 share a line, x
n_seeds = 1                       # [1, inf) runs of each variant
seed = 1337                       # [0, inf) seed of the first run; each further run takes one more
prompt = "def"                    # how samples begin; a space at its end belongs to the next token
sample_tokens = 120               # [1, inf) tokens of each sample
data_dir = "data"                 # folder of the datasets
device = "auto"                   # auto, cpu, cuda, cuda:1 or mps
fast = True                       # faster equivalents of four functions of model.py (lib/fast.py)
# end of defaults

COLUMNS = ("name,seed,n_embd,parameters,flops_per_token,learning_rate,tokens,seconds,tok_per_sec,train_flops,"
           "peak_memory_mb,train_loss,val_loss,val_bpb,token_accuracy,recall_loss,other_loss,recall_accuracy").split(",")
LOGGED = "tokens,seconds,train_loss,val_loss,val_bpb,recall_loss,other_loss,recall_accuracy".split(",")
CURVES = ["name", "seed", "train_flops", *LOGGED]
HEADINGS = ("rank,model,parameters,MFLOP per token,tokens,seconds,tokens/s,peak MB,val loss,range,bits per byte,"
            "token accuracy").split(",")


def size_of(settings, vocab_size, what):
    """Count the parameters, or the forward FLOPs per token, of the model of these settings. May raise ValueError."""
    with torch.device("meta"):  # the weights take no memory
        model = build_model(settings["objective"], build_config(settings, vocab_size))
    return sum(p.numel() for p in model.parameters()) if what == "parameters" else model.estimate_flops()


def solve_n_embd(settings, vocab_size, what, target):
    """Find the n_embd whose size comes nearest to target by bisection, since size grows with n_embd.

    It is a multiple of twice the heads, because rotary positions need heads of an even width.
    """
    step = 2 * settings["n_head"] * settings["mixer_heads"]
    widths = range(step, 2 ** 16, step)

    def size(n):
        return size_of(settings | {"n_embd": n}, vocab_size, what)
    i = bisect_left(widths, target, key=size)  # the first width that is large enough
    return min(widths[max(0, i - 1):i + 1], key=lambda n: abs(size(n) - target))


def plan_variant(args, name, target):
    """(settings of train.py, size of the model) of a variant. Raises ValueError for a setting that is wrong.

    target: the size of the first variant, if this one is to match it, or None.
    """
    overrides = args.variants[name]
    if not re.fullmatch(r"[\w-]+", str(name)) or not isinstance(overrides, dict):
        raise ValueError("a variant has a name of letters, digits, - and _, and a dict of settings")
    common = {"data_dir": args.data_dir, "device": args.device, "eval_only": False, "sample_tokens": 0,
              "max_iters": 0, "max_tokens": 0, "max_seconds": 0.0}
    for key in "out_dir", "init_from", "seed", *common:
        if key in overrides:
            raise ValueError(f"compare.py sets {key} itself: leave it out")
    for key in "dataset", "windows", "eval_interval":
        if getattr(args, key):
            overrides = overrides | {key: getattr(args, key)}
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    settings = configure([args.base, f"--fast={args.fast}", *arguments], "train.py", "model.py") | common
    del settings["out_dir"], settings["init_from"]
    vocab_size = load_meta(os.path.join(args.data_dir, settings["dataset"]))["vocab_size"]
    if target:
        settings["n_embd"] = solve_n_embd(settings, vocab_size, args.match, target)
    flops = 3 * size_of(settings, vocab_size, "flops")
    if args.budget == "seconds":
        settings["max_seconds"] = float(args.amount)
    else:
        settings["max_tokens"] = max(1, int(args.amount if args.budget == "tokens" else args.amount / flops))
    return settings, size_of(settings, vocab_size, args.match)


def plan_runs(args):
    """[(name, settings of train.py)] of all variants and seeds; prints each n_embd that it has solved for.

    It builds every model, on the meta device, so that a wrong variant is refused before the first one trains.
    """
    runs, target = [], None
    for name in args.variants:
        try:
            settings, size = plan_variant(args, name, target)
        except ValueError as e:
            raise ValueError(f"variants: {name}: {e}") from None
        if args.match != "none":
            target = target or size
            print(f"{name}: n_embd {settings['n_embd']}, {size / target:.3f} times the {args.match} of the first")
        runs += [(name, settings | {"seed": s}) for s in range(args.seed, args.seed + args.n_seeds)]
    return runs


@torch.no_grad()
def token_accuracy(model, data, objective, device, end_of_text=None, n_windows=64):
    """The share of validation tokens that the model holds for the most probable: the next ones, or, for an
    autoencoder, those of its input. With the id end_of_text, a window has one document from its beginning."""
    T, n_right, n = model.config.block_size, 0, 0
    documents = document_starts(data, end_of_text)
    for start in validation_windows(len(data), T, n_windows, documents).tolist():
        idx, targets = get_batch(data, [start], T, device, end_of_text)                   # (1, T)
        wanted = idx if objective == "autoencode" else targets
        is_right = model(idx)[0].argmax(dim=-1) == wanted                                 # (1, T)
        counted = targets >= 0
        n_right += (is_right & counted).sum().item()
        n += counted.sum().item()
    return n_right / n


def read_measures(folder):
    """The rows of the log with an evaluation, in numbers; None where a column is empty, or missing in an old log."""
    rows = [row for row in read_log(folder) if row["val_loss"]]
    return [{key: float(row[key]) if row.get(key) else None for key in LOGGED} for row in rows]


def read_run(folder, name, args, device):
    """The row of compare.csv for the run in `folder`: all its values come from the checkpoint and the log."""
    model, _, checkpoint = load_model(folder, device)
    used = used_settings(checkpoint)
    last = read_measures(folder)[-1]
    data = load_tokens(os.path.join(args.data_dir, used["dataset"]), "val", checkpoint["meta"])
    end_of_text = checkpoint["meta"]["eot_id"] if used["windows"] == "document" else None
    flops = model.estimate_flops()
    row = {"name": name, "parameters": sum(p.numel() for p in model.parameters()), "flops_per_token": flops,
           "tok_per_sec": last["tokens"] / last["seconds"], "train_flops": 3 * flops * last["tokens"],
           "peak_memory_mb": checkpoint["peak_memory_mb"],
           "token_accuracy": token_accuracy(model, data, used["objective"], device, end_of_text)}
    return row | last | {key: used[key] for key in ("seed", "n_embd", "learning_rate", args.over) if key in used}


def write_sample(folder, args, device):
    """The prompt and how the model in `folder` continues it; "" if it does not predict the next token."""
    model, tokenizer, checkpoint = load_model(folder, device)
    if used_settings(checkpoint)["objective"] != "causal":
        return ""
    end_of_text = checkpoint["meta"]["eot_id"]
    ids = tokenizer.encode_ordinary(args.prompt)[-model.config.block_size:] or [end_of_text]
    steps = model.generate([ids], args.sample_tokens, 0.8, top_k=200, seed=args.seed, stop_token=end_of_text)
    tokens = [token for token, in steps if token != end_of_text]
    return args.prompt + "".join(stream_text(tokenizer, tokens))


def format_table(rows, failed=()):
    """A table in Markdown: a line per variant with means over its seeds, ranked by validation loss and with the
    loss's range; then a line per run that failed."""
    ranked = sorted(grouped(rows, "name").values(), key=lambda group: fmean(row["val_loss"] for row in group))
    lines = [HEADINGS]
    for rank, group in enumerate(ranked, 1):
        mean = {key: fmean(row[key] or 0 for row in group) for key in COLUMNS[2:]}
        losses = [row["val_loss"] for row in group]
        cells = ("{parameters:,.0f}|{mflop:.2f}|{tokens:,.0f}|{seconds:.0f}|{tok_per_sec:,.0f}|{peak_memory_mb:.0f}|"
                 "{val_loss:.3f}|{low:.3f} to {high:.3f}|{val_bpb:.3f}|{token_accuracy:.3f}")
        cells = cells.format(**mean, mflop=mean["flops_per_token"] / 1e6, low=min(losses), high=max(losses))
        lines.append([str(rank), group[0]["name"], *cells.split("|")])
    lines += [["failed", run, *[""] * len(HEADINGS[2:])] for run in failed]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def report(args, rows, failed, device):
    """Write compare.md, curves.csv and the figures, and print the table."""
    curves, samples = [], {}
    for row in rows:
        name, folder = row["name"], os.path.join(args.out_dir, f"{row['name']}_{row['seed']}")
        if os.path.exists(os.path.join(folder, "ckpt.pt")):  # a row may have outlived its run
            for point in read_measures(folder):
                flops = 3 * row["flops_per_token"] * point["tokens"]
                curves.append(point | {"name": name, "seed": row["seed"], "train_flops": flops})
            samples[name] = samples.get(name) or write_sample(folder, args, device)
    table = format_table(rows, failed)
    with replacing(os.path.join(args.out_dir, "compare.md"), "w") as f:
        f.write(f"# Equal {args.budget}: {args.amount:g}\n\n{table}\n\n"
                f"Base {args.base}; variants {json.dumps(args.variants)}.\n")
        for name, text in samples.items():
            if text:
                f.write(f"\n## What {name} writes\n\n" + "".join(f"    {line}\n" for line in text.split("\n")))
    write_rows(os.path.join(args.out_dir, "curves.csv"), CURVES, curves)
    if curves:
        plot_curves(curves, os.path.join(args.out_dir, "compare.png"))
    drawn = [row for row in rows if row.get(args.over) is not None]
    if drawn:
        plot_over(drawn, args.over, os.path.join(args.out_dir, "over.png"))
    print(table)


def main(args):
    """Train what is not trained yet, and report. Raises ChildProcessError at the end if runs have failed."""
    if not args.variants:
        raise ValueError("variants are empty: a compare file names at least one")
    if unknown := sorted(set(args.only) - set(args.variants)):
        raise ValueError(f"only: {', '.join(unknown)} is none of the variants {', '.join(args.variants)}")
    known = configure([args.base], "train.py", "model.py")
    numbers = COLUMNS[1:]  # the first column is the name
    if args.over and args.over not in numbers and type(known.get(args.over)) not in (int, float):
        raise ValueError(f"over: {args.over!r} is neither a number among train.py's settings nor a column of "
                         "compare.csv")
    device, _ = setup(args.device, "float32", args.fast)
    runs = plan_runs(args)
    make_folder(args.out_dir)
    lock_folder(args.out_dir)
    path = os.path.join(args.out_dir, "compare.csv")
    rows = [row for row in read_rows(path) if args.only and row["name"] not in args.only]
    failed = []
    for name, settings in runs:
        run = f"{name}_{settings['seed']}"
        folder = os.path.join(args.out_dir, run)
        different = ""
        if os.path.exists(os.path.join(folder, "ckpt.pt")):
            different = different_setting(load_checkpoint(folder), settings, with_budgets=True)
        if args.only and name not in args.only:
            if different:
                print(f"warning: {folder} was trained with {different}; it stays, since --only does not name it")
            continue
        print(f"--- {folder}", flush=True)
        if different:
            print(f"{folder} was trained with {different}: training it anew", flush=True)
        if different or args.rerun:
            move_run_aside(folder)
        try:
            train_run(folder, **settings)
        except ChildProcessError:
            failed.append(run)
            continue
        if load_checkpoint(folder).get("model_py") != model_checksum():
            print(f"warning: {folder} was trained with another model.py than today's; --rerun=true trains it anew")
        rows.append(read_run(folder, name, args, device))
        write_rows(path, list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)])), rows)
    report(args, rows, failed, device)
    if failed:
        raise ChildProcessError(f"{len(failed)} of {len(runs)} runs failed, as they say above: {', '.join(failed)}")


if __name__ == "__main__":
    run_script(main, "compare.py")

"""
Input inversion: how much of its input does a model keep? (arXiv 2409.01482, on input representation)

    python invert.py --out_dir=out/mixer_tiny                    # a finished run, on windows of its dataset
    python invert.py --out_dir=out/mixer_tiny --methods=exact --start="import os, sys"
    python invert.py --compare=out/mixer_tiny,out/llama_tiny --layers=each --windows=16,32,64,128
    python invert.py config/invert_untrained.py --n_embd=512     # fresh models of any kind and size
    python invert.py config/invert_table.py                      # the table in results/; --quick=true: a taste

From the hidden states of a prompt alone, descent looks for an input that has them. The columns hamming_* are the shares
of tokens that do not come back: top1 and top5 decode the input by the pseudo-inverse of the embedding, as the paper
does; nearest takes the nearest embedding, which often recovers more, so read both. Descent shows how easily an input is
found; the method `exact`, which tries tokens, shows whether it is there at all. distance lies between the states found
and those of the prompt. Compare it with shifted_distance, as in the author's code: the distance after adding
0.05 N(0, 1) to the prompt's embeddings, whatever their scale. Into out_dir go invert.csv, invert.json, invert.png and,
with --compare, efficiency.png: do models that keep their input learn faster?
"""
import itertools
import json
import os
import sys
import time
from dataclasses import asdict, fields
from glob import glob
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import NamedTuple

from configurator import configure, run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import torch
from torch.nn.utils.rnn import pad_sequence

from lib.data import build_tokenizer, crc32, load_meta, load_tokens, text_sums, validation_windows
from lib.device import autocast, setup
from lib.inversion import (decode, distances, hamming, hidden_states, invert, matched_positions, random_start,
                           recover_exactly)
from lib.plots import best_shares, grouped, plot_efficiency, plot_inversion, rank_correlation
from lib.runs import build_config, load_checkpoint, load_model, make_folder, read_log, replacing, train_run, write_rows
from lib.sources import read_prompt
from model import LanguageModel, ModelConfig

# defaults: change them by a config file and by --key=value; several values are separated by commas
out_dir = "out/mixer_tiny"   # folder of the run, and of the results
compare: list[str] = []      # several runs, instead of the one in out_dir: "out/*" or, with keep_every, "out/a/*.pt"
models: list[str] = []       # fresh models instead of runs: mixer,llama; ModelConfig's keys give their size
embd_stds: list[float] = []  # (0, inf) each fresh model is built with each of these values of embd_std
inits: list[str] = []        # auto | torch | normal: and with each of these values of init
train_tokens = 0             # [0, inf) above 0, each is also trained on this many tokens, as a run inside out_dir
methods = ["gd", "adam"]     # gd | adam | exact: the paper's descent, Adam scaled to the embedding, trying tokens
lrs = [0.02, 0.2, 2.0]       # (0, inf) initial step sizes of gd; they fall to a tenth
adam_lrs = [0.1]             # (0, inf) those of adam, in units of the embedding's standard deviation
steps = 500                  # [1, inf) steps of descent
metric = "l1"                # l1 | l2 | cosine: the distance between states, summed over positions
last_n = 0                   # [0, inf) match the states of the last n positions only; 0: of all positions
layers = ["all"]             # match them after these blocks: all, each (one by one), 1,3 or norm (the final norm)
windows: list[int] = []      # [1, inf) T: tokens in a prompt, 16,64; none: block_size
start = ""                   # text of the prompts, or FILE:path; empty: validation windows of the dataset
n_prompts = 4                # [1, inf) number of prompts
dataset = ""                 # folder in data_dir; empty: that of the run, "python" for fresh models
data_dir = "data"            # folder of the datasets
seed = 1337                  # [0, 1e12] draws the noise where descent starts, and the weights of fresh models
seeds = 1                    # [1, 1000] number of seeds, from `seed` on
batch_size = 64              # [1, inf) rows (prompts times step sizes) that descend together
show = 1                     # [0, inf) prompts whose recovered text is printed
resume = False               # keep the rows of out_dir/invert.json and compute those that are missing
quick = False                # a taste, into out_dir + "_quick": fresh mixer and llama, one seed, half the train_tokens
device = "auto"              # auto, cpu, cuda, cuda:1 or mps
dtype = "float32"            # auto | float32 | bfloat16 | float16: number format of the matmuls in descent
fast = True                  # faster equivalents of four functions of model.py (lib/fast.py)
# end of defaults

KEYS = "model trained embedding_std seed method lr metric matched layer T".split()  # these tell rows apart
COLUMNS = [*KEYS, *"hamming_top1 hamming_top5 hamming_nearest distance shifted_distance seconds".split()]
FREE = ("out_dir compare models embd_stds inits methods layers seed seeds batch_size show resume "
        "device").split()  # settings that may differ between the rows of one table
TRAINING = dict(batch_size=32, learning_rate=4e-3, warmup_iters=100, max_iters=0, eval_interval=200, eval_iters=5,
                log_interval=100, sample_tokens=0)  # for fresh models; the other settings are train.py's defaults
BRACKETS, COLOURS = ("{}", "[{}]"), ("\033[32m{}\033[0m", "\033[31m{}\033[0m")  # around right and wrong tokens


class Subject(NamedTuple):
    """A model to invert, and the prompts."""
    columns: dict          # the first columns of its rows: model, trained, embedding_std, seed
    config: ModelConfig
    checkpoint: str        # a path, where train.py is to put it if the model is fresh; "" for an untrained model
    dataset: str           # folder
    meta: dict             # meta.json of the dataset, with its tokenizer
    prompts: torch.Tensor  # (B, T), padded with -1


def cut_prompts(block_size, folder, meta, args):
    """Prompts (B, T), padded with -1, of the text `start` or of the validation split; T is the longest window."""
    text = read_prompt(args.start)
    if args.start and not text:
        raise ValueError(f"no prompt: {args.start.removeprefix('FILE:')} is empty")
    ids = build_tokenizer(meta).encode_ordinary(text) if text else load_tokens(folder, "val", meta)
    longest = min(block_size, len(ids) if text else len(ids) - 1)
    T = max(args.windows or [longest])
    if T > longest:
        raise ValueError(f"windows can have 1 to {longest} tokens, by block_size and the text; got {args.windows}")
    starts = range(0, len(ids), T) if text else validation_windows(len(ids), T, args.n_prompts)
    pieces = [torch.tensor([int(token) for token in ids[i:i + T]]) for i in starts[:args.n_prompts]]
    return pad_sequence(pieces, batch_first=True, padding_value=-1)


def fresh_models(args):
    """Yield the Subjects of `models`, `embd_stds` and `inits` for each seed: untrained, and trained if train_tokens."""
    folder = os.path.join(args.data_dir, os.path.expanduser(args.dataset or "python"))
    meta = load_meta(folder)
    prompts = cut_prompts(args.block_size, folder, meta, args)
    seeds = range(args.seed, args.seed + args.seeds)
    for name, std, init, seed in itertools.product(args.models, args.embd_stds or [args.embd_std],
                                                   args.inits or [args.init], seeds):
        config = build_config(vars(args) | dict(model_type=name, embd_std=std, init=init), meta["vocab_size"])
        columns = dict(model=f"{name} init={config.init}", trained="no", embedding_std=config.embd_std, seed=seed)
        yield Subject(columns, config, "", folder, meta, prompts)
        if args.train_tokens:
            path = os.path.join(args.out_dir, f"{name}_{config.init}_{config.embd_std:g}_{seed}", "ckpt.pt")
            yield Subject(columns | dict(trained="yes"), config, path, folder, meta, prompts)


def find_runs(patterns):
    """The folders, and checkpoint files *.pt, that the patterns, such as "out/tiny/*", name: each once.

    A name without a match stays as it is.
    """
    runs = []
    for pattern in map(os.path.expanduser, patterns):
        matches = [] if os.path.isdir(pattern) else sorted(glob(pattern))
        matches = [match for match in matches if os.path.isdir(match) or pattern.endswith(".pt")]
        runs += matches or [pattern]
    return list(dict.fromkeys(map(os.path.normpath, runs)))


def saved_models(args):
    """Yield the Subjects of the runs in `compare`, or in out_dir, for each seed. Prints if a dataset has changed."""
    for run in find_runs(args.compare or [args.out_dir]):
        checkpoint = load_checkpoint(run)
        config = ModelConfig(**checkpoint["model_config"])
        own, used = checkpoint["config"]["dataset"], checkpoint["meta"]
        folder = os.path.join(args.data_dir, os.path.expanduser(args.dataset or own))
        meta = used if args.start else load_meta(folder)
        changed = args.dataset in ("", own) and text_sums(meta) != text_sums(used)
        since = f"has changed since {run} was trained" if changed else f"is not what {run} was trained on"
        if meta["ranks"] != used["ranks"]:
            raise ValueError(f"{folder} {since}, and has another tokenizer: choose another --dataset or give a --start")
        if changed:
            print(f"{folder} {since}: its validation text may be known to the model")
        prompts = cut_prompts(config.block_size, folder, meta, args)
        for seed in range(args.seed, args.seed + args.seeds):
            columns = dict(model=run, trained="yes", embedding_std=config.embd_std, seed=seed)
            path = run if run.endswith(".pt") else os.path.join(run, "ckpt.pt")
            yield Subject(columns, config, path, folder, meta, prompts)


def plan(subject, args):
    """The first columns of a Subject's rows: one dict per method, layer and T. Raises ValueError."""
    n_layer = subject.config.n_layer
    if "exact" in args.methods and (args.last_n or not subject.config.causal):
        raise ValueError("exact needs a causal model, and the states of all positions: --last_n=0")
    each = list(range(1, n_layer + 1))
    depths = {str(n): [n] for n in each} | {"all": [n_layer], "each": each, "norm": ["norm"]}
    layers = []
    for item in args.layers:
        if item not in depths:
            raise ValueError(f"layers: {item!r} is out of range; possible: {', '.join(depths)}")
        layers += depths[item]
    lengths = args.windows or [subject.prompts.size(1)]
    combinations = itertools.product(args.methods, layers, lengths)
    return [subject.columns | dict(method=method, layer=layer, T=T) for method, layer, T in combinations]


def prepare_model(subject, args, device):
    """The model of a Subject, without gradients; a fresh one is first trained by train.py if it is to be."""
    seed = subject.columns["seed"]
    if args.models and subject.checkpoint:
        settings = configure([], "train.py", "model.py") | TRAINING | asdict(subject.config)
        settings |= dict(max_tokens=args.train_tokens, dataset=os.path.expanduser(args.dataset or "python"),
                         data_dir=args.data_dir, device=str(device), fast=args.fast, seed=seed)
        del settings["vocab_size"], settings["out_dir"]
        train_run(os.path.dirname(subject.checkpoint), **settings)
    torch.manual_seed(seed)
    model = load_model(subject.checkpoint)[0] if subject.checkpoint else LanguageModel(subject.config)
    return model.to(device).eval().requires_grad_(False)


def find_inputs(model, idx, columns, sizes, args, dtype):
    """Find inputs (n_lr, B, T, C) with the hidden states of idx (B, T); returns also the counts of `exact`'s tries."""
    layer, method = columns["layer"], columns["method"]
    if method == "exact":
        results = [recover_exactly(model, ids[ids >= 0], layer) for ids in idx]
        embeddings = [model.wte.weight[tokens] for tokens, _ in results]
        return pad_sequence(embeddings, batch_first=True)[None], [tried for _, tried in results]
    noise = random_start(*idx.shape, model.config.n_embd, columns["seed"]).to(idx.device)
    with autocast(idx.device, dtype):
        return invert(model, idx, noise, method, sizes, args.steps, args.metric, layer, args.last_n,
                      args.batch_size), []


def score(model, pinv, idx, x, columns, sizes, args):
    """Yield, per step size, its rows and the tokens (B, T) decoded from its inputs in x (n_lr, B, T, C)."""
    wte, layer = model.wte.weight, columns["layer"]
    mask, e = matched_positions(idx, args.last_n), model.embed(idx.clamp(min=0))          # (B, T), (B, T, C)
    target = hidden_states(model, e, layer)                                               # (B, T, C)
    noise = random_start(*e.shape, columns["seed"] + 1).to(e.device)
    shifted = distances(hidden_states(model, e + 0.05 * noise, layer), target, mask, args.metric)  # (B,)
    counted = {"all": mask}
    if args.last_n:
        counted = {f"last{args.last_n}:self": mask, f"last{args.last_n}:non-self": (idx >= 0) & ~mask}
    for lr, y in zip(sizes, x):
        distance = distances(hidden_states(model, y, layer), target, mask, args.metric)   # (B,)
        decoded = [decode(row, wte, pinv) for row in y]  # all prompts at once could fill the memory
        top5, nearest = (torch.stack(tokens) for tokens in zip(*decoded))                 # (B, T, 5), (B, T, 1)
        if columns["method"] == "exact":
            top5 = nearest  # an embedding's nearest is itself
        rows = []
        for matched, positions in counted.items():
            if not positions.any():  # prompts of last_n tokens have no other
                continue
            shares = {"top1": hamming(top5[..., :1], idx, positions), "top5": hamming(top5, idx, positions),
                      "nearest": hamming(nearest, idx, positions)}                        # (B,) each
            scores = {f"hamming_{name}": share for name, share in shares.items()}
            scores |= {"distance": distance, "shifted_distance": shifted}
            row = columns | dict(lr=lr, metric=args.metric, matched=matched)
            row |= {name: float(f"{value.nanmean():.5g}") for name, value in scores.items()}
            row |= {f"{name}_by_prompt": share[~share.isnan()].tolist() for name, share in shares.items()}
            rows.append(row)
        yield rows, top5[..., 0]


def checksums(paths):
    return {path: crc32(path) for path in paths if os.path.isfile(path)}


def kept_rows(path, settings):
    """The rows in invert.json whose model and text are still the same. Raises ValueError for other settings."""
    with open(path, encoding="utf-8") as f:
        saved = json.load(f)
    if saved["settings"] != settings:
        raise ValueError(f"{path} was made with other settings: choose another --out_dir, or --resume=false")
    now = checksums({path for row in saved["rows"] for path in row["made_from"]})
    rows = [row for row in saved["rows"] if row["made_from"].items() <= now.items()]
    if len(rows) < len(saved["rows"]):
        print(f"{len(saved['rows']) - len(rows)} rows of {path} are dropped: their model or text has changed since")
    return rows


def mark(tokens, truth, tokenizer, colour=False):
    """The text of tokens on one line; wrong ones are in [brackets], or, with colour, red beside green ones."""
    right, wrong = COLOURS if colour else BRACKETS
    text = ""
    for token, true in zip(tokens, truth):
        piece = tokenizer.decode_single_token_bytes(token).decode(errors="replace")
        text += (right if token == true else wrong).format(repr(piece)[1:-1])
    return f"'{text}'"


def format_table(rows):
    """The lines of an aligned table; a line averages all seeds, with top1's standard deviation over n prompts."""
    keys = [key for key in KEYS if key != "seed"]
    means = ["hamming_nearest", "hamming_top5", "distance", "shifted_distance", "seconds"]
    lines = [[*keys, "n", "top1", "std", *(name.removeprefix("hamming_") for name in means)]]
    for values, group in grouped(rows, *keys).items():
        top1 = [share for row in group for share in row["top1_by_prompt"]]
        cells = [f"{fmean(row[name] for row in group):.4g}" for name in means]
        lines.append([*values, str(len(top1)), f"{fmean(top1):.3f}", f"{pstdev(top1):.3f}", *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def compare_with_loss(rows, path):
    """Print and draw how the shares recovered at the best step size correlate with the losses (paper, section 4)."""
    losses = {}
    for run in dict.fromkeys(row["model"] for row in rows):
        if os.path.exists(os.path.join(run, "log.csv")):
            losses[run] = [float(row["val_loss"]) for row in read_log(run) if row["val_loss"]][-1]
        else:
            print(f"{run} has no log.csv, so it is not compared")
    rows = [row for row in rows if row["model"] in losses]
    for (method, matched, layer, T), group in grouped(rows, "method", "matched", "layer", "T").items():
        shares = best_shares(group, "model")
        r = rank_correlation(list(shares.values()), [losses[run] for run in shares])
        text = "none" if r is None else f"{r:.2f}"
        print(f"{method}, {matched}, block {layer}, T {T}: rank correlation of share and loss {text}, "
              f"{len(shares)} runs")
    if rows:
        plot_efficiency(rows, losses, path)


def print_texts(found, idx, tokenizer):
    """Print the texts of prompts idx (B, T), and below each the text that was found.

    A terminal gets colours, unless NO_COLOR is set (https://no-color.org).
    """
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for tokens, truth in zip(found.tolist(), idx.tolist()):
        truth = [token for token in truth if token >= 0]
        print("   true", mark(truth, truth, tokenizer))
        print("  found", mark(tokens, truth, tokenizer, colour))


def main(args):
    """Invert all models of the settings; returns the rows."""
    if args.quick:
        args = SimpleNamespace(**vars(args) | dict(
            models=["mixer", "llama"], inits=["auto"], seeds=1, layers=["all"], train_tokens=args.train_tokens // 2,
            out_dir=args.out_dir + "_quick"))
    changed = [f.name for f in fields(ModelConfig) if getattr(args, f.name, f.default) != f.default]
    if changed and (not args.models or "model_type" in changed):
        raise ValueError(f"{changed[0]} is for fresh models, which are named by --models=mixer,llama")
    if not (args.methods and args.layers and args.lrs and args.adam_lrs):
        raise ValueError("methods, layers, lrs and adam_lrs need at least one value each")
    device, dtype = setup(args.device, args.dtype, args.fast)
    torch.set_float32_matmul_precision("highest")  # TF32 is coarser than the 1e-4 of `exact`
    subjects = fresh_models(args) if args.models else saved_models(args)
    tasks = [(subject, columns) for subject in subjects for columns in plan(subject, args)]
    settings = {key: value for key, value in vars(args).items() if key not in FREE}
    json_path = os.path.join(args.out_dir, "invert.json")
    rows = kept_rows(json_path, settings) if args.resume and os.path.exists(json_path) else []
    make_folder(args.out_dir)
    loaded = None  # the Subject whose model is in memory
    print("", *COLUMNS, sep="  ")
    for i, (subject, columns) in enumerate(tasks, 1):
        if any(columns.items() <= row.items() for row in rows):
            continue
        if subject is not loaded:
            loaded, model = subject, prepare_model(subject, args, device)
            pinv = torch.linalg.pinv(model.wte.weight.cpu()).to(device)                   # (C, V)
            text_path = os.path.expanduser(args.start.removeprefix("FILE:"))
            made_from = checksums([subject.checkpoint, os.path.join(subject.dataset, "val.bin"), text_path])
        idx = subject.prompts[:, :columns["T"]].to(device)                                # (B, T)
        sizes = {"gd": args.lrs, "adam": args.adam_lrs, "exact": [""]}[columns["method"]]
        clock = time.perf_counter()
        x, tried = find_inputs(model, idx, columns, sizes, args, dtype)
        x.sum().item()  # waits for the device
        more = dict(seconds=round(time.perf_counter() - clock, 2), made_from=made_from)
        if tried:
            more["tried"] = tried
            counts = [count for prompt in tried for count in prompt]
            print(f"   tried {fmean(counts):.1f} of {pinv.size(1)} candidates per token, at most {max(counts)}")
        for new, found in score(model, pinv, idx, x, columns, sizes, args):
            for row in new:
                rows.append(row | more)
                print(f"{i}/{len(tasks)}", *(rows[-1][key] for key in COLUMNS), sep="  ", flush=True)
            if args.show:
                print_texts(found[:args.show], idx[:args.show], build_tokenizer(subject.meta))
        write_rows(os.path.join(args.out_dir, "invert.csv"), COLUMNS, rows)
        with replacing(json_path, "w") as f:
            json.dump({"settings": settings, "torch": torch.__version__, "rows": rows}, f, indent=1)
    print("\n".join(["", *format_table(rows)]))
    plot_inversion(rows, os.path.join(args.out_dir, "invert.png"))
    if args.compare:
        compare_with_loss(rows, os.path.join(args.out_dir, "efficiency.png"))
    return rows


if __name__ == "__main__":
    run_script(main, "invert.py", "model.py")

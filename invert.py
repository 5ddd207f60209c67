"""
Input inversion: how much of its input does a model keep? (arXiv 2409.01482, on input representation)

    python invert.py --out_dir=out/mixer_tiny                    # a checkpoint, on windows of its dataset
    python invert.py --out_dir=out/mixer_tiny --methods=exact --start="import os, sys"
    python invert.py --compare=out/mixer_tiny,out/llama_tiny --layers=each --windows=16,32,64,128
    python invert.py config/invert_untrained.py --n_embd=512     # fresh models of any kind and size
    python invert.py config/invert_table.py                      # the README's table; --quick=true: a taste

Given hidden states alone, descent looks for an input that has them; the Hamming metric is the share of tokens
that do not come back. That says how easily an input is found; `exact`, which tries tokens, says whether it is
there at all. Into out_dir go invert.csv, .json and .png.
"""
import itertools
import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, fields
from statistics import fmean, pstdev

import torch
import torch.nn as nn
from torch.nn import functional as F

from common import autocast, choose_device, choose_dtype, load_checkpoint, load_model, replacing
from configurator import configure, fail
from dataset import build_tokenizer, load_meta, load_tokens, validation_windows
from model import Cache, LanguageModel, ModelConfig

# defaults: change them by a config file and by --key=value; several values are separated by commas
out_dir = "out/mixer_tiny"  # folder of the run, and of the results
compare = ""                # folders of several runs, instead of the one in out_dir
models = ""                 # fresh models instead of runs: mixer,llama; their sizes are ModelConfig's keys
embd_stds = ""              # each of them with each of these embd_std
inits = ""                  # and with each of these init
train_seconds = 0.0         # above 0: each also trained for so long, as a run inside out_dir
methods = "gd,adam"         # gd: the paper's | adam: in units of the embedding's deviation | exact: by trying
lrs = "0.02,0.2,2"          # step sizes of gd at the start; they fall to a tenth
adam_lrs = "0.1"            # those of adam, times the standard deviation of the embedding
steps = 500                 # of descent
metric = "l1"               # l1 | l2 | cosine, summed over positions
last_n = 0                  # 0: the states of all positions are matched; n: only those of the last n
layers = "all"              # and after which blocks: all | each: one by one | 1,3 | norm: the final norm
windows = ""                # T, tokens a prompt: 16,64; empty: block_size
start = ""                  # text of the prompts, or FILE:path; empty: validation windows of the dataset
n_prompts = 4               # how many prompts
dataset = ""                # folder in data_dir; empty: what the run was trained on, "python" if fresh
data_dir = "data"           # where datasets are
seed = 1337                 # of the descent's start, and of the weights of fresh models
seeds = 1                   # so many, from seed on
batch_size = 64             # rows (prompts times step sizes) that descend together
show = 1                    # prompts whose recovered text is printed
resume = False              # keep the rows of out_dir/invert.json and compute what is missing
quick = False               # of fresh models: mixer and llama, one seed and init, into out_dir + "_quick"
device = "auto"             # auto | cpu | cuda | cuda:1 | mps
dtype = "float32"           # auto | float32 | bfloat16 | float16, of the matmuls in descent
# end of defaults

COLUMNS = ("model,trained,embedding_std,seed,method,lr,metric,matched,layer,T,"  # these ten tell rows apart
           "hamming_top1,hamming_top5,hamming_nearest,distance,shifted_distance,seconds").split(",")
FREE = ("out_dir compare models embd_stds inits methods layers windows seed seeds batch_size show resume "
        "device").split()  # settings that may change when rows are kept
TRAINING = ("--batch_size=32 --learning_rate=2e-3 --warmup_iters=100 --max_iters=0 --eval_iters=5 "
            "--log_interval=100 --sample_tokens=0").split()


def matched_positions(idx, last_n=0):
    """Mask (B, T) of the last last_n tokens of each prompt, of all for 0; pads (id -1) are never in it."""
    real = idx >= 0
    from_end = real.flip(1).cumsum(1).flip(1)  # 1 at the last token
    return real & (from_end <= (last_n or idx.size(1)))


def hidden_states(model, x, layer, cache=None):
    """Embeddings (B, T, C) -> hidden states after `layer` blocks, or, for "norm", after the final norm; a
    model without one is given one without weights."""
    h = model.run_blocks(x, None if layer == "norm" else layer, cache)
    if layer != "norm":
        return h
    return F.layer_norm(h, h.shape[-1:]) if isinstance(model.final_norm, nn.Identity) else model.final_norm(h)


def distances(a, b, mask, metric):
    """L1 norm, L2 norm or 1 - cosine between a and b (B, T, C), summed over mask (B, T), as (B,)."""
    if metric == "cosine":
        return ((1 - F.cosine_similarity(a, b, dim=-1)) * mask).sum(dim=1)
    return (torch.linalg.vector_norm(a - b, ord=int(metric[1]), dim=-1) * mask).sum(dim=1)


def random_start(n_prompts, T, C, seed):
    """N(0, 1), (n_prompts, T, C); each prompt has its own generator and depends on no other."""
    generators = [torch.Generator().manual_seed(10_000 * seed + i) for i in range(n_prompts)]
    return torch.stack([torch.randn(T, C, generator=generator) for generator in generators])


def descend(loss, x, size, steps, adam=False):
    """x (rows, T, C) after so many steps down loss(x) (rows,): x <- x - size * gradient, where size (rows,)
    falls linearly to a tenth, as in the paper; with `adam` the direction is Adam's (arXiv 1412.6980)."""
    mean = square = 0.0
    for step in range(steps):
        direction, = torch.autograd.grad(loss(x.requires_grad_()).sum(), x)
        if adam:
            mean, square = 0.9 * mean + 0.1 * direction, 0.999 * square + 0.001 * direction ** 2
            root = (square / (1 - 0.999 ** (step + 1))).sqrt()
            direction = mean / (1 - 0.9 ** (step + 1)) / (root + 1e-12)
        x = x.detach() - (1 - 0.9 * step / max(steps - 1, 1)) * size[:, None, None] * direction
    return x


def invert(model, idx, start, method="gd", lrs=(0.02,), steps=500, metric="l1", layer=None, last_n=0,
           batch_size=64):
    """Inputs whose hidden states come near those of the tokens, (n_lr, B, T, C).

    idx (B, T): ids, -1 for pads. start (B, T, C): N(0, 1); "adam" takes it and the learning rates times the
    embedding's standard deviation, "gd", the paper's, as they are. Each prompt at each learning rate is a row
    of the batch with a loss of its own: its gradient, its steps and its end are those that it has alone.
    """
    B, scale = idx.size(0), model.wte.weight.std().item() if method == "adam" else 1.0
    mask, sizes, inputs = matched_positions(idx, last_n), scale * torch.tensor(lrs, device=idx.device), []
    with torch.no_grad():
        target = hidden_states(model, model.embed(idx.clamp(min=0)), layer)               # (B, T, C)
    for rows in torch.arange(len(lrs) * B, device=idx.device).split(batch_size):
        b = rows % B
        def loss(x, b=b):
            return distances(hidden_states(model, x, layer), target[b], mask[b], metric)
        inputs.append(descend(loss, scale * start[b], sizes[rows // B], steps, method == "adam"))
    return torch.cat(inputs).view(len(lrs), *start.shape)


def decode(x, wte, pinv):
    """x (T, C) -> tokens: the likeliest by pseudo-inverse, as in the paper, (T, 5), and that of the nearest
    embedding, (T, 1). wte (V, C), pinv (C, V)."""
    return (x @ pinv).topk(min(5, len(wte))).indices, torch.cdist(x, wte).argmin(dim=1, keepdim=True)


def hamming(found, idx, counted):
    """Share of counted positions (B, T) whose token in idx is not among the n found (B, T, n), as (B,)."""
    missed = (found != idx[..., None]).all(dim=-1)
    return (missed & counted).sum(dim=1) / counted.sum(dim=1)


def recover_exactly(model, ids, layer=None, tolerance=1e-4, batch_size=256, steps=20):
    """Tokens ids (T,) from all their hidden states (the idea of arXiv 2510.15511): the tokens found, and how
    many candidates were tried for each. For causal models.

    The state at t depends on tokens 0 .. t only: when those before t are known, of V candidates the right one
    gives it exactly. A short descent on the embedding at t says where to look: candidates are tried in
    batches, the nearest first, until one fits within the tolerance (times the state's norm).
    """
    wte, cache, found, tried = model.wte.weight.detach(), Cache(model.config.block_size), [], []
    with torch.no_grad():
        target = hidden_states(model, model.embed(ids[None]), layer)[0]                   # (T, C)
    for h in target:
        def errors(x, h=h):
            """Embeddings (n, 1, C) of a next token -> relative distance of its hidden state, (n,)"""
            branch = Cache(cache.length + 1)
            branch.length = cache.length
            branch.rows = {key: rows[..., :branch.block_size, :].repeat_interleave(len(x), dim=0)
                           for key, rows in cache.rows.items()}
            return (hidden_states(model, x, layer, branch)[:, 0] - h).norm(dim=1) / h.norm()

        # from some token, not from 0, where the norms make every derivative huge
        guess = descend(errors, wte[:1, None], 0.4 * wte.std()[None], steps, adam=True)[0]     # (1, C)
        best_error, count = math.inf, 0
        with torch.no_grad():
            for candidates in torch.cdist(guess, wte)[0].argsort().split(batch_size):
                error, rank = errors(wte[candidates, None]).min(dim=0)
                if error < best_error:
                    best, best_error = candidates[rank], error
                if error <= tolerance:
                    count += rank.item() + 1
                    break
                count += len(candidates)
            hidden_states(model, wte[best][None, None], layer, cache)  # joins the known tokens
        found.append(best.item())
        tried.append(count)
    return found, tried


def split(key, text, kind=str, choices=None):
    """The value "a, b" of a setting as [kind("a"), kind("b")]."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    for item in items:
        if choices and item not in choices:
            fail(f"{key}: {item!r} is out of range; possible: {', '.join(choices)}")
    with suppress(ValueError):
        return [kind(item) for item in items]
    fail(f"{key} takes numbers separated by commas, not {text!r}")


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
    best of its step sizes. Without matplotlib it does nothing and says so."""
    try:
        import matplotlib
    except ImportError:
        return print(f"no {path}: it needs matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for ax, x, other in zip(axes, ("layer", "T"), ("T", "layer")):
        curves = {}  # {label: {x: {lr: [Hamming of each seed]}}}
        for row in rows:
            same = [r[other] for r in rows if r["model"] == row["model"] and r["layer"] != "norm"]
            if row["layer"] != "norm" and row[other] == max(same):
                label = "{model} (trained: {trained}, std {embedding_std}) {method} {matched}".format(**row)
                points = curves.setdefault(label, {}).setdefault(row[x], {})
                points.setdefault(row["lr"], []).append(row["hamming_top1"])
        for label, points in curves.items():
            best = [min(map(fmean, points[at].values())) for at in sorted(points)]
            ax.plot(sorted(points), best, "o--" if ") adam" in label else "o-", ms=3, label=label)
        ticks = sorted({at for points in curves.values() for at in points})
        ax.set(xlabel=x, ylabel="Hamming top 1: share not recovered", ylim=(-0.03, 1.03), xticks=ticks)
        ax.grid(alpha=0.3)
    axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(path) as f:
        fig.savefig(f, format="png", dpi=120, bbox_inches="tight")
    plt.close(fig)


def train(path, model_config, **settings):
    """Have train.py make the checkpoint `path`, or go on with it; nothing, if it is finished."""
    used = load_checkpoint(path)["state"]["seconds"] if os.path.exists(path) else -1
    if used < settings["max_seconds"]:
        settings |= dict(out_dir=os.path.dirname(path), init_from="scratch" if used < 0 else "resume")
        settings |= {key: value for key, value in asdict(model_config).items() if key != "vocab_size"}
        arguments = [f"--{key}={value}" for key, value in settings.items()]
        if subprocess.run([sys.executable, os.path.join(here, "train.py"), *TRAINING, *arguments]).returncode:
            fail("train.py has failed, as it says above; the same command will go on from there", 1)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    config = configure(sys.argv[1:], __file__, os.path.join(here, "model.py"))
    if config["quick"]:
        config |= dict(models="mixer,llama", inits="auto", seeds=1, layers="all", train_seconds=60.0,
                       out_dir=config["out_dir"] + "_quick")
    globals().update(config)
    if min(steps, n_prompts, seeds, batch_size) < 1:
        fail("steps, n_prompts, seeds and batch_size must be 1 or more")
    given = [f.name for f in fields(ModelConfig) if f.name in config and config[f.name] != f.default]
    if given and not models or "model_type" in given:
        fail(f"{given[0]} is for fresh models, which are named by --models=mixer,llama")
    split("metric", metric, choices=("l1", "l2", "cosine"))
    sizes = {"gd": split("lrs", lrs, float), "adam": split("adam_lrs", adam_lrs, float), "exact": [""]}
    methods = split("methods", methods, choices=sizes)
    if start.startswith("FILE:"):
        try:
            with open(os.path.expanduser(start[5:]), encoding="utf-8") as f:
                start = f.read() or fail(f"no prompt: {start[5:]} is empty")
        except (OSError, UnicodeDecodeError) as e:
            fail(f"cannot read {start[5:]}: {e}")
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)

    # each model: the first columns of its rows, its config, dataset and checkpoint
    runs, all_seeds = [], range(seed, seed + seeds)
    if models:
        dataset = dataset or "python"
        meta = load_meta(os.path.join(data_dir, dataset))
        options = {f.name: config[f.name] for f in fields(ModelConfig) if f.name in config}
        for name, std, other, s in itertools.product(
                split("models", models), split("embd_stds", embd_stds, float) or [options["embd_std"]],
                split("inits", inits) or [options["init"]], all_seeds):
            options |= dict(model_type=name, embd_std=std, init=other, vocab_size=meta["vocab_size"])
            try:
                c, own_init = ModelConfig(**options), ModelConfig(model_type=name).init
            except ValueError as e:
                fail(e)
            run = dict(model=f"{name} init={c.init}", trained="no", embedding_std=c.embd_std, seed=s)
            runs.append((run, c, meta, dataset, None))
            if train_seconds and (s == seed or c.init == own_init):  # all would take twice as long
                path = os.path.join(out_dir, f"{name}_{c.init}_{c.embd_std:g}_{s}", "ckpt.pt")
                runs.append((run | dict(trained="yes"), c, meta, dataset, path))
    for run_dir in [] if models else split("compare", compare) or [out_dir]:
        path = os.path.join(run_dir, "ckpt.pt")
        state = load_checkpoint(path)
        c, data = ModelConfig(**state["model_config"]), dataset or state["config"]["dataset"]
        run = dict(model=os.path.normpath(run_dir), trained="yes", embedding_std=c.embd_std)
        runs += [(run | dict(seed=s), c, state["meta"], data, path) for s in all_seeds]

    # what to do with each: all is checked before anything takes time
    plan = []
    for run, c, meta, data, path in runs:
        tokenizer, data = build_tokenizer(meta), os.path.join(data_dir, data)
        ids = tokenizer.encode_ordinary(start) if start else load_tokens(data, "val", meta)
        longest = min(c.block_size, len(ids) if start else len(ids) - 1)
        Ts = split("windows", windows, int) or [longest]
        T = max(Ts)  # shorter windows see the beginning of the longest
        if min(Ts) < 1 or T > longest:
            fail(f"windows can have 1 to {longest} tokens, by block_size and the text; got {windows or 0}")
        starts = range(0, len(ids), T) if start else validation_windows(len(ids), T, n_prompts)
        pieces = [torch.tensor([*map(int, ids[i:i + T])]) for i in starts[:n_prompts]]
        prompts = nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=-1)   # (B, T)
        depths = {str(n): [n] for n in range(1, c.n_layer + 1)}
        depths |= {"all": [c.n_layer], "each": [*range(1, c.n_layer + 1)], "norm": ["norm"]}
        depths = [depth for item in split("layers", layers, choices=depths) for depth in depths[item]]
        if "exact" in methods and (last_n or not c.causal):
            fail("exact needs a causal model, and the states of all positions: --last_n=0")
        plan += [(run, c, path, tokenizer, prompts, *task) for task in itertools.product(methods, depths, Ts)]

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
                train(path, c, dataset=dataset, data_dir=data_dir, device=device, seed=run["seed"],
                      max_seconds=train_seconds)
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

"""
Look into trained models: which tokens they read, where in the window they predict well, and what they look up.

    python look.py --out_dir=out/mixer_tiny
    python look.py --out_dir=out/hybrid_tiny --prompt="for i in range(10):"
    python look.py --compare=out/mixer_tiny,out/llama_tiny --out_dir=out/both    # several runs in one figure

mixing.png, in the folder of each run, shows the matrices that mix tokens: the masked W of a mixer, which is the same
for every text, and the weights of each attention head for one prompt. positions.png shows the validation loss at each
position in the window. recall.png shows the loss on recallable and on other tokens: a token is recallable if the same
pair of the token before it and itself stood earlier in the window (Zoology, arXiv 2312.04927). A run that has kept
checkpoints (train.py --keep_every=100) is shown over its training. positions.csv and recall.csv have the numbers.
"""
import math
import os
import re
from glob import escape, glob

from configurator import run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import torch

from invert import find_runs
from lib.data import document_starts, load_meta, load_tokens, text_sums, validation_windows
from lib.device import setup
from lib.objectives import loss_by_position, recallable, token_losses
from lib.plots import describe, plot_mixing, plot_positions, plot_recall
from lib.runs import load_model, make_folder, used_settings, write_rows
from lib.sources import read_prompt
from model import Attention
from train import get_batch

# defaults: change them by --key=value
out_dir = "out/mixer_tiny"  # folder of the run, and of the figures
compare: list[str] = []     # folders of several runs, instead of the one in out_dir; "out/tiny/*" is many
prompt = ""                 # text whose attention is shown, or FILE:path; empty: the start of the validation text
n_windows = 1024            # [1, inf) validation windows that are measured: the same ones for every run of a dataset
batch_size = 32             # [1, inf) windows that are computed together
data_dir = "data"           # folder of the datasets
device = "auto"             # auto, cpu, cuda, cuda:1 or mps
fast = True                 # faster equivalents of four functions of model.py (lib/fast.py)
# end of defaults

RECALL = "name iter tokens recallable recall_loss other_loss recall_accuracy".split()  # columns of recall.csv
POSITIONS = "name position loss".split()                                               # and of positions.csv
MAX_ROWS = 8  # matrices per layer that are drawn


# ------------------------------------------------------------------------------------------------------------
# the matrices that mix tokens


def start_of_text(data, end_of_text):
    """The first document of the tokens `data`, a list of ids; if it has more than 40 tokens, its first 24."""
    ids = data[:40].tolist()
    return ids[:max(1, ids.index(end_of_text))] if end_of_text in ids else ids[:24]


def token_names(tokenizer, ids):
    """A short text for each token id, in which spaces, line ends and other control characters can be seen."""
    texts = [tokenizer.decode_single_token_bytes(token).decode(errors="replace") for token in ids]
    names = [repr(text)[1:-1].replace(" ", "\N{MIDDLE DOT}") for text in texts]
    return [name if len(name) <= 10 else f"{name[:9]}\N{HORIZONTAL ELLIPSIS}" for name in names]


def matrix_names(block):
    """The names of the matrices that LanguageModel.mixing has for a Block, in their order: "attention head 1", "W"."""
    kinds = []
    for module in block.modules():
        if isinstance(module, Attention):
            kinds += ["attention head"] * module.n_head
        elif hasattr(module, "mixing"):
            kinds += ["W"] * getattr(module, "kernel_size", 1)
    names = []
    for i, kind in enumerate(kinds):
        number = kinds[:i + 1].count(kind)
        names.append(f"{kind} {number}" if kinds.count(kind) > 1 else kind)
    return names


def mixing_rows(model, ids, tokens):
    """Rows for plot_mixing: (name, its matrix in each layer (n_layer, T, T), names of its T tokens or None).

    A head is shown for the prompt `ids`, whose tokens have the names `tokens`; W for a whole window, since it is the
    same for every text. What the mask hides is nan.
    """
    device, T = model.wte.weight.device, model.config.block_size
    for_prompt = model.mixing(torch.tensor([ids], device=device))
    for_window = model.mixing(torch.zeros(1, T, dtype=torch.long, device=device))
    rows = []
    for i, name in enumerate(matrix_names(model.blocks[0])):
        is_head = name.startswith("attention")
        layers = for_prompt if is_head else for_window
        matrices = torch.stack([layer[i] for layer in layers]).float().cpu()              # (n_layer, T, T)
        future = torch.ones_like(matrices, dtype=torch.bool).triu(1)
        rows.append((name, matrices.masked_fill(future, math.nan), tokens if is_head else None))
    return rows


def draw_mixing(model, tokenizer, ids, run):
    """Draw mixing.png in the folder `run`, or print why there is none: a module of your own may have no matrix."""
    names, path = matrix_names(model.blocks[0]), os.path.join(run, "mixing.png")
    if not names:
        print(f"no {path}: no module of this model has the method mixing(x)")
        return
    if len(names) > MAX_ROWS:
        print(f"{path} shows the first {MAX_ROWS} of {len(names)} matrices per layer")
    rows = mixing_rows(model, ids, token_names(tokenizer, ids))[:MAX_ROWS]
    plot_mixing(rows, path, f"{describe(run)[0]}: which tokens does each layer read, and with what weight?")


# ------------------------------------------------------------------------------------------------------------
# the loss on each token


def checkpoint_paths(run):
    """The checkpoints that train.py has kept in the folder `run`, in the order of training, and the last one."""
    kept = glob(os.path.join(escape(run), "iter_*.pt"))
    kept.sort(key=lambda path: int(re.findall(r"\d+", path)[-1]))
    return [*kept, os.path.join(run, "ckpt.pt")]


def load_validation(path, checkpoint, args):
    """The validation tokens of a checkpoint's dataset. Raises ValueError for a model that these do not measure."""
    used = used_settings(checkpoint)
    folder = os.path.join(args.data_dir, used["dataset"])
    if used["objective"] != "causal":
        raise ValueError(f"{path} was trained with objective={used['objective']}: look.py is for models that predict "
                         "the next token")
    meta = load_meta(folder)
    if text_sums(meta) != text_sums(checkpoint["meta"]):
        raise ValueError(f"{folder} has changed since {path} was trained: its validation text may be known to the "
                         "model, which you can train anew")
    return load_tokens(folder, "val", meta)


@torch.no_grad()
def measure(model, data, n_windows, batch_size, end_of_text=None):
    """Measure each target of the validation windows: four tensors (windows, T).

    They are its loss in nats, whether it is the likeliest token, whether it is recallable, and the target itself,
    which is -1 where nothing counts. With the id end_of_text, a window has one document from its beginning.
    """
    T, device = model.config.block_size, model.wte.weight.device
    starts = validation_windows(len(data), T, n_windows, document_starts(data, end_of_text)).tolist()
    batches = []
    for i in range(0, len(starts), batch_size):
        idx, targets = get_batch(data, starts[i:i + batch_size], T, device, end_of_text)  # (B, T) each
        losses, right = token_losses(model, idx, targets)
        batches.append([losses.cpu(), right.cpu(), recallable(idx, targets).cpu(), targets.cpu()])
    return [torch.cat(parts) for parts in zip(*batches)]


def mean_or_none(values):
    """The mean of a tensor, or None if it is empty."""
    return values.float().mean().item() if len(values) else None


def split_by_recall(losses, right, recalled, targets):
    """The last four columns of recall.csv from what `measure` returns; None where there is no such token."""
    counted = targets >= 0
    return {"recallable": mean_or_none(recalled[counted]), "recall_loss": mean_or_none(losses[recalled]),
            "other_loss": mean_or_none(losses[counted & ~recalled]), "recall_accuracy": mean_or_none(right[recalled])}


def position_rows(name, losses, targets):
    """The rows of positions.csv: the loss at each position, from 1, that has a target."""
    means = loss_by_position(losses, targets).tolist()                                    # T of them
    return [dict(name=name, position=t, loss=loss) for t, loss in enumerate(means, 1) if not math.isnan(loss)]


def main(args):
    """Look at all runs; returns the rows of recall.csv and of positions.csv."""
    text = read_prompt(args.prompt)
    device, _ = setup(args.device, "float32", args.fast)
    recall, positions = [], []
    print(*RECALL, sep="  ")
    for run in find_runs(args.compare or [args.out_dir]):
        if run.endswith(".pt"):
            raise ValueError(f"{run} is a checkpoint: name the folder of its run, which is shown over its training")
        rows = {}
        for path in checkpoint_paths(run):
            model, tokenizer, checkpoint = load_model(path, device)
            state, end_of_text = checkpoint["state"], checkpoint["meta"]["eot_id"]
            data = load_validation(path, checkpoint, args)
            if state["iter"] in rows:
                continue  # the last checkpoint has been kept, too
            is_packed = used_settings(checkpoint)["windows"] == "packed"
            losses, right, recalled, targets = measure(model, data, args.n_windows, args.batch_size,
                                                       None if is_packed else end_of_text)
            row = dict(name=run, iter=state["iter"], tokens=state["tokens"])
            row |= split_by_recall(losses, right, recalled, targets)
            rows[state["iter"]] = row
            print(*(f"{value:.4f}" if isinstance(value, float) else value for value in row.values()), sep="  ")
        recall += rows.values()
        positions += position_rows(run, losses, targets)  # the loop has left those of the last checkpoint
        ids = tokenizer.encode_ordinary(text) if text else start_of_text(data, end_of_text)
        draw_mixing(model, tokenizer, ids[:model.config.block_size], run)
    make_folder(args.out_dir)
    write_rows(os.path.join(args.out_dir, "recall.csv"), RECALL, recall)
    write_rows(os.path.join(args.out_dir, "positions.csv"), POSITIONS, positions)
    plot_recall(recall, os.path.join(args.out_dir, "recall.png"))
    plot_positions(positions, os.path.join(args.out_dir, "positions.png"))
    return recall, positions


if __name__ == "__main__":
    run_script(main, "look.py")

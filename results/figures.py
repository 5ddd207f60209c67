"""
Draw the figures of the README and of results/ again, from the CSVs in this folder: python results/figures.py
"""
import csv
import math
import os
import re
import sys
from functools import partial
from statistics import fmean

import torch
from matplotlib.ticker import PercentFormatter

os.chdir(os.path.dirname(os.path.abspath(__file__)))  # all paths below are relative to this folder
sys.path.insert(0, os.path.dirname(os.getcwd()))

from lib import plots  # noqa: E402
from model import LanguageModel, MaskedConv, ModelConfig  # noqa: E402
from results.power_law import best_widths  # noqa: E402


def number(text):
    """The number in a cell of a CSV, or the text if it is none."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def read(name):
    """The rows of a CSV of this folder as dicts; lines that start with # are comments."""
    with open(name, encoding="utf-8", newline="") as f:
        rows = csv.DictReader(line for line in f if not line.startswith("#"))
        return [{key: number(value) for key, value in row.items()} for row in rows]


def draw_matrix(ax, matrix, words, title):
    """Draw a lower-triangular matrix (T, T) as a table of numbers; what the mask hides is hatched."""
    T = len(matrix)
    darkest = 2 * matrix.abs().max().item()  # twice the largest number, so that black type stays readable
    ax.imshow(matrix, cmap="PuOr", vmin=-darkest, vmax=darkest)
    for t in range(T):
        for s in range(T):
            text = f"{matrix[t, s]:.2f}" if s <= t else "0"
            ax.text(s, t, text, ha="center", va="center", fontsize=18, color="black" if s <= t else "grey")
        ax.fill_between([t + 0.5, T - 0.5], t - 0.5, t + 0.5, facecolor="white", hatch="///",
                        edgecolor="lightgrey", linewidth=0)
    ax.set_xticks(range(T), words, fontsize=16)
    ax.set_yticks(range(T), words, fontsize=16)
    ax.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
    ax.set_title(title, fontsize=18, pad=14)


def draw_idea(axes):
    """Draw an illustration, no result: a mixer's matrix and an attention map, both of untrained weights."""
    torch.manual_seed(3)
    words, T, C = ["the", "cat", "sat", "down"], 4, 16
    model = LanguageModel(ModelConfig(model_type="mixer", block_size=T, n_layer=1, n_embd=C, vocab_size=T))
    conv, = [module for module in model.modules() if isinstance(module, MaskedConv)]
    W = conv.weight.detach().reshape(T, T).tril()                                         # (T, T)
    x = model.wte.weight.detach()                                                         # (T, C), T words
    q = x @ torch.randn(C, C) / math.sqrt(C)                                              # (T, C)
    k = x @ torch.randn(C, C) / math.sqrt(C)                                              # (T, C)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = (q @ k.T / math.sqrt(C)).masked_fill(future, -math.inf)                      # (T, T)
    draw_matrix(axes[0], W, [1, 2, 3, 4], "Mixer: one matrix per layer,\nlearned, the same for every text")
    draw_matrix(axes[1], scores.softmax(dim=-1), words, "Attention: computed anew\nfrom each text")
    axes[0].figure.supxlabel("Hatched: masked, so that no word sees the words after it", fontsize=16)


def draw_recall(ax, rows, names, title, guess=None, ylabel="values looked up"):
    """Draw the share of recallable tokens that are right over training, a line per seed, and that of a guess.

    rows: those of a curves.csv. names: {name of a variant there: the name whose look and label it gets}.
    """
    looks = plots.styles(names.values())
    for variant, name in names.items():
        seeds = {}
        for row in rows:
            if row["name"] == variant:
                seeds.setdefault(row["seed"], []).append(row)
        for points in seeds.values():
            tokens = [row["tokens"] for row in points]
            ax.plot(tokens, [row["recall_accuracy"] for row in points], **looks[name] | {"markersize": 4})
            looks[name]["label"] = "_"  # no second entry in the legend
    if guess:
        ax.axhline(guess, color="grey", linestyle=":", label="a guess among the values left")
    ax.set(xlabel=plots.AXES["tokens"], ylabel=ylabel)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    plots.finish(ax, title)


def draw_shares(ax, lines, guess, xlabel, title):
    """Draw the share of values looked up over numbers such as pairs or channels, mean and range of seeds.

    lines: {name of a model: {number: [shares]}}. guess: {number: share} without any look-up, or {}.
    """
    looks = plots.styles(lines)
    for name, shares in lines.items():
        plots.draw_line(ax, *zip(*sorted(shares.items())), looks[name])
    if guess:
        ax.plot(list(guess), list(guess.values()), color="grey", linestyle=":", label="a guess among the values left")
    numbers = sorted({number for shares in lines.values() for number in shares})
    ax.set(xscale="log", xlabel=xlabel, ylabel="values looked up")
    ax.minorticks_off()
    ax.set_xticks(numbers, numbers)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    plots.finish(ax, title)


def shares_of(rows):
    """{name: {number: [recall_accuracy]}} of rows with names such as mixer_16: the name and, behind it, the number."""
    lines = {}
    for row in rows:
        name, number = row["name"].rsplit("_", 1)
        lines.setdefault(name, {}).setdefault(int(number), []).append(row["recall_accuracy"])
    return lines


plots.save_figure("idea.png", draw_idea, figsize=(11, 5.8), ncols=2)

guesses = {(row["pairs"], row["keys"]): row["by_count"] for row in read("recall/guesses.csv")}
recall_rows = read("recall/seeds_curves.csv") + read("recall/order_curves.csv")
for file, title, names in [
    ("architectures", "Mixers hardly look values up; attention behind a convolution does",
     {"llama_short": "llama_short", "hybrid_002": "hybrid", "toeplitz_008": "toeplitz", "mixer": "mixer",
      "gpt_002": "gpt", "llama_002": "llama"}),
    ("order", "A convolution before attention makes the look-up sure",
     {"llama_short": "llama_short", "mixer_first": "mixer_first", "hybrid": "hybrid", "mixer": "mixer",
      "llama_torch_1": "llama_PyTorch's init_std_1"}),
]:
    draw = partial(draw_recall, rows=recall_rows, names=names, title=title, guess=guesses[8, 26])
    plots.save_figure(f"recall/{file}.png", draw)
names = {f"{name}_64": name for name in ("mixer", "toeplitz", "llama", "hybrid", "llama_std_1", "gpt")}
title = "Mixers, Llama and hybrid copy 64 letters at once; a GPT has not begun"
plots.save_figure("recall/copy.png", partial(draw_recall, rows=read("recall/copy_curves.csv"), names=names, title=title,
                                             ylabel="repeated letters that are right"))

guess = {pairs: share for (pairs, n_keys), share in guesses.items() if n_keys == 36}
title = "Attention behind a convolution looks up 8 values, but not 16 within 3 M tokens"
plots.save_figure("recall/pairs.png", partial(draw_shares, lines=shares_of(read("recall/pairs.csv")), guess=guess,
                                              xlabel="pairs in a document", title=title))
lines = {}
for name, shares in shares_of(read("recall/width.csv")).items():  # 8_pairs_64: the mixer with 8 pairs and 64 channels
    lines[f"mixer_{name}"] = shares
title = "Wider mixers look up more of 4 values, and hardly more of 8 or 16"
plots.save_figure("recall/width.png", partial(draw_shares, lines=lines, guess={}, xlabel=plots.AXES["n_embd"],
                                              title=title))

names = {("mixer_std_tenth", 1337): "mixer_std_tenth", ("hybrid", 1337): "hybrid",
         ("toeplitz_std_tenth_slow", 1337): "toeplitz_std_tenth",  # the lower of two learning rates is called slow
         ("llama_std_1_slow", 1337): "llama_std_1", ("llama_std_1_slow", 1338): "llama_another seed_std_1"}
rows = [row | {"name": names.get((row["name"], row["seed"]))} for row in read("recall/text_long.csv")]
title = "Python source: after 3 M tokens, one Llama of two predicts recallable tokens better"
plots.plot_recall([row for row in rows if row["name"]], "recall/text_long.png", title)
plots.plot_positions(read("recall/text_positions.csv"), "recall/text_positions.png",
                     "TinyStories, T 512: a full matrix hardly gains by reading on")

for name, title in {
    "context": "TinyStories, AdamW: full matrices fall behind, Toeplitz ones do not",
    "context_python": "Python source, AdamW: Toeplitz mixers keep up in every window",
    "context_seconds": "TinyStories, equal time: Toeplitz mixers are ahead in every window",
}.items():
    runs = {}  # {(name, T): {learning rate: rows}}
    for row in read(f"compare/{name}.csv"):
        line = re.sub("_(fast|slow|slower)_", "_", row["name"])  # other learning rates of the same model
        if line.startswith(("mixer_std", "toeplitz_std", "llama_std")):  # the others ran at few window lengths
            rates = runs.setdefault((line, row["block_size"]), {})
            rates.setdefault(row["learning_rate"], []).append(row | {"name": line})
    rows = []
    for rates in runs.values():
        rows += min(rates.values(), key=lambda seeds: fmean(row["val_loss"] for row in seeds))
    plots.plot_over(rows, "block_size", f"compare/{name}_over.png", title)

title = "After equal time, a mixer with embedding std 0.1 has learned most"
plots.plot_curves(read("compare/tiny_curves.csv"), "compare/tiny_seeds.png", title)

rows = read("compare/heads.csv")
for row in rows:  # all are Llamas, named by their number of attention heads: heads_4, std_1_heads_4
    row["name"] = "llama_" + row["name"].replace("heads_", "")
title = "A Llama gains more by its embedding than by its number of heads"
plots.plot_over(rows, "n_head", "compare/heads_over.png", title)

rows, stds = [], {"mixer": "mixer_std_tenth", "toeplitz": "toeplitz_std_tenth", "llama": "llama_std_1"}
for (model, _), budgets in best_widths(read("compare/scaling.csv")).items():
    rows += [row | {"name": f"{stds[model]}_{row['n_embd']}", "train_flops": flops} for flops, row in budgets.items()]
title = "At the best width of each budget, mixer and Llama are level"
plots.plot_over(rows, "train_flops", "compare/scaling_over.png", title)

title = "One seed, the paper's decoder: with std 0.02, a Llama loses far more than a mixer"
plots.plot_inversion(read("inversion/curves.csv"), "inversion/curves.png", title)

rows, losses = read("inversion/efficiency.csv"), {}
for folder in "compare_hybrids_flops", "compare_variants_flops":
    for row in read(f"compare/{folder.removeprefix('compare_')}.csv"):
        losses[f"out/{folder}/{row['name']}_{row['seed']}"] = row["val_loss"]
for row in rows:
    if "variants" in row["model"]:  # they share one name, or the legend would have twelve
        run = row["model"]
        row["model"] = f"{run}/mixer_variants"
        losses[row["model"]] = losses[run]
title = "The Llama that learns least is the only model that loses much of its input"
plots.plot_efficiency(rows, losses, "inversion/efficiency.png", title)

names = {"bm25": "bm25", "retrieve_tiny": "mixer_tiny", "retrieve_finish": "mixer_long, then finish"}
rows, sizes = [row for row in read("retrieval/held_out.csv") if row["model"] in names], [32, 64, 128, 256, 512, 1024]
for row in rows:
    row["model"], row["interval"] = names[row["model"]], {}
    for n in sizes:
        p = row[f"top1_{n}"]
        row["interval"][f"top1_{n}"] = 1.96 * math.sqrt(p * (1 - p) / 2000)  # there were 2,000 queries
title = "A mixer without an MLP finds code by its docstring"
plots.plot_accuracies(rows, sizes, "retrieval/accuracy.png", title)

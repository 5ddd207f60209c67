"""
Figures: every function that draws one, and the names and looks that it gives to runs and variants.

Each takes its data and the path of the PNG that it writes. Rows are dicts with one run or measurement each, their
numbers as int or float; losses are in nats per token. Colour and marker say the architecture. Dash and filling say
in what else a run differs, mostly the initial standard deviation ("std") of its token embedding.
"""
import csv
import math
import os
import re
from statistics import correlation, fmean

from lib.runs import replacing

# ------------------------------------------------------------------------------------------------------------
# names and looks

# Colours of Okabe and Ito (jfly.uni-koeln.de/color), which the colour-blind can tell apart. The last column
# is the embedding std that the paper gives to this architecture: a run with it gets a solid line.
ARCHITECTURES = {  # longer names first: hybrid_parallel before its beginning, hybrid
    "mixer_first": ("Mixer before attention", "#882255", "<", "1"),
    "llama_short": ("Llama with short convolution", "#E69F00", ">", "1"),
    "two_heads": ("Mixer of two heads", "#332288", "h", "1"),
    "toeplitz": ("Toeplitz mixer", "#44AA99", "X", "1"),
    "mixer": ("Mixer", "#004C8C", "o", "1"),  # a darker blue than theirs: it differs from Llama's in grey too
    "llama": ("Llama", "#D55E00", "s", "0.02"),
    "gpt": ("GPT", "#CC79A7", "^", "0.02"),
    "hybrid_parallel": ("Parallel hybrid", "#56B4E9", "v", "1"),
    "hybrid": ("Hybrid", "#009E73", "D", "1"),
    "bm25": ("BM25", "#999999", "X", ""),
    "minilm": ("MiniLM", "#000000", "P", ""),
}
OTHER_COLOURS = "#882255", "#44AA99", "#999933", "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE"
FILLINGS = {"-": "full", "--": "none", "-.": "left", ":": "bottom"}  # dash of the line: filling of its marker
METHODS = {"gd": "Gradient descent", "adam": "Adam", "exact": "Token by token"}
AXES = {"block_size": "window T (tokens)", "n_embd": "width C (channels)", "n_head": "attention heads",
        "seconds": "training time (seconds)", "tokens": "training tokens", "train_flops": "training FLOPs (1 T = 10¹²)"}
LOSS = "validation loss (nats per token)"


def describe(name):
    """Turn the name of a variant, or the folder of a run, into (label, colour, dash, marker).

    "mixer_std_tenth" becomes "Mixer, embedding std 0.1". The colour of an unknown architecture is None.
    """
    folder, rest = os.path.split(os.path.normpath(name))
    if folder:
        rest = re.sub(r"_\d{4,}(?=_|$)", "", rest)  # the folder of a run ends with its seed: mixer_1337
    rest = rest.replace("std_tenth", "std_0.1").replace("std_fiftieth", "std_0.02")
    # invert.py calls a fresh model "mixer init=torch".
    rest = rest.replace(" init=torch", "_PyTorch's init").replace(" init=normal", "_normal init")
    pattern = r"(?:^|_)(?:std|torch|normal)_(\d+\.?\d*)(?=_|$)"  # invert.py has mixer_torch_1
    stds = re.findall(pattern, rest)
    rest = re.sub(pattern, "", rest).replace("_untrained", ", untrained").replace("_", " ").strip()
    word, colour, marker, dash = "", None, "p", "-"
    for key, (label, its_colour, its_marker, usual_std) in ARCHITECTURES.items():
        if f"{rest} ".startswith(key.replace("_", " ") + " "):
            word, colour, marker, rest = label, its_colour, its_marker, rest[len(key) + 1:]
            if stds and stds[-1] != usual_std:
                dash = "--" if float(stds[-1]) >= 0.1 else "-."
            break
    parts = [word, rest, f"embedding std {stds[-1]}" if stds else ""]
    return ", ".join(part for part in parts if part) or name, colour, dash, marker


def styles(names):
    """{name: options of Axes.plot}, no two alike: lines of one colour differ in their dash."""
    looks = {}
    for name in names:
        label, colour, dash, marker = describe(name)
        choices = [(colour, d) for d in (dash, *FILLINGS) if colour]
        choices += [(other, d) for d in FILLINGS for other in OTHER_COLOURS]
        taken = {(look["color"], look["linestyle"]) for look in looks.values()}
        colour, dash = next((choice for choice in choices if choice not in taken), choices[-1])
        if label in [look["label"] for look in looks.values()]:
            label = name
        looks[name] = dict(label=label, color=colour, linestyle=dash, marker=marker, fillstyle=FILLINGS[dash])
    return looks


def kind_of(row):
    """What was done to find the input, for the title of a panel: "Adam"."""
    name = METHODS.get(row["method"], row["method"])
    return name if row["matched"] == "all" else f"{name}, {row['matched']}"


# ------------------------------------------------------------------------------------------------------------
# figures


def save_figure(path, draw, figsize=(7.5, 4.2), **options):
    """Draw with draw(axes) on the axes of Figure.subplots(**options), and save the figure as the PNG `path`.

    pyplot is not used, because it chooses a window system for the whole process. Where matplotlib is missing
    or does not start, one line says so: a long run must not fail for want of a picture.
    """
    try:
        from matplotlib.figure import Figure
    except (ImportError, ValueError) as e:  # ValueError: MPLBACKEND names a backend that does not exist
        print(f"no {path}: {e if isinstance(e, ValueError) else 'it needs matplotlib'}")
        return
    figure = Figure(figsize, layout="constrained")
    draw(figure.subplots(**options))
    with replacing(path) as f:
        figure.savefig(f, format="png", dpi=150)


def draw_line(ax, x, groups, look, **options):
    """Draw a line through the means of groups of values, one group per x, and their range as a band."""
    ax.plot(x, [fmean(group) for group in groups], **look, **options)
    ax.fill_between(x, [min(group) for group in groups], [max(group) for group in groups], alpha=0.2,
                    color=look["color"], linewidth=0)


def finish(ax, title="", legend="axes"):
    """Add grid, title, units, and beside the axes or the figure a legend in the order of the lines' ends."""
    from matplotlib.ticker import EngFormatter  # here, because a script that draws nothing need not load it
    if ax.get_xlim()[1] > 1e4:
        ax.xaxis.set_major_formatter(EngFormatter())  # "1 M" instead of "1e6"
    ax.grid(alpha=0.3)
    ax.set_title(title, loc="left")
    lines = [line for line in ax.lines if len(line.get_ydata()) and not line.get_label().startswith("_")]
    lines.sort(key=lambda line: line.get_ydata()[-1], reverse=True)
    if legend == "axes":
        ax.legend(handles=lines, loc="upper left", bbox_to_anchor=(1, 1), handlelength=3, frameon=False)
    elif legend == "figure":
        ax.figure.legend(handles=lines, loc="outside right center", handlelength=3, frameon=False)


def show_the_end(ax):
    """Start the y axis at the loss after a fifth of training, as what comes before hides the differences."""
    lines = [line.get_ydata() for line in ax.lines if len(line.get_ydata())]
    if lines:
        ax.set_ylim(min(map(min, lines)) - 0.1, max(losses[len(losses) // 5] for losses in lines) + 0.1)


def plot_log(log_path, image_path):
    """Draw the training and the validation loss of a log.csv over tokens."""
    with open(log_path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))

    def draw(ax):
        for key, look in {"train_loss": dict(label="training", color="grey", linewidth=0.8),
                          "val_loss": dict(label="validation", marker="o", markersize=4)}.items():
            points = [(float(row["tokens"]), float(row[key])) for row in rows if row[key]]
            ax.plot(*zip(*points), **look)
        show_the_end(ax)
        ax.set(xlabel=AXES["tokens"], ylabel="loss (nats per token)")
        finish(ax, "How fast does the loss fall?")
    save_figure(image_path, draw)


def plot_curves(rows, path, title="Which model learns most from equal tokens, time or FLOPs?"):
    """Draw the validation loss over tokens, seconds and FLOPs: mean and range of the seeds.

    rows: those of curves.csv, one per evaluation of a run; the first is before training and is left out.
    """
    def draw(axes):
        for ax, unit in zip(axes, ("tokens", "seconds", "train_flops")):
            for name, look in styles(runs).items():
                points = list(zip(*runs[name].values()))[1:]  # zip: runs of equal time differ by an evaluation
                x = [fmean(row[unit] for row in seeds) for seeds in points]
                losses = [[row["val_loss"] for row in seeds] for seeds in points]
                draw_line(ax, x, losses, look, markersize=4)
            ax.set_xlabel(AXES[unit])
            finish(ax, legend="figure" if unit == "train_flops" else "")
        show_the_end(axes[0])  # the three share their y axis
        axes[0].set_ylabel(LOSS)
        axes[0].figure.suptitle(title)
    runs = {}
    for row in rows:
        runs.setdefault(row["name"], {}).setdefault(row["seed"], []).append(row)
    save_figure(path, draw, (13, max(4.2, 0.25 * len(runs))), ncols=3, sharey=True)


def series(rows, over):
    """{line: {value of `over`: losses}}; names that differ in a last _NUMBER only are one line."""
    lines = {}
    for row in rows:
        points = lines.setdefault(re.sub(r"_\d+$", "", row["name"]), {})
        points.setdefault(row[over], []).append(row["val_loss"])
    return lines


def plot_over(rows, over, path, title=""):
    """Draw the final validation loss over the column `over`, both logarithmic: mean and range of seeds."""
    def draw(ax):
        from matplotlib.ticker import LogLocator, MaxNLocator
        for name, look in styles(lines).items():
            draw_line(ax, *zip(*sorted(lines[name].items())), look)
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel="final " + LOSS)
        ax.minorticks_off()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        if max(values) < 1e4:
            ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.yaxis.set(major_locator=MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]), major_formatter="{x:g}")
        finish(ax, title or f"How does the final loss depend on {label.split(' (')[0]}?")
    lines, values = series(rows, over), sorted({row[over] for row in rows})
    label = AXES.get(over, over.replace("_", " "))
    save_figure(path, draw)


def plot_accuracies(rows, sizes, path, title="How often does the right passage come first?"):
    """Draw the share of queries whose passage comes first among n candidates, with 95 % intervals.
    rows: those of retrieve.py, {"model": ..., "top1_32": ..., "interval": {"top1_32": half of it, ...}}."""
    def draw(ax):
        looks = styles(row["model"] for row in rows)
        for row in rows:
            drawn = {n: (row[f"top1_{n}"], row["interval"][f"top1_{n}"]) for n in sizes if f"top1_{n}" in row}
            ends = [(share - half, share + half) for share, half in drawn.values()]
            draw_line(ax, list(drawn), ends, looks[row["model"]])  # it draws the mean of both ends, the share
        ax.set(xscale="log", xlabel="candidate passages", ylabel="queries whose passage comes first")
        ax.minorticks_off()
        measured = [n for n in sizes if any(f"top1_{n}" in row for row in rows)]
        ax.set_xticks(measured, measured)
        ax.yaxis.set_major_formatter("{x:.0%}")
        finish(ax, title)
    save_figure(path, draw)


def grouped(rows, *keys):
    """Group the rows by the values of the keys, as texts: {(value, ...): [row, ...]}."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    return groups


def best_shares(rows, column):
    """{value of the column: share of tokens recovered at the best step size, mean over the seeds}."""
    missed = {}
    for row in rows:
        missed.setdefault(row[column], {}).setdefault(row["lr"], []).append(row["hamming_top1"])
    return {value: 1 - min(map(fmean, by_lr.values())) for value, by_lr in missed.items()}


def plot_inversion(rows, path, title="How much of the input can be recovered?"):
    """Draw the share of tokens recovered by layer (longest T) and by T (last layer), panels per method.
    rows: those of invert.py."""
    def draw(axes):
        for kind, panels in zip(kinds, axes):
            for ax, x, other in zip(panels, ("layer", "T"), ("T", "layer")):
                for i, (name, look) in enumerate(looks.items()):
                    kept = [row for row in runs[name] if kind_of(row) == kind]
                    last = max((row[other] for row in kept), default=0)
                    points = best_shares([row for row in kept if row[other] == last], x)
                    ax.plot(*zip(*sorted(points.items())), linewidth=max(1.5, 4 - i), **look)  # all are seen
                ax.set(xlabel="block" if x == "layer" else AXES["block_size"], ylim=(-0.04, 1.04),
                       xticks=sorted({row[x] for row in shown}))
                ax.yaxis.set_major_formatter("{x:.0%}")
                finish(ax, kind if x == "layer" else "", legend="figure" if ax is axes[0, 1] else "")
            panels[0].set_ylabel("tokens recovered")
        axes[0, 0].figure.suptitle(title)
    shown = [row for row in rows if row["layer"] != "norm"]
    kinds, runs = list(dict.fromkeys(map(kind_of, shown))), {}
    for row in shown:
        state = "" if row["trained"] == "yes" else "_untrained"
        runs.setdefault(f"{row['model']}_std_{row['embedding_std']:g}{state}", []).append(row)
    looks, n = styles(runs), max(1, len(kinds))
    size = 10, max(3 * n + 0.5, 0.25 * len(runs))
    save_figure(path, draw, size, nrows=n, ncols=2, sharey=True, squeeze=False)


def rank_correlation(xs, ys):
    """Spearman's rank correlation; equal values share their mean rank. None where one side is all equal."""
    if min(len(set(xs)), len(set(ys))) < 2:
        return None
    ranks = []
    for values in xs, ys:
        ranks.append([fmean(i for i, y in enumerate(sorted(values)) if y == value) for value in values])
    return correlation(*ranks)


def plot_efficiency(rows, losses, path, title="Do models that keep their input learn more?"):
    """Draw the validation loss over the share of tokens recovered, a panel per kind of inversion (paper,
    section 4). rows: those of invert.py; losses: {run: validation loss}."""
    def draw(axes):
        for ax, ((_, _, layer, T), runs) in zip(axes.flat, kinds.items()):
            shares = best_shares(runs, "model")
            examples = {describe(run)[0]: run for run in shares}  # seeds of a model have one label
            for look, label in zip(styles(examples.values()).values(), examples):
                points = [(share, losses[run]) for run, share in shares.items() if describe(run)[0] == label]
                ax.plot(*zip(*points), **(look | dict(linestyle="", label=label)))
            r = rank_correlation(list(shares.values()), [losses[run] for run in shares])
            ax.set(xlabel="tokens recovered", ylabel=LOSS)
            ax.xaxis.set_major_formatter("{x:.0%}")
            text = "" if r is None else f": rank correlation {round(r, 2) or 0:.2f}"  # not "-0.00"
            kind = f"{kind_of(runs[0])}, block {layer}, T {T}"
            finish(ax, kind + text, legend="figure" if ax is axes[0, 0] else "")
        for ax in axes.flat[len(kinds):]:
            ax.remove()
        axes[0, 0].figure.suptitle(title)
    kinds = grouped(rows, "method", "matched", "layer", "T")
    n_rows = math.ceil(len(kinds) / 2)
    save_figure(path, draw, (12, 4 * n_rows + 0.5), nrows=n_rows, ncols=min(2, len(kinds)), squeeze=False)


def plot_mixing(rows, path, title="Which tokens does each layer read, and with what weight?"):
    """Draw the matrices that mix tokens, a panel per matrix and layer, on one scale of colours.

    rows: [(name, matrices (n_layer, T, T), names of the T tokens or None)]; nan, which the mask hides, is grey.
    """
    def draw(axes):
        from matplotlib.colors import SymLogNorm
        norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)  # linear within a hundredth of the largest
        for r, row in enumerate(grid):
            for c, (heading, matrix, tokens) in enumerate(row):
                ax, size = axes[r, c], min(9, 55 * panel / len(matrix))  # size: that of the letters, in points
                image = ax.imshow(matrix.numpy(), cmap="PuOr", norm=norm)
                ax.set_facecolor("lightgrey")
                ax.set_title(heading)
                if tokens and size >= 5:
                    ax.set_xticks(range(len(tokens)), tokens, fontsize=size, rotation=90, parse_math=False)
                    ax.set_yticks(range(len(tokens)), tokens, fontsize=size, parse_math=False)
                what, has_same_left = "token" if tokens else "position", c > 0 and row[c - 1][2] == tokens
                has_same_below = r + 1 < len(grid) and grid[r + 1][c][2] == tokens
                ax.tick_params(length=2, labelleft=not has_same_left, labelbottom=not has_same_below)
                ax.set_xlabel("" if has_same_below else f"{what} that is read")
                ax.set_ylabel("" if has_same_left else f"{what} that reads")
        bar = axes[0, 0].figure.colorbar(image, ax=axes, label="weight (logarithmic on both sides of 0)", aspect=30,
                                         ticks=[-power, -power / 10, 0, power / 10, power])
        bar.ax.yaxis.set_major_formatter("{x:g}")
        axes[0, 0].figure.suptitle(title)
    grid = [[(f"layer {layer}: {name}", matrix, tokens) for layer, matrix in enumerate(matrices, 1)]
            for name, matrices, tokens in rows]
    if len(grid) > len(grid[0]):
        grid = list(zip(*grid))  # a screen is wide
    largest = max(float(matrices.nan_to_num().abs().max()) for _, matrices, _ in rows) or 1.0
    power = 10 ** math.floor(math.log10(largest))
    n_rows, n_columns = len(grid), len(grid[0])
    panel = 4.5 if n_columns < 4 else 3.5  # inches
    save_figure(path, draw, (panel * n_columns + 2, panel * n_rows + 1), nrows=n_rows, ncols=n_columns, squeeze=False)


def plot_positions(rows, path, title="Does a model predict better when it has read more of its window?"):
    """Draw the validation loss over the position in the window. rows: those of positions.csv of look.py.

    In a window of more than 40 tokens, a point is the mean of neighbours.
    """
    def draw(ax):
        for name, look in styles(runs).items():
            T, n = len(runs[name]), min(40, len(runs[name]))
            points = [runs[name][i * T // n:(i + 1) * T // n] for i in range(n)]
            x = [fmean(row["position"] for row in point) for point in points]
            ax.plot(x, [fmean(row["loss"] for row in point) for point in points], **look | {"marker": ""})
        ax.set(xlabel="position in the window (tokens read)", ylabel=LOSS)
        finish(ax, title)
    runs = {name: group for (name,), group in grouped(rows, "name").items()}
    save_figure(path, draw)


def plot_recall(rows, path, title="Does a model look up what stands in its window?"):
    """Draw the losses on recallable and on other tokens, and the share of recallable ones that are right.

    A run with several rows, one per checkpoint, makes it a figure over training; else each run is a point. rows: those
    of recall.csv of look.py, where None stands for no such token.
    """
    def draw(axes):
        from matplotlib.ticker import PercentFormatter
        for ax, (column, heading, label) in zip(axes, panels):
            for i, (name, look) in enumerate(styles(runs).items()):
                kept = [row for row in runs[name] if row[column] is not None and row["tokens"] >= first]
                x = [row["tokens"] if over_training else i for row in kept]
                ax.plot(x, [row[column] for row in kept], **look)
            ax.set_ylabel(label)
            if over_training:
                ax.set_xlabel(AXES["tokens"])
            else:
                ax.set_xticks([])
                ax.set_xlim(-1, len(runs))
            finish(ax, heading, legend="figure" if ax is axes[-1] else "")
        axes[2].yaxis.set_major_formatter(PercentFormatter(1))
        axes[0].figure.suptitle(title)
    panels = [("recall_loss", "Recallable tokens", LOSS), ("other_loss", "Other tokens", LOSS),
              ("recall_accuracy", "Recallable tokens: accuracy", "tokens that are right")]
    runs = {name: group for (name,), group in grouped(rows, "name").items()}
    over_training = len(rows) > len(runs)
    first = 1 if over_training else 0  # the loss before training would hide the differences
    save_figure(path, draw, (13, max(4.2, 0.25 * len(runs))), ncols=3)

"""
Figures: files made by matplotlib, which is imported only when one is drawn.
"""
import csv

from common import replacing


def save_figure(path, draw, **options):
    """Make the image `path` (PNG) of what draw(axes) draws on the axes of plt.subplots(**options). Without
    matplotlib it says so and does nothing: a run does not end with an error for want of a picture."""
    try:
        import matplotlib
    except ImportError:
        return print(f"no {path}: it needs matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(**options)
    draw(axes)
    with replacing(path) as f:
        fig.savefig(f, format="png", dpi=120, bbox_inches="tight")
    plt.close(fig)


def plot_logs(log_paths, image_path, x="tokens"):
    """Draw the validation loss of each log.csv over x, a column of it; of a single one the training loss too.
    log_paths: {label: path}."""
    def draw(ax):
        for label, path in log_paths.items():
            with open(path, encoding="utf-8", newline="") as f:
                rows = list(csv.DictReader(line for line in f if not line.startswith("#")))
            for column in ("val_loss", "train_loss")[:2 if len(log_paths) == 1 else 1]:
                points = [(float(row[x]), float(row[column])) for row in rows if row[column]]
                style = dict(marker="o", ms=3) if column == "val_loss" else dict(lw=0.8, alpha=0.6)
                ax.plot(*zip(*points), label=f"{label} {column.replace('_', ' ')}".strip(), **style)
        ax.set(xlabel=x, ylabel="loss, nats a token")
        ax.grid(alpha=0.3)
        ax.legend()
    save_figure(image_path, draw, figsize=(7, 4.5))


def plot_accuracies(rows, sizes, path):
    """Draw how often the right passage comes first, over the number of candidates, with 95 % intervals: rows
    of retrieve.py, {"model", "top1_32", ..., "interval"}."""
    def draw(ax):
        for row in rows:
            ns = [n for n in sizes if f"top1_{n}" in row]
            means, halves = zip(*((row[f"top1_{n}"], row["interval"][f"top1_{n}"]) for n in ns))
            ax.errorbar(ns, means, halves, marker="o", ms=3, label=row["model"])
        ax.set(xscale="log", xlabel="candidates", ylabel="queries whose passage comes first", ylim=(0, 1))
        ax.grid(alpha=0.3)
        ax.legend()
    save_figure(path, draw, figsize=(7, 4.5))

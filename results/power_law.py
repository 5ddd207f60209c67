"""
How does the loss fall with the FLOPs of training, if each budget goes to the width that makes the best of it?

    python results/power_law.py    # reads results/compare/scaling.csv, writes power_law.csv beside it

For each model and seed, the lowest loss at each budget is taken, and a straight line is fitted to its logarithm over
that of the FLOPs: loss = factor * FLOPs ** -exponent (Kaplan and others, arXiv 2001.08361). Three seeds give three
exponents; their range shows the noise of the seeds, not that of the widths and learning rates tried. How far the
losses lie from their lines shows whether they follow a power law at all: in the long run they cannot, as no loss falls
below the entropy of text.
"""
import csv
import math
import os
import sys
from statistics import fmean, linear_regression

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib.runs import replacing  # noqa: E402

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compare")


def fit_power_law(flops, losses):
    """(exponent, factor) of loss = factor * flops ** -exponent, by least squares of the logarithms."""
    slope, intercept = linear_regression([math.log(x) for x in flops], [math.log(y) for y in losses])
    return -slope, math.exp(intercept)


def best_widths(rows):
    """{(model, seed): {budget in FLOPs: the row with the lowest loss}} of rows with names such as mixer_32.

    A run stops after the step that passes its budget, so that budgets are rounded to two digits.
    """
    best = {}
    for row in rows:
        model, budget = row["name"].rsplit("_", 1)[0], float(f"{float(row['train_flops']):.1e}")
        runs = best.setdefault((model, int(row["seed"])), {})
        if budget not in runs or float(row["val_loss"]) < float(runs[budget]["val_loss"]):
            runs[budget] = row
    return best


def main():
    with open(os.path.join(FOLDER, "scaling.csv"), encoding="utf-8", newline="") as f:
        next(f)  # the command
        best = best_widths(csv.DictReader(f))
    budgets = sorted({budget for runs in best.values() for budget in runs})
    exponents = {}
    with replacing(os.path.join(FOLDER, "power_law.csv"), "w") as f:
        f.write("# python results/power_law.py; off: how far the loss at a budget lies above its line, in nats\n")
        rows = csv.writer(f, lineterminator="\n")
        names = [f"off_{flops:g}".replace("+", "") for flops in budgets]
        rows.writerow(["model", "seed", "exponent", "factor", *names])
        for (model, seed), runs in sorted(best.items()):
            losses = [float(runs[flops]["val_loss"]) for flops in budgets]
            exponent, factor = fit_power_law(budgets, losses)
            off = [loss - factor * flops ** -exponent for flops, loss in zip(budgets, losses)]
            rows.writerow([model, seed, f"{exponent:.4f}", f"{factor:.3f}", *(f"{x:.3f}" for x in off)])
            exponents.setdefault(model, []).append(exponent)
    for model, values in exponents.items():
        print(f"{model}: exponent {fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()

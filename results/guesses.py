"""
How many values of a `recall` document are right by a guess, without looking anything up?

    python results/guesses.py    # writes results/recall/guesses.csv, in seconds

After the bar of aQbXcZ|bXaQcZ a model may know which values stood before it and which of them have been used, and yet
match no key. Two guessers that see no key are worked out here, as means over 4,000 documents of lib/sources.py:
by_count takes a value that stood most often before the bar and is not used up; by_order also knows that no pair follows
its old neighbour, and takes the pair that most orders put next. The latter is worked out as if all values differed, so
that it knows which pairs are used.
"""
import csv
import os
import sys
from collections import Counter
from math import comb, factorial
from statistics import fmean

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib.runs import replacing  # noqa: E402
from lib.sources import recall_documents  # noqa: E402

N_DOCUMENTS = 4000
ALPHABETS = [(4, 26, 26), (8, 26, 26), (4, 36, 40), (8, 36, 40), (16, 36, 40), (32, 36, 40)]  # pairs, keys, values


def count_orders(last, rest):
    """In how many orders can the pairs `rest` follow `last`, if i + 1 never stands right behind i?

    By inclusion and exclusion: j of the k forbidden neighbours glued together leave (n - j)! orders.
    """
    k, n = sum(i + 1 in rest for i in rest | {last}), len(rest)
    return sum((-1) ** j * comb(k, j) * factorial(n - j) for j in range(k + 1))


def by_count(values, order):
    """The share of right guesses, by the values that are left, in a document with these values in this order."""
    left, shares = Counter(values), []
    for i in order:
        shares.append(max(left.values()) / left.total())
        left[values[i]] -= 1
    return fmean(shares)


def by_order(order):
    """The share of right guesses by the likeliest next pair, in a document with this order of its pairs."""
    rest, last, shares = set(order), -2, []  # nothing is forbidden behind -2
    for i in order:
        counts = [count_orders(r, rest - {r}) for r in rest if r != last + 1]
        shares.append(max(counts) / sum(counts))
        rest, last = rest - {i}, i
    return fmean(shares)


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recall", "guesses.csv")
    with replacing(path, "w") as f:
        f.write(f"# python results/guesses.py; means over {N_DOCUMENTS} documents\n")
        rows = csv.writer(f, lineterminator="\n")
        rows.writerow(["pairs", "keys", "values", "by_count", "by_order"])
        for n_pairs, n_keys, n_values in ALPHABETS:
            shares = []
            for document in recall_documents(N_DOCUMENTS, n_pairs, n_keys, n_values):
                before, behind = document.split("|")
                pairs = [before[i:i + 2] for i in range(0, len(before), 2)]
                order = [pairs.index(behind[i:i + 2]) for i in range(0, len(behind), 2)]  # keys differ
                shares.append((by_count([value for _, value in pairs], order), by_order(order)))
            means = [f"{fmean(column):.3f}" for column in zip(*shares)]
            rows.writerow([n_pairs, n_keys, n_values, *means])
            print(f"{n_pairs} pairs of {n_keys} keys and {n_values} values: {means[0]} by count, {means[1]} by order")


if __name__ == "__main__":
    main()

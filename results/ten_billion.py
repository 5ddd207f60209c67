"""
What do ten billion tokens cost before the first training step? For Linux.

    python results/ten_billion.py     # about ten minutes and 8 GB of disk; writes results/speed/ten_billion.csv

It measures the order of an epoch, the checksums of a token file (of zeros, which take no place on the disk), and
prepare.py over 2 GB of text, the Python source on this machine repeated, on one core and on two.
"""
import os
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from lib import data  # noqa: E402
from lib.sources import split_python  # noqa: E402

N_TOKENS, T, TEXT_MB = 10 ** 10, 512, 2000
rows = []


def record(what, value, unit):
    rows.append((what, f"{value:.4g}", unit))
    print(*rows[-1], sep=", ", flush=True)


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure_order():
    def peak_mb():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in KB
    before = peak_mb()
    seconds = [timed(data.training_windows, N_TOKENS, T, 1337, (epoch, 0), 32) for epoch in range(3)]
    record("order of an epoch, median of 3", median(seconds), "s")
    record("order of an epoch, most memory over 3 epochs", peak_mb() - before, "MB")


def measure_checksums(folder):
    path = os.path.join(folder, "train.bin")
    with open(path, "wb") as f:
        f.truncate(2 * N_TOKENS)
    whole, pieces = data.checksums(path)
    meta = {"crc32": {"train.bin": whole}, "pieces": {"train.bin": pieces}}
    for check in "sample", "all":
        record(f"checksums of 20 GB, {check}", timed(data.is_damaged, path, meta, check), "s")


def write_text(path):
    texts = [text.encode() + b"\n<|endoftext|>\n" for _, text in split_python(0.1)]
    with open(path, "wb") as f:
        while f.tell() < TEXT_MB * 1e6:
            f.writelines(texts)


def measure_prepare(folder, cores):
    text = os.path.join(folder, "text.txt")
    command = [sys.executable, os.path.join(ROOT, "prepare.py"), f"--input={text}", f"--data_dir={folder}/{cores}"]

    def prepare():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                       preexec_fn=lambda: os.sched_setaffinity(0, range(cores)))
    seconds = timed(prepare)
    record(f"prepare.py, {cores} cores", os.path.getsize(text) / 1e6 / seconds, "MB per s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    record(f"prepare.py, {cores} cores, most memory so far", peak, "MB")


def main():
    measure_order()
    with tempfile.TemporaryDirectory() as folder:
        measure_checksums(folder)
        write_text(os.path.join(folder, "text.txt"))
        for cores in 1, 2:
            measure_prepare(folder, cores)
    with open(os.path.join(ROOT, "results", "speed", "ten_billion.csv"), "w", encoding="utf-8") as f:
        f.write(f"# python results/ten_billion.py; 10 billion tokens, T {T}; text of {TEXT_MB} MB\nwhat,value,unit\n")
        f.writelines(f'"{what}",{value},{unit}\n' for what, value, unit in rows)


if __name__ == "__main__":
    main()

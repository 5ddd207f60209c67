"""
How fast is a training beside other programs, by the way in which its threads wait for one another?

    python results/busy.py default 2000 1000 500    # results/speed/busy.csv, in 25 minutes

A way to wait is a GOMP_SPINCOUNT, the default of GNU OpenMP, or OMP_WAIT_POLICY=passive. For each of them four equal
trainings of bench.py's kind are started and stopped at once; then groups of them go on in turn for some seconds each,
so that whatever else the machine does meets all ways alike. For Linux and macOS. Run it on an idle machine.
"""
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from statistics import median
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = {128: dict(B=16, n_embd=128, n_layer=4), 512: dict(B=4, n_embd=256, n_layer=8)}  # T: the rest of a size
GROUPS = {"alone": 1, "beside a busy loop": 1, "beside another training": 2, "beside three trainings": 4}
REPEATS = 5
SECONDS = {128: 3, 512: 8}  # T: of a spell; four trainings at T 512 take seconds for a step


def train_forever(T, path):
    """Train a mixer; the file at `path` counts its steps."""
    sys.path.insert(0, ROOT)
    import bench
    B, n_embd, n_layer = SIZES[T].values()
    device, dtype = bench.setup("cpu", "auto")
    run = SimpleNamespace(device=device, dtype=dtype, compile=True)
    config = bench.build_config(dict(model_type="mixer", block_size=T, n_embd=n_embd, n_layer=n_layer), 4096)
    step = bench.train(config, B, run)
    with open(path, "r+b") as f:
        count = mmap.mmap(f.fileno(), 8)
    while True:
        step.call()
        count[:] = (int.from_bytes(count, "big") + 1).to_bytes(8, "big")


def read_count(path):
    with open(path, "rb") as f:
        return int.from_bytes(f.read(8), "big")


def start_training(T, way, path):
    """A stopped training that has been compiled; returns its process."""
    with open(path, "wb") as f:
        f.write(bytes(8))
    env = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if way == "passive":
        env["OMP_WAIT_POLICY"] = way
    elif way != "default":
        env["GOMP_SPINCOUNT"] = way
    process = subprocess.Popen([sys.executable, __file__, "--worker", str(T), path], env=env)
    while read_count(path) < 3 and process.poll() is None:
        time.sleep(0.1)
    if process.poll() is not None:
        raise ChildProcessError(f"the training with {way} has failed")
    process.send_signal(signal.SIGSTOP)
    return process


def measure(trainings, others, tokens, spell):
    """Tokens per second of each of the trainings, pairs (process, path), while they and the others go on."""
    processes = [process for process, _ in trainings] + others
    for process in processes:
        process.send_signal(signal.SIGCONT)
    time.sleep(1)
    before, start = [read_count(path) for _, path in trainings], time.perf_counter()
    time.sleep(spell)  # in seconds
    after, seconds = [read_count(path) for _, path in trainings], time.perf_counter() - start
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    return tokens * (sum(after) - sum(before)) / seconds / len(trainings)


def measure_length(T, ways, folder):
    """Rows of the table for windows of T tokens."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    loop.send_signal(signal.SIGSTOP)
    trainings = {way: [] for way in ways}
    rates = {(way, group): [] for way in ways for group in GROUPS}
    try:
        for way in ways:
            for n in range(max(GROUPS.values())):
                path = os.path.join(folder, f"{way}_{n}")
                trainings[way].append((start_training(T, way, path), path))
        for _ in range(REPEATS):
            for way, group in rates:
                others, tokens = [loop] if "loop" in group else [], SIZES[T]["B"] * T
                rates[way, group].append(measure(trainings[way][:GROUPS[group]], others, tokens, SECONDS[T]))
            for processes in trainings.values():
                processes.append(processes.pop(0))  # another one is alone, as equal processes differ by a tenth
    finally:
        for process in [loop, *(process for pairs in trainings.values() for process, _ in pairs)]:
            process.kill()
    rows = []
    for (way, group), values in rates.items():
        share = median(values) / median(rates[way, "alone"])
        speeds = [f"{value:.0f}" for value in (median(values), min(values), max(values))]
        rows.append([T, way, group, *speeds, f"{share:.3f}"])
        print(*rows[-1], sep=", ", flush=True)
    return rows


def main(arguments):
    ways, path = arguments, os.path.join(ROOT, "results", "speed", "busy.csv")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for T in SIZES:
            rows += measure_length(T, ways, folder)
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"# python results/busy.py {' '.join(arguments)}; tokens per second of each training, medians of "
                f"{REPEATS}; {os.cpu_count()} cores\nT,waiting,group,tok_per_sec,lowest,highest,share_of_alone\n")
        f.writelines(",".join(map(str, row)) + "\n" for row in rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        train_forever(int(sys.argv[2]), sys.argv[3])
    main(sys.argv[1:] or ["default", "1000"])

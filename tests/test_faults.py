"""Faults: processes killed at any moment, disks that are full, long runs. Nothing that was saved is lost.

Scripts run in processes of their own, forked from a server that has imported torch already. The slow ones run
with `python -m pytest -m slow`.
"""
import contextlib
import csv
import ctypes
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from conftest import HERE, TINY
from lib.data import put_back

resource = pytest.importorskip("resource", reason="forks, signals and limits are not there on Windows")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "numpy", "tiktoken", "test_faults"])
SAVES = [*TINY, "--eval_interval=2", "--log_interval=2", "--max_iters=40", "--lr_decay_iters=40"]


def play(folder, script, arguments, limit, plain, out):
    """In a process of its own: the script, its output into a pipe; files may grow to `limit` bytes; a `plain`
    user may write only what its owner may, though it be root's."""
    os.chdir(folder)
    for stream in 1, 2:
        os.dup2(out.fileno(), stream)
    out.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # the one before takes its file for one with positions
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if plain and sys.platform == "linux":  # no capabilities; version 3 of the header, of this process
        ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    torch.set_num_threads(1)
    sys.path.insert(0, HERE)
    sys.argv = [script, *arguments]
    runpy.run_path(os.path.join(HERE, script), run_name="__main__")


@pytest.fixture
def start(tiny_data, tmp_path):
    """start("train.py", *arguments) -> a process at work in tmp_path, where the tiny data are."""
    (tmp_path / "data").symlink_to(tiny_data)

    def start(script, *arguments, limit=0, plain=False):
        said, out = multiprocessing.Pipe(duplex=False)
        process = SERVER.Process(target=play, args=(str(tmp_path), script, arguments, limit, plain, out))
        process.start()
        out.close()  # or what reads would wait for this process to end too
        process.said = said
        return process
    return start


@pytest.fixture
def finish(start):
    """finish("train.py", *arguments) -> (exit status, all that it said)."""
    def finish(*arguments, **limits):
        process = start(*arguments, **limits)
        with open(os.dup(process.said.fileno()), encoding="utf-8") as said:
            text = said.read()
        process.join()
        return process.exitcode, text
    return finish


def outcome(out_dir):
    """Weights, and the log without the columns of time."""
    weights = torch.load(out_dir / "ckpt.pt", weights_only=True)["model"]
    with open(out_dir / "log.csv", encoding="utf-8", newline="") as f:
        log = [{k: v for k, v in row.items() if k not in ("seconds", "tok_per_sec", "pairs_per_sec", "mfu")}
               for row in csv.DictReader(f)]
    return weights, log


def seconds_of(finish, *arguments):
    """How long a script takes when the server that forks it is up."""
    finish(arguments[0], "--help")
    clock = time.perf_counter()
    status, said = finish(*arguments)
    assert status == 0, said
    return time.perf_counter() - clock


def kill_during(process, lasts, rng):
    """SIGKILL at a random moment of what takes `lasts` seconds. Returns whether it was still at work."""
    time.sleep(rng.uniform(0, lasts))
    process.kill()
    process.join()
    return process.exitcode < 0


# ------------------------------------------------------------------------------------------------------------
# folders that cannot be written

def test_an_uncompiled_run_needs_no_compiler_cache(tiny_data, tmp_path):
    """PyTorch makes that folder whether or not it compiles: the run takes another one."""
    (tmp_path / "data").symlink_to(tiny_data)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    done = subprocess.run([sys.executable, f"{HERE}/train.py", *TINY, "--max_iters=2"], cwd=tmp_path, text=True,
                          env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")},
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and (tmp_path / "out/ckpt.pt").exists(), done.stderr


# ------------------------------------------------------------------------------------------------------------
# killed

@pytest.mark.parametrize("tries", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_killed_training_resumes_to_the_same_bits(tries, start, finish, tmp_path):
    """SIGKILL at random moments, of saving too: resumed, each run ends like the one that nobody killed."""
    lasts, rng, killed = seconds_of(finish, "train.py", *SAVES, "--out_dir=whole"), random.Random(0), 0
    weights, log = outcome(tmp_path / "whole")
    for i in range(tries):
        arguments = [*SAVES, f"--out_dir={i}"]
        killed += kill_during(start("train.py", *arguments), lasts, rng)
        resume = ["--init_from=resume"] if (tmp_path / f"{i}/ckpt.pt").exists() else []
        status, said = finish("train.py", *arguments, *resume)
        assert status == 0, said
        again, log_again = outcome(tmp_path / str(i))
        assert log_again == log and all(torch.equal(weights[key], again[key]) for key in weights)
        assert not [name for name in os.listdir(tmp_path / str(i)) if name.endswith(".tmp")]
    assert killed >= tries / 3


@pytest.mark.slow
def test_a_killed_prepare_leaves_the_dataset_that_was_there(start, finish, tmp_path):
    """Killed while it replaces a dataset, or before there is one: train.py finds a whole one, or says that
    none is there."""
    (tmp_path / "data").unlink()
    (tmp_path / "words.txt").write_text("".join(f"{i} words\n" for i in range(200_000)), encoding="utf-8")
    arguments = ["--input=words.txt", "--dataset=words", "--vocab_size=500"]
    lasts, rng, killed = seconds_of(finish, "prepare.py", *arguments), random.Random(0), 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "data/words").iterdir()}
    for _ in range(30):
        killed += kill_during(start("prepare.py", *arguments), lasts, rng)
        put_back(str(tmp_path / "data/words"))
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "data/words").iterdir()}
    assert killed > 10
    for _ in range(5):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        if kill_during(start("prepare.py", *arguments), lasts / 2, rng):
            status, said = finish("train.py", *TINY, "--dataset=words")
            assert status == 2 and said.startswith("error: no dataset in data/words")
    assert finish("prepare.py", *arguments)[0] == 0 and os.listdir(tmp_path / "data") == ["words"]


def test_a_dataset_between_two_renames_is_found(run, tmp_path):
    """As a kill at the worst moment leaves it: under its other name."""
    (tmp_path / "a.txt").write_text("some text\n" * 2000, encoding="utf-8")
    prepared = "prepare.py", "--input=a.txt", "--dataset=a", "--tokenizer=byte", "--data_dir=own"
    assert run(*prepared)[0] == 0
    os.rename("own/a", "own/a.old")
    status, _, err = run("train.py", "--data_dir=own", "--dataset=a", "--max_iters=2")
    assert status == 0 and os.listdir("own") == ["a"], err


@pytest.mark.slow  # test_retrieve.py has kills at chosen places
@pytest.mark.parametrize("tries", [10])
def test_a_killed_retriever_resumes_to_the_same_bits(tries, start, finish, tmp_path):
    """SIGKILL at random moments: resumed, each run ends like the one that nobody killed, its best and table too."""
    (tmp_path / "pairs.jsonl").write_text("".join(
        f'{{"query": "{i} + {i}", "passage": "makes {2 * i}"}}\n' for i in range(300)), encoding="utf-8")
    (tmp_path / "data").rename(tmp_path / "tiny")
    assert finish("prepare.py", "--pairs=pairs.jsonl", "--dataset=sums")[0] == 0
    arguments = ["--pairs=sums", "--dataset=../tiny/tiny", "--block_size=13", "--n_layer=1", "--n_embd=12",
                 "--dropout=0.2", "--token_dropout=0.2", "--batch_size=8", "--max_iters=40", "--max_seconds=0",
                 "--eval_interval=5", "--log_interval=3", "--eval_queries=11", "--sizes=999", "--baselines=",
                 "--device=cpu", "--dtype=float32", "--compile=false"]

    def results(folder):
        best = torch.load(folder / "best.pt", weights_only=True)["model"]
        with open(folder / "retrieve.csv", encoding="utf-8", newline="") as f:
            row, = csv.DictReader(f)
        weights, rows = outcome(folder)
        return [*weights.values(), *best.values()], rows, row["loss"], row["mrr10"]
    lasts, rng, killed = seconds_of(finish, "retrieve.py", *arguments, "--out_dir=whole"), random.Random(0), 0
    weights, *others = results(tmp_path / "whole")
    for i in range(tries):
        run = "retrieve.py", *arguments, f"--out_dir={i}"
        killed += kill_during(start(*run), lasts, rng)
        resume = ["--init_from=resume"] if (tmp_path / f"{i}/ckpt.pt").exists() else []
        status, said = finish(*run, *resume)
        assert status == 0, said
        again, *others_again = results(tmp_path / str(i))
        assert others_again == others and all(map(torch.equal, weights, again))
        assert not [name for name in os.listdir(tmp_path / str(i)) if name.endswith(".tmp")]
    assert killed >= tries / 3


@pytest.mark.slow
def test_a_killed_search_leaves_a_whole_index_or_none(start, finish, tmp_path):
    """Killed while it embeds or saves its corpus: the next search finds what one that nobody killed does."""
    (tmp_path / "pairs.jsonl").write_text("".join(
        f'{{"query": "{i} + {i}", "passage": "makes {2 * i}"}}\n' for i in range(3000)), encoding="utf-8")
    (tmp_path / "data").rename(tmp_path / "tiny")
    assert finish("prepare.py", "--pairs=pairs.jsonl", "--dataset=sums")[0] == 0
    arguments = ["--pairs=sums", "--data_dir=data", "--out_dir=a", "--device=cpu", "--dtype=float32"]
    shape = ["--dataset=../tiny/tiny", "--block_size=13", "--n_layer=1", "--n_embd=12", "--batch_size=8"]
    status, said = finish("retrieve.py", *arguments, *shape, "--max_iters=2", "--max_seconds=0",
                          "--baselines=", "--eval_queries=11", "--sizes=2", "--compile=false")
    assert status == 0, said
    search = "retrieve.py", *arguments, "--query=7 + 7"
    _, expected = finish(*search)
    index, = (name for name in os.listdir(tmp_path / "a") if name.startswith("index"))
    (tmp_path / "a" / index).unlink()
    lasts, rng, killed = seconds_of(finish, *search), random.Random(0), 0
    for _ in range(10):
        (tmp_path / "a" / index).unlink(missing_ok=True)
        killed += kill_during(start(*search), lasts, rng)
        assert finish(*search) == (0, expected)
    assert killed > 3


@pytest.mark.slow
def test_a_killed_comparison_goes_on(start, finish, tmp_path):
    """Killed at random moments and started again until it ends: the table is that of one go, times apart."""
    (tmp_path / "base.py").write_text("\n".join(
        f"{key} = {value!r}" for key, value in (a[2:].split("=") for a in TINY) if key != "max_iters"
    ).replace("'", "").replace("= tiny", "= 'tiny'").replace("= cpu", "= 'cpu'").replace(
        "= float32", "= 'float32'"), encoding="utf-8")
    arguments = ["--base=base.py", "--amount=990", "--sample_tokens=5", "--device=cpu"]
    lasts, rng, killed = seconds_of(finish, "compare.py", *arguments, "--out_dir=whole"), random.Random(0), 0
    for _ in range(6):
        killed += kill_during(start("compare.py", *arguments, "--out_dir=killed"), lasts / 2, rng)
        time.sleep(lasts / 2)  # a train.py that it had started may still be at work
    status, said = finish("compare.py", *arguments, "--out_dir=killed")
    assert status == 0 and killed > 2, said
    tables = []
    for name in "whole", "killed":
        with open(tmp_path / name / "compare.csv", encoding="utf-8", newline="") as f:
            tables.append([{key: row[key] for key in ("name", "tokens", "val_loss", "token_accuracy")}
                           for row in csv.DictReader(f)])
    assert tables[0] == tables[1]


# ------------------------------------------------------------------------------------------------------------
# no space left

SLOW = pytest.mark.slow


@pytest.mark.parametrize("limit", [1, 20_000, 80_000, *(pytest.param(n, marks=SLOW) for n in (4096, 40_000))])
def test_a_full_disk_ends_training_and_keeps_what_was_saved(limit, finish, tmp_path):
    """Writes fail after so many bytes: one line, status 1, and the checkpoints are as they were."""
    assert finish("train.py", *SAVES, "--max_iters=4")[0] == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("ckpt.pt", "best.pt")}
    assert len(before["ckpt.pt"]) > 80_000
    status, said = finish("train.py", *SAVES, "--init_from=resume", limit=limit)
    *_, last = said.splitlines() or [""]
    assert status == 1 and last.startswith("error: cannot write out/"), said
    assert "Traceback" not in said and not [name for name in os.listdir(tmp_path / "out") if ".tmp" in name]
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in before}
    status, said = finish("train.py", *SAVES, "--init_from=resume")
    assert status == 0, said


def test_a_folder_that_must_not_be_written_is_named_and_kept(finish, tmp_path):
    """train.py, going on in it or beginning inside it, and prepare.py: one line, and all is as it was."""
    assert finish("train.py", *SAVES, "--max_iters=4")[0] == 0
    (tmp_path / "words.txt").write_text("a word\n" * 999, encoding="utf-8")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").chmod(0o555)
    for arguments in (["train.py", *SAVES, "--init_from=resume"], ["train.py", *SAVES, "--out_dir=out/new"],
                      ["prepare.py", "--input=words.txt", "--dataset=words", "--tokenizer=byte",
                       "--data_dir=out"]):
        status, said = finish(*arguments, plain=True)
        *_, last = said.splitlines() or [""]
        assert status in (1, 2) and re.match("error: cannot .*out.*permission denied", last, re.I), said
        assert "Traceback" not in said
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").chmod(0o755)
    assert finish("train.py", *SAVES, "--init_from=resume", plain=True)[0] == 0


@pytest.mark.parametrize("limit", [10, 3000, 30_000])
def test_a_full_disk_ends_prepare_and_keeps_the_dataset(limit, finish, tmp_path):
    """One line, status 1, the old dataset whole, nothing temporary."""
    (tmp_path / "data").unlink()
    (tmp_path / "words.txt").write_text("".join(f"{i} words\n" for i in range(20_000)), encoding="utf-8")
    arguments = ["--input=words.txt", "--dataset=words", "--vocab_size=300"]
    assert finish("prepare.py", *arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "data/words").iterdir()}
    status, said = finish("prepare.py", *arguments, limit=limit)
    assert status == 1 and said.splitlines()[-1].startswith("error: cannot write data/words: file too large")
    assert "Traceback" not in said and os.listdir(tmp_path / "data") == ["words"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "data/words").iterdir()}


# ------------------------------------------------------------------------------------------------------------
# many processes

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def torchrun(n, *arguments):
    """A started torchrun of train.py with n processes, whose output is in one pipe."""
    command = [*TORCHRUN, f"--nproc_per_node={n}", f"{HERE}/train.py", *SAVES, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_another_number_of_processes_goes_on_alike(run, tmp_path):
    """20 iterations by 2 processes, 20 more by 4, and by 1: the losses and weights of one process."""
    arguments = "--gradient_accumulation_steps=4", "--batch_size=2"
    assert run("train.py", *SAVES, *arguments, "--out_dir=one")[0] == 0
    process = torchrun(2, *arguments, "--out_dir=two", "--max_iters=20")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    shutil.copytree("two", "four")
    process = torchrun(4, *arguments, "--out_dir=four", "--init_from=resume")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert run("train.py", *SAVES, *arguments, "--out_dir=two", "--init_from=resume")[0] == 0
    weights, log = outcome(tmp_path / "one")
    for name in "two", "four":
        again, log_again = outcome(tmp_path / name)
        assert [row["iter"] for row in log] == [row["iter"] for row in log_again]
        for key in "train_loss", "val_loss":
            values = [[float(row[key]) for row in rows if row[key]] for rows in (log, log_again)]
            assert values[0] == pytest.approx(values[1], abs=1e-5)
        for key in weights:
            torch.testing.assert_close(weights[key], again[key], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others(run, tmp_path):
    """SIGKILL to one of two: torchrun ends within a minute, names the signal, and the run can be resumed."""
    arguments = "--gradient_accumulation_steps=2", "--batch_size=2"
    process = torchrun(2, *arguments, "--max_iters=100000")
    for line in process.stdout:
        if line.startswith("iter     10"):
            break
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "SIGKILL" in said
    assert run("train.py", *SAVES, *arguments, "--max_iters=50", "--init_from=resume")[0] == 0


@pytest.fixture
def hosts():
    """Two network namespaces with an address each, 10.0.0.1 and 10.0.0.2, as two hosts on one wire."""
    names = [f"mixer{os.getpid()}{side}" for side in "ab"]
    commands = [*(f"ip netns add {name}" for name in names),
                f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"]
    for i, name in enumerate(names, 1):
        commands += [f"ip -n {name} addr add 10.0.0.{i}/24 dev eth0", f"ip -n {name} link set eth0 up",
                     f"ip -n {name} link set lo up"]
    try:
        for command in commands:
            if shutil.which("ip") is None or subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip("needs the right to make network namespaces")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


LEAVE = """
import glob, os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = sys.argv[1:]
kept = runpy.run_path(sys.argv[0], run_name="__main__")  # as a script's names are kept until it has ended
def threads():
    names = []
    for path in glob.glob("/proc/self/task/*/comm"):
        try:
            names.append(open(path, encoding="utf-8").read())
        except OSError:  # it has ended just now
            pass
    return [name for name in names if "gloo" in name]
os.write(1, f"threads left: {threads()}\\n".encode())  # in one piece: the other process writes too
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_thread_of_the_processes_outlives_the_run(tiny_data, tmp_path, monkeypatch):
    """One that still has a tensor in hand when the interpreter goes aborts the process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiny_data)
    (tmp_path / "leave.py").write_text(LEAVE, encoding="utf-8")
    command = [*TORCHRUN, "--nproc_per_node=2", "leave.py", f"{HERE}/train.py", *SAVES, "--max_iters=2",
               "--gradient_accumulation_steps=2"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threads left: []") == 2, done.stdout


@pytest.mark.slow
def test_two_hosts_train_as_one(hosts, run, tmp_path):
    """The README's command for two machines, on each of two hosts, equals one process."""
    with open(f"{HERE}/README.md", encoding="utf-8") as f:
        command = re.search(r"^    torchrun (--nnodes=2(?:.*\\\n)?.*)$", f.read(), re.M)[1]
    command = command.replace("\\\n", " ").replace("--nproc_per_node=4", "--nproc_per_node=2")
    command = command.replace("config/", f"{HERE}/config/").replace("train.py", f"{HERE}/train.py").split()
    tiny, started = [*SAVES, "--gradient_accumulation_steps=8", "--batch_size=2", "--out_dir=hosts"], []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    for rank, host in enumerate(hosts):
        arguments = [a.replace("--node_rank=0", f"--node_rank={rank}") for a in command]
        launch = ["ip", "netns", "exec", host, *TORCHRUN[:3], *arguments, *tiny]
        started.append(subprocess.Popen(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        env=environment))
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert run("train.py", f"{HERE}/config/mixer_fineweb.py", *tiny, "--out_dir=one")[0] == 0
    weights, _ = outcome(tmp_path / "one")
    again, _ = outcome(tmp_path / "hosts")
    for key in weights:
        torch.testing.assert_close(weights[key], again[key], rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------
# numbers, and long runs

@pytest.mark.parametrize("settings", [
    ["--block_size=1", "--batch_size=5"], ["--model_type=llama", "--block_size=1"],
    ["--n_layer=1", "--n_head=1", "--batch_size=1", "--eval_iters=1"]])
def test_the_smallest_runs_work(settings, run):
    """T = 1, one layer, one head, one window."""
    status, out, err = run("train.py", *settings)
    assert status == 0, err


def test_one_repeated_token_is_learned_without_nan(run, tmp_path):
    """A text of a single letter: the loss falls to almost nothing, and stays a number."""
    (tmp_path / "a.txt").write_text("a" * 20_000, encoding="utf-8")
    assert run("prepare.py", "--input=a.txt", "--dataset=a", "--tokenizer=byte", "--data_dir=own")[0] == 0
    for model in "mixer", "llama":
        arguments = f"--model_type={model}", f"--out_dir={model}", "--data_dir=own", "--dataset=a"
        arguments += "--max_iters=100", "--eval_interval=100"
        assert run("train.py", *arguments)[0] == 0
        with open(f"{model}/log.csv", encoding="utf-8", newline="") as f:
            assert float(list(csv.DictReader(f))[-1]["val_loss"]) < 0.5


@pytest.mark.slow
def test_a_long_run_does_not_grow(start, tmp_path):
    """2,000 iterations: memory within 5 % after the first 500, as many open files, checkpoints as large."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    process = start("train.py", *SAVES, "--max_iters=2000", "--eval_interval=20", "--log_interval=20")
    seen = []  # (iteration, pages in memory, open files, bytes of the checkpoint)
    while process.is_alive():
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open(tmp_path / "out/log.csv", encoding="utf-8") as f:
                at = int(f.read().splitlines()[-1].split(",")[0])
            with open(f"/proc/{process.pid}/statm", encoding="utf-8") as f:
                pages = int(f.read().split()[1])
            seen.append((at, pages, len(os.listdir(f"/proc/{process.pid}/fd")),
                         os.path.getsize(tmp_path / "out/ckpt.pt")))
        time.sleep(0.02)
    assert process.exitcode == 0 and seen[-1][0] > 1900
    first, last = (np.array([row for row in seen if low <= row[0] < low + 500]) for low in (500, 1500))
    assert len(first) > 5 and len(last) > 5
    assert np.median(last[:, 1]) < 1.05 * np.median(first[:, 1])
    assert last[:, 2].max() <= first[:, 2].max() and last[:, 3].max() <= 1.01 * first[:, 3].max()
    assert os.path.getsize(tmp_path / "out/log.csv") < 200 * 101

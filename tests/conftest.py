"""A tiny dataset, and scripts run in this process: importing torch anew for each run would take minutes."""
import os
import runpy
import signal
import sys

import pytest
import torch

from lib.fast import use_fast_functions
from prepare import prepare

os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start: matrices so small gain nothing by more
torch.set_num_threads(1)
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXT = "".join(f"{i} times {j} is {i * j}, says the clerk.\n" for i in range(40) for j in range(20))
TINY = ["--out_dir=out", "--dataset=tiny", "--block_size=11", "--n_layer=2", "--n_embd=20", "--n_head=5",
        "--batch_size=3", "--eval_iters=1", "--log_interval=4", "--eval_interval=10", "--max_iters=20",
        "--warmup_iters=5", "--learning_rate=1e-2", "--compile=false", "--device=cpu", "--dtype=float32",
        "--sample_tokens=0"]


def flip(path, place):
    """Change one bit of a file, `place` bytes from its start, or from its end if that is below 0."""
    with open(path, "r+b") as f:
        f.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))


@pytest.fixture(autouse=True)
def plain_functions():
    """Scripts put fast functions in place of those of model.py: each test begins with the plain ones."""
    use_fast_functions(False)
    yield
    use_fast_functions(False)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with data/tiny in it: sums as text, in bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.txt").write_text(TEXT, encoding="utf-8")
    prepare(dataset="tiny", input=str(folder / "tiny.txt"), tokenizer="byte", vocab_size=4096,
            text_key="text", val_fraction=0.1, max_mb=0, data_dir=str(folder / "data"))
    return folder / "data"


@pytest.fixture
def run(tiny_data, tmp_path, monkeypatch, capsys):
    """run("train.py", *arguments) -> (exit status, stdout, stderr), in a new folder with the tiny data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [HERE, *sys.path])
    monkeypatch.setattr("lib.device.measure_peak_flops", lambda *_: 1e12)  # half a second per run on one core
    (tmp_path / "data").symlink_to(tiny_data)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    precision = torch.get_float32_matmul_precision()

    def run_script(script, *arguments):
        arguments = [*(TINY if script == "train.py" else []), *arguments]
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        try:
            runpy.run_path(os.path.join(HERE, script), run_name="__main__")
            status = 0
        except SystemExit as e:
            status = e.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            torch.set_float32_matmul_precision(precision)
        captured = capsys.readouterr()
        return status, captured.out, captured.err
    return run_script


@pytest.fixture
def refused(run):
    """refused(part of the message, script, *arguments): one line on stderr that says so, and status 2."""
    def check(part, script, *arguments, status=2):
        code, out, err = run(script, *arguments)
        assert code == status, (out, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and part in err, err
    return check

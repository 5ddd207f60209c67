"""What scripts share: files are replaced whole or not at all, finished runs are left, a figure is no must."""
import builtins
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from common import clip_gradients, peak_memory_mb, read_prompt, replacing
from figures import save_figure
from model import LanguageModel, ModelConfig
from runs import lock_folder, train_run


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, capsys):
    """What fails half-way leaves the old file, and no temporary one."""
    path = tmp_path / "file.txt"
    with replacing(path, "w") as f:
        f.write("naïve")
    assert path.read_bytes() == "naïve".encode()
    with pytest.raises(SystemExit) as exit_info, replacing(path, "w") as f:
        f.write("half")
        raise OSError(28, "No space left on device")
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == f"error: cannot write {path}: no space left on device\n"
    assert path.read_bytes() == "naïve".encode() and list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_a_figure_is_a_notice(tmp_path, monkeypatch, capsys):
    """A run on a bare machine does not end with an error after hours."""
    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError
        return original(name, *args, **kwargs)
    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    save_figure(tmp_path / "a.png", lambda axes: None)
    assert capsys.readouterr().out == f"no {tmp_path / 'a.png'}: it needs matplotlib\n"
    assert not list(tmp_path.iterdir())


def test_a_prompt_is_text_or_a_file(tmp_path, monkeypatch):
    """Line ends stay as they are; ~ is the home folder."""
    (tmp_path / "prompt.txt").write_bytes("a\r\nü\n".encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert read_prompt(f"FILE:{tmp_path}/prompt.txt") == read_prompt("FILE:~/prompt.txt") == "a\r\nü\n"
    assert read_prompt("file: a") == "file: a" and read_prompt("") == ""


@pytest.mark.parametrize("budget, unit", [("max_iters", "iter"), ("max_tokens", "tokens"),
                                          ("max_seconds", "seconds")])
def test_a_finished_run_is_not_repeated(budget, unit, tmp_path, monkeypatch):
    """By each budget: a new run starts, a stopped one resumes, a finished one is left alone."""
    commands, results = [], [0, 0, 1]
    def start(command):
        commands.append(command)
        return SimpleNamespace(wait=lambda: results[len(commands) - 1])
    monkeypatch.setattr(subprocess, "Popen", start)
    out_dir = tmp_path / "run"
    train_run(out_dir, **{budget: 5})
    assert commands[0][2:] == [f"--{budget}=5", f"--out_dir={out_dir}", "--init_from=scratch"]
    out_dir.mkdir()
    config = dict(block_size=3, n_layer=1, n_embd=2, vocab_size=5)
    state = {"iter": 0, "tokens": 0, "seconds": 0.0}
    for used in 4, 5:
        torch.save({"model_config": config, "model": LanguageModel(ModelConfig(**config)).state_dict(),
                    "state": state | {unit: used}}, out_dir / "ckpt.pt")
        train_run(out_dir, **{budget: 5})
    assert len(commands) == 2 and commands[1][-1] == "--init_from=resume"
    with pytest.raises(SystemExit) as exit_info:
        train_run(out_dir, **{budget: 6})
    assert exit_info.value.code == 1


def test_peak_memory_is_that_of_this_process():
    """It holds what was allocated, and never falls."""
    before = peak_memory_mb(torch.device("cpu"))
    block = torch.ones(40, 2 ** 20, dtype=torch.uint8).add_(1)  # touched, so that it is really there
    after = peak_memory_mb(torch.device("cpu"))
    assert 40 < after < 10 ** 5 and after >= before and block.sum() > 0


@pytest.mark.parametrize("max_norm", [0, 0.5, 2.0, 100.0])
def test_gradients_are_clipped_as_by_torch(max_norm):
    """Norm and gradients, above and below the limit (0: none); a parameter may have no gradient."""
    ours, theirs = (torch.nn.ParameterList(map(torch.zeros, (13, 5, 7))) for _ in "ab")
    torch.manual_seed(1)
    for a, b in zip(ours[:2], theirs[:2]):
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    norm = clip_gradients(ours, max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm or float("inf")))
    assert 2 < norm < 100 and ours[2].grad is None
    for a, b in zip(ours[:2], theirs[:2]):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.fixture
def background(tmp_path):
    """Starts Python code in a process beside this one, and waits until it has made the file `ready`."""
    started = []

    def start(code):
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        started.append(subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path,
                                        env=os.environ | {"PYTHONPATH": here}))
        while not (tmp_path / "ready").exists():
            assert started[-1].poll() is None
            time.sleep(0.05)
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_do_not_share_a_folder(background, tmp_path, capsys):
    """The second is refused with one line; a process that was killed keeps nobody out."""
    other = background("import runs, time; runs.lock_folder('.'); open('ready', 'w').close(); "
                       "time.sleep(60)")
    with pytest.raises(SystemExit) as exit_info:
        lock_folder(str(tmp_path))
    assert exit_info.value.code == 2 and "another process is at work" in capsys.readouterr().err
    other.kill()
    other.wait()
    lock_folder(str(tmp_path))
    lock_folder(str(tmp_path))  # again by the same process


@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
def test_a_signal_to_a_script_ends_its_training_too(background, tmp_path):
    """SIGTERM is passed on to train.py, and the script ends with its line; Ctrl-C is left to train.py."""
    (tmp_path / "train.py").write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), exit(143)))\n"
        "open('ready', 'w').close()\ntime.sleep(60)\n", encoding="utf-8")
    script = background("import runs; runs.__file__ = 'runs.py'; runs.train_run('out', max_iters=5)")
    script.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert script.poll() is None
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == 1 and (tmp_path / "saved").exists()

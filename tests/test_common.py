"""What scripts share: files are replaced whole or not at all, finished runs are left, a figure is no must."""
import builtins
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from lib.device import (choose_device, choose_dtype, compile_model, compile_or_not, join_processes,
                        measure_peak_flops, peak_memory_mb, trust_new_compiler, uncompile_model)
from lib.plots import save_figure
from lib.runs import (StopSignals, load_checkpoint, lock_folder, move_run_aside, replacing, save_checkpoint,
                      train_run)
from lib.sources import read_prompt
from model import LanguageModel, ModelConfig


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """What fails half-way leaves the old file, and no temporary one."""
    path = tmp_path / "file.txt"
    with replacing(path, "w") as f:
        f.write("naïve")
    assert path.read_bytes() == "naïve".encode()
    with pytest.raises(OSError, match=f"cannot write {path}: no space left on device"), replacing(path, "w") as f:
        f.write("half")
        raise OSError(28, "No space left on device")
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
    shape = dict(block_size=3, n_layer=1, n_embd=2, vocab_size=5)
    config = ModelConfig(**shape)
    state = {"iter": 0, "tokens": 0, "seconds": 0.0}
    for used in 4, 5:
        torch.save({"model_config": asdict(config), "model": LanguageModel(config).state_dict(), "config": shape,
                    "state": state | {unit: used}}, out_dir / "ckpt.pt")
        train_run(out_dir, **{budget: 5}, **shape)
    assert len(commands) == 2 and commands[1][-1] == "--init_from=resume"
    with pytest.raises(ChildProcessError):
        train_run(out_dir, **{budget: 6}, **shape)
    assert commands[2][-1] == "--init_from=resume"


def test_a_run_with_other_settings_is_trained_anew(tmp_path, monkeypatch, capsys):
    """Neither a changed rate nor a changed width reuses the weights of a finished run; it says which it was."""
    commands = []

    def start(command):
        commands.append(command)
        return SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", start)
    config = ModelConfig(block_size=3, n_layer=1, n_embd=2, vocab_size=5)
    settings = dict(block_size=3, n_layer=1, n_embd=2, learning_rate=0.1, max_iters=5)
    torch.save({"model_config": asdict(config), "model": LanguageModel(config).state_dict(), "config": settings,
                "state": {"iter": 5, "tokens": 9, "seconds": 9.0}}, tmp_path / "ckpt.pt")
    train_run(tmp_path, **settings)
    assert not commands
    for key, value in ("learning_rate", 0.2), ("n_embd", 4), ("norm", "rmsnorm"):
        train_run(tmp_path, **settings | {key: value})
        assert commands.pop()[-1] == "--init_from=scratch"
        assert f"trained with {key}=" in capsys.readouterr().out


def test_a_run_is_moved_to_the_first_free_folder(tmp_path):
    """No run is lost, however many follow it, and what is no file of a run stays."""
    for n in 1, 2, 3:
        os.makedirs(tmp_path / "run", exist_ok=True)
        for name in "ckpt.pt", "log.csv", "index-1.npz":
            (tmp_path / "run" / name).write_text(f"{name} {n}", encoding="utf-8")
        move_run_aside(str(tmp_path / "run"))
        assert sorted(os.listdir(tmp_path / f"run.{n}")) == ["ckpt.pt", "log.csv"]
        assert (tmp_path / f"run.{n}" / "log.csv").read_text(encoding="utf-8") == f"log.csv {n}"
    assert os.listdir(tmp_path / "run") == ["index-1.npz"] and not (tmp_path / "run.4").exists()


def test_signals_are_caught_once_and_given_back():
    """The first is noted, the second would end the program; afterwards handlers are as they were."""
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.caught == 0
        signal.raise_signal(signal.SIGINT)
        assert stop.caught == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")
@pytest.mark.parametrize("handler, caught", [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_closed_terminal_stops_a_run_unless_nohup_ignores_it(handler, caught):
    """SIGHUP is a signal to stop like the others; one that is ignored stays ignored."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.caught == (signal.SIGHUP if caught else 0)
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch generates C++")
def test_compiled_gradients_are_those_of_the_model():
    """Each parameter of a GPT gets the gradient of the plain model; other models stay as they are."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig("gpt", block_size=11, n_layer=2, n_embd=20, n_head=2, vocab_size=31))
    idx = torch.randint(31, (3, 12))

    def gradients():
        loss = model(idx[:, :-1], idx[:, 1:], return_logits=False)[1]
        return torch.autograd.grad(loss, [*model.parameters()])
    plain = gradients()
    compiled = compile_model(model, gradients)
    assert "forward" in vars(model) and all("forward" not in vars(block) for block in model.blocks)
    for expected, found in zip(plain, compiled):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    uncompile_model(model)
    assert "forward" not in vars(model)


def test_a_model_that_cannot_be_compiled_is_run_as_it_is(monkeypatch, capsys):
    """One line says so, and the step is run again without compilation."""
    def broken(function, **_):
        def compiled(*args):
            raise RuntimeError("no C++ compiler")
        return compiled
    monkeypatch.setattr(torch, "compile", broken)
    model = LanguageModel(ModelConfig(block_size=3, n_layer=2, n_embd=2, vocab_size=5))
    assert compile_model(model, lambda: model(torch.tensor([[1, 2, 3]]))[0].shape) == (1, 3, 5)
    assert capsys.readouterr().out.count("going on without it") == 1


def test_without_a_compiler_the_plain_function_is_used(monkeypatch, capsys):
    """One line says so; an error of the function itself is its caller's."""
    def broken(function):
        def compiled(x):
            raise RuntimeError("no C++ compiler")
        return compiled
    monkeypatch.setattr(torch, "compile", broken)
    seen = []
    assert compile_or_not(abs, lambda f: seen.append(f(-3))) is abs and seen == [3]
    assert "going on without it" in capsys.readouterr().out
    with pytest.raises(TypeError):
        compile_or_not(abs, lambda f: f("text"))


def test_a_gpu_that_does_not_work_is_named_with_what_torch_says(monkeypatch, capsys):
    """A card too old for PyTorch is an error, even if auto chose it; without a working driver, auto says so."""
    ones = torch.ones

    def too_old(*size, device):
        if "cuda" in str(device):
            raise RuntimeError("CUDA error: no kernel image is available\nmore about it")
        return ones(*size, device=device)
    monkeypatch.setattr(torch, "ones", too_old)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in "auto", "cuda":
        with pytest.raises(ValueError, match="^device 'cuda' is not available here: CUDA error: no kernel image"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for path in None, "/usr/bin/nvidia-smi":
        assert capsys.readouterr().out == ""
        monkeypatch.setattr("shutil.which", lambda name, path=path: path)
        assert choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().out.endswith("(CUDA error: no kernel image is available)\n")


def test_processes_on_a_mac_train_on_the_cpu(monkeypatch):
    """Gloo does not exchange tensors on MPS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("device, backend, joined", [
    ("cuda:1", "auto", ("cpu:gloo,cuda:nccl", torch.device("cuda:1"))), ("cuda:1", "gloo", ("gloo", None)),
    ("cpu", "auto", ("gloo", None))])
def test_numbers_on_the_cpu_go_by_gloo(device, backend, joined, monkeypatch):
    """With NCCL too, so that a decision of all processes does not wait for the GPU."""
    seen = []
    monkeypatch.setattr("torch.distributed.init_process_group",
                        lambda backend, device_id=None: seen.append((backend, device_id)))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert join_processes(torch.device(device), backend) == (1, 3) and seen == [joined]


def test_float16_is_for_cuda_and_on_demand_for_the_cpu():
    """There it is slow, and serves the tests."""
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert choose_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="dtype 'float16' is not for mps"):
        choose_dtype("float16", torch.device("mps"))


def test_peak_flops_are_those_of_a_computer():
    """In float16 too, in which many a CPU takes a minute for a large matmul."""
    for dtype in torch.float32, torch.float16:
        assert 1e7 < measure_peak_flops(torch.device("cpu"), dtype) < 1e16


@pytest.mark.parametrize("links", [True, False])
def test_the_best_checkpoint_is_written_once(links, tmp_path, monkeypatch):
    """ckpt.pt and best.pt are one file while the last is the best; a copy where there are no links."""
    def no_links(*paths):
        raise OSError(38, "Function not implemented")
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    best, last = tmp_path / "best.pt", tmp_path / "ckpt.pt"
    for step, is_best in enumerate([True, True, False, True, False]):
        save_checkpoint({"step": step}, tmp_path, is_best)
        assert torch.load(last)["step"] == step and torch.load(best)["step"] == (step if is_best else step - 1)
        assert os.path.samefile(best, last) == (links and is_best)
        assert sorted(os.listdir(tmp_path)) == ["best.pt", "ckpt.pt"]


@pytest.mark.parametrize("is_best", [True, False])
def test_a_kill_between_link_and_rename_costs_no_checkpoint(is_best, tmp_path):
    """A link to best.pt that is left as ckpt.pt.tmp is not written through, and goes."""
    save_checkpoint({"step": 1}, tmp_path, True)
    os.link(tmp_path / "best.pt", tmp_path / "ckpt.pt.tmp")
    save_checkpoint({"step": 2}, tmp_path, is_best)
    assert torch.load(tmp_path / "ckpt.pt")["step"] == 2
    assert torch.load(tmp_path / "best.pt")["step"] == (2 if is_best else 1)
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "ckpt.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_mapped_checkpoint_survives_its_replacement(tmp_path):
    """Its tensors stay in the file, not in memory, and keep their values when a run saves the next one."""
    def is_mapped():
        with open("/proc/self/maps", encoding="utf-8") as f:
            return str(tmp_path) in f.read()
    config = ModelConfig(block_size=3, n_layer=1, n_embd=2, vocab_size=5)
    checkpoint = {"model_config": asdict(config), "model": {"w": torch.arange(5.0)}}
    save_checkpoint(checkpoint, tmp_path, True)
    load_checkpoint(tmp_path)
    assert not is_mapped()
    mapped = load_checkpoint(tmp_path, mmap=True)
    assert is_mapped()
    for is_best in True, False:
        save_checkpoint(checkpoint | {"model": {"w": torch.zeros(5)}}, tmp_path, is_best)
    mapped["model"]["w"].mul_(2)
    assert mapped["model"]["w"].tolist() == [0, 2, 4, 6, 8]
    assert load_checkpoint(tmp_path)["model"]["w"].tolist() == [0] * 5


def test_peak_memory_is_that_of_this_process():
    """It holds what was allocated, and never falls."""
    before = peak_memory_mb(torch.device("cpu"))
    block = torch.ones(40, 2 ** 20, dtype=torch.uint8).add_(1)  # touched, so that it is really there
    after = peak_memory_mb(torch.device("cpu"))
    assert 40 < after < 10 ** 5 and after >= before and block.sum() > 0


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
def test_two_processes_do_not_share_a_folder(background, tmp_path):
    """The second is refused with one line; a process that was killed keeps nobody out."""
    other = background("import time; from lib import runs; runs.lock_folder('.'); open('ready', 'w').close(); "
                       "time.sleep(60)")
    with pytest.raises(ValueError, match="another process is at work"):
        lock_folder(str(tmp_path))
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
    script = background("from lib import runs; runs.HERE = '.'; "
                        "runs.train_run('out', max_iters=5)")
    script.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert script.poll() is None
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == 1 and (tmp_path / "saved").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other compilers")
@pytest.mark.parametrize("version, trusted", [("12", True), ("14.2.0", True), ("9.4.0", None), ("unknown", None)])
def test_a_new_compiler_is_not_tried_out(version, trusted, tmp_path, monkeypatch):
    """PyTorch is told that the vector instructions work if the compiler is new; what the user has set stays."""
    from torch._inductor import config
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\necho {version}\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    for setting, expected in (False, False), (None, trusted):
        with config.patch({"cpp.vec_isa_ok": setting}):
            trust_new_compiler()
            assert config.cpp.vec_isa_ok is expected

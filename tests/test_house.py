"""model.py works alone, imports have no side effects, and a new architecture needs one class and one entry."""
import os
import shutil
import subprocess
import sys

import pytest

from conftest import HERE, TINY

RECURRENCE = '''

class GatedRecurrence(nn.Module):
    """h[t] = a * h[t - 1] + b * x[t] with a learned a in (0, 1) and b per channel, and a projection of h."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.a, self.b = nn.Parameter(torch.zeros(C)), nn.Parameter(torch.ones(C))
        self.c_proj = nn.Linear(C, C, bias=config.bias)

    def forward(self, x, cache=None):
        h = cache.states.get(self, torch.zeros_like(x[:, 0])) if cache else torch.zeros_like(x[:, 0])   # (B, C)
        states = []
        for t in range(x.size(1)):
            h = self.a.sigmoid() * h + self.b * x[:, t]
            states.append(h)
        if cache:
            cache.states[self] = h
        return self.c_proj(torch.stack(states, dim=1))                                    # (B, T, C)

    def flops(self, T):
        return 0  # its only matmul is the Linear, which the model counts


ARCHITECTURES["recurrent"] = dict(steps=[[GatedRecurrence]], position="none", norm="layernorm", mlp="gelu", bias=True,
                                  final_norm=False, init="torch", embd_std=1.0)
'''


def python(folder, *arguments):
    """Run Python with arguments in a folder and return its output; the test fails if Python does."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, encoding="utf-8",
                          env=os.environ | {"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_model_py_alone_trains_and_generates(tmp_path):
    """In an empty folder, model.py needs only PyTorch and the standard library."""
    shutil.copy(f"{HERE}/model.py", tmp_path)
    out = python(tmp_path, "-c", """
import sys, torch
from model import LanguageModel, ModelConfig
torch.manual_seed(0)
model = LanguageModel(ModelConfig(block_size=11, n_layer=2, n_embd=20, n_head=5, vocab_size=31))
optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95))
idx = torch.randint(31, (3, 12))
for _ in range(50):
    loss = model(idx[:, :-1], idx[:, 1:])[1]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(loss.item() < 1, [token for token, in model.generate([[1, 2]], 20)])
print([name for name in sys.modules if name.split(".")[0] in ("lib", "numpy", "tiktoken", "configurator")
       and name.startswith(("lib.", "tiktoken", "configurator"))])
""").splitlines()
    assert out[0].startswith("True [") and out[0].count(",") == 19 and out[1] == "[]"


SCRIPTS = "train", "sample", "invert", "retrieve", "compare", "prepare", "bench", "look", "configurator"


@pytest.mark.parametrize("name", SCRIPTS)
def test_importing_a_script_changes_nothing(name, tmp_path):
    """An import prints and writes nothing, reads no arguments, and leaves torch and the signal handlers alone."""
    code = f"""
import os, signal, sys
import torch
import model
def state():
    names = "masked_product", "toeplitz_product", "attention", "linear_cross_entropy"
    functions = [getattr(model, name) for name in names]
    return (torch.get_float32_matmul_precision(), torch.get_num_threads(), signal.getsignal(signal.SIGINT), functions,
            torch.initial_seed(), torch.get_default_dtype())
before = state()
sys.argv = ["x.py", "--no_such_key=1"]
import {name}
assert state() == before and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          env=os.environ | {"PYTHONPATH": HERE})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done.stderr.decode()
    assert os.listdir(tmp_path) == []


def test_a_new_architecture_is_one_class_and_one_entry(tmp_path, tiny_data):
    """A recurrence that is appended to model.py trains, samples by cache, is compared and inverted."""
    for name in os.listdir(HERE):
        if name.endswith(".py"):
            shutil.copy(f"{HERE}/{name}", tmp_path)
    shutil.copytree(f"{HERE}/lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(f"{HERE}/config", tmp_path / "config")
    (tmp_path / "data").symlink_to(tiny_data)
    with open(tmp_path / "model.py", "a", encoding="utf-8") as f:
        f.write(RECURRENCE)
    tiny = [argument.removeprefix("--").partition("=") for argument in TINY]
    texts = "dataset", "dtype"
    (tmp_path / "base.py").write_text("".join(
        f"{key} = {value!r}\n" if key in texts else f"{key} = {value.capitalize()}\n"
        for key, _, value in tiny if key not in ("out_dir", "device")), encoding="utf-8")
    out = python(tmp_path, "compare.py", "--base=base.py", "--out_dir=out/c", "--amount=400", "--device=cpu",
                 '--variants={"recurrent": {"model_type": "recurrent"}}')
    assert "recurrent with" in out and "| recurrent" in out
    folder = "out/c/recurrent_1337"
    python(tmp_path, "sample.py", f"--out_dir={folder}", "--num_samples=1", "--max_new_tokens=30")
    python(tmp_path, "invert.py", f"--out_dir={folder}", "--methods=gd,exact", "--steps=2", "--n_prompts=1")
    assert python(tmp_path, "-c", f"""
from lib.runs import load_model
model, _, _ = load_model("{folder}")
prompts = [[1, 2, 3], [4]]
print(list(model.generate(prompts, 30, seed=1)) == list(model.generate(prompts, 30, seed=1, cached=False)))
print(model.estimate_flops(11) == 2 * (2 * 9 * 20 * 20) + 2 * 20 * 257)
""").split() == ["True", "True"]


@pytest.mark.parametrize("script", ["train.py", "sample.py", "invert.py", "retrieve.py", "compare.py", "bench.py"])
def test_threads_learn_how_to_wait_before_torch_is_imported(script):
    """GNU OpenMP reads GOMP_SPINCOUNT once, when torch loads it; a value of the user's own stays."""
    ends_where_torch_is_imported = """
import builtins, os, runpy, sys
original = builtins.__import__
def watched(name, *arguments):
    if name.split(".")[0] == "torch":
        print(os.environ["GOMP_SPINCOUNT"])
        sys.exit()
    return original(name, *arguments)
builtins.__import__ = watched
runpy.run_path(sys.argv[1], run_name="__main__")
"""
    for given, expected in ({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"):
        environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        done = subprocess.run([sys.executable, "-c", ends_where_torch_is_imported, script], cwd=HERE,
                              env=environment | {"PYTHONPATH": HERE} | given, capture_output=True, encoding="utf-8")
        assert done.stdout.strip() == expected, done.stderr

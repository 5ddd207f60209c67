"""bench.py: every kind of step runs, and the figures follow from each other."""
import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bench
import model
from configurator import configure, run_script
from lib import fast
from model import LanguageModel, ModelConfig

SMALL = ["--models=mixer,llama", "--n_embd=12", "--n_layer=1", "--vocab_size=31", "--n_head=3",
         "--block_sizes=8,6", "--batch_sizes=2", "--repeats=2", "--warm_up=1", "--compile=false",
         "--device=cpu", "--dtype=float32"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few vectors to search, and few texts to encode."""
    monkeypatch.setattr(bench, "N_VECTORS", 300)
    monkeypatch.setattr(bench, "N_TEXTS", 3)


@pytest.fixture
def measure(monkeypatch, tmp_path, capsys):
    """measure(*arguments) -> (exit status, stdout, stderr) of bench.py, small, in a new folder."""
    monkeypatch.chdir(tmp_path)

    def measure(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench.py", *SMALL, *arguments])
        capsys.readouterr()
        try:
            run_script(bench.main, "bench.py", "model.py")
            status = 0
        except SystemExit as e:
            status = e.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err
    return measure


@pytest.mark.parametrize("what", bench.STEPS)
def test_every_kind_of_step_is_measured(measure, what):
    """A row for each model and length; rates and shares follow from time and FLOPs."""
    status, out, err = measure(f"--what={what}", "--json_path=speed.json")
    assert status == 0, err
    with open("speed.json", encoding="utf-8") as f:
        saved = json.load(f)
    assert [(row["model"], row["T"]) for row in saved["rows"]] == [
        ("mixer", 8), ("llama", 8), ("mixer", 6), ("llama", 6)] and out.count(f"{what} ") == 4
    for row in saved["rows"]:
        seconds = row["ms"] / 1e3
        assert row["per_second"] == pytest.approx(row["items"] / seconds)
        assert row["share_of_peak"] == pytest.approx(row["flops"] / seconds / saved["peak_flops"])
    assert saved["rows"][0]["ratio"] == 1


def test_flops_are_those_of_the_shapes(measure):
    """A training step of a mixer, counted by hand: forward and twice that backward."""
    measure("--models=mixer", "--block_sizes=8", "--json_path=speed.json")
    with open("speed.json", encoding="utf-8") as f:
        row, = json.load(f)["rows"]
    B, T, C, V = 2, 8, 12, 31
    mlp, conv, head = 2 * T * (C * 4 * C + 4 * C * C), 2 * T * T * C, 2 * T * C * V
    assert row["flops"] == 3 * B * (mlp + conv + head) and row["items"] == B * T


class Names(TorchDispatchMode):
    """The names of the operators that run in it."""
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("model_type", ["mixer", "gpt"])
def test_the_matmuls_alone_are_those_of_the_step(model_type):
    """PyTorch's own count of the FLOPs of what is repeated equals ours of the training step."""
    run = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, compile=False, seed=1)
    c = ModelConfig(model_type, block_size=7, n_layer=2, n_embd=12, vocab_size=31)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch does not count its fused kernel on a CPU
        alone, step = bench.train_matmuls(c, 3, run), bench.train(c, 3, run)
    with FlopCounterMode(display=False) as counter:
        alone.call()
    assert counter.get_total_flops() == alone.flops == step.flops


def test_attention_in_blocks_is_among_the_matmuls():
    """The fast functions hide the matmuls of attention in an operator of their own, which is repeated too."""
    fast.use_fast_functions()
    run = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, compile=False, seed=1)
    alone = bench.train_matmuls(ModelConfig("gpt", block_size=7, n_layer=2, n_embd=12, vocab_size=31), 3, run)
    with Names() as seen:
        alone.call()
    names = "masked_mixers::attention_in_blocks", "masked_mixers::attention_in_blocks_backward"
    assert seen.names.issuperset(names)


def test_bytes_of_a_sampled_token_are_those_of_weights_and_cache(measure):
    """Counted by hand for a mixer and a Llama: the share of a large copy's speed follows."""
    measure("--what=sample,train", "--block_sizes=8", "--json_path=speed.json")
    with open("speed.json", encoding="utf-8") as f:
        saved = json.load(f)
    B, T, C, V = 2, 6, 12, 31
    mixer, llama, *train = saved["rows"]
    assert mixer["bytes"] == 4 * (8 * C * C + V * C + B * T * C)
    assert llama["bytes"] == 4 * (4 * C * C + 12 * C * C + V * C + 2 * B * T * C)
    assert llama["share_of_copy"] == pytest.approx(llama["bytes"] / llama["ms"] * 1e3 / saved["copy_bytes"])
    assert [row["bytes"] for row in train] == [None, None]


class Recurrence(torch.nn.Module):
    """h <- a h + x, whose cache is a state of fixed size, in float64."""

    def __init__(self, config):
        super().__init__()
        self.decay = torch.nn.Parameter(torch.zeros(config.n_embd))

    def forward(self, x, cache=None):
        h, rows = 0.0, []
        for x_t in x.unbind(dim=1):
            h = self.decay.sigmoid() * h + x_t
            rows.append(h)
        if cache:
            cache.states[self] = h.double()
        return torch.stack(rows, dim=1)

    def flops(self, T):
        return 2 * T * len(self.decay)


def test_the_cache_of_a_new_kind_of_mixing_counts(monkeypatch):
    """bytes_read asks the cache itself: a state of fixed size, in its own dtype, is read whole per sample."""
    entry = model.ARCHITECTURES["mixer"] | {"steps": [[Recurrence]]}
    monkeypatch.setitem(model.ARCHITECTURES, "recurrence", entry)
    run = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    C, V, B = 12, 31, 3
    language_model = LanguageModel(ModelConfig("recurrence", block_size=7, n_layer=2, n_embd=C, vocab_size=V))
    for T in 2, 5:
        assert bench.bytes_read(language_model, B, T, run) == 4 * (2 * 8 * C * C + V * C) + B * 2 * 8 * C


def test_the_products_of_a_convolution_agree():
    """The dense, the triangular and, for a Toeplitz matrix, the FFT product give the same, and dense FLOPs count."""
    T, C = 7, 3
    w, x = torch.randn(T), torch.randn(2, T, C)
    expected = model.toeplitz_product(w, x)
    torch.testing.assert_close(bench.fft_product(w, x), expected, atol=1e-5, rtol=1e-5)
    run = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, compile=False)
    c = ModelConfig("mixer", block_size=T, n_layer=1, n_embd=C, vocab_size=31)
    dense, triangular = bench.STEPS["mix_dense"](c, 2, run), bench.STEPS["mix"](c, 2, run)
    assert dense.flops == triangular.flops == 3 * 2 * T * T * 2 * C


@pytest.mark.parametrize("on", [True, False])
def test_fast_functions_are_a_choice(measure, on):
    """--fast=false times the plain functions of model.py."""
    measure("--models=mixer", "--block_sizes=8", f"--fast={on}")
    for name in "masked_product", "attention", "linear_cross_entropy":
        assert getattr(model, name) is (getattr(fast, name) if on else fast.PLAIN[name])


def test_keys_of_bench_come_before_those_of_the_model():
    """Both have n_embd and n_layer: the defaults of bench.py count."""
    settings = configure([], "bench.py", "model.py")
    assert (settings["n_embd"], settings["n_layer"], settings["mixer_heads"]) == (256, 8, 1)


def test_growth_and_rows_are_written(measure):
    """Three lengths give an exponent; the CSV has the command first, then a row each."""
    arguments = "--models=mixer", "--what=mix_dense,mix", "--csv_path=speed.csv", "--block_sizes=8,16,32"
    status, out, err = measure(*arguments)
    assert status == 0 and out.count("time grows as T to the power of") == 2, err
    with open("speed.csv", encoding="utf-8") as f:
        command, header, *rows = f.read().splitlines()
    assert command.startswith("# python bench.py --models=") and header.startswith("what,model,T,B")
    assert [row.split(",")[:3] for row in rows] == [[what, "mixer", T] for T in ("8", "16", "32")
                                                    for what in ("mix_dense", "mix")]


def test_what_does_not_fit_into_memory_is_left_out(measure, monkeypatch):
    """A line says so, and the others are measured; if there are none, that is an error of one line."""
    def hungry(c, B, run, train=bench.train):
        if c.model_type == "llama" or B > 2:
            raise torch.OutOfMemoryError
        return train(c, B, run)
    monkeypatch.setitem(bench.STEPS, "train", hungry)
    status, out, _ = measure("--block_sizes=8", "--batch_sizes=2,3", "--csv_path=speed.csv")
    assert status == 0 and out.count("out of memory") == 3
    with open("speed.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f.read().splitlines()[1:]))
    assert [(row["model"], row["B"]) for row in rows] == [("mixer", "2")]
    status, out, err = measure("--batch_sizes=3")
    assert status == 1 and err.count("\n") == 1 and "nothing of it fits" in err


def test_profile_names_the_operations(measure):
    """Of a step: shares below 1, the largest first, a matmul among them."""
    arguments = "--models=mixer", "--block_sizes=8", "--profile_path=profile.csv"
    status, _, err = measure(*arguments)
    assert status == 0, err
    with open("profile.csv", encoding="utf-8", newline="") as f:
        next(f)
        rows = list(csv.DictReader(f))
    shares = [float(row["share"]) for row in rows]
    assert 0.2 < sum(shares) <= 1.001 and shares == sorted(shares, reverse=True)
    assert any(row["operation"] in ("aten::mm", "aten::addmm", "aten::bmm") for row in rows)


def test_bad_bench_input_is_refused(refused):
    """One line, status 2."""
    for message, argument in [("what takes train", "--what=fly"), ("model_type must be", "--models=rnn"),
                              ("--batch_sizes must be in [1, inf)", "--batch_sizes=0"),
                              ("--block_sizes must be in [1, inf)", "--block_sizes=8,0"),
                              ("--repeats must be in [1, inf)", "--repeats=0"),
                              ("--seed must be in [0, inf)", "--seed=-1"), ("dtype must be one of", "--dtype=int8")]:
        refused(message, "bench.py", *SMALL, argument)

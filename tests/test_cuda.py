"""CUDA: tests that need no GPU, then tests that need one and are skipped where there is none.

FakeTensors emulate the GPU. They have a shape and the device "cuda", but no memory. torch.compile traces them as it
traces real ones, and takes the branches for CUDA in lib/fast.py; no kernel is generated or run. The backward pass is
traced on fake tensors of the CPU, because PyTorch's engine asks for a real GPU.
"""
import csv
import ctypes
import os
import subprocess
import sys
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import HERE, TINY
from lib.fast import capture, fixed_step, prepare_for_sampling, use_fast_functions, use_fixed_steps
from model import ARCHITECTURES, Cache
from test_model import build, every_variant

# ------------------------------------------------------------------------------------------------------------
# without a GPU


@pytest.fixture
def cuda_guard():
    """Let a PyTorch without CUDA trace tensors on "cuda": its table of devices gets the guard that does nothing."""
    CUDA, META = 1, 14  # places in the table, by c10/core/DeviceType.h
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so")
    if not os.path.exists(library):
        pytest.skip("the table is found on Linux only")
    guards = (ctypes.c_void_p * 15).in_dll(ctypes.CDLL(library), "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[CUDA]
    guards[CUDA] = before or guards[META]
    torch.compiler.reset()
    use_fast_functions(True)
    yield
    guards[CUDA] = before


def fake(mode, x, device):
    return FakeTensor(mode, x.detach().to("meta"), torch.device(device))


def fake_model(mode, device, options):
    """A model whose weights and buffers are fake tensors."""
    model = build(**options | dict(n_layer=1))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(fake(mode, parameter, device)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake(mode, buffer, device))
    return model


def traced(function, *inputs, backend="eager"):
    """The result of a function that is compiled as one graph, without generating code; it fails if there are two."""
    return torch.compile(function, fullgraph=True, backend=backend)(*inputs)


def bfloat16_on(device):
    """Autocast, which would look for a GPU."""
    with patch("torch.cuda.is_available", lambda: True), patch("torch.cuda.is_bf16_supported", lambda: True):
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@every_variant
def test_nothing_breaks_the_graph_of_a_model_on_cuda(options, cuda_guard):
    """A block alone; the whole model with its loss, in training and in evaluation; a step of sampling."""
    with FakeTensorMode() as mode, bfloat16_on("cuda"):
        model, idx = fake_model(mode, "cuda:0", options), fake(mode, torch.zeros(3, 11, dtype=torch.int64), "cuda:0")
        x, position = model.embed(idx), fake(mode, torch.zeros(1, dtype=torch.int64), "cuda:0")
        assert traced(model.blocks[0], x.detach()).is_cuda
        with torch.no_grad():
            assert traced(model, idx, idx, False, backend=aot_eager)[1].is_cuda
        loss = traced(model, idx, idx, False)[1]
        assert loss.is_cuda and loss.requires_grad and loss.dtype == torch.float32
        with torch.no_grad():
            cache = Cache(13)
            model.run_blocks(x, cache=cache)
            use_fixed_steps(model)
            token = x.new_zeros(3, 1, 20)
            assert traced(partial(fixed_step, model), token, position, cache.rows).shape == (3, 1, 20)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_nothing_breaks_the_graph_of_a_backward_pass(model_type, cuda_guard):
    """Under autocast, by fake tensors of the CPU; each weight gets a gradient."""
    with FakeTensorMode() as mode, bfloat16_on("cpu"):
        model = fake_model(mode, "cpu", dict(model_type=model_type, block_size=307))
        idx = fake(mode, torch.zeros(3, 293, dtype=torch.int64), "cpu")
        traced(model, idx, idx, False, backend=aot_eager)[1].backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


class RecordedGraph(TorchDispatchMode):
    """A CUDA graph emulated on the CPU: it records operations, and repeats them on the same memory."""

    def __init__(self):
        super().__init__()
        self.recorded = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.recorded.append((function, args, kwargs or {}, results))
        return results

    def replay(self):
        for function, args, kwargs, results in self.recorded:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


@every_variant
def test_a_captured_step_serves_all_positions(options, monkeypatch):
    """Repeated on other inputs, it writes the text of the plain steps: no position is fixed in the graph."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    plain, fixed, graphs = build(**options), build(**options), []

    def step(x, position, rows):
        if not graphs:
            graphs.append(capture(partial(fixed_step, fixed), x, position, rows))
        return graphs[0](x, position, rows)
    use_fixed_steps(fixed, step)
    prompts = [[1, 2, 3], [4]]
    assert list(fixed.generate(prompts, 30, temperature=0.0)) == list(plain.generate(prompts, 30, temperature=0.0))
    assert graphs


def test_a_graph_casts_weights_by_itself(monkeypatch):
    """Autocast keeps casts until its end, and then frees them: a graph that reads them would not see a new bias."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    model, cache = prepare_for_sampling(build(model_type="gpt"), torch.bfloat16), Cache(13)
    use_fixed_steps(model)
    token, position = torch.randn(3, 1, 20), torch.tensor([2])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model.run_blocks(model.embed(torch.tensor([[1, 2], [3, 4], [5, 6]])), cache=cache)
        replay = capture(partial(fixed_step, model), token, position, cache.rows)
    for block in model.blocks:
        block.mlp.c_fc.bias.data += 1
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = fixed_step(model, token, position, cache.rows)
        assert torch.equal(replay(token, position, cache.rows), expected)


# ------------------------------------------------------------------------------------------------------------
# with a GPU; the commands of results/gpu.md go further

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a CUDA device")
ON_CUDA = [argument for argument in TINY if argument.split("=")[0] not in ("--compile", "--device", "--dtype")]


def train_on_cuda(folder, *arguments, launcher=()):
    """Run train.py in a process of its own, compiled; returns its output and the training losses in its log."""
    done = subprocess.run([sys.executable, *launcher, f"{HERE}/train.py", *ON_CUDA, "--device=cuda",
                           "--log_interval=1", *arguments], cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    with open(folder / "out" / "log.csv", encoding="utf-8", newline="") as f:
        losses = [float(row["train_loss"]) for row in csv.DictReader(f) if row["train_loss"]]
    return done.stdout, losses


@pytest.fixture
def folder(tiny_data, tmp_path):
    """A new folder with the tiny data."""
    (tmp_path / "data").symlink_to(tiny_data)
    return tmp_path


@on_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_learns_compiled_in_each_format(model_type, dtype, folder):
    """In 20 steps, by half a nat at least."""
    out, losses = train_on_cuda(folder, f"--model_type={model_type}", f"--dtype={dtype}")
    assert "does not work here" not in out and len(losses) == 20
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.5  # a loss that is not finite ends the run with an error


@on_cuda
@pytest.mark.parametrize("first, second", [("bfloat16", "float16"), ("float16", "bfloat16"), ("float32", "float16")])
def test_a_run_is_resumed_in_another_format(first, second, folder):
    """It goes on from where it was, not from the start."""
    _, before = train_on_cuda(folder, f"--dtype={first}")
    _, losses = train_on_cuda(folder, f"--dtype={second}", "--max_iters=30", "--init_from=resume")
    assert len(losses) == 30 and losses[:20] == before and max(losses[20:]) < losses[0] - 0.5


@on_cuda
def test_two_processes_train_on_one_card(folder):
    """Their gradients go through gloo, as NCCL wants a card for each process; the losses are those of one process."""
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"
    arguments = "--gradient_accumulation_steps=2", "--dtype=float32"
    _, two = train_on_cuda(folder, *arguments, "--device=cuda:0", "--backend=gloo", launcher=launcher)
    _, one = train_on_cuda(folder, *arguments)
    assert two == pytest.approx(one, abs=1e-2)


@on_cuda
@every_variant
def test_a_graph_writes_the_text_of_the_plain_steps(options):
    """Greedily, in float32, past block_size, two texts in turns; its states are those of the plain steps."""
    plain, fixed = build(**options).cuda(), build(**options).cuda()
    use_fixed_steps(fixed)
    texts = [[[1, 2, 3], [4]], [[5, 6], [7]]]
    expected = [list(plain.generate(prompts, 40, temperature=0.0)) for prompts in texts]
    in_turns = list(zip(*(fixed.generate(prompts, 40, temperature=0.0) for prompts in texts)))
    assert [list(steps) for steps in zip(*in_turns)] == [steps[:len(in_turns)] for steps in expected]
    x, caches = plain.embed(torch.randint(31, (3, 13), device="cuda")), (Cache(13), Cache(13))
    with torch.no_grad():
        for part in x.split([4] + [1] * 9, dim=1):
            states, found = (model.run_blocks(part, cache=cache) for model, cache in zip((plain, fixed), caches))
            torch.testing.assert_close(found, states, rtol=0, atol=1e-4)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_graph_outlives_the_autocast_in_which_it_was_captured(dtype):
    """Autocast frees its casts of weights at its end: a graph must not read them."""
    model = prepare_for_sampling(build(model_type="hybrid").cuda(), dtype)
    steps = model.generate([[1, 2, 3]], 9, temperature=0.0)
    with torch.autocast("cuda", dtype=dtype):
        next(steps)
        next(steps)  # this step captures
        whole = [token for token, in model.generate([[1, 2, 3]], 9, temperature=0.0)]
    filler = [torch.randn(2 ** 16, device="cuda") for _ in range(64)]  # takes the memory that autocast has freed
    with torch.autocast("cuda", dtype=dtype):
        rest = [token for token, in steps]
    assert rest == whole[2:] and filler

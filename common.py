"""
What several scripts need: safe files, data and tokenizer, checkpoints, device and dtype, the order of the data.
"""
import base64
import codecs
import contextlib
import csv
import functools
import json
import os
import time

import numpy as np
import tiktoken
import torch

from configurator import fail
from model import LanguageModel, ModelConfig

END_OF_TEXT = "<|endoftext|>"

# ------------------------------------------------------------------------------------------------------------
# files

@contextlib.contextmanager
def replacing(path, mode="wb"):
    """Write to a temporary file beside `path` that takes its place at the end; if that fails, `path` stays as
    it was.

    A disk that is full or a folder that cannot be written to ends the program with one line, status 1.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # on the disk before the old file goes
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        fail(f"cannot write {path}: {(e.strerror or str(e)).lower()}", status=1)


# ------------------------------------------------------------------------------------------------------------
# data: a folder with train.bin, val.bin, meta.json and tokenizer.tiktoken, made by prepare.py

def load_meta(folder):
    """meta.json as a dict, with the tokenizer's rank file under "ranks", so that a checkpoint can carry
    both."""
    try:
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as f:
            meta = json.load(f)
        with open(os.path.join(folder, "tokenizer.tiktoken"), encoding="utf-8") as f:
            return meta | {"ranks": f.read()}
    except (OSError, ValueError) as e:
        name = os.path.basename(folder)
        fail(f"no usable dataset in {folder} ({e}); make it with: python prepare.py --dataset={name}")


def load_tokens(folder, split, meta):
    """The token ids of a split ("train" or "val") as a read-only array on disk, shape (tokens,)."""
    path = os.path.join(folder, f"{split}.bin")
    dtype, n_tokens = np.dtype(meta["dtype"]), meta[split]["tokens"]
    n_bytes = os.path.getsize(path) if os.path.exists(path) else 0
    if n_bytes != n_tokens * dtype.itemsize or n_tokens == 0:
        fail(f"{path} has {n_bytes} bytes, meta.json says {n_tokens * dtype.itemsize}: run prepare.py again")
    return np.memmap(path, dtype=dtype, mode="r")


def build_tokenizer(meta):
    """The tiktoken.Encoding of a dataset's (or checkpoint's) meta: byte pairs by rank, and end of text."""
    ranks = dict(line.split() for line in meta["ranks"].splitlines())
    return tiktoken.Encoding(meta["tokenizer"], pat_str=meta["pattern"], special_tokens={END_OF_TEXT: meta["eot_id"]},
                             mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in ranks.items()})


def stream_text(tokenizer, tokens):
    """Text, piece by piece, of an iterable of token ids: a character of several tokens comes when it is
    complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


@functools.lru_cache(maxsize=2)
def epoch_starts(n_tokens, block_size, seed, epoch):
    """Starts of the windows of one epoch, shape (n,): every window once, in an order drawn from seed and
    epoch.

    Windows do not overlap. Each epoch cuts the text at another offset, so that no token always opens a
    window.
    """
    rng = np.random.default_rng((seed, epoch))
    offset = rng.integers(min(block_size, n_tokens - block_size))  # x and its targets take block_size + 1 tokens
    return offset + block_size * rng.permutation((n_tokens - 1 - offset) // block_size)


def training_windows(n_tokens, block_size, seed, position, count):
    """Starts of `count` windows from `position` on in the endless sequence of epochs, and the position after
    them.

    A position is a pair (epoch, windows of it already seen); it is all that a resumed run needs.
    """
    epoch, seen = position
    starts = []
    while len(starts) < count:
        order = epoch_starts(n_tokens, block_size, seed, epoch)
        taken = order[seen:seen + count - len(starts)]
        starts.extend(taken)
        seen += len(taken)
        if seen == len(order):
            epoch, seen = epoch + 1, 0
    return starts, (epoch, seen)


def validation_windows(n_tokens, block_size, count):
    """Starts of `count` windows that never change (all there are, if fewer), whatever the seed or the batch
    size."""
    rng = np.random.default_rng(20240902)  # evaluation has a generator of its own
    return np.sort(block_size * rng.permutation((n_tokens - 1) // block_size)[:count])


def get_batch(data, starts, block_size, device, vocab_size):
    """Token ids idx and, shifted by one, targets, both (len(starts), block_size) int64 on `device`."""
    tokens = torch.from_numpy(np.stack([data[i:i + block_size + 1] for i in starts]).astype(np.int64))  # (B, T+1)
    if tokens.max() >= vocab_size:
        fail(f"the data holds token {tokens.max()}, but vocab_size is {vocab_size}: run prepare.py again")
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    else:
        tokens = tokens.to(device)
    return tokens[:, :-1], tokens[:, 1:]


def plot_log(log_path, image_path):
    """Draw the losses of a log.csv over tokens; without matplotlib it does nothing and says so."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {image_path}: it needs matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    with open(log_path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    fig, ax = plt.subplots(figsize=(7, 4.5))
    for column, style in ("train_loss", dict(lw=0.8, alpha=0.6)), ("val_loss", dict(marker="o", ms=3)):
        points = [(int(row["tokens"]) / 1e6, float(row[column])) for row in rows if row[column]]
        ax.plot(*zip(*points), label=column.replace("_", " "), **style)
    ax.set(xlabel="million tokens", ylabel="loss, nats a token")
    ax.grid(alpha=0.3)
    ax.legend()
    with replacing(image_path) as f:
        fig.savefig(f, format="png", dpi=120, bbox_inches="tight")
    plt.close(fig)


# ------------------------------------------------------------------------------------------------------------
# device and checkpoints

def choose_device(name):
    """torch.device for "auto" (CUDA, then MPS, then CPU) or a name; one that this machine lacks is an
    error."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        fail(f"device {name!r} is not available here; --device=auto takes the best one that is")
    return device


def choose_dtype(name, device):
    """torch.dtype of the matmuls for "auto" or a name: bfloat16 where it is fast, on CUDA else float16, else
    float32."""
    bf16 = {"cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: torch.cpu.get_capabilities().get("amx_bf16") or torch.cpu.get_capabilities().get("avx512_bf16"),
            "mps": lambda: False}
    if name == "auto":
        fast = bf16.get(device.type, bool)()
        name = "bfloat16" if fast else "float16" if device.type == "cuda" else "float32"
    if name not in ("float32", "bfloat16", "float16"):
        fail(f"dtype {name!r} is not one of auto, float32, bfloat16, float16")
    if name == "float16" and device.type != "cuda":
        fail("dtype 'float16' needs a CUDA device; --dtype=auto takes what is fast here")
    return getattr(torch, name)


def autocast(device, dtype):
    """Context in which matmuls run in dtype; float32 switches it off."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def measure_peak_flops(device, dtype, size=2048):
    """FLOP/s of a large matmul on this machine (best of 5): what model FLOP utilisation is a share of."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best


def load_checkpoint(path):
    """What train.py saved, on the CPU; weights_only: a file that carries code is refused and runs nothing."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        ModelConfig(**checkpoint["model_config"])
        return checkpoint
    except FileNotFoundError:
        fail(f"no checkpoint {path}; train one first: python train.py config/mixer_tiny.py")
    except Exception as e:  # torch.load raises a dozen types on a damaged file
        fail(f"{path} is damaged or no checkpoint of this project ({type(e).__name__}); best.pt beside it may be whole")


def load_model(path, device):
    """(model in eval mode on device, tokenizer, checkpoint) of a checkpoint file."""
    checkpoint = load_checkpoint(path)
    model = LanguageModel(ModelConfig(**checkpoint["model_config"]))
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as e:
        fail(f"{path} does not fit its own model_config: {str(e).splitlines()[-1].strip()}")
    return model.to(device).eval(), build_tokenizer(checkpoint["meta"]), checkpoint

"""
A prepared dataset: its tokens, its tokenizer, and the order in which windows of tokens are read.

It is a folder with train.bin, val.bin, meta.json and tokenizer.tiktoken, made by prepare.py.
"""
import base64
import codecs
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import tiktoken
import torch

from configurator import fail

END_OF_TEXT = "<|endoftext|>"


@contextlib.contextmanager
def replacing_folder(folder, files):
    """A temporary folder that takes the place of `folder` at the end; `files` are the names of a dataset's
    files. Interrupted or out of disk, the program ends with one line, and `folder` stays as it was."""
    temporary, old = f"{folder}.tmp", f"{folder}.old"  # they are left over only where a run was killed
    try:
        if os.path.exists(folder) and not set(os.listdir(folder)) <= files:
            fail(f"{folder} holds files that are not a dataset's: move them, or give --dataset=NAME")
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        try:
            yield temporary
            if os.path.exists(folder):
                shutil.rmtree(old, ignore_errors=True)
                os.rename(folder, old)
            os.rename(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        fail(f"cannot write {folder}: {(e.strerror or str(e)).lower()}", status=1)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", status=130)


def put_back(folder):
    """A prepare.py that was killed between the two renames of replacing_folder left the dataset beside its
    name: give it that again."""
    if not os.path.exists(folder) and os.path.exists(f"{folder}.old"):
        os.rename(f"{folder}.old", folder)


def prepare_missing(folder, argument):
    """Have prepare.py make the embedded dataset `folder`, which its argument names, if it is not there."""
    put_back(folder)
    if not os.path.exists(os.path.join(folder, "meta.json")):
        print(f"{folder} is missing: preparing it from the Python source on this machine", flush=True)
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prepare.py")
        data_dir = f"--data_dir={os.path.dirname(folder)}"
        if status := subprocess.run([sys.executable, script, argument, data_dir]).returncode:
            raise SystemExit(status)  # prepare.py has said why


def crc32(path):
    """The checksum of a file."""
    sum_so_far = 0
    with open(path, "rb") as f:
        while block := f.read(2 ** 22):
            sum_so_far = zlib.crc32(block, sum_so_far)
    return sum_so_far


def write_meta(folder, meta):
    """Write meta.json, with checksums of itself and of all files that are in the folder."""
    sums = {name: crc32(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    sums["meta.json"] = zlib.crc32(json.dumps(meta).encode())
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8", newline="\n") as f:
        json.dump(meta | {"crc32": sums}, f, indent=1)


def load_meta(folder):
    """meta.json as a dict, with the tokenizer's rank file under "ranks": a checkpoint carries both."""
    path = Path(folder, "tokenizer.tiktoken")
    try:
        put_back(folder)
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as f:
            meta = json.load(f)
        sums = meta.pop("crc32")
        if sums["meta.json"] != zlib.crc32(json.dumps(meta).encode()) or sums[path.name] != crc32(path):
            raise ValueError("wrong checksum")
        with open(path, encoding="utf-8") as f:
            return meta | {"crc32": sums, "ranks": f.read()}
    except FileNotFoundError:
        command = f"python prepare.py --dataset={os.path.basename(folder)}"
        fail(f"no dataset in {folder}; make it: {command}, with --input=FILE if the text is your own")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        fail(f"meta.json or tokenizer.tiktoken in {folder} is damaged ({e}): run prepare.py again")


def load_tokens(folder, split, meta):
    """The token ids of a split, "train" or "val", as an array on disk, shape (tokens,)."""
    path = os.path.join(folder, f"{split}.bin")
    dtype, n_tokens = np.dtype(meta["dtype"]), meta[split]["tokens"]
    n_bytes = os.path.getsize(path) if os.path.exists(path) else 0
    if n_bytes != n_tokens * dtype.itemsize or n_tokens == 0:
        fail(f"{path} has {n_bytes} bytes, but should have {n_tokens * dtype.itemsize}: run prepare.py again")
    if crc32(path) != meta["crc32"][f"{split}.bin"]:
        fail(f"{path} is damaged, its checksum is wrong: run prepare.py again")
    return np.memmap(path, dtype=dtype, mode="r")


def build_tokenizer(meta):
    """The tiktoken.Encoding that meta, of a dataset or a checkpoint, describes."""
    ranks = dict(line.split() for line in meta["ranks"].splitlines())
    return tiktoken.Encoding(
        meta["tokenizer"], pat_str=meta["pattern"], special_tokens={END_OF_TEXT: meta["eot_id"]},
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in ranks.items()})


def stream_text(tokenizer, tokens):
    """Text of an iterable of token ids, in pieces: a character of several tokens comes when it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


@functools.lru_cache(maxsize=2)
def epoch_starts(n_tokens, block_size, seed, epoch):
    """Starts of the windows of one epoch, (n,): each window once, in an order drawn from seed and epoch.

    Windows do not overlap, and each epoch cuts the text at another offset, so that a token comes to stand at
    every position. Takes n_tokens > 2 * block_size.
    """
    rng = np.random.default_rng((seed, epoch))
    offset = rng.integers(block_size)
    n_windows = (n_tokens - 1 - offset) // block_size  # the last target is one token after its window
    return offset + block_size * rng.permutation(n_windows)


def training_windows(n_tokens, block_size, seed, position, count):
    """Starts of `count` windows from `position` on in the endless sequence of epochs, and the next position.

    A position is (epoch, windows of it that are used up): all that a resumed run needs to know.
    """
    epoch, used = position
    starts = []
    while True:
        order = epoch_starts(n_tokens, block_size, seed, epoch)
        taken = order[used:used + count - len(starts)].tolist()
        starts, used = starts + taken, used + len(taken)
        if len(starts) == count:
            return starts, (epoch, used)
        epoch, used = epoch + 1, 0


def validation_windows(n_tokens, block_size, count):
    """Starts of `count` windows (all there are, if fewer): the same for every seed, batch size and model."""
    rng = np.random.default_rng(20240902)  # a generator of its own: evaluation leaves all else as it was
    return block_size * np.sort(rng.permutation((n_tokens - 1) // block_size)[:count])


def get_batch(data, starts, block_size, device):
    """Token ids idx and, one further, targets: both (len(starts), block_size), int64, on `device`."""
    tokens = np.stack([data[start:start + block_size + 1] for start in starts])           # (B, T + 1)
    tokens = torch.from_numpy(tokens.astype(np.int64))
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)  # the copy runs beside the computation
    else:
        tokens = tokens.to(device)
    return tokens[:, :-1], tokens[:, 1:]

"""
A prepared dataset: its tokens, its tokenizer, and the order in which windows of tokens are read.

It is a folder with train.bin, val.bin, meta.json and tokenizer.tiktoken, which prepare.py makes.
"""
import base64
import codecs
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import tiktoken

from configurator import HERE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

END_OF_TEXT = "<|endoftext|>"
PROGRESS = "progress.json"  # says, in a temporary folder, how far an interrupted prepare.py got
PIECE_BYTES = 2 ** 26  # size of a piece of a token file; each piece has a checksum of its own
LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory")  # file managers leave these


def try_lock(path):
    """The open file `path`, locked until it is closed, or None while another process holds the lock.

    The file may be removed before it is closed. Windows has no such locks: there, every process gets one.
    """
    if not fcntl:
        return open(os.devnull, encoding="utf-8")
    file = open(path, "w", encoding="utf-8")
    with contextlib.suppress(BlockingIOError, PermissionError, FileNotFoundError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):  # its last holder has not just removed it
            return file
    file.close()
    return None


@contextlib.contextmanager
def locking(folder):
    """Hold the lock of a dataset's folder, a file beside it. Waits while another process holds it."""
    path = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.lock")
    file = try_lock(path)
    if not file:
        print(f"another process is making {folder}: waiting for it", flush=True)
    while not file:
        time.sleep(0.1)
        file = try_lock(path)
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)


def load_progress(folder, options):
    """The progress that save_progress has saved for the same options; {} if there is none."""
    try:
        progress = json.loads(Path(folder, PROGRESS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return progress if progress["options"] == options else {}


def save_progress(folder, progress):
    """Save a dict, with the options of the work among its keys, so that the work can go on after an interruption."""
    temporary = os.path.join(folder, "meta.json")  # write_meta will replace it, if it is left over
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(progress, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, os.path.join(folder, PROGRESS))


@contextlib.contextmanager
def replacing_folder(folder, files, options=None):
    """A temporary folder that takes the place of `folder`, whole, at the end; a link to a folder stays a link.

    It is removed if the work fails, unless there is progress: then the next call with the same options goes on in it.
    Raises ValueError if `folder` holds other files than `files`, the names a dataset may hold, and OSError if it
    cannot be written.
    """
    real = os.path.realpath(folder)
    temporary, old = f"{real}.tmp", f"{real}.old"  # a run that was killed may have left them
    if os.path.ismount(real):
        raise ValueError(f"{folder} is a whole disk, which cannot be replaced: use a folder on it")
    try:
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with locking(real):
            names = os.listdir(real) if os.path.exists(real) else []
            if any(name not in files and not LITTER.fullmatch(name) for name in names):
                raise ValueError(f"{folder} holds files that are not a dataset's: move them, or give --dataset=NAME")
            if not load_progress(temporary, options):
                shutil.rmtree(temporary, ignore_errors=True)
            os.makedirs(temporary, exist_ok=True)
            progress = Path(temporary, PROGRESS)
            try:
                yield temporary
                if os.path.exists(real):
                    shutil.rmtree(old, ignore_errors=True)
                    os.rename(real, old)
                progress.unlink(missing_ok=True)
                os.rename(temporary, real)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                if progress.exists():
                    print(f"{temporary} keeps what is done: the same command goes on from there", flush=True)
                else:
                    shutil.rmtree(temporary, ignore_errors=True)
    except ConnectionError:
        raise
    except OSError as e:
        raise OSError(f"cannot write {folder}: {(e.strerror or str(e)).lower()}") from None


def put_back(folder):
    """Give a dataset its name again, if prepare.py was killed between the two renames of replacing_folder."""
    real = os.path.realpath(folder)
    if not os.path.exists(real) and os.path.exists(f"{real}.old"):
        with locking(real):  # prepare.py may still be at work
            if not os.path.exists(real):
                os.rename(f"{real}.old", real)


def prepare_missing(folder, argument):
    """Run prepare.py with an argument that makes `folder`, if it is not there. Raises ChildProcessError."""
    put_back(folder)
    if not os.path.exists(os.path.join(folder, "meta.json")):
        print(f"{folder} is missing: preparing it from the Python source on this machine", flush=True)
        command = [sys.executable, os.path.join(HERE, "prepare.py"), argument, f"--data_dir={os.path.dirname(folder)}"]
        if subprocess.run(command).returncode:
            raise ChildProcessError("prepare.py has failed, as it says above")


def checksums(path):
    """(the checksum of a file, the list of the checksums of its pieces)"""
    whole, pieces = 0, []
    with open(path, "rb") as f:
        while piece := f.read(PIECE_BYTES):
            whole = zlib.crc32(piece, whole)
            pieces.append(zlib.crc32(piece))
    return whole, pieces


def crc32(path):
    """The checksum of a file."""
    return checksums(path)[0]


def crc32_of_piece(path, number):
    """The checksum of one piece of a file; the first piece has number 0."""
    with open(path, "rb") as f:
        f.seek(number * PIECE_BYTES)
        return zlib.crc32(f.read(PIECE_BYTES))


def write_meta(folder, meta):
    """Write meta.json, with checksums of it, of all other files in the folder, and of their pieces."""
    sums, pieces = {}, {}
    for name in sorted({*os.listdir(folder)} - {PROGRESS, "meta.json"}):
        sums[name], pieces[name] = checksums(os.path.join(folder, name))
    sums["meta.json"] = zlib.crc32(json.dumps(meta).encode())
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8", newline="\n") as f:
        json.dump(meta | {"pieces": pieces, "crc32": sums}, f, indent=1)


def text_sums(meta):
    """The checksums of the tokens and the tokenizer, without that of meta.json, which names the folder of the text."""
    return {name: checksum for name, checksum in meta["crc32"].items() if name != "meta.json"}


def load_meta(folder):
    """meta.json as a dict, with the text of tokenizer.tiktoken under "ranks".

    Raises FileNotFoundError if there is no dataset, and ValueError if it is damaged.
    """
    path = Path(folder, "tokenizer.tiktoken")
    try:
        put_back(folder)
        meta = json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))
        sums, pieces = meta.pop("crc32"), meta.pop("pieces", {})  # older datasets have no checksums of pieces
        if sums["meta.json"] != zlib.crc32(json.dumps(meta).encode()) or sums[path.name] != crc32(path):
            raise ValueError("wrong checksum")
        return meta | {"pieces": pieces, "crc32": sums, "ranks": path.read_text(encoding="utf-8")}
    except FileNotFoundError:
        command = f"python prepare.py --dataset={os.path.basename(folder)}"
        raise FileNotFoundError(f"no dataset in {folder}; make it: {command}, with --input=FILE if the text is "
                                "your own") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"meta.json or tokenizer.tiktoken in {folder} is damaged ({e}): run prepare.py "
                         "again") from None


def is_damaged(path, meta, check):
    """Whether the checksums of a token file are wrong. A "sample" is four pieces of the file, "all" is all of it."""
    name = os.path.basename(path)
    pieces = meta.get("pieces", {}).get(name)
    if not pieces:  # an older prepare.py wrote none
        return crc32(path) != meta["crc32"][name]
    numbers = range(len(pieces))
    if check == "sample" and len(pieces) > 4:
        others = np.random.default_rng(0).choice(numbers[1:-1], 2, replace=False)
        numbers = [0, *others, len(pieces) - 1]
    return any(crc32_of_piece(path, number) != pieces[number] for number in numbers)


def load_tokens(folder, split, meta, check="sample"):
    """The token ids of a split, "train" or "val": an array on disk, (tokens,). Raises ValueError if it is damaged.

    It always checks the size. `check` says how much it reads to compare checksums: "none", "sample" or "all".
    """
    path = os.path.join(folder, f"{split}.bin")
    dtype, n_tokens = np.dtype(meta["dtype"]), meta[split]["tokens"]
    n_bytes = os.path.getsize(path) if os.path.exists(path) else 0
    if n_bytes != n_tokens * dtype.itemsize or n_tokens == 0:
        raise ValueError(f"{path} has {n_bytes} bytes, but should have {n_tokens * dtype.itemsize}: run "
                         "prepare.py again")
    if check != "none" and is_damaged(path, meta, check):
        raise ValueError(f"{path} is damaged, its checksum is wrong: run prepare.py again")
    return np.memmap(path, dtype=dtype, mode="r")


def build_tokenizer(meta):
    """The tiktoken.Encoding of a dataset's or a checkpoint's meta."""
    ranks = dict(line.split() for line in meta["ranks"].splitlines())
    return tiktoken.Encoding(
        meta["tokenizer"], pat_str=meta["pattern"], special_tokens={END_OF_TEXT: meta["eot_id"]},
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in ranks.items()})


def stream_text(tokenizer, tokens):
    """The text of an iterable of token ids, in pieces; a character comes with the last of its tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)


def document_starts(tokens, end_of_text):
    """Where the documents of a split begin, (documents,) int64: at its first token, and behind each end of text.

    Returns None if end_of_text is None, for windows that are packed.
    """
    if end_of_text is None:
        return None
    size = PIECE_BYTES  # tokens that are compared at a time, as a long text may not fit into memory
    ends = [i + np.flatnonzero(tokens[i:i + size] == end_of_text) for i in range(0, len(tokens), size)]
    return np.concatenate([[0], 1 + np.concatenate(ends)[:-1]])  # no document follows the last end of text


@functools.lru_cache(maxsize=1)
def epoch_order(n_tokens, block_size, seed, epoch):
    """(offset of the first window, numbers of the windows of one epoch in random order, (n,)).

    Windows do not overlap. Each epoch cuts the text at another offset, so that a token comes to every position.
    """
    rng = np.random.default_rng((seed, epoch))
    offset = int(rng.integers(block_size))
    n_windows = (n_tokens - 1 - offset) // block_size  # the last target is one token after its window
    order = np.arange(n_windows, dtype=np.uint32)  # half the memory of rng.permutation(n_windows), in the same order
    rng.shuffle(order)
    return offset, order


def epoch_starts(n_tokens, block_size, seed, epoch, first=0, last=None):
    """Starts of the windows from place `first` to `last` in the order of an epoch, (n,), all of them by default.

    n_tokens must be more than 2 * block_size.
    """
    offset, order = epoch_order(n_tokens, block_size, seed, epoch)
    return offset + block_size * order[first:last].astype(np.int64)


def training_windows(n_tokens, block_size, seed, position, count, documents=None):
    """Starts of the next `count` windows, and the position after them: (epoch, number of its windows used so far).

    With `documents`, where all documents start (n,), a window begins with a document, and an epoch has them all.
    """
    if documents is not None:  # draw numbers of documents as if they were windows of one token
        numbers, position = training_windows(len(documents) + 1, 1, seed, position, count)
        return documents[numbers].tolist(), position
    starts, (epoch, used) = [], position
    while True:
        taken = epoch_starts(n_tokens, block_size, seed, epoch, used, used + count - len(starts)).tolist()
        starts, used = starts + taken, used + len(taken)
        if len(starts) == count:
            return starts, (epoch, used)
        epoch, used = epoch + 1, 0


def validation_windows(n_tokens, block_size, count, documents=None):
    """Starts of `count` windows, or of all if there are fewer: the same ones for every seed and model.

    With `documents`, where all documents start (n,), a window begins with a document.
    """
    if documents is not None:  # draw numbers of documents as if they were windows of one token
        return documents[validation_windows(len(documents) + 1, 1, count)]
    rng = np.random.default_rng(20240902)  # a generator of its own, so that evaluation changes nothing else
    return block_size * np.sort(rng.permutation((n_tokens - 1) // block_size)[:count])

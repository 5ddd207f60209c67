"""
Turns text into the token files that train.py reads.

    python prepare.py                                   # the embedded dataset: Python source on this machine
    python prepare.py --dataset=tinystories             # from the Hugging Face hub
    python prepare.py --dataset=fineweb_edu --max_mb=1000
    python prepare.py --input=stories.txt --dataset=mine --tokenizer=byte

--input is a text file (with <|endoftext|> between its documents), a .jsonl or .parquet file, or a folder of
.txt files. Written into data/<dataset>/, all at once when everything is done:

    train.bin, val.bin   token ids, uint16 or uint32; an end-of-text id follows each document
    tokenizer.tiktoken   the tokenizer: a line `base64(bytes) id` for each token
    meta.json            sizes, dtype, end-of-text id, and the regex that splits text before it is tokenized

The same text gives the same files. Memory stays flat however long the text, if no single document is huge.
"""
import base64
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

from configurator import configure, fail
from dataset import END_OF_TEXT, build_tokenizer

# defaults: change one with --key=value
dataset = "python"                  # python, tinystories, fineweb_edu, finemath; with --input, any name
input = ""                          # text file, .jsonl, .parquet or folder of .txt files of your own
tokenizer = "bpe"                   # bpe (trained on the text), byte, or of tiktoken: gpt2, cl100k_base, ...
vocab_size = 4096                   # of bpe: number of ids, end of text included
text_key = "text"                   # where .jsonl or .parquet hold the text
val_fraction: float | str = "auto"  # share of documents held out; auto: 0.1, of huge hub datasets 0.005
max_mb = 0                          # stop after this many MB of training text; 0: take all
data_dir = "data"                   # folder of the datasets
# end of defaults

# On the Hugging Face hub: arguments of datasets.load_dataset, column of the text, and validation split, which
# is "" where there is none and val_fraction of the documents is held out.
HUB = {
    "tinystories": ({"path": "roneneldan/TinyStories"}, "text", "validation"),
    "fineweb_edu": ({"path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT"}, "text", ""),
    "finemath": ({"path": "HuggingFaceTB/finemath", "name": "finemath-4plus"}, "text", ""),
}

# The dataset `python` leaves out tests, tables of data, and copies of packages that are installed anyway.
SKIPPED = re.compile(r"(^|/)(tests?|testing|benchmarks|encodings|pydoc_data|idlelib|lib2to3|_vendor"
                     r"|site-packages|dist-packages)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$")

# Byte pairs are merged only inside the pieces that this regex finds. A word takes one character along (a
# space, but also the dot of `.append`), of several spaces the last is left to the word, newlines end a piece.
# The bounds of 256 are there because regex engines give up on a million spaces in a row.
PATTERN = (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s{0,256}[\r\n]+|\s{1,256}(?!\S)|\s")

MIN_DOCUMENTS = 100      # of fewer, each is cut in two: hashing a handful would give lopsided splits
TOKENIZER_MB = 200       # of text are enough to train a tokenizer
PIECE_BYTES = 2 ** 20    # of a file are read at a time
BATCH_CHARS = 8_000_000  # of text are held and encoded at a time
FILES = {"train.bin", "val.bin", "tokenizer.tiktoken", "meta.json"}


class Unusable(Exception):
    """Text or folder that cannot be used: a line for the user, and an exit status if it is not 2.

    Raised rather than printed, so that a progress bar is closed before the line appears.
    """


# ------------------------------------------------------------------------------------------------------------
# reading: generators of documents; they raise Unusable

def read_pieces(path):
    """A text file, some whole lines at a time; their line ends stay, a byte order mark at the start goes."""
    offset = 0
    try:
        with open(path, "rb") as f:
            while lines := f.readlines(PIECE_BYTES):
                piece = b"".join(lines)
                yield piece.decode() if offset else piece.decode().removeprefix("\ufeff")
                offset += len(piece)
    except UnicodeDecodeError as e:
        raise Unusable(f"{path} is not UTF-8 text: wrong byte at offset {offset + e.start}") from None
    except OSError as e:
        raise Unusable(f"cannot read {path}: {e.strerror.lower()}") from None


def read_text(path):
    """What stands between end-of-text separators, less the newlines around it."""
    parts = []
    for piece in read_pieces(path):
        *ends, rest = piece.split(END_OF_TEXT)
        for end in ends:
            yield "".join([*parts, end]).strip("\r\n")
            parts = []
        parts.append(rest)
    yield "".join(parts).strip("\r\n")


def read_jsonl(path, text_key):
    """The text of one JSON object a line."""
    lines = (line for piece in read_pieces(path) for line in io.StringIO(piece, newline="\n"))
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line) if line.strip() else {text_key: ""}
        except (ValueError, RecursionError) as e:
            raise Unusable(f"{where} is not JSON: {getattr(e, 'msg', e)}") from None
        if not isinstance(row, dict):
            raise Unusable(f"{where} is not a JSON object like {{{json.dumps(text_key)}: ...}}")
        yield text_of(row, text_key, where)


def read_rows(load, split, text_key, problem, status):
    """The text of the rows that datasets.load_dataset(**load) streams; `problem` begins the error line."""
    try:
        import datasets
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its retries
        for row in datasets.load_dataset(**load, split=split, streaming=True):
            yield text_of(row, text_key, load["path"])
    except ImportError:
        raise Unusable(f"{problem}: it takes pip install datasets", 1) from None
    except Unusable:
        raise
    except Exception as e:  # hub, HTTP and file formats have a dozen types
        raise Unusable(f"{problem}: {(str(e) or type(e).__name__).splitlines()[0]}", status) from None


def text_of(row, text_key, where):
    """The text of a row (a dict), "" for a missing value."""
    text = row.get(text_key)
    if text_key not in row:
        raise Unusable(f"{where}: no {text_key!r} among the keys {', '.join(row)}; give --text_key=KEY")
    if not isinstance(text, str | None):
        raise Unusable(f"{where}: {text_key!r} is not text, but {type(text).__name__}")
    if text and re.search("[\ud800-\udfff]", text):  # JSON can name half a character, UTF-8 cannot hold it
        raise Unusable(f"{where}: {text_key!r} holds half of a surrogate pair")
    return text or ""


def read_input(path, text_key):
    """Documents of a file, by its ending, or of all .txt files in a folder and its subfolders."""
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"), key=Path.as_posix)
    for file in files:
        match file.suffix.lower():
            case ".jsonl":
                yield from read_jsonl(file, text_key)
            case ".parquet":
                load = {"path": "parquet", "data_files": str(file)}
                yield from read_rows(load, "train", text_key, f"cannot read {file}", status=2)
            case _:
                yield from read_text(file)


# ------------------------------------------------------------------------------------------------------------
# splitting: generators of (side, document), where side is "train" or "val"

def choose_side(key, val_fraction):
    """"val" for about val_fraction of all keys (bytes), by a hash, so that all machines agree."""
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return "val" if number < val_fraction * 2 ** 64 else "train"


def split_documents(documents, val_fraction):
    """By a hash of the text, so that no text is on both sides; few documents are each cut in two."""
    documents = (text for text in documents if text.strip())
    first = list(itertools.islice(documents, MIN_DOCUMENTS))
    if len(first) == MIN_DOCUMENTS:
        for text in itertools.chain(first, documents):
            yield choose_side(text.encode(), val_fraction), text
    else:
        for text in first:
            cut = round(len(text) * (1 - val_fraction))
            yield "train", text[:cut]
            yield "val", text[cut:]


def python_roots():
    """Folders of the Python source on this machine: the standard library and the installed packages."""
    return dict.fromkeys(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib"))


def split_python(val_fraction):
    """One document a file, its side by its path below the root; a text that came before is left out."""
    seen = set()
    for root in python_roots():
        paths = [file.relative_to(root).as_posix() for file in root.rglob("*.py")]
        for path in sorted(path for path in paths if not SKIPPED.search(path)):
            try:
                text = (root / path).read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError):
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield choose_side(os.fsencode(path), val_fraction), text


def split_hub(name, val_fraction):
    """A dataset of HUB; its own validation split, if it has one, comes first."""
    load, text_key, val = HUB[name]
    problem = f"cannot load {name} from the hub (text of your own needs no network: --input=FILE)"
    read = partial(read_rows, load, text_key=text_key, problem=problem, status=1)
    if val:
        yield from (("val", text) for text in read(split=val))
        yield from (("train", text) for text in read(split="train"))
    else:
        yield from split_documents(read(split="train"), val_fraction)


def first_mb(documents, max_mb):
    """Those with text, until max_mb (10^6 bytes) of training text have come, or all if max_mb is 0."""
    n_bytes = 0
    for side, text in documents:
        if text.strip():
            yield side, text
        n_bytes += len(text.encode()) if side == "train" else 0
        if 0 < max_mb * 1e6 <= n_bytes:
            break


# ------------------------------------------------------------------------------------------------------------
# tokenizing and writing

def make_tokenizer(name, vocab_size, texts):
    """What common.build_tokenizer takes, as a dict. "bpe" is trained on `texts`, an iterable of str."""
    pattern = PATTERN
    if name == "bpe":
        import rustbpe
        trained = rustbpe.Tokenizer()
        trained.train_from_iterator(texts, vocab_size - 1, buffer_size=512, pattern=pattern)
        ranks = {bytes(token): rank for token, rank in trained.get_mergeable_ranks()}
        eot_id = len(ranks)
    elif name == "byte":
        ranks = {bytes([i]): i for i in range(256)}
        eot_id = 256
    else:
        try:
            encoding = tiktoken.get_encoding(name)
        except Exception as e:  # no network, a damaged download
            raise Unusable(f"cannot get tokenizer {name} ({type(e).__name__}); bpe and byte need no download",
                           1) from None
        ranks, pattern, eot_id = encoding._mergeable_ranks, encoding._pat_str, encoding.eot_token
    lines = [f"{base64.b64encode(token).decode()} {ranks[token]}\n" for token in sorted(ranks, key=ranks.get)]
    vocab_size = max(eot_id, *ranks.values()) + 1  # cl100k_base has a gap before its end of text
    return {"tokenizer": name, "pattern": pattern, "ranks": "".join(lines), "eot_id": eot_id,
            "vocab_size": vocab_size, "dtype": "uint16" if vocab_size <= 2 ** 16 else "uint32"}


def batches(documents):
    """Lists of (side, document) of about BATCH_CHARS characters."""
    batch, n_chars = [], 0
    for side, text in documents:
        batch.append((side, text))
        n_chars += len(text)
        if n_chars >= BATCH_CHARS:
            yield batch
            batch, n_chars = [], 0
    yield batch


def encode_documents(documents, meta, folder):
    """Write train.bin and val.bin into folder. Returns {side: {"tokens", "documents", "bytes" of UTF-8}}."""
    encode = partial(build_tokenizer(meta).encode_to_numpy, disallowed_special=())  # all text is plain text
    counts = {side: {"tokens": 0, "documents": 0, "bytes": 0} for side in ("train", "val")}
    with (open(f"{folder}/train.bin", "wb") as train, open(f"{folder}/val.bin", "wb") as val,
          ThreadPoolExecutor(os.cpu_count()) as pool,
          tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as bar):
        for batch in batches(documents):
            for (side, text), ids in zip(batch, pool.map(encode, [text for _, text in batch])):
                file = train if side == "train" else val
                file.write(np.append(ids, meta["eot_id"]).astype(meta["dtype"]))
                n_bytes = len(text.encode())
                bar.update(n_bytes)
                for key, n in (("tokens", len(ids) + 1), ("documents", 1), ("bytes", n_bytes)):
                    counts[side][key] += n
    return counts


# ------------------------------------------------------------------------------------------------------------
# all together

def write_dataset(split, tokenizer, vocab_size, max_mb, folder):
    """Write tokenizer and tokens into folder. split() starts the (side, document) anew. Returns the meta."""
    documents = first_mb(split(), min(max_mb or TOKENIZER_MB, TOKENIZER_MB))
    documents = tqdm(documents, desc="reading for the tokenizer", unit=" documents", disable=None)
    meta = make_tokenizer(tokenizer, vocab_size, (text for side, text in documents if side == "train"))
    try:
        meta |= encode_documents(first_mb(split(), max_mb), meta, folder)
    except ValueError as e:
        raise Unusable(f"tokenizer {tokenizer} cannot encode this text: {e}") from None
    for side in ("train", "val"):
        if not meta[side]["documents"]:
            raise Unusable(f"the {side} split is empty: give more text, or another --val_fraction")
    with open(f"{folder}/tokenizer.tiktoken", "w", encoding="utf-8", newline="\n") as f:
        f.write(meta.pop("ranks"))
    return meta


def prepare(dataset, input, tokenizer, vocab_size, text_key, val_fraction, max_mb, data_dir):
    """Make the dataset that the settings describe and return its meta; an error ends the program."""
    options = dict(locals())
    tokenizers = ["bpe", "byte", *tiktoken.list_encoding_names()]
    if tokenizer not in tokenizers:
        fail(f"unknown tokenizer {tokenizer!r}; there are {', '.join(tokenizers)}")
    if tokenizer == "bpe" and not 257 < vocab_size <= 2 ** 20:
        fail(f"vocab_size is {vocab_size}, but goes from 258 (256 bytes, a merge, end of text) to {2 ** 20}")
    if val_fraction == "auto":
        val_fraction = 0.005 if dataset in HUB and not input else 0.1
    if isinstance(val_fraction, str) or not 0 < val_fraction < 1:
        fail(f"val_fraction is {val_fraction}, but lies between 0 and 1")
    if max_mb < 0:
        fail(f"max_mb is {max_mb}; 0 takes all text")
    source = input or (HUB[dataset][0]["path"] if dataset in HUB else "Python source")
    if input:
        path = Path(os.path.expanduser(input)).resolve()
        if not os.path.isfile(path) and not (os.path.isdir(path) and any(path.rglob("*.txt"))):
            fail(f"no file {input}, and no folder with .txt files")
        if dataset == "python":
            dataset = re.sub(r"[^\w.-]", "_", path.stem if path.is_file() else path.name)

        def split():
            return split_documents(read_input(path, text_key), val_fraction)
    elif dataset == "python":
        split = partial(split_python, val_fraction)
    elif dataset in HUB:
        split = partial(split_hub, dataset, val_fraction)
    else:
        fail(f"unknown dataset {dataset!r}; there are python, {', '.join(HUB)}, and --input=FILE")
    if not re.fullmatch(r"\w[\w.-]*", dataset):
        fail(f"dataset {dataset!r} names a folder: use letters, digits, dots, - and _")

    folder = os.path.join(os.path.expanduser(data_dir), dataset)
    temporary, old = f"{folder}.tmp", f"{folder}.old"  # they are left over only where a run was killed
    try:
        if os.path.exists(folder) and not set(os.listdir(folder)) <= FILES:
            fail(f"{folder} holds files that are not a dataset's: move them, or give --dataset=NAME")
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        try:
            meta = {"name": dataset, "source": source, "options": options}
            meta |= write_dataset(split, tokenizer, vocab_size, max_mb, temporary)
            with open(f"{temporary}/meta.json", "w", encoding="utf-8", newline="\n") as f:
                json.dump(meta, f, indent=1)
            if os.path.exists(folder):
                shutil.rmtree(old, ignore_errors=True)
                os.rename(folder, old)
            os.rename(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except Unusable as e:
        fail(*e.args)
    except OSError as e:
        fail(f"cannot write {folder}: {(e.strerror or str(e)).lower()}", status=1)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", status=130)
    if tokenizer == "bpe" and meta["vocab_size"] < vocab_size:
        print(f"the text is too short for {vocab_size} ids; the vocabulary has {meta['vocab_size']}")
    train, val = meta["train"], meta["val"]
    print(f"{folder}: {train['tokens']:,} tokens to train on and {val['tokens']:,} to validate on, "
          f"{train['bytes'] / train['tokens']:.2f} bytes each")
    print(f"next: python train.py --dataset={dataset}")
    return meta


if __name__ == "__main__":
    prepare(**configure(sys.argv[1:], __file__))

"""
Where text comes from: the documents of files and folders, of the Python source on this machine, and of
datasets on the Hugging Face hub; and on which side of the split, "train" or "val", each of them lands.

All of it is generators, so that memory stays flat however long the text is. They raise Unusable.
"""
import hashlib
import io
import itertools
import json
import logging
import os
import re
import sysconfig
from pathlib import Path

from dataset import END_OF_TEXT

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

MIN_DOCUMENTS = 100      # of fewer, each is cut in two: hashing a handful would give lopsided splits
PIECE_BYTES = 2 ** 20    # of a file are read at a time


class Unusable(Exception):
    """Text or folder that cannot be used: a line for the user, and an exit status if it is not 2.

    Raised rather than printed, so that a progress bar is closed before the line appears.
    """


# ------------------------------------------------------------------------------------------------------------
# reading: generators of documents

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


def read_jsonl(path):
    """(where, row): a line of the file, by name and number, and its JSON object, a dict. Blank lines go."""
    lines = (line for piece in read_pieces(path) for line in io.StringIO(piece, newline="\n"))
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as e:
            raise Unusable(f"{where} is not JSON: {getattr(e, 'msg', e)}") from None
        if isinstance(row, dict):
            yield where, row
        elif line.strip():
            raise Unusable(f"{where} is not a JSON object like {{\"text\": ...}}")


def read_rows(load, split, problem, status):
    """(where, row): the rows that datasets.load_dataset(**load) streams; `problem` begins the error line."""
    try:
        import datasets
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its retries
        for row in datasets.load_dataset(**load, split=split, streaming=True):
            yield load["path"], row
    except ImportError:
        raise Unusable(f"{problem}: it takes pip install datasets", 1) from None
    except Unusable:
        raise
    except Exception as e:  # hub, HTTP and file formats have a dozen types
        raise Unusable(f"{problem}: {(str(e) or type(e).__name__).splitlines()[0]}", status) from None


def text_of(where, row, text_key):
    """The text of a row (a dict), "" for a missing value; `where` it is, for the error line."""
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
                yield from (text_of(*line, text_key) for line in read_jsonl(file))
            case ".parquet":
                load = {"path": "parquet", "data_files": str(file)}
                rows = read_rows(load, "train", f"cannot read {file}", status=2)
                yield from (text_of(*row, text_key) for row in rows)
            case _:
                yield from read_text(file)


# ------------------------------------------------------------------------------------------------------------
# splitting: generators of (side, document)

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

    def read(split):
        return (text_of(*row, text_key) for row in read_rows(load, split, problem, status=1))
    if val:
        yield from (("val", text) for text in read(val))
        yield from (("train", text) for text in read("train"))
    else:
        yield from split_documents(read("train"), val_fraction)


def first_mb(documents, max_mb):
    """Those with text, until max_mb (10^6 bytes) of training text have come, or all if max_mb is 0."""
    n_bytes = 0
    for side, text in documents:
        if text.strip():
            yield side, text
        n_bytes += len(text.encode()) if side == "train" else 0
        if 0 < max_mb * 1e6 <= n_bytes:
            break

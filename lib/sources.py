"""
Where documents and pairs come from: files, the Python source on this machine, the Hugging Face hub, and generators.

A document is a text. A pair is a query and a passage that answers it. Everything is a generator, so that long texts
need little memory. Functions raise ValueError for text that cannot be used, and ConnectionError if the hub cannot be
reached.
"""
import ast
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import re
import string
import sysconfig
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from lib.data import END_OF_TEXT, put_back

# Documents on the hub: arguments of datasets.load_dataset, column of the text, and validation split, if there is one.
HUB = {
    "tinystories": ({"path": "roneneldan/TinyStories"}, "text", "validation"),
    "fineweb_edu": ({"path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT"}, "text", ""),
    "finemath": ({"path": "HuggingFaceTB/finemath", "name": "finemath-4plus"}, "text", ""),
}
# Pairs on the hub: arguments of datasets.load_dataset, columns of query and passage.
PAIRS_HUB = {
    "msmarco": ({"path": "microsoft/ms_marco", "name": "v2.1"}, "query", "passages"),
    "natural_questions": ({"path": "sentence-transformers/natural-questions"}, "query", "answer"),
    "squad": ({"path": "rajpurkar/squad"}, "question", "context"),
}

# The dataset `python` leaves out tests, tables of data, and copies of other packages.
SKIPPED = re.compile(r"(^|/)(tests?|testing|benchmarks|encodings|pydoc_data|idlelib|lib2to3|_vendor"
                     r"|site-packages|dist-packages)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$")
OWN_FILES = ".txt", ".md", ".rst", ".py", ".jsonl"  # in a folder of one's own: they are searched, and give pairs
# A heading of Markdown, or with a line below it, and perhaps above it, of reStructuredText.
HEADING = r'^(?:#{1,6} .*|(?:[=~^"*+#-]{3,}\s*\n)?\S.*\n(?P<mark>[=~^"*+#-])(?P=mark){2,}[^\S\n]*)$'
COMMENT = re.compile(r"((?:^[ \t]*#.*\n)+)((?:^[ \t]*[^\s#].*\n){1,20})", re.MULTILINE)  # and the code below it

READ_BYTES = 2 ** 20            # bytes of a file that are read at a time
MIN_DOCUMENTS = 100             # fewer documents are each cut in two, since hashing a handful gives lopsided splits
MIN_QUERY = 20                  # characters of a docstring's paragraph or a comment; a heading may be shorter
MAX_QUERY = 300                 # characters of any query made from a file
MIN_BODY = 80                   # characters of its passage: code, a section, or the rest of a text


# ------------------------------------------------------------------------------------------------------------
# readers of files and of the hub: generators of (where, row); a row is a dict, and `where` names it in errors


def read_pieces(path):
    """The text of a file, some whole lines at a time, without a byte order mark."""
    offset = 0
    try:
        with open(path, "rb") as f:
            while lines := f.readlines(READ_BYTES):
                piece = b"".join(lines)
                yield piece.decode() if offset else piece.decode().removeprefix("\ufeff")
                offset += len(piece)
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text: wrong byte at offset {offset + e.start}") from None
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror.lower()}") from None


def read_prompt(text):
    """The text itself, or the content of the file if it is FILE:path. Raises ValueError if that cannot be read."""
    if not text.startswith("FILE:"):
        return text
    return "".join(read_pieces(os.path.expanduser(text.removeprefix("FILE:"))))


def read_lines(path, newline):
    """The lines of a file, which end as io.StringIO lets them end with this `newline`."""
    for piece in read_pieces(path):
        yield from io.StringIO(piece, newline=newline)


def read_text(path):
    """The documents between the end-of-text separators of a file, without the newlines around them."""
    parts = []
    for piece in read_pieces(path):
        *ends, rest = piece.split(END_OF_TEXT)
        for end in ends:
            yield "".join([*parts, end]).strip("\r\n")
            parts = []
        parts.append(rest)
    yield "".join(parts).strip("\r\n")


def parse_json(text, where):
    """The value of a JSON text. Raises ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where} is not JSON: {getattr(e, 'msg', e)}; a .jsonl file holds one object per line, a "
                         ".json file holds an array, or one object per line") from None


def read_jsonl(path):
    """The rows of a file with one JSON object per line."""
    for number, line in enumerate(read_lines(path, "\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not a JSON object like {{\"text\": ...}}")
            yield where, row


def read_json(path):
    """The rows of a file with one JSON object per line, or with an array of objects or of texts (under "text")."""
    if next(read_pieces(path), "").lstrip().startswith("["):
        for number, item in enumerate(parse_json("".join(read_pieces(path)), path), 1):
            yield f"{path}, item {number}", item if isinstance(item, dict) else {"text": item}
    else:
        yield from read_jsonl(path)


def read_csv(path):
    """The rows of a .csv file, whose first line names the columns."""
    csv.field_size_limit(2 ** 31 - 1)  # the limit of the csv module is shorter than many documents
    reader = csv.DictReader(read_lines(path, ""), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ValueError(f"{where} has more cells than the first line: put text with commas in quotes")
            yield where, row
    except csv.Error as e:
        raise ValueError(f"{path}, line {reader.reader.line_num} is not CSV: {e}") from None


def read_parquet(path):
    """The rows of a .parquet file."""
    import pyarrow
    import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    yield path, row
    except (pyarrow.ArrowException, ValueError, OSError) as e:
        raise ValueError(f"cannot read {path}: {str(e).splitlines()[0]}") from None


def read_hub(load, split):
    """The rows that datasets.load_dataset(**load) streams."""
    try:
        import datasets
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its retries
        for row in datasets.load_dataset(**load, split=split, streaming=True):
            yield load["path"], row
    except Exception as e:  # the hub, HTTP and file formats raise a dozen types
        missing = isinstance(e, ImportError)
        reason = "it takes pip install datasets" if missing else (str(e) or type(e).__name__).splitlines()[0]
        raise ConnectionError(f"cannot load {load['path']} from the hub: {reason} (your own text needs no network: "
                              "--input=FILE, or --pairs=FILE.jsonl)") from None


READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
TEXTS = ".txt", ".md", ".log", ""  # endings of plain text, for a file that is named; folders have their own lists


def text_of(where, row, key, setting=None):
    """The text under a key of a row; "" if it is None. `setting` is the setting, if there is one, that gave the key."""
    if key not in row:
        hint = f"; name the right one with --{setting}=KEY" if setting else ""
        raise ValueError(f"{where}: no {key!r} among the keys {', '.join(row)}{hint}")
    text = row[key]
    if not isinstance(text, str | None):
        raise ValueError(f"{where}: {key!r} is not text, but {type(text).__name__}")
    if text and re.search("[\ud800-\udfff]", text):  # JSON can name half a character, UTF-8 cannot hold it
        raise ValueError(f"{where}: {key!r} holds half of a surrogate pair")
    return text or ""


def find_files(path, endings=(".txt", *READERS)):
    """(sorted files to read, Counter of what is skipped) of a file, or of a folder with its subfolders.

    Files of a folder have one of the endings; a lone file may also have one of TEXTS and READERS.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ValueError(f"no file or folder {path}")
    accepted = endings if path.is_dir() else (*endings, *TEXTS, *READERS)
    files, skipped, seen, to_visit = [], Counter(), set(), [path]
    while to_visit:
        file = to_visit.pop()
        real, ending = os.path.realpath(file), file.suffix.lower()
        if file.name.startswith(".") and file != path:
            skipped["hidden"] += 1
        elif real in seen:  # links may run in circles
            skipped["linked twice"] += 1
        elif file.is_dir():
            seen.add(real)
            try:
                to_visit += sorted(file.iterdir(), reverse=True)
            except OSError as e:
                raise ValueError(f"cannot read {file}: {e.strerror.lower()}") from None
        elif ending in accepted and file.is_file():
            seen.add(real)
            files.append(file)
        else:
            skipped[ending or "without ending"] += 1
    if not files:
        raise ValueError(f"nothing to read in {path}: the formats are {', '.join(endings)}; rename other plain text "
                         "to .txt")
    return sorted(files, key=Path.as_posix), skipped


def read_input(path, text_key, setting=None):
    """The documents of a file, or of all files of a folder. `setting` is that of text_of."""
    for file in find_files(path)[0]:
        read_rows = READERS.get(file.suffix.lower())
        if not read_rows:
            yield from read_text(file)
            continue
        for where, row in read_rows(file):
            yield text_of(where, row, text_key, setting)


# ------------------------------------------------------------------------------------------------------------
# generated documents; the first letters of KEYS and of VALUES are their alphabets, and a bar separates their halves

KEYS = string.ascii_lowercase + string.digits
VALUES = string.ascii_uppercase + string.punctuation.replace("|", "")


def recall_documents(n_documents, n_pairs, n_keys, n_values):
    """Pairs of a key and a value, a bar, and the same pairs in another order: aQbXcZ|bXaQcZ (arXiv 2312.04927).

    The keys of a document differ. No value is followed by the same key in both halves: values
    behind the bar are the only tokens that a model can look up. Raises ValueError if the alphabets are too small.
    """
    if n_pairs > min(n_keys, n_values):
        raise ValueError(f"{n_pairs} pairs need as many keys and values: lower --n_pairs, or raise --n_keys and "
                         "--n_values")
    rng = np.random.default_rng(0)
    while n_documents:
        keys, values = rng.permutation(n_keys)[:n_pairs], rng.integers(n_values, size=n_pairs)
        order = rng.permutation(n_pairs)
        follows, follows_again = zip(values, keys[1:]), zip(values[order], keys[order][1:])
        if set(follows).isdisjoint(follows_again):  # else a value would tell the next key
            pairs = [KEYS[key] + VALUES[value] for key, value in zip(keys, values)]
            yield f"{''.join(pairs)}|{''.join(pairs[i] for i in order)}"
            n_documents -= 1


def copy_documents(n_documents, n_keys, n_letters):
    """Random letters, a bar, and the same letters again: hello|hello."""
    rng = np.random.default_rng(0)
    for _ in range(n_documents):
        text = "".join(KEYS[key] for key in rng.integers(n_keys, size=n_letters))
        yield f"{text}|{text}"


# Generated documents: their generator, and the settings of prepare.py that it takes.
GENERATED = {
    "recall": (recall_documents, ("n_documents", "n_pairs", "n_keys", "n_values")),
    "copy": (copy_documents, ("n_documents", "n_keys", "n_letters")),
}


# ------------------------------------------------------------------------------------------------------------
# documents that are split: generators of (side, document), where side is "train" or "val"


def choose_side(key, val_fraction):
    """"val" for about val_fraction of all keys (bytes), else "train": a hash decides, the same on every machine."""
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return "val" if number < val_fraction * 2 ** 64 else "train"


def split_documents(documents, val_fraction):
    """Split by a hash of the text, so that no text is on both sides; cut each document in two if there are few."""
    documents = (text for text in documents if text.strip())
    first = list(itertools.islice(documents, MIN_DOCUMENTS))
    for text in itertools.chain(first, documents):
        if len(first) == MIN_DOCUMENTS:
            yield choose_side(text.encode(), val_fraction), text
        else:
            cut = round(len(text) * (1 - val_fraction))
            yield "train", text[:cut]
            yield "val", text[cut:]


def python_roots():
    """The folders of the standard library and the installed packages."""
    return dict.fromkeys(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib"))


def split_python(val_fraction):
    """The Python source on this machine: a document per file, split by its path, without repeated texts."""
    seen = set()
    for root in python_roots():
        paths = [file.relative_to(root).as_posix() for file in root.rglob("*.py")]
        for path in sorted(paths):
            if SKIPPED.search(path):
                continue
            try:
                text = (root / path).read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError):
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield choose_side(os.fsencode(path), val_fraction), text


def split_hub(name, val_fraction):
    """A dataset of HUB. Its own validation split, if it has one, comes first."""
    load, text_key, val = HUB[name]
    train = (text_of(where, row, text_key) for where, row in read_hub(load, "train"))
    if not val:
        yield from split_documents(train, val_fraction)
        return
    for where, row in read_hub(load, val):
        yield "val", text_of(where, row, text_key)
    for text in train:
        yield "train", text


# ------------------------------------------------------------------------------------------------------------
# pairs, and pairs that are split: generators of (query, passage) and of (side, query, passage)


def definitions(source):
    """(name, docstring or "", code without the docstring) of each function and class in Python source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's strings hold invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = source.encode().splitlines(keepends=True)  # lines of bytes: str would also cut at form feeds
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        docstring, first = ast.get_docstring(node), node.body[0]
        code = lines[node.lineno - 1:node.end_lineno]
        if docstring and first.lineno == node.lineno:
            continue  # all on one line: nothing is left without it
        if docstring:
            code = lines[node.lineno - 1:first.lineno - 1] + lines[first.end_lineno:node.end_lineno]
        yield node.name, docstring or "", textwrap.dedent(b"".join(code).decode()).strip()


def fitting(query, passage, shortest=MIN_QUERY):
    """[(query on one line, passage)] if both have a fitting length, else []."""
    query = " ".join(query.split())
    return [(query, passage)] if shortest <= len(query) <= MAX_QUERY and len(passage) >= MIN_BODY else []


def docstring_pairs(source):
    """The first paragraph of each docstring in Python source, with the code that it documents."""
    for _, docstring, code in definitions(source):
        yield from fitting(re.split(r"\n\s*\n", docstring)[0], code)


def further_pairs(source):
    """Other pairs in Python source, for training.

    The second and third paragraph of a docstring go with the code, the words of an undocumented name with its code, in
    which the name is blotted out, and a comment with the lines below it.
    """
    for name, docstring, code in definitions(source):
        for paragraph in re.split(r"\n\s*\n", docstring)[1:3]:
            yield from fitting(paragraph, code)
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
        if not docstring and len(words) > 1:
            yield from fitting(" ".join(words).lower(), code.replace(name, "_"), shortest=1)
    for comment, code in re.findall(COMMENT, source):
        yield from fitting(re.sub(r"^\s*#+", "", comment, flags=re.MULTILINE), textwrap.dedent(code).strip())


def split_python_pairs(val_fraction, more):
    """The docstring pairs of the Python source on this machine, split by file.

    With `more`, the further pairs of the training files follow; the same pairs are held out.
    """
    for side, source in split_python(val_fraction):
        for query, passage in docstring_pairs(source):
            yield side, query, passage
    if not more:
        return
    for side, source in split_python(val_fraction):
        if side == "train":
            for query, passage in further_pairs(source):
                yield side, query, passage


def section_pairs(text):
    """Each heading in Markdown or reStructuredText, behind the first one, with the section below it."""
    headings = list(re.finditer(HEADING, text, re.MULTILINE))
    names = [re.sub(r"^\W+|\W+$", "", heading[0]) for heading in headings]
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for number, (name, heading, end) in enumerate(zip(names, headings, ends)):
        query = f"{names[0]}: {name}" if number else name
        yield from fitting(query, text[heading.end():end].strip(), shortest=1)


def opening_pairs(text):
    """The first line or sentence of a text, and of each of its paragraphs, with the rest (arXiv 1906.00300)."""
    for part in [text, *re.split(r"\n\s*\n", text)]:
        opening, *rest = re.split(r"\n|(?<=[.!?])\s", part.strip(), maxsplit=1)
        yield from fitting(opening, "".join(rest).strip(), shortest=1)


def split_folder_pairs(path, query_key, passage_key, val_fraction):
    """The pairs in the files of a folder, or in one file: code, sections, texts, and rows of .jsonl files.

    A row without a query may have a title and a text instead. Pairs are split by file, wherever the folder lies, or by
    passage if there are few files.
    """
    files, _ = find_files(path, OWN_FILES)
    makers = {".py": docstring_pairs, ".md": section_pairs, ".rst": section_pairs}
    for file in files:
        ending = file.suffix.lower()
        if ending == ".jsonl":
            for where, row in read_jsonl(file):
                keys = (query_key, passage_key) if query_key in row else ("title", "text")
                if keys[0] in row and keys[1] in row:
                    yield from split_rows([(where, row)], *keys, val_fraction)
            continue
        for query, passage in makers.get(ending, opening_pairs)("".join(read_pieces(file))):
            key = passage if len(files) < MIN_DOCUMENTS else file.relative_to(path).as_posix()
            yield choose_side(b"pair " + key.encode(), val_fraction), query, passage


def split_rows(rows, query_key, passage_key, val_fraction):
    """The pairs of (where, row), split by a hash of the passage.

    A passage may be a list of texts, or have the form of MS MARCO: {"passage_text": [...], "is_selected": [...]}.
    """
    for where, row in rows:
        query, value = text_of(where, row, query_key, "query_key"), row.get(passage_key)
        if isinstance(value, dict) and {"passage_text", "is_selected"} <= set(value):
            value = [text for text, chosen in zip(value["passage_text"], value["is_selected"]) if chosen]
        items = [{passage_key: text} for text in value] if isinstance(value, list) else [row]
        for item in items:
            passage = text_of(where, item, passage_key, "passage_key")
            # The prefix makes this split independent of that by split_documents, which hashes the bare text. Without
            # it, a dataset made from the training passages would have no validation side.
            yield choose_side(b"pair " + passage.encode(), val_fraction), query, passage


def fingerprint(text):
    """A hash of a text without its white space."""
    return hashlib.blake2b("".join(text.split()).encode(), digest_size=16).digest()


def load_pairs(folder, side):
    """(queries, passages, gold) of a side of prepared pairs: gold[i] lists the indices of queries[i]'s passages."""
    put_back(folder)
    queries, passages, right = {}, {}, {}
    try:
        for where, row in read_jsonl(os.path.join(folder, f"{side}.jsonl")):
            query = text_of(where, row, "query")
            key = fingerprint(query)
            queries.setdefault(key, query)
            passage = passages.setdefault(text_of(where, row, "passage"), len(passages))
            right.setdefault(key, {})[passage] = True
    except ValueError as e:
        raise ValueError(f"{e}; make the pairs: python prepare.py --pairs=python, or --pairs=FILE.jsonl") from None
    return list(queries.values()), list(passages), [list(indices) for indices in right.values()]


def choose_held_out(queries, passages, gold, n_queries, n_passages):
    """The same n_queries every time, with all their passages; others are added up to n_passages (0: all there are).

    Takes and returns what load_pairs returns.
    """
    chosen = np.random.default_rng(0).permutation(len(queries))[:n_queries].tolist()
    own = dict.fromkeys(passage for i in chosen for passage in gold[i])
    others = [p for p in np.random.default_rng(1).permutation(len(passages)).tolist() if p not in own]
    kept = [*own, *others][:max(n_passages or len(passages), len(own))]
    place = {p: i for i, p in enumerate(kept)}
    kept_gold = []
    for i in chosen:
        kept_gold.append([place[p] for p in gold[i]])
    return [queries[i] for i in chosen], [passages[p] for p in kept], kept_gold

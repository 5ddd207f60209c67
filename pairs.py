"""
Pairs of a query and the passage that answers it, for retrieve.py: where they come from, and their split.

    python prepare.py --pairs=python                    # docstrings and the code below them, on this machine
    python prepare.py --pairs=python_more               # to train on also comments, names, further paragraphs
    python prepare.py --pairs=msmarco                   # Hugging Face hub: msmarco, natural_questions, squad
    python prepare.py --pairs=owner/name --query_key=question --passage_key=answer          # any set there
    python prepare.py --pairs=notes.jsonl                                    # your own: {"query", "passage"}

Written into data/<dataset>/, all at once: train.jsonl and val.jsonl, with the keys query and passage, and
meta.json. No passage is on both sides; no pair comes twice.
"""
import ast
import hashlib
import json
import os
import re
import textwrap
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import fail
from dataset import put_back, replacing_folder
from documents import Unusable, choose_side, read_jsonl, read_rows, split_python, text_of

# On the Hugging Face hub: arguments of datasets.load_dataset, columns of query and passage.
HUB = {
    "msmarco": ({"path": "microsoft/ms_marco", "name": "v2.1"}, "query", "passages"),
    "natural_questions": ({"path": "sentence-transformers/natural-questions"}, "query", "answer"),
    "squad": ({"path": "rajpurkar/squad"}, "question", "context"),
}
MIN_QUERY, MAX_QUERY = 20, 300  # characters of a docstring's first paragraph that is a query
MIN_BODY = 80                   # characters of code that is a passage
COMMENT = re.compile(r"((?:^[ \t]*#.*\n)+)((?:^[ \t]*[^\s#].*\n){1,20})", re.MULTILINE)  # and lines below it
FILES = {"train.jsonl", "val.jsonl", "meta.json"}


# ------------------------------------------------------------------------------------------------------------
# reading: generators of (side, query, passage)

def definitions(source):
    """(name, docstring, code without it) of each function and class in Python source; the docstring is "" if
    there is none. Source that does not parse has no definitions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = source.encode().splitlines(keepends=True)  # of bytes: str would also cut at form feeds
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
    """[(query on one line, passage)] if their lengths are those of a pair, else []."""
    query = " ".join(query.split())
    return [(query, passage)] if shortest <= len(query) <= MAX_QUERY and len(passage) >= MIN_BODY else []


def docstring_pairs(source):
    """(query, passage) of each function and class in Python source: the first paragraph of its docstring, and
    its code without the docstring."""
    for _, docstring, code in definitions(source):
        yield from fitting(re.split(r"\n\s*\n", docstring)[0], code)


def further_pairs(source):
    """More pairs of Python source, to train on: the second and third paragraph of a docstring, and its code;
    the words of a name without docstring, and its code without the name; a comment, and the lines below."""
    for name, docstring, code in definitions(source):
        for paragraph in re.split(r"\n\s*\n", docstring)[1:3]:
            yield from fitting(paragraph, code)
        if not docstring:
            words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
            if len(words) > 1:
                yield from fitting(" ".join(words).lower(), code.replace(name, "_"), shortest=1)
    for comment, code in re.findall(COMMENT, source):
        yield from fitting(re.sub(r"^\s*#+", "", comment, flags=re.MULTILINE), textwrap.dedent(code).strip())


def split_rows(rows, query_key, passage_key, val_fraction):
    """Pairs of rows, their side by a hash of the passage. A passage may be a list of texts, or what MS MARCO
    has: {"passage_text": [...], "is_selected": [...]}."""
    for where, row in rows:
        query, value = text_of(where, row, query_key), row.get(passage_key)
        if isinstance(value, dict) and {"passage_text", "is_selected"} <= set(value):
            value = [text for text, chosen in zip(value["passage_text"], value["is_selected"]) if chosen]
        for item in [{passage_key: text} for text in value] if isinstance(value, list) else [row]:
            passage = text_of(where, item, passage_key)
            yield choose_side(passage.encode(), val_fraction), query, passage


def split_python_pairs(val_fraction, more):
    """Docstring pairs of the Python source on this machine, their side by file. more: behind them the further
    pairs of the files to train on, so that the same pairs are held out."""
    for side, source in split_python(val_fraction):
        for query, passage in docstring_pairs(source):
            yield side, query, passage
    for side, source in split_python(val_fraction) if more else ():
        for query, passage in further_pairs(source) if side == "train" else ():
            yield side, query, passage


def unique(pairs):
    """Pairs of two texts that are not blank, each once; a passage stays on the side where it came first.
    Texts that differ in white space alone are the same: layout does not make a held-out passage new."""
    sides, seen = {}, set()
    for side, query, passage in pairs:
        if query.strip() and passage.strip():
            text, asked = (hashlib.blake2b("".join(t.split()).encode(), digest_size=16).digest()
                           for t in (passage, query))
            pair = text + asked
            if sides.setdefault(text, side) == side and pair not in seen:
                seen.add(pair)
                yield side, query, passage


# ------------------------------------------------------------------------------------------------------------
# a prepared set: writing and reading

def prepare_pairs(pairs, dataset, query_key, passage_key, val_fraction, data_dir):
    """Make the set of pairs that the settings describe and return its meta; an error ends the program."""
    options = dict(locals())
    val_fraction = 0.1 if val_fraction == "auto" else val_fraction
    if isinstance(val_fraction, str) or not 0 < val_fraction < 1:
        fail(f"val_fraction is {val_fraction}, but lies between 0 and 1")
    if pairs in ("python", "python_more"):
        name, split = pairs, split_python_pairs(val_fraction, more=pairs == "python_more")
    elif os.path.exists(path := os.path.expanduser(pairs)):
        name, split = Path(path).stem, split_rows(read_jsonl(path), query_key, passage_key, val_fraction)
    elif pairs in HUB or re.fullmatch(r"[\w.-]+/[\w.-]+", pairs) and not pairs.endswith(".jsonl"):
        load, query_key, passage_key = HUB.get(pairs, ({"path": pairs}, query_key, passage_key))
        problem = f"cannot load {pairs} from the hub (pairs of your own need no network: --pairs=FILE.jsonl)"
        name = pairs.split("/")[-1]
        split = split_rows(read_rows(load, "train", problem, status=1), query_key, passage_key, val_fraction)
    else:
        fail(f"no file {pairs}, and no such set of pairs: {', '.join(['python', 'python_more', *HUB])}, or "
             "owner/name on the hub")
    name = dataset if dataset != "python" else re.sub(r"[^\w.-]", "_", name) + "_pairs"
    folder, counts = os.path.join(data_dir, name), {"train": 0, "val": 0}
    with replacing_folder(folder, FILES) as temporary:
        with (open(f"{temporary}/train.jsonl", "w", encoding="utf-8", newline="\n") as train,
              open(f"{temporary}/val.jsonl", "w", encoding="utf-8", newline="\n") as val):
            try:
                for side, query, passage in tqdm(unique(split), desc="pairs", unit=" pairs", disable=None):
                    json.dump({"query": query, "passage": passage}, train if side == "train" else val)
                    (train if side == "train" else val).write("\n")
                    counts[side] += 1
            except Unusable as e:
                fail(*e.args)
        if not counts["train"] or not counts["val"]:
            fail(f"{pairs} gives {counts['train']} pairs to train on and {counts['val']} to hold out: give "
                 "more pairs, or another --val_fraction")
        meta = {"name": name, "options": options, "pairs": counts}
        with open(f"{temporary}/meta.json", "w", encoding="utf-8", newline="\n") as f:
            json.dump(meta, f, indent=1)
    print(f"{folder}: {counts['train']:,} pairs to train on, {counts['val']:,} held out")
    return meta


def load_pairs(folder, side):
    """(queries, passages, gold) of the side "train" or "val": texts, each passage once; gold[i] is the index
    of the passage of queries[i]."""
    queries, passages, gold = [], {}, []
    put_back(folder)
    try:
        for where, row in read_jsonl(os.path.join(folder, f"{side}.jsonl")):
            queries.append(text_of(where, row, "query"))
            gold.append(passages.setdefault(text_of(where, row, "passage"), len(passages)))
    except Unusable as e:
        fail(f"{e.args[0]}; make the pairs: python prepare.py --pairs=python, or --pairs=FILE.jsonl")
    return queries, list(passages), gold


def choose_held_out(queries, passages, gold, n_queries, n_passages):
    """Of held-out pairs the same n_queries every time, and n_passages (0: all) with theirs among them, in the
    same form."""
    chosen = np.random.default_rng(0).permutation(len(queries))[:n_queries].tolist()
    own = dict.fromkeys(gold[i] for i in chosen)
    others = [p for p in np.random.default_rng(1).permutation(len(passages)).tolist() if p not in own]
    kept = [*own, *others][:max(n_passages or len(passages), len(own))]
    place = {p: i for i, p in enumerate(kept)}
    return [queries[i] for i in chosen], [passages[p] for p in kept], [place[gold[i]] for i in chosen]

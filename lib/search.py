"""
Search in files of one's own: reading them, cutting them into pieces that know their place, the index on disk, ranks by
embeddings and by words, and printing the hits.

A unit is a paragraph, a definition in Python source, a row of a .jsonl file, or a passage of the pairs. A piece is a
unit, or a part of one that is longer than the model's window. Letters in shapes: P pieces or passages, C channels.
"""
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections import namedtuple

import numpy as np
import torch
from tqdm import tqdm

from lib.data import END_OF_TEXT
from lib.fast import linear_of_few_rows
from lib.runs import replacing
from lib.sources import HEADING, OWN_FILES, READERS, find_files, load_pairs, read_pieces, text_of

GROUP = 256  # units that are embedded at a time
MOST_PIECES = 1000  # the best ones, from which the hits of a search come
PARAGRAPH = re.compile(rf"(?:{HEADING}\s*)*(?:^[^\S\n]*\S.*\n?)+", re.MULTILINE)  # with the headings above it
# A definition in Python source, with the decorators and comments right above it.
DEFINITION = re.compile(r"(?:^[^\S\n]*[@#].*\n){0,20}^[^\S\n]*(?:async +def|def|class)\b", re.MULTILINE)
# Letters of scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese, Chinese.
WITHOUT_SPACES = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

# file is None for a passage of the pairs. A row counts from 1, and has no line.
Unit = namedtuple("Unit", "text file line row", defaults=(None, None, None))
Hit = namedtuple("Hit", "score text file line row")


# ------------------------------------------------------------------------------------------------------------
# reading and cutting


def read_units(file):
    """The Units of a file. A row is its passage, or else its text. Raises ValueError for a file that cannot be read."""
    read_rows, units = READERS.get(file.suffix.lower()), []
    if read_rows:
        for number, (where, row) in enumerate(read_rows(file), 1):
            text = text_of(where, row, "passage" if "passage" in row else "text")
            units.append(Unit(text, str(file), row=number))
        return units
    text = "".join(read_pieces(file)).replace(END_OF_TEXT, " " * len(END_OF_TEXT))  # a blank line ends a paragraph
    if file.suffix.lower() == ".py":
        starts = [0, *(match.start() for match in DEFINITION.finditer(text))]
        spans = zip(starts, [*starts[1:], len(text)])
    else:
        spans = (match.span() for match in PARAGRAPH.finditer(text))
    line, counted = 1, 0
    for start, end in spans:
        part = text[start:end].rstrip()
        blank = re.match(r"(\s*\n)?", part).end()  # characters of the blank lines above it
        line, counted = line + text.count("\n", counted, start + blank), start + blank
        units.append(Unit(textwrap.dedent(part[blank:]), str(file), line))
    return units


def read_corpus(path):
    """The Units of a file or folder. Says which files of a folder cannot be read; a lone file raises ValueError."""
    path, units, complaints = os.path.expanduser(path), [], []
    for file in find_files(path, OWN_FILES)[0]:
        try:
            units += read_units(file)
        except ValueError as e:
            if os.path.isfile(path):
                raise
            complaints.append(e)
    if complaints:
        print(f"files that are not searched: {len(complaints)}, such as this one: {complaints[0]}")
    return units


def cut(texts, tokenizer, size):
    """Pieces of at most `size` tokens of each text, overlapping by a quarter: [(number of the text, start, end, ids)].

    A piece begins between two words if there is such a place in the overlap.
    """
    pieces, overlap = [], size // 4
    for number, (text, ids) in enumerate(zip(texts, tokenizer.encode_ordinary_batch(texts))):
        if len(ids) <= size:
            pieces.append((number, 0, len(text), ids))
            continue
        places = [*tokenizer.decode_with_offsets(ids)[1], len(text)]  # where the tokens begin
        for first in range(0, len(ids) - overlap, size - overlap):
            last = min(first + size, len(ids))
            if first:
                first = next((i for i in range(first, first + overlap) if text[places[i]].isspace()), first)
            pieces.append((number, places[first], places[last], ids[first:last]))
    return pieces


# ------------------------------------------------------------------------------------------------------------
# the index on disk


def index_path(folder, corpus):
    """The file in `folder` for the index of a corpus, which is a path."""
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(os.path.expanduser(corpus))), digest_size=8)
    return os.path.join(folder, f"index-{digest.hexdigest()}.npz")


def load_index(path, owner):
    """{hash of a text: [(start, end, embedding (C,)) of its pieces]}; {} if the file is damaged or another model's."""
    index = {}
    with contextlib.suppress(Exception):  # a damaged file can raise almost anything
        with np.load(path) as file:
            saved = dict(file)
        if saved["owner"] == owner:
            keys, starts, ends = saved["keys"].tolist(), saved["starts"].tolist(), saved["ends"].tolist()
            for key, start, end, e in zip(keys, starts, ends, saved["e"]):
                index.setdefault(key, []).append((start, end, e))
    return index


def save_index(path, owner, index):
    """Write what load_index reads. A disk that cannot be written to is no error, as the index can be made again."""
    rows = [(key, *piece) for key, pieces in index.items() for piece in pieces]
    keys, starts, ends, e = zip(*rows)
    try:
        with replacing(path) as file:
            np.savez(file, owner=owner, keys=keys, starts=starts, ends=ends, e=e)
    except OSError as error:
        print(f"the next search has to embed the texts again: {error}")


@torch.no_grad()
def embed_texts(encoder, texts, path):
    """For each text [(start, end, embedding (C,)) of its pieces]. The file `path` keeps them for the next call.

    Only texts that are not in the file are embedded. An interruption keeps what is done.
    """
    size = encoder.model.config.block_size
    owner = f"{encoder.checksum()} {size}"
    keys = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]
    index = load_index(path, owner)
    before = set(index)
    new = [(key, text) for key, text in zip(keys, texts) if key not in index]
    try:
        with tqdm(desc="indexing", total=len(new), unit=" paragraphs", disable=None) as bar:
            for start in range(0, len(new), GROUP):
                group, added = new[start:start + GROUP], {}
                pieces = cut([text for _, text in group], encoder.tokenizer, size)
                functions, order = encoder.parts([ids for *_, ids in pieces], 128)
                embeddings = torch.cat([function() for function in functions])[order].cpu().numpy()
                for (number, start, end, _), e in zip(pieces, embeddings):
                    added.setdefault(group[number][0], []).append((start, end, e))
                index |= added
                bar.update(len(group))
    finally:
        index = {key: index[key] for key in keys if key in index}
        if index and set(index) != before:
            save_index(path, owner, index)
    return [index[key] for key in keys]


# ------------------------------------------------------------------------------------------------------------
# ranks


def split_names(text):
    """readCSV_file -> read CSV file: the words that names are made of, with spaces between them."""
    return re.sub(r"_|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)


def word_scorer(passages):
    """A function query -> scores (P,) of the passages by BM25, which counts the words they share with the query.

    The words of a name count, not the name: read_csv would not be found by "read a csv file" otherwise.
    """
    import bm25s
    letters = "".join(letter for passage in passages for letter in passage if letter.isalpha())
    if len(WITHOUT_SPACES.findall(letters)) > len(letters) / 2:
        print("bm25 finds words by the spaces between them, but most letters here belong to a script without spaces, "
              "such as Chinese: its accuracies mean nothing")
    index = bm25s.BM25()
    index.index(bm25s.tokenize([split_names(text) for text in passages], show_progress=False), show_progress=False)

    def scores(query):
        words, = bm25s.tokenize([split_names(query)], return_ids=False, show_progress=False)
        return torch.from_numpy(index.get_scores(words)) if words else torch.zeros(len(passages))  # only stop words
    return scores


def fuse(*rankings):
    """Several scores (P,) of the same passages as one: each stretched to 0 for its worst and 1 for its best, and added.

    Added to BM25, a model that was trained briefly finds more than either alone, also where a sum of 1 / (60 + rank),
    reciprocal rank fusion, finds less than BM25 (results/retrieval.md).
    """
    fused = 0
    for scores in rankings:
        above = scores.double() - scores.min()
        fused = fused + above / above.max().clamp(min=1e-12)  # equal scores say nothing
    return fused


class Corpus:
    """Units with the embeddings of their pieces, kept in the file `path`. fusion: the words of a query count, too."""

    def __init__(self, encoder, units, path, fusion=False):
        by_text = {}  # the first one of equal units
        for unit in units:
            if unit.text.strip():
                by_text.setdefault(unit.text, unit)
        if not by_text:
            raise ValueError("there is no text to search in")
        self.encoder, self.pieces, self.score_words = encoder, [], None
        embeddings = []
        for unit, pieces in zip(by_text.values(), embed_texts(encoder, list(by_text), path)):
            self.pieces += [(unit, start, end) for start, end, _ in pieces]
            embeddings += [e for _, _, e in pieces]
        self.embeddings = torch.from_numpy(np.stack(embeddings))                         # (P, C)
        if fusion:
            self.score_words = word_scorer([unit.text[start:end] for unit, start, end in self.pieces])

    def search(self, query, top):
        """The `top` best Hits for a query, best first: units, with their best piece."""
        query_embedding = torch.from_numpy(self.encoder.encode([query]))                 # (1, C)
        scores = linear_of_few_rows(query_embedding, self.embeddings)[0]                 # (P,)
        if self.score_words:
            scores = fuse(scores, self.score_words(query))
        best, hits = scores.topk(min(max(MOST_PIECES, 10 * top), len(scores))), {}
        for score, i in zip(best.values.tolist(), best.indices.tolist()):
            unit, start, end = self.pieces[i]
            piece = unit.text[start:end]
            first = start + len(piece) - len(piece.lstrip())
            line = unit.line + unit.text.count("\n", 0, first) if unit.line else None
            opening, newline, rest = piece.strip().partition("\n")
            rest = textwrap.dedent(rest) if start else rest  # a piece may begin in the middle of a line
            hits.setdefault(unit.text, Hit(score, opening + newline + rest, unit.file, line, unit.row))
        return list(hits.values())[:top]


# ------------------------------------------------------------------------------------------------------------
# printing


def training_commands(out_dir, corpus):
    """What to say if there is no retriever in out_dir: how to train one, on the corpus if there is one."""
    train, prepare = f"python retrieve.py config/retrieve_tiny.py --out_dir={shlex.quote(out_dir)}", ""
    if corpus:
        prepare = f"python prepare.py --pairs={shlex.quote(corpus)} --dataset=own_pairs && "
        train += " --pairs=own_pairs"
    return f"no trained retriever in {out_dir}; train one, which takes minutes: {prepare}{train}"


def mark(text, query):
    """The text with the words of the query in bold: as whole words or parts of a name, if they are not very short."""
    words = [re.escape(word) for word in re.findall(r"\w+", query) if len(word) > 2]
    if not words:
        return text
    return re.sub(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])", "\033[1m\\g<0>\033[0m", text, flags=re.IGNORECASE)


def format_hit(hit, query, width=None, bold=False):
    """The lines of a hit: score and place, then its text, wrapped to `width` columns if that is given."""
    lines = []
    for line in hit.text.expandtabs(4).splitlines():
        line = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", line)  # a text must not control the terminal
        lines += textwrap.wrap(line, max(width - 7, 20)) if width else [line]
    if bold:
        lines = [mark(line, query) for line in lines]
    if hit.file:
        lines.insert(0, f"{hit.file}:{hit.line}" if hit.line else f"{hit.file}, row {hit.row}")
    return f"{hit.score:.3f}  " + "\n       ".join(lines)


def print_hits(query, hits, as_json):
    """Print one line of JSON, or the hits for people: wrapped to a terminal, the words of the query in bold there."""
    if as_json:
        found = [{key: value for key, value in hit._asdict().items() if value is not None} for hit in hits]
        print(json.dumps({"query": query, "hits": found}), flush=True)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for hit in hits:
        print(format_hit(hit, query, width, bold=width and not os.environ.get("NO_COLOR")), end="\n\n", flush=True)


def answer_queries(args, load):
    """Print what the settings of retrieve.py ask for, with the encoder from load().

    Raises FileNotFoundError if there is no trained retriever, and ValueError if there is nothing to search for or in.
    """
    if not args.query.strip():
        raise ValueError("--query is empty: give the text to search for, or leave --query out to train")
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # notices are no JSON
        path = args.corpus or os.path.join(args.data_dir, args.pairs)
        units = read_corpus(path) if args.corpus else []
        try:
            encoder = load()
        except FileNotFoundError:
            raise FileNotFoundError(training_commands(args.out_dir, args.corpus)) from None
        if not args.corpus:
            units = [Unit(passage) for side in ("train", "val") for passage in load_pairs(path, side)[1]]
        corpus = Corpus(encoder, units, index_path(args.out_dir, path), args.fusion)
    for line in sys.stdin if args.query == "-" else [args.query]:
        if query := line.strip():
            print_hits(query, corpus.search(query, args.top), args.json)

"""
Turn text into the token files that train.py reads, or pairs of texts into the files that retrieve.py reads.

    python prepare.py                                   # the embedded dataset: Python source on this machine
    python prepare.py --dataset=tinystories             # from the Hugging Face hub
    python prepare.py --dataset=fineweb_edu --max_mb=1000
    python prepare.py --dataset=recall                  # generated, to look up values by keys: aQbXcZ|bXaQcZ
    python prepare.py --dataset=recall_16 --n_pairs=16  # under a name of your own, which begins with recall_
    python prepare.py --dataset=copy                    # generated, to copy: hello|hello
    python prepare.py --input=stories.txt --dataset=mine --tokenizer=byte
    python prepare.py --pairs=python                    # docstrings and the code below them, on this machine
    python prepare.py --pairs=python_more               # also comments, names and further paragraphs, for training
    python prepare.py --pairs=msmarco                   # from the hub: msmarco, natural_questions, squad
    python prepare.py --pairs=owner/name --query_key=question --passage_key=answer      # any set of the hub
    python prepare.py --pairs=notes.jsonl               # your own: {"query": ..., "passage": a text or a list}
    python prepare.py --pairs=notes                     # a folder: docstrings and code, headings and sections, ...

--input is a text file (with <|endoftext|> between its documents), a .jsonl, .json, .csv or .parquet file with a column
of texts, or a folder that holds such files. The script writes into data/<dataset>/, all at once at the end:

    train.bin, val.bin         token ids, uint16 or uint32; an end-of-text id follows each document
    tokenizer.tiktoken         the tokenizer: one line `base64(bytes) id` per token
    meta.json                  sizes, dtype, end-of-text id, and the regex that splits text before it is tokenized
    train.jsonl, val.jsonl     pairs, with the keys query and passage; no passage is in both, and no pair comes twice

The same text gives the same files. A long text needs little memory, unless a single document is huge. If the script is
interrupted, the same command goes on where it was, to the nearest 100 MB; in the first 200 MB it begins anew.
"""
import base64
import itertools
import json
import os
import re
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

from configurator import run_script
from lib.data import (END_OF_TEXT, PROGRESS, build_tokenizer, load_progress, replacing_folder, save_progress,
                      write_meta)
from lib.sources import (GENERATED, HUB, PAIRS_HUB, READERS, find_files, fingerprint, read_hub, read_input, read_jsonl,
                         split_documents, split_folder_pairs, split_hub, split_python, split_python_pairs, split_rows)

# defaults: change them with --key=value
dataset = "python"                  # python, tinystories, fineweb_edu, finemath, recall, copy; or a name for your input
input = ""                          # a file or a folder of your own text
tokenizer = "bpe"                   # bpe (trained on the text), byte, or one of tiktoken's: gpt2, cl100k_base, ...
vocab_size = 4096                   # [258, 1048576] size of a bpe vocabulary: bytes, merges and end of text
text_key = "text"                   # the column or key of the text in .jsonl, .json, .csv and .parquet files
val_fraction: float | str = "auto"  # (0, 1) share of documents held out; auto: 0.1, or 0.005 for a dataset of the hub
max_mb = 0                          # [0, inf) stop after this many MB of training text; 0: take all
data_dir = "data"                   # folder of the datasets
pairs = ""                          # make pairs instead: python, python_more, msmarco, owner/name, a file or a folder
query_key = "query"                 # the column or key of the query, in a file or a set of the hub
passage_key = "passage"             # the column or key of the passage
n_documents = 100_000               # [100, inf) recall and copy, which are always tokenized as bytes: documents
n_pairs = 8                         # [1, 36] recall: pairs of a key and a value per document
n_keys = 26                         # [1, 36] recall and copy: size of the alphabet, a to z and then 0 to 9
n_values = 26                       # [1, 57] recall: size of the alphabet of values, A to Z and then punctuation
n_letters = 24                      # [1, inf) copy: letters before the bar
# end of defaults

# Byte pairs are merged only inside the pieces that this regex finds. A word includes one character before it, such as
# a space or the dot of `.append`; newlines end a piece. Regex engines give up on a million spaces in a row, hence 256.
PATTERN = (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s{0,256}[\r\n]+|\s{1,256}(?!\S)|\s")

TOKENIZER_MB = 200       # MB of text that are enough to train a tokenizer
BATCH_CHARS = 500_000    # characters that are encoded at a time
SAVE_BATCHES = 200       # batches between two records of the progress
SIDES = "train", "val"
FILES = {"train.bin", "val.bin", "tokenizer.tiktoken", "meta.json"}
PAIR_FILES = {"train.jsonl", "val.jsonl", "meta.json"}


def make_tokenizer(name, vocab_size, texts):
    """The meta of a tokenizer, for lib.data.build_tokenizer. "bpe" is trained on `texts`, an iterable of str."""
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
            raise ConnectionError(f"cannot get tokenizer {name} ({type(e).__name__}); bpe and byte need no "
                                  "download") from None
        ranks, pattern, eot_id = encoding._mergeable_ranks, encoding._pat_str, encoding.eot_token
    lines = [f"{base64.b64encode(token).decode()} {ranks[token]}\n" for token in sorted(ranks, key=ranks.get)]
    vocab_size = max(eot_id, *ranks.values()) + 1  # cl100k_base has a gap before its end of text
    return {"tokenizer": name, "pattern": pattern, "ranks": "".join(lines), "eot_id": eot_id,
            "vocab_size": vocab_size, "dtype": "uint16" if vocab_size <= 2 ** 16 else "uint32"}


def first_mb(documents, max_mb):
    """The documents that are not blank, up to max_mb (10^6 bytes) of training text; all if max_mb is 0."""
    n_bytes = 0
    for side, text in documents:
        if text.strip():
            yield side, text
        if side == "train":
            n_bytes += len(text.encode())
        if 0 < max_mb * 1e6 <= n_bytes:
            break


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


def encode(texts, tokenizer):
    """The ids of all texts in one array, with the id of end of text after each text.

    One call for all texts is faster than a call for each, but takes END_OF_TEXT inside a text for its end.
    """
    if not any(END_OF_TEXT in text for text in texts):
        return tokenizer.encode_to_numpy(END_OF_TEXT.join([*texts, ""]), allowed_special={END_OF_TEXT})
    parts = []
    for text in texts:
        parts += [tokenizer.encode_to_numpy(text, disallowed_special=()), [tokenizer.eot_token]]
    return np.concatenate(parts)


def encode_batches(documents, meta):
    """Yield ([(side, document)], {side: ids}) in the order of the documents; threads encode some batches ahead."""
    tokenizer = build_tokenizer(meta)

    def encode_sides(batch):
        ids = {}
        for side in SIDES:
            texts = [text for where, text in batch if where == side]
            try:
                ids[side] = encode(texts, tokenizer).astype(meta["dtype"])
            except ValueError as e:
                raise ValueError(f"tokenizer {meta['tokenizer']} cannot encode this text: {e}") from None
        return batch, ids

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = deque()
        for batch in batches(documents):
            pending.append(pool.submit(encode_sides, batch))
            if len(pending) > 2 * os.cpu_count():
                yield pending.popleft().result()
        for job in pending:
            yield job.result()


def skip_documents(documents, progress, folder):
    """Read past the documents that are encoded already. Raises ValueError if their text has changed."""
    checksum, n_done = 0, sum(progress[side]["documents"] for side in SIDES)
    for _, text in itertools.islice(documents, n_done):
        checksum = zlib.crc32(text.encode(), checksum)
    if checksum != progress["checksum"]:
        os.remove(f"{folder}/{PROGRESS}")
        raise ValueError("the text has changed since prepare.py was interrupted: run it again, to start anew")


def encode_documents(documents, progress, folder):
    """Append the ids of the documents that come after `progress` to train.bin and val.bin in folder.

    It counts them in `progress`, and saves that after every SAVE_BATCHES batches. A run that goes on from there gives
    the bytes of a run without interruption. Nothing is saved before the end of the text of the tokenizer, so that such
    a run compares all of that text with what it was.
    """
    meta = progress["tokenizer"]
    with (open(f"{folder}/train.bin", "ab") as train, open(f"{folder}/val.bin", "ab") as val,
          tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as bar):
        files = {"train": train, "val": val}
        for side, file in files.items():
            file.truncate(progress[side]["tokens"] * np.dtype(meta["dtype"]).itemsize)  # the rest is not saved
        skip_documents(documents, progress, folder)
        for number, (batch, ids) in enumerate(encode_batches(documents, meta), 1):
            for side, file in files.items():
                file.write(ids[side])
                progress[side]["tokens"] += len(ids[side])
            for side, text in batch:
                raw = text.encode()
                progress["checksum"] = zlib.crc32(raw, progress["checksum"])
                progress[side]["documents"] += 1
                progress[side]["bytes"] += len(raw)
                bar.update(len(raw))
            if number % SAVE_BATCHES == 0 and progress["train"]["bytes"] >= TOKENIZER_MB * 1e6:
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())  # on the disk before the progress says so
                save_progress(folder, progress)


def choose_name(dataset, path):
    """`dataset`, or if that is the default a name from the path of a file or folder. Raises ValueError if it is bad."""
    if dataset == "python":
        base = os.path.basename(path)
        dataset = re.sub(r"[^\w.-]", "_", os.path.splitext(base)[0] if os.path.isfile(path) else base)
        if dataset.lower().removesuffix("_pairs") in ("python", "python_more", *GENERATED, *HUB, *PAIRS_HUB):
            raise ValueError(f"{dataset} is the name of another dataset: name yours with --dataset=NAME")
    if not re.fullmatch(r"\w[\w.-]*", dataset) or dataset.endswith((".tmp", ".old")):
        raise ValueError(f"dataset {dataset!r} names a folder: use letters, digits, ., - and _, without .tmp or .old")
    return dataset


def generator_of(dataset):
    """(the generator of a dataset such as recall or recall_16, the settings that it takes); (None, ()) if none."""
    return GENERATED.get(dataset.split("_")[0], (None, ()))


def prepare(dataset, input, tokenizer, vocab_size, text_key, val_fraction, max_mb, data_dir, **sizes):
    """Make the dataset that the settings describe, and return its meta.

    sizes: the settings that a generator takes. Raises ValueError for settings and text that cannot be used, and
    OSError if reading or writing fails.
    """
    options = dict(dataset=dataset, input=input, tokenizer=tokenizer, vocab_size=vocab_size, text_key=text_key,
                   val_fraction=val_fraction, max_mb=max_mb, **sizes)
    skipped = {}
    tokenizers = ["bpe", "byte", *tiktoken.list_encoding_names()]
    if tokenizer not in tokenizers:
        raise ValueError(f"unknown tokenizer {tokenizer!r}; choose one of {', '.join(tokenizers)}")
    if val_fraction == "auto":
        val_fraction = 0.005 if dataset in HUB and not input else 0.1
    if input:
        source, path = input, os.path.realpath(os.path.expanduser(input))
        skipped, dataset = find_files(path)[1], choose_name(dataset, path)

        def split():
            return split_documents(read_input(path, text_key, "text_key"), val_fraction)
    elif dataset == "python":
        source, split = "Python source", partial(split_python, val_fraction)
    elif generator_of(dataset)[0]:
        source, tokenizer = "generated", "byte"

        def split():
            return split_documents(generator_of(dataset)[0](**sizes), val_fraction)
    elif dataset in HUB:
        source, split = HUB[dataset][0]["path"], partial(split_hub, dataset, val_fraction)
    else:
        raise ValueError(f"unknown dataset {dataset!r}; choose one of python, "
                         f"{', '.join([*GENERATED, *HUB])}, and --input=FILE")

    folder = os.path.join(data_dir, dataset)
    with replacing_folder(folder, FILES, options) as temporary:
        progress = load_progress(temporary, options)
        if progress:
            n_done = progress["train"]["documents"]
            print(f"going on after {n_done:,} documents to train on, which are read again to compare them", flush=True)
        else:
            documents = first_mb(split(), min(max_mb or TOKENIZER_MB, TOKENIZER_MB))
            with tqdm(documents, desc="reading for the tokenizer", unit=" documents", disable=None) as documents:
                texts = (text for side, text in documents if side == "train")
                made = make_tokenizer(tokenizer, vocab_size, texts)
            progress = {"options": options, "tokenizer": made, "checksum": 0}
            progress |= {side: {"tokens": 0, "documents": 0, "bytes": 0} for side in SIDES}
        encode_documents(first_mb(split(), max_mb), progress, temporary)
        meta = {"name": dataset, "source": source, "options": options} | progress["tokenizer"]
        for side in SIDES:
            meta[side] = progress[side]
            if not meta[side]["documents"]:
                Path(temporary, PROGRESS).unlink(missing_ok=True)  # to go on from there would fail again
                raise ValueError(f"the {side} split is empty: give more text, or another --val_fraction")
        Path(temporary, "tokenizer.tiktoken").write_text(meta.pop("ranks"), encoding="utf-8", newline="\n")
        write_meta(temporary, meta)
    if tokenizer == "bpe" and meta["vocab_size"] < vocab_size:
        print(f"the text is too short for {vocab_size} ids; the vocabulary has {meta['vocab_size']}")
    if skipped:
        print(f"skipped in {input}:", ", ".join(f"{n} {what}" for what, n in sorted(skipped.items())))
    train, val = meta["train"], meta["val"]
    print(f"{folder}: {train['tokens']:,} tokens to train on and {val['tokens']:,} to validate on, "
          f"{train['bytes'] / train['tokens']:.2f} bytes each\nnext: python train.py --dataset={dataset}")
    return meta


def unique(pairs):
    """Pairs without blank texts, each once; a passage stays on the side where it came first.

    Texts that differ only in white space count as the same.
    """
    sides, seen = {}, set()
    for side, query, passage in pairs:
        text = fingerprint(passage)
        pair = text + fingerprint(query)
        is_blank = not query.strip() or not passage.strip()
        if not is_blank and sides.setdefault(text, side) == side and pair not in seen:
            seen.add(pair)
            yield side, query, passage


def prepare_pairs(pairs, dataset, query_key, passage_key, val_fraction, data_dir):
    """Make the set of pairs that the settings describe, and return its meta. Raises like prepare."""
    options = dict(pairs=pairs, dataset=dataset, query_key=query_key, passage_key=passage_key,
                   val_fraction=val_fraction)
    path = os.path.realpath(os.path.expanduser(pairs))
    ending = os.path.splitext(path)[1].lower()
    if val_fraction == "auto":
        val_fraction = 0.1
    if pairs in ("python", "python_more"):
        split = split_python_pairs(val_fraction, more=pairs == "python_more")
    elif os.path.isdir(path) or (os.path.isfile(path) and ending in (".txt", ".md", ".rst", ".py")):
        split = split_folder_pairs(path, query_key, passage_key, val_fraction)
    elif os.path.isfile(path):
        read_rows = READERS.get(ending, read_jsonl)
        split = split_rows(read_rows(path), query_key, passage_key, val_fraction)
    elif pairs in PAIRS_HUB or re.fullmatch(r"[\w.-]+/[\w.-]+", pairs) and not pairs.lower().endswith(tuple(READERS)):
        load, query_key, passage_key = PAIRS_HUB.get(pairs, ({"path": pairs}, query_key, passage_key))
        split = split_rows(read_hub(load, "train"), query_key, passage_key, val_fraction)
    else:
        raise ValueError(f"no file {pairs}, and no set of pairs of that name; choose one of python, python_more, "
                         f"{', '.join(PAIRS_HUB)}, owner/name on the hub, a file and a folder")
    if dataset != "python":
        name = choose_name(dataset, path)
    elif os.path.exists(path) and pairs not in ("python", "python_more"):
        name = f"{choose_name(dataset, path)}_pairs"
    else:
        name = f"{pairs.split('/')[-1]}_pairs"

    folder, counts = os.path.join(data_dir, name), {"train": 0, "val": 0}
    with replacing_folder(folder, PAIR_FILES) as temporary:
        with (open(f"{temporary}/train.jsonl", "w", encoding="utf-8", newline="\n") as train,
              open(f"{temporary}/val.jsonl", "w", encoding="utf-8", newline="\n") as val,
              tqdm(unique(split), desc="pairs", unit=" pairs", disable=None) as bar):
            for side, query, passage in bar:
                file = train if side == "train" else val
                file.write(json.dumps({"query": query, "passage": passage}) + "\n")
                counts[side] += 1
        if not counts["train"] or not counts["val"]:
            raise ValueError(f"{pairs} gives {counts['train']} pairs to train on and {counts['val']} to hold out: give "
                             "more pairs, or another --val_fraction")
        meta = {"name": name, "options": options, "pairs": counts}
        write_meta(temporary, meta)
    print(f"{folder}: {counts['train']:,} pairs to train on, {counts['val']:,} held out")
    return meta


def main(args):
    """Make the dataset, or the pairs, that the settings describe."""
    if args.pairs and args.input:
        raise ValueError("--pairs makes pairs for retrieve.py, --input makes a dataset for train.py: give one of them")
    if args.pairs:
        return prepare_pairs(args.pairs, args.dataset, args.query_key, args.passage_key, args.val_fraction,
                             args.data_dir)
    sizes = {key: getattr(args, key) for key in generator_of(args.dataset)[1]}
    return prepare(args.dataset, args.input, args.tokenizer, args.vocab_size, args.text_key, args.val_fraction,
                   args.max_mb, args.data_dir, **sizes)


if __name__ == "__main__":
    run_script(main, "prepare.py")

"""
Turns text into the token files that train.py reads.

    python prepare.py                                   # the embedded dataset: Python source on this machine
    python prepare.py --dataset=tinystories             # from the Hugging Face hub
    python prepare.py --dataset=fineweb_edu --max_mb=1000
    python prepare.py --input=stories.txt --dataset=mine --tokenizer=byte
    python prepare.py --pairs=python                    # pairs for retrieve.py instead: pairs.py says which

--input is a text file (with <|endoftext|> between its documents), a .jsonl or .parquet file, or a folder of
.txt files. Written into data/<dataset>/, all at once when everything is done:

    train.bin, val.bin   token ids, uint16 or uint32; an end-of-text id follows each document
    tokenizer.tiktoken   the tokenizer: a line `base64(bytes) id` for each token
    meta.json            sizes, dtype, end-of-text id, and the regex that splits text before it is tokenized

documents.py has the reading and the split. The same text gives the same files. Memory stays flat however long
the text, if no single document is huge.
"""
import base64
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

from configurator import configure, fail
from dataset import build_tokenizer, replacing_folder, write_meta
from documents import HUB, Unusable, first_mb, read_input, split_documents, split_hub, split_python
from pairs import prepare_pairs

# defaults: change one with --key=value
dataset = "python"                  # python, tinystories, fineweb_edu, finemath; with --input, any name
input = ""                          # text file, .jsonl, .parquet or folder of .txt files of your own
tokenizer = "bpe"                   # bpe (trained on the text), byte, or of tiktoken: gpt2, cl100k_base, ...
vocab_size = 4096                   # of bpe: number of ids, end of text included
text_key = "text"                   # where .jsonl or .parquet hold the text
val_fraction: float | str = "auto"  # share of documents held out; auto: 0.1, of huge hub datasets 0.005
max_mb = 0                          # stop after this many MB of training text; 0: take all
data_dir = "data"                   # folder of the datasets
pairs = ""                          # query and passage: python, msmarco, ..., owner/name, or a .jsonl file
query_key = "query"                 # where a .jsonl file or a set of the hub holds the query
passage_key = "passage"             # and where the passage
# end of defaults

# Byte pairs are merged only inside the pieces that this regex finds. A word takes one character along (a
# space, but also the dot of `.append`), of several spaces the last is left to the word, newlines end a piece.
# The bounds of 256 are there because regex engines give up on a million spaces in a row.
PATTERN = (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s{0,256}[\r\n]+|\s{1,256}(?!\S)|\s")

TOKENIZER_MB = 200       # of text are enough to train a tokenizer
BATCH_CHARS = 8_000_000  # of text are held and encoded at a time
FILES = {"train.bin", "val.bin", "tokenizer.tiktoken", "meta.json"}


# ------------------------------------------------------------------------------------------------------------
# tokenizing and writing

def make_tokenizer(name, vocab_size, texts):
    """What dataset.build_tokenizer takes, as a dict. "bpe" is trained on `texts`, an iterable of str."""
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

    folder = os.path.join(data_dir, dataset)
    with replacing_folder(folder, FILES) as temporary:
        try:
            meta = {"name": dataset, "source": source, "options": options}
            meta |= write_dataset(split, tokenizer, vocab_size, max_mb, temporary)
        except Unusable as e:
            fail(*e.args)
        write_meta(temporary, meta)
    if tokenizer == "bpe" and meta["vocab_size"] < vocab_size:
        print(f"the text is too short for {vocab_size} ids; the vocabulary has {meta['vocab_size']}")
    train, val = meta["train"], meta["val"]
    print(f"{folder}: {train['tokens']:,} tokens to train on and {val['tokens']:,} to validate on, "
          f"{train['bytes'] / train['tokens']:.2f} bytes each")
    print(f"next: python train.py --dataset={dataset}")
    return meta


if __name__ == "__main__":
    config = configure(sys.argv[1:], __file__)
    for_pairs = {key: config.pop(key) for key in ("pairs", "query_key", "passage_key")}
    if for_pairs["pairs"]:
        prepare_pairs(**for_pairs, **{key: config[key] for key in ("dataset", "val_fraction", "data_dir")})
    else:
        prepare(**config)

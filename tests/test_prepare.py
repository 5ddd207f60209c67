"""prepare.py and the documents of lib/sources.py: text stays unaltered, and no error costs a dataset."""
import base64
import csv
import inspect
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiktoken

import prepare as module
from configurator import configure, read_defaults, run_script
from lib import sources as documents
from lib.data import build_tokenizer, load_meta, load_tokens, text_sums
from lib.sources import HUB, choose_side, read_text, split_documents, split_python
from prepare import first_mb, make_tokenizer, prepare

EOT = "<|endoftext|>"
HOSTILE = ["", " ", "\n", "\r\n", "a\r\nb\rc\n", "\t\x00\x7f\x0b", "naïve café A\u030a",
           "\U0001d518\U0001f469\u200d\U0010ffff\ue000", "\u2028\u3000\xa0 \u200b\ufeff", EOT,
           f"x = '{EOT}'\n{EOT}{EOT}", "<|endoftext", "  \n\n   x\n\t\ty  ", "it's '''self'''",
           "0123456789" * 7, "\ufdfa" * 40, "a" * 3000, " " * 3000 + "a", "\r\n" * 3000,
           "def f(x):\n    return x ** 2\n"]
STORIES = [f"Story {i}: {'so ' * (i % 7)}the {i * i} cats said “miau”\r\nand went home." for i in range(300)]
SETTINGS = [key for key in inspect.signature(prepare).parameters if key != "sizes"]


@pytest.fixture
def run(tmp_path):
    """prepare with the defaults of the command line, and data in a folder of the test."""
    settings = read_defaults("prepare.py")
    defaults = {key: settings[key].value for key in SETTINGS}

    def run(**settings):
        settings = {key: str(value) if key == "input" else value for key, value in settings.items()}
        return prepare(**defaults | {"data_dir": str(tmp_path / "data"), "vocab_size": 300} | settings)
    return run


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs the script, which must end with a status and one line, and leave everything on the disk as it was."""
    data = tmp_path / "data"

    def snapshot():
        return {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("?*") if path != data}

    def refused(status=2, **settings):
        before, _ = snapshot(), capsys.readouterr()
        settings = {"data_dir": data, "vocab_size": 300} | settings
        arguments = [f"--{key}={value}" for key, value in settings.items()]
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            run_script(module.main, "prepare.py")
        captured = capsys.readouterr()
        assert exit_info.value.code == status and captured.out == ""
        assert re.fullmatch("error: .+\n", captured.err), captured.err
        assert snapshot() == before
        return captured.err
    return refused


def write(path, text):
    """Write text (or bytes) as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_parquet(path, columns):
    """A parquet file with several row groups."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=40)
    return str(path)


def write_csv(path, rows):
    """A .csv file with a first line of columns."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def decoded(folder, side):
    """Documents of a split, cut at each end-of-text id: the ids alone, without prepare's own code."""
    meta = load_meta(folder)
    ids = load_tokens(folder, side, meta).tolist()
    tokens = [base64.b64decode(line.split()[0]) for line in meta["ranks"].splitlines()]  # in order of ids
    assert ids[-1] == meta["eot_id"] == len(tokens)
    documents, start = [], 0
    for i, token in enumerate(ids):
        if token == meta["eot_id"]:
            documents.append(b"".join(tokens[t] for t in ids[start:i]).decode())
            start = i + 1
    assert len(documents) == meta[side]["documents"] and len(ids) == meta[side]["tokens"]
    assert sum(len(text.encode()) for text in documents) == meta[side]["bytes"]
    return documents


def files_of(folder):
    """{name: bytes} of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------
# tokenizer

@pytest.mark.parametrize("name", ["bpe", "byte"])
def test_decoding_gives_back_hostile_text(name):
    """decode(encode(x)) == x for astral characters, CRLF, controls, separators, long runs of spaces."""
    tokenizer = build_tokenizer(make_tokenizer(name, 400, STORIES))
    for text in [*HOSTILE, "".join(HOSTILE)]:
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot_token not in ids


def test_byte_tokenizer_is_the_bytes():
    """The ids of the byte tokenizer are the UTF-8 bytes, and end of text is 256."""
    meta = make_tokenizer("byte", 4096, [])
    assert (meta["vocab_size"], meta["eot_id"], meta["dtype"]) == (257, 256, "uint16")
    for text in HOSTILE:
        assert build_tokenizer(meta).encode_ordinary(text) == list(text.encode())


def test_bpe_merges_the_most_frequent_pair_first():
    """Ids 0 to 255 are the bytes, the first merges as counted by hand; end of text comes last."""
    meta = make_tokenizer("bpe", 259, ["ab ab ab", "abc ab xyz"])  # 5 "ab", of which 3 " ab"
    tokens = [base64.b64decode(line.split()[0]) for line in meta["ranks"].splitlines()]
    assert tokens == [bytes([i]) for i in range(256)] + [b"ab", b" ab"]
    assert (meta["vocab_size"], meta["eot_id"]) == (259, 258)


def test_regex_splits_text_without_gaps():
    """The pieces of the split regex are the whole text: a gap would be lost when encoding."""
    regex = pytest.importorskip("regex")
    for text in [*HOSTILE, *STORIES]:
        assert "".join(regex.findall(module.PATTERN, text)) == text


def test_a_million_spaces_are_encoded():
    """Neither training nor encoding gives up on a run longer than a regex engine can backtrack."""
    text = " " * 2_000_000 + "a"
    tokenizer = build_tokenizer(make_tokenizer("bpe", 300, [text]))
    assert tokenizer.decode(tokenizer.encode_to_numpy(text).tolist()) == text


def test_builtin_tokenizer_keeps_its_ids(run, tmp_path, monkeypatch):
    """A tokenizer of tiktoken gives the same ids when it is read back; ids beyond 65,535 make it uint32."""
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 300, b"the": 70_000}
    original = tiktoken.Encoding("gpt2", pat_str=r"\w+|\W+", mergeable_ranks=ranks,
                                 special_tokens={EOT: 70_002})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: original)
    run(input=write(tmp_path / "a.txt", EOT.join(STORIES)), tokenizer="gpt2")
    meta = load_meta(tmp_path / "data/a")
    assert (meta["tokenizer"], meta["dtype"], meta["vocab_size"]) == ("gpt2", "uint32", 70_003)
    text = "the 5 Ärzte th"
    assert build_tokenizer(meta).encode_ordinary(text) == original.encode_ordinary(text)
    train = load_tokens(tmp_path / "data/a", "train", meta)
    assert train.dtype == np.uint32 and 70_000 in train and train[-1] == 70_002


@pytest.mark.parametrize("largest, dtype", [(65_535, "uint16"), (65_536, "uint32")])
def test_dtype_holds_the_largest_id(largest, dtype, monkeypatch):
    """uint16 for exactly up to 65,536 ids."""
    encoding = tiktoken.Encoding("gpt2", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)},
                                 special_tokens={EOT: largest})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    assert make_tokenizer("gpt2", 4096, [])["dtype"] == dtype


def test_tokenizer_never_sees_validation_text(run, tmp_path, monkeypatch):
    """bpe is trained on exactly the training documents."""
    seen = []
    monkeypatch.setattr(module, "make_tokenizer", lambda name, vocab_size, texts: (
        seen.extend(texts) or make_tokenizer(name, vocab_size, seen)))
    run(input=write(tmp_path / "a.txt", EOT.join(STORIES)))
    assert seen == decoded(tmp_path / "data/a", "train")


# ------------------------------------------------------------------------------------------------------------
# the token files

def test_bins_are_an_encoding_of_the_documents(run, tmp_path):
    """train.bin and val.bin equal an encoding made here, document by document, end of text after each."""
    meta = run(input=write(tmp_path / "a.txt", f"\n{EOT}\n".join(STORIES)), vocab_size=500)
    tokenizer = build_tokenizer(load_meta(tmp_path / "data/a"))
    for side in ("train", "val"):
        ids = []
        for text in STORIES:
            if choose_side(text.encode(), 0.1) == side:
                ids += [*tokenizer.encode_ordinary(text), 499]
        assert (tmp_path / f"data/a/{side}.bin").read_bytes() == np.array(ids, dtype="<u2").tobytes()
        assert meta[side]["tokens"] == len(ids)
    assert meta["vocab_size"] == 500 and meta["eot_id"] == 499


@pytest.mark.parametrize("name", ["bpe", "byte"])
def test_texts_encoded_together_are_those_encoded_alone(name):
    """Whatever stands at the ends of two texts, and with an end-of-text separator inside one or not."""
    tokenizer = build_tokenizer(make_tokenizer(name, 400, STORIES))
    plain = [text for text in HOSTILE if EOT not in text] + [EOT[:5], EOT[5:], EOT[:-1], ">", EOT[1:]]
    for texts in (plain, plain[::-1], [*plain, *HOSTILE], [EOT], [""], []):
        ids = []
        for text in texts:
            ids += [*tokenizer.encode_ordinary(text), tokenizer.eot_token]
        assert module.encode(texts, tokenizer).tolist() == ids


def test_batches_do_not_change_the_result(run, tmp_path, monkeypatch):
    """Many small batches give the bytes that one large gives, and so does a second run."""
    path = write(tmp_path / "a.txt", EOT.join(STORIES))
    for name, chars in (("one", 10 ** 9), ("again", 10 ** 9), ("many", 100)):
        monkeypatch.setattr(module, "BATCH_CHARS", chars)
        run(input=path, dataset=name)
    one, again, many = (files_of(tmp_path / "data" / name) for name in ("one", "again", "many"))
    assert set(one) == module.FILES
    for name in module.FILES - {"meta.json"}:
        assert one[name] == again[name] == many[name]


def test_same_input_same_bytes(run, tmp_path):
    """Preparing again replaces a dataset by the same bytes, meta.json included."""
    path = write(tmp_path / "a.txt", EOT.join(STORIES))
    run(input=path)
    first = files_of(tmp_path / "data/a")
    run(input=path)
    assert files_of(tmp_path / "data/a") == first
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a"]


def test_max_mb_stops_early():
    """It ends with the document that reaches the limit; validation text is free, empty text is left out."""
    documents = [("train", "a" * 400_000), ("val", "b" * 5_000_000), ("train", " "), ("train", "é" * 300_000),
                 ("val", "c")]
    assert list(first_mb(documents, 1)) == [documents[0], documents[1], documents[3]]
    assert list(first_mb(documents, 0)) == [documents[0], documents[1], documents[3], documents[4]]


# ------------------------------------------------------------------------------------------------------------
# split

def test_split_goes_by_the_text_alone():
    """Order and repetition do not move a document to the other side; the sides share no text."""
    forward = dict(reversed(pair) for pair in split_documents(STORIES, 0.1))
    backward = dict(reversed(pair) for pair in split_documents([*STORIES, *STORIES][::-1], 0.1))
    assert forward == backward and set(forward) == set(STORIES)
    val = [text for side, text in split_documents(STORIES * 2, 0.1) if side == "val"]
    train = [text for side, text in split_documents(STORIES * 2, 0.1) if side == "train"]
    assert not set(train) & set(val) and len(train) + len(val) == 600


def test_split_never_changes():
    """The side of a few keys, as first released: a change would leak validation text into training."""
    sides = "".join(choose_side(str(i).encode(), 0.3)[0] for i in range(30))
    assert sides == "ttvtttvttttttttttvvttttvtttttv"


def test_split_has_the_share_that_was_asked_for():
    """Of 20,000 keys, val_fraction are for validation, within four standard deviations."""
    n_val = sum(choose_side(str(i).encode(), 0.1) == "val" for i in range(20_000))
    assert abs(n_val - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5


def test_few_documents_are_each_cut():
    """Of fewer than 100 documents, each gives its first nine tenths to train, the rest to val."""
    few = STORIES[:99]
    pairs = list(split_documents(few, 0.1))
    assert [side for side, text in pairs] == ["train", "val"] * 99
    for text, (_, first), (_, last) in zip(few, pairs[::2], pairs[1::2]):
        assert first + last == text and len(first) == round(0.9 * len(text))


def test_python_dataset_takes_source_and_leaves_out_the_rest(tmp_path, monkeypatch):
    """Tests, vendored files, other encodings, copies and empty files are left out; the side goes by path."""
    kept = {"pkg/a.py": "a = 1\r\n", "pkg/sub/b.py": "b = 'ü'\n", "testimony.py": "c = 3\n",
            "contest.py": "d = 4\n"}
    left = {"pkg/tests/t.py": "t1", "test/t.py": "t2", "pkg/test_x.py": "t3", "pkg/x_test.py": "t4",
            "p/_vendor/v.py": "v", "site-packages/s.py": "s", "encodings/e.py": "e", "pkg/c.txt": "text",
            "pkg/zcopy.py": "a = 1\r\n", "pkg/latin.py": "x = 'ü'".encode("latin-1"), "conftest.py": "c",
            "pkg/__init__.py": " \n"}
    for path, text in (kept | left).items():
        write(tmp_path / "lib" / path, text)
    monkeypatch.setattr(documents, "python_roots", lambda: [tmp_path / "lib"])
    found = list(first_mb(split_python(0.5), 0))
    assert [text for _, text in found] == [kept[path] for path in sorted(kept)]
    assert [side for side, _ in found] == [choose_side(path.encode(), 0.5) for path in sorted(kept)]


def test_python_dataset_from_files_to_bins(run, tmp_path, monkeypatch, capsys):
    """The default command, on a small library; the next command is printed."""
    for i in range(60):
        write(tmp_path / f"lib/m{i}.py", f"x = {i}\ny = '{EOT}'\n" * 5)
    monkeypatch.setattr(documents, "python_roots", lambda: [tmp_path / "lib"])
    run()
    texts = decoded(tmp_path / "data/python", "train") + decoded(tmp_path / "data/python", "val")
    assert sorted(texts) == sorted(f"x = {i}\ny = '{EOT}'\n" * 5 for i in range(60))
    assert "python train.py --dataset=python" in capsys.readouterr().out


@pytest.mark.parametrize("name, sizes", [
    ("recall", {"n_documents": 3000, "n_pairs": 2, "n_keys": 3, "n_values": 4}),
    ("recall", {"n_documents": 200, "n_pairs": 8, "n_keys": 26, "n_values": 26}),
    ("copy", {"n_documents": 3000, "n_keys": 2, "n_letters": 5}),
    ("copy", {"n_documents": 200, "n_keys": 36, "n_letters": 37}),
])
def test_generated_documents_from_settings_to_bins(name, sizes, run, tmp_path):
    """They are bytes, the same ones each time; a validation document is new, even where documents come again."""
    meta = run(dataset=name, **sizes)
    train, val = decoded(tmp_path / "data" / name, "train"), decoded(tmp_path / "data" / name, "val")
    assert (meta["vocab_size"], meta["tokenizer"], len(train) + len(val)) == (257, "byte", sizes["n_documents"])
    assert val and not {*train} & {*val}
    assert sizes["n_documents"] == 200 or len({*train}) < len(train)
    length = 4 * sizes["n_pairs"] + 1 if name == "recall" else 2 * sizes["n_letters"] + 1
    assert {len(text) for text in train + val} == {length} and all(text[length // 2] == "|" for text in train + val)
    first = files_of(tmp_path / "data" / name)
    run(dataset=name, **sizes)
    assert files_of(tmp_path / "data" / name) == first
    assert sizes.items() <= json.loads(first["meta.json"])["options"].items()


# ------------------------------------------------------------------------------------------------------------
# formats

@pytest.mark.parametrize("piece_bytes", [1, 2 ** 20])
def test_text_is_cut_at_separators(piece_bytes, tmp_path, monkeypatch):
    """On lines of their own, inside lines, doubled, at the ends: documents are what stands between."""
    text = (f"\ufeff{EOT}\nfirst\r\nline  \r\n{EOT}\r\n\r\n  second{EOT}third{EOT}{EOT}\n\n{EOT}\n"
            "last\u2028\x85 line\n")
    monkeypatch.setattr(documents, "READ_BYTES", piece_bytes)
    texts = [text for text in read_text(write(tmp_path / "a.txt", text)) if text]
    assert texts == ["first\r\nline  ", "  second", "third", "last\u2028\x85 line"]


def test_formats_give_the_same_files(run, tmp_path):
    """Each format, and a folder, with the same documents give the same tokens and tokenizer."""
    rows = [{"id": i, "body": text} for i, text in enumerate(STORIES)]
    write(tmp_path / "txt.txt", f"\n{EOT}\n".join(STORIES))
    write(tmp_path / "inline.log", EOT.join(STORIES))
    write(tmp_path / "json.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    write(tmp_path / "utf8.JSONL", "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    write_parquet(tmp_path / "table.parquet", {"id": list(range(300)), "body": STORIES})
    write(tmp_path / "array.json", json.dumps(rows, indent=1))
    write(tmp_path / "lines.Json", "\n".join(json.dumps(row) for row in rows))
    write_csv(tmp_path / "cells.CSV", rows)
    write(tmp_path / "folder/b/2.txt", EOT.join(STORIES[200:]))
    write(tmp_path / "folder/a.txt", EOT.join(STORIES[:150]))
    write(tmp_path / "folder/b/1.txt", EOT.join(STORIES[150:200]))
    write(tmp_path / "folder/readme.md", "not taken")
    results = {}
    for name in ("txt.txt", "inline.log", "json.jsonl", "utf8.JSONL", "array.json", "lines.Json", "cells.CSV",
                 "table.parquet", "folder"):
        meta = run(input=tmp_path / name, text_key="body")
        results[name] = files_of(tmp_path / "data" / name.split(".")[0])
        results[name].pop("meta.json")
        assert meta["name"] == name.split(".")[0]
    assert all(result == results["txt.txt"] for result in results.values())


def test_an_array_of_texts_is_read(run, tmp_path):
    """A .json file may hold nothing but texts; null counts as an empty one."""
    run(input=write(tmp_path / "a.json", " \n" + json.dumps([*STORIES, None])))
    assert decoded(tmp_path / "data/a", "train") + decoded(tmp_path / "data/a", "val") == sorted(
        STORIES, key=lambda text: choose_side(text.encode(), 0.1))


def test_cells_may_be_long_and_hold_line_ends(run, tmp_path):
    """A cell beyond the limit of the csv module, with quotes, commas and all kinds of line ends in it."""
    text = 'say "a, b"\r\nand\rgo\n\u2028' * 20_000
    run(input=write_csv(tmp_path / "a.csv", [{"id": 1, "text": text}, {"id": 2, "text": ""}]), tokenizer="byte")
    assert decoded(tmp_path / "data/a", "train") + decoded(tmp_path / "data/a", "val") == [
        text[:round(0.9 * len(text))], text[round(0.9 * len(text)):]]


def test_folder_of_all_kinds_of_files(run, tmp_path, capsys):
    """All formats in any case, each file once; hidden files and other formats are skipped, and counted."""
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    write(folder / "a.TXT", "text a")
    write(folder / "book.txt/chapter.txt", "text b")  # a folder, whatever its name
    write(folder / "c.Jsonl", '{"text": "text c"}\n')
    write(folder / "d.json", '[{"text": "text d", "id": 5}]')
    write_csv(folder / "e.csv", [{"id": 7, "text": "text e"}])
    write_parquet(folder / "f[*?].parquet", {"id": [3], "text": ["text f"]})
    write(outside / "g.txt", "text g")
    for name in ("._a.TXT", ".hidden.txt", ".git/x.txt"):
        write(folder / name, b"\x00\xff")
    for name in ("notes.md", "more.md", "photo.jpg", "README"):
        write(folder / "other" / name, b"\x00\xff")
    os.symlink(outside, folder / "linked")
    os.symlink(outside, folder / "linked_again")
    os.symlink(folder, folder / "book.txt/circle")
    os.symlink(folder / "a.TXT", folder / "z.txt")
    os.symlink(tmp_path / "nowhere", folder / "broken.txt")
    run(input=folder, tokenizer="byte", val_fraction=0.2)
    texts = [a + b for a, b in zip(*(decoded(tmp_path / "data/folder", side) for side in ("train", "val")))]
    assert texts == [f"text {letter}" for letter in "abcdefg"]
    assert (f"skipped in {folder}: 1 .jpg, 2 .md, 1 .txt, 3 hidden, 3 linked twice, 1 without ending\n"
            in capsys.readouterr().out)


def test_folder_that_cannot_be_read_is_named(refused, tmp_path, monkeypatch):
    """A part of the text must not be missing in silence."""
    write(tmp_path / "folder/a.txt", "words " * 50)
    (tmp_path / "folder/locked").mkdir()
    listed = documents.Path.iterdir

    def iterdir(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)
    monkeypatch.setattr(documents.Path, "iterdir", iterdir)
    assert "locked: permission denied" in refused(input=tmp_path / "folder")


@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv", "parquet"])
def test_names_are_no_patterns(ending, run, tmp_path):
    """[ ] * and ? in the names of files and folders stand for themselves."""
    path = tmp_path / "[set]*" / f"a[b]?{{c}}.{ending}"
    path.parent.mkdir()
    {"txt": lambda: write(path, EOT.join(STORIES)),
     "jsonl": lambda: write(path, "\n".join(json.dumps({"text": text}) for text in STORIES)),
     "json": lambda: write(path, json.dumps(STORIES)),
     "csv": lambda: write_csv(path, [{"text": text} for text in STORIES]),
     "parquet": lambda: write_parquet(path, {"text": STORIES})}[ending]()
    meta = run(input=path, tokenizer="byte")
    assert meta["name"] == "a_b___c_" and meta["train"]["documents"] + meta["val"]["documents"] == 300


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    """~ stands for the home folder, in --input and --data_dir of the command line."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path / "my text.txt", "to be or not to be\n" * 20)
    settings = configure(["--input=~/my text.txt", "--data_dir=~/sets", "--tokenizer=byte"], "prepare.py")
    prepare(**{key: settings[key] for key in SETTINGS})
    assert decoded(tmp_path / "sets/my_text", "val")[0].endswith("not to be")


def test_small_text_gives_a_smaller_vocabulary(run, tmp_path, capsys):
    """One short document suffices; that its vocabulary is smaller than asked for is said in one line."""
    meta = run(input=write(tmp_path / "a.txt", "abcdefghij" * 3), dataset="b", vocab_size=4096)
    assert 257 < meta["vocab_size"] < 290
    assert f"the vocabulary has {meta['vocab_size']}\n" in capsys.readouterr().out
    assert decoded(tmp_path / "data/b", "train") == [("abcdefghij" * 3)[:27]]
    assert decoded(tmp_path / "data/b", "val") == ["hij"]


# ------------------------------------------------------------------------------------------------------------
# hub, from parquet files with the columns that these sets have there

@pytest.fixture
def offline(monkeypatch, tmp_path):
    """datasets without network, and its cache in a folder of the test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def use_local(monkeypatch, name, files):
    """Have datasets.load_dataset read local files in the place of a hub dataset; column and split stay."""
    _, text_key, val = HUB[name]
    monkeypatch.setitem(HUB, name, ({"path": "parquet", "data_files": files}, text_key, val))


def test_hub_split_for_validation_is_used(run, tmp_path, monkeypatch, offline):
    """tinystories: its validation split is val, its train split train; empty stories are left out."""
    files = {"train": write_parquet(tmp_path / "t.parquet", {"text": [*STORIES[:250], ""]}),
             "validation": write_parquet(tmp_path / "v.parquet", {"text": STORIES[250:]})}
    use_local(monkeypatch, "tinystories", files)
    run(dataset="tinystories")
    assert decoded(tmp_path / "data/tinystories", "train") == STORIES[:250]
    assert decoded(tmp_path / "data/tinystories", "val") == STORIES[250:]


@pytest.mark.parametrize("name", ["fineweb_edu", "finemath"])
def test_hub_set_without_validation_is_split(name, run, tmp_path, monkeypatch, offline):
    """fineweb_edu and finemath: 0.005 of the documents are held out unless another share is given."""
    n = 2000
    columns = {"text": [f"page {i}" for i in range(n)], "url": ["http"] * n, "token_count": [7] * n,
               "score": [3.5] * n, "int_score": [3] * n, "language": ["en"] * n}
    use_local(monkeypatch, name, {"train": write_parquet(tmp_path / "t.parquet", columns)})
    meta = run(dataset=name)
    sides = [choose_side(text.encode(), 0.005) for text in columns["text"]]
    assert meta["val"]["documents"] == sides.count("val")
    assert run(dataset=name, val_fraction=0.3)["val"]["documents"] > 500
    assert meta["train"]["documents"] + meta["val"]["documents"] == n


def test_hub_out_of_reach_is_one_line(refused, monkeypatch, offline):
    """Without the hub, or without the package, an error names the way that needs neither."""
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert "--input" in refused(dataset="tinystories", status=1)
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refused(dataset="finemath", status=1)
    assert "--input" in message and "pip install datasets" in message


# ------------------------------------------------------------------------------------------------------------
# failures

@pytest.mark.parametrize("moment", ["make_tokenizer", "encode_documents"])
def test_interrupted_run_leaves_the_old_dataset(moment, run, refused, tmp_path, monkeypatch):
    """Ctrl-C, at any moment: one line, no half-made folder, and a dataset made before stays."""
    path = write(tmp_path / "a.txt", EOT.join(STORIES))
    run(input=path)
    original = getattr(module, moment)

    def interrupted(*args):
        original(*args)
        raise KeyboardInterrupt
    monkeypatch.setattr(module, moment, interrupted)
    assert "interrupted" in refused(input=path, status=130)
    assert "interrupted" in refused(input=path, dataset="new", status=130)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a"]


def test_crash_leaves_nothing(run, tmp_path, monkeypatch):
    """An error that nobody foresaw removes the temporary folder as well."""
    monkeypatch.setattr(module, "encode_documents", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(input=write(tmp_path / "a.txt", "text " * 50))
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["train.bin", "progress.json"])
def test_leftovers_of_a_killed_run_are_removed(name, run, tmp_path):
    """What a killed run left beside the dataset does not get into the next one."""
    write(tmp_path / "data/a.tmp" / name, b"half")
    write(tmp_path / "data/a.old/meta.json", b"older")
    write(tmp_path / "data/a/meta.json", b"old")
    run(input=write(tmp_path / "a.txt", "some text " * 50))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a"]
    assert set(files_of(tmp_path / "data/a")) == module.FILES


class Stream:
    """The documents of STORIES in the place of read_input, without `gone` after the second pass begins."""

    def __init__(self, dies_at):
        self.dies_at, self.passes = dies_at, 0

    def __call__(self, *_):
        self.passes += 1
        for number, text in enumerate(STORIES):
            if self.passes == 2 and number == self.dies_at:
                raise ConnectionError("the hub is gone")
            yield text


@pytest.fixture
def interrupted(run, tmp_path, monkeypatch):
    """interrupted(n) prepares data/a with a source that fails after n of 300 documents; returns the rest of the work.

    The rest is a function of settings, which runs prepare and returns (files, documents that were encoded, sorted, and
    passes over the source). Progress is saved about every 20 documents, from about the 50th on.
    """
    monkeypatch.setattr(module, "TOKENIZER_MB", 0.003)
    monkeypatch.setattr(module, "BATCH_CHARS", 500)
    monkeypatch.setattr(module, "SAVE_BATCHES", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # more would encode all of it ahead
    path = write(tmp_path / "a.txt", EOT.join(STORIES))
    encode, encoded = module.encode, []

    def counting(texts, tokenizer):
        encoded.extend(texts)
        return encode(texts, tokenizer)
    monkeypatch.setattr(module, "encode", counting)

    def rest(**settings):
        encoded.clear()
        stream = Stream(None)
        monkeypatch.setattr(module, "read_input", stream)
        run(input=path, **settings)
        assert os.listdir(tmp_path / "data") == ["a"]
        return files_of(tmp_path / "data/a"), sorted(encoded), stream.passes

    def interrupted(dies_at):
        monkeypatch.setattr(module, "read_input", Stream(dies_at))
        with pytest.raises(ConnectionError):
            run(input=path)
        return rest
    interrupted.straight = rest
    return interrupted


@pytest.mark.parametrize("dies_at", [150, 299])
def test_an_interrupted_run_goes_on(dies_at, interrupted, capsys):
    """The files are those of one run, byte by byte; what was encoded is not encoded again, the tokenizer stays."""
    straight, all_documents, passes = interrupted.straight()
    assert set(straight) == module.FILES and all_documents == sorted(STORIES) and passes == 2
    rest = interrupted(dies_at)
    assert "a.tmp keeps what is done" in capsys.readouterr().out
    files, encoded, passes = rest()
    assert files == straight and passes == 1 and "going on after" in capsys.readouterr().out
    assert encoded == sorted(STORIES[300 - len(encoded):])
    assert 300 - dies_at <= len(encoded) < 300 - dies_at + 100  # batches on the way are lost
    assert rest()[1:] == (all_documents, 2)  # nothing is left of it


def test_a_run_goes_on_twice(interrupted, run, tmp_path, monkeypatch):
    """Interrupted again while it goes on, it still gives the same bytes."""
    straight = interrupted.straight()[0]
    rest = interrupted(150)
    stream = Stream(250)
    stream.passes = 1  # the tokenizer needs no pass of its own this time
    monkeypatch.setattr(module, "read_input", stream)
    with pytest.raises(ConnectionError):
        run(input=tmp_path / "a.txt")
    files, encoded, _ = rest()
    assert files == straight and len(encoded) < 150


@pytest.mark.parametrize("settings", [{"vocab_size": 301}, {"tokenizer": "byte"}, {"val_fraction": 0.2}])
def test_another_command_does_not_go_on(settings, interrupted):
    """Its files are those of a run of its own, and the unfinished work is gone."""
    straight = interrupted.straight(**settings)
    rest = interrupted(150)
    assert rest(**settings) == straight
    assert rest()[2] == 2


def test_other_text_does_not_go_on(interrupted, run, tmp_path, monkeypatch):
    """If what was encoded has changed, the command says so, and begins anew when it is given again."""
    rest = interrupted(150)
    monkeypatch.setattr(module, "read_input", lambda *_: iter(["Another story.", *STORIES[1:]]))
    with pytest.raises(ValueError, match="the text has changed"):
        run(input=tmp_path / "a.txt")
    assert rest()[1] == sorted(STORIES)


def test_the_text_of_the_tokenizer_may_change_after_an_interruption(interrupted, monkeypatch):
    """Even behind the documents that were encoded: the files are those of a straight run on the text of today."""
    monkeypatch.setattr(module, "TOKENIZER_MB", 0.01)  # about 180 documents
    rest = interrupted(150)
    monkeypatch.setattr(f"{__name__}.STORIES", [*STORIES[:155], *["zigzag quiz"] * 10, *STORIES[165:]])
    files, _, passes = rest()
    assert passes == 2 and files == interrupted.straight()[0]


def test_an_empty_split_does_not_go_on(run, tmp_path, monkeypatch, capsys):
    """The same command would fail again: nothing is kept, and nothing says that it goes on."""
    for name, value in ("TOKENIZER_MB", 0), ("BATCH_CHARS", 500), ("SAVE_BATCHES", 1):
        monkeypatch.setattr(module, name, value)
    with pytest.raises(ValueError, match="val split is empty"):
        run(input=write(tmp_path / "a.txt", EOT.join(STORIES)), tokenizer="byte", val_fraction=1e-9)
    assert os.listdir(tmp_path / "data") == [] and "goes on" not in capsys.readouterr().out


def test_the_same_text_elsewhere_is_the_same(run, tmp_path):
    """The checksums that tell one text from another do not depend on where it is read and written."""
    sums = []
    for folder, text in ("here", STORIES), ("there", STORIES), ("other", STORIES[1:]):
        run(input=write(tmp_path / folder / "a.txt", EOT.join(text)), data_dir=str(tmp_path / folder / "data"))
        sums.append(text_sums(load_meta(tmp_path / folder / "data/a")))
    assert {*sums[0]} == {"train.bin", "val.bin", "tokenizer.tiktoken"} and sums[0] == sums[1] != sums[2]


def test_a_killed_run_goes_on(run, tmp_path, monkeypatch):
    """Killed without a chance to tidy up: the same command gives the same bytes."""
    monkeypatch.setattr(module, "TOKENIZER_MB", 0.003)
    path = write(tmp_path / "a.txt", EOT.join(STORIES))
    code = """if True:
        import os, sys, time
        os.cpu_count = lambda: 2
        sys.path.insert(0, sys.argv.pop(1))
        import prepare
        from configurator import run_script
        prepare.TOKENIZER_MB, prepare.BATCH_CHARS, prepare.SAVE_BATCHES = 0.003, 500, 2
        whole, passes = prepare.read_input, []

        def read_input(*arguments):
            passes.append(1)
            for number, text in enumerate(whole(*arguments)):
                if len(passes) == 2 and number == 200:
                    print("here", flush=True)
                    time.sleep(600)
                yield text
        prepare.read_input = read_input
        run_script(prepare.main, "prepare.py")"""
    settings = [f"--input={path}", f"--data_dir={tmp_path / 'data'}", "--vocab_size=300"]
    command = [sys.executable, "-c", code, os.path.dirname(module.__file__), *settings]
    run(input=path)
    straight = files_of(tmp_path / "data/a")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.kill()
    assert files_of(tmp_path / "data/a") == straight and "progress.json" in files_of(tmp_path / "data/a.tmp")
    done = subprocess.run([sys.executable, module.__file__, *settings], check=True, capture_output=True, text=True)
    assert re.search(r"going on after 1\d\d documents", done.stdout)
    assert files_of(tmp_path / "data/a") == straight and os.listdir(tmp_path / "data") == ["a"]


def test_a_second_prepare_waits(tmp_path):
    """It says so, and makes the dataset when the first has ended; no lock is left behind."""
    write(tmp_path / "a.txt", EOT.join(STORIES))
    code = (f"import sys; sys.path.insert(0, {os.path.dirname(module.__file__)!r})\n"
            "from lib.data import replacing_folder\n"
            "with replacing_folder('data/a', set()) as folder:\n"
            "    open(folder + '/train.bin', 'w').close(); print('at work', flush=True); input()")
    options = dict(cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **options) as first:
        assert first.stdout.readline() == "at work\n"
        command = [sys.executable, module.__file__, "--input=a.txt", "--tokenizer=byte"]
        with subprocess.Popen(command, **options) as second:
            assert "waiting" in second.stdout.readline()
            assert second.poll() is None and os.listdir(tmp_path / "data/a.tmp") == ["train.bin"]
            first.communicate("\n")
            assert "--dataset=a" in second.communicate()[0] and second.returncode == 0
    assert decoded(tmp_path / "data/a", "train") == [
        text for text in STORIES if choose_side(text.encode(), 0.1) == "train"]
    assert os.listdir(tmp_path / "data") == ["a"]


def test_prepares_of_one_dataset_at_once_all_succeed(tmp_path):
    """Four at a time: each reports a dataset, and the last is whole."""
    write(tmp_path / "a.txt", EOT.join(STORIES))
    command = [sys.executable, module.__file__, "--input=a.txt", "--tokenizer=byte"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(4)]
    for process in runs:
        process.communicate()
    assert [process.returncode for process in runs] == [0] * 4
    assert len(decoded(tmp_path / "data/a", "train") + decoded(tmp_path / "data/a", "val")) == 300
    assert os.listdir(tmp_path / "data") == ["a"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_linked_dataset_folder_stays_a_link(exists, run, tmp_path):
    """The files land in the folder that the link names, whether it is there yet or not, and do so each time."""
    path, disk = write(tmp_path / "a.txt", EOT.join(STORIES)), tmp_path / "disk/a"
    if exists:
        disk.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    os.symlink(disk, tmp_path / "data/a")
    for _ in range(2):
        run(input=path, tokenizer="byte")
        assert (tmp_path / "data/a").is_symlink() and set(files_of(disk)) == module.FILES
        assert os.listdir(tmp_path / "data") == os.listdir(tmp_path / "disk") == ["a"]
    os.rename(disk, tmp_path / "disk/a.old")  # killed between the two renames
    assert load_meta(tmp_path / "data/a")["name"] == "a"


def test_what_file_managers_leave_does_not_block(run, refused, tmp_path):
    """.DS_Store and the like may stand in a dataset's folder, but no hidden file of another kind."""
    path = write(tmp_path / "a.txt", "words " * 50)
    for name in (".DS_Store", "._meta.json", "Thumbs.db", "desktop.ini"):
        write(tmp_path / "data/a" / name, b"litter")
    run(input=path)
    assert set(files_of(tmp_path / "data/a")) == module.FILES
    write(tmp_path / "data/a/.git/HEAD", b"work of weeks")
    assert "not a dataset's" in refused(input=path)


def test_a_name_cannot_be_that_of_a_temporary_folder(refused, tmp_path):
    """a.tmp and a.old would be removed when a is made."""
    path = write(tmp_path / "a.txt", "words " * 50)
    for name in ("a.tmp", "a.old", "../a", ""):
        assert "names a folder" in refused(input=path, dataset=name)


def test_other_peoples_folders_are_not_replaced(refused, tmp_path):
    """A folder of that name that holds anything else is left alone: here, the input itself."""
    path = write(tmp_path / "data/a/thesis.txt", "words " * 50)
    assert "not a dataset's" in refused(input=path, dataset="a")


def test_data_folder_that_cannot_be_written(refused, tmp_path):
    """A file in the place of the folder: status 1 and one line."""
    write(tmp_path / "blocked", b"")
    path = write(tmp_path / "a.txt", "words " * 50)
    assert "cannot write" in refused(input=path, data_dir=str(tmp_path / "blocked"), status=1)


@pytest.mark.parametrize("settings, part", [
    ({"dataset": "tinystorys"}, "tinystories, fineweb_edu, finemath, and --input"),
    ({"tokenizer": "wordpiece"}, "bpe, byte, "),
    ({"vocab_size": 257}, "258"),
    ({"vocab_size": -1}, "258"),
    ({"val_fraction": 0.0}, "(0, 1)"),
    ({"val_fraction": 1.0}, "(0, 1)"),
    ({"val_fraction": "1e999 - 1e999"}, "(0, 1)"),
    ({"val_fraction": "much"}, "(0, 1)"),
    ({"max_mb": -1}, "max_mb"),
    ({"input": "no such file.txt"}, "no such file.txt"),
    ({"dataset": "recall", "n_pairs": 27}, "raise --n_keys"),
    ({"dataset": "recall", "n_pairs": 37}, "[1, 36]"),
    ({"dataset": "recall", "n_documents": 99}, "[100, inf)"),
    ({"dataset": "copy", "n_letters": 0}, "[1, inf)"),
    ({"input": "~/../nowhere/"}, "nowhere"),
    ({"input": "~nobody-of-this-name/a.txt"}, "nobody"),
    ({"input": "long" * 1000}, "no file"),
])
def test_wrong_setting_is_one_line(settings, part, refused):
    """The line names what is wrong and what there is instead."""
    assert part in refused(**settings)


@pytest.mark.parametrize("name, content, parts", [
    ("a.txt", b"", ["split is empty"]),
    ("a.txt", b" \n\r\n<|endoftext|>\n", ["split is empty"]),
    ("a.txt", b"x", ["val split is empty"]),
    ("a.txt", EOT.join(["same text"] * 200).encode(), ["split is empty", "--val_fraction"]),
    ("a.txt", b"good \xc3\xa4\ngood " + b"line\n" * 300_000 + b"bad \xff here", ["a.txt", "offset 1500017"]),
    ("a.txt", "\ufeffwords".encode("utf-16"), ["a.txt", "offset 0"]),
    ("a.txt", b"\xef\xbb\xbfcut \xe2\x82", ["offset 7"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', ["line 2", "not JSON"]),
    ("a.jsonl", b'{"text": "a"}\n\n["text"]\n', ["line 3", "object"]),
    ("a.jsonl", b'{"body": "a", "id": 1}\n', ["line 1", "'text'", "body, id", "--text_key"]),
    ("a.jsonl", b'{"text": 5}\n', ["line 1", "int"]),
    ("a.jsonl", b'{"text": "\\ud800"}\n', ["line 1", "surrogate"]),
    ("a.jsonl", b'{"text": "\xff"}\n', ["offset 10"]),
    ("a.jsonl", b"[" * 100_000, ["line 1", "not JSON"]),
    ("a.parquet", b"PAR1 but not really", ["a.parquet"]),
    ("a.jsonl", b'"a text"\n', ["line 1", "object"]),
    ("a.json", b'{"data": [\n{"text": "a"}]}\n', ["a.json, line 1", "holds an array, or one object per line"]),
    ("a.json", b'[{"text": "a"}]\n[]', ["a.json is not JSON"]),
    ("a.json", b'[{"body": "a", "id": 1}]', ["item 1", "body, id", "--text_key"]),
    ("a.json", b'[{"text": "a"}, 7]', ["item 2", "int"]),
    ("a.json", b"[" * 100_000, ["not JSON"]),
    ("a.csv", b"id,body\n1,a\n", ["line 2", "id, body", "--text_key"]),
    ("a.csv", b"id,text\n1,a\n2,a, b\n", ["line 3", "more cells"]),
    ("a.csv", b'id,text\n1,"a\n', ["line 2", "not CSV"]),
    ("a.csv", b"id,text\n", ["split is empty"]),
    ("a.csv", "id,text\n1,ä\n".encode("latin-1"), ["offset 10"]),
    ("a.tsv", b"id\ttext\n1\ta\n", ["a.tsv", ".txt, .jsonl, .json, .csv, .parquet"]),
    ("a.jsonl.gz", b"\x1f\x8b", ["a.jsonl.gz", ".txt, .jsonl, .json, .csv, .parquet"]),
    ("folder/readme.md", b"no .txt here", ["nothing to read", "folder", ".txt, .jsonl, .json, .csv, .parquet"]),
    ("...", b"words " * 50, ["name", "letters"]),
])
def test_bad_input_is_one_line(name, content, parts, refused, tmp_path):
    """Each kind of file that cannot be used: the line says which file and where; nothing is written."""
    write(tmp_path / name, content)
    message = refused(input=tmp_path / name.split("/")[0])
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("columns, part", [
    ({"body": ["a"], "id": [1]}, "body, id"), ({"text": [1, 2]}, "int")])
def test_parquet_without_text_is_one_line(columns, part, refused, tmp_path):
    """A missing column names those that there are; a column of numbers is no text."""
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert part in refused(input=path)


def test_damaged_parquet_is_named(refused, tmp_path):
    """The line names the file, not the library's word for its kind."""
    path = write(tmp_path / "a.parquet", b"PAR1 but not really")
    assert refused(input=path).startswith(f"error: cannot read {path}: ")


@pytest.mark.parametrize("name", ["python.txt", "Python.jsonl", "tinystories/a.txt", "python_pairs.txt", "copy.txt"])
def test_input_does_not_take_the_name_of_another_dataset(name, refused, run, tmp_path):
    """A file called like an embedded dataset, or one of the hub, needs --dataset."""
    path = write(tmp_path / name, '{"text": "words and words and words"}\n')
    path = path.parent if path.name == "a.txt" else path
    assert "--dataset=NAME" in refused(input=path)
    assert run(input=path, dataset="mine")["name"] == "mine"


def test_missing_package_is_one_line(refused, tmp_path, monkeypatch):
    """Without rustbpe, the line says what to install."""
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    assert "pip install rustbpe" in refused(input=write(tmp_path / "a.txt", "words " * 50), status=1)


@pytest.mark.parametrize("arguments", [["--input=bad.txt", "--tokenizer=byte"], ["--input=bad.txt"],
                                       ["--pairs=bad.jsonl"]])
def test_an_error_stands_on_a_line_of_its_own(arguments, tmp_path, monkeypatch):
    """On a terminal, the progress bar is closed before the error is printed."""
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.txt", EOT.join(STORIES).encode() + b"\xff")
    write(tmp_path / "bad.jsonl", '{"query": "a", "passage": "b"}\n{')
    monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(SystemExit):
        run_script(module.main, "prepare.py")
    *bars, last, end = sys.stderr.getvalue().split("\n")
    assert bars and last.startswith("error: ") and end == ""


def test_tokenizer_that_cannot_be_downloaded(refused, tmp_path, monkeypatch):
    """Status 1, and the tokenizers that need no download are named."""
    def unreachable(name):
        raise OSError("no network")
    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    message = refused(input=write(tmp_path / "a.txt", "words " * 50), tokenizer="gpt2", status=1)
    assert "gpt2" in message and "bpe and byte" in message


def test_command_line(tmp_path):
    """As a user calls it: a typo is status 2 and one line; a good call is status 0 and silent on stderr."""
    def call(*arguments):
        command = [sys.executable, module.__file__, *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    write(tmp_path / "a.txt", "words and words " * 50)
    wrong = call("--tokeniser=byte")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "tokenizer" in wrong.stderr
    right = call("--input=a.txt", "--tokenizer=byte")
    assert right.returncode == 0 and right.stderr == ""
    assert (tmp_path / "data/a/train.bin").stat().st_size == 2 * 721  # 0.9 of 800 bytes, and end of text
    assert "--dataset=a" in right.stdout

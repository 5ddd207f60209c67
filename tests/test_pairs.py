"""Pairs of query and passage: what becomes one, no leaks between the sides, several right passages of a query."""
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from lib import sources
from lib.sources import (choose_held_out, docstring_pairs, further_pairs, load_pairs, opening_pairs, section_pairs,
                         split_folder_pairs, split_python_pairs, split_rows)
from prepare import prepare, prepare_pairs, unique


SOURCE = '''
class Reader:
    """Reads the lines of a file, one after the other.

    Slowly.
    """

    def next_line(self, skip_blank=True):
        """Return the next line,
        or None at the end."""
        line = self.file.readline()
        return self.next_line() if skip_blank and not line.strip() else line

    def short(self):
        """A docstring that is long enough."""
        return 1

    async def undocumented(self): return await self.file.read(), "no docstring, though long enough to be one"

    def terse(self, a, b, c, d):
        """Too short."""
        return [a + b + c + d for _ in range(100)], [a * b * c * d for _ in range(100)]

def one_line(): "A docstring that stands on the line of its function, which leaves no body at all"
'''


def test_docstrings_become_queries_and_their_code_passages():
    """The first paragraph on one line; the code without it, with all else that is in it; no short ones."""
    found = dict(docstring_pairs(SOURCE))
    queries = ["Reads the lines of a file, one after the other.", "Return the next line, or None at the end."]
    assert list(found) == queries
    assert found[queries[1]] == (
        "def next_line(self, skip_blank=True):\n    line = self.file.readline()\n"
        "    return self.next_line() if skip_blank and not line.strip() else line")
    first = found[queries[0]]
    assert first.startswith("class Reader:\n") and "Slowly" not in first and '"""Too short."""' in first


def test_further_pairs_of_source():
    """Later paragraphs, names of what has no docstring (the name is not in the code), and comments."""
    source = '''
def fetch(url):
    """Short.

    Raises an error when
    the server says no.
    """
    return urlopen(url, timeout=10, headers={"User-Agent": "a browser of some kind", "Accept": "*/*"}).read()

def parseHTTPResponse_lines2(text):
    # the header ends at the first empty line,
    # whatever it says
    head, _, body = text.partition("an empty line that is long enough")
    return parseHTTPResponse_lines2(body) if head else dict(line.split(": ") for line in head)
'''
    found = list(further_pairs(source))
    assert [query for query, _ in found] == [
        "Raises an error when the server says no.", "parse http response lines 2",
        "the header ends at the first empty line, whatever it says"]
    assert found[0][1].startswith("def fetch(url):\n    return urlopen(url")
    assert found[1][1].startswith("def _(text):\n") and "return _(body)" in found[1][1]
    assert found[2][1].startswith("head, _, body") and found[2][1].endswith("for line in head)")
    assert list(further_pairs("def f(:")) == []


def test_further_pairs_are_for_training_only(monkeypatch):
    """The same pairs are held out with them and without."""
    source = SOURCE + "# a comment that is long enough\nx = [" + 40 * "1, " + "]\n"
    monkeypatch.setattr("lib.sources.split_python", lambda _: iter([("train", source), ("val", source)]))
    plain, more = (list(split_python_pairs(0.5, more)) for more in (False, True))
    assert len(more) > len(plain) == 4
    assert [pair for pair in more if pair[0] == "val"] == [pair for pair in plain if pair[0] == "val"]


def test_headings_become_queries_and_their_sections_passages():
    """Sections of Markdown and reStructuredText become pairs, unless they are too short or precede all headings."""
    text = "A long sentence about water, which is long enough.\n" * 2
    markdown = f"# House\n{text}\n## The water bill?\n{text}## Short\nno.\n"
    rst = f"=====\nHouse\n=====\n\n{text}\nThe water bill\n--------------\n\n{text}\nShort\n~~~~~\nno."
    for given in markdown, rst:
        assert list(section_pairs(given)) == [("House", text.strip()), ("House: The water bill", text.strip())]


def test_openings_become_queries_and_the_rest_passages():
    """The first line of a text, and the first sentence of each paragraph."""
    rest = "It is long enough to be a passage, because it goes on and on, and does not end soon."
    assert list(opening_pairs(f"Title\n\nWho knows? {rest}\n\nshort\n")) == [
        ("Title", f"Who knows? {rest}\n\nshort"), ("Who knows?", rest)]


def test_a_folder_gives_pairs(tmp_path, monkeypatch):
    """All kinds of files in a folder give pairs, and so does a single file; rows without title or text are left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    long = "words that are long enough for a passage " * 3
    (tmp_path / "notes" / "a.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "notes" / "deep" / "b.md").write_text(f"# Heading\n{long}\n", encoding="utf-8")
    (tmp_path / "notes" / "c.txt").write_text(f"Opening\n{long}txt\n", encoding="utf-8")
    (tmp_path / "notes" / "d.jsonl").write_text(
        '{"title": "t", "text": "u"}\n{"query": "q", "passage": ["p", "r"]}\n{"id": 1}\n', encoding="utf-8")
    meta = prepare_pairs("notes", "python", "query", "passage", 0.3, "made")
    assert meta["name"] == "notes_pairs" and sum(meta["pairs"].values()) == 7
    queries = {query for side in ("train", "val") for query in load_pairs("made/notes_pairs", side)[0]}
    assert {"Heading", "Opening", "t", "q", "Return the next line, or None at the end."} < queries
    many = "".join(f"Opening {i}\n{long} {i}\n\n" for i in range(30))
    (tmp_path / "many.txt").write_text(many, encoding="utf-8")
    assert sum(prepare_pairs("many.txt", "own_pairs", "query", "passage", 0.3, "made")["pairs"].values()) == 31


def test_many_files_are_split_by_file(tmp_path):
    """All pairs of a file are on one side, if there are enough files."""
    for i in range(100):
        (tmp_path / f"{i}.txt").write_text("".join(f"{i}\n{j} {'word ' * 30}\n\n" for j in range(5)), encoding="utf-8")
    sides = {}
    for side, query, _ in split_folder_pairs(tmp_path, "query", "passage", 0.3):
        assert sides.setdefault(query, side) == side
    assert len(sides) == 100 and 10 < list(sides.values()).count("val") < 50


def test_a_folder_can_move_without_another_split(tmp_path):
    """Which files are held out depends on their places in the folder, not on where the folder lies."""
    made = []
    for folder in tmp_path / "here", tmp_path / "there" / "too":
        folder.mkdir(parents=True)
        for i in range(100):
            (folder / f"{i}.txt").write_text(f"Opening {i}\n{'word ' * 30}", encoding="utf-8")
        made.append(list(split_folder_pairs(folder, "query", "passage", 0.3)))
    assert made[0] == made[1]


@pytest.mark.parametrize("source", ["def f(:", "x = '\\0'\0", "(" * 5000, "é = 1\x0c\nclass \ud800: pass"])
def test_source_that_does_not_parse_has_no_pairs(source):
    assert list(docstring_pairs(source)) == []


def test_no_passage_is_on_both_sides_and_no_pair_twice():
    """A passage stays where it came first; blank texts are out."""
    given = [("train", "a", "x"), ("val", "b", "x"), ("train", "c", "x"), ("val", "d", "y"),
             ("train", "e", "y"), ("train", "a", "x"), ("val", " ", "z"), ("val", "f", "\n")]
    assert list(unique(given)) == [("train", "a", "x"), ("train", "c", "x"), ("val", "d", "y")]


def test_sides_go_by_the_passage():
    """Whatever the query; about val_fraction of the passages are held out."""
    rows = [("", {"q": f"query {i}", "p": f"passage {i % 400}"}) for i in range(1200)]
    sides = {}
    for side, _, passage in split_rows(rows, "q", "p", 0.25):
        assert sides.setdefault(passage, side) == side
    assert 70 < list(sides.values()).count("val") < 130


def test_passages_of_ms_marco_and_lists():
    """The selected ones; all of a list; a single one."""
    marco = {"passage_text": ["a", "b", "c"], "is_selected": [0, 1, 1]}
    for value, texts in (marco, ["b", "c"]), (["d", "e"], ["d", "e"]), ("f", ["f"]), ([], []):
        found = split_rows([("", {"query": "q", "passage": value})], "query", "passage", 0.5)
        assert [(q, p) for _, q, p in found] == [("q", text) for text in texts]


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """A set of pairs data/sums, made from a .jsonl file."""
    monkeypatch.chdir(tmp_path)
    with open("sums.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"question": f"{i} + {j}", "reply": f"makes {i + j}é"}) + "\n"
                     for i in range(20) for j in range(20))
    return prepare_pairs("sums.jsonl", "sums", "question", "reply", 0.3, "made")


def test_a_set_of_pairs_is_written_and_read(sums):
    """Every pair on one side, texts as they were, several queries a passage."""
    sides = [load_pairs("made/sums", side) for side in ("train", "val")]
    assert [sum(map(len, gold)) for _, _, gold in sides] == list(sums["pairs"].values())
    assert sum(sums["pairs"].values()) == 400
    assert not set(sides[0][1]) & set(sides[1][1]) and len(sides[0][1]) + len(sides[1][1]) == 39
    for queries, passages, gold in sides:
        assert [[passages[g] for g in right] for right in gold] == [[f"makes {eval(query)}é"] for query in queries]


@pytest.fixture
def two_answers(tmp_path, monkeypatch):
    """A set of pairs data/shifts: each query has two right passages, given as a list or in rows of their own."""
    monkeypatch.chdir(tmp_path)
    with open("shifts.jsonl", "w", encoding="utf-8") as f:
        for i in range(60):
            passages = [f"On day {i} Ann bakes.", f"On day {i} Ben sweeps."]
            rows = [{"query": f"who works on day {i}", "passage": passages}]
            if i % 2:
                rows = [{"query": f"who works  on day {i}{space}", "passage": text}
                        for space, text in zip(["", "\n"], passages)]
            f.writelines(json.dumps(row) + "\n" for row in rows)
    prepare_pairs("shifts.jsonl", "shifts", "query", "passage", 0.5, "made")


def test_a_query_may_have_several_right_passages(two_answers):
    """Each query comes once, with the indices of all its passages of that side."""
    found = {}
    for side in "train", "val":
        queries, passages, gold = load_pairs("made/shifts", side)
        assert len(set(queries)) == len(queries) and len(set(passages)) == len(passages)
        assert sorted(index for right in gold for index in right) == list(range(len(passages)))
        assert {len(right) for right in gold} == {1, 2}
        for query, right in zip(queries, gold):
            found.setdefault(query.split()[-1], set()).update(passages[index] for index in right)
    assert found == {str(i): {f"On day {i} Ann bakes.", f"On day {i} Ben sweeps."} for i in range(60)}


def test_all_right_passages_are_held_out_with_their_query(two_answers):
    """Even if that makes more passages than asked for."""
    whole = load_pairs("made/shifts", "val")
    right = {query: {whole[1][index] for index in indices} for query, indices in zip(whole[0], whole[2])}
    for n_passages in (1, 20, 0):
        queries, passages, gold = choose_held_out(*whole, 9, n_passages)
        assert len(queries) == 9 and len(set(passages)) == len(passages)
        assert [{passages[index] for index in indices} for indices in gold] == [right[query] for query in queries]
        own = len(set().union(*gold))
        assert len(passages) == max(own, n_passages or len(whole[1]))


def test_training_pairs_can_be_split_as_text(tmp_path, monkeypatch):
    """Their passages, read as documents, give a held-out tenth: they are split by another hash."""
    monkeypatch.chdir(tmp_path)
    with open("facts.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"query": f"number {i}?", "passage": f"fact {i}"}) + "\n" for i in range(2000))
    n = prepare_pairs("facts.jsonl", "facts", "query", "passage", 0.1, "made")["pairs"]["train"]
    assert abs(n - 1800) < 4 * (2000 * 0.1 * 0.9) ** 0.5
    meta = prepare(dataset="text", input="made/facts/train.jsonl", tokenizer="byte", vocab_size=300,
                   text_key="passage", val_fraction=0.1, max_mb=0, data_dir="made")
    assert abs(meta["val"]["documents"] - n / 10) < 4 * (n * 0.1 * 0.9) ** 0.5


def test_pairs_come_from_all_files_of_rows(tmp_path, monkeypatch):
    """.json, .csv and .parquet give the pairs that .jsonl gives, whatever the case of the ending."""
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"q {i}", "id": i, "passage": f"passage {i}"} for i in range(99)]
    (tmp_path / "a.JSONL").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "c.Csv").write_text("query,id,passage\n" + "".join(
        f"q {i},{i},passage {i}\n" for i in range(99)), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "d.parquet")
    for name in ("a.JSONL", "b.json", "c.Csv", "d.parquet"):
        prepare_pairs(name, "python", "query", "passage", 0.3, "made")
    sets = [[load_pairs(f"made/{letter}_pairs", side) for side in ("train", "val")] for letter in "abcd"]
    assert sets[0] == sets[1] == sets[2] == sets[3] and sum(len(queries) for queries, _, _ in sets[0]) == 99


def test_held_out_queries_have_their_passages(sums):
    """The same ones each time, and other passages beside them."""
    held_out = choose_held_out(*load_pairs("made/sums", "val"), 7, 9)
    queries, passages, gold = held_out
    assert len(queries) == 7 and len(set(passages)) == len(passages) <= 9
    assert [[passages[g] for g in right] for right in gold] == [[f"makes {eval(query)}é"] for query in queries]
    assert held_out == choose_held_out(*load_pairs("made/sums", "val"), 7, 9)


def test_missing_pairs_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(ValueError, match="no such file.*make the pairs: python prepare.py --pairs"):
        load_pairs(str(tmp_path / "nowhere"), "train")


def test_a_missing_key_names_only_a_setting_that_there_is(tmp_path, refused):
    """prepare.py has one for each key; retrieve.py, which reads pairs and a corpus, has none."""
    (tmp_path / "train.jsonl").write_text('{"answer": "b", "id": 1}\n', encoding="utf-8")
    for argument, key in ("--pairs", "query"), ("--input", "text"):
        refused(f"among the keys answer, id; name the right one with --{key}_key=KEY", "prepare.py",
                f"{argument}=train.jsonl", "--data_dir=new")
    for read in (lambda: load_pairs(str(tmp_path), "train"),
                 lambda: list(sources.read_input(tmp_path / "train.jsonl", "passage"))):
        with pytest.raises(ValueError, match="among the keys answer, id") as e:
            read()
        assert "name the right one" not in str(e.value)


def test_bad_pairs_are_refused(refused, tmp_path):
    """One line, status 2, nothing written."""
    for name, text in [("empty", ""), ("keys", '{"query": "a", "answer": "b"}\n'), ("broken", '{"query": \n'),
                       ("blank", '{"query": "a", "passage": " "}\n'),
                       ("number", '{"query": 1, "passage": "a"}')]:
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for message, argument in [
        ("0 pairs to train on", "empty.jsonl"), ("no 'passage' among the keys", "keys.jsonl"),
        ("line 1 is not JSON", "broken.jsonl"), ("0 pairs to train on", "blank.jsonl"),
        ("'query' is not text", "number.jsonl"), ("no file nowhere.jsonl", "nowhere.jsonl"),
    ]:
        refused(message, "prepare.py", f"--pairs={argument}", "--data_dir=new")
    refused("(0, 1)", "prepare.py", "--pairs=empty.jsonl", "--val_fraction=1.5")
    refused("give one of them", "prepare.py", "--pairs=blank.jsonl", "--input=blank.jsonl", "--data_dir=new")
    (tmp_path / "python.jsonl").write_text('{"query": "a", "passage": "b"}\n', encoding="utf-8")
    refused("--dataset=NAME", "prepare.py", "--pairs=python.jsonl", "--data_dir=new")
    assert not (tmp_path / "new").exists() or os.listdir(tmp_path / "new") == []


def test_hub_pairs_from_their_own_columns(tmp_path, monkeypatch):
    """Local parquet files with the columns that the sets of the hub have."""
    monkeypatch.chdir(tmp_path)
    for name, columns in {
        "msmarco": {"query": [f"q{i}" for i in range(40)], "passages": [
            {"is_selected": [0, 1], "passage_text": [f"wrong {i}", f"right {i}"]} for i in range(40)]},
        "squad": {"question": [f"q{i}" for i in range(40)], "context": [f"right {i}" for i in range(40)]},
    }.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), f"{name}.parquet")
        load = {"path": "parquet", "data_files": {"train": f"{name}.parquet"}}
        monkeypatch.setitem(sources.PAIRS_HUB, name, (load, *sources.PAIRS_HUB[name][1:]))
        meta = prepare_pairs(name, "python", "query", "passage", 0.3, "made")
        assert meta["name"] == f"{name}_pairs" and sum(meta["pairs"].values()) == 40
        queries, passages, gold = load_pairs(f"made/{name}_pairs", "train")
        assert [[passages[g] for g in right] for right in gold] == [[f"right {query[1:]}"] for query in queries]

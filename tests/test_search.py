"""Search in files of one's own: hits know their place, nothing is invisible, and only new texts are embedded."""
import os

import pytest
import torch

from conftest import flip
from lib import search
from lib.data import build_tokenizer, load_meta
from lib.retrieval import Encoder
from lib.search import Corpus, Hit, Unit, cut, format_hit, fuse, mark, read_corpus, split_names, word_scorer
from model import LanguageModel, ModelConfig

T, C = 11, 12
FILES = {
    "a.md": "# Title\n\n## Part\n\nFirst\nparagraph.\n\n\nSecond one.\n   \n  indented\n",
    "b.rst": "Title\n=====\n\nBelow it.\n\nAlone\n",
    "c.py": "\n\nimport os\n\n\n# Says\n# why.\n@cache\ndef f(x):\n    return x\n\n\nclass A:\n    y = 1\n\n"
            "    async def g(self):\n        return (\n",
    "deep/d.txt": "one\r\n\r\ntwo<|endoftext|>\n<|endoftext|>\nthree\n",
}


@pytest.fixture
def encoder(tiny_data):
    meta = load_meta(tiny_data / "tiny")
    torch.manual_seed(1)
    model = LanguageModel(ModelConfig(block_size=T, n_layer=1, n_embd=C, n_head=3, vocab_size=257)).eval()
    return Encoder(model, build_tokenizer(meta), meta["eot_id"])


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A folder "notes" with FILES and a .jsonl file."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "notes" / "e.jsonl").write_text('{"text": "row\\n\\none"}\n{"passage": "two", "text": "no"}\n')
    return tmp_path / "notes"


def test_units_know_their_lines(notes):
    """Paragraphs with their headings, definitions with what stands above them, rows."""
    found = [(unit.file, unit.line or unit.row, unit.text) for unit in read_corpus("notes") if unit.text]
    assert found == [
        ("notes/a.md", 1, "# Title\n\n## Part\n\nFirst\nparagraph."), ("notes/a.md", 9, "Second one."),
        ("notes/a.md", 11, "indented"),
        ("notes/b.rst", 1, "Title\n=====\n\nBelow it."), ("notes/b.rst", 6, "Alone"),
        ("notes/c.py", 3, "import os"), ("notes/c.py", 6, "# Says\n# why.\n@cache\ndef f(x):\n    return x"),
        ("notes/c.py", 13, "class A:\n    y = 1"), ("notes/c.py", 16, "async def g(self):\n    return ("),
        ("notes/deep/d.txt", 1, "one"), ("notes/deep/d.txt", 3, f"two{13 * ' '}".rstrip()),
        ("notes/deep/d.txt", 5, "three"),
        ("notes/e.jsonl", 1, "row\n\none"), ("notes/e.jsonl", 2, "two")]


def test_a_file_that_cannot_be_read_is_named(notes, capsys):
    """In a folder it is left out, and alone it is an error; other endings and hidden files are not looked at."""
    n_units = len(read_corpus("notes"))
    (notes / "bad.txt").write_bytes(b"\xff")
    (notes / "other.png").write_bytes(b"\xff")
    (notes / ".hidden.txt").write_text("hidden")
    assert len(read_corpus("notes")) == n_units
    assert "not searched: 1, such as this one: notes/bad.txt is not UTF-8" in capsys.readouterr().out
    with pytest.raises(ValueError, match="bad.txt is not UTF-8"):
        read_corpus("notes/bad.txt")
    with pytest.raises(ValueError, match=r"nothing to read in notes/empty: the formats are .txt, .md, .rst, .py"):
        (notes / "empty").mkdir()
        read_corpus("notes/empty")


@pytest.mark.parametrize("text", ["x" * 97, "words of all lengths, again and again, " * 7, "ééé ü " * 11, "a", "b" * T])
def test_pieces_cover_a_text(encoder, text):
    """All of it, in windows of at most T tokens that overlap, and hold the tokens of their part."""
    covered = 0
    for number, start, end, ids in cut(["before", text], encoder.tokenizer, T)[1:]:
        assert number == 1 and len(ids) <= T and start < max(covered, 1) < end + (end == 1)
        covered = end
        assert encoder.tokenizer.decode(ids).strip("\ufffd") in text[max(start - 1, 0):end + 1]
    assert covered == len(text)


def test_a_piece_begins_between_words(encoder):
    """If a space is near enough."""
    pieces = cut(["ab cd ef gh ij kl mn op qr"], encoder.tokenizer, 16)
    assert [start for _, start, _, _ in pieces] == [0, 14] or all("ab cd ef gh ij kl mn op qr"[start] == " "
                                                                   for _, start, _, _ in pieces[1:])
    assert len(pieces) > 1


def test_the_end_of_a_long_unit_is_found(encoder, notes):
    """With its own line, whatever stands before it; a unit gives one hit, and so do equal ones."""
    text = "\n".join(f"line {i} of many" for i in range(40)) + "\nzzzz qqqq"
    (notes / "f.txt").write_text(f"start\n\n{text}\n\nend\n\nend\n")
    hits = Corpus(encoder, read_corpus("notes/f.txt"), "index.npz").search("zzzz qqqq", 9)
    assert hits[0].line == 43 and hits[0].text.endswith("zzzz qqqq") and hits[0].file == "notes/f.txt"
    assert sorted(hit.line for hit in hits[1:]) == [1, 45]


def test_only_new_texts_are_embedded(encoder, notes, monkeypatch):
    """The hits are those of a new index; other weights, a damaged file and another window need all texts again."""
    embedded = []

    def counted(texts, *arguments):
        embedded.extend(texts)
        return cut(texts, *arguments)
    monkeypatch.setattr(search, "cut", counted)

    def find(path="index.npz"):
        embedded.clear()
        return Corpus(encoder, read_corpus("notes"), path).search("paragraph", 99)
    first = find()
    assert len(first) == len(embedded) == 13  # one of the units comes twice
    assert find() == first and embedded == []
    (notes / "b.rst").write_text("New.\n\nAlone\n")
    (notes / "e.jsonl").unlink()
    hits = find()
    assert embedded == ["New."] and hits == find("other.npz")
    flip("index.npz", 700)
    assert find() == hits and len(embedded) == len(hits)
    with torch.no_grad():
        encoder.model.wte.weight.mul_(-1)
    assert find() != hits and len(embedded) == len(hits)


def test_an_interrupted_index_keeps_what_is_done(encoder, notes, monkeypatch):
    """The next search embeds the rest."""
    groups = []

    def interrupted(texts, *arguments):
        groups.append(texts)
        if len(groups) == 3:
            raise KeyboardInterrupt
        return cut(texts, *arguments)
    monkeypatch.setattr(search, "GROUP", 4)
    monkeypatch.setattr(search, "cut", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Corpus(encoder, read_corpus("notes"), "index.npz")
    Corpus(encoder, read_corpus("notes"), "index.npz")
    assert groups[2] == groups[3] and sum(map(len, groups[:2] + groups[3:])) == 13


def test_fused_scores_by_hand():
    """Each ranking counts from 0 to 1, whatever its units; one of equal scores counts 0."""
    fused = fuse(torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0.0, 2.0, 4.0]), torch.tensor([7.0, 7.0, 7.0]))
    torch.testing.assert_close(fused, torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64))


def test_words_find_the_names_that_are_made_of_them():
    """A query and a passage share the words of their names, however these are joined."""
    assert split_names("parseHTMLPage2Text of_a_URL x1") == "parse HTML Page2 Text of a URL x1"
    scores = word_scorer(["def read_csv(path):", "class CSVReader:", "def write_json(path):"])("readCsv")
    assert scores.argmax() == 0 and scores[1] > scores[2] == 0


def test_fusion_finds_a_rare_word(encoder):
    """Even with a model that has learned nothing."""
    units = [Unit(f"sentence number {i} of many") for i in range(30)] + [Unit("xylophone")]
    assert "xylo" in Corpus(encoder, units, "/dev/null/no", fusion=True).search("a xylophone", 3)[0].text


def test_words_of_the_query_are_marked():
    """Whole words, or parts of a name between underscores; none of two letters, and no word within a word."""
    assert mark("Read_csv reads a CSV of csvs", "read a csv of x.") == (
        "\033[1mRead\033[0m_\033[1mcsv\033[0m reads a \033[1mCSV\033[0m of csvs")
    assert mark("a.b+", "+ of") == "a.b+"


def test_a_hit_fits_the_terminal():
    """No line is wider, no word is lost, and no text controls the terminal."""
    text = "short\n\twide " + "word " * 30 + "\x1b[31m"
    lines = format_hit(Hit(0.5, text, "a.txt", 7, None), "wide", 40, bold=False).split("\n")
    assert lines[0] == "0.500  a.txt:7" and lines[1] == "       short" and max(map(len, lines)) <= 40
    assert " ".join(lines).split().count("word") == 30 and "\x1b" not in "".join(lines)
    assert format_hit(Hit(0.5, "a", "b.jsonl", None, 3), "a") == "0.500  b.jsonl, row 3\n       a"
    assert "\033[1mwide\033[0m" in format_hit(Hit(0.5, text, None, None, None), "wide", 40, bold=True)


@pytest.mark.parametrize("terminal, no_color, bold", [(True, "", True), (True, "1", False), (False, "", False)])
def test_words_are_bold_on_a_terminal_only(monkeypatch, capsys, terminal, no_color, bold):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    search.print_hits("word", [Hit(0.5, "word", None, None, None)], as_json=False)
    assert ("\033[1m" in capsys.readouterr().out) == bold


def test_no_text_is_an_error(encoder, tmp_path):
    with pytest.raises(ValueError, match="no text to search in"):
        Corpus(encoder, [Unit(" \n")], os.path.join(tmp_path, "index.npz"))

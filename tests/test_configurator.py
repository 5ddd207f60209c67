"""Every setting of configurator.py has the value that was written, or an error of one line; nothing is executed."""
import ast
import os
import re
import subprocess
import sys

import pytest

from configurator import INTERVAL, configure, evaluate, fail, read_settings, run_script

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = '''"""
Trains a thing.

    python script.py --steps=3
"""
import sys

outside = "before the block"
# defaults: for the test
steps = 100                       # [-9, inf) number of steps
lr = 1e-3                         # (0, inf) learning rate
name = "python"                   # name of the data
fast = True                       # whether to hurry
sizes = [64, 128]                 # widths
rates = [0.1, 1.0]                # learning rates
models: list[str] = []            # names
threads: int | str = "auto"       # number, or auto
share: float | str = "auto"       # [0, 1] of the whole, or auto
kind = "fine"                     # fine | coarse: how it is ground
batch = 4 * 8                     # windows per step
# end of defaults

steps = sys.exit("the script was executed")
'''
MODEL = '''"""A model."""
from dataclasses import dataclass


@dataclass
class Config:
    # defaults: for the model
    n_layer: int = 8              # number of layers
    dropout: float = 0.0          # share of activations
    # end of defaults

    def method(self):
        raise SystemExit("the model was executed")
'''


@pytest.fixture
def sources(tmp_path):
    """Return the paths of a script and of a model with defaults."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    return str(tmp_path / "script.py"), str(tmp_path / "model.py")


@pytest.fixture
def config_file(tmp_path):
    """Return a function that writes a config file and returns its path."""
    def config_file(text, name="config.py"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / name)
    return config_file


@pytest.fixture
def refused(sources, capsys, monkeypatch):
    """Return a function that runs a script, checks that it ends with status 2 and one line, and returns the line."""
    def refused(*argv):
        monkeypatch.setattr(sys, "argv", ["script.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            run_script(lambda args: None, *sources)
        captured = capsys.readouterr()
        assert exit_info.value.code == 2 and captured.out == ""
        assert re.fullmatch("error: .+\n", captured.err), captured.err
        return captured.err
    return refused


# ------------------------------------------------------------------------------------------------------------
# defaults

def test_defaults_are_read_and_not_executed(sources):
    """configure reads the block in the script and the indented one in the dataclass, and nothing outside them."""
    assert configure([], *sources) == {
        "steps": 100, "lr": 1e-3, "name": "python", "fast": True, "sizes": [64, 128],
        "rates": [0.1, 1.0], "models": [], "threads": "auto",
        "share": "auto", "kind": "fine", "batch": 32, "n_layer": 8, "dropout": 0.0}


def test_settings_carry_types_and_comments(sources):
    """Each setting keeps its value, the types that it accepts, and its comment."""
    settings = read_settings(sources[0], marked=True) | read_settings(sources[1], marked=True)
    assert settings["threads"] == ("auto", ["int", "str"], "number, or auto")
    assert settings["batch"] == (32, ["int"], "windows per step")
    assert settings["dropout"] == (0.0, ["float"], "share of activations")


def test_help_lists_every_key(sources, capsys, monkeypatch):
    """--help prints the script's docstring and the default and comment of each key, and runs nothing."""
    monkeypatch.setattr(sys, "argv", ["script.py", "--steps=5", "--help"])
    run_script(lambda args: pytest.fail("it ran"), *sources)
    out = capsys.readouterr().out
    assert out.startswith("Trains a thing.\n")
    for key, setting in (read_settings(sources[0], marked=True) | read_settings(sources[1], marked=True)).items():
        line = rf"^ +--{key}={re.escape(str(setting.value))} +{re.escape(setting.comment)}$"
        assert re.search(line, out, re.MULTILINE), key
    assert "outside" not in out


def test_calls_do_not_share_state(sources):
    """The settings of one call do not become the defaults of the next."""
    configure(["--steps=5", "--sizes=[1]"], *sources)
    assert configure([], *sources)["steps"] == 100 and configure([], *sources)["sizes"] == [64, 128]


# ------------------------------------------------------------------------------------------------------------
# values

@pytest.mark.parametrize("argument, value", [
    ("--steps=7", 7), ("--steps=1_000", 1000), ("--steps=-3", -3), ("--steps=32 * 1024", 32768),
    ("--steps=7 // 2", 3),
    ("--lr=5e-4", 5e-4), ("--lr=1", 1.0), ("--lr=3/4", 0.75), ("--dropout=0", 0.0),
    ("--fast=false", False), ("--fast=False", False), ("--fast=true", True),
    ("--name=tinystories", "tinystories"), ("--name=7", "7"), ("--name=", ""), ("--name=a=b", "a=b"),
    ("--name=../x y.txt", "../x y.txt"), ("--name=true", "true"), ("--name='q'", "'q'"),
    ("--sizes=[1, 2]", [1, 2]), ("--sizes=[]", []), ("--sizes=5", [5]),
    ("--sizes=5, 2 * 3,", [5, 6]), ("--sizes=", []),
    ("--rates=1,0.5", [1.0, 0.5]), ("--rates=[2]", [2.0]), ("--models=gpt,out/a b", ["gpt", "out/a b"]),
    ("--models=7", ["7"]), ("--models=['a,b', 'c']", ["a,b", "c"]),
    ("--threads=4", 4), ("--threads=auto", "auto"), ("--share=0.5", 0.5), ("--share=1", 1.0),
    ("--share=auto", "auto"),
])
def test_argument_becomes_a_value_of_its_type(argument, value, sources):
    """An argument can be a number, arithmetic, true or True, or text without quotes; an int serves as a float."""
    key = argument.removeprefix("--").partition("=")[0]
    assert repr(configure([argument], *sources)[key]) == repr(value)  # 1 is not 1.0, and [1] not [1.0]


@pytest.mark.parametrize("argument, takes", [
    ("--steps=many", "int"), ("--steps=1.5", "int"), ("--steps=true", "int"), ("--steps=", "int"),
    ("--steps=exit()", "int"), ("--steps=None", "int"), ("--lr=fast", "float"), ("--lr=true", "float"),
    ("--lr=1/0", "float"), ("--fast=1", "bool"), ("--fast=yes", "bool"), ("--sizes=5,a", "list[int]"),
    ("--sizes=1.5", "list[int]"), ("--rates=0.1,fast", "list[float]"), ("--rates=true", "list[float]"),
    ("--models=[1]", "list[str]"),
    ("--threads=1.5", "int or str"), ("--share=[1]", "float or str"),
])
def test_value_of_another_type_is_refused(argument, takes, refused):
    """The error names the key and the types that it takes."""
    message = refused(argument)
    assert argument.partition("=")[0] in message and f"takes {takes}" in message


@pytest.mark.parametrize("argument, near", [
    ("--step=5", "did you mean steps?"), ("--n_layers=5", "did you mean n_layer?"),
    ("--drop_out=0.1", "did you mean dropout?"), ("--zzz=1", "--help"), ("--outside=1", "--help"),
    ("--=5", "--help"), ("--steps", "--key=value"), ("-steps=5", "--key=value"), ("--fast", "--key=value"),
    ("-v", "--key=value"),
])
def test_typo_is_refused(argument, near, refused):
    """The error for an unknown key suggests the nearest known key; for a flag without a value it shows --key=value."""
    assert near in refused(argument)


@pytest.mark.parametrize("argument, accepted", [
    ("--steps=-10", "in [-9, inf)"), ("--lr=0", "in (0, inf)"), ("--lr=-1", "in (0, inf)"),
    ("--lr=1e999", "in (0, inf)"), ("--lr=1e999 - 1e999", "in (0, inf)"), ("--share=1.01", "in [0, 1]"),
    ("--share=many", "in [0, 1]"), ("--kind=rough", "one of fine | coarse"), ("--kind=", "one of fine | coarse"),
])
def test_value_out_of_range_is_refused(argument, accepted, refused):
    """The error names the interval or the choices; a huge integer is too large for every interval."""
    assert "--steps is too large" in refused("--steps=" + "9" * 30) and "too large" in refused("--lr=" + "9" * 400)
    message = refused(argument)
    assert argument.partition("=")[0] in message and f"must be {accepted}" in message


SCRIPTS = "train.py", "sample.py", "invert.py", "retrieve.py", "compare.py", "prepare.py", "bench.py", "model.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_an_interval(script):
    """The comment of every numeric setting begins with an interval, so that no new key lacks its range check."""
    settings = read_settings(os.path.join(HERE, script), marked=True)
    numbers = [key for key, setting in settings.items() for kind in setting.types if "int" in kind or "float" in kind]
    missing = [key for key in numbers if not INTERVAL.match(settings[key].comment)]
    assert settings and not missing


# ------------------------------------------------------------------------------------------------------------
# the entry of a script

@pytest.mark.parametrize("error, status, line", [
    (ValueError("no such thing"), 2, "error: no such thing"),
    (FileNotFoundError("no checkpoint a.pt"), 2, "error: no checkpoint a.pt"),
    (OSError("cannot write\na.pt"), 1, "error: cannot write a.pt"),
    (FloatingPointError("the loss is not finite"), 1, "error: the loss is not finite"),
    (MemoryError("out of memory"), 1, "error: out of memory"),
    (ModuleNotFoundError("No module named 'a'", name="a"), 1, "error: a is not installed: pip install a"),
    (KeyboardInterrupt(), 130, "error: interrupted"),
])
def test_an_error_becomes_one_line_and_a_status(error, status, line, sources, capsys, monkeypatch):
    """Bad input gives status 2, a failure while running gives status 1, and a bug keeps its traceback."""
    def main(args):
        raise error
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as exit_info:
        run_script(main, *sources)
    assert exit_info.value.code == status and capsys.readouterr().err == line + "\n"
    with pytest.raises(ZeroDivisionError):
        run_script(lambda args: 1 / 0, *sources)


def run_python(code, **options):
    """Run code in a new process, in the folder of the scripts."""
    return subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, **options)


def test_a_character_that_the_console_cannot_show_does_not_end_a_run():
    """The console shows a question mark in its place."""
    code = "import configurator; configurator.run_script(lambda args: print('zwölf 🎲'), 'sample.py')"
    done = run_python(code, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.split() == [b"zw?lf", b"?"], done.stderr


def test_a_closed_pipe_ends_quietly():
    """A script prints no traceback when its reader closes the pipe, as in `python sample.py | head -1`."""
    code = "import configurator; configurator.run_script(lambda args: print('text ' * 10**6), 'sample.py')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


# ------------------------------------------------------------------------------------------------------------
# config files

def test_later_wins(sources, config_file):
    """Config files and arguments are applied from left to right."""
    one = config_file("steps = 1\nlr = 0.1\nname = 'one'\n", "1.py")
    two = config_file("steps = 2\nname = 'two'\n", "2.py")
    config = configure([one, two, "--name=three"], *sources)
    assert (config["steps"], config["lr"], config["name"]) == (2, 0.1, "three")
    config = configure(["--name=three", "--steps=3", two, one], *sources)
    assert (config["steps"], config["lr"], config["name"]) == (1, 0.1, "one")
    assert configure(["--steps=3", "--steps=4"], *sources)["steps"] == 4


def test_config_file_holds_what_a_script_does(sources, config_file):
    """A config file may hold a docstring, comments, arithmetic, lists over several lines, annotations and CRLF."""
    path = config_file('"""What it is for: 5 minutes."""\r\n# a comment\r\n'
                       "\r\nsteps = 2 * (3 + 4)  # fourteen\r\n"
                       "lr = 3 * 1e-4\r\nfast = false\r\nsizes = [\r\n  32 * 2,  # first\r\n  8,\r\n]\r\n"
                       "threads: int | str = 6\r\nname = 'an # in text'\r\ndropout = 0\r\n")
    config = configure([path], *sources)
    assert (config["steps"], config["fast"], config["sizes"], config["threads"]) == (14, False, [64, 8], 6)
    assert config["lr"] == pytest.approx(3e-4) and config["name"] == "an # in text"
    assert config["dropout"] == 0.0 and type(config["dropout"]) is float
    assert read_settings(path)["steps"].comment == "fourteen"


@pytest.mark.parametrize("line", [
    "steps = int('5')", "steps = __import__('os').getpid()", "import os", "from os import path", "print(5)",
    "steps = len", "steps = (1).real", "steps = [1, 2][0]", "steps = lambda: 5", "steps = 5 if 1 else 6",
    "steps = 9 ** 9", "steps = 1 << 9", "steps = 'a' * 9", "steps = [0] * 9", "steps = not 1",
    "steps = 5 > 4", "steps = [i for i in [1]]", "steps = {1, 2}", "sizes = [*[1]]", "sizes = {**{}}",
    "steps = 5j", "steps = ...", "name = f'{1}'", "name = b'x'", "steps = -'a'", "steps = 1 / 0",
    "steps = 1e308 * 10 // 0", "steps = x = 5", "steps += 1", "steps, lr = 5, 6", "steps", "steps: int",
    "a.b = 5", "sizes[0] = 5", "del steps", "steps := 5", "def f(): pass", "class A: pass",
    "for i in [1]: pass", "if 1: steps = 5", "while 1: pass",
    "steps = 'open", "steps = 5 6", "  steps = 5", "steps = " + "9" * 5000,
    "sizes = " + "[" * 50 + "]" * 50 + " * 2",
])
def test_config_file_that_is_no_data_is_refused(line, refused, config_file):
    """Code, names, unbounded arithmetic and broken syntax end with an error that names the file and the line."""
    message = refused(config_file(f"# one\nlr = 0.1\n{line}\n"))
    assert re.match(r"error: .*config\.py, line 3:", message), message


@pytest.mark.parametrize("value", [
    "(", "(" * 5000 + "1" + ")" * 5000, "-" * 50_000 + "1", "1 + " * 20_000 + "1"])
def test_hostile_expression_is_refused(value, refused, config_file):
    """An expression that exhausts Python's parser ends with an error of one line, too."""
    assert "config.py" in refused(config_file(f"steps = {value}\n"))


def test_config_file_with_a_typo_is_refused(refused, config_file):
    """The error for an unknown key or a value of the wrong type in a config file names the file."""
    message = refused(config_file("stepz = 5\n"))
    assert "config.py" in message and "stepz" in message and "did you mean steps?" in message
    message = refused(config_file("lr = 'high'\n"))
    assert "config.py" in message and "lr takes float" in message


@pytest.mark.parametrize("content, part", [
    (b"\x80\x02}q\x00.", "not a text file"), ("steps = 5\n".encode("utf-16"), "not a text file"),
    (b"steps = 5\x00", "key = value"), (bytes(range(128)), "line"), (b"# " + b"x" * 200_000, "longer than"),
])
def test_config_file_that_is_no_text_is_refused(content, part, refused, config_file):
    """A checkpoint, a binary file or a huge file given as a config file ends with an error of one line."""
    message = refused(config_file(content))
    assert "config.py" in message and part in message


def test_missing_config_file_is_refused(refused, tmp_path):
    """The error names the path of a missing file, or of a folder given as a file."""
    assert "nowhere.py" in refused(str(tmp_path / "nowhere.py"))
    assert str(tmp_path) in refused(str(tmp_path))


def test_empty_config_file_changes_nothing(sources, config_file):
    """An empty config file leaves every default as it is."""
    assert configure([config_file("")], *sources) == configure([], *sources)


# ------------------------------------------------------------------------------------------------------------
# the small functions

def test_a_comment_of_a_config_file_marks_nothing(sources, config_file):
    """The comment that marks the defaults of a script is an ordinary comment in a config file."""
    path = config_file("# defaults of my own\nsteps = 5\n# end of defaults\nlr = 0.5\n")
    settings = configure([path], *sources)
    assert (settings["steps"], settings["lr"]) == (5, 0.5)


def test_a_setting_may_be_none(config_file):
    """A config file may give None to a setting that takes it."""
    assert configure([config_file("query = None\n")], "retrieve.py", "model.py")["query"] is None


def test_evaluate_agrees_with_python():
    """evaluate treats precedence, brackets and signs as Python does."""
    for text in ("1 + 2 * 3", "(1 + 2) * 3", "-2 - -3", "7 // 2 / 2", "2e-3 * 2", "[1, [-2]]", "{1: 1 / 4}"):
        assert evaluate(ast.parse(text, mode="eval").body) == eval(text)


def test_text_that_cannot_be_calculated_stays_text(sources):
    """A key that takes numbers and text takes everything that is not a number as text."""
    for text in "1/0", "auto", "(" * 5000:
        assert configure([f"--threads={text}"], *sources)["threads"] == text


def test_fail_is_one_line_with_its_status(capsys):
    """fail prints one line, on stderr only, and sets the exit status."""
    for status in (1, 2):
        with pytest.raises(SystemExit) as exit_info:
            fail("it broke", status)
        assert exit_info.value.code == status
        assert capsys.readouterr() == ("", "error: it broke\n")

"""
Settings of a script: the defaults at its top, then config files, then --key=value; later ones win.

    python train.py config/mixer_tiny.py --max_iters=100 --compile=false
    python train.py --help                     # every key, its default, its range and what it means

The defaults stand between `# defaults` and `# end of defaults`; a config file holds nothing else. Both are read as
data and never executed: lines `key = value  # comment`, where a value is a literal or arithmetic on literals, such
as `5e-4`, `32 * 1024`, `"text"` or `[8, 9]`. The comment of a default begins with what it accepts: an interval,
`[0, 1)`, for every number, or choices, `adamw | muon:`, for a text that is one of a few.
"""
import ast
import contextlib
import difflib
import operator
import os
import re
import sys
import textwrap
from collections import namedtuple
from types import SimpleNamespace

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg}
MAX_CHARS = 100_000  # a longer file is refused, so that a hostile one cannot take long to read
MALFORMED = SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError  # the errors that such text can raise
INTERVAL = re.compile(r"([\[(])(\S+), (\S+?)([\])])")
CHOICES = re.compile(r"(\w+(?: \| \w+)+)(?::|$)")
HERE = os.path.dirname(os.path.abspath(__file__))
Setting = namedtuple("Setting", "value types comment")  # types: the names of the types it takes, ["float", "str"]


# ------------------------------------------------------------------------------------------------------------
# reading settings


def evaluate(node):
    """The value of an expression of literals, lists, dicts and + - * / // on numbers. Raises ValueError."""
    match node:
        case ast.Name(id="true" | "false"):
            return node.id == "true"
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [evaluate(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {key.value: evaluate(value) for key, value in zip(keys, values)}
        case ast.UnaryOp(op=op, operand=operand) if type(op) in ARITHMETIC:
            operands = [evaluate(operand)]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in ARITHMETIC:
            operands = [evaluate(left), evaluate(right)]
        case _:
            raise ValueError("a value is a literal or arithmetic on literals, and text stands in quotes")
    if any(type(x) not in (int, float) for x in operands):  # a text times a million is not arithmetic
        raise ValueError("only numbers can be calculated with")
    return ARITHMETIC[type(op)](*operands)


def read_text(path):
    """The text of a file of settings. Raises ValueError, naming it, if it cannot be read."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as f:
            text = f.read(MAX_CHARS + 1)
    except OSError as e:
        raise ValueError(f"config file {path}: {e.strerror.lower()}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if len(text) > MAX_CHARS:
        raise ValueError(f"{path}: longer than {MAX_CHARS} characters")
    return text


def read_setting(node, block):
    """(key, Setting) of the syntax tree of a line `key = value  # comment` of the text `block`."""
    match node:
        case ast.Assign(targets=[ast.Name(id=key)]):
            annotation = None
        case ast.AnnAssign(target=ast.Name(id=key), annotation=annotation, value=ast.expr()):
            pass
        case _:
            raise SyntaxError
    value = evaluate(node.value)
    if annotation:
        types = ast.unparse(annotation).split(" | ")
    elif type(value) is list and value:
        types = [f"list[{type(value[0]).__name__}]"]
    else:
        types = [type(value).__name__]
    last_line = block.split("\n")[node.end_lineno - 1].encode()  # offsets count bytes
    comment = last_line[node.end_col_offset:].decode().strip("# ")
    return key, Setting(value, types, comment)


def read_settings(path, marked=False):
    """{key: Setting} of a config file, or of the marked defaults of a script. Raises ValueError with file and line."""
    lines = read_text(path).split("\n")
    first, last = 0, len(lines)
    if marked:
        first, last = (i for i, line in enumerate(lines) if re.match(" *# (end of )?defaults", line))
    block = textwrap.dedent("\n".join(lines[first:last]))
    settings, line = {}, 0
    try:
        for node in ast.parse(block).body:
            line = node.lineno
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not docstring:
                key, setting = read_setting(node, block)
                settings[key] = setting
    except MALFORMED as e:
        line = getattr(e, "lineno", None) or line
        reason = str(e) if type(e) is ValueError else "not a line `key = value`"
        raise ValueError(f"{path}, line {first + line}: {reason}" if line else f"{path}: {reason}") from None
    return settings


# ------------------------------------------------------------------------------------------------------------
# changing them


def parse(text, kind):
    """The value of --key=text. Text needs no quotes here, and a list no brackets: `3e-4`, `mixer,gpt`."""
    if kind == "str":
        return text
    if kind.startswith("list[") and not text.startswith("["):
        if kind == "list[str]":
            return [item.strip() for item in text.split(",") if item.strip()]
        text = f"[{text}]"
    with contextlib.suppress(*MALFORMED):
        return evaluate(ast.parse(text.strip(), mode="eval").body)
    return text  # no literal, so it is text, which some keys take besides


def convert(value, kind):
    """The value as the type named kind, such as list[float]; an int serves as a float. Raises TypeError."""
    if kind.startswith("list[") and type(value) is list:
        return [convert(item, kind[5:-1]) for item in value]
    if kind == "float" and type(value) is int:
        return float(value)
    if kind != ("None" if value is None else type(value).__name__):
        raise TypeError
    return value


def accepts(comment, value):
    """Whether a value lies in the interval, or is one of the choices, that a comment begins with."""
    choices, interval = CHOICES.match(comment), INTERVAL.match(comment)
    if isinstance(value, list):
        return all(accepts(comment, item) for item in value)
    if choices:
        return value in choices[1].split(" | ")
    if isinstance(value, (bool, dict)) or not interval:
        return True
    if isinstance(value, str):
        return value == "auto"
    opening, low, high, closing = interval.groups()
    is_above = float(low) <= value if opening == "[" else float(low) < value
    is_below = value <= float(high) if closing == "]" else value < float(high)
    return is_above and is_below


def changes(argv, settings):
    """(its name in an error, key, value) of each setting that the arguments make, from left to right."""
    for argument in argv:
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and equals:
            yield f"--{key}", key, parse(text, settings[key].types[0] if key in settings else "str")
        elif argument.startswith("-"):
            raise ValueError(f"{argument}: write --key=value; --help lists the keys")
        else:
            for key, setting in read_settings(argument).items():
                yield f"{argument}: {key}", key, setting.value


def convert_setting(where, setting, value):
    """The value of a setting, converted to its type and checked against its range. Raises ValueError."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, int) and abs(number) >= 2 ** 63 for number in numbers):
        raise ValueError(f"{where} is too large: {value!r:.60}")
    for kind in setting.types:
        with contextlib.suppress(TypeError):
            value = convert(value, kind)
            break
    else:
        raise ValueError(f"{where} takes {' or '.join(setting.types)}, not {value!r:.60}")
    if not accepts(setting.comment, value):
        choices = CHOICES.match(setting.comment)
        accepted = f"one of {choices[1]}" if choices else f"in {INTERVAL.match(setting.comment)[0]}"
        raise ValueError(f"{where} must be {accepted}; got {value!r:.60}")
    return value


def read_defaults(*sources):
    """{key: Setting} of the defaults in the files `sources`, named relative to this one's folder; the first counts."""
    settings = {}
    for name in sources:
        for key, setting in read_settings(os.path.join(HERE, name), marked=True).items():
            settings.setdefault(key, setting)
    return settings


def configure(argv, *sources):
    """Settings of a script as a dict {key: value}.

    argv: config files and --key=value. sources: the files whose defaults count, such as "train.py", "model.py".
    In paths, which are the keys in _dir and _path, ~ becomes the home folder, since shells leave it alone behind
    a =. Raises ValueError, naming the argument, for one that is wrong.
    """
    settings = read_defaults(*sources)
    config = {key: setting.value for key, setting in settings.items()}
    for where, key, value in changes(argv, settings):
        if key not in config:
            near = difflib.get_close_matches(key, config, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists them"
            raise ValueError(f"{where} is no setting; {hint}")
        config[key] = convert_setting(where, settings[key], value)
    for key, value in config.items():
        if key.endswith(("_dir", "_path")):
            config[key] = os.path.expanduser(value)
    return config


# ------------------------------------------------------------------------------------------------------------
# the entry of a script


def share_the_cpu():
    """Have threads that wait give way to other programs soon; scripts call this before they import torch.

    GNU OpenMP's threads spin for milliseconds while they wait for one another, and take the core from the thread
    that they wait for when something else runs on the machine: training becomes ten times as slow. With 1000 turns it
    keeps half of its speed beside another training, and loses 2 % at most alone (results/speed.md). A value that the
    user has set stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def fail(message, status=2):
    """End the program with one line on stderr: status 2 for bad input, 1 for a failure while running."""
    print("error:", *str(message).splitlines(), file=sys.stderr)
    raise SystemExit(status)


def print_help(script, *more):
    """Print the docstring of a script, and every key with its default and its comment."""
    print(ast.get_docstring(ast.parse(read_text(os.path.join(HERE, script)))), end="\n\n")
    for key, setting in read_defaults(script, *more).items():
        print(f"  --{key}={setting.value}".ljust(34), setting.comment)


def run_script(main, *sources):
    """Run main(settings) with the settings of the command line; an error becomes one line and an exit status.

    The settings are attributes: settings.batch_size. `python -X dev script.py` shows the traceback of an error.
    """
    sys.stdout.reconfigure(errors="replace")  # a console that cannot show a character must not end a run
    try:
        if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
            return print_help(*sources)
        main(SimpleNamespace(**configure(sys.argv[1:], *sources)))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except (ValueError, OSError, FloatingPointError, MemoryError, ModuleNotFoundError) as e:
        if sys.flags.dev_mode:
            raise
        missing = f"{e.name} is not installed: pip install {e.name}" if isinstance(e, ModuleNotFoundError) else e
        fail(missing, status=2 if isinstance(e, (ValueError, FileNotFoundError)) else 1)

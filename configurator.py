"""
Settings of a script: the defaults at its top, then config files, then --key=value; later wins.

    python train.py config/mixer_tiny.py --max_iters=100 --compile=false
    python train.py --help                     # every key, its default and what it means

A config file holds lines `key = value  # comment`, and so do the defaults in a script. It is read as data,
never executed: a value is a literal or arithmetic on literals (`5e-4`, `32 * 1024`, `"python"`, `[64, 128]`).
"""
import ast
import difflib
import operator
import os
import re
import sys
from collections import namedtuple
from contextlib import suppress

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg}
MAX_CHARS = 100_000  # of a file: nobody writes a longer one, and a hostile one can take no more time
MALFORMED = SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError  # what such text can raise
Setting = namedtuple("Setting", "value types comment")  # types: names, e.g. ["float", "str"]


def fail(message, status=2):
    """End the program with one line on stderr: status 2 for bad input, 1 for a failure while running."""
    print("error:", *str(message).splitlines(), file=sys.stderr)
    raise SystemExit(status)


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
    if any(type(x) not in (int, float) for x in operands):  # text times a million is not arithmetic
        raise ValueError("only numbers can be calculated with")
    return ARITHMETIC[type(op)](*operands)


def read_settings(path):
    """{key: Setting} of a config file, or of a script's lines from `# defaults` to `# end of defaults`. If a
    line is not `key = value`, or the file cannot be read, the program ends."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as f:
            text = f.read(MAX_CHARS + 1)
    except OSError as e:
        fail(f"config file {path}: {e.strerror.lower()}")
    except UnicodeDecodeError:
        fail(f"{path}: not a text file in UTF-8")
    if len(text) > MAX_CHARS:
        fail(f"{path}: longer than {MAX_CHARS} characters")
    settings, line, lines = {}, 0, text.splitlines()
    marks = [i for i, at in enumerate(lines, 1) if re.match(" *# (end of )?defaults", at)]
    first, last = marks or (0, len(lines) + 1)
    try:
        for node in ast.walk(ast.parse(text)):  # defaults of a dataclass stand inside it
            if not isinstance(node, ast.stmt) or not first < node.lineno < last:
                continue
            line = node.lineno
            match node:
                case (ast.Assign(targets=[ast.Name(id=key)])
                      | ast.AnnAssign(target=ast.Name(id=key), value=ast.expr())):
                    value = evaluate(node.value)
                    of = f"[{type(value[0]).__name__}]" if type(value) is list and value else ""
                    types = ast.unparse(getattr(node, "annotation", ast.Name(type(value).__name__ + of)))
                    comment = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode().strip("# ")
                    settings[key] = Setting(value, types.split(" | "), comment)
                case ast.Expr(value=ast.Constant()):  # the docstring
                    pass
                case _:
                    raise SyntaxError
    except MALFORMED as e:
        line = getattr(e, "lineno", None) or line
        reason = str(e) if type(e) is ValueError else "not a line `key = value`"
        fail(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
    return settings


def convert(value, kind):
    """The value as the type named kind, such as list[float]; an int is fine for a float. Or TypeError."""
    if kind.startswith("list[") and type(value) is list:
        return [convert(item, kind[5:-1]) for item in value]
    if type(value).__name__ not in (kind, "int" if kind == "float" else kind):
        raise TypeError
    return float(value) if kind == "float" else value


def parse(text, kind):
    """The value of --key=text. Text needs no quotes here, and a list no brackets: `3e-4`, `mixer,gpt`."""
    if kind.startswith("list[") and not text.startswith("["):
        return [parse(item.strip(), kind[5:-1]) for item in text.split(",") if item.strip()]
    with suppress(*MALFORMED):
        return text if kind == "str" else evaluate(ast.parse(text.strip(), mode="eval").body)
    return text


def configure(argv, *sources):
    """Settings of a script as a dict {key: value}.

    argv: config files and --key=value. sources: files whose defaults count (the script, model.py).
    --help prints the keys and exits; a wrong argument ends with one line and status 2.
    """
    settings = {key: setting for path in sources for key, setting in read_settings(path).items()}
    config = {key: setting.value for key, setting in settings.items()}
    if "--help" in argv or "-h" in argv:
        with open(sources[0], encoding="utf-8") as f:
            print(ast.get_docstring(ast.parse(f.read())), end="\n\n")
        print(*(f"  --{key}={s.value}".ljust(34) + f" {s.comment}" for key, s in settings.items()), sep="\n")
        raise SystemExit(0)

    def change(where, key, value):
        if key not in config:
            near = difflib.get_close_matches(key, config, n=1)
            fail(f"{where} is no setting" + (f"; did you mean {near[0]}?" if near else "; --help lists them"))
        types = settings[key].types
        for kind in types:
            with suppress(TypeError):
                config[key] = convert(value, kind)
                return
        fail(f"{where} takes {' or '.join(types)}, not {value!r:.60}")

    for argument in argv:
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and equals:
            change(f"--{key}", key, parse(text, settings[key].types[0] if key in settings else ""))
        elif argument.startswith("-"):
            fail(f"{argument}: write --key=value; --help lists the keys")
        else:
            for key, setting in read_settings(argument).items():
                change(f"{argument}: {key}", key, setting.value)
    return config

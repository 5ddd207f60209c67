"""
Settings in a file, read as data and never executed.

A config file holds lines `key = value  # comment`, and so do the defaults in a script, from `# defaults` to
`# end of defaults`. A value is a literal or arithmetic on literals: `5e-4`, `32 * 1024`, `"text"`, `[8, 9]`.
"""
import ast
import operator
import os
import re
import textwrap
from collections import namedtuple

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg}
MAX_CHARS = 100_000  # of a file: nobody writes a longer one, and a hostile one can take no more time
MALFORMED = SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError  # what such text can raise
Setting = namedtuple("Setting", "value types comment")  # types: names, e.g. ["float", "str"]


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


def read_text(path):
    """The text of a file of settings. Raises ValueError, naming it, if there is none."""
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


def read_settings(path):
    """{key: Setting} of a config file, or of the defaults in a script. Raises ValueError, naming file and
    line, where a line is not `key = value`."""
    lines = read_text(path).split("\n")
    marks = [i for i, line in enumerate(lines) if re.match(" *# (end of )?defaults", line)]
    first, last = marks or (0, len(lines))
    block, settings, at = textwrap.dedent("\n".join(lines[first:last])), {}, 0
    try:
        for node in ast.parse(block).body:
            at = node.lineno
            match node:
                case (ast.Assign(targets=[ast.Name(id=key)])
                      | ast.AnnAssign(target=ast.Name(id=key), value=ast.expr())):
                    value = evaluate(node.value)
                    of = f"[{type(value[0]).__name__}]" if type(value) is list and value else ""
                    types = ast.unparse(getattr(node, "annotation", ast.Name(type(value).__name__ + of)))
                    last_line = block.split("\n")[node.end_lineno - 1].encode()  # offsets count bytes
                    comment = last_line[node.end_col_offset:].decode().strip("# ")
                    settings[key] = Setting(value, types.split(" | "), comment)
                case ast.Expr(value=ast.Constant()):  # the docstring
                    pass
                case _:
                    raise SyntaxError
    except MALFORMED as e:
        at = getattr(e, "lineno", None) or at
        reason = str(e) if type(e) is ValueError else "not a line `key = value`"
        raise ValueError(f"{path}, line {first + at}: {reason}" if at else f"{path}: {reason}") from None
    return settings

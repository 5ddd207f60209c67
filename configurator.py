"""
Settings of a script: the defaults at its top, then config files, then --key=value; later wins.

    python train.py config/mixer_tiny.py --max_iters=100 --compile=false
    python train.py --help                     # every key, its default and what it means

What a config file holds: config_file.py.
"""
import ast
import difflib
import os
import sys
from contextlib import suppress

from config_file import MALFORMED, evaluate, read_settings


def fail(message, status=2):
    """End the program with one line on stderr: status 2 for bad input, 1 for a failure while running."""
    print("error:", *str(message).splitlines(), file=sys.stderr)
    raise SystemExit(status)


def parse(text, kind):
    """The value of --key=text. Text needs no quotes here, and a list no brackets: `3e-4`, `mixer,gpt`."""
    if kind == "str":
        return text
    if kind.startswith("list[") and not text.startswith("["):
        if kind == "list[str]":
            return [item.strip() for item in text.split(",") if item.strip()]
        text = f"[{text}]"
    with suppress(*MALFORMED):
        return evaluate(ast.parse(text.strip(), mode="eval").body)
    return text  # no literal: text after all, which some keys take besides


def convert(value, kind):
    """The value as the type named kind, such as list[float]; an int is fine for a float. Or TypeError."""
    if kind.startswith("list[") and type(value) is list:
        return [convert(item, kind[5:-1]) for item in value]
    if type(value).__name__ not in (kind, "int" if kind == "float" else kind):
        raise TypeError
    return float(value) if kind == "float" else value


def changes(argv, settings):
    """(what to name in an error, key, value) of each setting that the arguments make, from left to right."""
    for argument in argv:
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and equals:
            yield f"--{key}", key, parse(text, settings[key].types[0] if key in settings else "str")
        elif argument.startswith("-"):
            fail(f"{argument}: write --key=value; --help lists the keys")
        else:
            for key, setting in read_settings(argument).items():
                yield f"{argument}: {key}", key, setting.value


def configure(argv, *sources):
    """Settings of a script as a dict {key: value}.

    argv: config files and --key=value. sources: files whose defaults count (the script, model.py).
    In paths, the keys in _dir and _path, ~ is the home folder, which shells leave to us behind a =.
    --help prints the keys and exits; a wrong argument ends with one line and status 2.
    """
    settings = {key: setting for path in sources for key, setting in read_settings(path).items()}
    if "--help" in argv or "-h" in argv:
        with open(sources[0], encoding="utf-8") as f:
            print(ast.get_docstring(ast.parse(f.read())), end="\n\n")
        print(*(f"  --{key}={s.value}".ljust(34) + f" {s.comment}" for key, s in settings.items()), sep="\n")
        raise SystemExit(0)
    config = {key: setting.value for key, setting in settings.items()}
    try:
        for where, key, value in changes(argv, settings):
            if key not in config:
                near = [f"did you mean {near}?" for near in difflib.get_close_matches(key, config, n=1)]
                fail(f"{where} is no setting; {(near or ['--help lists them'])[0]}")
            for kind in settings[key].types:
                with suppress(TypeError):
                    config[key] = convert(value, kind)
                    break
            else:
                fail(f"{where} takes {' or '.join(settings[key].types)}, not {value!r:.60}")
    except ValueError as e:
        fail(e)
    return {key: os.path.expanduser(value) if key.endswith(("_dir", "_path")) else value
            for key, value in config.items()}

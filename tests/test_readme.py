"""What the README says of the code is so: its table of lines, its commands, its files."""
import os
import re
import shlex

import pytest

from configurator import configure

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return f.read()


README = read("README.md")


def test_table_of_equations_points_at_the_right_lines():
    """Each row `[N](model.py#LN) | `code`` names a line that holds that code."""
    rows = re.findall(r"\[(?:\w+\.py )?(\d+)\]\((\w+\.py)#L(\d+)\) \| `(.+?)` \|", README)
    assert len(rows) > 9
    for number, name, anchor, code in rows:
        assert number == anchor and code in read(name).splitlines()[int(number) - 1], (number, code)


COMMANDS = re.findall(r"^    (?:torchrun .*?|.*?python )(train|sample|prepare|invert)\.py(.*)$", README, re.M)


@pytest.mark.parametrize("script, arguments", COMMANDS)
def test_commands_have_settings_that_exist(script, arguments, monkeypatch):
    """Every key and config file of the README's commands is accepted."""
    monkeypatch.chdir(HERE)
    models = [] if script in ("sample", "prepare") else ["model.py"]
    configure(shlex.split(arguments, comments=True), f"{script}.py", *models)


def test_files_that_are_linked_exist():
    """Images, scripts and folders."""
    text = re.sub("`[^`]*`", "", README)  # without code
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert len(links) > 9
    assert not [link for link in links if not os.path.exists(os.path.join(HERE, link))]


@pytest.mark.parametrize("name", sorted(os.listdir(os.path.join(HERE, "config"))))
def test_configs_are_valid(name):
    """Each file in config/ for training sets keys that exist, and makes a model."""
    script = name.partition("_")[0] if name.startswith(("invert", "retrieve", "compare")) else "train"
    models = [] if script == "compare" else [f"{HERE}/model.py"]
    config = configure([f"{HERE}/config/{name}"], f"{HERE}/{script}.py", *models)
    assert config["out_dir"].startswith("out/")

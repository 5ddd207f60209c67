"""The functions, commands and files that the README and results/ name exist."""
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


def test_functions_of_the_paper_exist():
    """Each row of the table from the paper to the code names functions or classes that its file defines."""
    rows = re.findall(r"^\|.*\| (`.+`) \| ([\w/]+\.py) \|$", README, re.M)
    assert len(rows) > 9
    for names, path in rows:
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"^ *(def |class )?{name.split('.')[-1]}\b[ (:]", read(path), re.M), (name, path)


def test_readme_is_short():
    """The README has at most 2,000 words."""
    assert len(README.split()) <= 2000


RESULTS = {name: read(f"results/{name}") for name in os.listdir(os.path.join(HERE, "results")) if name.endswith(".md")}


def test_every_csv_is_explained_and_has_a_command():
    """A page in results/ links every CSV, and every CSV begins with a comment, which gives its command."""
    text = "".join(RESULTS.values())
    for folder, _, names in os.walk(os.path.join(HERE, "results")):
        for name in names:
            if name.endswith(".csv"):
                path = os.path.relpath(os.path.join(folder, name), os.path.join(HERE, "results")).replace(os.sep, "/")
                assert f"({path})" in text, path
                assert read(f"results/{path}").startswith("#"), path


@pytest.mark.parametrize("name", RESULTS)
def test_files_that_results_link_exist(name):
    """Every file that a page in results/ links exists."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", RESULTS[name]) if not link.startswith("http")]
    assert len(links) > 2 or name == "faults.md"
    assert not [link for link in links if not os.path.exists(os.path.join(HERE, "results", link))]


NAMES = "train|sample|prepare|invert|retrieve|compare|bench|look"
COMMANDS = re.findall(rf"^    (?:torchrun .*?|.*?python )({NAMES})\.py(.*)$", README, re.M)


@pytest.mark.parametrize("script, arguments", COMMANDS)
def test_commands_have_settings_that_exist(script, arguments, monkeypatch):
    """configure accepts every key and config file in the commands of the README."""
    monkeypatch.chdir(HERE)
    models = ["model.py"] if script in ("train", "invert", "retrieve") else []
    configure(shlex.split(arguments, comments=True), f"{script}.py", *models)


def test_files_that_are_linked_exist():
    """Every image, script and folder that the README links exists."""
    text = re.sub("`[^`]*`", "", README)  # code holds no links
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert len(links) > 9
    assert not [link for link in links if not os.path.exists(os.path.join(HERE, link))]


@pytest.mark.parametrize("name", sorted(os.listdir(os.path.join(HERE, "config"))))
def test_configs_are_valid(name):
    """Every file in config/ sets keys that its script has, and an out_dir inside out/."""
    script = name.partition("_")[0] if name.startswith(("invert", "retrieve", "compare")) else "train"
    models = [] if script == "compare" else ["model.py"]
    config = configure([f"{HERE}/config/{name}"], f"{script}.py", *models)
    assert config["out_dir"].startswith("out/")

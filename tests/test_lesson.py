"""LESSON.md: its commands run in a small form, its code does what it says, and its figures are there."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

import model
from configurator import configure
from conftest import HERE, TINY
from lib.runs import read_rows

with open(os.path.join(HERE, "LESSON.md"), encoding="utf-8") as file:
    LESSON = file.read()
EXERCISES = re.split(r"^## (?=\d\. )", LESSON, flags=re.M)[1:]
SHORTER = {  # settings that come after those of the lesson, and so win
    "train.py": [*TINY[1:], "--max_iters=2", "--keep_every=1"],
    "look.py": ["--n_windows=2", "--device=cpu"],
    "prepare.py": ["--n_documents=100"],
    "compare.py": ["--base=small.py", "--amount=70", "--sample_tokens=4", "--device=cpu"],
    "invert.py": ["--dataset=tiny", "--block_size=7", "--n_layer=1", "--n_embd=20", "--n_head=5", "--windows=5",
                  "--steps=2", "--n_prompts=1", "--train_tokens=0", "--device=cpu"],
    "retrieve.py": ["--dataset=tiny", "--block_size=13", "--n_embd=12", "--batch_size=4", "--micro_batch_size=4",
                    "--max_iters=2", "--eval_queries=5", "--sizes=2", "--compile=false", "--dtype=float32",
                    "--device=cpu"],
}
SMALL = """
n_layer = 1
n_embd = 20
n_head = 5
batch_size = 3
eval_iters = 1
warmup_iters = 0
compile = False
dtype = "float32"
"""
SOURCE = '''
def add_{0}(number):
    """Return the sum of a number and {0}, as an integer."""
    if number < 0:
        raise ValueError("a number of apples is not negative, nor is {0}")
    return int(number + {0})
'''


def commands(exercise):
    """The commands of an exercise, each a list of words; `python a.py && python b.py` is two commands."""
    lines = re.findall(r"^    (python \w+\.py .*)$", exercise, re.M)
    return [shlex.split(part)[1:] for line in lines for part in line.split("&&")]


def code(exercise):
    """The Python code of an exercise."""
    block, = re.findall(r"^```python\n(.*?)^```$", exercise, re.M | re.S)
    return block


def shorter(command):
    """The command with a small model and little training; compare.py trains its last variant alone."""
    script, *arguments = command
    if script == "compare.py":
        config = configure(arguments, "compare.py")
        arguments.append(f"--only={list(config['variants'])[-1]}")
        with open(config["base"], encoding="utf-8") as base, open("small.py", "w", encoding="utf-8") as small:
            small.write(base.read() + SMALL)
    return [script, *arguments, *SHORTER[script]]


def test_there_are_six_exercises():
    """Each has a command or code, a figure, one question, and an answer that is folded."""
    assert [exercise[0] for exercise in EXERCISES] == [*"123456"]
    for exercise in EXERCISES:
        assert commands(exercise) or code(exercise)
        assert re.search(r"^!\[.+\]\(results/.+\.png\)$", exercise, re.M)
        assert exercise.count("**Question.**") == 1
        answer, = re.findall(r"^<details><summary>Answer</summary>\n\n(.+?)\n\n</details>$", exercise, re.M | re.S)
        assert "Question" not in answer


def test_files_that_the_lesson_links_exist():
    """Every figure, page and script that the lesson links exists."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", LESSON) if not link.startswith("http")]
    assert len(links) > 9
    assert not [link for link in links if not os.path.exists(os.path.join(HERE, link))]


def test_a_mixer_computes_what_exercise_1_says(capsys):
    """W.tril() @ x + b is what the module computes; a row reads no later token, and tells earlier ones apart."""
    names = {}
    with torch.enable_grad():  # which the code switches off
        exec(code(EXERCISES[0]), names)
    assert capsys.readouterr().out.startswith("True\n")
    conv, x, W, changed, swapped = (names[name] for name in ("conv", "x", "W", "changed", "swapped"))
    torch.testing.assert_close(conv(x), W.tril() @ x + names["b"][:, None])
    torch.testing.assert_close((conv(changed) - conv(x))[0], W.tril()[:, 2:3].expand(4, 3))
    difference = names["attention"](swapped, swapped, swapped)[0, 3] - names["attention"](x, x, x)[0, 3]
    assert difference.abs().max() < 1e-6 < (conv(swapped) - conv(x))[0, 3].abs().max()


@pytest.mark.parametrize("exercise", EXERCISES[1:5], ids=lambda exercise: exercise[0])
def test_commands_run_in_a_small_form(exercise, run, tiny_data, tmp_path, monkeypatch):
    """Every command of the exercises 2 to 5 ends well, one after the other, in a new folder."""
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny").symlink_to(tiny_data / "tiny")
    (tmp_path / "config").symlink_to(os.path.join(HERE, "config"))
    sources = [(side, SOURCE.format(n)) for n, side in enumerate(["train", "val"] * 8)]
    monkeypatch.setattr("lib.sources.split_python", lambda _: iter(sources))
    for command in commands(exercise):
        status, out, err = run(*shorter(command))
        assert status == 0, (command, err)


def test_the_module_of_exercise_6_is_an_average(monkeypatch):
    """Its result is that of a naive sum, its cache changes nothing, and each token learns from those before it."""
    monkeypatch.setitem(model.ARCHITECTURES, "average", None)  # so that the entry goes at the end
    names = dict(vars(model))
    exec(code(EXERCISES[5]), names)
    torch.manual_seed(1)
    B, T, C = 3, 11, 6
    language_model = model.LanguageModel(model.ModelConfig(model_type="average", block_size=T, n_layer=2, n_embd=C,
                                                           vocab_size=31)).eval()
    x, (mix,) = torch.randn(B, T, C), language_model.blocks[0].mix[0]
    a = mix.decay.sigmoid()                                                               # (C,)
    for t in range(T):
        expected = sum((1 - a) * a ** (t - s) * x[:, s] for s in range(t + 1))            # (B, C)
        torch.testing.assert_close(mix(x)[:, t], expected)
    prompts = [[1, 2, 3], [4]]
    cached, whole = (list(language_model.generate(prompts, 30, seed=1, cached=cached)) for cached in (True, False))
    assert cached == whole
    mix(x).sum().backward()
    assert (mix.decay.grad != 0).all()


def test_exercise_6_adds_an_architecture(tmp_path, tiny_data, monkeypatch):
    """With its code at the end of model.py, the command trains the new model and compares it."""
    for name in os.listdir(HERE):
        if name.endswith(".py"):
            shutil.copy(os.path.join(HERE, name), tmp_path)
    for folder in "lib", "config":
        shutil.copytree(os.path.join(HERE, folder), tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(tiny_data)
    monkeypatch.chdir(tmp_path)
    with open("model.py", "a", encoding="utf-8") as f:
        f.write("\n\n" + code(EXERCISES[5]))
    for command in commands(EXERCISES[5]):
        done = subprocess.run([sys.executable, *shorter(command), "--dataset=tiny"], capture_output=True,
                              encoding="utf-8", env=os.environ | {"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
    row, = read_rows("out/lesson/own/compare.csv")
    assert row["name"] == "average" and row["tokens"] >= 70

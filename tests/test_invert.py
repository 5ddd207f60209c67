"""Descent finds known answers, the metrics equal those by hand, and invert.py writes what it has found."""
import csv
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

import invert as script
import train as train_script
from conftest import flip
from configurator import configure
from invert import COLUMNS, compare_with_loss, format_table, mark, print_texts
from lib.data import load_meta, load_tokens, validation_windows
from lib.inversion import (decode, descend, distances, hamming, hidden_states, invert, matched_positions,
                       random_start, recover_exactly)
from model import LanguageModel, ModelConfig

B, T, C, V = 3, 7, 10, 29


def build(**options):
    torch.manual_seed(1)
    options = dict(block_size=11, n_layer=2, n_embd=C, n_head=5, vocab_size=V) | options
    return LanguageModel(ModelConfig(**options)).eval()


class Linear(nn.Module):
    """A model whose only layer is x @ A."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wte = nn.Embedding.from_pretrained(torch.randn(V, C, generator=generator))
        self.A = torch.randn(C, C, generator=generator)
        self.embed, self.final_norm = self.wte, nn.Identity()

    def run_blocks(self, x, n_layer=None, cache=None):
        return x @ self.A


IDX = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 9, 0, 28, 3, 17, 11], [5, 3, 5, 20, -1, -1, -1]])


# ------------------------------------------------------------------------------------------------------------
# descent

@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_gd_on_a_linear_model_takes_the_steps_of_the_formula(metric):
    """The steps are x - size * gradient, with the gradient sign(x A - h) A^T or its L2 twin, sizes lr to lr/10."""
    model, lrs, steps = Linear(), [0.03, 0.5], 4
    start = random_start(2, T, C, seed=1)
    found = invert(model, IDX[:2], start, "gd", lrs, steps, metric)
    for n, lr in enumerate(lrs):
        x = start
        for size in (lr, 0.7 * lr, 0.4 * lr, 0.1 * lr):
            apart = (x - model.wte(IDX[:2])) @ model.A
            unit = apart.sign() if metric == "l1" else apart / apart.norm(dim=-1, keepdim=True)
            x = x - size * unit @ model.A.T
        torch.testing.assert_close(found[n], x, atol=1e-4, rtol=1e-4)


def test_adam_is_torchs_adam_in_units_of_the_embedding():
    """The steps are those of torch.optim.Adam with the same falling rate and a start of the embedding's scale."""
    model = build(embd_std=0.02).requires_grad_(False)
    std, start, steps = model.wte.weight.std().item(), random_start(1, T, C, seed=2), 6
    x = nn.Parameter(std * start)
    optimizer = torch.optim.Adam([x], eps=1e-12)
    target = hidden_states(model, model.embed(IDX[:1]), None)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * std * (1 - 0.9 * step / (steps - 1))
        optimizer.zero_grad()
        (hidden_states(model, x, None) - target).abs().sum().backward()
        optimizer.step()
    torch.testing.assert_close(invert(model, IDX[:1], start, "adam", [0.1], steps)[0], x.data)


def test_the_step_falls_to_a_tenth():
    """On a slope of 1, x falls by size * (1 + 0.55 + 0.1) in three steps, and by size in a single step."""
    for adam in False, True:
        for steps, factor in (3, 1.65), (1, 1.0):
            x, size = torch.zeros(2, 1, 1), torch.tensor([1.0, 4.0])
            x = descend(lambda x: x.sum(dim=(1, 2)), x, size, steps, adam)
            assert x.flatten().tolist() == pytest.approx([-factor, -4 * factor])


@pytest.mark.parametrize("method, lr", [("gd", 0.2), ("adam", 0.2)])
def test_blocks_that_do_nothing_are_inverted_exactly(method, lr):
    """Without blocks, the hidden states are the embeddings, and descent recovers every token and its embedding."""
    model = build()
    model.blocks = nn.ModuleList()
    x = invert(model, IDX[:2], random_start(2, T, C, seed=3), method, [lr], 100)[0]
    for found, true in zip(x, IDX):
        wte = model.wte.weight.detach()
        _, nearest = decode(found, wte, torch.linalg.pinv(wte))
        assert nearest[:, 0].tolist() == true.tolist()
        assert (found - wte[true]).abs().max() < 0.05


@pytest.mark.parametrize("method", ["gd", "adam"])
@pytest.mark.parametrize("model_type", ["mixer", "llama"])
def test_a_row_does_not_depend_on_the_batch(method, model_type):
    """Descent finds the same inputs for all prompts and step sizes together, in parts of 4 rows, and one by one."""
    model, lrs = build(model_type=model_type), [0.01, 0.1, 1.0]
    start = random_start(B, T, C, seed=4)
    settings = dict(method=method, steps=5, last_n=2)
    together = invert(model, IDX, start, lrs=lrs, **settings)
    assert together.shape == (3, B, T, C)
    in_parts = invert(model, IDX, start, lrs=lrs, batch_size=4, **settings)
    torch.testing.assert_close(in_parts, together, atol=1e-5, rtol=1e-4)
    for n, lr in enumerate(lrs):
        for b in range(B):
            alone = invert(model, IDX[b:b + 1], start[b:b + 1], lrs=[lr], **settings)
            torch.testing.assert_close(alone[0, 0], together[n, b], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(random_start(1, T, C, seed=4)[0], start[0])
    assert not torch.equal(start[0], start[1])


def test_only_matched_positions_and_what_they_see_are_moved():
    """Descent moves no pads in a causal model, and only the 2 matched positions in a model without blocks."""
    model, start = build(), random_start(B, T, C, seed=5)
    x = invert(model, IDX, start, steps=3, last_n=2)[0]
    assert torch.equal(x[2, 4:], start[2, 4:]) and not torch.equal(x[2, :4], start[2, :4])
    model.blocks = nn.ModuleList()
    moved = (invert(model, IDX, start, steps=3, last_n=2)[0] != start).any(dim=-1)
    assert torch.equal(moved, matched_positions(IDX, 2))


def test_hidden_states_after_a_layer_and_after_the_norm():
    """States can be read after 1 block, after all, and after the final norm; a mixer gets a norm for this."""
    for model_type in "mixer", "llama":
        model, x = build(model_type=model_type), random_start(B, T, C, seed=6)
        torch.testing.assert_close(hidden_states(model, x, 1), model.blocks[0](x))
        h = hidden_states(model, x, 2)
        torch.testing.assert_close(h, model.blocks[1](model.blocks[0](x)))
        centred = h if model_type == "llama" else h - h.mean(dim=-1, keepdim=True)
        expected = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(hidden_states(model, x, "norm"), expected, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------
# metrics

def test_distances_by_hand():
    """Distances are computed per position and summed over the mask."""
    a = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    b = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 2.0]]])
    mask = torch.tensor([[True, True, False]])
    assert distances(a, b, mask, "l1").tolist() == [9.0]
    assert distances(a, b, mask, "l2").item() == pytest.approx(5 + 2 ** 0.5)
    assert distances(a, b, torch.tensor([[False, True, False]]), "cosine").item() == pytest.approx(1.0)


def test_hamming_leaves_pads_out():
    """Top 1 and top 2 equal those by hand, and are nan where no position is counted."""
    idx = torch.tensor([[4, 5, 6, -1], [7, 8, -1, -1]])
    found = torch.tensor([[[4, 0], [0, 5], [1, 2], [9, 9]], [[7, 1], [8, 1], [-1, -1], [3, 3]]])
    real = idx >= 0
    assert hamming(found[..., :1], idx, real).tolist() == pytest.approx([2 / 3, 0])
    assert hamming(found, idx, real).tolist() == pytest.approx([1 / 3, 0])
    assert hamming(found, idx, torch.zeros_like(real)).isnan().all()


def test_matched_positions_count_from_the_last_token():
    """The matched positions are the last n tokens before the pads, or all tokens for n = 0."""
    assert matched_positions(IDX).sum(dim=1).tolist() == [7, 7, 4]
    last = matched_positions(IDX, 2)
    assert last[0].nonzero().flatten().tolist() == [5, 6] and last[2].nonzero().flatten().tolist() == [2, 3]


def test_decoding_gives_back_embeddings():
    """With C = V, the pseudo-inverse is the inverse, so that each embedding decodes to its own token."""
    wte = torch.randn(C, C, generator=torch.Generator().manual_seed(0))
    top5, nearest = decode(wte[[3, 0, 7]], wte, torch.linalg.pinv(wte))
    assert top5.shape == (3, 5) and top5[:, 0].tolist() == [3, 0, 7] and nearest.tolist() == [[3], [0], [7]]


class Letters:
    """A tokenizer whose ids are bytes."""

    def decode_single_token_bytes(self, token):
        return bytes([token])


def test_marks_stand_at_wrong_tokens():
    """Wrong tokens stand in [brackets] on one line; in colour, right tokens are green and wrong ones red."""
    assert mark(list(b"ab\nd"), list(b"axyd"), Letters()) == r"'a[b][\n]d'"
    in_colour = mark(list(b"a\033"), list(b"ax"), Letters(), colour=True)
    assert in_colour == "'\033[32ma\033[0m\033[31m\\x1b\033[0m'"  # the text itself cannot change the colour


def test_only_a_terminal_gets_colours(monkeypatch, capsys):
    """A terminal gets colours unless NO_COLOR is set, files and pipes get brackets, and neither text shows pads."""
    found, idx = torch.tensor([list(b"axz")]), torch.tensor([[*b"ab", -1]])
    brackets, colours = "  found 'a[x]'", "  found '\033[32ma\033[0m\033[31mx\033[0m'"
    for terminal, no_color, line in (False, "", brackets), (True, "", colours), (True, "1", brackets):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("NO_COLOR", no_color)
        print_texts(found, idx, Letters())
        assert capsys.readouterr().out.splitlines() == ["   true 'ab'", line]


# ------------------------------------------------------------------------------------------------------------
# exact

@pytest.mark.parametrize("layer", [1, None, "norm"])
@pytest.mark.parametrize("model_type", ["mixer", "gpt", "llama", "hybrid"])
def test_exact_recovers_every_token(model_type, layer):
    """Every token is found after a short descent, and also without any, when the candidates have no useful order."""
    model = build(model_type=model_type, block_size=T)
    for steps, batch_size in (10, 4), (0, 8):
        found, tried = recover_exactly(model, IDX[1], layer, batch_size=batch_size, steps=steps)
        assert found == IDX[1].tolist()
        assert len(tried) == T and 1 <= min(tried) and max(tried) <= V


def test_descent_puts_the_right_candidate_in_front():
    """After a descent, fewer than a fifth as many candidates are tried as without."""
    model = build(model_type="llama", vocab_size=997)
    tried = [sum(recover_exactly(model, IDX[1], steps=steps)[1]) for steps in (30, 0)]
    assert tried[0] < 0.2 * tried[1]


# ------------------------------------------------------------------------------------------------------------
# the script

def prepare_text(run, dataset, text, tokenizer):
    """Prepare a dataset of one text in a copy of data/, which is a link that the tests share."""
    if os.path.islink("data"):
        target = os.readlink("data")
        os.remove("data")
        shutil.copytree(target, "data")
    with open(f"{dataset}.txt", "w", encoding="utf-8") as f:
        f.write(text)
    status, _, err = run("prepare.py", f"--input={dataset}.txt", f"--dataset={dataset}", f"--tokenizer={tokenizer}",
                         "--vocab_size=270")
    assert status == 0, err


FAST = "--steps=3", "--n_prompts=2", "--device=cpu"
FRESH = ("--dataset=tiny", "--block_size=11", "--n_layer=2", "--n_embd=20", "--n_head=5", *FAST)


def results(folder):
    """Return the rows of invert.csv and the content of invert.json."""
    with open(f"{folder}/invert.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    with open(f"{folder}/invert.json", encoding="utf-8") as f:
        return rows, json.load(f)


def test_a_checkpoint_is_inverted_by_layer_and_window(run):
    """Each run, method, step size, layer and T gets a row; the figures, the table and the texts are there, too."""
    run("train.py")
    run("train.py", "--out_dir=out2", "--model_type=llama")
    open("out.csv", "w", encoding="utf-8").close()  # a file that the pattern matches is no run
    arguments = "--compare=out*", "--out_dir=both", "--layers=each,norm", "--windows=3,11", *FAST
    status, out, err = run("invert.py", *arguments, "--methods=gd,adam,exact")
    assert status == 0, err
    rows, saved = results("both")
    assert list(rows[0]) == COLUMNS and len(rows) == 2 * (3 + 1 + 1) * 3 * 2 == len(saved["rows"])
    assert {row["model"] for row in rows} == {"out", "out2"} and {row["trained"] for row in rows} == {"yes"}
    assert [row["layer"] for row in rows[:18:6]] == ["1", "2", "norm"]
    for row in rows:
        assert 0 <= float(row["hamming_top5"]) <= float(row["hamming_top1"]) <= 1
        if row["method"] == "exact":
            assert float(row["hamming_top1"]) == float(row["distance"]) == 0 and row["lr"] == ""
    assert os.path.getsize("both/invert.png") > 1000
    assert "   true '" in out and "  found '" in out and "candidates per token" in out
    assert "  n  top1   std    nearest  top5  " in out  # both ways to decode stand side by side
    table = out[out.index("\nmodel  trained"):].splitlines()[2:2 + len(rows)]
    assert len(table) == len(rows) and len({line.index(" l1 ") for line in table}) == 1
    assert out.count("rank correlation of share and loss") == 3 * 3 * 2
    assert os.path.getsize("both/efficiency.png") > 1000


def test_recovery_is_correlated_with_the_loss(tmp_path, capsys, monkeypatch):
    """The best step size and the last loss count; where all shares are equal, there is no correlation."""
    rows, drawn = [], []
    for name, loss, gd in ("a", 3.0, (0.9, 0.5)), ("b", 2.0, (0.2, 0.6)), ("c", 1.0, (0.3, 0.1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text(f"iter,val_loss\n0,9\n5,{loss}\n6,\n", encoding="utf-8")
        head = dict(model=str(tmp_path / name), matched="all", layer=2, T=11)
        rows += [head | dict(method="gd", lr=lr, hamming_top1=value) for lr, value in enumerate(gd)]
        rows.append(head | dict(method="exact", lr="", hamming_top1=0.0))
    without_log = head | dict(method="gd", lr=1, hamming_top1=0.3, model="lost")
    monkeypatch.setattr(script, "plot_efficiency", lambda *arguments: drawn.append(arguments))
    compare_with_loss([*rows, without_log], "efficiency.png")
    assert capsys.readouterr().out.splitlines() == [
        "lost has no log.csv, so it is not compared",
        "gd, all, block 2, T 11: rank correlation of share and loss -1.00, 3 runs",
        "exact, all, block 2, T 11: rank correlation of share and loss none, 3 runs"]
    assert drawn == [(rows, {str(tmp_path / "abc"[i]): 3.0 - i for i in range(3)}, "efficiency.png")]


def test_the_table_sums_up_seeds():
    """The table gives the mean and standard deviation of top 1 over the prompts of all seeds, else the mean."""
    head = dict(model="m", trained="no", embedding_std=1.0, method="gd", lr=0.2, metric="l1", matched="all", layer=2,
                T=7, hamming_top5=0.1, distance=3, shifted_distance=2, seconds=1)
    rows = [head | dict(seed=1, hamming_nearest=0.25, top1_by_prompt=[0.0, 0.5]),
            head | dict(seed=2, hamming_nearest=0.75, top1_by_prompt=[1.0, 0.5])]
    header, line = format_table(rows)
    table = dict(zip(header.split(), line.split()))
    assert (table["n"], table["top1"], table["std"], table["nearest"]) == ("4", "0.500", "0.354", "0.5")


def test_the_yardstick_is_the_authors_absolute_shift(run):
    """shifted_distance is the distance after adding 0.05 N(0, 1) to the embedding e, whatever its scale."""
    for std in 1.0, 0.02:
        args = *FRESH, "--models=mixer", "--methods=gd", "--lrs=0.1", "--windows=7", f"--embd_stds={std}", "--seed=3"
        run("invert.py", *args, f"--out_dir=std{std}")
        rows, _ = results(f"std{std}")
        meta = load_meta("data/tiny")
        torch.manual_seed(3)
        model = LanguageModel(ModelConfig(block_size=11, n_layer=2, n_embd=20, n_head=5, embd_std=std,
                                          vocab_size=meta["vocab_size"]))
        ids = load_tokens("data/tiny", "val", meta)
        idx = torch.tensor([ids[i:i + 7].tolist() for i in validation_windows(len(ids), 7, 2)])
        with torch.no_grad():
            e = model.wte(idx)
            apart = model.run_blocks(e + 0.05 * random_start(2, 7, 20, seed=4)) - model.run_blocks(e)
        assert float(rows[0]["shifted_distance"]) == pytest.approx(apart.abs().sum().item() / 2, rel=1e-4)


def test_the_last_positions_are_scored_apart(run):
    """With last_n=2, one row scores the 2 self tokens and another the non-self tokens before them."""
    run("invert.py", *FRESH, "--models=mixer", "--out_dir=last", "--last_n=2", "--methods=gd", "--lrs=0.1")
    rows, _ = results("last")
    assert [row["matched"] for row in rows] == ["last2:self", "last2:non-self"]
    assert {(row["trained"], row["model"]) for row in rows} == {("no", "mixer init=torch")}
    assert float(rows[0]["hamming_top1"]) * 4 % 1 == 0  # 2 prompts have 2 tokens each
    status, _, err = run("invert.py", *FRESH, "--models=mixer", "--out_dir=last", "--last_n=11", "--methods=adam")
    assert status == 0, err
    assert [row["matched"] for row in results("last")[0]] == ["last11:self"]  # no token stands before them


def test_a_text_is_cut_into_padded_prompts(run):
    """From 16 tokens in windows of 11, the second prompt gets 5 tokens and pads, which no score counts."""
    with open("prompt.txt", "w", encoding="utf-8") as f:
        f.write("x" * 16)
    fresh = *FRESH, "--models=llama", "--out_dir=text", "--methods=exact", "--show=2"
    status, out, _ = run("invert.py", *fresh, "--start=FILE:prompt.txt")
    rows, saved = results("text")
    assert status == 0 and saved["rows"][0]["top1_by_prompt"] == [0.0, 0.0]
    assert [len(tried) for tried in saved["rows"][0]["tried"]] == [11, 5]
    assert f"true '{'x' * 11}'" in out and f"true '{'x' * 5}'" in out


def test_seeds_and_variants_are_rows_and_a_second_run_resumes(run, refused):
    """A second run keeps all rows to the digit and adds those of a new seed, but refuses other settings."""
    arguments = (*FRESH, "--models=mixer,gpt", "--embd_stds=1.0,0.02", "--inits=torch,normal",
                 "--out_dir=table", "--resume=true", "--methods=adam")
    run("invert.py", *arguments)
    first, _ = results("table")
    assert len(first) == len({(row["model"], row["embedding_std"]) for row in first}) == 8
    status, out, _ = run("invert.py", *arguments, "--seeds=2")
    second, _ = results("table")
    assert status == 0 and second[:8] == first and len(second) == 16
    assert "adam    0.1  l1      all      2      11  4" in out.splitlines()[-1]  # n: 2 prompts, 2 seeds
    refused("other settings", "invert.py", *arguments, "--steps=4")
    run("invert.py", *arguments, "--resume=false", "--models=gpt", "--embd_stds=", "--inits=")
    assert [row["model"] for row in results("table")[0]] == ["gpt init=normal"]


def test_fresh_models_are_trained_and_the_run_is_used_again(run, monkeypatch):
    """train.py gets the model's settings, goes on with a stopped run, and does not repeat a finished one."""
    run("train.py")
    commands = []

    def train(command):
        commands.append(command)
        settings = configure(command[2:], "train.py", "model.py")
        shutil.copytree("out", settings["out_dir"], dirs_exist_ok=True)
        path = f"{settings['out_dir']}/ckpt.pt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"], checkpoint["state"]["tokens"] = settings, 20 if len(commands) == 1 else 50
        checkpoint["model_config"]["embd_std"] = settings["embd_std"]
        torch.save(checkpoint, path)
        return SimpleNamespace(wait=lambda: 130 if len(commands) == 1 else 0)

    monkeypatch.setattr(subprocess, "Popen", train)
    arguments = (*FRESH, "--models=mixer", "--embd_stds=0.02", "--train_tokens=50", "--out_dir=table",
                 "--methods=adam", "--resume=true", "--layers=all,norm")
    assert [run("invert.py", *arguments)[0] for _ in range(3)] == [1, 0, 0]
    assert len(commands) == 2 and "--init_from=scratch" in commands[0] and "--init_from=resume" in commands[1]
    assert "--embd_std=0.02" in commands[0] and "--max_tokens=50" in commands[0]
    rows, _ = results("table")
    assert [row["trained"] + row["layer"] for row in rows] == ["no2", "nonorm", "yes2", "yesnorm"]


def test_rows_of_a_model_that_has_changed_are_not_kept(run):
    """--resume computes the rows of a run that was trained anew, and keeps those of the other runs."""
    arguments = "--compare=out,out2", "--out_dir=both", "--methods=adam", "--resume=true", *FAST
    run("train.py")
    run("train.py", "--out_dir=out2")
    run("invert.py", *arguments)
    first, _ = results("both")
    run("train.py", "--out_dir=out2", "--seed=7")
    status, out, _ = run("invert.py", *arguments)
    second, _ = results("both")
    assert status == 0 and "1 rows of both/invert.json are dropped" in out
    assert [row["model"] for row in second] == ["out", "out2"]
    assert second[0] == first[0] and second[1]["distance"] != first[1]["distance"]


def test_rows_of_a_text_that_has_changed_are_not_kept(run):
    """--resume computes the rows anew when the file of the prompt has changed, and keeps them when it has not."""
    fresh = *FRESH, "--models=mixer", "--out_dir=text", "--methods=adam", "--resume=true", "--start=FILE:prompt.txt"
    distances_found = []
    for text in "one two three", "four", "four":
        with open("prompt.txt", "w", encoding="utf-8") as f:
            f.write(text)
        status, out, err = run("invert.py", *fresh)
        assert status == 0, err
        rows, _ = results("text")
        distances_found.append([row["distance"] for row in rows])
    assert len(distances_found[0]) == len(distances_found[1]) == 1
    assert distances_found[0] != distances_found[1] and distances_found[1] == distances_found[2]
    assert "dropped" not in out


@pytest.fixture
def trained(monkeypatch):
    """Run train.py in this process, without compilation; return the settings of its runs."""
    settings = []

    def train(command):
        settings.append(configure(command[2:], "train.py", "model.py"))
        train_script.main(SimpleNamespace(**settings[-1] | dict(compile=False)))
        path = os.path.join(settings[-1]["out_dir"], "ckpt.pt")
        checkpoint = torch.load(path, weights_only=True)
        torch.save(checkpoint | dict(config=settings[-1]), path)
        return SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", train)
    return settings


def test_a_run_of_other_settings_is_trained_anew(run, trained):
    """A run is trained anew when its model differs, or a setting of train.py that invert.py never names."""
    arguments = *FRESH, "--models=mixer", "--train_tokens=99", "--out_dir=table", "--methods=adam"
    run("invert.py", *arguments)
    first, _ = results("table")
    run("invert.py", *arguments)
    assert len(trained) == 1
    path = "table/mixer_torch_1_1337/ckpt.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["weight_decay"] = 0.5
    torch.save(checkpoint, path)
    _, out, _ = run("invert.py", *arguments)
    assert len(trained) == 2 and trained[1]["init_from"] == "scratch" and "weight_decay=0.5, not 0.1" in out
    status, _, err = run("invert.py", *arguments, "--n_layer=1")
    assert status == 0 and len(trained) == 3 and trained[2]["n_layer"] == 1 and trained[2]["init_from"] == "scratch"
    rows, _ = results("table")
    assert [row["layer"] for row in rows] == ["1", "1"] and rows[1]["distance"] != first[1]["distance"]


def test_a_run_is_inverted_on_other_data_of_its_tokenizer(run, refused):
    """Another dataset with the same tokenizer serves; one with another tokenizer is refused by name."""
    prepare_text(run, "other", "Bread is baked from flour, water and salt. " * 90, "byte")
    prepare_text(run, "merged", "Bread is baked from flour, water and salt. " * 90, "bpe")
    run("train.py")
    status, out, err = run("invert.py", "--out_dir=out", "--dataset=other", "--methods=adam", *FAST)
    assert status == 0 and "has changed" not in out, err
    true = out[out.index("   true '") + len("   true '"):].split("'\n")[0]
    assert true in "Bread is baked from flour, water and salt. " * 2
    refused("another tokenizer", "invert.py", "--out_dir=out", "--dataset=merged")


def test_a_dataset_prepared_anew_has_changed_and_is_not_damaged(run, refused):
    """A line says that the dataset has changed, and the new text is inverted; a damaged file is still refused."""
    prepare_text(run, "changing", "Ten and ten is twenty, says the clerk. " * 90, "byte")
    run("train.py", "--dataset=changing")
    prepare_text(run, "changing", "Bread is baked from flour, water and salt. " * 120, "byte")
    status, out, err = run("invert.py", "--out_dir=out", "--methods=adam", *FAST)
    assert status == 0 and out.count("data/changing has changed since out was trained") == 1, err
    flip("data/changing/val.bin", 5)
    refused("val.bin is damaged", "invert.py", "--out_dir=out")
    prepare_text(run, "changing", "Bread is baked from flour, water and salt. " * 120, "bpe")
    refused("data/changing has changed since out was trained, and has another tokenizer", "invert.py", "--out_dir=out")


def test_a_fresh_model_is_trained_anew_when_its_dataset_has_changed(run, trained):
    """A fresh model is trained anew when its dataset has changed, even to another tokenizer."""
    arguments = *FRESH, "--dataset=changing", "--models=mixer", "--train_tokens=99", "--out_dir=t", "--methods=adam"
    for tokenizer, count in ("byte", 1), ("bpe", 2), ("bpe", 2):
        prepare_text(run, "changing", "Ten and ten is twenty, says the clerk. " * 90, tokenizer)
        status, _, err = run("invert.py", *arguments)
        assert status == 0 and len(trained) == count, err
    assert trained[1]["init_from"] == "scratch" and os.path.exists("t/mixer_torch_1_1337.1/ckpt.pt")


def test_the_home_folder_is_found_in_compare(run, monkeypatch, tmp_path):
    """The ~ before a pattern, out_dir and the file of a prompt stands for the home folder."""
    run("train.py", "--out_dir=home/a")
    (tmp_path / "home" / "prompt.txt").write_text("12 times 3", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    status, out, err = run("invert.py", "--compare=~/a*", "--out_dir=~/found", "--start=FILE:~/prompt.txt", *FAST)
    assert status == 0 and "12 times 3" in out, err
    assert {row["model"] for row in results("home/found")[0]} == {str(tmp_path / "home" / "a")}


def test_a_folder_is_taken_by_its_name_and_once(run):
    """The name of a folder is no pattern, even with brackets, and a run that is named twice is inverted once."""
    run("train.py", "--out_dir=out[1]")
    status, _, err = run("invert.py", "--compare=out[1],./out[1]", "--out_dir=both", "--methods=adam", *FAST)
    rows, _ = results("both")
    assert status == 0 and [row["model"] for row in rows] == ["out[1]"], err


def test_kept_checkpoints_are_inverted(run):
    """--compare=out/iter_*.pt inverts a run over its training: the rows of a checkpoint are those of its weights."""
    run("train.py", "--keep_every=10", "--eval_interval=10", "--max_iters=20")
    status, _, err = run("invert.py", "--compare=out/iter_*.pt,out", "--out_dir=both", "--methods=adam", *FAST)
    rows, _ = results("both")
    names = [row["model"] for row in rows]
    assert status == 0 and names == ["out/iter_0.pt", "out/iter_10.pt", "out/iter_20.pt", "out"], err
    assert len({row["distance"] for row in rows[:3]}) == 3 and rows[2]["distance"] == rows[3]["distance"]


def test_bad_invert_input_is_refused(run, refused):
    """Bad input ends with status 2 and one line that says what is wrong."""
    run("train.py")
    with open("empty.txt", "w", encoding="utf-8"):
        pass
    for message, argument in [
        ("no prompt", "--start=FILE:empty.txt"), ("cannot read nowhere.txt", "--start=FILE:nowhere.txt"),
        ("1 to 11 tokens", "--windows=4,12"), ("1 to 5 tokens", "--start=xxxxx --windows=6"),
        ("layers: '3' is out of range", "--layers=1,3"), ("layers: '0'", "--layers=0"),
        ("methods must be one of gd | adam | exact", "--methods=gd,sgd"),
        ("metric must be one of l1 | l2 | cosine", "--metric=l3"), ("lrs takes list[float]", "--lrs=0.1,fast"),
        ("steps must be in [1, inf)", "--steps=0"), ("n_prompts must be in [1, inf)", "--n_prompts=0"),
        ("seeds must be in [1, 1000]", "--seeds=0"), ("batch_size must be in [1, inf)", "--batch_size=0"),
        ("lrs must be in (0, inf)", "--lrs=0.1,-1"), ("adam_lrs must be in (0, inf)", "--adam_lrs=1e999"),
        ("embd_stds must be in (0, inf)", "--models=mixer --embd_stds=1.0,0"), ("windows must", "--windows=4,0"),
        ("seed must be in [0, 1e12]", "--seed=-1"), ("seed is too large", "--seed=99999999999999999999999"),
        ("last_n must be in [0, inf)", "--last_n=-1"), ("show must be in [0, inf)", "--show=-1"),
        ("inits must be one of auto | torch | normal", "--models=mixer --inits=zeros"),
        ("train_tokens must be in [0, inf)", "--models=mixer --train_tokens=-5"),
        ("at least one value each", "--lrs="), ("at least one value each", "--methods="),
        ("no checkpoint", "--out_dir=nowhere"), ("no dataset in", "--models=mixer --dataset=nowhere"),
        ("n_embd is for fresh models", "--n_embd=64"), ("model_type is for", "--models=gpt --model_type=gpt"),
        ("model_type must be", "--models=rnn --dataset=tiny"), ("exact needs", "--methods=exact --last_n=1"),
    ]:
        refused(message, "invert.py", "--out_dir=out", *argument.split())

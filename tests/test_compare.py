"""tools/compare.py: runs side by side, and what it says cannot be compared."""

import json
import os
import platform
import re
import shutil
import sys

import pytest
from conftest import TINY, in_process
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from parts import configurator
from tools import compare


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """What the script prints of these runs; the picture's panels are in told.axes."""
    monkeypatch.setattr(configurator, "ROOT", tmp_path)
    save = Figure.savefig

    def keep(figure, *where, **how):
        tell.axes = figure.axes
        save(figure, *where, **how)

    def tell(*runs):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, runs)])
        monkeypatch.setattr(Figure, "savefig", keep)
        capsys.readouterr()
        compare.main()
        return capsys.readouterr().out

    return tell


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_two_runs_their_settings_losses_and_scores(trained, dataset, tmp_path, monkeypatch, told):
    a, b = shutil.copytree(trained, tmp_path / "a"), tmp_path / "b"
    how = (f"--dataset={dataset}", *TINY, "--max_iters=20", "--eval_interval=10", "--lr=1e-2")
    assert in_process(monkeypatch, *how, "--sample_prompt=", f"--out_dir={b}") == 0
    for folder, score in ((a, 0.25), (b, 0.5)):
        numbers = {"top1": score, "line_exact": 100 * score, "arguments": {"seed": 1}}
        (folder / "eval.json").write_text(json.dumps(numbers))
    text = told(a, b)
    cells = (re.split("  +", line.strip()) for line in text.splitlines())
    lines = {name: values for name, *values in cells}
    assert lines["lr"] == ["0.003", "0.01"] and lines["max_iters"] == ["60", "20"]
    assert "n_layer" not in lines and "out_dir" not in lines
    metrics = [[json.loads(x) for x in open(f / "metrics.jsonl")] for f in (a, b)]
    losses = [[m["val_loss"] for m in run if "val_loss" in m] for run in metrics]
    assert lines["last validation loss, nats per token"] == [f"{x[-1]:.4f}" for x in losses]
    assert lines["steps"] == ["60", "20"] and lines["tokens read"] == ["30,720", "10,240"]
    assert lines["right token is the first guess, %"] == ["25.0", "50.0"]
    assert lines["rest of a cut line: exactly right, %"] == ["25.0", "50.0"]
    assert "note:" not in text
    *bars, curves = told.axes
    assert [line.get_ydata().tolist() for line in curves.lines] == losses
    assert curves.lines[1].get_xdata().tolist() == [0, 5120, 10240]
    assert [[bar.get_width() for bar in axes.patches] for axes in bars] == [[25, 50]] * 2
    for n, line in enumerate(curves.lines):  # a run has one colour in all panels
        colours = {to_hex(axes.patches[n].get_facecolor()) for axes in bars}
        assert colours == {to_hex(line.get_color())}


def test_what_cannot_be_compared_is_said(trained, tmp_path, told, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "here")
    a, b, alone = (shutil.copytree(trained, tmp_path / name) for name in ("a", "b", "alone"))
    # The same text in other tokens: bits per byte are comparable.
    tokenizer = json.loads((b / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].reverse()
    (b / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = json.loads((b / "run.json").read_text())["data"]
    data["val"]["sha256"] = "f" * 64
    change(b, "run.json", data=data)
    text = told(a, b)
    assert "compare bits per byte, not nats per token" in text and "sets differ" not in text
    assert told.axes[-1].get_ylabel() == "bits per byte"
    # Other text: not even those.
    data["val"]["bytes"] += 1
    change(b, "run.json", data=data)
    (b / "eval.json").write_text('{"loss": 2, "mine_choice2": 0.5, "data": {"sha256": "e"}}')
    (a / "eval.json").write_text('{"loss": 1, "arguments": {"dataset": "", "num_bodies": 5}}')
    text = told(a, b)
    assert "training: the validation sets differ, so no loss can be compared" in text
    assert "nothing but scores on problems" in text and "sha256 ffffffff" in text
    # A folder with nothing but an evaluation, and a run that is being trained.
    for file in alone.iterdir():
        file.unlink()
    (alone / "eval.json").write_text('{"mine_choice2": 0.75}')
    (a / "lock").write_text(f"process {os.getpid()} on here\n")
    (a / "model.safetensors").unlink()
    change(a, "eval.json", measured={"checkpoint": "best.pt", "step": 30})
    with open(a / "metrics.jsonl", "a") as file:
        file.write('{"step": 61, "val_')
    text = told(alone, a)
    assert f"a is still training (process {os.getpid()} on here)" in text
    assert "a was evaluated as it was at step 30" in text and "the settings" in text
    row = next(line for line in text.splitlines() if "corrupted copy" in line)
    assert row.split()[-2:] == ["75.0", "-"]
    assert next(x for x in text.splitlines() if x.startswith("parameters")).split()[1] == "-"

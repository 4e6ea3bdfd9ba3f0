"""Whatever ends or hinders a run, no more is lost than the steps since its last save, and the
person is told."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, in_process

import train
from parts import runs
from parts.fast import FastNeoX
from parts.runs import load_checkpoint

TRIALS = """
import ctypes, os, random, resource, signal, sys, time
sys.path.insert(0, sys.argv[1])
import matplotlib.pyplot, train  # once, for every trial to be forked from
from pathlib import Path
from parts import device, runs
device.matmul_peak = lambda *_: 1e12  # measuring it would take most of a trial
out, settings, random_moment = Path(sys.argv[2]), sys.argv[3:], random.Random(0)
ckpt, said = out / "ckpt.pt", Path(sys.argv[2] + ".said")

def forked(work):
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(said, "w", buffering=1)
        try:
            os._exit(work() or 0)
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            os._exit(99)
    return pid

def result(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def training(limit=None):
    # Root may write anywhere unless it gives its capabilities up.
    if not os.geteuid():
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, none)
    if limit:  # as on a disk that is full from there on
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["train.py", *settings, f"--out_dir={out}", "--init_from=auto"]
    train.main()

def checked_step():
    checkpoint, file = runs.newest_checkpoint(out)
    runs.model_from(checkpoint)
    return checkpoint["step"]

def stamp():
    try:
        return ckpt.stat().st_mtime_ns
    except FileNotFoundError:  # before the first, and for an instant in every save
        return 0

def until(condition, pid):
    while not condition():
        time.sleep(0.001)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended by itself: " + said.read_text()

def last_step():
    return runs.read_metrics(out, 10**9)[-1]["step"]

kept = 0
for trial in range(30):
    kind = ["SIGKILL amid a save", "SIGKILL"][trial % 2]
    if trial >= 20:
        kind = ["SIGTERM", "full disk", "read-only", "cut", "flipped"][trial % 5]
    before, note = stamp(), ""
    if kind in ("cut", "flipped"):
        blob = bytearray(ckpt.read_bytes())
        blob[len(blob) // 2] ^= 1
        ckpt.write_bytes(blob[: len(blob) // 2] if kind == "cut" else blob)
        before = stamp()
        kept -= 1  # which the checkpoint before it lacks
    pid = forked(lambda: training(ckpt.stat().st_size // 2 if kind == "full disk" else None))
    if kind != "full disk":
        until(lambda: stamp() > before, pid)
    if kind == "SIGKILL amid a save":
        until((out / "ckpt.pt.tmp").exists, pid)  # the next one: in the middle of writing it
    time.sleep(random_moment.random() * (0.005 if kind == "SIGKILL amid a save" else 0.1))
    if kind.startswith("SIGKILL"):
        note = "saving" if (out / "ckpt.pt.tmp").exists() else ""
        os.kill(pid, signal.SIGKILL)
        code = result(pid)
    else:
        if kind == "read-only":
            out.chmod(0o555)
        if kind in ("full disk", "read-only"):
            before_text = "ckpt.pt could not be written, training goes on"
            until(lambda: before_text in said.read_text(), pid)
            intact, at = ckpt.read_bytes(), last_step()
            until(lambda: last_step() >= at + 3, pid)
        os.kill(pid, signal.SIGTERM)
        code = result(pid)
        out.chmod(0o755)
        text = said.read_text()
        if kind in ("full disk", "read-only"):
            assert text.count(before_text) == 1 and "the disk did not take the rest" in text, text
            assert ckpt.read_bytes() == intact
        if kind == "full disk":
            assert not list(out.glob("*.tmp"))
        if kind in ("cut", "flipped"):
            assert "going on from ckpt.1.pt" in text and (out / "damaged.pt").exists(), text
    step = result(forked(checked_step))
    print(trial, kind, note, code, kept, step, sep=",", flush=True)
    kept = step
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="forks a process for each trial, and takes root's capabilities away",
)
def test_30_trials_of_kills_a_full_disk_a_read_only_folder_and_damaged_checkpoints(
    dataset, tmp_path
):
    settings = [
        f"--dataset={dataset}",
        *TINY,
        "--n_embd=160",
        "--max_iters=200",
        "--save_interval=1",
        "--eval_interval=0",
    ]
    command = [sys.executable, "-c", TRIALS, str(ROOT), str(tmp_path / "run"), *settings]
    one_thread = os.environ | {
        "OMP_NUM_THREADS": "1"
    }  # threads do not outlive a fork, and making them anew is slow
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [line.split(",") for line in done.stdout.splitlines()]
    assert len(trials) == 30 and all(
        int(step) != 99 and int(step) >= int(kept) for *_, kept, step in trials
    ), done.stdout
    codes = {"SIGTERM": 143, "full disk": 2, "read-only": 2, "cut": 143, "flipped": 143}
    assert all(int(code) == codes.get(kind, -9) for _, kind, _, code, *_ in trials), done.stdout
    assert sum(note == "saving" for _, _, note, *_ in trials) >= 7, (
        done.stdout
    )  # some saves end before the signal comes


def test_a_folder_that_somebody_removed_is_made_anew(dataset, tmp_path, monkeypatch):
    out, evaluate = tmp_path / "run", train.evaluate

    def remove_and_evaluate(*args):
        if (out / "metrics.jsonl").exists() and "tokens" in (out / "metrics.jsonl").read_text():
            shutil.rmtree(out)
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", remove_and_evaluate)
    assert (
        in_process(monkeypatch, f"--dataset={dataset}", *TINY, "--max_iters=4", f"--out_dir={out}")
        == 0
    )
    assert [m["step"] for m in runs.read_metrics(out, 9)] == [
        0,
        1,
        2,
        3,
        4,
        4,
    ] and load_checkpoint(out / "ckpt.pt")["step"] == 4
    assert {"tokenizer.json", "run.json", "model.safetensors"} <= {
        file.name for file in out.iterdir()
    }


def test_one_bad_step_is_passed_over_and_many_end_the_run_with_the_last_good_checkpoint(
    dataset, tmp_path, monkeypatch, capsys
):
    settings = [
        f"--dataset={dataset}",
        *TINY,
        "--max_iters=60",
        "--eval_interval=10",
        "--optimizer=muon",
    ]
    forward, bad = FastNeoX.forward, set()

    def poisoned(model, idx, targets=None):
        loss = forward(model, idx, targets)
        model.calls = getattr(model, "calls", -1) + model.training  # in training, one a step
        return loss * math.nan if model.training and model.calls in bad else loss

    monkeypatch.setattr(FastNeoX, "forward", poisoned)
    bad |= {3, *range(30, 60)}
    assert in_process(monkeypatch, *settings, f"--out_dir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error.startswith("error: 20 steps in a row, up to step 50,")
        and "goes on from step 40" in error
    )
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = {m["step"]: m["loss"] for m in lines if "loss" in m}
    assert [step for step, loss in losses.items() if loss is None] == [4, *range(31, 51)]
    checkpoint = load_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert checkpoint["step"] == 40 and all(
        t.isfinite().all() for t in checkpoint["model"].values()
    )


def test_weights_that_are_not_finite_never_reach_the_disk(dataset, tmp_path, monkeypatch, capsys):
    settings = [
        f"--dataset={dataset}",
        *TINY,
        "--max_iters=4",
        "--eval_interval=1",
        f"--out_dir={tmp_path / 'run'}",
    ]
    learning_rate = train.optim.learning_rate
    monkeypatch.setattr(
        train.optim,
        "learning_rate",
        lambda cfg, step, progress: math.inf if step == 2 else learning_rate(cfg, step, progress),
    )
    assert in_process(monkeypatch, *settings) == 2
    said = capsys.readouterr()
    assert (
        "step 3: weights that are not finite are not saved" in said.out
        and "holds step 2 of 4" in said.err
    )
    assert all(
        torch.isfinite(t).all()
        for t in load_checkpoint(tmp_path / "run" / "ckpt.pt")["model"].values()
    )

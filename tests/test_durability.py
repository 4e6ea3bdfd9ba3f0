"""Whatever ends or hinders a run, no more is lost than the steps since its last save, and the
person is told."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, in_process, run

import train
from parts import configurator, runs
from parts.checkpoints import checksum, load_checkpoint, newest_checkpoint, put_aside_damaged
from parts.fast import FastNeoX
from parts.files import Lock, write_whole

TRIALS = """
import ctypes, os, random, resource, signal, sys, time
sys.path.insert(0, sys.argv[1])
import matplotlib.pyplot, train  # once, for every trial to be forked from
from pathlib import Path
from parts import checkpoints, device, runs
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
    checkpoint, file = checkpoints.newest_checkpoint(out)
    runs.model_from(checkpoint)
    return checkpoint["step"]

def stamp():
    return ckpt.stat().st_mtime_ns if begun or ckpt.exists() else 0  # it never vanishes

def until(condition, pid):
    while not condition():
        time.sleep(0.001)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended by itself: " + said.read_text()

def last_step():
    return runs.read_metrics(out, 10**9)[-1]["step"]

begun, kept = False, 0
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
            # From ckpt.2.pt where the last save failed between its last two steps.
            assert "going on from ckpt." in text and list(out.glob("damaged.*.pt")), text
    begun = True
    step = result(forked(checked_step))
    print(trial, kind, note, code, kept, step, sep=",", flush=True)
    kept = step
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="needs Linux: forks a process for each trial, and takes root's capabilities away",
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


# --- nothing that is there is lost ----------------------------------------------------------------


def begin(monkeypatch, dataset, out, *settings):
    """A training of one step, in this process; its exit code."""
    tiny = (*TINY, "--n_embd=16", "--max_iters=1", f"--dataset={dataset}", f"--out_dir={out}")
    return in_process(monkeypatch, *tiny, *settings)


def test_runs_are_set_aside_under_numbers_and_nothing_else_is_touched(
    dataset, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    for seed in range(3):
        assert begin(monkeypatch, dataset, out, f"--seed={seed}") == 0
    said = capsys.readouterr().out
    assert f"{out} held a run; it is now {out}.1" in said and f"it is now {out}.2" in said
    seeds = [json.loads((tmp_path / run / "run.json").read_text()) for run in ("run.1", "run.2")]
    assert [about["settings"]["seed"] for about in seeds] == [0, 1]
    for file in out.glob("ckpt*.pt"):  # what is left is a run too
        file.unlink()
    link = tmp_path / "link"
    link.symlink_to(out)
    assert begin(monkeypatch, dataset, link) == 0
    assert link.is_symlink() and link.resolve() == out and (out / "ckpt.pt").exists()
    assert json.loads((tmp_path / "run.3/run.json").read_text())["settings"]["seed"] == 2

    (out / "notes.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(configurator, "ROOT", tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    for folder in (out, "out", "data", ".", "", "..", "out/..", "out/../data", "/", tmp_path):
        assert begin(monkeypatch, dataset, folder) == 2, folder
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert capsys.readouterr().err.count("error: ") == 10
    assert (
        begin(monkeypatch, dataset, out, "--init_from=auto", "--max_iters=2") == 0
    )  # moves nothing


def test_a_second_training_in_the_same_folder_is_refused(dataset, trained, tmp_path, monkeypatch):
    out = shutil.copytree(trained, tmp_path / "run")
    holder = Lock(out)
    holder.sign()
    before = {file: file.read_bytes() for file in out.iterdir()}
    for how in ("scratch", "auto", "resume"):
        done = run(
            "train.py",
            *TINY,
            f"--dataset={dataset}",
            f"--out_dir={out}",
            f"--init_from={how}",
            ok=False,
        )
        line = f"error: {out} is being written to by process {os.getpid()} on "
        assert done.returncode == 2 and done.stderr.startswith(line), done.stderr
        assert done.stderr.count("\n") == 1
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert run("sample.py", f"--ckpt={out}", "--max_new_tokens=3").returncode == 0  # only reads
    holder.file.close()
    assert begin(monkeypatch, dataset, out) == 0


def test_a_folder_that_was_renamed_while_it_was_written_to_is_begun_anew(
    dataset, tmp_path, monkeypatch
):
    out, evaluate = tmp_path / "run", train.evaluate

    def rename_and_evaluate(*args):
        if (out / "ckpt.pt").exists() and not (tmp_path / "moved").exists():
            out.rename(tmp_path / "moved")
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", rename_and_evaluate)
    assert begin(monkeypatch, dataset, out, "--max_iters=4", "--eval_interval=2") == 0
    assert [m["step"] for m in runs.read_metrics(out, 9) if "loss" in m] == [1, 2, 3, 4]
    assert load_checkpoint(out / "ckpt.pt")["step"] == 4
    assert load_checkpoint(tmp_path / "moved/ckpt.pt")["step"] == 0


# --- damage is noticed ----------------------------------------------------------------------------


def test_damage_that_torch_reads_over_is_noticed(trained, tmp_path, capsys):
    """The bit by which a zip file marks a folder: torch then reads nothing for a tensor, which has
    whatever was in memory there, and no checksum of the zip file is wrong. The torture tests try
    4,000 other mutations."""
    blob, file = (trained / "ckpt.pt").read_bytes(), tmp_path / "ckpt.pt"
    older = tmp_path / "ckpt.1.pt"
    shutil.copy(trained / older.name, older)
    whole = checksum(load_checkpoint(trained / "ckpt.pt"))
    entries = list(re.finditer(rb"PK\x01\x02.{42}[^/]*/data/\d+", blob, re.DOTALL))
    assert len(entries) > 30
    for entry in entries:
        damaged = bytearray(blob)
        damaged[entry.start() + 38] ^= 16
        file.write_bytes(damaged)
        checkpoint, which = newest_checkpoint(tmp_path)
        assert which == older or checksum(checkpoint) == whole
    assert "its checksum is wrong; going on from ckpt.1.pt" in capsys.readouterr().err


def test_a_save_that_fails_at_its_last_step_costs_no_version(tmp_path, monkeypatch):
    file, replace = tmp_path / "ckpt.pt", os.replace

    def save(text):
        with contextlib.suppress(PermissionError):
            write_whole(file, lambda path: path.write_text(text), keep=2)
        return sorted(path.read_text() for path in tmp_path.iterdir())

    def refuse(old, new):
        if str(old).endswith(".tmp"):
            raise PermissionError("read-only")
        replace(old, new)

    assert save("1") == ["1"] and save("2") == ["1", "2"] and save("3") == ["2", "3"]
    monkeypatch.setattr(os, "replace", refuse)
    for _ in range(3):
        assert save("4") == ["2", "3", "3"] and file.read_text() == "3"
    monkeypatch.setattr(os, "replace", replace)
    assert save("5") == ["3", "5"] and file.read_text() == "5"


def test_a_damaged_checkpoint_is_set_aside_and_none_is_missing_meanwhile(
    trained, tmp_path, monkeypatch
):
    out = shutil.copytree(trained, tmp_path / "run")
    before, good = out / "ckpt.1.pt", (out / "ckpt.1.pt").read_bytes()
    (out / "ckpt.pt").write_bytes(b"damaged")
    replace, moves = os.replace, []

    def replace_and_look(old, new):
        replace(old, new)
        moves.append((out / "ckpt.pt").exists())

    monkeypatch.setattr(os, "replace", replace_and_look)
    put_aside_damaged(out, before)
    assert all(moves) and (out / "ckpt.pt").read_bytes() == good and not before.exists()
    assert (out / "damaged.1.pt").read_bytes() == b"damaged"


def test_damaged_metrics_and_run_json_are_said_and_the_run_goes_on(
    dataset, trained, tmp_path, monkeypatch, capsys
):
    out = shutil.copytree(trained, tmp_path / "run")
    lines = (out / "metrics.jsonl").read_bytes().splitlines()
    bad = [b"5", b"{}", b"\xff\xfe", b'{"step": "3"}', b"[" * 9999, b'{"step": 3']
    (out / "metrics.jsonl").write_bytes(b"\n".join([*lines[:9], *bad, *lines[9:]]))
    (out / "run.json").write_text('{"settings": 3}')
    go_on = (*TINY, f"--dataset={dataset}", f"--out_dir={out}", "--init_from=resume")
    assert in_process(monkeypatch, *go_on, "--max_iters=61") == 0
    said = capsys.readouterr().err
    assert f"{out / 'metrics.jsonl'}: damaged lines are left out: 6" in said
    assert f"{out / 'run.json'} is damaged" in said
    assert (out / "metrics.jsonl").read_bytes().splitlines()[: len(lines)] == lines
    assert json.loads((out / "run.json").read_text())["settings"]["max_iters"] == 61


def test_a_resumed_run_wants_the_data_that_it_began_with(
    dataset, trained, tmp_path, monkeypatch, capsys
):
    out, data = shutil.copytree(trained, tmp_path / "run"), tmp_path / "data"
    shutil.copytree(dataset, data)
    go_on = (*TINY, f"--dataset={data}", f"--out_dir={out}", "--init_from=resume")
    flipped = bytearray((dataset / "train.bin").read_bytes())
    flipped[1000] ^= 1
    (data / "train.bin").write_bytes(flipped)
    assert in_process(monkeypatch, *go_on) == 2
    assert "its SHA-256 is not the one in meta.json" in capsys.readouterr().err
    assert in_process(monkeypatch, *go_on, "--new_data") == 2  # damaged is not new
    meta = json.loads((data / "meta.json").read_text())
    meta["train"]["sha256"] = hashlib.sha256(flipped).hexdigest()
    (data / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert in_process(monkeypatch, *go_on) == 2
    assert "began with other data than" in capsys.readouterr().err
    assert in_process(monkeypatch, *go_on, "--new_data", "--max_iters=61") == 0
    assert in_process(monkeypatch, *go_on, "--max_iters=62") == 0  # they are the run's data now
    (data / "train.bin").write_bytes(flipped[:-200])
    assert begin(monkeypatch, data, tmp_path / "new") == 2
    assert "but meta.json says" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_tokens_of_another_tokenizer_are_refused(
    dataset, trained, tmp_path, monkeypatch, capsys
):
    data = shutil.copytree(dataset, tmp_path / "data")
    tokenizer = json.loads((data / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    a, b = list(vocab)[-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]  # as many tokens, other meanings
    (data / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert begin(monkeypatch, data, tmp_path / "new", f"--init_from={trained}") == 2
    assert f"--tokenizer={trained}" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_settings_are_honoured_or_refused_and_run_json_has_what_happened(
    dataset, trained, tmp_path, monkeypatch, capsys
):
    out = shutil.copytree(trained, tmp_path / "run")
    go_on = (*TINY, f"--dataset={dataset}", f"--out_dir={out}", "--init_from=resume")
    assert in_process(monkeypatch, *go_on, "--decay_embeddings=False") == 2
    assert "decay_embeddings=False does not fit the run" in capsys.readouterr().err
    honoured = ("--weight_decay=0.7", "--beta1=0.5", "--beta2=0.6")
    assert in_process(monkeypatch, *go_on, *honoured, "--max_iters=61") == 0
    groups = load_checkpoint(out / "ckpt.pt")["optimizers"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.7, 0.0]
    assert [group["betas"] for group in groups] == [(0.5, 0.6)] * 2

    # The shape comes with the weights, whatever the settings say; resuming takes either.
    tuned = tmp_path / "tuned"
    for how in (f"--init_from={trained}", "--init_from=auto"):
        assert begin(monkeypatch, dataset, tuned, how, "--n_layer=7") == 0
        settings = json.loads((tuned / "run.json").read_text())["settings"]
        assert (settings["n_layer"], settings["n_embd"]) == (2, 32)
    assert f"{trained} brings its own n_layer=2 (not 7), n_embd=32 (not 16)" in (
        capsys.readouterr().out
    )
    assert begin(monkeypatch, dataset, tuned, "--init_from=auto", "--n_layer=3") == 2

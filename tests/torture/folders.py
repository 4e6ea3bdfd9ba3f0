"""Ordinary commands in any order never lose a step of a run. Of two trainings at once in one
folder, the second is refused and the first is not disturbed."""

import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, in_process
from kills import forked

from parts import configurator, device
from parts.checkpoints import checkpoints, checksum, load_checkpoint
from parts.runs import read_metrics

SEQUENCES, RACES = 20, 20


class Home:
    """A repository's out/ in which commands are typed, and what must never get lost: the newest
    weights and the metrics of every run, as they were when its last command ended."""

    def __init__(self, folder: Path, dataset: Path, monkeypatch):
        self.folder, self.dataset, self.monkeypatch = folder, dataset, monkeypatch
        self.runs: list[tuple[str, list]] = []
        monkeypatch.setattr(configurator, "ROOT", folder)
        monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)
        (folder / "out").mkdir(parents=True)
        (folder / "data").mkdir()
        (folder / "data/kept.bin").write_bytes(b"tokens")
        (folder / "notes").mkdir()
        (folder / "notes/notes.txt").write_text("mine")

    def train(self, out: str, *settings: str) -> int:
        settings = (*TINY, "--n_embd=16", f"--dataset={self.dataset}", *settings)
        before = self.newest(self.folder / out)
        code = in_process(self.monkeypatch, f"--out_dir={out}", *settings)
        assert code in (0, 2), code
        if code == 0:
            after = self.newest(self.folder / out)
            went_on = any(s in ("--init_from=auto", "--init_from=resume") for s in settings)
            if went_on and before in self.runs and after[1][: len(before[1])] == before[1]:
                self.runs.remove(before)  # it is part of what follows
            self.runs.append(after)
        self.check()
        return code

    def newest(self, out: Path):
        """(checksum of the newest weights, steps in metrics.jsonl) of a run's folder, or None."""
        files = checkpoints(out)
        if not files:
            return None
        steps = [(m["step"], m["loss"]) for m in read_metrics(out, 10**9) if "loss" in m]
        return checksum(load_checkpoint(files[0])["model"]), steps

    def check(self):
        """Everything that was ever there still is, somewhere."""
        files = [file for file in self.folder.rglob("ckpt*.pt") if file.is_file()]
        there = [checksum(load_checkpoint(file)["model"]) for file in files]
        folders = {file.parent for file in files}
        lines = [self.newest(folder) for folder in folders]
        for weights, steps in self.runs:
            assert weights in there, "weights are gone"
            assert any(one and one[1][: len(steps)] == steps for one in lines), "metrics are gone"
        assert (self.folder / "data/kept.bin").read_bytes() == b"tokens"
        assert (self.folder / "notes/notes.txt").read_text() == "mine"


def copied(home, chance, names):
    name = chance.choice(names)
    target = home.folder / "out" / f"copy{chance.randrange(1000)}"
    if (home.folder / "out" / name).exists() and not target.exists():
        shutil.copytree(home.folder / "out" / name, target)


def linked(home, chance, names):
    """A run that moved to another disk, with a link where it was."""
    source = home.folder / "out" / chance.choice(names)
    target = home.folder / "disk" / f"{source.name}{chance.randrange(1000)}"
    if source.is_dir() and not source.is_symlink() and not target.exists():
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
        source.symlink_to(target)


def renamed(home, chance, names):
    source = home.folder / "out" / chance.choice(names)
    if source.exists():
        source.rename(source.with_name(f"renamed{chance.randrange(1000)}"))


def trained_again(home, chance, names):
    home.train(f"out/{chance.choice(names)}", f"--max_iters={chance.randint(2, 5)}")


def went_on(home, chance, names):
    how = chance.choice(["auto", "resume", "auto"])
    iters = f"--max_iters={chance.randint(3, 9)}"
    home.train(f"out/{chance.choice(names)}", f"--init_from={how}", iters)


def other_config(home, chance, names):
    other = chance.choice(["--n_layer=1", "--lr=1e-4", "--optimizer=lion", "--seed=2"])
    how = chance.choice(["auto", "resume", "scratch"])
    home.train(f"out/{chance.choice(names)}", other, f"--init_from={how}", "--max_iters=4")


def fine_tuned(home, chance, names):
    source = home.folder / "out" / chance.choice(names)
    if checkpoints(source):
        home.train(f"out/{chance.choice(names)}", f"--init_from={source}", "--max_iters=2")


def typed_wrong(home, chance, names):
    """Folders that no run may have."""
    before = sorted(home.folder.iterdir())
    for wrong in ("out", "", ".", "data", "..", "/", "notes", "out/../data", str(home.folder)):
        assert home.train(wrong, "--max_iters=1") == 2, wrong
    assert sorted(home.folder.iterdir()) == before


def half_a_run(home, chance, names):
    """A person removed the checkpoints, and keeps the export and the metrics."""
    source = home.folder / "out" / f"half{chance.randrange(1000)}"
    run = home.folder / "out" / chance.choice(names)
    if checkpoints(run) and not source.exists():
        shutil.copytree(run, source)
        for file in checkpoints(source):
            file.unlink()
        metrics = (source / "metrics.jsonl").read_bytes()
        assert home.train(f"out/{source.name}", "--max_iters=1") == 0
        assert (source.parent / f"{source.name}.1/metrics.jsonl").read_bytes() == metrics


COMMANDS = [copied, linked, renamed, fine_tuned, typed_wrong, half_a_run]
COMMANDS += 3 * [trained_again, went_on] + 2 * [other_config]


@pytest.mark.parametrize("number", range(SEQUENCES))
def test_no_step_is_lost(number, dataset, tmp_path, monkeypatch):
    home, chance = Home(tmp_path / "home", dataset, monkeypatch), random.Random(number)
    home.train("out/a", "--max_iters=3")
    home.train("out/b", "--max_iters=3", "--seed=3")
    for _ in range(10):
        chance.choice(COMMANDS)(home, chance, ["a", "b"])
    assert len(home.runs) >= 2


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process for each training")
@pytest.mark.parametrize("number", range(RACES))
def test_the_second_of_two_trainings_is_refused_and_the_first_is_untouched(
    number, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)
    out, chance = tmp_path / "out", random.Random(number)
    argv = ["train.py", *TINY, f"--dataset={dataset}", f"--out_dir={out}", "--max_iters=600"]
    argv += ["--eval_interval=0", "--save_interval=5", "--n_embd=128"]  # takes some seconds

    def work(*more):
        import train

        sys.argv = [*argv, *chance.choice([[], ["--init_from=auto"]]), *more]
        train.main()

    if chance.random() < 0.5:  # a run was there before
        before = forked(lambda: work("--max_iters=2"), tmp_path / "before")
        assert os.waitstatus_to_exitcode(os.waitpid(before, 0)[1]) == 0
    texts = [tmp_path / "first", tmp_path / "second"]
    first = forked(work, texts[0])
    time.sleep(chance.choice([0, 0.01, 0.1, 0.3]))
    second = forked(work, texts[1])
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (first, second)]
    said = [text.read_text() for text in texts]
    assert sorted(codes) == [0, 2], said
    loser, winner = said[codes.index(2)], (first, second)[codes.index(0)]
    named = [f"process {winner} on", "another process;"]  # which has not signed yet
    assert any(f"is being written to by {name}" in loser for name in named), loser
    assert "Traceback" not in loser
    steps = [m["step"] for m in read_metrics(out, 9999) if "loss" in m]
    assert steps == list(range(1, 601)) and load_checkpoint(out / "ckpt.pt")["step"] == 600

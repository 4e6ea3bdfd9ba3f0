"""How long a training takes, and what it says about that, by a clock of our own: a step takes half
a second, an evaluation five."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, in_process

import train
from model import NeoX, NeoXConfig
from parts import clock, configurator, device, plots, runs, start
from parts.checkpoints import load_checkpoint

START, STEP, EVALUATION, EXPORT = 7.0, 0.5, 5.0, 1.5  # seconds


class World:
    """The time that the training sees."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.cores = 2.0  # that the process gets
        times = dict(perf_counter=lambda: self.now, process_time=lambda: self.cores * self.now)
        monkeypatch.setattr(clock, "time", SimpleNamespace(**times))
        monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)
        monkeypatch.setattr(plots, "losses", lambda *_: None)
        for owner, name, seconds in (
            (train, "training_step", STEP),
            (train, "evaluate", EVALUATION),
            (runs.Run, "export", EXPORT),
        ):
            monkeypatch.setattr(owner, name, self.slowly(getattr(owner, name), seconds))
        self.patch = monkeypatch

    def slowly(self, function, seconds):
        def slow(*args):
            self.now += seconds
            return function(*args)

        return slow

    def train(self, out, *settings) -> float:
        """Seconds that a process takes to train."""
        began = self.now
        self.patch.setattr(start, "began", began)
        self.now += START
        code = in_process(self.patch, *settings, f"--out_dir={out}")
        assert code == 0
        return self.now - began


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def lines(out, key):
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if key in line]


def test_max_minutes_holds_for_the_whole_process_and_for_those_that_it_resumes(
    world, dataset, tmp_path, capsys
):
    how = [f"--dataset={dataset}", *TINY, "--max_minutes=1", "--max_iters=100000"]
    how += ["--eval_interval=20", "--min_lr=0", "--lr_schedule=linear"]
    whole = tmp_path / "whole"
    assert 60 - STEP < world.train(whole, *how) <= 60
    steps = load_checkpoint(whole / "ckpt.pt")["step"]
    # All but the start, four evaluations (at 0, 20, 40 and the last; at 60 it is near) and the end.
    assert steps == (60 - START - 4 * EVALUATION - EXPORT) / STEP
    curve = lines(whole, "loss")
    assert [line["elapsed"] for line in curve] == [STEP * (i + 1) for i in range(steps)]
    rates = [line["lr"] for line in curve][4:]  # after the warmup
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.03 * rates[0]
    said = capsys.readouterr().out
    assert "at this speed: about 51 more steps in the 45 s that are left" in said  # it took 57

    parts = tmp_path / "parts"
    first = world.train(parts, *how, "--max_iters=10")
    second = world.train(parts, *how, "--init_from=resume")
    # What came after the first one's last save is not known to the second.
    assert 60 - STEP < first - EXPORT + second <= 60
    capsys.readouterr()
    before = lines(parts, "step")
    assert world.train(parts, *how, "--init_from=auto") == START + EXPORT
    said = capsys.readouterr().out
    assert lines(parts, "step") == before and f"{parts} is finished already" in said
    assert "--init_from=resume --max_minutes=2" in said and "done at" not in said


def test_the_time_that_is_said_is_the_time_that_it_takes(world, dataset, tmp_path, capsys):
    how = [f"--dataset={dataset}", *TINY, "--max_iters=70", "--eval_interval=20"]
    took = world.train(tmp_path / "run", *how)
    left = took - START - EVALUATION - 6 * STEP  # when the speed is known
    said = f"at this speed: about {left:.0f} s more, for 64 steps and 4 evaluations"
    assert said in capsys.readouterr().out
    assert clock.about(5400) == "90 min" and clock.about(9000) == "2.5 hours"


def test_training_minutes_leave_out_all_but_the_steps(world, dataset, tmp_path):
    how = [f"--dataset={dataset}", *TINY, "--max_train_minutes=0.2", "--eval_interval=5"]
    world.train(tmp_path / "run", *how)
    assert lines(tmp_path / "run", "loss")[-1]["elapsed"] == pytest.approx(12, abs=STEP)


def test_a_gpus_configuration_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "config/python_t4.py", "--device=cpu"])
    cfg = configurator.load(train.Settings)
    model = NeoX(NeoXConfig(vocab_size=8192, n_layer=8, n_head=8, n_embd=512, block_size=512))
    hours = 10_000 * 32_768 * model.flops_per_token() / (0.5 * 0.6e12) / 3600
    clock.warn_on_cpu(cfg, model.flops_per_token(), 0, 0.6e12)
    said = capsys.readouterr().out
    assert f"about {hours / 24:.0f} days on this CPU; config/python_cpu.py is made for" in said
    cfg.max_minutes = 5.0
    clock.warn_on_cpu(cfg, model.flops_per_token(), 0, 0.6e12)
    assert capsys.readouterr().out == ""


def test_busy_cores_are_said(world, dataset, tmp_path, capsys):
    how = [f"--dataset={dataset}", *TINY, "--max_iters=10", "--eval_interval=0"]
    threads = torch.get_num_threads()
    for world.cores, said in (2.0, 0), (1.3, 0), (1.0, 1):
        world.train(tmp_path / str(world.cores), *how, "--threads=2")
        assert capsys.readouterr().out.count("2 threads got the time of 1.0 cores") == said
    torch.set_num_threads(threads)

"""Real torchrun: a process that dies, and mistakes. Long, since torch is imported many times."""

import os
import random
import signal
import time

import pytest
import torch
from conftest import ROOT, TINY
from test_distributed import losses, ranks, torchrun

from parts.runs import load_checkpoint


@pytest.fixture
def settings(dataset):
    much = ["--max_iters=150", "--eval_interval=50", "--save_interval=20", "--grad_accum=2"]
    return [f"--dataset={dataset}", *TINY, *much]


@pytest.mark.parametrize("init_from", ["auto", "scratch"])
def test_a_killed_process_costs_no_bit(init_from, settings, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = torchrun(ROOT / "train.py", *settings, f"--out_dir={straight}")
    assert process.wait(300) == 0
    how = [*settings, f"--out_dir={killed}", f"--init_from={init_from}"]
    process = torchrun(ROOT / "train.py", *how, how=["--max_restarts=9"])
    for step in (30, 90):
        log = killed / "metrics.jsonl"
        while not log.exists() or len(losses(killed)) < 2 * step:  # a line has two
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        os.kill(random.choice(ranks(process)), signal.SIGKILL)
        time.sleep(1)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and said.count("going on from step") >= 2, said
    assert "train.py" not in said.partition("Traceback")[2], said
    a, b = (load_checkpoint(out / "ckpt.pt") for out in (straight, killed))
    assert a["step"] == b["step"] == 150 and losses(straight) == losses(killed)
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


@pytest.mark.parametrize(
    "wrong, part",
    [
        ("--grad_accum=3", "must be a multiple of the 2 processes"),
        ("--dataset=nowhere", "nowhere"),
        ("--learning_rate=1", "learning_rate"),
        ("--sample_prompt=def", "Not a directory"),  # its folder is a file: only rank 0 writes
    ],
)
def test_a_mistake_is_told_once(wrong, part, settings, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / ("file/run" if part == "Not a directory" else "run")
    process = torchrun(ROOT / "train.py", *settings, f"--out_dir={out}", wrong)
    said = process.communicate(timeout=120)[0]
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and len(lines) == 1 and part in lines[0], said
    assert said.count("Traceback") == 1, said  # torchrun's own

"""Several processes train as one does: the same losses, and checkpoints that any number of them goes on from."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY, run

from model import load_checkpoint


def torchrun(processes, *args):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--rdzv_backend=c10d",
               "--rdzv_endpoint=localhost:0", str(ROOT / "train.py"), *map(str, args)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {(m["step"], key): m[key] for m in lines for key in ("loss", "val_loss", "grad_norm") if key in m}


def test_two_processes_whole_and_sharded_and_then_one_again_train_as_one_does(dataset, tmp_path):
    settings = [f"--dataset={dataset}", *TINY, "--grad_accum=4", "--dropout=0.1", "--lr_schedule=constant", "--eval_interval=5", "--dtype=float32"]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    alone = subprocess.Popen([sys.executable, ROOT / "train.py", *settings, f"--out_dir={straight}", "--max_iters=20"], stdout=subprocess.DEVNULL)
    for steps, how in ((5, ()), (10, ("--shard", "--sample_prompt=def", "--sample_tokens=2")), (15, ("--checkpoint_activations",))):
        process = torchrun(2, *settings, f"--out_dir={parts}", "--init_from=auto", f"--max_iters={steps}", *how)
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0 and said.count(f"step {steps}: validation loss") == said.count(f"done at step {steps};") == 1, said
    run("train.py", *settings, f"--out_dir={parts}", "--init_from=resume", "--max_iters=20")
    assert alone.wait() == 0
    one, many = losses(straight), losses(parts)
    assert one.keys() == many.keys() and len(one) == 45 and all(many[key] == pytest.approx(one[key], abs=1e-4) for key in one)
    a, b = (load_checkpoint(out / "ckpt.pt") for out in (straight, parts))
    assert a["model"].keys() == b["model"].keys() and all((a["model"][key] - b["model"][key]).abs().max() < 1e-3 for key in a["model"])


def test_torchrun_stops_with_a_checkpoint_and_a_mistake_is_one_line(dataset, tmp_path):
    settings = [f"--dataset={dataset}", *TINY, f"--out_dir={tmp_path / 'run'}", "--max_iters=100000", "--eval_interval=0"]
    process = torchrun(2, *settings, "--grad_accum=3")
    said = process.communicate(timeout=900)[0]
    assert process.returncode and said.count("error: grad_accum=3 must be a multiple of the 2 processes") == 1
    process = torchrun(2, *settings, "--grad_accum=2", "--shard", "--optimizer=muon")
    metrics = tmp_path / "run" / "metrics.jsonl"
    said = process.communicate(timeout=900)[0]
    assert process.returncode and said.count("error: --shard cuts matrices apart") == 1
    process = torchrun(2, *settings, "--grad_accum=2", "--optimizer=muon")
    while not metrics.exists() or len(metrics.read_text()) < 1000:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=900)[0]
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert said.count("stopping after this step") == 1 and load_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == last, said

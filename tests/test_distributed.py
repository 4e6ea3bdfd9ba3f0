"""Several processes train as one does: the same losses, and checkpoints that any number of
processes goes on from."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, TINY, in_process

import train
from parts import device, distributed, plots
from parts.checkpoints import load_checkpoint

EACH = """
import functools, sys, torch, train
import torch.distributed as dist
from parts import device, distributed, plots
# These, and importing torch for each, would take longer than the training.
device.matmul_peak, plots.losses = lambda *_: 1e12, lambda *_: None
dist.init_process_group("gloo")
dist.init_process_group = distributed.leave = lambda *_, **__: None
out, *settings = sys.argv[1:]

def train_by(name, *how):
    sys.argv[1:] = [*settings, f"--out_dir={out}/{name}", *how]
    try:
        train.main()
    except SystemExit as ended:
        assert not ended.code

# torch.compile fails in one process alone: none waits for another. And no buffers are broadcast.
def fail(*args):
    raise RuntimeError("no compiler")

DDP, made = torch.nn.parallel.DistributedDataParallel, []
begin = DDP.__init__

@functools.wraps(begin)
def recorded(self, *args, **how):
    made.append(how)
    begin(self, *args, **how)

DDP.__init__ = recorded
torch.nn.Module.compile = lambda layer: None
torch.compile = lambda loss: fail if dist.get_rank() else loss
train_by("uncompiled", "--compile", "--max_iters=2")
assert made[0].pop("gradient_as_bucket_view") and list(made[0].values()) == [False], made
for name in distributed.SHARDABLE:
    train_by(name, f"--optimizer={name}", "--shard")
for name, *how in MASKED:
    train_by(name, *how)
"""
# Whole and sharded: a data set with masks, and a model with what GPT-2 and Phi have and NeoX lacks.
SWITCHED = ["--max_iters=6", "--learned_positions", "--shared_norm", "--head_bias"]
MASKED = [["masked", *SWITCHED], ["masked_sharded", *SWITCHED, "--shard"]]


MEET = ("--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0")


def torchrun(script, *args, how=(), meet=MEET):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *meet, *how]
    command += [str(script), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ranks(process):
    """The ids of the processes that torchrun has started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = (map(int, line.split()) for line in listed.splitlines())
    return [pid for pid, parent in pairs if parent == process.pid]


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        (m["step"], key): m[key]
        for m in lines
        for key in ("loss", "val_loss", "grad_norm")
        if key in m
    }


def test_two_processes_whole_and_sharded_and_then_one_again_train_as_one_does(
    dataset, masked, tmp_path, monkeypatch
):
    settings = [
        f"--dataset={dataset}",
        *TINY,
        "--grad_accum=4",
        "--dropout=0.1",
        "--lr_schedule=constant",
        "--eval_interval=0",
        "--dtype=float32",
        "--init_from=auto",
    ]
    whole = tmp_path / "parts" / "adamw"
    process = torchrun(ROOT / "train.py", *settings, f"--out_dir={whole}", "--max_iters=1000")
    while not (whole / "metrics.jsonl").exists() or len(losses(whole)) < 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    # As systemd and SLURM do; torchrun then sends one more to each.
    for pid in (process.pid, *ranks(process)):
        os.kill(pid, signal.SIGTERM)
    said = process.communicate(timeout=900)[0]
    step = load_checkpoint(whole / "ckpt.pt")["step"]
    assert max(losses(whole))[0] == step < 1000 and said.count("stopping after this step") == 1, (
        said
    )
    masked_runs = [[*how, f"--dataset={masked}"] for how in MASKED]
    (tmp_path / "each.py").write_text(EACH.replace("MASKED", repr(masked_runs)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    end = step + 5
    process = torchrun(
        tmp_path / "each.py",
        whole.parent,
        *settings,
        f"--max_iters={end}",
        "--sample_prompt=def",
        "--sample_tokens=2",
    )
    said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, said
    assert said.count(f"done at step {end};") == len(distributed.SHARDABLE), said
    without = "torch.compile does not work here, going on without it, slower: it failed in another"
    assert "FutureWarning" not in said, said
    assert said.count(without) == said.count("done at step 2;") == 1, said
    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)
    monkeypatch.setattr(plots, "losses", lambda *_: None)
    for name in distributed.SHARDABLE:
        straight, parts = tmp_path / "straight" / name, tmp_path / "parts" / name
        for out in (parts, straight):
            how = (f"--optimizer={name}", f"--out_dir={out}", f"--max_iters={end + 5}")
            assert in_process(monkeypatch, *settings, *how) == 0
        one, many = losses(straight), losses(parts)
        assert one.keys() <= many.keys() and len(one) > 2 * (end + 5)
        assert all(many[key] == pytest.approx(one[key], abs=1e-5) for key in one), name
        a, b = (
            torch.cat([t.flatten() for t in load_checkpoint(out / "ckpt.pt")["model"].values()])
            for out in (straight, parts)
        )
        # The mean, not the largest: the gradient of a key's bias is nothing but rounding, of which
        # Adam makes whole steps.
        assert (a - b).abs().mean() < 1e-6, name
    how = (*settings, f"--dataset={masked}", f"--out_dir={tmp_path / 'masked'}", *SWITCHED)
    assert in_process(monkeypatch, *how) == 0
    one = losses(tmp_path / "masked")
    for name, *_ in MASKED:
        many = losses(whole.parent / name)
        assert one.keys() == many.keys() and len(one) == 13
        assert all(many[key] == pytest.approx(one[key], abs=1e-5) for key in one), name


# On each of two machines: runs that go on from each other, and then what has to be refused.
MACHINE = """
import os, sys, torch.distributed as dist, train
from parts import device, distributed, plots
device.matmul_peak, plots.losses = lambda *_: 1e12, lambda *_: None
distributed.leave = lambda *_: None  # one start of the processes is enough for all runs
number, first = int(os.environ["GROUP_RANK"]), sys.argv[1:]
for more in (
    ["--max_iters=4"],
    ["--max_iters=8"],
    ["--max_iters=8", f"--lr=0.{number + 1}"],
    ["--max_iters=8", "--dataset=other"],
    ["--max_iters=8", f"--dataset={'none' if number else 'set'}"],
):
    sys.argv[1:] = [*first, *more]
    try:
        train.main()
    except SystemExit as ended:
        print("exit code", ended.code, file=sys.stderr)
    dist.init_process_group = lambda *_, **__: None
"""


def test_two_machines_with_disks_of_their_own_train_as_one_process_does(
    dataset, tmp_path, monkeypatch
):
    settings = [*TINY, "--grad_accum=2", "--lr_schedule=constant", "--eval_interval=0"]
    settings += ["--dtype=float32", "--init_from=auto"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master_addr=127.0.0.1", f"--master_port={free.getsockname()[1]}"]
    agents = []
    for number in (0, 1):
        machine = tmp_path / f"machine{number}"
        shutil.copytree(ROOT / "parts", machine / "parts")
        for file in ROOT.glob("*.py"):
            shutil.copy(file, machine)
        for name in ("set", "other"):
            shutil.copytree(dataset, machine / "data" / name)
        if number:
            meta = machine / "data/other/meta.json"
            meta.write_text(meta.read_text().replace('"sha256": "', '"sha256": "other'))
        (machine / "each.py").write_text(MACHINE)
        monkeypatch.chdir(machine)
        agents.append(
            torchrun(
                "each.py",
                "--dataset=set",
                "--out_dir=out/run",
                *settings,
                how=("--nnodes=2", f"--node_rank={number}", "--nproc_per_node=1", *address),
                meet=(),
            )
        )
    said = [process.communicate(timeout=900)[0] for process in agents]
    assert [process.returncode for process in agents] == [0, 0], said
    assert not (tmp_path / "machine1/out").exists()
    assert "has joined: 2 machines, 2 processes" in said[1]
    assert "going on from step 4" in said[0] and said[0].count("done at step 8") == 1, said[0]

    differs = (
        "error: lr is 0.1 on machine 0",
        "error: the data set's hash is",
        "error: on machine 1",
    )
    first, second = ([x for x in text.splitlines() if x.startswith("error: ")] for text in said)
    assert len(first) == len(second) == 3, said
    for line, other, part in zip(first, second, differs):
        assert line.startswith(part), said
        assert other.count("machine 0") == 1 or "there is no data set" in other, said
    assert "there is no data set" in first[-1], said

    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)
    monkeypatch.setattr(plots, "losses", lambda *_: None)
    straight, whole = tmp_path / "straight", tmp_path / "machine0/out/run"
    how = (f"--dataset={dataset}", f"--out_dir={straight}", "--max_iters=8")
    assert in_process(monkeypatch, *settings, *how) == 0
    one, two = losses(straight), losses(whole)
    assert len(one) == 17 and one.keys() <= two.keys()
    assert all(two[key] == pytest.approx(one[key], abs=1e-5) for key in one)


@pytest.mark.parametrize(
    "wrong, part",
    [
        (("--grad_accum=3",), "grad_accum=3 must be a multiple of the 2 processes"),
        (
            ("--grad_accum=2", "--shard", "--optimizer=muon"),
            "--shard cuts matrices apart, which optimizer=muon needs whole",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_one_line_for_all(
    wrong, part, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys,
        "argv",
        ["train.py", f"--dataset={dataset}", *TINY, f"--out_dir={tmp_path / 'run'}", *wrong],
    )
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank in ("0", "1"):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            train.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and part in said
        assert said.count("\n") == 1 and not (tmp_path / "run").exists()
    # Rank 1 would say it too, but torchrun ends it as soon as rank 0 has ended.
    assert waited == [10]


WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    "environment, part",
    [
        ({"RANK": "0"}, "WORLD_SIZE=nothing"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"RANK": "2", "LOCAL_RANK": "1"}, "RANK=2"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"LOCAL_RANK": "first"}, "LOCAL_RANK=first"),
        ({}, "MASTER_ADDR"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "port"}, "port"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "99999"),
    ],
)
def test_a_wrong_environment_is_one_line(environment, part, dataset, tmp_path, monkeypatch, capsys):
    alone = environment == {"RANK": "0"}
    for name, value in ({} if alone else WHOLE | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", (WHOLE | environment)["RANK"])
    settings = [f"--dataset={dataset}", *TINY, f"--out_dir={tmp_path / 'run'}", "--grad_accum=2"]
    assert in_process(monkeypatch, *settings) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and part in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


def test_processes_find_each_other_although_the_store_is_full_of_those_before(monkeypatch):
    # One machine was started again, so that torchrun counts its restarts from 0.
    store = torch.distributed.HashStore()
    for count in ("0", "1", "1"):
        with ThreadPoolExecutor() as pool:
            met = [pool.submit(distributed.meet, store, rank, 3) for rank in (1, 2)]
            time.sleep(0.05)
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
            met = [distributed.meet(store, 0, 3), *(one.result(timeout=10) for one in met)]
        assert not any(one.check(["address"]) for one in met)
        met[0].set("address", "here")
        assert all(one.check(["address"]) for one in met)
        store.set("1 asks", "a process that was killed before it had an answer")


def test_processes_that_torchrun_starts_once_more_go_on(dataset, tmp_path, monkeypatch, capsys):
    settings = [f"--dataset={dataset}", *TINY, f"--out_dir={tmp_path / 'run'}"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert in_process(monkeypatch, *settings, "--max_iters=4") == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert in_process(monkeypatch, *settings, "--max_iters=8") == 0
    assert "going on from step 4" in capsys.readouterr().out
    assert [step for step, key in losses(tmp_path / "run") if key == "loss"] == list(range(1, 9))

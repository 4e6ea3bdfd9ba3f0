"""200 SIGKILLs, and 4,000 mutations of a checkpoint.

Each killed training must go on from a checkpoint that has, bit for bit, what an uninterrupted one
had after as many steps. A mutated checkpoint must be refused, unless its content is the same."""

import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from conftest import TINY

import train
from parts import checkpoints, device, runs
from parts.checkpoints import checksum, load_checkpoint, newest_checkpoint

KILLS, MUTATIONS = 200, 4000


def forked(work, said):
    """Start work() in a child, its output in the file `said`. Exit code 99 stands for a bug."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            sys.stdout = sys.stderr = open(said, "w", buffering=1)
            code = work() or 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            os._exit(code)
    return pid


def training(monkeypatch, *settings):
    """A function that trains."""
    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)  # measuring it takes a second
    argv = ["train.py", *TINY, "--eval_interval=0", "--save_interval=1", *map(str, settings)]

    def work():
        sys.argv = argv
        train.main()

    return work


def content(checkpoint) -> str:
    """What must be the same in a resumed run: all but the time and how it was started."""
    return checksum(
        {k: v for k, v in checkpoint.items() if k not in ("elapsed", "clock", "settings")}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process for each trial")
def test_a_killed_training_resumes_bit_for_bit(dataset, tmp_path, monkeypatch):
    steps = 2 * KILLS + 20
    settings = [f"--dataset={dataset}", f"--max_iters={steps}", "--n_embd=64"]
    straight, killed, said = tmp_path / "straight", tmp_path / "killed", tmp_path / "said"
    whole = training(monkeypatch, *settings, f"--out_dir={straight}", f"--keep={steps + 1}")
    assert os.waitstatus_to_exitcode(os.waitpid(forked(whole, said), 0)[1]) == 0, said.read_text()
    wanted = {}
    for file in checkpoints.checkpoints(straight):
        checkpoint = load_checkpoint(file)
        wanted[checkpoint["step"]] = content(checkpoint)

    resumed = training(monkeypatch, *settings, f"--out_dir={killed}", "--init_from=auto")
    chance, amid, saved = random.Random(0), 0, -1
    temporary = killed / "ckpt.pt.tmp"
    for trial in range(KILLS):
        pid = forked(resumed, said)
        newest = killed / "ckpt.pt"
        before = newest.stat().st_mtime_ns if newest.exists() else 0
        while not newest.exists() or newest.stat().st_mtime_ns == before:
            time.sleep(0.001)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), said.read_text()
        if trial % 2:
            while not temporary.exists():
                assert os.waitpid(pid, os.WNOHANG) == (0, 0), said.read_text()
            time.sleep(chance.random() * 0.004)
        else:
            time.sleep(chance.random() * 0.05)
        amid += temporary.exists()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert newest.exists(), "ckpt.pt vanished"
        checkpoint, _ = newest_checkpoint(killed)
        assert checkpoint["step"] > saved and content(checkpoint) == wanted[checkpoint["step"]]
        saved = checkpoint["step"]
        if saved > steps - 15:  # nearly at the end: begin again
            shutil.rmtree(killed)
            saved = -1
    assert amid >= KILLS // 4, f"only {amid} of the kills came amid a save"
    pid = forked(resumed, said)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said.read_text()
    last = load_checkpoint(killed / "ckpt.pt")
    assert content(last) == wanted[steps] == wanted[last["step"]]
    lines = [m["step"] for m in runs.read_metrics(killed, steps) if "loss" in m]
    assert lines == list(range(1, steps + 1))


def mutated(blob: bytes, chance: random.Random, headers: list[int]) -> bytes:
    """The bytes, damaged in one of the ways in which disks and people damage files."""
    data = bytearray(blob)
    place = chance.choice(headers) + chance.randrange(46) if chance.random() < 0.5 else None
    place = chance.randrange(len(data)) if place is None else min(place, len(data) - 1)
    kind = chance.randrange(8)
    if kind <= 2:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 3:
        data[place] = chance.randrange(256)
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        size = chance.choice([16, 512, 4096])
        data[place : place + size] = bytes(len(data[place : place + size]))
    elif kind == 6:
        data[place:place] = chance.randbytes(chance.choice([1, 8, 64]))
    else:
        other, size = chance.randrange(len(data)), chance.choice([4, 64, 4096])
        data[place : place + size] = data[other : other + size]
    return bytes(data)


def headers_in(blob: bytes) -> list[int]:
    """Where in a zip file its headers begin: of files, of the directory, of its end."""
    found = []
    for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"):
        place = blob.find(mark)
        while place >= 0:
            found.append(place)
            place = blob.find(mark, place + 1)
    return found


def test_a_mutated_checkpoint_is_refused_or_the_same(dataset, trained, tmp_path):
    blob, file = (trained / "ckpt.pt").read_bytes(), tmp_path / "ckpt.pt"
    shutil.copy(trained / "ckpt.1.pt", tmp_path)
    wanted = checksum(load_checkpoint(trained / "ckpt.pt"))
    older = checksum(load_checkpoint(trained / "ckpt.1.pt"))
    chance, headers, outcomes = random.Random(0), headers_in(blob), {"same": 0, "older": 0}
    assert len(headers) > 20
    for _ in range(MUTATIONS):
        file.write_bytes(mutated(blob, chance, headers))
        checkpoint, which = newest_checkpoint(tmp_path)
        if which == file:
            assert checksum(checkpoint) == wanted
            outcomes["same"] += 1
        else:
            assert checksum(checkpoint) == older
            outcomes["older"] += 1
    print(outcomes)
    assert outcomes["older"] > MUTATIONS // 2


def test_torch_alone_reads_some_mutated_checkpoints_as_others(trained, tmp_path):
    """The checksum is needed: without it, header damage changes weights unnoticed, or this test
    finds no such damage and the checksum can go."""
    blob, file = (trained / "ckpt.pt").read_bytes(), tmp_path / "ckpt.pt"
    wanted, noticed = checksum(load_checkpoint(trained / "ckpt.pt")), 0
    chance, headers = random.Random(1), headers_in(blob)
    for _ in range(1000):
        file.write_bytes(mutated(blob, chance, headers))
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever torch raises for damage
            continue
        loaded.pop("checksum", None)
        noticed += checksum(loaded) != wanted
    assert noticed

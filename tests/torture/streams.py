"""Streams under trouble: 30 SIGKILLs, a server that drops connections and restarts, trainings that
are killed, 1 GB through a small disk. About 25 minutes."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY, run
from hub_server import Server

from parts import segments
from parts.checkpoints import checksum, load_checkpoint

SMALL = ("--segment_tokens=100000", "--vocab_size=1024", "--val_mb=0.5", "--ahead_minutes=1000")


def rows(file, megabytes):
    """Python files of this machine as JSON lines, so many MB."""
    paths, left = sysconfig.get_paths(), megabytes * 1e6
    with open(file, "w") as out:
        for place in (paths["stdlib"], paths["purelib"]):
            for path in sorted(Path(place).rglob("*.py")):
                if left > 0 and path.stat().st_size:
                    text = path.read_text(encoding="utf-8", errors="replace")
                    name = path.relative_to(place).as_posix()
                    row = {"content": text, "path": name, "repo": name.split("/")[0]}
                    left -= out.write(json.dumps(row) + "\n")
    return file


def start(out, *args):
    command = [sys.executable, ROOT / "prepare/stream.py", f"--out={out}", *map(str, args)]
    log = open(f"{out}.log", "ab")
    return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)


def segments_in(folder) -> int:
    return len(list(folder.glob("train.*.bin")))


def content(folder) -> dict:
    """What a stream holds: the hashes of its segments, as they are on the disk, and the rest."""
    about = json.loads((folder / "stream.json").read_text())
    meta = json.loads((folder / "meta.json").read_text())
    hashes = [
        hashlib.sha256(segments.path_of(folder, one["number"]).read_bytes()).hexdigest()
        for one in about["segments"]
    ]
    assert hashes == [one["sha256"] for one in about["segments"]]
    counts = {key: about[key] for key in ("tokens", "bytes", "documents", "sources", "cleaning")}
    tokenizer = (folder / "tokenizer.json").read_text()
    return {"segments": hashes, "val": meta["val"], "tokenizer": tokenizer, **counts}


def test_30_kills_change_no_token(tmp_path):
    file = rows(tmp_path / "rows.jsonl", 150)
    settings = (f"--source={file}", *SMALL)
    assert start(tmp_path / "straight", *settings).wait() == 0
    chance, killed, ended = random.Random(0), tmp_path / "killed", 0
    for trial in range(30):
        process = start(killed, *settings)
        # Some die while they begin, most amid their work: at least a segment further.
        listed, late = segments_in(killed), time.monotonic() + chance.uniform(0.2, 8)
        amid = trial > 2
        while process.poll() is None:
            time.sleep(0.005)
            if segments_in(killed) > listed if amid else time.monotonic() > late:
                break
        time.sleep(chance.uniform(0, 0.3))
        ended += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
    print(f"{ended} of 30 had ended before the kill")
    if not json.loads((killed / "stream.json").read_text())["ended"]:
        assert start(killed, *settings).wait() == 0
    assert content(killed) == content(tmp_path / "straight")
    assert {file.suffix for file in killed.iterdir()} <= {".bin", ".json", ".npz"}


def test_200_mb_come_through_a_server_that_drops_connections_and_restarts(tmp_path):
    file = rows(tmp_path / "rows.jsonl", 200)
    assert start(tmp_path / "straight", f"--source={file}", *SMALL).wait() == 0
    troubled = tmp_path / "troubled"
    with Server(tmp_path, drop=10) as server:
        process = start(troubled, f"--source={server.url}/files/rows.jsonl", *SMALL)
        for wanted in (20, 60):
            while segments_in(troubled) < wanted:
                assert process.poll() is None
                time.sleep(0.05)
            server.stop()
            time.sleep(4)
            server.start()
        assert process.wait() == 0
    a, b = content(tmp_path / "straight"), content(troubled)
    assert a.pop("sources").popitem()[1] == b.pop("sources").popitem()[1]
    assert a == b


def checkpoint_of(out):
    saved = load_checkpoint(out / "ckpt.pt")
    return saved["step"], checksum({key: saved[key] for key in ("model", "optimizers")})


@pytest.mark.parametrize("worlds", [(1,) * 11, (1, 2, 1)], ids=["10 kills", "1, 2, 1 processes"])
def test_a_killed_training_reads_the_same_batches(worlds, tmp_path):
    file = rows(tmp_path / "rows.jsonl", 8)
    stream = (f"--source={file}", *SMALL, "--segment_tokens=20000")
    assert start(tmp_path / "set", *stream).wait() == 0
    steps, data = 330, f"--dataset={tmp_path / 'set'}"
    how = [data, *TINY, "--dtype=float32", f"--max_iters={steps}", "--grad_accum=2"]
    how += ["--eval_interval=0", "--save_interval=5"]
    run("train.py", *how, f"--out_dir={tmp_path / 'straight'}")
    out, chance = tmp_path / "killed", random.Random(1)
    for number, world in enumerate(worlds):
        command = [sys.executable]
        if world > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [str(ROOT / "train.py"), *how, f"--out_dir={out}", "--init_from=auto"]
        last = number == len(worlds) - 1
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        goal = steps * (number + 1) // (len(worlds) + 1)
        while not last and (not (out / "ckpt.pt").exists() or step_of(out) < goal):
            assert process.poll() is None
            time.sleep(0.05)
        if not last:
            time.sleep(chance.uniform(0, 0.2))
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        assert process.wait() == 0 or not last
    a, b = checkpoint_of(tmp_path / "straight"), checkpoint_of(out)
    if set(worlds) == {1}:
        assert a == b
    else:
        a, b = (load_checkpoint(tmp_path / name / "ckpt.pt") for name in ("straight", "killed"))
        assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
        for name, weight in a["model"].items():
            assert (weight - b["model"][name]).norm() <= 1e-4 * weight.norm(), name


def step_of(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["step"] if lines else 0


def test_1_gb_goes_through_a_small_disk_and_a_small_memory(tmp_path):
    file = rows(tmp_path / "rows.jsonl", 250)
    out, most, disk = tmp_path / "set", [], []
    settings = ("--epochs=0", "--max_mb=1000", "--keep_gb=0.1", "--ahead_minutes=1000")
    process = start(out, f"--source={file}", "--vocab_size=4096", "--fim_rate=0", *settings)
    reader = tmp_path / "run"
    reader.mkdir()
    while process.poll() is None:
        if (out / "stream.json").exists():
            about = segments.read(out)
            if about["segments"]:  # a training that is four segments behind
                at = max(about["segments"][-1]["number"] - 4, 0)
                segments.write_mark(out, reader, at, at, 1e6)
            disk.append(sum(size(file) for file in out.iterdir()))
            most.append(memory(process.pid))
        time.sleep(0.2)
    assert process.wait() == 0
    half = len(most) // 2
    print(f"memory {max(most[:half]) / 1e6:.0f} then {max(most[half:]) / 1e6:.0f} MB")
    print(f"disk at most {max(disk) / 1e6:.0f} MB, {about['tokens']:,} tokens")
    assert max(most) < 600e6 and max(most[half:]) < 1.15 * max(most[:half])
    assert max(disk) < 0.15e9


def size(file):
    try:
        return file.stat().st_size
    except OSError:
        return 0


def memory(pid):
    """Of a process and all below it, pages that they share counted once."""
    total = 0
    for process in (main := psutil.Process(pid), *main.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, OSError):
            pass
    return total

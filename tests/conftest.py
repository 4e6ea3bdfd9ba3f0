"""What the tests share: the scripts are run as a person runs them, on Python files of this machine,
in temporary folders."""

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def run(script, *args, cwd=None, stdin="", ok=True):
    """`python script args` from another folder; the finished process, with its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    done = subprocess.run(
        command, cwd=cwd or ROOT.parent, input=stdin, capture_output=True, text=True, timeout=300
    )
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def in_process(monkeypatch, *args):
    """The exit code of `python train.py args`, run in this process, which has torch already."""
    import train

    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
    try:
        train.main()
    except SystemExit as ended:
        return ended.code
    return 0


def follow(monkeypatch, printed, out_dir, *args):
    """Run, for one small step on the CPU, each training that a script of prepare/ named at its end.
    Returns the commands."""
    commands = [line.partition("python train.py ")[2] for line in printed.splitlines()]
    commands = [shlex.split(command) for command in commands if command]
    small = ("--device=cpu", "--compile=False", "--batch_size=1", "--grad_accum=1", "--max_iters=1")
    for number, command in enumerate(commands):
        last = (*small, "--eval_iters=1", "--sample_tokens=1", f"--out_dir={out_dir}.{number}")
        assert in_process(monkeypatch, *command, *last, *args) == 0, command
    return commands


@pytest.fixture(scope="session")
def real_files():
    """1,000 Python files of the standard library and the installed packages, none of them empty."""
    paths = {kind: Path(path) for kind, path in sysconfig.get_paths().items()}
    places = (
        ("stdlib", "*.py"),
        ("stdlib", "*/*.py"),
        ("purelib", "*/*.py"),
        ("purelib", "*/*/*.py"),
    )
    # In this order, whatever folders the two stand in.
    files = [file for kind, pattern in places for file in sorted(paths[kind].glob(pattern))]
    texts = [
        file.read_text(encoding="utf-8", errors="replace")
        for file in files
        if 0 < file.stat().st_size < 12_000
    ]
    assert len(texts) >= 1000
    return texts[:1000]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A small data set of real Python: prepare/python.py on packages of the standard library."""
    stdlib, source = Path(sysconfig.get_paths()["stdlib"]), tmp_path_factory.mktemp("source")
    for package in (
        "asyncio",
        "email",
        "json",
        "unittest",
        "logging",
        "http",
        "concurrent",
        "importlib",
        "xml",
        "urllib",
    ):
        shutil.copytree(
            stdlib / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    folder = tmp_path_factory.mktemp("data") / "python"
    run(
        "prepare/python.py",
        f"--path={source}",
        f"--out={folder}",
        "--vocab_size=1024",
        "--val_fraction=0.1",
        "--fim_rate=0",
    )
    return folder


@pytest.fixture(scope="session")
def masked(dataset, tmp_path_factory):
    """The same data set for fine-tuning: of each document, tokens 20 to 20 + some are learnt, and
    of every third one none."""
    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("data") / "masked")
    eot = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][0]["id"]
    for split in ("train", "val"):
        tokens = np.fromfile(folder / f"{split}.bin", "<u2")
        mask = np.zeros(len(tokens), np.uint8)
        for number, end in enumerate(np.flatnonzero(tokens == eot)):
            if number % 3:
                mask[end + 20 : end + 21 + number * 7 % 90] = 1
        mask[tokens == eot] = 0
        mask.tofile(folder / f"{split}.mask")
    return folder


TINY = (
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=128",
    "--batch_size=4",
    "--eval_iters=2",
    "--warmup_iters=4",
    "--log_interval=1",
    "--device=cpu",
)


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory):
    """A run's folder: a tiny model after 60 steps on the data set."""
    out = tmp_path_factory.mktemp("out") / "run"
    run(
        "train.py",
        f"--dataset={dataset}",
        f"--out_dir={out}",
        *TINY,
        "--max_iters=60",
        "--lr=3e-3",
        "--eval_interval=30",
    )
    return out

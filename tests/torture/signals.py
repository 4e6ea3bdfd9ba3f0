"""Signals at random moments in every script, from the moment its first import is done to its end:
no traceback, nothing half-written, no process left, at most 3 seconds.

NANONEOX_MOMENTS: moments per script (default 8)."""

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have children ignore
MOMENTS = int(os.environ.get("NANONEOX_MOMENTS", "8"))
LIMIT = 3.0  # seconds from the signal until nothing is left
SMALL = "--n_layer=2 --n_head=2 --n_embd=32 --block_size=64 --batch_size=4 --device=cpu".split()
SCRIPTS = {
    "train": ["train.py", *TINY, "--max_iters=300", "--eval_interval=100", "--sample_prompt=def"],
    "train --compile": ["train.py", *TINY, "--compile=True", "--max_iters=20"],
    "train --mlflow": ["train.py", *TINY, "--max_iters=300", "--mlflow", "--tracker_wait=20"],
    "train --wandb": ["train.py", *TINY, "--max_iters=300", "--wandb", "--tracker_wait=20"],
    "sample": ["sample.py", "--ckpt={run}", "--prompt=def", "--max_new_tokens=2000"],
    "eval": ["eval.py", "--ckpt={run}", "--num_completions=50"],
    "eval, sandboxed": ["eval.py", "--ckpt={run}", "--tasks=mine", "--allow_code_execution"],
    "bench": ["bench.py", *SMALL, "--repeats=1", "--steps=1", "--new_tokens=32", "--peers"],
    "prepare/python": ["prepare/python.py", "--path={code}", "--out={new}", "--vocab_size=1024"],
    "prepare/go": ["prepare/go.py", "--path={go}", "--out={new}", "--vocab_size=1024"],
    "prepare/shakespeare": [
        "prepare/shakespeare.py",
        "--file={letters}",
        "--out={new}",
        "--tokenizer=bpe",
    ],
    "tools/leaderboard": [
        "tools/leaderboard.py",
        *TINY,
        "--entries=adamw/lion",
        "--max_iters=30",
        "--seeds=1",
        "--plot={tmp}/plot.png",
    ],
    "tools/plan": ["tools/plan.py", "config/python_t4.py"],
    "tools/speedrun": ["tools/speedrun.py", "--repeats=1"],
    "tools/startup": ["tools/startup.py", *TINY, "--repeats=1"],
    "tools/tokenizer_ablation": ["tools/tokenizer_ablation.py", "--megabytes=4"],
    "tools/track": ["tools/track.py", "--run={run}", "--to=mlflow"],
    "tools/track --to=wandb": ["tools/track.py", "--run={run}", "--to=wandb"],
}
# Python takes its handlers away as the last thing it does: a signal then ends it by itself.
CODES = (0, 129, 130, 143, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM)
ONCE, TWICE = [(signal.SIGINT, 0)], [(signal.SIGINT, 0), (signal.SIGINT, 0.1)]
# To whom, which signals and how long after the one before. A terminal sends Ctrl-C to a group.
WAYS = [
    ("group", ONCE),
    ("process", [(signal.SIGTERM, 0)]),
    ("group", TWICE),
    ("process", [(signal.SIGINT, 0)]),
    ("group", [(signal.SIGTERM, 0), (signal.SIGTERM, 0.05)]),
    ("group", [(signal.SIGHUP, 0)]),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory, dataset, trained):
    """A copy of the repository, with data, so that nothing happens to this one."""
    home = tmp_path_factory.mktemp("home") / "nanoneox"
    names = subprocess.check_output(["git", "-C", ROOT, "ls-files"], text=True).splitlines()
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    letters = home.parent / "letters.txt"
    given = os.environ.get("NANONEOX_DATA")
    if given:
        shutil.copy(Path(given) / "tinyshakespeare.txt", letters)
    else:
        letters.write_text("".join(sorted(ROOT.glob("*.py"))[0].read_text() for _ in range(99)))
    shutil.copytree(dataset, home / "data/python")
    shutil.copytree(trained, home / "out/run")
    made = ["prepare/shakespeare.py", f"--file={letters}", "--out=shakespeare_char"]
    subprocess.run([sys.executable, *made], cwd=home, check=True, capture_output=True)
    code = home.parent / "code"
    shutil.copytree(Path(os.__file__).parent / "email", code / "email")
    shutil.copytree(Path(os.__file__).parent / "asyncio", code / "asyncio")
    go = home.parent / "go"
    for number in range(60):
        (go / f"p{number}").mkdir(parents=True)
        lines = (f"func F{number}_{n}(a int) int {{\n\treturn a + {n}\n}}\n" for n in range(50))
        (go / f"p{number}/a.go").write_text(f"package p{number}\n\n" + "\n".join(lines))
    return home


def descendants() -> dict[int, str]:
    """The command lines of the processes below this one, by their ids. Orphans are ours, see
    `adopt`; those that have ended and that nobody has asked about do not count."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return {pid: names[pid] for pid in found}


def adopt():
    """Orphans below this process become its children, whatever session they are in."""
    PR_SET_CHILD_SUBREAPER = 36
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def listening(pid: int) -> bool:
    """Whether a process handles SIGTERM, which Python by itself does not."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


class Trial:
    """One start of a script, with files of its own."""

    def __init__(self, home: Path, name: str, tmp: Path):
        self.tmp, self.temporary, self.home = tmp, tmp / "temporary", home
        self.temporary.mkdir(parents=True)
        self.new, self.run, self.out = tmp / "new", tmp / "run", tmp / "out"
        shutil.copytree(home / "out/run", self.run)
        files = dict(tmp=tmp, new=self.new, run=self.run)
        files |= dict(
            code=home.parent / "code", go=home.parent / "go", letters=home.parent / "letters.txt"
        )
        command = [part.format(**files) for part in SCRIPTS[name]]
        command += [f"--out_dir={self.out}"] if command[0] == "train.py" else []
        environment = os.environ | {
            "TMPDIR": str(self.temporary),
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(tmp),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp / 'mlflow.db'}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.errors = open(tmp / "errors", "w+")
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
        )
        while not listening(self.process.pid):
            time.sleep(0.001)
        self.deaf = time.monotonic() - self.began

    def send(self, whom: str, signals: list):
        for number, pause in signals:
            time.sleep(pause)
            if self.process.poll() is None:  # until then its id is its own
                (os.killpg if whom == "group" else os.kill)(self.process.pid, number)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def half_written(self) -> list[str]:
        """Files that a script should not have left behind."""
        left = [path for path in self.tmp.iterdir() if path.name.startswith(".new.")]
        left += [path for folder in (self.out, self.run) for path in folder.glob("*.tmp")]
        metrics = self.out / "metrics.jsonl"
        if metrics.exists():
            assert all(json.loads(line) for line in metrics.read_text().splitlines())
        left += [path for path in self.temporary.iterdir() if path.name.startswith("tmp")]
        return [str(path) for path in left]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_signal_at_any_moment_ends_a_script_well(name, home, tmp_path, capsys):
    adopt()
    before = descendants()
    whole = Trial(home, name, tmp_path / "whole")
    assert whole.process.wait(900) == 0, whole.said()
    whole_time = time.monotonic() - whole.began - whole.deaf
    shutil.rmtree(whole.tmp)
    moments, troubles, times = random.Random(name), [], []
    for number in range(MOMENTS):
        whom, signals = WAYS[number % len(WAYS)]
        trial = Trial(home, name, tmp_path / str(number))
        delay = moments.uniform(0, whole_time)
        try:
            trial.process.wait(delay)
        except subprocess.TimeoutExpired:
            pass
        trial.send(whom, signals)
        sent = time.monotonic()
        late = None
        while left := {p: line for p, line in descendants().items() if p not in before}:
            if time.monotonic() > sent + LIMIT + 12:
                break
            late = dict(left)
            time.sleep(0.02)
        took = time.monotonic() - sent
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        code = trial.process.wait()
        said, files = trial.said(), trial.half_written()
        times.append(took)
        what = f"{name} after {delay:.2f} s of {whole_time:.2f}, {whom} {signals}: code {code}"
        bad = [word for word in ("Traceback", "Exception ignored", "Error") if word in said]
        if bad or files or took > LIMIT or code not in CODES:
            slow = list(late.values())[:3] if took > LIMIT else ""
            troubles.append(f"{what}, {took:.2f} s {slow}, {files}\n{said[-3000:]}")
        shutil.rmtree(trial.tmp)
    with capsys.disabled():
        figures = f"median {sorted(times)[len(times) // 2]:.2f}, most {max(times):.2f} s"
        print(f"\n{name}: {len(troubles)} of {MOMENTS} bad, {figures}, deaf {whole.deaf:.3f} s")
        print("\n".join(troubles))
    assert not troubles, "\n\n".join(troubles)

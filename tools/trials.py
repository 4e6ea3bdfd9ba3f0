"""Trainings that are compared: each in a process of its own, kept in a folder or not, and what a
record keeps of them. For leaderboard.py, experiment.py and ladder.py.

A record is a small JSON file from which the tables and the picture are made again, without training
and without the data: python tools/leaderboard.py --draw=FILE.json
"""

from parts.start import child

import datetime
import hashlib
import json
import math
import os
import re
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict

import train
from parts import configurator, plots, runs
from parts import device as devices
from parts.configurator import ROOT
from parts.files import Lock, load_json, unused, write_json, write_text
from parts.stream import open_dataset
from parts.tracking import finite_numbers

MOST = 58_000  # bytes of a record: small enough to be committed
PRECISE = 100  # batches of an evaluation whose result is compared, at least


# --- what a run has done --------------------------------------------------------------------------


def read(folder) -> list[dict]:
    """The lines of a run's metrics.jsonl. Ends the script where there are none."""
    folder = configurator.locate(folder)
    if not os.path.isfile(folder / "metrics.jsonl"):
        configurator.die(f"there is no {folder / 'metrics.jsonl'}; train.py makes it")
    with configurator.mistakes():
        return [finite_numbers(line) for line in runs.read_metrics(folder, sys.maxsize)]


def last(metrics, key):
    return next((m[key] for m in reversed(metrics) if key in m), float("nan"))


def mean(found: list[dict], key: str) -> float:
    return statistics.mean(run[key] for run in found)


def curve(metrics) -> tuple[list, list, list]:
    """Steps, seconds of training and smoothed training loss at each line that has one."""
    lines = [m for m in metrics if "loss" in m and "elapsed" in m]
    losses = plots.smooth([m["loss"] for m in lines])
    return [m["step"] for m in lines], [m["elapsed"] for m in lines], losses


def until(metrics, goal: float, factor: float = 1.0) -> tuple[int, float] | None:
    """The step and the second at which a run's smoothed training loss, times factor, was as low as
    goal; None if it never was."""
    reached = (place for *place, loss in zip(*curve(metrics)) if loss * factor <= goal)
    return next(map(tuple, reached), None)


# --- the runs -------------------------------------------------------------------------------------


def given(key: str) -> bool:
    """Whether the command line, not a config file, says what this setting is."""
    return any(arg.startswith(f"--{key}=") for arg in sys.argv[1:])


def own(cfg) -> set[str]:
    """The settings that train.py has not."""
    return {key for key in vars(cfg) if not hasattr(train.Settings, key)}


def passed(cfg) -> list[str]:
    """The command line without those: what train.py gets."""
    keys = {key.rstrip("_") for key in own(cfg)}
    return [arg for arg in sys.argv[1:] if arg[2:].partition("=")[0].rstrip("_") not in keys]


def precise(cfg) -> list[str]:
    """The same, with one evaluation, at the end and of PRECISE batches at least, unless the command
    line says otherwise: with ten batches the choice of text matters as much as most ideas do."""
    arguments = passed(cfg)
    arguments += ["--eval_interval=0"] * (not given("eval_interval"))
    return [*arguments, f"--eval_iters={batches(cfg)}"]


def batches(cfg) -> int:
    """Of the evaluation whose result is compared."""
    return cfg.eval_iters if given("eval_iters") else max(PRECISE, cfg.eval_iters)


def by_steps(steps: int) -> list[str]:
    """Have a training end, and its schedule follow, by the number of its steps alone."""
    return ["--max_minutes=0", "--max_train_minutes=0", f"--max_iters={steps}"]


def by_seconds(seconds: float) -> list[str]:
    """The same by the seconds that its steps take."""
    return ["--max_minutes=0", f"--max_train_minutes={seconds / 60}", "--max_iters=1000000"]


def train_once(name: str, arguments: list[str], out: Path) -> list[dict]:
    """The metrics of one run. Ends the script where train.py fails."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    command += [f"--out_dir={out}", "--log_interval=1"]
    with child(command) as process:
        reason = (process.communicate()[1].strip() or "it gave no reason").splitlines()[-1]
    if process.returncode:
        configurator.die(f"{name}: train.py ended with {process.returncode}: {reason}")
    return read(out)


class Board:
    """The folder of --runs_dir, and in leaderboard.json which of its runs have ended, each with a
    hash of all that it depends on: settings, data set, code. With an empty --runs_dir no run is
    kept."""

    def __init__(self, cfg):
        """ValueError or OSError if no runs may be kept there."""
        self.folder, self.lock = None, None
        if not cfg.runs_dir:
            return
        self.folder = runs.run_folder(cfg.runs_dir)
        if (self.folder / "run.json").exists():
            raise ValueError(f"--runs_dir={cfg.runs_dir} is a run; give a folder for runs")
        self.file = self.folder / "leaderboard.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = Lock(self.folder)  # two at once would lose each other's records
        self.lock.sign()
        self.ended = load_json(self.file, dict[str, str]) if self.file.exists() else {}
        settings = {key: value for key, value in vars(cfg).items() if key not in own(cfg)}
        self.basis = repr([settings, open_dataset(cfg.dataset).meta]).encode()
        for pattern in ("*.py", "parts/*.py"):
            for file in sorted(ROOT.glob(pattern)):
                self.basis += file.read_bytes()

    def depends(self, *what) -> str:
        """A hash of all that a run with these arguments depends on."""
        named = [arg.partition("=")[2] for arg in map(str, what) if arg.startswith("--dataset=")]
        basis = self.basis + repr([open_dataset(name).meta for name in named]).encode() * bool(
            named
        )
        return hashlib.sha256(basis + repr(list(what)).encode()).hexdigest()

    def run(self, name: str, seed: int, arguments: list[str]) -> list[dict]:
        """The metrics of an entry's run with a seed, trained now or before; says which."""
        arguments, old = [*arguments, f"--seed={seed}"], False
        if not self.folder:
            with tempfile.TemporaryDirectory() as folder:
                metrics = train_once(name, arguments, Path(folder, "run"))
        else:
            folder = f"{'_'.join(re.findall(r'[^, /:]+', name))}.{seed}"
            out, depends = self.folder / folder, self.depends(*arguments)
            old = self.ended.get(folder) == depends and (out / "metrics.jsonl").is_file()
            metrics = read(out) if old else train_once(name, arguments, out)
            if not old:
                self.ended[folder] = depends
                write_json(self.file, self.ended)
        tqdm.write(
            f"{name:<16} seed {seed}: {last(metrics, 'val_loss'):.4f} after "
            f"{last(metrics, 'step')} steps, {last(metrics, 'elapsed'):.1f} s"
            f"{', trained before' * old}"
        )
        return metrics

    def in_turns(self, seeds: int, jobs: dict[str, list[str]], mark="") -> dict[str, list]:
        """The metrics of every run, by name, for each seed from 1 on. The jobs, names and their
        arguments, take turns, because machines are noisy. mark: what else a folder's name says."""
        found = {name: [] for name in jobs}
        with tqdm(total=seeds * len(jobs), unit="run", disable=None) as bar:
            for seed in range(1, seeds + 1):
                for name, arguments in jobs.items():
                    found[name].append(self.run(name + mark, seed, arguments))
                    bar.update()
        return found

    def release(self):
        if self.lock:
            self.lock.release()


# --- records --------------------------------------------------------------------------------------


class Curve(TypedDict):
    """Of one run, thinned. loss: in training, smoothed, in the record's unit."""

    step: list[float]
    seconds: list[float]
    loss: list[float]


class Run(TypedDict):
    val_loss: float  # nats per token
    bits_per_byte: float
    steps: int
    tokens: int
    seconds: float  # of training
    of_time: float | None  # the share of the first entry's time at which its last loss was reached
    of_tokens: float | None  # and of its tokens; None: not reached, or not to be compared
    curve: Curve


class Round(TypedDict):
    """All entries once, for each seed."""

    limit: Literal["time", "tokens"]
    what: str  # how much each run got
    runs: dict[str, list[Run]]


class Record(TypedDict):
    kind: Literal["board", "experiment", "ladder"]
    date: str
    command: str
    machine: str
    title: str
    unit: NotRequired[str]  # of the curves
    rounds: NotRequired[list[Round]]
    notes: NotRequired[list[str]]
    ladder: NotRequired[dict]  # see ladder.py, which checks it


def summaries(found: dict[str, list], factors=None, alike=None) -> dict[str, list[Run]]:
    """What a record keeps of the runs, {name: [metrics]}. Each is compared with the first entry's
    run with the same seed, which began with the same weights and reads the same batches.

    factors: from nats per token to the curves' unit, by name. alike: the entries that train on the
    first one's text; of others the losses in training say nothing."""
    first, factors = next(iter(found)), factors or dict.fromkeys(found, 1.0)
    result = {}
    for name, seeds in found.items():
        result[name] = []
        for metrics, other in zip(seeds, found[first]):
            step, seconds, losses = curve(metrics)
            factor, reached = factors[name], None
            goal = curve(other)[2][-1] * factors[first]
            if alike is None or name in alike:
                reached = until(metrics, goal, factor)
            result[name].append(
                Run(
                    val_loss=last(metrics, "val_loss"),
                    bits_per_byte=last(metrics, "bits_per_byte"),
                    steps=last(metrics, "step"),
                    tokens=last(metrics, "tokens"),
                    seconds=last(metrics, "elapsed"),
                    of_time=reached and round(reached[1] / curve(other)[1][-1], 4),
                    of_tokens=reached and round(reached[0] * a_step(metrics) / tokens(other), 4),
                    curve=Curve(
                        step=step,
                        seconds=[float(f"{value:.4g}") for value in seconds],
                        loss=[float(f"{value * factor:.4g}") for value in losses],
                    ),
                )
            )
    return result


def tokens(metrics) -> float:
    return last(metrics, "tokens")


def a_step(metrics) -> float:
    """Tokens of a step."""
    return tokens(metrics) / last(metrics, "step")


def thinned(record: Record) -> Record:
    """The record with so few points in each curve that it stays small."""
    points = 200
    while len(text_of(record)) > MOST and points > 10:
        for one in record.get("rounds", []):
            for run in (run for seeds in one["runs"].values() for run in seeds):
                count = len(run["curve"]["step"])
                kept = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})
                if count > points:
                    run["curve"] = {k: [v[i] for i in kept] for k, v in run["curve"].items()}
        points = points * 2 // 3
    return record


def text_of(record: Record) -> str:
    """JSON with each curve on one line, so that a record can be read, and a change of it too."""
    text = json.dumps(record, indent=1)
    return re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def record_file(cfg, kind: str) -> Path:
    """Where the record goes: beside the picture unless --record_json says otherwise."""
    return ROOT / cfg.record_json if cfg.record_json else plot_file(cfg, kind).with_suffix(".json")


def plot_file(cfg, kind: str) -> Path:
    return ROOT / (cfg.plot or f"out/{'leaderboard' if kind == 'board' else kind}.png")


def check_places(cfg, kind: str):
    """ValueError where a picture or a record could not be written, or would replace or go on with
    what is none."""
    plots.check_place(plot_file(cfg, kind))
    for file, suffix in ((record_file(cfg, kind), ".json"), (ROOT / cfg.record, ".md")):
        folder = next((parent for parent in file.parents if os.path.exists(parent)), file)
        fits = folder.is_dir() and os.access(folder, os.W_OK) and len(file.name) < 200
        if file.suffix != suffix or not fits or os.path.exists(file) and not file.is_file():
            raise ValueError(f"{file} is no place for a record; give a name that ends in {suffix}")
    file = record_file(cfg, kind)
    if cfg.runs_dir and runs.run_folder(cfg.runs_dir) / "leaderboard.json" == file:
        raise ValueError(f"{file} is to say which runs have ended; give another --record_json")


def set_aside(file: Path):
    """Nothing of a person's is removed: what was there gets a number."""
    if file.exists():
        aside = file.rename(unused(file.with_suffix(""), file.suffix))
        print(f"the {'picture' if file.suffix == '.png' else 'record'} before is now {aside}")


def write_record(record: Record, file: Path):
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text_of(record))


def append(text: str, file: Path):
    """Add to the Markdown of all experiments."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as notes:
        notes.write(text)


def read_record(name: str) -> Record:
    """ValueError or OSError if the file is none."""
    file = configurator.locate(name)
    if not file.is_file():
        raise ValueError(f"there is no record {file}; leaderboard.py writes one with each picture")
    record = load_json(file, Record)
    wanted = {"board": ["rounds"], "experiment": ["rounds", "notes"], "ladder": ["ladder"]}
    for key in wanted[record["kind"]]:
        if not record.get(key):
            raise ValueError(f"{file} is damaged: it has no {key}")
    return record


def begin(kind: str, title: str, cfg) -> Record:
    """A record with what is known before anything was trained. Ends the script where the device is
    not here."""
    with configurator.mistakes():
        about = dict(command=command(), machine=machine(cfg))
    return Record(kind=kind, date=str(datetime.date.today()), title=title, **about)


def command() -> str:
    """The command as it works in any clone: paths begin in the repository; of others the last part
    is left."""
    words = []
    for arg in sys.argv[1:]:
        arg = arg.replace(f"{ROOT}/", "")
        arg = re.sub(r"(?<![\w.~:/])/[^\s=,]*/([^\s=,/]+)", r"\1", arg)
        key, equals, value = arg.partition("=")
        words.append(f"{key}={shlex.quote(value)}" if equals else shlex.quote(arg))
    return " ".join(["python tools/leaderboard.py", *words])


def machine(cfg) -> str:
    """ValueError where the device is not here."""
    device = devices.pick(cfg.device)
    dtype, threads = devices.training_dtype(device, cfg.dtype), devices.use_threads(cfg.threads)
    peak = devices.matmul_peak(device, dtype) / 1e12
    name = torch.cuda.get_device_name() if device == "cuda" else device
    cores = configurator.counted(os.cpu_count() or 1, "core")
    return (
        f"{cores}, {configurator.counted(threads, 'thread')}, {name}, {str(dtype)[6:]}, a matrix "
        f"product makes {peak:.2f} TFLOP/s, torch {torch.__version__}"
    )


def spread(values: list[float]) -> float:
    """The standard deviation between seeds; not a number where there is one alone."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def with_spread(values: list[float]) -> str:
    """Mean ± standard deviation; the mean alone where there is one seed."""
    around = f" ± {spread(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{around}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

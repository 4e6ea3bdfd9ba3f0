"""Training algorithms side by side: the same model and data, equal time or tokens, several seeds.

    python tools/leaderboard.py config/shakespeare_speedrun.py --seconds=15     # equal time
    python tools/leaderboard.py config/shakespeare_speedrun.py --max_iters=365  # equal tokens
    python tools/leaderboard.py config/shakespeare_cpu.py --runs_dir=out/board  # keeps the runs

An entry is a name and the settings that it adds to those of the command line; for one more, add a
line to ENTRIES. The entries take turns, seed by seed, because machines are noisy. Prints the mean
and standard deviation of the last validation loss, and how soon each entry's training loss is as
low as the first entry's is at its end; draws the curves.

With --runs_dir the runs stay: out/board/muon.1 is Muon's with seed 1. Those that have ended are not
trained again after an interruption, unless settings, data or code were changed. tools/compare.py
shows them side by side.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import child, run_script

import hashlib
import os
import re
import shlex
import statistics
import tempfile

from tqdm import tqdm

import train
from parts import configurator, plots
from parts.files import Lock, load_json, unused, write_json
from parts.runs import read_metrics, run_folder
from parts.stream import open_dataset
from parts.tracking import finite_numbers

ENTRIES = {
    "adamw": ["--optimizer=adamw", "--lr=3e-3", "--min_lr=0", "--lr_schedule=cosine"],
    "cautious": ["--optimizer=cautious", "--lr_schedule=cosine"],
    "lion": ["--optimizer=lion", "--lr_schedule=cosine"],
    "schedulefree": ["--optimizer=schedulefree"],
    "soap": ["--optimizer=soap", "--lr_schedule=linear"],
    "muon": ["--optimizer=muon", "--lr_schedule=linear"],
    "muon, swiglu": ["--optimizer=muon", "--lr_schedule=linear", "--activation=swiglu"],
}


class Settings(train.Settings):
    entries = ""  # names from ENTRIES, separated by slashes; empty: all
    seeds = 3  # runs of each entry
    seconds = 0.0  # of training in each run; 0: max_iters steps instead
    plot = "out/leaderboard.png"  # where to draw the curves
    runs_dir = ""  # keep the runs in this folder; empty: remove them


def read(folder) -> list[dict]:
    """The lines of a run's metrics.jsonl. Ends the script where there are none."""
    folder = configurator.locate(folder)
    if not os.path.isfile(folder / "metrics.jsonl"):
        configurator.die(f"there is no {folder / 'metrics.jsonl'}; train.py makes it")
    with configurator.mistakes():
        return [finite_numbers(line) for line in read_metrics(folder, sys.maxsize)]


def last(metrics, key):
    return next((m[key] for m in reversed(metrics) if key in m), float("nan"))


def mean(runs, key):
    return statistics.mean(last(metrics, key) for metrics in runs)


def curve(metrics):
    """Seconds of training and smoothed training loss at each line that has one."""
    lines = [m for m in metrics if "loss" in m and "elapsed" in m]
    return [m["elapsed"] for m in lines], plots.smooth([m["loss"] for m in lines])


def draw(runs: dict[str, list[list[dict]]], file, title=""):
    curves = {name: [curve(metrics) for metrics in seeds] for name, seeds in runs.items()}
    if plots.curves(curves, file, title):
        print(f"drawn in {file}")


def train_once(name: str, arguments: list[str], out: Path) -> list[dict]:
    """The metrics of one run of an entry. Ends the script where train.py fails."""
    command = [sys.executable, str(configurator.ROOT / "train.py"), *arguments]
    command += [f"--out_dir={out}", "--log_interval=1"]
    with child(command) as process:
        reason = (process.communicate()[1].strip() or "it gave no reason").splitlines()[-1]
    if process.returncode:
        configurator.die(f"{name}: train.py ended with {process.returncode}: {reason}")
    return read(out)


class Board:
    """The folder of --runs_dir, and in leaderboard.json which of its runs have ended, each with a
    hash of all that it depends on: settings, data set, code."""

    def __init__(self, cfg):
        """ValueError or OSError if no runs may be kept there."""
        self.folder = run_folder(cfg.runs_dir)
        if (self.folder / "run.json").exists():
            raise ValueError(f"--runs_dir={cfg.runs_dir} is a run; give a folder for runs")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = Lock(self.folder)  # two at once would lose each other's records
        self.lock.sign()
        self.file = self.folder / "leaderboard.json"
        self.ended = load_json(self.file, dict[str, str]) if self.file.exists() else {}
        settings = {key: value for key, value in vars(cfg).items() if key not in vars(Settings)}
        self.basis = repr([settings, open_dataset(cfg.dataset).meta]).encode()
        for pattern in ("*.py", "parts/*.py"):
            for file in sorted(configurator.ROOT.glob(pattern)):
                self.basis += file.read_bytes()

    def run(self, name: str, seed: int, arguments: list[str]) -> tuple[list[dict], bool]:
        """The metrics of an entry's run, and whether it had ended before."""
        folder = f"{'_'.join(re.findall(r'[^, ]+', name))}.{seed}"
        out, depends = self.folder / folder, self.basis + repr(arguments).encode()
        depends = hashlib.sha256(depends).hexdigest()
        if self.ended.get(folder) == depends and (out / "metrics.jsonl").is_file():
            return read(out), True
        metrics = train_once(name, arguments, out)
        self.ended[folder] = depends
        write_json(self.file, self.ended)
        return metrics, False


def run_all(cfg, entries) -> dict[str, list[list[dict]]]:
    """The metrics of every run: by entry, for each seed."""
    own = vars(Settings).keys()
    passed = [arg for arg in sys.argv[1:] if arg[2:].partition("=")[0] not in own]
    limit = ["--max_minutes=0", f"--max_train_minutes={cfg.seconds / 60}"]
    if cfg.seconds:
        limit += ["--max_iters=1000000"]
    runs, board = {name: [] for name in entries}, None
    if cfg.runs_dir:
        with configurator.mistakes():
            board = Board(cfg)
    with tqdm(total=cfg.seeds * len(entries), unit="run", disable=None) as bar:
        for seed in range(1, cfg.seeds + 1):
            for name in entries:
                arguments, old = [*passed, *ENTRIES[name], *limit, f"--seed={seed}"], False
                if board:
                    metrics, old = board.run(name, seed, arguments)
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        metrics = train_once(name, arguments, Path(folder, "run"))
                runs[name].append(metrics)
                bar.update()
                tqdm.write(
                    f"{name:<16} seed {seed}: {last(metrics, 'val_loss'):.4f} after "
                    f"{last(metrics, 'step')} steps, {last(metrics, 'elapsed'):.1f} s"
                    f"{', trained before' * old}"
                )
    if board:
        board.lock.release()
    return runs


def share_of_time(runs, first) -> str:
    """How soon the runs' training loss reaches the first entry's final one, as a share of the first
    entry's time; median over the seeds."""
    goal = statistics.mean(curve(metrics)[1][-1] for metrics in first)
    shares = []
    for metrics, other in zip(runs, first):
        total = curve(other)[0][-1]
        reached = (seconds for seconds, loss in zip(*curve(metrics)) if loss <= goal)
        shares.append(next((seconds / total for seconds in reached), None))
    return "not reached" if None in shares else f"{statistics.median(shares):.0%}"


def print_table(runs):
    """A row of a Markdown table for each entry, the lowest validation loss first."""
    first = next(iter(runs))
    columns = ["algorithm", "validation loss", f"lower than {first} by", "bits per byte", "steps"]
    columns += ["ms per step", f"time until {first}'s final training loss ({first}: 100%)"]
    print(f"\n| {' | '.join(columns)} |\n" + "| --- " * len(columns) + "|")
    for name, found in sorted(runs.items(), key=lambda item: mean(item[1], "val_loss")):
        losses = [last(metrics, "val_loss") for metrics in found]
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        gain = mean(runs[first], "val_loss") - mean(found, "val_loss")
        steps, seconds = mean(found, "step"), mean(found, "elapsed")
        print(
            f"| {name} | {statistics.mean(losses):.4f}{spread} | {gain:+.4f} | "
            f"{mean(found, 'bits_per_byte'):.4f} | {steps:.0f} | {1000 * seconds / steps:.0f} | "
            f"{'100%' if name == first else share_of_time(found, runs[first])} |"
        )


def main():
    if "--compare" in sys.argv:
        configurator.die("runs are compared by: python tools/compare.py out/a out/b")
    cfg = train.read_settings(Settings)
    configurator.require(cfg, ("seeds",))
    picture = configurator.ROOT / cfg.plot
    with configurator.mistakes():
        plots.check_place(picture)
    entries = cfg.entries.split("/") if cfg.entries else list(ENTRIES)
    for name in entries:
        if name not in ENTRIES:
            configurator.die(f"unknown entry {name!r}; entries are {'/'.join(ENTRIES)}")
    runs = run_all(cfg, entries)
    print_table(runs)
    what = f"{cfg.seconds:g} s each" if cfg.seconds else f"{cfg.max_iters} steps each"
    seeds = f"mean and range of {cfg.seeds} seeds" if cfg.seeds > 1 else "one seed"
    title = f"{Path(cfg.dataset).name}, {what}, {seeds}"
    if picture.exists():
        print(
            f"the picture before is now {picture.rename(unused(picture.with_suffix(''), '.png'))}"
        )
    draw(runs, picture, title)
    if cfg.runs_dir:
        print(f"the runs stay: python tools/compare.py {shlex.quote(cfg.runs_dir)}")


if __name__ == "__main__":
    run_script(main)

"""Training algorithms side by side: the same model and data, equal time or tokens, several seeds.

    python tools/leaderboard.py config/shakespeare_speedrun.py --seconds=15     # equal time
    python tools/leaderboard.py config/shakespeare_speedrun.py --max_iters=365  # equal tokens
    python tools/leaderboard.py --compare out/a out/b       # any runs, by their metrics.jsonl

An entry is a name and the settings that it adds to those of the command line; for one more, add a
line to ENTRIES. The entries take turns, seed by seed, because machines are noisy. Prints the mean
and standard deviation of the last validation loss, and how soon each entry's training loss is as
low as the first entry's is at its end; draws the curves.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import child, run_script

import os
import statistics
import tempfile

from tqdm import tqdm

import train
from parts import configurator, plots
from parts.files import unused
from parts.runs import read_metrics
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


def compare(folders):
    """Print the last figures of several runs and draw their curves in out/compare_runs.png."""
    if not folders:
        configurator.die(
            "name the runs to compare: python tools/leaderboard.py --compare out/a out/b"
        )
    runs = {configurator.printable(Path(name).name): read(name) for name in folders}
    keys = ("step", "tokens", "elapsed", "loss", "val_loss", "bits_per_byte", "tokens_per_s", "mfu")
    print(f"{'':<20}" + "".join(f"{key:>14}" for key in keys))
    for name, metrics in runs.items():
        print(f"{name:<20}" + "".join(f"{last(metrics, key):>14.6g}" for key in keys))
    picture = configurator.ROOT / "out" / "compare_runs.png"
    draw({name: [metrics] for name, metrics in runs.items()}, picture)


def train_once(name, arguments) -> list[dict]:
    """The metrics of one run of an entry. Ends the script where train.py fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(configurator.ROOT / "train.py"), *arguments]
        command += [f"--out_dir={folder}/run", "--log_interval=1"]
        with child(command) as process:
            reason = (process.communicate()[1].strip() or "it gave no reason").splitlines()[-1]
        if process.returncode:
            configurator.die(f"{name}: train.py ended with {process.returncode}: {reason}")
        return read(f"{folder}/run")


def run_all(cfg, entries) -> dict[str, list[list[dict]]]:
    """The metrics of every run: by entry, for each seed."""
    own = vars(Settings).keys()
    passed = [arg for arg in sys.argv[1:] if arg[2:].partition("=")[0] not in own]
    limit = ["--max_minutes=0"]
    if cfg.seconds:
        limit = ["--max_iters=1000000", f"--max_minutes={cfg.seconds / 60}"]
    runs = {name: [] for name in entries}
    with tqdm(total=cfg.seeds * len(entries), unit="run", disable=None) as bar:
        for seed in range(1, cfg.seeds + 1):
            for name in entries:
                metrics = train_once(name, [*passed, *ENTRIES[name], *limit, f"--seed={seed}"])
                runs[name].append(metrics)
                bar.update()
                tqdm.write(
                    f"{name:<16} seed {seed}: {last(metrics, 'val_loss'):.4f} after "
                    f"{last(metrics, 'step')} steps, {last(metrics, 'elapsed'):.1f} s"
                )
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
    return "-" if None in shares else f"{statistics.median(shares):.0%} of its time"


def print_table(runs):
    """A row of a Markdown table for each entry, the lowest validation loss first."""
    first = next(iter(runs))
    columns = ["algorithm", "validation loss", f"less than {first}", "bits per byte", "steps"]
    columns += ["ms a step", f"{first}'s last training loss after"]
    print(f"\n| {' | '.join(columns)} |\n" + "| --- " * len(columns) + "|")
    for name, found in sorted(runs.items(), key=lambda item: mean(item[1], "val_loss")):
        losses = [last(metrics, "val_loss") for metrics in found]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        gain = mean(runs[first], "val_loss") - mean(found, "val_loss")
        steps, seconds = mean(found, "step"), mean(found, "elapsed")
        print(
            f"| {name} | {statistics.mean(losses):.4f} ± {spread:.4f} | {gain:+.4f} | "
            f"{mean(found, 'bits_per_byte'):.4f} | {steps:.0f} | {1000 * seconds / steps:.0f} | "
            f"{share_of_time(found, runs[first])} |"
        )


def main():
    if sys.argv[1:2] == ["--compare"]:
        return compare(sys.argv[2:])
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
    title = f"{Path(cfg.dataset).name}, {what}, {cfg.seeds} seeds"
    if picture.exists():
        print(
            f"the picture before is now {picture.rename(unused(picture.with_suffix(''), '.png'))}"
        )
    draw(runs, picture, title)


if __name__ == "__main__":
    run_script(main)

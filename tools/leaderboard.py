"""Training algorithms side by side: the same model and data, as much time or as many tokens, several seeds.

    python tools/leaderboard.py config/shakespeare_speedrun.py --seconds=15     # the same time for each entry
    python tools/leaderboard.py config/shakespeare_speedrun.py --max_iters=365  # the same tokens
    python tools/leaderboard.py --compare out/a out/b                           # any runs at all, by their metrics.jsonl

An entry is a name and settings that it adds to those of the command line; one more is one more line in ENTRIES. The entries
take turns, seed by seed, because machines are noisy. Prints mean and standard deviation of the last validation loss, and how
soon each entry's mean curve is as low as the first entry ends; draws the curves.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from parts import configurator

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


def read(folder):
    """The lines of a run's metrics.jsonl."""
    file = configurator.locate(folder) / "metrics.jsonl"
    if not file.is_file():
        configurator.die(f"there is no {file}; train.py makes it")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def last(metrics, key):
    return next((m[key] for m in reversed(metrics) if m.get(key) is not None), float("nan"))


def smooth(losses, memory=0.9):
    """A running mean of training losses, by which noisy curves can be told apart."""
    mean, weight, result = 0.0, 0.0, []
    for loss in losses:
        mean, weight = memory * mean + (1 - memory) * loss, memory * weight + 1 - memory
        result.append(mean / weight)
    return result


def curve(metrics):
    """Seconds of training and smoothed training loss at each line that has one."""
    lines = [m for m in metrics if m.get("loss") is not None]
    return [m["elapsed"] for m in lines], smooth([m["loss"] for m in lines])


def draw(curves, file, title):
    """curves: {name: list of (seconds, losses)}, of which each name's mean and spread are drawn."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 5))
        for number, (name, runs) in enumerate(curves.items()):
            grid = np.linspace(max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs), 200)
            values = np.array([np.interp(grid, x, y) for x, y in runs])
            axes.plot(grid, values.mean(0), label=name, color=f"C{number}")
            axes.fill_between(grid, values.min(0), values.max(0), color=f"C{number}", alpha=0.2, lw=0)
        low, high = min(min(y) for runs in curves.values() for _, y in runs), max(y[len(y) // 10] for runs in curves.values() for _, y in runs)
        axes.set(xlabel="seconds of training", ylabel="training loss, running mean (nats per token)", title=title, ylim=(low - 0.05, high))
        axes.legend()
        axes.grid(alpha=0.3)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, bbox_inches="tight")
        plt.close(figure)
        print(f"drawn in {file}")
    except Exception as error:
        print(f"no plot: {type(error).__name__}: {error}")


def compare(folders):
    """Print the last figures of several runs and draw their curves in out/compare_runs.png."""
    if not folders:
        configurator.die("name the runs to compare: python tools/leaderboard.py --compare out/a out/b")
    runs = {Path(name).name: read(name) for name in folders}
    keys = ("step", "tokens", "elapsed", "loss", "val_loss", "bits_per_byte", "tokens_per_s", "mfu")
    print(f"{'':<20}" + "".join(f"{key:>14}" for key in keys))
    for name, metrics in runs.items():
        print(f"{name:<20}" + "".join(f"{last(metrics, key):>14.6g}" for key in keys))
    draw({name: [curve(m)] for name, m in runs.items()}, configurator.ROOT / "out" / "compare_runs.png", "")


def main():
    if sys.argv[1:2] == ["--compare"]:
        return compare(sys.argv[2:])
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("seeds", "max_iters"))
    entries = cfg.entries.split("/") if cfg.entries else list(ENTRIES)
    for name in entries:
        if name not in ENTRIES:
            configurator.die(f"unknown entry {name!r}; entries are {'/'.join(ENTRIES)}")
    own = vars(Settings).keys()
    passed = [arg for arg in sys.argv[1:] if arg[2:].partition("=")[0] not in own]
    limit = ["--max_iters=1000000", f"--max_minutes={cfg.seconds / 60}"] if cfg.seconds else ["--max_minutes=0"]
    runs = {name: [] for name in entries}
    with tqdm(total=cfg.seeds * len(entries), unit="run", disable=None) as bar, tempfile.TemporaryDirectory() as folder:
        for seed in range(1, cfg.seeds + 1):
            for name in entries:
                command = [sys.executable, str(configurator.ROOT / "train.py"), *passed, *ENTRIES[name], *limit, f"--seed={seed}",
                           f"--out_dir={folder}/run", "--log_interval=1"]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    configurator.die(f"{name}: train.py ended with {done.returncode}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
                runs[name].append(read(f"{folder}/run"))
                bar.update()
                tqdm.write(f"{name:<16} seed {seed}: {last(runs[name][-1], 'val_loss'):.4f} after {last(runs[name][-1], 'step')} steps, "
                           f"{last(runs[name][-1], 'elapsed'):.1f} s")  # fmt: skip
    spread = lambda values: statistics.stdev(values) if len(values) > 1 else 0.0  # noqa: E731
    first = [last(m, "val_loss") for m in runs[entries[0]]]
    goal = statistics.mean(curve(m)[1][-1] for m in runs[entries[0]])
    print(f"\n| algorithm | validation loss | less than {entries[0]} | bits per byte | steps | ms a step | {entries[0]}'s last training loss after |\n"
          + "| --- | --- | --- | --- | --- | --- | --- |")  # fmt: skip
    for name, found in sorted(runs.items(), key=lambda item: statistics.mean(last(m, "val_loss") for m in item[1])):
        losses = [last(m, "val_loss") for m in found]
        seconds, steps = statistics.mean(last(m, "elapsed") for m in found), statistics.mean(last(m, "step") for m in found)
        reached = [next((x / curve(other)[0][-1] for x, y in zip(*curve(m)) if y <= goal), None) for m, other in zip(found, runs[entries[0]])]
        share = f"{statistics.median(reached):.0%} of its time" if None not in reached else "-"
        print(f"| {name} | {statistics.mean(losses):.4f} ± {spread(losses):.4f} | {statistics.mean(first) - statistics.mean(losses):+.4f} | "
              f"{statistics.mean(last(m, 'bits_per_byte') for m in found):.4f} | {steps:.0f} | {1000 * seconds / steps:.0f} | {share} |")  # fmt: skip
    what = f"{cfg.seconds:g} s each" if cfg.seconds else f"{cfg.max_iters} steps each"
    draw({name: [curve(m) for m in found] for name, found in runs.items()}, configurator.ROOT / cfg.plot, f"{Path(cfg.dataset).name}, {what}, {cfg.seeds} seeds")


if __name__ == "__main__":
    main()

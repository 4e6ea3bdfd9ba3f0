"""The laboratory for small models: trainings side by side, with several seeds, in turns.

    python tools/leaderboard.py config/shakespeare_speedrun.py --seconds=15     # equal time
    python tools/leaderboard.py config/shakespeare_speedrun.py --max_iters=365  # equal tokens
    python tools/leaderboard.py config/shakespeare_cpu.py --runs_dir=out/board  # keeps the runs
    python tools/leaderboard.py config/python_cpu.py --try="--rotary_pct=0.5 / rare: --lr=1e-2" \\
        --why="turned halves suffice" --max_iters=150 --seconds=60              # an experiment
    python tools/leaderboard.py config/python_cpu.py --ladder --minutes=60      # a law of the sizes
    python tools/leaderboard.py --draw=out/leaderboard.json                     # from the record

**The algorithms.** An entry is a name and the settings that it adds to those of the command line;
for one more, add a line to ENTRIES. Prints the mean and standard deviation of the last validation
loss, and how soon each entry's training loss is as low as the first entry's is at its end; draws
the curves.

**An experiment** compares the command line's settings, "today", with what --try adds to them: see
tools/experiment.py. **A ladder** trains five sizes and says what more compute would give: see
tools/ladder.py.

With --runs_dir the runs stay: out/board/muon.1 is Muon's with seed 1. Those that have ended are not
trained again after an interruption, unless settings, data or code were changed. tools/compare.py
shows them side by side.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import shlex
import statistics

import train
from parts import configurator, plots
from tools import experiment, ladder, trials

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
    runs_dir = ""  # keep the runs in this folder; empty: remove them
    # An experiment
    try_ = ""  # settings to try, several with " / " between, each perhaps as "name: settings"
    why = ""  # the hypothesis: what you expect, and why
    record = "out/experiments.md"  # the tables of an experiment or a ladder are added to this file
    # A ladder of sizes
    ladder = False  # train five sizes up to the config's and say what more compute would give
    minutes = 0.0  # of training in all; 0: max_iters is the steps of the largest size instead
    # Pictures and records
    plot = ""  # where to draw; empty: out/leaderboard.png, out/experiment.png, out/ladder.png
    record_json = ""  # what the picture is drawn from; empty: beside the picture
    draw = ""  # make table and picture again from such a record, and train nothing


def print_table(runs: dict[str, list[trials.Run]]):
    """A row of a Markdown table for each entry, the lowest validation loss first."""
    first = next(iter(runs))
    columns = ["algorithm", "validation loss", f"lower than {first} by", "bits per byte", "steps"]
    columns += ["ms per step", f"time until {first}'s final training loss ({first}: 100%)"]
    rows = []
    for name, found in sorted(runs.items(), key=lambda item: trials.mean(item[1], "val_loss")):
        gain = trials.mean(runs[first], "val_loss") - trials.mean(found, "val_loss")
        steps, seconds = trials.mean(found, "steps"), trials.mean(found, "seconds")
        shares = [run["of_time"] for run in found]
        soon = "not reached" if None in shares else f"{statistics.median(shares):.0%}"
        row = [name, trials.with_spread([run["val_loss"] for run in found]), f"{gain:+.4f}"]
        row += [f"{trials.mean(found, 'bits_per_byte'):.4f}", f"{steps:.0f}"]
        rows.append(row + [f"{1000 * seconds / steps:.0f}", "100%" if name == first else soon])
    print(f"\n{trials.table(columns, rows)}", end="")


def compare_algorithms(cfg, board: trials.Board) -> trials.Record:
    names = cfg.entries.split("/") if cfg.entries else list(ENTRIES)
    limit = trials.by_seconds(cfg.seconds) if cfg.seconds else trials.by_steps(cfg.max_iters)
    arguments = trials.passed(cfg)
    what = f"{cfg.seconds:g} s each" if cfg.seconds else f"{cfg.max_iters} steps each"
    seeds = f"mean and range of {cfg.seeds} seeds" if cfg.seeds > 1 else "one seed"
    record = trials.begin("board", f"{Path(cfg.dataset).name}, {what}, {seeds}", cfg)
    found = board.in_turns(
        cfg.seeds, {name: [*arguments, *ENTRIES[name], *limit] for name in names}
    )
    limited = "time" if cfg.seconds else "tokens"
    record["rounds"] = [dict(limit=limited, what=what, runs=trials.summaries(found))]
    return trials.thinned(record)


def show(record: trials.Record, picture: Path, again: bool = False):
    """Print and draw what a record says. again: it is an old one, so that a picture of ours that is
    there can be drawn again too, and is replaced."""
    if record["kind"] == "ladder":
        with configurator.mistakes():
            ladder.check(record)
        print(f"\n{ladder.report(record)}", end="")
        drawn = ladder.draw
    elif record["kind"] == "experiment":
        print(f"\n{experiment.report(record)}", end="")
        drawn = experiment.draw
    else:
        print_table(record["rounds"][0]["runs"])
        drawn = draw
    if not (again and plots.is_ours(picture)):
        trials.set_aside(picture)
    if drawn(record, picture):
        print(f"drawn in {picture}")


def draw(record: trials.Record, file: Path) -> bool:
    (only,) = record["rounds"]
    panel = plots.panel(only["runs"], "seconds", "nats per token", record["title"])
    return plots.curves([panel], file)


def main():
    if "--compare" in sys.argv:
        configurator.die("runs are compared by: python tools/compare.py out/a out/b")
    cfg = train.read_settings(Settings)
    configurator.require(cfg, ("seeds",))
    with configurator.mistakes():
        record = trials.read_record(cfg.draw) if cfg.draw else None
        kind = "ladder" if cfg.ladder else "experiment" if cfg.try_ else "board"
        kind = record["kind"] if record else kind
        trials.check_places(cfg, kind)
    if record:
        return show(record, trials.plot_file(cfg, kind), again=True)
    if cfg.ladder and cfg.try_:
        configurator.die("--ladder and --try are two things; run one after the other")
    for name in cfg.entries.split("/") if cfg.entries else ():
        if name not in ENTRIES:
            configurator.die(f"unknown entry {name!r}; entries are {'/'.join(ENTRIES)}")
    do = {"ladder": ladder.climb, "experiment": experiment.compare, "board": compare_algorithms}
    with configurator.mistakes():
        board = trials.Board(cfg)
    try:
        record = do[kind](cfg, board)
    finally:
        board.release()
    if kind != "ladder":  # which is recorded on its way
        trials.set_aside(trials.record_file(cfg, kind))
        trials.write_record(record, trials.record_file(cfg, kind))
    if kind == "experiment":
        trials.append(experiment.report(record), configurator.ROOT / cfg.record)
    show(record, trials.plot_file(cfg, kind))
    if cfg.runs_dir:
        print(f"the runs stay: python tools/compare.py {shlex.quote(cfg.runs_dir)}")


if __name__ == "__main__":
    run_script(main)

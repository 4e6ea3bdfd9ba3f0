"""Runs side by side: how their settings differ, how they trained, how they were evaluated.

    python tools/compare.py out/a out/b                    # any number of runs
    python tools/compare.py --all out/a                    # every figure of eval.json
    python tools/compare.py out/board                      # the runs of a leaderboard

Reads run.json, metrics.jsonl and eval.json, whichever are there; a run that is still training may
be among them. Says what cannot be compared: losses on different text, or by token where the
tokenizers differ. Draws out/compare.png: validation losses, and the most telling scores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from typing_extensions import NotRequired, TypedDict

from model import NeoXConfig
from parts import card, configurator, figures, memory, plots
from parts.files import load_json, unused, writer
from parts.runs import read_metrics
from parts.tracking import finite_numbers

# Settings that say where a run is, or how it is looked at, not what it computes.
ASIDE = set(
    """out_dir init_from new_data threads wandb mlflow tracker_wait sample_prompt
    sample_tokens""".split()
)
# Arguments of eval.py without which figures differ by chance or by kind.
ASKED = (
    "stride num_completions num_bodies num_samples max_new_tokens temperature top_p seed".split()
)
WIDEST = 28  # characters of a column


class Settings:
    all = False  # every figure of eval.json, not five


class Split(TypedDict):
    dataset: NotRequired[str]
    sha256: NotRequired[str | None]
    tokens: NotRequired[int | None]
    bytes: NotRequired[int | None]


class About(TypedDict):
    """run.json, as far as it is read here."""

    settings: NotRequired[dict[str, bool | int | float | str | list | None]]
    git: NotRequired[dict[str, str | bool | None]]
    data: NotRequired[dict[str, Split]]
    base: NotRequired[str | None]


class Measured(TypedDict):
    step: int


class Report(TypedDict):
    """eval.json, as far as it is read here, but for its numbers."""

    arguments: NotRequired[dict]
    data: NotRequired[Split]
    measured: NotRequired[Measured | None]


SHAPES = {"run.json": About, "eval.json": Report}


class Run(NamedTuple):
    name: str
    folder: Path
    about: dict  # run.json
    metrics: list[dict]
    report: dict  # eval.json

    @property
    def settings(self) -> dict:
        return self.about.get("settings", {})

    @property
    def figures(self) -> dict[str, float]:
        return finite_numbers(self.report)

    def last(self, key: str):
        return next((line[key] for line in reversed(self.metrics) if line.get(key)), None)


def read(name: str, label: str) -> Run:
    """ValueError or OSError where the folder is no run, or a file in it is damaged."""
    folder = configurator.locate(name)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name runs, such as out/python_cpu")
    found = {}
    for file, shape in SHAPES.items():
        found[file] = load_json(folder / file, shape) if os.path.exists(folder / file) else {}
    metrics = [finite_numbers(line) for line in read_metrics(folder, sys.maxsize)]
    if not metrics and not found["eval.json"]:
        raise ValueError(
            f"{folder} has neither a metrics.jsonl, which train.py writes, nor an eval.json, which "
            f"python eval.py --ckpt={name} writes"
        )
    return Run(label, folder, found["run.json"], metrics, found["eval.json"])


def expanded(names: Iterable[str]) -> Iterator[str]:
    """The names, and in place of a leaderboard's --runs_dir its runs."""
    for name in names:
        folder = configurator.locate(name)
        if (folder / "leaderboard.json").is_file():
            yield from map(str, sorted(file.parent for file in folder.glob("*/metrics.jsonl")))
        elif folder.name != "leaderboard.json":  # out/board/* names it among the runs
            yield name


def labels(names: list[str]) -> list[str]:
    """The folders' own names, or the paths as given where two are alike."""
    short = [Path(configurator.locate(name)).resolve().name for name in names]
    names = short if len(set(short)) == len(short) else names
    return [configurator.printable(name) for name in names]


# --- the tables -----------------------------------------------------------------------------------


def print_table(title: str, runs: list[Run], rows: dict[str, list]):
    """A row for each name; a column for each run, `-` for None."""
    cells = {
        name: ["-" if value is None else str(value) for value in row] for name, row in rows.items()
    }
    cells = {title: [run.name for run in runs], **cells}
    cut = {
        name: [cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 3]}..." for cell in row]
        for name, row in cells.items()
    }
    first = max(map(len, cut))
    widths = [max(map(len, column)) for column in zip(*cut.values())]
    for name, row in cut.items():
        line = "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths))
        print(configurator.printable(f"{name:<{first}}{line}"))
    print()


def differing(runs: list[Run]) -> dict[str, list]:
    """The settings that are not the same in all runs that have them, and the code's commit."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in ASIDE)
    rows = {key: [run.settings.get(key) for run in runs] for key in keys}
    commits = [run.about.get("git", {}).get("commit") for run in runs]
    rows["commit"] = [str(commit)[:8] if commit else None for commit in commits]
    return {k: row for k, row in rows.items() if len({repr(v) for v in row if v is not None}) > 1}


def training(runs: list[Run]) -> dict[str, list]:
    rows = {
        "parameters": [parameters(run) for run in runs],
        "fine-tuned from": [run.about.get("base") for run in runs],
        "steps": [in_full(run.last("step")) for run in runs],
        "tokens read": [in_full(run.last("tokens")) for run in runs],
        "minutes": [run.last("elapsed") and f"{run.last('elapsed') / 60:.1f}" for run in runs],
    }
    for key, unit in (("val_loss", "nats per token"), ("bits_per_byte", "bits per byte")):
        last, lowest = [run.last(key) for run in runs], [best(run, key) for run in runs]
        rows[f"last validation loss, {unit}"] = list(map(short, last))
        if lowest != last:
            rows[f"best validation loss, {unit}"] = list(map(short, lowest))
    return {name: row for name, row in rows.items() if any(value is not None for value in row)}


def best(run: Run, key: str) -> float | None:
    return min((line[key] for line in run.metrics if key in line), default=None)


def short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def in_full(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def parameters(run: Run) -> str | None:
    """Counted in the exported weights, or computed from the settings; None if there are neither."""
    if (run.folder / "model.safetensors").is_file():
        with contextlib.suppress(Exception):  # of a damaged file: the library has its own
            return f"{card.parameters(run.folder) / 1e6:.2f}M"
    shape = {k: v for k, v in run.settings.items() if k in NeoXConfig.__dataclass_fields__}
    try:
        count = memory.count_parameters(NeoXConfig(**shape)).total
    except (ValueError, TypeError):  # somebody changed run.json
        return None
    return f"{count / 1e6:.2f}M" if shape else None


# --- what can be compared -------------------------------------------------------------------------


def trained_on(run: Run) -> dict:
    """The validation split of a training: dataset, sha256, tokens, bytes; empty if unknown."""
    val = run.about.get("data", {}).get("val", {})
    return {"dataset": Path(str(run.settings.get("dataset"))).name, **val} if val else {}


def evaluated_on(run: Run) -> dict:
    """The same of an evaluation. One that was made before eval.json said so, and named no data set,
    was on the training's."""
    named = run.report.get("arguments", {}).get("dataset")
    return run.report.get("data") or ({} if named or not run.report else trained_on(run))


def tokens_of(run: Run) -> str:
    """A fingerprint of the tokenizer's vocabulary and merges; empty if the folder has none."""
    file = run.folder / "tokenizer.json"
    if not file.is_file():
        return ""
    return hashlib.sha256(repr(load_json(file).get("model")).encode()).hexdigest()


def remarks(runs: list[Run]) -> list[str]:
    """What keeps figures from being compared, and what else one has to know of the runs."""
    said, tokenizers = [], {found for run in runs if (found := tokens_of(run))}
    same_text = True
    for what, where in (("training", trained_on), ("evaluation", evaluated_on)):
        sets = {run.name: found for run in runs if (found := where(run))}
        named = {}
        for name, found in sets.items():
            size, sha = f"{found.get('tokens') or 0:,} tokens", str(found.get("sha256"))[:8]
            named.setdefault(f"{found.get('dataset')} ({size}, sha256 {sha})", []).append(name)
        # In other tokens the same text has another hash, but as many bytes.
        sizes = {found.get("bytes") for found in sets.values()}
        if len(named) < 2 or len(tokenizers) > 1 and len(sizes) == 1 and None not in sizes:
            continue
        same_text = False
        listed = "; ".join(f"{', '.join(names)}: {text}" for text, names in named.items())
        lost = "no loss" if what == "training" else "nothing but scores on problems"
        said.append(f"{what}: the validation sets differ, so {lost} can be compared. {listed}")
        if what == "evaluation":
            said.append("python eval.py --ckpt=RUN --dataset=NAME evaluates each on the same set")
    if len(tokenizers) > 1 and same_text:
        said.append(
            "the tokenizers differ: compare bits per byte, not nats per token, perplexity or "
            "guesses of tokens"
        )
    asked = [run.report["arguments"] for run in runs if "arguments" in run.report]
    for key in ASKED:
        values = dict.fromkeys(str(arguments.get(key)) for arguments in asked)
        if len(values) > 1:
            said.append(f"the evaluations had different {key}: {', '.join(values)}")
    for run in runs:
        if process := writer(run.folder):
            said.append(f"{run.name} is still training ({process})")
        step, last = (run.report.get("measured") or {}).get("step"), run.last("step")
        if step is not None and step != last:
            said.append(f"{run.name} was evaluated as it was at step {step:,}")
    return said


# --- the picture ----------------------------------------------------------------------------------


def losses(run: Run, key: str) -> list[tuple[float, float]]:
    """(tokens read, validation loss) at each evaluation; steps where tokens are not known."""
    a_step = (run.last("tokens") or 0) / (run.last("step") or 1) or 1
    return [(line["step"] * a_step, line[key]) for line in run.metrics if key in line]


def draw(runs: list[Run], keys: list[str], same_tokens: bool):
    key = "val_loss" if same_tokens else "bits_per_byte"
    curves = {run.name: losses(run, key) for run in runs}
    bars = {
        figures.described(k): {
            run.name: run.figures[k] * figures.figure(k).factor for run in runs if k in run.figures
        }
        for k in keys
    }
    unit = "nats per token" if same_tokens else "bits per byte"
    file = configurator.ROOT / "out" / "compare.png"
    if len({trained_on(run).get("bytes") for run in runs if run.metrics}) > 1:
        unit += ", of different texts: not to be compared"
    if file.exists() and not plots.is_ours(file):
        print(f"the picture before is now {file.rename(unused(file.with_suffix(''), '.png'))}")
    if plots.compared(curves, unit, bars, file):
        print(f"drawn in {file}")


def main():
    options = [arg for arg in sys.argv[1:] if arg.startswith("--") or arg == "-h"]
    cfg = configurator.load(Settings, options)
    names = list(dict.fromkeys(expanded(arg for arg in sys.argv[1:] if arg not in options)))
    if not names:
        configurator.die("name the runs to compare: python tools/compare.py out/a out/b")
    with configurator.mistakes():
        runs = [read(name, label) for name, label in zip(names, labels(names))]
        said, tokenizers = remarks(runs), {tokens_of(run) for run in runs}
    if differences := differing(runs):
        print_table("settings that differ", runs, differences)
    elif len(runs) > 1:
        print("the settings are the same\n")
    print_table("training", runs, training(runs))
    every = {key: value for run in runs for key, value in run.figures.items()}
    shared = {key: value for key, value in every.items() if all(key in r.figures for r in runs)}
    keys = list(dict.fromkeys(figures.headline(shared) + figures.headline(every)))[:5]
    rows = {
        figures.described(key) if not cfg.all else f"{key}: {figures.described(key)}": [
            figures.shown(key, run.figures[key]) if key in run.figures else None for run in runs
        ]
        for key in (every if cfg.all else keys)
    }
    if rows:
        print_table("evaluation", runs, rows)
    if len(every) > len(rows):
        print(f"{len(every) - len(rows)} more figures: --all")
    for line in said:
        print(f"note: {line}")
    draw(runs, keys, len(tokenizers) == 1)


if __name__ == "__main__":
    run_script(main)

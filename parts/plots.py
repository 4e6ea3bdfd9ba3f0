"""Every picture. If one cannot be drawn, that is reported and the run goes on."""

import html
import io
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from parts.files import write_whole


def picture(file: Path, draw: Callable, rows: int = 1, columns: int = 1, size=(8, 5)) -> bool:
    """Write to a PNG file what draw(axes) draws; axes is one, or an array of rows x columns.
    Returns whether that worked."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(rows, columns, figsize=size)
        try:
            draw(axes)
            figure.tight_layout()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
        finally:
            plt.close(figure)
        return True
    except Exception as error:
        tqdm.write(f"no picture {file.name}: {type(error).__name__}: {error}")
        return False


INK = "#010203"  # no other colour of a picture; a page's own takes its place


def svg(draw: Callable, size=(6, 3.6)) -> str:
    """What draw(axes) draws, as SVG to put into a page, whose colour of text it takes: so it can be
    read on a light page and on a dark one. Without matplotlib a line that says so."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        inked = ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")
        look = {f"{name}color": INK for name in inked}
        look |= {"svg.fonttype": "none", "svg.hashsalt": "nanoNeoX"}
        with matplotlib.rc_context(look):
            figure, axes = plt.subplots(figsize=size)
            try:
                draw(axes)
                figure.tight_layout()
                text = io.StringIO()
                nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
                figure.savefig(text, format="svg", transparent=True, metadata=nothing)
            finally:
                plt.close(figure)
        # A page needs neither the head of a file nor the addresses that name its formats.
        drawing = text.getvalue()
        drawing = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawing[drawing.index("<svg") :])
        return drawing.replace(INK, "currentColor")
    except Exception as error:
        return f"<p>no picture: {html.escape(f'{type(error).__name__}: {error}')}</p>"


def check_place(file: Path):
    """ValueError where `picture` could not write this file, or would replace what is no picture."""
    folder = next((parent for parent in file.parents if os.path.exists(parent)), file)
    there = os.path.exists(file)
    fits = folder.is_dir() and os.access(folder, os.W_OK) and len(file.name) < 200
    if file.suffix != ".png" or not fits or there and not file.is_file():
        raise ValueError(f"{file} is no place for a picture; give a name that ends in .png")


def losses(metrics: list[dict], file: Path) -> bool:
    """Training and validation loss over the steps, from the lines of metrics.jsonl."""

    def draw(axes):
        for key, label, style in (
            ("loss", "train", dict(lw=1, alpha=0.6)),
            ("val_loss", "validation", dict(lw=2, marker="o", ms=3)),
        ):
            points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
            if points:
                axes.plot(*zip(*points), label=label, **style)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=file.parent.name)
        axes.legend()
        axes.grid(alpha=0.3)

    return picture(file, draw)


def panels(keys: list[str], draw: Callable, file: Path) -> bool:
    """A small plot for each key, which draw(key, axes) fills."""
    rows = math.ceil(len(keys) / 5)

    def draw_all(grid):
        grid = np.atleast_1d(grid).flat
        for axes, key in zip(grid, [*keys, *[None] * (5 * rows - len(keys))]):
            if key is None:
                axes.axis("off")
                continue
            draw(key, axes)
            axes.set_title(key, fontsize=8)
            axes.tick_params(labelsize=6)

    return picture(file, draw_all, rows, 5, (14, 2 * rows))


def scores(metrics: list[dict], file: Path) -> bool:
    """What train.py's --eval_tasks put into the lines of metrics.jsonl, over the steps."""
    lines = [m for m in metrics if any(key.startswith("eval_") for key in m)]

    def curve(key, axes):
        points = [(m["step"], m[key]) for m in lines if m.get(key) is not None]
        axes.plot(*zip(*points), marker="o", ms=3)
        axes.set_xlabel("step", fontsize=6)

    keys = [
        key for key in lines[-1] if key.startswith("eval_") and not key.startswith("eval_share_")
    ]
    return panels(keys, curve, file)


def compared(reports: dict[str, dict], file: Path) -> bool:
    """A bar for each report ({path of a run: {key: number}}), in a plot for each key."""
    keys = dict.fromkeys(key for report in reports.values() for key in report)

    def bars(key, axes):
        values = [report.get(key, math.nan) for report in reports.values()]
        axes.bar(range(len(reports)), values, color=[f"C{n}" for n in range(len(reports))])
        axes.set_xticks(range(len(reports)), [Path(name).name for name in reports], fontsize=6)
        axes.set_xlim(-0.5, len(reports) - 0.5)

    return panels([key for key in keys if not key.startswith("share_")], bars, file)


def smooth(values: list[float], memory: float = 0.9) -> list[float]:
    """A running mean of training losses, by which noisy curves can be told apart."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = memory * mean + (1 - memory) * value, memory * weight + 1 - memory
        result.append(mean / weight)
    return result


def curves(runs: dict[str, list[tuple]], file: Path, title: str = "") -> bool:
    """Training loss over seconds: {name: [(seconds, losses) of each seed]}, mean and spread."""

    def draw(axes):
        for number, (name, seeds) in enumerate(runs.items()):
            grid = np.linspace(max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds), 200)
            values = np.array([np.interp(grid, x, y) for x, y in seeds])
            axes.plot(grid, values.mean(0), label=name, color=f"C{number}")
            spread = values.min(0), values.max(0)
            axes.fill_between(grid, *spread, color=f"C{number}", alpha=0.2, lw=0)
        every = [y for seeds in runs.values() for _, y in seeds]
        low, high = min(map(min, every)), max(y[len(y) // 10] for y in every)
        axes.set(
            xlabel="seconds of training",
            ylabel="training loss, running mean (nats per token)",
            title=title,
            ylim=(low - 0.05, high),
        )
        axes.legend()
        axes.grid(alpha=0.3)

    return picture(file, draw)


# --- of a data set, for prepare/report.py ---------------------------------------------------------


def zipf(counts: dict[str, list[int]]) -> str:
    """How often the token of each rank occurs, for each split, as SVG."""

    def draw(axes):
        for split, values in counts.items():
            used = np.sort([n for n in values if n])[::-1]
            ranks = np.unique(np.geomspace(1, len(used), 200).astype(int)) if len(used) else []
            axes.loglog(ranks, [used[rank - 1] for rank in ranks], label=split)
        axes.set(xlabel="rank of the token", ylabel="occurrences")
        axes.legend(framealpha=0)
        axes.grid(alpha=0.2)

    return svg(draw)


def coverage(counts: dict[str, list[int]]) -> str:
    """The share of a split that its commonest tokens make up, as SVG."""

    def draw(axes):
        for split, values in counts.items():
            shares = np.cumsum(np.sort(values)[::-1]) / max(sum(values), 1)
            ranks = np.unique(np.geomspace(1, len(shares), 200).astype(int))
            axes.semilogx(ranks, 100 * shares[ranks - 1], label=split)
        axes.set(xlabel="commonest tokens", ylabel="share of all tokens (%)", ylim=(0, 101))
        axes.legend(framealpha=0)
        axes.grid(alpha=0.2)

    return svg(draw)


def lengths(tokens: dict[str, np.ndarray]) -> str:
    """How long documents are, in tokens, for each split, as SVG."""

    def draw(axes):
        longest = max((int(values.max(initial=1)) for values in tokens.values()), default=1)
        bins = np.geomspace(1, longest + 1, 40)
        for split, values in tokens.items():
            share = np.full(len(values), 100 / max(len(values), 1))
            axes.hist(values, bins, weights=share, histtype="step", label=split)
        axes.set(xscale="log", xlabel="tokens in a document", ylabel="share of documents (%)")
        axes.legend(framealpha=0)
        axes.grid(alpha=0.2)

    return svg(draw)

"""Every picture. If one cannot be drawn, that is reported and the run goes on.

The colours are those of Okabe and Ito, which colour-blind people can tell apart, with a grey in
place of yellow: https://jfly.uni-koeln.de/color/"""

import contextlib
import html
import io
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from parts import figures
from parts.files import write_whole

# An algorithm has the same colour in every picture; other names take one of them, see `looks`.
COLOURS = {
    "adamw": "#0072b2",
    "muon": "#d55e00",
    "schedulefree": "#009e73",
    "cautious": "#56b4e9",
    "soap": "#cc79a7",
    "muon, swiglu": "#e69f00",
    "lion": "#7f7f7f",
    "adam": "#000000",
}
MADE_BY = "nanoNeoX parts/plots.py"  # stands in each picture
STYLES = ("-", "--", ":", "-.")


def looks(names) -> dict[str, dict]:
    """How to draw the line of each name: `color` and `linestyle`. The colour follows from the name
    as far as the other names leave it free; runs that differ in a number at the end (muon.1,
    muon.2) share it, and differ in style."""
    palette, colour, found = list(COLOURS.values()), {}, {}
    bases = {name: re.sub(r"(\.\d+)+$", "", name).replace("_", ", ") for name in names}
    for base in sorted(bases.values(), key=lambda base: base not in COLOURS):
        start = zlib.crc32(base.encode()) % len(palette)
        free = palette[start:] + palette[:start]
        used = list(colour.values())
        colour.setdefault(base, COLOURS.get(base) or min(free, key=used.count))
    for name, base in bases.items():
        before = sum(look["color"] == colour[base] for look in found.values())
        found[name] = {"color": colour[base], "linestyle": STYLES[before % len(STYLES)]}
    return found


def style() -> dict:
    """matplotlib's settings for all pictures, where they are not its own."""
    from matplotlib import cycler

    return {
        "axes.prop_cycle": cycler(color=list(COLOURS.values())),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }


def picture(file: Path, draw: Callable, rows: int = 1, columns: int = 1, size=(8, 5)) -> bool:
    """Write to a PNG file what draw(axes) draws; axes is one, or an array of rows x columns.
    Returns whether that worked."""
    try:
        import matplotlib
        from matplotlib.figure import Figure  # pyplot would take a notebook's pictures away

        with matplotlib.rc_context(style()):
            figure = Figure(size)
            draw(figure.subplots(rows, columns))
            figure.tight_layout()
            file.parent.mkdir(parents=True, exist_ok=True)
            how = dict(format="png", dpi=120, metadata={"Software": MADE_BY})
            write_whole(file, lambda path: figure.savefig(path, **how))
        return True
    except Exception as error:
        tqdm.write(f"no picture {file.name}: {type(error).__name__}: {error}")
        return False


def is_ours(file: Path) -> bool:
    """Whether `picture` has drawn this file."""
    with contextlib.suppress(OSError), open(file, "rb") as png:
        return MADE_BY.encode() in png.read(500)
    return False


INK = "#010203"  # no other colour of a picture; a page's own takes its place


def svg(draw: Callable, size=(6, 3.6)) -> str:
    """What draw(axes) draws, as SVG to put into a page, whose colour of text it takes: so it can be
    read on a light page and on a dark one. Without matplotlib a line that says so."""
    try:
        import matplotlib
        from matplotlib.figure import Figure

        inked = ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")
        look = style() | {f"{name}color": INK for name in inked}
        look |= {"svg.fonttype": "none", "svg.hashsalt": "nanoNeoX"}
        with matplotlib.rc_context(look):
            figure, text = Figure(size), io.StringIO()
            draw(figure.subplots())
            figure.tight_layout()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(text, format="svg", transparent=True, metadata=nothing)
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
        found = {
            key: [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
            for key in ("loss", "val_loss")
        }
        if found["loss"]:
            steps, values = zip(*found["loss"])
            axes.plot(steps, values, color="C0", lw=0.7, alpha=0.35)
            mean = smooth(list(values), 1 - 1 / max(len(values) / 100, 1))
            axes.plot(steps, mean, "C0", lw=1.8, label="train")
        if found["val_loss"]:
            best, step = min((loss, step) for step, loss in found["val_loss"])
            label = f"validation, {found['val_loss'][-1][1]:.3f} now"
            axes.plot(*zip(*found["val_loss"]), color="C1", lw=1.8, marker="o", ms=4, label=label)
            if step < found["val_loss"][-1][0]:
                how = dict(marker="*", ms=14, ls="", label=f"lowest, {best:.3f} at step {step}")
                axes.plot(step, best, "C1", **how)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=file.parent.name)
        axes.legend()

    return picture(file, draw)


def scores(metrics: list[dict], file: Path) -> bool:
    """What train.py's --eval_tasks put into the lines of metrics.jsonl, over the steps: the four
    scores that tell most."""
    lines = [m for m in metrics if any(key.startswith("eval_") for key in m)]
    measured = [key[5:] for key in lines[-1] if key.startswith("eval_")]
    keys = figures.headline(measured, 4)

    def curve(key, axes):
        points = [(m["step"], m[f"eval_{key}"]) for m in lines if m.get(f"eval_{key}") is not None]
        steps, values = zip(*points)
        axes.plot(steps, np.array(values) * figures.figure(key).factor, marker="o", ms=4)
        axes.set_title(figures.described(key), fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])

    def draw(grid):
        for axes in grid.flat[len(keys) :]:
            axes.axis("off")
        for axes, key in zip(grid.flat, keys):
            curve(key, axes)
        grid.flat[0].figure.suptitle(file.parent.name)

    return picture(file, draw, 2, 2, (9, 6))


def compared(curves: dict[str, list], unit: str, bars: dict[str, dict], file: Path) -> bool:
    """Runs side by side, each in one colour: {run: [(tokens read, validation loss)]} in this unit,
    and {score: {run: number}} as bars."""
    look = looks(curves)
    lines = {name: points for name, points in curves.items() if points}

    def draw_losses(axes):
        for name, points in lines.items():
            axes.plot(*zip(*points), label=name, marker="o", ms=3, **look[name])
        axes.set(title="Validation loss", xlabel="tokens read", ylabel=unit)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend()

    def draw_score(title, values, axes):
        colours = [look[name]["color"] for name in values]
        rows = axes.barh(list(values), list(values.values()), color=colours)
        axes.bar_label(rows, fmt="%.4g", padding=3, fontsize=8)
        axes.grid(False)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(values.values()) or 1)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)

    def draw(grid):
        for axes, (title, values) in zip(grid[:, -1], bars.items()):
            draw_score(title, values, axes)
        if lines:  # one panel over the height of all the others
            place = grid[0, 0].get_gridspec()[:, 0]
            figure = grid[0, 0].figure
            for axes in grid[:, 0]:
                axes.remove()
            draw_losses(figure.add_subplot(place))

    columns, rows = bool(lines) + bool(bars), max(len(bars), 1)
    if not columns:
        return False
    size = 6.5 * columns, max(4, 0.25 * rows * (len(curves) + 3))
    return picture(file, lambda axes: draw(np.reshape(axes, (rows, columns))), rows, columns, size)


def smooth(values: list[float], memory: float = 0.9) -> list[float]:
    """A running mean of training losses, by which noisy curves can be told apart."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = memory * mean + (1 - memory) * value, memory * weight + 1 - memory
        result.append(mean / weight)
    return result


def panel(runs: dict[str, list[dict]], x: str, unit: str, title: str) -> Callable:
    """Draws training losses of tools/trials.py's runs, {name: [a run of each seed]}: mean and
    range. x: seconds or tokens."""

    def points(run):
        curve = run["curve"]
        a_step = run["tokens"] / run["steps"] if x == "tokens" else 1
        places = curve["step"] if x == "tokens" else curve["seconds"]
        return [place * a_step for place in places], curve["loss"]

    def draw(axes):
        look = looks(runs) | {"today": {"color": "black", "linestyle": "-"}}
        curves = {name: [points(run) for run in seeds] for name, seeds in runs.items()}
        for name, seeds in curves.items():
            grid = np.linspace(max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds), 200)
            values = np.array([np.interp(grid, x, y) for x, y in seeds])
            axes.plot(grid, values.mean(0), label=name, **look[name])
            spread = values.min(0), values.max(0)
            axes.fill_between(grid, *spread, color=look[name]["color"], alpha=0.15, lw=0)
        every = [y for seeds in curves.values() for _, y in seeds]
        low, high = min(map(min, every)), max(y[len(y) // 10] for y in every)
        axes.set(
            xlabel="tokens read" if x == "tokens" else "seconds of training",
            ylabel=f"training loss, running mean ({unit})",
            title=title,
            ylim=(low - 0.05, high),
        )
        if x == "tokens":
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend()

    return draw


def curves(panels: list[Callable], file: Path) -> bool:
    """What `panel` gives, side by side."""

    def draw(grid):
        for draw_one, axes in zip(panels, np.reshape(grid, -1)):
            draw_one(axes)

    return picture(file, draw, 1, len(panels), (8 if len(panels) == 1 else 12, 5))


def ladder(sizes: dict[str, list], frontier: list, held: dict, marks: dict, file: Path) -> bool:
    """Bits per byte over the FLOPs of a training, both logarithmic.

    sizes: {size: [(FLOPs, bits per byte)]}, frontier: such points of the law, held: those of the
    held-back training as `predicted` and, once it has ended, `result`. marks: {what: FLOPs}."""

    def draw(axes):
        every = [bits for points in sizes.values() for _, bits in points]
        for name, points in sizes.items():
            axes.plot(*zip(*sorted(points)), marker="o", ms=5, lw=0.8, label=name)
        axes.plot(*zip(*frontier), color="black", lw=1.5, label="the law's best size at each point")
        how = dict(marker="*", ms=16, ls="", color="black", zorder=5)
        axes.plot(*held["predicted"], label="held back: predicted", mfc="none", **how)
        if "result" in held:
            axes.plot(*held["result"], label="held back: result", **how | dict(color="#d55e00"))
        axes.set(xscale="log", yscale="log", xlabel="FLOPs of a training", ylabel="bits per byte")
        low = min(bits for _, bits in frontier)
        axes.set_ylim(0.97 * low, 1.03 * max(every))
        for what, flops in marks.items():
            axes.axvline(flops, color="grey", lw=0.8, ls=":")
            how = dict(rotation=90, va="top", ha="right", fontsize=8, color="grey")
            axes.text(flops, 0.99, what, transform=axes.get_xaxis_transform(), **how)
        axes.yaxis.set_major_formatter("{x:.3g}")
        # Between powers of ten too, where there is room.
        axes.yaxis.set_minor_formatter("{x:.3g}" if max(every) < 8 * low else "")
        axes.legend(loc="lower left")

    return picture(file, draw, size=(9, 5.5))


# --- of a data set, for prepare/report.py ---------------------------------------------------------


def zipf(counts: dict[str, list[int]]) -> str:
    """How often the token of each rank occurs, for each split, as SVG."""

    def draw(axes):
        for split, values in counts.items():
            used = np.sort([n for n in values if n])[::-1]
            ranks = np.unique(np.geomspace(1, len(used), 200).astype(int)) if len(used) else []
            axes.loglog(ranks, [used[rank - 1] for rank in ranks], label=split)
        axes.set(xlabel="rank of the token", ylabel="occurrences")
        axes.legend()

    return svg(draw)


def coverage(counts: dict[str, list[int]]) -> str:
    """The share of a split that its commonest tokens make up, as SVG."""

    def draw(axes):
        for split, values in counts.items():
            shares = np.cumsum(np.sort(values)[::-1]) / max(sum(values), 1)
            ranks = np.unique(np.geomspace(1, len(shares), 200).astype(int))
            axes.semilogx(ranks, 100 * shares[ranks - 1], label=split)
        axes.set(xlabel="commonest tokens", ylabel="share of all tokens (%)", ylim=(0, 101))
        axes.legend()

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
        axes.legend()

    return svg(draw)

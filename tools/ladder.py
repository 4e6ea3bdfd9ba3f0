"""A ladder of sizes, and the law that it obeys: leaderboard.py --ladder.

Five sizes, up to the config's, are trained twice each: with some compute, and with 4 times as much.
Each training has a whole schedule of its own, which ends with its last step. Through the ten losses
goes the law of Hoffmann et al. 2022 (https://arxiv.org/abs/2203.15556, eq. 2 and approach 3),

    L(N, D) = E + A / N^alpha + B / D^beta     L bits per byte, N parameters, D tokens

and from it follows, for any compute, which size to train and what it will reach. A training of 4
times the compute of the largest ones tests that: its loss is predicted and recorded first. Losses
after fewer than 80 steps are left out, if six others are there.

What it cannot know: a learning rate that suits each size better than the config's, tokens that are
read twice (the law takes them for new ones), and chance: each point is one seed. The further away,
the less the figures mean; the range beside each is what the law says when any one loss is left
out.
"""

import dataclasses
import math
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from typing_extensions import TypedDict

from model import NeoX, NeoXConfig
from parts import configurator, memory, plots, runs
from parts.files import check_shape, load_json, write_json
from parts.stream import open_dataset
from tools import plan, trials
from tools.law import Law, fit

FRACTIONS = 0.375, 0.5, 0.625, 0.75, 1.0  # of the config's width: what is trained
WIDER = np.geomspace(0.25, 8, 50)  # what may be predicted,
HELD_BACK = WIDER[WIDER < 2]  # and be trained then: a law through chance may want anything
MORE = 4  # times as much compute: the second training of a size, and the one that is held back
FEW = 80  # steps: a loss after fewer says how a training begins, not where it goes
NEEDED = 6  # trainings for a law, one more than it has numbers
TIMED = 12  # steps that show how fast a size trains
COUNTS = {  # what N may be: the one by which the law fits better is taken
    "computing": "all parameters but an input table of its own, which computes nothing",
    "blocks": "the blocks' parameters, without any table",
}


class Shape(NamedTuple):
    n_layer: int
    n_head: int
    n_embd: int
    parameters: int  # all
    computing: int
    blocks: int
    flops: int  # of a token, forward and backward

    @property
    def name(self) -> str:
        return f"{self.n_layer} x {self.n_embd}"

    def settings(self) -> list[str]:
        return [f"--{key}={getattr(self, key)}" for key in ("n_layer", "n_head", "n_embd")]


class Point(TypedDict):
    """A training that has ended."""

    size: str
    parameters: int
    n: int  # N of the law
    steps: int
    tokens: int
    flops: float  # of the whole training
    bits_per_byte: float
    by_law: float
    seconds: float


class Reach(TypedDict):
    """What the law says of some compute: the best size, and the loss."""

    what: str
    flops: float
    size: str
    heads: int
    parameters: int
    tokens: float
    steps: float
    bits_per_byte: float
    least: float  # with any one point left out
    most: float


class Held(Reach):
    result: float | None  # bits per byte, when it has been trained


class Numbers(TypedDict):
    """Of the law."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float


class Power(TypedDict):
    """The frontier as factor * (C / at)^-exponent between two computes, N ~ C^size."""

    factor: float
    at: float
    exponent: float
    size: float
    low: float
    high: float


class Ladder(TypedDict):
    """What a ladder adds to a record."""

    counted: str  # what N is
    fitted: int  # through how many trainings the law goes
    law: Numbers
    error: float  # mean error of the points, a share
    power: Power
    frontier: list[list[float]]  # FLOPs and bits per byte
    points: list[Point]
    reach: list[Reach]
    held: Held
    train_tokens: int  # 0: a stream
    speed: float  # FLOP/s that the largest size's longer training had


# --- the sizes ------------------------------------------------------------------------------------


def shape_at(config: NeoXConfig, fraction: float) -> Shape:
    """The config at a fraction of its width, with heads about as wide, and less deep along with it.
    ValueError where no such model can exist."""
    head, wanted = config.head_dim, fraction * config.n_embd
    heads = max(1, round(wanted / head))
    # The widths of a head nearest to that, even ones, as a turned pair is two; not all can be.
    for width in sorted(range(2, 4 * head + 2, 2), key=lambda width: abs(width - wanted / heads)):
        size = dict(n_layer=max(1, round(fraction * config.n_layer)), n_head=heads)
        try:
            smaller = dataclasses.replace(config, **size, n_embd=heads * width, n_inner=0)
        except ValueError:
            continue
        with torch.device("meta"):
            model = NeoX(smaller)
        sizes = memory.count_parameters(smaller)
        counts = sizes.total, model.num_params(embeddings=False), sizes.blocks
        return Shape(
            **size,
            n_embd=heads * width,
            **dict(zip(Shape._fields[3:], counts)),
            flops=model.flops_per_token(),
        )
    raise ValueError(f"there is no model {fraction:g} times as wide as n_embd={config.n_embd}")


def family(config: NeoXConfig, fractions) -> list[Shape]:
    """The shapes at these fractions, each once, the cheapest first."""
    shapes = {}
    for fraction in fractions:
        shape = shape_at(config, float(fraction))
        shapes[shape.n_layer, shape.n_embd] = shape
    return sorted(shapes.values(), key=lambda shape: shape.flops)


# --- what the law says ----------------------------------------------------------------------------


class Laws:
    """The law through all points, and those through all but one, which show how sure it is."""

    def __init__(self, shapes: list[Shape], tokens: list[float], losses: list[float]):
        fits = {
            count: fit([getattr(shape, count) for shape in shapes], tokens, losses)
            for count in COUNTS
        }
        self.count = min(fits, key=lambda count: fits[count][1])
        self.law = fits[self.count][0]
        n = [getattr(shape, self.count) for shape in shapes]
        by_law = [self.law.loss(*where) for where in zip(n, tokens)]
        self.error = statistics.mean(abs(a / b - 1) for a, b in zip(by_law, losses))
        self.others = []
        for out in range(len(n)):
            kept = [[v for i, v in enumerate(one) if i != out] for one in (n, tokens, losses)]
            self.others.append(fit(*kept, starts=3)[0])

    def loss(self, shape: Shape, tokens: float, law: Law | None = None) -> float:
        return float((law or self.law).loss(getattr(shape, self.count), tokens))

    def best(self, shapes: list[Shape], flops: float) -> Shape:
        """The shape that is predicted to reach the lowest loss with this compute."""
        return min(shapes, key=lambda shape: self.loss(shape, flops / shape.flops))

    def reach(self, what: str, shapes: list[Shape], flops: float, a_step: int) -> Reach:
        shape = self.best(shapes, flops)
        tokens = flops / shape.flops
        others = [self.loss(shape, tokens, law) for law in self.others]
        return Reach(
            what=what,
            flops=flops,
            size=shape.name,
            heads=shape.n_head,
            parameters=shape.parameters,
            tokens=tokens,
            steps=tokens / a_step,
            bits_per_byte=self.loss(shape, tokens),
            least=min(others),
            most=max(others),
        )

    def power(self, shapes: list[Shape], low: float, high: float) -> Power:
        """The frontier between two computes as a power law (Kaplan et al. 2020,
        https://arxiv.org/abs/2001.08361): a straight line through the logarithms."""
        compute = np.geomspace(low, high, 60)
        best = [self.best(shapes, c) for c in compute]
        losses = [self.loss(shape, c / shape.flops) for shape, c in zip(best, compute)]
        at = float(np.sqrt(low * high))
        slope, log = np.polyfit(np.log(compute / at), np.log(losses), 1)
        size = np.polyfit(np.log(compute), np.log([shape.parameters for shape in best]), 1)[0]
        power = dict(factor=np.exp(log), at=at, exponent=-slope, size=size, low=low, high=high)
        return {key: float(value) for key, value in power.items()}


# --- the trainings --------------------------------------------------------------------------------


def climb(cfg, board: trials.Board) -> trials.Record:
    """Train the ladder, fit the law, predict, train what was held back."""
    if not cfg.minutes and not trials.given("max_iters"):
        configurator.die(
            "give --minutes=M of training in all, or --max_iters=N, the largest size's most steps"
        )
    if cfg.minutes and trials.given("max_iters"):
        configurator.die("--minutes and --max_iters are two ways to say how long; give one of them")
    with configurator.mistakes():
        dataset = open_dataset(cfg.dataset, cfg.block_size)
        cfg.vocab_size = cfg.vocab_size or dataset.vocab_size
        config = NeoXConfig(**runs.model_settings(cfg))
        rungs = family(config, FRACTIONS)
        record = trials.begin(
            "ladder", f"{Path(cfg.dataset).name}, sizes up to {rungs[-1].name}", cfg
        )
    if len(rungs) < 4:
        sizes = ", ".join(shape.name for shape in rungs)
        configurator.die(f"a ladder needs four sizes, and of this config there are {sizes}")
    a_step = cfg.batch_size * cfg.grad_accum * cfg.block_size
    arguments = trials.precise(cfg)
    compute = first_compute(cfg, board, rungs, arguments, a_step)
    warn(cfg, rungs, compute, a_step)
    trained = []
    for flops in (compute, MORE * compute):
        for shape in rungs:
            trained.append(train_shape(shape, flops, board, arguments, a_step))
    shapes = family(config, WIDER)
    laws = Laws(*fitted(rungs * 2, trained))
    for shape, point in zip(rungs * 2, trained):
        point["n"] = getattr(shape, laws.count)
        point["by_law"] = laws.loss(shape, point["tokens"])
    speed = trained[-1]["flops"] / trained[-1]["seconds"]
    near = family(config, HELD_BACK)
    record["ladder"] = said_by(laws, trained, shapes, near, speed, a_step)
    record["ladder"]["train_tokens"] = 0 if "stream" in dataset.meta else len(dataset.train)
    predict_then_train(cfg, board, record, near, arguments, a_step)
    return record


def fitted(shapes: list[Shape], trained: list[Point]) -> tuple[list, list, list]:
    """Through what the law goes: shapes, tokens, losses. Those of FEW steps or more, if NEEDED
    such are there, else all."""
    enough = [at for at, point in enumerate(trained) if point["steps"] >= FEW]
    kept = enough if len(enough) >= NEEDED else range(len(trained))
    points = [trained[at] for at in kept]
    tokens, losses = ([point[key] for point in points] for key in ("tokens", "bits_per_byte"))
    return [shapes[at] for at in kept], tokens, losses


def first_compute(cfg, board, rungs: list[Shape], arguments: list[str], a_step: int) -> float:
    """FLOPs of a size's shorter training, so that all of them take the minutes that were asked for.
    What was measured for that is kept, as a ladder that goes on needs the same steps."""
    if not cfg.minutes:
        return cfg.max_iters * a_step * rungs[-1].flops / MORE
    file = board.folder and board.folder / "ladder.json"
    depends = file and board.depends("ladder", cfg.minutes, *arguments)
    if file and file.exists():
        with configurator.mistakes():
            before = load_json(file, dict[str, str | float])
        if before.get("depends") == depends:
            return float(before["compute"])
    cost = []  # seconds for each FLOP
    for shape in rungs:
        how = [*arguments, *shape.settings(), *trials.by_steps(TIMED), "--eval_iters=1"]
        with tempfile.TemporaryDirectory() as folder:
            _, seconds, _ = trials.curve(trials.train_once(shape.name, how, Path(folder, "run")))
        step = statistics.median(b - a for a, b in zip(seconds[2:], seconds[3:]))
        tqdm.write(f"{shape.name:<16} {short(shape.parameters)}, {1000 * step:.0f} ms a step")
        cost.append(step / a_step / shape.flops)
    compute = 60 * cfg.minutes / ((1 + MORE) * sum(cost) + MORE**2 * cost[-1])
    if file:
        write_json(file, {"depends": depends, "compute": compute})
    return compute


def warn(cfg, rungs: list[Shape], compute: float, a_step: int):
    """Say what is coming, and what would make it useless. Ends the script where nothing remains."""
    fewest, most = (round(compute / shape.flops / a_step) for shape in (rungs[-1], rungs[0]))
    if fewest < 2:
        configurator.die(f"only {fewest} steps remain for {rungs[-1].name}; train for longer")
    tqdm.write(
        f"{2 * len(rungs)} trainings: {fewest:,} steps of {rungs[-1].name} to {MORE * most:,} of "
        f"{rungs[0].name}; then one of {MORE * MORE * compute:.2e} FLOPs"
    )
    if fewest < FEW:
        tqdm.write(
            f"note: {fewest} steps are too few for a law to rely on; train for longer, or take "
            "a smaller model or smaller batches"
        )


def train_shape(shape: Shape, flops: float, board, arguments: list[str], a_step: int) -> Point:
    """A training with about so much compute, to the end of its schedule."""
    steps = max(1, round(flops / shape.flops / a_step))
    how = [*arguments, *shape.settings(), *trials.by_steps(steps)]
    metrics = board.run(f"{shape.name}, {steps} steps", 1, how)
    bits = trials.last(metrics, "bits_per_byte")
    if not math.isfinite(bits):
        configurator.die(f"{shape.name} has no loss after {steps} steps: a lower --lr may help")
    tokens = trials.last(metrics, "tokens")
    return Point(
        size=shape.name,
        parameters=shape.parameters,
        n=0,
        steps=steps,
        tokens=tokens,
        flops=float(tokens * shape.flops),
        bits_per_byte=bits,
        by_law=0.0,
        seconds=trials.last(metrics, "elapsed"),
    )


def said_by(
    laws: Laws, trained: list[Point], shapes: list[Shape], near: list[Shape], speed, a_step: int
) -> dict:
    """The law, its frontier, and what it says of an hour here or elsewhere; and of the training
    that is held back, whose shape is one of `near`. speed: FLOP/s here."""
    flops = [point["flops"] for point in trained]
    t4 = plan.GPUS["t4"].peaks["float16"]
    budgets = {
        "five minutes here": 300 * speed,
        "an hour here": 3600 * speed,
        "a day here": 86400 * speed,
    }
    for share in plan.SHARE:
        budgets[f"an hour on a T4 at {share:.0%} of {t4 / 1e12:.0f} TFLOP/s"] = 3600 * share * t4
    reach = [laws.reach(what, shapes, compute, a_step) for what, compute in budgets.items()]
    held = laws.reach("held back", near, MORE * max(flops), a_step)
    ends = min(flops), max([MORE * max(flops), *budgets.values()])
    frontier = [(c, laws.best(shapes, c)) for c in np.geomspace(*ends, 80).tolist()]
    return dict(
        counted=COUNTS[laws.count],
        fitted=len(laws.others),
        law=laws.law._asdict(),
        error=laws.error,
        power=laws.power(shapes, min(flops), held["flops"]),
        frontier=[[float(f"{c:.5g}"), round(laws.loss(s, c / s.flops), 5)] for c, s in frontier],
        points=trained,
        reach=reach,
        held=held | {"result": None},
        speed=speed,
    )


def predict_then_train(
    cfg, board, record: trials.Record, shapes, arguments: list[str], a_step: int
):
    """Record what is predicted of the held-back training, then train it, then record the result."""
    held, file = record["ladder"]["held"], trials.record_file(cfg, "ladder")
    notes = configurator.ROOT / cfg.record
    trials.set_aside(file)
    trials.write_record(record, file)
    trials.append(report(record), notes)
    print(prediction(record["ladder"]))
    shape = next(shape for shape in shapes if shape.name == held["size"])
    held["result"] = train_shape(shape, held["flops"], board, arguments, a_step)["bits_per_byte"]
    trials.write_record(record, file)
    trials.append(f"{outcome(held)}\n\n", notes)


# --- the report -----------------------------------------------------------------------------------


def check(record: trials.Record):
    """ValueError if the record lacks what a ladder has."""
    check_shape(record.get("ladder"), "the record", Ladder)
    for key in ("points", "frontier"):
        if not record["ladder"][key]:
            raise ValueError(f"the record is damaged: it has no {key}")


def short(count: float) -> str:
    """4.21M, 57.3k."""
    return f"{count / 1e6:,.2f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def again(tokens: float, there: int) -> str:
    """How often the text is read, where that is more than once. there: its tokens, 0 if they never
    end."""
    return f", {tokens / there:.1f} times the data" if there and tokens > there else ""


def prediction(found: Ladder) -> str:
    held = found["held"]
    return (
        f"- held back, predicted before it was trained: {held['size']}, "
        f"{short(held['parameters'])} parameters, {held['steps']:,.0f} steps"
        f"{again(held['tokens'], found['train_tokens'])}, {held['flops']:.2e} FLOPs: "
        f"**{held['bits_per_byte']:.4f}** bits per byte ({held['least']:.4f} to {held['most']:.4f})"
    )


def outcome(held: Held) -> str:
    if not held["result"]:
        return "- and reached: not trained yet"
    error = held["bits_per_byte"] / held["result"] - 1
    return f"- and reached: **{held['result']:.4f}**; the prediction is off by {100 * error:+.2f} %"


def report(record: trials.Record) -> str:
    """The record in Markdown."""
    found = record["ladder"]
    law, power, through = found["law"], found["power"], "all"
    if found["fitted"] < len(found["points"]):
        through = f"the {found['fitted']} longest of the"
    lines = [
        f"### {record['date']}: {record['title']}\n",
        f"- command: `{record['command']}`",
        f"- machine: {record['machine']}; {found['speed'] / 1e9:,.1f} GFLOP/s in training",
        f"- law: L = {law['E']:.3f} + {law['A']:.4g} / N^{law['alpha']:.3f} + {law['B']:.4g} / "
        f"D^{law['beta']:.3f} bits per byte. N: {found['counted']}; D: tokens. It goes through "
        f"{through} {len(found['points'])} trainings, {found['error']:.2%} off (mean)",
        f"- frontier: L = {power['factor']:.3f} (C / {power['at']:.2e})^-{power['exponent']:.4f} "
        f"from {power['low']:.1e} to {power['high']:.1e} FLOPs, with parameters as "
        f"C^{power['size']:.2f}\n",
        trained_table(found["points"]),
        reach_table(found["reach"], found["train_tokens"]),
        prediction(found),
    ]
    lines += [outcome(found["held"])] if found["held"]["result"] else []
    return "\n".join(lines) + "\n"


def trained_table(points: list[Point]) -> str:
    columns = ["size", "parameters", "N", "steps", "tokens", "FLOPs", "bits per byte", "by the law"]
    rows = [
        [
            point["size"],
            short(point["parameters"]),
            short(point["n"]),
            f"{point['steps']:,}",
            short(point["tokens"]),
            f"{point['flops']:.2e}",
            f"{point['bits_per_byte']:.4f}",
            f"{point['by_law']:.4f}",
        ]
        for point in points
    ]
    return trials.table(columns, rows)


def reach_table(reach: list[Reach], there: int) -> str:
    columns = ["compute", "FLOPs", "train (layers x width)", "heads", "parameters", "tokens"]
    columns += ["steps", "bits per byte", "range"]
    rows = []
    for one in reach:
        row = [one["what"], f"{one['flops']:.2e}", one["size"], f"{one['heads']}"]
        row += [short(one["parameters"]), short(one["tokens"]) + again(one["tokens"], there)]
        row += [f"{one['steps']:,.0f}", f"{one['bits_per_byte']:.3f}"]
        rows.append([*row, f"{one['least']:.3f} to {one['most']:.3f}"])
    return trials.table(columns, rows)


def draw(record: trials.Record, file: Path) -> bool:
    found = record["ladder"]
    sizes = {}
    for point in found["points"]:
        name = f"{point['size']}, {short(point['parameters'])}"
        sizes.setdefault(name, []).append((point["flops"], point["bits_per_byte"]))
    held = {"predicted": (found["held"]["flops"], found["held"]["bits_per_byte"])}
    if found["held"]["result"] is not None:
        held["result"] = found["held"]["flops"], found["held"]["result"]
    marks = {one["what"].partition(" of ")[0]: one["flops"] for one in found["reach"]}
    return plots.ladder(sizes, found["frontier"], held, marks, file)

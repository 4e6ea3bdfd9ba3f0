"""Does a student learn as much from generated text as from clean text? An experiment.

    python tools/clean_or_generated.py                      # about 15 minutes on two cores
    python tools/clean_or_generated.py --tokens=50_000 --seeds=1 --out=out/trial

A teacher (the quickstart makes one) writes a stream. A student (config/teacher_cpu.py) learns from
it; others learn from as many tokens of clean text, and from clean text for as long as writing and
learning took together. All are then asked for their loss on held-out text of both kinds. Who sees
each student's loss on its own kind only may think that generated text teaches better: it is merely
easier to predict.

All seeds learn from the same stream. Whatever is there already is not made again, so an experiment
that was interrupted goes on. docs/RESULTS.md has what came out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import child, run_script

import shutil
import statistics
import subprocess
import time

import numpy as np

import tasks
from parts import configurator, plots, runs, segments
from parts.configurator import ROOT
from parts.files import load_json, read_json, write_json
from parts.runs import read_metrics
from parts.stream import open_dataset

EARLY = 31  # the step at which a notebook found 3.53 on generated text and 6.70 on clean text
HELD_OUT = 100_000  # tokens of each kind on which losses are taken, at most
STUDENTS = {
    "generated": "generated text",
    "clean": "clean text, equal tokens",
    "longer": "clean text, equal time",
}


class Settings:
    ckpt = "out/python_cpu"  # the teacher
    clean = "python"  # the data set of clean text, in the teacher's tokens
    config = "config/teacher_cpu.py"  # the student
    tokens = 300_000  # that the teacher writes and a student learns from
    seeds = 3  # students of each kind
    out = "out/clean_or_generated"  # a folder for the students; the streams are beside it in data/
    plot = "docs/pictures/clean_or_generated.png"  # where to draw the curves
    port = 8017  # of the teacher


class Experiment:
    """What was made so far: experiment.json in a folder of its own, and what lies beside it."""

    def __init__(self, cfg):
        self.cfg, self.out = cfg, configurator.locate(cfg.out)
        self.file = self.out / "experiment.json"
        about = {key: getattr(cfg, key) for key in ("ckpt", "clean", "config", "tokens")}
        self.found = load_json(self.file) if self.file.exists() else {"about": about}
        if self.found["about"] != about:
            raise ValueError(f"{self.file} is about {self.found['about']}; choose another --out")
        name = ROOT / "data" / self.out.name
        self.generated, self.held_out = (Path(f"{name}_{what}") for what in ("generated", "held"))

    def note(self, key: str, value):
        self.found[key] = value
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.found)

    def write(self):
        """Let the teacher write two streams: one whose validation split is held-out text of its
        own, and one to learn from, whose validation split is the clean set's."""
        if has_ended(self.generated):
            return
        begun = (self.generated / "stream.json").exists()
        # One that goes on must not write the same texts again.
        seed = 1 + (segments.read(self.generated)["tokens"] if begun else 0)
        command = python("prepare/teacher.py", f"--ckpt={self.cfg.ckpt}")
        command += [f"--port={self.cfg.port}", f"--seed={seed}"]
        with child(command, stdout=subprocess.PIPE, stderr=None) as teacher:
            line = teacher.stdout.readline().strip()
            if not line:
                configurator.die("the teacher did not start; the lines above say why")
            print(line)
            source = [f"--source={line.split()[-1]}", f"--tokenizer={self.cfg.ckpt}"]
            if not has_ended(self.held_out):
                shutil.rmtree(self.held_out, ignore_errors=True)  # an unfinished one of ours
                size = ["--val_mb=0.15", "--max_mb=0.2", "--segment_tokens=4096"]
                do("prepare/stream.py", *source, *size, f"--out={self.held_out}")
            val = read_json(self.held_out / "meta.json")["val"]
            # The cleaning drops some texts.
            size = 1.2 * self.cfg.tokens * val["bytes"] / val["tokens"] / 1e6
            more = [f"--val={self.cfg.clean}", f"--max_mb={size:.3f}", "--segment_tokens=65536"]
            began, before = time.monotonic(), self.found.get("seconds_of_writing", 0.0)
            try:
                do("prepare/stream.py", *source, *more, f"--out={self.generated}")
            finally:
                self.note("seconds_of_writing", before + time.monotonic() - began)

    def steps(self) -> int:
        """Of a student that learns from so many tokens as were asked for, or as there are."""
        student = configurator.read_config(self.cfg.config)
        context, rows = student["block_size"], student["batch_size"]
        listed = segments.read(self.generated)["segments"]
        there = sum((one["tokens"] - 1) // context for one in listed)
        return min(self.cfg.tokens // context, there) // rows

    def train(self, kind: str, seed: int, steps: int):
        """Train a student, and note its losses on clean and on generated held-out text."""
        name = f"{kind}_{seed}"
        if name in self.found:
            return
        data = self.generated if kind == "generated" else self.cfg.clean
        how = [f"--max_iters={steps}", "--eval_interval=25"]
        if kind == "longer":
            learning = [seconds(self.curve(f"generated_{n}")) for n in range(self.cfg.seeds)]
            minutes = (self.found["seconds_of_writing"] + statistics.mean(learning)) / 60
            how = ["--max_iters=1_000_000", f"--max_train_minutes={minutes:.3f}"]
            how += ["--eval_interval=100"]
        how += [f"--seed={seed}", "--log_interval=1", "--eval_tasks=", "--sample_prompt="]
        place = f"--out_dir={self.out / name}"
        do("train.py", self.cfg.config, f"--dataset={data}", place, *how)
        model, tokenizer, _ = runs.load(str(self.out / name), "cpu")
        losses = {}
        for text, dataset in ("clean", self.cfg.clean), ("generated", str(self.held_out)):
            held = open_dataset(dataset)
            options = tasks.Options(show=0)
            tokens = np.array(held.val[:HELD_OUT])
            exam = tasks.Exam("loss", tokenizer, tokens, held.meta, options)
            losses[text] = exam.measure(model)["loss"]
        self.note(name, losses)

    def curve(self, name: str) -> list[dict]:
        return read_metrics(self.out / name, sys.maxsize)

    def seeds(self, kind: str) -> list[str]:
        return [f"{kind}_{seed}" for seed in range(self.cfg.seeds)]


def python(script: str, *args: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *args]


def do(script: str, *args: str):
    """Run a script to its end. Ends this one if that goes wrong."""
    with child(python(script, *args), stderr=None) as process:
        if process.wait():
            configurator.die(f"{script} ended with exit code {process.returncode}")


def has_ended(folder: Path) -> bool:
    return (folder / "stream.json").exists() and segments.read(folder)["ended"]


def seconds(metrics: list[dict]) -> float:
    return max(line.get("elapsed", 0.0) for line in metrics)


def loss_at(metrics: list[dict], step: int) -> float:
    """The training loss of a step, or of the last one before it."""
    return [line["loss"] for line in metrics if "loss" in line and line["step"] <= step][-1]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def report(experiment: Experiment):
    print(f"\n{'student of':26}{'clean held-out':>24}{'generated held-out':>24}{'tokens':>12}")
    for kind, name in STUDENTS.items():
        losses = [experiment.found[one] for one in experiment.seeds(kind)]
        cells = [spread([loss[text] for loss in losses]) for text in ("clean", "generated")]
        curves = [experiment.curve(one) for one in experiment.seeds(kind)]
        last = [max(line.get("tokens", 0) for line in curve) for curve in curves]
        print(f"{name:26}{cells[0]:>24}{cells[1]:>24}{statistics.mean(last):>12,.0f}")
    own = []
    for kind in ("generated", "clean"):
        curves = [experiment.curve(one) for one in experiment.seeds(kind)]
        own.append(spread([loss_at(curve, EARLY) for curve in curves]))
    print(f"training loss at step {EARLY}, on their own kind: generated {own[0]}, clean {own[1]}")
    print(f"the teacher wrote for {experiment.found['seconds_of_writing']:.0f} s")


def draw(experiment: Experiment, file: Path):
    def each(axes):
        own, clean = axes
        for number, (kind, name) in enumerate(STUDENTS.items()):
            for seed, one in enumerate(experiment.seeds(kind)):
                metrics = experiment.curve(one)
                how = dict(color=f"C{number}", label=None if seed else name, alpha=0.8)
                lines = [m for m in metrics if "loss" in m]
                tokens = [m["tokens"] for m in lines]
                if kind != "longer":
                    own.plot(tokens, plots.smooth([m["loss"] for m in lines]), **how)
                step = tokens[0] // lines[0]["step"]
                held = [(m["step"] * step, m["val_loss"]) for m in metrics if m.get("val_loss")]
                clean.plot(*zip(*held[1:]), marker="o", ms=3, **how)
        own.set(title="training loss, each on its own kind of text", ylabel="nats per token")
        clean.set(title="loss on clean held-out text", xscale="log")
        for one in axes:
            one.set_xlabel("tokens")
            one.legend()

    if plots.picture(file, each, 1, 2, (11, 4.5)):
        print(f"drawn in {file}")


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("tokens", "seeds"))
    with configurator.mistakes():
        experiment = Experiment(cfg)
        plots.check_place(file := configurator.locate(cfg.plot))
    experiment.write()
    steps = experiment.steps()
    for seed in range(cfg.seeds):  # in turn, as machines get slower and faster
        for kind in ("generated", "clean"):
            experiment.train(kind, seed, steps)
    for seed in range(cfg.seeds):
        experiment.train("longer", seed, steps)
    report(experiment)
    draw(experiment, file)


if __name__ == "__main__":
    run_script(main)

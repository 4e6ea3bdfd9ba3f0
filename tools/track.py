"""Send a run to MLflow or Weights & Biases: whatever its folder holds and the tracker lacks.

    python train.py config/python_cpu.py --mlflow --wandb    # starts this, to follow the training
    python tools/track.py --run=out/python_cpu --to=mlflow   # later: send what is missing

It reads run.json, metrics.jsonl, eval.json, the plots, the checkpoint and the exported model.
mlflow.json and wandb.json in the folder say which run it is there, so that a resumed training
continues it, and what was sent.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script, say

import contextlib
import os
import tempfile
import threading
import time

from typing_extensions import NotRequired, TypedDict

from parts import configurator
from parts.files import load_json, parse_json, read_json, read_lines, write_json
from parts.tracking import TRACKERS, complain, finite_numbers

FILES = ("run.json", "metrics.jsonl", "eval.json", "loss.png", "scores.png", "ckpt.pt")
EXPORT = ("config.json", "generation_config.json", "model.safetensors", "README.md")
EXPORT += ("tokenizer.json", "tokenizer_config.json", "modeling_nanoneox.py")


class Settings:
    run = ""  # a run's folder
    to = "mlflow"  # mlflow or wandb


class About(TypedDict):
    """run.json, as far as trackers show it."""

    settings: dict
    git: dict
    versions: dict
    data: dict[str, dict]
    began: NotRequired[float]
    exported: NotRequired[dict]


class Line(TypedDict):
    """A line of metrics.jsonl."""

    step: int
    time: NotRequired[float]
    elapsed: NotRequired[float]
    sample: NotRequired[str]


class State(TypedDict, total=False):
    """What <tracker>.json says."""

    id: str  # of the run there
    place: str  # where that is, and how to see it
    sent: dict[str, int]  # the last step of each kind of line
    files: dict[str, float]  # when each was changed
    trouble: str


class Follower:
    """Sends a run's folder to one tracker, and keeps in <tracker>.json what it has sent."""

    def __init__(self, out: Path, name: str, about: dict):
        """about: what run.json says."""
        self.out, self.name, self.file = out, name, out / f"{name}.json"
        self.about, self.params = about, parameters(about)
        self.tracker, self.state = None, read_json(self.file)
        self.output, self.errors = None, sys.stderr
        self.how, self.ended = "finished", threading.Event()
        self.telling = threading.Lock()  # a trouble is told and kept, so that nobody tells it again
        # Trackers leave their temporary files behind when `leave` ends the process.
        self.temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        if self.state.pop("trouble", None):  # an earlier process had it
            self.save()

    def follow(self):
        """Send what is new every five seconds, until the training has ended."""
        self.yield_to_training()
        threading.Thread(target=self.listen, daemon=True).start()
        pause = 0
        while not self.ended.wait(pause):
            pause = 5 if self.send() else 30

    def yield_to_training(self):
        """Run at a low priority, and let nothing but our own lines through to the terminal."""
        self.output, self.errors = (os.fdopen(os.dup(n), "w", encoding="utf-8") for n in (1, 2))
        for standard in (1, 2):  # what trackers print would break up the training's progress bar
            os.dup2(os.open(os.devnull, os.O_WRONLY), standard)
        if hasattr(os, "nice"):
            os.nice(10)
            # Linux shares time equally among sessions, whatever the niceness of their processes.
            with contextlib.suppress(OSError):
                Path("/proc/self/autogroup").write_text("10")

    def listen(self):
        """Wait for the line that says how the training ended and how many seconds are left; when
        they are over, end the process. Without a line the training was killed."""
        how, seconds = sys.stdin.readline().split() or ["killed", "600"]
        self.how = how
        self.ended.set()
        time.sleep(float(seconds))
        with self.telling:
            self.leave(1)

    def send(self, last: bool = False) -> bool:
        """Send what is new; the last time the files too. False if that failed, which is reported
        once; the next call tries again."""
        try:
            if self.tracker is None:
                self.connect()
            self.send_records()
            if last and self.how != "stopped":
                self.send_files()
            if last:
                self.state["place"] = self.tracker.place()
                self.tracker.close(self.how, times(self.out, self.about)[1])
            self.state.pop("trouble", None)
        except (Exception, SystemExit) as error:  # trackers raise anything
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, ImportError):
                why = f"pip install -r requirements-track.txt ({error})"
            with self.telling:
                if "trouble" not in self.state:
                    complain(self.name, self.out, why, self.errors)
                self.state["trouble"] = why
                self.save()
        self.save()
        return "trouble" not in self.state

    def connect(self):
        known, (began, _) = self.state.get("id"), times(self.out, self.about)
        how = (self.params, known, began, self.temporary.name)
        self.tracker = TRACKERS[self.name](self.out.name, *how)
        if self.tracker.id != known:
            self.state = {"id": self.tracker.id}  # a new run, which holds nothing yet
        if self.output and not self.ended.is_set() and (see := self.tracker.see()):
            clear = "\r\033[K" if self.output.isatty() else ""  # the progress bar is on this line
            print(
                f"{clear}to see {self.out.name} in {self.name}: {see}", file=self.output, flush=True
            )

    def send_records(self):
        sent = dict(self.state.get("sent", {}))  # a copy, since the tracker may fail
        self.tracker.log(new_records(self.out / "metrics.jsonl", sent))
        self.state["sent"] = sent

    def send_files(self):
        """Send the files that have changed, and the exported model if any part of it has."""
        out, step = self.out, max(self.state["sent"].values(), default=0)
        exported = read_json(out / "run.json").get("exported", {})
        there = [name for name in FILES + EXPORT if (out / name).is_file()]
        stamps = {name: (out / name).stat().st_mtime for name in there}
        before = self.state.get("files", {})
        changed = [name for name in there if before.get(name) != stamps[name]]
        paths = [out / name for name in FILES if name in changed]
        export = []
        if "model.safetensors" in there and set(EXPORT) & set(changed):
            export = [out / name for name in EXPORT if name in there]
        if "eval.json" in changed:
            self.tracker.summary(scores(read_json(out / "eval.json")), step)
        if paths or export:
            self.tracker.files(paths, export, exported.get("step", step))
        self.state["files"] = stamps

    def save(self):
        with contextlib.suppress(OSError):
            write_json(self.file, self.state)

    def leave(self, code: int):
        """End the process at once, whatever a tracker's threads are waiting for."""
        self.temporary.cleanup()
        os._exit(code)


def parameters(about: dict) -> dict:
    """What run.json says, flat, as trackers show it: settings, git.*, versions.*, data.*."""
    params = dict(about["settings"])
    for part in ("git", "versions"):
        params |= {f"{part}.{key}": str(value) for key, value in about[part].items()}
    for split, values in about["data"].items():
        params |= {f"data.{split}.{key}": value for key, value in values.items()}
    return params


def times(out: Path, about: dict) -> tuple[float, float]:
    """When the training in a folder began and when it wrote its last line, in seconds since 1970.
    The files of older versions do not say it."""
    file = out / "metrics.jsonl"
    written, lines = file.stat().st_mtime, read_lines(file, Line)[0]
    ended = lines[-1].get("time", written) if lines else written
    elapsed = max((line.get("elapsed", 0) for line in lines), default=0)
    return about.get("began", ended - elapsed), ended


def new_records(file: Path, sent: dict[str, int]) -> list[dict]:
    """The lines of metrics.jsonl after those in `sent`, which is updated: the last step of each
    kind of line, by the line's first key. A line without "elapsed", such as an evaluation's, gets
    that of the line before, so that it can be drawn over time too."""
    records, elapsed = [], 0.0
    # What follows the last newline is empty, or half a line that is being written.
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            record = parse_json(line, file, Line)
        except ValueError:  # damaged
            continue
        kind = next((key for key in record if key != "step"), "")
        elapsed = record.setdefault("elapsed", elapsed)
        if record["step"] > sent.get(kind, -1):
            sent[kind] = record["step"]
            records.append(record)
    return records


def scores(report: dict) -> dict:
    """The numbers of an eval.json, as metrics."""
    return {f"eval_{key}": value for key, value in finite_numbers(report).items()}


def main():
    # parts/tracking.py says "follow" first, and later how the training ended, on standard input.
    following = sys.argv[1:2] == ["follow"]
    cfg = configurator.load(Settings, sys.argv[1 + following :])
    configurator.require(cfg, to=list(TRACKERS))
    out = configurator.locate(cfg.run).resolve()
    there = all(os.path.isfile(out / name) for name in ("run.json", "metrics.jsonl"))
    if not cfg.run or not there:
        configurator.die(
            f"--run={cfg.run} is not a run's folder with a run.json and a metrics.jsonl; train.py "
            "makes one"
        )
    with configurator.mistakes():
        about, state = load_json(out / "run.json", About), out / f"{cfg.to}.json"
        if "dataset" not in about["settings"] or not about["data"].keys() >= {"train", "val"}:
            raise ValueError(f"{out / 'run.json'} is damaged: it does not name the data set")
        if state.is_file():
            load_json(state, State)
    follower = Follower(out, cfg.to, about)
    try:
        if following:
            follower.follow()
        done = follower.send(last=True)
    except KeyboardInterrupt:
        say("interrupted")
        follower.leave(130)
    if done and not following:
        print(f"all of {out} is {follower.state['place']}", flush=True)
    follower.leave(0 if done else 1)


if __name__ == "__main__":
    run_script(main)

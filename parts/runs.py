"""A run's folder: checkpoints, metrics, resuming; the clock and the stop signal of a training.

out/<run>/ holds ckpt.pt and older ones (ckpt.1.pt, ...), run.json (settings, versions, commit, data
hashes), metrics.jsonl (a line for each log step: the source of every plot and tracker), loss.png,
and the exported Hugging Face folder. Nothing in it is ever executed.
"""

import contextlib
import json
import math
import os
import pickle  # for the name of an error
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from model import NeoX, NeoXConfig
from parts import configurator, distributed, hf, plots
from parts import tokenizer as tokenization
from parts.data import Dataset
from parts.files import write_json, write_text, write_whole
from parts.tokenizer import Tokenizer

# --- checkpoints ----------------------------------------------------------------------------------


def load_checkpoint(path: Path) -> dict:
    """The dict that train.py saved: plain values and tensors, nothing in it is executed.

    ValueError if it is damaged or no checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes checksums, but does not read them
        if damaged:
            raise EOFError(f"{damaged} in it is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint, it may be cut short: {reason}"
        ) from None


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run's folder, newest first: ckpt.pt, ckpt.1.pt, ..."""
    older = [file for file in out.glob("ckpt.*.pt") if file.suffixes[0][1:].isdigit()]
    newest = [file for file in (out / "ckpt.pt",) if file.is_file()]
    return newest + sorted(older, key=lambda file: int(file.suffixes[0][1:]))


def newest_checkpoint(out: Path) -> tuple[dict, Path]:
    """The newest checkpoint that is whole, and its file. ValueError if there is none."""
    files = checkpoints(out)
    if not files:
        raise ValueError(
            f"there is nothing to resume: {out / 'ckpt.pt'} does not exist; "
            "leave --init_from out to start"
        )
    for file, older in zip(files, [*files[1:], None]):
        try:
            return load_checkpoint(file), file
        except ValueError as error:
            if not older:
                raise
            print(f"{error}; going on from {older.name}")


def model_from(checkpoint: dict) -> NeoX:
    """The model in a checkpoint. ValueError where its weights do not fit its own settings."""
    try:
        model = NeoX(NeoXConfig(**checkpoint["model_config"]))
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint does not hold a NeoX model of its own settings: {error!r}"
        ) from None
    return model


# --- models to use --------------------------------------------------------------------------------


class Loaded(NamedTuple):
    model: NeoX  # on the device, in evaluation mode
    tokenizer: Tokenizer
    folder: Path  # where they come from


def load_model(path: str | Path) -> NeoX:
    """The model of a run's folder, of one checkpoint file, or of what `hf.from_pretrained` knows by
    that name. ValueError or OSError says what is wrong."""
    path = Path(path)
    if path.is_dir() and checkpoints(path):
        return model_from(newest_checkpoint(path)[0])
    return model_from(load_checkpoint(path)) if path.is_file() else hf.from_pretrained(path)


def load(ckpt: str, device: str) -> Loaded:
    """What a setting named ckpt means: a run's folder, a checkpoint file, a Hugging Face folder or
    hub name; empty: the newest run in out/. Ends the script where there is none, and says what to
    do."""
    runs = (configurator.ROOT / "out").glob("*/ckpt.pt")
    runs = sorted(runs, key=lambda file: file.stat().st_mtime)
    if not ckpt and not runs:
        configurator.die(
            "there is no checkpoint in out/ yet; make one with: make quickstart, "
            "or python train.py config/python_cpu.py"
        )
    path = configurator.locate(ckpt or runs[-1].parent)
    local = path.exists() or path.suffix == ".pt" or str(ckpt).startswith(("out/", "/", "."))
    if local and not path.exists():
        have = ", ".join(str(run.parent.relative_to(configurator.ROOT)) for run in runs)
        configurator.die(
            f"there is no checkpoint {ckpt}; runs here: {have or 'none'}; "
            "python train.py config/python_cpu.py makes one"
        )
    with configurator.mistakes():
        folder = path if path.is_dir() else path.parent if path.exists() else hf.download(ckpt)
        model = load_model(path if path.exists() else folder)
        tokenizer = tokenization.load(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, "
                f"the model {model.config.vocab_size}"
            )
    return Loaded(model.to(device).eval(), tokenizer, folder)


def model_settings(cfg) -> dict:
    return {key: vars(cfg)[key] for key in NeoXConfig.__dataclass_fields__ if key in vars(cfg)}


def start_model(cfg, dataset: Dataset, run: "Run") -> NeoX:
    """The model of the run's checkpoint, a new one, or one from elsewhere.

    ValueError or OSError where it does not suit the settings or the data set."""
    checkpoint, out = run.checkpoint, run.out
    if checkpoint:
        model = model_from(checkpoint)
        # A setting of the model that is newer than the checkpoint had its default then.
        before = checkpoint["settings"] | asdict(model.config)
        for key, value in {"optimizer": cfg.optimizer, **model_settings(cfg)}.items():
            if value != before[key]:
                raise ValueError(
                    f"{key}={value} does not fit the run in {out}, which began with {before[key]}"
                )
        files = (folder / "tokenizer.json" for folder in (out, dataset.folder))
        if len({file.read_bytes() for file in files}) > 1:
            raise ValueError(
                f"the run in {out} was trained with another tokenizer than data set "
                f"{cfg.dataset} has now"
            )
    elif cfg.init_from in ("scratch", "auto"):
        model = NeoX(NeoXConfig(vocab_size=dataset.vocab_size, **model_settings(cfg)))
    else:
        path = configurator.locate(cfg.init_from)
        model = load_model(path if path.exists() else cfg.init_from)
    if dataset.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the data set's vocabulary of {dataset.vocab_size} does not fit the model's "
            f"{model.config.vocab_size}"
        )
    if cfg.block_size > model.config.block_size:
        raise ValueError(
            f"block_size={cfg.block_size} does not fit the model's context of "
            f"{model.config.block_size}; use --block_size={model.config.block_size}"
        )
    return model


def state_of(model: NeoX, optimizers, scaler, cfg) -> dict:
    """What a checkpoint holds, besides how far the run is."""
    return {
        "model": distributed.whole(model.state_dict()),
        "optimizers": [distributed.whole(optimizer.state_dict()) for optimizer in optimizers],
        "scaler": scaler.state_dict(),
        "settings": vars(cfg),
        "model_config": asdict(model.config),
    }


# --- the folder of a training ---------------------------------------------------------------------


class Run:
    """The folder that a training writes to. Only rank 0 writes; the other processes read.

    A full disk or a removed folder does not end the training: it is reported once, and the next
    save tries again."""

    def __init__(self, out: Path, rank: int = 0):
        self.out, self.rank = out, rank
        self.checkpoint, self.file = None, None  # what it resumes from
        self.metrics: list[dict] = []
        self.trackers = []
        self.unwritten: set[str] = set()  # what could not be written, to report it once
        self.saved_step, self.saved_at = 0, time.perf_counter()

    def to_resume(self, init_from: str) -> dict | None:
        """The checkpoint to go on from; None for a new run. ValueError where there has to be one
        and there is none."""
        if init_from == "resume" or init_from == "auto" and checkpoints(self.out):
            self.checkpoint, self.file = newest_checkpoint(self.out)
        return self.checkpoint

    def begin(self, optimizers, scaler, tokenizer: Tokenizer, cfg, meta: dict):
        """Restore the optimizers and make the folder ready. A new run sets the last one aside; a
        resumed one drops the metrics after its checkpoint, and renames a checkpoint that was passed
        over as damaged. ValueError or OSError says what does not fit."""
        self.tokenizer, self.about = tokenizer, describe(cfg, meta)
        if self.checkpoint:
            self.restore(optimizers, scaler, cfg)
            self.saved_step = self.checkpoint["step"]
            self.metrics = read_metrics(self.out, self.saved_step)
            print(f"going on from step {self.saved_step}, {self.file}")
        if self.rank:
            return
        newest = self.out / "ckpt.pt"
        if self.checkpoint and self.file != newest:
            if newest.exists():
                os.replace(newest, self.out / "damaged.pt")
            os.replace(self.file, newest)
        elif not self.checkpoint and checkpoints(self.out):
            shutil.rmtree(f"{self.out}.old", ignore_errors=True)
            self.out.rename(f"{self.out}.old")
            print(f"{self.out} held a run; it is now {self.out.name}.old")
        self.write_basics(with_tokenizer=not self.checkpoint)  # a resumed run has its own
        self.write_metrics()

    def restore(self, optimizers, scaler, cfg):
        """The inverse of `state_of`."""
        try:
            states = self.checkpoint["optimizers"]
            for optimizer, state in zip(optimizers, states, strict=True):
                if cfg.shard:
                    state = distributed.slice_state(optimizer, state)
                optimizer.load_state_dict(state)
            if self.checkpoint["scaler"]:  # empty where the run was not in float16 until now
                scaler.load_state_dict(self.checkpoint["scaler"])
            del self.checkpoint["model"], self.checkpoint["optimizers"]  # their memory is wanted
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.file} does not fit --optimizer={cfg.optimizer}: {error}"
            ) from None

    def write_basics(self, with_tokenizer: bool):
        """Write what the folder holds besides checkpoints and metrics."""
        self.out.mkdir(parents=True, exist_ok=True)
        if with_tokenizer:
            self.tokenizer.save(self.out)
        write_json(self.out / "run.json", self.about)

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether write() worked. If not, report it once; the training goes on."""
        try:
            if self.rank == 0:
                if not (self.out / "tokenizer.json").exists():
                    self.write_basics(with_tokenizer=True)
                write()
        except (OSError, RuntimeError) as error:  # RuntimeError: torch.save's word for a full disk
            if what not in self.unwritten:
                reason = error.__context__ or error
                tqdm.write(f"{what} could not be written, training goes on: {reason}")
            self.unwritten.add(what)
            return False
        self.unwritten.discard(what)
        return True

    def save(self, name: str, state: dict, keep: int = 1) -> bool:
        """Write a checkpoint; False where that failed or the weights are not finite."""
        self.saved_at = time.perf_counter()
        if self.rank == 0:
            finite = all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
            if not finite:
                step = state["step"]
                tqdm.write(
                    f"step {step}: weights that are not finite are not saved; "
                    f"{name} stays as it was"
                )
                return False

        def write(temporary):
            torch.save(state, temporary)

        done = self.attempt(name, lambda: write_whole(self.out / name, write, keep))
        if done and name == "ckpt.pt":
            self.saved_step = state["step"]
        return done

    def record(self, step: int, **values):
        """Add a line to metrics.jsonl; None stands for a number that is not finite."""
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None  # JSON has no infinity
        self.metrics.append({"step": step, **values})
        append = "metrics.jsonl" not in self.unwritten  # else lines before it are missing
        self.attempt("metrics.jsonl", lambda: self.write_metrics(append))

    def write_metrics(self, append: bool = False):
        """metrics.jsonl whole, or where it has all lines but the last, that one."""
        file = self.out / "metrics.jsonl"
        if append and file.exists():
            with open(file, "a", encoding="utf-8") as log:
                log.write(json.dumps(self.metrics[-1]) + "\n")
        else:
            write_text(file, "".join(json.dumps(line) + "\n" for line in self.metrics))

    def give_up(self, bad_steps: int, step: int):
        """End the script after too many steps without a finite gradient."""
        go_on = f"--init_from=resume goes on from step {self.saved_step}"
        configurator.die(
            f"{bad_steps} steps in a row, up to step {step}, had no finite gradient; lower --lr or "
            f"--grad_clip, then {go_on if checkpoints(self.out) else 'start again'}"
        )

    def draw(self, scores: dict):
        """loss.png, and scores.png where there are scores."""
        if self.rank == 0:
            plots.losses(self.metrics, self.out / "loss.png")
            if scores:
                plots.scores(self.metrics, self.out / "scores.png")

    def export(self, model: NeoX | None, dataset: str):
        """Write the model as Hugging Face has it, where Hugging Face has it."""

        def write():
            try:
                hf.save_pretrained(model, self.out, eot=self.tokenizer.eot, dataset=dataset)
            except ValueError as error:
                print(f"not exported: {error}")

        self.exported = self.attempt("the exported model", write)

    def start_trackers(self, names: list[str]):
        if names and self.rank == 0:
            from parts import tracking

            self.trackers = [tracking.start(name, self.out) for name in names]

    def finish(self, how: str, step: int, tracker_wait: float):
        """Tell the trackers how the training ended ("stopped" or "finished"), and give them so many
        seconds. Ends the script if not everything could be written."""
        if self.trackers:
            from parts import tracking

            if how == "stopped":  # a machine that is taken away waits for nobody
                tracker_wait = min(tracker_wait, 10)
            tracking.finish(self.trackers, self.out, how, tracker_wait)
        if self.rank == 0 and (self.saved_step < step or not self.exported):
            configurator.die(
                f"{self.out} holds step {self.saved_step} of {step}: the disk did not take the "
                "rest; make room, then --init_from=resume"
            )

    def minutes_unsaved(self) -> float:
        return (time.perf_counter() - self.saved_at) / 60

    def last_step(self, key: str) -> int:
        """The last step whose line has this key; -1 if none has."""
        return max((line["step"] for line in self.metrics if key in line), default=-1)


def read_metrics(out: Path, last_step: int) -> list[dict]:
    """The lines of metrics.jsonl up to a step. A line that was cut short is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return [line for line in lines if line["step"] <= last_step]


def describe(cfg, meta: dict) -> dict:
    """How a run was made, for run.json: settings, code, versions, and the data set's hashes."""
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("torch", "numpy", "tokenizers", "tiktoken"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    changed = git("status", "--porcelain", "--untracked-files=no")
    commit = {"commit": git("rev-parse", "HEAD")}
    commit["changed"] = None if changed is None else bool(changed)
    keys = ("tokens", "bytes", "sha256")
    data = {split: {key: meta[split].get(key) for key in keys} for split in ("train", "val")}
    return {"settings": vars(cfg), "versions": versions, "git": commit, "data": data}


def git(*command: str) -> str | None:
    """What git says about this repository; None where there is no git or no repository."""
    command = ("git", "-C", str(configurator.ROOT), *command)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else None


# --- time and signals -----------------------------------------------------------------------------


class Clock:
    """Seconds of training. It stands still while the training is evaluated or saved."""

    def __init__(self, seconds: float = 0.0):
        self.past, self.began = seconds, time.perf_counter()

    def seconds(self) -> float:
        running = 0.0 if self.began is None else time.perf_counter() - self.began
        return self.past + running

    def share(self, minutes: float) -> float:
        """The fraction of these minutes that has passed; 0 if there is no limit."""
        return self.seconds() / (60 * minutes) if minutes else 0.0

    def pause(self):
        self.past, self.began = self.seconds(), None

    def go_on(self):
        self.pause()
        self.began = time.perf_counter()


class StopSignal:
    """Ctrl-C, and SIGTERM when a machine is taken away: true from then on, so that the training can
    finish its step, save and leave. A second signal ends it at once."""

    def __init__(self, announce: bool = True):
        self.number, self.announce = 0, announce
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)

    def receive(self, number, frame):
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        if self.announce:
            print(
                "\nstopping after this step, with a checkpoint; once more to stop at once",
                file=sys.stderr,
            )

    def __bool__(self):
        return bool(self.number)


class Meter:
    """What is logged of the steps since the last line. It stays on the device until it is read."""

    def __init__(self, step: int, clock: Clock, tokens_per_step: int, peak_share: float):
        """peak_share: of the machine's peak that one token a second takes."""
        self.clock, self.tokens_per_step, self.peak_share = clock, tokens_per_step, peak_share
        self.streak, self.bad_steps = 0, 0  # in a row without a finite gradient; when last read
        self.reset(step)

    def reset(self, step: int):
        self.step, self.began, self.loss = step, self.clock.seconds(), 0.0

    def add(self, loss: torch.Tensor, norm: torch.Tensor, bad: torch.Tensor):
        self.loss = self.loss + loss
        self.norm = norm
        self.streak = (self.streak + 1) * bad

    def read(self, step: int) -> dict:
        """The values of a log line, and a new beginning."""
        steps, seconds = step - self.step, self.clock.seconds() - self.began
        loss = distributed.mean(self.loss).item() / steps
        speed = steps * self.tokens_per_step / seconds
        mfu = speed * self.peak_share
        self.bad_steps = int(self.streak)
        self.summary = f"loss {loss:.3f}, {speed:,.0f} tok/s, MFU {mfu:.0%}"
        values = {"loss": loss, "grad_norm": self.norm.item(), "tokens_per_s": speed, "mfu": mfu}
        values["elapsed"] = self.clock.seconds()
        if self.norm.device.type == "cuda":
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        self.reset(step)
        return values

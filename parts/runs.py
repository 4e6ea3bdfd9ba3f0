"""A run's folder: checkpoints, metrics, resuming.

out/<run>/ holds ckpt.pt and older ones (ckpt.1.pt, ...), run.json (settings, versions, commit, data
hashes), metrics.jsonl (a line for each log step: the source of every plot and tracker), loss.png,
and the exported Hugging Face folder. Nothing in it is ever executed, except that transformers runs
modeling_nanoneox.py where it is told to trust it.
"""

from parts.start import say

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict

from model import Attention, NeoX, NeoXConfig
from parts import card, configurator, distributed, hf, memory, plots
from parts import tokenizer as tokenization
from parts.checkpoints import (
    best_checkpoint,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    put_aside_damaged,
    save_checkpoint,
)
from parts.data import Dataset
from parts.files import Lock, load_json, read_json, read_lines, unused, write_json, write_text
from parts.tokenizer import Tokenizer

# Every file that a run writes, and what only tracks it. A folder that holds anything else is not
# set aside for a new run.
RUN_FILES = """ckpt.pt ckpt.*.pt best.pt damaged.pt damaged.*.pt run.json metrics.jsonl loss.png
    scores.png eval.json eval.*.json trace.json trace.*.json tokenizer.json tokenizer_config.json
    config.json generation_config.json model.safetensors modeling_nanoneox.py README.md .gitignore
    mlflow.json wandb.json *.gguf lock""".split()

# --- models to use --------------------------------------------------------------------------------


def model_from(checkpoint: dict) -> NeoX:
    """The model in a checkpoint. ValueError where its weights do not fit its own settings."""
    try:
        model = memory.new_model(NeoXConfig(**checkpoint["model_config"]))
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint does not hold a NeoX model of its own settings: {error!r}"
        ) from None
    return model


class Loaded(NamedTuple):
    model: NeoX  # on the device, in evaluation mode
    tokenizer: Tokenizer
    folder: Path  # where they come from


def load_model(path: str | Path) -> NeoX:
    """The model of a run's folder (best.pt if that is better, else the newest checkpoint), of one
    checkpoint file, or of what `hf.from_pretrained` knows by that name. Its attribute `source` says
    which checkpoint and step it is. ValueError or OSError says what is wrong."""
    path = Path(path)
    if path.is_file():
        checkpoint, file = load_checkpoint(path), path
    elif checkpoint := best_checkpoint(path):
        file = path / "best.pt"
    elif checkpoints(path):
        checkpoint, file = newest_checkpoint(path)
    else:
        return hf.from_pretrained(path)
    model = model_from(checkpoint)
    model.source = {"checkpoint": file.name, "step": checkpoint["step"]}
    return model


def load(ckpt: str, device: str) -> Loaded:
    """What a setting named ckpt means: a run's folder, a checkpoint file, a Hugging Face folder or
    hub name; empty: the newest run in out/. Ends the script where there is none, and says what to
    do."""
    newest = configurator.newest_run()
    if not ckpt and not newest:
        configurator.die(
            "there is no checkpoint in out/ yet; make one with: make quickstart, "
            "or python train.py config/python_cpu.py"
        )
    with configurator.mistakes():
        path = hf.find(ckpt or newest)
        folder = path if path.is_dir() else path.parent
        model = load_model(path)
        tokenizer = tokenization.load(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, "
                f"the model {model.config.vocab_size}"
            )
    return Loaded(model.to(device).eval(), tokenizer, folder)


def model_settings(cfg) -> dict:
    """What the settings say of a model; nothing of its vocabulary where that is the tokenizer's."""
    asked = {key: vars(cfg)[key] for key in NeoXConfig.__dataclass_fields__ if key in vars(cfg)}
    return {key: value for key, value in asked.items() if key != "vocab_size" or value}


def start_model(cfg, dataset: Dataset, tokenizer: Tokenizer, run: "Run") -> NeoX:
    """The model of the run's checkpoint, a new one, or one from elsewhere. Then cfg has the
    settings that the model brings, so that nobody records others.

    ValueError or OSError where it does not suit the settings or the data set."""
    asked, new = model_settings(cfg), not run.checkpoint and cfg.init_from in ("scratch", "auto")
    if run.checkpoint:
        run.refuse_other(cfg, dataset, tokenizer)
        model = model_from(run.checkpoint)
    elif new:
        config = NeoXConfig(**{"vocab_size": dataset.vocab_size} | asked)
        memory.check_training(config, cfg, new=True)
        model = NeoX(config)
    else:
        model = model_from_elsewhere(cfg, dataset, tokenizer)
    c = model.config
    if dataset.vocab_size > c.vocab_size:
        raise ValueError(
            f"the data set's vocabulary of {dataset.vocab_size} does not fit the model's "
            f"{c.vocab_size}"
        )
    if cfg.block_size > c.block_size:
        raise ValueError(
            f"block_size={cfg.block_size} does not fit the model's context of "
            f"{c.block_size}; use --block_size={c.block_size}"
        )
    # Training may use less of the context than the model has.
    now = {key: getattr(c, key) for key in asked if key != "block_size"}
    brought = {key: value for key, value in now.items() if value != asked[key]}
    if brought and not run.checkpoint:
        changes = ", ".join(f"{key}={value} (not {asked[key]})" for key, value in brought.items())
        print(f"{cfg.init_from} brings its own {changes}")
    vars(cfg).update(brought)
    if "vocab_size" in vars(cfg):
        cfg.vocab_size = c.vocab_size
    run.asked = run.checkpoint.get("asked", asked) if run.checkpoint else asked
    if not new:
        memory.check_training(c, cfg, new=False)
    return model


def model_from_elsewhere(cfg, dataset: Dataset, tokenizer: Tokenizer) -> NeoX:
    """The model that --init_from names. ValueError or OSError if it cannot be had, or has another
    tokenizer than the data set."""
    path = hf.find(cfg.init_from)
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json"
    if not file.is_file():
        print(f"{file} does not exist; whether the data set's tokens fit the model is unknown")
    elif not tokenizer.has_ids_of(load_json(file)):
        raise ValueError(
            f"data set {cfg.dataset} has other tokens than the model in {folder}; prepare it with "
            f"--tokenizer={folder}"
        )
    model = load_model(path)
    # Dropout belongs to a training, not to the weights.
    model.config.dropout = cfg.dropout
    for module in model.modules():
        if isinstance(module, Attention):
            module.dropout = cfg.dropout
        elif isinstance(module, torch.nn.Dropout):
            module.p = cfg.dropout
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


class About(TypedDict):
    """run.json: how the run was made; see `describe`."""

    settings: dict
    versions: dict
    git: dict
    data: dict[str, dict]
    began: NotRequired[float]  # seconds since 1970
    exported: NotRequired[dict]  # step and val_loss, where the exported model is best.pt's


class Metrics(TypedDict):
    """A line of metrics.jsonl, with whatever else was recorded at that step."""

    step: int


class Run:
    """The folder that a training writes to. Only rank 0 writes; the other processes read.

    A full disk or a removed folder does not end the training: it is reported once, and the next
    save tries again."""

    def __init__(self, out_dir: str, rank: int = 0):
        """out_dir: relative to the repository. ValueError if no run may write there, OSError if
        another process does."""
        self.out, self.rank = run_folder(out_dir), rank
        self.checkpoint, self.file = None, None  # what it resumes from
        self.asked: dict = {}  # the model settings that it began with; weights may bring others
        self.metrics: list[dict] = []
        self.trackers = []
        self.unwritten: set[str] = set()  # what could not be written, to report it once
        self.saved_step, self.saved_at = 0, time.perf_counter()
        self.lock: Lock | None = None
        if rank == 0 and (self.out / "lock").exists():  # refused before anything takes long
            Lock(self.out).file.close()

    def to_resume(self, init_from: str) -> dict | None:
        """The checkpoint to go on from; None for a new run. ValueError where there has to be one
        and there is none, or where a new run would mix with what the folder holds. Rank 0 decides,
        and `share_checkpoint` tells the others, whose machine may have another disk."""
        auto = init_from == "auto" or distributed.restarted()
        if init_from == "resume" or auto and checkpoints(self.out):
            with contextlib.suppress(*(ValueError, OSError) if self.rank else ()):
                self.checkpoint, self.file = newest_checkpoint(self.out)
        elif self.rank == 0:
            refuse_foreign_files(self.out)
        return self.checkpoint

    def share_checkpoint(self) -> dict | None:
        """Rank 0's checkpoint, on all processes. It is sent where the disk has another or none."""
        if not distributed.running():
            return self.checkpoint
        own = [(self.checkpoint or {}).get(key) for key in ("step", "began", "elapsed")]
        wanted, file = distributed.gather([own, str(self.file)])[0]
        if wanted[0] is None:
            self.checkpoint = self.file = None
        lacks = wanted[0] is not None and own != wanted
        if not distributed.agree(lacks)[0]:
            return self.checkpoint
        with contextlib.ExitStack() as stack:
            copy = None
            with distributed.together():
                if lacks:
                    copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), "ckpt.pt")
            with distributed.together():
                distributed.send_file(self.file if self.rank == 0 else None, copy)
                if lacks:
                    self.checkpoint, self.file = load_checkpoint(copy), file
        return self.checkpoint

    def refuse_other(self, cfg, dataset: Dataset, tokenizer: Tokenizer):
        """ValueError if the run cannot go on with these settings, this data set, its tokenizer."""
        wanted = model_settings(cfg)
        wanted |= {key: vars(cfg)[key] for key in ("optimizer", "decay_embeddings")}
        parts = [self.checkpoint.get(part, {}) for part in ("settings", "model_config", "asked")]
        for key, value in wanted.items():
            began = [part[key] for part in parts if key in part]
            if began and value not in began:
                raise ValueError(
                    f"{key}={value} does not fit the run in {self.out}, which began with {began[0]}"
                )
        if self.rank == 0:  # all have the same data set, but not all the run's folder
            if not tokenizer.has_ids_of(load_json(self.out / "tokenizer.json")):
                raise ValueError(
                    f"the run in {self.out} was trained with another tokenizer than data set "
                    f"{cfg.dataset} has now"
                )
            was, now = self.data_before(), dataset.verify()
            if not cfg.new_data and any(was.get(split, now[split]) != now[split] for split in now):
                raise ValueError(
                    f"the run in {self.out} began with other data than {dataset.folder} holds; "
                    "--new_data goes on with them"
                )

    def data_before(self) -> dict[str, str]:
        """What `Dataset.verify` said of the data that the run was trained on, where it is known."""
        data, file = {}, self.out / "run.json"
        if file.exists():
            try:
                data = load_json(file, About)["data"]
            except (ValueError, OSError) as error:
                say(f"{error}; it is written anew")
        data = self.checkpoint.get("data", data)
        hashes = {split: about.get("sha256") for split, about in data.items()}
        hashes |= {f"{split} mask": about.get("mask_sha256") for split, about in data.items()}
        return {what: sha256 for what, sha256 in hashes.items() if sha256}

    def begin(self, optimizers, scaler, tokenizer: Tokenizer, cfg, meta: dict):
        """Restore the optimizers and make the folder ready. A new run sets the last one aside; a
        resumed one drops the metrics after its checkpoint, and renames checkpoints that were passed
        over as damaged. ValueError or OSError says what does not fit."""
        self.tokenizer, self.about = tokenizer, describe(cfg, meta)
        self.about["began"] = (self.checkpoint or {}).get("began", time.time())
        before = read_json(self.out / "run.json") if self.checkpoint else {}
        self.about["base"] = card.base_of(cfg.init_from) or before.get("base")
        if self.checkpoint:
            cfg.note = cfg.note or self.checkpoint["settings"].get("note", "")
            self.restore(optimizers, scaler, cfg)
            self.saved_step = self.checkpoint["step"]
            if self.rank == 0:
                self.metrics = read_metrics(self.out, self.saved_step)
        if self.rank:
            return
        self.claim()
        if self.checkpoint:
            put_aside_damaged(self.out, self.file)
        elif any(file.name != "lock" for file in self.out.iterdir()):
            aside = unused(self.out)
            if os.name == "nt":  # where a folder with an open file cannot be renamed
                self.lock.file.close()
            self.out.rename(aside)
            print(f"{self.out} held a run; it is now {aside}")
            self.claim()
        self.write_basics(with_tokenizer=not self.checkpoint)  # a resumed run has its own
        self.write_metrics()

    def restore(self, optimizers, scaler, cfg):
        """The inverse of `state_of`. What the settings say of an optimizer, such as weight decay,
        is as it is now, not as it was saved."""
        try:
            states = self.checkpoint["optimizers"]
            for optimizer, state in zip(optimizers, states, strict=True):
                if cfg.shard:
                    state = distributed.slice_state(optimizer, state)
                wanted = [
                    {key: group[key] for key in optimizer.defaults if key in group}
                    for group in optimizer.param_groups
                ]
                optimizer.load_state_dict(state)
                for group, settings in zip(optimizer.param_groups, wanted):
                    group.update(settings)
            if self.checkpoint["scaler"]:  # empty where the run was not in float16 until now
                scaler.load_state_dict(self.checkpoint["scaler"])
            del self.checkpoint["model"], self.checkpoint["optimizers"]  # their memory is wanted
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.file} does not fit --optimizer={cfg.optimizer}: {error}"
            ) from None

    def claim(self):
        """Make the folder where there is none, and lock it for this process. OSError if another
        process has it."""
        if not self.lock or not self.lock.is_ours():
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock = Lock(self.out)
        self.lock.sign()

    def write_basics(self, with_tokenizer: bool):
        """Write what the folder holds besides checkpoints and metrics."""
        if with_tokenizer:
            self.tokenizer.save(self.out)
        write_json(self.out / "run.json", self.about)

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether write() worked. If not, report it once; the training goes on."""
        try:
            if self.rank == 0:
                if not self.lock.is_ours():  # somebody removed or renamed the folder
                    if self.out.exists() and any(self.out.iterdir()):
                        self.out = unused(self.out)
                        tqdm.write(f"another folder is where the run was; it goes on in {self.out}")
                    self.claim()
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

        state |= {key: self.about[key] for key in ("data", "began")} | {"asked": self.asked}
        done = self.attempt(name, lambda: save_checkpoint(self.out / name, state, keep))
        if done and name == "ckpt.pt":
            self.saved_step = state["step"]
        return done

    def record(self, step: int, **values):
        """Add a line to metrics.jsonl; None stands for a number that is not finite."""
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None  # JSON has no infinity
        self.metrics.append({"step": step, **values, "time": round(time.time(), 3)})
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
        """Write the model as Hugging Face has it, where Hugging Face has it, and its card. Where
        best.pt is better, that is exported, and run.json says of which step it is."""

        def write():
            tok, exported, special = self.tokenizer, model, self.tokenizer.special.values()
            try:
                if best := best_checkpoint(self.out):
                    exported = model_from(best)
                    about = {"step": best["step"], "val_loss": best["best_loss"]}
                    write_json(self.out / "run.json", self.about | {"exported": about})
                hf.save_pretrained(exported, self.out, tok.eot, special, dataset=dataset)
            except ValueError as error:
                return print(f"not exported: {error}")
            tok.save(self.out, model.config.block_size)
            if trouble := card.write(self.out):
                print(trouble)

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

            tracking.finish(self.trackers, self.out, how, tracker_wait)
        if self.rank:
            return
        self.lock.release()
        if self.saved_step < step or not self.exported:
            configurator.die(
                f"{self.out} holds step {self.saved_step} of {step}: the disk did not take the "
                "rest; make room, then --init_from=resume"
            )

    def minutes_unsaved(self) -> float:
        return (time.perf_counter() - self.saved_at) / 60

    def last_step(self, key: str) -> int:
        """The last step whose line has this key; -1 if none has."""
        return max((line["step"] for line in self.metrics if key in line), default=-1)


def what_must_agree(cfg, dataset: Dataset) -> dict:
    """What all processes of a training must have alike: the data set's contents, by their hashes,
    and the settings but for places on a machine's disk, its threads, and the note."""
    own = ("dataset", "out_dir", "init_from", "threads", "note")
    tokens = "stream" if "stream" in dataset.meta else "train"  # of a stream its name, as it grows
    data = json.dumps([dataset.meta[key] for key in (tokens, "val")]).encode()
    data += (dataset.folder / "tokenizer.json").read_bytes()
    found = {"the data set's hash": hashlib.sha256(data).hexdigest()[:16]}
    return found | {key: value for key, value in vars(cfg).items() if key not in own}


def run_folder(out_dir: str) -> Path:
    """The folder that --out_dir names, links followed. ValueError if it is one that holds all runs,
    all data sets or the repository, where a run would sooner or later set them aside."""
    root = configurator.ROOT
    out = Path(os.path.realpath(root / os.path.expanduser(out_dir)))
    for taken in (root / "out", root / "data", root, *root.parents):
        if out == taken.resolve() or out.exists() and taken.exists() and out.samefile(taken):
            raise ValueError(
                f"--out_dir={out_dir} is {taken}, which is not for one run alone; give a folder "
                "like out/python"
            )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out_dir={out_dir} is not a folder")
    return out


def refuse_foreign_files(out: Path):
    """ValueError if a folder holds anything that no run writes."""
    patterns = [pattern + end for pattern in RUN_FILES for end in ("", ".tmp")]
    for file in sorted(out.iterdir()) if out.exists() else ():
        named = any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
        theirs = file.name in ("README.md", ".gitignore") and not card.is_marked(file)
        if theirs or not named or not file.is_file():
            raise ValueError(
                f"{out} holds {file.name}, which no run writes, so it is left as it is; choose "
                "another --out_dir"
            )


def read_metrics(out: Path, last_step: int) -> list[dict]:
    """The lines of metrics.jsonl up to a step; none if there is no such file. Damaged ones are left
    out, which is said. OSError if the file cannot be read."""
    file = out / "metrics.jsonl"
    if not file.exists():
        return []
    lines, bad = read_lines(file, Metrics)
    if bad:
        say(f"{file}: damaged lines are left out: {bad}")
    return [line for line in lines if line["step"] <= last_step]


def describe(cfg, meta: dict) -> dict:
    """How a run was made, for run.json: settings, code, versions, the data set's hashes, and where
    its text is from."""
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("torch", "numpy", "tokenizers", "tiktoken"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    changed = git("status", "--porcelain", "--untracked-files=no")
    # The container has no .git; its Dockerfile was told the commit.
    commit = {"commit": git("rev-parse", "HEAD") or os.environ.get("NANONEOX_COMMIT")}
    commit["changed"] = None if changed is None else bool(changed)
    keys = ("tokens", "bytes", "sha256", "learnt", "mask_sha256")
    data = {
        split: {key: meta[split][key] for key in keys if key in meta[split]}
        for split in ("train", "val")
    }
    about = {"settings": vars(cfg), "versions": versions, "git": commit, "data": data}
    return about | {"origin": card.origin_of(meta)}


def git(*command: str) -> str | None:
    """What git says about this repository; None where there is no git or no repository."""
    command = ("git", "-C", str(configurator.ROOT), *command)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else None

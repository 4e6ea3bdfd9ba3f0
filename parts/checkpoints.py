"""Checkpoints: plain values and tensors, with a checksum over both. Nothing in one is executed."""

from parts.start import say

import hashlib
import os
import warnings
import zipfile
from pathlib import Path

import torch
from typing_extensions import NotRequired, TypedDict

from parts import memory
from parts.files import check_shape, name_also, unused, write_whole


class Checkpoint(TypedDict):
    """What train.py saves: `runs.state_of`, and how far the run is."""

    model: dict  # tensors by name
    model_config: dict
    optimizers: list
    scaler: dict
    settings: dict
    step: int
    tokens: int
    best_loss: float
    elapsed: float
    clock: NotRequired[dict]
    data: NotRequired[dict]  # the data set's hashes; earlier versions had them in run.json alone
    checksum: NotRequired[str]


def save_checkpoint(path: Path, state: dict, keep: int = 1):
    """Write a checkpoint whole, and number the ones before it: ckpt.1.pt, ...

    OSError or RuntimeError (torch's word for a full disk) if that fails."""
    sealed = state | {"checksum": checksum(state)}
    write_whole(path, lambda temporary: torch.save(sealed, temporary), keep)


def checksum(value) -> str:
    """The SHA-256 of plain values and tensors, as they are nested in dicts and lists."""
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            numbers = value.detach().cpu().contiguous().reshape(-1)
            digest.update(numbers.view(torch.uint8).numpy())
        elif isinstance(value, dict):
            digest.update(b"{%d" % len(value))
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, (list, tuple)):
            digest.update(b"[%d" % len(value))
            for item in value:
                add(item)
        elif isinstance(value, (set, frozenset)):  # in another order in every process
            add(sorted(value, key=repr))
        else:
            digest.update(repr(value).encode() + b"\n")

    add(value)
    return digest.hexdigest()


def load_tensors(path: Path, mmap: bool = False):
    """What torch.save wrote, if it is plain values and tensors. ValueError if it is anything else,
    or damaged; torch's own message would give the advice to load it unsafely. mmap: a tensor is
    read when it is used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it did not write
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception:  # damaged bytes make torch's reader raise anything
        raise ValueError("it is no file of tensors that torch.save wrote") from None


def load_checkpoint(path: Path) -> dict:
    """The dict that train.py saved, a `Checkpoint`.

    ValueError if it is damaged or no checkpoint; FileNotFoundError."""
    memory.require(f"reading {path}", lambda: path.stat().st_size, memory.free("cpu"))
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes checksums of its own, but reads none
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
        checkpoint = load_tensors(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # as in load_tensors; an OSError is a sector that cannot be read
        raise ValueError(
            f"{path} cannot be read as a checkpoint, it may be cut short: {error}"
        ) from None
    check_shape(checkpoint, path, Checkpoint)
    # A damaged header can make zipfile and torch read different bytes.
    sealed = checkpoint.pop("checksum", None)
    if sealed is not None and sealed != checksum(checkpoint):
        raise ValueError(f"{path} cannot be read as a checkpoint: its checksum is wrong")
    return checkpoint


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
    damage = []
    for file in files:
        try:
            checkpoint = load_checkpoint(file)
        except (ValueError, FileNotFoundError) as error:
            damage.append(error)
            continue
        for error in damage:
            say(f"{error}; going on from {file.name}")
        return checkpoint, file
    others = f"; nor can the {len(damage) - 1} before it" if len(damage) > 1 else ""
    raise ValueError(f"{damage[0]}{others}")


def glance(path: Path) -> dict | None:
    """What a checkpoint says of itself, without reading its tensors; None if it is damaged."""
    try:
        checkpoint = load_tensors(path, mmap=True)
        check_shape(checkpoint, path, Checkpoint)
    except (ValueError, OSError):
        return None
    found = {key: checkpoint.get(key) for key in ("step", "best_loss", "began")}
    return found | {"val": checkpoint.get("data", {}).get("val")}


def best_checkpoint(out: Path) -> dict | None:
    """best.pt, which --save_best keeps, if it is the checkpoint to use: the one with the lowest
    validation loss of this training, and not the newest one anyway. One line says which is used."""
    best = out / "best.pt"
    if not best.is_file():
        return None
    mine, last, newest = glance(best), None, None
    for newest in checkpoints(out):
        if last := glance(newest):
            break
    if mine and last:
        instead = f"{newest.name} of step {last['step']} is used, not best.pt"
        both = [(mine[key], last[key]) for key in ("began", "val")]  # older versions lack them
        if any(a != b for a, b in both if a and b):
            return say(f"{instead}, which is from another training or other data")
        if mine["step"] == last["step"]:
            return None
        if mine["best_loss"] > last["best_loss"]:
            return say(f"{instead}: the validation loss became lower after it")
    try:
        checkpoint = load_checkpoint(best)
    except (ValueError, OSError) as error:
        return say(f"{error}; the newest checkpoint is used")
    step, loss = checkpoint["step"], checkpoint["best_loss"]
    than = f" ({newest.name}: step {last['step']})" if last else ""
    say(f"best.pt is used: step {step}, validation loss {loss:.4f}{than}")
    return checkpoint


def put_aside_damaged(out: Path, whole: Path):
    """Rename the checkpoints that are newer than `whole`, the newest one that can be read, to
    damaged.1.pt, ..., and make it ckpt.pt, which never vanishes meanwhile."""
    files, newest = checkpoints(out), out / "ckpt.pt"
    passed = files[: files.index(whole)]
    if newest != whole and newest not in passed and os.path.lexists(newest):  # not even a file
        passed.append(newest)
    for file in passed:
        (name_also if file == newest else os.replace)(file, unused(out / "damaged", ".pt"))
    os.replace(whole, newest)

"""The folder of a stream: a data set that grows while it is read.

data/<name>/ has meta.json, tokenizer.json and val.bin as any data set; and

train.00000.bin, ...  segments of equally many tokens (only the last of an ended stream has fewer)
stream.json           the segments that are there, and how far the stream is. What is not listed
                      does not count. prepare/stream.py touches this file while it runs
state.00012.npz       what prepare/stream.py goes on from
reader.<run>.json     how far a training is, and what its checkpoints still need
feed.0.<id>.00003.jsonl  what came from a feed and is in no segment yet
"""

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval
from typing_extensions import NotRequired, TypedDict

from parts.files import load_json, read_json, write_json

BEAT = 5.0  # seconds between two touches of stream.json
SILENCE = 20.0  # after so many without one the stream does not run

Count = Annotated[int, Interval(ge=0, le=2**63)]


class Segment(TypedDict):
    number: Count
    tokens: Count
    sha256: str


class State(TypedDict):
    """stream.json, as far as a training reads it."""

    segments: list[Segment]  # oldest first, without gaps
    tokens: Count  # of all segments ever
    bytes: Count  # of their text
    ended: bool  # every source has ended
    id: NotRequired[str]  # as in meta.json
    tokens_per_s: NotRequired[float]  # while it works


def read(folder: Path) -> State:
    """ValueError if stream.json is damaged."""
    return load_json(folder / "stream.json", State)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"train.{number:05}.bin"


def runs(folder: Path) -> bool:
    """Whether a process writes the stream."""
    try:
        return time.time() - (folder / "stream.json").stat().st_mtime < SILENCE
    except OSError:
        return False


def order(seed: int, number: int, rows: int) -> np.ndarray:
    """In which order a training reads the rows of a segment (int64)."""
    return np.random.default_rng((seed, number)).permutation(rows)


class Mark(TypedDict):
    """How far a training is, in reader.<run>.json."""

    run: str  # its folder
    host: str  # the machine's name
    needs: Count  # the oldest segment that its checkpoints go on from
    at: Count  # the segment that it reads
    tokens_per_s: float


def mark_of(folder: Path, run: Path, host: str = platform.node()) -> Path:
    digest = hashlib.sha256(f"{host} {run}".encode()).hexdigest()
    return folder / f"reader.{run.name}-{digest[:8]}.json"


def write_mark(folder: Path, run: Path, needs: int, at: int, tokens_per_s: float):
    mark = Mark(run=str(run), host=platform.node(), needs=needs, at=at, tokens_per_s=tokens_per_s)
    write_json(mark_of(folder, run), mark)


def marks(folder: Path) -> list[Mark]:
    """The marks of all trainings. A mark is removed once its run's folder is missing for ten
    minutes: a new run writes its mark before it makes its folder."""
    found = []
    for file in sorted(folder.glob("reader.*.json")):
        try:
            mark = load_json(file, Mark)
        except (ValueError, OSError):  # damaged, or removed at this moment
            continue
        if mark["host"] == platform.node() and not os.path.isdir(mark["run"]):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > 600:
                    file.unlink()
                    continue
        found.append(mark)
    return found


def needed(folder: Path, run: Path) -> int | None:
    """The oldest segment that a run's checkpoints need, as its mark says; None without one."""
    needs = read_json(mark_of(folder, run)).get("needs")
    return needs if isinstance(needs, int) else None

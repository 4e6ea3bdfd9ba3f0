"""A stream as a data set: training reads it segment by segment, in order, and waits where it is
ahead.

Which tokens a step reads is a function of the step: a segment is cut into rows of block_size
tokens, and steps read its rows in a seeded order, then those of the next segment. (In the order of
the text a small batch would hold two or three documents: 5.86 nats a token after 50 steps of
config/python_cpu.py, where this gets 5.58.)
"""

import hashlib
import math
import os
import shlex
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from typing_extensions import TypedDict

from parts import distributed, segments
from parts.configurator import ROOT
from parts.data import Dataset, get_batch
from parts.files import check_shape

AVAILABLE, ENDED, LACKING = 0, 1, 2  # what `wait` may find


def open_dataset(name: str, block_size: int = 0) -> Dataset:
    """data/<name>, a finished data set or a stream. Arguments and errors as for Dataset."""
    folder = ROOT / "data" / os.path.expanduser(name)
    return (Stream if os.path.exists(folder / "stream.json") else Dataset)(name, block_size)


class Name(TypedDict):
    id: str
    segment_tokens: segments.Count


class Meta(TypedDict):
    """meta.json, as far as it differs from a finished set's."""

    stream: Name


class Stream(Dataset):
    """Its validation split is a finished set's."""

    def open_split(self, split: str) -> np.ndarray | None:
        if split == "val":
            return super().open_split(split)
        check_shape(self.meta, self.folder / "meta.json", Meta)
        self.hint = f"go on with: python prepare/stream.py --out={shlex.quote(self.name)}"
        size = self.meta["stream"]["segment_tokens"]
        if self.block_size >= size:
            raise ValueError(
                f"block_size={self.block_size} does not fit the segments of {size} tokens in "
                f"{self.folder}"
            )
        self.state = segments.read(self.folder)
        known = {"tokens": self.state["tokens"], "bytes": self.state["bytes"]}
        self.meta["train"] = known | {"sha256": self.meta["stream"]["id"]}
        self.opened: dict[int, np.ndarray] = {}
        return None

    def describe(self) -> str:
        return f"a stream of {self.state['tokens'] / 1e6:.1f}M tokens so far"

    def verify(self) -> dict[str, str]:
        """Segments are checked when they are read."""
        return {"train": self.meta["stream"]["id"]} | self.hashes(["val"])

    # --- the part of a training -------------------------------------------------------------------

    def begin(self, cfg, run: Path, place: dict | None, step: int, writes: bool):
        """Find where a run's next step reads, and wait for it. run: its folder. place: of its
        checkpoint; None: a new run, which begins with the oldest segment. writes: whether this
        process tells the stream. Ends the script where what it needs is gone or does not come."""
        self.cfg, self.run, self.writes = cfg, run, writes
        self.rows_a_step = cfg.batch_size * cfg.grad_accum
        self.rows = (self.meta["stream"]["segment_tokens"] - 1) // self.block_size
        self.told, self.waited, self.trouble = False, 0.0, ""
        self.came, self.came_from, self.step = time.monotonic(), step, step
        shape = dict(block_size=self.block_size, rows=self.rows_a_step, seed=cfg.seed)
        shape["id"] = self.meta["stream"]["id"]
        if place and {**place, **shape} == place:
            self.place = place
        else:  # other batches divide a segment otherwise, so they begin with the next one
            oldest = self.state["segments"][0]["number"] if self.state["segments"] else 0
            known = place and place["id"] == shape["id"]
            first = place["next"] if known else int(distributed.agree(oldest)[0])
            self.place = dict(shape, segment=first, step=step, next=0)
        self.at = self.segment_of(step)
        needed = segments.needed(self.folder, run) if place else None
        needs = self.at if needed is None else min(needed, self.at)
        self.needs = deque([needs] * cfg.keep, maxlen=cfg.keep)
        self.tell()
        with distributed.together():
            if self.wait(step, lambda: False, cfg.stream_wait):
                raise ValueError(self.trouble)
        if self.state["ended"]:
            left = (self.last_row() - self.row(step)) // self.rows_a_step
            if step + left < cfg.max_iters:
                tqdm.write(f"the stream has ended; its tokens are enough up to step {step + left}")

    def row(self, step: int) -> int:
        """The first row of a step, counted from the segment that the run began with."""
        return (step - self.place["step"]) * self.rows_a_step

    def segment_of(self, step: int) -> int:
        return self.place["segment"] + self.row(step) // self.rows

    def last_row(self) -> int:
        """How many rows there are, counted likewise."""
        listed = self.state["segments"]
        if not listed or listed[-1]["number"] < self.place["segment"]:
            return 0
        whole = (listed[-1]["number"] - self.place["segment"]) * self.rows
        return whole + (listed[-1]["tokens"] - 1) // self.block_size

    def wait(
        self, step: int, stopped: Callable[[], bool], patience: float, bar=None, turn=math.inf
    ) -> int:
        """Until there is what a step reads. AVAILABLE, or why there is none: ENDED, or LACKING,
        where `trouble` says why. stopped: whether to give up. patience: seconds to wait for a
        stream that does not run. bar: shows that this waits.
        turn: seconds to wait at most; then AVAILABLE though there is nothing."""
        began = alive = time.monotonic()
        last, missed = self.row(step) + self.rows_a_step, False
        while last > self.last_row() and not stopped() and time.monotonic() - began < turn:
            try:
                self.state = segments.read(self.folder)
                if self.state.get("id", self.place["id"]) != self.place["id"]:
                    raise ValueError(f"{self.folder} is another stream now; begin a new run")
            except (ValueError, OSError) as error:
                return self.lack(str(error))
            if last <= self.last_row():
                break
            if self.state["ended"]:
                self.trouble = f"the stream {self.folder} has ended, and all of it was read"
                return ENDED
            if segments.runs(self.folder):
                alive = time.monotonic()
                self.tell_rates(step)
            elif time.monotonic() - alive >= patience:
                return self.lack(
                    f"the stream {self.folder} does not run, and has nothing more for step {step}; "
                    f"{self.hint}, then --init_from=resume"
                )
            elif self.writes and not missed:
                missed = True
                tqdm.write(
                    f"step {step}: the stream does not run; it has {patience:g} s; {self.hint}"
                )
            if bar is not None and time.monotonic() - began > 1:
                bar.set_description_str(f"waiting {time.monotonic() - began:.0f} s for the stream")
            time.sleep(0.1)
        self.waited += time.monotonic() - began
        if last > self.last_row():
            return AVAILABLE
        try:
            for row in range(self.row(step), last, self.rows):
                self.open(self.place["segment"] + row // self.rows)
            self.open(self.place["segment"] + (last - 1) // self.rows)
        except (ValueError, OSError) as error:
            return self.lack(str(error))
        return AVAILABLE

    def lack(self, trouble: str) -> int:
        self.trouble = trouble
        return LACKING

    def has(self, step: int) -> bool:
        """Whether all that a step reads is there, and open."""
        rows = self.row(step), self.row(step) + self.rows_a_step - 1
        opened = all(self.place["segment"] + row // self.rows in self.opened for row in rows)
        return opened and rows[-1] < self.last_row()

    def open(self, number: int):
        """Map a segment. ValueError if it is not there, or damaged."""
        if number in self.opened:
            return
        listed = {segment["number"]: segment for segment in self.state["segments"]}
        file = segments.path_of(self.folder, number)
        if number not in listed or not file.is_file():
            kept = f"from {min(listed)} on" if listed else "none"
            raise ValueError(
                f"{file.name}, which comes next, is no longer in {self.folder} (it has {kept}): "
                "other trainings were past it; begin a new run"
            )
        if file.stat().st_size != 2 * listed[number]["tokens"]:
            raise ValueError(f"{file} is damaged: it has {file.stat().st_size:,} bytes")
        tokens = np.memmap(file, dtype="<u2", mode="r")
        if hashlib.sha256(tokens).hexdigest() != listed[number]["sha256"]:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one in stream.json")
        if tokens.max() >= self.vocab_size:
            raise ValueError(f"{file} holds token {tokens.max()}, past {self.vocab_size}")
        rows = (len(tokens) - 1) // self.block_size
        self.opened[number] = tokens, segments.order(self.cfg.seed, number, rows)
        for old in [old for old in self.opened if old < number - 1]:
            del self.opened[old]

    def train_batch(self, seed: int, step: int, micro: int, batch_size: int, device: str):
        """As Dataset's, of a step for which `has` is true."""
        first, batches, self.step = self.row(step) + micro * batch_size, [], step
        rows = np.arange(first, first + batch_size)
        for number in np.unique(rows // self.rows):
            tokens, order = self.opened[self.place["segment"] + int(number)]
            chosen = order[rows[rows // self.rows == number] % self.rows]
            starts = chosen * self.block_size
            batches.append(get_batch(tokens, starts, self.block_size, device))
        if (at := self.segment_of(step)) != self.at:
            self.at = at
            self.tell()
        return batches[0] if len(batches) == 1 else tuple(map(torch.cat, zip(*batches)))

    def state_at(self, step: int) -> dict:
        """What a checkpoint keeps of the stream."""
        return self.place | {"next": self.place["segment"] - (-self.row(step) // self.rows)}

    def saved(self, step: int):
        """A checkpoint was saved, and the oldest one is gone."""
        self.needs.append(self.segment_of(step))
        self.tell()

    def tell(self, done: bool = False):
        """Tell the stream how far this run is; done: it needs nothing any more."""
        if not self.writes:
            return
        try:
            if done:
                segments.mark_of(self.folder, self.run).unlink(missing_ok=True)
            else:
                segments.write_mark(self.folder, self.run, min(self.needs), self.at, self.rate())
        except OSError as error:
            if self.writes:
                tqdm.write(f"could not tell the stream how far this training is: {error}")
            self.writes = False

    def rate(self) -> float:
        """Tokens a second that this training reads, apart from waiting."""
        seconds = time.monotonic() - self.came - self.waited
        steps = max(self.step - self.came_from, 0)
        return steps * self.rows_a_step * self.block_size / max(seconds, 1e-3)

    def tell_rates(self, step: int):
        """Tell the person once that the training is ahead."""
        if self.told or not self.writes:
            return
        self.told = True
        if not self.state["segments"]:
            size = self.meta["stream"]["segment_tokens"]
            tqdm.write(f"waiting for the stream's first segment of {size:,} tokens")
            return
        writes, reads = self.state.get("tokens_per_s", 0), ""
        if step > self.came_from:
            reads = f"; training reads {self.rate():,.0f}"
        tqdm.write(
            f"step {step}: waiting for the stream {self.folder.name}, which writes {writes:,.0f} "
            f"tokens/s{reads}"
        )

    def end(self):
        """The training is done: the stream need not keep anything for it."""
        self.tell(done=True)
        if self.trouble:
            print(self.trouble)
        if self.waited > 1 and self.writes:
            print(f"{self.waited:.0f} s were spent waiting for the stream")

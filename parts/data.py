"""A data set: memory-mapped token ids, and which of them a step reads."""

import hashlib
import itertools
import os
import shlex
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict

from parts import configurator
from parts.files import load_json

SPLITS = ("train", "val")
Count = Annotated[int, Interval(ge=1, le=2**63)]


class Split(TypedDict):
    tokens: Count
    bytes: Count  # of text
    max_id: NotRequired[int]  # the largest token id; earlier versions had none, and no hash
    sha256: NotRequired[str]


class Meta(TypedDict):
    """meta.json, as far as training reads it; prepare/corpus.py writes it."""

    vocab_size: Count
    train: Split
    val: Split


class Dataset:
    """data/<name>: its meta.json, its tokens as `train` and `val` (uint16, memory-mapped), and
    batches of them."""

    def __init__(self, name: str, block_size: int):
        """ValueError says what is missing or damaged, and how to make the data set."""
        name = os.path.expanduser(name)
        self.folder, self.block_size = configurator.ROOT / "data" / name, block_size
        self.hint = f"make it with: {how_to_make(name)}"
        self.meta = {**self.read_meta(), "folder": str(self.folder)}
        self.train, self.val = (self.open_split(split) for split in SPLITS)

    def read_meta(self) -> dict:
        file = self.folder / "meta.json"
        if not file.is_file():
            raise ValueError(f"there is no data set {self.folder}; {self.hint}")
        try:
            meta = load_json(file, Meta)
        except ValueError as error:
            raise ValueError(f"{error}; {self.hint}") from None
        self.vocab_size = meta["vocab_size"]
        # Times nats per token, this gives bits per byte.
        self.bits_per_byte = meta["val"]["tokens"] / meta["val"]["bytes"] / np.log(2)
        return meta

    def open_split(self, split: str) -> np.ndarray:
        file = self.folder / f"{split}.bin"
        if not file.is_file() or file.stat().st_size % 2:
            raise ValueError(f"{file} is missing or cut short; {self.hint}")
        count = file.stat().st_size // 2
        if count <= self.block_size:
            raise ValueError(
                f"{file} has too few tokens ({count}) for block_size={self.block_size}"
            )
        recorded = self.meta[split]
        if count != recorded["tokens"]:
            raise ValueError(
                f"{file} has {count:,} tokens, but meta.json says {recorded['tokens']:,}: it was "
                f"cut short or changed; {self.hint}"
            )
        tokens = np.memmap(file, dtype="<u2", mode="r")
        # Reading all of it takes long where it is large, so prepare/ records the largest id. Sets
        # of earlier versions, and files that were changed since, are read.
        written = (self.folder / "meta.json").stat().st_mtime
        unchanged = file.stat().st_mtime <= written
        largest = recorded.get("max_id")
        if not unchanged or type(largest) is not int or largest < 0:
            largest = int(tokens.max())
        if largest >= self.vocab_size:
            raise ValueError(
                f"{file} holds token {largest}, past vocab_size={self.vocab_size} in meta.json; "
                f"{self.hint}"
            )
        return tokens

    def verify(self) -> dict[str, str]:
        """The SHA-256 of each split, read from the disk. ValueError if it is not the one that
        meta.json has."""
        hashes = {}
        for split in SPLITS:
            file, digest = self.folder / f"{split}.bin", hashlib.sha256()
            size = file.stat().st_size
            bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"checking {file.name}", delay=2)
            with open(file, "rb") as data, bar:
                while block := data.read(1 << 22):
                    digest.update(block)
                    bar.update(len(block))
            hashes[split] = digest.hexdigest()
            if hashes[split] != self.meta[split].get("sha256", hashes[split]):
                raise ValueError(
                    f"{file} is damaged or was changed: its SHA-256 is not the one in meta.json; "
                    f"{self.hint}"
                )
        return hashes

    def train_batch(self, seed: int, step: int, micro: int, batch_size: int, device: str):
        """Batch number `micro` of a step. A pure function of these numbers, so that a resumed run
        reads what an uninterrupted one reads, with no generator state to save."""
        starts = train_starts(seed, step, micro, batch_size, len(self.train) - self.block_size)
        return get_batch(self.train, starts, self.block_size, device)

    def val_batches(self, count: int, batch_size: int, device: str):
        """`count` batches, evenly spaced over the validation split and the same every time."""
        last = len(self.val) - self.block_size - 1
        starts = np.linspace(0, last, count * batch_size).astype(np.int64)
        for part in np.split(starts, count):
            yield get_batch(self.val, part, self.block_size, device)


class Batches:
    """The training batches of one process, step after step: x and y, and a seed for dropout. The
    processes share the micro-batches of a step: of `world`, this is number `rank`."""

    def __init__(self, dataset: Dataset, cfg, device: str, rank: int, world: int, step: int):
        self.dataset, self.cfg, self.device = dataset, cfg, device
        self.per_step = cfg.grad_accum // world
        micros = range(rank, cfg.grad_accum, world)
        self.places = ((s, micro) for s in itertools.count(step) for micro in micros)
        self.fetch()

    def fetch(self):
        """Go on to the next batch."""
        step, micro = next(self.places)
        seed, size = self.cfg.seed, self.cfg.batch_size
        self.x, self.y = self.dataset.train_batch(seed, step, micro, size, self.device)
        self.seed = hash((seed, step, micro)) % 2**63


def train_starts(seed: int, step: int, micro: int, batch_size: int, count: int) -> np.ndarray:
    """Where the sequences of a batch start: one of the first `count` tokens for each (int64)."""
    return np.random.default_rng((seed, step, micro)).integers(count, size=batch_size)


def get_batch(tokens: np.ndarray, starts: np.ndarray, block_size: int, device: str):
    """Tokens x and the ones that follow them y, both (B, T) int64, from B starting positions."""
    window = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    batch = torch.from_numpy(window)
    if device == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    else:
        batch = batch.to(device)
    return batch[:, :-1], batch[:, 1:]


def how_to_make(name: str) -> str:
    """The command that makes a data set of this name, as well as a name can tell."""
    script = Path(name).name.split("_")[0]
    if script not in ("shakespeare", "go"):
        script = "python"
    options = {"shakespeare_bpe": " --tokenizer=bpe", "shakespeare_char": "", script: ""}
    return f"python prepare/{script}.py{options.get(name, f' --out={shlex.quote(name)}')}"

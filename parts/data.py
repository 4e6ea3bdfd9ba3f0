"""A data set: memory-mapped token ids, which of them a step reads, and which of those it learns.

A data set for fine-tuning has masks too: train.mask and val.mask, one byte a token, 1 where the
token is learnt. Its windows begin where documents begin: at each end-of-text token that is not
learnt, or after each one where all are. (An answer ends in a learnt one, which so begins nothing.)
"""

import hashlib
import itertools
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict

from parts import configurator
from parts import tokenizer as tokenization
from parts.files import load_json
from parts.tokenizer import MAX_VOCAB

SPLITS = ("train", "val")
TURN = 10.0  # seconds to wait for a stream before the training looks at what else there is to do
Count = Annotated[int, Interval(ge=1, le=2**63)]


class Split(TypedDict):
    tokens: Count
    bytes: Count  # of text
    max_id: NotRequired[int]  # the largest token id; earlier versions had none, and no hash
    sha256: NotRequired[str]
    mask_sha256: NotRequired[str]
    learnt: NotRequired[Count]  # tokens in the mask, and the bytes of their text
    learnt_bytes: NotRequired[Count]


class Meta(TypedDict):
    """meta.json, as far as training reads it; prepare/corpus.py writes it."""

    vocab_size: Count
    train: NotRequired[Split]  # a stream has none, as it grows
    val: Split


class Windows(NamedTuple):
    """Where the windows of a masked split begin, and what is learnt in them."""

    mask: np.ndarray  # uint8, memory-mapped, one for each token
    starts: np.ndarray  # int64
    learnt: np.ndarray  # int64, the learnt tokens of the window at each start, at least 1


class Dataset:
    """data/<name>: its meta.json, its tokens as `train` and `val` (uint16, memory-mapped), and
    batches of them. windows: of each split, if the data set has masks."""

    masked = False
    trouble = ""  # why a stream has no more tokens

    def __init__(self, name: str, block_size: int = 0):
        """block_size: of the windows of a training; 0: the data are only read. ValueError says what
        is missing or damaged, and how to make the data set."""
        name = os.path.expanduser(name)
        self.name, self.folder = name, configurator.dataset_folder(name)
        self.block_size = block_size
        self.hint = f"make it with: {how_to_make(name)}"
        self.meta = {**self.read_meta(), "folder": str(self.folder)}
        self.masked = any((self.folder / f"{split}.mask").exists() for split in SPLITS)
        self.train, self.val = (self.open_split(split) for split in SPLITS)
        if self.masked and block_size:
            self.windows = {split: self.open_mask(split) for split in SPLITS}

    def read_meta(self) -> dict:
        file = self.folder / "meta.json"
        if os.path.isfile(self.folder / "part.json"):
            whole = self.folder.name.split(".part-")[0]
            raise ValueError(
                f"{self.folder} is one part of a data set; make it of all parts with: "
                f"python prepare/join.py --out={shlex.quote(whole)}"
            )
        if not os.path.isfile(file):  # False too where a name is too long
            raise ValueError(f"there is no data set {self.folder}; {self.hint}")
        try:
            meta = load_json(file, Meta)
        except ValueError as error:
            raise ValueError(f"{error}; {self.hint}") from None
        if "train" not in meta and "stream" not in meta:
            raise ValueError(f"{file} is damaged: it has neither train nor stream; {self.hint}")
        if meta.get("task") in ("instruct", "sentiment"):
            self.hint = f"make it again with prepare/{meta['task']}.py"
        self.vocab_size = meta["vocab_size"]
        # Times nats per token, this gives bits per byte.
        val = meta["val"]
        learnt = val.get("learnt", val["tokens"]), val.get("learnt_bytes", val["bytes"])
        self.bits_per_byte = learnt[0] / learnt[1] / np.log(2)
        return meta

    def open_split(self, split: str) -> np.ndarray:
        file = self.folder / f"{split}.bin"
        if not file.is_file() or file.stat().st_size % 2:
            raise ValueError(f"{file} is missing or cut short; {self.hint}")
        count = file.stat().st_size // 2
        if count <= (1 if self.masked else max(self.block_size, 1)):
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

    def open_mask(self, split: str) -> Windows:
        """ValueError if the mask is missing or damaged, or if nothing would be learnt."""
        file, tokens = self.folder / f"{split}.mask", getattr(self, split)
        if not file.is_file() or file.stat().st_size != len(tokens):
            raise ValueError(
                f"{file} must have one byte for each of the {len(tokens):,} tokens of {split}.bin; "
                f"{self.hint}"
            )
        mask = np.memmap(file, dtype=np.uint8, mode="r")
        if mask.max() > 1:
            raise ValueError(f"{file} has the value {mask.max()}; 1 is learnt, 0 is not")
        # Where somebody wrote the mask by hand; a resumed run compares it.
        self.meta[split].setdefault("mask_sha256", hashlib.sha256(mask).hexdigest())
        eot = tokenization.load(self.folder).eot
        ends = np.flatnonzero(tokens == (MAX_VOCAB if eot is None else eot))
        unlearnt = ends[mask[ends] == 0]
        starts = np.union1d([0], unlearnt if len(unlearnt) else ends + 1)
        starts = starts[starts < len(tokens) - 1]
        # A window's first token is never learnt: nothing predicts it. In parts, as masks are large.
        learnt = [
            window(mask, part, self.block_size, past=0)[:, 1:].sum(1, dtype=np.int64)
            for part in np.array_split(starts, len(starts) * self.block_size // 2**24 + 1)
        ]
        learnt = np.concatenate(learnt)
        if not learnt.any():
            raise ValueError(
                f"in {file} no token is learnt within block_size={self.block_size} of the start of "
                f"its document"
            )
        if skipped := int((learnt == 0).sum()):
            print(
                f"{split}: {skipped:,} of {len(starts):,} documents have no token to learn within "
                f"block_size={self.block_size} and are left out"
            )
        return Windows(mask, starts[learnt > 0], learnt[learnt > 0])

    def verify(self) -> dict[str, str]:
        """The SHA-256 of each split ("train") and mask ("train mask"), read from the disk.
        ValueError if it is not the one that meta.json has."""
        return self.hashes(SPLITS)

    def hashes(self, splits: Iterable[str]) -> dict[str, str]:
        hashes = {}
        for split, end in itertools.product(splits, ("bin", "mask") if self.masked else ("bin",)):
            file, digest = self.folder / f"{split}.{end}", hashlib.sha256()
            size = file.stat().st_size
            bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"checking {file.name}", delay=2)
            with open(file, "rb") as data, bar:
                while block := data.read(1 << 22):
                    digest.update(block)
                    bar.update(len(block))
            found = hashes[split if end == "bin" else f"{split} mask"] = digest.hexdigest()
            if found != self.meta[split].get("sha256" if end == "bin" else "mask_sha256", found):
                raise ValueError(
                    f"{file} is damaged or was changed: its SHA-256 is not the one in meta.json; "
                    f"{self.hint}"
                )
        return hashes

    def describe(self) -> str:
        return f"{len(self.train) / 1e6:.1f}M tokens to train on"

    # What only a stream needs: see parts/stream.py, also for the arguments.

    def begin(self, *where):
        pass

    def has(self, step: int) -> bool:
        return True

    def wait(self, *what) -> int:
        return 0

    def state_at(self, step: int) -> dict | None:
        return None

    def saved(self, step: int):
        pass

    def end(self):
        pass

    def train_batch(self, seed: int, step: int, micro: int, batch_size: int, device: str):
        """Batch number `micro` of a step. A pure function of these numbers, so that a resumed run
        reads what an uninterrupted one reads, with no generator state to save."""
        if not self.masked:
            count = len(self.train) - self.block_size
            starts = train_starts(seed, step, micro, batch_size, count)
            return get_batch(self.train, starts, self.block_size, device)
        windows = self.windows["train"]
        starts = windows.starts[train_starts(seed, step, micro, batch_size, len(windows.starts))]
        return get_batch(self.train, starts, self.block_size, device, windows.mask)

    def share(self, seed: int, step: int, micro: int, batch_size: int, grad_accum: int) -> float:
        """The share of batch number `micro` in the tokens that its step learns."""
        if not self.masked:
            return 1 / grad_accum
        learnt = self.windows["train"].learnt
        of_each = [
            learnt[train_starts(seed, step, number, batch_size, len(learnt))].sum()
            for number in range(grad_accum)
        ]
        return float(of_each[micro] / sum(of_each))

    def val_batches(self, count: int, batch_size: int, device: str):
        """`count` batches, evenly spaced over the validation split and the same every time."""
        mask, last = None, len(self.val) - self.block_size - 1
        if self.masked:
            mask, places, _ = self.windows["val"]
            last = len(places) - 1
        starts = np.linspace(0, last, count * batch_size).astype(np.int64)
        starts = places[starts] if self.masked else starts
        for part in np.split(starts, count):
            yield get_batch(self.val, part, self.block_size, device, mask)


class Batches:
    """The training batches of one process, step after step: x and y, the weight of their mean loss
    in the step's, and a seed for dropout. The processes share the micro-batches of a step: of
    `world`, this is number `rank`."""

    def __init__(self, dataset: Dataset, cfg, device: str, rank: int, world: int, step: int):
        self.dataset, self.cfg, self.device, self.world = dataset, cfg, device, world
        self.per_step = cfg.grad_accum // world
        micros = range(rank, cfg.grad_accum, world)
        self.places = ((s, micro) for s in itertools.count(step) for micro in micros)
        self.place = next(self.places)
        self.read()

    def fetch(self):
        """Go on to the next batch. A stream may not have it yet: then x is None until `wait`."""
        self.place = next(self.places)
        if self.dataset.has(self.place[0]):
            self.read()
        else:
            self.x = self.y = None

    def wait(self, stop, clock, bar) -> int:
        """Until the next batch is there, or the training is over, or it is clear that there will be
        no batch: see Stream.wait. After TURN seconds x may still be None."""
        if self.x is not None:
            return 0
        clock.pause()

        def over() -> bool:
            return bool(stop.number) or clock.share() >= 1

        found = self.dataset.wait(self.place[0], over, self.cfg.stream_wait, bar, TURN)
        if not found and self.dataset.has(self.place[0]):
            self.read()
        return found

    def read(self):
        step, micro = self.place
        seed, size = self.cfg.seed, self.cfg.batch_size
        self.x, self.y = self.dataset.train_batch(seed, step, micro, size, self.device)
        # All tokens that a step learns count the same, however they are divided into batches. DDP
        # and FSDP2 take the mean over processes, where their sum is wanted.
        share = self.dataset.share(seed, step, micro, size, self.cfg.grad_accum)
        self.weight = share * self.world
        self.seed = hash((seed, step, micro)) % 2**63


def train_starts(seed: int, step: int, micro: int, batch_size: int, count: int) -> np.ndarray:
    """Where the sequences of a batch start: one of the first `count` tokens for each (int64)."""
    return np.random.default_rng((seed, step, micro)).integers(count, size=batch_size)


def get_batch(
    tokens: np.ndarray, starts: np.ndarray, block_size: int, device: str, mask=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens x and the ones that follow them y, both (B, T) int64, from B starting positions.

    With a mask y is -100 where nothing is learnt, and a window may reach past the end."""
    batch = torch.from_numpy(window(tokens, starts, block_size).astype(np.int64))
    if device == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    else:
        batch = batch.to(device)
    x, y = batch[:, :-1], batch[:, 1:]
    if mask is None:
        return x, y
    learnt = torch.from_numpy(window(mask, starts, block_size, past=0)[:, 1:]).to(device)
    return x, y.masked_fill(learnt == 0, -100)


def window(values: np.ndarray, starts: np.ndarray, block_size: int, past: int | None = None):
    """(B, T + 1) values from B starting positions; behind the last one it, or `past`, again."""
    places = starts[:, None] + np.arange(block_size + 1)
    found = values[np.minimum(places, len(values) - 1)]
    if past is not None:
        found[places >= len(values)] = past
    return found


def how_to_make(name: str) -> str:
    """The command that makes a data set of this name, as well as a name can tell."""
    script = Path(name).name.split("_")[0]
    if script in ("fineweb", "teacher"):
        return f"python prepare/stream.py, as the first lines of config/{script}_*.py say"
    if script == "english":
        return "python prepare/shakespeare.py, as the first lines of config/english_cpu.py say"
    if script not in ("shakespeare", "go", "instruct", "sentiment", "handmade"):
        script = "python"
    options = {"shakespeare_bpe": " --tokenizer=bpe", "shakespeare_char": "", script: ""}
    return f"python prepare/{script}.py{options.get(name, f' --out={shlex.quote(name)}')}"

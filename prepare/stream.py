"""A data set that grows while it is read -> data/<out>, for train.py --dataset=<out>.

    python prepare/stream.py --source="texts/*.jsonl" --out=texts
    python prepare/stream.py --source="hub:HuggingFaceFW/fineweb-edu?name=sample-10BT" --prose
    python prepare/stream.py --source=http://127.0.0.1:8001/generate:0.7,a.jsonl:0.3 --val=python
    python prepare/stream.py --out=texts    # go on after Ctrl-C, a crash, a disconnect

It runs beside the training, stays a few minutes ahead of it, and removes what every training is
past, so that any amount of text goes through a small disk. Killed at any moment and started again,
it goes on with no document lost or doubled: what it writes depends on nothing but its settings and
its sources.

A row of *.jsonl and *.parquet is a document. A *.txt file of up to 100,000 bytes is one too; a
longer one is cut at blank lines into documents of about 10,000 bytes. Any other file, such as
"src/**/*.py", is one.

    sources -> [thread: read, mix] -> [processes: clean, tokenize] -> drop duplicates -> segments
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import contextlib
import functools
import hashlib
import os
import random
import re
import shlex
import shutil
import threading
import time
import types
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from typing_extensions import TypedDict

from parts import configurator, infill, segments
from parts import tokenizer as tokenization
from parts.configurator import die, mistakes
from parts.files import Lock, load_json, write_json, write_whole
from parts.tokenizer import Tokenizer
from prepare import corpus, feeds, next_step
from prepare.clean import Examined, examine, mix, read_benchmark, sketch, squeeze, windows
from prepare.sources import seeded

SLOTS = 2**22  # of the table of duplicates, 16 MB: it remembers the last 150,000 documents
VAL_GROUPS = 20  # of so many repositories one is held out for val
SAVE_SECONDS = 1.0  # between two states on the disk, at least
BATCH_SECONDS = 1.0  # after so many a batch is cleaned, however small it is


class Settings(corpus.Text):
    source = ""  # files and URLs, hub:NAME?name=..., http://host/generate; A:0.7,B:0.3 mixes them
    out = "stream"  # the data set's name: a folder in data/
    val = ""  # a data set whose validation split and tokenizer to take; empty: it is drawn first
    val_mb = 2.0  # its size then, in MB of text
    keep_gb = 5.0  # of segments on the disk, at most
    ahead_minutes = 10.0  # how far to be ahead of the training, in its own speed
    segment_tokens = 2**20  # of each file
    epochs = 1  # times to read a source that ends; 0: for ever
    window = 1000  # documents that are shuffled together
    patience = 60.0  # minutes to try again when a source does not answer
    api_key = ""  # what feeds want as a bearer token; also the variable NANONEOX_API_KEY


# Settings that a stream may change when it goes on.
FREE = ("keep_gb", "ahead_minutes", "patience", "epochs", "max_mb", "api_key", "out")


def read_settings():
    """The settings; of a stream that exists, those that it began with."""
    cfg = configurator.load(Settings)
    positive = ("val_mb", "segment_tokens", "window", "keep_gb", "ahead_minutes", "patience")
    configurator.require(cfg, positive, {"fim_rate": 1}, pattern=sorted(tokenization.PATTERNS))
    with mistakes():
        folder = corpus.place_of(cfg.out)
        if (folder / "stream.json").exists():
            go_back_to(cfg, folder)
    if cfg.keep_gb * 1e9 < 6 * cfg.segment_tokens:
        die(
            f"keep_gb={cfg.keep_gb:g} does not hold three segments of {cfg.segment_tokens:,} tokens"
        )
    return cfg, folder


class Meta(TypedDict):
    """meta.json, as far as a stream reads it again."""

    arguments: dict


class WithVal(TypedDict):
    """meta.json of the set whose validation split is taken."""

    val: dict


def go_back_to(cfg, folder: Path):
    """Take the settings that a stream began with, but for those that are given now and may change.
    ValueError at others."""
    began = load_json(folder / "meta.json", Meta)["arguments"]
    given = {arg[2:].partition("=")[0] for arg in sys.argv[1:] if arg.startswith("--")}
    for key, value in vars(cfg).items():
        if key not in given:
            setattr(cfg, key, began.get(key, value))
        elif key not in FREE and value != began.get(key, value):
            raise ValueError(
                f"{folder} is a stream with {key}={began[key]}, not {value}; choose another "
                f"--out, or go on with it: {command_of(cfg.out)}"
            )


def arguments_of(cfg) -> dict:
    """What meta.json tells of the settings."""
    return {key: value for key, value in vars(cfg).items() if key != "api_key"}


def command_of(out: str) -> str:
    return f"python prepare/stream.py --out={shlex.quote(out)}"


# --- documents ------------------------------------------------------------------------------------


def open_sources(cfg, folder: Path) -> tuple[list, list[float]]:
    """The sources that --source names, and their weights. ValueError."""
    from prepare.shards import open_source

    pairs = feeds.parse_sources(cfg.source)
    sources = [
        feeds.Feed(spec, cfg, folder, number) if feeds.is_feed(spec) else open_source(spec, cfg)
        for number, (spec, _) in enumerate(pairs)
    ]
    return sources, [weight for _, weight in pairs]


def feeds_of(sources: list) -> list[feeds.Feed]:
    return [source for source in sources if isinstance(source, feeds.Feed)]


def fresh(sources: int) -> dict:
    """The state of `feeds.mixed` at the beginning."""
    return {"cursors": [None] * sources, "tags": [0.0] * sources, "now": 0.0, "read": 0}


class Prepared(NamedTuple):
    """A document as a worker process made it."""

    examined: Examined
    group: int  # the hash of its repository or package; 0: it has none
    licences: list[str] | None
    language: str | None
    ids: np.ndarray | None  # uint16, with the end-of-text token; None without a tokenizer


def start_worker(folder: Path | None, cfg, benchmark):
    with contextlib.suppress(AttributeError, OSError):  # not on Windows
        os.nice(10)  # the training comes first
    corpus.remember(folder and tokenization.load(folder), cfg, benchmark)


def prepare(batch: list) -> list[Prepared]:
    """Clean documents, and make tokens of those that no rule drops."""
    tok, cfg, benchmark = corpus.remembered
    done = []
    for document in batch:
        examined = examine(document, cfg, benchmark)
        kept = tok is not None and examined.rule is None
        ids = to_ids(tok, examined.text.decode(), cfg) if kept else None
        grouped = document.group not in ("", document.name)
        group = seeded(cfg.seed, document.group) if grouped else 0
        done.append(Prepared(examined, group, document.licences, document.language, ids))
    return done


def to_ids(tok: Tokenizer, text: str, cfg) -> np.ndarray:
    """A document's tokens and its end, partly rearranged as in a finished set."""
    ids = tok.encode_numpy(text)
    if cfg.fim_rate:
        rng = random.Random(seeded(cfg.seed, text))
        return np.concatenate(infill.rearrange(tok, ids, cfg.fim_rate, cfg.fim_context, rng)[0])
    return with_end(tok, ids)


def with_end(tok: Tokenizer, ids: np.ndarray) -> np.ndarray:
    return ids if tok.eot is None else np.append(ids, np.uint16(tok.eot))


def prepared(cfg, folder: Path | None, sources, weights, state: dict) -> Iterator[list[tuple]]:
    """Lists of (Prepared document, the number of its source, the state behind it); an empty one at
    least every 0.2 s. folder: that of the tokenizer; None: the documents are only cleaned."""
    benchmark = (
        read_benchmark(configurator.locate(cfg.decontaminate)) if cfg.decontaminate else None
    )
    most = cfg.max_mb * 1e6 or float("inf")
    documents = feeds.mixed(sources, weights, state, most)
    reader = feeds.Reader(documents, corpus.BATCH, BATCH_SECONDS)
    reader.start()
    read = []  # the batches that are being cleaned

    def batches():
        for batch in reader.batches():
            if batch:
                read.append(batch)
            yield batch and [document for document, _, _ in batch]

    try:
        for done in corpus.parallel(prepare, batches(), start_worker, (folder, cfg, benchmark)):
            yield [(made, *place[1:]) for made, place in zip(done, read.pop(0))] if done else []
    finally:
        reader.closed = True
        for feed in feeds_of(sources):
            feed.close()


def seen_before(table, val, keys: np.ndarray, epoch: int) -> str | None:
    """The rule that drops a document with these keys, if it is like an earlier one or one of the
    sorted keys of the validation split. If not, the table gets its keys.

    A source that is read again meets only what was read as often."""
    same = np.isin(keys, val)
    if same.any():
        return "held out for val" if same[0] else "near duplicate"
    return corpus.duplicate(table, mix(keys + np.uint64(epoch)) if epoch else keys)


# --- the beginning --------------------------------------------------------------------------------


class Held(NamedTuple):
    """The validation split, and where the stream begins after it."""

    split: dict  # for meta.json
    about: dict  # for stream.json
    arrays: dict  # for the state's file


def begin(cfg):
    """Make the folder of a new stream: its tokenizer, its validation split, and no segment yet."""
    if cfg.val and cfg.tokenizer == "bpe":
        cfg.tokenizer = str(configurator.dataset_folder(cfg.val))
    with mistakes():
        given = None if cfg.tokenizer == "bpe" else corpus.open_tokenizer(cfg.tokenizer, cfg.eot)
        if given and cfg.fim_rate and not infill.knows_fim(given):
            corpus.say_no_fim(cfg)
    with corpus.new_dataset(cfg.out) as folder:
        with mistakes():
            names = [spec for spec, _ in feeds.parse_sources(cfg.source)]
            open_sources(cfg, folder)  # what is wrong with them is told first
            if given:
                given.save(folder)
            held = take_val(cfg, folder, given) if cfg.val else draw_val(cfg, folder, given)
            tok = tokenization.load(folder)
        held.about["state"] = fresh(len(names))
        stream = {"id": os.urandom(16).hex(), "segment_tokens": cfg.segment_tokens}
        meta = {"tokenizer": {"kind": tok.kind, "file": "tokenizer.json"}}
        meta |= {"vocab_size": tok.vocab_size, "val": held.split, "stream": stream}
        meta |= {
            "source": cfg.source,
            "arguments": arguments_of(cfg),
            "versions": corpus.versions(),
        }
        write_json(folder / "meta.json", meta)
        zero = {"documents": 0, "bytes": 0, "tokens": 0}
        totals = {"id": stream["id"], "segments": [], "next": 0, "saves": 0, **zero, "ended": False}
        totals["sources"] = {name: dict(zero) for name in names}
        Stream(folder, cfg, held.about | totals, held.arrays).save()
        if (corpus.place_of(cfg.out) / "stream.json").exists():
            die(f"another process has begun the stream {cfg.out} in the meantime")
    print(f"next, beside this: {next_step.training(meta, cfg.out)}")


def take_val(cfg, folder: Path, tok: Tokenizer) -> Held:
    """The validation split of another data set. ValueError if it has other tokens."""
    other = configurator.dataset_folder(cfg.val)
    if not (other / "val.bin").is_file() or (other / "val.mask").exists():
        raise ValueError(f"--val={cfg.val} needs a data set without masks, which {other} is not")
    if not tok.has_ids_of(load_json(other / "tokenizer.json")):
        raise ValueError(f"--val={cfg.val} has other tokens than --tokenizer={cfg.tokenizer}")
    split = load_json(other / "meta.json", WithVal)["val"]
    digest = hashlib.sha256((other / "val.bin").read_bytes()).hexdigest()
    if digest != split.get("sha256", digest):
        raise ValueError(f"{other / 'val.bin'} is damaged: its SHA-256 is not that in meta.json")
    shutil.copyfile(other / "val.bin", folder / "val.bin")
    ids = np.fromfile(other / "val.bin", "<u2")
    ends = np.flatnonzero(ids == tok.eot) + 1 if tok.eot is not None else []
    texts = [tok.decode(part.tolist()) for part in np.split(ids, ends) if len(part) > 1]
    keys = [keys_of(text.encode()) for text in texts]
    return held_out(split, keys, "document")


def keys_of(text: bytes) -> np.ndarray:
    squeezed = squeeze(text)
    return sketch(squeezed, np.sort(windows(squeezed)[1]))


def held_out(split: dict, keys: list, split_by: str) -> Held:
    about = {"split_by": split_by, **corpus.Tally().report()}
    arrays = {"table": np.zeros(SLOTS, np.uint32), "tail": np.array([], np.uint16)}
    return Held(split, about, arrays | {"val": np.unique(np.concatenate(keys))})


def draw_val(cfg, folder: Path, tok: Tokenizer | None) -> Held:
    """A validation split out of the first documents; and, without a tokenizer, one that is trained
    on others of them. Afterwards the stream reads them all once more. ValueError if there are too
    few."""
    drawn = Drawn([], [], [])
    for split_by in ("repository or package", "document"):
        # Where there are few repositories, none may belong to val.
        if sum(map(len, drawn.val)) < cfg.val_mb * 1e6:
            once = types.SimpleNamespace(**{**vars(cfg), "epochs": 1})
            drawn = draw(cfg, *open_sources(once, folder), 0 if tok else corpus.SAMPLE, split_by)
            names = split_by
    held, keys, texts = drawn
    if (size := sum(map(len, held))) < cfg.val_mb * 1e6 or not (tok or texts):
        raise ValueError(
            f"{size / 1e6:.2f} MB are left of {cfg.source} after cleaning, too few for --val_mb="
            f"{cfg.val_mb:g} and a train split"
        )
    if not tok:
        spool, lengths = folder / "spool", list(map(len, texts))
        spool.write_bytes(b"".join(texts))
        print(f"training a BPE of {cfg.vocab_size:,} tokens ...", file=sys.stderr)
        places = list(zip(np.cumsum([0, *lengths]).tolist(), lengths))
        pattern = tokenization.PATTERNS[cfg.pattern]
        train = functools.partial(corpus.train_and_save, folder, spool, cfg.vocab_size, pattern)
        list(corpus.parallel(train, [places], workers=1))
        spool.unlink()
        tok = tokenization.load(folder)
    ids = np.concatenate([with_end(tok, tok.encode_numpy(text.decode())) for text in held])
    ids.astype("<u2").tofile(folder / "val.bin")
    split = {"tokens": len(ids), "bytes": size, "documents": len(held)}
    split |= {"max_id": int(ids.max()), "sha256": hashlib.sha256(ids.astype("<u2")).hexdigest()}
    return held_out(split, keys, names)


class Drawn(NamedTuple):
    """Cleaned documents."""

    val: list[bytes]
    keys: list[np.ndarray]  # of those of val
    others: list[bytes]


def draw(cfg, sources, weights, sample: int, split_by: str) -> Drawn:
    """Documents for the validation split, and `sample` bytes of others, from the beginning of the
    sources: all that is read until there are enough of both, or the sources have ended."""
    held, keys, texts, table = [], [], [], np.zeros(SLOTS, np.uint32)
    want, sizes, looked_at = int(cfg.val_mb * 1e6), [0, 0], 0
    live = feeds_of(sources)  # which never end, and may be slow
    bar = tqdm(total=want + sample, unit="B", unit_scale=True, desc="drawing val", disable=None)
    with (
        bar,
        contextlib.closing(prepared(cfg, None, sources, weights, fresh(len(sources)))) as batches,
    ):
        for made, _, _ in (one for batch in batches for one in batch):
            text = made.examined.text
            if made.examined.rule or corpus.duplicate(table, made.examined.keys):
                continue
            looked_at += len(text)
            if split_by != "document" and looked_at > 2 * VAL_GROUPS * want + sample:
                break
            validates = sizes[0] < want and is_val(made.group, split_by, True)
            if validates:
                held.append(text)
                keys.append(made.examined.keys)
            elif sizes[1] < sample and not is_val(made.group, split_by, False):
                texts.append(text)
            else:
                continue
            sizes[not validates] += len(text)
            bar.update(len(text))
            # Of a small source, val must not take most.
            if sizes[0] >= want and sizes[1] >= sample and (live or looked_at >= 5 * want):
                break
        else:
            if looked_at < 5 * sizes[0]:
                raise ValueError(
                    f"--val_mb={cfg.val_mb:g} is {sizes[0] / looked_at:.0%} of what cleaning leaves"
                    f" of {cfg.source}; try --val_mb={looked_at / 2e7:.2g}"
                )
    return Drawn(held, keys, texts)


def is_val(group: int, split_by: str, alone: bool) -> bool:
    """Whether all documents of a group are held out; alone: the answer for one that has none."""
    return alone if not group or split_by == "document" else group % VAL_GROUPS == 0


# --- the stream -----------------------------------------------------------------------------------


class About(segments.State):
    """stream.json."""

    next: segments.Count  # the number of the next segment
    saves: segments.Count  # how often it was saved
    documents: segments.Count
    sources: dict[str, dict[str, segments.Count]]  # documents, bytes and tokens by source
    state: feeds.State
    split_by: str  # what is held out for val
    file: str  # with the table of duplicates, and the tokens that do not fill a segment yet


def load_arrays(file: Path) -> dict:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in ("table", "tail", "val")}
    except Exception as error:  # damaged bytes make zipfile and numpy raise anything
        raise ValueError(f"{file} cannot be read, so the stream cannot go on: {error}") from None


class Stream:
    """The folder of a stream, and what it goes on from."""

    def __init__(self, folder: Path, cfg, about: dict | None = None, arrays: dict | None = None):
        """about, arrays: the content of stream.json and of the state's file; None: as they are on
        the disk. ValueError or OSError if they cannot be read."""
        self.folder, self.cfg, self.size = folder, cfg, cfg.segment_tokens
        if about is None:
            about = load_json(folder / "stream.json", About)
            arrays = load_arrays(folder / about["file"])
        self.about, self.table, self.val = about, arrays["table"], arrays["val"]
        self.tail, self.tally = [arrays["tail"]], corpus.Tally(about)
        self.sources: list = []
        self.kept_in: dict[str, int] = {}  # source -> the epoch of its last document
        self.told: set[str] = set()
        self.unsaved: list[dict] = []  # segments that stream.json does not list yet
        self.saved_at, self.worked, self.made = 0.0, 0.0, 0
        self.changed = False  # since the last save
        self.began = time.monotonic()  # of the work since the last save

    def add(self, made: Prepared, source: str, state: dict, epoch: int):
        """A document, unless a rule drops it."""
        self.about["state"], self.changed = state, True
        if epoch > self.kept_in.setdefault(source, epoch) + 1:
            raise ValueError(f"cleaning drops every document of {source}")
        examined, rule = made.examined, made.examined.rule
        if not rule and is_val(made.group, self.about["split_by"], False):
            rule = "held out for val"
        rule = rule or seen_before(self.table, self.val, examined.keys, epoch)
        if rule:
            return self.tally.drop(rule, examined)
        self.kept_in[source] = epoch
        self.tally.keep(examined, made.licences, made.language)
        self.tail.append(made.ids)
        added = {"documents": 1, "bytes": len(examined.text), "tokens": len(made.ids)}
        for counts in (self.about, self.about["sources"][source]):
            for key, number in added.items():
                counts[key] += number
        self.made += len(made.ids)

    def cut(self, bar: tqdm):
        """Write full segments, each when there is room for it, and save now and then."""
        tokens = np.concatenate(self.tail).astype("<u2")
        while len(tokens) >= self.size:
            self.tail = [tokens]
            self.make_room(bar)
            self.write(tokens[: self.size])
            tokens = tokens[self.size :]
        self.tail = [tokens]
        if self.unsaved and time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    def write(self, tokens: np.ndarray):
        number, data = self.about["next"] + len(self.unsaved), tokens.tobytes()
        file = segments.path_of(self.folder, number)
        write_whole(file, lambda temporary: temporary.write_bytes(data))
        digest = hashlib.sha256(data).hexdigest()
        self.unsaved.append({"number": number, "tokens": len(tokens), "sha256": digest})

    def end(self):
        """Write what does not fill a segment, and say that there will be no more."""
        [tokens] = self.tail
        if len(tokens) > 1:
            self.write(tokens)
            self.tail = [tokens[:0]]
        self.save(ended=True)

    def save(self, ended: bool = False):
        """Make what was written count: from now on the stream goes on from here.

        stream.json is written last: a process that is killed before that leaves the previous state
        in force."""
        self.worked += time.monotonic() - self.began
        self.began = time.monotonic()
        about, number = self.about, self.about["next"] + len(self.unsaved)
        about["saves"] += 1
        before, about["file"] = about.get("file"), f"state.{about['saves']:05}.npz"
        arrays = {"table": self.table, "val": self.val}
        arrays["tail"] = np.concatenate(self.tail)

        def write(temporary: Path):
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)

        write_whole(self.folder / about["file"], write)
        about["segments"] += self.unsaved
        about |= self.tally.report() | {"next": number, "ended": ended}
        about["tokens_per_s"] = self.made / self.worked if self.worked else 0.0
        self.unsaved, self.saved_at = [], time.monotonic()
        write_json(self.folder / "stream.json", about)
        if before:
            (self.folder / before).unlink(missing_ok=True)
        self.changed = False
        for feed in feeds_of(self.sources):
            feed.passed(about["state"]["cursors"][feed.number])

    # --- disk, and the training beside it ---------------------------------------------------------

    def tidy(self):
        """Remove what a killed process of ours left behind."""
        listed = {segments.path_of(self.folder, one["number"]) for one in self.about["segments"]}
        for file in self.folder.iterdir():
            ours = re.fullmatch(r"(train\.\d{5,}\.bin|state\.\d{5,}\.npz)(\.tmp)?", file.name)
            if ours and file not in listed and file.name != self.about["file"]:
                file.unlink(missing_ok=True)

    def remove_read(self, marks: list[segments.Mark]):
        """Remove the oldest segments that all trainings are past, while there are too many."""
        kept, needed = self.about["segments"], min([mark["needs"] for mark in marks], default=0)
        gone = []
        while kept and self.gigabytes() > self.cfg.keep_gb and kept[0]["number"] < needed:
            gone.append(kept.pop(0))
        if gone:
            write_json(self.folder / "stream.json", self.about)
        for segment in gone:
            segments.path_of(self.folder, segment["number"]).unlink(missing_ok=True)

    def gigabytes(self) -> float:
        """Of the segments that there will be with the next one."""
        there = self.about["segments"] + self.unsaved
        return (sum(one["tokens"] for one in there) + self.size) * 2 / 1e9

    def full(self) -> str:
        """Why there should be no further segment at the moment; "": there should."""
        marks = segments.marks(self.folder)
        self.remove_read(marks)
        first = max(marks, key=lambda mark: mark["at"], default=None)
        # Whoever reads the last one needs another, even if the checkpoints hold all before it.
        if self.gigabytes() > self.cfg.keep_gb and not (
            first and first["at"] >= self.about["next"] - 1
        ):
            slow = min(marks, key=lambda mark: mark["needs"], default=None)
            why = "no training has read them"
            if slow:
                file = segments.mark_of(self.folder, Path(slow["run"]), slow["host"])
                why = f"{slow['run']} needs them (if it is over, remove {file.name})"
            return f"keep_gb={self.cfg.keep_gb:g} is full, and {why}"
        at = first["at"] if first else 0
        away = [feed.name for feed in feeds_of(self.sources) if feed.away]
        if first or away:
            rate = 0.0 if away or not first else first["tokens_per_s"]
            # While a feed is away, the others must not fill what it will be wanted for.
            if self.about["next"] > at + max(rate * self.cfg.ahead_minutes * 60 / self.size, 2):
                return f"{away[0]} is away" if away else f"far enough ahead of {first['run']}"
        return ""

    def make_room(self, bar: tqdm):
        """Wait until there should be another segment. Before, what was written is saved: it may
        take long."""
        late = time.monotonic() - self.saved_at > SAVE_SECONDS
        if not (late or self.gigabytes() > self.cfg.keep_gb):
            return
        if self.changed or self.unsaved:  # stream.json must not be ahead of the state's file
            self.save()
        while reason := self.full():
            bar.set_postfix_str(f"waiting: {reason}")
            if bar.disable and reason not in self.told:  # a log has no bar
                print(f"waiting: {reason}", file=sys.stderr)
            self.told.add(reason)
            time.sleep(0.5)
        bar.set_postfix_str("")
        self.began = time.monotonic()

    def print_report(self):
        corpus.print_cleaning(self.tally.report())
        for name, n in self.about["sources"].items():
            share = n["tokens"] / max(self.about["tokens"], 1)
            print(
                f"{name}: {n['documents']:,} documents, {n['bytes'] / 1e6:,.2f} MB, "
                f"{n['tokens']:,} tokens, {share:.1%}"
            )


@contextlib.contextmanager
def beating(folder: Path) -> Iterator[None]:
    """Tell trainings that the stream runs, as long as the block does."""
    file, ended = folder / "stream.json", threading.Event()

    def beat():
        while not ended.wait(segments.BEAT):
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    os.utime(file)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            os.utime(file, (0, 0))


def go_on(cfg, folder: Path):
    """Write segments until the sources have ended."""
    with mistakes():
        if segments.read(folder)["ended"]:
            raise ValueError(f"the stream in {folder} has ended: its sources had no more")
        lock = Lock(folder)
        lock.sign()
        stream = Stream(folder, cfg)
        tokenization.load(folder)
        meta = load_json(folder / "meta.json", Meta)
        if arguments_of(cfg) != meta["arguments"]:
            write_json(folder / "meta.json", meta | {"arguments": arguments_of(cfg)})
        stream.tidy()
        sources, weights = open_sources(cfg, folder)
        stream.sources = sources
    bar = tqdm(initial=stream.about["tokens"], unit="tok", unit_scale=True, disable=None)
    try:
        with mistakes(), beating(folder), bar:
            stream.cut(bar)  # what is left of before may fill several
            for batch in prepared(cfg, folder, sources, weights, stream.about["state"]):
                for made, number, state in batch:
                    epoch = (state["cursors"][number] or {}).get("epoch", 0)
                    stream.add(made, sources[number].name, state, epoch)
                bar.update(stream.about["tokens"] - bar.n)
                stream.cut(bar)
            stream.end()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: {command_of(cfg.out)}") from None
    finally:
        stream.print_report()
        lock.release()
    print(f"the stream has ended: {stream.about['tokens']:,} tokens in {folder}")


def main():
    cfg, folder = read_settings()
    if not (folder / "stream.json").exists():
        begin(cfg)
    go_on(cfg, folder)


if __name__ == "__main__":
    run_script(main)

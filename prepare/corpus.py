"""From documents to data/<dataset>/{train.bin, val.bin, tokenizer.json, meta.json}.

A set for fine-tuning also has train.mask and val.mask: for each token a byte, 1 where it is learnt.

    documents -> [processes: read, clean, sketch] -> drop duplicates -> spool file -> split by group
              -> tokenizer -> [processes: encode] -> bin files -> move the folder into place

With --part the first step alone is done here, and prepare/join.py goes on from there: share.py.

Only a few batches of 1 MB and a few numbers per document are in memory at a time, so a corpus may
have any size.
"""

from parts.start import SIGNALS, hold_signals, tidying

import contextlib
import filecmp
import functools
import glob
import hashlib
import multiprocessing
import os
import platform
import random
import shlex
import shutil
import signal
import sys
import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from parts import infill
from parts import tokenizer as tokenization
from parts.configurator import ROOT, counted, die, locate, mistakes, require
from parts.files import read_json, sync_folder, unused, write_json
from parts.tokenizer import ENDOFTEXT, Tokenizer
from prepare import next_step, share
from prepare.choose import choose, is_test
from prepare.clean import (
    EXAMPLE,
    RULES,
    Benchmark,
    Document,
    Examined,
    examine,
    mask,
    read_benchmark,
)
from prepare.share import Judged, size_of
from prepare.sources import choose_val, seeded

BATCH = 1_000_000  # bytes that a process handles at a time
SAMPLE = 16_000_000  # bytes of the train split to train a BPE on; twice as many take twice as long
SPLITS = ("train", "val")
# All files of a data set.
FILES = (
    *("train.bin", "val.bin", "train.mask", "val.mask"),
    *("meta.json", "tokenizer.json", "tokenizer_config.json"),
)


# All that a document may meet, in this order.
ALL_RULES = (
    *("read", "unreadable", *RULES),
    *("benchmark", "exact duplicate", "near duplicate", "held out for val", "kept"),
)


class Text:
    """What becomes of documents, in a finished set or a stream."""

    max_mb = 0.0  # stop after this much source text, in MB; 0: no limit
    column = ""  # of those files, the column that holds the text; empty: content, text or the like
    tokenizer = "bpe"  # bpe (trained here), gpt2, a folder with a tokenizer.json, or a hub model
    eot = ""  # the special token of that tokenizer that ends a text; empty: the one that it names
    vocab_size = 8192  # tokens of that bpe
    pattern = "code"  # how that bpe splits text first: code, gpt2 or llama3
    licences = "permissive"  # permissive, any, or a list like MIT,Apache-2.0; if known
    min_stars = 0  # fewest stars of a repository, if known
    languages = ""  # of rows that say theirs: en, or a list like Python,Go; empty: any
    origin = ""  # parts of repository names to take, comma-separated; -part leaves out
    decontaminate = ""  # leave out a benchmark's problems: a file like HumanEval.jsonl.gz
    prose = False  # text, not code: lines of any length, but few repeated ones, and real words
    fim_rate = 0.5  # share of the train split rearranged to teach filling in the middle; 0: none
    fim_context = 128  # tokens that a rearranged piece may have: best the block_size of training
    seed = 1337  # of the order, the split, the tokenizer's sample, and what is rearranged


class Settings(Text):
    """What `build` reads. A script that calls it adds `source` and `out`."""

    path = ""  # a folder of your own code instead
    file = ""  # *.jsonl, *.jsonl.gz or *.parquet files instead; commas and globs
    max_share = 0.0  # largest share of the train split from one repository or package; 0: any
    max_kb = 0.0  # largest document of the train split, in KB; 0: any size
    tests = True  # whether the train split has tests
    val_fraction = 0.05  # share of the bytes held out for val, in whole repositories or packages
    part = ""  # clean this share only, such as 3/16; prepare/join.py makes a data set of all


# --- processes ------------------------------------------------------------------------------------


def parallel(
    function: Callable,
    items: Iterable,
    start: Callable | None = None,
    args: tuple = (),
    workers: int | None = None,
) -> Iterator:
    """function(item) for each item, in order, on all cores. start(*args) runs first in each worker.
    Only a few items are in flight, so memory stays flat. None among the items says that there is
    none at the moment, and comes back.

    Workers are spawned, not forked: forking a process that has threads can hang it."""
    workers = workers or count_cores()
    how = {"initializer": start_worker, "initargs": (start, args)}
    with starting_processes():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), **how)
        pools.append(pool)
    with pool:
        try:
            waiting = deque()
            for item in items:
                if item is not None:
                    with starting_processes():
                        waiting.append(pool.submit(function, item))
                while waiting and (len(waiting) > 2 * workers or waiting[0].done()):
                    yield waiting.popleft().result()
                if item is None:
                    yield None
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            die(
                "a worker process was killed, probably for lack of memory; "
                "close other programs and try again"
            )
        except BaseException:
            stop_workers()
            raise


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def start_worker(start: Callable | None, args: tuple):
    def follow_parent():  # otherwise workers would outlive a main process that gets killed
        multiprocessing.parent_process().join()
        os._exit(1)

    for number in SIGNALS:  # where they cannot be blocked
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=follow_parent, daemon=True).start()
    if start:
        start(*args)


pools = []  # all that `parallel` has made


def stop_workers():
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    for pool in pools:
        # A worker that is killed amid a result leaves half of it in a pipe. The pool waits for the
        # rest until nobody can write there any more, and this process still could.
        if pool._result_queue:
            pool._result_queue._writer.close()


@contextmanager
def starting_processes():
    """Signals do not cut off the start of a process in the block, and only the main one gets them:
    a terminal sends Ctrl-C to all."""
    with hold_signals():
        can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
        if can_block:  # new processes inherit it
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            if can_block:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# --- the data set's folder ------------------------------------------------------------------------


def place_of(out: str) -> Path:
    """The folder that --out names: below data/ or, if it is an absolute path, anywhere but in the
    rest of this repository. Links are followed. ValueError if no data set must go there."""
    path = os.path.expanduser(out)
    places = ROOT, ROOT / "data", ROOT / "data" / path
    root, data, target = (Path(os.path.realpath(place)) for place in places)
    if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] in (".", ".."):
        raise ValueError(
            f"--out={out!r} is not below {data}; for another place, name its full path"
        )
    ours = root == target or root in target.parents or target in root.parents or target == data
    if ours and data not in target.parents:
        raise ValueError(f"--out={out!r} is part of nanoNeoX itself; choose another --out")
    if os.path.lexists(target) and not target.is_dir():
        raise ValueError(f"{target} is no folder; choose another --out")
    return target


def find_place(out: str, part: bool = False) -> Path:
    """The folder of a new data set, or a part of one. ValueError if it holds anything else."""
    target = place_of(out)
    present = {path.name for path in target.iterdir()} if target.is_dir() else set()
    files = share.FILES if part else FILES
    others = sorted(present - set(files))
    if others or present and not present & {"meta.json", "train.bin", "val.bin", "part.json"}:
        found = ", ".join(others[:3] or sorted(present))
        kind = "part" if part else "data set"
        raise ValueError(
            f"{target} is not a {kind}'s folder (it holds {found}); choose another --out"
        )
    return target


@contextmanager
def new_dataset(out: str, part: bool = False) -> Iterator[Path]:
    """A folder to write a data set, or a part of one, into. If the block succeeds, the folder is
    moved to data/<out>, otherwise it is removed.

    So a run that is interrupted, even by SIGKILL, leaves the old data set or none. Nothing that
    existed is ever removed."""
    with mistakes():
        target = find_place(out, part)
        made = [folder for folder in target.parents if not folder.exists()]
        # The computer's name: over a network, another one's locks may be invisible.
        folder = target.with_name(f".{target.name}.partial-{platform.node()}-{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(target)
            folder.mkdir()
        except OSError:
            remove_empty(made)
            raise
    tidying.append(functools.partial(shutil.rmtree, folder, ignore_errors=True))
    try:
        with locked(folder):
            yield folder
            sync_folder(folder)
            unchanged = is_same(folder, target)
            with hold_signals():
                aside = None if unchanged else put_in_place(folder, target)
        if unchanged:
            print(f"{target} holds exactly this already; it is unchanged")
        elif aside:
            print(f"the data set that was in {target} is now {aside}")
    except BaseException as error:
        stop_workers()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("interrupted; nothing half-made is left behind") from None
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            die(f"{target} cannot be written ({error}); nothing half-made is left behind")
        raise
    finally:
        with hold_signals():  # however long it takes
            shutil.rmtree(folder, ignore_errors=True)
            remove_empty(made)


def remove_empty(folders: list[Path]):
    with contextlib.suppress(OSError):  # the first one that holds something ends it
        for folder in folders:
            folder.rmdir()


def is_same(new: Path, old: Path) -> bool:
    """Whether two data sets hold the same tokens and tokenizer, or two parts the same documents."""
    facts = [
        [read_json(folder / "meta.json").get(key) for key in ("tokenizer", "vocab_size", *SPLITS)]
        for folder in (new, old)
    ]
    try:
        return facts[0] == facts[1] and all(
            filecmp.cmp(new / name, old / name, shallow=False)
            for name in (*FILES, *share.FILES)
            if name != "meta.json"  # this also says when and how it was made
            and ((new / name).exists() or (old / name).exists())  # few sets have masks
        )
    except OSError:  # there is no old one, or it is damaged
        return False


def put_in_place(folder: Path, target: Path) -> Path | None:
    """Move a finished data set to its place. Returns where the one that was there before is now."""
    aside = None
    if target.exists():
        if any(target.iterdir()):
            aside = target.rename(unused(target))
        else:
            target.rmdir()
    try:
        folder.rename(target)
    except OSError:
        if aside:
            aside.rename(target)
        raise
    sync_folder(target.parent)
    return aside


def clear_leftovers(target: Path):
    """Remove what killed runs on this machine left behind."""
    name = f".{target.name}.partial-{platform.node()}-"
    for path in target.parent.glob(f"{glob.escape(name)}*"):
        with locked(path) as free:
            if free and path.name.removeprefix(name).isdecimal():
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder, until the block or the process ends. Yields whether that worked: not if
    another process holds it, and nowhere on Windows, which locks no folders."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            opened = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, opened)
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError):
            yield False
        else:
            yield True


class Encoded(NamedTuple):
    """Documents as tokens."""

    split: str  # train or val
    ids: np.ndarray  # uint16
    documents: int
    size: int  # bytes of text
    pieces: int = 0  # that were looked at for filling in the middle
    rearranged: int = 0  # of those
    learnt: np.ndarray | None = None  # uint8: 1 for each id that is learnt; None: all of them


def write_dataset(folder: Path, tok: Tokenizer, encoded: Iterable[Encoded], about: dict) -> dict:
    """Write the bin files, the masks if there are any, and meta.json, which gets `about` too.
    Returns the content of meta.json.

    tokenizer.json must already be there."""
    counts = {split: {"tokens": 0, "bytes": 0, "documents": 0, "max_id": 0} for split in SPLITS}
    files, hashes, fim = {}, {}, Counter()
    with contextlib.ExitStack() as stack:

        def write(name: str, data: bytes):
            if name not in files:
                files[name] = stack.enter_context(open(folder / name, "wb"))
                hashes[name] = hashlib.sha256()
            files[name].write(data)
            hashes[name].update(data)

        for split in SPLITS:
            write(f"{split}.bin", b"")  # however few documents there are
        for split, ids, documents, size, pieces, rearranged, learnt in encoded:
            write(f"{split}.bin", ids.astype("<u2").tobytes())
            count = counts[split]
            if learnt is not None:
                write(f"{split}.mask", learnt.astype(np.uint8).tobytes())
                chosen = ids[learnt == 1]
                count["learnt"] = count.get("learnt", 0) + len(chosen)
                count["learnt_bytes"] = count.get("learnt_bytes", 0) + text_bytes(tok, chosen)
            count["tokens"] += len(ids)
            count["bytes"] += size
            count["documents"] += documents
            count["max_id"] = max(count["max_id"], int(ids.max(initial=0)))
            fim.update(pieces=pieces, rearranged=rearranged)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for split, count in counts.items():
        count["sha256"] = hashes[f"{split}.bin"].hexdigest()
        if f"{split}.mask" in hashes:
            count["mask_sha256"] = hashes[f"{split}.mask"].hexdigest()
    meta = {
        "tokenizer": {"kind": tok.kind, "file": "tokenizer.json"},
        "vocab_size": tok.vocab_size,
        **counts,
        "fim": dict(fim),
        **about,
        "versions": versions(),
    }
    write_json(folder / "meta.json", meta)
    return meta


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "tiktoken", "tokenizers")}
    return {"python": sys.version.split()[0], **packages}


def text_bytes(tok: Tokenizer, ids: np.ndarray) -> int:
    """The bytes of text that ids stand for; special tokens have none."""
    special = set(tok.special.values())
    kinds, counts = np.unique(ids, return_counts=True)
    return sum(
        n * len(tok.token_bytes(i))
        for i, n in zip(kinds.tolist(), counts.tolist())
        if i not in special
    )


def print_report(meta: dict, out: str, command: str = ""):
    """What was read, dropped, masked and written, and what to run next: the command or, without
    one, a training from scratch."""
    if meta.get("cleaning"):
        print_cleaning(meta)
        print(f"split by {meta['split_by']}")
    for split in ("train", "val"):
        n = meta[split]
        size = f"{n['bytes'] / 1e6:,.2f} MB"
        documents = counted(n["documents"], "document")
        print(f"{split}: {n['tokens']:,} tokens, {size}, {documents}")
    if meta["fim"].get("rearranged"):
        print(
            f"train: {meta['fim']['rearranged']:,} of {meta['fim']['pieces']:,} pieces rearranged "
            "for filling in the middle; --fim_rate=0 leaves them as they are"
        )
    density = meta["val"]["bytes"] / meta["val"]["tokens"]
    print(f"val: {density:.2f} bytes per token, vocabulary {meta['vocab_size']:,}")
    print(f"next: {command or next_step.training(meta, out)}")


def print_cleaning(meta: dict):
    print(f"{'':<36}{'documents':>10}{'MB':>10}")
    for rule, count in meta["cleaning"].items():
        if count["documents"]:
            print(f"{rule:<36}{count['documents']:>10,}{count['bytes'] / 1e6:>10.1f}")
    for reason, count in meta.get("left out of train", {}).items():
        print(
            f"left out of train: {reason}: {counted(count['documents'], 'document')}, "
            f"{count['bytes'] / 1e6:.1f} MB"
        )
    masked = ", ".join(counted(count, name) for name, count in meta["masked"].items())
    print(f"masked: {masked or 'nothing'}")


# --- the whole way --------------------------------------------------------------------------------


def build(
    cfg,
    documents: Iterable[Document],
    source: str,
    total: int | None = None,
    unit: str = "repository or package",
    command: str = "",
    language: str = "",
):
    """Make data/<cfg.out> from documents. source: what meta.json says about their origin; total:
    their bytes, if known, for the progress bar; unit: what their groups are; command: what to run
    next, if that is not a training from scratch; language: python, go or, of other text, empty."""
    given, benchmark = check_settings(cfg), None
    with mistakes():
        if cfg.decontaminate:
            benchmark = read_benchmark(locate(cfg.decontaminate))
        if cfg.column and not cfg.file:
            raise ValueError("--column names a column of the files in --file=...; give both")
        part = share.parse(cfg.part)
    listing = hashlib.blake2b(digest_size=16)
    mine = share.take(documents, part, cfg.max_mb, listing)
    total = total and total // part.of
    judged = examine_all(mine, cfg, benchmark, total)
    about = share.About(source=source, language=language, unit=unit, command=command)
    if not cfg.part:
        return assemble(cfg, judged, total, given, about)
    with mistakes():
        place = share.folder_of(find_place(cfg.out), part)
    with new_dataset(str(place), part=True) as folder:
        check_disk(folder, total)
        facts = share.write_part(folder, judged, vars(cfg), about, listing)
    print(
        f"{place}: {facts['documents']:,} documents, {facts['bytes'] / 1e6:,.2f} MB after cleaning"
    )
    print(
        f"next, where all {part.of} parts are: python prepare/join.py --out={shlex.quote(cfg.out)}"
    )


def check_settings(cfg) -> Tokenizer | None:
    """The tokenizer that the settings name; None if one is trained. Ends the script where they make
    no sense."""
    most = {"fim_rate": 1, "val_fraction": 0.5, "max_share": 1}
    require(cfg, ["val_fraction"], most, pattern=sorted(tokenization.PATTERNS))
    if cfg.tokenizer == "bpe" and not 512 <= cfg.vocab_size <= 65536:
        die(f"vocab_size must be from 512 to 65536 (token ids have 16 bits), not {cfg.vocab_size}")
    if cfg.fim_rate and cfg.fim_context < infill.SHORTEST:
        die(f"fim_context must be at least {infill.SHORTEST} tokens, not {cfg.fim_context}")
    with mistakes():
        if cfg.eot and cfg.tokenizer == "bpe":
            raise ValueError(
                f"the bpe that is trained here ends texts with {ENDOFTEXT}; drop --eot"
            )
        given = None if cfg.tokenizer == "bpe" else open_tokenizer(cfg.tokenizer, cfg.eot)
        if given and cfg.fim_rate and not infill.knows_fim(given):
            say_no_fim(cfg)
    return given


def assemble(
    cfg, judged: Iterable[Judged], size: int | None, given: Tokenizer | None, about: share.About
):
    """Make data/<cfg.out> from documents that went through the cleaning. size: their bytes, if
    known; given: the tokenizer, unless one is trained."""
    with new_dataset(cfg.out) as folder:
        check_disk(folder, size)
        spool, report = fill_spool(folder / "spool", judged)
        is_val, split_by = hold_out(spool, cfg.val_fraction, about["unit"])
        chosen, report["left out of train"] = choose(spool, is_val, cfg)
        if not (chosen & ~is_val).any():
            die("with these max_share, max_kb and tests nothing is left to train on; allow more")
        spool, is_val = spool.of(chosen), is_val[chosen]
        tok = given or train_tokenizer(folder, spool, is_val, cfg)
        with mistakes():
            tok.save(folder)
        encoded = encode_spool(folder, spool, is_val, cfg)
        origin = {"source": about["source"], "language": about["language"], "split_by": split_by}
        meta = write_dataset(folder, tok, encoded, {**origin, **report, "arguments": vars(cfg)})
        spool.path.unlink()
    print_report(meta, cfg.out, about["command"])


def check_disk(folder: Path, size: int | None):
    """Ends the script if so many bytes of text, if known, do not fit on the folder's disk."""
    if (size or 0) > (free := shutil.disk_usage(folder).free):
        die(
            f"{size / 1e6:,.0f} MB of text do not fit on this disk, which has {free / 1e6:,.0f} MB "
            "free; --max_mb takes a part of them"
        )


def open_tokenizer(name: str, eot: str = "") -> Tokenizer:
    """A saved tokenizer, by path, one of tiktoken's, by name, or that of a model on the hub. eot:
    its end-of-text token; empty: the one that it names. ValueError if it is none of them, cannot
    encode code, or has no such token."""
    path = locate(name)
    if path.exists():
        tok = tokenization.load(path)
    elif name.startswith(("out/", "data/", ".", "/", "~")):  # a name that no hub model has
        raise ValueError(f"there is no tokenizer {name}; is the model that it belongs to trained?")
    elif "/" in name:
        tok = tokenization.from_hub(name)
    else:
        tok = tokenization.from_tiktoken(name)
    if tok.kind == "char":
        raise ValueError(f"{name} knows only the characters it was made from; give a bpe")
    tok.end_with(eot)
    if tok.eot is None:
        print(f"{name} has no special tokens: nothing will separate documents", file=sys.stderr)
    tok.encode("def f(x):\n\treturn 'é'\n")
    return tok


def say_no_fim(cfg):
    """Leave the documents as they are, and say so. ValueError if they should not stay so."""
    reason = f"{cfg.tokenizer} has no tokens for filling in the middle"
    if any(arg.startswith("--fim_rate") for arg in sys.argv):
        raise ValueError(f"{reason}; take --tokenizer=bpe, or --fim_rate=0")
    print(f"{reason}: fim_rate is 0", file=sys.stderr)
    cfg.fim_rate = 0.0


class Spool(NamedTuple):
    """The documents that were kept: their UTF-8 text, one after the other, in a file. The arrays
    (uint64) have an entry for each document."""

    path: Path
    groups: np.ndarray  # the hash of its group
    texts: np.ndarray  # the hash of its text
    lengths: np.ndarray  # in bytes
    offsets: np.ndarray  # where in the file it begins
    tests: np.ndarray  # bool: whether it is a test

    def of(self, chosen: np.ndarray) -> "Spool":
        """Some of them (bool), in the same file."""
        return Spool(self.path, *(values[chosen] for values in self[1:]))


def read_spool(path: Path, places: Iterable[tuple[int, int]]) -> Iterator[str]:
    """The documents at some (offset, length) of the spool file."""
    with open(path, "rb") as file:
        for offset, length in places:
            file.seek(offset)
            yield file.read(length).decode()


def examine_all(
    documents: Iterable[tuple[int, Document]], cfg, benchmark: Benchmark | None, total: int | None
) -> Iterator[Judged]:
    """Clean and sketch documents, given with their places, in all cores and in order."""
    progress = tqdm(total=total, unit="B", unit_scale=True, desc="cleaning", disable=None)
    with progress:
        for batch in parallel(examine_batch, batches(documents), remember, (cfg, benchmark)):
            for judged in batch:
                progress.update(judged.examined.size)
                yield judged


def fill_spool(path: Path, documents: Iterable[Judged]) -> tuple[Spool, dict]:
    """Drop duplicates, and write what the cleaning leaves to the spool file. Returns the spool and
    a report for meta.json."""
    groups, texts, lengths, tests = array("Q"), array("Q"), array("Q"), array("B")
    tally, table = Tally(), np.zeros(2**25, np.uint32)
    with open(path, "wb") as file:
        for _, group, licences, language, examined in documents:
            rule = examined.rule or duplicate(table, examined.keys)
            if rule:
                tally.drop(rule, examined)
                continue
            tally.keep(examined, licences, language)
            file.write(examined.text)
            groups.append(group)
            texts.append(int(examined.keys[0]))
            lengths.append(len(examined.text))
            tests.append(is_test(examined.name))
    groups, texts, lengths = (np.array(a, np.uint64) for a in (groups, texts, lengths))
    offsets = np.cumsum(lengths) - lengths
    spool = Spool(path, groups, texts, lengths, offsets, np.array(tests, bool))
    return spool, tally.report()


class Tally:
    """What cleaning did: the documents and bytes that were read, that each rule dropped, and that
    were kept; the first document that each rule dropped; the licences, languages and masked secrets
    of those that were kept. A stream saves the report and counts on from it."""

    def __init__(self, report: dict | None = None):
        """report: what another tally's `report` returned, in memory or from a JSON file."""
        before = report or {}
        self.cleaning = {rule: {"documents": 0, "bytes": 0} for rule in ALL_RULES}
        self.cleaning |= {rule: dict(count) for rule, count in before.get("cleaning", {}).items()}
        self.licences, self.languages, self.masked = (
            Counter(before.get(key)) for key in ("licences", "languages", "masked")
        )

    def count(self, rule: str, size: int):
        self.cleaning[rule]["documents"] += 1
        self.cleaning[rule]["bytes"] += size

    def drop(self, rule: str, examined: Examined):
        self.count("read", examined.size)
        self.count(rule, examined.size)
        if "example" not in self.cleaning[rule]:
            text = examined.text[: 4 * EXAMPLE].decode(errors="ignore")[:EXAMPLE]
            name = mask(tokenization.valid(examined.name))[0]  # a file's name may be no UTF-8
            self.cleaning[rule]["example"] = {"name": name, "text": text}

    def keep(self, examined: Examined, licences: list[str] | None, language: str | None = None):
        self.count("read", examined.size)
        self.count("kept", len(examined.text))
        self.masked += examined.masked
        self.licences.update(licences or ["unknown"])
        if language:
            self.languages[language] += 1

    def report(self) -> dict:
        """For meta.json: "cleaning", "licences", "languages" and "masked"."""
        return {
            "licences": dict(self.licences.most_common()),
            "languages": dict(self.languages.most_common()),
            "cleaning": self.cleaning,
            "masked": dict(self.masked),
        }


def duplicate(table: np.ndarray, keys: np.ndarray) -> str | None:
    """The rule that drops a document because its sketch shares a key with an earlier one. If there
    is none, the table gets its keys.

    Each of the table's 2^25 slots (128 MB) belongs to one value of a key's lower bits and holds 32
    more bits of the last key that came there. So memory is fixed, and two different texts are
    practically never taken for duplicates. With millions of documents, old ones are gradually
    forgotten, where a Bloom filter would fill up and drop everything."""
    slots = keys & np.uint64(len(table) - 1)
    marks = (keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    same = table[slots] == marks
    if same.any():
        return "exact duplicate" if same[0] else "near duplicate"
    table[slots] = marks
    return None


def batches(documents: Iterable[tuple[int, Document]]) -> Iterator[list]:
    """Lists of documents, each with its place, of about BATCH bytes."""
    batch, size = [], 0
    for place, document in documents:
        batch.append((place, document))
        size += size_of(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def remember(*values):
    """Keep, in a worker process, what is the same for all of its batches."""
    global remembered
    remembered = values


def examine_batch(batch: list[tuple[int, Document]]) -> list[Judged]:
    cfg, benchmark = remembered
    return [
        Judged(place, seeded(cfg.seed, d.group), d.licences, d.language, examine(d, cfg, benchmark))
        for place, d in batch
    ]


def hold_out(spool: Spool, val_fraction: float, unit: str) -> tuple[np.ndarray, str]:
    """Which documents make the val split (bool), and what was kept together. Ends the script if
    there are too few."""
    is_val = choose_val(spool.groups, spool.lengths, val_fraction)
    if is_val is not None:
        return is_val, unit
    is_val = choose_val(spool.texts, spool.lengths, val_fraction)
    if is_val is not None:
        return is_val, "file, as there are too few repositories or packages"
    left = f"{len(spool.lengths):,} documents ({spool.lengths.sum() / 1e6:.2f} MB)"
    die(
        f"{left} are left after cleaning: too few for a train and a val split of "
        f"{val_fraction:g}; give more code"
    )


def train_tokenizer(folder: Path, spool: Spool, is_val: np.ndarray, cfg) -> Tokenizer:
    """A BPE trained on a random sample of the train split.

    It is trained in another process, so its memory is freed and Ctrl-C does not wait for it."""
    order = np.where(is_val, 0, spool.texts)  # a hash, so random; 0: not in the train split
    ranked = np.argsort(order)
    ranked = ranked[order[ranked] > 0]
    enough = np.searchsorted(np.cumsum(spool.lengths[ranked]), SAMPLE) + 1
    chosen = np.sort(ranked[:enough])
    offsets, lengths = spool.offsets[chosen], spool.lengths[chosen]
    size = f"{lengths.sum() / 1e6:.1f} MB"
    print(f"training a BPE of {cfg.vocab_size:,} tokens on {size} ...", file=sys.stderr)
    places = list(zip(offsets.tolist(), lengths.tolist()))
    pattern = tokenization.PATTERNS[cfg.pattern]
    train = functools.partial(train_and_save, folder, spool.path, cfg.vocab_size, pattern)
    list(parallel(train, [places], workers=1))
    return tokenization.load(folder)


def train_and_save(folder: Path, path: Path, vocab_size: int, pattern: str, places: list):
    tokenization.train_bpe(read_spool(path, places), vocab_size, pattern).save(folder)


def encode_spool(folder: Path, spool: Spool, is_val: np.ndarray, cfg) -> Iterator[Encoded]:
    """All of train, then all of val, in the order of the spool."""
    offsets, lengths = spool.offsets, spool.lengths
    jobs = []
    for name, rows in (("train", np.flatnonzero(~is_val)), ("val", np.flatnonzero(is_val))):
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths[rows]) // BATCH)) + 1
        jobs += [(name, offsets[part], lengths[part]) for part in np.split(rows, cuts)]
    total = int(lengths.sum())
    progress = tqdm(total=total, unit="B", unit_scale=True, desc="encoding", disable=None)
    with progress:
        for encoded in parallel(encode_batch, jobs, start_encoder, (folder, spool.path, cfg)):
            progress.update(encoded.size)
            yield encoded


def start_encoder(folder: Path, path: Path, cfg):
    remember(tokenization.load(folder), path, cfg)


def encode_batch(job: tuple[str, np.ndarray, np.ndarray]) -> Encoded:
    """Documents, given by their offsets and lengths in the spool, each followed by the end-of-text
    token. Those of train are partly rearranged, by a draw that hangs on nothing but the seed and
    the document; those of val are not, so that losses compare."""
    tok, path, cfg = remembered
    name, offsets, lengths = job
    end = [] if tok.eot is None else [tok.eot]
    arrays, fim = [], Counter(pieces=0, rearranged=0)
    for text in read_spool(path, zip(offsets.tolist(), lengths.tolist())):
        ids = tok.encode_numpy(text)
        if name == "train" and cfg.fim_rate:
            rng = random.Random(seeded(cfg.seed, text))
            parts, pieces, rearranged = infill.rearrange(
                tok, ids, cfg.fim_rate, cfg.fim_context, rng
            )
            arrays += parts
            fim.update(pieces=pieces, rearranged=rearranged)
        else:
            arrays += [ids, np.array(end, np.uint16)]
    return Encoded(name, np.concatenate(arrays), len(offsets), int(lengths.sum()), **fim)

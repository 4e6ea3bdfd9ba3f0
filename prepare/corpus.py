"""What the prepare scripts share: documents in, data/<dataset>/{train.bin, val.bin, tokenizer.json, meta.json} out.

    documents -> [processes: read, clean, sketch] -> duplicates out -> spool file -> split by group -> tokenizer
              -> [processes: encode] -> bin files -> the whole folder is moved into place

Only some batches of 1 MB and a few numbers a document are in memory at a time, so a corpus may be of any size.
"""

import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from array import array
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from parts import tokenizer
from clean import RULES, examine, read_benchmark
from parts.configurator import ROOT, die, locate, mistakes, require
from sources import choose_val, seeded

BATCH = 1_000_000  # bytes that a process handles at a time
SAMPLE = 16_000_000  # bytes of the train split that a BPE is trained on; twice as much takes twice as long
FILES = ("train.bin", "val.bin", "meta.json", "tokenizer.json", "tokenizer_config.json")  # all that a data set holds


def run(main):
    """main(), with one line and exit code 130 for Ctrl-C and SIGTERM."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        print("interrupted; nothing half-made is left behind", file=sys.stderr)
        sys.exit(130)


# Processes

def parallel(function, items, start=None, args=(), workers=None):
    """function(item) for each item, in order, on all cores. Few items are in flight, so memory stays flat.

    Processes are spawned, on every system alike: forking a process that has threads may hang it."""
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count()))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=start_worker, initargs=(start, args)) as pool:
        try:
            waiting = deque()
            for item in items:
                with held_signals():  # here a new process may start, and must not be cut off half-way
                    waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            die("a worker process was killed, probably for lack of memory; close other programs and try again")
        except BaseException:
            stop_workers()
            raise


def start_worker(start, args):
    def follow_parent():  # or workers would outlive a main process that was killed with no chance to end them
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow_parent, daemon=True).start()
    if start:
        start(*args)


def stop_workers():
    for process in multiprocessing.active_children():
        process.terminate()


@contextmanager
def held_signals():
    """Ctrl-C and SIGTERM wait until the block is done."""
    names, came = (signal.SIGINT, signal.SIGTERM), []
    handlers = [signal.signal(name, lambda *_: came.append(1)) for name in names]
    if hasattr(signal, "pthread_sigmask"):  # not on Windows. New processes inherit it: Ctrl-C is for the main one alone
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for name, handler in zip(names, handlers):
            signal.signal(name, handler)
    if came:
        raise KeyboardInterrupt


# The data set's folder

@contextmanager
def new_dataset(out):
    """A folder to write a data set into; moved to data/<out> when the block ends well, removed when it does not.

    So a run that is interrupted, even by SIGKILL, leaves the old data set or none."""
    target = (ROOT / "data" / out).resolve()
    old, folder = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("old", "partial"))
    others = [path.name for path in target.iterdir() if path.name not in FILES] if target.is_dir() else []
    if not out or target.is_file() or others:
        die(f"{target} is not a data set's folder ({', '.join(others[:3]) or 'or none'} in it); choose another --out")
    with mistakes():
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        folder.mkdir()
    try:
        yield folder
        with held_signals():
            if target.exists():
                target.rename(old)
                print(f"{target} is replaced")
            folder.rename(target)
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not stop the tidying up
        stop_workers()
        raise
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (old, folder):
            shutil.rmtree(left, ignore_errors=True)


def clear_leftovers(target):
    """Remove what killed runs left; put the old data set back if one was killed just while it moved."""
    for left in sorted(target.parent.glob(f".{glob.escape(target.name)}.*-*")):
        kind, _, pid = left.name.rpartition(".")[2].partition("-")
        if kind == "old" and not target.exists():
            left.rename(target)
        elif kind in ("old", "partial") and not is_running(pid):
            shutil.rmtree(left, ignore_errors=True)


def is_running(pid):
    try:
        return os.name == "posix" and os.kill(int(pid), 0) is None
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):  # someone else's process; no number, so not ours
        return True


def write_dataset(folder, tok, encoded, meta):
    """Write the bin files, tokenizer.json and meta.json from (split, uint16 ids, documents, bytes of text) items."""
    with mistakes():
        tok.save(folder)
    sums = {split: {"tokens": 0, "bytes": 0, "documents": 0} for split in ("train", "val")}
    digests = {split: hashlib.sha256() for split in sums}
    with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val:
        for split, ids, documents, size in encoded:
            data = ids.astype("<u2").tobytes()
            (train if split == "train" else val).write(data)
            digests[split].update(data)
            for key, number in zip(sums[split], (len(ids), size, documents)):
                sums[split][key] += int(number)
    for split, numbers in sums.items():
        numbers["sha256"] = digests[split].hexdigest()
    versions = {name: version(name) for name in ("numpy", "tiktoken", "tokenizers")}
    meta = {"tokenizer": {"kind": tok.kind, "file": "tokenizer.json"}, "vocab_size": tok.vocab_size, **sums, **meta,
            "versions": {"python": sys.version.split()[0], **versions}}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return meta


def print_report(meta, out):
    """What was read, dropped, masked and written, and what to run next."""
    if meta.get("cleaning"):
        print(f"{'':<36}{'documents':>10}{'MB':>10}")
        for rule, count in meta["cleaning"].items():
            if count["documents"]:
                print(f"{rule:<36}{count['documents']:>10,}{count['bytes'] / 1e6:>10.1f}")
        masked = ", ".join(f"{count:,} {name}" for name, count in meta["masked"].items())
        print(f"masked: {masked or 'nothing'}; split by {meta['split_by']}")
    for split in ("train", "val"):
        n = meta[split]
        print(f"{split}: {n['tokens']:,} tokens, {n['bytes'] / 1e6:,.2f} MB, {n['documents']:,} documents")
    print(f"val: {meta['val']['bytes'] / meta['val']['tokens']:.2f} bytes per token, vocabulary {meta['vocab_size']:,}")
    config = f"config/{out.removesuffix('_char')}_cpu.py"
    otherwise = f"config/{Path(sys.argv[0]).stem}_cpu.py --dataset={out} --out_dir=out/{Path(out).name}"
    print(f"next: python train.py {config if (ROOT / config).exists() else otherwise}")


# The whole way

def build(cfg, documents, source, total=None):
    """Make data/<cfg.out> from an iterable of Documents; total: their bytes, where known, for the progress bar."""
    benchmark = None
    with mistakes():
        if cfg.decontaminate:
            benchmark = read_benchmark(locate(cfg.decontaminate))
        given = None if cfg.tokenizer == "bpe" else open_tokenizer(cfg.tokenizer)
    if given and given.kind == "char":
        die(f"{cfg.tokenizer} knows only the characters that it was made from; code needs a bpe")
    require(cfg, positive=["val_fraction"], pattern=sorted(tokenizer.PATTERNS))
    if not given and not 512 <= cfg.vocab_size <= 65536:
        die(f"vocab_size must be from 512 to 65536 (token ids are 16 bits wide), not {cfg.vocab_size}")
    if cfg.val_fraction > 0.5:
        die(f"val_fraction must be at most 0.5, not {cfg.val_fraction}")

    with new_dataset(cfg.out) as folder:
        spool = folder / "spool"
        groups, units, lengths, report = fill_spool(spool, documents, cfg, benchmark, total)
        split_by = "repository or package"
        is_val = choose_val(groups, lengths, cfg.val_fraction)
        if is_val is None:
            split_by, is_val = "file, for want of enough groups", choose_val(units, lengths, cfg.val_fraction)
        if is_val is None:
            die(f"{len(lengths):,} documents ({lengths.sum() / 1e6:.2f} MB) are left after cleaning: too few for a "
                "train and a val split; give more code")
        tok = given or train_tokenizer(folder, spool, lengths, np.where(is_val, 0, units), cfg)
        tok.save(folder)
        encoded = encode_spool(folder, spool, lengths, is_val)
        meta = write_dataset(folder, tok, encoded, {
            "source": source, "split_by": split_by, **report, "arguments": vars(cfg)})
        spool.unlink()
    print_report(meta, cfg.out)


def open_tokenizer(name):
    """One of tiktoken's by name, or a saved one by path. Raises ValueError."""
    return tokenizer.load(locate(name)) if locate(name).exists() else tokenizer.from_tiktoken(name)


def fill_spool(spool, documents, cfg, benchmark, total):
    """Clean the documents, drop duplicates, and append the rest to the spool file.

    Returns for each document kept: the hash of its group, of its text, its length in bytes; and the report."""
    groups, units, lengths = array("Q"), array("Q"), array("Q")
    rules = ("read", "unreadable", *RULES, "benchmark", "exact duplicate", "near duplicate", "kept")
    cleaning = {rule: {"documents": 0, "bytes": 0} for rule in rules}
    masked, licences, table = Counter(), Counter(), np.zeros(2**25, np.uint32)

    def count(rule, size):
        cleaning[rule]["documents"] += 1
        cleaning[rule]["bytes"] += size

    progress = tqdm(total=total, unit="B", unit_scale=True, desc="cleaning", disable=None)
    with open(spool, "wb") as file, progress:
        for batch in parallel(examine_batch, batches(documents, cfg.max_mb), remember, (cfg, benchmark)):
            for group, names, (rule, size, text, keys, masks) in batch:
                count("read", size)
                progress.update(size)
                rule = rule or duplicate(table, keys)
                count(rule or "kept", len(text) if not rule else size)
                if not rule:
                    file.write(text)
                    groups.append(group)
                    units.append(int(keys[0]))
                    lengths.append(len(text))
                    masked += masks
                    licences.update(names or ["not told"])
    arrays = (np.array(a, np.uint64) for a in (groups, units, lengths))
    return *arrays, {"licences": dict(licences.most_common()), "cleaning": cleaning, "masked": dict(masked)}


def duplicate(table, keys):
    """The rule that drops a document whose sketch shares a key with an earlier one's, or None, and then remember it.

    The table has one slot for each of 2^25 values of a key, and keeps 32 more bits of the key there, so memory is fixed
    (128 MB), a different text is next to never taken for a duplicate, and with some million documents old ones are
    forgotten bit by bit, where a Bloom filter would fill up and drop everything."""
    slots, marks = keys & np.uint64(len(table) - 1), (keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    same = table[slots] == marks
    if same.any():
        return "exact duplicate" if same[0] else "near duplicate"
    table[slots] = marks


def batches(documents, max_mb):
    """Lists of Documents of about BATCH bytes, until max_mb is reached."""
    batch, size, left = [], 0, max_mb * 1e6 or float("inf")
    for document in documents:
        batch.append(document)
        text = document.text
        added = len(text) if isinstance(text, str) else text.stat().st_size if text.exists() else 0
        size, left = size + added, left - added
        if size >= BATCH or left <= 0:
            yield batch
            batch, size = [], 0
        if left <= 0:
            return
    if batch:
        yield batch


def remember(*values):
    global remembered  # in a worker process: what is the same for all its batches
    remembered = values


def examine_batch(batch):
    cfg, benchmark = remembered
    return [(seeded(cfg.seed, d.group), d.licences, examine(d, cfg, benchmark)) for d in batch]


def train_tokenizer(folder, spool, lengths, order, cfg):
    """A BPE from a random sample of the train split. order: 0 for val documents, else what to sort by for the sample.

    It is trained in a process of its own: its memory is given back, and Ctrl-C need not wait for it."""
    ranked = np.argsort(order)
    ranked = ranked[order[ranked] > 0]
    chosen = np.sort(ranked[: np.searchsorted(np.cumsum(lengths[ranked]), SAMPLE) + 1])
    offsets = np.cumsum(lengths) - lengths
    print(f"training a BPE of {cfg.vocab_size:,} tokens on {lengths[chosen].sum() / 1e6:.1f} MB ...", file=sys.stderr)
    job = (folder, spool, list(zip(offsets[chosen].tolist(), lengths[chosen].tolist())), cfg.vocab_size, cfg.pattern)
    list(parallel(train_and_save, [job], workers=1))
    return tokenizer.load(folder)


def train_and_save(job):
    folder, spool, places, vocab_size, pattern = job
    tokenizer.train_bpe(read_spool(spool, places), vocab_size, pattern=tokenizer.PATTERNS[pattern]).save(folder)


def read_spool(spool, places):
    with open(spool, "rb") as file:
        for offset, length in places:
            file.seek(offset)
            yield file.read(length).decode()


def encode_spool(folder, spool, lengths, is_val):
    """Items for `write_dataset`: all of train, then all of val, in the order of the spool."""
    offsets = np.cumsum(lengths) - lengths
    jobs = []
    for split, rows in (("train", np.flatnonzero(~is_val)), ("val", np.flatnonzero(is_val))):
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths[rows]) // BATCH)) + 1
        jobs += [(split, offsets[part], lengths[part]) for part in np.split(rows, cuts)]
    with tqdm(total=int(lengths.sum()), unit="B", unit_scale=True, desc="encoding", disable=None) as progress:
        for item in parallel(encode_batch, jobs, start_encoder, (folder, spool)):
            progress.update(item[3])
            yield item


def start_encoder(folder, spool):
    remember(tokenizer.load(folder), spool)


def encode_batch(job):
    """One batch of documents, each followed by the end-of-text token."""
    tok, spool = remembered
    split, offsets, lengths = job
    end = [] if tok.eot is None else [tok.eot]
    pieces = []
    for text in read_spool(spool, zip(offsets.tolist(), lengths.tolist())):
        pieces += [tok.encode_numpy(text), np.array(end, np.uint16)]
    return split, np.concatenate(pieces), len(offsets), int(lengths.sum())

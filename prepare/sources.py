"""Where the prepare scripts' documents come from: folders, JSON lines and parquet files, the Hugging Face hub.

Also which group (repository or package) a document belongs to, and which groups make the val split.
"""

import glob
import gzip
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from clean import Document
from parts.configurator import ROOT, die, locate

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
COLUMNS = {  # what a Document needs -> the columns that hold it, in The Stack, CodeSearchNet and their like
    "text": ("content", "func_code_string", "whole_func_string", "code"),
    "name": ("max_stars_repo_path", "func_path_in_repository", "path"),
    "group": ("max_stars_repo_name", "repository_name", "repo_name", "repo"),
    "licences": ("max_stars_repo_licenses", "licenses", "license"),
    "stars": ("max_stars_count", "stars"),
}


def local_documents(folders, suffix, cfg, licences=None):
    """Documents of the files below some folders, and their size in bytes. In seeded hash order, so that max_mb takes a
    fair share of everything. Their group is their package: the fewest leading folders with which a val split works."""
    files = {}  # the path in its folder -> (path, size): the first folder wins
    for folder in (Path(folder).expanduser() for folder in folders):
        for here, below, names in os.walk(folder):
            below[:] = [name for name in below if is_source(Path(here, name))]
            for path in (Path(here, name) for name in names if name.endswith(suffix)):
                if path.is_file():
                    files.setdefault(path.relative_to(folder).as_posix(), (path, path.stat().st_size))
    names, left = [], cfg.max_mb * 1e6 or float("inf")
    for name in sorted(files, key=lambda name: seeded(cfg.seed, name)):
        if left > 0:
            names.append(name)
            left -= files[name][1]
    if not names:
        die(f"there are no *{suffix} files in {', '.join(map(str, folders))}; name another folder with --path=...")
    sizes = np.array([files[name][1] for name in names], float)
    for depth in range(1, 2 + max(name.count("/") for name in names)):
        groups = ["/".join(name.removesuffix(suffix).split("/")[:depth]) for name in names]
        if choose_val(np.array([seeded(cfg.seed, g) for g in groups]), sizes, cfg.val_fraction) is not None:
            break
    known = licences or {}
    return [Document(files[n][0], n, g, known.get(g.split("/")[0])) for n, g in zip(names, groups)], int(sizes.sum())


def is_source(folder):
    """Whether to look into a folder: not a hidden one, a cache, another virtual environment or what this code makes."""
    made = folder in (ROOT / "data", ROOT / "out")
    return not (made or folder.name[0] == "." or folder.name in SKIPPED_FOLDERS or (folder / "pyvenv.cfg").exists())


def file_documents(patterns):
    """Documents of *.jsonl, *.jsonl.gz and *.parquet files: comma-separated names or globs."""
    for pattern in patterns.split(","):
        paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True)) or [str(locate(pattern))]
        for path in paths:
            if not path.endswith((".jsonl", ".jsonl.gz", ".parquet")):
                die(f"--file takes *.jsonl, *.jsonl.gz and *.parquet, not {path}")
            if not os.path.isfile(path):
                die(f"there is no file {path}")
            yield from documents_from(rows_of(path), path)


def rows_of(path):
    if path.endswith(".parquet"):
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.ParquetFile(path)
            wanted = [name for names in COLUMNS.values() for name in names if name in table.schema_arrow.names]
            for rows in table.iter_batches(batch_size=256, columns=wanted):
                yield from rows.to_pylist()
        except ArrowException as error:
            die(f"{path} is not a sound parquet file: {error}")
    else:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
            try:
                yield from (json.loads(line) for line in lines if line.strip())
            except (ValueError, OSError, EOFError) as error:
                die(f"{path} is not sound JSON lines: {error}")


def hub_documents(**dataset):
    """Documents of a data set on the Hugging Face hub, streamed: only what passes the cleaning is kept on disk."""
    try:
        from datasets import load_dataset

        rows = iter(load_dataset(split="train", streaming=True, **dataset))
        first = next(rows)
    except Exception as error:  # gated, offline, renamed: the library raises a dozen kinds
        die(f"{dataset['path']} cannot be streamed ({type(error).__name__}). If it is gated, accept its terms on "
            f"huggingface.co/datasets/{dataset['path']} and run `hf auth login`; offline, name local copies of its "
            f"files with --file=...")
    yield from documents_from(iter_again(first, rows), dataset["path"])


def iter_again(first, rest):
    yield first
    yield from rest


def documents_from(rows, origin):
    """Rows as dicts -> Documents. A missing column for the text ends the script."""
    columns = None
    for row in rows:
        if columns is None and isinstance(row, dict):
            columns = {need: next((c for c in known if c in row), None) for need, known in COLUMNS.items()}
        if not columns or not columns["text"] or not isinstance(row, dict):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            die(f"{origin} has no column {' or '.join(COLUMNS['text'])}; it has: {found}")
        get = {need: row.get(column) for need, column in columns.items()}
        licences = [get["licences"]] if isinstance(get["licences"], str) else get["licences"]
        if columns["licences"]:
            licences = licences or []
        yield Document(get["text"] or "", get["name"] or "", get["group"] or get["name"] or "", licences, get["stars"])


def seeded(seed, name):
    """A 64-bit hash: sorting by it is a random order, the same on every machine."""
    digest = hashlib.blake2b(f"{seed} {name}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def choose_val(groups, sizes, fraction):
    """Which documents make the val split, as a bool array; whole groups only, so that no repository is in both.

    In the groups' (random) hash order, those of up to an eighth of the split first, for variety, then whatever still
    fits. None where less than half of the wanted bytes comes out."""
    if not len(groups):
        return None
    names, member = np.unique(groups, return_inverse=True)
    totals = np.bincount(member, weights=sizes)
    chosen, wanted = np.zeros(len(names), bool), fraction * totals.sum()
    left = wanted
    for limit in (wanted / 8, wanted):
        for group in np.flatnonzero(~chosen):
            if totals[group] <= min(limit, left):
                chosen[group] = True
                left -= totals[group]
    return chosen[member] if left < wanted / 2 else None

"""Where documents come from: folders, JSON lines and parquet files, the Hugging Face hub.

Also: which group (repository or package) a document belongs to, and which groups make the val
split.
"""

import glob
import gzip
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from parts.configurator import ROOT, die, locate
from prepare.clean import Document

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# A Document's field -> the columns that may hold it, in The Stack, CodeSearchNet and similar sets.
COLUMNS = {
    "text": ("content", "func_code_string", "whole_func_string", "code"),
    "name": ("max_stars_repo_path", "func_path_in_repository", "path"),
    "group": ("max_stars_repo_name", "repository_name", "repo_name", "repo"),
    "licences": ("max_stars_repo_licenses", "licenses", "license"),
    "stars": ("max_stars_count", "stars"),
}


# --- folders --------------------------------------------------------------------------------------


def local_documents(
    folders: list[str | Path], suffix: str, cfg, licences: dict[str, list[str] | None] | None = None
) -> tuple[list[Document], int]:
    """The files with this suffix below some folders as Documents, and their total size in bytes.
    Ends the script if there are none. licences: those of each top-level package, where known.

    They come in the order of a seeded hash, so that max_mb takes a fair share of everything. A
    document's group is its package: as few leading folders as a val split can be made with."""
    files = find_files(folders, suffix)
    names, left = [], cfg.max_mb * 1e6 or float("inf")
    for name in sorted(files, key=lambda name: seeded(cfg.seed, name)):
        if left > 0:
            names.append(name)
            left -= files[name][1]
    if not names:
        places = ", ".join(map(str, folders))
        die(f"there are no *{suffix} files in {places}; name another folder with --path=...")
    sizes = np.array([files[name][1] for name in names], float)
    for depth in range(1, 2 + max(name.count("/") for name in names)):
        groups = ["/".join(name.removesuffix(suffix).split("/")[:depth]) for name in names]
        hashes = np.array([seeded(cfg.seed, group) for group in groups])
        if choose_val(hashes, sizes, cfg.val_fraction) is not None:
            break
    known = licences or {}
    documents = [
        Document(files[name][0], name, group, known.get(group.split("/")[0]))
        for name, group in zip(names, groups)
    ]
    return documents, int(sizes.sum())


def find_files(folders: list[str | Path], suffix: str) -> dict[str, tuple[Path, int]]:
    """Path relative to its folder -> (path, size in bytes). If two folders hold the same relative
    path, the first folder wins."""
    files = {}
    for folder in (Path(folder).expanduser() for folder in folders):
        for here, below, names in os.walk(folder):
            below[:] = [name for name in below if is_source(Path(here, name))]
            for path in (Path(here, name) for name in names if name.endswith(suffix)):
                if path.is_file():
                    name = path.relative_to(folder).as_posix()
                    files.setdefault(name, (path, path.stat().st_size))
    return files


def is_source(folder: Path) -> bool:
    """Whether to look into a folder: not if it is hidden, a cache, another virtual environment, or
    made by this repository."""
    made = folder in (ROOT / "data", ROOT / "out")
    skipped = folder.name[0] == "." or folder.name in SKIPPED_FOLDERS
    return not (made or skipped or (folder / "pyvenv.cfg").exists())


# --- rows of files and of the hub -----------------------------------------------------------------


def file_documents(patterns: str) -> Iterator[Document]:
    """Documents from *.jsonl, *.jsonl.gz and *.parquet files, given as comma-separated names or
    globs. Ends the script at a file that is missing or damaged."""
    for pattern in patterns.split(","):
        paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        for path in paths or [str(locate(pattern))]:
            if not path.endswith((".jsonl", ".jsonl.gz", ".parquet")):
                die(f"--file takes *.jsonl, *.jsonl.gz and *.parquet, not {path}")
            if not os.path.isfile(path):
                die(f"there is no file {path}")
            rows = parquet_rows(path) if path.endswith(".parquet") else json_rows(path)
            yield from documents_from(rows, path)


def parquet_rows(path: str) -> Iterator[dict]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(path)
        known = [name for names in COLUMNS.values() for name in names]
        columns = [name for name in known if name in table.schema_arrow.names]
        for rows in table.iter_batches(batch_size=256, columns=columns):
            yield from rows.to_pylist()
    except ArrowException as error:
        die(f"{path} cannot be read as parquet: {error}")


def json_rows(path: str) -> Iterator:
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        try:
            yield from (json.loads(line) for line in lines if line.strip())
        except (ValueError, OSError, EOFError) as error:
            die(f"{path} cannot be read as JSON lines: {error}")


def hub_documents(**dataset) -> Iterator[Document]:
    """Documents of a data set on the Hugging Face hub (arguments as for datasets.load_dataset).
    They are streamed: only what passes the cleaning is written to disk."""
    try:
        from datasets import load_dataset

        rows = iter(load_dataset(split="train", streaming=True, **dataset))
        first = next(rows)
    except Exception as error:  # gated, offline, renamed: the library raises a dozen types
        name = dataset["path"]
        die(
            f"{name} cannot be streamed ({type(error).__name__}). If it is gated, accept its terms "
            f"on huggingface.co/datasets/{name} and run `hf auth login`; offline, name local "
            "copies of its files with --file=..."
        )
    yield from documents_from(itertools.chain([first], rows), dataset["path"])


def documents_from(rows: Iterable, origin: str) -> Iterator[Document]:
    """Turn rows into Documents. Ends the script at a row that is no dict or has no text column."""
    columns = None
    for row in rows:
        if not isinstance(row, dict):
            die(f"{origin} holds a {type(row).__name__} where a row with named columns should be")
        if columns is None:
            columns = {
                field: next((column for column in known if column in row), None)
                for field, known in COLUMNS.items()
            }
        if not columns["text"]:
            known = " or ".join(COLUMNS["text"])
            die(f"{origin} has no column {known}; it has: {', '.join(row)}")
        get = {field: row.get(column) for field, column in columns.items()}
        licences = [get["licences"]] if isinstance(get["licences"], str) else get["licences"]
        if columns["licences"]:
            licences = licences or []
        name = get["name"] or ""
        yield Document(get["text"] or "", name, get["group"] or name, licences, get["stars"])


# --- the val split --------------------------------------------------------------------------------


def seeded(seed: int, name: str) -> int:
    """A 64-bit hash. Sorting by it gives a random order that is the same on every machine."""
    digest = hashlib.blake2b(f"{seed} {name}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def choose_val(groups: np.ndarray, sizes: np.ndarray, fraction: float) -> np.ndarray | None:
    """Which documents make the val split (bool), given the hash of each one's group and its size in
    bytes. Groups stay whole, so no repository is in both splits.

    In the (random) order of the hashes, it first takes groups of up to an eighth of the split, for
    variety, then whatever still fits. None if that gives less than half of the bytes wanted."""
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

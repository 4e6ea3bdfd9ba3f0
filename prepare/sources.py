"""Where documents come from: folders, files of rows (JSON, parquet, CSV), the Hugging Face hub.

Also: which group (repository or package) a document belongs to, and which groups make the val
split.
"""

import csv
import functools
import glob
import gzip
import hashlib
import json
import os
import shlex
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from typing_extensions import NotRequired, TypedDict

from parts.configurator import ROOT, die, locate, mistakes
from parts.files import check_shape
from prepare.clean import TOO_LARGE, Document

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# A Document's field -> the columns that may hold it, in The Stack, CodeSearchNet and similar sets.
COLUMNS = {
    "text": ("content", "func_code_string", "whole_func_string", "code", "text"),
    "name": ("max_stars_repo_path", "func_path_in_repository", "path", "url"),
    "group": ("max_stars_repo_name", "repository_name", "repo_name", "repo"),
    "licences": ("max_stars_repo_licenses", "licenses", "license"),
    "stars": ("max_stars_count", "stars"),
    "language": ("language", "lang"),
}
# What these columns must hold; a row whose text is missing or null cannot be read.
TYPES = {
    "text": str,
    "name": NotRequired[str | None],
    "group": NotRequired[str | None],
    "licences": NotRequired[list[str] | str | None],
    "stars": NotRequired[int | float | None],
    "language": NotRequired[object],  # counts if it is a text
}
# Bytes of a line of a JSON file. A longer one is passed over: it may not fit in memory, and a
# million characters, all of them escaped, take less than half as many.
LONGEST_LINE = 2**24
LARGEST_LIST = 2**29  # bytes of a JSON list, which takes several times as many of memory
ROWS_TO_TRY = 100  # if none of so many can be read, the file is of another kind
DOCUMENTS = (".jsonl", ".jsonl.gz", ".parquet")  # files of documents
UNREADABLE = Document(None, "", "")


class Sharded:
    """Documents that come in several files, which can be read one without the others."""

    def __init__(self, names: list[str], read: Callable[[int], Iterator[Document]]):
        """names: of the files, the same wherever they lie; read: the documents of one, by number"""
        self.names, self.read = names, read

    def __iter__(self) -> Iterator[Document]:
        for number in range(len(self.names)):
            yield from self.read(number)


# --- folders --------------------------------------------------------------------------------------


def local_documents(
    folders: list[str | Path], suffix: str, cfg, licences: dict[str, list[str] | None] | None = None
) -> tuple[list[Document], int]:
    """The files with this suffix below some folders as Documents, and their total size in bytes.
    Ends the script if there are none. licences: those of each top-level package, where known.

    They come in the order of a seeded hash, so that max_mb takes a fair share of everything. A
    document's group is its package: as few leading folders as a val split can be made with."""
    with mistakes():
        files, skipped = find_files(folders, suffix)
    names, left = [], cfg.max_mb * 1e6 or float("inf")
    for name in sorted(files, key=lambda name: seeded(cfg.seed, name)):
        if left > 0:
            names.append(name)
            left -= files[name][1]
    # In the folders that a script chooses by itself, it is meant.
    passed_over = what_is_in(skipped, suffix) if cfg.path else ""
    if not names:
        places = ", ".join(map(str, folders))
        die(
            f"there are no *{suffix} files in {places}; "
            f"{passed_over or 'name another folder with --path=...'}"
        )
    if passed_over:
        print(passed_over, file=sys.stderr)
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


def find_files(
    folders: list[str | Path], suffix: str
) -> tuple[dict[str, tuple[Path, int]], list[Path]]:
    """Path relative to its folder -> (path, bytes that will be read), and the folders that are
    skipped. If two folders hold the same relative path, the first folder wins. Named pipes, devices
    and sockets are no files. ValueError if none of the folders is there.

    A folder that is named here is read whatever it is called; what `is_source` leaves out is below
    it."""
    files, skipped = {}, []
    folders = [Path(os.path.expanduser(folder)) for folder in folders]
    if not any(folder.is_dir() for folder in folders):
        raise ValueError(f"{folders[0]} is no folder; --path takes one of *{suffix} files")
    named = {os.path.realpath(folder) for folder in folders}
    for folder in folders:
        for here, below, names in os.walk(folder):
            for name in list(below):
                if not is_source(path := Path(here, name)):
                    below.remove(name)
                    if os.path.realpath(path) not in named and not path.is_symlink():
                        skipped.append(path)
            for path in (Path(here, name) for name in names if name.endswith(suffix)):
                try:
                    info = path.stat()
                except OSError:  # it leads nowhere, or has just been removed
                    continue
                if stat.S_ISREG(info.st_mode):
                    name = path.relative_to(folder).as_posix()
                    files.setdefault(name, (path, min(info.st_size, TOO_LARGE)))
    return files, skipped


def what_is_in(skipped: list[Path], suffix: str) -> str:
    """A line about the files in these folders and below, and how to read them; empty if there are
    none."""
    counts = {}
    for folder in skipped:
        inside = (file for _, _, files in os.walk(folder) for file in files)
        if count := sum(file.endswith(suffix) for file in inside):
            counts[folder] = count
    if not counts:
        return ""
    total, names = sum(counts.values()), sorted({folder.name for folder in counts})
    more = f" and {len(names) - 5} more folders" if len(names) > 5 else ""
    largest = shlex.quote(str(max(counts, key=counts.get)))
    return (
        f"skipped: {total:,} *{suffix} file{'s' * (total > 1)} in {', '.join(names[:5])}{more}; "
        f"to read those of one, name it: --path={largest}"
    )


def is_source(folder: Path) -> bool:
    """Whether to look into a folder: not if it is hidden, a cache, another virtual environment, or
    made by this repository."""
    made = folder in (ROOT / "data", ROOT / "out")
    skipped = folder.name[0] == "." or folder.name in SKIPPED_FOLDERS
    return not (made or skipped or (folder / "pyvenv.cfg").exists())


# --- rows of files and of the hub -----------------------------------------------------------------


def file_documents(patterns: str, text_column: str = "") -> Sharded:
    """Documents from *.jsonl, *.jsonl.gz and *.parquet files, given as comma-separated names or
    globs. text_column: the one that holds the text; empty: the first that COLUMNS names. Ends the
    script at a file that is missing or, once it is reached, damaged."""
    with mistakes():
        found = named_files("file", patterns, DOCUMENTS)
    known = columns_of(text_column)
    names = [column for columns in known.values() for column in columns]

    def read(number: int) -> Iterator[Document]:
        path = found[number]
        return documents_from(file_rows(path, names, known["text"]), path, known)

    return Sharded([f"{Path(path).name} {os.path.getsize(path)}" for path in found], read)


def columns_of(text: str = "") -> dict[str, tuple[str, ...]]:
    """COLUMNS, with one column for the text where a person names it."""
    return COLUMNS | ({"text": (text,)} if text else {})


def named_files(setting: str, patterns: str, kinds: tuple[str, ...]) -> list[str]:
    """The files that a setting names, with commas and globs. ValueError if one is missing, or its
    name has none of the endings `kinds`."""
    found = []
    for pattern in patterns.split(","):
        paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        found += paths or [str(locate(pattern))]
    for path in found:
        if not path.endswith(kinds):
            wanted = " and ".join(", ".join(f"*{kind}" for kind in kinds).rsplit(", ", 1))
            raise ValueError(f"--{setting} takes {wanted}, not {path}")
        if not os.path.isfile(path):
            raise ValueError(f"there is no file {path}")
    return found


def file_rows(path: str, known: Iterable[str] = (), needed: Iterable[str] = ()) -> Iterator:
    """The rows of a file by its ending: dicts, of CSV and TSV lists of cells; a ValueError in place
    of a row that cannot be read. Ends the script if the file is damaged.

    known: of parquet, the columns to read; all are read if it has none of these, or of `needed`."""
    from pyarrow import ArrowException

    kind = Path(path.removesuffix(".gz")).suffix
    try:
        if kind == ".parquet":
            yield from parquet_rows(path, known, needed)
        elif kind in (".csv", ".tsv"):
            yield from table_rows(path, kind)
        elif kind == ".json" and begins_list(path):
            yield from json_list(path)
        else:
            with opened(path) as file:
                yield from json_rows(file)
    except (ArrowException, csv.Error, ValueError, OSError, EOFError, zlib.error) as error:
        name = {".jsonl": "JSON lines", ".parquet": "parquet"}.get(kind, kind[1:].upper())
        die(f"{path} cannot be read as {name}: {error}")


def parquet_rows(
    file, known: Iterable[str], needed: Iterable[str], start: int = 0
) -> Iterator[dict | ValueError]:
    """The rows of a parquet file, given by its path or opened, from number `start` on. Of the row
    groups before that one nothing is read."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        chosen = [column for column in known if column in names]
        if needed and not set(needed) & set(names):
            chosen = []  # so that what is missing can be told with what is there
        groups = list(range(table.num_row_groups))
        while groups and start >= (rows := table.metadata.row_group(groups[0]).num_rows):
            start -= rows
            groups.pop(0)
        for rows in table.iter_batches(batch_size=256, row_groups=groups, columns=chosen or None):
            skipped = min(start, rows.num_rows)
            start -= skipped
            for number in range(skipped, rows.num_rows):
                try:  # a text may be no UTF-8, a date beyond Python's
                    row = {
                        name: column[number].as_py()
                        for name, column in zip(rows.schema.names, rows.columns)
                    }
                except (ValueError, OverflowError) as error:
                    row = ValueError(error)
                yield row


def opened(path: str):
    """A file's bytes, unpacked if its name ends in .gz."""
    return (gzip.open if path.endswith(".gz") else open)(path, "rb")


def json_rows(file) -> Iterator:
    """The values on the lines of an open file, from where it stands. After each one it stands where
    the next one begins."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield ValueError(f"a line is longer than {LONGEST_LINE:,} bytes")
        elif line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = ValueError(error)
            yield row


def begins_list(path: str) -> bool:
    """Whether a JSON file holds one list, rather than a value on each line."""
    with opened(path) as file:
        return file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def json_list(path: str) -> list:
    with opened(path) as file:
        data = file.read(LARGEST_LIST + 1)
    if len(data) > LARGEST_LIST:
        raise ValueError(f"it is one list of over {LARGEST_LIST >> 20} MB; write it as JSON lines")
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError as error:
        raise ValueError(error) from None


def table_rows(path: str, kind: str) -> Iterator[list[str] | ValueError]:
    """Lists of cells. CSV may quote a cell, which may then hold commas and newlines; in TSV, as in
    SST-2's, a quotation mark is a character like any other."""

    def lines(file):
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise ValueError(f"a line is longer than {LONGEST_LINE:,} bytes")
            yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").replace("\0", "")

    csv.field_size_limit(LONGEST_LINE)
    how = {} if kind == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with opened(path) as file:
        for row in csv.reader(lines(file), **how):
            try:
                "".join(row).encode()
            except UnicodeEncodeError:  # what surrogateescape made of bytes that are no UTF-8
                row = ValueError("its text is not UTF-8")
            if row:
                yield row


def hub_documents(split: str = "train", **dataset) -> Sharded:
    """Documents of a data set on the Hugging Face hub (arguments as for datasets.load_dataset).
    They are streamed: only what passes the cleaning is written to disk."""
    name = dataset["path"]
    with hub_mistakes(name):
        from datasets import load_dataset

        streamed = load_dataset(split=split, streaming=True, **dataset)
        count = streamed.num_shards

    def rows(number: int) -> Iterator[dict]:
        with hub_mistakes(name):
            yield from streamed.shard(count, number)

    return Sharded([f"{name} {n}" for n in range(count)], lambda n: documents_from(rows(n), name))


@contextmanager
def hub_mistakes(name: str):
    try:
        yield
    except Exception as error:  # gated, offline, renamed: the library raises a dozen types
        die(cannot_stream(name, error))


def cannot_stream(name: str, error: Exception, setting: str = "file") -> str:
    return (
        f"{name} cannot be streamed ({type(error).__name__}). Without a network, name local copies "
        f"of its files with --{setting}=...; if the data set is gated, accept its terms on "
        f"huggingface.co/datasets/{name} and run `hf auth login`"
    )


def documents_from(
    rows: Iterable, origin: str, known: dict[str, tuple[str, ...]] = COLUMNS
) -> Iterator[Document]:
    """Turn rows into Documents. One that cannot be read becomes a Document without text. Ends the
    script if that happens to the first ROWS_TO_TRY rows, or to all. known: as COLUMNS."""
    problem, readable = None, False
    for number, row in enumerate(rows, 1):
        try:
            document, readable = read_row(row, f"row {number}", known), True
        except ValueError as error:
            document, problem = UNREADABLE, problem or error
        yield document
        if number == ROWS_TO_TRY and not readable:
            break
    if problem and not readable:
        die(f"{origin} holds no documents: {problem}")


def read_row(row, where: str, known: dict[str, tuple[str, ...]]) -> Document:
    """A row as a Document. ValueError if it cannot be read, or is one."""
    if isinstance(row, ValueError):
        raise row
    check_shape(row, where, dict)
    columns = find_columns(row, known)
    check_shape(row, where, shape_of(tuple(columns.items())))
    return to_document(row, columns)


@functools.cache
def shape_of(columns: tuple[tuple[str, str], ...]) -> type:
    """What a row must hold, given pairs of a Document's field and its column."""
    return TypedDict("Row", {column: TYPES[field] for field, column in columns})


def find_columns(row: dict, known: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """A Document's field -> the column that holds it. ValueError if none holds the text."""
    columns = {
        field: next(column for column in names if column in row)
        for field, names in known.items()
        if any(column in row for column in names)
    }
    if "text" not in columns:
        raise ValueError(
            f"there is no column {' or '.join(known['text'])}, only {', '.join(row)[:200]}; "
            "--column=NAME says which one holds the text"
        )
    return columns


def to_document(row: dict, columns: dict[str, str]) -> Document:
    get = {field: row.get(column) for field, column in columns.items()}
    licences = get.get("licences")
    if "licences" in columns:
        licences = [licences] if isinstance(licences, str) else licences or []
    name = get.get("name") or ""
    language = get.get("language")
    language = language if isinstance(language, str) else None
    group = get.get("group") or name
    return Document(get["text"], name, group, licences, get.get("stars"), language)


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

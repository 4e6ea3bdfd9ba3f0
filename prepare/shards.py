"""Documents from shards: files on this machine, at URLs or on the hub. For prepare/stream.py.

Shards come in a random order, another one in each epoch. A shard is read from its beginning to its
end, in blocks of about `window` documents, and each block is shuffled. Every draw depends on
nothing but the seed and the place, so a cursor always gives the same continuation:

    {"epoch": 0, "shard": 2, "start": 4711, "at": 17, ...}

names document 17 of the shuffled block that begins at row (parquet) or byte (other files) 4711 of
the shard that is number 2 in this epoch's order.
"""

import glob
import gzip
import hashlib
import io
import itertools
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import requests
from tqdm import tqdm

from parts.configurator import die, locate
from prepare.clean import Document
from prepare.sources import (
    UNREADABLE,
    columns_of,
    json_rows,
    parquet_rows,
    read_row,
    seeded,
)

BLOCK = 2**24  # characters of a block's text, should `window` documents have more
PASSAGE = 10_000  # bytes of a document that is cut from a long text
LONG_TEXT = 100_000  # bytes of a text that is cut, and at most of a passage
RANGE = 2**22  # bytes that are fetched at once
RANGES = 4  # of them that are kept: the columns of parquet lie side by side
TIMEOUT = (10, 30)  # seconds to wait for a connection, and for the next bytes
FIRST_PATIENCE = 5  # seconds in which a source must give its first bytes
LONGEST_WAIT = 60  # seconds between two tries
PACKED = (".csv", ".tsv", ".zst", ".zip", ".arrow", ".tar", ".bz2", ".xz", ".txt.gz")
# Files that hold many documents. Of other files each one is a document.
KINDS = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt")


def open_source(spec: str, cfg):
    """The source that a person named: hub:OWNER/NAME?split=..., a URL, a file, or a glob. cfg has
    seed, column, window, epochs and patience. ValueError if the name is none of these."""
    if spec.startswith("hub:"):
        from prepare.hub import Hub  # late: `datasets` takes a second to import

        return Hub(spec, cfg)
    return Files(spec, cfg)


class Shard(NamedTuple):
    """One file."""

    path: str  # or its URL
    name: str  # without the folder that all of them share
    stamp: list | None = None  # size and time of the last change, where they count
    headers: dict = {}  # of requests for it


class Shards:
    """A source of documents in shards.

    A subclass has find(cursor) -> (shards, fixed): all shards, in an order that is always the same,
    and what shall stand in cursors to find them again. It raises ValueError if there are none, or
    others than when the cursor was made."""

    def __init__(self, spec: str, cfg):
        self.name, self.cfg = spec, cfg
        self.known = columns_of(cfg.column)
        self.web = Web(cfg.patience * 60)
        self.readable, self.problem = False, None  # whether a row was; why the first one was not

    def documents(self, cursor: dict | None) -> Iterator[tuple[Document, dict]]:
        """Documents from the cursor on (None: from the start), each with the cursor that goes on
        right after it. Those that cannot be read come without text.

        ValueError, at once, if the source cannot be opened, or the shard has changed since. Once
        it is being read, damage and too long an outage end the script."""
        shards, fixed = self.find(cursor or {})
        self.readable = bool(cursor)
        if cursor:
            shard = shards[self.order(len(shards), cursor["epoch"])[cursor["shard"]]]
            if shard.stamp != cursor["stamp"]:
                raise ValueError(f"{shard.path} has changed since the stream began")
        start = {"epoch": 0, "shard": 0, "start": 0, "at": 0}
        return self.read(shards, fixed, cursor or start)

    def read(self, shards: list[Shard], fixed: dict, cursor: dict) -> Iterator:
        first, start, at = (cursor[key] for key in ("shard", "start", "at"))
        for epoch in itertools.count(cursor["epoch"]):
            if self.cfg.epochs and epoch >= self.cfg.epochs:
                return
            order, empty = self.order(len(shards), epoch), (first, start) == (0, 0)
            for number in range(first, len(shards)):
                shard = shards[order[number]]
                place = {**fixed, "stamp": shard.stamp, "epoch": epoch, "shard": number}
                for block, end in self.blocks(shard, start):
                    turns = self.order(len(block), epoch, order[number], start)
                    for turn in range(at, len(block)):
                        last = turn + 1 == len(block)
                        here = {"start": end, "at": 0} if last else {"start": start, "at": turn + 1}
                        yield block[turns[turn]], place | here
                    start, at, empty = end, 0, False
                start = at = 0
            if empty:  # going round would never end
                return
            first = 0

    def order(self, n: int, *what: int) -> list[int]:
        """The numbers below n in a random order, which is the same on every machine."""
        return sorted(range(n), key=lambda i: seeded(self.cfg.seed, f"{what} {i}"))

    def blocks(self, shard: Shard, start: int) -> Iterator[tuple[list[Document], int]]:
        """The documents from a place in a shard on, in blocks, each with the place where it ends.
        Ends the script if the shard is damaged, or the first block of all has no documents."""
        from pyarrow import ArrowException

        def check(block):
            if not self.readable and not any(document.text for document in block):
                die(f"{shard.path} holds no documents: {self.problem}")
            self.readable = self.web.started = True

        block, size = [], 0
        try:
            for document, end in self.rows(shard, start):
                block.append(document)
                size += len(document.text) if isinstance(document.text, str) else 0
                if len(block) == self.cfg.window or size >= BLOCK:
                    check(block)
                    yield block, end
                    block, size = [], 0
        except WebError as error:
            die(error)
        except (ArrowException, ValueError, OSError, EOFError, zlib.error) as error:
            die(f"{shard.path} cannot be read: {error}")
        if block:
            check(block)
            yield block, end

    def rows(self, shard: Shard, start: int) -> Iterator[tuple[Document, int]]:
        """The documents from a place in a shard on, each with the place after it."""
        name = shard.name
        if not name.endswith(KINDS):
            if start == 0:
                yield Document(Path(shard.path), name, name), 1
            return
        with self.web.open(shard) if is_url(shard.path) else open(shard.path, "rb") as file:
            if name.endswith(".parquet"):
                columns = [column for columns in self.known.values() for column in columns]
                rows = parquet_rows(file, columns, self.known["text"], start)
                for end, row in enumerate(rows, start + 1):
                    yield self.document(row, f"row {end}"), end
            elif name.endswith(".txt"):
                # They are in no group: what shares one with a document of val is left out of train.
                for text in passages(file, start):
                    try:
                        document = Document(text.decode(), name, "")
                    except UnicodeDecodeError as error:
                        document, self.problem = UNREADABLE, error
                    yield document, file.tell()
            else:
                lines = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
                if lines.read(1) == b"[":
                    raise ValueError("it is one list; write it as JSON lines")
                lines.seek(start)
                for row in json_rows(lines):
                    end = lines.tell()
                    yield self.document(row, f"the row that ends at byte {end}"), end

    def document(self, row, where: str) -> Document:
        try:
            return read_row(row, where, self.known)
        except ValueError as error:
            self.problem = self.problem or error
            return UNREADABLE


def is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def passages(file, start: int) -> Iterator[bytes]:
    """An open text from a place on: in one if it is short, otherwise cut at blank lines into
    passages of PASSAGE bytes or a little more, and of LONG_TEXT where there is no blank line."""
    least = PASSAGE if file.seek(0, io.SEEK_END) > LONG_TEXT else LONG_TEXT
    file.seek(start)
    while lines := list(lines_of_passage(file, least)):
        yield b"".join(lines)


def lines_of_passage(file, least: int) -> Iterator[bytes]:
    size = 0
    while size < LONG_TEXT and (line := file.readline(LONG_TEXT)):
        yield line
        size += len(line)
        if size >= least and not line.strip():
            return


class Files(Shards):
    """The files of one name or glob, or at one URL. *.jsonl, *.jsonl.gz and *.parquet hold a
    document a row; *.txt are cut if they are long; of others each is a document."""

    def find(self, cursor):
        shards = [self.at_url()] if is_url(self.name) else self.on_disk()
        names = "\n".join(shard.name for shard in shards)
        fixed = {"files": hashlib.sha256(names.encode("utf-8", "replace")).hexdigest()[:16]}
        if cursor and cursor["files"] != fixed["files"]:
            raise ValueError(
                f"{self.name} names other files than when the stream began, so it cannot go on; "
                "put new files under another name, and give them to another --source"
            )
        return shards, fixed

    def at_url(self) -> Shard:
        name = unquote(urlsplit(self.name).path)
        if not name.endswith(KINDS):
            raise ValueError(f"{self.name} ends in none of {', '.join(KINDS)}")
        shard = Shard(self.name, name.rsplit("/", 1)[-1])
        try:
            _, size, changed = self.web.fetch(self.name, {}, 0, 1)
        except NoParts as whole:  # then each start of the stream downloads all of it
            size, changed = whole.args
        except WebError as error:
            raise ValueError(error) from None
        return shard._replace(stamp=[size, changed])

    def on_disk(self) -> list[Shard]:
        paths = glob.glob(os.path.expanduser(self.name), recursive=True)
        paths = sorted(filter(os.path.isfile, paths or [str(locate(self.name))]))
        if not paths:
            raise ValueError(
                f"there is no file {self.name}; name files, a glob like 'books/**/*.txt', a URL, "
                "or hub:OWNER/NAME"
            )
        if wrong := next((path for path in paths if path.lower().endswith(PACKED)), None):
            raise ValueError(f"{wrong} cannot be streamed; make it *.jsonl or *.parquet")
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [Path(os.path.relpath(path, root or ".")).as_posix() for path in paths]
        stats = [os.stat(path) for path in paths]
        stamps = [[info.st_size, str(info.st_mtime_ns)] for info in stats]
        return [Shard(*facts) for facts in zip(paths, names, stamps)]


# --- the network ----------------------------------------------------------------------------------


class WebError(OSError):
    """What a server refuses, or that there was no answer for too long; it names the URL or host."""


class NoParts(OSError):
    """The server knows no ranges of files: a file's size, and when it was changed."""


class Web:
    """Fetches parts of files. Once something was read, it outlasts an outage of up to `patience`
    seconds."""

    def __init__(self, patience: float):
        self.patience, self.started = patience, False
        self.session = requests.Session()

    def open(self, shard: Shard) -> io.BufferedIOBase:
        try:
            return io.BufferedReader(WebFile(self, shard), 2**16)
        except NoParts:
            file = tempfile.TemporaryFile()
            self.insist(shard.path, lambda: self.download(shard.path, shard.headers, file))
            return file

    def fetch(self, url: str, headers: dict, start: int, end: int) -> tuple[bytes, int, str]:
        """The bytes of a file from start to end or, if it is shorter, its end; its size; when it
        was changed, as the server says it. NoParts if the server sends whole files only."""
        return self.insist(url, lambda: self.ask(url, headers, start, end))

    def insist(self, url: str, ask: Callable):
        """ask(), again and again while the network or the server is away."""
        host, began, wait, told = urlsplit(url).netloc, time.monotonic(), 1, False
        while True:
            try:
                answer = ask()
                if told:
                    say(f"{host} answers again, after {time.monotonic() - began:.0f} s")
                return answer
            except TRANSIENT as error:
                reason = str(error) if isinstance(error, Busy) else type(error).__name__
            left = (self.patience if self.started else FIRST_PATIENCE) - time.monotonic() + began
            if left <= 0 and self.started:
                raise WebError(
                    f"{host} gave no answer for {self.patience / 60:g} minutes ({reason}); nothing "
                    "is lost: the same command goes on where this one stopped"
                )
            if left <= 0:
                raise WebError(f"{url} cannot be read ({reason}); is this machine online?")
            if wait > 1 and self.started and not told:  # most outages are over after a second
                say(f"{host} gives no answer ({reason}); trying for {self.patience / 60:g} minutes")
                told = True
            time.sleep(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT)

    def ask(self, url: str, headers: dict, start: int, end: int) -> tuple[bytes, int, str]:
        asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", **headers}
        with self.session.get(url, headers=asked, stream=True, timeout=TIMEOUT) as answer:
            changed = answer.headers.get("Last-Modified", "")
            told = answer.headers.get("Content-Range", "").rpartition("/")[2]
            size = int(told) if told.isdigit() else -1
            if (code := self.check(url, answer)) == 416 and size == 0:
                return b"", 0, changed
            if code == 200:  # the whole file: it may be a short one
                size = int(answer.headers.get("Content-Length", -1))
            if size < 0 or code == 200 and (start or size > end):
                raise NoParts(size, changed)
            data = answer.content
        if len(data) != min(end, size) - start:
            raise requests.ConnectionError(f"{len(data)} bytes of {end - start}")
        return data, size, changed

    def download(self, url: str, headers: dict, file):
        """The whole of it, into an open file."""
        file.seek(0)
        file.truncate()
        asked = {"Accept-Encoding": "identity", **headers}
        with self.session.get(url, headers=asked, stream=True, timeout=TIMEOUT) as answer:
            self.check(url, answer)
            for part in answer.iter_content(2**20):
                file.write(part)
        if file.tell() != int(answer.headers.get("Content-Length", file.tell())):
            raise requests.ConnectionError(f"{file.tell()} bytes, and no more")
        file.seek(0)

    def check(self, url: str, answer: requests.Response) -> int:
        """The status. Busy or WebError if there is no use in reading on."""
        code = answer.status_code
        if code in (408, 429) or code >= 500:
            raise Busy(f"{code} {answer.reason}")
        if code >= 400 and code != 416:
            raise WebError(f"{url} cannot be read: {code} {answer.reason}")
        return code


class Busy(Exception):
    """The server asks to come back later."""


TRANSIENT = (
    Busy,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,  # the connection was dropped amid the answer
)


def say(message: str):
    """A line that leaves a progress bar whole."""
    tqdm.write(message, file=sys.stderr)


class WebFile(io.RawIOBase):
    """A file at a URL, for io.BufferedReader. It is fetched in ranges of RANGE bytes."""

    def __init__(self, web: Web, shard: Shard):
        self.web, self.shard = web, shard
        self.at, self.size, self.kept = 0, None, {}  # kept: number of a range -> its bytes
        self.part(0)

    def part(self, number: int) -> bytes:
        if number not in self.kept:
            url, start = self.shard.path, number * RANGE
            data, size, _ = self.web.fetch(url, self.shard.headers, start, start + RANGE)
            if self.size not in (None, size):
                raise OSError("it was changed while it was being read")
            self.size = size
            if len(self.kept) == RANGES:
                del self.kept[min(self.kept)]
            self.kept[number] = data
        return self.kept[number]

    def readinto(self, buffer) -> int:
        if self.at >= self.size:
            return 0
        number, offset = divmod(self.at, RANGE)
        data = self.part(number)[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

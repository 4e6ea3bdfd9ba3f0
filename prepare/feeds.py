"""Documents that never end: from servers that write them, and from several sources at once.

A feed is a server that answers GET with a JSON array of texts: prepare/teacher.py is one. Files and
the hub are in prepare/shards.py and prepare/hub.py.
"""

from parts.start import say

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
from typing_extensions import TypedDict

from parts.configurator import first_line
from parts.files import parse_json
from prepare.clean import Document
from prepare.shards import KINDS
from prepare.share import size_of

AHEAD = 2_000_000  # bytes that are fetched from a feed before they are wanted
PART = 4_000_000  # bytes of a file in which they wait
PAUSES = (1, 2, 4, 8, 16, 30)  # seconds between attempts to reach a feed that is away
ANSWER = 60.0  # seconds in which a feed must answer, and in which it must have a text
GRACE = 10.0  # seconds in which a feed that fails may be back, such as one that is started again
LARGEST = 2**26  # bytes of an answer


def parse_sources(text: str) -> list[tuple[str, float]]:
    """A:0.7,B:0.3 as specs and weights; a weight that is left out is 1. ValueError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        spec, colon, weight = part.rpartition(":")
        # http://host:8000 ends in a port, http://host:8000:0.5 in a weight.
        host, path = urlsplit(part)[1:3]
        port = not path and host.rpartition("]")[2].count(":") == 1
        try:
            number = float(weight) if colon and not port else None
        except ValueError:
            number = None
        spec, number = (part, 1.0) if number is None else (spec, number)
        if not 0 < number < 1e6:
            raise ValueError(f"the weight of {spec} must be above 0, not {number:g}")
        if spec in dict(found):
            raise ValueError(f"--source names {spec} twice")
        found.append((spec, number))
    if not found:
        raise ValueError(
            "--source is empty; name a source, such as hub:HuggingFaceFW/fineweb-edu, "
            "http://127.0.0.1:8001/generate or texts/*.jsonl"
        )
    return found


def is_feed(spec: str) -> bool:
    """Whether a source is a server that writes texts, not a file at a URL."""
    return spec.startswith(("http://", "https://")) and not urlsplit(spec).path.endswith(KINDS)


class Feed:
    """A server of texts. Its answers are written to files of the stream's folder as they come, a
    line each, so that a killed stream loses none: `documents` reads those files.

    A thread fetches, and stops a little ahead. Each answer is asked for by an id, which follows
    from its place in the files: a server that knows it gives the same answer again if it was lost
    on the way (prepare/teacher.py does). A feed that does not answer is named and left out until it
    is back."""

    def __init__(self, url: str, cfg, folder: Path, number: int):
        self.name, self.folder, self.number = url, folder, number
        key = cfg.api_key or os.environ.get("NANONEOX_API_KEY", "")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.patience = cfg.patience
        self.lock = threading.Condition()
        self.waiting = 0  # bytes that were fetched and not read
        self.away, self.closed, self.error = False, False, None
        files = self.files()
        # Another stream of the same name must not ask for the answers of this one again.
        self.name_of_files = files[0].name.split(".")[2] if files else os.urandom(4).hex()
        self.part = part_of(files[-1]) if files else 0
        self.thread = threading.Thread(target=self.fetch, daemon=True)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"feed.{self.number}.*.jsonl"), key=part_of)

    def path(self, part: int) -> Path:
        return self.folder / f"feed.{self.number}.{self.name_of_files}.{part:05}.jsonl"

    def fetch(self):
        """The thread: ask for texts, and append them to the newest file."""
        attempts, last = 0, time.monotonic()
        while not (self.closed or self.error):
            with self.lock:
                self.lock.wait_for(lambda: self.closed or self.waiting < AHEAD)
            try:
                texts = self.ask()
                if not texts and time.monotonic() - last > ANSWER:
                    raise ValueError(f"it has had no text for {ANSWER:.0f} s")
            except (requests.RequestException, ValueError) as error:
                if not (self.away or self.closed) and time.monotonic() - last > GRACE:
                    known = isinstance(error, ValueError) and first_line(error)
                    reason = known or type(error).__name__  # requests fills a page
                    say(f"{self.name} does not answer, and is left out until it is back ({reason})")
                    self.away = True
                pause = PAUSES[min(attempts, len(PAUSES) - 1)]
                attempts += 1
                with self.lock:
                    self.lock.wait_for(lambda: self.closed, pause)
                continue
            if self.away and texts:
                say(f"{self.name} is back")
            self.away, attempts = self.away and not texts, 0
            if not texts:
                time.sleep(1)
                continue
            last = time.monotonic()
            try:
                self.keep(texts)
            except OSError as error:  # a full disk
                self.error = error

    def ask(self) -> list[str]:
        """Texts from the server. ValueError where it answers with anything else."""
        file = self.path(self.part)
        place = f"{self.name_of_files}.{self.part}.{file.stat().st_size if file.exists() else 0}"
        answer = requests.get(
            self.name,
            params={"n": 16, "id": place},
            headers=self.headers,
            timeout=(5, ANSWER),
            stream=True,
        )
        with answer:
            if answer.status_code == 503:  # it has nothing yet
                return []
            if answer.status_code != 200:
                if answer.status_code in (401, 403, 404, 405) and not self.files():
                    key = "; is the --api_key right?" if answer.status_code in (401, 403) else ""
                    self.error = ValueError(
                        f"{self.name} refuses: status {answer.status_code} {answer.reason}{key}"
                    )
                raise ValueError(f"status {answer.status_code}")
            data, end = bytearray(), time.monotonic() + ANSWER
            for piece in answer.iter_content(2**16):
                data += piece
                if len(data) > LARGEST:
                    raise ValueError(f"an answer of more than {LARGEST >> 20} MB")
                if time.monotonic() > end:
                    raise requests.Timeout
        return parse_json(bytes(data), "the answer", list[str])

    def keep(self, texts: list[str]):
        line = json.dumps(texts).encode() + b"\n"
        with self.lock:
            if self.closed:
                return
            with open(self.path(self.part), "ab") as file:
                file.write(line)
                full = file.tell() > PART
            self.part += full
            self.waiting += len(line)
            self.lock.notify_all()

    def documents(self, cursor: dict | None) -> Iterator[tuple[Document | None, dict]]:
        """Documents from a place in the files on, each with the cursor behind it; None while the
        feed is away."""
        cursor = cursor or {"part": 0, "offset": 0, "at": 0}
        part, offset, at = cursor["part"], cursor["offset"], cursor["at"]
        for file in self.files()[-1:]:  # drop what a killed process left unfinished
            data = file.read_bytes()
            os.truncate(file, data.rfind(b"\n") + 1)
        sizes = {part_of(file): file.stat().st_size for file in self.files()}
        self.waiting = sum(size for number, size in sizes.items() if number >= part) - offset
        self.thread.start()
        while True:
            with self.lock:  # so that no line is half written
                line = self.line(part, offset)
            if self.error:
                raise self.error
            if line.endswith(b"\n") and not self.closed:
                texts = json.loads(line)
                for turn in range(at, len(texts)):
                    here = {"part": part, "offset": offset, "at": turn + 1}
                    if turn + 1 == len(texts):
                        here = {"part": part, "offset": offset + len(line), "at": 0}
                    yield Document(texts[turn], "", ""), here
                offset, at = offset + len(line), 0
                with self.lock:
                    self.waiting -= len(line)
                    self.lock.notify_all()
            elif part < self.part:
                part, offset = part + 1, 0
            elif self.away or self.closed:
                yield None, {"part": part, "offset": offset, "at": 0}
            else:
                with self.lock:
                    self.lock.wait(0.2)

    def line(self, part: int, offset: int) -> bytes:
        try:
            with open(self.path(part), "rb") as file:
                file.seek(offset)
                return file.readline()
        except FileNotFoundError:
            return b""

    def passed(self, cursor: dict | None):
        """Remove the files that lie before a cursor."""
        for file in self.files():
            if cursor and part_of(file) < cursor["part"]:
                file.unlink(missing_ok=True)

    def close(self):
        self.closed = True
        with self.lock:
            self.lock.notify_all()


def part_of(file: Path) -> int:
    return int(file.suffixes[-2][1:])


class State(TypedDict):
    """Where `mixed` goes on."""

    cursors: list[dict | None]
    tags: list[float]
    now: float
    read: int  # bytes


def mixed(sources: list, weights: list[float], state: State, most: float) -> Iterator:
    """Documents of several sources, in bytes by their weights: (document, its source's number, the
    state that goes on after it); None while no source has any. most: bytes to read in all.

    The source with the smallest tag is next, and its tag
    grows by the bytes taken over its weight. One that has been away does not catch up."""
    cursors, tags = list(state["cursors"]), list(state["tags"])
    now, read = state["now"], state["read"]
    iterators = [source.documents(cursor) for source, cursor in zip(sources, cursors)]
    live, away = set(range(len(sources))), set()
    told = time.monotonic()
    while live and read < most:
        for number in sorted(live, key=lambda n: (max(tags[n], now if n in away else 0), n)):
            document, cursor = next(iterators[number], (None, None))
            if cursor is None:
                live.discard(number)
                if live:
                    say(f"{sources[number].name} has ended; the others go on")
                break
            if document is None:
                away.add(number)
                continue
            if number in away:
                away.discard(number)
                tags[number] = max(tags[number], now)
            size = size_of(document)
            now, read = tags[number], read + size
            tags[number] += size / weights[number]
            cursors[number] = cursor
            told = time.monotonic()
            state = {"cursors": list(cursors), "tags": list(tags), "now": now, "read": read}
            yield document, number, state
            break
        else:
            if time.monotonic() - told > 60 * min(sources[n].patience for n in away):
                raise ValueError("no source has answered for so long that the stream ends")
            yield None
            time.sleep(0.2)


class Reader(threading.Thread):
    """Reads documents in a thread of its own, a batch ahead of those that clean them."""

    def __init__(self, documents: Iterator, size: int, seconds: float):
        """A batch is ready when it has `size` bytes, or after so many seconds."""
        super().__init__(daemon=True)
        self.documents, self.size, self.seconds = documents, size, seconds
        self.lock = threading.Condition()
        self.batch, self.bytes, self.began = [], 0, 0.0
        self.error, self.ended, self.closed = None, False, False

    def run(self):
        try:
            for found in self.documents:
                if self.closed:
                    return
                if found is None:
                    continue
                with self.lock:
                    self.lock.wait_for(lambda: self.bytes < self.size or self.closed)
                    if not self.batch:
                        self.began = time.monotonic()
                    self.batch.append(found)
                    self.bytes += max(size_of(found[0]), 1)
                    self.lock.notify_all()
        except BaseException as error:
            self.error = error
        finally:
            with self.lock:
                self.ended = True
                self.lock.notify_all()

    def batches(self) -> Iterator[list | None]:
        """Lists of what `documents` gave; None every 0.2 s while there is nothing."""

        def ready():
            old = self.batch and time.monotonic() - self.began > self.seconds
            return self.bytes >= self.size or self.ended or old

        while True:
            with self.lock:
                self.lock.wait_for(ready, 0.2)
                if self.error:
                    raise self.error
                taken = None
                if ready() and self.batch:
                    taken, self.batch, self.bytes = self.batch, [], 0
                    self.lock.notify_all()
                elif self.ended:
                    return
            yield taken

"""Preparing in parts: --part=3/16 cleans a sixteenth of the text, prepare/join.py does the rest.

A part is data/<out>.part-03-of-16/ with documents.jsonl, a line for each document that was read,
dropped or not, and part.json. Joined in the order of their places, the documents of all parts are
those that one run without --part has after its cleaning, so both end with the same bytes.
"""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from typing_extensions import TypedDict

from parts.configurator import die
from parts.files import load_json, write_json
from prepare.clean import RULES, TOO_LARGE, Document, Examined
from prepare.sources import Sharded

FILES = ("documents.jsonl", "part.json")  # of a part's folder
MOST = 200  # parts: the files of all are open at once
PLACED = {"part", "out", "path", "file"}  # settings that may differ from part to part


class Judged(NamedTuple):
    """A document that went through the cleaning."""

    place: int  # in the order of all documents
    group: int  # the hash of its repository or package
    licences: list[str] | None
    language: str | None
    examined: Examined


class Part(NamedTuple):
    number: int  # from 1
    of: int


class About(TypedDict):
    """What the script that prepares says of its documents: the arguments of `corpus.build`."""

    source: str
    language: str
    unit: str
    command: str


class Facts(TypedDict):
    """part.json"""

    documents: int
    bytes: int  # of their text after the cleaning
    sha256: str  # of documents.jsonl
    listing: str  # a hash of the names and sizes of what all parts read
    rules: list[str]
    settings: dict
    about: About


# --- making a part --------------------------------------------------------------------------------


def parse(text: str) -> Part:
    """What --part says; of an empty text, the one part that is all. ValueError if it makes no
    sense."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text or "1/1")
    part = Part(*map(int, match.groups())) if match else Part(0, 0)
    if not 1 <= part.number <= part.of <= MOST:
        raise ValueError(f"part must be like 3/16, with at most {MOST} parts, not {text}")
    return part


def folder_of(target: Path, part: Part) -> Path:
    """The folder of a part of the data set whose folder is `target`."""
    width = max(2, len(str(part.of)))
    return target.with_name(f"{target.name}.part-{part.number:0{width}}-of-{part.of:0{width}}")


def size_of(document: Document) -> int:
    """Characters of a text, bytes of a file; 0 if it cannot be read."""
    if isinstance(document.text, str):
        return len(document.text)
    with suppress(OSError):
        return min(document.text.stat().st_size, TOO_LARGE) if document.text else 0
    return 0


def take(
    documents: Iterable[Document], part: Part, max_mb: float, listing
) -> Iterator[tuple[int, Document]]:
    """The documents of a part, each with its place in the order of all of them.

    Part 3 of 16 has every 16th file. Where there are fewer files, and in a folder of code, it has
    every 16th document; then each part goes over all rows. So it does with max_mb, which counts
    the documents of all parts. listing: a hash that gets the names and sizes."""
    if isinstance(documents, Sharded) and part.of <= len(documents.names) and not max_mb:
        listing.update("\n".join(documents.names).encode("utf-8", "replace"))
        for shard in range(part.number - 1, len(documents.names), part.of):
            for row, document in enumerate(documents.read(shard)):
                yield shard << 40 | row, document
        return
    left = max_mb * 1e6 or float("inf")
    for place, document in enumerate(documents):
        size = size_of(document)
        listing.update(f"{document.name} {size}\n".encode("utf-8", "replace"))
        left -= size
        if place % part.of == part.number - 1:
            yield place, document
        if left <= 0:
            return


def write_part(
    folder: Path, documents: Iterable[Judged], settings: dict, about: About, listing
) -> Facts:
    """Write both files of a part. listing: of all documents, complete when these have ended."""
    count, size, digest = 0, 0, hashlib.sha256()
    with open(folder / "documents.jsonl", "wb") as file:
        for judged in documents:
            line = to_line(judged)
            file.write(line)
            digest.update(line)
            count += 1
            size += 0 if judged.examined.rule else len(judged.examined.text)
    facts = Facts(
        documents=count,
        bytes=size,
        sha256=digest.hexdigest(),
        listing=listing.hexdigest(),
        rules=list(RULES),
        settings=settings,
        about=about,
    )
    write_json(folder / "part.json", facts)
    return facts


def to_line(judged: Judged) -> bytes:
    values = judged.examined._asdict()
    values["text"] = values["text"].decode()
    if values["keys"] is not None:
        values["keys"] = values["keys"].astype("<u8").tobytes().hex()
    return json.dumps(judged._replace(examined=values)).encode() + b"\n"


def from_line(line: bytes) -> Judged:
    """ValueError, KeyError or TypeError if it is damaged."""
    judged = Judged(*json.loads(line))
    values = dict(judged.examined)
    values["text"] = values["text"].encode()
    if values["keys"] is not None:
        values["keys"] = np.frombuffer(bytes.fromhex(values["keys"]), "<u8")
        values["masked"] = Counter(values["masked"])
    return judged._replace(examined=Examined(**values))


# --- all parts ------------------------------------------------------------------------------------


def find_parts(target: Path) -> tuple[list[Path], list[Facts]]:
    """The folders of all parts of the data set whose folder is `target`, and their part.json.
    ValueError if one is missing or damaged, or does not belong to the others."""
    name = re.compile(re.escape(target.name) + r"\.part-\d+-of-(\d+)")
    found = target.parent.iterdir() if target.parent.is_dir() else ()
    counts = {int(match[1]) for path in found if (match := name.fullmatch(path.name))}
    if len(counts) != 1:
        held = " and ".join(f"*.part-*-of-{count:02}" for count in sorted(counts)) or "no parts"
        raise ValueError(
            f"{target.parent} holds {held} of {target.name}; join takes one set of parts: make "
            "them with --part=1/2, --part=2/2, and move away others"
        )
    of = counts.pop()
    folders = [folder_of(target, parse(f"{number}/{of}")) for number in range(1, of + 1)]
    missing = [n for n, folder in enumerate(folders, 1) if not (folder / "part.json").is_file()]
    if missing:
        first = folders[missing[0] - 1]
        also = f" (and of {len(missing) - 1} more parts)" * (len(missing) > 1)
        raise ValueError(
            f"there is no {first / 'part.json'}{also}; make it with --part={missing[0]}/{of}, or "
            "copy it here from the machine that has made it"
        )
    facts = [load_json(folder / "part.json", Facts) for folder in folders]
    for number, (folder, fact) in enumerate(zip(folders, facts), 1):
        if fact["settings"].get("part", "") != f"{number}/{of}":
            raise ValueError(
                f"{folder} holds part {fact['settings'].get('part')}, not {number}/{of}; copy or "
                f"make the right one"
            )
    for folder, fact in zip(folders[1:], facts[1:]):
        refuse_other(folders[0], facts[0], folder, fact)
    return folders, facts


def refuse_other(first: Path, wanted: Facts, folder: Path, facts: Facts):
    """ValueError if two parts were made with other settings or from other text."""
    one, two = ({**f["settings"], "rules": f["rules"]} for f in (wanted, facts))
    for key in sorted((one.keys() | two.keys()) - PLACED):
        if one.get(key) != two.get(key):
            raise ValueError(
                f"{folder} was made with {key}={two.get(key)}, {first.name} with "
                f"{key}={one.get(key)}; make one of them again"
            )
    if wanted["listing"] != facts["listing"]:
        raise ValueError(
            f"{folder} was made from other documents than {first.name} (their names or sizes "
            "differ); make one of them again"
        )


def read_parts(folders: list[Path], facts: list[Facts]) -> Iterator[Judged]:
    """The documents of all parts, in the order of their places. Ends the script at a damaged file,
    once all that comes before the damage was read."""
    total = sum((folder / "documents.jsonl").stat().st_size for folder in folders)
    progress = tqdm(total=total, unit="B", unit_scale=True, desc="joining", disable=None)
    with progress:
        opened = [
            read_part(folder / "documents.jsonl", fact, progress)
            for folder, fact in zip(folders, facts)
        ]
        yield from heapq.merge(*opened, key=lambda judged: judged.place)


def read_part(path: Path, facts: Facts, progress: tqdm) -> Iterator[Judged]:
    digest, last = hashlib.sha256(), -1
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
            progress.update(len(line))
            try:
                judged = from_line(line)
                whole = judged.place > last
            except (ValueError, KeyError, TypeError, AttributeError):
                whole = False
            if not whole:
                break
            last = judged.place
            yield judged
        if file.read(1) or digest.hexdigest() != facts["sha256"]:
            die(
                f"{path} is damaged or cut short: its SHA-256 is not the one in part.json; copy it "
                "again, or make that part again"
            )

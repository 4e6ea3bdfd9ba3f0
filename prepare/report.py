"""What is in a data set: for people who look at their data before they train on it.

    python prepare/report.py --dataset=python    # a table here, and out/report_python/report.html

Tokens and how often they occur, documents, licences, what cleaning dropped and an example for each
rule, near duplicates between val and train, the oddest documents, and inputs beside their targets
as train.py reads them. report.json has every number. Sets with masks and streams work too.

Where text was rearranged to teach filling in the middle, an end-of-text token ends each piece. The
pieces are put back into the order of their document first, so that lengths, odd documents and near
duplicates are those of documents. Special tokens count as tokens, but are no part of a document.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import contextlib
import heapq
import os
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Interval
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict

from parts import configurator, infill, segments
from parts import tokenizer as tokenization
from parts.configurator import ROOT, mistakes, printable
from parts.files import load_json, read_json, write_json, write_text
from parts.tokenizer import MAX_VOCAB
from prepare import clean, corpus, report_page

CHUNK = 1_000_000  # tokens that a process looks at at a time
HEAD = 200  # characters of a document that are shown
LISTED = 20  # tokens in a list
SHORT = 64  # tokens of a document that is too short to be odd
FEW = 16  # windows of a text in which near duplicates cannot be told
PAIRS = 10  # near duplicates that are shown
FILES = {"report.html", "report.json"}


class Settings:
    dataset = ""  # a data set's name, its folder in data/; or the path of one
    out = ""  # the folder for the page and the numbers; empty: out/report_<dataset>
    block_size = 128  # tokens in an input that is shown: best what you will train with
    seed = 1337  # which inputs are shown: those of the first step with that seed
    pairs = 4  # inputs that are shown


Count = Annotated[int, Ge(0)]


class Split(TypedDict):
    tokens: Count
    documents: NotRequired[Count]


class Rule(TypedDict):
    documents: Count
    bytes: Count
    example: NotRequired[dict[str, str]]  # name and text; earlier versions had none


class Source(TypedDict):
    documents: Count
    bytes: Count
    tokens: Count


class Origin(TypedDict, total=False):
    """What meta.json or, of a stream, stream.json tells of the documents. Not every set has all."""

    cleaning: dict[str, Rule]
    licences: dict[str, Count]
    languages: dict[str, Count]
    masked: dict[str, Count]
    sources: dict[str, Source]
    rows: dict[str, Count]  # of a set for fine-tuning


class Meta(Origin):
    """meta.json, as far as it is needed; a stream's has no train."""

    vocab_size: Annotated[int, Interval(ge=1, le=MAX_VOCAB)]
    val: Split
    train: NotRequired[Split]
    arguments: NotRequired[dict]
    fim: NotRequired[dict[str, Count]]


class Segment(TypedDict):
    number: Count
    tokens: Count


class Stream(Origin):
    """stream.json, as far as it is needed."""

    segments: list[Segment]
    tokens: Count
    documents: Count
    ended: bool


# --- reading a data set ---------------------------------------------------------------------------


class Tokens:
    """The numbers in files that follow one another, memory-mapped, read as one array."""

    def __init__(self, files: list[tuple[Path, int]], dtype: str):
        """files: each with the count that it must have. ValueError if it has another one."""
        self.maps = []
        for path, count in files:
            if not path.is_file() or path.stat().st_size != count * np.dtype(dtype).itemsize:
                raise ValueError(
                    f"{path} is missing, or does not have the {count:,} entries it had"
                )
            if count:
                self.maps.append(np.memmap(path, dtype, "r"))
        self.ends = np.cumsum([len(part) for part in self.maps], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, begin: int, end: int) -> np.ndarray:
        first = int(np.searchsorted(self.ends, begin, "right"))
        found = []
        for part, stop in zip(self.maps[first:], self.ends[first:].tolist()):
            start = stop - len(part)
            if start >= end:
                break
            found.append(part[max(begin - start, 0) : end - start])
        return np.concatenate(found) if found else np.zeros(0, np.uint16)


class Dataset:
    """A data set's folder: what its JSON says, its tokenizer, and its splits. Each worker process
    opens it too."""

    def __init__(self, folder: Path, stream: dict | None = None):
        """stream: the content of stream.json, where it was read before: it changes. ValueError says
        what is missing or damaged."""
        self.folder, self.stream = folder, stream
        if not (folder / "meta.json").is_file():
            names = sorted(path.parent.name for path in (ROOT / "data").glob("*/meta.json"))
            known = f"data/ has {', '.join(names)}" if names else "the scripts in prepare/ make one"
            raise ValueError(f"there is no data set {folder}; {known}")
        self.meta = load_json(folder / "meta.json", Meta)
        if "train" not in self.meta and not stream:
            self.stream = load_json(folder / "stream.json", Stream)
        self.tok = tokenization.load(folder)
        self.vocab_size = self.meta["vocab_size"]
        val = self.meta["val"]["tokens"]
        self.tokens = {
            "train": Tokens(self.train_files(), "<u2"),
            "val": Tokens([(folder / "val.bin", val)], "<u2"),
        }
        self.masks = {}
        if any((folder / f"{split}.mask").exists() for split in self.tokens):
            self.masks = {
                split: Tokens([(folder / f"{split}.mask", len(tokens))], "u1")
                for split, tokens in self.tokens.items()
            }
        arguments = self.meta.get("arguments") or {}
        rearranged = (self.meta.get("fim") or {}).get("rearranged") or arguments.get("fim_rate")
        fim = rearranged and not self.masks and infill.knows_fim(self.tok)
        # The context to which documents were cut; 0: they were left as they are.
        self.fim_context = arguments.get("fim_context", 128) if fim else 0

    def train_files(self) -> list[tuple[Path, int]]:
        if not self.stream:
            return [(self.folder / "train.bin", self.meta["train"]["tokens"])]
        return [
            (self.folder / f"train.{segment['number']:05d}.bin", segment["tokens"])
            for segment in self.stream["segments"]
        ]

    def starts(self, split: str, begin: int, ids: np.ndarray) -> np.ndarray:
        """Where in ids, which begin at token `begin` of the split, new documents begin. With masks
        that is at an end-of-text token that is not learnt, as parts/data.py has it; otherwise after
        each one."""
        if self.tok.eot is None:
            return np.zeros(0, np.int64)
        ends = np.flatnonzero(ids == self.tok.eot)
        if self.masks:
            unlearnt = ends[self.masks[split].read(begin, begin + len(ids))[ends] == 0]
            # Where all are learnt, as a mask made by hand may have it, documents end there.
            return unlearnt if self.has_unlearnt(split) else ends + 1
        return ends + 1

    def has_unlearnt(self, split: str) -> bool:
        """Whether an end-of-text token of the split is not learnt."""
        if split not in (known := self.__dict__.setdefault("unlearnt", {})):
            tokens, mask = self.tokens[split], self.masks[split]
            known[split] = any(
                (
                    (tokens.read(at, at + CHUNK) == self.tok.eot) & (mask.read(at, at + CHUNK) == 0)
                ).any()
                for at in range(0, len(tokens), CHUNK)
            )
        return known[split]

    def chunks(self, split: str) -> Iterator[tuple[str, int, int]]:
        """Parts of about CHUNK tokens, cut between documents: (split, begin, end)."""
        begin, total = 0, len(self.tokens[split])
        while begin < total:
            end = self.next_document(split, begin + CHUNK)
            yield split, begin, end
            begin = end

    def next_document(self, split: str, at: int) -> int:
        """The first token from `at` on at which a document begins; the number of tokens, if none
        does."""
        total, span = len(self.tokens[split]), 1 << 16
        while at < total:
            ids = self.tokens[split].read(at, at + span)
            starts = self.starts(split, at, ids)
            if split == "train" and self.fim_context:
                starts = [
                    stop
                    for start, stop in zip(starts, starts[1:])
                    if self.is_last(infill.in_file_order(self.tok, ids[start : stop - 1]))
                ]
            if len(starts):
                return at + int(starts[0])
            if at + span >= total:
                break
            span *= 4
        return total

    def is_last(self, ids: np.ndarray) -> bool:
        return infill.ends_document(self.tok, ids, self.fim_context)


# --- counting, in worker processes ----------------------------------------------------------------


class Documents(NamedTuple):
    """The documents in a chunk: their tokens without special ones, one document after another."""

    ids: np.ndarray
    stops: np.ndarray  # where each one ends in ids
    places: np.ndarray  # where each one begins in its split
    rearranged: int  # pieces that were put back into order

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.stops, prepend=0)


class Seen(NamedTuple):
    """What is in a chunk."""

    split: str
    tokens: int
    counts: np.ndarray  # of each id
    learnt: np.ndarray | None  # of each id, where it is learnt
    sizes: np.ndarray  # tokens of each document
    rearranged: int
    odd: list[tuple]  # (kind, how odd it is, place, the document as a dict)
    keys: np.ndarray  # of val: from clean.sketch, a row for each document
    heads: list[dict]  # of val: its documents
    twins: list[tuple]  # of train: (number of the val document, shared bands, exact?, the document)


class Changed(Exception):
    """The files of the data set are no longer those with which the counting began."""


def start_counting(folder: Path, stream: dict | None, known: tuple | None):
    """known: the sorted keys of val's documents, and the number of the document that has each."""
    global dataset, known_keys, pieces, lengths
    try:
        dataset, known_keys = Dataset(folder, stream), known
    except ValueError as error:  # which would break the pool here
        dataset = Changed(f"{error}: the data set changed while it was read; start again")
        return
    special = set(dataset.tok.special.values())
    pieces = [b"" if i in special else dataset.tok.token_bytes(i) for i in range(MAX_VOCAB)]
    lengths = np.array([len(piece) for piece in pieces])


def look(chunk: tuple[str, int, int]) -> Seen:
    split, begin, end = chunk
    if isinstance(dataset, Changed):
        raise dataset
    ids = dataset.tokens[split].read(begin, end)
    counts = np.bincount(ids, minlength=dataset.vocab_size)
    learnt = None
    if dataset.masks:
        mask = dataset.masks[split].read(begin, end)
        learnt = np.bincount(ids[mask == 1], minlength=dataset.vocab_size)
    found = documents(split, begin, ids)
    text = b"".join([pieces[i] for i in found.ids.tolist()])
    stops = np.cumsum(np.concatenate([[0], lengths[found.ids]]))[found.stops]
    heads = Heads(split, found, text, stops)
    sketches = [sketch(text[a:b]) for a, b in zip([0, *stops[:-1]], stops)]
    keys = np.array(sketches, np.uint64).reshape(-1, 1 + clean.BANDS)
    is_val = known_keys is None
    return Seen(
        split,
        len(ids),
        counts,
        learnt,
        found.sizes,
        found.rearranged,
        list(oddest(found, heads)),
        keys if is_val else keys[:0],
        [heads[n] for n in range(len(keys))] if is_val else [],
        [] if is_val else list(twins(keys, heads)),
    )


def documents(split: str, begin: int, ids: np.ndarray) -> Documents:
    starts, rearranged = dataset.starts(split, begin, ids), 0
    starts = np.union1d([0], starts[starts < len(ids)]).astype(np.int64)
    if split == "train" and dataset.fim_context:
        parts, places, stops, size = [], [0], [], 0
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)]):
            given = ids[start : stop - (ids[stop - 1] == dataset.tok.eot)]
            part = infill.in_file_order(dataset.tok, given)
            rearranged += len(part) != len(given)
            parts.append(part)
            size += len(part)
            if stop == len(ids) or dataset.is_last(part):
                stops.append(size)
                places.append(stop)
        plain, places, stops = np.concatenate(parts), np.array(places[:-1]), np.array(stops)
    else:
        kept = ~np.isin(ids, list(dataset.tok.special.values()))
        plain, places = ids[kept], starts
        stops = np.cumsum(np.concatenate([[0], kept]))[[*starts[1:], len(ids)]]
    full = np.diff(stops, prepend=0) > 0  # such as an end-of-text token that nothing follows
    return Documents(plain, stops[full], begin + places[full], rearranged)


class Heads:
    """A chunk's documents, each as a dict: where it is, how long, and how it begins."""

    def __init__(self, split: str, found: Documents, text: bytes, stops: np.ndarray):
        """stops: where each document ends in text."""
        self.split, self.found, self.text = split, found, text
        self.starts, self.bytes = [0, *stops[:-1].tolist()], np.diff(stops, prepend=0)

    def __getitem__(self, n: int) -> dict:
        head = self.text[self.starts[n] : self.starts[n] + min(4 * HEAD, int(self.bytes[n]))]
        return {
            "split": self.split,
            "token": int(self.found.places[n]),
            "tokens": int(self.found.sizes[n]),
            "bytes": int(self.bytes[n]),
            "text": head.decode(errors="replace")[:HEAD],
        }


def oddest(found: Documents, heads: Heads) -> Iterator[tuple]:
    """The three oddest documents of a chunk, in each respect."""
    sizes = found.sizes
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    pairs, counts = np.unique(numbers * MAX_VOCAB + found.ids, return_counts=True)
    most = np.zeros(len(sizes))
    np.maximum.at(most, pairs // MAX_VOCAB, counts)
    density, share = heads.bytes / sizes, most / sizes
    respects = {
        "longest": (sizes, sizes),
        "shortest": (-sizes, sizes),
        "fewest bytes per token": (-density, density),
        "most bytes per token": (density, density),
        "one token most of the time": (share, share),
    }
    for kind, (oddness, value) in respects.items():
        rows = np.flatnonzero((sizes >= SHORT) | (kind == "shortest"))
        for n in rows[np.argsort(-oddness[rows], kind="stable")[:3]].tolist():
            document = {"kind": kind, "value": round(value[n].item(), 4), **heads[n]}
            yield kind, float(oddness[n]), -document["token"], document


def sketch(text: bytes) -> np.ndarray:
    """The keys by which prepare/clean.py knows near duplicates. A text of few windows, such as one
    sentence, has only the exact key: those that merely end alike would share the others."""
    squeezed = clean.squeeze(text)
    hashes = np.sort(clean.windows(squeezed)[1])
    keys = clean.sketch(squeezed, hashes)
    return keys if len(hashes) >= FEW else np.full_like(keys, keys[0])


def twins(keys: np.ndarray, heads: Heads) -> Iterator[tuple]:
    """The documents of a chunk that share a key with a document of val."""
    known, owners = known_keys
    lefts, rights = (np.searchsorted(known, keys, side) for side in ("left", "right"))
    for n in np.flatnonzero((lefts < rights).any(1)).tolist():
        shared = {}  # of each val document, which keys
        for which in np.flatnonzero(lefts[n] < rights[n]).tolist():
            for owner in owners[lefts[n, which] : rights[n, which]].tolist():
                shared.setdefault(owner, set()).add(which)
        for owner, which in shared.items():
            yield owner, len(which - {0}), 0 in which, heads[n]


# --- the numbers ----------------------------------------------------------------------------------


def measure(data: Dataset) -> dict:
    """Everything that report.json has, but for the inputs and targets. Ends the script if the data
    are damaged."""
    splits = ("val", "train")  # val's documents are what train's are compared with
    total = sum(len(data.tokens[split]) for split in splits)
    progress = tqdm(total=total, unit="token", unit_scale=True, desc="counting", disable=None)
    if progress.disable:  # no terminal
        print(f"counting {total:,} tokens ...", file=sys.stderr)
    seen, known, val = {}, None, []
    with progress:
        for split in splits:
            how = data.folder, data.stream, known
            work = corpus.parallel(look, data.chunks(split), start_counting, how)
            summary = seen[split] = Summary(data, split, val)
            with contextlib.closing(work):
                try:
                    for part in work:
                        summary.add(part)
                        progress.update(part.tokens)
                except Changed as error:
                    configurator.die(error)
            if split == "val":
                keys = np.concatenate([np.zeros((0, 1 + clean.BANDS), np.uint64), *summary.keys])
                owners = np.repeat(np.arange(len(keys)), keys.shape[1])
                order = np.argsort(keys, axis=None)
                known, val = (keys.ravel()[order], owners[order]), summary.heads
    kept = data.stream or data.meta
    facts = {
        "folder": str(data.folder),
        "source": data.meta.get("source"),
        "language": data.meta.get("language"),
        "stream": data.stream is not None,
        "vocab_size": data.vocab_size,
        "splits": {split: seen[split].numbers() for split in ("train", "val")},
        "counts": {split: seen[split].counts.tolist() for split in ("train", "val")},
        "tokens": token_facts(data, seen["train"].counts, seen["val"].counts),
        "near_duplicates": seen["train"].duplicates(),
        "oddest": seen["train"].oddest() + seen["val"].oddest(),
        "lengths": {split: seen[split].sizes for split in ("train", "val")},
    }
    for key in ("cleaning", "masked", "licences", "languages", "sources", "rows"):
        facts[key] = kept.get(key) or data.meta.get(key) or {}
    if data.stream:
        facts["written"] = {key: data.stream[key] for key in ("tokens", "documents", "ended")}
    for source in facts["sources"].values():
        source["bytes_per_token"] = round(source["bytes"] / max(source["tokens"], 1), 4)
    return facts


class Summary:
    """What all chunks of a split have, together."""

    def __init__(self, data: Dataset, split: str, val: list[dict]):
        """val: of train, the documents that it is compared with."""
        self.data, self.split, self.val = data, split, val
        self.counts = np.zeros(data.vocab_size, np.int64)
        self.learnt = np.zeros(data.vocab_size, np.int64) if data.masks else None
        self.parts, self.rearranged, self.odd = [], 0, {}
        self.keys, self.heads = [], []
        self.twins, self.pairs, self.number = {}, [], 0

    def add(self, seen: Seen):
        """Ends the script if there is a token that the vocabulary lacks."""
        if len(seen.counts) > len(self.counts):
            configurator.die(
                f"{self.data.folder}: {self.split} holds token {len(seen.counts) - 1}, past "
                f"vocab_size={len(self.counts)} in meta.json"
            )
        self.counts += seen.counts
        self.parts.append(seen.sizes.astype(np.uint32))
        self.rearranged += seen.rearranged
        self.keys.append(seen.keys)
        self.heads += seen.heads
        if self.learnt is not None:
            self.learnt += seen.learnt
        for kind, *rank, document in seen.odd:
            self.odd.setdefault(kind, []).append((*rank, document))
            self.odd[kind] = heapq.nlargest(3, self.odd[kind], lambda entry: entry[:2])
        for owner, bands, exact, document in seen.twins:
            self.twins[owner] = self.twins.get(owner, False) or exact
            # Bands are shared with probability J^ROWS, where J is the Jaccard similarity.
            similarity = 1.0 if exact else (bands / clean.BANDS) ** (1 / clean.ROWS)
            pair = {"similarity": round(similarity, 2), "exact": exact}
            pair |= {"val": self.val[owner], "train": document}
            self.number += 1
            if len(self.pairs) < PAIRS or similarity > self.pairs[-1]["similarity"]:
                self.pairs = sorted([*self.pairs, pair], key=lambda pair: -pair["similarity"])
                del self.pairs[PAIRS:]

    @property
    def sizes(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint32), *self.parts])

    def numbers(self) -> dict:
        table = [len(self.data.tok.token_bytes(i)) for i in range(self.data.vocab_size)]
        table = np.array(table, np.int64)
        special = [i for i in self.data.tok.special.values() if i < len(table)]
        table[special] = 0
        tokens, size = int(self.counts.sum()), int(self.counts @ table)
        sizes = self.sizes
        recorded = (self.data.meta.get(self.split) or {}).get("documents")
        marks = (0, 10, 50, 90, 99, 100)
        points = np.percentile(sizes, marks) if len(sizes) else np.zeros(len(marks))
        names = ("shortest", "10 %", "median", "90 %", "99 %", "longest")
        return {
            "tokens": tokens,
            "bytes": size,
            "bytes_per_token": round(size / max(tokens, 1), 4),
            "special": int(self.counts[special].sum()),
            "documents": len(sizes),
            "as_prepared": recorded if recorded != len(sizes) else None,
            "rearranged": self.rearranged,
            "learnt": None if self.learnt is None else int(self.learnt.sum()),
            "lengths": dict(zip(names, np.round(points).astype(int).tolist())),
        }

    def duplicates(self) -> dict:
        return {
            "val_documents": len(self.val),
            "found": len(self.twins),
            "exact": sum(self.twins.values()),
            "bytes": sum(self.val[owner]["bytes"] for owner in self.twins),
            "pairs": self.number,
            "shown": self.pairs,
        }

    def oddest(self) -> list[dict]:
        return [entry[-1] for entries in self.odd.values() for entry in entries]


def token_facts(data: Dataset, train: np.ndarray, val: np.ndarray) -> dict:
    """Lists of tokens, and how much of the vocabulary is used."""
    special = set(data.tok.special.values())
    total = max(int(train.sum()), 1)

    def listed(ids) -> list[dict]:
        return [
            {
                "id": int(i),
                "text": shown(data.tok.token_bytes(int(i))),
                "train": int(train[i]),
                "share": round(int(train[i]) / total, 6),
                "val": int(val[i]),
            }
            for i in ids
        ]

    order = np.argsort(-train, kind="stable")
    used, unused = order[train[order] > 0], np.flatnonzero(train == 0)
    sizes = [len(data.tok.token_bytes(i)) * (i not in special) for i in range(len(train))]
    shares = np.cumsum(train[order]) / total
    tops = [n for n in (10, 100, 1000) if n < len(train)]
    return {
        "used": len(used),
        "never": len(unused),
        "under_10": int(((train > 0) & (train < 10)).sum()),
        "only_in_val": int(((train == 0) & (val > 0)).sum()),
        "share_of_commonest": {str(n): round(float(shares[n - 1]), 4) for n in tops},
        "commonest": listed(used[:LISTED]),
        "rarest": listed(used[::-1][:LISTED]),
        "never_used": listed(unused[: 10 * LISTED]),
        "longest": listed(np.argsort(-np.array(sizes), kind="stable")[:LISTED]),
    }


def shown(token: bytes) -> str:
    """A token's text in quotes, as Python writes it; its bytes, where they are no text."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def inputs(data: Dataset, cfg) -> list[dict]:
    """Inputs and targets: those of the first batch that train.py would read with this seed
    (`train_starts` in parts/data.py, for a stream parts/stream.py). Ends the script if the set is
    too small."""
    tokens, size = data.tokens["train"], cfg.block_size
    if len(tokens) <= size:
        configurator.die(f"train has {len(tokens):,} tokens, too few for block_size={size}")
    if data.stream:
        oldest = data.stream["segments"][0]
        rows = (oldest["tokens"] - 1) // size
        starts = segments.order(cfg.seed, oldest["number"], rows)[: cfg.pairs] * size
    else:
        places = None
        if data.masks:
            places = learnt_starts(data, size)
        count = len(tokens) - size if places is None else len(places)
        starts = np.random.default_rng((cfg.seed, 0, 0)).integers(count, size=cfg.pairs)
        starts = starts if places is None else places[starts]
    found = []
    for start in starts.tolist():
        ids = tokens.read(start, start + size + 1).tolist()
        mask = data.masks["train"].read(start + 1, start + size + 1) if data.masks else None
        texts = [data.tok.token_bytes(i).decode(errors="replace") for i in ids]
        learnt = [1] * (len(ids) - 1) if mask is None else mask.tolist()
        found.append({"token": start, "ids": ids, "texts": texts, "learnt": learnt})
    return found


def learnt_starts(data: Dataset, size: int) -> np.ndarray:
    """Where the windows of a masked train split begin, as in parts/data.py. Ends the script if
    nothing is learnt in them."""
    tokens, mask = data.tokens["train"], data.masks["train"]
    starts = [
        at + data.starts("train", at, tokens.read(at, at + CHUNK))
        for at in range(0, len(tokens), CHUNK)
    ]
    starts = np.union1d([0], np.concatenate(starts)).astype(np.int64)
    starts = starts[starts < len(tokens) - 1]
    sums = np.concatenate([[0], np.cumsum(mask.read(0, len(tokens)), dtype=np.int64)])
    learnt = sums[np.minimum(starts + size + 1, len(tokens))] - sums[starts + 1]
    if not learnt.any():
        configurator.die(f"no token of train is learnt within block_size={size}")
    return starts[learnt > 0]


# --- the table ------------------------------------------------------------------------------------


def print_table(facts: dict):
    """The numbers that matter most, in at most 40 lines."""
    train, val = facts["splits"]["train"], facts["splits"]["val"]
    print(printable(f"{facts['folder']}: {facts['source'] or 'of unknown source'}"))
    rows = [["", "train", "val"], *report_page.split_rows(facts)]
    for key in ("median", "longest"):
        rows.append([f"tokens, {key} document", *(f"{n['lengths'][key]:,}" for n in (train, val))])
    for name, *values in rows:
        print(f"{name:<26}" + "".join(f"{value:>22}" for value in values))
    for title, text in report_page.sentences(facts):
        print(printable(f"{title}: {text}"))
    for kind in ("commonest", "rarest", "longest", "never_used"):
        listed = (report_page.dotted(token["text"]) for token in facts["tokens"][kind][:8])
        listed = " ".join(text if len(text) < 24 else f"{text[:20]}..." for text in listed)
        print(printable(f"{kind.replace('_', ' ')}: {listed or 'none'}"))
    dropped = [
        (rule, n)
        for rule, n in facts["cleaning"].items()
        if n["documents"] and rule not in ("read", "kept")
    ]
    for rule, count in sorted(dropped, key=lambda item: -item[1]["documents"])[:12]:
        example = (count.get("example") or {}).get("name", "")
        line = f"dropped, {rule:<24}{count['documents']:>10,}  {example}"
        print(printable(line.rstrip()))


# --- the whole way --------------------------------------------------------------------------------


def find_place(cfg, folder: Path) -> Path:
    """The folder for the page. ValueError if it holds anything but an earlier report of this set,
    which is replaced."""
    place = ROOT / os.path.expanduser(cfg.out or f"out/report_{folder.name}")
    place = Path(os.path.realpath(place))
    if place == folder or folder in place.parents:
        raise ValueError(f"--out={cfg.out} is in the data set's folder; choose another --out")
    if os.path.lexists(place) and not place.is_dir():
        raise ValueError(f"{place} is no folder; choose another --out")
    present = {path.name for path in place.iterdir()} if place.is_dir() else set()
    if others := sorted(present - FILES):
        raise ValueError(f"{place} holds {others[0]}, which is no report; choose another --out")
    if present and read_json(place / "report.json").get("folder") != str(folder):
        raise ValueError(f"{place} is no report on {folder}; choose another --out")
    return place


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ["block_size"], {"pairs": 1000, "block_size": 100_000})
    with mistakes():
        if not cfg.dataset:
            raise ValueError("name a data set: --dataset=python")
        folder = Path(os.path.realpath(configurator.dataset_folder(cfg.dataset)))
        data = Dataset(folder)
        place = find_place(cfg, folder)
    pairs = inputs(data, cfg)
    facts = measure(data) | {"pairs": pairs}
    page = report_page.page(facts, facts.pop("lengths"))
    with mistakes():
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "report.json", facts)  # first: it says that the folder is a report's
        write_text(place / "report.html", page)
    print_table(facts)
    print(f"{place / 'report.html'} shows this and more; report.json beside it has the numbers")


if __name__ == "__main__":
    run_script(main)

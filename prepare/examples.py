"""What instruct.py and sentiment.py share: examples out of rows, the held-out ones, and their
tokens with the mask that says which are learnt.

A document is its end-of-text token, which is not learnt, then what is given, then what is learnt.
So a document begins at each end-of-text token that is not learnt.
"""

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from parts import configurator
from parts.chat import end_of_text
from parts.tokenizer import Tokenizer
from prepare import corpus, next_step
from prepare.sources import ROWS_TO_TRY, seeded

BATCH = 1000  # documents that are written at a time


class Settings:
    file = ""  # files of examples; commas and globs
    source = ""  # a data set on the Hugging Face hub instead
    tokenizer = ""  # the model's: a run, a folder, gpt2 or a hub model; empty: out/'s newest run
    eot = ""  # its special token that ends a text; empty: the one that it names
    val_fraction = 0.1  # share of the examples held out for val
    max_examples = 0  # take so many; 0: all
    seed = 1337  # of the order and the split


def load(settings: type):
    """The settings of a script, in a range that makes sense."""
    cfg = configurator.load(settings)
    configurator.require(cfg, positive=["val_fraction"], most={"val_fraction": 0.5})
    if bool(cfg.file) == bool(cfg.source):
        configurator.die("give --file=... or a hub data set with --source=...; --help says more")
    return cfg


def open_tokenizer(cfg) -> Tokenizer:
    """The tokenizer of the model that will be fine-tuned; cfg.tokenizer then names it. ValueError
    if there is none, or it has no end-of-text token."""
    if not cfg.tokenizer:
        run = configurator.newest_run()
        if not run:
            raise ValueError(
                "there is no run in out/ whose tokenizer to take; give --tokenizer=FOLDER, the "
                "model that you will fine-tune"
            )
        cfg.tokenizer = os.path.relpath(run, configurator.ROOT)
    tok = corpus.open_tokenizer(cfg.tokenizer, cfg.eot)
    end_of_text(tok)
    return tok


class Reader:
    """Takes the examples out of rows, and counts what it left out."""

    def __init__(self, read: Callable[[object], Hashable], key: Callable[[Hashable], str]):
        """read(row): the example in a row; its ValueError says why there is none. key(example): the
        text by which duplicates are known."""
        self.read, self.key = read, key
        self.counts, self.seen = Counter(), set()

    def reasons(self) -> str:
        """Why rows were left out, and how many for each reason."""
        counts = {key: n for key, n in self.counts.items() if key.startswith("left out: ")}
        return ", ".join(f"{key.removeprefix('left out: ')} ({n})" for key, n in counts.items())

    def examples(self, rows: Iterable, origin: str, most: int = 0) -> list:
        """The examples in rows, `most` at most (0: all). Ends the script if there are none, or the
        first ROWS_TO_TRY rows hold none."""
        found, problem = [], "it is empty"
        for number, row in enumerate(tqdm(rows, origin, unit="row", leave=False, disable=None), 1):
            self.counts["read"] += 1
            try:
                if isinstance(row, ValueError):
                    raise ValueError("it cannot be read") from row
                example = self.read(row)
                key = seeded(0, self.key(example))
                if key in self.seen:
                    raise ValueError("it is a duplicate")
                self.seen.add(key)
                found.append(example)
            except ValueError as error:
                self.counts[f"left out: {error}"] += 1
                if problem == "it is empty":
                    reason = f": {error.__cause__}" if error.__cause__ else ""
                    problem = f"row {number}: {error}{reason}"
            if len(found) == most > 0 or number == ROWS_TO_TRY and not found:
                break
        if not found:
            configurator.die(f"{origin} holds no examples: {problem}")
        self.counts["kept"] += len(found)
        return found


def hold_out(examples: list, group: Callable, cfg) -> tuple[list, list]:
    """(train, val), both in a random order that follows from the seed: examples that are sorted by
    label would make batches of one label. Those of one group(example) stay together. Ends the
    script if there are too few."""
    hashed = sorted(((seeded(cfg.seed, group(example)), n) for n, example in enumerate(examples)))
    groups = sorted({key for key, _ in hashed})
    count = max(round(cfg.val_fraction * len(groups)), 1)
    if count == len(groups):
        configurator.die("a train and a val split need two different examples at least")
    last = groups[count - 1]
    val = [examples[n] for key, n in hashed if key <= last]
    return [examples[n] for key, n in hashed if key > last], val


def shuffled(examples: list, group: Callable, seed: int) -> list:
    """The examples in the order of a seeded hash."""
    return sorted(examples, key=lambda example: seeded(seed, group(example)))


def encode(splits: dict[str, list], tok: Tokenizer, document: Callable) -> Iterator[corpus.Encoded]:
    """document(example) gives its ids and its mask, two lists of one length."""
    total = sum(map(len, splits.values()))
    with tqdm(total=total, unit="document", desc="encoding", disable=None) as progress:
        for split, examples in splits.items():
            for begin in range(0, len(examples), BATCH):
                pairs = [document(example) for example in examples[begin : begin + BATCH]]
                ids = np.array([i for pair in pairs for i in pair[0]], np.uint16)
                mask = np.array([mark for pair in pairs for mark in pair[1]], np.uint8)
                size = corpus.text_bytes(tok, ids)
                yield corpus.Encoded(split, ids, len(pairs), size, learnt=mask)
                progress.update(len(pairs))


def write(cfg, tok: Tokenizer, splits: dict[str, list], document: Callable, about: dict):
    """Make data/<cfg.out>, and print what is in it and what to run next."""
    longest = 0

    def measured(example):
        nonlocal longest
        ids, mask = document(example)
        longest = max(longest, len(ids))
        return ids, mask

    with corpus.new_dataset(cfg.out) as folder:
        with configurator.mistakes():
            tok.save(folder)
            encoded = encode(splits, tok, measured)
            about = {"source": cfg.file or cfg.source, **about, "arguments": vars(cfg)}
            meta = corpus.write_dataset(folder, tok, encoded, about)
    for rule, count in meta["rows"].items():
        print(f"{rule:<60}{count:>10,}")
    for split in corpus.SPLITS:
        n = meta[split]
        print(
            f"{split}: {n['tokens']:,} tokens, {n['learnt']:,} of them learnt, "
            f"{n['documents']:,} documents"
        )
    # A label stands at the end, and must be in the window; an answer may lose its end.
    room = longest if about["task"] == "sentiment" else 0
    command = next_step.fine_tuning(f"finetune_{about['task']}", cfg.out, cfg.tokenizer, room)
    print(f"next: {command}")

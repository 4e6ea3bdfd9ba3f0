"""Texts with a label -> data/sentiment, for fine-tuning: only the label's word is learnt.

    python prepare/sentiment.py --file=train.tsv --val_file=dev.tsv    text TAB 0 or 1, as SST-2
    python prepare/sentiment.py --file=reviews.csv                     columns review, sentiment
    python prepare/sentiment.py --file=a.jsonl --text=body --label=stars --labels=bad,fair,good
    python prepare/sentiment.py --source=sst2    or imdb, or another hub data set; streamed

Reads CSV, TSV, JSON lines, JSON lists and parquet; csv, tsv and json also as .gz. A document is

    <|endoftext|>a stirring , funny film
    Sentiment: positive

of which " positive" is learnt, so that the label is the word that the model finds likelier. Labels
are words, or numbers that count them from 0. A text that is too long loses its beginning, since a
review's verdict tends to stand at its end.

train.tsv and dev.tsv are those of SST-2, the Stanford Sentiment Treebank with two classes (Socher
et al. 2013): sentences of film reviews, for research, with no licence that its page names. GLUE's
copy is at https://dl.fbaipublicfiles.com/glue/data/SST-2.zip; --source=sst2 needs no file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from parts import configurator
from parts.tokenizer import Tokenizer, valid
from prepare import examples, sources

KINDS = (
    *(".tsv", ".csv", ".json", ".jsonl", ".parquet"),
    *(".tsv.gz", ".csv.gz", ".json.gz", ".jsonl.gz"),
)
COLUMNS = {
    "text": ("text", "sentence", "review", "content", "comment"),
    "label": ("label", "sentiment", "labels"),
}
HUB = {  # name -> data set and the split that is its val
    "sst2": ("stanfordnlp/sst2", "validation"),  # its train split has phrases of sentences
    "imdb": ("stanfordnlp/imdb", "test"),
}
LABELS = ("negative", "positive")
MOST_LABELS = 20
QUESTION = "\nSentiment:"


class Settings(examples.Settings):
    val_file = ""  # files with the val split; empty: hold out val_fraction of --file
    text = ""  # the column of texts; empty: text, sentence, review, content or comment
    label = ""  # the column of labels; empty: label, sentiment or labels
    labels = ""  # their words, with commas; empty: negative,positive or the words in the file
    max_tokens = 200  # of a document; at most what the model's context holds
    out = "sentiment"  # the data set's name: a folder in data/


class Example(NamedTuple):
    text: str
    label: str | int  # a word, or the number of one


# --- rows -----------------------------------------------------------------------------------------


def named_rows(rows: Iterable, names: dict[str, str]) -> Iterator:
    """Rows as dicts: those of tables by the names in the first one or, if that has none, by what
    the first label looks like. names: the settings text and label."""
    header, known = None, {name for columns in COLUMNS.values() for name in columns}
    known |= {name.lower() for name in names.values()}
    for row in rows:
        if not isinstance(row, list):
            yield row
            continue
        if header is None:
            header = row
            if any(cell.strip().lower() in known for cell in row):
                header = [cell.strip() for cell in row]
                continue
            header = guess_header(row)
        if isinstance(header, ValueError):
            yield header
        elif len(row) != len(header):
            yield ValueError(f"it has not {len(header)} columns")
        else:
            yield dict(zip(header, row))


def guess_header(row: list[str]) -> list[str] | ValueError:
    """The names of the columns of a table without names, given its first row."""
    if len(row) == 2:
        for header, label in ((["text", "label"], row[1]), (["label", "text"], row[0])):
            if label.strip().lower() in ("0", "1", "2", *LABELS):
                return header
    return ValueError("its first line names no columns; let it be one like: text,label")


def read_row(row, names: dict[str, str]) -> Example:
    """The example in a row. ValueError says why there is none."""
    if not isinstance(row, dict):
        raise ValueError("it is no object with named fields")
    found = {}
    for field, columns in COLUMNS.items():
        lower = {str(name).lower(): name for name in row}
        columns = (names[field],) if names[field] else columns
        name = next((lower[c.lower()] for c in columns if c.lower() in lower), None)
        if name is None:
            raise ValueError(f"it has no column {' or '.join(columns)}")
        found[field] = row[name]
    text, label = found["text"], found["label"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("its text is empty or no text")
    if isinstance(label, str):
        label = valid(" ".join(label.lower().split()))
        number = label.removesuffix(".0")  # as pandas writes numbers
        label = int(number) if number.isdecimal() and len(number) < 4 else label
    elif isinstance(label, (int, float)) and label == label and abs(label) < 1000:
        if label != int(label):
            raise ValueError("its label is no whole number")
        label = int(label)
    else:
        raise ValueError("its label is neither a word nor a number")
    if label == "":
        raise ValueError("its label is empty")
    return Example(valid(text.strip()), label)


def label_words(given: str, found: list[Example]) -> list[str]:
    """The labels' words: those given, those of LABELS if there are numbers, or those in the file.
    ValueError if they cannot be labels."""
    numbers = {example.label for example in found if isinstance(example.label, int)}
    if given:
        words = [" ".join(word.lower().split()) for word in given.split(",")]
    else:
        words = list(LABELS) if numbers else sorted({example.label for example in found})
    if any(word.isdecimal() for word in words):
        raise ValueError("--labels are words for the numbers 0, 1, ..., such as negative,positive")
    if numbers and not given and max(numbers) >= len(words):
        raise ValueError(
            f"the labels are numbers up to {max(numbers)}; name their words with --labels=..., as "
            "many as there are, beginning with that of 0"
        )
    if numbers and 0 not in numbers and len(words) in numbers:
        raise ValueError("the labels are numbers from 1; let them count from 0, or be words")
    if len(set(words)) != len(words) or "" in words or not 2 <= len(words) <= MOST_LABELS:
        raise ValueError(
            f"labels must be 2 to {MOST_LABELS} different words, not {len(words)}: "
            f"{', '.join(words)[:100]}; name them with --labels=negative,positive"
        )
    return words


def labelled(found: list[Example], words: list[str], counts: Counter) -> list[tuple[str, int]]:
    """(text, number of the label) of the examples whose label is known. ValueError if none is."""
    known = {key: number for number, word in enumerate(words) for key in (number, word)}
    kept = [(text, known[label]) for text, label in found if label in known]
    if len(kept) < len(found):
        names = ", ".join(map(str, sorted(map(str, known))))
        counts[f"left out: its label is none of {names}"] += len(found) - len(kept)
        counts["kept"] -= len(found) - len(kept)
    if not kept:
        raise ValueError(
            f"no label is one of {', '.join(words)}, nor a number below {len(words)}, but like "
            f"{found[0].label!r}; name them with --labels=..."
        )
    return kept


def read_files(files: list[str], names: dict[str, str]) -> Iterator:
    """The rows of each file, as dicts."""
    return chain.from_iterable(named_rows(sources.file_rows(file), names) for file in files)


def make_reader(names: dict[str, str]) -> examples.Reader:
    def read(row) -> Example:
        return read_row(row, names)

    return examples.Reader(read, text_of)


def text_of(example: tuple) -> str:
    return example[0]


# --- tokens ---------------------------------------------------------------------------------------


class Template:
    """How a text and a label become tokens."""

    def __init__(self, tok: Tokenizer, words: list[str], max_tokens: int):
        """ValueError if the words cannot be told apart, or no text would be left."""
        self.tok, self.words = tok, words
        self.question = tok.encode(QUESTION)
        self.labels = [tok.encode(f" {word}") for word in words]
        self.room = max_tokens - 1 - len(self.question) - max(map(len, self.labels))
        if self.room < 1:
            raise ValueError(
                f"max_tokens={max_tokens} leave no room for a text; they must be more than "
                f"{max_tokens - self.room}"
            )
        for a, first in zip(words, self.labels):
            for b, second in zip(words, self.labels):
                if a != b and second[: len(first)] == first:
                    raise ValueError(
                        f"the label {b!r} begins with {a!r}, so their likelihoods cannot be "
                        "compared; give other words with --labels=..."
                    )

    def prompt(self, text: str) -> list[int]:
        """The ids before the label."""
        return [self.tok.eot, *self.tok.encode(text)[-self.room :], *self.question]

    def document(self, example: tuple[str, int]) -> tuple[list[int], list[int]]:
        """The ids of (text, number of the label), and 1 for each that is learnt."""
        text, number = example
        given, label = self.prompt(text), self.labels[number]
        return [*given, *label], [0] * len(given) + [1] * len(label)


def main():
    cfg = examples.load(Settings)
    names = {"text": cfg.text, "label": cfg.label}
    with configurator.mistakes():
        tok = examples.open_tokenizer(cfg)
        files = sources.named_files("file", cfg.file, KINDS) if cfg.file else []
        val_files = sources.named_files("val_file", cfg.val_file, KINDS) if cfg.val_file else []
        if cfg.labels:
            Template(tok, label_words(cfg.labels, []), cfg.max_tokens)
    rows, val_rows = read_files(files, names), read_files(val_files, names)
    has_val = bool(val_files)
    if cfg.source:
        source, split = HUB.get(cfg.source, (cfg.source, ""))
        rows, has_val = sources.hub_rows(path=source), has_val or bool(split)
        if split and not val_files:
            val_rows = sources.hub_rows(path=source, split=split)

    # val first: what it has too is then left out of train as a duplicate.
    reader = make_reader(names)
    val = reader.examples(val_rows, cfg.val_file or cfg.source) if has_val else []
    found = reader.examples(rows, cfg.file or cfg.source)  # all of them: they may be sorted
    with configurator.mistakes():
        words = label_words(cfg.labels, found)
        template = Template(tok, words, cfg.max_tokens)
        found = examples.shuffled(labelled(found, words, reader.counts), text_of, cfg.seed)
        if len(found) > 1 and len({label for _, label in found}) < 2:
            raise ValueError(f"all texts have the same label, {words[found[0][1]]}")
        found = found[: cfg.max_examples or None]
        val = labelled(val, words, reader.counts) if has_val else val
    if has_val:
        train, split_by = found, cfg.val_file or split
    else:
        (train, val), split_by = examples.hold_out(found, text_of, cfg), "text"
    shares = Counter(words[number] for _, number in (*train, *val))
    print("labels: " + ", ".join(f"{shares[word]:,} {word}" for word in words))
    about = {"task": "sentiment", "labels": words, "max_tokens": cfg.max_tokens}
    about |= {"template": "TEXT" + QUESTION + " LABEL", "rows": reader.counts, "split_by": split_by}
    examples.write(cfg, tok, {"train": train, "val": val}, template.document, about)


if __name__ == "__main__":
    run_script(main)

"""Sentiment: is the right label the likeliest? Beside a bag of words and the commonest label."""

import functools
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from typing_extensions import TypedDict

from parts import tokenizer as tokenization
from parts.configurator import say
from parts.files import check_shape
from prepare import sentiment
from prepare.sources import named_files
from tasks.scoring import score
from tasks.task import Examinee, Task


class Meta(TypedDict):
    """What prepare/sentiment.py says of its set."""

    task: Literal["sentiment"]
    labels: list[str]
    max_tokens: int
    folder: str


class Labelled(NamedTuple):
    texts: list[str]
    labels: np.ndarray  # their numbers


class Sentiment(Task):
    """Accuracy and F1 on a set of prepare/sentiment.py: on its val split, or on files like those
    that it reads. F1 is of the last label (positive) where there are two, else the mean over all.

    The bag of words is scikit-learn's logistic regression on word counts, fitted to the set's train
    split. That and the commonest label of that split are what a model has to beat."""

    def prepare(self):
        if (self.meta or {}).get("task") != "sentiment":
            raise ValueError(
                "the data set is not one of prepare/sentiment.py; name one with --dataset=..."
            )
        check_shape(self.meta, "meta.json", Meta)
        self.words = self.meta["labels"]
        self.template = sentiment.Template(self.tokenizer, self.words, self.meta["max_tokens"])
        self.asked = self.read_files() if self.options.file else self.read_split("val")

    def read_split(self, name: str) -> Labelled:
        """A split of the data set, whatever tokenizer it has."""
        folder = Path(self.meta["folder"])
        tok, tokens = tokenization.load(folder), np.fromfile(folder / f"{name}.bin", "<u2")
        pairs = []
        for ids in np.split(tokens, np.flatnonzero(tokens == tok.eot))[1:]:
            text, _, word = tok.decode(ids[1:]).rpartition(f"{sentiment.QUESTION} ")
            if word not in self.words:
                raise ValueError(f"{folder / name}.bin holds a document without a label")
            pairs.append((text, self.words.index(word)))
        return Labelled([text for text, _ in pairs], np.array([label for _, label in pairs]))

    def read_files(self) -> Labelled:
        """What the option `file` names. The columns are those of the data set's files."""
        names = {key: self.meta.get("arguments", {}).get(key, "") for key in ("text", "label")}
        files = named_files("file", ",".join(self.options.file), sentiment.KINDS)
        reader = sentiment.make_reader(names)
        found = reader.examples(sentiment.read_files(files, names), ", ".join(files))
        found = sentiment.labelled(found, self.words, reader.counts)
        if left_out := reader.counts["read"] - len(found):
            say(f"{left_out} of {reader.counts['read']} rows are left out: {reader.reasons()}")
        return Labelled([text for text, _ in found], np.array([label for _, label in found]))

    @functools.cached_property
    def rivals(self) -> dict[str, float]:
        """How good the bag of words is, and the commonest label."""
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        train = self.read_split("train")
        report = {}
        try:
            count, fit = CountVectorizer(), LogisticRegression(max_iter=1000)
            fit.fit(count.fit_transform(train.texts), train.labels)
            chosen = fit.predict(count.transform(self.asked.texts))
            report |= grades("bag_of_words", self.asked.labels, chosen)
        except ValueError as error:  # there is one label only, or no word
            say(f"no bag of words: {error}")
        commonest = Counter(train.labels.tolist()).most_common(1)[0][0]
        always = np.full(len(self.asked.labels), commonest)
        return report | grades("majority", self.asked.labels, always)

    def measure(self, examinee: Examinee) -> dict[str, float]:
        prompts = [self.template.prompt(text) for text in self.asked.texts]
        pairs = [(prompt, label) for prompt in prompts for label in self.template.labels]
        sequences, starts = [a + b for a, b in pairs], [len(a) for a, _ in pairs]
        context = examinee.network.config.block_size
        scores = score(examinee, sequences, starts, context, "sentiment")
        nats = np.array([one.nats.sum(dtype=np.float64) for one in scores])  # 0 before the label
        chosen = nats.reshape(len(prompts), len(self.words)).argmin(axis=1)
        report = grades("sentiment", self.asked.labels, chosen)
        return report | self.rivals | {"sentiment_texts": len(prompts)}


def grades(name: str, right: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    accuracy = float((right == chosen).mean())
    return {f"{name}_accuracy": accuracy, f"{name}_f1": f1(right, chosen)}


def f1(right: np.ndarray, chosen: np.ndarray) -> float:
    """The harmonic mean of precision and recall: of label 1 if there are but 0 and 1, otherwise the
    mean over the labels that occur."""
    found = []
    for label in np.union1d(right, chosen):
        both = ((right == label) & (chosen == label)).sum()
        found.append(2 * both / ((right == label).sum() + (chosen == label).sum()))
    if max(right.max(), chosen.max()) > 1:
        return float(np.mean(found))
    return float(found[-1]) if 1 in right or 1 in chosen else 0.0

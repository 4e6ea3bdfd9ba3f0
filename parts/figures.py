"""What the numbers of eval.json are: in words, with their unit, and what to judge them by.

Some shares in eval.json are from 0 to 1, some in percent, and stay so, since trackers and old files
have them. Whatever shows a number to a person uses `shown`, which makes percent of all of them.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple


class Figure(NamedTuple):
    name: str  # in words; {1} and {2} are what the groups of the key's pattern matched
    unit: str = ""
    factor: float = 1  # eval.json's number times this is in the unit
    untrained: float | None = None  # what random weights get, in the unit; see also `untrained`
    known: str = ""  # what a published model gets, and the source


WORDS = {"line": "rest of a cut line", "next": "next line", "body": "body of a function"}
WORDS |= {"mine": "problems in tasks/", "humaneval": "HumanEval", "humaneval-x": "HumanEval-X (Go)"}
WORDS |= {"humaneval-infill": "HumanEval-Infilling", "identifier": "names", "keyword": "keywords"}
WORDS |= {"operator": "operators", "literal": "literals", "comment": "comments"}
GAPS = {"line": "missing line", "block": "2 to 8 missing lines", "span": "missing characters"}
# By key of eval.json, a pattern; the first that matches counts. What untrained models get above 0
# was measured with five of them: docs/RESULTS.md.
FIGURES = {
    "loss": Figure("loss on held-out text", "nats per token"),
    "perplexity": Figure("perplexity: as unsure as among so many tokens"),
    "bits_per_byte": Figure("loss on held-out text", "bits per byte"),
    "top1": Figure("right token is the first guess", "%", 100),
    "top5": Figure("right token is among the first five", "%", 100),
    r"loss_(\w+)": Figure("loss on {1}", "nats per token"),
    r"top1_(\w+)": Figure("{1}: right token is the first guess", "%", 100),
    r"share_(\w+)": Figure("tokens that are {1}", "%", 100),
    "(line)_exact": Figure("{1}: exactly right", "%", 1, 0, "41.7 (GPT-2 124M, PY150) [1]"),
    "(line)_edit": Figure("{1}: similarity by edits", "%", 1, 6, "70.6 (GPT-2 124M, PY150) [1]"),
    "(line|next|body)_exact": Figure("{1}: exactly right", "%", 1, 0),
    "(next)_edit": Figure("{1}: similarity by edits", "%", 1, 9),
    "(body)_edit": Figure("{1}: similarity by edits", "%", 1, 4),
    "(line|next|body)_bleu": Figure("{1}: BLEU, at most 100"),
    "(line|next|body)_first": Figure("{1}: first token right", "%"),
    "(line|next|body)_parse": Figure("{1}: file still parses", "%"),
    "infill_(line)_exact_left": Figure("{1}, written without what follows: right", "%", 1, 0),
    "infill_(line|block|span)_exact": Figure("{1}: exactly right", "%", 1, 0),
    "infill_(line|span)_edit": Figure("{1}: similarity by edits", "%", 1, 13),
    "infill_(block)_edit": Figure("{1}: similarity by edits", "%", 1, 18),
    "infill_(line|block|span)_parse": Figure("{1}: file still parses", "%"),
    "bodies": Figure("functions to write a body for", "functions"),
    "ended": Figure("function bodies that came to an end", "bodies"),
    "parse": Figure("function bodies that parse", "bodies"),
    "parse_share": Figure("function bodies that parse", "%", 100, 1),
    "answer_bits_per_byte": Figure("loss on held-out answers", "bits per byte"),
    "(.+)_bits_per_byte": Figure("{1}: loss on the known solutions", "bits per byte"),
    "(.+)_choice2": Figure("{1}: solution preferred to a corrupted copy", "%", 100, 50),
    "(.+)_choice10": Figure("{1}: solution preferred to 9 corrupted copies", "%", 100, 1),
    "(humaneval)_pass@1": Figure("{1}: programs that pass", "%", 100, 0, "3.2 (Codex 25M) [2]"),
    "(.+)_pass@1": Figure("{1}: programs that pass", "%", 100, 0),
    r"(.+)_pass@(\d+)": Figure("{1}: one of {2} programs passes", "%", 100, 0),
    "(humaneval-infill)_exact": Figure("{1}: exactly right", "%", 1, 0),
    "sentiment_texts": Figure("sentiment: texts to label", "texts"),
    "(sentiment|bag_of_words|majority)_accuracy": Figure("{1}: right labels", "%", 100),
    "(sentiment|bag_of_words|majority)_f1": Figure("{1}: F1 of the labels", "%", 100),
    "answer_loss": Figure("loss on held-out answers", "nats per token"),
    "conversations": Figure("held-out conversations", "conversations"),
    "short_answers": Figure("short answers to write", "answers"),
    "exact_match": Figure("short answers, word for word", "%", 100, 0),
}
SOURCES = {
    "[1]": "on other files, trained for it: Lu et al. 2021, CodeXGLUE (arXiv 2102.04664)",
    "[2]": "trained on 100 billion tokens of code: Chen et al. 2021 (arXiv 2107.03374), table 1",
}
# Of each task the figures that tell most, the first one first.
TELLING = [
    ["bits_per_byte", "perplexity", "loss", "top1", "top5"],
    ["line_exact", "line_edit", "next_edit", "next_exact", "body_edit"],
    ["humaneval_pass@1", "humaneval_choice10", "humaneval_choice2"],
    ["mine_choice10", "mine_pass@1", "mine_choice2"],
    ["infill_line_exact", "infill_line_edit", "infill_span_edit", "infill_block_edit"],
    ["parse_share"],
    ["humaneval-x_pass@1", "humaneval-x_choice10", "humaneval-x_choice2"],
    ["humaneval-infill_pass@1", "humaneval-infill_exact"],
    ["sentiment_accuracy", "bag_of_words_accuracy", "majority_accuracy", "sentiment_f1"],
    ["answer_loss", "exact_match", "answer_bits_per_byte"],
]


def figure(key: str) -> Figure:
    """What a key of eval.json stands for; of an unknown one, the key."""
    for pattern, found in FIGURES.items():
        if match := re.fullmatch(pattern, key):
            words = WORDS | (GAPS if key.startswith("infill_") else {})
            groups = [words.get(text, text.replace("_", " ")) for text in match.groups()]
            return found._replace(name=found.name.format("", *groups))
    return Figure(key)


def headline(report: Iterable[str], most: int = 5) -> list[str]:
    """The keys of a report's most telling numbers: of each task the first, then the second, ..."""
    known = [[key for key in keys if key in report] for keys in TELLING]
    ranks = range(max(map(len, known)))
    chosen = [keys[rank] for rank in ranks for keys in known if rank < len(keys)][:most]
    return [key for keys in known for key in keys if key in chosen] or list(report)[:most]


def untrained(key: str, report: dict, vocabulary: int) -> str:
    """What random weights get, in the figure's unit, - where that is not known. They take every
    token of the vocabulary for equally likely."""
    nats = math.log(vocabulary)
    computed = {"loss": nats, "answer_loss": nats, "perplexity": vocabulary}
    computed |= {"top1": 100 / vocabulary, "top5": 500 / vocabulary}
    for loss in ("loss", "answer_loss"):  # as many tokens for as many bytes
        if report.get(loss):
            bits = loss.replace("loss", "bits_per_byte")
            computed[bits] = report[bits] * nats / report[loss]
    about = figure(key)
    if key in computed:
        return in_unit(computed[key], about.unit)
    return "-" if about.untrained is None else f"{about.untrained:g}"


def shown(key: str, value: float) -> str:
    """A number of eval.json in the figure's unit, without the unit."""
    about = figure(key)
    return in_unit(value * about.factor, about.unit)


def in_unit(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.1f}"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


def with_unit(key: str, value: float) -> str:
    """The same as a person reads it alone: 41.7 %, 1.475 bits per byte."""
    return f"{shown(key, value)} {figure(key).unit}".strip()


def described(key: str) -> str:
    """What a key stands for, with its unit."""
    about = figure(key)
    return ", ".join(part for part in (about.name, about.unit) if part)

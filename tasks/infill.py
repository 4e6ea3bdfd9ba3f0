"""Held-out code with a gap, filled greedily: how close is that to what stood there?"""

import numpy as np

from parts import infill
from tasks.code import next_line, parses
from tasks.completion import edit_similarity, exact_match
from tasks.places import GAPS, Place, draw
from tasks.task import Examinee, Task
from tasks.writing import Writer, fill, write

LONGEST = {"line": 40, "block": 200, "span": 60}  # tokens that fill a gap, at most


def has_next_line(text: str) -> bool:
    return next_line(text).ended


class Infill(Task):
    """Gaps of one line (line), of 2 to 8 lines (block) and of some characters (span). Each metric
    is named kind_metric, and in percent. line_exact_left: the same lines, written from left to
    right by a model that does not see what follows."""

    def prepare(self):
        if not self.language:
            raise ValueError("infill fills gaps in Python or Go, and the data set is neither")
        infill.require(self.tokenizer)

    def texts(self) -> dict[str, int]:
        return {"num_completions": 1}

    def measure(self, examinee: Examinee) -> dict[str, float]:
        writer = Writer(examinee.network, self.tokenizer, self.options, temperature=0)
        count, seed, report = self.options.num_completions, self.options.seed, {}
        for kind in GAPS:
            drawn = draw(self.tokens, self.tokenizer, self.language, kind, count, seed, GAPS)
            places = list(drawn)
            if not places:
                continue
            written = self.fill(writer, kind, places)
            for metric, value in self.compare(written, places).items():
                report[f"infill_{kind}_{metric}"] = float(value)
            if kind == "line":
                prompts = [place.before for place in places]
                left = [text for text, _ in write(writer, prompts, next_line, "line, left")]
                exact = self.compare(left, places)["exact"]
                report["infill_line_exact_left"] = float(exact)
        return report

    def fill(self, writer: Writer, kind: str, places: list[Place]) -> list[str]:
        """What the model writes into each gap. That one line is missing it is told: the first one
        with anything in it counts, as it does without the suffix."""
        gaps = [(place.before, place.after) for place in places]
        most = min(self.options.max_new_tokens, LONGEST[kind])
        if kind != "line":
            return fill(writer, gaps, most, kind)
        written = fill(writer, gaps, most, kind, has_next_line)
        return [next_line(text).text for text in written]

    def compare(self, written: list[str], places: list[Place]) -> dict[str, float]:
        pairs = list(zip(written, places))
        wholes = [place.before + text + place.after for text, place in pairs]
        whole = [parses(text, self.language) for text in wholes]
        report = {
            "exact": 100 * np.mean([exact_match(text, place.target) for text, place in pairs]),
            "edit": np.mean(
                [edit_similarity(text.strip(), place.target.strip()) for text, place in pairs]
            ),
        }
        if None not in whole:
            report["parse"] = 100 * np.mean(whole)
        return report

"""Held-out code, cut and continued greedily: how close is that to what stood there?"""

import numpy as np

from parts.tokenizer import Tokenizer
from tasks.code import next_line, parses, rest_of_line
from tasks.places import CUTS, Place, draw
from tasks.task import Examinee, Task
from tasks.writing import Writer, write, write_bodies

NOT_CODE = (
    "the data set is not of code that completion (Python, Go) and bodies (Python) know; "
    "use --tasks=loss"
)


class Completion(Task):
    """Cuts inside a line (line), at the end of one (next) and after a signature (body). Each metric
    is named kind_metric, and in percent."""

    def prepare(self):
        if not self.language:
            raise ValueError(NOT_CODE)

    def texts(self) -> dict[str, int]:
        return {"num_completions": 1}

    def measure(self, examinee: Examinee) -> dict[str, float]:
        count, seed, report = self.options.num_completions, self.options.seed, {}
        for kind in CUTS:
            places = draw(self.tokens, self.tokenizer, self.language, kind, count, seed)
            places = list(places)
            if places:
                texts = self.write(examinee, kind, places)
                for metric, value in self.compare(texts, places).items():
                    report[f"{kind}_{metric}"] = float(value)
        return report

    def write(self, examinee: Examinee, kind: str, places: list[Place]) -> list[str]:
        """What the model writes at each place."""
        writer = Writer(examinee.network, self.tokenizer, self.options, temperature=0)
        if kind == "body":
            written = write_bodies(writer, places, self.language, kind)
        else:
            extract = rest_of_line if kind == "line" else next_line
            written = write(writer, [place.before for place in places], extract, kind)
        return [text for text, _ in written]

    def compare(self, texts: list[str], places: list[Place]) -> dict[str, float]:
        written = [text.strip() for text in texts]
        targets = [place.target.strip() for place in places]
        pairs = list(zip(written, targets))
        first = [
            text.encode().startswith(first_piece(self.tokenizer, place))
            for text, place in zip(texts, places)
        ]
        whole = [
            parses(place.before + text + place.after, self.language)
            for text, place in zip(texts, places)
        ]
        report = {
            "exact": 100 * np.mean([exact_match(*pair) for pair in pairs]),
            "edit": np.mean([edit_similarity(*pair) for pair in pairs]),
            "bleu": bleu(written, targets),
            "first": 100 * np.mean(first),
        }
        if None not in whole:
            report["parse"] = 100 * np.mean(whole)
        return report


def exact_match(prediction: str, reference: str) -> bool:
    """Whether they differ in whitespace at most, as in CodeXGLUE's line completion."""
    return prediction.split() == reference.split()


def edit_similarity(a: str, b: str) -> int:
    """0 to 100: CodeXGLUE's, which is fuzzywuzzy's ratio, twice the length of the longest common
    subsequence over the sum of both lengths."""
    from rapidfuzz import fuzz

    return round(fuzz.ratio(a, b))


def bleu(predictions: list[str], references: list[str]) -> float:
    """Corpus BLEU, 0 to 100, as sacrebleu computes it by default (Post 2018)."""
    import sacrebleu

    return sacrebleu.corpus_bleu(predictions, [references]).score


def first_piece(tokenizer: Tokenizer, place: Place) -> bytes | None:
    """The bytes of the target in the first token of the whole text that reaches past the cut."""
    cut, end = len(place.before.encode()), 0
    for i in tokenizer.encode(place.before + place.target):
        end += len(tokenizer.token_bytes(i))
        if end > cut:
            return place.target.encode()[: end - cut]

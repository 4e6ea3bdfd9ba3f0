"""HumanEval-Infilling (Bavarian et al. 2022, section 3.1): HumanEval's solutions with a gap."""

import math

import numpy as np

from parts import infill
from tasks.completion import exact_match
from tasks.problems import HumanEval, Problem
from tasks.scoring import score
from tasks.task import Examinee
from tasks.writing import Writer, fill


class HumanEvalInfill(HumanEval):
    """Without --file the single lines; `file` may name its other parts as well: several lines,
    random spans."""

    name = "humaneval-infill"
    url = (
        "https://github.com/openai/human-eval-infilling/raw/master/data/"
        "HumanEval-SingleLineInfilling.jsonl.gz"
    )

    def prepare(self):
        infill.require(self.tokenizer)
        super().prepare()

    def texts(self) -> dict[str, int]:
        return super().texts() or {"num_samples": len(self.problems)}

    def likelihood(self, examinee: Examinee) -> dict[str, float]:
        """Bits per byte of the known middles, their end included, given what stands on both sides;
        and how many in a hundred of the likeliest ones are the same but for white space."""
        context, new = examinee.network.config.block_size, self.options.max_new_tokens
        gaps = [
            infill.read_gap(self.tokenizer, p.prompt, p.suffix, context, new) for p in self.problems
        ]
        known = [
            infill.filled(self.tokenizer, gap, p.solution) for gap, p in zip(gaps, self.problems)
        ]
        sequences, starts = zip(*known)
        scores = score(examinee, list(sequences), list(starts), context, self.name)
        nats = sum(float(one.nats.sum(dtype=np.float64)) for one in scores)
        size = sum(len(problem.solution.encode()) for problem in self.problems)
        writer = Writer(examinee.network, self.tokenizer, self.options, temperature=0)
        exact = [
            exact_match(text, problem.solution)
            for text, problem in zip(self.write(writer, self.problems), self.problems)
        ]
        return {
            "bits_per_byte": nats / math.log(2) / size,
            "exact": 100 * float(np.mean(exact)),
        }

    def write(self, writer: Writer, problems: list[Problem]) -> list[str]:
        gaps = [(problem.prompt, problem.suffix) for problem in problems]
        return fill(writer, gaps, self.options.max_new_tokens, self.name)

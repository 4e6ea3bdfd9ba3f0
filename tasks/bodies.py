"""Sampled bodies for functions of held-out Python files: do they parse?"""

import textwrap

from tasks.code import parse
from tasks.completion import NOT_CODE
from tasks.places import draw
from tasks.task import Examinee, Task
from tasks.writing import Writer, write_bodies


class Bodies(Task):
    """How many bodies came to an end, and how many parse with their header. Prints some."""

    def prepare(self):
        if self.language != "python":
            raise ValueError(NOT_CODE)

    def texts(self) -> dict[str, int]:
        return {"num_bodies": 1}

    def measure(self, examinee: Examinee) -> dict[str, float]:
        options = self.options
        count, seed = options.num_bodies, options.seed
        places = list(draw(self.tokens, self.tokenizer, "python", "body", count, seed))
        writer = Writer(examinee.network, self.tokenizer, options, options.temperature)
        written = write_bodies(writer, places, "python", "bodies")
        good = 0
        for number, (place, (text, _)) in enumerate(zip(places, written)):
            function = place.header + text
            right = bool(text.strip()) and parse(textwrap.dedent(function)) is not None
            good += right
            if number < options.show:
                print(f"{'-' * 30} {'parses' if right else 'does not parse'}\n{function}")
        return {
            "bodies": len(places),
            "ended": sum(ended for _, ended in written),
            "parse": good,
            "parse_share": good / max(len(places), 1),
        }

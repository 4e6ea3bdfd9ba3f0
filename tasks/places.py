"""Places in held-out code where a model goes on writing."""

import random
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, repeat
from typing import NamedTuple

import numpy as np

from parts.tokenizer import Tokenizer
from tasks.code import body, documents, functions, lex, next_line, parse, rest_of_line


class Place(NamedTuple):
    before: str  # what the model reads
    target: str  # what comes next in the file
    after: str  # what follows that
    indentation: str  # of the target's line, or of the header
    header: str = ""  # of the function, if the target is its body


class Source:
    """A file of code, by its lines, numbered from 0."""

    def __init__(self, text: str, language: str):
        self.text, self.language, self.lines = text, language, text.split("\n")
        self.starts = list(accumulate((len(line) + 1 for line in self.lines), initial=0))

    def indentation(self, number: int) -> str:
        line = self.lines[number]
        return line[: len(line) - len(line.lstrip())]

    def code_lines(self) -> list[int]:
        """The lines, but for the first one, that begin with code and have some length."""
        code = {
            begin
            for kind, begin, _ in lex(self.text.encode(), self.language)
            if kind in ("identifier", "keyword", "operator")
        }
        starts = accumulate((len(line.encode()) + 1 for line in self.lines), initial=0)  # in bytes
        return [
            number
            for number, (line, start) in enumerate(zip(self.lines, starts))
            if number and len(line.strip()) > 3 and start + self.margin(number) in code
        ]

    def margin(self, number: int) -> int:
        return len(self.indentation(number).encode())

    def place(self, cut: int, target: str, indentation: str, header: str = "") -> Place:
        after = self.text[cut + len(target) :]
        return Place(self.text[:cut], target, after, indentation, header)

    def gap(self, first: int, last: int) -> Place:
        """The lines from the first to the last one, without the last one's newline."""
        target = "\n".join(self.lines[first : last + 1])
        return self.place(self.starts[first], target, self.indentation(first))


def inside_line(source: Source, rng: random.Random) -> Place | None:
    """Inside a line of code; the target is the rest of the line."""
    numbers = source.code_lines()
    if not numbers:
        return None
    number = rng.choice(numbers)
    indentation, line = source.indentation(number), source.lines[number]
    cut = source.starts[number] + rng.randrange(len(indentation) + 1, len(line))
    return source.place(cut, rest_of_line(source.text[cut:]).text, indentation)


def end_of_line(source: Source, rng: random.Random) -> Place | None:
    """At the end of a line of code; the target is the next line that is not empty."""
    numbers = source.code_lines()
    pairs = list(zip(numbers, numbers[1:]))
    if not pairs:
        return None
    number, following = rng.choice(pairs)
    cut = source.starts[number + 1] - 1
    return source.place(cut, next_line(source.text[cut:]).text, source.indentation(following))


def end_of_header(source: Source, rng: random.Random) -> Place | None:
    """After a function's header; the target is its body."""
    headers = functions(source.text, source.language)
    if not headers:
        return None
    first, last = rng.choice(headers)
    cut, indentation = source.starts[last] - 1, source.indentation(first)
    target = body(source.text[cut:] + "\n", indentation, source.language).text
    return source.place(cut, target, indentation, "\n".join(source.lines[first:last]))


def whole_line(source: Source, rng: random.Random) -> Place | None:
    """A line of code, without the newline at its end."""
    numbers = source.code_lines()
    return source.gap(*[rng.choice(numbers)] * 2) if numbers else None


def some_lines(source: Source, rng: random.Random) -> Place | None:
    """2 to 8 neighbouring lines, the first and the last one of code."""
    numbers, most = set(source.code_lines()), rng.randint(2, 8)
    pairs = [(a, b) for a in sorted(numbers) for b in range(a + 1, a + most) if b in numbers]
    return source.gap(*rng.choice(pairs)) if pairs else None


def some_characters(source: Source, rng: random.Random) -> Place | None:
    """2 to 100 characters, from a random one of a line of code on."""
    numbers = source.code_lines()
    if not numbers:
        return None
    number = rng.choice(numbers)
    indentation = source.indentation(number)
    cut = source.starts[number] + rng.randrange(len(indentation), len(source.lines[number]))
    return source.place(cut, source.text[cut : cut + rng.randint(2, 100)], indentation)


CUTS = {"line": inside_line, "next": end_of_line, "body": end_of_header}
GAPS = {"line": whole_line, "block": some_lines, "span": some_characters}


def draw(
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    language: str,
    kind: str,
    count: int,
    seed: int,
    cuts: dict[str, Callable] = CUTS,
) -> Iterator[Place]:
    """`count` places of one kind (a key of `cuts`) in the documents of a split, or fewer if there
    are not that many. The same seed gives the same places."""
    spans, drawn = documents(tokens, tokenizer), 0
    rng = random.Random(f"{seed} {kind}")
    rng.shuffle(spans)
    for begin, end in chain.from_iterable(repeat(spans, count)):
        if drawn == count:
            return
        text = tokenizer.decode(tokens[begin:end].tolist())
        if language == "python" and parse(text) is None:
            continue
        place = cuts[kind](Source(text, language), rng)
        if place and place.target.strip():
            drawn += 1
            yield place

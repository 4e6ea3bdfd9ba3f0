"""What a model writes: texts continued, in batches."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from model import NeoX
from parts.generate import Prompt, completion, generate, read_prompt
from parts.infill import Gap, read_gap, trim
from parts.tokenizer import Tokenizer
from tasks.code import Excerpt, body
from tasks.places import Place
from tasks.task import Options


class Writer(NamedTuple):
    network: NeoX
    tokenizer: Tokenizer
    options: Options
    temperature: float


def rows_per_batch(device: str) -> int:
    """How many texts are continued together. 128 was not measured on a GPU."""
    return 20 if device == "cpu" else 128


def complete(
    writer: Writer, prompts: list[str], stop: Callable[[str], bool], name: str
) -> list[Excerpt]:
    """Continue texts: for each, what was added, and whether it came to an end.

    stop(text) says whether enough was written. While writing, that text begins with the prompt's
    last token, which is written again (see Tokenizer.heal). name: of the progress bar."""
    room = writer.network.config.block_size * 3 // 4
    read = [read_prompt(writer.tokenizer, text, special=False) for text in prompts]
    read = [prompt._replace(ids=prompt.ids[-room:]) for prompt in read]
    written = go_on(writer, read, writer.options.max_new_tokens, stop, name)
    return [Excerpt(text + "\n" * ended, ended or stop(text)) for text, ended in written]


def fill(
    writer: Writer,
    gaps: list[tuple[str, str]],
    max_new_tokens: int,
    name: str,
    stop: Callable[[str], bool] | None = None,
) -> list[str]:
    """Fill the gap between the two texts of each pair, with at most half a context of tokens; stop
    as in `complete`. What was written ends before it repeats the second text."""
    context, tokenizer = writer.network.config.block_size, writer.tokenizer
    new = min(max_new_tokens, context // 2)
    read = [read_gap(tokenizer, *gap, context, new) for gap in gaps]
    texts = [text for text, _ in go_on(writer, read, new, stop, name)]
    return [trim(text, after) for text, (_, after) in zip(texts, gaps)]


def go_on(
    writer: Writer,
    prompts: list[Prompt] | list[Gap],
    max_new_tokens: int,
    stop: Callable[[str], bool] | None,
    name: str,
) -> list[Excerpt]:
    """`complete` for prompts that were read already. An end is one that the model set."""
    network, tokenizer, options, temperature = writer
    special = set(tokenizer.special.values())
    rows = sorted(enumerate(prompts), key=lambda row: len(row[1].ids))
    size, results = rows_per_batch(next(network.parameters()).device.type), {}

    def enough(ids):
        return bool(stop) and stop(completion(tokenizer, ids))

    for begin in tqdm(range(0, len(rows), size), name, unit="batch", leave=False, disable=None):
        batch = rows[begin : begin + size]
        outputs = generate(
            network,
            [prompt.ids for _, prompt in batch],
            max_new_tokens,
            temperature=temperature,
            top_p=options.top_p,
            stop_ids=special,
            stop=enough,
            first_ids=[prompt.first_ids for _, prompt in batch],
            seed=options.seed + begin,
        )
        for (number, prompt), output in zip(batch, outputs):
            text, ended = completion(tokenizer, output, prompt.healed), output[-1] in special
            results[number] = Excerpt(text, ended)
    return [results[number] for number in range(len(prompts))]


def write(
    writer: Writer, prompts: list[str], extract: Callable[[str], Excerpt], name: str
) -> list[Excerpt]:
    """Continue texts as far as `extract` needs, and return what it takes from each."""

    def stop(text):
        return extract(text).ended

    written = complete(writer, prompts, stop, name)
    return [Excerpt(extract(text).text, ended) for text, ended in written]


def write_bodies(writer: Writer, places: list[Place], language: str, name: str) -> list[Excerpt]:
    """A body for the function whose header ends at each place. Those of the same indentation are
    written together."""
    results = {}
    for indentation in sorted({place.indentation for place in places}):
        numbers = [n for n, place in enumerate(places) if place.indentation == indentation]
        prompts = [places[n].before for n in numbers]
        extract = functools.partial(body, indentation=indentation, language=language)
        results |= zip(numbers, write(writer, prompts, extract, name))
    return [results[n] for n in range(len(places))]

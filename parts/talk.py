"""Talking to a model: the loop of sample.py --chat. The template is in parts/chat.py."""

import sys
from collections.abc import Iterator

from model import NeoX
from parts import chat
from parts.chat import Message
from parts.configurator import mistakes, say
from parts.generate import completion, sampling, stream, text_pieces
from parts.tokenizer import Tokenizer

LONGEST_LINE = 1_000_000  # characters that a person may say at a time


def talk(model: NeoX, tokenizer: Tokenizer, cfg):
    """Answer line by line what a person types, or what comes through a pipe, until its end.

    cfg: max_new_tokens, temperature, top_k, top_p, repetition_penalty, stop and seed, as sample.py
    has them."""
    with mistakes():
        chat.end_of_text(tokenizer)
        if sys.stdin is None:
            raise ValueError("--chat reads standard input, which is closed")
    sys.stdin.reconfigure(errors="strict")
    block_size = model.config.block_size
    room = max(block_size - cfg.max_new_tokens, block_size // 2)
    messages = []
    while (text := read_line()) is not None:
        if not text.strip():
            continue
        messages.append(Message("user", text.strip()))
        with mistakes():
            messages, ids = recent(tokenizer, messages, room)
        if len(ids) > block_size:
            say(f"the model reads the last part only: this has {len(ids)} of {block_size} tokens")
        answer = ""
        for piece in reply(model, tokenizer, ids, cfg, seed=cfg.seed + len(messages)):
            print(piece, end="", flush=True)
            answer += piece
        print("\n")
        messages.append(Message("assistant", answer.strip()))


def read_line() -> str | None:
    """The next line; None at the end. Ends the script where it is no text or has no end."""
    with mistakes():
        if sys.stdin.isatty():
            try:
                return input("> ")
            except EOFError:
                print()
                return None
        try:
            line = sys.stdin.readline(LONGEST_LINE + 1)
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is no UTF-8 text: {error}") from None
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
        return line or None


def recent(
    tokenizer: Tokenizer, messages: list[Message], room: int
) -> tuple[list[Message], list[int]]:
    """The conversation without its oldest messages, as many as must go so that `room` tokens hold
    it, but never the last one; and its ids. It does not begin with an answer."""
    first = len(messages) - 1
    while first and len(chat.encode(tokenizer, messages[first - 1 :])[0]) <= room:
        first -= 1
    first += messages[first].role == "assistant" and first < len(messages) - 1
    return messages[first:], chat.encode(tokenizer, messages[first:])[0]


def reply(model: NeoX, tokenizer: Tokenizer, ids: list[int], cfg, seed: int) -> Iterator[str]:
    """The text of an answer, piece by piece."""

    def ended(new: list[int]) -> bool:
        written = completion(tokenizer, new)
        return any(stop in written for stop in cfg.stop)

    steps = stream(
        model,
        [ids],
        cfg.max_new_tokens,
        **sampling(cfg),
        stop_ids=list(tokenizer.special.values()),
        stop=ended if cfg.stop else None,
        seed=seed,
        vocab_size=tokenizer.vocab_size,
    )
    return text_pieces(tokenizer, (step[0] for step in steps), stop=cfg.stop)

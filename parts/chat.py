"""Conversations as tokens: the template of instruction tuning and of sample.py --chat.

    <|endoftext|>### System:
    Answer in one sentence.

    ### Instruction:
    What is a list?

    ### Response:
    A sequence of values.<|endoftext|>### Instruction:
    ...

The special token <|endoftext|> begins a conversation and ends each answer; only answers, with that
token, are learnt. The headings are Alpaca's (Taori et al. 2023). What a person wrote is always
encoded as ordinary text, so that nobody can end an answer by writing "<|endoftext|>".
"""

from typing import NamedTuple

from parts.tokenizer import ENDOFTEXT, Tokenizer

HEADINGS = {
    "system": "### System:\n",
    "user": "### Instruction:\n",
    "assistant": "### Response:\n",
}
INPUT = "### Input:\n"  # what an instruction is about, after it in the same message


class Message(NamedTuple):
    role: str  # a key of HEADINGS
    text: str


def instruction(text: str, about: str = "") -> Message:
    """A user's message: an instruction, and what it is about if that is given apart."""
    return Message("user", f"{text}\n\n{INPUT}{about}" if about else text)


def encode(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], list[int]]:
    """The ids of a conversation, and for each one 1 if it is learnt, else 0. If the last message is
    not an answer, the ids end where the answer begins.

    What is given and what is learnt are encoded apart, so that no token has parts of both and a
    prompt has the very ids of training. ValueError if the tokenizer cannot encode a text."""
    ids, learnt, given = [end_of_text(tokenizer)], [0], ""

    def add(new: list[int], mark: int):
        ids.extend(new)
        learnt.extend([mark] * len(new))

    for role, text in messages:
        if role == "assistant":
            add(tokenizer.encode(given + HEADINGS[role]), 0)
            add([*tokenizer.encode(text), tokenizer.eot], 1)
            given = ""
        else:
            given += f"{HEADINGS[role]}{text}\n\n"
    if given:
        add(tokenizer.encode(given + HEADINGS["assistant"]), 0)
    return ids, learnt


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of <|endoftext|>. ValueError if there is none."""
    if tokenizer.eot is None:
        raise ValueError(
            f"the tokenizer has no {ENDOFTEXT}, with which documents begin and answers end; take "
            "a model with a BPE"
        )
    return tokenizer.eot

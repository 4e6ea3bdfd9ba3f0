"""Fill in the middle (Bavarian et al. 2022, https://arxiv.org/abs/2207.14255): in which order a
model that writes from left to right reads what stands before and after a gap.

    prefix first: <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>
    suffix first: <|fim_prefix|><|fim_suffix|> suffix <|fim_middle|> prefix middle <|endoftext|>

The second is the paper's joint form: prefix and middle are encoded as one text, so no boundary of
tokens tells where the gap begins. This file imports no torch, since prepare/ uses it.
"""

import random
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from parts.tokenizer import FIM, Tokenizer

SHORTEST = 32  # tokens of a context in which there is room for a piece
GROWTH = 8  # tokens by which a piece may grow when it is cut in three; few would grow by more


def knows_fim(tok: Tokenizer) -> bool:
    """Whether the tokenizer has the three tokens, and the one that ends a middle."""
    return tok.eot is not None and all(name in tok.special for name in FIM)


def require(tok: Tokenizer):
    """ValueError if a model with this tokenizer cannot have learnt to fill a gap."""
    if not knows_fim(tok):
        raise ValueError(
            "this model's tokenizer has no tokens for filling in the middle; prepare/python.py "
            "makes one that has (--tokenizer=bpe), and data to learn it from"
        )


# --- learning it ----------------------------------------------------------------------------------


def rearrange(
    tok: Tokenizer, ids: np.ndarray, rate: float, context: int, rng: random.Random
) -> tuple[list[np.ndarray], int, int]:
    """A document's tokens (uint16), cut to pieces that fit in `context` tokens, of which the share
    `rate` is rearranged. Returns the arrays that make the document now, with the end-of-text token
    that follows it; how many pieces there were; and how many of them were rearranged.

    Those are neighbours (the last piece and the first count as such), and each piece is as likely
    as the others. So the rest stays together, and is cut off by an end-of-text token in one place
    at most: a model that saw that more often would stop in mid-sentence. Each rearranged piece ends
    in <|endoftext|> too, which is how a model says that the gap is filled."""
    cuts = piece_cuts(tok, ids, context - len(FIM) - 1 - GROWTH)
    count = len(cuts) - 1
    first, share = rng.randrange(len(cuts)), int(count * rate + rng.random())
    chosen = sorted((first + n) % count for n in range(share))
    end, arrays, plain = np.array([tok.eot], np.uint16), [], 0
    for number in chosen:
        begin, stop = cuts[number : number + 2]
        if plain < begin:
            arrays += [ids[plain:begin], end]
        arrays += [rearranged(tok, ids[begin:stop], context - 1, rng), end]
        plain = stop
    if plain < len(ids) or not chosen:
        arrays += [ids[plain:], end]
    return arrays, count, len(chosen)


def piece_cuts(tok: Tokenizer, ids: np.ndarray, size: int) -> list[int]:
    """Where pieces of at most `size` tokens begin and end; not inside a character, of which a token
    may hold a part."""
    cuts = [0]
    while cuts[-1] < len(ids):
        cut = min(cuts[-1] + size, len(ids))
        while cut < len(ids) and b"\x80" <= tok.token_bytes(int(ids[cut]))[:1] < b"\xc0":
            cut -= 1
        cuts.append(cut)
    return cuts


def rearranged(tok: Tokenizer, ids: np.ndarray, longest: int, rng: random.Random) -> np.ndarray:
    """A piece's tokens, cut at two of its characters, in one of the two orders. Cuts with which
    they would be more than `longest` are drawn again, up to 100 times.

    The suffix has from 0 characters to all, the middle from 1 to what is left, and a length of 8 to
    16 is as frequent as one of 64 to 128: people leave short gaps, and then most of the piece stays
    together. Cuts that are uniform, as in the paper, cost config/python_cpu.py 3 % of its loss from
    left to right after 400 steps (one run each), most of it past a context of 32 tokens."""
    text = tok.decode(ids.tolist())
    for _ in range(100):
        b = len(text) - int((len(text) + 1) ** rng.random()) + 1
        a = b - int(b ** rng.random())
        first = text[:a] if rng.random() < 0.5 else ""  # the prefix, or nothing
        pairs = zip(marks(tok), (first, text[b:], text[len(first) : b]))
        drawn = [i for mark, part in pairs for i in (mark, *tok.encode(part))]
        if len(drawn) <= longest:
            break
    return np.array(drawn, np.uint16)


def marks(tok: Tokenizer) -> list[int]:
    """The ids that stand before the prefix, the suffix and the middle."""
    before_prefix, before_middle, before_suffix = (tok.special[name] for name in FIM)
    return [before_prefix, before_suffix, before_middle]


def in_file_order(tok: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """The tokens between two end-of-text tokens of a training split, in the order that their text
    has in its document, without marks. Both orders have the suffix before the rest of the text."""
    places = [np.flatnonzero(ids == mark) for mark in marks(tok)]
    if not all(len(place) == 1 for place in places):
        return ids  # a part that was left as it is
    first, suffix, middle = (int(place[0]) for place in places)
    return np.concatenate([ids[first + 1 : suffix], ids[middle + 1 :], ids[suffix + 1 : middle]])


def ends_document(tok: Tokenizer, ids: np.ndarray, context: int) -> bool:
    """Whether what `in_file_order` returned is the end of its document, so far as that can be told.

    It is if the last of the pieces that `rearrange` made of it is not a full one, and a newline
    ends it, as `clean` lets every document end. So a document whose last piece happens to be full
    (about 1 of 100) seems to go on in the next one."""
    if not len(ids) or not tok.token_bytes(int(ids[-1])).endswith(b"\n"):
        return False
    size = context - len(FIM) - 1 - GROWTH
    if len(ids) < size + 2 * GROWTH:  # it may have been rearranged: have the document's own tokens
        ids = tok.encode_numpy(tok.decode(ids.tolist()))
    cuts = piece_cuts(tok, ids, size)
    return cuts[-1] - cuts[-2] < size


# --- asking for it --------------------------------------------------------------------------------


class Gap(NamedTuple):
    """What a model reads to fill a gap; the names are those of a Prompt in parts/generate.py."""

    ids: list[int]
    first_ids: list[int] | None  # the tokens of which the first new one must be one; None: any
    begun: bytes  # the end of the prefix, with which that one begins

    @property
    def healed(self) -> int:
        return len(self.begun)


def read_gap(tok: Tokenizer, prefix: str, suffix: str, context: int, max_new_tokens: int) -> Gap:
    """The gap between two texts as the model wants it, suffix first, and healed as a prompt is
    (`Tokenizer.heal`).

    It leaves room for max_new_tokens, or half of the context, in the model's context: of the suffix
    only the beginning is kept, of the prefix only the end. The suffix gets a third of what is left,
    or what the prefix does not need. ValueError if the tokenizer or the context do not allow it.

    Suffix first, since a small model learns that sooner: config/python_cpu.py, after 1.6M tokens,
    took 1.44 bits per byte for 400 held-out lines, 1.63 prefix first, 1.48 without the suffix."""
    require(tok)
    if context < SHORTEST:
        raise ValueError(
            f"a context of {context} tokens is too short to fill in the middle; {SHORTEST} will do"
        )
    room = context - min(max_new_tokens, context // 2) - len(FIM) - 1
    before, after = tok.encode(prefix), tok.encode(suffix)
    after = after[: max(room // 3, room - len(before))]
    before = before[max(len(before) + len(after) - room, 0) :]
    before_prefix, before_suffix, before_middle = marks(tok)
    ids = [tok.eot, before_prefix, before_suffix, *after, before_middle, *before]
    ids, begun, first_ids = tok.heal(ids)
    return Gap(ids, first_ids, begun)


def meeting(suffix: str) -> tuple[str, ...]:
    """A text at which to stop: the suffix's first line, or first lines, with at least 6 characters
    that are no white space. A model that writes these has filled the gap and gone on. No text, if
    the suffix is too short to tell."""
    found = re.match(r"(?:\s*\S){6}[^\n]*\n?", suffix)
    return (found[0],) if found else ()


def trim(middle: str, suffix: str) -> str:
    """What a model wrote, up to where it has gone on to the suffix."""
    stops = [middle.find(text) for text in meeting(suffix) if text in middle]
    return "".join(joined([middle[: min(stops, default=None)]], suffix))


def joined(pieces: Iterable[str], suffix: str) -> Iterator[str]:
    """The pieces of a middle, less its end where that repeats how the suffix begins: a suffix may
    begin inside a word, which a model likes to write whole. (One letter may well come twice.)"""
    word, held = first_word(suffix), ""
    for piece in pieces:
        held += piece
        ready = max(len(held) - len(word), 0)
        yield held[:ready]
        held = held[ready:]
    yield held.removesuffix(word)


def first_word(suffix: str) -> str:
    """The word, or part of one, with which a suffix begins, if it has more than one letter."""
    return re.match(r"(?:\w{2,})?", suffix)[0]


def filled(tok: Tokenizer, gap: Gap, middle: str) -> tuple[list[int], int]:
    """The tokens of a gap and of what fills it, with the end-of-text token after them, and the
    number of the first one that reaches into the middle."""
    written = tok.encode(gap.begun.decode(errors="replace") + middle)
    ends = np.cumsum([len(tok.token_bytes(i)) for i in written])
    start = int(np.searchsorted(ends, gap.healed, "right"))
    return [*gap.ids, *written, tok.eot], len(gap.ids) + start

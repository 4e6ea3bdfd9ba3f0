"""Fill in the middle (Bavarian et al. 2022, https://arxiv.org/abs/2207.14255): in which order a
model that writes from left to right reads what stands before and after a gap.

    prefix first: <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>
    suffix first: <|fim_prefix|><|fim_suffix|> suffix <|fim_middle|> prefix middle <|endoftext|>

The second is the paper's joint form: prefix and middle are encoded as one text, so no boundary of
tokens tells where the gap begins. This file imports no torch, since prepare/ uses it.
"""

import random

import numpy as np

from parts.tokenizer import FIM, Tokenizer

SHORTEST = 32  # tokens of a context in which there is room for a piece
GROWTH = 8  # tokens by which a piece may grow when it is cut in three


def knows_fim(tok: Tokenizer) -> bool:
    """Whether the tokenizer has the three tokens, and the one that ends a middle."""
    return tok.eot is not None and all(name in tok.special for name in FIM)


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
        arrays += [rearranged(tok, ids[begin:stop], rng), end]
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


def rearranged(tok: Tokenizer, ids: np.ndarray, rng: random.Random) -> np.ndarray:
    """A piece's tokens, cut at two of its characters, in one of the two orders."""
    text = tok.decode(ids.tolist())
    a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    first = text[:a] if rng.random() < 0.5 else ""  # the prefix, or nothing
    parts = first, text[b:], text[len(first) : b]
    pairs = zip(marks(tok), parts)
    return np.array([i for mark, part in pairs for i in (mark, *tok.encode(part))], np.uint16)


def marks(tok: Tokenizer) -> list[int]:
    """The ids that stand before the prefix, the suffix and the middle."""
    before_prefix, before_middle, before_suffix = (tok.special[name] for name in FIM)
    return [before_prefix, before_suffix, before_middle]

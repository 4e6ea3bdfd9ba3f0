"""Character and byte-level BPE tokenizers: train, load, encode, decode, save. Ids fit in uint16.

`tokenizers` trains a BPE; `tiktoken` encodes with it, fifteen times as fast (20 MB/s a core). A
saved tokenizer is a Hugging Face folder: `transformers.AutoTokenizer` loads it and gives the same
ids.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers

from parts.configurator import first_line
from parts.files import read_json, write_text

ENDOFTEXT = "<|endoftext|>"
# The tokens with which the texts of widespread tokenizers end.
END_TOKENS = (ENDOFTEXT, "</s>", "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>")
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
MAX_VOCAB = 2**16  # ids are uint16
UNKNOWN = "\ufffd"  # stands for what is no text

# A pattern cuts text into pieces; BPE merges only within a piece. This one is GPT-2's (Radford et
# al. 2019), in the faster form that tiktoken uses.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# The pattern for code. With 8,192 tokens, a token holds 3.565 bytes of held-out Python, and 3.334
# with GPT-2's pattern (+6.9 %). `python tools/tokenizer_ablation.py` measures this and the effect
# of undoing each choice, on the packages installed beside it. The choices, with their gains:
# - A line's indentation forms one piece with the newlines before it (+6.7 %). So a line begins as
#   "\n        ", "return", and a block one level deeper changes one token. `Tokenizer.heal` repairs
#   prompts that end in a newline.
# - A word takes one space, underscore, dot or bracket before it along (+6.5 % compared with a space
#   only). Any character, as in cl100k, would gain another 0.3 %, but a small model would have to
#   learn each word in many copies.
# - camelCase is cut before a capital that follows a small letter, and snake_case before each
#   underscore (-0.1 and +1.2 % compared with whole names), so a small model sees fewer and more
#   frequent pieces. HTTPServer stays whole: cutting it takes a look-ahead, which gains 0.0 % and
#   halves the speed.
# - Digits are single, the first with its space (+0.7 %), so a number is always spelled the same
#   way. Groups of three would gain another 0.5 %.
# - Punctuation runs together (+6.2 %), but never with the newline, so a prompt may end in a colon.
# - Every character beyond ASCII counts as a letter: tables of Unicode properties may differ between
#   regex engines.
# There are no look-arounds, so time is linear in the text and runs of spaces may have any length.
CODE = {
    "word": r"[ _.(]?(?:[A-Z]*[^\s\x00-`{-\x7F]+|[A-Z]+)",
    "digits": r" ?[0-9]",
    "punctuation": r" ?[!-/:-@\[-`{-\x7F\x00-\x08\x0E-\x1F]+",
    "newline": r"[\r\n]+[ \t]*",
    "space": r"[ \t]+|\s",
}
CODE_PATTERN = "|".join(CODE.values())

# How Llama 3 splits text (Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783). llama.cpp
# knows this splitting and not the one for code; a token holds 1.4 % less Python with it, at 8,192
# tokens. White space is counted up to 50,000, since tiktoken panics at a million.
LLAMA3_PATTERN = "|".join(
    (
        "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
        r"[^\r\n\p{L}\p{N}]?+\p{L}++",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
        r"(?:[^\S\r\n]*+[\r\n]++){1,50000}",
        r"\s{1,50000}(?!\S)|\s",
    )
)
# tiktoken is given only these: its Rust code panics if a pattern matches the empty text.
PATTERNS = {"gpt2": GPT2_PATTERN, "code": CODE_PATTERN, "llama3": LLAMA3_PATTERN}

# Byte-level BPE writes each of the 256 bytes as a printable character in tokenizer.json. This is
# GPT-2's table.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_TO_CHAR = {b: chr(b) for b in PRINTABLE}
BYTE_TO_CHAR |= {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
CHAR_TO_BYTE = {c: b for b, c in BYTE_TO_CHAR.items()}


def train_char(text: str) -> "Tokenizer":
    """A tokenizer whose ids number the sorted characters of the text. It has no special tokens."""
    return Tokenizer(char_json(sorted(set(text))))


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = CODE_PATTERN,
    special_tokens: Sequence[str] = (ENDOFTEXT, *FIM),
) -> "Tokenizer":
    """A byte-level BPE trained on texts. It has fewer than vocab_size tokens if the texts run out
    of pairs that occur twice. ValueError if vocab_size is too small or too large.

    Ids: first the special tokens (<|endoftext|> is 0, as in GPT-NeoX's own tokenizer), then the 256
    bytes, then the merges in the order in which they were learned.
    """
    first = len(special_tokens)
    if not 256 + first <= vocab_size <= MAX_VOCAB:
        raise ValueError(
            f"vocab_size must be from {256 + first} (the bytes and special tokens) to "
            f"{MAX_VOCAB:,} (ids are uint16), not {vocab_size:,}"
        )
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - first,
        min_frequency=2,
        initial_alphabet=list(CHAR_TO_BYTE),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    vocab = bpe.get_vocab()
    merged = [to_bytes(token) for token in sorted(vocab, key=vocab.get) if len(token) > 1]
    tokens = [bytes([b]) for b in range(256)] + merged
    ranks = {token: first + i for i, token in enumerate(tokens)}
    return Tokenizer(bpe_json(ranks, pattern, {name: i for i, name in enumerate(special_tokens)}))


def from_tiktoken(name: str) -> "Tokenizer":
    """One of tiktoken's own encodings, by name; it is downloaded the first time. ValueError if its
    ids do not fit in uint16, or it cannot be downloaded."""
    names = ("gpt2", "r50k_base", "p50k_base", "p50k_edit")
    if name not in names:
        raise ValueError(
            f"tiktoken's {name!r} is unknown or has more than {MAX_VOCAB:,} tokens (ids are "
            f"uint16); these work: {', '.join(names)}"
        )
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # requests' errors are OSErrors
        raise ValueError(
            f"tiktoken could not download {name!r} ({type(error).__name__}): allow "
            "openaipublic.blob.core.windows.net, or set TIKTOKEN_CACHE_DIR to a folder that holds "
            "it, or train a tokenizer instead"
        ) from None
    ranks = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    special = {token: encoding.encode_single_token(token) for token in encoding.special_tokens_set}
    return Tokenizer(bpe_json(ranks, GPT2_PATTERN, special))  # all four split as GPT-2 does


def from_hub(name: str) -> "Tokenizer":
    """The tokenizer of a model on the Hugging Face hub (`name@revision` for one of its versions).
    ValueError where that failed."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        file = hf_hub_download(repo, "tokenizer.json", revision=revision or None)
        with suppress(EntryNotFoundError):  # it lands beside the other
            hf_hub_download(repo, "tokenizer_config.json", revision=revision or None)
    except Exception as error:  # the hub's library raises anything, in many lines
        raise ValueError(
            f"{name} is neither a folder here nor a model whose tokenizer the hub gave: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from None
    return load(file)


def load(path: str | Path) -> "Tokenizer":
    """The tokenizer in a tokenizer.json, or in a folder that holds one; its end-of-text token is
    the one that a tokenizer_config.json beside it names. ValueError, which names the file, if there
    is none or it does not work."""
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no tokenizer at {path}")
    try:
        text = path.read_bytes()
        with no_backtrace():
            tokenizers.Tokenizer.from_buffer(text)
        return Tokenizer(json.loads(text), named_end(path.with_name("tokenizer_config.json")))
    except BaseException as error:  # tokenizers raises Exception itself; if its Rust code panics,
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # a BaseException that cannot be imported
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None


def named_end(file: Path) -> str | None:
    """The end-of-text token that a tokenizer_config.json names; None if it names none."""
    token = read_json(file).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


@contextmanager
def no_backtrace() -> Iterator[None]:
    """Standard error stays empty: Rust code that panics prints a page there, besides raising."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Tokenizer:
    """The tokenizer that a tokenizer.json describes.

    A file that this module wrote is encoded by a table of characters (kind "char") or by tiktoken
    ("bpe"). Any other goes through `tokenizers` itself ("huggingface"), for exactly its own ids."""

    def __init__(self, data: dict, end: str | None = None):
        """data: the content of tokenizer.json. end: the special token that ends a text; None, or a
        token that it lacks: <|endoftext|>, if it has that. ValueError if it has too many tokens for
        uint16."""
        self.data = data
        self.special: dict[str, int] = {}
        self.healings: dict[bytes, list[int]] = {}  # what `heal` found
        if (chars := read_char(data)) is not None:
            self.kind = "char"
            self.tokens = {i: char.encode() for i, char in enumerate(chars)}
            # Code point -> id; MAX_VOCAB - 1 marks an unknown character.
            self.table = np.full(0x110000, MAX_VOCAB - 1, np.uint16)
            self.table[[ord(c) for c in chars]] = np.arange(len(chars))
        elif (bpe := read_bpe(data)) is not None:
            ranks, pattern, self.special = bpe
            self.kind = "bpe"
            self.tokens = {i: token for token, i in ranks.items()}
            self.tokens |= {i: name.encode() for name, i in self.special.items()}
            self.bpe = tiktoken.Encoding(
                "bpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special
            )
        else:
            self.hf = tokenizers.Tokenizer.from_str(json.dumps(data))
            self.hf.no_truncation()  # a file may ask for both, which would cut or stretch documents
            self.hf.no_padding()
            added = self.hf.get_added_tokens_decoder()
            self.special = {token.content: i for i, token in added.items() if token.special}
            vocab = self.hf.get_vocab()
            self.tokens = {i: to_bytes(token) for token, i in vocab.items()}
            self.tokens |= {i: token.content.encode() for i, token in added.items()}
            self.kind = "huggingface"
        self.vocab_size = max(self.tokens, default=-1) + 1
        if self.vocab_size > MAX_VOCAB - (self.kind == "char"):
            raise ValueError(
                f"this tokenizer has {self.vocab_size:,} tokens; at most {MAX_VOCAB:,} fit in "
                "uint16 ids"
            )
        self.eot = self.special.get(end, self.special.get(ENDOFTEXT))

    def end_with(self, token: str = ""):
        """Make a special token the one that ends a text; empty: the one that the tokenizer's files
        or its name tell, if there is exactly one. ValueError if it is not clear which."""
        names = ", ".join(self.special)
        if token:
            if token not in self.special:
                has = f"its special tokens are {names}" if names else "it has no special tokens"
                raise ValueError(f"the tokenizer has no special token {token}; {has}")
            self.eot = self.special[token]
        elif self.eot is None and self.special:
            known = [name for name in END_TOKENS if name in self.special]
            if len(known) != 1:
                raise ValueError(
                    f"which of the tokenizer's special tokens ends a text is not known; name it "
                    f"with --eot=TOKEN: {names}"
                )
            self.eot = self.special[known[0]]

    def has_ids_of(self, data: dict) -> bool:
        """Whether the tokenizer of another tokenizer.json gives the same ids to every document.
        Templates, truncation and padding are for clients; older files have none."""
        return self.data | FOR_CLIENTS == data | FOR_CLIENTS

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text.

        With special=True (for prompts) "<|endoftext|>" and other special tokens in the text become
        their ids; otherwise (for documents) they are ordinary text. ValueError if the tokenizer
        does not know a character and has no id for unknown ones."""
        if self.kind == "char":
            return self.encode_numpy(text).tolist()
        if self.kind == "bpe":
            if special:
                return self.bpe.encode(text, allowed_special="all")
            return self.bpe.encode_ordinary(text)
        # In `tokenizers`, True means: split special tokens up like other text.
        self.hf.encode_special_tokens = not special
        try:
            return self.hf.encode(valid(text), add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"the tokenizer cannot encode this text: {error}") from None

    def encode_numpy(self, text: str) -> np.ndarray:
        """The ids of a document (uint16): the fast way for long texts. ValueError as for encode."""
        if self.kind == "char":
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            ids = self.table[points]
            if unknown := sorted({chr(p) for p in points[ids == MAX_VOCAB - 1]}):
                raise ValueError(
                    f"the tokenizer has no {', '.join(map(repr, unknown[:10]))}: it knows only the "
                    f"{self.vocab_size} characters of the text that it was made from"
                )
            return ids
        if self.kind == "bpe":
            return self.bpe.encode_to_numpy(valid(text), disallowed_special=()).astype(np.uint16)
        return np.array(self.encode(text), np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are not UTF-8, such as half a character, become U+FFFD, and
        so do ids without a token: a model may have more ids than its tokenizer, and the text shows
        where it chose one of those."""
        ids = [int(i) for i in ids]
        if self.kind != "huggingface":
            return b"".join(map(self.token_bytes, ids)).decode(errors="replace")
        runs = (
            (known, list(run)) for known, run in itertools.groupby(ids, self.tokens.__contains__)
        )
        return "".join(
            self.hf.decode(run, skip_special_tokens=False) if known else UNKNOWN * len(run)
            for known, run in runs
        )

    def heal(self, ids: list[int]) -> tuple[list[int], bytes, list[int] | None]:
        """Token healing: takes the last token off a prompt so that the model chooses it again.

        A prompt that ends inside a word, or before a line's indentation, ends in a token where the
        training data had a longer one. Returns the ids without the last one, that one's bytes, and
        the ids allowed in its place: all that begin with those bytes. If there is nothing to heal:
        the ids, b"" and None."""
        last = self.token_bytes(ids[-1])
        alone = len(ids) == 1 and self.eot is None
        whole = ids[-1] in self.special.values() or ids[-1] not in self.tokens
        if self.kind == "char" or whole or alone:
            return ids, b"", None
        if last not in self.healings:  # looking through the whole vocabulary takes a while
            special = set(self.special.values())
            texts = ((i, self.tokens[i]) for i in sorted(self.tokens) if i not in special)
            self.healings[last] = [i for i, text in texts if text.startswith(last)]
        return ids[:-1] or [self.eot], last, self.healings[last]

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for; those of U+FFFD if it has no token, see `decode`."""
        return self.tokens.get(id, UNKNOWN.encode())

    def save(self, folder: str | Path, context: int | None = None):
        """Write tokenizer.json and tokenizer_config.json, which `load` and
        `transformers.AutoTokenizer` read. context: the model's, in tokens, where there is one.

        What clients encode then begins with the end-of-text token, as documents do in training."""
        # This class uses tokenizer.json as it is; GPTNeoXTokenizer would replace our splitting.
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # No token_type_ids, which generate() of GPT-NeoX refuses.
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left",  # so that all texts of a batch end where the model goes on
            "truncation_side": "left",
        }
        data = self.data | FOR_CLIENTS
        if self.eot is not None:
            end = next(name for name, i in self.special.items() if i == self.eot)
            config |= {f"{role}_token": end for role in ("bos", "eos", "pad")}
            config["unk_token"] = data["model"].get("unk_token") or end
            data["post_processor"] = template_json(end, self.eot)
        if context:
            config["model_max_length"] = context
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (("tokenizer.json", data), ("tokenizer_config.json", config)):
            write_text(folder / name, json.dumps(value, ensure_ascii=False, indent=1))


def valid(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot represent, replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_bytes(token: str) -> bytes:
    """The bytes of a token of a tokenizer.json. A character outside the table means itself."""
    return b"".join(bytes([CHAR_TO_BYTE[c]]) if c in CHAR_TO_BYTE else c.encode() for c in token)


def to_chars(token: bytes) -> str:
    return "".join(BYTE_TO_CHAR[b] for b in token)


# --- tokenizer.json -------------------------------------------------------------------------------

# What a tokenizer.json asks of clients only: our `encode` adds nothing and cuts nothing.
FOR_CLIENTS = {"post_processor": None, "truncation": None, "padding": None}


def template_json(end: str, id: int) -> dict:
    """The post-processor that puts the end-of-text token before a text."""
    first = {"SpecialToken": {"id": end, "type_id": 0}}
    one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, other],
        "special_tokens": {end: {"id": end, "ids": [id], "tokens": [end]}},
    }


def hf_json(model: dict, pre_tokenizer: dict, decoder: dict, special: dict[str, int]) -> dict:
    """A tokenizer.json, as a dict."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": name, **flags, "special": True}
        for name, i in sorted(special.items(), key=lambda item: item[1])
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def split_json(pattern: str) -> dict:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def char_json(chars: list[str]) -> dict:
    """The tokenizer.json in which each character is a word. An unknown character is an error in
    `tokenizers` too, since "<unknown>" is not in the vocabulary."""
    vocab = {c: i for i, c in enumerate(chars)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unknown>"}
    return hf_json(model, split_json(r"[\s\S]"), {"type": "Fuse"}, {})


def bpe_json(ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> dict:
    """The tokenizer.json with which `tokenizers` merges exactly as tiktoken does.

    tiktoken joins any two neighbours whose joined bytes are a token, lowest id first, and takes a
    piece that is a token as it is. `tokenizers` joins only the pairs in its list of merges. So the
    list holds every split of every token into two tokens, in the order of ids, and ignore_merges
    makes it look up the whole piece first.
    """
    merges = [
        f"{to_chars(token[:i])} {to_chars(token[i:])}"
        for token in sorted(ranks, key=ranks.get)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    vocab = special | {to_chars(token): i for token, i in ranks.items()}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "merges": merges,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split_json(pattern), level]}
    return hf_json(model, pre_tokenizer, level, special)


def read_char(data: dict) -> list[str] | None:
    """The characters of a tokenizer.json that `char_json` made; None for any other."""
    vocab = data["model"]["vocab"]
    chars = sorted(vocab, key=vocab.get) if isinstance(vocab, dict) else []
    return chars if data == char_json(chars) and set(map(len, chars)) == {1} else None


def read_bpe(data: dict) -> tuple[dict[bytes, int], str, dict[str, int]] | None:
    """The (ranks, pattern, special tokens) of a tokenizer.json that `bpe_json` made; None for any
    other."""
    try:
        special = {token["content"]: token["id"] for token in data["added_tokens"]}
        pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        ranks = {
            bytes(CHAR_TO_BYTE[c] for c in token): i
            for token, i in data["model"]["vocab"].items()
            if token not in special
        }
    except (KeyError, TypeError, IndexError, AttributeError):
        return None
    ids = {*ranks.values(), *special.values()}
    sound = len(ids) == len(ranks) + len(special) and all(bytes([b]) in ranks for b in range(256))
    data = data | FOR_CLIENTS
    ours = sound and pattern in PATTERNS.values() and data == bpe_json(ranks, pattern, special)
    return (ranks, pattern, special) if ours else None

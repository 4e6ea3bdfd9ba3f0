"""Character and byte-level BPE tokenizers: train, load, encode, decode, save. Ids are uint16.

`tokenizers` trains the BPE and `tiktoken` encodes with it, fifteen times as fast (20 MB/s a core). Whatever is
saved is a Hugging Face folder, from which `transformers.AutoTokenizer` gives the same ids.

As a script, it prints what each choice in CODE_PATTERN gains, in bytes per token on held-out subfolders of a folder:

    python parts/tokenizer.py --path=FOLDER
"""

import json
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers

ENDOFTEXT = "<|endoftext|>"
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
MAX_VOCAB = 2**16  # ids are uint16

# A pattern cuts text into pieces, within which BPE merges. This one: Radford et al. 2019, as tiktoken speeds it up.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# The pattern for code. At 8,192 tokens it puts 3.565 bytes of held-out Python into a token, where GPT-2's puts 3.334
# (+6.9 %). `python parts/tokenizer.py` measures it, and each choice undone, on the packages installed beside it. In percent:
# - A line's indentation is one piece with the newlines before it (+6.7), so a line starts "\n        ", "return", and a
#   block is one token deeper or not. A prompt that ends in a newline is mended by `Tokenizer.heal`.
# - Words take along one space, underscore, dot or bracket before them (+6.5 against a space only). Any character, as
#   cl100k has it, would add 0.3, and copies of each word that a small model would have to learn apart.
# - camelCase is cut before a capital that follows a small letter and snake_case before its underscore (-0.1 and +1.2
#   against whole names), so a small model meets fewer and commoner pieces. HTTPServer stays whole: to cut it needs a
#   look-ahead, which gains 0.0 and halves the speed.
# - Digits come one at a time, the first with its space (+0.7): a number is always spelled the same way. Threes add 0.5.
# - Punctuation runs together (+6.2), but never with the newline, so that a prompt may end in a colon.
# - Everything beyond ASCII counts as a letter: no table of Unicode properties whose version may differ between engines.
# No alternative looks around, so time is linear in the text and no run of spaces is too long.
CODE = {
    "word": r"[ _.(]?(?:[A-Z]*[^\s\x00-`{-\x7F]+|[A-Z]+)",
    "digits": r" ?[0-9]",
    "punctuation": r" ?[!-/:-@\[-`{-\x7F\x00-\x08\x0E-\x1F]+",
    "newline": r"[\r\n]+[ \t]*",
    "space": r"[ \t]+|\s",
}
CODE_PATTERN = "|".join(CODE.values())
PATTERNS = {"gpt2": GPT2_PATTERN, "code": CODE_PATTERN}

# GPT-2's printable stand-ins for the 256 bytes, in which byte-level BPE is written down in a tokenizer.json.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_TO_CHAR = {b: chr(b) for b in PRINTABLE}
BYTE_TO_CHAR |= {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
CHAR_TO_BYTE = {c: b for b, c in BYTE_TO_CHAR.items()}


def train_char(text):
    """A tokenizer whose ids number the sorted characters of the text. No special tokens."""
    return Tokenizer(char_json(sorted(set(text))))


def train_bpe(texts, vocab_size, pattern=CODE_PATTERN, special_tokens=(ENDOFTEXT,) + FIM):
    """A byte-level BPE trained on an iterable of str; smaller than vocab_size when the texts run out of pairs.

    Ids: special tokens (so <|endoftext|> is 0, as in GPT-NeoX's own tokenizer), the 256 bytes, merges as learned.
    """
    first = len(special_tokens)
    if not 256 + first <= vocab_size <= MAX_VOCAB:
        raise ValueError(f"vocab_size must be from {256 + first} (the bytes and special tokens) to {MAX_VOCAB:,} "
                         f"(ids are uint16), not {vocab_size:,}")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - first, min_frequency=2, initial_alphabet=list(CHAR_TO_BYTE), show_progress=False))
    vocab = bpe.get_vocab()
    tokens = [bytes([b]) for b in range(256)] + [to_bytes(t) for t in sorted(vocab, key=vocab.get) if len(t) > 1]
    ranks = {token: first + i for i, token in enumerate(tokens)}
    return Tokenizer(bpe_json(ranks, pattern, {name: i for i, name in enumerate(special_tokens)}))


def from_tiktoken(name):
    """One of tiktoken's own encodings whose ids fit in uint16, by name. Downloads it the first time."""
    names = ("gpt2", "r50k_base", "p50k_base", "p50k_edit")
    if name not in names:
        raise ValueError(f"tiktoken's {name!r} is unknown or has more than {MAX_VOCAB:,} tokens (ids are uint16); "
                         f"these work: {', '.join(names)}")
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # requests' errors are OSErrors
        raise ValueError(f"tiktoken could not download {name!r} ({type(error).__name__}): allow "
                         "openaipublic.blob.core.windows.net, or set TIKTOKEN_CACHE_DIR to a folder that holds it, "
                         "or train a tokenizer instead") from None
    ranks = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    special = {token: encoding.encode_single_token(token) for token in encoding.special_tokens_set}
    return Tokenizer(bpe_json(ranks, GPT2_PATTERN, special))  # all four split as GPT-2 does


def load(path):
    """The tokenizer in a tokenizer.json, or in a folder that holds one. ValueError where there is none that works."""
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no tokenizer at {path}")
    text = path.read_bytes()
    try:
        tokenizers.Tokenizer.from_buffer(text)
        data = json.loads(text)
    except Exception as error:  # all that tokenizers ever raises
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
    return Tokenizer(data)


class Tokenizer:
    """A tokenizer.json, as a dict, made to work. What this file wrote is encoded by a table of characters (kind "char")
    or by tiktoken ("bpe"); anyone else's goes through `tokenizers` itself ("huggingface"), for exactly its own ids."""

    def __init__(self, data):
        self.data = data
        self.special = {}
        if (chars := read_char(data)) is not None:
            self.kind, self.chars, self.vocab_size = "char", chars, len(chars)
            self.table = np.full(0x110000, MAX_VOCAB - 1, np.uint16)  # code point -> id, the last id for unknown
            self.table[[ord(c) for c in chars]] = np.arange(len(chars))
        elif (bpe := read_bpe(data)) is not None:
            ranks, pattern, self.special = bpe
            self.kind, self.vocab_size = "bpe", max([*ranks.values(), *self.special.values()]) + 1
            self.bpe = tiktoken.Encoding("bpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special)
        else:
            self.hf = tokenizers.Tokenizer.from_str(json.dumps(data))
            self.special = {t.content: i for i, t in self.hf.get_added_tokens_decoder().items() if t.special}
            self.kind, self.vocab_size = "huggingface", max(self.hf.get_vocab().values()) + 1
        if self.vocab_size > MAX_VOCAB - (self.kind == "char"):
            raise ValueError(f"this tokenizer has {self.vocab_size:,} tokens; at most {MAX_VOCAB:,} fit in uint16 ids")
        self.eot = self.special.get(ENDOFTEXT)

    def encode(self, text, special=False):
        """The ids of text, a list. With special (for prompts), "<|endoftext|>" and its like become their ids; without
        (for documents) they are ordinary text. A character that a char tokenizer does not know is a ValueError."""
        if self.kind == "char":
            return self.encode_numpy(text).tolist()
        if self.kind == "bpe":
            return self.bpe.encode(text, allowed_special="all") if special else self.bpe.encode_ordinary(text)
        self.hf.encode_special_tokens = not special  # this name says: cut special tokens up like other text
        return self.hf.encode(valid(text), add_special_tokens=False).ids

    def encode_numpy(self, text):
        """The ids of a document, a uint16 array: the fast way for much text."""
        if self.kind == "char":
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            ids = self.table[points]
            if unknown := sorted({chr(p) for p in points[ids == MAX_VOCAB - 1]}):
                raise ValueError(f"the tokenizer has no {', '.join(map(repr, unknown[:10]))}: it knows only the "
                                 f"{self.vocab_size} characters of the text that it was made from")
            return ids
        if self.kind == "bpe":
            return self.bpe.encode_to_numpy(valid(text), disallowed_special=()).astype(np.uint16)
        return np.array(self.encode(text), np.uint16)

    def decode(self, ids):
        """The text of ids; bytes that are not UTF-8, such as half a character, come out as U+FFFD."""
        ids = [int(i) for i in ids]
        if self.kind == "char":
            return "".join(self.chars[i] for i in ids)
        return self.bpe.decode(ids) if self.kind == "bpe" else self.hf.decode(ids, skip_special_tokens=False)

    def heal(self, ids):
        """A prompt's ids without the last one, that one's bytes, and the ids that may stand in its place: all that begin
        with those bytes. A prompt that ends inside a word or before a line's indentation ends in a token where training
        had a longer one; left to the model, it becomes that one."""
        last = self.token_bytes(ids[-1])
        if self.kind == "char" or ids[-1] in self.special.values() or len(ids) == 1 and self.eot is None:
            return ids, b"", None
        every = (i for i in range(self.vocab_size) if i not in self.special.values())
        return ids[:-1] or [self.eot], last, [i for i in every if self.token_bytes(i).startswith(last)]

    def token_bytes(self, id):
        """The bytes that one id stands for."""
        if self.kind == "char":
            return self.chars[id].encode()
        if self.kind == "bpe":
            return self.bpe.decode_single_token_bytes(id)
        token = self.hf.id_to_token(id)
        return token.encode() if id in self.hf.get_added_tokens_decoder() else to_bytes(token)

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json, for `load` and for `transformers.AutoTokenizer`."""
        # This class takes tokenizer.json as it stands; GPTNeoXTokenizer would put its own splitting in place of ours.
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.eot is not None:
            config["eos_token"] = ENDOFTEXT
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in (("tokenizer.json", self.data), ("tokenizer_config.json", config)):
            (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def valid(text):
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_bytes(token):
    """The bytes of a token written in GPT-2's printable stand-ins; a character that is none stands for itself."""
    return b"".join(bytes([CHAR_TO_BYTE[c]]) if c in CHAR_TO_BYTE else c.encode() for c in token)


def to_chars(token):
    return "".join(BYTE_TO_CHAR[b] for b in token)


def hf_json(model, splits, decoder, special):
    added = [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for name, i in sorted(special.items(), key=lambda item: item[1])]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": splits, "post_processor": None, "decoder": decoder, "model": model}


def split_json(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def char_json(chars):
    """The tokenizer.json in which every character is a word. One that it lacks is an error there, too."""
    model = {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(chars)}, "unk_token": "<unknown>"}
    return hf_json(model, split_json(r"[\s\S]"), {"type": "Fuse"}, {})


def bpe_json(ranks, pattern, special):
    """The tokenizer.json of {bytes: id} and {special token: id}, such that `tokenizers` merges as tiktoken does.

    tiktoken joins any neighbours whose joint bytes are a token, lowest id first, and takes a piece that is a token as
    it stands; tokenizers joins only pairs in its list of merges. So list every split of every token into two tokens, in
    the order of ids, and set ignore_merges, which looks the whole piece up first.
    """
    merges = [f"{to_chars(token[:i])} {to_chars(token[i:])}" for token in sorted(ranks, key=ranks.get)
              for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
    vocab = special | {to_chars(token): i for token, i in ranks.items()}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
             "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "merges": merges}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return hf_json(model, {"type": "Sequence", "pretokenizers": [split_json(pattern), level]}, level, special)


def read_char(data):
    """The characters of a tokenizer.json that `char_json` would write just so; None of any other."""
    vocab = data["model"]["vocab"]
    chars = sorted(vocab, key=vocab.get) if isinstance(vocab, dict) else []
    return chars if data == char_json(chars) else None


def read_bpe(data):
    """The (ranks, pattern, special) of a tokenizer.json that `bpe_json` would write just so; None of any other."""
    try:
        special = {token["content"]: token["id"] for token in data["added_tokens"]}
        pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        ranks = {bytes(CHAR_TO_BYTE[c] for c in token): i for token, i in data["model"]["vocab"].items()
                 if token not in special}
    except (KeyError, TypeError, IndexError, AttributeError):
        return None
    return (ranks, pattern, special) if data == bpe_json(ranks, pattern, special) else None


if __name__ == "__main__":
    import sys
    import sysconfig
    import zlib

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    from parts import configurator

    class Settings:
        path = sysconfig.get_paths()["purelib"]  # a folder of code; every fifth of its subfolders is held out
        suffix = ".py"      # the files to read
        vocab_size = 8192   # tokens
        megabytes = 20.0    # of files to read, chosen across the folder

    cfg = configurator.load(Settings)
    configurator.require(cfg, positive=("vocab_size", "megabytes"))
    root, texts = Path(cfg.path), {"train": [], "held out": []}
    size = 0
    for file in sorted(root.rglob(f"*{cfg.suffix}"), key=lambda f: zlib.crc32(str(f.relative_to(root)).encode())):
        if size < cfg.megabytes * 1e6 and file.is_file() and file.stat().st_size < 200_000:
            text = file.read_bytes().decode("utf-8", "ignore")
            size += len(text.encode())
            held_out = zlib.crc32(file.relative_to(root).parts[0].encode()) % 5 == 0
            texts["held out" if held_out else "train"].append(text)
    if not texts["train"] or not texts["held out"]:
        configurator.die(f"{root} needs {cfg.suffix} files in several subfolders, to train on some and hold out others")
    held_out = sum(len(text.encode()) for text in texts["held out"])
    print(f"{(size - held_out) / 1e6:.1f} MB to train on, {held_out / 1e6:.1f} MB held out; bytes per token there:")
    undone = {
        "indentation apart from its newline": {"newline": r"[\r\n]+"},
        "digits in threes": {"digits": r" ?[0-9]{1,3}"},
        "digits without their space": {"digits": "[0-9]"},
        "words with a space only": {"word": CODE["word"].replace("[ _.(]?", " ?")},
        "words with any one character": {"word": CODE["word"].replace("[ _.(]?", r"[^\r\nA-Za-z0-9]?")},
        "camelCase whole": {"word": r"[ _.(]?[^\s\x00-@\[-`{-\x7F]+"},
        "HTTPServer cut too, by a look-ahead": {"word": r"[ _.(]?(?:[A-Z]?[^\s\x00-`{-\x7F]+|[A-Z]+(?![a-z]))"},
        "snake_case whole": {"word": r"[ .(]?[^\s\x00-@\[-^`{-\x7F]+"},
        "punctuation one at a time": {"punctuation": CODE["punctuation"].removesuffix("+")},
    }
    patterns = PATTERNS | {name: "|".join((CODE | change).values()) for name, change in undone.items()}
    for name, pattern in patterns.items():
        with configurator.mistakes():
            trained = train_bpe(texts["train"], cfg.vocab_size, pattern)
        tokens = sum(len(trained.encode_numpy(text)) for text in texts["held out"])
        print(f"{name:<38} {held_out / tokens:.3f}", flush=True)

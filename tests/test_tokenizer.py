"""A tokenizer gives the same ids trained, saved or loaded, and gives every text back."""

import copy
import functools
import hashlib
import itertools
import json
import os
import random
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts import tokenizer as tokenization
from prepare import corpus

STDLIB, PACKAGES = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
VOCAB = 2048
PROMPT = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|><|endoftext|>"
# Odd whitespace, line ends, emoji, scripts, digits, control characters, look-alikes of special
# tokens, and very long runs.
NASTY = [
    "",
    " ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "a\r\n\r\n\tb  \n   \n    c\x0b\x0c\x1c\x85\u2028\u00a0 \u3000x",
    "    x = 1\n\ty\n",
    "👩‍👩‍👧 ok 🇫🇷!",
    "漢字とかな。 한국어",
    "e\u0301 ñ Straße ΑΒγδ ЖЖжж",
    "١٢٣ ४५ Ⅻ ½ 12345678",
    "\x00\x01\x7f\ufeff\ufffe\U0010ffff",
    "don't I'LL we've",
    "__init__ _a a_ a__b self._x.y(z)[0]",
    "<|endoftext|> <|fim_prefix|>",
    "= " * 300,
    "ab" * 999 + "\n",
    *(c * 100_000 for c in " a\nA1=é漢\t\u0301"),
    " " * 100_000 + "x",
]


@functools.cache
def python_paths(folder):
    return sorted(file for file in folder.rglob("*.py") if 0 < file.stat().st_size < 12_000)


def python_files(folder, count, seed=0):
    chosen = random.Random(seed).sample(python_paths(folder), min(count, len(python_paths(folder))))
    return [file.read_bytes().decode("utf-8", "replace") for file in chosen]


@pytest.fixture(scope="module")
def trained():
    texts = python_files(STDLIB, 300)
    return {
        name: tokenization.train_bpe(texts, VOCAB, pattern)
        for name, pattern in tokenization.PATTERNS.items()
    }


@pytest.fixture(scope="module")
def bpe(trained):
    return trained["code"]


def pieces(bpe, text):
    return [bpe.token_bytes(i).decode() for i in bpe.encode(text)]


def auto_tokenizer(folder):
    from transformers import AutoTokenizer

    # As beside a converted model.
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name, files", [("code", 1000), ("gpt2", 100), ("llama3", 100)])
def test_bpe_gives_the_same_ids_through_tiktoken_tokenizers_and_transformers(
    trained, name, files, tmp_path
):
    ours = trained[name]
    ours.save(tmp_path)
    loaded = tokenization.load(tmp_path)
    assert loaded.kind == ours.kind == "bpe" and loaded.vocab_size == ours.vocab_size == VOCAB
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    auto = auto_tokenizer(tmp_path)
    texts = python_files(STDLIB, files // 3, seed=1) + python_files(PACKAGES, files - files // 3)
    texts += NASTY
    for text, expected in zip(texts, theirs.encode_batch_fast(texts)):
        ids = ours.encode(text)
        assert [0, *ids] == expected.ids, text[:80]
        assert ids == ours.encode_numpy(text).tolist() and ours.decode(ids) == text
    for text in texts[::3] + NASTY:
        prompt = PROMPT + text[:2000].replace("<|", "")
        ids = loaded.encode(prompt, special=True)
        assert auto(prompt)["input_ids"] == [0, *ids] and auto.decode(ids) == prompt, text[:80]
    assert auto.eos_token_id == ours.eot == 0 and len(auto) == ours.vocab_size


@pytest.mark.parametrize("name", tokenization.PATTERNS)
@pytest.mark.parametrize("alphabet", ["a", "ab", "=-", " \na", "aA_"])
def test_bpe_gives_the_same_ids_on_overlapping_repetitions(name, alphabet):
    rng = random.Random(0)
    texts = ["".join(rng.choices(alphabet, k=k)) for k in range(200)]
    ours = tokenization.train_bpe(texts[:60], 300, tokenization.PATTERNS[name])
    theirs = tokenizers.Tokenizer.from_str(json.dumps(ours.data))
    assert [ours.encode(text) for text in texts] == [theirs.encode(text).ids for text in texts]


def test_every_character_is_kept_by_every_pattern(trained):
    characters = map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000, 9)))
    text = "".join(f"{character}a " for character in characters)
    for ours in trained.values():
        ids = ours.encode(text)
        assert ours.decode(ids) == text and b"".join(map(ours.token_bytes, ids)) == text.encode()
        assert tokenizers.Tokenizer.from_str(json.dumps(ours.data)).encode(text).ids == ids
        # UTF-8 has no lone surrogates.
        assert ours.decode(ours.encode_numpy("a\ud800")) == "a\ufffd"


def test_code_is_split_as_promised(bpe):
    expected = ["def", " f", "(self", "):", "\n        ", "return", " self", "\n\n    ", "x"]
    assert pieces(bpe, "def f(self):\n        return self\n\n    x") == expected
    assert pieces(bpe, "x = 2026") == ["x", " =", " 2", "0", "2", "6"]
    pattern = tokenizers.Regex(tokenization.CODE_PATTERN)
    split = tokenizers.pre_tokenizers.Split(pattern, "isolated").pre_tokenize_str
    names = [piece for piece, _ in split("getHttpResponse HTTPServer max_new_tokens np.float32")]
    expected = "get|Http|Response| HTTPServer| max|_new|_tokens| np|.float|3|2"
    assert names == expected.split("|")


def test_special_tokens_are_text_in_documents_and_ids_in_prompts(bpe):
    names = [tokenization.ENDOFTEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    assert bpe.special == {name: i for i, name in enumerate(names)}
    assert bpe.encode(PROMPT, special=True) == [1, *bpe.encode("a"), 3, *bpe.encode("b"), 2, 0]
    for ids in (bpe.encode(PROMPT), bpe.encode_numpy(PROMPT)):
        assert min(ids) > 3 and bpe.decode(ids) == PROMPT
    assert [bpe.token_bytes(i) for i in (0, 4, 259)] == [b"<|endoftext|>", b"\x00", b"\xff"]
    assert bpe.encode_numpy("abc").dtype == np.uint16
    assert bpe.decode(bpe.encode("é")[:1] + [0]) != "é"


def test_impossible_vocabulary_sizes_are_refused():
    for size in (65_537, 259):
        with pytest.raises(ValueError, match="ids are uint16"):
            tokenization.train_bpe(["text"], size)
    assert tokenization.train_bpe(["too short to learn from"], 4096).vocab_size < 300
    for name in ("cl100k_base", "nonsense"):
        with pytest.raises(ValueError, match="gpt2, r50k_base, p50k_base"):
            tokenization.from_tiktoken(name)


def test_gpt2_s_and_pythia_s_tokenizers_give_the_ids_of_tokenizers(
    real_files, monkeypatch, tmp_path
):
    data = Path(os.environ.get("NANONEOX_DATA", "?"))
    if not (data / "gpt2").is_dir():
        pytest.skip("NANONEOX_DATA names no folder with gpt2/ and pythia/")
    base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    for name in ("encoder.json", "vocab.bpe"):  # as tiktoken's cache calls what it downloads
        url = hashlib.sha1((base + name).encode()).hexdigest()
        (tmp_path / url).write_bytes((data / "gpt2" / name).read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("requests.get", None)  # nothing is downloaded
    files = str(data / "gpt2/encoder.json"), str(data / "gpt2/vocab.bpe")
    theirs = tokenizers.ByteLevelBPETokenizer(*files)
    pythia = data / "pythia"
    pairs = [
        (corpus.open_tokenizer("gpt2"), theirs, 50257),
        (
            corpus.open_tokenizer(pythia),
            tokenizers.Tokenizer.from_file(f"{pythia}/tokenizer.json"),
            50277,
        ),
    ]
    for ours, theirs, size in pairs:
        assert ours.vocab_size == size and ours.tokens[ours.eot] == b"<|endoftext|>"
        for text, expected in zip(real_files, theirs.encode_batch(real_files)):
            assert ours.encode_numpy(text).tolist() == expected.ids


def test_from_tiktoken(monkeypatch, bpe):
    # As in GPT-2, <|endoftext|> is the last id.
    ranks = {bpe.token_bytes(i): i - 4 for i in range(4, VOCAB)}
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=tokenization.GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={tokenization.ENDOFTEXT: VOCAB - 4},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    gpt2 = tokenization.from_tiktoken("gpt2")
    text = "def f(x):\n    return x  # <|endoftext|>"
    assert gpt2.encode(text) == encoding.encode_ordinary(text) and gpt2.eot == VOCAB - 4
    theirs = tokenizers.Tokenizer.from_str(json.dumps(gpt2.data))
    assert theirs.encode(text).ids == gpt2.encode(text, special=True)

    def offline(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match="could not download 'gpt2'"):
        tokenization.from_tiktoken("gpt2")


def test_characters(tmp_path):
    folder = os.environ.get("NANONEOX_DATA")
    text = "ROMEO:\nBut, soft! what light? é\n" * 100
    if folder:
        text = (Path(folder) / "tinyshakespeare.txt").read_text()
    char = tokenization.train_char(text)
    char.save(tmp_path)
    again = tokenization.load(tmp_path)
    auto = auto_tokenizer(tmp_path)
    assert char.kind == again.kind == "char" and char.eot is None and char.special == {}
    assert char.vocab_size == (65 if folder else len(set(text))) and len(auto) == char.vocab_size
    ids = char.encode_numpy(text)
    assert ids.dtype == np.uint16 and again.decode(ids) == text
    assert again.encode(text, special=True) == ids.tolist()
    assert auto(text[:5000])["input_ids"] == ids[:5000].tolist()
    assert auto.decode(ids[:5000]) == text[:5000]
    assert char.decode([]) == "" and char.encode("") == [] and char.token_bytes(0) == b"\n"
    with pytest.raises(ValueError, match="'漢'"):
        char.encode("But 漢", special=True)


def test_a_foreign_tokenizer_keeps_its_own_ids(tmp_path):
    """One like Pythia's: NFC, runs of spaces as added tokens, ByteLevel's own splitting, and the
    trained merges only."""
    foreign = tokenizers.Tokenizer(tokenizers.models.BPE())
    foreign.normalizer = tokenizers.normalizers.NFC()
    foreign.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    foreign.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[tokenization.ENDOFTEXT, "<|padding|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    foreign.train_from_iterator(python_files(STDLIB, 50), trainer)
    foreign.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    foreign.save(str(tmp_path / "tokenizer.json"))
    ours = tokenization.load(tmp_path)
    assert ours.kind == "huggingface" and ours.vocab_size == 1023 and ours.eot == 0
    for text in python_files(PACKAGES, 30) + NASTY[:-3]:
        if "<|" not in text:
            assert ours.encode(text) == foreign.encode(text).ids == ours.encode_numpy(text).tolist()
    assert ours.encode("a<|endoftext|>", special=True)[-1] == 0 not in ours.encode("a<|endoftext|>")
    text = "    return e\u0301<|endoftext|>"
    for special in (False, True):
        ids = ours.encode(text, special)
        assert ours.decode(ids) == "    return é<|endoftext|>"
        assert b"".join(map(ours.token_bytes, ids)).decode() == "    return é<|endoftext|>"
    ours.save(tmp_path / "again")
    assert tokenization.load(tmp_path / "again").encode(text) == ours.encode(text)
    prompt = [ours.eot, *ours.encode(text, special=True)]
    assert auto_tokenizer(tmp_path / "again")(text)["input_ids"] == prompt


def test_missing_and_corrupt_files_are_refused(tmp_path, bpe):
    with pytest.raises(ValueError, match="no tokenizer at"):
        tokenization.load(tmp_path)
    bpe.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for content in (b"", b"[]", b"{}", b"\xff", whole[:5000]):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ValueError, match="is not a Hugging Face tokenizer.json"):
            tokenization.load(tmp_path / "tokenizer.json")


def foreign(bpe):
    """The same tokenizer in a form that is not ours."""
    data = copy.deepcopy(bpe.data)
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    return data


def test_a_panic_in_tokenizers_is_an_ordinary_error_and_prints_nothing(tmp_path, bpe, capfd):
    data = foreign(bpe)
    data["model"]["continuing_subword_prefix"] = "longer than a token"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="tokenizer.json is not"):
        tokenization.load(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["char", "bpe", "huggingface"])
def test_ids_without_a_token_become_a_replacement_character(tmp_path, bpe, kind):
    """A model may have more ids than its tokenizer, as Pythia does."""
    tok = tokenization.train_char("abc") if kind == "char" else bpe
    if kind == "huggingface":
        data = foreign(bpe)
        last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
        data["model"]["vocab"][last] = VOCAB + 50  # a hole before the last one
        data["added_tokens"] = [dict(t, id=t["id"]) for t in data["added_tokens"]]
        tok = tokenization.Tokenizer(data)
        assert tok.token_bytes(VOCAB + 10).decode() == "\ufffd"
    assert tok.kind == kind
    ids = tok.encode("abc")
    beyond = tok.vocab_size + 7
    assert tok.decode([*ids, beyond, *ids]) == "abc\ufffdabc"
    assert tok.token_bytes(beyond).decode() == "\ufffd"
    assert tok.heal([*ids, beyond]) == ([*ids, beyond], b"", None)
    if kind != "char":
        allowed = tok.heal(ids)[2]
        assert ids[-1] in allowed and all(i in tok.tokens for i in allowed)


def test_a_foreign_tokenizer_neither_cuts_nor_pads_documents(bpe):
    data = foreign(bpe)
    data["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    tok = tokenization.Tokenizer(data)
    assert (
        tok.kind == "huggingface" and tok.decode(tok.encode("def f(x): pass")) == "def f(x): pass"
    )

"""Tiny Shakespeare (1.1 MB, public domain) -> data/shakespeare_char or data/shakespeare_bpe.

python prepare/shakespeare.py                   65 characters; 1,003,854 train, 111,540 val tokens
python prepare/shakespeare.py --tokenizer=bpe   a byte-level BPE of 5,000 tokens instead
python prepare/shakespeare.py --file=input.txt  the same text offline, or any text of your own
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import hashlib
import urllib.request

from parts import configurator
from parts import tokenizer as tokenization
from prepare import corpus, next_step

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Settings:
    file = ""  # a text file to read instead of the download
    out = ""  # the data set's name, a folder in data/; empty: shakespeare_<tokenizer>
    tokenizer = "char"  # char, bpe, gpt2, a folder with a tokenizer.json, or a hub model
    eot = ""  # the special token of a tokenizer from elsewhere that ends a text; empty: its own
    vocab_size = 5000  # tokens of the bpe
    licence = ""  # of a text of your own, for meta.json; empty: unknown


def read_text(file: str) -> str:
    """The text of the file or, without one, of the download, whose hash is checked. Ends the script
    if there is no such text."""
    if file:
        with configurator.mistakes():
            path = configurator.locate(file)
            if not path.is_file():  # reading a named pipe would wait forever
                raise ValueError(f"there is no file {path}")
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is no UTF-8 text: {error}") from None
    hint = "get the file another way and name it with --file=..."
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer:
            data = answer.read()
    except OSError as error:
        configurator.die(f"{URL} cannot be downloaded ({error}); {hint}")
    if hashlib.sha256(data).hexdigest() != SHA256:
        configurator.die(f"{URL} is no longer the text it was; {hint}")
    return data.decode()


def make_tokenizer(cfg, text: str, train_text: str) -> tokenization.Tokenizer:
    if cfg.tokenizer == "char":  # from all of the text, so no character of val is unknown
        return tokenization.train_char(text)
    if cfg.tokenizer != "bpe":
        return corpus.open_tokenizer(cfg.tokenizer, cfg.eot)
    pattern, special_tokens = tokenization.GPT2_PATTERN, [tokenization.ENDOFTEXT]
    return tokenization.train_bpe([train_text], cfg.vocab_size, pattern, special_tokens)


def main():
    cfg = configurator.load(Settings)
    if cfg.eot and cfg.tokenizer in ("char", "bpe"):
        configurator.die(
            "--eot belongs to a tokenizer from elsewhere; give --tokenizer=... or drop it"
        )
    cfg.out = cfg.out or f"shakespeare_{Path(cfg.tokenizer).name}"
    text = read_text(cfg.file)
    if len(text) < 100:
        configurator.die(
            f"{cfg.file} holds {len(text)} characters; a train and a val split need at least 100"
        )
    cut = int(0.9 * len(text))
    texts = {"train": text[:cut], "val": text[cut:]}
    with corpus.new_dataset(cfg.out) as folder:
        with configurator.mistakes():
            tok = make_tokenizer(cfg, text, texts["train"])
            tok.save(folder)
        encoded = (
            corpus.Encoded(split, tok.encode_numpy(part), documents=1, size=len(part.encode()))
            for split, part in texts.items()
        )
        known = hashlib.sha256(text.encode()).hexdigest() == SHA256
        licence = " ".join(cfg.licence.split()) or ("public domain" if known else "unknown")
        about = {"source": cfg.file or URL, "licences": {licence: 1}, "cleaning": {}}
        meta = corpus.write_dataset(folder, tok, encoded, about | {"arguments": vars(cfg)})
    # The configs for characters ask for a sample after a newline.
    more = {"sample_prompt": text[0]} if tok.kind == "char" and "\n" not in text else {}
    kind = "char" if tok.kind == "char" else "book"
    corpus.print_report(meta, cfg.out, next_step.training(meta, cfg.out, kind, **more))


if __name__ == "__main__":
    run_script(main)

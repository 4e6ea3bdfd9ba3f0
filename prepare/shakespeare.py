"""Tiny Shakespeare (1.1 MB, public domain) -> data/shakespeare_char or data/shakespeare_bpe, ready for train.py.

    python prepare/shakespeare.py                       65 characters: 1,003,854 train and 111,540 val tokens
    python prepare/shakespeare.py --tokenizer=bpe       5,000 byte pairs instead
    python prepare/shakespeare.py --file=input.txt      any text of your own, or the same without the network
"""

import hashlib
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parts import configurator
import corpus
from parts import tokenizer

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Settings:
    file = ""  # a text file to read instead of the download
    out = ""  # the data set's name: a folder below data/; default shakespeare_char or shakespeare_bpe
    tokenizer = "char"  # char or bpe
    vocab_size = 5000  # tokens of the bpe


def read_text(file):
    """The text of the file, or of the download, whose checksum is compared. Ends the script with one line otherwise."""
    if file:
        with configurator.mistakes():
            return configurator.locate(file).read_text(encoding="utf-8")
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer:
            data = answer.read()
    except OSError as error:
        configurator.die(f"{URL} cannot be downloaded ({error}); get the file another way and name it with --file=...")
    if hashlib.sha256(data).hexdigest() != SHA256:
        configurator.die(f"{URL} gave another text than the known one; get the right file and name it with --file=...")
    return data.decode()


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, tokenizer=["char", "bpe"])
    cfg.out = cfg.out or f"shakespeare_{cfg.tokenizer}"
    text = read_text(cfg.file)
    if len(text) < 100:
        configurator.die(f"{cfg.file} holds {len(text)} characters; a train and a val split need at least 100")
    cut = int(0.9 * len(text))
    texts = {"train": text[:cut], "val": text[cut:]}
    with corpus.new_dataset(cfg.out) as folder:
        with configurator.mistakes():  # the char tokenizer sees all of the text, so that val has no unknown characters
            tok = (tokenizer.train_char(text) if cfg.tokenizer == "char"
                   else tokenizer.train_bpe([texts["train"]], cfg.vocab_size, tokenizer.GPT2_PATTERN, [tokenizer.ENDOFTEXT]))
        encoded = ((split, tok.encode_numpy(part), 1, len(part.encode())) for split, part in texts.items())
        meta = corpus.write_dataset(folder, tok, encoded, {
            "source": cfg.file or URL, "licences": {"public domain": 1}, "cleaning": {}, "arguments": vars(cfg)})
    corpus.print_report(meta, cfg.out)


if __name__ == "__main__":
    corpus.run(main)

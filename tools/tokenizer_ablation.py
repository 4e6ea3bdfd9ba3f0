"""What each choice in the code pattern gains, in bytes per token of held-out code.

python tools/tokenizer_ablation.py --path=FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import sysconfig
import zlib

from parts import configurator
from parts.tokenizer import CODE, PATTERNS, train_bpe

UNDONE = {  # each choice in CODE undone: what it changes there
    "indentation apart from its newline": {"newline": r"[\r\n]+"},
    "digits in threes": {"digits": r" ?[0-9]{1,3}"},
    "digits without their space": {"digits": "[0-9]"},
    "words with a space only": {"word": CODE["word"].replace("[ _.(]?", " ?")},
    "words with any one character": {
        "word": CODE["word"].replace("[ _.(]?", r"[^\r\nA-Za-z0-9]?"),
    },
    "camelCase whole": {"word": r"[ _.(]?[^\s\x00-@\[-`{-\x7F]+"},
    "HTTPServer cut too, by a look-ahead": {
        "word": r"[ _.(]?(?:[A-Z]?[^\s\x00-`{-\x7F]+|[A-Z]+(?![a-z]))",
    },
    "snake_case whole": {"word": r"[ .(]?[^\s\x00-@\[-^`{-\x7F]+"},
    "punctuation one at a time": {"punctuation": CODE["punctuation"].removesuffix("+")},
}


class Settings:
    path = sysconfig.get_paths()["purelib"]  # a folder of code; holds out every fifth subfolder
    suffix = ".py"  # the files to read
    vocab_size = 8192  # tokens
    megabytes = 20.0  # of files to read, chosen across the folder


def read(cfg) -> tuple[list[str], list[str]]:
    """The texts to train on, and the held-out ones. Ends the script where one of them is empty."""
    root, training, held_out, size = configurator.locate(cfg.path), [], [], 0

    def shuffled(file):
        return zlib.crc32(str(file.relative_to(root)).encode())

    with configurator.mistakes():
        files = [file for file in root.rglob("*") if file.name.endswith(cfg.suffix)]
    for file in sorted(files, key=shuffled):
        if size < cfg.megabytes * 1e6 and file.is_file() and file.stat().st_size < 200_000:
            text = file.read_bytes().decode("utf-8", "ignore")
            size += len(text.encode())
            subfolder = file.relative_to(root).parts[0]
            apart = zlib.crc32(subfolder.encode()) % 5 == 0
            (held_out if apart else training).append(text)
    if not training or not held_out:
        configurator.die(
            f"{root} needs {cfg.suffix} files in several subfolders, to train on some and hold out "
            "others"
        )
    return training, held_out


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("vocab_size", "megabytes"))
    training, held_out = read(cfg)
    learnt, size = (sum(len(text.encode()) for text in texts) for texts in (training, held_out))
    print(
        f"{learnt / 1e6:.1f} MB to train on, {size / 1e6:.1f} MB held out; bytes per token there:"
    )
    patterns = {name: "|".join((CODE | change).values()) for name, change in UNDONE.items()}
    PATTERNS.update(patterns)  # so that tiktoken, which is faster, encodes with these too
    for name, pattern in PATTERNS.items():
        with configurator.mistakes():
            trained = train_bpe(training, cfg.vocab_size, pattern)
        tokens = sum(len(trained.encode_numpy(text)) for text in held_out)
        print(f"{name:<38} {size / tokens:.3f}", flush=True)


if __name__ == "__main__":
    run_script(main)

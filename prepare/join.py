"""All parts of a data set -> the data set, byte for byte the one that a run without --part makes.

    python prepare/python.py --path=~/projects --out=mine --part=1/2    on one machine
    python prepare/python.py --path=~/projects --out=mine --part=2/2    on another
    python prepare/join.py --out=mine       where data/ has both mine.part-01-of-02 and -02-of-02

It drops what is double across the parts, holds out val, trains the tokenizer, and encodes, with the
settings that the parts were made with.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import types

from typing_extensions import TypedDict

from parts import configurator
from parts.files import check_shape
from prepare import corpus, share


class Settings:
    out = "python"  # the data set's name: a folder in data/, with its parts beside it


def main():
    out = configurator.load(Settings).out
    defaults = vars(corpus.Text) | vars(corpus.Settings)
    known = {key: type(value) for key, value in defaults.items() if not key.startswith("_")}
    with configurator.mistakes():
        folders, facts = share.find_parts(corpus.find_place(out))
        where = folders[0] / "part.json"
        check_shape(facts[0]["settings"], where, TypedDict("Arguments", known))
    settings = facts[0]["settings"] | {"out": out, "part": ""}
    cfg = types.SimpleNamespace(**settings)
    given = corpus.check_settings(cfg)
    size = sum(fact["bytes"] for fact in facts)
    documents = share.read_parts(folders, facts)
    corpus.assemble(cfg, documents, size, given, facts[0]["about"])
    print(f"the parts are no longer needed: {folders[0]}, ...")


if __name__ == "__main__":
    run_script(main)

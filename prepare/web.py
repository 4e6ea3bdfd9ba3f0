"""English web text -> data/web, for GPT-2's form (config/gpt2_124m.py).

    python prepare/web.py --max_mb=5000               FineWeb-Edu, streamed from the hub
    python prepare/web.py --file="pages/*.parquet"    local files with a column text (or content)

Its tokens are GPT-2's, so that the model can be compared with the published one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

from parts import configurator
from prepare import corpus, sources

# Penedo et al. 2024, https://arxiv.org/abs/2406.17557; ODC-By 1.0
FINEWEB_EDU = {
    "path": "HuggingFaceFW/fineweb-edu",
    "name": "sample-10BT",
    "columns": ["text", "url", "language"],
}


class Settings(corpus.Settings):
    out = "web"  # the data set's name: a folder in data/
    tokenizer = "gpt2"  # gpt2, bpe (trained here), a folder with a tokenizer.json, or a hub model
    pattern = "gpt2"  # how that bpe splits text first: code, gpt2 or llama3
    val_fraction = 0.005  # share of the bytes held out for val, in whole pages
    prose = True  # lines of any length, but few repeated ones, and real words
    fim_rate = 0.0  # share of the train split rearranged to teach filling in the middle; 0: none


def main():
    cfg = configurator.load(Settings)
    if cfg.path:
        configurator.die("prepare/web.py reads rows, not folders; name *.jsonl with --file=...")
    if cfg.file:
        source, documents = cfg.file, sources.file_documents(cfg.file, cfg.column)
    else:
        source, documents = FINEWEB_EDU["path"], sources.hub_documents(**FINEWEB_EDU)
    corpus.build(cfg, documents, source, unit="page")


if __name__ == "__main__":
    run_script(main)

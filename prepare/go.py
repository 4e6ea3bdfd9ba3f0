"""Real Go code -> data/go, ready for train.py.

    python prepare/go.py                                the standard library of the Go that is installed here
    python prepare/go.py --path=~/go/src                your own code
    python prepare/go.py --source=the-stack --min_stars=100 --max_mb=2000    streamed; accept its terms on the hub first
    python prepare/go.py --file="stack/*.parquet"       local files with The Stack's columns
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parts import configurator
import corpus
import sources


class Settings:
    source = "local"  # local (the standard library of the Go installed here) or the-stack
    path = ""  # a folder of your own code instead
    file = ""  # *.jsonl, *.jsonl.gz or *.parquet files instead; commas and globs
    out = "go"  # the data set's name: a folder below data/
    max_mb = 0.0  # stop after this much source text, in MB; 0 = all
    val_fraction = 0.05  # share of the bytes that whole repositories or packages are held out for
    tokenizer = "bpe"  # bpe (trained here), gpt2, p50k_base, or a folder with a tokenizer.json
    vocab_size = 8192  # tokens of that bpe
    pattern = "code"  # how the bpe splits text first: code or gpt2
    licences = "permissive"  # where the source tells them: permissive, any, or a list such as MIT,Apache-2.0
    min_stars = 0  # where the source tells them: fewest stars of a repository
    origin = ""  # parts of repository names to take, comma-separated; -part leaves out
    decontaminate = ""  # a benchmark like humaneval_go.jsonl.gz, whose problems are left out
    seed = 1337  # of the order, the split and the tokenizer's sample


THE_STACK = dict(path="bigcode/the-stack-dedup", data_dir="data/go", columns=[
    "content", "max_stars_repo_path", "max_stars_repo_name", "max_stars_repo_licenses", "max_stars_count"])


def go_root():
    """The folder of the installed Go's standard library."""
    try:
        root = subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        configurator.die("Go is not installed here (`go env GOROOT` fails); name a folder of Go code with --path=...")
    return Path(root, "src").resolve()


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, source=["local", "the-stack"])
    total = None
    if cfg.file:
        source, documents = cfg.file, sources.file_documents(cfg.file)
    elif cfg.source != "local" and not cfg.path:
        source, documents = THE_STACK["path"], sources.hub_documents(**THE_STACK)
    else:
        folder = cfg.path or go_root()
        source, (documents, total) = cfg.path or "Go's library", sources.local_documents([folder], ".go", cfg)
    corpus.build(cfg, documents, source, total)


if __name__ == "__main__":
    corpus.run(main)

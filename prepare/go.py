"""Real Go code -> data/go, ready for train.py.

    python prepare/go.py                           the standard library of the Go installed here
    python prepare/go.py --path=~/go/src           your own code
    python prepare/go.py --file="stack/*.parquet"  local files with The Stack's columns
    python prepare/go.py --source=the-stack --min_stars=100 --max_mb=2000

The last one streams from the Hugging Face hub; accept the data set's terms there first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import subprocess

from parts import configurator
from prepare import corpus, sources


class Settings(corpus.Settings):
    source = "local"  # local (the standard library of the Go installed here) or the-stack
    out = "go"  # the data set's name: a folder in data/


THE_STACK = {
    "path": "bigcode/the-stack-dedup",
    "data_dir": "data/go",
    "columns": [
        "content",
        "max_stars_repo_path",
        "max_stars_repo_name",
        "max_stars_repo_licenses",
        "max_stars_count",
    ],
}


def go_library() -> Path:
    """The folder of the installed Go's standard library. Ends the script if there is no Go."""
    command = ["go", "env", "GOROOT"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        configurator.die(
            "Go is not installed here (`go env GOROOT` fails); "
            "name a folder of Go code with --path=..."
        )
    return Path(done.stdout.strip(), "src").resolve()


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, source=["local", "the-stack"])
    total = None
    if cfg.file:
        source, documents = cfg.file, sources.file_documents(cfg.file, cfg.column)
    elif cfg.source != "local" and not cfg.path:
        source, documents = THE_STACK["path"], sources.hub_documents(**THE_STACK)
    else:
        source, folder = cfg.path or "Go's library", cfg.path or go_library()
        documents, total = sources.local_documents([folder], ".go", cfg)
    corpus.build(cfg, documents, source, total, language="go")


if __name__ == "__main__":
    run_script(main)

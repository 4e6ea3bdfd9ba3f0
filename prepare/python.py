"""Real Python code -> data/python, ready for train.py.

    python prepare/python.py                           the code installed on this machine; offline
    python prepare/python.py --path=~/projects         your own code
    python prepare/python.py --file="stack/*.parquet"  local files with the columns of these sets
    python prepare/python.py --source=codesearchnet    0.4 million functions from GitHub
    python prepare/python.py --source=the-stack --max_mb=2000    whole files

The last two stream from the Hugging Face hub; accept The Stack's terms there first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import site
import sysconfig
from importlib import metadata

from parts import configurator
from prepare import corpus, sources


class Settings(corpus.Settings):
    source = "local"  # local (this Python's library and packages), codesearchnet or the-stack
    out = "python"  # the data set's name: a folder in data/


HUB = {
    "codesearchnet": {
        "path": "code-search-net/code_search_net",
        "name": "python",
        "columns": ["repository_name", "func_path_in_repository", "func_code_string"],
    },
    "the-stack": {
        "path": "bigcode/the-stack-dedup",
        "data_dir": "data/python",
        "columns": [
            "content",
            "max_stars_repo_path",
            "max_stars_repo_name",
            "max_stars_repo_licenses",
            "max_stars_count",
        ],
    },
}


def package_licences() -> dict[str, list[str] | None]:
    """Top-level name of each installed package -> its licences, according to its metadata; None
    if that names none."""
    known = {}
    for name, distributions in metadata.packages_distributions().items():
        facts = metadata.metadata(distributions[0])
        classifiers = facts.get_all("Classifier") or []
        licences = " ".join(c for c in classifiers if c.startswith("License ::"))
        text = (facts.get("License") or "").split("\n")[0]
        licence = facts.get("License-Expression") or licences or text
        known[name] = [licence] if licence else None
    return known


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, source=["local", *HUB])
    total = None
    if cfg.file:
        source, documents = cfg.file, sources.file_documents(cfg.file, cfg.column)
    elif cfg.path:
        source = cfg.path
        documents, total = sources.local_documents([cfg.path], ".py", cfg)
    elif cfg.source != "local":
        source, documents = HUB[cfg.source]["path"], sources.hub_documents(**HUB[cfg.source])
    else:
        folders = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
        folders += site.getsitepackages()
        source = f"the library and packages of Python {sys.version.split()[0]}"
        documents, total = sources.local_documents(folders, ".py", cfg, package_licences())
    corpus.build(cfg, documents, source, total, language="python")


if __name__ == "__main__":
    run_script(main)

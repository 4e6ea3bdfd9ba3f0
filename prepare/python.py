"""Real Python code -> data/python, ready for train.py.

    python prepare/python.py                            the code installed on this machine: a real set, offline
    python prepare/python.py --path=~/projects          your own code
    python prepare/python.py --source=codesearchnet     0.4 million functions from GitHub, streamed from the hub
    python prepare/python.py --source=the-stack --max_mb=2000    whole files; gated: accept its terms on the hub first
    python prepare/python.py --file="stack/*.parquet"   local files with the columns of either
"""

import site
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parts import configurator
import corpus
import sources


class Settings:
    source = "local"  # local (this interpreter's library and packages), codesearchnet or the-stack
    path = ""  # a folder of your own code instead
    file = ""  # *.jsonl, *.jsonl.gz or *.parquet files instead; commas and globs
    out = "python"  # the data set's name: a folder below data/
    max_mb = 0.0  # stop after this much source text, in MB; 0 = all
    val_fraction = 0.05  # share of the bytes that whole repositories or packages are held out for
    tokenizer = "bpe"  # bpe (trained here), gpt2, p50k_base, or a folder with a tokenizer.json
    vocab_size = 8192  # tokens of that bpe
    pattern = "code"  # how the bpe splits text first: code or gpt2
    licences = "permissive"  # where the source tells them: permissive, any, or a list such as MIT,Apache-2.0
    min_stars = 0  # where the source tells them: fewest stars of a repository
    origin = ""  # parts of repository names to take, comma-separated; -part leaves out
    decontaminate = ""  # a benchmark like HumanEval.jsonl.gz, whose problems are left out
    seed = 1337  # of the order, the split and the tokenizer's sample


HUB = {
    "codesearchnet": dict(path="code-search-net/code_search_net", name="python", columns=[
        "repository_name", "func_path_in_repository", "func_code_string"]),
    "the-stack": dict(path="bigcode/the-stack-dedup", data_dir="data/python", columns=[
        "content", "max_stars_repo_path", "max_stars_repo_name", "max_stars_repo_licenses", "max_stars_count"]),
}


def package_licences():
    """Top-level name of each installed package -> its licences, from the metadata that it was installed with."""
    known = {}
    for name, distributions in metadata.packages_distributions().items():
        facts = metadata.metadata(distributions[0])
        classifiers = [c for c in facts.get_all("Classifier") or [] if c.startswith("License ::")]
        told = facts.get("License-Expression") or " ".join(classifiers) or (facts.get("License") or "").split("\n")[0]
        known[name] = [told] if told else None
    return known


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, source=["local", *HUB])
    total = None
    if cfg.file:
        source, documents = cfg.file, sources.file_documents(cfg.file)
    elif cfg.source != "local" and not cfg.path:
        source, documents = HUB[cfg.source]["path"], sources.hub_documents(**HUB[cfg.source])
    elif cfg.path:
        source, (documents, total) = cfg.path, sources.local_documents([cfg.path], ".py", cfg)
    else:
        folders = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")] + site.getsitepackages()
        source = f"the library and packages of Python {sys.version.split()[0]}"
        documents, total = sources.local_documents(folders, ".py", cfg, package_licences())
    corpus.build(cfg, documents, source, total)


if __name__ == "__main__":
    corpus.run(main)

"""A data set on the Hugging Face hub, as a source of documents.

    hub:HuggingFaceFW/fineweb-edu?name=sample-10BT&split=train

`datasets` finds out which files the split consists of. They are read as all other shards are: its
own streaming would download a file from its beginning to go on in the middle of it.
"""

import time
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote

import requests

from parts.configurator import first_line
from prepare.shards import KINDS, TIMEOUT, Shard, Shards
from prepare.sources import cannot_stream, columns_of

# Of a connection that was dropped, in httpx, which `datasets` and huggingface_hub use.
DROPPED = {"ReadError", "RemoteProtocolError", "ReadTimeout", "WriteError"}
KEYS = ("name", "split", "column", "data_dir", "revision")


class Hub(Shards):
    """What stands behind the name is what `datasets.load_dataset` takes: name (the configuration),
    data_dir, revision (a branch, tag or commit), split (train, if none is given); and `column`,
    which holds the text."""

    def __init__(self, spec: str, cfg):
        super().__init__(spec, cfg)
        self.repository, _, query = spec.removeprefix("hub:").partition("?")
        self.asked = dict(parse_qsl(query, keep_blank_values=True))
        for key in self.asked:
            if key not in KEYS:
                raise ValueError(f"{spec}: {key} is none of {', '.join(KEYS)}")
        if self.repository.count("/") > 1 or not self.repository.strip("/"):
            raise ValueError(f"{spec} names no data set; write hub:OWNER/NAME")
        self.known = columns_of(self.asked.get("column", cfg.column))

    def find(self, cursor):
        """The commit is part of a cursor, so that the shards stay the same when the data set
        changes."""
        for wait in (1, 2, None):
            try:
                return self.resolve(cursor.get("commit"))
            except ValueError as error:  # such as a configuration that it has not
                raise ValueError(f"{self.name}: {first_line(error)}") from None
            except Exception as error:  # the library raises a dozen types
                dropped = any(type(cause).__name__ in DROPPED for cause in causes(error))
                if not dropped or not wait:
                    raise ValueError(cannot_stream(self.repository, error, "source")) from None
            time.sleep(wait)

    def resolve(self, commit: str | None) -> tuple[list[Shard], dict]:
        from datasets import load_dataset_builder
        from huggingface_hub import HfApi, constants, hf_hub_url, utils

        requests.head(constants.ENDPOINT, timeout=TIMEOUT)  # offline, these try for half a minute
        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()
        repository, split = self.repository, self.asked.get("split", "train")
        which = {key: self.asked.get(key) for key in ("name", "data_dir")}
        if not commit:
            commit = HfApi().dataset_info(repository, revision=self.asked.get("revision")).sha
        files = load_dataset_builder(repository, revision=commit, **which).config.data_files or {}
        if split not in files:
            raise ValueError(f"there is no split {split}, only {', '.join(files)}")
        root = f"hf://datasets/{repository}@{commit}/"
        names = [unquote(file.removeprefix(root)) for file in files[split]]
        if wrong := next((name for name in names if not name.endswith(KINDS)), None):
            raise ValueError(f"{wrong} cannot be streamed: it ends in none of {', '.join(KINDS)}")
        headers = utils.build_hf_headers()
        where = {"repo_type": "dataset", "revision": commit}
        urls = [hf_hub_url(repository, name, **where) for name in names]
        shards = [Shard(url, name, None, headers) for url, name in zip(urls, names)]
        return shards, {"commit": commit}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error:
        yield error
        error = error.__cause__ or error.__context__

"""Write files whole: a file always has its old content or its new content, never half of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object], keep: int = 1):
    """Call write(temporary path), flush that file to the disk, and move it to `path`.

    keep: how many versions to keep. Older ones are numbered before the suffix: ckpt.1.pt, ...
    If anything fails (an OSError, or whatever `write` raises), the temporary file is removed and
    `path` keeps its old content."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        versions = [path, *(path.with_suffix(f".{n}{path.suffix}") for n in range(1, keep))]
        for newer, older in reversed(list(zip(versions, versions[1:]))):
            if newer.exists():
                os.replace(newer, older)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str):
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """The dict in a JSON file; empty if the file is missing, unreadable, or holds no dict."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

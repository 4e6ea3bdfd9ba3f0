"""Write files whole: a file always has its old content or its new content, never half of it. Read
JSON that somebody else may have written."""

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


def load_json(path: Path, shape=dict):
    """The value in a JSON file, checked as `parse_json` does."""
    return parse_json(path.read_bytes(), path, shape)


def parse_json(data: bytes | str, where: object, shape=dict):
    """The value that JSON text states.

    shape: what it must be, as pydantic understands types: dict[str, float], or a TypedDict, whose
    further keys are ignored. ValueError names `where` (a file, a line of one) and what is wrong."""
    from pydantic import TypeAdapter, ValidationError  # late: 0.1 s that not every script needs

    try:
        value = json.loads(data)
        TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is damaged: {key and key + ': '}{first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {error}") from None
    return value


def read_json(path: Path) -> dict:
    """The dict in a JSON file; empty if the file is missing, unreadable, or holds no dict."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

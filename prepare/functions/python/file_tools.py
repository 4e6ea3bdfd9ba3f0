"""Files and folders."""

import contextlib
import gzip
import hashlib
import os
import shutil
import tempfile
from pathlib import Path


def read_lines(path):
    """Return the lines of a text file without their line ends."""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def write_lines(path, lines):
    """Write the lines to a text file and return how many there were."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(f"{line}\n")
            count += 1
    return count


def append_line(path, line):
    """Append a line to a text file, which is made if it does not exist."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line.rstrip("\n") + "\n")


def read_text_or(path, default=""):
    """Return the content of a text file, or default if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return default


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def file_sha256(path):
    """Return the SHA-256 of a file in hex, without reading all of it into memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(65536):
            digest.update(block)
    return digest.hexdigest()


def format_bytes(size: float) -> str:
    """Format a number of bytes for people.

    >>> [format_bytes(n) for n in (0, 999, 1500, 2_300_000)]
    ['0 B', '999 B', '1.5 kB', '2.3 MB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def parse_size(text):
    """Return the number of bytes in a text such as "10 MB" or "1.5k".

    >>> parse_size("10 MB"), parse_size("1.5k"), parse_size("7")
    (10000000, 1500, 7)
    """
    number = text.strip().lower().rstrip("b").strip()
    factors = {"k": 10**3, "m": 10**6, "g": 10**9}
    factor = factors.get(number[-1:], 1)
    if factor > 1:
        number = number[:-1]
    return int(float(number) * factor)


def find_files(folder, suffix):
    """Return the files below a folder whose names end with suffix, sorted."""
    return sorted(path for path in Path(folder).rglob(f"*{suffix}") if path.is_file())


def folder_size(folder):
    """Return how many bytes the files below a folder have in total."""
    total = 0
    for path in Path(folder).rglob("*"):
        if path.is_file():
            total += path.stat().st_size
    return total


def backup(path):
    """Copy a file to the same name with .bak behind it and return the copy's path."""
    path = Path(path)
    copy = path.with_name(path.name + ".bak")
    shutil.copy2(path, copy)
    return copy


def free_path(path: Path) -> Path:
    """Return the path, or one with a number before its suffix if something is there already."""
    number, candidate = 1, path
    while candidate.exists():
        candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
        number += 1
    return candidate


def open_maybe_gzip(path, mode="rt"):
    """Open a file, unpacking it on the way if its name ends with .gz."""
    if str(path).endswith(".gz"):
        return gzip.open(path, mode)
    return open(path, mode)


@contextlib.contextmanager
def working_directory(path):
    """Change the working directory for the length of a with block."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


__test__ = {
    "read_lines": """
    >>> path = Path(tempfile.mkdtemp(), "notes.txt")
    >>> write_lines(path, ["one", "", "three"])
    3
    >>> read_lines(path)
    ['one', '', 'three']
    """,
    "write_lines": """
    >>> path = Path(tempfile.mkdtemp(), "numbers.txt")
    >>> write_lines(path, range(3)), path.read_text().split()
    (3, ['0', '1', '2'])
    """,
    "append_line": """
    >>> path = Path(tempfile.mkdtemp(), "log.txt")
    >>> append_line(path, "first")
    >>> append_line(path, "second")
    >>> path.read_text().splitlines()
    ['first', 'second']
    """,
    "read_text_or": """
    >>> read_text_or(Path(tempfile.mkdtemp(), "none"), "nothing yet")
    'nothing yet'
    """,
    "write_atomically": """
    >>> path = Path(tempfile.mkdtemp(), "state.json")
    >>> write_atomically(path, "{}")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('{}', 1)
    """,
    "file_sha256": """
    >>> path = Path(tempfile.mkdtemp(), "data")
    >>> path.write_bytes(b"x" * 200_000)
    200000
    >>> file_sha256(path) == hashlib.sha256(b"x" * 200_000).hexdigest()
    True
    """,
    "find_files": """
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "b").mkdir()
    >>> for name in ("b/two.py", "one.py", "three.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in find_files(folder, ".py")]
    ['two.py', 'one.py']
    """,
    "folder_size": """
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "a").write_text("12345"), (folder / "b").write_text("67")
    (5, 2)
    >>> folder_size(folder)
    7
    """,
    "backup": """
    >>> path = Path(tempfile.mkdtemp(), "a.cfg")
    >>> path.write_text("x = 1")
    5
    >>> copy = backup(path)
    >>> copy.name, copy.read_text()
    ('a.cfg.bak', 'x = 1')
    """,
    "free_path": """
    >>> path = Path(tempfile.mkdtemp(), "plan.md")
    >>> path.touch()
    >>> free_path(path).name
    'plan (1).md'
    """,
    "open_maybe_gzip": """
    >>> path = Path(tempfile.mkdtemp(), "a.txt.gz")
    >>> with gzip.open(path, "wt") as file:
    ...     file.write("packed")
    6
    >>> with open_maybe_gzip(path) as file:
    ...     file.read()
    'packed'
    """,
    "working_directory": """
    >>> folder, before = os.path.realpath(tempfile.mkdtemp()), os.getcwd()
    >>> with working_directory(folder):
    ...     os.getcwd() == folder
    True
    >>> os.getcwd() == before
    True
    """,
}

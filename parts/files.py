"""Files that survive: written whole, so that one always has its old content or its new content;
numbered instead of replaced; locked; and JSON checked, since somebody else may have written it."""

import contextlib
import errno
import functools
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import psutil


def write_whole(path: Path, write: Callable[[Path], object], keep: int = 1):
    """Call write(temporary path), flush that file to the disk, and move it to `path`.

    keep: how many versions to keep. Older ones are numbered before the suffix: ckpt.1.pt, ... At
    every moment there is a whole file at `path`, the old one or the new one. If anything fails (an
    OSError, or whatever `write` raises), the temporary file is removed and `path` keeps its old
    content."""
    temporary = path.with_name(path.name + ".tmp")
    if path.exists() and not path.is_file():  # a device, a folder, ...
        raise FileExistsError(f"{path} is there and is no ordinary file")
    try:
        temporary.unlink(missing_ok=True)  # a link left here would be written through
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        surplus = number_versions(path, keep)
        os.replace(temporary, path)
        if surplus:
            surplus.unlink(missing_ok=True)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def number_versions(path: Path, keep: int) -> Path | None:
    """Make room for a new version of `path`, which stays where it is: the one before becomes
    number 1 as well, 1 becomes 2, and so on. Returns the last one, which is one too many as soon as
    the new one is there: should that fail, `path` and number 1 are one file."""
    if keep < 2 or not path.exists():
        return None
    versions = [path.with_suffix(f".{n}{path.suffix}") for n in range(1, keep + 1)]
    if not (versions[0].exists() and path.samefile(versions[0])):  # as after such a failure
        for newer, older in reversed(list(zip(versions, versions[1:]))):
            if newer.exists():
                os.replace(newer, older)
        name_also(path, versions[0])
    return versions[-1]


def name_also(path: Path, name: Path):
    """Give the file at `path` a second name, which is free. On a file system without links, such
    as Colab's Drive, it gets that name alone."""
    try:
        os.link(path, name)
    except OSError:
        os.replace(path, name)


def sync_folder(folder: Path):
    """Flush a folder's list of files to the disk, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def unused(path: Path, suffix: str = "") -> Path:
    """The path with a number that is above all that are in use: out/python.1, out/python.2, ..."""
    before = f"{path.name}."
    names = (file.name for file in path.parent.iterdir())
    names = (name for name in names if name.startswith(before) and name.endswith(suffix))
    numbers = (name[len(before) : len(name) - len(suffix)] for name in names)
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return path.with_name(f"{before}{last + 1}{suffix}")


class Lock:
    """A folder that only one process at a time may write to. The system releases the lock when the
    process ends, however it ends."""

    def __init__(self, folder: Path):
        """BlockingIOError if another process holds the lock."""
        self.path = folder / "lock"
        with contextlib.suppress(OSError):
            if self.path.is_symlink() or self.path.stat().st_nlink > 1:  # copied with its folder
                self.path.unlink()
        self.file = open(self.path, "a+", encoding="utf-8")
        if not lock(self.file) or not self.is_ours():  # it may be set aside at this moment
            holder = self.holder()
            self.file.close()
            raise BlockingIOError(f"{folder} is being written to by {holder}; wait for its end")

    def sign(self):
        """Tell others which process holds the lock."""
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {platform.node()}\n")
        self.file.flush()

    def holder(self) -> str:
        """Who has signed last, unless that process has ended: then another one has not signed."""
        self.file.seek(0)
        text = self.file.read(200).strip()
        process, host = signature(text)
        ended = host == platform.node() and not is_running(process)
        return text if process and not ended else "another process"

    def release(self):
        with contextlib.suppress(OSError):  # Windows removes no open file
            if self.is_ours():
                self.path.unlink()
        self.file.close()

    def is_ours(self) -> bool:
        """Whether the folder is still there and the lock in it is this one. A person may have
        removed or renamed the folder meanwhile."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except OSError:
            return False


def writer(folder: Path) -> str:
    """Which process of this machine writes to a folder, as it has signed the lock there: process 12
    on myhost. Empty if none does."""
    try:
        with open(folder / "lock", encoding="utf-8", errors="replace") as file:
            text = file.read(200).strip()
    except OSError:
        return ""
    process, host = signature(text)
    return text if host == platform.node() and is_running(process) else ""


def signature(text: str) -> tuple[int, str]:
    """The number of the process that has signed a lock, 0 if none has, and its machine."""
    process, _, host = text.removeprefix("process ").partition(" on ")
    return int(process) if process.isdecimal() else 0, host


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        return psutil.pid_exists(process)
    except OverflowError:  # no system has such numbers
        return False


def lock(file) -> bool:
    """Whether this process now holds the lock on an open file; True where the file system has no
    locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 30)  # the byte that is locked cannot be read by others
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


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
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {error}") from None
    check_shape(value, where, shape)
    return value


def check_shape(value, where: object, shape):
    """ValueError if the value does not have the shape; see `parse_json`."""
    from pydantic import ValidationError  # late: 0.1 s that not every script needs

    try:
        adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is damaged: {key and key + ': '}{first['msg']}") from None


@functools.cache
def adapter(shape):
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def read_lines(path: Path, shape=dict) -> tuple[list, int]:
    """The values in a file of JSON lines that have the shape, and how many lines have not. OSError
    if the file cannot be read."""
    values, bad = [], 0
    for line in path.read_bytes().splitlines():
        try:
            values.append(parse_json(line, path, shape))
        except ValueError:
            bad += 1
    return values, bad


def read_json(path: Path) -> dict:
    """The dict in a JSON file; empty if the file is missing, unreadable, or holds no dict."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

"""Install what nanoNeoX needs beside what is installed already, of which nothing is replaced: for
Colab and other machines where torch, numpy and CUDA fit together as they are.

    from tools.install import install                        # in a notebook's first cell
    install("requirements.txt", "requirements-track.txt")

    python tools/install.py --dry_run                        # what would be added

It needs nothing but Python and pip, and no network where everything is there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import importlib
import json
import os
import re
import subprocess
import tempfile
from importlib.metadata import distributions

from parts import configurator

ALL = ("requirements.txt", "requirements-track.txt")
PINNABLE = re.compile(r"[\w.-]+==\d[\w.!+-]*")  # not the odd versions that Debian gives its own


class Settings:
    file = ()  # of requirements, such as requirements.txt; several times; none: both files
    dry_run = False  # only say what would be added


class NotInstalled(Exception):
    """What pip could not do. A notebook shows the message without a traceback."""

    def _render_traceback_(self):  # IPython asks for it
        return [str(self)]


def installed() -> dict[str, str]:
    """Version by name, of every package that this Python sees."""
    found = {}
    for package in distributions():  # in the order of sys.path: the first one is imported
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()
        found.setdefault(name, package.version)
    return found


def install(*files: str, dry_run: bool = False) -> dict[str, str]:
    """Add what these files of requirements ask for and this Python lacks, and return it: version by
    name. What is installed keeps its version; NotInstalled where that is impossible."""
    before = installed()
    # What installs packages is not what a program imports, and may be too old for one.
    tools = ("pip", "setuptools", "wheel")
    pins = [f"{name}=={version}" for name, version in before.items() if name not in tools]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    command += ["--dry-run"] * dry_run
    for file in map(configurator.locate, files):
        if not file.is_file():
            raise NotInstalled(f"there is no file {file}")
        command += ["-r", str(file)]
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = os.path.join(folder, "installed.txt"), os.path.join(folder, "report")
        Path(constraints).write_text("\n".join(filter(PINNABLE.fullmatch, pins)), "utf-8")
        print("looking for what is missing; a minute or two where much is", flush=True)
        command += ["-c", constraints, "--report", report]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NotInstalled(reason(done.stderr))
        told = json.loads(Path(report).read_text("utf-8"))["install"]
    importlib.invalidate_caches()  # what was added can be imported now
    added = {item["metadata"]["name"]: item["metadata"]["version"] for item in told}
    replaced = {
        name: version
        for name, version in added.items()
        if re.sub(r"[-_.]+", "-", name).lower() in before
    }
    would = "would be " * dry_run
    names = " ".join(sorted(map("==".join, added.items()), key=str.lower))
    print(f"{would}added: {names}" if added else "everything is there already")
    print(f"{len(before)} installed packages, {would}replaced: {len(replaced)}", *replaced)
    return added


def reason(said: str) -> str:
    """What pip said went wrong, and in the last line what to do."""
    if "No module named pip" in said:
        return f"this Python has no pip; run: {sys.executable} -m ensurepip"
    lines = [line for line in said.splitlines() if line.strip() and "WARNING" not in line]
    if "conflict" in said:
        todo = (
            "no versions go with what is installed here; start from a fresh runtime or environment"
        )
    elif "No matching distribution" in said or "Failed to establish" in said:
        todo = "pip found no such package: is there a network, and has this Python at least 3.10?"
    else:
        todo = "pip failed, see above; start from a fresh runtime or environment"
    return "\n".join([*lines[-12:], f"Nothing was installed: {todo}"])


def main():
    cfg = configurator.load(Settings)
    try:
        install(*(cfg.file or ALL), dry_run=cfg.dry_run)
    except NotInstalled as error:
        *lines, last = str(error).splitlines()
        print(*lines, sep="\n", file=sys.stderr)
        configurator.die(last)


if __name__ == "__main__":
    run_script(main)

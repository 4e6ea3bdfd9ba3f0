"""Whether the trainings of this machine, or of this container, make progress; or a server answers.

    python tools/health.py                                  # every training that runs now
    python tools/health.py --url=http://127.0.0.1:8000/health

Prints a line for each. Exit code 1 if one has written nothing for so many minutes, or the server
does not answer. Where nothing is trained, all is well.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import json
import os
import time
import urllib.error
import urllib.request

from parts import configurator
from parts.files import writer


class Settings:
    out = "out"  # the folder with the runs
    minutes = 30.0  # between signs of life: evaluations and saves may take long
    url = ""  # ask this address instead


def progress(folder: Path) -> tuple[float, str]:
    """Seconds since a run has written anything, and its last step and losses."""
    files = (folder / name for name in ("lock", "metrics.jsonl", "ckpt.pt"))
    written, state = max((os.stat(file).st_mtime for file in files if file.exists()), default=0), {}
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(-min(file.seek(0, 2), 10_000), 2)
            for line in file.read().splitlines()[-5:]:
                state |= json.loads(line)
    except (OSError, ValueError, TypeError):  # no line yet, or half of one
        pass
    said = [f"step {state['step']}"] if "step" in state else ["no step yet"]
    losses = {key: state.get(key) for key in ("loss", "val_loss")}  # None stands for NaN
    said += [f"{key} {value:.4f}" for key, value in losses.items() if isinstance(value, float)]
    return time.time() - written, ", ".join(said)


def main():
    cfg = configurator.load(Settings)
    if cfg.url:
        try:
            with urllib.request.urlopen(cfg.url, timeout=5) as answer:
                print(answer.read(1000).decode(errors="replace").strip())
        except (OSError, ValueError) as error:
            print(f"{cfg.url}: {error}")
            sys.exit(1)
        return
    folders = [lock.parent for lock in configurator.locate(cfg.out).rglob("lock")]
    found = {folder: progress(folder) for folder in sorted(filter(writer, folders))}
    for folder, (seconds, said) in found.items():
        print(f"{folder.name}: {said}, {seconds:.0f} s ago")
    if not found:
        print("no training runs here")
    if any(seconds > 60 * cfg.minutes for seconds, _ in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)

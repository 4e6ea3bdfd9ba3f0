"""How long from the start of train.py to the end of its first training step.

    python tools/startup.py config/python_cpu.py
    python tools/startup.py config/python_cpu.py --compile      # what torch.compile adds to it

The first start finds nothing compiled; those after it find what the first has compiled.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import child, run_script

import os
import tempfile
import time

import train
from parts import configurator


class Settings(train.Settings):
    repeats = 5  # starts after the first, which finds nothing compiled


def first_step(arguments, folder: Path) -> float:
    """Seconds until train.py has logged its first step; it leaves its compile cache in the
    folder."""
    out = folder / "run"
    log = out / "metrics.jsonl"
    log.unlink(missing_ok=True)  # of the start before
    command = [sys.executable, str(configurator.ROOT / "train.py"), *arguments]
    command += [f"--out_dir={out}", "--log_interval=1", "--max_iters=1"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    start = time.time()
    with child(command, env=environment) as process:
        while process.poll() is None and not (log.is_file() and "tokens_per_s" in log.read_text()):
            time.sleep(0.02)
        seconds = time.time() - start
        errors = process.communicate()[1].strip() or "it gave no reason"
    if process.returncode:
        configurator.die(f"train.py ended early: {errors.splitlines()[-1]}")
    return seconds


def main():
    cfg = train.read_settings(Settings)
    configurator.require(cfg, ("repeats",))
    arguments = [arg for arg in sys.argv[1:] if arg.partition("=")[0] != "--repeats"]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(cfg.repeats + 1):
            which = "started again" if number else "first start"
            print(f"{which}: {first_step(arguments, Path(folder)):.1f} s to the end of step 1")


if __name__ == "__main__":
    run_script(main)

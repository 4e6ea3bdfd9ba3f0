"""How long from process start to a loss of 1.88 on Shakespeare's letters, beside nanoGPT.

    python tools/speedrun.py
    python tools/speedrun.py --nanogpt=DIR --repeats=3

Runs config/shakespeare_speedrun.py and, in turns with it, the recipe that nanoGPT's README gives
for a CPU. The clock stops when the last checkpoint is on the disk; its loss is then measured over
the whole validation split, in windows of 64.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from parts.start import child, run_script

import statistics
import tempfile
import time
from typing import NamedTuple

import numpy as np
import torch

import train
from parts import configurator, runs
from parts.data import Dataset
from tools.peers import clone_of_nanogpt, environment, load_nanogpt

GOAL = 1.88  # nats per letter
# From nanoGPT's README, "I only have a macbook", which says that it reaches 1.88.
NANOGPT_RECIPE = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]


class Settings:
    repeats = 5  # runs of each
    nanogpt = ""  # a clone of nanoGPT to compare with; its prepare.py has made shakespeare_char


class Recipe(NamedTuple):
    arguments: list[str]  # of train.py
    root: Path  # where that is
    data: Path  # the folder of val.bin


def recipes(cfg) -> dict[str, Recipe]:
    """What to run, by name. Ends the script where data are missing."""
    config = "config/shakespeare_speedrun.py"
    ours = configurator.load(train.Settings, [str(ROOT / config)])
    with configurator.mistakes():
        folder = Dataset(ours.dataset, ours.block_size).folder
    found = {"nanoNeoX": Recipe([config], ROOT, folder)}
    if cfg.nanogpt:
        with configurator.mistakes():
            root = clone_of_nanogpt(cfg.nanogpt)
        folder = root / "data" / "shakespeare_char"
        if not (folder / "val.bin").is_file():
            configurator.die(f"{folder} has no val.bin; make it with that folder's prepare.py")
        found["nanoGPT"] = Recipe(NANOGPT_RECIPE, root, folder)
    return found


def train_once(name, recipe, out: Path) -> tuple[float, float]:
    """Seconds from process start to the last checkpoint, and the checkpoint's loss."""
    command = [sys.executable, "train.py", *recipe.arguments, f"--out_dir={out}"]
    start = time.time()
    with child(command, cwd=recipe.root, env=environment(name)) as process:
        reason = (process.communicate()[1].strip() or "it gave no reason").splitlines()[-1]
    if process.returncode:
        configurator.die(f"{name}: train.py ended with {process.returncode}: {reason}")
    file = out / "ckpt.pt"
    return file.stat().st_mtime - start, validation_loss(loss_of(name, file, recipe), recipe.data)


def loss_of(name, file, recipe):
    """The loss of a checkpoint as a function of a batch x, y."""
    if name == "nanoNeoX":
        return runs.model_from(runs.load_checkpoint(file)).eval()
    nanogpt = load_nanogpt(recipe.root)
    saved = torch.load(file, map_location="cpu", weights_only=True)
    model = nanogpt.GPT(nanogpt.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    return lambda x, y: model(x, y)[1]


@torch.no_grad()
def validation_loss(loss, data: Path) -> float:
    """Nats per token over the validation split, in windows of 64 that do not overlap."""
    ids = torch.from_numpy(np.fromfile(data / "val.bin", dtype="<u2").astype(np.int64))
    n = (len(ids) - 1) // 64
    x, y = ids[: n * 64].view(n, 64), ids[1 : n * 64 + 1].view(n, 64)
    return sum(loss(a, b).item() * len(a) for a, b in zip(x.split(256), y.split(256))) / n


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("repeats",))
    found = recipes(cfg)
    times = {name: [] for name in found}
    for _ in range(cfg.repeats):
        for name, recipe in found.items():
            with tempfile.TemporaryDirectory() as out:
                seconds, loss = train_once(name, recipe, Path(out) / "run")
            times[name].append(seconds)
            missed = "" if loss <= GOAL else f", ABOVE {GOAL}"
            print(f"{name:<10} {seconds:6.1f} s to a loss of {loss:.4f}{missed}", flush=True)
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["nanoNeoX"]))
        print(
            f"{name:<10} {statistics.median(values):6.1f} s "
            f"[{min(values):.1f} to {max(values):.1f}], {ratio:.1f} x the first's time"
        )


if __name__ == "__main__":
    run_script(main)

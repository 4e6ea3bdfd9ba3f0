"""What a script of prepare/ names at its end: the commands that train on this very data set."""

import json
import os
import shlex
from pathlib import Path

from parts.configurator import ROOT, locate, read_config

# What the data are -> the configs that suit them: the one for a CPU, the one for a GPU.
CONFIGS = {
    "char": ("shakespeare_cpu", "shakespeare_char"),
    "book": ("english_cpu", "shakespeare_t4"),
    "python": ("python_cpu", "python_t4"),
    "go": ("go_cpu", "go_t4"),
    "prose": ("english_cpu", "fineweb_t4"),
    "prose in GPT-2's tokens": ("english_cpu", "gpt2_124m"),
}
BLOCK_SIZE = 256  # train.py's default


def training(meta: dict, out: str, kind: str = "", **more) -> str:
    """The commands that train from scratch on data/<out>: on a CPU and, in a second line, on a GPU.
    meta: what meta.json says; kind: a key of CONFIGS, if that does not say it; more: settings that
    the data need."""
    out, lines = os.path.normpath(os.path.expanduser(out)), []
    for suffix, config in zip(("cpu", "t4"), CONFIGS[kind or kind_of(meta)]):
        if os.path.exists(ROOT / f"config/{out}_{suffix}.py") and kind_of(meta) != "char":
            config = f"{out}_{suffix}"
        own = read_config(f"config/{config}.py")
        changes = {}
        if own["dataset"] != out:
            changes["dataset"] = out
            changes["out_dir"] = f"out/{Path(out).name}{'' if suffix == 'cpu' else '_gpu'}"
        # Neither split must be shorter than a window.
        shortest = min(meta[split]["tokens"] for split in ("train", "val") if split in meta)
        if shortest <= own.get("block_size", BLOCK_SIZE):
            changes["block_size"] = shortest - 1
        lines.append(command(config, changes | more))
    return "\n      on a GPU: ".join(lines)


def kind_of(meta: dict) -> str:
    """The key of CONFIGS for a data set, given its meta.json."""
    arguments = meta["arguments"]
    if meta["tokenizer"]["kind"] == "char":
        return "char"
    for told in (meta.get("language"), arguments.get("languages"), arguments.get("val")):
        if (told or "").lower() in ("python", "go"):
            return told.lower()
    if not arguments.get("prose"):
        return "python"
    return "prose in GPT-2's tokens" if meta["vocab_size"] == 50257 else "prose"


def command(config: str, changes: dict) -> str:
    changed = (f"--{key}={shlex.quote(str(value))}" for key, value in changes.items())
    return " ".join([f"python train.py config/{config}.py", *changed])


def fine_tuning(config: str, out: str, tokenizer: str, longest: int = 0) -> str:
    """The command that fine-tunes, on data/<out>, the model whose tokenizer the data have. longest:
    the tokens that a window should have room for, such as those of the longest document."""
    own, out = read_config(f"config/{config}.py"), os.path.expanduser(out)
    changes, folder = {"init_from": "MODEL"}, locate(tokenizer)
    if own["dataset"] != out:
        changes |= {"dataset": out, "out_dir": f"out/{Path(out).name}"}
    block_size = max(own["block_size"], longest)
    if (folder / "config.json").is_file():
        changes["init_from"] = tokenizer
        known = json.loads((folder / "config.json").read_text())
        block_size = min(block_size, known.get("max_position_embeddings", block_size))
    elif tokenizer in ("gpt2", "openai-community/gpt2"):
        changes["init_from"] = "openai-community/gpt2"
    elif not folder.exists():
        changes["init_from"] = tokenizer  # a model on the hub
    if block_size != own["block_size"]:
        changes["block_size"] = block_size
    note = f"; MODEL: one that has the tokenizer {tokenizer}"
    return command(config, changes) + note * (changes["init_from"] == "MODEL")

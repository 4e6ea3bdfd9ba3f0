"""Completions from a checkpoint.

    python sample.py --prompt="def fibonacci(n):"
    git show HEAD:train.py | head -50 | python sample.py --ckpt=out/python_cpu --prompt=- --num_samples=3

One sample is streamed as it is made; several are made together and printed one after the other, the prompt before each.
"""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from parts import configurator
from parts import tokenizer as tokenizers
from model import NeoX, download, generation_dtype


class Settings:
    ckpt = ""  # a run's folder, a checkpoint file, or a Hugging Face folder or hub name; empty: the newest run in out/
    prompt = ""  # text to continue; - reads standard input; empty: the start of a document
    prompt_file = ""  # a file whose text to continue
    num_samples = 1  # completions of the same prompt
    max_new_tokens = 200  # tokens in each
    temperature = 0.8  # 0: always the likeliest token; 1: as the model learnt; above: wilder
    top_k = 50  # choose among so many likeliest tokens; 0: all
    top_p = 0.95  # choose among the likeliest tokens that together have this probability; 1: all
    repetition_penalty = 1.0  # above 1 makes tokens that have appeared less likely
    stop = ()  # end before this text, \n for a newline; may be given several times
    seed = 1337  # the same seed gives the same completions
    device = "auto"  # auto, cpu, cuda, mps


def load(ckpt, device):
    """The model, in evaluation mode on the device, its tokenizer, and their folder. Ends the script, saying what to do, if there is none."""
    runs = sorted((configurator.ROOT / "out").glob("*/ckpt.pt"), key=lambda file: file.stat().st_mtime)
    if not ckpt and not runs:
        configurator.die("there is no checkpoint in out/ yet; make one with: make quickstart, or python train.py config/python_cpu.py")
    path = configurator.locate(ckpt or runs[-1].parent)
    looks_local = path.exists() or path.suffix == ".pt" or str(ckpt).startswith(("out/", "/", "."))
    if looks_local and not path.exists():
        have = ", ".join(str(run.parent.relative_to(configurator.ROOT)) for run in runs) or "none"
        configurator.die(f"there is no checkpoint {ckpt}; runs here: {have}; python train.py config/python_cpu.py makes one")
    with configurator.mistakes():
        folder = path if path.is_dir() else path.parent if path.exists() else download(ckpt)
        model = NeoX.load(path if path.exists() else folder)
        tokenizer = tokenizers.load(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}")
    return model.to(device).eval(), tokenizer, folder


def read_prompt(cfg, tokenizer):
    """The prompt's text and its token ids, after the end-of-text token that stands before every document in training."""
    with configurator.mistakes():
        if cfg.prompt_file:
            text = Path(cfg.prompt_file).read_text(encoding="utf-8")
        else:
            text = sys.stdin.read() if cfg.prompt == "-" else cfg.prompt
        ids = tokenizer.encode(text, special=True)
    if tokenizer.eot is not None:
        return text, [tokenizer.eot] + ids
    return text, ids or tokenizer.encode("\n")


def completion(tokenizer, ids, healed, stop):
    """The text that token ids add to a prompt whose last `healed` bytes they begin with, before the first stop text."""
    text = b"".join(tokenizer.token_bytes(i) for i in ids if i not in tokenizer.special.values())[healed:].decode(errors="replace")
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("num_samples", "max_new_tokens", "top_p", "repetition_penalty"), device=["auto", "cpu", "cuda", "mps"])
    if cfg.top_p > 1:
        configurator.die(f"top_p is a probability, at most 1, not {cfg.top_p}")
    if "" in cfg.stop:
        configurator.die("an empty --stop would end every completion at once; leave it out")
    if cfg.prompt and cfg.prompt_file:
        configurator.die("give --prompt or --prompt_file, not both")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    model, tokenizer, _ = load(cfg.ckpt, device)
    model.to(generation_dtype(device, cfg.num_samples))
    text, ids = read_prompt(cfg, tokenizer)
    ids, healed, first = tokenizer.heal(ids)
    complete = lambda output, stop=(): completion(tokenizer, output, len(healed) if text else 0, stop)  # noqa: E731
    made, shown = [], ""  # of a single sample

    def show(step):
        nonlocal shown
        made.extend(step)
        ready = complete(made, cfg.stop).rstrip("\ufffd")  # not yet: half a character, or what may become a stop text
        ready = ready[: max(len(ready) - max(map(len, cfg.stop), default=1) + 1, len(shown))]
        print(ready[len(shown) :], end="", flush=True)
        shown = ready

    with tqdm(total=cfg.max_new_tokens, unit="token", leave=False, disable=None if cfg.num_samples > 1 else True) as bar:
        if cfg.num_samples == 1:
            print(text, end="", flush=True)
        outputs = model.generate(
            [ids] * cfg.num_samples, cfg.max_new_tokens, temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p,
            repetition_penalty=cfg.repetition_penalty, stop_ids=list(tokenizer.special.values()),
            stop=lambda output: any(s in complete(output) for s in cfg.stop), first_ids=first and [first] * cfg.num_samples,
            seed=cfg.seed, stream=show if cfg.num_samples == 1 else lambda step: bar.update(),
        )  # fmt: skip
    if cfg.num_samples == 1:
        print(complete(made, cfg.stop)[len(shown) :])
    for number, output in enumerate(outputs if cfg.num_samples > 1 else [], 1):
        print(f"{'-' * 30} sample {number}\n{text}{complete(output, cfg.stop)}")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # enough was seen
        sys.stderr.close()  # or Python complains about the pipe while it ends
        sys.exit(130)

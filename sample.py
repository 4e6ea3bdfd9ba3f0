"""Completions from a checkpoint.

    python sample.py --prompt="def fibonacci(n):"
    head -50 train.py | python sample.py --ckpt=out/python_cpu --prompt=- --num_samples=3
    python sample.py --ckpt=out/instruct --chat             # a conversation, until Ctrl-D

One sample is streamed as it is made. Several are made together and printed one after the other,
each after the prompt.
"""

from parts.start import run_script

import os
import sys

from tqdm import tqdm

from parts import configurator, memory, runs
from parts import device as devices
from parts.generate import completion, read_prompt, stream, text_pieces
from parts.talk import talk

LONGEST_PROMPT = 4_000_000  # characters, far more than any context; a stream may never end


class Settings:
    ckpt = ""  # a run's folder, a checkpoint, a Hugging Face folder or hub name; empty: newest run
    prompt = ""  # text to continue; - reads standard input; empty: the start of a document
    prompt_file = ""  # a file whose text to continue
    chat = False  # answer each line of standard input, as a model fine-tuned on instructions does
    num_samples = 1  # completions of the same prompt
    max_new_tokens = 200  # tokens in each
    temperature = 0.8  # 0: always the likeliest token; 1: as the model learnt; above: wilder
    top_k = 50  # sample from this many likeliest tokens; 0: from all
    top_p = 0.95  # choose among the likeliest tokens that together have this probability; 1: all
    repetition_penalty = 1.0  # above 1 makes tokens that have appeared less likely
    stop = ()  # end before this text, \n for a newline; may be given several times
    seed = 1337  # the same seed gives the same completions
    device = "auto"  # auto, cpu, cuda, mps


def read_settings():
    cfg = configurator.load(Settings)
    positive = ("num_samples", "max_new_tokens", "top_p", "repetition_penalty")
    configurator.require(cfg, positive, {"top_p": 1}, device=devices.DEVICES)
    if "" in cfg.stop:
        configurator.die("an empty --stop would end every completion at once; leave it out")
    if cfg.prompt and cfg.prompt_file:
        configurator.die("give --prompt or --prompt_file, not both")
    if cfg.chat and (cfg.prompt or cfg.prompt_file or cfg.num_samples > 1):
        configurator.die("--chat reads standard input, and gives one answer to each line")
    return cfg


def prompt_text(cfg) -> str:
    """The text to continue. ValueError where it does not end within reason."""
    text = cfg.prompt
    if cfg.prompt_file:
        file = configurator.locate(cfg.prompt_file)
        if os.path.exists(file) and not file.is_file():  # a pipe may be waited for in vain
            raise ValueError(f"{cfg.prompt_file} is no ordinary file; --prompt=- reads a pipe")
        with open(file, encoding="utf-8") as opened:
            text = opened.read(LONGEST_PROMPT + 1)
    elif cfg.prompt == "-":
        if sys.stdin is None:
            raise ValueError("--prompt=- reads standard input, which is closed")
        sys.stdin.reconfigure(errors="strict")  # bytes that are no text would reach the terminal
        text = sys.stdin.read(LONGEST_PROMPT + 1)
    if len(text) > LONGEST_PROMPT:
        raise ValueError(
            f"the prompt is longer than {LONGEST_PROMPT:,} characters, and the model sees only its "
            "end; give that"
        )
    return text


def main():
    cfg = read_settings()
    with configurator.mistakes():
        device = devices.pick(cfg.device)
    model, tokenizer, _ = runs.load(cfg.ckpt, device)
    model.to(devices.generation_dtype(device, cfg.num_samples))
    if cfg.chat:
        with configurator.mistakes():
            memory.check_generation(model, 1, model.config.block_size, cfg.max_new_tokens)
        return talk(model, tokenizer, cfg)
    with configurator.mistakes():
        text = prompt_text(cfg)
        prompt = read_prompt(tokenizer, text)
        memory.check_generation(model, cfg.num_samples, len(prompt.ids), cfg.max_new_tokens)

    def ended(ids):
        written = completion(tokenizer, ids, prompt.healed)
        return any(stop in written for stop in cfg.stop)

    steps = stream(
        model,
        [prompt.ids] * cfg.num_samples,
        cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        repetition_penalty=cfg.repetition_penalty,
        stop_ids=list(tokenizer.special.values()),
        stop=ended if cfg.stop else None,
        first_ids=[prompt.first_ids] * cfg.num_samples,
        seed=cfg.seed,
        vocab_size=tokenizer.vocab_size,
    )
    if cfg.num_samples == 1:
        print(text, end="", flush=True)
        ids = (step[0] for step in steps)
        for piece in text_pieces(tokenizer, ids, prompt.healed, cfg.stop):
            print(piece, end="", flush=True)
        print()
        return
    outputs = [[] for _ in range(cfg.num_samples)]
    for step in tqdm(steps, total=cfg.max_new_tokens, unit="token", leave=False, disable=None):
        for output, token in zip(outputs, step):
            output += [] if token is None else [token]
    for number, output in enumerate(outputs, 1):
        written = completion(tokenizer, output, prompt.healed, cfg.stop)
        print(f"{'-' * 30} sample {number}\n{text}{written}")


if __name__ == "__main__":
    run_script(main)

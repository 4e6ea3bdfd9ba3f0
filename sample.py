"""Completions from a checkpoint.

    python sample.py --prompt="def fibonacci(n):"
    head -50 train.py | python sample.py --ckpt=out/python_cpu --prompt=- --num_samples=3
    python sample.py --prompt="def double(x):" --suffix="    return y"     # what stands between
    python sample.py --fim_file=draft.py        # the same, where the file has the mark <CURSOR>
    python sample.py --ckpt=out/instruct --chat             # a conversation, until Ctrl-D

One sample is streamed as it is made. Several are made together and printed one after the other,
each after the prompt and, where a gap is filled, before the suffix.
"""

from parts.start import run_script

import os
import sys

from tqdm import tqdm

from parts import configurator, memory, runs
from parts import device as devices
from parts.generate import completion, read_prompt, sampling, stream, text_pieces
from parts.infill import meeting, read_gap
from parts.talk import talk

CURSOR = "<CURSOR>"
LONGEST_PROMPT = 4_000_000  # characters, far more than any context; a stream may never end


class Settings:
    ckpt = ""  # a run's folder, a checkpoint, a Hugging Face folder or hub name; empty: newest run
    prompt = ""  # text to continue; - reads standard input; empty: the start of a document
    prompt_file = ""  # a file whose text to continue
    suffix = ""  # what comes after the text to write, which then fills the gap
    fim_file = ""  # a file to fill in where it has the mark <CURSOR>, once
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
    threads = 0  # CPU threads; 0: torch's choice, each core. On a busy machine try 1


def read_settings():
    cfg = configurator.load(Settings)
    positive = ("num_samples", "max_new_tokens", "top_p", "repetition_penalty")
    configurator.require(cfg, positive, {"top_p": 1}, device=devices.DEVICES)
    if "" in cfg.stop:
        configurator.die("an empty --stop would end every completion at once; leave it out")
    if cfg.prompt and cfg.prompt_file:
        configurator.die("give --prompt or --prompt_file, not both")
    if cfg.fim_file and (cfg.prompt or cfg.prompt_file or cfg.suffix):
        configurator.die("--fim_file holds prompt and suffix; give no others")
    given = cfg.prompt or cfg.prompt_file or cfg.suffix or cfg.fim_file
    if cfg.chat and (given or cfg.num_samples > 1):
        configurator.die("--chat reads standard input, and gives one answer to each line")
    return cfg


def prompt_text(cfg) -> tuple[str, str]:
    """The text to continue, and what comes after the new one. ValueError where it does not end
    within reason, or a file to fill in has not exactly one mark."""
    text = cfg.prompt
    if name := cfg.prompt_file or cfg.fim_file:
        file = configurator.locate(name)
        if os.path.exists(file) and not file.is_file():  # a pipe may be waited for in vain
            raise ValueError(f"{name} is no ordinary file; --prompt=- reads a pipe")
        with open(file, encoding="utf-8") as opened:
            try:
                text = opened.read(LONGEST_PROMPT + 1)
            except UnicodeDecodeError as error:
                raise ValueError(f"{name} is no UTF-8 text: {error}") from None
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
    if not cfg.fim_file:
        return text, cfg.suffix
    if text.count(CURSOR) != 1:
        raise ValueError(
            f"{cfg.fim_file} has the mark {CURSOR} {text.count(CURSOR)} times; put it once, where "
            "text is missing"
        )
    prefix, _, suffix = text.partition(CURSOR)
    return prefix, suffix


def main():
    cfg = read_settings()
    with configurator.mistakes():
        device = devices.pick(cfg.device)
    devices.use_threads(cfg.threads)
    model, tokenizer, _ = runs.load(cfg.ckpt, device)
    model.to(devices.generation_dtype(device, cfg.num_samples))
    if cfg.chat:
        with configurator.mistakes():
            memory.check_generation(model, 1, model.config.block_size, cfg.max_new_tokens)
        return talk(model, tokenizer, cfg)
    with configurator.mistakes():
        text, suffix = prompt_text(cfg)
        prompt, most = read_prompt(tokenizer, text), cfg.max_new_tokens
        if suffix or cfg.fim_file:
            prompt = read_gap(tokenizer, text, suffix, model.config.block_size, most)
            most = min(most, model.config.block_size - len(prompt.ids))
            cfg.stop += meeting(suffix)
        memory.check_generation(model, cfg.num_samples, len(prompt.ids), most)

    def ended(ids):
        written = completion(tokenizer, ids, prompt.healed)
        return any(stop in written for stop in cfg.stop)

    steps = stream(
        model,
        [prompt.ids] * cfg.num_samples,
        most,
        **sampling(cfg),
        stop_ids=list(tokenizer.special.values()),
        stop=ended if cfg.stop else None,
        first_ids=[prompt.first_ids] * cfg.num_samples,
        seed=cfg.seed,
        vocab_size=tokenizer.vocab_size,
    )
    if cfg.num_samples == 1:
        print(text, end="", flush=True)
        ids = (step[0] for step in steps)
        for piece in text_pieces(tokenizer, ids, prompt.healed, cfg.stop, suffix):
            print(piece, end="", flush=True)
        print(suffix)
        return
    outputs = [[] for _ in range(cfg.num_samples)]
    for step in tqdm(steps, total=most, unit="token", leave=False, disable=None):
        for output, token in zip(outputs, step):
            output += [] if token is None else [token]
    for number, output in enumerate(outputs, 1):
        written = "".join(text_pieces(tokenizer, output, prompt.healed, cfg.stop, suffix))
        print(f"{'-' * 30} sample {number}\n{text}{written}{suffix}")


if __name__ == "__main__":
    run_script(main)

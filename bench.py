"""One training step taken apart, beside its peers: speed, memory, share of this machine's limit.

    python bench.py config/python_cpu.py                             # --profile adds a trace
    python bench.py --batch_size=8 --peers --nanogpt=DIR --litgpt

--peers puts nanoNeoX beside transformers and, where you have them, nanoGPT and litgpt, in training,
generation, the loss of a text and data loading.

Each contender is a process of its own. On a CPU they take turns, because machines are noisy, and
each waits until its threads are idle before the next one starts. On a GPU they run one after the
other, so that each has its memory alone. Figures are medians, with the slowest and the fastest turn
in brackets; ratios are medians of the ratios within a round.
"""

from parts.start import run_script, spawn

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import train
from model import NeoX
from parts import configurator, memory
from parts import device as devices
from parts.files import unused, write_whole
from parts.tokenizer import MAX_VOCAB
from tools import peers


class Settings(train.Settings):
    vocab_size = 0  # tokens in the vocabulary; 0: the data set's, or 8,192 if it is not there
    repeats = 5  # rounds in which every contender has its turn
    steps = 4  # training steps in a turn
    new_tokens = 256  # tokens to generate in a turn, after a prompt of 32
    profile = False  # also write a trace, for chrome://tracing or ui.perfetto.dev
    peers = False  # beside transformers, as its README runs it and with the best settings it offers
    nanogpt = ""  # a clone of nanoGPT to compare with
    litgpt = False  # compare with litgpt too, if pip has installed it


def read_settings(argv):
    cfg = train.read_settings(Settings, argv)
    configurator.require(cfg, ("repeats", "steps", "new_tokens"), {"vocab_size": MAX_VOCAB})
    with configurator.mistakes():
        cfg.vocab_size = cfg.vocab_size or peers.vocabulary(cfg.dataset)
        cfg.nanogpt = cfg.nanogpt and str(peers.clone_of_nanogpt(cfg.nanogpt))
    return cfg


# --- contenders, each in a process of its own -----------------------------------------------------


def be_contender(name, action, *settings):
    """What a contender's process does. settings: the arguments that bench.py was given."""
    kind, dtype, mode = name.split(",")
    cfg = read_settings(settings)
    cfg.compile, device = mode == "compiled", devices.pick(cfg.device)
    devices.use_threads(cfg.threads)
    answers, sys.stdout = sys.stdout, sys.stderr  # for whatever the libraries print
    torch.set_float32_matmul_precision("high")  # TF32 for all, where a GPU has it
    contender = peers.CONTENDERS[kind](cfg, device, getattr(torch, dtype))
    peers.serve(contender, action, answers)


class Process:
    """A contender's process, from the other side."""

    def __init__(self, name, action):
        self.name, self.errors = name, tempfile.TemporaryFile("w+")
        self.process = spawn(
            [sys.executable, __file__, "contender", name, action, *sys.argv[1:]],
            env=peers.environment(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.ready = bool(self.process.stdout.readline())

    def turn(self, count) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            configurator.die(f"{self.name} ended early: {self.last_words()}")
        return json.loads(answer)

    def last_words(self):
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it gave no reason")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def race(names, action, count, rounds, device) -> dict[str, list[dict]]:
    """What the contenders answer in each round, by name. Two rounds before them do not count. One
    that does not run here is left out."""
    # An idle one costs a CPU nothing, but would hold a GPU's memory.
    groups = [[name] for name in names] if device == "cuda" else [names]
    answers = {}
    total = len(names) * (rounds + 2)
    with tqdm(total=total, desc=action, unit="turn", leave=False, disable=None) as bar:
        for group in groups:
            answers |= take_turns(group, action, count, rounds, bar)
    return answers


def take_turns(names, action, count, rounds, bar):
    with contextlib.ExitStack() as stack:
        running = {}
        for name in names:
            process = stack.enter_context(Process(name, action))
            if process.ready:
                running[name] = process
                continue
            reason = process.last_words().removeprefix("error: ")
            if name.startswith(("nanoNeoX", "matrix")):
                configurator.die(f"{name} does not run here: {reason}")
            tqdm.write(f"{name} does not run here and is left out: {reason}")
        answers = {name: [] for name in running}
        for turn in range(rounds + 2):
            for name, process in running.items():
                answers[name].append(process.turn(count if turn > 1 else 1))
                bar.update()
    return {name: turns[2:] for name, turns in answers.items()}


# --- what is compared -----------------------------------------------------------------------------


def show(title, answers, amount, work=0.0, peak=None):
    """Print each contender's tokens/s (`amount` of them in a turn) and its time as a multiple of
    the first one's in the same round. With `peak`, the machine's FLOP/s in each round, print the
    share of it that `work` FLOPs for each token are, and the memory."""
    print(f"\n{title}")
    first = next(iter(answers.values()))
    for name, turns in answers.items():
        rates = [amount / turn["seconds"] for turn in turns]
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(turns, first))
        line = f"  {name.replace(',', ' '):<32}{statistics.median(rates):>9,.0f} tokens/s "
        line += f"[{min(rates):,.0f} to {max(rates):,.0f}]  {ratio:5.2f} x the first's time"
        if peak:
            share = statistics.median(rate * work / limit for rate, limit in zip(rates, peak))
            memory = max(turn["memory"] for turn in turns) / 2**30
            line += f", {share:4.0%} of the peak, {memory:.2f} GiB"
        print(line)


def training(cfg, names, low, device):
    """Compare training with the peers, and take a step of the first one apart."""
    with torch.device("meta"):
        model = NeoX(peers.model_config(cfg))
    product = f"matrix product,{low},eager"
    answers = race([*names, product], "train", cfg.steps, cfg.repeats, device)
    flops = 2 * peers.matrix_size(device) ** 3 * cfg.steps
    peak = [flops / turn["seconds"] for turn in answers.pop(product)]
    print(
        f"{model.num_params() / 1e6:.2f}M parameters, {cfg.n_layer} layers, {cfg.n_embd} wide, "
        f"context {cfg.block_size}, batch {cfg.batch_size} x {cfg.grad_accum}, vocabulary "
        f"{cfg.vocab_size:,}, {cfg.optimizer}; {device}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {low} matrix product {statistics.median(peak) / 1e12:.2f} TFLOP/s "
        f"[{min(peak) / 1e12:.2f} to {max(peak) / 1e12:.2f}]"
    )
    tokens = cfg.steps * cfg.grad_accum * cfg.batch_size * cfg.block_size
    show("training", answers, tokens, model.flops_per_token(), peak)
    turns = [turn["parts"] for turn in answers[names[0]]]
    parts = {part: statistics.median(turn[part] for turn in turns) / cfg.steps for part in turns[0]}
    line = ", ".join(f"{part} {1000 * seconds:.1f} ms" for part, seconds in parts.items())
    print(f"  one step of the first: {line}")


def inference(cfg, names, device):
    for rows in (1, 8):
        answers = race(names, f"generate {rows}", 1, cfg.repeats, device)
        title = f"generation, {rows} at a time, {cfg.new_tokens} tokens each"
        show(title, answers, rows * cfg.new_tokens)
    able = [name for name in names if hasattr(peers.CONTENDERS[name.split(",")[0]], "loss")]
    answers = race(able, "loss", 1, cfg.repeats, device)
    show("loss and first five guesses of a text", answers, peers.text(cfg).numel())


def data_loading(cfg):
    """Compare reading batches from a memory map with nanoGPT's way."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.bin"
        random = np.random.default_rng(0)
        random.integers(cfg.vocab_size, size=20_000_000, dtype=np.uint16).tofile(file)
        answers = read_batches(cfg, np.memmap(file, dtype=np.uint16, mode="r"))
    show("reading batches", answers, 100 * cfg.batch_size * cfg.block_size)


def read_batches(cfg, data):
    """How long each of the two takes for 100 batches, round by round."""
    dataset, T = peers.RandomTokens(cfg, data), cfg.block_size

    def ours():
        dataset.train_batch(0, 0, 0, cfg.batch_size, "cpu")

    def stacked():
        """Rows gathered one by one and stacked, as nanoGPT and its descendants do."""
        starts = torch.randint(len(data) - T, (cfg.batch_size,))
        for shift in (0, 1):
            rows = (data[s + shift : s + shift + T].astype(np.int64) for s in starts)
            torch.stack([torch.from_numpy(row) for row in rows])

    answers = {"nanoNeoX": [], "row by row": []}
    for _ in range(cfg.repeats):
        for name, load in zip(answers, (ours, stacked)):
            start = time.perf_counter()
            for _ in range(100):
                load()
            answers[name].append({"seconds": time.perf_counter() - start})
    return answers


def profile(cfg, device, dtype):
    """Write a trace of three of our steps, in this process, and print the longest operators."""
    step = peers.NanoNeoX(cfg, device, dtype).train()
    step()
    with torch.profiler.profile() as trace:
        for _ in range(3):
            step()
    path = configurator.ROOT / cfg.out_dir / "trace.json"
    path = unused(path.with_suffix(""), ".json") if path.exists() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: trace.export_chrome_trace(str(temporary)))
    order = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    print(trace.key_averages().table(sort_by=order, row_limit=15))
    print(f"the trace: {path}")


def main():
    if sys.argv[1:2] == ["contender"]:  # Process started this
        return be_contender(*sys.argv[2:])
    cfg = read_settings(sys.argv[1:])
    with configurator.mistakes():
        memory.check_training(peers.model_config(cfg), cfg, new=True)
        device = devices.pick(cfg.device)
    devices.use_threads(cfg.threads)
    dtype = devices.training_dtype(device, cfg.dtype)
    low = str(dtype)[6:]  # the fastest, such as bfloat16, unless --dtype says otherwise
    compiled = device == "cuda" if cfg.compile is None else cfg.compile
    names = [f"nanoNeoX,{low},{'compiled' if compiled else 'eager'}"]
    if cfg.peers:
        names = [f"nanoNeoX,{low},compiled", f"nanoNeoX,{low},eager"]
        names += ["transformers,float32,eager", f"transformers,{low},eager"]
        for peer, wanted in (("nanoGPT", cfg.nanogpt), ("litgpt", cfg.litgpt)):
            kinds = ("float32,eager", f"{low},eager", f"{low},compiled")
            names += [f"{peer},{kind}" for kind in kinds if wanted]
        names.append(f"transformers,{low},compiled")
    training(cfg, list(dict.fromkeys(names)), low, device)
    if cfg.peers:
        inference(cfg, [name for name in dict.fromkeys(names) if "compiled" not in name], device)
        data_loading(cfg)
    if cfg.profile:
        profile(cfg, device, dtype)


if __name__ == "__main__":
    run_script(main)

"""What a training needs on a GPU that need not be here: memory, time, cost, the largest batch and
model.

    python tools/plan.py config/python_t4.py
    python tools/plan.py config/python_t4.py --gpu=all       a line for each GPU that is known here
    python tools/plan.py config/python_t4.py --gpu=a100 --batch_size=64 --price=1.50
    python tools/plan.py config/phi2.py --gpu=h100 --gpus=4
    python tools/plan.py config/python_t4.py --gpu_memory=24 --tflops=165     any other GPU

All of it is computed and nothing measured: tensors are counted, without torch.compile; the rest is
assumed within the ranges that are shown. Memory is that of one GPU.
"""

import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import bisect
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

import train
from model import NeoX, NeoXConfig
from parts import configurator, memory, runs
from parts.tokenizer import MAX_VOCAB
from tools.peers import vocabulary


class Settings(train.Settings):
    gpu = "t4"  # t4, l4, a10g, a40, a6000, 6000ada, a100, a100_80, h100, h200, l40s; all: a table
    gpu_memory = 0.0  # of another GPU: its memory in GiB, with
    tflops = 0.0  # its dense 16-bit peak in TFLOP/s, with sums in float32
    gpus = 1  # of them; with --shard they share weights, gradients and optimizer
    price = 0.0  # of one GPU for an hour, in any currency; 0: no cost is shown
    vocab_size = 0  # tokens in the vocabulary; 0: the data set's, or 8,192 if it is not there


class GPU(NamedTuple):
    name: str
    gib: float  # memory that torch reports
    peaks: dict[str, float]  # dense FLOP/s in each native dtype, the best one first


def gpu(name: str, gib: float, tflops: float, tf32: float) -> GPU:
    return GPU(
        name, gib, {"bfloat16": tflops * 1e12, "float16": tflops * 1e12, "float32": tf32 * 1e12}
    )


# From NVIDIA's data sheets, or tables that quote them (A10G, A40, A6000, 6000 Ada, H200, L40S).
# Half of a figure "with sparsity" is the dense one: sums in float32, SXM where there is that.
# float32 means TF32 where there is such a thing, because train.py allows it. torch reports about
# 1 % less memory than nvidia-smi, and on cards whose GDDR6 checks itself that is 6 % less than is
# sold.
GPUS = {
    "t4": GPU("T4", 14.6, {"float16": 65e12, "float32": 8.1e12}),
    "l4": gpu("L4", 22.0, 121, 60),
    "a10g": gpu("A10G", 22.0, 70, 35),  # AWS's; an A10 has 125
    "a40": gpu("A40", 44.4, 149.7, 74.8),
    "a6000": gpu("RTX A6000", 47.5, 154.8, 77.4),
    "6000ada": gpu("RTX 6000 Ada", 47.5, 364.2, 182.1),
    "a100": gpu("A100 40 GB", 39.5, 312, 156),
    "a100_80": gpu("A100 80 GB", 79.1, 312, 156),
    "h100": gpu("H100 SXM", 79.1, 989, 494),
    "h200": gpu("H200 SXM", 139.8, 989, 494),
    "l40s": gpu("L40S", 44.4, 362, 183),
}
# Assumed, each from the least to the most, for want of measurements. The share of the peak that
# training reaches.
SHARE = 0.15, 0.40
CONTEXT = 0.4 * 2**30, 1.0 * 2**30  # CUDA's context and cuBLAS's workspace, in bytes
WASTE = 0.02, 0.12  # what fragmentation adds to the tensors
COMPILING = 10.0, 120.0  # seconds, once
LAYER = 0.3e-3, 1.5e-3  # seconds of Python for a layer, forward and backward
LADDER = [  # layers, heads, width of the models to try
    # Pythia's (https://arxiv.org/abs/2304.01373, table 1), with steps between them, ...
    (6, 4, 128),
    (6, 8, 256),
    (6, 6, 384),
    (6, 8, 512),
    (8, 8, 512),
    (8, 10, 640),
    (12, 12, 768),
    (16, 14, 896),
    (24, 16, 1024),
    (24, 20, 1280),
    (36, 20, 1280),
    (16, 8, 2048),
    (24, 16, 2048),
    (32, 32, 2560),
    (32, 32, 4096),
    (36, 40, 5120),
    (44, 64, 6144),  # ... and GPT-NeoX-20B's
]


class Plan:
    """The settings on one GPU. Memory is in bytes, time in seconds; a range is (least, most)."""

    def __init__(self, cfg, config: NeoXConfig, gpu: GPU):
        """ValueError where the GPU does not compute in cfg.dtype."""
        self.cfg, self.config, self.gpu = cfg, config, gpu
        self.dtype = next(iter(gpu.peaks)) if cfg.dtype == "auto" else cfg.dtype
        if self.dtype not in gpu.peaks:
            native = ", ".join(gpu.peaks)
            raise ValueError(f"{gpu.name} has no native {self.dtype}, only {native}; drop --dtype")

    def tensors(self, config: NeoXConfig, batch_size: int, recomputed: bool) -> dict[str, int]:
        """Bytes by part; "total" is what there is at the worst moment."""
        changes = dict(batch_size=batch_size, checkpoint_activations=recomputed)
        cfg = types.SimpleNamespace(**vars(self.cfg) | changes)
        shards = cfg.gpus if cfg.shard else 1
        return memory.training(config, cfg, cfg.kept, self.dtype, shards=shards)

    def peak(self, config=None, batch_size=0, recomputed=None) -> tuple[float, float]:
        """The memory that is taken at the worst moment; what is not given is as in the settings."""
        recomputed = self.cfg.checkpoint_activations if recomputed is None else recomputed
        how = config or self.config, batch_size or self.cfg.batch_size, recomputed
        total = self.tensors(*how)["total"]
        return tuple(total * (1 + waste) + context for waste, context in zip(WASTE, CONTEXT))

    def verdict(self) -> str:
        least, most = (peak / 2**30 for peak in self.peak())
        if most <= self.gpu.gib:
            return "fits"
        return "may fit" if least <= self.gpu.gib else "DOES NOT FIT"

    def largest_batch(self) -> tuple[int, int]:
        """What surely fits, and what may; 0 if not even one sequence does."""
        room = self.gpu.gib * 2**30
        return tuple(
            bisect.bisect_right(
                range(1, 2**24), room, key=lambda size: self.peak(batch_size=size)[end]
            )
            for end in (1, 0)
        )

    def largest_model(self, batch_size: int, recomputed: bool) -> str:
        for n_layer, n_head, n_embd in reversed(LADDER):
            shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_inner=0, rotary_pct=0.25)
            config = dataclasses.replace(self.config, **shape)
            least, most = self.peak(config, batch_size, recomputed)
            if most <= self.gpu.gib * 2**30:
                millions = memory.count_parameters(config).total / 1e6
                return f"{millions:,.0f}M ({n_layer} x {n_embd}), {span((least, most), size)}"
        return "none"

    def seconds(self) -> dict[str, tuple[float, float]]:
        """How long training, compiling and evaluating take, and "all" of it."""
        cfg, peak, flops = self.cfg, self.gpu.peaks[self.dtype], self.cfg.flops
        again = 4 / 3 if cfg.checkpoint_activations else 1
        tokens = cfg.max_iters * cfg.grad_accum * cfg.batch_size * cfg.block_size
        # Each process evaluates all of it.
        looked_at = self.evaluations() * cfg.eval_iters * cfg.batch_size * cfg.block_size
        parts = {
            "training": [tokens * flops * again / (s * peak * cfg.gpus) for s in SHARE[::-1]],
            "compiling": (0.0, 0.0) if cfg.compile is False else COMPILING,
            "evaluating": [looked_at * flops / 3 / (s * peak) for s in SHARE[::-1]],
        }
        # A GPU is not faster than Python tells it what to do.
        batches = cfg.max_iters * -(-cfg.grad_accum // cfg.gpus) * self.config.n_layer
        waiting = [batches * layer for layer in LAYER]
        parts["training"] = list(map(max, parts["training"], waiting))
        if cfg.max_train_minutes:
            parts["training"] = [min(end, 60 * cfg.max_train_minutes) for end in parts["training"]]
        limit = cfg.max_minutes * 60 or float("inf")
        return parts | {"all": [min(sum(ends), limit) for ends in zip(*parts.values())]}

    def evaluations(self) -> int:
        every = self.cfg.eval_interval
        return 1 + -(-self.cfg.max_iters // every) if every else 1

    def print_memory(self):
        cfg, recomputed = self.cfg, self.cfg.checkpoint_activations
        parts = self.tensors(self.config, cfg.batch_size, recomputed)
        del parts["total"]
        notes = {
            "weights": f"with {self.dtype} copies" if self.dtype != "float32" else "",
            "optimizer": cfg.optimizer,
            "activations": f"recomputed: {'yes' if recomputed else 'no'}",
            "loss": "in chunks",
        }
        print("memory")
        for name, value in parts.items():
            print(f"  {name:<17}{size(value):<18}  {notes.get(name, '')}".rstrip())
        print(
            f"  {'peak':<17}{span(self.peak(), size)}: {self.verdict()} in {self.gpu.gib} GiB\n"
            f"{'':19}That is the worst moment, when not all of these are held, with "
            f"{span(CONTEXT, size)}\n"
            f"{'':19}for CUDA and {WASTE[0]:.0%} to {WASTE[1]:.0%} for fragments (assumed).\n"
        )

    def print_time(self):
        cfg, parts = self.cfg, self.seconds()
        tokens = cfg.max_iters * cfg.grad_accum * cfg.batch_size * cfg.block_size
        notes = {
            "training": f"{tokens / 1e6:,.0f}M tokens, at {SHARE[0]:.0%} to {SHARE[1]:.0%} of the "
            "peak (assumed)",
            "compiling": "once (assumed)",
            "evaluating": f"{self.evaluations():,} times",
            "all": f"max_minutes={cfg.max_minutes:g} ends it" if cfg.max_minutes else "",
        }
        print("time")
        for name, ends in parts.items():
            if ends[1]:
                print(f"  {name:<17}{span(ends, duration):<18}{notes[name]}".rstrip())
        if cfg.price:
            print(f"cost               {self.cost()}, at {cfg.price:g} an hour for each GPU")

    def cost(self) -> str:
        hours = [
            seconds / 3600 * self.cfg.price * self.cfg.gpus for seconds in self.seconds()["all"]
        ]
        return " to ".join(f"{value:,.2f}" for value in hours)

    def print_largest_models(self):
        batches = sorted({1, self.cfg.batch_size})
        rows = {"largest model": [f"batch {batch}" for batch in batches]}
        for name, recomputed in ("activations kept", False), ("recomputed", True):
            rows[f"  {name}"] = [self.largest_model(batch, recomputed) for batch in batches]
        for name, cells in rows.items():
            print(f"{name:<19}" + "".join(f"{cell:<39}" for cell in cells).rstrip())


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    for unit, length in ("days", 86400), ("h", 3600), ("min", 60):
        if seconds >= 2 * length:
            return f"{seconds / length:.{int(seconds < 10 * length)}f} {unit}"
    return f"{seconds:.0f} s"


def span(ends: tuple[float, float], form: Callable[[float], str]) -> str:
    """A range for people; form: `size` or `duration`."""
    least, most = map(form, ends)
    number, unit = least.split()
    if least == most:
        return least
    return f"{number if most.endswith(f' {unit}') else least} to {most}"


def print_table(cfg, config: NeoXConfig):
    """A line for each GPU."""
    head = ["gpu", "", "GiB", "TFLOP/s", "memory", "", "largest batch", "time"]
    head += ["cost"] * bool(cfg.price)
    rows = [head]
    for key, gpu in GPUS.items():
        try:
            plan = Plan(cfg, config, gpu)
        except ValueError:  # a dtype that this one has not
            continue
        row = [key, gpu.name, f"{gpu.gib}", f"{gpu.peaks[plan.dtype] / 1e12:.0f}"]
        row += [span(plan.peak(), size), plan.verdict(), f"{plan.largest_batch()[0]:,}"]
        row += [span(plan.seconds()["all"], duration)]
        rows.append(row + [plan.cost()] * bool(cfg.price))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())


def read_settings():
    cfg = train.read_settings(Settings)
    most = {"vocab_size": MAX_VOCAB, "gpus": 4096, "gpu_memory": 1e6, "tflops": 1e6}
    configurator.require(cfg, ["gpus"], most, gpu=[*GPUS, "all"])
    with configurator.mistakes():
        if bool(cfg.gpu_memory) != bool(cfg.tflops):
            raise ValueError("another GPU needs both numbers: --gpu_memory=24 --tflops=165")
        cfg.vocab_size = cfg.vocab_size or vocabulary(cfg.dataset)
    return cfg


def main():
    cfg = read_settings()
    with configurator.mistakes():
        config = NeoXConfig(**runs.model_settings(cfg))
        cfg.kept = memory.state_kept(config, cfg)  # bytes of the optimizer for each parameter
    with torch.device("meta"):
        cfg.flops = NeoX(config).flops_per_token()  # of a forward and a backward: three forwards
    parameters = memory.count_parameters(config).total
    print(
        f"{parameters / 1e6:.1f}M parameters, {config.n_layer} layers, {config.n_embd} "
        f"wide, context {config.block_size}, vocabulary {config.vocab_size}, batch "
        f"{cfg.batch_size} x {cfg.grad_accum}. Computed, not measured."
    )
    if cfg.gpu == "all" and not cfg.tflops:
        return print_table(cfg, config)
    gpu = GPUS.get(cfg.gpu)
    if cfg.tflops:
        dtype = "bfloat16" if cfg.dtype == "auto" else cfg.dtype
        gpu = GPU("this GPU", cfg.gpu_memory, {dtype: cfg.tflops * 1e12})
    with configurator.mistakes():
        plan = Plan(cfg, config, gpu)
    surely, perhaps = plan.largest_batch()
    if not perhaps:
        configurator.die(
            f"one sequence needs {span(plan.peak(batch_size=1), size)}, and {gpu.name} has "
            f"{gpu.gib} GiB; largest model that fits at this context: "
            f"{plan.largest_model(1, True)}, with --checkpoint_activations"
        )
    count = f"{cfg.gpus} x " * (cfg.gpus > 1)
    peak = gpu.peaks[plan.dtype] / 1e12
    print(f"{count}{gpu.name}: {gpu.gib} GiB, {peak:.0f} TFLOP/s in {plan.dtype}\n")
    plan.print_memory()
    plan.print_time()
    print(f"\nlargest batch_size {surely}" + f", perhaps {perhaps}" * (perhaps > surely))
    plan.print_largest_models()


if __name__ == "__main__":
    run_script(main)

"""What a training needs on a GPU that need not be here: memory, time, the largest batch and model.

    python tools/plan.py config/python_t4.py
    python tools/plan.py config/python_t4.py --gpu=a100 --batch_size=64

    python tools/plan.py config/phi2.py --gpu=h100 --gpus=4

All of it is computed and nothing measured, without torch.compile. Memory is that of one GPU.
"""

import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import bisect
import dataclasses
from typing import NamedTuple

import torch

import train
from model import NeoX, NeoXConfig
from parts import configurator, memory, runs
from parts.tokenizer import MAX_VOCAB
from tools.peers import vocabulary


class Settings(train.Settings):
    gpu = "t4"  # t4, l4, a100, h100, l40s
    gpus = 1  # of them; with --shard they share weights, gradients and optimizer
    vocab_size = 0  # tokens in the vocabulary; 0: the data set's, or 8,192 if it is not there


class GPU(NamedTuple):
    gib: float  # memory that torch reports
    peaks: dict[str, float]  # dense FLOP/s in each native dtype, the best one first


# From NVIDIA's data sheets: T4, L4, A100 40 GB, H100 SXM and L40S. float32 means TF32 where there
# is such a thing, because train.py allows it.
GPUS = {
    "t4": GPU(14.6, {"float16": 65e12, "float32": 8.1e12}),
    "l4": GPU(22.0, {"bfloat16": 121e12, "float16": 121e12, "float32": 60e12}),
    "a100": GPU(39.5, {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12}),
    "h100": GPU(79.1, {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12}),
    "l40s": GPU(44.5, {"bfloat16": 362e12, "float16": 362e12, "float32": 183e12}),
}
# The share of that peak that training reaches. Assumed: small models get less, large ones on an
# A100 up to twice as much.
SHARE = 0.25
# Assumed: CUDA's context and cuBLAS's workspace in bytes, and the share that fragmentation adds.
CONTEXT, WASTE = 0.6 * 2**30, 0.05
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
    """The settings, as far as memory depends on them, on one GPU. All figures in GiB."""

    def __init__(self, cfg, config: NeoXConfig):
        """Ends the script where the GPU does not compute in cfg.dtype."""
        self.cfg, self.config, self.gpu = cfg, config, GPUS[cfg.gpu]
        with configurator.mistakes():
            self.kept = memory.state_kept(config, cfg)
        self.dtype = next(iter(self.gpu.peaks)) if cfg.dtype == "auto" else cfg.dtype
        if self.dtype not in self.gpu.peaks:
            native = ", ".join(self.gpu.peaks)
            configurator.die(
                f"{cfg.gpu} has no native {self.dtype}, only {native}; leave --dtype out"
            )

    def memory(self, config: NeoXConfig, batch_size: int, checkpoint: bool) -> dict[str, float]:
        changes = dict(batch_size=batch_size, checkpoint_activations=checkpoint)
        cfg = types.SimpleNamespace(**vars(self.cfg) | changes)
        shards = cfg.gpus if cfg.shard else 1
        parts = memory.training(config, cfg, self.kept, self.dtype, shards=shards)
        parts["total"] = parts["total"] * (1 + WASTE) + CONTEXT
        return {name: value / 2**30 for name, value in parts.items()}

    def largest_batch(self) -> int:
        """0 if not even one sequence fits."""

        def total(batch_size):
            how = batch_size, self.cfg.checkpoint_activations
            return self.memory(self.config, *how)["total"]

        return bisect.bisect_right(range(1, 2**24), self.gpu.gib, key=total)

    def largest_model(self, batch_size: int, checkpoint: bool) -> str:
        for n_layer, n_head, n_embd in reversed(LADDER):
            shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_inner=0, rotary_pct=0.25)
            config = dataclasses.replace(self.config, **shape)
            total = self.memory(config, batch_size, checkpoint)["total"]
            if total <= self.gpu.gib:
                millions = memory.count_parameters(config).total / 1e6
                return f"{millions:,.0f}M ({n_layer} x {n_embd}), {total:.1f} GiB"
        return "none"

    def print_memory(self):
        cfg, recomputed = self.cfg, self.cfg.checkpoint_activations
        parts = self.memory(self.config, cfg.batch_size, recomputed)
        peak = parts.pop("total")
        parts["CUDA, fragments"] = peak - (peak - CONTEXT / 2**30) / (1 + WASTE)
        notes = {
            "weights": f"with {self.dtype} copies" if self.dtype != "float32" else "",
            "optimizer": cfg.optimizer,
            "activations": f"recomputed: {'yes' if recomputed else 'no'}",
            "loss": "in chunks",
            "CUDA, fragments": f"assumed: {CONTEXT / 2**30} GiB + {WASTE:.0%}",
        }
        print("memory                GiB")
        for name, value in parts.items():
            print(f"  {name:<17}{value:>6.2f}  {notes.get(name, '')}".rstrip())
        fits = "fits" if peak <= self.gpu.gib else "DOES NOT FIT"
        print(
            f"  {'peak':<17}{peak:>6.2f}  at the worst moment, when not all of these are held: "
            f"{fits} in {self.gpu.gib}"
        )

    def print_time(self, model: NeoX):
        cfg = self.cfg
        tokens = cfg.max_iters * cfg.grad_accum * cfg.batch_size * cfg.block_size
        # A second forward is a third of the rest.
        flops = model.flops_per_token() * (4 / 3 if cfg.checkpoint_activations else 1)
        minutes = tokens * flops / (SHARE * self.gpu.peaks[self.dtype] * cfg.gpus) / 60
        time = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        limit = f", or {cfg.max_minutes:g} min if sooner" if cfg.max_minutes else ""
        print(
            f"time                 {time}: {tokens / 1e6:,.0f}M tokens, {flops / 1e9:.2f} GFLOP "
            f"each, at {SHARE:.0%} of the peak (assumed){limit}"
        )

    def print_largest_models(self):
        batches = sorted({1, self.cfg.batch_size})
        rows = {"largest model        ": [f"batch {batch}" for batch in batches]}
        for name, checkpoint in ("activations kept", False), ("recomputed", True):
            rows[f"  {name:<19}"] = [self.largest_model(batch, checkpoint) for batch in batches]
        for name, cells in rows.items():
            print(name + "".join(f"{cell:<32}" for cell in cells).rstrip())


def read_settings():
    cfg = train.read_settings(Settings)
    configurator.require(cfg, ["gpus"], {"vocab_size": MAX_VOCAB, "gpus": 4096}, gpu=list(GPUS))
    with configurator.mistakes():
        cfg.vocab_size = cfg.vocab_size or vocabulary(cfg.dataset)
    return cfg


def main():
    cfg = read_settings()
    with configurator.mistakes():
        config = NeoXConfig(**runs.model_settings(cfg))
    plan = Plan(cfg, config)
    largest = plan.largest_batch()
    if not largest:
        configurator.die(
            f"one sequence needs {plan.memory(config, 1, cfg.checkpoint_activations)['total']:.1f} "
            f"GiB, and {cfg.gpu} has {plan.gpu.gib}; largest model that fits at this context: "
            f"{plan.largest_model(1, True)}, with --checkpoint_activations"
        )
    with torch.device("meta"):
        model = NeoX(config)
    print(
        f"{model.num_params() / 1e6:.1f}M parameters, {config.n_layer} layers, {config.n_embd} "
        f"wide, context {config.block_size}, vocabulary {config.vocab_size}, batch "
        f"{cfg.batch_size} x {cfg.grad_accum}\n{cfg.gpu}: {plan.gpu.gib} GiB, "
        f"{plan.gpu.peaks[plan.dtype] / 1e12:.0f} TFLOP/s in {plan.dtype}. Computed, not measured, "
        "without torch.compile.\n"
    )
    plan.print_memory()
    print(f"largest batch_size   {largest}")
    plan.print_time(model)
    plan.print_largest_models()


if __name__ == "__main__":
    run_script(main)

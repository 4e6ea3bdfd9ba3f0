"""What a training needs on a GPU that need not be here: memory, time, the largest batch and model.

    python tools/plan.py config/python_t4.py
    python tools/plan.py config/python_t4.py --gpu=a100 --batch_size=64

All of it is computed and nothing measured. It is for one GPU, without torch.compile.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run

import bisect
import dataclasses
from typing import NamedTuple

import torch

import optim
import train
from model import NeoX, NeoXConfig
from parts import configurator, runs
from parts import device as devices
from parts.fast import MAX_LOGITS
from tools.peers import vocabulary


class Settings(train.Settings):
    gpu = "t4"  # t4, l4, a100, h100
    vocab_size = 0  # tokens in the vocabulary; 0: the data set's, or 8,192 if it is not there


class GPU(NamedTuple):
    gib: float  # memory that torch reports
    peaks: dict[str, float]  # dense FLOP/s in each native dtype, the best one first


# From NVIDIA's data sheets: T4, L4, A100 40 GB and H100 SXM. float32 means TF32 where there is such
# a thing, because train.py allows it.
GPUS = {
    "t4": GPU(14.6, {"float16": 65e12, "float32": 8.1e12}),
    "l4": GPU(22.0, {"bfloat16": 121e12, "float16": 121e12, "float32": 60e12}),
    "a100": GPU(39.5, {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12}),
    "h100": GPU(79.1, {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12}),
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


# --- memory ---------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """Numbers of parameters."""

    matrices: int  # in the matrices of one block
    linear: int  # the same with their biases
    table: int  # in the input table, and in the output head
    tables: int  # in both; the same where they share one
    total: int


def count_parameters(c: NeoXConfig) -> Sizes:
    matrices = 4 * c.n_embd**2 + c.n_embd * (c.n_read + c.n_inner)
    linear = matrices + 5 * c.n_embd + c.n_read
    table = c.vocab_size * c.n_embd
    tables = (1 if c.tie_embeddings else 2) * table
    norms = c.n_layer * 4 * c.n_embd + 2 * c.n_embd
    return Sizes(matrices, linear, table, tables, tables + c.n_layer * linear + norms)


def optimizer_bytes(c: NeoXConfig, name: str) -> tuple[int, int]:
    """What an optimizer keeps from step to step, and what else a step of it needs for a moment."""
    sizes = count_parameters(c)
    n, inner = sizes.total, c.n_layer * sizes.matrices
    shapes = (3 * c.n_embd, c.n_embd), (c.n_embd, c.n_embd), (c.n_read, c.n_embd)
    shapes += ((c.n_embd, c.n_inner),)  # of the matrices in a block
    bases = c.n_layer * sum(2 * (a * a + b * b) for a, b in shapes)
    factored = c.n_layer * sum(a + b for a, b in shapes)  # a sum for each row and column
    factored += (1 if c.tie_embeddings else 2) * (c.vocab_size + c.n_embd)
    states = {  # in numbers of 4 bytes; AdamW and its relatives have two for each weight
        "sgd": n,
        "lion": n,
        "muon": 2 * n - inner,
        "soap": 2 * n + bases,
        "adafactor": n - inner - sizes.tables + factored,
    }
    work = {  # torch's fused optimizers need none
        "muon": int(c.n_embd * (2.5 * max(c.n_read, 3 * c.n_embd) + c.n_embd)),
        "soap": 4 * inner,
        "lion": n,
        "cautious": 3 * n,
        "schedulefree": 2 * n,
        "adafactor": 2 * max(sizes.table, c.n_read * c.n_embd),
    }
    return 4 * states.get(name, 2 * n), 4 * work.get(name, 0)


def loss_bytes(c: NeoXConfig, tokens: int, dtype: str) -> int:
    """What the forward of parts/fast.py's LinearCrossEntropy holds at its worst moment, its input
    included. By hand, line by line of its code; tests/ counts its tensors on a CPU."""
    size, states, table = bytes_of(dtype), tokens * c.n_embd, c.vocab_size * c.n_embd
    rows = max(MAX_LOGITS["cuda"] // c.vocab_size, 1)
    if dtype == "float16":
        rows = min(rows, 1024)
    logits = min(rows, tokens) * c.vocab_size
    # Throughout: the final LayerNorm's output, and the head's gradient, both in float32; in `dtype`
    # the hidden states, their gradient, and a copy of the head where it is not float32 anyway.
    held = 4 * states + 4 * table + size * (2 * states + (table if size == 2 else 0))
    # Then one of: a part's logits, float32 probabilities and their gradient in 16 bits, or in
    # float32, where there is a part before, its probabilities; or logits, gradient, and what these
    # make: a part of the head's gradient, and in the end a masked copy of the states' gradient.
    softmax = (12 if size == 4 and rows < tokens else 8) * logits
    return held + max(softmax, size * (2 * logits + max(table, states)))


def bytes_of(dtype):
    return 4 if dtype == "float32" else 2


def estimate_memory(
    c: NeoXConfig, batch_size, dtype="float32", optimizer="adamw", checkpoint=False, grad_accum=1
) -> dict[str, int]:
    """Bytes of tensors in a training step on CUDA, uncompiled, by part; "total" is what there is at
    the worst moment, which is less than the sum of the parts.

    dtype is autocast's, over float32 weights. checkpoint: activations are computed twice. What
    autograd keeps follows from model.py's code, and tests/ counts it: linear layers, attention and
    GELU keep `dtype`; LayerNorm keeps its input, the residual stream, which is float32 because the
    embedding is (and CUDA's autocast would make it so)."""
    size, tokens = bytes_of(dtype), batch_size * c.block_size
    sizes = count_parameters(c)
    weights = grads = 4 * sizes.total
    states, work = optimizer_bytes(c, optimizer)
    # Autocast's copy of one block's weights, which stays until the block's backward has used it.
    copy = 0 if size == 4 else size * sizes.linear
    stream = 4 * tokens * c.n_embd
    # What a block keeps. In `dtype`, times C: two LayerNorm outputs, the fused q, k, v (which v, a
    # view, keeps whole), rotated q and k, attention's output and its copy, because flash attention
    # orders it another way (a T4's kernel does not: 5 % less); the MLP around GELU, or around the
    # gate and its product. In float32: its input, logsumexp, and LayerNorm's mean and 1 / std.
    block = stream + tokens * (size * (9 * c.n_embd + 2 * c.n_read) + 4 * c.n_head + 16)
    block += stream * (not c.parallel_residual)
    block += 2 * tokens * c.n_embd * (c.dropout > 0)  # a mask takes 1 byte an element
    kept, again = (c.n_layer * stream, block - stream) if checkpoint else (c.n_layer * block, 0)
    passing = stream + size * tokens * (c.n_embd + c.n_read)  # gradients on their way through MLPs
    # The input table's gradient, before it is added to others.
    late = 4 * sizes.table * ((grad_accum > 1) + c.tie_embeddings)
    before = grads * (grad_accum > 1)  # of earlier passes; a step leaves none
    # Gradients that are not there yet in the first block's backward.
    missing = 0 if before else 4 * (sizes.linear + sizes.table * (not c.tie_embeddings))
    loss = loss_bytes(c, tokens, dtype)
    # Going back through the blocks, each changes memory by the same amount, so the worst moment is
    # in the loss, at the last block, at the first one, or right after it.
    in_loss = before + c.n_layer * copy + kept + stream + loss
    copies = copy if checkpoint else c.n_layer * copy
    last_block = max(before, 4 * sizes.table) + copies + kept + again + passing
    first_block = grads + max(copy + block + passing - missing, stream + late, work)
    return {
        "weights": weights + c.n_layer * copy,
        "gradients": grads,
        "optimizer": states,
        "loss": loss,
        "activations": kept + again + stream,
        "total": weights + states + max(in_loss, last_block, first_block),
    }


# --- the plan -------------------------------------------------------------------------------------


class Plan:
    """The settings, as far as memory depends on them, on one GPU. All figures in GiB."""

    def __init__(self, cfg, config: NeoXConfig):
        """Ends the script where the GPU does not compute in cfg.dtype."""
        self.cfg, self.config, self.gpu = cfg, config, GPUS[cfg.gpu]
        self.dtype = next(iter(self.gpu.peaks)) if cfg.dtype == "auto" else cfg.dtype
        if self.dtype not in self.gpu.peaks:
            native = ", ".join(self.gpu.peaks)
            configurator.die(
                f"{cfg.gpu} has no native {self.dtype}, only {native}; leave --dtype out"
            )

    def memory(self, config: NeoXConfig, batch_size: int, checkpoint: bool) -> dict[str, float]:
        how = self.dtype, self.cfg.optimizer, checkpoint, self.cfg.grad_accum
        parts = estimate_memory(config, batch_size, *how)
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
                millions = count_parameters(config).total / 1e6
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
        minutes = tokens * flops / (SHARE * self.gpu.peaks[self.dtype]) / 60
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
    cfg = configurator.load(Settings)
    choices = {"gpu": list(GPUS), "optimizer": list(optim.OPTIMIZERS), "dtype": devices.DTYPES}
    configurator.require(cfg, ("batch_size", "grad_accum", "max_iters"), **choices)
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
    run(main)

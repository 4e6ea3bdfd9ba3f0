"""What a training, a generation and an evaluation will need, and what is free: said before anything
is built, since a machine without swap kills whatever asks for too much.

Every estimate counts the tensors that exist together at the worst moment, from the settings alone.
It leaves out what allocators waste (a few percent), so what is refused would not have run. Shapes
as in model.py.
"""

import bisect
import contextlib
import os
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

import optim
from model import NeoX, NeoXConfig
from parts import device as devices
from parts import distributed
from parts.fast import MAX_LOGITS, untouched

# Python's objects for one block, in bytes: modules, parameters, their names.
BLOCK_OBJECTS = 30_000
# What libraries take on a CPU after their import (threads, oneDNN, plots): 0.1 to 0.25 GB.
LATER = 100_000_000


# --- what is free ---------------------------------------------------------------------------------


def free(device: str) -> int:
    """Bytes that this process may still take on a device. On a CPU that is the least of what the
    machine has (swap included), its control groups and `ulimit -v` allow."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # psutil's, where the system hides its swap
        rooms = [psutil.virtual_memory().available + psutil.swap_memory().free]
    if device == "mps":
        rooms.append(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    rooms += [*control_group_rooms(), *address_space_rooms()]
    return max(min(rooms), 0)


def control_group_rooms(root=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """Bytes left in each of Linux's control groups around this process that has a limit, as
    containers and SLURM set one: version 1 and 2. Files that the group has cached can be dropped,
    so they count as free."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
            top = root / "memory" if controllers else root
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or the limit is "max"
                    limit, usage = (int((folder / f"memory.{n}").read_text()) for n in names)
                    stat = (folder / "memory.stat").read_text().split()
                    stat = dict(zip(stat[::2], map(int, stat[1::2])))
                    of_all = "total_" if controllers else ""  # the groups below it included
                    cached = sum(stat[f"{of_all}{kind}active_file"] for kind in ("", "in"))
                    yield limit - usage + cached
                if folder == top:
                    break


def address_space_rooms() -> Iterator[int]:
    """Bytes left below `ulimit -v`, if there is one."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - psutil.Process().memory_info().vms


def held() -> int:
    """Bytes that this process has taken, without files that are mapped."""
    info = psutil.Process().memory_info()
    return info.rss - getattr(info, "shared", 0)


LIBRARIES = held()  # before there is any model


# --- what is needed -------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """Numbers of parameters."""

    matrices: int  # in the matrices of one block
    linear: int  # the same with their biases
    table: int  # in the input table, and in the output head
    blocks: int  # in all blocks
    total: int


def count_parameters(c: NeoXConfig) -> Sizes:
    matrices = 4 * c.n_embd**2 + c.n_embd * (c.n_read + c.n_inner)
    linear = matrices + 5 * c.n_embd + c.n_read
    table = c.vocab_size * c.n_embd
    tables = (1 if c.tie_embeddings else 2) * table
    positions = c.learned_positions * c.block_size * c.n_embd
    bias = c.head_bias * c.vocab_size
    mix = c.n_mix * c.n_embd  # in each block, and of the embeddings
    blocks = c.n_layer * (linear + (2 if c.shared_norm else 4) * c.n_embd + mix)
    total = tables + positions + blocks + 2 * c.n_embd + bias + mix
    return Sizes(matrices, linear, table, blocks, total)


def model_bytes(c: NeoXConfig) -> int:
    """A model in float32 with its rotary tables, and Python's objects for it."""
    sizes, rotary = count_parameters(c), 2 * c.block_size * c.rotary_dim
    count = sizes.linear + sizes.table if edited() else sizes.total
    return 4 * count + 4 * rotary + BLOCK_OBJECTS * c.n_layer


def edited() -> bool:
    """Whether model.py was. Then nobody knows what it keeps, so only what is hardly avoidable
    counts: one block's weights, as all may share them, one table, and the embedded tokens."""
    return not untouched("network")


def twin(c: NeoXConfig) -> NeoXConfig:
    """The settings of fast.twin, on which the fast forms are tried."""
    width = min(c.n_head, 2) * c.head_dim
    inner = max(c.n_inner * width // c.n_embd, 1)
    return replace(c, vocab_size=64, n_head=min(c.n_head, 2), n_embd=width, n_inner=inner)


class Kept(NamedTuple):
    """Bytes that an optimizer keeps from step to step, for each parameter."""

    inside: float  # of the blocks
    outside: float


def state_kept(c: NeoXConfig, cfg) -> Kept:
    """What cfg.optimizer keeps: measured, so that an optimizer of your own counts too, in a step of
    a model of one block, up to 128 wide. ValueError where optimizer and settings do not suit."""
    C = min(c.n_embd, 128)
    shape = dict(n_layer=1, n_embd=C, n_head=1, rotary_pct=0.0, block_size=1)
    shape |= dict(vocab_size=min(c.vocab_size, 1024), n_inner=min(C * c.n_inner // c.n_embd, 1024))
    with torch.random.fork_rng(devices=[]):
        model = NeoX(replace(c, **shape))
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizers = optim.build(model, cfg)
        for optimizer in optimizers:
            optimizer.step()
    blocks, counts, sizes = set(model.gpt_neox["layers"].parameters()), [0, 0], [0, 0]
    state = {p: values for one in optimizers for p, values in one.state.items()}
    for p in model.parameters():
        tensors = filter(torch.is_tensor, state.get(p, {}).values())
        counts[p in blocks] += p.numel()
        sizes[p in blocks] += sum(t.nbytes for t in tensors if t.dim())  # without step counters
    return Kept(sizes[True] / counts[True], sizes[False] / counts[False])


def step_work(c: NeoXConfig, optimizer: str) -> int:
    """What a step of an optimizer needs for a moment, in bytes: 0 for torch's fused ones, and for
    one that is not known here."""
    sizes = count_parameters(c)
    n, inner = sizes.total, c.n_layer * sizes.matrices
    stack = c.n_layer * c.n_embd * max(c.n_read, 3 * c.n_embd)  # the matrices of one shape
    work = {  # in numbers of 4 bytes
        "muon": int(3.5 * stack + c.n_layer * c.n_embd**2),
        "soap": 4 * inner,
        "lion": n,
        "cautious": 3 * n,
        "schedulefree": 2 * n,
        "adafactor": 2 * max(sizes.table, c.n_read * c.n_embd),
    }
    return 4 * work.get(optimizer, 0)


def bytes_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def loss_bytes(c: NeoXConfig, tokens: int, dtype: str, device: str = "cuda") -> int:
    """What the forward of parts/fast.py's LinearCrossEntropy holds at its worst moment, its input
    included. By hand, line by line of its code; tests/ counts its tensors on a CPU."""
    size, states, table = bytes_of(dtype), tokens * c.n_embd, c.vocab_size * c.n_embd
    rows = max(MAX_LOGITS[device] // c.vocab_size, 1)
    if dtype == "float16":
        rows = min(rows, 1024)
    logits = min(rows, tokens) * c.vocab_size
    # Throughout: the final LayerNorm's output, and the head's gradient, both in float32; in `dtype`
    # the hidden states, their gradient, and a copy of the head where it is not float32 anyway.
    held = 4 * states + 4 * table + size * (2 * states + (table if size == 2 else 0))
    # Then one of: a part's logits, float32 probabilities and their gradient in 16 bits, or in
    # float32, where there is a part before, its probabilities; or logits, gradient, and what these
    # make: a part of the head's gradient, and in the end a masked copy of the states' gradient.
    again = rows < tokens
    softmax = (12 if size == 4 and again else 8) * logits
    if device == "cpu" and dtype == "bfloat16":  # whose probabilities stay in bfloat16
        softmax = (6 if again else 4) * logits
    return held + max(softmax, size * (2 * logits + max(table, states)))


def block_bytes(c: NeoXConfig, tokens: int, size: int, device: str) -> tuple[int, int]:
    """What a block keeps for its backward, and what else exists while that runs.

    size: of a number in autocast's dtype. What autograd keeps follows from the code, and tests/
    counts it: linear layers, attention and GELU keep `dtype`; LayerNorm keeps its input, the
    residual stream, which is float32 because the embedding is (and CUDA's autocast would make it
    so)."""
    stream = 4 * tokens * c.n_embd
    # On a CPU: the form of attention that keeps its weights, in `dtype`; with dropout, for which
    # torch has no fused one there, the weights, a mask and their product, in float32.
    fast = device == "cpu" and not c.dropout and c.block_size <= 512
    each = size if fast else 12 if device == "cpu" and c.dropout else 0
    weights = tokens * c.n_head * c.block_size * each
    # In `dtype`, times C: two LayerNorm outputs (or one, shared), the fused q, k, v (which v, a
    # view, keeps whole), rotated q and k, attention's output and its copy, because flash attention
    # orders it another way (a T4's kernel does not: 5 % less); the MLP around GELU, or around the
    # gate and its product. In float32: its input, logsumexp, and LayerNorm's mean and 1 / std. The
    # fast form keeps one q, k, v, rotated in place, one output, and the weights.
    times = 6 if fast else 9
    # A shared one: autocast makes a copy for each of its two readers, but of the fast Mix's output.
    times -= c.shared_norm and (size == 4 or fast and c.n_mix > 0)
    kept = stream + tokens * (size * (times * c.n_embd + 2 * c.n_read) + 16)
    kept += weights or 4 * tokens * c.n_head
    kept += stream * (not c.parallel_residual)
    kept += 2 * tokens * c.n_embd * (c.dropout > 0)  # a mask takes 1 byte an element
    # What is mixed: in `dtype` by the fast form, else as LayerNorm gave it.
    kept += tokens * c.n_embd * (size if device == "cpu" else 4) * (c.n_mix > 0)
    # Gradients on their way through the MLP, or through attention's weights to q, k, v.
    passing = max(size * tokens * (c.n_embd + c.n_read), 2 * weights + size * 4 * tokens * c.n_embd)
    return kept, stream + passing


def training(
    c: NeoXConfig, cfg, kept: Kept, dtype: str, device: str = "cuda", shards: int = 1
) -> dict[str, int]:
    """Bytes of tensors in a training step, uncompiled, by part; "total" is what there is at the
    worst moment, which is less than the sum of the parts.

    cfg: batch_size, grad_accum, optimizer, checkpoint_activations. kept: what `state_kept` found.
    dtype is autocast's, over float32 weights. shards: processes that share weights and state."""
    size, tokens = bytes_of(dtype), cfg.batch_size * c.block_size
    sizes = count_parameters(c)
    inside = sizes.blocks
    weights = grads = 4 * sizes.total // shards
    states = round(kept.inside * inside + kept.outside * (sizes.total - inside)) // shards
    # Autocast's copy of one block's weights, which stays until the block's backward has used it.
    copy = 0 if size == 4 else size * sizes.linear
    stream = 4 * tokens * c.n_embd
    block, passing = block_bytes(c, tokens, size, device)
    again = 0
    if recomputed := cfg.checkpoint_activations:
        block, again = stream, block - stream
    activations = c.n_layer * block + stream * (c.n_mix > 0)  # the embeddings before they are mixed
    # The input table's gradient, before it is added to others.
    late = 4 * sizes.table * ((cfg.grad_accum > 1) + c.tie_embeddings)
    before = grads * (cfg.grad_accum > 1)  # of earlier passes; a step leaves none
    # Gradients that are not there yet in the first block's backward.
    missing = 0 if before else 4 * (sizes.linear + sizes.table * (not c.tie_embeddings)) // shards
    loss = loss_bytes(c, tokens, dtype, device)
    # Going back through the blocks, each changes memory by the same amount, so the worst moment is
    # in the loss, at the last block, at the first one, or right after it.
    in_loss = before + c.n_layer * copy + activations + stream + loss
    copies = copy if recomputed else c.n_layer * copy
    last_block = max(before, 4 * sizes.table) + copies + activations + again + passing
    first_block = max(copy + block + again + passing - missing, stream + late)
    first_block = grads + max(first_block, step_work(c, cfg.optimizer) // shards)
    return {
        "weights": weights + c.n_layer * copy,
        "gradients": grads,
        "optimizer": states,
        "loss": loss,
        "activations": activations + again + stream,
        "total": weights + states + max(in_loss, last_block, first_block),
    }


def generation(c: NeoXConfig, rows: int, prompt: int, new: int, size: int, device: str) -> int:
    """Bytes that writing takes besides the model: `rows` texts together, of at most `prompt` and
    `new` tokens. size: of a number in the model's dtype.

    The cache holds block_size tokens from the start; beyond it only token ids grow."""
    C, sizes = c.n_embd, count_parameters(c)
    ids = rows * (9 * (prompt + new) + c.vocab_size)
    if edited():
        return ids
    wide = max(4, size) if device == "cpu" else size  # of the cache
    weights = size * (sizes.blocks + sizes.table * (device == "cpu" and rows == 1))
    cache = wide * 2 * c.n_layer * rows * c.block_size * C
    cache += size * (c.n_layer + 1) * rows * c.block_size * C * (c.n_mix > 0)
    # The tokens that are read at once: of the prompt, or of half a window when that is full.
    T = max(min(prompt, c.block_size), c.block_size // 2 * (prompt + new > c.block_size))
    read = rows * T * (size * (6 * C + c.n_read + 2 * c.n_inner) + wide * 4 * C)
    head = rows * c.vocab_size * (size + 12)  # logits, and in float32 what `choose` makes of them
    return weights + cache + ids + max(read, head)


# --- what to say ----------------------------------------------------------------------------------


def shown(count: int) -> str:
    """Bytes for people, whatever the number of digits."""
    return f"{count / 1e9:,.1f} GB" if count < 10**15 else "a million GB and more"


def refuse(what: str, needed: int, room: int, remedies: list[str]):
    """ValueError in one line with both numbers and the settings that would fit."""
    would = f"{' or '.join(remedies)} would fit" if remedies else "no one setting brings it down"
    raise ValueError(f"{what} needs about {shown(needed)} and {shown(room)} are free: {would}")


def largest(need: Callable[[int], int], value: int, room: int, step: int = 1) -> int:
    """The largest multiple of `step` below `value` that needs at most 95 % of the room, since what
    is free changes from minute to minute; 0 if there is none."""
    candidates = range(step, min(value, 2**50), step)
    return step * bisect.bisect_right(candidates, room * 95 // 100, key=need)


def require(what: str, need: Callable[..., int], room: int, steps=(), phrases=(), **given: int):
    """ValueError, with both numbers and what would fit, unless need(**given) bytes fit into the
    room.

    given: the settings that can be lowered, by name, the most harmless first. steps: the numbers of
    which some must be multiples. phrases: functions that say otherwise how to set one."""
    if (needed := need(**given)) <= room:
        return
    remedies = []
    for key, value in given.items():
        step = dict(steps).get(key, 1)
        if fits := largest(lambda n, key=key: need(**given | {key: n}), value, room, step):
            say = dict(phrases).get(key, f"--{key}={{}}".format)
            remedies.append(say(fits))
    would = f"{' or '.join(remedies[:3])} would fit"
    if not remedies:
        several = " and ".join(key for key, value in given.items() if value > 1)
        would = f"lower {several}" if several else "it takes a larger machine"
    raise ValueError(f"{what} needs about {shown(needed)}, and {shown(room)} are free: {would}")


def new_model(c: NeoXConfig) -> NeoX:
    """NeoX(c), on the CPU. ValueError where memory does not suffice, as for a config.json that
    somebody made up."""
    shape = f"{c.n_layer} layers, {c.n_embd} wide, vocabulary {c.vocab_size}"
    what = f"a model of {shape}, context {c.block_size},"
    require(what, lambda: model_bytes(c), free("cpu"))
    return NeoX(c)


def check_training(c: NeoXConfig, cfg, new: bool):
    """ValueError where a model like this cannot be trained here with these settings. Under torchrun
    all processes must call it. new: whether the settings say which shape the model has."""
    device = devices.pick(cfg.device)
    dtype = str(devices.training_dtype(device, cfg.dtype))[6:]
    kept = state_kept(c, cfg)
    room = free(device)
    if device != "cuda":  # which each process has for itself
        room = room // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) + held() - LIBRARIES
    room = -int(max(distributed.agree(-room)))  # asked before any of them takes some

    def need(**changes):
        setting = types.SimpleNamespace(**vars(cfg) | changes)
        shape = dict(n_layer=changes.get("n_layer", c.n_layer), block_size=setting.block_size)
        if "n_embd" in changes:
            shape |= dict(n_embd=setting.n_embd, n_inner=0, rotary_pct=0.0)
        return training_run(replace(c, **shape), setting, kept, dtype, device)

    def smaller_batch(fits):
        """The same number of tokens a step, in smaller batches."""
        size = next(n for n in range(fits, 0, -1) if cfg.batch_size % n == 0)
        return f"--batch_size={size} --grad_accum={cfg.grad_accum * cfg.batch_size // size}"

    given = {name: getattr(cfg, name) for name in ("batch_size", "eval_iters", "block_size")}
    given |= {"sample_tokens": cfg.sample_tokens} if cfg.sample_prompt else {}
    given |= {"n_layer": c.n_layer, "n_embd": c.n_embd} if new else {}
    steps, phrases = {"n_embd": 16 * c.n_head}, {"batch_size": smaller_batch}
    if not cfg.checkpoint_activations:
        given = {"checkpoint_activations": 0, **given}
    require("this training", need, room, steps, phrases, **given)
    if device == "cpu" and 2 * need(**given) > room:
        devices.keep_freed_memory(False)


def training_run(c: NeoXConfig, cfg, kept: Kept, dtype: str, device: str) -> int:
    """Bytes at the worst moment of a whole training: in a step, in an evaluation, and on a CPU in
    the export, which holds the file twice, or when the fast forms are tried on a twin of the model,
    in float64: the twin, its gradients, and those that they are compared with."""
    shards = int(os.environ["WORLD_SIZE"]) if cfg.shard else 1
    if edited():
        return 2 * model_bytes(c) // shards + 4 * cfg.batch_size * c.block_size * c.n_embd
    step = training(c, cfg, kept, dtype, device, shards)
    held = 4 * count_parameters(c).total // shards + step["optimizer"]
    sampling = generation(c, 1, 1, cfg.sample_tokens, 4, device) if cfg.sample_prompt else 0
    starts = 16 * cfg.eval_iters * cfg.batch_size  # of the windows that an evaluation reads
    tokens = cfg.batch_size * c.block_size
    logits = 8 * min(MAX_LOGITS[device], tokens * c.vocab_size)  # and in float32 once more
    most = max(step["total"], held + sampling, held + starts + 8 * tokens * c.n_embd + logits)
    if device == "cpu":
        small, tokens = twin(c), min(c.block_size, 512)
        kept_by_twin = c.n_layer * block_bytes(small, tokens, 8, "cpu")[0]
        trial = 8 * 3 * count_parameters(small).total + kept_by_twin
        exported = 8 * count_parameters(c).total * (c.activation != "swiglu")
        most = max(most + LATER, held + exported + LATER, model_bytes(c) + trial)
    return most


def check_generation(model: NeoX, rows: int, prompt: int, new: int):
    """ValueError where memory does not suffice to write so many texts together, with the settings
    of sample.py. The model is where it will write, in its dtype."""
    weight, c = next(model.parameters()), model.config
    device, size = weight.device.type, weight.element_size()

    def need(num_samples, max_new_tokens):
        return generation(c, num_samples, prompt, max_new_tokens, size, device)

    require("writing this", need, free(device), num_samples=rows, max_new_tokens=new)


# Python's objects for one text that is being written, at least: where it goes on, token ids, text.
TEXT_OBJECTS = 1000


def check_evaluation(model: NeoX, dtype: torch.dtype, rows: int, texts: dict[str, int], cfg):
    """ValueError where memory does not suffice to evaluate a model. dtype: of the copy that
    writes. rows: texts that are written together. texts: for each setting that says how many
    texts, the texts for each one of its number."""
    c, device = model.config, next(model.parameters()).device.type
    prompt = c.block_size * 3 // 4

    def need(max_new_tokens=1, **counts):
        count = max([texts[key] * value for key, value in counts.items()], default=0)
        together = min(rows, count)
        written = generation(c, together, prompt, max_new_tokens, dtype.itemsize, device)
        copy = model.num_params() * dtype.itemsize
        return copy + bool(count) * written + TEXT_OBJECTS * count

    given = {key: getattr(cfg, key) for key in texts}
    given |= {"max_new_tokens": cfg.max_new_tokens} if texts else {}
    require("this evaluation", need, free(device), **given)

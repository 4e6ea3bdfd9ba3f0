"""Train on more than one device: torchrun starts a process for each, and every one runs train.py.

    torchrun --nproc_per_node=2 train.py config/python_t4.py             # whole models (DDP)
    torchrun --nproc_per_node=2 train.py config/python_t4.py --shard     # slices of them (FSDP2)

On two machines, with --node_rank=0 on the first and 1 on the second:

    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=1 --master_addr=FIRST --master_port=29500 \
        train.py config/python_t4.py --grad_accum=8

Each has its own copy of the data set. Only the first writes a run, and sends what it resumes from.

The processes share the grad_accum batches of a step, so that together they do what one does alone.
Without torchrun every function here returns what it was given.
"""

from parts.start import say, speaks

import inspect
import json
import math
import os
import platform
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from model import NeoX
from parts import configurator

# Optimizers that treat every number by itself, so that a slice of a matrix is as good as the whole.
SHARDABLE = ("adamw", "adam", "sgd", "lion", "schedulefree")
PATIENCE = 1800  # seconds in which all processes must have come, as torch has it
CHUNK = 2**26  # bytes of a file that are sent at once


def running() -> bool:
    return dist.is_available() and dist.is_initialized()


def join(cfg, device: str) -> tuple[int, int]:
    """(rank, number of processes) among those that torchrun started; (0, 1) without it. Only rank 0
    prints. Ends the script where the settings or the environment do not suit several processes."""
    if "RANK" not in os.environ:
        if cfg.shard:
            configurator.die(
                "--shard divides the model among processes: "
                "torchrun --nproc_per_node=N train.py ..."
            )
        return 0, 1
    rank, world, local = place()
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), torch.cuda.device_count()
    if device == "cuda" and here > gpus:
        configurator.die(f"{here} processes need a GPU each, not {gpus}: --nproc_per_node={gpus}")
    if cfg.grad_accum % world:
        configurator.die(
            f"grad_accum={cfg.grad_accum} must be a multiple of the {world} processes, "
            f"which share its batches; use --grad_accum={world}"
        )
    if cfg.shard and cfg.optimizer not in SHARDABLE:
        configurator.die(
            f"--shard cuts matrices apart, which optimizer={cfg.optimizer} needs whole; "
            f"use one of {', '.join(SHARDABLE)}"
        )
    if rank:
        sys.stdout = open(os.devnull, "w")
    if device == "cuda":
        torch.cuda.set_device(local)
    from torch.distributed.rendezvous import rendezvous  # which some builds of torch lack

    try:
        store = meet(next(rendezvous("env://"))[0], rank, world)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (ValueError, RuntimeError) as error:
        configurator.die(f"the {world} processes do not find each other: {error}")
    if (machines := int(os.environ.get("GROUP_WORLD_SIZE", 1))) > 1:
        say(f"{machine()} has joined: {machines} machines, {world} processes")
    return rank, world


def meet(store, rank: int, world: int):
    """The store of these processes alone. RuntimeError if not all of them come.

    After a restart torchrun's store still has what the processes before wrote, and whoever reads
    their addresses waits for them for half an hour. torchrun's count of restarts does not tell them
    apart: a machine that was started again counts from 0. So each process asks under a name that
    nobody had before, and rank 0 answers."""
    if rank:
        name = uuid.uuid4().hex
        store.set(f"{rank} asks", name)
        ours = store.get(f"answer to {name}").decode()
        store.set(f"{rank} heard {ours}", "")
        return dist.PrefixStore(ours, store)
    ours, missing, end = uuid.uuid4().hex, set(range(1, world)), time.monotonic() + PATIENCE
    while missing:
        for other in sorted(missing):
            if store.check([f"{other} asks"]):
                store.set(f"answer to {store.get(f'{other} asks').decode()}", ours)
            if store.check([f"{other} heard {ours}"]):
                missing.remove(other)
        if time.monotonic() > end:
            raise RuntimeError(f"{len(missing)} have not come in {PATIENCE // 60} minutes")
        time.sleep(0.01)
    return dist.PrefixStore(ours, store)


def place() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine), as torchrun tells them. Ends the script if
    they make no sense, as when somebody sets RANK alone."""
    told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    whole = all(value.isdecimal() for value in told.values())
    if not whole or int(told["RANK"]) >= int(told["WORLD_SIZE"]):
        os.environ.pop("LOCAL_RANK", None)  # so that every process says so
        found = ", ".join(f"{name}={value or 'nothing'}" for name, value in told.items())
        configurator.die(
            f"the environment speaks of several processes, but {found} do not fit together; start "
            "them with torchrun --nproc_per_node=N train.py ..., or one alone after: unset RANK"
        )
    return tuple(map(int, told.values()))


def machine() -> str:
    """Which of torchrun's machines this is, with its name."""
    return f"machine {os.environ.get('GROUP_RANK', '0')} ({platform.node()})"


def restarted() -> bool:
    """Whether torchrun --max_restarts has started the processes once more, after one has died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def together():
    """What ends one process in the block ends all. A ValueError or OSError is a person's mistake,
    as in `configurator.mistakes`; the first process that has met one tells it."""
    ended = None
    try:
        yield
    except (ValueError, OSError, SystemExit) as error:
        ended = error
    rank = dist.get_rank() if running() else 0
    mistake = ended is not None and not isinstance(ended, SystemExit)
    failed, first = agree(ended is not None, -rank if mistake else -math.inf)
    if failed and first > -math.inf:
        where, text = gather([machine(), str(ended)])[int(-first)]
        if first == -rank:
            configurator.tell(ended)
        elif where != machine() and speaks():
            # What all have met alike, such as differing settings, names the machines itself.
            configurator.tell(text if text == str(ended) else f"on {where}: {text}")
    if failed:
        raise SystemExit(ended.code if ended and not mistake else 2)


@contextmanager
def ends_with_its_peers():
    """One line, not a traceback, if another process of the training is gone."""
    try:
        yield
    except RuntimeError as error:  # of NCCL a DistError; gloo's errors have no class of their own
        gone = isinstance(error, dist.DistError) or "by peer" in str(error)
        if not running() or not gone:
            raise
        say("another process of this training has ended, so this one ends too")
        raise SystemExit(1) from None


def leave():
    if running():
        dist.destroy_process_group()


def spread(model: NeoX, cfg, device: str, world: int) -> torch.nn.Module:
    """The model as the processes train it together. A sharded one is changed in place, and is on
    the CPU until then."""
    agree(0)  # nobody writes to the run's folder before all have read it
    if not cfg.shard:
        wrap = torch.nn.parallel.DistributedDataParallel
        known = inspect.signature(wrap.__init__).parameters
        # The rotary tables are the same everywhere: they need not be sent in every forward. torch
        # has renamed this setting.
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return wrap(model, gradient_as_bucket_view=True, **{sync: False})
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(device, (world,))
    for layer in model.gpt_neox.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # what is in no block: both tables and the last norm


def set_gradient_sync(forward, now: bool):
    """Whether the next backward averages the gradients over the processes, or only adds to each
    one's own."""
    if hasattr(forward, "set_requires_gradient_sync"):
        forward.set_requires_gradient_sync(now)
    elif running():
        forward.require_backward_grad_sync = now


def agree(*values: float) -> list[float] | tuple[float, ...]:
    """The largest of each value over all processes: their clocks and signals differ, and all must
    leave the loop at the same step."""
    if not running():
        return values
    values = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def gather(value) -> list:
    """What each process has, by rank: a plain value, as JSON has it."""
    if not running():
        return [value]
    text = json.dumps(value).encode()
    size = int(agree(len(text))[0])
    mine = torch.frombuffer(bytearray(text.ljust(size)), dtype=torch.uint8)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return [json.loads(bytes(text.numpy())) for text in found]


def refuse_differences(about: dict):
    """ValueError where another process has other values than rank 0. All call it at once."""
    places, facts = zip(*gather([machine(), about]))
    for where, other in zip(places, facts):
        for key, value in facts[0].items():
            if other.get(key) != value:
                raise ValueError(
                    f"{key} is {value} on {places[0]}, but {other.get(key)} on {where}; all need "
                    "the same"
                )


def send_file(path: Path | None, to: Path | None):
    """Copy rank 0's file `path` to `to` of each process that gives one. All call it at once; a disk
    that fails is an OSError when all is through, so that nobody waits for the rest."""
    failed = None
    rank, size = dist.get_rank(), agree(path.stat().st_size if path else 0)[0]
    file = open(path if rank == 0 else to or os.devnull, "rb" if rank == 0 else "wb")
    with file:
        for start in range(0, int(size), CHUNK):
            block = torch.zeros(min(CHUNK, int(size) - start), dtype=torch.uint8)
            try:
                if rank == 0:
                    file.readinto(block.numpy())
                dist.broadcast(block, 0)
                if rank:
                    file.write(block.numpy())
            except OSError as error:
                failed = failed or error
    if failed:
        raise failed


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over all processes, in place."""
    if running():
        dist.all_reduce(tensor.div_(dist.get_world_size()))
    return tensor


def whole(value):
    """A state_dict with its slices put together, on the CPU of rank 0. All must call it at once."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if not hasattr(value, "full_tensor"):
        return value
    full = value.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else None


def slice_state(optimizer, state: dict) -> dict:
    """The inverse of `whole`: an optimizer's state_dict, each tensor cut as its parameter is."""
    from torch.distributed.tensor import distribute_tensor

    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        p = params[number]
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                values[key] = distribute_tensor(
                    value.to(p.device), p.device_mesh, p.placements, src_data_rank=None
                )
    return state


def single(model: NeoX) -> NeoX | None:
    """The model itself; of a sharded one, a copy in one piece on the CPU of rank 0, None on the
    others."""
    if not hasattr(model, "set_requires_gradient_sync"):
        return model
    state = whole(model.state_dict())
    if dist.get_rank() == 0:
        copy = NeoX(model.config)
        copy.load_state_dict(state)
        return copy

"""Train a GPT-NeoX model: one plain loop, top to bottom.

    python train.py config/python_cpu.py --lr=1e-3
    python train.py config/python_cpu.py --init_from=resume
    torchrun --nproc_per_node=2 train.py config/python_t4.py         # the same training on two GPUs

Reads data/<dataset> (made by a script in prepare/) and writes out_dir: ckpt.pt, run.json, metrics.jsonl, loss.png, and at the
end model.safetensors, config.json and the tokenizer's files, as Hugging Face's transformers loads them.
"""

import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

# Read when torch starts: less of a GPU's memory lost between blocks; huge pages on Linux: a CPU step took 0.94 to 0.98; and
# torch.compile's cache for gradients written by hand too: 9 s to the first step, not 14. (It sees when one of them is edited.)
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")

import numpy as np
import torch
from tqdm import tqdm

from parts import configurator
from parts import distributed
import eval as evaluation
import optim
from parts import tokenizer as tokenizers
from parts import tracking
from model import NeoX, NeoXConfig, load_checkpoint, matmul_peak, native_dtype

MAX_BAD_STEPS = 20  # in a row without a finite gradient; float16 may need a dozen at first, to find its loss scale


class Settings:
    _presets = {"optimizer": optim.PRESETS}  # the defaults below are AdamW's

    # Data and run
    dataset = "python"  # a folder under data/, made by a script in prepare/
    out_dir = "out/python"  # folder for checkpoints, metrics and the plot
    init_from = "scratch"  # scratch, resume, auto (resume if there is a run), or a Hugging Face folder or hub name to start from
    seed = 1337  # initial weights, batches and dropout follow from it
    # Model (from scratch; weights that come from elsewhere bring their own)
    n_layer = 6  # blocks
    n_head = 8  # attention heads a block
    n_embd = 256  # width of the residual stream
    block_size = 256  # context length in tokens
    dropout = 0.0  # share of activations dropped; pays only when the data are seen many times
    rotary_pct = 0.25  # share of each head that is rotated by position
    rotary_base = 10000.0  # longest wavelength of that rotation, in tokens / 2 pi
    parallel_residual = True  # attention and MLP side by side, as in GPT-NeoX; False: one after the other, as in GPT-2
    tie_embeddings = False  # share the input table with the output head
    activation = "gelu"  # gelu, gelu_fast, or swiglu, with which nothing is exported to Hugging Face
    # Training
    batch_size = 16  # sequences in one forward pass
    grad_accum = 1  # forward passes in one step; a step sees batch_size * grad_accum * block_size tokens
    max_iters = 2000  # steps
    max_minutes = 0.0  # end, and finish the schedule, after so much training time if that comes first; 0: no limit
    optimizer = "adamw"  # a name in optim.py: adamw, adam, sgd, lion, adafactor, cautious, schedulefree, muon, soap
    lr = 1e-3  # peak learning rate
    min_lr = 1e-4  # learning rate at the end
    lr_schedule = "cosine"  # a name in optim.py: cosine, linear, wsd, constant, inv_sqrt
    warmup_iters = 100  # steps of linear warmup
    weight_decay = 0.1  # of matrices; biases and norms have none
    decay_embeddings = True  # of the input table and the output head too
    beta1 = 0.9  # AdamW's memory of the gradient, and its relatives'
    beta2 = 0.95  # AdamW's memory of its square
    momentum = 0.95  # Muon's and SGD's memory of the gradient; less in short runs
    grad_clip = 1.0  # largest norm of the gradient; 0: no limit
    # Machine
    device = "auto"  # auto, cpu, cuda, mps
    dtype = "auto"  # of matrix products: auto, float32, bfloat16, float16; weights stay in float32
    checkpoint_activations = False  # compute activations twice instead of keeping them: a third more work, far less memory
    shard = False  # under torchrun: divide weights and optimizer among the processes (FSDP2), for models too large for one
    compile = True  # torch.compile: 10 to 60 s once; on a CPU steps are no faster then, on a GPU not measured
    # Watching and keeping
    eval_interval = 200  # steps between evaluations, each with a checkpoint, a plot and a sample; 0: only at the end
    eval_iters = 20  # batches in an evaluation, the same every time
    log_interval = 10  # steps between lines of metrics.jsonl
    save_interval = 0  # steps between checkpoints besides those of evaluations; 0: none
    save_minutes = 10.0  # and minutes since the last; 0: none
    keep = 2  # checkpoints to keep: ckpt.pt, and before it ckpt.1.pt, ...; a damaged one is passed over when resuming
    save_best = False  # also keep best.pt, the checkpoint with the lowest validation loss
    eval_tasks = ""  # tasks of eval.py at each of them, such as completion,mine (4 s on two cores), with 25 cuts of a kind; empty: none
    sample_prompt = ""  # text to continue at each evaluation; empty: no sample
    sample_tokens = 100  # its length
    wandb = False  # follow the run in Weights & Biases; its own variables, such as WANDB_MODE=offline, hold
    mlflow = False  # follow the run in MLflow: mlflow.db in this folder, or MLFLOW_TRACKING_URI
    tracker_wait = 60.0  # seconds that a tracker may take at the end before it is left behind


def pick_device(cfg):
    """The device, and the dtype of matrix products: bfloat16 where it is native, float16 on older GPUs, else float32."""
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available() or device == "mps" and not torch.backends.mps.is_available():
        configurator.die(f"device={device} is not available here; use --device=auto")
    return device, native_dtype(device) if cfg.dtype == "auto" else getattr(torch, cfg.dtype)


def keep_freed_memory():
    """Have the C library keep large blocks that are freed: a CPU training step without torch.compile frees hundreds of MB,
    and handing them back to the system and fetching them anew made it 1.3 times as long. Linux with glibc; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def open_dataset(cfg):
    """The folder, its meta.json, and {"train", "val"}: memory-mapped token ids. Ends the script where they are unusable."""
    folder = configurator.ROOT / "data" / cfg.dataset
    script = cfg.dataset.split("_")[0] if cfg.dataset.split("_")[0] in ("shakespeare", "go") else "python"
    option = {"shakespeare_bpe": " --tokenizer=bpe", "shakespeare_char": "", script: ""}.get(cfg.dataset, f" --out={cfg.dataset}")
    hint = f"make it with: python prepare/{script}.py{option}"
    if not (folder / "meta.json").is_file():
        configurator.die(f"there is no data set {folder}; {hint}")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = meta["vocab_size"], meta["val"]["bytes"], meta["val"]["tokens"]
    except (ValueError, KeyError, TypeError) as error:
        configurator.die(f"{folder / 'meta.json'} is damaged ({error!r}); {hint}")
    data = {}
    for split in ("train", "val"):
        file = folder / f"{split}.bin"
        if not file.is_file() or file.stat().st_size % 2:
            configurator.die(f"{file} is missing or cut short; {hint}")
        if file.stat().st_size // 2 <= cfg.block_size:
            configurator.die(f"{file} has too few tokens ({file.stat().st_size // 2}) for block_size={cfg.block_size}")
        data[split] = np.memmap(file, dtype="<u2", mode="r")
        if data[split].max() >= sizes[0]:
            configurator.die(f"{file} holds token {data[split].max()}, past vocab_size={sizes[0]} in meta.json; {hint}")
    return folder, meta, data


def get_batch(data, starts, block_size, device):
    """Tokens x and the ones that follow them y, both (B, T) int64, from B starting positions."""
    window = data[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    batch = torch.from_numpy(window)
    if device == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    else:
        batch = batch.to(device)
    return batch[:, :-1], batch[:, 1:]


def train_starts(cfg, step, micro, length):
    """Where the sequences of a batch start: a pure function of seed and step, so that a resumed run sees the same ones."""
    return np.random.default_rng((cfg.seed, step, micro)).integers(length - cfg.block_size, size=cfg.batch_size)


@torch.no_grad()
def evaluate(model, data, cfg, device, autocast):
    """Mean loss in nats per token over eval_iters batches, evenly spaced over the split and the same at every call."""
    model.eval()
    starts = np.linspace(0, len(data) - cfg.block_size - 1, cfg.eval_iters * cfg.batch_size).astype(np.int64)
    total = torch.zeros((), device=device)
    for part in np.split(starts, cfg.eval_iters):
        with autocast():
            total += model(*get_batch(data, part, cfg.block_size, device))
    model.train()
    return total.item() / cfg.eval_iters


def compiled(model, batch, autocast):
    """torch.compile's version of the model, or the model itself where it does not work: tried on a batch, gradients included."""
    try:
        fast = torch.compile(model)
        with autocast():
            fast(*batch).backward()
        return fast
    except Exception as error:  # no C++ compiler, an unsupported Python or GPU, ...: each backend has its own
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        print(f"torch.compile does not work here, going on without it, slower: {type(error).__name__}: {reason}")
        return model
    finally:
        model.zero_grad(set_to_none=True)


def write_whole(path, write, keep=1):
    """Call write(temporary path), then move the file into place: at every moment `path` is the old file or the new one, or with
    keep > 1, for an instant, path.1 is the old one. That many versions are kept: path, path.1, ... before the suffix."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    versions = [path, *(path.with_suffix(f".{n}{path.suffix}") for n in range(1, keep))]
    for older, newer in reversed(list(zip(versions[1:], versions))):
        if newer.exists():
            os.replace(newer, older)
    os.replace(temporary, path)


def checkpoints(out):
    """The checkpoints of a run's folder, newest first: ckpt.pt, ckpt.1.pt, ..."""
    older = [file for file in out.glob("ckpt.*.pt") if file.suffixes[0][1:].isdigit()]
    return [file for file in (out / "ckpt.pt",) if file.is_file()] + sorted(older, key=lambda file: int(file.suffixes[0][1:]))


def newest_checkpoint(out):
    """The newest checkpoint that is whole, and its file. ValueError if there is none."""
    files = checkpoints(out)
    if not files:
        raise ValueError(f"there is nothing to resume: {out / 'ckpt.pt'} does not exist; leave --init_from out to start")
    for file, older in zip(files, [*files[1:], None]):
        try:
            return load_checkpoint(file), file
        except ValueError as error:
            if not older:
                raise
            print(f"{error}; going on from {older.name}")


def read_metrics(out, step):
    """The lines of metrics.jsonl up to a step; later ones will be made again. One cut short is left out."""
    metrics = []
    with contextlib.suppress(FileNotFoundError):
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                metrics.append(json.loads(line))
    return [m for m in metrics if m["step"] <= step]


def write_metrics(out, metrics, only_last=False):
    """metrics.jsonl, or where all but the last line stand there already, that one."""
    file, line = out / "metrics.jsonl", lambda m: json.dumps(m) + "\n"
    if only_last and file.exists():
        with open(file, "a", encoding="utf-8") as log:
            log.write(line(metrics[-1]))
    else:
        write_whole(file, lambda temporary: temporary.write_text("".join(map(line, metrics)), encoding="utf-8"))


def fill_folder(out, tokenizer, about):
    """What a run's folder holds besides checkpoints and metrics: the tokenizer, and how the run came about."""
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        tokenizer.save(out)
    write_whole(out / "run.json", lambda temporary: temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"))


def plot(metrics, path):
    """loss.png from metrics.jsonl. A plot is a nicety: if it fails, say so and go on."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 5))
        for key, style in (("loss", dict(lw=1, alpha=0.6)), ("val_loss", dict(lw=2, marker="o", ms=3))):
            points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
            if points:
                axes.plot(*zip(*points), label={"loss": "train", "val_loss": "validation"}[key], **style)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=path.parent.name)
        axes.legend()
        axes.grid(alpha=0.3)
        write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight"))
        plt.close(figure)
    except Exception as error:
        tqdm.write(f"no plot: {type(error).__name__}: {error}")


def main():
    cfg = configurator.load(Settings)
    configurator.require(
        cfg, ("batch_size", "grad_accum", "max_iters", "eval_iters", "log_interval", "keep", "lr"),
        dtype=["auto", "float32", "bfloat16", "float16"], device=["auto", "cpu", "cuda", "mps"],
        optimizer=list(optim.OPTIMIZERS), lr_schedule=list(optim.SCHEDULES),
    )  # fmt: skip
    if cfg.min_lr > cfg.lr:
        configurator.die(f"min_lr={cfg.min_lr} is above lr={cfg.lr}")
    if max(cfg.beta1, cfg.beta2, cfg.momentum) >= 1:
        configurator.die(f"beta1={cfg.beta1}, beta2={cfg.beta2} and momentum={cfg.momentum} must be below 1")
    device, dtype = pick_device(cfg)
    if device == "cpu":
        keep_freed_memory()
    tasks, exam = evaluation.chosen(cfg.eval_tasks), configurator.load(evaluation.Settings, ["--num_completions=25", "--show=0"])
    rank, world = distributed.join(cfg, device)
    out = configurator.ROOT / cfg.out_dir

    # The model: from scratch, from this run's last checkpoint, or from somebody's weights.
    torch.manual_seed(cfg.seed)
    torch.set_float32_matmul_precision("high")
    folder, meta, data = open_dataset(cfg)
    with configurator.mistakes():
        tokenizer = tokenizers.load(folder)
        checkpoint, file = None, None
        if cfg.init_from == "resume" or cfg.init_from == "auto" and checkpoints(out):
            checkpoint, file = newest_checkpoint(out)
            model = NeoX.from_checkpoint(checkpoint)
            for key in ["optimizer", *(NeoXConfig.__dataclass_fields__.keys() & vars(cfg).keys())]:
                first = (checkpoint["settings"] | checkpoint["model_config"])[key]
                if getattr(cfg, key) != first:
                    raise ValueError(f"{key}={getattr(cfg, key)} does not fit the run in {out}, which began with {first}")
            if (out / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes():
                raise ValueError(f"the run in {out} was trained with another tokenizer than data set {cfg.dataset} has now")
        elif cfg.init_from in ("scratch", "auto"):
            keys = NeoXConfig.__dataclass_fields__.keys() & vars(cfg).keys()
            model = NeoX(NeoXConfig(vocab_size=meta["vocab_size"], **{key: getattr(cfg, key) for key in keys}))
        else:
            model = NeoX.from_pretrained(cfg.init_from)
        if meta["vocab_size"] > model.config.vocab_size:
            raise ValueError(f"the data set's vocabulary of {meta['vocab_size']} does not fit the model's {model.config.vocab_size}")
        if cfg.block_size > model.config.block_size:
            raise ValueError(f"block_size={cfg.block_size} does not fit the model's context of {model.config.block_size}")
        if tasks and rank == 0:
            ready = evaluation.prepared(tokenizer, data["val"], tasks, exam)
        if cfg.sample_prompt:
            prompt = tokenizer.encode(cfg.sample_prompt, special=True)
            start = [] if tokenizer.eot is None else [tokenizer.eot]  # as every document of the data begins
    if not cfg.shard:  # a sharded one need not fit there
        model.to(device)
    model.checkpoint_activations = cfg.checkpoint_activations
    parallel = model if world == 1 and not cfg.shard else distributed.spread(model, cfg, device, world)
    with configurator.mistakes():
        optimizers = optim.build(model, cfg)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    # The run's folder. A new run does not overwrite the last one: that is set aside.
    step, tokens, best_loss, elapsed, metrics = 0, 0, math.inf, 0.0, []
    about = tracking.describe(cfg, meta)
    with configurator.mistakes():
        if checkpoint:
            try:
                for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
                    optimizer.load_state_dict(distributed.slice_state(optimizer, state) if cfg.shard else state)
                scaler.load_state_dict(checkpoint["scaler"])
                step, tokens, best_loss, elapsed = (checkpoint[key] for key in ("step", "tokens", "best_loss", "elapsed"))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{file} does not fit --optimizer={cfg.optimizer}: {error}") from None
            metrics = read_metrics(out, step)
            print(f"going on from step {step}, {file}")
            if rank == 0 and file.name != "ckpt.pt":
                if (out / "ckpt.pt").exists():
                    os.replace(out / "ckpt.pt", out / "damaged.pt")
                os.replace(file, out / "ckpt.pt")
        elif rank == 0 and checkpoints(out):
            shutil.rmtree(f"{out}.old", ignore_errors=True)
            out.rename(f"{out}.old")
            print(f"{out} held a run; it is now {out.name}.old")
        if rank == 0:
            fill_folder(out, None if checkpoint else tokenizer, about)  # a resumed run has its own, which a kill could cut short
            write_metrics(out, metrics)

    unwritten = set()  # what the disk did not take, to say so once

    def attempt(what, write):
        """Write to the run's folder, as one process of all. A full disk or a folder taken away does not end the training: the
        next save tries again. False if it failed."""
        try:
            if rank == 0:
                if not (out / "tokenizer.json").exists():
                    fill_folder(out, tokenizer, about)
                write()
        except (OSError, RuntimeError) as error:  # RuntimeError: torch.save's word for a full disk
            with contextlib.suppress(OSError):
                for half in out.glob("*.tmp"):
                    half.unlink()
            if what not in unwritten:
                tqdm.write(f"{what} could not be written, training goes on: {error.__context__ or error}")
            unwritten.add(what)
            return False
        unwritten.discard(what)
        return True

    def save(name, keep=1):
        optim.averaged(optimizers, True)  # what is kept is what is evaluated; the next step takes up the others again
        state = {
            "model": distributed.whole(model.state_dict()), "optimizers": [distributed.whole(o.state_dict()) for o in optimizers],
            "scaler": scaler.state_dict(), "step": step, "tokens": tokens, "best_loss": best_loss, "elapsed": elapsed,
            "settings": vars(cfg), "model_config": asdict(model.config),
        }  # fmt: skip
        if rank == 0 and not all(bool(tensor.isfinite().all()) for tensor in state["model"].values()):
            tqdm.write(f"step {step}: weights that are not finite are not saved; {name} stays as it was")
            return False
        return attempt(name, lambda: write_whole(out / name, lambda temporary: torch.save(state, temporary), keep))

    def record(**values):
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}  # JSON has no infinity
        metrics.append({"step": step, **finite})
        attempt("metrics.jsonl", lambda: write_metrics(out, metrics, only_last="metrics.jsonl" not in unwritten))

    # Ctrl-C, and SIGTERM when a machine is taken away: finish the step, save, leave. A second signal ends at once.
    stop = []
    def request_stop(number, frame):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        if rank == 0:
            print("\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)
    signal.signal(signal.SIGINT, request_stop)
    signal.signal(signal.SIGTERM, request_stop)

    autocast = contextlib.nullcontext
    if dtype != torch.float32:
        autocast = lambda: torch.autocast(device, dtype)  # noqa: E731
    tokens_per_step = cfg.batch_size * cfg.grad_accum * cfg.block_size
    bits_per_byte = meta["val"]["tokens"] / meta["val"]["bytes"] / math.log(2)  # times nats per token
    peak, flops = matmul_peak(device, dtype) * world, model.flops_per_token()
    print(f"{model.num_params() / 1e6:.2f}M parameters, {len(data['train']) / 1e6:.1f}M tokens to train on, {tokens_per_step:,} a step, "
          f"{f'{world} x ' * (world > 1)}{device} {str(dtype)[6:]}, peak {peak / 1e12:.2f} TFLOP/s")  # fmt: skip
    model.train()
    batch = lambda step, micro: get_batch(  # noqa: E731
        data["train"], train_starts(cfg, step, micro, len(data["train"])), cfg.block_size, device)
    forward = compiled(parallel, batch(step, 0), autocast) if cfg.compile else parallel
    trackers = [tracking.start(name, out) for name in ("wandb", "mlflow") if getattr(cfg, name) and rank == 0]

    bar = tqdm(total=None if cfg.max_minutes else cfg.max_iters, initial=step, unit="step", dynamic_ncols=True,
               disable=True if rank else None)  # fmt: skip
    evaluated = max((m["step"] for m in metrics if "val_loss" in m), default=-1)
    saved, saved_at, bad_steps = step, time.perf_counter(), 0
    summed, since, began = torch.zeros((), device=device), step, time.perf_counter()
    while True:
        # How far the run is, by steps or by the clock. The clock stands still during evaluations.
        progress = step / cfg.max_iters
        if cfg.max_minutes:
            progress = max(progress, (elapsed + time.perf_counter() - began) / (60 * cfg.max_minutes))
        stale = cfg.save_minutes and time.perf_counter() - saved_at > 60 * cfg.save_minutes
        progress, stopping, stale = distributed.agree(progress, bool(stop), bool(stale))
        ending = progress >= 1 or stopping or bad_steps == MAX_BAD_STEPS
        saving = step > saved and (stopping or stale or cfg.save_interval and step % cfg.save_interval == 0)

        if step > since and (step % cfg.log_interval == 0 or ending or saving):
            loss = distributed.mean(summed).item() / (step - since)
            seconds = time.perf_counter() - began
            speed = (step - since) * tokens_per_step / seconds
            elapsed += seconds
            memory = {"gpu_memory_gb": torch.cuda.max_memory_allocated() / 2**30} if device == "cuda" else {}
            record(tokens=tokens, loss=loss, lr=lr, grad_norm=norm, tokens_per_s=speed,
                   mfu=speed * flops / peak, loss_scale=scaler.get_scale(), elapsed=elapsed, **memory)  # fmt: skip
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tok/s, MFU {speed * flops / peak:.0%}", refresh=False)
            summed, since, began = torch.zeros((), device=device), step, time.perf_counter()
        if bad_steps == MAX_BAD_STEPS:
            configurator.die(f"{bad_steps} steps in a row, up to step {step}, had no finite gradient; lower --lr or --grad_clip, then "
                             + (f"--init_from=resume goes on from step {saved}" if checkpoints(out) else "start again"))

        evaluating = step > evaluated and not stopping and (progress >= 1 or cfg.eval_interval and step % cfg.eval_interval == 0)
        if evaluating:
            elapsed += time.perf_counter() - began
            optim.averaged(optimizers, True)
            val_loss = evaluate(model, data["val"], cfg, device, autocast)
            writer, scores = distributed.single(model) if cfg.sample_prompt or tasks else None, {}
            if tasks and rank == 0:
                try:
                    scores = evaluation.measure(writer, tokenizer, data["val"], meta, tasks, exam, ready)
                except Exception as error:  # worth a word, not a training
                    tqdm.write(f"step {step}: no eval_tasks: {type(error).__name__}: {error}")
            record(val_loss=val_loss, bits_per_byte=val_loss * bits_per_byte, **{f"eval_{key}": score for key, score in scores.items()})
            best, best_loss, evaluated = val_loss < best_loss, min(val_loss, best_loss), step
        if saving or evaluating:
            if save("ckpt.pt", cfg.keep):
                saved = step
            if evaluating and best and cfg.save_best:
                save("best.pt")
            saved_at = began = time.perf_counter()
        if evaluating:
            if rank == 0:
                plot(metrics, out / "loss.png")
            tqdm.write(f"step {step}: validation loss {val_loss:.4f}, {val_loss * bits_per_byte:.4f} bits per byte, "
                       f"{tokens / 1e6:.2f}M tokens, {elapsed:.0f} s of training")  # fmt: skip
            if scores:
                evaluation.plot_scores(metrics, out / "scores.png")
                tqdm.write(", ".join(f"{key} {score:.3g}" for key, score in scores.items()))
            if cfg.sample_prompt and rank == 0:
                new = writer.generate([start + prompt], cfg.sample_tokens, temperature=0.8, top_k=50, stop_ids=[tokenizer.eot], seed=cfg.seed)
                text = tokenizer.decode(prompt + new[0])
                record(sample=text)
                tqdm.write(f"--- {text}\n---")
            began = time.perf_counter()
        if ending:
            break

        # One step.
        optim.averaged(optimizers, False)
        lr = optim.learning_rate(cfg, step, progress)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        for micro in range(rank, cfg.grad_accum, world):
            torch.manual_seed(hash((cfg.seed, step, micro)) % 2**63)  # for dropout: a pure function of the step, like the batches
            distributed.average_gradients(parallel, micro + world >= cfg.grad_accum)  # in the last backward alone
            with autocast():
                loss = forward(*batch(step, micro)) / (cfg.grad_accum / world)
            scaler.scale(loss).backward()
            summed += loss.detach()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
        norm = (norm.full_tensor() if cfg.shard else norm).item()  # waits for the device, to leave out what is not finite
        bad_steps = 0 if math.isfinite(norm) else bad_steps + 1
        if math.isfinite(norm):
            for optimizer in optimizers:
                scaler.step(optimizer)
        scaler.update()
        model.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + tokens_per_step
        bar.update()

    bar.close()
    writer = distributed.single(model)

    def export():
        try:
            writer.save_pretrained(out, eot=tokenizer.eot, dataset=cfg.dataset)
        except ValueError as error:  # Hugging Face's GPT-NeoX lacks what this model has
            print(f"not exported: {error}")

    exported = attempt("the exported model", export)
    distributed.leave()
    how, wait = ("stopped", min(cfg.tracker_wait, 10)) if stopping else ("finished", cfg.tracker_wait)  # a machine taken away waits for nobody
    tracking.finish(trackers, out, how, wait)
    if rank == 0 and (saved < step or not exported):
        configurator.die(f"{out} holds step {saved} of {step}: the disk did not take the rest; make room, then --init_from=resume")
    print(f"stopped at step {step}; go on with --init_from=resume" if stopping else
          f"done at step {step}; try: python sample.py --ckpt={cfg.out_dir}")  # fmt: skip
    sys.exit(128 + stop[0] if stop else 0)


if __name__ == "__main__":
    main()

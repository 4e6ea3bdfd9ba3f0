"""Train a GPT-NeoX model: one plain loop, top to bottom.

    python train.py config/python_cpu.py --lr=1e-3
    python train.py config/python_cpu.py --init_from=resume

Reads data/<dataset> (made by a script in prepare/) and writes out_dir: ckpt.pt, metrics.jsonl, loss.png, and at the end
model.safetensors, config.json and the tokenizer's files, as Hugging Face's transformers loads them.
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

import configurator
import optim
import tokenizer as tokenizers
from model import NeoX, NeoXConfig, load_checkpoint, matmul_peak, native_dtype


class Settings:
    _presets = {"optimizer": optim.PRESETS}  # the defaults below are AdamW's

    # Data and run
    dataset = "python"  # a folder under data/, made by a script in prepare/
    out_dir = "out/python"  # folder for checkpoints, metrics and the plot
    init_from = "scratch"  # scratch, resume, or a Hugging Face folder or hub name whose weights to start from
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
    compile = True  # torch.compile: 10 to 60 s once; on a CPU steps are no faster then, on a GPU not measured
    # Watching and keeping
    eval_interval = 200  # steps between evaluations, each with a checkpoint, a plot and a sample; 0: only at the end
    eval_iters = 20  # batches in an evaluation, the same every time
    log_interval = 10  # steps between lines of metrics.jsonl
    save_best = False  # also keep best.pt, the checkpoint with the lowest validation loss
    sample_prompt = ""  # text to continue at each evaluation; empty: no sample
    sample_tokens = 100  # its length


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
    hint = f"make it with: python prepare/{script}.py" + (" --tokenizer=bpe" if cfg.dataset == "shakespeare_bpe" else "")
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


def write_whole(path, write):
    """Call write(temporary path), then move the file into place: at every moment `path` is the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
        cfg, ("batch_size", "grad_accum", "max_iters", "eval_iters", "log_interval", "lr"),
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
    out = configurator.ROOT / cfg.out_dir

    # The model: from scratch, from this run's last checkpoint, or from somebody's weights.
    torch.manual_seed(cfg.seed)
    torch.set_float32_matmul_precision("high")
    folder, meta, data = open_dataset(cfg)
    with configurator.mistakes():
        tokenizer = tokenizers.load(folder)
        checkpoint = None
        if cfg.init_from == "resume":
            if not (out / "ckpt.pt").is_file():
                raise ValueError(f"there is nothing to resume: {out / 'ckpt.pt'} does not exist; leave --init_from out to start")
            checkpoint = load_checkpoint(out / "ckpt.pt")
            model = NeoX.from_checkpoint(checkpoint)
            for key in ["optimizer", *(NeoXConfig.__dataclass_fields__.keys() & vars(cfg).keys())]:
                first = (checkpoint["settings"] | checkpoint["model_config"])[key]
                if getattr(cfg, key) != first:
                    raise ValueError(f"{key}={getattr(cfg, key)} does not fit the run in {out}, which began with {first}")
            if (out / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes():
                raise ValueError(f"the run in {out} was trained with another tokenizer than data set {cfg.dataset} has now")
        elif cfg.init_from == "scratch":
            keys = NeoXConfig.__dataclass_fields__.keys() & vars(cfg).keys()
            model = NeoX(NeoXConfig(vocab_size=meta["vocab_size"], **{key: getattr(cfg, key) for key in keys}))
        else:
            model = NeoX.from_pretrained(cfg.init_from)
        if meta["vocab_size"] > model.config.vocab_size:
            raise ValueError(f"the data set's vocabulary of {meta['vocab_size']} does not fit the model's {model.config.vocab_size}")
        if cfg.block_size > model.config.block_size:
            raise ValueError(f"block_size={cfg.block_size} does not fit the model's context of {model.config.block_size}")
        if cfg.sample_prompt:
            prompt = tokenizer.encode(cfg.sample_prompt, special=True)
            start = [] if tokenizer.eot is None else [tokenizer.eot]  # as every document of the data begins
    model.to(device)
    model.checkpoint_activations = cfg.checkpoint_activations
    with configurator.mistakes():
        optimizers = optim.build(model, cfg)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    # The run's folder. A new run does not overwrite the last one: that is set aside.
    step, best_loss, elapsed, metrics = 0, math.inf, 0.0, []
    with configurator.mistakes():
        if checkpoint:
            try:
                for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
                scaler.load_state_dict(checkpoint["scaler"])
                step, best_loss, elapsed = (checkpoint[key] for key in ("step", "best_loss", "elapsed"))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{out / 'ckpt.pt'} does not fit --optimizer={cfg.optimizer}: {error}") from None
            lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            metrics = [m for m in map(json.loads, lines) if m["step"] <= step]  # later ones will be made again
        elif (out / "ckpt.pt").exists():
            shutil.rmtree(f"{out}.old", ignore_errors=True)
            out.rename(f"{out}.old")
            print(f"{out} held a run; it is now {out.name}.old")
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out)
        write_whole(out / "metrics.jsonl", lambda temporary: temporary.write_text("".join(json.dumps(m) + "\n" for m in metrics)))
        log = open(out / "metrics.jsonl", "a", buffering=1, encoding="utf-8")

    def save(name):
        optim.averaged(optimizers, True)  # what is kept is what is evaluated; the next step takes up the others again
        state = {
            "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict(),
            "step": step, "best_loss": best_loss, "elapsed": elapsed,
            "settings": vars(cfg), "model_config": asdict(model.config),
        }  # fmt: skip
        write_whole(out / name, lambda temporary: torch.save(state, temporary))

    def record(**values):
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no infinity
        metrics.append({"step": step, **finite})
        log.write(json.dumps(metrics[-1]) + "\n")

    # Ctrl-C, and SIGTERM when a machine is taken away: finish the step, save, leave. A second signal ends at once.
    stop = []
    def request_stop(number, frame):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)
    signal.signal(signal.SIGINT, request_stop)
    signal.signal(signal.SIGTERM, request_stop)

    autocast = contextlib.nullcontext
    if dtype != torch.float32:
        autocast = lambda: torch.autocast(device, dtype)  # noqa: E731
    tokens_per_step = cfg.batch_size * cfg.grad_accum * cfg.block_size
    bits_per_byte = meta["val"]["tokens"] / meta["val"]["bytes"] / math.log(2)  # times nats per token
    peak, flops = matmul_peak(device, dtype), model.flops_per_token()
    print(f"{model.num_params() / 1e6:.2f}M parameters, {len(data['train']) / 1e6:.1f}M tokens to train on, {tokens_per_step:,} a step, "
          f"{device} {str(dtype)[6:]}, peak {peak / 1e12:.2f} TFLOP/s")  # fmt: skip
    model.train()
    batch = lambda step, micro: get_batch(  # noqa: E731
        data["train"], train_starts(cfg, step, micro, len(data["train"])), cfg.block_size, device)
    forward = compiled(model, batch(step, 0), autocast) if cfg.compile else model

    bar = tqdm(total=None if cfg.max_minutes else cfg.max_iters, initial=step, unit="step", dynamic_ncols=True, disable=None)
    resumed = step if checkpoint else -1  # what was evaluated there is in the metrics already
    summed, since, began = torch.zeros((), device=device), step, time.perf_counter()
    while True:
        # How far the run is, by steps or by the clock. The clock stands still during evaluations.
        progress = step / cfg.max_iters
        if cfg.max_minutes:
            progress = max(progress, (elapsed + time.perf_counter() - began) / (60 * cfg.max_minutes))
        ending = progress >= 1 or stop

        if step > since and (step % cfg.log_interval == 0 or ending):
            loss = summed.item() / (step - since)  # reading it waits for the device, so only here
            seconds = time.perf_counter() - began
            speed = (step - since) * tokens_per_step / seconds
            elapsed += seconds
            record(tokens=step * tokens_per_step, loss=loss, lr=lr, grad_norm=norm.item(), tokens_per_s=speed,
                   mfu=speed * flops / peak, loss_scale=scaler.get_scale(), elapsed=elapsed)  # fmt: skip
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tok/s, MFU {speed * flops / peak:.0%}", refresh=False)
            if not math.isfinite(loss):
                configurator.die(f"the loss is {loss} at step {step}; lower --lr or --grad_clip, then --init_from=resume")
            summed, since, began = torch.zeros((), device=device), step, time.perf_counter()

        if stop:
            save("ckpt.pt")
        elif step > resumed and cfg.eval_interval and step % cfg.eval_interval == 0 or progress >= 1:
            elapsed += time.perf_counter() - began
            optim.averaged(optimizers, True)
            val_loss = evaluate(model, data["val"], cfg, device, autocast)
            record(val_loss=val_loss, bits_per_byte=val_loss * bits_per_byte)
            best, best_loss = val_loss < best_loss, min(val_loss, best_loss)
            save("ckpt.pt")
            if best and cfg.save_best:
                save("best.pt")
            plot(metrics, out / "loss.png")
            tqdm.write(f"step {step}: validation loss {val_loss:.4f}, {val_loss * bits_per_byte:.4f} bits per byte, "
                       f"{step * tokens_per_step / 1e6:.2f}M tokens, {elapsed:.0f} s of training")  # fmt: skip
            if cfg.sample_prompt:
                new = model.generate([start + prompt], cfg.sample_tokens, temperature=0.8, top_k=50, stop_ids=[tokenizer.eot], seed=cfg.seed)
                tqdm.write(f"--- {tokenizer.decode(prompt + new[0])}\n---")
            began = time.perf_counter()
        if ending:
            break

        # One step.
        optim.averaged(optimizers, False)
        torch.manual_seed(hash((cfg.seed, step)) % 2**63)  # for dropout: a pure function of the step, like the batches
        lr = optim.learning_rate(cfg, step, progress)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        for micro in range(cfg.grad_accum):
            with autocast():
                loss = forward(*batch(step, micro)) / cfg.grad_accum
            scaler.scale(loss).backward()
            summed += loss.detach()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        model.zero_grad(set_to_none=True)
        step += 1
        bar.update()

    bar.close()
    try:
        model.save_pretrained(out, eot=tokenizer.eot, dataset=cfg.dataset)
    except (ValueError, OSError) as error:
        print(f"not exported: {error}")
    print(f"{'stopped' if stop else 'done'} at step {step}; try: python sample.py --ckpt={cfg.out_dir}")
    sys.exit(128 + stop[0] if stop else 0)


if __name__ == "__main__":
    main()

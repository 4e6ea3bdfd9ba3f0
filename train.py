"""Train a GPT-NeoX model: one plain loop, top to bottom.

    python train.py config/python_cpu.py --lr=1e-3
    python train.py config/python_cpu.py --init_from=resume
    torchrun --nproc_per_node=2 train.py config/python_t4.py         # the same training on two GPUs

Reads data/<dataset> (made by a script in prepare/) and writes out_dir: checkpoints, metrics.jsonl,
loss.png, and at the end the model as Hugging Face's transformers loads it.
"""

from parts.start import StopSignal, run_script

import math
import os
import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

# torch reads these when it starts: less GPU memory lost to fragments; huge pages (a CPU step takes
# 0.94 to 0.98 of its time); the compile cache for hand-written gradients too (9 s, not 14).
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")

import torch
from tqdm import tqdm

import optim
from model import NeoX
from parts import clock as clocks
from parts import configurator, distributed, runs
from parts import device as devices
from parts import tokenizer as tokenization
from parts.data import Batches, Dataset
from parts.fast import compile_parts, use_fast_forms
from parts.generate import generate
from parts.stream import LACKING, open_dataset

MAX_BAD_STEPS = 20  # in a row without a finite gradient; float16 may need a dozen to find its scale


class Settings:
    _script = "train.py"
    _presets = {"optimizer": optim.PRESETS}  # the defaults below are AdamW's
    # Data and run
    dataset = "python"  # a folder under data/, made by a script in prepare/
    out_dir = "out/python"  # folder for checkpoints, metrics and the plot
    init_from = "scratch"  # scratch, resume, auto (resume if there is a run); a run or hub model
    new_data = False  # resume although the data set is not the one that the run began with
    stream_wait = 60.0  # seconds to wait for a stream that does not run
    seed = 1337  # initial weights, batches and dropout follow from it
    note = ""  # why this run: kept in run.json, MLflow and W&B
    # Model (from scratch; weights that come from elsewhere bring their own)
    vocab_size = 0  # rows of the input table and the head; 0: as many as the tokenizer has tokens
    n_layer = 6  # blocks
    n_head = 8  # attention heads a block
    n_embd = 256  # width of the residual stream
    block_size = 256  # context length in tokens
    dropout = 0.0  # share of activations dropped; pays only when the data are seen many times
    rotary_pct = 0.25  # share of each head that is rotated by position
    rotary_base = 10000.0  # longest wavelength of that rotation, in tokens / 2 pi
    learned_positions = False  # add a learnt vector for each position (GPT-2, with rotary_pct=0)
    parallel_residual = True  # attention and MLP side by side; False: one after the other (GPT-2)
    shared_norm = False  # one LayerNorm for attention and MLP (Phi)
    tie_embeddings = False  # share the input table with the output head
    head_bias = False  # a bias on the output head (Phi)
    n_mix = 0  # positions just before each one that are mixed into it (with shared_norm)
    activation = "gelu"  # gelu, gelu_fast, gelu_new; or swiglu, with which nothing is exported
    # Training
    batch_size = 16  # sequences in one forward pass
    grad_accum = 1  # forward passes in a step of batch_size * grad_accum * block_size tokens
    max_iters = 2000  # steps
    max_minutes = 0.0  # from start to end of the process; the schedule follows; 0: no limit
    max_train_minutes = 0.0  # the same, of the steps alone: to compare algorithms; 0: no limit
    optimizer = "adamw"  # adamw, adam, sgd, lion, adafactor, cautious, schedulefree, muon, soap
    lr = 1e-3  # peak learning rate
    min_lr = 1e-4  # learning rate at the end
    lr_schedule = "cosine"  # cosine, linear, wsd, constant, inv_sqrt
    warmup_iters = 100  # steps of linear warmup
    weight_decay = 0.1  # of matrices; biases and norms have none
    decay_embeddings = True  # of the input table and the output head too
    beta1 = 0.9  # decay of AdamW's mean of gradients, and its relatives'
    beta2 = 0.95  # decay of AdamW's mean of squared gradients
    momentum = 0.95  # Muon's and SGD's; less in short runs
    grad_clip = 1.0  # largest norm of the gradient; 0: no limit
    # Machine
    device = "auto"  # auto, cpu, cuda, mps
    dtype = "auto"  # of matrix products: auto, float32, bfloat16, float16; weights stay in float32
    checkpoint_activations = False  # compute activations twice: a third more work, far less memory
    shard = False  # under torchrun: divide weights and optimizer (FSDP2), for large models
    compile = None  # torch.compile, 10 to 60 s once; auto: on a GPU, as a CPU's steps gain nothing
    threads = 0  # CPU threads; 0: torch's choice, each core. On a busy machine try 1
    # Watching and keeping
    eval_interval = 200  # steps between evaluations, with checkpoint, plot, sample; 0: at the end
    eval_iters = 20  # batches in an evaluation, the same every time
    log_interval = 10  # steps between lines of metrics.jsonl
    save_interval = 0  # steps between checkpoints besides those of evaluations; 0: none
    save_minutes = 10.0  # minutes between checkpoints, at most; 0: no limit
    keep = 2  # checkpoints to keep: ckpt.pt, ckpt.1.pt, ...; a damaged one is skipped
    save_best = False  # also keep best.pt, the checkpoint with the lowest validation loss
    eval_tasks = ""  # tasks of eval.py at each evaluation, such as completion,mine; empty: none
    sample_prompt = ""  # text to continue at each evaluation; empty: no sample
    sample_tokens = 100  # its length
    wandb = False  # follow the run in Weights & Biases; WANDB_MODE=offline and the like apply
    mlflow = False  # follow the run in MLflow: mlflow.db in the repository, or MLFLOW_TRACKING_URI
    tracker_wait = 60.0  # seconds to wait for a tracker at the end


def read_settings(settings: type = Settings, argv: list[str] | None = None):
    """The settings of train.py or of a script that inherits them, in a range that makes sense."""
    cfg = configurator.load(settings, argv)
    positive = "batch_size grad_accum max_iters eval_iters log_interval keep lr".split()
    choices = {"optimizer": list(optim.OPTIMIZERS), "lr_schedule": list(optim.SCHEDULES)}
    choices |= {"device": devices.DEVICES, "dtype": devices.DTYPES}
    most = {"keep": 1000, "tracker_wait": 1e6, "threads": 1024}
    configurator.require(cfg, positive, most, **choices)
    if cfg.min_lr > cfg.lr:
        configurator.die(f"min_lr={cfg.min_lr} is above lr={cfg.lr}")
    if max(cfg.beta1, cfg.beta2, cfg.momentum) >= 1:
        betas = f"beta1={cfg.beta1}, beta2={cfg.beta2} and momentum={cfg.momentum}"
        configurator.die(f"{betas} must be below 1")
    return cfg


class Trainer(NamedTuple):
    """What a training step works with."""

    forward: Callable  # (x, y) -> loss: the model, or its DDP or FSDP wrapper
    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    autocast: Callable  # returns a context manager for forward
    batches: Batches
    grad_clip: float


def training_step(trainer: Trainer, mark=lambda part: None):
    """One step of all optimizers. Returns the mean loss, the gradient's norm, and whether that is
    not finite, in which case the weights stay as they are: all three on the device, since reading
    one waits for it. mark(part) is called after each part, for bench.py to time."""
    forward, model, optimizers, scaler, autocast, batches, grad_clip = trainer
    total = 0.0
    for micro in range(batches.per_step):
        distributed.set_gradient_sync(forward, micro == batches.per_step - 1)
        torch.manual_seed(batches.seed)  # for dropout
        with autocast():
            loss = forward(batches.x, batches.y) * batches.weight
        mark("forward")
        scaler.scale(loss).backward()
        mark("backward")
        total += loss.detach()
        batches.fetch()  # the next batch, before anything below waits for the device
        mark("data")
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    bad = ~norm.isfinite()
    optim.step(optimizers, bad)
    scaler.update()
    model.zero_grad(set_to_none=True)
    mark("optimizer")
    return total, norm, bad


@torch.no_grad()
def evaluate(model: NeoX, dataset: Dataset, cfg, device: str, autocast) -> float:
    """Mean loss in nats per learnt token over eval_iters batches, the same at every call."""
    model.eval()
    total = tokens = torch.zeros((), device=device)
    for x, y in dataset.val_batches(cfg.eval_iters, cfg.batch_size, device):
        learnt = (y >= 0).sum()
        with autocast():
            total = total + model(x, y) * learnt
        tokens = tokens + learnt
    model.train()
    return (total / tokens).item()


def sample(model: NeoX, tokenizer, cfg) -> str:
    start = [] if tokenizer.eot is None else [tokenizer.eot]  # as every document of the data begins
    prompt, marks = tokenizer.encode(cfg.sample_prompt, special=True), tokenizer.special.values()
    how = dict(temperature=0.8, top_k=50, seed=cfg.seed, stop_ids=marks)
    (ids,) = generate(model, [start + prompt], cfg.sample_tokens, **how)
    return tokenizer.decode(prompt + [token for token in ids if token not in marks])


def command(*settings: str) -> str:
    """The command that started this script, with other settings."""
    changed = [setting.partition("=")[0] for setting in settings]
    kept = [arg for arg in sys.argv if arg.partition("=")[0] not in changed]
    launcher = "torchrun ..." if "RANK" in os.environ else "python"
    return f"{launcher} {shlex.join([*kept, *settings])}"


def how_to_go_on(cfg, step: int) -> str:
    """The command that goes on with a run that has ended by its limits."""
    more = f"--max_iters={2 * step}"
    if step < cfg.max_iters:
        name = "max_minutes" if cfg.max_minutes else "max_train_minutes"
        more = f"--{name}={2 * getattr(cfg, name):g}"
    return command("--init_from=resume", more)


def build(cfg, model, dataset, device, dtype, rank, world, step) -> Trainer:
    """The model on its devices, with its optimizers. Ends the script if they do not suit it."""
    autocast = devices.autocast(device, dtype)
    use_fast_forms(model, device)
    if not cfg.shard:  # a sharded one need not fit on one device
        model.to(device)
    model.checkpoint_activations = cfg.checkpoint_activations
    model.train()
    batches = Batches(dataset, cfg, device, rank, world, step)
    if cfg.compile:
        compile_parts(model, None if cfg.shard else (batches.x, batches.y), autocast)
    alone = world == 1 and not cfg.shard
    forward = model if alone else distributed.spread(model, cfg, device, world)
    with configurator.mistakes():
        optimizers = optim.build(model, cfg)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    return Trainer(forward, model, optimizers, scaler, autocast, batches, cfg.grad_clip)


@distributed.ends_with_its_peers()
def main():
    cfg = read_settings()
    with configurator.mistakes():
        device = clocks.pick_device(cfg)
    dtype = devices.training_dtype(device, cfg.dtype)
    devices.prepare(device)
    cfg.threads = devices.use_threads(cfg.threads)
    cfg.compile = device == "cuda" if cfg.compile is None else cfg.compile
    rank, world = distributed.join(cfg, device)

    # The data, and the model: new, from this run's last checkpoint, or from other weights.
    torch.manual_seed(cfg.seed)
    exam = None
    with distributed.together():
        dataset = open_dataset(cfg.dataset, cfg.block_size)
        tokenizer = tokenization.load(dataset.folder)
        run = runs.Run(cfg.out_dir, rank)
        run.to_resume(cfg.init_from)
    with distributed.together():
        distributed.refuse_differences(runs.what_must_agree(cfg, dataset))
    checkpoint = run.share_checkpoint()
    with distributed.together():
        model = runs.start_model(cfg, dataset, tokenizer, run)
        tokenizer.encode(cfg.sample_prompt)  # it may lack one of the characters
        if cfg.eval_tasks:
            import tasks

            options = tasks.Options(num_completions=25, show=0)
            exam = tasks.Exam(cfg.eval_tasks, tokenizer, dataset.val, dataset.meta, options)
    last = checkpoint or dict(step=0, tokens=0, best_loss=math.inf, elapsed=0.0)
    step, tokens, best_loss = last["step"], last["tokens"], last["best_loss"]
    dataset.begin(cfg, run.out, last.get("stream"), step, rank == 0)
    trainer = build(cfg, model, dataset, device, dtype, rank, world, step)
    optimizers, scaler = trainer.optimizers, trainer.scaler
    with distributed.together():
        run.begin(optimizers, scaler, tokenizer, cfg, dataset.meta)
    clock = clocks.Clock(cfg, last)
    finished = checkpoint and max(step / cfg.max_iters, clock.share()) >= 1
    if checkpoint:
        ended = f"{cfg.out_dir} is finished already, with step {step}"
        print(ended if finished else f"going on from step {step}, {run.file}")

    tokens_per_step = cfg.batch_size * cfg.grad_accum * cfg.block_size
    peak = devices.matmul_peak(device, dtype) * world
    print(
        f"{model.num_params() / 1e6:.2f}M parameters, {dataset.describe()}, "
        f"{tokens_per_step:,} a step, {f'{world} x ' * (world > 1)}{device} "
        f"{str(dtype)[6:]}, peak {peak / 1e12:.2f} TFLOP/s"
    )
    if device == "cpu" and not finished:
        clocks.warn_on_cpu(cfg, model.flops_per_token(), step, peak)
    run.start_trackers([name for name in ("wandb", "mlflow") if getattr(cfg, name)])
    stop = StopSignal(announce=rank == 0)
    bar = clocks.new_bar(hidden=rank > 0)
    (evaluated,) = distributed.agree(run.last_step("val_loss"))  # rank 0 alone has read the metrics
    meter = clocks.Meter(step, clock, tokens_per_step, model.flops_per_token() / peak)
    lr = 0.0  # of the last step
    while True:
        # How far the run is, by steps or by the clock. All processes continue or stop together.
        lack = trainer.batches.wait(stop, clock, bar)  # for a stream; 0: there is data
        progress = max(step / cfg.max_iters, clock.share())
        # While it waits, it saves: the stream may wait for checkpoints that need less.
        idle = trainer.batches.x is None
        stale = idle or 0 < cfg.save_minutes < run.minutes_unsaved()
        near = clock.left() < clock.evaluation  # to the end: the last evaluation is enough
        told = distributed.agree(progress, stop.number, stale, lack, idle, near)
        progress, stopping, stale, lack, idle, near = told
        progress = 1 if lack else progress
        clock.show(bar, step, progress, meter.summary)
        ending = progress >= 1 or stopping
        due = progress >= 1 or cfg.eval_interval and step % cfg.eval_interval == 0 and not near
        evaluating = due and not stopping and step > evaluated
        due = stopping or stale or cfg.save_interval and step % cfg.save_interval == 0
        saving = due and step > run.saved_step

        # Once in a while: log.
        if step > meter.step and (step % cfg.log_interval == 0 or ending or saving):
            values = meter.read(step)
            run.record(step, tokens=tokens, lr=lr, loss_scale=scaler.get_scale(), **values)
            if meter.bad_steps >= MAX_BAD_STEPS:
                run.give_up(meter.bad_steps, step)

        # Once in a while: evaluate, and save.
        if evaluating or saving:
            clock.pause()
            optim.use_averaged_weights(optimizers, True)
        if evaluating:
            loss = evaluate(model, dataset, cfg, device, trainer.autocast)
            bits = loss * dataset.bits_per_byte
            writer = distributed.single(model) if cfg.sample_prompt or cfg.eval_tasks else None
            scores = exam.scores(writer, step) if exam and rank == 0 else {}
            run.record(step, val_loss=loss, bits_per_byte=bits, **scores)
            best, best_loss, evaluated = loss < best_loss, min(loss, best_loss), step
        if evaluating or saving:
            state = runs.state_of(model, optimizers, scaler, cfg)
            state |= dict(step=step, tokens=tokens, best_loss=best_loss)
            state |= dict(stream=dataset.state_at(step)) | clock.state()
            if run.save("ckpt.pt", state, cfg.keep):
                dataset.saved(step)
            if evaluating and best and cfg.save_best:
                run.save("best.pt", state)
        if evaluating:
            tqdm.write(
                f"step {step}: validation loss {loss:.4f}, {bits:.4f} bits per byte, "
                f"{tokens / 1e6:.2f}M tokens, {clock.seconds():.0f} s of training"
            )
            run.draw(scores)
            if cfg.sample_prompt and rank == 0:
                text = sample(writer, tokenizer, cfg)
                run.record(step, sample=text)
                tqdm.write(f"--- {text}\n---")
            clock.evaluated()
        if ending:
            break
        if idle:
            continue

        # One step.
        stop.begin()
        clock.go_on()
        optim.use_averaged_weights(optimizers, False)
        lr = optim.learning_rate(cfg, step, progress)
        optim.set_rate(optimizers, lr)
        meter.add(*training_step(trainer))
        step, tokens = step + 1, tokens + tokens_per_step

    bar.close()
    stop.end()
    run.export(distributed.single(model), cfg.dataset)
    distributed.leave()
    if not stopping and lack != LACKING:
        dataset.end()
    wait = stop.seconds_left(cfg.tracker_wait)  # a signal may have come after the last step
    run.finish("stopped" if stopping else "finished", step, wait)
    if stopping:
        print(f"stopped at step {step}; go on with: {command('--init_from=resume')}")
        raise SystemExit(128 + int(stopping))
    if lack == LACKING:
        configurator.die(f"step {step} is saved, but {dataset.trouble}")
    if not step:
        print("the time was over before the first step; raise --max_minutes, or do not --compile")
    elif finished:
        print(f"nothing was left to do; to train longer: {how_to_go_on(cfg, step)}")
    else:
        print(f"done at step {step}; try: python sample.py --ckpt={shlex.quote(cfg.out_dir)}")


if __name__ == "__main__":
    run_script(main)

"""How long a training takes: its clock and its speed, and what is said about both."""

import math
import re
import sys
import time
from collections import deque
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from model import NeoXConfig
from parts import configurator, distributed, memory, start
from parts import device as devices

RECENT = 50  # steps whose mean is the speed: a machine may become faster or slower
WARM = 3  # the first steps of a process are slow, and do not count as its speed
# Seconds between the last save and the end of the process: the exported model, Python's own end.
FINISH = 1.5
FIRST = 2.0  # seconds that an evaluation takes besides its batches: a plot, a sample
CPU_SHARE = 0.5  # of the peak, in training on a CPU; config/python_cpu.py reaches 0.46


class Clock:
    """The time of a training, by which two settings can end it. `seconds` are those of its steps
    alone: metrics.jsonl has them as elapsed, and max_train_minutes limits them. `spent` are those
    of the whole process and of the ones before it that it resumes, which max_minutes limits:
    imports, compiling, evaluations, saves, and waiting for a stream count."""

    def __init__(self, cfg, last: dict):
        """cfg: the settings of train.py. last: the checkpoint to go on from."""
        self.cfg, self.past, self.began = cfg, last["elapsed"], None
        self.first = self.past
        self.begins = deque(maxlen=RECENT)  # seconds at which the last steps began
        self.born = start.began or time.perf_counter()
        saved = last.get("clock", {})  # earlier versions had none
        self.before = saved.get("spent", self.past)
        self.step, self.evaluation = saved.get("step", 0.0), saved.get("evaluation", 0.0)
        self.steps = 0  # of this process
        self.announced = False

    def state(self) -> dict:
        """What a checkpoint keeps."""
        took = {"step": self.a_step(), "evaluation": self.evaluation}
        return {"elapsed": self.seconds(), "clock": {"spent": self.spent()} | took}

    def seconds(self) -> float:
        running = 0.0 if self.began is None else time.perf_counter() - self.began
        return self.past + running

    def spent(self) -> float:
        return self.before + time.perf_counter() - self.born

    def pause(self):
        """No step is done from now on."""
        self.past, self.began = self.seconds(), None
        self.paused = time.perf_counter()

    def evaluated(self):
        """The evaluation is over that began with the last pause: the next takes as long."""
        self.evaluation = time.perf_counter() - self.paused

    def go_on(self):
        """A step begins."""
        self.past, self.began = self.seconds(), time.perf_counter()
        if self.steps == 0:
            self.worked, self.watched = time.process_time(), time.perf_counter()
        if self.steps >= WARM:
            self.begins.append(self.past)
        self.steps += 1

    def a_step(self) -> float:
        """Seconds of a step, the mean of the last ones; 0 if none is known."""
        if self.steps == 0:
            return self.step
        if self.steps <= WARM:
            return (self.seconds() - self.first) / self.steps
        return (self.seconds() - self.begins[0]) / len(self.begins)

    def end(self) -> float:
        """Seconds from the last step to the end of the process."""
        # Before the first evaluation: a forward is a third of a micro-batch's time.
        guess = self.cfg.eval_iters * self.a_step() / self.cfg.grad_accum / 3 + FIRST
        return (self.evaluation or guess) + FINISH

    def left(self) -> float:
        """Seconds of steps until the clock ends the training; infinite if no setting says so."""
        cfg, lefts = self.cfg, [math.inf]
        if cfg.max_minutes:
            lefts.append(60 * cfg.max_minutes - self.spent() - self.end())
        if cfg.max_train_minutes:
            lefts.append(60 * cfg.max_train_minutes - self.seconds())
        return min(lefts)

    def share(self) -> float:
        """The part of the training that is done by the clock: 0 at the first step, and 1 when no
        other step would end in time; always 0 if no setting limits the time."""
        left, done = self.left(), self.seconds()
        if left <= 0 or left < self.a_step():
            return 1.0
        return done / (done + left) if left < math.inf else 0.0

    def evaluations(self, step: int) -> int:
        """How many are to come, if the steps end the training."""
        end, every = self.cfg.max_iters, self.cfg.eval_interval or self.cfg.max_iters
        return end // every - step // every + (end % every > 0)

    def forecast(self, step: int) -> float:
        """Seconds until the process ends, at the speed so far; infinite if that is not known."""
        by_steps = (self.cfg.max_iters - step) * self.a_step() + FINISH
        by_steps += self.evaluations(step) * (self.end() - FINISH)
        return min(by_steps if self.steps > WARM else math.inf, self.left() + self.end())

    def announce(self, step: int):
        """Say how long it will take: once, when the speed is known."""
        if self.announced or self.steps < 2 * WARM or self.seconds() - self.first < 1:
            return
        self.announced, left = True, self.forecast(step)
        if left < self.left() + self.end():
            many = configurator.counted(self.cfg.max_iters - step, "step")
            times = configurator.counted(self.evaluations(step), "evaluation")
            tqdm.write(f"at this speed: about {about(left)} more, for {many} and {times}")
        else:
            a_step = self.a_step() + (self.end() - FINISH) / (self.cfg.eval_interval or math.inf)
            many = configurator.counted(round(self.left() / a_step), "more step")
            tqdm.write(f"at this speed: about {many} in the {about(left)} that are left")
        self.warn_of_busy_cores()

    def warn_of_busy_cores(self):
        """Say so if this process got far less than the time of its cores: threads that wait for
        each other then take several times as long as one. On a machine of their own they get 95 %,
        in runs of config/shakespeare_cpu.py."""
        threads = torch.get_num_threads()
        worked = time.process_time() - self.worked
        cores = worked / (time.perf_counter() - self.watched)
        if not torch.cuda.is_available() and threads > 1 and cores < 0.6 * threads:
            tqdm.write(
                f"{threads} threads got the time of {cores:.1f} cores: other programs use them; "
                "end those, or try --threads=1"
            )

    def show(self, bar: tqdm, step: int, progress: float, summary: str):
        """Bring the bar up to date: how much is done, 0 to 1, and how long the rest takes."""
        left, limit = self.forecast(step), f"/{self.cfg.max_iters}" * (self.left() == math.inf)
        known = f"{tqdm.format_interval(max(left, 0))} left" if left < math.inf else ""
        text = ", ".join(filter(None, (f"step {step}{limit}", known, summary)))
        bar.n = min(progress, 1)
        bar.set_description_str(text, refresh=False)
        bar.update(0)
        self.announce(step)


def new_bar(hidden: bool) -> tqdm:
    """A bar for Clock.show; only a terminal has one."""
    look = "{percentage:3.0f}%|{bar}| {desc}"
    hidden = True if hidden else None
    return tqdm(total=1.0, bar_format=look, miniters=0, dynamic_ncols=True, disable=hidden)


def about(seconds: float) -> str:
    """A duration as one says it: 45 s, 4 min, 3.2 hours, 12 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"


# --- a GPU's configuration on a CPU ---------------------------------------------------------------


def pick_device(cfg) -> str:
    """The device that the settings name. ValueError if it is not here, with both ways out."""
    try:
        return devices.pick(cfg.device)
    except ValueError as error:
        if cfg.device != "cuda":
            raise
        shape = {key: vars(cfg)[key] for key in NeoXConfig.__dataclass_fields__ if key in vars(cfg)}
        sizes = memory.count_parameters(
            NeoXConfig(**shape | {"vocab_size": cfg.vocab_size or 8192})
        )
        # As NeoX.flops_per_token, but for attention's scores; weights from elsewhere may be others.
        flops = 6 * (sizes.total - (0 if cfg.tie_embeddings else sizes.table))
        peak = devices.matmul_peak("cpu", devices.training_dtype("cpu", cfg.dtype))
        takes = f"--device=cpu takes about {about(on_cpu(cfg, flops, 0, peak))}"
        other = config_for_cpu()
        other = f"; {other} is made for a CPU" if other else ""
        raise ValueError(f"device=cuda is not available here; {takes}{other}") from error


def on_cpu(cfg, flops: float, step: int, peak: float) -> float:
    """Seconds of all steps from this one on, from FLOPs a token and the peak in FLOP/s."""
    tokens = (cfg.max_iters - step) * cfg.batch_size * cfg.grad_accum * cfg.block_size
    return tokens * flops / (CPU_SHARE * peak)


def warn_on_cpu(cfg, flops: float, step: int, peak: float):
    """Say so, if the steps will take more than an hour and nothing else ends them."""
    seconds, other = on_cpu(cfg, flops, step, peak), config_for_cpu()
    if seconds > 3600 and not cfg.max_minutes and not cfg.max_train_minutes:
        other = f"; {other} is made for a CPU" if other else ""
        print(f"this may take about {about(seconds)} on this CPU{other}")


def config_for_cpu() -> str:
    """The CPU's counterpart of the config file on the command line: config/python_cpu.py for
    config/python_t4.py. Empty if there is none, or it is the one that was given."""
    for arg in sys.argv[1:]:
        given = Path(arg)
        other = given.with_name(re.match("[a-z]*", given.stem)[0] + "_cpu.py")
        if given.suffix == ".py" and other != given and configurator.locate(other).is_file():
            return str(other)
    return ""


# --- speed ----------------------------------------------------------------------------------------


class Meter:
    """What is logged of the steps since the last line. It stays on the device until it is read."""

    def __init__(self, step: int, clock: Clock, tokens_per_step: int, peak_share: float):
        """peak_share: of the machine's peak that one token a second takes."""
        self.clock, self.tokens_per_step, self.peak_share = clock, tokens_per_step, peak_share
        self.summary = ""
        self.streak, self.bad_steps = 0, 0  # in a row without a finite gradient; when last read
        self.reset(step)

    def reset(self, step: int):
        self.step, self.began, self.loss = step, self.clock.seconds(), 0.0
        self.now, self.worked = time.perf_counter(), time.process_time()

    def add(self, loss: torch.Tensor, norm: torch.Tensor, bad: torch.Tensor):
        self.loss = self.loss + loss
        self.norm = norm
        self.streak = (self.streak + 1) * bad

    def read(self, step: int) -> dict:
        """The values of a log line, and a new beginning."""
        steps, seconds = step - self.step, self.clock.seconds() - self.began
        loss = distributed.mean(self.loss).item() / steps
        speed = steps * self.tokens_per_step / seconds
        mfu = speed * self.peak_share
        self.bad_steps = int(self.streak)
        self.summary = f"loss {loss:.3f}, {speed:,.0f} tok/s, MFU {mfu:.0%}"
        values = {"loss": loss, "grad_norm": self.norm.item(), "tokens_per_s": speed, "mfu": mfu}
        values["elapsed"] = self.clock.seconds()
        # Of this process alone. MLflow shows what begins with system/ on a page of its own.
        load = (time.process_time() - self.worked) / (time.perf_counter() - self.now)
        values["system/cpu_percent"] = 100 * load  # of one core
        values["system/memory_gb"] = psutil.Process().memory_info().rss / 2**30
        if self.norm.device.type == "cuda":
            values["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        self.reset(step)
        return values

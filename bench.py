"""How fast the code trains and generates on this machine, beside transformers' GPT-NeoX where that is installed.

    python bench.py config/python_cpu.py
    python bench.py config/python_cpu.py --batch_size=8 --compile

All take turns in one run, because machines are noisy; the figures are medians, with the fastest and the slowest in brackets.
Random tokens, forward, backward and optimizer step; then greedy continuations of one prompt.
"""

import contextlib
import statistics
import time

import torch
from tqdm import tqdm

import configurator
import optim
import train
from model import NeoX, NeoXConfig, config_to_hf, matmul_peak


class Settings(train.Settings):
    vocab_size = 8192  # tokens in the vocabulary
    repeats = 5  # rounds in which every contender has its turn
    steps = 3  # training steps in a turn
    new_tokens = 64  # tokens to generate in a turn


def training_step(model, loss_of, idx, targets, cfg, autocast):
    """A function that does one step as train.py does it."""
    optimizers = optim.OPTIMIZERS[cfg.optimizer](model, cfg) if isinstance(model, NeoX) else optim.adamw(model, cfg)

    def step():
        with autocast():
            loss = loss_of(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def take_turns(contenders, repeats, count, device):
    """{name: seconds of each turn}, a turn being `count` calls. One call each before, not counted."""
    seconds = {name: [] for name in contenders}
    for turn in tqdm(range(repeats + 1), unit="round", leave=False, disable=None):
        for name, function in contenders.items():
            start = time.perf_counter()
            for _ in range(count if turn else 1):
                function()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def show(title, seconds, amount, note=lambda rate: ""):
    """A table of rates, amount per turn over the seconds it took, and the ratio of each to the first contender."""
    print(f"\n{title}")
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        rate, low, high = (amount / t for t in (median, max(times), min(times)))
        print(f"  {name:<34}{rate:>9,.0f} tokens/s [{low:,.0f} to {high:,.0f}]  {median / first:.2f} x the first's time{note(rate)}")


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("repeats", "steps", "new_tokens", "batch_size", "lr", "max_iters"), optimizer=list(optim.OPTIMIZERS))
    device, dtype = train.pick_device(cfg)
    if device == "cpu":
        train.keep_freed_memory()
    autocast = contextlib.nullcontext
    if dtype != torch.float32:
        autocast = lambda: torch.autocast(device, dtype)  # noqa: E731
    with configurator.mistakes():
        config = NeoXConfig(**{k: getattr(cfg, k) for k in NeoXConfig.__dataclass_fields__.keys() & vars(cfg).keys()})
    model = NeoX(config).to(device)
    idx = torch.randint(config.vocab_size, (cfg.batch_size, config.block_size), device=device)
    targets = idx.roll(-1, 1)
    forward = train.compiled(model, (idx, targets), autocast) if cfg.compile else model
    name = str(dtype)[6:]
    steps = {f"nanoNeoX, {name}, {cfg.optimizer}": training_step(model, lambda *xy: forward(*xy)[1], idx, targets, cfg, autocast)}
    prompt = idx[:1, :32]
    new_tokens = min(cfg.new_tokens, config.block_size - 32)
    generations = {"nanoNeoX": lambda: model.generate(prompt.tolist(), new_tokens, temperature=0)}
    try:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    except ImportError:
        print("transformers is not installed, so it is not timed; pip install -r requirements-test.txt")
    else:
        raw = {k: v for k, v in config_to_hf(config).items() if k not in ("architectures", "model_type", "torch_dtype")}
        theirs = GPTNeoXForCausalLM(GPTNeoXConfig(**raw)).to(device).train()
        loss_of = lambda idx, targets: theirs(input_ids=idx, labels=idx).loss  # noqa: E731
        steps["transformers, float32, adamw"] = training_step(theirs, loss_of, idx, targets, cfg, contextlib.nullcontext)
        if dtype != torch.float32:
            steps[f"transformers, {name}, adamw"] = training_step(theirs, loss_of, idx, targets, cfg, autocast)
        generations["transformers"] = lambda: theirs.eval().generate(
            prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)

    peak, flops = matmul_peak(device, dtype), model.flops_per_token()
    print(f"{model.num_params() / 1e6:.2f}M parameters, {cfg.n_layer} layers, {cfg.n_embd} wide, context {cfg.block_size}, batch "
          f"{cfg.batch_size}; {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; a {name} matrix product "
          f"reaches {peak / 1e12:.2f} TFLOP/s")  # fmt: skip
    seconds = take_turns(steps, cfg.repeats, cfg.steps, device)
    show("training", seconds, cfg.steps * idx.numel(), lambda rate: f", MFU {rate * flops / peak:.0%}")
    if device == "cuda":
        print(f"  largest memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB, all contenders together")
    show(f"generation, one sequence, {new_tokens} tokens", take_turns(generations, cfg.repeats, 1, device), new_tokens)


if __name__ == "__main__":
    main()

"""How fast, how much memory, how close to this machine's limit, and against whom.

    python bench.py config/python_cpu.py                     # one training step, taken apart; --profile adds a trace
    python bench.py --batch_size=8 --peers --nanogpt=DIR --litgpt    # beside transformers and, where they are, nanoGPT and litgpt
    python bench.py --speedrun --nanogpt=DIR                 # from process start to a loss of 1.88 on Shakespeare's letters
    python bench.py --startup config/python_cpu.py --compile # from process start to the first training step, cache cold and warm
    python bench.py --plan --gpu=t4 config/python_t4.py      # needs no GPU: memory, largest batch, largest model, hours

Every contender is a process of its own, and all take turns in one run, because machines are noisy: figures are medians, with
the slowest and the fastest turn in brackets, and ratios are medians of ratios within a round.
"""

import bisect
import contextlib
import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from parts import configurator
import eval as evaluation
import optim
import train
from model import MAX_LOGITS, NeoX, NeoXConfig, config_to_hf, generation_dtype


class Settings(train.Settings):
    compile = False  # as in train.py
    vocab_size = 0  # tokens in the vocabulary; 0: as many as the data set has, or 8,192 if it is not there
    repeats = 5  # rounds in which every contender has its turn
    steps = 4  # training steps in a turn
    new_tokens = 256  # tokens to generate in a turn, after a prompt of 32
    profile = False  # also write a trace, for chrome://tracing or ui.perfetto.dev
    peers = False  # beside transformers, as its README runs it and with the best settings it offers
    nanogpt = ""  # a clone of nanoGPT, to stand beside
    litgpt = False  # litgpt too, where pip has installed it
    speedrun = False  # time to a loss on Shakespeare's letters
    startup = False  # time to the first training step
    plan = False  # memory and time on a GPU that need not be here
    gpu = "t4"  # which: t4, l4, a100, h100
    contender = ""  # used by this script itself: be that contender


# --- contenders: each returns {action: function of no arguments} --------------------------------------------------------


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def training_step(model, loss_of, optimizers, cfg, device, autocast, parts):
    """One step as train.py does it, on random tokens; adds the seconds of each of its parts to the dict `parts`."""
    data = np.random.default_rng(0).integers(cfg.vocab_size, size=2_000_000, dtype=np.uint16)
    count = iter(range(10**9))

    def step():
        times = [time.perf_counter()]
        mark = lambda: (synchronize(device), times.append(time.perf_counter()))  # noqa: E731
        x, y = train.get_batch(data, train.train_starts(cfg, next(count), 0, len(data)), cfg.block_size, device)
        mark()
        with autocast():
            loss = loss_of(x, y)
        mark()
        loss.backward()
        mark()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        mark()
        for name, begin, end in zip(("data", "forward", "backward", "optimizer"), times, times[1:]):
            parts[name] = parts.get(name, 0) + end - begin

    return step


def shape(cfg, **changes):
    values = {key: getattr(cfg, key) for key in NeoXConfig.__dataclass_fields__.keys() & vars(cfg).keys()}
    with configurator.mistakes():
        return NeoXConfig(**(values | changes))


def prompts(cfg, batch):
    return torch.randint(cfg.vocab_size, (batch, 32), generator=torch.Generator().manual_seed(0))


def text(cfg):
    """Windows of the context's length, (64, T), of which to tell the loss."""
    return torch.randint(cfg.vocab_size, (64, cfg.block_size), generator=torch.Generator().manual_seed(0))


def nanoneox(cfg, device, dtype, autocast, compiled, parts):
    if device == "cpu":
        train.keep_freed_memory()
    model = NeoX(shape(cfg)).to(device)
    batch = [torch.zeros(cfg.batch_size, cfg.block_size, dtype=torch.long, device=device)] * 2
    forward = train.compiled(model, batch, autocast) if compiled else model
    step = training_step(model, forward, optim.build(model, cfg), cfg, device, autocast, parts)
    writer = NeoX(shape(cfg, block_size=32 + cfg.new_tokens)).to(device)

    def generate(batch):
        writer.to(generation_dtype(device, batch))  # as sample.py does
        writer.generate(prompts(cfg, batch).tolist(), cfg.new_tokens, temperature=0)

    reader, head = copy.deepcopy(model).eval().to(dtype), model.embed_out.weight.detach().float()
    loss = lambda: evaluation.score(reader, [text(cfg).flatten().numpy()], [1], cfg.block_size, "loss", head)  # noqa: E731
    return {"train": step, "generate 1": lambda: generate(1), "generate 8": lambda: generate(8), "loss": loss}


def transformers(cfg, device, dtype, autocast, compiled, parts):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    def build(**changes):
        raw = config_to_hf(shape(cfg, **changes))
        return GPTNeoXForCausalLM(GPTNeoXConfig(**{k: v for k, v in raw.items() if k not in ("architectures", "model_type", "torch_dtype")})).to(device)

    model = build().train()
    forward = torch.compile(model) if compiled else model
    # It shifts labels by itself, so it reads one position fewer than the others; that is in its favour.
    step = training_step(model, lambda x, y: forward(input_ids=x, labels=x).loss, optim.adamw(model, cfg), cfg, device, autocast, parts)
    writer = build(block_size=32 + cfg.new_tokens).eval().to(dtype)
    options = dict(max_new_tokens=cfg.new_tokens, min_new_tokens=cfg.new_tokens, do_sample=False, pad_token_id=0)
    generate = lambda batch: writer.generate(prompts(cfg, batch).to(device), **options)  # noqa: E731

    @torch.inference_mode()
    def loss():
        for x in text(cfg).to(device).split(8):  # on 2 cores faster than 4 or 32
            logits = writer(x).logits.float()
            F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="none")
            logits.topk(5)

    return {"train": step, "generate 1": lambda: generate(1), "generate 8": lambda: generate(8), "loss": loss}


def nanogpt(cfg, device, dtype, autocast, compiled, parts):
    sys.modules.pop("model")  # ours has the same name
    sys.path.insert(0, cfg.nanogpt)
    from model import GPT, GPTConfig

    names = ("vocab_size", "n_layer", "n_head", "n_embd", "dropout", "block_size")
    values = {name: getattr(cfg, name) for name in names} | {"bias": False}  # as its train.py sets it
    model = GPT(GPTConfig(**values)).to(device)
    forward = torch.compile(model) if compiled else model
    optimizer = model.configure_optimizers(cfg.weight_decay, cfg.lr, (cfg.beta1, cfg.beta2), device)
    step = training_step(model, lambda x, y: forward(x, y.contiguous())[1], [optimizer], cfg, device, autocast, parts)
    writer = GPT(GPTConfig(**(values | {"block_size": 32 + cfg.new_tokens}))).eval().to(device, dtype)
    generate = lambda batch: writer.generate(prompts(cfg, batch).to(device), cfg.new_tokens)  # noqa: E731
    return {"train": step, "generate 1": lambda: generate(1), "generate 8": lambda: generate(8)}


def litgpt(cfg, device, dtype, autocast, compiled, parts):
    from litgpt.generate.base import generate
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    def build(block_size):
        return GPT(Config.from_name("pythia-14m", block_size=block_size, vocab_size=cfg.vocab_size, padded_vocab_size=cfg.vocab_size,
                                    n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd, intermediate_size=4 * cfg.n_embd)).to(device)  # fmt: skip

    model = build(cfg.block_size)
    forward = torch.compile(model) if compiled else model
    loss_of = lambda x, y: chunked_cross_entropy(forward(x), y, chunk_size=0)  # noqa: E731  as its pretrain.py calls it
    step = training_step(model, loss_of, optim.adamw(model, cfg), cfg, device, autocast, parts)
    writer = build(32 + cfg.new_tokens).eval().to(dtype)
    with torch.device(device):
        writer.set_kv_cache(batch_size=1, dtype=dtype)
    return {"train": step, "generate 1": lambda: generate(writer, prompts(cfg, 1)[0].to(device), 32 + cfg.new_tokens, temperature=0.0)}


def matrix_product(cfg, device, dtype, autocast, compiled, parts):
    """The machine's limit: square products of that dtype, the right-hand one transposed, as in every Linear."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return {"train": lambda: a @ b.t()}


CONTENDERS = {"nanoNeoX": nanoneox, "transformers": transformers, "nanoGPT": nanogpt, "litgpt": litgpt, "matrix product": matrix_product}


def be_contender(cfg):
    """Read "action count" lines from standard input; answer each with a line of JSON: seconds, their parts, peak memory."""
    name, dtype, mode = cfg.contender.split(",")
    device, _ = train.pick_device(cfg)
    dtype = getattr(torch, dtype)
    autocast = contextlib.nullcontext if dtype == torch.float32 else lambda: torch.autocast(device, dtype)
    parts, answer = {}, sys.stdout
    sys.stdout = sys.stderr  # whatever the libraries print
    actions = CONTENDERS[name](cfg, device, dtype, autocast, mode == "compiled", parts)
    print(json.dumps(list(actions)), file=answer, flush=True)
    for line in sys.stdin:
        action, count = line.rsplit(maxsplit=1)
        parts.clear()
        start = time.perf_counter()
        for _ in range(int(count)):
            actions[action]()
        synchronize(device)
        print(json.dumps({"seconds": time.perf_counter() - start, "parts": parts, "memory": peak_memory(device)}), file=answer, flush=True)


def peak_memory(device):
    """Most bytes held so far: the GPU's by torch's allocator, or the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- races --------------------------------------------------------------------------------------------------------------


def environment(name):
    """train.py asks torch for huge pages; the peers do not."""
    return os.environ | {"THP_MEM_ALLOC_ENABLE": str(int(name.startswith(("nanoNeoX", "matrix"))))}


def race(names, action, count, repeats):
    """{name: the answers of its turns} for those contenders that know the action. Two turns each before, not counted."""
    running = {}
    for name in names:
        command = [sys.executable, __file__, *sys.argv[1:], f"--contender={name}"]
        running[name] = subprocess.Popen(command, env=environment(name), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        for name in list(running):
            line = running[name].stdout.readline()
            if not line:
                print(f"{name} does not run here and is left out")
            if action not in json.loads(line or "[]"):
                running.pop(name).kill()
        answers = {name: [] for name in running}
        for turn in tqdm(range(repeats + 2), desc=action, unit="round", leave=False, disable=None):
            for name, process in running.items():
                process.stdin.write(f"{action} {count if turn > 1 else 1}\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline() or "{}")
                if not answer:
                    configurator.die(f"{name} ended during {action}")
                if turn > 1:
                    answers[name].append(answer)
        return answers
    finally:
        for process in running.values():
            process.kill()


def show(title, answers, amount, work=0.0, peak=None):
    """Rates of amount / seconds; the ratio to the first contender in the same round; work FLOP/s as a share of peak's."""
    print(f"\n{title}")
    first = next(iter(answers.values()))
    for name, turns in answers.items():
        rates = [amount / turn["seconds"] for turn in turns]
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(turns, first))
        line = f"  {name.replace(',', ' '):<32}{statistics.median(rates):>9,.0f} tokens/s [{min(rates):,.0f} to {max(rates):,.0f}]  "
        line += f"{ratio:5.2f} x the first's time"
        if peak:
            share = statistics.median(rate * work / limit for rate, limit in zip(rates, peak))
            line += f", {share:4.0%} of the peak, {max(turn['memory'] for turn in turns) / 2**30:.2f} GiB"
        print(line)


# --- planning -----------------------------------------------------------------------------------------------------------


# GiB that torch reports as the device's memory, and dense peak FLOP/s from NVIDIA's data sheets (T4, L4, A100 40 GB and H100 SXM).
# float32 means TF32 where there is such a thing, because train.py allows it. A dtype that is not here is not native.
GPUS = {
    "t4": (14.6, {"float16": 65e12, "float32": 8.1e12}),
    "l4": (22.0, {"bfloat16": 121e12, "float16": 121e12, "float32": 60e12}),
    "a100": (39.5, {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12}),
    "h100": (79.1, {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12}),
}
SHARE = 0.25  # of that peak, assumed: small models get less, large ones on an A100 up to twice as much
CONTEXT, WASTE = 0.6 * 2**30, 0.05  # assumed: CUDA's context and cuBLAS's workspace, and the share that fragmentation adds
LADDER = [  # layers, heads, width: Pythia's shapes (https://arxiv.org/abs/2304.01373, table 1), steps between them, and NeoX-20B's
    (6, 4, 128), (6, 8, 256), (6, 6, 384), (6, 8, 512), (8, 8, 512), (8, 10, 640), (12, 12, 768), (16, 14, 896), (24, 16, 1024),
    (24, 20, 1280), (36, 20, 1280), (16, 8, 2048), (24, 16, 2048), (32, 32, 2560), (32, 32, 4096), (36, 40, 5120), (44, 64, 6144),
]  # fmt: skip


def estimate_memory(config, batch_size, dtype="float32", optimizer="adamw", checkpoint=False, grad_accum=1):
    """Bytes of tensors in a training step on CUDA, uncompiled, by part, and "total": what stands at the worst moment, less than
    the parts' sum. dtype is autocast's, over float32 weights; checkpoint: backward computes each block's activations again.

    What autograd keeps follows from model.py's code, and tests/ counts it: linear layers, attention and GELU keep `dtype`; LayerNorm
    keeps its input, the residual stream, which is float32 because the embedding is (and CUDA's autocast would make it so)."""
    c, size = config, 4 if dtype == "float32" else 2
    C, inner, read, tokens, table = c.n_embd, c.n_inner, c.n_read, batch_size * c.block_size, c.vocab_size * c.n_embd
    matrices = 4 * C * C + C * (read + inner)  # of one block
    linear = matrices + 5 * C + read  # with their biases
    n = (1 if c.tie_embeddings else 2) * table + c.n_layer * (linear + 4 * C) + 2 * C
    shapes = (3 * C, C), (C, C), (read, C), (C, inner)  # of those matrices
    states = {  # numbers that the optimizer keeps; AdamW and its relatives two for each weight
        "sgd": n, "lion": n, "muon": 2 * n - c.n_layer * matrices, "soap": 2 * n + c.n_layer * sum(2 * (a * a + b * b) for a, b in shapes),
        "adafactor": n - c.n_layer * (matrices - sum(a + b for a, b in shapes))
        - (1 if c.tie_embeddings else 2) * (table - c.vocab_size - C),
    }.get(optimizer, 2 * n)  # fmt: skip
    work = {  # and those that its step needs for a moment; what torch has fused needs none
        "muon": C * (2.5 * max(read, 3 * C) + C), "soap": 4 * c.n_layer * matrices, "lion": n, "cautious": 3 * n, "schedulefree": 2 * n,
        "adafactor": 2 * max(table, read * C),
    }.get(optimizer, 0)  # fmt: skip
    weights, grads, states, work = 4 * n, 4 * n, 4 * states, 4 * work
    copy = 0 if size == 4 else size * linear  # autocast's, of one block's weights: stays until its backward has used it
    head = 0 if size == 4 else size * table  # the same for the output head
    stream = 4 * tokens * C
    # In `dtype`, times C: two LayerNorm outputs, the fused q, k, v (which v, a view, keeps whole), rotated q and k, attention's
    # output and its copy, because flash attention orders it another way (a T4's kernel does not: 5 % less); the MLP round GELU,
    # or round the gate and its product.
    block = stream + tokens * (size * (9 * C + 2 * read) + 4 * c.n_head + 16)  # with logsumexp, and LayerNorm's mean and 1 / std
    block += stream * (not c.parallel_residual) + 2 * tokens * C * (c.dropout > 0)  # a mask of dropout takes 1 byte an element
    kept, again = (c.n_layer * stream, block - stream) if checkpoint else (c.n_layer * block, 0)
    passing = stream + size * tokens * (C + read)  # gradients on their way through an MLP
    loss = 2 * size * tokens * C + 4 * table  # hidden states, their gradient and the head's, all made in forward, and for a moment
    loss += (4 + 2 * size) * min(MAX_LOGITS, tokens * c.vocab_size) + size * table  # logits, and their share of the head's gradient
    late = 4 * table * ((grad_accum > 1) + c.tie_embeddings)  # the input table's gradient, before it is added to others
    before = grads * (grad_accum > 1)  # of earlier passes; a step leaves none
    missing = 0 if before else 4 * (linear + table * (not c.tie_embeddings))  # gradients that the first block's backward precedes
    # Going back through the blocks, each changes memory by the same amount: the worst is at the last or at the first of them.
    in_loss = before + c.n_layer * copy + head + kept + stream + loss
    last_block = max(before, 4 * table) + (1 if checkpoint else c.n_layer) * copy + kept + again + passing
    first_block = grads + max(copy + block + passing - missing, stream + late, work)  # or right after it
    return {"weights": weights + c.n_layer * copy + head, "gradients": grads, "optimizer": states, "loss": loss,
            "activations": kept + again + stream, "total": weights + states + max(in_loss, last_block, first_block)}  # fmt: skip


def plan(cfg, config):
    """Print what the settings would need on cfg.gpu: memory by part, time, and the largest batch and model that fit. All of it
    computed, nothing measured. Ends the script where not even one sequence fits."""
    usable, peaks = GPUS[cfg.gpu]
    dtype = cfg.dtype if cfg.dtype != "auto" else next(iter(peaks))
    if dtype not in peaks:
        configurator.die(f"{cfg.gpu} has no native {dtype}, only {', '.join(peaks)}; leave --dtype out")

    def gib(config, batch_size, checkpoint=cfg.checkpoint_activations):
        parts = estimate_memory(config, batch_size, dtype, cfg.optimizer, checkpoint, cfg.grad_accum)
        return {k: v / 2**30 for k, v in (parts | {"total": parts["total"] * (1 + WASTE) + CONTEXT}).items()}

    def largest_model(batch_size, checkpoint):
        for n_layer, n_head, n_embd in reversed(LADDER):
            shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_inner=0, rotary_pct=0.25)
            bigger = dataclasses.replace(config, **shape)
            parts = gib(bigger, batch_size, checkpoint)
            if parts["total"] <= usable:
                return f"{parts['gradients'] * 2**28 / 1e6:,.0f}M ({n_layer} x {n_embd}), {parts['total']:.1f} GiB"
        return "none"

    largest = bisect.bisect_right(range(1, 2**24), usable, key=lambda batch_size: gib(config, batch_size)["total"])
    if not largest:
        configurator.die(f"one sequence needs {gib(config, 1)['total']:.1f} GiB, and {cfg.gpu} has {usable}; largest model that "
                         f"fits at this context: {largest_model(1, True)}, with --checkpoint_activations")
    with torch.device("meta"):
        model = NeoX(config)
    tokens = cfg.max_iters * cfg.grad_accum * cfg.batch_size * config.block_size
    flops = model.flops_per_token() * (4 / 3 if cfg.checkpoint_activations else 1)  # a second forward is a third of the rest
    minutes = tokens * flops / (SHARE * peaks[dtype]) / 60
    time = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    parts = gib(config, cfg.batch_size)
    peak = parts.pop("total")
    fits = "fits" if peak <= usable else "DOES NOT FIT"
    parts["CUDA, fragments"] = peak - (peak - CONTEXT / 2**30) / (1 + WASTE)
    labels = {"weights": f"with {dtype} copies" if dtype != "float32" else "", "optimizer": cfg.optimizer,
              "activations": f"recomputed: {'yes' if cfg.checkpoint_activations else 'no'}",
              "loss": "in chunks", "CUDA, fragments": f"assumed: {CONTEXT / 2**30} GiB + {WASTE:.0%}"}  # fmt: skip
    print(f"{model.num_params() / 1e6:.1f}M parameters, {config.n_layer} layers, {config.n_embd} wide, context {config.block_size}, "
          f"vocabulary {config.vocab_size}, batch {cfg.batch_size} x {cfg.grad_accum}\n"
          f"{cfg.gpu}: {usable} GiB, {peaks[dtype] / 1e12:.0f} TFLOP/s in {dtype}. Computed, not measured, without torch.compile.\n\n"
          "memory                GiB")  # fmt: skip
    for name, value in parts.items():
        print(f"  {name:<17}{value:>6.2f}  {labels.get(name, '')}".rstrip())
    print(f"  {'peak':<17}{peak:>6.2f}  at the worst moment, when not all of these stand: {fits} in {usable}\n"
          f"largest batch_size   {largest}\n"
          f"time                 {time}: {tokens / 1e6:,.0f}M tokens, {flops / 1e9:.2f} GFLOP each, at {SHARE:.0%} of the peak (assumed)"
          + (f", or {cfg.max_minutes:g} min if sooner" if cfg.max_minutes else ""))  # fmt: skip
    batches = sorted({1, cfg.batch_size})
    print("largest model        " + "".join(f"{f'batch {b}':<32}" for b in batches).rstrip())
    for name, checkpoint in ("activations kept", False), ("recomputed", True):
        print(f"  {name:<19}" + "".join(f"{largest_model(b, checkpoint):<32}" for b in batches).rstrip())


# --- from process start -------------------------------------------------------------------------------------------------

# nanoGPT's README, "I only have a macbook": its recipe for a CPU, which it says reaches 1.88.
NANOGPT_RECIPE = ["config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1",
                  "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
                  "--lr_decay_iters=2000", "--dropout=0.0"]  # fmt: skip


def speedrun(cfg):
    """Print how long it takes from process start until a checkpoint lies on disk whose loss over the whole validation split of
    Shakespeare's letters, in windows of 64, is at or under 1.88: config/shakespeare_speedrun.py, and nanoGPT's recipe beside it."""
    root = Path(__file__).resolve().parent
    data, _, _ = train.open_dataset(configurator.load(train.Settings, [str(root / "config" / "shakespeare_speedrun.py")]))
    recipes = {"nanoNeoX": (["config/shakespeare_speedrun.py"], root, data)}
    if cfg.nanogpt:
        root = Path(cfg.nanogpt).resolve()
        recipes["nanoGPT"] = (NANOGPT_RECIPE, root, root / "data" / "shakespeare_char")
        if not (recipes["nanoGPT"][2] / "val.bin").is_file():
            configurator.die(f"{recipes['nanoGPT'][2]} has no val.bin; make it with that folder's prepare.py")
    times = {name: [] for name in recipes}
    for _ in range(cfg.repeats):
        for name, (arguments, root, data) in recipes.items():
            with tempfile.TemporaryDirectory() as out:
                command = [sys.executable, "train.py", *arguments, f"--out_dir={out}/run"]
                start = time.time()
                subprocess.run(command, cwd=root, env=environment(name), check=True, capture_output=True)
                file = Path(out) / "run" / "ckpt.pt"
                times[name].append(file.stat().st_mtime - start)
                loss = validation_loss(name, file, data / "val.bin", root)
            print(f"{name:<10} {times[name][-1]:6.1f} s to a loss of {loss:.4f}{'' if loss <= 1.88 else ', ABOVE 1.88'}", flush=True)
    for name, values in times.items():
        print(f"{name:<10} {statistics.median(values):6.1f} s [{min(values):.1f} to {max(values):.1f}], "
              f"{statistics.median(a / b for a, b in zip(values, times['nanoNeoX'])):.1f} x the first's time")  # fmt: skip


@torch.no_grad()
def validation_loss(name, file, tokens, root):
    """Nats per token of either's checkpoint over the split, in windows of 64 that do not overlap."""
    if name == "nanoNeoX":
        model = NeoX.load(file)
        loss_of = model
    else:
        sys.modules["model"], ours = None, sys.modules.pop("model")
        del sys.modules["model"]
        sys.path.insert(0, str(root))
        from model import GPT, GPTConfig

        sys.path.remove(str(root))
        sys.modules["model"] = ours
        saved = torch.load(file, map_location="cpu", weights_only=True)
        model = GPT(GPTConfig(**saved["model_args"]))
        model.load_state_dict(saved["model"])
        loss_of = lambda x, y: model(x, y)[1]  # noqa: E731
    model.eval()
    ids = torch.from_numpy(np.fromfile(tokens, dtype="<u2").astype(np.int64))
    n = (len(ids) - 1) // 64
    x, y = ids[: n * 64].view(n, 64), ids[1 : n * 64 + 1].view(n, 64)
    return sum(loss_of(a.contiguous(), b.contiguous()).item() * len(a) for a, b in zip(x.split(256), y.split(256))) / n


def startup(cfg):
    """Print how long it takes from process start to the end of the first training step, first with an empty compile cache."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", *["warm"] * cfg.repeats):
            out = Path(folder) / "run"
            rest = [arg for arg in sys.argv[1:] if arg.partition("=")[0] not in ("--startup", "--repeats")]
            command = [sys.executable, str(configurator.ROOT / "train.py"), *rest, f"--out_dir={out}", "--log_interval=1", "--max_iters=1"]
            start = time.time()
            process = subprocess.Popen(command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"},
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
            log = out / "metrics.jsonl"
            while process.poll() is None and not (log.is_file() and "tokens_per_s" in log.read_text()):
                time.sleep(0.02)
            print(f"{name}: {time.time() - start:.1f} s to the first step", flush=True)
            if process.wait():
                configurator.die(f"train.py ended early: {process.stderr.read().strip().splitlines()[-1]}")
            log.unlink()


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("repeats", "steps", "new_tokens", "batch_size", "lr", "max_iters"), gpu=list(GPUS),
                         optimizer=list(optim.OPTIMIZERS), dtype=["auto", "float32", "bfloat16", "float16"])  # fmt: skip
    meta = configurator.ROOT / "data" / cfg.dataset / "meta.json"
    cfg.vocab_size = cfg.vocab_size or (json.loads(meta.read_text())["vocab_size"] if meta.is_file() else 8192)
    if cfg.nanogpt and not (Path(cfg.nanogpt) / "model.py").is_file():
        configurator.die(f"{cfg.nanogpt} holds no model.py of nanoGPT; give the folder of a clone")
    if cfg.contender:
        return be_contender(cfg)
    if cfg.plan:
        return plan(cfg, shape(cfg))
    if cfg.speedrun:
        return speedrun(cfg)
    if cfg.startup:
        return startup(cfg)
    config = shape(cfg)
    device, dtype = train.pick_device(cfg)
    low, mode = str(dtype)[6:], "compiled" if cfg.compile else "eager"
    names = [f"nanoNeoX,{low},{mode}"]
    if cfg.peers:
        names = [f"nanoNeoX,{low},compiled", f"nanoNeoX,{low},eager", "transformers,float32,eager", f"transformers,{low},eager"]
        for peer, wanted in (("nanoGPT", cfg.nanogpt), ("litgpt", cfg.litgpt)):
            names += [f"{peer},float32,eager", f"{peer},{low},eager", f"{peer},{low},compiled"] if wanted else []
        names.append(f"transformers,{low},compiled")
    with torch.device("meta"):
        model = NeoX(config)
    flops, tokens = model.flops_per_token(), cfg.steps * cfg.batch_size * cfg.block_size
    answers = race([*names, f"matrix product,{low},eager"], "train", cfg.steps, cfg.repeats)
    limit = answers.pop(f"matrix product,{low},eager")
    peak = [2 * (8192 if device == "cuda" else 2048) ** 3 * cfg.steps / turn["seconds"] for turn in limit]
    print(f"{model.num_params() / 1e6:.2f}M parameters, {cfg.n_layer} layers, {cfg.n_embd} wide, context {cfg.block_size}, batch "
          f"{cfg.batch_size}, vocabulary {cfg.vocab_size:,}, {cfg.optimizer}; {device}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}; {low} matrix product {statistics.median(peak) / 1e12:.2f} TFLOP/s "
          f"[{min(peak) / 1e12:.2f} to {max(peak) / 1e12:.2f}]")  # fmt: skip
    show("training", answers, tokens, flops, peak)
    turns = answers[names[0]]
    parts = {part: statistics.median(turn["parts"][part] for turn in turns) / cfg.steps * 1000 for part in turns[0]["parts"]}
    print("  one step of the first: " + ", ".join(f"{part} {value:.1f} ms" for part, value in parts.items()))
    if cfg.profile:
        profile(cfg, device, dtype)
    if cfg.peers:
        eager = [name for name in names if not name.endswith("compiled")]
        for batch in (1, 8):
            title = f"generation, {batch} at a time, {cfg.new_tokens} tokens each"
            show(title, race(eager, f"generate {batch}", 1, cfg.repeats), batch * cfg.new_tokens)
        show("loss and first five guesses of a text", race(eager, "loss", 1, cfg.repeats), text(cfg).numel())
        data_loading(cfg)


def profile(cfg, device, dtype):
    """A trace of three steps of the first contender, in this process."""
    autocast = contextlib.nullcontext if dtype == torch.float32 else lambda: torch.autocast(device, dtype)
    step = nanoneox(cfg, device, dtype, autocast, cfg.compile, {})["train"]
    step()
    with torch.profiler.profile() as trace:
        for _ in range(3):
            step()
    path = configurator.ROOT / cfg.out_dir / "trace.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(path))
    print(trace.key_averages().table(sort_by="self_cpu_time_total" if device == "cpu" else "self_cuda_time_total", row_limit=15))
    print(f"the trace: {path}")


def data_loading(cfg):
    """Batches from a memory map: ours, and rows gathered one by one and stacked, as nanoGPT and its descendants do."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(cfg.vocab_size, size=20_000_000, dtype=np.uint16).tofile(file)
        data, T = np.memmap(file, dtype=np.uint16, mode="r"), cfg.block_size

        def stacked():
            starts = torch.randint(len(data) - T, (cfg.batch_size,))
            rows = lambda shift: torch.stack([torch.from_numpy(data[s + shift : s + shift + T].astype(np.int64)) for s in starts])  # noqa: E731
            return rows(0), rows(1)

        ours = lambda: train.get_batch(data, train.train_starts(cfg, 0, 0, len(data)), T, "cpu")  # noqa: E731
        answers = {"nanoNeoX": [], "row by row": []}
        for _ in range(cfg.repeats):
            for name, load in zip(answers, (ours, stacked)):
                start = time.perf_counter()
                for _ in range(100):
                    load()
                answers[name].append({"seconds": time.perf_counter() - start})
        show("reading batches", answers, 100 * cfg.batch_size * T)
        del data


if __name__ == "__main__":
    main()

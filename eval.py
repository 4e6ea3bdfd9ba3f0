"""What a checkpoint has learnt, in numbers that can be compared.

    python eval.py --ckpt=out/python_cpu

loss     nats per token over the whole validation split, each token once, and bits per byte, comparable across tokenizers
bodies   bodies written for functions of held-out Python files, given what stands before them: how many parse

Prints a table and a few of the bodies, and writes eval.json into the run's folder.
"""

import ast
import json
import math
import random
import textwrap
import warnings

import numpy as np
import torch
from tqdm import tqdm

import configurator
import sample
import tracking
from model import generation_dtype


class Settings:
    ckpt = ""  # a run's folder, a checkpoint file, or a Hugging Face folder or hub name; empty: the newest run in out/
    dataset = ""  # a folder under data/; empty: the one that the run was trained on
    tasks = "loss,bodies"  # what to measure
    num_bodies = 50  # function bodies to write
    max_new_tokens = 200  # tokens in each at most
    temperature = 0.2  # of sampling: low, as for pass@1 in Chen et al. 2021
    top_p = 0.95  # choose among the likeliest tokens that together have this probability
    show = 3  # bodies to print
    seed = 1337  # of the choice of functions and of sampling
    device = "auto"  # auto, cpu, cuda, mps


@torch.no_grad()
def validation_loss(model, tokens, batch_size=16):
    """Mean loss in nats per token over all the tokens but the first, in blocks that do not overlap."""
    T, total = model.config.block_size, 0.0
    device = model.cos.device
    starts = list(range(0, len(tokens) - 1, T))
    for i in tqdm(range(0, len(starts), batch_size), desc="loss", unit="batch", leave=False, disable=None):
        blocks = [torch.from_numpy(tokens[s : s + T + 1].astype(np.int64)) for s in starts[i : i + batch_size]]
        x = torch.nn.utils.rnn.pad_sequence([b[:-1] for b in blocks], batch_first=True).to(device)
        y = torch.nn.utils.rnn.pad_sequence([b[1:] for b in blocks], batch_first=True, padding_value=-100).to(device)
        total += model(x, y).item() * sum(len(b) - 1 for b in blocks)
    return total / (len(tokens) - 1)


def functions(tokens, tokenizer, count, seed):
    """(text before, header, indentation) of functions drawn from the documents of a token array, one a document. The header
    is the signature with the docstring, where there is one."""
    ends = np.flatnonzero(tokens == tokenizer.eot)
    spans = list(zip(np.r_[0, ends[:-1] + 1], ends))
    random.Random(seed).shuffle(spans)
    for begin, end in spans:
        lines = tokenizer.decode(tokens[begin:end].tolist()).split("\n")
        found = []
        for node in ast.walk(parse("\n".join(lines)) or ast.Module([])):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                documented = ast.get_docstring(node, clean=False) is not None
                last = node.body[0].end_lineno if documented else node.body[0].lineno - 1
                if last >= node.lineno and len(node.body) > documented:  # neither on one line nor nothing but its docstring
                    found.append((node.lineno - 1, last))
        if found and count > 0:
            first, last = random.Random(f"{seed} {begin}").choice(found)
            count -= 1
            indentation = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
            yield "\n".join([*lines[:first], ""]), "\n".join(lines[first:last]), indentation


def body(text, indentation):
    """The function body that a completion of a header's line begins with: up to the first line that is no deeper than the
    header, and whole lines only. Also whether that line was reached."""
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line.strip() and len(line) - len(line.lstrip()) <= len(indentation):
            return "\n".join(lines[:number]), True
    return "\n".join(lines[:-1]), False


def parse(source):
    """The syntax tree that Python's own parser makes of the text, or None. Nothing in the text is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in a sampled string is not our news
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def written_bodies(model, tokenizer, tokens, cfg):
    """For each function drawn: header and sampled body, whether the body ended by itself, whether the two parse."""
    results, room = [], model.config.block_size * 3 // 4
    model.to(generation_dtype(model.cos.device.type, rows=10))  # after the loss, which is measured in float32
    chosen = list(functions(tokens, tokenizer, cfg.num_bodies, cfg.seed))
    for i in tqdm(range(0, len(chosen), 10), desc="bodies", unit="batch", leave=False, disable=None):
        part = chosen[i : i + 10]
        prompts = [tokenizer.encode(before + header)[-room:] for before, header, _ in part]
        outputs = model.generate(prompts, cfg.max_new_tokens, temperature=cfg.temperature, top_p=cfg.top_p,
                                 stop_ids=[tokenizer.eot], seed=cfg.seed + i)  # fmt: skip
        for (_, header, indentation), output in zip(part, outputs):
            ended = output[-1] == tokenizer.eot
            text, dedented = body(tokenizer.decode(output[:-1] if ended else output) + "\n" * ended, indentation)
            good = bool(text.strip()) and parse(textwrap.dedent(header + text)) is not None
            results.append({"text": header + text, "ended": ended or dedented, "parses": good})
    return results


def main():
    cfg = configurator.load(Settings)
    tasks = cfg.tasks.split(",")
    for task in tasks:
        if task not in ("loss", "bodies"):
            configurator.die(f"unknown task {task!r}; tasks are loss and bodies")
    configurator.require(cfg, ("num_bodies", "max_new_tokens"), device=["auto", "cpu", "cuda", "mps"])
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    model, tokenizer, folder = sample.load(cfg.ckpt, device)
    dataset = cfg.dataset
    with configurator.mistakes():
        if not dataset:
            try:
                dataset = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dataset"]
            except (OSError, KeyError):
                raise ValueError(f"{folder} does not say what it was trained on; give --dataset=NAME") from None
        data = configurator.ROOT / "data" / dataset
        meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
        tokens = np.fromfile(data / "val.bin", dtype="<u2")
        if (data / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes():
            raise ValueError(f"data set {dataset} was made with another tokenizer than the model in {folder}")
        if "bodies" in tasks and tokenizer.eot is None:
            raise ValueError("the bodies task needs a data set of Python files; use --tasks=loss")
    report = {}
    if "loss" in tasks:
        nats = validation_loss(model, tokens)
        report |= {"loss": nats, "bits_per_byte": nats / math.log(2) * meta["val"]["tokens"] / meta["val"]["bytes"]}
    if "bodies" in tasks:
        results = written_bodies(model, tokenizer, tokens, cfg)
        if not results:
            configurator.die(f"data set {dataset} holds no Python functions to write bodies for; use --tasks=loss")
        for result in results[: cfg.show]:
            print(f"{'-' * 30} {'parses' if result['parses'] else 'does not parse'}\n{result['text']}")
        report |= {"bodies": len(results), "ended": sum(r["ended"] for r in results), "parse": sum(r["parses"] for r in results)}
        report["parse_share"] = report["parse"] / max(len(results), 1)
    print("-" * 30)
    for key, value in report.items():
        print(f"{key:<16} {value:.4f}" if isinstance(value, float) else f"{key:<16} {value}")
    with configurator.mistakes():
        (folder / "eval.json").write_text(json.dumps(report | {"arguments": vars(cfg)}, indent=2) + "\n", encoding="utf-8")
    tracking.send(folder)  # to the run of the training, where that was tracked


if __name__ == "__main__":
    main()

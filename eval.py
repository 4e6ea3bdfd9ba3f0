"""What a model has learnt, in numbers that tell small models apart.

    python eval.py --ckpt=out/python_cpu
    python eval.py --ckpt=out/python_cpu --tasks=loss,completion,humaneval --allow_code_execution
    python tools/compare.py out/a out/b                    # then: evaluated runs side by side

loss         of every token of the validation split: nats per token, perplexity, bits per byte
             (comparable across tokenizers), and how often the right token is the model's first
             guess or among its first five; for code, by class of token
completion   held-out code, cut inside a line (line), at the end of one (next) and at a signature
             (body), then continued greedily: exact match and edit similarity as in CodeXGLUE, BLEU,
             whether the first token is right and the file still parses
infill       held-out code with a gap of a line (line), 2 to 8 lines (block) or some characters
             (span), filled greedily: exact match, edit similarity, whether the file parses.
             line_exact_left: the same lines by the same model without what follows
bodies       bodies sampled for functions of held-out Python files: how many parse
humaneval    HumanEval (Chen et al. 2021); humaneval-x: HumanEval-X's Go part (Zheng et al. 2023);
             mine: tasks/*.jsonl, yours to extend. Bits per byte of the known solution; how often it
             is likelier than a mutant of it with as many tokens (choice2: 50 % untrained) and than
             all nine (choice10: 1 % untrained); with --allow_code_execution also pass@k of sampled
             programs, after a check that the known solutions of your own problems pass their tests
humaneval-infill  HumanEval's solutions with a line, lines or a span missing (Bavarian et al. 2022):
             bits per byte and exact match of what is missing; pass@k as above
sentiment    a set of prepare/sentiment.py, or --file=test.tsv: accuracy and F1 of the likeliest
             label, beside a bag of words (logistic regression) and the commonest label
instruct     a set of prepare/instruct.py: loss of the held-out answers, exact match of short ones

Prints five figures beside what an untrained model gets, and a published one where it is known;
--all prints the others. All are in eval.json in the run's folder (there some shares are from 0 to
1). Results of other tasks stay in it if they are for the same weights and data.
"""

from parts.start import run_script

import os
import sys
from pathlib import Path

import numpy as np
from typing_extensions import NotRequired, TypedDict

import tasks
from parts import card, configurator, figures, runs, tracking
from parts import device as devices
from parts import tokenizer as tokenization
from parts.files import load_json, unused, write_json
from parts.stream import open_dataset
from tasks.code import detect_language, documents


class Trained(TypedDict, total=False):
    dataset: str


class About(Trained):
    """What run.json, or an exported model's config.json, says about the training."""

    settings: NotRequired[Trained]


class Arguments(Trained):
    ckpt: NotRequired[str]


class Report(TypedDict):
    """eval.json: numbers by name, and what they are about."""

    arguments: NotRequired[Arguments]


class Settings(tasks.Options):
    ckpt = ""  # a run, a checkpoint file, a Hugging Face folder or name; empty: out/'s newest run
    dataset = ""  # a folder under data/; empty: the one that the run was trained on
    tasks = ""  # of those above, with commas; empty: what suits the data set
    all = False  # print every figure
    device = "auto"  # auto, cpu, cuda, mps
    threads = 0  # CPU threads; 0: torch's choice, each core. On a busy machine try 1


def read_settings():
    cfg = configurator.load(Settings)
    with configurator.mistakes():
        tasks.chosen(cfg.tasks)
    configurator.require(
        cfg,
        ("num_completions", "num_bodies", "num_samples", "max_new_tokens", "top_p"),
        {"top_p": 1},
        device=devices.DEVICES,
        language=["", "python", "go"],
        dtype=devices.DTYPES,
    )
    return cfg


def open_split(dataset: str, folder: Path, tokenizer) -> tuple[np.ndarray, dict]:
    """The validation split as tokens of the model's tokenizer, and the data set's meta.json.

    dataset: its name; empty: what the run in `folder` was trained on. ValueError or OSError if it
    is not there."""
    if not dataset:
        run = folder / "run.json"
        about = load_json(run if run.is_file() else folder / "config.json", About)
        dataset = about.get("settings", about).get("dataset")
        if not dataset:
            raise ValueError(f"{folder} does not say what it was trained on; give --dataset=NAME")
    data = open_dataset(dataset)
    data, meta, tokens = data.folder, data.meta, np.array(data.val)
    if not tokenizer.has_ids_of(load_json(data / "tokenizer.json")):
        tokens = translate(tokens, tokenization.load(data), tokenizer)
    return tokens, meta


def translate(tokens: np.ndarray, old, new) -> np.ndarray:
    """The same documents in another tokenizer."""
    end = [] if new.eot is None else [new.eot]
    texts = (old.decode(tokens[a:b].tolist()) for a, b in documents(tokens, old))
    return np.array([i for text in texts for i in new.encode(text) + end], "<u2")


def make_exam(cfg, tokenizer, folder: Path) -> tasks.Exam:
    """The tasks that the settings name. ValueError or OSError says what is missing."""
    names, tokens, meta = tasks.chosen(cfg.tasks), None, None
    if not names or any(tasks.TASKS[name].reads_data(cfg) for name in names):
        tokens, meta = open_split(cfg.dataset, folder, tokenizer)
    if not names:
        code = detect_language(tokens, tokenizer)
        names = ["loss", "completion", "mine"] if code else ["loss"]
        names = [meta["task"]] if meta.get("task") in tasks.TASKS else names
    return tasks.Exam(",".join(names), tokenizer, tokens, meta, cfg)


def save(report: dict, cfg, folder: Path):
    """Write eval.json. What other tasks said about the same weights and data stays in it."""
    folder.mkdir(parents=True, exist_ok=True)
    file, before = folder / "eval.json", read_report(folder)
    # A finished run that is resumed exports the same weights again, but saves none.
    weights = list(folder.glob("*.pt")) or list(folder.glob("*.safetensors"))
    newest = max((one.stat().st_mtime for one in weights), default=0)
    same = subject(before.get("arguments", {})) == subject(vars(cfg))
    same = same and before.get("measured", report["measured"]) == report["measured"]
    if same and file.stat().st_mtime > newest:
        report = before | report
    elif before:  # about other weights or data
        aside = file.rename(unused(folder / "eval", ".json"))
        print(f"the evaluation that was in {file} is now {aside}")
    write_json(file, report | {"arguments": vars(cfg)})
    if all((folder / name).is_file() for name in ("run.json", "model.safetensors")):
        if trouble := card.write(folder):
            print(trouble)


def validation(meta: dict | None) -> dict:
    """Which text was held out, by which tools/compare.py tells whether figures can be compared."""
    if not meta:
        return {}
    held_out = {key: meta["val"].get(key) for key in ("sha256", "tokens", "bytes")}
    return {"data": {"dataset": Path(meta["folder"]).name, **held_out}}


def read_report(folder: Path) -> dict:
    """The folder's eval.json, if there is one. ValueError if it is damaged."""
    file = folder / "eval.json"
    return load_json(file, Report) if os.path.exists(file) else {}


def subject(arguments: dict) -> tuple:
    """What an evaluation was about: the data set, and the checkpoint in the folder."""
    ckpt = Path(arguments.get("ckpt", ""))
    return arguments.get("dataset"), ckpt.name if ckpt.suffix == ".pt" else ""


def print_headline(report: dict, vocabulary: int):
    """The most telling figures, what random weights get, and what a published model gets."""
    keys = figures.headline(report)
    names = {key: figures.described(key) for key in keys}
    width = max(map(len, names.values()))
    print(f"{'':<{width}} {'this model':>12} {'untrained':>12}   published model")
    for key in keys:
        here, known = figures.shown(key, report[key]), figures.figure(key).known
        random = figures.untrained(key, report, vocabulary)
        print(f"{names[key]:<{width}} {here:>12} {random:>12}   {known}".rstrip())
    for mark, source in figures.SOURCES.items():
        if any(mark in figures.figure(key).known for key in keys):
            print(f"{mark} {source}")


def print_all(report: dict):
    """Every figure: its key in eval.json, the number, and what it is."""
    for key, value in report.items():
        name = figures.figure(key).name
        print(
            f"{key:<28} {figures.with_unit(key, value):<24} {name if name != key else ''}".rstrip()
        )


def main():
    if sys.argv[1:2] == ["--compare"]:
        folders = " ".join(sys.argv[2:]) or "out/a out/b"
        configurator.die(f"runs are compared by another script: python tools/compare.py {folders}")
    cfg = read_settings()
    with configurator.mistakes():
        device = devices.pick(cfg.device)
    devices.use_threads(cfg.threads)
    model, tokenizer, folder = runs.load(cfg.ckpt, device)
    with configurator.mistakes():
        exam = make_exam(cfg, tokenizer, folder)
        exam.check_memory(model)
        read_report(folder)  # what is in it already will be kept, if it can be read
    report = exam.measure(model)
    print(f"\n{folder}")
    print_headline(report, model.config.vocab_size)
    if cfg.all:
        print_all(report)
    if any(task.writes_programs for task in exam.tasks) and not cfg.allow_code_execution:
        print(
            "pass@k was not measured: it runs what the model writes, and needs "
            "--allow_code_execution"
        )
    here = os.path.exists(configurator.locate(cfg.ckpt or folder))
    if not here:  # a hub's cache is not to be written
        folder = configurator.ROOT / "out" / cfg.ckpt.replace("/", "-")
    with configurator.mistakes():
        about = {"measured": getattr(model, "source", None), **validation(exam.meta)}
        save(report | about, cfg, folder)
    if not cfg.all and len(report) > len(figures.headline(report)):
        print(f"all {len(report)} figures: python tools/compare.py --all {folder}")
    tracking.send(folder)  # to the tracked run of the training, if there is one


if __name__ == "__main__":
    run_script(main)

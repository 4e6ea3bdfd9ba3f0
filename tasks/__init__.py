"""What eval.py measures: a file for each task, and the problems (*.jsonl).

    exam = Exam("loss,completion", tokenizer, tokens, meta, Options(show=0))
    exam.measure(model)                             # {"loss": 3.4, ...}

To add a task, write a subclass of Task in a file of its own, and add it to TASKS.
"""

import copy

import numpy as np
import torch
from tqdm import tqdm

from model import NeoX
from parts import device as devices
from parts import figures, memory
from parts.fast import use_plain_forms
from parts.tokenizer import Tokenizer
from tasks.bodies import Bodies
from tasks.code import detect_language
from tasks.completion import Completion
from tasks.humaneval_infill import HumanEvalInfill
from tasks.infill import Infill
from tasks.instruct import Instruct
from tasks.loss import Loss
from tasks.problems import HumanEval, HumanEvalX, Mine
from tasks.sentiment import Sentiment
from tasks.task import Examinee, Options, Task
from tasks.writing import rows_per_batch

TASKS: dict[str, type[Task]] = {
    "loss": Loss,
    "completion": Completion,
    "infill": Infill,
    "bodies": Bodies,
    "humaneval": HumanEval,
    "humaneval-x": HumanEvalX,
    "humaneval-infill": HumanEvalInfill,
    "mine": Mine,
    "sentiment": Sentiment,
    "instruct": Instruct,
}


def chosen(names: str) -> list[str]:
    """The tasks in a list with commas, in the order of TASKS. ValueError for an unknown one."""
    asked = [name for name in names.split(",") if name]
    for name in asked:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; tasks are {', '.join(TASKS)}")
    return [name for name in TASKS if name in asked]


class Exam:
    """Some tasks, ready to measure one model after another."""

    def __init__(
        self,
        names: str,
        tokenizer: Tokenizer,
        tokens: np.ndarray | None,
        meta: dict | None,
        options: Options,
    ):
        """names: the tasks, with commas. tokens, meta: the validation split and its data set's
        meta.json; None if no task needs them. options: `Options`, or anything with its attributes.

        ValueError or OSError says what is missing."""
        self.options, self.meta = options, meta
        language = "" if tokens is None else detect_language(tokens, tokenizer)
        self.tasks = [
            TASKS[name](tokenizer, tokens, meta, language, options) for name in chosen(names)
        ]
        for task in self.tasks:
            for problem in getattr(task, "problems", []):
                tokenizer.encode(problem.prompt + problem.solution)  # it may lack a character

    def check_memory(self, model: NeoX):
        """ValueError where memory does not suffice to measure the model."""
        dtype, rows = self.dtype_for(model)
        texts = {setting: n for task in self.tasks for setting, n in task.texts().items()}
        memory.check_evaluation(model, dtype, rows, texts, self.options)

    def dtype_for(self, model: NeoX) -> tuple[torch.dtype, int]:
        """In which dtype the network works, and how many texts it writes together."""
        device = next(model.parameters()).device.type
        rows = rows_per_batch(device)
        if self.options.dtype == "auto":
            return devices.generation_dtype(device, rows), rows
        return getattr(torch, self.options.dtype), rows

    def measure(self, model: NeoX) -> dict[str, float]:
        """The numbers of all tasks. The model stays as it is."""
        dtype, _ = self.dtype_for(model)
        training = model.training
        network = use_plain_forms(copy.deepcopy(model)).to(dtype).eval()
        try:
            examinee = Examinee(network, model.eval())
            return {k: v for task in self.tasks for k, v in task.measure(examinee).items()}
        finally:
            model.train(training)

    def scores(self, model: NeoX, step: int) -> dict[str, float]:
        """The same for a training's metrics: keys begin with eval_, and one line is printed. A task
        that fails does not end the training: it is reported, and there are no scores."""
        try:
            report = self.measure(model)
        except Exception as error:
            tqdm.write(f"step {step}: no eval_tasks: {type(error).__name__}: {error}")
            return {}
        told = (f"{key} {figures.with_unit(key, report[key])}" for key in figures.headline(report))
        tqdm.write(", ".join(told))
        return {f"eval_{key}": score for key, score in report.items()}

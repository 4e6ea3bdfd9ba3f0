"""What all tasks share: their options, and what a task is."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from model import NeoX
from parts.tokenizer import Tokenizer


class Options:
    """How to measure: the defaults, which `Options(show=0)` overrides by name."""

    stride = 0  # tokens between windows of the loss; fewer: more context each; 0: no overlap
    num_completions = 100  # cuts of each of the three kinds; short answers of instruct
    num_bodies = 50  # function bodies to write
    num_samples = 1  # programs to write for each problem; pass@k is reported for k up to this
    max_new_tokens = 200  # most tokens in a body or program
    temperature = 0.2  # of sampling; low, as for pass@1 in Chen et al. 2021
    top_p = 0.95  # sample from the likeliest tokens that together have this probability
    allow_code_execution = False  # pass@k: run sampled programs in a sandbox (Linux, bubblewrap)
    file = ()  # a benchmark's .jsonl or .jsonl.gz, sentiment's test set; may be given several times
    language = ""  # python or go, for the task mine; empty: the language of the data set
    show = 3  # bodies to print
    dtype = "auto"  # of the network; float32 gives the loss's last digits; the head has float32
    seed = 1337  # of the choice of cuts and functions, and of sampling

    def __init__(self, **changes):
        for key, value in changes.items():
            getattr(self, key)  # AttributeError if there is no such option
            setattr(self, key, value)


class Examinee(NamedTuple):
    """A model as the tasks use it. The network reads and writes in its fast dtype. Scores come from
    its hidden states and `model.logits` in float32: in bfloat16 too many tokens would tie."""

    network: NeoX  # a copy in the plain forms of model.py, in a fast dtype
    model: NeoX  # the model itself, in float32


@dataclass
class Task:
    """One thing to measure. A subclass has measure(examinee), which returns its numbers by name,
    and perhaps `prepare`. Making one raises ValueError or OSError if it lacks something."""

    tokenizer: Tokenizer
    tokens: np.ndarray | None  # the validation split, and its data set's meta.json
    meta: dict | None
    language: str  # of the tokens: python, go, or "" for anything else
    options: Options

    writes_programs = False  # whether there is a pass@k

    def __post_init__(self):
        self.prepare()

    def prepare(self):
        """Find what the task needs. ValueError or OSError says what is missing."""

    def texts(self) -> dict[str, int]:
        """The settings that say how many texts the model writes, and for each one of its number how
        many texts."""
        return {}

    @classmethod
    def reads_data(cls, options: Options) -> bool:
        """Whether it needs the validation split."""
        return True

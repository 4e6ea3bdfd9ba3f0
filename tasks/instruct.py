"""Instructions: the loss on held-out answers, and short answers word for word."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm
from typing_extensions import TypedDict

from parts import tokenizer as tokenization
from parts.files import check_shape
from parts.generate import completion, generate
from parts.tokenizer import Tokenizer
from tasks.completion import exact_match
from tasks.scoring import score
from tasks.task import Examinee, Task
from tasks.writing import rows_per_batch

SHORT = 32  # tokens of an answer that is written, with its end


class Meta(TypedDict):
    """What prepare/instruct.py says of its set."""

    task: Literal["instruct"]
    folder: str


class Instruct(Task):
    """On the val split of a set of prepare/instruct.py. answer_loss: nats for each token of an
    answer and its end, given the conversation before it; answer_bits_per_byte: the same for each
    byte of its text. exact_match: the share of short answers that greedy writing gives but for
    white space."""

    def prepare(self):
        if (self.meta or {}).get("task") != "instruct":
            raise ValueError(
                "the data set is not one of prepare/instruct.py; name one with --dataset=..."
            )
        check_shape(self.meta, "meta.json", Meta)
        self.conversations = self.read(Path(self.meta["folder"]))

    def read(self, folder: Path) -> list[tuple[list[int], np.ndarray]]:
        """The ids of each conversation of the val split and which are learnt (bool), in the tokens
        of the model's tokenizer, whatever the data set's is. ValueError if the mask is damaged."""
        if not (folder / "val.mask").is_file():
            raise ValueError(f"{folder / 'val.mask'} is missing; make the data set again")
        old, ids = tokenization.load(folder), np.fromfile(folder / "val.bin", "<u2")
        learnt = np.fromfile(folder / "val.mask", np.uint8)
        begins = np.flatnonzero((ids == old.eot) & (learnt == 0)) if len(ids) == len(learnt) else []
        if not len(begins) or not learnt.any():
            raise ValueError(f"{folder / 'val.mask'} does not belong to val.bin")
        found = []
        for part, marks in zip(np.split(ids, begins)[1:], np.split(learnt, begins)[1:]):
            part, marks = part.tolist(), marks.astype(bool)
            if not self.tokenizer.has_ids_of(old.data):
                part, marks = translate(part, marks, old, self.tokenizer)
            found.append((part, marks))
        return found

    def texts(self) -> dict[str, int]:
        return {"num_completions": 1}

    def measure(self, examinee: Examinee) -> dict[str, float]:
        nats, text = [], 0
        context = examinee.network.config.block_size
        stride = min(self.options.stride or max(context // 2, 1), context)
        sequences = [ids for ids, _ in self.conversations]
        starts = [int(marks.argmax()) for _, marks in self.conversations]
        scores = score(examinee, sequences, starts, stride, "instruct")
        for (ids, marks), one in zip(self.conversations, scores):
            nats.append(one.nats[marks])
            learnt = np.array(ids)[marks].tolist()
            text += len(completion(self.tokenizer, learnt).encode())
        nats = np.concatenate(nats).astype(np.float64)
        report = {
            "answer_loss": nats.mean(),
            "answer_bits_per_byte": nats.sum() / math.log(2) / text,
            "conversations": len(self.conversations),
        }
        return report | self.match(examinee)

    def match(self, examinee: Examinee) -> dict[str, float]:
        """How many short answers there are, and the share that the model writes."""
        questions = [
            (ids[:begin], completion(self.tokenizer, ids[begin:end]))
            for ids, marks in self.conversations
            for begin, end in runs(marks)
            if end - begin <= SHORT
        ][: self.options.num_completions]
        network = examinee.network
        room, special = network.config.block_size * 3 // 4, set(self.tokenizer.special.values())
        questions.sort(key=lambda pair: len(pair[0]))  # rows of one length need no padding
        size, right = rows_per_batch(next(network.parameters()).device.type), 0
        for begin in tqdm(range(0, len(questions), size), "instruct", leave=False, disable=None):
            batch = questions[begin : begin + size]
            prompts = [ids[-room:] for ids, _ in batch]
            outputs = generate(network, prompts, SHORT, temperature=0, stop_ids=special)
            for output, (_, answer) in zip(outputs, batch):
                ended = output[-1] in special
                right += ended and exact_match(completion(self.tokenizer, output), answer)
        return {"short_answers": len(questions), "exact_match": right / max(len(questions), 1)}


def runs(marks: np.ndarray) -> list[tuple[int, int]]:
    """(begin, end) of each answer in a conversation."""
    changes = np.flatnonzero(np.diff(np.r_[0, marks.astype(np.int8), 0]))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist()))


def translate(
    ids: list[int], marks: np.ndarray, old: Tokenizer, new: Tokenizer
) -> tuple[list[int], np.ndarray]:
    """A conversation in another tokenizer: given and learnt parts apart, as they were made."""
    if new.eot is None:
        raise ValueError("the model's tokenizer has no <|endoftext|>, with which answers end")
    found, learnt, at = [new.eot], [False], 1
    for begin, end in runs(marks):
        given = new.encode(old.decode(ids[at:begin]))
        answer = [*new.encode(old.decode(ids[begin : end - 1])), new.eot]
        found += given + answer
        learnt += [False] * len(given) + [True] * len(answer)
        at = end
    return found, np.array(learnt)

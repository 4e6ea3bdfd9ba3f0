"""Instructions with answers -> data/instruct, for fine-tuning: only the answers are learnt.

    python prepare/instruct.py --file=alpaca.json            a list of instruction, input, output
    python prepare/instruct.py --file="chats/*.jsonl"        or rows of messages; also parquet
    python prepare/instruct.py --source=tatsu-lab/alpaca     streamed from the Hugging Face hub
    python prepare/instruct.py --file=a.json --tokenizer=out/python_cpu    of the model to fine-tune

A row has an instruction (or prompt, question), perhaps an input (context), and an output (response,
completion, answer); or a conversation: messages of role and content, conversations of from and
value. The template is in parts/chat.py.

alpaca.json is Stanford Alpaca's, 52,000 examples that text-davinci-003 wrote: alpaca_data.json in
github.com/tatsu-lab/stanford_alpaca, CC BY-NC 4.0. For any use, Dolly, 15,000 that people wrote:
databricks-dolly-15k.jsonl in huggingface.co/datasets/databricks/databricks-dolly-15k, CC BY-SA 3.0.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

from itertools import chain

from parts import chat, configurator
from parts.chat import Message
from parts.tokenizer import Tokenizer, valid
from prepare import examples, sources

KINDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
# What a row holds -> the columns that may hold it, in Alpaca, Dolly and similar sets.
COLUMNS = {
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "output": ("output", "response", "completion", "answer"),
}
# The keys of a message, in OpenAI's form and in ShareGPT's; the names that they give the roles.
KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {
    **{"system": "system", "user": "user", "assistant": "assistant"},
    **{"human": "user", "gpt": "assistant"},
}


class Settings(examples.Settings):
    max_tokens = 0  # leave out conversations of more tokens; 0: none
    out = "instruct"  # the data set's name: a folder in data/


def read_row(row) -> tuple[Message, ...]:
    """The conversation in a row. ValueError says why there is none."""
    if not isinstance(row, dict):
        raise ValueError("it is no object with named fields")
    for name, (role, content) in KEYS.items():
        if isinstance(row.get(name), list):
            return read_messages(row[name], role, content)
    found = {field: first_of(row, names) for field, names in COLUMNS.items()}
    if not (found["instruction"] and found["output"]):
        raise ValueError("it has no instruction with an output, and no messages")
    return (
        chat.instruction(found["instruction"].strip(), found["input"].strip()),
        Message("assistant", answer(found["output"])),
    )


def first_of(row: dict, names: tuple[str, ...]) -> str:
    """The text in the first column that the row has; empty where there is none."""
    text = next((row[name] for name in names if row.get(name) is not None), "")
    if not isinstance(text, str):
        raise ValueError("its instruction, input or output is no text")
    return valid(text) if text.strip() else ""


def answer(text: str) -> str:
    """An answer without empty lines around it; what indents its first line stays."""
    return text.strip("\r\n").rstrip()


def read_messages(rows: list, role: str, content: str) -> tuple[Message, ...]:
    messages = []
    for row in rows:
        if not (isinstance(row, dict) and isinstance(row.get(content), str)):
            raise ValueError("one of its messages has no text")
        if not isinstance(row.get(role), str) or row[role] not in ROLES:
            raise ValueError("one of its messages is by neither system, user nor assistant")
        name, text = ROLES[row[role]], valid(row[content])
        messages.append(Message(name, answer(text) if name == "assistant" else text.strip()))
    while messages and messages[-1].role != "assistant":
        messages.pop()  # what has no answer
    turns = [message.role for message in messages if message.role != "system"]
    late = any(message.role == "system" for message in messages[1:])
    if late or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("its user and assistant do not take turns")
    if not turns or not all(message.text for message in messages):
        raise ValueError("it has no answer, or an empty message")
    return tuple(messages)


def whole_text(messages: tuple[Message, ...]) -> str:
    return "\0".join(f"{role} {text}" for role, text in messages)


def question(messages: tuple[Message, ...]) -> str:
    """What stands before the first answer: the same question is in one split only."""
    first = next(n for n, message in enumerate(messages) if message.role == "assistant")
    return whole_text(messages[:first])


def make_reader(cfg, tok: Tokenizer) -> examples.Reader:
    def read(row) -> tuple[Message, ...]:
        messages = read_row(row)
        if cfg.max_tokens and len(chat.encode(tok, messages)[0]) > cfg.max_tokens:
            raise ValueError(f"it has more than {cfg.max_tokens} tokens")
        return messages

    return examples.Reader(read, whole_text)


def main():
    cfg = examples.load(Settings)
    with configurator.mistakes():
        tok = examples.open_tokenizer(cfg)
        files = sources.named_files("file", cfg.file, KINDS) if cfg.file else []
    rows = chain.from_iterable(map(sources.file_rows, files))
    reader = make_reader(cfg, tok)
    if cfg.source:
        rows = sources.hub_rows(path=cfg.source)
    found = reader.examples(rows, cfg.file or cfg.source, cfg.max_examples)
    splits = dict(zip(("train", "val"), examples.hold_out(found, question, cfg)))

    def document(messages):
        return chat.encode(tok, messages)

    about = {"task": "instruct", "rows": reader.counts, "split_by": "question"}
    examples.write(cfg, tok, splits, document, about)


if __name__ == "__main__":
    run_script(main)

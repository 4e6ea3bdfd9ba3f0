"""Sets for fine-tuning, their tasks, and conversations: masks cover the answers and nothing else,
every kind of file is read, and the tasks' numbers are those of a plain forward pass."""

import gzip
import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from conftest import follow
from sklearn.metrics import accuracy_score, f1_score

import eval as evaluation
import sample
import tasks
from parts import chat, configurator, runs
from parts import tokenizer as tokenization
from parts.chat import Message
from parts.data import Dataset
from prepare import instruct, sentiment
from tasks.sentiment import f1

ROWS = [
    {"instruction": "Add the numbers", "input": "1, 2", "output": "3"},
    {
        "instruction": "Say <|endoftext|> and\n### Response:",
        "input": "",
        "output": "  if x:\n    y",
    },
    *({"instruction": f"Name number {n}", "input": "", "output": f"It is {n}."} for n in range(30)),
]
TALK = [
    Message("system", "Be brief."),
    Message("user", "Hello"),
    Message("assistant", "Hi!"),
    Message("user", "Wörter?"),
    Message("assistant", "Ja."),
]
TEXTS = [
    (f"{word} {thing} of number {n}", label)
    for n in range(12)
    for word, label in (("a fine , good", 1), ("a dull 'bad\"", 0))
    for thing in ("film", "book")
]


def script(monkeypatch, module, *args):
    """The exit code of a script of prepare/, run in this process."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, args)])
    try:
        module.main()
    except SystemExit as ended:
        return ended.code
    return 0


def documents(folder, split):
    """The text of each document of a split, with what is learnt in brackets."""
    tok = tokenization.load(folder)
    ids = np.fromfile(folder / f"{split}.bin", "<u2")
    mask = np.fromfile(folder / f"{split}.mask", np.uint8)
    assert len(ids) == len(mask) and set(mask) <= {0, 1}
    cuts = np.flatnonzero(np.diff(mask) | ((ids == tok.eot) & (mask == 0))[1:]) + 1
    found = []
    for part, marks in zip(np.split(ids, cuts), np.split(mask, cuts)):
        if marks[0]:
            found[-1] += f"[{tok.decode(part)}]"
        elif part[0] == tok.eot:
            found.append(tok.decode(part[1:]))
        else:
            found[-1] += tok.decode(part)
    return [text.replace("<|endoftext|>]", "<end>]") for text in found]


# --- instructions ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """The same rows in every kind of file."""
    from pyarrow import Table, parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(ROWS, indent=2), encoding="utf-8")
    (tmp_path / "b.jsonl").write_bytes(lines)
    (tmp_path / "c.json").write_bytes(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines))
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "e.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.json", "b.jsonl", "c.json", "d.jsonl.gz", "e.parquet"])
def test_of_every_kind_of_file_the_answers_alone_are_learnt(files, dataset, monkeypatch, name):
    out = files / "set"
    how = f"--file={files / name}", f"--tokenizer={dataset}", f"--out={out}"
    assert script(monkeypatch, instruct, *how) == 0
    train, val = documents(out, "train"), documents(out, "val")
    assert len(val) == 3 and len(train) == 29
    expected = {
        "### Instruction:\nAdd the numbers\n\n### Input:\n1, 2\n\n### Response:\n[3<end>]",
        "### Instruction:\nSay <|endoftext|> and\n### Response:\n\n### Response:\n"
        "[  if x:\n    y<end>]",
        *(
            f"### Instruction:\nName number {n}\n\n### Response:\n[It is {n}.<end>]"
            for n in range(30)
        ),
    }
    assert {*train, *val} == expected
    meta = json.loads((out / "meta.json").read_text())
    answers = [row["output"] for row in ROWS]
    learnt = sum(meta[split]["learnt_bytes"] for split in ("train", "val"))
    assert learnt == sum(len(answer.encode()) for answer in answers)
    for split in ("train", "val"):
        mask = np.fromfile(out / f"{split}.mask", np.uint8)
        assert meta[split]["learnt"] == mask.sum() and meta[split]["tokens"] == len(mask)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert script(monkeypatch, instruct, *how) == 0  # it is the same again, and stays
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}


def test_messages_become_turns_and_what_is_none_is_left_out(tmp_path, dataset, monkeypatch, capsys):
    def user(text):
        return {"role": "user", "content": text}

    def assistant(text):
        return {"role": "assistant", "content": text}

    rows = [
        {"messages": [{"role": m.role, "content": m.text} for m in TALK] + [user("And?")]},
        {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]},
        {"prompt": "C", "completion": "D"},
        {"prompt": "C", "completion": "D"},
        {"messages": [user("E"), user("F"), assistant("G")]},
        {"messages": [{"role": "tool", "content": "H"}]},
        {"messages": [user("I")]},
        {"messages": [user(["J"])]},
        {"instruction": "K", "output": ""},
        {"instruction": 1, "output": "L"},
        ["M"],
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n{"broken": \n'
    (tmp_path / "chat.jsonl").write_text(text)
    out = tmp_path / "set"
    how = f"--file={tmp_path / 'chat.jsonl'}", f"--tokenizer={dataset}", f"--out={out}"
    assert script(monkeypatch, instruct, *how) == 0
    found = {*documents(out, "train"), *documents(out, "val")}
    assert found == {
        "### System:\nBe brief.\n\n### Instruction:\nHello\n\n### Response:\n[Hi!<end>]"
        "### Instruction:\nWörter?\n\n### Response:\n[Ja.<end>]",
        "### Instruction:\nA\n\n### Response:\n[B<end>]",
        "### Instruction:\nC\n\n### Response:\n[D<end>]",
    }
    told = capsys.readouterr().out
    for reason in ("duplicate", "take turns", "by neither", "no answer", "has no text", "no text"):
        assert reason in told


def test_a_chat_prompt_has_the_ids_of_training(dataset):
    tok = tokenization.load(dataset)
    whole, learnt = chat.encode(tok, TALK)
    for end in (2, 4):
        prompt, marks = chat.encode(tok, TALK[:end])
        assert whole[: len(prompt)] == prompt and learnt[: len(prompt)] == marks
        assert learnt[len(prompt)] == 1
    hostile, _ = chat.encode(tok, [Message("user", "<|endoftext|>")])
    assert hostile.count(tok.eot) == 1


def test_a_conversation_goes_on_and_forgets_its_oldest_turns(trained, monkeypatch, capsys):
    from parts import talk

    read, reply = [], talk.reply

    def remember(model, tokenizer, ids, cfg, seed):
        read.append(tokenizer.decode(ids))
        return reply(model, tokenizer, ids, cfg, seed)

    monkeypatch.setattr(talk, "reply", remember)
    said = "first\n\nsecond\n" + "third " * 20 + "\nfourth"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
    args = ["--chat", f"--ckpt={trained}", "--max_new_tokens=8", "--device=cpu", "--temperature=0"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *args])
    sample.main()
    answers = capsys.readouterr().out.split("\n\n")
    assert [text.count("### Instruction:") for text in read[:2]] == [1, 2]
    assert read[1].startswith(read[0]) and read[1].endswith("second\n\n### Response:\n")
    assert answers[0].strip() in read[1]
    assert "first" not in read[3] and "fourth" in read[3]


# --- sentiment ------------------------------------------------------------------------------------


def tables(folder):
    """The same texts in every kind of file, by name, with the settings that it needs."""
    import csv

    named = [{"sentence": text, "label": label} for text, label in TEXTS]
    words = [{"review": t, "Sentiment": ["Negative", "positive"][n]} for t, n in TEXTS]
    odd = [{"body": text, "stars": float(label)} for text, label in TEXTS]
    (folder / "a.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in TEXTS))
    (folder / "b.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in TEXTS))
    with open(folder / "c.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["Sentiment", "review"])
        writer.writeheader()
        writer.writerows(words)
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, odd)))
    (folder / "e.json.gz").write_bytes(gzip.compress(json.dumps(named).encode()))
    return {"d.jsonl": ("--text=body", "--label=stars")}


@pytest.mark.parametrize("name", ["a.tsv", "b.tsv", "c.csv", "d.jsonl", "e.json.gz"])
def test_of_every_kind_of_table_the_label_alone_is_learnt(tmp_path, dataset, monkeypatch, name):
    how = tables(tmp_path).get(name, ())
    out = tmp_path / "set"
    files = f"--file={tmp_path / name}", f"--tokenizer={dataset}", f"--out={out}"
    assert script(monkeypatch, sentiment, *files, *how) == 0
    train, val = documents(out, "train"), documents(out, "val")
    words = "negative", "positive"
    expected = {f"{text}\nSentiment:[ {words[label]}]" for text, label in TEXTS}
    assert {*train, *val} == expected and len(train) + len(val) == 48 and len(val) == 5
    assert not train == sorted(train)  # sorted files make mixed batches


def test_long_texts_keep_their_end_and_labels_may_be_any_words(tmp_path, dataset, monkeypatch):
    rows = [{"text": f"begin {n} " + "so " * 300 + "end", "label": n % 3} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    how = [f"--{key}={tmp_path / name}" for key, name in (("file", "a.jsonl"), ("out", "set"))]
    how += [f"--val_file={tmp_path / 'val.jsonl'}", f"--tokenizer={dataset}", "--max_tokens=40"]
    assert script(monkeypatch, sentiment, *how, "--labels=bad,fair,very good") == 0
    train, val = documents(tmp_path / "set", "train"), documents(tmp_path / "set", "val")
    assert (len(train), len(val)) == (26, 4)  # what val has is left out of train
    endings = {f"end\nSentiment:[ {word}]" for word in ("bad", "fair", "very good")}
    assert all(any(text.endswith(end) for end in endings) for text in train + val)
    ids = np.fromfile(tmp_path / "set/train.bin", "<u2")
    starts = np.flatnonzero(ids == tokenization.load(dataset).eot)
    assert max(np.diff(np.r_[starts, len(ids)])) <= 40


@pytest.mark.parametrize("module", [instruct, sentiment])
def test_the_command_that_is_named_fine_tunes_the_tokenizers_model(
    trained, dataset, tmp_path, monkeypatch, capsys, module
):
    rows = ROWS if module is instruct else [{"text": t * 4, "label": n} for t, n in TEXTS]
    made = make(monkeypatch, module, tmp_path, trained, rows)
    [command] = follow(monkeypatch, capsys.readouterr().out, tmp_path / "run")
    assert f"--init_from={trained}" in command and f"--dataset={made.folder}" in command
    splits = [np.split(part, np.flatnonzero(part == 0)) for part in (made.train, made.val)]
    longest = max(len(document) for split in splits for document in split)
    # A label stands at the end. An answer has as much room as the model: the config asks for more.
    room = 128 if module is instruct else longest
    assert [part for part in command if "block_size" in part] == [f"--block_size={room}"]
    assert module is instruct or 64 < longest < 128
    # Of a tokenizer that belongs to no model the command does not know which one is meant.
    make(monkeypatch, module, tmp_path, dataset, rows, f"--out={tmp_path / 'other'}")
    assert "--init_from=MODEL" in capsys.readouterr().out


# --- mistakes -------------------------------------------------------------------------------------

BAD = [  # module, content of a file, its name, settings, a part of the line
    (instruct, b"", "a.json", [], "a.json holds no examples: it is empty"),
    (instruct, b"[]", "a.json", [], "holds no examples"),
    (instruct, b"[1, 2", "a.json", [], "cannot be read as JSON"),
    (instruct, b"[" * 100_000, "a.json", [], "cannot be read as JSON"),
    (instruct, b'{"text": "a"}\n', "a.jsonl", [], "no instruction with an output"),
    (instruct, b"\xe2\n" * 5, "a.jsonl", [], "it cannot be read: 'utf-8'"),
    (instruct, b"not gzip", "a.json.gz", [], "Not a gzipped file"),
    (instruct, b"not parquet", "a.parquet", [], "cannot be read as parquet"),
    (instruct, b"a", "a.txt", [], "--file takes *.json"),
    (instruct, b'{"prompt": "a", "answer": "b"}\n', "a.jsonl", [], "two different examples"),
    (instruct, b"", "a.json", ["--val_fraction=0"], "val_fraction must be above 0"),
    (instruct, b"", "a.json", ["--source=x/y"], "give --file=... or"),
    (instruct, b"", "a.json", ["--tokenizer=nowhere"], "'nowhere' is unknown"),
    (instruct, b"", "a.json", ["--tokenizer={char}"], "it was made from; give a bpe"),
    (instruct, b"", "a.json", ["--tokenizer={plain}"], "has no <|endoftext|>"),
    (instruct, b"", "a.json", ["--file={folder}"], "--file takes"),
    (instruct, b"", "a.json", ["--file={folder}/folder.json"], "there is no file"),
    (instruct, b"", "a.json", ["--file={folder}/pipe.json"], "there is no file"),
    (sentiment, b"", "a.csv", [], "holds no examples: it is empty"),
    (sentiment, b"good\tbad\n", "a.tsv", [], "its first line names no columns"),
    (sentiment, b"a,b\n1,2,3\n", "a.csv", [], "its first line names no columns"),
    (sentiment, b"text,stars\na,1\n", "a.csv", [], "it has no column label"),
    (sentiment, b"text,label\na,maybe\nb,no\nc,1\n", "a.csv", ["--labels=x,y"], "two different"),
    (sentiment, b"text,label\na,maybe\nb,no\n", "a.csv", ["--labels=x,y"], "no label is one of"),
    (sentiment, b"text,label\na,4\n", "a.csv", [], "the labels are numbers up to 4"),
    (sentiment, b"text,label\na,1.0\nb,1\n", "a.csv", [], "all texts have the same label"),
    (instruct, b'{"messages": [{"role": ["x"], "content": "a"}]}', "a.json", [], "by neither"),
    (sentiment, b"text,label\na,good\n", "a.csv", [], "2 to 20 different words"),
    (sentiment, b"text,label\n", "a.csv", ["--labels=a,a"], "2 to 20 different words"),
    (sentiment, b"text,label\n", "a.csv", ["--labels=bad,bad one"], "begins with 'bad'"),
    (sentiment, b"text,label\n\xe2,1\n", "a.csv", [], "not UTF-8"),
    (sentiment, b"text,label\na,1\n", "a.csv", ["--max_tokens=3"], "leave no room for a text"),
    (sentiment, b"a\t1\n", "a.tsv", ["--val_file=nowhere.tsv"], "there is no file"),
]


@pytest.mark.parametrize("module, content, name, args, line", BAD)
def test_a_mistake_is_one_line(
    tmp_path, dataset, monkeypatch, capsys, module, content, name, args, line
):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    tokenization.train_char("abc").save(tmp_path / "char")
    tokenization.train_bpe(["abc"], 256, special_tokens=()).save(tmp_path / "plain")
    places = {"folder": tmp_path, "char": tmp_path / "char", "plain": tmp_path / "plain"}
    how = [f"--file={tmp_path / name}", f"--tokenizer={dataset}", f"--out={tmp_path / 'set'}"]
    assert script(monkeypatch, module, *how, *(arg.format(**places) for arg in args)) == 2
    [said] = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
    assert line in said and len(said) < 700
    assert not list(tmp_path.glob("*set*"))


def test_without_a_run_it_says_what_to_give(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text("[]")
    monkeypatch.setattr(configurator, "ROOT", tmp_path)
    assert script(monkeypatch, instruct, f"--file={tmp_path / 'a.json'}") == 2
    assert "give --tokenizer=FOLDER" in capsys.readouterr().err


# --- tasks ----------------------------------------------------------------------------------------


def make(monkeypatch, module, tmp_path, tokenizer, rows, *args):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    how = f"--file={file}", f"--out={tmp_path / 'set'}", f"--tokenizer={tokenizer}", *args
    assert script(monkeypatch, module, *how) == 0
    return Dataset(str(tmp_path / "set"))


def nats_of(model, ids, begin):
    """Of the tokens from `begin` on, from one float32 forward pass."""
    logits = model(torch.tensor([ids]))[0].log_softmax(-1)
    return [-logits[at - 1, ids[at]].item() for at in range(begin, len(ids))]


def exam(names, model, tokenizer, data, **options):
    options = tasks.Options(show=0, dtype="float32", **options)
    return tasks.Exam(names, tokenizer, np.array(data.val), data.meta, options).measure(model)


@torch.no_grad()
def test_instruct_is_the_loss_of_the_answers(trained, tmp_path, monkeypatch):
    model, tok, _ = runs.load(trained, "cpu")
    rows = [*ROWS, {"messages": [m._asdict() | {"content": m.text} for m in TALK]}]
    data = make(monkeypatch, instruct, tmp_path, trained, rows, "--val_fraction=0.5")
    found = exam("instruct", model, tok, data)
    mask = np.fromfile(tmp_path / "set/val.mask", np.uint8)
    starts = np.flatnonzero((data.val == tok.eot) & (mask == 0))
    nats, bytes_ = [], 0
    for ids, marks in zip(np.split(data.val, starts)[1:], np.split(mask, starts)[1:]):
        ids = ids.tolist()
        each = [0.0, *nats_of(model, ids, 1)]
        nats += [nat for nat, mark in zip(each, marks) if mark]
        bytes_ += len(tok.decode([i for i, m in zip(ids, marks) if m and i != tok.eot]).encode())
    assert len(starts) == found["conversations"] >= 10
    assert found["answer_loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    bits = np.sum(nats) / np.log(2) / bytes_
    assert found["answer_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert data.meta["val"]["learnt_bytes"] == bytes_
    assert found["exact_match"] == 0 and found["short_answers"] >= found["conversations"]


def test_a_model_that_knows_the_answers_matches_them(trained, tmp_path, monkeypatch):
    model, tok, _ = runs.load(trained, "cpu")
    rows = [{"prompt": f"{n}", "answer": "It is so."} for n in range(8)]
    data = make(monkeypatch, instruct, tmp_path, trained, rows, "--val_fraction=0.5")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    ids, marks = chat.encode(tok, [Message("user", "x"), Message("assistant", "It is so.")])
    x, y = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
    y[0, [not mark for mark in marks[1:]]] = -100
    for _ in range(25):
        model.zero_grad()
        model(x, y).backward()
        optimizer.step()
    found = exam("instruct", model, tok, data)
    assert found["exact_match"] == 1 and found["answer_loss"] < 0.1


@torch.no_grad()
@pytest.mark.parametrize("labels", [(), ("--labels=bad,fair,very good",)])
def test_sentiment_takes_the_likelier_label(trained, tmp_path, monkeypatch, labels):
    model, tok, _ = runs.load(trained, "cpu")
    rows = [
        {"text": text, "label": n % 3 if labels else label} for n, (text, label) in enumerate(TEXTS)
    ]
    data = make(monkeypatch, sentiment, tmp_path, trained, rows, "--val_fraction=0.4", *labels)
    found = exam("sentiment", model, tok, data)
    words = data.meta["labels"]
    right, chosen = [], []
    for text in documents(tmp_path / "set", "val"):
        given, word = text.split("[")
        given = [tok.eot, *tok.encode(given.removesuffix(sentiment.QUESTION))]
        given += tok.encode(sentiment.QUESTION)
        costs = [sum(nats_of(model, given + tok.encode(f" {w}"), len(given))) for w in words]
        right.append(words.index(word.strip(" ]")))
        chosen.append(int(np.argmin(costs)))
    how = "macro" if labels else "binary"
    assert found["sentiment_accuracy"] == pytest.approx(accuracy_score(right, chosen))
    assert found["sentiment_f1"] == pytest.approx(f1_score(right, chosen, average=how))
    assert found["majority_accuracy"] <= max(np.bincount(right)) / len(right)
    if not labels:
        assert found["bag_of_words_accuracy"] == found["bag_of_words_f1"] == 1
        file = tmp_path / "test.tsv"
        file.write_text("a fine , good film\t1\nit is bad\tnegative\nbad\tso-so\n")
        found = exam("sentiment", model, tok, data, file=(str(file),))
        assert found["sentiment_texts"] == 2 and found["bag_of_words_accuracy"] == 1


def test_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(100):
        count = rng.integers(2, 5)
        right, chosen = rng.integers(count, size=(2, 12))
        how = "macro" if max(right.max(), chosen.max()) > 1 else "binary"
        expected = f1_score(right, chosen, average=how, zero_division=0)
        assert f1(right, chosen) == pytest.approx(expected)


def test_tasks_refuse_other_data_sets(trained, dataset, monkeypatch, capsys):
    for name in ("sentiment", "instruct"):
        args = [f"--ckpt={trained}", f"--dataset={dataset}", f"--tasks={name}", "--device=cpu"]
        monkeypatch.setattr(sys, "argv", ["eval.py", *args])
        with pytest.raises(SystemExit, match="2"):
            evaluation.main()
        assert f"prepare/{name}.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed, args, line",
    [
        (b"", ["--prompt=a"], "--chat reads standard input"),
        (b"", ["--num_samples=2"], "one answer to each line"),
        (b"\xe2\n", [], "can't decode byte"),
        (b"x" * 1_000_001, [], "a line has more than 1,000,000 characters"),
    ],
)
def test_what_is_no_conversation_is_one_line(trained, monkeypatch, capsys, typed, args, line):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    args = ["--chat", f"--ckpt={trained}", "--device=cpu", *args]
    monkeypatch.setattr(sys, "argv", ["sample.py", *args])
    with pytest.raises(SystemExit, match="2"):
        sample.main()
    [said] = capsys.readouterr().err.splitlines()
    assert line in said

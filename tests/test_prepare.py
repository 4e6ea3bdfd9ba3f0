"""prepare/: from source files to bin files, run as a person runs it, on real code in temporary
folders."""

import base64
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import follow, run

from parts import configurator, data
from parts import tokenizer as tokenization
from prepare import clean, corpus, sources

STDLIB = Path(sysconfig.get_path("stdlib"))
SMALL = ("--vocab_size=600", "--val_fraction=0.2", "--fim_rate=0")
TESTS = ("test_a.py", "a_test.py", "tests/a.py", "testing/b.py")
LICENSED = {"max_stars_repo_licenses": ["MIT"], "max_stars_count": 50}


def library(*names):
    """Text of each Python file of some packages of the standard library."""
    paths = [path for name in names for path in sorted((STDLIB / name).glob("*.py"))]
    paths = [path for path in paths if path.stat().st_size > 500]
    return {path.relative_to(STDLIB).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def documents(dataset):
    """split -> the texts in its bin file."""
    tok, found = tokenization.load(dataset), {}
    for split in ("train", "val"):
        ids = np.fromfile(dataset / f"{split}.bin", "<u2")
        ends = np.flatnonzero(ids == tok.eot) + 1
        found[split] = [tok.decode(part[:-1]) for part in np.split(ids, ends)[:-1]]
        assert ends[-1] == len(ids)
    return found


def digest(dataset):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.iterdir())
    }


def code(repository, number, name="content"):
    """A row of different, real-looking code for each number."""
    rnd = random.Random(number)
    lines = [
        f"def step_{rnd.randrange(10**6)}(value, other):\n"
        f"    return value * {rnd.randrange(10**6)} + other.part_{rnd.randrange(10**6)}\n"
        for _ in range(12)
    ]
    return {
        name: "\n".join(lines),
        "max_stars_repo_name": repository,
        "max_stars_repo_path": f"f{number}.py",
    }


# --- tiny Shakespeare -----------------------------------------------------------------------------


@pytest.mark.skipif(
    "NANONEOX_DATA" not in os.environ,
    reason="NANONEOX_DATA names no folder with tinyshakespeare.txt",
)
def test_tiny_shakespeare_has_the_known_counts(tmp_path):
    file = Path(os.environ["NANONEOX_DATA"], "tinyshakespeare.txt")
    run("prepare/shakespeare.py", f"--file={file}", f"--out={tmp_path / 's'}")
    meta = json.loads((tmp_path / "s/meta.json").read_text())
    assert meta["vocab_size"] == 65 and meta["licences"] == {"public domain": 1}
    assert (meta["train"]["tokens"], meta["val"]["tokens"]) == (1_003_854, 111_540)


@pytest.mark.parametrize("kind, licence", [("char", "MIT"), ("bpe", "")])
def test_a_text_is_split_at_nine_tenths_comes_back_and_can_be_trained_on(
    tmp_path, monkeypatch, kind, licence
):
    text = (STDLIB / "argparse.py").read_text()[:2500].replace("\n", " ") + "Wörter"
    write(tmp_path, {"t.txt": text})
    files = f"--file={tmp_path / 't.txt'}", f"--out={tmp_path / 's'}", f"--licence={licence}"
    done = run("prepare/shakespeare.py", *files, f"--tokenizer={kind}", "--vocab_size=500")
    tok, cut = tokenization.load(tmp_path / "s"), int(0.9 * len(text))
    meta = json.loads((tmp_path / "s/meta.json").read_text())
    assert meta["licences"] == {licence or "unknown": 1}
    for split, part in ("train", text[:cut]), ("val", text[cut:]):
        ids = np.fromfile(tmp_path / f"s/{split}.bin", "<u2")
        assert tok.decode(ids) == part
        assert (meta[split]["tokens"], meta[split]["bytes"]) == (len(ids), len(part.encode()))
    # Val is shorter than the window of any config, and has no newline to begin a sample with.
    cpu, gpu = follow(monkeypatch, done.stdout, tmp_path / "run", "--n_layer=1")
    names = {"char": ("shakespeare_cpu", "shakespeare_char"), "bpe": ("english_cpu",)}
    names["bpe"] += ("shakespeare_t4",)
    assert (cpu[0], gpu[0]) == tuple(f"config/{name}.py" for name in names[kind])


# --- Python code ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_set(tmp_path_factory):
    """Real packages, and one planted file for each rule, made into a data set."""
    tmp = tmp_path_factory.mktemp("python")
    real = library("json", "email", "logging", "asyncio", "concurrent/futures")
    original = real["json/decoder.py"]
    changed = [line if i % 25 else f"# changed {i}" for i, line in enumerate(original.split("\n"))]
    rnd = random.Random(0)
    table = "\n".join(f'    b"{base64.b64encode(rnd.randbytes(45)).decode()}"' for _ in range(200))
    planted = {
        "x/latin.py": "# Größe\n".encode("latin-1") * 50,
        "x/nul.py": b"a = 1\n\0" * 50,
        "x/short.py": 'PASSWORD = "9f8Gk2LmQx7Zt4Vb1Nc6"\n',
        "x/long.py": original * 100,
        "x/marked.py": "# Code generated by a tool. DO NOT EDIT.\n" + real["asyncio/locks.py"],
        "x/messages_pb2.py": real["asyncio/queues.py"],
        "x/minified.py": "x = '''" + "def f(a): return a;" * 500 + "'''\n",
        "x/average.py": "\n".join(f"value_{i} = '{'some words ' * 14}'" for i in range(20)),
        "x/symbols.py": "\n".join(f"{'+-*/%' * 8}  # {i}" for i in range(50)),
        "x/digits.py": "\n".join(f"values = {rnd.randrange(10**11, 10**12)}" for _ in range(50)),
        "x/table.py": "PICTURE = (\n" + table + "\n)\n",
        "x/copy.py": original.replace("    ", "\t").replace("\n", "\r\n"),
        "x/header.py": "# Copyright 2024\n# All rights reserved\n" + real["json/encoder.py"],
        "x/edited.py": "\n".join(changed),
        "x/secrets.py": """\
import client

AWS = "AKIAIOSFODNN7EXAMPLE"
GITHUB = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
GOOGLE = "AIzaSyD-0123456789abcdefghijklmnopqrstu"
PASSWORD = "correct-horse-battery"  # a name, not a random value
config = dict(api_key="9f8Gk2LmQx7Zt4Vb1Nc6", mail="jane.doe@somewhere.org")
product = left@right.grad + clone("git@github.com:owner/name.git")


@client.com.register
def connect(mode="plain"):
    return client.connect(config, mode)
""",
        "x/node_modules/a.py": real["email/header.py"],
        "x/.hidden/b/c.py": real["email/header.py"],
        "x/.hidden/notes.txt": "notes",
        "env/pyvenv.cfg": "home = /usr",
        "env/lib/d.py": real["email/header.py"],
    }
    write(tmp / "src", {**real, **planted})
    done = run("prepare/python.py", f"--path={tmp / 'src'}", f"--out={tmp / 'set'}", *SMALL)
    return tmp, real, done, json.loads((tmp / "set/meta.json").read_text())


def test_the_bins_hold_the_cleaned_documents_and_meta_counts_them(python_set):
    tmp, real, done, meta = python_set
    found = documents(tmp / "set")
    whole = {clean.mask(text.strip("\n") + "\n")[0] for text in real.values()}
    copied = [real[name] for name in ("json/decoder.py", "json/encoder.py")]
    copies = {clean.mask(text.strip("\n") + "\n")[0] for text in copied}
    kept = {text for texts in found.values() for text in texts}
    # Of two near copies, either may be the one that stays.
    assert whole - copies <= kept and len(kept - whole) <= 3
    for split, texts in found.items():
        assert meta[split]["documents"] == len(texts)
        assert meta[split]["bytes"] == sum(len(text.encode()) for text in texts)
        content = (tmp / f"set/{split}.bin").read_bytes()
        assert meta[split]["sha256"] == hashlib.sha256(content).hexdigest()
        assert meta[split]["tokens"] == len(content) / 2
        assert meta[split]["max_id"] == np.frombuffer(content, "<u2").max()
    assert meta["tokenizer"] == {"kind": "bpe", "file": "tokenizer.json"}
    assert meta["vocab_size"] == 600
    assert "bytes per token" in done.stdout and "python train.py" in done.stdout


def test_training_reads_the_largest_id_from_meta_and_the_bins_only_without_it(
    python_set, tmp_path, monkeypatch
):
    folder = tmp_path / "set"
    shutil.copytree(python_set[0] / "set", folder)
    read, largest = [], np.memmap.max

    def max_of_file(tokens):
        read.append(Path(tokens.filename).name)
        return largest(tokens)

    monkeypatch.setattr(np.memmap, "max", max_of_file)
    data.Dataset(str(folder), block_size=64)
    assert read == []

    # A file that was changed since is read.
    with open(folder / "val.bin", "r+b") as file:
        file.write(np.array([599], "<u2").tobytes())
    data.Dataset(str(folder), block_size=64)
    assert read == ["val.bin"]

    # Earlier versions recorded no largest id.
    meta = json.loads((folder / "meta.json").read_text())
    for split in ("train", "val"):
        del meta[split]["max_id"]
    (folder / "meta.json").write_text(json.dumps(meta))
    read.clear()
    data.Dataset(str(folder), block_size=64)
    assert read == ["train.bin", "val.bin"]


def test_each_rule_drops_the_file_that_was_planted_for_it(python_set):
    count = {rule: numbers["documents"] for rule, numbers in python_set[3]["cleaning"].items()}
    dropped = {
        "not UTF-8, or binary": 2,
        "under 100 characters": 1,
        "over 1 MB": 1,
        "generated": 2,
        "long lines": 1,
        "average line over 100": 1,
        "letters under 25 %": 1,
        "digits over 40 %": 1,
        "data table": 1,
        "exact duplicate": 1,
        "near duplicate": 2,
    }
    assert {rule: count[rule] for rule in dropped} == dropped
    assert count["read"] == sum(dropped.values()) + count["kept"]


def test_a_data_set_is_found_in_data_or_else_at_a_path(tmp_path, monkeypatch):
    monkeypatch.setattr(configurator, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "repository/data/theirs", "theirs"):
        write(tmp_path / folder, {"meta.json": "{}"})
    assert configurator.dataset_folder("theirs") == tmp_path / "repository/data/theirs"
    assert configurator.dataset_folder("./mine") == tmp_path / "mine"
    assert configurator.dataset_folder("x" * 500) == tmp_path / "repository/data" / ("x" * 500)


def test_what_is_skipped_is_said_and_read_where_it_is_named(python_set):
    tmp, _, done, _ = python_set
    [line] = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert "skipped: 3 *.py files in .hidden, env, node_modules; to read" in line
    for name, found in ("x/.hidden", "b/c.py"), ("x/node_modules", "a.py"), ("env", "lib/d.py"):
        files, skipped = sources.find_files([tmp / "src" / name], ".py")
        assert list(files) == [found] and not skipped
    files, skipped = sources.find_files([tmp / "src", tmp / "src/env"], ".py")  # each is named
    assert "lib/d.py" in files and len(skipped) == 2


def test_meta_shows_the_first_document_that_each_rule_dropped_without_its_secrets(python_set):
    tmp, _, _, meta = python_set
    examples = {rule: count.get("example") for rule, count in meta["cleaning"].items()}
    for rule, count in meta["cleaning"].items():
        assert bool(examples[rule]) == (count["documents"] > 0 and rule not in ("read", "kept"))
    assert examples["under 100 characters"] == {
        "name": "x/short.py",
        "text": 'PASSWORD = "<KEY>"\n',
    }
    table = (tmp / "src/x/table.py").read_text()
    assert examples["data table"] == {"name": "x/table.py", "text": table[:300]}
    assert examples["not UTF-8, or binary"]["text"] == ""


def test_a_tally_that_is_saved_and_read_again_counts_on():
    cfg = SimpleNamespace(licences="any", min_stars=0, origin="", prose=False, languages="")
    texts = ["short", "shorter", *library("json").values()]
    whole, resumed = corpus.Tally(), corpus.Tally()
    for number, text in enumerate(texts):
        examined = clean.examine(clean.Document(text, f"{number}.py", "g"), cfg, None)
        resumed = corpus.Tally(json.loads(json.dumps(resumed.report())))
        for tally in (whole, resumed):
            if examined.rule:
                tally.drop(examined.rule, examined)
            else:
                tally.keep(examined, ["MIT"], "python")
    report = resumed.report()
    assert report == whole.report()
    assert report["licences"] == {"MIT": len(texts) - 2}
    assert report["languages"] == {"python": len(texts) - 2}
    short = report["cleaning"]["under 100 characters"]
    assert short == {"documents": 2, "bytes": 12, "example": {"name": "0.py", "text": "short"}}


def test_secrets_and_addresses_are_masked_and_other_text_is_not(python_set):
    tmp, _, _, meta = python_set
    kept = [text for texts in documents(tmp / "set").values() for text in texts]
    text = next(text for text in kept if "import client" in text)
    for secret in ("AKIA", "ghp_", "AIza", "9f8Gk2", "jane.doe"):
        assert secret not in text
    for harmless in ("correct-horse-battery", "left@right.grad", "git@github.com"):
        assert harmless in text
    assert "@client.com.register" in text
    kinds = {"AWS key", "GitHub token", "Google key", "assigned secret", "e-mail address"}
    assert kinds <= meta["masked"].keys()


def test_near_duplicates_are_found_and_different_files_are_kept():
    library_texts = library("email", "json", "asyncio", "unittest", "http").values()
    texts = [text for text in library_texts if len(text) > 3000]
    rnd = random.Random(1)

    def keys(text):
        squeezed = clean.squeeze(text.encode())
        return clean.sketch(squeezed, np.sort(clean.windows(squeezed)[1]))

    def with_header(text):
        return "# A new licence\n" * 3 + text

    def renamed(text):
        return text.replace("value", "number")

    def edited(text):
        lines = text.split("\n")
        return "\n".join(
            line if rnd.random() > 0.03 else f"changed_{rnd.random()}" for line in lines
        )

    sketches = [keys(text) for text in texts]
    for edit, least in (with_header, 0.98), (renamed, 0.9), (edited, 0.9):
        found = [(keys(edit(text)) == known).any() for text, known in zip(texts, sketches)]
        assert np.mean(found) >= least
    pairs = [(a == b).any() for i, a in enumerate(sketches) for b in sketches[:i]]
    assert sum(pairs) <= 1


def test_no_repository_is_in_both_splits_and_a_huge_one_does_not_starve_val(tmp_path):
    rows = [code("huge/one" if i % 2 else f"owner/r{i % 60}", i) for i in range(400)]
    write(tmp_path, {"a.jsonl": "\n".join(json.dumps({**row, **LICENSED}) for row in rows)})
    files = f"--file={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 'set'}"
    run("prepare/python.py", *files, "--vocab_size=600", "--fim_rate=0")
    found = documents(tmp_path / "set")
    owner = {row["content"].strip(): row["max_stars_repo_name"] for row in rows}
    split = {name: {owner[text.strip()] for text in texts} for name, texts in found.items()}
    assert not split["train"] & split["val"] and len(split["val"]) > 1
    assert 0.03 < len(found["val"]) / len(rows) < 0.07


def test_what_is_trained_on_is_chosen_and_the_held_out_split_stays(tmp_path):
    files = library("email", "json", "logging", "asyncio", "http", "xml/dom", "wsgiref", "urllib")
    files |= {f"mine/step_{n}.py": code("", n)["content"] for n in range(30)}
    files |= {f"asyncio/{name}": code("", 100 + n)["content"] for n, name in enumerate(TESTS)}
    source = write(tmp_path / "source", files)
    sets = {}
    for name, how in {"all": (), "some": ("--max_share=0.1", "--max_kb=20", "--tests=0")}.items():
        said = run(
            "prepare/python.py", f"--path={source}", f"--out={tmp_path / name}", *SMALL, *how
        )
        sets[name] = documents(tmp_path / name)
    assert sets["some"]["val"] == sets["all"]["val"]
    before, after = (sets[name]["train"] for name in sets)
    assert set(after) < set(before) and len(after) < len(before)
    assert max(map(len, after)) <= 20_000 < max(map(len, before))
    tests = {files[f"asyncio/{name}"].strip("\n") + "\n" for name in TESTS}
    assert not tests & set(after) and tests & set(before + sets["all"]["val"])
    texts = {text.strip("\n") + "\n": name.split("/")[0] for name, text in files.items()}
    sizes = dict.fromkeys(texts.values(), 0)
    for text in after:
        if text in texts:  # the others hold an address, which is masked
            sizes[texts[text]] += len(text.encode())
    left_out = json.loads((tmp_path / "some/meta.json").read_text())["left out of train"]
    capped = [count for reason, count in left_out.items() if "repository" in reason]
    assert max(sizes.values()) <= 0.1 * (sum(sizes.values()) + capped[0]["bytes"])
    assert "left out of train: tests: " in said.stdout


def test_the_same_input_gives_the_same_bytes_and_max_mb_takes_a_part(tmp_path):
    source = write(tmp_path / "src", library("json", "email", "asyncio"))
    for out in "ab":
        run("prepare/python.py", f"--path={source}", f"--out={tmp_path / out}", *SMALL)
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    run("prepare/python.py", f"--path={source}", f"--out={tmp_path / 'c'}", *SMALL, "--max_mb=0.2")
    read = json.loads((tmp_path / "c/meta.json").read_text())["cleaning"]["read"]["bytes"]
    assert 0.2e6 <= read < 0.4e6


def test_benchmark_problems_are_left_out(tmp_path):
    prompt = """from typing import List


def has_pair(numbers: List[int], goal: int) -> bool:
    \""" Whether two of the numbers add up to the goal.
    >>> has_pair([1, 2], 3)
    True
    \"""
"""
    solution = """    seen = set()
    for number in numbers:
        if goal - number in seen:
            return True
        seen.add(number)
    return False
"""
    short = 'def double(x: int):\n    """Twice the value."""\n'
    rows = [
        {"task_id": "T/0", "prompt": prompt, "canonical_solution": solution},
        {"task_id": "T/1", "prompt": short, "canonical_solution": "    return 2 * x\n"},
    ]
    with gzip.open(tmp_path / "bench.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    real = library("email", "json", "asyncio")
    texts = list(real.values())
    leaks = {
        "x/prompt.py": texts[3] + prompt.split("\n\n\n")[1].replace("    ", "\t") + "\tpass\n",
        "x/solution.py": texts[9] + "def other(numbers, goal):\n" + solution,
        "x/short.py": "def double(x: int):\n    return 2 * x\n\n\n" + texts[15],
    }
    fair = {"x/fair.py": "def half(y):\n    y = y + 1\n    return 2 * x\n" + texts[21][::-1]}
    used = (texts[3], texts[9], texts[15])
    others = {name: text for name, text in real.items() if text not in used}
    source = write(tmp_path / "src", {**others, **leaks, **fair})
    folders = f"--path={source}", f"--out={tmp_path / 'set'}"
    benchmark = f"--decontaminate={tmp_path / 'bench.jsonl.gz'}"
    run("prepare/python.py", *folders, *SMALL, benchmark)
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert meta["cleaning"]["benchmark"]["documents"] == len(leaks)
    kept = "".join(text for texts in documents(tmp_path / "set").values() for text in texts)
    assert "has_pair" not in kept and "def double" not in kept and "def half" in kept


# --- hub columns, and Go --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_go_rows_are_filtered_by_stars_licence_and_origin(tmp_path, kind):
    rows = []
    for i in range(90):
        row = code(f"{'bad' if i % 9 == 0 else 'good'}/r{i % 30}", i)
        row["max_stars_count"] = i if i % 10 else None
        row["max_stars_repo_licenses"] = [["MIT"], ["GPL-3.0"], ["Apache-2.0", "MIT"]][i % 3]
        rows.append(row)
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        __import__("pyarrow.parquet").parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with gzip.open(path, "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
    files = f"--file={tmp_path}/*.{kind}", f"--out={tmp_path / 'set'}"
    run("prepare/go.py", *files, *SMALL, "--min_stars=20", "--origin=good")
    kept = {text.strip() for texts in documents(tmp_path / "set").values() for text in texts}
    assert kept == {
        row["content"].strip()
        for i, row in enumerate(rows)
        if i % 3 != 1 and i % 9 and (i % 10 == 0 or i >= 20)
    }
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert set(meta["licences"]) == {"MIT", "Apache-2.0"}


def test_codesearchnet_columns_are_read(tmp_path):
    rows = [
        {
            "repository_name": f"o/r{i % 20}",
            "func_path_in_repository": f"a/{i}.py",
            "func_name": "f",
            "language": "-",
            "func_code_string": code("", i)["content"],
            "whole_func_string": "-",
        }
        for i in range(60)
    ]
    write(tmp_path, {"csn.jsonl": "\n".join(map(json.dumps, rows))})
    files = f"--file={tmp_path / 'csn.jsonl'}", f"--out={tmp_path / 'set'}"
    run("prepare/python.py", *files, *SMALL)
    kept = {text.strip() for texts in documents(tmp_path / "set").values() for text in texts}
    assert kept == {row["func_code_string"].strip() for row in rows}


def test_the_column_with_the_text_is_known_or_named_or_asked_for(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = list(library("json", "logging", "http", "urllib").values())
    for column in ("text", "body"):
        rows = [{"path": f"{n}.py", column: text, "size": n} for n, text in enumerate(texts)]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{column}.parquet")
    read = [document.text for document in sources.file_documents(f"{tmp_path}/text.parquet")]
    assert read == texts
    settings = (f"--file={tmp_path}/body.parquet", f"--out={tmp_path / 'set'}", *SMALL)
    for column, missing in (("", "content"), ("--column=code", "code")):
        done = run("prepare/python.py", *settings, *[column] * bool(column), ok=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"no column {missing}" in done.stderr and "only path, body, size" in done.stderr
    run("prepare/python.py", *settings, "--column=body")
    assert json.loads((tmp_path / "set/meta.json").read_text())["cleaning"]["kept"]["documents"]


def test_the_hub_loader_streams_the_columns_that_it_asks_for(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    (tmp_path / "data/python").mkdir(parents=True)
    rows = [{**code(f"o/r{i}", i), **LICENSED, "size": 1} for i in range(5)]
    file = tmp_path / "data/python/data-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    columns = [name for name in rows[0] if name != "size"]
    found = list(sources.hub_documents(path=str(tmp_path), data_dir="data/python", columns=columns))
    assert [d.text for d in found] == [row["content"] for row in rows]
    assert found[0][1:] == ("f0.py", "o/r0", ["MIT"], 50, None)


def test_prose_loses_what_only_looks_like_it_and_rows_of_other_languages(tmp_path):
    from pydoc_data.topics import topics  # the manual's texts, which `help` prints

    real = [text for text in topics.values() if len(text) > 1500]
    german = "Die Liste heißt To do, und nur die letzte Zeile nennt ihre Sprache. " * 3
    menu = "Home\nAll the news\nShare it with your friends and have a look at these\n"
    planted = {  # rule -> text, and the language that its row names
        "repeated lines": (menu * 12 + real[0][:1500], "en"),
        "few real words": (" ".join(f"{word} =====" for word in real[1].split()[:200]), "en"),
        "no English sentences": (german, None),
        "other language": (german, "de"),
    }
    rows = [{"text": text, "language": None if i % 2 else "en"} for i, text in enumerate(real)]
    first = [{"text": t, "language": name, "url": rule} for rule, (t, name) in planted.items()]
    write(tmp_path, {"a.jsonl": "\n".join(map(json.dumps, first + rows))})
    files = f"--file={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 'set'}"
    run("prepare/web.py", *files, "--languages=en", "--tokenizer=bpe", *SMALL)
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    examples = {rule: count.get("example", {}) for rule, count in meta["cleaning"].items()}
    assert [examples[rule].get("name") for rule in planted] == list(planted)
    kept = [text for texts in documents(tmp_path / "set").values() for text in texts]
    assert len(kept) >= 0.9 * len(real)
    clean_texts = {clean.mask(text.strip("\n") + "\n")[0] for text in real[::2]}
    assert meta["languages"] == {"en": len(clean_texts & set(kept))}


# --- interruptions and mistakes -------------------------------------------------------------------


def test_an_interruption_leaves_the_old_set_or_none(tmp_path):
    source = write(tmp_path / "src", library("json", "email", "asyncio", "unittest"))
    folder = tmp_path / "data"
    folder.mkdir()
    arguments = [f"--path={source}", f"--out={folder / 'set'}"]
    command = [sys.executable, str(ROOT / "prepare/python.py"), *arguments]

    def interrupted(number, delay):
        """Start, wait, and send the signal: to the workers too, as a terminal does, except for
        SIGKILL."""
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started = time.time()
        while not folder.exists() or not any(".partial" in entry for entry in os.listdir(folder)):
            assert process.poll() is None and time.time() < started + 30
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is not None:
            return
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        _, error = process.communicate(timeout=30)
        expected = -9 if number == signal.SIGKILL else 130
        ended_first = delay >= 0.6 and process.returncode == 0  # just before the signal came
        assert ended_first or process.returncode == expected, error
        assert "Traceback" not in error
        if process.returncode == 130:
            assert error.splitlines()[-1] == "interrupted; nothing half-made is left behind"

    interrupted(signal.SIGINT, 0.3)
    assert os.listdir(folder) == []
    interrupted(signal.SIGKILL, 0.3)
    assert not (folder / "set").exists()
    run("prepare/python.py", *arguments, *SMALL)
    assert os.listdir(folder) == ["set"]  # what the killed run left is gone
    old = digest(folder / "set")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    for number, delay in zip(numbers, (0.0, 0.6, 0.9, 0.6)):
        interrupted(number, delay)
        kept = folder / "set.1"  # if a new set was done before the signal came
        assert digest(kept if kept.exists() else folder / "set") == old
        sets = [name for name in os.listdir(folder) if name.split(".")[0] == "set"]
        assert number == signal.SIGKILL or sorted(os.listdir(folder)) == sorted(sets)


def test_a_new_set_moves_the_old_one_aside_and_the_same_one_stays(tmp_path):
    source = write(tmp_path / "src", library("json", "email", "asyncio"))
    (tmp_path / "drive").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "drive/set")
    arguments = f"--path={source}", f"--out={tmp_path / 'set'}", *SMALL
    run("prepare/python.py", *arguments)
    first, inode = digest(tmp_path / "drive/set"), (tmp_path / "drive/set").stat().st_ino
    assert "unchanged" in run("prepare/python.py", *arguments).stdout
    assert os.listdir(tmp_path / "drive") == ["set"]
    assert (tmp_path / "drive/set").stat().st_ino == inode
    done = run("prepare/python.py", *arguments, "--seed=2")
    assert f"{tmp_path}/drive/set.1\n" in done.stdout
    assert (tmp_path / "set").is_symlink() and digest(tmp_path / "drive/set.1") == first


def test_two_at_once_do_not_disturb_each_other(tmp_path):
    source = write(tmp_path / "src", library("json", "email", "asyncio"))
    command = [sys.executable, str(ROOT / "prepare/python.py"), f"--path={source}", *SMALL]
    command.append(f"--out={tmp_path / 'data/set'}")
    started = [
        subprocess.Popen([*command, f"--seed={seed}"], stdout=subprocess.DEVNULL) for seed in (1, 2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert sorted(os.listdir(tmp_path / "data")) == ["set", "set.1"]
    seeds = set()
    for name in ("set", "set.1"):
        meta = json.loads((tmp_path / "data" / name / "meta.json").read_text())
        seeds.add(meta["arguments"]["seed"])
        for split in ("train", "val"):
            content = (tmp_path / "data" / name / f"{split}.bin").read_bytes()
            assert meta[split]["sha256"] == hashlib.sha256(content).hexdigest()
    assert seeds == {1, 2}


def test_wrong_rows_are_counted_and_the_rest_is_kept(tmp_path):
    lines = [json.dumps({**code(f"o/r{i % 20}", i), **LICENSED}) for i in range(60)]
    good = {json.loads(line)["content"].strip() for line in lines}
    wrong = ["5", "null", "[[[", '{"content": null}', '{"content": 7}', "[" * 99_999, '"\xff"']
    wrong += [json.dumps({**code("o/r", 99), key: {}}) for key in LICENSED]
    lines[5:5] = wrong
    write(tmp_path, {"a.jsonl": "\n".join(lines).encode("latin-1")})
    run("prepare/python.py", f"--file={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 's'}", *SMALL)
    assert {text.strip() for texts in documents(tmp_path / "s").values() for text in texts} == good
    meta = json.loads((tmp_path / "s/meta.json").read_text())
    assert meta["cleaning"]["unreadable"]["documents"] == len(wrong)


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no process like this")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    source = write(tmp_path / "src", library("json", "email", "asyncio"))
    arguments = f"--path={source}", f"--out={tmp_path / 'new/set'}", *SMALL
    command = [sys.executable, str(ROOT / "prepare/python.py"), *arguments]
    for blocks in (1, 300):  # of 1 kB: full while cleaning, and when the tokens are written
        shell = ["bash", "-c", f'ulimit -f {blocks} && exec "$@"', "bash", *command]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert os.listdir(tmp_path) == ["src"]


ONE = "--path={tmp}/one"
MISTAKES = [  # script, arguments, a part of the line that must be printed
    ("python.py", ["--path={tmp}/nowhere"], "nowhere"),
    ("python.py", ["--path={tmp}/one/a.py"], "a.py is no folder"),
    ("python.py", ["--path={tmp}/empty"], "*.py"),
    ("python.py", ["--path={tmp}/deep"], "skipped: 1 *.py file in site-packages; to read"),
    ("python.py", [ONE], "too few"),
    ("python.py", ["--source=web"], "codesearchnet"),
    ("python.py", ["--file={tmp}/none.jsonl"], "none.jsonl"),
    ("python.py", ["--file={tmp}/columns.jsonl"], "content"),
    ("python.py", ["--file={tmp}/broken.jsonl"], "broken.jsonl"),
    ("python.py", ["--file={tmp}/broken.parquet"], "broken.parquet"),
    ("python.py", [ONE, "--vocab_size=100000"], "65536"),
    ("python.py", [ONE, "--tokenizer={tmp}/nothing"], "nothing"),
    ("python.py", [ONE, "--decontaminate={tmp}/columns.jsonl"], "canonical_solution"),
    ("python.py", [ONE, "--decontaminate={tmp}/null.jsonl"], "null.jsonl"),
    ("python.py", [ONE, "--decontaminate={tmp}/pipe"], "pipe"),
    ("python.py", ["--file={tmp}/cut.jsonl.gz"], "cut.jsonl.gz"),
    ("python.py", ["--file={tmp}/numbers.jsonl"], "numbers.jsonl"),
    ("python.py", [ONE, "--out={tmp}"], "choose another --out"),
    ("python.py", [ONE, "--out={tmp}/pipe"], "choose another --out"),
    ("python.py", [ONE, "--out={tmp}/device"], "choose another --out"),
    ("python.py", [ONE, "--out=a/../.."], "full path"),
    ("python.py", [ONE, "--out="], "full path"),
    ("python.py", [ONE, "--out={root}/out/new"], "choose another --out"),
    ("python.py", [ONE, "--out={root}/data"], "choose another --out"),
    ("python.py", [ONE, "--val_fraction=0.9"], "val_fraction"),
    ("python.py", ["--sorce=local"], "source"),
    ("go.py", ["--source=local"], "--path"),
    ("shakespeare.py", ["--file={tmp}/none.txt"], "none.txt"),
    ("shakespeare.py", ["--file={tmp}/pipe"], "pipe"),
    ("shakespeare.py", ["--file={tmp}/latin.txt"], "latin.txt"),
    ("shakespeare.py", [], "--file"),
]


@pytest.mark.parametrize("script, arguments, says", MISTAKES)
def test_a_mistake_gets_one_line(tmp_path, monkeypatch, script, arguments, says):
    files = {
        "one/a.py": library("json")["json/decoder.py"],
        "deep/site-packages/a.py": "a = 1\n",
        "columns.jsonl": '{"body": "x"}\n',
        "broken.jsonl": '{"a": \n',
        "broken.parquet": "no",
        "null.jsonl": '{"prompt": null, "canonical_solution": 5}\n',
        "numbers.jsonl": "1\n2\n",
        "cut.jsonl.gz": gzip.compress(b'{"content": "x"}\n' * 999)[:40],
        "latin.txt": "Größe\n".encode("latin-1") * 50,
    }
    write(tmp_path, files)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    try:
        os.mknod(tmp_path / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:  # only root can
        (tmp_path / "device").symlink_to(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no go
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    arguments = [argument.format(tmp=tmp_path, root=ROOT) for argument in arguments]
    if not any("--out" in argument for argument in arguments):
        arguments.append(f"--out={tmp_path / 'set'}")
    done = run(f"prepare/{script}", *arguments, ok=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr, done.stderr
    assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".set*"))
    assert sorted(tmp_path.rglob("*")) == before

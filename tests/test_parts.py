"""Preparing in parts: the parts, joined, are what one run makes; what does not belong together is
told apart."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run
from test_prepare import LICENSED, SMALL, code, digest, library, write

from parts import data
from prepare import join, share, sources

# Half of train is rearranged, by a draw for each document.
HOW = (*SMALL[:2], "--fim_context=64")


def prepare(tmp, out, *how, parts=0, ok=True):
    """data set `out` by one run, or by `parts` of them and prepare/join.py"""
    target = f"--out={tmp / out}"
    if not parts:
        return run("prepare/python.py", target, *HOW, *how, ok=ok)
    for number in range(1, parts + 1):
        run("prepare/python.py", target, *HOW, *how, f"--part={number}/{parts}")
    return run("prepare/join.py", target, ok=ok)


def assert_same(one, joined):
    for name in ("train.bin", "val.bin", "tokenizer.json", "tokenizer_config.json"):
        assert (one / name).read_bytes() == (joined / name).read_bytes(), name
    a, b = (json.loads((folder / "meta.json").read_text()) for folder in (one, joined))
    a["arguments"].pop("out"), b["arguments"].pop("out")
    assert list(a["licences"].items()) == list(b["licences"].items()) and a == b
    return a


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of real packages, of which some files are there twice, as one set and as parts."""
    tmp = tmp_path_factory.mktemp("folder")
    real = library("json", "email", "asyncio", "http")
    copies = {f"copies/{name}": text for name, text in real.items() if name.startswith("json")}
    edited = {f"edited/{name}": f"# changed\n{text}" for name, text in real.items() if "/c" in name}
    write(tmp / "src", {**real, **copies, **edited, "short.py": "import os\n"})
    prepare(tmp, "one", f"--path={tmp / 'src'}")
    done = prepare(tmp, "set", f"--path={tmp / 'src'}", parts=2)
    return tmp, done, len(copies)


def test_parts_of_a_folder_make_what_one_run_makes(folder):
    tmp, done, copies = folder
    meta = assert_same(tmp / "one", tmp / "set")
    cleaning = {rule: count["documents"] for rule, count in meta["cleaning"].items()}
    assert cleaning["exact duplicate"] >= copies and cleaning["near duplicate"]
    assert cleaning["under 100 characters"] == 1
    # None of the parts knew of them: each has every document that it read.
    lines = [len((tmp / f"set.part-0{n}-of-02/documents.jsonl").open().readlines()) for n in "12"]
    assert sum(lines) == cleaning["read"] and max(lines) - min(lines) <= 1
    assert "the parts are no longer needed" in done.stdout
    again = run(
        "prepare/python.py", f"--path={tmp / 'src'}", f"--out={tmp / 'set'}", *HOW, "--part=2/2"
    )
    assert "holds exactly this already" in again.stdout
    assert sorted(os.listdir(tmp)) == [
        "one",
        "set",
        *(f"set.part-0{n}-of-02" for n in "12"),
        "src",
    ]


def test_parts_of_files_make_what_one_run_makes(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**code(f"o/r{i % 20}", i % 85), **LICENSED} for i in range(120)]
    for i, row in enumerate(rows):
        row["max_stars_repo_licenses"] = [["MIT"], ["GPL-3.0"], ["Apache-2.0", "MIT"]][i % 3]
    lines = ["5", *map(json.dumps, rows[:40])]
    write(tmp_path, {"a.jsonl": "\n".join(lines)})
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows[40:80])))
    parquet.write_table(pa.Table.from_pylist(rows[80:]), tmp_path / "c.parquet")
    files = f"--file={tmp_path}/a.jsonl,{tmp_path}/*.gz,{tmp_path}/c.parquet"
    prepare(tmp_path, "one", files)
    prepare(tmp_path, "set", files, parts=2)
    cleaning = assert_same(tmp_path / "one", tmp_path / "set")["cleaning"]
    assert cleaning["unreadable"]["documents"] == 1 and cleaning["exact duplicate"]["documents"]

    # max_mb counts over all parts.
    def taken(part, max_mb):
        documents = sources.file_documents(files.removeprefix("--file="))
        return list(share.take(documents, share.Part(*part), max_mb, hashlib.sha256()))

    whole = taken((1, 1), 0.06)
    assert 0.06e6 <= sum(len(document.text or "") for _, document in whole) < 0.062e6
    halves = [taken((number, 2), 0.06) for number in (1, 2)]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert sorted(halves[0] + halves[1], key=lambda pair: pair[0]) == whole
    # Without it a part opens no file but its own.
    (tmp_path / "a.jsonl").write_text("broken")
    assert [document.text for _, document in taken((2, 2), 0)] == [
        row["content"] for row in rows[40:80]
    ]


def change(path, **values):
    facts = json.loads(path.read_text())
    facts["settings"] |= {key: values.pop(key) for key in list(values) if key in facts["settings"]}
    path.write_text(json.dumps(facts | values))


def test_what_does_not_make_a_whole_is_one_line(folder, tmp_path, monkeypatch, capsys):
    def refused(says):
        before = {path.name: digest(path) for path in tmp_path.iterdir()}
        monkeypatch.setattr(sys, "argv", ["join.py", f"--out={tmp_path / 'set'}"])
        with pytest.raises(SystemExit) as ended:
            join.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and says in said, said
        assert {path.name: digest(path) for path in tmp_path.iterdir()} == before

    refused("holds no parts of set")
    one, two = (tmp_path / f"set.part-0{n}-of-02" for n in "12")
    for part in (one, two):
        shutil.copytree(folder[0] / part.name, part)
    with pytest.raises(ValueError, match="one part of a data set; .* prepare/join.py --out=set"):
        data.Dataset(str(two))
    for part in (one, two):
        change(part / "part.json", vocab_size="many")
    refused(f"{one / 'part.json'} is damaged: vocab_size")
    for part in (one, two):
        change(part / "part.json", vocab_size=600)
    change(two / "part.json", min_stars=5)
    refused(f"{two} was made with min_stars=5, {one.name} with min_stars=0")
    change(two / "part.json", min_stars=0, listing="other")
    refused(f"{two} was made from other documents than {one.name}")
    two.rename(tmp_path / "elsewhere")
    refused(f"there is no {two / 'part.json'}; make it with --part=2/2, or copy it here")
    shutil.copytree(folder[0] / two.name, two)
    shutil.copytree(one, tmp_path / "set.part-01-of-03")
    refused("*.part-*-of-02 and *.part-*-of-03")
    shutil.rmtree(tmp_path / "set.part-01-of-03")
    text = (two / "documents.jsonl").read_bytes()
    last = text.rindex(b"\n", 0, -1) + 1
    for damaged in (text[:-1000], text[:last], text.replace(b"import", b"export"), text + b"{}\n"):
        (two / "documents.jsonl").write_bytes(damaged)
        refused(f"{two / 'documents.jsonl'} is damaged or cut short")
    for wrong in ("0/3", "4/3", "2", "1/1000", "-1/2"):
        with pytest.raises(ValueError, match="part must be like 3/16"):
            share.parse(wrong)
    source = f"--path={folder[0] / 'src'}"
    done = run("prepare/python.py", source, f"--out={one}", ok=False)  # in a part's place
    assert done.returncode == 2 and "choose another --out" in done.stderr, done.stderr


def test_an_interruption_leaves_no_half_of_a_part_and_takes_no_part(folder, tmp_path):
    for number in (1, 2):
        name = f"set.part-0{number}-of-02"
        shutil.copytree(folder[0] / name, tmp_path / name)
    before = {path.name: digest(path) for path in tmp_path.iterdir()}
    part = ["prepare/python.py", f"--path={folder[0] / 'src'}", f"--out={tmp_path / 'set'}"]
    for number, *command in (
        (signal.SIGINT, *part, "--part=2/2", "--seed=2"),
        (signal.SIGKILL, "prepare/join.py", f"--out={tmp_path / 'set'}"),
    ):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list(tmp_path.glob(f".set*.partial-*-{process.pid}")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        if number != signal.SIGKILL:
            assert process.returncode == 130 and "interrupted" in said, said
        assert {p.name: digest(p) for p in tmp_path.iterdir() if p.name[0] != "."} == before
    run("prepare/join.py", f"--out={tmp_path / 'set'}")  # what the killed join left goes too
    assert_same(folder[0] / "one", tmp_path / "set")
    assert not list(tmp_path.glob(".set.partial*"))

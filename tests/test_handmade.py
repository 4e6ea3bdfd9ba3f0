"""The handmade functions: each one runs, none is a benchmark's problem, and prepare/handmade.py
makes a document of each, and of a person's own."""

import doctest
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, TINY, in_process
from test_prepare import documents

from parts import configurator
from parts import tokenizer as tokenization
from prepare import handmade
from prepare.clean import Document, examine, read_benchmark

PYTHON = sorted((handmade.FUNCTIONS / "python").glob("*.py"))
GO = handmade.FUNCTIONS / "go"
COUNTS = {"python": 200, "go": 100}
MINE = """\
from __future__ import annotations

import functools, os.path
from typing import Any, Iterator as Items

LIMIT = 3


@functools.cache
def deep(value: int) -> Items[str]:
    '''Yield a name.'''
    def inner():
        return "}" + str(value)

    yield inner()


class Box:
    def method(self):
        return "methods are no functions of their own"


async def wait(seconds):
    await os.path.exists(seconds)
    return "# no comment", \"\"\"
def not_a_function():
\"\"\"
"""


def prepare(monkeypatch, *args):
    """The exit code of `python prepare/handmade.py args`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["prepare/handmade.py", *map(str, args)])
    try:
        handmade.main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a small tokenizer, as that of a run has one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [file.read_text(encoding="utf-8") for file in PYTHON]
    tokenization.train_bpe(texts, 600, tokenization.PATTERNS["code"]).save(folder)
    return folder


# --- the functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", PYTHON, ids=[file.stem for file in PYTHON])
def test_python_functions_stand_alone_and_pass_their_examples(file, tmp_path, monkeypatch):
    """Each one runs as its document has it, without the rest of its file; and its examples tell
    whether it works: they fail if it returns something else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    around = runpy.run_path(str(file))
    for name, text in handmade.python_functions(file.read_text(encoding="utf-8")):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        function = runpy.run_path(str(tmp_path / f"{name}.py"))[name]
        assert function.__doc__, name
        examples = function.__doc__ + "\n" + around["__test__"].get(name, "")
        for works, tried in ((True, function), (False, lambda *args, **kwargs: object())):
            test = doctest.DocTestParser().get_doctest(
                examples, around | {name: tried}, name, str(file), 0
            )
            report = []
            failed, attempted = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
            assert attempted and (failed == 0) == works, (name, "".join(report))


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed here")
def test_go_functions_pass_their_tests(tmp_path):
    for file in GO.glob("*.go"):
        shutil.copy(file, tmp_path)
    (tmp_path / "go.mod").write_text("module handmade\n\ngo 1.18\n")
    for command in (["gofmt", "-l", "."], ["go", "vet", "./..."], ["go", "test", "./..."]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert command[0] == "go" or not done.stdout, done.stdout
    tests = "".join(file.read_text() for file in GO.glob("*_test.go"))
    for document in handmade.shipped("go"):
        name = document.group.split(":")[1]
        assert re.search(rf"\b{name}(\[int\])?\(", tests), f"no test calls {name}"
        assert f"\n// {name} " in document.text, f"{name} has no doc comment"


@pytest.mark.parametrize("language", COUNTS)
def test_they_are_as_many_as_promised_and_of_different_names(language):
    shipped = handmade.shipped(language)
    names = {document.group.split(":")[1] for document in shipped}
    assert len(shipped) == len(names) == COUNTS[language]
    problems = [file for file in (ROOT / "tasks").glob("*.jsonl")]
    lines = [json.loads(line) for file in problems for line in file.read_text().splitlines()]
    theirs = {line["task_id"].split("/")[1].replace("_", "").lower() for line in lines}
    assert len(theirs) > 60
    assert not theirs & {name.replace("_", "").lower() for name in names}


BENCHMARKS = [ROOT / "tasks/python.jsonl", ROOT / "tasks/go.jsonl"]
if "NANONEOX_DATA" in os.environ:
    names = "HumanEval.jsonl.gz", "humaneval_go.jsonl.gz"
    BENCHMARKS += [Path(os.environ["NANONEOX_DATA"], name) for name in names]


@pytest.mark.parametrize("file", BENCHMARKS, ids=[file.name for file in BENCHMARKS])
def test_cleaning_and_decontamination_drop_none(file):
    cfg, benchmark = configurator.load(handmade.Settings, []), read_benchmark(file)
    kept = [examine(d, cfg, benchmark) for lang in COUNTS for d in handmade.shipped(lang)]
    assert [result.rule for result in kept] == [None] * 300
    assert not any(result.masked for result in kept)
    problem = json.loads((ROOT / "tasks/python.jsonl").read_text().splitlines()[13])
    copied = Document(problem["prompt"] + problem["canonical_solution"], "", "")
    rule = examine(copied, cfg, read_benchmark(ROOT / "tasks/python.jsonl")).rule
    assert rule == "benchmark"


# --- their documents ------------------------------------------------------------------------------


def test_a_python_document_has_the_imports_that_its_function_needs():
    deep, wait = handmade.python_functions(MINE)
    assert deep[0] == "deep" and deep[1].startswith(
        "from __future__ import annotations\nimport functools\nfrom typing import Iterator as Items"
        "\n\n\n@functools.cache\ndef deep("
    )
    assert deep[1].endswith("    yield inner()\n")
    assert wait[1].split("\n\n\n")[0].endswith("annotations\nimport os.path")
    assert wait[1].endswith('\n    return "# no comment", """\ndef not_a_function():\n"""\n')


def test_a_go_document_is_a_file_of_its_own():
    text = """\
package shapes // of all kinds

import (
	"fmt"
	str "strings"
	"os"
)
import "example/kit/v2"

/* func Commented() {
} */
var raw = `
func InRaw() {
}
`

// One is short.
func One() int { return 1 }

// Braces has some in texts.
// It goes on "here {".
func Braces(x interface{}) interface{} {
	fmt.Println("}", '{', `
}`, x) // }
	return str.ToUpper("os.Exit")
}

func (s Shape) Area() int {
	return 1
}
func List[T any](
	items ...T,
) struct{ n int } {
	return kit.Wrap(items)
}
"""
    one, braces, generic = handmade.go_functions(text)
    assert one == ("One", "package shapes\n\n// One is short.\nfunc One() int { return 1 }\n")
    head, body = braces[1].split("// Braces has some")
    assert head == 'package shapes\n\nimport (\n\t"fmt"\n\tstr "strings"\n)\n\n'
    assert body.endswith('\treturn str.ToUpper("os.Exit")\n}\n') and "goes on" in body
    assert generic[1].startswith('package shapes\n\nimport (\n\t"example/kit/v2"\n)\n\nfunc List[')
    assert generic[1].endswith("\treturn kit.Wrap(items)\n}\n")


def test_ours_and_your_own_are_prepared_and_fine_tuned_on(tmp_path, monkeypatch, capsys, tokenizer):
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text(MINE)
    (code / "broken.py").write_text("def half(:\n" * 20)
    (code / "latin.py").write_bytes("def größe():\n    pass\n".encode("latin-1") * 9)
    (code / "deep.py").write_text("def f():\n    return " + "(" * 5000 + ")" * 5000)
    os.mkfifo(code / "pipe.py")
    out, before = tmp_path / "set", sorted(code.iterdir())
    args = f"--tokenizer={tokenizer}", f"--out={out}"
    tasks = f"--decontaminate={ROOT / 'tasks/python.jsonl'}"
    assert prepare(monkeypatch, f"--path={code}", tasks, *args) == 0
    printed = capsys.readouterr().out
    assert re.search(r"unreadable +3 ", printed) and re.search(r"kept +202 ", printed)
    assert "python train.py config/finetune_handmade.py --init_from=" in printed
    made, ours = documents(out), [document.text for document in handmade.shipped("python")]
    both = made["train"] + made["val"]
    mine = [text for _, text in handmade.python_functions(MINE)]
    assert sorted(both) == sorted(ours + mine) and len(set(both)) == 202
    assert 10 <= len(made["val"]) <= 40 and sorted(code.iterdir()) == before

    first = f"--out_dir={tmp_path / 'first'}"
    assert in_process(monkeypatch, f"--dataset={out}", first, *TINY, "--max_iters=1") == 0
    config = "config/finetune_handmade.py", f"--init_from={tmp_path / 'first'}", f"--dataset={out}"
    rest = f"--out_dir={tmp_path / 'tuned'}", "--max_iters=2", "--eval_iters=1", "--device=cpu"
    assert in_process(monkeypatch, *config, *rest) == 0
    assert (tmp_path / "tuned/ckpt.pt").exists()


def test_go_is_prepared(tmp_path, monkeypatch, capsys, tokenizer):
    out = tmp_path / "set"
    args = f"--tokenizer={tokenizer}", f"--out={out}", "--language=go"
    assert prepare(monkeypatch, *args) == 0
    made = documents(out)
    shipped = [document.text for document in handmade.shipped("go")]
    assert sorted(made["train"] + made["val"]) == sorted(shipped)
    assert "split by function" in capsys.readouterr().out


MISTAKES = [
    (["--language=perl"], "language must be one of go, python, not 'perl'"),
    (["--file=x.jsonl"], "takes no --file; name a folder with --path"),
    (["--path={tmp}/nowhere"], "is no folder; --path takes one of *.py files"),
    (["--path={tmp}/classes"], "files in {tmp}/classes have no python function"),
    (["--path={tmp}/classes", "--language=go"], "there are no *.go files in"),
    (["--tokenizer={tmp}"], "there is no tokenizer at {tmp}"),
    (["--tokenizer={tmp}/damaged"], "is not a Hugging Face tokenizer.json"),
    (["--tokenizer={tmp}/char"], "knows only the characters it was made from"),
    (["--decontaminate=nowhere.jsonl"], "there is no file"),
    (["--decontaminate={tmp}"], "there is no file {tmp}"),
    (["--val_fraction=0"], "val_fraction must be above 0"),
    (["--val_fraction=0.9"], "val_fraction must be at most 0.5"),
    (["--val_fraction=0.00001"], "too few for a train and a val split"),
    (["--val_fraction=-1"], "val_fraction must be a number from 0 up"),
    (["--out=../x"], "is not below"),
    (["--out=" + str(ROOT / "prepare/functions")], "is part of nanoNeoX itself"),
]


@pytest.mark.parametrize("args,message", MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_is_one_line(args, message, tmp_path, monkeypatch, capsys, tokenizer):
    for name in ("classes", "char", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes/a.py").write_text("class A:\n    def f(self):\n        return 1\n")
    (tmp_path / "damaged/tokenizer.json").write_text("{}")
    tokenization.train_char("some text").save(tmp_path / "char")
    before = sorted(tmp_path.rglob("*"))
    given = [arg.format(tmp=tmp_path) for arg in args]
    usual = f"--tokenizer={tokenizer}", f"--out={tmp_path / 'set'}"
    assert prepare(monkeypatch, *usual, *given) == 2
    captured = capsys.readouterr()
    line = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and message.format(tmp=tmp_path) in line[0]
    assert "Traceback" not in captured.err and sorted(tmp_path.rglob("*")) == before


def test_help_lists_a_setting_once_as_it_is_here(monkeypatch, capsys):
    assert prepare(monkeypatch, "--help") == 0
    listed = [line.split("=")[0] for line in capsys.readouterr().out.splitlines() if "  --" in line]
    assert "  --decontaminate" in listed and "  --language" in listed
    assert len(listed) == len(set(listed))


def test_the_newest_run_gives_the_tokenizer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(configurator, "ROOT", tmp_path)
    assert prepare(monkeypatch, f"--out={tmp_path / 'set'}") == 2
    assert "there is no run in out/ to take the tokenizer from" in capsys.readouterr().err
    for number, name in enumerate(("new", "old")):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "ckpt.pt").write_bytes(b"")
        os.utime(tmp_path / "out" / name / "ckpt.pt", (9 - number, 9 - number))
    assert handmade.newest_run() == "out/new"

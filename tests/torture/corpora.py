"""prepare/ given wrong settings, damaged files and foreign files, several hundred of each in turn.

Whatever it is given, a script must end in one of two ways: exit code 2, one line on standard error
and nothing changed on the disk, or exit code 0 and a data set that is right.

Each case runs in a process forked from this one, which has everything imported, and in a folder of
its own that plays the repository. The cleaning runs in that process too, not in workers.

No case names a device of this machine or a place outside that folder as --out: a script with a bug,
run as root, would replace it."""

import contextlib
import copy
import functools
import gzip
import hashlib
import itertools
import json
import os
import random
import resource
import socket
import stat
import sys
import time
import traceback
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pydantic
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
from parts import configurator
from parts import tokenizer as tokenization
from prepare import corpus, go, python, shakespeare, sources

pydantic.TypeAdapter(dict)  # imports what the cases would import each on its own
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SCRIPTS = {"python": python, "go": go, "shakespeare": shakespeare}
LIMIT_S = 60  # a case that takes longer hangs
CONTENT, PATH, NAME, LICENCES, STARS = (
    "content",
    "max_stars_repo_path",
    "max_stars_repo_name",
    "max_stars_repo_licenses",
    "max_stars_count",
)


# --- a place to work in, and a run there ----------------------------------------------------------


def code(number):
    """Different, real-looking code for each number."""
    rnd = random.Random(number)
    return "\n".join(
        f"def step_{rnd.randrange(10**6)}(value, other):\n"
        f"    return value * {rnd.randrange(10**6)} + other.part_{rnd.randrange(10**6)}\n"
        for _ in range(12)
    )


def row(number):
    repository = f"owner/r{number % 20}"
    return dict(zip((CONTENT, PATH, NAME), (code(number), f"f{number}.py", repository))) | {
        LICENCES: ["MIT"],
        STARS: 50,
    }


ROWS = [row(number) for number in range(40)]


@pytest.fixture
def place(tmp_path):
    """A folder with the repository `repo`, the working directory `desk`, and good sources."""
    for name in ("repo/data", "repo/out/run", "desk/code", "home"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home/.profile").write_text("")
    with contextlib.suppress(OSError):  # needs root
        os.mknod(tmp_path / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "repo/out/run/ckpt.pt").write_text("weights")
    (tmp_path / "repo/config").symlink_to(configurator.ROOT / "config")
    for number in range(20):
        for suffix in (".py", ".go"):
            (tmp_path / f"desk/code/p{number}{suffix}").write_text(code(number))
    (tmp_path / "desk/text.txt").write_text(code(0) * 3)
    return tmp_path


def offline(*args, **kwargs):
    raise OSError("offline")


def in_this_process(function, items, start=None, args=(), workers=None):
    if start:
        start(*args)
    yield from map(function, items)


def in_small_table(duplicate, table, keys):
    return duplicate(table[: 2**16], keys)


def run(place, script, *arguments, before=None):
    """Run a script in a forked process. Returns its exit code and what it printed; "hangs" in place
    of the code if it does not end."""
    files = {1: place / "stdout", 2: place / "stderr"}
    process = os.fork()
    if not process:
        ended = 70
        try:
            for number, path in files.items():
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
            sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")
            sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
            for module in (configurator, corpus, sources):
                module.ROOT = place / "repo"
            corpus.parallel = in_this_process
            corpus.duplicate = functools.partial(in_small_table, corpus.duplicate)
            os.fsync = int  # which takes long, and none of these cases is about power cuts
            urllib.request.urlopen = offline
            os.environ |= {"HOME": str(place / "home"), "PATH": str(place), "HF_HUB_OFFLINE": "1"}
            os.chdir(place / "desk")
            sys.argv = [f"prepare/{script}.py", *arguments]
            if before:
                before()
            SCRIPTS[script].main()
            ended = 0
        except SystemExit as ending:
            ended = ending.code
        except BaseException:
            traceback.print_exc()
            ended = 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(ended)
    deadline = time.monotonic() + LIMIT_S
    while not (done := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            return "hangs", "", ""
        time.sleep(0.005)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files.values()]
    for path in files.values():
        path.unlink()
    return os.waitstatus_to_exitcode(done[1]), *texts


def tree(place):
    """Everything below a folder: what it is, and what it holds."""
    found = {}
    for here, folders, names in os.walk(place):
        for path in (Path(here, name) for name in folders + names):
            info = path.lstat()
            regular = path.is_file() and not path.is_symlink() and info.st_size < 10**8
            content = path.read_bytes() if regular else b""
            found[str(path)] = (info.st_mode, info.st_ino, hashlib.sha256(content).hexdigest())
    return found


def check(place, script, *arguments, before=None, names=None):
    """Run a script and check how it ends; see the top of this file. names: what an error message
    has to name. Returns the new data set's folder, or None after a mistake."""
    old = tree(place)
    code, out, err = run(place, script, *arguments, before=before)
    new = tree(place)
    assert code in (0, 2), f"{code}: {err[-2000:]}"
    assert not any(c < " " and c not in "\n\t" for c in out + err), "a control character is printed"
    assert old.items() <= new.items(), "something that existed was changed or removed"
    lines = [line for line in err.splitlines() if not line.startswith("training a BPE")]
    if code == 2:
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        assert new == old, f"left behind: {new.keys() - old.keys()}"
        assert names is None or names in lines[0], f"{names} is not named: {lines[0]}"
        return None
    assert not lines, err
    (meta,) = (Path(path) for path in new.keys() - old.keys() if path.endswith("meta.json"))
    assert set(os.listdir(meta.parent)) == set(corpus.FILES)
    return meta.parent


def documents(folder):
    """The texts of a data set, after checking its numbers against its files."""
    meta, tok = json.loads((folder / "meta.json").read_text()), tokenization.load(folder)
    texts = []
    for split in ("train", "val"):
        content = (folder / f"{split}.bin").read_bytes()
        ids = np.frombuffer(content, "<u2")
        assert meta[split]["sha256"] == hashlib.sha256(content).hexdigest()
        assert 0 < meta[split]["tokens"] == len(ids) and ids.max() < meta["vocab_size"]
        ends = np.flatnonzero(ids == tok.eot) + 1 if tok.eot is not None else [len(ids)]
        texts += [tok.decode(part[:-1]) for part in np.split(ids, ends)[:-1]]
        assert ends[-1] == len(ids)
    return [text.strip() for text in texts]


def unreadable(folder):
    return json.loads((folder / "meta.json").read_text())["cleaning"]["unreadable"]["documents"]


SMALL = "--vocab_size=512", "--val_fraction=0.2"


# --- rows -----------------------------------------------------------------------------------------

MISSING = object()
VALUES = {
    "missing": MISSING,
    "null": None,
    "int": 5,
    "float": 1.5,
    "nan": float("nan"),
    "400 digits": 10**400,
    "5000 digits": "DIGITS",
    "bool": True,
    "empty list": [],
    "list of int": [1],
    "list of null": [None],
    "dict": {"a": 1},
    "text": "text",
    "empty text": "",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "NUL": "a\0b",
    "surrogate": "\ud800",
    "long": "x" * 100_000,
}
TEXTS = {"text", "empty text", "escape", "NUL", "long", "surrogate"}
RIGHT = {  # column -> the values that a row may have there
    CONTENT: TEXTS,
    PATH: TEXTS | {"missing", "null"},
    NAME: TEXTS | {"missing", "null"},
    LICENCES: TEXTS | {"missing", "null", "empty list"},
    STARS: {"missing", "null", "int", "float", "nan", "400 digits"},
}


def wrong(number, column, value):
    changed = dict(ROWS[number], **{column: VALUES[value]})
    if VALUES[value] is MISSING:
        del changed[column]
    return changed


def write_lines(path, rows):
    lines = "\n".join(map(json.dumps, rows)).replace('"DIGITS"', "9" * 5000)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(lines)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", RIGHT)
def test_one_wrong_row_is_counted_and_the_rest_goes_on(place, column, value):
    kind, at = ("jsonl", 0) if len(value) % 2 else ("jsonl.gz", 17)
    rows = ROWS[:at] + [wrong(at, column, value)] + ROWS[at + 1 :]
    write_lines(place / f"desk/rows.{kind}", rows)
    folder = check(place, "python", f"--file=rows.{kind}", *SMALL)
    assert folder == place / "repo/data/python"
    others = {row[CONTENT].strip() for number, row in enumerate(ROWS) if number != at}
    assert others <= set(documents(folder))
    assert unreadable(folder) == (value not in RIGHT[column])


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", [CONTENT, LICENCES])
def test_a_file_of_nothing_but_wrong_rows(place, column, value):
    write_lines(place / "desk/rows.jsonl", [wrong(n, column, value) for n in range(len(ROWS))])
    folder = check(place, "go", "--file=rows.jsonl", *SMALL)
    fine = {"missing", "null", "empty list"} if column == LICENCES else set()
    assert folder is None or value in fine and len(documents(folder)) == 40


TYPES = {
    "int64": pa.array(range(40)),
    "null": pa.nulls(40),
    "bool": pa.array([True] * 40),
    "float": pa.array([0.5] * 40),
    "binary": pa.array([b"\xff"] * 40),
    "list of int": pa.array([[1]] * 40),
    "struct": pa.array([{"a": 1}] * 40),
    "time": pa.array([0] * 40, pa.timestamp("s")),
    "date beyond Python's": pa.array([2**62] * 40, pa.timestamp("us")),
    "decimal": pa.array([1] * 40).cast(pa.decimal128(25, 2)),
    "map": pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())),
    "not UTF-8": pa.Array.from_buffers(
        pa.string(),
        40,
        [None, pa.py_buffer(np.arange(41, dtype="<i4").tobytes()), pa.py_buffer(b"\xff" * 40)],
    ),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("column", [CONTENT, NAME, LICENCES, STARS])
def test_a_parquet_column_of_another_type(place, column, kind):
    table = pa.Table.from_pylist(ROWS)
    at = table.column_names.index(column)
    table = table.set_column(at, column, TYPES[kind])
    pyarrow.parquet.write_table(table, place / "desk/rows.parquet")
    # Without a licence, a row is dropped; without any documents, so is the data set.
    unlicensed = column == LICENCES and kind == "null"
    names = "0 documents" if unlicensed else "rows.parquet"
    folder = check(place, "python", "--file=rows.parquet", *SMALL, names=names)
    fine = (
        kind == "null"
        and column != CONTENT
        or column == STARS
        and kind in ("int64", "float", "decimal")
    )
    assert (folder is not None) == (fine and not unlicensed)


def test_parquet_with_one_text_that_is_no_utf8_or_with_a_column_twice(place):
    texts = [row[CONTENT].encode() for row in ROWS]
    texts[3] = b"\xff" * 200
    offsets = np.cumsum([0, *map(len, texts)]).astype("<i4")
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts))]
    array = pa.Array.from_buffers(pa.string(), 40, buffers)
    pyarrow.parquet.write_table(pa.table({CONTENT: array}), place / "desk/a.parquet")
    folder = check(place, "python", "--file=a.parquet", *SMALL, "--out=a")
    assert len(documents(folder)) == 39 and unreadable(folder) == 1
    twice = pa.Table.from_arrays([pa.array([r[CONTENT] for r in ROWS])] * 2, [CONTENT] * 2)
    pyarrow.parquet.write_table(twice, place / "desk/b.parquet")
    check(place, "python", "--file=b.parquet", *SMALL, "--out=b")


# --- whole files ----------------------------------------------------------------------------------


def special(path, kind):
    """Put something in a file's place that is no file."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        targets = {"loop": path.name, "dangling": "nowhere"}
        path.symlink_to(targets.get(kind, f"/dev/{kind}"))


SPECIAL = ("folder", "pipe", "socket", "loop", "dangling", "zero", "null", "tty")


def damaged(content, damage):
    rnd = random.Random(damage)
    if damage.startswith("flip"):
        at = rnd.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << rnd.randrange(8)]) + content[at + 1 :]
    if damage.startswith("cut"):
        return content[: rnd.randrange(len(content))]
    if damage.startswith("hole"):
        at = rnd.randrange(len(content))
        return content[:at] + bytes(512) + content[at + 512 :]
    return {
        "empty": b"",
        "zeros": bytes(5000),
        "random": rnd.randbytes(5000),
        "html": b"<!DOCTYPE html>\n<html>\x1b[31mNot found</html>\n",
        "twice": content * 2,
        "rubbish behind": content + b"rubbish",
        "UTF-16": "\n".join(map(json.dumps, ROWS)).encode("utf-16"),
        "deep": b"[" * 100_000 + b"\n" + content,
        "long line": b'{"content": "' + b"x" * 40_000_000 + b'"}\n' + content,
        "numbers": b"1\n2\n3\n",
        "lists": b"[]\n[1]\n",
        "texts": b'"a"\n"content"\n',
        "columns": b'{"\\u001b[31mbody": "x"}\n',
    }[damage]


DAMAGES = [f"{kind} {n}" for kind in ("flip", "cut", "hole") for n in range(4)]
DAMAGES += ["empty", "zeros", "random", "html", "twice", "rubbish behind", "UTF-16", "deep"]
DAMAGES += ["long line", "numbers", "lists", "texts", "columns"]


@pytest.mark.parametrize("damage", [*DAMAGES, *SPECIAL])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_a_damaged_file_beside_a_good_one(place, kind, damage):
    path = place / f"desk/b.{kind}"
    write_lines(place / "desk/a.jsonl", ROWS[:20])
    if damage in SPECIAL:
        special(path, damage)
    else:
        if kind == "parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[20:]), path)
        else:
            write_lines(path, ROWS[20:])
        content = damaged(path.read_bytes(), damage)
        if kind == "jsonl.gz" and damage not in DAMAGES[:14] + ["twice", "rubbish behind"]:
            content = gzip.compress(content)
        path.write_bytes(content)
    folder = check(place, "python", f"--file=a.jsonl,b.{kind}", *SMALL, names=f"b.{kind}")
    if folder:
        texts = set(documents(folder))
        assert {row[CONTENT].strip() for row in ROWS[:20]} <= texts
        assert damage in ("empty", "null") or len(texts) > 20
    elif kind == "jsonl":  # a flipped bit, a cut or a hole harms a line or two
        assert not damage.startswith(("flip", "cut", "hole", "deep", "long"))


def test_a_bomb_of_zeros(place):
    with gzip.open(place / "desk/b.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(bytes(10**6))
    limit = resource.RLIMIT_AS, (2**33, 2**33)

    def small_memory():
        resource.setrlimit(*limit)

    check(place, "python", "--file=b.jsonl.gz", *SMALL, before=small_memory, names="b.jsonl.gz")


@pytest.mark.parametrize("damage", ["latin", "UTF-16", "empty", "short", "NUL", *SPECIAL])
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_text_that_is_none(place, damage, tokenizer):
    path = place / "desk/t.txt"
    if damage in SPECIAL:
        special(path, damage)
    else:
        contents = {"latin": "Größe\n".encode("latin-1") * 100, "empty": b"", "short": b"abc"}
        contents |= {"UTF-16": ("text\n" * 100).encode("utf-16"), "NUL": b"a\0b\n" * 100}
        path.write_bytes(contents[damage])
    arguments = "--file=t.txt", f"--tokenizer={tokenizer}", "--vocab_size=300"
    folder = check(place, "shakespeare", *arguments, names="t.txt")
    assert (folder is not None) == (damage == "NUL")


# --- benchmarks and tokenizers --------------------------------------------------------------------

PROBLEM = {"prompt": f"def f(x):\n    '''{code(0)[:200]}'''\n", "canonical_solution": code(1)}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", PROBLEM)
def test_a_wrong_value_in_a_benchmark(place, column, value):
    problem = dict(PROBLEM, **{column: VALUES[value]})
    if VALUES[value] is MISSING:
        del problem[column]
    write_lines(place / "desk/bench.jsonl.gz", [PROBLEM, problem])
    arguments = "--path=code", "--decontaminate=bench.jsonl.gz", *SMALL
    folder = check(place, "python", *arguments, names="bench.jsonl.gz")
    assert (folder is not None) == (value in TEXTS - {"surrogate"})


@pytest.mark.parametrize("damage", [*DAMAGES, *SPECIAL])
def test_a_damaged_benchmark(place, damage):
    kind = "jsonl" if len(damage) % 2 else "jsonl.gz"
    path = place / f"desk/bench.{kind}"
    if damage in SPECIAL:
        special(path, damage)
    elif kind == "jsonl":
        path.write_bytes(damaged((json.dumps(PROBLEM) + "\n").encode() * 10, damage))
    else:
        path.write_bytes(damaged(gzip.compress(json.dumps(PROBLEM).encode()), damage))
    check(place, "go", "--path=code", f"--decontaminate=bench.{kind}", *SMALL, names="bench.")


def parts_of(value, path=()):
    """The paths to the parts of a tokenizer.json, of long lists and dicts only the first."""
    yield path
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys if len(keys) < 20 else keys[:2]:
            yield from parts_of(value[key], (*path, key))


BPE = tokenization.train_bpe([code(0)], 300).data
FOREIGN = copy.deepcopy(BPE)
FOREIGN["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
CHAR = tokenization.train_char(code(0)).data
TOKENIZERS = {"bpe": BPE, "huggingface": FOREIGN, "char": CHAR}
STRANGE = {
    key: VALUES[key] for key in ("missing", "null", "dict", "list of int", "text", "empty text")
}
STRANGE |= {"-1": -1, "70000": 70_000, "2**40": 2**40, "half": 0.5, "surrogate": "\ud800"}


def variants(data):
    """The tokenizer.json with each of its parts, in turn, replaced by each strange value."""
    for path, (name, value) in itertools.product(parts_of(data), STRANGE.items()):
        changed = {"": copy.deepcopy(data)}
        *way, last = ("", *path)
        inside = changed
        for key in way:
            inside = inside[key]
        if value is MISSING:
            del inside[last]
        else:
            inside[last] = value
        yield f"{path} {name}", changed.get("")


@pytest.mark.parametrize("kind", ["bpe", "huggingface", "char"])
def test_a_tokenizer_with_a_strange_part_works_or_is_refused(tmp_path, kind, capfd):
    file, refused, used = tmp_path / "tokenizer.json", 0, 0
    for which, data in variants(TOKENIZERS[kind]):
        file.write_text(json.dumps(data))
        try:
            tok = tokenization.load(file)
        except ValueError as error:
            assert str(file) in str(error), which
            refused += 1
            continue
        with contextlib.suppress(ValueError):  # it may know no spaces
            text = tok.decode(tok.encode("def f(x):\n    return x"))
            assert text.replace(" ", "").startswith("def") or kind != "bpe", which
        ids = list(range(tok.vocab_size + 2))
        assert len(tok.decode(ids)) > 0 and tok.decode(ids[-2:]) == "\ufffd\ufffd", which
        assert b"".join(map(tok.token_bytes, ids)).endswith("\ufffd\ufffd".encode()), which
        for i in ids:
            tok.heal([i, i])
        used += 1
    assert refused > 50 and used > 5
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", [*DAMAGES, *SPECIAL, "char"])
def test_a_damaged_tokenizer(place, damage):
    path = place / "desk/tokenizer.json"
    if damage in SPECIAL:
        special(path, damage)
    else:
        content = json.dumps(CHAR if damage == "char" else BPE).encode()
        path.write_bytes(content if damage == "char" else damaged(content, damage))
    check(place, "python", "--path=code", "--tokenizer=tokenizer.json", *SMALL, names="tokenizer")


# --- folders of code ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SPECIAL, "binary", "huge", "names", "deep", "closed", "gone"])
def test_a_folder_with_odd_things_in_it(place, kind):
    folder = place / "desk/code"
    odd = folder / "odd.py"
    if kind in SPECIAL:
        special(odd, kind)
    elif kind == "binary":
        odd.write_bytes(random.Random(0).randbytes(10_000))
    elif kind == "huge":
        with open(odd, "wb") as file:
            file.truncate(2**40)
    elif kind == "names":
        for name in (b"\xff.py", b"\x1b[31mred.py", b"a\nb.py", b"x" * 250 + b".py"):
            Path(os.fsdecode(bytes(folder) + b"/" + name)).write_text(code(99))
    elif kind == "deep":
        deep = folder.joinpath(*["d"] * 300)
        deep.mkdir(parents=True)
        (deep / "x.py").write_text(code(98))
    elif kind == "closed":
        (folder / "closed").mkdir()
        odd.write_text(code(97))
        odd.chmod(0)
    else:  # files that vanish after they were listed
        listed = sources.find_files

        def list_and_remove(*args):
            found = listed(*args)
            (folder / "p3.py").unlink()
            return found

        def use_that():
            sources.find_files = list_and_remove

        ended, _, err = run(place, "python", "--path=code", *SMALL, before=use_that)
        assert ended == 0 and not err.count("error"), err
        assert unreadable(place / "repo/data/python") == 1
        return
    made = check(place, "python", "--path=code", *SMALL)
    assert {code(number).strip() for number in range(20)} <= set(documents(made))


# --- settings -------------------------------------------------------------------------------------

NUMBERS = ["-1", "0", "9" * 400, "9" * 5000, "-" + "9" * 400, "1e999", "1e308", "1e-308", "nan"]
NUMBERS += ["0.5", "None", "[1]", "[" * 1000, "", "65537", "True", "1j", "\x1b[31m5"]
TEXTS_TO_TRY = ["", ".", "..", "../..", "a/../..", "x" * 300, "a/" + "x" * 300]
TEXTS_TO_TRY += ["x" * 5000, "\x1b[31mred", "a\nb", "a\0b", "\udcff", "~", "~nosuchuser/x", "**"]
OUTSIDE = ["/dev/null", "/dev/zero", "//x//", "/"]
TEXTS_TO_TRY += ["../../device", "../../desk/pipe", *OUTSIDE, "pipe", "text.txt/x", ",,,", "-", "5"]
SLOW = {"", "/", "//x//", "../..", "a/../.."}  # would read the code of the whole machine
PLAIN = {
    "python": ("--path=code", *SMALL),
    "go": ("--path=code", *SMALL),
    "shakespeare": ("--file=text.txt",),
}
SETTINGS = [
    (script, key, text)
    for script, module in SCRIPTS.items()
    for base in module.Settings.__mro__[:-1]
    if script != "go" or base is not corpus.Settings
    for key, default in vars(base).items()
    if not key.startswith("_")
    for text in (TEXTS_TO_TRY if isinstance(default, str) else NUMBERS)
    if key != "path" or text not in SLOW
    if key != "out" or text not in OUTSIDE
]


@pytest.mark.parametrize("script, key, text", SETTINGS, ids=lambda v: repr(v)[1:-1][:20])
def test_hostile_settings(place, script, key, text):
    os.mkfifo(place / "desk/pipe")
    arguments = [a for a in PLAIN[script] if not a.startswith(f"--{key}=")]
    if script != "shakespeare" and (key, text) in (("file", ""), ("source", "")):
        arguments.append("--path=code")
    if key in ("file", "source") and text and script != "shakespeare":
        arguments.remove("--path=code")
    folder = check(place, script, *arguments, f"--{key}={text}")
    if folder:
        documents(folder)
        assert place / "repo/data" in folder.parents or key == "out" and text[:1] in "/~"


# --- where a data set may go ----------------------------------------------------------------------


def make(place, out, *more, seed=1, **how):
    arguments = "--path=code", f"--out={out}", *SMALL, f"--seed={seed}", *more
    return check(place, "python", *arguments, **how)


FORBIDDEN = ("repo", "repo/data", "repo/out", "repo/out/run", "repo/out/new", "repo/new", "")
FORBIDDEN += (
    "desk/..",
    "desk",
    "desk/code",
    "desk/text.txt",
    "desk/text.txt/x",
    "run",
    "tok",
    "half",
)
FORBIDDEN += ("device", "folder", "pipe", "socket", "loop", "dangling")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_places_where_no_data_set_may_go(place, name, link):
    if name == "device" and not (place / name).exists():
        pytest.skip("only root can make a device")
    if name in SPECIAL:
        special(place / name, name)
        if name == "folder":
            (place / "folder/meta.txt").write_text("mine")
    for folder, file in (("run", "ckpt.pt"), ("tok", "tokenizer.json"), ("half", "notes")):
        (place / folder).mkdir()
        (place / folder / file).write_text("x")
    (place / "half/meta.json").write_text("{}")
    if link:
        (place / "repo/data/link").symlink_to(place / name)
    folder = make(place, "link" if link else place / name)
    if name == "dangling":
        assert folder == place / "nowhere"
    else:
        assert folder is None


def test_a_data_set_is_set_aside_and_the_same_one_stays(place):
    first = make(place, "a/b")
    inode = first.stat().st_ino
    old = tree(place)
    code, out, err = run(place, "python", "--path=code", "--out=a/b", *SMALL, "--seed=1")
    assert code == 0 and "unchanged" in out and tree(place) == old
    for number in range(1, 4):
        content = {file.name: file.read_bytes() for file in first.iterdir()}
        arguments = "--path=code", "--out=a/b", *SMALL, f"--seed={number + 1}"
        code, out, err = run(place, "python", *arguments)
        aside = place / f"repo/data/a/b.{number}"
        assert code == 0 and str(aside) in out, out + err
        assert {file.name: file.read_bytes() for file in aside.iterdir()} == content
        assert os.listdir(first) and documents(first)
    assert (place / "repo/data/a/b.1").stat().st_ino == inode


def test_links_and_empty_folders_are_used(place):
    (place / "drive").mkdir()
    (place / "repo/data/link").symlink_to(place / "drive/set")
    assert make(place, "link") == place / "drive/set"
    code, out, err = run(place, "python", "--path=code", "--out=link", *SMALL, "--seed=2")
    assert (
        code == 0 and (place / "repo/data/link").is_symlink() and (place / "drive/set.1").is_dir()
    )
    (place / "empty").mkdir()
    code, out, err = run(place, "python", "--path=code", f"--out={place / 'empty'}", *SMALL)
    assert code == 0 and documents(place / "empty")
    code, out, err = run(place, "python", "--path=code", "--out=~/x", *SMALL)
    assert code == 0 and documents(place / "home/x")


def test_a_damaged_data_set_is_made_again(place):
    for name, content in itertools.product(corpus.FILES[:4], (b"", None)):
        folder = place / "repo/data/d"
        run(place, "python", "--path=code", "--out=d", *SMALL)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        code, out, err = run(place, "python", "--path=code", "--out=d", *SMALL)
        assert code == 0 and documents(folder), err


@pytest.mark.parametrize("size", [0, 1000, 3000, 10_000, 20_000, 60_000])
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_space_at_any_stage(place, script, size):
    def full():  # no file may grow beyond this: the system refuses, as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    old = tree(place)
    code, out, err = run(place, script, *PLAIN[script], before=full)
    if code == 0:
        assert size >= (10_000 if script == "shakespeare" else 20_000)
        return
    # With so little space the message itself may be cut.
    assert code == 2 and ("error" in err or size < 1000) and "Traceback" not in err, err
    assert tree(place) == old

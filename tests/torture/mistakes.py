"""Mistakes, damaged files and foreign files, enumerated: every setting of every script with values
that it should not have, and every file that a script reads, damaged in many ways.

Whatever a person gives, a script either works (exit code 0) or says in one line what is wrong (exit
code 2), and then no file has changed. Each case runs in a forked child, which has torch already, on
a copy of a small data set and a small run."""

import contextlib
import hashlib
import importlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import sysconfig
import time
import traceback
from pathlib import Path

import pytest
import torch
from conftest import run

from model import NeoX, NeoXConfig
from parts import configurator, hf, tracking
from parts import device as devices

LIMIT = 60  # seconds for a case; most take less than one
MEMORY = 3 * 2**30  # bytes that a case may add to what the process has

SCRIPTS = {  # each with the settings of a command that works; {} is the case's own folder
    "train": "--dataset={}/data/set --out_dir={}/out/new --n_layer=1 --n_head=2 --n_embd=16 "
    "--block_size=32 --batch_size=2 --compile=False --eval_iters=1 --max_iters=1 --device=cpu "
    "--max_minutes=0.001 --dtype=float32 --sample_prompt=a --sample_tokens=2",
    "sample": "--ckpt={}/out/run --max_new_tokens=2 --device=cpu --prompt=def",
    "eval": "--ckpt={}/out/run --tasks=loss --device=cpu --max_new_tokens=4 --show=0",
    "bench": "--dataset={}/data/set --n_layer=1 --n_head=2 --n_embd=16 --device=cpu",
    "tools.plan": "--dataset={}/data/set",
    "tools.leaderboard": "--dataset={}/data/set --entries=adamw --seeds=1 --seconds=1",
    "tools.startup": "--dataset={}/data/set",
    "tools.speedrun": "",
    "tools.tokenizer_ablation": "--path={}/source --vocab_size=512",
    "tools.track": "--run={}/out/run",
    "prepare.python": "--path={}/source --out={}/data/new --vocab_size=512 --val_fraction=0.2",
    "prepare.shakespeare": "--file={}/source/a.py --out={}/data/new --vocab_size=512",
}
torch.set_num_threads(1)  # threads do not outlive a fork
with torch.device("meta"):  # torch imports much for this, which every child would repeat
    NeoX(NeoXConfig(n_layer=1))
TINY = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=2 --compile=False".split()

# Settings whose large values are no mistake, only a long wait.
LONG = {"eval_iters", "grad_accum", "steps", "repeats", "seeds", "num_samples", "num_bodies"}
LONG |= {"num_completions", "max_new_tokens", "new_tokens", "seconds", "max_iters"}

NUMBERS = "-1 nan inf 1e400 -1e-9 None [] two {[]:1} 1if 1_0_ 0x1g '1' b'1'".split() + ["", "٣x"]
NUMBERS += ["9" * 400, "9" * 5000, "(" * 500, str(2**64), "1" + "0" * 30]
# Every place that is named is in the case's own folder, and a fifo stands for what is no ordinary
# file: a script with a bug, run as root, would replace the machine's own /dev/null.
VALUES = {
    int: [*NUMBERS, "0", "1.5", "0.3", "True", str(2**63), str(2**63 - 1), "2147483647"],
    float: [*NUMBERS, "0", "1e-320", "1e-300", "1e-40", "1e300", "1e39", "1.0000001"],
    bool: ["maybe", "2", "", "None", "-1", "truefalse", "\x1b[31m"],
    str: [
        "x" * 300,
        "x/" * 3000,
        "no\nsuch",
        "\udcff",
        "\x1b[31mred",
        "{}",
        "{}/source/a.py",
        "..",
        "~",
    ]
    + ["nowhere/else", "no such", "-", "~nobody/x", "a" * 100_001, "\x85", "\u202e", "{}/fifo"],
    tuple: ["", "\udcff", "\x1b[31m", "x" * 100_001],
}
# What a config file can assign and a command line cannot.
ODD = ["None", "[]", "{}", "()", "(1, 2)", "b'x'", "10**5000", "float('nan')", "float('-inf')"]
ODD += ["'a' + chr(0)", "chr(0xdfff)", "-1", "True", "1j", "object()", "[0] * 10**6", "Odd()"]
ODD_CLASS = "class Odd:\n    def __repr__(self):\n        raise ValueError('odd')\n"
CONFIG_FILES = {
    "exit": "import sys\nsys.exit(3)",
    "exit in words": "raise SystemExit('goodbye')",
    "its own end": "class End(BaseException): pass\nraise End('of file')",
    "generator": "raise GeneratorExit",
    "error in lines": "raise ValueError('a\\n' * 50)",
    "long error": "raise ValueError('a' * 10**6)",
    "escapes": "raise ValueError('\\x1b[31m red')",
    "syntax": "lr = = 3",
    "binary": bytes(range(256)),
    "utf-16": "lr = 1".encode("utf-16"),
    "nul": b"lr = 1\0",
    "names that are not text": "globals()[3] = 4",
    "recursion": "def f(): f()\nf()",
    "unknown name": "learning = 3",
    "a name with an escape": "globals()['\\x1b[31m'] = 3",
    "deep": "x = " + "(" * 10_000,
    "an error whose text fails": "class E(Exception):\n    def __str__(self):\n"
    "        raise ValueError\nraise E",
}
ARGUMENTS = ["-x", "lr=3", "--", "--=3", "---", "\udcff", "\x1b[31m", "--\x1b[31m=3", "x" * 5000]
ARGUMENTS += [
    "missing.py",
    "{}/data.py",
    "x" * 300 + ".py",
    "\udcff.py",
    "--" + "x" * 5000,
    "",
    " ",
]
ARGUMENTS += ["--nosuch=" + "x" * 5000, "\n", "--\udcff", "a/" * 3000 + ".py", "{}/fifo.py"]


# --- the cases ------------------------------------------------------------------------------------


def module(script):
    return importlib.import_module(script)


def settings_of(script, inherited=True):
    """{name: default} of a script's own settings, and of those that it inherits."""
    classes = module(script).Settings.__mro__[:-1]
    own = [base for base in classes if inherited or "train" not in base.__module__]
    return {k: v for base in own for k, v in vars(base).items() if not k.startswith("_")}


def wrong_settings():
    """(script, what a person adds to a command that works, nothing to damage)"""
    for script in SCRIPTS:
        inherits = script in ("bench", "tools.plan", "tools.leaderboard", "tools.startup")
        own = settings_of(script, inherited=not inherits)
        for number, (key, default) in enumerate(settings_of(script).items()):
            # Each setting of sample.py gets every value, elsewhere a third of them, in turns.
            values = (
                VALUES[type(default)][number % 3 :: 3]
                if script != "sample"
                else VALUES[type(default)]
            )
            values = values if key in own else values[-2:]
            for value in values:
                if not (key in LONG and value in ("2147483647", "1e39", "1e300")):
                    yield script, [f"--{key}={value}"], None
            if key in own and script in ("train", "sample", "eval", "bench"):
                odd = ODD if script == "sample" else ODD[:: 1 + (script == "train") * 7]
                for value in odd:
                    yield script, ["{}/own.py"], ("own.py", f"{ODD_CLASS}{key} = {value}")
        for argument in ARGUMENTS:
            yield script, [argument], None
    for content in CONFIG_FILES.values():
        yield "train", ["{}/own.py"], ("own.py", content)


# Settings that do not go together, and others that look odd and are fine.
TRAIN = [
    "--rotary_pct=0",
    "--n_head=16",
    "--n_head=16 --rotary_pct=1",
    "--n_head=8 --rotary_pct=1",
    "--n_embd=15 --n_head=5",
    "--n_embd=15 --n_head=5 --rotary_pct=0.7",
    "--n_embd=1 --n_head=1",
    "--n_embd=2 --n_head=1 --rotary_pct=1",
    "--block_size=1",
    "--n_embd=6 --n_head=3 --rotary_pct=0.999999",
    "--activation=swiglu --n_embd=2 --n_head=1 --rotary_pct=1",
    "--activation=nosuch",
    "--lr=1e-3 --min_lr=1",
    "--init_from=out/x",
    "--init_from=./x",
    "--init_from=/x",
    "--init_from=~/x",
    "--init_from=x",
    "--init_from=x/y/z",
    "--init_from=resume",
    "--init_from=resume --out_dir={}/out/run",
    "--init_from={}/data/set",
    "--init_from={}/data/set/meta.json",
    "--init_from={}/fifo",
    "--init_from={}/out/run/run.json",
    "--eval_tasks=loss,nosuch",
    "--shard",
]
SAMPLE = [
    "--temperature=1e-30",
    "--temperature=1e-30 --repetition_penalty=1e30",
    "--temperature=1e-6 --num_samples=3",
    "--temperature=1e30",
    "--top_p=1e-30",
    "--top_p=1e-30 --top_k=0 --num_samples=2",
    "--repetition_penalty=1e30",
    "--repetition_penalty=1e-30",
    "--top_k=2147483647",
    "--ckpt={}/hf --max_new_tokens=40",
    "--ckpt={}/wide --temperature=5 --top_k=0 --top_p=1 --max_new_tokens=60",
    "--ckpt={}/wide --temperature=5 --top_k=0 --top_p=1 --max_new_tokens=60 --num_samples=2",
    "--ckpt=out/x",
    "--ckpt=./x",
    "--ckpt=~/x",
    "--ckpt=x",
    "--ckpt=x/y/z",
    "--ckpt=x/y@",
    "--ckpt={}/data/set",
    "--ckpt={}/fifo",
    "--ckpt={}/source",
    "--ckpt={}/out/run/ckpt.pt/x",
    "--ckpt={}/out/run/run.json",
    "--prompt_file={}",
    "--prompt_file={}/out/run/ckpt.pt --prompt=",
    "--prompt=- --prompt_file=x",
    "--stop=a --stop=",
]
EVAL = ["--tasks=loss,", "--tasks=,", "--tasks=nosuch", "--dataset=.", "--dataset=out/run"]
EVAL += [option for option in SAMPLE if option.startswith("--ckpt")]


def combinations():
    for script, options in (("train", TRAIN), ("sample", SAMPLE), ("eval", EVAL)):
        for option in options:
            yield script, option.split(" "), None
    for what in (["--compare"], ["--compare", "x", "y"], ["--compare", "\x1b[31m", "x" * 300]):
        yield "eval", what, None
        yield "tools.compare", what[1:], None


JSON = {  # what a JSON file may hold instead of what it should
    "nothing": b"",
    "half": "half",
    "a list": b"[1, 2]",
    "a number": b"5",
    "text": b'"text"',
    "null": b"null",
    "an empty dict": b"{}",
    "no utf-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "html": b"<!DOCTYPE html><html>Not Found</html>",
    "nul": b"\0" * 1000,
}
WRONG = [
    None,
    "text",
    [1],
    {},
    {"a": {}},
    -1,
    0,
    1.5,
    True,
    10**400,
    10**12,
    "\x1b[31m",
    float("nan"),
]
WRONG += [1e-300, 1e300, 3]
BINARY = {
    "nothing": b"",
    "half": "half",
    "html": JSON["html"],
    "a pickle": pickle.dumps({"a": 1}, 2),
    "a newer pickle": pickle.dumps({"a": print}, 5),
    "a pickle that would run something": b"cos\nsystem\n(S'touch ran'\ntR.",
    "zeros": b"\0" * 5000,
    "a header of 2**60 bytes": struct.pack("<Q", 2**60),
    "a header that is no JSON": struct.pack("<Q", 8) + b"abcdefgh",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a wrong type": struct.pack("<Q", 64)
    + b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}'.ljust(64),
}


def damages(file, whole):
    """(where, how, content) for each way to damage a file of this name; content None: a folder
    stands in its place; "": it is missing."""
    name = Path(file).name
    yield "missing", ""
    yield "a folder", None
    for how, content in (JSON if name.endswith(".json") else BINARY).items():
        yield how, whole[: len(whole) // 2] if content == "half" else content
    if name.endswith(".json"):
        data = json.loads(whole)
        for number, key in enumerate(list(data)[:40]):
            yield f"without {key}", {k: v for k, v in data.items() if k != key}
            for value in WRONG[number % 3 :: 3]:  # a third of them, in turns
                yield f"{key} is {str(value)[:20]!r}", data | {key: value}
            inner = data[key] if isinstance(data[key], dict) and len(data) < 12 else {}
            for below in list(inner)[:6]:
                for value in WRONG[number % 3 :: 3]:
                    changed = {**inner, below: value}
                    yield f"{key}.{below} is {str(value)[:20]!r}", data | {key: changed}
        yield "an escape as a key", data | {"\x1b[31mred": 1.0, "a\nb": 2}
    else:
        for place in range(0, len(whole), max(len(whole) // 12, 1)):
            flipped = bytearray(whole)
            flipped[place] ^= 0x55
            yield f"flipped at {place * 100 // len(whole)} %", bytes(flipped)


READS = {  # which scripts read a file, and with which settings beside the usual ones
    "hf/config.json": [("sample", "--ckpt={}/hf"), ("train", "--init_from={}/hf")],
    "hf/model.safetensors": [("sample", "--ckpt={}/hf"), ("train", "--init_from={}/hf")],
    "bin/pytorch_model.bin": [("sample", "--ckpt={}/bin"), ("train", "--init_from={}/bin")],
    "hf/tokenizer.json": [
        ("sample", "--ckpt={}/hf"),
        ("eval", "--ckpt={}/hf --dataset={}/data/set"),
    ],
    "out/run/ckpt.pt": [("sample", ""), ("eval", "")],
    "out/run/tokenizer.json": [("sample", "")],
    "out/run/run.json": [("eval", ""), ("tools.track", ""), ("sample", "")],
    "out/run/eval.json": [
        ("eval", ""),
        ("tools.compare", "{}/out/run {}/out/other"),
        ("tools.track", ""),
    ],
    "out/run/metrics.jsonl": [
        ("train", "--init_from=resume --out_dir={}/out/run"),
        ("tools.compare", "{}/out/run {}/out/other"),
        ("tools.track", ""),
    ],
    "out/run/mlflow.json": [("tools.track", "")],
    "data/set/meta.json": [("train", ""), ("eval", ""), ("tools.plan", ""), ("bench", "")],
    "data/set/tokenizer.json": [("train", ""), ("eval", "")],
    "data/set/train.bin": [("train", "")],
    "data/set/val.bin": [("train", ""), ("eval", "")],
    "source/a.py": [("prepare.python", ""), ("prepare.shakespeare", "")],
}


# --- running them ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A folder with sources, a data set, a run, and models as Hugging Face has them."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "source").mkdir()
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for number, name in enumerate(("json", "logging", "email", "http")):
        for file in sorted((stdlib / name).glob("*.py"))[:6]:
            (folder / "source" / name).mkdir(exist_ok=True)
            shutil.copy(file, folder / "source" / name)
        shutil.copy(stdlib / name / "__init__.py", folder / "source" / f"{'abcd'[number]}.py")
    (folder / "data").mkdir()
    how = ["--vocab_size=512", "--val_fraction=0.2", f"--out={folder}/data/set"]
    run("prepare/python.py", f"--path={folder}/source", *how)
    how = ["--max_iters=2", "--save_interval=1", "--log_interval=1", "--device=cpu"]
    run("train.py", f"--dataset={folder}/data/set", f"--out_dir={folder}/out/run", *TINY, *how)
    numbers = {
        "loss": 3.5,
        "bits_per_byte": 2.5,
        "count": 3,
        "arguments": {"dataset": "", "ckpt": ""},
    }
    (folder / "out/run/eval.json").write_text(json.dumps(numbers))
    (folder / "out/run/mlflow.json").write_text(json.dumps({"id": "x", "sent": {}, "files": {}}))
    shutil.copytree(folder / "out/run", folder / "out/other")
    model = runs_model(folder / "out/run")
    for name in ("hf", "bin"):
        hf.save_pretrained(model, folder / name)
        shutil.copy(folder / "out/run/tokenizer.json", folder / name)
    (folder / "bin/model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "bin/pytorch_model.bin")
    wide = NeoX(NeoXConfig(vocab_size=2000, block_size=32, n_layer=1, n_head=2, n_embd=16))
    hf.save_pretrained(wide, folder / "wide")
    shutil.copy(folder / "out/run/tokenizer.json", folder / "wide")
    (folder / "data.py").mkdir()
    return folder


def runs_model(folder):
    return hf.from_pretrained(folder)


@pytest.fixture
def case(places, tmp_path):
    """A copy of `places` for one case."""
    folder = tmp_path / "case"
    shutil.copytree(places, folder)
    for name in ("fifo", "fifo.py"):
        os.mkfifo(folder / name)
    yield folder
    shutil.rmtree(folder)


def content(folder):
    """Every file and folder below, by a hash of what it holds."""
    return {
        path: hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest()
        for path in sorted(folder.rglob("*"))
    }


def write(path, content):
    """Put content (text, bytes, or what JSON can say) at a path; None: a folder."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if content is None:
        path.mkdir()
    elif isinstance(content, dict):
        sys.set_int_max_str_digits(0)
        path.write_text(json.dumps(content))
    elif content != "":
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def as_a_person(script, arguments, folder):
    """What a forked child does: the script, as if typed in another folder."""
    os.chdir(folder / "source")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": str(folder), "MPLCONFIGDIR": str(folder.parent)}
    configurator.ROOT = folder
    devices.matmul_peak = lambda *_: 1e12  # measuring it would take most of a case
    if not script.startswith(("train", "prepare")):
        stop_before_processes()
        tracking.TRACKERS["mlflow"] = Listener
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.argv = [script.replace(".", "/") + ".py", *arguments]
    module(script).main()


class Listener:
    """A tracker that takes everything."""

    def __init__(self, name, params, run_id, temporary):
        self.id = run_id or "new"

    def log(self, records):
        json.dumps(records)

    def summary(self, values, step):
        json.dumps([values, step])

    def files(self, paths, export, step):
        pass

    def close(self, how):
        pass


def stop_before_processes():
    """What bench.py and the like start takes long: a command has been accepted when they do."""

    def accepted(*args, **kwargs):
        raise SystemExit(0)

    import subprocess

    if Path(sys.argv[0]).name != "eval":
        subprocess.Popen = accepted


def attempt(script, arguments, folder):
    """(exit code or "hangs" or a signal, standard error) of a script in a child."""
    said = folder.parent / "said"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            for number, name in enumerate((os.devnull, os.devnull, said)):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                os.dup2(os.open(name, flags), number)
            sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
            sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
            as_a_person(script, arguments, folder)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hangs", said.read_text(errors="replace")
        time.sleep(0.005)


def check(script, more, folder):
    """Run the usual command with `more` after it, and judge how it ends."""
    usual = [] if script == "tools.compare" or "--compare" in more else SCRIPTS[script].split()
    arguments = [part.replace("{}", str(folder)) for part in [*usual, *more]]
    before = content(folder)
    code, said = attempt(script, arguments, folder)
    assert code in (0, 2), f"{code}: {said[-2000:]}"
    assert "Traceback" not in said, said
    if code == 2:
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert len(said) < 1000 and said[:-1].isprintable(), said
        assert content(folder) == before, set(content(folder).items()) ^ set(before.items())


def name_of(case):
    script, more, file = case
    return f"{script} {' '.join(more)[:60]!r} {(file or ['', ''])[1][-60:]!r}"


SETTINGS = [*wrong_settings(), *combinations()]


@pytest.mark.parametrize("script, more, file", SETTINGS, ids=map(name_of, SETTINGS))
def test_a_setting_that_is_wrong_is_one_line(script, more, file, case):
    if file:
        write(case / file[0], file[1])
    check(script, more, case)


FILES = [(file, script, more) for file, readers in READS.items() for script, more in readers]


@pytest.mark.parametrize("file, script, more", FILES)
def test_a_damaged_file_is_one_line(file, script, more, places, case):
    whole, failed, count = (places / file).read_bytes(), [], 0
    for how, damage in damages(file, whole):
        count += 1
        shutil.rmtree(case)
        shutil.copytree(places, case)
        write(case / file, damage)
        try:
            check(script, more.split(), case)
        except AssertionError as error:
            failed.append(f"{how}: {error}")
    print(f"{file} {script}: {count - len(failed)} of {count}")
    assert not failed, f"{len(failed)} of {count}\n" + "\n".join(failed)

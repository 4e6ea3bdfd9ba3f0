"""eval.py and tasks/: numbers against independent references, and generated programs that can
neither harm nor cheat."""

import contextlib
import functools
import gzip
import io
import json
import math
import os
import random
import re
import shutil
import socket
import string
import sys
import tempfile
import threading
import time
import tokenize
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, run
from matplotlib.axes import Axes
from transformers import AutoModelForCausalLM

import eval as evaluation
import tasks
from model import NeoX, NeoXConfig
from parts import figures, plots, runs
from parts import tokenizer as tokenization
from tasks import code, completion, places, problems, sandbox, writing
from tasks.completion import bleu, edit_similarity, exact_match
from tools import compare

DATA = os.environ.get("NANONEOX_DATA")
runs_programs = pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing())
runs_go = pytest.mark.skipif(bool(sandbox.missing("go")), reason=sandbox.missing("go"))


def measure(names, model, tokenizer, tokens, meta, **options):
    exam = tasks.Exam(names, tokenizer, tokens, meta, tasks.Options(show=0, **options))
    return exam.measure(model)


def problems_of(task, **options):
    return task(None, None, None, "", tasks.Options(**options)).problems


@pytest.mark.parametrize("stride", [0, 37])
def test_the_loss_is_transformers_loss_over_every_token_once(trained, dataset, stride):
    model, tokenizer, _ = runs.load(trained, "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(trained).eval()
    tokens, T = np.fromfile(dataset / "val.bin", dtype="<u2")[:3001], 128
    # Of each token but the first, by windows that advance `stride` tokens; the new ones count.
    logits = []
    begin = 0
    while len(logits) < len(tokens) - 1:
        ids = torch.from_numpy(tokens[None, begin : begin + T].astype(np.int64))
        logits += theirs(ids).logits[0, len(logits) - begin :].detach().unbind()
        begin += stride or T
    logits = torch.stack(logits)[: len(tokens) - 1]
    right = torch.from_numpy(tokens[1:].astype(np.int64))
    top5 = logits.topk(5).indices == right[:, None]
    nats = torch.nn.functional.cross_entropy(logits, right).item()
    meta = {"val": {"bytes": 10_000}}
    known = model, tokenizer, tokens, meta
    found = measure("loss", *known, dtype="float32", stride=stride)
    assert found["loss"] == pytest.approx(nats, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) * 3001 / 10_000, rel=1e-5)
    assert found["top1"] == pytest.approx(top5[:, 0].float().mean().item())
    assert found["top5"] == pytest.approx(top5.any(1).float().mean().item())
    shares = {name: found[f"share_{name}"] for name in code.CLASSES}
    mean = sum(found[f"loss_{name}"] * share for name, share in shares.items())
    assert mean == pytest.approx(nats, rel=0.05)  # it lacks end of text
    fast = measure("loss", *known, stride=stride)
    assert fast["loss"] == pytest.approx(nats, rel=1e-3)
    assert model.embed_out.weight.dtype == torch.float32


def test_an_edited_output_head_is_what_is_measured(trained, dataset, monkeypatch):
    model, tokenizer, _ = runs.load(trained, "cpu")
    tokens = np.fromfile(dataset / "val.bin", dtype="<u2")[:1000]

    def logits(self, x):
        return 0 * self.embed_out(x)

    monkeypatch.setattr(type(model), "logits", logits)
    found = measure("loss", model, tokenizer, tokens, {"val": {"bytes": 1}})
    assert found["loss"] == pytest.approx(math.log(model.config.vocab_size))


def test_scores_along_a_training_are_those_of_its_checkpoints(dataset, tmp_path, monkeypatch):
    out = tmp_path / "run"
    looking = ("--eval_interval=20", "--eval_tasks=mine,completion")
    run("train.py", f"--dataset={dataset}", *TINY, "--max_iters=20", *looking, f"--out_dir={out}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    along = {
        line["step"]: {key[5:]: value for key, value in line.items() if key.startswith("eval_")}
        for line in lines
        if "val_loss" in line
    }
    tokens = np.fromfile(dataset / "val.bin", dtype="<u2")
    meta = json.loads((dataset / "meta.json").read_text())
    for step, name in ((0, "ckpt.1.pt"), (20, "ckpt.pt")):
        model, tokenizer, _ = runs.load(out / name, "cpu")
        known = model, tokenizer, tokens, meta
        assert along[step] == measure("completion,mine", *known, num_completions=25)
    assert along[0]["mine_bits_per_byte"] > along[20]["mine_bits_per_byte"]
    assert (out / "scores.png").read_bytes()[:4] == b"\x89PNG"
    drawn = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, title, **how: drawn.append(title))
    assert plots.scores(lines, out / "scores.png") and len(drawn) == 4
    assert any("rest of a cut line" in title for title in drawn)


def test_classes_of_code_are_those_of_pythons_own_tokenizer(real_files):
    kinds = {
        tokenize.NAME: "identifier",
        tokenize.OP: "operator",
        tokenize.NUMBER: "literal",
        tokenize.COMMENT: "comment",
    }
    same, total = 0, 0
    for text in real_files[::10]:
        lines = text.splitlines(keepends=True)
        if "\f" in text or "\r" in text:
            continue
        starts, expected = np.cumsum([0] + [len(line.encode()) for line in lines]), {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                word = token.type == tokenize.NAME and token.string in code.KEYWORDS["python"]
                place = tuple(byte_at(lines, starts, end) for end in (token.start, token.end))
                expected[place] = "keyword" if word else kinds[token.type]
        found = {
            (begin, end): kind
            for kind, begin, end in code.lex(text.encode(), "python")
            if kind != "whitespace"
        }
        strings = {
            place
            for place, kind in found.items()
            if place not in expected and kind in ("literal", "comment")
        }
        same += sum(
            found.get(place) == kind for place, kind in expected.items() if kind != "operator"
        )
        total += sum(kind != "operator" for kind in expected.values())
        inside = sum(any(a <= begin and end <= b for a, b in strings) for begin, end in expected)
        assert inside == 0 or sys.version_info >= (3, 12)  # from then on in f-strings
    assert total > 5_000 and same > 0.995 * total
    go = b"// go\nx := `a\nb` + 0x1F != '\\n'  /* c */"
    found = [(kind, go[a:b]) for kind, a, b in code.lex(go, "go") if kind != "whitespace"]
    assert found == [
        ("comment", b"// go"),
        ("identifier", b"x"),
        ("operator", b":="),
        ("literal", b"`a\nb`"),
        ("operator", b"+"),
        ("literal", b"0x1F"),
        ("operator", b"!="),
        ("literal", b"'\\n'"),
        ("comment", b"/* c */"),
    ]


def byte_at(lines, starts, place):
    """Where a (row, column) of `tokenize` is, in bytes. starts: of the lines."""
    row, column = place
    return starts[row - 1] + len(lines[row - 1][:column].encode())


def test_metrics_are_the_reference_libraries_on_1000_pairs(real_files):
    rng = random.Random(0)
    lines = [line for text in real_files for line in text.splitlines() if line.strip()]
    pairs = [("", ""), ("a", ""), ("x = 1", "x=1"), ("x  =\t1", "x = 1")]
    while len(pairs) < 1000:
        a = rng.choice(lines)
        cut = [
            letter if rng.random() > 0.1 else rng.choice(string.printable)
            for letter in a
            if rng.random() > 0.1
        ]
        pairs.append((a, "".join(cut) if rng.random() < 0.8 else rng.choice(lines)))
    for a, b in pairs:
        # The longest common subsequences of a's beginning and each of b's.
        common = np.zeros(len(b) + 1, int)
        for letter in a:
            same = np.array(list(b)) == letter
            longer = np.where(same, common[:-1] + 1, common[1:]) if b else common[1:]
            common = np.r_[0, np.maximum.accumulate(longer)]
        share = 200 * common[-1] / len(a + b) if a + b else 100
        similarity = edit_similarity(a, b)
        assert isinstance(similarity, int) and abs(similarity - share) < 0.501, (a, b)
        same = re.sub(r"\s+", " ", a.strip()) == re.sub(r"\s+", " ", b.strip())
        assert exact_match(a, b) == same
    words = [[" ".join(re.findall("[a-z]+", text)) for text in side] for side in zip(*pairs)]
    # Papineni et al. 2002, on words that no BLEU tokenizer cuts.
    matches, counts, sizes = [0] * 5, [0] * 5, [0, 0]
    for a, b in zip(*map(lambda side: [text.split() for text in side], words)):
        sizes = [sizes[0] + len(a), sizes[1] + len(b)]
        for n in range(1, 5):
            grams = [
                Counter(tuple(side[i : i + n]) for i in range(len(side) - n + 1)) for side in (a, b)
            ]
            matches[n] += sum((grams[0] & grams[1]).values())
            counts[n] += sum(grams[0].values())
    precision = math.exp(sum(math.log(matches[n] / counts[n]) for n in range(1, 5)) / 4)
    expected = 100 * min(1, math.exp(1 - sizes[1] / sizes[0])) * precision
    assert 2 < expected < 90 and bleu(*words) == pytest.approx(expected, rel=1e-9)


GOOD_ROW = {
    "task_id": "a/1",
    "prompt": "def f(x):\n",
    "canonical_solution": "    return x + 1\n",
    "test": "assert f(1) == 2",
    "entry_point": "f",
}


def spoilt_files():
    """(name, what is in it, what the message must say) of files that are no problems."""
    good = json.dumps(GOOD_ROW).encode()
    for key in GOOD_ROW:
        for value in (None, 5, "", [], {}, True, "\ud800", ["a"] * 9):
            row = json.dumps(GOOD_ROW | {"task_id": "b", key: value}).encode()
            yield f"{key}.jsonl", good + b"\n" + row, "line 2"
        row = {k: v for k, v in GOOD_ROW.items() if k != key}
        yield f"without {key}.jsonl", json.dumps(row).encode(), "line 1"
    for value in (b"null", b"5", b"[]", b"\xff", b"{", b"[" * 100_000, b"NaN", b"1" * 5000):
        yield "values.jsonl", good + b"\n\n" + value, "line 3"
    for key, value in (
        ("canonical_solution", "    return x +\n"),
        ("test", "assert f(1) ="),
        ("entry_point", "g"),
    ):
        row = json.dumps(GOOD_ROW | {"task_id": "b", key: value}).encode()
        yield f"wrong {key}.jsonl", good + b"\n" + row, "line 2"
    yield "twice.jsonl", good + b"\n" + good, "line 2"
    yield "empty.jsonl", b"", "holds no problem"
    yield "other.jsonl", json.dumps(GOOD_ROW | {"declaration": ""}).encode(), "holds no problem"
    yield "16 bit.jsonl", good.decode().encode("utf-16"), "line 1"
    packed = gzip.compress(good)
    for cut in range(2, len(packed), 7):
        yield "cut.jsonl.gz", packed[:cut], "damaged"
    for at in range(10, len(packed), 3):
        flipped = bytearray(packed)
        flipped[at] ^= 255
        yield "flipped.jsonl.gz", bytes(flipped), "flipped.jsonl.gz"


def test_files_that_hold_no_problems_are_named_with_their_line(tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(GOOD_ROW) + "\n\n")
    assert len(problems.read_problems("humaneval", [good], "python")) == 1
    for name, content, expected in spoilt_files():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(ValueError) as error:
            problems.read_problems("humaneval", [file], "python")
        assert str(file) in str(error.value) and expected in str(error.value), (name, content[-80:])
    with pytest.raises(ValueError, match="is not a file"):
        problems.read_problems("humaneval", [tmp_path], "python")


def test_pass_at_k_is_the_chance_to_draw_a_correct_program():
    rng = random.Random(0)
    for _ in range(1000):
        n = rng.randint(1, 200)
        c, k = rng.randint(0, n), rng.randint(1, n)
        chance = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert problems.pass_at_k(n, c, k) == pytest.approx(chance, abs=1e-12)


def test_each_problem_has_nine_mutants_the_same_every_time_and_as_long_as_its_solution(trained):
    tokenizer, chosen = tokenization.load(trained), []
    for language in ("python", "go"):
        options = tasks.Options(language=language)
        task = problems.Mine(tokenizer, None, None, "", options)
        assert len(task.problems) == len({problem.id for problem in task.problems}) == 50
        for problem in task.problems:
            length = functools.partial(task.length, problem)
            mutants = problems.mutants(problem, length=length)
            assert len({problem.solution, *mutants}) == 10
            assert mutants == problems.mutants(problem, length=length)
            sizes = {
                len(tokenizer.encode(problem.prompt + s)) for s in (problem.solution, *mutants)
            }
            assert len(sizes) == 1
        for seed in range(3):
            torch.manual_seed(seed)
            config = NeoXConfig(tokenizer.vocab_size, 256, 1, 2, 64, tie_embeddings=seed == 0)
            model = NeoX(config).eval()
            chosen.append(task.likelihood(tasks.Examinee(model, model))["choice2"])
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.06)  # of models that know nothing


@runs_programs
def test_a_problem_whose_solution_fails_its_own_test_is_refused(tmp_path):
    file = tmp_path / "own.jsonl"
    wrong = GOOD_ROW | {"task_id": "own/2", "test": "assert f(1) == 3"}
    file.write_text("\n".join(map(json.dumps, (GOOD_ROW, wrong))))
    for allowed in (False, True):
        options = dict(file=(str(file),), allow_code_execution=allowed)
        refused = pytest.raises(ValueError, match="solution of own/2 fails its own test")
        with refused if allowed else contextlib.nullcontext():
            assert len(problems_of(problems.HumanEval, **options)) == 2


def test_a_run_is_evaluated_twice_alike_and_compared(
    trained, dataset, tmp_path, monkeypatch, capsys
):
    reports = []
    a, b = tmp_path / "a", tmp_path / "b"

    def evaluate(*args, script=evaluation):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
        capsys.readouterr()
        script.main()
        return capsys.readouterr().out

    for out, names in ((a, []), (b, ["--tasks=loss,bodies,completion,mine"])):
        shutil.copytree(trained, out)
        small = ["--num_completions=3", "--max_new_tokens=16", "--num_bodies=3"]
        told = evaluate(f"--ckpt={out}", *small, *names)
        reports.append(json.loads((out / "eval.json").read_text()))
        assert reports[-1].pop("arguments") and "needs --allow_code_execution" in told
    assert reports[0].items() < reports[1].items() and reports[1]["bodies"] == 3
    metrics = ("exact", "edit", "bleu", "first", "parse")
    keys = {f"{kind}_{metric}" for kind in ("line", "next", "body") for metric in metrics}
    keys |= {"loss", "loss_keyword", "mine_bits_per_byte", "mine_choice2", "mine_choice10"}
    assert keys <= reports[0].keys()
    assert reports[0]["mine_choice2"] > 0.5  # 60 steps, and better than chance
    # Five figures, the shares of eval.json in percent, beside what is known of random weights.
    meta, n = json.loads((dataset / "meta.json").read_text())["val"], 1024
    rows = dict(re.findall(r"^(\S.+?)  +([\d.]+ +[\d.]+)", told, re.M))
    expected = {
        "loss on held-out text, bits per byte": (
            reports[1]["bits_per_byte"],
            math.log2(n) * meta["tokens"] / meta["bytes"],
        ),
        "rest of a cut line: exactly right, %": (reports[1]["line_exact"], 0),
        "function bodies that parse, %": (100 * reports[1]["parse_share"], 1),
    }
    for name, pair in expected.items():
        assert list(map(float, rows[name].split())) == pytest.approx(pair, rel=1e-3), name
    assert len(rows) == 5
    assert not [
        key for key in compare.finite_numbers(reports[1]) if key == figures.figure(key).name
    ]
    # What other tasks said stays.
    evaluate(f"--ckpt={b}", "--tasks=bodies", "--num_bodies=2", "--max_new_tokens=16")
    again = json.loads((b / "eval.json").read_text())
    assert again["bodies"] == 2 and again["loss"] == reports[1]["loss"]
    assert again.keys() == reports[1].keys() | {"arguments"}
    monkeypatch.setattr(evaluation.configurator, "ROOT", tmp_path)
    table = evaluate("--all", a, b, script=compare)
    choices = " +".join(f"{100 * report['mine_choice2']:.1f}" for report in reports)
    assert re.search(f"mine_choice2: .+ {choices}\n", table), table
    assert "different num_bodies: 3, 2" in table
    assert (tmp_path / "out" / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_with_another_tokenizer_reads_the_same_bytes(trained, dataset, tmp_path):
    tokenizer, whole = tokenization.load(trained), np.fromfile(dataset / "val.bin", dtype="<u2")
    text = tokenizer.decode(whole[:2000].tolist()).replace("<|endoftext|>", "")
    other = tokenization.train_bpe([text], 400)
    other.save(tmp_path)
    tokens, meta = evaluation.open_split(str(dataset), tmp_path, other)
    assert other.decode(tokens.tolist()) == tokenizer.decode(whole.tolist())
    assert len(tokens) > len(whole)
    assert code.detect_language(tokens, other) == "python"


def test_of_a_perfect_model_every_completion_is_right(trained, dataset, monkeypatch):
    """From the cut to the metric, with what stands in the file in place of what a model writes."""
    tokenizer = tokenization.load(trained)
    tokens, real = np.fromfile(dataset / "val.bin", dtype="<u2"), {}

    def complete(writer, prompts, *rest):
        return [code.Excerpt(real[prompt], True) for prompt in prompts]

    def draw(*args):
        for place in places.draw(*args):
            real[place.before] = place.target + place.after
            yield place

    monkeypatch.setattr(writing, "complete", complete)
    monkeypatch.setattr(completion, "draw", draw)
    options = tasks.Options(num_completions=20)
    task = completion.Completion(tokenizer, tokens, None, "python", options)
    found = task.measure(tasks.Examinee(None, None))
    assert len(found) == 15 and list(found.values()) == pytest.approx([100] * 15), found


# --- programs -------------------------------------------------------------------------------------

SQUARE = "assert square(3) == 9\nassert square(-2) == 4\n"
# {file} and {folder} lie outside the sandbox, {port} is listened at, {pid} is this process.
PROGRAMS = r"""
--- fork bomb
import os
while True:
    try: os.fork()
    except OSError: pass

--- endless loop
while True: pass

--- 100 GB
x = bytearray(100 * 2**30)

--- ever more memory
x = []
while True: x.append(bytearray(2**20))

--- memory by many processes
import os
for _ in range(20): os.fork()
x = []
while True: x.append(bytearray(2**20))

--- delete a file outside
import os
os.remove({file!r})

--- write a file outside
open({folder!r} + '/new', 'w').write('x')

--- overwrite a file outside
open({file!r}, 'w').write('x')

--- delete everything
import shutil
shutil.rmtree('/', ignore_errors=True)

--- overwrite the harness
open({harness!r}, 'w').write('raise SystemExit(0)')

--- TCP
import socket
socket.create_connection(('127.0.0.1', {port}), 1).send(b'x')

--- name lookup
import socket
socket.getaddrinfo('example.com', 80)

--- kill the parent
import os
os.kill(os.getppid(), 9)

--- kill the tests
import os
os.kill({pid}, 9)

--- kill everything
import os
os.kill(-1, 9)

--- stdout flood
while True: print('x' * 10**6)

--- flood of answers
import os
while True:
    for fd in range(3, 9):
        try: os.write(fd, b'x' * 10**6)
        except OSError: pass

--- wait for input
input()
while True: input()

--- swallow the calls
import os
for fd in range(3, 9):
    try:
        while os.read(fd, 100): pass
    except OSError: pass

--- sleep
import time
time.sleep(10**6)

--- ignore signals
import signal
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except OSError: pass
while True: pass

--- daemon
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(10**6)
os._exit(0)

--- fill the disk
n = 0
while True:
    n += 1
    open(f'/tmp/{{n}}', 'wb').write(bytes(2**23))

--- exit 0 at once
import os
os._exit(0)

--- exit 0 politely
import sys
sys.exit(0)

--- exit 0 when called
import os
def square(x): os._exit(0)

--- become /bin/true
import os
def square(x): os.execv('/bin/true', ['true'])

--- claim to have passed
import sys
print('OK\n1 passed')
sys.stderr.write('OK')
def square(x): return print('OK')

--- equals everything
class E:
    __eq__ = lambda *a: True
    __bool__ = lambda *a: True
def square(x): return E()

--- a number that equals everything
class I(int):
    __eq__ = lambda *a: True
    __hash__ = int.__hash__
def square(x): return I(5)

--- text that is code
class S(str):
    __repr__ = lambda s: '__import__("os")._exit(0)'
def square(x): return S()

--- patch assert
import builtins
builtins.AssertionError = None
builtins.exec = builtins.compile = lambda *a: None
def square(x): raise AssertionError

--- patch the harness
import __main__
__main__.literal = lambda v: "('return', 9)"
def square(x): return 9

--- answers before the calls
import os
for fd in range(3, 9):
    try: os.write(fd, b"('return', 9)\n" * 9)
    except OSError: pass
os._exit(0)

--- look for the answers
import gc, sys
def square(x):
    texts = [o for o in gc.get_objects() if 'square(3)' in str(o)[:9999]]
    return eval(texts[0].split('==')[1])

--- nested answer
def square(x):
    y = []
    for _ in range(10**5): y = [y]
    return y

--- huge answer
def square(x): return 'x' * 2**28

--- broken answer
import os
for fd in range(3, 9):
    try: os.write(fd, b'(' * 10**5 + b'\n')
    except OSError: pass
def square(x): return 1

--- new namespaces
import ctypes, os
assert ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == 0
open('/proc/self/uid_map', 'w').write('0 65534 1')
def square(x): return {{3: 9, -2: 4}}[x]

--- crash
import ctypes
ctypes.string_at(0)

--- no such function
def cube(x): return x ** 3

--- not Python
func square(x int) int {{ return x * x }}
"""


def split(programs):
    """The programs by their names."""
    return dict(part.rstrip("\n").split("\n", 1) for part in programs.split("--- ")[1:])


HOSTILE = split(PROGRAMS)


class Watch(threading.Thread):
    """Watches the processes that this one starts, from outside. `peak`: the most bytes that they
    had at a time, with what the machine's shared and kernel memory grew by meanwhile."""

    def __enter__(self):
        self.peak, self.seen, self.ended, self.before = 0, set(), threading.Event(), kernel_bytes()
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()

    def run(self):
        while not self.ended.wait(0.02):
            total, mine = kernel_bytes() - self.before, descendants(os.getpid())
            for pid in mine:
                sizes = read(Path(f"/proc/{pid}/smaps_rollup")).decode()
                total += sum(int(n) << 10 for n in re.findall(r"Pss_Anon:\s+(\d+)", sizes))
                self.seen.add((pid, started(pid)))
            self.peak = max(self.peak, total)

    def left(self):
        """Those that still run; one that has ended may need a moment to be gone."""
        for _ in range(20):
            left = [pid for pid, start in self.seen if start and started(pid) == start]
            if not left:
                break
            time.sleep(0.1)
        return left


def kernel_bytes():
    sizes = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    return sum(int(sizes[name]) << 10 for name in ("Shmem", "SUnreclaim", "PageTables"))


def descendants(pid):
    children = []
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, read(task).split())
    return children + [one for child in children for one in descendants(child)]


def started(pid):
    """When a process started; with its number, this tells it from all others. None: it is gone."""
    fields = read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return fields[19] if fields and fields[0] not in (b"Z", b"X") else None


@runs_programs
def test_hostile_programs_harm_nothing_end_in_time_and_never_pass(tmp_path):
    tmp_path.chmod(0o777)
    file, harness = tmp_path / "file", Path(sandbox.__file__).read_text()
    file.write_text("untouched")
    file.chmod(0o666)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    values = dict(
        file=str(file),
        folder=str(tmp_path),
        harness=sandbox.__file__,
        port=listener.getsockname()[1],
        pid=os.getpid(),
    )

    def attack(name):
        program = HOSTILE[name].format(**values)
        return name, sandbox.run_python(program, "square", "", SQUARE, seconds=1.5)

    with Watch() as watch, ThreadPoolExecutor(2) as pool:
        passed = {name: why for name, (ok, why) in pool.map(attack, HOSTILE) if ok}
    assert len(HOSTILE) >= 30 and not passed
    assert file.read_text() == "untouched" and [f.name for f in tmp_path.iterdir()] == ["file"]
    assert Path(sandbox.__file__).read_text() == harness
    with pytest.raises(TimeoutError):
        listener.accept()
    assert len(watch.seen) > len(HOSTILE) and not watch.left()
    assert sandbox.run_python("def square(x): return x * x", "square", "", SQUARE) == (True, "")
    assert sandbox.run_python("def square(x): return x + x", "square", "", SQUARE) == (
        False,
        "failed",
    )
    assert sandbox.run_python("def square(x): return x * x", "square", "", "assert True") == (
        False,
        "failed",
    )  # nothing was tested


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


# The program, and tests that a plain harness would call passed.
FOOLS = {
    "a loop cut short by zip": (
        "def square(x): raise StopIteration",
        "for a, b in zip(map(square, [3, -2]), [9, 4]):\n    assert a == b\nsquare",
    ),
    "all of nothing": (
        "def square(x):\n    if x < 0: raise StopIteration\n    return x * x",
        "assert all(a == b for a, b in zip(map(square, [3, -2]), [9, 4]))",
    ),
    "StopIteration by another name": (
        "class StopIteration(StopIteration): pass\ndef square(x): raise StopIteration",
        "assert list(zip(map(square, [3, -2]), [9, 4])) == []",
    ),
    "an answer that is no literal, for an exception": (
        "def square(x): return object() if x < 0 else 9",
        "assert square(3) == 9\ntry:\n    square(-1)\n    assert 0\nexcept TypeError:\n    pass",
    ),
    "no function, for an exception": (
        "def square(x):\n    global square\n    del square\n    return 9",
        "assert square(3) == 9\ntry:\n    square(-1)\n    assert 0\nexcept KeyError:\n    pass",
    ),
    "a broken answer, for an exception": (
        "import os\ndef square(x):\n"
        "    if x < 0: [os.write(fd, b'(\\n') for fd in range(3, 5) if fd != 3]\n    return 9",
        "assert square(3) == 9\ntry:\n    square(-1)\n    assert 0\nexcept Exception:\n    pass",
    ),
    "death, for an exception": (
        "import os\ndef square(x):\n    if x < 0: os._exit(0)\n    return 9",
        "assert square(3) == 9\ntry:\n    square(-1)\n    assert 0\nexcept Exception:\n    pass",
    ),
}
TEXTS = {
    "NUL": "def square(x): return x * x\n\0",
    "lone surrogate": "def square(x): return x * x  # \ud800",
    "wide characters": "def square(x): return x  # " + "\U0001f600" * 99_000,
    "too long": "def square(x): return x * x" + " " * 200_000,
    "nothing": "",
    "many statements": "x = 1\n" * 16_000,
    "many operators": "x = " + "1+" * 49_000 + "1",
    "many brackets": "x = " + "[" * 99_000,
}


@runs_programs
@pytest.mark.parametrize("name", FOOLS | TEXTS)
def test_no_program_passes_by_what_a_plain_harness_overlooks(name):
    program, test = FOOLS[name] if name in FOOLS else (TEXTS[name], SQUARE)
    passed, why = sandbox.run_python(program, "square", "", test)
    assert not passed and why in ("failed", "too long")


@runs_programs
def test_values_of_every_plain_type_come_through():
    values = [
        None,
        True,
        -3,
        2.5,
        1e300,
        float("inf"),
        1j,
        "a\n'\"\u2603",
        b"\x00\xff",
        [1, [2]],
        (1,),
        (),
        {1, 2},
        set(),
        {"a": (1, None)},
    ]
    program = """from collections import *
def same(x): return x
def odd(): return [Counter('aab'), OrderedDict(a=1)]
def bad(x): return {}[x]"""
    spelled = [(sandbox.literal(v), type(v).__name__) for v in values if v is not None]
    test = (
        "".join(f"assert same({v}) == {v} and type(same({v})) is {kind}\n" for v, kind in spelled)
        + "assert same(None) is None"
    )
    assert sandbox.run_python(program, "same", "", test) == (True, "")
    assert sandbox.run_python(
        program, "odd", "", "assert odd() == [{'a': 2, 'b': 1}, {'a': 1}]"
    ) == (True, "")
    raised = "try:\n    bad(1)\n    assert False\nexcept KeyError:\n    pass"
    assert sandbox.run_python(program, "bad", "", raised) == (True, "")


@runs_programs
@pytest.mark.skipif(
    not DATA, reason="needs HumanEval.jsonl.gz in the folder that NANONEOX_DATA names"
)
def test_all_164_solutions_of_humaneval_pass_and_none_of_their_first_lines_alone():
    theirs = problems_of(problems.HumanEval, file=(f"{DATA}/HumanEval.jsonl.gz",))

    def right(problem):
        return problems.passed(problem, problem.solution, None)

    def wrong(problem):
        return problems.passed(problem, "    return 'nothing'\n", None)

    with ThreadPoolExecutor(2) as pool:
        passes = list(pool.map(right, theirs))
        wrongly = list(pool.map(wrong, theirs[::8]))
    assert len(passes) == 164
    assert all(passes), [p.id for p, ok in zip(theirs, passes) if not ok]
    assert not any(wrongly)


@runs_programs
def test_the_solutions_of_the_handmade_python_set_pass_and_mutants_do_not():
    mine = problems_of(problems.Mine, language="python")

    def right(problem):
        return problems.passed(problem, problem.solution, None)

    def wrong(problem):
        return problems.passed(problem, problems.mutants(problem)[0], None)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(right, mine))
        assert not any(pool.map(wrong, mine[::5]))


GO_CHEATS = [
    "\tos.Exit(0)\n}\n",
    "\treturn nil\n}\nfunc init() { os.Exit(0) }\n",
    '\treturn nil\n}\nimport "os"\n',
    "\treturn nil\n}\nfunc TestMain(m *testing.M) {}\n",
    "\tfor {\n\t}\n}\n",
    "\tpanic(0)\n}\n",
]


@runs_go
def test_go_programs_pass_on_merit_alone():
    mine = {problem.id: problem for problem in problems_of(problems.Mine, language="go")}
    right = [mine["go/Unique"], mine["go/FormatDuration"]]
    if DATA and (Path(sandbox.GO_LIBRARY) / "src/github.com/stretchr/testify").is_dir():
        theirs = problems_of(problems.HumanEvalX, file=(f"{DATA}/humaneval_go.jsonl.gz",))
        assert len(theirs) == 164
        right += [theirs[n] for n in (0, 2, 38, 162)]  # 38, 162: imports for both files together
    with tempfile.TemporaryDirectory() as folder:
        for problem in right:
            assert problems.passed(problem, problem.solution, folder), problem.id
        unique = mine["go/Unique"]
        for cheat in GO_CHEATS:
            program = unique.prompt + cheat
            how = unique.test, unique.test_setup, folder
            verdict = sandbox.run_go(program, *how, seconds=1)
            assert not verdict[0] and verdict[1], cheat
        even = mine["go/IsEven"]
        how = even.test, even.test_setup, folder
        for lie in ("const true = false", "var false, true = true, false"):
            program = f"func IsEven(n int) bool {{ return false }}\n{lie}\n"
            assert not sandbox.run_go(program, *how)[0]
        imported = f'import "os"\n{even.prompt}{even.solution}var _ = os.Exit\n'
        assert "syntax error" in sandbox.run_go(imported, *how)[1]


def test_without_bubblewrap_nothing_runs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert sandbox.missing() and ("bubblewrap" in sandbox.missing() or "Linux" in sandbox.missing())

"""eval.py and tasks/sandbox.py: numbers against independent references, and generated programs that can neither harm nor cheat."""

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
import tokenize
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, run
from transformers import AutoModelForCausalLM

import eval as evaluation
from tasks import sandbox as execute
import sample
from parts import tokenizer as tokenizers

DATA = os.environ.get("NANONEOX_DATA")
SETTINGS = {key: value for key, value in vars(evaluation.Settings).items() if not key.startswith("_")}
runs_programs = pytest.mark.skipif(bool(execute.missing()), reason=execute.missing())
runs_go = pytest.mark.skipif(bool(execute.missing("go")), reason=execute.missing("go"))


def settings(**changes):
    return SimpleNamespace(**SETTINGS | {"show": 0} | changes)


@pytest.mark.parametrize("stride", [0, 37])
def test_the_loss_is_transformers_loss_over_every_token_once(trained, dataset, stride):
    model, tokenizer, _ = sample.load(trained, "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(trained).eval()
    tokens, T = np.fromfile(dataset / "val.bin", dtype="<u2")[:3001], 128
    logits = []  # of each token but the first, by windows that advance `stride` tokens, of which the new ones count
    begin = 0
    while len(logits) < len(tokens) - 1:
        ids = torch.from_numpy(tokens[None, begin : begin + T].astype(np.int64))
        logits += theirs(ids).logits[0, len(logits) - begin :].detach().unbind()
        begin += stride or T
    logits, right = torch.stack(logits)[: len(tokens) - 1], torch.from_numpy(tokens[1:].astype(np.int64))
    top5 = logits.topk(5).indices == right[:, None]
    nats = torch.nn.functional.cross_entropy(logits, right).item()
    meta = {"val": {"bytes": 10_000}}
    cfg = settings(dtype="float32", stride=stride)
    found = evaluation.measure(model, tokenizer, tokens, meta, ["loss"], cfg)
    assert found["loss"] == pytest.approx(nats, rel=1e-5) and found["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) * 3001 / 10_000, rel=1e-5)
    assert found["top1"] == pytest.approx(top5[:, 0].float().mean().item())
    assert found["top5"] == pytest.approx(top5.any(1).float().mean().item())
    shares = {name: found[f"share_{name}"] for name in evaluation.CLASSES}
    assert sum(found[f"loss_{name}"] * share for name, share in shares.items()) == pytest.approx(nats, rel=0.05)  # but end of text
    fast = evaluation.measure(model, tokenizer, tokens, meta, ["loss"], settings(stride=stride))
    assert fast["loss"] == pytest.approx(nats, rel=1e-3) and model.embed_out.weight.dtype == torch.float32


def test_scores_along_a_training_are_those_of_its_checkpoints(dataset, tmp_path):
    run("train.py", f"--dataset={dataset}", *TINY, "--max_iters=20", "--eval_interval=10", "--eval_tasks=mine,completion", f"--out_dir={tmp_path}/run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    along = {line["step"]: {key[5:]: value for key, value in line.items() if key.startswith("eval_")} for line in lines if "val_loss" in line}
    tokens, meta = np.fromfile(dataset / "val.bin", dtype="<u2"), json.loads((dataset / "meta.json").read_text())
    for step, name in ((10, "ckpt.1.pt"), (20, "ckpt.pt")):
        model, tokenizer, _ = sample.load(tmp_path / "run" / name, "cpu")
        assert along[step] == evaluation.measure(model, tokenizer, tokens, meta, ["completion", "mine"], settings(num_completions=25))
    assert along[0]["mine_bits_per_byte"] > along[10]["mine_bits_per_byte"] > along[20]["mine_bits_per_byte"]
    assert (tmp_path / "run" / "scores.png").read_bytes()[:4] == b"\x89PNG"


def test_classes_of_code_are_those_of_pythons_own_tokenizer(real_files):
    kinds = {tokenize.NAME: "identifier", tokenize.OP: "operator", tokenize.NUMBER: "literal", tokenize.COMMENT: "comment"}
    same, total = 0, 0
    for text in real_files[::10]:
        lines = text.splitlines(keepends=True)
        starts = np.cumsum([0] + [len(line.encode()) for line in lines])
        at = lambda place: starts[place[0] - 1] + len(lines[place[0] - 1][: place[1]].encode())  # noqa: B023, E731
        if "\f" in text or "\r" in text:
            continue
        expected = {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                word = token.type == tokenize.NAME and token.string in evaluation.KEYWORDS["python"]
                expected[at(token.start), at(token.end)] = "keyword" if word else kinds[token.type]
        found = {(begin, end): kind for kind, begin, end in evaluation.lex(text.encode(), "python") if kind != "whitespace"}
        strings = {place for place, kind in found.items() if place not in expected and kind in ("literal", "comment")}
        same += sum(found.get(place) == kind for place, kind in expected.items() if kind != "operator")
        total += sum(kind != "operator" for kind in expected.values())
        inside = sum(any(a <= begin and end <= b for a, b in strings) for begin, end in expected)  # f-strings, from 3.12 on
        assert inside == 0 or sys.version_info >= (3, 12)
    assert total > 5_000 and same > 0.995 * total
    pieces = [(kind, b'// go\nx := `a\nb` + 0x1F != \'\\n\'  /* c */'[a:b]) for kind, a, b in
              evaluation.lex(b'// go\nx := `a\nb` + 0x1F != \'\\n\'  /* c */', "go") if kind != "whitespace"]  # fmt: skip
    assert pieces == [("comment", b"// go"), ("identifier", b"x"), ("operator", b":="), ("literal", b"`a\nb`"), ("operator", b"+"),
                      ("literal", b"0x1F"), ("operator", b"!="), ("literal", b"'\\n'"), ("comment", b"/* c */")]  # fmt: skip


def test_metrics_are_the_reference_libraries_on_1000_pairs(real_files):
    rng = random.Random(0)
    lines = [line for text in real_files for line in text.splitlines() if line.strip()]
    pairs = [("", ""), ("a", ""), ("x = 1", "x=1"), ("x  =\t1", "x = 1")]
    while len(pairs) < 1000:
        a = rng.choice(lines)
        cut = [letter if rng.random() > 0.1 else rng.choice(string.printable) for letter in a if rng.random() > 0.1]
        pairs.append((a, "".join(cut) if rng.random() < 0.8 else rng.choice(lines)))
    for a, b in pairs:
        common = np.zeros(len(b) + 1, int)  # lengths of the longest common subsequences of a's beginning and each of b's
        for letter in a:
            longer = np.where(np.array(list(b)) == letter, common[:-1] + 1, common[1:]) if b else common[1:]
            common = np.r_[0, np.maximum.accumulate(longer)]
        share = 200 * common[-1] / len(a + b) if a + b else 100
        assert isinstance(evaluation.edit_similarity(a, b), int) and abs(evaluation.edit_similarity(a, b) - share) < 0.501, (a, b)
        assert evaluation.exact_match(a, b) == (re.sub(r"\s+", " ", a.strip()) == re.sub(r"\s+", " ", b.strip()))
    words = [" ".join(re.findall("[a-z]+", a)) for a, _ in pairs], [" ".join(re.findall("[a-z]+", b)) for _, b in pairs]
    matches, counts, sizes = [0] * 5, [0] * 5, [0, 0]  # Papineni et al. 2002, on words that no BLEU tokenizer cuts
    for a, b in zip(*map(lambda side: [text.split() for text in side], words)):
        sizes = [sizes[0] + len(a), sizes[1] + len(b)]
        for n in range(1, 5):
            grams = [Counter(tuple(side[i : i + n]) for i in range(len(side) - n + 1)) for side in (a, b)]
            matches[n] += sum((grams[0] & grams[1]).values())
            counts[n] += sum(grams[0].values())
    precision = math.exp(sum(math.log(matches[n] / counts[n]) for n in range(1, 5)) / 4)
    expected = 100 * min(1, math.exp(1 - sizes[1] / sizes[0])) * precision
    assert 2 < expected < 90 and evaluation.bleu(*words) == pytest.approx(expected, rel=1e-9)


def test_pass_at_k_is_the_chance_to_draw_a_correct_program():
    rng = random.Random(0)
    for _ in range(1000):
        n = rng.randint(1, 200)
        c, k = rng.randint(0, n), rng.randint(1, n)
        assert evaluation.pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_each_problem_has_nine_mutants_the_same_every_time_and_of_its_length():
    for language in ("python", "go"):
        problems = evaluation.read_problems("mine", settings(), language)
        assert len(problems) == len({problem["id"] for problem in problems}) == 50
        for problem in problems:
            mutants = evaluation.mutants(problem)
            assert len({problem["solution"], *mutants}) == 10 and mutants == evaluation.mutants(problem)
        lengths = [len(m) - len(problem["solution"]) for problem in problems for m in evaluation.mutants(problem)]
        assert abs(np.mean(lengths)) < 1


def test_a_run_is_evaluated_twice_alike_and_compared(trained, dataset, tmp_path, monkeypatch, capsys):
    reports = []
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / name)
        argv = [f"--ckpt={tmp_path / name}", "--num_completions=3", "--max_new_tokens=16", "--num_bodies=3"]
        monkeypatch.setattr(sys, "argv", ["eval.py", *argv, *(["--tasks=loss,bodies,completion,mine"] if name == "b" else [])])
        evaluation.main()
        reports.append(json.loads((tmp_path / name / "eval.json").read_text()))
        del reports[-1]["arguments"]
    assert reports[0].items() < reports[1].items() and reports[1]["bodies"] == 3
    keys = {f"{kind}_{metric}" for kind in ("line", "next", "body") for metric in ("exact", "edit", "bleu", "first", "parse")}
    assert keys | {"loss", "loss_keyword", "mine_bits_per_byte", "mine_choice2", "mine_choice10"} <= reports[0].keys()
    assert reports[0]["mine_choice2"] > 0.5  # 60 steps, and better than chance
    assert "needs --allow_code_execution" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["eval.py", f"--ckpt={tmp_path / 'b'}", "--tasks=bodies", "--num_bodies=2", "--max_new_tokens=16"])
    evaluation.main()  # of the other tasks what they said stays
    again = json.loads((tmp_path / "b" / "eval.json").read_text())
    assert again["bodies"] == 2 and again["loss"] == reports[1]["loss"] and again.keys() == reports[1].keys() | {"arguments"}
    monkeypatch.setattr(evaluation.configurator, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["eval.py", "--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    evaluation.main()
    out = capsys.readouterr().out
    assert re.search(rf"mine_choice2 +{reports[0]['mine_choice2']:.4f} +{reports[1]['mine_choice2']:.4f}", out)
    assert (tmp_path / "out" / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_with_another_tokenizer_reads_the_same_bytes(trained, dataset, tmp_path):
    tokenizer = tokenizers.load(trained)
    texts = [tokenizer.decode(np.fromfile(dataset / "val.bin", dtype="<u2")[:2000].tolist()).replace("<|endoftext|>", "")]
    other = tokenizers.train_bpe(texts, 400)
    other.save(tmp_path)
    tokens, meta = evaluation.open_split(settings(dataset=str(dataset)), tmp_path, other)
    whole = np.fromfile(dataset / "val.bin", dtype="<u2")
    assert other.decode(tokens.tolist()) == tokenizer.decode(whole.tolist()) and len(tokens) > len(whole)
    assert evaluation.detect_language(tokens, other) == "python"


def test_of_a_perfect_model_every_completion_is_right(trained, dataset, monkeypatch):
    """The pipeline from cut to metric, with what stands in the file in place of what a model writes."""
    _, tokenizer, _ = sample.load(trained, "cpu")
    tokens, real = np.fromfile(dataset / "val.bin", dtype="<u2"), {}

    def written(model, tokenizer, prompts, *rest):
        return [("".join(real[prompt]), True) for prompt in prompts]

    draw = evaluation.draw

    def remembered(*args):
        for before, target, after, *rest in draw(*args):
            real[before] = target, after
            yield before, target, after, *rest

    monkeypatch.setattr(evaluation, "complete", written)
    monkeypatch.setattr(evaluation, "draw", remembered)
    found = evaluation.completion_task(None, tokenizer, tokens, settings(num_completions=20), "python")
    assert len(found) == 15 and list(found.values()) == pytest.approx([100] * 15), found


# Programs.

SQUARE = "assert square(3) == 9\nassert square(-2) == 4\n"
HOSTILE = {  # {file} and {folder} lie outside the sandbox, {port} is listened at, {pid} is this process
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "endless loop": "while True: pass",
    "100 GB": "x = bytearray(100 * 2**30)",
    "ever more memory": "x = []\nwhile True: x.append(bytearray(2**20))",
    "memory by many processes": "import os\nfor _ in range(20): os.fork()\nx = []\nwhile True: x.append(bytearray(2**20))",
    "delete a file outside": "import os\nos.remove({file!r})",
    "write a file outside": "open({folder!r} + '/new', 'w').write('x')",
    "overwrite a file outside": "open({file!r}, 'w').write('x')",
    "delete everything": "import shutil\nshutil.rmtree('/', ignore_errors=True)",
    "overwrite the harness": "open({harness!r}, 'w').write('raise SystemExit(0)')",
    "TCP": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1).send(b'x')",
    "name lookup": "import socket\nsocket.getaddrinfo('example.com', 80)",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill the tests": "import os\nos.kill({pid}, 9)",
    "kill everything": "import os\nos.kill(-1, 9)",
    "stdout flood": "while True: print('x' * 10**6)",
    "flood of answers": "import os\nwhile True:\n    for fd in range(3, 9):\n        try: os.write(fd, b'x' * 10**6)\n        except OSError: pass",
    "wait for input": "input()\nwhile True: input()",
    "swallow the calls": "import os\nfor fd in range(3, 9):\n    try:\n        while os.read(fd, 100): pass\n    except OSError: pass",
    "sleep": "import time\ntime.sleep(10**6)",
    "ignore signals": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(10**6)\nos._exit(0)",
    "fill the disk": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{{n}}', 'wb').write(bytes(2**23))",
    "exit 0 at once": "import os\nos._exit(0)",
    "exit 0 politely": "import sys\nsys.exit(0)",
    "exit 0 when called": "import os\ndef square(x): os._exit(0)",
    "become /bin/true": "import os\ndef square(x): os.execv('/bin/true', ['true'])",
    "claim to have passed": "import sys\nprint('OK\\n1 passed')\nsys.stderr.write('OK')\ndef square(x): return print('OK')",
    "equals everything": "class E:\n    __eq__ = lambda *a: True\n    __bool__ = lambda *a: True\ndef square(x): return E()",
    "a number that equals everything": "class I(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef square(x): return I(5)",
    "text that is code": "class S(str):\n    __repr__ = lambda s: '__import__(\"os\")._exit(0)'\ndef square(x): return S()",
    "patch assert": "import builtins\nbuiltins.AssertionError = None\nbuiltins.exec = builtins.compile = lambda *a: None\ndef square(x): raise AssertionError",
    "patch the harness": "import __main__\n__main__.literal = lambda v: \"('return', 9)\"\ndef square(x): return 9",
    "answers before the calls": "import os\nfor fd in range(3, 9):\n    try: os.write(fd, b\"('return', 9)\\n\" * 9)\n    except OSError: pass\nos._exit(0)",
    "look for the answers": "import gc, sys\ndef square(x):\n    texts = [o for o in gc.get_objects() if 'square(3)' in str(o)[:9999]]\n    return eval(texts[0].split('==')[1])",
    "nested answer": "def square(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "huge answer": "def square(x): return 'x' * 2**28",
    "broken answer": "import os\nfor fd in range(3, 9):\n    try: os.write(fd, b'(' * 10**5 + b'\\n')\n    except OSError: pass\ndef square(x): return 1",
    "new namespaces": "import ctypes, os\nassert ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == 0\nopen('/proc/self/uid_map', 'w').write('0 65534 1')\ndef square(x): return {{3: 9, -2: 4}}[x]",
    "crash": "import ctypes\nctypes.string_at(0)",
    "no such function": "def cube(x): return x ** 3",
    "not Python": "func square(x int) int {{ return x * x }}",
}  # fmt: skip


@runs_programs
def test_hostile_programs_harm_nothing_end_in_time_and_never_pass(tmp_path):
    tmp_path.chmod(0o777)
    file, harness = tmp_path / "file", Path(execute.__file__).read_text()
    file.write_text("untouched")
    file.chmod(0o666)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    mark = f"marked_{os.getpid()}_{random.random()}"
    values = dict(file=str(file), folder=str(tmp_path), harness=execute.__file__, port=listener.getsockname()[1], pid=os.getpid())

    def attack(name):
        program = f"# {mark}\n" + HOSTILE[name].format(**values)
        return name, execute.run_python(program, "square", "", SQUARE, seconds=1.5)

    with ThreadPoolExecutor(2) as pool:
        passed = {name: why for name, (ok, why) in pool.map(attack, HOSTILE) if ok}
    assert len(HOSTILE) >= 30 and not passed
    assert file.read_text() == "untouched" and [f.name for f in tmp_path.iterdir()] == ["file"]
    assert Path(execute.__file__).read_text() == harness
    with pytest.raises(TimeoutError):
        listener.accept()
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.parent.name != str(os.getpid()) and mark.encode() in read(p)]
    assert not left
    assert execute.run_python("def square(x): return x * x", "square", "", SQUARE) == (True, "")
    assert execute.run_python("def square(x): return x + x", "square", "", SQUARE) == (False, "failed")
    assert execute.run_python("def square(x): return x * x", "square", "", "assert True") == (False, "failed")  # nothing was tested


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@runs_programs
def test_values_of_every_plain_type_come_through():
    values = [None, True, -3, 2.5, 1e300, float("inf"), 1j, "a\n'\"\u2603", b"\x00\xff", [1, [2]], (1,), (), {1, 2}, set(), {"a": (1, None)}]
    program = "from collections import *\ndef same(x): return x\ndef odd(): return [Counter('aab'), OrderedDict(a=1)]\ndef bad(x): return {}[x]"
    spelled = [(execute.literal(v), type(v).__name__) for v in values if v is not None]
    test = "".join(f"assert same({v}) == {v} and type(same({v})) is {kind}\n" for v, kind in spelled) + "assert same(None) is None"
    assert execute.run_python(program, "same", "", test) == (True, "")
    assert execute.run_python(program, "odd", "", "assert odd() == [{'a': 2, 'b': 1}, {'a': 1}]") == (True, "")
    raised = "try:\n    bad(1)\n    assert False\nexcept KeyError:\n    pass"
    assert execute.run_python(program, "bad", "", raised) == (True, "")


@runs_programs
@pytest.mark.skipif(not DATA, reason="needs HumanEval.jsonl.gz in the folder that NANONEOX_DATA names")
def test_all_164_solutions_of_humaneval_pass_and_none_of_their_first_lines_alone():
    problems = evaluation.read_problems("humaneval", settings(file=(f"{DATA}/HumanEval.jsonl.gz",)), "python")
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda p: evaluation.passed(p, p["solution"], None), problems))
        wrong = list(pool.map(lambda p: evaluation.passed(p, "    return 'nothing'\n", None), problems[::8]))
    assert len(right) == 164 and all(right), [p["id"] for p, ok in zip(problems, right) if not ok]
    assert not any(wrong)


@runs_programs
def test_the_solutions_of_the_handmade_python_set_pass_and_mutants_do_not():
    problems = evaluation.read_problems("mine", settings(), "python")
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda p: evaluation.passed(p, p["solution"], None), problems))
        assert not any(pool.map(lambda p: evaluation.passed(p, evaluation.mutants(p)[0], None), problems[::5]))


@runs_go
def test_go_programs_pass_on_merit_alone():
    problems = {p["id"]: p for p in evaluation.read_problems("mine", settings(), "go")}
    right = [(problems[f"go/{name}"], problems[f"go/{name}"]["solution"]) for name in ("Unique", "FormatDuration")]
    if DATA and (Path(execute.GO_LIBRARY) / "src/github.com/stretchr/testify").is_dir():
        theirs = evaluation.read_problems("humaneval-x", settings(file=(f"{DATA}/humaneval_go.jsonl.gz",)), "python")
        right += [(theirs[n], theirs[n]["solution"]) for n in (0, 2, 38, 162)]  # 38, 162: their imports are for both files together
        assert len(theirs) == 164
    cheats = ["\tos.Exit(0)\n}\n", "\treturn nil\n}\nfunc init() { os.Exit(0) }\n", "\treturn nil\n}\nimport \"os\"\n",
              "\treturn nil\n}\nfunc TestMain(m *testing.M) {}\n", "\tfor {\n\t}\n}\n", "\tpanic(0)\n}\n"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for problem, text in right:
            assert evaluation.passed(problem, text, folder), problem["id"]
        for cheat in cheats:
            problem = problems["go/Unique"]
            verdict = execute.run_go(problem["prompt"] + cheat, problem["test"], problem["test_setup"], folder, seconds=1)
            assert not verdict[0] and verdict[1], cheat


def test_without_bubblewrap_nothing_runs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert execute.missing() and ("bubblewrap" in execute.missing() or "Linux" in execute.missing())

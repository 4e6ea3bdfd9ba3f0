"""prepare/teacher.py, asked over HTTP: whose texts they are, and that each goes to one client."""

import functools
import json
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from conftest import ROOT, run

from model import NeoX, NeoXConfig
from parts import runs
from parts.generate import Decoder, Piece, completion, generate, read_prompt
from prepare.sources import seeded


class Teacher:
    """A server, as a person starts it."""

    def __init__(self, *args):
        command = [sys.executable, str(ROOT / "prepare" / "teacher.py"), "--port=0"]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT.parent)
        self.process = subprocess.Popen([*command, *map(str, args)], **how)
        self.lines = []
        while "serving" not in (line := self.process.stdout.readline()):
            assert line, "".join(self.lines)
            self.lines.append(line)
        self.url = re.search(r"http://[\d.:]+", line)[0]
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.reader.join()

    def get(self, path, **headers):
        return httpx.get(self.url + path, headers=headers, timeout=60)

    def texts(self, count, each=16, **headers):
        found = []
        while len(found) < count:
            n = min(each, count - len(found))
            part = self.get(f"/generate?n={n}", **headers).json()
            assert 1 <= len(part) <= n
            found += part
        return found

    def end(self):
        """Ctrl-C, while it writes; its exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(10)
        self.reader.join()
        return code


@functools.cache
def loaded(folder):
    return runs.load(str(folder), "cpu")


def expected(trained, seed, number, prompts=(), most=128):
    """Text number `number`, written alone by `generate`."""
    model, tokenizer, _ = loaded(trained)
    chosen, special = seeded(seed, f"beginning {number}"), set(tokenizer.special.values())
    if prompts:
        text = prompts[chosen % len(prompts)]
        read = read_prompt(tokenizer, text)
    else:
        lexicon = [i for i in range(tokenizer.vocab_size) if i not in special]
        read = read_prompt(tokenizer, "x")
        text, read = "", read._replace(ids=[tokenizer.eot, lexicon[chosen % len(lexicon)]])
        read = read._replace(first_ids=None, healed=0)
    how = dict(temperature=0.8, top_k=50, top_p=0.95, stop_ids=special, first_ids=[read.first_ids])
    how |= dict(seed=seeded(seed, f"text {number}") % 2**63, vocab_size=tokenizer.vocab_size)
    room = model.config.block_size - len(read.ids)
    [ids] = generate(model, [read.ids], min(room, most), **how)
    ids = ids if prompts else [read.ids[-1], *ids]
    return (text + completion(tokenizer, ids, read.healed)).strip("\ufffd")


def test_texts_are_the_models_and_each_goes_to_one_client(trained):
    with Teacher(f"--ckpt={trained}", "--seed=5", "--dtype=float32", "--queue=40") as teacher:
        with ThreadPoolExecutor(3) as pool:
            shares = list(pool.map(lambda each: teacher.texts(20, each), (1, 7, 16)))
        health = teacher.get("/health").json()  # at once: rates are those of the last ten seconds
        texts = [text for share in shares for text in share]
        assert len(set(texts)) == len(texts) == 60
        # They go out in order; whatever is written beside one, it is what would be written alone.
        own = [expected(trained, 5, number) for number in range(12)]
        assert len(set(own)) == 12 and set(own) <= set(texts)
        hints = teacher.get("/").text  # what it said at its start too
        assert all(line in "".join(teacher.lines) for line in hints.splitlines())
        assert f"{teacher.url}/generate?n=2" in hints and f"--tokenizer={trained}" in hints
        assert health["status"] == "ok" and health["served"] == 60 and health["clean"] == 0
        assert health["written"] >= 60 + health["queue"] and health["queue"] <= 40
        assert health["tokens"] > 60 * 20 and health["tokens_per_s"] > health["texts_per_s"] > 0
        for wrong in ("0", "257", "-1", "1.5", "many", "9" * 5000, "²"):
            refused = teacher.get(f"/generate?n={wrong}")
            assert refused.status_code == 400 and "1 to 256" in refused.json()["error"]["message"]
        assert teacher.get("/generate", Host="evil.example").status_code == 403
        assert teacher.get("/generate", Origin="http://evil.example").status_code == 403
        first, again, other = (teacher.get(f"/generate?n=2&id={id}").json() for id in "aab")
        assert first == again and not set(first) & {*other, *texts}
        teacher.texts(16)  # so that it has to write
        assert teacher.end() == 130
        assert "Traceback" not in "".join(teacher.lines)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(parallel_residual=False, rotary_pct=0.0, learned_positions=True),
        dict(shared_norm=True, head_bias=True, activation="gelu_new", rotary_pct=0.5),
    ],
)
def test_attention_in_bfloat16_by_the_kernel_is_torchs(settings):
    torch.manual_seed(0)
    shape = dict(vocab_size=99, n_layer=3, n_head=4, n_embd=64, block_size=24)
    model = NeoX(NeoXConfig(**shape, **settings)).eval()
    with torch.inference_mode():
        for weight in model.parameters():
            weight.mul_(3)  # so that attention has something to choose
        model.bfloat16()
        decoder, plain = Decoder(model, 3, threads=1), Decoder(model, 3)
        assert decoder.heads and not plain.heads
        for cuts in ([(0, 20), (0, 7), (0, 1)], [(20, 21), (7, 8), (1, 5)], [(21, 24), (8, 24)]):
            pieces = [Piece(row, a, list(range(a, b))) for row, (a, b) in enumerate(cuts)]
            read, expected = decoder.read(pieces), plain.read(pieces)
            assert (read - expected).norm() <= 0.02 * expected.norm()


def test_prompts_clean_texts_and_a_key(trained, tmp_path):
    clean = [f"clean text {number}\n" * 3 for number in range(40)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in clean[:30])
    (tmp_path / "some.jsonl").write_text(rows)
    for number, text in enumerate(clean[30:]):
        (tmp_path / f"{number}.txt").write_text(text)
    prompts = ["def f(self):", "import os"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts))
    files = f"--file={tmp_path}/*.jsonl,{tmp_path}/?.txt"
    args = f"--ckpt={trained}", files, "--clean=0.7", f"--prompts={tmp_path}/prompts.txt"
    args += "--seed=6", "--rows=1", "--max_tokens=30", "--api_key=secret"
    with Teacher(*args) as teacher:
        key = dict(Authorization="Bearer secret")
        assert teacher.get("/generate").status_code == 401
        assert teacher.get("/health").status_code == 200
        texts = teacher.texts(100, **key)
        read = [text for text in texts if text in clean]
        assert 55 <= len(read) <= 85
        assert set(read[:40]) == set(clean) and read[:40] != clean  # all of them, in another order
        assert read[40:] != read[: len(read) - 40]  # which the next round does not repeat
        numbers = [number for number, text in enumerate(texts) if text not in clean]
        for number in numbers[:6]:
            assert texts[number] == expected(trained, 6, number, prompts, 30)
        assert teacher.end() == 130


def test_files_alone_need_no_torch(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    code = (
        "import sys; from prepare import teacher\n"
        f"sys.argv = ['teacher', '--file={tmp_path}/a.txt', '--queue=3']\n"
        "feed = teacher.Feed(teacher.read_settings()); feed.start()\n"
        "while len(feed.ready) < 3: pass\n"
        "assert feed.take(5) == ['one text'] * 3 and 'torch' not in sys.modules\n"
        "feed.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize(
    "args, said",
    [
        ([], "--ckpt"),
        (["--file=a.jsonl", "--host=0.0.0.0"], "--api_key"),
        (["--file=a.jsonl", "--prompts=a.jsonl"], "--prompts"),
        (["--file=none.jsonl"], "none.jsonl"),
        (["--file=damaged.parquet"], "damaged.parquet"),
        (["--file=empty.txt"], "no text"),
    ],
)
def test_mistakes(tmp_path, args, said):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "damaged.parquet").write_text("PAR1 not")
    (tmp_path / "empty.txt").write_text(" \n")
    done = run("prepare/teacher.py", "--port=0", *args, cwd=tmp_path, ok=False)
    assert done.returncode == 2 and said in done.stderr and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1

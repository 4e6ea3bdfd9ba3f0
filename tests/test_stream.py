"""A data set that grows: prepare/stream.py killed and restarted, feeds that die, and trainings that
read it, wait for it, and go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, in_process, run

from parts import segments, tokenizer
from parts.checkpoints import checksum, load_checkpoint
from parts.stream import open_dataset

SIZE = 10_000  # tokens of a segment


def start(out, *args):
    command = [sys.executable, ROOT / "prepare/stream.py", f"--out={out}", *args]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(list(map(str, command)), **pipes)


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def about(folder):
    return json.loads((folder / "stream.json").read_text())


def tokens_of(folder):
    files = [segments.path_of(folder, one["number"]) for one in about(folder)["segments"]]
    return np.concatenate([np.fromfile(file, "<u2") for file in files])


def train_tokens(now):
    return [counts["tokens"] for counts in now["sources"].values()]


def documents(folder, tokens):
    tok = tokenizer.load(folder)
    ends = np.flatnonzero(tokens == tok.eot) + 1
    return Counter(tok.decode(part.tolist()) for part in np.split(tokens, ends) if len(part))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """300 Python files as JSON lines."""
    folder, stdlib = tmp_path_factory.mktemp("rows"), Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(stdlib.rglob("*.py")) if 2000 < file.stat().st_size < 9000]
    lines = [
        json.dumps({"content": file.read_text(encoding="utf-8", errors="replace")})
        for file in files[:: len(files) // 300]
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def settings(rows, dataset):
    return (
        f"--source={rows}",
        f"--tokenizer={dataset}",
        f"--segment_tokens={SIZE}",
        "--val_mb=0.1",
        "--fim_rate=0",
        "--window=20",
    )


@pytest.fixture(scope="module")
def stream(settings, tmp_path_factory):
    """A stream that has ended, never disturbed."""
    folder = tmp_path_factory.mktemp("stream") / "set"
    process = start(folder, *settings)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "the stream has ended" in said, said
    return folder


def test_it_holds_each_document_once_as_a_finished_set_does(stream, rows, dataset, tmp_path):
    run(
        "prepare/python.py",
        *(f"--file={rows}", f"--out={tmp_path / 'set'}", f"--tokenizer={dataset}", "--fim_rate=0"),
    )
    finished = Counter()
    for split in ("train", "val"):
        finished += documents(stream, np.fromfile(tmp_path / "set" / f"{split}.bin", "<u2"))
    val = documents(stream, np.fromfile(stream / "val.bin", "<u2"))
    train = documents(stream, tokens_of(stream))
    assert not train & val and max((train + val).values()) == 1
    assert train + val == finished
    now = about(stream)
    assert [one["tokens"] for one in now["segments"][:-1]] == [SIZE] * (len(now["segments"]) - 1)
    assert (
        now["tokens"] == len(tokens_of(stream)) == sum(s["tokens"] for s in now["sources"].values())
    )
    assert now["documents"] == sum(train.values())


def test_killed_again_and_again_it_writes_the_same(stream, settings, tmp_path):
    folder = tmp_path / "set"
    for more in (0, 1, 2):
        process = start(folder, *settings, "--keep_gb=1")  # which may change
        before = len(list(folder.glob("train.*.bin")))
        while len(list(folder.glob("train.*.bin"))) <= before + more and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        process.stdout.close()
    if not about(folder)["ended"]:  # a busy machine may be late with its kills
        assert "the stream has ended" in run("prepare/stream.py", f"--out={folder}").stdout
    keys = ("segments", "tokens", "bytes", "documents", "sources", "cleaning", "state")
    assert {key: about(folder)[key] for key in keys} == {key: about(stream)[key] for key in keys}
    for name in ("val.bin", "tokenizer.json"):
        assert (folder / name).read_bytes() == (stream / name).read_bytes()
    assert (tokens_of(folder) == tokens_of(stream)).all()


class Server(ThreadingHTTPServer):
    """A feed on a port of its own: GET /generate answers with the next texts."""

    def __init__(self, texts, port=0):
        feed = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if not self.path.startswith("/generate?"):
                    return self.send_error(404)
                with feed.lock:
                    given, feed.texts = feed.texts[:4], feed.texts[4:]
                time.sleep(0 if given else 0.1)
                data = json.dumps(given).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.texts, self.lock = list(texts), threading.Lock()
        self.allow_reuse_address = True
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/generate"

    def stop(self):
        self.shutdown()
        self.server_close()


def test_feeds_are_mixed_by_weight_and_one_that_dies_is_left_out_until_it_is_back(
    rows, stream, tmp_path
):
    texts = [json.loads(line)["content"] for line in rows.read_text().splitlines()]
    a, b, folder = Server(texts[:120:2]), Server(texts[1:40:2]), tmp_path / "set"
    process = start(
        folder,
        *(f"--source={a.url}:2,{b.url}", f"--val={stream}", f"--segment_tokens={SIZE}"),
        *("--fim_rate=0", "--patience=0.05"),
    )
    said = []
    threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()

    def told(what):
        return wait_for(lambda: what in "".join(said))

    def counts():
        return about(folder)["sources"] if (folder / "stream.json").exists() else {}

    wait_for(lambda: counts().get(b.url, {}).get("documents", 0) > 4)
    shares = {url: n["bytes"] for url, n in counts().items()}
    assert 1.2 < shares[a.url] / shares[b.url] < 3.5
    b.stop()
    told(f"{b.url} does not answer, and is left out until it is back")
    process.kill()  # what it has fetched is not lost
    process.wait()
    process = start(folder, "--patience=0.05")
    said.clear()
    threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()
    told(f"{b.url} does not answer")
    b = Server([*b.texts, *texts[41:60:2]], b.server_port)
    told(f"{b.url} is back")
    wait_for(lambda: not a.texts and not b.texts)
    a.stop(), b.stop()
    told("no source has answered")
    assert process.wait() == 2
    # One that answers 404 from the start is a mistake, not an outage.
    gone = Server(["a"])
    settings = (f"--source={gone.url}x", f"--val={stream}", f"--out={tmp_path / 'gone'}")
    done = run("prepare/stream.py", *settings, "--fim_rate=0", ok=False)
    gone.stop()
    assert done.returncode == 2 and "refuses: status 404" in done.stderr
    clean = documents(stream, tokens_of(stream)).keys()
    wanted = {text.strip("\n") + "\n" for text in texts[:120:2] + texts[1:60:2]} & clean
    found = Counter({text: n for text, n in documents(folder, whole(folder)).items()})
    assert found.keys() >= wanted and max(found.values()) == 1


def whole(folder):
    """All tokens, also those that do not fill a segment yet."""
    with np.load(folder / about(folder)["file"]) as state:
        return np.append(tokens_of(folder), state["tail"])


def train(stream, out, *more):
    how = (*TINY, "--dtype=float32", "--eval_interval=0", "--grad_accum=2", "--stream_wait=0.5")
    return ("train.py", f"--dataset={stream}", f"--out_dir={out}", *how, *more)


def weights(out):
    return checksum(load_checkpoint(out / "ckpt.pt")["model"])


def test_a_step_reads_rows_of_its_segments_and_a_resumed_run_the_same(
    stream, tmp_path, monkeypatch, capsys
):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    settings = train(stream, straight, "--max_iters=20", "--save_interval=12")[1:]
    assert in_process(monkeypatch, *settings) == 0
    resumed.mkdir()
    for name in ("run.json", "tokenizer.json", "metrics.jsonl"):
        shutil.copy(straight / name, resumed)
    shutil.copy(straight / "ckpt.1.pt", resumed / "ckpt.pt")
    more = ("--max_iters=20", "--init_from=resume")
    assert in_process(monkeypatch, *train(stream, resumed, *more)[1:]) == 0
    assert weights(straight) == weights(resumed)
    assert not list(stream.glob("reader.*"))  # both are done, and need nothing any more

    # Past the end of the stream, which all steps before it fill.
    left = -(-about(stream)["tokens"] // (8 * 128))
    settings = train(stream, tmp_path / "end", f"--max_iters={left}")[1:]
    assert in_process(monkeypatch, *settings) == 0
    said = capsys.readouterr().out
    assert "has ended, and all of it was read" in said
    last = load_checkpoint(tmp_path / "end" / "ckpt.pt")["step"]
    assert 0.9 * left < last < left and f"up to step {last}" in said

    data, read = open_dataset(str(stream), 128), Counter()
    cfg = type("Cfg", (), dict(batch_size=4, grad_accum=2, seed=7, keep=1, stream_wait=0))
    cfg.max_iters = 0
    data.begin(cfg, tmp_path / "run", None, 0, False)
    steps = (SIZE - 1) // 128 * 2 // 8
    for step in range(steps):
        data.wait(step, lambda: False, 0)
        for micro in range(2):
            x, y = data.train_batch(7, step, micro, 4, "cpu")
            read.update(tuple(row) for row in np.append(x, y[:, -1:], 1).tolist())
    rows = [
        tuple(part[start : start + 129].tolist())
        for part in np.split(tokens_of(stream)[: 2 * SIZE], 2)
        for start in range(0, SIZE - 128, 128)
    ]
    assert not read - Counter(rows) and sum(read.values()) == 8 * steps > len(rows) - 8


def test_training_waits_for_the_stream_and_ends_with_one_line_where_it_has_died(
    rows, stream, tmp_path
):
    texts = [json.loads(line)["content"] for line in rows.read_text().splitlines()]
    feed, folder, out = Server(texts[:40]), tmp_path / "set", tmp_path / "run"
    process = start(
        folder, f"--source={feed.url}", f"--val={stream}", "--segment_tokens=5000", "--fim_rate=0"
    )
    wait_for(lambda: (folder / "stream.json").exists() and about(folder)["segments"])
    command = [sys.executable, ROOT / "train.py", *train(folder, out, "--max_iters=10000")[1:]]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    training, said = subprocess.Popen(list(map(str, command)), **pipes), []
    threading.Thread(target=lambda: said.extend(training.stdout), daemon=True).start()
    wait_for(lambda: "waiting for the stream" in "".join(said))
    mark = segments.marks(folder)[0]
    assert mark["run"] == str(out) and mark["at"] == about(folder)["next"] - 1
    feed.texts += texts[40:80]
    wait_for(lambda: segments.marks(folder)[0]["at"] > mark["at"])
    process.kill()
    process.wait()
    process.stdout.close()
    os.utime(folder / "stream.json", (0, 0))  # as if 20 s had passed
    assert training.wait(60) == 2
    text = "".join(said)
    assert text.count("waiting for the stream") == 1 and "Traceback" not in text
    [line] = [line for line in said if line.startswith("error: ")]
    assert "does not run" in line and f"prepare/stream.py --out={folder}" in line
    assert load_checkpoint(out / "ckpt.pt")["step"] > 0
    feed.stop()


def test_old_segments_go_when_every_checkpoint_is_past_them(rows, dataset, tmp_path, monkeypatch):
    folder, out = tmp_path / "set", tmp_path / "run"
    process = start(
        folder,
        *(f"--source={rows}", f"--tokenizer={dataset}", "--segment_tokens=10000", "--val_mb=0.1"),
        *("--fim_rate=0", "--keep_gb=0.0001", "--epochs=0", "--ahead_minutes=1000"),
    )

    def numbers():
        return [int(file.suffixes[0][1:]) for file in sorted(folder.glob("train.*.bin"))]

    wait_for(lambda: len(numbers()) == 5)  # and it stops, as nobody has read them
    segments.write_mark(folder, tmp_path, 2, 3, 1000.0)
    wait_for(lambda: numbers()[0] == 2)
    time.sleep(1)
    assert numbers() == [2, 3, 4, 5, 6]
    segments.mark_of(folder, tmp_path).unlink()
    # A training that saves rarely reads more than keep_gb holds: neither waits for the other.
    assert in_process(monkeypatch, *train(folder, out, "--max_iters=70")[1:]) == 0
    assert len(numbers()) > 5
    more = ("--max_iters=40", "--save_interval=5", "--keep=1")
    assert in_process(monkeypatch, *train(folder, tmp_path / "often", *more)[1:]) == 0
    assert numbers()[0] > 2
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[0]
    assert (
        process.returncode == 130 and f"go on with: python prepare/stream.py --out={folder}" in said
    )
    # A run that needs what is gone says so.
    state = about(folder)
    assert in_process(monkeypatch, *train(folder, tmp_path / "b", "--max_iters=2")[1:]) == 0
    state["segments"] = state["segments"][2:]
    (folder / "stream.json").write_text(json.dumps(state))
    more = ("--max_iters=9", "--init_from=resume")
    assert in_process(monkeypatch, *train(folder, tmp_path / "b", *more)[1:]) == 2


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--source="], "--source is empty"),
        (["--source=/no/such.jsonl"], "there is no file"),
        (["--source=a.jsonl:0"], "weight"),
        (["--source=a.jsonl,a.jsonl"], "twice"),
        (["--val=/nowhere"], "there is no tokenizer /nowhere"),
        (["--segment_tokens=0"], "segment_tokens must be above 0"),
        (["--keep_gb=0.001"], "does not hold three segments"),
        ([f"--source={ROOT}/parts/*.py"], "of what cleaning leaves"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, tmp_path):
    done = run("prepare/stream.py", f"--out={tmp_path / 'set'}", *arguments, ok=False)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_settings_and_damage_are_told(stream, tmp_path, monkeypatch, capsys):
    for more, line in (
        (["--seed=3"], "seed=1337, not 3"),
        ([], "has ended"),
    ):
        done = run("prepare/stream.py", f"--out={stream}", *more, ok=False)
        assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
    file = segments.path_of(stream, 0)
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + b"\1\0")
    try:
        assert in_process(monkeypatch, *train(stream, tmp_path / "run")[1:]) == 2
    finally:
        file.write_bytes(whole)
    assert "train.00000.bin is damaged" in capsys.readouterr().err

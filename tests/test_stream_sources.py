"""prepare/shards.py and prepare/hub.py: documents of files, URLs and a hub, in spite of dropped
connections, and from any place on."""

import gzip
import http.server
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import Server

from prepare import shards

CFG = {"seed": 1, "column": "", "window": 40, "epochs": 1, "patience": 0.5}

# Reads sources, from their cursors on, in another process. A line for each document: its text's
# hash, its cursor. At `stop` documents it waits for a line.
READER = f"""
import contextlib, hashlib, itertools, json, sys
from types import SimpleNamespace
sys.path.insert(0, {str(ROOT)!r})
from parts.configurator import mistakes
from prepare import shards
shards.RANGE = 2**16
given, most, stop = json.loads(sys.argv[1])
for spec, cursor in given:
    with contextlib.suppress(SystemExit):
        with mistakes():
            found = shards.open_source(spec, SimpleNamespace(**{CFG!r})).documents(cursor)
        for number, (document, cursor) in enumerate(itertools.islice(found, most), 1):
            digest = hashlib.sha256(document.text.encode()).hexdigest()
            print(json.dumps([digest, cursor]), flush=True)
            if number == stop:
                input()
"""


@pytest.fixture(scope="module")
def texts(real_files):
    return [f"# file {number}\n{text}" for number, text in enumerate(real_files[:400])]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    """The texts in files of all kinds, and as data sets of a hub."""
    folder = tmp_path_factory.mktemp("texts")
    data = folder / "owner/name/data"
    data.mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: small\n  data_files: data/train-*\n---\n"
    (folder / "owner/name/README.md").write_text(card)
    rows = [{"text": text, "url": f"page {i}", "score": i / 7} for i, text in enumerate(texts)]
    for part in range(3):
        some = rows[part * 150 : (part + 1) * 150]
        table = pa.Table.from_pylist(some)
        parquet.write_table(table, folder / f"p{part}.parquet", row_group_size=60)
        (data / f"train-{part}.parquet").write_bytes((folder / f"p{part}.parquet").read_bytes())
        lines = "".join(json.dumps(row) + "\n" for row in some).encode()
        (folder / f"j{part}.jsonl").write_bytes(lines)
        (folder / f"g{part}.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "long.txt").write_text("\n\n".join(texts))
    for number, text in enumerate(texts[:30]):
        (folder / f"code/p{number % 4}").mkdir(parents=True, exist_ok=True)
        (folder / f"code/p{number % 4}/{number}.py").write_text(text)
    return folder


def read(spec, cursor=None, most=None, **settings):
    cfg = SimpleNamespace(**CFG | settings)
    return list(itertools.islice(shards.open_source(str(spec), cfg).documents(cursor), most))


def reader(server, *given, most=None, stop=0):
    env = dict(os.environ, HF_ENDPOINT=server.url, HF_HOME=str(server.folder / "hub"))
    command = [sys.executable, "-c", READER, json.dumps([given, most, stop])]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, **how)


def lines(process):
    out, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in out.splitlines()], errors


@pytest.mark.parametrize("kind", ["j*.jsonl", "g*.jsonl.gz", "p*.parquet", "long.txt", "**/*.py"])
def test_all_documents_come_in_another_order_each_epoch_and_any_cursor_goes_on(folder, texts, kind):
    found = read(folder / kind, epochs=2)
    half = len(found) // 2
    orders = [[d.text for d, _ in part] for part in (found[:half], found[half:])]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1] != sorted(orders[0])
    if kind == "long.txt":
        assert sum(map(len, orders[0])) == len((folder / kind).read_text()) and half > 20
        assert {d.group for d, _ in found} == {""}  # or all would be in the val split's group
    elif kind == "**/*.py":
        assert sorted(path.read_text() for path in orders[0]) == sorted(texts[:30])
    else:
        assert sorted(orders[0]) == sorted(texts)
        assert all(texts[int(d.name.removeprefix("page "))] == d.text for d, _ in found)
        places = [int(d.name.removeprefix("page ")) for d, _ in found[:40]]
        assert places != sorted(places) and max(places) - min(places) == 39  # a window of a shard
    for number in range(0, len(found), 10):
        cursor = json.loads(json.dumps(found[number][1]))
        rest = read(folder / kind, cursor, 60, epochs=2)
        assert rest == found[number + 1 : number + 61]


def test_a_hub_that_drops_connections_and_restarts_gives_what_a_quiet_one_gives(folder):
    spec, newer = "hub:owner/name?name=small", folder / "owner/name@2"
    with Server(folder) as quiet, Server(folder, drop=10) as rough:
        whole, _ = lines(reader(quiet, (spec, None)))
        assert len(whole) == 400

        shutil.copytree(folder / "owner/name", newer)  # a commit that the stream does not follow
        (newer / "data/train-1.parquet").unlink()
        places = (0, 39, 149, 333)  # 39 and 149 end a block, 149 a shard too
        given = [(spec, whole[place][1]) for place in places]
        parts, _ = lines(reader(quiet, *given, (spec, None), most=30))
        assert parts[:120] == [line for place in places for line in whole[place + 1 : place + 31]]
        assert {cursor["commit"] for _, cursor in parts[120:]} == {"2" * 40}
        shutil.rmtree(newer)

        process = reader(rough, (spec, None), stop=200)
        seen = [json.loads(process.stdout.readline()) for _ in range(200)]
        rough.stop()
        threading.Timer(3, rough.start).start()
        rest, errors = lines(process)
        assert seen + rest == whole
        assert [" gives no answer" in line for line in errors.splitlines()] == [True, False]


def test_a_url_that_drops_connections_gives_what_the_file_gives(folder, monkeypatch):
    monkeypatch.setattr(shards, "RANGE", 2**16)
    waits = []
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    with Server(folder, drop=4) as server:
        for name in ("j1.jsonl", "g1.jsonl.gz", "p1.parquet", "long.txt"):
            there, here = read(f"{server.url}/files/{name}"), read(folder / name)
            assert [d for d, _ in there] == [d for d, _ in here]
            cursor = there[130][1]
            assert read(f"{server.url}/files/{name}", cursor) == there[131:]
        assert len(waits) > 5 and max(waits) == 1

        # Of parquet, what lies before a cursor is not fetched again, but for the first range.
        monkeypatch.setattr(shards, "RANGE", 2**12)
        fetched, fetch = [], shards.Web.fetch

        def counted(web, url, headers, start, end):
            fetched.append(start)
            return fetch(web, url, headers, start, end)

        monkeypatch.setattr(shards.Web, "fetch", counted)
        url = f"{server.url}/files/p1.parquet"
        there = read(url)
        whole = len(fetched)
        read(url, there[130][1])
        assert len(fetched) - whole < whole / 2


def test_what_cannot_be_read_is_one_line(folder, tmp_path, monkeypatch, capsys):
    def says(spec, words, cursor=None, **settings):
        with pytest.raises((ValueError, SystemExit)) as error:
            read(spec, cursor, **settings)
        told = capsys.readouterr().err or f"{error.value}\n"
        assert words in told and told.count("\n") == 1, told

    says(tmp_path / "none.jsonl", "no file")
    says("hub:a/b/c", "hub:OWNER/NAME")
    says("hub:a/b?spilt=train", "spilt is none of name, split")
    says(folder / "j0.jsonl", "no column body, only text, url, score", column="body")
    (tmp_path / "a.parquet").write_text("not parquet")
    says(tmp_path / "a.parquet", "a.parquet cannot be read")

    log = tmp_path / "log.jsonl"
    log.write_bytes((folder / "j0.jsonl").read_bytes())
    cursor = read(log)[20][1]
    (tmp_path / "more.jsonl").write_bytes(log.read_bytes())
    says(tmp_path / "*.jsonl", "names other files", cursor)
    with open(log, "a") as file:
        file.write('{"text": "one more"}\n')
    says(log, "log.jsonl has changed since the stream began", cursor)

    monkeypatch.setattr(shards, "RANGE", 2**12)
    monkeypatch.setattr(shards, "FIRST_PATIENCE", 0.1)

    class Handler(http.server.SimpleHTTPRequestHandler):
        """It knows no ranges, and drops every other connection."""

        numbers = itertools.count()

        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def copyfile(self, source, target):
            data = source.read()
            target.write(data[: len(data) // (1 + next(self.numbers) % 2)])

        def log_message(self, *_):
            pass

    class Plain(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # a reader that leaves amid the answer
            pass

    with Plain(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for name in ("j0.jsonl", "p0.parquet"):
            assert [d for d, _ in read(f"{url}/{name}")] == [d for d, _ in read(folder / name)]
        says(f"{url}/none.jsonl", "404 File not found")
        says(f"{url}/code", "ends in none of .parquet")
        server.shutdown()
    says(f"{url}/j0.jsonl", "is this machine online?")


def test_the_hubs_mistakes_are_one_line_at_once(folder):
    cases = {
        "hub:owner/none": "RepositoryNotFoundError",
        "hub:owner/name?name=large": "Available: ['small']",
        "hub:owner/name?split=test": "no split test, only train",
    }
    with Server(folder) as server:
        _, errors = lines(reader(server, *((spec, None) for spec in cases)))
    nobody = SimpleNamespace(url="http://127.0.0.1:9", folder=folder)
    _, offline = lines(reader(nobody, ("hub:owner/name", None)))
    told = (errors + offline).splitlines()
    assert len(told) == 4, told
    for line, words in zip(told, [*cases.values(), "ConnectionError"]):
        assert line.startswith("error: ") and words in line

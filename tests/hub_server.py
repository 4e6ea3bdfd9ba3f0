"""A server for tests: files at plain URLs, and data sets as the Hugging Face hub serves them.

    python tests/hub_server.py FOLDER --port=8123 --drop=10

serves FOLDER/some/file.jsonl as http://127.0.0.1:8123/files/some/file.jsonl and, for programs with
HF_ENDPOINT=http://127.0.0.1:8123, each FOLDER/OWNER/NAME as a data set, whose next commit is
FOLDER/OWNER/NAME@2 if that is there. --drop=10 closes every tenth connection, amid the answer if it
has a body. The server may be killed and started again on the same port.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMITS = {"1" * 40: "", "2" * 40: "@2"}  # and what stands behind the folder's name


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder, drop, numbers = Path(), 0, count(1)

    def do_GET(self):
        self.drops = self.drop and next(self.numbers) % self.drop == 0
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/files/(.+)", path):
            return self.send_file(self.folder / found[1])
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit, root = self.commit(found[1], found[2])
            return self.send_file(root / found[3], commit)
        found = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)(/(revision|tree|paths-info)/(.+))?", path
        )
        if not found or not (self.folder / found[1]).is_dir():
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        revision, _, below = (found[4] or "main").partition("/")
        commit, root = self.commit(found[1], revision)
        if not commit:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if found[3] == "tree":
            return self.send_json(listed(root, below))
        if found[3] == "paths-info":
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            names = json.loads(asked)["paths"]
            return self.send_json([about(root, root / name) for name in names])
        names = [{"rfilename": entry["path"]} for entry in listed(root, "", True)]
        self.send_json({"id": found[1], "sha": commit, "siblings": names, "private": False})

    def commit(self, name: str, revision: str) -> tuple[str, Path]:
        """The commit that a revision means, and its folder; an empty one if there is none."""
        there = {commit: Path(f"{self.folder / name}{end}") for commit, end in COMMITS.items()}
        there = {commit: root for commit, root in there.items() if root.is_dir()}
        commit = list(there)[-1] if revision == "main" and there else revision
        return (commit, there[commit]) if commit in there else ("", self.folder / "none")

    do_HEAD = do_POST = do_GET

    def send_file(self, path: Path, commit: str = ""):
        if not path.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        start, end, whole = 0, path.stat().st_size, path.stat().st_size
        code, headers = 200, {"X-Repo-Commit": commit} if commit else {}
        headers["ETag"] = f'"{whole}-{path.stat().st_mtime_ns}"'
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2]) + 1, whole)
            code = 206 if start < whole else 416
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{whole}"
            if code == 416:
                headers["Content-Range"], end = f"bytes */{whole}", start
        with open(path, "rb") as file:
            file.seek(start)
            self.send(code, file.read(end - start), headers)

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, code: int, data: bytes, headers: dict):
        self.send_response(code)
        for name, value in (headers | {"Content-Length": len(data)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.drops:
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def listed(root: Path, below: str, deep: bool = False) -> list[dict]:
    paths = sorted((root / below).rglob("*") if deep else (root / below).glob("*"))
    return [about(root, path) for path in paths if not deep or path.is_file()]


def about(root: Path, path: Path) -> dict:
    """An entry of the hub's listings."""
    kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
    name = path.relative_to(root).as_posix()
    return {
        "type": kind,
        "oid": hashlib.sha1(name.encode()).hexdigest(),
        "size": size,
        "path": name,
    }


class Server:
    """The server in a process of its own. Start it again on the same port after `stop`."""

    def __init__(self, folder: Path, drop: int = 0):
        self.folder, self.drop, self.port = folder, drop, 0
        self.start()

    def start(self):
        command = [sys.executable, __file__, self.folder, f"--port={self.port}"]
        command = [*map(str, command), f"--drop={self.drop}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--drop", type=int, default=0)
    given = parser.parse_args()
    Handler.folder, Handler.drop = given.folder, given.drop
    server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()

"""serve.py under load: 200 clients at once send 2,000 requests, of which a tenth are malformed, and
a tenth leave before their answer. Prints the times of the others."""

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
from test_serve import BODIES, GOOD, Served

CLIENTS, REQUESTS = 200, 2000


def test_load(trained):
    server = Served(f"--ckpt={trained}", "--queue=100")
    process = psutil.Process(server.process.pid)
    try:
        load(server, 400)  # warm
        before, statuses, seconds = process.memory_info().rss, {}, []
        began = time.perf_counter()
        for _ in range(2):
            for kind, status, took in load(server, REQUESTS // 2):
                statuses[kind, status] = statuses.get((kind, status), 0) + 1
                seconds += [took] * (kind == "good" and status == 200)
        took, after = time.perf_counter() - began, process.memory_info().rss
        p50, p99 = np.percentile(seconds, [50, 99])
        print(f"\n{statuses}; {took:.1f} s, p50 {p50:.2f} s, p99 {p99:.2f} s")
        print(f"resident memory {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
        assert sum(statuses.values()) == REQUESTS
        assert set(statuses) <= {
            *(("good", status) for status in (200, 429, 503)),
            ("malformed", 400),
            ("leaves", 0),
        }
        assert statuses["good", 200] > REQUESTS / 4
        assert abs(after / before - 1) < 0.05
        deadline = time.monotonic() + 20
        while server.metric("running") + server.metric("queue") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.metric("running") + server.metric("queue") == 0
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    finally:
        assert server.stop() == 130
    assert "Traceback" not in "".join(server.lines)


def load(server, count: int) -> list[tuple[str, int, float]]:
    """What kind each request was, its answer's status, and the seconds that it took."""

    def ask(number: int):
        chance, began = random.Random(number), time.perf_counter()
        kind = chance.choices(["good", "malformed", "leaves"], [8, 1, 1])[0]
        body = GOOD | {"max_tokens": chance.randrange(4, 40), "seed": number}
        body["prompt"] = "def f(x):\n    " * chance.randrange(1, 40)
        body["stream"] = chance.random() < 0.5
        if kind == "leaves":
            leave(server, body, chance.random() * 0.3)
            return kind, 0, time.perf_counter() - began
        data = json.dumps(body) if kind == "good" else chance.choice(BODIES)
        data = data if isinstance(data, (str, bytes)) else json.dumps(data)
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/v1/completions"
        answer = client.post(url, content=data, headers=headers)
        if answer.status_code == 200:
            whole = answer.text.endswith("[DONE]\n\n") if body["stream"] else answer.json()
            assert whole
        return kind, answer.status_code, time.perf_counter() - began

    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=120, limits=limits) as client, ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, range(count)))


def leave(server, body: dict, after: float):
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        time.sleep(after)

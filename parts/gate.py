"""Around the routes of serve.py and prepare/teacher.py: who may ask, how long a client may take,
what is logged and counted, and how the server starts and ends."""

import asyncio
import hmac
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from urllib.parse import urlsplit

import h11
import prometheus_client as prometheus
import uvicorn
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from parts import configurator

MOST_HEADERS = 2**15  # bytes of a request's headers


class Refused(Exception):
    """An answer with an error's status, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kinds |= {429: "rate_limit_error"}
        kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_local(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def name_in(host: str) -> str:
    """The name or address in a Host header, without its port; "" if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Metrics:
    """What /metrics tells."""

    def __init__(self, engine):
        """engine: an `Engine` of parts/engine.py."""
        self.engine = engine
        self.registry = prometheus.CollectorRegistry()
        make = dict(registry=self.registry)
        self.requests = prometheus.Counter(
            "nanoneox_requests", "Answers, by path and status", ["path", "status"], **make
        )
        self.seconds = prometheus.Histogram(
            "nanoneox_request_seconds", "From a request's first byte to its last", ["path"], **make
        )
        self.first = prometheus.Histogram(
            "nanoneox_first_token_seconds",
            "From the request to its first new token",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            **make,
        )
        self.registry.register(self)

    def collect(self):
        """The engine's counts, for /metrics."""
        tokens = CounterMetricFamily(
            "nanoneox_tokens", "Tokens, by what was done with them", labels=["kind"]
        )
        for kind in ("read", "reused", "written", "guessed", "right"):
            tokens.add_metric([kind], self.engine.counts[kind])
        yield tokens
        yield CounterMetricFamily("nanoneox_steps", "Steps", self.engine.counts["steps"])
        waiting, running = len(self.engine.waiting), len(self.engine.rows)
        yield GaugeMetricFamily("nanoneox_queue", "Completions that wait", waiting)
        yield GaugeMetricFamily("nanoneox_running", "Completions that are written", running)


class Log:
    """Around everything: one line for each request, and the counts of /metrics. Without metrics
    only the requests that went wrong have a line."""

    def __init__(self, app, metrics: Metrics | None, paths: set[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope, receive, send):
        began, status = time.monotonic(), 0

        async def note(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, note)
        except asyncio.CancelledError:  # the server does not wait any longer
            scope.setdefault("state", {})["reason"] = "the server ended"
            if not status:
                refused = Refused(503, "the server ends")
                await JSONResponse(refused.body, refused.status)(scope, receive, note)
            else:
                await send({"type": "http.response.body", "body": b""})
        finally:
            seconds = time.monotonic() - began
            path = scope["path"] if scope["path"] in self.paths else "other"
            if self.metrics:
                self.metrics.requests.labels(path, status).inc()
                self.metrics.seconds.labels(path).observe(seconds)
            shown = scope["raw_path"].decode("ascii", "backslashreplace")[:100]
            reason = scope.get("state", {}).get("reason", "")
            if self.metrics or status != 200:
                say(f"{scope['method'][:10]} {shown} {status} {1000 * seconds:.0f} ms {reason}")


class Gate:
    """Who may ask."""

    def __init__(self, app, cfg, refuse):
        self.app, self.cfg, self.refuse = app, cfg, refuse

    async def __call__(self, scope, receive, send):
        answer = self.app
        try:
            self.check(Request(scope))
        except Refused as refused:
            answer = self.refuse(Request(scope), refused)
        await answer(scope, receive, send)

    def check(self, request: Request):
        """Refused where a request may not be answered."""
        if sum(len(name) + len(value) for name, value in request.scope["headers"]) > MOST_HEADERS:
            raise Refused(431, f"the headers may have {MOST_HEADERS} bytes at most")
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if is_local(self.cfg.host) and not is_local(name_in(host)):
            # Otherwise any web page could ask, by a name of its own that leads here.
            raise Refused(403, f"this server is not {host[:100]!r}")
        own = origin in (f"http://{host}", f"https://{host}")
        if origin and not own and origin not in self.cfg.allow_origin:
            raise Refused(403, f"pages of {origin[:100]!r} need --allow_origin")
        if self.cfg.api_key and request.url.path not in ("/", "/health"):
            kind, _, given = (
                dict(request.scope["headers"]).get(b"authorization", b"").partition(b" ")
            )
            same = hmac.compare_digest(given.strip(), self.cfg.api_key.encode())
            if kind.lower() != b"bearer" or not same:
                raise Refused(401, "send the api_key as a bearer token", code="invalid_api_key")


def refuse(request: Request, refused: Refused) -> Response:
    request.state.reason = str(refused)
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
    return JSONResponse(refused.body, refused.status, headers.get(refused.status))


def unknown(request: Request, error: HTTPException) -> Response:  # 404 and 405
    status, path = error.status_code, request.scope["raw_path"].decode("latin-1")[:100]
    return refuse(request, Refused(status, f"{request.method} {path}: {error.detail}"))


def leave(request: Request, error: ClientDisconnect) -> Response:
    request.state.reason = "the client went away"
    return Response(status_code=499)  # nobody reads it


def failed(request: Request, error: Exception) -> Response:  # a bug; uvicorn logs it
    return JSONResponse(Refused(500, "the server failed; its log says why").body, 500)


def guarded(routes: list[Route], cfg) -> Starlette:
    """An app of these routes, with answers to what goes wrong, behind the Gate."""
    handlers = {Refused: refuse, HTTPException: unknown, ClientDisconnect: leave}
    app = Starlette(routes=routes, exception_handlers=handlers | {Exception: failed})
    app.add_middleware(Gate, cfg=cfg, refuse=refuse)
    return app


def say(line: str):
    line = "".join(c if c.isprintable() else "?" for c in line)
    print(f"{time.strftime('%H:%M:%S')} {line}".rstrip(), file=sys.stderr, flush=True)


class Patient(H11Protocol):
    """uvicorn's HTTP/1.1, with an end to its patience: a client that does not send the head of its
    request within some seconds is told 408, and one that does not end its body is left."""

    seconds = 10.0
    timer, awaited = None, None

    def connection_made(self, transport):
        super().connection_made(transport)
        self.set_timer()

    def data_received(self, data):
        super().data_received(data)
        self.set_timer()

    def connection_lost(self, error):
        super().connection_lost(error)
        if self.timer:
            self.timer.cancel()

    def set_timer(self):
        """Running while a head or a body is awaited; each has its own time."""
        if self.awaited is self.conn.their_state:
            return
        if self.timer:
            self.timer.cancel()
        self.timer, self.awaited = None, self.conn.their_state
        if self.awaited in (h11.IDLE, h11.SEND_BODY):
            # A route that reads the body has told 408 by then.
            seconds = self.seconds + (self.awaited is h11.SEND_BODY)
            self.timer = self.loop.call_later(seconds, self.give_up)

    def give_up(self):
        if not self.transport.is_closing():
            if self.awaited is h11.IDLE:
                say("- - 408 no whole request came")
                end = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"
                self.transport.write(end)
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn, which ends when what it is writing has ended."""

    def handle_exit(self, number, frame):
        if not self.should_exit:
            say("ending when nothing is being written any more; Ctrl-C once more ends at once")
        super().handle_exit(number, frame)


def check_address(cfg):
    """Take the api_key from the environment where none is given. Ends the script at a port that is
    none, and where other machines could ask without a key."""
    cfg.api_key = cfg.api_key or os.environ.get("NANONEOX_API_KEY", "")
    if not 0 <= cfg.port < 2**16:
        configurator.die(f"port must be from 0 to 65535, not {cfg.port}")
    if not is_local(cfg.host) and not cfg.api_key:
        configurator.die(
            f"--host={cfg.host} lets other machines ask; give an --api_key that they must send"
        )


def listen(cfg) -> tuple[socket.socket, str]:
    """A socket at the address that is set, and its URL. Ends the script where there is none."""
    bare = cfg.host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in cfg.host else socket.AF_INET
        listener = socket.create_server((bare, cfg.port), family=family)
    except OSError as error:
        configurator.die(f"{cfg.host}:{cfg.port}: {error.strerror or error}; try another --port")
    except (TypeError, ValueError):
        configurator.die(f"--host={cfg.host} is no address")
    host = f"[{bare}]" if ":" in bare else bare
    return listener, f"http://{host}:{listener.getsockname()[1]}"


def make_server(app, arrival_seconds: float, drain_seconds: float) -> Server:
    """arrival_seconds: in which the head of a request must have come. drain_seconds: after Ctrl-C,
    for what is being answered."""
    logging.basicConfig(level="WARNING", format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    Patient.seconds = arrival_seconds
    server = Server(
        uvicorn.Config(
            app,
            http=Patient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=1000,
            backlog=1024,
            timeout_keep_alive=20,  # clients give up an idle connection sooner: after 5 s, mostly
            timeout_graceful_shutdown=drain_seconds,
        )
    )
    if hangup := getattr(signal, "SIGHUP", None):
        signal.signal(hangup, lambda *_: server.handle_exit(signal.SIGTERM, None))
    return server

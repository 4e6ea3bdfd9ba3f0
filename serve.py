"""Completions over HTTP, for a page in the browser, for editors, and for clients of OpenAI's API.

    python serve.py                                     # the newest run, at http://127.0.0.1:8000
    python serve.py --ckpt=out/python_cpu --port=8080
    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
        -d '{"prompt": "def fibonacci(n):", "max_tokens": 40}'

/                       a page to try the model
/v1/completions         as OpenAI's, also with a suffix; /v1/chat/completions, /v1/models
/infill, /completion    as llama.cpp's server, which editors ask; docs/EDITORS.md
/health, /metrics       for whoever looks after it (Prometheus)

Nothing that a client sends is executed or written to disk. Requests that come together are decoded
together (parts/engine.py); their forms are in parts/dialects.py.
"""

from parts.start import run_script

import asyncio
import json
import time
from collections.abc import AsyncIterator

from prometheus_client import generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from parts import configurator, memory, runs
from parts import device as devices
from parts.dialects import (
    Answer,
    ChatCompletions,
    Completions,
    Infill,
    LlamaCpp,
    llama_answer,
    llama_fields,
    parse,
    split_marks,
)
from parts.engine import Ask, Engine, Full, Part
from parts.gate import Log, Metrics, Refused, check_address, guarded, listen, make_server
from parts.generate import read_prompt
from parts.infill import knows_fim, meeting, read_gap
from parts.talk import recent

MB = 2**20
PAGE = configurator.ROOT / "parts" / "page.html"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Settings:
    ckpt = ""  # a run's folder, a checkpoint, a Hugging Face folder or hub name; empty: newest run
    host = "127.0.0.1"  # the address to listen at; others than this machine's need an api_key
    port = 8000  # 0: any free one
    api_key = ""  # what clients must send as a bearer token; also the variable NANONEOX_API_KEY
    allow_origin = ()  # a web page's origin that may ask, such as https://my.site; several times
    rows = 8  # completions that are decoded together
    queue = 64  # completions that may wait; more are told 429
    max_tokens = 1024  # new tokens of one completion, at most
    max_mb = 2.0  # size of a request
    max_seconds = 120.0  # for one request
    arrival_seconds = 10.0  # in which the head of a request must have come, and then its body
    drain_seconds = 30.0  # after Ctrl-C, for what is being written
    threads = 0  # of the CPU, among which the rows of a step are divided; 0: one for each core
    device = "auto"  # auto, cpu, cuda, mps


def read_settings():
    cfg = configurator.load(Settings)
    positive = ("rows", "max_tokens", "max_mb", "max_seconds", "arrival_seconds")
    configurator.require(cfg, positive, {}, device=devices.DEVICES)
    check_address(cfg)
    return cfg


class Service:
    """What the routes have in common: the engine, the limits, the counts."""

    def __init__(self, cfg):
        with configurator.mistakes():
            device = devices.pick(cfg.device)
        model, self.tokenizer, folder = runs.load(cfg.ckpt, device)
        model.to(devices.generation_dtype(device, 1))
        self.cfg, self.model, self.name = cfg, model, folder.name
        self.block_size = model.config.block_size
        with configurator.mistakes():
            memory.check_generation(model, cfg.rows, self.block_size, cfg.max_tokens)
        self.engine = Engine(model, self.tokenizer, cfg.rows, cfg.queue, cfg.threads)
        self.fim = knows_fim(self.tokenizer)
        self.created = int(time.time())
        self.counts = Metrics(self.engine)

    # --- routes -----------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    async def health(self, request: Request) -> Response:
        alive = self.engine.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "error"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(generate_latest(self.counts.registry))

    async def models(self, request: Request) -> Response:
        c = self.model.config
        meta = {"n_vocab": c.vocab_size, "n_ctx_train": c.block_size, "n_embd": c.n_embd}
        meta |= {"n_params": self.model.num_params(), "fim": self.fim}
        entry = {"id": self.name, "object": "model", "created": self.created}
        entry |= {"owned_by": "nanoneox", "meta": meta}
        asked = request.path_params.get("model")
        if asked not in (None, self.name):
            raise Refused(404, f"there is no model {asked[:100]!r}", code="model_not_found")
        return JSONResponse(entry if asked else {"object": "list", "data": [entry]})

    async def completions(self, request: Request) -> Response:
        body = parse(Completions, await self.body(request))
        n, prompts = body.n or 1, body.prompts()
        each = max(n, body.best_of or n)
        if each > n and body.stream:
            raise Refused(400, "best_of: cannot be streamed, as the best are known last", "best_of")
        most, scored = self.most(body.max_tokens, 16, "max_tokens"), body.logprobs is not None
        told = 0 if each > n and not scored else body.logprobs
        literal = bool(body.echo) and scored
        if literal and body.suffix:
            raise Refused(400, "suffix: not with echo and logprobs", "suffix")
        asks, tokens, shown = [], 0, {}
        for prompt in prompts:
            read = await self.read(prompt, body.suffix or None, most, literal)
            tokens += len(read["ids"])
            for choice in range(each):
                if body.echo:
                    text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
                    shown[len(asks)] = text
                asks.append(self.ask(body, read, choice, logprobs=told))
        usage = {"prompt_tokens": tokens}
        answer = Answer(body, self.tokenizer, self.name, usage)
        if body.stream:
            return await self.stream(request, answer, asks, shown)
        parts = await self.collect(request, asks, usage)
        if each > n:
            groups = [parts[i : i + each] for i in range(0, len(parts), each)]
            parts = [part for group in groups for part in sorted(group, key=unlikely)[:n]]
        parts = [
            part._replace(row=row, text=shown.get(part.row, "") + part.text)
            for row, part in enumerate(parts)
        ]
        return JSONResponse(answer.whole(parts))

    async def chat_completions(self, request: Request) -> Response:
        body = parse(ChatCompletions, await self.body(request))
        asked = body.max_completion_tokens or body.max_tokens
        most = self.most(asked, min(self.block_size // 2, self.cfg.max_tokens), "max_tokens")
        room = max(self.block_size - most, self.block_size // 2)
        try:
            messages = [said.message() for said in body.messages]
            if messages[-1].role == "assistant":
                raise ValueError("the last message must not be the assistant's")
            _, ids = await asyncio.to_thread(recent, self.tokenizer, messages, room)
        except ValueError as error:
            raise Refused(400, f"messages: {error}", "messages") from None
        read = {"ids": ids, "max_new_tokens": most}
        told = (body.top_logprobs or 0) if body.logprobs else None
        asks = [self.ask(body, read, row, logprobs=told) for row in range(body.n or 1)]
        usage = {"prompt_tokens": len(ids)}
        answer = Answer(body, self.tokenizer, self.name, usage)
        if body.stream:
            return await self.stream(request, answer, asks, {})
        return JSONResponse(answer.whole(await self.collect(request, asks, usage)))

    async def completion(self, request: Request) -> Response:
        body = parse(LlamaCpp, await self.body(request))
        return await self.llama(request, body, body.prompt, None)

    async def infill(self, request: Request) -> Response:
        body = parse(Infill, await self.body(request))
        return await self.llama(request, body, body.input_prefix + body.prompt, body.input_suffix)

    async def llama(self, request: Request, body: LlamaCpp, prompt, suffix: str | None) -> Response:
        """What llama.cpp's server answers."""
        asked = None if body.n_predict in (None, -1) else body.n_predict
        most = self.most(asked, min(128, self.cfg.max_tokens), "n_predict")
        read = await self.read(prompt, suffix, most)
        how = dict(temperature=0.8, top_k=40, top_p=0.95)
        if body.repeat_penalty:
            how["repetition_penalty"] = body.repeat_penalty
        seconds, told = (body.t_max_predict_ms or 0) / 1000, body.n_probs or None
        limits = dict(logprobs=told, indent=body.n_indent or 0, seconds=seconds)
        ask = self.ask(body, read, 0, how, **limits)
        if not body.stream:
            usage = {"prompt_tokens": len(ask.ids)}
            [part] = await self.collect(request, [ask], usage)
            answer = self.llama_answer(request, ask, part, usage)
            return JSONResponse(llama_fields(answer, body.response_fields))

        async def events():
            usage = {"prompt_tokens": len(ask.ids)}
            async for part in self.parts(request, [ask], usage, stream=True):
                if part.finish:
                    answer = self.llama_answer(request, ask, part, usage)
                    yield event(llama_fields(answer, body.response_fields))
                else:
                    yield event({"index": 0, "content": part.text, "stop": False})

        return await sse(events())

    def llama_answer(self, request: Request, ask: Ask, part: Part, usage: dict) -> dict:
        job, new = request.state.job, usage["completion_tokens"]
        return llama_answer(ask, part, job, new, self.tokenizer, self.name, self.block_size)

    # --- from a request to asks -------------------------------------------------------------------

    async def body(self, request: Request) -> bytes:
        """The body of a request, within the limits of size and time."""
        kind = request.headers.get("content-type", "application/json").split(";")[0].strip()
        if kind.lower() != "application/json" or "content-encoding" in request.headers:
            raise Refused(415, "send JSON, not compressed, as Content-Type: application/json")
        most, data = int(self.cfg.max_mb * MB), b""
        too_much = Refused(413, f"a request may have {self.cfg.max_mb:g} MB at most")
        if request.headers.get("content-length", "0").strip().isdigit():
            if int(request.headers.get("content-length", "0")) > most:
                raise too_much

        async def read():
            nonlocal data
            async for piece in request.stream():
                data += piece
                if len(data) > most:
                    raise too_much

        try:
            await asyncio.wait_for(read(), self.cfg.arrival_seconds)
        except asyncio.TimeoutError:
            seconds = self.cfg.arrival_seconds
            raise Refused(408, f"the body took more than {seconds:g} s") from None
        return data

    def most(self, asked: int | None, default: int, name: str) -> int:
        """How many new tokens."""
        most = default if asked is None else asked
        if most > self.cfg.max_tokens:
            raise Refused(400, f"{name}: {most} is more than {self.cfg.max_tokens}", name)
        return most

    async def read(self, prompt: str | list[int], suffix: str | None, most: int, literal=False):
        """What the model reads of a prompt, and what it stops at: fields of an Ask. literal: the
        very tokens of a text, which is not healed. An empty suffix is one where it is not None."""
        return await asyncio.to_thread(self.read_now, prompt, suffix, most, literal)

    def read_now(self, prompt, suffix, most: int, literal: bool) -> dict:
        if isinstance(prompt, list):
            if suffix:
                raise Refused(400, "suffix: needs a prompt that is text", "suffix")
            if max(prompt) >= self.tokenizer.vocab_size:
                last = self.tokenizer.vocab_size - 1
                raise Refused(400, f"prompt: token ids are from 0 to {last}", "prompt")
            read = {"ids": prompt, "max_new_tokens": most} | ({"echo": 0} if literal else {})
        else:
            if not suffix and not literal and (gap := split_marks(prompt)):
                prompt, suffix = gap
            try:
                if suffix or suffix is not None and self.fim:
                    gap = read_gap(self.tokenizer, prompt, suffix, self.block_size, most)
                    room = self.block_size - len(gap.ids)
                    read = {"ids": gap.ids, "first_ids": gap.first_ids, "healed": gap.healed}
                    read |= {"max_new_tokens": min(most, room), "suffix": suffix}
                elif literal:
                    ids = self.tokenizer.encode(prompt, special=True)
                    start = [] if self.tokenizer.eot is None else [self.tokenizer.eot]
                    ids = start + ids or self.tokenizer.encode("\n")
                    read = {"ids": ids, "max_new_tokens": most, "echo": len(start)}
                else:
                    found = read_prompt(self.tokenizer, prompt)
                    read = {"ids": found.ids, "first_ids": found.first_ids}
                    read |= {"healed": found.healed, "max_new_tokens": most}
            except ValueError as error:
                raise Refused(400, f"prompt: {error}", "prompt") from None
        if literal and len(read["ids"]) + most > self.block_size:
            raise Refused(
                400,
                f"prompt: with echo and logprobs, prompt and new tokens must fit in the context of "
                f"{self.block_size}, and have {len(read['ids']) + most}",
                "prompt",
                "context_length_exceeded",
            )
        return read

    def ask(self, body, read: dict, number: int, defaults: dict | None = None, **more) -> Ask:
        """An Ask for a prompt's choice `number`, each of which has a seed of its own."""
        how = body.sampling(**(defaults or {}))
        if how.get("seed") is not None:
            how["seed"] += number
        how["stop"] += meeting(read["suffix"]) if "suffix" in read else ()
        return Ask(**read, **how, **more)

    # --- from asks to an answer -------------------------------------------------------------------

    async def parts(
        self, request: Request, asks: list[Ask], usage: dict, stream: bool
    ) -> AsyncIterator[Part]:
        """What the engine delivers, until all are done. Refused where that fails; a client that
        goes away ends it, and frees its rows."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

        def deliver(parts):
            loop.call_soon_threadsafe(arrived.put_nowait, parts)

        if len(asks) > (most := self.cfg.queue + self.cfg.rows):
            raise Refused(400, f"{len(asks)} completions are more than the {most} of --queue")
        try:
            job = self.engine.submit(asks, deliver, stream, self.cfg.max_seconds)
        except Full as error:
            raise Refused(429, f"{error}; try again later") from None
        request.state.job, left = job, len(asks)
        gone = asyncio.ensure_future(disconnected(request))
        try:
            while left:
                getting = asyncio.ensure_future(arrived.get())
                await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    raise ClientDisconnect
                for part in getting.result():
                    if part.finish == "late":
                        status = 504 if job.first else 503
                        raise Refused(status, f"not done within {self.cfg.max_seconds:g} s")
                    if part.finish == "error":
                        raise Refused(500, "the model failed; the server's log says why")
                    usage["completion_tokens"] = job.written
                    left -= bool(part.finish)
                    if not left:
                        self.counts.first.observe((job.first or job.ended) - job.came)
                    yield part
            new = usage["completion_tokens"]
            usage["total_tokens"] = usage["prompt_tokens"] + new
            usage["prompt_tokens_details"] = {"cached_tokens": job.reused}
        finally:
            if left:
                job.cancel()
            gone.cancel()

    async def collect(self, request: Request, asks: list[Ask], usage: dict) -> list[Part]:
        """Whole completions, in the order of the asks."""
        parts = [part async for part in self.parts(request, asks, usage, stream=False)]
        return sorted(parts, key=lambda part: part.row)

    async def stream(
        self, request: Request, answer: Answer, asks: list[Ask], shown: dict
    ) -> Response:
        async def events():
            usage = answer.usage
            async for part in self.parts(request, asks, usage, stream=True):
                yield event(answer.chunk(part._replace(text=shown.pop(part.row, "") + part.text)))
            if answer.body.stream_options and answer.body.stream_options.include_usage:
                yield event(answer.envelope([], usage=usage))
            yield "data: [DONE]\n\n"

        return await sse(events())


def unlikely(part: Part) -> float:
    """Minus the mean logarithm of the probability of a completion's tokens: best first."""
    logprobs = [token.logprob for token in part.tokens]
    return -sum(logprobs) / max(len(logprobs), 1)


async def disconnected(request: Request):
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(value: dict) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def sse(events: AsyncIterator[str]) -> Response:
    """A stream of server-sent events. What fails before the first one has its own status; what
    fails later is an event."""
    first = await anext(events)

    async def all_events():
        yield first
        try:
            async for text in events:
                yield text
        except Refused as refused:
            yield event(refused.body)

    return StreamingResponse(all_events(), media_type="text/event-stream")


def app(service: Service) -> Log:
    routes = [
        Route("/", service.page),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        Route("/v1/models", service.models),
        Route("/v1/models/{model}", service.models),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat_completions, methods=["POST"]),
        Route("/completion", service.completion, methods=["POST"]),
        Route("/infill", service.infill, methods=["POST"]),
    ]
    inner = guarded(routes, service.cfg)
    if origins := service.cfg.allow_origin:
        how = dict(allow_methods=["GET", "POST"], allow_headers=["*"])
        inner.add_middleware(CORSMiddleware, allow_origins=origins, **how)
    return Log(inner, service.counts, {route.path for route in routes})


def main():
    cfg = read_settings()
    service = Service(cfg)
    listener, url = listen(cfg)
    service.engine.start()
    server = make_server(app(service), cfg.arrival_seconds, cfg.drain_seconds)
    c = service.model.config
    print(
        f"serving {service.name} ({service.model.num_params() / 1e6:.2f}M parameters, context "
        f"{c.block_size}{', fills gaps' if service.fim else ''}) on {url}",
        flush=True,
    )
    try:
        server.run(sockets=[listener])
    finally:
        service.engine.close(now=True)


if __name__ == "__main__":
    run_script(main)

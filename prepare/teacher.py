"""A feed of texts over HTTP, for students to learn from: written by a model as fast as they are
read, taken at random from files, or both.

    python prepare/teacher.py --ckpt=out/python_cpu           # at http://127.0.0.1:8001/generate
    python prepare/teacher.py --ckpt=microsoft/phi-2 --prompts=prompts.txt --temperature=0.8
    python prepare/teacher.py --file="clean/*.jsonl"          # clean texts, and no model
    python prepare/teacher.py --ckpt=out/python_cpu --file=clean.jsonl --clean=0.3
    python prepare/stream.py --source=http://127.0.0.1:8001/generate --tokenizer=out/python_cpu

/generate?n=16   a JSON array of 1 to 16 texts, each of which only one client gets. It waits for the
                 first one, half a minute at most; then there is 503. Who adds &id=... gets the same
                 answer again if it was lost on the way: the last 64 answers are kept
/health          texts and tokens a second in the last ten, how many texts are ready, ...

A model's text begins with a random token, after the end-of-text token that begins every document,
or with a prompt. Text number k depends on the seed and k alone (and on rounding: for the same texts
with other --rows also give --dtype=float32), and the texts go out in this order. Without a --seed
a server that is started again writes others.

The texts are decoded together by the engine of serve.py. On two cores the quickstart's model
writes 16 together several times as fast as one after the other: python tools/teacher_speed.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import asyncio
import os
import random
import shlex
import threading
import time
from collections import deque
from collections.abc import Iterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from parts import configurator
from parts.gate import Log, Refused, check_address, guarded, listen, make_server, say
from parts.tokenizer import UNKNOWN
from prepare import sources

MOST = 256  # texts in an answer
MOST_BYTES = 2**24  # of an answer, unless its first text is longer
KEPT = 64, 2**26  # answers that can be asked for again, and bytes of them
PATIENCE = 30.0  # seconds that a client waits for a first text
WINDOW = 1000, 2**26  # clean texts, and characters of them, among which the next one is drawn
TOLD = 10  # seconds between two lines, and over which rates are measured


class Settings:
    ckpt = ""  # who writes: a run's folder, a checkpoint, a Hugging Face folder or hub name
    file = ""  # clean texts: *.jsonl, *.jsonl.gz, *.parquet, *.txt (one text each); commas, globs
    column = ""  # the column of --file that holds the text; empty: the usual ones
    clean = 0.5  # share of clean texts, where there is a --ckpt too
    prompts = ""  # texts to begin with: lines of *.txt, rows of *.jsonl or *.parquet; empty: tokens
    max_tokens = 0  # new tokens of a text, at most; 0: to the end of the model's context
    min_chars = 1  # shorter texts are left out
    temperature = 0.8  # 0: always the likeliest token; 1: as the model learnt; above: wilder
    top_k = 50  # draw from this many likeliest tokens; 0: from all, which takes longer
    top_p = 0.95  # draw from the likeliest tokens that together have this probability; 1: all
    seed = 0  # of all texts; 0: another one at each start
    rows = 16  # texts that are written together
    queue = 64  # texts that are kept ready; then the model rests
    host = "127.0.0.1"  # the address to listen at; others than this machine's need an api_key
    port = 8001  # 0: any free one
    api_key = ""  # what clients must send as a bearer token; also the variable NANONEOX_API_KEY
    threads = 0  # of the CPU; 0: one for each core
    device = "auto"  # auto, cpu, cuda, mps
    dtype = "auto"  # auto (the fastest), float32, bfloat16, float16


def read_settings():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("rows", "queue", "top_p"), {"top_p": 1, "clean": 1, "rows": 4096})
    check_address(cfg)
    if not cfg.ckpt and not cfg.file:
        configurator.die("give a --ckpt that writes texts, or a --file of clean ones, or both")
    if cfg.prompts and not cfg.ckpt:
        configurator.die("--prompts are for a model; give its --ckpt")
    cfg.clean = 0.0 if not cfg.file else cfg.clean if cfg.ckpt else 1.0
    cfg.seed = cfg.seed or random.SystemRandom().randrange(1, 2**32)
    cfg.allow_origin = ()  # no web page asks
    return cfg


# --- where texts come from ------------------------------------------------------------------------


def read_texts(setting: str, patterns: str, column: str = "") -> Iterator[str]:
    """The texts of files; of a *.txt all of it. Ends the script where one cannot be read."""
    with configurator.mistakes():
        paths = sources.named_files(setting, patterns, (*sources.DOCUMENTS, ".txt"))
    for path in paths:
        if path.endswith(".txt"):
            with configurator.mistakes():
                yield Path(path).read_text(encoding="utf-8", errors="replace")
        else:
            documents = sources.file_documents(path.replace("[", "[[]"), column)
            yield from (d.text for d in documents if d.text)


def clean_texts(cfg) -> Iterator[str]:
    """The texts of --file over and over, in a random order: each is drawn from a window of those
    that were read, so that no more than that is in memory."""
    rng, window, characters = random.Random(cfg.seed), [], 0

    def drawn() -> str:
        place = rng.randrange(len(window))
        window[place], window[-1] = window[-1], window[place]
        return window.pop()

    while True:
        found = False
        for text in read_texts("file", cfg.file, cfg.column):
            if len(text) < cfg.min_chars or not text.strip():
                continue
            found = True
            window.append(text)
            characters += len(text)
            while len(window) > WINDOW[0] or characters > WINDOW[1]:
                text = drawn()
                characters -= len(text)
                yield text
        if not found:
            configurator.die(f"--file={cfg.file} holds no text of {cfg.min_chars} characters")
        while window:
            yield drawn()
        characters = 0


def read_prompts(cfg) -> list[str]:
    if not cfg.prompts:
        return []
    is_text = cfg.prompts.endswith(".txt")
    texts = read_texts("prompts", cfg.prompts)
    prompts = [line for text in texts for line in (text.splitlines() if is_text else [text])]
    if not (prompts := [prompt for prompt in prompts if prompt.strip()]):
        configurator.die(f"--prompts={cfg.prompts} holds no prompt")
    return prompts


class Author:
    """A model that writes texts. What needs torch is imported here, and only then."""

    def __init__(self, cfg):
        import torch

        from parts import device as devices
        from parts import memory, runs
        from parts.engine import Ask, Engine
        from parts.generate import completion, read_prompt

        self.cfg, self.Ask, self.read_prompt, self.completion = cfg, Ask, read_prompt, completion
        configurator.require(cfg, device=devices.DEVICES, dtype=devices.DTYPES)
        with configurator.mistakes():
            device = devices.pick(cfg.device)
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        model, self.tokenizer, folder = runs.load(cfg.ckpt, device)
        auto = devices.generation_dtype(device, cfg.rows)
        model.to(auto if cfg.dtype == "auto" else getattr(torch, cfg.dtype))
        self.block_size, self.name = model.config.block_size, folder.name
        with configurator.mistakes():
            most = cfg.max_tokens or self.block_size
            memory.check_generation(model, cfg.rows, self.block_size, most)
        self.prompts = read_prompts(cfg)
        special = set(self.tokenizer.special.values())
        self.lexicon = [i for i in range(self.tokenizer.vocab_size) if i not in special]
        self.engine = Engine(model, self.tokenizer, cfg.rows, 2 * cfg.rows, cfg.threads)

    def begin(self, number: int, done):
        """Have text number `number` written: done(text, tokens) in the engine's thread, or
        done(None, 0) if that failed."""
        cfg, tok = self.cfg, self.tokenizer
        ids, prompt, read = [] if tok.eot is None else [tok.eot], "", {}
        chosen = sources.seeded(cfg.seed, f"beginning {number}")
        if self.prompts:
            prompt = self.prompts[chosen % len(self.prompts)]
            found = self.read_prompt(tok, prompt, special=False)
            ids, read = found.ids, {"first_ids": found.first_ids, "healed": found.healed}
        else:
            ids = [*ids, self.lexicon[chosen % len(self.lexicon)]]
        room = max(self.block_size - len(ids), self.block_size // 2, 1)

        def deliver(parts):
            [part] = parts
            if part.finish not in ("stop", "length"):
                return done(None, 0)
            new = [token.id for token in part.tokens]
            if self.prompts:
                text = prompt + part.text
            else:  # the first token and the next ones may share a character
                text = self.completion(tok, ids[-1:] + new)
            # Half characters at both ends.
            done(text.strip(UNKNOWN), len(new))

        how = dict(temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p)
        seed = sources.seeded(cfg.seed, f"text {number}") % 2**63
        ask = self.Ask(ids, cfg.max_tokens or room, seed=seed, **read, **how)
        self.engine.submit([ask], deliver, seconds=1e9)


class Feed:
    """The texts, in order, as many as are kept ready. A thread begins them; the engine's thread
    ends those that are written."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.author = Author(cfg) if cfg.clean < 1 else None
        self.clean = clean_texts(cfg) if cfg.clean else None
        if self.clean:  # what is wrong with the files is told before anything is served
            first = next(self.clean)
            self.clean = (text for part in ([first], self.clean) for text in part)
        self.condition, self.closing, self.failed = threading.Condition(), False, False
        self.ready: deque[str] = deque()
        self.done: dict[int, str] = {}  # texts that are whole, while those before them are not
        self.first = self.number = 0  # of the texts: the next one to be ready, and to be begun
        self.tokens = self.written = self.read = self.served = self.errors = 0
        self.history = deque([(time.monotonic(), 0, 0)], maxlen=TOLD + 1)
        self.thread = threading.Thread(target=self.run, name="feed", daemon=True)

    def start(self):
        if self.author:
            self.author.engine.start()
        self.thread.start()

    def close(self):
        with self.condition:
            self.closing = True
            self.condition.notify_all()
        if self.author:
            self.author.engine.close(now=True)
        self.thread.join(5)

    def wanted(self) -> bool:
        """Whether to begin another text."""
        begun = self.number - self.first - len(self.done)  # and not whole yet
        room = self.cfg.queue - len(self.ready) - (self.number - self.first)
        return room > 0 and begun < 2 * self.cfg.rows

    def run(self):
        try:
            while True:
                with self.condition:
                    self.condition.wait_for(lambda: self.closing or self.wanted())
                    if self.closing:
                        return
                    number, self.number = self.number, self.number + 1
                origin = sources.seeded(self.cfg.seed, f"origin {number}") / 2**64
                if origin < self.cfg.clean:
                    self.end(number, next(self.clean))
                else:
                    self.author.begin(
                        number, lambda *found, number=number: self.end(number, *found)
                    )
        except BaseException as error:
            self.failed = True  # a file that became damaged has had its line
            if not isinstance(error, SystemExit):
                raise

    def end(self, number: int, text: str | None, tokens: int | None = None):
        """A text is whole. tokens: how many were written for it, None for a clean one."""
        with self.condition:
            self.errors = self.errors + 1 if text is None else 0
            if self.errors == 2 * self.cfg.rows:
                self.failed = True  # the engine has said why
            if tokens is None:
                self.read += 1
            elif text is not None:
                self.written, self.tokens = self.written + 1, self.tokens + tokens
            self.done[number] = text or ""
            while self.first in self.done:
                text = self.done.pop(self.first)
                self.first += 1
                text = text.encode("utf-8", "replace").decode()  # JSON may hold half characters
                if text.strip() and len(text) >= self.cfg.min_chars:
                    self.ready.append(text)
            self.condition.notify_all()

    def take(self, most: int) -> list[str]:
        """Up to so many texts, those that are ready."""
        texts, size = [], 0
        with self.condition:
            while self.ready and len(texts) < most:
                size += len(self.ready[0].encode())
                if texts and size > MOST_BYTES:
                    break
                texts.append(self.ready.popleft())
            self.served += len(texts)
            self.condition.notify_all()
        return texts

    def rates(self) -> tuple[float, float]:
        """Texts and tokens a second, since the oldest `tick` that is kept."""
        now, (then, texts, tokens) = time.monotonic(), self.history[0]
        seconds = max(now - then, 1e-3)
        return (self.written + self.read - texts) / seconds, (self.tokens - tokens) / seconds

    def tick(self):
        """Once a second: keep the counts, of which rates are made."""
        self.history.append((time.monotonic(), self.written + self.read, self.tokens))


def hints(cfg, url: str) -> str:
    """Two commands: one to see texts, one to read them as a data set."""
    key = ' -H "Authorization: Bearer $NANONEOX_API_KEY"' if cfg.api_key else ""
    tokenizer = f" --tokenizer={shlex.quote(cfg.ckpt)}" if cfg.ckpt else ""
    return (
        f'see some:       curl{key} "{url}/generate?n=2"\n'
        f"learn from it:  python prepare/stream.py --source={url}/generate{tokenizer} --val_mb=0.1"
        " --segment_tokens=65536 --fim_rate=0 --out=taught"
    )


# --- over HTTP ------------------------------------------------------------------------------------


class Service:
    def __init__(self, cfg, feed: Feed):
        self.cfg, self.feed, self.server = cfg, feed, None
        self.answers: dict[str, JSONResponse] = {}  # by the id that a client has given

    async def generate(self, request: Request) -> Response:
        if request.method == "HEAD":  # nobody would get the texts
            return Response()
        asked = request.query_params.get("n", "16")
        n = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0
        if not 1 <= n <= MOST:
            raise Refused(400, f"n: a number from 1 to {MOST}, not {asked[:100]!r}", "n")
        id, until = request.query_params.get("id", "")[:200], time.monotonic() + PATIENCE
        while id not in self.answers and not (texts := self.feed.take(n)):
            if self.feed.failed or self.server.should_exit or time.monotonic() > until:
                problem = Refused(503, "no text came; ask again later")
                request.state.reason = str(problem)
                return JSONResponse(problem.body, 503, {"Retry-After": "1"})
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                raise ClientDisconnect  # and no text is lost
        if not id:
            return JSONResponse(texts)
        if id not in self.answers:
            self.answers[id] = JSONResponse(texts)
            while len(self.answers) > KEPT[0] or self.kept() > KEPT[1] and len(self.answers) > 1:
                del self.answers[next(iter(self.answers))]
        return self.answers[id]

    def kept(self) -> int:
        return sum(len(answer.body) for answer in self.answers.values())

    async def root(self, request: Request) -> Response:
        return PlainTextResponse(hints(self.cfg, str(request.base_url).rstrip("/")) + "\n")

    async def health(self, request: Request) -> Response:
        feed = self.feed
        texts, tokens = feed.rates()
        answer = {"status": "error" if feed.failed else "ok", "queue": len(feed.ready)}
        answer |= {"texts_per_s": round(texts, 2), "tokens_per_s": round(tokens, 1)}
        answer |= {"written": feed.written, "tokens": feed.tokens, "clean": feed.read}
        answer |= {"served": feed.served, "seed": self.cfg.seed}
        return JSONResponse(answer, 503 if feed.failed else 200)

    async def follow(self):
        """Keep count, tell how it goes, and end the server when there will be no more texts."""
        told, last = 0, None
        while not self.server.should_exit:
            await asyncio.sleep(1)
            self.feed.tick()
            if self.feed.failed:
                self.server.should_exit = True
            told += 1
            texts, tokens = self.feed.rates()
            state = self.feed.written + self.feed.read, self.feed.served
            if told % TOLD == 0 and state != last:
                last = state
                say(
                    f"{state[0]:,} texts ({self.feed.read:,} clean), {texts:.1f} texts/s, "
                    f"{tokens:,.0f} tokens/s, {len(self.feed.ready)} ready, {state[1]:,} served"
                )

    def run(self, listener):
        routes = [Route("/generate", self.generate), Route("/health", self.health)]
        routes.append(Route("/", self.root))
        app = Log(guarded(routes, self.cfg), None, {route.path for route in routes})
        self.server = make_server(app, arrival_seconds=10.0, drain_seconds=5.0)

        async def serve():
            following = asyncio.ensure_future(self.follow())
            try:
                await self.server.serve(sockets=[listener])
            finally:
                following.cancel()

        asyncio.run(serve())


def main():
    cfg = read_settings()
    feed = Feed(cfg)
    listener, url = listen(cfg)
    feed.start()
    parts = [f"texts of {feed.author.name}"] if feed.author else []
    parts += [f"{cfg.clean:.0%} clean texts of {os.path.basename(cfg.file)}"] if cfg.clean else []
    print(f"serving {' and '.join(parts)}, seed {cfg.seed}, on {url}/generate", flush=True)
    print(hints(cfg, url), flush=True)
    try:
        Service(cfg, feed).run(listener)
    finally:
        feed.close()
    if feed.failed:
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)

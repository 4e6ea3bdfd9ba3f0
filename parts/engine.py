"""Continuous batching: completions of many callers are decoded together. One joins when it comes
and leaves when it ends; each has a row of the key/value cache of its own.

    engine = Engine(model, tokenizer, rows=8)
    engine.start()
    job = engine.submit([Ask([0, 5, 7], max_new_tokens=20)], deliver)
    job.cancel()  # frees its rows

Each row sees the very tokens that `stream` in parts/generate.py would show the model, so that its
text is the same, whatever is decoded beside it (but for rounding, between two tokens almost equally
likely). Three things save time without changing it:

- rows are read together: the weights, which are most of what a step reads, are read once for all
- what a row of the cache holds of an earlier prompt is not read again
- a `Lookup` guesses the next tokens, and the network checks all of them at once
"""

import contextlib
import dataclasses
import math
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from itertools import accumulate, islice
from typing import NamedTuple

import torch

from model import NeoX
from parts import generate
from parts.configurator import say
from parts.generate import Decoder, Piece, Writing, choose, decoder_agrees
from parts.tokenizer import Tokenizer

CHUNK = 256  # tokens of a prompt that are read at a time, so that no row waits long for another
MOST_GUESSED = 16  # tokens of one row that are guessed and checked at a time
SHARED = 16  # tokens from which on it pays to copy them from another row's cache


@dataclasses.dataclass
class Ask:
    """A completion that is wanted. The names are those of `generate.stream` and of OpenAI's API."""

    ids: list[int]  # what the model reads
    max_new_tokens: int = 16
    first_ids: list[int] | None = None  # the tokens of which the first new one must be one
    healed: int = 0  # bytes of the prompt that this one repeats
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # taken off the logit of each new token that was written before
    frequency_penalty: float = 0.0  # the same, for each time that it was written
    stop: tuple[str, ...] = ()
    suffix: str = ""  # what the text will stand before
    indent: int = 0  # end before a line that is indented less
    seed: int | None = None
    logprobs: int | None = None  # how many of the likeliest tokens to tell with each; None: nothing
    echo: int | None = (
        None  # tell the prompt's tokens too, from this one on, and a last special one
    )
    seconds: float = 0.0  # end after that time, once a line is written; 0: no limit

    def sampling(self) -> dict:
        return dict(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


class Token(NamedTuple):
    """A token of a completion, with natural logarithms of probabilities."""

    id: int
    logprob: float | None  # None: it had nothing before it
    top: list[tuple[int, float]]  # the likeliest tokens
    skip: int  # bytes at its beginning that are not part of the text


class Part(NamedTuple):
    """Something new of a completion."""

    row: int  # which of those that were asked for
    text: str
    tokens: list[Token]
    finish: str  # "": it goes on; stop, length; else it failed: late, error, cancelled


class Row:
    """A completion on its way."""

    def __init__(self, ask: Ask, job: "Job", number: int, tokenizer: Tokenizer, device):
        self.ask, self.job, self.number = ask, job, number
        self.tokens = list(ask.ids)
        self.start, self.cached = 0, 0  # the window's first token, and how many of it were read
        self.slot: Slot | None = None
        self.writing = Writing(tokenizer, ask.healed, ask.stop, ask.suffix, ask.indent)
        self.text, self.ready = "", []  # certain, and not delivered yet: text and tokens
        self.new: list[Token] = []  # not certain yet, as a stop text may begin in them
        self.shown = self.told = 0  # bytes of all certain text, and of its tokens
        self.last_logits = None  # after the tokens of the prompt that were read
        self.generator = None
        if ask.temperature:
            self.generator = torch.Generator(device)
            self.generator.seed() if ask.seed is None else self.generator.manual_seed(ask.seed)
        penalties = ask.repetition_penalty != 1, ask.presence_penalty, ask.frequency_penalty
        self.penalties = any(penalties)
        self.drawn = ask.temperature >= 1e-5 or self.penalties  # not simply the likeliest token
        self.lookup = Lookup(self.tokens)
        self.guesses = 2  # how many tokens to guess; more after good ones
        self.began = 0.0

    @property
    def written(self) -> int:
        """How many tokens are new."""
        return len(self.tokens) - len(self.ask.ids)

    def unread(self, block_size: int) -> list[int]:
        """The tokens in sight, as `generate.Rows.window` has them, that were not read yet."""
        while len(self.tokens) - self.start > block_size:
            self.start, self.cached = self.start + max(block_size // 2, 1), 0
        return self.tokens[self.start + self.cached :]


class Feed(NamedTuple):
    """What a step reads in one row."""

    row: Row
    ids: list[int]  # tokens that are certain
    guess: list[int]  # and what may follow
    writes: bool  # whether a new token comes after them


class Slot:
    """A row of the cache."""

    def __init__(self, number: int):
        self.number, self.row, self.used = number, None, 0.0
        self.left: list[int] = []  # what it holds of a row that has left

    def holds(self) -> list[int]:
        row = self.row
        return row.tokens[row.start : row.start + row.cached] if row else self.left


class Lookup:
    """Guesses how a text goes on: as it did after the same three tokens before. (Prompt lookup
    decoding, Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding.)"""

    def __init__(self, tokens: list[int]):
        self.tokens, self.seen, self.end = tokens, {}, 0

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next."""
        if most <= 0:
            return []
        for end in range(max(self.end, 3), len(self.tokens)):
            self.seen[tuple(self.tokens[end - 3 : end])] = end
        self.end = max(len(self.tokens), self.end)
        place = self.seen.get(tuple(self.tokens[-3:]))
        return self.tokens[place : place + most] if place else []


class Job:
    """What one caller asked for."""

    def __init__(self, deliver: Callable[[list[Part]], None], stream: bool, seconds: float):
        self.deliver, self.stream = deliver, stream
        self.came, self.deadline = time.monotonic(), time.monotonic() + seconds
        self.first = self.ended = 0.0  # when its first token and its last came
        self.reused = self.written = 0  # tokens of prompts that were in the cache; and new ones
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class Full(Exception):
    """More is waiting than the queue holds."""


class Engine:
    """A thread that decodes what is submitted."""

    def __init__(
        self, model: NeoX, tokenizer: Tokenizer, rows: int, queue: int = 64, threads: int = 0
    ):
        """rows: completions that are decoded together. queue: how many more may wait. threads: of
        the CPU; 0: as many as torch uses."""
        self.model, self.tokenizer, self.queue = model, tokenizer, queue
        threads = threads or min(torch.get_num_threads(), rows)
        self.block_size = model.config.block_size
        self.device = next(model.parameters()).device
        with torch.no_grad():
            self.decoder = Decoder(model, rows, threads) if decoder_agrees(model) else None
        self.slots = [Slot(number) for number in range(rows)]
        self.waiting: deque[Row] = deque()
        self.stop_ids = set(tokenizer.special.values())
        self.counts = Counter()  # tokens read, reused, written, guessed, guessed right; and steps
        self.parts: dict[Job, list[Part]] = {}
        self.condition, self.closing = threading.Condition(), False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    def start(self):
        self.thread.start()

    def close(self, now: bool = False):
        """End the thread as soon as nothing is decoded any more; now: after this step, and return
        when it has ended."""
        with self.condition:
            self.closing = True
            for row in (*self.waiting, *self.rows) if now else ():
                row.job.cancel()
            self.condition.notify()
        if now:
            self.thread.join(5)

    def submit(
        self, asks: list[Ask], deliver: Callable[[list[Part]], None], stream=False, seconds=600.0
    ) -> Job:
        """Queue completions. deliver: called in the engine's thread with what is new, or unless
        `stream` once for each when it is done; the last part has `finish`. seconds: what takes
        longer fails. Raises Full."""
        job = Job(deliver, stream, seconds)
        rows = [Row(ask, job, n, self.tokenizer, self.device) for n, ask in enumerate(asks)]
        with self.condition:
            free = sum(slot.row is None for slot in self.slots)
            if len(self.waiting) + len(rows) > self.queue + free:
                raise Full(f"{len(self.waiting)} completions are waiting already")
            self.waiting.extend(rows)
            self.condition.notify()
        return job

    @property
    def rows(self) -> list[Row]:
        return [slot.row for slot in self.slots if slot.row]

    # --- the engine's thread ----------------------------------------------------------------------

    def run(self):
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self.waiting or self.rows or self.closing)
                if self.closing and not self.waiting and not self.rows:
                    return
            try:
                with torch.inference_mode():
                    self.weed()
                    self.admit()
                    if self.rows:
                        self.step()
            except Exception:  # one bad step must not end the service
                say(f"{traceback.format_exc()}the completions of this step are given up")
                for row in self.rows:
                    row.cached = 0  # nobody knows what its place in the cache holds now
                    self.leave(row, "error")
            delivered, self.parts = self.parts, {}
            for job, parts in delivered.items():
                with contextlib.suppress(RuntimeError):  # the caller's event loop has ended
                    job.deliver(parts)

    def weed(self):
        """Drop what nobody waits for any more, or has waited for too long."""
        now = time.monotonic()
        with self.condition:
            waiting = list(self.waiting)
            gone = [row for row in waiting if row.job.cancelled or now > row.job.deadline]
            self.waiting = deque(row for row in waiting if row not in gone)
        for row in gone + self.rows:
            if row.job.cancelled or now > row.job.deadline:
                self.leave(row, "cancelled" if row.job.cancelled else "late")

    def admit(self):
        """Give one waiting row a free slot: the one that holds most of its prompt, or the one whose
        last use is longest ago. One row a step, so that the next ones can share its prompt."""
        free = [slot for slot in self.slots if not slot.row]
        with self.condition:
            row = self.waiting.popleft() if free and self.waiting else None
        if not row:
            return
        row.began, ids = time.monotonic(), row.unread(self.block_size)[:-1]
        known = (
            {}
            if row.ask.echo is not None
            else {slot: common(slot.holds(), ids) for slot in self.slots}
        )
        slot = max(free, key=lambda slot: (known.get(slot, 0), -slot.used))
        row.cached = known.get(slot, 0)
        best = max(known, key=known.get, default=slot)
        if self.decoder and known.get(best, 0) >= row.cached + SHARED:
            row.cached = known[best]
            self.decoder.copy(best.number, slot.number, row.cached)
        row.slot, slot.row = slot, row
        row.job.reused += row.cached
        self.counts["reused"] += row.cached

    def step(self):
        """Read what is new in each row, with a guess at what comes next, and write what follows."""
        feeds, rows = [], self.rows
        # While reading the weights takes most of a step's time, a guess costs a sixth of a token;
        # beside many rows it costs a half, and gains nothing.
        most = MOST_GUESSED // len(rows) ** 2
        for row in rows:
            unread = row.unread(self.block_size)
            room = self.block_size - row.cached - len(unread)
            left = row.ask.max_new_tokens - row.written - 1
            whole = len(unread) <= CHUNK
            guess = row.lookup.guess(min(row.guesses, most, room, left)) if whole else []
            feeds.append(Feed(row, unread[:CHUNK], guess, whole and row.ask.max_new_tokens > 0))
        hidden, ends = self.read(feeds), list(accumulate(len(f.ids) + len(f.guess) for f in feeds))
        wanted = [  # the hidden states from which tokens are chosen
            place
            for feed, end in zip(feeds, ends)
            for place in range(end - len(feed.guess) - 1, end)
            if feed.writes
        ]
        logits = self.logits(hidden[wanted])
        scored = zip(self.prepare(feeds, logits), logits)
        for feed, end in zip(feeds, ends):
            row, count = feed.row, len(feed.ids) + len(feed.guess)
            row.cached += len(feed.ids)
            if row.ask.echo is not None and not row.written:
                begin = end - count
                self.tell_prompt(row, feed.ids, self.logits(hidden[begin : begin + len(feed.ids)]))
            if feed.writes:
                self.write(row, list(islice(scored, len(feed.guess) + 1)), feed.guess)
            elif not row.ask.max_new_tokens and row.cached == len(row.tokens) - row.start:
                self.leave(row, "length")
            self.counts["read"] += count
        self.counts["steps"] += 1

    def prepare(self, feeds: list["Feed"], logits: torch.Tensor) -> list:
        """For each row of logits (N, V) the likeliest token or, where one is drawn, the weights and
        ids to draw from: for rows of the same settings together. None: that depends on the row."""
        found = logits.argmax(dim=-1).tolist()
        alike: dict[tuple, list[int]] = {}
        rows = [feed.row for feed in feeds if feed.writes for _ in range(len(feed.guess) + 1)]
        for place, row in enumerate(rows):
            if row.drawn:
                found[place] = None
                ask = row.ask
                # Else others may need more candidates, by which this row would draw differently.
                alone = 0 < ask.top_k <= 512 or not ask.top_k and ask.top_p == 1
                if alone and not row.penalties:
                    alike.setdefault(tuple(ask.sampling().items()), []).append(place)
        for settings, places in alike.items():
            weights, ids = generate.candidates(logits[places], **dict(settings))
            for number, place in enumerate(places):
                found[place] = weights[number], None if ids is None else ids[number]
        return found

    def read(self, feeds: list["Feed"]) -> torch.Tensor:
        """Hidden states (N, C) of all tokens in feeds, of which each row has its own."""
        if self.decoder:
            pieces = [Piece(f.row.slot.number, f.row.cached, f.ids + f.guess) for f in feeds]
            return self.decoder.read(pieces)
        found = []
        for row, ids, guess, _ in feeds:  # model.py was changed, and has no cache
            seen = row.tokens[row.start : row.start + row.cached] + ids + guess
            idx = torch.tensor([seen], device=self.device)
            found.append(self.model.hidden(idx)[0, row.cached :])
        return torch.cat(found)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) to logits (N, V) of the tokens that the tokenizer has, float32."""
        model = self.decoder or self.model
        return model.logits(hidden)[:, : self.tokenizer.vocab_size].float()

    def write(self, row: Row, scored: list[tuple], guess: list[int]):
        """Choose the next token, and as long as it is the one that was guessed, the one after it.
        scored: for each of them what `prepare` found, and the logits (V)."""
        right = 0
        for position, (found, logits) in enumerate(scored):
            token = self.pick(row, found, logits)
            row.tokens.append(token)
            finish = self.finish(row, token)
            if finish or position == len(guess) or token != guess[position]:
                break
            right += 1
        row.job.first = row.job.first or time.monotonic()
        row.cached += right
        row.guesses = min(2 * row.guesses, MOST_GUESSED) if right == len(guess) else right + 1
        self.counts["written"] += position + 1
        row.job.written += position + 1
        self.counts["guessed"] += len(guess)
        self.counts["right"] += right
        if finish:
            self.leave(row, finish)

    def pick(self, row: Row, found, logits: torch.Tensor) -> int:
        """The next token of a row, from logits (V) and what `prepare` found in them."""
        ask, first = row.ask, not row.written
        if found is None or first and ask.first_ids:
            logits = logits[None].clone()
            if first and ask.first_ids:
                generate.keep_only(logits, [ask.first_ids])
            token = int(choose(penalized(row, logits), row.generator, **ask.sampling()))
            logits = logits[0]
        elif row.drawn:
            weights, ids = found
            token = torch.multinomial(weights, 1, generator=row.generator)
            token = int(token if ids is None else ids[token])
        else:
            token = found
        row.new.append(self.tell(row, logits, token, ask.healed if first else 0))
        return token

    def tell(self, row: Row, logits: torch.Tensor | None, token: int, skip: int = 0) -> Token:
        """A token, with what the caller wants to know of it. logits (V): None for a first one."""
        if row.ask.logprobs is None or logits is None:
            return Token(token, None, [], skip)
        logprobs = logits.log_softmax(dim=-1)
        values, ids = logprobs.topk(min(row.ask.logprobs, len(logprobs)))
        top = [pair for pair in zip(ids.tolist(), values.tolist()) if pair[1] > -math.inf]
        return Token(token, float(logprobs[token]), top, skip)

    def tell_prompt(self, row: Row, ids: list[int], logits: torch.Tensor):
        """The tokens of a prompt that were just read, with logits (T, V)."""
        before = [row.last_logits, *logits[:-1]]
        told = [self.tell(row, scores, token) for token, scores in zip(ids, before)]
        row.ready += told[max(row.ask.echo - row.cached + len(ids), 0) :]
        row.last_logits = logits[-1]

    def finish(self, row: Row, token: int) -> str:
        """Whether a row has ended with its newest token: stop, length or ""."""
        ask, text = row.ask, row.writing.add(token)
        slow = ask.seconds and time.monotonic() - row.began > ask.seconds
        if token in self.stop_ids or row.writing.ended:
            finish = "stop"
        elif row.written == ask.max_new_tokens or slow and "\n" in row.writing.text():
            finish = "length"
        else:
            finish = ""
        self.emit(row, text, finish)
        return finish

    def leave(self, row: Row, finish: str):
        """Free a row's place, and deliver the rest of its text."""
        if finish in ("stop", "length"):
            self.emit(row, row.writing.close(), finish, last=True)
        else:
            self.parts.setdefault(row.job, []).append(Part(row.number, "", [], finish))
        row.job.ended = time.monotonic()
        if slot := row.slot:
            slot.left, slot.row, slot.used = slot.holds(), None, time.monotonic()

    def emit(self, row: Row, text: str, finish: str, last: bool = False):
        """Note the new text of a row, and the tokens of which no byte is held back any more."""
        row.text += text
        row.shown += len(text.encode())
        while row.new and (last or row.told + self.length(row.new[0]) <= row.shown):
            token = row.new.pop(0)
            if last and row.told >= row.shown:  # behind the end: of a stop text, or <|endoftext|>
                if row.ask.echo is not None and token.id in self.stop_ids:
                    row.ready.append(token)
                break
            row.told += self.length(token)
            if self.length(token) > 0:  # else the first one, which is but the prompt's end
                row.ready.append(token)
        if last or row.job.stream and row.text and not finish:
            part = Part(row.number, row.text, row.ready, finish if last else "")
            self.parts.setdefault(row.job, []).append(part)
            row.text, row.ready = "", []

    def length(self, token: Token) -> int:
        return len(self.tokenizer.token_bytes(token.id)) - token.skip


def penalized(row: Row, logits: torch.Tensor) -> torch.Tensor:
    """Logits (1, V) after a row's penalties: on what stands in prompt and output as in `stream`, on
    the output alone as in OpenAI's API."""
    ask, written = row.ask, row.tokens[len(row.ask.ids) :]
    if ask.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.tokens)), device=logits.device)
        part, logits = logits[0, seen], logits.clone()
        scaled = part / ask.repetition_penalty, part * ask.repetition_penalty
        logits[0, seen] = torch.where(part > 0, *scaled)
    if written and (ask.presence_penalty or ask.frequency_penalty):
        ids, times = torch.tensor(list(Counter(written).items()), device=logits.device).T
        logits = logits.clone()
        logits[0, ids] -= ask.presence_penalty + ask.frequency_penalty * times
    return logits


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

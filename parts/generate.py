"""Generation: a cached decoder, sampling, and healed prompts. Tokens are yielded as they are made.

    prompt = read_prompt(tokenizer, "def f(")
    for step in stream(model, [prompt.ids], 100, first_ids=[prompt.first_ids], seed=1):
        ...  # one new token id for each row, None for rows that have ended

Shapes as in model.py: B rows, T tokens, C = n_embd, H heads, D = C / H, V vocabulary.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import ACTIVATIONS, NeoX, gelu_fast, swiglu
from parts.configurator import say
from parts.fast import twin, untouched
from parts.infill import first_word
from parts.tokenizer import UNKNOWN, Tokenizer


class Prompt(NamedTuple):
    ids: list[int]  # what the model reads, the end-of-text token first
    first_ids: list[int] | None  # the tokens of which the first new one must be one; None: any
    healed: int  # bytes of the prompt that the first new token repeats


def read_prompt(tokenizer: Tokenizer, text: str, special: bool = True) -> Prompt:
    """A text as the model wants it: after the end-of-text token, as every document in training, and
    healed, so that it may end inside a word (`Tokenizer.heal`). special: "<|endoftext|>" and its
    like in the text become their ids. ValueError for a character that the tokenizer lacks."""
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    ids = start + tokenizer.encode(text, special)
    ids, last, first_ids = tokenizer.heal(ids or tokenizer.encode("\n"))
    return Prompt(ids, first_ids, len(last))


def completion(tokenizer: Tokenizer, ids: Iterable[int], healed: int = 0, stop=()) -> str:
    """The text of new token ids, less the `healed` bytes that repeat the prompt's end, up to the
    first of the stop texts."""
    special = set(tokenizer.special.values())
    data = b"".join(tokenizer.token_bytes(i) for i in ids if i not in special)[healed:]
    return until(data.decode(errors="replace"), stop)


class Writing:
    """The text of a completion while its tokens come: less the `healed` bytes that repeat the
    prompt's end, up to the first of the stop texts, and, before a suffix that begins inside a word,
    less that word's beginning (`joined` in parts/infill.py).

    What is not certain yet waits: half a character, what may be the beginning of a stop text, and
    what may be that word."""

    def __init__(self, tokenizer: Tokenizer, healed=0, stop=(), suffix="", indent=0):
        """indent: the text also ends before a line that is indented by less."""
        self.tokenizer, self.healed, self.stop = tokenizer, healed, stop
        self.indent = indent and re.compile(rf"\n[ \t]{{0,{indent - 1}}}[^\s]")
        self.word = first_word(suffix)
        self.held = max([len(self.word), *(len(text) - 1 for text in stop)])
        self.special = set(tokenizer.special.values())
        self.data, self.shown, self.ended = b"", 0, False  # ended: at a stop text

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self.data += b"" if token in self.special else self.tokenizer.token_bytes(token)
        text = self.text().rstrip(UNKNOWN)
        if self.indent and not self.ended:  # what begins a line, which may be indented too little
            text = re.sub(r"\n[ \t\n]*$", "", text)
        return self.show(text, self.held)

    def close(self) -> str:
        """The rest, when no more tokens come."""
        return self.show(self.text().removesuffix(self.word), 0)

    def text(self) -> str:
        written = self.data[self.healed :].decode(errors="replace")
        kept = until(written, self.stop)
        if self.indent and (found := self.indent.search(kept)):
            kept = kept[: found.start()]
        self.ended = len(kept) < len(written)
        return kept

    def show(self, text: str, held: int) -> str:
        begin, self.shown = self.shown, max(len(text) - held, self.shown)
        return text[begin : self.shown]


def text_pieces(
    tokenizer: Tokenizer, ids: Iterable[int], healed: int = 0, stop=(), suffix: str = ""
) -> Iterator[str]:
    """The text of a `Writing`, piece by piece as the ids come."""
    writing = Writing(tokenizer, healed, stop, suffix)
    for token in ids:
        yield writing.add(token)
    yield writing.close()


def until(text: str, stop: Iterable[str]) -> str:
    """The text up to the first of the stop texts."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def sampling(cfg) -> dict:
    """The settings of sample.py that say how `stream` draws tokens."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return {name: getattr(cfg, name) for name in names}


def generate(model: NeoX, prompts: list[list[int]], max_new_tokens: int, **how) -> list[list[int]]:
    """What `stream` yields, collected: the new token ids of each row."""
    outputs = [[] for _ in prompts]
    for step in stream(model, prompts, max_new_tokens, **how):
        for output, token in zip(outputs, step):
            if token is not None:
                output.append(token)
    return outputs


@torch.inference_mode()
def stream(
    model: NeoX,
    prompts: list[list[int]],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    stop_ids: Iterable[int] = (),
    stop: Callable[[list[int]], bool] | None = None,
    first_ids: list[list[int] | None] | None = None,
    seed: int | None = None,
    use_cache: bool = True,
    vocab_size: int | None = None,
    **sampling,
) -> Iterator[list[int | None]]:
    """Continue all prompts together. Yields one new token id for each row, None for rows that have
    ended, until all have.

    prompts: token id lists of any lengths from 1 (else ValueError). sampling: temperature, top_k
    and top_p, as `choose` has them. repetition_penalty: as in CTRL (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858, section 4.1), over prompt and output. stop_ids: a row ends
    with the first such token. stop: given a row's output so far, says whether the row has ended.
    first_ids: for each row, the tokens of which its first must be one. vocab_size: how many tokens
    the tokenizer has, where the model has more; those are never chosen.

    The context window: the model sees at most block_size tokens. When they are full, the oldest
    half is dropped and the rest read again from position 0, so that nearly every token costs one
    step, and at least half a window is in sight. A longer prompt loses its beginning in the same
    way. All rows of a batch share the window: short prompts are padded on the left, and attention
    ignores the padding. With and without the cache the model sees the same tokens at every step, so
    both give the same output, except for rounding when two tokens are almost equally likely.

    Everything runs in the dtype of the model's weights, except for choosing tokens, which is in
    float32, as is attention to the cache on a CPU."""
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    device = next(model.parameters()).device
    rows = Rows(prompts, max_new_tokens, model.config, device)
    decoder = Decoder(model, len(prompts)) if use_cache and decoder_agrees(model) else None
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def pick(logits, first):
        """The next token id of each row, from logits (B, V)."""
        logits = logits.float()
        if repetition_penalty != 1:
            scaled = logits / repetition_penalty, logits * repetition_penalty
            logits = torch.where(rows.seen, torch.where(logits > 0, *scaled), logits)
        if first and first_ids:
            keep_only(logits, first_ids)
        return choose(logits[:, :vocab_size], generator, **sampling)

    return steps(model, rows, decoder, pick, max_new_tokens, set(stop_ids), stop)


def steps(model, rows, decoder, pick, max_new_tokens, stop_ids, stop):
    """The steps that `stream` promises."""
    training = model.training
    model.eval()
    outputs = [[] for _ in rows.tokens]
    ended = [False] * len(outputs)
    try:
        for number in range(max_new_tokens):
            with torch.inference_mode():
                ids, start, mask = rows.window(cached=decoder is not None)
                if decoder:
                    logits = decoder(ids, start, mask)
                else:
                    how = {} if mask is None else {"mask": mask}
                    logits = model(ids, **how)[:, -1]
                step = rows.append(pick(logits, first=number == 0))
            for row, token in enumerate(step):
                if ended[row]:
                    step[row] = None
                    continue
                outputs[row].append(token)
                ended[row] = token in stop_ids or bool(stop and stop(outputs[row]))
            yield step
            if all(ended):
                break
    finally:
        model.train(training)


class Rows:
    """The tokens of a batch: prompts, padded on the left to one length, and what was generated."""

    def __init__(self, prompts, max_new_tokens, config, device):
        B, self.end = len(prompts), max(map(len, prompts))
        self.block_size = config.block_size
        self.tokens = torch.zeros(B, self.end + max_new_tokens, dtype=torch.long, device=device)
        self.real = torch.ones_like(self.tokens, dtype=torch.bool)  # False where a row is padded
        self.seen = torch.zeros(B, config.vocab_size, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            self.tokens[row, self.end - len(prompt) : self.end] = torch.tensor(prompt)
            self.real[row, : self.end - len(prompt)] = False
            self.seen[row, prompt] = True
        self.padded = not bool(self.real.all())
        self.start, self.cached = 0, 0  # the window's first column, and how many were read before

    def window(self, cached):
        """(ids, start, mask) for the next step: the tokens to read (B, T), their first position in
        the window, and the attention mask (B, 1, T, start + T), None if nothing is padded."""
        while self.end - self.start > self.block_size:
            self.start, self.cached = self.start + max(self.block_size // 2, 1), 0
        first = self.cached if cached else 0
        T = self.end - self.start - first
        self.cached = self.end - self.start
        mask = None
        if self.padded:
            mask = self.real[:, None, None, self.start : self.end]
            if T > 1:  # padding sees itself: a softmax over nothing is NaN
                square = torch.ones(T, T, dtype=torch.bool, device=mask.device)
                mask = mask & square.tril() | torch.eye(T, dtype=torch.bool, device=mask.device)
        return self.tokens[:, self.end - T : self.end], first, mask

    def append(self, ids):
        """Add a column of new token ids (B), and return it as a list."""
        self.tokens[:, self.end] = ids
        self.seen.scatter_(1, ids[:, None], True)
        self.end += 1
        return ids.tolist()


def keep_only(logits, allowed):
    """Set the logits (B, V) of all tokens but each row's allowed ones to -inf, in place."""
    for row, ids in enumerate(allowed):
        if ids is not None:
            kept = logits[row, ids]
            logits[row] = -math.inf
            logits[row, ids] = kept


def choose(logits, generator, temperature=1.0, top_k=0, top_p=1.0):
    """One token id for each row of logits (B, V), float32: top-k first (0: all), then top-p (1:
    all; nucleus sampling, Holtzman et al. 2019, https://arxiv.org/abs/1904.09751). temperature 0,
    and any below 1e-5, by which logits cannot be divided in float32, takes the likeliest."""
    if temperature < 1e-5:
        return logits.argmax(dim=-1)
    weights, ids = candidates(logits, temperature, top_k, top_p)
    drawn = torch.multinomial(weights, 1, generator=generator)
    return (drawn if ids is None else ids.gather(1, drawn))[:, 0]


def candidates(logits, temperature, top_k, top_p):
    """Which tokens `choose` draws from, for each row of logits (B, V): their weights (B, k), and
    their ids (B, k), None if k is V and they are in order."""
    V = logits.size(-1)
    # Weights that a training ruined give NaN; then any token is as good as another.
    probabilities = (logits / temperature).softmax(dim=-1).nan_to_num_(1 / V)
    k = top_k if 0 < top_k < V else V
    if k == V and top_p == 1:
        return probabilities, None
    # Sorting the whole vocabulary takes as long as the network, so 512 first.
    likeliest, ids = probabilities.topk(min(k, 512))
    if k > 512 and (k < V or (likeliest.sum(dim=-1) < top_p).any()):
        likeliest, ids = probabilities.topk(k)
    if k < V:
        likeliest = likeliest / likeliest.sum(dim=-1, keepdim=True)
    surplus = likeliest.cumsum(dim=-1) - likeliest >= top_p
    surplus[:, 0] = False  # the likeliest token always stays
    return likeliest.masked_fill(surplus, 0), ids


# --- the fast form of the network for one new token at a time -------------------------------------


class Stage(NamedTuple):
    """One LayerNorm, one product in and one product out: a parallel block, or half of another."""

    attention: bool  # what it holds
    mlp: bool
    mix: tuple | None  # the LayerNorm's scale and shift, and the weight of its `Mix`, if it has one
    weight_in: torch.Tensor  # (3 C and n_read, C), the LayerNorm's scale multiplied in
    bias_in: torch.Tensor
    weight_out: torch.Tensor  # (C, C and n_inner)
    bias_out: torch.Tensor


SHORT = 16  # tokens of a piece up to which it is read together with others


class Piece(NamedTuple):
    """Tokens to read into a row of the cache."""

    row: int
    start: int  # the position of the first; what stands before is in the cache
    ids: list[int]


class Decoder:
    """A NeoX with a key/value cache, computed in fewer and larger steps: for one token at a time
    each call of an operator costs as much as its arithmetic. It copies the blocks' weights, so
    later changes to them have no effect.

    The scale and shift of a LayerNorm are folded into the projection that reads it. The two
    LayerNorms of a parallel block then give the same tensor, so that its two projections in become
    one, and its two projections out as well: one stage. Other blocks are two stages. Where what a
    LayerNorm gives is mixed, it is not folded."""

    def __init__(self, model: NeoX, B: int, threads: int = 0):
        """B: rows of the cache. threads: above 0, `read` may use parts/kernel.py with so many."""
        self.model, c = model, model.config
        table = model.gpt_neox.embed_in.weight
        # MKL multiplies a row by a wide matrix 1.2 times as fast when it lies column by column.
        self.by_input = B == 1 and table.device.type == "cpu" and not threads
        self.stages = [stage for layer in model.gpt_neox.layers for stage in self.fold(layer)]
        self.head = self.relaid(model.embed_out.weight)
        half = c.rotary_dim // 2  # sin with the signs that `rotate` gives the halves
        self.sin = torch.cat((-model.sin[:, :half], model.sin[:, half:]), dim=1)
        # On a CPU attention to one token takes a fifth to a quarter of the time in float32.
        wide = torch.float32 if table.device.type == "cpu" else table.dtype
        shape = (c.n_layer, 2, B, c.n_head, c.block_size, c.head_dim)
        self.cache = table.new_zeros(shape, dtype=torch.promote_types(wide, table.dtype))
        # What was mixed at each place, (B, S, C): embeddings, then the LayerNorms' output.
        mixes = 1 + c.n_layer if c.n_mix else 0
        self.mixed = table.new_zeros(mixes, B, c.block_size, c.n_embd)
        self.few = self.heads = None
        if threads and table.device.type == "cpu":
            self.few, self.heads = self.kernels(threads)

    @torch.no_grad()
    def kernels(self, threads: int):
        """The forms of parts/kernel.py for a few tokens: `Few`, or of weights that are not float32,
        for which torch's products are as fast, `Heads`. None where there is none, or where it does
        not find what torch's operators find."""
        try:
            from parts import kernel
        except (ImportError, OSError, RuntimeError):  # no numba, or no folder for what it compiles
            return None, None
        if self.cache.dtype != torch.float32:
            return None, None
        wide = self.head.dtype == torch.float32
        needed = f"__pycache__/kernel.{'stage' if wide else 'attend'}*"
        if not list(Path(kernel.__file__).parent.glob(needed)):
            say("compiling parts/kernel.py for this CPU, once; it takes 10 to 30 s")
        T = min(self.cache.size(4), 6)
        pieces = [Piece(row, 0, list(range(row, T))) for row in range(min(self.cache.size(2), 3))]
        expected = self.read_many(pieces)
        if wide:
            return self.checked(kernel, threads, pieces, expected), None
        self.heads = kernel.Heads(self)
        found = self.read_many(pieces)
        if (expected - found).norm() <= 1e-2 * expected.norm():
            return None, self.heads
        say("parts/kernel.py differs from torch's operators here: it is off, decoding is slower")
        return None, None

    def checked(self, kernel, threads: int, pieces: list["Piece"], expected):
        """parts/kernel.py's `Few`; None where it finds other than what is expected of pieces."""
        kinds = {F.gelu: kernel.GELU, gelu_fast: kernel.GELU_TANH, swiglu: kernel.SWIGLU}
        kind = kinds.get(ACTIVATIONS[self.model.config.activation])
        if kind is None:
            return None
        few = kernel.Few(self, kind, threads)
        found = few.read(pieces)
        pairs = (expected, found), (self.logits(expected), few.logits(found))
        same = all((a - b).norm() <= 1e-4 * a.norm() for a, b in pairs)
        # Few tokens reach few of an activation's arguments.
        x = torch.linspace(-40, 40, 16_001)
        x = torch.cat([x, x.roll(5000)])[None] if kind == kernel.SWIGLU else x[None]
        activated = ACTIVATIONS[self.model.config.activation](x)
        if same and torch.allclose(few.activated(x, activated.size(1)), activated, atol=1e-5):
            return few
        say("parts/kernel.py differs from torch's operators here: it is off, decoding is slower")
        return None

    def relaid(self, weight):
        return weight.t().contiguous().t() if self.by_input else weight

    def fold(self, layer):
        """The stages of a block."""
        attention = (
            layer.input_layernorm,
            layer.attention.query_key_value,
            layer.attention.dense,
        )
        norm = layer.input_layernorm if layer.shared_norm else layer.post_attention_layernorm
        mlp = norm, layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
        together = [[attention, mlp]] if layer.parallel_residual else [[attention], [mlp]]
        for parts in together:
            if not layer.n_mix:
                mix, reads = None, [fold(norm, reads) for norm, reads, _ in parts]
            else:
                mix = norm.weight, norm.bias, layer.mix.weight
                reads = [(reads.weight, reads.bias) for _, reads, _ in parts]
            weight, bias = map(torch.cat, zip(*reads))
            weight_out = torch.cat([writes.weight for _, _, writes in parts], dim=1)
            bias_out = sum(writes.bias for _, _, writes in parts)
            has = attention in parts, mlp in parts
            yield Stage(*has, mix, self.relaid(weight), bias, weight_out, bias_out)

    def copy(self, source: int, target: int, count: int):
        """Put what one row holds of its first `count` places into another."""
        cache, mixed = self.cache[..., :count, :], self.mixed[:, :, :count]
        cache[:, :, target] = cache[:, :, source]
        mixed[:, target] = mixed[:, source]

    def __call__(self, idx, start, mask=None):
        """idx (B, T), at positions start .. start + T - 1, to the logits (B, V) after the last.

        Either T = 1 or start = 0: what stands before is in the cache. mask: None if all is real,
        else boolean, (B, 1, T, start + T)."""
        (B, T), stop = idx.shape, start + idx.size(1)
        rotation = self.model.cos[start:stop], self.sin[start:stop]
        new = self.cache[:, :, :, :, start:stop].unbind(0)
        caches = zip(new, *self.cache[:, :, :, :, :stop].unbind(1))  # of each layer: new, k, v
        causal = mask is None and T > 1

        def attend(heads):
            qkv = turn(heads.unflatten(0, (B, T)), rotation)
            new, k, v = next(caches)
            new.copy_(qkv[1:])
            y = F.scaled_dot_product_attention(qkv[0], k, v, mask, is_causal=causal)
            return y.transpose(1, 2)

        column = torch.arange(start, stop, device=idx.device).expand(B, T)
        # As NeoX.hidden counts positions.
        place = (column if mask is None else mask[:, 0].sum(-1) - 1).flatten()
        mix = None
        if self.model.config.n_mix:
            row = torch.arange(B, device=idx.device).repeat_interleave(T)
            mix = self.mixes(row, column.flatten(), place)
        x = self.hidden(idx.flatten(), place, attend, mix)
        return self.logits(x.view(B, T, -1)[:, -1])

    def read(self, pieces: list[Piece]):
        """Tokens of several rows, each at its own place, together: N in all, to what `logits` wants
        (N, C), in the order of the pieces, which are of different rows."""
        few = [piece for piece in pieces if len(piece.ids) <= SHORT] if self.few else []
        if not few:
            return self.read_many(pieces)
        if len(few) == len(pieces):
            return self.few.read(pieces)
        many = [piece for piece in pieces if len(piece.ids) > SHORT]
        found = self.few.read(few), self.read_many(many)
        sizes = [[len(piece.ids) for piece in some] for some in (few, many)]
        parts = [iter(x.split(some)) for x, some in zip(found, sizes)]
        return torch.cat([next(parts[len(piece.ids) > SHORT]) for piece in pieces])

    def read_many(self, pieces: list[Piece]):
        """The same with torch's operators."""
        device = self.cache.device
        place = [p for _, start, ids in pieces for p in range(start, start + len(ids))]
        place = torch.tensor(place, device=device)
        idx = torch.tensor([i for piece in pieces for i in piece.ids], device=device)
        mix = None
        if self.model.config.n_mix:
            row = torch.tensor([piece.row for piece in pieces for _ in piece.ids], device=device)
            mix = self.mixes(row, place, place)
        if self.heads and all(len(piece.ids) <= SHORT for piece in pieces):
            return self.hidden(idx, place, self.heads.attend(pieces, place), mix)
        rotation = self.model.cos[place], self.sin[place]
        ways, end = [], 0
        short = [len(pieces) > 1 and len(piece.ids) <= SHORT for piece in pieces]
        if sum(short) > 1:
            ways.append(self.together(pieces, short, place))
        for piece, done in zip(pieces, short):
            begin, end = end, end + len(piece.ids)
            if not done or sum(short) == 1:
                ways.append(self.alone(piece, slice(begin, end)))
        layers = iter(range(self.model.config.n_layer))

        def attend(heads):
            qkv, layer = turn(heads.unsqueeze(0), rotation)[:, 0].transpose(1, 2), next(layers)
            if len(ways) == 1:
                return ways[0](layer, *qkv)
            y = torch.empty_like(qkv[0])
            for way in ways:
                way(layer, *qkv, y)
            return y

        return self.hidden(idx, place, attend, mix)

    def mixes(self, row, column, place):
        """What mixes, called for the embeddings and then for one layer after the other: a function
        of x (N, C) and the weight (n_mix, C) of a `Mix` that returns (N, C), and keeps x. row and
        column (N): where in self.mixed; place (N): how many tokens of its own stand before each."""
        before, kept = range(1, self.model.config.n_mix + 1), iter(self.mixed)
        columns = [(column - back).clamp_min(0) for back in before]
        there = [(place >= back).unsqueeze(1) for back in before]

        def mix(x, weight):
            rows = next(kept)
            rows[row, column] = x
            for w, column_before, real in zip(weight, columns, there):
                x = x + rows[row, column_before] * w * real
            return x

        return mix

    def alone(self, piece: Piece, tokens: slice):
        """How one piece attends: a function of a layer's number and q, k, v (N, H, D) that returns
        the piece's y (T, H, D), and puts it among those of all (N, H, D) where that is given."""
        row, start, ids = piece
        stop, mask = start + len(ids), None
        if start and len(ids) > 1:
            mask = torch.ones(len(ids), stop, dtype=torch.bool, device=self.cache.device)
            mask = mask.tril(start)
        cache = self.cache[:, :, row : row + 1, :, :stop]
        keys, values = cache.unbind(1)
        caches = list(zip(cache[:, 0, :, :, start:], cache[:, 1, :, :, start:], keys, values))
        causal = mask is None and len(ids) > 1

        def attend(layer, q, k, v, y=None):
            q, k, v = (x[None, tokens].transpose(1, 2) for x in (q, k, v))
            new_k, new_v, keys, values = caches[layer]
            new_k.copy_(k)
            new_v.copy_(v)
            found = F.scaled_dot_product_attention(q, keys, values, mask, is_causal=causal)
            found = found[0].transpose(0, 1)
            if y is not None:
                y[tokens] = found
            return found

        return attend

    def together(self, pieces: list[Piece], short: list[bool], place):
        """The same for all short pieces: one call takes a third of the time of eight."""
        device, chosen = self.cache.device, [p for p, is_short in zip(pieces, short) if is_short]
        first, last = min(p.row for p in chosen), max(p.row for p in chosen)
        T, S = max(len(p.ids) for p in chosen), max(p.start + len(p.ids) for p in chosen)
        rows = torch.tensor([p.row for p in chosen for _ in p.ids], device=device)
        column = torch.tensor([t for p in chosen for t in range(len(p.ids))], device=device)
        tokens = [is_short for p, is_short in zip(pieces, short) for _ in p.ids]
        whole = all(tokens)  # no long piece is beside them
        tokens = slice(None) if whole else torch.tensor(tokens, device=device).nonzero()[:, 0]
        place = place[tokens]
        # A row of the cache that none of them has attends to its first key; nobody reads that.
        seen = torch.zeros(last - first + 1, T, dtype=torch.long, device=device)
        seen[rows - first, column] = place
        hidden = torch.arange(S, device=device) > seen[..., None]
        mask = torch.zeros(hidden.shape, device=device, dtype=self.cache.dtype)
        mask = mask.masked_fill_(hidden, -math.inf).unsqueeze(1)  # (rows, 1, T, S)
        caches = self.cache.unbind(0)
        dense = len(chosen) == len(seen) and T == 1  # the tokens are the rows, one by one

        def attend(layer, q, k, v, y=None):
            cache = caches[layer]
            q, kv = q[tokens], torch.stack((k[tokens], v[tokens]), dim=1)
            cache[:, rows, :, place] = kv  # (N, 2, H, D)
            keys, values = cache[:, first : last + 1, :, :S]
            if dense:
                found = F.scaled_dot_product_attention(q[:, :, None], keys, values, mask)[:, :, 0]
            else:
                padded = q.new_zeros(*seen.shape, *q.shape[1:])  # (rows, T, H, D)
                padded[rows - first, column] = q
                found = F.scaled_dot_product_attention(padded.transpose(1, 2), keys, values, mask)
                found = found.transpose(1, 2)[rows - first, column]
            if y is not None:
                y[tokens] = found
            return found

        return attend

    def hidden(self, idx, place, attend, mix):
        """idx (N) and their positions (N) to the final LayerNorm's input (N, C). attend: called for
        one layer after the other, makes of heads (N, H, 3, D) what attention finds, (.., H, D).
        mix: from `mixes`; None if nothing is mixed."""
        c = self.model.config
        x = self.model.gpt_neox.embed_in(idx)
        if c.learned_positions:
            x = x + self.model.gpt_neox.embed_pos(place)
        if c.n_mix:
            x = mix(x, self.model.gpt_neox.mix.weight)
        for attention, mlp, mixing, weight_in, bias_in, weight_out, bias_out in self.stages:
            if mixing:
                *norm, weight = mixing
                h = mix(F.layer_norm(x, (c.n_embd,), *norm, c.norm_eps), weight)
            else:
                h = F.layer_norm(x, (c.n_embd,), eps=c.norm_eps)
            # Biases are added apart: oneDNN's bfloat16 product with a bias is slow (1.07 times the
            # tokens/s of 8 rows).
            h = F.linear(h, weight_in).add_(bias_in)
            parts = []
            if attention:
                heads = h[:, : 3 * c.n_embd].to(self.cache.dtype).view(-1, c.n_head, 3, c.head_dim)
                parts.append(attend(heads).reshape(-1, c.n_embd).to(x.dtype))
            if mlp:
                parts.append(ACTIVATIONS[c.activation](h[:, -c.n_read :]))
            x = x + F.linear(torch.cat(parts, dim=1), weight_out).add_(bias_out)
        return x

    def logits(self, x):
        """What `hidden` returns (..., C) to logits (..., V)."""
        if self.few and x.dim() == 2 and len(x) <= SHORT:
            return self.few.logits(x)
        x = self.model.gpt_neox.final_layer_norm(x)
        return F.linear(x, self.head, self.model.embed_out.bias)


def fold(norm, reads):
    """Weight and bias of a projection that reads a LayerNorm, with its scale and shift in them."""
    return reads.weight * norm.weight, reads.bias + reads.weight @ norm.bias


def turn(heads, rotation):
    """heads (B, T, H, 3, D) to queries, keys and values (3, B, H, T, D), rotated in place.

    rotation: cos and signed sin, each (T, rotary_dim)."""
    cos, sin = rotation
    qkv = heads.permute(3, 0, 2, 1, 4)
    turned = qkv[:2, ..., : cos.size(-1)]  # queries and keys
    swapped = turned.roll(cos.size(-1) // 2, dims=-1)
    turned.mul_(cos).addcmul_(swapped, sin)  # `rotate` with half the operators
    return qkv


AGREES = {}  # what `decoder_agrees` found, by the model's settings and methods


def decoder_agrees(model: NeoX) -> bool:
    """Whether the Decoder computes what model.py computes: tried on a `twin` of the model, over a
    whole context. Says so where it does not."""
    code = (f for kind in set(map(type, model.modules())) for f in vars(kind).values())
    kind = str(model.config), frozenset(filter(callable, code))  # a notebook may redefine them
    if kind not in AGREES:
        reason = ""
        try:
            AGREES[kind] = untouched("network") and decodes(twin(model))
        except Exception as error:  # whatever a changed model raises here, the plain form can run
            AGREES[kind], reason = False, f" ({type(error).__name__}: {error})"
        if not AGREES[kind]:
            say(
                "model.py was changed: the cached decoder is off, generation follows model.py "
                f"without a cache, more slowly{reason}"
            )
    return AGREES[kind]


@torch.no_grad()
def decodes(model):
    """Whether the Decoder's logits are the model's, reading a whole context and then one token."""
    T = model.config.block_size
    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(model.config.vocab_size, (1, T), generator=generator)
    model.eval()
    expected = model.logits(model.hidden(idx))[0]
    decoder = Decoder(model, 1)
    steps = [(0, T)] if T == 1 else [(0, T - 1), (T - 1, T)]
    found = torch.cat([decoder(idx[:, start:stop], start) for start, stop in steps])
    cuts = sorted({0, T // 3, T - T // 4, T})
    pieces = [Piece(0, start, idx[0, start:stop].tolist()) for start, stop in pairwise(cuts)]
    read = torch.cat([decoder.logits(decoder.read([piece])) for piece in pieces])
    pairs = (found, expected[[stop - 1 for _, stop in steps]]), (read, expected)
    return all(bool((a - b).norm() <= 1e-6 * b.norm()) for a, b in pairs)

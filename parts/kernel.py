"""A stage of the cached decoder for a few tokens at a time on a CPU, compiled by numba.

torch needs twenty operators for a stage, and each costs some microseconds, whatever it computes.
Here a stage is one call of machine code on one thread. Threads share the rows of a step rather than
each product, so they wait for each other once a step: a core that another process keeps busy costs
a half, where torch's threads then took 30 times as long. `Decoder.read` in parts/generate.py uses
this where numba is installed, and compares it with model.py first.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import torch

GELU, GELU_TANH, SWIGLU = range(3)
# The order of sums may change, so that eight or sixteen numbers are added at a time.
FAST = {"reassoc", "contract", "nsz", "arcp"}
compiled = numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")


@compiled
def product(x, weight, bias, out):
    """out (N, R) = x (N, C) weight^T (R, C) + bias (R). Each row of the weight is read once, and
    used for all tokens, four at a time."""
    N, C = x.shape
    for r in range(len(weight)):
        w, b = weight[r], bias[r]
        n = 0
        while n + 4 <= N:
            s0 = s1 = s2 = s3 = np.float32(0)
            for i in range(C):
                s0 += w[i] * x[n, i]
                s1 += w[i] * x[n + 1, i]
                s2 += w[i] * x[n + 2, i]
                s3 += w[i] * x[n + 3, i]
            out[n, r], out[n + 1, r], out[n + 2, r], out[n + 3, r] = s0 + b, s1 + b, s2 + b, s3 + b
            n += 4
        while n < N:
            s = np.float32(0)
            for i in range(C):
                s += w[i] * x[n, i]
            out[n, r] = s + b
            n += 1


@compiled
def normalize(x, eps, out):
    """A LayerNorm without scale and shift, (N, C) to (N, C)."""
    N, C = x.shape
    for n in range(N):
        mean = variance = np.float32(0)
        for i in range(C):
            mean += x[n, i]
        mean /= C
        for i in range(C):
            variance += (x[n, i] - mean) * (x[n, i] - mean)
        scale = np.float32(1) / np.sqrt(variance / C + eps)
        for i in range(C):
            out[n, i] = (x[n, i] - mean) * scale


@compiled
def mix(x, weight, rows, places, kept):
    """`model.Mix` of x (N, C), in place. kept (B, S, C): what was mixed before, at each row and
    place; x goes there too. weight: (n_mix, C)."""
    N, C = x.shape
    for n in range(N):
        kept[rows[n], places[n]] = x[n]
    for n in range(N):
        for back in range(1, min(len(weight), places[n]) + 1):
            before, w = kept[rows[n], places[n] - back], weight[back - 1]
            for i in range(C):
                x[n, i] += w[i] * before[i]


@compiled
def rotate(head, cos, sin):
    """Rotate a query or key (D) in place; cos and sin, with its signs, are those of its place."""
    half = len(cos) // 2
    for i in range(half):
        a, b = head[i], head[half + i]
        head[i] = a * cos[i] + b * sin[i]
        head[half + i] = b * cos[half + i] + a * sin[half + i]


@compiled
def attend(heads, cos, sin, rows, places, cache, scores, out):
    """heads (N, H, 3, D): put keys and values into the cache (2, B, H, S, D), at each token's row
    and place, and write what its query finds up to there to out (N, H, D). scores: room for S."""
    N, H, _, D = heads.shape
    scale = np.float32(1 / math.sqrt(D))
    for n in range(N):
        row, place = rows[n], places[n]
        for h in range(H):
            rotate(heads[n, h, 0], cos[place], sin[place])
            rotate(heads[n, h, 1], cos[place], sin[place])
            cache[0, row, h, place] = heads[n, h, 1]
            cache[1, row, h, place] = heads[n, h, 2]
    for n in range(N):
        row, place = rows[n], places[n]
        for h in range(H):
            q, keys, values = heads[n, h, 0], cache[0, row, h], cache[1, row, h]
            most = np.float32(-np.inf)
            for s in range(place + 1):
                score = np.float32(0)
                for d in range(D):
                    score += q[d] * keys[s, d]
                scores[s] = score * scale
                most = max(most, scores[s])
            total = np.float32(0)
            for s in range(place + 1):
                scores[s] = math.exp(scores[s] - most)
                total += scores[s]
            y = out[n, h]
            y[:] = 0
            for s in range(place + 1):
                share = scores[s] / total
                for d in range(D):
                    y[d] += share * values[s, d]


@compiled
def activate(x, kind, out):
    """The activation of an MLP: x (N, n_read) to out (N, n_inner)."""
    N, width = out.shape
    for n in range(N):
        for i in range(width):
            v = x[n, i]
            if kind == GELU:
                y = v * np.float32(0.5) * (np.float32(1) + math.erf(v * np.float32(math.sqrt(0.5))))
            elif kind == GELU_TANH:
                inner = np.float32(math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
                y = v * np.float32(0.5) * (np.float32(1) + math.tanh(inner))
            else:
                y = v / (np.float32(1) + math.exp(-v)) * x[n, width + i]
            out[n, i] = y


@compiled
def stage(x, eps, mixing, weights, attention, inner, kind, cos, sin, rows, places, cache):
    """One `generate.Stage` for x (N, C), which it changes: x + out(parts(in(normalized x))).

    mixing: the LayerNorm's scale and shift, the weight of its `Mix`, which is empty if it has none,
    and what that has kept. weights: of the products in and out, with their biases. attention:
    whether it has that part; inner: width of the MLP, 0 if it has none; kind: its activation."""
    weight_in, bias_in, weight_out, bias_out = weights
    N, C = x.shape
    h, out = np.empty_like(x), np.empty_like(x)
    normalize(x, eps, h)
    scale, shift, weight, kept = mixing
    if len(weight):
        h = h * scale + shift
        mix(h, weight, rows, places, kept)
    read = np.empty((N, len(weight_in)), np.float32)
    product(h, weight_in, bias_in, read)
    parts, begin = np.empty((N, weight_out.shape[1]), np.float32), 0
    if attention:
        H, S, D = cache.shape[2:]
        heads = read[:, : 3 * C].copy().reshape(N, H, 3, D)
        found = np.empty((N, H, D), np.float32)
        attend(heads, cos, sin, rows, places, cache, np.empty(S, np.float32), found)
        parts[:, :C] = found.reshape(N, C)
        begin = C
    if inner:
        activate(read[:, 3 * C * attention :], kind, parts[:, begin:])
    product(parts, weight_out, bias_out, out)
    x += out


@compiled
def head(x, eps, scale, shift, weight, bias, logits):
    """The final LayerNorm and the output head: x (N, C) to logits (N, V)."""
    h = np.empty_like(x)
    normalize(x, eps, h)
    h = h * scale + shift
    product(h, weight, bias, logits)


def arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


class Heads:
    """Attention alone, for a few tokens at a time, of a `Decoder` on a CPU whose weights are not
    float32. It shares its memory. A step of 16 rows takes 0.7 to 0.85 of the time."""

    def __init__(self, decoder):
        tables = decoder.model.cos.float(), decoder.sin.float(), decoder.cache
        self.cos, self.sin, self.cache = arrays(*tables)

    def attend(self, pieces, places: torch.Tensor):
        """What `Decoder.hidden` calls: of one layer after the other, heads (N, H, 3, D) to (N, H,
        D). pieces: as for `Decoder.read`; places (N): of their tokens."""
        rows = np.array([piece.row for piece in pieces for _ in piece.ids])
        scores, caches = np.empty(self.cache.shape[4], np.float32), iter(self.cache)

        def of(heads: torch.Tensor) -> torch.Tensor:
            N, H, _, D = heads.shape
            out = torch.empty(N, H, D)
            where = self.cos, self.sin, rows, places.numpy(), next(caches)
            attend(heads.numpy(), *where, scores, out.numpy())
            return out

        return of


class Few:
    """A `Decoder` of float32 on a CPU, for a few tokens at a time. It shares its memory."""

    def __init__(self, decoder, kind: int, threads: int):
        """kind: the model's activation."""
        model, self.kind = decoder.model, kind
        c = self.config = model.config
        self.table = model.gpt_neox.embed_in.weight
        self.positions = model.gpt_neox.embed_pos.weight if c.learned_positions else None
        none = torch.zeros(0, c.n_embd)
        mixed = decoder.mixed if c.n_mix else none.expand(1 + len(decoder.stages), 0, 0, c.n_embd)
        self.stages = [
            (
                arrays(*(stage.mix or (none[:0, 0], none[:0, 0], none)), kept),
                arrays(*stage[3:]),
                stage.attention,
                c.n_inner * stage.mlp,
            )
            for stage, kept in zip(decoder.stages, mixed[1:])
        ]
        self.mix = arrays(model.gpt_neox.mix.weight, decoder.mixed[0]) if c.n_mix else None
        # Without rotary positions there is nothing to rotate.
        self.cos, self.sin, self.cache = arrays(model.cos, decoder.sin, decoder.cache)
        norm, bias = model.gpt_neox.final_layer_norm, model.embed_out.bias
        bias = torch.zeros(c.vocab_size) if bias is None else bias
        self.head = arrays(norm.weight, norm.bias, decoder.head, bias)
        self.threads = ThreadPoolExecutor(max(threads - 1, 1))
        self.count = threads

    def read(self, pieces) -> torch.Tensor:
        """As `Decoder.read`."""
        idx = torch.tensor([i for piece in pieces for i in piece.ids])
        places = torch.tensor([p.start + t for p in pieces for t in range(len(p.ids))])
        rows = np.array([piece.row for piece in pieces for _ in piece.ids])
        x = self.table[idx]
        if self.positions is not None:
            x = x + self.positions[places]
        places, cuts = places.numpy(), self.cuts([len(piece.ids) for piece in pieces])

        def through(part: slice):
            self.through(x.numpy()[part], rows[part], places[part])

        self.each(through, cuts)
        return x

    def through(self, x, rows, places):
        """All stages, for tokens x (N, C), in place."""
        layer = 0
        if self.mix:
            mix(x, self.mix[0], rows, places, self.mix[1])
        for mixing, weights, attention, inner in self.stages:
            cache = self.cache[min(layer, len(self.cache) - 1)]  # the last MLP needs none
            where = self.cos, self.sin, rows, places, cache
            stage(x, self.config.norm_eps, mixing, weights, attention, inner, self.kind, *where)
            layer += attention

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """As `Decoder.logits`."""
        x, logits = x.numpy(), torch.empty(len(x), self.config.vocab_size)

        def of(part: slice):
            head(x[part], self.config.norm_eps, *self.head, logits.numpy()[part])

        self.each(of, self.cuts([1] * len(x)))
        return logits

    def activated(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """x (N, n_read) to (N, width), by the model's activation."""
        out = torch.empty(len(x), width)
        activate(x.numpy(), self.kind, out.numpy())
        return out

    def cuts(self, lengths: list[int]) -> list[slice]:
        """Parts with about as many tokens for each thread; pieces of these lengths stay whole."""
        cuts, end, total = [0], 0, sum(lengths)
        for length in lengths[:-1]:
            end += length
            if end * self.count >= total * len(cuts):
                cuts.append(end)
        return [slice(*ends) for ends in pairwise([*cuts, total])]

    def each(self, do, parts: list[slice]):
        """do(part) for each part, together."""
        others = [self.threads.submit(do, part) for part in parts[1:]]
        do(parts[0])
        for other in others:
            other.result()

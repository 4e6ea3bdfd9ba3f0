"""The faster forms of attention and loss in training, and how they check themselves.

model.py holds the plain forms, which are what a reader changes. `use_fast_forms` compares each fast
form with them, loss and gradients, and leaves off the ones that differ. Shapes as in model.py.
"""

import copy
import functools
import hashlib
import inspect
import io
import math
import textwrap
import time
import tokenize
from dataclasses import replace

import torch
import torch.nn.functional as F

import model as plain_model
from model import Attention, Mix, NeoX, token_losses
from parts import distributed
from parts.configurator import say


class CausalAttention(torch.autograd.Function):
    """Rotary positions and causal softmax(q k^T / sqrt(D)) v with their gradients, for a CPU.

    heads (B, T, H, 3 D), cos and sin (T, rotary_dim) to (B, T, H D). The backward of torch's fused
    attention takes half of a training step on a CPU. This one rotates in place, writes each of the
    three gradients where it belongs, and so saves autograd's copies: with it and LinearCrossEntropy
    a step of 6 layers, 256 wide, context 256, took 0.87 of its time with torch's operators."""

    @staticmethod
    def forward(ctx, heads, cos, sin):
        B, T, H, D = *heads.shape[:3], heads.size(-1) // 3
        qkv = heads.view(B, T, H, 3, D).permute(3, 0, 2, 1, 4).contiguous()  # (3, B, H, T, D)
        # The rotation as one matrix for each position, (T, rotary_dim, rotary_dim).
        dim, half = cos.size(-1), cos.size(-1) // 2
        matrices = qkv.new_zeros(T, dim, dim)
        matrices.diagonal(0, 1, 2).copy_(cos)
        matrices.diagonal(half, 1, 2).copy_(sin[:, half:])
        matrices.diagonal(-half, 1, 2).copy_(-sin[:, :half])
        q, k, v = qkv.view(3, B * H, T, D)
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
        # Autocast would cast the softmax to float32; it sums in float32 in any case.
        with torch.autocast("cpu", enabled=False):
            CausalAttention.rotate_(qkv[:2], matrices)
            future = future.expand(B * H, T, T)
            scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=1 / math.sqrt(D))
            weights = scores.softmax(dim=-1)  # (B H, T, T)
            y = weights @ v
        ctx.save_for_backward(qkv, weights, matrices)
        return y.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)

    @staticmethod
    def rotate_(x, matrices):
        """Multiply the first dimensions of x (2, B, H, T, D) by their position's matrix."""
        dim = matrices.size(-1)
        rows = x[..., :dim].permute(3, 0, 1, 2, 4)  # (T, 2, B, H, dim)
        turned = (rows.flatten(1, 3) @ matrices).view(rows.shape)
        x[..., :dim] = turned.permute(1, 2, 3, 0, 4)

    @staticmethod
    def backward(ctx, grad):
        qkv, weights, matrices = ctx.saved_tensors
        _, B, H, T, D = qkv.shape
        q, k, v = qkv.view(3, B * H, T, D)
        grad = grad.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        d_qkv = torch.empty_like(qkv)
        dq, dk, dv = d_qkv.view(3, B * H, T, D)
        torch.bmm(weights.transpose(1, 2), grad, out=dv)
        d_weights = grad @ v.transpose(1, 2)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        torch.bmm(d_scores, k, out=dq)
        torch.bmm(d_scores.transpose(1, 2), q, out=dk)
        d_qkv[:2] *= 1 / math.sqrt(D)
        CausalAttention.rotate_(d_qkv[:2], matrices.mT)  # the transpose rotates back
        return d_qkv.permute(1, 3, 2, 0, 4).reshape(B, T, H, 3 * D), None, None


class FastAttention(Attention):
    def forward(self, x, cos, sin, mask=None):
        B, T, C = x.shape
        if mask is not None or T > 512:  # all T x T weights are kept for backward
            return super().forward(x, cos, sin, mask)
        heads = self.query_key_value(x).view(B, T, self.n_head, -1)
        return self.dense(CausalAttention.apply(heads, cos, sin))


class MixPositions(torch.autograd.Function):
    """Mix and its gradients, for a CPU: x (B, T, C), weight (n_mix, C) to (B, T, C). It adds in
    place, where torch's operators make three tensors for each position back."""

    @staticmethod
    def forward(ctx, x, weight):
        y, ctx.dtype = x.clone(), weight.dtype
        weight = weight.to(x.dtype)
        for back, w in enumerate(weight[: x.size(1) - 1], 1):
            y[:, back:].addcmul_(x[:, :-back], w)
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        dx, dw = grad.clone(), torch.zeros(weight.shape, dtype=ctx.dtype)
        for back, w in enumerate(weight[: x.size(1) - 1], 1):
            dx[:, :-back].addcmul_(grad[:, back:], w)
            dw[back - 1] = (grad[:, back:] * x[:, :-back]).sum((0, 1), dtype=ctx.dtype)
        return dx, dw


class FastMix(Mix):
    stream = False  # whether it mixes the residual stream itself, which stays in float32

    def forward(self, x, mask=None):
        if mask is not None:
            return super().forward(x, mask)
        if torch.is_autocast_enabled("cpu") and not self.stream:  # as both that read it would
            x = x.to(torch.get_autocast_dtype("cpu"))
        return MixPositions.apply(x, self.weight)


# Logits held at a time: on a CPU what its caches like (32 MiB in bfloat16), on a GPU enough rows to
# keep it busy (not measured).
MAX_LOGITS = {"cpu": 2**24, "cuda": 2**26, "mps": 2**24}


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy, in nats, of the logits x weight^T + bias against targets, some rows at a
    time.

    x (N, C), weight (V, C), bias (V) or None, targets (N) int64, of which -100 is left out. Each
    part's gradients are computed in forward, while its logits are at hand, so that never more than
    MAX_LOGITS are held (the idea of Liger Kernel, Hsu et al. 2024,
    https://arxiv.org/abs/2410.10989, section 3.2)."""

    @staticmethod
    def forward(ctx, x, weight, targets, bias=None):
        device = x.device.type
        cast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if cast else x.dtype
        wide = torch.promote_types(dtype, torch.float32)
        # A CPU's bfloat16 probabilities stay in bfloat16, summed in float32: half the time.
        coarse = device == "cpu" and dtype == torch.bfloat16
        kept = (targets >= 0).unsqueeze(1)
        targets = targets.clamp_min(0)
        rows = max(MAX_LOGITS[device] // weight.size(0), 1)
        if dtype == torch.float16:  # so that no sum over rows in dw overflows
            rows = min(rows, 1024)
        with torch.autocast(device, enabled=False):
            x, low = x.to(dtype) * kept, weight.to(dtype)
            dx, dw, losses = torch.empty_like(x), torch.zeros_like(weight), []
            shift = None if bias is None else bias.to(dtype)
            db = None if bias is None else torch.zeros_like(bias)
            ones = low.new_ones(len(low), 1)
            for begin in range(0, len(x), rows):
                part = slice(begin, begin + rows)
                logits = F.linear(x[part], low, shift)  # (rows, V)
                probs = logits.softmax(dim=-1, dtype=dtype if coarse else wide)
                # By two indices: scatter_ copies all of probs twice on a CPU.
                at = torch.arange(len(probs), device=x.device), targets[part]
                right = probs[at].to(wide).unsqueeze(1)
                losses.append(-right.clamp_min(1e-38).log())
                # The gradient at the target is p - 1, which 16 bits would round to 0 long before
                # it is; where p itself has 16 bits, the sum of the others is 1 - p.
                if coarse:  # the sum as a product, in a tenth of the time
                    probs[at] = 0
                    probs[at] = -(probs @ ones).squeeze(1)
                else:
                    probs[at] = right.squeeze(1) - 1
                    probs = probs.to(dtype)
                torch.mm(probs, low, out=dx[part])
                dw += probs.T @ x[part]
                if bias is not None:
                    db += (probs * kept[part]).sum(0, dtype=wide)
        count = kept.sum().clamp_min(1)
        ctx.save_for_backward(dx * kept, dw, db, count)
        return (torch.cat(losses) * kept).sum() / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw, db, count = ctx.saved_tensors
        db = None if db is None else db * (grad / count)
        return dx * (grad / count).to(dx.dtype), dw * (grad / count), None, db


class FastNeoX(NeoX):
    def loss(self, x, targets):
        if torch.is_grad_enabled():
            head = self.embed_out
            return LinearCrossEntropy.apply(x, head.weight, targets, head.bias)
        rows = max(MAX_LOGITS[x.device.type] // self.config.vocab_size, 1)
        parts = zip(x.split(rows), targets.split(rows))
        losses = [token_losses(self.logits(x), targets) for x, targets in parts]
        return torch.cat(losses).sum() / (targets >= 0).sum().clamp_min(1)


# --- the switch ---------------------------------------------------------------------------------

# The code of model.py that each fast form replaces, and its fingerprint when the form was written.
# `python -m pytest tests/test_fast.py` prints the new one after a change that the form follows too.
REPLACED = {
    "attention": ["rotate", "Attention"],
    "mix": ["Mix"],
    "loss": ["token_losses", "NeoX.logits", "NeoX.loss"],
    "network": ["rotate", "Mix", "Attention", "MLP", "Block"]
    + ["NeoX.__init__", "NeoX.hidden", "NeoX.logits", "NeoX.forward"],
}
WRITTEN_FOR = {
    "attention": "de57ded80347",
    "mix": "a5064d950243",
    "loss": "9575211bf03e",
    "network": "e3a2ee204e8b",
}
LAYOUT = {tokenize.INDENT: ">", tokenize.DEDENT: "<", tokenize.NEWLINE: ";", tokenize.ENDMARKER: ""}


def untouched(name: str) -> bool:
    """Whether the code that a fast form replaces is the one that it was written for. A comparison
    by numbers alone would miss what shows only for some tokens, sizes or times."""
    try:
        return fingerprint(name) == WRITTEN_FOR[name]
    except (OSError, AttributeError, TypeError):  # no source, or gone
        return False


def fingerprint(name: str) -> str:
    """A hash of the code that a fast form replaces, without comments, docstrings and layout."""
    functions = []
    for path in REPLACED[name]:
        code = functools.reduce(getattr, path.split("."), plain_model)
        methods = vars(code).values() if inspect.isclass(code) else [code]
        functions += filter(inspect.isfunction, methods)
    return hash_of(tuple(functions))


@functools.cache
def hash_of(code: tuple) -> str:
    pieces = []
    for function in code:
        source, before = textwrap.dedent(inspect.getsource(function)), ""
        for kind, text, *_ in tokenize.generate_tokens(io.StringIO(source).readline):
            if kind in (tokenize.COMMENT, tokenize.NL):
                continue
            piece = LAYOUT.get(kind, text.replace(" ", ""))
            if kind != tokenize.STRING or before not in (">", ";"):  # else a docstring
                pieces.append(piece)
            before = piece
    return hashlib.sha256("".join(pieces).encode()).hexdigest()[:12]


FORMS = {
    "attention": (Attention, FastAttention),
    "mix": (Mix, FastMix),
    "loss": (NeoX, FastNeoX),
}


def use_fast_forms(model: NeoX, device: str):
    """Switch on the fast forms that suit the device and that compute what model.py computes now.

    They are tried on a `twin` of the model: loss and all gradients, in float64. One that differs,
    or whose plain form was edited, stays off, with a line that says so."""
    names = ["loss"]
    if device == "cpu":  # on a GPU torch has its own attention, and torch.compile joins the rest
        names += ["attention"] * (not model.config.dropout) + ["mix"] * (model.config.n_mix > 0)
    suitable, reason = names, ""
    try:
        trial = twin(model)
        expected = outcome(trial)
        names = [name for name in suitable if untouched(name)]
        if not agrees(trial, names, expected):  # all together first, as it takes less time
            names = [name for name in names if agrees(trial, [name], expected)]
    except Exception as error:  # whatever a changed model raises here, the plain forms can run
        names, reason = [], f" ({type(error).__name__}: {error})"
    if names != suitable:
        off = " and ".join(name for name in suitable if name not in names)
        say(f"model.py was changed: no fast form of {off}, training follows model.py{reason}")
    switch(model, names)


def agrees(trial: NeoX, names: list[str], expected: list) -> bool:
    """Whether the model has the same outcome with these fast forms switched on."""
    switch(trial, names)
    try:
        return all(map(close, outcome(trial), expected))
    except Exception:  # such as an argument that only the plain form takes
        return False
    finally:
        use_plain_forms(trial)


def use_plain_forms(model: NeoX) -> NeoX:
    """The same model with the forms of model.py alone."""
    plain = {fast: plain for plain, fast in FORMS.values()}
    for module in model.modules():
        if isinstance(module, FastMix):
            vars(module).pop("stream", None)
        module.__class__ = plain.get(type(module), type(module))
    vars(model).pop("loss", None)  # a compiled one
    return model


def switch(model: NeoX, names: list[str]):
    """Switch fast forms on, by name."""
    fast = dict(FORMS[name] for name in names)
    for module in model.modules():
        module.__class__ = fast.get(type(module), type(module))
    if isinstance(mix := getattr(model.gpt_neox, "mix", None), FastMix):
        mix.stream = True


def twin(model: NeoX) -> NeoX:
    """A small model of the same classes and settings to compare forms on: as many layers, heads as
    wide and a context as long, but two heads and 64 tokens, and random numbers in every parameter,
    so that what starts at zero counts too. On the CPU, in float64."""
    c = model.config
    heads = min(c.n_head, 2)
    width = heads * c.head_dim
    inner = max(c.n_inner * width // c.n_embd, 1)
    small = replace(c, vocab_size=64, n_head=heads, n_embd=width, n_inner=inner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # A copy, since an activation that is a module would be shared with the model.
        trial = copy.deepcopy(NeoX(small)).double()
        for parameter in trial.parameters():
            parameter.data += 0.4 * (torch.rand(parameter.shape) - 0.5)
    plain = {fast: plain for plain, fast in FORMS.values()}
    if {plain.get(type(m), type(m)) for m in model.modules()} != set(map(type, trial.modules())):
        raise ValueError("its modules are not those that NeoX(config) makes")
    return trial


def outcome(model):
    """The loss of one random sequence, and the gradient of every parameter."""
    T = min(model.config.block_size, 512)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        idx = torch.randint(model.config.vocab_size, (1, T + 1))
        loss = model(idx[:, :-1], idx[:, 1:])
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    zeros = (torch.zeros_like(p) for p in parameters)
    return [loss.detach(), *(z if g is None else g for g, z in zip(gradients, zeros))]


def close(a, b):
    """Whether two tensors are equal but for rounding in float64."""
    return bool((a - b).norm() <= 1e-6 * b.norm() + 1e-9)


# --- torch.compile --------------------------------------------------------------------------------


def compile_parts(model: NeoX, batch, autocast):
    """torch.compile for each block, all of them by one compilation, and for the loss.

    It is tried on a batch (x, y), with gradients and as an evaluation, so that nothing is compiled
    later. Where that fails in any process, all go on without it. Without a batch it is not
    tried."""
    began, reason = time.perf_counter(), ""
    try:
        for layer in model.gpt_neox.layers:
            layer.compile()
        model.loss = functools.partial(torch.compile(type(model).loss), model)
        if batch is None:
            return
        print("compiling, once: about a minute on a CPU, less if it was done here before")
        with autocast():
            model(*batch).backward()
            with torch.no_grad():
                model.eval()(*batch)
    except Exception as error:  # no C++ compiler, an unsupported Python or GPU, ...
        said = (str(error).strip() or "no reason given").splitlines()[0]
        reason = f"{type(error).__name__}: {said}"
    model.train().zero_grad(set_to_none=True)
    if any(distributed.agree(bool(reason))):
        for layer in model.gpt_neox.layers:
            layer._compiled_call_impl = None
        vars(model).pop("loss", None)
        reason = reason or "it failed in another process"
        print(f"torch.compile does not work here, going on without it, slower: {reason}")
    else:
        print(f"torch.compile took {time.perf_counter() - began:.0f} s")

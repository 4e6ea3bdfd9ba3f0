"""GPT-NeoX in one file: settings, block, model, generation, Hugging Face in and out.

What it is (Black et al. 2022, https://arxiv.org/abs/2204.06745; the same shape as Pythia):
- attention and MLP read the same residual stream and are added together (`parallel_residual`; False gives GPT-2's order)
- rotary position embeddings on the first `rotary_pct` of every head, no learnt positions
- one fused projection for queries, keys and values, laid out head by head
- LayerNorm with bias, biases in every projection, an output head of its own (`tie_embeddings` shares it instead)
- small-init for what reads the residual stream, wang-init for what writes to it

Modules carry the names of Hugging Face's `GPTNeoXForCausalLM`, so a state_dict is a checkpoint there and the other way round.
Shapes in comments: B batch, T tokens, C = n_embd, H heads, D = C / H, V vocabulary.
"""

import functools
import json
import math
import os
import pickle  # for the name of an error alone
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**24  # held at a time in training: 32 MiB in bfloat16


@dataclass
class NeoXConfig:
    vocab_size: int = 50304
    block_size: int = 2048  # context length, in tokens
    n_layer: int = 6
    n_head: int = 8
    n_embd: int = 512
    n_inner: int = 0  # width of the MLP; 0: 4 * n_embd, or with swiglu 2/3 of that, for as many parameters
    rotary_pct: float = 0.25  # share of each head's dimensions that is rotated
    rotary_base: float = 10000.0
    parallel_residual: bool = True
    tie_embeddings: bool = False
    dropout: float = 0.0
    activation: str = "gelu"  # "gelu_fast", the tanh form of GPT-NeoX-20B, or "swiglu", which Hugging Face's GPT-NeoX has not
    norm_eps: float = 1e-5

    def __post_init__(self):
        self.n_inner = self.n_inner or (4 * self.n_embd if self.activation != "swiglu" else max(self.n_embd // 3, 1) * 8)
        if min(self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd) < 1:
            raise ValueError("vocab_size, block_size, n_layer, n_head and n_embd must each be 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")
        if not 0 <= self.rotary_pct <= 1 or self.rotary_dim % 2:
            raise ValueError(f"rotary_pct={self.rotary_pct} of {self.head_dim} dimensions a head must be an even number of them")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be from 0 up to, not including, 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    @property
    def rotary_dim(self):
        return int(self.head_dim * self.rotary_pct)

    @property
    def n_read(self):
        """Width of the MLP before its activation, which a gate halves."""
        return self.n_inner * (1 + (self.activation == "swiglu"))


def rotary_tables(config):
    """cos and sin, each (block_size, rotary_dim), float32 (Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34)."""
    dim = config.rotary_dim
    frequency = 1.0 / config.rotary_base ** (torch.arange(0, dim, 2).float() / max(dim, 1))
    angle = torch.outer(torch.arange(config.block_size).float(), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turn the first rotary_dim dimensions of x (B, H, T, D) by position, NeoX's way: pairs are half a rotary_dim apart."""
    dim = cos.size(-1)
    turned, passed = x[..., :dim], x[..., dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned.type_as(x), passed), dim=-1)


def rotation(cos, sin, dtype):
    """The same as a matrix for each position, (T, rotary_dim, rotary_dim), to multiply rows by: on a CPU the faster way."""
    half = cos.size(-1) // 2
    signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
    return (cos.diag_embed() + signed.diag_embed().roll(half, dims=1)).to(dtype)


def turn_(x, matrices):
    """Multiply the first dimensions of x (2, B, H, T, D) by their position's matrix, in place and without gradients."""
    T, dim = matrices.shape[:2]
    rows = x[..., :dim].permute(3, 0, 1, 2, 4)  # (T, 2, B, H, dim)
    x[..., :dim] = (rows.reshape(T, -1, dim) @ matrices).view(rows.shape).permute(1, 2, 3, 0, 4)


class CausalAttention(torch.autograd.Function):
    """Rotary positions and causal softmax(q k^T / sqrt(D)) v with their gradients, written out for training on a CPU.

    heads (B, T, H, 3 D), cos and sin (T, rotary_dim) to (B, T, H D). There the backward of torch's fused attention takes half of
    a training step; and this writes each of the three gradients where it belongs, rotates in place, and so saves the copies
    that autograd would make. With it and LinearCrossEntropy a step of 6 layers, 256 wide, context 256 and 8,192 tokens took 0.87
    of its time with torch's operators one by one."""

    @staticmethod
    def forward(ctx, heads, cos, sin):
        B, T, H, D = *heads.shape[:3], heads.size(-1) // 3
        qkv = heads.view(B, T, H, 3, D).permute(3, 0, 2, 1, 4).contiguous()  # (3, B, H, T, D)
        matrices = rotation(cos, sin, qkv.dtype)
        q, k, v = qkv.view(3, B * H, T, D)
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
        with torch.autocast("cpu", enabled=False):  # which would do the softmax in float32; it sums in float32 in any case
            turn_(qkv[:2], matrices)
            scores = torch.baddbmm(future.expand(B * H, T, T), q, k.transpose(1, 2), alpha=1 / math.sqrt(D))
            weights = scores.softmax(dim=-1)  # (B H, T, T)
            y = weights @ v
        ctx.save_for_backward(qkv, weights, matrices)
        return y.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)

    @staticmethod
    def backward(ctx, grad):
        qkv, weights, matrices = ctx.saved_tensors
        _, B, H, T, D = qkv.shape
        q, k, v = qkv.view(3, B * H, T, D)
        grad = grad.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        d_qkv = torch.empty_like(qkv)
        dq, dk, dv = d_qkv.view(3, B * H, T, D)
        torch.bmm(weights.transpose(1, 2), grad, out=dv)
        d_scores = torch._softmax_backward_data(grad @ v.transpose(1, 2), weights, -1, weights.dtype)
        torch.bmm(d_scores, k, out=dq)
        torch.bmm(d_scores.transpose(1, 2), q, out=dk)
        d_qkv[:2] *= 1 / math.sqrt(D)
        turn_(d_qkv[:2], matrices.mT)  # a rotation's transpose turns back
        return d_qkv.permute(1, 3, 2, 0, 4).reshape(B, T, H, 3 * D), None, None


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.query_key_value = nn.Linear(config.n_embd, 3 * config.n_embd)  # rows: head 0's q, k, v, head 1's q, k, v, ...
        self.dense = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cos, sin, mask=None):
        B, T, C = x.shape
        heads = self.query_key_value(x).view(B, T, self.n_head, -1)
        # It keeps all T x T weights for backward, hence the bound; it knows neither dropout nor a mask.
        if heads.requires_grad and heads.device.type == "cpu" and mask is None and T <= 512 and not (self.dropout and self.training):
            return self.dense(CausalAttention.apply(heads, cos, sin))
        q, k, v = heads.transpose(1, 2).chunk(3, dim=-1)  # each (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None and T > 1)  # (B, H, T, D)
        return self.dense(y.transpose(1, 2).reshape(B, T, C))


def swiglu(x):
    """x (..., 2 n_inner) to (..., n_inner): one half, gated by the SiLU of the other (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    gate, x = x.chunk(2, dim=-1)
    return F.silu(gate) * x


gelu_fast = functools.partial(F.gelu, approximate="tanh")
# By Hugging Face's names, and one more.
ACTIVATIONS = {"gelu": F.gelu, "gelu_fast": gelu_fast, "gelu_new": gelu_fast, "gelu_pytorch_tanh": gelu_fast, "swiglu": swiglu}


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.dense_h_to_4h = nn.Linear(config.n_embd, config.n_read)
        self.dense_4h_to_h = nn.Linear(config.n_inner, config.n_embd)

    def forward(self, x):
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.input_layernorm = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, *attention_args):
        attended = self.drop(self.attention(self.input_layernorm(x), *attention_args))
        if self.parallel_residual:
            return x + attended + self.drop(self.mlp(self.post_attention_layernorm(x)))
        x = x + attended
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy, in nats, of the logits x weight^T against targets, a block of rows at a time.

    x (N, C), weight (V, C), targets (N) int64, of which -100 is left out. Each block's gradients are taken in forward, while its
    logits are at hand, so that no more than MAX_LOGITS logits are held at any time (the idea of Liger Kernel, Hsu et al. 2024,
    https://arxiv.org/abs/2410.10989, section 3.2). Of 16,384 tokens and a vocabulary of 8,192 that is 1/8 of the logits, which
    F.cross_entropy holds three times over, twice in float32."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        wide = torch.promote_types(dtype, torch.float32)
        kept = (targets >= 0).unsqueeze(1)
        targets = targets.clamp_min(0).unsqueeze(1)
        rows = max(MAX_LOGITS // weight.size(0), 1)
        with torch.autocast(device, enabled=False):
            x, low = x.to(dtype) * kept, weight.to(dtype)
            need = any(ctx.needs_input_grad)
            dx, dw, losses = torch.empty_like(x), None, []
            for begin in range(0, len(x), rows):
                part = slice(begin, begin + rows)
                logits = x[part] @ low.T  # (rows, V)
                # On a CPU the probabilities of training stay in bfloat16, summed in float32: half the time, and the rounding
                # of a token's loss, 0.2 % of its probability, evens out over a batch.
                probs = logits.softmax(dim=-1, dtype=dtype if need and device == "cpu" else wide)
                losses.append(-probs.gather(1, targets[part]).to(wide).clamp_min(1e-38).log())
                if need:
                    probs = probs.to(dtype)
                    probs[torch.arange(len(probs), device=x.device), targets[part, 0]] -= 1
                    torch.mm(probs, low, out=dx[part])
                    part_dw = probs.T @ x[part]
                    dw = part_dw.to(weight.dtype) if dw is None else dw.add_(part_dw)
        count = kept.sum()
        if need:
            ctx.save_for_backward(dx * kept, dw, count)
        return (torch.cat(losses) * kept).sum() / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw, count = ctx.saved_tensors
        return dx * (grad / count).to(dx.dtype), dw * (grad / count), None


class NeoX(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # True: backward computes each block anew, a third more work for less memory
        self.gpt_neox = nn.ModuleDict(
            dict(
                embed_in=nn.Embedding(config.vocab_size, config.n_embd),
                layers=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                final_layer_norm=nn.LayerNorm(config.n_embd, eps=config.norm_eps),
            )
        )
        self.drop = nn.Dropout(config.dropout)
        self.embed_out = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.embed_out.weight = self.gpt_neox.embed_in.weight
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.init_weights()

    def init_weights(self):
        """Small-init (Nguyen & Salazar 2019, https://arxiv.org/abs/1910.05895), and wang-init (Wang & Komatsuzaki 2021,
        mesh-transformer-jax) for the two projections of each block that write to the residual stream."""
        C, L = self.config.n_embd, self.config.n_layer
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
                nn.init.normal_(parameter, std=2 / L / math.sqrt(C))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=math.sqrt(2 / (5 * C)))
            else:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)

    def hidden(self, idx, mask=None):
        """idx (B, T), at positions 0 .. T - 1, to the final LayerNorm's output (B, T, C)."""
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit the context of block_size={self.config.block_size}")
        x = self.drop(self.gpt_neox.embed_in(idx))
        for layer in self.gpt_neox.layers:
            if self.checkpoint_activations and x.requires_grad:
                x = checkpoint(layer, x, self.cos[:T], self.sin[:T], use_reentrant=False)
            else:
                x = layer(x, self.cos[:T], self.sin[:T], mask)
        return self.gpt_neox.final_layer_norm(x)

    def forward(self, idx, targets=None):
        """idx (B, T) int64 to logits (B, T, V); with targets (B, T) to the mean cross-entropy in nats per token instead.

        Targets are the tokens that follow, already shifted; -100 is left out of the mean."""
        x = self.hidden(idx)
        if targets is None:
            return self.embed_out(x)
        return LinearCrossEntropy.apply(x.flatten(0, 1), self.embed_out.weight, targets.flatten())

    @torch.inference_mode()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
                 stop_ids=(), stop=None, first_ids=None, seed=None, stream=None, use_cache=True):  # fmt: skip
        """Continue each prompt; returns one list of new token ids for each.

        prompts: token id lists, of any lengths from 1. temperature 0 takes the likeliest token; top_k=0 and top_p=1 keep all.
        repetition_penalty: as in CTRL (Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1), over prompt and output.
        stop_ids: a row ends with the first such token. stop: called with a row's output so far; True ends the row.
        first_ids: for each row, the tokens of which its first must be one (see Tokenizer.heal).
        stream: called at each step with one token id per row, None for rows that have ended.

        The context window: the model sees at most block_size tokens. When they are full, the oldest half goes and the rest is
        read anew from position 0, so a token costs one step nearly always, and at least half the window is always in sight.
        A prompt longer than the window loses its beginning in the same way. In a batch the window belongs to all rows
        together: short prompts are padded on the left, unseen by attention. With and without the cache the same tokens are seen
        at every step, so both give the same output, but for rounding where two tokens are all but equally likely.

        All runs in the dtype of the model's weights (see `generation_dtype`), but for the choice of tokens, which is in float32, as is
        attention with a cache on a CPU."""
        was_training, device, block_size = self.training, self.cos.device, self.config.block_size
        if not prompts or not all(prompts):
            raise ValueError("every prompt needs at least one token")
        self.eval()
        B, width = len(prompts), max(map(len, prompts))
        tokens = torch.zeros(B, width + max_new_tokens, dtype=torch.long, device=device)
        real = torch.ones_like(tokens, dtype=torch.bool)  # False where a row is padded
        seen = torch.zeros(B, self.config.vocab_size, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) : width] = torch.tensor(prompt)
            real[row, : width - len(prompt)] = False
            seen[row, prompt] = True
        padded = not bool(real.all())
        decoder = Decoder(self, B) if use_cache else None
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        outputs, ended = [[] for _ in prompts], [False] * B
        start, cached = 0, 0  # the window's first column, and how many columns from there the cache holds
        for end in range(width, width + max_new_tokens):
            while end - start > block_size:
                start, cached = start + max(block_size // 2, 1), 0
            T = end - start - cached
            mask = None
            if padded:  # (B, 1, T, S): real columns up to one's own; padding sees itself: a softmax over nothing is NaN
                mask = real[:, None, None, start:end]
                if T > 1:
                    square = torch.ones(T, T, dtype=torch.bool, device=device)
                    mask = mask & square.tril() | torch.eye(T, dtype=torch.bool, device=device)
            read = tokens[:, end - T : end]
            logits = decoder(read, cached, mask) if use_cache else self.embed_out(self.hidden(read, mask)[:, -1])
            cached = end - start if use_cache else 0
            logits = logits.float()  # (B, V)
            if repetition_penalty != 1:
                logits = torch.where(seen, torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty), logits)
            if first_ids and end == width:
                for row, allowed in enumerate(first_ids):
                    kept = logits[row, allowed]
                    logits[row] = -math.inf
                    logits[row, allowed] = kept
            tokens[:, end] = choose(logits, temperature, top_k, top_p, generator)
            seen.scatter_(1, tokens[:, end : end + 1], True)
            step = tokens[:, end].tolist()
            for row in range(B):
                if ended[row]:
                    step[row] = None
                    continue
                outputs[row].append(step[row])
                ended[row] = step[row] in stop_ids or bool(stop and stop(outputs[row]))
            if stream:
                stream(step)
            if all(ended):
                break
        self.train(was_training)
        return outputs

    def num_params(self, embeddings=True):
        """Number of parameters; without the input table, which costs no FLOPs (a tied one serves as the head, and counts)."""
        count = sum(p.numel() for p in self.parameters())
        if not embeddings and not self.config.tie_embeddings:
            count -= self.gpt_neox.embed_in.weight.numel()
        return count

    def flops_per_token(self):
        """FLOPs of forward and backward for one token: 6 per weight used and 12 L C T for attention scores and values
        (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B; the causal half is not taken off)."""
        c = self.config
        return 6 * self.num_params(embeddings=False) + 12 * c.n_layer * c.n_embd * c.block_size

    @classmethod
    def load(cls, path):
        """The model of a run's folder, of one checkpoint file, or else of whatever `from_pretrained` knows by that name."""
        path = Path(path)
        file = path / "ckpt.pt" if path.is_dir() else path
        return cls.from_checkpoint(load_checkpoint(file)) if file.is_file() else cls.from_pretrained(path)

    @classmethod
    def from_checkpoint(cls, checkpoint):
        """The model of a dict that `load_checkpoint` gave. ValueError where its weights do not fit its own settings."""
        try:
            model = cls(NeoXConfig(**checkpoint["model_config"]))
            model.load_state_dict(checkpoint["model"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"the checkpoint does not hold a NeoX model of its own settings: {error!r}") from None
        return model

    @classmethod
    def from_pretrained(cls, name):
        """A model with the weights of a Hugging Face GPT-NeoX checkpoint: a folder, or a name on the hub such as
        `EleutherAI/pythia-70m` (`name@revision` for one of its training steps). ValueError or OSError says what is wrong."""
        folder = Path(name) if Path(name).is_dir() else download(name)
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            model = cls(config_from_hf(raw))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not a GPT-NeoX configuration: {error!r}") from None
        state = read_weights(folder)
        # Pythia's older files carry the causal mask and the rotary frequencies, which are computed here.
        state = {k: v for k, v in state.items() if not k.endswith((".attention.bias", ".masked_bias", "rotary_emb.inv_freq"))}
        if model.config.tie_embeddings:
            state.setdefault("embed_out.weight", state.get("gpt_neox.embed_in.weight"))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from None
        return model

    def save_pretrained(self, folder, eot=None, **extra):
        """Write config.json and model.safetensors as Hugging Face's GPT-NeoX has them, each moved into place when whole.

        eot: id of the end-of-text token. extra: further keys for config.json, ignored by other readers.
        With the tokenizer's files beside them, transformers' AutoModelForCausalLM and AutoTokenizer load the folder."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.state_dict().items()}
        if self.config.tie_embeddings:
            del state["embed_out.weight"]  # the same memory twice, which safetensors refuses
        (folder / "model.safetensors.tmp").write_bytes(save(state, metadata={"format": "pt"}))
        raw = config_to_hf(self.config) | {"bos_token_id": eot, "eos_token_id": eot} | extra
        (folder / "config.json.tmp").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        for file in ("model.safetensors", "config.json"):
            os.replace(folder / f"{file}.tmp", folder / file)


class Decoder:
    """A NeoX as generation runs it, with a key/value cache: the same sums in fewer, larger steps, since for one token at a time
    each call of an operator costs as much as its arithmetic. The blocks' weights are copied, so it sees no later change of them.

    The scale and shift of a LayerNorm go into the projection that reads it. The two of a parallel block then read the same
    tensor and become one, as do the two that write: a stage. Other blocks are two stages, attention and MLP."""

    def __init__(self, model, B):
        self.model, c = model, model.config
        table = model.gpt_neox.embed_in.weight
        # MKL multiplies a row by a wide matrix faster when that lies in memory input by input: 1.2 times the tokens/s.
        by_input = B == 1 and table.device.type == "cpu"
        relaid = lambda weight: weight.t().contiguous().t() if by_input else weight  # noqa: E731
        self.stages = []  # for each: whether it holds attention, whether an MLP, weight and bias in, weight and bias out
        for layer in model.gpt_neox.layers:
            attention = layer.input_layernorm, layer.attention.query_key_value, layer.attention.dense
            mlp = layer.post_attention_layernorm, layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
            for parts in [(attention, mlp)] if c.parallel_residual else [(attention,), (mlp,)]:
                weight = relaid(torch.cat([reads.weight * norm.weight for norm, reads, _ in parts]))
                bias = torch.cat([reads.bias + reads.weight @ norm.bias for norm, reads, _ in parts])
                out = torch.cat([writes.weight for _, _, writes in parts], dim=1), sum(writes.bias for _, _, writes in parts)
                self.stages.append((attention in parts, mlp in parts, weight, bias, *out))
        self.head = relaid(model.embed_out.weight)
        half = c.rotary_dim // 2
        self.sin = torch.cat((-model.sin[:, :half], model.sin[:, half:]), dim=1)  # with the sign that rotate gives the halves
        # On a CPU attention to one token in float32 takes a fifth to a quarter of its time in bfloat16.
        wide = torch.float32 if table.device.type == "cpu" else table.dtype
        self.cache = table.new_zeros(c.n_layer, 2, B, c.n_head, c.block_size, c.head_dim, dtype=torch.promote_types(wide, table.dtype))

    def __call__(self, idx, start, mask=None):
        """idx (B, T), at positions start .. start + T - 1, to the logits (B, V) after the last. T = 1 or start = 0: what stands
        before is in the cache. mask: None if all is real, else boolean, (B, 1, T, start + T), who sees whom."""
        (B, T), stop, c = idx.shape, start + idx.size(1), self.model.config
        C, dim = c.n_embd, c.rotary_dim
        cos, sin = self.model.cos[start:stop], self.sin[start:stop]
        caches = zip(self.cache[:, :, :, :, start:stop].unbind(0), *self.cache[:, :, :, :, :stop].unbind(1))
        x = self.model.gpt_neox.embed_in(idx).view(B * T, C)
        for attends, has_mlp, weight, bias, weight_out, bias_out in self.stages:
            # Biases are added apart, because oneDNN's bfloat16 product with a bias is slow: 1.07 times the tokens/s of 8 rows.
            h = F.linear(F.layer_norm(x, (C,), eps=c.norm_eps), weight).add_(bias)  # (B T, 3 C and n_read)
            parts = []
            if attends:
                qkv = h[:, : 3 * C].to(self.cache.dtype).view(B, T, c.n_head, 3, -1).permute(3, 0, 2, 1, 4)  # (3, B, H, T, D)
                turned = qkv[:2, ..., :dim]  # queries and keys in place; `rotate` with half the operators
                swapped = turned.roll(dim // 2, dims=-1)
                turned.mul_(cos).addcmul_(swapped, sin)
                new, k, v = next(caches)
                new.copy_(qkv[1:])
                y = F.scaled_dot_product_attention(qkv[0], k, v, mask, is_causal=mask is None and T > 1)
                parts.append(y.transpose(1, 2).reshape(B * T, C).to(x.dtype))
            if has_mlp:
                parts.append(ACTIVATIONS[c.activation](h[:, -c.n_read :]))
            x = x + F.linear(torch.cat(parts, dim=1), weight_out).add_(bias_out)
        x = self.model.gpt_neox.final_layer_norm(x.view(B, T, C)[:, -1])
        return F.linear(x, self.head)


def choose(logits, temperature, top_k, top_p, generator):
    """One token id for each row of logits (B, V), float32: top-k first, then top-p (Holtzman et al. 2019, nucleus sampling)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, V = (logits / temperature).softmax(dim=-1), logits.size(-1)
    k = top_k if 0 < top_k < V else V
    if k == V and top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    likeliest, ids = probabilities.topk(min(k, 512))  # sorting the whole vocabulary takes as long as the network
    if k > 512 and (k < V or (likeliest.sum(dim=-1) < top_p).any()):
        likeliest, ids = probabilities.topk(k)
    if k < V:
        likeliest = likeliest / likeliest.sum(dim=-1, keepdim=True)
    surplus = likeliest.cumsum(dim=-1) - likeliest >= top_p  # the likeliest token always stays
    return ids.gather(1, torch.multinomial(likeliest.masked_fill(surplus, 0), 1, generator=generator))[:, 0]


def native_dtype(device):
    """The dtype of the fastest matrix products: bfloat16 where it is native, float16 on older GPUs, else float32."""
    if device == "cuda":
        # not torch.cuda.is_bf16_supported(), which says yes to a T4, where emulation makes bfloat16 4 times slower than float16
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    native = device == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if native else torch.float32


def generation_dtype(device, rows):
    """The dtype in which so many rows are generated fastest. One row on a CPU gains nothing from bfloat16: oneDNN rearranges
    the weights at every call, which took longer than reading twice the bytes."""
    return torch.float32 if device == "cpu" and rows == 1 else native_dtype(device)


def matmul_peak(device, dtype):
    """FLOP/s that this machine reaches in one large matrix product of that dtype: what MFU is a share of. Takes about 0.2 s."""
    n, times = 8192 if device == "cuda" else 2048, []
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # reading a value waits for the device
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def load_checkpoint(path):
    """The dict that train.py saved: plain values and tensors, nothing in it is run. ValueError if it is not whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes check sums, but does not read them
        if damaged:
            raise EOFError(f"{damaged} in it is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint, it may be cut short: {str(error).splitlines()[0]}") from None


def config_to_hf(c):
    """NeoXConfig as the dict that Hugging Face calls config.json; the rotary keys in the form that every version reads.
    ValueError for what its GPT-NeoX cannot represent."""
    if c.activation == "swiglu":
        raise ValueError("Hugging Face's GPT-NeoX has no swiglu; a run's ckpt.pt holds the model")
    return {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size, "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
        "hidden_size": c.n_embd, "intermediate_size": c.n_inner, "rotary_pct": c.rotary_pct, "rotary_emb_base": c.rotary_base,
        "use_parallel_residual": c.parallel_residual, "tie_word_embeddings": c.tie_embeddings, "hidden_act": c.activation,
        "hidden_dropout": c.dropout, "attention_dropout": c.dropout, "layer_norm_eps": c.norm_eps, "attention_bias": True,
        "torch_dtype": "float32",
    }  # fmt: skip


def config_from_hf(raw):
    """The other way round. ValueError for what this model cannot represent."""
    rope = raw.get("rope_parameters") or {}  # transformers 5; before it, rotary_pct and rotary_emb_base stood on their own
    if raw.get("model_type") != "gpt_neox":
        raise ValueError(f"config.json describes a {raw.get('model_type')!r} model, not gpt_neox")
    if raw.get("rope_scaling") or rope.get("rope_type", "default") != "default" or not raw.get("attention_bias", True):
        raise ValueError("a GPT-NeoX with scaled rotary positions or without attention biases is not supported")
    return NeoXConfig(
        vocab_size=raw["vocab_size"], block_size=raw["max_position_embeddings"], n_layer=raw["num_hidden_layers"],
        n_head=raw["num_attention_heads"], n_embd=raw["hidden_size"], n_inner=raw["intermediate_size"],
        rotary_pct=rope.get("partial_rotary_factor", raw.get("rotary_pct", 0.25)),
        rotary_base=rope.get("rope_theta", raw.get("rotary_emb_base", 10000)),
        parallel_residual=raw.get("use_parallel_residual", True), tie_embeddings=raw.get("tie_word_embeddings", False),
        dropout=raw.get("hidden_dropout", 0.0), activation=raw.get("hidden_act", "gelu"), norm_eps=raw.get("layer_norm_eps", 1e-5),
    )  # fmt: skip


def read_weights(folder):
    """All tensors of a checkpoint folder, whole or in shards; .bin files are read without running anything in them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    safe, pickled = sorted(folder.glob("model*.safetensors")), sorted(folder.glob("pytorch_model*.bin"))
    if not safe and not pickled:
        raise ValueError(f"{folder} holds no model.safetensors and no pytorch_model.bin")
    state = {}
    try:
        for file in safe or pickled:
            part = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
            # transformers 5 calls the head lm_head in memory, but files on disk have always said embed_out.
            state |= {"embed_out.weight" if k == "lm_head.weight" else k: v for k, v in part.items()}
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} cannot be read, it may be cut short: {error}") from None
    return state


def download(name):
    """The folder in the local cache to which a model of the Hugging Face hub was downloaded, tokenizer included."""
    from huggingface_hub import snapshot_download

    repo, _, revision = str(name).partition("@")
    try:
        files = ["config.json", "*.safetensors", "tokenizer*"]
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=files))
        if not list(folder.glob("*.safetensors")):  # some of Pythia's earlier steps have the older format alone
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=["pytorch_model*.bin"]))
        return folder
    except Exception as error:
        raise ValueError(f"{name} is neither a folder here nor a model that the hub gave: {type(error).__name__}: {error}") from None

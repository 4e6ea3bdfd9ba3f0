"""GPT-NeoX in one file: configuration, rotary positions, attention, MLP, block, network.

What it is (Black et al. 2022, https://arxiv.org/abs/2204.06745; the same shape as Pythia):
- attention and MLP read the same residual stream and are added together (`parallel_residual`;
  False gives GPT-2's order)
- rotary position embeddings on the first `rotary_pct` of every head, no learned positions
- one fused projection for queries, keys and values, laid out head by head
- LayerNorm with bias, biases in every projection, an output head of its own (`tie_embeddings`
  shares the input table instead)
- small-init for what reads the residual stream, wang-init for what writes to it

Three switches make other families of the same block (parts/hf.py loads and saves all of them):
- GPT-2 (Radford et al. 2019): `learned_positions` in place of rotary ones (rotary_pct=0), attention
  and MLP one after the other, a tied head
- Phi (Gunasekar et al. 2023, https://arxiv.org/abs/2306.11644): `shared_norm`, one LayerNorm that
  attention and MLP both read, and `head_bias`

And one that no other family has, for small models: `n_mix`, which mixes each position with the
ones just before it (Mix). It helps most early in training.

Everything here is the plain form: change it. The faster forms of the same sums (parts/fast.py for
training, parts/generate.py for sampling) check themselves against this file when they are switched
on, and step aside where they differ.

Modules carry the names of Hugging Face's `GPTNeoXForCausalLM`, so a state_dict fits both ways.
Shapes in comments: B batch, T tokens, C = n_embd, H heads, D = C / H, V vocabulary, N = B T.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class NeoXConfig:
    vocab_size: int = 50304
    block_size: int = 2048  # context length, in tokens
    n_layer: int = 6
    n_head: int = 8
    n_embd: int = 512
    n_inner: int = 0  # width of the MLP; 0: 4 n_embd, with swiglu 2/3 of that (as many parameters)
    rotary_pct: float = 0.25  # share of each head's dimensions that is rotated
    rotary_base: float = 10000.0
    learned_positions: bool = False  # a vector for each position, added to the input (GPT-2)
    parallel_residual: bool = True
    shared_norm: bool = False  # attention and MLP read the same LayerNorm (Phi)
    tie_embeddings: bool = False
    head_bias: bool = False  # of the output head (Phi)
    n_mix: int = 0  # how many positions just before each one are mixed into it; 0: GPT-NeoX
    dropout: float = 0.0
    activation: str = "gelu"  # a name in ACTIVATIONS
    norm_eps: float = 1e-5

    def __post_init__(self):
        wide = max(self.n_embd // 3, 1) * 8 if self.activation == "swiglu" else 4 * self.n_embd
        self.n_inner = self.n_inner or wide
        sizes = (self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd)
        if min(sizes) < 1 or max(*sizes, self.n_inner) > 2**24:
            raise ValueError(
                "vocab_size, block_size, n_layer, n_head and n_embd must each be 1 or more, and at "
                f"most {2**24:,}"
            )
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")
        if not 0 <= self.rotary_pct <= 1 or self.rotary_dim % 2:
            raise ValueError(
                f"rotary_pct={self.rotary_pct} of the {self.head_dim} dimensions of a head must be "
                "an even number of dimensions"
            )
        if self.shared_norm and not self.parallel_residual:
            raise ValueError("shared_norm needs parallel_residual: there is one LayerNorm a block")
        if not 0 <= self.n_mix <= 64 or self.n_mix and not self.shared_norm:
            raise ValueError(
                f"n_mix={self.n_mix} must be from 0 to 64, and needs shared_norm: attention and "
                "MLP both read what is mixed"
            )
        if not 1 <= self.rotary_base <= 1e30:
            raise ValueError(f"rotary_base={self.rotary_base} must be from 1 to 1e30")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}"
            )

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
    """cos and sin, each (block_size, rotary_dim), float32.

    Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34."""
    dim = config.rotary_dim
    frequency = 1.0 / config.rotary_base ** (torch.arange(0, dim, 2).float() / max(dim, 1))
    angle = torch.outer(torch.arange(config.block_size).float(), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotate the first rotary_dim dimensions of x (B, H, T, D) by position. In NeoX the two halves
    of those dimensions make the pairs."""
    dim = cos.size(-1)
    turned, passed = x[..., :dim], x[..., dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned.type_as(x), passed), dim=-1)


class Mix(nn.Module):
    """Adds to each position the n_mix ones just before it, channel by channel: y_t = x_t +
    w_1 x_(t-1) + w_2 x_(t-2) ..., where every w starts at zero.

    A causal depthwise convolution, as in So et al. 2021 (https://arxiv.org/abs/2109.08668, section
    3) and in the "Canon layers" of Allen-Zhu 2025 (https://arxiv.org/abs/2512.17351)."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_mix, config.n_embd))

    def forward(self, x, mask=None):
        """x (B, T, C) to (B, T, C). mask: as in Attention; what a position may not look at is not
        mixed into it."""
        y, T = x, x.size(1)
        for back, weight in enumerate(self.weight[: T - 1], 1):
            before = x[:, :-back] * weight.to(x.dtype)
            if mask is not None:
                before = before * mask[:, 0].diagonal(-back, 1, 2).unsqueeze(2)
            y = y + F.pad(before, (0, 0, back, 0))
        return y


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        # Its rows: head 0's q, k, v, then head 1's q, k, v, ...
        self.query_key_value = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.dense = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cos, sin, mask=None):
        """x (B, T, C) to (B, T, C). mask: None is causal, else boolean, (B, 1, T, T), True where a
        query may look at a key."""
        B, T, C = x.shape
        heads = self.query_key_value(x).view(B, T, self.n_head, -1)  # (B, T, H, 3 D)
        q, k, v = heads.transpose(1, 2).chunk(3, dim=-1)  # each (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        return self.dense(y.transpose(1, 2).reshape(B, T, C))


def swiglu(x):
    """x (..., 2 n_inner) to (..., n_inner): one half, gated by the SiLU of the other.

    Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    gate, x = x.chunk(2, dim=-1)
    return F.silu(gate) * x


gelu_fast = functools.partial(F.gelu, approximate="tanh")  # the form of GPT-NeoX-20B
ACTIVATIONS = {  # by the names of Hugging Face, which has no swiglu
    "gelu": F.gelu,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_fast,
    "gelu_pytorch_tanh": gelu_fast,
    "swiglu": swiglu,
}


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
        self.parallel_residual, self.shared_norm = config.parallel_residual, config.shared_norm
        self.n_mix = config.n_mix
        self.input_layernorm = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        if not self.shared_norm:
            self.post_attention_layernorm = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        if self.n_mix:
            self.mix = Mix(config)
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, cos, sin, mask=None):
        normed = self.input_layernorm(x)
        if self.n_mix:
            normed = self.mix(normed, mask)
        attended = self.drop(self.attention(normed, cos, sin, mask))
        if not self.parallel_residual:
            x = x + attended
            return x + self.drop(self.mlp(self.post_attention_layernorm(x)))
        if not self.shared_norm:
            normed = self.post_attention_layernorm(x)
        return x + attended + self.drop(self.mlp(normed))


def token_losses(logits, targets):
    """Cross-entropy of each token in nats: logits (N, V) and targets (N) int64 to (N), float32 or
    wider, 0 where the target is -100. Every loss in the repository is made of these."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="none")


class NeoX(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # True: a third more work in backward, for less memory
        self.gpt_neox = nn.ModuleDict(
            dict(
                embed_in=nn.Embedding(config.vocab_size, config.n_embd),
                layers=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                final_layer_norm=nn.LayerNorm(config.n_embd, eps=config.norm_eps),
            )
        )
        if config.learned_positions:
            self.gpt_neox.embed_pos = nn.Embedding(config.block_size, config.n_embd)
        if config.n_mix:
            self.gpt_neox.mix = Mix(config)
        self.drop = nn.Dropout(config.dropout)
        self.embed_out = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.embed_out.weight = self.gpt_neox.embed_in.weight
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.init_weights()

    def init_weights(self):
        """Small-init (Nguyen & Salazar 2019, https://arxiv.org/abs/1910.05895), and wang-init
        (Wang & Komatsuzaki 2021, mesh-transformer-jax) for the two projections of each block that
        write to the residual stream. A module that is not named here keeps the initial values that
        it gave itself, and so do the LayerNorms."""
        C, L = self.config.n_embd, self.config.n_layer
        reads = ("embed_in", "embed_pos", "query_key_value", "dense_h_to_4h", "embed_out")
        for name, module in self.named_modules():
            if name.endswith(("attention.dense", "dense_4h_to_h")):
                nn.init.normal_(module.weight, std=2 / L / math.sqrt(C))
            elif name.endswith(reads):
                if name != "embed_out" or not self.config.tie_embeddings:
                    nn.init.normal_(module.weight, std=math.sqrt(2 / (5 * C)))
            else:
                continue
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, idx, mask=None):
        """idx (B, T), at positions 0 .. T - 1, to the final LayerNorm's output (B, T, C).

        mask: as in Attention; a learned position then counts the tokens before it that a token may
        look at, so that a row that is padded on the left begins at 0. ValueError where T is more
        than block_size."""
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit into block_size={self.config.block_size}")
        cos, sin = self.cos[:T], self.sin[:T]
        x = self.gpt_neox.embed_in(idx)
        if self.config.learned_positions:
            place = torch.arange(T, device=idx.device) if mask is None else mask[:, 0].sum(-1) - 1
            x = x + self.gpt_neox.embed_pos(place)
        if self.config.n_mix:
            x = self.gpt_neox.mix(x, mask)
        x = self.drop(x)
        for layer in self.gpt_neox.layers:
            if self.checkpoint_activations and x.requires_grad:
                x = checkpoint(layer, x, cos, sin, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask)
        return self.gpt_neox.final_layer_norm(x)

    def logits(self, x):
        """The output head: hidden states (..., C) to logits (..., V). Training, evaluation and
        generation all use this one."""
        return self.embed_out(x)

    def loss(self, x, targets):
        """Mean loss in nats of hidden states x (N, C) against targets (N), where -100 is left out
        of the mean."""
        return token_losses(self.logits(x), targets).sum() / (targets >= 0).sum().clamp_min(1)

    def forward(self, idx, targets=None, mask=None):
        """idx (B, T) int64 to logits (B, T, V), or with targets (B, T), already shifted, to the
        mean loss in nats per token. mask: as in Attention."""
        x = self.hidden(idx, mask)
        if targets is None:
            return self.logits(x)
        return self.loss(x.flatten(0, 1), targets.flatten())

    def num_params(self, embeddings=True):
        """Number of parameters; without the input tables, which cost no FLOPs (a tied one is the
        output head too, and counts)."""
        count = sum(p.numel() for p in self.parameters())
        if not embeddings and not self.config.tie_embeddings:
            count -= self.gpt_neox.embed_in.weight.numel()
        if not embeddings and self.config.learned_positions:
            count -= self.gpt_neox.embed_pos.weight.numel()
        return count

    def flops_per_token(self):
        """FLOPs of forward and backward for one token: 6 per weight used, and 12 L C T for the
        attention scores and values. Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311,
        appendix B; the causal half is not subtracted."""
        c = self.config
        return 6 * self.num_params(embeddings=False) + 12 * c.n_layer * c.n_embd * c.block_size

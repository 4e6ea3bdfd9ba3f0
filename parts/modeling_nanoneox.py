"""A nanoNeoX model with n_mix for Hugging Face's transformers, from version 4.57.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

No family of transformers mixes each position with the ones just before it, so parts/hf.py puts this
file beside the weights of such a model. It is GPT-NeoX with one LayerNorm a block, and `Mix` after
that LayerNorm and after the embedding; model.py has the same network in plain PyTorch.

It needs nothing but torch and transformers. Shapes: B batch, T tokens, S tokens with those before
them that a cache holds, C = hidden_size.
"""

import inspect

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import DynamicCache, GPTNeoXConfig
from transformers.cache_utils import DynamicLayer
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXForCausalLM,
    GPTNeoXLayer,
    GPTNeoXModel,
    GPTNeoXPreTrainedModel,
)

# What became different between versions of transformers.
NAMES = inspect.signature(GPTNeoXModel.forward).parameters
CACHE = "cache" if "cache" in NAMES else "past_key_values"
TUPLES = "output_attentions" in inspect.signature(GPTNeoXLayer.forward).parameters


class NanoNeoXConfig(GPTNeoXConfig):
    model_type = "nanoneox"
    n_mix: int = 0  # how many positions just before each one are mixed into it
    head_bias: bool = False


class Mix(nn.Module):
    """y_t = x_t + w_1 x_(t-1) + w_2 x_(t-2) ..., channel by channel.

    What it still needs of earlier tokens is one more layer of the cache: all x as keys, and values
    of width 0. So whatever reorders, cuts or repeats a cache does it to that too."""

    def __init__(self, config, place):
        """place: the number of that layer."""
        super().__init__()
        self.place = place
        self.weight = nn.Parameter(torch.zeros(config.n_mix, config.hidden_size))

    def forward(self, x, cache=None, real=None):
        """x (B, T, C) to (B, T, C). real (B, T, 1): False for padding, which is mixed into
        nothing."""
        n, T = len(self.weight), x.size(1)
        before = x if real is None else x * real
        if cache is not None:
            kept = before.unsqueeze(1)
            before = cache.update(kept, kept[..., :0], self.place)[0][:, 0]  # (B, S, C)
        before = F.pad(before[:, -T - n :], (0, 0, n, 0))
        y, S = x, before.size(1)
        for back, weight in enumerate(self.weight, 1):
            y = y + before[:, S - T - back : S - back] * weight.to(x.dtype)
        return y


class NanoNeoXLayer(GPTNeoXLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        del self.post_attention_layernorm  # attention and MLP read the same LayerNorm
        self.mix = Mix(config, config.num_hidden_layers + layer_idx)

    def forward(self, hidden_states, attention_mask=None, layer_past=None, real=None, **kwargs):
        normed = self.mix(self.input_layernorm(hidden_states), layer_past, real)
        attended, weights = self.attention(
            normed, attention_mask=attention_mask, layer_past=layer_past, **kwargs
        )
        found = self.post_attention_dropout(attended) + self.post_mlp_dropout(self.mlp(normed))
        hidden_states = hidden_states + found
        if not TUPLES:
            return hidden_states
        return (hidden_states, weights) if kwargs.get("output_attentions") else (hidden_states,)


class NanoNeoXModel(GPTNeoXModel):
    config_class = NanoNeoXConfig
    _no_split_modules = ["NanoNeoXLayer"]

    def __init__(self, config):
        super().__init__(config)
        L = config.num_hidden_layers
        self.layers = nn.ModuleList(NanoNeoXLayer(config, number) for number in range(L))
        self.mix = Mix(config, 2 * L)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        """As GPTNeoXModel's. ValueError for what would be mixed with other positions than in
        training: texts packed into one row, holes in a row, and caches that cannot hold what is
        mixed."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_in(input_ids) if inputs_embeds is None else inputs_embeds
        cache = kwargs.pop("cache", kwargs.pop("past_key_values", None))
        use_cache = self.config.use_cache if use_cache is None else use_cache
        checkpointing = self.gradient_checkpointing and self.training
        if checkpointing and cache is not None:
            raise ValueError("with gradient checkpointing there is no cache: say use_cache=False")
        if cache is None and use_cache and not checkpointing:
            cache = DynamicCache()
        if cache is not None:
            make_room(cache, 2 * self.config.num_hidden_layers + 1)
        real = real_tokens(attention_mask, position_ids, x.size(1))
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=self.mix(x, cache, real),
            use_cache=use_cache,
            real=real,
            **{CACHE: cache},
            **kwargs,
        )


def real_tokens(attention_mask, position_ids, T):
    """Which of the newest T tokens are no padding: (B, T, 1), or None for all. ValueError where the
    positions of a row do not follow each other."""
    if attention_mask is None:
        if position_ids is not None and (position_ids.diff(dim=-1) != 1).any():
            raise ValueError(
                "a model with n_mix reads one text a row: position_ids must go up by 1"
            )
        return None
    if attention_mask.dim() != 2:
        raise ValueError("a model with n_mix takes an attention_mask of shape (batch, tokens) only")
    mask = attention_mask.bool()
    begins = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    if (begins > 1).any():
        raise ValueError("a model with n_mix takes padding at the ends of a row, not inside a text")
    return mask[:, -T:, None]


def make_room(cache, count):
    """Gives a DynamicCache the layers in which every Mix keeps what it has read."""
    if any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [None])):
        raise ValueError(
            "a model with n_mix keeps what it mixes in a DynamicCache only: leave "
            "cache_implementation away, or say use_cache=False"
        )
    cache.layers += [DynamicLayer() for _ in range(count - len(cache.layers))]


class NanoNeoXForCausalLM(GPTNeoXForCausalLM):
    config_class = NanoNeoXConfig
    _no_split_modules = ["NanoNeoXLayer"]
    _can_compile_fullgraph = False  # that is for static caches
    _tied_weights_keys = {"embed_out.weight": "gpt_neox.embed_in.weight"}

    def __init__(self, config):
        GPTNeoXPreTrainedModel.__init__(self, config)
        self.gpt_neox = NanoNeoXModel(config)
        self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    @property
    def lm_head(self):
        """What newer versions of GPTNeoXForCausalLM call the head, for its forward."""
        return self.embed_out

    def get_output_embeddings(self):
        return self.embed_out

    def set_output_embeddings(self, new):
        self.embed_out = new

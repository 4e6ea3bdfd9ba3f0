"""Hugging Face's GPT-NeoX, GPT-2 and Phi: their weights and configurations in and out.

Each family is one entry of FAMILIES: which keys of config.json say what, and what their file calls
each module of model.py. A model with n_mix, which none of them has, is exported with a class of our
own beside it, parts/modeling_nanoneox.py. What reads a folder never runs such a file."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Interval
from typing_extensions import NotRequired, TypedDict

from model import ACTIVATIONS, NeoX, NeoXConfig
from parts import configurator, memory
from parts.checkpoints import checksum, load_tensors
from parts.files import check_shape, load_json, write_json, write_text, write_whole
from parts.generate import decoder_agrees

MODELING = Path(__file__).with_name("modeling_nanoneox.py")
Size = Annotated[int, Interval(ge=1, le=2**24)]
Share = Annotated[float, Interval(ge=0, le=1)]
Base = Annotated[float, Interval(ge=1, le=1e30)]


Epsilon = Annotated[float, Interval(ge=1e-12, le=1)]
Layers = Annotated[int, Interval(ge=1, le=10_000)]


class Rope(TypedDict):
    """Where transformers 5 has the rotary settings."""

    rope_type: NotRequired[str]
    rope_theta: NotRequired[Base]
    partial_rotary_factor: NotRequired[Share]


class Rotary(TypedDict):
    """What config.json of a GPT-NeoX or a Phi says, as far as we read it."""

    vocab_size: Size
    max_position_embeddings: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    hidden_size: Size
    intermediate_size: Size
    rope_parameters: NotRequired[Rope | None]
    rope_scaling: NotRequired[dict | None]
    tie_word_embeddings: NotRequired[bool]
    hidden_act: NotRequired[str]
    layer_norm_eps: NotRequired[Epsilon]


class NeoXKeys(Rotary):
    rotary_pct: NotRequired[Share]
    rotary_emb_base: NotRequired[Base]
    attention_bias: NotRequired[bool]
    use_parallel_residual: NotRequired[bool]
    hidden_dropout: NotRequired[Share]


class MixKeys(NeoXKeys):
    n_mix: Annotated[int, Interval(ge=1, le=64)]
    head_bias: NotRequired[bool]


class PhiKeys(Rotary):
    partial_rotary_factor: NotRequired[Share]
    rope_theta: NotRequired[Base]
    num_key_value_heads: NotRequired[Size | None]
    qk_layernorm: NotRequired[bool]
    resid_pdrop: NotRequired[Share]


class GPT2Keys(TypedDict):
    vocab_size: Size
    n_positions: Size
    n_layer: Layers
    n_head: Size
    n_embd: Size
    n_inner: NotRequired[Size | None]
    activation_function: NotRequired[str]
    layer_norm_epsilon: NotRequired[Epsilon]
    resid_pdrop: NotRequired[Share]
    tie_word_embeddings: NotRequired[bool]
    scale_attn_weights: NotRequired[bool]
    scale_attn_by_inverse_layer_idx: NotRequired[bool]
    add_cross_attention: NotRequired[bool]


def find(name: str | Path) -> Path:
    """What a person means by the name of a model: a file or folder here, or the folder to which the
    model of that name on the hub is downloaded, such as `EleutherAI/pythia-70m` (`name@revision`
    for one of its training steps). ValueError where there is neither.

    Only a name with one slash that begins like none of our folders is looked for on the hub."""
    path, name = configurator.locate(name), str(name)
    if os.path.exists(path):
        return path
    if re.fullmatch(r"(?!out/|data/)\w[\w.-]*/\w[\w.-]*(?<!\.pt)(@[\w.-]+)?", name):
        return download(name)
    out = configurator.ROOT / "out"
    runs = ", ".join(f"out/{run.parent.name}" for run in sorted(out.glob("*/ckpt.pt")))
    raise ValueError(
        f"there is no checkpoint {name}; runs here: {runs or 'none'}; "
        "python train.py config/python_cpu.py makes one"
    )


def from_pretrained(name: str | Path) -> NeoX:
    """A model with the weights of a Hugging Face GPT-NeoX, GPT-2 or Phi checkpoint, or of one of
    ours with n_mix: what `find` finds by that name.

    ValueError or OSError says what is wrong."""
    folder = find(name)
    file = folder / "config.json"
    raw = load_json(file)
    model = memory.new_model(config_from_hf(raw, file))
    try:
        model.load_state_dict(state_from_hf(read_weights(folder), raw["model_type"], model.config))
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from None
    with torch.no_grad():  # weights that are not finite, or so large that nothing behind them is
        tried = [*model.parameters(), model(torch.zeros(1, 1, dtype=torch.long))]
    if not all(bool(tensor.isfinite().all()) for tensor in tried):
        raise ValueError(f"the weights in {folder} are damaged: not all numbers are finite")
    return model


def save_pretrained(
    model: NeoX, folder: str | Path, eot: int | None = None, special: Iterable[int] = (), **extra
):
    """Write config.json and model.safetensors as Hugging Face's GPT-NeoX, GPT-2 or Phi has them,
    each moved into place when whole: the family that computes exactly what the model does. With the
    tokenizer's files beside them, transformers' AutoModelForCausalLM and AutoTokenizer load the
    folder; a model with n_mix also needs the class that is put there, and trust_remote_code=True.

    eot: id of the end-of-text token. special: ids of all special tokens; in transformers too, a
    completion ends with the first of them. extra: further keys for config.json, which other
    readers ignore. ValueError says why no family has such a model."""
    from safetensors.torch import save

    try:
        raw = config_to_hf(model.config) | {"bos_token_id": eot, "eos_token_id": eot} | extra
    except AttributeError as error:  # a setting that was removed
        raise ValueError(f"model.py was edited: {error}") from None
    refuse_what_was_changed(model, raw["model_type"])
    state = state_to_hf(model.state_dict(), raw["model_type"], model.config)
    # safetensors refuses the same memory twice, as of blocks that share weights.
    places = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    state = {
        k: v.clone() if places.count(v.untyped_storage().data_ptr()) > 1 else v
        for k, v in state.items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sealed = {"format": "pt", "checksum": checksum(dict(sorted(state.items())))}
    data = save(state, metadata=sealed)
    write_whole(folder / "model.safetensors", lambda temporary: temporary.write_bytes(data))
    if "auto_map" in raw:
        copy_class(folder / MODELING.name)
    write_json(folder / "config.json", raw)
    if eot is not None:
        ends = sorted({eot, *special})
        ends = ends if len(ends) > 1 else eot
        roles = {"bos_token_id": eot, "eos_token_id": ends, "pad_token_id": eot}
        write_json(folder / "generation_config.json", roles)


def copy_class(file: Path):
    """Put the class of a model with n_mix beside its weights, unless another one lies there."""
    ours = MODELING.read_text(encoding="utf-8")
    if not file.exists():
        write_text(file, ours)
    elif file.read_bytes() != ours.encode():
        say = f"{file} was changed or is of another version, and stays; remove it for ours"
        configurator.say(say)


def refuse_what_was_changed(model: NeoX, kind: str):
    """ValueError where model.py was edited so that it is no longer Hugging Face's, or the one that
    modeling_nanoneox.py has."""
    theirs = f"Hugging Face's {FAMILIES[kind].name}"
    theirs = f"parts/{MODELING.name}" if kind == "nanoneox" else theirs
    keys, known = set(model.state_dict()), set(weight_names(kind, model.config))
    if newcomers := sorted(keys - known):
        raise ValueError(f"{theirs} has no {', '.join(newcomers[:5])}")
    if missing := sorted(known - keys):
        raise ValueError(f"{theirs} also needs {', '.join(missing[:5])}")
    try:
        same = decoder_agrees(model) and computes_the_same(model)
    except (RuntimeError, AttributeError, TypeError):  # what was changed does not even fit
        same = False
    if not same:
        raise ValueError(f"model.py was edited, and {theirs} is another network")


def computes_the_same(model: NeoX) -> bool:
    """Whether activation and rotary tables, which the decoder takes from the model, are those that
    Hugging Face's families have."""
    c = model.config
    x = torch.linspace(-20, 20, 400)
    gelu = F.gelu(x, approximate="none" if c.activation == "gelu" else "tanh")
    position = torch.arange(c.block_size)[:, None]
    pair = torch.arange(c.rotary_dim) % max(c.rotary_dim // 2, 1)
    angle = position * c.rotary_base ** (-2 * pair / max(c.rotary_dim, 1))
    return (
        torch.allclose(ACTIVATIONS[c.activation](x), gelu, atol=1e-5)
        and torch.allclose(model.cos.cpu().float(), angle.cos(), atol=1e-2)
        and torch.allclose(model.sin.cpu().float(), angle.sin(), atol=1e-2)
    )


# --- the families ---------------------------------------------------------------------------------


class Family(NamedTuple):
    name: str
    keys: type  # what config.json must hold
    read: Callable[[dict], dict]  # config.json to NeoXConfig's arguments; ValueError if it cannot
    write: Callable[[NeoXConfig], dict]  # the inverse
    lacks: Callable[[NeoXConfig], str]  # what of a model the family does not have; "": nothing
    modules: dict[str, str]  # a module's name here and in their files; {} stands for a block
    transposed: bool = False  # matrices as (in, out), GPT-2's Conv1D
    by_head: bool = False  # the rows of q, k, v head by head, as ours; else all q, all k, all v


def read_rotary(raw: dict, share: float, base: float) -> dict:
    """What GPT-NeoX and Phi have in common; share and base are those of older files."""
    rope = raw.get("rope_parameters") or {}
    if raw.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise ValueError("a model with scaled rotary positions is not supported")
    return dict(
        vocab_size=raw["vocab_size"],
        block_size=raw["max_position_embeddings"],
        n_layer=raw["num_hidden_layers"],
        n_head=raw["num_attention_heads"],
        n_embd=raw["hidden_size"],
        n_inner=raw["intermediate_size"],
        rotary_pct=rope.get("partial_rotary_factor", share),
        rotary_base=rope.get("rope_theta", base),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        norm_eps=raw.get("layer_norm_eps", 1e-5),
    )


def write_rotary(c: NeoXConfig) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "hidden_size": c.n_embd,
        "intermediate_size": c.n_inner,
        "tie_word_embeddings": c.tie_embeddings,
        "hidden_act": c.activation,
        "attention_dropout": c.dropout,
        "layer_norm_eps": c.norm_eps,
    }


def read_neox(raw: dict) -> dict:
    if not raw.get("attention_bias", True):
        raise ValueError("a GPT-NeoX without attention biases is not supported")
    common = read_rotary(raw, raw.get("rotary_pct", 0.25), raw.get("rotary_emb_base", 10000))
    return common | dict(
        parallel_residual=raw.get("use_parallel_residual", True),
        dropout=raw.get("hidden_dropout", 0.0),
        activation=raw.get("hidden_act", "gelu"),
    )


def write_neox(c: NeoXConfig) -> dict:
    # The rotary keys in the form that every version of transformers reads.
    return write_rotary(c) | {
        "rotary_pct": c.rotary_pct,
        "rotary_emb_base": c.rotary_base,
        "use_parallel_residual": c.parallel_residual,
        "hidden_dropout": c.dropout,
        "attention_bias": True,
    }


def neox_lacks(c: NeoXConfig) -> str:
    switches = ("learned_positions", "shared_norm", "head_bias", "n_mix")
    return ", ".join(name for name in switches if getattr(c, name))


def read_mix(raw: dict) -> dict:
    if not raw.get("use_parallel_residual", True):
        raise ValueError("a nanoNeoX without parallel residual is not supported")
    mixing = dict(shared_norm=True, n_mix=raw["n_mix"], head_bias=raw.get("head_bias", False))
    return read_neox(raw) | mixing


def write_mix(c: NeoXConfig) -> dict:
    classes = {"AutoConfig": "NanoNeoXConfig", "AutoModelForCausalLM": "NanoNeoXForCausalLM"}
    return write_neox(c) | {
        "n_mix": c.n_mix,
        "head_bias": c.head_bias,
        "auto_map": {auto: f"{MODELING.stem}.{name}" for auto, name in classes.items()},
    }


def mix_lacks(c: NeoXConfig) -> str:
    missing = ["model without n_mix"] * (not c.n_mix)
    return ", ".join(["learned_positions"] * c.learned_positions + missing)


def read_phi(raw: dict) -> dict:
    if raw.get("qk_layernorm"):
        raise ValueError("a Phi with qk_layernorm is not supported")
    heads = raw["num_attention_heads"]
    if raw.get("num_key_value_heads") not in (None, heads):
        raise ValueError("a Phi with fewer key and value heads than heads is not supported")
    common = read_rotary(raw, raw.get("partial_rotary_factor", 0.5), raw.get("rope_theta", 10000))
    return common | dict(
        shared_norm=True,
        head_bias=True,
        dropout=raw.get("resid_pdrop", 0.0),
        activation=raw.get("hidden_act", "gelu_new"),
    )


def write_phi(c: NeoXConfig) -> dict:
    return write_rotary(c) | {
        "partial_rotary_factor": c.rotary_pct,
        "rope_theta": c.rotary_base,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "qk_layernorm": False,
    }


def phi_lacks(c: NeoXConfig) -> str:
    missing = [f"model without {k}" for k in ("shared_norm", "head_bias") if not getattr(c, k)]
    unknown = [name for name in ("learned_positions", "n_mix") if getattr(c, name)]
    return ", ".join(unknown + missing)


def read_gpt2(raw: dict) -> dict:
    other = raw.get("scale_attn_by_inverse_layer_idx") or raw.get("add_cross_attention")
    if other or not raw.get("scale_attn_weights", True):
        raise ValueError("a GPT-2 with other attention than GPT-2's own is not supported")
    return dict(
        vocab_size=raw["vocab_size"],
        block_size=raw["n_positions"],
        n_layer=raw["n_layer"],
        n_head=raw["n_head"],
        n_embd=raw["n_embd"],
        n_inner=raw.get("n_inner") or 0,
        rotary_pct=0.0,
        learned_positions=True,
        parallel_residual=False,
        tie_embeddings=raw.get("tie_word_embeddings", True),
        dropout=raw.get("resid_pdrop", 0.1),
        activation=raw.get("activation_function", "gelu_new"),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
    )


def write_gpt2(c: NeoXConfig) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "n_inner": c.n_inner,
        "activation_function": c.activation,
        "layer_norm_epsilon": c.norm_eps,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "tie_word_embeddings": c.tie_embeddings,
    }


def gpt2_lacks(c: NeoXConfig) -> str:
    switches = ("parallel_residual", "head_bias", "n_mix")
    found = [name for name in switches if getattr(c, name)] + ["rotary_pct"] * (c.rotary_dim > 0)
    missing = ["model without learned_positions"] * (not c.learned_positions)
    return ", ".join(found + missing)


NEOX_MODULES = (
    "gpt_neox.embed_in",
    "gpt_neox.layers.{}.input_layernorm",
    "gpt_neox.layers.{}.post_attention_layernorm",
    "gpt_neox.layers.{}.attention.query_key_value",
    "gpt_neox.layers.{}.attention.dense",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "gpt_neox.final_layer_norm",
    "embed_out",
)
FAMILIES = {  # by the model_type of config.json
    "gpt_neox": Family(
        "GPT-NeoX",
        NeoXKeys,
        read_neox,
        write_neox,
        neox_lacks,
        {name: name for name in NEOX_MODULES},
        by_head=True,
    ),
    "gpt2": Family(
        "GPT-2",
        GPT2Keys,
        read_gpt2,
        write_gpt2,
        gpt2_lacks,
        {
            "gpt_neox.embed_in": "transformer.wte",
            "gpt_neox.embed_pos": "transformer.wpe",
            "gpt_neox.layers.{}.input_layernorm": "transformer.h.{}.ln_1",
            "gpt_neox.layers.{}.post_attention_layernorm": "transformer.h.{}.ln_2",
            "gpt_neox.layers.{}.attention.query_key_value": "transformer.h.{}.attn.c_attn",
            "gpt_neox.layers.{}.attention.dense": "transformer.h.{}.attn.c_proj",
            "gpt_neox.layers.{}.mlp.dense_h_to_4h": "transformer.h.{}.mlp.c_fc",
            "gpt_neox.layers.{}.mlp.dense_4h_to_h": "transformer.h.{}.mlp.c_proj",
            "gpt_neox.final_layer_norm": "transformer.ln_f",
            "embed_out": "lm_head",
        },
        transposed=True,
    ),
    "phi": Family(
        "Phi",
        PhiKeys,
        read_phi,
        write_phi,
        phi_lacks,
        {
            "gpt_neox.embed_in": "model.embed_tokens",
            "gpt_neox.layers.{}.input_layernorm": "model.layers.{}.input_layernorm",
            "gpt_neox.layers.{}.attention.query_key_value": "model.layers.{}.self_attn.{qkv}_proj",
            "gpt_neox.layers.{}.attention.dense": "model.layers.{}.self_attn.dense",
            "gpt_neox.layers.{}.mlp.dense_h_to_4h": "model.layers.{}.mlp.fc1",
            "gpt_neox.layers.{}.mlp.dense_4h_to_h": "model.layers.{}.mlp.fc2",
            "gpt_neox.final_layer_norm": "model.final_layernorm",
            "embed_out": "lm_head",
        },
    ),
    "nanoneox": Family(
        "NanoNeoX",
        MixKeys,
        read_mix,
        write_mix,
        mix_lacks,
        {
            name: name
            for name in (*NEOX_MODULES, "gpt_neox.mix", "gpt_neox.layers.{}.mix")
            if not name.endswith("post_attention_layernorm")
        },
        by_head=True,
    ),
}


def config_to_hf(c: NeoXConfig) -> dict:
    """NeoXConfig as the config.json of the family that has such a model. ValueError if none has."""
    if c.activation == "swiglu":
        raise ValueError("Hugging Face's GPT-NeoX has no swiglu; a run's ckpt.pt holds the model")
    lacks = {kind: family.lacks(c) for kind, family in FAMILIES.items()}
    for kind, family in FAMILIES.items():
        if not lacks[kind]:
            architecture = f"{family.name.replace('-', '')}ForCausalLM"
            about = {"architectures": [architecture], "model_type": kind}
            return about | family.write(c) | {"torch_dtype": "float32"}
    reasons = "; ".join(f"{FAMILIES[kind].name} has no {what}" for kind, what in lacks.items())
    raise ValueError(f"no family of Hugging Face has this model: {reasons}")


def config_from_hf(raw: dict, where: object = "config.json") -> NeoXConfig:
    """The inverse of `config_to_hf`. ValueError for what this model cannot represent; it names
    `where` the configuration is from."""
    kind = raw.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ValueError(f"{where} describes a {kind!r} model, not {' or '.join(FAMILIES)}")
    check_shape(raw, where, family.keys)
    return NeoXConfig(**family.read(raw))


def weight_names(kind: str, c: NeoXConfig) -> dict[str, list[str]]:
    """The name of each of our weights, and those of the tensors in the family's files that it is
    made of: one, or three for Phi's queries, keys and values."""
    names = {}
    for ours, theirs in FAMILIES[kind].modules.items():
        ends = ["weight"] if "embed" in ours or "mix" in ours else ["weight", "bias"]
        ends += ["bias"] * (ours == "embed_out" and c.head_bias)
        for block in range(c.n_layer if "{}" in ours else 1):
            their = theirs.replace("{}", str(block))
            parts = [their.replace("{qkv}", x) for x in "qkv"] if "{qkv}" in their else [their]
            for end in ends:
                names[f"{ours.format(block)}.{end}"] = [f"{part}.{end}" for part in parts]
    return names


def state_to_hf(state: dict, kind: str, c: NeoXConfig) -> dict[str, torch.Tensor]:
    """Our weights, or their gradients, by the names and in the layout of a family's files."""
    family, found = FAMILIES[kind], {}
    for name, theirs in weight_names(kind, c).items():
        if name == "embed_out.weight" and c.tie_embeddings:
            continue
        tensor = state[name]
        if "query_key_value" in name and not family.by_head:
            tensor = tensor.unflatten(0, (c.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)
        if family.transposed and is_matrix(name):
            tensor = tensor.t()
        parts = tensor.chunk(len(theirs))
        found |= {key: part.contiguous() for key, part in zip(theirs, parts)}
    return found


def state_from_hf(state: dict, kind: str, c: NeoXConfig) -> dict[str, torch.Tensor]:
    """The inverse of `state_to_hf`. What the files lack is lacking here too, and what they have
    besides keeps its name."""
    family = FAMILIES[kind]
    # Older files carry the causal mask and the rotary frequencies, which we compute, and those of
    # GPT-2 leave out the first part of each name.
    computed = (".attention.bias", ".attn.bias", ".masked_bias", "rotary_emb.inv_freq")
    state = {key: tensor for key, tensor in state.items() if not key.endswith(computed)}
    if kind == "gpt2":
        full = re.compile(r"(?=(wte|wpe|h|ln_f)\.)")
        state = {
            full.sub("transformer.", key, count=1) if full.match(key) else key: tensor
            for key, tensor in state.items()
        }
    if kind == "gpt_neox" and "lm_head.weight" in state:
        # transformers 5 calls the head so in memory, but files have always said embed_out.
        state["embed_out.weight"] = state.pop("lm_head.weight")
    found = {}
    for name, theirs in weight_names(kind, c).items():
        parts = [state.pop(key) for key in theirs if key in state]
        if len(parts) != len(theirs):
            continue
        try:
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            if family.transposed and is_matrix(name):
                tensor = tensor.t()
            if "query_key_value" in name and not family.by_head:
                tensor = tensor.unflatten(0, (3, c.n_head, -1)).transpose(0, 1).flatten(0, 2)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"{theirs[0]} does not have the shape of such a model: {error}"
            ) from None
        found[name] = tensor
    if c.tie_embeddings and "gpt_neox.embed_in.weight" in found:
        found.setdefault("embed_out.weight", found["gpt_neox.embed_in.weight"])
    return found | state


def is_matrix(name: str) -> bool:
    """Whether a weight is a matrix of a block."""
    return ".layers." in name and "norm" not in name and name.endswith("weight")


# --- files ----------------------------------------------------------------------------------------


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder, whole or in shards; .bin files are read without running
    anything in them. ValueError where there are none, or damaged ones."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    safe, pickled = sorted(folder.glob("model*.safetensors")), sorted(folder.glob("pytorch_model*"))
    pickled = [file for file in pickled if file.suffix == ".bin"]
    if not safe and not pickled:
        raise ValueError(f"{folder} holds no model.safetensors and no pytorch_model.bin")
    state = {}
    for file in safe or pickled:
        try:
            read = load_file if safe else load_tensors
            part = read(file)
        except FileNotFoundError:
            raise
        except Exception as error:  # damaged bytes make safetensors' reader raise anything
            raise ValueError(f"{file} cannot be read, it may be cut short: {error}") from None
        numbers = isinstance(part, dict) and all(
            isinstance(key, str) and isinstance(tensor, torch.Tensor)
            for key, tensor in part.items()
        )
        if not numbers:
            raise ValueError(f"{file} holds something else than tensors by name")
        if safe:
            with safe_open(file, "pt") as opened:
                sealed = (opened.metadata() or {}).get("checksum")  # only our files have one
            if sealed and sealed != checksum(dict(sorted(part.items()))):
                raise ValueError(f"{file} is damaged: its checksum is wrong")
        state |= part
    return state


def download(name: str) -> Path:
    """The folder in the local cache to which a model of the Hugging Face hub was downloaded,
    tokenizer included. ValueError where that failed."""
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        files = ["config.json", "*.safetensors", "tokenizer*"]
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=files))
        if not list(folder.glob("*.safetensors")):
            files = ["pytorch_model*.bin"]  # some of Pythia's earlier steps have only these
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=files))
        return folder
    except Exception as error:  # the hub's library raises anything, in many lines
        raise ValueError(
            f"{name} is no folder here, and the hub did not give it (no network, or a wrong "
            f"name?): {type(error).__name__}: {configurator.first_line(error)}"
        ) from None

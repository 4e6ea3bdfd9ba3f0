"""Hugging Face's GPT-NeoX: its weights and configurations in and out."""

import os
import re
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from typing_extensions import NotRequired, TypedDict

from model import ACTIVATIONS, NeoX, NeoXConfig
from parts import configurator, memory
from parts.checkpoints import checksum, load_tensors
from parts.files import check_shape, load_json, write_json, write_whole
from parts.generate import decoder_agrees

Size = Annotated[int, Interval(ge=1, le=2**24)]
Share = Annotated[float, Interval(ge=0, le=1)]
Base = Annotated[float, Interval(ge=1, le=1e30)]


class Rope(TypedDict):
    """Where transformers 5 has the rotary settings."""

    rope_type: NotRequired[str]
    rope_theta: NotRequired[Base]
    partial_rotary_factor: NotRequired[Share]


class HFConfig(TypedDict):
    """What config.json of a GPT-NeoX says, as far as we read it."""

    vocab_size: Size
    max_position_embeddings: Size
    num_hidden_layers: Annotated[int, Interval(ge=1, le=10_000)]
    num_attention_heads: Size
    hidden_size: Size
    intermediate_size: Size
    rope_parameters: NotRequired[Rope | None]
    rope_scaling: NotRequired[dict | None]
    rotary_pct: NotRequired[Share]
    rotary_emb_base: NotRequired[Base]
    attention_bias: NotRequired[bool]
    use_parallel_residual: NotRequired[bool]
    tie_word_embeddings: NotRequired[bool]
    hidden_dropout: NotRequired[Share]
    hidden_act: NotRequired[str]
    layer_norm_eps: NotRequired[Annotated[float, Interval(ge=1e-12, le=1)]]


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
    """A model with the weights of a Hugging Face GPT-NeoX checkpoint: what `find` finds by that
    name.

    ValueError or OSError says what is wrong."""
    folder = find(name)
    file = folder / "config.json"
    model = memory.new_model(config_from_hf(load_json(file), file))
    # Pythia's older files carry the causal mask and the rotary frequencies, which we compute.
    computed = (".attention.bias", ".masked_bias", "rotary_emb.inv_freq")
    state = {k: v for k, v in read_weights(folder).items() if not k.endswith(computed)}
    if model.config.tie_embeddings:
        state.setdefault("embed_out.weight", state.get("gpt_neox.embed_in.weight"))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from None
    with torch.no_grad():  # weights that are not finite, or so large that nothing behind them is
        tried = [*model.parameters(), model(torch.zeros(1, 1, dtype=torch.long))]
    if not all(bool(tensor.isfinite().all()) for tensor in tried):
        raise ValueError(f"the weights in {folder} are damaged: not all numbers are finite")
    return model


def save_pretrained(model: NeoX, folder: str | Path, eot: int | None = None, **extra):
    """Write config.json and model.safetensors as Hugging Face's GPT-NeoX has them, each moved into
    place when whole. With the tokenizer's files beside them, transformers' AutoModelForCausalLM and
    AutoTokenizer load the folder.

    eot: id of the end-of-text token. extra: further keys for config.json, which other readers
    ignore. ValueError where Hugging Face's GPT-NeoX would compute something else."""
    from safetensors.torch import save

    try:
        raw = config_to_hf(model.config) | {"bos_token_id": eot, "eos_token_id": eot} | extra
    except AttributeError as error:  # a setting that was removed
        raise ValueError(f"model.py was edited: {error}") from None
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    refuse_what_was_changed(model, state.keys())
    if model.config.tie_embeddings:
        del state["embed_out.weight"]
    # safetensors refuses the same memory twice, as of blocks that share weights.
    places = [tensor.data_ptr() for tensor in state.values()]
    state = {k: v.clone() if places.count(v.data_ptr()) > 1 else v for k, v in state.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sealed = {"format": "pt", "checksum": checksum(dict(sorted(state.items())))}
    data = save(state, metadata=sealed)
    write_whole(folder / "model.safetensors", lambda temporary: temporary.write_bytes(data))
    write_json(folder / "config.json", raw)


def refuse_what_was_changed(model: NeoX, keys):
    """ValueError where model.py was edited so that it is no longer Hugging Face's GPT-NeoX."""
    c = model.config
    if newcomers := sorted(keys - known_keys(c)):
        raise ValueError(f"Hugging Face's GPT-NeoX has no {', '.join(newcomers[:5])}")
    if missing := sorted(known_keys(c) - keys):
        raise ValueError(f"Hugging Face's GPT-NeoX also needs {', '.join(missing[:5])}")
    try:
        same = decoder_agrees(model) and computes_the_same(model)
    except (RuntimeError, AttributeError, TypeError):  # what was changed does not even fit
        same = False
    if not same:
        raise ValueError("model.py was edited, and Hugging Face's GPT-NeoX is another network")


def computes_the_same(model: NeoX) -> bool:
    """Whether activation and rotary tables, which the decoder takes from the model, are those of
    Hugging Face's GPT-NeoX."""
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


def known_keys(config: NeoXConfig) -> set[str]:
    """The weights of Hugging Face's GPT-NeoX, by name."""
    parts = (
        "input_layernorm",
        "post_attention_layernorm",
        "attention.query_key_value",
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    )
    names = [f"layers.{n}.{part}" for n in range(config.n_layer) for part in parts]
    keys = {
        f"gpt_neox.{name}.{kind}"
        for name in [*names, "final_layer_norm"]
        for kind in ("weight", "bias")
    }
    return keys | {"gpt_neox.embed_in.weight", "embed_out.weight"}


def config_to_hf(c: NeoXConfig) -> dict:
    """NeoXConfig as Hugging Face's config.json; the rotary keys in the form that every version of
    transformers reads. ValueError for what its GPT-NeoX cannot represent."""
    if c.activation == "swiglu":
        raise ValueError("Hugging Face's GPT-NeoX has no swiglu; a run's ckpt.pt holds the model")
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "hidden_size": c.n_embd,
        "intermediate_size": c.n_inner,
        "rotary_pct": c.rotary_pct,
        "rotary_emb_base": c.rotary_base,
        "use_parallel_residual": c.parallel_residual,
        "tie_word_embeddings": c.tie_embeddings,
        "hidden_act": c.activation,
        "hidden_dropout": c.dropout,
        "attention_dropout": c.dropout,
        "layer_norm_eps": c.norm_eps,
        "attention_bias": True,
        "torch_dtype": "float32",
    }


def config_from_hf(raw: dict, where: object = "config.json") -> NeoXConfig:
    """The inverse of `config_to_hf`. ValueError for what this model cannot represent; it names
    `where` the configuration is from."""
    if raw.get("model_type") != "gpt_neox":
        raise ValueError(f"{where} describes a {raw.get('model_type')!r} model, not gpt_neox")
    check_shape(raw, where, HFConfig)
    # In transformers 5; before it, rotary_pct and rotary_emb_base were keys of their own.
    rope = raw.get("rope_parameters") or {}
    scaled = raw.get("rope_scaling") or rope.get("rope_type", "default") != "default"
    if scaled or not raw.get("attention_bias", True):
        raise ValueError(
            "a GPT-NeoX with scaled rotary positions or without attention biases is not supported"
        )
    return NeoXConfig(
        vocab_size=raw["vocab_size"],
        block_size=raw["max_position_embeddings"],
        n_layer=raw["num_hidden_layers"],
        n_head=raw["num_attention_heads"],
        n_embd=raw["hidden_size"],
        n_inner=raw["intermediate_size"],
        rotary_pct=rope.get("partial_rotary_factor", raw.get("rotary_pct", 0.25)),
        rotary_base=rope.get("rope_theta", raw.get("rotary_emb_base", 10000)),
        parallel_residual=raw.get("use_parallel_residual", True),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        dropout=raw.get("hidden_dropout", 0.0),
        activation=raw.get("hidden_act", "gelu"),
        norm_eps=raw.get("layer_norm_eps", 1e-5),
    )


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
        # transformers 5 calls the head lm_head in memory, but files have always said embed_out.
        state |= {"embed_out.weight" if k == "lm_head.weight" else k: v for k, v in part.items()}
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
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ValueError(
            f"{name} is neither a folder here nor a model that the hub gave: "
            f"{type(error).__name__}: {reason[:200]}"
        ) from None

"""A model as one GGUF file, which llama.cpp runs.

    python tools/gguf.py out/python_neox_cpu                  # out/python_neox_cpu-f32.gguf
    python tools/gguf.py out/python_neox_cpu --dtype=q8_0 --out=small.gguf
    llama-server -m out/python_neox_cpu-f32.gguf -b 96        # completions; /infill for editors

It takes what sample.py takes. docs/LLAMA_CPP.md says what is exact and what is not.
"""

import sys
from pathlib import Path

# Without tools/, where `import gguf` would find this file.
tools = Path(__file__).resolve().parent
sys.path[:] = [str(tools.parent), *(path for path in sys.path if path != str(tools))]
from parts.start import run_script

import re
from typing import NamedTuple

import numpy as np
import torch

from model import NeoX
from parts import configurator, hf, runs
from parts.files import unused, write_whole
from parts.infill import knows_fim, marks
from parts.tokenizer import CODE, GPT2_PATTERN, LLAMA3_PATTERN, Tokenizer, read_bpe


class Settings:
    ckpt = ""  # a run's folder, a checkpoint, a Hugging Face folder or hub name; empty: newest run
    dtype = "f32"  # of the matrices: f32, f16, or q8_0 (8 bits, a scale for each 32 numbers)
    out = ""  # the file to write; empty: beside the model's folder, with its name
    pre = ""  # a splitting of llama.cpp's by name, of a build that has ours; empty: by pattern


# By the model_type of config.json.
ARCHITECTURES = {"gpt_neox": "gptneox", "gpt2": "gpt2", "phi": "phi2"}
TENSORS = {  # what replaces what in the names of our weights
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.embed_pos": "position_embd",
    "gpt_neox.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
}
SPACE = "\u2581".encode()  # SentencePiece's sign for a space


# --- the network ----------------------------------------------------------------------------------


def architecture(model: NeoX) -> str:
    """llama.cpp's name for this kind of network. ValueError if it has none that is the same."""
    c = model.config
    if getattr(c, "n_mix", 0):
        raise ValueError(
            "llama.cpp has no such network: it mixes no positions (n_mix); train a GPT-NeoX for it "
            "with config/python_neox_cpu.py, or complete code with serve.py"
        )
    try:
        if c.activation == "swiglu":
            raise ValueError("its GPT-NeoX, GPT-2 and Phi have no swiglu")
        kind = hf.config_to_hf(c)["model_type"]
        hf.refuse_what_was_changed(model, kind)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"llama.cpp has no such network: {error}") from None
    if kind != "gpt2" and not c.rotary_dim:
        raise ValueError("llama.cpp has no such network: it needs rotary_pct above 0")
    return ARCHITECTURES[kind]


def add_network(writer, model: NeoX):
    """The settings of the network, by llama.cpp's names."""
    c = model.config
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.n_inner)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_parallel_residual(c.parallel_residual)
    if c.rotary_dim:
        writer.add_rope_dimension_count(c.rotary_dim)
        writer.add_rope_freq_base(c.rotary_base)


def weights(model: NeoX, arch: str):
    """Yields each tensor's name in the file and its values, float32. A tied head is there twice,
    since only llama.cpp's GPT-2 knows one."""
    c = model.config
    for name, tensor in model.state_dict().items():
        if name == "embed_out.weight" and c.tie_embeddings and arch == "gpt2":
            continue
        if "query_key_value" in name:  # ours are head by head, theirs all q, all k, all v
            tensor = tensor.unflatten(0, (c.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)
        for ours, theirs in TENSORS.items():
            name = name.replace(ours, theirs)
        yield name, tensor.to("cpu", torch.float32).contiguous().numpy()


def add_weights(writer, model: NeoX, arch: str, dtype: str):
    """Vectors and the table of positions stay float32, as in llama.cpp's own files; a matrix whose
    rows cannot be divided into blocks of 32 is float16 in a q8_0 file. ValueError for a number that
    float16 does not have."""
    from gguf import GGMLQuantizationType, quantize

    for name, values in weights(model, arch):
        matrix = values.ndim > 1 and name != "position_embd.weight"
        if matrix and dtype == "q8_0" and values.shape[1] % 32 == 0:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
            continue
        if matrix and dtype != "f32":
            if np.abs(values).max() > np.finfo(np.float16).max:
                raise ValueError(f"{name} has numbers too large for float16; use --dtype=f32")
            values = values.astype(np.float16)
        writer.add_tensor(name, values)


# --- the vocabulary -------------------------------------------------------------------------------


class Vocabulary(NamedTuple):
    kind: str  # llama.cpp's name for the algorithm: gpt2 is BPE with merges, llama is SentencePiece
    pre: str  # its name for how text is split before that
    texts: list[bytes]  # by id
    merges: list[str]  # of gpt2
    scores: list[float]  # of llama: the highest merges first


def vocabulary(tok: Tokenizer, pre: str) -> Vocabulary:
    """The tokenizer as llama.cpp has it, or the closest that it has. ValueError if it has none.

    pre: its name for how text is split; empty: the one that fits."""
    if tok.eot is None:
        raise ValueError(
            "llama.cpp needs to know which token ends a text, and this model's tokenizer has no "
            "<|endoftext|>"
        )
    data = tok.data
    if tok.kind == "bpe":
        pattern = read_bpe(data)[1]
        pre = pre or {GPT2_PATTERN: "gpt-2", LLAMA3_PATTERN: "llama-bpe"}.get(pattern, "")
        if not pre:
            return without_pattern(tok)
    elif data["model"].get("type") == "BPE" and splits_as_gpt2(data.get("pre_tokenizer")):
        pre = pre or "gpt-2"
    else:
        raise ValueError("this model's tokenizer splits text in a way that llama.cpp may not know")
    names = {i: text for text, i in data["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in data["added_tokens"]}
    texts = [names[i].encode() if i in names else b"" for i in range(tok.vocab_size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]]
    return Vocabulary("gpt2", pre, texts, merges, [])


def splits_as_gpt2(step: dict | None) -> bool:
    """Whether a foreign tokenizer's only step before its merges is GPT-2's."""
    step = {"add_prefix_space": True, "use_regex": True} | (step or {})
    return step.get("type") == "ByteLevel" and step["use_regex"] and not step["add_prefix_space"]


def without_pattern(tok: Tokenizer) -> Vocabulary:
    """A vocabulary for the pattern `code`, which llama.cpp does not have, as SentencePiece has it:
    any two neighbours may merge, so mostly the same tokens come out without a pattern.

    That they merge across the pieces' ends is made rare by an order that within a piece changes
    nothing: white space before punctuation before words, as the pattern takes `).` off `).x`."""
    texts, scores = [], []
    for i in range(tok.vocab_size):
        text = tok.token_bytes(i)
        rank = 2 if text.isspace() else bool(re.fullmatch(CODE["punctuation"].encode(), text))
        scores.append(float(rank * tok.vocab_size - i))
        if len(text) == 1 and not (text.isascii() and text != b"\0"):
            texts.append(b"<0x%02X>" % text[0])
        elif SPACE in text or b"\0" in text:
            texts.append(b"")  # llama.cpp would take these for others
        else:
            texts.append(text.replace(b" ", SPACE))
    return Vocabulary("llama", "default", texts, [], scores)


def add_vocabulary(writer, tok: Tokenizer, size: int, pre: str) -> Vocabulary:
    """size: of the model's vocabulary, which may be larger than the tokenizer's."""
    from gguf import TokenType

    found = vocabulary(tok, pre)
    texts = found.texts + [b""] * (size - len(found.texts))
    kinds = [TokenType.NORMAL if text else TokenType.UNUSED for text in texts]
    for token in tok.data["added_tokens"]:
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if found.kind == "llama":
        for i, text in enumerate(texts):
            if re.fullmatch(rb"<0x[0-9A-F]{2}>", text):
                kinds[i] = TokenType.BYTE
    # No two tokens may have the same text.
    texts = [text or b"<|unused %d|>" % i for i, text in enumerate(texts)]
    writer.add_tokenizer_model(found.kind)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.scores:
        writer.add_token_scores(found.scores + [0.0] * (size - len(found.scores)))
        writer.add_add_space_prefix(False)
    # Every document in training begins after an end-of-text token, and a prompt does so too.
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(tok.eot)
    writer.add_eos_token_id(tok.eot)
    writer.add_pad_token_id(tok.eot)
    if knows_fim(tok):
        for name, mark in zip(("pre", "suf", "mid"), marks(tok)):
            writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", mark)
    return found


# --- the file -------------------------------------------------------------------------------------


def read_settings():
    """The run may also be given without --ckpt=."""
    named = [arg if arg.startswith("-") else f"--ckpt={arg}" for arg in sys.argv[1:]]
    cfg = configurator.load(Settings, named)
    configurator.require(cfg, dtype=["f32", "f16", "q8_0"])
    return cfg


def target(cfg, folder: Path) -> Path:
    """The file to write. OSError if it cannot be there, ValueError if another kind of file is."""
    if cfg.out:
        path = Path(cfg.out).expanduser()
        path = path / f"{folder.name}-{cfg.dtype}.gguf" if path.is_dir() else path
        if path.is_file() and path.open("rb").read(4) != b"GGUF":  # such as a run's ckpt.pt
            raise ValueError(
                f"{path} is not a GGUF file, so it stays as it is; choose another --out"
            )
        return path
    here = not cfg.ckpt or configurator.locate(cfg.ckpt).exists()
    folder = folder.resolve() if here else Path.cwd() / Path(cfg.ckpt).name.replace("@", "-")
    return folder.with_name(f"{folder.name}-{cfg.dtype}.gguf")


def main():
    cfg = read_settings()
    try:
        import gguf
    except ImportError:
        configurator.die("writing GGUF takes one more package: pip install gguf")
    model, tokenizer, folder = runs.load(cfg.ckpt, "cpu")
    with configurator.mistakes():
        path = target(cfg, folder)
        arch = architecture(model)
        writer = gguf.GGUFWriter(None, arch)
        writer.add_name(folder.name)
        kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
        writer.add_file_type(gguf.LlamaFileType[kinds[cfg.dtype]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_network(writer, model)
        found = add_vocabulary(writer, tokenizer, model.config.vocab_size, cfg.pre)
        add_weights(writer, model, arch, cfg.dtype)

        def write(file):
            writer.write_header_to_file(file)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            if path.is_file():
                print(f"the file that was there is now {path.rename(unused(path))}")

        write_whole(path, write)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {arch}, {cfg.dtype}")
    if found.kind == "llama":
        print(
            "llama.cpp does not know the pattern `code`, so it splits some text into other tokens "
            "than this model learnt; prepare/python.py --pattern=llama3 makes data for a model "
            "whose tokens it gives exactly (docs/LLAMA_CPP.md)"
        )


if __name__ == "__main__":
    run_script(main)

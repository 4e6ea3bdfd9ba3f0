"""tools/gguf.py: what llama.cpp reads in the file computes what the model computes, and splits text
into the tokens that the model learnt."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from conftest import run

from model import NeoX, NeoXConfig
from parts import checkpoints, hf
from parts import tokenizer as tokenization
from parts.generate import generate

# tokenizer.json of Llama 3 has this one.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NASTY = [
    "",
    "\n\n  \n\tx  ",
    "can't CAN'T we'Ll 'sx '\u017f",
    "1234567 ١٢٣٤ ½ x²y",
    "naïve 日本語 👩‍👩‍👧 \u00a0\u0085 é\u0301 \u2581 \x00\x1f",
    "a\r\n\r\n\r b",
    "<|endoftext|> <|fim_prefix|>",
]
SHAPES = {
    "neox": dict(rotary_pct=0.5, rotary_base=500.0, norm_eps=1e-3, n_inner=96),
    "neox, one after the other": dict(parallel_residual=False, rotary_pct=0.25),
    "neox, tied": dict(rotary_pct=1.0, tie_embeddings=True),
    "gpt2": dict(
        learned_positions=True, rotary_pct=0.0, parallel_residual=False, tie_embeddings=True
    ),
    "phi": dict(shared_norm=True, head_bias=True, rotary_pct=0.5),
}


def random_model(folder, tok, name="neox", **settings):
    """A model of that shape, saved as a Hugging Face folder; all its weights are random, biases and
    norms too."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=tok.vocab_size, block_size=128, n_layer=2, n_head=4, n_embd=64)
    model = NeoX(NeoXConfig(**sizes | {"activation": "gelu_new"} | SHAPES[name] | settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    hf.save_pretrained(model, folder, eot=tok.eot)
    tok.save(folder)
    return model


def export(monkeypatch, *args):
    """The exit code of `python tools/gguf.py args`, run in this process."""
    from tools import gguf as script

    monkeypatch.setattr(sys, "argv", ["gguf.py", *map(str, args)])
    try:
        script.main()
    except SystemExit as ended:
        return ended.code
    return 0


class File:
    """A GGUF file as the gguf package reads it."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.types = {t.name: t.tensor_type.name for t in reader.tensors}
        self.tensors = {
            t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64)
            for t in reader.tensors
        }
        self.meta = {key: field.contents() for key, field in reader.fields.items()}
        self.arch = self.meta["general.architecture"]

    def __getitem__(self, key):
        return self.meta[key if "." in key and key in self.meta else f"{self.arch}.{key}"]

    def vocabulary(self):
        return self.meta["tokenizer.ggml.tokens"]

    def logits(self, ids):
        """What llama.cpp's graph of this architecture computes (src/models/ there), in float64."""
        t, heads, eps = (
            self.tensors,
            self["attention.head_count"],
            self["attention.layer_norm_epsilon"],
        )

        def norm(x, name):
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
            return x * t[f"{name}.weight"] + t[f"{name}.bias"]

        def linear(x, name):
            return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

        def turn(x):  # (T, H, D)
            half = self.meta.get(f"{self.arch}.rope.dimension_count", 0) // 2
            if not half:
                return x
            frequency = self["rope.freq_base"] ** -(np.arange(half) / half)
            angle = np.arange(len(x))[:, None, None] * frequency
            a, b = x[..., :half], x[..., half : 2 * half]
            cos, sin = np.cos(angle), np.sin(angle)
            return np.concatenate((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)

        def attend(x, block):
            q, k, v = np.split(linear(x, f"{block}.attn_qkv"), 3, -1)
            q, k, v = (y.reshape(len(x), heads, -1) for y in (q, k, v))
            scores = np.einsum("qhd,khd->hqk", turn(q), turn(k)) / np.sqrt(q.shape[-1])
            scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            y = np.einsum("hqk,khd->qhd", shares, v).reshape(len(x), -1)
            return linear(y, f"{block}.attn_output")

        def mlp(x, block):
            x = linear(x, f"{block}.ffn_up")
            x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            return linear(x, f"{block}.ffn_down")

        x = t["token_embd.weight"][ids]
        if self.arch == "gpt2":
            x = x + t["position_embd.weight"][: len(ids)]
        for number in range(self["block_count"]):
            block = f"blk.{number}"
            normed = norm(x, f"{block}.attn_norm")
            attended = attend(normed, block)
            if self.arch == "phi2":
                x = x + attended + mlp(normed, block)
            elif self.arch == "gptneox" and self["use_parallel_residual"]:
                x = x + attended + mlp(norm(x, f"{block}.ffn_norm"), block)
            else:
                x = x + attended
                x = x + mlp(norm(x, f"{block}.ffn_norm"), block)
        head = "token_embd" if self.arch == "gpt2" and "output.weight" not in t else "output"
        return linear(norm(x, "output_norm"), head)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """A data set's tokenizer, made with --pattern=llama3."""
    folder = tmp_path_factory.mktemp("llama3")
    source = folder / "source"
    shutil.copytree(os.path.dirname(json.__file__), source / "json")
    shutil.copytree(os.path.dirname(urllib.request.__file__), source / "urllib")
    options = ["--pattern=llama3", "--vocab_size=1024", "--val_fraction=0.3", "--fim_rate=0"]
    run("prepare/python.py", f"--path={source}", f"--out={folder / 'data'}", *options)
    tok = tokenization.load(folder / "data")
    assert tok.vocab_size == 1024
    return tok


@pytest.mark.parametrize("name", SHAPES)
def test_the_file_computes_what_the_model_computes(name, llama3, tmp_path, monkeypatch):
    model = random_model(tmp_path / "model", llama3, name)
    assert export(monkeypatch, tmp_path / "model") == 0
    file = File(tmp_path / "model-f32.gguf")
    ids = [0, *llama3.encode("def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1)")]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(file.logits(ids), expected, atol=1e-3, rtol=1e-4)
    assert file["context_length"] == 128 and file["embedding_length"] == 64
    assert set(file.types.values()) == {"F32"}


def test_a_llama3_vocabulary_gives_the_same_ids_with_llama3s_own_splitting(
    llama3, real_files, tmp_path, monkeypatch
):
    random_model(tmp_path / "model", llama3, vocab_size=1100)
    out = tmp_path / "other.gguf"
    assert export(monkeypatch, f"--ckpt={tmp_path / 'model'}", f"--out={out}") == 0
    file = File(out)
    names, split = file.vocabulary(), tokenizers.pre_tokenizers
    merges = [tuple(pair.split(" ")) for pair in file["tokenizer.ggml.merges"]]
    vocab = {name: i for i, name in enumerate(names)}
    assert len(vocab) == len(names) == 1100
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=True))
    theirs.pre_tokenizer = split.Sequence(
        [
            split.Split(tokenizers.Regex(LLAMA3), "isolated"),
            split.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert file["tokenizer.ggml.pre"] == "llama-bpe" and file["tokenizer.ggml.model"] == "gpt2"
    texts = real_files[::4] + NASTY
    for text, expected in zip(texts, theirs.encode_batch_fast(texts)):
        assert llama3.encode(text) == expected.ids, text[:80]
    types = file["tokenizer.ggml.token_type"]
    assert types[:4] == [3] * 4 and types[1024:] == [5] * 76 and set(types[4:1024]) == {1}
    ids = [file[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [0, 0, 0] and file["tokenizer.ggml.add_bos_token"] is True
    marks = [names[file[f"tokenizer.ggml.fim_{name}_token_id"]] for name in ("pre", "mid", "suf")]
    assert marks == list(tokenization.FIM)


def sentencepiece(texts, scores, text):
    """The ids that SentencePiece's merging gives: of all neighbours that make a token, those with
    the highest score are joined, the leftmost first."""
    known = {piece: i for i, piece in enumerate(texts)}
    parts = [char.encode() for char in text.replace(" ", "\u2581")]
    while True:
        joined = [known.get(a + b) for a, b in zip(parts, parts[1:])]
        best = max((i for i in joined if i is not None), key=lambda i: scores[i], default=None)
        if best is None:
            break
        place = joined.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    single = [[part] if part in known else [b"<0x%02X>" % b for b in part] for part in parts]
    return [known[piece] for pieces in single for piece in pieces]


def test_the_pattern_code_comes_as_near_as_llama_cpp_allows_and_says_so(
    trained, real_files, tmp_path
):
    out = tmp_path / "code.gguf"
    said = run("tools/gguf.py", trained, f"--out={out}").stdout
    assert "--pattern=llama3" in said and f"{out}: " in said
    reader = gguf.GGUFReader(out)
    field = reader.fields["tokenizer.ggml.tokens"]
    texts = [bytes(field.parts[place]) for place in field.data]  # some are no UTF-8
    scores = reader.fields["tokenizer.ggml.scores"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    tok = tokenization.load(trained)
    assert len(set(texts)) == len(texts) == tok.vocab_size
    for i, text in enumerate(texts):
        if kinds[i] == 6:
            assert text == b"<0x%02X>" % tok.token_bytes(i)[0]
        elif kinds[i] == 1:
            assert text.replace("\u2581".encode(), b" ") == tok.token_bytes(i)
    assert kinds.count(3) == 4 and kinds.count(6) == 129 and kinds.count(5) <= 2

    def ends(ids):
        return set(np.cumsum([len(tok.token_bytes(i)) for i in ids]))

    right = total = 0
    for text in [text[:1200] for text in real_files[::100]] + NASTY[:5]:
        ours, theirs = tok.encode(text), sentencepiece(texts, scores, text)
        right += len(ends(ours) & ends(theirs))
        total += len(ours)
    assert right / total > 0.995


@pytest.mark.parametrize(
    "dtype, kind, size, error", [("f16", "F16", 2, 5e-4), ("q8_0", "Q8_0", 1.1, 4e-3)]
)
def test_smaller_numbers_are_close_and_the_file_is_smaller(
    dtype, kind, size, error, llama3, tmp_path, monkeypatch
):
    model = random_model(tmp_path / "model", llama3, "gpt2", n_inner=72)
    assert export(monkeypatch, tmp_path / "model", f"--dtype={dtype}") == 0
    file = File(tmp_path / f"model-{dtype}.gguf")
    for name, values in {
        "token_embd.weight": model.gpt_neox.embed_in.weight,
        "position_embd.weight": model.gpt_neox.embed_pos.weight,
        "blk.1.ffn_down.weight": model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight,
        "blk.1.ffn_up.weight": model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight,
        "blk.0.ffn_up.bias": model.gpt_neox.layers[0].mlp.dense_h_to_4h.bias,
    }.items():
        values = values.detach().numpy()
        assert np.abs(file.tensors[name] - values).max() <= error * np.abs(values).max()
    types = file.types
    assert types["token_embd.weight"] == types["blk.1.ffn_up.weight"] == kind
    assert types["blk.1.ffn_down.weight"] == "F16"  # 72 is no multiple of 32
    assert types["position_embd.weight"] == types["blk.0.ffn_up.bias"] == "F32"


def test_mistakes_are_one_line_and_nothing_is_lost(llama3, tmp_path, monkeypatch, capsys):
    def refused(*args):
        assert export(monkeypatch, *args) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    folder = tmp_path / "model"
    model = random_model(folder, llama3)
    assert "f32, f16, q8_0" in refused(folder, "--dtype=f8")
    assert "no checkpoint" in refused(tmp_path / "none")
    assert "No such file" in refused(folder, f"--out={tmp_path / 'none' / 'x.gguf'}")
    assert "no ordinary file" in refused(folder, f"--out={os.devnull}")

    with torch.no_grad():
        model.embed_out.weight[5, 5] = 1e6
    hf.save_pretrained(model, folder, eot=0)
    assert "--dtype=f32" in refused(folder, "--dtype=f16")
    tokenization.train_char("abc").save(folder)
    assert "<|endoftext|>" in refused(folder)
    data = json.loads(json.dumps(llama3.data))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    tokenization.Tokenizer(data).save(folder)
    assert "splits text in a way" in refused(folder)
    mixing = dict(shared_norm=True, n_mix=2)
    random_model(tmp_path / "mixing", llama3, **mixing)
    line = refused(tmp_path / "mixing")
    assert "no such network" in line and "config/python_neox_cpu.py" in line
    random_model(tmp_path / "still", llama3, rotary_pct=0.0)
    assert "rotary_pct above 0" in refused(tmp_path / "still")
    assert not list(tmp_path.glob("*.gguf*"))

    llama3.save(folder)
    for _ in range(2):
        assert export(monkeypatch, folder) == 0
    first, second = tmp_path / "model-f32.gguf.1", tmp_path / "model-f32.gguf"
    assert first.read_bytes() == second.read_bytes() and first.name in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in refused(folder)


def test_a_run_with_swiglu_is_refused(trained, tmp_path, monkeypatch, capsys):
    state = checkpoints.load_checkpoint(trained / "ckpt.pt")
    config = NeoXConfig(
        **state["model_config"] | {"activation": "swiglu", "n_inner": 64, "n_mix": 0}
    )
    state |= {"model_config": vars(config), "model": NeoX(config).state_dict()}
    checkpoints.save_checkpoint(tmp_path / "ckpt.pt", state)
    tokenization.load(trained).save(tmp_path)
    assert export(monkeypatch, tmp_path, f"--out={tmp_path / 'x.gguf'}") == 2
    said = capsys.readouterr().err
    assert "no swiglu" in said and said.count("\n") == 1 and not list(tmp_path.glob("x*"))


# --- llama.cpp itself, where it is ----------------------------------------------------------------

SERVER = shutil.which("llama-server", path=os.environ.get("LLAMA_CPP"))
needs_llama_cpp = pytest.mark.skipif(
    not SERVER, reason="needs llama-server on the PATH or in the folder LLAMA_CPP"
)


@contextlib.contextmanager
def served(file, context, exact=True):
    """llama-server with that file: a function of a path and a body that returns its answer. exact:
    keys and values in float32, and no kernels that round otherwise."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SERVER, "-m", str(file), "--port", str(port), "-c", str(context), "-t", "1"]
    command += ["--no-repack", "-np", "1"]
    command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"] if exact else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(process.stderr.read().decode()[-2000:])
            time.sleep(0.1)

        def ask(path, **body):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/{path}",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)

        yield ask
    finally:
        process.kill()
        process.communicate()


def their_ids(ask, text):
    return ask("tokenize", content=text, add_special=False, parse_special=False)["tokens"]


def their_greedy(ask, ids, count):
    """The likeliest tokens after ids, up to the end of the text."""
    answer = ask(
        "completion",
        prompt=ids,
        n_predict=count,
        temperature=0,
        samplers=["top_k"],
        top_k=1,
        return_tokens=True,
        cache_prompt=False,
    )
    return answer["tokens"]


def our_greedy(model, tok, ids, count):
    found = generate(model, [ids], count, temperature=0, stop_ids=[tok.eot])[0]
    return [i for i in found if i != tok.eot]


def same_but_for_ties(model, tok, ids, theirs, count):
    """Whether llama.cpp wrote what the model writes after ids, up to where two tokens are almost
    equally likely: its GELU, from a table in float16, moves our logits by up to 0.003."""
    ours, theirs = ([*row, tok.eot] for row in (our_greedy(model, tok, ids, count), theirs))
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    if place is None:
        return len(ours) == len(theirs)
    with torch.no_grad():
        logits = model(torch.tensor([ids + ours[:place]]))[0, -1]
    return abs(logits[ours[place]] - logits[theirs[place]]) < 0.01


@needs_llama_cpp
def test_llama_cpp_writes_what_the_model_writes(llama3, real_files, tmp_path, monkeypatch):
    model = random_model(tmp_path / "model", llama3)
    assert export(monkeypatch, tmp_path / "model") == 0
    with served(tmp_path / "model-f32.gguf", 128) as ask:
        for text in real_files[:20] + NASTY[1:]:
            assert their_ids(ask, text) == llama3.encode(text)
            ids = [0, *llama3.encode(text)[:60]]
            theirs = [i for i in their_greedy(ask, ids, 30) if i != llama3.eot]
            assert same_but_for_ties(model, llama3, ids, theirs, 30)

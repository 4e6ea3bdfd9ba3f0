"""llama.cpp runs what tools/gguf.py writes: 1,200 real files, 20 prompts, every dtype and shape.

It takes llama-server from the folder that LLAMA_CPP names, or from the PATH.
"""

import itertools
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, run
from test_gguf import (
    NASTY,
    SHAPES,
    export,
    needs_llama_cpp,
    our_greedy,
    random_model,
    same_but_for_ties,
    served,
    their_greedy,
    their_ids,
)

from parts import infill, runs
from parts import tokenizer as tokenization

pytestmark = needs_llama_cpp


def chosen(folders, suffix, count):
    """Texts of that many files that are not empty, always the same ones."""
    files = sorted({file for folder in folders for file in Path(folder).rglob(f"*{suffix}")})
    random.Random(0).shuffle(files)
    read = (file.read_bytes().decode("utf-8", "replace") for file in files if file.is_file())
    return list(itertools.islice((text for text in read if text), count))


@pytest.fixture(scope="module")
def python_files():
    paths = sysconfig.get_paths()
    return chosen([paths["stdlib"], paths["purelib"]], ".py", 1000)


@pytest.fixture(scope="module")
def go_files():
    if not shutil.which("go"):
        pytest.skip("Go is not installed")
    done = subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, check=True)
    return chosen([Path(done.stdout.strip(), "src").resolve()], ".go", 200)


@pytest.fixture(scope="module", params=["llama3", "code"])
def model_folder(request, tmp_path_factory):
    """The folder of a run on real Python that was split by that pattern, with some rearranged."""
    folder = tmp_path_factory.mktemp(request.param)
    source = Path(sysconfig.get_paths()["stdlib"])
    for package in ("asyncio", "email", "unittest", "http", "xml", "logging", "idlelib"):
        shutil.copytree(source / package, folder / "source" / package)
    data = folder / "data"
    run(
        "prepare/python.py",
        f"--path={folder / 'source'}",
        f"--out={data}",
        f"--pattern={request.param}",
        "--vocab_size=4096",
        "--val_fraction=0.1",
    )
    shape = [f"--{key}" for key in ("n_layer=3", "n_head=4", "n_embd=128", "rotary_pct=1.0")]
    where = (f"--dataset={data}", f"--out_dir={folder / 'run'}")
    run("train.py", *where, *TINY, *shape, "--max_iters=300", "--lr=1e-2", "--optimizer=muon")
    return folder / "run"


def prompts(tok, texts, size):
    """20 prompts of that many tokens, from the beginnings of lines."""
    rng, found = random.Random(1), []
    for text in texts:
        if len(text) > 2000 and len(found) < 20:
            begin = text.rfind("\n", 0, rng.randrange(len(text) - 1000)) + 1
            found.append([tok.eot, *tok.encode(text[begin : begin + 1000])[: size - 1]])
    return found


def test_the_tokens_are_the_same(model_folder, python_files, go_files, tmp_path, monkeypatch):
    tok, out = tokenization.load(model_folder), tmp_path / "x.gguf"
    assert export(monkeypatch, model_folder, f"--out={out}") == 0

    def ends(ids):
        return set(np.cumsum([len(tok.token_bytes(i)) for i in ids]).tolist())

    same = right = total = 0
    texts = python_files + go_files + NASTY
    with served(out, 128) as ask:
        for text in texts:
            ours, theirs = tok.encode(text), their_ids(ask, text)
            same += ours == theirs
            right += len(ends(ours) & ends(theirs))
            total += len(ours)
    print(f"{same} of {len(texts)} files, {100 * right / total:.3f} % of {total:,} tokens")
    if model_folder.parent.name.startswith("llama3"):
        assert same == len(texts) >= 1200
    else:
        assert right > 0.997 * total and same > 0.4 * len(texts)


def test_the_likeliest_tokens_are_the_same(model_folder, python_files, tmp_path, monkeypatch):
    """20 prompts as ids, since llama.cpp does not heal them; 64 tokens after each."""
    model, tok, _ = runs.load(str(model_folder), "cpu")
    ids = prompts(tok, python_files, model.config.block_size - 64)
    ours = [our_greedy(model, tok, prompt, 64) for prompt in ids]
    agree, sizes = {}, {}
    for dtype in ("f32", "f16", "q8_0"):
        out = tmp_path / f"{dtype}.gguf"
        assert export(monkeypatch, model_folder, f"--out={out}", f"--dtype={dtype}") == 0
        sizes[dtype] = out.stat().st_size
        for exact in (True, False):
            with served(out, model.config.block_size, exact) as ask:
                theirs = [their_greedy(ask, prompt, 64) for prompt in ids]
            theirs = [[i for i in row if i != tok.eot] for row in theirs]
            agree[dtype, exact] = sum(a == b for a, b in zip(ours, theirs))
            if dtype == "f32" and exact:
                pairs = zip(ids, theirs)
                assert all(same_but_for_ties(model, tok, *pair, 64) for pair in pairs)
    print(agree, sizes)
    assert len(ids) == 20 and agree["f32", True] >= 19
    assert agree["f16", True] >= 18 and agree["q8_0", True] >= 10
    assert sizes["q8_0"] < 0.6 * sizes["f16"] < 0.35 * sizes["f32"]


def test_infill_asks_as_in_training(model_folder, tmp_path, monkeypatch):
    """llama-server's /infill, which editors use, reads the gap prefix first."""
    model, tok, _ = runs.load(str(model_folder), "cpu")
    out = tmp_path / "x.gguf"
    assert export(monkeypatch, model_folder, f"--out={out}") == 0
    before, after = "def area(width, height):\n    size =", "\n    return size\n"
    first, second, third = infill.marks(tok)
    ids = [tok.eot, first, *tok.encode(before), second, *tok.encode(after), third]
    with served(out, model.config.block_size) as ask:
        answer = ask(
            "infill",
            input_prefix=before,
            input_suffix=after,
            n_predict=32,
            temperature=0,
            samplers=["top_k"],
            top_k=1,
        )
    expected = tok.decode(i for i in our_greedy(model, tok, ids, 32) if i > 3)
    assert answer["tokens_evaluated"] == len(ids) and answer["content"] == expected


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_writes_the_same(name, python_files, tmp_path, monkeypatch):
    tok = tokenization.train_bpe(python_files[:50], 1024, tokenization.LLAMA3_PATTERN)
    model = random_model(tmp_path / "model", tok, name)
    assert export(monkeypatch, tmp_path / "model") == 0
    with served(tmp_path / "model-f32.gguf", 128) as ask:
        for ids in prompts(tok, python_files, 64):
            theirs = [i for i in their_greedy(ask, ids, 64) if i != tok.eot]
            assert same_but_for_ties(model, tok, ids, theirs, 64)

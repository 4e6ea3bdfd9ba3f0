"""A person's mistake: one line that says what is wrong, exit code 2, no traceback, and nothing damaged."""

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, run

import bench
from parts import configurator
import eval as eval_script
import sample
import train

# {dataset}, {run} and {folder} stand for a good data set, a good run, and an empty folder.
GOOD = [*TINY, "--dataset={dataset}", "--out_dir={folder}/out", "--max_iters=1"]
TRAIN = [  # what a person adds to a good command -> a part of the line that must come
    (["--learning_rate=1"], "unknown setting 'learning_rate'"),
    (["--n_layers=2"], "did you mean 'n_layer'"),
    (["--n_layer=two"], "n_layer must be of type int"),
    (["--n_layer=2.5"], "n_layer must be of type int"),
    (["--lr=fast"], "lr must be of type float"),
    (["--lr=-1"], "from 0 up"),
    (["--lr=nan"], "lr must be of type float"),
    (["--lr=1e999"], "from 0 up"),
    (["--lr"], "--lr needs a value"),
    (["--compile=maybe"], "compile must be of type bool"),
    (["-x"], "neither a config file"),
    (["config/missing.py"], "there is no config file"),
    (["{folder}/broken.py"], "does not run as Python: SyntaxError"),
    (["{folder}/strange.py"], "unknown setting 'n_heads' in"),
    (["{folder}/typed.py"], "batch_size must be of type int"),
    (["--batch_size=0"], "batch_size must be above 0"),
    (["--dtype=int8"], "dtype must be one of"),
    (["--optimizer=adamv"], "optimizer must be one of adamw, adam"),
    (["--lr_schedule=sine"], "lr_schedule must be one of"),
    (["--device=cuda"], "device=cuda is not available"),
    (["--min_lr=1", "--lr=0.1"], "min_lr=1.0 is above lr=0.1"),
    (["--beta2=1"], "beta2=1.0 and momentum=0.95 must be below 1"),
    (["--optimizer=schedulefree", "--beta1=0"], "schedulefree needs beta1 above 0"),
    (["--n_head=3"], "n_embd=32 must be a multiple of n_head=3"),
    (["--n_layer=0"], "must each be 1 or more"),
    (["--rotary_pct=2"], "rotary_pct=2.0"),
    (["--dropout=1"], "dropout=1.0 must be"),
    (["--dataset=nowhere"], "make it with: python prepare/python.py"),
    (["--dataset=shakespeare_bpe"], "python prepare/shakespeare.py --tokenizer=bpe"),
    (["--dataset={folder}/odd"], "missing or cut short"),
    (["--dataset={folder}/ids"], "past vocab_size=1024"),
    (["--dataset={folder}/meta"], "meta.json is damaged"),
    (["--dataset={folder}/keys"], "meta.json is damaged"),
    (["--dataset={folder}/tokenizer"], "tokenizer.json"),
    (["--dataset={folder}/empty"], "too few tokens"),
    (["--block_size=10000000"], "too few tokens"),
    (["--eval_tasks=loss,poetry"], "unknown task 'poetry'"),
    (["--shard"], "torchrun"),
    (["--keep=0"], "keep must be above 0"),
    (["--init_from=resume"], "there is nothing to resume"),
    (["--init_from=auto", "--out_dir={folder}/cut"], "cannot be read as a checkpoint"),
    (["--init_from=resume", "--out_dir={folder}/cut"], "cannot be read as a checkpoint"),
    (["--init_from=resume", "--out_dir={folder}/other"], "the checkpoint does not hold"),
    (["--init_from=resume", "--out_dir={folder}/words"], "another tokenizer"),
    (["--init_from=resume", "--out_dir={run_copy}", "--optimizer=muon"], "optimizer=muon does not fit the run"),
    (["--init_from=resume", "--out_dir={run_copy}", "--n_layer=3"], "n_layer=3 does not fit the run"),
    (["--init_from={folder}/small"], "vocabulary of 1024 does not fit the model's 50"),
    (["--init_from={run}", "--block_size=256"], "block_size=256 does not fit the model's context of 128"),
    (["--init_from={folder}/llama"], "not gpt_neox"),
    (["--init_from={folder}/halved"], "cannot be read, it may be cut short"),
    (["--init_from={folder}/unweighted"], "holds no model.safetensors"),
    (["--out_dir={folder}/file/out"], "file"),
]
SAMPLE = [
    (["--ckpt=out/nowhere"], "there is no checkpoint out/nowhere"),
    (["--ckpt={folder}/cut/ckpt.pt"], "cannot be read as a checkpoint"),
    (["--ckpt={run}", "--prompt_file={folder}/nowhere.txt"], "No such file"),
    (["--ckpt={run}", "--prompt_file={folder}/binary.txt"], "utf-8"),
    (["--ckpt={run}", "--prompt=a", "--prompt_file=b"], "not both"),
    (["--ckpt={run}", "--temperature=-1"], "from 0 up"),
    (["--ckpt={run}", "--top_p=2"], "at most 1"),
    (["--ckpt={run}", "--top_p=0"], "above 0"),
    (["--ckpt={run}", "--num_samples=0"], "above 0"),
    (["--ckpt={run}", "--stop="], "empty --stop"),
    (["--ckpt={folder}/char", "--prompt=hello ☃"], "☃"),
]
EVAL = [
    (["--ckpt={run}", "--tasks=poetry"], "unknown task"),
    (["--ckpt={run}", "--dataset=nowhere"], "nowhere"),
    (["--ckpt={run}", "--tasks=humaneval", "--file={folder}/none.jsonl"], "No such file"),
    (["--ckpt={run}", "--tasks=humaneval", "--file={folder}/meta/meta.json"], "line 1, is not a problem in HumanEval's format"),
    (["--ckpt={run}", "--tasks=mine", "--language=rust"], "language must be one of"),
    (["--compare", "{run}"], "needs at least two folders"),
    (["--compare", "{run}", "{folder}/char"], "there is no"),
    (["--ckpt={folder}/char"], "does not say what it was trained on"),
]
BENCH = [
    (["--plan", "--gpu=t5"], "gpu must be one of t4, l4, a100, h100"),
    (["--plan", "--dtype=bfloat16"], "t4 has no native bfloat16"),
    (["--plan", "--n_embd=16384"], "one sequence needs"),
    (["--repeats=0"], "repeats must be above 0"),
    (["--n_head=3"], "must be a multiple of n_head=3"),
    (["--peers", "--nanogpt=nowhere"], "nowhere holds no model.py of nanoGPT"),
    (["--speedrun"], "make it with: python prepare/shakespeare.py"),
]


@pytest.fixture(scope="module")
def places(dataset, trained, tmp_path_factory):
    """Copies of the good data set and the good run, each spoilt in one way."""
    folder = tmp_path_factory.mktemp("spoilt")
    for name in ("odd", "ids", "meta", "keys", "tokenizer", "empty"):
        shutil.copytree(dataset, folder / name)
    (folder / "odd" / "train.bin").write_bytes((dataset / "train.bin").read_bytes()[:-1])
    np.full(10_000, 60_000, dtype="<u2").tofile(folder / "ids" / "val.bin")
    (folder / "meta" / "meta.json").write_text('{"vocab_size": 10')
    (folder / "keys" / "meta.json").write_text('{"vocab_size": 1024}')
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": 3}')
    (folder / "empty" / "val.bin").write_bytes(b"")
    for name in ("cut", "other", "words", "halved", "unweighted", "llama"):
        shutil.copytree(trained, folder / name)
    whole = (trained / "ckpt.pt").read_bytes()
    (folder / "cut" / "ckpt.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "cut" / "ckpt.1.pt").write_bytes(whole[: len(whole) // 3])
    torch.save(torch.load(trained / "ckpt.pt", weights_only=True) | {"model": {}}, folder / "other" / "ckpt.pt")
    (folder / "words" / "tokenizer.json").write_text((trained / "tokenizer.json").read_text() + "\n")
    weights = (trained / "model.safetensors").read_bytes()
    (folder / "halved" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "unweighted" / "model.safetensors").unlink()
    config = json.loads((trained / "config.json").read_text())
    (folder / "llama" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    train.NeoX(train.NeoXConfig(vocab_size=50, block_size=128, n_layer=1, n_head=1, n_embd=16)).save_pretrained(folder / "small")
    text = "hello world, so many words\n"
    model = train.NeoX(train.NeoXConfig(vocab_size=len(set(text)), block_size=64, n_layer=1, n_head=1, n_embd=16))
    model.save_pretrained(folder / "char")
    sample.tokenizers.train_char(text).save(folder / "char")
    (folder / "broken.py").write_text("n_layer = = 3\n")
    (folder / "strange.py").write_text("n_heads = 3\n")
    (folder / "typed.py").write_text("batch_size = 'many'\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00 no text")
    (folder / "file").write_text("not a folder")
    shutil.copytree(trained, folder / "run_copy")
    return {"dataset": dataset, "run": trained, "folder": folder, "run_copy": folder / "run_copy"}


def content(places):
    """Every file of the data set, the run and the spoilt copies, by its hash."""
    files = [f for place in ("dataset", "run", "folder") for f in places[place].rglob("*") if f.is_file()]
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in files}


CASES = [(train, GOOD + add, part) for add, part in TRAIN] + [(sample, add, part) for add, part in SAMPLE]
CASES += [(eval_script, add, part) for add, part in EVAL] + [(bench, add, part) for add, part in BENCH]


@pytest.mark.parametrize("script, args, part", CASES, ids=[part for _, _, part in CASES])
def test_a_mistake_is_one_line(script, args, part, places, monkeypatch, capsys):
    before = content(places)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(configurator, "ROOT", places["folder"])  # not the person's own data and runs
    monkeypatch.setattr(sys, "argv", ["script", *(arg.format(**places) for arg in args)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and part in said
    assert content(places) == before


def test_from_the_shell_there_is_no_traceback_and_help_lists_every_setting():
    for script in ("train.py", "sample.py", "eval.py", "bench.py", "prepare/python.py", "prepare/go.py", "prepare/shakespeare.py"):
        done = run(script, "--vocab_seize=3", "--tokeniser=bpe", "--sead=3", ok=False)
        assert done.returncode == 2 and done.stderr.startswith("error: unknown setting"), done.stderr
        assert done.stderr.count("\n") == 1 and not done.stdout
        listed = run(script, "--help").stdout
        assert "Settings, with their defaults:" in listed and listed.count("\n  --") >= 4

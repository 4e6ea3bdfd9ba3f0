"""A person's mistake: one line that says what is wrong, exit code 2, no traceback, and nothing
damaged. Ctrl-C and SIGTERM: one line, exit code 130."""

import ast
import hashlib
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, in_process, run
from transformers import AutoModelForCausalLM

import bench
import eval as eval_script
import sample
import train
from model import NeoX, NeoXConfig
from parts import configurator, hf, runs
from parts import tokenizer as tokenization
from parts.generate import generate
from tools import compare, leaderboard, plan, speedrun, startup, track

# {dataset}, {run} and {folder} stand for a good data set, a good run, and an empty folder.
GOOD = [*TINY, "--dataset={dataset}", "--out_dir={folder}/out/new", "--max_iters=1"]
RESUME_COPY = ["--init_from=resume", "--out_dir={run_copy}"]
TRAIN = [  # what a person adds to a good command, and a part of the line that must be printed
    (["--learning_rate=1"], "unknown setting 'learning_rate'"),
    (["--n_layers=2"], "did you mean 'n_layer'"),
    (["--n_layer=two"], "n_layer must be of type int"),
    (["--n_layer=2.5"], "n_layer must be of type int"),
    (["--lr=fast"], "lr must be of type float"),
    (["--lr=-1"], "from 0 up"),
    (["--lr=nan"], "lr must be of type float"),
    (["--lr=1e999"], "from 0 up"),
    (["--lr"], "--lr needs a value"),
    (["--seed=" + "9" * 400], "seed must be a number from 0 up, and at most 9,223"),
    (["--seed=" + str(2**63)], "seed must be a number from 0 up, and at most 9,223"),
    (["--n_layer=1e12"], "n_layer must be a number from 0 up, and at most 2,147"),
    (["--lr=[[]:1]"], "lr must be of type float"),
    (["--lr=1if"], "lr must be of type float"),
    (["--sample_prompt=\x1b[31m"], "control characters"),
    (["--dataset=\udcff"], "is not UTF-8"),
    (["--dataset=" + "x" * 300], "there is no data set"),
    (["--keep=100000"], "keep must be at most 1000"),
    (["--rotary_base=0"], "rotary_base=0.0 must be from 1"),
    (["{folder}/exits.py"], "does not run as Python: SystemExit: 3"),
    (["{folder}/huge.py"], "seed must be a number from 0 up"),
    (["{folder}/mute.py"], "lr must be of type float"),
    (["--init_from=out/x"], "there is no checkpoint out/x; runs here"),
    (["--init_from=~/no/x"], "there is no checkpoint ~/no/x"),
    (["--init_from={folder}/pickled"], "it is no file of tensors that torch.save wrote"),
    (["--init_from={folder}/infinite"], "not all numbers are finite"),
    (["--init_from={folder}/null"], "num_attention_heads: Input should be a valid integer"),
    (["--compile=maybe"], "compile must be of type bool, like True, False or auto"),
    (["--threads=2000"], "threads must be at most 1024"),
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
    ([f"{ROOT}/config/python_t4.py"], "config/python_cpu.py is made for a CPU"),
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
    ([*RESUME_COPY, "--optimizer=muon"], "optimizer=muon does not fit the run"),
    ([*RESUME_COPY, "--n_layer=3"], "n_layer=3 does not fit the run"),
    (["--init_from={folder}/small"], "vocabulary of 1024 does not fit the model's 50"),
    (
        ["--init_from={run}", "--block_size=256"],
        "block_size=256 does not fit the model's context of 128",
    ),
    (["--init_from={folder}/llama"], "not gpt_neox"),
    (["--init_from={folder}/halved"], "cannot be read, it may be cut short"),
    (["--init_from={folder}/unweighted"], "holds no model.safetensors"),
    (["--out_dir={folder}/file/out"], "file"),
]
SAMPLE = [
    (["--ckpt={run}", "--device=cuda"], "device=cuda is not available"),
    (["--ckpt=out/nowhere"], "there is no checkpoint out/nowhere"),
    (["--ckpt={folder}/cut/ckpt.pt"], "cannot be read as a checkpoint"),
    (["--ckpt={run}", "--prompt_file={folder}/nowhere.txt"], "No such file"),
    (["--ckpt={run}", "--prompt_file={folder}/binary.txt"], "utf-8"),
    (["--ckpt={run}", "--prompt=a", "--prompt_file=b"], "not both"),
    (["--ckpt={run}", "--fim_file=a", "--suffix=b"], "give no others"),
    (["--ckpt={run}", "--fim_file={folder}"], "is no ordinary file"),
    (["--ckpt={folder}/char", "--suffix=b"], "no tokens for filling in the middle"),
    (["--ckpt={run}", "--temperature=-1"], "from 0 up"),
    (["--ckpt={run}", "--top_p=2"], "at most 1"),
    (["--ckpt={run}", "--top_p=0"], "above 0"),
    (["--ckpt={run}", "--num_samples=0"], "above 0"),
    (["--ckpt=x/y/z"], "there is no checkpoint x/y/z"),
    (["--ckpt={run}", "--prompt_file={folder}"], "is no ordinary file"),
    (["--ckpt={folder}/char", "--prompt=\\x1b"], "the tokenizer has no"),
    (["--ckpt={run}", "--stop="], "empty --stop"),
    (["--ckpt={folder}/char", "--prompt=hello ☃"], "☃"),
]
EVAL = [
    (["--ckpt={run}", "--device=cuda"], "device=cuda is not available"),
    (["--ckpt={run}", "--tasks=poetry"], "unknown task"),
    (["--ckpt={run}", "--dataset=nowhere"], "nowhere"),
    (["--ckpt={run}", "--tasks=humaneval", "--file={folder}/none.jsonl"], "No such file"),
    (
        ["--ckpt={run}", "--tasks=humaneval", "--file={folder}/meta/meta.json"],
        "line 1, is not a problem in HumanEval's format",
    ),
    (["--ckpt={run}", "--tasks=humaneval-infill", "--file={folder}/none.jsonl"], "No such file"),
    (["--ckpt={run}", "--tasks=mine", "--language=rust"], "language must be one of"),
    (["--compare", "{run}"], "python tools/compare.py"),
    (["--ckpt={folder}/report", "--tasks=mine"], "eval.json is damaged"),
    (["--ckpt={folder}/about", "--tasks=loss"], "run.json is damaged"),
    (["--ckpt={folder}/char"], "does not say what it was trained on"),
]
BENCH = [
    (compare, [], "name the runs to compare"),
    (compare, ["{run}", "{folder}/char"], "has neither a metrics.jsonl"),
    (compare, ["{run}", "{folder}/nowhere"], "there is no folder"),
    (compare, ["{run}", "{folder}/report"], "eval.json is damaged"),
    (plan, ["--gpu=t5"], "gpu must be one of t4, l4, a10g"),
    (plan, ["--dtype=bfloat16"], "T4 has no native bfloat16"),
    (plan, ["--n_embd=16384"], "one sequence needs"),
    (bench, ["--repeats=0"], "repeats must be above 0"),
    (bench, ["--n_head=3"], "must be a multiple of n_head=3"),
    (bench, ["--peers", "--nanogpt=nowhere"], "nowhere holds no model.py of nanoGPT"),
    (bench, ["--device=cuda"], "device=cuda is not available"),
    (bench, ["--lr_schedule=sine"], "lr_schedule must be one of"),
    (plan, ["--beta1=1"], "must be below 1"),
    (leaderboard, ["--batch_size=0"], "batch_size must be above 0"),
    (leaderboard, ["--plot=train.py"], "is no place for a picture"),
    (startup, ["--lr=0"], "lr must be above 0"),
    (
        track,
        ["--run={folder}/about"],
        "run.json is damaged: settings: Input should be a valid dict",
    ),
    (speedrun, [], "make it with: python prepare/shakespeare.py"),
]


@pytest.fixture(scope="module")
def places(dataset, trained, tmp_path_factory):
    """Copies of the good data set and the good run, each spoilt in one way."""
    folder = tmp_path_factory.mktemp("spoilt")
    spoil_datasets(dataset, folder)
    spoil_runs(trained, folder)
    save_small_models(folder)
    (folder / "broken.py").write_text("n_layer = = 3\n")
    (folder / "strange.py").write_text("n_heads = 3\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "huge.py").write_text("seed = 10**5000\n")
    mute = "class Mute:\n    def __repr__(self):\n        raise ValueError\nlr = Mute()\n"
    (folder / "mute.py").write_text(mute)
    (folder / "typed.py").write_text("batch_size = 'many'\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00 no text")
    (folder / "file").write_text("not a folder")
    shutil.copytree(trained, folder / "run_copy")
    return {"dataset": dataset, "run": trained, "folder": folder, "run_copy": folder / "run_copy"}


def spoil_datasets(dataset, folder):
    for name in ("odd", "ids", "meta", "keys", "tokenizer", "empty"):
        shutil.copytree(dataset, folder / name)
    (folder / "odd/train.bin").write_bytes((dataset / "train.bin").read_bytes()[:-1])
    tokens = np.fromfile(dataset / "val.bin", "<u2")
    np.full_like(tokens, 60_000).tofile(folder / "ids/val.bin")
    (folder / "meta/meta.json").write_text('{"vocab_size": 10')
    (folder / "keys/meta.json").write_text('{"vocab_size": 1024}')
    (folder / "tokenizer/tokenizer.json").write_text('{"model": 3}')
    (folder / "empty/val.bin").write_bytes(b"")


def spoil_runs(trained, folder):
    for name in ("cut", "other", "words", "halved", "unweighted", "llama", "report", "about"):
        shutil.copytree(trained, folder / name)
    (folder / "report/eval.json").write_text("[1, 2]")
    (folder / "about/run.json").write_text('{"settings": "none", "dataset": 3}')
    whole = (trained / "ckpt.pt").read_bytes()
    (folder / "cut/ckpt.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "cut/ckpt.1.pt").write_bytes(whole[: len(whole) // 3])
    checkpoint = torch.load(trained / "ckpt.pt", weights_only=True)
    del checkpoint["checksum"]  # or it would be passed over as damaged
    torch.save(checkpoint | {"model": {}}, folder / "other/ckpt.pt")
    tokenizer = json.loads((trained / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].reverse()
    (folder / "words/tokenizer.json").write_text(json.dumps(tokenizer))
    weights = (trained / "model.safetensors").read_bytes()
    (folder / "halved/model.safetensors").write_bytes(weights[: len(weights) // 2])
    for name in ("halved", "unweighted", "llama"):  # otherwise they are loaded as runs
        for file in (folder / name).glob("ckpt*.pt"):
            file.unlink()
    (folder / "unweighted/model.safetensors").unlink()
    config = json.loads((trained / "config.json").read_text())
    (folder / "llama/config.json").write_text(json.dumps(config | {"model_type": "llama"}))


def save_small_models(folder):
    """Models in Hugging Face folders: one with too small a vocabulary, one of characters."""
    tiny = {"n_layer": 1, "n_head": 1, "n_embd": 16}
    model = NeoX(NeoXConfig(vocab_size=50, block_size=128, **tiny))
    hf.save_pretrained(model, folder / "small")
    text = "hello world, so many words\n"
    model = NeoX(NeoXConfig(vocab_size=len(set(text)), block_size=64, **tiny))
    hf.save_pretrained(model, folder / "char")
    tokenization.train_char(text).save(folder / "char")
    for name in ("pickled", "null"):
        shutil.copytree(folder / "small", folder / name)
    (folder / "pickled/model.safetensors").unlink()
    (folder / "pickled/pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    config = json.loads((folder / "null/config.json").read_text())
    (folder / "null/config.json").write_text(json.dumps(config | {"num_attention_heads": None}))
    with torch.no_grad():
        model.embed_out.weight[3] = math.inf
    hf.save_pretrained(model, folder / "infinite")


def content(places):
    """Every file of the data set, the run and the spoilt copies, by its hash."""
    folders = [places[name] for name in ("dataset", "run", "folder")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in files}


CASES = [(train, GOOD + add, part) for add, part in TRAIN]
CASES += [(sample, add, part) for add, part in SAMPLE]
CASES += [(eval_script, add, part) for add, part in EVAL] + BENCH


@pytest.mark.parametrize("script, args, part", CASES, ids=[part for _, _, part in CASES])
def test_a_mistake_is_one_line(script, args, part, places, monkeypatch, capsys):
    before = content(places)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(configurator, "ROOT", places["folder"])  # not the person's own data, runs
    monkeypatch.setattr(sys, "argv", ["script", *(arg.format(**places) for arg in args)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and part in said
    assert content(places) == before


def test_what_a_terminal_would_obey_is_shown_instead_and_a_long_message_is_cut(capsys):
    with pytest.raises(SystemExit):
        configurator.die("bad name \x1b[31m\n\u202e" + "x" * 10_000 + " the end")
    said = capsys.readouterr().err
    assert said.startswith("error: bad name \\x1b[31m \\u202exxx") and said.endswith("the end\n")
    assert len(said) < 700 and said[:-1].isprintable()


@pytest.mark.parametrize("shape", [["--rotary_pct=0"], ["--n_head=32"], ["--n_head=16"]])
def test_heads_without_rotation_train_sample_and_are_exported(
    shape, dataset, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    how = [*TINY, *shape, f"--dataset={dataset}", f"--out_dir={out}", "--max_iters=1"]
    assert in_process(monkeypatch, *how, "--sample_prompt=def", "--sample_tokens=3") == 0
    assert "model.py was changed" not in capsys.readouterr().err
    idx = torch.arange(6)[None]
    exported = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    torch.testing.assert_close(exported(idx).logits, runs.load_model(out)(idx))


def test_a_model_with_more_tokens_than_the_tokenizer_writes_only_the_tokenizer_s():
    model = NeoX(NeoXConfig(vocab_size=500, block_size=32, n_layer=1, n_head=1, n_embd=16))
    how = {"temperature": 5.0, "seed": 1}
    assert max(generate(model, [[1]], 200, **how)[0]) > 100
    assert max(generate(model, [[1]], 200, vocab_size=100, **how)[0]) < 100


def test_sampling_stands_extreme_settings_and_ruined_weights():
    model = NeoX(NeoXConfig(vocab_size=500, block_size=32, n_layer=1, n_head=1, n_embd=16))
    likeliest = generate(model, [[1], [2, 3]], 10, temperature=0)
    for how in ({"temperature": 1e-320}, {"temperature": 1e-9}, {"top_p": 1e-320}, {"top_k": 1}):
        assert generate(model, [[1], [2, 3]], 10, seed=1, **how) == likeliest, how
    assert len(generate(model, [[1]], 10, temperature=1e30, repetition_penalty=1e30)[0]) == 10
    torch.nn.init.constant_(model.embed_out.weight, math.nan)
    assert len(generate(model, [[1]], 10, top_p=0.9)[0]) == 10


PREPARE = ["prepare/python.py", "prepare/go.py", "prepare/shakespeare.py"]
TOOLS = sorted(f"tools/{file.name}" for file in (ROOT / "tools").glob("*.py"))
TOOLS = [script for script in TOOLS if "class Settings" in (ROOT / script).read_text()]


@pytest.mark.parametrize(
    "script", ["train.py", "sample.py", "eval.py", "bench.py", *PREPARE, *TOOLS]
)
def test_from_the_shell_there_is_no_traceback_and_help_lists_every_setting(script):
    done = run(script, "--vocab_seize=3", "--tokeniser=bpe", "--sead=3", ok=False)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown setting"), done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout
    listed = run(script, "--help").stdout
    assert "Settings, with their defaults:" in listed
    settings = own_settings(script)
    if "(train.Settings)" in (ROOT / script).read_text():
        assert "python train.py --help lists them" in listed and "--n_layer=" not in listed
    elif script in PREPARE:
        assert listed.count("\n  --") >= 4
        settings += own_settings("prepare/corpus.py") if "shakespeare" not in script else []
    for key, value in settings:
        value = "auto" if value == "None" else value
        assert f"\n  --{key}={value} " in listed, f"{key} does not fit on one line of {script}"


def own_settings(script):
    """(name, source of its default) of each setting that the script's own class states."""
    source = (ROOT / script).read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == "Settings")
    lines = [node for node in body if isinstance(node, ast.Assign)]
    pairs = [
        (line.targets[0].id.rstrip("_"), ast.get_source_segment(source, line.value))
        for line in lines
    ]
    return [(name, value) for name, value in pairs if not name.startswith("_")]


@pytest.fixture
def script(tmp_path):
    """Writes a script from the source of its Settings and of its main, and returns its path."""

    def make(name, settings, main="print(configurator.load(Settings).lr)"):
        path = tmp_path / f"{name}.py"
        path.write_text(f"""\
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
from parts import configurator
from parts.start import run_script
{settings}
def main():
    {main}
if __name__ == "__main__":
    run_script(main)
""")
        return path

    return make


def test_help_names_the_script_whose_settings_are_inherited(script):
    script(
        "first",
        """
class Settings:
    _script = "first.py"
    _presets = {"optimizer": {"lion": {"lr": 3e-4}}}

    # Training
    lr = 1e-3  # peak learning rate
    optimizer = "adamw"  # adamw, lion
""",
    )
    second = script(
        "second",
        """
import first
class Settings(first.Settings):
    repeats = 5  # rounds
""",
    )
    listed = run(second, "--help").stdout
    assert "--repeats=5" in listed and "--lr" not in listed and "lion" not in listed
    assert "All settings of first.py may be given too: python first.py --help lists them" in listed
    assert run(second, "--repeats=2", "--optimizer=lion").stdout == "0.0003\n"
    listed = run(second.with_name("first.py"), "--help").stdout
    for part in ("Training", "--lr=1e-3", "peak learning rate", "--optimizer=lion", "lr=0.0003"):
        assert part in listed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_script_with_one_line_after_it_has_tidied_up(script, number):
    main = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("tidy")
"""
    command = [sys.executable, script("waits", "", main)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (130, "tidy\n", "interrupted\n")


def test_a_closed_pipe_is_no_error_and_a_bug_has_its_traceback(script):
    chatty = script("chatty", "", "[print(i) for i in range(100_000)]")
    process = subprocess.Popen(
        [sys.executable, chatty], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(30) == 130
    buggy = run(script("buggy", "", "1 / 0"), ok=False)
    assert buggy.returncode == 1 and "ZeroDivisionError" in buggy.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's device that is full")
@pytest.mark.parametrize("lines", [1, 100_000])  # noticed when the script ends, or before
def test_a_disk_without_room_for_the_output_is_one_line(script, lines):
    chatty = script("chatty", "", f"[print(i) for i in range({lines})]")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, chatty], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.startswith("error: the disk is full"), done.stderr
    assert done.stderr.count("\n") == 1

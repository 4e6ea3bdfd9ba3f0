"""train.py and sample.py as a person uses them: train, look, stop, resume, be interrupted, hand the
result on."""

import json
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, in_process, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from parts import checkpoints, hf, runs
from parts import tokenizer as tokenization
from parts.checkpoints import load_checkpoint
from parts.generate import generate


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def start(*args):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_step(out, step, process):
    for _ in range(600):
        if (out / "metrics.jsonl").exists() and any(m["step"] >= step for m in metrics(out)):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("the run never got there")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (dict, list)):
        pairs = (
            zip(a.values(), b.values(), strict=True)
            if isinstance(a, dict)
            else zip(a, b, strict=True)
        )
        return all(same(x, y) for x, y in pairs)
    return a == b


def test_a_run_learns_and_leaves_what_it_promises(trained):
    settings = json.loads((trained / "run.json").read_text())["settings"]
    assert settings["compile"] is False and settings["threads"] >= 1  # what was decided by itself
    values = [m["val_loss"] for m in metrics(trained) if "val_loss" in m]
    assert (
        len(values) == 3
        and values[0] == pytest.approx(6.93, abs=0.1)
        and values[0] > values[1] > values[2]
    )  # ln 1024
    assert {
        "step",
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_s",
        "mfu",
        "loss_scale",
        "elapsed",
    } <= metrics(trained)[1].keys()
    files = {file.name for file in trained.iterdir()}
    assert files == {
        "ckpt.pt",
        "ckpt.1.pt",
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "config.json",
        "generation_config.json",
        "README.md",
        ".gitignore",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "number, code, how",
    [
        (signal.SIGINT, 130, ("--optimizer=adamw", "--dropout=0.1", "--grad_accum=2")),
        (signal.SIGTERM, 143, ("--optimizer=muon",)),
    ],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(
    dataset, tmp_path, number, code, how, monkeypatch
):
    settings = [
        f"--dataset={dataset}",
        *TINY,
        "--max_iters=40",
        "--eval_interval=20",
        "--save_best",
        *how,
    ]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert in_process(monkeypatch, *settings, f"--out_dir={straight}") == 0
    process = start(
        *settings, f"--out_dir={stopped}", "--eval_tasks=mine"
    )  # looking on changes nothing
    wait_for_step(stopped, 7, process)
    process.send_signal(number)
    said = process.communicate()[0].decode()
    assert "stopping after this step" in said and process.returncode == code
    assert 7 <= load_checkpoint(stopped / "ckpt.pt")["step"] < 40
    python, *command = shlex.split(said.splitlines()[-1].partition("go on with: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    for name in ("ckpt.pt", "best.pt"):
        a, b = load_checkpoint(straight / name), load_checkpoint(stopped / name)
        assert all(
            same(a[key], b[key]) for key in ("model", "optimizers", "scaler", "step", "best_loss")
        ), name

    def curve(out):
        return {m["step"]: m["loss"] for m in metrics(out) if "loss" in m}

    assert curve(straight) == curve(stopped) and len(curve(straight)) == 40
    before = metrics(stopped)
    again = *settings, f"--out_dir={stopped}", "--init_from=auto"
    # Of a run that has ended, nothing is done again.
    assert in_process(monkeypatch, *again) == 0 and metrics(stopped) == before
    assert in_process(monkeypatch, *again, "--max_iters=41", "--batch_size=2") == 0
    seen = {m["step"]: m["tokens"] for m in metrics(stopped) if "tokens" in m}
    assert (
        2 * (seen[41] - seen[40]) == seen[40] - seen[39] == seen[40] / 40
    )  # of half the size, and counted as such


def test_with_save_best_all_but_resuming_use_the_model_with_the_lowest_loss(
    dataset, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    settings = (f"--dataset={dataset}", f"--out_dir={out}", *TINY, "--eval_interval=10")
    settings += ("--save_best", "--note=does it get worse?", "--lr_schedule=constant")
    assert in_process(monkeypatch, *settings, "--max_iters=20", "--lr=3e-3") == 0
    worse = ("--max_iters=40", "--lr=3", "--min_lr=3", "--init_from=resume", "--note=")
    assert in_process(monkeypatch, *settings, *worse) == 0
    printed = capsys.readouterr()
    best, last = (load_checkpoint(out / name) for name in ("best.pt", "ckpt.pt"))
    losses = {m["step"]: m["val_loss"] for m in metrics(out) if "val_loss" in m}
    assert (best["step"], last["step"]) == (20, 40) and losses[20] == min(losses.values())
    assert "going on from step 20" in printed.out
    told = f"best.pt is used: step 20, validation loss {losses[20]:.4f} (ckpt.pt: step 40)\n"
    assert printed.err.endswith(told)  # the export is told

    def used(name):
        state = runs.load_model(name).state_dict()
        return next(n for n, one in (("best", best), ("last", last)) if same(state, one["model"]))

    exported = tmp_path / "exported"
    exported.mkdir()
    for name in ("config.json", "model.safetensors"):
        (exported / name).write_bytes((out / name).read_bytes())
    assert same(dict(hf.from_pretrained(exported).state_dict()), dict(best["model"]))
    assert used(out) == "best" and used(out / "ckpt.pt") == "last"
    about = json.loads((out / "run.json").read_text())
    assert about["exported"] == {"step": 20, "val_loss": losses[20]}
    assert about["settings"]["note"] == "does it get worse?"  # the run's still
    card = (out / "README.md").read_text()
    assert "| step of this model | 20 |" in card and f"| {losses[20]:.4g} |" in card
    done = run("eval.py", f"--ckpt={out}", "--tasks=mine", "--device=cpu")
    assert told in done.stderr
    measured = json.loads((out / "eval.json").read_text())["measured"]
    assert measured == {"checkpoint": "best.pt", "step": 20}

    # One that is damaged, or of another training, is passed over, and that is said.
    whole = (out / "best.pt").read_bytes()
    capsys.readouterr()
    for content in (whole[:-1000], whole[:30000] + bytes(9) + whole[30009:]):
        (out / "best.pt").write_bytes(content)
        assert used(out) == "last" and "the newest checkpoint is used" in capsys.readouterr().err
    checkpoints.save_checkpoint(out / "best.pt", best | {"began": 1.0})
    assert used(out) == "last" and "another training or other data" in capsys.readouterr().err
    checkpoints.save_checkpoint(out / "ckpt.pt", last | {"best_loss": 0.1})  # without save_best
    checkpoints.save_checkpoint(out / "best.pt", best)
    assert used(out) == "last" and "the validation loss became lower" in capsys.readouterr().err
    (out / "ckpt.pt").write_bytes(b"")
    (out / "ckpt.1.pt").unlink()
    assert used(out) == "best"


def test_transformers_continues_20_prompts_with_the_same_64_tokens(trained, dataset):
    theirs, their_tokenizer = (
        AutoModelForCausalLM.from_pretrained(trained),
        AutoTokenizer.from_pretrained(trained),
    )
    ours, tokenizer = hf.from_pretrained(trained).eval(), tokenization.load(trained)
    text = tokenizer.decode(
        torch.from_file(str(dataset / "val.bin"), size=20_000, dtype=torch.uint16).tolist()
    )
    prompts = [text[i * 500 : i * 500 + 60] for i in range(20)]
    for prompt in prompts:
        ids = [tokenizer.eot, *tokenizer.encode(prompt)]
        given = their_tokenizer(prompt, return_tensors="pt")
        assert given["input_ids"].tolist() == [ids]
        expected = theirs.generate(**given, max_new_tokens=64, do_sample=False, eos_token_id=None)[
            0, len(ids) :
        ]
        assert generate(ours, [ids], 64, temperature=0)[0] == expected.tolist()


def test_the_exported_tokenizer_gives_transformers_the_same_ids_on_1000_real_files(
    trained, real_files
):
    theirs, ours = AutoTokenizer.from_pretrained(trained), tokenization.load(trained)
    for text in real_files:
        ids = theirs(text, split_special_tokens=True, verbose=False)["input_ids"]
        assert ids == [ours.eot, *ours.encode(text)]


def test_training_starts_from_an_exported_folder_where_the_other_run_ended(
    trained, dataset, tmp_path
):
    out = tmp_path / "next"
    run(
        "train.py",
        f"--dataset={dataset}",
        f"--out_dir={out}",
        f"--init_from={trained}",
        *TINY,
        "--max_iters=2",
    )
    assert metrics(out)[0]["val_loss"] == pytest.approx(metrics(trained)[-1]["val_loss"], abs=1e-6)
    run(
        "train.py", f"--dataset={dataset}", f"--out_dir={out}", *TINY, "--max_iters=1"
    )  # a new run sets the old one aside
    assert (
        load_checkpoint(tmp_path / "next.1" / "ckpt.pt")["step"] == 2
        and load_checkpoint(out / "ckpt.pt")["step"] == 1
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")  # torch's compiler
def test_compiled_and_bf16_follow_the_plain_run_and_a_missing_compiler_is_one_line(
    dataset, tmp_path, monkeypatch, capsys
):
    settings = [f"--dataset={dataset}", *TINY, "--max_iters=8", "--eval_interval=8"]
    losses = {}
    for name, how in {
        "plain": (),
        "compiled": ("--compile",),
        "bf16": ("--dtype=bfloat16",),
        "recomputed": ("--checkpoint_activations", "--eval_interval=0"),
    }.items():
        how = *settings, "--dtype=float32", f"--out_dir={tmp_path / name}", *how
        assert in_process(monkeypatch, *how) == 0
        losses[name] = torch.tensor([m["loss"] for m in metrics(tmp_path / name) if "loss" in m])
        assert "does not work" not in capsys.readouterr().out
    assert torch.allclose(losses["plain"], losses["compiled"], atol=1e-4)
    assert torch.allclose(losses["plain"], losses["bf16"], atol=2e-2) and not torch.equal(
        losses["plain"], losses["bf16"]
    )
    assert (
        torch.equal(losses["plain"], losses["recomputed"])
        and len(metrics(tmp_path / "recomputed")) == 9
    )  # one evaluation, the last
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = run("train.py", *settings, "--compile", f"--out_dir={tmp_path / 'fallback'}")
    assert done.stdout.count("torch.compile does not work here, going on without it") == 1


def test_samples_stream_stop_and_repeat(trained, tmp_path):
    once = run("sample.py", f"--ckpt={trained}", "--prompt=def f(", "--max_new_tokens=60").stdout
    assert once.startswith("def f(") and len(once) > 30
    (tmp_path / "prompt.py").write_text("def f(")
    assert (
        run(
            "sample.py",
            f"--ckpt={trained}",
            "--prompt_file=prompt.py",
            "--max_new_tokens=60",
            cwd=tmp_path,
        ).stdout
        == once
    )
    assert (
        run(
            "sample.py", f"--ckpt={trained}", "--prompt=-", "--max_new_tokens=60", stdin="def f("
        ).stdout
        == once
    )
    stop = once[20:23]
    stopped = run(
        "sample.py", f"--ckpt={trained}", "--prompt=def f(", "--max_new_tokens=60", f"--stop={stop}"
    ).stdout
    assert stopped == once[: once.index(stop, len("def f("))] + "\n"
    many = run(
        "sample.py",
        f"--ckpt={trained}",
        "--prompt=def f(",
        "--num_samples=3",
        "--max_new_tokens=20",
    ).stdout
    assert many.count("def f(") >= 3 and many.count("sample ") == 3


def test_a_model_that_hugging_face_cannot_represent_trains_resumes_and_samples_without_an_export(
    dataset, tmp_path
):
    settings = [
        f"--dataset={dataset}",
        f"--out_dir={tmp_path / 'run'}",
        *TINY,
        "--activation=swiglu",
    ]
    said = run("train.py", *settings, "--max_iters=6").stdout
    assert (
        "not exported: Hugging Face's GPT-NeoX has no swiglu" in said and "done at step 6" in said
    )
    assert not (tmp_path / "run" / "model.safetensors").exists()
    before = metrics(tmp_path / "run")[-1]["val_loss"]
    start = [f"--init_from={tmp_path / 'run'}", f"--out_dir={tmp_path / 'next'}", "--max_iters=1"]
    run("train.py", *settings, *start)  # a run is also a model to start another one from
    assert metrics(tmp_path / "next")[0]["val_loss"] == pytest.approx(before, abs=1e-6)
    run("train.py", *settings, "--max_iters=9", "--init_from=resume")
    assert load_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 9
    assert run(
        "sample.py", f"--ckpt={tmp_path / 'run'}", "--prompt=def f(", "--max_new_tokens=5"
    ).stdout.startswith("def f(")

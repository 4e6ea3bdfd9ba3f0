"""bench.py and tools/: measuring, comparing, planning."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import bench
import optim
import train
from model import NeoX, NeoXConfig
from parts import configurator, fast, files, memory, plots
from tools import plan

# --- bench.py -------------------------------------------------------------------------------------


def test_bench_takes_a_step_apart():
    out = run("bench.py", *TINY, "--repeats=2", "--steps=1", "--dtype=float32").stdout
    pattern = r"nanoNeoX float32 eager +[\d,]+ tokens/s .*% of the peak, 0\.\d+ GiB"
    assert re.search(pattern, out), out
    parts = dict(re.findall(r"(data|forward|backward|optimizer) ([\d.]+) ms", out))
    assert len(parts) == 4 and all(float(value) > 0 for value in parts.values())


def test_a_plan_says_what_fits_how_long_it_takes_and_what_it_costs(monkeypatch, capsys):
    def planned(*args):
        monkeypatch.setattr(sys, "argv", ["plan.py", *args])
        plan.main()
        return capsys.readouterr().out

    command = ("config/python_t4.py", "--vocab_size=50304")
    out = planned(*command, "--price=2", "--gpus=2")
    surely, perhaps = map(int, re.search(r"largest batch_size (\d+), perhaps (\d+)", out).groups())
    verdicts = {surely: ": fits in", surely + 1: ": may fit in", perhaps: ": may fit in"}
    for batch, verdict in (verdicts | {perhaps + 1: "DOES NOT FIT"}).items():
        assert verdict in planned(*command, f"--batch_size={batch}")

    # By hand: a matrix's parameter takes 6 FLOP a token, attention's sums 12 times width and
    # context; 15 to 40 % of 65 TFLOP/s on each of two cards, 10 to 120 s of compiling, and 21
    # evaluations on one card, a forward only.
    flops = 6 * (8 * 12 * 512**2 + 50304 * 512) + 8 * 12 * 512 * 512
    batch = 32 * 512
    hours = [
        (10_000 * 2 * batch * flops / 2 + 21 * 20 * batch * flops / 3) / (share * 65e12) + compiling
        for share, compiling in ((0.4, 10), (0.15, 120))
    ]
    costs = re.search(r"cost +([\d.]+) to ([\d.]+)", out).groups()
    for cost, seconds in zip(costs, hours):
        assert float(cost) == pytest.approx(2 * 2 * seconds / 3600, rel=0.05)
    # A GPU of one's own with a T4's numbers is a T4, and all of them make a table.
    other = planned(*command, "--gpu_memory=14.6", "--tflops=65", "--dtype=float16")
    assert other.splitlines()[3:] == planned(*command).splitlines()[3:]
    table = planned(*command, "--gpu=all").splitlines()
    assert {line.split()[0] for line in table[2:]} == set(plan.GPUS)
    assert "fits" in table[2] and f"  {surely}  " in table[2]
    for wrong in ("--tflops=5", "--gpu=t5", "--dtype=bfloat16", "--price=-1", "--n_embd=9000"):
        with pytest.raises(SystemExit) as ended:
            planned(*command, wrong)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and said.startswith("error: "), said


def test_a_peer_takes_train_pys_step_in_parts_that_add_up_and_generates(monkeypatch):
    argv = ["bench.py", *TINY, "--vocab_size=50", "--new_tokens=4", "--dtype=float16"]
    monkeypatch.setattr(sys, "argv", argv)
    seconds = []
    for kind in ("nanoNeoX", "transformers"):
        with bench.Process(f"{kind},float16,eager", "train") as process:
            assert process.ready, process.last_words()
            answer = process.turn(1)
            assert set(answer["parts"]) == {"forward", "backward", "data", "optimizer"}
            seconds.append(answer["seconds"] - sum(answer["parts"].values()))
        with bench.Process(f"{kind},float32,eager", "generate 8") as process:
            assert process.ready and process.turn(1)["seconds"] > 0, process.last_words()
    assert max(seconds) < 0.1


def test_a_contender_that_does_not_run_is_left_out_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *TINY, "--activation=swiglu", "--vocab_size=50"])
    names = ["nanoNeoX,float32,eager", "transformers,float32,eager"]
    assert list(bench.race(names, "train", 1, 1, "cpu")) == names[:1]
    assert (
        "is left out: ValueError: Hugging Face's GPT-NeoX has no swiglu" in capsys.readouterr().out
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's process table")
def test_an_idle_contender_uses_no_cpu_whatever_openmp_does(monkeypatch):
    def cpu_seconds(process):
        fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    monkeypatch.setattr(sys, "argv", ["bench.py", *TINY, "--vocab_size=50"])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with bench.Process("matrix product,float32,eager", "train") as process:
        process.turn(1)
        before = cpu_seconds(process)
        time.sleep(1)
        assert cpu_seconds(process) - before <= 0.02
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # threads then wait by spinning
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinite")
    with bench.Process("matrix product,float32,eager", "train") as process:
        with pytest.raises(SystemExit):
            process.turn(1)
        assert "unset OMP_WAIT_POLICY" in process.last_words()


@pytest.mark.parametrize("device, most", [("cuda", 1), ("cpu", 3)])
def test_contenders_run_one_at_a_time_on_a_gpu_and_in_turns_on_a_cpu(device, most, monkeypatch):
    alive, turns, counts = set(), [], []

    class Fake:
        ready = True

        def __init__(self, name, action):
            self.name = name

        def turn(self, count):
            turns.append(self.name)
            counts.append(len(alive))
            return {"seconds": 1.0}

        def __enter__(self):
            alive.add(self.name)
            return self

        def __exit__(self, *_):
            alive.discard(self.name)

    monkeypatch.setattr(bench, "Process", Fake)
    answers = bench.race(["a", "b", "c"], "train", 1, 2, device)
    assert {name: len(answer) for name, answer in answers.items()} == {"a": 2, "b": 2, "c": 2}
    assert max(counts) == most
    assert turns == (list("aaaabbbbcccc") if device == "cuda" else list("abc") * 4)


def test_help_lists_what_a_person_may_set_and_nothing_internal():
    out = run("bench.py", "--help").stdout
    assert "--peers" in out and "contender=" not in out


# --- plan.py --------------------------------------------------------------------------------------

LONG_SHAPES = [  # more than 512 tokens, so that attention is the fused one that GPUs use
    dict(n_layer=3, n_head=4, n_embd=64, vocab_size=300, block_size=520),
    dict(n_layer=6, n_head=6, n_embd=96, vocab_size=1000, block_size=600, tie_embeddings=True),
    dict(n_layer=2, n_head=2, n_embd=80, vocab_size=500, block_size=530)
    | dict(parallel_residual=False, activation="swiglu"),
]


def estimate(config, *arguments, dtype="float32"):
    """What parts/memory.py says that a training with these settings needs on a GPU."""
    cfg = configurator.load(train.Settings, ["--batch_size=2", *arguments])
    return memory.training(config, cfg, memory.state_kept(config, cfg), dtype)


def bytes_for_backward(model, run):
    """What autograd keeps of run() until backward, each storage once, without weights and
    buffers."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            # Holding it, so that no address is used twice.
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", LONG_SHAPES)
def test_activations_are_what_autograd_keeps(shape, dtype, recompute):
    # The CPU's casts are a GPU's: the lists of operators differ, but LayerNorm reads float32 with
    # both.
    config = NeoXConfig(**shape)
    model, idx = NeoX(config), torch.randint(config.vocab_size, (2, config.block_size))
    layer, T = model.gpt_neox["layers"][0], config.block_size
    x = torch.randn(2, T, config.n_embd, requires_grad=True)
    matrices = 0
    if dtype != "float32":
        matrices = 2 * sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
        counted = 0
        if recompute:
            # The block that backward is in, but for its input, which is counted with the others'.
            counted = bytes_for_backward(model, lambda: layer(x, model.cos[:T], model.sin[:T]))
            counted -= x.nbytes + matrices
            model.checkpoint_activations = True
        counted += bytes_for_backward(model, lambda: model.hidden(idx))
        counted -= 0 if recompute else config.n_layer * matrices
    found = estimate(config, f"--checkpoint_activations={recompute}", dtype=dtype)
    assert found["activations"] == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
@pytest.mark.parametrize("shape", LONG_SHAPES)
def test_weights_gradients_and_optimizer_states_are_exact(shape, optimizer):
    model = NeoX(NeoXConfig(**shape))
    cfg = configurator.load(train.Settings, [f"--optimizer={optimizer}"])
    optimizers = optim.build(model, cfg)
    idx = torch.randint(300, (1, 8))
    model(idx, idx).backward()
    for one in optimizers:
        one.step()
    tensors = (t for one in optimizers for state in one.state.values() for t in state.values())
    states = sum(t.nbytes for t in tensors if t.dim())  # without the counters
    found = estimate(model.config, f"--optimizer={optimizer}")
    assert found["weights"] == sum(p.nbytes for p in model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert found["optimizer"] == states


class LiveBytes(TorchDispatchMode):
    """The most bytes that the tensors made in this context take at one time, without `known`."""

    def __init__(self, known):
        super().__init__()
        self.known, self.peak = {t.untyped_storage().data_ptr() for t in known}, 0
        self.alive = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.alive[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


LOSSES = [  # tokens, width, vocabulary, dtype, logits held at a time: what there is most of
    (4000, 64, 1000, "float32", 500_000),  # logits, in parts
    (400, 64, 1000, "float32", 500_000),  # logits, all at once
    (400, 600, 1000, "float32", 50_000),  # the head's gradient
    (4000, 600, 1000, "float32", 50_000),  # hidden states
    (400, 600, 1000, "float16", 50_000),
    (4000, 600, 1000, "float16", 50_000),
]


@pytest.mark.parametrize("tokens, width, vocabulary, dtype, most", LOSSES)
def test_the_loss_holds_what_the_plan_says(tokens, width, vocabulary, dtype, most, monkeypatch):
    # With these float16 shapes the logits, of which a CPU's softmax makes a copy and a GPU's does
    # not, take less than what follows them.
    monkeypatch.setattr(fast, "MAX_LOGITS", {"cpu": most})
    monkeypatch.setattr(memory, "MAX_LOGITS", {"cuda": most})
    x = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    autocast = torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32")
    with autocast, LiveBytes([x, weight, targets]) as live:
        fast.LinearCrossEntropy.apply(x, weight, targets)
    shape = dict(vocab_size=vocabulary, n_embd=width, n_head=1, rotary_pct=0.0)
    found = memory.loss_bytes(NeoXConfig(**shape), tokens, dtype)
    assert found == pytest.approx(live.peak + x.nbytes, rel=0.02)


# --- the other tools ------------------------------------------------------------------------------


def test_a_leaderboard_runs_its_entries_in_turn_and_keeps_them(dataset, tmp_path):
    plot, board = tmp_path / "curves.png", tmp_path / "board"
    script, short = "tools/leaderboard.py", ("--max_iters=8", "--eval_interval=0", "--seeds=2")
    how = [f"--dataset={dataset}", *TINY, *short, "--entries=adamw/muon", f"--plot={plot}"]
    how += [f"--runs_dir={board}"]
    done = run(script, *how)
    lines = (done.stdout + done.stderr).splitlines()
    turns = [line.split()[0] for line in lines if " seed " in line and "steps" in line]
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert turns == ["adamw", "muon"] * 2 and sorted(rows[2:]) == ["adamw", "muon"]
    assert "± 0.0000" not in done.stdout and plot.read_bytes()[:4] == b"\x89PNG"
    kept = [f"{name}.{seed}" for name in ("adamw", "muon") for seed in (1, 2)]
    losses = {name: (board / name / "metrics.jsonl").read_text() for name in kept}
    ended = json.loads((board / "leaderboard.json").read_text())
    del ended["muon.2"]  # as if interrupted before its end
    (board / "leaderboard.json").write_text(json.dumps(ended))
    done = run(script, *how)
    assert (done.stdout + done.stderr).count("trained before") == 3
    assert sorted(os.listdir(board)) == sorted([*kept, "leaderboard.json", "muon.2.1"])
    again = {name: (board / name / "metrics.jsonl").read_text() for name in kept}
    assert [name for name in kept if again[name] != losses[name]] == ["muon.2"]
    moved = run(script, "--compare", board / "adamw.1", ok=False)
    assert moved.returncode == 2 and "tools/compare.py" in moved.stderr
    wrong = run(script, "--entries=adamx", ok=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: unknown entry 'adamx'")


def test_an_algorithm_has_its_colour_in_every_picture():
    one = plots.looks(["adamw", "cautious", "lion", "muon", "muon, swiglu"])
    two = plots.looks(["muon", "adamw"])
    runs = plots.looks(["mine", "out.2", "muon.1", "muon.2", "muon_swiglu.1"])
    assert two["muon"] == one["muon"] == runs["muon.1"] != two["adamw"] == one["adamw"]
    assert runs["muon_swiglu.1"] == one["muon, swiglu"]
    assert runs["muon.2"]["color"] == one["muon"]["color"] and runs["muon.2"] != runs["muon.1"]
    assert runs["mine"] == plots.looks(["mine"])["mine"]
    many = plots.looks([f"run{n}" for n in "abcdefghijklmnop"]).values()
    assert len({tuple(look.values()) for look in many}) == 16


def test_a_start_is_timed_and_started_again(dataset):
    out = run("tools/startup.py", f"--dataset={dataset}", *TINY, "--repeats=1").stdout
    took = r": \d+\.\d s to the end of step 1\n"
    assert re.fullmatch(f"first start{took}started again{took}", out), out


def test_the_table_of_measurements(tmp_path):
    for folder in "abcdefgh":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text("def f(x):\n    return x\n" * 20)
    command = [sys.executable, ROOT / "tools" / "tokenizer_ablation.py", f"--path={tmp_path}"]
    done = subprocess.run([*command, "--vocab_size=280"], capture_output=True, text=True)
    assert done.returncode == 0 and "gpt2 " in done.stdout and "code " in done.stdout
    for wrong in ("--vocab_size=9", "--suffix=.none", "--paht=x"):
        done = subprocess.run([*command, wrong], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


# --- tools/install.py -----------------------------------------------------------------------------


def test_install_adds_what_is_missing_and_keeps_the_version_of_what_is_there(tmp_path, monkeypatch):
    def install(text, ok=True):
        (tmp_path / "wanted.txt").write_text(text)
        done = run("tools/install.py", f"--file={tmp_path / 'wanted.txt'}", "--dry_run", ok=ok)
        return done.stdout if ok else (done.returncode, done.stderr)

    monkeypatch.setenv("PIP_NO_INDEX", "1")  # without a network
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    newer = f"9{np.__version__}"
    for name, version in (("crumb", "1.0"), ("numpy", newer)):
        with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            wheel.writestr(f"{name}-{version}.dist-info/METADATA", about)
            wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")
            kind = "Wheel-Version: 1.0\nTag: py3-none-any\n"
            wheel.writestr(f"{name}-{version}.dist-info/WHEEL", kind)
    assert "everything is there already" in install("numpy\ntorch>=2.9\n")
    assert "added: crumb==1.0\n" in (out := install("crumb\nnumpy\n")) and "replaced: 0" in out
    code, error = install(f"numpy=={newer}\n", ok=False)
    assert code == 2 and "no versions go with what is installed here" in error


# --- tools/health.py ------------------------------------------------------------------------------


def test_health_tells_a_training_that_goes_on_from_one_that_stands_still(trained, tmp_path):
    def health(*args, ok=True):
        done = run("tools/health.py", f"--out={tmp_path}", *args, ok=ok)
        return (done.returncode, done.stdout)

    folder = shutil.copytree(trained, tmp_path / "run")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    lock = files.Lock(folder)  # as train.py does
    lock.sign()
    (folder / "metrics.jsonl").touch()
    code, out = health()
    assert code == 0 and out.startswith(f"run: step {last}, loss ")
    for name in ("lock", "metrics.jsonl", "ckpt.pt"):
        os.utime(folder / name, (time.time() - 90,) * 2)
    assert health("--minutes=2")[0] == 0 and health("--minutes=1", ok=False)[0] == 1
    lock.release()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for left in ("", f"{killed.pid} on {platform.node()}", f"{os.getpid()} on elsewhere"):
        (folder / "lock").write_text(f"process {left}\n")
        assert health("--minutes=1") == (0, "no training runs here\n")
    code, out = health("--url=http://127.0.0.1:9/health", ok=False)
    assert code == 1 and "refused" in out

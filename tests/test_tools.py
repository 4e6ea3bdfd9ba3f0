"""bench.py and tools/: measuring, comparing, planning."""

import contextlib
import io
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
from parts import configurator, fast, files, memory, plots, runs
from tools import experiment, ladder, leaderboard, plan, trials
from tools.law import Law, fit

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
    dict(n_layer=3, n_head=2, n_embd=64, vocab_size=400, block_size=540, shared_norm=True, n_mix=3),
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


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A data set of characters in which there is something to learn: sums and their results."""
    folder = tmp_path_factory.mktemp("letters")
    lines = [
        f"{a} and {b} are {a + b}, as everybody knows.\n" for a in range(60) for b in range(20)
    ]
    (folder / "sums.txt").write_text("".join(np.random.default_rng(1).permutation(lines)))
    out = folder / "sums"
    run("prepare/shakespeare.py", f"--file={folder / 'sums.txt'}", f"--out={out}")
    return out


@pytest.fixture
def laboratory(letters, tmp_path, monkeypatch, capsys):
    """`python tools/leaderboard.py args` on the letters, in this process, and so are the trainings:
    a dozen processes would take a minute to start. Returns what was printed; `trained` lists the
    runs, and before(name, out) is called before each."""

    def train_once(name, arguments, out):
        laboratory.before(name, out)
        laboratory.trained.append(name)
        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.setattr(sys, "argv", ["train.py", *arguments, f"--out_dir={out}"])
            patch.setattr(runs.Run, "draw", lambda *_: None)
            train.main()
        return trials.read(out)

    def laboratory(*args, ok=True):
        places = [f"--plot={tmp_path}/p.png", f"--record={tmp_path}/notes.md"]
        small = [f"--dataset={letters}", *TINY, "--block_size=32", "--dtype=float32", "--lr=1e-2"]
        monkeypatch.setattr(sys, "argv", ["leaderboard.py", *small, *places, *map(str, args)])
        laboratory.trained.clear()
        if ok:
            leaderboard.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            leaderboard.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
        return said

    laboratory.trained, laboratory.before = [], lambda name, out: None
    monkeypatch.setattr(trials, "train_once", train_once)
    return laboratory


def rows_of(text):
    """{first cell: the others} for each row of the Markdown tables, later ones winning."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in rows}


def test_an_experiment_is_measured_recorded_and_drawn_again(laboratory, tmp_path):
    tried = "--try=same: --rotary_base=1e4 / --batch_size=2"
    how = (tried, "--why=none of it matters", "--seeds=2")
    done = laboratory(*how, "--max_iters=10")
    rows = rows_of(done)
    # The same settings give the same loss, bit for bit; half the tokens a step, twice the steps.
    assert rows["same"][1:] == ["+0.00 %", "+0.0000, +0.0000", "10", rows["same"][4], "100%"]
    assert rows["today"][0] == rows["same"][0] and "±" in rows["today"][0]
    assert rows["batch_size=2"][3] == "20" and rows["batch_size=2"][0] != rows["today"][0]
    assert laboratory.trained == ["today, tokens", "same, tokens", "batch_size=2, tokens"] * 2
    assert "not kept**, as nothing was trained for equal time" in done
    notes = (tmp_path / "notes.md").read_text()
    assert notes in done and "- hypothesis: none of it matters\n" in notes
    assert str(tmp_path) not in notes and "--dataset=sums" in notes
    # Once more, at equal time too: nothing that was there is lost.
    both = laboratory("--try=--batch_size=2", "--seeds=1", "--max_iters=4", "--seconds=0.1")
    assert both.count("| today |") == 2 and "before is now" in both
    assert (tmp_path / "notes.md").read_text().startswith(notes)
    assert {"p.png", "p.1.png", "p.json", "p.1.json"} <= set(os.listdir(tmp_path))
    assert (tmp_path / "p.json").stat().st_size < 60_000
    picture = (tmp_path / "p.png").read_bytes()
    again = laboratory(f"--draw={tmp_path}/p.json", f"--plot={tmp_path}/q.png")
    assert not laboratory.trained and again.partition("drawn in")[0].strip() in both
    assert (tmp_path / "q.png").read_bytes() == picture


def test_a_verdict_follows_from_the_seeds_at_equal_time():
    def verdict(today, tried, limit="time"):
        found = {
            name: [{"bits_per_byte": bits} for bits in losses]
            for name, losses in (("today", today), ("new", tried))
        }
        return experiment.verdict({"rounds": [{"limit": limit, "runs": found}]}, "new")

    assert "**new: kept**" in verdict((2.00, 2.02, 2.04), (1.96, 1.98, 2.00))
    assert "**new: not kept**" in verdict((2.00, 2.02, 2.04), (1.99, 2.01, 2.03))  # by half of it
    assert "**new: not kept**" in verdict((2.00, 2.02, 2.04), (2.06, 2.08, 2.10))
    assert "**new: not kept**" in verdict((2.00, 2.02), (1.0, 1.02), "tokens")
    assert "**new: not kept**" in verdict((2.0,), (1.0,))


def test_an_experiment_compares_the_same_text_alone(laboratory, letters, tmp_path):
    other = shutil.copytree(letters, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    meta["val"]["bytes"] += 1
    (other / "meta.json").write_text(json.dumps(meta))
    said = laboratory(f"--try=--dataset={other}", "--max_iters=2", ok=False)
    assert "losses on different text cannot be compared" in said and not laboratory.trained


def test_a_law_is_found_again_and_foretells_four_times_the_compute():
    n = np.array([0.6e6, 1e6, 1.6e6, 2.4e6, 4.2e6] * 2)
    compute = np.repeat([2e13, 8e13], 5)
    for truth in (Law(0.7, 150, 0.4, 900, 0.42), Law(1.1, 30, 0.3, 4e4, 0.75)):
        found, error = fit(n, compute / (6 * n), truth.loss(n, compute / (6 * n)))
        assert found == pytest.approx(truth, rel=0.05) and error < 1e-9
        # And where nothing is exact, what was measured within 0.2 % is foretold within 2 %.
        chance = 1 + 0.002 * np.random.default_rng(1).choice([-1, 1], 10)
        noisy, _ = fit(n, compute / (6 * n), chance * truth.loss(n, compute / (6 * n)), starts=3)
        for size in (2.4e6, 6e6):
            there = size, 4 * 8e13 / (6 * size)
            assert found.loss(*there) == pytest.approx(truth.loss(*there), rel=1e-3)
            assert noisy.loss(*there) == pytest.approx(truth.loss(*there), rel=0.02)


def test_a_law_leaves_out_trainings_of_few_steps_if_enough_others_are_there():
    def through(*steps):
        points = [dict(steps=n, tokens=4096 * n, bits_per_byte=1 + 1 / n) for n in steps]
        shapes, tokens, losses = ladder.fitted([f"shape {n}" for n in steps], points)
        assert losses == [1 + 4096 / n for n in tokens]
        return [int(shape.split()[1]) for shape in shapes]

    assert through(33, 80, 109, 132, 149, 219, 259) == [80, 109, 132, 149, 219, 259]
    assert through(33, 65, 80, 132, 149, 219, 259) == [33, 65, 80, 132, 149, 219, 259]


def test_a_ladder_foretells_before_it_trains_and_goes_on_after_an_end(laboratory, tmp_path):
    def interrupt(name, out):
        if len(laboratory.trained) == 7:
            raise KeyboardInterrupt

    how = ("--ladder", "--max_iters=24", f"--runs_dir={tmp_path}/board", "--warmup_iters=1")
    laboratory.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        laboratory(*how)
    before, seen = list(laboratory.trained), []
    laboratory.before = lambda name, out: seen.append((name, (tmp_path / "p.json").exists()))
    done = laboratory(*how)
    assert len(before) == 7 and done.count("trained before") == 7
    assert [there for _, there in seen] == [False] * 3 + [True]  # predicted, then trained
    sizes = [name.split(",")[0] for name in before] + [name.split(",")[0] for name, _ in seen[:3]]
    assert sizes[:5] == sizes[5:] and len(set(sizes)) == 5
    notes = (tmp_path / "notes.md").read_text()
    predicted, reached = map(float, re.findall(r"\*\*([\d.]+)\*\*", notes))
    off = float(re.search(r"off by ([-+\d.]+) %", notes)[1])
    assert off == pytest.approx(100 * (predicted / reached - 1), abs=0.02)
    assert notes.index("predicted before") < notes.index("and reached") and notes.strip() in done
    assert {"an hour here", "a day here", "five minutes here"} < set(rows_of(done))
    assert "an hour on a T4 at 15% of 65 TFLOP/s" in rows_of(done)
    again = laboratory(f"--draw={tmp_path}/p.json", f"--plot={tmp_path}/q.png")
    assert notes.strip() in again and not laboratory.trained
    assert (tmp_path / "q.png").read_bytes() == (tmp_path / "p.png").read_bytes()


@pytest.mark.parametrize(
    "key, value", [("law", {}), ("power", {}), ("points", []), ("frontier", [])]
)
def test_a_damaged_ladder_takes_one_line(laboratory, tmp_path, key, value):
    record = files.read_json(ROOT / "docs/records/ladder.json")
    record["ladder"][key] = value
    files.write_json(tmp_path / "damaged.json", record)
    said = laboratory(f"--draw={tmp_path}/damaged.json", ok=False)
    assert "the record is damaged" in said and key in said and said.count("\n") <= 1


@pytest.mark.parametrize(
    "mistake, said",
    [
        (["--try=--lr=1e-3"], "give --max_iters=N for equal tokens"),
        (["--try=--lr=1e-3 / x:", "--max_iters=2"], "an entry without settings"),
        (["--try=--lr='1", "--max_iters=2"], "No closing quotation"),
        (["--try=--lrr=1", "--max_iters=2"], "unknown setting 'lrr'"),
        (["--try=--seed=1", "--max_iters=2"], "an experiment decides seed itself"),
        (["--try=--lr=1 / --lr=1", "--max_iters=2"], "a short name of its own"),
        (["--ladder"], "give --minutes=M"),
        (["--ladder", "--minutes=1", "--max_iters=9"], "give one of them"),
        (["--ladder", "--max_iters=9", "--n_embd=2", "--n_head=1"], "a ladder needs four sizes"),
        (["--ladder", "--try=--lr=1", "--max_iters=9"], "run one after the other"),
        (["--record=train.py", "--try=--lr=1"], "is no place for a record"),
        (["--record_json=x.png"], "is no place for a record"),
        (["--draw=nowhere.json"], "there is no record"),
        (["--draw=config/python_cpu.py"], "is damaged"),
    ],
)
def test_a_laboratorys_mistakes_take_one_line(laboratory, mistake, said):
    assert said in laboratory(*mistake, ok=False) and not laboratory.trained


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

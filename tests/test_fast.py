"""parts/fast.py and 16 bits: the loss and its gradients where rounding hurts, float16 with a real
GradScaler on the CPU (a T4's path), torch.compile, and how often a step waits for the device."""

import functools
import json
import math

import pytest
import torch
from conftest import TINY, in_process
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import optim
from model import NeoX, NeoXConfig
from parts import device, fast, plots
from parts.checkpoints import load_checkpoint

SMALL = ("--block_size=16", "--n_embd=16", "--batch_size=2", "--eval_interval=0")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(plots, "losses", lambda *_: None)
    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def loss_and_gradients(dtype, x, weight, targets):
    """Of the hand-written loss in a dtype, as autocast runs it, and of torch's in float64."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = fast.LinearCrossEntropy.apply(x, weight, targets)
    exact = torch.nn.functional.cross_entropy(x.double() @ weight.double().T, targets)
    return [(one.item(), *torch.autograd.grad(one, (x, weight))) for one in (loss, exact)]


@pytest.mark.parametrize("dtype, logit", [(torch.bfloat16, 12.0), (torch.float16, 14.0)])
def test_a_target_that_is_all_but_certain_has_its_gradient(dtype, logit):
    x, weight = torch.eye(8)[:1].repeat(4, 1), torch.zeros(97, 8)
    weight[5] = logit  # exact in 16 bits; p is 0.9994 and 0.99992, which round to 1
    ours, exact = loss_and_gradients(dtype, x, weight, torch.full((4,), 5))
    for a, b in zip(ours[1:], exact[1:]):
        assert b.abs().max() > 0 and (a - b).norm() < 0.02 * b.norm()


def test_float16_on_a_cpu_knows_small_probabilities():
    x, weight = torch.eye(8)[:1].repeat(4, 1), torch.zeros(97, 8)
    weight[5] = 20.0  # the others have p = 2e-9, which float16 rounds to 0
    ours, exact = loss_and_gradients(torch.float16, x, weight, torch.full((4,), 6))
    assert ours[0] == pytest.approx(exact[0], rel=1e-3) and exact[0] > 19


def test_the_head_s_gradient_does_not_overflow_float16():
    torch.manual_seed(0)
    x, weight = torch.full((20_000, 8), 8.0) + torch.rand(20_000, 8), torch.randn(65, 8) / 10
    ours, exact = loss_and_gradients(torch.float16, x, weight, torch.zeros(20_000).long())
    assert 20_000 * 8 > torch.finfo(torch.float16).max
    assert (ours[2] - exact[2]).norm() < 0.01 * exact[2].norm()


def test_without_gradients_none_is_computed_and_the_loss_is_the_exact_one():
    torch.manual_seed(0)
    model = NeoX(NeoXConfig(vocab_size=97, block_size=32, n_layer=1, n_head=2, n_embd=32))
    fast.use_fast_forms(model, "cpu")
    x, targets = torch.randn(50, 32), torch.randint(97, (50,))
    targets[::5] = -100
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with FlopCounterMode(display=False) as counter:
            loss = model.loss(x, targets)
        logits = model.logits(x).float()
    assert counter.get_total_flops() == 2 * 50 * 32 * 97  # the logits, and no product more
    exact = torch.nn.functional.cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_float16_skips_steps_until_the_scale_fits_and_then_trains(dataset, tmp_path, monkeypatch):
    huge = functools.partial(torch.amp.GradScaler, init_scale=2.0**26)
    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    settings = [f"--dataset={dataset}", f"--out_dir={tmp_path}/run", *TINY, *SMALL]
    settings += ["--dtype=float16", "--lr=1e-2", "--lr_schedule=constant"]
    assert in_process(monkeypatch, *settings, "--max_iters=24") == 0
    lines = metrics(tmp_path / "run")
    skipped = sum(line["grad_norm"] is None for line in lines)
    scales = [line["loss_scale"] for line in lines]
    assert 2 <= skipped < 20 and scales[-1] == 2.0 ** (26 - skipped)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    checkpoint = load_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert checkpoint["scaler"]["scale"] == scales[-1]
    steps = {int(state["step"]) for state in checkpoint["optimizers"][0]["state"].values()}
    assert steps == {24 - skipped}  # a skipped step is none for the optimizer either

    # In other dtypes, and back again: a T4's run goes on elsewhere, and the other way round.
    for dtype, last in ("float32", 26), ("bfloat16", 28), ("float16", 30):
        how = ["--init_from=resume", f"--dtype={dtype}", f"--max_iters={last}"]
        assert in_process(monkeypatch, *settings, *how) == 0
    assert len(metrics(tmp_path / "run")) == 30


def test_float16_whose_scale_never_fits_ends_the_run(dataset, tmp_path, monkeypatch, capsys):
    huge = functools.partial(torch.amp.GradScaler, init_scale=2.0**80)
    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    settings = [f"--dataset={dataset}", f"--out_dir={tmp_path}/run", *TINY, *SMALL]
    assert in_process(monkeypatch, *settings, "--dtype=float16", "--max_iters=60") == 2
    assert "20 steps in a row, up to step 20, had no finite gradient" in capsys.readouterr().err


class Reads(TorchDispatchMode):
    """Counts how often a value is read from a tensor, which on a GPU waits for it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_between_log_lines_a_step_reads_nothing_from_the_device(
    dtype, dataset, tmp_path, monkeypatch
):
    rate, reads, at = optim.learning_rate, Reads(), []

    def counted(cfg, step, progress):
        at.append(reads.count)
        return rate(cfg, step, progress)

    monkeypatch.setattr(optim, "learning_rate", counted)
    settings = [
        f"--dataset={dataset}",
        f"--out_dir={tmp_path}/run",
        *TINY,
        *SMALL,
        "--grad_accum=2",
    ]
    settings += [f"--dtype={dtype}", "--log_interval=5", "--max_iters=15"]
    with reads:
        assert in_process(monkeypatch, *settings) == 0
    new = [after - before for before, after in zip(at, at[1:])]
    assert len(new) == 14 and [step for step, count in enumerate(new, 1) if count] == [5, 10]


def test_all_blocks_share_one_compilation(monkeypatch):
    import torch._dynamo as dynamo

    compile_ = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile_)
    graphs = []
    for n_layer in (2, 6):
        dynamo.reset()
        dynamo.utils.counters.clear()
        config = NeoXConfig(vocab_size=97, block_size=32, n_layer=n_layer, n_head=2, n_embd=32)
        model = NeoX(config)
        fast.use_fast_forms(model, "cpu")
        idx = torch.randint(97, (2, 33))
        batch = idx[:, :-1], idx[:, 1:]
        expected = model(*batch).item()
        fast.compile_parts(model, batch, device.autocast("cpu", torch.float32))
        assert model(*batch).item() == pytest.approx(expected, rel=1e-6)
        assert all(layer._compiled_call_impl for layer in model.gpt_neox.layers)
        graphs.append(dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


def test_settings_of_torch_for_16_bits(monkeypatch):
    device.prepare("cpu")
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert fast.MAX_LOGITS["cuda"] > fast.MAX_LOGITS["cpu"]
    for capability, dtype in ((7, 5), torch.float16), ((8, 0), torch.bfloat16):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert device.native_dtype("cuda") == device.generation_dtype("cuda", 1) == dtype
        assert device.has_bfloat16("cuda") == (capability >= (8, 0))


def test_muon_orthogonalizes_in_float32_where_bfloat16_is_missing(monkeypatch):
    torch.manual_seed(0)
    matrices = torch.randn(3, 64, 48)
    exact = optim.orthogonalize(matrices.double())
    errors = []
    for has in (True, False):
        monkeypatch.setattr(device, "has_bfloat16", lambda _, has=has: has)
        errors.append((optim.orthogonalize(matrices) - exact).abs().max().item())
    assert errors[1] < 1e-4 < 1e-3 < errors[0] and not math.isnan(errors[0])


def test_the_fast_forms_were_written_for_todays_model():
    """If you changed model.py and the fast forms compute the same (or you changed them as well),
    put the new fingerprints into WRITTEN_FOR in parts/fast.py."""
    assert fast.WRITTEN_FOR == {name: fast.fingerprint(name) for name in fast.REPLACED}

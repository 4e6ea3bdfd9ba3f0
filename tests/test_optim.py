"""optim.py: every optimizer against its equations, stopped and resumed, with its own defaults, and
a new one added."""

import math
import shutil
import signal
import types

import pytest
import torch
from conftest import ROOT, TINY, in_process, run

import optim
import train
from model import NeoX, NeoXConfig
from parts import configurator, device, hf, plots
from parts.checkpoints import load_checkpoint

NAMES = list(optim.OPTIMIZERS)
SETTINGS = dict(
    lr=0.02,
    min_lr=0.0,
    weight_decay=0.1,
    decay_embeddings=True,
    beta1=0.9,
    beta2=0.95,
    momentum=0.9,
)


def small(**changes):
    torch.manual_seed(0)
    model = NeoX(
        NeoXConfig(vocab_size=40, block_size=16, n_layer=2, n_head=2, n_embd=16, **changes)
    ).double()
    return model, torch.randint(
        30, (50, 2, 4, 17)
    )  # the last ten tokens never come: rows without a gradient


# --- the published equations, one tensor at a time, in float64 ------------------------------------
# s holds a tensor's state, t counts from 1.


def ema(s, key, value, beta):
    s[key] = beta * s.get(key, torch.zeros_like(value)) + (1 - beta) * value
    return s[key]


def adam_step(s, g, t, beta1=0.9, beta2=0.95):
    m, v = ema(s, "m", g, beta1), ema(s, "v", g * g, beta2)
    return (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)


def adamw(p, g, s, t, lr, decay):
    return p - lr * adam_step(s, g, t) - lr * decay * p


def adam(p, g, s, t, lr, decay):
    return p - lr * adam_step(s, g + decay * p, t)


def sgd(p, g, s, t, lr, decay):
    g = g + decay * p
    s["b"] = 0.9 * s.get("b", 0) + g
    return p - lr * (g + 0.9 * s["b"])


def lion(p, g, s, t, lr, decay):
    m = s.get("m", torch.zeros_like(g))
    s["m"] = 0.95 * m + 0.05 * g
    return p - lr * (torch.sign(0.9 * m + 0.1 * g) + decay * p)


def adafactor(p, g, s, t, lr, decay):
    def rms(x):
        return (x * x).mean().sqrt()

    beta2, squares = 1 - t**-0.8, g * g + 1e-30
    if p.dim() == 2:
        rows, columns = ema(s, "r", squares.sum(1), beta2), ema(s, "c", squares.sum(0), beta2)
        v = torch.outer(rows, columns) / rows.sum()
    else:
        v = ema(s, "v", squares, beta2)
    u = g / v.sqrt()
    u = u / max(1.0, rms(u))
    return p * (1 - lr * decay) - max(1e-3, rms(p)) * min(lr, t**-0.5) * u


def cautious(p, g, s, t, lr, decay):
    u = adam_step(s, g, t)
    mask = (u * g > 0).double()
    p = p - lr * p.numel() / (mask.sum() + 1) * mask * u
    return p - lr * decay * p


def schedulefree(p, g, s, t, lr, decay):
    """p is y, at which g was taken; s["x"] is the average."""
    x, z = s.get("x", p), s.get("z", p)
    rate = lr * math.sqrt(1 - 0.95**t)
    z = z - rate * (g / (ema(s, "v", g * g, 0.95).sqrt() + 1e-8) + decay * p)
    s["sum"] = s.get("sum", 0) + rate**2
    c = rate**2 / s["sum"]
    s["x"], s["z"] = (1 - c) * x + c * z, z
    return 0.1 * s["z"] + 0.9 * s["x"]


def muon(p, g, s, t, lr, decay):
    x = 0.9 * ema(s, "b", g, 0.9) + 0.1 * g
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return p * (1 - lr * decay) - lr * 0.2 * max(p.shape) ** 0.5 * x


def soap(p, g, s, t, lr, decay):
    if t == 1:
        s |= {"l": 0.05 * g @ g.T, "r": 0.05 * g.T @ g}
        s |= {
            "ql": torch.linalg.eigh(g @ g.T)[1].flip(1),
            "qr": torch.linalg.eigh(g.T @ g)[1].flip(1),
        }
        return p
    ql, qr = s["ql"], s["qr"]
    m, v = ema(s, "m", g, 0.9), ema(s, "v", (ql.T @ g @ qr) ** 2, 0.95)
    n = (ql.T @ m @ qr) / (1 - 0.9 ** (t - 1)) / ((v / (1 - 0.95 ** (t - 1))).sqrt() + 1e-8)
    ema(s, "l", g @ g.T, 0.95), ema(s, "r", g.T @ g, 0.95)
    if (t - 1) % 10 == 0:
        s |= {"ql": torch.linalg.qr(s["l"] @ ql)[0], "qr": torch.linalg.qr(s["r"] @ qr)[0]}
    return p * (1 - lr * decay) - lr * (ql @ n @ qr.T)


def train_50_steps(model, batches, cfg, optimizers, watch):
    for t, batch in enumerate(batches, 1):
        lr = cfg.lr * min(t / 5, 1 - t / 60)  # up and down, as a schedule does it
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        model(batch[0, :, :-1], batch[0, :, 1:]).backward()
        watch(t, lr)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_50_steps_are_those_of_the_published_equations(name):
    model, batches = small()
    cfg = types.SimpleNamespace(**SETTINGS, optimizer=name)
    expected = {key: p.detach().clone() for key, p in model.named_parameters()}
    state = {key: {} for key in expected}
    optimizers = optim.build(model, cfg)

    def reference(t, lr):
        for key, p in model.named_parameters():
            hidden = "layers" in key and p.dim() == 2
            equations = globals()["adamw" if name in ("muon", "soap") and not hidden else name]
            expected[key] = equations(
                expected[key], p.grad, state[key], t, lr, 0.1 if p.dim() == 2 else 0.0
            )

    begin = torch.cat([p.detach().flatten() for p in model.parameters()])
    train_50_steps(model, batches, cfg, optimizers, reference)
    trained = {key: p.detach().clone() for key, p in model.named_parameters()}
    optim.use_averaged_weights(optimizers, True)
    pairs = [(trained[key], expected[key]) for key in expected]
    pairs += [(p, state[key].get("x", expected[key])) for key, p in model.named_parameters()]
    for ours, theirs in pairs:
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
    assert (
        torch.cat([p.flatten() for p in expected.values()]) - begin
    ).norm() > 0.1 * begin.norm()  # it went somewhere
    optim.use_averaged_weights(optimizers, False)
    assert all(torch.equal(p, trained[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_spares_biases_norms_and_by_choice_embeddings(name):
    for spared in (False, True):
        model, _ = small(tie_embeddings=spared)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizers = optim.build(
            model,
            types.SimpleNamespace(**SETTINGS | dict(decay_embeddings=not spared), optimizer=name),
        )
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            for optimizer in optimizers:
                optimizer.step()
        for key, p in model.named_parameters():
            decays = p.dim() == 2 and not (spared and "embed" in key)
            assert (p.norm() < before[key].norm()) if decays else torch.equal(p, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_scale_changes_nothing_and_an_overflow_skips_the_step(name):
    ends = []
    for scale in (1.0, 2.0**10):
        model, batches = small()
        model.float()
        optimizers = optim.build(model, types.SimpleNamespace(**SETTINGS, optimizer=name))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for step, batch in enumerate(batches[:6]):
            scaler.scale(model(batch[0, :, :-1], batch[0, :, 1:])).backward()
            if step == 3:
                for p in model.parameters():
                    p.grad.fill_(math.inf)
            before = [p.detach().clone() for p in model.parameters()]
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update(scale)
            assert all(map(torch.equal, before, model.parameters())) == (step == 3)
            model.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends) and ends[0].isfinite().all()


def test_muon_does_what_torchs_own_does_one_matrix_at_a_time():
    torch.manual_seed(0)
    shapes = [(64, 64), (192, 64), (64, 256), (256, 64)] * 3
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    start = torch.cat([p.detach().flatten() for p in ours])
    optimizers = (
        optim.Muon(ours, lr=0.1, momentum=0.95, weight_decay=0.5),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = [torch.cat([p.detach().flatten() for p in params]) - start for params in (ours, theirs)]
    assert (moved[0] - moved[1]).norm() < 0.01 * moved[
        1
    ].norm()  # both round to bfloat16, in another order


def test_schedules():
    def rate(name, step):
        cfg = dict(lr=1.0, min_lr=0.1, warmup_iters=100, max_iters=1100, lr_schedule=name)
        return optim.learning_rate(types.SimpleNamespace(**cfg), step, step / 1100)

    # At steps 100, 350, 600, 1000 and 1100: nothing, a quarter, half, 0.9 and all of the way after
    # warmup.
    expected = {
        "cosine": (
            1,
            0.1 + 0.9 * (2 + 2**0.5) / 4,
            0.55,
            0.1 + 0.45 * (1 + math.cos(0.9 * math.pi)),
            0.1,
        ),
        "linear": (1, 0.775, 0.55, 0.19, 0.1),
        "wsd": (1, 1, 1, 0.55, 0.1),
        "constant": (1, 1, 1, 1, 1),
        "inv_sqrt": tuple(0.1 + 0.9 * (100 / step) ** 0.5 for step in (100, 350, 600, 1000, 1100)),
    }
    assert expected.keys() == optim.SCHEDULES.keys()
    for name, values in expected.items():
        assert [rate(name, step) for step in (100, 350, 600, 1000, 1100)] == pytest.approx(
            values
        ), name
        assert [rate(name, step) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1])
    cfg = types.SimpleNamespace(
        lr=1.0, min_lr=0.0, warmup_iters=0, max_iters=10, lr_schedule="inv_sqrt"
    )
    assert optim.learning_rate(cfg, 0, 0.0) == optim.learning_rate(cfg, 1, 0.1) == 1


# --- through train.py -----------------------------------------------------------------------------


@pytest.fixture
def trainer(dataset, monkeypatch):
    """train.py in this process, which may be told to stop at a step as by SIGTERM; it draws nothing
    and does not measure the peak."""
    monkeypatch.setattr(plots, "losses", lambda *_: None)
    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e12)
    rate = optim.learning_rate
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]

    def train_run(out, *args, stop_at=None):
        def stopping(cfg, step, progress):
            if step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return rate(cfg, step, progress)

        monkeypatch.setattr(optim, "learning_rate", stopping)
        settings = [f"--dataset={dataset}", f"--out_dir={out}", *TINY, "--block_size=32", *args]
        assert in_process(monkeypatch, *settings) == (128 + signal.SIGTERM if stop_at else 0)

    yield train_run
    for number, handler in handlers:
        signal.signal(number, handler)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (dict, list, tuple)):
        pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) else list(zip(a, b))
        return len(a) == len(b) and all(same(x, y) for x, y in pairs)
    return a == b


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(name, trainer, tmp_path):
    settings = [f"--optimizer={name}", "--max_iters=24", "--eval_interval=0"]
    trainer(
        tmp_path / "straight", *settings, "--eval_interval=10"
    )  # looking on the way changes nothing either
    trainer(tmp_path / "stopped", *settings, stop_at=13)
    halfway = load_checkpoint(tmp_path / "stopped" / "ckpt.pt")
    assert halfway["step"] == 14
    trainer(tmp_path / "stopped", *settings, "--init_from=resume")
    a, b = (load_checkpoint(tmp_path / run / "ckpt.pt") for run in ("straight", "stopped"))
    assert all(same(a[key], b[key]) for key in ("model", "optimizers", "scaler", "step"))
    exported = hf.from_pretrained(tmp_path / "straight").state_dict()
    assert all(
        torch.equal(a["model"][key], value) for key, value in exported.items()
    )  # what was evaluated is what is kept
    if name == "schedulefree":  # and that is the average, in a checkpoint at a signal too
        for checkpoint in (a, halfway):
            trained = {
                tuple(s["trained"].shape) for s in checkpoint["optimizers"][0]["state"].values()
            }
            assert trained == {tuple(value.shape) for value in checkpoint["model"].values()}
            tables = [value for value in checkpoint["model"].values() if value.dim() == 2]
            states = checkpoint["optimizers"][0]["state"].values()
            assert not any(torch.equal(s["trained"], value) for s in states for value in tables)


def test_an_optimizer_brings_its_defaults_and_what_is_said_beside_it_or_later_wins(
    tmp_path, capsys
):
    tuned = tmp_path / "tuned.py"
    tuned.write_text(
        "lr = 0.7\nlr_schedule = 'linear'\nmomentum, min_lr = 0.5, 0.2\noptimizer = 'muon'\n"
    )
    plain, lion_ = vars(configurator.load(train.Settings, [])), optim.PRESETS["lion"]
    beside = dict(optimizer="muon", lr=0.7, lr_schedule="linear", momentum=0.5, min_lr=0.2)
    # What is said, how that differs from train.py's defaults, whether anything was taken back.
    cases = [
        (["--optimizer=lion"], lion_ | dict(optimizer="lion"), False),
        (["--lr=0.3", "--optimizer=lion"], lion_ | dict(optimizer="lion", lr=0.3), False),
        ([tuned], beside, False),
        ([tuned, "--optimizer=muon"], beside, False),
        ([tuned, "--optimizer=lion"], lion_ | dict(optimizer="lion", lr_schedule="linear"), True),
        (
            [tuned, "--lr=0.3", "--optimizer=lion"],
            lion_ | dict(optimizer="lion", lr_schedule="linear", lr=0.3),
            True,
        ),
        ([tuned, "--optimizer=adamw"], dict(lr_schedule="linear"), True),
        (
            [tuned, "--optimizer=schedulefree"],
            optim.PRESETS["schedulefree"] | dict(optimizer="schedulefree"),
            True,
        ),
        (["--optimizer=lion", tuned], beside, False),
        (["--optimizer=none"], dict(optimizer="none"), False),
    ]
    for said, differs, noted in cases:
        assert vars(configurator.load(train.Settings, list(map(str, said)))) == plain | differs, (
            said
        )
        note = capsys.readouterr().err
        assert note.count("\n") == note.count("min_lr") == note.count("(not 0.2)") == noted, note
    for file in (ROOT / "config").glob("*.py"):
        assert (
            configurator.read_config(file).items()
            <= vars(configurator.load(train.Settings, [str(file)])).items()
        )


def test_adding_an_optimizer_is_one_function_and_one_line(dataset, tmp_path):
    for file in ("train.py", "model.py", "optim.py"):
        shutil.copy(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "parts", tmp_path / "parts")
    source = (tmp_path / "optim.py").read_text()
    function = (
        "def rmsprop(model, cfg):\n"
        "    return [torch.optim.RMSprop(groups(model, cfg), lr=cfg.lr)]\n\n\n"
    )
    line = '    "rmsprop": (rmsprop, dict(lr=2e-3)),\n'
    assert source.count("OPTIMIZERS = {\n") == 1
    (tmp_path / "optim.py").write_text(
        source.replace("OPTIMIZERS = {\n", f"{function}OPTIMIZERS = {{\n{line}")
    )
    settings = [
        f"--dataset={dataset}",
        f"--out_dir={tmp_path / 'run'}",
        *TINY,
        "--max_iters=30",
        "--optimizer=rmsprop",
    ]
    done = run(tmp_path / "train.py", *settings, "--eval_interval=15")
    checkpoint = load_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert (
        checkpoint["settings"]["lr"] == 2e-3
        and "square_avg" in checkpoint["optimizers"][0]["state"][0]
    )
    assert checkpoint["best_loss"] < 6.7 and "done at step 30" in done.stdout  # from ln 1024 = 6.93

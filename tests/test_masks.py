"""A data set with masks: what is learnt, where windows begin, and that nothing depends on how
a step is divided."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, in_process

from model import NeoX, NeoXConfig
from parts.data import Batches, Dataset
from parts.fast import use_fast_forms
from train import evaluate

CFG = SimpleNamespace(seed=1, batch_size=3, grad_accum=4, eval_iters=5)


def network(dtype):
    torch.manual_seed(0)
    config = NeoXConfig(vocab_size=1024, block_size=128, n_layer=2, n_head=2, n_embd=32)
    return NeoX(config).to(dtype)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_four_uneven_batches_two_processes_and_one_large_batch_have_the_same_gradient(
    fast, dtype, tolerance, masked
):
    dataset, model = Dataset(str(masked), 128), network(dtype)
    if fast:
        use_fast_forms(model, "cpu")
    parts = [dataset.train_batch(1, 7, micro, 3, "cpu") for micro in range(4)]
    learnt = [int((y >= 0).sum()) for _, y in parts]
    assert min(learnt) < 0.8 * max(learnt)
    x, y = (torch.cat(part) for part in zip(*parts))
    loss = torch.nn.functional.cross_entropy(network(dtype)(x).flatten(0, 1), y.flatten())
    large = copy.deepcopy(model)
    large(x, y).backward()
    assert torch.allclose(large(x, y), loss, rtol=1e-5)
    for world in (1, 2, 4):
        summed = 0
        for rank in range(world):
            each, batches = copy.deepcopy(model), Batches(dataset, CFG, "cpu", rank, world, 7)
            for _ in range(batches.per_step):
                (each(batches.x, batches.y) * batches.weight).backward()
                batches.fetch()
            summed += gradients(each) / world  # as DDP does
        error = (summed - gradients(large)).norm() / gradients(large).norm()
        assert error < tolerance, world


def test_windows_begin_where_documents_do_and_learn_what_the_mask_says(masked):
    dataset = Dataset(str(masked), 128)
    tokens, mask = dataset.train, np.fromfile(masked / "train.mask", np.uint8)
    eot = json.loads((masked / "tokenizer.json").read_text())["added_tokens"][0]["id"]
    ends, seen = set(np.flatnonzero(tokens == eot)), 0
    for step in range(20):
        x, y = dataset.train_batch(1, step, 0, 4, "cpu")
        starts = dataset.windows["train"].starts
        picked = np.random.default_rng((1, step, 0)).integers(len(starts), size=4)
        for row, start in enumerate(starts[picked]):
            assert start in ends or start == 0
            part = mask[start + 1 : start + 129]
            expected = np.where(part, tokens[start + 1 : start + 129].astype(int), -100)
            assert y[row, : len(part)].tolist() == expected.tolist()
            assert (y[row, len(part) :] == -100).all() and part.any()
            assert x[row, : len(part)].tolist() == tokens[start : start + len(part)].tolist()
            seen += part.sum()
    assert seen > 1000


def test_validation_is_the_mean_over_learnt_tokens(masked):
    dataset, model = Dataset(str(masked), 128), network(torch.float64)
    losses = []
    for x, y in dataset.val_batches(CFG.eval_iters, CFG.batch_size, "cpu"):
        each = torch.nn.functional.cross_entropy(
            model(x).flatten(0, 1), y.flatten(), reduction="none"
        )
        losses += each[y.flatten() >= 0].tolist()
    expected = np.mean(losses)
    cfg = SimpleNamespace(**vars(CFG))
    got = evaluate(model, dataset, cfg, "cpu", lambda: torch.autocast("cpu", enabled=False))
    assert got == pytest.approx(expected, rel=1e-12)


def damage(folder, file, change):
    (folder / file).write_bytes(change((folder / file).read_bytes()))


@pytest.mark.parametrize(
    "file, change, part",
    [
        ("train.mask", lambda data: data[:-1], "must have one byte for each of the"),
        ("val.mask", lambda data: data[:-1] + b"\2", "has the value 2"),
        ("train.mask", lambda data: bytes(len(data)), "no token is learnt within block_size=128"),
        ("train.mask", None, "train.mask must have one byte"),
    ],
    ids=["cut short", "another value", "nothing learnt", "missing"],
)
def test_a_damaged_mask_is_one_line(file, change, part, masked, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(masked, tmp_path / "data")
    if change:
        damage(folder, file, change)
    else:
        (folder / file).unlink()
    settings = [f"--dataset={folder}", *TINY, f"--out_dir={tmp_path / 'run'}"]
    assert in_process(monkeypatch, *settings) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and part in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


def test_a_model_of_ours_is_fine_tuned_and_resumed_and_refuses_another_mask(
    dataset, masked, tmp_path, monkeypatch, capsys
):
    """From a run folder of a shape that Hugging Face lacks, with dropout that it was not trained
    with; stopped and resumed as if it had never been."""
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    shape = ["--activation=swiglu", f"--out_dir={first}", "--max_iters=3"]
    assert in_process(monkeypatch, f"--dataset={dataset}", *TINY, *shape) == 0
    settings = [f"--dataset={masked}", *TINY, "--dropout=0.1", "--lr_schedule=constant"]
    settings += ["--activation=swiglu", "--grad_accum=2"]
    for out, steps in ((tuned, [4, 8]), (tmp_path / "straight", [8])):
        for init, end in zip([str(first), "resume"], steps):
            how = [f"--init_from={init}", f"--out_dir={out}", f"--max_iters={end}"]
            assert in_process(monkeypatch, *settings, *how) == 0
    assert (tuned / "metrics.jsonl").exists()
    lines = [
        {m["step"]: m["loss"] for m in map(json.loads, open(out / "metrics.jsonl")) if "loss" in m}
        for out in (tuned, tmp_path / "straight")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 8
    capsys.readouterr()
    other = shutil.copytree(masked, tmp_path / "other")
    damage(other, "train.mask", lambda data: data[: len(data) // 2].ljust(len(data), b"\0"))
    settings[0] = f"--dataset={other}"
    how = ["--init_from=resume", f"--out_dir={tuned}", "--max_iters=9"]
    assert in_process(monkeypatch, *settings, *how) == 2
    assert "began with other data" in capsys.readouterr().err

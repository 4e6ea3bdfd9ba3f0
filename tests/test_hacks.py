"""A reader edits the plain forms in model.py, in a copy of the repository, and everything follows:
training, validation, sampling, evaluation and export."""

import contextlib
import hashlib
import importlib
import io
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

ATTEND = "        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)\n"
BY_HAND = """\
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
        positions = torch.arange(T)
        distance = positions[:, None] - positions
        {change}
        visible = distance >= 0 if mask is None else mask
        y = scores.masked_fill(~visible, -math.inf).softmax(-1) @ v
"""
ROTATED = "        q, k = rotate(q, cos, sin), rotate(k, cos, sin)\n"
READ = "        normed = self.input_layernorm(x)\n"
ATTENDED = "        attended = self.drop(self.attention(normed, cos, sin, mask))\n"
PARALLEL = "        return x + attended + self.drop(self.mlp(normed))\n"
MLP = "self.activation(self.dense_h_to_4h(x))"
SCALED = "class Scaled(nn.Embedding):\n    def forward(self, idx):\n"
SCALED += "        return 4 * super().forward(idx)\n\n\n"
DROP = "        self.attention = Attention(config)\n"
COUNT = "(targets >= 0).sum().clamp_min(1)"
LOSS = f"        return token_losses(self.logits(x), targets).sum() / {COUNT}\n"
LOGIT_LOSS = """\
        logits = self.logits(x)
        size = logits.float().logsumexp(-1).square().mean()
        return token_losses(logits, targets).sum() / (targets >= 0).sum().clamp_min(1) + size
"""
EXTRA = 'forward(self, x, cos, sin, mask=None, scale=1.0):\n        """x (B, T, C)'
MIXED = "x + self.mix * F.pad(x, (0, 0, 1, 0))[:, :-1]"

EDITS = {  # what stands in model.py, and what a reader writes there
    "queries scaled by zero": [(ROTATED, ROTATED + "        q = q * 0.0\n")],
    "another scale of the scores": [(ATTEND, ATTEND.replace("is_causal", "scale=0.1, is_causal"))],
    "a bias on the scores": [(ATTEND, BY_HAND.format(change="scores = scores - 0.3 * distance"))],
    "a window of 40 tokens": [
        (ATTEND, BY_HAND.format(change="scores = scores.masked_fill(distance >= 40, -math.inf)"))
    ],
    "values rotated too": [(ROTATED, ROTATED + "        v = rotate(v, cos, sin)\n")],
    "no gradient through the keys": [(ROTATED, ROTATED + "        k = k.detach()\n")],
    "queries and values swapped": [("        q, k, v = heads.", "        v, k, q = heads.")],
    "half of the attention": [(PARALLEL, PARALLEL.replace("attended", "0.5 * attended"))],
    "the MLP after the attention": [("if not self.parallel_residual:", "if True:")],
    "the token before mixed in, from zero": [
        (DROP, DROP + "        self.mix = nn.Parameter(torch.zeros(config.n_embd))\n"),
        (READ, f"        x = {MIXED}\n" + READ),
    ],
    "ReLU squared": [(MLP, "F.relu(self.dense_h_to_4h(x)).square()")],
    "another GELU": [('    "gelu": F.gelu,\n', '    "gelu": F.silu,\n')],
    "logits capped": [("return self.embed_out(x)", "return 5 * torch.tanh(self.embed_out(x) / 5)")],
    "embeddings scaled": [("embed_in(idx)\n", "embed_in(idx) * 3\n")],
    "some tokens weigh more": [
        ('reduction="none")', 'reduction="none") * torch.where(targets >= 100, 2.0, 1.0)')
    ],
    "some tokens read as nothing": [("embed_in(idx)", "embed_in(idx) * (idx < 100)[..., None]")],
    "half of it, in forward": [("x = self.hidden(idx, mask)", "x = 0.5 * self.hidden(idx, mask)")],
    "embeddings of another class": [
        ("embed_in=nn.Embedding(", "embed_in=Scaled("),
        ("class NeoX(nn.Module):\n", SCALED + "class NeoX(nn.Module):\n"),
    ],
    "values halved, only in evaluation": [
        (ROTATED, ROTATED + "        v = v if self.training else 0.5 * v\n")
    ],
    "slower rotation": [("torch.outer(torch.arange", "0.5 * torch.outer(torch.arange")],
    "an argument more": [
        ('forward(self, x, cos, sin, mask=None):\n        """x (B, T, C)', EXTRA),
        (ATTENDED, ATTENDED.replace("sin, mask)", "sin, mask, scale=0.5)")),
        ("        return self.dense(y.tr", "        return scale * self.dense(y.tr"),
    ],
    "smoothed labels": [
        ('targets, reduction="none")', 'targets, reduction="none", label_smoothing=0.2)')
    ],
    "a loss on the size of the logits": [(LOSS, LOGIT_LOSS)],
}
PLAIN = {  # what leaves nothing but model.py itself
    "parts/fast.py": ("    switch(model, names)\n", "    switch(model, [])\n"),
    "parts/generate.py": ("if use_cache and decoder_agrees(model)", "if False"),
}


class Repository:
    """A copy of the repository with edits, whose scripts run in this process."""

    def __init__(self, folder, edits):
        self.folder = folder
        for name in ("train.py", "sample.py", "eval.py", "model.py", "optim.py"):
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder)
        for name in ("parts", "tasks"):
            shutil.copytree(ROOT / name, folder / name)
        for file, old, new in edits:
            source = (folder / file).read_text()
            assert source.count(old) == 1, (file, old)
            (folder / file).write_text(source.replace(old, new))

    @contextlib.contextmanager
    def imported(self):
        """Its modules in place of those of this repository."""
        before, path = dict(sys.modules), sys.path.copy()
        for name, module in before.items():
            file = getattr(module, "__file__", None) or ""
            if file.startswith(str(ROOT)) and "site-packages" not in file and "tests" not in file:
                del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path[:] = path
            sys.modules.clear()
            sys.modules.update(before)

    def run(self, script, *args):
        """What the script prints."""
        device = importlib.import_module("parts.device")
        device.matmul_peak = lambda *_: 1e12  # measuring it would take most of the time
        importlib.import_module("parts.plots").losses = lambda *_: None
        main, argv = importlib.import_module(script).main, sys.argv
        sys.argv = [script, *map(str, args)]
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()) as said,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                main()
        finally:
            sys.argv = argv
        return said.getvalue()

    def everything(self, dataset):
        """Train, sample and evaluate; what came out of each."""
        out, found = self.folder / "out/run", {}
        how = [*TINY, "--block_size=64", "--max_iters=8", "--lr=2e-2", "--dtype=float32"]
        said = self.run("train", f"--dataset={dataset}", f"--out_dir={out}", *how)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for key in ("loss", "grad_norm", "val_loss"):
            found[key] = [line[key] for line in lines if key in line]
        how = [f"--ckpt={out}", "--prompt=def f(", "--max_new_tokens=80", "--temperature=0"]
        found["sample"] = self.run("sample", *how)
        how = [f"--ckpt={out}", f"--dataset={dataset}", "--tasks=loss", "--dtype=float32"]
        self.run("eval", *how)
        found["eval"] = json.loads((out / "eval.json").read_text())["loss"]
        found["by hand"] = self.loss_by_hand(out, dataset)
        return found, said, (out / "model.safetensors").exists()

    def loss_by_hand(self, out, dataset):
        """Mean loss of the trained model over the split, by model.py and its token_losses alone."""
        runs, plain = importlib.import_module("parts.runs"), importlib.import_module("model")
        model = runs.load_model(out / "ckpt.pt").eval()
        tokens = torch.from_numpy(np.fromfile(dataset / "val.bin", "<u2").astype(np.int64))
        total = 0.0
        with torch.no_grad():
            for begin in range(0, len(tokens) - 1, 64):
                x, y = tokens[begin : begin + 65][:-1], tokens[begin + 1 : begin + 65]
                total += plain.token_losses(model(x[None])[0], y).double().sum().item()
        return total / (len(tokens) - 1)


@pytest.fixture(scope="module")
def short(dataset, tmp_path_factory):
    """The data set with a shorter validation split."""
    folder = tmp_path_factory.mktemp("short") / "python"
    shutil.copytree(dataset, folder)
    whole = (folder / "val.bin").read_bytes()
    (folder / "val.bin").write_bytes(whole[:8000])
    meta = json.loads((folder / "meta.json").read_text())
    meta["val"] |= {"tokens": 4000, "sha256": hashlib.sha256(whole[:8000]).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def unchanged(short, tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("unchanged"), [])
    with repository.imported():
        found, said, exported = repository.everything(short)
    assert "was changed" not in said and exported
    return found


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_plain_forms_is_followed_everywhere(name, short, unchanged, tmp_path):
    edits = [("model.py", old, new) for old, new in EDITS[name]]
    plain = [(file, *change) for file, change in PLAIN.items()]
    outcomes = []
    for folder, changes in (tmp_path / "edited", edits), (tmp_path / "plain", edits + plain):
        repository = Repository(folder, changes)
        with repository.imported():
            outcomes.append(repository.everything(short))
    (edited, said, exported), (reference, _, _) = outcomes
    for key in ("loss", "grad_norm", "val_loss", "eval"):
        assert edited[key] == pytest.approx(reference[key], rel=1e-6, abs=2e-5), key
        moved = np.abs(np.array(edited[key]) - unchanged[key]).max() > 5e-5
        assert moved or "only in evaluation" in name, key
    assert edited["sample"] == reference["sample"]
    assert edited["eval"] == pytest.approx(edited["by hand"], rel=1e-4)
    # Hugging Face would compute something else where the network is another one.
    losses = {"smoothed labels", "some tokens weigh more", "a loss on the size of the logits"}
    assert exported == (name in losses), said
    if not exported:
        assert "not exported: " in said
    assert math.isfinite(edited["eval"])

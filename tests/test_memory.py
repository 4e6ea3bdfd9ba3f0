"""What is too large is said in one line before it is built, and nothing else is refused."""

import json
import shutil

import pytest
import torch
from conftest import TINY, in_process

import eval as eval_script
import sample
import train
from model import NeoXConfig
from parts import configurator, hf, memory, runs
from parts.checkpoints import load_checkpoint

GB = 10**9
HUGE = [  # settings beyond any machine, and what the line suggests
    (["--n_embd=4000000"], "--n_embd="),
    (["--n_layer=16000000"], "--n_layer="),
    (["--batch_size=1000000000"], "--batch_size="),
    (["--eval_iters=2000000000"], "--eval_iters="),
    (["--sample_prompt=a", "--sample_tokens=2000000000"], "--sample_tokens="),
    (["--init_from={run}", "--batch_size=1000000000"], "--batch_size="),
    (["--init_from=resume", "--out_dir={run}", "--batch_size=100000000"], "--batch_size="),
]


@pytest.mark.parametrize("arguments, remedy", HUGE)
def test_a_training_too_large_is_refused_with_what_would_fit(
    arguments, remedy, dataset, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(memory, "free", lambda device: GB)
    arguments = [argument.format(run=trained) for argument in arguments]
    before = sorted(trained.iterdir())
    how = [f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}", *TINY, *arguments]
    assert in_process(monkeypatch, *how) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: this training needs ") and error.count("\n") == 1
    assert " GB are free: " in error and remedy in error
    assert not (tmp_path / "out").exists() and sorted(trained.iterdir()) == before


def refusal(monkeypatch, dataset, *arguments):
    """The line with which a training ends where 1 GB is free; empty if it is not refused."""
    monkeypatch.setattr(memory, "free", lambda device: GB)
    monkeypatch.setattr(memory, "held", lambda: memory.LIBRARIES)  # not what other tests left
    cfg = configurator.load(train.Settings, [*TINY, "--dropout=0", *arguments])
    config = NeoXConfig(vocab_size=1024, **runs.model_settings(cfg))
    try:
        memory.check_training(config, cfg, new=True)
    except ValueError as error:
        return str(error)
    return ""


def test_what_is_said_to_fit_fits_and_keeps_the_tokens_of_a_step(monkeypatch, dataset):
    big = ("--n_embd=256", "--batch_size=512", "--grad_accum=3")
    line = refusal(monkeypatch, dataset, *big)
    first = line.split("are free: ")[1].split(" or ")
    assert first[0] == "--checkpoint_activations=1 would fit" or len(first) > 1, line
    batch = next(remedy for remedy in first if "batch_size" in remedy).split()
    values = [int(setting.partition("=")[2]) for setting in batch[:2]]
    assert values[0] * values[1] == 512 * 3 and values[0] < 512
    for remedy in first:
        settings = remedy.removesuffix(" would fit").split()
        assert not refusal(monkeypatch, dataset, *big, *settings), settings


def test_foreign_configurations_are_refused_before_anything_is_built(
    trained, tmp_path, monkeypatch
):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt"))
    file = tmp_path / "run" / "config.json"
    good = json.loads(file.read_text())
    assert hf.from_pretrained(tmp_path / "run").num_params()
    keys = ("num_hidden_layers", "vocab_size", "max_position_embeddings", "intermediate_size")
    monkeypatch.setattr(memory, "free", lambda device: GB // 10)
    for key in keys:
        file.write_text(json.dumps(good | {key: 10_000 if "layers" in key else 10**7}))
        with pytest.raises(ValueError, match="a model of .* needs .* GB are free"):
            hf.from_pretrained(tmp_path / "run")
    checkpoint = load_checkpoint(trained / "ckpt.pt")
    checkpoint["model_config"]["n_layer"] = 10**7
    with pytest.raises(ValueError, match="a model of 10000000 layers"):
        runs.model_from(checkpoint)


def test_writing_too_much_is_refused_and_a_prompt_without_end_is_not_read(
    trained, tmp_path, monkeypatch
):
    model = runs.load(str(trained), "cpu").model
    for rows, new in ((10**12, 10), (1, 10**15)):
        with pytest.raises(ValueError, match="writing this needs .* would fit"):
            memory.check_generation(model, rows, 5, new)
    memory.check_generation(model, 100, 5, 1000)
    endless = tmp_path / "endless.txt"
    endless.write_text("a" * (sample.LONGEST_PROMPT + 1))
    cfg = configurator.load(sample.Settings, [f"--prompt_file={endless}"])
    with pytest.raises(ValueError, match="the prompt is longer than 4,000,000 characters"):
        sample.prompt_text(cfg)
    monkeypatch.setattr("sys.stdin", open("/dev/zero"))
    with pytest.raises(ValueError, match="the prompt is longer than"):
        sample.prompt_text(configurator.load(sample.Settings, ["--prompt=-"]))


def test_an_evaluation_of_too_many_texts_is_refused(trained, dataset):
    model, tokenizer, folder = runs.load(str(trained), "cpu")
    for setting in ("num_completions", "num_bodies", "max_new_tokens"):
        arguments = [
            f"--dataset={dataset}",
            "--tasks=completion,bodies",
            f"--{setting}={2 * 10**9}",
        ]
        cfg = configurator.load(eval_script.Settings, arguments)
        exam = eval_script.make_exam(cfg, tokenizer, folder)
        with pytest.raises(ValueError, match=f"this evaluation needs .* --{setting}=.* would fit"):
            exam.check_memory(model)
    cfg = configurator.load(eval_script.Settings, [f"--dataset={dataset}", "--tasks=loss"])
    eval_script.make_exam(cfg, tokenizer, folder).check_memory(model)


def test_the_state_of_an_optimizer_of_ones_own_is_measured(monkeypatch):
    class Three(memory.optim.Optimizer):
        states = ("a", "b", "c")

        def update(self, *_):
            pass

    def three(model, cfg):
        return [Three(model.parameters())]

    monkeypatch.setitem(memory.optim.OPTIMIZERS, "three", (three, {}))
    cfg = configurator.load(train.Settings, ["--optimizer=three"])
    before = torch.get_rng_state()
    assert memory.state_kept(NeoXConfig(), cfg) == (12, 12)
    assert torch.equal(before, torch.get_rng_state())


def test_an_edited_network_is_refused_only_for_what_it_can_hardly_avoid(monkeypatch, dataset):
    monkeypatch.setattr(memory, "edited", lambda: True)
    assert not refusal(monkeypatch, dataset, "--n_layer=500", "--n_embd=512")
    assert "--n_embd=" in refusal(monkeypatch, dataset, "--n_embd=1000000")
    assert "--batch_size=" in refusal(monkeypatch, dataset, "--batch_size=1000000000")


def test_the_limits_of_a_control_group_and_of_the_shell_count(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("4:cpu,memory:/job\n0::/slice/unit\n")
    for folder, limit, usage, cached in (
        ("memory/job", ("limit_in_bytes", 5 * GB), ("usage_in_bytes", 2 * GB), "total_"),
        ("slice", ("max", 9 * GB), ("current", 1 * GB), ""),
        ("slice/unit", ("max", "max"), ("current", 1 * GB), ""),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for name, value in (limit, usage):
            (tmp_path / folder / f"memory.{name}").write_text(f"{value}\n")
        stat = f"{cached}inactive_file {GB}\n{cached}active_file 5\n"
        (tmp_path / folder / "memory.stat").write_text(stat)
    assert list(memory.control_group_rooms(tmp_path, own)) == [4 * GB + 5, 9 * GB + 5]


def test_free_memory_obeys_ulimit(monkeypatch):
    resource = pytest.importorskip("resource")  # not on Windows
    used = memory.psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + 10**8, -1))
    assert 0 < memory.free("cpu") <= 2 * 10**8

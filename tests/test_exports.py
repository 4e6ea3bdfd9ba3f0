"""What a run exports works in Hugging Face's own clients, and says what it is."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from conftest import ROOT, TINY, in_process, run
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from parts import card as cards
from parts import device as devices
from parts import hf, runs
from parts import tokenizer as tokenization
from parts.generate import generate, read_prompt

OLD_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|endoftext|>",
}


def real_prompts(folder, dataset, count):
    """Beginnings of held-out code, of different lengths, that healing leaves as they are: the
    greedy model chooses the token again that healing takes off."""
    model, tok = runs.load_model(folder).eval(), tokenization.load(folder)
    text = tokenization.load(dataset).decode(np.fromfile(dataset / "val.bin", "<u2").tolist())
    text = text.replace("<|endoftext|>", "")
    texts = [text[n * 61 : n * 61 + 20 + 7 * (n % 13)] for n in range(300)]
    pairs = [(p, read_prompt(tok, p)) for p in texts]
    pairs = [(p, healed) for p, healed in pairs if len(healed.ids) <= 62 and healed.first_ids]
    first_ids = [healed.first_ids for _, healed in pairs]
    chosen = generate(model, [h.ids for _, h in pairs], 1, temperature=0, first_ids=first_ids)
    found = [p for (p, _), ids in zip(pairs, chosen) if tok.encode(p)[-1:] == ids]
    assert len(found) >= count
    return found[:count]


def sample(monkeypatch, capsys, *args):
    """What `python sample.py args` prints, run in this process."""
    import sample

    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, args)])
    capsys.readouterr()
    sample.main()
    return capsys.readouterr().out


def test_transformers_writes_the_text_of_sample_py_alone_and_in_batches(
    trained, dataset, monkeypatch, capsys
):
    prompts = real_prompts(trained, dataset, 20)
    # The token that healing chooses again counts as one of sample.py's.
    how = (f"--ckpt={trained}", "--temperature=0", "--max_new_tokens=65", "--device=cpu")
    expected = [sample(monkeypatch, capsys, *how, f"--prompt={p}")[:-1] for p in prompts]
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    write = pipeline("text-generation", model=str(trained))
    how = dict(do_sample=False, max_new_tokens=64)
    assert [write(p, **how)[0]["generated_text"] for p in prompts[:4]] == expected[:4]
    batch = write(prompts, **how, batch_size=8)
    assert [done[0]["generated_text"] for done in batch] == expected
    model = AutoModelForCausalLM.from_pretrained(trained)
    auto = AutoTokenizer.from_pretrained(trained)
    inputs = auto(prompts, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(1).unique().numel() > 5
    written = auto.batch_decode(model.generate(**inputs, **how), skip_special_tokens=True)
    assert written == expected
    assert "warn" not in (err := capsys.readouterr().err.lower()) and "attention" not in err, err
    # A prompt that is cut keeps its end, after the end-of-text token.
    long = auto(prompts[0] * 50, truncation=True)["input_ids"]
    ids = tokenization.load(trained).encode(prompts[0] * 50)
    assert auto.model_max_length == 128 and long == [0, *ids[-127:]]


def test_data_sets_and_runs_without_a_template_go_on_with_those_that_have_one(
    trained, dataset, tmp_path, monkeypatch, capsys
):
    old_data, old_run = (
        shutil.copytree(folder, tmp_path / folder.name) for folder in (dataset, trained)
    )
    for folder in (old_data, old_run):  # as earlier versions wrote them
        data = json.loads((folder / "tokenizer.json").read_text())
        assert data["post_processor"]["type"] == "TemplateProcessing"
        (folder / "tokenizer.json").write_text(json.dumps(data | {"post_processor": None}))
        (folder / "tokenizer_config.json").write_text(json.dumps(OLD_CONFIG))
    old, new = tokenization.load(old_data), tokenization.load(dataset)
    assert old.kind == new.kind == "bpe" and old.eot == new.eot == 0
    assert old.encode("def f():") == new.encode("def f():")
    settings = (*TINY, "--max_iters=61", "--eval_interval=30")
    for data, out in ((dataset, old_run), (old_data, shutil.copytree(trained, tmp_path / "new"))):
        how = (f"--dataset={data}", f"--out_dir={out}", "--init_from=resume")
        assert in_process(monkeypatch, *settings, *how) == 0
        assert AutoTokenizer.from_pretrained(out)("a")["input_ids"][0] == 0
    tuned = (f"--init_from={trained}", f"--dataset={old_data}", f"--out_dir={tmp_path / 'tuned'}")
    assert in_process(monkeypatch, *TINY, "--max_iters=1", *tuned) == 0
    capsys.readouterr()


# --- tokenizers from elsewhere --------------------------------------------------------------------


@pytest.fixture
def code(tmp_path):
    """A folder of Python code, in files of which each is a document."""
    folder = tmp_path / "code"
    for number in range(60):
        package = folder / f"package{number}"
        package.mkdir(parents=True)
        lines = [f"def f{number}_{line}(x):\n    return x + {line}\n" for line in range(20)]
        (package / "module.py").write_text("\n".join(lines))
    return folder


def foreign(folder, *special):
    """A folder with a byte-level BPE that was not made here, with these special tokens."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    text = (ROOT / "model.py").read_text()
    bpe.train_from_iterator([text], 600, show_progress=False, special_tokens=list(special))
    folder.mkdir()
    bpe.save(str(folder / "tokenizer.json"))
    return folder


def prepare(code, out, *args, ok=True):
    return run("prepare/python.py", f"--path={code}", f"--out={out}", *args, ok=ok)


def test_another_tokenizers_end_token_travels_from_the_data_to_the_export(
    code, tmp_path, monkeypatch, capsys
):
    tokenizer, data, out = (
        foreign(tmp_path / "llama", "<s>", "</s>"),
        tmp_path / "d",
        tmp_path / "o",
    )
    prepare(code, data, f"--tokenizer={tokenizer}", "--fim_rate=0")
    meta, ids = json.loads((data / "meta.json").read_text()), np.fromfile(data / "train.bin", "<u2")
    assert tokenization.load(data).eot == 1 and ids[-1] == 1
    assert (ids == 1).sum() == meta["train"]["documents"] > 10
    how = (*TINY, "--n_embd=16", "--max_iters=2", "--vocab_size=600")
    assert in_process(monkeypatch, *how, f"--dataset={data}", f"--out_dir={out}") == 0
    auto = AutoTokenizer.from_pretrained(out)
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (1, 1, 1)
    assert auto("x")["input_ids"][0] == 1
    config = json.loads((out / "generation_config.json").read_text())
    assert config == {"bos_token_id": 1, "eos_token_id": [0, 1], "pad_token_id": 1}
    # A model that always ends: sample.py writes nothing, and so does transformers.
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.fill_(1)
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[1] = 1
    ends = tmp_path / "ends"
    model.save_pretrained(ends)
    for file in out.glob("tokenizer*"):
        shutil.copy(file, ends)
    prompt = "def f(x):\n    return x"
    written = sample(
        monkeypatch, capsys, f"--ckpt={ends}", "--temperature=0", f"--prompt={prompt}:"
    )
    assert len(written) < len(prompt) + 10
    done = model.generate(**auto(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=9)
    assert done[0].tolist() == [*auto(prompt)["input_ids"], 1]


@pytest.mark.parametrize(
    "special, config, setting, end",
    [
        (["<a>", "<b>"], {"eos_token": {"content": "<b>"}}, "", 1),
        (["<a>", "<b>"], None, "--eot=<a>", 0),
        (["<|endoftext|>", "<|im_end|>"], {"eos_token": "<|im_end|>"}, "", 1),
        (["<|endoftext|>", "</s>"], None, "", 0),
        (["<a>", "<b>"], None, "", "--eot=TOKEN: <a>, <b>"),
        (["</s>", "<eos>"], None, "", "--eot=TOKEN: </s>, <eos>"),
        (["</s>"], None, "--eot=<eos>", "no special token <eos>; its special tokens are </s>"),
        ([], None, "", None),
    ],
)
def test_the_end_token_is_named_known_or_asked_for(
    special, config, setting, end, code, tmp_path, monkeypatch, capsys
):
    from prepare import python

    folder = foreign(tmp_path / "tokenizer", *special)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    settings = [f"--path={code}", f"--out={tmp_path / 'd'}", f"--tokenizer={folder}", "--max_mb=1"]
    monkeypatch.setattr(sys, "argv", ["prepare/python.py", *settings, "--fim_rate=0"])
    sys.argv += [setting] * bool(setting)
    monkeypatch.setattr(python.corpus, "parallel", one_after_the_other)
    if isinstance(end, str):
        with pytest.raises(SystemExit) as ended:
            python.main()
        assert ended.value.code == 2 and end in capsys.readouterr().err
        assert not (tmp_path / "d").exists()
        return
    python.main()
    assert tokenization.load(tmp_path / "d").eot == end
    assert ("nothing will separate documents" in capsys.readouterr().err) == (end is None)


def one_after_the_other(function, items, start=None, args=(), workers=None):
    if start:
        start(*args)
    yield from map(function, items)


# --- the card -------------------------------------------------------------------------------------


def front_matter(folder):
    import yaml

    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_card_says_what_the_model_is_and_a_persons_own_stays(
    trained, dataset, tmp_path, monkeypatch, capsys
):
    from huggingface_hub import ModelCard

    import eval

    out, card = shutil.copytree(trained, tmp_path / "run"), tmp_path / "run/README.md"
    about, text = front_matter(out), card.read_text()
    assert about["library_name"] == "transformers" and about["pipeline_tag"] == "text-generation"
    assert about["license"] == "other" and about["tags"] == [
        "nanoneox",
        "gpt_neox",
        "code",
        "python",
    ]
    ModelCard.load(card).data.to_dict()
    meta = json.loads((dataset / "meta.json").read_text())
    size = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(out).parameters())
    for told in (
        f"{meta['train']['tokens']:,} tokens",
        f"{meta['val']['tokens']:,} tokens, {meta['val']['bytes'] / 1000:,.1f} kB",
        f"{size / 1e6:.2f} million",
        "| steps | 60 |",
    ):
        assert told in text
    assert str(dataset.parent) not in text and "fim_prefix" not in text  # it has not learnt that
    assert "held-out" not in text
    monkeypatch.setattr(eval.tracking, "send", lambda folder: None)
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e12)
    monkeypatch.setattr(sys, "argv", ["eval.py", f"--ckpt={out}", "--tasks=loss", "--device=cpu"])
    eval.main()
    report = json.loads((out / "eval.json").read_text())
    told, first = report["bits_per_byte"], 100 * report["top1"]
    assert f"| loss on held-out text, bits per byte | {told:.4g} |" in card.read_text()
    assert f"| right token is the first guess, % | {first:.1f} |" in card.read_text()

    resume = (*TINY, f"--dataset={dataset}", f"--out_dir={out}", "--init_from=resume")
    assert in_process(monkeypatch, *resume, "--max_iters=61") == 0
    text = card.read_text()  # eval.json is about other weights now
    assert "| steps | 61 |" in text and "held-out" not in text
    for mine in (text.replace("61", "sixty-one"), "# My model\n"):
        card.write_text(mine)
        assert "README.md is yours" in cards.write(out) and card.read_text() == mine
    # Beside a README of one's own no new run begins, nor is the old one set aside.
    begin = (*TINY, f"--dataset={dataset}", "--max_iters=1")
    assert in_process(monkeypatch, *begin, f"--out_dir={out}") == 2
    assert "README.md, which no run writes" in capsys.readouterr().err
    card.write_text(text)
    runs.refuse_foreign_files(out)  # ours is in no one's way
    tuned = tmp_path / "tuned"
    assert in_process(monkeypatch, *begin, f"--init_from={trained}", f"--out_dir={tuned}") == 0
    assert f"fine-tuned from {trained.name} " in (tuned / "README.md").read_text()


def test_a_run_with_n_mix_brings_its_class_which_we_ourselves_never_run(
    trained, dataset, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    how = (*TINY, "--n_mix=2", "--shared_norm", "--max_iters=2", f"--dataset={dataset}")
    assert in_process(monkeypatch, *how, f"--out_dir={out}") == 0
    runs.refuse_foreign_files(out)
    assert f"!{hf.MODELING.name}\n" in (out / ".gitignore").read_text()
    text = (out / "README.md").read_text()
    assert 'model="USER/run", trust_remote_code=True)' in text and "(`n_mix`), so it runs" in text
    assert "trust_remote_code" not in (trained / "README.md").read_text()
    auto = AutoTokenizer.from_pretrained(out)  # is no code
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    ids, ours = auto("def f(x):", return_tensors="pt")["input_ids"], runs.load_model(out)
    torch.testing.assert_close(theirs(ids).logits, ours(ids))
    exported = tmp_path / "exported"
    exported.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(out / name, exported)
    (exported / hf.MODELING.name).write_text("raise SystemExit('somebody changed this')")
    torch.testing.assert_close(hf.from_pretrained(exported)(ids), ours(ids))
    capsys.readouterr()
    mine = out / hf.MODELING.name  # what somebody changed there stays, whatever is exported again
    mine.write_text(mine.read_text() + "# mine\n")
    hf.save_pretrained(ours, out)
    assert mine.read_text().endswith("# mine\n") and "and stays" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("git"), reason="needs git on the PATH")
def test_git_and_the_hub_are_told_to_leave_out_all_but_the_model(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "wandb.json").write_text("{}")
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run(["git", "-C", folder, "add", "."], check=True)
    kept = subprocess.run(["git", "-C", folder, "ls-files"], capture_output=True, text=True)
    assert set(kept.stdout.split()) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }

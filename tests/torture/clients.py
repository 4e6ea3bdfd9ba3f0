"""Three generations of transformers write what sample.py writes. The older ones are installed into
a temporary folder, beside the torch that is here; without a package index they are skipped."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from test_exports import real_prompts, sample

from parts import hf

OLDER = {
    "4.46.3": ("tokenizers>=0.20,<0.21", "huggingface_hub>=0.23.2,<1.0"),
    "4.57.6": ("tokenizers>=0.22,<=0.23.0", "huggingface_hub>=0.34,<1.0"),
}
# What this version's pipeline says of every model, also of one that transformers itself saved.
NOTICES = {
    "4.57.6": {
        "Device set to use cpu",
        "The following generation flags are not valid and may be ignored: ['temperature']. "
        "Set `TRANSFORMERS_VERBOSITY=info` for more details.",
    }
}
CLIENT = """
import json, sys
folder, prompts = sys.argv[1], json.load(sys.stdin)
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__, pipeline
write = pipeline("text-generation", model=folder, trust_remote_code=True)
how = dict(do_sample=False, max_new_tokens=64)
# Until version 5 a pipeline writes " ." as ".", of whatever model, unless it is told not to.
plain = {"clean_up_tokenization_spaces": False} if __version__ < "5" else {}
alone = [write(prompt, **how, **plain)[0]["generated_text"] for prompt in prompts]
piped = [done[0]["generated_text"] for done in write(prompts, **how, **plain, batch_size=7)]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), **how)
padded = tokenizer.batch_decode(ids, skip_special_tokens=True)
json.dump([__version__, alone, piped, padded], sys.stdout)
"""


@pytest.fixture(scope="module")
def model(request):
    """The quickstart's model, or where there is none the tests' own."""
    quickstart = ROOT / "out/python_cpu"
    exported = (quickstart / "generation_config.json").exists()
    return quickstart if exported else request.getfixturevalue("trained")


@pytest.mark.parametrize("version", [*OLDER, ""])
def test_transformers_writes_the_text_of_sample_py(
    version, model, dataset, tmp_path, monkeypatch, capsys
):
    if version == "4.46.3" and (model / hf.MODELING.name).exists():
        pytest.skip("modeling_nanoneox.py needs transformers 4.57")
    prompts = real_prompts(model, dataset, 24)
    how = (f"--ckpt={model}", "--temperature=0", "--max_new_tokens=65", "--device=cpu")
    expected = [sample(monkeypatch, capsys, *how, f"--prompt={p}")[:-1] for p in prompts]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if version:
        packages = f"transformers=={version}", *OLDER[version]
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        command += ["--target", str(tmp_path / "packages"), *packages]
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"pip installs no {packages[0]}: {installed.stderr.strip()[-200:]}")
        env["PYTHONPATH"] = str(tmp_path / "packages")
    command = [sys.executable, "-c", CLIENT, str(model)]
    given = json.dumps(prompts)
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    used, *results = json.loads(done.stdout)
    assert used == version or not version
    for result in results:
        assert result == expected
    assert set(done.stderr.splitlines()) <= NOTICES.get(version, set()), done.stderr

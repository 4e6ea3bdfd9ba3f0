"""The model card of a run: README.md in its folder, as Hugging Face shows it, made of nothing but
what the folder itself says; and .gitignore, by which `hf upload` leaves out all but the model.

A card that a person changed, or wrote, stays as it is."""

import hashlib
import json
import math
import re
from pathlib import Path

from parts import figures
from parts.configurator import locate
from parts.files import load_json, read_json, read_lines, write_text
from parts.hf import FAMILIES, MODELING
from parts.tokenizer import ENDOFTEXT, FIM
from parts.tokenizer import load as load_tokenizer

MARK = "Written by nanoNeoX"
# `hf upload` sends this file first, and the hub then refuses what it names.
IGNORED = f"""# {MARK}: `hf upload USER/NAME FOLDER` leaves out all but the model.
*
!README.md
!*config.json
!model.safetensors
!modeling_nanoneox.py
!tokenizer.json
!*.gguf
"""
SEAL = f"<!-- {MARK} ({{}}), and anew at each export, unless you change it: then it is yours. -->\n"
LICENCES = """mit apache-2.0 bsd-2-clause bsd-3-clause isc mpl-2.0 unlicense cc0-1.0 zlib bsl-1.0
    cc-by-4.0 cc-by-sa-4.0 odc-by postgresql ncsa""".split()  # as the hub calls them
SETTINGS = """n_layer n_head n_embd block_size vocab_size batch_size grad_accum optimizer lr
    lr_schedule weight_decay dropout seed""".split()
ABOUT = ("source", "language", "licences", "fim")  # of meta.json, what run.json keeps
MOST_LICENCES = 12  # that are listed one by one


def is_marked(file: Path) -> bool:
    """Whether a README.md or .gitignore is one that this module wrote, changed or not."""
    try:
        return MARK in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def seal(text: str) -> str:
    return SEAL.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def is_untouched(file: Path) -> bool:
    """Whether a card is as `write` left it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    body, mark, rest = text.rpartition("<!-- ")
    return mark + rest == seal(body)


def write(folder: Path) -> str:
    """Write the card of an exported run, and .gitignore where there is none. Returns why there is
    no new card: "" if there is one. A README.md that a person wrote or changed stays. OSError if
    the disk does not take it."""
    file, ignored = folder / "README.md", folder / ".gitignore"
    if not ignored.exists():
        write_text(ignored, IGNORED)
    if file.exists() and not is_untouched(file):
        return f"{file} is yours and stays; no model card was written"
    try:
        text = card(folder)
    except (ValueError, KeyError, TypeError) as error:  # somebody changed run.json, ...
        return f"no model card was written: {error!r}"
    write_text(file, text + seal(text))
    return ""


def card(folder: Path) -> str:
    """The text of the card, from run.json, metrics.jsonl, config.json, the tokenizer and, where it
    is about the exported weights, eval.json."""
    run, config = load_json(folder / "run.json"), load_json(folder / "config.json")
    settings, data, origin = run["settings"], run.get("data", {}), run.get("origin", {})
    metrics = folder / "metrics.jsonl"
    lines = read_lines(metrics)[0] if metrics.exists() else []
    tokenizer, base = load_tokenizer(folder), run.get("base")
    best = run.get("exported", {}).get("step")  # with save_best the model is not the last step's
    exported = {} if best is None else {"step of this model": best}
    licences, language = origin.get("licences") or {}, origin.get("language")
    known = {name.lower() for name in licences}
    one = not base and len(known) == 1 and known <= set(LICENCES)
    about = {
        "license": known.pop() if one else "other",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["nanoneox", config["model_type"], *(["code", language] if language else [])],
    }
    if origin.get("datasets"):
        about["datasets"] = origin["datasets"]
    if base and is_hub_name(base):
        about["base_model"] = base.partition("@")[0]
    trained = f"fine-tuned from {base}" if base else "trained from scratch"
    what = f"{language.title()} code" if language else "text"
    name, family = folder.name, FAMILIES[config["model_type"]].name
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in about.items()) + "---",
        f"# {name}",
        f"A {family} model of {parameters(folder) / 1e6:.2f} million parameters, {trained} with "
        f"nanoNeoX on {what}. What it writes may be wrong, unsafe, or copied from its training "
        "data: read it before you run or publish it.",
        "## Data",
        data_text(Path(settings["dataset"]).name, data, origin),
        "## Training",
        table(
            {key: settings[key] for key in SETTINGS if key in settings} | progress(lines) | exported
        ),
        "## Scores",
        table(scores(folder, [m for m in lines if best is None or m.get("step", 0) <= best])),
        "## Use",
        usage(
            name,
            tokenizer,
            bool(base or origin.get("fim", {}).get("rearranged")),
            "auto_map" in config,
        ),
    ]
    return "\n\n".join(parts) + "\n\n"


def origin_of(meta: dict) -> dict:
    """What a card says of a data set, from its meta.json; of a person's paths, the last part."""
    found = {key: meta[key] for key in ABOUT if key in meta}
    given, source = meta.get("arguments", {}), str(meta.get("source", ""))
    if given.get("file") or given.get("path"):
        found["source"] = re.sub(r"[^,\s]*[/\\](?=[^/\\,\s])", "", source)
    elif is_hub_name(source):
        found["datasets"] = [source]
    return found


def base_of(init_from: str) -> str | None:
    """The model from which a training starts, as a card names it; None if from none. A person's
    folder has only its name."""
    if init_from in ("scratch", "resume", "auto"):
        return None
    path = locate(init_from)
    path = path.parent if path.suffix == ".pt" else path
    return path.name if path.exists() else init_from


def is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?", name))


def parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    return sum(map(math.prod, shapes))


def data_text(dataset: str, data: dict, origin: dict) -> str:
    source = origin.get("source") or "not recorded"
    text = f"Data set `{dataset}`; source: {source}.\n"
    for split, n in data.items():
        scale, unit = (1e6, "MB") if n.get("bytes", 0) >= 1e6 else (1e3, "kB")
        size = f", {n['bytes'] / scale:,.1f} {unit}" if "bytes" in n else ""
        learnt = f", {n['learnt']:,} of them learnt" if "learnt" in n else ""
        text += f"\n- {split}: {n['tokens']:,} tokens{learnt}{size}"
    licences = list((origin.get("licences") or {}).items())
    names = [(name.replace("License :: OSI Approved :: ", ""), count) for name, count in licences]
    listed = ", ".join(f"{name} ({count:,})" for name, count in names[:MOST_LICENCES])
    more = f", and {len(licences) - MOST_LICENCES} more" if len(licences) > MOST_LICENCES else ""
    return f"{text}\n- licences, with their number of documents: {listed or 'not recorded'}{more}"


def progress(lines: list[dict]) -> dict:
    """How far the training came, from metrics.jsonl."""
    last = {key: value for line in lines for key, value in line.items()}
    found = {"steps": last.get("step"), "tokens read": last.get("tokens")}
    if "elapsed" in last:
        found["minutes"] = round(last["elapsed"] / 60, 1)
    return {key: value for key, value in found.items() if value is not None}


def scores(folder: Path, lines: list[dict]) -> dict:
    """The last validation loss, and the numbers of eval.json if that is about these weights."""
    last = {key: value for line in lines for key, value in line.items()}
    found = {
        "loss, estimated in training, nats per token": ("loss", last.get("val_loss")),
        "loss, estimated in training, bits per byte": ("loss", last.get("bits_per_byte")),
    }
    report, weights = read_json(folder / "eval.json"), folder / "model.safetensors"
    newest = max(file.stat().st_mtime for file in (weights, *folder.glob("ckpt.pt")))
    same = not str(report.get("arguments", {}).get("ckpt", "")).endswith(".pt")
    if (
        report
        and same
        and weights.stat().st_mtime == newest <= (folder / "eval.json").stat().st_mtime
    ):
        left_out = "(loss|top1|share)_"
        keys = [key for key in report if not re.match(left_out, key)]
        found |= {figures.described(key): (key, report[key]) for key in keys}
    numbers = {k: pair for k, pair in found.items() if isinstance(pair[1], (int, float))}
    return {what: figures.shown(*pair) for what, pair in numbers.items()}


def table(values: dict) -> str:
    rows = [f"| {key} | {value} |" for key, value in values.items()]
    return "\n".join(["| what | value |", "| --- | --- |", *rows]) if rows else "None yet."


def usage(name: str, tokenizer, fills: bool, own_code: bool) -> str:
    """How to load and to prompt the model. own_code: whether its class is in the folder."""
    begin = "The " if tokenizer.eot is None else "def fibonacci(n):"  # it may lack the letters
    trust = ", trust_remote_code=True" if own_code else ""
    text = f"""```python
from transformers import pipeline

write = pipeline("text-generation", model="USER/{name}"{trust})
how = dict(do_sample=False, max_new_tokens=64, clean_up_tokenization_spaces=False)
print(write("{begin}", **how)[0]["generated_text"])
```

Before version 5, transformers wrote ` .` as `.` without the last of these settings.

"""
    if own_code:
        text += f"""No network of transformers mixes each position with the ones just before it
(`n_mix`), so it runs `{MODELING.name}` of this repository, which `trust_remote_code=True` allows.

"""
    if tokenizer.eot is None:
        return text + "The tokenizer knows single characters only, those of the training text."
    end = tokenizer.token_bytes(tokenizer.eot).decode()
    text += f"""The tokenizer puts `{end}` before a prompt, as every document in training began. Do
not end a prompt inside a word, or with a space or a newline: in training such an end was part of a
longer token. Prompt and completion together should fit in the context (`block_size` above)."""
    if fills and end == ENDOFTEXT and all(mark in tokenizer.special for mark in FIM):
        prefix, middle, suffix = FIM
        text += f"""

To fill in the middle, give what follows the gap first, and stop at `{end}`:
`{prefix}{suffix}SUFFIX{middle}PREFIX`, to which the tokenizer adds the `{end}` in front."""
    return text

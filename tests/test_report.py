"""prepare/report.py, run as a person runs it: its numbers are those that are counted here anew."""

import json
import random
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import tokenizers
from conftest import run

from parts import infill
from parts import tokenizer as tokenization
from parts.data import Dataset

HOSTILE = (
    "</code></script><script>alert(1)</script><img src='http://example.com/a.png'>\u202e &amp;\n"
)


def report(dataset, out, *args):
    """The finished process, report.json and the page."""
    done = run("prepare/report.py", f"--dataset={dataset}", f"--out={out}", *args)
    return done, json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def files_in(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def plain(dataset, tmp_path_factory):
    before, out = files_in(dataset), tmp_path_factory.mktemp("report")
    for name in ("report.json", "report.html"):  # an earlier one, which is replaced
        (out / name).write_text(json.dumps({"folder": str(dataset)}))
    made = report(dataset, out)
    assert files_in(dataset) == before
    return made


def test_tokens_and_documents_are_those_of_an_independent_count(dataset, plain):
    done, facts, page = plain
    judge = tokenizers.Tokenizer.from_file(str(dataset / "tokenizer.json"))
    end = judge.token_to_id("<|endoftext|>")
    meta = json.loads((dataset / "meta.json").read_text())
    for split in ("train", "val"):
        ids = np.fromfile(dataset / f"{split}.bin", "<u2").tolist()
        counted = Counter(ids)
        assert facts["counts"][split] == [counted[i] for i in range(1024)]
        bounds = [-1, *(n for n, i in enumerate(ids) if i == end)]
        sizes = sorted(stop - start - 1 for start, stop in zip(bounds, bounds[1:]))
        size = len(judge.decode([i for i in ids if i != end], skip_special_tokens=False).encode())
        found = facts["splits"][split]
        assert found["tokens"] == len(ids) and found["bytes"] == size == meta[split]["bytes"]
        assert found["documents"] == len(sizes) == meta[split]["documents"]
        assert found["special"] == len(sizes) and found["rearranged"] == 0
        assert found["lengths"]["shortest"] == sizes[0] and found["lengths"]["longest"] == sizes[-1]
        assert abs(found["lengths"]["median"] - np.median(sizes)) <= 1
        assert f"{len(ids):,}" in done.stdout and f"{len(ids):,}" in page
        longest = [d for d in facts["oddest"] if d["kind"] == "longest" and d["split"] == split]
        place = longest[0]["token"]
        assert longest[0]["tokens"] == sizes[-1] and (place == 0 or ids[place - 1] == end)
        assert longest[0]["text"] == judge.decode(ids[place : place + 200])[:200]
        shares = [d["value"] for d in facts["oddest"] if d["kind"].startswith("one token")]
        parts = [ids[a + 1 : b] for a, b in zip(bounds, bounds[1:]) if b - a > 64]
        most = max(max(Counter(part).values()) / len(part) for part in parts)
        assert round(most, 4) in shares
    train = Counter(np.fromfile(dataset / "train.bin", "<u2").tolist())
    assert facts["tokens"]["never"] == sum(train[i] == 0 for i in range(1024))
    most = train.most_common(100)
    assert [t["train"] for t in facts["tokens"]["commonest"]] == [n for _, n in most[:20]]
    share = sum(n for _, n in most) / train.total()
    assert facts["tokens"]["share_of_commonest"]["100"] == round(share, 4)
    texts = [judge.decode([i]) for i in range(4, 1024)]
    assert len(facts["tokens"]["longest"][0]["text"]) - 2 >= max(map(len, texts))
    lengths = [facts["splits"][split]["lengths"] for split in ("train", "val")]
    for key in ("median", "longest"):
        [row] = re.findall(rf"^tokens, {key} document (.*)", done.stdout, re.M)
        assert row.split() == [f"{length[key]:,}" for length in lengths]
    assert done.stdout.count("\n") <= 40 and "counting" in done.stderr  # no bar: no terminal


def test_each_rule_that_dropped_something_shows_what_it_dropped(dataset, plain):
    done, facts, page = plain
    dropped = {
        rule: count
        for rule, count in facts["cleaning"].items()
        if count["documents"] and rule not in ("read", "kept")
    }
    assert dropped
    shown = Page(page).text
    for rule, count in dropped.items():
        assert count["example"]["name"] in shown and count["example"]["text"] in shown
        assert rule in done.stdout and count["example"]["name"] in done.stdout


def test_the_inputs_are_those_that_a_training_reads_first(dataset, masked, plain, tmp_path):
    # With masks, most targets are not learnt.
    learnt = report(masked, tmp_path / "masked", "--block_size=64", "--seed=5")[1:]
    for folder, (facts, page), (seed, size) in (
        (dataset, plain[1:], (1337, 128)),
        (masked, learnt, (5, 64)),
    ):
        x, y = Dataset(str(folder), size).train_batch(seed, 0, 0, 4, "cpu")
        for row, pair in enumerate(facts["pairs"]):
            expected = [id if mark else -100 for id, mark in zip(pair["ids"][1:], pair["learnt"])]
            count = len(pair["ids"]) - 1  # a window at the end of the split is short
            assert pair["ids"][:-1] == x[row, :count].tolist()
            assert expected == y[row, :count].tolist() and count
        spans = [attributes for tag, attributes in Page(page).elements if tag == "span"]
        struck = sum(span["class"] == "skipped" for span in spans)
        assert struck == sum(pair["learnt"].count(0) for pair in facts["pairs"])
        assert len(spans) == sum(2 * len(pair["ids"]) - 2 for pair in facts["pairs"])
    mask = np.fromfile(masked / "train.mask", np.uint8)
    assert learnt[0]["splits"]["train"]["learnt"] == int(mask.sum()) > 0


@pytest.fixture(scope="module")
def stream(dataset, tmp_path_factory):
    """A stream of the data set: half of its text is rearranged; documents lie across its segments,
    of which the first are gone. The last document is one of val, edited; the one before is hostile.
    The report, the tokenizer and tokens, the texts of the documents that are there, and the copy's
    original and length."""
    folder = tmp_path_factory.mktemp("data") / "stream"
    shutil.copytree(dataset, folder)
    tok, rng = tokenization.load(folder), random.Random(0)
    texts = {}
    for split in ("train", "val"):
        ids = np.fromfile(folder / f"{split}.bin", "<u2")
        ends = np.flatnonzero(ids == tok.eot)
        texts[split] = [tok.decode(part) for part in np.split(ids, ends)]
        texts[split] = [text.removeprefix("<|endoftext|>") for text in texts[split]][:-1]
    longest = max(texts["val"], key=len)
    copy = longest.replace("self", "this").replace("    ", "\t")
    kept = [*texts["train"], HOSTILE * 9, copy]
    ids, starts = [], []
    for text in kept:
        starts.append(sum(map(len, ids)))
        ids += infill.rearrange(tok, tok.encode_numpy(text), 0.5, 64, rng)[0]
    ids, size, gone = np.concatenate(ids), 50_000, 2
    (folder / "train.bin").unlink()
    segments = [
        {"number": n, "tokens": len(part), "sha256": ""}
        for n, part in enumerate(np.split(ids, range(size, len(ids), size)))
    ][gone:]
    for segment in segments:
        at = segment["number"] * size
        ids[at : at + size].astype("<u2").tofile(folder / f"train.{segment['number']:05d}.bin")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["train"]
    meta["stream"] = {"id": "00", "segment_tokens": size}
    meta["arguments"] |= {"fim_rate": 0.5, "fim_context": 64}
    cleaning = meta.pop("cleaning")
    cleaning["generated"] = {
        "documents": 1,
        "bytes": 9,
        "example": {"name": HOSTILE, "text": HOSTILE},
    }
    source = {"documents": len(kept), "bytes": 300, "tokens": 100}
    (folder / "meta.json").write_text(json.dumps(meta))
    state = {
        "segments": segments,
        "tokens": len(ids),
        "documents": len(kept),
        "bytes": 300,
        "ended": False,
        "sources": {"local": source},
        "cleaning": cleaning,
        "licences": {"MIT": len(kept)},
        "languages": {"Python": len(kept)},
        "masked": {},
    }
    (folder / "stream.json").write_text(json.dumps(state))
    whole = [text for text, start in zip(kept, starts) if start >= gone * size]
    before = files_in(folder)
    made = report(folder, tmp_path_factory.mktemp("report"))
    assert files_in(folder) == before
    return made, tok, ids[gone * size :], whole, longest, len(copy.encode())


def test_a_stream_is_counted_in_documents_though_its_text_is_rearranged(stream):
    (done, facts, page), tok, ids, whole, longest, size = stream
    found = facts["splits"]["train"]
    assert facts["counts"]["train"] == np.bincount(ids, minlength=1024).tolist()
    assert found["rearranged"] == facts["counts"]["train"][tok.special["<|fim_prefix|>"]] > 500
    # The first document has lost its beginning; a few cannot be told from the next one.
    assert 0.95 * len(whole) <= found["documents"] <= len(whole) + 1
    assert found["bytes"] >= sum(len(text.encode()) for text in whole)
    most = max(whole, key=lambda text: len(tok.encode(text)))
    odd = next(d for d in facts["oddest"] if (d["kind"], d["split"]) == ("longest", "train"))
    assert odd["text"] == most[:200] and odd["bytes"] == len(most.encode())

    near = facts["near_duplicates"]
    assert (near["found"], near["exact"]) == (1, 0)
    pair = near["shown"][0]
    assert pair["val"]["text"] == longest[:200] and pair["similarity"] > 0.6
    assert pair["train"]["bytes"] == size < pair["val"]["bytes"] == len(longest.encode())

    assert facts["sources"]["local"]["bytes_per_token"] == 3.0
    assert facts["languages"] == {"Python": facts["licences"]["MIT"]}
    assert "local" in done.stdout and "it goes on" in done.stdout
    assert "licences as the sources tell them, with their number of documents: MIT" in done.stdout


def test_hostile_text_is_shown_and_the_page_reaches_no_network(stream):
    page = stream[0][2]
    read = Page(page)
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert read.text.count(shown) >= 3  # its name, its text, and an odd document
    tags = {tag for tag, _ in read.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form", "image", "a"}
    for _, attributes in read.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attributes.get(name, "#").startswith("#")
        assert "://" not in str(attributes.get("style"))
    assert "url(" not in page.replace("url(#", "") and "@import" not in page
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in [
        (tag, attributes.get("content")) for tag, attributes in read.elements
    ]
    assert len([tag for tag, _ in read.elements if tag == "svg"]) == 3


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda tmp, copy: ["--dataset=nowhere"], "there is no data set"),
        (lambda tmp, copy: [f"--out={copy}/report"], "in the data set's folder"),
        (lambda tmp, copy: [f"--out={tmp}"], "which is no report"),
        (lambda tmp, copy: ["--block_size=0"], "must be above 0"),
        (lambda tmp, copy: cut(copy / "val.bin"), "val.bin is missing, or"),
        (lambda tmp, copy: change(copy / "train.bin"), "holds token 1024"),
        (lambda tmp, copy: spoil_meta(copy / "meta.json"), "meta.json is damaged: cleaning.read"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(dataset, tmp_path, spoil, message):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    args = spoil(tmp_path, copy) or []
    before = files_in(copy)
    done = run(
        "prepare/report.py", f"--dataset={copy}", f"--out={tmp_path / 'out'}", *args, ok=False
    )
    *before_it, error = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith("error: ") and message in error
    assert all(line.startswith("counting ") for line in before_it)  # in place of a bar
    assert files_in(copy) == before and not (tmp_path / "out").exists()


def cut(file):
    file.write_bytes(file.read_bytes()[:-2])


def change(file):
    with open(file, "r+b") as opened:
        opened.write(np.array([1024], "<u2").tobytes())


def spoil_meta(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cleaning": {"read": 5}}))


def test_a_report_on_another_set_is_not_replaced(dataset, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"folder": "another"}))
    before = files_in(tmp_path)
    done = run("prepare/report.py", f"--dataset={dataset}", f"--out={tmp_path}", ok=False)
    assert done.returncode == 2 and "no report on" in done.stderr
    assert files_in(tmp_path) == before

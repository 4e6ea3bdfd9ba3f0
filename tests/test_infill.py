"""Fill in the middle, from the documents that teach it to a gap that a model fills."""

import json
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run

import sample
import tasks
from parts import configurator, infill, runs
from parts import tokenizer as tokenization
from prepare import corpus
from tasks import code, places, problems, sandbox
from tasks import infill as infilling

DATA = os.environ.get("NANONEOX_DATA")


def segments(ids, tok):
    """What stands between end-of-text tokens."""
    ends = np.flatnonzero(ids == tok.eot) + 1
    assert ends[-1] == len(ids)
    return [part[:-1].tolist() for part in np.split(ids, ends[:-1])]


def put_back(ids, tok):
    """The text of a segment in its own order, and whether the prefix or the suffix came first."""
    before_prefix, before_suffix, before_middle = infill.marks(tok)
    if before_prefix not in ids:
        return tok.decode(ids), "plain"
    begin, middle = ids.index(before_suffix), ids.index(before_middle)
    prefix, suffix, rest = ids[1:begin], ids[begin + 1 : middle], ids[middle + 1 :]
    return tok.decode(prefix + rest) + tok.decode(suffix), "prefix" if prefix else "suffix"


@pytest.fixture(scope="module")
def tok(real_files):
    return tokenization.train_bpe(real_files[:200], 1024)


def encode(folder, tok, texts, split="train", rate=0.5, workers=1):
    """The texts as the data set holds them; workers: how many batches they are encoded in."""
    tok.save(folder)
    spool = folder / "spool"
    spool.write_bytes(b"".join(text.encode() for text in texts))
    lengths = np.array([len(text.encode()) for text in texts], np.uint64)
    offsets = np.cumsum(lengths) - lengths
    cfg = configurator.load(corpus.Settings, [f"--fim_rate={rate}"])
    corpus.start_encoder(folder, spool, cfg)
    parts = np.array_split(np.arange(len(texts)), workers)
    done = [corpus.encode_batch((split, offsets[part], lengths[part])) for part in parts]
    return np.concatenate([one.ids for one in done]), done


def test_rearranged_documents_are_whole_and_as_many_as_asked_for(tmp_path, tok, real_files):
    texts = [*real_files[:150], "日本語のテキスト🙂" * 200, "x", "é" * 5000]
    ids, [encoded] = encode(tmp_path, tok, texts)
    found = [put_back(part, tok) for part in segments(ids, tok)]
    assert "".join(text for text, _ in found) == "".join(texts)
    kinds = [kind for _, kind in found]
    share = encoded.rearranged / encoded.pieces
    assert encoded.rearranged == len(kinds) - kinds.count("plain")
    assert 0.47 < share < 0.53 and 0.45 < kinds.count("prefix") / encoded.rearranged < 0.55
    longest = max(len(part) for part, kind in zip(segments(ids, tok), kinds) if kind != "plain")
    assert 110 < longest + 1 <= 128  # as many as fit in the context
    # The rest of each document is cut off in one place at most.
    assert kinds.count("plain") <= 2 * len(texts)


def test_no_rearranged_piece_is_longer_than_the_context(tok):
    # A word of one token has several when it is cut: the longest words make the longest pieces.
    tokens = set(range(tok.vocab_size)) - set(tok.special.values())
    words = sorted((tok.token_bytes(n).decode(errors="ignore") for n in tokens), key=len)
    text = " ".join(words[-40:] * 20)
    for seed in range(60):
        ids, rng = tok.encode_numpy(text), random.Random(seed)
        arrays, pieces, rearranged = infill.rearrange(tok, ids, 1, infill.SHORTEST, rng)
        assert pieces == rearranged and max(map(len, arrays)) < infill.SHORTEST
        found = segments(np.concatenate(arrays), tok)
        assert "".join(put_back(part, tok)[0] for part in found) == text


def test_the_draw_hangs_on_the_seed_and_the_document_alone(tmp_path, tok, real_files):
    texts = real_files[:60]
    ids, _ = encode(tmp_path, tok, texts)
    again, _ = encode(tmp_path, tok, texts, workers=7)
    assert np.array_equal(ids, again)
    other, _ = encode(tmp_path, tok, texts[::-1])
    assert sorted(segments(other, tok)) == sorted(segments(ids, tok))
    cut = segments(encode(tmp_path, tok, texts, rate=1)[0], tok)
    assert all(infill.marks(tok)[0] in part for part in cut)


@pytest.mark.parametrize("split, rate", [("val", 0.5), ("train", 0)])
def test_val_and_a_rate_of_zero_leave_every_token_as_it_was(tmp_path, tok, real_files, split, rate):
    texts = real_files[:30]
    plain = [tok.encode(text) + [tok.eot] for text in texts]
    ids, [encoded] = encode(tmp_path, tok, texts, split, rate)
    assert ids.tolist() == sum(plain, []) and encoded.rearranged == 0


def test_a_data_set_says_what_was_rearranged(tmp_path, real_files):
    (tmp_path / "source").mkdir()
    for number, text in enumerate(real_files[:60]):
        (tmp_path / f"source/{number}.py").write_text(text)
    how = f"--path={tmp_path}/source", f"--out={tmp_path}/set", "--vocab_size=512"
    run("prepare/python.py", *how, "--val_fraction=0.1")
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert meta["arguments"]["fim_rate"] == 0.5
    assert 0.4 < meta["fim"]["rearranged"] / meta["fim"]["pieces"] < 0.6


def test_a_tokenizer_that_cannot_tell_a_gap_is_told(tmp_path, real_files):
    """Without a word of the person's the documents stay as they are; if they asked, it is an error.
    So it is where a model should fill a gap that it cannot read."""
    names = [tokenization.ENDOFTEXT]
    plain = tokenization.train_bpe(real_files[:20], 512, special_tokens=names)
    plain.save(tmp_path / "plain")
    for number, text in enumerate(real_files[:40]):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / f"source/{number}.py").write_text(text)
    how = f"--path={tmp_path}/source", f"--tokenizer={tmp_path}/plain", f"--out={tmp_path}/set"
    done = run("prepare/python.py", *how)
    assert "no tokens for filling in the middle: fim_rate is 0" in done.stderr
    assert json.loads((tmp_path / "set/meta.json").read_text())["arguments"]["fim_rate"] == 0
    done = run("prepare/python.py", *how, "--fim_rate=0.5", ok=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1 and "--fim_rate=0" in done.stderr
    with pytest.raises(ValueError, match="no tokens for filling in the middle"):
        infill.read_gap(plain, "a", "b", 128, 10)


def fill(monkeypatch, capsys, *args):
    """What sample.py prints, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["sample.py", "--device=cpu", *map(str, args)])
    try:
        sample.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


PREFIX, SUFFIX = "def double(x):\n    y = ", "\n    return y\n"


def test_sample_prints_the_file_whole_with_the_gap_filled(trained, tmp_path, monkeypatch, capsys):
    file = tmp_path / "draft.py"
    file.write_text(f"{PREFIX}<CURSOR>{SUFFIX}")
    how = f"--ckpt={trained}", "--max_new_tokens=20", "--seed=3"
    given = f"--prompt={PREFIX}", f"--suffix={SUFFIX}"
    code, written, _ = fill(monkeypatch, capsys, *how, *given)
    assert code == 0 and written.startswith(PREFIX) and written.endswith(SUFFIX + "\n")
    assert fill(monkeypatch, capsys, *how, f"--fim_file={file}")[1] == written
    _, several, _ = fill(monkeypatch, capsys, *how, *given, "--num_samples=3")
    samples = re.split(r"-{30} sample \d\n", several)[1:]
    assert len(samples) == 3
    assert all(one.startswith(PREFIX) and one.endswith(SUFFIX + "\n") for one in samples)
    # However long both sides are, what is next to the gap is read, and the file stays whole.
    file.write_text(f"{PREFIX * 500}<CURSOR>{SUFFIX * 500}")
    _, written, _ = fill(monkeypatch, capsys, *how, f"--fim_file={file}", "--max_new_tokens=5000")
    assert written.startswith(PREFIX * 500) and written.endswith(SUFFIX * 500 + "\n")


@pytest.mark.parametrize(
    "content, part",
    [
        (b"", "has the mark <CURSOR> 0 times"),
        (b"a <CURSOR> b <CURSOR>", "has the mark <CURSOR> 2 times"),
        (b"a\xff<CURSOR>", "utf-8"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_filled_is_one_line(
    trained, tmp_path, monkeypatch, capsys, content, part
):
    if content is not None:
        (tmp_path / "draft.py").write_bytes(content)
    args = f"--ckpt={trained}", f"--fim_file={tmp_path}/draft.py"
    code, out, err = fill(monkeypatch, capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1) and part in err


def test_a_gap_is_read_with_what_is_next_to_it(tok):
    text = "".join(f"line_{n} = {n}\n" for n in range(300))
    for prefix, suffix in ((text, text), ("x = ", text), (text, "\n"), ("", "")):
        gap = infill.read_gap(tok, prefix, suffix, 128, 30)
        middle = gap.ids.index(tok.special["<|fim_middle|>"])
        before = tok.decode(gap.ids[middle + 1 :]) + gap.begun.decode()
        after = tok.decode(gap.ids[3:middle])
        assert prefix.endswith(before) and suffix.startswith(after)
        assert len(gap.ids) == 97 or (before, after) == (prefix, suffix)  # 30 and a healed one
    gap = infill.read_gap(tok, "return sel", "f.x", 128, 30)
    assert gap.begun and all(tok.token_bytes(i).startswith(gap.begun) for i in gap.first_ids)
    with pytest.raises(ValueError, match="too short"):
        infill.read_gap(tok, "a", "b", 16, 10)


@pytest.mark.parametrize(
    "middle, suffix, left",
    [
        ("print", "nt(x)", "pri"),  # the word that the suffix ends was written whole
        ("pri", "nt(x)", "pri"),
        ("2 * x\n    return y\n    z = 1", "\n    return y\n", "2 * x"),
        ("2 * x\n    return yes", "\n    return y\n", "2 * x\n    return yes"),
        ("a)", ")", "a)"),  # too short to tell
        ("anything", "", "anything"),
    ],
)
def test_a_middle_ends_where_the_suffix_would_begin_again(middle, suffix, left):
    assert infill.trim(middle, suffix) == left
    assert "".join(infill.joined(iter(middle), "nt(x)")) == middle.removesuffix("nt")


def test_of_a_perfect_model_every_gap_is_filled_right(trained, dataset, monkeypatch):
    """From the cut to the metric, with what stood in the file in place of what a model writes."""
    tokenizer, real = tokenization.load(trained), {}
    tokens = np.fromfile(dataset / "val.bin", dtype="<u2")

    def draw(*args):
        for place in places.draw(*args):
            real[place.before, place.after] = place.target
            yield place

    def fill(writer, gaps, *rest):
        return [real[gap] for gap in gaps]

    def write(writer, prompts, *rest):
        return [code.Excerpt("wrong", True) for _ in prompts]

    monkeypatch.setattr(infilling, "draw", draw)
    monkeypatch.setattr(infilling, "fill", fill)
    monkeypatch.setattr(infilling, "write", write)
    options = tasks.Options(num_completions=20)
    task = infilling.Infill(tokenizer, tokens, None, "python", options)
    found = task.measure(tasks.Examinee(None, None))
    assert found.pop("infill_line_exact_left") == 0
    assert len(found) == 9 and set(found.values()) == {100}, found


def test_a_model_is_measured_at_gaps_and_on_problems_with_one(trained, dataset, tmp_path):
    model, tokenizer, _ = runs.load(str(trained), "cpu")
    tokens = np.fromfile(dataset / "val.bin", dtype="<u2")
    row = {"prompt": PREFIX, "suffix": SUFFIX, "canonical_solution": "2 * x", "test": "pass"}
    rows = [row | {"task_id": f"{n}", "entry_point": "double"} for n in range(3)]
    (tmp_path / "gaps.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = tasks.Options(num_completions=3, file=(tmp_path / "gaps.jsonl",))
    exam = tasks.Exam("infill,humaneval-infill", tokenizer, tokens, None, options)
    found = exam.measure(model)
    assert 0.5 < found["humaneval-infill_bits_per_byte"] < 10
    assert all(0 <= value <= 100 for value in found.values())
    with pytest.raises(ValueError, match="holds no problem of humaneval$"):
        tasks.Exam("humaneval", tokenizer, None, None, options)


def gap_problems(part="SingleLine"):
    return problems.read_problems(
        "humaneval-infill", list(Path(DATA).glob(f"HumanEval-{part}*")), "python"
    )


def wrong(problem):
    """A line that ends the function, in place of the known one."""
    known = problem.solution
    return known[: len(known) - len(known.lstrip())] + "raise KeyError('wrong')\n"


@pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing())
@pytest.mark.skipif(not DATA, reason="needs HumanEval-SingleLineInfilling.jsonl.gz")
def test_30_known_middles_pass_and_30_wrong_ones_do_not():
    theirs = gap_problems()
    assert len(theirs) == 1033
    theirs = theirs[::35]
    assert all(problems.run_all(theirs, [problem.solution for problem in theirs], "known"))
    assert not any(problems.run_all(theirs, [wrong(problem) for problem in theirs], "wrong"))

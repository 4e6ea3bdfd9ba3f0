"""Fill in the middle, from the documents that teach it to a gap that a model fills."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import sample
import tasks
from parts import configurator, infill
from parts import tokenizer as tokenization
from prepare import corpus
from tasks import problems, sandbox

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

"""Likelihood: how surprising each token of a text is to a model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from model import token_losses
from parts.fast import untouched
from tasks.task import Examinee

# Tokens in a batch, and hidden states that the head turns into logits at a time: as many as a CPU's
# cache holds the activations and the logits of. On a GPU enough to keep it busy, not measured.
BATCH_TOKENS, HEAD_ROWS = {"cpu": 1024}, {"cpu": 512}
GPU_BATCH_TOKENS, GPU_HEAD_ROWS = 16384, 4096


class Window(NamedTuple):
    """Read tokens begin .. end - 2 to score tokens first .. end - 1."""

    begin: int
    first: int
    end: int


class Scores(NamedTuple):
    """Of each token of a sequence; 0 before the first that was scored."""

    nats: np.ndarray  # its surprise, float32
    ranks: np.ndarray  # the number of tokens that the model found likelier, int32


def windows(length: int, context: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Windows that together score each token from `first` on once, each token seeing at least the
    context - stride tokens before it (or all, where there are fewer)."""
    begin = max(0, min(first - 1 - (context - stride), length - 1 - context))
    while first < length:
        end = min(begin + context + 1, length)
        yield Window(begin, first, end)
        first, begin = end, end - 1 - (context - stride)


@torch.inference_mode()
def score(
    examinee: Examinee, sequences: list[Sequence[int]], starts: list[int], stride: int, name: str
) -> list[Scores]:
    """Score each sequence of token ids from its start (1 or later) on.

    stride: tokens from one window to the next. name: of the progress bar."""
    context, device = (
        examinee.network.config.block_size,
        next(examinee.network.parameters()).device.type,
    )
    tokens = BATCH_TOKENS.get(device, GPU_BATCH_TOKENS)
    results = [
        Scores(np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32)) for ids in sequences
    ]
    jobs = [
        (number, window)
        for number, ids in enumerate(sequences)
        for window in windows(len(ids), context, stride, starts[number])
    ]
    jobs.sort(key=lambda job: job[1].begin - job[1].end)  # longest first; the sort is stable
    with tqdm(total=len(jobs), desc=name, unit="window", leave=False, disable=None) as bar:
        while jobs:
            longest = jobs[0][1]
            size = max(tokens // (longest.end - longest.begin), 1)
            batch, jobs = jobs[:size], jobs[size:]
            nats, ranks = score_batch(examinee, sequences, batch)
            done = 0
            for number, (_, first, end) in batch:
                part = slice(done, done + end - first)
                results[number].nats[first:end] = nats[part]
                results[number].ranks[first:end] = ranks[part]
                done = part.stop
            bar.update(len(batch))
    return results


def score_batch(examinee, sequences, batch) -> Scores:
    """Scores of the tokens of a batch of windows (sequence number, window), longest first, one
    window after the other."""
    network = examinee.network
    device = next(network.parameters()).device
    longest = batch[0][1]
    x = np.zeros((len(batch), longest.end - longest.begin - 1), np.int64)  # (B, T)
    for row, (number, (begin, _, end)) in enumerate(batch):
        x[row, : end - begin - 1] = sequences[number][begin : end - 1]  # the rest is never read
    x, head = torch.from_numpy(x).to(device), examinee.model.logits
    if untouched("network"):
        h = network.hidden(x)  # (B, T, C)
    else:  # whatever NeoX.forward makes of it: h is then the logits (B, T, V)
        h, head = examinee.model(x), torch.nn.Identity()
    h = torch.cat(
        [
            h[row, first - begin - 1 : end - begin - 1]
            for row, (_, (begin, first, end)) in enumerate(batch)
        ]
    )  # (N, C)
    y = [np.asarray(sequences[number][first:end], np.int64) for number, (_, first, end) in batch]
    y = torch.from_numpy(np.concatenate(y)).to(device)  # (N)
    rows, nats, ranks = HEAD_ROWS.get(device.type, GPU_HEAD_ROWS), [], []
    for states, targets in zip(h.split(rows), y.split(rows)):
        logits = head(states.float())  # (rows, V)
        nats.append(token_losses(logits, targets))
        ranks.append((logits > logits.gather(1, targets[:, None])).sum(dim=1))
    return Scores(torch.cat(nats).cpu().numpy(), torch.cat(ranks).cpu().numpy())

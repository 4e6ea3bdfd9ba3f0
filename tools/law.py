"""The law of Hoffmann et al. 2022 (https://arxiv.org/abs/2203.15556, eq. 2), and how it is fitted
to a few trainings (approach 3): for tools/ladder.py."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch

HUBER = 1e-3  # beyond this error of log L a point counts less, as in the paper
EXPONENTS = 0.05, 1.5  # the least and the most that alpha and beta may be


class Law(NamedTuple):
    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n, d):
        """Bits per byte of n parameters after d tokens; numbers or arrays."""
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta


def fit(n, d, losses, starts: int = 5) -> tuple[Law, float]:
    """The law with the least Huber loss of log L, and that loss. n, d, losses: one value for each
    training.

    With both exponents given, E, A and B are a linear problem. A grid of exponents is solved that
    way, and L-BFGS goes on from its best places: from one start alone it ends in whatever valley
    that is in. Exponents stay in EXPONENTS, E between 0 and the least loss, A and B above 0."""
    n, d, losses = (np.asarray(values, float) for values in (n, d, losses))
    middle = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())  # sizes near 1 are easier to fit
    n, d = n / middle[0], d / middle[1]
    grid = np.linspace(*EXPONENTS, 18)[1:-1]
    cells = []
    for alpha, beta in itertools.product(grid, grid):
        terms = np.stack([np.ones_like(n), n**-alpha, d**-beta], 1) / losses[:, None]
        error, factors = least_squares(terms)
        cells.append((error, *factors, alpha, beta))
    found = [refine(np.log(n), np.log(d), losses, cell[1:]) for cell in sorted(cells)[:starts]]
    error, (e, a, b, alpha, beta) = min(found)
    scaled = float(a * middle[0] ** alpha), float(b * middle[1] ** beta)
    return Law(e, scaled[0], alpha, scaled[1], beta), error


def least_squares(terms) -> tuple[float, list[float]]:
    """Factors of the columns, none below 0, with which their sum is nearest to 1; the error first.

    There are 3 columns, so every choice of those that are not 0 can be tried."""
    best = math.inf, [0.0] * terms.shape[1]
    for used in itertools.product((True, False), repeat=terms.shape[1]):
        columns = terms[:, used]
        factors = np.linalg.lstsq(columns, np.ones(len(terms)), rcond=None)[0]
        error = float(((columns @ factors - 1) ** 2).sum())
        if (factors >= 0).all() and error < best[0]:
            filled = np.zeros(terms.shape[1])
            filled[list(used)] = factors
            best = error, filled.tolist()
        if all(used) and (factors >= 0).all():
            break
    return best


def refine(log_n, log_d, losses, start) -> tuple[float, tuple[float, ...]]:
    """The Huber loss at the end of L-BFGS, and there E, A, B, alpha, beta. What is bounded is a
    sigmoid of what is searched."""
    log_n, log_d, losses = (torch.from_numpy(values) for values in (log_n, log_d, losses))
    least, (low, high) = losses.min(), EXPONENTS
    e, a, b, alpha, beta = (torch.tensor(float(value), dtype=torch.float64) for value in start)
    share = [(e / least), (alpha - low) / (high - low), (beta - low) / (high - low)]
    x = torch.stack(
        [torch.logit(value.clamp(1e-4, 1 - 1e-4)) for value in share]
        + [value.clamp_min(1e-6).log() for value in (a, b)]
    ).requires_grad_()

    def values():
        e, alpha, beta = torch.sigmoid(x[:3])
        return (
            least * e,
            x[3].exp(),
            x[4].exp(),
            low + (high - low) * alpha,
            low + (high - low) * beta,
        )

    def loss():
        e, a, b, alpha, beta = values()
        predicted = e + a * torch.exp(-alpha * log_n) + b * torch.exp(-beta * log_d)
        return torch.nn.functional.huber_loss(
            predicted.log(), losses.log(), reduction="sum", delta=HUBER
        )

    def closure():
        search.zero_grad()
        value = loss() / HUBER**2  # else it is so small that every gradient looks like none
        value.backward()
        return value

    how = dict(max_iter=250, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-14)
    search = torch.optim.LBFGS([x], line_search_fn="strong_wolfe", **how)
    search.step(closure)
    with torch.no_grad():
        error = loss().item()
    return error if math.isfinite(error) else math.inf, tuple(v.item() for v in values())

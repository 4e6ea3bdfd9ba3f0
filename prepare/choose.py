"""Which documents a data set trains on: a share for each repository, no huge files, tests or not.

This is a choice within the train split alone. The split that is held out stays as it was drawn, so
losses compare whatever is chosen here."""

import re

import numpy as np

TEST = re.compile(r"(^|/)(tests?|testing|conftest\.py)(/|$)|(^|/)tests?_[^/]*$|_tests?\.\w+$")


def is_test(name: str) -> bool:
    """Whether a document is a test, by its name: tests/a.py, test_a.py, a_test.go."""
    return bool(TEST.search(name))


def choose(spool, is_val: np.ndarray, cfg) -> tuple[np.ndarray, dict]:
    """Which documents stay (bool), all of val among them, and what was left out: for each reason
    the documents and their bytes.

    Of a repository that has more than cfg.max_share of the train split's bytes, as many documents
    stay as fit, in a random order."""
    stays, lengths, report = np.ones(len(is_val), bool), spool.lengths.astype(np.int64), {}

    def leave_out(reason: str, which: np.ndarray):
        which = which & stays & ~is_val
        if which.any():
            count, size = int(which.sum()), int(lengths[which].sum())
            report[reason] = {"documents": count, "bytes": size}
            stays[which] = False

    if not cfg.tests:
        leave_out("tests", spool.tests)
    if cfg.max_kb:
        leave_out(f"over {cfg.max_kb:g} KB", lengths > 1000 * cfg.max_kb)
    if cfg.max_share:
        rows = np.flatnonzero(stays & ~is_val)
        rows = rows[np.lexsort((spool.texts[rows], spool.groups[rows]))]  # texts: random numbers
        ends, groups = np.cumsum(lengths[rows]), spool.groups[rows]
        starts = np.searchsorted(groups, groups)  # of each one's group
        within = ends - (ends - lengths[rows])[starts]
        over = np.zeros(len(is_val), bool)
        over[rows[within > cfg.max_share * lengths[rows].sum()]] = True
        leave_out(f"over {cfg.max_share:g} of all text from one repository or package", over)
    return stays, report

"""HumanEval-Infilling's known middles: all of the single lines and of the random spans, and every
tenth of those of several lines."""

import pytest
from test_eval import runs_programs
from test_infill import DATA, gap_problems, wrong

from tasks import problems

PARTS = [("SingleLine", 1, 1033), ("RandomSpan", 1, 164), ("MultiLine", 10, 582)]


@runs_programs
@pytest.mark.skipif(not DATA, reason="needs HumanEval-*Infilling*.jsonl.gz in NANONEOX_DATA")
@pytest.mark.parametrize("part, step, count", PARTS, ids=[part for part, _, _ in PARTS])
def test_known_middles_pass(part, step, count):
    theirs = gap_problems(part)[::step]
    passes = problems.run_all(theirs, [problem.solution for problem in theirs], part)
    assert len(passes) == count
    assert all(passes), [p.id for p, ok in zip(theirs, passes) if not ok]


@runs_programs
@pytest.mark.skipif(not DATA, reason="needs HumanEval-SingleLineInfilling.jsonl.gz")
def test_almost_no_wrong_line_passes():
    """Some lines of HumanEval's solutions are never reached by its tests."""
    theirs = gap_problems()[::5]
    passes = problems.run_all(theirs, [wrong(problem) for problem in theirs], "wrong")
    assert sum(passes) <= 0.05 * len(theirs)

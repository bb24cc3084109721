"""Win, tie, loss, win + tie/2 and the LaTeX row: the original's formulas on numbers small enough to count by hand."""

import math

import numpy as np
import pytest

from sla_jax.evaluation.report.statistics import Draws
from sla_jax.evaluation.report.wins import (
    Comparison,
    Shares,
    credits,
    equity,
    gain,
    latex_row,
    length_bias,
    paper_order,
    score_test,
    shares,
    wins_test,
)

DRAWS = Draws(1000, 0)
# set → scores of all turns, the method's and the baseline's, and whose turns they are
SETS = {
    "mt_bench": ([0.2, 0.1, 0.3, 0.3], [0.1, 0.1, 0.4, 0.3], [0, 0, 1, 1]),
    "arena_hard": ([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 1.0, 5.0], [0, 1, 2, 3]),
    "alpaca_eval": ([1.0, 1.0, 1.0], [0.0, 0.0, 2.0], [0, 1, 2]),
}


def comparison(name: str) -> Comparison:
    mine, base, prompts = (np.array(part) for part in SETS[name])
    return Comparison(name, "sla", credits(mine, base), prompts, mine - base, np.ones(len(mine)))


@pytest.mark.parametrize(
    ("name", "counted", "half"),
    [
        ("mt_bench", Shares(25.0, 50.0, 25.0), 50.0),
        ("arena_hard", Shares(50.0, 25.0, 25.0), 62.5),
        ("alpaca_eval", Shares(200 / 3, 0.0, 100 / 3), 200 / 3),
    ],
)
def test_shares_of_all_turns(name: str, counted: Shares, half: float):
    found = shares(comparison(name).credits)
    assert found == pytest.approx(counted) and found.equity == pytest.approx(half)
    assert equity([comparison(name)], DRAWS).value == pytest.approx(half)


def test_overall_is_the_mean_over_sets():
    found = equity([comparison(name) for name in SETS], DRAWS)
    assert found.value == pytest.approx((50 + 62.5 + 200 / 3) / 3)
    assert found.low < found.value < found.high and found.n == 2 + 4 + 3


def test_the_row_is_the_originals():
    row = latex_row("sla-2-10-2", [shares(comparison(name).credits) for name in SETS])
    numbers = "25.0 & 50.0 & 25.0 & 50.0 & 25.0 & 25.0 & 66.7 & 0.0 & 33.3 & 59.7"
    assert row == "sla-2-10-2" + " " * 60 + numbers


def test_a_tie_is_exact():
    assert credits(np.array([0.1 + 0.2, 0.3]), np.array([0.3, 0.3])).tolist() == [1.0, 0.5]


def test_tests_count_prompts_and_not_turns():
    # mt_bench: the first prompt is won (1.5 of 2), the second one lost
    assert wins_test([comparison("mt_bench")]) == 1.0
    assert wins_test([comparison("arena_hard"), comparison("alpaca_eval")]) == pytest.approx(2 * (1 + 6 + 15) / 2**6)
    # differences +1, 0, +2, -1: their sum is 2 or more away from 0 in 12 of 16 sign patterns
    assert score_test(comparison("arena_hard"), DRAWS) == 12 / 16
    found = gain(comparison("arena_hard"), DRAWS)
    assert found is not None and found.value == 0.5


def test_length():
    won, excess = np.array([1.0, 0.0, 0.5, 1.0]), np.array([10.0, -5.0, 3.0, -2.0])
    found = length_bias(Comparison("any", "sla", won, np.arange(4), None, excess))
    assert found.excess == 1.5 and found.longer_wins == pytest.approx(200 / 3) and found.balanced == 62.5
    assert found.correlation == pytest.approx(float(np.corrcoef(won, excess)[0, 1]))
    by_score = length_bias(Comparison("any", "sla", won, np.arange(4), 2.0 * excess, excess))
    assert by_score.correlation == pytest.approx(1.0)


def test_length_of_answers_that_are_all_longer():
    found = length_bias(comparison("alpaca_eval"))
    assert math.isnan(found.balanced) and found.longer_wins == pytest.approx(200 / 3)


def test_no_comparison_has_no_shares():
    assert all(math.isnan(part) for part in shares(np.array([])))


def test_the_papers_sets_come_first():
    assert paper_order(["hh", "alpaca_eval", "mt_bench"]) == ["mt_bench", "alpaca_eval", "hh"]

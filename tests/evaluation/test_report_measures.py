"""Improvement score, relative compute, AuTRC and calibration by hand; AuTRC is that of eval.py channel."""

import math

import numpy as np
import pytest

from sla_jax.evaluation.report.efficiency import improvement, relative
from sla_jax.evaluation.report.measuring import Pool, accuracies, autrc
from sla_jax.evaluation.report.rewards import Scored, at, calibration_error, pairs
from sla_jax.evaluation.report.statistics import Draws
from sla_jax.scoring.partial import area, mean_of_first

DRAWS = Draws(500, 0)


def test_improvement_score():
    scores = [[3.0, 5.0], [0.0], [7.0]]
    reference = [[1.0, 4.0], [0.0, 2.0], [1.0, 1.0]]
    found = improvement(scores, reference, DRAWS)
    # (5 - 4) / (4 - 1) = 1/3 and (0 - 2) / (2 - 0) = -1; the third has no scale
    assert found.score.value == pytest.approx(100 * (1 + (1 / 3 - 1) / 2))
    assert found.score.n == 2 and found.left_out == 1


def test_best_of_n_scores_100_against_itself():
    reference = [[1.0, 4.0], [0.0, 2.0]]
    assert improvement(reference, reference, DRAWS).score[:3] == (100.0, 100.0, 100.0)


def test_relative_compute():
    assert relative(np.array([2.0, 4.0]), np.array([4.0, 8.0])) == 0.5
    assert relative(np.array([2.0, 4.0]), np.array([4.0, 8.0]), 2.0) == 1.0
    assert math.isnan(relative(np.array([1.0]), np.array([0.0])))


def test_the_area_by_hand():
    # running means [1, 1/2] and [0, 1/2, 1/3]: better until 1/2, equal until 2/3, better to the end
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0, 0.0])) == pytest.approx(1 / 2 + 1 / 12 + 1 / 3)


def test_what_is_seen():
    rewards = np.arange(30, dtype=np.float64)
    assert mean_of_first(rewards, 0.1) == 1.0 and mean_of_first(rewards, 1.0) == 14.5
    assert mean_of_first(rewards[:1], 0.1) == 0.0


def test_only_answers_that_the_judge_tells_apart_make_pairs():
    low, high, same = (np.array([value]) for value in (0.0, 1.0, 2.0))
    found = pairs([Scored(low, 0.0), Scored(high, 1.0), Scored(same, 1.0)])
    assert [(better[0], worse[0]) for better, worse in found] == [(1.0, 0.0), (2.0, 0.0)]


def test_figures_at_a_fraction():
    agrees = [Scored(np.array([1.0, 1.0]), 1.0), Scored(np.array([0.0, 0.0]), 0.0)]
    differs = [Scored(np.array([0.0]), 1.0), Scored(np.array([1.0]), 0.0)]
    found, claimed = at([agrees, differs], 1.0), 1 / (1 + math.exp(-1))
    assert found.accuracy == 0.5 and found.confidence == pytest.approx(claimed)
    assert found.ece == pytest.approx(claimed - 0.5)
    assert found.brier == pytest.approx(((1 - claimed) ** 2 + claimed**2) / 2)
    assert found.correlation == pytest.approx(0.0)
    assert at([agrees, agrees], 0.5).correlation == pytest.approx(1.0)


def test_calibration_error():
    confidence, right = np.array([0.6, 0.6, 0.9, 0.9]), np.array([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(confidence, right) == pytest.approx(0.1)
    assert calibration_error(np.array([1.0, 0.5]), np.array([1.0, 0.5])) == 0.0


def test_no_pairs_no_figures():
    alone = [[Scored(np.array([1.0]), 1.0)]]
    assert math.isnan(at(alone, 1.0).accuracy) and len(autrc(alone).totals) == 0


def test_areas_by_prompt():
    prompt = [Scored(np.array([value]), value) for value in (2.0, 1.0, 0.0)]
    upside_down = [Scored(np.array([-value]), value) for value in (1.0, 0.0)]
    found = autrc([prompt, upside_down, prompt[:1]])
    assert found.totals.tolist() == [3.0, 0.0] and found.counts.tolist() == [3.0, 1.0] and found.mean == 0.75


def test_accuracies_of_pools():
    easy = Pool("1", [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], frozenset({0}))
    hard = Pool("5", [0, 1, 2, 3], [0.4, 0.3, 0.2, 0.1], frozenset({3}))
    by_k = {k: [one.value for one in accuracies([easy, hard], k, DRAWS)] for k in (1, 2, 4)}
    assert by_k[1] == pytest.approx([50.0, 50.0, 50.0, (50 + 25) / 2])
    assert by_k[2] == pytest.approx([50.0, 50.0, 50.0, 100 * (5 / 6 + 1 / 2) / 2])
    # of all four, the first problem's best score is wrong, and so is its larger sum; the counts tie
    assert by_k[4] == pytest.approx([0.0, 0.0, 50.0, 100.0])

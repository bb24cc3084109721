"""Intervals and tests against what a pencil gives."""

import math

import numpy as np
import pytest

from sla_jax.evaluation.report.statistics import (
    Draws,
    Estimate,
    Sample,
    estimate,
    flip_test,
    sample,
    sign_test,
    singles,
)

DRAWS = Draws(4000, 0)


def test_a_prompts_turns_stay_together():
    found = sample(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1]))
    assert found.totals.tolist() == [1.0, 1.0] and found.counts.tolist() == [2.0, 1.0]
    # draws of two prompts: twice the first 1/2, each once 2/3, twice the second 1
    assert estimate([found], DRAWS) == Estimate(2 / 3, 0.5, 1.0, 2)


def test_sets_weigh_the_same_whatever_their_size():
    small, large = singles([1.0, 1.0]), singles([0.0] * 10)
    assert estimate([small, large], DRAWS) == Estimate(0.5, 0.5, 0.5, 12)


def test_the_interval_narrows_like_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    found = estimate([singles(values)], Draws(20_000, 3))
    error = 1.96 * values.std() / math.sqrt(400)
    np.testing.assert_allclose([found.low, found.high], [values.mean() - error, values.mean() + error], atol=0.006)
    assert found == estimate([singles(values)], Draws(20_000, 3))
    assert found != estimate([singles(values)], Draws(20_000, 4))


@pytest.mark.parametrize("sets", [[], [singles([])], [singles([1.0]), singles([])]])
def test_nothing_has_no_estimate(sets: list[Sample]):
    assert all(math.isnan(part) for part in estimate(sets, DRAWS)[:3])


def test_one_prompt_has_no_interval():
    found = estimate([singles([0.25])], DRAWS)
    assert found.value == 0.25 and math.isnan(found.low) and math.isnan(found.high) and found.n == 1


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(5, 0, 2 / 32), (0, 5, 2 / 32), (3, 1, 10 / 16), (2, 2, 1.0), (0, 0, 1.0), (1, 0, 1.0)]
)
def test_the_sign_test(wins: int, losses: int, p: float):
    assert sign_test(wins, losses) == p


@pytest.mark.parametrize(
    ("differences", "p"), [([1, 2, 3], 2 / 8), ([2, 2, -1], 4 / 8), ([1, -1], 1.0), ([0.1] * 6, 2 / 64), ([0.0], 1.0)]
)
def test_the_flip_test_tries_all_signs(differences: list[float], p: float):
    assert flip_test(np.array(differences, np.float64), DRAWS) == p


def test_the_flip_test_draws_signs_where_there_are_too_many():
    assert flip_test(np.ones(40), Draws(999, 0)) == 1 / 1000
    values = np.random.default_rng(0).normal(0.3, 1.0, size=60)
    few, many = flip_test(values, Draws(50_000, 1)), flip_test(values, Draws(50_000, 2))
    z = values.sum() / math.sqrt(np.square(values).sum())
    normal = math.erfc(abs(z) / math.sqrt(2.0))
    assert few == pytest.approx(many, abs=0.01) and few == pytest.approx(normal, abs=0.01)


def test_no_difference_has_no_p():
    assert math.isnan(flip_test(np.array([]), DRAWS))

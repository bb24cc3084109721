"""Correlations against values worked out by hand."""

import math

import numpy as np
import pytest

from sla_jax.evaluation.correlation import pearson, ranks, spearman


def test_ranks_share_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]
    assert ranks(np.array([0.0, 1.0, 0.0, 1.0])).tolist() == [1.5, 3.5, 1.5, 3.5]


def test_correlations_worked_out_by_hand() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 2.0])
    assert pearson(x, y) == pytest.approx(4 / math.sqrt(5 * 38))  # Σxy - 40 = 4, Σxx = 5, Σyy = 38
    assert spearman(x, y) == pytest.approx(1 - 6 * (0 + 1 + 1 + 4) / (4 * 15))
    assert spearman(x, y**3) == spearman(x, y)
    assert pearson(x, -2 * x) == -1.0
    assert math.isnan(pearson(x, np.ones(4))) and math.isnan(pearson(x[:1], y[:1]))


def test_correlations():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 7.0])
    assert pearson(a, b) == pytest.approx(5 / math.sqrt(76 / 3))
    assert spearman(a, np.exp(10 * b)) == pytest.approx(1.0)
    assert ranks(np.array([10.0, 20.0, 20.0, 5.0])).tolist() == [2.0, 3.5, 3.5, 1.0]
    assert math.isnan(pearson(a, np.ones(3))) and math.isnan(pearson(a[:2], b[:2]))

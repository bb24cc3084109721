"""The figures against slow loops, and the definitions that the module's docstring promises."""

import math
from fractions import Fraction

import numpy as np
import pytest

from sla_jax.training import metrics
from sla_jax.training.metrics import PairRewards


def pairs(key: int, n: int = 40) -> list[PairRewards]:
    random = np.random.default_rng(key)
    side = [[random.integers(-2, 3, size=random.integers(1, 12)).astype(np.float32) for _ in range(n)] for _ in "cr"]
    return [PairRewards(c, r) for c, r in zip(*side, strict=True)]


def slow_win(pair: PairRewards, fraction: Fraction) -> float:
    means = []
    for rewards in pair:
        seen = max(1, math.ceil(fraction * len(rewards)))
        means.append(Fraction(int(sum(rewards[:seen])), seen))
    return 1.0 if means[0] > means[1] else 0.5 if means[0] == means[1] else 0.0


def slow_area(pair: PairRewards) -> float:
    """Midpoints of a grid on which both step functions are constant."""
    cells = math.lcm(len(pair.chosen), len(pair.rejected))
    return sum(slow_win(pair, Fraction(2 * i + 1, 2 * cells)) for i in range(cells)) / cells


@pytest.mark.parametrize("key", range(3))
def test_figures_are_the_slow_ones(key: int) -> None:
    data = pairs(key)
    figures = metrics.summarize(data)
    for percent in (25, 50, 100):
        expected = np.mean([slow_win(p, Fraction(percent, 100)) for p in data])
        assert figures[f"accuracy_{percent}"].value == pytest.approx(expected)
    assert figures["accuracy_mean"] == figures["accuracy_100"]
    last = [0.5 * (1 + np.sign(p.chosen[-1] - p.rejected[-1])) for p in data]
    assert figures["accuracy_last"].value == pytest.approx(np.mean(last))
    assert figures["autrc"].value == pytest.approx(np.mean([slow_area(p) for p in data]))
    longer = [slow_win(p, Fraction(1)) for p in data if len(p.chosen) > len(p.rejected)]
    shorter = [slow_win(p, Fraction(1)) for p in data if len(p.chosen) < len(p.rejected)]
    assert figures["accuracy_balanced"].value == pytest.approx((np.mean(longer) + np.mean(shorter)) / 2)
    assert figures["accuracy_balanced"].n == len(longer) + len(shorter)


def test_standard_errors() -> None:
    figures = metrics.summarize(pairs(4))
    p, error, n = figures["accuracy_50"]
    assert error == pytest.approx(math.sqrt(p * (1 - p) / n))
    halves = figures["accuracy_longer_wins"].error, figures["accuracy_shorter_wins"].error
    assert figures["accuracy_balanced"].error == pytest.approx(0.5 * math.sqrt(halves[0] ** 2 + halves[1] ** 2))


def test_a_length_rule_is_balanced_to_one_half_and_a_constant_is_a_tie() -> None:
    data = pairs(5)
    by_length = [PairRewards(*(np.full(len(side), -len(side), np.float32) for side in p)) for p in data]
    assert metrics.summarize(by_length)["accuracy_balanced"].value == 0.5
    constant = [PairRewards(*(np.zeros(len(side), np.float32) for side in p)) for p in data]
    figures = metrics.summarize(constant)
    assert {figures[name].value for name in figures if name.startswith("accuracy") or name == "autrc"} == {0.5}


def test_no_half_no_balanced_figure() -> None:
    equal = [PairRewards(np.ones(3, np.float32), np.zeros(3, np.float32))] * 4
    figures = metrics.summarize(equal)
    assert figures["accuracy_mean"].value == 1.0
    assert metrics.as_json(figures)["accuracy_balanced"] == {"value": None, "standard_error": None, "n": 0}
    assert "n=4" in metrics.table(figures)

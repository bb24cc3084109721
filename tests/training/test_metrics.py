"""The figures against slow loops, and the definitions that the module's docstring promises."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    long, short = (
        [w for w, p in zip(last, data, strict=True) if sign * (len(p.chosen) - len(p.rejected)) > 0] for sign in (1, -1)
    )
    for half, wins in (("longer_wins", long), ("shorter_wins", short)):
        found = figures[f"accuracy_last_{half}"]
        assert found.value == pytest.approx(np.mean(wins)) and found.n == len(wins)
    assert figures["accuracy_last_balanced"].value == pytest.approx((np.mean(long) + np.mean(short)) / 2)
    assert figures["autrc"].value == pytest.approx(np.mean([slow_area(p) for p in data]))
    middle = [[side[math.ceil(len(side) / 2) - 1] for side in p] for p in data]
    assert figures["accuracy_middle"].value == pytest.approx(np.mean([0.5 * (1 + np.sign(c - r)) for c, r in middle]))
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


# ---- length ----


def slow_correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_length_bias_is_the_correlation_of_margin_and_length() -> None:
    data = pairs(6)
    margins = [sum(p.chosen) / len(p.chosen) - sum(p.rejected) / len(p.rejected) for p in data]
    r = slow_correlation([float(m) for m in margins], [len(p.chosen) - len(p.rejected) for p in data])
    figure = metrics.summarize(data)["length_bias"]
    assert figure == pytest.approx((r, math.sqrt((1 - r * r) / 38), 40))
    by_length = [PairRewards(*(np.full(len(side), len(side), np.float32) for side in p)) for p in data]
    assert metrics.length_bias(by_length).value == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0] * 5])
def test_no_correlation_without_variation(values: list[float]) -> None:
    assert math.isnan(metrics.correlation(values, [float(i) for i in range(len(values))]).value)


# ---- log-probabilities ----


def binomial(p: float, n: int) -> tuple[float, float, int]:
    return p, math.sqrt(p * (1 - p) / n), n


logps = st.lists(st.integers(-40, 0), min_size=1, max_size=5)
sides = st.tuples(logps, logps, st.integers(-90, 0), st.integers(-90, 0))


@given(st.lists(sides, min_size=1, max_size=12))
def test_policy_figures_are_the_slow_ones(rows: list[tuple[list[int], list[int], int, int]]) -> None:
    def share(wins: list[tuple[Fraction, Fraction]]) -> float:
        return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in wins) / len(wins) if wins else math.nan

    figures = metrics.policy_figures(
        [(np.array(c, np.float32), np.array(r, np.float32)) for c, r, _, _ in rows],
        np.array([row[2:] for row in rows], np.float32),
    )
    by_sum = [(Fraction(sum(c)), Fraction(sum(r))) for c, r, _, _ in rows]
    by_mean = [(Fraction(sum(c), len(c)), Fraction(sum(r), len(r))) for c, r, _, _ in rows]
    gains = [(Fraction(sum(c) - x), Fraction(sum(r) - y)) for c, r, x, y in rows]
    expected = {"": by_sum, "_mean": by_mean, "_reference": gains}
    for name, values in expected.items():
        assert figures[f"logps_accuracy{name}"] == pytest.approx(binomial(share(values), len(rows)))
    for name, values in (("", by_sum), ("_mean", by_mean)):
        longer = [v for v, (c, r, _, _) in zip(values, rows, strict=True) if len(c) > len(r)]
        shorter = [v for v, (c, r, _, _) in zip(values, rows, strict=True) if len(c) < len(r)]
        half = (share(longer) + share(shorter)) / 2
        assert figures[f"logps_accuracy{name}_balanced"].value == pytest.approx(half, nan_ok=True)
    margins = [a - b for a, b in gains]
    assert figures["logps_margin_reference"].value == pytest.approx(float(sum(margins) / len(rows)))
    assert figures["logps_chosen"].value == pytest.approx(float(sum(a for a, _ in by_mean) / len(rows)))
    assert figures["logps_rejected"].value == pytest.approx(float(sum(b for _, b in by_mean) / len(rows)))


def test_without_a_reference_its_figures_are_absent_and_the_rest_are_printed() -> None:
    figures = metrics.policy_figures([(np.zeros(2, np.float32), np.ones(3, np.float32))])
    assert not [name for name in figures if "reference" in name]
    assert len(metrics.table(figures).splitlines()) == len(figures)


def test_perplexity_is_over_tokens_and_its_error_is_that_of_resampled_answers() -> None:
    random = np.random.default_rng(0)
    answers = [-random.exponential(size=random.integers(1, 30)) for _ in range(200)]
    figures = metrics.text_figures(answers)
    tokens = np.concatenate(answers)
    assert figures["nll"].value == pytest.approx(-tokens.mean()) and figures["nll"].n == len(tokens)
    assert figures["perplexity"].value == pytest.approx(math.exp(-tokens.mean()))
    drawn = [[answers[i] for i in random.integers(0, 200, 200)] for _ in range(400)]
    bootstrap = np.std([-np.concatenate(sample).mean() for sample in drawn])
    assert figures["nll"].error == pytest.approx(bootstrap, rel=0.15)
    assert math.isnan(metrics.text_figures([])["nll"].value)

"""ProcessBench's figures against a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.errors import UserError
from sla_jax.training import metrics, process
from sla_jax.training.process import StepRow

# (score in tenths, label) of each step: tenths make ties and equal neighbours common
answers = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 1)), min_size=1, max_size=5)
splits = st.lists(answers, min_size=1, max_size=10)
Answers = list[list[tuple[int, int]]]


def rows_of(split: Answers) -> list[StepRow]:
    """Scores are k/10 in float32, so that 0.3 is not quite the threshold 0.3 of float64: use thresholds between."""
    return [
        StepRow(np.array([s / 10 for s, _ in answer], np.float32), np.array([label for _, label in answer], np.int8))
        for answer in split
    ]


def slow_figures(split: Answers, threshold: float) -> dict[str, float]:
    """Loops over rows and steps; NaN for a share of nothing."""
    hits: dict[str, list[bool]] = {"accuracy_wrong": [], "accuracy_right": [], "good": [], "bad": []}
    for answer in split:
        label, guess = -1, -1
        for i, (score, good) in reversed(list(enumerate(answer))):
            label = i if not good else label
            guess = i if score / 10 < threshold else guess
            hits["good" if good else "bad"].append((score / 10 >= threshold) == bool(good))
        hits["accuracy_right" if label == -1 else "accuracy_wrong"].append(label == guess)
    hits["all"] = hits["good"] + hits["bad"]
    share = {name: sum(found) / len(found) if found else math.nan for name, found in hits.items()}
    a, b = share["accuracy_wrong"], share["accuracy_right"]
    return {
        "f1": 0.0 if a + b == 0 else 2 * a * b / (a + b),
        "accuracy_wrong": a,
        "accuracy_right": b,
        "step_accuracy": share["all"],
        "step_accuracy_good": share["good"],
        "step_accuracy_bad": share["bad"],
    }


@given(splits, st.integers(0, 10))
def test_figures_are_the_slow_ones(split: Answers, tenth: int) -> None:
    threshold = tenth / 10 + 0.05
    figures = process.process_figures(rows_of(split), threshold)
    expected = slow_figures(split, threshold)
    assert {name: figure.value for name, figure in figures.items()} == pytest.approx(expected, nan_ok=True)
    assert figures["f1"].n == len(split) and figures["step_accuracy"].n == sum(map(len, split))
    assert len(metrics.table(figures).splitlines()) == len(figures)


@given(splits)
def test_the_best_threshold_is_best(split: Answers) -> None:
    right = [answer for answer in split if all(label for _, label in answer)]
    if not right or len(right) == len(split):
        with pytest.raises(UserError, match=f"these are {len(split) - len(right)} and {len(right)}"):
            process.best_threshold(rows_of(split))
        return
    best = process.best_threshold(rows_of(split))
    assert 0 < best < 1
    found = slow_figures(split, best)["f1"]
    # between any two neighbouring tenths nothing changes
    assert found == pytest.approx(max(slow_figures(split, tenth / 10 + 0.05)["f1"] for tenth in range(10)))


def test_what_follows_the_first_bad_step_never_matters() -> None:
    scores = np.array([0.9, 0.2, 0.1, 0.8])
    figures = [
        process.process_figures([StepRow(scores * change, process.labels_until(1, 4))], 0.5)
        for change in (np.ones(4), np.array([1, 1, 9, 0]))
    ]
    assert {f["accuracy_wrong"].value for f in figures} == {1.0}
    assert [f["step_accuracy"].n for f in figures] == [2, 2]


def test_labels_of_process_bench() -> None:
    assert process.labels_until(-1, 3).tolist() == [1, 1, 1]
    assert process.labels_until(0, 3).tolist() == [0, -1, -1]
    assert [process.first_bad(process.labels_until(k, 3)) for k in (-1, 0, 1, 2)] == [-1, 0, 1, 2]
    for outside in (-2, 3):
        with pytest.raises(UserError, match=f"first bad step is {outside}, but the answer has 3 steps: give 0 to 2"):
            process.labels_until(outside, 3)


def test_good_probability_of_rewards_and_of_classes() -> None:
    rewards = np.array([-800.0, -1.0, 0.0, 2.0, 800.0], np.float32)
    expected = [0.0, 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2)), 1.0]
    np.testing.assert_allclose(process.good_probability(rewards), expected, atol=1e-12)
    classes = np.stack([np.full(5, 3.0), 3.0 + rewards], axis=1)
    np.testing.assert_allclose(process.good_probability(classes), expected, atol=1e-12)


def test_the_error_of_f1_is_that_of_resampled_rows() -> None:
    random = np.random.default_rng(1)
    wins = [random.random(300) < 0.7, random.random(200) < 0.4]
    figure = process.harmonic(*(metrics.accuracy([float(w) for w in side]) for side in wins))
    drawn = [[random.choice(side, len(side)).mean() for side in wins] for _ in range(2000)]
    assert figure.error == pytest.approx(np.std([2 * a * b / (a + b) for a, b in drawn]), rel=0.1)

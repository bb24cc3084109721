"""How well step scores find mistakes: ProcessBench's figures, and plain step accuracy. Numpy on the host.

A row is an answer in steps, with P(good) of each. A step is *called bad* when its score is below the threshold; the
prediction for a row is its first such step, or −1 for none. As in ProcessBench (arXiv 2412.06559): on answers with a
mistake the prediction must be the first bad step, on right answers it must be −1, and **F1** is the harmonic mean of
these two accuracies (0 when both are). What comes behind the first bad step never matters to it.

Standard errors: binomial for accuracies (over rows, or over steps as if they were independent), and for F1 those of the
two accuracies carried through its derivatives.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.errors import UserError
from sla_jax.training.metrics import Figure, accuracy

NONE = -1  # no bad step


class StepRow(NamedTuple):
    """One answer: P(good) of each step, float [S], and its labels, int [S]: 1 good, 0 bad, −1 not known."""

    scores: np.ndarray
    labels: np.ndarray


def good_probability(values: np.ndarray) -> np.ndarray:
    """P(good) in float64 of rewards [S] (σ) or of two-class logits (bad, good) [S, 2] (softmax)."""
    logits = values.astype(np.float64)
    if logits.ndim == 2:
        logits = logits[:, 1] - logits[:, 0]
    return np.exp(-np.logaddexp(0.0, -logits))


def labels_until(first: int, steps: int) -> np.ndarray:
    """ProcessBench's label (the first bad step's index, −1 if all are good) as labels of the steps, int8 [S]."""
    if not NONE <= first < steps:
        raise UserError(
            f"the first bad step is {first}, but the answer has {steps} steps: give 0 to {steps - 1}, or -1."
        )
    labels = np.ones(steps, np.int8)
    if first != NONE:
        labels[first], labels[first + 1 :] = 0, -1
    return labels


def first_bad(labels: np.ndarray) -> int:
    """Index of the first step labelled bad, −1 for none."""
    return _first(labels == 0)


def predicted(scores: np.ndarray, threshold: float) -> int:
    """Index of the first step whose score is below the threshold, −1 for none."""
    return _first(scores.astype(np.float64) < threshold)


def _first(steps: np.ndarray) -> int:
    return int(np.argmax(steps)) if np.any(steps) else NONE


def harmonic(a: Figure, b: Figure) -> Figure:
    """F1 of two accuracies; NaN when either has no rows, 0 when both are 0 (then without an error)."""
    total = a.value + b.value
    if total == 0:
        return Figure(0.0, math.nan, a.n + b.n)
    slopes = 2.0 * (b.value / total) ** 2, 2.0 * (a.value / total) ** 2
    return Figure(2.0 * a.value * b.value / total, math.hypot(slopes[0] * a.error, slopes[1] * b.error), a.n + b.n)


def process_figures(rows: Sequence[StepRow], threshold: float) -> dict[str, Figure]:
    """All figures at one threshold, in the order in which they are printed (metrics.table)."""
    found = [(first_bad(row.labels), predicted(row.scores, threshold)) for row in rows]
    wrong = accuracy([float(label == guess) for label, guess in found if label != NONE])
    right = accuracy([float(label == guess) for label, guess in found if label == NONE])
    steps = {label: _step_wins(rows, threshold, label) for label in (1, 0)}
    return {
        "f1": harmonic(wrong, right),
        "accuracy_wrong": wrong,
        "accuracy_right": right,
        "step_accuracy": accuracy(steps[1] + steps[0]),
        "step_accuracy_good": accuracy(steps[1]),
        "step_accuracy_bad": accuracy(steps[0]),
    }


def _step_wins(rows: Sequence[StepRow], threshold: float, label: int) -> list[float]:
    """1 for each step of this label that is called what it is, else 0."""
    scores = np.concatenate([row.scores[row.labels == label] for row in rows]) if rows else np.zeros(0)
    return ((scores.astype(np.float64) >= threshold) == bool(label)).astype(np.float64).tolist()


def best_threshold(rows: Sequence[StepRow]) -> float:
    """The threshold in (0, 1) with the highest F1, midway between two scores; the lowest of several. Choose it on one
    split and report figures on another.

    A row is judged rightly for thresholds in (low, high], where low is its first bad step's score (0 if it has none)
    and high the least score before that step; so F1 is constant between neighbouring scores.
    """
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for row in rows:
        first = first_bad(row.labels)
        before = row.scores if first == NONE else row.scores[:first]
        low, high = 0.0 if first == NONE else float(row.scores[first]), float(np.min(before, initial=1.0))
        spans[first == NONE].append((low, max(low, high)))
    if not spans[True] or not spans[False]:
        raise UserError(
            f"a threshold needs answers with a mistake and answers without; these are {len(spans[False])} and "
            f"{len(spans[True])}."
        )
    edges = np.unique([0.0, 1.0, *(edge for both in spans.values() for span in both for edge in span)])
    middles = (edges[:-1] + edges[1:]) / 2
    right, wrong = (_share_inside(middles, np.array(spans[side])) for side in (True, False))
    f1 = 2 * right * wrong / np.maximum(right + wrong, np.finfo(np.float64).tiny)
    return float(middles[np.argmax(f1)])


def _share_inside(points: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """The share of spans (low, high] [n, 2] that hold each point [m] → [m]."""
    opened = np.searchsorted(np.sort(spans[:, 0]), points, side="left")
    closed = np.searchsorted(np.sort(spans[:, 1]), points, side="left")
    return (opened - closed) / len(spans)

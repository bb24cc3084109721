"""What token rewards say about the answer to come: AuTRC and calibration by position, against a judge.

Two answers to one prompt make a pair; the judge says which is better (exact ties make no pair). A search sees text that
is not finished, so each figure is a function of f, the fraction of both answers' tokens seen. The reward of the first
f is the mean over the first ⌈f·T⌉ tokens (at least one), each answer with its own T: what SLA ranks by.

- **accuracy at f**: share of pairs in which the better answer has the higher reward (a tie counts 1/2).
- **AuTRC**: the area under accuracy at f over f in (0, 1], exact, as in `eval.py channel`. The definition is ours.
- **calibration**: a Bradley-Terry reward claims P(a better than b) = σ(r_a − r_b). *Confidence* is max(p, 1 − p),
  *ECE* the mean over pairs of |confidence − accuracy| within ten equal bins of confidence, *Brier* the mean of
  (p of the better answer − 1)².
- **correlation**: Spearman's, of rewards at f with the judge's scores, over all answers, each less its prompt's mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.evaluation.correlation import spearman
from sla_jax.scoring.partial import mean_of_first

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
BINS = 10


class Scored(NamedTuple):
    """One answer's token rewards [T], T ≥ 1, and the judge's score."""

    rewards: np.ndarray
    score: float


class Position(NamedTuple):
    """Figures at one fraction."""

    fraction: float
    accuracy: float
    confidence: float
    ece: float
    brier: float
    correlation: float


def pairs(prompt: Sequence[Scored]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(the better answer's rewards, the worse one's) of all pairs of a prompt's answers that the judge tells apart."""
    ordered = sorted(prompt, key=lambda one: -one.score)
    return [
        (better.rewards, worse.rewards)
        for i, better in enumerate(ordered)
        for worse in ordered[i + 1 :]
        if better.score > worse.score
    ]


def at(prompts: Sequence[Sequence[Scored]], fraction: float) -> Position:
    """The figures at one fraction; NaN where no two answers to a prompt are told apart."""
    told_apart = [pair for prompt in prompts for pair in pairs(prompt)]
    found = [tuple(mean_of_first(rewards, fraction) for rewards in pair) for pair in told_apart]
    if not found:
        return Position(fraction, *[float("nan")] * 5)
    margins = np.array([better - worse for better, worse in found])
    right = 0.5 * (1.0 + np.sign(margins))
    probability = 1.0 / (1.0 + np.exp(-np.clip(margins, -700.0, 700.0)))
    confidence = np.maximum(probability, 1.0 - probability)
    return Position(
        fraction,
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=calibration_error(confidence, right),
        brier=float(np.mean(np.square(1.0 - probability))),
        correlation=_correlation(prompts, fraction),
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Σ over bins of confidence (ten equal ones of [1/2, 1]) of its share of pairs × |confidence − accuracy| in it."""
    bins = np.minimum((2 * BINS * (confidence - 0.5)).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _correlation(prompts: Sequence[Sequence[Scored]], fraction: float) -> float:
    means, scores = [], []
    for prompt in prompts:
        if len(prompt) > 1:
            mine = np.array([mean_of_first(one.rewards, fraction) for one in prompt])
            theirs = np.array([one.score for one in prompt])
            means.append(mine - mine.mean())
            scores.append(theirs - theirs.mean())
    return spearman(np.concatenate(means), np.concatenate(scores)) if means else float("nan")

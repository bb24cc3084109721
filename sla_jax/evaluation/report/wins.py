"""Win, tie, loss and win + tie/2 against a baseline: the paper's table, by the formulas of its `show_result.py`.

A comparison is one turn of one prompt: both methods' scores under the same judge. **A tie is exact**: the two floats
are equal, as they are when both answers are the same text. Nothing is rounded first and there is no margin within which
scores count as equal. The figures of a set are percentages of all its comparisons, so MT-Bench's 80 questions of two
turns are 160. *Overall* is the mean over the sets of win + tie/2, each set with the same weight.

The length of an answer is its number of characters, which no tokenizer changes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sla_jax import escape
from sla_jax.evaluation.correlation import pearson
from sla_jax.evaluation.report.statistics import (
    Draws,
    Estimate,
    Sample,
    estimate,
    flip_test,
    sample,
    sign_test,
)

PAPER = ("mt_bench", "arena_hard", "alpaca_eval")  # its sets, in its order


class Comparison(NamedTuple):
    """One method against the baseline on one set under one judge; one entry a turn, [M]."""

    benchmark: str
    method: str
    credits: np.ndarray  # 1 win, 1/2 tie, 0 loss
    prompts: np.ndarray  # whose turn it is, from 0 on
    differences: np.ndarray | None  # of scores; a judge of pairs gives none
    excess: np.ndarray  # characters more than the baseline's answer

    @property
    def sample(self) -> Sample:
        """Credits by prompt."""
        return sample(self.credits, self.prompts)


class Shares(NamedTuple):
    """Percentages of comparisons."""

    win: float
    tie: float
    loss: float

    @property
    def equity(self) -> float:
        """What the original calls win + tie/2."""
        return self.win + self.tie / 2


class LengthBias(NamedTuple):
    """How much of a comparison is length. NaN where there is nothing to compute it from."""

    excess: float  # mean characters more than the baseline
    longer_wins: float  # % of the comparisons without ties, of unequal length, that the longer answer wins
    correlation: float  # Pearson's, of the difference of scores (or the credit) with the difference in characters
    balanced: float  # mean of win + tie/2 where the method's answer is longer and where it is shorter, %


def credits(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """1 where the score is higher, 1/2 where it is exactly the same, 0 where it is lower, [M]."""
    return (scores > baseline) + 0.5 * (scores == baseline)


def shares(credit: np.ndarray) -> Shares:
    """Win, tie and loss in percent; NaN without comparisons."""
    if len(credit) == 0:
        return Shares(np.nan, np.nan, np.nan)
    return Shares(*(100.0 * float(np.mean(credit == value)) for value in (1.0, 0.5, 0.0)))


def equity(comparisons: Sequence[Comparison], draws: Draws) -> Estimate:
    """The mean over sets of win + tie/2 in percent, with its interval."""
    return estimate([one.sample for one in comparisons], draws).times(100.0)


def wins_test(comparisons: Sequence[Comparison]) -> float:
    """The sign test over prompts: a prompt is won when its turns' credits add up to more than half of them."""
    balance = np.concatenate([one.sample.totals - 0.5 * one.sample.counts for one in comparisons])
    return sign_test(int(np.sum(balance > 0)), int(np.sum(balance < 0)))


def score_test(comparison: Comparison, draws: Draws) -> float:
    """The flip test of the mean difference of scores, prompt by prompt; NaN for a judge of pairs."""
    if comparison.differences is None:
        return float("nan")
    by_prompt = sample(comparison.differences, comparison.prompts)
    return flip_test(by_prompt.totals / by_prompt.counts, draws)


def gain(comparison: Comparison, draws: Draws) -> Estimate | None:
    """Mean difference of scores, method − baseline; None for a judge of pairs."""
    if comparison.differences is None:
        return None
    return estimate([sample(comparison.differences, comparison.prompts)], draws)


def length_bias(comparison: Comparison) -> LengthBias:
    """What length explains of the comparison."""
    credit, excess = comparison.credits, comparison.excess
    decided = (credit != 0.5) & (excess != 0)
    agree = (credit > 0.5) == (excess > 0)
    halves = [credit[excess > 0], credit[excess < 0]]
    against = credit if comparison.differences is None else comparison.differences
    return LengthBias(
        excess=float(np.mean(excess)) if len(excess) else np.nan,
        longer_wins=100.0 * float(np.mean(agree[decided])) if decided.any() else np.nan,
        correlation=pearson(against, excess),
        balanced=50.0 * float(sum(half.mean() for half in halves)) if all(map(len, halves)) else np.nan,
    )


def paper_order(benchmarks: Sequence[str]) -> list[str]:
    """The paper's sets in its order, then the others by name."""
    known = [name for name in PAPER if name in benchmarks]
    return [*known, *sorted(set(benchmarks) - set(known))]


def latex_row(method: str, sets: Sequence[Shares]) -> str:
    """The method padded to 70 places, `win & tie & loss & ` of each set, and the overall figure: the original's row.

    Its mean over three sets is the mean over as many as there are.
    """
    cells = "".join(f"{one.win:.1f} & {one.tie:.1f} & {one.loss:.1f} & " for one in sets)
    return f"{escape.latex(method):<70}{cells}{sum(one.equity for one in sets) / len(sets):.1f}"

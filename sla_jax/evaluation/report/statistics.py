"""Estimates with their intervals, and paired tests. Plain numpy; the sample is always the prompt.

- **interval**: the percentile bootstrap. Prompts are drawn with replacement, within each set, all turns of a prompt
  together; the interval is what holds the middle 95 % of the statistic over the draws. A set of one prompt has none.
- **sign test**: exact and two-sided; of the comparisons that are no ties, are as many won as lost?
- **flip test**: the paired permutation test of the mean difference, two-sided. Under the null hypothesis a prompt's
  difference could as well have had the other sign. Up to `EXACT` prompts all sign patterns are tried; beyond, as many
  random ones as asked for, and p = (1 + as extreme ones) / (1 + tried), which is never 0.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
EXACT = 16
BLOCK = 1 << 22  # numbers drawn at once


class Estimate(NamedTuple):
    """A figure, its interval, and the number of prompts behind it; NaN where there is none."""

    value: float
    low: float
    high: float
    n: int

    def times(self, factor: float) -> "Estimate":
        """The same in another unit (a positive factor)."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n)


class Draws(NamedTuple):
    """How often what is random is drawn, and from which seed."""

    resamples: int
    seed: int


class Sample(NamedTuple):
    """One set's prompts: what their parts (turns) add up to, and how many parts they have. float64 [N] each."""

    totals: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """Over all parts, so that a prompt with two turns counts twice; NaN without any."""
        return float(self.totals.sum() / self.counts.sum()) if len(self.totals) else math.nan


def sample(values: np.ndarray, prompts: np.ndarray) -> Sample:
    """Parts' values [M] and whose they are [M] (numbers from 0 on, every one of them) → one entry a prompt."""
    values = np.asarray(values, np.float64)
    return Sample(np.bincount(prompts, weights=values), np.bincount(prompts).astype(np.float64))


def singles(values: Sequence[float] | np.ndarray) -> Sample:
    """Prompts with one part each."""
    totals = np.asarray(values, np.float64)
    return Sample(totals, np.ones_like(totals))


def estimate(sets: Sequence[Sample], draws: Draws) -> Estimate:
    """The mean over sets of each set's mean, with its bootstrap interval. An empty set makes it NaN."""
    n = sum(len(one.totals) for one in sets)
    if not sets or min(len(one.totals) for one in sets) == 0:
        return Estimate(math.nan, math.nan, math.nan, n)
    value = float(np.mean([one.mean for one in sets]))
    if max(len(one.totals) for one in sets) == 1 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(draws.seed)
    means = np.mean([_redrawn(one, draws.resamples, rng) for one in sets], axis=0)
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return Estimate(value, float(low), float(high), n)


def _redrawn(one: Sample, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The set's mean under each resampling of its prompts, [resamples]."""
    n = len(one.totals)
    block = max(1, BLOCK // n)
    means = []
    for begin in range(0, resamples, block):
        chosen = rng.integers(n, size=(min(block, resamples - begin), n))
        means.append(one.totals[chosen].sum(axis=1) / one.counts[chosen].sum(axis=1))
    return np.concatenate(means)


def sign_test(wins: int, losses: int) -> float:
    """P(a split as uneven as this or more) if each of the wins + losses comparisons were a fair coin; 1 without any."""
    n, less = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, i) for i in range(less + 1))
    return min(1.0, 2 * tail / 2**n)


def flip_test(differences: np.ndarray, draws: Draws) -> float:
    """p of the mean of paired differences, [N]; NaN without any."""
    values = np.asarray(differences, np.float64)
    n = len(values)
    if n == 0:
        return math.nan
    # what is as extreme but for rounding counts as as extreme
    bar = abs(float(values.sum())) - 1e-9 * float(np.abs(values).sum())
    if n <= EXACT:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        sums = (1.0 - 2.0 * patterns) @ values
        return float(np.mean(np.abs(sums) >= bar))
    rng = np.random.default_rng(draws.seed)
    block, extreme = max(1, BLOCK // n), 0
    for begin in range(0, draws.resamples, block):
        signs = 1.0 - 2.0 * rng.integers(2, size=(min(block, draws.resamples - begin), n))
        extreme += int(np.sum(np.abs(signs @ values) >= bar))
    return (1 + extreme) / (1 + draws.resamples)

"""How well token rewards rank pairs, with standard errors. Plain numpy on the host; one array of rewards a response.

Definitions (a tie counts 1/2 everywhere):
- **accuracy at f %**: the pair is right when the mean reward over the first ⌈f·T⌉ tokens of the chosen response (at
  least one) is above that of the rejected one, each with its own T. 100 % is the mean over the whole response.
- **accuracy at the last token**: compares the rewards after the last token.
- **length-balanced**: the mean of the accuracies (of the mean reward) on the pairs whose chosen response has more
  tokens and on those whose rejected one has. A rule that looks at length alone gets 1/2. Pairs of equal length belong
  to neither half and are left out of this figure only. No figure when either half is empty.
- **AuTRC**: the area under "accuracy at f" for f in (0, 1], integrated exactly: per pair it is the measure of the f at
  which the pair is right (⌈f·T⌉ makes it a step function), averaged over pairs. The definition is ours.
- standard errors: binomial √(p(1−p)/n) for accuracies (an upper bound when there are ties), ½·√(se₁²+se₂²) for the
  balanced one, and the sample standard deviation over √n for AuTRC and the rewards.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FRACTIONS = (0.25, 0.5, 1.0)


class Figure(NamedTuple):
    """A figure, its standard error and the number of pairs behind it."""

    value: float
    error: float
    n: int


class PairRewards(NamedTuple):
    """Token rewards of one pair: float32 [T+] and [T−], both non-empty."""

    chosen: np.ndarray
    rejected: np.ndarray


def running_mean(rewards: np.ndarray) -> np.ndarray:
    """Mean of the first t+1 rewards at every t, in float64, [T] → [T]."""
    return np.cumsum(rewards, dtype=np.float64) / np.arange(1, len(rewards) + 1)


def tokens_seen(fraction: float, length: int) -> int:
    """⌈fraction · length⌉, at least 1; exact for the fractions of `FRACTIONS`."""
    return max(1, math.ceil(fraction * length))


def win(chosen: float, rejected: float) -> float:
    """1 when the chosen one is higher, 0 when lower, 1/2 on a tie."""
    return 0.5 * (1.0 + float(np.sign(chosen - rejected)))


def accuracy(wins: Sequence[float]) -> Figure:
    """Mean of wins with its binomial standard error; NaN when there are none."""
    n = len(wins)
    if n == 0:
        return Figure(math.nan, math.nan, 0)
    p = float(np.mean(wins))
    return Figure(p, math.sqrt(p * (1.0 - p) / n), n)


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean with the standard error of the mean; NaN when there are none."""
    n = len(values)
    if n == 0:
        return Figure(math.nan, math.nan, 0)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Figure(float(np.mean(values)), error, n)


def prefix_win(pair: PairRewards, fraction: float) -> float:
    """The pair's win by mean reward over the first `fraction` of each response."""
    means = [running_mean(r)[tokens_seen(fraction, len(r)) - 1] for r in pair]
    return win(float(means[0]), float(means[1]))


def area(pair: PairRewards) -> float:
    """∫ over f in (0, 1] of the win of the means over the first ⌈f·T⌉ tokens: exact, both sides are step functions."""
    lengths = [len(r) for r in pair]
    # steps end at f = j/T; integers j·T' / (T·T') keep the breakpoints of the two sides exactly comparable
    scale = lengths[0] * lengths[1]
    ends = np.union1d(np.arange(1, lengths[0] + 1) * lengths[1], np.arange(1, lengths[1] + 1) * lengths[0])
    widths = np.diff(ends, prepend=0) / scale
    index = [-(-ends // (scale // length)) - 1 for length in lengths]  # ⌈f·T⌉ − 1
    chosen, rejected = running_mean(pair.chosen)[index[0]], running_mean(pair.rejected)[index[1]]
    return float(np.sum(widths * 0.5 * (1.0 + np.sign(chosen - rejected))))


def balanced(longer: Figure, shorter: Figure) -> Figure:
    """The mean of the accuracies on longer-wins and shorter-wins pairs (NaN when either half is empty)."""
    error = 0.5 * math.hypot(longer.error, shorter.error)
    return Figure(0.5 * (longer.value + shorter.value), error, longer.n + shorter.n)


def summarize(pairs: Sequence[PairRewards]) -> dict[str, Figure]:
    """All figures of a set of pairs, in the order in which they are printed."""
    wins = [prefix_win(pair, 1.0) for pair in pairs]
    excess = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    longer = accuracy([w for w, e in zip(wins, excess, strict=True) if e > 0])
    shorter = accuracy([w for w, e in zip(wins, excess, strict=True) if e < 0])
    figures = {f"accuracy_{round(100 * f)}": accuracy([prefix_win(pair, f) for pair in pairs]) for f in FRACTIONS}
    figures["accuracy_mean"] = accuracy(wins)
    figures["accuracy_last"] = accuracy([win(float(pair.chosen[-1]), float(pair.rejected[-1])) for pair in pairs])
    figures["accuracy_longer_wins"] = longer
    figures["accuracy_shorter_wins"] = shorter
    figures["accuracy_balanced"] = balanced(longer, shorter)
    figures["autrc"] = mean_figure([area(pair) for pair in pairs])
    chosen, rejected = ([float(np.mean(pair[side])) for pair in pairs] for side in (0, 1))
    figures["reward_chosen"] = mean_figure(chosen)
    figures["reward_rejected"] = mean_figure(rejected)
    figures["margin"] = mean_figure([a - b for a, b in zip(chosen, rejected, strict=True)])
    return figures


DESCRIPTIONS = {
    "accuracy_25": "pair accuracy, mean reward of the first 25 % of tokens",
    "accuracy_50": "pair accuracy, mean reward of the first 50 % of tokens",
    "accuracy_100": "pair accuracy, mean reward of 100 % of tokens",
    "accuracy_mean": "pair accuracy, sequence mean (the same as at 100 %)",
    "accuracy_last": "pair accuracy, reward at the last token",
    "accuracy_longer_wins": "  … on pairs whose chosen response is longer",
    "accuracy_shorter_wins": "  … on pairs whose chosen response is shorter",
    "accuracy_balanced": "length-balanced pair accuracy (mean of the two above)",
    "autrc": "AuTRC: area under pair accuracy over the fraction of tokens seen",
    "reward_chosen": "mean reward of chosen responses",
    "reward_rejected": "mean reward of rejected responses",
    "margin": "mean margin, chosen − rejected",
}


def table(figures: dict[str, Figure]) -> str:
    """The figures as aligned text: name, value ± standard error, n."""
    rows = []
    for name, figure in figures.items():
        rows.append(f"{DESCRIPTIONS[name]:<66} {figure.value:8.4f} ± {figure.error:.4f}   n={figure.n}")
    return "\n".join(rows)


def as_json(figures: dict[str, Figure]) -> dict[str, dict[str, float | int | None]]:
    """The figures for JSON; a figure that does not exist is null."""
    return {
        name: {
            "value": None if math.isnan(f.value) else f.value,
            "standard_error": None if math.isnan(f.error) else f.error,
            "n": f.n,
        }
        for name, f in figures.items()
    }

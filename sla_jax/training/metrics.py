"""How well rewards and log-probabilities rank pairs, with standard errors. Plain numpy; one array a response.

Definitions (a tie counts 1/2 everywhere):
- **accuracy at f %**: the pair is right when the mean reward over the first ⌈f·T⌉ tokens of the chosen response (at
  least one) is above that of the rejected one, each with its own T. 100 % is the mean over the whole response.
- **accuracy at the last token**: compares the rewards after the last token; **at the middle one**: after the ⌈T/2⌉-th
  (what TCRM reports for partial text: no mean over tokens).
- **length-balanced**: the mean of the accuracies (of the mean reward; of the reward at the last token) on the pairs
  whose chosen response has more tokens and on those whose rejected one has. A rule that looks at length alone gets 1/2.
  Pairs of equal length belong to neither half and are left out of this figure only. No figure when either half is
  empty.
- **AuTRC**: the area under "accuracy at f" for f in (0, 1], integrated exactly: per pair it is the measure of the f at
  which the pair is right (⌈f·T⌉ makes it a step function), averaged over pairs. The definition is ours.
- **length bias**: Pearson's correlation over pairs of the margin (of mean rewards) with T+ − T−: 0 when length explains
  nothing, 1 when the reward is length. What it should be depends on the pairs: compare it with the correlation of a
  margin of +1 a pair (do longer answers win?), which `accuracy_longer_wins` and `…shorter…` show too.
- **log-probability accuracy**: the policy gives the chosen response more log p, summed over tokens (DPO's sense) or a
  token (SimPO's); against a reference: has more of it than the reference, in its sum (DPO's implicit reward).
- **perplexity**: exp of the mean −log p over all tokens of all answers (not the mean of the answers' perplexities).
- standard errors: binomial √(p(1−p)/n) for accuracies (an upper bound when there are ties), ½·√(se₁²+se₂²) for the
  balanced one, √((1−r²)/(n−2)) for a correlation, for means over tokens that of a ratio (answers are the sample), and
  the sample standard deviation over √n for AuTRC, the rewards and the margins.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.scoring.partial import area, mean_of_first, tokens_seen

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
    return win(*(mean_of_first(rewards, fraction) for rewards in pair))


def token_win(pair: PairRewards, fraction: float) -> float:
    """The pair's win by the reward of the one token at `fraction` of each response."""
    at = [float(r[tokens_seen(fraction, len(r)) - 1]) for r in pair]
    return win(at[0], at[1])


def balanced(longer: Figure, shorter: Figure) -> Figure:
    """The mean of the accuracies on longer-wins and shorter-wins pairs (NaN when either half is empty)."""
    error = 0.5 * math.hypot(longer.error, shorter.error)
    return Figure(0.5 * (longer.value + shorter.value), error, longer.n + shorter.n)


def correlation(a: Sequence[float], b: Sequence[float]) -> Figure:
    """Pearson's r; NaN for fewer than three points or when either side does not vary."""
    n = len(a)
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Figure(math.nan, math.nan, n)
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
    return Figure(r, math.sqrt((1.0 - r * r) / (n - 2)), n)


def length_bias(pairs: Sequence[PairRewards]) -> Figure:
    """Correlation of the margin of mean rewards with the difference of lengths in tokens."""
    margins = [
        float(np.mean(pair.chosen, dtype=np.float64) - np.mean(pair.rejected, dtype=np.float64)) for pair in pairs
    ]
    return correlation(margins, [float(len(pair.chosen) - len(pair.rejected)) for pair in pairs])


def halves(wins: Sequence[float], pairs: Sequence[Sequence[np.ndarray]]) -> tuple[Figure, Figure]:
    """Accuracies on the pairs whose chosen response is the longer one, and the shorter one."""
    excess = [len(chosen) - len(rejected) for chosen, rejected in pairs]
    longer = [w for w, e in zip(wins, excess, strict=True) if e > 0]
    shorter = [w for w, e in zip(wins, excess, strict=True) if e < 0]
    return accuracy(longer), accuracy(shorter)


def by_length(name: str, wins: Sequence[float], pairs: Sequence[Sequence[np.ndarray]]) -> dict[str, Figure]:
    """The accuracies of `halves` and their balanced mean, called after the accuracy that they divide."""
    longer, shorter = halves(wins, pairs)
    split = {"longer_wins": longer, "shorter_wins": shorter, "balanced": balanced(longer, shorter)}
    return {f"{name}_{part}": figure for part, figure in split.items()}


def summarize(pairs: Sequence[PairRewards]) -> dict[str, Figure]:
    """All figures of a set of pairs, in the order in which they are printed."""
    wins, last = ([rule(pair, 1.0) for pair in pairs] for rule in (prefix_win, token_win))
    figures = {f"accuracy_{round(100 * f)}": accuracy([prefix_win(pair, f) for pair in pairs]) for f in FRACTIONS}
    figures |= {"accuracy_mean": accuracy(wins)} | by_length("accuracy", wins, pairs)
    figures |= {"accuracy_last": accuracy(last)} | by_length("accuracy_last", last, pairs)
    figures["accuracy_middle"] = accuracy([token_win(pair, 0.5) for pair in pairs])
    figures["autrc"] = mean_figure([area(*pair) for pair in pairs])
    chosen, rejected = ([float(np.mean(pair[side])) for pair in pairs] for side in (0, 1))
    figures["reward_chosen"] = mean_figure(chosen)
    figures["reward_rejected"] = mean_figure(rejected)
    figures["margin"] = mean_figure([a - b for a, b in zip(chosen, rejected, strict=True)])
    figures["length_bias"] = length_bias(pairs)
    return figures


def policy_figures(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], reference: np.ndarray | None = None
) -> dict[str, Figure]:
    """How a policy's log-probabilities rank pairs of (chosen, rejected) token log-probs, each [T].

    `reference` [n, 2] holds the reference policy's sums, in the pairs' order; its figures are absent without it.
    """
    sums = [[float(np.sum(side, dtype=np.float64)) for side in pair] for pair in pairs]
    means = [
        [total / len(side) for total, side in zip(both, pair, strict=True)]
        for both, pair in zip(sums, pairs, strict=True)
    ]
    by_sum, by_mean = ([win(chosen, rejected) for chosen, rejected in values] for values in (sums, means))
    figures = {
        "logps_accuracy": accuracy(by_sum),
        "logps_accuracy_balanced": balanced(*halves(by_sum, pairs)),
        "logps_accuracy_mean": accuracy(by_mean),
        "logps_accuracy_mean_balanced": balanced(*halves(by_mean, pairs)),
        "logps_chosen": mean_figure([chosen for chosen, _ in means]),
        "logps_rejected": mean_figure([rejected for _, rejected in means]),
    }
    if reference is not None:
        gains = np.asarray(sums, np.float64).reshape(-1, 2) - reference
        margins = [float(margin) for margin in gains[:, 0] - gains[:, 1]]
        figures["logps_accuracy_reference"] = accuracy([win(margin, 0.0) for margin in margins])
        figures["logps_margin_reference"] = mean_figure(margins)
    return figures


def text_figures(answers: Sequence[np.ndarray]) -> dict[str, Figure]:
    """Mean −log p a token, and perplexity, of answers' token log-probs (each [T]); `n` counts tokens."""
    lengths = np.array([len(answer) for answer in answers], np.float64)
    losses = np.array([-np.sum(answer, dtype=np.float64) for answer in answers])
    tokens, n = float(lengths.sum()), len(answers)
    if tokens == 0:
        return dict.fromkeys(("nll", "perplexity"), Figure(math.nan, math.nan, 0))
    nll = float(losses.sum()) / tokens
    spread = float(np.sum(np.square(losses - nll * lengths)))
    error = math.sqrt(spread * n / (n - 1)) / tokens if n > 1 else math.nan
    return {
        "nll": Figure(nll, error, int(tokens)),
        "perplexity": Figure(math.exp(nll), math.exp(nll) * error, int(tokens)),
    }


DESCRIPTIONS = {
    "accuracy_25": "pair accuracy, mean reward of the first 25 % of tokens",
    "accuracy_50": "pair accuracy, mean reward of the first 50 % of tokens",
    "accuracy_100": "pair accuracy, mean reward of 100 % of tokens",
    "accuracy_mean": "pair accuracy, sequence mean (the same as at 100 %)",
    "accuracy_longer_wins": "  … on pairs whose chosen response is longer",
    "accuracy_shorter_wins": "  … on pairs whose chosen response is shorter",
    "accuracy_balanced": "  … length-balanced (mean of the two above)",
    "accuracy_last": "pair accuracy, reward at the last token",
    "accuracy_last_longer_wins": "  … on pairs whose chosen response is longer",
    "accuracy_last_shorter_wins": "  … on pairs whose chosen response is shorter",
    "accuracy_last_balanced": "  … length-balanced (mean of the two above)",
    "accuracy_middle": "pair accuracy, reward at the middle token",
    "autrc": "AuTRC: area under pair accuracy over the fraction of tokens seen",
    "reward_chosen": "mean reward of chosen responses",
    "reward_rejected": "mean reward of rejected responses",
    "margin": "mean margin, chosen − rejected",
    "length_bias": "length bias: correlation of the margin with the difference in tokens",
    "logps_accuracy": "pair accuracy, sum of log p",
    "logps_accuracy_balanced": "length-balanced pair accuracy, sum of log p",
    "logps_accuracy_mean": "pair accuracy, log p a token",
    "logps_accuracy_mean_balanced": "length-balanced pair accuracy, log p a token",
    "logps_chosen": "log p a token of chosen responses",
    "logps_rejected": "log p a token of rejected responses",
    "logps_accuracy_reference": "pair accuracy, sum of log p less the reference's",
    "logps_margin_reference": "mean margin of log p less the reference's, chosen − rejected",
    "nll": "−log p a token",
    "perplexity": "perplexity a token",
    "f1": "first bad step: F1 of the two below",
    "accuracy_wrong": "  … found in answers that have one",
    "accuracy_right": "  … none claimed in answers that are right",
    "step_accuracy": "step accuracy",
    "step_accuracy_good": "  … on steps labelled good",
    "step_accuracy_bad": "  … on steps labelled bad",
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

"""Speculative Rejection's measures (arXiv 2410.20290): improvement score and relative compute against Best-of-N.

    improvement score = 100 · (1 + mean over prompts of (max S − max B) / (max B − min B))

max S is the best score among the method's finished candidates, max B and min B are those of Best-of-N's. 100 is as good
as Best-of-N; 0 as far below its best as its worst is. A prompt whose Best-of-N candidates all score the same has no
scale: it is left out, and counted.

    relative compute = seconds ÷ Best-of-N's seconds × devices ÷ Best-of-N's devices

The same ratio of lane-steps beside it does not depend on the machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.evaluation.report.statistics import Draws, Estimate, estimate, singles


class Improvement(NamedTuple):
    """The score with its interval, and the prompts left out of it."""

    score: Estimate
    left_out: int


def improvement(scores: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], draws: Draws) -> Improvement:
    """From each prompt's candidates' scores, the method's and Best-of-N's, in the same order of prompts."""
    gains = [
        (max(mine) - max(best)) / (max(best) - min(best))
        for mine, best in zip(scores, reference, strict=True)
        if max(best) > min(best)
    ]
    found = estimate([singles(gains)], draws)
    value, low, high = (100.0 * (1.0 + part) for part in (found.value, found.low, found.high))
    return Improvement(Estimate(value, low, high, found.n), len(reference) - len(gains))


def relative(spent: np.ndarray, reference: np.ndarray, devices: float = 1.0) -> float:
    """Σ spent ÷ Σ the reference's × the ratio of devices; NaN if the reference spent nothing."""
    whole = float(np.sum(reference))
    return float(np.sum(spent)) / whole * devices if whole > 0 else float("nan")

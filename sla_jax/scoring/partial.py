"""What token rewards say of an answer of which only the first part has been seen. Plain numpy; one array an answer."""

import math

import numpy as np


def running_mean(rewards: np.ndarray) -> np.ndarray:
    """Mean of the first t+1 rewards at every t, in float64, [T] → [T]."""
    return np.cumsum(rewards, dtype=np.float64) / np.arange(1, len(rewards) + 1)


def tokens_seen(fraction: float, length: int) -> int:
    """⌈fraction · length⌉, at least 1."""
    return max(1, math.ceil(fraction * length - 1e-9))  # 0.1 · 30 is 3, and not a little more


def mean_of_first(rewards: np.ndarray, fraction: float) -> float:
    """Mean over the first ⌈fraction · T⌉ rewards, at least one."""
    return float(running_mean(rewards)[tokens_seen(fraction, len(rewards)) - 1])


def area(better: np.ndarray, worse: np.ndarray) -> float:
    """∫ over f in (0, 1] of 1, 1/2 or 0 as the mean of the first f of `better` is above, at or below that of `worse`.

    Exact: both sides are step functions of f."""
    lengths = (len(better), len(worse))
    # steps end at f = j/T; integers j·T' / (T·T') keep the breakpoints of the two sides exactly comparable
    scale = lengths[0] * lengths[1]
    ends = np.union1d(np.arange(1, lengths[0] + 1) * lengths[1], np.arange(1, lengths[1] + 1) * lengths[0])
    widths = np.diff(ends, prepend=0) / scale
    sides = zip((better, worse), lengths, strict=True)
    first, second = (running_mean(side)[-(-ends // (scale // length)) - 1] for side, length in sides)  # ⌈f·T⌉ − 1
    return float(np.sum(widths * 0.5 * (1.0 + np.sign(first - second))))

"""What a pool tells the host: candidates whose fate is known, and how far the others are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Completion(NamedTuple):
    """One candidate whose fate is known."""

    candidate: int
    tokens: list[int]
    rewards: list[float]
    logprobs: list[float]
    finish: str  # "stop", "length", or "rejected": given up before it ended
    round: int  # the phase after which that was known, from 0
    score: float


class PoolRound(NamedTuple):
    """One request after one chunk of all its lanes."""

    phase: int
    lanes: int  # lanes computed
    alive: int  # candidates in play that have not ended
    tokens: int  # of the longest candidate in play
    explored: int  # tokens read so far
    steps: int  # forward passes so far
    ended: list[Completion]  # those whose fate this round decided
    done: bool


def best(completions: Sequence[Completion]) -> Completion:
    """The answer: of those that came to their end, the one that scores highest (ties: the lower number)."""
    whole = [one for one in completions if one.finish != "rejected"]
    return max(whole, key=lambda one: (-np.inf if np.isnan(one.score) else one.score, -one.candidate))

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
    step_scores: tuple[float, ...] = ()  # of decoders that go on step by step: one a step, of which `score` is made


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
    copies: int = 1  # how often the lanes' keys and values are held: twice while a copy looks ahead


def best(completions: Sequence[Completion], complete_first: bool = False) -> Completion:
    """The answer: of those that came to their end, the one that scores highest (ties: the lower number).

    With `complete_first` those that ran into max_tokens count only if none ended by itself.
    """
    whole = [one for one in completions if one.finish != "rejected"]
    if complete_first:
        whole = [one for one in whole if one.finish == "stop"] or whole
    return max(whole, key=lambda one: (-np.inf if np.isnan(one.score) else one.score, -one.candidate))

"""Best-of-N and Speculative Rejection, the slow and obvious way: whole answers first, then what would be given up.

Written from the algorithm's text. A candidate's answer depends on nothing but the world, the seed and its number, so it
is drawn to its end at once; rejection only decides how much of it is ever looked at. Scores are exact.
"""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.decode.choice import noise
from tests.oracles import Text, World

Score = Callable[[list[Fraction]], Fraction]  # rewards of an answer so far


class Fate(NamedTuple):
    """What became of a candidate."""

    tokens: Text
    finish: str
    round: int
    score: Fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """How answers are sampled."""

    temperature: float
    seed: int
    limit: int
    ends: frozenset[int]


@functools.cache
def gumbel(seed: int, length: int, path: int, size: int) -> np.ndarray:
    """The noise of one draw."""
    words = jnp.asarray([divmod(seed % 2**64, 2**32)], jnp.uint32)
    key = (words, jnp.asarray([[length]], jnp.int32), jnp.asarray([[path]], jnp.uint32))
    return np.asarray(_noise(*key, size))[0, 0]


_noise = jax.jit(noise, static_argnums=3)


def follow(path: int, token: int) -> int:
    """FNV-1a over whole tokens."""
    return (path ^ token) * 16777619 % 2**32


def sample(world: World, candidate: int, draws: Draws) -> tuple[Text, list[Fraction]]:
    """One candidate to its end: tokens and their rewards."""
    text: Text = ()
    rewards: list[Fraction] = []
    path = follow(0, candidate)
    while len(text) < draws.limit and not (text and text[-1] in draws.ends):
        logits = np.asarray(world([text])[0][0], np.float32)
        scaled = logits / np.float32(draws.temperature) + gumbel(draws.seed, len(text), path, len(logits))
        token = int(np.argmax(scaled))
        text, path = (*text, token), follow(path, token)
        rewards.append(Fraction(world([text])[0][1]))
    return text, rewards


def mean(rewards: list[Fraction]) -> Fraction:
    """Mean reward."""
    return sum(rewards, Fraction(0)) / len(rewards)


def schedule(n: int, alpha: Fraction, budget: int, chunk: int, limit: int) -> list[tuple[int, int]]:
    """(lanes, length) of every round: b lanes as long as the budget lets them, in whole chunks."""
    rounds: list[tuple[int, int]] = []
    lanes = n
    while not rounds or rounds[-1][1] < limit:
        length = limit if lanes * limit <= budget else budget // lanes // chunk * chunk
        if not rounds or length > rounds[-1][1]:
            rounds.append((lanes, length))
        fewer = int((1 - alpha) * lanes + Fraction(1, 2))  # rounded
        lanes = max(1, lanes - 1 if alpha and fewer == lanes else fewer)
    return rounds


def reject(answers: list[tuple[Text, list[Fraction]]], rounds: list[tuple[int, int]], score: Score) -> dict[int, Fate]:
    """Every candidate's fate."""
    fates: dict[int, Fate] = {}
    playing = list(range(len(answers)))
    for number, (_, length) in enumerate(rounds):
        scores = {c: score(answers[c][1][:length]) for c in playing}
        more = number + 1 < len(rounds)
        best = sorted(playing, key=lambda c: (-scores[c], c))[: rounds[number + 1][0] if more else 0]
        for c in playing:
            text = answers[c][0]
            ended = len(text) <= length
            if ended or c not in best:
                finish = "rejected" if not ended else "end"
                fates[c] = Fate(text[:length], finish, number, scores[c])
        playing = sorted(c for c in best if c not in fates)
        if not playing:
            break
    return fates


def answer(fates: dict[int, Fate]) -> int:
    """The best of those that ended."""
    return max((c for c in fates if fates[c].finish == "end"), key=lambda c: (fates[c].score, -c))

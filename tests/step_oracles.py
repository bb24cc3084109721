"""Step beam search and DVTS, the slow and obvious way: one candidate after the other, whole texts, exact arithmetic.

Written from the algorithm's text. A candidate is a text and the scores of its steps; to sample a step is to draw tokens
until the step's text has the separator in it, an end token came, or the text is as long as it may be.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from tests.oracles import Text, World
from tests.pool_oracles import Draws, follow, gumbel

AGGREGATES: dict[str, Callable[[list[Fraction]], Fraction]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": lambda scores: math.prod(scores, start=Fraction(1)),
    "mean": lambda scores: sum(scores, Fraction(0)) / len(scores),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A search: `trees` for DVTS. `pieces` are the bytes of every token."""

    n: int
    width: int
    trees: bool
    pieces: tuple[bytes, ...]
    separator: bytes
    lookahead: int = 0
    aggregate: str = "last"
    max_steps: int = 40
    filter_duplicates: bool = False


@dataclasses.dataclass
class Candidate:
    """A text, the scores of its steps, its noise and its name."""

    text: Text
    scores: list[Fraction]
    branch: int
    name: int
    tree: int
    ended: bool = False

    def score(self, how: str) -> Fraction:
        """What the scores make."""
        return AGGREGATES[how](self.scores)


class Fate(NamedTuple):
    """What became of a candidate."""

    text: Text
    finish: str
    step: int
    score: Fraction
    scores: tuple[Fraction, ...]


@dataclasses.dataclass
class Found:
    """Every candidate's fate, and what it took."""

    fates: dict[int, Fate]
    explored: int = 0
    passes: int = 0

    def spend(self, lengths: list[int]) -> None:
        """Lanes that read so many tokens side by side."""
        self.explored += sum(lengths)
        self.passes += max(lengths, default=0)

    @property
    def answer(self) -> int:
        """The best of those that are complete; if there is none, of those that are as long as may be."""
        ended = [c for c, fate in self.fates.items() if fate.finish == "stop"]
        ended = ended or [c for c, fate in self.fates.items() if fate.finish == "length"]
        return max(ended, key=lambda c: (self.fates[c].score, -c))


def search(world: World, asked: Asked, draws: Draws) -> Found:
    """The whole search."""
    found, names = Found({}), 1
    going = [(Candidate((), [], 0, 0, 0), m, m // asked.width) for m in range(asked.n)]
    for step in range(asked.max_steps):
        last = step + 1 == asked.max_steps
        candidates = []
        for parent, m, tree in going:
            name = parent.name if m == 0 else names
            names += m > 0
            branch = parent.branch if m == 0 else follow(parent.branch, m)
            candidates.append(Candidate(parent.text, parent.scores, branch, name, tree))
        read = [_step(world, asked, draws, c, whole=last) for c in candidates]
        found.spend([len(tokens) for tokens in read])
        for candidate, tokens in zip(candidates, read, strict=True):
            alone = tokens[0] in draws.ends and candidate.text != ()  # an end token alone is no step
            candidate.scores = candidate.scores[:-1] if alone else list(candidate.scores)
            candidate.text += tokens
            candidate.ended = _ended(candidate.text, draws)
        _value(world, asked, draws, candidates, 0 if last else asked.lookahead, found)
        going = _forest(asked, candidates) if asked.trees else _beams(asked, candidates)
        for candidate in candidates:
            if candidate.ended or not any(parent is candidate for parent, _, _ in going):
                found.fates[candidate.name] = _fate(asked, draws, candidate, step)
        if not going:
            break
    return found


def _beams(asked: Asked, candidates: list[Candidate]) -> list[tuple[Candidate, int, int]]:
    """The n/M best unfinished go on, and the pool is n again: one child each, in turn, the best first."""
    going: list[Candidate] = []
    for candidate in candidates:
        same = any(candidate.text == other.text for other in going)
        if not candidate.ended and not (asked.filter_duplicates and same):
            going.append(candidate)
    going.sort(key=lambda c: -c.score(asked.aggregate))  # stable: ties in the order of lanes
    going = going[: asked.n // asked.width]
    children: list[tuple[Candidate, int, int]] = []
    for m in range(asked.n):
        for parent in going:
            if len(children) < (len(going) if asked.width == 1 else asked.n):
                children.append((parent, m, 0))
    return children


def _forest(asked: Asked, candidates: list[Candidate]) -> list[tuple[Candidate, int, int]]:
    """The best of every tree goes on, unless it has ended."""
    children = []
    for tree in range(asked.n // asked.width):
        mine = [candidate for candidate in candidates if candidate.tree == tree]
        best = max(mine, key=lambda c: c.score(asked.aggregate)) if mine else None  # ties: the first
        if best is not None and not best.ended:
            children += [(best, m, tree) for m in range(asked.width)]
    return children


def _value(world: World, asked: Asked, draws: Draws, candidates: list[Candidate], lookahead: int, found: Found) -> None:
    """The new step's score: the reward at the last token, after as many greedy steps as are looked ahead."""
    ahead = [candidate.text for candidate in candidates]
    for _ in range(lookahead):
        steps: list[Text] = []
        for i, candidate in enumerate(candidates):
            copy = dataclasses.replace(candidate, text=ahead[i])
            going = not (candidate.ended or _ended(ahead[i], draws))
            steps.append(_step(world, asked, draws, copy, greedy=True) if going else ())
            ahead[i] += steps[-1]
        found.spend([len(step) for step in steps])
    for candidate, text in zip(candidates, ahead, strict=True):
        candidate.scores = [*candidate.scores, Fraction(world([text])[0][1])]


def _step(
    world: World, asked: Asked, draws: Draws, candidate: Candidate, *, whole: bool = False, greedy: bool = False
) -> Text:
    """The tokens of the next step. Notes in the candidate what its noise depends on."""
    tokens: Text = ()
    while not _ended(candidate.text + tokens, draws):
        logits = np.asarray(world([candidate.text + tokens])[0][0], np.float32)
        if not greedy:
            noise = gumbel(draws.seed, len(candidate.text + tokens), candidate.branch, len(logits))
            logits = logits / np.float32(draws.temperature) + noise
        token = int(np.argmax(logits))
        tokens, candidate.branch = (*tokens, token), follow(candidate.branch, token)
        if not whole and asked.separator in b"".join(asked.pieces[t] for t in tokens):
            break
    return tokens


def _ended(text: Text, draws: Draws) -> bool:
    return len(text) >= draws.limit or (text != () and text[-1] in draws.ends)


def _fate(asked: Asked, draws: Draws, candidate: Candidate, step: int) -> Fate:
    stopped = candidate.text[-1] in draws.ends
    finish = ("stop" if stopped else "length") if candidate.ended else "rejected"
    score = candidate.score(asked.aggregate)
    return Fate(candidate.text, finish, step, score, tuple(candidate.scores))

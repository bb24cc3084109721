"""What a search by steps keeps and decides on the host, between two steps of all its lanes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from sla_jax.decode.aggregate import AGGREGATES, check_aggregate
from sla_jax.decode.best_of_n import check_pool
from sla_jax.decode.completion import PoolRound
from sla_jax.decode.measures import Terms, terms
from sla_jax.decode.pool_program import View
from sla_jax.decode.separator import separator_table
from sla_jax.errors import UserError

SEPARATOR = "\n\n"
MAX_STEPS = 40
Moves = tuple[Int[np.ndarray, "R W"], Int[np.ndarray, "R W"]]  # parents, child numbers; -1 where a lane has none
Over = Callable[[list[int]], bool]  # an answer so far → whether it is complete


class Leaf(NamedTuple):
    """A candidate in play at the end of a step."""

    lane: int
    tokens: tuple[int, ...]
    score: float  # no NaN
    ended: bool  # by an end token, at max_tokens, or because its answer is complete


class Child(NamedTuple):
    """A lane that begins the next step as child `number` of the lane `parent`."""

    lane: int
    parent: int
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What both step searches are told; `score` ranks unless a scorer is given."""

    n: int = 8
    width: int = 4
    """Next steps sampled of each candidate that goes on."""
    lookahead: int = 0
    """Greedy steps beyond a step that it is scored with."""
    aggregate: str = "last"
    """What the scores of an answer's steps make: last, min, mean, or prod, if a scorer gives probabilities."""
    separator: str = SEPARATOR
    """What ends a step."""
    max_steps: int = MAX_STEPS
    """The last one runs to its end."""
    chunk: int = 32
    """Tokens between two reports of progress; it changes no answer."""
    score: str = "reward_last"
    """What a step's score is: a measure of its tokens."""

    def __post_init__(self) -> None:
        check_pool(self.n, self.chunk)
        for name, low, high in (("width", 1, self.n), ("lookahead", 0, 64), ("max_steps", 1, 1000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name}={value} is out of range; it has to be {low} to {high}.")
        if self.n % self.width:
            below, above = self.n // self.width * self.width, (self.n // self.width + 1) * self.width
            raise UserError(
                f"n={self.n} candidates are not a multiple of width={self.width}; give n={below} or n={above}."
            )
        check_aggregate(self.aggregate)
        separator_table([], self.separator.encode())
        terms(self.score)

    @property
    def terms(self) -> Terms:
        """What `score` says."""
        return terms(self.score)


@runtime_checkable
class StepDecoder(Protocol):
    """What a decoder says of itself that goes on step by step (see `StepBeam`)."""

    @property
    def n(self) -> int:
        """Candidates, and lanes."""

    @property
    def chunk(self) -> int:
        """Tokens between two reports of progress."""

    @property
    def lookahead(self) -> int:
        """Greedy steps beyond the step that is scored."""

    @property
    def max_steps(self) -> int:
        """Steps, of which the last one runs to its end."""

    @property
    def aggregate(self) -> str:
        """What the scores of steps make."""

    @property
    def terms(self) -> Terms:
        """What scores a step if no judge is given."""

    def branches(self, leaves: Sequence[Leaf]) -> list[Child]:
        """Who begins the next step."""


class Lineage(NamedTuple):
    """The candidates of one request by their lanes: their numbers, and the scores of their steps.

    A first child keeps its parent's number; the others get the next ones.
    """

    numbers: dict[int, int]
    scores: dict[int, tuple[float, ...]]
    given: int  # so many numbers

    def born(self, children: Sequence[Child]) -> "Lineage":
        """The next generation."""
        others = [child.lane for child in children if child.number > 0]
        fresh = dict(zip(others, range(self.given, self.given + len(others)), strict=True))
        numbers = {child.lane: fresh.get(child.lane, self.numbers[child.parent]) for child in children}
        scores = {child.lane: self.scores[child.parent] for child in children}
        return Lineage(numbers, scores, self.given + len(others))

    def scored(self, live: np.ndarray, steps: np.ndarray, last: np.ndarray) -> "Lineage":
        """The same with this step: candidates in play have `steps` of them, the last one with this score."""
        lanes = np.flatnonzero(live).tolist()
        return self._replace(
            scores={lane: (*self.scores[lane][: steps[lane] - 1], float(last[lane])) for lane in lanes}
        )


ROOT = Lineage({0: 0}, {0: ()}, 1)


def from_root(n: int) -> list[Child]:
    """The first steps: n of the prompt's end, which is in lane 0."""
    return [Child(lane, 0, lane) for lane in range(n)]


def branching(rows: Sequence[Sequence[Child]], n: int) -> Moves:
    """The next steps of all requests."""
    parents, numbers = np.full((2, len(rows), n), -1, np.int32)
    for row, children in enumerate(rows):
        for child in children:
            parents[row, child.lane], numbers[row, child.lane] = child.parent, child.number
    return parents, numbers


def rolling(live: Bool[np.ndarray, "R W"]) -> Moves:
    """Every lane in play goes on alone."""
    lanes = np.broadcast_to(np.arange(live.shape[1]), live.shape)
    return np.where(live, lanes, -1).astype(np.int32), np.where(live, 0, -1).astype(np.int32)


def complete(view: View, over: Over) -> Bool[np.ndarray, "R W"]:
    """Which candidates in play have said all, without an end token."""
    found = np.zeros(view.live.shape, bool)
    for row, lane in np.argwhere(view.live & ~view.finished):
        found[row, lane] = over(view.tokens[row, lane, : view.length[row, lane]].tolist())
    return found


def leaves_of(view: View, row: int, scores: Float[np.ndarray, "W"]) -> list[Leaf]:
    """The candidates in play of one request."""
    found = []
    for lane in np.flatnonzero(view.live[row]).tolist():
        tokens = tuple(view.tokens[row, lane, : view.length[row, lane]].tolist())
        score = -np.inf if np.isnan(scores[lane]) else float(scores[lane])
        found.append(Leaf(lane, tokens, score, bool(view.finished[row, lane])))
    return found


def told(round_: PoolRound, lineage: Lineage, going: bool) -> PoolRound:
    """A step's report, in which candidates have the scores of their steps."""
    lanes = {number: lane for lane, number in lineage.numbers.items()}
    ended = [one._replace(step_scores=lineage.scores[lanes[one.candidate]]) for one in round_.ended]
    return round_._replace(ended=ended, done=not going)


def aggregated(scores: Mapping[int, Sequence[float]], how: str, n: int) -> Float[np.ndarray, "W"]:
    """The scores of answers, from those of their steps; worst in lanes without one."""
    found = np.full(n, -np.inf)
    for lane, row in scores.items():
        found[lane] = AGGREGATES[how](np.array(row, np.float64))
    return found

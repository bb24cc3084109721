"""One sampled answer, and what a scorer is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

Message = dict[str, str]


class Candidate(NamedTuple):
    """One sampled answer. `tokens` are of the policy that sampled it, its end token included."""

    messages: list[Message]  # the conversation up to the answer
    text: str
    tokens: list[int]
    finished: bool  # it ended with an end token, not at the limit

    @property
    def question(self) -> str:
        """What the user said last."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


@runtime_checkable
class Scorer(Protocol):
    """Gives each candidate a number; higher is better. Candidates of one call need not share a prompt."""

    @property
    def name(self) -> str:
        """What provenance calls it."""

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """One score a candidate, in order."""


@runtime_checkable
class StepScorer(Protocol):
    """A scorer that judges an answer step by step."""

    def steps(self, candidates: Sequence[Candidate]) -> list[list[float]]:
        """One score for each step of each candidate, in order; what is not finished counts as a step."""


@runtime_checkable
class ReadingScorer(Protocol):
    """A scorer that reads with models of its own."""

    @property
    def tokens_read(self) -> int:
        """Tokens that its models have read so far."""

    def session(self) -> Scorer:
        """The same for one request's candidates, which come again and again: it remembers what it has read of them."""


class Score(NamedTuple):
    """A score and what it is made of."""

    total: float
    parts: dict[str, float]


@runtime_checkable
class Detailed(Protocol):
    """A scorer that can say what its scores are made of."""

    def detailed(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score a candidate, in order."""


def detailed(scorer: Scorer, candidates: Sequence[Candidate]) -> list[Score]:
    """Scores with their parts; of a scorer without parts, its name → score."""
    if isinstance(scorer, Detailed):
        return scorer.detailed(candidates)
    return [Score(value, {scorer.name: value}) for value in scorer.score(candidates)]

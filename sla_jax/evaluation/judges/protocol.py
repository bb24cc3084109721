"""What a judge is: it gives answers judgements, or compares two methods' answers to the same prompts."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from sla_jax.evaluation.rows import Answer, Judgement

Winner = Literal["method", "baseline", "tie"]


@runtime_checkable
class Judge(Protocol):
    """Gives each answer a number; higher is better. Answers of one call need not be of one benchmark or method."""

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer, in order. Raises UserError, naming the answer, for one that it cannot judge."""


class Comparison(NamedTuple):
    """What a judge says of two answers to one prompt; a line of METHOD.vs.BASELINE.jsonl."""

    id: str
    baseline: str
    winner: Winner
    details: dict[str, Any]


@runtime_checkable
class PairJudge(Protocol):
    """Says which of two answers is better."""

    def compare(self, method: Answer, baseline: Answer) -> Comparison:
        """The better one of two answers to one prompt. Raises UserError."""


def judgement(answer: Answer, scores: Sequence[float], details: dict[str, Any]) -> Judgement:
    """The judgement of an answer from its turns' scores; its score is their mean."""
    assert len(scores) == len(answer.turns) > 0, "one score a turn"
    return Judgement(answer.id, tuple(float(score) for score in scores), sum(scores) / len(scores), details)


def not_finite(judged: Judgement) -> str | None:
    """The first field of a judgement that is not a finite number: `scores[1]`, or `details.rating x[0]`."""
    numbers: list[tuple[str, Any]] = [(f"scores[{turn}]", value) for turn, value in enumerate(judged.scores)]
    numbers.append(("score", judged.score))
    numbers += _numbers("details", judged.details)
    return next((name for name, value in numbers if not math.isfinite(value)), None)


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """Every number in a tree of dicts and lists, by the path to it."""
    if isinstance(value, dict):
        return [found for key, part in value.items() for found in _numbers(f"{name}.{key}", part)]
    if isinstance(value, list | tuple):
        return [found for i, part in enumerate(value) for found in _numbers(f"{name}[{i}]", part)]
    return [(name, float(value))] if isinstance(value, int | float) else []

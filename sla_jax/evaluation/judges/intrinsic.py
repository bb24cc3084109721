"""Measures of the answers alone: do they repeat themselves, how varied are they, how long?

The score is how little an answer repeats itself (1: nothing twice, near 0: a loop), as `scoring/rules.py` defines it.
Details, one number a turn: `repetition` (the score), `loop` (1 if `scoring/loops.py` calls it one), `distinct_1`,
`distinct_2`, `distinct_3` (different word n-grams over all of them; 1 of a text too short to have any), `words`,
`characters`, `tokens` (of the policy; 0 where a server does not tell them) and `finished` (1: ended by itself).
"""

from collections.abc import Sequence

from sla_jax.evaluation.judges.protocol import judgement
from sla_jax.evaluation.rows import Answer, Judgement, Turn
from sla_jax.scoring.loops import falls_into_loop, words
from sla_jax.scoring.rules import repetition


class IntrinsicJudge:
    """The measures above; it reads no question and no reference."""

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Judgement:
        turns = [measures(turn) for turn in answer.turns]
        details = {name: [turn[name] for turn in turns] for name in turns[0]}
        return judgement(answer, details["repetition"], details)


def measures(turn: Turn) -> dict[str, float]:
    """All measures of one turn."""
    said = words(turn.text)
    return {
        "repetition": repetition(turn.text),
        "loop": float(falls_into_loop(turn.text)),
        **{f"distinct_{n}": distinct(said, n) for n in (1, 2, 3)},
        "words": float(len(said)),
        "characters": float(len(turn.text)),
        "tokens": float(len(turn.token_ids)),
        "finished": float(turn.finish_reason == "stop"),
    }


def distinct(said: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams."""
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0

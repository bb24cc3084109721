"""Verifiers: answers that a program can check against their references, 1 or 0 a turn (IFEval: the share kept).

`math` compares by value with math-verify: what the answer has boxed, else its last expression, with the reference.
`gsm8k` compares the last number with the reference's, exactly. The last turn is what is checked, and its score is every
turn's: benchmarks with references have one.
"""

from collections.abc import Sequence

from sla_jax.errors import UserError
from sla_jax.evaluation.judges import ifeval
from sla_jax.evaluation.judges.protocol import judgement
from sla_jax.evaluation.report.equivalence import Equivalence
from sla_jax.evaluation.rows import Answer, Judgement
from sla_jax.scoring.verifier import last_number

TIMEOUT = 5.0


class MathJudge:
    """Equivalence to the reference by math-verify; what cannot be compared in `timeout` seconds is not equivalent."""

    def __init__(self, timeout: float = TIMEOUT):
        self.equivalence = Equivalence(max(1, round(timeout)))

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """1 if equivalent, else 0; details: what was read from answer and reference."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Judgement:
        wanted = self.equivalence.reference(reference_of(answer))
        found = self.equivalence.final(answer.turns[-1].text)
        right = float(self.equivalence.same(wanted, found))
        return judgement(answer, [right] * len(answer.turns), {"read": found or None, "reference": wanted})


class Gsm8kJudge:
    """The last number is the reference's, by value."""

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """1 or 0; details: the two numbers."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Judgement:
        wanted, found = last_number(reference_of(answer)), last_number(answer.turns[-1].text)
        if wanted is None:
            raise UserError(f"{named(answer)}: 'reference' {answer.reference!r} holds no number.")
        details = {"read": None if found is None else str(found), "reference": str(wanted)}
        return judgement(answer, [float(found == wanted)] * len(answer.turns), details)


class IfevalJudge:
    """IFEval's checks. The score is the share of instructions that is kept, strictly; details say which, and loosely.

    `strict` and `loose` are one truth value an instruction; a prompt counts as followed if all of them are true."""

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Judgement:
        instructions = ifeval.instructions_of(reference_of(answer), named(answer))
        text = answer.turns[-1].text
        strict = [ifeval.kept(one, text) for one in instructions]
        loose = [any(ifeval.kept(one, variant) for variant in ifeval.variants(text)) for one in instructions]
        details = {
            "instructions": [one.id for one in instructions],
            "strict": strict,
            "loose": loose,
            "prompt_strict": all(strict),
            "prompt_loose": all(loose),
        }
        return judgement(answer, [sum(strict) / len(strict)] * len(answer.turns), details)


def reference_of(answer: Answer) -> str:
    """What the answer is compared with. Raises UserError if there is nothing."""
    if answer.reference is None:
        raise UserError(f"{named(answer)}: 'reference' is null, and this judge compares with it; leave the set out.")
    return answer.reference


def named(answer: Answer) -> str:
    """How an error calls an answer; the line in its file is added where that is known."""
    return f"the answer {answer.id!r} of {answer.method} to {answer.benchmark}"

"""Any scorer of `sla_jax.scoring` as a judge: every turn is a candidate, scored with what was said before it."""

from collections.abc import Sequence

from sla_jax.evaluation.judges.protocol import judgement
from sla_jax.evaluation.rows import Answer, Judgement
from sla_jax.scoring.candidate import Scorer, detailed


class ScorerJudge:
    """Scores, and as `parts`, one object a turn, what they are made of: of a PRM its steps' scores."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer; all turns of all answers are given to the scorer at once."""
        candidates = [candidate for answer in answers for candidate in answer.candidates()]
        found = iter(detailed(self.scorer, candidates))
        judged = []
        for answer in answers:
            turns = [next(found) for _ in answer.turns]
            judged.append(judgement(answer, [turn.total for turn in turns], {"parts": [turn.parts for turn in turns]}))
        return judged

"""A sequence-classification reward model as a scorer: its one value at the last token of conversation and answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from sla_jax.errors import UserError
from sla_jax.loading import load_model
from sla_jax.model.policy import Policy
from sla_jax.model.score import score_values
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.model_scorer import ModelScorer
from sla_jax.scoring.rows import Row, answer_row
from sla_jax.text import DAY, NO_VARIABLES


class RewardModelScorer(ModelScorer):
    """The value at the last token; the model has one output."""

    def __init__(self, checkpoint: str | Path, *, template: Mapping[str, Any] = NO_VARIABLES, date: str = DAY):
        model = load_model(Path(checkpoint), generates=False, template=template, date=date)
        score = model.config.score
        if score is None or score.outputs != 1:
            has = "no score head" if score is None else f"a score head of {score.outputs} outputs"
            raise UserError(f"{checkpoint} has {has}; a reward model has one output (num_labels 1).")
        super().__init__(f"reward model {checkpoint}", model, scalar)

    def row(self, candidate: Candidate) -> Row:
        """The last token counts."""
        row = answer_row(self.model, candidate)
        return row._replace(places=row.places[-1:])

    def conclude(self, values: np.ndarray) -> float:
        """Its value."""
        return float(values[0])


def scalar(policy: Policy, hidden: Float[Array, "B T D"], reward: Array | None) -> Float[Array, "B T"]:
    """The one output of a score head."""
    assert policy.score is not None, "a scorer that reads a score head refuses a model without one"
    return score_values(policy.score, hidden)[..., 0]

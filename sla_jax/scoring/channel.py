"""The reward channel of a checkpoint as a scorer: the mean reward of the answer's tokens, which search ranks by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from sla_jax.errors import UserError
from sla_jax.loading import load_model
from sla_jax.model.policy import Policy
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.model_scorer import ModelScorer
from sla_jax.scoring.rows import Row, answer_row
from sla_jax.text import DAY, NO_VARIABLES


class ChannelScorer(ModelScorer):
    """Mean reward of the answer, its end token included if it ended."""

    def __init__(self, checkpoint: str | Path, *, template: Mapping[str, Any] = NO_VARIABLES, date: str = DAY):
        model = load_model(Path(checkpoint), generates=False, template=template, date=date)
        if model.config.channel is None:
            raise UserError(
                f"{checkpoint} has no reward channel to score with; train one with train.py, or attach one with "
                "`python convert.py import SRC DST --channel FILE`."
            )
        super().__init__(f"channel {checkpoint}", model, rewards)

    def row(self, candidate: Candidate) -> Row:
        """All of the answer's tokens count."""
        return answer_row(self.model, candidate)

    def conclude(self, values: np.ndarray) -> float:
        """Their mean."""
        return float(values.mean())


def rewards(policy: Policy, hidden: Float[Array, "B T D"], reward: Array | None) -> Float[Array, "B T"]:
    """The channel's rewards."""
    assert reward is not None, "a scorer that reads a channel refuses a model without one"
    return reward

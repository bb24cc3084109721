"""A sequence-classification reward model as a scorer: its one value at the last token of conversation and answer."""

from collections.abc import Sequence
from pathlib import Path

import jax
from jaxtyping import Array, Float, Int

from sla_jax.errors import UserError
from sla_jax.loading import load_model
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.model.score import last_values, score_values
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.rows import read, rows_of


class RewardModelScorer:
    """The value at the last token; the model has one output."""

    def __init__(self, checkpoint: str | Path):
        self.model = load_model(Path(checkpoint), generates=False)
        score = self.model.config.score
        if score is None or score.outputs != 1:
            has = "no score head" if score is None else f"a score head of {score.outputs} outputs"
            raise UserError(f"{checkpoint} has {has}; a reward model has one output (num_labels 1).")
        self.name = f"reward model {checkpoint}"
        self._read = jax.jit(_last_values, static_argnums=0)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """One value a candidate."""
        model = self.model
        return read(rows_of(model, candidates), lambda *batch: self._read(model.config, model.policy, *batch))


def _last_values(
    config: ModelConfig, policy: Policy, tokens: Int[Array, "B T"], starts: Int[Array, "B"], ends: Int[Array, "B"]
) -> Float[Array, "B"]:
    hidden = forward.trunk(policy, config, tokens).hidden
    assert policy.score is not None, "RewardModelScorer refuses a model without a score head"
    return last_values(score_values(policy.score, hidden), ends)[:, 0]

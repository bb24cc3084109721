"""The reward channel of a checkpoint as a scorer: the mean reward of the answer's tokens, which search ranks by."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sla_jax.errors import UserError
from sla_jax.loading import load_model
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.rows import read, rows_of


class ChannelScorer:
    """Mean reward of the answer, its end token included if it ended."""

    def __init__(self, checkpoint: str | Path):
        self.model = load_model(Path(checkpoint), generates=False)
        if self.model.config.channel is None:
            raise UserError(
                f"{checkpoint} has no reward channel to score with; train one with train.py, or attach one with "
                "`python convert.py import SRC DST --channel FILE`."
            )
        self.name = f"channel {checkpoint}"
        self._read = jax.jit(_mean_rewards, static_argnums=0)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """One mean reward a candidate."""
        model = self.model
        return read(rows_of(model, candidates), lambda *batch: self._read(model.config, model.policy, *batch))


def _mean_rewards(
    config: ModelConfig, policy: Policy, tokens: Int[Array, "B T"], starts: Int[Array, "B"], ends: Int[Array, "B"]
) -> Float[Array, "B"]:
    reward = forward.trunk(policy, config, tokens).reward
    assert reward is not None, "ChannelScorer refuses a model without a channel"
    place = jnp.arange(tokens.shape[1])[None, :]
    answer = (place >= starts[:, None]) & (place < ends[:, None])
    return jnp.where(answer, reward, 0.0).sum(axis=1) / answer.sum(axis=1).astype(reward.dtype)

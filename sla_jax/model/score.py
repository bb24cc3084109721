"""The score head of a reward model: one linear layer on the final norm's output, in place of the LM head.

As transformers defines it: sequence classification has one row of scores, read at the last token, and no bias; token
classification has one at every token and a bias (process rewards: two classes).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from sla_jax.model.channel import FLOAT32, INIT_STD
from sla_jax.model.config import ModelConfig


class Score(nnx.Module):
    """`weight` [D, outputs]; `bias` [outputs], or None where the config has none."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: jnp.dtype = FLOAT32):
        assert config.score is not None, "this config has no score head"
        shape = (config.width, config.score.outputs)
        self.weight = nnx.Param((INIT_STD * jax.random.normal(key, shape, jnp.float32)).astype(dtype))
        self.bias = nnx.Param(jnp.zeros(shape[1:], dtype)) if config.score.bias else None


def init_score(config: ModelConfig, key: jax.Array, dtype: jnp.dtype = FLOAT32) -> Score:
    """A fresh head for `config.score`, as transformers starts it: normal with deviation 0.02, bias zero."""
    return Score(config, key, dtype)


def score_values(score: Score, hidden: Float[Array, "*B D"]) -> Float32[Array, "*B O"]:
    """Scores from final-norm outputs; computed in float32 on every backend, whatever the parameters' type."""
    wide, weight = hidden.astype(jnp.float32), score.weight[...].astype(jnp.float32)
    values = jnp.einsum("...d,do->...o", wide, weight, precision=jax.lax.Precision.HIGHEST)
    if score.bias is None:
        return values
    return values + jnp.broadcast_to(score.bias[...].astype(jnp.float32), values.shape)


def last_values(values: Float[Array, "B T O"], lengths: Int[Array, "B"]) -> Float[Array, "B O"]:
    """The values at each row's last token; every length is at least 1, padding stands on the right."""
    return values[jnp.arange(values.shape[0]), lengths - 1]

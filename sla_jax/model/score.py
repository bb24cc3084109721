"""The score head of a reward model, on the final norm's output and in place of the LM head.

One linear layer as transformers defines it: sequence classification has one row of scores, read at the last token, and
no bias; token classification has one at every token and a bias (process rewards: two classes). Qwen2.5-Math-PRM has a
hidden layer of width D with ReLU in front of it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from sla_jax.model.channel import FLOAT32, INIT_STD
from sla_jax.model.config import ModelConfig


class Score(nnx.Module):
    """`weight` [D, outputs], `bias` [outputs], `hidden` [D, D], `hidden_bias` [D]; None where the config has none."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: jnp.dtype = FLOAT32):
        assert config.score is not None, "this config has no score head"
        shape = (config.width, config.score.outputs)
        self.weight = nnx.Param((INIT_STD * jax.random.normal(key, shape, jnp.float32)).astype(dtype))
        self.bias = nnx.Param(jnp.zeros(shape[1:], dtype)) if config.score.bias else None
        deep, square = config.score.kind == "mlp", (config.width, config.width)
        noise = INIT_STD * jax.random.normal(jax.random.fold_in(key, 1), square, jnp.float32) if deep else None
        self.hidden = None if noise is None else nnx.Param(noise.astype(dtype))
        self.hidden_bias = nnx.Param(jnp.zeros(square[1:], dtype)) if deep else None


def init_score(config: ModelConfig, key: jax.Array, dtype: jnp.dtype = FLOAT32) -> Score:
    """A fresh head for `config.score`, as transformers starts it: normal with deviation 0.02, bias zero."""
    return Score(config, key, dtype)


def score_values(score: Score, hidden: Float[Array, "*B D"]) -> Float32[Array, "*B O"]:
    """Scores from final-norm outputs; computed in float32 on every backend, whatever the parameters' type."""
    wide = hidden.astype(jnp.float32)
    if score.hidden is not None:
        wide = jax.nn.relu(_linear(wide, score.hidden, score.hidden_bias))
    return _linear(wide, score.weight, score.bias)


def _linear(x: Float32[Array, "*B I"], weight: nnx.Param, bias: nnx.Param | None) -> Float32[Array, "*B O"]:
    values = jnp.einsum("...i,io->...o", x, weight[...].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    if bias is None:
        return values
    return values + jnp.broadcast_to(bias[...].astype(jnp.float32), values.shape)


def last_values(values: Float[Array, "B T O"], lengths: Int[Array, "B"]) -> Float[Array, "B O"]:
    """The values at each row's last token; every length is at least 1, padding stands on the right."""
    return values[jnp.arange(values.shape[0]), lengths - 1]

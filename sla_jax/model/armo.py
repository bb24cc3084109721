"""ArmoRM's head (arXiv 2406.12845): objectives regressed at an answer's end, mixed by weights of the prompt's.

    ratings r = R · h_last          [O]    one linear layer without a bias: the policy's own score head
    weights g = softmax(mlp(h_gate) / temperature) · scale          [O]
    score     = Σ_o g_o · (r @ transform)_o

h_last is the final norm's output at the conversation's last token, h_gate the same at the last token of the prompt, in
front of what opens the answer. The MLP has ReLU between its layers. `transform` [O, O] takes off every objective the
multiple of verbosity that made the two correlate: what is summed is r as a row times `transform`, as released.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

HIGHEST = jax.lax.Precision.HIGHEST


class Gating(nnx.Module):
    """Parameters: `weights` [I, O'] and `biases` [O'] of the MLP's layers, `scale` [1], `transform` [O, O]."""

    def __init__(
        self,
        weights: Sequence[Array],
        biases: Sequence[Array],
        scale: Float[Array, "1"],
        transform: Float[Array, "O O"],
    ):
        self.weights = nnx.List([nnx.Param(weight) for weight in weights])
        self.biases = nnx.List([nnx.Param(bias) for bias in biases])
        self.scale = nnx.Param(scale)
        self.transform = nnx.Param(transform)


def gate(gating: Gating, hidden: Float[Array, "*B D"], temperature: float) -> Float32[Array, "*B O"]:
    """The weights of the objectives from states at prompts' ends; float32 whatever the parameters' type."""
    x = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
    last = len(gating.weights) - 1
    for i, (weight, bias) in enumerate(zip(gating.weights, gating.biases, strict=True)):
        x = jnp.einsum("bi,io->bo", x, weight[...].astype(jnp.float32), precision=HIGHEST)
        x = x + bias[...].astype(jnp.float32)[None, :]
        x = jax.nn.relu(x) if i < last else x
    weights = jax.nn.softmax(x / temperature, axis=-1) * gating.scale[...].astype(jnp.float32)[None, :]
    return weights.reshape(*hidden.shape[:-1], -1)


def mix(gating: Gating, ratings: Float32[Array, "B O"], weights: Float32[Array, "B O"]) -> Float32[Array, "B"]:
    """Scores from answers' ratings and their prompts' weights."""
    moved = jnp.einsum("bi,io->bo", ratings, gating.transform[...].astype(jnp.float32), precision=HIGHEST)
    return jnp.sum(weights * moved, axis=-1)

"""log p(target | hidden state) of chosen tokens, without ever holding the logits of all of them.

A vocabulary of 128 k at 16 k scored tokens is 8 GB of float32 logits, three times over with gradients. Here they are
made for a chunk of tokens at a time, reduced to one number each, and made again in the backward pass.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sla_jax.model.forward import logits
from sla_jax.model.policy import Policy
from sla_jax.sharding import constrain


def token_logprobs(
    policy: Policy, hidden: Float[Array, "G P D"], targets: Int[Array, "G P"], *, chunk: int
) -> Float[Array, "G P"]:
    """float32 log-probabilities of `targets` after the final-norm outputs `hidden`.

    At most G·chunk·V logits are alive, forward or backward; under a mesh G is split over the data axes and V over the
    tensor axis. What stands at padding places is meaningless and the caller masks it.
    """
    groups, places, _ = hidden.shape
    chunk = min(chunk, places)
    room = -places % chunk

    def chunks(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(groups, -1, chunk, *x.shape[2:]), 1, 0)

    def one(piece: tuple[Array, Array]) -> Array:
        return _chunk_logprobs(policy, *piece)

    found = jax.lax.map(jax.checkpoint(one, prevent_cse=False), (chunks(hidden), chunks(targets)))
    return jnp.moveaxis(found, 0, 1).reshape(groups, -1)[:, :places]


def _chunk_logprobs(policy: Policy, hidden: Float[Array, "G C D"], targets: Int[Array, "G C"]) -> Float[Array, "G C"]:
    """The target's logit is picked by a masked sum, which stays local where the vocabulary is split."""
    scores = constrain(logits(policy, constrain(hidden, "batch", None, None)), "batch", None, "vocab")
    is_target = jax.lax.broadcasted_iota(targets.dtype, scores.shape, 2) == targets[..., None]
    chosen = jnp.sum(jnp.where(is_target, scores, 0.0), axis=-1)
    return chosen - jax.nn.logsumexp(scores, axis=-1)

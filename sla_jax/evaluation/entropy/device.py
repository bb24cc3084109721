"""Entropies, losses and the most probable tokens of every position, without ever holding the logits of all of them.

Computed in float32 whatever the model's type, with the function that gates the searches (`decode.following`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from sla_jax.decode.following import top, uncertainty
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy


class Looks(NamedTuple):
    """What the model thought of the next token, at every position."""

    entropy: Float32[Array, "*P"]  # of the whole distribution at temperature 1, in nats
    loss: Float32[Array, "*P"]  # -log p of the token that really came
    ids: Int32[Array, "*P A"]  # the A most probable tokens, best first (ties: lower id)
    logprobs: Float32[Array, "*P A"]


class Read(NamedTuple):
    """One forward pass: `looks` [B, T-1] are of the tokens from the second on, `reward` [B, T] is after each token."""

    looks: Looks
    reward: Array | None


@functools.partial(jax.jit, static_argnames=("config", "tops", "chunk"))
def read(policy: Policy, tokens: Int[Array, "B T"], *, config: ModelConfig, tops: int, chunk: int) -> Read:
    """Read right-padded rows; what stands at padding is meaningless."""
    trunk = forward.trunk(policy, config, tokens)
    return Read(look_in_chunks(policy, trunk.hidden[:, :-1], tokens[:, 1:], tops=tops, chunk=chunk), trunk.reward)


def look_in_chunks(
    policy: Policy, hidden: Float[Array, "B P D"], targets: Int[Array, "B P"], *, tops: int, chunk: int
) -> Looks:
    """`look` at the logits after the final-norm outputs `hidden`; at most chunk·V logits are alive."""
    rows, places, width = hidden.shape
    count = rows * places
    chunk = min(chunk, count)
    room = -count % chunk
    outputs = jnp.pad(hidden.reshape(count, width), ((0, room), (0, 0))).reshape(-1, chunk, width)
    goals = jnp.pad(targets.reshape(count), (0, room)).reshape(-1, chunk)

    def one(piece: tuple[Array, Array]) -> Looks:
        return look(forward.logits(policy, piece[0]), piece[1], tops=tops)

    def whole(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])[:count].reshape(rows, places, *x.shape[2:])

    return jax.tree.map(whole, jax.lax.map(one, (outputs, goals)))


def look(logits: Float[Array, "P V"], targets: Int[Array, "P"], *, tops: int) -> Looks:
    """All numbers of a row of logits each. A logit of -inf is a token that cannot come, and adds nothing."""
    wide = logits.astype(jnp.float32)
    entropy, _ = uncertainty(wide)
    chosen = jnp.take_along_axis(wide, targets[:, None], axis=-1)[:, 0]
    return Looks(entropy, jax.nn.logsumexp(wide, axis=-1) - chosen, *top(wide, wide, tops))

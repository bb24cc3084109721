"""The tokens that may follow: chosen as each request wants them, and how sure the model is of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sla_jax.decode.choice import IMPOSSIBLE, Choice, Text, ranking


class Next(NamedTuple):
    """The tokens that may follow each lane's text, best first; n is 1 while a lane rolls on."""

    tokens: Int[Array, "R W n"]
    logprobs: Float[Array, "R W n"]  # of the model itself; IMPOSSIBLE where there are fewer than n to choose from
    entropy: Float[Array, "R W"]  # of the model's own distribution, in nats
    doubt: Float[Array, "R W"]  # 1 - the probability of its most probable token
    top_ids: Int[Array, "R W A"]  # the model's own A best, for those who asked
    top_logprobs: Float[Array, "R W A"]
    logits: Float[Array, "R W v"]  # what they were chosen from, for those who choose again; else v is 0


def choose(
    choice: Choice,
    logits: Float[Array, "R W V"],
    text: Text,
    *,
    count: int,
    tops: int,
    full: Array | bool = True,
    keep: bool = False,
) -> Next:
    """The `count` next tokens of every lane, best first, as each request wants them chosen; one unless `full`.

    With `keep` the logits are kept beside them."""
    tokens, logprobs = top(ranking(choice, logits, text), logits, count, full)
    entropy, doubt = uncertainty(logits)
    shape = (*logits.shape[:2], tops)
    nothing = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    kept = logits if keep else logits[..., :0]
    if tops == 0:
        return Next(tokens, logprobs, entropy, doubt, *nothing, kept)
    ids, best = jax.lax.cond(jnp.any(choice.tops > 0), lambda: _best(logits, tops), lambda: nothing)
    return Next(tokens, logprobs, entropy, doubt, ids, best, kept)


def top(
    order: Float[Array, "*B V"], logits: Float[Array, "*B V"], n: int, full: Array | bool = True
) -> tuple[Int[Array, "*B n"], Float[Array, "*B n"]]:
    """The n first tokens by `order` (ties: lower id) and the model's log-probabilities of them. n passes of argmax.

    Unless `full`, only the first is looked for and stands in all n places.
    """
    norm = jax.nn.logsumexp(logits, axis=-1)

    def first(order: Array) -> tuple[Array, Array]:
        best = jnp.argmax(order, axis=-1).astype(jnp.int32)
        rank, logit = (jnp.take_along_axis(x, best[..., None], axis=-1)[..., 0] for x in (order, logits))
        return best, jnp.where(rank == IMPOSSIBLE, IMPOSSIBLE, logit - norm)

    def others(found: tuple[Array, Array]) -> tuple[Array, Array]:
        seen, rest = [found], order
        while len(seen) < n:
            vocabulary = jax.lax.broadcasted_iota(jnp.int32, order.shape, order.ndim - 1)
            rest = jnp.where(vocabulary == seen[-1][0][..., None], IMPOSSIBLE, rest)
            seen.append(first(rest))
        tokens, logprobs = zip(*seen, strict=True)
        return jnp.stack(tokens, axis=-1), jnp.stack(logprobs, axis=-1)

    def alone(found: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens, logprobs = (jnp.broadcast_to(x[..., None], (*x.shape, n)) for x in found)
        return tokens, logprobs

    best = first(order)
    return alone(best) if n == 1 else jax.lax.cond(full, others, alone, best)


def uncertainty(logits: Float[Array, "*B V"]) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The entropy in nats, and 1 - the probability of the most probable token."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weight = jnp.exp(shifted)
    norm = weight.sum(axis=-1)
    weighted = jnp.where(weight > 0, weight * shifted, 0.0).sum(axis=-1)
    return jnp.log(norm) - weighted / norm, 1 - 1 / norm


def where(active: Bool[Array, "R W"], new: Next, old: Next) -> Next:
    """`new` in the lanes that are active, `old` in the others."""
    return jax.tree.map(lambda a, b: jnp.where(active.reshape(*active.shape, *[1] * (a.ndim - 2)), a, b), new, old)


def _best(logits: Float[Array, "R W V"], count: int) -> tuple[Int[Array, "R W A"], Float[Array, "R W A"]]:
    best, ids = jax.lax.top_k(logits, count)
    return ids.astype(jnp.int32), best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

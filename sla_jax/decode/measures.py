"""What a pool's candidates are ranked by, where the model that wrote them is enough: its reward channel, its own
log-probabilities, or a weighted sum of several.

A measure is a function of a candidate's rewards [R W T] and log-probabilities [R W T], of which `mask` [R W T] are its
answer so far (at least one token); log-probabilities are the model's own at temperature 1, whatever was sampled with.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sla_jax.decode.lanes import Lanes, start
from sla_jax.errors import UserError, nearest

Terms = tuple[tuple[float, str], ...]


def _mean(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, 0.0).sum(axis=-1) / jnp.maximum(mask.sum(axis=-1), 1).astype(x.dtype)


def _last(x: Array, mask: Array) -> Array:
    place = jnp.where(mask, jnp.arange(x.shape[-1]), -1).max(axis=-1)
    return jnp.take_along_axis(x, jnp.maximum(place, 0)[..., None], axis=-1)[..., 0]


MEASURES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "reward": lambda rewards, logprobs, mask: _mean(rewards, mask),
    "reward_last": lambda rewards, logprobs, mask: _last(rewards, mask),
    "reward_min": lambda rewards, logprobs, mask: jnp.where(mask, rewards, jnp.inf).min(axis=-1),
    "logprob": lambda rewards, logprobs, mask: jnp.where(mask, logprobs, 0.0).sum(axis=-1),
    "logprob_mean": lambda rewards, logprobs, mask: _mean(logprobs, mask),
    "self_reward": lambda rewards, logprobs, mask: -jnp.exp(-_mean(logprobs, mask)),  # − perplexity
}


def terms(text: str) -> Terms:
    """`reward` or `reward + 0.5*logprob_mean` → ((weight, name), …). Raises UserError on an unknown name."""
    found = []
    for term in text.split("+"):
        weight, _, name = term.strip().rpartition("*")
        if name not in MEASURES:
            known = ", ".join(MEASURES)
            raise UserError(f"score={text!r} has {name!r}; known: {known}.{nearest(name, tuple(MEASURES))}")
        try:
            found.append((float(weight or 1), name))
        except ValueError:
            raise UserError(f"score={text!r} has the weight {weight!r}; write 0.5*{name}.") from None
    return tuple(found)


def needs_rewards(parts: Terms) -> bool:
    """Whether a reward channel is needed."""
    return any(name.startswith("reward") for _, name in parts)


def measured(lanes: Lanes, parts: Terms, chunk: int) -> Float[Array, "R W"]:
    """The weighted sum of the measures of every lane's answer so far."""
    return weighted(lanes, parts, answer_mask(lanes, chunk))


def weighted(lanes: Lanes, parts: Terms, mask: Bool[Array, "R W T"]) -> Float[Array, "R W"]:
    """The weighted sum of the measures of the tokens that the mask has."""
    values = [weight * MEASURES[name](lanes.rewards, lanes.logprobs, mask) for weight, name in parts]
    return jnp.stack(values).sum(axis=0)


def answer_mask(lanes: Lanes, chunk: int) -> Bool[Array, "R W T"]:
    """The places that hold answers of which nothing is committed."""
    place = jnp.arange(lanes.tokens.shape[-1])[None, None, :] - start(lanes, chunk)[..., None]
    return (place >= 0) & (place < lanes.length[..., None])

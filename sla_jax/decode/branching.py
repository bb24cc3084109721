"""Where a search spends its lanes: which (leaf, next token) pairs become branches, and where a chunk ends early.

`wanted[r, w, j]` says that child j of leaf w is to be. Every leaf that is to go on has its child 0, so that a search
which is sure of everything runs at one lane. Each rule takes pairs away; at its neutral value it takes none.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sla_jax.decode.following import Next
from sla_jax.decode.lanes import LOSER, Lanes, Pause

Uncertainty = Literal["entropy", "doubt"]


def unsure(following: Next, kind: Uncertainty) -> Float[Array, "R W"]:
    """How uncertain the policy is of the next token: its entropy in nats, or 1 - the best token's probability."""
    return {"entropy": following.entropy, "doubt": following.doubt}[kind]


def gated(wanted: Bool[Array, "R W n"], uncertainty: Float[Array, "R W"], above: float) -> Bool[Array, "R W n"]:
    """Branch only where the policy's uncertainty is at least `above`."""
    return wanted & ((uncertainty >= above)[..., None] | (jnp.arange(wanted.shape[-1]) == 0)[None, None, :])


def hopeful(wanted: Bool[Array, "R W n"], scores: Float[Array, "R W"], behind: float) -> Bool[Array, "R W n"]:
    """Drop leaves whose score is further than `behind` from the best one's."""
    return wanted & (scores >= scores.max(axis=-1, keepdims=True) - behind)[..., None]


def affordable(
    wanted: Bool[Array, "R W n"], lanes: Lanes, scores: Float[Array, "R W"], budget: int, token_weight: float
) -> Bool[Array, "R W n"]:
    """The `budget` best pairs of each request, by the leaf's score + `token_weight` times the token's log-probability.

    Ties go to the more probable path. A finished leaf needs a lane too, and no token.
    """
    ahead = jnp.where(lanes.finished[..., None], 0.0, lanes.next.logprobs)
    worth = jnp.where(wanted, scores[..., None] + token_weight * ahead, LOSER).reshape(wanted.shape[0], -1)
    order = jnp.argsort(-worth, axis=-1, stable=True)
    place: Int[Array, "R N"] = jnp.argsort(order, axis=-1)
    return wanted & (place < budget).reshape(wanted.shape)


def pause_above(above: float, kind: Uncertainty, least: int) -> Pause:
    """A chunk of at least `least` tokens ends where the next token is this uncertain."""
    return lambda lanes, place: (lanes.read >= least) & (unsure(lanes.next, kind) >= above)

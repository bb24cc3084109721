"""Several answers to one prompt side by side, none of them committed before the end: the moves of decoders that sample
whole answers, and of those that give some of them up on the way.

Every candidate has its own noise, a function of the request's seed, the candidate's number and the text so far: which
lane it is in, who else is there and who was given up changes nothing. Candidate 0 is what plain sampling gives.

A search is a list of phases. In a phase a fixed number of lanes grows, chunk by chunk, to a fixed length; between two
phases some lanes are kept, in fewer lanes with more room each. So shapes are known before anything runs, the keys and
values of those that are given up are really gone, and nothing is read twice.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.choice import Text, follow
from sla_jax.decode.following import choose
from sla_jax.decode.lanes import LOSER, PER_TOKEN, Lanes, Prompts
from sla_jax.decode.steps import Cache, Steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """`lanes` candidates grow until each has `tokens` tokens, which are a whole number of chunks."""

    lanes: int
    tokens: int
    chunk: int

    width = 1

    @property
    def held(self) -> int:
        """Places for uncommitted tokens."""
        return self.tokens


class Pool(NamedTuple):
    """Lanes of R requests and whose they are. `live` are the candidates in play; what has finished in an earlier phase
    is not."""

    lanes: Lanes
    candidate: Int[Array, "R W"]


def plant(
    cache: Cache, logits: Float[Array, "R V"], anchor: Float[Array, "R"], prompts: Prompts, *, phase: Phase
) -> Pool:
    """The state after prefill: a candidate a lane, each with its own first token."""
    root = moves.plant(cache, logits, anchor, prompts, lanes=phase.lanes, held=phase.held, width=1, tops=0)
    slots, count = root.live.shape
    candidate = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None, :], (slots, count))
    path = follow(root.path, candidate)
    text = Text(root.seen, jnp.full((slots, count, 1), -1, jnp.int32), root.length, path, root.ends)
    everywhere = jnp.broadcast_to(logits[:, None], (slots, count, logits.shape[-1]))
    following = choose(prompts.choice, everywhere, text, count=1, tops=0)
    lanes = root._replace(path=path, live=jnp.ones_like(root.live), next=following)
    return Pool(lanes._replace(live=lanes.live & ~lanes.done[:, None]), candidate)


def grow(steps: Steps, pool: Pool, chunk: int) -> Pool:
    """One chunk more in every lane that is in play."""
    same = jnp.broadcast_to(jnp.arange(pool.lanes.live.shape[1])[None, :], pool.lanes.live.shape)
    lanes = moves.begin(steps, pool.lanes, same, chunk)
    lanes = moves.rollout(steps, lanes._replace(level=lanes.level + 1), jnp.zeros_like(same), chunk=chunk)
    return pool._replace(lanes=lanes._replace(done=~jnp.any(lanes.live & ~lanes.finished, axis=-1)))


def survivors(pool: Pool, scores: Float[Array, "R W"], count: int) -> Int[Array, "R n"]:
    """The lanes of the `count` best candidates in play, in the order of their lanes; ties go to the earlier lane."""
    ranked = jnp.where(pool.lanes.live & ~jnp.isnan(scores), scores, LOSER)
    best = jnp.argsort(-ranked, axis=-1, stable=True)[:, :count]
    return jnp.sort(best, axis=-1).astype(jnp.int32)


def keep(steps: Steps, pool: Pool, kept: Int[Array, "R n"], phase: Phase) -> Pool:
    """The `kept` lanes, with the room of the next phase. Who has finished keeps a lane but is no longer in play."""
    lanes = moves.pick(pool.lanes, kept)
    added = phase.tokens - lanes.tokens.shape[-1]

    def roomy(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (added, 0), *[(0, 0)] * (x.ndim - 3)))

    changed: dict[str, Any] = {name: roomy(getattr(lanes, name)) for name in PER_TOKEN}
    cache = steps.regroup(lanes.cache, kept, phase.tokens)
    lanes = lanes._replace(cache=cache, live=lanes.live & ~lanes.finished, **changed)
    return Pool(lanes, moves.take(pool.candidate, kept))

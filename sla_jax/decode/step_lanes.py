"""Lanes that go on step by step: the moves of step beam search and DVTS.

A step ends with a separator (`separator.py`), with the answer, or at max_tokens. Lanes read whole chunks together; one
that has ended its step sleeps until all others have ended theirs. Then some lanes branch. A branch goes on from the
logits that its parent kept, so nothing is read twice. Nothing is committed: every lane holds its whole answer.

Noise is a function of the seed, the branch and the text. A lane's first child keeps its parent's branch, so that where
no lane has a second child, lanes are independent samples, those of Best-of-N.

To look ahead is to roll a copy on, greedily, and to go on from the original.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from sla_jax.decode import lanes as moves
from sla_jax.decode.choice import follow
from sla_jax.decode.following import choose
from sla_jax.decode.lanes import INSIDE, Lanes, Prompts
from sla_jax.decode.measures import Terms, answer_mask, weighted
from sla_jax.decode.pool import Phase
from sla_jax.decode.steps import Cache, Steps


class Walk(NamedTuple):
    """Lanes of R requests; `lanes.live` are the candidates in play."""

    lanes: Lanes
    awake: Bool[Array, "R W"]  # in the middle of a step
    rank: Int[Array, "R W"]  # noted beside the next token: which child begins a step here, or INSIDE


def plant(
    cache: Cache, logits: Float[Array, "R V"], anchor: Float[Array, "R"], prompts: Prompts, *, phase: Phase
) -> Walk:
    """The state after prefill: lane 0 is at the prompt's end, asleep."""
    lanes = moves.plant(cache, logits, anchor, prompts, lanes=phase.lanes, held=phase.held, width=1, tops=0)
    kept = jnp.broadcast_to(logits[:, None], (*lanes.live.shape, logits.shape[-1]))
    lanes = lanes._replace(next=lanes.next._replace(logits=kept))
    return Walk(lanes, jnp.zeros_like(lanes.live), jnp.zeros_like(lanes.length))


def branch(
    steps: Steps, walk: Walk, parents: Int[Array, "R W"], child: Int[Array, "R W"], chunk: int, greedy: Bool[Array, ""]
) -> Walk:
    """New steps begin: lane w as child[r, w] of lane parents[r, w], or not at all where that is negative.

    `greedy` takes the most probable tokens from here on, whatever the request wants. An end token alone is no step: it
    belongs to the one before.
    """
    lanes = moves.begin(steps, walk.lanes, jnp.maximum(parents, 0), chunk)
    live = (child >= 0) & (parents >= 0)
    choice = lanes.choice._replace(temperature=jnp.where(greedy, 0.0, lanes.choice.temperature))
    lanes = lanes._replace(
        live=live,
        choice=choice,
        path=jnp.where(child > 0, follow(lanes.path, child), lanes.path),
        done=~live.any(axis=-1),
    )
    text = moves.text_of(lanes, lanes.tokens.shape[-1] - chunk - 1)
    following = choose(choice, lanes.next.logits, text, count=1, tops=0, keep=True)
    ends = jnp.any(following.tokens == lanes.ends[:, None, :], axis=-1) & (lanes.length > 0)
    rank = jnp.where(ends, INSIDE, jnp.maximum(child, 0))
    return Walk(lanes._replace(next=following), live & ~lanes.finished, rank)


def grow(steps: Steps, walk: Walk, chunk: int, table: UInt8[Array, "S V"], stepping: Bool[Array, ""]) -> Walk:
    """One chunk more in every lane that is awake; unless `stepping`, separators end nothing."""
    same = jnp.broadcast_to(jnp.arange(walk.awake.shape[1])[None, :], walk.awake.shape)
    lanes = moves.begin(steps, walk.lanes._replace(live=walk.awake), same, chunk)

    def pause(lanes: Lanes, place: Array) -> Array:
        return stepping & separated(lanes, jnp.broadcast_to(place, same.shape), table)

    lanes = moves.rollout(steps, lanes, walk.rank, chunk=chunk, pause=pause)
    ended = stepping & separated(lanes, lanes.tokens.shape[-1] - chunk - 1 + lanes.read, table)
    awake = walk.awake & ~lanes.finished & ~ended
    return Walk(lanes._replace(live=walk.lanes.live), awake, jnp.full_like(walk.rank, INSIDE))


def separated(lanes: Lanes, place: Int[Array, "R W"], table: UInt8[Array, "S V"]) -> Bool[Array, "R W"]:
    """Whether the token at `place` completes a separator that began in the same step.

    As many tokens as the separator has bytes are looked at: what it takes to hold one, and no more than that can.
    """
    size = table.shape[0]
    state = jnp.zeros_like(place)
    for back in reversed(range(size)):
        at = jnp.maximum(place - back, 0)[..., None]
        token, rank = (jnp.take_along_axis(x, at, axis=-1)[..., 0] for x in (lanes.tokens, lanes.ranks))
        state = jnp.where((rank != INSIDE) | (state == size), 0, state)
        state = table[state, token].astype(jnp.int32)
    return state == size


def finish(walk: Walk, over: Bool[Array, "R W"]) -> Walk:
    """The answers that are `over` without an end token."""
    lanes = walk.lanes
    return walk._replace(lanes=lanes._replace(finished=lanes.finished | over, stopped=lanes.stopped | over))


def begins(lanes: Lanes, chunk: int) -> Bool[Array, "R W T"]:
    """The places of every answer's first tokens of steps."""
    return answer_mask(lanes, chunk) & (lanes.ranks != INSIDE)


def step_score(lanes: Lanes, terms: Terms, chunk: int) -> Float[Array, "R W"]:
    """The weighted sum of the measures of every lane's last step."""
    places = jnp.arange(lanes.tokens.shape[-1])[None, None, :]
    first = jnp.where(begins(lanes, chunk), places, -1).max(axis=-1)
    return weighted(lanes, terms, answer_mask(lanes, chunk) & (places >= first[..., None]))

"""What is committed, and when: a chunk becomes text as soon as no other branch can win.

A first-level node wins when its best leaf scores highest. That is certain once the tree is full (`depth`), and earlier

- when every live branch is under it: the unbranched first chunk, or a search of width 1;
- when all other first-level nodes have only finished leaves and one of its own finished leaves beats them all: what it
  still grows can only raise its best;
- if `early_margin` is given, when it leads by more than that (this one may differ from the full search).

So text is final, and streamed, at the first moment it can be; and when a search's last leaves have finished, everything
that is left is committed in one round. Only when a chunk is committed depends on this; what is committed does not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.drafting import told
from sla_jax.decode.lanes import INSIDE, LOSER, Lanes
from sla_jax.decode.steps import Steps

TOLD = ("tokens", "rewards", "logprobs", "entropies", "top_ids", "top_logprobs")


class Harvest(NamedTuple):
    """What one round committed: `size[r]` tokens, left-aligned. P is the most that a round can commit."""

    tokens: Int[Array, "R P"]
    rewards: Float[Array, "R P"]
    logprobs: Float[Array, "R P"]
    entropies: Float[Array, "R P"]
    top_ids: Int[Array, "R P A"]
    top_logprobs: Float[Array, "R P A"]
    size: Int[Array, "R"]
    stopped: Bool[Array, "R"]  # the text ended by an end token
    score: Float[Array, "R"]  # the winner's best leaf at the last commit, relative to the anchor
    margin: Float[Array, "R"]  # score minus the best of the other first-level nodes; inf when there was none


class Winner(NamedTuple):
    """The leading first-level node of every request."""

    ready: Bool[Array, "R"]  # its chunk can be committed
    rank: Int[Array, "R"]
    lane: Int[Array, "R"]  # its best leaf
    score: Float[Array, "R"]
    margin: Float[Array, "R"]


def settle(
    steps: Steps,
    lanes: Lanes,
    *,
    width: int,
    depth: int,
    chunk: int,
    early_margin: float | None = None,
    logprob_weight: float = 0.0,
) -> tuple[Lanes, Harvest]:
    """Commit chunk after chunk, in every request where the next one is decided."""

    def lead(lanes: Lanes) -> Winner:
        scores = moves.score(lanes, logprob_weight)
        return winner(lanes, scores, width=width, depth=depth, chunk=chunk, early_margin=early_margin)

    def going(carry: tuple[Lanes, Harvest, Winner]) -> Array:
        return jnp.any(carry[2].ready)

    def once(carry: tuple[Lanes, Harvest, Winner]) -> tuple[Lanes, Harvest, Winner]:
        lanes, harvest, won = carry
        lanes, harvest = commit(steps, lanes, harvest, won, chunk=chunk)
        return lanes, harvest, lead(lanes)

    lanes, harvest, _ = jax.lax.while_loop(going, once, (lanes, _nothing(lanes), lead(lanes)))
    return lanes._replace(history=told(lanes.history, harvest.tokens, harvest.size)), harvest


def winner(
    lanes: Lanes, scores: Float[Array, "R W"], *, width: int, depth: int, chunk: int, early_margin: float | None
) -> Winner:
    """The first-level node with the best leaf (ties: the first, being more probable), and whether that is final."""
    under = lanes.live[:, None] & (_first(lanes, chunk)[:, None] == jnp.arange(width)[None, :, None])  # R n W
    best = jnp.where(under, scores[:, None], LOSER).max(axis=-1)
    ended = jnp.where(under & lanes.finished[:, None], scores[:, None], LOSER).max(axis=-1)
    rank = jnp.argmax(best, axis=-1).astype(jnp.int32)
    mine = jnp.arange(width)[None, :] == rank[:, None]
    lane = jnp.argmax(jnp.where(_row(under, rank), scores, LOSER), axis=-1).astype(jnp.int32)
    before = jnp.arange(width)[None, :] < rank[:, None]
    sure = _row(ended, rank)[:, None]
    beaten = jnp.where(before, best < sure, best <= sure) & ~(under & ~lanes.finished[:, None]).any(axis=-1)
    decided = (mine | beaten | ~under.any(axis=-1)).all(axis=-1)
    others = jnp.where(mine, LOSER, best).max(axis=-1)
    score = _row(best, rank)
    if early_margin is not None:
        decided |= score - others > early_margin
    ready = (decided | (lanes.level > depth)) & (lanes.level > 0) & ~lanes.done
    return Winner(ready, rank, lane, score, score - others)


def commit(steps: Steps, lanes: Lanes, harvest: Harvest, won: Winner, *, chunk: int) -> tuple[Lanes, Harvest]:
    """The winner's chunk becomes text and its siblings leave the tree, in every request that is ready."""
    start = jnp.minimum(_row(moves.start(lanes, chunk), won.lane), lanes.tokens.shape[-1] - chunk)
    held = _row(moves.held(lanes), won.lane)
    span = _span(_row(lanes.ranks, won.lane), start, held, chunk)
    count = jnp.where(won.ready, span, 0)
    ended = won.ready & _row(lanes.finished, won.lane) & (held <= span)
    harvest = _gathered(harvest, lanes, won, start, count, chunk)
    kept = lanes.live & ((_first(lanes, chunk) == won.rank[:, None]) | ~won.ready[:, None])
    lanes = lanes._replace(
        cache=steps.commit(lanes.cache, won.lane, start, count),
        live=kept,
        level=lanes.level - won.ready.astype(jnp.int32),
        committed=lanes.committed + count,
        done=lanes.done | ended,
        seen=_seen(lanes, won.lane, start, count, chunk),
    )
    return lanes, harvest


def _first(lanes: Lanes, chunk: int) -> Int[Array, "R W"]:
    """The first-level node that each lane is under: its rank among the children of the committed text."""
    place = jnp.minimum(moves.start(lanes, chunk), lanes.tokens.shape[-1] - 1)
    return jnp.take_along_axis(lanes.ranks, place[..., None], axis=2)[..., 0]


def _span(ranks: Int[Array, "R T"], start: Int[Array, "R"], held: Int[Array, "R"], chunk: int) -> Int[Array, "R"]:
    """Tokens of the chunk that begins at place start[r]: up to where the next begins, or all that is held."""
    ahead = jnp.arange(1, chunk)[None, :]
    place = jnp.minimum(start[:, None] + ahead, ranks.shape[1] - 1)
    begins = jnp.take_along_axis(ranks, place, axis=1) != INSIDE
    return jnp.minimum(jnp.where(begins, ahead, chunk).min(axis=1, initial=chunk), held)


def _nothing(lanes: Lanes) -> Harvest:
    """A harvest before the first commit."""
    empty: dict[str, Any] = {name: jnp.zeros_like(getattr(lanes, name)[:, 0]) for name in TOLD}
    zero = jnp.zeros_like(lanes.anchor)
    return Harvest(**empty, size=lanes.level * 0, stopped=lanes.done & False, score=zero, margin=zero + jnp.inf)


def _gathered(harvest: Harvest, lanes: Lanes, won: Winner, start: Array, count: Array, chunk: int) -> Harvest:
    """The harvest with the winner's chunk behind what it holds."""

    def add(old: Array, buffer: Array) -> Array:
        def one(old: Array, buffer: Array, lane: Array, start: Array, size: Array, count: Array) -> Array:
            piece = jax.lax.dynamic_slice_in_dim(buffer[lane], start, chunk)
            inside = (jnp.arange(chunk) < count).reshape(-1, *[1] * (piece.ndim - 1))
            piece = jnp.where(inside, piece, jnp.zeros_like(piece))
            return jax.lax.dynamic_update_slice_in_dim(old, piece, size, 0)

        new = jax.vmap(one)(old, buffer, won.lane, start, harvest.size, count)
        return jnp.where(won.ready.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    added: dict[str, Any] = {name: add(getattr(harvest, name), getattr(lanes, name)) for name in TOLD}
    return harvest._replace(
        **added,
        size=harvest.size + count,
        stopped=harvest.stopped | (won.ready & _row(lanes.stopped, won.lane)),
        score=jnp.where(won.ready, won.score, harvest.score),
        margin=jnp.where(won.ready, won.margin, harvest.margin),
    )


def _seen(lanes: Lanes, lane: Array, start: Array, count: Array, chunk: int) -> Int[Array, "R V"]:
    """Counts of the committed response's tokens, the new chunk included."""
    place = start[:, None] + jnp.arange(chunk)[None, :]
    tokens = jnp.take_along_axis(_row(lanes.tokens, lane), place, axis=1)
    new = jnp.arange(chunk)[None, :] < count[:, None]
    rows = jnp.arange(len(lane))[:, None]
    return lanes.seen.at[rows, jnp.where(new, tokens, lanes.seen.shape[1])].add(2)


def _row(x: Array, index: Int[Array, "R"]) -> Array:
    """x[r, index[r]]."""
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]

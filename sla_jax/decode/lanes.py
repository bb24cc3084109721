"""The lane state and the moves that every decoder composes.

R requests are decoded at once, W lanes each. Under a request's committed text hangs a tree of chunks; its leaves occupy
lanes `base, base+1, …` in the order of their paths, so that with `width` children per leaf the children of the i-th
leaf are the lanes i·width … i·width+width-1 of the next chunk, and the lanes under the j-th first-level node are the
j-th block of width^depth lanes. Tokens not yet committed are right-aligned in T places, like the cache's suffix.

Rewards are summed relative to the reward at the prompt's last token, so that a constant reward gives every leaf exactly
the same score at any length (and the tie goes to the more probable branch, which is greedy's).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sla_jax.decode.steps import Cache, Steps

LOSER = -jnp.inf  # the score of a lane that is not in the tree


class Lanes(NamedTuple):
    """R requests × W lanes. `total` and `length` cover the whole response so far, committed text included."""

    cache: Cache
    tokens: Int[Array, "R W T"]  # uncommitted, right-aligned by chunk
    rewards: Float[Array, "R W T"]
    logprobs: Float[Array, "R W T"]
    total: Float[Array, "R W"]  # Σ (reward − anchor)
    length: Int[Array, "R W"]  # response tokens
    live: Bool[Array, "R W"]  # in the tree
    finished: Bool[Array, "R W"]  # ended by an end token or at the limit
    stopped: Bool[Array, "R W"]  # ended by an end token
    next_tokens: Int[Array, "R W n"]  # the most probable continuations, best first
    next_logprobs: Float[Array, "R W n"]
    base: Int[Array, "R"]  # the lane of the first leaf
    level: Int[Array, "R"]  # chunks between the committed text and an unfinished leaf
    committed: Int[Array, "R"]  # response tokens committed
    explored: Int[Array, "R"]  # tokens read in live lanes so far
    done: Bool[Array, "R"]
    anchor: Float[Array, "R"]
    limit: Int[Array, "R"]  # max_tokens
    ends: Int[Array, "R E"]  # end tokens, padded with -1


def plant(
    cache: Cache,
    logits: Float[Array, "R V"],
    anchor: Float[Array, "R"],
    limit: Int[Array, "R"],
    ends: Int[Array, "R E"],
    *,
    lanes: int,
    held: int,
    width: int,
) -> Lanes:
    """The state after prefill: one leaf (lane 0), the prompt's end, with its `width` best next tokens."""
    slots = limit.shape[0]
    tokens, logprobs = top(logits, width)
    zeros = jnp.zeros((slots,), jnp.int32)
    per_lane = jnp.zeros((slots, lanes), jnp.int32)
    nothing = jnp.zeros((slots, lanes, held), jnp.float32)
    return Lanes(
        cache=cache,
        tokens=nothing.astype(jnp.int32),
        rewards=nothing,
        logprobs=nothing,
        total=per_lane.astype(jnp.float32),
        length=per_lane,
        live=jnp.broadcast_to(jnp.arange(lanes)[None, :] == 0, (slots, lanes)),
        finished=per_lane > 0,
        stopped=per_lane > 0,
        next_tokens=jnp.broadcast_to(tokens[:, None], (slots, lanes, width)),
        next_logprobs=jnp.broadcast_to(logprobs[:, None], (slots, lanes, width)),
        base=zeros,
        level=zeros,
        committed=zeros,
        explored=zeros,
        done=limit <= 0,
        anchor=anchor,
        limit=limit,
        ends=ends,
    )


def top(logits: Float[Array, "*B V"], n: int) -> tuple[Int[Array, "*B n"], Float[Array, "*B n"]]:
    """The n most probable tokens, best first (ties: lower id), and their log-probabilities. n passes of argmax."""
    norm = jax.nn.logsumexp(logits, axis=-1)
    tokens, logprobs = [], []
    for _ in range(n):
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens.append(best)
        logprobs.append(jnp.take_along_axis(logits, best[..., None], axis=-1)[..., 0] - norm)
        vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        logits = jnp.where(vocabulary == best[..., None], -jnp.inf, logits)
    return jnp.stack(tokens, axis=-1), jnp.stack(logprobs, axis=-1)


def gather(lanes: Lanes, parents: Int[Array, "R W"], chunk: int) -> Lanes:
    """Lane w goes on from lane parents[r, w]; its uncommitted tokens move left by one chunk."""

    def shifted(x: Array) -> Array:
        kept = jnp.take_along_axis(x[:, :, chunk:], parents[..., None], axis=1)
        return jnp.pad(kept, ((0, 0), (0, 0), (0, chunk)))

    def moved(x: Array) -> Array:
        return jnp.take_along_axis(x, parents.reshape(*parents.shape, *[1] * (x.ndim - 2)), axis=1)

    per_token = {name: shifted(getattr(lanes, name)) for name in ("tokens", "rewards", "logprobs")}
    names = ("total", "length", "live", "finished", "stopped", "next_tokens", "next_logprobs")
    return lanes._replace(**per_token, **{name: moved(getattr(lanes, name)) for name in names})


def expand(
    steps: Steps, lanes: Lanes, width: Int[Array, "R"], *, children: int, chunk: int
) -> tuple[Lanes, Int[Array, "R W"], Float[Array, "R W"]]:
    """Give every unfinished leaf its `width` most probable next tokens as children; a finished leaf keeps its place.

    `children` is the lanes' fan-out (static); `width` ≤ children is how many of them are used by each request.
    Returns the lanes of the new chunk, their first tokens and those tokens' log-probabilities.
    """
    slots, count = lanes.live.shape
    lane = jnp.arange(count)
    parents = jnp.minimum(lanes.base[:, None] + lane[None, :] // children, count - 1)
    child = jnp.broadcast_to(lane % children, (slots, count))
    lanes = gather(lanes, parents, chunk)
    used = jnp.where(lanes.finished, 1, width[:, None])
    leaves = children ** (lanes.level + 1)
    live = lanes.live & (child < used) & (lane[None, :] < leaves[:, None]) & ~lanes.done[:, None]
    tokens = jnp.take_along_axis(lanes.next_tokens, child[..., None], axis=2)[..., 0]
    logprobs = jnp.take_along_axis(lanes.next_logprobs, child[..., None], axis=2)[..., 0]
    cache = steps.fork(lanes.cache, parents, lanes.level * chunk)
    return lanes._replace(cache=cache, live=live, level=lanes.level + 1), tokens, logprobs


def rollout(
    steps: Steps, lanes: Lanes, tokens: Int[Array, "R W"], logprobs: Float[Array, "R W"], *, vocabulary: int, chunk: int
) -> Lanes:
    """Read `tokens`, then go on greedily, until the chunk has `chunk` tokens or no lane is left unfinished."""
    width = lanes.next_tokens.shape[-1]

    def going(carry: tuple) -> Array:
        t, lanes, *_ = carry
        return (t < chunk) & jnp.any(lanes.live & ~lanes.finished)

    def advance(carry: tuple) -> tuple:
        t, lanes, tokens, logprobs, _ = carry
        logits, reward, cache = steps.step(tokens, t, lanes.cache)
        lanes = _record(lanes._replace(cache=cache), tokens, logprobs, reward, t - chunk)
        tokens, logprobs = (x[..., 0] for x in top(logits, 1))
        return t + 1, lanes, tokens, logprobs, logits

    logits = jnp.zeros((*tokens.shape, vocabulary), jnp.float32)
    _, lanes, _, _, logits = jax.lax.while_loop(going, advance, (jnp.int32(0), lanes, tokens, logprobs, logits))
    tokens, logprobs = top(logits, width)
    return lanes._replace(next_tokens=tokens, next_logprobs=logprobs)


def score(lanes: Lanes) -> Float[Array, "R W"]:
    """Mean reward of the whole response up to each leaf, relative to the anchor; LOSER outside the tree."""
    return jnp.where(lanes.live, lanes.total / jnp.maximum(lanes.length, 1).astype(jnp.float32), LOSER)


def select(scores: Float[Array, "R W"], blocks: int) -> tuple[Array, Array, Array, Array]:
    """The first-level node with the best leaf (ties: the first, being more probable).

    Returns per request: the winning block, its best lane, its score, and the best score of any other block.
    """
    slots, count = scores.shape
    grouped = scores.reshape(slots, blocks, count // blocks)
    best = grouped.max(axis=-1)
    block = jnp.argmax(best, axis=-1).astype(jnp.int32)
    inside = jnp.take_along_axis(grouped, block[:, None, None], axis=1)[:, 0]
    lane = block * (count // blocks) + jnp.argmax(inside, axis=-1).astype(jnp.int32)
    others = jnp.where(jnp.arange(blocks)[None, :] == block[:, None], LOSER, best).max(axis=-1)
    return block, lane, jnp.take_along_axis(best, block[:, None], axis=1)[:, 0], others


def commit(
    steps: Steps, lanes: Lanes, lane: Int[Array, "R"], ready: Bool[Array, "R"], *, chunk: int
) -> tuple[Lanes, Int[Array, "R"], Int[Array, "R"]]:
    """Commit the oldest uncommitted chunk of lane[r] where `ready`; returns also each chunk's start place and count."""
    places = lanes.tokens.shape[-1]
    start = jnp.maximum(places - chunk * lanes.level, 0)
    held = _pick(lanes.length, lane) - lanes.committed
    count = jnp.where(ready & ~lanes.done, jnp.minimum(held, chunk), 0)
    done = lanes.done | (ready & _pick(lanes.finished, lane) & (held <= chunk))
    cache = steps.commit(lanes.cache, lane, start, count)
    level = lanes.level - ready.astype(jnp.int32)
    return lanes._replace(cache=cache, level=level, committed=lanes.committed + count, done=done), start, count


def _record(lanes: Lanes, tokens: Array, logprobs: Array, reward: Array, place: Array) -> Lanes:
    """Append the token just read to every unfinished live lane, at `place` (negative: from the right)."""
    active = lanes.live & ~lanes.finished
    place = lanes.tokens.shape[-1] + place

    def put(buffer: Array, value: Array) -> Array:
        value = jnp.where(active, value, jnp.zeros_like(value)).astype(buffer.dtype)
        return jax.lax.dynamic_update_slice(buffer, value[..., None], (0, 0, place))

    length = lanes.length + active.astype(jnp.int32)
    ended = active & jnp.any(tokens[..., None] == lanes.ends[:, None, :], axis=-1)
    return lanes._replace(
        tokens=put(lanes.tokens, tokens),
        rewards=put(lanes.rewards, reward),
        logprobs=put(lanes.logprobs, logprobs),
        total=lanes.total + jnp.where(active, reward - lanes.anchor[:, None], 0.0),
        length=length,
        stopped=lanes.stopped | ended,
        finished=lanes.finished | ended | (active & (length >= lanes.limit[:, None])),
        explored=lanes.explored + active.sum(axis=-1, dtype=jnp.int32),
    )


def _pick(x: Array, lane: Int[Array, "R"]) -> Array:
    return jnp.take_along_axis(x, lane[:, None], axis=1)[:, 0]

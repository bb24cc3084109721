"""The lane state and the moves that every decoder composes.

R requests are decoded at once, W lanes each. Under a request's committed text hangs a tree of chunks; its leaves occupy
lanes `base, base+1, …` in the order of their paths, so that with `width` children per leaf the children of the i-th
leaf are the lanes i·width … i·width+width-1 of the next chunk, and with `level` chunks in the tree the lanes under the
j-th first-level node are the j-th block of width^(level-1) lanes. Tokens not yet committed are right-aligned in T
places, like the cache's suffix. What is committed, and when, is in `settle.py`.

Rewards are summed relative to the reward at the prompt's last token, so that a constant reward gives every leaf exactly
the same score at any length (and the tie goes to the more probable branch, which is greedy's).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from sla_jax.decode.choice import IMPOSSIBLE, Choice, Text, follow, quiet, ranking
from sla_jax.decode.steps import Cache, Steps

LOSER = -jnp.inf  # the score of a lane that is not in the tree


class Next(NamedTuple):
    """The tokens that may follow each lane's text, best first; n is 1 while a lane rolls on."""

    tokens: Int[Array, "R W n"]
    logprobs: Float[Array, "R W n"]  # of the model itself; IMPOSSIBLE where there are fewer than n to choose from
    top_ids: Int[Array, "R W A"]  # the model's own A best, for those who asked
    top_logprobs: Float[Array, "R W A"]


class Lanes(NamedTuple):
    """R requests × W lanes. `total` and `length` cover the whole response so far, committed text included."""

    cache: Cache
    tokens: Int[Array, "R W T"]  # uncommitted, right-aligned by chunk
    rewards: Float[Array, "R W T"]
    logprobs: Float[Array, "R W T"]
    top_ids: Int[Array, "R W T A"]
    top_logprobs: Float[Array, "R W T A"]
    total: Float[Array, "R W"]  # Σ (reward − anchor)
    length: Int[Array, "R W"]  # response tokens
    path: UInt32[Array, "R W"]  # a hash of the response
    live: Bool[Array, "R W"]  # in the tree
    finished: Bool[Array, "R W"]  # ended by an end token or at the limit
    stopped: Bool[Array, "R W"]  # ended by an end token
    next: Next
    base: Int[Array, "R"]  # the lane of the first leaf
    level: Int[Array, "R"]  # chunks between the committed text and an unfinished leaf
    committed: Int[Array, "R"]  # response tokens committed
    explored: Int[Array, "R"]  # tokens read in live lanes so far
    steps: Int[Array, "R"]  # forward passes that read any of them
    done: Bool[Array, "R"]
    anchor: Float[Array, "R"]
    limit: Int[Array, "R"]  # max_tokens
    ends: Int[Array, "R E"]  # end tokens, padded with -1
    choice: Choice
    seen: Int[Array, "R V"]  # see `choice.Text`


class Prompts(NamedTuple):
    """What a request brings, as arrays: right-padded token ids and everything that is per request."""

    tokens: Int[Array, "R P"]
    lengths: Int[Array, "R"]
    limit: Int[Array, "R"]
    ends: Int[Array, "R E"]
    choice: Choice


def plant(
    cache: Cache,
    logits: Float[Array, "R V"],
    anchor: Float[Array, "R"],
    prompts: Prompts,
    *,
    lanes: int,
    held: int,
    width: int,
    tops: int,
) -> Lanes:
    """The state after prefill: one leaf (lane 0), the prompt's end, with its `width` best next tokens."""
    slots, size = logits.shape
    zeros = jnp.zeros((slots,), jnp.int32)
    one = zeros[:, None]
    text = Text(_prompt_seen(prompts, size), one[..., None] - 1, one, one.astype(jnp.uint32), prompts.ends)
    following = choose(prompts.choice, logits[:, None], text, count=width, tops=tops)
    per_lane = jnp.zeros((slots, lanes), jnp.int32)
    nothing = jnp.zeros((slots, lanes, held), jnp.float32)
    beside = jnp.zeros((slots, lanes, held, tops), jnp.float32)
    return Lanes(
        cache=cache,
        tokens=nothing.astype(jnp.int32),
        rewards=nothing,
        logprobs=nothing,
        top_ids=beside.astype(jnp.int32),
        top_logprobs=beside,
        total=per_lane.astype(jnp.float32),
        length=per_lane,
        path=per_lane.astype(jnp.uint32),
        live=jnp.broadcast_to(jnp.arange(lanes)[None, :] == 0, (slots, lanes)),
        finished=per_lane > 0,
        stopped=per_lane > 0,
        next=jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, lanes, x.shape[2])), following),
        base=zeros,
        level=zeros,
        committed=zeros,
        explored=zeros,
        steps=zeros,
        done=prompts.limit <= 0,
        anchor=anchor,
        limit=prompts.limit,
        ends=prompts.ends,
        choice=prompts.choice,
        seen=text.seen,
    )


def choose(
    choice: Choice, logits: Float[Array, "R W V"], text: Text, *, count: int, tops: int, full: Array | bool = True
) -> Next:
    """The `count` next tokens of every lane, best first, as each request wants them chosen; one unless `full`."""
    tokens, logprobs = top(ranking(choice, logits, text), logits, count, full)
    shape = (*logits.shape[:2], tops)
    nothing = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    if tops == 0:
        return Next(tokens, logprobs, *nothing)
    beside = jax.lax.cond(jnp.any(choice.tops > 0), lambda: _best(logits, tops), lambda: nothing)
    return Next(tokens, logprobs, *beside)


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


def gather(lanes: Lanes, parents: Int[Array, "R W"], chunk: int) -> Lanes:
    """Lane w goes on from lane parents[r, w]; its uncommitted tokens move left by one chunk."""

    def moved(x: Array) -> Array:
        return jnp.take_along_axis(x, parents.reshape(*parents.shape, *[1] * (x.ndim - 2)), axis=1)

    def shifted(x: Array) -> Array:
        return jnp.pad(moved(x[:, :, chunk:]), ((0, 0), (0, 0), (0, chunk), *[(0, 0)] * (x.ndim - 3)))

    per_token = ("tokens", "rewards", "logprobs", "top_ids", "top_logprobs")
    per_lane = ("total", "length", "path", "live", "finished", "stopped", "next")
    changed: dict[str, Any] = {name: shifted(getattr(lanes, name)) for name in per_token}
    changed |= {name: jax.tree.map(moved, getattr(lanes, name)) for name in per_lane}
    return lanes._replace(**changed)


def expand(steps: Steps, lanes: Lanes, width: Int[Array, "R"], *, children: int, chunk: int) -> tuple[Lanes, Next]:
    """Give every unfinished leaf its `width` most probable next tokens as children; a finished leaf keeps its place.

    `children` is the lanes' fan-out (static); `width` ≤ children is how many of them are used by each request.
    Returns the lanes of the new chunk and their first tokens.
    """
    slots, count = lanes.live.shape
    lane = jnp.arange(count)
    parents = jnp.minimum(lanes.base[:, None] + lane[None, :] // children, count - 1)
    child = jnp.broadcast_to(lane % children, (slots, count))
    lanes = gather(lanes, parents, chunk)
    tokens, logprobs = (
        jnp.take_along_axis(x, child[..., None], axis=2) for x in (lanes.next.tokens, lanes.next.logprobs)
    )
    used = jnp.where(lanes.finished, 1, width[:, None])
    leaves = children ** (lanes.level + 1)
    possible = (logprobs[..., 0] != IMPOSSIBLE) | (child == 0)
    live = lanes.live & (child < used) & possible & (lane[None, :] < leaves[:, None]) & ~lanes.done[:, None]
    cache = steps.fork(lanes.cache, parents, lanes.level * chunk)
    lanes = lanes._replace(cache=cache, live=live, level=lanes.level + 1, base=jnp.zeros_like(lanes.base))
    return lanes, lanes.next._replace(tokens=tokens, logprobs=logprobs)


def rollout(steps: Steps, lanes: Lanes, first: Next, *, chunk: int) -> Lanes:
    """Read the first tokens, then go on one by one, until the chunk is full or no lane is left unfinished."""
    width, places, tops = lanes.next.tokens.shape[-1], lanes.tokens.shape[-1], lanes.top_ids.shape[-1]
    choice = quiet(lanes.choice, lanes.done)

    def going(carry: tuple[Array, Lanes]) -> Array:
        t, lanes = carry
        return (t < chunk) & jnp.any(lanes.live & ~lanes.finished)

    def advance(carry: tuple[Array, Lanes]) -> tuple[Array, Lanes]:
        t, lanes = carry
        place = places - chunk + t
        logits, reward, cache = steps.step(lanes.next.tokens[..., 0], t, lanes.cache)
        lanes = _record(lanes._replace(cache=cache), lanes.next, reward, place)
        last = t == chunk - 1
        following = choose(choice, logits, _text(lanes, place), count=width, tops=tops, full=last)
        return t + 1, lanes._replace(next=following)

    tokens, logprobs = (
        jnp.broadcast_to(x, (*x.shape[:2], width)) for x in (first.tokens[..., :1], first.logprobs[..., :1])
    )
    lanes = lanes._replace(next=first._replace(tokens=tokens, logprobs=logprobs))
    return jax.lax.while_loop(going, advance, (jnp.int32(0), lanes))[1]


def score(lanes: Lanes) -> Float[Array, "R W"]:
    """Mean reward of the whole response up to each leaf, relative to the anchor; LOSER outside the tree."""
    return jnp.where(lanes.live, lanes.total / jnp.maximum(lanes.length, 1).astype(jnp.float32), LOSER)


def _best(logits: Float[Array, "R W V"], count: int) -> tuple[Int[Array, "R W A"], Float[Array, "R W A"]]:
    best, ids = jax.lax.top_k(logits, count)
    return ids.astype(jnp.int32), best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _prompt_seen(prompts: Prompts, size: int) -> Int[Array, "R V"]:
    slots, places = prompts.tokens.shape
    inside = jnp.arange(places)[None, :] < prompts.lengths[:, None]
    rows = jnp.arange(slots)[:, None]
    return jnp.zeros((slots, size), jnp.int32).at[rows, jnp.where(inside, prompts.tokens, size)].set(1)


def _text(lanes: Lanes, last: Array | int) -> Text:
    """The response of every unfinished lane, whose newest token is at place `last`."""
    place = jnp.arange(lanes.tokens.shape[-1])[None, None, :]
    first = last + 1 - (lanes.length - lanes.committed[:, None])
    recent = jnp.where((place >= first[..., None]) & (place <= last), lanes.tokens, -1)
    return Text(lanes.seen, recent, lanes.length, lanes.path, lanes.ends)


def _record(lanes: Lanes, read: Next, reward: Array, place: Array) -> Lanes:
    """Append the token just read to every unfinished live lane, at `place`."""
    active = lanes.live & ~lanes.finished
    tokens = read.tokens[..., 0]

    def put(buffer: Array, value: Array) -> Array:
        use = active.reshape(*active.shape, *[1] * (value.ndim - 2))
        value = jnp.where(use, value, jnp.zeros_like(value)).astype(buffer.dtype)
        return jax.lax.dynamic_update_slice(buffer, value[:, :, None], (0, 0, place, *[0] * (value.ndim - 2)))

    length = lanes.length + active.astype(jnp.int32)
    ended = active & jnp.any(tokens[..., None] == lanes.ends[:, None, :], axis=-1)
    return lanes._replace(
        tokens=put(lanes.tokens, tokens),
        rewards=put(lanes.rewards, reward),
        logprobs=put(lanes.logprobs, read.logprobs[..., 0]),
        top_ids=put(lanes.top_ids, read.top_ids),
        top_logprobs=put(lanes.top_logprobs, read.top_logprobs),
        total=lanes.total + jnp.where(active, reward - lanes.anchor[:, None], 0.0),
        length=length,
        path=jnp.where(active, follow(lanes.path, tokens), lanes.path),
        stopped=lanes.stopped | ended,
        finished=lanes.finished | ended | (active & (length >= lanes.limit[:, None])),
        explored=lanes.explored + active.sum(axis=-1, dtype=jnp.int32),
        steps=lanes.steps + active.any(axis=-1).astype(jnp.int32),
    )

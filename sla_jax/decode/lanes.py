"""The lane state and the moves that every decoder composes.

R requests are decoded at once, W lanes each. Under a request's committed text hangs a tree of chunks; its leaves are
the `live` lanes, in the order of their paths, the first ones of the W. Tokens not yet committed are right-aligned in T
places, like the cache's suffix: when a chunk of k tokens begins, every lane's last token is at place T-k-1; while it
grows, token t of it is at place T-k+t. A lane may end its chunk early (`rollout`'s `pause`), so lanes hold different
numbers of tokens: `length - committed`. Which child of its parent a chunk was is noted beside its first token
(`ranks`), so the first-level node that a lane is under is the rank at its first uncommitted place.
What is committed, and when, is in `settle.py`.

Rewards are summed relative to the reward at the prompt's last token, so that a constant reward gives every leaf exactly
the same score at any length (and the tie goes to the more probable branch, which is greedy's).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from sla_jax.decode.choice import IMPOSSIBLE, Choice, Text, follow, quiet
from sla_jax.decode.drafting import History, begun
from sla_jax.decode.following import Next, choose, where
from sla_jax.decode.steps import Cache, Steps

LOSER = -jnp.inf  # the score of a lane that is not in the tree
INSIDE = -1  # the rank beside a token that does not begin a chunk
PER_TOKEN = ("tokens", "rewards", "logprobs", "entropies", "ranks", "top_ids", "top_logprobs")
PER_LANE = ("total", "likelihood", "length", "path", "live", "finished", "stopped", "parent", "read", "next")


class Lanes(NamedTuple):
    """R requests × W lanes. `total`, `likelihood` and `length` cover the whole response so far, committed included."""

    cache: Cache
    tokens: Int[Array, "R W T"]  # uncommitted, right-aligned
    rewards: Float[Array, "R W T"]
    logprobs: Float[Array, "R W T"]
    entropies: Float[Array, "R W T"]  # of the distributions that the tokens were taken from
    ranks: Int[Array, "R W T"]  # which child a chunk is, beside its first token; INSIDE beside the others
    top_ids: Int[Array, "R W T A"]
    top_logprobs: Float[Array, "R W T A"]
    total: Float[Array, "R W"]  # Σ (reward − anchor)
    likelihood: Float[Array, "R W"]  # Σ log-probability
    length: Int[Array, "R W"]  # response tokens
    path: UInt32[Array, "R W"]  # a hash of the response
    live: Bool[Array, "R W"]  # in the tree
    finished: Bool[Array, "R W"]  # ended by an end token or at the limit
    stopped: Bool[Array, "R W"]  # ended by an end token
    parent: Int[Array, "R W"]  # the lane, a round ago, that this one went on from; -1: not in the tree when it began
    read: Int[Array, "R W"]  # tokens read in the latest chunk
    next: Next
    level: Int[Array, "R"]  # chunks between the committed text and an unfinished leaf
    committed: Int[Array, "R"]  # response tokens committed
    explored: Int[Array, "R"]  # tokens read in live lanes so far
    steps: Int[Array, "R"]  # forward passes that read any of them
    lane_steps: Int[Array, "R"]  # rows of those passes, alive or not
    drafted: Int[Array, "R"]  # tokens guessed and read along (`speculation.py`)
    accepted: Int[Array, "R"]  # of those, the ones that were right
    history: History
    done: Bool[Array, "R"]
    anchor: Float[Array, "R"]
    limit: Int[Array, "R"]  # max_tokens
    ends: Int[Array, "R E"]  # end tokens, padded with -1
    choice: Choice
    seen: Int[Array, "R V"]  # see `choice.Text`


# (lanes that have just read, the place read: [], or [R, W] where lanes go at their own pace) → who stops here
Pause = Callable[[Lanes, Array], Bool[Array, "R W"]]
# (steps, lanes, rank, chunk, pause) → the lanes after a chunk: one token a pass, or `speculation.py`
Roll = Callable[[Steps, Lanes, Array, int, Pause | None], Lanes]


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
    draft: int = 0,
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
        entropies=nothing,
        ranks=nothing.astype(jnp.int32),
        top_ids=beside.astype(jnp.int32),
        top_logprobs=beside,
        total=per_lane.astype(jnp.float32),
        likelihood=per_lane.astype(jnp.float32),
        length=per_lane,
        path=per_lane.astype(jnp.uint32),
        live=jnp.broadcast_to(jnp.arange(lanes)[None, :] == 0, (slots, lanes)),
        finished=per_lane > 0,
        stopped=per_lane > 0,
        parent=per_lane,
        read=per_lane,
        next=jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, lanes, *x.shape[2:])), following),
        level=zeros,
        committed=zeros,
        explored=zeros,
        steps=zeros,
        lane_steps=zeros,
        drafted=zeros,
        accepted=zeros,
        history=begun(prompts.tokens, prompts.lengths, lanes=lanes, held=held, draft=draft),
        done=prompts.limit <= 0,
        anchor=anchor,
        limit=prompts.limit,
        ends=prompts.ends,
        choice=prompts.choice,
        seen=text.seen,
    )


def held(lanes: Lanes) -> Int[Array, "R W"]:
    """Uncommitted tokens of every lane."""
    return jnp.maximum(lanes.length - lanes.committed[:, None], 0)


def start(lanes: Lanes, chunk: int) -> Int[Array, "R W"]:
    """The place of every lane's first uncommitted token, after a chunk."""
    return jnp.maximum(lanes.tokens.shape[-1] - chunk + lanes.read - held(lanes), 0)


def begin(steps: Steps, lanes: Lanes, parents: Int[Array, "R W"], chunk: int) -> Lanes:
    """A new chunk: lane w goes on from lane parents[r, w], whose tokens move left by what it has read of the last."""
    read = take(lanes.read, parents)
    cache = steps.fork(lanes.cache, parents, take(held(lanes), parents), read)
    lanes = pick(lanes, parents)
    places = lanes.tokens.shape[-1]
    index = jnp.minimum(jnp.arange(places)[None, None, :] + read[..., None], places - 1)

    def shifted(x: Array) -> Array:
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 3)), axis=2)

    changed: dict[str, Any] = {name: shifted(getattr(lanes, name)) for name in PER_TOKEN}
    return lanes._replace(cache=cache, read=jnp.zeros_like(read), parent=parents, **changed)


def pick(lanes: Lanes, parents: Int[Array, "R w"]) -> Lanes:
    """All that is kept per lane and per token, of the lanes `parents`; the cache stays."""
    names = (*PER_TOKEN, *PER_LANE)
    return lanes._replace(**{name: jax.tree.map(lambda x: take(x, parents), getattr(lanes, name)) for name in names})


def take(x: Array, lane: Int[Array, "R w"]) -> Array:
    """x[r, lane[r, w]]."""
    return jnp.take_along_axis(x, lane.reshape(*lane.shape, *[1] * (x.ndim - 2)), axis=1)


def expand(steps: Steps, lanes: Lanes, wanted: Bool[Array, "R W n"], *, chunk: int) -> tuple[Lanes, Int[Array, "R W"]]:
    """The tree's next leaves: child j of leaf w for every `wanted[r, w, j]`, of which there are at most W a request.

    A finished leaf keeps its place by being its own child 0. Returns the lanes, each with its first token in `next`,
    and which child of its parent each one is.
    """
    slots, count, children = wanted.shape
    flat = wanted.reshape(slots, -1)
    order = jnp.argsort(~flat, axis=-1, stable=True)[:, :count].astype(jnp.int32)
    live = jnp.take_along_axis(flat, order, axis=1)
    parents, rank = order // children, order % children
    lanes = begin(steps, lanes, parents, chunk)
    first = {
        name: jnp.take_along_axis(getattr(lanes.next, name), rank[..., None], axis=2) for name in ("tokens", "logprobs")
    }
    first = {name: jnp.broadcast_to(x, (slots, count, children)) for name, x in first.items()}
    parent = jnp.where(live, lanes.parent, -1)
    return lanes._replace(live=live, parent=parent, level=lanes.level + 1, next=lanes.next._replace(**first)), rank


def children(lanes: Lanes, width: Int[Array, "R"]) -> Bool[Array, "R W n"]:
    """Every leaf's `width` best possible next tokens, for `expand`."""
    rank = jnp.arange(lanes.next.tokens.shape[-1])[None, None, :]
    used = jnp.where(lanes.finished, 1, width[:, None])[..., None]
    possible = (lanes.next.logprobs != IMPOSSIBLE) | (rank == 0)
    return (lanes.live & ~lanes.done[:, None])[..., None] & (rank < used) & possible


def rollout(
    steps: Steps,
    lanes: Lanes,
    rank: Int[Array, "R W"],
    *,
    chunk: int,
    pause: Pause | None = None,
    widths: Sequence[int] = (),
    roll: Roll | None = None,
) -> Lanes:
    """Read each lane's next token and go on one by one, until the chunk is full or no lane is left unfinished.

    `pause` says which lanes end their chunk early. With `widths`, ascending, only the first so many lanes are computed
    that hold every live one: one of these numbers, or all. `roll` reads in another way, to the same end.
    """
    sizes = [*(width for width in widths if width < lanes.live.shape[1]), lanes.live.shape[1]]
    ways = [_narrowly(steps, size, chunk, pause, roll or _rollout) for size in sizes]
    if len(ways) == 1:
        return ways[0](lanes, rank)
    most = (jnp.where(lanes.live, jnp.arange(lanes.live.shape[1])[None, :], -1) + 1).max()
    return jax.lax.switch((most > jnp.asarray(sizes)).sum(), ways, lanes, rank)


def _narrowly(steps: Steps, size: int, chunk: int, pause: Pause | None, roll: Roll) -> Callable[[Lanes, Array], Lanes]:
    """`rollout` in the first `size` lanes; the others keep nothing, as they are not in the tree."""

    def whole(lanes: Lanes, rank: Array) -> Lanes:
        slots, count = lanes.live.shape
        if size == count:
            return roll(steps, lanes, rank, chunk, pause)
        to, back = (jnp.broadcast_to(jnp.minimum(jnp.arange(n), size - 1)[None, :], (slots, n)) for n in (size, count))
        part = pick(lanes, to)._replace(cache=steps.regroup(lanes.cache, to, lanes.tokens.shape[-1]))
        part = roll(steps, part, rank[:, :size], chunk, pause)
        wide = pick(part, back)._replace(cache=steps.regroup(part.cache, back, lanes.tokens.shape[-1]))
        return wide._replace(live=wide.live & (jnp.arange(count) < size)[None], parent=lanes.parent)

    return whole


def _rollout(steps: Steps, lanes: Lanes, rank: Array, chunk: int, pause: Pause | None) -> Lanes:
    choice, places = quiet(lanes.choice, lanes.done), lanes.tokens.shape[-1]

    def going(carry: tuple[Array, Lanes, Array]) -> Array:
        return (carry[0] < chunk) & jnp.any(carry[2])

    def advance(carry: tuple[Array, Lanes, Array]) -> tuple[Array, Lanes, Array]:
        t, lanes, active = carry
        place = places - chunk + t
        logits, reward, cache = steps.step(lanes.next.tokens[..., 0], t, lanes.cache)
        lanes = passed(lanes._replace(cache=cache), active)
        begins = jnp.where(t == 0, rank, INSIDE)
        full = t == chunk - 1 if pause is None else True
        lanes = grown(lanes, choice, logits, reward, begins, place, active, full=full)
        active = active & ~lanes.finished
        return t + 1, lanes, active if pause is None else active & ~pause(lanes, place)

    return jax.lax.while_loop(going, advance, (jnp.int32(0), lanes, lanes.live & ~lanes.finished))[1]


def passed(lanes: Lanes, active: Bool[Array, "R W"], rows: Array | int = 1) -> Lanes:
    """A forward pass is counted, of `rows` tokens a lane, in every request that has an active lane."""
    passes = active.any(axis=-1).astype(jnp.int32)
    spent = passes * rows * active.shape[1]
    return lanes._replace(steps=lanes.steps + passes, lane_steps=lanes.lane_steps + spent)


def grown(
    lanes: Lanes,
    choice: Choice,
    logits: Float[Array, "R W V"],
    reward: Float[Array, "R W"],
    rank: Int[Array, "R W"],
    place: Int[Array, ""] | Int[Array, "R W"],
    active: Bool[Array, "R W"],
    *,
    full: Array | bool,
) -> Lanes:
    """Every active lane has read its next token, at `place`: that is recorded, and what may follow is chosen."""
    width, tops, keep = lanes.next.tokens.shape[-1], lanes.top_ids.shape[-1], lanes.next.logits.shape[-1] > 0
    lanes = _record(lanes, lanes.next, reward, rank, place, active)
    following = choose(choice, logits, text_of(lanes, place), count=width, tops=tops, full=full, keep=keep)
    return lanes._replace(next=where(active, following, lanes.next))


def score(lanes: Lanes, logprob_weight: float = 0.0) -> Float[Array, "R W"]:
    """Mean reward of the whole response up to each leaf, relative to the anchor; LOSER outside the tree.

    With a weight, that much of the mean log-probability is added.
    """
    total = lanes.total if logprob_weight == 0 else lanes.total + logprob_weight * lanes.likelihood
    return jnp.where(lanes.live, total / jnp.maximum(lanes.length, 1).astype(jnp.float32), LOSER)


def _prompt_seen(prompts: Prompts, size: int) -> Int[Array, "R V"]:
    slots, places = prompts.tokens.shape
    inside = jnp.arange(places)[None, :] < prompts.lengths[:, None]
    rows = jnp.arange(slots)[:, None]
    return jnp.zeros((slots, size), jnp.int32).at[rows, jnp.where(inside, prompts.tokens, size)].set(1)


def text_of(lanes: Lanes, last: Array | int) -> Text:
    """The response of every unfinished lane, whose newest token is at place `last`: of all, or of each [R, W]."""
    place, last = jnp.arange(lanes.tokens.shape[-1])[None, None, :], jnp.broadcast_to(last, lanes.length.shape)
    first = last + 1 - (lanes.length - lanes.committed[:, None])
    recent = jnp.where((place >= first[..., None]) & (place <= last[..., None]), lanes.tokens, -1)
    return Text(lanes.seen, recent, lanes.length, lanes.path, lanes.ends)


def _record(lanes: Lanes, read: Next, reward: Array, rank: Array, place: Array, active: Array) -> Lanes:
    """Append the token just read to every active lane, at `place`."""
    tokens, logprob = read.tokens[..., 0], read.logprobs[..., 0]

    def put(buffer: Array, value: Array) -> Array:
        use = active.reshape(*active.shape, *[1] * (value.ndim - 2))
        value = jnp.where(use, value, jnp.zeros_like(value)).astype(buffer.dtype)
        if place.ndim == 0:
            return jax.lax.dynamic_update_slice(buffer, value[:, :, None], (0, 0, place, *[0] * (value.ndim - 2)))
        here = (jnp.arange(buffer.shape[2])[None, None, :] == place[..., None]).reshape(
            *buffer.shape[:3], *[1] * (value.ndim - 2)
        )
        return jnp.where(here, value[:, :, None], buffer)

    more = active.astype(jnp.int32)
    length = lanes.length + more
    ended = active & jnp.any(tokens[..., None] == lanes.ends[:, None, :], axis=-1)
    return lanes._replace(
        tokens=put(lanes.tokens, tokens),
        rewards=put(lanes.rewards, reward),
        logprobs=put(lanes.logprobs, logprob),
        entropies=put(lanes.entropies, read.entropy),
        ranks=put(lanes.ranks, rank),
        top_ids=put(lanes.top_ids, read.top_ids),
        top_logprobs=put(lanes.top_logprobs, read.top_logprobs),
        total=lanes.total + jnp.where(active, reward - lanes.anchor[:, None], 0.0),
        likelihood=lanes.likelihood + jnp.where(active, logprob, 0.0),
        length=length,
        read=lanes.read + more,
        path=jnp.where(active, follow(lanes.path, tokens), lanes.path),
        stopped=lanes.stopped | ended,
        finished=lanes.finished | ended | (active & (length >= lanes.limit[:, None])),
        explored=lanes.explored + more.sum(axis=-1),
    )

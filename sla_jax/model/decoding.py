"""Tokens of all lanes against a shared prefix: the cache, and the moves that decoding makes on it.

The committed text's keys and values are stored once per request and read once per step: the queries of all W lanes form
one matrix against them. Each lane adds a short suffix of uncommitted tokens, kept **right-aligned**: the chunk being
decoded always occupies the last k of the T places, so step t writes place T-k+t in every lane of every request, however
many tokens each holds, and starting the next chunk is one gather that also shifts every lane by what it has read. The
two partial softmaxes share their maximum, which merges them exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sla_jax.model import channel as reward_channel
from sla_jax.model.attention import MASKED, attend
from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import logits, mlp, project, qkv, trunk, window_sizes
from sla_jax.model.layers import rms_norm, rope_table
from sla_jax.model.policy import Policy
from sla_jax.sharding import constrain

Leaf = Any  # an array, or in `cache_shapes` its shape
Pair = tuple[Leaf, Leaf]  # keys, values


class Cache(NamedTuple):
    """Keys and values of R requests with W lanes each, one pair per layer."""

    prefix: tuple[Pair, ...]  # [R, K, S, H]
    suffix: tuple[Pair, ...]  # [R, K, W, T, H]
    length: Leaf  # [R] positions of the prefix in use
    held: Leaf  # [R, W] uncommitted tokens that every lane had when this chunk began


def cache_shapes(config: ModelConfig, dtype: Any, slots: int, lanes: int, capacity: int, held: int) -> Cache:
    """Shapes of a cache of R=slots, W=lanes, S=capacity, T=held."""
    prefix = jax.ShapeDtypeStruct((slots, config.kv_heads, capacity, config.head_dim), dtype)
    suffix = jax.ShapeDtypeStruct((slots, config.kv_heads, lanes, held, config.head_dim), dtype)
    count = jax.ShapeDtypeStruct((slots,), jnp.int32)
    own = jax.ShapeDtypeStruct((slots, lanes), jnp.int32)
    return Cache(((prefix, prefix),) * config.layers, ((suffix, suffix),) * config.layers, count, own)


def prefill(
    policy: Policy,
    config: ModelConfig,
    prompts: Int[Array, "R P"],
    lengths: Int[Array, "R"],
    *,
    lanes: int,
    capacity: int,
    held: int,
) -> tuple[Float[Array, "R V"], Float[Array, "R"], Cache]:
    """Read right-padded prompts: the logits and the reward at each prompt's last token, and a cache that holds it."""
    out = trunk(policy, config, prompts, keep_kv=True)
    last = (lengths - 1)[:, None]
    hidden = jnp.take_along_axis(out.hidden, last[..., None], axis=1)[:, 0]
    reward = jnp.zeros(lengths.shape) if out.reward is None else jnp.take_along_axis(out.reward, last, axis=1)[:, 0]
    room = ((0, 0), (0, 0), (0, capacity - prompts.shape[1]), (0, 0))
    shapes = cache_shapes(config, out.hidden.dtype, prompts.shape[0], lanes, capacity, held)
    prefix = tuple((jnp.pad(k, room), jnp.pad(v, room)) for k, v in out.kv)
    suffix = tuple((jnp.zeros(s.shape, s.dtype), jnp.zeros(s.shape, s.dtype)) for s, _ in shapes.suffix)
    none = jnp.zeros(shapes.held.shape, jnp.int32)
    return logits(policy, hidden), reward, Cache(prefix, suffix, lengths, none)


def extend(
    policy: Policy, config: ModelConfig, tokens: Int[Array, "B T"], start: Int[Array, ""], prefix: tuple[Pair, ...]
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"], tuple[Pair, ...]]:
    """Read T more tokens of a text whose first `start` are in `prefix` [B, K, S, H], S ≥ start + T.

    Returns the final-norm outputs, the rewards (0 without a channel) and the longer prefix. `policy` is in the unrolled
    layout; tokens past the end of a text are written too, never read, and overwritten by what really comes there.
    """
    t, s = tokens.shape[1], prefix[0][0].shape[2]
    position = start + jnp.arange(t)
    age = position[:, None] - jnp.arange(s)[None, :]
    windows, longer = window_sizes(config), list(prefix)

    def attention(i: int, q: Array, k: Array, v: Array) -> Array:
        longer[i] = (_append(prefix[i][0], k, start), _append(prefix[i][1], v, start))
        return attend(q, *longer[i], config, ((age >= 0) & (age < windows[i]))[None])

    h, reward = _blocks(policy, config, tokens, jnp.broadcast_to(position[None, :], tokens.shape), attention)
    return h, reward, tuple(longer)


def step(
    policy: Policy, config: ModelConfig, chunk: int, tokens: Int[Array, "R W"], t: Int[Array, ""], cache: Cache
) -> tuple[Float[Array, "R W V"], Float[Array, "R W"], Cache]:
    """Read token t of the chunk in every lane: next-token logits, the token's reward, the cache with the token in it.

    `policy` is in the unrolled layout. Lanes that are finished compute along and are ignored by the caller.
    """
    place = cache.suffix[0][0].shape[3] - chunk + t
    position = cache.length[:, None] + cache.held + t
    suffix = list(cache.suffix)

    def attention(i: int, q: Array, k: Array, v: Array) -> Array:
        suffix[i] = (_write(cache.suffix[i][0], k, place), _write(cache.suffix[i][1], v, place))
        mask = _masks(cache, position[..., None], jnp.full((1, 1, 1), place), chunk, config.windows[i])
        return _attend(q, cache.prefix[i], suffix[i], mask, config)

    h, reward = _blocks(policy, config, tokens, position, attention)
    return constrain(logits(policy, h), "batch", None, "vocab"), reward, cache._replace(suffix=tuple(suffix))


def read(
    policy: Policy, config: ModelConfig, chunk: int, tokens: Int[Array, "R W m"], done: Int[Array, "R W"], cache: Cache
) -> tuple[Float[Array, "R W m V"], Float[Array, "R W m"], Cache]:
    """Read m tokens of the chunk in every lane, each lane from where it is: as many calls of `step`, in one.

    What would lie beyond the chunk is dropped (its numbers mean nothing); a token that is read again, at the same
    place, takes the place of the one before. `policy` is in the unrolled layout.
    """
    r, w, m = tokens.shape
    ahead = done[..., None] + jnp.arange(m)[None, None, :]
    place = cache.suffix[0][0].shape[3] - chunk + ahead
    position = (cache.length[:, None] + cache.held)[..., None] + ahead
    suffix = list(cache.suffix)

    def attention(i: int, q: Array, k: Array, v: Array) -> Array:
        suffix[i] = (_scatter(cache.suffix[i][0], k, place), _scatter(cache.suffix[i][1], v, place))
        mask = _masks(cache, position, place, chunk, config.windows[i])
        return _attend(q, cache.prefix[i], suffix[i], mask, config)

    h, reward = _blocks(policy, config, tokens.reshape(r, w * m), position.reshape(r, w * m), attention)
    rows = constrain(logits(policy, h), "batch", None, "vocab")
    return rows.reshape(r, w, m, -1), reward.reshape(r, w, m), cache._replace(suffix=tuple(suffix))


def _blocks(
    policy: Policy,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attention: Callable[[int, Array, Array, Array], Array],
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"]]:
    """All layers, unrolled: final-norm outputs and rewards (0 without a channel).

    `attention(layer, q, k, v)` keeps the new keys and values and says what the queries [B, T, N, H] saw.
    """
    table = rope_table(positions, config.head_dim, config.rope)
    h = jnp.take(policy.embed[...], tokens, axis=0)
    channel = policy.channel
    u: Any = reward_channel.enter(channel, h, config.eps) if channel is not None else None
    for i, block in enumerate(policy.blocks):
        with jax.named_scope("attention"):
            seen = attention(i, *qkv(block.attn, config, rms_norm(h, block.attn_norm[...], config.eps), table))
            h = h + project(block.attn, config, seen)
        with jax.named_scope("mlp"):
            h = h + mlp(block.mlp, rms_norm(h, block.mlp_norm[...], config.eps))
        if channel is not None and i < config.layers - 1:
            u = reward_channel.step(channel.norm[i], channel.linear[i], h, u, config.eps)
    h = rms_norm(h, policy.norm[...], config.eps)
    return h, reward_channel.read(channel, h, u) if channel is not None else jnp.zeros(tokens.shape)


def fork(cache: Cache, parents: Int[Array, "R W"], held: Int[Array, "R W"], read: Int[Array, "R W"]) -> Cache:
    """Begin a new chunk: lane w goes on from lane parents[r, w], which has read that many tokens of the last one.

    `held` uncommitted tokens are then behind it.
    """
    places = cache.suffix[0][0].shape[3]
    index = parents[..., None] * places + jnp.minimum(jnp.arange(places)[None, None, :] + read[..., None], places - 1)

    def gather(x: Array) -> Array:
        r, k, w, t, h = x.shape
        moved = jnp.take_along_axis(x.reshape(r, k, w * t, h), index.reshape(r, 1, w * t, 1), axis=2)
        return moved.reshape(x.shape)

    return cache._replace(suffix=jax.tree.map(gather, cache.suffix), held=held)


def regroup(cache: Cache, parents: Int[Array, "R w"], places: int) -> Cache:
    """The lanes `parents`, in that order, with room for `places` ≥ T uncommitted tokens."""
    index = parents[:, None, :, None, None]

    def gather(x: Array) -> Array:
        kept = jnp.take_along_axis(x, index, axis=2)
        return jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (places - x.shape[3], 0), (0, 0)))

    return cache._replace(
        suffix=jax.tree.map(gather, cache.suffix), held=jnp.take_along_axis(cache.held, parents, axis=1)
    )


def commit(chunk: int, cache: Cache, lane: Int[Array, "R"], start: Int[Array, "R"], count: Int[Array, "R"]) -> Cache:
    """Append `count` ≤ chunk tokens of lane[r], from suffix place start[r] on, to the prefix of request r.

    A count of 0 leaves the prefix as it is: what is written past `length` is never read and is overwritten later.
    """

    def move(prefix: Array, suffix: Array, lane: Array, start: Array, length: Array) -> Array:
        k, _, _, h = suffix.shape  # one request: [K, W, T, H] into [K, S, H]
        piece = jax.lax.dynamic_slice(suffix, (0, lane, start, 0), (k, 1, chunk, h))[:, 0]
        return jax.lax.dynamic_update_slice(prefix, piece, (0, length, 0))

    moved = jax.tree.map(lambda p, s: jax.vmap(move)(p, s, lane, start, cache.length), cache.prefix, cache.suffix)
    return cache._replace(prefix=moved, length=cache.length + count)


def _write(old: Float[Array, "R K W T H"], new: Float[Array, "R W K H"], place: Int[Array, ""]) -> Array:
    piece = jnp.swapaxes(new, 1, 2)[:, :, :, None, :].astype(old.dtype)
    return jax.lax.dynamic_update_slice(old, piece, (0, 0, 0, place, 0))


def _scatter(old: Float[Array, "R K W T H"], new: Float[Array, "R B K H"], place: Int[Array, "R W m"]) -> Array:
    """Row j of lane w to place[r, w, j]; what is past the end is dropped."""
    r, w, m = place.shape
    rows, lanes = jnp.arange(r)[:, None, None], jnp.arange(w)[None, :, None]
    piece = new.reshape(r, w, m, *new.shape[2:]).astype(old.dtype)
    return old.at[rows, :, lanes, place].set(piece, mode="drop", unique_indices=True)


def _append(old: Float[Array, "B K S H"], new: Float[Array, "B T K H"], start: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice(old, jnp.swapaxes(new, 1, 2).astype(old.dtype), (0, 0, start, 0))


def _masks(
    cache: Cache, position: Int[Array, "R W m"], place: Int[Array, "#R #W m"], chunk: int, window: int | None
) -> tuple[Array, Array]:
    """Which prefix positions [R, #B, S] and suffix places [R, W, m, T] the m tokens of every lane read: B = W·m."""
    s, t = cache.prefix[0][0].shape[2], cache.suffix[0][0].shape[3]
    prefix, suffix = jnp.arange(s)[None, None, :], jnp.arange(t)[None, None, None, :]
    in_prefix = prefix < cache.length[:, None, None]
    in_suffix = (suffix >= t - chunk - cache.held[..., None, None]) & (suffix <= place[..., None])
    if window is not None:
        in_prefix = in_prefix & (position.reshape(len(position), -1, 1) - prefix < window)
        in_suffix &= place[..., None] - suffix < window
    return in_prefix, in_suffix


def _attend(
    q: Float[Array, "R B N H"],
    prefix: tuple[Array, Array],
    suffix: tuple[Array, Array],
    masks: tuple[Array, Array],
    config: ModelConfig,
) -> Float[Array, "R B N H"]:
    """Attention over the shared prefix (one matrix product for all B = W·m rows) and each lane's own suffix."""
    r, b, n, h = q.shape
    k, g, w = config.kv_heads, config.groups, suffix[0].shape[2]
    q = jnp.transpose(q.reshape(r, b, k, g, h), (0, 2, 1, 3, 4)) * jnp.asarray(h**-0.5, q.dtype)
    shared = jnp.einsum("rkmh,rksh->rkms", q.reshape(r, k, b * g, h), prefix[0], preferred_element_type=jnp.float32)
    mine = q.reshape(r, k, w, b // w * g, h)
    own = jnp.einsum("rkwgh,rkwth->rkwgt", mine, suffix[0], preferred_element_type=jnp.float32)
    shared = jnp.where(masks[0][:, None, :, None], shared.reshape(r, k, b, g, -1), MASKED).reshape(shared.shape)
    own = jnp.where(masks[1][:, None, :, :, None], own.reshape(r, k, w, b // w, g, -1), MASKED)
    own = own.reshape(r, k, b * g, -1)
    top = jnp.maximum(shared.max(-1, keepdims=True), own.max(-1, keepdims=True))
    shared, own = jnp.exp(shared - top), jnp.exp(own - top)
    total = shared.sum(-1, keepdims=True) + own.sum(-1, keepdims=True)
    out = jnp.einsum("rkms,rksh->rkmh", shared.astype(q.dtype), prefix[1], preferred_element_type=jnp.float32)
    own = own.reshape(r, k, w, b // w * g, -1).astype(q.dtype)
    tail = jnp.einsum("rkwgt,rkwth->rkwgh", own, suffix[1], preferred_element_type=jnp.float32)
    merged = (out + tail.reshape(r, k, b * g, h)) / total
    return jnp.transpose(merged.reshape(r, k, b, g, h), (0, 2, 1, 3, 4)).reshape(r, b, n, h).astype(q.dtype)

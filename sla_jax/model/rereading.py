"""Texts that are read again and again, each time longer: keys and values are kept, and only what is new is read.

A row is one text with its own start, so texts of any lengths are read side by side (`decoding.extend` has one start for
all). Rows have room for S positions each; what lies past a row's text is never read and is overwritten by what comes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sla_jax.model import channel as reward_channel
from sla_jax.model.attention import attend
from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import mlp, project, qkv, window_sizes
from sla_jax.model.layers import rms_norm, rope_table
from sla_jax.model.policy import Policy

Kept = tuple[tuple[Array, Array], ...]  # keys and values [B, K, S, H] of each layer


def blank(policy: Policy, config: ModelConfig, rows: int, capacity: int) -> Kept:
    """Nothing read yet: B=rows, S=capacity."""
    shape = (rows, config.kv_heads, capacity, config.head_dim)
    dtype = policy.norm[...].dtype
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers))


def fork(kept: Kept, parents: Int[Array, "b"], capacity: int) -> Kept:
    """Rows that go on from the rows `parents`, with room for capacity ≥ S positions; the other rows are let go."""

    def moved(x: Array) -> Array:
        return jnp.pad(x[parents], ((0, 0), (0, 0), (0, capacity - x.shape[2]), (0, 0)))

    return jax.tree.map(moved, kept)


def reread(
    policy: Policy, config: ModelConfig, tokens: Int[Array, "B T"], starts: Int[Array, "B"], kept: Kept
) -> tuple[Float[Array, "B T D"], Float[Array, "B T"] | None, Kept]:
    """Read T more tokens of texts of which the first `starts` are in `kept`, S ≥ starts + T.

    Returns the final-norm outputs, the rewards if there is a channel, and the longer rows. `policy` is in the unrolled
    layout.
    """
    positions = starts[:, None] + jnp.arange(tokens.shape[1])[None, :]
    age = positions[..., None] - jnp.arange(kept[0][0].shape[2])[None, None, :]
    table = rope_table(positions, config.head_dim, config.rope)
    h = jnp.take(policy.embed[...], tokens, axis=0)
    channel, longer = policy.channel, list(kept)
    u: Any = reward_channel.enter(channel, h, config.eps) if channel is not None else None
    for i, (block, window) in enumerate(zip(policy.blocks, window_sizes(config), strict=True)):
        with jax.named_scope("attention"):
            q, k, v = qkv(block.attn, config, rms_norm(h, block.attn_norm[...], config.eps), table)
            longer[i] = (_append(kept[i][0], k, starts), _append(kept[i][1], v, starts))
            h = h + project(block.attn, config, attend(q, *longer[i], config, (age >= 0) & (age < window)))
        with jax.named_scope("mlp"):
            h = h + mlp(block.mlp, rms_norm(h, block.mlp_norm[...], config.eps))
        if channel is not None and i < config.layers - 1:
            u = reward_channel.step(channel.norm[i], channel.linear[i], h, u, config.eps)
    h = rms_norm(h, policy.norm[...], config.eps)
    return h, None if channel is None else reward_channel.read(channel, h, u), tuple(longer)


def _append(old: Float[Array, "B K S H"], new: Float[Array, "B T K H"], starts: Int[Array, "B"]) -> Array:
    def row(old: Array, new: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice(old, new, (0, start, 0))

    return jax.vmap(row)(old, jnp.swapaxes(new, 1, 2).astype(old.dtype), starts)

"""Whole sequences at once: training, reward passes and prefill.

Rows are right-padded. Attention is causal, so a padded position is never read by a real one; what padded positions
produce is meaningless and the caller masks it. A row may also hold one prompt and several continuations (`Branches`):
the prompt is then computed once, which for a preference pair is 0.6 times the work.

The reward channel rides in the block scan: the carry is (h, u), nothing else is kept. No logits are computed here;
`logits` is applied by those who need them to the positions they need.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sla_jax.model import channel as reward_channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.layers import linear, rms_norm, rope_table, rotate
from sla_jax.model.policy import Attention, Block, Mlp, Policy
from sla_jax.sharding import constrain

MASKED = -1e30  # far below any score, finite so that a fully masked row cannot make NaN


class Branches(NamedTuple):
    """Rows of `prompt | branch 1 | branch 2 | … | padding`, where each branch reads the prompt and itself alone."""

    positions: Int[Array, "B T"]  # of each token in its own sequence: branches start again where the prompt ends
    branch: Int[Array, "B T"]  # 0 for the prompt, 1, 2, … for the branches; padding may be anything


class Trunk(NamedTuple):
    """What the blocks produced. `kv` and `features` only when asked for, `reward` only when there is a channel."""

    hidden: Float[Array, "B T D"]  # after the final norm
    reward: Float[Array, "B T"] | None
    kv: tuple[tuple[Array, Array], ...]  # per layer: keys and values [B, K, T, H]
    features: Float[Array, "L1 B T D"] | None  # h_0 … h_{L-1}, then the final norm's output


class Kept(NamedTuple):
    """What the blocks leave behind when asked."""

    kv: Any  # keys and values: of one block, then a tuple over layers
    entry: Array | None  # the residual stream that entered the block, then stacked [L, B, T, D]


def trunk(
    policy: Policy,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    branches: Branches | None = None,
    remat: bool = False,
    keep_kv: bool = False,
    keep_features: bool = False,
) -> Trunk:
    """Run the blocks (stacked or unrolled layout) and the channel over right-padded rows."""
    age = _ages(tokens.shape[1], branches)
    positions = jnp.arange(tokens.shape[1])[None, :] if branches is None else branches.positions
    table = rope_table(jnp.broadcast_to(positions, tokens.shape), config.head_dim, config.rope)
    h = constrain(jnp.take(policy.embed[...], tokens, axis=0), "batch", None, None)
    channel = policy.channel
    u = reward_channel.enter(channel, h, config.eps) if channel is not None else None

    def body(carry: tuple[Array, Array | None], layer: tuple[Block, Array, Any]) -> tuple:
        (h, u), (block, window, reader) = carry, layer
        entry = h
        h, kv = _block(block, config, h, table, age, window)
        if u is not None:
            norm, weight = reader
            u = reward_channel.step(norm, weight, h, u, config.eps)
        return (h, u), Kept(kv if keep_kv else None, entry if keep_features else None)

    (h, u), kept = _over_layers(jax.checkpoint(body) if remat else body, (h, u), policy, config)
    h = rms_norm(h, policy.norm[...], config.eps)
    reward = reward_channel.read(channel, h, u) if channel is not None else None
    features = None if kept.entry is None else jnp.concatenate([kept.entry, h[None]])
    return Trunk(h, reward, kept.kv or (), features)


def logits(policy: Policy, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Next-token logits from final-norm outputs; float32 sums and result, so that bfloat16 makes no ties."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    weight, axis = (policy.embed[...], 1) if policy.head is None else (policy.head[...], 0)
    out = jax.lax.dot_general(rows, weight, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)
    return out.reshape(*hidden.shape[:-1], -1)


def qkv(
    attn: Attention, config: ModelConfig, x: Float[Array, "*B D"], table: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Rotated queries [*B, N, H] and keys [*B, K, H], and values [*B, K, H].

    The barrier keeps XLA:TPU from folding the heads' reshape into the product, which copies the weight every time.
    """
    h = config.head_dim
    bias = (attn.q_bias[...], attn.k_bias[...], attn.v_bias[...]) if config.qkv_bias else (None, None, None)
    q, k, v = (
        jax.lax.optimization_barrier(linear(x, w[...], b)).reshape(*x.shape[:-1], -1, h)
        for w, b in zip((attn.q, attn.k, attn.v), bias, strict=True)
    )
    if config.qk_norm:
        q, k = rms_norm(q, attn.q_norm[...], config.eps), rms_norm(k, attn.k_norm[...], config.eps)
    return rotate(q, *table), rotate(k, *table), v


def project(attn: Attention, config: ModelConfig, x: Float[Array, "*B N H"]) -> Float[Array, "*B D"]:
    """The heads' outputs back into the residual stream."""
    bias = attn.o_bias[...] if config.out_bias else None
    return linear(x.reshape(*x.shape[:-2], -1), attn.o[...], bias)


def mlp(weights: Mlp, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """SwiGLU."""
    return linear(jax.nn.silu(linear(x, weights.gate[...])) * linear(x, weights.up[...]), weights.down[...])


def attend(
    q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], v: Array, config: ModelConfig, mask: Bool[Array, "#B T S"]
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under `mask`; scores and softmax in float32."""
    b, t, n, h = q.shape
    grouped = q.reshape(b, t, config.kv_heads, config.groups, h)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, preferred_element_type=jnp.float32) * h**-0.5
    probabilities = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", probabilities, v).reshape(b, t, n, h)


def window_sizes(config: ModelConfig) -> list[int]:
    """Per layer: how many last positions are attended to (max_positions + 1 for all)."""
    return [window or config.max_positions + 1 for window in config.windows]


def _block(
    block: Block, config: ModelConfig, h: Array, table: tuple[Array, Array], age: Array, window: Array
) -> tuple[Array, tuple[Array, Array]]:
    with jax.named_scope("attention"):
        q, k, v = qkv(block.attn, config, rms_norm(h, block.attn_norm[...], config.eps), table)
        q, k, v = (constrain(x, "batch", None, "heads", None) for x in (q, k, v))
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        h = h + project(block.attn, config, attend(q, k, v, config, (age >= 0) & (age < window)))
    with jax.named_scope("mlp"):
        h = h + mlp(block.mlp, rms_norm(h, block.mlp_norm[...], config.eps))
    return constrain(h, "batch", None, None), (k, v)


def _ages(length: int, branches: Branches | None) -> Int[Array, "#B T T"]:
    """[b, t, s]: how many positions token s lies before token t; -1 where t must not read s."""
    order = jnp.arange(length)
    before = (order[:, None] - order[None, :])[None]
    if branches is None:
        return jnp.maximum(before, -1)
    age = branches.positions[:, :, None] - branches.positions[:, None, :]
    own = branches.branch[:, :, None] == branches.branch[:, None, :]
    return jnp.where((before >= 0) & (own | (branches.branch[:, None, :] == 0)), age, -1)


def _over_layers(
    body: Callable[..., tuple[tuple, Kept]], carry: tuple, policy: Policy, config: ModelConfig
) -> tuple[tuple, Kept]:
    """Scan over stacked blocks or loop over unrolled ones; reader i belongs to the stream that leaves block i."""
    windows = jnp.asarray(window_sizes(config), jnp.int32)
    readers = reward_channel.padded(policy.channel) if policy.channel is not None else ()
    if not isinstance(policy.blocks, nnx.List):
        carry, kept = jax.lax.scan(body, carry, (policy.blocks, windows, readers))
        return carry, Kept(kept.kv and tuple(zip(*kept.kv, strict=True)), kept.entry)
    left: list[Kept] = []
    for i, block in enumerate(policy.blocks):
        carry, one = body(carry, (block, windows[i], tuple(r[i] for r in readers)))
        left.append(one)
    streams = [kept.entry for kept in left if kept.entry is not None]
    return carry, Kept(tuple(kept.kv for kept in left if kept.kv), jnp.stack(streams) if streams else None)

"""Whole sequences at once: training, reward passes and prefill.

Rows are right-padded. Attention is causal, so a padded position is never read by a real one; what padded positions
produce is meaningless and the caller masks it. A row may also hold one prompt and several continuations (`Branches`):
the prompt is then computed once, which for a preference pair is 0.6 times the work.

The reward channel rides in the block scan: the carry is (h, u), nothing else is kept. No logits are computed here;
`logits` is applied by those who need them to the positions they need.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sla_jax.model import channel as reward_channel
from sla_jax.model.attention import AttentionKind, Reading, attender
from sla_jax.model.config import ModelConfig
from sla_jax.model.layers import linear, rms_norm, rope_table, rotate
from sla_jax.model.policy import Attention, Block, Mlp, Policy
from sla_jax.sharding import constrain

Remat = Literal["none", "dots", "full"]  # what of a block is computed again in the backward pass
SAVED = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Branches(NamedTuple):
    """Rows of `prompt | branch 1 | branch 2 | … | padding`, where each branch reads the prompt and itself alone."""

    positions: Int[Array, "B T"]  # of each token in its own sequence: branches start again where the prompt ends
    branch: Int[Array, "B T"]  # 0 for the prompt, 1, 2, … for the branches; padding may be anything


class Trunk(NamedTuple):
    """What the blocks produced. `kv` and `features` only when asked for, `reward` only when there is a channel."""

    hidden: Float[Array, "B T D"]  # after the final norm
    reward: Float[Array, "B T"] | None
    kv: tuple[tuple[Array, Array], ...]  # per layer: keys and values [B, K, T, H]
    features: Float[Array, "L1 G P D"] | None  # at `places`: h_0 … h_{L-1}, then the final norm's output


class Kept(NamedTuple):
    """What the blocks leave behind when asked."""

    kv: Any  # keys and values: of one block, then a tuple over layers
    entry: Array | None  # the residual stream that entered the block, at `places`, then stacked [L, G, P, D]


def trunk(
    policy: Policy,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    branches: Branches | None = None,
    remat: Remat = "none",
    attention: AttentionKind = "xla",
    keep_kv: bool = False,
    places: Int[Array, "G P"] | None = None,
) -> Trunk:
    """Run the blocks (stacked or unrolled layout) and the channel over right-padded rows.

    `places` asks for features: entry [g, p] indexes the B/G rows of data shard g, flattened, so that nothing of size
    [L, B, T, D] is kept and no shard reads another's rows. `remat`: "dots" keeps the outputs of the matrix products,
    "full" only what enters each block.
    """
    positions = jnp.arange(tokens.shape[1])[None, :] if branches is None else branches.positions
    attend = attender(attention, config, Reading(positions, None if branches is None else branches.branch))
    table = rope_table(jnp.broadcast_to(positions, tokens.shape), config.head_dim, config.rope)
    # each device looks up its part of D for all rows, then parts are exchanged for rows; the table stays where it is
    h = constrain(jnp.take(policy.embed[...], tokens, axis=0), "rows", None, "embed")
    h = constrain(h, "batch", None, None)
    channel = policy.channel
    u = reward_channel.enter(channel, h, config.eps) if channel is not None else None

    def body(carry: tuple[Array, Array | None], layer: tuple[Block, Array, Any]) -> tuple:
        (h, u), (block, window, reader) = carry, layer
        entry = None if places is None else at_places(h, places)
        h, kv = _block(block, config, h, table, lambda q, k, v: attend(q, k, v, window))
        if u is not None:
            norm, weight = reader
            u = reward_channel.step(norm, weight, h, u, config.eps)
        return (h, u), Kept(kv if keep_kv else None, entry)

    (h, u), kept = _over_layers(_rematerialized(body, remat, policy), (h, u), policy, config)
    h = rms_norm(h, policy.norm[...], config.eps)
    reward = reward_channel.read(channel, h, u) if channel is not None else None
    features = None
    if places is not None and kept.entry is not None:
        features = jnp.concatenate([kept.entry, at_places(h, places)[None]])
    return Trunk(h, reward, kept.kv or (), features)


def at_places(h: Float[Array, "B T D"], places: Int[Array, "G P"]) -> Float[Array, "G P D"]:
    """Tokens of each shard's rows (G groups of B/G rows, flattened); a gather within each group."""
    groups = constrain(h.reshape(places.shape[0], -1, h.shape[-1]), "batch", None, None)
    return constrain(jax.vmap(lambda rows, index: rows[index])(groups, places), "batch", None, None)


def logits(policy: Policy, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Next-token logits from final-norm outputs; float32 sums and result, so that bfloat16 makes no ties."""
    assert policy.score is None, "a reward model has no LM head"
    rows = hidden.reshape(-1, hidden.shape[-1])
    weight, axis = (policy.embed[...], 1) if policy.head is None else (policy.head[...], 0)
    out = jax.lax.dot_general(rows, weight, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)
    return out.reshape(*hidden.shape[:-1], -1)


def token_logits(policy: Policy, hidden: Float[Array, "*B D"], tokens: tuple[int, ...]) -> Float[Array, "*B O"]:
    """The logits of some tokens only, from final-norm outputs."""
    assert policy.score is None, "a reward model has no LM head"
    ids = jnp.asarray(tokens)
    weight = policy.embed[...][ids] if policy.head is None else policy.head[...][:, ids].T
    return jnp.einsum("...d,od->...o", hidden, weight, preferred_element_type=jnp.float32)


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


def window_sizes(config: ModelConfig) -> list[int]:
    """Per layer: how many last positions are attended to (max_positions + 1 for all)."""
    return [window or config.max_positions + 1 for window in config.windows]


def _block(
    block: Block, config: ModelConfig, h: Array, table: tuple[Array, Array], attend: Callable[..., Array]
) -> tuple[Array, tuple[Array, Array]]:
    with jax.named_scope("attention"):
        q, k, v = qkv(block.attn, config, rms_norm(h, block.attn_norm[...], config.eps), table)
        q, k, v = (constrain(x, "batch", None, "heads", None) for x in (q, k, v))
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        h = h + project(block.attn, config, attend(q, k, v))
    with jax.named_scope("mlp"):
        h = h + mlp(block.mlp, rms_norm(h, block.mlp_norm[...], config.eps))
    return constrain(h, "batch", None, None), (k, v)


def _rematerialized(body: Callable[..., Any], remat: Remat, policy: Policy) -> Callable[..., Any]:
    """`body` under jax.checkpoint; inside a scan nothing has to be kept from being merged with the first run."""
    if remat == "none":
        return body
    return jax.checkpoint(body, policy=SAVED[remat], prevent_cse=isinstance(policy.blocks, nnx.List))


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

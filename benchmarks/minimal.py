"""The baseline: what one would write first. Blocks stacked and scanned, a cache a row, float32, `x @ E.T` as the head.

Greedy decoding of B rows by one jitted scan over T tokens; every row has its own copy of the prompt's keys and values.
It takes the same weights as the policy and gives the same tokens. Llama-shaped, tied embeddings, default rope.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sla_jax.model.config import ModelConfig

Weights = dict[str, Any]  # stacked: every array of `layers` has a leading L


class State(NamedTuple):
    """What decoding carries: the last token of each row, the position, keys and values of all rows."""

    token: jax.Array  # [B]
    position: jax.Array  # []
    keys: jax.Array  # [L, B, S, K, H]
    values: jax.Array


def weights_of(policy: Any) -> Weights:
    """The policy's arrays (stacked layout) under short names."""
    blocks = policy.blocks
    layers = {name: getattr(blocks.attn, name)[...] for name in ("q", "k", "v", "o")}
    layers |= {name: getattr(blocks.mlp, name)[...] for name in ("gate", "up", "down")}
    layers |= {"attn_norm": blocks.attn_norm[...], "mlp_norm": blocks.mlp_norm[...]}
    return {"embed": policy.embed[...], "norm": policy.norm[...], "layers": layers}


def begin(config: ModelConfig, rows: int, capacity: int, prompt: jax.Array, weights: Weights) -> State:
    """Read one prompt [P] in every row."""
    shape = (config.layers, rows, capacity, config.kv_heads, config.head_dim)
    tokens = jnp.broadcast_to(prompt[None, :], (rows, prompt.shape[0]))
    empty = State(tokens[:, -1], jnp.int32(0), jnp.zeros(shape), jnp.zeros(shape))
    logits, state = forward(config, weights, tokens, empty)
    return state._replace(token=jnp.argmax(logits, -1).astype(jnp.int32))


def decode(config: ModelConfig, tokens: int, weights: Weights, state: State) -> tuple[State, jax.Array]:
    """The next `tokens` tokens of every row: [T, B]."""

    def body(state: State, _: None) -> tuple[State, jax.Array]:
        logits, after = forward(config, weights, state.token[:, None], state)
        return after._replace(token=jnp.argmax(logits, -1).astype(jnp.int32)), state.token

    return jax.lax.scan(body, state, None, length=tokens)


def forward(config: ModelConfig, weights: Weights, tokens: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Logits [B, V] after the last of `tokens` [B, T], which stand at state.position and after it."""
    rows, length = tokens.shape
    positions = state.position + jnp.arange(length)
    x = weights["embed"][tokens]
    half = config.head_dim // 2
    angles = positions[:, None] * config.rope.theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    seen = jnp.arange(state.keys.shape[2])[None, :] <= positions[:, None]

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + config.eps) * scale

    def turn(x: jax.Array) -> jax.Array:
        first, second = x[..., :half], x[..., half:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(rows, length, -1, config.head_dim)

    def block(x: jax.Array, layer: tuple[Weights, jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        w, keys, values = layer
        y = norm(x, w["attn_norm"])
        q, k, v = turn(heads(y @ w["q"])), turn(heads(y @ w["k"])), heads(y @ w["v"])
        keys = jax.lax.dynamic_update_slice(keys, k, (0, state.position, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, state.position, 0, 0))
        q = q.reshape(rows, length, config.kv_heads, config.groups, config.head_dim)
        scores = jnp.einsum("btkgh,bskh->bkgts", q, keys) * config.head_dim**-0.5
        scores = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
        x = x + jnp.einsum("bkgts,bskh->btkgh", scores, values).reshape(rows, length, -1) @ w["o"]
        y = norm(x, w["mlp_norm"])
        return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], (keys, values)

    x, (keys, values) = jax.lax.scan(block, x, (weights["layers"], state.keys, state.values))
    logits = norm(x[:, -1], weights["norm"]) @ weights["embed"].T
    return logits, State(state.token, state.position + length, keys, values)

"""The policy's parameters: one NNX module tree, stacked over layers, and its flat form.

A module holds parameters and nothing that changes, and is itself a pytree: `jax.jit`, `jax.tree.map` and orbax see
arrays. Blocks are built with `vmap` (leading axis L) for training; `unstack` gives the list that decoding unrolls,
because XLA:CPU copies every slice of a scan over stacked weights: 31 ms against 20 ms a step at one row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sla_jax.errors import UserError, nearest
from sla_jax.model.channel import FLOAT32, INIT_STD, Channel, init_channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.score import Score, init_score


class Attention(nnx.Module):
    """Grouped-query projections [in, out]; biases and head norms only where the config asks for them."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: jnp.dtype):
        d, n, k, h = config.width, config.heads, config.kv_heads, config.head_dim
        keys = jax.random.split(key, 4)
        self.q, self.k, self.v = (
            _matrix(key, d, heads * h, dtype) for key, heads in zip(keys, (n, k, k), strict=False)
        )
        self.o = _matrix(keys[3], n * h, d, dtype)
        if config.qkv_bias:
            self.q_bias, self.k_bias, self.v_bias = (nnx.Param(jnp.zeros((heads * h,), dtype)) for heads in (n, k, k))
        if config.out_bias:
            self.o_bias = nnx.Param(jnp.zeros((d,), dtype))
        if config.qk_norm:
            self.q_norm, self.k_norm = (nnx.Param(jnp.ones((h,), dtype)) for _ in range(2))


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: jnp.dtype):
        gate, up, down = jax.random.split(key, 3)
        self.gate = _matrix(gate, config.width, config.ffn, dtype)
        self.up = _matrix(up, config.width, config.ffn, dtype)
        self.down = _matrix(down, config.ffn, config.width, dtype)


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: jnp.dtype):
        attn, mlp = jax.random.split(key)
        self.attn_norm = nnx.Param(jnp.ones((config.width,), dtype))
        self.attn = Attention(config, attn, dtype)
        self.mlp_norm = nnx.Param(jnp.ones((config.width,), dtype))
        self.mlp = Mlp(config, mlp, dtype)


class Policy(nnx.Module):
    """Embedding, L blocks (stacked: every leaf has a leading L), final norm, LM head unless tied, channel or score.

    A policy with a score head is a reward model: it has no LM head, and `head` is None though nothing is tied.
    """

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: jnp.dtype):
        embed, blocks, head, extra = jax.random.split(key, 4)
        self.embed = _matrix(embed, config.vocab_size, config.width, dtype)
        self.blocks: Any = jax.vmap(lambda key: Block(config, key, dtype))(jax.random.split(blocks, config.layers))
        self.norm = nnx.Param(jnp.ones((config.width,), dtype))
        bare = config.tied or config.score is not None
        self.head = None if bare else _matrix(head, config.width, config.vocab_size, dtype)
        self.channel: Channel | None = nnx.data(init_channel(config, extra, dtype) if config.channel else None)
        self.score: Score | None = nnx.data(init_score(config, extra, dtype) if config.score else None)


def init_policy(config: ModelConfig, key: jax.Array, dtype: jnp.dtype = FLOAT32) -> Policy:
    """A randomly initialized policy in the stacked layout; run it under `jax.eval_shape` for shapes alone."""
    return Policy(config, key, dtype)


def param_paths(policy: nnx.Module) -> dict[str, Any]:
    """Flat {"blocks.attn.q": leaf, …}; leaves may be arrays, shapes or shardings."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(policy)
    return {_name(path): leaf for path, leaf in leaves}


def param_shapes(config: ModelConfig, dtype: jnp.dtype = FLOAT32) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat name → shape and type of every parameter that `config` has."""
    return param_paths(_abstract(config, dtype))


def policy_from_params(config: ModelConfig, params: Mapping[str, Any]) -> Policy:
    """Assemble a policy from flat names; unknown, missing or misshapen names raise UserError by name."""
    shapes = param_shapes(config)
    for name in params:
        if name not in shapes:
            raise UserError(f"there is no parameter {name!r} in this policy.{nearest(name, shapes)}")
    for name, want in shapes.items():
        if name not in params:
            raise UserError(f"the parameter {name!r} with shape {want.shape} is missing.")
        if tuple(params[name].shape) != want.shape:
            raise UserError(
                f"the parameter {name!r} has shape {tuple(params[name].shape)}; its config says {want.shape}."
            )
    abstract = _abstract(config, FLOAT32)
    paths, tree = jax.tree_util.tree_flatten_with_path(abstract)
    return jax.tree_util.tree_unflatten(tree, [params[_name(path)] for path, _ in paths])


def with_channel(policy: Policy, config: ModelConfig, channel: Channel | None) -> Policy:
    """The same policy with another channel (`config` describes the result); weights are shared, not copied."""
    params = {name: leaf for name, leaf in param_paths(policy).items() if not name.startswith("channel.")}
    if channel is not None:
        params |= {f"channel.{name}": leaf for name, leaf in param_paths(channel).items()}
    return policy_from_params(config, params)


def with_score(policy: Policy, config: ModelConfig, score: Score | None) -> Policy:
    """The same policy with another score head (`config` describes the result); weights are shared, not copied.

    A score takes the place of the LM head and of a channel. With None only a tied policy is whole again."""
    replaced = ("score.",) if score is None else ("score.", "head", "channel.")
    params = {name: leaf for name, leaf in param_paths(policy).items() if not name.startswith(replaced)}
    if score is not None:
        params |= {f"score.{name}": leaf for name, leaf in param_paths(score).items()}
    return policy_from_params(config, params)


def without_channel(config: ModelConfig) -> ModelConfig:
    """The config of the bare policy."""
    return dataclasses.replace(config, channel=None)


def unstack(policy: Policy) -> Policy:
    """The decoding layout: `blocks` and the channel's layers as lists of per-layer arrays."""
    graph = jax.tree.map(lambda leaf: leaf, policy)
    layers = jax.tree.leaves(graph.blocks)[0].shape[0]
    graph.blocks = nnx.List([jax.tree.map(lambda leaf, i=i: leaf[i], policy.blocks) for i in range(layers)])
    return graph


def _abstract(config: ModelConfig, dtype: jnp.dtype) -> Policy:
    return jax.eval_shape(lambda key: init_policy(config, key, dtype), jax.random.key(0))


def _matrix(key: jax.Array, rows: int, columns: int, dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param((INIT_STD * jax.random.normal(key, (rows, columns), jnp.float32)).astype(dtype))


def _name(path: tuple[Any, ...]) -> str:
    """`blocks.attn.q` from a key path; the variable's own `.value` is not part of a name."""
    words = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return ".".join(word for word in words if word != "value")

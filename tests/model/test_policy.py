"""Parameters by name: what they are called, what shapes they have, and what is said when one is wrong."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax import sharding
from sla_jax.errors import UserError
from sla_jax.model import axes, policy
from sla_jax.model.config import ChannelConfig, ModelConfig
from tests import families


def described(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the documentation says them."""
    v, d, f, n, k = config.vocab_size, config.width, config.ffn, config.layers, config.kv_heads
    q, kv, h = config.heads * config.head_dim, k * config.head_dim, config.head_dim
    attn: dict[str, tuple[int, ...]] = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)}
    attn |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)} if config.qkv_bias else {}
    attn |= {"o_bias": (d,)} if config.out_bias else {}
    attn |= {"q_norm": (h,), "k_norm": (h,)} if config.qk_norm else {}
    blocks = {f"attn.{name}": shape for name, shape in attn.items()} | {"attn_norm": (d,), "mlp_norm": (d,)}
    blocks |= {"mlp.gate": (d, f), "mlp.up": (d, f), "mlp.down": (f, d)}
    shapes = {f"blocks.{name}": (n, *shape) for name, shape in blocks.items()} | {"embed": (v, d), "norm": (d,)}
    shapes |= {} if config.tied else {"head": (d, v)}
    return shapes | (channel(config, config.channel) if config.channel else {})


def channel(config: ModelConfig, sizes: ChannelConfig) -> dict[str, tuple[int, ...]]:
    """The channel's names and shapes."""
    d, c, deep = config.width, sizes.width, config.layers - 1
    hidden = [int(sizes.head_hidden_rate * d)] * (sizes.head_layers - 1)
    widths = [d + c, *hidden, sizes.head_outputs]
    heads = {f"channel.head.{i}": (widths[i], widths[i + 1]) for i in range(sizes.head_layers)}
    first = {"channel.first_norm": (d,), "channel.first": (d, c)}
    return heads | first | {"channel.norm": (deep, d + c), "channel.linear": (deep, d + c, c)}


def flat(name: str = "qwen3") -> tuple[ModelConfig, dict[str, Any]]:
    """A family's config and parameters."""
    one = families.family(name)
    return one.config, policy.param_paths(one.policy)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_names_and_shapes(name: str) -> None:
    config, params = flat(name)
    want = described(config)
    assert {name: leaf.shape for name, leaf in params.items()} == want
    half = policy.param_shapes(config, jnp.dtype(jnp.bfloat16))
    assert {name: leaf.shape for name, leaf in half.items()} == want
    assert {leaf.dtype for leaf in half.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", ["llama-deep", "qwen3"])
def test_assembled_and_taken_apart_is_the_same(name: str) -> None:
    config, params = flat(name)
    again = policy.param_paths(policy.policy_from_params(config, params))
    assert list(again) == list(params)
    assert all(again[name] is params[name] for name in params)


def test_wrong_parameters_are_named() -> None:
    config, params = flat()
    with pytest.raises(UserError, match=r"blocks\.attn\.qq.*Did you mean 'blocks\.attn\.q'"):
        policy.policy_from_params(config, params | {"blocks.attn.qq": params["norm"]})
    with pytest.raises(UserError, match=r"'norm'.*missing"):
        policy.policy_from_params(config, {name: leaf for name, leaf in params.items() if name != "norm"})
    with pytest.raises(UserError, match=r"'norm'.*\(61, 32\).*\(32,\)"):
        policy.policy_from_params(config, params | {"norm": params["embed"]})


def test_a_channel_comes_and_goes_without_touching_the_policy() -> None:
    config, params = flat()
    bare_config = policy.without_channel(config)
    bare = policy.with_channel(families.family("qwen3").policy, bare_config, None)
    assert bare.channel is None
    assert set(params) - set(policy.param_paths(bare)) == {name for name in params if name.startswith("channel.")}
    other = dataclasses.replace(config, channel=ChannelConfig(width=5, head_outputs=1))
    fresh = policy.with_channel(bare, other, policy.init_channel(other, jax.random.key(0)))
    kept = policy.param_paths(fresh)
    assert {name: leaf.shape for name, leaf in kept.items()} == described(other)
    assert all(kept[name] is params[name] for name in policy.param_paths(bare))


def test_fresh_policies_follow_their_key() -> None:
    config, _ = flat("llama-deep")
    make = jax.jit(lambda key: policy.param_paths(policy.init_policy(config, key)))
    one, same, other = (make(jax.random.key(seed)) for seed in (0, 0, 1))
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, same[name])
        is_matrix = leaf.ndim > 1 and float(leaf.std()) > 0
        assert (float(jnp.abs(leaf - other[name]).max()) > 0) == is_matrix
    blocks = one["blocks.mlp.up"]
    assert float(jnp.abs(blocks[0] - blocks[1]).max()) > 0  # every layer has its own numbers


@pytest.mark.parametrize("rules", [sharding.TRAIN, sharding.SERVE], ids=["train", "serve"])
def test_every_big_parameter_is_split_somewhere(rules: sharding.Rules) -> None:
    for name in families.FAMILIES:
        for path, shape in described(families.family(name).config).items():
            spec = sharding.spec(*axes.param_axes(path, len(shape)), rules=rules)
            big = path.startswith("blocks.") and len(shape) == 3 or path in ("embed", "head")
            assert not big or any(axis is not None for axis in spec), path

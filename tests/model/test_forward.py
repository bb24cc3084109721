"""The training forward: equal to PyTorch, and to itself under every layout, padding, remat and mesh."""

import functools
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sla_jax import sharding
from sla_jax.model import axes, channel, forward, policy
from tests import families, torch_reference

every_family = pytest.mark.parametrize("family", list(families.FAMILIES))
LENGTH = 96  # beyond the rope's original 64 positions and both sliding windows


@functools.partial(jax.jit, static_argnames="config")
def run(weights: Any, config: Any, tokens: Any, places: Any = None) -> Any:
    """(logits [B,T,V], rewards [B,T], features [L+1,G,P,D] | None)."""
    out = forward.trunk(weights, config, tokens, places=places)
    return forward.logits(weights, out.hidden), out.reward, out.features


def some_tokens(rows: int = 2, seed: int = 0, length: int = LENGTH) -> Any:
    drawn = np.random.default_rng(seed).integers(0, families.SIZES["vocab_size"], (rows, length))
    return jnp.asarray(drawn, jnp.int32)


def everywhere(rows: int = 2, length: int = LENGTH, groups: int = 1) -> Any:
    """Places of all tokens, in order."""
    return jnp.tile(jnp.arange(rows * length // groups, dtype=jnp.int32)[None, :], (groups, 1))


def close(left: Any, right: Any, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=tolerance)


@every_family
def test_logits_and_rewards_are_pytorchs(family: str) -> None:
    one, tokens = families.family(family), some_tokens()
    same_tokens = torch.from_numpy(np.array(tokens)).long()
    logits, rewards = torch_reference.logits_and_rewards(one.model, one.channel, same_tokens)
    assert logits.std() > 0.3 and rewards.std() > 0.1  # a parity of zeros would show nothing
    ours = run(one.policy, one.config, tokens)
    close(ours[0], logits)
    close(ours[1], rewards)


@every_family
def test_padding_changes_nothing(family: str) -> None:
    one, tokens = families.family(family), some_tokens(seed=1)
    padded = tokens.at[1, 40:].set(0)
    left, right = run(one.policy, one.config, tokens), run(one.policy, one.config, padded)
    for a, b in zip(left[:2], right[:2], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1, :40], b[1, :40])


@pytest.mark.parametrize("family", ["llama-deep", "qwen2-sliding"])
def test_unstacked_layout_is_equal(family: str) -> None:
    one, tokens = families.family(family), some_tokens(seed=2)
    stacked = run(one.policy, one.config, tokens, everywhere())
    unstacked = run(policy.unstack(one.policy), one.config, tokens, everywhere())
    jax.tree.map(functools.partial(close, tolerance=1e-5), stacked, unstacked)


@every_family
def test_channel_alone_on_kept_features_is_equal(family: str) -> None:
    """Both ways round: our features feed our channel and PyTorch's, which read the same hidden states."""
    one, tokens = families.family(family), some_tokens(seed=3)
    _, rewards, features = run(one.policy, one.config, tokens, everywhere())
    features = features.reshape(-1, *tokens.shape, one.config.width)
    close(channel.channel_rewards(one.policy.channel, one.config, features), rewards, 1e-5)
    states = [torch.from_numpy(np.array(state)) for state in features]
    close(torch_reference.channel_rewards(states, one.channel, one.config.eps), rewards)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_channel_reads_half_precision_features_in_float32(dtype: Any) -> None:
    """Stored features are what they are; widening them first, or layer by layer inside, is the same. Gradients too."""
    one = families.family("llama-deep")
    features = jax.random.normal(jax.random.key(0), (one.config.layers + 1, 7, one.config.width), dtype)

    @jax.jit
    def slope(weights: Any, features: Any) -> Any:
        def loss(weights: Any) -> Any:
            rewards = channel.channel_rewards(weights, one.config, features)
            return jnp.sum(rewards**2), rewards

        return jax.value_and_grad(loss, has_aux=True)(weights)

    half, wide = slope(one.policy.channel, features), slope(one.policy.channel, features.astype(jnp.float32))
    assert half[0][1].dtype == jnp.float32 and float(jnp.abs(half[0][1]).max()) > 0.1
    jax.tree.map(functools.partial(close, tolerance=1e-6), half, wide)


@pytest.mark.parametrize("unrolled", [False, True])
def test_remat_is_equal(unrolled: bool) -> None:
    """Values and the gradients of all weights, features included; "full" computes what "none" keeps."""
    one, tokens = families.family("qwen3"), some_tokens(seed=4, length=24)
    places = jnp.asarray([[3, 30, 47], [0, 0, 5]], jnp.int32)[:, :3] % 24

    def loss(weights: Any, remat: Any) -> Any:
        out: Any = forward.trunk(weights, one.config, tokens, remat=remat, places=places)
        return jnp.mean(out.reward**2) + jnp.mean(out.hidden**3) + jnp.mean(out.features**2)

    weights = policy.unstack(one.policy) if unrolled else one.policy
    slope = jax.jit(jax.value_and_grad(loss), static_argnames="remat")
    plain, *others = (slope(weights, remat=remat) for remat in ("none", "dots", "full"))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1])) > 1e-3
    for again in others:
        jax.tree.map(functools.partial(close, tolerance=1e-5), plain, again)


def test_remat_keeps_less() -> None:
    """Bytes that the backward pass of a long row needs: everything, products' outputs, blocks' inputs."""
    one = families.family("llama31")
    config = one.config.__class__(**{**vars(one.config), "layers": 8, "windows": (), "channel": None})
    weights = jax.eval_shape(lambda key: policy.init_policy(config, key), jax.random.key(0))

    def temporary(remat: Any) -> int:
        def loss(weights: Any, tokens: Any) -> Any:
            return forward.trunk(weights, config, tokens, remat=remat).hidden.sum()

        compiled: Any = jax.jit(jax.grad(loss)).lower(weights, jax.ShapeDtypeStruct((2, 192), jnp.int32)).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    nothing, dots, full = (temporary(remat) for remat in ("none", "dots", "full"))
    assert full < dots < nothing


def test_features_are_those_of_the_places_asked_for() -> None:
    """Two shards of two rows: places count within a shard's flattened rows, in any order, also twice."""
    one, tokens = families.family("llama-deep"), some_tokens(rows=4, seed=6, length=24)
    places = jnp.asarray([[47, 0, 5], [24, 23, 23]], jnp.int32)
    _, _, all_of_them = run(one.policy, one.config, tokens, everywhere(rows=4, length=24))
    _, _, asked = run(one.policy, one.config, tokens, places)
    rows = np.asarray(all_of_them).reshape(-1, 2, 48, one.config.width)
    close(asked, np.stack([rows[:, shard, np.asarray(places[shard])] for shard in range(2)], axis=1), 1e-6)


def test_features_are_gathered_within_each_shard() -> None:
    """Four data shards, the parameters on each: no device needs another's tokens, so nothing is communicated."""
    one = families.family("llama31")
    tokens, places = some_tokens(rows=8, seed=7, length=24), jnp.asarray([[3, 40], [0, 1], [47, 9], [5, 5]], jnp.int32)
    alone = run(one.policy, one.config, tokens, places)
    mesh = sharding.make_mesh(data=4, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        split = sharding.named(mesh, "batch", None, rules=sharding.ACTIVATIONS)
        weights = jax.device_put(one.policy, sharding.named(mesh, rules=sharding.TRAIN))
        arguments = (weights, one.config, *(jax.device_put(x, split) for x in (tokens, places)))
        program: Any = run.lower(*arguments).compile()
        spread = run(*arguments)
    assert spread[2].sharding.shard_shape(spread[2].shape) == (one.config.layers + 1, 1, 2, one.config.width)
    found = [word for word in ("all-gather", "all-reduce", "all-to-all", "collective") if word in program.as_text()]
    assert not found, found
    jax.tree.map(functools.partial(close, tolerance=1e-5), alone, spread)


def equations(jaxpr: Any) -> list[Any]:
    """All equations, those of nested programs too."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += equations(inner)
    return found


def vocabulary_products(function: Any, *arguments: Any) -> int:
    """How many matrix products of the traced function have the vocabulary's size in their result."""
    traced = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    products = [equation for equation in traced if equation.primitive.name == "dot_general"]
    assert products
    return sum(families.SIZES["vocab_size"] in equation.outvars[0].aval.shape for equation in products)


@pytest.mark.parametrize("family", ["llama31", "qwen2"])
def test_a_reward_pass_has_no_output_head(family: str) -> None:
    one, tokens = families.family(family), some_tokens(length=8)

    def rewards(channel_weights: Any) -> Any:
        weights = policy.with_channel(one.policy, one.config, channel_weights)
        out: Any = forward.trunk(weights, one.config, tokens)
        return out.reward.sum()

    def with_logits(channel_weights: Any) -> Any:
        weights = policy.with_channel(one.policy, one.config, channel_weights)
        return forward.logits(weights, forward.trunk(weights, one.config, tokens).hidden).sum()

    assert vocabulary_products(rewards, one.policy.channel) == 0
    assert vocabulary_products(jax.grad(rewards), one.policy.channel) == 0
    assert vocabulary_products(with_logits, one.policy.channel) == 1


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_on_a_mesh_it_is_equal(sizes: dict[str, int]) -> None:
    if jax.device_count() < 4:
        pytest.skip("needs four (fake) devices: XLA_FLAGS=--xla_force_host_platform_device_count=4")
    one = families.family("llama31")
    # V=61 does not divide; a policy whose sizes all do
    config = one.config.__class__(**{**vars(one.config), "vocab_size": 64})
    weights = policy.init_policy(config, jax.random.key(3))
    tokens = some_tokens(rows=4, seed=5, length=24)
    alone = run(weights, config, tokens)
    mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:4])
    shardings = axes.param_shardings(config, mesh, sharding.TRAIN)
    params = policy.param_paths(weights)
    placed = {name: jax.device_put(leaf, shardings[name]) for name, leaf in params.items()}
    assert any(not leaf.sharding.is_fully_replicated for leaf in placed.values())
    with jax.set_mesh(mesh):
        spread = run(policy.policy_from_params(config, placed), config, tokens)
    jax.tree.map(functools.partial(close, tolerance=1e-5), alone, spread)

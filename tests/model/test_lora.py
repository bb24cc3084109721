"""Adapters: PEFT's formula, nothing changed at the start, adapted = merged (values and gradients), every layout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax import sharding
from sla_jax.errors import UserError
from sla_jax.model import axes, decoding, forward, lora, policy
from sla_jax.model.layers import LowRank, linear
from tests import families

CONFIG = lora.LoraConfig(rank=3, alpha=4.5)


def random_lora(config: Any, chosen: lora.LoraConfig = CONFIG, seed: int = 0) -> lora.Lora:
    """Both factors random: a fresh one changes nothing."""
    fresh = lora.init_lora(config, chosen, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    drawn = [0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def flat(factors: lora.Lora) -> dict[str, Any]:
    """{"attn.q.a": …, …}."""
    sides = {"attn": factors.attn, "mlp": factors.mlp}
    pairs = {f"{side}.{name}": one for side, ones in sides.items() for name, one in ones.items()}
    return {f"{name}.{factor}": getattr(one, factor)[...] for name, one in pairs.items() for factor in "ab"}


def tokens(length: int = 12) -> Any:
    return jnp.asarray(np.random.default_rng(0).integers(0, families.SIZES["vocab_size"], (2, length)), jnp.int32)


@functools.partial(jax.jit, static_argnames="config")
def read(weights: Any, config: Any) -> Any:
    out: Any = forward.trunk(weights, config, tokens())
    return forward.logits(weights, out.hidden), out.reward


def close(left: Any, right: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=tolerance)


def test_a_product_is_pefts_formula() -> None:
    """y = W x + (alpha / r) · B (A x), with PEFT's [out, in], [r, in] and [out, r]."""
    rng = np.random.default_rng(1)
    x, w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 8), (6, 8), (3, 8), (6, 3)))
    want = x @ w.T + CONFIG.alpha / CONFIG.rank * (x @ a.T @ b.T)
    ours = linear(jnp.asarray(x), LowRank(jnp.asarray(w.T), jnp.asarray(a.T), jnp.asarray(b.T), CONFIG.scale))
    close(ours, want, 1e-5)
    half = linear(
        jnp.asarray(x, jnp.bfloat16),
        LowRank(jnp.asarray(w.T, jnp.bfloat16), jnp.asarray(a.T), jnp.asarray(b.T), CONFIG.scale),
    )
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), want, 0.2)


def test_fresh_factors_start_as_in_peft() -> None:
    config = families.family("llama31").config
    fresh = flat(lora.init_lora(config, lora.LoraConfig(rank=64), jax.random.key(0)))
    assert len(fresh) == 2 * len(lora.TARGETS)
    for name, leaf in fresh.items():
        part, target, factor = name.split(".")
        base = policy.param_shapes(config)[f"blocks.{part}.{target}"].shape
        assert leaf.dtype == jnp.float32
        if factor == "b":
            assert leaf.shape == (2, 64, base[2]) and not leaf.any()
            continue
        bound = base[1] ** -0.5  # kaiming_uniform_(a=√5)
        assert leaf.shape == (2, base[1], 64)
        assert 0.95 * bound < float(jnp.abs(leaf).max()) <= bound
        close(leaf.std(), bound / 3**0.5, 0.05 * bound)


def test_a_fresh_adapter_changes_nothing_at_all() -> None:
    one = families.family("qwen2")
    fresh = lora.init_lora(one.config, CONFIG, jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal,
        read(lora.adapted(one.policy, fresh, 1.5), one.config),
        read(one.policy, one.config),
    )


@pytest.mark.parametrize("family", ["llama-deep", "qwen3"])
def test_adapted_is_merged(family: str) -> None:
    one = families.family(family)
    factors = random_lora(one.config)
    split, whole = lora.adapted(one.policy, factors, CONFIG.scale), lora.merged(one.policy, factors, CONFIG.scale)
    assert list(policy.param_paths(whole)) == list(policy.param_paths(one.policy))
    base, left, right = (read(weights, one.config) for weights in (one.policy, split, whole))
    assert float(jnp.abs(left[0] - base[0]).max()) > 0.1
    jax.tree.map(functools.partial(close, tolerance=2e-5), left, right)
    assert one.policy.blocks.attn.q[...].ndim == 3  # the policy itself is as it was


def test_merging_sums_in_float32_and_keeps_the_type() -> None:
    one = families.family("llama31")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), one.policy)
    factors = random_lora(one.config, lora.LoraConfig(rank=2, targets=("k", "down")))
    whole = policy.param_paths(lora.merged(half, factors, 0.7))
    for name, leaf in policy.param_paths(half).items():
        want = np.asarray(leaf.astype(jnp.float32))
        part = name.removeprefix("blocks.")
        if part in ("attn.k", "mlp.down"):
            a, b = (np.asarray(flat(factors)[f"{part}.{factor}"]) for factor in "ab")
            want = want + 0.7 * np.einsum("lir,lro->lio", a, b)
        assert whole[name].dtype == jnp.bfloat16
        rounding = 0.0 if part == name else 2**-8 * np.abs(want).max()
        close(whole[name].astype(jnp.float32), want, rounding)


@pytest.mark.parametrize("targets", [lora.TARGETS, ("gate", "v")])
def test_gradients_are_those_through_the_merged_policy(targets: tuple[str, ...]) -> None:
    one = families.family("llama31")
    factors = random_lora(one.config, lora.LoraConfig(rank=3, targets=targets))

    def slope(make: Any) -> Any:
        def loss(factors: lora.Lora) -> Any:
            weights = make(one.policy, factors, 1.5)
            return jnp.mean(forward.logits(weights, forward.trunk(weights, one.config, tokens()).hidden) ** 2)

        return flat(jax.jit(jax.grad(loss))(factors))

    left, right = slope(lora.adapted), slope(lora.merged)
    assert len(left) == 2 * len(targets)
    for name, leaf in left.items():
        assert float(jnp.abs(leaf).max()) > 1e-3, name
        close(leaf, right[name], 1e-5)


def test_decoding_reads_an_adapted_policy() -> None:
    one = families.family("qwen3")
    factors = random_lora(one.config)
    prompt = tokens(7)

    def two_steps(weights: Any) -> Any:
        unrolled = policy.unstack(weights)
        lengths = jnp.asarray([7, 5], jnp.int32)
        room: Any = {"lanes": 1, "capacity": 12, "held": 4}
        logits, reward, cache = decoding.prefill(unrolled, one.config, prompt, lengths, **room)
        token = jnp.argmax(logits, axis=-1)[:, None].astype(jnp.int32)
        again, rewards, _ = decoding.step(unrolled, one.config, 4, token, jnp.asarray(0, jnp.int32), cache)
        return logits, reward, again, rewards

    made = (lora.adapted(one.policy, factors, 1.5), lora.merged(one.policy, factors, 1.5))
    left, right = (jax.jit(two_steps)(weights) for weights in made)
    jax.tree.map(functools.partial(close, tolerance=5e-5), left, right)


def test_shardings_of_factors_follow_their_matrices() -> None:
    names = ("blocks.attn.q.a", "blocks.attn.q.b", "blocks.mlp.down.a", "attn.o.b", "blocks.attn.v.base")
    want = (("embed", None), (None, "heads"), ("ffn", None), (None, "embed"), ("embed", "heads"))
    assert [axes.param_axes(name, 3) for name in names] == [(None, *axes) for axes in want]


def test_on_a_mesh_it_is_equal() -> None:
    config = families.family("llama31").config
    config = config.__class__(**{**vars(config), "vocab_size": 64})
    weights, factors = policy.init_policy(config, jax.random.key(3)), random_lora(config)
    alone = read(lora.adapted(weights, factors, 1.5), config)
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    placed: Any = [jax.device_put(x, axes.policy_shardings(x, mesh, sharding.TRAIN)) for x in (weights, factors)]
    assert all(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed[1]))
    adapted = lora.adapted(placed[0], placed[1], 1.5)
    kept = axes.policy_shardings(adapted, mesh, sharding.TRAIN)
    assert jax.tree.all(jax.tree.map(lambda x, split: x.sharding == split, adapted, kept))
    with jax.set_mesh(mesh):
        spread = read(adapted, config)
    jax.tree.map(functools.partial(close, tolerance=1e-5), alone, spread)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 0}, r"lora\.rank is 0"),
        ({"alpha": 0.0}, r"lora\.alpha is 0\.0"),
        ({"alpha": float("nan")}, r"lora\.alpha is nan"),
        ({"targets": ()}, r"lora\.targets is empty"),
        ({"targets": ("q", "gates")}, r"'gates'.*Did you mean 'gate'"),
        ({"targets": ("q", "q")}, r"names a matrix twice: q, q"),
    ],
)
def test_bad_settings_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        lora.LoraConfig(**fields)

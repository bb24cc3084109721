"""Log-probabilities in chunks: those of the full softmax, their gradients too, in a fraction of the memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax import sharding
from sla_jax.model import axes, forward, policy
from sla_jax.model.logprobs import token_logprobs
from tests import families


def drawn(groups: int, places: int, width: int, vocabulary: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(groups, places, width)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(groups, places)), jnp.float32)
    return hidden, jnp.asarray(rng.integers(0, vocabulary, (groups, places)), jnp.int32), weights


def full(weights: Any, hidden: Any, targets: Any) -> Any:
    scores = jax.nn.log_softmax(forward.logits(weights, hidden), axis=-1)
    return jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("family", ["llama31", "qwen2"])  # a head of its own, and one tied to the embedding
@pytest.mark.parametrize("chunk", [4, 64])  # 10 tokens: three chunks and padding, or one
def test_equal_to_the_full_softmax(family: str, chunk: int) -> None:
    one = families.family(family)
    hidden, targets, mix = drawn(2, 10, one.config.width, one.config.vocab_size)

    def mixed(function: Any, weights: Any, hidden: Any) -> Any:
        return jnp.sum(function(weights, hidden, targets) * mix)

    chunked = functools.partial(token_logprobs, chunk=chunk)
    got = jax.jit(chunked)(one.policy, hidden, targets)
    assert got.dtype == jnp.float32 and float(got.max()) < 0
    np.testing.assert_allclose(got, full(one.policy, hidden, targets), rtol=0, atol=2e-6)
    left, right = (
        jax.jit(jax.grad(functools.partial(mixed, f), argnums=(0, 1)))(one.policy, hidden) for f in (chunked, full)
    )
    matrix = "embed" if one.config.tied else "head"
    assert float(jnp.abs(policy.param_paths(left[0])[matrix]).max()) > 0.1
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_all_logits_are_never_alive() -> None:
    """1,024 tokens × 4,096 words would be 17 MB of logits; chunks of 32 take under an eighth, gradients too."""
    one = families.family("llama31")
    config = one.config.__class__(**{**vars(one.config), "vocab_size": 4096, "channel": None})
    weights = jax.eval_shape(lambda key: policy.init_policy(config, key), jax.random.key(0))
    hidden, targets = jax.ShapeDtypeStruct((1, 1024, 32), jnp.float32), jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    logits = 1024 * 4096 * 4

    def temporary(function: Any) -> int:
        slope = jax.grad(lambda weights, hidden, targets: function(weights, hidden, targets).sum(), argnums=(0, 1))
        compiled: Any = jax.jit(slope).lower(weights, hidden, targets).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert temporary(full) > logits
    assert temporary(functools.partial(token_logprobs, chunk=32)) < logits / 8


def test_in_half_precision_the_sums_are_float32() -> None:
    one = families.family("qwen2")
    hidden, targets, _ = drawn(1, 6, one.config.width, one.config.vocab_size)
    half: Any = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (one.policy, hidden))
    got = token_logprobs(half[0], half[1], targets, chunk=6)
    wide: Any = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, full(wide[0], wide[1], targets), rtol=0, atol=1e-5)


def test_on_a_mesh_it_is_equal_and_logits_stay_split() -> None:
    one = families.family("llama31")
    config = one.config.__class__(**{**vars(one.config), "vocab_size": 64})
    weights = policy.init_policy(config, jax.random.key(0))
    hidden, targets, _ = drawn(2, 10, config.width, config.vocab_size)
    want = full(weights, hidden, targets)
    mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    placed = jax.device_put(weights, axes.policy_shardings(weights, mesh, sharding.TRAIN))
    with jax.set_mesh(mesh):
        split = sharding.named(mesh, "batch", None, rules=sharding.ACTIVATIONS)
        arguments = (placed, *(jax.device_put(x, split) for x in (hidden, targets)))
        program: Any = jax.jit(functools.partial(token_logprobs, chunk=5)).lower(*arguments).compile()
    np.testing.assert_allclose(program(*arguments), want, rtol=0, atol=2e-6)
    assert "all-gather" not in program.as_text()
    assert "f32[1,5,32]" in program.as_text()  # of 64 words

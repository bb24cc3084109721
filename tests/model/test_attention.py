"""Every kind of attention is the first one: values and gradients, with branches and windows where it can."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax import sharding
from sla_jax.errors import UserError
from sla_jax.model import attention, forward
from sla_jax.model.attention import Reading, attender
from tests import families

GPU = any(device.platform == "gpu" for device in jax.devices())


def sized(heads: int = 4, head_dim: int = 8, **changes: Any) -> Any:
    """A config for attention alone: 2 key/value heads."""
    config = families.family("llama31").config
    return dataclasses.replace(config, heads=heads, kv_heads=2, head_dim=head_dim, max_positions=4096, **changes)


def drawn(config: Any, rows: int, length: int, dtype: Any = jnp.float32) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(rows, length, config.heads, config.head_dim))
    k, v = rng.normal(size=(2, rows, config.kv_heads, length, config.head_dim))
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype), jnp.asarray(v, dtype)


def slopes(function: Any, *inputs: Any) -> Any:
    """The output and the gradients of a weighing of it that no symmetry cancels."""
    mix = jnp.asarray(np.random.default_rng(1).normal(size=inputs[0].shape), jnp.float32)

    def mixed(*inputs: Any) -> Any:
        out = function(*inputs)
        return jnp.sum(out.astype(jnp.float32) * mix), out

    (_, out), gradients = jax.jit(jax.value_and_grad(mixed, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return out, gradients


def close(left: Any, right: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(left, np.float32), np.asarray(right, np.float32), rtol=0, atol=tolerance)


def plain(length: int) -> Reading:
    return Reading(jnp.arange(length)[None, :], None)


def branched(length: int) -> Reading:
    """Two rows of prompt | branch 1 | branch 2, cut at different places."""
    cuts = np.asarray([[60, 150], [100, 170]])
    order = np.arange(length)
    branch = (order >= cuts[:, :1]).astype(np.int32) + (order >= cuts[:, 1:])
    start = np.where(branch == 2, cuts[:, 1:] - cuts[:, :1], 0)
    return Reading(jnp.asarray(order - start, jnp.int32), jnp.asarray(branch, jnp.int32))


@pytest.mark.parametrize("reading", [plain, branched])
@pytest.mark.parametrize("window", [10_000, 37])
def test_blocked_is_xla(reading: Any, window: int) -> None:
    config, length = sized(), 200  # a block and a piece of another
    width = jnp.asarray(window, jnp.int32)
    runs = [
        slopes(
            lambda q, k, v, kind=kind: attender(kind, config, reading(length))(q, k, v, width),
            *drawn(config, 2, length),
        )
        for kind in ("xla", "blocked")
    ]
    jax.tree.map(close, *runs)


def test_a_plain_row_is_a_plain_softmax() -> None:
    """The oracle: one query at a time in numpy."""
    config, length, window = sized(), 9, 4
    q, k, v = drawn(config, 1, length)
    ours = attender("xla", config, plain(length))(q, k, v, jnp.asarray(window, jnp.int32))
    for t in range(length):
        for head in range(config.heads):
            keys, values = (np.asarray(x)[0, head // 2, max(0, t - window + 1) : t + 1] for x in (k, v))
            weights = np.exp(keys @ np.asarray(q)[0, t, head] / 8**0.5)
            close(ours[0, t, head], weights @ values / weights.sum())


def test_blocked_holds_no_square_of_scores() -> None:
    config, length = sized(), 2048
    scores = config.heads * length * length * 4

    def temporary(kind: Any) -> int:
        def loss(q: Any, k: Any, v: Any) -> Any:
            return attender(kind, config, plain(length))(q, k, v, jnp.asarray(5000, jnp.int32)).sum()

        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in drawn(config, 1, length)]
        compiled: Any = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert temporary("xla") > scores
    assert temporary("blocked") < scores / 3


def test_flash_is_xla() -> None:
    """The TPU's kernel, interpreted; 130 tokens are padded to 256."""
    config, length = sized(heads=4, head_dim=64), 130
    inputs = drawn(config, 2, length)
    wide = jnp.asarray(10_000, jnp.int32)
    left = slopes(lambda q, k, v: attender("xla", config, plain(length))(q, k, v, wide), *inputs)
    right = slopes(functools.partial(attention.flash, interpret=True), *inputs)
    jax.tree.map(functools.partial(close, tolerance=2e-5), left, right)


def test_flash_on_a_mesh_is_equal() -> None:
    config = sized(heads=4, head_dim=64)
    inputs = drawn(config, 2, 128)
    kernel = functools.partial(attention.flash, interpret=True)
    alone = slopes(kernel, *inputs)
    mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        spread = slopes(kernel, *inputs)
    jax.tree.map(close, alone, spread)


@pytest.mark.skipif(not GPU, reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("reading", [plain, branched])
def test_cudnn_is_xla(reading: Any) -> None:
    config, length = sized(head_dim=64), 256
    inputs, wide = drawn(config, 2, length, jnp.bfloat16), jnp.asarray(10_000, jnp.int32)
    left, right = (
        slopes(lambda q, k, v, kind=kind: attender(kind, config, reading(length))(q, k, v, wide), *inputs)
        for kind in ("xla", "cudnn")
    )
    jax.tree.map(functools.partial(close, tolerance=0.05), left, right)


@pytest.mark.parametrize("branches", [False, True])
def test_the_whole_trunk_is_equal(branches: bool) -> None:
    """Sliding windows in some layers, scanned; hidden states and the gradients of all weights."""
    one = families.family("qwen2-sliding")
    length = 150
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, one.config.vocab_size, (2, length)), jnp.int32)
    layout = branched(length)
    assert layout.branch is not None
    rows = forward.Branches(layout.positions, layout.branch) if branches else None

    def loss(weights: Any, kind: Any) -> Any:
        return jnp.mean(forward.trunk(weights, one.config, tokens, branches=rows, attention=kind).hidden ** 3)

    left, right = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(one.policy, kind) for kind in ("xla", "blocked"))
    jax.tree.map(close, left, right)


def test_what_is_picked() -> None:
    assert attention.pick_attention("cpu", False, 256, 64) == "xla"
    assert attention.pick_attention("cpu", False, 2048, 64) == "blocked"
    assert attention.pick_attention("gpu", True, 2048, 128) == "blocked"
    assert attention.pick_attention("tpu", False, 2048, 128) == "flash"
    assert attention.pick_attention("tpu", True, 2048, 128) == "blocked"


@pytest.mark.parametrize(
    ("kind", "backend", "branches", "head_dim", "said"),
    [
        ("flush", "tpu", False, 64, r"no attention 'flush'.*Did you mean 'flash'"),
        ("flash", "cpu", False, 64, r"'flash' needs a TPU and this is a CPU.*Use 'blocked'"),
        ("flash", "tpu", True, 64, r"'flash' reads plain rows"),
        ("cudnn", "tpu", False, 64, r"'cudnn' needs a GPU and this is a TPU"),
        ("cudnn", "cuda", False, 256, r"'cudnn' takes heads.*this policy's have 256"),
    ],
)
def test_a_kind_that_cannot_run_there_is_refused(
    kind: str, backend: str, branches: bool, head_dim: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        attention.check_attention(kind, backend, branches, head_dim)


def test_a_kind_that_cannot_read_the_rows_is_refused() -> None:
    attention.check_attention("cudnn", "gpu", True, 128)
    with pytest.raises(UserError, match=r"'flash' reads plain rows"):
        attender("flash", sized(), branched(200))
    with pytest.raises(UserError, match=r"'flash' reads whole rows and this policy has sliding windows"):
        attender("flash", sized(windows=(None, 64)), plain(128))
    config = sized()
    with pytest.raises(UserError, match=r"'cudnn' computes in bfloat16 or float16 and this policy in float32"):
        attender("cudnn", config, plain(128))(*drawn(config, 1, 128), jnp.asarray(5000, jnp.int32))

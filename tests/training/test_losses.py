"""The losses against slow loops that are written from ALGORITHMS §1.1 and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.training import losses


def pair_loss(name, *batch, **options):
    shown = losses.means(losses.loss_sums(name, *batch, **options))
    return shown["loss"], shown


def neg_log_sigmoid(x: float) -> float:
    return float(np.log1p(np.exp(-x)))


def slow_seqwise(chosen: list[list[float]], rejected: list[list[float]]) -> float:
    each = [neg_log_sigmoid(sum(c) / len(c) - sum(r) / len(r)) for c, r in zip(chosen, rejected, strict=True)]
    return sum(each) / len(each)


def slow_tokenwise(chosen: list[list[float]], rejected: list[list[float]], a: float, b: float) -> float:
    each = []
    for c, r in zip(chosen, rejected, strict=True):
        c, r = list(c), list(r)
        while len(c) < len(r):
            c.append(c[-1])
        while len(r) < len(c):
            r.append(r[-1])
        each.append(sum(neg_log_sigmoid(a * (x - y - b)) for x, y in zip(c, r, strict=True)) / len(c))
    return sum(each) / len(each)


def ragged(key: int, pairs: int = 7) -> tuple[list[list[float]], list[list[float]]]:
    random = np.random.default_rng(key)
    sides = [[list(random.normal(size=random.integers(1, 9))) for _ in range(pairs)] for _ in range(2)]
    return sides[0], sides[1]


def padded(rows: list[list[float]], extra_rows: int = 0, width: int = 11) -> tuple[jax.Array, jax.Array]:
    """Padding is filled with trouble (large numbers), which must not matter."""
    values = np.full((len(rows) + extra_rows, width), 1e4, np.float32)
    mask = np.zeros(values.shape, bool)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
        mask[i, : len(row)] = True
    return jnp.asarray(values), jnp.asarray(mask)


@pytest.mark.parametrize("key", range(5))
@pytest.mark.parametrize("empty", [0, 3])
def test_seqwise_bt_is_the_slow_one(key: int, empty: int) -> None:
    chosen, rejected = ragged(key)
    (c, cm), (r, rm) = padded(chosen, empty), padded(rejected, empty)
    loss, metrics = pair_loss("seqwise_bt", c, r, cm, rm)
    np.testing.assert_allclose(loss, slow_seqwise(chosen, rejected), rtol=1e-5)
    right = [np.mean(a) > np.mean(b) for a, b in zip(chosen, rejected, strict=True)]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_chosen"], np.mean([np.mean(a) for a in chosen]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["margin"], metrics["reward_chosen"] - metrics["reward_rejected"], atol=1e-6)


@pytest.mark.parametrize("key", range(5))
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.5, 0.3)])
def test_tokenwise_bt_is_the_slow_one(key: int, scale: float, shift: float) -> None:
    chosen, rejected = ragged(key)
    (c, cm), (r, rm) = padded(chosen, 2), padded(rejected, 2)
    loss, _ = pair_loss("tokenwise_bt", c, r, cm, rm, scale=scale, shift=shift)
    np.testing.assert_allclose(loss, slow_tokenwise(chosen, rejected, scale, shift), rtol=1e-5)


@pytest.mark.parametrize("name", ["seqwise_bt", "tokenwise_bt"])
def test_padding_gets_no_gradient_and_ties_count_half(name: losses.LossName) -> None:
    chosen, rejected = ragged(9)
    (c, cm), (r, rm) = padded(chosen, 2), padded(rejected, 2)
    gradient = jax.grad(lambda x: pair_loss(name, x, r, cm, rm)[0])(c)
    assert np.all(np.asarray(gradient)[~np.asarray(cm)] == 0)
    assert np.all(np.asarray(gradient)[np.asarray(cm)] != 0)
    _, metrics = pair_loss(name, c, c, cm, cm)
    assert metrics["accuracy"] == 0.5
    np.testing.assert_allclose(metrics["loss"], np.log(2.0), rtol=1e-6)

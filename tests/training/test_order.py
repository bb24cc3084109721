"""Buckets, forward batches and the order of an epoch."""

from collections import Counter

import numpy as np

from sla_jax.training import order
from sla_jax.training.order import NOTHING


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, size=1003).tolist()
    first, again, second = (order.epoch_order(lengths, 8, 16, 1, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert Counter(first[first != NOTHING].tolist()) == Counter(range(1003))
    assert first.shape == (order.steps_per_epoch(1003, 8), 8)
    padded = sum(8 * max(lengths[i] for i in step if i != NOTHING) for step in first)
    assert padded < 1.15 * sum(lengths)


def test_forward_batches_hold_every_example_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 900, size=500).tolist()
    todo = np.arange(0, 500, 2)
    groups = order.forward_batches(lengths, todo, 2048, 4)
    assert sorted(i for group in groups for i in group if i != NOTHING) == todo.tolist()
    for group in groups:
        assert len(group) % 4 == 0
        longest = max(lengths[i] for i in group if i != NOTHING)
        assert len(group) == order.rows_per_pass(longest, 2048, 4)


def test_buckets_cover_and_are_few() -> None:
    sizes = [order.bucket(n) for n in range(1, 1025)]
    assert all(size >= n for n, size in zip(range(1, 1025), sizes, strict=True))
    assert sorted(set(sizes)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]

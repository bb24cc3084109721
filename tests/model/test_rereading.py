"""Texts read piece by piece, each row from its own start, are what one pass over the whole gives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.model import forward, policy, rereading
from tests import families

READ = jax.jit(rereading.reread, static_argnums=1)
WHOLE = jax.jit(forward.trunk, static_argnums=1)
LENGTHS = np.array([21, 9, 14])
STARTS = np.array([0, 5, 13])  # what of each row has been read before; the first is new
CAPACITY = 64


@functools.cache
def texts(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, families.SIZES["vocab_size"], (3, 21)).astype(np.int32)


def slices(tokens: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """`width` tokens of each row from its start on, zeros behind the end."""
    padded = np.pad(tokens, ((0, 0), (0, CAPACITY)))
    return np.stack([row[start : start + width] for row, start in zip(padded, starts, strict=True)])


def check(
    model: Any, got: tuple, tokens: np.ndarray, starts: np.ndarray, width: int, lengths: np.ndarray = LENGTHS
) -> None:
    """Against one pass over the whole rows, where a row still has tokens."""
    whole = WHOLE(model.policy, model.config, jnp.asarray(tokens))
    for row, start in enumerate(starts):
        count = min(width, lengths[row] - start)
        np.testing.assert_allclose(got[0][row, :count], whole.hidden[row, start : start + count], rtol=0, atol=2e-5)
        np.testing.assert_allclose(got[1][row, :count], whole.reward[row, start : start + count], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_pieces_are_the_whole(name: str) -> None:
    model = families.family(name)
    flat = policy.unstack(model.policy)
    kept = rereading.blank(flat, model.config, 3, CAPACITY)
    *_, kept = READ(flat, model.config, slices(texts(), np.zeros(3, int), 16), jnp.zeros(3, jnp.int32), kept)
    got = READ(flat, model.config, slices(texts(), STARTS, 16), jnp.asarray(STARTS), kept)
    check(model, got, texts(), STARTS, 16)
    again = np.minimum(STARTS + 16, LENGTHS)
    check(model, READ(flat, model.config, slices(texts(), again, 16), jnp.asarray(again), got[2]), texts(), again, 16)


def test_a_fork_goes_on_from_its_parent() -> None:
    """Two rows of one parent, in more room, with other tokens behind what they share; the other rows are gone."""
    model = families.family("mistral")
    flat = policy.unstack(model.policy)
    kept = rereading.blank(flat, model.config, 3, 32)
    *_, kept = READ(flat, model.config, slices(texts(), np.zeros(3, int), 16), jnp.zeros(3, jnp.int32), kept)
    forked = rereading.fork(kept, jnp.asarray([1, 0, 1]), CAPACITY)
    assert {x.shape for x in jax.tree.leaves(forked)} == {(3, 2, CAPACITY, 8)}
    starts = np.array([7, 16, 4])
    tokens = np.array(texts(1))
    for row, (parent, start) in enumerate(zip([1, 0, 1], starts, strict=True)):
        tokens[row, :start] = texts()[parent, :start]
    got = READ(flat, model.config, slices(tokens, starts, 16), jnp.asarray(starts), forked)
    check(model, got, tokens, starts, 16, np.full(3, 21))

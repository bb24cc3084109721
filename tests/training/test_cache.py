"""The feature cache: what is stored is what the policy gives, a killed fill goes on, the key names all that matters."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sla_jax.errors import UserError
from sla_jax.model.channel import init_channel
from sla_jax.model.policy import Policy
from sla_jax.training import cache
from sla_jax.training.batch import StoredSource, TokenSource, put_batch
from sla_jax.training.config import ChannelOptions, FeaturesConfig, TrainConfig
from sla_jax.training.examples import Examples
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.step import jit_outputs
from tests.training import made

NUMBERS = np.arange(11).reshape(1, 1, 11)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return made.model()[0]


@pytest.fixture(scope="module")
def examples() -> Examples:
    return made.random_examples(11, 2, 0)


def plan(folder: Path, dtype: Any = "float32") -> Plan:
    features = FeaturesConfig(mode="cache", dtype=dtype, dir=str(folder), batch_tokens=96)
    return made.plan(TrainConfig(channel=ChannelOptions(width=made.CHANNEL), features=features))


def fill(
    folder: Path, examples: Examples, policy: Policy, dtype: str = "float32", progress=lambda *_: None
) -> StoredSource:
    tokens = TokenSource(examples, shared=True)
    return cache.cached_source(tokens, policy, plan(folder, dtype), made.one_device(), progress=progress)


def test_stored_states_give_the_rewards_of_tokens(tmp_path: Path, examples: Examples, policy: Policy) -> None:
    stored, mesh = fill(tmp_path, examples, policy), made.one_device()
    parts = Parts(channel=init_channel(plan(tmp_path).model, jax.random.key(1)))
    run: Any = jit_outputs(plan(tmp_path), mesh)
    kept = run(parts, Frozen(), put_batch(stored, NUMBERS, mesh)).rewards
    again = run(parts, Frozen(policy=policy), put_batch(stored.tokens, NUMBERS, mesh)).rewards
    np.testing.assert_allclose(kept, again, atol=1e-6)
    half = run(parts, Frozen(), put_batch(fill(tmp_path, examples, policy, "float16"), NUMBERS, mesh)).rewards
    np.testing.assert_allclose(half, again, atol=0.002 * max(float(again.std()), 0.1))


def test_a_killed_fill_goes_on_where_it_stopped(
    tmp_path: Path, examples: Examples, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FLUSH_EVERY", 1)
    whole = fill(tmp_path / "whole", examples, policy)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", examples, policy, progress=stop)
    assert not [path for path in (tmp_path / "cut").iterdir() if len(path.name) == 32]
    rest: list[int] = []
    again = fill(tmp_path / "cut", examples, policy, progress=lambda done, total: rest.append(done))
    assert rest[0] == seen[-1] > 0
    np.testing.assert_array_equal(again.states, whole.states)
    fill(tmp_path / "cut", examples, policy, progress=stop)  # complete: nothing is computed


def test_the_key_names_what_the_states_depend_on(examples: Examples, policy: Policy) -> None:
    model = made.plan().model
    other = jax.tree.map(lambda leaf: leaf + 1e-6, policy)
    keys = {
        cache.cache_key(examples, policy, model, "float32"),
        cache.cache_key(examples, policy, model, "bfloat16"),
        cache.cache_key(examples.select(np.arange(1, 11)), policy, model, "float32"),
        cache.cache_key(examples, other, model, "float32"),
        cache.cache_key(examples, policy, dataclasses.replace(model, eps=1e-6), "float32"),
    }
    assert len(keys) == 5
    without = dataclasses.replace(model, channel=None)
    assert cache.cache_key(examples, policy, without, "float32") in keys  # what reads the states does not matter


def test_states_that_do_not_fit_are_refused(tmp_path: Path, examples: Examples, policy: Policy) -> None:
    with pytest.raises(UserError, match="bfloat16"):
        fill(tmp_path, examples, jax.tree.map(lambda leaf: leaf * 1e6, policy), "float16")

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
from sla_jax.training import cache, setup
from sla_jax.training.batch import StoredSource, TokenSource, put_batch
from sla_jax.training.config import ChannelOptions, FeaturesConfig, PolicyOptions, TrainConfig
from sla_jax.training.examples import Examples
from sla_jax.training.loss_config import PolicyLoss
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.step import jit_outputs
from tests.damage import flip
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


def test_states_that_were_damaged_are_named_when_they_are_read(
    tmp_path: Path, examples: Examples, policy: Policy
) -> None:
    stored = fill(tmp_path, examples, policy)
    numbers = np.arange(len(examples))
    sizes = stored.shapes(numbers[None, None])
    stored.shard(numbers, sizes)
    where = stored.path.parent
    example = int(np.flatnonzero(stored.offsets > 7)[0]) - 1  # whose state is changed: of token 7, in the second layer
    flip(stored.path, stored.states[0].nbytes + 7 * stored.states[0, 0].nbytes + 3)
    with pytest.raises(UserError, match=rf"states\.bin is damaged: the states of example {example} are not .* Delete"):
        stored.shard(numbers, sizes)
    stored.shard(np.delete(numbers, example), sizes)
    (where / "sums.bin").rename(where / "elsewhere")
    fill(tmp_path, examples, policy).shard(numbers, sizes)  # as caches of older releases are read
    (where / "elsewhere").rename(where / "sums.bin")
    for name in ("sums.bin", "states.bin"):
        (where / name).write_bytes((where / name).read_bytes()[:-4])
        with pytest.raises(UserError, match=rf"{name} is damaged: it should have \d+ bytes\. Delete {where}"):
            fill(tmp_path, examples, policy)


def test_reference_sums_that_were_damaged_are_computed_anew(
    tmp_path: Path, examples: Examples, policy: Policy, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    config = TrainConfig(
        channel=ChannelOptions(weight=0.0), policy=PolicyOptions(train="full", weight=1.0, loss=PolicyLoss(name="dpo"))
    )
    computed: list[int] = []

    def sums(*given: Any, **more: Any) -> np.ndarray:
        computed.append(1)
        return np.arange(22, dtype=np.float32).reshape(11, 2)

    monkeypatch.setattr(setup, "reference_sums", sums)
    base = setup.Base(policy, made.plan().model, {}, tmp_path, None, {})

    def found() -> list[list[float]]:
        array = setup.cached_reference(config, base, made.plan(), examples, tmp_path, made.one_device())
        assert array is not None
        return array.tolist()

    whole = found()
    assert (found(), computed) == (whole, [1])
    flip(tmp_path / "reference" / setup.LOGPS)
    assert (found(), computed) == (whole, [1, 1])
    said = " ".join(capsys.readouterr().err.split())
    assert "log-probabilities are computed anew" in said and setup.LOGPS in said
    assert (found(), computed) == (whole, [1, 1])


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

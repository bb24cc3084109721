"""Packed pairs against whole sequences, and the cache: equal to packed, resumable, keyed by what it depends on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.errors import UserError
from sla_jax.model.channel import channel_rewards, init_channel
from sla_jax.model.config import ChannelConfig, ModelConfig, from_hf
from sla_jax.model.forward import trunk
from sla_jax.model.policy import Policy, init_policy, with_channel
from sla_jax.training import cache, features, tiny
from sla_jax.training.batches import NO_PAIR, TokenPair, TokenPairs

RAW = tiny.raw_config()


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return from_hf({**RAW, "tt_hidden_size": 8})


@pytest.fixture(scope="module")
def policy(config: ModelConfig) -> Policy:
    return init_policy(config, jax.random.key(0))


@pytest.fixture(scope="module")
def pairs() -> TokenPairs:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 40, size=(11, 3))
    return TokenPairs([TokenPair(*(random.integers(0, 384, n).astype(np.int32) for n in row)) for row in sizes], 0, 0)


def bare(policy: Policy, config: ModelConfig) -> tuple[Policy, ModelConfig]:
    from sla_jax.model.policy import without_channel

    plain = without_channel(config)
    return with_channel(policy, plain, None), plain


def fill(folder: Path, pairs: TokenPairs, policy: Policy, config: ModelConfig, **changes) -> features.StoredSource:
    options: dict[str, Any] = {"dtype": "float32", "batch_tokens": 128, "progress": lambda done, total: None}
    return cache.cached_source(pairs, *bare(policy, config), folder=folder, **(options | changes))


def test_rewards_of_packed_and_stored_pairs_are_those_of_whole_sequences(
    tmp_path: Path, pairs: TokenPairs, policy: Policy, config: ModelConfig
) -> None:
    chosen = np.asarray([3, NO_PAIR, 0, 10])
    packed = features.TokenSource(pairs).batch(chosen)
    stored = fill(tmp_path, pairs, policy, config).batch(chosen)
    channel = policy.channel
    assert channel is not None
    for batch in (packed, stored):
        rewards = features.pair_rewards(channel, bare(policy, config)[0], config, batch)
        for side, mask, name in zip(
            rewards, (batch.chosen_mask, batch.rejected_mask), ("chosen", "rejected"), strict=True
        ):
            for row, pair in enumerate(chosen):
                if pair == NO_PAIR:
                    assert not mask[row].any()
                    continue
                prompt, response = pairs.pairs[pair].prompt, getattr(pairs.pairs[pair], name)
                whole = trunk(policy, config, jnp.asarray(np.concatenate([prompt, response]))[None]).reward
                assert whole is not None
                np.testing.assert_allclose(side[row][mask[row]], whole[0, len(prompt) :], atol=1e-5)


def test_a_fill_that_was_killed_goes_on(
    tmp_path: Path, pairs: TokenPairs, policy: Policy, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FLUSH_EVERY", 1)
    whole = fill(tmp_path / "whole", pairs, policy, config)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", pairs, policy, config, progress=stop)
    assert not [path for path in (tmp_path / "cut").iterdir() if len(path.name) == 32]
    rest: list[int] = []
    again = fill(tmp_path / "cut", pairs, policy, config, progress=lambda done, total: rest.append(done))
    assert rest[0] == seen[-1] > 0
    np.testing.assert_array_equal(again.states, whole.states)
    fill(tmp_path / "cut", pairs, policy, config, progress=stop)  # complete: nothing is computed


def test_the_key_names_what_the_states_depend_on(pairs: TokenPairs, policy: Policy, config: ModelConfig) -> None:
    plain, plain_config = bare(policy, config)
    other = jax.tree.map(lambda leaf: leaf + 1e-6, plain)
    fewer = pairs._replace(pairs=pairs.pairs[1:])
    keys = {
        cache.cache_key(pairs, plain, plain_config, "float32"),
        cache.cache_key(pairs, plain, plain_config, "bfloat16"),
        cache.cache_key(fewer, plain, plain_config, "float32"),
        cache.cache_key(pairs, other, plain_config, "float32"),
    }
    assert len(keys) == 4


def test_states_that_do_not_fit_are_refused(
    tmp_path: Path, pairs: TokenPairs, policy: Policy, config: ModelConfig
) -> None:
    huge = jax.tree.map(lambda leaf: leaf * 1e6, policy)
    with pytest.raises(UserError, match="bfloat16"):
        fill(tmp_path, pairs, huge, config, dtype="float16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bytes_change_rewards_little(
    tmp_path: Path, pairs: TokenPairs, policy: Policy, config: ModelConfig, dtype: str
) -> None:
    channel = init_channel(from_hf({**RAW, "tt_hidden_size": 8}), jax.random.key(1))
    every = np.arange(len(pairs.pairs))
    rewards = [
        features.pair_rewards(channel, None, config, fill(tmp_path, pairs, policy, config, dtype=name).batch(every))[0]
        for name in ("float32", dtype)
    ]
    assert config.channel == ChannelConfig(width=8)
    scale = float(jnp.std(rewards[0]))
    np.testing.assert_allclose(rewards[1], rewards[0], atol=(0.02 if dtype == "bfloat16" else 0.002) * max(scale, 0.1))
    assert channel_rewards(channel, config, jnp.zeros((config.layers + 1, 1, config.width))).shape == (1,)

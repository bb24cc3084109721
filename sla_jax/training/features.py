"""What the channel reads of a frozen policy, as batches of pairs, and the rewards it makes of it.

The channel is pointwise in time, so only the responses' positions are needed. A batch is either *packed* (tokens: the
policy runs inside the training step, without its LM head, the prompt once a pair, no gradient goes into it) or *stored*
(hidden states that cache.py computed once). `pair_rewards` turns either into rewards [B, T].
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sla_jax.model.channel import Channel, channel_rewards
from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import Branches, trunk
from sla_jax.model.policy import Policy
from sla_jax.training.batches import NO_PAIR, TokenPair, TokenPairs, bucket, padded_length, token_bucket


class Packed(NamedTuple):
    """B pairs as tokens, one row each: prompt, chosen, rejected, padding (model/forward.py: Branches)."""

    tokens: Array | np.ndarray  # int32 [B, S]
    positions: Array | np.ndarray  # int32 [B, S]
    branches: Array | np.ndarray  # int32 [B, S]: 0 prompt, 1 chosen, 2 rejected and padding


class Batch(NamedTuple):
    """B pairs. The channel reads their P response tokens in one flat row, so responses of any lengths pad nothing.

    `source` is the packed rows, or the stored hidden states [L+1, P, D] in the storage type. T only pads rewards.
    """

    source: Packed | Array | np.ndarray
    places: Array | np.ndarray  # int32 [P, 2]: row and column of each response token in the packed rows
    chosen_index: Array | np.ndarray  # int32 [B, T]: where each response token stands in the flat row
    rejected_index: Array | np.ndarray
    chosen_mask: Array | np.ndarray  # bool [B, T], left-aligned
    rejected_mask: Array | np.ndarray


def packed_features(policy: Policy, config: ModelConfig, packed: Packed, places: Array) -> Array:
    """Hidden states [L+1, P, D] at `places` [P, 2] of packed rows; no gradient goes into the policy."""
    tokens, positions, branches = (jnp.asarray(x) for x in packed)
    features = trunk(policy, config, tokens, branches=Branches(positions, branches), keep_features=True).features
    assert features is not None
    return jax.lax.stop_gradient(features[:, places[:, 0], places[:, 1]])


def pair_rewards(channel: Channel, policy: Policy | None, config: ModelConfig, batch: Batch) -> tuple[Array, Array]:
    """Rewards float32 [B, T] of chosen and rejected (meaningless where masked). Only packed batches read `policy`."""
    if isinstance(batch.source, Packed):
        assert policy is not None, "a packed batch needs the policy"
        features = packed_features(policy, config, batch.source, jnp.asarray(batch.places))
    else:
        features = jnp.asarray(batch.source)
    rewards = channel_rewards(channel, config, features.astype(jnp.float32))
    return jnp.take(rewards, jnp.asarray(batch.chosen_index)), jnp.take(rewards, jnp.asarray(batch.rejected_index))


def pack(pairs: Sequence[TokenPair | None], length: int) -> Batch:
    """Rows of `length` tokens; None is an empty pair."""
    packed = Packed(*(np.zeros((len(pairs), length), np.int32) for _ in range(3)))
    packed.branches[:] = 2
    width = bucket(max((pair.longest for pair in pairs if pair is not None), default=1))
    index = np.zeros((2, len(pairs), width), np.int32)
    mask = np.zeros((2, len(pairs), width), bool)
    places: list[np.ndarray] = []
    end = 0
    for row, pair in enumerate(pairs):
        if pair is None:
            continue
        start, sizes = len(pair.prompt), (len(pair.chosen), len(pair.rejected))
        packed.tokens[row, : pair.length] = np.concatenate(pair)
        packed.positions[row, : pair.length] = np.concatenate(
            [np.arange(start), *(start + np.arange(n) for n in sizes)]
        )
        packed.branches[row, : pair.length] = np.repeat([0, 1, 2], [start, *sizes])
        columns = np.arange(start, pair.length, dtype=np.int32)
        places.append(np.stack([np.full_like(columns, row), columns], axis=1))
        for side, count in enumerate(sizes):
            index[side, row, :count] = np.arange(end, end + count)
            mask[side, row, :count] = True
            end += count
    where = np.zeros((token_bucket(end), 2), np.int32)
    where[:end] = np.concatenate(places) if places else 0
    return Batch(packed, where, index[0], index[1], mask[0], mask[1])


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def batch(self, pairs: np.ndarray) -> Batch:
        """The pairs with these numbers (NO_PAIR = an empty one)."""
        ...


class Subset:
    """Some of another source's pairs, numbered from 0."""

    def __init__(self, source: Source, pairs: np.ndarray):
        self.source = source
        self.pairs = pairs

    def batch(self, pairs: np.ndarray) -> Batch:
        """See Source."""
        return self.source.batch(np.asarray([NO_PAIR if p == NO_PAIR else self.pairs[p] for p in pairs]))


class TokenSource:
    """Batches of tokens: the policy runs at every step."""

    def __init__(self, data: TokenPairs):
        self.data = data

    def batch(self, pairs: np.ndarray) -> Batch:
        """See Source."""
        chosen = [None if p == NO_PAIR else self.data.pairs[p] for p in pairs]
        real = [pair for pair in chosen if pair is not None]
        return pack(chosen, padded_length(max((pair.length for pair in real), default=1)))


class StoredSource:
    """Batches of hidden states out of a complete cache."""

    def __init__(self, data: TokenPairs, states: np.ndarray):
        self.tokens = TokenSource(data)
        self.states = states  # [L+1, tokens, D]
        self.offsets = pair_offsets(data)

    def batch(self, pairs: np.ndarray) -> Batch:
        """See Source."""
        batch = self.tokens.batch(pairs)
        layers, _, depth = self.states.shape
        features = np.zeros((layers, len(batch.places), depth), self.states.dtype)
        end = 0
        for pair in pairs[pairs != NO_PAIR]:
            start, stop = self.offsets[pair : pair + 2]
            features[:, end : end + stop - start] = self.states[:, start:stop]
            end += stop - start
        return batch._replace(source=features)


def pair_offsets(data: TokenPairs) -> np.ndarray:
    """Where each pair's response tokens (chosen, rejected) start in the cache, and the total: int64 [pairs + 1]."""
    return np.concatenate([[0], np.cumsum([len(p.chosen) + len(p.rejected) for p in data.pairs], dtype=np.int64)])

"""Token rewards of a set of pairs, for held-out evaluation and for `eval.py channel`."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sla_jax.model.channel import Channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.training.batches import TokenPairs, forward_batches
from sla_jax.training.features import Batch, Source, pair_rewards
from sla_jax.training.metrics import PairRewards
from sla_jax.training.step import put_batch

RewardFn = Callable[[Channel, Policy | None, Batch], tuple[Array, Array]]


def jit_rewards(config: ModelConfig) -> RewardFn:
    """`pair_rewards` compiled."""
    return jax.jit(lambda channel, policy, batch: pair_rewards(channel, policy, config, batch))


def rank(
    rewards: RewardFn,
    channel: Channel,
    policy: Policy | None,
    data: TokenPairs,
    source: Source,
    mesh: Mesh,
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None],
) -> list[PairRewards]:
    """Rewards of every pair's tokens, in the order of `data`. `progress` is told (pairs done, all pairs)."""
    out: list[PairRewards | None] = [None] * len(data.pairs)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    groups = forward_batches(data.lengths(), np.arange(len(data.pairs)), batch_tokens, devices)
    done = 0
    progress(done, len(out))
    for group in groups:
        batch = put_batch(source.batch(group), mesh, microbatched=False)
        chosen, rejected = (np.asarray(side) for side in rewards(channel, policy, batch))
        for row, pair in enumerate(group):
            if pair >= 0:
                tokens = data.pairs[pair]
                out[pair] = PairRewards(chosen[row, : len(tokens.chosen)], rejected[row, : len(tokens.rejected)])
                done += 1
        progress(done, len(out))
    return [pair for pair in out if pair is not None]

"""Pair losses on token rewards (ALGORITHMS §1.1): pure functions of two reward arrays and their masks.

A batch holds B pairs. Rewards are those at the response's own tokens, left-aligned: `chosen[b, t]` is the reward after
reading response token t; masks are True on the response's tokens and False on the padding behind them. A pair whose
masks are empty is padding: it counts nowhere. Everything is a *sum over pairs*; `means` divides by the number of
real pairs, and the training step divides by that of the whole accumulated step, so that accumulation and sharding
give the numbers of one big batch.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LossName = Literal["seqwise_bt", "tokenwise_bt"]


class LossSums(NamedTuple):
    """Sums over the real pairs of a batch, float32 scalars; divide by `pairs` for means."""

    loss: Array
    pairs: Array
    correct: Array  # pairs whose mean reward ranks them rightly; a tie counts 1/2
    reward_chosen: Array
    reward_rejected: Array


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` [B, T] over `mask` [B, T] → [B]; 0 where a row has no token."""
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.float32), 1.0)


def seqwise_bt(chosen: Array, rejected: Array, chosen_mask: Array, rejected_mask: Array) -> Array:
    """−log σ(mean r+ − mean r−) of each pair → [B]."""
    return -jax.nn.log_sigmoid(masked_mean(chosen, chosen_mask) - masked_mean(rejected, rejected_mask))


def extend_last(rewards: Array, mask: Array) -> Array:
    """Repeat each row's last masked reward over the padding behind it, [B, T] → [B, T] (zeros for an empty row)."""
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.int32)[:, None]
    positions = jnp.arange(rewards.shape[-1], dtype=jnp.int32)[None, :]
    last = jnp.sum(jnp.where(positions == lengths - 1, rewards, 0.0), axis=-1, keepdims=True)
    return jnp.where(mask, rewards, last)


def tokenwise_bt(
    chosen: Array, rejected: Array, chosen_mask: Array, rejected_mask: Array, *, scale: float, shift: float
) -> Array:
    """Mean over token indices t of −log σ(a·(r+_t − r−_t − b)) of each pair → [B].

    The two responses are aligned by token index and the shorter is extended by repeating its last position, so the
    mean runs over the longer one's tokens.
    """
    margin = scale * (extend_last(chosen, chosen_mask) - extend_last(rejected, rejected_mask) - shift)
    return masked_mean(-jax.nn.log_sigmoid(margin), chosen_mask | rejected_mask)


def loss_sums(
    name: LossName,
    chosen: Array,
    rejected: Array,
    chosen_mask: Array,
    rejected_mask: Array,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
) -> LossSums:
    """The loss and its companions summed over the real pairs. Rewards and masks are [B, T]."""
    if name == "seqwise_bt":
        losses = seqwise_bt(chosen, rejected, chosen_mask, rejected_mask)
    else:
        losses = tokenwise_bt(chosen, rejected, chosen_mask, rejected_mask, scale=scale, shift=shift)
    real = jnp.any(chosen_mask, axis=-1) & jnp.any(rejected_mask, axis=-1)
    mean_chosen, mean_rejected = masked_mean(chosen, chosen_mask), masked_mean(rejected, rejected_mask)
    correct = 0.5 * (1.0 + jnp.sign(mean_chosen - mean_rejected))

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(real, values, 0.0))

    return LossSums(
        loss=total(losses),
        pairs=jnp.sum(real, dtype=jnp.float32),
        correct=total(correct),
        reward_chosen=total(mean_chosen),
        reward_rejected=total(mean_rejected),
    )


def means(sums: LossSums) -> dict[str, Array]:
    """What is logged: means over the real pairs."""
    pairs = jnp.maximum(sums.pairs, 1.0)
    return {
        "loss": sums.loss / pairs,
        "accuracy": sums.correct / pairs,
        "reward_chosen": sums.reward_chosen / pairs,
        "reward_rejected": sums.reward_rejected / pairs,
        "margin": (sums.reward_chosen - sums.reward_rejected) / pairs,
    }

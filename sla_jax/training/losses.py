"""Objectives on token rewards, log-probabilities and step labels (ALGORITHMS §1.1, §4): pure functions, no model.

Shapes: B examples, A answers each (pairs: chosen, rejected; else one), T scored tokens, left-aligned and padded on the
right. A loss and its metrics are *contributions*: divided by the counts of the whole accumulated step, so that their
sum over microbatches is the value for one big batch. Means over examples are weighted by `weights`; means over tokens
weight each token by its example. An example with weight 0, or with an answer without tokens, counts nowhere.

Sources: the SLA release for the reward losses, TCRM (arXiv 2604.22981) for temporal coherence, the SimPO release, and
TRL for DPO (`sigmoid` with conservative label smoothing, `hinge`) and for step labels (two-class cross-entropy).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sla_jax.training.loss_config import PolicyLoss, RewardLoss, RewardName

Contributions = tuple[Float[Array, ""], dict[str, Array]]
FAR_BELOW = -1e30  # stands for −∞ where a row without tokens must not make NaN


class Scored(NamedTuple):
    """What the models gave for one microbatch; a loss asks for what it reads. Padding may hold anything."""

    rewards: Float[Array, "B A T"] | None  # of each scored token: channel or scalar head
    logps: Float[Array, "B A T"] | None  # log p of each scored token under the policy that is trained
    reference: Float[Array, "B A"] | None  # the reference policy's log p, summed over scored tokens
    classes: Float[Array, "B A T 2"] | None  # logits of (bad, good) from a two-class head
    marks: Int[Array, "B A T"]  # the token's label (1 where there is none to give); −1 is padding
    weights: Float[Array, "B"]  # of the example; 0 for an empty padding example


class Counts(NamedTuple):
    """Denominators over the whole accumulated step."""

    weight: Float[Array, ""]  # total weight of the real examples
    tokens: Float[Array, "A"]  # weighted scored tokens of each answer
    labels: Float[Array, "2"]  # weighted tokens marked 0 and 1


def count(marks: Int[Array, "*N B A T"], weights: Float[Array, "*N B"]) -> Counts:
    """Denominators for all the microbatches at once, with any leading axes."""
    weights = real_weights(marks, weights)

    def tokens(mask: Bool[Array, "*N B A T"]) -> Float[Array, "A"]:
        each = jnp.sum(mask, axis=-1, dtype=jnp.float32) * weights[..., None]
        return jnp.sum(each, axis=tuple(range(each.ndim - 1)))

    labels = jnp.stack([jnp.sum(tokens(marks == label)) for label in (0, 1)])
    return Counts(jnp.sum(weights), tokens(marks >= 0), labels)


def real_weights(marks: Int[Array, "*N B A T"], weights: Float[Array, "*N B"]) -> Float[Array, "*N B"]:
    """Weights with 0 for every example that has an answer without a scored token."""
    return jnp.where(jnp.all(jnp.any(marks >= 0, axis=-1), axis=-1), weights, 0.0)


# ---- sums and means ----


def _ratio(total: Array, denominator: Array) -> Array:
    """total / denominator, 0 where nothing was counted."""
    return total / jnp.where(denominator > 0, denominator, 1.0)


def masked_sum(values: Float[Array, "*N T"], mask: Bool[Array, "*N T"]) -> Float[Array, "*N"]:
    """Sum of `values` over the last axis where `mask`."""
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1)


def masked_mean(values: Float[Array, "*N T"], mask: Bool[Array, "*N T"]) -> Float[Array, "*N"]:
    """Mean of `values` over the last axis where `mask`; 0 where a row has no token."""
    return _ratio(masked_sum(values, mask), jnp.sum(mask, axis=-1, dtype=jnp.float32))


def last_value(values: Float[Array, "*N T"], mask: Bool[Array, "*N T"]) -> Float[Array, "*N"]:
    """The value at each row's last scored token; 0 for an empty row."""
    return masked_sum(values, mask & ~jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, 1)])[..., 1:])


def _log_mean(logs: Float[Array, "*N T"], mask: Bool[Array, "*N T"]) -> Float[Array, "*N"]:
    """log of the mean of exp(logs) where `mask`, exact also where exp underflows."""
    total = jax.nn.logsumexp(jnp.where(mask, logs, FAR_BELOW), axis=-1)
    return total - jnp.log(jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.float32), 1.0))


class _Batch(NamedTuple):
    """The masks of a microbatch with the denominators of the step."""

    mask: Bool[Array, "B A T"]
    weights: Float[Array, "B"]  # 0 where not real
    counts: Counts

    def mean(self, values: Float[Array, "B"]) -> Float[Array, ""]:
        """Contribution to the weighted mean over examples."""
        return _ratio(jnp.sum(jnp.where(self.weights > 0, values, 0.0) * self.weights), self.counts.weight)

    def token_sum(self, values: Float[Array, "B A T"], mask: Bool[Array, "B A T"]) -> Float[Array, "A"]:
        """Weighted sum over tokens where `mask`, one number an answer."""
        return jnp.sum(masked_sum(values, mask) * self.weights[:, None], axis=0)


def _batch(scored: Scored, counts: Counts) -> _Batch:
    return _Batch(scored.marks >= 0, real_weights(scored.marks, scored.weights), counts)


def _win(values: Float[Array, "B 2"]) -> Float[Array, "B"]:
    """1 where the chosen answer's value is higher, 0 where lower, 1/2 on a tie."""
    return 0.5 * (1.0 + jnp.sign(values[:, 0] - values[:, 1]))


def _negative_log_sigmoid(values: Array) -> Array:
    return jax.nn.softplus(-values)


# ---- rewards of pairs ----


def _aligned(rewards: Float[Array, "B 2 T"], mask: Bool[Array, "B 2 T"]) -> tuple[Array, Array]:
    """Both answers by token index, the shorter one repeating its last reward, and the longer one's mask [B, T]."""
    longer = jnp.any(mask, axis=1)
    return jnp.where(mask, rewards, last_value(rewards, mask)[..., None]), longer


def _aligned_mean(rewards: Float[Array, "B 2 T"], mask: Bool[Array, "B 2 T"]) -> Float[Array, "B 2"]:
    extended, longer = _aligned(rewards, mask)
    return masked_mean(extended, jnp.broadcast_to(longer[:, None], mask.shape))


def _mean_probability(rewards: Float[Array, "B 2 T"], mask: Bool[Array, "B 2 T"]) -> Float[Array, "B 2"]:
    return masked_mean(jax.nn.sigmoid(rewards), mask)


# one number an answer: what the loss ranks, and what its accuracy compares
COMPARED: dict[RewardName, Callable[[Array, Array], Array]] = {
    "seqwise_bt": masked_mean,
    "tokenwise_bt": _aligned_mean,
    "tokenwise_ce": masked_mean,
    "seqwise_ce": _mean_probability,
    "last_bt": last_value,
}


def _tokenwise_bt(config: RewardLoss, rewards: Array, batch: _Batch) -> Float[Array, ""]:
    """Mean over t of −log σ(a·(r+_t − r−_t − b)), over the longer answer's tokens."""
    extended, longer = _aligned(rewards, batch.mask)
    margins = config.scale * (extended[:, 0] - extended[:, 1] - config.shift)
    return batch.mean(masked_mean(_negative_log_sigmoid(margins), longer))


def _tokenwise_ce(config: RewardLoss, rewards: Array, batch: _Batch) -> Float[Array, ""]:
    """½·[mean −log σ(r+) + mean −log(1 − σ(r−))], each mean over all the step's tokens of that side."""
    losses = _negative_log_sigmoid(rewards * jnp.array([1.0, -1.0])[None, :, None])
    return 0.5 * jnp.sum(_ratio(batch.token_sum(losses, batch.mask), batch.counts.tokens))


def _seqwise_ce(config: RewardLoss, rewards: Array, batch: _Batch) -> Float[Array, ""]:
    """½·[−log p+ − log(1 − p−)] with p the mean of σ(r); 1 − p is the mean of σ(−r)."""
    signed = rewards * jnp.array([1.0, -1.0])[None, :, None]
    return batch.mean(-0.5 * jnp.sum(_log_mean(jax.nn.log_sigmoid(signed), batch.mask), axis=-1))


def _bradley_terry(config: RewardLoss, rewards: Array, batch: _Batch) -> Float[Array, ""]:
    """−log σ(x+ − x−), x being the mean (seqwise_bt) or the last reward (last_bt)."""
    values = COMPARED[config.name](rewards, batch.mask)
    return batch.mean(_negative_log_sigmoid(values[:, 0] - values[:, 1]))


REWARD_LOSSES: dict[RewardName, Callable[[RewardLoss, Array, _Batch], Array]] = {
    "seqwise_bt": _bradley_terry,
    "tokenwise_bt": _tokenwise_bt,
    "tokenwise_ce": _tokenwise_ce,
    "seqwise_ce": _seqwise_ce,
    "last_bt": _bradley_terry,
}


def coherence_mc(rewards: Float[Array, "*N T"], mask: Bool[Array, "*N T"]) -> Float[Array, "*N"]:
    """Mean over all T tokens of (r_t − sg[r_T])²; the last token's own term is 0."""
    target = jax.lax.stop_gradient(last_value(rewards, mask))[..., None]
    return masked_mean(jnp.square(rewards - target), mask)


def coherence_td(rewards: Float[Array, "*N T"], mask: Bool[Array, "*N T"]) -> Float[Array, "*N"]:
    """Mean over the T−1 tokens that have a next one of (r_t − sg[r_{t+1}])²; 0 for a single token."""
    target = jax.lax.stop_gradient(rewards[..., 1:])
    return masked_mean(jnp.square(rewards[..., :-1] - target), mask[..., 1:])


COHERENCE = {"coherence_mc": coherence_mc, "coherence_td": coherence_td}


def reward_loss(config: RewardLoss, scored: Scored, counts: Counts) -> Contributions:
    """A loss on pairs' token rewards, plus coherence (the mean of both answers', then of the pairs).

    Metrics: every part by name before its weight, `accuracy` of what the loss compares (`COMPARED`), and
    `reward_chosen`, `reward_rejected` and `margin` of the mean rewards.
    """
    assert scored.rewards is not None and scored.marks.shape[1] == 2, "a pair loss needs the rewards of two answers"
    batch = _batch(scored, counts)
    rewards = jnp.where(batch.mask, scored.rewards, 0.0)
    loss = REWARD_LOSSES[config.name](config, rewards, batch)
    parts: dict[str, Array] = {config.name: loss}
    for name, weight in (("coherence_mc", config.coherence_mc), ("coherence_td", config.coherence_td)):
        if weight > 0:
            parts[name] = batch.mean(jnp.mean(COHERENCE[name](rewards, batch.mask), axis=-1))
            loss += weight * parts[name]
    means = masked_mean(rewards, batch.mask)
    return loss, {
        **parts,
        "accuracy": batch.mean(_win(COMPARED[config.name](rewards, batch.mask))),
        "reward_chosen": batch.mean(means[:, 0]),
        "reward_rejected": batch.mean(means[:, 1]),
        "margin": batch.mean(means[:, 0] - means[:, 1]),
    }


# ---- log-probabilities ----


def preference(config: PolicyLoss, values: Float[Array, "B 2"]) -> Float[Array, "B"]:
    """SimPO's and DPO's loss of each pair: x = β·(v+ − v− − γ/β); −log σ(x) smoothed by −ε·log σ(−x), or max(0, 1 − x).

    `values` are mean log-probabilities for SimPO, and for DPO their sums less the reference's.
    """
    logits = config.strength * (values[:, 0] - values[:, 1] - config.margin)
    if config.kind == "hinge":
        return jax.nn.relu(1.0 - logits)
    smooth = config.label_smoothing
    return (1.0 - smooth) * _negative_log_sigmoid(logits) + smooth * _negative_log_sigmoid(-logits)


def policy_loss(config: PolicyLoss, scored: Scored, counts: Counts) -> Contributions:
    """SFT: the mean over the step's tokens of −log p of the first answer; SimPO and DPO: the mean over pairs.

    Metrics: every part by name before its weight; for pairs, as SimPO and TRL name them, `logps/…` (a mean per token
    for SimPO, a sum for DPO), and `rewards/chosen`, `rejected`, `accuracies`, `margins` of the implicit rewards
    (β times log-probabilities, for DPO less the reference's).
    """
    assert scored.logps is not None, "a policy loss needs log-probabilities"
    batch = _batch(scored, counts)
    logps = jnp.where(batch.mask, scored.logps, 0.0)
    nll = _ratio(-batch.token_sum(logps, batch.mask)[0], counts.tokens[0])
    if config.name == "sft":
        return nll, {"sft": nll}
    values, shown = _pair_values(config, logps, scored, batch)
    loss = batch.mean(preference(config, values))
    metrics = {
        config.name: loss,
        "logps/chosen": batch.mean(shown[:, 0]),
        "logps/rejected": batch.mean(shown[:, 1]),
        "rewards/chosen": config.strength * batch.mean(values[:, 0]),
        "rewards/rejected": config.strength * batch.mean(values[:, 1]),
        "rewards/accuracies": batch.mean(_win(values)),
        "rewards/margins": config.strength * batch.mean(values[:, 0] - values[:, 1]),
    }
    if config.sft_weight > 0:
        return loss + config.sft_weight * nll, {**metrics, "sft": nll}
    return loss, metrics


def _pair_values(config: PolicyLoss, logps: Array, scored: Scored, batch: _Batch) -> tuple[Array, Array]:
    """What the loss compares and the log-probabilities to show, both [B, 2]."""
    assert logps.shape[1] == 2, "a preference needs two answers"
    if config.name == "simpo":
        means = masked_mean(logps, batch.mask)
        return means, means
    assert scored.reference is not None, "DPO needs the reference's log-probabilities"
    sums = jnp.sum(logps, axis=-1)
    return sums - scored.reference, sums


# ---- process labels ----


def step_loss(scored: Scored, counts: Counts) -> Contributions:
    """Cross-entropy of step labels (1 good, 0 bad), the mean over the step's labelled tokens.

    A two-class head gives logits (bad, good); its softmax cross-entropy is the binary one of their difference. Without
    `classes` the token's reward r is that logit: P(good) = σ(r). Metrics: `step_loss`, `step_accuracy` (a logit of 0
    counts 1/2), `step_accuracy_good` and `step_accuracy_bad` of one label each, `step_good`: the part labelled good.
    """
    logits = scored.rewards if scored.classes is None else scored.classes[..., 1] - scored.classes[..., 0]
    assert logits is not None, "step labels need rewards or classes"
    batch = _batch(scored, counts)
    logits = jnp.where(batch.mask, logits, 0.0)
    good = scored.marks == 1
    signed = jnp.where(good, logits, -logits)
    losses, right = _negative_log_sigmoid(signed), 0.5 * (1.0 + jnp.sign(signed))
    total = jnp.sum(counts.tokens)

    def over(values: Array, mask: Array, denominator: Array) -> Array:
        return _ratio(jnp.sum(batch.token_sum(values, mask)), denominator)

    loss = over(losses, batch.mask, total)
    return loss, {
        "step_loss": loss,
        "step_accuracy": over(right, batch.mask, total),
        "step_accuracy_good": over(right, good, counts.labels[1]),
        "step_accuracy_bad": over(right, scored.marks == 0, counts.labels[0]),
        "step_good": over(jnp.ones_like(right), good, total),
    }

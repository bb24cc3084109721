"""What is computed from a batch: the policy's pass, rewards and log-probabilities at scored tokens, and the loss.

Nothing is computed that no loss reads: a frozen policy gets no gradient, without a policy loss there are no logits, and
with one they exist for `logits_chunk` tokens at a time.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sla_jax.model.attention import AttentionKind
from sla_jax.model.channel import Channel, channel_rewards
from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import Branches, Trunk, at_places, trunk
from sla_jax.model.logprobs import token_logprobs
from sla_jax.model.lora import Lora, adapted
from sla_jax.model.policy import Policy
from sla_jax.model.score import Score, score_values
from sla_jax.training.batch import Batch, Rows
from sla_jax.training.config import TrainConfig
from sla_jax.training.losses import Counts, Scored, policy_loss, reward_loss, step_loss


class Parts(NamedTuple):
    """What is trained, float32; None is not."""

    policy: Policy | None = None
    lora: Lora | None = None
    channel: Channel | None = None
    score: Score | None = None


class Frozen(NamedTuple):
    """What is only read. `policy` is None when its states are stored, or when it is trained as a whole."""

    policy: Policy | None = None
    reference: Policy | None = None  # DPO's, when it is read at every step and the policy is trained as a whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The static choices behind a compiled step."""

    config: TrainConfig
    model: ModelConfig  # with the channel or the score head
    attention: AttentionKind

    @property
    def shared(self) -> bool:
        """Whether the answers of an example share a row with its prompt (batch.py)."""
        return self.config.task == "pairs" and self.attention != "flash"

    @property
    def reference_each_step(self) -> bool:
        """Whether the reference policy runs beside the policy."""
        policy = self.config.policy
        return bool(policy.weight) and policy.loss.name == "dpo" and policy.reference == "each_step"


class Outputs(NamedTuple):
    """Of each scored token, [G, P] float32; None where no loss reads it."""

    rewards: Array | None = None
    classes: Array | None = None  # [G, P, K]
    logps: Array | None = None
    reference: Array | None = None


def outputs(parts: Parts, frozen: Frozen, batch: Batch, plan: Plan) -> Outputs:
    """One microbatch (arrays without M) through the policy and whatever reads it."""
    config = plan.config
    if not isinstance(batch.source, Rows):
        return _read(parts, jnp.moveaxis(jnp.asarray(batch.source), 1, 0), plan)
    policy = policy_in_use(parts, frozen, plan)
    channel = parts.channel is not None
    passed = _pass(policy, batch, plan, places=channel)
    given = Outputs()
    if config.reader is not None:
        found = passed.features if channel else at_places(passed.hidden, jnp.asarray(batch.places))[None]
        assert found is not None
        stop = config.policy.train == "frozen" or (channel and config.channel.detach)
        given = _read(parts, jax.lax.stop_gradient(found) if stop else found, plan)
    if config.policy.weight:
        given = given._replace(logps=_logps(policy, passed, batch, plan))
    if plan.reference_each_step:
        base = frozen.reference if frozen.reference is not None else frozen.policy
        assert base is not None
        again = _logps(base, _pass(base, batch, plan, places=False), batch, plan)
        given = given._replace(reference=jax.lax.stop_gradient(again))
    return given


def policy_in_use(parts: Parts, frozen: Frozen, plan: Plan) -> Policy:
    """The policy that a pass reads, in the type it computes in."""
    if parts.policy is not None:
        dtype = jnp.dtype(plan.config.dtype)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), parts.policy)
    assert frozen.policy is not None, "rows of tokens need a policy"
    if parts.lora is None:
        return frozen.policy
    return adapted(frozen.policy, parts.lora, plan.config.policy.lora.scale)


def features(policy: Policy, batch: Batch, plan: Plan) -> Array:
    """Hidden states [L+1, G, P, D] of the scored tokens: what the feature cache stores."""
    found = _pass(policy, batch, plan, places=True).features
    assert found is not None
    return found


def reference_logps(policy: Policy, batch: Batch, plan: Plan) -> Array:
    """Log-probs of each scored token under an untrained policy, [G, P]: what DPO compares with."""
    return _logps(policy, _pass(policy, batch, plan, places=False), batch, plan)


def _pass(policy: Policy, batch: Batch, plan: Plan, *, places: bool) -> Trunk:
    assert isinstance(batch.source, Rows)
    tokens, positions, branches = (None if x is None else jnp.asarray(x) for x in batch.source)
    assert tokens is not None
    size = tokens.shape[-1]
    layout = None
    if positions is not None and branches is not None:
        layout = Branches(positions.reshape(-1, size), branches.reshape(-1, size))
    return trunk(
        policy,
        plan.model,
        tokens.reshape(-1, size),
        branches=layout,
        remat=plan.config.remat,
        attention=plan.attention,
        places=jnp.asarray(batch.places) if places else None,
    )


def _read(parts: Parts, features: Array, plan: Plan) -> Outputs:
    """Rewards or step classes from hidden states [L+1, G, P, D]; a head reads the last of them."""
    if parts.channel is not None:
        return Outputs(rewards=channel_rewards(parts.channel, plan.model, features))
    assert parts.score is not None
    values = score_values(parts.score, features[-1])
    return Outputs(classes=values) if plan.config.task == "steps" else Outputs(rewards=values[..., 0])


def _logps(policy: Policy, passed: Trunk, batch: Batch, plan: Plan) -> Array:
    hidden = at_places(passed.hidden, jnp.asarray(batch.before))
    return token_logprobs(policy, hidden, jnp.asarray(batch.targets), chunk=plan.config.logits_chunk)


def by_answer(flat: Array, batch: Batch) -> Array:
    """Values of a shard's flat row [G, P, …] → per answer [G·b, A, T, …]; meaningless where the mark is −1."""
    index = jnp.asarray(batch.flat)
    shards, _, answers, scored = index.shape
    taken = jax.vmap(lambda row, where: row[where])(flat, index)
    return taken.reshape(-1, answers, scored, *flat.shape[2:])


def loss(parts: Parts, frozen: Frozen, batch: Batch, counts: Counts, plan: Plan) -> tuple[Array, dict[str, Array]]:
    """The weighted losses of one microbatch and their metrics: contributions to those of the whole step."""
    config = plan.config
    given = outputs(parts, frozen, batch, plan)
    marks = jnp.asarray(batch.marks).reshape(-1, *batch.marks.shape[2:])
    rewards, classes, logps = (
        None if x is None else by_answer(x, batch) for x in (given.rewards, given.classes, given.logps)
    )
    reference = jnp.asarray(batch.reference).reshape(-1, marks.shape[1])
    if given.reference is not None:
        reference = jnp.sum(jnp.where(marks >= 0, by_answer(given.reference, batch), 0.0), axis=-1)
    scored = Scored(rewards, logps, reference, classes, marks, jnp.asarray(batch.weights).reshape(-1))
    total, metrics = jnp.zeros((), jnp.float32), dict[str, Array]()
    if config.reader is not None:
        one, said = step_loss(scored, counts) if config.task == "steps" else reward_loss(config.loss, scored, counts)
        weight = config.channel.weight or config.head.weight
        total, metrics = total + weight * one, metrics | said
    if config.policy.weight:
        one, said = policy_loss(config.policy.loss, scored, counts)
        total, metrics = total + config.policy.weight * one, metrics | said
    return total, metrics | {"loss": total}

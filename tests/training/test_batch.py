"""Batches against whole sequences read one by one: rewards and log-probabilities, shared and separate rows, shards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.model.channel import Channel, channel_rewards, init_channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import logits, trunk
from sla_jax.model.policy import Policy
from sla_jax.sharding import make_mesh
from sla_jax.training.batch import TokenSource, divided, put_batch, read_tokens, waste
from sla_jax.training.config import ChannelOptions, FeaturesConfig, PolicyOptions, TrainConfig
from sla_jax.training.examples import Examples
from sla_jax.training.loss_config import PolicyLoss
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.order import NOTHING, padded_length
from sla_jax.training.step import jit_outputs
from tests.training import made

NUMBERS = np.asarray([4, NOTHING, 0, 2])
SIMPO = TrainConfig(
    channel=ChannelOptions(width=made.CHANNEL),
    policy=PolicyOptions(train="lora", weight=1.0, loss=PolicyLoss(name="simpo")),
    features=FeaturesConfig(mode="recompute"),
    logits_chunk=24,
)


@pytest.fixture(scope="module")
def model() -> tuple[Policy, ModelConfig]:
    return made.model()


@pytest.fixture(scope="module")
def channel() -> Channel:
    return init_channel(made.plan().model, jax.random.key(1))


def whole(policy: Policy, plan: Plan, channel: Channel, examples: Examples) -> dict[tuple[int, int], Any]:
    """(example, answer) → rewards and log-probs of its scored tokens, from the plain sequence."""

    @jax.jit
    def read(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        passed: Any = trunk(policy, plan.model, tokens, places=places)
        return channel_rewards(channel, plan.model, passed.features)[0], jax.nn.log_softmax(
            logits(policy, passed.hidden[0]), axis=-1
        )

    found = {}
    for i in range(len(examples)):
        example = examples[i]
        for a, answer in enumerate(example.answers):
            row = np.concatenate([example.prompt, answer.tokens])
            rewards, logps = (np.asarray(x) for x in read(np.pad(row, (0, 64 - len(row)))[None]))
            at = len(example.prompt) + np.flatnonzero(answer.marks >= 0)
            found[i, a] = rewards[at], logps[at - 1, row[at]]
    return found


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2}])
def test_a_batch_gives_what_each_sequence_gives_alone(
    model: tuple[Policy, ModelConfig], channel: Channel, shared: bool, mesh: dict[str, int]
) -> None:
    policy, _ = model
    examples = made.random_examples(6, 2, 0, gaps=True)
    plan = made.plan(SIMPO)
    expected = whole(policy, plan, channel, examples)
    devices = make_mesh(**mesh, devices=jax.devices()[: mesh["data"]])
    source = TokenSource(examples, shared=shared)
    with jax.set_mesh(devices):
        batch = put_batch(source, divided(NUMBERS, 1, devices), devices)
        given: Any = jit_outputs(plan, devices)(Parts(channel=channel), Frozen(policy=policy), batch)
    for row, number in enumerate(NUMBERS):
        for a in range(2) if number != NOTHING else ():
            count = int(examples.scored[number, a])
            rewards, logps = expected[int(number), a]
            np.testing.assert_allclose(given.rewards[row, a, :count], rewards, atol=1e-6)
            np.testing.assert_allclose(given.logps[row, a, :count], logps, atol=1e-5)
    marks = np.asarray(batch.marks).reshape(len(NUMBERS), 2, -1)
    assert (marks[1] == -1).all() and np.asarray(batch.weights).ravel().tolist() == [1.0, 0.0, 1.0, 1.0]


def test_labels_and_waste_are_counted() -> None:
    examples = made.random_examples(5, 1, 1, gaps=True)
    mesh = made.one_device()
    numbers = np.asarray([[[3, 1]]])
    source = TokenSource(examples, shared=False)
    batch = put_batch(source, numbers, mesh)
    for row, i in enumerate([3, 1]):
        marks = examples[i].answers[0].marks
        found = np.asarray(batch.marks)[0, 0, row, 0]
        np.testing.assert_array_equal(found[: int((marks >= 0).sum())], marks[marks >= 0])
    real = int(examples.totals[[3, 1]].sum())
    assert read_tokens(examples, numbers, shared=False) == real
    longest = padded_length(int(examples.totals[[3, 1]].max()))
    assert waste(examples, numbers, batch) == pytest.approx(1 - real / (2 * longest))


def test_the_plan_shares_rows_unless_the_kernel_cannot() -> None:
    assert made.plan().shared
    assert not made.plan(attention="flash").shared
    sft = TrainConfig(task="sft", channel=ChannelOptions(weight=0.0), policy=PolicyOptions(train="full", weight=1.0))
    assert not made.plan(sft).shared

"""Operations and bytes from shapes alone, against the compiler's own count and against arrays that are there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from sla_jax.model.config import from_hf
from sla_jax.model.forward import trunk
from sla_jax.model.policy import init_policy, unstack
from sla_jax.training import cost, tiny
from sla_jax.training.config import ChannelOptions, FeaturesConfig, PolicyOptions, TrainConfig
from sla_jax.training.loss_config import PolicyLoss
from tests.training import made

TOKENS = 128


def test_a_forward_pass_has_the_operations_that_the_compiler_counts() -> None:
    config = dataclasses.replace(from_hf(tiny.raw_config()), ffn=256)
    policy = jax.eval_shape(lambda key: unstack(init_policy(config, key)), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    lowered = jax.jit(lambda policy, tokens: trunk(policy, config, tokens).hidden).lower(policy, tokens)
    analysis: Any = lowered.compile().cost_analysis()
    plan = dataclasses.replace(made.plan(), model=config)
    ours = cost.step_flops(plan, TOKENS, 0, TOKENS)
    attention = 2.0 * config.layers * config.heads * config.head_dim * TOKENS * TOKENS  # XLA reads the masked half too
    assert analysis["flops"] == pytest.approx(ours + attention, rel=0.1)


def test_what_is_trained_decides_the_backward_pass() -> None:
    def flops(**policy: Any) -> float:
        options = TrainConfig(
            channel=ChannelOptions(weight=0.0 if policy else 1.0, width=made.CHANNEL),
            policy=PolicyOptions(**policy),
            features=FeaturesConfig(mode="recompute"),
        )
        return cost.step_flops(made.plan(options), 100, 50, 10)

    simpo = PolicyLoss(name="simpo")
    frozen, lora, full = (
        flops(),
        flops(train="lora", weight=1.0, loss=simpo),
        flops(train="full", weight=1.0, loss=simpo),
    )
    model = made.plan().model
    head = 2.0 * model.width * model.vocab_size * 50
    channel = (6.0 * cost.channel_parameters(model) - 2.0 * model.layers * model.width * made.CHANNEL) * 50
    assert lora - 2 * head == pytest.approx(2 * (frozen - channel))
    assert full - 3 * head == pytest.approx(3 * (frozen - channel))


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H200 NVL", 989e12), ("cpu", None)]
)
def test_a_device_has_the_peak_of_its_longest_name(kind: str, peak: float | None) -> None:
    assert cost.peak(kind) == peak

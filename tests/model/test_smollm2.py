"""The real model, float32 at full matmul precision: logits and rewards within 1e-4 of PyTorch's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sla_jax.model import config as configs
from sla_jax.model import forward
from sla_jax.model import policy as policies
from tests import families, smollm2, torch_reference

# a chat turn, then tokens from all over the vocabulary
TOKENS = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198, *range(17, 45000, 1500)]


@functools.partial(jax.jit, static_argnames="config")
def run(policy: Any, config: Any, tokens: Any) -> tuple[Any, Any]:
    """logits [B,T,V], rewards [B,T]."""
    out = forward.trunk(policy, config, tokens)
    return forward.logits(policy, out.hidden), out.reward


def test_logits_and_rewards_are_pytorchs() -> None:
    model = smollm2.torch_model()
    channel = torch_reference.random_channel(model, width=64, seed=0)
    logits, rewards = torch_reference.logits_and_rewards(model, channel, torch.tensor([TOKENS]))
    assert logits.std() > 1 and rewards.std() > 0.1
    config = configs.from_hf(families.raw_config(model, channel))
    params = {name: jnp.asarray(array) for name, array in families.flat_params(model, channel).items()}
    ours = run(policies.policy_from_params(config, params), config, jnp.asarray([TOKENS], jnp.int32))
    np.testing.assert_allclose(np.asarray(ours[1]), rewards, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(ours[0]), logits, rtol=0, atol=1e-4)

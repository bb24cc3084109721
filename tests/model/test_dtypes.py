"""bfloat16 policies: what stays narrow, what is float32, and that decoding runs under strict promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.decode.program import Program
from sla_jax.decode.sla import SLA
from sla_jax.loading import engine
from sla_jax.model import decoding, forward
from sla_jax.model.config import ChannelConfig
from sla_jax.model.policy import init_policy, unstack
from tests.tiny import tiny_config

BFLOAT16 = jnp.dtype(jnp.bfloat16)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_rewards_are_float32_and_the_cache_is_not(tied):
    config = tiny_config(channel=ChannelConfig(width=8, head_layers=2), tied=tied)
    policy = unstack(init_policy(config, jax.random.key(0), BFLOAT16))
    sizes = {"lanes": 2, "capacity": 64, "held": 3}

    @jax.jit
    def two_steps(policy, prompts, tokens):
        first, anchor, cache = decoding.prefill(policy, config, prompts, jnp.asarray([4]), **sizes)
        nothing = jnp.zeros((1, 2), jnp.int32)
        cache = decoding.fork(cache, nothing, nothing, nothing)
        return first, anchor, *decoding.step(policy, config, 3, tokens, jnp.asarray(0), cache)

    first, anchor, logits, reward, cache = two_steps(policy, jnp.asarray([[5, 6, 7, 8]]), jnp.asarray([[9, 10]]))
    assert {x.dtype for x in (first, anchor, logits, reward)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves((cache.prefix, cache.suffix))} == {BFLOAT16}
    assert len(np.unique(logits)) > 150, "logits rounded to bfloat16 would tie"


def test_a_bfloat16_search_runs_to_its_limit():
    config = tiny_config(channel=ChannelConfig(width=8))
    policy = unstack(init_policy(config, jax.random.key(0), BFLOAT16))
    program = Program(engine(config), SLA(width=2, chunk=3, depth=1))
    state = program.start(policy, [[1, 2, 3]], [10], [])
    tokens = [token for (round_,) in program.stream(policy, state) for token in round_.tokens]
    assert len(tokens) == 10


def test_a_reward_pass_in_bfloat16_has_float32_rewards():
    config = tiny_config(channel=ChannelConfig(width=8))
    policy = init_policy(config, jax.random.key(0), BFLOAT16)
    out = jax.jit(lambda policy, tokens: forward.trunk(policy, config, tokens))(policy, jnp.asarray([[5, 6, 7, 8]]))
    assert out.reward is not None and out.reward.dtype == jnp.float32 and out.hidden.dtype == BFLOAT16

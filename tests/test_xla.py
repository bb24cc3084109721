"""What XLA is told, and that it listens."""

import re

import jax
import jax.numpy as jnp
import pytest

from sla_jax import xla
from sla_jax.model import forward
from sla_jax.model.config import ChannelConfig
from sla_jax.model.policy import init_policy


def test_what_goes_to_ynnpack_is_matrix_products(tiny_config):
    config = tiny_config(channel=ChannelConfig(width=16))
    policy = jax.eval_shape(lambda: init_policy(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((32, 128), jnp.int32)
    lowered = jax.jit(lambda policy, tokens: forward.trunk(policy, config, tokens).reward).lower(policy, tokens)
    text = lowered.compile().as_text()
    assert text is not None and "dot(" in text
    bodies = dict(re.findall(r"^%(\S+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    handed_over = re.findall(r"fusion\(.*?calls=%([\w.-]+),.*?__ynn_fusion", text)
    assert all("dot(" in bodies[name] and "reduce(" not in bodies[name] for name in handed_over)


@pytest.mark.parametrize("given", ["", "--xla_force_host_platform_device_count=4"])
def test_the_flag_is_added_to_those_that_are_there(monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(xla.importlib.metadata, "version", lambda name: "0.10.9")
    xla.set_flags()
    xla.set_flags()
    assert xla.os.environ["XLA_FLAGS"] == f"{given} {xla.PRODUCTS}".strip()


def test_who_has_named_the_flag_decides_and_other_versions_are_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{xla.FLAG}=LIBRARY_FUSION_TYPE_INVALID")
    xla.set_flags()
    assert xla.os.environ["XLA_FLAGS"] == f"{xla.FLAG}=LIBRARY_FUSION_TYPE_INVALID"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla.importlib.metadata, "version", lambda name: "0.11.0")
    xla.set_flags()
    assert xla.os.environ["XLA_FLAGS"] == ""

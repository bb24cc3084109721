"""A tiny policy and random examples, for tests of what lies between data and losses."""

import jax
import numpy as np
from jax.sharding import Mesh

from sla_jax.model.attention import AttentionKind
from sla_jax.model.config import ModelConfig, from_hf
from sla_jax.model.policy import Policy, init_policy
from sla_jax.sharding import make_mesh
from sla_jax.training import tiny
from sla_jax.training.config import ChannelOptions, FeaturesConfig, TrainConfig
from sla_jax.training.examples import Answer, Example, Examples
from sla_jax.training.objective import Plan
from sla_jax.training.setup import make_plan

CHANNEL = 8


def model() -> tuple[Policy, ModelConfig]:
    config = from_hf(tiny.raw_config())
    return init_policy(config, jax.random.key(0)), config


def random_examples(count: int, answers: int, seed: int, gaps: bool = False) -> Examples:
    """Prompts and answers of 1 to 20 random tokens; with `gaps` some answer tokens are read but not scored."""
    random = np.random.default_rng(seed)

    def tokens() -> np.ndarray:
        return random.integers(0, 384, random.integers(1, 20)).astype(np.int32)

    def answer() -> Answer:
        found = tokens()
        marks = np.ones(len(found), np.int8)
        if gaps:
            marks[random.random(len(found)) < 0.3] = -1
            marks[-1] = 0
        return Answer(found, marks)

    return Examples.of([Example(tokens(), tuple(answer() for _ in range(answers))) for _ in range(count)])


def plan(config: TrainConfig | None = None, attention: AttentionKind = "xla") -> Plan:
    config = config or TrainConfig(channel=ChannelOptions(width=CHANNEL), features=FeaturesConfig(mode="recompute"))
    made = make_plan(config, from_hf(tiny.raw_config()), "cpu")
    return Plan(config=made.config, model=made.model, attention=attention)


def one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])

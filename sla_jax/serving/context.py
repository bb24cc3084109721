"""How long a text may be where nobody says it: as long as the model knows, as far as memory allows.

Every slot of every profile can hold the longest text at once, so that no request is refused for what others take. What
weights and prefix cache leave is shared out by half: the other half is for what a round needs while it runs and for the
second copy that a state has while its room changes. On a CPU, where programs compile on the cores that serve, the
context is no longer than `CPU_CONTEXT`: every cache length up to it compiles every profile once more (docs/serving.md
has what was measured).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.memory import total_bytes
from sla_jax.decode.methods import Trees
from sla_jax.loading import default_dtype
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import init_policy
from sla_jax.serving.settings import Profile, ServeConfig
from sla_jax.serving.sizes import FIRST_BUCKET

SHARE = 0.5
CPU_CONTEXT = 4096


def with_context(config: ServeConfig, model: ModelConfig, *, memory: int | None = None) -> tuple[ServeConfig, str]:
    """The config with its context, and a line that says why it is that one; nothing if the user has said it.

    `memory`: bytes of a chip of the machine that the config's `target` names; this machine's without one.
    """
    engine = config.engine
    if engine.context is not None:
        return config, ""
    cpu = config.target is None and jax.default_backend() == "cpu"
    dtype = jnp.dtype(engine.dtype or ("bfloat16" if config.target else default_dtype()))
    context, why = choose(config, model, memory=memory or total_bytes(), itemsize=dtype.itemsize, cpu=cpu)
    said = f"context {context}: {why}; the model's own is {model.max_positions}, and engine.context sets another"
    return dataclasses.replace(config, engine=dataclasses.replace(engine, context=context)), said


def choose(config: ServeConfig, model: ModelConfig, *, memory: int, itemsize: int, cpu: bool) -> tuple[int, str]:
    """(a context, why). `memory`: bytes of a chip, or of the machine if it is a CPU; `itemsize`: bytes of a number."""
    own, buckets = model.max_positions, config.engine.buckets
    if buckets:
        return min(buckets[-1], own), "the longest of engine.buckets"
    free = _free_bytes(config, model, memory, itemsize, cpu)
    lengths = [own, *(2**power for power in reversed(range(own.bit_length())) if FIRST_BUCKET <= 2**power < own)]
    fitting = [size for size in lengths if _kv_bytes(config, model, size, itemsize) <= SHARE * free]
    context = fitting[0] if fitting else lengths[-1]
    if cpu and context > CPU_CONTEXT:
        return CPU_CONTEXT, "a CPU would compile long for more"
    if context == own:
        return context, "as long as the model knows"
    return context, f"{SHARE:.0%} of the {free / 1e9:.1f} GB beside weights and prefix cache, for every slot's text"


def _free_bytes(config: ServeConfig, model: ModelConfig, memory: int, itemsize: int, cpu: bool) -> int:
    """What weights and prefix cache leave, of all chips together. The devices of a CPU share its memory."""
    shape = config.engine.mesh
    taken = shape.data * (itemsize * _weights(model) + config.engine.prefix_cache_mb * 2**20)
    return max(0, memory * (1 if cpu else shape.data * shape.tensor) - taken)


@functools.cache
def _weights(model: ModelConfig) -> int:
    """How many numbers they are."""
    policy = jax.eval_shape(lambda: init_policy(model, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(policy))


def _kv_bytes(config: ServeConfig, model: ModelConfig, context: int, itemsize: int) -> int:
    """Keys and values of every slot's longest text, over all chips."""
    places = sum(profile.slots * _places(profile, context) for profile in config.profiles)
    return places * model.kv_numbers * itemsize


def _places(profile: Profile, context: int) -> int:
    """Positions of one slot: a text and what lanes hold beside it; of whole answers, one in every lane."""
    decoder = profile.decoder()
    if isinstance(decoder, Trees):
        return context + decoder.lanes * decoder.held
    return context * (1 + (decoder.beams if isinstance(decoder, BeamSearch) else decoder.n))

"""The context of a server that was told none: the model's, as memory allows, and no longer than a CPU compiles soon."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_jax.serving.context import CPU_CONTEXT, SHARE, choose, with_context
from sla_jax.serving.settings import Engines, MeshShape, Profile, ServeConfig
from tests.tiny import tiny_config

TOKEN = 2 * 2 * 2 * 8 * 4  # bytes: keys and values of 2 layers × 2 heads × 8 × float32
CACHE = 2**20
GREEDY = Profile(name="greedy", method="greedy", chunk=4, slots=3)
SLA = Profile(name="sla", method="sla", width=2, chunk=4, depth=1, slots=2)
BEST = Profile(name="best", method="best_of_n", n=4, slots=2)
BEAM = Profile(name="beam", method="beam", beams=3, slots=1)


def config_of(*profiles: Profile, **engine) -> ServeConfig:
    return ServeConfig(checkpoint="tiny", profiles=profiles, engine=Engines(prefix_cache_mb=1, **engine))


def chosen(config: ServeConfig, memory: int, own: int = 2048, cpu: bool = False) -> int:
    return choose(config, tiny_config(max_positions=own), memory=memory, itemsize=4, cpu=cpu)[0]


def needed(config: ServeConfig, places: int, own: int = 2048) -> int:
    """The memory with which a context of so many places just fits."""
    low, high = 0, 10**9
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chosen(config, middle, own) >= places else (middle, high)
    return high


def test_the_largest_that_fits_is_chosen():
    config = config_of(GREEDY, SLA)
    held = 3 * 4 + 2 * 4 * 8  # what the lanes of all slots hold beside their texts
    steps = {size: needed(config, size) for size in (512, 1024, 2048)}
    for size, twice in ((512, 1024), (1024, 2048)):
        assert (steps[twice] - steps[size]) * SHARE == pytest.approx(5 * size * TOKEN, abs=4)
    rest = steps[1024] - (5 * 1024 + held) * TOKEN / SHARE  # weights and prefix cache
    weights = rest - CACHE
    assert 97 * 32 * 4 < weights < 2e5
    assert chosen(config, steps[1024]) == 1024 and chosen(config, steps[1024] - 1) == 512
    assert chosen(config, 0) == 256, "somebody has to say that it does not fit: --dry-run does"


def test_whole_answers_count_with_all_their_candidates():
    config = config_of(GREEDY, BEST, BEAM)
    per_token = (needed(config, 2048) - needed(config, 1024)) * SHARE / 1024 / TOKEN
    assert per_token == pytest.approx(3 + 2 * (1 + 4) + (1 + 3), abs=0.01)


@settings(max_examples=40)
@given(own=st.sampled_from([2, 300, 2048, 100_000]), memory=st.integers(0, 10**11), cpu=st.booleans())
def test_it_is_the_model_s_own_or_a_power_of_two_below(own, memory, cpu):
    found = chosen(config_of(GREEDY), memory, own, cpu)
    assert found == own or (found < own and found >= 256 and found & (found - 1) == 0)
    assert not cpu or found <= CPU_CONTEXT
    assert chosen(config_of(GREEDY), 2 * memory, own, cpu) >= found


def test_a_mesh_has_the_memory_of_its_chips():
    config = config_of(GREEDY, mesh=MeshShape(data=1, tensor=2))
    memory = needed(config_of(GREEDY), 1024)
    assert chosen(config, memory // 2 + 1) == 1024
    assert chosen(config, memory // 2 + 1, cpu=True) < 1024, "the devices of a CPU share its memory"


def test_buckets_say_it_too():
    assert chosen(config_of(GREEDY, buckets=(64, 300)), 0) == 300
    assert chosen(config_of(GREEDY, buckets=(64, 4096)), 0) == 2048


def test_what_the_user_says_stays():
    config = config_of(GREEDY, context=100)
    assert with_context(config, tiny_config()) == (config, "")


def test_the_line_says_what_and_why():
    model = tiny_config(max_positions=300)
    config, why = with_context(config_of(GREEDY), model)
    assert config.engine.context == 300
    assert why == "context 300: as long as the model knows; the model's own is 300, and engine.context sets another"
    long = tiny_config(max_positions=100_000)
    assert with_context(config_of(GREEDY), long)[1].startswith(f"context {CPU_CONTEXT}: a CPU would compile long")
    small = choose(config_of(GREEDY), long, memory=3_000_000, itemsize=4, cpu=False)
    assert small == (1024, "50% of the 0.0 GB beside weights and prefix cache, for every slot's text")

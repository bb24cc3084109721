"""What Prometheus is told: exact counts, JetStream's aliases, compiled programs."""

import jax
import jax.numpy as jnp

from sla_jax.serving.metrics import Metrics
from tests.serving.toy_house import SLOTS, House


def test_metrics_are_exact():
    with House() as house:
        for i in range(5):
            house.open(f"{i:04}", tokens=7).wait()
        house.open("sla!", "sla", tokens=4).wait()
    assert house.ask("sla_jax_slots", profile="greedy") == 2
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="length") == 5
    assert house.ask("sla_jax_committed_tokens_total", profile="greedy") == 35
    assert house.ask("sla_jax_explored_tokens_total", profile="greedy") == 5 * 9
    assert house.ask("sla_jax_committed_tokens_total", profile="sla") == 4
    assert house.ask("sla_jax_prompt_tokens_total") == 6 * 4
    assert house.ask("sla_jax_cached_tokens_total") == 0
    assert house.ask("sla_jax_rounds_total", profile="greedy") == house.worker.log.count(("round", "greedy"))
    assert house.ask("sla_jax_time_to_first_token_seconds_count", profile="greedy") == 5
    assert house.ask("sla_jax_inter_chunk_seconds_count", profile="greedy") == 5 * 3
    assert house.ask("sla_jax_round_seconds_count") <= house.ask("sla_jax_host_seconds_count")
    assert house.ask("sla_jax_device_wait_seconds_count") == house.ask("sla_jax_host_seconds_count")


def test_jetstream_names_say_the_same():
    metrics = Metrics({"greedy": 4, "sla": 2})
    metrics.load("greedy", used=1, waiting=3)
    metrics.load("sla", used=2, waiting=4)
    body, kind = metrics.render()
    lines = [line for line in body.decode().splitlines() if line.startswith("jetstream_")]
    values = {
        line.split("{")[0] + (line.split('idx="')[1][0] if "idx" in line else ""): line.split()[-1] for line in lines
    }
    assert values == {
        "jetstream_prefill_backlog_size": "7.0",
        "jetstream_slots_available_percentage0": "0.75",
        "jetstream_slots_available_percentage1": "0.0",
    }
    assert kind.startswith("text/plain")


def test_compiled_programs_are_counted():
    metrics = Metrics(SLOTS)
    metrics.watch_compiling()

    def count():
        return metrics.registry.get_sample_value("sla_jax_compiled_programs_total")

    program = jax.jit(lambda x: x * jnp.float32(1.2345) + x)
    numbers = jnp.arange(7, dtype=jnp.float32)
    before = count()
    program(numbers)
    metrics.ready()
    assert count() > before
    program(numbers)
    assert metrics.registry.get_sample_value("sla_jax_compiled_programs_at_ready") == count()

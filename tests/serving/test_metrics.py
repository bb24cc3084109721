"""What Prometheus is told: exact counts, the same under JetStream's and vLLM's names, compiled programs."""

import jax
import jax.numpy as jnp

from sla_jax.serving.metrics import Metrics
from tests.serving.toy_house import FOREVER, SLOTS, House
from tests.serving.toy_worker import PATIENCE

REASONS = ("stop", "length", "abort", "error")


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


def test_vllm_names_say_the_same():
    with House() as house:
        for i in range(5):
            house.open(f"{i:04}", tokens=7).wait()
        house.open("sla!", "sla", tokens=4).wait()
        runner = house.open("runner", tokens=FOREVER)
        assert runner.started.wait(PATIENCE)
        house.hold()
        before = {name: field(house, name) for name in ("num_requests_running", "kv_cache_usage_perc")}
        house.service.cancel("runner")
        house.worker.gate.open()
        said = len(runner.wait().tokens)
        finished = [field(house, "request_success_total", finished_reason=reason) for reason in REASONS]
    assert before == {"num_requests_running": 1, "kv_cache_usage_perc": 1 / 3}
    assert finished == [0, 6, 1, 0]
    assert field(house, "prompt_tokens_total") == field(house, "prefix_cache_queries_total") == 6 * 4 + 6
    assert field(house, "prefix_cache_hits_total") == 0
    assert field(house, "generation_tokens_total") == 5 * 7 + 4 + said
    assert field(house, "time_to_first_token_seconds_count") == field(house, "e2e_request_latency_seconds_count") == 7
    for name in ("inter_token_latency_seconds_count", "time_per_output_token_seconds_count"):
        assert field(house, name) == 5 * 6 + 3 + said - 1


def field(house, name, **labels):
    return house.ask(f"vllm:{name}", model_name="toy", **labels)


def test_an_answer_that_goes_on_in_a_second_request_is_one():
    """Thinking is ended so: the second one is before those who wait, needs no place, and began with the first."""
    with House(slots={"greedy": 1}, queue=1) as house:
        first = house.open_held("first", tokens=FOREVER)
        waiting = house.open("waiting", tokens=3)
        second = house.open("second", tokens=3, began=house.clock() - 40.0)
        house.service.cancel("first", "continued")
        house.worker.gate.open()
        for listener in (first, waiting, second):
            listener.wait()
    begun = [what for name, what in house.worker.log if name == "begin"]
    assert begun == ["first", "second", "waiting"]
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="continued") == 1
    assert field(house, "request_success_total", finished_reason="length") == 2
    assert field(house, "e2e_request_latency_seconds_sum") == 40.0
    assert field(house, "time_to_first_token_seconds_count") == 2


def test_the_field_s_gauges_are_of_all_profiles():
    metrics = Metrics({"greedy": 4, "sla": 2}, "toy")
    metrics.load("greedy", used=1, waiting=3)
    metrics.load("sla", used=2, waiting=4)
    ask = metrics.registry.get_sample_value
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc")
    assert [ask(f"vllm:{name}", {"model_name": "toy"}) for name in names] == [3, 7, 0.5, 0.5]
    metrics.prompt(10, 4)
    metrics.ended("greedy", "timeout", 1.0)
    metrics.text("greedy", 3.0, 4, True)
    metrics.text("sla", 3.0, 4, False)
    values = {
        "prefix_cache_queries_total": 10,
        "prefix_cache_hits_total": 4,
        "inter_token_latency_seconds_count": 7,
        "inter_token_latency_seconds_sum": 3.0,
        "time_to_first_token_seconds_sum": 3.0,
    }
    assert {name: ask(f"vllm:{name}", {"model_name": "toy"}) for name in values} == values
    assert ask("vllm:request_success_total", {"model_name": "toy", "finished_reason": "abort"}) == 1


def test_nothing_tells_the_host_or_the_process(monkeypatch):
    monkeypatch.setenv("HOSTNAME", "secret-host")
    monkeypatch.setattr("socket.gethostname", lambda: "secret-host")
    text = Metrics({"greedy": 1}, "toy").render()[0].decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert "secret-host" not in text and 'id="toy"' in text
    assert {name.partition("_")[0].partition(":")[0] for name in names} == {"sla", "jetstream", "vllm"}


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

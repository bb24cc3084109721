"""What Prometheus may ask: our names, and JetStream's as aliases of them.

Every server has its own registry, so that several can live in one process. Seconds of the service's thread are split
into waiting for the device and everything else (`host`): their quotient is what serving costs beyond the model.
"""

import os
import socket
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sla_jax.serving.request import Event

LATENCIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
HOST_TIMES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0)
COMPILED = "/jax/core/compile/backend_compile_duration"  # recorded by jax once per program, also when its cache has it


class Metrics:
    """Counters, gauges and histograms of one server. `profiles` says how many slots each has."""

    def __init__(self, profiles: Mapping[str, int]):
        self.registry = CollectorRegistry()
        self._make_loads()
        self._make_flows()
        self._make_times()
        self._slots = dict(profiles)
        self._waiting: dict[str, int] = {}
        self._server = os.getenv("HOSTNAME") or socket.gethostname()
        for profile, slots in profiles.items():
            self.slots_total.labels(profile).set(slots)
            self.load(profile, used=0, waiting=0)

    def _make_loads(self) -> None:
        registry = self.registry
        self.slots_total = Gauge("sla_jax_slots", "Requests decoded at once", ["profile"], registry=registry)
        self.slots_used = Gauge("sla_jax_slots_used", "Slots that are taken", ["profile"], registry=registry)
        self.waiting = Gauge("sla_jax_waiting", "Requests that have no slot yet", ["profile"], registry=registry)
        self.backlog = Gauge("jetstream_prefill_backlog_size", "Size of prefill queue", ["id"], registry=registry)
        self.available = Gauge(
            "jetstream_slots_available_percentage",
            "The percentage of available slots in decode batch",
            ["id", "idx"],
            registry=registry,
        )

    def _make_flows(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "sla_jax_requests", "Answers, by how they ended", ["profile", "outcome"], registry=registry
        )
        self.inspections = Counter("sla_jax_inspections", "Texts read, by outcome", ["outcome"], registry=registry)
        self.rejections = Counter("sla_jax_rejections", "Requests not taken, by reason", ["reason"], registry=registry)
        self.prompt_tokens = Counter("sla_jax_prompt_tokens", "Tokens of prompts", registry=registry)
        self.cached_tokens = Counter(
            "sla_jax_cached_tokens", "Tokens of prompts found in the prefix cache", registry=registry
        )
        self.committed_tokens = Counter("sla_jax_committed_tokens", "Tokens of answers", ["profile"], registry=registry)
        self.explored_tokens = Counter(
            "sla_jax_explored_tokens", "Tokens read to find the answers", ["profile"], registry=registry
        )
        self.rounds = Counter("sla_jax_rounds", "Rounds run", ["profile"], registry=registry)
        self.candidates = Counter(
            "sla_jax_candidates",
            "Whole answers that a search chose from, by how they ended",
            ["profile", "outcome"],
            registry=registry,
        )
        self.compiled = Counter("sla_jax_compiled_programs", "Programs compiled since the start", registry=registry)
        self.compiled_ready = Gauge(
            "sla_jax_compiled_programs_at_ready", "Programs compiled when the server was ready", registry=registry
        )

    def _make_times(self) -> None:
        registry = self.registry
        self.first_token = Histogram(
            "sla_jax_time_to_first_token_seconds",
            "From queue to text",
            ["profile"],
            buckets=LATENCIES,
            registry=registry,
        )
        self.between_chunks = Histogram(
            "sla_jax_inter_chunk_seconds",
            "Between two texts of one answer",
            ["profile"],
            buckets=LATENCIES,
            registry=registry,
        )
        self.round_seconds = Histogram(
            "sla_jax_round_seconds", "Steps of the service that read a round", buckets=LATENCIES, registry=registry
        )
        self.host_seconds = Histogram(
            "sla_jax_host_seconds",
            "A step's time not spent waiting for the device",
            buckets=HOST_TIMES,
            registry=registry,
        )
        self.device_seconds = Histogram(
            "sla_jax_device_wait_seconds",
            "A step's time spent waiting for the device",
            buckets=LATENCIES,
            registry=registry,
        )

    def load(self, profile: str, used: int, waiting: int) -> None:
        """How full a profile is now."""
        self._waiting[profile] = waiting
        self.slots_used.labels(profile).set(used)
        self.waiting.labels(profile).set(waiting)
        self.backlog.labels(self._server).set(sum(self._waiting.values()))
        index = str(list(self._slots).index(profile))
        self.available.labels(self._server, index).set(1 - used / self._slots[profile])

    def tokens(self, profile: str, event: Event, explored: int) -> None:
        """Count what an event brings, `explored` of it new."""
        self.committed_tokens.labels(profile).inc(len(event.tokens) - event.repeated)
        self.explored_tokens.labels(profile).inc(explored)
        for one in event.ended:
            self.candidates.labels(profile, one.finish).inc()

    def prompt(self, tokens: int, cached: int) -> None:
        """Count a prompt that has been read."""
        self.prompt_tokens.inc(tokens)
        self.cached_tokens.inc(cached)

    def step(self, total: float, waited: float, rounds: int) -> None:
        """One step of the service took `total` seconds, `waited` of them for the device."""
        self.host_seconds.observe(max(total - waited, 0.0))
        self.device_seconds.observe(waited)
        if rounds:
            self.round_seconds.observe(total)

    def watch_compiling(self) -> None:
        """Count every program that jax compiles in this process from now on."""
        from jax import monitoring

        def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event == COMPILED:
                self.compiled.inc()

        monitoring.register_event_duration_secs_listener(heard)

    def ready(self) -> None:
        """The server is warm: what is compiled from now on should not have been."""
        self.compiled_ready.set(self.registry.get_sample_value("sla_jax_compiled_programs_total") or 0)

    def render(self) -> tuple[bytes, str]:
        """Everything as Prometheus reads it: body and content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

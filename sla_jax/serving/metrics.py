"""What Prometheus may ask: our names, and those of JetStream and vLLM, which say the same of the whole server.

vLLM's names (vllm/v1/metrics/loggers.py) are what dashboards and routers of the field know. They have the label
`model_name` and no profile; the histograms have its buckets. Every server has its own registry, so that several can
live in one process. Seconds of the service's thread are split into waiting for the device and everything else (`host`):
their quotient is what serving costs beyond the model. Nothing here names the machine.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sla_jax.serving.request import Event

# ours → vLLM's
ABORTS = dict.fromkeys(("abort", "refused", "timeout"), "abort")
REASONS = {"stop": "stop", "length": "length", "error": "error", **ABORTS}
FIRST_TOKEN_TIMES = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_TIMES = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
ANSWER_TIMES = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
LATENCIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
HOST_TIMES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0)
COMPILED = "/jax/core/compile/backend_compile_duration"  # recorded by jax once per program, also when its cache has it


class FieldMetrics:
    """What vLLM's names say: of all profiles together, under the name of the model."""

    def __init__(self, registry: CollectorRegistry, model: str):
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"vllm:{name}", what, ["model_name"], registry=registry).labels(model)

        def counter(name: str, what: str) -> Counter:
            return Counter(f"vllm:{name}", what, ["model_name"], registry=registry).labels(model)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"vllm:{name}", what, ["model_name"], buckets=buckets, registry=registry)
            return made.labels(model)

        self.running = gauge("num_requests_running", "Requests that have a slot")
        self.waiting = gauge("num_requests_waiting", "Requests that have no slot yet")
        share = "Share of the slots that are taken; 1 means all of them"
        self.usages = [gauge(name, share) for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc")]
        self.queries = counter("prefix_cache_queries", "Tokens of prompts looked up in the prefix cache")
        self.hits = counter("prefix_cache_hits", "Tokens of prompts found in the prefix cache")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("generation_tokens", "Tokens of answers")
        ends = ["model_name", "finished_reason"]
        successes = Counter("vllm:request_success", "Answers, by how they ended", ends, registry=registry)
        self.successes = {reason: successes.labels(model, reason) for reason in REASONS.values()}
        self.first_token = histogram("time_to_first_token_seconds", "From queue to text", FIRST_TOKEN_TIMES)
        what = "Of every token after an answer's first: its share of the time since the text before it"
        names = ("inter_token_latency_seconds", "time_per_output_token_seconds")
        self.between_tokens = [histogram(name, what, TOKEN_TIMES) for name in names]
        self.latency = histogram("e2e_request_latency_seconds", "From queue to end", ANSWER_TIMES)


class Metrics:
    """Counters, gauges and histograms of one server. `profiles` says how many slots each has."""

    def __init__(self, profiles: Mapping[str, int], model: str = ""):
        self.registry = CollectorRegistry()
        self._field = FieldMetrics(self.registry, model)
        self._make_loads()
        self._make_flows()
        self._make_times()
        self._slots = dict(profiles)
        self._used, self._waiting = dict[str, int](), dict[str, int]()
        self._server = model  # what JetStream has a host's name for, which is nobody's business
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
        self._used[profile], self._waiting[profile] = used, waiting
        self.slots_used.labels(profile).set(used)
        self.waiting.labels(profile).set(waiting)
        self.backlog.labels(self._server).set(sum(self._waiting.values()))
        index = str(list(self._slots).index(profile))
        self.available.labels(self._server, index).set(1 - used / self._slots[profile])
        self._field.running.set(sum(self._used.values()))
        self._field.waiting.set(sum(self._waiting.values()))
        for usage in self._field.usages:
            usage.set(sum(self._used.values()) / sum(self._slots.values()))

    def tokens(self, profile: str, event: Event, explored: int) -> None:
        """Count what an event brings, `explored` of it new."""
        self.committed_tokens.labels(profile).inc(len(event.tokens) - event.repeated)
        self._field.generation_tokens.inc(len(event.tokens) - event.repeated)
        self.explored_tokens.labels(profile).inc(explored)
        for one in event.ended:
            self.candidates.labels(profile, one.finish).inc()

    def text(self, profile: str, seconds: float, tokens: int, started: bool) -> None:
        """`tokens` of an answer have come, `seconds` after those before, or after its request if none had `started`."""
        (self.between_chunks if started else self.first_token).labels(profile).observe(seconds)
        if not started:
            self._field.first_token.observe(seconds)
        for _ in range(tokens if started else tokens - 1):
            for latency in self._field.between_tokens:
                latency.observe(seconds / tokens if started else 0.0)

    def ended(self, profile: str, outcome: str, seconds: float) -> None:
        """An answer has ended, `seconds` after it was asked for; one that another request goes on with has not."""
        self.requests.labels(profile, outcome).inc()
        if outcome != "continued":
            self._field.successes[REASONS[outcome]].inc()
            self._field.latency.observe(seconds)

    def prompt(self, tokens: int, cached: int) -> None:
        """Count a prompt that has been read."""
        self.prompt_tokens.inc(tokens)
        self.cached_tokens.inc(cached)
        self._field.prompt_tokens.inc(tokens)
        self._field.queries.inc(tokens)
        self._field.hits.inc(cached)

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

"""The whole server in this process: the real worker behind a hook, the real service, uvicorn on a free port."""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.model import forward
from sla_jax.serving import process
from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.service import Service
from sla_jax.serving.settings import Limits, Profile
from sla_jax.serving.worker import Opened, open_model
from tests import oracles
from tests.serving.real_worker import serve_config
from tests.serving.toy_worker import PATIENCE

PROFILES = (
    Profile(name="greedy", method="greedy", chunk=3, slots=4),
    Profile(name="sla", method="sla", width=2, chunk=3, depth=2, slots=3),
    Profile(name="wide", method="sla", width=4, chunk=2, depth=1, slots=2),
)
DECODERS = {profile.name: profile.decoder() for profile in PROFILES}
CHAT = [{"role": "user", "content": "What is 12 + 30?"}]
LANES, LENGTH = 16, 64  # the naive world's one shape: branches of the widest search, longest text


class Hooked:
    """The real worker; `before_round` is called before every round, and rounds are counted."""

    def __init__(self, worker: Any):
        self.worker = worker
        self.rounds: Counter[str] = Counter()
        self.before_round: Callable[[str], None] = lambda profile: None
        self.begin, self.read, self.insert = worker.begin, worker.read, worker.insert
        self.free, self.inspect = worker.free, worker.inspect

    def round(self, profile: str) -> Any:
        self.before_round(profile)
        self.rounds[profile] += 1
        return self.worker.round(profile)


@dataclasses.dataclass
class Whole:
    """A server that is ready."""

    opened: Opened
    service: Service
    metrics: Metrics
    worker: Hooked
    app: Any
    url: str

    def settled(self) -> bool:
        """Whether nobody is in it: no job, no reserved place, every slot free, nothing on its way from the device."""
        lines = self.service._scheduler.lines.values()
        full = all(len(line.free) == line.slots and not (line.queued or line.running or line.reading) for line in lines)
        return full and self.service._scheduler.idle and not self.service._flights

    def compiled(self) -> tuple[float, float]:
        """Programs compiled until now and until it was ready, as /metrics says."""
        said = httpx.get(f"{self.url}/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in said if not line.startswith("#"))
        ready = found["sla_jax_compiled_programs_at_ready"]
        return float(found["sla_jax_compiled_programs_total"]), float(ready)


@contextlib.contextmanager
def serving(directory: Path, profiles: tuple[Profile, ...] = PROFILES, **changes: Any) -> Iterator[Whole]:
    """A server on a free port, ready; drained and gone afterwards."""
    limits = Limits(queue=16, choices=4)
    config = serve_config(directory, profiles=profiles, model="tiny", port=0, limits=limits, **changes)
    opened = open_model(config)
    slots = {profile.name: profile.slots for profile in profiles}
    metrics = Metrics(slots)
    metrics.watch_compiling()
    service = Service(slots, config.limits, metrics)
    app = create_app(service, opened.model, opened.tokenizer, config, metrics)
    workers: list[Hooked] = []

    def build() -> Hooked:
        workers.append(Hooked(opened.worker(lambda said: None)))
        return workers[0]

    with process.listen(config.host, config.port) as listener:
        http = process.Http(app, config, listener)
        http.start(ended=lambda: None)
        service.start(build)
        try:
            assert service.wait_ready(10 * PATIENCE), service.error
            yield Whole(opened, service, metrics, workers[0], app, http.url)
        finally:
            service.drain(0.0)
            assert service.gone(PATIENCE)
            http.stop()


def until(condition: Callable[[], bool], what: str) -> None:
    """Return when it is so."""
    patient = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < patient, f"still not so: {what}"
        time.sleep(0.001)


# ---- what is asked ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A request, as its client and as the library would write it."""

    profile: str
    prompt: Any  # token ids or messages
    max_tokens: int
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    stream: bool = False

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt[0], dict)

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        source = {"messages" if self.is_chat else "prompt": self.prompt}
        chosen = {"model": f"tiny:{self.profile}", "max_tokens": self.max_tokens, "stream": self.stream}
        return {**source, **chosen, **self.sampling, "return_token_ids": True}


def ids(seed: int, count: int) -> list[int]:
    """Some prompt."""
    return [(7 * seed + place * (seed + 3)) % 300 + 3 for place in range(count)]


# prompt, answer and a chunk are at most 64 tokens, so that the library compiles each decoder once
CASES = {
    "greedy": Case(profile="greedy", prompt=ids(1, 9), max_tokens=40, stream=True),
    "greedy chat": Case(profile="greedy", prompt=CHAT, max_tokens=21),
    "sla": Case(profile="sla", prompt=ids(2, 33), max_tokens=28, stream=True),
    "sla chat": Case(profile="sla", prompt=CHAT, max_tokens=26),
    "wide": Case(profile="wide", prompt=ids(3, 1), max_tokens=17),
    "wide chat": Case(profile="wide", prompt=CHAT, max_tokens=24, stream=True),
    "drawn": Case(profile="greedy", prompt=ids(4, 20), max_tokens=33, sampling={"temperature": 0.9, "seed": 5}),
    "drawn search": Case(
        profile="sla",
        prompt=ids(5, 36),
        max_tokens=22,
        sampling={"temperature": 1.1, "seed": 7, "top_k": 30, "top_p": 0.95},
        stream=True,
    ),
}
PLAIN = [name for name, case in CASES.items() if not case.sampling]


async def ask(client: Any, case: Case) -> list[int]:
    """The token ids of an answer, through the openai client."""
    create = client.chat.completions.create if case.is_chat else client.completions.create
    source = {"messages" if case.is_chat else "prompt": case.prompt}
    extra = {**case.sampling, "return_token_ids": True}
    reply = await create(
        **source, model=f"tiny:{case.profile}", max_tokens=case.max_tokens, stream=case.stream, extra_body=extra
    )
    if not case.stream:
        return list(reply.choices[0].token_ids)
    return [token async for chunk in reply for token in chunk.choices[0].token_ids]


def alone(model: Any, case: Case) -> list[int]:
    """The same from the library."""
    options = {"max_tokens": case.max_tokens, "sampling": Sampling(**case.sampling)}
    chunks = model.stream(case.prompt, search=DECODERS[case.profile], **options)
    return [token for chunk in chunks for token in chunk.token_ids]


# ---- clients that leave ----


class Wave:
    """Holds the engine until all streams are in, and again after some rounds until all have been dropped."""

    def __init__(self, whole: Whole, rounds: int):
        self.whole, self.limit = whole, rounds
        self.start, self.is_full = Counter(whole.worker.rounds), False
        self.held, self.dropped = threading.Event(), threading.Event()
        whole.worker.before_round = self

    def __call__(self, profile: str) -> None:
        if self.dropped.is_set():
            return
        if not self.is_full:
            until(lambda: len(self.whole.service._scheduler.jobs) == len(DROPPED), "all streams are in")
            self.is_full = True
        if self.whole.worker.rounds[profile] - self.start[profile] >= self.limit:
            self.held.set()
            assert self.dropped.wait(PATIENCE)


DROPPED = [
    Case(
        profile=("greedy", "sla", "wide")[i % 3],
        prompt=CHAT if i == 4 else ids(i, 4 + 5 * i),
        max_tokens=60,
        sampling={"ignore_eos": True, **({"temperature": 1.0} if i == 3 else {})},
        stream=True,
    )
    for i in range(8)
]


async def begin_and_leave(client: httpx.AsyncClient, case: Case, when: threading.Event | None = None) -> None:
    """Drop a stream after its first token, and not before `when`."""
    async with client.stream("POST", case.path, json=case.body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                assert json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"], line
                assert when is None or await asyncio.to_thread(when.wait, PATIENCE)
                return


def resident() -> int:
    """This process's memory, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def aborted(whole: Whole) -> float:
    """Answers that were ended early, as the metrics count them."""
    labels = [{"profile": profile.name, "outcome": "abort"} for profile in PROFILES]
    return sum(whole.metrics.registry.get_sample_value("sla_jax_requests_total", label) or 0 for label in labels)


# ---- the naive world ----


@functools.partial(jax.jit, static_argnames="config")
def _forward(policy: Any, tokens: Any, lengths: Any, *, config: Any) -> Any:
    trunk, rows = forward.trunk(policy, config, tokens), jnp.arange(LANES)
    assert trunk.reward is not None
    logits = forward.logits(policy, trunk.hidden[rows, lengths - 1])
    return jax.nn.log_softmax(logits), trunk.reward[rows, lengths - 1]


def naive_world(model: Any, prompt: list[int]) -> oracles.World:
    """A whole forward pass without a cache for every question."""

    def world(texts: list[oracles.Text]) -> list[tuple[np.ndarray, float]]:
        tokens, lengths = np.zeros((LANES, LENGTH), np.int32), np.ones(LANES, np.int32)
        for row, text in enumerate(texts):
            lengths[row] = len(prompt) + len(text)
            tokens[row, : lengths[row]] = [*prompt, *text]
        logprobs, rewards = jax.device_get(_forward(model.policy, tokens, lengths, config=model.config))
        return list(zip(logprobs[: len(texts)], rewards[: len(texts)].tolist(), strict=True))

    return world


def naive(model: Any, case: Case) -> list[int]:
    """An unsampled answer from the oracle."""
    world, ends = naive_world(model, model.prompt_ids(case.prompt)), frozenset(model.end_tokens)
    decoder = DECODERS[case.profile]
    if isinstance(decoder, Greedy):
        return list(oracles.greedy(world, case.max_tokens, ends))
    assert isinstance(decoder, SLA)
    sizes: dict[str, Any] = {"width": decoder.width, "chunk": decoder.chunk, "depth": decoder.depth}
    settings = oracles.Settings(**sizes, max_tokens=case.max_tokens, end_tokens=ends)
    return list(oracles.sla(world, settings).tokens)

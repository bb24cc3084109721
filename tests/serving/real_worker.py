"""The real worker on a tiny checkpoint, driven by hand: requests sit down, rounds go round, events are collected."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sla_jax.decode.sampling import Sampling
from sla_jax.serving.request import Event, Request
from sla_jax.serving.settings import Engines, MeshShape, Profile, ServeConfig
from sla_jax.serving.worker import Worker, open_model

PROFILES = (
    Profile(name="greedy", method="greedy", chunk=3, slots=4),
    Profile(name="sla", method="sla", width=2, chunk=3, depth=1, slots=4),
    Profile(name="branched", method="sla", width=2, chunk=2, depth=0, slots=2, branch_first=True),
)
WAYS = (
    Sampling(),
    Sampling(temperature=0.9, seed=11, top_p=0.9),
    Sampling(temperature=1.2, seed=2, top_k=20, frequency_penalty=0.4),
    Sampling(repetition_penalty=1.2),
)


def serve_config(directory: Path, **changes: Any) -> ServeConfig:
    """Three profiles, two cache lengths, pieces of 16 tokens."""
    engine: dict[str, Any] = {
        "context": 128,
        "buckets": (48, 128),
        "prefill_chunk": 16,
        "prefix_cache_mb": 1,
        "top_logprobs": 4,
    }
    mesh = MeshShape(**changes.pop("mesh", {}))
    profiles = changes.pop("profiles", PROFILES)
    return ServeConfig(
        checkpoint=str(directory),
        profiles=profiles,
        engine=Engines(**engine | changes.pop("engine", {}), mesh=mesh),
        **changes,
    )


def started(directory: Path, **changes: Any) -> Worker:
    """A warm worker."""
    return open_model(serve_config(directory, **changes)).worker(lambda said: None)


def mixed_requests(ends: tuple[int, ...], count: int = 8) -> list[Request]:
    """Every profile, short and long prompts, different limits and ways to choose tokens."""
    names = [profile.name for profile in PROFILES]
    return [
        Request(
            id=f"r{i}",
            profile=names[i % 3 if i % 3 < 2 or i == 2 else 0],
            prompt=tuple((7 * i + j * (i + 3)) % 300 + 3 for j in range(1 + 9 * i % 40)),
            max_tokens=5 + 4 * i,
            ends=ends,
            sampling=WAYS[i % len(WAYS)],
            top_logprobs=i % 3,
        )
        for i in range(count)
    ]


class Driver:
    """Seats requests in the order given, as slots become free, and runs rounds until all have ended."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.free = {name: list(range(slots)) for name, slots in worker.slots.items()}
        self.seats: dict[tuple[str, int], Request] = {}
        self.events: dict[str, list[Event]] = {}

    def seat(self, request: Request) -> None:
        """Read its prompt and insert it."""
        reading = self.worker.begin(request)
        while not self.worker.read(reading):
            pass
        slot = self.free[request.profile].pop(0)
        pending = self.worker.insert(request, reading, slot)
        self.seats[request.profile, slot] = request
        self.events[request.id] = list(pending.get().values())

    def round(self) -> None:
        """One round of every profile with somebody in it."""
        for name in sorted({name for name, _ in self.seats}):
            pending = self.worker.round(name)
            pending.wait()
            for slot, event in pending.get().items():
                request = self.seats[name, slot]
                self.events[request.id].append(event)
                if event.finish:
                    del self.seats[name, slot]
                    self.free[name] = sorted([slot, *self.free[name]])

    def run(self, requests: Sequence[Request], stagger: int = 0) -> dict[str, list[int]]:
        """Answers by id; with `stagger`, so many rounds pass between arrivals."""
        waiting = list(requests)
        while waiting or self.seats:
            for request in [r for r in waiting if self.free[r.profile]]:
                if self.free[request.profile]:
                    waiting.remove(request)
                    self.seat(request)
                    for _ in range(stagger):
                        self.round()
            self.round()
        return {name: answer(events) for name, events in self.events.items()}


def answer(events: Sequence[Event]) -> list[int]:
    """The tokens of an answer; what is repeated is repeated truly."""
    tokens: list[int] = []
    for event in events:
        cut = len(tokens) - event.repeated
        assert tokens[cut:] == event.tokens[: event.repeated]
        tokens[cut:] = event.tokens
    return tokens

"""A service that answers from a script: no model, no scheduler, and every way to misbehave on request."""

import threading
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Answer, Event, Finish, Inspected, Inspection, Overloaded, Request, Sink, Unavailable
from sla_jax.serving.settings import Limits, ModelInfo, Profile, ServeConfig
from tests.tiny import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
END = 2
PROFILES = (
    Profile(name="greedy", method="greedy", chunk=4, slots=4),
    Profile(name="sla", method="sla", width=2, chunk=3, depth=1, slots=2),
    Profile(name="wide", method="sla", width=4, chunk=8, depth=1, slots=2),
)
ANSWER = "The capital of France is Paris. 東京は日本の首都です。 42 👍🏽!"
MODEL = ModelInfo(
    name="tiny",
    profiles=PROFILES,
    context=256,
    vocabulary=320,
    end_tokens=(END,),
    has_channel=True,
    channel="tests",
    top_logprobs=5,
    created=1_700_000_000,
)


def encode(text: str) -> list[int]:
    return TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids


def decode(tokens: list[int]) -> str:
    return TOKENIZER.backend_tokenizer.decode(tokens, skip_special_tokens=True)


def logprob(token: int) -> float:
    """What the script gives every token."""
    return -0.01 * token


def tops(token: int, count: int) -> list[tuple[int, float]]:
    return [((token + i) % 320, logprob(token) - i) for i in range(count)]


class FakeTicket:
    """Places that are counted."""

    def __init__(self, service: "FakeService", count: int):
        self._service, self._left = service, count

    def __enter__(self) -> "FakeTicket":
        return self

    def __exit__(self, *failure: object) -> None:
        self._service.reserved -= self._left
        self._left = 0

    def _use(self) -> None:
        assert self._left > 0, "more submitted than reserved"
        self._left -= 1
        self._service.reserved -= 1

    def submit(self, request: Request, sink: Sink) -> None:
        if request.began is None:
            self._use()
        self._service.answer(request, sink)

    def inspect(self, inspection: Inspection, answer: Answer) -> None:
        self._use()
        self._service.look(inspection, answer)


class FakeService:
    """Says `text` in rounds of the profile's chunk, then the end token. `ending` replaces the end by another finish.

    stall: after the first token nothing comes until `go` is set, or the request is cancelled. Every request has its own
    thread, unless it is answered at once (`sync`).
    """

    def __init__(self, text: str = ANSWER, *, sync: bool = False, ending: Event | None = None, stall: bool = False):
        self.text, self.sync, self.ending, self.stall = text, sync, ending, stall
        self.state, self.error = "ready", None
        self.overloaded = False
        self.reserved = 0
        self.bounds: list[int | None] = []  # tokens that places were asked for
        self.requests: list[Request] = []
        self.inspections: list[Inspection] = []
        self.cancelled: list[str] = []
        self.go, self.began, self.was_cancelled = threading.Event(), threading.Event(), threading.Event()
        self._running: dict[str, threading.Event] = {}
        self._checks: dict[str, Answer] = {}
        self.threads: list[threading.Thread] = []

    def reserve(self, profile: str, count: int = 1, tokens: int | None = None) -> FakeTicket:
        self.bounds.append(tokens)
        if self.overloaded:
            raise Overloaded(f"the queue of the profile {profile} is full.", 7)
        if self.state != "ready":
            raise Unavailable(f"the server is {self.state}.")
        self.reserved += count
        return FakeTicket(self, count)

    def cancel(self, request_id: str, finish: str = "abort") -> bool:
        self.cancelled.append(request_id)
        stop, check = self._running.get(request_id), self._checks.pop(request_id, None)
        if stop is not None:
            stop.set()
        if check is not None:
            check(Inspected(None, [], [], "the inspection was ended (abort)"))
        self.was_cancelled.set()
        return stop is not None or check is not None

    def answer(self, request: Request, sink: Sink) -> None:
        self.requests.append(request)
        stop = self._running[request.id] = threading.Event()
        if self.sync:
            self._say(request, sink, stop)
            return
        thread = threading.Thread(target=self._say, args=[request, sink, stop], daemon=True)
        self.threads.append(thread)
        thread.start()

    def look(self, inspection: Inspection, answer: Answer) -> None:
        self.inspections.append(inspection)
        if self.stall:
            self._checks[inspection.id] = answer
            self.began.set()
            return
        if self.ending is not None:
            answer(Inspected(None, [], [], self.ending.error))
            return
        tokens, top = inspection.tokens, inspection.top_logprobs
        rewards = [token / 100 for token in tokens] if MODEL.has_channel else None
        answer(Inspected(rewards, [None, *map(logprob, tokens[1:])], [[], *(tops(token, top) for token in tokens[1:])]))

    def _say(self, request: Request, sink: Sink, stop: threading.Event) -> None:
        for event in self._events(request):
            if self.stall and event.round is not None:
                self.began.set()
                while not (self.go.wait(0.005) or stop.is_set()):
                    pass
            if stop.is_set():
                sink(Event(finish="abort", explored=99))
                break
            sink(event)
        self._running.pop(request.id, None)

    def _events(self, request: Request) -> Iterator[Event]:
        chunk = next(profile.decoder().chunk for profile in PROFILES if profile.name == request.profile)
        tokens = [*encode(self.text), *request.ends[:1]]
        while not request.ends and len(tokens) < request.max_tokens:
            tokens += encode(self.text)
        finish: Finish = "stop" if len(tokens) <= request.max_tokens and request.ends else "length"
        tokens = tokens[: request.max_tokens]
        if len(tokens) > 1:
            yield self._event(request, tokens[:1], None)
        for number, start in enumerate(range(0, len(tokens), chunk)):
            event = self._event(request, tokens[start : start + chunk], number)
            event = event._replace(
                repeated=int(start == 0 and len(tokens) > 1), explored=2 * (start + len(event.tokens))
            )
            last = start + chunk >= len(tokens)
            if last and self.ending:
                yield self.ending
            else:
                yield event._replace(finish=finish if last else None)

    def _event(self, request: Request, tokens: list[int], number: int | None) -> Event:
        return Event(
            tokens=tokens,
            rewards=[] if number is None else [token / 100 for token in tokens],
            logprobs=[logprob(token) for token in tokens],
            tops=[tops(token, request.top_logprobs) for token in tokens],
            round=number,
            score=None if number is None else 0.5,
            margin=None if number is None else 0.25,
            alive=1,
            explored=1,
            cached=1,
        )


def fake_app(service: Any = None, *, model: ModelInfo = MODEL, tokenizer: Any = TOKENIZER, **settings: Any) -> FastAPI:
    """The app in front of a fake (or any other) service."""
    config = ServeConfig(checkpoint="tiny", profiles=model.profiles, **{"limits": Limits(body_bytes=65536), **settings})
    metrics = Metrics({profile.name: profile.slots for profile in model.profiles})
    return create_app(service or FakeService(), model, tokenizer, config, metrics)

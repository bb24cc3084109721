"""A service that answers by a script, at once: for protocols in front of it, without a scheduler or a model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sla_jax.serving.request import Event, Inspected, Inspection, Overloaded, Request, Unavailable
from sla_jax.serving.settings import Limits, ModelInfo, Profile, ServeConfig
from tests.tiny import byte_level_tokenizer

PROFILES = (
    Profile(name="greedy", method="greedy", slots=4),
    Profile(name="sla", method="sla", width=2, chunk=10, depth=2, slots=4),
)
TOKENIZER = byte_level_tokenizer()
END = 2
INFO = ModelInfo(
    name="tiny",
    profiles=PROFILES,
    context=64,
    vocabulary=320,
    end_tokens=(END,),
    has_channel=True,
    channel="tests",
    top_logprobs=5,
    created=0,
)
CONFIG = ServeConfig(checkpoint="tiny", profiles=PROFILES, grpc_port=0, limits=Limits(choices=4))


def ids(text: str) -> list[int]:
    return list(TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def says(*pieces: str, finish: Any = "stop", error: str | None = None) -> list[Event]:
    """A round for every piece; the last one ends the answer."""
    events = []
    for number, piece in enumerate(pieces):
        tokens = ids(piece)
        last = number == len(pieces) - 1
        tokens += [END] if last and finish == "stop" else []
        events.append(
            Event(
                tokens=tokens,
                rewards=[0.5] * len(tokens),
                logprobs=[-1.0 - number] * len(tokens),
                round=number,
                score=0.25,
                margin=None,
                alive=4,
                explored=8 * (number + 1),
                finish=finish if last else None,
                error=error if last else None,
            )
        )
    return events


@dataclasses.dataclass
class Scripted:
    """`script` gives a request's events; a request without a finish stays open until it is cancelled."""

    script: Callable[[Request], Sequence[Event]] = lambda request: says("Hello", " there", ".")
    refusal: Exception | None = None
    state: str = "ready"
    error: str | None = None
    requests: list[Request] = dataclasses.field(default_factory=list)
    inspections: list[Inspection] = dataclasses.field(default_factory=list)
    cancelled: list[str] = dataclasses.field(default_factory=list)
    places: int = 0
    on_cancel: Callable[[], None] = lambda: None

    def reserve(self, profile: str, count: int = 1, tokens: int | None = None) -> "Scripted":
        if self.refusal is not None:
            raise self.refusal
        self.places += count
        return self

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *failure: object) -> None:
        self.places = 0

    def submit(self, request: Request, sink: Callable[[Event], None]) -> None:
        self.requests.append(request)
        for event in self.script(request):
            sink(event)

    def inspect(self, inspection: Inspection, answer: Callable[[Inspected], None]) -> None:
        self.inspections.append(inspection)
        count = len(inspection.tokens)
        answer(Inspected([float(i) for i in range(count)], [None] * count, [[]] * count))

    def cancel(self, request_id: str, finish: str = "abort") -> bool:
        self.cancelled.append(request_id)
        self.on_cancel()
        return True


BUSY = Overloaded("the queue is full; try again later", retry_after=3)
CLOSED = Unavailable("the server is shutting down")

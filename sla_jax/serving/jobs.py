"""What the service asks of a worker, and what it keeps about each request. No jax: of the device, only its methods."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from sla_jax.serving.request import Answer, Event, Inspected, Inspection, Request, Sink
from sla_jax.serving.scheduler import Job

State = Literal["starting", "ready", "draining", "failed", "stopped"]
CLOSED: dict[str, str] = {
    "starting": "the model is still being loaded; ask /ready",
    "draining": "the server is shutting down and takes nothing new",
    "failed": "the engine has failed; the server is shutting down",
    "stopped": "the server has shut down",
}


# ---- what the service asks of a worker: every call comes from its one thread ----


@runtime_checkable
class Pending(Protocol):
    """A result on its way from the device."""

    def wait(self) -> None:
        """Return when the device is done."""
        ...

    def get(self) -> dict[int, Event]:
        """Slot → what happened to it; slots with nothing to say are absent. Once, after `wait`."""
        ...


@runtime_checkable
class Reading(Protocol):
    """A prompt that is being read."""

    @property
    def cached(self) -> int:
        """Tokens of it that were found in the prefix cache."""
        ...


@runtime_checkable
class Worker(Protocol):
    """The device, as the service knows it. Nothing here waits for a result; a reading is what `begin` returned."""

    def begin(self, request: Request) -> Reading:
        """Look a prompt up in the prefix cache. What this raises is the request's own failure."""
        ...

    def read(self, reading: Any) -> bool:
        """Read the next piece of a prompt; True when all of it is read."""
        ...

    def insert(self, request: Request, reading: Any, slot: int) -> Pending:
        """Put a prompt that was read into a slot; its first token is the result, if it is known yet."""
        ...

    def round(self, profile: str) -> Pending:
        """One round of all slots of a profile."""
        ...

    def free(self, profile: str, slot: int) -> None:
        """Stop decoding a slot whose request was cancelled."""
        ...

    def inspect(self, inspection: Inspection) -> Callable[[], Inspected]:
        """One forward pass over a text; what is returned waits for the result."""
        ...


# ---- what the service keeps about each request ----


@dataclasses.dataclass(eq=False, kw_only=True)
class Stream(Job):
    """An answer on its way."""

    request: Request
    sink: Sink
    began: float  # when its answer did, which another request may have begun
    since: float  # when it was submitted, or its last text was sent
    read_since: float = 0.0  # when its prompt was begun
    reading: Reading | None = None
    rounds: int = 0
    explored: int = 0
    started: bool = False  # its answer's first text has been sent


@dataclasses.dataclass(eq=False, kw_only=True)
class Check(Job):
    """An inspection on its way."""

    inspection: Inspection
    answer: Answer
    result: Callable[[], Inspected] | None = None


class Flight(NamedTuple):
    """A result that has not been read, and who sat in which slot when it was dispatched."""

    pending: Pending
    seats: dict[int, Job]
    profile: str | None  # None: a prompt's first token


def new_stream(request: Request, sink: Sink, now: float) -> Stream:
    """The job of answering a request."""
    return Stream(
        id=request.id,
        profile=request.profile,
        prompt=request.prompt,
        deadline=request.deadline,
        limit=request.max_tokens,
        goes_on=request.began is not None,
        request=request,
        sink=sink,
        began=now if request.began is None else request.began,
        since=now,
        started=request.began is not None,
    )


def new_check(inspection: Inspection, profile: str, answer: Answer, deadline: float) -> Check:
    """The job of reading a text; it waits in a profile's queue but needs no slot of it."""
    return Check(
        id=inspection.id,
        profile=profile,
        prompt=inspection.tokens,
        needs_slot=False,
        deadline=deadline,
        inspection=inspection,
        answer=answer,
    )

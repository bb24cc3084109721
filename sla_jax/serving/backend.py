"""What HTTP asks of the service: places in a queue, requests put into them, an end for those that nobody waits for."""

from typing import Protocol, runtime_checkable

from sla_jax.serving.request import Answer as Hear
from sla_jax.serving.request import Finish, Inspection, Request, Sink


@runtime_checkable
class Places(Protocol):
    """Places in a profile's queue (`service.Ticket`). Leaving gives back those that were not used."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request."""
        ...

    def inspect(self, inspection: Inspection, answer: Hear) -> None:
        """Queue an inspection."""
        ...

    def __enter__(self) -> "Places": ...

    def __exit__(self, *failure: object) -> None: ...


@runtime_checkable
class Backend(Protocol):
    """What HTTP asks of `service.Service`."""

    @property
    def state(self) -> str:
        """ready, or why not."""
        ...

    @property
    def error(self) -> str | None:
        """Why it failed."""
        ...

    def reserve(self, profile: str, count: int = 1, tokens: int | None = None) -> Places:
        """Places in a queue, for answers of at most `tokens` (0: no answers). Raises Overloaded, Unavailable."""
        ...

    def cancel(self, request_id: str, finish: Finish = "abort") -> bool:
        """Ask for an end, and say which."""
        ...

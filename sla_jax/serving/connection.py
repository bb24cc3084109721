"""One client's connection: uvicorn's HTTP/1.1, with a limit for everything that a client can leave undone.

uvicorn limits only how long a connection may be idle between two requests. Here the head of a request has a time limit
as well, from the connection (or from the first byte behind an answer) on, and so has a client that does not read what
is sent to it. A body's time limit is in `middleware.Bodies`; here its chunks are limited, because a chunk of one byte
takes as long to parse as one of 60,000.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sla_jax.serving.settings import Limits

SLICE = 2**14  # bytes that are parsed at once
OVERHEAD = 1.1  # most bytes on the wire for a byte of a body in chunks, beyond its first two slices


class Alarm:
    """A timer that goes off once, unless it is put off before."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether it will go off, or has."""
        return self._timer is not None

    def set(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds, unless it is set already."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, action)

    def off(self) -> None:
        """Do nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(H11Protocol):
    """uvicorn makes one for every client; `limits` comes with the class that `connections_within` makes."""

    limits: Limits

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._head, self._unread = Alarm(), Alarm()  # set while a head is awaited; while the client is behind
        self._unparsed = bytearray()
        self._wire = self._body = 0  # bytes that came since the last head, and those of them that were the body

    def connection_made(self, transport: Any) -> None:
        """The head of the first request is awaited from now on."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse what came, a slice at a time: between two slices the event loop has its turn, and nothing is read."""
        if self._awaits_head:
            self._await_head()
        begins = not self._unparsed
        self._unparsed += data
        if begins:
            self._parse_slice()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._head.off()
        self._unread.off()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is behind with reading."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client has caught up; of what is left of a last answer, it has not."""
        if not self.transport.is_closing():
            self._unread.off()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """If this was the connection's last answer, it closes as soon as the client has read it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Likewise if the client asked for nothing more."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    @property
    def _awaits_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head.set(self.loop, self.limits.head, self.transport.abort)

    def _await_reader(self) -> None:
        self._unread.set(self.loop, self.limits.unread, self.transport.abort)

    def _parse_slice(self) -> None:
        if self.transport.is_closing():
            return
        part = bytes(self._unparsed[:SLICE])
        del self._unparsed[:SLICE]
        self._parse(part)
        if self._unparsed:
            self.transport.pause_reading()
            self.loop.call_soon(self._parse_slice)
        elif not self.transport.is_closing() and not self.flow.read_paused:
            self.transport.resume_reading()
        if not self._awaits_head:
            self._head.off()

    def _parse(self, data: bytes) -> None:
        """Give it to uvicorn, and hang up on a body that is cut into crumbs."""
        cycle, before = self.cycle, 0 if self.cycle is None else len(self.cycle.body)
        super().data_received(data)
        if self.cycle is not cycle:
            self._wire = self._body = 0
            return
        self._wire += len(data)
        self._body += 0 if cycle is None else len(cycle.body) - before
        if self._wire > 2 * SLICE + OVERHEAD * self._body and self._in_chunks:
            self.logger.warning("a body in chunks of a few bytes each: the connection is cut")
            self.transport.abort()

    @property
    def _in_chunks(self) -> bool:
        return self.headers is not None and any(name == b"transfer-encoding" for name, _ in self.headers)


def connections_within(limits: Limits) -> type[Connection]:
    """The class of connections with these limits, for `uvicorn.Config(http=…)`."""
    return type("Connection", (Connection,), {"limits": limits})

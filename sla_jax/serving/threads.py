"""A thread pool for what takes long on the host: bounded in threads and in queue, and never waited for at exit.

`concurrent.futures` and asyncio's default executor have queues without end, and the interpreter joins their threads
when it ends: one that does not come back would keep the process. Here

- `run` raises Overloaded, before anything is done, when as many calls wait as may;
- a call whose waiter is cancelled (its client has left, its time is up) is not begun any more; one that has begun is
  told to stop, and does so at the next `checkpoint()` that it passes;
- threads are daemons, and those without work end.
"""

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from sla_jax.serving.request import Overloaded

IDLE = 5.0  # seconds without work after which a thread ends
LATEST = 0.1  # the weight of the latest call in the mean of what calls take
Result = TypeVar("Result")


class Abandoned(Exception):
    """Nobody waits any more for what this thread computes."""


@dataclasses.dataclass(eq=False)
class Call:
    """A function that is to run, and its result for whoever waits."""

    work: Callable[[], Any]
    result: concurrent.futures.Future[Any] = dataclasses.field(default_factory=concurrent.futures.Future)
    abandoned: bool = False


_current = threading.local()  # .call: what this thread works on


def checkpoint() -> None:
    """Raise Abandoned if nobody waits any more for what this thread computes; long loops call it now and then."""
    call = getattr(_current, "call", None)
    if call is not None and call.abandoned:
        raise Abandoned


class Threads:
    """At most `count` threads, and at most `waiting` calls that wait for one. `what` they do, for messages."""

    def __init__(self, what: str, *, count: int, waiting: int):
        self._what, self._count, self._most = what, count, waiting
        self._news = threading.Condition()  # guards everything below
        self._calls: deque[Call] = deque()
        self._threads = self._busy = 0
        self._seconds = 0.0  # that a call takes, on average

    async def run(self, work: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """What `work` returns, computed in a thread. Raises Overloaded, and whatever `work` raises."""
        call = Call(lambda: work(*args, **options))
        self._submit(call)
        try:
            result: Result = await asyncio.wrap_future(call.result)
            return result
        finally:
            self._leave(call)

    def _submit(self, call: Call) -> None:
        with self._news:
            if len(self._calls) + self._busy >= self._most + self._count:
                raise self._overloaded()
            if self._threads < min(self._count, self._busy + len(self._calls) + 1):
                threading.Thread(target=self._work, name=self._what, daemon=True).start()
                self._threads += 1
            self._calls.append(call)
            self._news.notify()

    def _overloaded(self) -> Overloaded:
        seconds = max(1, min(60, round(self._seconds * (self._most / self._count + 1))))
        said = f"{self._most} requests wait for {self._what} and no more may; try again in about {seconds} s."
        return Overloaded(said, seconds)

    def _leave(self, call: Call) -> None:
        """The waiter has its result, or wants none any more.

        The call lets go of both: an error holds the frames that it came through, which hold the call, and so would hold
        what the call worked on until the garbage collector finds the cycle."""
        with self._news:
            call.abandoned = True
            if call in self._calls:
                self._calls.remove(call)
            call.work, call.result = _nothing, concurrent.futures.Future()

    def _work(self) -> None:
        while self._next():
            pass

    def _next(self) -> bool:
        """Run the next call; False if none came for a while."""
        with self._news:
            if not self._news.wait_for(lambda: self._calls, IDLE):
                self._threads -= 1
                return False
            call = self._calls.popleft()
            self._busy += 1
        began = time.monotonic()
        try:
            _execute(call)
        finally:
            with self._news:
                self._busy -= 1
                self._seconds += LATEST * (time.monotonic() - began - self._seconds)
        return True


def _nothing() -> None:
    """What is left to do of a call that is over."""


def _execute(call: Call) -> None:
    if not call.result.set_running_or_notify_cancel():
        return
    _current.call = call
    try:
        result = call.work()
    except BaseException as error:  # Rust's panics are no Exception, and a waiter is to hear of them too
        call.result.set_exception(error if isinstance(error, Exception) else RuntimeError(f"{error!r:.200}"))
    else:
        call.result.set_result(result)
    finally:
        _current.call = None

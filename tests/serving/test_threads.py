"""The thread pool: bounded, cancelled work is not begun, begun work stops, nothing is held, nobody is joined."""

import asyncio
import gc
import threading
import weakref

import pytest

from sla_jax.serving.request import Overloaded
from sla_jax.serving.threads import Abandoned, Threads, checkpoint
from tests.serving.asgi import WAIT


class Latch:
    """Work that waits until it may go on."""

    def __init__(self):
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.go.wait(WAIT)
        return "done"


def test_results_and_errors_come_back():
    async def go() -> None:
        threads = Threads("tests", count=2, waiting=8)
        assert await asyncio.gather(*(threads.run(pow, i, 2) for i in range(10))) == [i**2 for i in range(10)]
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 1, 0)

    asyncio.run(go())


def test_a_panic_is_an_error_and_the_thread_lives_on():
    class Panic(BaseException):
        pass

    def work() -> int:
        if not panics:
            return threading.get_ident()
        panics.pop()
        raise Panic("the Rust side")

    async def go() -> None:
        threads = Threads("tests", count=1, waiting=1)
        panics.append(1)
        with pytest.raises(RuntimeError, match="the Rust side"):
            await threads.run(work)
        assert await threads.run(work) == await threads.run(work)

    panics = list[int]()
    asyncio.run(go())


def test_more_than_may_wait_is_refused_before_it_is_begun():
    async def go() -> None:
        threads, gate = Threads("the tests", count=2, waiting=3), Latch()
        calls = [asyncio.ensure_future(threads.run(gate)) for _ in range(5)]
        await asyncio.to_thread(gate.entered.wait, WAIT)
        with pytest.raises(Overloaded, match="3 requests wait for the tests") as full:
            await threads.run(refused.append, 1)
        assert 1 <= full.value.retry_after <= 60
        gate.go.set()
        assert await asyncio.gather(*calls) == ["done"] * 5
        assert await threads.run(len, "abc") == 3

    refused = list[int]()
    asyncio.run(go())
    assert not refused


def test_what_nobody_waits_for_any_more_is_not_begun_and_makes_room():
    async def go() -> None:
        threads, gate = Threads("tests", count=1, waiting=2), Latch()
        first = asyncio.ensure_future(threads.run(gate))
        await asyncio.to_thread(gate.entered.wait, WAIT)
        for _ in range(5):
            left = asyncio.ensure_future(threads.run(begun.append, "left"))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
        stayed = asyncio.ensure_future(threads.run(begun.append, "stayed"))
        gate.go.set()
        await asyncio.gather(first, stayed)

    begun = list[str]()
    asyncio.run(go())
    assert begun == ["stayed"]


def test_work_that_has_begun_stops_at_its_next_checkpoint():
    entered, ended = threading.Event(), threading.Event()

    def work() -> None:
        checkpoint()
        entered.set()
        try:
            while True:
                checkpoint()
        except Abandoned:
            ended.set()
            raise

    async def go() -> None:
        threads = Threads("tests", count=1, waiting=1)
        call = asyncio.ensure_future(threads.run(work))
        await asyncio.to_thread(entered.wait, WAIT)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await asyncio.to_thread(ended.wait, WAIT)
        assert await threads.run(len, "ab") == 2, "its thread is free again"

    asyncio.run(go())
    checkpoint()  # outside of the pool somebody always waits


def test_no_thread_keeps_the_process():
    async def go() -> bool:
        return await Threads("tests", count=1, waiting=1).run(lambda: threading.current_thread().daemon)

    assert asyncio.run(go())


class Large:
    """What a call works on."""


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_held_of_a_call_that_is_over(fails):
    """With the collector off: a cycle (error, frame, call) would keep a body's memory until it runs."""

    def work(large: Large) -> None:
        if fails:
            raise ValueError("no")

    async def go() -> weakref.ref[Large]:
        threads, large = Threads("tests", count=1, waiting=1), Large()
        await asyncio.gather(threads.run(work, large), return_exceptions=True)
        await threads.run(len, "")  # the thread has let go of the call before
        return weakref.ref(large)

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(go())() is None
    finally:
        gc.enable()

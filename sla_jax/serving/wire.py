"""Bytes: JSON as strict as its standard, server-sent events, and work that ends when its client leaves."""

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NoReturn

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sla_jax.serving.errors import ApiError, as_api_error, bad

log = logging.getLogger(__name__)
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the stream otherwise
}
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def parse_json(body: bytes) -> Any:
    """JSON, and nothing that only Python takes for it: NaN, endless numbers, names said twice, halves of characters.

    A byte order mark before it is no part of it.
    """
    try:
        value = json.loads(
            body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_distinct
        )
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8 (byte {error.start}).") from None
    except UnicodeEncodeError:
        raise bad("the body has half of a surrogate pair (\\ud800 to \\udfff); it is no character.") from None
    except RecursionError:
        raise bad("the body is nested too deeply.") from None
    except ValueError as error:
        raise bad(f"the body is not valid JSON: {str(error)[:200]}.") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {ascii(twice)} stands there twice")
    return found


def to_json(value: Any) -> bytes:
    """Compact; infinities are our own mistake."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class ErrorResponse(Response):
    """An OpenAI error object with its status."""

    media_type = "application/json"

    def __init__(self, error: ApiError):
        super().__init__(json.dumps(error.body).encode(), error.status, error.headers)


class Work(Response):
    """A response that is made while its client waits, and given up when the client leaves."""

    def __init__(self, work: Callable[[Send], Coroutine[Any, Any, None]]):
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._work(send))
        gone = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            else:
                scope["state"]["note"]["gone"] = True
        finally:
            await _stop(task)
            await _stop(gone)


async def send_json(send: Send, value: Any) -> None:
    """A whole answer."""
    body = to_json(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_events(send: Send, events: AsyncGenerator[dict[str, Any], None], keep_alive: float) -> None:
    """An event stream; an error, once it has begun, is one more event. Comments fill the silence."""
    headers = [(name.encode(), value.encode()) for name, value in STREAM_HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    lines = _lines(events)
    try:
        while line := await _patient(lines, send, keep_alive):
            await send({"type": "http.response.body", "body": line, "more_body": True})
    finally:
        await lines.aclose()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _lines(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield b"data: " + to_json(event) + b"\n\n"
    except Exception as error:
        known = as_api_error(error)
        if known is None:
            log.exception("a stream broke off")
            known = ApiError(500, "the server made a mistake; its log says more.", code="internal_error")
        yield b"data: " + to_json(known.body) + b"\n\n"
    yield DONE


async def _patient(lines: AsyncIterator[bytes], send: Send, keep_alive: float) -> bytes:
    """The next line, empty at the end; meanwhile a comment every `keep_alive` seconds."""
    following = asyncio.ensure_future(_following(lines))
    try:
        while not (await asyncio.wait({following}, timeout=keep_alive))[0]:
            await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
        return following.result()
    finally:
        await _stop(following)


async def _following(lines: AsyncIterator[bytes]) -> bytes:
    return await anext(lines, b"")


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(task: asyncio.Future[Any]) -> None:
    """Cancel a task and see it end."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

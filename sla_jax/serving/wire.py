"""Bytes: JSON as strict as its standard, server-sent events, and work that ends when its client leaves."""

import asyncio
import contextlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, NoReturn

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sla_jax.errors import quoted, shortened
from sla_jax.serving.errors import ApiError, as_api_error, bad

log = logging.getLogger(__name__)
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the stream otherwise
}
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
MAX_PARTS, MAX_VALUES = 2**16, 2**20  # of a body: objects, lists and texts; all values
PIECE = 2**17  # bytes
# an escape of half a surrogate pair without its other half, in JSON text without escaped backslashes
HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


def parse_json(body: bytes) -> Any:
    """JSON, and nothing that only Python takes for it: NaN, endless numbers, names said twice, halves of characters.

    A byte order mark before it is no part of it. Time and memory grow with the body's size alone, whatever is wrong
    with it and however often. Raises ApiError.
    """
    extent_of(body).check("the body")
    try:
        value = json.loads(
            body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_distinct
        )
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8 (byte {error.start}).") from None
    except RecursionError:
        raise bad("the body is nested too deeply.") from None
    except ValueError as error:
        raise bad(f"the body is not valid JSON: {shortened(str(error), 200)}.") from None
    if b"\\u" in body and _has_half(_plain(body)):
        raise bad("the body has half of a surrogate pair (\\ud800 to \\udfff); it is no character.")
    return value


def _has_half(plain: bytes) -> bool:
    """Whether `HALF` matches; looked for in pieces, because no other thread runs during a search."""
    for start in range(0, len(plain), PIECE):
        found = HALF.search(plain, start, start + PIECE + 12)  # as far as a pair goes beyond its first byte
        if found is not None and found.start() < start + PIECE:
            return True
    return False


class Extent(NamedTuple):
    """What a JSON text holds, counted without reading it: what it takes of memory and time once it is read."""

    parts: int  # objects, lists and texts
    values: int  # all of them, numbers too

    def check(self, what: str) -> None:
        """Raise ApiError 413 for more than this server reads."""
        told = ((self.parts, MAX_PARTS, "objects, lists and texts"), (self.values, MAX_VALUES, "values"))
        for count, most, name in told:
            if count > most:
                message = f"{what} has {count} {name}; this server reads at most {most}."
                raise ApiError(413, message, code="body_too_large")


def extent_of(text: bytes) -> Extent:
    """The extent of a JSON text; of one with too many texts, only those are counted."""
    plain = _plain(text)
    texts = plain.count(b'"') // 2
    if texts > MAX_PARTS:
        return Extent(texts, texts)
    outside = b"".join(plain.split(b'"')[::2])  # of texts
    openings = outside.count(b"{") + outside.count(b"[")
    return Extent(texts + openings, openings + outside.count(b",") + 1)


def _plain(text: bytes) -> bytes:
    """A JSON text of the same length without escaped backslashes and quotes."""
    return text.replace(rb"\\", b"__").replace(rb"\"", b"__")


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
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {quoted(twice, 40)} stands there twice")
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
            del task  # its error would hold this frame and so itself, and with it the body, until the garbage is taken


async def send_json(send: Send, value: Any) -> None:
    """A whole answer."""
    await send_body(send, to_json(value))


async def send_body(send: Send, body: bytes) -> None:
    """A whole answer that is JSON already."""
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

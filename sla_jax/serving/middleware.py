"""What every request passes through, as plain ASGI: its id and its line in the log, the API key, the body's limits.

`scope["state"]` then has `request_id`, and `note`: a dict in which routes leave what the access log should say. The
names that `complaints.UnknownFields` finds in a body are there as `ignored`, and go out in a header.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sla_jax.errors import quoted, shortened
from sla_jax.serving.errors import ApiError, timed_out
from sla_jax.serving.wire import ErrorResponse

access = logging.getLogger("sla_jax.access")
log = logging.getLogger(__name__)
OPEN = ("/health", "/ready", "/ping", "/metrics")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SMALL, TOGETHER = 2**16, 16  # bytes of a body that are always read; large bodies that may be on their way at once
BUSY = "too many large bodies are on their way to this server; try again in about 1 s."
LOGGED = 200  # characters of a path, a user, … in the log
GONE = 499  # what nginx writes for a client that left


class Entry:
    """Names the request (by the client's x-request-id, if it is a plain word), logs it, turns our mistakes into 500.

    What of its body was ignored goes out as a header too, streamed or not.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        note: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": name, "note": note}
        began, status = time.monotonic(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                if ignored := scope["state"].get("ignored"):
                    headers["x-ignored-fields"] = ",".join(ignored)
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            log.exception("%s failed (%s)", quoted(scope["path"], LOGGED), name)
            if not status:
                error = ApiError(500, "the server made a mistake; its log says more.", code="internal_error")
                await ErrorResponse(error)(scope, receive, named)
        finally:
            shown = GONE if note.pop("gone", False) else status or GONE
            words = "".join(f" {key}={_told(key, value)}" for key, value in note.items())
            milliseconds = 1000 * (time.monotonic() - began)
            level = logging.DEBUG if scope["path"] in OPEN else logging.INFO  # probes come every few seconds
            where = f"{shortened(scope['method'], LOGGED)} {quoted(scope['path'], LOGGED)}"
            access.log(level, "%s %d %.1fms %s%s", where, shown, milliseconds, name, words)


def _told(key: str, value: object) -> str:
    """What a route left for the log, cut. Prompts and answers are there only if the server is to log them: whole."""
    return repr(value) if key in ("prompts", "answers") else quoted(value, LOGGED)


class Key:
    """Lets in who has the API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`. `public` paths need none."""

    def __init__(self, app: ASGIApp, key: str, public: frozenset[str] = frozenset()):
        self._app, self._key, self._open = app, key.encode(), public.union(OPEN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._knows(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        message = "this server wants its API key: send the header Authorization: Bearer KEY."
        headers = {"www-authenticate": "Bearer"}
        await ErrorResponse(ApiError(401, message, code="invalid_api_key", headers=headers))(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("latin-1", "replace"), self._key)


class Bodies:
    """Reads a body before anything else happens: no more than `limit` bytes, in `seconds`, and said to be JSON.

    That it has to be said keeps other people's web pages out: a browser asks before it sends JSON elsewhere. The bytes
    are left in `scope["state"]["body"]`; what they hold is the routes' matter (`bodies.BodyRoute`). Of large bodies
    that are being read at the same time, all connections together hold no more than `TOGETHER` times the limit.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float):
        self._app, self._limit, self._seconds = app, limit, seconds
        self._reading = 0  # bytes of bodies that are not whole yet, beyond the first `SMALL` of each

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
            if body is None:
                return
            if body:
                self._check(scope)
        except TimeoutError:
            slow = timed_out(f"the body did not come within {self._seconds:g} s; it")
            slow.headers["connection"] = "close"
            return await ErrorResponse(slow)(scope, receive, send)
        except ApiError as error:
            return await ErrorResponse(error)(scope, receive, send)
        scope["state"]["body"] = body
        del body  # a request may run for minutes
        await self._app(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client left meanwhile."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self._limit):
            raise self._too_large()
        body, counted = bytearray(), 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > self._limit:
                    raise self._too_large()
                more = max(0, len(body) - SMALL) - counted
                if self._reading + more > TOGETHER * self._limit:
                    raise ApiError(503, BUSY, code="overloaded", headers={"Retry-After": "1", "connection": "close"})
                self._reading, counted = self._reading + more, counted + more
                if not message.get("more_body"):
                    return bytes(body)
        finally:
            self._reading -= counted

    def _check(self, scope: Scope) -> None:
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            said = shortened(kind) or "of no type"
            raise ApiError(415, f"the body is {said}; send JSON and Content-Type: application/json.")

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._limit} bytes, the most that this server reads."
        return ApiError(413, message, code="body_too_large", headers={"connection": "close"})

"""Clients of an ASGI app without a network: one that waits for the whole answer, one that reads, stalls and leaves."""

import asyncio
import json
from typing import Any

import httpx

WAIT = 30  # seconds after which a test gives up; nothing is measured


def call(app: Any, path: str, body: Any = None, *, method: str | None = None, **options: Any) -> httpx.Response:
    """One request: POST with a body, else GET."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            if body is not None:
                options["json"] = body
            verb = method or ("POST" if {"json", "content"} & set(options) else "GET")
            return await client.request(verb, path, **options)

    return asyncio.run(asyncio.wait_for(go(), WAIT))


def events(response: httpx.Response) -> list[Any]:
    """The data of a finished stream; asserts that it ends with [DONE] and that nothing else is in it."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


class Caller:
    """A client that sees every message of the answer, and may leave at any time. Without a body, it never sends one."""

    def __init__(self, app: Any, path: str, body: Any, headers: dict[str, str] | None = None):
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self._left = asyncio.Event()
        self._parts = [] if body is None else [json.dumps(body).encode()]
        given = {"content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self.messages.put))

    async def _receive(self) -> Any:
        if self._parts:
            return {"type": "http.request", "body": self._parts.pop(0), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> Any:
        return await asyncio.wait_for(self.messages.get(), WAIT)

    async def leave(self) -> None:
        """Hang up, and see the server's side end."""
        self._left.set()
        await asyncio.wait_for(self.task, WAIT)

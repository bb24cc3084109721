"""The viewer's routes, for any Starlette or FastAPI app: its pages under /ui, and the recorded files of one folder.

    mount(app, Path("runs"))     # /ui/ in a browser; nothing outside runs/ can be read

The pages themselves say nothing that is not in the repository, so a server may show them to anybody (`PUBLIC`) and ask
for its API key where there is something to protect: /ui/files, /ui/file, and all that the playground calls.
"""

import json
import mimetypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from sla_jax.errors import shortened

STATIC = Path(__file__).parent / "static"
NAMES = tuple(sorted(path.name for path in STATIC.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")))
PUBLIC = frozenset({"/ui", "/ui/", *(f"/ui/{name}" for name in NAMES)})
SUFFIX = ".jsonl"  # of traces and of entropies
LISTED = 2000  # files
LARGEST = 64 * 2**20  # bytes of a file that is given to a browser
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@runtime_checkable
class App(Protocol):
    """What a Starlette and a FastAPI app have in common here."""

    @property
    def router(self) -> Any:
        """It has a list of routes."""
        ...


def mount(app: App, folder: Path | None = None, *, playground: bool = True) -> None:
    """Add the viewer. No folder: nothing can be read from this machine. `playground`: there is a model to talk to."""
    routes: list[BaseRoute] = app.router.routes
    routes.extend(_routes(None if folder is None else folder.resolve(), playground))


def _routes(folder: Path | None, playground: bool) -> Iterator[BaseRoute]:
    async def slash(request: Request) -> Response:
        return RedirectResponse("ui/", headers=HEADERS)  # relative: a proxy may have put something before it

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in NAMES:
            return refused(404, f"the viewer has no page {name!r}.", "name")
        kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
        return FileResponse(STATIC / name, media_type=kind, headers=HEADERS)

    async def files(request: Request) -> Response:
        found = [] if folder is None else await run_in_threadpool(listing, folder)
        named = None if folder is None else folder.name
        return _json({"folder": named, "playground": playground, "files": found[:LISTED], "more": len(found) > LISTED})

    async def file(request: Request) -> Response:
        asked = request.query_params.get("path", "")
        path = None if folder is None else await run_in_threadpool(inside, folder, asked)
        if path is None:
            return refused(404, f"there is no file {asked!r} in the viewer's folder; /ui/files lists those there are.")
        if path.stat().st_size > LARGEST:
            return refused(
                413, f"the file {asked!r} is larger than {LARGEST} bytes, the most that a page gets; cut it."
            )
        return FileResponse(path, media_type="application/x-ndjson; charset=utf-8", headers=HEADERS)

    yield Route("/ui", slash)
    yield Route("/ui/", page)
    yield Route("/ui/files", files)
    yield Route("/ui/file", file)
    yield Route("/ui/{name}", page)


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every file below a folder that a page may read: its path from there, its bytes, and when it was last written."""
    found = []
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            asked = (Path(top) / name).relative_to(folder).as_posix()
            path = inside(folder, asked)
            if path is not None:
                known = path.stat()
                found.append({"path": asked, "bytes": known.st_size, "modified": known.st_mtime})
    return sorted(found, key=lambda one: one["path"])


def inside(folder: Path, asked: str) -> Path | None:
    """The file of that path from a (resolved) folder; None for what is not there, hidden, of another kind, or reached
    by a way that leaves the folder, also over a link."""
    parts = asked.split("/")
    if "\0" in asked or "\\" in asked or not asked.endswith(SUFFIX) or any(part.startswith(".") for part in parts):
        return None
    if "" in parts:  # an absolute path, or two slashes
        return None
    try:
        path = folder.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return path if path.is_relative_to(folder) and path.is_file() else None


def refused(status: int, message: str, param: str = "path") -> Response:
    """An error object like those of the server's other routes."""
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    return _json({"error": {"message": shortened(message, 500), "type": kind, "param": param, "code": None}}, status)


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=True).encode()
    return Response(body, status, headers=HEADERS, media_type="application/json")

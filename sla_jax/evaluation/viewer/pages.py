"""The viewer's routes, for any Starlette or FastAPI app: its pages under /ui, and the recorded files of one folder.

    mount(app, Path("runs"))     # /ui/ in a browser; nothing outside runs/ can be read

The pages themselves say nothing that is not in the repository, so a server may show them to anybody (`PUBLIC`) and ask
for its API key where there is something to protect: /ui/files, /ui/file, and all that the playground calls.

A file is judged by the name that is asked for, by the one that is reached behind all links, and by what was opened
there. It is sent as long as it was when it was opened; one that is cut short meanwhile ends early, so that its length
is not said in advance.
"""

import json
import mimetypes
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from sla_jax.errors import shortened

STATIC = Path(__file__).parent / "static"
NAMES = tuple(sorted(path.name for path in STATIC.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")))
PUBLIC = frozenset({"/ui", "/ui/", *(f"/ui/{name}" for name in NAMES)})
SUFFIX = ".jsonl"  # of traces and of entropies
LISTED = 2000  # files
LARGEST = 64 * 2**20  # bytes of a file that is given to a browser
KIND = "application/x-ndjson; charset=utf-8"
PIECE = 2**18  # bytes that are read at once
SHOWN = 100  # characters of a name that an error repeats
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
        found = [] if folder is None else await run_in_threadpool(listing, folder, LISTED + 1)
        named = None if folder is None else folder.name
        return _json({"folder": named, "playground": playground, "files": found[:LISTED], "more": len(found) > LISTED})

    async def file(request: Request) -> Response:
        asked = request.query_params.get("path", "")
        shown = repr(asked[:SHOWN])
        opened = None if folder is None else await run_in_threadpool(open_inside, folder, asked)
        if opened is None:
            return refused(404, f"there is no file {shown} in the viewer's folder; /ui/files lists those there are.")
        size = os.fstat(opened.fileno()).st_size
        if size > LARGEST:
            opened.close()
            return refused(413, f"the file {shown} is larger than {LARGEST} bytes, the most that a page gets; cut it.")
        return StreamingResponse(pieces(opened, size), media_type=KIND, headers=HEADERS)

    yield Route("/ui", slash)
    yield Route("/ui/", page)
    yield Route("/ui/files", files)
    yield Route("/ui/file", file)
    yield Route("/ui/{name}", page)


def listing(folder: Path, most: int) -> list[dict[str, Any]]:
    """List the files below a folder that a page may read, `most` of them: path from there, bytes, time of writing."""
    return sorted(islice(_listed(folder), most), key=lambda one: one["path"])


def _listed(folder: Path) -> Iterator[dict[str, Any]]:
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            asked = (Path(top) / name).relative_to(folder).as_posix()
            path = inside(folder, asked)
            if path is None:
                continue
            try:
                known = path.stat()
            except OSError:  # it has gone meanwhile
                continue
            yield {"path": asked, "bytes": known.st_size, "modified": known.st_mtime}


def inside(folder: Path, asked: str) -> Path | None:
    """Find the file of that path from a (resolved) folder; None for what is not there, hidden, of another kind or
    outside of it, as it is asked for or as it is reached over links."""
    if not _is_shown(asked.split("/")) or "\\" in asked:
        return None
    try:
        path = folder.joinpath(*asked.split("/")).resolve(strict=True)
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # not there; links in a circle; a name that no file can have
        return None
    reached = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    return path if is_file and _is_shown(reached) else None


def _is_shown(parts: Sequence[str]) -> bool:
    """Whether a page may see what has this path: a file of the right kind, and nothing hidden on the way to it."""
    return bool(parts) and parts[-1].endswith(SUFFIX) and all(part and not part.startswith(".") for part in parts)


def open_inside(folder: Path, asked: str) -> BinaryIO | None:
    """Open the file of `inside`; None also for what cannot be read, and for what took its place since it was looked at:
    a link, a pipe, a device."""
    path = inside(folder, asked)
    if path is None:
        return None
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    opened = os.fdopen(number, "rb", buffering=0)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return opened
    opened.close()
    return None


def pieces(opened: BinaryIO, size: int) -> Iterator[bytes]:
    """Read a file that has `size` bytes, no more than them, and close it."""
    with opened:
        while size > 0 and (piece := opened.read(min(PIECE, size))):
            size -= len(piece)
            yield piece


def refused(status: int, message: str, param: str = "path") -> Response:
    """An error object like those of the server's other routes."""
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    return _json({"error": {"message": shortened(message, 500), "type": kind, "param": param, "code": None}}, status)


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=True).encode()
    return Response(body, status, headers=HEADERS, media_type="application/json")

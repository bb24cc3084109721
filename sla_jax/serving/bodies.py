"""From a body's bytes to the model that its route takes: JSON, unknown names, pydantic; in a thread if they are many.

FastAPI would parse and check a body on the event loop, which answers everybody: for the largest ones that takes some
tenths of a second. A `BodyRoute` gets its body from here, as an instance that FastAPI has only to pass on.
"""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from sla_jax.serving.body import Body
from sla_jax.serving.complaints import UnknownFields, complaint
from sla_jax.serving.errors import ApiError
from sla_jax.serving.threads import Threads
from sla_jax.serving.wire import parse_json

LARGE = 2**16  # bytes; smaller bodies are read on the event loop, in a few milliseconds
READERS = 1  # threads; several would have no more than one core together, Python's, and leave less of it to the loop


class ReadBody(NamedTuple):
    """A body as its route takes it, and the names in it that have no effect, as a header tells them."""

    value: Body
    ignored: list[str]


class BodyReader:
    """Reads the bodies of one app, for the routes that find it in `app.state.bodies`."""

    def __init__(self, unknown: UnknownFields, waiting: int):
        self._unknown = unknown
        self._threads = Threads("a reader of large bodies", count=READERS, waiting=waiting)

    async def read(self, body: bytes, model: type[Body]) -> ReadBody:
        """Raises ApiError for a body that is none, and Overloaded."""
        if len(body) > LARGE:
            return await self._threads.run(self._read, body, model)
        return self._read(body, model)

    def _read(self, body: bytes, model: type[Body]) -> ReadBody:
        value = parse_json(body) if body else None
        ignored = self._unknown.of(model, value)
        try:
            return ReadBody(model.model_validate(value), ignored)
        except ValidationError as error:
            raise _refused(error, model, ignored) from None


def _refused(error: ValidationError, model: type[Body], ignored: list[str]) -> ApiError:
    refusal = complaint(error.errors(include_url=False, include_context=False, include_input=False), model)
    refusal.headers |= {"x-ignored-fields": ",".join(ignored)} if ignored else {}
    return refusal


class BodyRoute(APIRoute):
    """A route whose body is read by `app.state.bodies`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, behind the reading of the body."""
        handle, model = super().get_route_handler(), model_of(self)

        async def read_first(request: Request) -> Response:
            if model is None:
                return await handle(request)
            read = await request.app.state.bodies.read(request.scope["state"].pop("body"), model)
            request.state.ignored = read.ignored
            return await handle(_Read(read.value, request))

        return read_first


def model_of(route: APIRoute) -> type[Body] | None:
    """The model of the body that a route takes, if it takes one."""
    field = route.body_field
    return None if field is None else cast("type[Body]", field.field_info.annotation)


class _Read(Request):
    """A request whose body has been read: its JSON is an instance of the route's model."""

    def __init__(self, value: Body, request: Request):
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        """Anything but nothing, which would be no body."""
        return b"{}"

    async def json(self) -> Any:
        """The instance."""
        return self._value

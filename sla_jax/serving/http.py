"""The HTTP app: OpenAI's routes and what goes with them, every error as an OpenAI error object, /openapi.json to match.

A client that leaves ends its work in the service at once. A request's id is in the header x-request-id of its answer,
and a client may choose it by sending that header; /abort_request takes it.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sla_jax.errors import UserError, shortened
from sla_jax.serving import compat, generation, operations, reference
from sla_jax.serving.backend import Backend
from sla_jax.serving.bodies import BodyReader
from sla_jax.serving.complaints import UnknownFields
from sla_jax.serving.errors import ApiError, as_api_error
from sla_jax.serving.gateway import Gateway
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.middleware import OPEN, Bodies, Entry, Key
from sla_jax.serving.replies import ErrorReply
from sla_jax.serving.request import Overloaded, Unavailable
from sla_jax.serving.schema import TOKEN_ID
from sla_jax.serving.settings import ModelInfo, ServeConfig
from sla_jax.serving.wire import ErrorResponse
from sla_jax.text import PreTrainedTokenizerBase
from sla_jax.web import KnownHosts, SafeHeaders

ERRORS = {
    400: "What the request asks for is wrong or not to be had here; the message says what and why.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The request, or only its body, took longer than this server allows.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    500: "The engine failed.",
    503: "No slot is free soon enough (come again after Retry-After), or the server is starting or shutting down.",
}


class Pages(NamedTuple):
    """Routes that are not the API's (a door's viewer): `mount` adds them; `public` are their paths that need no key."""

    mount: Callable[[FastAPI], None]
    public: frozenset[str]


class App(FastAPI):
    """FastAPI, whose /openapi.json lacks the 422 that we never answer, and knows of the API key and the vocabulary."""

    def __init__(self, *, has_key: bool, vocabulary: int, **settings: Any):
        self._has_key, self._vocabulary = has_key, vocabulary
        super().__init__(**settings)

    def openapi(self) -> dict[str, Any]:
        """What /openapi.json says."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    if self._has_key and path not in OPEN:
                        operation["security"] = [{"key": []}]
            parts = schema["components"]
            for name in ("HTTPValidationError", "ValidationError"):
                parts["schemas"].pop(name, None)
            if self._has_key:
                parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            self.openapi_schema = _bounded(schema, self._vocabulary)
        return self.openapi_schema


def create_app(
    service: Backend,
    model: ModelInfo,
    tokenizer: PreTrainedTokenizerBase,
    config: ServeConfig,
    metrics: Metrics,
    pages: Pages | None = None,
) -> FastAPI:
    """Everything over HTTP, for a service that somebody else starts and ends."""
    gateway = Gateway(service, model, tokenizer, config)
    version = importlib.metadata.version("sla-jax")
    app = App(
        has_key=config.key is not None,
        vocabulary=model.vocabulary,
        title="sla-jax",
        version=version,
        description="Look-ahead search, streamed while it searches.",
        docs_url=None,
        redoc_url=None,
        middleware=_middleware(config, pages.public if pages else frozenset()),
        responses={status: {"model": ErrorReply, "description": said} for status, said in ERRORS.items()},
    )
    app.state.bodies = BodyReader(UnknownFields(tokenizer, config.http.strict), config.waiting)
    app.include_router(generation.router(gateway))
    app.include_router(operations.router(gateway, metrics, version))
    app.include_router(compat.router(gateway))
    _document(app)
    if pages:
        pages.mount(app)
    for kind in (ApiError, UserError, Overloaded, Unavailable):
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(HTTPException, _plain)
    return app


def _document(app: FastAPI) -> None:
    """Add the page of all routes, under both names that FastAPI gives it."""

    @app.get("/docs", include_in_schema=False)
    @app.get("/redoc", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference.page(app.openapi()), headers=reference.HEADERS)


def _middleware(config: ServeConfig, public: frozenset[str]) -> list[Middleware]:
    """Outermost first. With a key it is the key that keeps strangers out, by whatever name they come."""
    names = config.http.hosts or (("*",) if config.key else ())
    stack = [Middleware(SafeHeaders), Middleware(Entry), Middleware(KnownHosts, names=(config.host, *names))]
    if config.cors:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-ignored-fields"],
            )
        )
    if config.key:
        stack.append(Middleware(Key, key=config.key, public=public))
    return [*stack, Middleware(Bodies, limit=config.limits.body_bytes, seconds=config.limits.body)]


# ---- errors ----


async def _known(request: Request, error: Exception) -> Response:
    """An error that says itself what it is."""
    known = as_api_error(error)
    assert known is not None, error
    return ErrorResponse(known)


async def _plain(request: Request, error: Exception) -> Response:
    """404 and 405."""
    assert isinstance(error, HTTPException)
    method = shortened(request.method)
    where = f"{method} {shortened(request.url.path)}"
    messages = {
        404: f"there is no {where}; /docs lists what there is.",
        405: f"{where}: this path does not take the method {method}.",
    }
    message = messages.get(error.status_code, str(error.detail))
    headers, methods = error.headers, request.app.openapi()["paths"].get(request.url.path)
    if error.status_code == 405 and methods:  # Starlette names the methods of the path's first route alone
        headers = {"allow": ", ".join(sorted(name.upper() for name in methods))}
    return ErrorResponse(ApiError(error.status_code, message, headers=headers))


def _bounded(schema: Any, vocabulary: int) -> Any:
    """A schema in which token ids end where the model's do."""
    if isinstance(schema, list):
        return [_bounded(item, vocabulary) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = {name: _bounded(item, vocabulary) for name, item in schema.items()}
    return {**known, "maximum": vocabulary - 1} if known.get("format") == TOKEN_ID else known

"""What goes wrong over HTTP, as OpenAI writes it down: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from typing import Any

from sla_jax.errors import UserError, shortened
from sla_jax.serving.request import Event, Overloaded, Unavailable

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    500: "server_error",
    503: "service_unavailable",
}
MAX_MESSAGE, MAX_PARAM = 4000, 200  # characters


class ApiError(Exception):
    """An answer that is not 200: a status and the fields of an OpenAI error object.

    Whatever a client wrote, this is where it is cut: no message is longer than `MAX_MESSAGE` characters. Whoever quotes
    a name uses `sla_jax.errors.quoted`, so that what stands behind it is not cut off.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code = status, code
        self.message = shortened(message, MAX_MESSAGE)
        self.param = None if param is None else shortened(param, MAX_PARAM)
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: Exception) -> ApiError | None:
    """What HTTP says of an exception that is nobody's programming error; None for one that is."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return bad(str(error))
    if isinstance(error, Overloaded):
        return ApiError(503, str(error), code="overloaded", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, Unavailable):
        return ApiError(503, str(error), code="unavailable")
    return None


def timed_out(what: str = "the request") -> ApiError:
    """408, and the OpenAI client shall not try again: it would take as long."""
    message = f"{what} took longer than this server allows and was stopped."
    return ApiError(408, message, code="timeout", headers={"x-should-retry": "false"})


def engine_failed(error: str | None) -> ApiError:
    """500."""
    return ApiError(500, error or "the engine failed.", code="engine_error")


def _no_slot(retry_after: int) -> Overloaded:
    return Overloaded(
        "it waited for a slot for so long that its answer cannot end in the time that a request may take here; "
        f"try again in about {retry_after} s.",
        retry_after,
        "deadline",
    )


def ended(event: Event) -> ApiError | Overloaded | None:
    """What a request's last event means when it is no answer."""
    if event.finish == "refused":
        return _no_slot(event.retry_after)
    if event.finish == "timeout":
        return timed_out()
    return engine_failed(event.error) if event.finish == "error" else None

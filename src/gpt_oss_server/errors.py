"""Every error the server can answer with, and the one table that maps it to the outside.

    ServerError
    ├── BadRequest            400  the client's input is wrong; `param` names the field
    │   └── ContextTooLong    400  prompt (plus output) exceeds the context or the KV pool
    ├── Unauthorized          401  missing or wrong key
    ├── Forbidden             403  right key, wrong place
    ├── NotFound              404  unknown model or path
    ├── MethodNotAllowed      405  known path, wrong verb
    ├── RequestTimeout        408  the body took too long to come
    ├── PayloadTooLarge       413  body over the limit
    ├── Overloaded            429  full; `retry_after_s` says when to come back
    ├── NotReady              503  loading, restarting or shutting down
    ├── EngineFailed          503  the worker died under this request
    └── Internal              500  a bug of ours
    StartupError                   the process cannot start: one line, exit status 1
    └── ConfigError                a setting is unknown or impossible: exit status 2

Knows: statuses, OpenAI's error types and codes, stable metric labels. Does not know: HTTP
libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ErrorSpec:
    """How one error class looks from outside. `label` is stable: metrics use it."""

    status: int
    type: str
    code: str | None
    label: str


class ServerError(Exception):
    """Base of all errors that a request can end with.

    Args:
        message: for the client; never contains prompt text.
        param: the request field at fault, in OpenAI's dotted form (`messages[0].role`).
        code: overrides the class's OpenAI error code.
        retry_after_s: seconds after which a retry may succeed (429, 503).
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class BadRequest(ServerError):
    pass


class ContextTooLong(BadRequest):
    pass


class Unauthorized(ServerError):
    pass


class Forbidden(ServerError):
    pass


class NotFound(ServerError):
    pass


class MethodNotAllowed(ServerError):
    pass


class RequestTimeout(ServerError):
    pass


class PayloadTooLarge(ServerError):
    pass


class Overloaded(ServerError):
    """`reason` says whether there was no place to wait, the place went to another request, or
    the wait was too long."""

    reason: Literal["full", "shed", "deadline"] = "full"


class NotReady(ServerError):
    """`reason` is as of `Overloaded`, for a request that waited for the engine to come back."""

    reason: Literal["full", "shed", "deadline"] = "full"


class EngineFailed(ServerError):
    pass


class Internal(ServerError):
    pass


class StartupError(Exception):
    """The server cannot start; the message is one line that says what to do. Exit status 1."""

    exit_status = 1


class ConfigError(StartupError):
    """A setting is unknown or impossible; the message names it. Exit status 2."""

    exit_status = 2


SPECS: dict[type[ServerError], ErrorSpec] = {
    BadRequest: ErrorSpec(400, "invalid_request_error", None, "bad_request"),
    ContextTooLong: ErrorSpec(
        400, "invalid_request_error", "context_length_exceeded", "context_too_long"
    ),
    Unauthorized: ErrorSpec(401, "invalid_request_error", "invalid_api_key", "unauthorized"),
    Forbidden: ErrorSpec(403, "permission_error", "forbidden", "forbidden"),
    NotFound: ErrorSpec(404, "invalid_request_error", "not_found", "not_found"),
    MethodNotAllowed: ErrorSpec(
        405, "invalid_request_error", "method_not_allowed", "method_not_allowed"
    ),
    RequestTimeout: ErrorSpec(408, "invalid_request_error", "request_timeout", "request_timeout"),
    PayloadTooLarge: ErrorSpec(
        413, "invalid_request_error", "payload_too_large", "payload_too_large"
    ),
    Overloaded: ErrorSpec(429, "rate_limit_error", "overloaded", "overloaded"),
    NotReady: ErrorSpec(503, "server_error", "not_ready", "not_ready"),
    EngineFailed: ErrorSpec(503, "server_error", "engine_failed", "engine_failed"),
    Internal: ErrorSpec(500, "server_error", "internal_error", "internal"),
}


def spec_of(error: ServerError) -> ErrorSpec:
    """The outside form of an error: its own class's row, or the nearest ancestor's."""
    for cls in type(error).__mro__:
        if cls in SPECS:
            return SPECS[cls]
    return SPECS[Internal]


def envelope(error: ServerError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""
    spec = spec_of(error)
    return {
        "error": {
            "message": error.message,
            "type": spec.type,
            "param": error.param,
            "code": error.code or spec.code,
        }
    }

"""The table of errors, as the outside sees it."""

from __future__ import annotations

import pytest

from gpt_oss_server.errors import (
    SPECS,
    BadRequest,
    ContextTooLong,
    EngineFailed,
    Forbidden,
    Internal,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    ServerError,
    Unauthorized,
    envelope,
    spec_of,
)

TABLE: list[tuple[type[ServerError], int, str | None, str]] = [
    (BadRequest, 400, None, "bad_request"),
    (ContextTooLong, 400, "context_length_exceeded", "context_too_long"),
    (Unauthorized, 401, "invalid_api_key", "unauthorized"),
    (Forbidden, 403, "forbidden", "forbidden"),
    (NotFound, 404, "not_found", "not_found"),
    (MethodNotAllowed, 405, "method_not_allowed", "method_not_allowed"),
    (RequestTimeout, 408, "request_timeout", "request_timeout"),
    (PayloadTooLarge, 413, "payload_too_large", "payload_too_large"),
    (Overloaded, 429, "overloaded", "overloaded"),
    (NotReady, 503, "not_ready", "not_ready"),
    (EngineFailed, 503, "engine_failed", "engine_failed"),
    (Internal, 500, "internal_error", "internal"),
]


@pytest.mark.parametrize(("kind", "status", "code", "label"), TABLE)
def test_each_error_has_its_status_code_and_label(
    kind: type[ServerError], status: int, code: str | None, label: str
) -> None:
    """Clients depend on the first two, dashboards on the last."""
    spec = spec_of(kind("why"))
    assert (spec.status, spec.code, spec.label) == (status, code, label)
    assert envelope(kind("why", param="n"))["error"] == {
        "message": "why",
        "type": spec.type,
        "param": "n",
        "code": code,
    }


def test_the_table_is_whole() -> None:
    """No class is left out, and no two share a label."""
    assert [row[0] for row in TABLE] == list(SPECS)
    assert len({spec.label for spec in SPECS.values()}) == len(SPECS)

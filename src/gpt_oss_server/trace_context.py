"""W3C Trace Context: `traceparent` in and out.

Knows: the header's grammar (https://www.w3.org/TR/trace-context/, version 00). Does not know:
spans, sampling, HTTP libraries.
"""

from __future__ import annotations

import re
import secrets

from gpt_oss_server.events import TraceContext

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_STATE_BYTES = 512


def trace_context(traceparent: bytes | None, tracestate: bytes | None = None) -> TraceContext:
    """The place in a trace of a request with these headers; a new trace where they are absent or
    malformed. Never raises."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or not _valid(match):
        drawn = secrets.token_hex(24)
        return TraceContext(drawn[:32], drawn[32:])
    _, trace_id, parent, flags, _ = match.groups()
    state = None
    if tracestate is not None and len(tracestate) <= _MAX_STATE_BYTES and tracestate.isascii():
        state = tracestate.decode()
    return TraceContext(
        trace_id.decode(),
        secrets.token_hex(8),
        parent.decode(),
        sampled=bool(int(flags, 16) & 1),
        state=state,
    )


def traceparent_of(trace: TraceContext, *, sampled: bool) -> bytes:
    """The header that names the request itself as the parent of what comes after it."""
    return f"00-{trace.trace_id}-{trace.span_id}-{'01' if sampled else '00'}".encode()


def _valid(match: re.Match[bytes]) -> bool:
    """Version ff and ids of zeros are forbidden; version 00 has nothing after the flags."""
    version, trace_id, parent, _, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return False
    return bool(trace_id.strip(b"0")) and bool(parent.strip(b"0"))

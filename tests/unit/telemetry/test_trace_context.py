"""`traceparent` in and out."""

from __future__ import annotations

import re

import pytest

from gpt_oss_server.trace_context import trace_context, traceparent_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_a_callers_trace_goes_on(flags: str, sampled: bool) -> None:
    """Its trace id, its span as the parent, its flag; a span id of our own."""
    context = trace_context(f"00-{TRACE}-{SPAN}-{flags}".encode(), b"vendor=x")
    assert (context.trace_id, context.parent_span_id) == (TRACE, SPAN)
    assert (context.sampled, context.state) == (sampled, "vendor=x")
    assert re.fullmatch("[0-9a-f]{16}", context.span_id)
    assert context.span_id != SPAN


def test_a_later_version_is_read_as_far_as_known() -> None:
    """Version 01 may have more behind the flags; version 00 may not."""
    later = trace_context(f"01-{TRACE}-{SPAN}-01-more".encode())
    assert later.trace_id == TRACE
    assert trace_context(f"00-{TRACE}-{SPAN}-01-more".encode()).parent_span_id is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"nonsense",
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{TRACE[:-1]}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-1".encode(),
        f"00-{TRACE}-{SPAN}-01-{'x' * 5000}".encode(),
        b"\xff\xfe",
    ],
)
def test_anything_else_begins_a_new_trace(header: bytes | None) -> None:
    """Absent or malformed: ids are drawn, and there is no parent and no flag."""
    context = trace_context(header, b"vendor=x")
    assert re.fullmatch("[0-9a-f]{32}", context.trace_id)
    assert context.trace_id != TRACE
    assert (context.parent_span_id, context.sampled, context.state) == (None, None, None)


def test_new_traces_differ() -> None:
    """Every request without a caller's trace has its own."""
    assert len({trace_context(None).trace_id for _ in range(1000)}) == 1000


@pytest.mark.parametrize("state", [b"x" * 513, b"\xc3\xa4=1"])
def test_an_unusable_state_is_left_out(state: bytes) -> None:
    """Too long, or no ASCII: the trace goes on without it."""
    context = trace_context(f"00-{TRACE}-{SPAN}-01".encode(), state)
    assert (context.trace_id, context.state) == (TRACE, None)


@pytest.mark.parametrize("sampled", [False, True])
def test_out_and_in_again(sampled: bool) -> None:
    """What we write names our span as the parent of what comes after."""
    ours = trace_context(f"00-{TRACE}-{SPAN}-01".encode())
    theirs = trace_context(traceparent_of(ours, sampled=sampled))
    assert (theirs.trace_id, theirs.parent_span_id) == (TRACE, ours.span_id)
    assert theirs.sampled is sampled

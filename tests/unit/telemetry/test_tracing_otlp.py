"""Traces as a real receiver gets them over the wire."""

from __future__ import annotations

import threading

import pytest
from trace_records import TRACE, TRACE_ID, record

from gpt_oss_server import __version__
from gpt_oss_server.events import RequestEnded, TraceContext
from gpt_oss_server.telemetry.tracing import BATCH, CLOSE_WAIT_S, Tracing
from gpt_oss_server.telemetry.tracing_otlp import OtlpExport, traces_url
from gpt_oss_server.telemetry.tracing_sampling import Sampling
from gpt_oss_server.telemetry.tracing_spans import trace_of
from otlp_receiver import WAIT_S, OtlpReceiver, attributes


def test_ids_times_attributes_and_state_arrive() -> None:
    """Every span as it was made: ids, parents, kinds, nanoseconds, attributes, tracestate."""
    trace = trace_of(record(outcome="engine_failed"))
    with OtlpReceiver() as receiver:
        export = OtlpExport(receiver.url, 10.0)
        assert export([trace])
        export.close()
        spans = receiver.trace("chat_completion")
    assert len(spans) == 6
    for sent, came in zip(trace.spans, spans, strict=True):
        assert came.trace_id.hex() == TRACE_ID
        assert (came.name, came.span_id.hex()) == (sent.name, sent.span_id)
        assert came.parent_span_id.hex() == sent.parent_id
        assert (came.start_time_unix_nano, came.end_time_unix_nano) == (sent.start_ns, sent.end_ns)
        assert attributes(list(came.attributes)) == {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in sent.attributes.items()
        }
        assert came.trace_state == "vendor=x"
        assert came.kind == (came.SPAN_KIND_SERVER if sent.server else came.SPAN_KIND_INTERNAL)
    assert (spans[0].status.code, spans[0].status.message) == (2, "engine_failed")
    assert {span.status.code for span in spans[1:]} == {0}


def test_the_resource_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours by default; OpenTelemetry's variables win and add."""
    with OtlpReceiver() as receiver:
        OtlpExport(receiver.url, 10.0)([trace_of(record())])
        monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-eu")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
        OtlpExport(receiver.url, 10.0)([trace_of(record())])
        receiver.wait_for_posts(2)
    first, second = receiver.resources
    assert (first["service.name"], first["service.version"]) == ("gpt-oss-server", __version__)
    assert second["service.name"] == "chat-eu"
    assert second["deployment.environment.name"] == "prod"
    assert receiver.scopes == ["gpt_oss_server", "gpt_oss_server"]
    assert "x-tenant" not in receiver.headers[0]
    assert receiver.headers[1]["x-tenant"] == "blue"


def test_a_request_without_a_caller_is_a_root() -> None:
    """No parent, no tracestate."""
    root = record(trace=TraceContext(TRACE_ID, TRACE.span_id))
    with OtlpReceiver() as receiver:
        assert OtlpExport(receiver.url, 10.0)([trace_of(root)])
        parent = receiver.trace("chat_completion")[0]
    assert (parent.parent_span_id, parent.trace_state) == (b"", "")


def test_a_malformed_tracestate_costs_nothing_but_itself() -> None:
    """A caller's nonsense does not lose the trace."""
    odd = TraceContext(TRACE_ID, TRACE.span_id, "1" * 16, True, "==,, not=a state=;\t")
    with OtlpReceiver() as receiver:
        assert OtlpExport(receiver.url, 10.0)([trace_of(record(trace=odd))])
        assert receiver.trace("chat_completion")[0].trace_id.hex() == TRACE_ID


def test_a_refusal_is_a_false() -> None:
    """The collector's 400 is neither an exception nor a success."""
    with OtlpReceiver(status=400) as receiver:
        assert OtlpExport(receiver.url, 10.0)([trace_of(record())]) is False
        assert receiver.posts == 1


def test_a_slow_collector_gets_what_waited() -> None:
    """While it holds the first batch, requests go on and wait; nothing is lost once it answers."""
    with OtlpReceiver(slow=True) as receiver:
        sink = Tracing(OtlpExport(receiver.url, 30.0), Sampling(1.0, 10.0), send_every_s=0.01)
        sink.emit(RequestEnded(record()))
        receiver.wait_for_posts(1)
        for _ in range(2 * BATCH):
            sink.emit(RequestEnded(record()))
        assert (sink.exported, sink.dropped) == (0, 0)
        receiver.release()
        assert len(receiver.trace("chat_completion", 2 * BATCH + 1)) == 6 * (2 * BATCH + 1)
        sink.close()
    assert (sink.exported, sink.dropped) == (2 * BATCH + 1, 0)


def test_the_end_does_not_wait_for_a_collector_that_hangs() -> None:
    """Closing returns while the real exporter still waits for its answer, whatever its timeout:
    it takes what closing may wait, well under a second, and nothing on top. What was under way
    counts as lost."""
    before = set(threading.enumerate())
    with OtlpReceiver(mute=True) as receiver:
        export = OtlpExport(receiver.url, 30.0)
        sink = Tracing(export, Sampling(1.0, 10.0), send_every_s=0.01, close_wait_s=0.0)
        sink.emit(RequestEnded(record()))
        receiver.wait_for_posts(1)
        sink.emit(RequestEnded(record()))
        sink.close()
        (sending,) = [one for one in set(threading.enumerate()) - before if one.name == "traces"]
        assert sending.is_alive()
        receiver.release()
        sending.join(WAIT_S)
    assert (sink.exported, sink.dropped) == (0, 2)
    assert CLOSE_WAIT_S < 0.9


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/v1/traces", "https://c/v1/traces"),
        ("https://c/tenant/otlp/v1/traces", "https://c/tenant/otlp/v1/traces"),
    ],
)
def test_where_traces_go(endpoint: str, url: str) -> None:
    """The usual path is added to an address without one."""
    assert traces_url(endpoint) == url

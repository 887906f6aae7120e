"""Traces as a real receiver gets them over the wire."""

from __future__ import annotations

import pytest
from trace_records import TRACE, TRACE_ID, record

from gpt_oss_server import __version__
from gpt_oss_server.events import TraceContext
from gpt_oss_server.telemetry.tracing_otlp import OtlpExport, traces_url
from gpt_oss_server.telemetry.tracing_spans import trace_of
from otlp_receiver import OtlpReceiver, attributes


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

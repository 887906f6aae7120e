"""Traces to a collector, as OTLP over HTTP (protobuf). The only module that needs `[otel]`.

Knows: OpenTelemetry's span and resource types, its exporter. Does not know: queues, threads,
sampling. Spans are built directly, not through a tracer: their ids and times are given.

`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and the certificate
variables of the exporter hold as documented by OpenTelemetry.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gpt_oss_server import __version__
from gpt_oss_server.telemetry.tracing_spans import RequestTrace, Span

SERVICE_NAME = "gpt-oss-server"
_PATH = "/v1/traces"
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK, _ERROR = Status(StatusCode.UNSET), StatusCode.ERROR


class _Service(Resource):
    """A resource that knows its hash: the library's is asked for it once per span and would write
    JSON each time."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class OtlpExport:
    """Sends traces to one collector.

    Args:
        endpoint: its address (`http://collector:4318`); `/v1/traces` is added where it has no
            path of its own.
        timeout_s: for one batch, retries included.
    """

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        # It would say each retry and each failure of its own; whoever calls says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(
            traces_url(endpoint), timeout=timeout_s, compression=Compression.Gzip
        )
        names = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            names["service.name"] = SERVICE_NAME
        self._resource = _Service(Resource.create(names))
        self._scope = InstrumentationScope("gpt_oss_server", __version__)

    def __call__(self, traces: Sequence[RequestTrace]) -> bool:
        """Whether the collector took them. May take as long as the timeout."""
        spans = [span for trace in traces for span in self._spans(trace)]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Send nothing more; a retry that waits gives up."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _spans(self, trace: RequestTrace) -> list[ReadableSpan]:
        state = trace.context.state
        trace_id = int(trace.context.trace_id, 16)
        trace_state = TraceState.from_header([state]) if state else None
        return [self._span(span, trace_id, trace_state) for span in trace.spans]

    def _span(self, span: Span, trace_id: int, state: TraceState | None) -> ReadableSpan:
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(
                trace_id, int(span.parent_id, 16), is_remote=span.server, trace_flags=_SAMPLED
            )
        return ReadableSpan(
            name=span.name,
            context=SpanContext(
                trace_id,
                int(span.span_id, 16),
                is_remote=False,
                trace_flags=_SAMPLED,
                trace_state=state,
            ),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            kind=SpanKind.SERVER if span.server else SpanKind.INTERNAL,
            status=_OK if span.error is None else Status(_ERROR, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def traces_url(endpoint: str) -> str:
    """The address that takes traces: the endpoint's own path where it has one."""
    has_path = urlsplit(endpoint).path.strip("/") != ""
    return endpoint if has_path else endpoint.rstrip("/") + _PATH

"""The spans of a request, made from its record after it is over.

Knows: which part of a request is which span, between which moments, with which attributes. Does
not know: OpenTelemetry's library, sampling, how spans are sent. While a request runs, nothing is
done for its trace; a moment that never came leaves its span out.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from gpt_oss_server.errors import SPECS
from gpt_oss_server.events import CANCELLED, OK, Operation, RequestRecord, TraceContext
from gpt_oss_server.telemetry import genai

Attributes = dict[str, Any]
Part = tuple[str, float, float, Attributes]
"""Name, beginning and end on the record's clock, attributes."""

PARENT_NAMES: dict[Operation, str] = {
    "chat": "chat_completion",
    "text_completion": "text_completion",
    "responses": "response",
}
_OPERATIONS: dict[Operation, str] = {
    "chat": genai.OPERATION_CHAT,
    "text_completion": genai.OPERATION_TEXT_COMPLETION,
    "responses": genai.OPERATION_CHAT,
}
_STATUS_OF_LABEL = {spec.label: spec.status for spec in SPECS.values()}


class Span(msgspec.Struct, frozen=True, gc=False):
    """One span. Ids are lower-case hex; `_ns` are Unix nanoseconds. `server` marks the request
    itself, whose `parent_id` is the caller's span (None where there is none). `error` is what
    went wrong where it is the server's fault."""

    name: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    attributes: Attributes
    server: bool = False
    error: str | None = None


class RequestTrace(msgspec.Struct, frozen=True, gc=False):
    """All spans of one request: its own first, then its parts in the order of time."""

    context: TraceContext
    spans: tuple[Span, ...]


def trace_of(record: RequestRecord) -> RequestTrace:
    """The request's span and a child for each part that it came to."""
    fault = _fault(record)
    start_ns, end_ns = _ns(record, record.received_s), _ns(record, record.ended_s)
    parent = Span(
        name=PARENT_NAMES[record.operation],
        span_id=record.trace.span_id,
        parent_id=record.trace.parent_span_id,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=_request(record),
        server=True,
        error=fault,
    )
    children = [
        Span(
            name=name,
            span_id=secrets.token_hex(8),
            parent_id=parent.span_id,
            start_ns=min(max(_ns(record, began_s), start_ns), end_ns),
            end_ns=min(max(_ns(record, ended_s), start_ns), end_ns),
            attributes={key: value for key, value in attributes.items() if value is not None},
        )
        for name, began_s, ended_s, attributes in _parts(record)
    ]
    return RequestTrace(record.trace, (parent, *children))


def _parts(record: RequestRecord) -> Iterator[Part]:
    """The parts that the request came to. One that was cut short (turned away while it waited,
    failed before its first token) ends with the request."""
    rendered_s, decided_s = record.rendered_s, record.decided_s
    if rendered_s is not None:
        yield "prompt_building", record.received_s, rendered_s, _prompt(record)
    if decided_s is None:
        if record.admitted_s is not None:
            yield from _run(record, record.admitted_s)
        return
    yield "routing_decision", decided_s - (record.decide_s or 0.0), decided_s, _routing(record)
    admitted_s = record.admitted_s
    waited_until_s = record.ended_s if admitted_s is None else admitted_s
    yield "queueing", decided_s, waited_until_s, _queue(record)
    if admitted_s is not None:
        yield from _run(record, admitted_s)


def _run(record: RequestRecord, admitted_s: float) -> Iterator[Part]:
    first_s, last_s = record.first_token_s, record.last_token_s
    yield "prefill", admitted_s, record.ended_s if first_s is None else first_s, _prefill(record)
    if first_s is not None and last_s is not None:
        yield "decode", first_s, last_s, _decode(record)


def _request(record: RequestRecord) -> Attributes:
    """What the conventions ask of a span of a generation, as far as it is known."""
    sampling = record.sampling
    found: Attributes = {
        genai.OPERATION_NAME: _OPERATIONS[record.operation],
        genai.PROVIDER_NAME: genai.PROVIDER,
        genai.HTTP_METHOD: "POST",
        genai.HTTP_ROUTE: record.endpoint,
        genai.HTTP_STATUS: record.status,
        genai.REQUEST_ID: record.request_id,
        genai.OUTCOME: record.outcome,
        genai.CLIENT_CLASS: record.client_class,
        genai.PRIORITY: record.priority,
        genai.REQUEST_MODEL: record.model,
        genai.RESPONSE_MODEL: record.model,
        genai.RESPONSE_ID: record.response_id,
        genai.REQUEST_STREAM: record.stream if record.response_id is not None else None,
        genai.REQUEST_CHOICE_COUNT: record.n if record.n != 1 else None,
        genai.USAGE_INPUT_TOKENS: record.input_tokens,
        genai.USAGE_CACHED_TOKENS: record.cached_tokens,
    }
    if record.input_tokens is not None:
        found[genai.USAGE_OUTPUT_TOKENS] = record.output_tokens
        found[genai.USAGE_REASONING_TOKENS] = record.reasoning_tokens
    if sampling is not None:
        found |= {
            genai.REQUEST_MAX_TOKENS: sampling.max_tokens if record.max_tokens_explicit else None,
            genai.REQUEST_TEMPERATURE: sampling.temperature,
            genai.REQUEST_TOP_P: sampling.top_p,
            genai.REQUEST_TOP_K: sampling.top_k or None,
            genai.REQUEST_PRESENCE_PENALTY: sampling.presence_penalty or None,
            genai.REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty or None,
        }
    if record.finish_reasons:
        found[genai.RESPONSE_FINISH_REASONS] = record.finish_reasons
    if record.outcome not in (OK, CANCELLED):
        found[genai.ERROR_TYPE] = record.outcome
    return {key: value for key, value in found.items() if value is not None}


def _prompt(record: RequestRecord) -> Attributes:
    return {genai.USAGE_INPUT_TOKENS: record.input_tokens}


def _routing(record: RequestRecord) -> Attributes:
    decision = record.decision
    if decision is None:
        return {}
    return {
        genai.ROUTING_INPUT_TOKENS: decision.input_tokens,
        genai.ROUTING_PREDICTED_KV_MB: decision.predicted_kv_mb,
        genai.ROUTING_DECISION: decision.route,
        genai.ROUTING_TRIGGER_REASON: decision.reason,
        genai.ROUTING_TRIGGER: decision.trigger,
        genai.ROUTING_EXECUTED: record.executed,
        genai.ROUTING_MEMORY_PRESSURE: decision.pressure.value,
        genai.ROUTING_UNMET: decision.unmet_recommendation,
        genai.ROUTING_GPU_MODE: record.mode,
    }


def _queue(record: RequestRecord) -> Attributes:
    return {genai.PRIORITY: record.priority, genai.SHRUNK: record.shrunk}


def _prefill(record: RequestRecord) -> Attributes:
    return {
        genai.USAGE_INPUT_TOKENS: record.input_tokens,
        genai.USAGE_CACHED_TOKENS: record.cached_tokens,
        genai.CACHED_SHARE: record.cached_share,
    }


def _decode(record: RequestRecord) -> Attributes:
    return {
        genai.USAGE_OUTPUT_TOKENS: record.output_tokens,
        genai.TIME_PER_TOKEN_S: record.tpot_s,
    }


def _fault(record: RequestRecord) -> str | None:
    """The outcome where it is an error on the server's side: as the conventions have it, what a
    client got wrong (4xx) does not make its server's span an error."""
    if record.outcome in (OK, CANCELLED):
        return None
    status = _STATUS_OF_LABEL.get(record.outcome, 500)
    return record.outcome if status >= 500 else None


def _ns(record: RequestRecord, moment_s: float) -> int:
    # In two steps: a Unix time in one float is only exact to some hundred nanoseconds.
    return round(record.received_unix_s * 1e9) + round((moment_s - record.received_s) * 1e9)

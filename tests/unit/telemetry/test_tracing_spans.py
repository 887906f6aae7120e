"""What spans a request's record becomes: names, times, parents, attributes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_records import DECISION, NOTHING_KNOWN, TRACE, record

from gpt_oss_server.errors import SPECS
from gpt_oss_server.telemetry.tracing_spans import Span, trace_of

UNIX_NS = 1_700_000_000 * 10**9
MS = 10**6


def by_name(**changes: Any) -> dict[str, Span]:
    spans = trace_of(record(**changes)).spans
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def times_ms(span: Span) -> tuple[float, float]:
    """Beginning and end, in milliseconds after the request came."""
    return (span.start_ns - UNIX_NS) / MS, (span.end_ns - UNIX_NS) / MS


def test_an_answered_chat_has_every_span_at_its_time() -> None:
    """The parent spans the request; its parts follow each other, each under the parent."""
    spans = by_name()
    assert {name: times_ms(span) for name, span in spans.items()} == {
        "chat_completion": (0.0, 2000.0),
        "prompt_building": (0.0, 250.0),
        "routing_decision": (499.0, 500.0),
        "queueing": (500.0, 750.0),
        "prefill": (750.0, 1000.0),
        "decode": (1000.0, 1500.0),
    }
    parent = spans.pop("chat_completion")
    assert (parent.span_id, parent.parent_id) == (TRACE.span_id, TRACE.parent_span_id)
    assert parent.server
    assert {span.parent_id for span in spans.values()} == {parent.span_id}
    assert not any(span.server for span in spans.values())
    assert len({span.span_id for span in spans.values()} | {parent.span_id}) == 6


def test_the_request_has_the_attributes_of_the_conventions() -> None:
    """Exactly these attributes, with exactly these names and values."""
    assert by_name()["chat_completion"].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gpt_oss_server",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 16,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10_000,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 2_500,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gpt_oss_server.request_id": "req_1",
        "gpt_oss_server.outcome": "ok",
        "gpt_oss_server.client_class": "address",
        "gpt_oss_server.priority": 5,
    }


def test_the_parts_have_theirs() -> None:
    """The decision carries the kept routing names; the others what they cost."""
    spans = by_name()
    assert spans["routing_decision"].attributes == {
        "routing.input_tokens": 10_000,
        "routing.predicted_kv_mb": 7500.0,
        "routing.decision": "multi_gpu",
        "routing.trigger_reason": "large_input: 10000 > 8000 tokens",
        "routing.trigger": "large_input",
        "routing.executed": "single_gpu",
        "routing.memory_pressure": 0.72,
        "routing.unmet_recommendation": True,
        "routing.gpu_mode": "single",
    }
    assert spans["prompt_building"].attributes == {"gen_ai.usage.input_tokens": 10_000}
    assert spans["queueing"].attributes == {
        "gpt_oss_server.priority": 5,
        "gpt_oss_server.output_bound_lowered": False,
    }
    assert spans["prefill"].attributes == {
        "gen_ai.usage.input_tokens": 10_000,
        "gen_ai.usage.cache_read.input_tokens": 2_500,
        "gpt_oss_server.cached_share": 0.25,
    }
    assert spans["decode"].attributes == {
        "gen_ai.usage.output_tokens": 5,
        "gpt_oss_server.time_per_output_token_s": 0.125,
    }


@pytest.mark.parametrize(
    ("operation", "name", "said"),
    [
        ("chat", "chat_completion", "chat"),
        ("text_completion", "text_completion", "text_completion"),
        ("responses", "response", "chat"),
    ],
)
def test_the_parent_is_named_after_what_was_asked(operation: str, name: str, said: str) -> None:
    """Each kind of request has its parent's name and one of the conventions' operations."""
    parent = trace_of(record(operation=operation)).spans[0]
    assert (parent.name, parent.attributes["gen_ai.operation.name"]) == (name, said)


def test_an_open_bound_and_several_choices() -> None:
    """A bound that the client left open is not reported as asked for; n is, where it is not 1."""
    attributes = by_name(max_tokens_explicit=False, n=3)["chat_completion"].attributes
    assert "gen_ai.request.max_tokens" not in attributes
    assert attributes["gen_ai.request.choice.count"] == 3


@pytest.mark.parametrize(
    ("changes", "names", "last_ms", "why"),
    [
        (NOTHING_KNOWN, [], 2000.0, "refused before its prompt was read"),
        (
            {**NOTHING_KNOWN, "rendered_s": 100.25},
            ["prompt_building"],
            250.0,
            "refused after tokenising",
        ),
        (
            {"admitted_s": None, "first_token_s": None, "last_token_s": None},
            ["prompt_building", "routing_decision", "queueing"],
            2000.0,
            "turned away while it waited",
        ),
        (
            {"first_token_s": None, "last_token_s": None},
            ["prompt_building", "routing_decision", "queueing", "prefill"],
            2000.0,
            "failed before its first token",
        ),
        (
            {"decision": None, "decide_s": None, "decided_s": None},
            ["prompt_building", "prefill", "decode"],
            1500.0,
            "let in without a decision",
        ),
    ],
)
def test_a_part_that_never_came_has_no_span(
    changes: dict[str, Any], names: list[str], last_ms: float, why: str
) -> None:
    """What a request did not come to leaves no span; one cut short ends with the request."""
    spans = trace_of(record(**changes)).spans
    assert [span.name for span in spans[1:]] == names, why
    assert times_ms(spans[-1])[1] == last_ms, why


@pytest.mark.parametrize(
    ("outcome", "error_type", "fault"),
    [
        ("ok", None, None),
        ("cancelled", None, None),
        ("bad_request", "bad_request", None),
        ("overloaded", "overloaded", None),
        ("engine_failed", "engine_failed", "engine_failed"),
        ("internal", "internal", "internal"),
        ("not_ready", "not_ready", "not_ready"),
    ],
)
def test_only_the_servers_own_faults_make_its_span_an_error(
    outcome: str, error_type: str | None, fault: str | None
) -> None:
    """4xx carry `error.type` without the status, as the HTTP conventions have it."""
    parent = by_name(outcome=outcome)["chat_completion"]
    assert parent.attributes.get("error.type") == error_type
    assert parent.error == fault


def test_every_outcome_is_known() -> None:
    """No label of the error table falls through."""
    for spec in SPECS.values():
        parent = trace_of(record(outcome=spec.label)).spans[0]
        assert (parent.error is not None) == (spec.status >= 500)


moments = st.floats(0.0, 5_000.0, allow_nan=False)


@given(st.lists(moments, min_size=7, max_size=7), st.floats(0.0, 10.0), st.floats(1e9, 2e9))
def test_times_are_ordered_and_within_the_request(
    offsets: list[float], decide_s: float, unix_s: float
) -> None:
    """Whatever the moments, no part begins before or ends after the request, or backwards."""
    received, rendered, decided, admitted, first, last, ended = sorted(offsets)
    spans = trace_of(
        record(
            received_s=received,
            received_unix_s=unix_s,
            rendered_s=rendered,
            decided_s=decided,
            decide_s=decide_s,
            admitted_s=admitted,
            first_token_s=first,
            last_token_s=last,
            ended_s=ended,
        )
    ).spans
    parent = spans[0]
    assert parent.start_ns <= parent.end_ns
    for span in spans[1:]:
        assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns
    _, _, _, queueing, prefill, decode = spans
    assert queueing.end_ns == prefill.start_ns
    assert prefill.end_ns == decode.start_ns


def test_a_decision_without_a_trigger() -> None:
    """The reason says so in words, and there is no trigger attribute."""
    decision = msgspec.structs.replace(DECISION, trigger=None, reasons=(), route="single_gpu")
    found = by_name(decision=decision)["routing_decision"].attributes
    assert found["routing.trigger_reason"] == "default: no multi-GPU trigger"
    assert "routing.trigger" not in found

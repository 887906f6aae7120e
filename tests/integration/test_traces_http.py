"""Requests to a live server, as the spans that a real OTLP receiver gets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from desk_server import DeskServer, completion, desk_server
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gpt_oss_server.engine.fake import Script
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.events import Event, RequestEnded, RequestRecord
from gpt_oss_server.routing import RoutingConfig
from gpt_oss_server.telemetry.tracing import Tracing
from gpt_oss_server.telemetry.tracing_otlp import OtlpExport
from gpt_oss_server.telemetry.tracing_sampling import Sampling
from gpt_oss_server.trail import Journal
from otlp_receiver import OtlpReceiver, attributes

CALLER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = "00f067aa0ba902b7"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 6,
    "temperature": 0,
}


class TracedServer:
    """The server, the collector, and the records of what it did."""

    def __init__(self, server: DeskServer, receiver: OtlpReceiver) -> None:
        self.server = server
        self.receiver = receiver
        self.records: list[RequestRecord] = []

    def spans(self, parent: str = "chat_completion", count: int = 1) -> dict[str, Span]:
        """The spans of the last request of this name."""
        spans = self.receiver.trace(parent, count)
        last = [span for span in spans if span.name == parent][-1]
        return {span.name: span for span in spans if span.trace_id == last.trace_id}


@contextmanager
def traced(*, rate: float = 1.0, slow_s: float = 10.0, **options: Any) -> Iterator[TracedServer]:
    """A server whose traces are sent every few milliseconds."""
    with ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        tracing = Tracing(OtlpExport(receiver.url, 10.0), Sampling(rate, slow_s), send_every_s=0.01)
        stack.callback(tracing.close)
        records: list[RequestRecord] = []

        def emit(event: Event) -> None:
            if isinstance(event, RequestEnded):
                records.append(event.record)
            tracing.emit(event)

        journal = Journal(emit, sampled=tracing.sampled)
        server = stack.enter_context(desk_server(services={"journal": journal}, **options))
        running = TracedServer(server, receiver)
        running.records = records
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_arrives_with_all_its_parts(stream: bool) -> None:
    """Six spans: parents right, times ordered and within the request, attributes exact."""
    headers = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", "tracestate": "vendor=1"}
    with traced() as running:
        before_ns = time.time_ns()
        answer = running.server.http.post(
            "/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers
        )
        after_ns = time.time_ns()
        assert answer.status_code == 200
        spans = running.spans()
    parent = spans["chat_completion"]
    assert parent.trace_id.hex() == CALLER_TRACE
    assert parent.parent_span_id.hex() == CALLER_SPAN
    assert parent.trace_state == "vendor=1"
    assert answer.headers["traceparent"] == f"00-{CALLER_TRACE}-{parent.span_id.hex()}-01"
    order = ["prompt_building", "routing_decision", "queueing", "prefill", "decode"]
    assert set(spans) == {"chat_completion", *order}
    assert {spans[name].parent_span_id for name in order} == {parent.span_id}
    clock_slack_ns = 10**6
    assert before_ns - clock_slack_ns <= parent.start_time_unix_nano
    assert parent.end_time_unix_nano <= after_ns + clock_slack_ns
    moments = [parent.start_time_unix_nano]
    for name in order:
        moments += [spans[name].start_time_unix_nano, spans[name].end_time_unix_nano]
    moments.append(parent.end_time_unix_nano)
    assert moments == sorted(moments)
    assert spans["queueing"].end_time_unix_nano == spans["prefill"].start_time_unix_nano
    assert spans["prefill"].end_time_unix_nano == spans["decode"].start_time_unix_nano
    found = attributes(list(parent.attributes))
    assert found.pop("gen_ai.response.id").startswith("chatcmpl-")
    # The fake engine echoes `user:Hello\\n`, and then the end of a turn that the bound cuts off.
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gpt_oss_server",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": stream,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": running.records[0].input_tokens,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gpt_oss_server.request_id": answer.headers["x-request-id"],
        "gpt_oss_server.outcome": "ok",
        "gpt_oss_server.client_class": "address",
        "gpt_oss_server.priority": 5,
    }


def test_the_decision_is_told_as_it_was_taken() -> None:
    """The routing attributes are those of the decision itself."""
    with traced(routing=RoutingConfig(large_input_tokens=100, pressure_input_tokens=50)) as running:
        body = completion(101, max_tokens=2)
        answer = running.server.http.post("/v1/completions", json=body)
        spans = running.spans("text_completion")
        decision = running.server.records[0].decision
    assert answer.headers["x-route"] == "single_gpu"
    found = attributes(list(spans["routing_decision"].attributes))
    assert found == {
        "routing.input_tokens": 101,
        "routing.predicted_kv_mb": decision.predicted_kv_mb,
        "routing.decision": "multi_gpu",
        "routing.trigger_reason": decision.reason,
        "routing.trigger": "large_input",
        "routing.executed": "single_gpu",
        "routing.memory_pressure": decision.pressure.value,
        "routing.unmet_recommendation": True,
        "routing.gpu_mode": "single",
    }
    assert decision.reason.startswith("large_input")
    assert attributes(list(spans["text_completion"].attributes))["gen_ai.operation.name"] == (
        "text_completion"
    )


def test_a_caller_without_a_trace_gets_one() -> None:
    """A malformed or missing `traceparent` starts a trace that the answer names."""
    with traced() as running:
        answer = running.server.http.post(
            "/v1/chat/completions", json=CHAT, headers={"traceparent": "00-zz-1-01"}
        )
        parent = running.spans()["chat_completion"]
    version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, flags) == ("00", "01")
    assert (parent.trace_id.hex(), parent.span_id.hex()) == (trace_id, span_id)
    assert parent.parent_span_id == b""


def test_a_caller_that_records_nothing_gets_only_errors() -> None:
    """A cleared flag is respected and passed on; a failure is kept all the same."""
    failing = Script((1,), fail_after=1, error=EngineFailed("the worker died"))
    headers = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-00"}
    with traced() as running:
        fine = running.server.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        running.server.steer(lambda: setattr(running.server.engine, "script", lambda _: failing))
        failed = running.server.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        spans = running.receiver.trace("chat_completion")
    assert (fine.status_code, failed.status_code) == (200, 503)
    assert fine.headers["traceparent"].endswith("-00")
    parents = [span for span in spans if span.name == "chat_completion"]
    assert len(parents) == 1
    found = attributes(list(parents[0].attributes))
    assert (found["error.type"], found["http.response.status_code"]) == ("engine_failed", 503)
    assert (parents[0].status.code, parents[0].status.message) == (2, "engine_failed")
    assert failed.headers["traceparent"].split("-")[2] == parents[0].span_id.hex()


def test_errors_are_kept_and_others_are_not_at_rate_zero() -> None:
    """A 400 leaves its one span, without what never happened; a 200 leaves none."""
    with traced(rate=0.0) as running:
        assert running.server.http.post("/v1/chat/completions", json=CHAT).status_code == 200
        wrong = {**CHAT, "temperature": 9}
        refused = running.server.http.post("/v1/chat/completions", json=wrong)
        spans = running.receiver.trace("chat_completion")
    assert refused.status_code == 400
    assert refused.headers["traceparent"].endswith("-00")
    assert [span.name for span in spans] == ["chat_completion"]
    assert spans[0].status.code == 0
    assert attributes(list(spans[0].attributes))["error.type"] == "bad_request"


def test_a_slow_request_is_kept_at_rate_zero() -> None:
    """Slower than the threshold (here: any), it is recorded."""
    with traced(rate=0.0, slow_s=0.0) as running:
        answer = running.server.http.post("/v1/chat/completions", json=CHAT)
        parent = running.spans()["chat_completion"]
    assert answer.headers["traceparent"].split("-")[1] == parent.trace_id.hex()


def test_nothing_of_a_prompt_or_a_key_is_in_a_trace() -> None:
    """Prompts, answers, users, sessions and keys stay out of every span."""
    secret = "correct horse battery staple"
    body = {
        **CHAT,
        "messages": [{"role": "user", "content": secret}],
        "user": "alice-in-wonderland",
    }
    headers = {"authorization": "Bearer sk-private", "x-session-id": "my-diary"}
    with traced() as running:
        running.server.http.post("/v1/chat/completions", json=body, headers=headers)
        spans = running.receiver.trace("chat_completion")
        text = " ".join(str(span) for span in spans) + str(running.receiver.resources)
    for word in ("horse", "alice", "sk-private", "diary"):
        assert word not in text

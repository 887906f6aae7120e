"""Records of requests, as the trail would have made them."""

from __future__ import annotations

from typing import Any

from gpt_oss_server.events import RequestRecord, TokenGaps, TraceContext
from gpt_oss_server.facts import Decision, Pressure
from gpt_oss_server.types import SamplingParams

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = TraceContext(TRACE_ID, "00f067aa0ba902b7", "b7ad6b7169203331", True, "vendor=x")

DECISION = Decision(
    request_id="req_1",
    route="multi_gpu",
    trigger="large_input",
    reasons=("large_input: 10000 > 8000 tokens",),
    input_tokens=10_000,
    predicted_kv_bytes=7500 << 20,
    pressure=Pressure(0.72),
    executed="single_gpu",
    unmet_recommendation=True,
    ranking=(),
)


def record(**changes: Any) -> RequestRecord:
    """A chat that was answered: 2 s in all, each moment a round number of milliseconds."""
    fields: dict[str, Any] = {
        "request_id": "req_1",
        "trace": TRACE,
        "endpoint": "/v1/chat/completions",
        "operation": "chat",
        "received_s": 100.0,
        "received_unix_s": 1_700_000_000.0,
        "ended_s": 102.0,
        "outcome": "ok",
        "status": 200,
        "response_id": "chatcmpl-1",
        "model": "tiny",
        "stream": True,
        "priority": 5,
        "n": 1,
        "sampling": SamplingParams(max_tokens=16, temperature=0.5, seed=7),
        "max_tokens_explicit": True,
        "mode": "single",
        "decision": DECISION,
        "executed": "single_gpu",
        "input_tokens": 10_000,
        "cached_tokens": 2_500,
        "output_tokens": 5,
        "reasoning_tokens": 2,
        "decide_s": 0.001,
        "rendered_s": 100.25,
        "decided_s": 100.5,
        "admitted_s": 100.75,
        "first_token_s": 101.0,
        "last_token_s": 101.5,
        "gaps": TokenGaps((0, 4), 0.5),
        "finish_reasons": ("stop",),
    }
    return RequestRecord(**{**fields, **changes})


NOTHING_KNOWN: dict[str, Any] = {
    "response_id": None,
    "model": None,
    "stream": False,
    "priority": None,
    "n": None,
    "sampling": None,
    "max_tokens_explicit": None,
    "mode": None,
    "decision": None,
    "executed": None,
    "input_tokens": None,
    "cached_tokens": None,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "decide_s": None,
    "rendered_s": None,
    "decided_s": None,
    "admitted_s": None,
    "first_token_s": None,
    "last_token_s": None,
    "gaps": None,
    "finish_reasons": (),
}

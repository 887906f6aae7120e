"""A decision as the desk tells of it."""

from __future__ import annotations

from gpt_oss_server.events import DecisionTaken
from gpt_oss_server.facts import Decision, Pressure, RequestFacts

OWN_ID = "req_" + "0" * 32
TRACE_ID = "a" * 32


def decided(request_id: str) -> DecisionTaken:
    """A large request on one GPU, from a client and a conversation that are known."""
    facts = RequestFacts(
        request_id=request_id,
        trace_id=TRACE_ID,
        input_tokens=10_000,
        max_output_tokens=5,
        predicted_kv_bytes=7500 << 20,
        client_id="10.0.0.7",
        session_id="id:my-diary",
    )
    decision = Decision(
        request_id=request_id,
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
    return DecisionTaken(facts, decision, "single", 2e-5, 1.0)

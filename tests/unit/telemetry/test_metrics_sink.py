"""Which event moves which metric, and by how much."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from metric_pages import new_sink, nonzero, samples, values
from trace_records import DECISION, NOTHING_KNOWN, record

from gpt_oss_server.api.app import ENDPOINTS
from gpt_oss_server.errors import SPECS, NotFound, Overloaded
from gpt_oss_server.events import (
    Admitted,
    DecisionTaken,
    Event,
    HttpAnswered,
    RequestEnded,
    TokenGaps,
    TurnedAway,
    WorkerRestarted,
)
from gpt_oss_server.facts import Pressure, RequestFacts
from gpt_oss_server.telemetry.prometheus import GENERATING_ENDPOINTS

FACTS = RequestFacts(
    request_id="req_1", input_tokens=10_000, max_output_tokens=10, predicted_kv_bytes=7500 << 20
)
M, N = "{model_id=gpt-oss-120b}", "{model_name=openai/gpt-oss-120b}"


def moved(*events: Event) -> dict[str, float]:
    """All that these events moved."""
    before = samples(events=())
    after = samples(events=events)
    return nonzero({name: after[name] - before.get(name, 0.0) for name in after})


def test_a_complete_request_moves_everything_once() -> None:
    """Every figure of the record arrives, in the unit of the metric's name."""
    ended = record(decision=None, gaps=TokenGaps((0, 4), 0.5))
    route = "{route=single_gpu}"
    assert moved(RequestEnded(ended)) == pytest.approx(
        {
            "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=ok}": 1,
            f"llm_ttft_ms_count{M}": 1,
            f"llm_ttft_ms_sum{M}": 1000,
            f"llm_e2e_ms_count{M}": 1,
            f"llm_e2e_ms_sum{M}": 2000,
            f"llm_tokens_per_sec_count{M}": 1,
            f"llm_tokens_per_sec_sum{M}": 8,
            f"llm_prefix_cache_hit_total{M}": 1,
            f"gpt_oss_reasoning_tokens_total{M}": 2,
            f"vllm:time_to_first_token_seconds_count{N}": 1,
            f"vllm:time_to_first_token_seconds_sum{N}": 1,
            f"vllm:request_time_per_output_token_seconds_count{N}": 1,
            f"vllm:request_time_per_output_token_seconds_sum{N}": 0.125,
            f"vllm:e2e_request_latency_seconds_count{N}": 1,
            f"vllm:e2e_request_latency_seconds_sum{N}": 2,
            f"vllm:request_queue_time_seconds_count{N}": 1,
            f"vllm:request_queue_time_seconds_sum{N}": 0.25,
            f"vllm:request_prefill_time_seconds_count{N}": 1,
            f"vllm:request_prefill_time_seconds_sum{N}": 0.25,
            f"vllm:request_decode_time_seconds_count{N}": 1,
            f"vllm:request_decode_time_seconds_sum{N}": 0.5,
            f"vllm:request_prompt_tokens_count{N}": 1,
            f"vllm:request_prompt_tokens_sum{N}": 10_000,
            f"vllm:request_generation_tokens_count{N}": 1,
            f"vllm:request_generation_tokens_sum{N}": 5,
            f"vllm:request_success_total{{finished_reason=stop}}{N}": 1,
            f"gpt_oss_request_e2e_seconds_count{route}{{unmet=false}}": 1,
            f"gpt_oss_request_e2e_seconds_sum{route}{{unmet=false}}": 2,
            f"gpt_oss_request_ttft_seconds_count{{cache=partial}}{route}": 1,
            f"gpt_oss_request_ttft_seconds_sum{{cache=partial}}{route}": 1,
            f"gpt_oss_request_tpot_seconds_count{route}": 1,
            f"gpt_oss_request_tpot_seconds_sum{route}": 0.125,
            f"gpt_oss_request_cached_share_count{route}": 1,
            f"gpt_oss_request_cached_share_sum{route}": 0.25,
            f"gpt_oss_slo_total{{result=met}}{route}{{slo=ttft}}{{unmet=false}}": 1,
            f"gpt_oss_slo_total{{result=met}}{route}{{slo=e2e}}{{unmet=false}}": 1,
        }
    )


def test_a_cancelled_stream_counts_what_it_produced() -> None:
    """Its tokens and its first token count; its length of life is no latency."""
    ended = record(outcome="cancelled", finish_reasons=())
    found = moved(RequestEnded(ended))
    assert found[f"vllm:request_generation_tokens_sum{N}"] == 5
    assert found[f"vllm:time_to_first_token_seconds_count{N}"] == 1
    assert found[f"vllm:request_success_total{{finished_reason=abort}}{N}"] == 1
    assert f"vllm:e2e_request_latency_seconds_count{N}" not in found


@pytest.mark.parametrize(
    ("finish_reasons", "stopped", "aborted"),
    [((), 0, 3), (("stop", "stop"), 2, 1), (("stop", "stop", "stop"), 3, 0)],
)
def test_each_sequence_ends_once(
    finish_reasons: tuple[str, ...], stopped: int, aborted: int
) -> None:
    """A client that leaves cuts short what had not come to its own end, and only that."""
    found = moved(RequestEnded(record(outcome="cancelled", n=3, finish_reasons=finish_reasons)))
    ended = "vllm:request_success_total{finished_reason=%s}" + N
    assert found.get(ended % "stop", 0) == stopped
    assert found.get(ended % "abort", 0) == aborted


def test_every_generating_endpoint_begins_at_zero() -> None:
    """Failures that all come between two scrapes are an increase only from a zero before: the
    alert on failing requests would not see them otherwise."""
    generating = {endpoint.path for endpoint in ENDPOINTS if endpoint.operation is not None}
    assert generating == set(GENERATING_ENDPOINTS)
    found = values(samples(), "gpt_oss_requests_total")
    for endpoint in generating:
        for outcome in ("ok", "engine_failed", "internal", "overloaded", "not_ready"):
            assert found[endpoint, outcome] == 0


def test_a_request_that_never_ran_is_only_counted() -> None:
    """No token, no latency: one request with its outcome."""
    ended = record(outcome="not_found", status=404, **NOTHING_KNOWN)
    assert moved(RequestEnded(ended)) == {
        "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=not_found}": 1
    }


@pytest.mark.parametrize(
    ("cached_tokens", "expected"),
    [(0, "none"), (1, "partial"), (4_999, "partial"), (5_000, "most")],
)
def test_hit_classes(cached_tokens: int, expected: str) -> None:
    """None, some, or at least half of the prompt was found in the cache."""
    sink = new_sink()
    found = samples(events=[RequestEnded(record(cached_tokens=cached_tokens))], sink=sink)
    by_class = values(found, "gpt_oss_request_ttft_seconds_count")
    assert {hit for (hit, _), count in by_class.items() if count} == {expected}


NEVER_RAN: dict[str, Any] = {**NOTHING_KNOWN, "status": None}
FAULTS: dict[str, Any] = {**NEVER_RAN, "status": 503}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"ttft met", "e2e met"}),
        ({"first_token_s": 102.0}, {"ttft met", "e2e met"}),
        ({"first_token_s": 102.001}, {"ttft missed", "e2e met"}),
        ({"ended_s": 120.5}, {"ttft met", "e2e missed"}),
        ({"outcome": "overloaded", **FAULTS}, {"ttft missed", "e2e missed"}),
        ({"outcome": "engine_failed"}, {"ttft missed", "e2e missed"}),
        ({"outcome": "bad_request", **NEVER_RAN}, set()),
        ({"outcome": "cancelled", **NEVER_RAN, "ended_s": 101.0}, set()),
        ({"outcome": "cancelled", **NEVER_RAN, "ended_s": 103.0}, {"ttft missed"}),
        ({"outcome": "cancelled", **NEVER_RAN, "ended_s": 121.0}, {"ttft missed", "e2e missed"}),
        ({"outcome": "cancelled", "ended_s": 103.0}, {"ttft met"}),
    ],
    ids=[
        "fast",
        "on the target",
        "slow first token",
        "slow end",
        "refused",
        "failed after tokens",
        "the client's own mistake",
        "left early",
        "gave up on the first token",
        "gave up on the answer",
        "left with its first token seen",
    ],
)
def test_targets(changes: dict[str, Any], expected: set[str]) -> None:
    """Targets are met or missed by those who can say something about the server."""
    found = samples(events=[RequestEnded(record(**changes))])
    slo = values(found, "gpt_oss_slo_total")
    assert {f"{name} {result}" for (result, _, name, _), n in slo.items() if n} == expected


def test_a_missed_target_says_where_it_ran_and_whether_it_belonged_there() -> None:
    """A slow single-GPU request that belonged on several GPUs can be told from others."""
    found = samples(events=[RequestEnded(record(ended_s=130.0))])
    slo = values(found, "gpt_oss_slo_total")
    assert slo["missed", "single_gpu", "e2e", "true"] == 1
    e2e = values(found, "gpt_oss_request_e2e_seconds_count")
    assert {labels for labels, count in e2e.items() if count} == {("single_gpu", "true")}


def test_a_decision_is_measured() -> None:
    """How long it took, on what, and under which pressure."""
    event = DecisionTaken(FACTS, DECISION, "single", 25e-6, 0.0)
    assert moved(event) == pytest.approx(
        {
            "gpt_oss_routing_decision_seconds_count": 1,
            "gpt_oss_routing_decision_seconds_sum": 25e-6,
            "gpt_oss_routing_input_tokens_count{route=multi_gpu}": 1,
            "gpt_oss_routing_input_tokens_sum{route=multi_gpu}": 10_000,
            "gpt_oss_routing_predicted_kv_bytes_count{route=multi_gpu}": 1,
            "gpt_oss_routing_predicted_kv_bytes_sum{route=multi_gpu}": 7500 << 20,
            "gpt_oss_routing_pressure_count{route=multi_gpu}": 1,
            "gpt_oss_routing_pressure_sum{route=multi_gpu}": 0.72,
        }
    )


def test_an_unknown_pressure_is_no_pressure_of_zero() -> None:
    """It is counted apart and enters no histogram."""
    decision = msgspec.structs.replace(DECISION, pressure=Pressure(None))
    found = moved(DecisionTaken(FACTS, decision, "single", 25e-6, 0.0))
    assert found["gpt_oss_routing_pressure_unknown_total"] == 1
    assert "gpt_oss_routing_pressure_count{route=multi_gpu}" not in found


@pytest.mark.parametrize(
    ("decided", "executed", "action", "fallbacks"),
    [
        ("single_gpu", "single_gpu", "single", 0),
        ("multi_gpu", "multi_gpu", "route4", 0),
        ("multi_gpu", "single_gpu", "route4", 1),
    ],
)
def test_admissions(decided: Any, executed: Any, action: str, fallbacks: int) -> None:
    """Each under its action; one that runs elsewhere than decided is a fallback."""
    event = Admitted(
        request_id="r", priority=7, waited_s=0.5, decided=decided, executed=executed, shrunk=False
    )
    found = moved(event)
    assert found[f"llm_admission_total{{action={action}}}{M}"] == 1
    assert found["gpt_oss_admission_wait_seconds_sum{priority=7}"] == 0.5
    counted = found.get("gpt_oss_routing_fallbacks_total{decided=multi_gpu}{executed=single_gpu}")
    assert (counted or 0) == fallbacks


@pytest.mark.parametrize(
    ("reason", "action", "retry_after_s"),
    [
        ("full", "reject", 3.0),
        ("shed", "reject", 4.0),
        ("deadline", "reject", 5.0),
        ("never_fits", "never_fits", None),
        ("cancelled", "cancelled", None),
    ],
)
def test_those_turned_away(reason: Any, action: str, retry_after_s: float | None) -> None:
    """Each under its reason and priority, and the Retry-After that it was given."""
    event = TurnedAway(
        request_id="r",
        reason=reason,
        priority=2,
        decided="single_gpu",
        waited_s=1.0,
        retry_after_s=retry_after_s,
    )
    expected = {
        f"gpt_oss_admission_turned_away_total{{priority=2}}{{reason={reason}}}": 1.0,
        f"llm_admission_total{{action={action}}}{M}": 1.0,
    }
    if retry_after_s is not None:
        expected["gpt_oss_admission_retry_after_seconds_count"] = 1.0
        expected["gpt_oss_admission_retry_after_seconds_sum"] = retry_after_s
    assert moved(event) == expected


def test_http_answers() -> None:
    """Every answer counts; one that never began has status 0."""
    found = moved(HttpAnswered("/health", 200, 0.1), HttpAnswered("unknown", None, 0.1))
    assert found == {
        "gpt_oss_http_requests_total{endpoint=/health}{status=200}": 1,
        "gpt_oss_http_requests_total{endpoint=unknown}{status=0}": 1,
    }


def test_events_that_move_nothing() -> None:
    """An event without a metric of its own is let pass."""
    assert moved(WorkerRestarted("gone", 1)) == {}


def test_outcomes_are_labels_of_errors() -> None:
    """The labels that count against a target are those of the table of errors."""
    assert SPECS[Overloaded].label == "overloaded"
    found = samples(events=[RequestEnded(record(outcome=SPECS[NotFound].label, **NOTHING_KNOWN))])
    assert ("/v1/chat/completions", "not_found") in values(found, "gpt_oss_requests_total")


def test_a_hundred_thousand_clients_make_no_series() -> None:
    """Distinct models, users, sessions and ids by the hundred thousand change no series."""
    sink = new_sink()
    for event in (RequestEnded(record()), RequestEnded(record(outcome="not_found"))):
        sink.emit(event)
    before = set(samples(sink=sink))
    for number in range(100_000):
        name = f"client-{number}"
        facts = msgspec.structs.replace(
            FACTS, request_id=name, client_id=name, session_id=name, trace_id=name
        )
        sink.emit(DecisionTaken(facts, DECISION, "single", 1e-5, 0.0))
        sink.emit(
            RequestEnded(
                record(
                    request_id=name,
                    model=name,
                    response_id=name,
                    outcome=("ok", "not_found")[number % 2],
                )
            )
        )
    after = set(samples(sink=sink))
    assert after == before
    assert len(after) < 2_000


def test_labels_that_should_not_be_are_counted_together() -> None:
    """Should a bug ever let a free value become a label, its series are still bounded."""
    sink = new_sink()
    for number in range(1_000):
        sink.emit(HttpAnswered(f"/leak/{number}", 200, 0.0))
    found = values(samples(sink=sink), "gpt_oss_http_requests_total")
    assert len(found) == 257
    assert found["other", "other"] == 744
    assert sum(found.values()) == 1_000

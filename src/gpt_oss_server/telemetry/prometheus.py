"""The sink that turns events into Prometheus series.

Knows: which event moves which metric. Does not know: HTTP, what is read at scrape time, or how the
numbers are kept. Some twenty microseconds a request, nothing per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from gpt_oss_server.errors import SPECS, EngineFailed, Internal, NotReady, Overloaded
from gpt_oss_server.events import (
    CANCELLED,
    OK,
    Admitted,
    CacheHit,
    DecisionTaken,
    Event,
    HttpAnswered,
    RequestEnded,
    RequestRecord,
    TurnedAway,
    TurnedAwayReason,
)
from gpt_oss_server.facts import Route
from gpt_oss_server.telemetry.catalog import METRICS
from gpt_oss_server.telemetry.series import CounterSeries, HistogramSeries, Taken

Slo = Literal["ttft", "e2e"]

ROUTES: tuple[Route, ...] = get_args(Route)
SERVER_FAULTS = frozenset(
    SPECS[error].label for error in (Overloaded, NotReady, EngineFailed, Internal)
)
GENERATING_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_NEVER_RAN = "none"
_BOOLEANS = {False: "false", True: "true"}
_NO_ADMISSION: dict[TurnedAwayReason, str] = {
    "full": "reject",
    "shed": "reject",
    "deadline": "reject",
    "never_fits": "never_fits",
    "cancelled": "cancelled",
}


class PrometheusSink:
    """Holds every series that events move. One thread emits and takes copies."""

    def __init__(
        self, *, model_id: str, model_name: str, ttft_target_s: float, e2e_target_s: float
    ) -> None:
        """`model_id` is the model's short name, `model_name` the one that answers carry. The
        targets are of the service levels, in seconds."""
        self._ttft_target_s = ttft_target_s
        self._e2e_target_s = e2e_target_s
        rows = [row for row in METRICS if row.origin == "event"]
        self._counters = {row.name: CounterSeries(row) for row in rows if row.kind == "counter"}
        self._histograms = {
            row.name: HistogramSeries(row) for row in rows if row.kind == "histogram"
        }
        self._model_id = model_id
        self._model_name = model_name
        self._name_children(model_id, model_name)
        self._begin_at_zero()
        self._handlers: dict[type, Callable[[Any], None]] = {
            DecisionTaken: self._decision,
            Admitted: self._admitted,
            TurnedAway: self._turned_away,
            RequestEnded: self._request,
            HttpAnswered: self._http,
        }

    def emit(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def taken(self) -> dict[str, Taken]:
        """A copy of all of them, by the catalogue's name. Some 0.1 ms."""
        taken = {name: series.taken() for name, series in self._counters.items()}
        taken |= {name: series.taken() for name, series in self._histograms.items()}
        return taken

    def _name_children(self, model_id: str, model_name: str) -> None:
        """The children that every request moves, looked up once."""
        histogram = self._histograms
        self._ttft_ms = histogram["llm_ttft_ms"].child(model_id)
        self._e2e_ms = histogram["llm_e2e_ms"].child(model_id)
        self._tokens_per_s = histogram["llm_tokens_per_sec"].child(model_id)
        self._prefix_hits = self._counters["llm_prefix_cache_hit_total"].child(model_id)
        self._reasoning = self._counters["gpt_oss_reasoning_tokens_total"].child(model_id)
        vllm = {
            name: histogram[f"vllm:{name}"].child(model_name)
            for name in (
                "time_to_first_token_seconds",
                "request_time_per_output_token_seconds",
                "e2e_request_latency_seconds",
                "request_queue_time_seconds",
                "request_prefill_time_seconds",
                "request_decode_time_seconds",
                "request_prompt_tokens",
                "request_generation_tokens",
            )
        }
        self._ttft = vllm["time_to_first_token_seconds"]
        self._tpot = vllm["request_time_per_output_token_seconds"]
        self._e2e = vllm["e2e_request_latency_seconds"]
        self._queue = vllm["request_queue_time_seconds"]
        self._prefill = vllm["request_prefill_time_seconds"]
        self._decode = vllm["request_decode_time_seconds"]
        self._prompt_tokens = vllm["request_prompt_tokens"]
        self._output_tokens = vllm["request_generation_tokens"]
        self._decide = histogram["gpt_oss_routing_decision_seconds"].child()
        self._retry_after = histogram["gpt_oss_admission_retry_after_seconds"].child()
        self._pressure_unknown = self._counters["gpt_oss_routing_pressure_unknown_total"].child()

    def _begin_at_zero(self) -> None:
        """Series that exist before their first event: a rate needs the zero before the one."""
        counters, histograms = self._counters, self._histograms
        for action in ("single", "route4", *_NO_ADMISSION.values()):
            counters["llm_admission_total"].child(action, self._model_id)
        for reason in ("stop", "length", "abort"):
            counters["vllm:request_success_total"].child(reason, self._model_name)
        for reason in get_args(TurnedAwayReason):
            counters["gpt_oss_admission_turned_away_total"].child(reason, "5")
        counters["gpt_oss_routing_fallbacks_total"].child("multi_gpu", "single_gpu")
        histograms["gpt_oss_admission_wait_seconds"].child("5")
        for route in ROUTES:
            for name in ("pressure", "input_tokens", "predicted_kv_bytes"):
                histograms[f"gpt_oss_routing_{name}"].child(route)
            for name in ("tpot_seconds", "cached_share"):
                histograms[f"gpt_oss_request_{name}"].child(route)
            for cache in get_args(CacheHit):
                histograms["gpt_oss_request_ttft_seconds"].child(route, cache)
            histograms["gpt_oss_request_e2e_seconds"].child(route, "false")
            for slo in get_args(Slo):
                for result in ("met", "missed"):
                    counters["gpt_oss_slo_total"].child(slo, route, "false", result)
        histograms["gpt_oss_request_e2e_seconds"].child("single_gpu", "true")
        for slo in get_args(Slo):
            for result in ("met", "missed"):
                counters["gpt_oss_slo_total"].child(slo, "single_gpu", "true", result)
            counters["gpt_oss_slo_total"].child(slo, _NEVER_RAN, "false", "missed")
        for endpoint in GENERATING_ENDPOINTS:
            for outcome in (OK, CANCELLED, *SERVER_FAULTS):
                counters["gpt_oss_requests_total"].child(endpoint, outcome)

    def _decision(self, event: DecisionTaken) -> None:
        decision = event.decision
        route = decision.route
        histograms = self._histograms
        self._decide.observe(event.decide_s)
        histograms["gpt_oss_routing_input_tokens"].child(route).observe(decision.input_tokens)
        histograms["gpt_oss_routing_predicted_kv_bytes"].child(route).observe(
            decision.predicted_kv_bytes
        )
        pressure = decision.pressure.value
        if pressure is None:
            self._pressure_unknown.value += 1
        else:
            histograms["gpt_oss_routing_pressure"].child(route).observe(pressure)

    def _admitted(self, event: Admitted) -> None:
        wait = self._histograms["gpt_oss_admission_wait_seconds"].child(str(event.priority))
        wait.observe(event.waited_s)
        action = "single" if event.decided == "single_gpu" else "route4"
        self._counters["llm_admission_total"].child(action, self._model_id).value += 1
        if event.decided != event.executed:
            fallbacks = self._counters["gpt_oss_routing_fallbacks_total"]
            fallbacks.child(event.decided, event.executed).value += 1

    def _turned_away(self, event: TurnedAway) -> None:
        turned_away = self._counters["gpt_oss_admission_turned_away_total"]
        turned_away.child(event.reason, str(event.priority)).value += 1
        action = _NO_ADMISSION[event.reason]
        self._counters["llm_admission_total"].child(action, self._model_id).value += 1
        if event.retry_after_s is not None:
            self._retry_after.observe(event.retry_after_s)

    def _http(self, event: HttpAnswered) -> None:
        answers = self._counters["gpt_oss_http_requests_total"]
        answers.child(event.endpoint, str(event.status or 0)).value += 1

    def _request(self, event: RequestEnded) -> None:
        record = event.record
        requests = self._counters["gpt_oss_requests_total"]
        requests.child(record.endpoint, record.outcome).value += 1
        self._service_levels(record)
        if record.executed is None:
            return
        self._prompt_tokens.observe(record.input_tokens or 0)
        self._output_tokens.observe(record.output_tokens)
        self._reasoning.value += record.reasoning_tokens
        if record.queue_s is not None:
            self._queue.observe(record.queue_s)
        self._first_token(record, record.executed)
        self._finish_reasons(record)
        if record.outcome == OK:
            self._complete(record, record.executed)

    def _first_token(self, record: RequestRecord, route: Route) -> None:
        ttft_s, hit = record.ttft_s, record.cache_hit
        if ttft_s is None:
            return
        trace_id, unix_s = record.trace.trace_id, record.unix_s(record.ended_s)
        self._ttft_ms.observe(1e3 * ttft_s)
        self._ttft.observe_traced(ttft_s, trace_id, unix_s)
        if record.prefill_s is not None:
            self._prefill.observe(record.prefill_s)
        if hit is None:
            return
        by_hit = self._histograms["gpt_oss_request_ttft_seconds"].child(route, hit)
        by_hit.observe_traced(ttft_s, trace_id, unix_s)
        share = record.cached_share
        if share is not None:
            self._histograms["gpt_oss_request_cached_share"].child(route).observe(share)
        if record.cached_tokens:
            self._prefix_hits.value += 1

    def _finish_reasons(self, record: RequestRecord) -> None:
        ended = self._counters["vllm:request_success_total"]
        for reason in record.finish_reasons:
            ended.child(reason, self._model_name).value += 1
        if record.outcome == CANCELLED:
            # Those that had come to their own end before are counted above.
            cut_short = (record.n or 1) - len(record.finish_reasons)
            ended.child("abort", self._model_name).value += max(0, cut_short)

    def _complete(self, record: RequestRecord, route: Route) -> None:
        e2e_s, tpot_s, decode_s = record.e2e_s, record.tpot_s, record.decode_s
        trace_id, unix_s = record.trace.trace_id, record.unix_s(record.ended_s)
        self._e2e_ms.observe(1e3 * e2e_s)
        self._e2e.observe_traced(e2e_s, trace_id, unix_s)
        by_route = self._histograms["gpt_oss_request_e2e_seconds"]
        by_route.child(route, _BOOLEANS[_unmet(record)]).observe_traced(e2e_s, trace_id, unix_s)
        if tpot_s is None or decode_s is None or record.gaps is None:
            return
        self._tpot.observe(tpot_s)
        self._histograms["gpt_oss_request_tpot_seconds"].child(route).observe(tpot_s)
        self._decode.observe(decode_s)
        if decode_s > 0.0:
            self._tokens_per_s.observe(record.gaps.count / decode_s)

    def _service_levels(self, record: RequestRecord) -> None:
        for slo, seconds, target_s in (
            ("ttft", record.ttft_s, self._ttft_target_s),
            ("e2e", record.e2e_s if record.outcome == OK else None, self._e2e_target_s),
        ):
            met = _met(record, seconds, target_s)
            if met is not None:
                self._counters["gpt_oss_slo_total"].child(
                    slo,
                    record.executed or _NEVER_RAN,
                    _BOOLEANS[_unmet(record)],
                    "met" if met else "missed",
                ).value += 1


def _unmet(record: RequestRecord) -> bool:
    return record.decision is not None and record.decision.unmet_recommendation


def _met(record: RequestRecord, seconds: float | None, target_s: float) -> bool | None:
    """Whether a request met a target; None where it says nothing about the server.

    `seconds` is None for what never came. A client that gives up after the target has passed was
    failed by us; one that leaves before says nothing.
    """
    if record.outcome in SERVER_FAULTS:
        return False
    if seconds is not None:
        return seconds <= target_s
    if record.outcome == CANCELLED and record.e2e_s > target_s:
        return False
    return None

"""Metrics of requests: how they ended, targets, routing, admission."""

from __future__ import annotations

from gpt_oss_server.events import GAP_BOUNDS_S
from gpt_oss_server.telemetry.names.metric import (
    ADMISSION,
    DECISION_S,
    E2E_S,
    KV_BYTES,
    LATENCY_S,
    MODEL_ID,
    REQUESTS,
    RETRY_S,
    ROUTING,
    SHARE,
    SLO,
    TOKENS,
    Metric,
    moved,
    read,
)

REQUEST_ROWS: tuple[Metric, ...] = (
    moved(
        "gpt_oss_requests_total",
        "counter",
        ("endpoint", "outcome"),
        REQUESTS,
        "Requests to generating endpoints: ok, cancelled, or the label of the error.",
    ),
    read(
        "gpt_oss_requests_in_flight",
        "gauge",
        (),
        REQUESTS,
        "Requests to generating endpoints that have begun and not ended.",
    ),
    moved(
        "gpt_oss_request_e2e_seconds",
        "histogram",
        ("route", "unmet"),
        REQUESTS,
        "First byte "
        "received to last byte sent, by the route it ran on and whether it belonged on several "
        "GPUs and had none (unmet); complete answers only.",
        E2E_S,
    ),
    moved(
        "gpt_oss_request_ttft_seconds",
        "histogram",
        ("route", "cache"),
        REQUESTS,
        "Time to "
        "first token, by the route it ran on and how much of its prompt was in the prefix "
        "cache: none, partial, most (at least half).",
        LATENCY_S,
    ),
    moved(
        "gpt_oss_request_tpot_seconds",
        "histogram",
        ("route",),
        REQUESTS,
        "Mean gap between tokens of one request, by the route it ran on.",
        GAP_BOUNDS_S,
    ),
    moved(
        "gpt_oss_request_cached_share",
        "histogram",
        ("route",),
        REQUESTS,
        "Share of the "
        "prompt found in the prefix cache, by the route it ran on: do cache hits go with the "
        "route?",
        SHARE,
    ),
    moved(
        "gpt_oss_reasoning_tokens_total",
        "counter",
        MODEL_ID,
        REQUESTS,
        "Output tokens that were reasoning.",
    ),
    moved(
        "gpt_oss_http_requests_total",
        "counter",
        ("endpoint", "status"),
        REQUESTS,
        "Answers of every endpoint; status 0: the client left before one.",
    ),
)

SLO_ROWS: tuple[Metric, ...] = (
    moved(
        "gpt_oss_slo_total",
        "counter",
        ("slo", "route", "unmet", "result"),
        SLO,
        "Requests "
        "that met or missed a target (slo: ttft, e2e; result: met, missed). Failed and refused "
        "ones miss; those that their client cancelled or got wrong do not count. route none: "
        "never ran.",
    ),
    read("gpt_oss_slo_target_seconds", "gauge", ("slo",), SLO, "The targets."),
)

ROUTING_ROWS: tuple[Metric, ...] = (
    read(
        "gpt_oss_routing_decisions_total",
        "counter",
        ("route", "trigger"),
        ROUTING,
        "Decisions by where the request belongs and its first trigger (none: single_gpu).",
    ),
    read(
        "gpt_oss_routing_executed_total",
        "counter",
        ("route",),
        ROUTING,
        "Requests by where they really ran.",
    ),
    moved(
        "gpt_oss_routing_fallbacks_total",
        "counter",
        ("decided", "executed"),
        ROUTING,
        "Requests that ran elsewhere than decided.",
    ),
    read(
        "gpt_oss_routing_unmet_recommendations_total",
        "counter",
        (),
        ROUTING,
        "Requests that belonged on several GPUs where there was no such replica.",
    ),
    moved(
        "gpt_oss_routing_decision_seconds",
        "histogram",
        (),
        ROUTING,
        "Time to take one decision: predict its KV, read the fleet, decide. Tokenising apart.",
        DECISION_S,
    ),
    moved(
        "gpt_oss_routing_pressure",
        "histogram",
        ("route",),
        ROUTING,
        "Memory pressure at the "
        "decision, by where the request belongs: does pressure change routing?",
        SHARE,
    ),
    moved(
        "gpt_oss_routing_pressure_unknown_total",
        "counter",
        (),
        ROUTING,
        "Decisions taken without knowing the memory pressure.",
    ),
    moved(
        "gpt_oss_routing_input_tokens",
        "histogram",
        ("route",),
        ROUTING,
        "Prompt tokens at the decision, by where the request belongs.",
        TOKENS,
    ),
    moved(
        "gpt_oss_routing_predicted_kv_bytes",
        "histogram",
        ("route",),
        ROUTING,
        "Predicted KV at the decision, by where the request belongs.",
        KV_BYTES,
    ),
    read(
        "gpt_oss_routing_threshold",
        "gauge",
        ("name",),
        ROUTING,
        "The thresholds and targets in force, by the name of the setting.",
    ),
)

ADMISSION_ROWS: tuple[Metric, ...] = (
    read(
        "gpt_oss_admission_waiting",
        "gauge",
        ("priority",),
        ADMISSION,
        "Requests that wait for a place, by priority (0 to 9).",
    ),
    read("gpt_oss_admission_leases", "gauge", (), ADMISSION, "Requests that hold KV."),
    moved(
        "gpt_oss_admission_wait_seconds",
        "histogram",
        ("priority",),
        ADMISSION,
        "Wait of those that got a place.",
        LATENCY_S,
    ),
    moved(
        "gpt_oss_admission_turned_away_total",
        "counter",
        ("reason", "priority"),
        ADMISSION,
        "Requests that got no place: full, shed (its place went to another), deadline, "
        "never_fits (larger than the whole KV pool, or, of those that waited, than the pool that "
        "a restarted engine came back with: no_longer_fits in /stats), cancelled.",
    ),
    moved(
        "gpt_oss_admission_retry_after_seconds",
        "histogram",
        (),
        ADMISSION,
        "The Retry-After given with a 429.",
        RETRY_S,
    ),
    read(
        "gpt_oss_admission_offers_total",
        "counter",
        ("verdict",),
        ADMISSION,
        "First verdicts: accept, shrink, route4, queue, reject, never_fits.",
    ),
    read(
        "gpt_oss_admission_overcommits_total",
        "counter",
        (),
        ADMISSION,
        "Times that running requests outgrew their reservations beyond the pool.",
    ),
    read(
        "gpt_oss_admission_blocks",
        "gauge",
        ("group", "state"),
        ADMISSION,
        "KV blocks as admission counts them: total, reserved, peak.",
    ),
    read("gpt_oss_sessions", "gauge", ("state",), ADMISSION, "Conversations: tracked, active."),
    read(
        "gpt_oss_session_evictions_total",
        "counter",
        ("reason",),
        ADMISSION,
        "Conversations forgotten: idle, count, pressure.",
    ),
)

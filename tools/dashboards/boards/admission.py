"""Admission: who may start, who waits, who is turned away."""

from __future__ import annotations

from tools.dashboards.panels import (
    ORANGE,
    RANGE,
    RED,
    Dashboard,
    Panel,
    Query,
    Section,
    buckets,
    increase,
    quantile,
    rate,
    share,
    total,
)

WAIT = "gpt_oss_admission_wait_seconds"
TURNED_AWAY = "gpt_oss_admission_turned_away_total"
OFFERS = "gpt_oss_admission_offers_total"

_TILES = (
    Panel(
        title="Turned away",
        kind="stat",
        queries=(
            Query(
                share(
                    increase(TURNED_AWAY, reason="!=cancelled", over=RANGE),
                    increase(OFFERS, over=RANGE),
                )
            ),
        ),
        description="Share of requests that got no place, in the time shown.",
        unit="percentunit",
        width=6,
        height=4,
        thresholds=((0.01, ORANGE), (0.05, RED)),
        decimals=1,
    ),
    Panel(
        title="Wait p95",
        kind="stat",
        queries=(Query(quantile(0.95, WAIT, over=RANGE)),),
        description="95th percentile of the wait of those that got a place.",
        unit="s",
        width=6,
        height=4,
        thresholds=((1, ORANGE), (10, RED)),
    ),
    Panel(
        title="Waiting now",
        kind="stat",
        queries=(Query(total("gpt_oss_admission_waiting")),),
        description="Requests that wait for a place.",
        width=6,
        height=4,
        thresholds=((1, ORANGE),),
    ),
    Panel(
        title="KV reserved",
        kind="stat",
        queries=(
            Query(f"{total('gpt_oss_kv_reserved_bytes')} / {total('gpt_oss_kv_pool_bytes')}"),
        ),
        description="Share of the KV pools that is reserved for admitted requests.",
        unit="percentunit",
        width=6,
        height=4,
        thresholds=((0.9, ORANGE),),
        decimals=1,
    ),
)

_QUEUE = (
    Panel(
        title="Waiting by priority",
        kind="stacked",
        queries=(
            Query(f"{total('gpt_oss_admission_waiting', by='priority')}", "priority {{priority}}"),
        ),
        description="Requests that wait for a place, by priority.",
    ),
    Panel(
        title="Wait",
        kind="buckets",
        queries=buckets(WAIT),
        description="Wait of those that got a place.",
        unit="s",
    ),
    Panel(
        title="Wait p95 by priority",
        kind="lines",
        queries=(Query(quantile(0.95, WAIT, by="priority"), "priority {{priority}}"),),
        description="95th percentile of the wait, by priority.",
        unit="s",
    ),
    Panel(
        title="First verdicts",
        kind="stacked",
        queries=(Query(rate(OFFERS, by="verdict"), "{{verdict}}"),),
        description="What admission said to requests when they came, per second.",
        unit="reqps",
    ),
    Panel(
        title="Turned away by reason",
        kind="stacked",
        queries=(Query(rate(TURNED_AWAY, by="reason"), "{{reason}}"),),
        description="Requests per second that got no place.",
        unit="reqps",
    ),
    Panel(
        title="Retry-After given",
        kind="buckets",
        queries=buckets("gpt_oss_admission_retry_after_seconds"),
        description="What clients that were answered 429 were told.",
        unit="s",
    ),
)

_PLACES = (
    Panel(
        title="Blocks as admission counts them",
        kind="lines",
        queries=(
            Query(total("gpt_oss_admission_blocks", by="group, state"), "{{group}} {{state}}"),
        ),
        description="Total, reserved now, and the most that were ever reserved.",
    ),
    Panel(
        title="Leases",
        kind="lines",
        queries=(
            Query(total("gpt_oss_admission_leases"), "leases"),
            Query(rate("gpt_oss_admission_overcommits_total"), "overcommits per second"),
        ),
        description="Requests that hold KV; and how often running ones outgrew their "
        "reservations beyond the pool.",
    ),
    Panel(
        title="Conversations",
        kind="lines",
        queries=(
            Query(total("gpt_oss_sessions", by="state"), "{{state}}"),
            Query(
                rate("gpt_oss_session_evictions_total", by="reason"), "forgotten per s: {{reason}}"
            ),
        ),
        description="Conversations that are tracked and active, and forgotten ones.",
    ),
    Panel(
        title="Admitted by action",
        kind="stacked",
        queries=(Query(rate("llm_admission_total", by="action"), "{{action}}"),),
        description="The kept metric: single and route4 by where the request belongs, or why it "
        "was not admitted.",
        unit="reqps",
    ),
    Panel(
        title="Lines lost",
        kind="lines",
        queries=(Query(rate("gpt_oss_lines_dropped_total", by="writer"), "{{writer}}"),),
        description="Lines of logs and traces lost per second.",
        unit="ops",
    ),
    Panel(
        title="Telemetry errors",
        kind="lines",
        queries=(Query(total("gpt_oss_telemetry_errors_total", by="sink"), "{{sink}}"),),
        description="Events that a part of telemetry failed to take, since the start.",
    ),
)

ADMISSION = Dashboard(
    slug="admission",
    title="Admission",
    description="Who may start, who waits, who is turned away.",
    sections=(
        Section("Now", _TILES),
        Section("Queue", _QUEUE),
        Section("Places", _PLACES),
    ),
)

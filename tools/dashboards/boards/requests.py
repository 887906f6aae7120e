"""Requests: what they took, part by part, and what they were like."""

from __future__ import annotations

from tools.dashboards.panels import (
    Dashboard,
    Panel,
    Query,
    Section,
    buckets,
    mean,
    percentiles,
    quantile,
    rate,
    share,
)

TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
E2E = "vllm:e2e_request_latency_seconds"


def _map(title: str, histogram: str, description: str) -> Panel:
    return Panel(
        title=title,
        kind="buckets",
        queries=buckets(histogram),
        description=description,
        unit="s",
        height=8,
    )


def _percentiles(title: str, histogram: str) -> Panel:
    return Panel(
        title=f"{title} percentiles",
        kind="lines",
        queries=percentiles(histogram),
        description=f"Median, 95th and 99th percentile of {title}.",
        unit="s",
        log=True,
    )


_LATENCY = (
    _map("TTFT", TTFT, "Time to first token. Diamonds are traces."),
    _map("ITL", ITL, "Each gap between two tokens of a sequence, as seen."),
    _map("E2E", E2E, "First byte received to last byte sent. Diamonds are traces."),
    _percentiles("TTFT", TTFT),
    _percentiles("ITL", ITL),
    _percentiles("E2E", E2E),
)

_STAGES = (
    Panel(
        title="Where the time goes",
        kind="stacked",
        queries=(
            Query(mean("vllm:request_queue_time_seconds"), "queue"),
            Query(mean("vllm:request_prefill_time_seconds"), "prefill"),
            Query(mean("vllm:request_decode_time_seconds"), "decode"),
        ),
        description="Mean time of a request in each part of its life.",
        unit="s",
    ),
    Panel(
        title="E2E p95 by route",
        kind="lines",
        queries=(
            Query(
                quantile(0.95, "gpt_oss_request_e2e_seconds", by="route, unmet"),
                "{{route}}, unmet {{unmet}}",
            ),
        ),
        description="By where they ran; unmet: they belonged on several GPUs.",
        unit="s",
    ),
    Panel(
        title="Time per output token by route",
        kind="lines",
        queries=(
            Query(quantile(0.5, "gpt_oss_request_tpot_seconds", by="route"), "{{route}} p50"),
            Query(quantile(0.95, "gpt_oss_request_tpot_seconds", by="route"), "{{route}} p95"),
        ),
        description="Mean gap between the tokens of one request, by where it ran.",
        unit="s",
    ),
)

_CACHE = (
    Panel(
        title="TTFT p95 by prefix cache",
        kind="lines",
        queries=(Query(quantile(0.95, "gpt_oss_request_ttft_seconds", by="cache"), "{{cache}}"),),
        description="By how much of the prompt was in the prefix cache: none, partial, most (at "
        "least half).",
        unit="s",
    ),
    Panel(
        title="Requests by prefix cache",
        kind="stacked",
        queries=(
            Query(
                rate("gpt_oss_request_ttft_seconds_count", by="route, cache"),
                "{{route}} {{cache}}",
            ),
        ),
        description="Do cache hits go with the route? Requests per second by both.",
        unit="reqps",
    ),
    Panel(
        title="Share of the prompt that was cached",
        kind="lines",
        queries=(Query(mean("gpt_oss_request_cached_share", by="route"), "{{route}}"),),
        description="Mean over requests, by where they ran.",
        unit="percentunit",
        top=1,
    ),
)

_SHAPE = (
    Panel(
        title="Prompt tokens",
        kind="buckets",
        queries=buckets("vllm:request_prompt_tokens"),
        description="Prompt tokens per request that ran.",
        unit="tokens",
    ),
    Panel(
        title="Output tokens",
        kind="buckets",
        queries=buckets("vllm:request_generation_tokens"),
        description="Output tokens per request that ran, cancelled ones included.",
        unit="tokens",
    ),
    Panel(
        title="Output tokens per second of one request",
        kind="buckets",
        queries=buckets("llm_tokens_per_sec"),
        description="After its first token.",
        unit="tokens",
    ),
    Panel(
        title="Finish reasons",
        kind="stacked",
        queries=(
            Query(rate("vllm:request_success_total", by="finished_reason"), "{{finished_reason}}"),
        ),
        description="Sequences that ended per second; abort: the client left.",
        unit="ops",
    ),
    Panel(
        title="Answers by status",
        kind="stacked",
        queries=(
            Query(
                rate("gpt_oss_http_requests_total", endpoint="=~/v1/.+", by="status"),
                "{{status}}",
            ),
        ),
        description="HTTP answers of /v1 per second; 0: the client left before one.",
        unit="reqps",
    ),
    Panel(
        title="Reasoning",
        kind="lines",
        queries=(
            Query(
                share(rate("gpt_oss_reasoning_tokens_total"), rate("vllm:generation_tokens_total")),
                "share of output",
            ),
        ),
        description="Share of output tokens that were reasoning.",
        unit="percentunit",
        top=1,
    ),
)

REQUESTS = Dashboard(
    slug="requests",
    title="Requests",
    description="What requests took, part by part, and what they were like.",
    sections=(
        Section("Latency", _LATENCY),
        Section("Parts and routes", _STAGES),
        Section("Prefix cache", _CACHE),
        Section("What was asked", _SHAPE),
    ),
)

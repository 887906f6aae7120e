"""Overview: are the targets met, and if not, where to look."""

from __future__ import annotations

from tools.dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RANGE,
    RED,
    TEXT,
    Dashboard,
    Panel,
    Query,
    Section,
    increase,
    of,
    quantile,
    rate,
    share,
    total,
)

SLO = "gpt_oss_slo_total"
FAULTS = "=~overloaded|not_ready|engine_failed|internal"
# A target is a 95th percentile: 5 % of the requests may miss it.
BUDGET = 0.05
SHARE_MET = ((0.9, ORANGE), (1 - BUDGET, GREEN))


def _within(slo: str, name: str) -> Panel:
    met = increase(SLO, slo=slo, result="met", over=RANGE)
    return Panel(
        title=f"{name} within target",
        kind="stat",
        queries=(Query(share(met, increase(SLO, slo=slo, over=RANGE))),),
        description=f"Share of requests in the time shown whose {name} met its target. The "
        "target is a 95th percentile: below 95 % it is missed.",
        unit="percentunit",
        width=4,
        height=4,
        thresholds=SHARE_MET,
        below=RED,
        decimals=1,
    )


def _p95(slo: str, name: str, histogram: str) -> Panel:
    return Panel(
        title=f"{name} p95",
        kind="stat",
        queries=(
            Query(quantile(0.95, histogram, over=RANGE), "now"),
            Query(f"max({of('gpt_oss_slo_target_seconds', slo=slo)})", "target"),
        ),
        description=f"95th percentile of {name} in the time shown, beside its target.",
        unit="s",
        width=4,
        height=4,
        below=BLUE,
    )


_TILES = (
    _within("ttft", "TTFT"),
    _p95("ttft", "TTFT", "vllm:time_to_first_token_seconds"),
    _within("e2e", "E2E"),
    _p95("e2e", "E2E", "vllm:e2e_request_latency_seconds"),
    Panel(
        title="Failed or refused",
        kind="stat",
        queries=(
            Query(
                share(
                    increase("gpt_oss_requests_total", outcome=FAULTS, over=RANGE),
                    increase("gpt_oss_requests_total", over=RANGE),
                )
            ),
        ),
        description="Share of requests in the time shown that this server failed or refused: "
        "overloaded, not ready, engine failed, internal error.",
        unit="percentunit",
        width=4,
        height=4,
        thresholds=((0.01, ORANGE), (0.05, RED)),
        decimals=1,
    ),
    Panel(
        title="Replicas ready",
        kind="stat",
        queries=(
            Query(total("gpt_oss_engine_ready"), "ready"),
            Query(f"count({of('gpt_oss_engine_ready')})", "all"),
        ),
        description="Servers that take requests now, of those that are scraped.",
        width=4,
        height=4,
        below=RED,
        thresholds=((1, GREEN),),
    ),
)

_TRAFFIC = (
    Panel(
        title="Requests by outcome",
        kind="stacked",
        queries=(Query(rate("gpt_oss_requests_total", by="outcome"), "{{outcome}}"),),
        description="Requests to generating endpoints per second, by how they ended.",
        unit="reqps",
    ),
    Panel(
        title="Tokens",
        kind="lines",
        queries=(
            Query(rate("vllm:prompt_tokens_total"), "prompt"),
            Query(rate("llm_prefill_tokens_total"), "prompt, not cached"),
            Query(rate("vllm:generation_tokens_total"), "output"),
        ),
        description="Tokens per second: prompts as received, what of them had to be computed, "
        "and output.",
        unit="short",
    ),
    Panel(
        title="Running and waiting",
        kind="lines",
        queries=(
            Query(total("vllm:num_requests_running"), "running"),
            Query(total("vllm:num_requests_waiting"), "waiting"),
            Query(total("gpt_oss_requests_in_flight"), "in flight"),
        ),
        description="Requests that run, that wait for a place, and all that have begun.",
    ),
)


def _burn(slo: str) -> Query:
    missed = rate(SLO, slo=slo, result="missed")
    return Query(f"{share(missed, rate(SLO, slo=slo))} / {BUDGET}", slo)


_LEVELS = (
    Panel(
        title="Burn rate of the error budget",
        kind="lines",
        queries=(_burn("ttft"), _burn("e2e")),
        description="Share of requests that missed a target, over the 5 % that may. At 1 the "
        "budget is just used up, at 6 and 14.4 alerts page (see docs/alerts.md).",
        thresholds=((1, ORANGE), (6, RED)),
    ),
    Panel(
        title="Missed E2E target by route",
        kind="stacked",
        queries=(
            Query(
                rate(SLO, slo="e2e", result="missed", by="route, unmet"),
                "{{route}}, unmet {{unmet}}",
            ),
        ),
        description="Requests per second that missed the E2E target, by where they ran. Unmet: "
        "they belonged on several GPUs and there was no such replica. Route none: never ran.",
        unit="reqps",
    ),
    Panel(
        title="Latency p95",
        kind="lines",
        queries=(
            Query(quantile(0.95, "vllm:time_to_first_token_seconds"), "TTFT"),
            Query(quantile(0.95, "vllm:inter_token_latency_seconds"), "ITL"),
            Query(quantile(0.95, "vllm:e2e_request_latency_seconds"), "E2E"),
        ),
        description="95th percentiles: time to first token, gap between tokens, whole request.",
        unit="s",
        log=True,
    ),
)

_MACHINE = (
    Panel(
        title="Decisions by route",
        kind="stacked",
        queries=(
            Query(
                rate("gpt_oss_routing_decisions_total", by="route, trigger"),
                "{{route}} {{trigger}}",
            ),
        ),
        description="Routing decisions per second, by where the request belongs and why.",
        unit="reqps",
    ),
    Panel(
        title="Memory",
        kind="lines",
        queries=(
            Query(f"max({of('gpt_oss_memory_pressure')})", "memory pressure"),
            Query(f"max({of('vllm:kv_cache_usage_perc')})", "KV cache in use"),
        ),
        description="Effective memory pressure and use of the KV cache, of the fullest server.",
        unit="percentunit",
        top=1,
    ),
    Panel(
        title="GPU utilisation",
        kind="lines",
        queries=(Query(total("gpu_utilization", by="instance, gpu"), "{{instance}} GPU {{gpu}}"),),
        description="Share of time each GPU computed.",
        unit="percentunit",
        top=1,
    ),
)

_ITSELF = (
    Panel(
        title="Worker restarts",
        kind="stat",
        queries=(Query(increase("gpt_oss_engine_worker_restarts_total", over=RANGE)),),
        description="Times an engine worker ended on its own, in the time shown.",
        width=6,
        height=3,
        thresholds=((1, RED),),
        decimals=0,
    ),
    Panel(
        title="Preemptions",
        kind="stat",
        queries=(Query(increase("vllm:num_preemptions_total", over=RANGE)),),
        description="Sequences put back to make room, in the time shown.",
        width=6,
        height=3,
        thresholds=((1, ORANGE),),
        decimals=0,
    ),
    Panel(
        title="Lost lines",
        kind="stat",
        queries=(Query(increase("gpt_oss_lines_dropped_total", over=RANGE)),),
        description="Lines of logs, decision logs and traces lost to a slow disk or collector, "
        "in the time shown.",
        width=6,
        height=3,
        thresholds=((1, ORANGE),),
        decimals=0,
    ),
    Panel(
        title="Servers",
        kind="stat",
        queries=(Query(total("gpt_oss_build_info", by="model_id, version"), "{{version}}"),),
        description="Servers by version.",
        width=6,
        height=3,
        below=TEXT,
    ),
)

OVERVIEW = Dashboard(
    slug="overview",
    title="Overview",
    description="Are the targets met, and if not, where to look.",
    sections=(
        Section("Service levels", _TILES),
        Section("Traffic", _TRAFFIC),
        Section("Why targets are missed", _LEVELS),
        Section("Routing and machine", _MACHINE),
        Section("The server itself", _ITSELF),
    ),
)

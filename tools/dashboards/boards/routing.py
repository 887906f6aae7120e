"""GPU routing: where requests went and why, and what the GPUs did meanwhile."""

from __future__ import annotations

from tools.dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RANGE,
    RED,
    Dashboard,
    Panel,
    Query,
    Section,
    buckets,
    increase,
    of,
    quantile,
    rate,
    share,
    total,
)

DECISIONS = "gpt_oss_routing_decisions_total"
UNMET = "gpt_oss_routing_unmet_recommendations_total"
PRESSURE = "gpt_oss_routing_pressure"
BY_GPU = "instance, gpu"
GPU = "{{instance}} GPU {{gpu}}"
# The default of the setting `memory_pressure`, and a bucket bound of the histogram.
THRESHOLD = "0.85"

_TILES = (
    Panel(
        title="Belong on several GPUs",
        kind="stat",
        queries=(
            Query(
                share(
                    increase(DECISIONS, over=RANGE, route="multi_gpu"),
                    increase(DECISIONS, over=RANGE),
                )
            ),
        ),
        description="Share of decisions for several GPUs in the time shown.",
        unit="percentunit",
        width=6,
        height=4,
        below=BLUE,
        decimals=1,
    ),
    Panel(
        title="Recommendations not followed",
        kind="stat",
        queries=(Query(increase(UNMET, over=RANGE)),),
        description="Requests in the time shown that belonged on several GPUs where there is no "
        "such replica: they ran on one. See docs/routing.md.",
        width=6,
        height=4,
        thresholds=((1, ORANGE),),
        decimals=0,
    ),
    Panel(
        title="Balance of the GPUs in use",
        kind="stat",
        queries=(Query(f"min({of('gpt_oss_gpu_balance_coefficient')})"),),
        description="Least over greatest utilisation of the GPUs that the model runs on; "
        "balanced from 0.9.",
        width=6,
        height=4,
        below=RED,
        thresholds=((0.75, ORANGE), (0.9, GREEN)),
        decimals=2,
    ),
    Panel(
        title="Decision p99",
        kind="stat",
        queries=(Query(quantile(0.99, "gpt_oss_routing_decision_seconds", over=RANGE)),),
        description="99th percentile of the time that one decision takes, with predicting its KV "
        "and reading the fleet; tokenising apart.",
        unit="s",
        width=6,
        height=4,
        thresholds=((1e-3, ORANGE), (50e-3, RED)),
    ),
)

_DECISIONS = (
    Panel(
        title="Route by time",
        kind="rows",
        queries=(Query(increase(DECISIONS, by="route, trigger"), "{{route}} {{trigger}}"),),
        description="Decisions in each interval: a row per route and trigger.",
        width=12,
    ),
    Panel(
        title="Decision latency",
        kind="buckets",
        queries=buckets("gpt_oss_routing_decision_seconds"),
        description="Time of one decision, tokenising apart.",
        unit="s",
        width=12,
    ),
    Panel(
        title="Triggers",
        kind="stacked",
        queries=(Query(rate(DECISIONS, route="multi_gpu", by="trigger"), "{{trigger}}"),),
        description="Decisions for several GPUs per second, by the first trigger that held.",
        unit="reqps",
    ),
    Panel(
        title="Where requests ran",
        kind="stacked",
        queries=(Query(rate("gpt_oss_routing_executed_total", by="route"), "{{route}}"),),
        description="Requests per second by where they really ran.",
        unit="reqps",
    ),
    Panel(
        title="Not as decided",
        kind="lines",
        queries=(
            Query(rate(UNMET), "no multi-GPU replica"),
            Query(
                rate("gpt_oss_routing_fallbacks_total", by="decided, executed"),
                "{{decided}} ran on {{executed}}",
            ),
        ),
        description="Requests per second that ran elsewhere than decided.",
        unit="reqps",
    ),
)

_GPUS = (
    Panel(
        title="Utilisation per GPU",
        kind="rows",
        queries=(Query(total("gpu_utilization", by=BY_GPU), GPU),),
        description="Share of time each GPU computed: a row per GPU.",
        unit="percentunit",
        width=12,
        top=1,
    ),
    Panel(
        title="Memory per GPU",
        kind="rows",
        queries=(
            Query(
                f"{total('gpu_mem_used_bytes', by=BY_GPU)} / "
                f"{total('gpt_oss_gpu_mem_total_bytes', by=BY_GPU)}",
                GPU,
            ),
        ),
        description="Share of each GPU's memory in use, by anyone.",
        unit="percentunit",
        width=12,
        top=1,
    ),
    Panel(
        title="KV in use per GPU",
        kind="rows",
        queries=(Query(total("gpt_oss_gpu_kv_bytes_in_use", by=BY_GPU), GPU),),
        description="Bytes of KV held by running requests on the GPUs that the model runs on.",
        unit="bytes",
        width=12,
    ),
    Panel(
        title="Balance coefficient",
        kind="lines",
        queries=(Query(total("gpt_oss_gpu_balance_coefficient", by="instance"), "{{instance}}"),),
        description="Least over greatest utilisation of the GPUs in use; balanced from 0.9.",
        width=12,
        top=1,
        below=RED,
        thresholds=((0.9, GREEN),),
    ),
    Panel(
        title="Power",
        kind="stacked",
        queries=(Query(total("gpt_oss_gpu_power_watts", by=BY_GPU), GPU),),
        description="Power drawn by each GPU.",
        unit="watt",
    ),
    Panel(
        title="Energy per output token",
        kind="lines",
        queries=(
            Query(
                share(
                    rate("gpt_oss_gpu_energy_joules_total"), rate("vllm:generation_tokens_total")
                ),
                "joules per token",
            ),
        ),
        description="Energy of all GPUs shown over output tokens.",
        unit="joule",
    ),
    Panel(
        title="Temperature",
        kind="lines",
        queries=(Query(total("gpt_oss_gpu_temperature_celsius", by=BY_GPU), GPU),),
        description="Temperature of each GPU.",
        unit="celsius",
        thresholds=((85, RED),),
    ),
)


def _share_routed(above: bool) -> str:
    """Share of the decisions above (or not above) the threshold that were for several GPUs."""

    def decisions(**matchers: str) -> str:
        at_most = rate(f"{PRESSURE}_bucket", le=THRESHOLD, **matchers)
        return f"({rate(f'{PRESSURE}_count', **matchers)} - {at_most})" if above else at_most

    return share(decisions(route="multi_gpu"), decisions())


_WHY = (
    Panel(
        title="Pressure at the decision: one GPU",
        kind="buckets",
        queries=buckets(PRESSURE, route="single_gpu"),
        description="Memory pressure seen by decisions for one GPU.",
        unit="percentunit",
    ),
    Panel(
        title="Pressure at the decision: several GPUs",
        kind="buckets",
        queries=buckets(PRESSURE, route="multi_gpu"),
        description="Memory pressure seen by decisions for several GPUs.",
        unit="percentunit",
    ),
    Panel(
        title="Does pressure change routing?",
        kind="lines",
        queries=(
            Query(_share_routed(above=True), f"pressure above {THRESHOLD}"),
            Query(_share_routed(above=False), f"pressure up to {THRESHOLD}"),
        ),
        description="Share of decisions for several GPUs, under pressure and without. The "
        "further apart the lines, the more pressure decides.",
        unit="percentunit",
        top=1,
    ),
    Panel(
        title="Prompt tokens: one GPU",
        kind="buckets",
        queries=buckets("gpt_oss_routing_input_tokens", route="single_gpu"),
        description="Prompt tokens of requests that belong on one GPU.",
        unit="tokens",
        width=6,
    ),
    Panel(
        title="Prompt tokens: several GPUs",
        kind="buckets",
        queries=buckets("gpt_oss_routing_input_tokens", route="multi_gpu"),
        description="Prompt tokens of requests that belong on several GPUs.",
        unit="tokens",
        width=6,
    ),
    Panel(
        title="Predicted KV: one GPU",
        kind="buckets",
        queries=buckets("gpt_oss_routing_predicted_kv_bytes", route="single_gpu"),
        description="Predicted KV of requests that belong on one GPU.",
        unit="bytes",
        width=6,
    ),
    Panel(
        title="Predicted KV: several GPUs",
        kind="buckets",
        queries=buckets("gpt_oss_routing_predicted_kv_bytes", route="multi_gpu"),
        description="Predicted KV of requests that belong on several GPUs.",
        unit="bytes",
        width=6,
    ),
)

_PROBE = (
    Panel(
        title="Age of GPU readings",
        kind="lines",
        queries=(
            Query(
                f"max by ({BY_GPU}) ({of('gpt_oss_gpu_reading_age_seconds')})",
                GPU,
            ),
            Query(f"max({of('gpt_oss_routing_threshold', name='stale_after_s')})", "stale from"),
        ),
        description="What is older than stale_after_s counts as unknown.",
        unit="s",
    ),
    Panel(
        title="GPU readings",
        kind="lines",
        queries=(
            Query(rate("gpt_oss_gpu_probe_polls_total"), "polls"),
            Query(rate("gpt_oss_gpu_probe_errors_total"), "failed"),
        ),
        description="Polls of the GPUs per second, and those that failed.",
        unit="ops",
    ),
    Panel(
        title="Decided without knowing the pressure",
        kind="lines",
        queries=(Query(rate("gpt_oss_routing_pressure_unknown_total"), "unknown pressure"),),
        description="Decisions per second taken without a GPU reading to go by.",
        unit="reqps",
    ),
)

ROUTING = Dashboard(
    slug="gpu-routing",
    title="GPU routing",
    description="Where requests went and why, and what the GPUs did meanwhile.",
    sections=(
        Section("Now", _TILES),
        Section("Decisions", _DECISIONS),
        Section("GPUs", _GPUS),
        Section("Why", _WHY),
        Section("Readings", _PROBE),
    ),
)

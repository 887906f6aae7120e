"""Engine and KV: steps, batches, blocks, prefix cache."""

from __future__ import annotations

from tools.dashboards.panels import (
    ORANGE,
    RED,
    Dashboard,
    Panel,
    Query,
    Section,
    buckets,
    mean,
    of,
    quantile,
    rate,
    share,
    total,
)

STEP = "gpt_oss_engine_step_seconds"

_STEPS = (
    Panel(
        title="Step time",
        kind="buckets",
        queries=buckets(STEP),
        description="Time of one step of the engine.",
        unit="s",
        height=8,
    ),
    Panel(
        title="Tokens in a step",
        kind="buckets",
        queries=buckets("gpt_oss_engine_batch_tokens"),
        description="Tokens computed in one step, prefill and decode together.",
        unit="tokens",
        height=8,
    ),
    Panel(
        title="Step time p95 by kind",
        kind="lines",
        queries=(Query(quantile(0.95, STEP, by="kind"), "{{kind}}"),),
        description="Steps that were all prefill, all decode, or mixed.",
        unit="s",
        height=8,
    ),
    Panel(
        title="Tokens computed",
        kind="stacked",
        queries=(Query(rate("gpt_oss_engine_tokens_total", by="phase"), "{{phase}}"),),
        description="Tokens computed per second, in prefill and in decode.",
    ),
    Panel(
        title="Tokens per step by kind",
        kind="lines",
        queries=(Query(mean("gpt_oss_engine_batch_tokens", by="kind"), "{{kind}}"),),
        description="Mean tokens in one step.",
        unit="tokens",
    ),
    Panel(
        title="Sequences",
        kind="stacked",
        queries=(Query(total("gpt_oss_engine_sequences", by="state"), "{{state}}"),),
        description="Sequences in the engine.",
    ),
)

_KV = (
    Panel(
        title="KV blocks",
        kind="stacked",
        queries=(Query(total("gpt_oss_engine_blocks", by="group, state"), "{{group}} {{state}}"),),
        description="Blocks held by running sequences, cached (reusable, evictable), and free.",
    ),
    Panel(
        title="KV bytes",
        kind="lines",
        queries=(
            Query(total("kv_bytes_in_use"), "in use"),
            Query(total("gpt_oss_kv_predicted_bytes"), "predicted"),
            Query(total("gpt_oss_kv_reserved_bytes"), "reserved"),
            Query(total("gpt_oss_kv_pool_bytes"), "pool"),
        ),
        description="In use: really held. Predicted: by arithmetic, were nothing shared; above "
        "what is in use by exactly what is. Reserved: by admission.",
        unit="bytes",
    ),
    Panel(
        title="KV cache in use",
        kind="lines",
        queries=(Query(f"max by (instance) ({of('vllm:kv_cache_usage_perc')})", "{{instance}}"),),
        description="Share of KV blocks held, of the fullest pool.",
        unit="percentunit",
        top=1,
        thresholds=((0.95, RED),),
    ),
    Panel(
        title="Prefix cache hits",
        kind="lines",
        queries=(
            Query(
                share(
                    rate("gpt_oss_engine_prefix_hit_tokens_total"),
                    rate("gpt_oss_engine_prefix_queried_tokens_total"),
                ),
                "share of prompt tokens",
            ),
        ),
        description="Share of prompt tokens found in the prefix cache.",
        unit="percentunit",
        top=1,
    ),
    Panel(
        title="Preemptions",
        kind="lines",
        queries=(Query(rate("gpt_oss_engine_preemptions_total", by="instance"), "{{instance}}"),),
        description="Sequences put back per second to make room.",
        unit="ops",
        thresholds=((0.1, ORANGE),),
    ),
    Panel(
        title="Memory pressure",
        kind="lines",
        queries=(
            Query(f"max by (instance) ({of('gpt_oss_memory_pressure')})", "{{instance}}"),
            Query(f"max({of('gpt_oss_routing_threshold', name='memory_pressure')})", "threshold"),
        ),
        description="Effective pressure: others' memory, weights, activations and KV in use, "
        "over the total.",
        unit="percentunit",
        top=1,
    ),
)

_WORKER = (
    Panel(
        title="Sequences that ended",
        kind="stacked",
        queries=(Query(rate("gpt_oss_engine_jobs_total", by="result"), "{{result}}"),),
        description="Sequences that left the engine per second.",
        unit="ops",
    ),
    Panel(
        title="Ready",
        kind="lines",
        queries=(Query(total("gpt_oss_engine_ready", by="instance"), "{{instance}}"),),
        description="Whether requests are taken: 1 or 0.",
        top=1,
    ),
    Panel(
        title="Worker restarts",
        kind="lines",
        queries=(
            Query(
                total("gpt_oss_engine_worker_restarts_total", by="instance"),
                "{{instance}}",
            ),
        ),
        description="Times the worker ended on its own and was started again, since the start.",
    ),
)

ENGINE = Dashboard(
    slug="engine-kv",
    title="Engine & KV",
    description="Steps, batches, KV blocks, prefix cache, the worker.",
    sections=(
        Section("Steps", _STEPS),
        Section("KV", _KV),
        Section("Worker", _WORKER),
    ),
)

"""Metrics of the engine, memory, GPUs, and the server itself."""

from __future__ import annotations

from gpt_oss_server.telemetry.names.metric import (
    ENGINE,
    GPUS,
    MEMORY,
    SELF,
    Metric,
    read,
)
from gpt_oss_server.types import STEP_SECONDS_BOUNDS, STEP_TOKENS_BOUNDS

ENGINE_ROWS: tuple[Metric, ...] = (
    read("gpt_oss_engine_ready", "gauge", (), ENGINE, "Whether requests are taken now: 1 or 0."),
    read(
        "gpt_oss_engine_worker_restarts_total",
        "counter",
        (),
        ENGINE,
        "Times the worker ended on its own and was started again.",
    ),
    read(
        "gpt_oss_engine_info",
        "info",
        ("device", "dtype", "attention_backend", "model_id"),
        ENGINE,
        "What the engine is; always 1.",
    ),
    read(
        "gpt_oss_engine_step_seconds",
        "histogram",
        ("kind",),
        ENGINE,
        "Time of one step that was all prefill, all decode, or mixed.",
        STEP_SECONDS_BOUNDS,
    ),
    read(
        "gpt_oss_engine_batch_tokens",
        "histogram",
        ("kind",),
        ENGINE,
        "Tokens computed in one step.",
        STEP_TOKENS_BOUNDS,
    ),
    read(
        "gpt_oss_engine_tokens_total",
        "counter",
        ("phase",),
        ENGINE,
        "Tokens computed: prefill, decode.",
    ),
    read(
        "gpt_oss_engine_sequences",
        "gauge",
        ("state",),
        ENGINE,
        "Sequences in the engine: running, waiting.",
    ),
    read(
        "gpt_oss_engine_jobs_total",
        "counter",
        ("result",),
        ENGINE,
        "Sequences that left the engine: finished, failed, cancelled.",
    ),
    read(
        "gpt_oss_engine_preemptions_total",
        "counter",
        (),
        ENGINE,
        "Sequences put back to make room.",
    ),
    read(
        "gpt_oss_engine_out_of_memory_total",
        "counter",
        ("result",),
        ENGINE,
        "Steps that the device had no memory for, computed again in smaller ones (retried), and "
        "sequences for which there was none even alone and a token at a time (failed).",
    ),
    read(
        "gpt_oss_engine_step_budget_tokens",
        "gauge",
        (),
        ENGINE,
        "Tokens that a step may compute now; fewer than the settings say for a while after the "
        "device ran out of memory.",
    ),
    read(
        "gpt_oss_engine_start_seconds",
        "gauge",
        ("phase",),
        ENGINE,
        "Time of each phase of the engine's last start: load, rewrite, profile, pools, capture, "
        "warm. Absent for one that was skipped.",
    ),
    read(
        "gpt_oss_engine_prefix_queried_tokens_total",
        "counter",
        (),
        ENGINE,
        "Prompt tokens looked up in the prefix cache.",
    ),
    read(
        "gpt_oss_engine_prefix_hit_tokens_total",
        "counter",
        (),
        ENGINE,
        "Prompt tokens found in the prefix cache.",
    ),
    read(
        "gpt_oss_engine_blocks",
        "gauge",
        ("group", "state"),
        ENGINE,
        "KV blocks: held by running sequences, cached (reusable, evictable), free.",
    ),
)

MEMORY_ROWS: tuple[Metric, ...] = (
    read(
        "gpt_oss_memory_pressure",
        "gauge",
        (),
        MEMORY,
        "Effective memory pressure now. Absent where no GPU's is known.",
    ),
    read("gpt_oss_kv_pool_bytes", "gauge", (), MEMORY, "Bytes of the KV pools."),
    read(
        "gpt_oss_kv_reserved_bytes",
        "gauge",
        (),
        MEMORY,
        "Bytes of KV reserved for admitted requests.",
    ),
    read(
        "gpt_oss_kv_predicted_bytes",
        "gauge",
        (),
        MEMORY,
        "Bytes of KV that running sequences hold by arithmetic, were nothing shared.",
    ),
    read("gpt_oss_weights_bytes", "gauge", (), MEMORY, "Bytes of the model's weights."),
    read(
        "gpt_oss_activations_bytes",
        "gauge",
        ("kind",),
        MEMORY,
        "Bytes of one step on each rank beside weights and KV: bound (predicted from the config), "
        "measured (what the largest step held; absent where none was profiled), set_aside.",
    ),
)

GPU_ROWS: tuple[Metric, ...] = (
    read("gpt_oss_gpu_mem_total_bytes", "gauge", ("gpu",), GPUS, "A GPU's memory."),
    read("gpt_oss_gpu_power_watts", "gauge", ("gpu",), GPUS, "Power drawn."),
    read(
        "gpt_oss_gpu_energy_joules_total",
        "counter",
        ("gpu",),
        GPUS,
        "Energy used since the first reading.",
    ),
    read("gpt_oss_gpu_temperature_celsius", "gauge", ("gpu",), GPUS, "Temperature."),
    read(
        "gpt_oss_gpu_kv_bytes_in_use",
        "gauge",
        ("gpu",),
        GPUS,
        "Bytes of KV in use on a GPU that the model runs on.",
    ),
    read(
        "gpt_oss_gpu_reading_age_seconds",
        "gauge",
        ("gpu",),
        GPUS,
        "Age of a GPU's last reading; what is older than stale_after_s is not exported.",
    ),
    read(
        "gpt_oss_gpu_balance_coefficient",
        "gauge",
        (),
        GPUS,
        "Least over greatest utilisation of the GPUs in use, 1 best; absent where not known.",
    ),
    read("gpt_oss_gpu_probe_polls_total", "counter", (), GPUS, "Polls of the GPUs."),
    read(
        "gpt_oss_gpu_probe_errors_total",
        "counter",
        (),
        GPUS,
        "Polls that failed, hung or brought nonsense.",
    ),
)

SELF_ROWS: tuple[Metric, ...] = (
    read(
        "gpt_oss_build_info",
        "info",
        ("version", "gpu_mode", "model_id"),
        SELF,
        "The server; always 1.",
    ),
    read(
        "gpt_oss_telemetry_errors_total",
        "counter",
        ("sink",),
        SELF,
        "Events that a part of telemetry failed to take; no request is harmed.",
    ),
    read(
        "gpt_oss_lines_dropped_total",
        "counter",
        ("writer",),
        SELF,
        "Lines of the log, the decision log or the spans lost to a slow or full disk or collector.",
    ),
)

"""What a snapshot says of each metric that is read at scrape time.

Knows: which field of a snapshot is which row of the catalogue. Does not know: text formats, how a
snapshot is taken. What is not known yields nothing: a metric is absent rather than 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gpt_oss_server.admission.core import AdmissionCounts
from gpt_oss_server.dispatch.estimate import kv_bytes, kv_capacity_bytes
from gpt_oss_server.facts import Route, Trigger
from gpt_oss_server.telemetry.gpu import ProbedGpu
from gpt_oss_server.telemetry.snapshot import DeskSnapshot, ServerSnapshot
from gpt_oss_server.types import EngineInfo, EngineStats, Tally


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while the server runs. `model_id` is the model's short name,
    `model_name` the one that answers carry."""

    model_id: str
    model_name: str
    version: str
    gpu_mode: str
    ttft_target_s: float
    e2e_target_s: float


Reading = tuple[str, tuple[str, ...], "float | Tally"]
"""A metric's name, its label values in the catalogue's order, and its value."""

_VERDICTS = {
    "accept": "accepted",
    "shrink": "shrunk",
    "route4": "routed4",
    "queue": "queued",
    "reject": "rejected",
    "never_fits": "never_fits",
}


def readings(snapshot: ServerSnapshot, identity: Identity) -> Iterator[Reading]:
    """Everything that is known, in no order."""
    yield from _of_meter(snapshot, identity)
    yield from _of_itself(snapshot, identity)
    if snapshot.info is not None and snapshot.stats is not None:
        yield from _of_engine(snapshot.info, snapshot.stats, identity)
        yield from _of_blocks(snapshot.info, snapshot.stats, identity)
    stale_after_s = float("inf")
    if snapshot.desk is not None:
        stale_after_s = snapshot.desk.thresholds.stale_after_s
        yield from _of_routing(snapshot.desk)
        yield from _of_admission(snapshot.desk, snapshot.info, identity)
        yield from _of_machine(snapshot.desk)
    if snapshot.probe is not None:
        yield "gpt_oss_gpu_probe_polls_total", (), snapshot.probe.polls
        yield "gpt_oss_gpu_probe_errors_total", (), snapshot.probe.errors
        for gpu in snapshot.probe.gpus:
            yield from _of_gpu(gpu, stale_after_s, identity)


def _of_meter(snapshot: ServerSnapshot, identity: Identity) -> Iterator[Reading]:
    meter = snapshot.meter
    by_id, by_name = (identity.model_id,), (identity.model_name,)
    yield "gpt_oss_requests_in_flight", (), meter.in_flight
    yield "llm_prefill_tokens_total", by_id, meter.prompt_tokens - meter.cached_tokens
    yield "llm_decode_tokens_total", by_id, meter.output_tokens
    yield "vllm:prompt_tokens_total", by_name, meter.prompt_tokens
    yield "vllm:generation_tokens_total", by_name, meter.output_tokens
    gaps = Tally(meter.gap_counts, meter.gap_total_s)
    yield "vllm:inter_token_latency_seconds", by_name, gaps
    yield "vllm:num_requests_waiting", by_name, sum(meter.waiting)
    for priority, waiting in enumerate(meter.waiting):
        yield "gpt_oss_admission_waiting", (str(priority),), waiting


def _of_itself(snapshot: ServerSnapshot, identity: Identity) -> Iterator[Reading]:
    about = (identity.version, identity.gpu_mode, identity.model_id)
    yield "gpt_oss_build_info", about, 1
    yield "gpt_oss_slo_target_seconds", ("ttft",), identity.ttft_target_s
    yield "gpt_oss_slo_target_seconds", ("e2e",), identity.e2e_target_s
    yield "gpt_oss_engine_ready", (), float(snapshot.state.ready)
    yield "gpt_oss_engine_worker_restarts_total", (), snapshot.state.restarts
    for sink, errors in snapshot.sink_errors.items():
        yield "gpt_oss_telemetry_errors_total", (sink,), errors
    for writer, lost in snapshot.dropped.items():
        yield "gpt_oss_lines_dropped_total", (writer,), lost


def _of_engine(info: EngineInfo, stats: EngineStats, identity: Identity) -> Iterator[Reading]:
    about = (info.device, info.dtype, info.attention_backend, identity.model_id)
    yield "gpt_oss_engine_info", about, 1
    for kind in ("prefill", "decode", "mixed"):
        if kind in stats.step_seconds:
            yield "gpt_oss_engine_step_seconds", (kind,), stats.step_seconds[kind]
            yield "gpt_oss_engine_batch_tokens", (kind,), stats.step_tokens[kind]
    yield "gpt_oss_engine_tokens_total", ("prefill",), stats.prefill_tokens
    yield "gpt_oss_engine_tokens_total", ("decode",), stats.decode_tokens
    yield "gpt_oss_engine_sequences", ("running",), stats.running
    yield "gpt_oss_engine_sequences", ("waiting",), stats.waiting
    yield "gpt_oss_engine_jobs_total", ("finished",), stats.jobs_finished
    yield "gpt_oss_engine_jobs_total", ("failed",), stats.jobs_failed
    yield "gpt_oss_engine_jobs_total", ("cancelled",), stats.jobs_cancelled
    queried, hit = stats.prefix_queries_tokens, stats.prefix_hit_tokens
    yield "gpt_oss_engine_preemptions_total", (), stats.preemptions
    yield "gpt_oss_engine_prefix_queried_tokens_total", (), queried
    yield "gpt_oss_engine_prefix_hit_tokens_total", (), hit
    yield "gpt_oss_engine_out_of_memory_total", ("retried",), stats.shortages - stats.jobs_too_large
    yield "gpt_oss_engine_out_of_memory_total", ("failed",), stats.jobs_too_large
    if stats.step_budget_tokens is not None:
        yield "gpt_oss_engine_step_budget_tokens", (), stats.step_budget_tokens
    for phase in info.startup:
        if phase.seconds is not None:
            yield "gpt_oss_engine_start_seconds", (phase.name,), phase.seconds
    by_name = (identity.model_name,)
    yield "vllm:num_preemptions_total", by_name, stats.preemptions
    yield "vllm:prefix_cache_queries_total", by_name, queried
    yield "vllm:prefix_cache_hits_total", by_name, hit


def _of_blocks(info: EngineInfo, stats: EngineStats, identity: Identity) -> Iterator[Reading]:
    fullest = 0.0
    for group in info.kv_groups:
        held = stats.blocks_in_use.get(group.name, 0)
        cached = stats.blocks_cached.get(group.name, 0)
        fullest = max(fullest, held / group.num_blocks)
        yield "gpt_oss_engine_blocks", (group.name, "held"), held
        yield "gpt_oss_engine_blocks", (group.name, "cached"), cached
        yield "gpt_oss_engine_blocks", (group.name, "free"), group.num_blocks - held - cached
    blocks = info.kv_token_capacity // info.block_size
    config = (str(info.block_size), str(blocks), identity.model_name)
    yield "vllm:cache_config_info", config, 1
    yield "vllm:kv_cache_usage_perc", (identity.model_name,), fullest
    yield "kv_bytes_in_use", (identity.model_id,), kv_bytes(info, stats.blocks_in_use)
    yield "gpt_oss_kv_predicted_bytes", (), kv_bytes(info, stats.blocks_predicted)
    yield "gpt_oss_kv_pool_bytes", (), kv_capacity_bytes(info)
    yield "gpt_oss_weights_bytes", (), info.weights_bytes
    for kind, size in (
        ("bound", info.activations_bound_bytes or None),
        ("measured", info.activations_measured_bytes),
        ("set_aside", info.activations_peak_bytes or None),
    ):
        if size is not None:
            yield "gpt_oss_activations_bytes", (kind,), size


def _of_routing(desk: DeskSnapshot) -> Iterator[Reading]:
    routing = desk.routing
    name = "gpt_oss_routing_decisions_total"
    yield name, ("single_gpu", "none"), routing.single_gpu_decisions
    triggers: Iterable[tuple[Trigger, int]] = routing.triggers.items()
    for trigger, decisions in triggers:
        yield name, ("multi_gpu", trigger), decisions
    executed: Iterable[tuple[Route, int]] = routing.executed.items()
    for route, requests in executed:
        yield "gpt_oss_routing_executed_total", (route,), requests
    unmet = routing.unmet_recommendations
    yield "gpt_oss_routing_unmet_recommendations_total", (), unmet
    for threshold, value in msgspec.structs.asdict(desk.thresholds).items():
        yield "gpt_oss_routing_threshold", (threshold,), value


def _of_admission(
    desk: DeskSnapshot, info: EngineInfo | None, identity: Identity
) -> Iterator[Reading]:
    sessions = desk.sessions
    yield "sessions_active", (identity.model_id,), sessions.active
    yield "gpt_oss_sessions", ("tracked",), sessions.tracked
    yield "gpt_oss_sessions", ("active",), sessions.active
    for reason, evictions in sessions.evictions.items():
        yield "gpt_oss_session_evictions_total", (reason,), evictions
    admission = desk.admission
    # Before the first request there is nothing to ask, and nothing has been counted.
    counts = AdmissionCounts() if admission is None else admission.counts
    running = 0 if admission is None else admission.running
    yield "vllm:num_requests_running", (identity.model_name,), running
    yield "gpt_oss_admission_leases", (), running
    yield "gpt_oss_admission_overcommits_total", (), counts.overcommits
    for verdict, field in _VERDICTS.items():
        yield "gpt_oss_admission_offers_total", (verdict,), getattr(counts, field)
    if admission is None:
        return
    for state, blocks in (
        ("total", admission.blocks_total),
        ("reserved", admission.blocks_used),
        ("peak", admission.blocks_peak),
    ):
        for group, number in blocks.items():
            yield "gpt_oss_admission_blocks", (group, state), number
    if info is not None:
        yield "gpt_oss_kv_reserved_bytes", (), kv_bytes(info, admission.blocks_used)


def _of_machine(desk: DeskSnapshot) -> Iterator[Reading]:
    if desk.pressure is not None:
        yield "gpt_oss_memory_pressure", (), desk.pressure
    if desk.balance is not None:
        yield "gpt_oss_gpu_balance_coefficient", (), desk.balance.coefficient
    for gpu in desk.gpus:
        if gpu.in_use:
            yield "gpt_oss_gpu_kv_bytes_in_use", (gpu.id,), gpu.kv_in_use_bytes


def _of_gpu(gpu: ProbedGpu, stale_after_s: float, identity: Identity) -> Iterator[Reading]:
    """What one GPU said last, unless that is too long ago."""
    reading, by_gpu = gpu.reading, (gpu.reading.id,)
    yield "gpt_oss_gpu_reading_age_seconds", by_gpu, gpu.age_s
    if gpu.age_s > stale_after_s:
        return
    by_both = (reading.id, identity.model_id)
    for name, labels, value in (
        ("gpu_utilization", by_both, reading.utilization),
        ("gpu_mem_used_bytes", by_both, reading.used_bytes),
        ("gpt_oss_gpu_mem_total_bytes", by_gpu, reading.total_bytes),
        ("gpt_oss_gpu_power_watts", by_gpu, reading.power_w),
        ("gpt_oss_gpu_energy_joules_total", by_gpu, reading.energy_j),
        ("gpt_oss_gpu_temperature_celsius", by_gpu, reading.temperature_c),
    ):
        if value is not None:
            yield name, labels, value

"""Pages of metrics, read back by the library's own parsers, and the parts that make them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from gpt_oss_server.admission.core import AdmissionCounts, AdmissionSnapshot
from gpt_oss_server.admission.sessions import SessionTotals
from gpt_oss_server.events import GAP_BOUNDS_S, Event
from gpt_oss_server.facts import GpuView
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.routing.balance import Balance
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.ledger import RoutingLedger
from gpt_oss_server.telemetry.gpu import ProbedGpu, ProbeView
from gpt_oss_server.telemetry.page import MetricsPage
from gpt_oss_server.telemetry.prometheus import PrometheusSink
from gpt_oss_server.telemetry.readings import Identity
from gpt_oss_server.telemetry.snapshot import DeskSnapshot, MeterReading, ServerSnapshot
from gpt_oss_server.types import (
    STEP_SECONDS_BOUNDS,
    STEP_TOKENS_BOUNDS,
    EngineInfo,
    EngineState,
    EngineStats,
    KvGroupInfo,
    StartPhase,
    Tally,
)

IDENTITY = Identity(
    model_id="gpt-oss-120b",
    model_name="openai/gpt-oss-120b",
    version="1.2.3",
    gpu_mode="single",
    ttft_target_s=2.0,
    e2e_target_s=20.0,
)
GPU = GpuReading(
    id="0",
    total_bytes=1000,
    used_bytes=400,
    utilization=0.65,
    power_w=300.0,
    energy_j=12.5,
    temperature_c=60.0,
)
INFO = EngineInfo(
    vocab_size=10,
    max_model_len=100,
    eos_token_ids=(2,),
    block_size=16,
    kv_groups=(
        KvGroupInfo(name="full", layers=1, window=None, num_blocks=10, block_bytes=100),
        KvGroupInfo(name="sliding", layers=1, window=32, num_blocks=4, block_bytes=50),
    ),
    kv_token_capacity=160,
    max_num_seqs=8,
    dtype="bfloat16",
    device="cuda:0",
    weights_bytes=700,
    activations_peak_bytes=90,
    activations_bound_bytes=80,
    activations_measured_bytes=70,
    attention_backend="tiled",
    startup=(StartPhase("load", 2.5), StartPhase("capture", None, "--eager")),
)
_STEPS = {
    kind: Tally((1,) + (0,) * len(STEP_SECONDS_BOUNDS), 0.0004)
    for kind in ("prefill", "decode", "mixed")
}
_TOKENS = {
    kind: Tally((0, 0, 1) + (0,) * (len(STEP_TOKENS_BOUNDS) - 2), 3.0)
    for kind in ("prefill", "decode", "mixed")
}
STATS = EngineStats(
    running=2,
    waiting=1,
    blocks_in_use={"full": 5, "sliding": 3},
    blocks_predicted={"full": 6, "sliding": 3},
    blocks_cached={"full": 1, "sliding": 0},
    blocks_total={"full": 10, "sliding": 4},
    steps=3,
    prefill_tokens=30,
    decode_tokens=20,
    preemptions=4,
    shortages=5,
    jobs_too_large=1,
    step_budget_tokens=1024,
    prefix_queries_tokens=50,
    prefix_hit_tokens=16,
    jobs_finished=7,
    jobs_failed=1,
    jobs_cancelled=2,
    step_seconds=_STEPS,
    step_tokens=_TOKENS,
)
METER = MeterReading(
    in_flight=3,
    waiting=(0, 0, 0, 0, 0, 2, 0, 0, 0, 1),
    prompt_tokens=100,
    cached_tokens=30,
    output_tokens=40,
    gap_counts=(2,) + (0,) * len(GAP_BOUNDS_S),
    gap_total_s=0.001,
)
COMING_UP = ServerSnapshot(
    meter=MeterReading(0, (0,) * 10, 0, 0, 0, (0,) * (len(GAP_BOUNDS_S) + 1), 0.0),
    state=EngineState(ready=False, reason="loading"),
    info=None,
    stats=None,
    desk=None,
    probe=None,
    sink_errors={"prometheus": 0},
    dropped={"log": 0},
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def desk_snapshot() -> DeskSnapshot:
    """A desk that knows everything."""
    return DeskSnapshot(
        routing=RoutingLedger().snapshot(),
        thresholds=RoutingConfig(),
        admission=AdmissionSnapshot(
            counts=AdmissionCounts(offered=9, accepted=6, queued=2, rejected=1, overcommits=3),
            running=2,
            waiting=3,
            waiting_by_client={},
            blocks_total={"full": 10, "sliding": 4, "slots": 8},
            blocks_used={"full": 6, "sliding": 4, "slots": 2},
            blocks_peak={"full": 9, "sliding": 4, "slots": 5},
            drain_share_per_s=None,
        ),
        sessions=SessionTotals(
            tracked=5,
            active=2,
            kv_bytes=10,
            evictions={"idle": 1, "count": 2, "pressure": 3},
            reused=0,
            untracked=0,
            trimmed=0,
        ),
        gpus=(
            GpuView(
                id="0", total_bytes=1000, measured_at_s=0.0, others_bytes=1, kv_in_use_bytes=650
            ),
            GpuView(id="1", total_bytes=1000, measured_at_s=0.0, others_bytes=1, in_use=False),
        ),
        pressure=0.75,
        balance=Balance(0.95, {"0": 65.0}),
    )


def probe_view(*readings: GpuReading, age_s: float = 1.0) -> ProbeView:
    """A probe that has just answered, or `age_s` ago."""
    gpus = tuple(ProbedGpu(reading, 0.0, age_s) for reading in readings)
    return ProbeView(gpus=gpus, polls=12, errors=1, hung=False, last_error=None)


def everything() -> ServerSnapshot:
    """A server of which all is known."""
    return ServerSnapshot(
        meter=METER,
        state=EngineState(ready=True, reason="ready", restarts=2),
        info=INFO,
        stats=STATS,
        desk=desk_snapshot(),
        probe=probe_view(GPU),
        sink_errors={"prometheus": 0, "log": 1},
        dropped={"log": 8, "decision_log": 9},
    )


def new_sink() -> PrometheusSink:
    return PrometheusSink(
        model_id=IDENTITY.model_id,
        model_name=IDENTITY.model_name,
        ttft_target_s=IDENTITY.ttft_target_s,
        e2e_target_s=IDENTITY.e2e_target_s,
    )


def samples(
    snapshot: ServerSnapshot = COMING_UP,
    events: Iterable[Event] = (),
    *,
    sink: PrometheusSink | None = None,
    open_metrics: bool = False,
) -> Samples:
    """Every sample of the page after these events, by name and labels."""
    sink = sink or new_sink()
    for event in events:
        sink.emit(event)
    accept = "application/openmetrics-text; version=1.0.0" if open_metrics else ""
    body, _ = MetricsPage(IDENTITY).render(changed(snapshot, moved=sink.taken()), accept)
    parse = parse_open if open_metrics else parse_plain
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def values(found: Samples, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one name, by the values of their labels in the labels' order."""
    return {
        tuple(value for _, value in sorted(labels)): number
        for (sample, labels), number in found.items()
        if sample == name
    }


def nonzero(found: Samples) -> dict[str, float]:
    """What is not zero, without buckets, as `name{label="value"}`."""
    return {
        name + "".join(f"{{{k}={v}}}" for k, v in sorted(labels)): number
        for (name, labels), number in found.items()
        if number and not name.endswith("_bucket")
    }


def changed(snapshot: ServerSnapshot, **changes: object) -> ServerSnapshot:
    return msgspec.structs.replace(snapshot, **changes)

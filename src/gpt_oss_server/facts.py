"""The frozen nouns of the routing decision: what is known going in, and what comes out.

Knows: the shape of a request's cost, of a fleet at one moment, and of a decision. Does not know:
how anything is measured or decided. Every type is a `msgspec.Struct`, so that a decision and all
that led to it can be written as one JSON line and read back equal.

Units: `_tokens` counts token ids, `_bytes` bytes, `_mb` multiples of 2**20 bytes, `_s` seconds.
Moments (`now_s`, `measured_at_s`) are readings of one clock, whichever the caller uses; only
their differences mean anything. A value that is not known is None, never 0.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Route = Literal["single_gpu", "multi_gpu"]
Trigger = Literal["large_input", "large_kv", "memory_pressure"]
GpuMode = Literal["single", "auto", "tensor", "pipeline"]

MB_BYTES = 1 << 20
NO_TRIGGER_REASON = "default: no multi-GPU trigger"


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request costs, known before it is admitted.

    `predicted_kv_bytes` is for input plus the full output bound, over all ranks.
    `least_kv_bytes` is what it can run with at the least when the client left the bound open;
    None where the bound is explicit, and then the prediction is the least.
    """

    request_id: str
    input_tokens: int
    max_output_tokens: int
    predicted_kv_bytes: int
    least_kv_bytes: int | None = None
    trace_id: str | None = None
    client_id: str = ""
    session_id: str | None = None
    priority: int = 5

    @property
    def predicted_kv_mb(self) -> float:
        return self.predicted_kv_bytes / MB_BYTES


class GpuView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One GPU as last seen. `others_bytes` and `utilization_percent` come from a probe; weights,
    activations and KV (`kv_pool_bytes`, of which `kv_in_use_bytes`) are of all ranks there.

    `measured_at_s` is when the probe last answered; None when it never did. `in_use` is False
    for a GPU of the machine that no replica runs on.
    """

    id: str
    total_bytes: int
    measured_at_s: float | None
    others_bytes: int | None
    weights_bytes: int = 0
    activations_peak_bytes: int = 0
    kv_in_use_bytes: int = 0
    kv_pool_bytes: int = 0
    utilization_percent: float | None = None
    in_use: bool = True


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One model copy as last seen.

    `gpus` is tensor-parallel times pipeline-parallel ranks: more than one makes it multi-GPU.
    KV bytes are over all its ranks. `load_tokens` counts prompt and expected output of all that
    runs or waits there; `capacity_tokens` is what its KV cache holds.
    """

    id: str
    gpus: int
    measured_at_s: float
    kv_capacity_bytes: int
    kv_free_bytes: int
    capacity_tokens: int
    load_tokens: int
    ready: bool = True


class FleetView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All that a policy may know of the machines, at the moment `now_s`.

    `machine_gpus` counts the GPUs that this machine has, used or not; None when unknown.
    """

    gpu_mode: GpuMode
    now_s: float
    replicas: tuple[ReplicaView, ...] = ()
    gpus: tuple[GpuView, ...] = ()
    machine_gpus: int | None = None


class Pressure(msgspec.Struct, frozen=True, gc=False):
    """Effective memory pressure, the maximum over the GPUs.

    `value` is None when no GPU's is known. `note` says which are unknown and why; with a value
    beside it, the value is a lower bound. `gpu_id` is the GPU with the maximum.
    """

    value: float | None
    gpu_id: str | None = None
    note: str | None = None


class RankedReplica(msgspec.Struct, frozen=True, gc=False):
    """A replica that can hold the request, and what put it at its place in the ranking.

    `headroom_bytes` is free KV less the request's least need (negative: it would wait).
    `load` is load over capacity in tokens, None where the reading is stale.
    """

    id: str
    route: Route
    preferred: bool
    fits_now: bool
    headroom_bytes: int
    load: float | None

    @property
    def why(self) -> str:
        """One line for people: pool, room and load."""
        pool = "preferred pool" if self.preferred else "other pool"
        megabytes = abs(self.headroom_bytes) / MB_BYTES
        room = (
            f"fits, {megabytes:.1f} MB of KV to spare"
            if self.fits_now
            else f"would wait, {megabytes:.1f} MB of KV short"
        )
        load = "load unknown (stale)" if self.load is None else f"load {self.load:.2f}"
        return f"{pool} ({self.route}); {room}; {load}"


class ExcludedReplica(msgspec.Struct, frozen=True, gc=False):
    """A replica that cannot take the request at all."""

    id: str
    why: Literal["not_ready", "too_small"]


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where one request belongs, and why.

    `route` is where it belongs; `executed` where it goes if the first of `ranking` takes it
    (None: no replica can). `unmet_recommendation` marks a multi-GPU request with no multi-GPU
    replica to run on. `notice` is the line to log (None when there is nothing to say) and
    `recommendation` the advice that goes with it.
    """

    request_id: str
    route: Route
    trigger: Trigger | None
    reasons: tuple[str, ...]
    input_tokens: int
    predicted_kv_bytes: int
    pressure: Pressure
    executed: Route | None
    unmet_recommendation: bool
    ranking: tuple[RankedReplica, ...]
    excluded: tuple[ExcludedReplica, ...] = ()
    notice: str | None = None
    recommendation: str | None = None

    @property
    def reason(self) -> str:
        """All reasons as one text, for a header or a log line."""
        return "; ".join(self.reasons) if self.reasons else NO_TRIGGER_REASON

    @property
    def predicted_kv_mb(self) -> float:
        return self.predicted_kv_bytes / MB_BYTES

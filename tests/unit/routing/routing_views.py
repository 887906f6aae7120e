"""Short ways to write facts and fleets in the routing tests."""

from __future__ import annotations

from typing import Any

from gpt_oss_server.facts import MB_BYTES, FleetView, GpuView, ReplicaView, RequestFacts

NOW_S = 100.0


def facts(input_tokens: int = 100, kv_mb: float = 10, **more: Any) -> RequestFacts:
    fields: dict[str, Any] = {
        "request_id": "req_1",
        "input_tokens": input_tokens,
        "max_output_tokens": 256,
        "predicted_kv_bytes": int(kv_mb * MB_BYTES),
    }
    return RequestFacts(**{**fields, **more})


def replica(id: str = "a", gpus: int = 1, **more: Any) -> ReplicaView:
    fields: dict[str, Any] = {
        "id": id,
        "gpus": gpus,
        "measured_at_s": NOW_S,
        "kv_capacity_bytes": 100_000 * MB_BYTES,
        "kv_free_bytes": 50_000 * MB_BYTES,
        "capacity_tokens": 1000,
        "load_tokens": 0,
    }
    return ReplicaView(**{**fields, **more})


def gpu(id: str = "0", used: int = 0, **more: Any) -> GpuView:
    """A GPU of 100 bytes of which others use `used`, so that a byte is a percent."""
    fields: dict[str, Any] = {
        "id": id,
        "total_bytes": 100,
        "measured_at_s": NOW_S,
        "others_bytes": used,
    }
    return GpuView(**{**fields, **more})


def fleet(*replicas: ReplicaView, gpus: tuple[GpuView, ...] = (), **more: Any) -> FleetView:
    fields: dict[str, Any] = {
        "gpu_mode": "single",
        "now_s": NOW_S,
        "replicas": replicas,
        "gpus": gpus,
    }
    return FleetView(**{**fields, **more})

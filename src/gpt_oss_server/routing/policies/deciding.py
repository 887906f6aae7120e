"""What a ranking policy is told, in the terms of the recorded decision.

Knows: how an `Ask` and the replicas' states become `RequestFacts` and a `FleetView`, as the desk of
a live server makes them. Does not know: triggers, rankings. What others than the replicas use of a
GPU is not known to a ranking policy: it counts as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpt_oss_server.admission.config import AdmissionConfig
from gpt_oss_server.facts import FleetView, GpuView, ReplicaView, RequestFacts
from gpt_oss_server.routing.policies.view import Ask, DeviceMemory, PoolMemory, ReplicaState

Memories = Mapping[str, PoolMemory]
"""By the pool's name."""


def request_facts(ask: Ask, memories: Memories) -> RequestFacts:
    """What the request costs in the pool of fewest GPUs. A bound that was left open is what the API
    then sets: its own default, or what the context still allows."""
    fewest = min(memories, key=lambda name: (len(memories[name].devices), name), default=None)
    memory = memories[fewest] if fewest is not None else None
    room = memory.context_tokens - ask.input_tokens if memory is not None else 0
    if memory is not None and memory.open_tokens is not None:
        room = min(room, memory.open_tokens)
    bound = ask.max_output_tokens or max(1, room)
    least = None
    predicted = 0
    if memory is not None:
        predicted = memory.kv.footprint(ask.input_tokens, bound).bytes
        if not ask.max_output_tokens:
            open_tokens = min(bound, AdmissionConfig().min_open_output_tokens)
            least = memory.kv.footprint(ask.input_tokens, open_tokens).bytes
    return RequestFacts(
        request_id=str(ask.number),
        input_tokens=ask.input_tokens,
        max_output_tokens=bound,
        predicted_kv_bytes=predicted,
        least_kv_bytes=least,
    )


def fleet_view(ask: Ask, replicas: Sequence[ReplicaState], memories: Memories) -> FleetView:
    """The replicas and their GPUs, all read at this moment."""
    views, gpus = [], []
    for replica in replicas:
        pool, memory = replica.pool, memories[replica.pool.name]
        used_tokens = pool.kv_tokens - replica.kv_free_tokens
        held_tokens = max(used_tokens, replica.kv_reserved_tokens)
        token_bytes = sum(device.token_bytes for device in memory.devices)
        views.append(
            ReplicaView(
                id=replica.id,
                gpus=pool.gpus,
                measured_at_s=ask.now_s,
                kv_capacity_bytes=memory.kv_capacity_bytes,
                kv_free_bytes=memory.kv_capacity_bytes - held_tokens * token_bytes,
                capacity_tokens=pool.kv_tokens,
                load_tokens=int(replica.assigned_tokens),
                ready=replica.ready,
            )
        )
        if replica.ready:
            gpus += [
                _gpu_view(f"{replica.id}:{rank}", device, used_tokens, replica.decoding, ask.now_s)
                for rank, device in enumerate(memory.devices)
            ]
    several = any(replica.pool.gpus > 1 for replica in replicas)
    return FleetView(
        gpu_mode="tensor" if several else "single",
        now_s=ask.now_s,
        replicas=tuple(views),
        gpus=tuple(gpus),
    )


def _gpu_view(
    name: str, device: DeviceMemory, used_tokens: int, sequences: int, now_s: float
) -> GpuView:
    in_use = used_tokens * device.token_bytes + sequences * device.sequence_bytes
    return GpuView(
        id=name,
        total_bytes=device.total_bytes,
        measured_at_s=now_s,
        others_bytes=0,
        weights_bytes=device.weights_bytes,
        activations_peak_bytes=device.activations_peak_bytes,
        kv_in_use_bytes=min(in_use, device.kv_pool_bytes) if device.kv_pool_bytes else in_use,
        kv_pool_bytes=device.kv_pool_bytes,
    )

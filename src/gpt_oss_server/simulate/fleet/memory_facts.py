"""What a simulated replica says of its memory: the engine's own account of itself, through the code
that a live server reads it with.

Knows: how an `EngineInfo` becomes what policies are told. Does not know: how it was laid out.
"""

from __future__ import annotations

from gpt_oss_server.dispatch.estimate import capacity_of, estimator_for, kv_capacity_bytes
from gpt_oss_server.dispatch.ranks import devices_of
from gpt_oss_server.routing.policies.view import DeviceMemory, PoolMemory
from gpt_oss_server.types import EngineInfo


def memory_facts(info: EngineInfo, gpu_bytes: int, open_tokens: int | None = None) -> PoolMemory:
    """The memory of a replica on GPUs of `gpu_bytes` each, behind an API that bounds answers to
    `open_tokens` where clients do not."""
    windows = {
        group.name: group.max_blocks_per_sequence
        for group in capacity_of(info).groups
        if group.max_blocks_per_sequence is not None
    }
    return PoolMemory(
        kv=estimator_for(info),
        kv_capacity_bytes=kv_capacity_bytes(info),
        context_tokens=info.max_model_len,
        open_tokens=open_tokens,
        devices=tuple(
            DeviceMemory(
                total_bytes=gpu_bytes,
                weights_bytes=device.weights_bytes,
                activations_peak_bytes=device.activations_peak_bytes,
                kv_pool_bytes=device.kv_pool_bytes,
                token_bytes=sum(
                    size for name, size in device.block_bytes.items() if name not in windows
                )
                // info.block_size,
                sequence_bytes=sum(
                    size * windows[name]
                    for name, size in device.block_bytes.items()
                    if name in windows
                ),
            )
            for device in devices_of(info)
        ),
    )

"""A simulated replica like a server that runs: its limits and pools, not those of a layout.

Knows: what a server said of itself, the model's config. Does not know: how it was asked, fits.
Where it did not say, the layout's own answer stands for it, or this server's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.calibrate.served import OWN, Served
from gpt_oss_server.simulate.cost.gpu_types import GpuType
from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape, lay_out
from gpt_oss_server.simulate.cost.roofline import Efficiency, ModelCost

UNKNOWN = "measured"
_DEFAULTS = EngineSettings()
# Of vLLM on a data-centre GPU; stated where they stand in for what a server does not say.
_OTHER_SEQS, _OTHER_BATCH_TOKENS = 256, 8192
_OWN_CPU_BATCH_TOKENS = 256


def unknown_hardware() -> GpuType:
    """Hardware of which nothing is known: what it attains is fitted against these round figures,
    and its memory is what the server says its pool holds."""
    return GpuType(
        name=UNKNOWN,
        title="as measured",
        memory_bytes=1 << 45,
        bandwidth_bytes_s=1e10,
        bf16_flops_s=1e11,
        link_bytes_s=1e10,
        source="calibrated on a running server",
        bandwidth_efficiency=1.0,
        calibrated=True,
    )


def settings_of(served: Served) -> EngineSettings:
    """The engine's limits. Raises ConfigError for impossible ones."""
    own = served.server == OWN
    batch_tokens = _OTHER_BATCH_TOKENS
    if own:
        batch_tokens = _OWN_CPU_BATCH_TOKENS if served.device == "cpu" else 2048
    return replace(
        _DEFAULTS,
        max_num_seqs=served.max_num_seqs or (64 if own else _OTHER_SEQS),
        max_batch_tokens=served.max_batch_tokens or batch_tokens,
        block_size=served.block_size or _DEFAULTS.block_size,
        prefill_order=served.prefill_order,
        oldest_share=served.oldest_share,
        prefix_caching=served.prefix_caching,
        admission=served.admission,
        admission_mode=served.admission_mode,
        micro_batches=served.micro_batches if served.micro_batches > 1 else None,
    )


def limited(replica: Replica, asked: EngineSettings) -> Replica:
    """A replica like a server, with the queue before it that was asked for. Raises ConfigError
    where another limit was asked for than the server has: how fast it would be with that was not
    measured."""
    for name in ("max_num_seqs", "max_batch_tokens", "prefill_order", "admission"):
        value, own = getattr(asked, name), getattr(replica.settings, name)
        if value not in (own, getattr(_DEFAULTS, name)):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} {value}: the calibrated server was measured with {own}, and is simulated "
                f"with that; leave {flag} out, or calibrate it with {value}"
            )
    settings = replace(replica.settings, max_waiting=asked.max_waiting, max_wait_s=asked.max_wait_s)
    return replace(replica, settings=settings)


def replica_like(
    served: Served,
    config: Mapping[str, Any],
    model: ModelCost,
    shape: Shape,
    efficiency: Efficiency,
) -> Replica:
    """One replica as the server is. Raises as `lay_out` does where the pool is not known."""
    replica = lay_out(config, model, shape, settings_of(served), efficiency)
    if served.kv_blocks is None and shape.gpu.name != UNKNOWN:
        return _within_context(replica, served)
    positions = served.max_model_len or model.shape.max_positions
    size = replica.settings.block_size
    blocks = served.kv_blocks
    if blocks is None:
        # Nothing says how much memory there is: room for every slot's longest sequence.
        blocks = replica.settings.max_num_seqs * -(-(positions or 8192) // size)
    return _within_context(_with_pools(replica.with_blocks(blocks), served), served)


def _with_pools(replica: Replica, served: Served) -> Replica:
    """The blocks of each pool that the server names."""
    groups = tuple(
        msgspec.structs.replace(group, num_blocks=served.pools.get(group.name, group.num_blocks))
        for group in replica.info.kv_groups
    )
    return replace(replica, info=msgspec.structs.replace(replica.info, kv_groups=groups))


def _within_context(replica: Replica, served: Served) -> Replica:
    longest = served.max_model_len
    if longest is None:
        return replica
    info = msgspec.structs.replace(replica.info, max_model_len=longest)
    return replace(replica, info=info, longest_tokens=min(replica.longest_tokens, longest))

"""What the front tells a worker to be: one frozen record, sent once over the wire.

Knows: the settings an engine needs. Does not know: where they came from, nor what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs to load a model and serve it.

    `max_batch_tokens`, `max_model_len` and `kv_cache_bytes` of None mean "derive": the token
    budget from the device, the length from the model's config, the pool from free memory.
    `hang_after_s` is how long a worker that has work may be silent before it is killed.

    `gpus` is the number of ranks of the modes tensor and pipeline; `micro_batches` of None means
    one step in flight per stage. A replica of several ranks of which none makes progress for
    `rank_timeout_s` while a step is under way ends. `max_memory`, `device_map` and `offload` are
    for the mode auto. `lookahead` launches a step before the tokens of the one before it are known
    to the host; None means on GPUs. `eager`: no step is recorded to be replayed.
    """

    folder: str
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "random"] = "auto"
    weights_seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_batch_tokens: int | None = None
    block_size: int = 16
    kv_cache_bytes: int | None = None
    memory_budget_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    prefix_caching: bool = True
    prefill_order: Literal["fcfs", "shortest"] = "shortest"
    prefill_oldest_share: float = 0.25
    attention_backend: str = "auto"
    experts: Literal["auto", "triton", "torch", "transformers"] = "auto"
    threads: int = 0
    max_waiting: int = 65_536
    hang_after_s: float = 120.0
    show_progress: bool = False
    gpu_mode: Literal["single", "auto", "tensor", "pipeline"] = "single"
    gpus: int = 1
    micro_batches: int | None = None
    rank_timeout_s: float = 8.0
    max_memory: Mapping[str, str] | None = None
    device_map: Mapping[str, str] | None = None
    offload: Literal["none", "cpu", "disk"] = "none"
    lookahead: bool | None = None
    eager: bool = False

    @property
    def world(self) -> int:
        """How many processes the model is spread over."""
        return self.gpus if self.gpu_mode in ("tensor", "pipeline") else 1

    @property
    def depth(self) -> int:
        """How many steps may be in flight: one per stage, unless told otherwise."""
        if self.gpu_mode != "pipeline" or self.world == 1:
            return 1
        return self.micro_batches or self.gpus

"""What a server says of itself that matters for simulating one like it.

Knows: names and limits. Does not know: how they were learnt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OWN = "gpt-oss-server"


@dataclass(frozen=True)
class Served:
    """A running server. None: it does not say. `pools` are the blocks of each KV pool by name,
    `kv_blocks` of the one that grows; `admission` is `reserve` where KV is reserved before a
    request reaches the engine, as this server does, else `engine`."""

    server: str
    version: str
    model: str
    max_model_len: int | None = None
    block_size: int | None = None
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_batch_tokens: int | None = None
    prefill_order: str = "fcfs"
    oldest_share: float = 0.25
    prefix_caching: bool = True
    admission: str = "engine"
    admission_mode: str = "optimistic"
    gpu_mode: str | None = None
    gpus: int | None = None
    device: str | None = None
    gpu_name: str | None = None
    micro_batches: int = 1
    pools: dict[str, int] = field(default_factory=dict)
    busy: int = 0
    """Requests that others had there when it was asked."""

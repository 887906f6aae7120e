"""Tile sizes of the attention kernels, by device generation and by bytes of a KV row.

Knows: a small table and why it is so. Does not know: kernels. Nothing is searched for at run
time; `benchmarks/gpu/attention.py` measures the alternatives.

Decode moves bytes. To keep an H100 busy about 3 TB/s x 700 ns = 2.1 MB must be on the way, 16 KB
per multiprocessor. A tile of 64 rows of a 64-wide bfloat16 head is 8 KB of keys and 8 KB of
values; with three stages two such tiles are in shared memory (36 KB with what else it needs), so
six programs of 66 registers a thread fit a multiprocessor and 192 KB are on the way: a wide
margin for table lookups and the ends of chunks. Wider rows take fewer rows per tile.

Prefill multiplies. 128 rows (16 tokens x 8 heads of a group) are one product for each of two
warpgroups; per KV tile of 64 rows they do 128 x 64 x 64 x 4 = 2.1 MFLOP for 16 KB read from L2.
With eight warps that is 117 registers a thread and 64 KB, two programs to a multiprocessor: while
one computes exponentials the other multiplies.

The registers and bytes are what Triton 3.6 and 3.9 compile for compute capability 9.0, without
spills but for float32, whose products run outside the matrix units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """`tile`: KV tokens per loop turn. `least_chunk`: KV tokens that are worth a program of their
    own. `items_per_multiprocessor`: into how many programs a full device's work is cut."""

    tile: int
    least_chunk: int
    items_per_multiprocessor: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """`rows`: query tokens x heads of a group per program. The rest as for decode."""

    rows: int
    tile: int
    least_chunk: int
    items_per_multiprocessor: int
    warps: int
    stages: int


# By the most bytes that a row of keys plus a row of values may have.
_DECODE = {
    256: DecodeTuning(64, 128, 8, warps=4, stages=3),
    512: DecodeTuning(32, 128, 8, warps=4, stages=3),
    1024: DecodeTuning(32, 128, 4, warps=4, stages=2),
    2048: DecodeTuning(16, 64, 4, warps=4, stages=2),
}
_PREFILL = {
    256: PrefillTuning(128, 64, 512, 4, warps=8, stages=3),
    512: PrefillTuning(128, 64, 512, 4, warps=8, stages=2),
    1024: PrefillTuning(64, 32, 256, 4, warps=4, stages=2),
    2048: PrefillTuning(32, 16, 128, 4, warps=4, stages=1),
}
# Exact products in float32: for comparisons, not for speed.
_PREFILL_FLOAT32 = PrefillTuning(32, 32, 256, 8, warps=4, stages=2)


def _row_bytes(keys: torch.Tensor, values: torch.Tensor) -> int:
    return (keys.shape[-1] + values.shape[-1]) * keys.element_size()


def decode_tuning(keys: torch.Tensor, values: torch.Tensor) -> DecodeTuning:
    """For pools [num_blocks, block_size, kv_heads, dim]."""
    return _DECODE[_class(_row_bytes(keys, values))]


def prefill_tuning(keys: torch.Tensor, values: torch.Tensor) -> PrefillTuning:
    """For pools [num_blocks, block_size, kv_heads, dim]."""
    if keys.dtype == torch.float32:
        return _PREFILL_FLOAT32
    return _PREFILL[_class(_row_bytes(keys, values))]


def _class(row_bytes: int) -> int:
    return next((most for most in _DECODE if row_bytes <= most), max(_DECODE))

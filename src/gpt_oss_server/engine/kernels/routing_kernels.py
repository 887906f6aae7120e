# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""The kernels of `routing`: logits, the choice, counts, the sort.

Knows: what each program computes. Does not know: how many there are, or what for.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _live_tokens(tokens, live):
    count = tokens
    if live is not None:
        count = tl.minimum(tl.load(live), tokens)
    return count


@triton.jit(do_not_specialize=["tokens"])
def logits_kernel(
    hidden,
    weight,
    partial,
    tokens,
    stride,
    live,
    WIDTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    SPAN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (b, s): block b of tokens times the s-th SPAN of the hidden size."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = rows < _live_tokens(tokens, live)
    experts = tl.arange(0, BLOCK_E)
    start = tl.program_id(1) * SPAN
    sums = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for k in tl.range(0, SPAN, BLOCK_K):
        inner = start + k + tl.arange(0, BLOCK_K)
        x = tl.load(
            hidden + rows.to(tl.int64)[:, None] * stride + inner[None, :],
            mask=there[:, None] & (inner < WIDTH)[None, :],
            other=0.0,
        )
        w = tl.load(
            weight + experts[None, :] * WIDTH + inner[:, None],
            mask=(experts < EXPERTS)[None, :] & (inner < WIDTH)[:, None],
            other=0.0,
        )
        if WIDE:  # for the interpreter, which has no arithmetic in bfloat16
            x, w = x.to(tl.float32), w.to(tl.float32)
        sums = tl.dot(x, w, sums, input_precision="ieee")
    tl.store(
        partial + (tl.program_id(1) * tokens + rows)[:, None] * EXPERTS + experts[None, :],
        sums,
        mask=there[:, None] & (experts < EXPERTS)[None, :],
    )


@triton.jit(do_not_specialize=["tokens", "capacity"])
def choose_kernel(
    partial,
    bias,
    ids,
    weights,
    histogram,
    order,
    tiles,
    tokens,
    capacity,
    live,
    SPLITS: tl.constexpr,
    EXPERTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    OVER_ALL: tl.constexpr,
    SINGLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Program b: block b of tokens. Writes ids, weights and the block's count per expert; with
    SINGLE, order and tiles too."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = (rows < _live_tokens(tokens, live))[:, None]
    experts = tl.arange(0, BLOCK_E)
    real = (experts < EXPERTS)[None, :]
    logits = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for split in tl.static_range(SPLITS):
        logits += tl.load(
            partial + (split * tokens + rows)[:, None] * EXPERTS + experts[None, :],
            mask=there & real,
            other=0.0,
        )
    if bias is not None:
        logits += tl.load(bias + experts, mask=experts < EXPERTS, other=0.0).to(tl.float32)[None, :]
    slot = _top(logits, real, experts, PER_TOKEN, BLOCK_T, BLOCK_E)
    chosen = slot >= 0
    counted = real if OVER_ALL else chosen
    peak = tl.max(tl.where(counted, logits, float("-inf")), axis=1)[:, None]
    mass = tl.exp(logits - peak)
    total = tl.sum(tl.where(counted, mass, 0.0), axis=1)[:, None]
    at = rows[:, None] * PER_TOKEN + slot
    written = chosen & (rows < tokens)[:, None]
    tl.store(weights + at, mass / total, mask=written)
    # Padding is given an expert that there is not.
    named = tl.where(there, experts[None, :], EXPERTS)
    tl.store(ids + at, named, mask=written)
    placed = (chosen & there).to(tl.int32)
    counts = tl.sum(placed, axis=0)
    if SINGLE:
        starts = tl.cumsum(counts, axis=0) - counts
        rank = tl.cumsum(placed, axis=0) - placed
        tl.store(order + starts[None, :] + rank, at, mask=placed > 0)
        _lay_tiles(tiles, counts, starts, 0, 1, capacity, ROWS, BLOCK_TILES, BLOCK_E)
    else:
        tl.store(histogram + tl.program_id(0) * EXPERTS + experts, counts, mask=experts < EXPERTS)


@triton.jit
def _top(
    logits,
    real,
    experts,
    PER_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Each expert's rank among the row's PER_TOKEN largest, else -1. Experts are distinct even
    where logits are not numbers: an unchosen real one always beats what is taken or not there."""
    lowest: tl.constexpr = -3.0e38
    finite = tl.where(logits == logits, tl.maximum(logits, lowest), lowest)
    slot = tl.full((BLOCK_T, BLOCK_E), -1, tl.int32)
    for j in tl.static_range(PER_TOKEN):
        free = tl.where(real & (slot < 0), finite, float("-inf"))
        best = tl.argmax(free, axis=1)
        slot = tl.where(experts[None, :] == best[:, None], j, slot)
    return slot


@triton.jit
def _chosen_slots(
    ids,
    rows,
    tokens,
    experts,
    EXPERTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`_top`'s result, from ids in memory."""
    slot = tl.full((BLOCK_T, BLOCK_E), -1, tl.int32)
    for j in tl.static_range(PER_TOKEN):
        choice = tl.load(ids + rows * PER_TOKEN + j, mask=rows < tokens, other=-1)
        choice = tl.where(choice < EXPERTS, choice, -1)
        slot = tl.where(experts[None, :] == choice[:, None], j, slot)
    return slot


@triton.jit(do_not_specialize=["tokens"])
def count_kernel(
    ids,
    histogram,
    tokens,
    EXPERTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Program b: how many of block b's tokens chose each expert."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    slot = _chosen_slots(ids, rows, tokens, experts, EXPERTS, PER_TOKEN, BLOCK_T, BLOCK_E)
    counts = tl.sum((slot >= 0).to(tl.int32), axis=0)
    tl.store(histogram + tl.program_id(0) * EXPERTS + experts, counts, mask=experts < EXPERTS)


@triton.jit(do_not_specialize=["tokens", "capacity", "blocks"])
def sort_kernel(
    ids,
    histogram,
    order,
    tiles,
    tokens,
    capacity,
    blocks,
    EXPERTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    SINGLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Program b: writes block b's pairs where they belong, and its share of the tiles."""
    block = tl.program_id(0)
    rows = block * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    slot = _chosen_slots(ids, rows, tokens, experts, EXPERTS, PER_TOKEN, BLOCK_T, BLOCK_E)
    placed = (slot >= 0).to(tl.int32)
    before = tl.zeros((BLOCK_E,), tl.int32)
    if SINGLE:
        counts = tl.sum(placed, axis=0)
    else:
        counts = tl.zeros((BLOCK_E,), tl.int32)
        for other in tl.range(0, blocks):
            count = tl.load(histogram + other * EXPERTS + experts, mask=experts < EXPERTS, other=0)
            before += tl.where(other < block, count, 0)
            counts += count
    starts = tl.cumsum(counts, axis=0) - counts
    rank = tl.cumsum(placed, axis=0) - placed
    tl.store(
        order + (starts + before)[None, :] + rank,
        rows[:, None] * PER_TOKEN + slot,
        mask=placed > 0,
    )
    _lay_tiles(tiles, counts, starts, block, blocks, capacity, ROWS, BLOCK_TILES, BLOCK_E)


@triton.jit
def _lay_tiles(
    tiles,
    counts,
    starts,
    part,
    parts,
    capacity,
    ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The `part`-th of `parts` shares of the tiles of experts with these counts and starts."""
    needed = (counts + ROWS - 1) // ROWS
    ends = tl.cumsum(needed, axis=0)
    experts = tl.arange(0, BLOCK_E)
    for first in tl.range(part * BLOCK_TILES, capacity, parts * BLOCK_TILES):
        tile = first + tl.arange(0, BLOCK_TILES)
        expert = tl.sum((ends[None, :] <= tile[:, None]).to(tl.int32), axis=1)
        own = experts[None, :] == expert[:, None]
        within = tile[:, None] - (ends - needed)[None, :]
        row = tl.sum(tl.where(own, starts[None, :] + within * ROWS, 0), axis=1)
        stop = tl.sum(tl.where(own, (starts + counts)[None, :], 0), axis=1)
        mask = tile < capacity
        tl.store(tiles + tile, tl.where(expert < BLOCK_E, expert, -1), mask=mask)
        tl.store(tiles + capacity + tile, row, mask=mask)
        tl.store(tiles + 2 * capacity + tile, stop, mask=mask)

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""Attention of one query token per sequence over its blocks: the decode step.

One program takes one KV head and one item (a range of one sequence's keys, `paged_plan`). The
query heads of that KV head are the rows of its products, padded to 16, so each key and value is
read once. Keys are found by position through the block table, so a window starts exactly at its
first key, and its blocks before that are never touched. Items that are their sequence's only one
finish in place, sinks included; the others leave a partial for `paged_merge`.

Bytes: every key and value of the window once, `2 * tokens * kv_heads * dim * itemsize`; queries,
table and partials (heads * (v_dim + 1) * 4 per item, written and read) are a few per cent of that.
Floor: those bytes at the copy bandwidth. gpt-oss-20b, 64 sequences of 8k: 1.07 GB a full layer,
0.36 ms at 3.0 TB/s; expected 0.40-0.45 ms. A window of 128: 16.8 MB, floor 5.6 us, expected
8-10 us. Products are 16 FLOP per byte, 48 TFLOP/s at full bandwidth: no limit. One launch, and a
second to merge where keys may be split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpt_oss_server.engine.kernels.online_softmax import (
    fold,
    log_sum,
    normalized,
    scores,
    with_sink,
)
from gpt_oss_server.engine.kernels.paged_load import load_blocks, load_rows
from gpt_oss_server.engine.kernels.paged_merge import Partials
from gpt_oss_server.engine.kernels.paged_plan import Work
from gpt_oss_server.engine.kernels.paged_problem import PagedQuery, least_rows, padded_dim
from gpt_oss_server.engine.kernels.paged_tuning import DecodeTuning
from gpt_oss_server.engine.kernels.usable import interpreted


@triton.jit(do_not_specialize=["table_row"])
def _decode_kernel(
    query,
    keys,
    values,
    table,
    sinks,
    out,
    part_out,
    part_lse,
    items,
    scale,
    softcap,
    table_row,
    q_token,
    q_head,
    k_block,
    k_slot,
    k_head,
    v_block,
    v_slot,
    v_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    K_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_DIM: tl.constexpr,
    V_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
):
    head = tl.program_id(0)
    item = tl.program_id(1)
    record = items + item * 8
    if tl.load(record + 2) == 0:
        return
    seq = tl.load(record).to(tl.int64)
    row = tl.load(record + 1).to(tl.int64)
    if SPLIT:
        start = tl.load(record + 4)
        stop = tl.load(record + 5)
    else:
        stop = tl.load(record + 3) + 1
        start = tl.maximum(stop - WINDOW, 0) if WINDOW > 0 else 0

    member = tl.arange(0, ROWS)
    heads = head * GROUP + member
    real = member < GROUP
    k_dims = tl.arange(0, K_PAD)
    v_dims = tl.arange(0, V_PAD)
    q_at = query + row * q_token + heads[:, None] * q_head + k_dims[None, :]
    q = tl.load(q_at, real[:, None] & (k_dims < K_DIM)[None, :], 0.0)

    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, V_PAD], dtype=tl.float32)
    row_table = table + seq * table_row
    own_keys = keys + head * k_head
    own_values = values + head * v_head
    offsets = tl.arange(0, TILE)
    block = load_blocks(row_table, start + offsets, stop, BLOCK)
    for first in range(start, stop, TILE):
        at = first + offsets
        seen = at < stop
        slot = at % BLOCK
        k = load_rows(own_keys + (block * k_block + slot * k_slot), seen, K_DIM, K_PAD, True)
        v = load_rows(own_values + (block * v_block + slot * v_slot), seen, V_DIM, V_PAD, True)
        block = load_blocks(row_table, at + TILE, stop, BLOCK)
        x = scores(q, k, scale, softcap, SOFTCAP, WIDEN)
        x = tl.where(seen[None, :], x, float("-inf"))
        top, total, acc = fold(x, v, top, total, acc, WIDEN)

    stored = real[:, None] & (v_dims < V_DIM)[None, :]
    whole = True
    if SPLIT:
        whole = tl.load(record + 6) != 0
    if whole:
        if SINKS:
            sink = tl.load(sinks + heads, real, 0.0).to(tl.float32) * 1.4426950408889634
            total, acc = with_sink(sink, top, total, acc)
        o_at = out + (row * HEADS + heads)[:, None] * V_DIM + v_dims[None, :]
        tl.store(o_at, normalized(total, acc).to(out.dtype.element_ty), stored)
    else:
        partial = item.to(tl.int64) * HEADS + heads
        tl.store(
            part_out + partial[:, None] * V_DIM + v_dims[None, :], normalized(total, acc), stored
        )
        tl.store(part_lse + partial, log_sum(top, total), real)


def paged_decode(
    problem: PagedQuery,
    work: Work,
    partials: Partials | None,
    out: torch.Tensor,
    tuning: DecodeTuning,
) -> None:
    """Write the attention of `work`'s sequences to their rows of `out` [T, heads, v_dim]
    (contiguous), or to `partials` where `work` is split. One launch."""
    p = problem
    kv_heads, k_dim = p.keys.shape[2:]
    v_dim = p.values.shape[3]
    heads = p.query.shape[1]
    group = heads // kv_heads
    _decode_kernel[(kv_heads, len(work.items))](
        p.query,
        p.keys,
        p.values,
        p.table,
        p.query if p.sinks is None else p.sinks,
        out,
        out if partials is None else partials.out,
        out if partials is None else partials.lse,
        work.items,
        *p.scales,
        p.table.stride(0),
        *p.query.stride()[:2],
        *p.keys.stride()[:3],
        *p.values.stride()[:3],
        HEADS=heads,
        GROUP=group,
        ROWS=least_rows(group),
        K_DIM=k_dim,
        K_PAD=padded_dim(k_dim),
        V_DIM=v_dim,
        V_PAD=padded_dim(v_dim),
        BLOCK=p.keys.shape[1],
        WINDOW=p.window or 0,
        TILE=tuning.tile,
        SPLIT=work.units is not None,
        SINKS=p.sinks is not None,
        SOFTCAP=p.softcap is not None,
        WIDEN=interpreted(),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
    )

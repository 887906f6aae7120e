# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""Attention of chunks of prompts over their blocks, prefix included: the prefill step.

One program takes one KV head and one tile of query tokens (or a range of that tile's keys, where
there are too few tiles to fill the device, as with a short chunk after a long prefix). The rows of
its products are query tokens times the heads of the group, so that a tile spans few positions:
16 tokens for 8 heads and 128 rows. That wastes less at the diagonal and at both ends of a window
(128 + 15 keys seen for 128 needed, where 128 tokens of one head would see 255) and chunks may be
short. Keys before the window's first and after the tile's last token are never read; of the rest,
without a window, only those beside the diagonal are masked.

Work: 4 * keys seen * dim FLOP a head and token. gpt-oss-20b, a prompt of 8k: 0.55 TFLOP a full
layer, 0.7 ms at 790 TFLOP/s; heads of 64 are bound by exp2 as much (2.1 G of them, 0.6 ms), so
1.4-2 ms is expected; a layer with a window of 128: 0.06 ms floor by bytes, 0.15 ms expected. Over
24 layers about 20-25 ms of the 205 ms that 40,000 tokens/s allow. L2 reads: tiles * keys * 256 B,
4.3 GB a full layer. One launch, and a second to merge where keys may be split.
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
from gpt_oss_server.engine.kernels.paged_problem import PagedQuery, padded_dim
from gpt_oss_server.engine.kernels.paged_tuning import PrefillTuning
from gpt_oss_server.engine.kernels.usable import interpreted


@triton.jit
def _sweep(
    q,
    positions,
    start,
    stop,
    keys,
    values,
    table,
    scale,
    softcap,
    top,
    total,
    acc,
    k_block,
    k_slot,
    v_block,
    v_slot,
    K_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_DIM: tl.constexpr,
    V_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Fold keys [start, stop) of one KV head into the state. Unless MASKED, every row sees all of
    them and their number is a multiple of TILE."""
    offsets = tl.arange(0, TILE)
    block = load_blocks(table, start + offsets, stop, BLOCK)
    for first in range(start, stop, TILE):
        at = first + offsets
        slot = at % BLOCK
        held = at < stop
        k = load_rows(keys + (block * k_block + slot * k_slot), held, K_DIM, K_PAD, MASKED)
        v = load_rows(values + (block * v_block + slot * v_slot), held, V_DIM, V_PAD, MASKED)
        block = load_blocks(table, at + TILE, stop, BLOCK)
        x = scores(q, k, scale, softcap, SOFTCAP, WIDEN)
        if MASKED:
            seen = (at[None, :] <= positions[:, None]) & held[None, :]
            if WINDOW > 0:
                seen = seen & (at[None, :] > positions[:, None] - WINDOW)
            x = tl.where(seen, x, float("-inf"))
        top, total, acc = fold(x, v, top, total, acc, WIDEN)
    return top, total, acc


@triton.jit(do_not_specialize=["table_row"])
def _prefill_kernel(
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
    GROUP_PAD: tl.constexpr,
    QUERIES: tl.constexpr,
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
    # A sequence's last tiles see the most keys: they begin first.
    item = tl.num_programs(1) - 1 - tl.program_id(1)
    record = items + item * 8
    tokens = tl.load(record + 2)
    if tokens == 0:
        return
    seq = tl.load(record).to(tl.int64)
    row = tl.load(record + 1).to(tl.int64)
    position = tl.load(record + 3)
    if SPLIT:
        start = tl.load(record + 4)
        stop = tl.load(record + 5)
    else:
        start = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else 0
        stop = position + tokens

    member = tl.arange(0, QUERIES * GROUP_PAD)
    nth = member // GROUP_PAD
    heads = head * GROUP + member % GROUP_PAD
    real = (nth < tokens) & (member % GROUP_PAD < GROUP)
    positions = position + nth
    k_dims = tl.arange(0, K_PAD)
    v_dims = tl.arange(0, V_PAD)
    q_at = query + ((row + nth) * q_token + heads * q_head)[:, None] + k_dims[None, :]
    q = tl.load(q_at, real[:, None] & (k_dims < K_DIM)[None, :], 0.0)

    top = tl.full([QUERIES * GROUP_PAD], float("-inf"), dtype=tl.float32)
    total = tl.zeros([QUERIES * GROUP_PAD], dtype=tl.float32)
    acc = tl.zeros([QUERIES * GROUP_PAD, V_PAD], dtype=tl.float32)
    row_table = table + seq * table_row
    own_keys = keys + head * k_head
    own_values = values + head * v_head
    middle = start
    if WINDOW == 0:
        # Whole tiles of keys that the tile's first token sees, and so all of its tokens.
        middle = start + tl.maximum(tl.minimum(position + 1, stop) - start, 0) // TILE * TILE
        top, total, acc = _sweep(
            q, positions, start, middle, own_keys, own_values, row_table, scale, softcap,
            top, total, acc, k_block, k_slot, v_block, v_slot,
            K_DIM, K_PAD, V_DIM, V_PAD, BLOCK, WINDOW, TILE, False, SOFTCAP, WIDEN,
        )  # fmt: skip
    top, total, acc = _sweep(
        q, positions, middle, stop, own_keys, own_values, row_table, scale, softcap,
        top, total, acc, k_block, k_slot, v_block, v_slot,
        K_DIM, K_PAD, V_DIM, V_PAD, BLOCK, WINDOW, TILE, True, SOFTCAP, WIDEN,
    )  # fmt: skip

    stored = real[:, None] & (v_dims < V_DIM)[None, :]
    whole = True
    if SPLIT:
        whole = tl.load(record + 6) != 0
    if whole:
        if SINKS:
            sink = tl.load(sinks + heads, real, 0.0).to(tl.float32) * 1.4426950408889634
            total, acc = with_sink(sink, top, total, acc)
        o_at = out + ((row + nth) * HEADS + heads)[:, None] * V_DIM + v_dims[None, :]
        tl.store(o_at, normalized(total, acc).to(out.dtype.element_ty), stored)
    else:
        partial = (item.to(tl.int64) * QUERIES + nth) * HEADS + heads
        part_at = part_out + partial[:, None] * V_DIM + v_dims[None, :]
        tl.store(part_at, normalized(total, acc), stored)
        tl.store(part_lse + partial, log_sum(top, total), real)


def group_rows(group: int) -> int:
    """Rows of a product that one query token's heads of one group take."""
    return 1 << (group - 1).bit_length()


def queries_per_tile(group: int, tuning: PrefillTuning) -> int:
    """Query tokens of a tile: a power of two."""
    return max(1, tuning.rows // group_rows(group))


def paged_prefill(
    problem: PagedQuery,
    work: Work,
    partials: Partials | None,
    out: torch.Tensor,
    tuning: PrefillTuning,
) -> None:
    """Write the attention of `work`'s tiles to their rows of `out` [T, heads, v_dim]
    (contiguous), or to `partials` where `work` is split. One launch."""
    p = problem
    kv_heads, k_dim = p.keys.shape[2:]
    v_dim = p.values.shape[3]
    heads = p.query.shape[1]
    group = heads // kv_heads
    _prefill_kernel[(kv_heads, len(work.items))](
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
        GROUP_PAD=group_rows(group),
        QUERIES=work.queries_per_tile,
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

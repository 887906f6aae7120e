# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""Partial results over a query's keys become one: weighted by their log-sum-exp, with the sink.

Bytes: `items * heads * (v_dim + 1) * 4`, of tiles that were split only; the others are passed
over. One launch of `tiles * queries_per_tile * heads` one-warp programs: 2-3 us.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gpt_oss_server.engine.kernels.online_softmax import normalized
from gpt_oss_server.engine.kernels.paged_plan import Work
from gpt_oss_server.engine.kernels.paged_problem import PagedQuery, padded_dim

_PARTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Partials:
    """`out` [items, queries_per_tile, heads, v_dim] float32, each normalised by itself; `lse`
    [items, queries_per_tile, heads] log2 of its summed exponentials. Scratch: valid from one
    attention launch to its merge."""

    out: torch.Tensor
    lse: torch.Tensor


def partials_for(work: Work, heads: int, v_dim: int) -> Partials:
    """Room for every item of `work`."""
    shape = (len(work.items), work.queries_per_tile, heads)
    device = work.items.device
    return Partials(
        torch.empty(*shape, v_dim, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
    )


@triton.jit
def _merge_kernel(
    part_out,
    part_lse,
    sinks,
    out,
    units,
    HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    V_PAD: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One program merges one head of one query token."""
    nth = tl.program_id(0) % QUERIES
    unit = units + tl.program_id(0) // QUERIES * 4
    head = tl.program_id(1)
    count = tl.load(unit + 3)
    if count <= 1:
        return
    if nth >= tl.load(unit + 1):
        return
    row = tl.load(unit).to(tl.int64) + nth
    first = tl.load(unit + 2)
    dims = tl.arange(0, V_PAD)
    parts = tl.arange(0, PARTS)

    top = tl.full([1], float("-inf"), dtype=tl.float32)
    total = tl.zeros([1], dtype=tl.float32)
    acc = tl.zeros([1, V_PAD], dtype=tl.float32)
    for begin in range(0, count, PARTS):
        here = begin + parts < count
        part = ((first + begin + parts).to(tl.int64) * QUERIES + nth) * HEADS + head
        lse = tl.load(part_lse + part, here, float("-inf"))
        at = part_out + part[:, None] * V_DIM + dims[None, :]
        value = tl.load(at, here[:, None] & (dims < V_DIM)[None, :], 0.0)
        higher = tl.maximum(top, tl.max(lse, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(lse - shift)
        decay = tl.exp2(top - shift)
        total = total * decay + tl.sum(weight, 0)
        acc = acc * decay[:, None] + tl.sum(value * weight[:, None], 0)[None, :]
        top = higher
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        higher = tl.maximum(top, sink)
        decay = tl.exp2(top - higher)
        total = total * decay + tl.exp2(sink - higher)
        acc = acc * decay[:, None]
    at = out + (row * HEADS + head) * V_DIM + dims[None, :]
    tl.store(at, normalized(total, acc).to(out.dtype.element_ty), (dims < V_DIM)[None, :])


def merge(problem: PagedQuery, work: Work, partials: Partials, out: torch.Tensor) -> None:
    """Write the rows of `out` [T, heads, v_dim] whose tiles of `work` were split. One launch.

    Raises:
        ValueError: `work` is not split.
    """
    if work.units is None:
        raise ValueError("only split work is merged")
    heads, v_dim = out.shape[1:]
    _merge_kernel[(len(work.units) * work.queries_per_tile, heads)](
        partials.out,
        partials.lse,
        out if problem.sinks is None else problem.sinks,
        out,
        work.units,
        HEADS=heads,
        V_DIM=v_dim,
        V_PAD=padded_dim(v_dim),
        QUERIES=work.queries_per_tile,
        PARTS=_PARTS_AT_ONCE,
        SINKS=problem.sinks is not None,
        num_warps=1 if v_dim <= 64 else 2,
    )

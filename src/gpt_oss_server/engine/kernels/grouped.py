# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""A mixture's two products over sorted pairs, and their sum per token, for plain weights.

Knows: matrices stacked by expert, the gated activations between them. Does not know: how experts
are chosen (`routing`), weights in fewer bits (`mxfp4`), modules.

The first product gathers the rows of hidden states by the sorted order and ends in bias and gate,
so that its 2 I numbers per pair never reach memory. The second writes each pair's result to the
pair's own row, [splits, T k, H]; `combine` then sums a token's `k` rows, biases and splits in a
fixed order. No atomics: the same batch gives the same bits, and a row's result does not depend on
which other rows there are, but for the tile size that their number chooses.

Few rows: every touched expert's weights are read once; the floor is their bytes. gpt-oss-20b in
bfloat16, batch 1: 4 experts x 49.8 MB = 199 MB a layer, 66 us at 3.0 TB/s; batch 64: all 32,
1.59 GB, 531 us; expected 75 % of that rate and more, since nothing but loads is in the loop.
Many rows: 8,192 tokens do 1.63 TFLOP a layer, 2.1 ms at 790 TFLOP/s; expected 60 %, plus 0.13 ms
for `combine`'s 377 MB.

The grid is `Routing.capacity` x column blocks; a program without a tile returns at once. The
order of programs follows "grouped ordering" of Triton's matrix multiplication tutorial.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gpt_oss_server.engine.kernels.expert_tuning import Tile
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.kernels.routing import Routing
from gpt_oss_server.engine.kernels.usable import interpreted

_COMBINE_COLUMNS = 1024
_NO_GATE = 0


@dataclass(frozen=True, slots=True)
class Stacked:
    """Weights [E, in, out] in any strides (transpose a stored [E, out, in]), bias [E, out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[2]


def gated_product(
    hidden: torch.Tensor, weights: Stacked, gate: Gate, routing: Routing, tile: Tile
) -> torch.Tensor:
    """hidden [T, H] times weights [E, H, 2 I], biased and gated: [T k, I] in `hidden`'s type, rows
    in the routing's order. Rows that no pair was sorted to are not set."""
    outputs = weights.outputs // 2
    rows = torch.empty(routing.order.numel(), outputs, dtype=hidden.dtype, device=hidden.device)
    _launch(hidden, weights, rows, routing, tile, gate=gate, splits=1)
    return rows


def product_by_pair(
    rows: torch.Tensor, weights: Stacked, routing: Routing, tile: Tile, splits: int = 1
) -> torch.Tensor:
    """Sorted rows [T k, I] times weights [E, I, H], without the bias: [splits, T k, H], at the
    pairs' own places; float32 where there are several splits to be summed, else in the rows'
    type."""
    dtype = rows.dtype if splits == 1 else torch.float32
    pairs = routing.order.numel()
    by_pair = torch.empty(splits, pairs, weights.outputs, dtype=dtype, device=rows.device)
    _launch(rows, weights, by_pair, routing, tile, gate=None, splits=splits)
    return by_pair


def combine(
    by_pair: torch.Tensor, bias: torch.Tensor | None, routing: Routing, dtype: torch.dtype
) -> torch.Tensor:
    """[T, H]: each token's pairs, summed over splits [splits, T k, H], with the bias [E, H] of
    their experts, times their weights, in the order of the token's choices."""
    splits, _, width = by_pair.shape
    tokens = routing.tokens
    result = torch.empty(tokens, width, dtype=dtype, device=by_pair.device)
    columns = min(_COMBINE_COLUMNS, triton.next_power_of_2(width))
    _combine_kernel[(tokens, triton.cdiv(width, columns))](
        by_pair,
        bias,
        routing.ids,
        routing.weights,
        result,
        tokens,
        WIDTH=width,
        EXPERTS=routing.experts,
        PER_TOKEN=routing.per_token,
        SPLITS=splits,
        BLOCK_N=columns,
        enable_fp_fusion=True,
    )
    return result


def _launch(
    x: torch.Tensor,
    weights: Stacked,
    out: torch.Tensor,
    routing: Routing,
    tile: Tile,
    *,
    gate: Gate | None,
    splits: int,
) -> None:
    if x.shape[1] != weights.inputs or x.stride(1) != 1:
        raise ValueError(f"rows of {x.shape[1]} times weights of {tuple(weights.weight.shape)}")
    span = triton.cdiv(triton.cdiv(weights.inputs, splits), tile.depth) * tile.depth
    blocks = triton.cdiv(weights.outputs, tile.columns)
    per_expert, per_input, per_output = weights.weight.stride()
    _grouped_kernel[(routing.capacity * blocks, splits)](
        x,
        weights.weight,
        weights.bias if gate is not None else None,
        out,
        routing.order,
        routing.tiles,
        x.stride(0),
        per_expert,
        per_input,
        per_output,
        routing.order.numel(),
        routing.capacity,
        INPUTS=weights.inputs,
        OUTPUTS=weights.outputs,
        PER_TOKEN=routing.per_token,
        GATE=_NO_GATE if gate is None else gate.code,
        HALVES=gate is not None and gate.halves,
        ALPHA=0.0 if gate is None else gate.alpha,
        LIMIT=0.0 if gate is None else gate.limit,
        SPAN=span,
        ROWS=routing.block_rows,
        BLOCK_N=tile.columns,
        BLOCK_K=tile.depth,
        STAGES=tile.stages,
        WIDE=interpreted(),
        GROUP=tile.group,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )


@triton.jit
def program_tile(capacity, BLOCKS: tl.constexpr, GROUP: tl.constexpr):
    """(tile of rows, block of columns) of this program: GROUP tiles (0: all), then the next
    columns."""
    program = tl.program_id(0)
    if GROUP == 0:
        return program % capacity, program // capacity
    first = program // (GROUP * BLOCKS) * GROUP
    size = tl.minimum(capacity - first, GROUP)
    within = program % (GROUP * BLOCKS)
    return first + within % size, within // size


@triton.jit
def gated(gate, up, GATE: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """GATE 1: gpt-oss's clamped SwiGLU; 2: SiLU. float32."""
    if GATE == 1:
        # `where` and not `minimum`: what is not a number must stay so.
        gate = tl.where(gate > LIMIT, LIMIT, gate)
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
        return gate * tl.sigmoid(gate * ALPHA) * (up + 1.0)
    return gate * tl.sigmoid(gate) * up


@triton.jit(do_not_specialize=["pairs", "capacity"])
def _grouped_kernel(
    x,
    weight,
    bias,
    out,
    order,
    tiles,
    x_stride,
    per_expert,
    per_input,
    per_output,
    pairs,
    capacity,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    GATE: tl.constexpr,
    HALVES: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Program (p, s): one tile's rows times one block of its expert's columns, over the s-th SPAN
    of inputs. With a GATE it gathers hidden states by token and writes sorted rows of half the
    columns; without, it takes sorted rows and writes them to their pairs' places. WIDE is for the
    interpreter, which has no arithmetic in bfloat16."""
    BLOCKS: tl.constexpr = (OUTPUTS + BLOCK_N - 1) // BLOCK_N
    tile, block = program_tile(capacity, BLOCKS, GROUP)
    expert = tl.load(tiles + tile)
    if expert < 0:
        return
    rows = tl.load(tiles + capacity + tile) + tl.arange(0, ROWS)
    there = rows < tl.load(tiles + 2 * capacity + tile)
    pair = tl.load(order + rows, mask=there, other=0)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < OUTPUTS
    # Where a logical column (gate, up, gate, up, ...) is in memory.
    place = columns % 2 * (OUTPUTS // 2) + columns // 2 if HALVES else columns
    source = pair // PER_TOKEN if GATE else rows
    x_rows = x + source.to(tl.int64)[:, None] * x_stride
    w_columns = weight + expert.to(tl.int64) * per_expert + place[None, :] * per_output
    start = tl.program_id(1) * SPAN
    sums = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for k in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
        inner = start + k + tl.arange(0, BLOCK_K)
        # Known to the compiler where the inputs divide: then there is nothing to compare.
        full: tl.constexpr = INPUTS % SPAN == 0
        w_mask = inside[None, :] if full else inside[None, :] & (inner < INPUTS)[:, None]
        x_mask = there[:, None] if full else there[:, None] & (inner < INPUTS)[None, :]
        a = tl.load(x_rows + inner[None, :], mask=x_mask, other=0.0)
        b = tl.load(w_columns + inner.to(tl.int64)[:, None] * per_input, mask=w_mask, other=0.0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    if GATE:
        if bias is not None:
            added = tl.load(bias + expert * OUTPUTS + place, mask=inside, other=0.0)
            sums += added.to(tl.float32)[None, :]
        gate, up = tl.split(tl.reshape(sums, (ROWS, BLOCK_N // 2, 2)))
        result = gated(gate, up, GATE, ALPHA, LIMIT)
        narrow = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        target = rows.to(tl.int64)[:, None] * (OUTPUTS // 2) + narrow[None, :]
        mask = there[:, None] & (narrow < OUTPUTS // 2)[None, :]
    else:
        result = sums
        row = tl.program_id(1).to(tl.int64) * pairs + pair
        target = row[:, None] * OUTPUTS + columns[None, :]
        mask = there[:, None] & inside[None, :]
    tl.store(out + target, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _combine_kernel(
    by_pair,
    bias,
    ids,
    weights,
    result,
    tokens,
    WIDTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program (t, b): block b of token t's columns."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < WIDTH
    total = tl.zeros((BLOCK_N,), tl.float32)
    for j in tl.static_range(PER_TOKEN):
        pair = token * PER_TOKEN + j
        expert = tl.load(ids + pair)
        # Padding and other ranks' choices: nothing is there to be read.
        width = tl.where(expert < 0, 0, tl.where(expert < EXPERTS, WIDTH, 0))
        part = tl.zeros((BLOCK_N,), tl.float32)
        for split in tl.static_range(SPLITS):
            row = split * tokens * PER_TOKEN + pair
            value = tl.load(by_pair + row * WIDTH + columns, mask=columns < width, other=0.0)
            part += value.to(tl.float32)
        if bias is not None:
            value = tl.load(bias + expert * WIDTH + columns, mask=columns < width, other=0.0)
            part += value.to(tl.float32)
        total += tl.where(width > 0, tl.load(weights + pair), 0.0) * part
    tl.store(result + token * WIDTH + columns, total.to(result.dtype.element_ty), mask=inside)

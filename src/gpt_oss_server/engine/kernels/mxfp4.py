# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""The two products over weights that stay in 4 bits, and the layout they are stored in for it.

Knows: MXFP4 (OCP Microscaling formats 1.0: 32 numbers of E2M1 share a scale of E8M0) as gpt-oss
checkpoints store it, and the order of bits that a GPU takes apart fastest. Does not know: how
experts are chosen (`routing`), checkpoints, modules.

A published row has 16 bytes per group, two consecutive numbers a byte, low half first. `relay`
rewrites that in place, in the same bytes, once at load. Four 32-bit words hold a group; word `t`
holds the numbers 8 q + 2 t + h (q = 0..3, h = 0, 1), which are what one thread owns of a tensor
core's left operand (PTX ISA, "Matrix Fragments for mma.m16n8k16"), so nothing moves between
threads. Half `h` of the word has four numbers with their bits spread so that a mask leaves sign
and three bits of number 0 where bfloat16 has its sign, two exponent bits and one mantissa bit; 1
and 2 need a shift more, 3 three shifts. That is the number times 2^-126, subnormals included; one
multiplication by 2^(scale - 1) makes it exact. A decode tile's turn is 3.9 instructions a
number with Triton 3.6 for sm_90, loads and product included; reading the bytes at 3.0 TB/s allows
5.2 on an H100 (`docs/adr/0013-experts-on-gpu.md`).
The same idea is in the Hopper layout of Triton's own `triton_kernels`; this one needs no inline
assembly, so it runs in the interpreter.

Scales are stored by group, then output, so that a tile's are in long rows and, where it has four
bytes a thread, are copied to shared memory stages ahead of their use as the words are.

The product is computed transposed, weights x rows, because a left operand may come from registers.
Rows of gate and up alternate in blocks of eight within sixteen, where one thread holds both.

Floors, gpt-oss-20b at 3.0 TB/s: batch 1 4 x 13.2 MB = 53 MB a layer, 18 us; batch 64 423 MB,
141 us. Expected half that rate at batch 1, where five small launches show, 70 % at batch 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from gpt_oss_server.engine.kernels.expert_tuning import Tile
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.kernels.grouped import gated, program_tile
from gpt_oss_server.engine.kernels.routing import Routing
from gpt_oss_server.engine.kernels.usable import interpreted

GROUP = 32
"""Numbers that share a scale."""
WORDS = 4
"""32-bit words per group."""
GATED_ROWS = 16
"""Outputs of a gated matrix must be a multiple of this."""
MOST_SCALE = 128
"""The largest scale byte: a factor of 2. Larger ones would leave bfloat16's range halfway, and no
trained weight comes near."""
_EXPONENT_SHIFT = 126
# Of a thread, to shared memory without passing through registers.
_LEAST_COPY_BYTES = 4
# Where each of a half word's four numbers has its sign, its two exponent bits and its mantissa
# bit: as (bits of the number, left shift) pairs.
_SPREAD = (
    ((8, 12), (7, 6)),
    ((8, 9), (7, 3)),
    ((8, 6), (7, 0)),
    ((8, 11), (6, 9), (1, 13)),
)


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights of E experts as `relay` left them: words [E, out, in / 8] int32, scales
    [E, in / 32, out] uint8, bias [E, out] (in the published order of outputs)."""

    words: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    @property
    def inputs(self) -> int:
        return self.scales.shape[1] * GROUP

    @property
    def outputs(self) -> int:
        return self.words.shape[1]


def relay(
    blocks: torch.Tensor, scales: torch.Tensor, *, gated: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewrite published blocks [E, out, groups, 16] and scales [E, out, groups] (uint8, both
    contiguous) in place; returns words [E, out, 4 groups] int32 and scales [E, groups, out], the
    same memory. One expert at a time: besides, some tens of bytes per number of one expert are
    needed.

    Raises ValueError for scales or shapes that the kernel cannot take.
    """
    experts, outputs, groups, _ = blocks.shape
    if gated and outputs % GATED_ROWS:
        raise ValueError(f"{outputs} gated outputs are not a multiple of {GATED_ROWS}")
    if not blocks.is_contiguous() or not scales.is_contiguous():
        raise ValueError("blocks and scales must be contiguous")
    if scales.numel() and int(scales.max()) > MOST_SCALE:
        raise ValueError(f"a scale byte is above {MOST_SCALE}: weights that large are not held")
    words = blocks.view(experts, outputs, groups * 16).view(torch.int32)
    by_group = scales.view(experts, groups, outputs)
    order = _gated_order(outputs, blocks.device) if gated else None
    for expert in range(experts):
        packed, factors = _words(blocks[expert]), scales[expert] + _EXPONENT_SHIFT
        words[expert] = packed if order is None else packed[order]
        by_group[expert] = (factors if order is None else factors[order]).T
    return words, by_group


def _words(blocks: torch.Tensor) -> torch.Tensor:
    """[out, groups, 16] bytes as words [out, 4 groups] int32."""
    outputs, groups, _ = blocks.shape
    numbers = torch.stack((blocks & 15, blocks >> 4), -1).to(torch.int32)
    numbers = numbers.view(outputs, groups, 4, WORDS, 2)  # group, q, t, h
    half = torch.zeros(outputs, groups, WORDS, 2, dtype=torch.int32, device=blocks.device)
    for q, parts in enumerate(_SPREAD):
        for bits, shift in parts:
            half |= (numbers[:, :, q] & bits) << shift
    return (half[..., 0] | half[..., 1] << 16).view(outputs, groups * WORDS)


def _gated_order(outputs: int, device: torch.device) -> torch.Tensor:
    """Which published output (gate, up, gate, up, ...) is at each place: eight gates, then their
    eight ups."""
    pairs = torch.arange(outputs, device=device).view(-1, GATED_ROWS // 2, 2)
    return pairs.transpose(1, 2).reshape(-1)


def gated_product_mxfp4(
    hidden: torch.Tensor, weights: Packed, gate: Gate, routing: Routing, tile: Tile
) -> torch.Tensor:
    """As `grouped.gated_product`. The gate must not have `halves`."""
    outputs = weights.outputs // 2
    rows = torch.empty(routing.order.numel(), outputs, dtype=hidden.dtype, device=hidden.device)
    _launch(hidden, weights, rows, routing, tile, gate=gate, splits=1)
    return rows


def product_by_pair_mxfp4(
    rows: torch.Tensor, weights: Packed, routing: Routing, tile: Tile, splits: int = 1
) -> torch.Tensor:
    """As `grouped.product_by_pair`."""
    dtype = rows.dtype if splits == 1 else torch.float32
    pairs = routing.order.numel()
    by_pair = torch.empty(splits, pairs, weights.outputs, dtype=dtype, device=rows.device)
    _launch(rows, weights, by_pair, routing, tile, gate=None, splits=splits)
    return by_pair


def _launch(
    x: torch.Tensor,
    weights: Packed,
    out: torch.Tensor,
    routing: Routing,
    tile: Tile,
    *,
    gate: Gate | None,
    splits: int,
) -> None:
    if x.shape[1] != weights.inputs or x.stride(1) != 1 or tile.depth % GROUP:
        raise ValueError(f"rows of {x.shape[1]} times weights of {weights.inputs} inputs")
    span = triton.cdiv(triton.cdiv(weights.inputs, splits), tile.depth) * tile.depth
    blocks = triton.cdiv(weights.outputs, tile.columns)
    _mxfp4_kernel[(routing.capacity * blocks, splits)](
        x,
        weights.words,
        weights.scales,
        weights.bias if gate is not None else None,
        out,
        routing.order,
        routing.tiles,
        x.stride(0),
        routing.order.numel(),
        routing.capacity,
        INPUTS=weights.inputs,
        OUTPUTS=weights.outputs,
        PER_TOKEN=routing.per_token,
        GATE=0 if gate is None else gate.code,
        ALPHA=0.0 if gate is None else gate.alpha,
        LIMIT=0.0 if gate is None else gate.limit,
        SPAN=span,
        ROWS=routing.block_rows,
        BLOCK_N=tile.columns,
        BLOCK_K=tile.depth,
        STAGES=tile.stages,
        AHEAD=tile.columns * tile.depth // GROUP < _LEAST_COPY_BYTES * 32 * tile.warps,
        WIDE=interpreted(),
        GROUP_TILES=tile.group,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )


@triton.jit
def numbers_of(words, scales, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr):
    """words [BLOCK_N, BLOCK_K / 8] uint32 and scales [BLOCK_N, BLOCK_K / 32] uint8 as bfloat16
    [BLOCK_N, BLOCK_K], exact; WIDE as float32, for the interpreter, which has no arithmetic in
    bfloat16."""
    mask: tl.constexpr = 0x81C081C0
    first = words & mask
    second = (words << 3) & mask
    third = (words << 6) & mask
    fourth = ((words << 1) & 0x80008000) | ((words >> 3) & 0x01800180)
    fourth = fourth | ((words >> 7) & 0x00400040)
    two = tl.join(tl.join(first, third), tl.join(second, fourth))  # [N, words, 2, 2]: q
    low, high = (two & 0xFFFF).to(tl.uint16), (two >> 16).to(tl.uint16)
    numbers = tl.reshape(tl.join(low, high), (BLOCK_N, BLOCK_K // 32, 4, 4, 2))  # g, t, q, h
    factors = scales[:, :, None, None, None]
    if WIDE:
        number = (numbers.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
        number = number * (factors.to(tl.uint32) << 23).to(tl.float32, bitcast=True)
    else:
        number = numbers.to(tl.bfloat16, bitcast=True)
        number = number * (factors.to(tl.uint16) << 7).to(tl.bfloat16, bitcast=True)
    return tl.reshape(tl.permute(number, (0, 1, 3, 2, 4)), (BLOCK_N, BLOCK_K))


@triton.jit
def _scales_of(s_rows, group, inside, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr):
    mask = inside & (group < INPUTS // 32)[None, :]
    return tl.load(s_rows + group[None, :] * OUTPUTS, mask=mask, other=0)


@triton.jit(do_not_specialize=["pairs", "capacity"])
def _mxfp4_kernel(
    x,
    words,
    scales,
    bias,
    out,
    order,
    tiles,
    x_stride,
    pairs,
    capacity,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    GATE: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP_TILES: tl.constexpr,
):
    """As `grouped`'s kernel, transposed: sums are [BLOCK_N outputs, ROWS]. AHEAD: scales are too
    few to be copied to shared memory ahead of their turn, and are loaded a turn ahead instead."""
    BLOCKS: tl.constexpr = (OUTPUTS + BLOCK_N - 1) // BLOCK_N
    tile, block = program_tile(capacity, BLOCKS, GROUP_TILES)
    expert = tl.load(tiles + tile)
    if expert < 0:
        return
    rows = tl.load(tiles + capacity + tile) + tl.arange(0, ROWS)
    there = rows < tl.load(tiles + 2 * capacity + tile)
    pair = tl.load(order + rows, mask=there, other=0)
    outputs = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (outputs < OUTPUTS)[:, None]
    source = pair // PER_TOKEN if GATE else rows
    x_rows = x + source.to(tl.int64)[None, :] * x_stride
    first = expert.to(tl.int64) * OUTPUTS
    w_rows = words + (first + outputs)[:, None] * (INPUTS // 8)
    s_rows = scales + first * (INPUTS // 32) + outputs[:, None]
    start = tl.program_id(1) * SPAN
    sums = tl.zeros((BLOCK_N, ROWS), tl.float32)
    full: tl.constexpr = INPUTS % SPAN == 0
    group = start // 32 + tl.arange(0, BLOCK_K // 32)
    if AHEAD:
        factors = _scales_of(s_rows, group, inside, INPUTS, OUTPUTS)
    for k in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
        inner = start + k + tl.arange(0, BLOCK_K)
        word = (start + k) // 8 + tl.arange(0, BLOCK_K // 8)
        group = (start + k) // 32 + tl.arange(0, BLOCK_K // 32)
        w_mask = inside if full else inside & (word < INPUTS // 8)[None, :]
        x_mask = there[None, :] if full else there[None, :] & (inner < INPUTS)[:, None]
        packed = tl.load(w_rows + word[None, :], mask=w_mask, other=0)
        if AHEAD:
            following = _scales_of(s_rows, group + BLOCK_K // 32, inside, INPUTS, OUTPUTS)
        else:
            factors = _scales_of(s_rows, group, inside, INPUTS, OUTPUTS)
        b = tl.load(x_rows + inner[:, None], mask=x_mask, other=0.0)
        a = numbers_of(packed.to(tl.uint32, bitcast=True), factors, BLOCK_N, BLOCK_K, WIDE)
        if WIDE:
            b = b.to(tl.float32)
        sums = tl.dot(a.to(b.dtype), b, sums, input_precision="ieee")
        if AHEAD:
            factors = following
    if GATE:
        half: tl.constexpr = BLOCK_N // 2
        if bias is not None:
            # The published place of each output: gates and ups alternate there.
            there_row = outputs // 16 * 16 + outputs % 8 * 2 + outputs % 16 // 8
            added = tl.load(bias + expert * OUTPUTS + there_row, mask=outputs < OUTPUTS, other=0.0)
            sums += added.to(tl.float32)[:, None]
        split = tl.permute(tl.reshape(sums, (BLOCK_N // 16, 2, 8, ROWS)), (0, 2, 3, 1))
        gate, up = tl.split(split)
        result = tl.reshape(gated(gate, up, GATE, ALPHA, LIMIT), (half, ROWS))
        narrow = block * half + tl.arange(0, half)
        target = rows.to(tl.int64)[None, :] * (OUTPUTS // 2) + narrow[:, None]
        mask = there[None, :] & (narrow < OUTPUTS // 2)[:, None]
    else:
        result = sums
        row = tl.program_id(1).to(tl.int64) * pairs + pair
        target = row[None, :] * OUTPUTS + outputs[:, None]
        mask = inside & there[None, :]
    tl.store(out + target, result.to(out.dtype.element_ty), mask=mask)

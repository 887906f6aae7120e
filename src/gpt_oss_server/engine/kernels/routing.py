# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""From hidden states to the order in which experts compute: the router and the sort, on device.

Knows: top-k gating, how pairs of token and expert are sorted, how sorted rows are cut into tiles
that belong to one expert each. Does not know: what an expert computes.

A pair is one token with one of its `k` experts; pair `t * k + j` is token t's j-th choice. Pairs
sorted by expert are the rows that grouped products work on (`grouped`, `mxfp4`), and since no
count may leave the device, the grid of those products is the most tiles that any distribution can
need, and each program finds in `Routing.tiles` whose rows it has. Everything is of a size that
follows from the number of tokens alone, so a captured graph replays with any choice of experts.
Kernels are compiled for three classes of numbers of tokens: whoever is served when another must be
compiled waits for it.

Launches: two up to `SMALL_TOKENS` tokens (partial logits over splits of the hidden size, so that
one token's router is read by many multiprocessors; then all else in one program), four above.
Floor of a decode step of gpt-oss-20b: 184 KB of router weights, 0.1 us at 3 TB/s, so both launches
cost latency only, some 2 us each in a captured graph; expected 4 us a layer. A prefill of 8,192
tokens reads its 47 MB of hidden states once (16 us) and sorts 32,768 pairs (some 20 us), against
more than 2 ms of products.

Choosing follows transformers' `GptOssTopKRouter`: softmax over the chosen logits. Logits are
float32 whatever the weights are; ties go to the lower expert. The sort is stable and sums are in
a fixed order: the same batch gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from gpt_oss_server.engine.kernels.routing_kernels import (
    choose_kernel,
    count_kernel,
    logits_kernel,
    sort_kernel,
)
from gpt_oss_server.engine.kernels.usable import interpreted

SMALL_TOKENS = 64
"""Up to so many tokens one program chooses and sorts."""
_BLOCK_TOKENS = 32
_FEWEST_TOKENS = 16
_LEAST_DOT = 16
_TILE_FIELDS = 3
_LOGITS_DEPTH = 64
_LOGITS_SPLITS = {16: 32, 64: 8, 32: 4}
"""By `_block_of`: the most parts that the hidden size is divided into, so that enough programs
share the reading and few sums are left to be added."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Who computes what, for T tokens of `k` choices among E experts; all on the device.

    `ids` [T, k] int32, E where a token is not to be computed; `weights` [T, k] float32. `order`
    [T k] int32: pair numbers, sorted by expert; only as many as there are live pairs are set.
    `tiles` [3, capacity] int32: of each tile its expert (-1: nothing to do), its first row in
    `order`, and where that expert's rows end. A tile has at most `block_rows` rows.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    order: torch.Tensor
    tiles: torch.Tensor
    experts: int
    block_rows: int

    @property
    def tokens(self) -> int:
        return self.ids.shape[0]

    @property
    def per_token(self) -> int:
        return self.ids.shape[1]

    @property
    def capacity(self) -> int:
        return self.tiles.shape[1]


def tile_capacity(pairs: int, experts: int, block_rows: int) -> int:
    """The most tiles that `pairs` rows can need: every expert has one, and each further tile is
    full."""
    busy = min(pairs, experts)
    return busy + (pairs - busy) // block_rows


def route(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    per_token: int,
    block_rows: int,
    live: torch.Tensor | None = None,
    *,
    over_all: bool = False,
) -> Routing:
    """Choose `per_token` experts for each row of `hidden` [T, H] by `weight` [E, H] and `bias`
    [E], and sort. Rows from `live` [1] (int32, on the device; None: T) on are padding: nothing is
    computed for them. `over_all`: weights are shares of the softmax over all experts, not
    over the chosen. Raises ValueError for shapes that do not fit."""
    tokens, width = hidden.shape
    experts = weight.shape[0]
    if weight.shape[1] != width or not 0 < per_token <= experts or hidden.stride(1) != 1:
        raise ValueError(
            f"a router of {tuple(weight.shape)} cannot choose {per_token} for rows of {width}"
        )
    partial = _partial_logits(hidden, weight, live)
    ids = torch.empty(tokens, per_token, dtype=torch.int32, device=hidden.device)
    weights = torch.empty(tokens, per_token, dtype=torch.float32, device=hidden.device)
    routing = _blank(ids, weights, experts, block_rows)
    block = _block_of(tokens)
    blocks = triton.cdiv(tokens, block)
    histogram = _histogram(blocks, experts, hidden.device)
    wide = triton.next_power_of_2(experts)
    choose_kernel[(blocks,)](
        partial,
        bias,
        ids,
        weights,
        histogram,
        routing.order,
        routing.tiles,
        tokens,
        routing.capacity,
        live,
        SPLITS=partial.shape[0],
        EXPERTS=experts,
        PER_TOKEN=per_token,
        OVER_ALL=over_all,
        SINGLE=blocks == 1,
        ROWS=block_rows,
        BLOCK_TILES=_tile_block(wide),
        BLOCK_T=block,
        BLOCK_E=wide,
        num_warps=_warps(block * wide),
        enable_fp_fusion=True,
    )
    if blocks > 1:
        _sort(routing, histogram, block)
    return routing


def place(ids: torch.Tensor, weights: torch.Tensor, experts: int, block_rows: int) -> Routing:
    """The same for choices made elsewhere: ids and weights [T, k]. A token's ids must differ from
    each other; those outside 0..experts-1 are left out."""
    ids = ids.to(torch.int32).contiguous()
    routing = _blank(ids, weights.to(torch.float32).contiguous(), experts, block_rows)
    tokens, per_token = ids.shape
    block = _block_of(tokens)
    blocks = triton.cdiv(tokens, block)
    histogram = _histogram(blocks, experts, ids.device)
    if blocks > 1:
        count_kernel[(blocks,)](
            ids,
            histogram,
            tokens,
            EXPERTS=experts,
            PER_TOKEN=per_token,
            BLOCK_T=block,
            BLOCK_E=triton.next_power_of_2(experts),
            enable_fp_fusion=True,
        )
    _sort(routing, histogram, block)
    return routing


def _partial_logits(
    hidden: torch.Tensor, weight: torch.Tensor, live: torch.Tensor | None
) -> torch.Tensor:
    """[splits, T, E] float32, to be summed over the splits."""
    tokens, width = hidden.shape
    experts = weight.shape[0]
    block = _LEAST_DOT if tokens <= SMALL_TOKENS else _BLOCK_TOKENS
    blocks = triton.cdiv(tokens, block)
    parts = _LOGITS_SPLITS[_block_of(tokens)]
    span = triton.cdiv(triton.cdiv(width, parts), _LOGITS_DEPTH) * _LOGITS_DEPTH
    splits = triton.cdiv(width, span)
    partial = torch.empty(splits, tokens, experts, dtype=torch.float32, device=hidden.device)
    logits_kernel[(blocks, splits)](
        hidden,
        weight,
        partial,
        tokens,
        hidden.stride(0),
        live,
        WIDTH=width,
        EXPERTS=experts,
        SPAN=span,
        WIDE=interpreted(),
        BLOCK_T=block,
        BLOCK_E=max(_LEAST_DOT, triton.next_power_of_2(experts)),
        BLOCK_K=_LOGITS_DEPTH,
        enable_fp_fusion=True,
    )
    return partial


def _sort(routing: Routing, histogram: torch.Tensor, block: int) -> None:
    wide = triton.next_power_of_2(routing.experts)
    blocks = histogram.shape[0]
    sort_kernel[(blocks,)](
        routing.ids,
        histogram,
        routing.order,
        routing.tiles,
        routing.tokens,
        routing.capacity,
        blocks,
        EXPERTS=routing.experts,
        PER_TOKEN=routing.per_token,
        SINGLE=blocks == 1,
        ROWS=routing.block_rows,
        BLOCK_TILES=_tile_block(wide),
        BLOCK_T=block,
        BLOCK_E=wide,
        num_warps=_warps(block * wide),
        enable_fp_fusion=True,
    )


def _blank(ids: torch.Tensor, weights: torch.Tensor, experts: int, block_rows: int) -> Routing:
    pairs = ids.numel()
    capacity = tile_capacity(pairs, experts, block_rows)
    return Routing(
        ids=ids,
        weights=weights,
        order=torch.empty(pairs, dtype=torch.int32, device=ids.device),
        tiles=torch.empty(_TILE_FIELDS, capacity, dtype=torch.int32, device=ids.device),
        experts=experts,
        block_rows=block_rows,
    )


def _histogram(blocks: int, experts: int, device: torch.device) -> torch.Tensor:
    return torch.empty(blocks, experts, dtype=torch.int32, device=device)


def _block_of(tokens: int) -> int:
    """Tokens per program."""
    if tokens <= _FEWEST_TOKENS:
        return _FEWEST_TOKENS
    return SMALL_TOKENS if tokens <= SMALL_TOKENS else _BLOCK_TOKENS


def _tile_block(wide: int) -> int:
    """Tiles laid out at once: no more than 4,096 comparisons."""
    return min(64, max(1, 4096 // wide))


def _warps(elements: int) -> int:
    return 8 if elements >= 4096 else 4

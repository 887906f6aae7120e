"""Vectorised paged attention in torch: a flat list of (query tile, KV partition) items.

Split-KV attention as paged kernels do it (Flash-Decoding, Dao et al. 2023): every sequence's
queries are cut into tiles and the blocks each tile sees into partitions; items of equal shape
are computed together, whatever sequence they belong to, and a tile's partitions are merged by
their log-sum-exp. Work is proportional to the tokens really seen, not to the longest sequence.

Knows: how to plan and run such items. Does not know: models or scheduling. On CPU the inner
product runs in torch's fused CPU attention, elsewhere as plain matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.attention.interface import LayerKv, TorchWrites
from gpt_oss_server.engine.step import HostLayout, StepInput

# Queries per tile of a prefill: amortises the KV read while padding little.
PREFILL_TILE = 64
# KV tokens per item. Decode tiles are thin, so their partitions may be long.
PREFILL_PARTITION_TOKENS = 256
DECODE_PARTITION_TOKENS = 512
# KV tokens gathered at once: bounds temporary memory whatever the context length.
WAVE_TOKENS = 16_384

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class Wave:
    """Items of one tile class computed together. `tile` [W] says whose queries, `blocks` [W, B]
    which KV blocks; `mask` [W, 1, tile queries, B*block_size] is additive, None when every
    query sees every key."""

    tile: torch.Tensor
    blocks: torch.Tensor
    mask: torch.Tensor | None


@dataclass(slots=True)
class TileClass:
    """`count` tiles of `width` queries each. `rows` [count * width] are their token rows
    (padding repeats the last), None when they are simply 0..T-1; `valid` are the flat positions
    that are not padding, None when none is. `kept_rows` are the token rows of what is left,
    None when that is every row in order. `single`: each tile has one partition, in one wave."""

    count: int
    width: int
    rows: torch.Tensor | None
    valid: torch.Tensor | None
    kept_rows: torch.Tensor | None
    single: bool
    waves: list[Wave]
    grouped_masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)


def _tile_bounds(
    host: HostLayout, rows: IntArray, tile: int
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Cut the queries of sequences `rows` into tiles. Returns, per tile: its sequence, first
    token row, number of queries and first position, all [tiles]."""
    if tile == 1:
        return rows, host.query_start[rows], np.ones_like(rows), host.seq_lens[rows] - 1
    counts = np.diff(host.query_start)[rows]
    per_seq = -(-counts // tile)
    seq = np.repeat(rows, per_seq)
    nth = np.arange(len(seq)) - np.repeat(np.cumsum(per_seq) - per_seq, per_seq)
    count = np.diff(host.query_start)[seq]
    begin = host.query_start[seq] + nth * tile
    queries = np.minimum(tile, count - nth * tile)
    position = host.seq_lens[seq] - count + nth * tile
    return seq, begin, queries, position


class _ClassPlanner:
    """Plans the tiles of one class for one group's window."""

    def __init__(self, step: StepInput, group: int, window: int | None, block_size: int) -> None:
        self._host = step.host
        self._table = step.host.tables[group]
        self._device = step.token_ids.device
        self._tokens = len(step.token_ids)
        self._window = window
        self._size = block_size

    def plan(self, rows: IntArray, tile: int, partition_tokens: int) -> TileClass:
        size = self._size
        seq, begin, queries, position = _tile_bounds(self._host, rows, tile)
        low = np.zeros_like(position)
        if self._window is not None:
            low = np.maximum(0, position - self._window + 1) // size
        blocks = -(-(position + queries) // size) - low
        part = max(1, min(int(blocks.max()), partition_tokens // size))
        single = part == blocks.max()
        item_tile = np.arange(len(seq))
        first_block = low
        if not single:
            parts = -(-blocks // part)
            item_tile = np.repeat(item_tile, parts)
            nth = np.arange(len(item_tile)) - np.repeat(np.cumsum(parts) - parts, parts)
            first_block = low[item_tile] + nth * part
        interior = self._interior(first_block, part, position[item_tile], queries[item_tile], tile)
        waves = [
            self._wave(item_tile[chosen], first_block[chosen], part, seq, position, tile, masked)
            for masked, chosen in self._wave_items(interior, part * size)
        ]
        return self._assemble(begin, queries, tile, waves, single=bool(single))

    def _interior(
        self, first_block: IntArray, part: int, position: IntArray, queries: IntArray, tile: int
    ) -> npt.NDArray[np.bool_]:
        """Items in which every query (padding included) sees every key: no mask needed."""
        inside: npt.NDArray[np.bool_] = (first_block + part) * self._size - 1 <= position
        if self._window is not None:
            inside &= first_block * self._size > position + queries - 1 - self._window
        inside &= queries == tile
        return inside

    def _wave_items(
        self, interior: npt.NDArray[np.bool_], item_tokens: int
    ) -> Iterator[tuple[bool, IntArray]]:
        per_wave = max(1, WAVE_TOKENS // item_tokens)
        if len(interior) <= per_wave:  # one wave, masked if any item is
            yield not interior.all(), np.arange(len(interior))
            return
        for masked in (False, True):
            items = np.flatnonzero(interior != masked)
            for start in range(0, len(items), per_wave):
                yield masked, items[start : start + per_wave]

    def _wave(
        self,
        item_tile: IntArray,
        first_block: IntArray,
        part: int,
        seq: IntArray,
        position: IntArray,
        tile: int,
        masked: bool,
    ) -> Wave:
        columns = first_block[:, None] + np.arange(part)
        rows = seq[item_tile]
        last = -(-self._host.seq_lens[rows] // self._size) - 1
        # Columns past the sequence repeat its last block; their keys are masked by position.
        ids = self._table[rows[:, None], np.minimum(columns, last[:, None])]
        mask = None
        if masked:
            keys = ((first_block * self._size)[:, None] + np.arange(part * self._size))[:, None, :]
            at = (position[item_tile][:, None] + np.arange(tile))[:, :, None]
            hidden = keys > at
            if self._window is not None:
                hidden |= keys <= at - self._window
            mask = torch.from_numpy(hidden).unsqueeze(1).to(self._device)
        return Wave(
            torch.from_numpy(item_tile).to(self._device),
            torch.from_numpy(ids).to(self._device),
            mask,
        )

    def _assemble(
        self, begin: IntArray, queries: IntArray, tile: int, waves: list[Wave], single: bool
    ) -> TileClass:
        single = single and len(waves) == 1
        if tile == 1 and len(begin) == self._tokens:
            return TileClass(len(begin), 1, None, None, None, single, waves)
        offsets = np.arange(tile)
        rows = begin[:, None] + np.minimum(offsets, queries[:, None] - 1)
        keep = offsets < queries[:, None]
        padded = not keep.all()
        kept = rows[keep] if padded else rows.reshape(-1)
        whole = len(kept) == self._tokens  # tiles are in row order, so all of them is 0..T-1
        device = self._device
        return TileClass(
            count=len(begin),
            width=tile,
            rows=torch.from_numpy(rows.reshape(-1)).to(device),
            valid=torch.from_numpy(np.flatnonzero(keep)).to(device) if padded else None,
            kept_rows=None if whole else torch.from_numpy(kept).to(device),
            single=single,
            waves=waves,
        )


class TiledPlan(TorchWrites):
    """One step's items for every group, built on first use by a layer of that group."""

    def __init__(self, step: StepInput, block_size: int) -> None:
        self._step = step
        self._block_size = block_size
        self._classes: dict[tuple[int, int | None], list[TileClass]] = {}

    def attend(
        self,
        layer: LayerKv,
        query: torch.Tensor,
        *,
        scale: float,
        sinks: torch.Tensor | None,
        softcap: float | None,
    ) -> torch.Tensor:
        key = (layer.group, layer.window)
        classes = self._classes.get(key)
        if classes is None:
            classes = self._classes[key] = self._plan(layer)
        out: torch.Tensor | None = None
        for tiles in classes:
            result = _attend_class(tiles, layer, query, scale, sinks, softcap)
            if tiles.kept_rows is None:
                return result
            if out is None:
                out = query.new_empty(query.shape[0], query.shape[1], layer.values.shape[-1])
            out.index_copy_(0, tiles.kept_rows, result)
        if out is None:
            raise RuntimeError("a step without queries has no attention")
        return out

    def _plan(self, layer: LayerKv) -> list[TileClass]:
        planner = _ClassPlanner(self._step, layer.group, layer.window, self._block_size)
        counts = np.diff(self._step.host.query_start)
        classes = []
        thin, wide = np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)
        if len(thin):
            classes.append(planner.plan(thin, 1, DECODE_PARTITION_TOKENS))
        if len(wide):
            tile = min(PREFILL_TILE, int(counts[wide].max()))
            classes.append(planner.plan(wide, tile, PREFILL_PARTITION_TOKENS))
        return classes


def _attend_class(
    tiles: TileClass,
    layer: LayerKv,
    query: torch.Tensor,
    scale: float,
    sinks: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of one tile class; returns [kept queries, heads, v_dim] in `query`'s dtype."""
    heads, dim = query.shape[1:]
    kv_heads, v_dim = layer.values.shape[2:]
    count, width = tiles.count, tiles.width
    group = heads // kv_heads
    gathered = query if tiles.rows is None else query.index_select(0, tiles.rows)
    # [tiles, queries, kv_heads, group, dim] -> [tiles, kv_heads, group * queries, dim]
    q = gathered.view(count, width, kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    q = q.reshape(count, kv_heads, group * width, dim)
    if tiles.single:
        out, lse = _partial(tiles, 0, layer, q, scale, softcap)
    else:
        out, lse = _merged(tiles, layer, q, scale, softcap, v_dim)
    if sinks is not None:
        sink = sinks.to(lse.dtype).view(1, kv_heads, group, 1)
        # exp(lse) / (exp(lse) + exp(sink)): the softmax with one more, value-less column.
        kept = torch.sigmoid(lse.view(count, kv_heads, group, width) - sink)
        out = out * kept.view(count, kv_heads, group * width, 1).to(out.dtype)
    rows = out.view(count, kv_heads, group, width, v_dim).permute(0, 3, 1, 2, 4)
    flat = rows.reshape(count * width, heads, v_dim).to(query.dtype)
    return flat if tiles.valid is None else flat[tiles.valid]


def _partial(
    tiles: TileClass, index: int, layer: LayerKv, q: torch.Tensor, scale: float, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One wave: out [W, kv_heads, rows, v_dim], lse [W, kv_heads, rows] (natural log)."""
    wave = tiles.waves[index]
    items, per_item = wave.blocks.shape
    tokens = per_item * layer.keys.shape[1]
    flat = wave.blocks.reshape(-1)
    keys = layer.keys.index_select(0, flat).view(items, tokens, *layer.keys.shape[2:])
    values = layer.values.index_select(0, flat).view(items, tokens, *layer.values.shape[2:])
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    q = q if tiles.single else q[wave.tile]
    mask = _additive_mask(tiles, index, q)
    if q.device.type == "cpu" and cap is None and keys.shape[-1] == values.shape[-1]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, keys, values, 0.0, False, attn_mask=mask, scale=scale
        )
        return out, lse
    scores = torch.matmul(q * scale, keys.transpose(-1, -2)).float()
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(torch.exp(scores - lse[..., None]).to(values.dtype), values), lse


def _additive_mask(tiles: TileClass, index: int, q: torch.Tensor) -> torch.Tensor | None:
    """The wave's mask as numbers, rows repeated for each query head of a KV head; kept for the
    step's other layers. A large finite number, not -inf: an item may be hidden from a padding
    row entirely, and -inf - -inf is NaN."""
    hidden = tiles.waves[index].mask
    if hidden is None:
        return None
    rows = q.shape[2]
    found = tiles.grouped_masks.get((index, rows))
    if found is None:
        items, _, width, tokens = hidden.shape
        lowest = -6e4 if q.dtype == torch.float16 else -1e30
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device)
        mask.masked_fill_(hidden, lowest)
        found = mask.expand(items, rows // width, width, tokens).reshape(items, 1, rows, tokens)
        tiles.grouped_masks[(index, rows)] = found
    return found.expand(found.shape[0], q.shape[1], *found.shape[2:])


def _merged(
    tiles: TileClass, layer: LayerKv, q: torch.Tensor, scale: float, cap: float | None, v_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """All waves, merged by log-sum-exp into one float32 running state per tile."""
    top = torch.full(q.shape[:3], -torch.inf, dtype=torch.float32, device=q.device)
    total = torch.zeros_like(top)
    out = torch.zeros(*q.shape[:3], v_dim, dtype=torch.float32, device=q.device)
    for index, wave in enumerate(tiles.waves):
        part, lse = _partial(tiles, index, layer, q, scale, cap)
        lse = lse.float()
        to = wave.tile[:, None, None].expand_as(lse)
        higher = top.scatter_reduce(0, to, lse, "amax")
        # A tile that no wave has reached yet is -inf on both sides: nothing to rescale.
        decay = torch.exp(top - higher).nan_to_num_(nan=0.0)
        weight = torch.exp(lse - higher[wave.tile])
        total = (total * decay).index_add_(0, wave.tile, weight)
        out = (out * decay[..., None]).index_add_(0, wave.tile, part.float() * weight[..., None])
        top = higher
    return out / total[..., None], top + torch.log(total)


class TiledBackend:
    """See the module."""

    name = "tiled"
    capturable = False

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def plan(self, step: StepInput) -> TiledPlan:
        return TiledPlan(step, self._block_size)

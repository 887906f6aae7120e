# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""Which program attends what: found on the device, from lengths in device memory.

A *tile* is up to `queries_per_tile` consecutive query tokens of one sequence. An *item* is a tile
and a range of its keys: what one program (per KV head) computes. Where there are too few tiles to
fill the device, the keys of long ones are split over several items (Flash-Decoding, Dao et al.
2023), by one chunk length for all that follows from the total work: a short sequence costs one
item however long its neighbours are. Items are then merged (`paged_merge`).

Nothing is read back by the host and every grid is fixed by capacity, so a captured graph stays
right when lengths change. Both kernels cost about a launch each (2-3 us) and run once per step
(`split` once per distinct window), not per layer.

Records are int32. A tile or an item: sequence, first token row, query tokens, position of the
first one, first key, end of keys, whether it is its tile's only item, unused. An unused record has
no query tokens. A unit, for the merge: first token row, query tokens, first item, items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

RECORD = 8
UNIT = 4
# Elements of the comparison matrix one program of a plan holds in registers.
_PLAN_CELLS = 4096
# Sequences, or tiles, that a program is compiled for: two sizes, because whoever is served when
# another must be compiled waits for it.
_FEW, _MANY = 128, 512


@triton.jit(do_not_specialize=["num_seqs", "capacity"])
def _tiles_kernel(
    query_start,
    seq_lens,
    tiles,
    num_seqs,
    capacity,
    THIN: tl.constexpr,
    QUERIES: tl.constexpr,
    SEQS: tl.constexpr,
    PART: tl.constexpr,
):
    """One program writes PART tiles. Each counts the tiles of all SEQS (padded) sequences."""
    seqs = tl.arange(0, SEQS)
    held = seqs < num_seqs
    begin = tl.load(query_start + seqs, held, 0)
    tokens = tl.load(query_start + seqs + 1, held, 0) - begin
    if THIN:
        count = tl.where(tokens == 1, 1, 0)
    else:
        count = tl.where(tokens > 1, (tokens + QUERIES - 1) // QUERIES, 0)
    upto = tl.cumsum(count, 0)
    ids = tl.program_id(0) * PART + tl.arange(0, PART)
    before = upto[None, :] <= ids[:, None]
    used = ids < tl.sum(count, 0)
    seq = tl.where(used, tl.sum(before.to(tl.int32), 1), 0)
    nth = ids - tl.sum(tl.where(before, count[None, :], 0), 1)
    first = tl.load(query_start + seq)
    end = tl.load(query_start + seq + 1)
    row = first + nth * QUERIES
    queries = tl.where(used, tl.minimum(end - row, QUERIES), 0)
    position = tl.load(seq_lens + seq) - end + row
    at = tiles + ids * 8
    written = ids < capacity
    tl.store(at, seq, written)
    tl.store(at + 1, row, written)
    tl.store(at + 2, queries, written)
    tl.store(at + 3, position, written)


@triton.jit(do_not_specialize=["num_tiles", "capacity", "target"])
def _split_kernel(
    tiles,
    items,
    units,
    num_tiles,
    capacity,
    target,
    WINDOW: tl.constexpr,
    LEAST: tl.constexpr,
    KV_TILE: tl.constexpr,
    TILES: tl.constexpr,
    PART: tl.constexpr,
):
    """One program writes PART items, and the units of the tiles with the same numbers."""
    ids = tl.arange(0, TILES)
    held = ids < num_tiles
    queries = tl.load(tiles + ids * 8 + 2, held, 0)
    position = tl.load(tiles + ids * 8 + 3, held, 0)
    low = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else tl.zeros_like(position)
    keys = tl.where(queries > 0, position + queries - low, 0)
    # Never more than `target` items beyond one for each tile.
    chunk = tl.maximum((tl.sum(keys, 0) + target - 1) // target, LEAST)
    pieces = tl.maximum((keys + chunk - 1) // chunk, 1)
    per_item = ((keys + pieces - 1) // pieces + KV_TILE - 1) // KV_TILE * KV_TILE
    per_item = tl.maximum(per_item, KV_TILE)
    count = tl.where(queries > 0, tl.maximum((keys + per_item - 1) // per_item, 1), 0)
    upto = tl.cumsum(count, 0)

    mine = tl.program_id(0) * PART + tl.arange(0, PART)
    before = upto[None, :] <= mine[:, None]
    used = mine < tl.sum(count, 0)
    tile = tl.where(used, tl.sum(before.to(tl.int32), 1), 0)
    nth = mine - tl.sum(tl.where(before, count[None, :], 0), 1)
    same = ids[None, :] == tile[:, None]
    step = tl.sum(tl.where(same, per_item[None, :], 0), 1)
    parts = tl.sum(tl.where(same, count[None, :], 0), 1)
    start = tl.sum(tl.where(same, low[None, :], 0), 1) + nth * step
    seq = tl.load(tiles + tile * 8)
    row = tl.load(tiles + tile * 8 + 1)
    tokens = tl.where(used, tl.load(tiles + tile * 8 + 2), 0)
    at = tl.load(tiles + tile * 8 + 3)
    written = mine < capacity
    out = items + mine * 8
    tl.store(out, seq, written)
    tl.store(out + 1, row, written)
    tl.store(out + 2, tokens, written)
    tl.store(out + 3, at, written)
    tl.store(out + 4, start, written)
    tl.store(out + 5, tl.minimum(start + step, at + tokens), written)
    tl.store(out + 6, (parts == 1).to(tl.int32), written)

    mine_is_tile = mine < num_tiles
    own = ids[None, :] == mine[:, None]
    unit = units + mine * 4
    tl.store(unit, tl.load(tiles + mine * 8 + 1, mine_is_tile, 0), mine_is_tile)
    tl.store(unit + 1, tl.load(tiles + mine * 8 + 2, mine_is_tile, 0), mine_is_tile)
    tl.store(unit + 2, tl.sum(tl.where(own, (upto - count)[None, :], 0), 1), mine_is_tile)
    tl.store(unit + 3, tl.sum(tl.where(own, count[None, :], 0), 1), mine_is_tile)


@dataclass(frozen=True, slots=True)
class Work:
    """What the programs of one attention kernel do. `items` [W, 8]; `units` [tiles, 4] where tiles
    were split, else None: then items are tiles, and the kernel finds their keys itself."""

    items: torch.Tensor
    units: torch.Tensor | None
    queries_per_tile: int


def find_tiles(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    queries_per_tile: int,
    thin: bool,
    capacity: int,
) -> Work:
    """Tiles of the sequences that have one query token (`thin`), or of those that have more.

    `query_start` [R+1] and `seq_lens` [R] int32 as in `StepInput`. `capacity` must be at least
    the number of tiles: R for `thin`, else T / queries_per_tile + R at most. One launch.
    """
    num_seqs = len(seq_lens)
    seqs, part = _padded(num_seqs)
    tiles = torch.empty(capacity, RECORD, dtype=torch.int32, device=seq_lens.device)
    _tiles_kernel[(triton.cdiv(capacity, part),)](
        query_start,
        seq_lens,
        tiles,
        num_seqs,
        capacity,
        THIN=thin,
        QUERIES=queries_per_tile,
        SEQS=seqs,
        PART=part,
        num_warps=4,
    )
    return Work(tiles, None, queries_per_tile)


def split(tiles: Work, *, window: int | None, target: int, least_chunk: int, kv_tile: int) -> Work:
    """The tiles' keys cut into at most `target` items beyond one for each tile. A tile with no
    more than `least_chunk` keys is not cut, and pieces are even. One launch."""
    num_tiles = len(tiles.items)
    capacity = num_tiles + target
    padded, part = _padded(num_tiles)
    device = tiles.items.device
    items = torch.empty(capacity, RECORD, dtype=torch.int32, device=device)
    units = torch.empty(num_tiles, UNIT, dtype=torch.int32, device=device)
    _split_kernel[(triton.cdiv(capacity, part),)](
        tiles.items,
        items,
        units,
        num_tiles,
        capacity,
        target,
        WINDOW=window or 0,
        LEAST=least_chunk,
        KV_TILE=kv_tile,
        TILES=padded,
        PART=part,
        num_warps=4,
    )
    return Work(items, units, tiles.queries_per_tile)


def _padded(count: int) -> tuple[int, int]:
    """What so many sequences or tiles are padded to, and how many records a program writes."""
    padded = _FEW if count <= _FEW else max(_MANY, triton.next_power_of_2(count))
    return padded, max(1, _PLAN_CELLS // padded)

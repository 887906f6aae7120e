"""Tile sizes of the experts' products, by how many rows an expert has.

Knows: a small table and why it is so. Does not know: kernels. Nothing is searched for at run
time; `benchmarks/gpu/experts.py` measures the alternatives.

A step of few tokens moves weights: what counts is that enough bytes are on the way (an H100 needs
some 2 MB, 16 KB per multiprocessor) from programs enough to keep 132 multiprocessors evenly busy.
A bfloat16 tile of 64 x 128 numbers is 16 KB; four stages of it and of the rows are 60 to 80 KB, two
or three programs a multiprocessor, so some 100 KB on the way. A tile of 128 x 128 4-bit numbers is
8 KB; registers bound programs to three a multiprocessor, 72 KB. The smallest useful tile of those
has four bytes of scales a thread (`mxfp4`).

A step of many tokens multiplies: 128 x 256 sums by eight warps, 64 deep, are 4.2 MFLOP for 48 KB
read from L2, 87 FLOP a byte, where an H100 does some 140 per byte of its L2 bandwidth (5.5 TB/s);
rows of the same expert are run one after the other (`group`), so that its weights stay in L2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FEW_PAIRS = 16
"""Up to so many pairs of token and expert there are too few tiles to fill a GPU as they are."""
LEAST_COLUMNS = 16
LEAST_STAGES = 2


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes at a time: `columns` outputs, from `depth` inputs each turn,
    `stages` turns loaded ahead. `group` tiles of rows are run before the next columns; 0: all."""

    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class ExpertTuning:
    """`rows`: pairs per tile, of both products. `splits`: into how many parts the second
    product's inputs are divided, to be summed when a token's experts are."""

    rows: int
    up: Tile
    down: Tile
    splits: int = 1


_PLAIN = {
    16: ExpertTuning(16, Tile(64, 128, 4, 4), Tile(64, 128, 4, 4)),
    32: ExpertTuning(32, Tile(128, 64, 4, 4), Tile(128, 64, 4, 4)),
    64: ExpertTuning(64, Tile(128, 64, 4, 4), Tile(128, 64, 4, 4)),
    128: ExpertTuning(128, Tile(256, 64, 8, 3, 8), Tile(128, 64, 8, 4, 8)),
}
_PLAIN_FEW = ExpertTuning(16, Tile(32, 128, 4, 4), Tile(32, 128, 4, 4), splits=2)
_MXFP4 = {
    16: ExpertTuning(16, Tile(128, 128, 4, 4), Tile(128, 128, 4, 4)),
    32: ExpertTuning(32, Tile(128, 128, 4, 3), Tile(128, 128, 4, 3)),
    64: ExpertTuning(64, Tile(128, 128, 4, 3), Tile(128, 128, 4, 3)),
    128: ExpertTuning(128, Tile(128, 64, 8, 4, 8), Tile(128, 64, 8, 4, 8)),
}
_MXFP4_FEW = ExpertTuning(16, Tile(64, 256, 4, 4), Tile(64, 256, 4, 4), splits=2)


def plain_tuning(pairs: int, experts: int) -> ExpertTuning:
    """For weights of 16 (or 32) bits."""
    return _PLAIN_FEW if pairs <= FEW_PAIRS else _PLAIN[_rows(pairs, experts)]


def mxfp4_tuning(pairs: int, experts: int) -> ExpertTuning:
    """For weights of 4 bits."""
    return _MXFP4_FEW if pairs <= FEW_PAIRS else _MXFP4[_rows(pairs, experts)]


def _rows(pairs: int, experts: int) -> int:
    """Rows per tile: twice what an expert has on average, so that few experts need a second tile
    and read their weights again."""
    return next((rows for rows in (16, 32, 64) if 2 * pairs <= rows * experts), 128)


def fitted(
    tuning: ExpertTuning,
    hidden: int,
    width: int,
    least_depth: int,
    column_bytes: float,
    row_bytes: int,
    room_bytes: int,
) -> ExpertTuning:
    """The same for matrices and devices that are smaller than the table was made for: no tile
    wider than the matrix, no more shared memory than there is. `hidden` and `width` are the sizes
    of hidden states and of an expert, `least_depth` what a turn must take, the bytes those of one
    weight and of one number of a row."""

    def cut(tile: Tile, columns: int, inputs: int) -> Tile:
        tile = replace(
            tile,
            columns=max(LEAST_COLUMNS, min(tile.columns, _power_of_2(columns))),
            depth=max(least_depth, min(tile.depth, _power_of_2(inputs))),
        )
        while tile.columns > LEAST_COLUMNS or tile.stages > 1:
            turn = tile.depth * (tile.columns * column_bytes + tuning.rows * row_bytes)
            if turn * tile.stages <= room_bytes:
                break
            if tile.stages > LEAST_STAGES or tile.columns == LEAST_COLUMNS:
                tile = replace(tile, stages=tile.stages - 1)
            else:
                tile = replace(tile, columns=tile.columns // 2)
        return tile

    up, down = cut(tuning.up, 2 * width, hidden), cut(tuning.down, hidden, width)
    return replace(tuning, up=up, down=down, splits=min(tuning.splits, -(-width // down.depth)))


def _power_of_2(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()

"""Tile sizes follow the rows an expert has, the matrices and the device."""

from __future__ import annotations

import pytest

from gpt_oss_server.engine.kernels.expert_tuning import (
    ExpertTuning,
    Tile,
    fitted,
    mxfp4_tuning,
    plain_tuning,
)

H100_SHARED_BYTES = 227 * 1024
L4_SHARED_BYTES = 99 * 1024
SIZES = (2880, 2880)


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1, 16), (4, 16), (64, 16), (65, 32), (128, 32), (256, 64), (8192, 128)]
)
def test_rows_of_gpt_oss_20b(tokens: int, rows: int) -> None:
    """At most twice what an expert has on average, within what tensor cores take."""
    assert plain_tuning(4 * tokens, 32).rows == rows
    assert mxfp4_tuning(4 * tokens, 32).rows == rows


@pytest.mark.parametrize("pairs", [4, 16, 256, 512, 1024, 32768])
@pytest.mark.parametrize("room", [H100_SHARED_BYTES, L4_SHARED_BYTES])
def test_shared_memory_suffices(pairs: int, room: int) -> None:
    """Every tuning fits both devices, for each kind of weight."""
    for tuning, column_bytes in ((plain_tuning(pairs, 32), 2), (mxfp4_tuning(pairs, 32), 17 / 32)):
        found = fitted(tuning, *SIZES, 32, column_bytes, 2, room)
        for tile in (found.up, found.down):
            turn = tile.depth * (tile.columns * column_bytes + found.rows * 2)
            assert turn * tile.stages <= room


def test_the_tables_are_used_as_they_are_on_an_h100() -> None:
    """Nothing is cut for gpt-oss-20b."""
    for pairs in (4, 256, 512, 1024, 32768):
        plain, small = plain_tuning(pairs, 32), mxfp4_tuning(pairs, 32)
        assert fitted(plain, *SIZES, 16, 2, 2, H100_SHARED_BYTES) == plain
        assert fitted(small, *SIZES, 32, 17 / 32, 2, H100_SHARED_BYTES) == small


def test_less_memory_takes_stages_then_columns() -> None:
    """Two stages are the least before tiles are halved."""
    tuning = ExpertTuning(128, Tile(256, 64, 8, 4), Tile(256, 64, 8, 4))
    assert fitted(tuning, *SIZES, 16, 2, 2, 98304).up == Tile(256, 64, 8, 2)
    assert fitted(tuning, *SIZES, 16, 2, 2, 98303).up == Tile(128, 64, 8, 2)


def test_small_matrices_narrow_the_tiles() -> None:
    """To the next power of two, not under what a product takes; no split without inputs."""
    tuning = ExpertTuning(16, Tile(128, 128, 4, 4), Tile(128, 128, 4, 4), splits=3)
    found = fitted(tuning, 48, 10, 32, 2, 2, H100_SHARED_BYTES)
    assert found == ExpertTuning(16, Tile(32, 64, 4, 4), Tile(64, 32, 4, 4), splits=1)

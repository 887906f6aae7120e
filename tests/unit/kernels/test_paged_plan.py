"""Plans made on the device: which programs attend what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_device import DEVICE

pytest.importorskip("triton")

from gpt_oss_server.engine.kernels.paged_plan import Work, find_tiles, split

pytestmark = pytest.mark.usefixtures("one_thread")


def int32(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def tiles_of(
    seqs: list[tuple[int, int]], *, queries: int, thin: bool, capacity: int | None = None
) -> Work:
    """Of (tokens already computed, tokens of this step) pairs."""
    starts = [0]
    for _, new in seqs:
        starts.append(starts[-1] + new)
    if capacity is None:
        capacity = len(seqs) if thin else starts[-1] // queries + len(seqs)
    return find_tiles(
        int32(starts),
        int32([computed + new for computed, new in seqs]),
        queries_per_tile=queries,
        thin=thin,
        capacity=capacity,
    )


def used_tiles(work: Work) -> list[tuple[int, ...]]:
    """(sequence, row, query tokens, position) of the used records."""
    return [tuple(record[:4]) for record in work.items.tolist() if record[2]]


MIXED = [(0, 5), (9, 1), (30, 4), (16, 1), (0, 9)]


def test_thin_tiles_are_the_sequences_with_one_token() -> None:
    """One tile for each, at its row and position; the capacity that is left stays empty."""
    work = tiles_of(MIXED, queries=1, thin=True)
    assert used_tiles(work) == [(1, 5, 1, 9), (3, 10, 1, 16)]
    assert len(work.items) == 5
    assert work.units is None


def test_wide_tiles_cover_the_other_sequences_in_order() -> None:
    """Chunks are cut into tiles that do not cross from one sequence to the next."""
    assert used_tiles(tiles_of(MIXED, queries=4, thin=False)) == [
        (0, 0, 4, 0),
        (0, 4, 1, 4),
        (2, 6, 4, 30),
        (4, 11, 4, 0),
        (4, 15, 4, 4),
        (4, 19, 1, 8),
    ]


def test_a_graph_row_without_a_sequence_is_a_tile_without_keys() -> None:
    """Padding (one query token, length 0) is planned, and attends nothing."""
    tiles = find_tiles(int32([0, 1, 2]), int32([7, 0]), queries_per_tile=1, thin=True, capacity=2)
    assert used_tiles(tiles) == [(0, 0, 1, 6), (1, 1, 1, -1)]
    work = split(tiles, window=None, target=4, least_chunk=4, kv_tile=4)
    assert [record[4:7] for record in work.items.tolist() if record[2]] == [
        [0, 4, 0],
        [4, 7, 0],
        [0, 0, 1],
    ]


def test_rows_without_query_tokens_are_no_tiles() -> None:
    """The other way to pad a graph: sequences of no tokens behind the last that has one."""
    tiles = find_tiles(
        int32([0, 1, 2, 2, 2]), int32([7, 9, 0, 0]), queries_per_tile=1, thin=True, capacity=4
    )
    assert used_tiles(tiles) == [(0, 0, 1, 6), (1, 1, 1, 8)]
    work = split(tiles, window=None, target=4, least_chunk=64, kv_tile=4)
    assert work.units is not None
    assert work.units[:, 3].tolist() == [1, 1, 0, 0]


def test_a_short_sequence_beside_a_long_one_is_one_item() -> None:
    """A chunk follows from the whole work: the long sequence is cut, its neighbours are not."""
    tiles = tiles_of([(8191, 1), (99, 1), (299, 1)], queries=1, thin=True)
    work = split(tiles, window=None, target=8, least_chunk=64, kv_tile=64)
    assert work.units is not None
    # 8592 keys by 8 items is 1074 to a chunk: 8 of 1024 for the first, one for each other.
    assert work.units.tolist() == [[0, 1, 0, 8], [1, 1, 8, 1], [2, 1, 9, 1]]
    assert [tuple(record[4:7]) for record in work.items.tolist() if record[2]] == [
        *((start, start + 1024, 0) for start in range(0, 8192, 1024)),
        (0, 100, 1),
        (0, 300, 1),
    ]


def test_a_window_begins_at_its_first_key() -> None:
    """Keys before the window are in no item, whatever their block."""
    tiles = tiles_of([(999, 1), (49, 1)], queries=1, thin=True)
    work = split(tiles, window=128, target=2, least_chunk=64, kv_tile=16)
    assert [tuple(record[4:7]) for record in work.items.tolist() if record[2]] == [
        (872, 936, 0),
        (936, 1000, 0),
        (0, 50, 1),
    ]


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from([1, 1, 2, 7, 30])), min_size=1, max_size=9
    ),
    st.sampled_from([1, 4, 8]),
    st.booleans(),
    st.none() | st.integers(1, 60),
    st.integers(1, 12),
    st.sampled_from([8, 16, 64]),
)
def test_items_cover_every_key_that_is_seen_once(
    seqs: list[tuple[int, int]],
    queries: int,
    thin: bool,
    window: int | None,
    target: int,
    least: int,
) -> None:
    """Any batch: a tile's items follow one another from its first visible key to its last token,
    in no more records than promised, none below half of the least chunk unless it is the last."""
    tiles = tiles_of(seqs, queries=1 if thin else queries, thin=thin)
    work = split(tiles, window=window, target=target, least_chunk=least, kv_tile=8)
    assert work.units is not None
    expected = used_tiles(tiles)
    assert sum(tile[2] for tile in expected) == sum(new for _, new in seqs if (new == 1) == thin)
    items = work.items.tolist()
    for (seq, row, tokens, position), unit in zip(expected, work.units.tolist(), strict=False):
        assert unit[:2] == [row, tokens]
        mine = items[unit[2] : unit[2] + unit[3]]
        at = 0 if window is None else max(0, position - window + 1)
        for item in mine:
            assert item[:5] == [seq, row, tokens, position, at]
            assert item[6] == (len(mine) == 1)
            assert item[5] > at
            assert item[5] - at >= least / 2 or item is mine[-1]
            at = item[5]
        assert at == position + tokens
    used = sum(record[2] > 0 for record in items)
    assert used == sum(unit[3] for unit in work.units.tolist())
    assert used <= target + len(expected)

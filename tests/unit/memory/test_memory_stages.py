"""Where layers are cut: against every cut there is."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.memory.errors import ImpossibleSplit
from gpt_oss_server.memory.stages import Load, cut_stages

LOADS = st.builds(Load, st.integers(0, 9), st.integers(0, 9))


def worst(
    layers: list[Load], before: Load, after: Load, runs: tuple[range, ...]
) -> tuple[int, int]:
    """The cost of the slowest stage and the size of the largest."""
    ends = [before, *[Load(0, 0)] * (len(runs) - 2), after]
    if len(runs) == 1:
        ends = [before + after]
    totals = [
        sum((layers[index] for index in run), start) for run, start in zip(runs, ends, strict=True)
    ]
    return max(total.cost for total in totals), max(total.size for total in totals)


@given(
    layers=st.lists(LOADS, min_size=1, max_size=7),
    stages=st.integers(1, 4),
    before=LOADS,
    after=LOADS,
    limit=st.none() | st.integers(0, 40),
)
def test_no_cut_is_better(
    layers: list[Load], stages: int, before: Load, after: Load, limit: int | None
) -> None:
    """The fastest slowest stage within the limit; then the smallest largest one."""
    if stages > len(layers):
        return
    every = [
        tuple(range(a, b) for a, b in pairwise((0, *ends, len(layers))))
        for ends in combinations(range(1, len(layers)), stages - 1)
    ]
    scores = [worst(layers, before, after, runs) for runs in every]
    smallest = min(size for _, size in scores)
    most = max(smallest, limit) if limit is not None else max(size for _, size in scores)
    fastest = min(cost for cost, size in scores if size <= most)
    found = cut_stages(layers, stages, before=before, after=after, limit_bytes=limit)
    assert [index for run in found for index in run] == list(range(len(layers)))
    cost, size = worst(layers, before, after, found)
    assert cost == fastest
    assert size == min(size for cost, size in scores if cost == fastest)


def test_a_heavy_head_has_fewer_layers() -> None:
    """A head that costs as much as two layers takes the place of two."""
    layers = [Load(10, 10)] * 8
    found = cut_stages(layers, 2, before=Load(0, 20), after=Load(20, 20))
    assert [len(run) for run in found] == [5, 3]


def test_memory_bounds_the_cut() -> None:
    """What is fastest does not matter where it does not fit."""
    layers = [Load(1, 10)] * 2 + [Load(4, 1)] * 2
    assert [len(run) for run in cut_stages(layers, 2)] == [3, 1]
    bounded = cut_stages(layers, 2, limit_bytes=20)
    assert [len(run) for run in bounded] == [2, 2]


@pytest.mark.parametrize("stages", [0, 4])
def test_more_stages_than_layers(stages: int) -> None:
    """Every stage has a layer."""
    with pytest.raises(ImpossibleSplit, match=f"3 layers cannot be split over {stages}"):
        cut_stages([Load(1, 1)] * 3, stages)

"""Chance: block bootstraps, intervals, paired ratios."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.results.confidence import interval, ratio, repeated, resampled, student
from gpt_oss_server.simulate.workload.requests import Request, Workload, workload_of


def ticking(count: int) -> Workload:
    """A request a second, each with a prefix of its own and of a client of its own."""
    return workload_of(
        "t", [Request(float(i), 1000 + i, 10, (i,), (1000 + i,), 0, f"c{i}") for i in range(count)]
    )


@given(count=st.integers(2, 60), seed=st.integers(0, 1000), blocks=st.integers(2, 12))
@settings(deadline=None, max_examples=60)
def test_a_variant_is_made_of_whole_blocks_of_the_record(
    count: int, seed: int, blocks: int
) -> None:
    """Blocks stay whole and in the record's order; the length in time is the record's."""
    record = ticking(count)
    made = resampled(record, seed, blocks)
    assert list(made.requests) == sorted(made.requests, key=lambda r: r.arrival_s)
    length_s = record.duration_s * (1 + 1 / (count - 1))
    assert all(0 <= r.arrival_s <= length_s for r in made.requests)
    copies = Counter(request.input_tokens for request in made.requests)
    block_s = length_s / blocks
    of_block: dict[int, set[int]] = {}
    for request in record.requests:
        place = min(blocks - 1, int(request.arrival_s / block_s))
        of_block.setdefault(place, set()).add(copies[request.input_tokens])
    assert all(len(numbers) == 1 for numbers in of_block.values())


def test_a_block_drawn_twice_is_of_other_clients_with_other_words() -> None:
    """Else every prompt of the copy would be found cached; what is drawn once is as recorded."""
    made = resampled(ticking(24), seed=3)
    units = [request.units for request in made.requests]
    assert len(set(units)) == len(units)
    clients = [request.client for request in made.requests]
    assert len(set(clients)) == len(clients)
    assert any("#1" in client for client in clients)
    tails = [request.tail_units for request in made.requests]
    assert len(set(tails)) == len(tails)


def test_a_short_record_can_be_repeated() -> None:
    """On end, in time, each time with other words, which bootstraps do not mix up."""
    made = repeated(ticking(30), 3)
    assert len(made.requests) == 90
    assert made.requests_per_s == pytest.approx(1.0)
    assert [r.arrival_s for r in made.requests] == sorted(r.arrival_s for r in made.requests)
    drawn = resampled(made, 1)
    assert len({request.units for request in drawn.requests}) == len(drawn.requests)


def test_the_same_seed_draws_the_same() -> None:
    """And another one something else."""
    record = ticking(40)
    assert resampled(record, 5).requests == resampled(record, 5).requests
    assert resampled(record, 5).requests != resampled(record, 6).requests


def test_an_interval_of_independent_draws_is_of_their_mean() -> None:
    """Worked by hand in logarithms: 1, e², t(1) = 12.706, s = √2, over √2."""
    found = interval([1.0, math.e**2], independent=True)
    assert found.middle == pytest.approx(math.e)
    assert found.high == pytest.approx(math.exp(1 + 12.706))
    assert found.low == pytest.approx(math.exp(1 - 12.706))


def test_an_interval_of_variants_is_wider_by_the_root_of_their_number() -> None:
    """A bootstrap's spread is that of the figure itself."""
    values = [10.0, 11.0, 12.0, 13.0]
    mean = interval(values, independent=True)
    single = interval(values, independent=False)
    assert mean.high is not None
    assert single.high is not None
    assert math.log(single.high / single.middle) == pytest.approx(
        2 * math.log(mean.high / mean.middle)
    )


def test_the_grid_widens_an_interval_without_spread() -> None:
    """Equal knees on a grid of 3 % are equal within 1.5 %."""
    found = interval([5.0, 5.0, 5.0], independent=True, resolution=0.03)
    assert found.high == pytest.approx(5.0 * 1.03**0.5)
    assert found.low == pytest.approx(5.0 / 1.03**0.5)


def test_a_single_draw_has_no_range() -> None:
    """Nothing can be said of its chance."""
    found = interval([7.0], independent=True)
    assert (found.middle, found.low, found.high) == (pytest.approx(7.0), None, None)


def test_a_ratio_is_pair_by_pair() -> None:
    """What makes one draw harder for both cancels."""
    found = ratio([10.0, 20.0, 40.0], [5.0, 10.0, 20.0], independent=True)
    assert (found.low, found.middle, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_student_nears_the_normal() -> None:
    """Tabled up to 30 degrees of freedom, falling ever after."""
    assert (student(1), student(4), student(30)) == (12.706, 2.776, 2.042)
    assert student(30) > student(31) > student(1000) == pytest.approx(1.96, abs=0.003)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: resampled(workload_of("t", []), 0), "nothing to resample"),
        (lambda: resampled(ticking(5), 0, 1), "at least 2 blocks, not 1"),
        (lambda: interval([], independent=True), "needs positive values"),
        (lambda: interval([1.0, 0.0], independent=True), "needs positive values"),
    ],
)
def test_what_cannot_be_is_said(call: object, says: str) -> None:
    """A ConfigError that names it."""
    with pytest.raises(ConfigError, match=says):
        call()  # type: ignore[operator]


def test_a_variant_of_a_record_with_a_pause_has_requests() -> None:
    """However unlikely: a draw of nothing but the pause is no workload."""
    moments = [float(n) for n in range(20)] + [50_000.0 + n for n in range(20)]
    record = workload_of("t", [Request(moment, 10, 10) for moment in moments])
    assert all(resampled(record, seed).requests_per_s > 0 for seed in range(60))

"""The drain rate and the Retry-After made from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.admission.drain import DrainRate


def drained(share: float, every_s: float, times: int) -> DrainRate:
    drain = DrainRate(half_life_s=10.0)
    drain.advance(0.0, False)
    for index in range(times):
        drain.advance((index + 1) * every_s, True)
        drain.freed(share)
    return drain


@pytest.mark.parametrize("times", [5, 50, 5000])
def test_a_constant_drain_is_measured_from_the_start(times: int) -> None:
    """A tenth of the pool each second reads as 0.1 per second, early and late."""
    rate = drained(0.1, 1.0, times).rate_per_s()
    assert rate == pytest.approx(0.1, rel=0.25 if times == 5 else 0.05)


def test_it_follows_a_change_within_a_few_half_lives() -> None:
    """Ten times slower for five half-lives: within a half of the new rate."""
    drain = drained(0.1, 1.0, 100)
    for second in range(101, 151):
        drain.advance(float(second), True)
        drain.freed(0.01)
    assert drain.rate_per_s() == pytest.approx(0.01, rel=0.5)


def test_idle_time_does_not_count() -> None:
    """An hour with nothing running leaves the rate as it was."""
    drain = drained(0.1, 1.0, 50)
    before = drain.rate_per_s()
    drain.advance(3650.0, False)
    assert drain.rate_per_s() == before


def test_unknown_until_something_came_free() -> None:
    """No release, no rate: the fallback is said instead."""
    drain = DrainRate(10.0)
    drain.advance(0.0, True)
    drain.advance(5.0, True)
    assert drain.rate_per_s() is None
    assert drain.retry_after_s(1.0, fallback_s=5, cap_s=120) == 5


@pytest.mark.parametrize(
    ("share", "seconds"), [(0.0, 1), (0.05, 1), (0.5, 5), (0.55, 6), (1.0, 10), (50.0, 120)]
)
def test_retry_after_is_whole_seconds_within_limits(share: float, seconds: int) -> None:
    """Rounded up, at least 1, at most the cap."""
    drain = drained(0.101, 1.0, 500)
    assert drain.retry_after_s(share, fallback_s=5, cap_s=120) == seconds


def test_time_that_goes_back_changes_nothing() -> None:
    """A clock that jumps back does no harm."""
    drain = drained(0.1, 1.0, 50)
    before = drain.rate_per_s()
    drain.advance(1.0, True)
    assert drain.rate_per_s() == before


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.booleans(), st.floats(0, 1)), max_size=30),
    st.floats(0, 1e3),
)
def test_retry_after_is_always_within_limits(
    steps: list[tuple[float, bool, float]], share: float
) -> None:
    """Whatever happened before."""
    drain = DrainRate(10.0)
    now_s = 0.0
    for more_s, busy, freed in steps:
        now_s += more_s
        drain.advance(now_s, busy)
        drain.freed(freed)
    assert 1 <= drain.retry_after_s(share, fallback_s=5, cap_s=120) <= 120


def test_a_busy_time_of_nearly_nothing_says_nothing() -> None:
    """The smallest moment there is: no rate can be told, and none is made up."""
    drain = DrainRate(half_life_s=10.0)
    drain.advance(0.0, False)
    drain.advance(5e-324, True)
    drain.freed(0.5)
    assert drain.rate_per_s() is None
    assert drain.retry_after_s(0.1, fallback_s=3, cap_s=60) == 3

"""The window of recent values and its quantile."""

from __future__ import annotations

import pytest

from gpt_oss_server.dispatch.recent import RecentValues


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([], 0.95, None),
        ([3.0], 0.95, 3.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([4.0, 1.0, 3.0, 2.0], 0.75, 3.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(1, 101)], 1.0, 100.0),
        ([float(n) for n in range(1, 101)], 0.0, 1.0),
    ],
)
def test_the_smallest_value_that_covers_the_share(
    values: list[float], q: float, expected: float | None
) -> None:
    """Of an empty window nothing is known; else a value that was really measured."""
    window = RecentValues()
    for value in values:
        window.add(value)
    assert window.quantile(q) == expected


def test_only_the_last_count() -> None:
    """Beyond its size the window forgets the oldest."""
    window = RecentValues(size=2)
    for value in (100.0, 1.0, 2.0):
        window.add(value)
    assert window.quantile(1.0) == 2.0

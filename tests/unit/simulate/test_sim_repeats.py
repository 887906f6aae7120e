"""Means and intervals over several draws."""

from __future__ import annotations

import math

import pytest

from gpt_oss_server.simulate.results.repeats import repeats_json, spread
from gpt_oss_server.simulate.results.slo import ClassReport, SloReport


def report(met: int, ttft_s: float | None, goodput: float) -> SloReport:
    """Of one class of ten requests."""
    times = None if ttft_s is None else (ttft_s, 2 * ttft_s, 3 * ttft_s)
    return SloReport((ClassReport("short", 10, met, times, times, times),), goodput, True)


def test_a_mean_and_its_range() -> None:
    """Of independent draws the mean's range, t · s / √K; of variants one figure's, t · s."""
    values = [1.0, 2.0, 3.0]
    half = 4.303 / math.sqrt(3)
    assert spread(values, independent=True) == pytest.approx(
        {"mean": 2.0, "low": 0.0, "high": 2.0 + half}
    )
    assert spread([101.0, 102.0, 103.0], independent=False) == pytest.approx(
        {"mean": 102.0, "low": 97.697, "high": 106.303}
    )
    assert spread([0.9, 1.0], independent=True, most=1.0)["high"] == 1.0  # type: ignore[index]
    assert spread([1.0], independent=True) is None


def test_figure_by_figure() -> None:
    """Goodput, shares and quantiles; runs that served nobody do not count in times."""
    found = repeats_json(
        [report(10, 1.0, 5.0), report(8, 3.0, 7.0), report(0, None, 6.0)], [], independent=True
    )
    (one,) = found["classes"]
    assert (found["runs"], found["goodput_per_s"]["mean"]) == (3, 6.0)
    assert one["share_met"]["mean"] == pytest.approx(0.6)
    assert [interval["mean"] for interval in one["ttft_s"]] == [2.0, 4.0, 6.0]
    assert "capacity_per_s" not in found
    swept = repeats_json([report(1, 1.0, 1.0)] * 2, [4.0, 6.0], independent=True)
    assert swept["capacity_per_s"]["mean"] == 5.0


def test_nothing_to_average() -> None:
    """Where only one run served anybody there is no interval."""
    found = repeats_json([report(1, 1.0, 1.0), report(0, None, 0.0)], [], independent=True)
    assert found["classes"][0]["ttft_s"] == [None, None, None]

"""Several runs of one policy as means and 95 % intervals, figure by figure.

Knows: means and Student's t, what a report's figures are. Does not know: how the runs differ (see
`confidence`), or how they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gpt_oss_server.simulate.results.confidence import student
from gpt_oss_server.simulate.results.slo import QUANTILES, ClassReport, SloReport

TIMES = ("ttft_s", "tpot_s", "e2e_s")

Interval = dict[str, float]


def repeats_json(
    reports: Sequence[SloReport], capacities: Sequence[float], *, independent: bool
) -> dict[str, Any]:
    """The figures of a policy's document again, each as `mean`, `low` and `high`.

    Args:
        reports: of the runs, the same classes in each.
        capacities: of the sweeps, requests per second; empty where there were none.
        independent: the runs' workloads were drawn each on its own: the range is of the mean. Else
            they are variants of one record, and the range is of one such record's figure.

    Returns:
        `runs`, `independent`, `goodput_per_s`, `capacity_per_s` where there were sweeps, and by
        class `share_met` and the quantiles of the times; None where fewer than two runs have it.
    """
    found: dict[str, Any] = {
        "runs": len(reports),
        "independent": independent,
        "goodput_per_s": spread([report.goodput_per_s for report in reports], independent),
        "classes": [
            _class([report.classes[place] for report in reports], independent)
            for place in range(len(reports[0].classes))
        ],
    }
    if capacities:
        found["capacity_per_s"] = spread(capacities, independent)
    return found


def spread(values: Sequence[float], independent: bool, most: float = math.inf) -> Interval | None:
    """Mean and 95 % interval, within 0 … `most`; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = student(len(values) - 1) * math.sqrt(variance / (len(values) if independent else 1))
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(most, mean + half)}


def _class(reports: Sequence[ClassReport], independent: bool) -> dict[str, Any]:
    shares = [report.share_met for report in reports]
    return {
        "name": reports[0].name,
        "share_met": spread(shares, independent, most=1.0),
        **{name: _quantiles(reports, _times(name), independent) for name in TIMES},
    }


def _times(name: str) -> Callable[[ClassReport], tuple[float, ...] | None]:
    return lambda report: getattr(report, name)


def _quantiles(
    reports: Sequence[ClassReport],
    times: Callable[[ClassReport], tuple[float, ...] | None],
    independent: bool,
) -> list[Interval | None]:
    """Of the runs in which anybody of the class was served."""
    found = [values for values in map(times, reports) if values is not None]
    return [spread([values[q] for values in found], independent) for q in range(len(QUANTILES))]

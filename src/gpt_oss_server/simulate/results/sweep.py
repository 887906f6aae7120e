"""How much load a fleet bears, and how near a policy comes to one that knows the future.

Knows: load factors, the knee, the clairvoyant bound. Does not know: what a policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies.view import RankingPolicy
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Failure, Fleet
from gpt_oss_server.simulate.results.slo import Slo, SloReport, judge
from gpt_oss_server.simulate.workload.requests import Workload

MakePolicy = Callable[[], RankingPolicy]
Progress = Callable[[float, int, int], None]
"""Told (load factor that is tried, requests that came, all) now and then."""
FIRST_STRIDE = 1.35
FARTHEST = 1000.0
"""So many times faster, or slower, than where it began a search ends."""


@dataclass(frozen=True)
class LoadPoint:
    """One load and how promises were kept at it. `factor` is relative to the workload as it is."""

    factor: float
    requests_per_s: float
    report: SloReport


@dataclass(frozen=True)
class Capacity:
    """The largest load found at which every class is served as promised (None: not even the
    smallest tried), within `tolerance`, and all loads that were tried, by load. `endless`: nothing
    that was tried was too much, so that more may be borne."""

    best: LoadPoint | None
    tolerance: float
    tried: tuple[LoadPoint, ...]

    @property
    def requests_per_s(self) -> float:
        return self.best.requests_per_s if self.best is not None else 0.0

    @property
    def endless(self) -> bool:
        return self.best is not None and self.best is self.tried[-1]


def load_point(
    workload: Workload,
    fleet: Fleet,
    make: MakePolicy,
    slo: Slo,
    factor: float,
    *,
    clairvoyant: bool = False,
    failures: Sequence[Failure] = (),
    view_age_s: float = 0.0,
    progress: Progress | None = None,
) -> LoadPoint:
    """Play the workload `factor` times as fast, with a policy that remembers nothing of other
    loads. A failure comes at the same request at any load, and lasts as long."""
    faster = workload.at_load(factor)
    outcome = simulate(
        faster,
        fleet,
        make(),
        slo=slo,
        clairvoyant=clairvoyant,
        failures=[replace(failure, at_s=failure.at_s / factor) for failure in failures],
        view_age_s=view_age_s,
        progress=None if progress is None else partial(progress, factor),
    )
    return LoadPoint(factor, faster.requests_per_s, judge(outcome, slo))


def capacity(
    workload: Workload,
    fleet: Fleet,
    make: MakePolicy,
    slo: Slo,
    *,
    start: float = 1.0,
    tolerance: float = 0.03,
    clairvoyant: bool = False,
    failures: Sequence[Failure] = (),
    view_age_s: float = 0.0,
    progress: Progress | None = None,
) -> Capacity:
    """Find the knee: stride by a third from `start` until one load is borne and one is not, then
    halve the (logarithmic) gap until it is within `tolerance`.

    Attainment need not fall steadily with load; what is found is a knee next to which a load
    `tolerance` higher fails, or the last load where `FARTHEST` is reached first. Raises ConfigError
    for a start or tolerance that is not above 0, and where all requests come at one moment.
    """
    if not (start > 0 and tolerance > 0):
        raise ConfigError("a sweep needs a start and a tolerance above 0")
    if not workload.duration_s > 0:
        raise ConfigError(f"{workload.name}: all requests come at one moment, at any load")
    borne: LoadPoint | None = None
    too_much: float | None = None
    tried: list[LoadPoint] = []
    factor = start
    while start / FARTHEST <= factor <= start * FARTHEST:
        point = load_point(
            workload,
            fleet,
            make,
            slo,
            factor,
            clairvoyant=clairvoyant,
            failures=failures,
            view_age_s=view_age_s,
            progress=progress,
        )
        tried.append(point)
        if point.report.met:
            borne = point
        else:
            too_much = factor
        if borne is None:
            factor /= FIRST_STRIDE
        elif too_much is None:
            factor *= FIRST_STRIDE
        elif too_much / borne.factor <= 1 + tolerance:
            break
        else:
            factor = (borne.factor * too_much) ** 0.5
    return Capacity(borne, tolerance, tuple(sorted(tried, key=lambda p: p.factor)))


def clairvoyant_goodput(
    workload: Workload,
    fleet: Fleet,
    makes: Sequence[MakePolicy],
    slo: Slo,
    factor: float,
    *,
    failures: Sequence[Failure] = (),
    view_age_s: float = 0.0,
    progress: Progress | None = None,
) -> float:
    """Requests per second served as promised by the best of several policies, each told how long
    every answer will be, the best chosen in hindsight. What is attainable with knowledge that
    nobody has; no bound on all conceivable schedules."""
    points = [
        load_point(
            workload,
            fleet,
            make,
            slo,
            factor,
            clairvoyant=clairvoyant,
            failures=failures,
            view_age_s=view_age_s,
            progress=progress,
        )
        for make in makes
        for clairvoyant in (True, False)
    ]
    return max(point.report.goodput_per_s for point in points)

"""What a search plays: a short stretch, a longer one, other draws of it, and at what pace it comes.

Knows: recorded workloads and generated ones, and what each stage of a search needs of them. Does
not know: fleets, stages. A record that is longer than can be played is represented by its busiest
stretch, since promises are to be kept then too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.plan.effort import LEAST_BASE, Effort
from gpt_oss_server.simulate.plan.search import BASE, SHORT
from gpt_oss_server.simulate.results.confidence import repeated, resampled
from gpt_oss_server.simulate.workload.made import make_workload
from gpt_oss_server.simulate.workload.requests import Request, Workload

LEAST_REQUESTS = 20
WHOLE, WHOLE_REQUESTS = "whole", 20_000
"""A record of at most so many requests is played in whole at its own pace."""
SETTLING_S = 60.0
"""A record is repeated until it lasts so long at a guess of what is borne."""
_SEEN_REQUESTS, _SEEN_PER_S = 1000, 2.0

WorkOf = Callable[[Request], float]
"""Seconds that a request costs: weighs prompts against answers."""


@dataclass(frozen=True)
class Source:
    """A recorded workload, or a mix by its name; the pace that is expected, in requests per second
    (`rate`) or as a multiple of the record's own (`load`). Raises ConfigError."""

    record: Workload | None = None
    mix: str = ""
    rate: float | None = None
    load: float = 1.0

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ConfigError(f"--rate must be above 0, not {self.rate:g}")
        if not self.load > 0:
            raise ConfigError(f"--load must be above 0, not {self.load:g}")

    def glimpse(self, seed: int) -> Workload:
        """What the requests are like. Raises ConfigError for too few, or an unknown mix."""
        seen = self.record or make_workload(
            self.mix,
            requests_per_s=_SEEN_PER_S,
            duration_s=_SEEN_REQUESTS / _SEEN_PER_S,
            seed=seed,
        )
        _check(seen)
        return seen


@dataclass(frozen=True)
class Traffics:
    """Workloads by name: `short`, `base`, the `draws`, and `whole` where that is more than base.

    `independent`: draws are a generator's, not variants of one record. `pace` says how fast the
    workload is in fact (None: nobody said), which is `factor` times as fast as base. `title` and
    `played` say in words what it is and what of it is played; `notes` what was wrong with it.
    """

    title: str
    by_name: Mapping[str, Workload]
    draws: tuple[str, ...]
    independent: bool
    played: tuple[str, ...]
    pace: str | None
    factor: float
    notes: tuple[str, ...] = ()

    @property
    def rates(self) -> dict[str, float]:
        """Requests per second of each."""
        return {name: one.requests_per_s for name, one in self.by_name.items()}

    @property
    def at_pace(self) -> str:
        """The workload that is played at its own pace."""
        return WHOLE if WHOLE in self.by_name else BASE


def traffics(
    source: Source, effort: Effort, work_s: WorkOf, near_per_s: float, draws: int, seed: int
) -> Traffics:
    """From a record, or from a mix at `near_per_s` unless its pace is known. Raises ConfigError for
    too few requests."""
    if source.record is not None:
        wanted = min(effort.base_requests, int(max(LEAST_BASE, SETTLING_S * near_per_s)))
        return _recorded(source, source.record, effort, work_s, wanted, draws, seed)
    return _made(source, effort, near_per_s, draws, seed)


def busiest(workload: Workload, count: int, work_s: WorkOf) -> Workload:
    """The `count` requests on end that ask for most work in their time, from 0 s on; all, where no
    more are there. What comes at a single moment has no pace, and is none."""
    requests = workload.requests
    if len(requests) <= count:
        return workload
    upto = [0.0]
    for request in requests:
        upto.append(upto[-1] + work_s(request))

    def load(start: int) -> float:
        length_s = requests[start + count - 1].arrival_s - requests[start].arrival_s
        return (upto[start + count] - upto[start]) / length_s if length_s > 0 else 0.0

    last = len(requests) - count
    start = max((*range(0, last, max(1, count // 8)), last), key=load)
    first_s = requests[start].arrival_s
    kept = requests[start : start + count]
    moved = tuple(one._replace(arrival_s=one.arrival_s - first_s) for one in kept)
    return replace(workload, requests=moved)


def _recorded(
    source: Source,
    record: Workload,
    effort: Effort,
    work_s: WorkOf,
    wanted: int,
    draws: int,
    seed: int,
) -> Traffics:
    base = busiest(record, effort.base_requests, work_s)
    times = -(-wanted // len(base.requests))
    base = repeated(base, times) if times > 1 else base
    by_name = {SHORT: busiest(base, effort.short_requests, work_s), BASE: base}
    names = tuple(f"draw {number}" for number in range(1, draws + 1))
    by_name |= {name: resampled(base, seed + place) for place, name in enumerate(names, 1)}
    all_of_it = len(base.requests) >= len(record.requests)
    factor = source.load if source.rate is None else source.rate / record.requests_per_s
    pace = f"{factor * record.requests_per_s:.2f} requests/s"
    pace += " (its own pace)" if factor == 1.0 else f" ({factor:.3g} × its own pace)"
    if not all_of_it and len(record.requests) <= WHOLE_REQUESTS:
        by_name[WHOLE] = record
    elif not all_of_it:
        pace += ", its busiest stretch"
    title = (
        f"{record.name}: {len(record.requests):,} requests in {record.duration_s:,.0f} s "
        f"({record.requests_per_s:.2f}/s)"
    )
    what = "all of it" if all_of_it else f"its busiest stretch of {_length(base)}"
    if times > 1:
        what += f", {times} times on end (it is short; each time as from other clients)"
    return Traffics(
        title=title,
        by_name=by_name,
        draws=names,
        independent=False,
        played=_played(what, f"{draws} block bootstraps of that", draws),
        pace=pace,
        factor=factor,
        notes=tuple(f"Input: {line}" for line in record.problems.lines()),
    )


def _made(source: Source, effort: Effort, near_per_s: float, draws: int, seed: int) -> Traffics:
    rate = source.rate or near_per_s

    def make(number: int) -> Workload:
        length_s = effort.base_requests / rate
        return make_workload(
            source.mix, requests_per_s=rate, duration_s=length_s, seed=seed + number
        )

    base = make(0)
    _check(base)
    names = tuple(f"draw {number}" for number in range(1, draws + 1))
    by_name = {SHORT: base.first(effort.short_requests), BASE: base}
    by_name |= {name: make(place) for place, name in enumerate(names, 1)}
    return Traffics(
        title=f"the mix {source.mix}",
        by_name=by_name,
        draws=names,
        independent=True,
        played=_played(_length(base), f"{draws} more seeds", draws),
        pace=None if source.rate is None else f"{source.rate:g} requests/s",
        factor=1.0 if source.rate is None else source.rate / base.requests_per_s,
    )


def _played(what: str, chance: str, draws: int) -> tuple[str, ...]:
    made = (f"played: {what}, faster and slower",)
    return (*made, f"chance: {chance}") if draws else made


def _check(workload: Workload) -> None:
    count = len(workload.requests)
    if count < LEAST_REQUESTS:
        raise ConfigError(
            f"{workload.name} has {count} requests: at least {LEAST_REQUESTS} are needed to plan by"
        )
    if not workload.duration_s > 0:
        raise ConfigError(f"{workload.name}: all requests come at one moment")


def _length(workload: Workload) -> str:
    return f"{len(workload.requests):,} requests in {workload.duration_s:,.0f} s"

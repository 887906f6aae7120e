"""How much of a figure is chance: other workloads that might as well have come, and intervals.

Knows: block bootstraps of recorded workloads, Student's t, paired comparisons in logarithms. Does
not know: what the figures are, how workloads are made or played.

A workload from a generator is drawn again with another seed; the draws are independent, so that the
mean of K of them is known to t · s / √K. A recorded one came once. Its variants are block
bootstraps: the record is cut into `BLOCKS` stretches of equal time, as many are drawn with
replacement and played one after the other in the order of the record. Within a stretch nothing is
touched, so bursts, conversations, and prompts that share a prefix stay together; a stretch that is
drawn twice gets other hashes the second time, or its prompts would all be found cached. The spread
of the variants is that of the figure itself (Efron; Künsch for blocks): t · s, without √K.

All candidates are played on the same variants, so that what makes one variant harder than another
cancels in their ratios: two candidates are told apart by the interval of the ratio, not by whether
their intervals overlap.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.workload.requests import Request, Workload

BLOCKS = 12
_COPY = 1 << 62
_REPEAT = 1000
"""A repetition is told from its copies in a bootstrap, which count from one."""
# Two-sided 95 % of Student's t by degrees of freedom; beyond the last the normal's is near enough.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A figure and the range that holds it with 95 % confidence; the range is None for one draw."""

    middle: float
    low: float | None = None
    high: float | None = None


def resampled(workload: Workload, seed: int, blocks: int = BLOCKS) -> Workload:
    """A block bootstrap of a recorded workload, of the same length in time.

    Raises ConfigError without requests, or for fewer than two blocks.
    """
    requests = workload.requests
    if not requests:
        raise ConfigError("nothing to resample: the workload has no requests")
    if blocks < 2:
        raise ConfigError(f"a bootstrap needs at least 2 blocks, not {blocks}")
    # A request's share of time lasts until the next one: the last one's is the mean.
    length_s = workload.duration_s * (1.0 + 1.0 / max(1, len(requests) - 1))
    block_s = length_s / blocks
    if block_s <= 0.0:
        return workload
    start_s = requests[0].arrival_s
    stretches: list[list[Request]] = [[] for _ in range(blocks)]
    for request in requests:
        place = min(blocks - 1, int((request.arrival_s - start_s) / block_s))
        stretches[place].append(request)
    rng = random.Random(seed)
    while True:
        drawn = sorted(rng.randrange(blocks) for _ in range(blocks))
        made: list[Request] = []
        for place, block in enumerate(drawn):
            copy = drawn[:place].count(block)
            shift_s = (place - block) * block_s - start_s
            made += [_moved(request, shift_s, copy) for request in stretches[block]]
        variant = replace(workload, requests=tuple(made))
        # Where most stretches are empty, so may all that were drawn be: such a one is no workload.
        if variant.duration_s > 0:
            return variant


def repeated(workload: Workload, times: int) -> Workload:
    """The record so many times on end, each time from other clients with other words."""
    requests = workload.requests
    length_s = workload.duration_s * (1.0 + 1.0 / max(1, len(requests) - 1))
    made = [
        _moved(request, number * length_s, number * _REPEAT)
        for number in range(times)
        for request in requests
    ]
    return replace(workload, requests=tuple(made))


def interval(values: Sequence[float], *, independent: bool, resolution: float = 0.0) -> Interval:
    """The geometric mean of positive values, and its range.

    Args:
        independent: draws of their own (the mean's range), not variants of one record (a draw's).
        resolution: relative step to which each value was found; it widens the range.

    Raises ConfigError without values, or for one that is not positive.
    """
    if not values or min(values) <= 0.0:
        raise ConfigError("an interval needs positive values")
    logs = [math.log(value) for value in values]
    middle = sum(logs) / len(logs)
    if len(logs) < 2:
        return Interval(math.exp(middle))
    variance = sum((value - middle) ** 2 for value in logs) / (len(logs) - 1)
    spread = variance / len(logs) if independent else variance
    half = student(len(logs) - 1) * math.sqrt(spread)
    half = math.hypot(half, 0.5 * math.log1p(resolution))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def ratio(
    ours: Sequence[float], theirs: Sequence[float], *, independent: bool, resolution: float = 0.0
) -> Interval:
    """What ours is of theirs, pair by pair: both came of the same variants, in the same order."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return interval(pairs, independent=independent, resolution=resolution)


def student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom


def _moved(request: Request, shift_s: float, copy: int) -> Request:
    """At another moment; a copy is of other clients, with other words."""
    moved = request._replace(arrival_s=request.arrival_s + shift_s)
    if not copy:
        return moved
    return moved._replace(
        units=tuple(unit + copy * _COPY for unit in request.units),
        tail_units=tuple(unit + copy * _COPY for unit in request.tail_units),
        client=f"{request.client}#{copy}" if request.client else "",
    )

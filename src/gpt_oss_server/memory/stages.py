"""Where a model's layers are cut into pipeline stages.

Knows: that a pipeline is as fast as its slowest stage, and that a stage must fit its GPU. Does not
know: models; what a layer costs (`weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpt_oss_server.memory.errors import ImpossibleSplit


@dataclass(frozen=True)
class Load:
    """`cost`: time of a step, in any unit. `size`: bytes to hold."""

    cost: int
    size: int

    def __add__(self, other: Load) -> Load:
        return Load(self.cost + other.cost, self.size + other.size)


def cut_stages(
    layers: Sequence[Load],
    stages: int,
    *,
    before: Load = Load(0, 0),
    after: Load = Load(0, 0),
    limit_bytes: int | None = None,
) -> tuple[range, ...]:
    """Runs of layers, one per stage, none empty, such that the slowest stage is as fast as can
    be; of such cuts one whose largest stage is smallest. `before` is what the first stage has
    besides its layers, `after` the last. No stage is larger than `limit_bytes` if that is possible
    at all.

    Raises `ImpossibleSplit` for more stages than layers.
    """
    if not 1 <= stages <= len(layers):
        raise ImpossibleSplit(f"{len(layers)} layers cannot be split over {stages} pipeline stages")
    sums = [Load(0, 0)]
    for layer in layers:
        sums.append(sums[-1] + layer)

    def load(stage: int, first: int, end: int) -> Load:
        total = Load(sums[end].cost - sums[first].cost, sums[end].size - sums[first].size)
        total = total + before if stage == 0 else total
        return total + after if stage == stages - 1 else total

    count = len(layers)
    size = _least(count, stages, lambda *run: load(*run).size, lambda *run: True)[0]
    most = max(size, limit_bytes) if limit_bytes is not None else math.inf
    cost, _ = _least(
        count, stages, lambda *run: load(*run).cost, lambda *run: load(*run).size <= most
    )
    _, runs = _least(
        count, stages, lambda *run: load(*run).size, lambda *run: load(*run).cost <= cost
    )
    return runs


def _least(
    count: int,
    stages: int,
    value: Callable[[int, int, int], float],
    allowed: Callable[[int, int, int], bool],
) -> tuple[float, tuple[range, ...]]:
    """The cut of `count` layers whose greatest `value(stage, first, end)` is least, where every
    stage is `allowed`; and that value. By dynamic programming over the ends of stages."""
    # best[end]: the least greatest value of the stages so far, ending there; and their ends.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for stage in range(stages):
        last = stage == stages - 1
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for end in range(count if last else stage + 1, count - (stages - 1 - stage) + 1):
            options = [
                (max(worst, value(stage, first, end)), (*ends, end))
                for first, (worst, ends) in best.items()
                if first < end and allowed(stage, first, end)
            ]
            if options:
                reached[end] = min(options)
        best = reached
    worst, ends = best[count]
    return worst, tuple(range(a, b) for a, b in pairwise(ends))

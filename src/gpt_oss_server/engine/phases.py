"""The phases of a start, one after another, and how long each took.

Knows: names and seconds. Does not know: what happens in a phase, who is told.

`load`: weights from files (or drawn) onto the device. `rewrite`: laid out as the kernels read them.
`profile`: the largest steps, for what they take. `pools`: the KV pools. `capture`: decode steps as
graphs. `warm`: steps of other sizes, so that what compiles at its first use has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from gpt_oss_server.types import StartPhase

PhaseName = Literal["load", "rewrite", "profile", "pools", "capture", "warm"]


class Phases:
    """What has passed so far, in order of first appearance."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._passed: dict[PhaseName, StartPhase] = {}

    @property
    def passed(self) -> tuple[StartPhase, ...]:
        return tuple(self._passed.values())

    @contextmanager
    def during(self, name: PhaseName) -> Iterator[None]:
        """A phase, or more of one, noted when its work has succeeded."""
        began_s = self._clock()
        yield
        before = self._passed.get(name)
        seconds = self._clock() - began_s + ((before.seconds or 0.0) if before else 0.0)
        self._passed[name] = StartPhase(name, seconds)

    def skip(self, name: PhaseName, why: str) -> None:
        """A phase that does not take place, and why."""
        self._passed[name] = StartPhase(name, None, why)


def summary(passed: Sequence[StartPhase]) -> str:
    """One line for people: `load 12.3 s, profile 1.2 s, capture skipped (--eager)`."""
    return ", ".join(
        f"{phase.name} skipped ({phase.why})"
        if phase.seconds is None
        else f"{phase.name} {phase.seconds:.1f} s"
        for phase in passed
    )

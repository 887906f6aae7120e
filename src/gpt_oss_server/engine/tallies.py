"""How long steps take and how much they compute, counted as they end.

Knows: the bounds in `types`. Does not know: what a step is. About a microsecond per step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import get_args

from gpt_oss_server.types import STEP_SECONDS_BOUNDS, STEP_TOKENS_BOUNDS, StepKind, Tally


class _Buckets:
    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def tally(self) -> Tally:
        return Tally(tuple(self._counts), self._total)


class StepTallies:
    """Steps by kind. A step that computes nothing is none."""

    def __init__(self) -> None:
        kinds: tuple[StepKind, ...] = get_args(StepKind)
        self._seconds = {kind: _Buckets(STEP_SECONDS_BOUNDS) for kind in kinds}
        self._tokens = {kind: _Buckets(STEP_TOKENS_BOUNDS) for kind in kinds}

    def add(self, prefill_tokens: int, decode_tokens: int, seconds: float) -> None:
        kind: StepKind = "mixed"
        if not decode_tokens:
            kind = "prefill"
        elif not prefill_tokens:
            kind = "decode"
        self._seconds[kind].add(seconds)
        self._tokens[kind].add(prefill_tokens + decode_tokens)

    def seconds(self) -> dict[StepKind, Tally]:
        return {kind: buckets.tally() for kind, buckets in self._seconds.items()}

    def tokens(self) -> dict[StepKind, Tally]:
        return {kind: buckets.tally() for kind, buckets in self._tokens.items()}

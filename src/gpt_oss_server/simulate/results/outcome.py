"""What came of a simulated run, as columns.

Knows: one row per request of the workload, one record per replica. Does not know: promises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SERVED, REFUSED, DROPPED, EXPIRED, FAILED = range(5)
"""Ends: served; larger than any replica holds; turned away at a full queue; waited too long; cut
off by a dying replica, or none was up."""
END_NAMES = ("served", "refused", "dropped", "expired", "failed")


@dataclass(frozen=True)
class ReplicaRecord:
    """What one replica did. `busy_s` is the time in steps, `preemptions` how often a sequence was
    put back."""

    id: str
    pool: str
    gpus: int
    requests: int
    busy_s: float
    steps: int
    prefill_tokens: int
    decode_tokens: int
    preemptions: int


@dataclass(frozen=True)
class Samples:
    """The fleet every so often: rows are moments, columns replicas. Waiting are requests in queues,
    decoding sequences of the running batch."""

    at_s: Floats
    utilization: Floats
    kv_share: Floats
    waiting: Ints
    decoding: Ints


@dataclass(frozen=True)
class Outcome:
    """One run. Per request: when it came, its tokens, how it ended, times from its arrival (NaN
    unless served), tokens found cached, preemptions, and the replica's place in `replicas`
    (−1: none). `span_s` is the time in which so many requests come at their mean rate
    (in a closed loop: the whole run), `end_s` when the last one ended."""

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    ended: Ints
    ttft_s: Floats
    e2e_s: Floats
    cached_tokens: Ints
    preemptions: Ints
    replica: Ints
    replicas: tuple[ReplicaRecord, ...]
    span_s: float
    end_s: float
    samples: Samples | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def served(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.ended == SERVED)

    @property
    def tpot_s(self) -> Floats:
        """Mean time per token after the first; 0 for answers of one token, NaN unless served."""
        gaps = np.maximum(self.output_tokens - 1, 1)
        return np.asarray((self.e2e_s - self.ttft_s) / gaps)

    def counts(self) -> dict[str, int]:
        """Requests by how they ended."""
        return {name: int((self.ended == code).sum()) for code, name in enumerate(END_NAMES)}

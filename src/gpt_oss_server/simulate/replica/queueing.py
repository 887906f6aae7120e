"""Waiting prompts of one engine in the order in which they get prefill tokens.

Knows: an order by remaining tokens or by arrival, who waits longest, prefill work by size. Does not
know: blocks, steps, time.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort

from gpt_oss_server.simulate.replica.sequence import WAITING, Sequence

SIZE_CLASSES = 24
"""Prefill work is summed by powers of two of the tokens that a prompt had to compute."""

Entry = tuple[int, int, Sequence]


class WaitingLine:
    """Who waits, as sorted (key, arrival, sequence); the key is what is left to compute where the
    shortest come first, else the arrival."""

    __slots__ = ("_added", "_by_arrival", "_shortest", "_sorted")

    def __init__(self, *, shortest: bool) -> None:
        self._shortest = shortest
        self._sorted: list[Entry] = []
        self._by_arrival: list[tuple[int, int, Sequence]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def key(self, seq: Sequence, remaining_tokens: int) -> int:
        return remaining_tokens if self._shortest else seq.arrival

    def add(self, seq: Sequence, remaining_tokens: int) -> None:
        seq.state = WAITING
        seq.key = self.key(seq, remaining_tokens)
        insort(self._sorted, (seq.key, seq.arrival, seq))
        # The count keeps equal arrivals (one that was put back) from comparing sequences.
        self._added += 1
        heapq.heappush(self._by_arrival, (seq.arrival, self._added, seq))

    def move(self, seq: Sequence, remaining_tokens: int) -> None:
        """What it has to compute is another number than when it was last looked at."""
        key = self.key(seq, remaining_tokens)
        if key != seq.key:
            self.remove(seq)
            seq.key = key
            insort(self._sorted, (key, seq.arrival, seq))

    def remove(self, seq: Sequence) -> None:
        """It no longer waits; its state must already say so."""
        del self._sorted[bisect_left(self._sorted, (seq.key, seq.arrival))]

    def oldest(self) -> Sequence | None:
        """Who came first; entries of those that left meanwhile are dropped on the way."""
        heap = self._by_arrival
        while heap and heap[0][2].state != WAITING:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def entries(self) -> list[Entry]:
        """All of them, in order. Not to be changed."""
        return self._sorted

    def clear(self) -> list[Sequence]:
        """Everybody who waited, by arrival."""
        everybody = sorted((entry[2] for entry in self._sorted), key=lambda seq: seq.arrival)
        self._sorted.clear()
        self._by_arrival.clear()
        return everybody

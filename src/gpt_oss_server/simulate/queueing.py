"""Waiting prompts of one engine in the order in which they get prefill tokens.

Knows: an order by remaining tokens or by arrival, who waits longest, prefill work by size. Does not
know: blocks, steps, time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from itertools import islice

from gpt_oss_server.simulate.sequence import WAITING, Sequence

SIZE_CLASSES = 24
"""Prefill work is summed by powers of two of the tokens that a prompt had to compute."""

Entry = tuple[int, int, Sequence]


class WaitingLine:
    """Who waits, as sorted (key, arrival, sequence); the key is what is left to compute where the
    shortest come first, else the arrival."""

    __slots__ = ("_by_arrival", "_shortest", "_sorted")

    def __init__(self, *, shortest: bool) -> None:
        self._shortest = shortest
        self._sorted: list[Entry] = []
        self._by_arrival: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._sorted)

    def key(self, seq: Sequence, remaining_tokens: int) -> int:
        return remaining_tokens if self._shortest else seq.arrival

    def add(self, seq: Sequence, remaining_tokens: int) -> None:
        seq.state = WAITING
        seq.key = self.key(seq, remaining_tokens)
        insort(self._sorted, (seq.key, seq.arrival, seq))
        late = self._by_arrival
        if late and late[-1].arrival > seq.arrival:
            # Put back after a preemption: older than those behind it.
            place = next(i for i, other in enumerate(late) if other.arrival > seq.arrival)
            late.insert(place, seq)
        else:
            late.append(seq)

    def remove(self, seq: Sequence) -> None:
        """It no longer waits; its state must already say so."""
        del self._sorted[bisect_left(self._sorted, (seq.key, seq.arrival))]

    def oldest(self) -> Sequence | None:
        late = self._by_arrival
        while late and late[0].state != WAITING:
            late.popleft()
        return late[0] if late else None

    def walk(self, start: int = 0) -> Iterator[Entry]:
        return islice(self._sorted, start, None)

    def entries(self) -> list[Entry]:
        """All of them, in order. Not to be changed."""
        return self._sorted

    def clear(self) -> list[Sequence]:
        """Everybody who waited, by arrival."""
        everybody = sorted((entry[2] for entry in self._sorted), key=lambda seq: seq.arrival)
        self._sorted.clear()
        self._by_arrival.clear()
        return everybody

"""The decoding sequences of one engine as sums, so that a run of steps costs no more than one.

Knows: how many decode, what they hold together, who is done when. Does not know: pools, prefills.
Every decode step gives each of them one token, so their lengths differ from a common counter by
constants: sums move in closed form, and who finishes next is a heap of counters.
"""

from __future__ import annotations

import heapq

from gpt_oss_server.simulate.replica.sequence import DECODING, Sequence

_Entry = tuple[int, int, int, Sequence]
"""(counter at which it is done, arrival, preemptions before it joined, sequence)."""


class Decoders:
    """`steps` counts decode steps. After it moved, `pop_done` gives those that are through."""

    __slots__ = ("_heap", "_phases", "block_size", "context_tokens", "count", "steps", "window_s")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.steps = 0
        self.count = 0
        self.context_tokens = 0
        self.window_s = 0.0
        self._heap: list[_Entry] = []
        self._phases = [0] * block_size

    def join(self, seq: Sequence, window_s: float) -> None:
        """A sequence whose prompt is computed and that has tokens left to produce."""
        seq.state = DECODING
        # The token just sampled is not computed yet: the next step does that.
        seq.phase = seq.computed - self.steps
        seq.done_at = self.steps + seq.output_tokens - seq.generated
        seq.window_s = window_s
        self.count += 1
        self.context_tokens += seq.computed
        self.window_s += window_s
        self._phases[seq.phase % self.block_size] += 1
        heapq.heappush(self._heap, (seq.done_at, seq.arrival, seq.preemptions, seq))

    def leave(self, seq: Sequence) -> None:
        """Take one out; its `length`, `generated` and `held` are brought up to date."""
        tokens = seq.phase + self.steps
        self.count -= 1
        self.context_tokens -= tokens
        self.window_s = self.window_s - seq.window_s if self.count else 0.0
        self._phases[seq.phase % self.block_size] -= 1
        seq.generated = seq.output_tokens - (seq.done_at - self.steps)
        seq.computed = tokens
        seq.length = seq.input_tokens + seq.generated
        seq.held = -(-tokens // self.block_size)

    def new_blocks(self, steps: int) -> int:
        """Blocks that the next `steps` steps take: each sequence one whenever its last is full."""
        size = self.block_size
        whole, rest = divmod(steps, size)
        first = -self.steps
        phases = self._phases
        if rest == 1:
            return whole * self.count + phases[first % size]
        return whole * self.count + sum([phases[(first - i) % size] for i in range(rest)])

    def steps_with(self, blocks: int, most: int) -> int:
        """The most steps, up to `most`, that take no more than `blocks` blocks."""
        if self.new_blocks(most) <= blocks:
            return most
        low, high = 0, most - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.new_blocks(middle) <= blocks else (low, middle - 1)
        return low

    def until_next_done(self) -> int:
        """Steps until somebody finishes; 0 where nobody decodes."""
        heap = self._heap
        while heap and not self._valid(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] - self.steps if heap else 0

    def advance(self, steps: int) -> None:
        self.steps += steps
        self.context_tokens += steps * self.count

    def pop_done(self) -> list[Sequence]:
        """Those that have all their tokens, in order of arrival; they must `leave`."""
        heap, steps = self._heap, self.steps
        done: list[Sequence] = []
        while heap and heap[0][0] <= steps:
            entry = heapq.heappop(heap)
            if self._valid(entry):
                done.append(entry[3])
        return done

    def members(self) -> list[Sequence]:
        """All that decode, by arrival."""
        live = [entry[3] for entry in self._heap if self._valid(entry)]
        return sorted(live, key=lambda seq: seq.arrival)

    @staticmethod
    def _valid(entry: _Entry) -> bool:
        """An entry outlives a preemption; its sequence has a later one, or is elsewhere."""
        _, _, preemptions, seq = entry
        return seq.state == DECODING and seq.preemptions == preemptions

"""One replica's KV blocks: who holds how many, and which prefixes are still there.

Knows: counts of blocks, cached units by hash, least recently used first out. Does not know: tokens
of a sequence, time, order. A *unit* is the stretch of a prompt that the workload names by one hash
(a whole number of blocks); what is in use never exceeds the pool, what is only cached makes room
at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class KvPool:
    """`referenced` blocks are held by running sequences; `idle` units are cached and unused.

    `holders` maps a hash to the bit set of replicas that have it, shared by all pools of a fleet,
    so that one walk tells every replica's longest prefix.
    """

    __slots__ = ("_bit", "_holders", "blocks", "idle", "referenced", "shared", "unit_blocks")

    def __init__(
        self, blocks: int, unit_blocks: int, holders: dict[int, int] | None = None, index: int = 0
    ) -> None:
        self.blocks = blocks
        self.unit_blocks = unit_blocks
        self.referenced = 0
        self.shared: dict[int, int] = {}
        # Of a plain dict the first entry is found the slower, the more before it were deleted.
        self.idle: OrderedDict[int, None] = OrderedDict()
        self._holders = {} if holders is None else holders
        self._bit = 1 << index

    @property
    def available(self) -> int:
        """Blocks that can be taken now, cached ones included."""
        return self.blocks - self.referenced

    @property
    def cached_blocks(self) -> int:
        return len(self.idle) * self.unit_blocks

    def take(self, blocks: int) -> None:
        """Hold some more; they must be available. Cached units make room, oldest first."""
        self.referenced += blocks
        if self.idle:
            self.make_room()

    def make_room(self) -> None:
        """Forget cached units until all that is held and cached fits."""
        idle, size = self.idle, self.unit_blocks
        over = self.referenced + len(idle) * size - self.blocks
        if over <= 0:
            return
        shared, holders, others = self.shared, self._holders, ~self._bit
        while over > 0 and idle:
            unit, _ = idle.popitem(last=False)
            del shared[unit]
            left = holders[unit] & others
            if left:
                holders[unit] = left
            else:
                del holders[unit]
            over -= size

    def hit(self, units: Sequence[int], most: int) -> int:
        """How many leading units, at most `most`, are cached."""
        shared = self.shared
        found = 0
        for unit in units:
            if found >= most or unit not in shared:
                break
            found += 1
        return found

    def idle_among(self, units: Sequence[int]) -> int:
        """Blocks of these cached units that nobody holds: acquiring them takes room."""
        idle = self.idle
        return sum(unit in idle for unit in units) * self.unit_blocks

    def acquire(self, units: Sequence[int]) -> None:
        """Hold these cached units."""
        for unit in units:
            count = self.shared[unit]
            self.shared[unit] = count + 1
            if not count:
                del self.idle[unit]
                self.referenced += self.unit_blocks

    def publish(self, unit: int) -> bool:
        """A holder computed this unit: others may share it. False where it was there already (the
        holder keeps its own copy)."""
        if unit in self.shared:
            return False
        self.shared[unit] = 1
        self._holders[unit] = self._holders.get(unit, 0) | self._bit
        return True

    def release(self, private_blocks: int, units: Sequence[int]) -> None:
        """Let go. Units that nobody else holds stay cached, the deepest the first to be lost."""
        self.referenced -= private_blocks
        for unit in reversed(units):
            count = self.shared[unit] - 1
            self.shared[unit] = count
            if not count:
                self.referenced -= self.unit_blocks
                self.idle[unit] = None

    def leave_behind(self, units: Sequence[int]) -> None:
        """Cache what a finished sequence computed beyond its prompt, as far as there is room."""
        for unit in units:
            if unit not in self.shared:
                self.shared[unit] = 0
                self.idle[unit] = None
                self._holders[unit] = self._holders.get(unit, 0) | self._bit
        self.make_room()

    def clear(self) -> None:
        """Everything is gone: the replica died."""
        for unit in self.shared:
            self._drop_holder(unit)
        self.shared.clear()
        self.idle.clear()
        self.referenced = 0

    def _drop_holder(self, unit: int) -> None:
        left = self._holders[unit] & ~self._bit
        if left:
            self._holders[unit] = left
        else:
            del self._holders[unit]

"""What is held: reservations of blocks, each released exactly once.

Knows: leases, their owners and the totals. Does not know: capacity or time. A lease that is
released twice, or was never given, is a bug of the caller and raises; nothing is corrected
silently.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpt_oss_server.admission.capacity import Blocks


class LeaseError(RuntimeError):
    """A lease was reserved twice, or released or grown without being held."""


class Holding(msgspec.Struct):
    """One lease."""

    owner: str
    blocks: Blocks


class LeaseLedger:
    """Totals that always equal the sum of the leases held. Not thread-safe."""

    def __init__(self, groups: int) -> None:
        self._held: dict[int, Holding] = {}
        self._used = [0] * groups
        self._by_owner: dict[str, list[int]] = {}
        self._leases_of: dict[str, int] = {}
        self._peak = [0] * groups

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._held

    @property
    def used(self) -> Blocks:
        return tuple(self._used)

    @property
    def peak(self) -> Blocks:
        """The most ever held at once, per group."""
        return tuple(self._peak)

    def by_owner(self) -> dict[str, Blocks]:
        """Blocks per owner; owners that hold nothing are absent."""
        return {owner: tuple(blocks) for owner, blocks in self._by_owner.items()}

    def reserve(self, ticket: int, owner: str, blocks: Sequence[int]) -> None:
        """Hold `blocks` under `ticket`. Raises LeaseError when the ticket holds some already."""
        if ticket in self._held:
            raise LeaseError(f"ticket {ticket} holds a lease already")
        self._held[ticket] = Holding(owner, tuple(blocks))
        self._leases_of[owner] = self._leases_of.get(owner, 0) + 1
        self._add(owner, blocks, 1)

    def grow(self, ticket: int, blocks: Sequence[int]) -> bool:
        """Raise a lease to at least `blocks` in each group. True when that changed it."""
        holding = self._held.get(ticket)
        if holding is None:
            raise LeaseError(f"ticket {ticket} holds no lease")
        grown = tuple([max(a, b) for a, b in zip(holding.blocks, blocks, strict=True)])
        if grown == holding.blocks:
            return False
        more = [a - b for a, b in zip(grown, holding.blocks, strict=True)]
        holding.blocks = grown
        self._add(holding.owner, more, 1)
        return True

    def release(self, ticket: int) -> Blocks:
        """Give a lease back; returns what it held. Raises LeaseError the second time."""
        holding = self._held.pop(ticket, None)
        if holding is None:
            raise LeaseError(f"ticket {ticket} holds no lease")
        self._add(holding.owner, holding.blocks, -1)
        self._leases_of[holding.owner] -= 1
        if not self._leases_of[holding.owner]:
            del self._leases_of[holding.owner], self._by_owner[holding.owner]
        return holding.blocks

    def _add(self, owner: str, blocks: Sequence[int], sign: int) -> None:
        owned = self._by_owner.setdefault(owner, [0] * len(self._used))
        for index, count in enumerate(blocks):
            owned[index] += sign * count
            self._used[index] += sign * count
            if self._used[index] > self._peak[index]:
                self._peak[index] = self._used[index]

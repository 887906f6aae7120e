"""Leases are given back exactly once, and totals are the sum of what is held."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gpt_oss_server.admission import LeaseError, LeaseLedger


def test_reserve_grow_release() -> None:
    """Totals follow; the peak stays; an owner without leases is gone."""
    ledger = LeaseLedger(2)
    ledger.reserve(1, "a", (3, 1))
    ledger.reserve(2, "b", (2, 2))
    assert ledger.grow(1, (4, 0)) is True
    assert ledger.grow(1, (4, 1)) is False
    assert ledger.used == (6, 3)
    assert ledger.by_owner() == {"a": (4, 1), "b": (2, 2)}
    assert ledger.release(1) == (4, 1)
    assert ledger.by_owner() == {"b": (2, 2)}
    assert ledger.release(2) == (2, 2)
    assert (ledger.used, ledger.peak, len(ledger)) == ((0, 0), (6, 3), 0)


def test_wrong_use_is_an_error_and_changes_nothing() -> None:
    """Released twice, never given, reserved twice: each raises."""
    ledger = LeaseLedger(1)
    ledger.reserve(1, "a", (3,))
    with pytest.raises(LeaseError, match="ticket 1 holds a lease already"):
        ledger.reserve(1, "b", (1,))
    with pytest.raises(LeaseError, match="ticket 2 holds no lease"):
        ledger.release(2)
    with pytest.raises(LeaseError, match="ticket 2 holds no lease"):
        ledger.grow(2, (1,))
    ledger.release(1)
    with pytest.raises(LeaseError, match="ticket 1 holds no lease"):
        ledger.release(1)
    assert ledger.used == (0,)
    assert ledger.by_owner() == {}


class LedgerMachine(RuleBasedStateMachine):
    """A plain dict beside the ledger."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = LeaseLedger(2)
        self.model: dict[int, tuple[str, tuple[int, int]]] = {}
        self.tickets = 0

    @rule(
        target=leases,
        owner=st.sampled_from("abc"),
        blocks=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    )
    def reserve(self, owner: str, blocks: tuple[int, int]) -> int:
        self.tickets += 1
        self.ledger.reserve(self.tickets, owner, blocks)
        self.model[self.tickets] = (owner, blocks)
        return self.tickets

    @rule(ticket=leases, blocks=st.tuples(st.integers(0, 9), st.integers(0, 9)))
    def grow(self, ticket: int, blocks: tuple[int, int]) -> None:
        if ticket in self.model:
            self.ledger.grow(ticket, blocks)
            owner, old = self.model[ticket]
            self.model[ticket] = (owner, (max(old[0], blocks[0]), max(old[1], blocks[1])))

    @rule(ticket=consumes(leases))
    def release(self, ticket: int) -> None:
        assert self.ledger.release(ticket) == self.model.pop(ticket)[1]
        with pytest.raises(LeaseError):
            self.ledger.release(ticket)

    @invariant()
    def totals_are_sums(self) -> None:
        held = list(self.model.values())
        assert self.ledger.used == (sum(b[0] for _, b in held), sum(b[1] for _, b in held))
        assert set(self.ledger.by_owner()) == {owner for owner, _ in held}
        assert len(self.ledger) == len(held)


TestLedger = LedgerMachine.TestCase

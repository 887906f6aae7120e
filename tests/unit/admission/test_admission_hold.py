"""A replica that goes down and comes back: who waits keeps its place, by the pools there are."""

from __future__ import annotations

import pytest
from admission_requests import ask, core, pool

from gpt_oss_server.admission import AdmissionCore, BlockGroup, Capacity, Changes, slots


def tickets(changes: Changes) -> list[int]:
    return [admission.ticket for admission in changes.admitted]


def adds_up(desk: AdmissionCore) -> bool:
    snapshot = desk.snapshot()
    counts = snapshot.counts
    return counts.queued == (
        counts.started_from_queue
        + counts.expired
        + counts.shed
        + counts.no_longer_fits
        + counts.cancelled_waiting
        + snapshot.waiting
    )


def test_nothing_starts_on_hold() -> None:
    """Room there may be: who waits and who comes wait for `resume`, and keep their order."""
    desk = core()
    first = desk.offer(ask(80, 20), 0.0)
    second = desk.offer(ask(40, 10), 0.0)
    desk.hold()
    assert desk.on_hold
    assert tickets(desk.release(first.ticket, None, 1.0)) == []
    third = desk.offer(ask(40, 10), 2.0)
    assert third.action == "queue"
    changes = desk.resume(desk.capacity, 3.0)
    assert tickets(changes) == [second.ticket, third.ticket]
    assert [admission.waited_s for admission in changes.admitted] == [3.0, 1.0]
    assert not desk.on_hold
    assert adds_up(desk)


def test_deadlines_go_on_while_on_hold() -> None:
    """Who has waited long enough departs, whether or not anything could start."""
    desk = core(max_wait_s=5.0)
    first = desk.offer(ask(80, 20), 0.0)
    second = desk.offer(ask(40, 10), 1.0)
    desk.hold()
    desk.release(first.ticket, None, 2.0)
    assert desk.next_deadline_s() == 6.0
    assert desk.expire(5.9).departed == ()
    (departure,) = desk.expire(6.0).departed
    assert (departure.ticket, departure.reason, departure.waited_s) == (
        second.ticket,
        "deadline",
        5.0,
    )
    assert adds_up(desk)


def test_a_smaller_pool_turns_away_what_can_never_fit_it() -> None:
    """With the numbers; the rest waits on with its age, its deadline and how often it was
    passed."""
    desk = core(bypass_limit=1, max_wait_s=30.0)
    first = desk.offer(ask(80, 10), 0.0)
    large = desk.offer(ask(50, 10), 1.0)
    small = desk.offer(ask(20, 10), 2.0)
    passing = desk.offer(ask(5, 5), 3.0)
    assert (large.action, small.action, passing.action) == ("queue", "queue", "accept")
    desk.hold()
    for held in (first, passing):
        desk.release(held.ticket, None, 4.0)
    changes = desk.resume(pool(blocks=5), 5.0)
    (departure,) = changes.departed
    assert (departure.ticket, departure.reason, departure.waited_s) == (
        large.ticket,
        "never_fits",
        4.0,
    )
    assert "60 tokens" in departure.message
    assert tickets(changes) == [small.ticket]
    snapshot = desk.snapshot()
    assert (snapshot.blocks_total, snapshot.blocks_used) == ({"full": 5}, {"full": 3})
    assert snapshot.counts.no_longer_fits == 1
    assert adds_up(desk)


def test_who_was_passed_often_enough_stays_first_in_a_new_pool() -> None:
    """The bypass limit counts what happened before the restart too."""
    desk = core(bypass_limit=1)
    running = desk.offer(ask(40, 10), 0.0)
    giant = desk.offer(ask(85, 5), 0.0)
    passing = desk.offer(ask(5, 5), 0.0)
    blocked = desk.offer(ask(5, 5), 0.0)
    assert (passing.action, blocked.action) == ("accept", "queue")
    desk.resume(pool(blocks=9), 1.0)
    assert desk.offer(ask(5, 5, client_id="late"), 1.0).action == "queue"
    desk.release(passing.ticket, 1, 2.0)
    assert tickets(desk.release(running.ticket, 1, 3.0)) == [giant.ticket]


def test_what_still_runs_is_measured_by_the_new_pools() -> None:
    """Leases move over, even to more than there is; they end once and leave nothing."""
    desk = core()
    held = desk.offer(ask(50, 30), 0.0)
    two = Capacity((BlockGroup(name="full", blocks=4, block_tokens=10), slots(2)))
    desk.resume(two, 1.0)
    assert desk.snapshot().blocks_used == {"full": 8, "slots": 1}
    waits = desk.offer(ask(10, 10), 1.0)
    assert waits.action == "queue"
    desk.progress(held.ticket, 40)
    assert desk.snapshot().blocks_used == {"full": 9, "slots": 1}
    assert tickets(desk.release(held.ticket, 40, 2.0)) == [waits.ticket]
    desk.release(waits.ticket, 10, 3.0)
    assert desk.snapshot().blocks_used == {"full": 0, "slots": 0}


@pytest.mark.parametrize(
    ("blocks", "sequences"), [(10, 4), (8, 4), (7, 3), (4, 2), (3, 1), (2, 1), (1, None)]
)
def test_fewer_sequences_at_once_where_not_all_fit(blocks: int, sequences: int | None) -> None:
    """Four of 20 tokens: as many at once as the new pool holds, none only where one does not
    fit."""
    desk = core(pool(blocks=20))
    first = desk.offer(ask(190, 10), 0.0)
    several = desk.offer(ask(10, 10, sequences=4), 0.0)
    desk.hold()
    desk.release(first.ticket, None, 1.0)
    changes = desk.resume(pool(blocks=blocks), 2.0)
    started = [admission.request.sequences for admission in changes.admitted]
    assert started == ([] if sequences is None else [sequences])
    assert [d.ticket for d in changes.departed] == ([several.ticket] if sequences is None else [])

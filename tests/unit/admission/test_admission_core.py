"""Admission end to end: order, bypass, deadlines, cancels, and nothing left over."""

from __future__ import annotations

import random

import pytest
from admission_requests import ask, core, pool
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpt_oss_server.admission import (
    AdmissionConfig,
    AdmissionCore,
    AdmissionRequest,
    BlockGroup,
    Capacity,
    Changes,
    LeaseError,
    slots,
)


def tickets(changes: Changes) -> list[int]:
    return [admission.ticket for admission in changes.admitted]


def test_a_release_starts_who_waits() -> None:
    """Full, wait, release: the first in line starts and knows how long it waited."""
    desk = core()
    first = desk.offer(ask(50, 50), 0.0)
    second = desk.offer(ask(50, 10), 1.0)
    third = desk.offer(ask(50, 10), 1.0)
    assert (first.action, second.action, third.action) == ("accept", "queue", "queue")
    changes = desk.release(first.ticket, 50, 4.0)
    assert tickets(changes) == [second.ticket]
    assert changes.admitted[0].waited_s == 3.0
    assert tickets(desk.release(second.ticket, 10, 5.0)) == [third.ticket]
    assert tickets(desk.release(third.ticket, 10, 6.0)) == []
    snapshot = desk.snapshot()
    assert snapshot.blocks_used == {"full": 0}
    assert snapshot.blocks_peak == {"full": 10}
    assert (snapshot.counts.accepted, snapshot.counts.started_from_queue) == (1, 2)


def test_a_ticket_is_released_once() -> None:
    """The second release is an error, and so is one that was never given."""
    desk = core()
    ticket = desk.offer(ask(10, 10), 0.0).ticket
    desk.release(ticket, 1, 1.0)
    for call in (
        lambda: desk.release(ticket, 1, 1.0),
        lambda: desk.progress(ticket, 1),
        lambda: desk.preempted(99, 1.0),
    ):
        with pytest.raises(LeaseError, match="holds no lease"):
            call()
    assert desk.snapshot().counts.released == 1


def test_a_giant_is_passed_a_limited_number_of_times() -> None:
    """Small ones slip past a blocked giant up to the limit, then the pool drains for it."""
    desk = core(bypass_limit=3)
    running = [desk.offer(ask(40, 10), 0.0).ticket]
    giant = desk.offer(ask(90, 10, client_id="giant"), 0.0)
    assert giant.action == "queue"
    small = [desk.offer(ask(5, 5, client_id="small"), 1.0) for _ in range(5)]
    assert [v.action for v in small] == ["accept"] * 3 + ["queue"] * 2
    running += [v.ticket for v in small if v.action == "accept"]
    started: list[int] = []
    for ticket in running:
        started += tickets(desk.release(ticket, 1, 2.0))
    assert started == [giant.ticket]
    assert tickets(desk.release(giant.ticket, 1, 3.0)) == [v.ticket for v in small[3:]]


def test_one_clients_own_giant_does_not_block_its_small_ones() -> None:
    """Without client ids all are one client, and small requests still pass."""
    desk = core()
    desk.offer(ask(40, 10), 0.0)
    assert desk.offer(ask(90, 10), 0.0).action == "queue"
    assert desk.offer(ask(5, 5), 0.0).action == "accept"


def test_without_bypass_the_order_is_strict() -> None:
    """A limit of 0 lets nobody past."""
    desk = core(bypass_limit=0)
    desk.offer(ask(40, 10), 0.0)
    desk.offer(ask(90, 10), 0.0)
    assert desk.offer(ask(5, 5), 0.0).action == "queue"


def test_a_full_queue_turns_away_with_retry_after() -> None:
    """The drain rate gives the number: a pool every 10 s, and three pools' worth ahead."""
    desk = core(max_queue_length=2)
    now_s = 0.0
    ticket = desk.offer(ask(90, 10), now_s).ticket
    for _ in range(50):
        now_s += 10.0
        desk.release(ticket, 10, now_s)
        ticket = desk.offer(ask(90, 10), now_s).ticket
    for _ in range(2):
        assert desk.offer(ask(90, 10), now_s).action == "queue"
    refused = desk.offer(ask(90, 10), now_s)
    assert refused.action == "reject"
    assert refused.retry_after_s == pytest.approx(30, abs=12)
    assert refused.message == f"the server is full; retry after {refused.retry_after_s} s"
    assert desk.snapshot().waiting == 2


def test_before_anything_came_free_the_fallback_is_said() -> None:
    """No rate yet: the configured number."""
    desk = core(max_queue_length=0, retry_fallback_s=7)
    desk.offer(ask(90, 10), 0.0)
    assert desk.offer(ask(90, 10), 1.0).retry_after_s == 7


def test_a_queue_of_length_zero_still_admits_what_fits() -> None:
    """Not waiting at all is a valid setting."""
    desk = core(max_queue_length=0)
    assert desk.offer(ask(10, 10), 0.0).action == "accept"
    assert desk.offer(ask(90, 10), 0.0).action == "reject"


def test_deadlines_send_away_and_count() -> None:
    """The sooner of the server's and the request's own; whoever has left does not start."""
    desk = core(max_wait_s=30.0)
    running = desk.offer(ask(90, 10), 0.0)
    server = desk.offer(ask(90, 10, client_id="server"), 0.0)
    own = desk.offer(ask(90, 10, client_id="own", deadline_s=10.0), 0.0)
    assert desk.next_deadline_s() == 10.0
    assert desk.expire(9.9) == Changes()
    departed = desk.expire(10.0).departed
    assert [(d.ticket, d.reason, d.waited_s) for d in departed] == [(own.ticket, "deadline", 10.0)]
    assert departed[0].retry_after_s == 5
    changes = desk.release(running.ticket, 1, 30.0)
    assert [d.ticket for d in changes.departed] == [server.ticket]
    assert changes.admitted == ()
    assert desk.next_deadline_s() is None
    assert desk.snapshot().counts.expired == 2


def test_an_offer_does_not_start_whoever_is_overdue() -> None:
    """Those whose deadline has come leave before anybody is considered, timer or not."""
    desk = core(bypass_limit=0)
    desk.offer(ask(40, 10), 0.0)
    overdue = desk.offer(ask(90, 10, deadline_s=5.0), 0.0)
    verdict = desk.offer(ask(10, 10), 6.0)
    assert verdict.action == "accept"
    assert [d.ticket for d in verdict.changes.departed] == [overdue.ticket]


def test_a_deadline_that_has_passed_is_not_waited_for() -> None:
    """It starts now or not at all."""
    desk = core()
    assert desk.offer(ask(10, 10, deadline_s=0.0), 5.0).action == "accept"
    assert desk.offer(ask(90, 10, deadline_s=5.0), 5.0).action == "reject"


def test_a_flooder_gives_way_when_the_queue_is_full() -> None:
    """The newest request of whoever has most waiting leaves for a client with fewer."""
    desk = core(max_queue_length=3)
    desk.offer(ask(90, 10), 0.0)
    flood = [desk.offer(ask(90, 10, client_id="flood"), 0.0) for _ in range(3)]
    assert desk.offer(ask(90, 10, client_id="flood"), 0.0).action == "reject"
    other = desk.offer(ask(90, 10, client_id="other"), 1.0)
    assert other.action == "queue"
    assert [(d.ticket, d.reason) for d in other.changes.departed] == [(flood[2].ticket, "shed")]
    assert desk.snapshot().waiting_by_client == {"flood": 2, "other": 1}
    assert desk.snapshot().counts.shed == 1


def test_cancel_waiting_running_and_gone() -> None:
    """Each is withdrawn once; a cancel that comes too late does nothing."""
    desk = core()
    running = desk.offer(ask(90, 10), 0.0)
    blocked = desk.offer(ask(90, 10), 0.0)
    last = desk.offer(ask(50, 10), 0.0)
    assert tickets(desk.cancel(blocked.ticket, 1.0)) == []
    assert tickets(desk.cancel(running.ticket, 1.0)) == [last.ticket]
    assert desk.cancel(running.ticket, 2.0) == Changes()
    assert desk.cancel(12345, 2.0) == Changes()
    counts = desk.snapshot().counts
    assert (counts.cancelled_waiting, counts.cancelled_running) == (1, 1)


def test_cancelling_a_barrier_lets_the_others_start() -> None:
    """Who was held back by a giant at its limit starts when the giant leaves."""
    desk = core(bypass_limit=0)
    desk.offer(ask(40, 10), 0.0)
    giant = desk.offer(ask(90, 10), 0.0)
    small = desk.offer(ask(5, 5), 0.0)
    assert tickets(desk.cancel(giant.ticket, 1.0)) == [small.ticket]


def test_optimistic_growth_and_preemption_are_counted_and_stop_new_starts() -> None:
    """A request that outgrows its reservation counts in full; nothing starts meanwhile."""
    desk = core(mode="optimistic", assumed_output_tokens=10)
    first = desk.offer(ask(10, 80), 0.0)
    second = desk.offer(ask(10, 80), 0.0)
    assert desk.snapshot().blocks_used == {"full": 4}
    desk.progress(first.ticket, 60)
    assert desk.snapshot().blocks_used == {"full": 9}
    desk.progress(first.ticket, 30)
    assert desk.snapshot().blocks_used == {"full": 9}
    desk.preempted(second.ticket, 1.0)
    snapshot = desk.snapshot()
    assert snapshot.blocks_used == {"full": 16}
    assert (snapshot.counts.preemptions, snapshot.counts.overcommits) == (1, 1)
    third = desk.offer(ask(1, 1), 2.0)
    assert third.action == "queue"
    assert tickets(desk.release(first.ticket, 70, 3.0)) == [third.ticket]


def test_what_was_observed_lets_more_in() -> None:
    """After short answers the same pool takes more requests at once."""
    desk = core(mode="optimistic", assumed_output_tokens=80)
    request = ask(10, 80)
    now_s = 0.0
    for _ in range(30):
        ticket = desk.offer(request, now_s).ticket
        assert desk.offer(request, now_s).action == "queue"
        queued = tickets(desk.release(ticket, 4, now_s + 1))
        desk.release(queued[0], 4, now_s + 2)
        now_s += 2
        if desk.offer(request, now_s).action == desk.offer(request, now_s).action == "accept":
            break
        raise_free(desk, now_s)
    assert desk.snapshot().running == 2


def raise_free(desk: AdmissionCore, now_s: float) -> None:
    """Cancel everything that is running or waiting."""
    for ticket in range(1, desk.snapshot().counts.offered + 1):
        desk.cancel(ticket, now_s)


POOL = Capacity(
    (
        BlockGroup(name="full", blocks=40, block_tokens=8),
        BlockGroup(name="sliding", blocks=20, block_tokens=8, max_blocks_per_sequence=3),
        slots(6),
    )
)

REQUESTS = st.builds(
    AdmissionRequest,
    id=st.just("r"),
    prompt_tokens=st.integers(0, 200) | st.integers(0, 400),
    max_tokens=st.integers(0, 200),
    explicit=st.booleans(),
    sequences=st.sampled_from([1, 1, 1, 2, 7]),
    client_id=st.sampled_from("abc"),
    priority=st.integers(0, 9),
    multi_gpu_elsewhere=st.booleans(),
    deadline_s=st.none() | st.floats(0, 60),
)


class StormMachine(RuleBasedStateMachine):
    """Any order of calls; what the core says is all that the model goes by."""

    mode = "worst_case"

    def __init__(self) -> None:
        super().__init__()
        config = AdmissionConfig(
            mode=self.mode,  # type: ignore[arg-type]
            max_queue_length=8,
            max_wait_s=20.0,
            ageing_s=1.0,
            bypass_limit=3,
            scan_limit=4,
            open_output_tokens=100,
            min_open_output_tokens=20,
            assumed_output_tokens=20,
        )
        self.core = AdmissionCore(POOL, config)
        self.now_s = 0.0
        self.running: dict[int, AdmissionRequest] = {}
        self.waiting: set[int] = set()

    def carry_out(self, changes: Changes) -> None:
        for admission in changes.admitted:
            self.waiting.remove(admission.ticket)
            self.admit(admission)
        for departure in changes.departed:
            self.waiting.remove(departure.ticket)
            assert 1 <= departure.retry_after_s <= 120

    def admit(self, admission: object) -> None:
        ticket, request, plan = admission.ticket, admission.request, admission.plan  # type: ignore[attr-defined]
        assert ticket not in self.running
        self.running[ticket] = request
        assert plan.expected_tokens <= plan.max_tokens <= request.max_tokens
        assert plan.shrunk is (plan.max_tokens < request.max_tokens)
        if request.explicit:
            assert plan.max_tokens == request.max_tokens
        else:
            assert plan.max_tokens >= min(request.max_tokens, 20)

    def pick(self, index: int) -> int:
        return sorted(self.running)[index % len(self.running)]

    @rule(request=REQUESTS)
    def offer(self, request: AdmissionRequest) -> None:
        verdict = self.core.offer(request, self.now_s)
        self.carry_out(verdict.changes)
        if verdict.action in ("accept", "shrink"):
            self.admit(verdict.admission)
        elif verdict.action == "queue":
            self.waiting.add(verdict.ticket)
        elif verdict.action == "reject":
            assert verdict.retry_after_s is not None
            assert 1 <= verdict.retry_after_s <= 120
        elif verdict.action == "never_fits":
            assert "more than there is" in verdict.message
        else:
            assert request.multi_gpu_elsewhere

    @rule(seconds=st.floats(0, 15))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.carry_out(self.core.expire(self.now_s))
        due = self.core.next_deadline_s()
        assert due is None or due > self.now_s

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 10), output=st.none() | st.integers(0, 200))
    def release(self, index: int, output: int | None) -> None:
        ticket = self.pick(index)
        del self.running[ticket]
        self.carry_out(self.core.release(ticket, output, self.now_s))

    @rule(ticket=st.integers(1, 60))
    def cancel(self, ticket: int) -> None:
        self.running.pop(ticket, None)
        self.waiting.discard(ticket)
        self.carry_out(self.core.cancel(ticket, self.now_s))

    @invariant()
    def it_adds_up(self) -> None:
        snapshot = self.core.snapshot()
        counts = snapshot.counts
        assert snapshot.running == len(self.running)
        assert snapshot.waiting == len(self.waiting) <= 8
        assert counts.offered == (
            counts.accepted + counts.shrunk + counts.routed4 + counts.queued
            + counts.rejected + counts.never_fits
        )  # fmt: skip
        assert counts.queued == (
            counts.started_from_queue + counts.expired + counts.shed
            + counts.cancelled_waiting + snapshot.waiting
        )  # fmt: skip
        assert counts.accepted + counts.shrunk + counts.started_from_queue == (
            counts.released + counts.cancelled_running + snapshot.running
        )

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not self.running:
            assert not self.waiting

    @invariant()
    def never_over_committed(self) -> None:
        if self.mode == "worst_case":
            used = self.core.snapshot().blocks_used
            assert all(used[group.name] <= group.blocks for group in POOL.groups)

    def teardown(self) -> None:
        for _ in range(100):
            if not self.running:
                break
            self.release(0, 1)
        snapshot = self.core.snapshot()
        assert (snapshot.running, snapshot.waiting) == (0, 0)
        assert set(snapshot.blocks_used.values()) == {0}
        assert snapshot.waiting_by_client == {}


class OptimisticStormMachine(StormMachine):
    """The same with growth and preemption, which may exceed the pool but never lose a block."""

    mode = "optimistic"

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 10), output=st.integers(0, 200))
    def progress(self, index: int, output: int) -> None:
        self.core.progress(self.pick(index), output)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 10))
    def preempted(self, index: int) -> None:
        self.carry_out(self.core.preempted(self.pick(index), self.now_s))


TestStorm = StormMachine.TestCase
TestStorm.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOptimisticStorm = OptimisticStormMachine.TestCase
TestOptimisticStorm.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_nobody_starves_under_endless_overload(priority: int) -> None:
    """Three times more top-priority work than fits, from ever new clients, and a full queue: a
    giant of any priority is let in and starts soon after its class has aged to the top."""
    desk = core(
        pool(20, 10), max_wait_s=10_000.0, ageing_s=2.0, bypass_limit=8, max_queue_length=20
    )
    rng = random.Random(0)
    ends: list[tuple[float, int]] = []
    giant = 0
    started_s: float | None = None
    step = 0
    while started_s is None and step < 1000:
        now_s = step * 0.1
        changes = []
        for item in [item for item in ends if item[0] <= now_s]:
            ends.remove(item)
            changes.append(desk.release(item[1], 5, now_s))
        for index in range(2):
            giants_turn = (step, index) == (100, 0)
            request = (
                ask(190, 10, client_id="giant", priority=priority)
                if giants_turn
                else ask(rng.randrange(5, 40), 10, client_id=f"{step}-{index}", priority=9)
            )
            verdict = desk.offer(request, now_s)
            if giants_turn:
                assert verdict.action == "queue"
                giant = verdict.ticket
            changes.append(verdict.changes)
            own = (verdict.admission,) if verdict.admission is not None else ()
            changes.append(Changes(own))
        for admission in [a for change in changes for a in change.admitted]:
            ends.append((now_s + 1.0, admission.ticket))
            if admission.ticket == giant:
                started_s = now_s
        assert all(d.ticket != giant for change in changes for d in change.departed)
        step += 1
    assert started_s is not None
    # After ageing: 20 waiting (3.3 s of the pool), 8 that pass (1.3 s), and the drain (1 s).
    assert started_s - 10.0 <= (9 - priority) * 2.0 + 6.0


def test_short_requests_start_beside_a_stream_of_giants() -> None:
    """A client that floods with giants does not keep another's short requests waiting: each
    starts within two giants' time."""
    desk = core(pool(20, 10), max_wait_s=1000.0, max_queue_length=50)
    running: list[tuple[float, int]] = []
    asked_s: dict[int, float] = {}
    waits: list[float] = []
    for step in range(600):
        now_s = step * 0.1
        admitted = []
        for item in [item for item in running if item[0] <= now_s]:
            running.remove(item)
            admitted += desk.release(item[1], 10, now_s).admitted
        if step % 5 == 0:
            verdict = desk.offer(ask(140, 10, client_id="giant"), now_s)
            admitted += [a for a in (verdict.admission,) if a] + list(verdict.changes.admitted)
        if step % 20 == 9:
            verdict = desk.offer(ask(60, 10, client_id="short"), now_s)
            asked_s[verdict.ticket] = now_s
            admitted += [a for a in (verdict.admission,) if a] + list(verdict.changes.admitted)
        for admission in admitted:
            giant = admission.request.client_id == "giant"
            running.append((now_s + (2.0 if giant else 0.2), admission.ticket))
            if not giant:
                waits.append(now_s - asked_s[admission.ticket])
    assert len(waits) >= 28
    assert max(waits) <= 4.0

"""The gate: who waits, who is woken, and that every hold ends exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from dispatch_parts import SteeredLoop, now_s, pass_time, run, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.admission import (
    AdmissionConfig,
    AdmissionCore,
    AdmissionCounts,
    AdmissionRequest,
    BlockGroup,
    Capacity,
    OutputLengths,
)
from gpt_oss_server.dispatch.gate import AdmissionGate, Held
from gpt_oss_server.errors import ContextTooLong, Overloaded


def gate_of(outputs: OutputLengths | None = None, **config: object) -> AdmissionGate:
    """A gate before a pool of 10 blocks of 10 tokens; worst-case unless told otherwise."""
    capacity = Capacity((BlockGroup(name="full", blocks=10, block_tokens=10),))
    fields = {"mode": "worst_case", "min_open_output_tokens": 5, "max_wait_s": 30.0, **config}
    return AdmissionGate(AdmissionCore(capacity, AdmissionConfig(**fields), outputs), now_s)  # type: ignore[arg-type]


def ask(tokens: int, name: str = "r", **more: object) -> AdmissionRequest:
    """A request for `tokens` tokens in all, 10 of them output."""
    fields = {"id": name, "prompt_tokens": tokens - 10, "max_tokens": 10, **more}
    return AdmissionRequest(**fields)  # type: ignore[arg-type]


class Client:
    """One request at the gate in a task of its own; holds until told to go."""

    def __init__(self, gate: AdmissionGate, request: AdmissionRequest) -> None:
        self.go = asyncio.Event()
        self.held: Held | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(gate, request))

    async def _run(self, gate: AdmissionGate, request: AdmissionRequest) -> None:
        async with gate.lease(request) as held:
            self.held = held
            await self.go.wait()

    @property
    def running(self) -> bool:
        return self.held is not None and not self.task.done()


async def clients(gate: AdmissionGate, *tokens: int) -> list[Client]:
    """A client for each size, in this order."""
    made = []
    for n, size in enumerate(tokens):
        made.append(Client(gate, ask(size, f"r{n}")))
        await settle()
    return made


async def all_end(made: Iterable[Client]) -> None:
    for client in made:
        client.go.set()
    await asyncio.gather(*(client.task for client in made), return_exceptions=True)


def timers() -> list[float]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    return loop.timers()


def assert_at_rest(gate: AdmissionGate) -> AdmissionCounts:
    """Nothing runs, waits or is held, no timer is left; returns the counts."""
    snapshot = gate.snapshot()
    assert (snapshot.running, snapshot.waiting, snapshot.blocks_used) == (0, 0, {"full": 0})
    assert timers() == []
    return snapshot.counts


def test_what_fits_holds_its_blocks_for_as_long_as_the_block_runs() -> None:
    """Admitted at once; the blocks are held inside and free outside."""

    async def story() -> None:
        gate = gate_of()
        async with gate.lease(ask(35)) as held:
            assert held.admission.plan.blocks == (4,)
            assert gate.snapshot().blocks_used == {"full": 4}
            assert gate.snapshot().running == 1
        assert assert_at_rest(gate) == AdmissionCounts(offered=1, accepted=1, released=1)

    run(story())


def test_who_does_not_fit_waits_and_is_woken_by_a_release() -> None:
    """First come, first served; waiting time is measured on the clock."""

    async def story() -> None:
        gate = gate_of()
        first, second, third = await clients(gate, 60, 60, 60)
        assert [c.running for c in (first, second, third)] == [True, False, False]
        assert gate.snapshot().waiting == 2
        await pass_time(7.0)
        first.go.set()
        await settle()
        assert [c.running for c in (second, third)] == [True, False]
        assert second.held is not None
        assert second.held.admission.waited_s == 7.0
        await all_end([second, third])
        counts = assert_at_rest(gate)
        assert (counts.queued, counts.started_from_queue, counts.released) == (2, 2, 3)

    run(story())


def test_who_waits_too_long_is_turned_away_when_the_time_comes() -> None:
    """Overloaded with a Retry-After, at its own deadline and not before; the timer goes on to
    the next one's."""

    async def story() -> None:
        gate = gate_of(max_wait_s=30.0)
        (runs,) = await clients(gate, 100)
        (early,) = await clients(gate, 20)
        await pass_time(10.0)
        (late,) = await clients(gate, 20)
        assert timers() == [1030.0]
        await pass_time(19.9)
        assert not early.task.done()
        await pass_time(0.1)
        error = early.task.exception()
        assert isinstance(error, Overloaded)
        assert error.reason == "deadline"
        assert error.message == ("Too many requests: waited 30.0 s without a place (deadline).")
        assert error.retry_after_s == 5  # nothing came free yet: the fallback
        assert timers() == [1040.0]
        assert not late.task.done()
        await all_end([runs, late])
        counts = assert_at_rest(gate)
        assert (counts.expired, counts.started_from_queue, counts.released) == (1, 1, 2)

    run(story())


def test_a_full_queue_turns_away_at_once() -> None:
    """With no place to wait: Overloaded, with what the drain suggests."""

    async def story() -> None:
        gate = gate_of(max_queue_length=0)
        (runs,) = await clients(gate, 100)
        with pytest.raises(Overloaded) as caught:
            async with gate.lease(ask(20)):
                raise AssertionError("not admitted")
        assert caught.value.message == ("Too many requests: the server is full; retry after 5 s.")
        assert (caught.value.retry_after_s, caught.value.reason) == (5, "full")
        await all_end([runs])
        assert assert_at_rest(gate) == AdmissionCounts(
            offered=2, accepted=1, rejected=1, released=1
        )

    run(story())


def test_the_one_who_gives_way_is_told() -> None:
    """A full queue lets a higher priority in; who was shed for it gets Overloaded."""

    async def story() -> None:
        gate = gate_of(max_queue_length=2)
        runs, old, young = await clients(gate, 100, 20, 20)
        urgent = Client(gate, ask(20, priority=9))
        await settle()
        error = young.task.exception()
        assert isinstance(error, Overloaded)
        assert error.message.endswith("(shed).")
        assert error.reason == "shed"
        assert not old.task.done()
        await all_end([runs, old, urgent])
        counts = assert_at_rest(gate)
        assert (counts.shed, counts.released) == (1, 3)

    run(story())


def test_what_can_never_fit_is_told_so_with_the_numbers() -> None:
    """ContextTooLong, at once, whatever runs."""

    async def story() -> None:
        gate = gate_of()
        with pytest.raises(ContextTooLong) as caught:
            async with gate.lease(ask(101)):
                raise AssertionError("not admitted")
        assert caught.value.message == (
            "The request can never run here: the request needs 101 tokens of KV cache (91 of "
            "input and 10 of output), more than there is (full: 11 of 10 blocks)."
        )
        assert assert_at_rest(gate) == AdmissionCounts(offered=1, never_fits=1)

    run(story())


def test_a_client_that_leaves_while_it_waits_frees_its_place() -> None:
    """Those behind it move up; it is never admitted."""

    async def story() -> None:
        gate = gate_of()
        runs, leaves, next_one = await clients(gate, 60, 60, 40)
        # 40 tokens fit beside 60: they may pass the one that does not.
        assert next_one.running
        leaves.task.cancel()
        await settle()
        assert leaves.task.cancelled()
        assert gate.snapshot().waiting == 0
        assert timers() == []
        await all_end([runs, next_one])
        counts = assert_at_rest(gate)
        assert (counts.cancelled_waiting, counts.released) == (1, 2)

    run(story())


def test_leaving_makes_room_for_those_it_blocked() -> None:
    """A waiting giant that nothing may pass any more leaves: who waited behind it starts."""

    async def story() -> None:
        gate = gate_of(bypass_limit=0)
        runs, giant, small = await clients(gate, 60, 100, 20)
        assert not small.running
        giant.task.cancel()
        await settle()
        assert small.running
        await all_end([runs, small])
        assert_at_rest(gate)

    run(story())


@pytest.mark.parametrize("first", ["cancelled", "admitted"])
def test_cancelled_at_the_very_moment_of_admission(first: str) -> None:
    """Cancel and admission in one turn of the loop, in either order: it does not run, its blocks
    are freed once, and the next in the queue gets them."""

    async def story() -> None:
        gate = gate_of()
        async with gate.lease(ask(100)):
            unlucky, after = await clients(gate, 100, 100)
            if first == "cancelled":
                unlucky.task.cancel()
        # Leaving the block does not suspend: who was admitted by it is not awake yet.
        assert gate.snapshot().running == 1
        unlucky.task.cancel()
        await settle()
        assert unlucky.task.cancelled()
        assert unlucky.held is None
        assert after.running
        await all_end([after])
        counts = assert_at_rest(gate)
        assert counts.released == 2
        assert counts.cancelled_running + counts.cancelled_waiting == 1

    run(story())


def test_cancelled_at_the_very_moment_its_time_is_up() -> None:
    """Turned away and cancelled in one turn: the cancellation wins, nothing is counted twice."""

    async def story() -> None:
        gate = gate_of(max_wait_s=30.0)
        runs, waits = await clients(gate, 100, 20)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SteeredLoop)
        loop.now_s += 30.0
        loop.call_soon(waits.task.cancel)
        await settle()
        assert waits.task.cancelled()
        await all_end([runs])
        counts = assert_at_rest(gate)
        assert (counts.expired + counts.cancelled_waiting, counts.released) == (1, 1)

    run(story())


class Boom(Exception):
    pass


@pytest.mark.parametrize("end", ["success", "error", "cancel"])
def test_a_hold_ends_once_however_its_block_ends(end: str) -> None:
    """Success, error and cancellation each give the blocks back exactly once; only a finished
    answer teaches how long answers are."""

    async def story() -> None:
        outputs = OutputLengths(0.9, min_samples=1)
        gate = gate_of(outputs)

        async def use() -> None:
            async with gate.lease(ask(35)) as held:
                held.output_tokens = 8
                if end == "error":
                    raise Boom
                if end == "cancel":
                    await asyncio.Event().wait()

        task = asyncio.create_task(use())
        await settle()
        if end == "cancel":
            assert gate.snapshot().blocks_used == {"full": 4}
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert type(result) is {"success": type(None), "error": Boom}.get(
            end, asyncio.CancelledError
        )
        assert assert_at_rest(gate) == AdmissionCounts(offered=1, accepted=1, released=1)
        assert outputs.predict(25) == (8 if end == "success" else None)

    run(story())


def test_several_jobs_teach_their_mean() -> None:
    """Three jobs of 10 tokens in all, two at a time: what is learnt is 4 a job."""

    async def story() -> None:
        outputs = OutputLengths(0.9, min_samples=1)
        gate = gate_of(outputs)
        async with gate.lease(ask(35, sequences=2)) as held:
            held.jobs, held.output_tokens = 3, 10
        assert outputs.predict(25) == 4

    run(story())


def test_who_is_put_back_holds_its_whole_bound() -> None:
    """A preemption is counted, and the reservation grows to all that the request may use."""

    async def story() -> None:
        gate = gate_of(mode="optimistic", assumed_output_tokens=5)
        async with gate.lease(ask(60)) as held:
            assert gate.snapshot().blocks_used == {"full": 6}
            gate.preempted(held)
            assert gate.snapshot().blocks_used == {"full": 6}
        async with gate.lease(ask(0, prompt_tokens=10, max_tokens=60)) as held:
            assert gate.snapshot().blocks_used == {"full": 2}
            gate.preempted(held)
            assert gate.snapshot().blocks_used == {"full": 7}
        assert assert_at_rest(gate).preemptions == 2

    run(story())


def test_an_open_bound_is_lowered_to_the_room_there_is() -> None:
    """The hold says with which bound the request may run."""

    async def story() -> None:
        gate = gate_of()
        async with gate.lease(ask(60)):
            wide = ask(60, prompt_tokens=20, max_tokens=80, explicit=False)
            async with gate.lease(wide) as held:
                assert held.admission.plan.max_tokens == 20
                assert held.admission.plan.shrunk
        assert assert_at_rest(gate).shrunk == 1

    run(story())


def test_outgrowing_a_reservation_counts_at_once() -> None:
    """Progress raises what is held, for each sequence, and is given back whole."""

    async def story() -> None:
        gate = gate_of(mode="optimistic", assumed_output_tokens=5)
        request = ask(0, prompt_tokens=10, max_tokens=30, sequences=2)
        async with gate.lease(request) as held:
            assert gate.snapshot().blocks_used == {"full": 4}
            gate.progress(held, 21)  # 31 tokens, 4 blocks each
            assert gate.snapshot().blocks_used == {"full": 8}
        assert_at_rest(gate)

    run(story())


Op = tuple[str, int]
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(11, 105)),
        st.tuples(st.just("go"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("time"), st.integers(1, 20)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(OPS)
def test_whatever_happens_in_whatever_order_all_is_given_back(ops: list[Op]) -> None:
    """Any interleaving of requests, ends, cancellations and time: never more held than there is,
    every client gets one outcome, and at the end nothing is held, waits or is scheduled."""

    async def story() -> None:
        gate = gate_of(max_queue_length=3, max_wait_s=25.0)
        made: list[Client] = []
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SteeredLoop)
        for what, number in ops:
            if what == "ask":
                made.append(Client(gate, ask(number, priority=number % 10)))
            elif what == "time":
                loop.now_s += number
            elif what == "turn":
                await asyncio.sleep(0)
            elif made:
                chosen = made[number % len(made)]
                chosen.go.set() if what == "go" else chosen.task.cancel()
            assert gate.snapshot().blocks_used["full"] <= 10
        await settle()
        await all_end(made)
        outcomes = [
            "cancelled" if c.task.cancelled() else type(c.task.exception()).__name__ for c in made
        ]
        assert set(outcomes) <= {"cancelled", "NoneType", "Overloaded", "ContextTooLong"}
        counts = assert_at_rest(gate)
        c = counts
        assert c.offered == c.accepted + c.shrunk + c.queued + c.rejected + c.never_fits
        assert c.queued == c.started_from_queue + c.expired + c.shed + c.cancelled_waiting
        started = c.accepted + c.shrunk + c.started_from_queue
        assert started == c.released + c.cancelled_running

    run(story())

"""A worker that dies: who runs is told, who waits goes on waiting, nothing is counted wrongly."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from dispatch_parts import (
    INFO,
    Guest,
    assert_at_rest,
    call,
    complete,
    desk,
    info,
    now_s,
    output,
    pass_time,
    run,
    settle,
    started,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.admission import (
    AdmissionConfig,
    AdmissionCore,
    AdmissionRequest,
    AdmissionSnapshot,
    BlockGroup,
    Capacity,
)
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.dispatch.gate import RESUME_POLL_S, AdmissionGate
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.errors import ContextTooLong, EngineFailed, NotReady, Overloaded
from gpt_oss_server.events import Event, TurnedAway
from gpt_oss_server.trail import Journal


class Restarting(FakeEngine):
    """A fake engine that comes back with other pools."""

    def come_back_with(self, blocks: int) -> None:
        groups = (msgspec.structs.replace(INFO.kv_groups[0], num_blocks=blocks),)
        self._info = info(kv_groups=groups)
        self.recover()


class Runs(Guest):
    """A guest whose job really runs on the engine."""

    def __init__(self, counter: Desk, engine: FakeEngine, tokens: int, **more: object) -> None:
        self._engine = engine
        super().__init__(counter, call(tokens, 5, **more))  # type: ignore[arg-type]

    async def _run(self, counter: Desk, request: object) -> None:
        async with counter.admit(request) as lease:  # type: ignore[arg-type]
            self.lease = lease
            async for delta in self._engine.generate(lease.jobs[0]):
                lease.saw(0, delta)


def snapshot_of(counter: Desk) -> AdmissionSnapshot:
    snapshot = counter.admission_snapshot()
    assert snapshot is not None
    return snapshot


def test_who_waits_waits_for_the_restart() -> None:
    """What ran ends in EngineFailed; what waited starts when the engine is back, and is answered;
    only what produced something counts as executed."""

    async def story() -> None:
        engine = await started()
        engine.close_gate()
        counter = desk(engine)
        running = Runs(counter, engine, 900)
        await settle()
        waiting = Runs(counter, engine, 800, name="waits")
        await settle()
        engine.crash()
        await settle()
        assert isinstance(running.task.exception(), EngineFailed)
        assert (waiting.lease, snapshot_of(counter).waiting) == (None, 1)
        await pass_time(2.0)
        assert snapshot_of(counter).running == 0
        engine.recover()
        engine.open_gate()
        await pass_time(RESUME_POLL_S)
        await waiting.task
        assert [len(job.prompt) for job in engine.jobs] == [900, 800]
        assert counter.ledger.snapshot().executed == {"single_gpu": 1, "multi_gpu": 0}
        assert counter.ledger.snapshot().total_decisions == 2
        assert_at_rest(counter)

    run(story())


def test_why_a_request_was_turned_away_during_a_restart() -> None:
    """No place in the queue is `full` and a wait in vain `deadline`, whether or not the engine is
    down, and what no longer fits `never_fits`; with the Retry-After that was given."""

    async def story() -> None:
        engine = Restarting(info=INFO)
        await engine.start()
        engine.close_gate()
        events = list[Event]()
        journal = Journal(events.append)
        counter = desk(engine, max_wait_s=5.0, max_queue_length=2, journal=journal)
        Runs(counter, engine, 900).task.add_done_callback(asyncio.Task.exception)
        await settle()
        patient = Runs(counter, engine, 800)
        engine.crash()
        await settle()
        late = Runs(counter, engine, 100)
        await settle()
        with pytest.raises(NotReady):
            await complete(counter, call(700, 5, name="full"))
        await pass_time(4.0)
        engine.come_back_with(40)
        await pass_time(RESUME_POLL_S)
        assert isinstance(patient.task.exception(), ContextTooLong)
        engine.crash()
        await settle()
        vain = Runs(counter, engine, 100, name="vain")
        await settle()
        await pass_time(5.0)
        assert isinstance(vain.task.exception(), NotReady)
        assert isinstance(late.task.exception(), EngineFailed)
        told = [
            (event.request_id, event.reason, event.waited_s, event.retry_after_s is not None)
            for event in events
            if isinstance(event, TurnedAway)
        ]
        assert told == [
            ("full", "full", 0.0, True),
            ("req", "never_fits", pytest.approx(4.0 + RESUME_POLL_S), False),
            ("vain", "deadline", pytest.approx(5.0), True),
        ]
        assert sum(journal.meter.waiting) == 0

    run(story())


def test_what_is_reserved_is_of_the_pools_that_there_are() -> None:
    """Blocks reserved per group, as in a snapshot; after a restart, of the groups of the new
    pools."""

    async def story() -> None:
        engine = Restarting(info=INFO)
        await engine.start()
        counter = desk(engine)
        guest = Guest(counter, call(100, 60))
        await settle()
        _, gate = counter._current()
        assert gate.blocks_used() == {"full": 10, "sliding": 3, "slots": 1}
        assert gate.blocks_used() == gate.snapshot().blocks_used
        engine.crash()
        await settle()
        engine.come_back_with(40)
        assert gate.blocks_used() == {"full": 10, "slots": 1}
        guest.go.set()
        await settle()
        assert gate.blocks_used() == {"full": 0, "slots": 0}

    run(story())


def test_who_waits_in_vain_for_the_restart_is_told_so() -> None:
    """At its deadline, and not before: NotReady with a Retry-After, where full is Overloaded."""

    async def story() -> None:
        engine = await started()
        engine.close_gate()
        counter = desk(engine, max_wait_s=5.0, max_queue_length=1)
        running = Runs(counter, engine, 900)
        await settle()
        waiting = Runs(counter, engine, 800)
        await settle()
        with pytest.raises(Overloaded):
            await complete(counter, call(700, 5))
        engine.crash()
        await settle()
        with pytest.raises(NotReady, match="restarted: the server is full"):
            await complete(counter, call(700, 5))
        await pass_time(4.9)
        assert not waiting.task.done()
        await pass_time(0.1)
        error = waiting.task.exception()
        assert isinstance(error, NotReady)
        assert error.message == (
            "The engine is being restarted: waited 5.0 s without a place (deadline)."
        )
        assert error.retry_after_s is not None
        assert isinstance(running.task.exception(), EngineFailed)
        assert snapshot_of(counter).counts.expired == 1
        assert_at_rest(counter)

    run(story())


def test_other_pools_after_a_restart() -> None:
    """Everything is measured by the new pool: what still holds, what waits, what comes; what can
    never fit it any more is told so; the counts go on."""

    async def story() -> None:
        engine = Restarting(info=INFO)
        await engine.start()
        counter = desk(engine)
        held = Guest(counter, call(900, 100))
        await settle()
        too_large = Guest(counter, call(600, 100))
        waits = Guest(counter, call(100, 5))
        await settle()
        engine.crash()
        engine.come_back_with(blocks=10)
        await settle()
        snapshot = snapshot_of(counter)
        assert snapshot.blocks_total == {"full": 10, "slots": 8}
        assert snapshot.blocks_used == {"full": 63, "slots": 1}
        await settle()
        with pytest.raises(ContextTooLong, match="less memory: the request needs 700 tokens"):
            await too_large.task
        assert waits.lease is None
        held.go.set()
        await settle()
        assert snapshot_of(counter).blocks_used == {"full": 7, "slots": 1}
        with pytest.raises(ContextTooLong, match="can never run here"):
            await complete(counter, call(160, 5))
        waits.go.set()
        await asyncio.gather(held.task, waits.task)
        engine.come_back_with(blocks=12)
        await complete(counter, call(100, 5))
        assert snapshot_of(counter).blocks_total["full"] == 12
        assert_at_rest(counter)
        counts = snapshot_of(counter).counts
        assert (counts.offered, counts.accepted, counts.queued) == (5, 2, 2)
        assert (counts.no_longer_fits, counts.never_fits, counts.released) == (1, 1, 3)
        assert counts.offered == counter.ledger.snapshot().total_decisions

    run(story())


def test_a_smaller_pool_runs_fewer_samples_at_once() -> None:
    """Two samples that waited to run together run one after the other where only one fits."""

    async def story() -> None:
        engine = Restarting(info=INFO)
        await engine.start()
        counter = desk(engine)
        held = Guest(counter, call(900, 100))
        await settle()
        waits = Guest(counter, call(300, 20, choices=2))
        await settle()
        engine.crash()
        engine.come_back_with(blocks=30)
        held.go.set()
        await settle()
        assert waits.lease is not None
        assert (len(waits.lease.jobs), waits.lease.parallel) == (2, 1)
        waits.go.set()
        await asyncio.gather(held.task, waits.task)
        assert_at_rest(counter)

    run(story())


def test_a_restart_with_the_same_pools_changes_nothing() -> None:
    """What is held still counts against the pool."""

    async def story() -> None:
        engine = await started()
        counter = desk(engine)
        held = Guest(counter, call(900, 100))
        await settle()
        engine.crash()
        engine.recover()
        waits = Guest(counter, call(900, 100))
        await settle()
        assert waits.lease is None
        held.go.set()
        waits.go.set()
        await asyncio.gather(held.task, waits.task)
        assert_at_rest(counter)

    run(story())


def test_what_was_cached_is_gone_with_the_worker() -> None:
    """Sessions go on, with nothing in the cache: those at rest and the one that was cut off."""

    async def story() -> None:
        engine = await started()
        counter = desk(engine)
        await complete(counter, call(100, 5, session_id="id:a"))
        assert counter.sessions.totals().kv_bytes > 0
        running = Runs(counter, engine, 200, session_id="id:b")
        engine.close_gate()
        await settle()
        engine.crash()
        await settle()
        assert isinstance(running.task.exception(), EngineFailed)
        engine.recover()
        assert snapshot_of(counter).running == 0
        totals = counter.sessions.totals()
        assert (totals.tracked, totals.active, totals.kv_bytes) == (2, 0, 0)
        await complete(counter, call(100, 5, session_id="id:a"))
        again = counter.sessions.get("id:a")
        assert again is not None
        assert counter.sessions.totals().kv_bytes == again.kv_bytes > 0

    run(story())


def test_executed_is_what_produced_something() -> None:
    """A lease alone does not count; its first delta does, once, whichever choice it is of."""

    async def story() -> None:
        counter = desk(await started())
        async with counter.admit(call(10, 5, choices=2)) as lease:
            assert sum(counter.ledger.snapshot().executed.values()) == 0
            for index in (1, 0, 1):
                lease.saw(index, output(1))
            assert counter.ledger.snapshot().executed == {"single_gpu": 1, "multi_gpu": 0}
        async with counter.admit(call(10, 5)):
            pass
        assert sum(counter.ledger.snapshot().executed.values()) == 1

    run(story())


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 150)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(0, 40)),
        st.tuples(st.just("down"), st.just(0)),
        st.tuples(st.just("up"), st.integers(1, 15)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_whatever_the_engine_does_everybody_gets_one_outcome(steps: list[Step]) -> None:
    """Requests, ends, departures, crashes and pools of any size in any order: all counts add up
    and nothing is left."""

    async def story() -> None:
        pools: list[Capacity | None] = [_pool(10)]
        core = AdmissionCore(_pool(10), AdmissionConfig(mode="worst_case", max_queue_length=3))
        gate = AdmissionGate(core, now_s, lambda: pools[0])
        ends: list[asyncio.Event] = []
        tasks: list[asyncio.Task[None]] = []

        async def one(tokens: int, end: asyncio.Event) -> None:
            request = AdmissionRequest(id="r", prompt_tokens=tokens, max_tokens=1)
            async with gate.lease(request):
                assert pools[0] is not None
                await end.wait()

        for what, number in steps:
            if what == "ask":
                ends.append(asyncio.Event())
                tasks.append(asyncio.create_task(one(number, ends[-1])))
            elif what == "end" and number < len(ends):
                ends[number].set()
            elif what == "leave" and number < len(tasks):
                tasks[number].cancel()
            elif what == "wait":
                await pass_time(number)
            elif what in ("down", "up"):
                pools[0] = None if what == "down" else _pool(number)
            await settle()
        pools[0] = pools[0] or _pool(10)
        for end in ends:
            end.set()
        await pass_time(RESUME_POLL_S)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        told = (Overloaded, NotReady, ContextTooLong, asyncio.CancelledError, type(None))
        assert all(isinstance(outcome, told) for outcome in outcomes)
        snapshot = gate.snapshot()
        assert (snapshot.running, snapshot.waiting) == (0, 0)
        assert set(snapshot.blocks_used.values()) == {0}
        c = snapshot.counts
        assert c.queued == (
            c.started_from_queue + c.expired + c.shed + c.no_longer_fits + c.cancelled_waiting
        )
        assert c.accepted + c.shrunk + c.started_from_queue == c.released + c.cancelled_running

    run(story())


def _pool(blocks: int) -> Capacity:
    return Capacity((BlockGroup(name="full", blocks=blocks, block_tokens=10),))

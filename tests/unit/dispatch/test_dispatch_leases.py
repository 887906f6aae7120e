"""The desk: what a request may use, and that it ends with its stream, whatever the engine does."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
import pytest
from dispatch_parts import (
    Guest,
    assert_at_rest,
    call,
    complete,
    desk,
    output,
    run,
    settle,
    started,
)

from gpt_oss_server.dispatch.desk import Desk, Lease, OpenDesk
from gpt_oss_server.engine.fake import FakeEngine, Script
from gpt_oss_server.errors import ContextTooLong, EngineFailed, NotReady
from gpt_oss_server.pending import PendingEngine
from gpt_oss_server.routing.replay import DecisionRecord
from gpt_oss_server.types import Job


def test_an_open_bound_is_lowered_and_an_explicit_one_never() -> None:
    """With 300 tokens held, 724 are left (45 blocks): an open bound shrinks to them, an explicit
    one waits for its whole."""

    async def story() -> None:
        counter = desk(await started())
        held = Guest(counter, call(200, 100))
        await settle()
        lease = await complete(counter, call(100, 2000, explicit=False))
        assert [job.sampling.max_tokens for job in lease.jobs] == [45 * 16 - 100]
        waits = Guest(counter, call(100, 800))
        await settle()
        assert waits.lease is None
        held.go.set()
        await settle()
        assert waits.lease is not None
        assert [job.sampling.max_tokens for job in waits.lease.jobs] == [800]
        waits.go.set()
        await asyncio.gather(held.task, waits.task)
        with pytest.raises(ContextTooLong):
            await complete(counter, call(100, 1000))
        assert_at_rest(counter)

    run(story())


def test_only_the_bound_and_the_session_of_a_job_change() -> None:
    """Seeds, prompts and ids arrive at the engine as they came."""

    async def story() -> None:
        counter = desk(await started(), open_output_tokens=300)
        request = call(10, 2000, choices=2, explicit=False, session_id="id:s")
        lease = await complete(counter, request)
        expected = [
            msgspec.structs.replace(
                job,
                session="id:s",
                sampling=msgspec.structs.replace(job.sampling, max_tokens=300),
            )
            for job in request.jobs
        ]
        assert lease.jobs == expected

    run(story())


def test_a_request_takes_no_more_than_a_quarter_of_the_slots() -> None:
    """Twelve samples on eight slots run two at a time, and are admitted as two."""

    async def story() -> None:
        counter = desk(await started())
        async with counter.admit(call(10, 5, choices=12)) as lease:
            snapshot = counter.admission_snapshot()
            assert snapshot is not None
            assert snapshot.blocks_used["slots"] == 2
            assert (len(lease.jobs), lease.parallel) == (12, 2)
        assert_at_rest(counter)

    run(story())


async def stream(engine: FakeEngine, lease: Lease) -> int:
    """Read the first job to its end, counting; returns its tokens."""
    total = 0
    async with aclosing(engine.generate(lease.jobs[0])) as deltas:
        async for delta in deltas:
            lease.saw(0, delta)
            total += len(delta.token_ids)
    return total


@pytest.mark.parametrize("end", ["success", "error", "crash", "cancel"])
def test_the_lease_ends_with_its_stream(end: str) -> None:
    """However a stream ends, its blocks come back once, and the load with them."""

    async def story() -> None:
        fails = Script((7,), fail_after=2) if end == "error" else Script((7, 8, 9, 2))
        engine = await started(script=lambda _: fails)
        records: list[DecisionRecord] = []
        counter = desk(engine, records=records)
        engine.close_gate()

        async def request() -> int:
            async with counter.admit(call(50, 100)) as lease:
                return await stream(engine, lease)

        task = asyncio.create_task(request())
        await engine.until(lambda e: e.active == 1)
        snapshot = counter.admission_snapshot()
        assert snapshot is not None
        assert snapshot.blocks_used == {"full": 10, "sliding": 3, "slots": 1}
        if end == "crash":
            engine.crash()
        elif end == "cancel":
            task.cancel()
        engine.open_gate()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if end == "success":
            assert outcome == 4
        else:
            kind = asyncio.CancelledError if end == "cancel" else EngineFailed
            assert isinstance(outcome, kind)
        assert_at_rest(counter)
        after = counter.admission_snapshot()
        assert after is not None
        assert after.counts.released == 1
        engine.recover()
        await complete(counter, call(10, 5))
        assert records[-1].fleet.replicas[0].load_tokens == 0

    run(story())


def test_answers_teach_how_much_to_reserve() -> None:
    """After twenty answers of 10 tokens, an optimistic desk reserves that and not the bound; one
    that grows beyond counts in full from the next report on."""

    async def story() -> None:
        counter = desk(await started(), mode="optimistic", assumed_output_tokens=500)
        for _ in range(20):
            await complete(counter, call(20, 600), output_tokens=10)
        async with counter.admit(call(20, 600)) as lease:
            assert _full(counter) == 2  # 20 + 12 (10 rounded up to an edge) tokens
            lease.saw(0, output(63))
            assert _full(counter) == 2
            lease.saw(0, output(1))
            assert _full(counter) == 6  # 20 + 64 tokens
        assert_at_rest(counter)

    run(story())


def test_the_longest_of_several_jobs_counts_for_each() -> None:
    """Reserved as if each job were as long as the longest; the mean is what is learnt."""

    async def story() -> None:
        counter = desk(await started(), mode="optimistic", assumed_output_tokens=10)
        async with counter.admit(call(20, 300, choices=2)) as lease:
            assert _full(counter) == 4
            lease.saw(0, output(40))
            lease.saw(1, output(40))
            assert _full(counter) == 4
            lease.saw(1, output(24))
            assert _full(counter) == 12  # 20 + 64 tokens each
        assert_at_rest(counter)
        for _ in range(19):
            await complete(counter, call(20, 600), output_tokens=52)
        async with counter.admit(call(20, 600)):
            assert _full(counter) == 6  # 20 + 64: the edge above 52

    run(story())


def test_what_the_engine_put_back_is_reserved_whole() -> None:
    """A delta that tells of a preemption: counted, and from then on the whole bound is held."""

    async def story() -> None:
        counter = desk(await started(), mode="optimistic", assumed_output_tokens=10)
        async with counter.admit(call(20, 300)) as lease:
            assert _full(counter) == 2
            lease.saw(0, output(1, preemptions=1))
            assert _full(counter) == 20
        assert_at_rest(counter)
        snapshot = counter.admission_snapshot()
        assert snapshot is not None
        assert snapshot.counts.preemptions == 1

    run(story())


def _full(counter: Desk) -> int:
    snapshot = counter.admission_snapshot()
    assert snapshot is not None
    return snapshot.blocks_used["full"]


def test_no_engine_no_decision() -> None:
    """Before the first engine: NotReady, and nothing is counted."""

    async def story() -> None:
        counter = desk(PendingEngine("loading"))  # type: ignore[arg-type]
        with pytest.raises(NotReady):
            await complete(counter, call())
        assert counter.admission_snapshot() is None
        assert counter.ledger.snapshot().total_decisions == 0

    run(story())


def test_the_open_desk_lets_everything_in() -> None:
    """For engines that guard themselves: jobs unchanged, undecided."""

    async def story() -> list[Job]:
        request = call(10, 5)
        async with OpenDesk().admit(request) as lease:
            lease.saw(0, output(3))
            assert lease.jobs is request.jobs
            assert (lease.route, lease.reason) == ("single_gpu", "default: no multi-GPU trigger")
            return lease.jobs

    assert len(run(story())) == 1

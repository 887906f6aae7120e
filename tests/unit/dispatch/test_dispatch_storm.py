"""Many requests at once through the desk, with random cancellations: afterwards all is at rest."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest
from dispatch_parts import assert_at_rest, call, desk, pass_time, run, settle, started

from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.engine.fake import FakeEngine, Script
from gpt_oss_server.errors import ContextTooLong, EngineFailed, Overloaded

REQUESTS = 300


async def request(engine: FakeEngine, counter: Desk, rng: random.Random, number: int) -> int:
    """One request of 1 to 1100 tokens and 1 to 60 of output, explicit or open, often one of a
    session; returns the tokens it got."""
    asked = call(
        rng.choice((1, 10, 100, 700, 1100)),
        rng.randint(1, 60),
        explicit=rng.random() < 0.5,
        name=f"r{number}",
        client_id=f"c{rng.randrange(5)}",
        session_id=rng.choice((None, "id:a", "id:b", f"id:{number}")),
        priority=rng.randrange(10),
    )
    got = 0
    async with counter.admit(asked) as lease, aclosing(engine.generate(lease.jobs[0])) as deltas:
        async for delta in deltas:
            lease.saw(0, delta)
            got += len(delta.token_ids)
            assert counter.admission_snapshot() is not None
    return got


@pytest.mark.parametrize("gate", ["open", "closed, then open"])
@pytest.mark.parametrize("mode", ["optimistic", "worst_case"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_leaves_nothing_behind(gate: str, mode: str, seed: int) -> None:
    """Requests of all sizes, cancelled at random moments, some failing: every one has one
    outcome, the decisions add up, and no block, place, session, load or timer is left."""

    async def story() -> None:
        rng = random.Random(seed)
        scripts = random.Random(seed + 1)
        engine = await started(
            script=lambda _: Script((7,), fail_after=3 if scripts.random() < 0.1 else None)
        )
        counter = desk(engine, mode=mode, max_queue_length=20, max_wait_s=5.0)
        if gate != "open":
            engine.close_gate()
        tasks: list[asyncio.Task[int]] = []
        for number in range(REQUESTS):
            tasks.append(asyncio.create_task(request(engine, counter, rng, number)))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            if rng.random() < 0.2:
                await pass_time(rng.random())
            elif rng.random() < 0.5:
                await asyncio.sleep(0)
            engine.let_pass(rng.randrange(4))
            if mode == "worst_case":
                snapshot = counter.admission_snapshot()
                if snapshot is not None:
                    assert snapshot.blocks_used["full"] <= snapshot.blocks_total["full"]
        await settle()
        engine.open_gate()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = {
            type(outcome) if isinstance(outcome, BaseException) else int for outcome in outcomes
        }
        assert kinds <= {int, asyncio.CancelledError, EngineFailed, Overloaded, ContextTooLong}
        assert {int, asyncio.CancelledError, Overloaded} <= kinds
        assert_at_rest(counter)
        assert engine.active == 0
        assert counter.fleet.view(load_tokens=0, reserved_blocks={}).replicas[0].load_tokens == 0
        routed = counter.ledger.snapshot()
        snapshot = counter.admission_snapshot()
        assert snapshot is not None
        c = snapshot.counts
        assert c.offered == routed.total_decisions
        answered = sum(isinstance(outcome, int) for outcome in outcomes)
        assert answered <= sum(routed.executed.values()) <= c.released
        assert c.accepted + c.shrunk + c.started_from_queue == c.released + c.cancelled_running
        assert c.queued == c.started_from_queue + c.expired + c.shed + c.cancelled_waiting

    run(story())

"""The desk: conversations are tracked, and the engine is told what to let go."""

from __future__ import annotations

import pytest
from dispatch_parts import (
    Guest,
    assert_at_rest,
    call,
    complete,
    desk,
    output,
    pass_time,
    run,
    settle,
    started,
)

from gpt_oss_server.admission import SessionConfig
from gpt_oss_server.errors import EngineFailed


def test_a_session_is_tracked_while_and_after_it_runs() -> None:
    """Its jobs carry the key; what it leaves is prompt and answer, in blocks."""

    async def story() -> None:
        counter = desk(await started())
        async with counter.admit(call(50, 30, session_id="id:s")) as lease:
            assert [job.session for job in lease.jobs] == ["id:s"]
            lease.saw(0, output(20))
            assert counter.sessions.totals().active == 1
        session = counter.sessions.get("id:s")
        assert session is not None
        assert (session.prefix_tokens, session.requests, session.in_flight) == (70, 1, 0)
        assert session.kv_bytes == 5 * 8192 + 5 * 4096
        await complete(counter, call(70, 30, session_id="id:s"))
        totals = counter.sessions.totals()
        assert (totals.tracked, totals.active, totals.reused) == (1, 0, 1)

    run(story())


def test_an_idle_session_is_forgotten_by_the_engine_too() -> None:
    """At the next request after its time, the engine is told to let its prefix go."""

    async def story() -> None:
        engine = await started()
        counter = desk(engine, sessions=SessionConfig(idle_s=60))
        await complete(counter, call(50, 5, session_id="id:old"))
        await pass_time(59.0)
        await complete(counter, call(50, 5, session_id="id:new"))
        assert engine.forgotten == []
        await pass_time(1.0)
        await complete(counter, call(50, 5, session_id="id:new"))
        assert engine.forgotten == [("id:old", 0)]
        assert counter.sessions.totals().evictions == {"idle": 1, "count": 0, "pressure": 0}

    run(story())


def test_what_a_session_has_beyond_its_limit_is_let_go() -> None:
    """A limit of five of its ten blocks keeps half of its prefix."""

    async def story() -> None:
        engine = await started()
        limit = 5 * 8192 + 5 * 4096
        counter = desk(engine, sessions=SessionConfig(max_session_kv_bytes=limit // 2))
        await complete(counter, call(70, 5, session_id="id:s"), output_tokens=10)
        assert engine.forgotten == [("id:s", 40)]
        totals = counter.sessions.totals()
        assert (totals.trimmed, totals.kv_bytes) == (1, limit // 2)

    run(story())


def test_sessions_together_keep_no_more_than_the_pool() -> None:
    """The least recently used go first, and the engine is told."""

    async def story() -> None:
        engine = await started()
        counter = desk(engine)
        for name in "abc":  # 28 full blocks of 64 each, and 5 sliding ones of 40
            await complete(counter, call(440, 5, session_id=f"id:{name}"))
        capacity = 64 * 8192 + 40 * 4096
        assert engine.forgotten == [("id:a", 0)]
        totals = counter.sessions.totals()
        assert totals.evictions == {"idle": 0, "count": 0, "pressure": 1}
        assert totals.kv_bytes <= capacity

    run(story())


def test_where_the_table_is_full_a_request_is_served_untracked() -> None:
    """All places taken by sessions in flight: the newcomer runs, owns nothing, ends well."""

    async def story() -> None:
        engine = await started()
        counter = desk(engine, sessions=SessionConfig(max_sessions=1))
        held = Guest(counter, call(10, 5, session_id="id:a"))
        await settle()
        lease = await complete(counter, call(10, 5, session_id="id:b"))
        assert [job.session for job in lease.jobs] == [None]
        held.go.set()
        await held.task
        await complete(counter, call(10, 5, session_id="id:c"))
        assert engine.forgotten == [("id:a", 0)]
        totals = counter.sessions.totals()
        assert (totals.untracked, totals.evictions["count"]) == (1, 1)

    run(story())


def test_a_session_ends_with_a_request_that_fails() -> None:
    """No session stays in flight after an error."""

    async def story() -> None:
        counter = desk(await started())
        with pytest.raises(EngineFailed):
            async with counter.admit(call(10, 5, session_id="id:s")):
                raise EngineFailed("died")
        assert_at_rest(counter)

    run(story())

"""Steps launched before the last tokens are known: every kind of request is served as without."""

from __future__ import annotations

import random

import pytest

from engine_runs import Result, cpu_core, kept_by_sampler, run, step
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.types import TokenDelta
from guided_runs import FOLDER
from mixed_jobs import mixed_jobs, said

pytestmark = pytest.mark.usefixtures("one_thread")


def engine(*, lookahead: bool, kv_cache_bytes: int = 4 << 20) -> EngineCore:
    return cpu_core(
        str(FOLDER),
        load_format="random",
        lookahead=lookahead,
        max_num_seqs=8,
        max_batch_tokens=64,
        kv_cache_bytes=kv_cache_bytes,
    )


@pytest.mark.parametrize("kv_cache_bytes", [4 << 20, 450 << 10], ids=["room", "preemption"])
def test_every_kind_of_request_is_served_the_same(kv_cache_bytes: int) -> None:
    """Tokens, alternatives and ends of 40 mixed requests, with room and without. Some steps were
    for nothing: a stop id had come, or a schema wanted another token than was drawn."""
    jobs = mixed_jobs(40)
    without = engine(lookahead=False)
    expected = run(without, jobs, arrivals=random.Random(0))
    core = engine(lookahead=True, kv_cache_bytes=kv_cache_bytes)
    found = run(core, jobs, arrivals=random.Random(0))
    assert {k: r.error for k, r in found.items()} == {k: r.error for k, r in expected.items()}
    assert {k: said(r) for k, r in found.items()} == {k: said(r) for k, r in expected.items()}
    assert kept_by_sampler(core) == 0
    assert core.stats().decode_tokens > without.stats().decode_tokens
    assert (core.stats().preemptions > 0) == (kv_cache_bytes < 4 << 20)


def test_cancels_at_any_moment_leave_nothing() -> None:
    """Jobs that are dropped while a step with them is in flight disturb nobody."""
    jobs = mixed_jobs(24)
    expected = run(engine(lookahead=False), jobs)
    core = engine(lookahead=True)
    results = {key: Result() for key in jobs}
    for key, one in jobs.items():
        core.submit(key, one)
    rng = random.Random(1)
    gone: set[int] = set()
    while core.has_work:
        step(core, results)
        if rng.random() < 0.3:
            key = rng.randrange(len(jobs))
            gone.add(key)
            core.cancel(key)
    assert len(gone) > 5
    for key, result in results.items():
        before = expected[key].tokens
        assert result.tokens == (before[: len(result.tokens)] if key in gone else before)
    assert not any(core.stats().blocks_in_use.values())
    assert kept_by_sampler(core) == 0


def test_a_finished_request_is_told_once() -> None:
    """What a step computed for one that had ended reaches nobody."""
    core = engine(lookahead=True)
    result = run(core, {0: mixed_jobs(2)[1]})[0]
    ends: list[TokenDelta] = [delta for delta in result.deltas if delta.finish is not None]
    assert len(ends) == 1
    assert ends[0] is result.deltas[-1]

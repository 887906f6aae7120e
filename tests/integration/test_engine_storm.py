"""Random requests with cancels, thousands of them, through a pool that is far too small."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine_runs import check_held_blocks, cpu_core, job, kept_by_sampler
from gpt_oss_server.engine.core import EngineCore
from tiny_models import build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

POOL_BLOCKS = 40
CANCEL_SHARE = 0.15


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> EngineCore:
    """An engine whose pool holds a fifth of what it may run at once."""
    folder = saved(build("smallest"), Path(tmp_path_factory.mktemp("smallest")))
    settings = {"block_size": 4, "max_num_seqs": 32, "max_batch_tokens": 192}
    groups = cpu_core(folder, **settings).info().kv_groups
    pool_bytes = sum(group.block_bytes for group in groups) * POOL_BLOCKS
    return cpu_core(folder, **settings, kv_cache_bytes=pool_bytes)


def storm(core: EngineCore, requests: int, seed: int) -> None:
    rng = random.Random(seed)
    before = core.stats()
    live: set[int] = set()
    submitted = ended = cancelled = 0
    while submitted < requests or core.has_work:
        while submitted < requests and len(live) < 64:
            head = [rng.randrange(2)] * rng.choice((0, 8, 24))
            prompt = head + [rng.randrange(30) for _ in range(rng.randint(1, 60 - len(head)))]
            core.submit(
                submitted,
                job(
                    prompt,
                    max_tokens=rng.randint(1, 10),
                    temperature=rng.choice((0.0, 1.0)),
                    seed=submitted,
                    frequency_penalty=rng.choice((0.0, 0.0, 0.5)),
                    logit_bias=rng.choice(({}, {}, {3: 1.0})),
                    min_tokens=rng.choice((0, 0, 2)),
                    stop_token_ids=rng.choice(((), (3, 4))),
                ),
            )
            live.add(submitted)
            submitted += 1
        if live and rng.random() < CANCEL_SHARE * len(live) / 4:
            victim = rng.choice(sorted(live))
            core.cancel(victim)
            live.discard(victim)
            cancelled += 1
        events = core.step()
        assert not events.failures
        finished = {key for key, delta in events.deltas if delta.finish is not None}
        assert finished <= live
        live -= finished
        ended += len(finished)
        if core.stats().steps % 16 == 0:
            check_held_blocks(core)
    stats = core.stats()
    assert not live
    assert (ended, cancelled) == (
        stats.jobs_finished - before.jobs_finished,
        stats.jobs_cancelled - before.jobs_cancelled,
    )
    assert ended + cancelled == requests
    assert cancelled > requests // 50
    assert stats.preemptions > before.preemptions
    assert stats.prefix_hit_tokens > before.prefix_hit_tokens


def check_empty(core: EngineCore) -> None:
    stats = core.stats()
    assert stats.blocks_in_use == stats.blocks_predicted == dict.fromkeys(stats.blocks_total, 0)
    assert (stats.running, stats.waiting) == (0, 0)
    assert core.kv.free_slots == core.info().max_num_seqs
    assert kept_by_sampler(core) == 0
    for pool in core.kv.pools:
        assert pool.available == pool.num_blocks
        pool.forget()
        assert pool.cached == 0
        assert sorted(pool.allocate(pool.num_blocks)) == list(range(pool.num_blocks))
        pool.release(range(pool.num_blocks))


def test_nothing_leaks(core: EngineCore) -> None:
    """10,000 requests, a part of them cancelled, leave no block, slot, job or count behind."""
    storm(core, 10_000, seed=1)
    check_empty(core)

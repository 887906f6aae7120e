"""Over several ranks an engine says what it says in one process, whatever it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from crew_runs import (
    EOS,
    POISON,
    answers,
    check_same,
    crew_spec,
    eventually,
    mixed_jobs,
    said_in_one_process,
    started,
    talkative_folder,
)
from engine_runs import Result, job
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.errors import BadRequest, EngineFailed
from gpt_oss_server.types import Job, TokenDelta

pytestmark = pytest.mark.usefixtures("one_thread")

# 36 blocks of 4 tokens in each of two pools of two layers, of 2 heads with keys and values of 16
# float32: the longest job, and little beside it.
TIGHT_BYTES = 36 * 4 * 2 * 2 * (2 * 2 * 16 * 4)
TIGHT = {"kv_cache_bytes": TIGHT_BYTES, "block_size": 4}
# What torchrun leaves in the environment of those that it starts.
OTHERS_RANKS = {
    "RANK": "5",
    "WORLD_SIZE": "7",
    "LOCAL_RANK": "5",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1",
}


class Shared:
    """A started crew for tests that leave it as they found it."""

    def __init__(self, client: EngineClient, runner: asyncio.Runner) -> None:
        self.client = client
        self._runner = runner

    def run(self, test: Callable[[EngineClient], Coroutine[Any, Any, None]]) -> None:
        self._runner.run(asyncio.wait_for(test(self.client), 120))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkative_folder(Path(tmp_path_factory.mktemp("talkative")))


@pytest.fixture(scope="module")
def expected(folder: str, one_thread: None) -> dict[int, Result]:
    """What one process says."""
    return said_in_one_process(folder, mixed_jobs())


@pytest.fixture(scope="module", params=["pipeline", "tensor"])
def shared(folder: str, request: pytest.FixtureRequest) -> Iterator[Shared]:
    """Two ranks, started where others' ranks seem to be at work."""
    with pytest.MonkeyPatch.context() as environment, asyncio.Runner() as runner:
        for name, value in OTHERS_RANKS.items():
            environment.setenv(name, value)
        crew = started(crew_spec(folder, request.param))
        client = runner.run(crew.__aenter__())
        yield Shared(client, runner)
        runner.run(crew.__aexit__(None, None, None))


async def ask_everything(client: EngineClient, expected: dict[int, Result]) -> None:
    """Fifty mixed jobs at once: all said as expected, prefixes found, nothing kept."""
    before = client.stats().jobs_finished
    check_same(await answers(client, mixed_jobs()), expected)
    await eventually(lambda: client.stats().jobs_finished == before + len(expected))
    stats = client.stats()
    assert stats.prefix_hit_tokens > 0
    assert not any(stats.blocks_in_use.values())
    assert not any(stats.blocks_predicted.values())


def test_fifty_mixed_jobs_say_the_same(shared: Shared, expected: dict[int, Result]) -> None:
    """Greedy, sampled, guided, with logprobs, sharing prefixes: token for token; over stages with
    a step in flight for each."""
    info = shared.client.info()
    pipeline = info.ranks[1].stage == 1
    assert info.micro_batches == (2 if pipeline else 1)
    shared.run(lambda client: ask_everything(client, expected))
    assert shared.client.stats().preemptions == 0


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("pipeline", {"micro_batches": 3, **TIGHT}),
        pytest.param("tensor", TIGHT, marks=pytest.mark.slow),
    ],
    ids=["pipeline", "tensor"],
)
def test_too_little_memory_changes_nothing(
    folder: str, expected: dict[int, Result], mode: str, settings: dict[str, Any]
) -> None:
    """Preempted and computed again, with more steps in flight than there are stages."""

    async def test() -> None:
        async with started(crew_spec(folder, mode, **settings)) as client:
            await ask_everything(client, expected)
            assert client.stats().preemptions > 0

    asyncio.run(test())


def endless(key: int, **sampling: Any) -> Job:
    return job([3, 4, key], max_tokens=100_000, explicit=False, ignore_eos=True, **sampling)


def test_what_ranks_hold_adds_up(shared: Shared) -> None:
    """Each rank says what it has: its layers, or its part of all of them, in bytes whose sums are
    the engine's."""
    info = shared.client.info()
    first, last = info.ranks
    assert [(r.rank, r.device) for r in info.ranks] == [(0, "cpu"), (1, "cpu")]
    assert set(shared.client.pids) == {rank.pid for rank in info.ranks}
    assert len(shared.client.pids) == 2
    if last.stage:
        assert (first.stage, first.tp_rank, last.stage, last.tp_rank) == (0, 0, 1, 0)
        assert (first.first_layer, last.first_layer) == (0, first.layers)
        assert (first.layers > 0, last.layers > 0, first.layers + last.layers) == (True, True, 4)
    else:
        assert (first.tp_rank, last.tp_rank) == (0, 1)
        assert [(r.first_layer, r.layers) for r in info.ranks] == [(0, 4), (0, 4)]
        assert first.kv_bytes == last.kv_bytes
    assert info.weights_bytes == sum(rank.weights_bytes for rank in info.ranks)
    pools = sum(group.num_blocks * group.block_bytes for group in info.kv_groups)
    assert pools == sum(rank.kv_bytes for rank in info.ranks) <= 4 << 20
    for rank in info.ranks:
        assert rank.kv_bytes == sum(
            group.num_blocks * size
            for group, size in zip(info.kv_groups, rank.block_bytes, strict=True)
        )
    assert info.eos_token_ids == EOS


def test_leaving_frees_what_was_in_flight(shared: Shared) -> None:
    """Jobs cancelled while their steps are in flight hold nothing; those that stay go on."""
    staying = job([5, 6, 7, 8], max_tokens=60, ignore_eos=True)

    async def test(client: EngineClient) -> None:
        before = client.stats().jobs_cancelled
        expected = (await answers(client, {0: staying}))[0].tokens
        for _ in range(3):
            leaving = [
                cast("AsyncGenerator[TokenDelta, None]", client.generate(endless(key)))
                for key in range(6)
            ]
            going_on = asyncio.ensure_future(answers(client, {0: staying}))
            for stream in leaving:
                await anext(stream)
            for stream in leaving:
                await stream.aclose()
            assert (await going_on)[0].tokens == expected
        await eventually(lambda: client.stats().jobs_cancelled == before + 18)
        await eventually(lambda: not any(client.stats().blocks_in_use.values()))

    shared.run(test)


def test_streams_go_on_beside_a_long_prompt(shared: Shared) -> None:
    """Deltas of a running job come while another's prompt is computed in chunks."""

    async def test(client: EngineClient) -> None:
        stream = cast("AsyncGenerator[TokenDelta, None]", client.generate(endless(1)))
        await anext(stream)
        prompt = [2 + n % 900 for n in range(1000)]
        long = asyncio.ensure_future(answers(client, {0: job(prompt, max_tokens=1)}))
        between = 0
        while not long.done():
            await anext(stream)
            between += 1
        await stream.aclose()
        assert len((await long)[0].tokens) == 1
        assert between >= 1000 // 64
        await eventually(lambda: not any(client.stats().blocks_in_use.values()))

    shared.run(test)


def test_a_bad_job_is_refused_alone(shared: Shared) -> None:
    """Its own error, and nobody else's."""

    async def test(client: EngineClient) -> None:
        results = await answers(client, {0: job([999_999]), 1: job([5, 6], ignore_eos=True)})
        assert type(results[0].error) is BadRequest
        assert len(results[1].tokens) == 8

    shared.run(test)


def test_a_forgotten_session_is_computed_again(shared: Shared) -> None:
    """What is cached of a session can be dropped."""
    one = Job(id="s", prompt=list(range(200, 240)), sampling=job([1]).sampling, session="somebody")

    async def cached(client: EngineClient) -> int | None:
        return (await answers(client, {0: one}))[0].deltas[0].cached_tokens

    async def test(client: EngineClient) -> None:
        assert [await cached(client), await cached(client)] == [0, 32]
        client.forget("somebody")
        assert await cached(client) == 0

    shared.run(test)


def test_keys_that_are_not_finite_on_another_rank_fail_their_job(shared: Shared) -> None:
    """Keys of one token that are not finite, in a layer (pipeline) or head (tensor) that is not
    the leader's, fail that job alone."""
    good = {key: job([9, 8, 7, key + 100], max_tokens=12, ignore_eos=True) for key in range(4)}

    async def test(client: EngineClient) -> None:
        alone = {key: (await answers(client, {0: one}))[0].tokens for key, one in good.items()}
        bad = job([5] * 20 + [POISON] + [6] * 30)
        results = await answers(client, {**good, 9: bad})
        assert type(results[9].error) is EngineFailed
        assert results[9].tokens == []
        assert {key: results[key].tokens for key in good} == alone

    shared.run(test)

"""Over several ranks an engine says what it says in one process, whatever it is asked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from crew_runs import EOS, answers, crew_spec, eventually, started, talkative_folder
from engine_runs import Result, job, run
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.errors import BadRequest, EngineFailed
from gpt_oss_server.types import Grammar, GuidedSpec, Job, TokenDelta
from tiny_models import build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

POISON = 77
HEAD_SIZE = 16
SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'
# 36 blocks of 4 tokens in each of two pools of two layers, of 2 heads with keys and values of 16
# float32: the longest job, and little beside it.
TIGHT_BYTES = 36 * 4 * 2 * 2 * (2 * 2 * 16 * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkative_folder(Path(tmp_path_factory.mktemp("talkative")))


def mixed_jobs() -> dict[int, Job]:
    """Fifty jobs: 1 to 90 prompt tokens, a third behind one system prompt; greedy, sampled with
    every parameter, with logprobs, guided; 1 to 40 tokens."""
    rng = random.Random(7)
    system = [rng.randrange(2, 900) for _ in range(40)]
    sampled: list[dict[str, Any]] = [
        {"top_k": 20},
        {"top_p": 0.8, "logit_bias": {7: 2.0}},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "min_p": 0.02},
    ]
    jobs = {}
    for key in range(50):
        prompt = [rng.randrange(2, 900) for _ in range(rng.choice((1, 3, 17, 50)))]
        if key % 3 == 0:
            prompt = system + prompt
        fields: dict[str, Any] = {"max_tokens": rng.choice((1, 5, 20, 40))}
        if key % 5 == 1:
            fields |= {"temperature": 1.0, "seed": key, **sampled[key % 4]}
        if key % 7 == 2:
            fields["logprobs"] = 3
        if key % 10 == 4:
            grammar = Grammar(kind="json_schema", source=SCHEMA)
            fields |= {"guided": GuidedSpec.whole(grammar), "max_tokens": 40}
        jobs[key] = job(prompt, **fields)
    return jobs


def outcome(result: Result) -> tuple[list[int], str | None, list[list[int]]]:
    """Tokens, end, and the alternatives of each token by rank."""
    entries = [entry for delta in result.deltas for entry in delta.logprobs or ()]
    return result.tokens, result.finish, [[token for token, _ in e.top] for e in entries]


@pytest.fixture(scope="module")
def expected(folder: str, one_thread: None) -> dict[int, Result]:
    """What one process says."""
    return run(EngineCore(crew_spec(folder, "single", 1)), mixed_jobs())


def test_the_yardstick_is_varied(expected: dict[int, Result]) -> None:
    """The expected output is no constant: equality would otherwise prove little."""
    assert len({token for result in expected.values() for token in result.tokens}) > 150
    assert not any(result.error for result in expected.values())


@pytest.mark.parametrize(
    ("mode", "gpus", "settings"),
    [
        ("pipeline", 2, {}),
        ("pipeline", 2, {"micro_batches": 3, "block_size": 4}),
        ("pipeline", 2, {"kv_cache_bytes": TIGHT_BYTES, "block_size": 4}),
        ("pipeline", 4, {}),
        ("tensor", 2, {}),
    ],
    ids=["two stages", "three in flight", "too little memory", "four stages", "tensor"],
)
def test_fifty_mixed_jobs_say_the_same(
    folder: str, expected: dict[int, Result], mode: str, gpus: int, settings: dict[str, Any]
) -> None:
    """Greedy, sampled, guided, with logprobs, sharing prefixes, preempted: token for token."""
    spec = crew_spec(folder, mode, gpus, **settings)

    async def test() -> None:
        async with started(spec) as client:
            info = client.info()
            assert [rank.rank for rank in info.ranks] == list(range(gpus))
            assert set(client.pids) == {rank.pid for rank in info.ranks}
            results = await answers(client, mixed_jobs())
            for key, result in results.items():
                assert outcome(result) == outcome(expected[key]), key
            await eventually(lambda: client.stats().jobs_finished == 50)
            stats = client.stats()
            assert stats.prefix_hit_tokens > 0
            assert (stats.preemptions > 0) == ("kv_cache_bytes" in settings)
            assert not any(stats.blocks_in_use.values())
            assert not any(stats.blocks_predicted.values())

    asyncio.run(test())


@pytest.fixture(scope="module")
def shared(folder: str) -> Iterator[tuple[asyncio.Runner, EngineClient]]:
    """One started pipeline for tests that leave it as they found it."""
    with asyncio.Runner() as runner:
        crew = started(crew_spec(folder))
        client = runner.run(crew.__aenter__())
        yield runner, client
        runner.run(crew.__aexit__(None, None, None))


def endless(key: int, **sampling: Any) -> Job:
    return job([3, 4, key], max_tokens=100_000, explicit=False, ignore_eos=True, **sampling)


def test_what_ranks_hold_adds_up(shared: tuple[asyncio.Runner, EngineClient]) -> None:
    """Each rank says what it has: layers one after the other, bytes whose sums are the engine's."""
    info = shared[1].info()
    first, last = info.ranks
    assert [(r.rank, r.stage, r.tp_rank, r.device) for r in info.ranks] == [
        (0, 0, 0, "cpu"),
        (1, 1, 0, "cpu"),
    ]
    assert (first.first_layer, last.first_layer) == (0, first.layers)
    assert (first.layers > 0, last.layers > 0, first.layers + last.layers) == (True, True, 4)
    assert info.weights_bytes == sum(rank.weights_bytes for rank in info.ranks)
    pools = sum(group.num_blocks * group.block_bytes for group in info.kv_groups)
    assert pools == sum(rank.kv_bytes for rank in info.ranks) <= 4 << 20
    for rank in info.ranks:
        assert rank.kv_bytes == sum(
            group.num_blocks * size
            for group, size in zip(info.kv_groups, rank.block_bytes, strict=True)
        )
    assert (info.micro_batches, info.eos_token_ids) == (2, EOS)


def test_leaving_frees_what_was_in_flight(shared: tuple[asyncio.Runner, EngineClient]) -> None:
    """Jobs cancelled while their steps are in flight hold nothing; those that stay go on."""
    runner, client = shared
    staying = job([5, 6, 7, 8], max_tokens=60, ignore_eos=True)

    async def test() -> None:
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

    runner.run(test())


def test_streams_go_on_beside_a_long_prompt(shared: tuple[asyncio.Runner, EngineClient]) -> None:
    """Deltas of a running job come while another's prompt is computed in chunks."""
    runner, client = shared

    async def test() -> None:
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

    runner.run(test())


def test_a_bad_job_is_refused_alone(shared: tuple[asyncio.Runner, EngineClient]) -> None:
    """Its own error, and nobody else's."""
    runner, client = shared

    async def test() -> None:
        results = await answers(client, {0: job([999_999]), 1: job([5, 6], ignore_eos=True)})
        assert type(results[0].error) is BadRequest
        assert len(results[1].tokens) == 8

    runner.run(test())


def test_a_forgotten_session_is_computed_again(
    shared: tuple[asyncio.Runner, EngineClient],
) -> None:
    """What is cached of a session can be dropped."""
    runner, client = shared
    one = Job(id="s", prompt=list(range(200, 240)), sampling=job([1]).sampling, session="somebody")

    async def cached() -> int | None:
        return (await answers(client, {0: one}))[0].deltas[0].cached_tokens

    async def test() -> None:
        assert [await cached(), await cached()] == [0, 32]
        client.forget("somebody")
        assert await cached() == 0

    runner.run(test())


@pytest.mark.parametrize("mode", ["pipeline", "tensor"])
def test_keys_that_are_not_finite_on_another_rank_fail_their_job(tmp_path: Path, mode: str) -> None:
    """Keys of one token that are not finite, in a layer (pipeline) or head (tensor) that is not
    the leader's, fail that job alone."""
    model = build("gpt_oss")
    with torch.no_grad():
        # Only this token has something in the first place of its embedding, and only the keys of
        # the first layer's last head look at it. They overflow; behind a softmax that sees the
        # key as 0 nothing does.
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 0.0
        embedding[POISON, 0] = 1e3
        keys = model.model.layers[0].self_attn.k_proj.weight
        keys[:, 0] = 0.0
        keys[-HEAD_SIZE:, 0] = 3e38
    folder = saved(model, tmp_path)
    good = {key: job([9, 8, 7, key], max_tokens=12, ignore_eos=True) for key in range(4)}

    async def test() -> None:
        async with started(crew_spec(folder, mode)) as client:
            alone = {key: (await answers(client, {0: one}))[0].tokens for key, one in good.items()}
            bad = job([5] * 20 + [POISON] + [6] * 30)
            results = await answers(client, {**good, 9: bad})
            assert type(results[9].error) is EngineFailed
            assert results[9].tokens == []
            assert {key: results[key].tokens for key in good} == alone

    asyncio.run(test())

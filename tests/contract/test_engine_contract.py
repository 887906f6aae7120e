"""What every `Engine` promises, held against each implementation.

Add an engine by adding an `EngineCase`: how to make it, and a prompt that its vocabulary knows.
Nothing here depends on which tokens come. Most tests share one started engine per case, as a real
one takes seconds to start; they compare its counters with what they were before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

import gpt_oss_server
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import BadRequest, ContextTooLong, NotReady
from gpt_oss_server.ports import Engine
from gpt_oss_server.types import Job, SamplingParams, TokenDelta

DEADLINE_S = 60.0


@dataclass(frozen=True)
class EngineCase:
    """An implementation under test."""

    name: str
    make: Callable[[], Engine]
    prompt: tuple[int, ...] = (5, 6, 7, 8)


def worker() -> Engine:
    """The real engine in its own process, on the packaged tiny model."""
    folder = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
    return EngineClient(
        EngineSpec(
            folder=str(folder),
            load_format="random",
            device="cpu",
            kv_cache_bytes=64 << 20,
            threads=1,
        )
    )


CASES = [EngineCase("fake", FakeEngine), EngineCase("worker", worker)]


@dataclass(frozen=True)
class Started:
    """A case's engine, started, and the event loop that it lives on."""

    case: EngineCase
    engine: Engine
    runner: asyncio.Runner

    def run(self, test: Callable[[Engine], Coroutine[Any, Any, None]]) -> None:
        async def within_deadline() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await test(self.engine)

        self.runner.run(within_deadline())


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="module")
def case(request: pytest.FixtureRequest) -> EngineCase:
    return cast("EngineCase", request.param)


@pytest.fixture(scope="module")
def started(case: EngineCase) -> Iterator[Started]:
    """One engine for the tests that leave it as they found it."""
    with asyncio.Runner() as runner:
        engine = case.make()
        runner.run(engine.start())
        try:
            yield Started(case, engine, runner)
        finally:
            runner.run(engine.close())


def job(case: EngineCase, name: str = "job", explicit: bool = True, **sampling: Any) -> Job:
    """A greedy job of eight tokens, unless told otherwise; it goes on past the end of a turn."""
    defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    return Job(
        id=name,
        prompt=list(case.prompt),
        sampling=SamplingParams(**{**defaults, **sampling}),
        max_tokens_explicit=explicit,
    )


def stream(engine: Engine, job: Job) -> AsyncGenerator[TokenDelta, None]:
    return cast("AsyncGenerator[TokenDelta, None]", engine.generate(job))


async def collect(engine: Engine, job: Job) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(job)]


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def eventually(engine: Engine, predicate: Callable[[Engine], bool]) -> None:
    """Wait until the engine's snapshot shows it; a real engine's arrives a step later."""
    async with asyncio.timeout(DEADLINE_S):
        while not predicate(engine):  # noqa: ASYNC110 - the port has no event to wait for
            await asyncio.sleep(0.005)


def idle(engine: Engine) -> bool:
    """Whether no job runs or waits, and none holds memory."""
    stats = engine.stats()
    return stats.running + stats.waiting + sum(stats.blocks_in_use.values()) == 0


def test_state_before_and_after(case: EngineCase) -> None:
    """An engine is ready exactly between start and close, and says why otherwise."""

    async def main() -> None:
        engine = case.make()
        assert not engine.state().ready
        assert engine.state().reason
        with pytest.raises(NotReady):
            await collect(engine, job(case))
        await engine.start()
        assert engine.state().ready
        assert engine.state().restarts == 0
        await engine.close()
        assert not engine.state().ready
        with pytest.raises(NotReady):
            await collect(engine, job(case))

    asyncio.run(main())


def test_info_is_coherent(started: Started) -> None:
    """What the engine says of itself fits together."""
    case = started.case

    async def test(engine: Engine) -> None:
        info = engine.info()
        assert info.max_model_len > 1
        assert info.vocab_size > max(case.prompt)
        assert info.eos_token_ids
        assert all(0 <= eos < info.vocab_size for eos in info.eos_token_ids)
        assert 1 <= info.block_size <= 128
        assert info.kv_groups
        assert info.kv_token_capacity > 0
        assert info.max_num_seqs > 0

    started.run(test)


def test_length_limit(started: Started) -> None:
    """Exactly `max_tokens` tokens come, the last delta and only it says `length`."""
    case = started.case

    async def test(engine: Engine) -> None:
        deltas = await collect(engine, job(case, max_tokens=5))
        assert len(tokens(deltas)) == 5
        assert [delta.finish for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert all(0 <= token < engine.info().vocab_size for token in tokens(deltas))

    started.run(test)


def test_first_delta_reports_cached_tokens(started: Started) -> None:
    """The first delta, and no other, says how much of the prompt was cached."""
    case = started.case

    async def test(engine: Engine) -> None:
        deltas = await collect(engine, job(case))
        assert deltas[0].cached_tokens is not None
        assert 0 <= deltas[0].cached_tokens < len(case.prompt)
        assert all(delta.cached_tokens is None for delta in deltas[1:])

    started.run(test)


def test_stop_token_is_delivered_and_ends(started: Started) -> None:
    """Generation ends at the first stop id, which is the last token delivered."""
    case = started.case

    async def test(engine: Engine) -> None:
        free = tokens(await collect(engine, job(case)))
        stop = free[3]
        deltas = await collect(engine, job(case, stop_token_ids=(stop,)))
        assert tokens(deltas) == free[: free.index(stop) + 1]
        assert deltas[-1].finish == "stop"

    started.run(test)


def test_min_tokens_hold_back_the_end(started: Started) -> None:
    """No stop id comes among the first `min_tokens` tokens."""
    case = started.case

    async def test(engine: Engine) -> None:
        free = tokens(await collect(engine, job(case)))
        held = tokens(await collect(engine, job(case, stop_token_ids=(free[0],), min_tokens=4)))
        assert len(held) >= 4
        assert free[0] not in held[:4]

    started.run(test)


def test_same_seed_same_tokens(started: Started) -> None:
    """A job repeats itself under its seed, whatever runs beside it."""
    case = started.case

    async def test(engine: Engine) -> None:
        wanted: dict[str, Any] = {"temperature": 1.0, "seed": 7}
        alone = tokens(await collect(engine, job(case, **wanted)))
        beside = await asyncio.gather(
            *(collect(engine, job(case, f"other-{i}", temperature=1.0, seed=i)) for i in range(3)),
            collect(engine, job(case, "again", **wanted)),
        )
        assert tokens(beside[-1]) == alone

    started.run(test)


@pytest.mark.parametrize("wanted", [0, 3])
def test_logprobs(started: Started, wanted: int) -> None:
    """Each token has its logprob and as many alternatives as asked for, best first."""
    case = started.case

    async def test(engine: Engine) -> None:
        for delta in await collect(engine, job(case, logprobs=wanted)):
            assert delta.logprobs is not None
            assert tuple(item.token_id for item in delta.logprobs) == delta.token_ids
            for item in delta.logprobs:
                ranked = [logprob for _, logprob in item.top]
                assert len(ranked) == wanted
                assert ranked == sorted(ranked, reverse=True)
                assert item.logprob <= 0.0

    started.run(test)


def test_no_logprobs_unless_asked(started: Started) -> None:
    """Without `logprobs` none are computed."""
    case = started.case

    async def test(engine: Engine) -> None:
        assert all(delta.logprobs is None for delta in await collect(engine, job(case)))

    started.run(test)


@pytest.mark.parametrize("how", ["aclose", "cancel", "unread"])
def test_leaving_cancels(started: Started, how: str) -> None:
    """Closing the iterator, or cancelling its reader, ends the job and frees what it held."""
    case = started.case

    async def test(engine: Engine) -> None:
        before = engine.stats().jobs_cancelled
        deltas = stream(engine, job(case, max_tokens=1000))
        if how != "unread":
            await anext(deltas)
        if how == "cancel":
            reader = asyncio.ensure_future(anext(deltas))
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        await deltas.aclose()
        cancelled = before + (how != "unread")
        await eventually(engine, lambda e: e.stats().jobs_cancelled == cancelled and idle(e))
        assert len(tokens(await collect(engine, job(case, "next")))) == 8

    started.run(test)


def test_one_cancelled_job_leaves_the_others(started: Started) -> None:
    """A job cancelled beside another does not change what the other says."""
    case = started.case

    async def test(engine: Engine) -> None:
        alone = tokens(await collect(engine, job(case, max_tokens=12)))
        leaving = stream(engine, job(case, "leaving", max_tokens=1000, seed=3, temperature=1.0))
        await anext(leaving)
        staying = asyncio.ensure_future(collect(engine, job(case, "staying", max_tokens=12)))
        await leaving.aclose()
        assert tokens(await staying) == alone
        await eventually(engine, idle)

    started.run(test)


def test_bad_jobs_fail_alone(started: Started) -> None:
    """An empty prompt, an id outside the vocabulary and a job over the context each raise their
    own error, at once, while a good job beside them completes."""
    case = started.case

    async def test(engine: Engine) -> None:
        info = engine.info()
        good = job(case, "good")

        def with_prompt(name: str, prompt: list[int]) -> Job:
            return msgspec.structs.replace(good, id=name, prompt=prompt)

        results = await asyncio.gather(
            collect(engine, good),
            collect(engine, with_prompt("empty", [])),
            collect(engine, with_prompt("outside", [info.vocab_size])),
            collect(engine, with_prompt("negative", [-1])),
            collect(engine, with_prompt("long", [case.prompt[0]] * info.max_model_len)),
            collect(engine, job(case, "asks too much", max_tokens=info.max_model_len)),
            return_exceptions=True,
        )
        assert isinstance(results[0], list)
        assert len(tokens(results[0])) == 8
        assert [type(result) for result in results[1:4]] == [BadRequest] * 3
        assert [type(result) for result in results[4:]] == [ContextTooLong] * 2

    started.run(test)


def test_an_open_bound_is_lowered(started: Started) -> None:
    """A bound that the client left open never makes a job fail."""
    case = started.case

    async def test(engine: Engine) -> None:
        limit = engine.info().max_model_len
        deltas = stream(engine, job(case, max_tokens=limit, explicit=False))
        assert (await anext(deltas)).token_ids
        await deltas.aclose()
        await eventually(engine, idle)

    started.run(test)


def test_counters_and_closing_twice(case: EngineCase) -> None:
    """Statistics add up once the jobs are done; closing a closed engine does nothing."""

    async def main() -> None:
        engine = case.make()
        try:
            await engine.start()
            await asyncio.gather(*(collect(engine, job(case, f"job-{i}")) for i in range(3)))
            await eventually(engine, lambda e: e.stats().jobs_finished == 3 and idle(e))
            stats = engine.stats()
            assert (stats.jobs_failed, stats.jobs_cancelled) == (0, 0)
            assert stats.steps > 0
        finally:
            await engine.close()
        await engine.close()
        assert not engine.state().ready

    asyncio.run(main())

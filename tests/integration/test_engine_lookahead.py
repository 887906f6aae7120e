"""Steps launched before the last tokens are known: every kind of request is served as without."""

from __future__ import annotations

import random

import pytest

from engine_runs import Result, cpu_core, kept_by_sampler, run, step
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.types import GuidedSpec, Job, SamplingParams, TokenDelta
from guided_runs import FOLDER, of_schema

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECT = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "name": {"type": "string", "maxLength": 20}},
    "required": ["age", "name"],
    "additionalProperties": False,
}


def engine(*, lookahead: bool, kv_cache_bytes: int = 4 << 20) -> EngineCore:
    return cpu_core(
        str(FOLDER),
        load_format="random",
        lookahead=lookahead,
        max_num_seqs=8,
        max_batch_tokens=64,
        kv_cache_bytes=kv_cache_bytes,
    )


def mixed_jobs(count: int) -> dict[int, Job]:
    """Greedy and drawn, penalised, biased, bounded below, with logprobs, stop ids or a schema that
    closes in on its last tokens."""
    rng = random.Random(4)
    guided = GuidedSpec.whole(of_schema(OBJECT))
    kinds = [
        SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=25, temperature=1.0, seed=7, top_p=0.9, top_k=40),
        SamplingParams(max_tokens=20, temperature=0.7, seed=1, frequency_penalty=1.5),
        SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=1.3, logprobs=3),
        SamplingParams(max_tokens=20, temperature=1.2, seed=5, logprobs=2, min_tokens=9),
        SamplingParams(max_tokens=24, temperature=1.5, seed=9, guided=guided, logprobs=1),
        SamplingParams(max_tokens=40, temperature=1.0, seed=2, stop_token_ids=(300, 301, 7)),
        SamplingParams(max_tokens=1, temperature=0.0, logit_bias={33: 100.0}),
    ]
    return {
        key: Job(
            id=str(key),
            prompt=[rng.randrange(100, 900) for _ in range(rng.choice((1, 20, 90)))],
            sampling=kinds[key % len(kinds)],
        )
        for key in range(count)
    }


def said(result: Result) -> tuple[list[int], list[object], str | None]:
    """Tokens, alternatives and end: log-probabilities differ in their last bits by batch."""
    ranked = [
        [token for token, _ in one.top] for delta in result.deltas for one in delta.logprobs or ()
    ]
    return result.tokens, list(ranked), result.finish


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

"""Greedy output in float32 equals `model.generate`, token for token, whatever the engine does:
batch, chunking, preemption, prefix hits, backend."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from engine_runs import alone, cpu_core, job, run
from gpt_oss_server.types import Job
from tiny_models import VOCAB, build, generated, saved

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = (
    "gpt_oss",
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "deepseek_v3",
)
# Three steps' sliding windows and more, so that blocks slide out while a prefix is shared.
SYSTEM_PROMPT_TOKENS = 70


@dataclass
class Yardstick:
    """A model on disk, jobs, and what transformers says to each."""

    name: str
    folder: str
    jobs: dict[int, Job]
    expected: dict[int, list[int]]


def some_jobs() -> dict[int, Job]:
    """Prompts of 1 to 130 tokens, a third of them behind one system prompt; 1 to 40 outputs."""
    rng = random.Random(0)

    def text(count: int) -> list[int]:
        return [rng.randrange(2, VOCAB - 5) for _ in range(count)]

    system = text(SYSTEM_PROMPT_TOKENS)
    jobs = {}
    for key in range(16):
        prompt = text(rng.choice((1, 3, 17, 40, 130)))
        if key % 3 == 0:
            prompt = system + prompt
        jobs[key] = job(prompt, max_tokens=rng.choice((1, 5, 30, 40)))
    return jobs


@pytest.fixture(scope="module", params=FAMILIES)
def yardstick(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Yardstick:
    name = cast("str", request.param)
    model = build(name)
    jobs = some_jobs()
    expected = {
        key: generated(model, one.prompt, one.sampling.max_tokens) for key, one in jobs.items()
    }
    folder = saved(model, Path(tmp_path_factory.mktemp(name)))
    return Yardstick(name, folder, jobs, expected)


def check(yardstick: Yardstick, *, arrivals: int | None, **settings: Any) -> Any:
    """Run all jobs and compare; returns the engine's statistics."""
    core = cpu_core(yardstick.folder, **settings)
    rng = None if arrivals is None else random.Random(arrivals)
    results = run(core, yardstick.jobs, arrivals=rng)
    assert {key: result.error for key, result in results.items() if result.error} == {}
    assert {key: result.tokens for key, result in results.items()} == yardstick.expected
    stats = core.stats()
    assert stats.jobs_finished == len(yardstick.jobs)
    return stats


def test_the_yardstick_is_varied(yardstick: Yardstick) -> None:
    """The expected output is no constant: equality would otherwise prove little."""
    long = [tokens for tokens in yardstick.expected.values() if len(tokens) >= 30]
    assert len(long) >= 4
    distinct = {token for tokens in yardstick.expected.values() for token in tokens}
    assert len(distinct) >= (20 if yardstick.name == "gpt2" else 60)
    assert len({tuple(tokens[:5]) for tokens in long}) == len(long)


@pytest.mark.parametrize("max_batch_tokens", [7, 48, 512])
def test_any_chunking(yardstick: Yardstick, max_batch_tokens: int) -> None:
    """Prompts cut into chunks of any size, mixed with decoding; prefixes are shared."""
    slots = min(8, max_batch_tokens)
    stats = check(yardstick, arrivals=1, max_batch_tokens=max_batch_tokens, max_num_seqs=slots)
    assert stats.prefix_hit_tokens > 0
    assert stats.preemptions == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"prefix_caching": False},
        {"block_size": 4, "prefill_order": "fcfs"},
        {"block_size": 64, "max_num_seqs": 3},
        {"attention_backend": "reference"},
        {"lookahead": True},
    ],
    ids=["no prefix caching", "small blocks, first come", "large blocks", "reference", "lookahead"],
)
def test_any_settings(yardstick: Yardstick, settings: dict[str, Any]) -> None:
    """Settings change the schedule, never the output."""
    stats = check(yardstick, arrivals=2, **settings)
    assert (stats.prefix_hit_tokens > 0) == ("prefix_caching" not in settings)


def test_alone_and_all_at_once(yardstick: Yardstick) -> None:
    """A job says the same alone in the engine, and in the largest batch there is."""
    core = cpu_core(yardstick.folder, max_num_seqs=16, max_batch_tokens=256)
    for key in (0, 5, 9):
        assert alone(core, yardstick.jobs[key]).tokens == yardstick.expected[key]
    check(yardstick, arrivals=None, max_num_seqs=16, max_batch_tokens=256)


def test_a_second_run_hits_the_cache(yardstick: Yardstick) -> None:
    """The same jobs again, now with every prompt cached from before."""
    core = cpu_core(yardstick.folder)
    run(core, yardstick.jobs)
    before = core.stats().prefix_hit_tokens
    again = run(core, yardstick.jobs, arrivals=random.Random(3))
    assert {key: result.tokens for key, result in again.items()} == yardstick.expected
    prompts = sum(len(one.prompt) for one in yardstick.jobs.values())
    assert core.stats().prefix_hit_tokens - before > prompts // 2
    cached = {key: result.deltas[0].cached_tokens for key, result in again.items()}
    assert all(c is not None and c < len(yardstick.jobs[k].prompt) for k, c in cached.items())


def pool_bytes(yardstick: Yardstick, blocks: int, block_size: int) -> int:
    """The budget that gives each pool at most this many blocks."""
    info = cpu_core(yardstick.folder, block_size=block_size).info()
    return sum(group.block_bytes for group in info.kv_groups) * blocks


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preemption_changes_nothing(yardstick: Yardstick, prefix_caching: bool) -> None:
    """With a pool that cannot hold what runs, sequences are thrown out, recomputed, and say what
    they would have said."""
    jobs = {
        key: job(one.prompt[:20], max_tokens=40)
        for key, one in list(yardstick.jobs.items())[:8]
        if len(one.prompt) >= 3
    }
    roomy = cpu_core(yardstick.folder)
    expected = {key: result.tokens for key, result in run(roomy, jobs).items()}
    assert roomy.stats().preemptions == 0
    core = cpu_core(
        yardstick.folder,
        block_size=4,
        kv_cache_bytes=pool_bytes(yardstick, 16, 4),
        prefix_caching=prefix_caching,
    )
    results = run(core, jobs)
    assert core.stats().preemptions > 0
    assert {key: result.tokens for key, result in results.items()} == expected

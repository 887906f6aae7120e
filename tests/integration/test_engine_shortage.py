"""Steps that the device has no memory for: computed again in smaller ones, and nobody notices."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from engine_runs import Result, check_held_blocks, cpu_core, job, kept_by_sampler, run, step
from gpt_oss_server.engine.core import TOO_LARGE, EngineCore
from gpt_oss_server.errors import EngineFailed
from guided_runs import FOLDER
from mixed_jobs import mixed_jobs, said
from scarce_memory import SECRET, Scarcity

pytestmark = pytest.mark.usefixtures("one_thread")


def engine(**settings: Any) -> EngineCore:
    defaults: dict[str, Any] = {"load_format": "random", "max_batch_tokens": 64}
    return cpu_core(str(FOLDER), **{**defaults, **settings})


@pytest.fixture(scope="module")
def expected() -> dict[int, Result]:
    """What is said where memory is plenty."""
    return run(engine(), mixed_jobs(24))


@pytest.mark.parametrize("lookahead", [False, True], ids=["plain", "lookahead"])
@pytest.mark.parametrize(
    ("scarcity", "kv_cache_bytes"),
    [
        (Scarcity(tokens=40), 4 << 20),
        (Scarcity(tokens=3), 4 << 20),
        (Scarcity(rows=3), 4 << 20),
        (Scarcity(tokens=9, rows=2), 4 << 20),
        (Scarcity(tokens=12, rows=6), 440 << 10),
    ],
    ids=["prefill", "decode", "draw", "both", "preemption"],
)
def test_tokens_are_those_of_a_run_with_memory(
    expected: dict[int, Result], scarcity: Scarcity, kv_cache_bytes: int, lookahead: bool
) -> None:
    """Requests of every kind say the same, in smaller steps; nothing is left of the larger ones."""
    scarcity.raised = 0
    core = scarcity.beset(engine(lookahead=lookahead, kv_cache_bytes=kv_cache_bytes))
    found = run(core, mixed_jobs(24))
    assert {key: result.error for key, result in found.items() if result.error} == {
        key: result.error for key, result in expected.items() if result.error
    }
    assert {k: said(r) for k, r in found.items()} == {k: said(r) for k, r in expected.items()}
    stats = core.stats()
    assert stats.shortages == scarcity.raised > 0
    assert (stats.jobs_failed, stats.jobs_too_large) == (0, 0)
    assert (stats.preemptions > 0) == (kv_cache_bytes < 4 << 20)
    assert kept_by_sampler(core) == 0
    assert core.kv.free_slots == 8


@pytest.mark.parametrize("lookahead", [False, True], ids=["plain", "lookahead"])
def test_a_shortage_that_passes_is_forgotten(lookahead: bool) -> None:
    """Steps are smaller for a while after a single shortage, and then as large as before."""
    scarcity = Scarcity(tokens=20)
    core = scarcity.beset(engine(lookahead=lookahead))
    results = {0: Result()}
    core.submit(0, job(range(2, 42), max_tokens=100, ignore_eos=True))
    step(core, results)
    assert core.stats().shortages == 1
    assert 0 < (core.stats().step_budget_tokens or 0) <= 20
    scarcity.tokens = 10**9
    while core.has_work:
        step(core, results)
    assert core.stats().step_budget_tokens == 64
    assert core.stats().shortages == 1
    assert len(results[0].tokens) == 100


def test_what_fits_not_even_alone_fails_alone() -> None:
    """One request needs more than there is for a single token: it ends with an error that says
    so, the others with all that they say anyway, and it leaves nothing."""
    jobs = mixed_jobs(16)
    plain = run(engine(), jobs)
    core = engine()
    runner: Any = core._runner
    adjust = runner.sampler._adjust

    def adjusted(raw: torch.Tensor, sent: Any) -> torch.Tensor:
        if "bias" in sent:  # the jobs 7 and 15
            raise torch.OutOfMemoryError(f"CUDA out of memory {SECRET}")
        result: torch.Tensor = adjust(raw, sent)
        return result

    runner.sampler._adjust = adjusted
    found = run(core, jobs)
    failed = {key: result.error for key, result in found.items() if result.error is not None}
    assert sorted(failed) == [7, 15]
    for error in failed.values():
        assert isinstance(error, EngineFailed)
        assert str(error) == TOO_LARGE
        assert error.retry_after_s == 1.0
    rest = [key for key in jobs if key not in failed]
    assert {k: said(found[k]) for k in rest} == {k: said(plain[k]) for k in rest}
    assert (core.stats().jobs_failed, core.stats().jobs_too_large) == (2, 2)
    assert core.stats().jobs_finished == 14
    assert kept_by_sampler(core) == 0
    assert core.kv.free_slots == 8


def test_cancels_between_shortages_leave_nothing(expected: dict[int, Result]) -> None:
    """Jobs that are dropped at any moment disturb nobody, however short memory is."""
    jobs = mixed_jobs(24)
    scarcity = Scarcity(tokens=11, rows=4)
    core = scarcity.beset(engine(lookahead=True))
    results = {key: Result() for key in jobs}
    for key, one in jobs.items():
        core.submit(key, one)
    rng = random.Random(1)
    gone: set[int] = set()
    while core.has_work:
        step(core, results)
        if rng.random() < 0.1:
            key = rng.randrange(len(jobs))
            gone.add(key)
            core.cancel(key)
        if rng.random() < 0.05:
            scarcity.tokens = rng.choice((2, 11, 64))
    assert gone
    for key, result in results.items():
        before = expected[key].tokens
        assert result.tokens == (before[: len(result.tokens)] if key in gone else before)
    check_held_blocks(core)
    assert not any(core.stats().blocks_in_use.values())
    assert kept_by_sampler(core) == 0


def test_a_shortage_is_told_without_a_word_of_the_exception() -> None:
    """The log hears how large the step was, what was raised and where, and none of its text."""
    told: list[str] = []
    core = Scarcity(tokens=20).beset(engine())
    core._tell = told.append
    run(core, {0: job(range(2, 42))})
    [line] = told
    assert line.startswith(
        "out of memory in a step of 40 tokens of 1 sequences (0 decoding): smaller steps for a "
        "while; OutOfMemoryError at scarce_memory.py:"
    )
    assert "runner.py" in line
    assert SECRET not in line


def test_what_a_failed_step_held_is_free_when_the_next_begins() -> None:
    """Nobody keeps the exception, whose traceback would keep the step's tensors."""
    import weakref

    scarcity = Scarcity(tokens=12)
    core = scarcity.beset(engine())
    runner: Any = core._runner
    inner = runner._model._forward
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Watched:
        name, capturable = inner.name, inner.capturable

        def forward(self, given: Any, context: Any) -> torch.Tensor:
            alive.append(sum(ref() is not None for ref in held))
            logits: torch.Tensor = inner.forward(given, context)
            held.extend((weakref.ref(logits), weakref.ref(context.written)))
            return logits

    runner._model._forward = Watched()
    core.submit(0, job(range(2, 42), max_tokens=1))
    core.step()
    assert scarcity.raised > 0
    assert alive == [0] * (scarcity.raised + 1)


def test_other_exceptions_stay_fatal() -> None:
    """What is not a want of memory is not tried again."""
    core = engine()
    runner: Any = core._runner

    class Broken:
        name, capturable = "broken", False

        def forward(self, given: Any, context: Any) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    runner._model = Broken()
    core.submit(0, job([5, 6, 7]))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        core.step()

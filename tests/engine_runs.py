"""Driving an `EngineCore` by hand: jobs in by a schedule, tokens out, invariants in between.

Knows: the core's public surface. Does not know: models.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ServerError
from gpt_oss_server.types import Job, SamplingParams, TokenDelta


def cpu_core(folder: str, **settings: Any) -> EngineCore:
    """A small engine on the CPU."""
    defaults: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_batch_tokens": 48,
        "kv_cache_bytes": 4 << 20,
        "device": "cpu",
    }
    return EngineCore(EngineSpec(folder=folder, **{**defaults, **settings}))


def job(prompt: Iterable[int], *, explicit: bool = True, **sampling: Any) -> Job:
    """A greedy job of eight tokens, unless told otherwise."""
    defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
    params = SamplingParams(**{**defaults, **sampling})
    return Job(id="job", prompt=list(prompt), sampling=params, max_tokens_explicit=explicit)


@dataclass
class Result:
    """Everything that the engine said about one job."""

    deltas: list[TokenDelta] = field(default_factory=list)
    error: ServerError | None = None

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def finish(self) -> str | None:
        return self.deltas[-1].finish if self.deltas else None


def run(
    core: EngineCore, jobs: Mapping[int, Job], *, arrivals: random.Random | None = None
) -> dict[int, Result]:
    """Run jobs to their ends; all are submitted at once, or by `arrivals` 0 to 2 a step."""
    results = {key: Result() for key in jobs}
    pending = list(jobs)
    while pending or core.has_work:
        count = len(pending) if arrivals is None else arrivals.choice((0, 1, 2))
        for key in pending[:count]:
            core.submit(key, jobs[key])
        del pending[:count]
        step(core, results)
    assert not any(core.stats().blocks_in_use.values())
    return results


def step(core: EngineCore, results: Mapping[int, Result]) -> None:
    """One step; every delta and failure is noted, and held blocks are those predicted."""
    events = core.step()
    for key, delta in events.deltas:
        results[key].deltas.append(delta)
    for key, error in events.failures:
        results[key].error = error
    check_held_blocks(core)


def check_held_blocks(core: EngineCore) -> None:
    """Every running sequence holds what arithmetic predicts, and nobody else holds anything."""
    running = core.batcher.running.values()
    for seq in running:
        assert [len(blocks) for blocks in seq.blocks] == core.kv.predicted_blocks(seq)
    for g, pool in enumerate(core.kv.pools):
        assert pool.in_use == len({block for seq in running for block in seq.blocks[g]})


def kept_by_sampler(core: EngineCore) -> int:
    """How many entries the sampler still keeps for sequences: what a job's end must drop."""
    sampler = core._runner.sampler
    return len(sampler.counts) + len(sampler._biases._bias) + len(sampler._biases._stops)


def alone(core: EngineCore, one: Job) -> Result:
    """One job with nothing beside it."""
    return run(core, {0: one})[0]

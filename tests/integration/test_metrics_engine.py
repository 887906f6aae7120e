"""What the real engine tells of its steps and of its worker's end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

import gpt_oss_server.engine.client as client_module
from engine_runs import cpu_core, job, run
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.events import Event, WorkerRestarted

TINY = Path(client_module.__file__).parents[1] / "models" / "tiny"


@pytest.mark.usefixtures("one_thread")
def test_steps_are_counted_by_kind() -> None:
    """Every step is in one histogram of times and one of tokens, and their tokens are all the
    tokens that the engine computed."""
    core = cpu_core(str(TINY), load_format="random")
    run(core, {0: job(range(3, 103), max_tokens=5), 1: job([7] * 20, max_tokens=12)})
    stats = core.stats()
    steps = {kind: sum(tally.counts) for kind, tally in stats.step_seconds.items()}
    assert sum(steps.values()) == stats.steps
    assert steps == {kind: sum(tally.counts) for kind, tally in stats.step_tokens.items()}
    assert steps["prefill"] >= 1
    assert steps["decode"] >= 1
    computed = sum(tally.total for tally in stats.step_tokens.values())
    assert computed == stats.prefill_tokens + stats.decode_tokens
    assert all(tally.total > 0 for kind, tally in stats.step_seconds.items() if steps[kind])


def test_a_killed_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One event per death, with how it ended."""
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)
    events: list[Event] = []

    async def test() -> None:
        told = asyncio.Event()

        def emit(event: Event) -> None:
            events.append(event)
            told.set()

        spec = EngineSpec(
            folder=str(TINY), load_format="random", device="cpu", kv_cache_bytes=1 << 20, threads=1
        )
        client = EngineClient(spec, emit=emit)
        await client.start()
        try:
            assert client.worker_pid is not None
            os.kill(client.worker_pid, signal.SIGKILL)
            await asyncio.wait_for(told.wait(), 30)
        finally:
            await client.close()

    asyncio.run(test())
    assert events == [WorkerRestarted("the engine worker ended (exit status -9)", 1)]

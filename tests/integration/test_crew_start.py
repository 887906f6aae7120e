"""A crew that cannot start, or is hurt while it does: one line, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from crew_runs import (
    TINY,
    answers,
    crew_spec,
    eventually,
    gone,
    started,
    talkative_folder,
)
from engine_runs import job
from gpt_oss_server.engine import client as client_module
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

GONE_WITHIN_S = 10.0
SHORT_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkative_folder(Path(tmp_path_factory.mktemp("talkative")))


def descendants() -> list[int]:
    """Live processes that this one started, and theirs."""
    return [p.pid for p in psutil.Process().children(recursive=True) if not gone(p.pid)]


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """No process stays behind."""
    before = set(descendants())
    yield
    asyncio.run(asyncio.wait_for(eventually(lambda: set(descendants()) <= before), GONE_WITHIN_S))


def failure_of(spec: EngineSpec) -> str:
    """What keeps an engine of this spec from starting, in one line."""

    async def attempt() -> str:
        client = EngineClient(spec)
        with pytest.raises(StartupError) as caught:
            await client.start()
        await client.close()
        return str(caught.value)

    message = asyncio.run(asyncio.wait_for(attempt(), 100))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kv_cache_bytes": 1000}, "too little memory for a KV cache"),
        ({"mode": "tensor", "gpus": 3}, "4 attention heads do not divide over 3 GPUs"),
        pytest.param(
            {"gpus": 5},
            "4 layers cannot be split over 5 pipeline stages",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"max_model_len": 10**7}, "exceeds the model's own context", marks=pytest.mark.slow
        ),
        pytest.param(
            {"attention_backend": "fastest"},
            "unknown attention backend 'fastest'",
            marks=pytest.mark.slow,
        ),
        pytest.param({"device": "cuda"}, "no CUDA device is usable here", marks=pytest.mark.slow),
    ],
    ids=["memory", "heads", "more stages than layers", "context", "backend", "no GPU"],
)
def test_a_start_that_cannot_be_is_one_line(
    folder: str, changes: dict[str, Any], line: str
) -> None:
    """Whichever rank finds out, and whether alone or with the others."""
    message = failure_of(crew_spec(folder, **changes))
    assert line in message
    assert "Error at" not in message


def test_a_network_that_is_not_there_is_one_line(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interface that the user names for ranks is used, or its lack is said."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    message = failure_of(crew_spec(folder))
    assert "of 2 cannot reach the others: " in message
    assert "nosuch0" in message


@pytest.mark.slow
def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    """The same words as in one process."""
    shutil.copy(TINY / "config.json", tmp_path)
    assert "holds no weights" in failure_of(crew_spec(str(tmp_path)))


async def hurt_at_start(client: EngineClient, victim: str, number: signal.Signals) -> str:
    """Send a rank the signal as soon as it exists; the line that comes of it."""
    starting = asyncio.ensure_future(client.start())
    await eventually(lambda: client.worker_pid is not None)
    leader = psutil.Process(client.worker_pid)
    await eventually(lambda: bool(leader.children()) or starting.done())
    (leader if victim == "leader" else leader.children()[0]).send_signal(number)
    with pytest.raises(StartupError) as caught:
        await starting
    await client.close()
    return str(caught.value)


@pytest.mark.parametrize(
    ("victim", "number", "line"),
    [
        ("leader", signal.SIGKILL, "the engine worker was killed (SIGKILL), by somebody"),
        ("follower", signal.SIGKILL, "was killed (SIGKILL), by somebody"),
        ("leader", signal.SIGSTOP, "cannot start: the leading rank does not respond"),
    ],
    ids=["leader killed", "follower killed", "leader stopped"],
)
def test_a_rank_that_is_lost_while_it_starts(
    folder: str,
    victim: str,
    number: signal.Signals,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start that loses a rank fails with a line that says which."""
    monkeypatch.setattr(client_module, "LOADING_STILL_S", SHORT_TIMEOUT_S)

    async def attempt() -> str:
        client = EngineClient(crew_spec(folder, rank_timeout_s=SHORT_TIMEOUT_S))
        return await hurt_at_start(client, victim, number)

    message = asyncio.run(asyncio.wait_for(attempt(), 100))
    assert line in message
    if victim == "follower":
        assert message.startswith("rank 0 (process ")


@pytest.mark.slow
def test_a_crew_that_cannot_come_back_is_tried_again(tmp_path: Path) -> None:
    """Later and later, with the reason in its state, until it can."""
    folder = talkative_folder(tmp_path)
    config = tmp_path / "config.json"
    waits: list[str] = []

    def told(line: str) -> None:
        if "; restarting in" in line:
            waits.append(line)

    async def test() -> None:
        async with started(crew_spec(folder), 200, told) as client:
            pids, good = client.pids, config.read_bytes()
            config.write_text("{")
            os.kill(client.info().ranks[0].pid or 0, signal.SIGKILL)
            await eventually(lambda: len(waits) == 3)
            assert all(map(gone, pids))
            assert "cannot read the model's config" in client.state().reason
            config.write_bytes(good)
            await eventually(lambda: client.state().ready)
            assert len((await answers(client, {0: job([5, 6], ignore_eos=True)}))[0].tokens) == 8

    asyncio.run(test())
    assert [line.rpartition(" in ")[2] for line in waits[:3]] == ["0.5 s", "1 s", "2 s"]

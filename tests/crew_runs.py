"""Engines of several ranks as a front has them: started, asked, hurt, looked after.

Knows: `EngineClient`, process ids. Does not know: what happens inside a rank.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

import gpt_oss_server
from engine_runs import Result
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ServerError
from gpt_oss_server.types import Job
from tiny_models import build, saved

TINY = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONFIG = json.loads((TINY / "config.json").read_text())
EOS = tuple(CONFIG["eos_token_id"])
DEADLINE_S = 120.0


def talkative_folder(folder: Path) -> str:
    """A gpt-oss of four layers with the built-in vocabulary and weights of varied output."""
    saved(build("gpt_oss", vocab_size=CONFIG["vocab_size"], eos_token_id=list(EOS)), folder)
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, folder)
    return str(folder)


def crew_spec(folder: str, mode: str = "pipeline", gpus: int = 2, **changes: Any) -> EngineSpec:
    """Ranks on this machine's CPU, a thread each."""
    defaults: dict[str, Any] = {
        "folder": folder,
        "device": "cpu",
        "max_num_seqs": 16,
        "max_batch_tokens": 64,
        "kv_cache_bytes": 4 << 20,
        "threads": 1,
        "gpu_mode": mode,
        "gpus": gpus,
    }
    return EngineSpec(**{**defaults, **changes})


@asynccontextmanager
async def started(spec: EngineSpec, deadline_s: float = DEADLINE_S) -> AsyncIterator[EngineClient]:
    """A started client; when it is closed, none of its processes is left."""
    client = EngineClient(spec)
    async with asyncio.timeout(deadline_s):
        await client.start()
        try:
            yield client
        finally:
            pids = client.pids
            await client.close()
            await eventually(lambda: all(map(gone, pids)))


async def answers(client: EngineClient, jobs: Mapping[int, Job]) -> dict[int, Result]:
    """All jobs at once; what the engine says to each."""

    async def one(job: Job) -> Result:
        result = Result()
        try:
            async for delta in client.generate(job):
                result.deltas.append(delta)
        except ServerError as error:
            result.error = error
        return result

    results = await asyncio.gather(*map(one, jobs.values()))
    return dict(zip(jobs, results, strict=True))


async def eventually(predicate: Callable[[], bool]) -> None:
    while not predicate():  # noqa: ASYNC110 - other processes give no event to wait for
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Ended; whether anybody has asked for its status is not its own affair."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

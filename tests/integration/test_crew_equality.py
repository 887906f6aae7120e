"""The large table: fifty mixed jobs through real crews of every mode and size say, for four
architectures, what they say in one process. With as many steps in flight as the mode has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crew_runs import (
    answers,
    check_same,
    crew_spec,
    mixed_jobs,
    said_in_one_process,
    started,
    talkative_folder,
)
from engine_runs import Result

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Biases somewhere, and a vocabulary that three ranks do not divide.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3_moe": {},
    "gemma3_text": {},
}
MODES = [("auto", 1), ("tensor", 2), ("tensor", 4), ("pipeline", 2), ("pipeline", 4)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[str, dict[int, Result]]:
    """A model's folder, and what one process says of it."""
    path = Path(tmp_path_factory.mktemp(request.param))
    folder = talkative_folder(path, request.param, **FAMILIES[request.param])
    return folder, said_in_one_process(folder, mixed_jobs())


@pytest.mark.parametrize(("mode", "gpus"), MODES)
def test_fifty_mixed_jobs(family: tuple[str, dict[int, Result]], mode: str, gpus: int) -> None:
    """Token for token, sampled ones too; two rounds, of which the second finds its prefixes."""
    folder, expected = family

    async def test() -> None:
        async with started(crew_spec(folder, mode, gpus)) as client:
            info = client.info()
            assert info.micro_batches == (gpus if mode == "pipeline" else 1)
            assert len(info.ranks) == gpus
            for _ in range(2):
                check_same(await answers(client, mixed_jobs()), expected)
            assert client.stats().prefix_hit_tokens > 500

    asyncio.run(test())

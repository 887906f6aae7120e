"""What every engine promises of guides: an unsound one is refused, and the engine goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.ports import Engine
from gpt_oss_server.types import (
    GUIDE_END,
    FixedText,
    FreeText,
    Grammar,
    GrammarText,
    GuidedSpec,
    Job,
    SamplingParams,
    TokenDelta,
)
from guided_runs import FOLDER

DEADLINE_S = 120.0
BOOLEAN = Grammar(kind="choice", source='["yes", "no"]')


def worker() -> Engine:
    return EngineClient(
        EngineSpec(
            folder=str(FOLDER),
            load_format="random",
            device="cpu",
            kv_cache_bytes=16 << 20,
            threads=1,
        )
    )


UNSOUND = {
    "no state": GuidedSpec((BOOLEAN,), ()),
    "a state beyond the last": GuidedSpec((), (FreeText({5: 1}),)),
    "a grammar beyond the last": GuidedSpec((BOOLEAN,), (GrammarText(1),)),
    "a token outside the vocabulary": GuidedSpec((), (FreeText({2**20: GUIDE_END}),)),
    "a path outside the vocabulary": GuidedSpec((), (FixedText((((-1,), GUIDE_END),)),)),
    "a text without an exit": GuidedSpec((), (FreeText({}),)),
    "no path": GuidedSpec((), (FixedText(()),)),
    "an empty path": GuidedSpec((), (FixedText((((), GUIDE_END),)),)),
}


def job(spec: GuidedSpec) -> Job:
    return Job(id="j", prompt=[1, 2, 3], sampling=SamplingParams(max_tokens=8, guided=spec))


async def collect(engine: Engine, one: Job) -> list[TokenDelta]:
    async with asyncio.timeout(DEADLINE_S):
        return [delta async for delta in engine.generate(one)]


@pytest.mark.parametrize("make", [FakeEngine, worker], ids=["fake", "worker"])
def test_an_unsound_guide_is_refused(make: Callable[[], Engine]) -> None:
    """Each names the guide as the culprit, and a sound job behind them all still runs."""

    async def test() -> None:
        engine = make()
        await engine.start()
        try:
            for spec in UNSOUND.values():
                with pytest.raises(BadRequest) as refusal:
                    await collect(engine, job(spec))
                assert refusal.value.param == "guided"
            deltas = await collect(engine, job(GuidedSpec.whole(BOOLEAN)))
            assert deltas[-1].finish in ("stop", "length")
        finally:
            await engine.close()

    asyncio.run(test())

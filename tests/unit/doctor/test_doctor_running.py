"""The advice of a server that runs: from its own figures, and honest about what it cannot know."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.advice import Load
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.doctor.running import (
    CPU_RANKS,
    REFRESH_S,
    Advisor,
    Seen,
    advice_of,
    load_seen,
)
from gpt_oss_server.engine.fake import DEFAULT_INFO
from gpt_oss_server.memory.weights import weights_of
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.types import EngineInfo, EngineStats, RankInfo, Tally

GIB = 2**30
OSS_20B = PUBLISHED["openai/gpt-oss-20b"]
STORED_BYTES = weights_of(OSS_20B, dtype="bfloat16").total_bytes
PLAIN_BYTES = weights_of(OSS_20B, dtype="bfloat16", dequantized=True).total_bytes


def info(**more: Any) -> EngineInfo:
    """The engine of a 20b, dequantized, on one H100."""
    fields = {
        "device": "cuda:0",
        "dtype": "bfloat16",
        "weights_bytes": PLAIN_BYTES,
        "max_num_seqs": 64,
        "max_batch_tokens": 2048,
        **more,
    }
    return msgspec.structs.replace(DEFAULT_INFO, **fields)


def readings(*ids: str, name: str | None = "NVIDIA H100 80GB HBM3") -> tuple[GpuReading, ...]:
    return tuple(GpuReading(id=one, name=name, total_bytes=80 * GIB) for one in ids)


def stats(at_once: float, step_s: float, steps: int = 10) -> EngineStats:
    """Decode steps that were all alike."""
    return EngineStats(
        step_seconds={"decode": Tally((steps,), steps * step_s)},
        step_tokens={"decode": Tally((steps,), steps * at_once)},
    )


def seen(**more: Any) -> Seen:
    fields: dict[str, Any] = {
        "info": info(),
        "stats": stats(64, 0.030),
        "readings": readings("0", "1"),
        "gpu_mode": "single",
        "machine_gpus": 2,
        "request_tokens": 2048.0,
        "longest_tokens": 4096.0,
        **more,
    }
    return Seen(**fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(dict(OSS_20B)))
    return tmp_path


def test_the_load_is_what_steps_and_requests_were() -> None:
    """Sequences of a decode step on the mean, of all micro-batches together; half of the requests
    are no longer than `tokens`."""
    assert load_seen(seen()) == Load(concurrent=64, tokens=2048, longest=4096, given=True)
    staged = load_seen(seen(info=info(micro_batches=4), stats=stats(2.4, 0.01)))
    assert staged is not None
    assert staged.concurrent == 10
    assert load_seen(seen(stats=EngineStats())) is None
    assert load_seen(seen(request_tokens=None)) is None


def test_advice_for_what_was_seen(folder: Path) -> None:
    """The mode, why, the memory's sum, and every way with its figures."""
    advice = advice_of(folder, Settings(), seen())
    assert (advice["current_mode"], advice["mode"]) == ("single", "tensor")
    assert advice["text"].startswith("--gpu-mode tensor over 2 GPUs for 64 at once of 2,048 tokens")
    assert advice["arithmetic"].endswith("tokens")
    assert advice["load"]["concurrent"] == 64
    assert [way["mode"] for way in advice["comparison"]["ways"]] == [
        "single",
        "single",
        "tensor",
        "pipeline",
        "auto",
    ]
    json.dumps(advice)


def test_what_steps_took_beside_reading_is_part_of_the_estimate(folder: Path) -> None:
    """Measured in the mode that runs: its own estimate then is what was measured."""
    ways = advice_of(folder, Settings(), seen())["comparison"]
    single = ways["ways"][0]["decode"][1]
    assert single["step_s"] == pytest.approx(0.030, abs=1e-6)
    assert ways["seen_beside_s"] == pytest.approx(0.030 - single["read_s"], abs=2e-6)
    # Faster than the estimate: nothing is taken off.
    fast = advice_of(folder, Settings(), seen(stats=stats(64, 0.001)))["comparison"]
    assert fast["seen_beside_s"] == 0.0
    # Of a GPU that is not known the estimate is no yardstick.
    unknown = seen(readings=readings("0", "1", name="Voodoo2"))
    assert advice_of(folder, Settings(), unknown)["comparison"]["seen_beside_s"] is None


def test_before_any_load_memory_decides(folder: Path) -> None:
    """An example is compared, nothing is advised for it."""
    advice = advice_of(folder, Settings(), seen(stats=EngineStats()))
    assert (advice["mode"], advice["load"]) == ("single", None)
    assert advice["comparison"]["load"]["given"] is False
    assert advice["comparison"]["seen_beside_s"] is None


def test_weights_count_as_they_were_loaded(folder: Path) -> None:
    """The size of all ranks together tells whether they hold MXFP4."""

    def single_bytes(settings: Settings | None = None, **more: Any) -> int:
        ways = advice_of(folder, settings or Settings(), seen(**more))["comparison"]["ways"]
        return int(ways[0]["decode"][2]["weight_bytes"])

    stored_info = info(weights_bytes=STORED_BYTES)
    plain, stored = single_bytes(), single_bytes(info=stored_info)
    table = 201_088 * 2880 * 2
    assert plain == pytest.approx(PLAIN_BYTES - table, rel=0.01)
    assert stored == pytest.approx(STORED_BYTES - table, rel=0.01)
    for mode in ("tensor", "pipeline", "auto"):
        assert single_bytes(gpu_mode=mode) == plain
        assert single_bytes(gpu_mode=mode, info=stored_info) == stored
    # Ranks always widen then: it says nothing of one process.
    theirs = Settings(experts="transformers")
    assert single_bytes(theirs, gpu_mode="tensor") == stored


def test_gpus_count_as_far_as_they_may_be_used(folder: Path) -> None:
    """`--gpus` bounds them; of a GPU in slices a process has one."""
    four = seen(readings=readings(*"0123"), machine_gpus=4)
    ways = advice_of(folder, Settings(gpu_mode="tensor", gpus=2), four)["comparison"]["ways"]
    assert ways[-1]["gpus"] == 2
    sliced = advice_of(folder, Settings(), seen(readings=readings("0/1", "0/2")))
    assert sliced["mode"] is None
    assert sliced["text"].startswith("none for this machine, it has one GPU")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"machine_gpus": 1}, "none for this machine, it has one GPU; multi-GPU modes need"),
        ({"machine_gpus": 0}, "none for this machine, it has no GPU; multi-GPU modes need"),
        ({"info": info(device="cpu")}, "none for this machine, it has no GPU; multi-GPU modes"),
        (
            {
                "info": info(
                    device="cpu",
                    ranks=tuple(
                        RankInfo(rank=n, device="cpu", layers=1, weights_bytes=1, kv_bytes=1)
                        for n in range(2)
                    ),
                )
            },
            CPU_RANKS,
        ),
        ({"readings": (), "machine_gpus": None}, "none yet: the GPUs' memory is not known"),
    ],
)
def test_nothing_impossible_is_advised(folder: Path, more: dict[str, Any], text: str) -> None:
    """No mode where there are no GPUs for it, and the reason."""
    advice = advice_of(folder, Settings(), seen(**more))
    assert (advice["mode"], advice["comparison"]) == (None, None)
    assert advice["text"].startswith(text)


def test_a_model_that_cannot_be_calculated(tmp_path: Path) -> None:
    """No config, no advice, and no word of where the model lies."""
    advice = advice_of(tmp_path, Settings(), seen())
    assert advice["mode"] is None
    assert advice["text"] == "none: the memory of this model cannot be calculated"
    assert str(tmp_path) not in json.dumps(advice)


def test_advice_is_worked_out_now_and_then(folder: Path) -> None:
    """Not for every reader of `/stats`; what is shown in between is the last."""
    now_s = 100.0
    looks: list[None] = []

    def see() -> Seen:
        looks.append(None)
        return seen(machine_gpus=len(looks) - 1)

    async def story() -> None:
        nonlocal now_s
        advisor = Advisor(folder, Settings(), see, lambda: now_s)
        assert advisor.last() is None
        await advisor.refresh()
        first = advisor.last()
        assert first is not None
        assert "it has no GPU" in first["text"]
        now_s += REFRESH_S - 0.1
        await advisor.refresh()
        assert advisor.last() is first
        now_s += 0.2
        await advisor.refresh()
        again = advisor.last()
        assert again is not None
        assert "it has one GPU" in again["text"]

    asyncio.run(story())
    assert len(looks) == 2

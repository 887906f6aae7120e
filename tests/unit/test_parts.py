"""Settings become the desk's parts, each under its own name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from gpt_oss_server.admission import AdmissionConfig
from gpt_oss_server.config import Settings, load
from gpt_oss_server.dispatch.desk import Call
from gpt_oss_server.engine.fake import DEFAULT_INFO, FakeEngine
from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.parts import (
    Instruments,
    admission_config,
    build_desk,
    check_desk_settings,
    routing_config,
)
from gpt_oss_server.routing import RoutingConfig
from gpt_oss_server.routing.replay import from_line, replay
from gpt_oss_server.types import Job, SamplingParams


def test_every_threshold_arrives() -> None:
    """Each routing setting, under its own name, with a value that is not its default."""
    given = {
        "large_input_tokens": 5000,
        "large_kv_mb": 700.5,
        "min_gpu_util_percent": 10.0,
        "max_p95_e2e_seconds": 3.0,
        "memory_pressure": 0.5,
        "pressure_input_tokens": 100,
        "pressure_kv_mb": 50.0,
        "stale_after_s": 4.0,
    }
    assert set(given) == set(RoutingConfig.__struct_fields__)
    assert routing_config(load({k: str(v) for k, v in given.items()}, {})) == RoutingConfig(**given)


def test_every_admission_setting_arrives() -> None:
    """Mode, bounds, queue and waiting time."""
    settings = load(
        {
            "admission_mode": "worst_case",
            "open_output_tokens": "900",
            "min_open_output_tokens": "20",
            "max_queue": "3",
            "max_wait_s": "1.5",
        },
        {},
    )
    assert admission_config(settings) == AdmissionConfig(
        mode="worst_case",
        open_output_tokens=900,
        min_open_output_tokens=20,
        max_queue_length=3,
        max_wait_s=1.5,
    )


def test_the_defaults_are_the_rooms_own() -> None:
    """Settings and rooms have the same defaults: neither can drift alone."""
    assert routing_config(Settings()) == RoutingConfig()
    assert admission_config(Settings()) == AdmissionConfig()


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"pressure_input_tokens": "9000"}, ("pressure_input_tokens", "large_input_tokens")),
        ({"large_kv_mb": "2000"}, ("pressure_kv_mb", "large_kv_mb")),
        ({"open_output_tokens": "100"}, ("min_open_output_tokens", "open_output_tokens")),
    ],
)
def test_contradictions_are_refused_by_name(
    flags: dict[str, object], names: tuple[str, ...]
) -> None:
    """Each setting is possible alone; together they are not, and both are named."""
    with pytest.raises(ConfigError) as caught:
        check_desk_settings(load(flags, {}))
    assert all(name in str(caught.value) for name in names)


def test_a_decision_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A folder, before anything is started; a missing folder, when the log is opened."""
    with pytest.raises(ConfigError, match=r"decision_log: .* is a folder"):
        check_desk_settings(Settings(decision_log=str(tmp_path)))
    missing = tmp_path / "none" / "decisions.jsonl"
    with pytest.raises(StartupError, match=r"cannot write to .*: No such file or directory"):
        Instruments(Settings(decision_log=str(missing)), lambda: ())


def test_on_a_cpu_the_processes_are_measured_against_the_budget() -> None:
    """The pseudo GPU's total is the memory budget, its use that of front and worker."""
    instruments = Instruments(Settings(memory_budget=2**40), lambda: (os.getppid(),))
    assert instruments.readings() == ()
    instruments.begin(DEFAULT_INFO)
    try:
        polling = instruments._polling
        assert polling is not None
        polling.poll_once()
        (probed,) = instruments.readings()
    finally:
        instruments.close()
    assert (probed.reading.id, probed.reading.total_bytes) == ("cpu", 2**40)
    own = psutil.Process().memory_info().rss
    assert probed.reading.used_bytes is not None
    assert probed.reading.used_bytes > own // 2


def test_a_desk_decides_by_the_settings_and_writes_what_it_decided(tmp_path: Path) -> None:
    """Thresholds, session limits and the log reach the desk; its lines replay to themselves."""
    log = tmp_path / "decisions.jsonl"
    settings = load(
        {
            "large_input_tokens": "10",
            "pressure_input_tokens": "10",
            "decision_log": str(log),
            "max_sessions": "1",
        },
        {},
    )

    async def story() -> FakeEngine:
        engine = FakeEngine()
        await engine.start()
        instruments = Instruments(settings, lambda: ())
        desk = build_desk(settings, engine, instruments, machine_gpus=1)
        for number, tokens in enumerate((5, 11)):
            job = Job(
                id=f"{number}",
                prompt=[7] * tokens,
                sampling=SamplingParams(max_tokens=4),
            )
            request = Call(request_id=f"r{number}", jobs=[job], session_id=f"id:{number}")
            async with desk.admit(request):
                pass
        instruments.close()
        return engine

    engine = asyncio.run(story())
    records = [from_line(line) for line in log.read_text().splitlines()]
    assert [(r.facts.request_id, r.decision.trigger) for r in records] == [
        ("r0", None),
        ("r1", "large_input"),
    ]
    assert records[1].fleet.machine_gpus == 1
    assert replay(records).differences == ()
    assert engine.forgotten == [("id:0", 0)]

"""The triggers: boundaries, precedence and texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.facts import MB_BYTES
from gpt_oss_server.routing import RoutingConfig
from gpt_oss_server.routing.triggers import fired_triggers

MB = MB_BYTES


@pytest.mark.parametrize(
    ("tokens", "kv_bytes", "pressure", "reasons"),
    [
        (8000, 0, None, []),
        (8001, 0, None, ["large_input: 8001 > 8000 tokens"]),
        (10000, 0, None, ["large_input: 10000 > 8000 tokens"]),
        (0, 6000 * MB, None, []),
        (0, 6000 * MB + 1, None, ["large_kv: 6000.000000953674 > 6000 MB"]),
        (0, 7500 * MB, None, ["large_kv: 7500 > 6000 MB"]),
        (4001, 0, 0.85, []),
        (4000, 3000 * MB, 0.86, []),
        (4001, 0, 0.86, ["memory_pressure: 0.86 > 0.85 with input 4001 > 4000 tokens"]),
        (0, 3001 * MB, 0.9, ["memory_pressure: 0.9 > 0.85 with KV 3001 > 3000 MB"]),
        (4001, 0, None, []),
        (
            9000,
            7000 * MB,
            0.851,
            [
                "large_input: 9000 > 8000 tokens",
                "large_kv: 7000 > 6000 MB",
                "memory_pressure: 0.851 > 0.85 with input 9000 > 4000 tokens and KV 7000 > 3000 MB",
            ],
        ),
    ],
)
def test_what_fires_and_what_it_says(
    tokens: int, kv_bytes: int, pressure: float | None, reasons: list[str]
) -> None:
    """Strictly greater, to the byte; every trigger that holds is named, first one first."""
    fired = fired_triggers(RoutingConfig(), tokens, kv_bytes, pressure)
    assert [f.reason for f in fired] == reasons


@given(
    tokens=st.integers(0, 20_000),
    kv_bytes=st.integers(0, 10_000 * MB),
    pressure=st.none() | st.floats(0, 2),
)
def test_agrees_with_the_rule_as_written(
    tokens: int, kv_bytes: int, pressure: float | None
) -> None:
    """The names that fire are those of the rule, for any input."""
    kv_mb = kv_bytes / MB
    expected = []
    if tokens > 8000:
        expected.append("large_input")
    if kv_mb > 6000:
        expected.append("large_kv")
    if pressure is not None and pressure > 0.85 and (tokens > 4000 or kv_mb > 3000):
        expected.append("memory_pressure")
    fired = fired_triggers(RoutingConfig(), tokens, kv_bytes, pressure)
    assert [f.trigger for f in fired] == expected


@given(limit=st.floats(0, 1e5), more=st.floats(0, 1e5))
def test_a_reason_never_contradicts_itself(limit: float, more: float) -> None:
    """However close to the threshold, the text shows a number above it."""
    config = RoutingConfig(large_kv_mb=limit, pressure_kv_mb=0)
    fired = fired_triggers(config, 0, int((limit + more) * MB) + 1, None)
    if fired:
        left, right = fired[0].reason.removeprefix("large_kv: ").removesuffix(" MB").split(" > ")
        assert float(left) > float(right)

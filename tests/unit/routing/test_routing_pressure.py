"""Effective pressure: the formula, the maximum, and what is unknown."""

from __future__ import annotations

import pytest
from routing_views import NOW_S, gpu

from gpt_oss_server.facts import GpuView, Pressure
from gpt_oss_server.routing import effective_pressure


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], Pressure(None, None, "no GPU reading")),
        (
            [gpu(used=10, weights_bytes=20, activations_peak_bytes=5, kv_in_use_bytes=7)],
            Pressure(0.42, "0", None),
        ),
        ([gpu("0", 30), gpu("1", 70)], Pressure(0.7, "1", None)),
        ([gpu("1", 30), gpu("0", 30)], Pressure(0.3, "0", None)),
        ([gpu("0", 30), gpu("1", 30)], Pressure(0.3, "0", None)),
        ([gpu(measured_at_s=None)], Pressure(None, None, "gpu 0: no reading")),
        ([gpu(others_bytes=None)], Pressure(None, None, "gpu 0: no reading")),
        ([gpu(total_bytes=0)], Pressure(None, None, "gpu 0: impossible reading")),
        ([gpu(used=-1)], Pressure(None, None, "gpu 0: impossible reading")),
        ([gpu(used=90, measured_at_s=NOW_S - 10)], Pressure(0.9, "0", None)),
        (
            [gpu(used=90, measured_at_s=NOW_S - 12)],
            Pressure(None, None, "gpu 0: reading is 12.0 s old"),
        ),
        (
            [gpu("0", 40), gpu("1", 90, measured_at_s=NOW_S - 12)],
            Pressure(0.4, "0", "gpu 1: reading is 12.0 s old"),
        ),
        ([gpu(used=0)], Pressure(0.0, "0", None)),
        ([gpu(measured_at_s=NOW_S + 1)], Pressure(0.0, "0", None)),
    ],
)
def test_value_and_what_is_said_of_the_unknown(gpus: list[GpuView], expected: Pressure) -> None:
    """An empty GPU is 0.0; an unknown one is None and named, never 0."""
    assert effective_pressure(gpus, NOW_S, 10.0) == expected


def test_a_reserved_and_empty_pool_is_no_pressure() -> None:
    """Only KV in use counts: with none, pressure is the weights and what others use."""
    assert effective_pressure([gpu(used=1, weights_bytes=15)], NOW_S, 10.0).value == 0.16

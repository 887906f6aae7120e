"""Which readings cannot be true.

Knows: ranges. Does not know: probes, or what is done about an impossible reading.
"""

from __future__ import annotations

import math

from gpt_oss_server.ports import GpuReading

_AMOUNTS = ("total_bytes", "used_bytes", "free_bytes", "utilization", "power_w", "energy_j")
# Colder than any data centre and hotter than any silicon that still answers.
_TEMPERATURES_C = (-100.0, 200.0)


def why_impossible(reading: GpuReading) -> str | None:
    """One clause that says what is wrong with `reading`; None where nothing is."""
    for name in (*_AMOUNTS, "temperature_c"):
        value = getattr(reading, name)
        if value is not None and not math.isfinite(value):
            return f"{name} is {value}"
    for name in _AMOUNTS:
        value = getattr(reading, name)
        if value is not None and value < 0:
            return f"{name} is negative ({value})"
    if reading.total_bytes == 0:
        return "total_bytes is 0"
    if reading.total_bytes is not None:
        for name in ("used_bytes", "free_bytes"):
            value = getattr(reading, name)
            if value is not None and value > reading.total_bytes:
                return f"{name} ({value}) exceeds total_bytes ({reading.total_bytes})"
    if reading.utilization is not None and reading.utilization > 1:
        return f"utilization is above 1 ({reading.utilization})"
    low, high = _TEMPERATURES_C
    if reading.temperature_c is not None and not low <= reading.temperature_c <= high:
        return f"temperature_c is {reading.temperature_c}"
    return None

"""Which multi-GPU triggers hold for a request, and the words for it.

Knows: the three triggers, their precedence and their texts. Does not know: replicas, where a
request then runs. All comparisons are strictly greater; 1 MB is 2**20 bytes.
"""

from __future__ import annotations

from gpt_oss_server.facts import MB_BYTES, Trigger
from gpt_oss_server.routing.config import RoutingConfig

# Order of precedence: a request counts under the first that holds.
TRIGGERS: tuple[Trigger, ...] = ("large_input", "large_kv", "memory_pressure")


class Fired:
    """One trigger that holds: `reason` for logs and headers, `active` for the multi-GPU notice."""

    __slots__ = ("active", "reason", "trigger")

    def __init__(self, trigger: Trigger, reason: str, active: str) -> None:
        self.trigger: Trigger = trigger
        self.reason = reason
        self.active = active


def fired_triggers(
    config: RoutingConfig, input_tokens: int, predicted_kv_bytes: int, pressure: float | None
) -> list[Fired]:
    """All triggers that hold, in order of precedence. An unknown pressure never triggers."""
    kv_mb = predicted_kv_bytes / MB_BYTES
    fired: list[Fired] = []
    if input_tokens > config.large_input_tokens:
        over = f"{input_tokens} > {config.large_input_tokens}"
        fired.append(Fired("large_input", f"large_input: {over} tokens", f"large_input ({over})"))
    if kv_mb > config.large_kv_mb:
        over = _over(kv_mb, config.large_kv_mb, 1)
        fired.append(Fired("large_kv", f"large_kv: {over} MB", f"large_kv ({over} MB)"))
    if pressure is not None and pressure > config.memory_pressure:
        causes: list[str] = []
        if input_tokens > config.pressure_input_tokens:
            causes.append(f"input {input_tokens} > {config.pressure_input_tokens} tokens")
        if kv_mb > config.pressure_kv_mb:
            causes.append(f"KV {_over(kv_mb, config.pressure_kv_mb, 1)} MB")
        if causes:
            over = _over(pressure, config.memory_pressure, 2)
            reason = f"memory_pressure: {over} with {' and '.join(causes)}"
            fired.append(Fired("memory_pressure", reason, f"memory_pressure ({over})"))
    return fired


def _over(value: float, limit: float, digits: int) -> str:
    """`value > limit` as text, with more digits where rounding would make the two look equal."""
    right = f"{limit:.12g}"
    left = f"{round(value, digits):.12g}"
    if float(left) <= float(right):
        left, right = repr(value), repr(limit)
    return f"{left} > {right}"

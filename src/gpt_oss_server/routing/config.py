"""The thresholds of routing. Knows: their defaults and ranges. Does not know: their use."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.limits import check_int, check_not_above, check_number


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validated thresholds; a comparison is always strictly greater. Raises ConfigError.

    `min_gpu_util_percent` and `max_p95_e2e_seconds` are targets that are reported on, not
    triggers. `stale_after_s` is the age beyond which a reading counts as unknown.
    """

    large_input_tokens: int = 8000
    large_kv_mb: float = 6000
    min_gpu_util_percent: float = 60.0
    max_p95_e2e_seconds: float = 20.0
    memory_pressure: float = 0.85
    pressure_input_tokens: int = 4000
    pressure_kv_mb: float = 3000
    stale_after_s: float = 10.0

    def __post_init__(self) -> None:
        check_int("large_input_tokens", self.large_input_tokens, low=0)
        check_number("large_kv_mb", self.large_kv_mb, low=0)
        check_number("min_gpu_util_percent", self.min_gpu_util_percent, low=0, high=100)
        check_number("max_p95_e2e_seconds", self.max_p95_e2e_seconds, low=0, above=True)
        check_number("memory_pressure", self.memory_pressure, low=0, high=1)
        check_int("pressure_input_tokens", self.pressure_input_tokens, low=0)
        check_number("pressure_kv_mb", self.pressure_kv_mb, low=0)
        check_number("stale_after_s", self.stale_after_s, low=0, above=True)
        check_not_above(
            "pressure_input_tokens",
            self.pressure_input_tokens,
            "large_input_tokens",
            self.large_input_tokens,
        )
        check_not_above("pressure_kv_mb", self.pressure_kv_mb, "large_kv_mb", self.large_kv_mb)


def with_overrides(config: RoutingConfig, overrides: Mapping[str, float]) -> RoutingConfig:
    """A copy with some fields replaced, validated anew. Raises ConfigError for unknown names."""
    unknown = sorted(set(overrides) - set(RoutingConfig.__struct_fields__))
    if unknown:
        raise ConfigError(f"unknown routing setting: {', '.join(unknown)}")
    return msgspec.structs.replace(config, **overrides)

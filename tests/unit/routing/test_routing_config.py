"""Thresholds are validated, and the message names the field."""

from __future__ import annotations

import msgspec
import pytest

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing import RoutingConfig, with_overrides


def test_defaults_are_the_documented_ones() -> None:
    """The public defaults do not move by accident."""
    assert msgspec.structs.asdict(RoutingConfig()) == {
        "large_input_tokens": 8000,
        "large_kv_mb": 6000,
        "min_gpu_util_percent": 60.0,
        "max_p95_e2e_seconds": 20.0,
        "memory_pressure": 0.85,
        "pressure_input_tokens": 4000,
        "pressure_kv_mb": 3000,
        "stale_after_s": 10.0,
    }


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("large_input_tokens", -1, "large_input_tokens must be at least 0, not -1"),
        ("large_input_tokens", 8000.5, "large_input_tokens must be a whole number, not 8000.5"),
        ("large_input_tokens", True, "large_input_tokens must be a whole number, not True"),
        ("large_kv_mb", float("nan"), "large_kv_mb must be finite, not nan"),
        ("large_kv_mb", float("inf"), "large_kv_mb must be finite, not inf"),
        ("large_kv_mb", "6000", "large_kv_mb must be a number, not '6000'"),
        ("min_gpu_util_percent", 101, "min_gpu_util_percent must be at most 100, not 101"),
        ("max_p95_e2e_seconds", 0, "max_p95_e2e_seconds must be more than 0, not 0"),
        ("memory_pressure", 1.01, "memory_pressure must be at most 1, not 1.01"),
        ("memory_pressure", -0.1, "memory_pressure must be at least 0, not -0.1"),
        ("pressure_kv_mb", -1.0, "pressure_kv_mb must be at least 0, not -1.0"),
        ("stale_after_s", 0.0, "stale_after_s must be more than 0, not 0.0"),
        (
            "pressure_input_tokens",
            8001,
            "pressure_input_tokens (8001) must not exceed large_input_tokens (8000)",
        ),
        ("pressure_kv_mb", 6000.5, "pressure_kv_mb (6000.5) must not exceed large_kv_mb (6000)"),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: object, says: str) -> None:
    """Every field refuses what makes no sense, in one line that names it."""
    with pytest.raises(ConfigError) as caught:
        RoutingConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == says


def test_overrides_replace_and_are_validated_again() -> None:
    """A what-if changes only what it names, and contradictions still stop it."""
    changed = with_overrides(RoutingConfig(), {"large_kv_mb": 4000})
    assert changed == RoutingConfig(large_kv_mb=4000)
    with pytest.raises(ConfigError, match="pressure_kv_mb"):
        with_overrides(RoutingConfig(), {"large_kv_mb": 2000})
    with pytest.raises(ConfigError, match="unknown routing setting: large_kv"):
        with_overrides(RoutingConfig(), {"large_kv": 2000})

"""Every threshold and bound that a server can be given: what is impossible stops the start."""

from __future__ import annotations

from typing import Any

import pytest

from gpt_oss_server.admission import AdmissionConfig, SessionConfig
from gpt_oss_server.config import load
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.parts import check_desk_settings
from gpt_oss_server.routing import RoutingConfig

NUMBERS = {
    "large_input_tokens": int,
    "large_kv_mb": float,
    "memory_pressure": float,
    "pressure_input_tokens": int,
    "pressure_kv_mb": float,
    "min_gpu_util_percent": float,
    "max_p95_e2e_seconds": float,
    "stale_after_s": float,
    "max_queue": int,
    "max_wait_s": float,
    "open_output_tokens": int,
    "min_open_output_tokens": int,
    "max_sessions": int,
    "session_idle_s": float,
    "session_kv_limit": int,
}


def test_the_table_is_complete() -> None:
    """Each threshold of routing is a setting of the server, and in the table."""
    assert set(RoutingConfig.__struct_fields__) <= set(NUMBERS)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "many", "1e999"])
@pytest.mark.parametrize("name", NUMBERS)
def test_impossible_numbers_name_the_setting(name: str, value: str) -> None:
    """Negative, not finite or no number at all, from a flag and from the environment."""
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"flag {flag}: "):
        load({name: value}, {})
    with pytest.raises(ConfigError, match=f"environment GPT_OSS_{name.upper()}: "):
        load({}, {f"GPT_OSS_{name.upper()}": value})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"pressure_input_tokens": "9000"},
            r"pressure_input_tokens \(9000\) must not exceed large_input_tokens \(8000\)",
        ),
        (
            {"large_input_tokens": "1000"},
            r"pressure_input_tokens \(4000\) must not exceed large_input_tokens \(1000\)",
        ),
        (
            {"large_kv_mb": "10", "pressure_kv_mb": "11"},
            r"pressure_kv_mb \(11.0\) must not exceed large_kv_mb \(10.0\)",
        ),
        (
            {"open_output_tokens": "100", "min_open_output_tokens": "101"},
            r"min_open_output_tokens \(101\) must not exceed open_output_tokens \(100\)",
        ),
    ],
)
def test_contradictions_name_both_settings(settings: dict[str, Any], says: str) -> None:
    """Each possible and together not: refused before anything is started."""
    loaded = load(settings, {})
    with pytest.raises(ConfigError, match=says):
        check_desk_settings(loaded)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *((RoutingConfig, name) for name in RoutingConfig.__struct_fields__),
        *((AdmissionConfig, name) for name in AdmissionConfig.__struct_fields__ if name != "mode"),
        *((SessionConfig, name) for name in SessionConfig.__struct_fields__),
    ],
)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "5"])
def test_every_field_is_checked_where_it_is_defined(kind: Any, field: str, value: object) -> None:
    """However a configuration is made: the line begins with the field's name."""
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        kind(**{field: value})


@pytest.mark.parametrize("value", ["5,10", "5,", ",5", "5 2", "x", ""])
def test_what_is_no_list_of_priorities(value: str) -> None:
    """Digits and commas, nothing else."""
    with pytest.raises(ConfigError, match="flag --key-priorities: "):
        load({"api_key": ["a", "b"], "key_priorities": value}, {})


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "b", "c"]])
def test_each_key_has_one_priority(keys: list[str]) -> None:
    """As many as there are keys, or the start is refused with both numbers."""
    flags = {"key_priorities": "5,2", **({"api_key": keys} if keys else {})}
    with pytest.raises(ConfigError, match=f"2 priorities for {len(keys)} API keys"):
        load(flags, {})
    assert load({"key_priorities": "5,2", "api_key": ["a", "b"]}, {}).key_priorities == "5,2"

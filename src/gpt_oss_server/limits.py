"""Checks of numeric settings: one clear line that names the field, or the number itself.

Knows: ranges. Does not know: which settings exist.
"""

from __future__ import annotations

import math

from gpt_oss_server.errors import ConfigError


def check_int(name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Raise ConfigError unless `value` is an integer within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, not {value!r}")
    _check_range(name, value, low, high)


def check_number(
    name: str, value: object, *, low: float, high: float | None = None, above: bool = False
) -> None:
    """Raise ConfigError unless `value` is a finite number within [low, high].

    With `above`, `low` itself is refused too.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, not {value!r}")
    if above and value <= low:
        raise ConfigError(f"{name} must be more than {low}, not {value!r}")
    _check_range(name, value, low, high)


def check_not_above(name: str, value: float, other: str, limit: float) -> None:
    """Raise ConfigError when a setting contradicts another by exceeding it."""
    if value > limit:
        raise ConfigError(f"{name} ({value!r}) must not exceed {other} ({limit!r})")


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low:
        raise ConfigError(f"{name} must be at least {low}, not {value!r}")
    if high is not None and value > high:
        raise ConfigError(f"{name} must be at most {high}, not {value!r}")

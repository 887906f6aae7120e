"""The kinds of value that a setting can have, and how each is read.

Knows: how to turn a raw value (text from a flag or the environment, a scalar or list from YAML)
into a typed one, and how to say what is allowed. Does not know: which settings exist or where a
raw value came from. Every `parse` raises `ValueError` with a text that completes "<setting>: …".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class Kind(Protocol):
    """One kind of value. `describe` is what help and documentation say is allowed."""

    @property
    def describe(self) -> str: ...

    def parse(self, raw: object) -> object: ...


@dataclass(frozen=True)
class Text:
    """Any non-empty text, or text of a given form; `what` says which."""

    what: str = "text"
    pattern: str = r"\S(.*\S)?"

    @property
    def describe(self) -> str:
        return self.what

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise ValueError(f"must be {self.what}, got {raw!r} (put it in quotes)")
        if not re.fullmatch(self.pattern, raw):
            raise ValueError(f"must be {self.what}, got {raw!r}")
        return raw


@dataclass(frozen=True)
class Address:
    """The URL of a service. Never echoed in an error: a wrong one may carry a password."""

    @property
    def describe(self) -> str:
        return "http:// or https:// address without user or query"

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or not _ADDRESS.fullmatch(raw):
            raise ValueError(f"must be an {self.describe}")
        return raw


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    options: tuple[str, ...]

    @property
    def describe(self) -> str:
        return " | ".join(self.options)

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or raw not in self.options:
            raise ValueError(f"must be one of {', '.join(self.options)}, got {raw!r}")
        return raw


@dataclass(frozen=True)
class Integer:
    """A whole number in a closed range; `power_of_two` narrows it further."""

    low: int
    high: int | None = None
    power_of_two: bool = False

    @property
    def describe(self) -> str:
        noun = "power of two" if self.power_of_two else "integer"
        bounds = f">= {self.low}" if self.high is None else f"from {self.low} to {self.high}"
        return f"{noun} {bounds}"

    def parse(self, raw: object) -> int:
        value = _whole(raw)
        if (
            value is None
            or value < self.low
            or (self.high is not None and value > self.high)
            or (self.power_of_two and value & (value - 1))
        ):
            article = "an" if self.describe[0] in "aeiou" else "a"
            raise ValueError(f"must be {article} {self.describe}, got {raw!r}")
        return value


@dataclass(frozen=True)
class Number:
    """A finite real number in a range; `open_low` excludes the lower end."""

    low: float
    high: float | None = None
    open_low: bool = False

    @property
    def describe(self) -> str:
        if self.high is None:
            return f"number {'>' if self.open_low else '>='} {self.low:g}"
        start = f"above {self.low:g} up" if self.open_low else f"from {self.low:g}"
        return f"number {start} to {self.high:g}"

    def parse(self, raw: object) -> float:
        value = _real(raw)
        if (
            value is None
            or value < self.low
            or (self.open_low and value == self.low)
            or (self.high is not None and value > self.high)
        ):
            raise ValueError(f"must be a {self.describe}, got {raw!r}")
        return value


@dataclass(frozen=True)
class Switch:
    """On or off. On the command line `--name` and `--no-name`."""

    @property
    def describe(self) -> str:
        return "true | false"

    def parse(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.lower() in _TRUE | _FALSE:
            return raw.lower() in _TRUE
        raise ValueError(f"must be true or false, got {raw!r}")


@dataclass(frozen=True)
class Size:
    """A number of bytes: `8388608`, `512MiB` (2^20), `2GB` (10^9)."""

    low: int = 1

    @property
    def describe(self) -> str:
        return "size, such as 512MiB or 2GiB"

    def parse(self, raw: object) -> int:
        text = str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else raw
        match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
        unit = _UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            raise ValueError(
                f"must be a size in bytes or with KiB, MiB, GiB, KB, MB or GB, got {raw!r}"
            )
        value = int(match[1]) * unit if match[1].isdigit() else round(float(match[1]) * unit)
        if value < self.low:
            raise ValueError(f"must be at least {format_size(self.low)}, got {raw!r}")
        return value


@dataclass(frozen=True)
class Secret:
    """One key or, where `several`, a comma-separated list of them. Never echoed in an error."""

    several: bool = False

    @property
    def describe(self) -> str:
        return "secrets, comma-separated" if self.several else "secret"

    def parse(self, raw: object) -> str | tuple[str, ...]:
        parts = raw if isinstance(raw, list) and self.several else [raw]
        keys: list[str] = []
        for part in parts:
            if not isinstance(part, str):
                raise ValueError("must be text (put it in quotes)")
            keys += [key.strip() for key in (part.split(",") if self.several else [part])]
        if not keys or not all(re.fullmatch(r"[!-~]+", key) for key in keys):
            raise ValueError("must be non-empty printable ASCII without spaces")
        return tuple(dict.fromkeys(keys)) if self.several else keys[0]


def format_size(size_bytes: int) -> str:
    """Bytes in the largest binary unit that divides them: 8388608 -> `8MiB`."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return str(size_bytes)


def _whole(raw: object) -> int | None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", raw.strip()):
        return int(raw)
    return None


def _real(raw: object) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        return None
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None

"""Versions as numbers to compare. Knows: how they are written. Does not know: of what."""

from __future__ import annotations


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cu130` -> (2, 13, 0)."""
    parts: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
        if digits != part:
            break
    return tuple(parts)

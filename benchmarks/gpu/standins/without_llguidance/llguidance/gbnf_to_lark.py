"""See the package."""

from __future__ import annotations


def any_to_lark(source: str) -> str:
    raise ModuleNotFoundError("guided output needs llguidance itself: pip install llguidance")

"""In place of llguidance, on a machine that has none and cannot fetch it.

Knows: the names that the engine imports. Does not know: grammars. Whoever wants one is told what is
missing. On the path only where llguidance is missing.
"""

from __future__ import annotations

from typing import Any


class _Absent:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("guided output needs llguidance itself: pip install llguidance")


class LLMatcher(_Absent):
    """See the module."""


class LLParserLimits(_Absent):
    """See the module."""


class LLTokenizer(_Absent):
    """See the module."""


class TokenizerWrapper(_Absent):
    """See the module."""

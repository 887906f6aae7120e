"""Days that exist: JSON Schema's `date` and `date-time` as calendars and parsers know them.

Knows: RFC 3339 and the Gregorian calendar. Does not know: grammars, matchers.

The compiler's own formats allow the 29th of any February, the year 0000 and leap seconds, as the
RFC's syntax does; Python's `datetime`, with which clients read an answer, takes none of them.
"""

from __future__ import annotations

import json
from typing import Any, Final

_LEAP_END: Final = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP: Final = f"(?:[1-9][0-9]{_LEAP_END}|(?:[2468][048]|[13579][26])00)"
_DAY_OF_MONTH: Final = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
DATE: Final = f"(?:[1-9][0-9][0-9][0-9]-{_DAY_OF_MONTH}|{_LEAP}-02-29)"
"""Of the years 1000 to 9999."""

_PATTERNS: Final = {
    "date": f"^{DATE}$",
    "date-time": f"^{DATE}[Tt ][0-9][0-9]:[0-9][0-9]:[0-5][0-9].*$",
}
_VALUES: Final = frozenset(("enum", "const", "default", "examples"))


def with_real_dates(source: str) -> str:
    """A schema's text, with a pattern beside each of these formats."""
    if '"date' not in source:
        return source
    schema = json.loads(source)
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(inner for key, inner in part.items() if key not in _VALUES)
            _add_pattern(part)
    return json.dumps(schema, ensure_ascii=False)


def _add_pattern(part: dict[str, Any]) -> None:
    kind = part.get("format")
    pattern = _PATTERNS.get(kind) if isinstance(kind, str) else None
    if pattern is None:
        return
    if "pattern" not in part:
        part["pattern"] = pattern
    elif isinstance(part.get("allOf", []), list):
        part["allOf"] = [*part.get("allOf", []), {"pattern": pattern}]

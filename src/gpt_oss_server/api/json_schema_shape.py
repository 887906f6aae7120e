"""Do the keywords of one schema have values of the kinds that JSON Schema gives them?

Knows: for each keyword, what its value may be. Does not know: schemas within schemas, whether a
schema can be satisfied or enforced.

Source: https://json-schema.org/draft/2020-12/meta/validation and its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")


def shape_problem(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with the first keyword whose value cannot be; None if all can be."""
    for keyword, (may_be, wanted) in _KEYWORDS.items():
        if keyword in schema and not may_be(schema[keyword]):
            return f"{keyword!r} should be {wanted}"
    return None


def _is_type(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(v, str) and v in _TYPES for v in value)
    return isinstance(value, str) and value in _TYPES


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_map(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_schemas(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and value == int(value) and value >= 0  # type: ignore[operator, call-overload]


_Kind = tuple[Callable[[object], bool], str]
_TEXT: Final[_Kind] = (_is_text, "a string")
_MAP: Final[_Kind] = (_is_map, "an object of schemas")
_SCHEMAS: Final[_Kind] = (_is_schemas, "a list of schemas, not empty")
_NUMBER: Final[_Kind] = (_is_number, "a number")
_COUNT: Final[_Kind] = (_is_count, "an integer that is not negative")
_KEYWORDS: Final[dict[str, _Kind]] = {
    "type": (_is_type, f"one of {', '.join(_TYPES)}, or a list of them"),
    "required": (_is_names, "a list of names"),
    "enum": (_is_list, "a list"),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _MAP),
    **dict.fromkeys(("anyOf", "allOf", "oneOf"), _SCHEMAS),
    **dict.fromkeys(("$ref", "pattern", "format"), _TEXT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    "multipleOf": _NUMBER,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _COUNT),
    **dict.fromkeys(("minProperties", "maxProperties"), _COUNT),
}

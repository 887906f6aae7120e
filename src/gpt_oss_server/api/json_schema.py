"""Is a client's JSON Schema fit to guide an output? What can be told without compiling it.

Knows: JSON Schema's keywords, which of them guided decoding enforces, bounds on size and depth.
Does not know: requests, grammars. Whether a schema compiles is found out by the engine.

Sources: https://json-schema.org/draft/2020-12, and llguidance's list of what it enforces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gpt_oss_server.api.json_schema_shape import shape_problem

MAX_DEPTH: Final = 64
MAX_BYTES: Final = 256 << 10

_ANNOTATIONS: Final = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment"),
    )
)
_ENFORCED: Final = frozenset(
    (
        *("$ref", "$defs", "definitions", "type", "enum", "const", "anyOf", "allOf"),
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    )
)
_COMPILER_OPTIONS: Final = "x-guidance"
"""With it a schema could tell the compiler to separate members by something else than commas."""

_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLES: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains")


class SchemaError(ValueError):
    """What is wrong with a schema, in one line for the client."""


def schema_text(schema: object, *, strict: bool) -> str:
    """The schema as JSON text. With `strict`, every keyword must be one that is enforced.

    Raises SchemaError for what is no schema, too large, nested too deeply, or not enforced.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError("should be a JSON Schema object")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (RecursionError, ValueError):
        raise SchemaError(f"nested deeper than {MAX_DEPTH} schemas, or not JSON") from None
    if len(text) > MAX_BYTES:
        raise SchemaError(f"longer than {MAX_BYTES} bytes of JSON")
    for place, part in _schemas(schema):
        _check(place, part, strict=strict)
    return text


def _schemas(root: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every schema within a schema, with its place, breadth first."""
    level: list[tuple[str, object]] = [("", root)]
    for _ in range(MAX_DEPTH):
        yield from level
        level = [found for place, part in level for found in _children(place, part)]
        if not level:
            return
    raise SchemaError(f"nested deeper than {MAX_DEPTH} schemas")


def _children(place: str, part: object) -> Iterator[tuple[str, object]]:
    if not isinstance(part, Mapping):
        return
    for key in _MAPS:
        inner = part.get(key)
        if isinstance(inner, Mapping):
            yield from ((f"{place}/{key}/{name}", value) for name, value in inner.items())
    for key in _LISTS:
        inner = part.get(key)
        if isinstance(inner, list):
            yield from ((f"{place}/{key}/{i}", value) for i, value in enumerate(inner))
    yield from ((f"{place}/{key}", part[key]) for key in _SINGLES if key in part)


def _check(place: str, part: object, *, strict: bool) -> None:
    where = f"at {place[:120]!r}: " if place else ""
    if not isinstance(part, Mapping | bool):
        raise SchemaError(f"{where}should be a schema (an object or a boolean)")
    if isinstance(part, Mapping) and _COMPILER_OPTIONS in part:
        raise SchemaError(f"{where}the keyword {_COMPILER_OPTIONS!r} is not supported")
    if isinstance(part, Mapping) and (problem := shape_problem(part)) is not None:
        raise SchemaError(f"{where}{problem}")
    if strict and isinstance(part, Mapping):
        for keyword in part:
            if keyword not in _ENFORCED and keyword not in _ANNOTATIONS:
                raise SchemaError(
                    f"{where}the keyword {str(keyword)[:60]!r} cannot be enforced; leave it out, "
                    "or do not ask for 'strict'"
                )

"""How much a single token may commit a text to: never less than what is really asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt_oss_server.engine.guided_demand import MOST_TOKENS, demand_tokens
from gpt_oss_server.types import Grammar


def of(schema: Any) -> int:
    """Where each byte is a token."""
    return demand(Grammar(kind="json_schema", source=json.dumps(schema)))


def demand(grammar: Grammar) -> int:
    return demand_tokens(grammar, lambda text: len(text.encode()))


OBJECT = {
    "type": "object",
    "properties": {"first_member": {"type": "string", "minLength": 9}, "b": {"const": "x" * 50}},
    "required": ["first_member", "b"],
}


@pytest.mark.parametrize(
    ("schema", "least_tokens"),
    [
        ({"type": "string", "minLength": 100}, 102),
        ({"type": "array", "items": {"const": "abc"}, "minItems": 30}, 181),
        ({"type": "array", "prefixItems": [{"const": "a" * 40}, {"const": "b" * 40}]}, 85),
        (OBJECT, 90),
        ({"anyOf": [{"type": "null"}, OBJECT]}, 90),
        ({"oneOf": [{"type": "null"}, OBJECT]}, 90),
        ({"allOf": [OBJECT, {"required": ["c" * 80]}]}, 170),
        ({"type": "array", "items": {"$ref": "#/$defs/o"}, "$defs": {"o": OBJECT}}, 90),
        ({"properties": {"optional": OBJECT}}, 90),
        ({"patternProperties": {"^x$": OBJECT}}, 90),
        ({"additionalProperties": {"const": "a" * 90}, "minProperties": 3}, 290),
        ({"enum": [1, "e" * 70]}, 72),
        ({"type": "string", "pattern": "^(a{20}b){5}$"}, 105 * 5),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": OBJECT}}, 90),
    ],
)
def test_not_below_what_some_part_asks_for(schema: Any, least_tokens: int) -> None:
    """The bound covers the most demanding part, wherever it is: also where it is an alternative to
    next to nothing."""
    definitions = {"$defs": schema.get("$defs", {})}
    assert least_tokens <= of({"anyOf": [{"type": "null"}, schema], **definitions})
    assert of(schema) <= 8 * least_tokens


def test_the_whole_is_not_its_own_part() -> None:
    """What the root asks for is known from the start, unless the schema contains itself."""
    schema = {"type": "array", "minItems": 500, "items": {"type": "null"}}
    assert of(schema) <= 20
    assert of({**schema, "items": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}) >= 1000


@pytest.mark.parametrize(
    "schema",
    [True, {}, {"type": "integer"}, {"properties": {"a": {"type": "integer"}}}],
)
def test_small_schemas_ask_for_little(schema: Any) -> None:
    """Without a least length anywhere, the bound is that of a number."""
    assert of(schema) <= 100


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"$ref": "#"}, "minItems": 2},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$ref": "#/nowhere"},
        {"minLength": 10**30, "required": 3, "properties": [], "enum": {}},
        {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}},
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)},
        },
    ],
)
def test_any_schema_has_a_bound(schema: Any) -> None:
    """Recursive, broken and enormous schemas are measured in bounded time, to a bounded value."""
    assert 0 < of(schema) <= MOST_TOKENS


@pytest.mark.parametrize(
    ("grammar", "least_tokens"),
    [
        (Grammar(kind="regex", source="a|b[0-9]{120}"), 121),
        (Grammar(kind="grammar", source='start: "a" | "b"~300'), 300),
        (Grammar(kind="choice", source=json.dumps(["a", "é" * 40])), 80),
        (Grammar(kind="json_object"), 2),
    ],
)
def test_other_kinds(grammar: Grammar, least_tokens: int) -> None:
    """Counted repetition in patterns and grammars, and the longest choice."""
    assert least_tokens <= demand(grammar) <= MOST_TOKENS

"""JSON Schemas as the declarations that the model reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.harmony.tools import render_tools, type_of


def test_section_without_parameters() -> None:
    """Names, multi-line descriptions, and empty parameters of every spelling."""
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "a", "description": "One.\nTwo."}},
        {"type": "function", "function": {"name": "b", "description": None, "parameters": {}}},
        {
            "type": "function",
            "function": {"name": "c", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert render_tools(tools) == (
        "# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// One.\n// Two.\ntype a = () => any;\n\n"
        "type b = () => any;\n\n"
        "type c = () => any;\n\n"
        "} // namespace functions"
    )


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "string"),
        ({"type": "integer"}, "number"),
        ({"type": "number"}, "number"),
        ({"type": "boolean"}, "boolean"),
        ({"type": "null"}, "null"),
        ({"type": "string", "enum": ["a", "b"]}, '"a" | "b"'),
        ({"const": 3}, "3"),
        ({"type": ["integer", "null"]}, "number | null"),
        ({"type": []}, "any"),
        ({"type": "array", "items": {"type": "string"}}, "string[]"),
        ({"type": "array"}, "Array<any>"),
        ({"type": "array", "items": {}}, "any[]"),
        ({}, "any"),
        (True, "any"),
        ({"type": "tuple"}, "any"),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "\n | string\n | null"),
        ({"anyOf": [{"type": "integer", "description": "n"}]}, "\n | number // n"),
    ],
)
def test_types(schema: object, expected: str) -> None:
    """Each JSON type has its TypeScript name."""
    assert type_of(schema) == expected


@pytest.mark.parametrize(
    ("schema", "lines"),
    [
        (
            {"type": "string", "title": "T", "description": "D", "examples": ["e", 1]},
            ["// T", "//", "// D", "// Examples:", '// - "e"', "x?: string,"],
        ),
        ({"type": "string", "default": "d"}, ['x?: string, // default: "d"']),
        ({"type": "integer", "default": 5}, ["x?: number, // default: 5"]),
        ({"type": "string", "nullable": True}, ["x?: string | null,"]),
        (
            {"type": "object", "properties": {"y": {"type": "number"}}, "required": ["y"]},
            ["x?: {", "    y: number,", "    },"],
        ),
        (
            {
                "description": "D",
                "default": 1,
                "oneOf": [{"type": "string", "default": "s"}, {"type": "number"}],
            },
            ["// D", "// default: 1", "x?:", ' | string // default: "s"', " | number", ","],
        ),
        (True, ["x?: any,"]),
    ],
)
def test_properties(schema: object, lines: list[str]) -> None:
    """Comments stand above a property, its default behind it."""
    expected = "\n".join(["{", *lines, "}"])
    assert type_of({"type": "object", "properties": {"x": schema}}) == expected


def test_deep_nesting_ends_in_any() -> None:
    """A schema nested beyond reason is cut off, not followed."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(500):
        schema = {"type": "object", "properties": {"x": schema}}
    assert "x?: any," in type_of(schema)


TYPE_WORDS = ["type", "object", "array", "properties", "items", "enum", "oneOf", "anyOf", "const"]
NOTE_WORDS = ["required", "default", "examples", "nullable", "title", "description", "x"]
WORDS = st.sampled_from([*TYPE_WORDS, *NOTE_WORDS])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_no_schema_raises(schema: object) -> None:
    """A client's schema may be nonsense: rendering it never fails."""
    assert isinstance(type_of(schema), str)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": schema}}}
    assert "type f = " in render_tools([tool])

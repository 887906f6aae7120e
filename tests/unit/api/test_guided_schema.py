"""Structured output as clients ask for it: what is taken, what it means, what is refused."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from gpt_oss_server.api.json_schema import MAX_BYTES, SchemaError
from gpt_oss_server.api.schema_chat import ChatRequest
from gpt_oss_server.api.schema_completions import CompletionRequest
from gpt_oss_server.api.schema_guided import schema_grammar
from gpt_oss_server.types import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "hi", **fields})


def json_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    wanted = {"name": "answer", "schema": schema, **fields}
    return {"type": "json_schema", "json_schema": wanted}


FORMAT = "response_format.json_schema.schema"
MEANINGS: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar(kind="json_object")),
    ({"response_format": json_schema(None)}, Grammar(kind="json_object")),
    (
        {"response_format": json_schema(SCHEMA)},
        Grammar(kind="json_schema", source=TEXT, lenient=True, param=FORMAT),
    ),
    (
        {"response_format": json_schema(SCHEMA, strict=True)},
        Grammar(kind="json_schema", source=TEXT, param=FORMAT),
    ),
    (
        {"structured_outputs": {"json": SCHEMA}},
        Grammar(kind="json_schema", source=TEXT, param="structured_outputs.json"),
    ),
    (
        {"structured_outputs": {"json": TEXT}},
        Grammar(kind="json_schema", source=TEXT, param="structured_outputs.json"),
    ),
    (
        {"structured_outputs": {"regex": "a+"}},
        Grammar(kind="regex", source="a+", param="structured_outputs.regex"),
    ),
    (
        {"structured_outputs": {"choice": ["a", "b"]}},
        Grammar(kind="choice", source='["a", "b"]', param="structured_outputs.choice"),
    ),
    (
        {"structured_outputs": {"grammar": "start: X"}},
        Grammar(kind="grammar", source="start: X", param="structured_outputs.grammar"),
    ),
    (
        {"structured_outputs": {"json_object": True}},
        Grammar(kind="json_object", param="structured_outputs.json_object"),
    ),
    ({"guided_json": SCHEMA}, Grammar(kind="json_schema", source=TEXT, param="guided_json")),
    ({"guided_regex": "a+"}, Grammar(kind="regex", source="a+", param="guided_regex")),
    ({"guided_choice": ["a"]}, Grammar(kind="choice", source='["a"]', param="guided_choice")),
    ({"guided_grammar": "x"}, Grammar(kind="grammar", source="x", param="guided_grammar")),
    (
        {"guided_regex": "a+", "response_format": {"type": "text"}},
        Grammar(kind="regex", source="a+", param="guided_regex"),
    ),
]


@pytest.mark.parametrize(("fields", "grammar"), MEANINGS)
def test_every_way_to_ask(fields: dict[str, Any], grammar: Grammar | None) -> None:
    """Chat and completions read each way to ask as the same grammar."""
    assert chat(**fields).grammar == grammar
    assert completion(**fields).grammar == grammar


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "text", "json_schema": {"name": "a"}}}, "json_schema"),
    ({"response_format": json_schema(SCHEMA) | {"extra": 1}}, "response_format.extra"),
    ({"response_format": json_schema([1, 2])}, "json_schema.schema"),
    ({"response_format": json_schema({"properties": {"a": 3}})}, "json_schema.schema"),
    ({"response_format": json_schema(deep(70))}, "json_schema.schema"),
    ({"response_format": json_schema({"enum": ["x" * MAX_BYTES]})}, "json_schema.schema"),
    ({"response_format": json_schema({"not": {}}, strict=True)}, "json_schema.schema"),
    ({"response_format": json_schema({"x-guidance": {}})}, "json_schema.schema"),
    ({"response_format": json_schema(SCHEMA, name="a b")}, "json_schema.name"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"guided_json": [1]}, "guided_json"),
    ({"guided_choice": [""]}, "guided_choice"),
    ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
]


@pytest.mark.parametrize(("fields", "where"), WRONG)
def test_what_is_wrong_is_named(fields: dict[str, Any], where: str) -> None:
    """Each is one error, at the parameter that is wrong."""
    with pytest.raises(pydantic.ValidationError) as refusal:
        chat(**fields)
    [error] = refusal.value.errors()
    place = [str(step) for step in error["loc"]]
    if field := error.get("ctx", {}).get("field"):
        place.append(field)
    assert where in ".".join(place)


def test_strict_arguments_of_a_function() -> None:
    """A function's parameters as a grammar; without any, an object."""
    grammar = schema_grammar(SCHEMA, strict=True, param="tools[0].function.parameters")
    assert grammar == Grammar(kind="json_schema", source=TEXT, param="tools[0].function.parameters")
    assert schema_grammar(None, strict=True, param="p") == Grammar(kind="json_object", param="p")
    with pytest.raises(SchemaError, match="cannot be enforced"):
        schema_grammar({"uniqueItems": True}, strict=True, param="p")
    assert schema_grammar({"uniqueItems": True}, strict=False, param="p").lenient

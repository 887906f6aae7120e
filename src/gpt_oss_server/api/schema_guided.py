"""What a client asks its output to be: `response_format`, and vLLM's `structured_outputs`.

Knows: their shapes, vLLM's older names (`guided_json` …), and how they read as one `Grammar`. Does
not know: whether a grammar compiles, models, tokens.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from gpt_oss_server.api.json_schema import SchemaError, schema_text
from gpt_oss_server.api.schema_common import SamplingFields, StrictModel, wrong
from gpt_oss_server.types import Grammar

MAX_CHOICES = 1024


class JsonSchemaFormat(StrictModel):
    """`strict` asks that every keyword be enforced; without it, those that cannot be are left
    out. What is enforced always holds."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: Any = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> JsonSchemaFormat:
        if self.schema_ is not None:
            _text(self.schema_, strict=bool(self.strict), field="schema")
        return self


class ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            problem = "required" if self.json_schema is None else "only allowed"
            raise wrong(f"{problem} when 'type' is 'json_schema'", field="json_schema")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be; None for plain text."""
        if self.type == "text":
            return None
        wanted = self.json_schema
        if wanted is None or wanted.schema_ is None:
            return Grammar(kind="json_object", param="response_format")
        param = "response_format.json_schema.schema"
        return schema_grammar(wanted.schema_, strict=bool(wanted.strict), param=param)


def schema_grammar(schema: object, *, strict: bool, param: str) -> Grammar:
    """JSON of a schema: what `strict` function arguments are held to, for `ChatFormat.call_guide`.

    Without `strict`, keywords that cannot be enforced are left out; None is any object. Raises
    SchemaError for what is no schema, too large, or (with `strict`) not enforced.
    """
    if schema is None:
        return Grammar(kind="json_object", param=param)
    source = schema_text(schema, strict=strict)
    return Grammar(kind="json_schema", source=source, lenient=not strict, param=param)


class StructuredOutputs(StrictModel):
    """Exactly one of the ways to say it. `json` is a schema, as an object or as JSON text."""

    json_: Any = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: list[str] | None = Field(None, min_length=1, max_length=MAX_CHOICES)
    grammar_text: str | None = Field(None, alias="grammar", min_length=1)
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        ways = (self.json_, self.regex, self.choice, self.grammar_text, self.json_object or None)
        if sum(way is not None for way in ways) != 1:
            raise wrong("give exactly one of json, regex, choice, grammar and json_object")
        _check_choices(self.choice, field="choice")
        if self.json_ is not None:
            _text(_schema_of(self.json_, field="json"), strict=False, field="json")
        return self

    @property
    def grammar(self) -> Grammar:
        """What the output must be."""
        within = "structured_outputs."
        if self.json_ is not None:
            return _json_grammar(self.json_, param=f"{within}json")
        if self.regex is not None:
            return Grammar(kind="regex", source=self.regex, param=f"{within}regex")
        if self.choice is not None:
            source = json.dumps(self.choice)
            return Grammar(kind="choice", source=source, param=f"{within}choice")
        if self.grammar_text is not None:
            return Grammar(kind="grammar", source=self.grammar_text, param=f"{within}grammar")
        return Grammar(kind="json_object", param=f"{within}json_object")


class GuidedFields(SamplingFields):
    """All the names under which a request can ask for structure; at most one may be used. The
    `guided_` ones are what vLLM called the members of `structured_outputs` before 0.12."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = Field(None, min_length=1)
    guided_choice: list[str] | None = Field(None, min_length=1, max_length=MAX_CHOICES)
    guided_grammar: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _check_one_structure(self) -> GuidedFields:
        wanted = {
            "response_format": None if self.response_format is None else self.response_grammar,
            "structured_outputs": self.structured_outputs,
            "guided_json": self.guided_json,
            "guided_regex": self.guided_regex,
            "guided_choice": self.guided_choice,
            "guided_grammar": self.guided_grammar,
        }
        given = [name for name, value in wanted.items() if value is not None]
        if len(given) > 1:
            raise wrong(f"give either this or '{given[0]}'", field=given[1])
        _check_choices(self.guided_choice, field="guided_choice")
        if self.guided_json is not None:
            field = "guided_json"
            _text(_schema_of(self.guided_json, field=field), strict=False, field=field)
        return self

    @property
    def response_grammar(self) -> Grammar | None:
        """What `response_format` asks of the answer."""
        return None if self.response_format is None else self.response_format.grammar

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be, however it was asked for."""
        if self.structured_outputs is not None:
            return self.structured_outputs.grammar
        if self.guided_json is not None:
            return _json_grammar(self.guided_json, param="guided_json")
        if self.guided_regex is not None:
            return Grammar(kind="regex", source=self.guided_regex, param="guided_regex")
        if self.guided_choice is not None:
            source = json.dumps(self.guided_choice)
            return Grammar(kind="choice", source=source, param="guided_choice")
        if self.guided_grammar is not None:
            return Grammar(kind="grammar", source=self.guided_grammar, param="guided_grammar")
        return self.response_grammar


def _check_choices(choices: list[str] | None, *, field: str) -> None:
    if choices is not None and "" in choices:
        raise wrong("a choice must not be empty", field=field)


def _json_grammar(given: object, *, param: str) -> Grammar:
    source = schema_text(_schema_of(given, field=param), strict=False)
    return Grammar(kind="json_schema", source=source, param=param)


def _schema_of(given: object, *, field: str) -> object:
    if not isinstance(given, str):
        return given
    try:
        schema: object = json.loads(given)
    except (ValueError, RecursionError):
        raise wrong("should be a JSON Schema", field=field) from None
    return schema


def _text(schema: object, *, strict: bool, field: str) -> str:
    try:
        return schema_text(schema, strict=strict)
    except SchemaError as error:
        raise wrong(str(error), field=field) from None

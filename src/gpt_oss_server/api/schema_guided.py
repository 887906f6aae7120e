"""What a client asks its output to be: `response_format`, and vLLM's `structured_outputs`.

Knows: their shapes, and how they read as one `Grammar`. Does not know: whether a grammar compiles,
models, tokens.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from gpt_oss_server.api.json_schema import SchemaError, schema_text
from gpt_oss_server.api.schema_common import StrictModel, wrong
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
        return Grammar(
            kind="json_schema",
            source=schema_text(wanted.schema_, strict=bool(wanted.strict)),
            lenient=not wanted.strict,
            param="response_format.json_schema.schema",
        )


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
        if self.choice is not None and "" in self.choice:
            raise wrong("a choice must not be empty", field="choice")
        if self.json_ is not None:
            _text(self._schema(), strict=False, field="json")
        return self

    @property
    def grammar(self) -> Grammar:
        """What the output must be."""
        if self.regex is not None:
            return Grammar(kind="regex", source=self.regex, param="structured_outputs.regex")
        if self.choice is not None:
            source = json.dumps(self.choice)
            return Grammar(kind="choice", source=source, param="structured_outputs.choice")
        if self.grammar_text is not None:
            source = self.grammar_text
            return Grammar(kind="grammar", source=source, param="structured_outputs.grammar")
        if self.json_ is None:
            return Grammar(kind="json_object", param="structured_outputs.json_object")
        source = schema_text(self._schema(), strict=False)
        return Grammar(kind="json_schema", source=source, param="structured_outputs.json")

    def _schema(self) -> object:
        if not isinstance(self.json_, str):
            return self.json_
        try:
            schema: object = json.loads(self.json_)
        except (ValueError, RecursionError):
            raise wrong("should be a JSON Schema", field="json") from None
        return schema


def _text(schema: object, *, strict: bool, field: str) -> str:
    try:
        return schema_text(schema, strict=strict)
    except SchemaError as error:
        raise wrong(str(error), field=field) from None

"""Function tools in a request: their definitions, and which of them may or must be called.

Knows: OpenAI's shapes of `tools` and `tool_choice`, what a function's parameters may be. Does not
know: how a model is shown tools or held to them, messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator

from gpt_oss_server.api.json_schema import SchemaError, schema_text
from gpt_oss_server.api.schema_common import Name, StrictModel, wrong

MAX_TOOLS = 128
MAX_TOOLS_CHARS = 1 << 20
"""Of JSON, all parameters of a request together; no context has room for more."""

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""What OpenAI takes a function without `parameters` to have."""


class FunctionDefinition(StrictModel):
    """`strict` asks that the arguments be held to `parameters`, keyword by keyword."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        try:
            schema_text(value, strict=False)
        except SchemaError as error:
            raise wrong(str(error)) from None
        if value.get("type", "object") != "object":
            raise wrong("a function's parameters are of type 'object'")
        return value

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """What the arguments, always one object, are to be."""
        if not self.parameters:
            return NO_PARAMETERS
        return {"type": "object", **self.parameters}


def _functions_only(kind: object) -> object:
    if isinstance(kind, str) and kind != "function":
        raise wrong("only tools of type 'function' are supported")
    return kind


FunctionType = Annotated[Literal["function"], BeforeValidator(_functions_only)]


class Tool(StrictModel):
    type: FunctionType
    function: FunctionDefinition


def _tools_differ(tools: list[Tool]) -> list[Tool]:
    seen: set[str] = set()
    total_chars = 0
    for index, tool in enumerate(tools):
        place = f"[{index}].function"
        if tool.function.name in seen:
            raise wrong("another function has this name", field=f"{place}.name")
        seen.add(tool.function.name)
        total_chars += len(tool.model_dump_json())
        if total_chars > MAX_TOOLS_CHARS:
            raise wrong(f"longer than {MAX_TOOLS_CHARS} characters of JSON together")
        _check_strict(tool.function, f"{place}.parameters")
    return tools


def _check_strict(function: FunctionDefinition, place: str) -> None:
    if not function.strict:
        return
    try:
        schema_text(function.schema_of_arguments, strict=True)
    except SchemaError as error:
        raise wrong(str(error), field=place) from None


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_tools_differ)]


class FunctionName(StrictModel):
    name: Name


class NamedTool(StrictModel):
    type: FunctionType
    function: FunctionName


class AllowedTools(StrictModel):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolChoice(StrictModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "|mode"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"function": "|function", "allowed_tools": "|allowed"}.get(str(kind))


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("|mode")]
    | Annotated[NamedTool, Tag("|function")]
    | Annotated[AllowedToolChoice, Tag("|allowed")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice",
        custom_error_message=(
            "should be none, auto, required, or an object of type 'function' or 'allowed_tools'"
        ),
    ),
]


@dataclass(frozen=True)
class ToolChoice:
    """Whether a function may or must be called, and which; `names` None: any of those given."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: frozenset[str] | None = None


def tool_choice_of(
    tools: Sequence[Tool], choice: str | NamedTool | AllowedToolChoice | None
) -> ToolChoice:
    """The choice, checked against the tools there are. Raises a validator's error, to be raised
    from a validator of the whole request."""
    place = "tool_choice"
    if choice is None or choice in ("auto", "none"):
        return ToolChoice("none" if choice == "none" or not tools else "auto")
    if not tools:
        raise wrong("only allowed when 'tools' are given", field=place)
    known = {tool.function.name for tool in tools}
    if isinstance(choice, NamedTool):
        _check_known(choice, known, f"{place}.function.name")
        return ToolChoice("required", frozenset((choice.function.name,)))
    if isinstance(choice, AllowedToolChoice):
        allowed = choice.allowed_tools
        for index, tool in enumerate(allowed.tools):
            _check_known(tool, known, f"{place}.allowed_tools.tools[{index}].function.name")
        return ToolChoice(allowed.mode, frozenset(tool.function.name for tool in allowed.tools))
    return ToolChoice("required")


def _check_known(tool: NamedTool, known: set[str], place: str) -> None:
    if tool.function.name not in known:
        raise wrong("'tools' has no function of this name", field=place)

"""`POST /v1/responses`: the request in OpenAI's shape, and what of it is refused.

Knows: parameters, their ranges, function tools. Does not know: items (see
`schema_responses_items`), what becomes of a request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from gpt_oss_server.api.json_schema import SchemaError, schema_text
from gpt_oss_server.api.schema_chat import Metadata, ServiceTier
from gpt_oss_server.api.schema_common import (
    MAX_INT32,
    Name,
    ReasoningEffort,
    StreamOptions,
    StrictModel,
    Unsupported,
    only,
    wrong,
)
from gpt_oss_server.api.schema_guided import schema_grammar
from gpt_oss_server.api.schema_responses_items import Input
from gpt_oss_server.api.schema_tools import (
    MAX_TOOLS,
    MAX_TOOLS_CHARS,
    FunctionDefinition,
    Tool,
    ToolChoice,
)
from gpt_oss_server.types import Grammar

Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ReasoningOptions(StrictModel):
    """`summary` asks for the reasoning as a summary too. There is no model that would shorten it:
    `concise` cannot be honoured."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "detailed"] | None = None
    generate_summary: Literal["auto", "detailed"] | None = None
    context: Literal["auto", "current_turn"] | None = None
    mode: Annotated[Any, only(None, "standard")] = None

    @property
    def wanted_summary(self) -> str | None:
        """By either name; the older one is `generate_summary`."""
        return self.summary or self.generate_summary


class TextFormat(StrictModel):
    """All three formats in one: `text`, `json_object` and `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: Any = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_members(self) -> TextFormat:
        members = {"name": self.name, "schema": self.schema_}
        if self.type == "json_schema":
            for name, value in members.items():
                if value is None:
                    raise wrong("required when 'type' is 'json_schema'", field=name)
            _check_schema(self.schema_, strict=bool(self.strict), field="schema")
            return self
        members |= {"description": self.description, "strict": self.strict}
        for name, value in members.items():
            if value is not None:
                raise wrong("only allowed when 'type' is 'json_schema'", field=name)
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be; None for plain text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json_object", param="text.format")
        return schema_grammar(self.schema_, strict=bool(self.strict), param="text.format.schema")

    @property
    def named(self) -> dict[str, Any] | None:
        """A JSON answer with a schema, as `ChatFormat.render_chat` takes it."""
        if self.type != "json_schema":
            return None
        return {"name": self.name, "description": self.description, "schema": self.schema_}


class TextOptions(StrictModel):
    format: TextFormat | None = None
    verbosity: Annotated[Any, only(None, "medium")] = None


class FunctionTool(FunctionDefinition):
    """A function of the client's, all in one object. `strict` left open is false."""

    type: Literal["function"]
    allowed_callers: Annotated[Any, only(None, ["direct"])] = None
    defer_loading: Annotated[Any, only(None, False)] = None
    output_schema: Unsupported = None
    async_: Annotated[Any, only(None, False)] = Field(None, alias="async")

    @property
    def as_chat_tool(self) -> Tool:
        """The same function in the chat API's shape."""
        return Tool.model_construct(
            type="function",
            function=FunctionDefinition.model_construct(
                name=self.name,
                description=self.description,
                parameters=self.parameters,
                strict=self.strict,
            ),
        )


def _function_only(value: object) -> object:
    if not isinstance(value, dict):
        raise wrong("should be an object")
    kind = value.get("type")
    if kind != "function":
        if isinstance(kind, str) and kind.isidentifier() and len(kind) <= 64:
            raise wrong(
                f"this server has no tool {kind}; only functions are supported", field="type"
            )
        raise wrong("should be function", field="type")
    return value


class FunctionChoice(StrictModel):
    type: Literal["function"]
    name: Name


class AllowedFunctions(StrictModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[FunctionChoice, BeforeValidator(_function_only)]] = Field(
        min_length=1, max_length=MAX_TOOLS
    )


def _choice_tag(value: object) -> str | None:
    if isinstance(value, dict):
        kind = value.get("type")
        return f"|{kind}" if kind in ("function", "allowed_tools") else None
    return "|word"


def _known_choice(value: object) -> object:
    if isinstance(value, dict) and _choice_tag(value) is None:
        raise wrong("should be function or allowed_tools: this server has no tools", field="type")
    return value


ToolChoiceField = Annotated[
    Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("|word")]
        | Annotated[FunctionChoice, Tag("|function")]
        | Annotated[AllowedFunctions, Tag("|allowed_tools")],
        Discriminator(_choice_tag),
    ],
    BeforeValidator(_known_choice),
]

_BACKGROUND = "responses are not run in the background here: stream, or wait for the answer"


def _no_background(value: object) -> object:
    if value is None or value is False:
        return value
    raise wrong(_BACKGROUND if value is True else "should be a boolean")


class ResponsesRequest(StrictModel):
    """A request for a response; everything else that OpenAI's API knows is refused by name."""

    model: str = Field(min_length=1)
    input: Input | None = None
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    store: bool | None = None
    include: list[Include] | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    max_tool_calls: int | None = Field(None, ge=1)
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Annotated[Any, only(None, "in_memory")] = None
    reasoning: ReasoningOptions | None = None
    safety_identifier: str | None = None
    service_tier: ServiceTier | Literal["ultrafast"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    text: TextOptions | None = None
    tool_choice: ToolChoiceField | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_function_only)]] | None = Field(
        None, max_length=MAX_TOOLS
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_p: float | None = Field(None, ge=0, le=1)
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    background: Annotated[Any, BeforeValidator(_no_background)] = None
    background_options: Unsupported = None
    access_programs: Unsupported = None
    context_management: Unsupported = None
    conversation: Unsupported = None
    image: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None
    prompt_cache_options: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> ResponsesRequest:
        if self.stream_options is not None:
            if not self.stream:
                raise wrong("only allowed when 'stream' is true", field="stream_options")
            if self.stream_options.include_usage is not None:
                raise wrong("not a parameter of responses", field="stream_options.include_usage")
        if self.previous_response_id is None and self.input is None:
            raise wrong("required unless 'previous_response_id' is given", field="input")
        if self.previous_response_id is None and self.input == []:
            raise wrong("should have at least one item", field="input")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names: list[str] = []
        total_chars = 0
        for index, tool in enumerate(self.tools or ()):
            place = f"tools[{index}]"
            if tool.name in names:
                raise wrong("another function has this name", field=f"{place}.name")
            names.append(tool.name)
            total_chars += len(tool.model_dump_json())
            if total_chars > MAX_TOOLS_CHARS:
                raise wrong(f"longer than {MAX_TOOLS_CHARS} characters together", field="tools")
            if tool.strict:
                schema = tool.schema_of_arguments
                _check_schema(schema, strict=True, field=f"{place}.parameters")
        choice = self.tool_choice
        if choice is None or choice in ("auto", "none"):
            return
        if not names:
            raise wrong("only allowed when 'tools' are given", field="tool_choice")
        if isinstance(choice, FunctionChoice) and choice.name not in names:
            raise wrong("'tools' has no function of this name", field="tool_choice.name")
        if isinstance(choice, AllowedFunctions):
            for index, named in enumerate(choice.tools):
                if named.name not in names:
                    field = f"tool_choice.tools[{index}].name"
                    raise wrong("'tools' has no function of this name", field=field)

    @property
    def chosen_tools(self) -> ToolChoice:
        """Whether a function may or must be called, and which."""
        choice = self.tool_choice
        if choice == "none" or not self.tools:
            return ToolChoice("none")
        if isinstance(choice, FunctionChoice):
            return ToolChoice("required", frozenset((choice.name,)))
        if isinstance(choice, AllowedFunctions):
            return ToolChoice(choice.mode, frozenset(named.name for named in choice.tools))
        return ToolChoice("required" if choice == "required" else "auto")

    @property
    def answer_format(self) -> TextFormat | None:
        """What `text.format` asks of the answer, if anything."""
        return None if self.text is None else self.text.format

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives per token; None for no logprobs at all."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return (self.top_logprobs or 0) if asked or self.top_logprobs else None

    @property
    def wants_encrypted_reasoning(self) -> bool:
        return "reasoning.encrypted_content" in (self.include or ())

    @property
    def wants_summary(self) -> bool:
        return self.reasoning is not None and self.reasoning.wanted_summary is not None


def _check_schema(schema: object, *, strict: bool, field: str) -> None:
    try:
        schema_text(schema, strict=strict)
    except SchemaError as error:
        raise wrong(str(error), field=field) from None

"""`POST /v1/chat/completions`: the request in OpenAI's shape, and what of it is refused.

Knows: roles, content parts, tool calls in a conversation's history, chat parameters. Does not
know: how a conversation is rendered for a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from gpt_oss_server.api.schema_common import (
    MAX_INT32,
    Name,
    ReasoningEffort,
    SamplingFields,
    StrictModel,
    Unsupported,
    only,
    wrong,
)
from gpt_oss_server.api.schema_guided import ResponseFormat, StructuredOutputs
from gpt_oss_server.types import Grammar

MAX_MESSAGES = 16_384
MAX_PARTS = 4_096


def _text_only(kind: object) -> object:
    if isinstance(kind, str) and kind != "text":
        raise wrong("only text content is supported")
    return kind


class TextPart(StrictModel):
    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: str


def _content_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "|string"
    return "|parts" if isinstance(value, list) else None


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]
Content = Annotated[
    Annotated[str, Tag("|string")] | Annotated[Parts, Tag("|parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content",
        custom_error_message="should be a string or a list of text parts",
    ),
]


def flatten(content: str | list[TextPart]) -> str:
    """Content as one string; parts are joined without a separator, as OpenAI does."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class FunctionCall(StrictModel):
    name: Name
    arguments: str


class ToolCall(StrictModel):
    id: str = Field(min_length=1)
    type: Literal["function"]
    function: FunctionCall


class InstructionMessage(StrictModel):
    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(StrictModel):
    role: Literal["user"]
    content: Content
    name: Name | None = None


class AssistantMessage(StrictModel):
    """A turn of the model's own. The fields that may only be null are there because clients send
    an answer's message back as they got it."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    annotations: Annotated[Any, only(None, [])] = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.reasoning_content is None:
            raise wrong("required unless the message has tool calls", field="content")
        return self


class ToolMessage(StrictModel):
    role: Literal["tool"]
    content: Content
    tool_call_id: str = Field(min_length=1)
    name: Name | None = None


_ROLE_TAGS = {
    "system": "|instruction",
    "developer": "|instruction",
    "user": "|user",
    "assistant": "|assistant",
    "tool": "|tool",
}


def _role_tag(value: object) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return _ROLE_TAGS.get(role) if isinstance(role, str) else None


def _has_known_role(value: object) -> object:
    if not isinstance(value, dict):
        raise wrong("should be an object")
    if _role_tag(value) is None:
        raise wrong(f"should be one of {', '.join(_ROLE_TAGS)}", field="role")
    return value


ChatMessage = Annotated[
    Annotated[InstructionMessage, Tag("|instruction")]
    | Annotated[UserMessage, Tag("|user")]
    | Annotated[AssistantMessage, Tag("|assistant")]
    | Annotated[ToolMessage, Tag("|tool")],
    Discriminator(_role_tag),
]
CheckedMessage = Annotated[ChatMessage, BeforeValidator(_has_known_role)]


def _tools_answer_calls(messages: list[ChatMessage]) -> list[ChatMessage]:
    called: set[str] = set()
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            called.update(call.id for call in message.tool_calls or ())
        elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
            raise wrong(
                "no earlier assistant message has a tool call with this id",
                field=f"[{index}].tool_call_id",
            )
    return messages


Messages = Annotated[
    list[CheckedMessage],
    Field(min_length=1, max_length=MAX_MESSAGES),
    AfterValidator(_tools_answer_calls),
]


def message_mappings(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as `ChatFormat.render_chat` takes them: content a string or None, fields that are
    null left out."""
    return [_mapping(message) for message in messages]


def _mapping(message: ChatMessage) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, exclude={"content"})
    fields["content"] = None if message.content is None else flatten(message.content)
    return fields


class ChatRequest(SamplingFields):
    """A chat completion request; everything else that OpenAI's API knows is refused by name."""

    messages: Messages
    reasoning_effort: ReasoningEffort | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    store: Annotated[Any, only(None, False)] = None
    service_tier: Annotated[Any, only(None, "auto", "default")] = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    verbosity: Annotated[Any, only(None, "medium")] = None
    tools: Annotated[Any, only(None, [])] = None
    tool_choice: Annotated[Any, only(None, "none", "auto")] = None
    parallel_tool_calls: Annotated[Any, only(None, True)] = None
    functions: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    prompt_cache_retention: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("give either this or 'max_completion_tokens'", field="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("only allowed when 'logprobs' is true", field="top_logprobs")
        if self.structured_outputs is not None and self.response_grammar is not None:
            raise wrong("give either this or 'response_format'", field="structured_outputs")
        return self

    @property
    def named_format(self) -> dict[str, Any] | None:
        """The JSON answer asked for, as `ChatFormat.render_chat` takes it."""
        wanted = self.response_format.json_schema if self.response_format else None
        if wanted is None or wanted.schema_ is None:
            return None
        return {
            "name": wanted.name,
            "description": wanted.description,
            "schema": wanted.schema_,
        }

    @property
    def response_grammar(self) -> Grammar | None:
        """What `response_format` asks of the answer."""
        return None if self.response_format is None else self.response_format.grammar

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be, however it was asked for."""
        if self.structured_outputs is not None:
            return self.structured_outputs.grammar
        return self.response_grammar

    @property
    def output_limit(self) -> int | None:
        """The bound on new tokens that the client set, by either name."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def output_limit_name(self) -> str:
        return "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens"

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives per token; None for no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

"""`POST /v1/chat/completions`: the request in OpenAI's shape, and what of it is refused.

Knows: roles, content parts, tool calls in a conversation's history, chat parameters. Does not
know: how a conversation is rendered for a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import from_json

from gpt_oss_server.api.schema_common import (
    MAX_INT32,
    Name,
    ReasoningEffort,
    StrictModel,
    Unsupported,
    only,
    wrong,
)
from gpt_oss_server.api.schema_guided import GuidedFields
from gpt_oss_server.api.schema_tools import ToolChoice, ToolChoiceField, Tools, tool_choice_of

MAX_MESSAGES = 16_384
MAX_PARTS = 4_096
MAX_CALLS = 128


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


def _json_object(text: str) -> str:
    try:
        is_object = isinstance(from_json(text, allow_inf_nan=False), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise wrong("should be the JSON text of an object")
    return text


class FunctionCall(StrictModel):
    name: Name
    arguments: Annotated[str, AfterValidator(_json_object)]


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
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_CALLS)
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
    """As OpenAI has it: behind a message with calls stand the results of all of them, each once,
    before anything else."""
    waiting: dict[str, str] = {}  # id of a call without result → where it stands
    for index, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if waiting.pop(message.tool_call_id, None) is None:
                raise wrong(
                    "the messages before have no unanswered tool call with this id",
                    field=f"[{index}].tool_call_id",
                )
            continue
        _check_answered(waiting)
        for number, call in enumerate(_calls_of(message)):
            place = f"[{index}].tool_calls[{number}].id"
            if call.id in waiting:
                raise wrong("another call of this message has this id", field=place)
            waiting[call.id] = place
    _check_answered(waiting)
    return messages


def _calls_of(message: ChatMessage) -> Sequence[ToolCall]:
    return message.tool_calls or () if isinstance(message, AssistantMessage) else ()


def _check_answered(waiting: Mapping[str, str]) -> None:
    for place in waiting.values():
        raise wrong("this tool call must be followed by a tool message with its id", field=place)


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


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]

ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
"""All are served alike; the answer says so, as OpenAI's does where it serves another tier."""


class ChatRequest(GuidedFields):
    """A chat completion request; everything else that OpenAI's API knows is refused by name."""

    messages: Messages
    reasoning_effort: ReasoningEffort | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    store: Annotated[Any, only(None, False)] = None
    service_tier: ServiceTier | None = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    verbosity: Annotated[Any, only(None, "medium")] = None
    tools: Tools | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    prompt_cache_options: Unsupported = None
    moderation: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("give either this or 'max_completion_tokens'", field="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("only allowed when 'logprobs' is true", field="top_logprobs")
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> ChatRequest:
        if self.parallel_tool_calls is False and not self.tools:
            raise wrong("only allowed when 'tools' are given", field="parallel_tool_calls")
        tool_choice_of(self.tools or (), self.tool_choice)
        return self

    @property
    def chosen_tools(self) -> ToolChoice:
        """Whether functions may or must be called, and which."""
        return tool_choice_of(self.tools or (), self.tool_choice)

    @property
    def may_call_several(self) -> bool:
        """Whether one turn may have more than one call."""
        return self.parallel_tool_calls is not False

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

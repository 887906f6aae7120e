"""The items of `input` in `POST /v1/responses`: messages, calls and their outputs, reasoning.

Knows: their shapes in OpenAI's API, and which of them only hosted tools make. Does not know: how
items become a prompt, what is stored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import from_json

from gpt_oss_server.api.schema_common import Name, StrictModel, Unsupported, only, wrong

MAX_ITEMS = 16_384
MAX_PARTS = 4_096

Id = Annotated[str, Field(min_length=1, max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]

_OTHER_MEDIA = frozenset({"input_image", "input_file", "input_audio", "computer_screenshot"})


class InputText(StrictModel):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Unsupported = None


class OutputText(StrictModel):
    """Text of the model's own, as an earlier answer carried it."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[Any, only(None, [])] = None
    logprobs: list[Any] | None = None


class Refusal(StrictModel):
    type: Literal["refusal"]
    refusal: str


def _part_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"|{kind}" if kind in ("input_text", "output_text", "refusal") else None


def _known_part(value: object) -> object:
    if not isinstance(value, dict):
        raise wrong("should be an object")
    kind = value.get("type")
    if isinstance(kind, str) and kind in _OTHER_MEDIA:
        raise wrong("only text content is supported", field="type")
    if _part_tag(value) is None:
        raise wrong("should be one of input_text, output_text, refusal", field="type")
    return value


def _known_input_part(value: object) -> object:
    known = _known_part(value)
    if _part_tag(known) != "|input_text":
        raise wrong("should be input_text here", field="type")
    return known


Part = Annotated[
    Annotated[
        Annotated[InputText, Tag("|input_text")]
        | Annotated[OutputText, Tag("|output_text")]
        | Annotated[Refusal, Tag("|refusal")],
        Discriminator(_part_tag),
    ],
    BeforeValidator(_known_part),
]
InputPart = Annotated[InputText, BeforeValidator(_known_input_part)]


def _content_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "|string"
    return "|parts" if isinstance(value, list) else None


InputContent = Annotated[
    Annotated[str, Tag("|string")]
    | Annotated[list[InputPart], Field(min_length=1, max_length=MAX_PARTS), Tag("|parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content",
        custom_error_message="should be a string or a list of text parts",
    ),
]
AssistantContent = Annotated[
    Annotated[str, Tag("|string")]
    | Annotated[list[Part], Field(max_length=MAX_PARTS), Tag("|parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content",
        custom_error_message="should be a string or a list of text parts",
    ),
]


class MessageItem(StrictModel):
    type: Literal["message"] = "message"
    id: Id | None = None
    status: Status | None = None
    role: Literal["user", "system", "developer"]
    content: InputContent
    phase: Unsupported = None


class AssistantItem(StrictModel):
    """`phase` may say what the message was; where it stands says the same to this model."""

    type: Literal["message"] = "message"
    id: Id | None = None
    status: Status | None = None
    role: Literal["assistant"]
    content: AssistantContent
    phase: Literal["commentary", "final_answer"] | None = None


class DirectCaller(StrictModel):
    type: Literal["direct"]


def _json_object(text: str) -> str:
    try:
        is_object = isinstance(from_json(text, allow_inf_nan=False), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise wrong("should be the JSON text of an object")
    return text


class FunctionCallItem(StrictModel):
    type: Literal["function_call"]
    id: Id | None = None
    status: Status | None = None
    call_id: Id
    name: Name
    arguments: Annotated[str, AfterValidator(_json_object)]
    namespace: Unsupported = None
    caller: DirectCaller | None = None
    async_: Annotated[Any, only(None, False)] = Field(None, alias="async")


class FunctionOutputItem(StrictModel):
    type: Literal["function_call_output"]
    id: Id | None = None
    status: Status | None = None
    call_id: Id
    output: InputContent
    name: Name | None = None
    namespace: Unsupported = None
    caller: DirectCaller | None = None


class SummaryText(StrictModel):
    type: Literal["summary_text"]
    text: str


class ReasoningText(StrictModel):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(StrictModel):
    type: Literal["reasoning"]
    id: Id | None = None
    status: Status | None = None
    summary: list[SummaryText] = Field(default_factory=list, max_length=MAX_PARTS)
    content: list[ReasoningText] | None = Field(None, max_length=MAX_PARTS)
    encrypted_content: str | None = None


class ItemReference(StrictModel):
    """`type` may be left out, as in OpenAI's API."""

    type: Literal["item_reference"] | None = None
    id: Id


_TYPES = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _item_tag(value: object) -> str | None:
    """Which item it is: by its type, and without one by what it has."""
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if kind is None:
        kind = "message" if "role" in value or "id" not in value else "item_reference"
    if kind == "message":
        return "|assistant" if value.get("role") == "assistant" else "|message"
    return f"|{kind}" if kind in _TYPES else None


def _known_item(value: object) -> object:
    if not isinstance(value, dict):
        raise wrong("should be an object")
    tag = _item_tag(value)
    if tag is None:
        kind = value.get("type")
        known = ", ".join(_TYPES)
        if isinstance(kind, str) and kind.isidentifier() and len(kind) <= 64:
            raise wrong(f"items of the type {kind} are not supported; {known} are", field="type")
        raise wrong(f"should be one of {known}", field="type")
    roles = ("user", "assistant", "system", "developer")
    if tag == "|message" and value.get("role") not in roles:
        raise wrong(f"should be one of {', '.join(roles)}", field="role")
    return value


InputItem = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("|message")]
        | Annotated[AssistantItem, Tag("|assistant")]
        | Annotated[FunctionCallItem, Tag("|function_call")]
        | Annotated[FunctionOutputItem, Tag("|function_call_output")]
        | Annotated[ReasoningItem, Tag("|reasoning")]
        | Annotated[ItemReference, Tag("|item_reference")],
        Discriminator(_item_tag),
    ],
    BeforeValidator(_known_item),
]


def _input_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "|string"
    return "|items" if isinstance(value, list) else None


Input = Annotated[
    Annotated[str, Tag("|string")]
    | Annotated[list[InputItem], Field(max_length=MAX_ITEMS), Tag("|items")],
    Discriminator(
        _input_kind,
        custom_error_type="input",
        custom_error_message="should be a string or a list of items",
    ),
]

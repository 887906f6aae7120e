"""The items of a conversation: from a request to what is stored, and on to a model's messages.

Knows: how items follow each other and which of them together are one turn of the assistant's, what
stands for reasoning that a client is to carry. Does not know: tokens, HTTP, the store.

An item here is a plain mapping in OpenAI's shape: what a request brought (validated), what was
stored, or what an answer had as its output.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gpt_oss_server.api.schema_responses_items import (
    AssistantItem,
    FunctionCallItem,
    FunctionOutputItem,
    InputItem,
    InputText,
    ItemReference,
    MessageItem,
    OutputText,
    ReasoningItem,
    Refusal,
)
from gpt_oss_server.errors import BadRequest

Item = dict[str, Any]
Message = dict[str, Any]

_SEALED: Final = "gors1."


def new_id(prefix: str) -> str:
    """An id of OpenAI's form; cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(24)}"


def seal(reasoning: str) -> str:
    """Reasoning as a client that keeps nothing else carries it: opaque, but no secret, since the
    same text stands in the item's `content`."""
    return _SEALED + base64.urlsafe_b64encode(reasoning.encode()).decode()


def unseal(sealed: str) -> str | None:
    """The reasoning, or None for what was not made by `seal`."""
    if not sealed.startswith(_SEALED):
        return None
    try:
        return base64.urlsafe_b64decode(sealed.removeprefix(_SEALED)).decode()
    except (binascii.Error, ValueError):
        return None


def input_items(given: str | Sequence[InputItem] | None) -> list[Item]:
    """A request's input as items, each with an id; references are left as they are. None is none.

    Raises BadRequest for reasoning that is neither readable nor ours.
    """
    if isinstance(given, str):
        return [_message("user", [{"type": "input_text", "text": given}], new_id("msg"))]
    return [_item(index, item) for index, item in enumerate(given or ())]


def _item(index: int, item: InputItem) -> Item:
    match item:
        case MessageItem() | AssistantItem():
            parts = _parts(item.content, of_assistant=isinstance(item, AssistantItem))
            return _message(item.role, parts, item.id or new_id("msg"))
        case FunctionCallItem():
            return {
                "id": item.id or new_id("fc"),
                "type": "function_call",
                "status": "completed",
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
        case FunctionOutputItem():
            output = item.output
            return {
                "id": item.id or new_id("fco"),
                "type": "function_call_output",
                "status": "completed",
                "call_id": item.call_id,
                "output": output if isinstance(output, str) else _parts(output),
            }
        case ReasoningItem():
            return _reasoning(index, item)
        case ItemReference():
            return {"type": "item_reference", "id": item.id}


def _reasoning(index: int, item: ReasoningItem) -> Item:
    sealed = item.encrypted_content
    content = [part.model_dump() for part in item.content or ()]
    if not content and sealed is not None:
        text = unseal(sealed)
        if text is None and not item.summary:
            raise BadRequest(
                "The reasoning was encrypted by another server.",
                param=f"input[{index}].encrypted_content",
                code="invalid_encrypted_content",
            )
        content = [{"type": "reasoning_text", "text": text}] if text else []
    return {
        "id": item.id or new_id("rs"),
        "type": "reasoning",
        "summary": [part.model_dump() for part in item.summary],
        "content": content,
    }


def _message(role: str, content: list[Item], id: str) -> Item:
    return {"id": id, "type": "message", "status": "completed", "role": role, "content": content}


def _parts(
    content: str | Sequence[InputText | OutputText | Refusal], *, of_assistant: bool = False
) -> list[Item]:
    if isinstance(content, str):
        content = [
            OutputText(type="output_text", text=content)
            if of_assistant
            else InputText(type="input_text", text=content)
        ]
    return [_part(part) for part in content]


def _part(part: InputText | OutputText | Refusal) -> Item:
    match part:
        case Refusal():
            return {"type": "refusal", "refusal": part.refusal}
        case OutputText():
            return {"type": "output_text", "text": part.text, "annotations": []}
        case _:
            return {"type": "input_text", "text": part.text}


def check_calls(earlier: Sequence[Item], new: Sequence[Item]) -> None:
    """Raises BadRequest for an output whose call is nowhere before it, and for a call without an
    output (but for one that was cut off)."""
    called: set[str] = set()
    waiting: set[str] = set()
    for index, item in enumerate((*earlier, *new), start=-len(earlier)):
        if item["type"] == "function_call":
            called.add(item["call_id"])
            if item["status"] == "completed":
                waiting.add(item["call_id"])
        elif item["type"] == "function_call_output":
            if item["call_id"] not in called:
                raise BadRequest(
                    "No tool call found for this function call output.",
                    param=f"input[{index}].call_id",
                )
            waiting.discard(item["call_id"])
    for call_id in sorted(waiting):
        raise BadRequest(f"No tool output found for function call {call_id[:256]}.", param="input")


def chat_messages(instructions: str | None, items: Iterable[Item]) -> list[Message]:
    """The conversation as `ChatFormat.render_chat` takes it.

    Reasoning, a message and calls that follow each other are one message of the assistant's.
    """
    messages: list[Message] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    turn = _Turn()
    for item in items:
        if _is_assistants(item):
            if not turn.takes(item):
                messages += turn.message()
                turn = _Turn()
            turn.add(item)
            continue
        messages += turn.message()
        turn = _Turn()
        if item["type"] == "function_call_output":
            content = text_of(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        else:
            messages.append({"role": item["role"], "content": text_of(item["content"])})
    return messages + turn.message()


def _is_assistants(item: Item) -> bool:
    return item["type"] in ("reasoning", "function_call") or item.get("role") == "assistant"


def text_of(content: str | Sequence[Item]) -> str:
    """Content as one string; parts are joined without a separator."""
    if isinstance(content, str):
        return content
    return "".join(part["refusal" if part["type"] == "refusal" else "text"] for part in content)


class _Turn:
    """Collects one message of the assistant's, in the order in which a model writes it: reasoning,
    text, calls."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def takes(self, item: Item) -> bool:
        match item["type"]:
            case "reasoning":
                return not self._texts and not self._calls
            case "function_call":
                return True
            case _:
                return not self._texts and not self._calls

    def add(self, item: Item) -> None:
        match item["type"]:
            case "reasoning":
                parts = item.get("content") or item.get("summary") or ()
                self._reasoning.append("\n".join(part["text"] for part in parts))
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                self._calls.append(
                    {"id": item["call_id"], "type": "function", "function": function}
                )
            case _:
                self._texts.append(text_of(item["content"]))

    def message(self) -> list[Message]:
        """The message, if there is one."""
        reasoning = "\n".join(text for text in self._reasoning if text)
        if not (reasoning or self._texts or self._calls):
            return []
        message: Message = {"role": "assistant", "content": None}
        if self._texts:
            message["content"] = "".join(self._texts)
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        return [message]

"""Changes of a response's output as server-sent events, under OpenAI's names.

Knows: which events tell of which change, and in what order. Does not know: tokens, the engine, how
events reach the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.choice import ContentLogprob
from gpt_oss_server.api.logprobs import chat_logprobs
from gpt_oss_server.api.responses_items import seal
from gpt_oss_server.api.responses_output import Change, Closed, Grown, Opened, OutputItem

TokenBytes = Callable[[int], bytes]
Fields = dict[str, Any]


class ItemShapes:
    """Items in the shape a client sees them."""

    def __init__(
        self, token_bytes: TokenBytes, *, with_summary: bool = False, with_sealed: bool = False
    ) -> None:
        """`with_summary` and `with_sealed` say what a reasoning item carries beside its content."""
        self._token_bytes = token_bytes
        self._with_sealed = with_sealed
        self.with_summary = with_summary

    def empty(self, item: OutputItem) -> wire.OutputItem:
        """The item before it has any content."""
        match item.kind:
            case "message":
                return wire.Message(id=item.id, status="in_progress", content=[])
            case "reasoning":
                return wire.Reasoning(id=item.id, status="in_progress", summary=(), content=())
            case _:
                return wire.FunctionCall(
                    id=item.id,
                    status="in_progress",
                    call_id=item.call_id,
                    name=item.name,
                    arguments="",
                )

    def whole(self, item: OutputItem) -> wire.OutputItem:
        """The item as it is now."""
        text = item.text
        match item.kind:
            case "message":
                part = wire.OutputText(text, logprobs=self.logprobs(item.logprobs))
                return wire.Message(id=item.id, status=item.status, content=[part])
            case "reasoning":
                return wire.Reasoning(
                    id=item.id,
                    status=item.status,
                    summary=(wire.SummaryText(text),) if self.with_summary else (),
                    content=(wire.ReasoningText(text),),
                    encrypted_content=seal(text) if self._with_sealed else None,
                )
            case _:
                return wire.FunctionCall(
                    id=item.id,
                    status=item.status,
                    call_id=item.call_id,
                    name=item.name,
                    arguments=text,
                )

    def logprobs(self, logprobs: Sequence[ContentLogprob]) -> list[Any]:
        return chat_logprobs(logprobs, self._token_bytes).content if logprobs else []


class EventWriter:
    """Numbers and frames the events of one response."""

    def __init__(self, shapes: ItemShapes) -> None:
        self._shapes = shapes
        self._next = 0

    def of_response(self, name: str, response: wire.Response) -> bytes:
        """`response.<name>`: created, in_progress, completed, incomplete or failed."""
        return self._event(f"response.{name}", {"response": response})

    def of_changes(self, changes: Sequence[Change]) -> bytes:
        """All events of some changes."""
        return b"".join([self._of_change(change) for change in changes])

    def _of_change(self, change: Change) -> bytes:
        match change:
            case Opened(item):
                return self._opened(item)
            case Grown(item, text, logprobs):
                return self._grown(item, text, logprobs)
            case Closed(item):
                return self._closed(item)

    def _opened(self, item: OutputItem) -> bytes:
        added = {"output_index": item.index, "item": self._shapes.empty(item)}
        events = self._event("response.output_item.added", added)
        if item.kind == "message":
            events += self._part("content_part.added", item, wire.OutputText(""))
        elif item.kind == "reasoning":
            events += self._part("content_part.added", item, wire.ReasoningText(""))
            if self._shapes.with_summary:
                events += self._summary("summary_part.added", item, {"part": wire.SummaryText("")})
        return events

    def _grown(self, item: OutputItem, text: str, logprobs: Sequence[ContentLogprob]) -> bytes:
        match item.kind:
            case "message":
                fields: Fields = {"delta": text, "logprobs": self._shapes.logprobs(logprobs)}
                return self._content("output_text.delta", item, fields)
            case "reasoning":
                events = self._content("reasoning_text.delta", item, {"delta": text})
                if self._shapes.with_summary:
                    events += self._summary("summary_text.delta", item, {"delta": text})
                return events
            case _:
                return self._of_item("function_call_arguments.delta", item, {"delta": text})

    def _closed(self, item: OutputItem) -> bytes:
        text, events = item.text, b""
        match item.kind:
            case "message":
                logprobs = self._shapes.logprobs(item.logprobs)
                fields: Fields = {"text": text, "logprobs": logprobs}
                events += self._content("output_text.done", item, fields)
                part = wire.OutputText(text, logprobs=logprobs)
                events += self._part("content_part.done", item, part)
            case "reasoning":
                events += self._content("reasoning_text.done", item, {"text": text})
                events += self._part("content_part.done", item, wire.ReasoningText(text))
                if self._shapes.with_summary:
                    events += self._summary("summary_text.done", item, {"text": text})
                    part_fields = {"part": wire.SummaryText(text)}
                    events += self._summary("summary_part.done", item, part_fields)
            case _:
                done = {"name": item.name, "arguments": text}
                events += self._of_item("function_call_arguments.done", item, done)
        whole = {"output_index": item.index, "item": self._shapes.whole(item)}
        return events + self._event("response.output_item.done", whole)

    def _part(self, name: str, item: OutputItem, part: wire.Part) -> bytes:
        return self._content(name, item, {"part": part})

    def _content(self, name: str, item: OutputItem, fields: Fields) -> bytes:
        return self._of_item(name, item, {"content_index": 0, **fields})

    def _summary(self, name: str, item: OutputItem, fields: Fields) -> bytes:
        return self._of_item(f"reasoning_{name}", item, {"summary_index": 0, **fields})

    def _of_item(self, name: str, item: OutputItem, fields: Fields) -> bytes:
        place = {"item_id": item.id, "output_index": item.index}
        return self._event(f"response.{name}", place | fields)

    def _event(self, name: str, fields: Fields) -> bytes:
        content = {"type": name, "sequence_number": self._next, **fields}
        self._next += 1
        data = msgspec.json.encode(content)
        return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"

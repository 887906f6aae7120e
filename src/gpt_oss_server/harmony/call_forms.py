"""How a model with a chat template of its own writes a function call, read off that template.

Knows: the two forms that are common, and how to ask a template for its own: it renders a
conversation with a call in it. Does not know: tokens, generated output, requests.

    <tool_call>{"name": …, "arguments": {…}}</tool_call>     Hermes, Qwen 2.5 and 3, and others
    {"name": …, "parameters": {…}}                           Llama 3: the whole turn is the call
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gpt_oss_server.errors import BadRequest
from gpt_oss_server.harmony.templates import ChatTemplate

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"

_NAME: Final = "probe_function"
_VALUE: Final = "probe_value"
_ARGUMENTS: Final = {"probe_key": _VALUE}
_USER: Final[dict[str, Any]] = {"role": "user", "content": "hello"}
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}},
    },
}
_CALL: Final[dict[str, Any]] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "probe0001",  # nine letters or digits: some templates insist
            "type": "function",
            "function": {"name": _NAME, "arguments": json.dumps(_ARGUMENTS)},
        }
    ],
}
_SPACE: Final = r"\s{0,32}"
MAX_HEAD_CHARS: Final = 320
"""Of a call before its arguments: a name of 64 characters, keys, and room for white space."""


@dataclass(frozen=True)
class CallForm:
    """One way to write a call.

    Attributes:
        opening: what announces a call; "" where a call is the whole turn.
        closing: what ends it; "" likewise.
        key: the member that holds the arguments.
        head: the template's own text of a call up to its arguments; `head_of` puts a name in.
        tail: the same from behind the arguments to the end.
    """

    opening: str
    closing: str
    key: str
    head: str
    tail: str

    def head_of(self, name: str) -> str:
        return self.head.replace(_NAME, name)

    @property
    def head_pattern(self) -> re.Pattern[str]:
        """From behind the opening to the beginning of the arguments; group 1 is the name."""
        return re.compile("".join(self._head_parts()) + r"(?=\{)")

    @property
    def partial_head_pattern(self) -> re.Pattern[str]:
        """Matches, as a whole, every beginning of what `head_pattern` matches."""
        return _any_beginning(self._head_parts())

    @property
    def tail_pattern(self) -> re.Pattern[str]:
        """From behind the arguments to the end of the call."""
        return re.compile("".join(self._tail_parts()))

    @property
    def partial_tail_pattern(self) -> re.Pattern[str]:
        return _any_beginning(self._tail_parts())

    def _head_parts(self) -> list[str]:
        name_key, arguments_key = _letters('"name"'), _letters(f'"{self.key}"')
        return [
            *(_SPACE, r"\{", _SPACE, *name_key, _SPACE, ":", _SPACE),
            *('"', r"([\w.-]{1,64})", '"', _SPACE, ",", _SPACE),
            *(*arguments_key, _SPACE, ":", _SPACE),
        ]

    def _tail_parts(self) -> list[str]:
        return [_SPACE, r"\}", _SPACE, *_letters(self.closing)]


def call_form(template: ChatTemplate) -> CallForm | None:
    """The form in which a template writes calls; None if it shows no tools or writes calls in a
    way that is not known here."""
    try:
        opened = template.render([_USER], tools=[_TOOL])
        written = template.render([_USER, _CALL], tools=[_TOOL])
    except BadRequest:
        return None
    found = _find_call(written)
    if _NAME not in opened or found is None:
        return None
    start, end, key = found
    before, after = written[:start], written[end:]
    at = written.index(json.dumps("probe_key"), start)
    at = written.rindex("{", start, at)
    _, behind = json.JSONDecoder().raw_decode(written, at)
    inner_head, inner_tail = written[start:at], written[behind:end]
    if before.rstrip().endswith(OPENING) and after.lstrip().startswith(CLOSING):
        start = before.rindex(OPENING)
        end = written.index(CLOSING, end) + len(CLOSING)
        return CallForm(OPENING, CLOSING, key, written[start:at], written[behind:end])
    if before.rstrip() == opened.rstrip():
        return CallForm("", "", key, inner_head, inner_tail)
    return None


def _find_call(written: str) -> tuple[int, int, str] | None:
    """Where the call's JSON stands, and under which key its arguments."""
    value_at = written.find(_VALUE)
    for match in re.finditer(r"\{", written[: max(value_at, 0)]):
        try:
            call, end = json.JSONDecoder().raw_decode(written, match.start())
        except ValueError:
            continue
        if end <= value_at:
            continue
        keys = list(call)
        known = (["name", "arguments"], ["name", "parameters"])
        if keys in known and call["name"] == _NAME and call[keys[1]] == _ARGUMENTS:
            return match.start(), end, keys[1]
        return None
    return None


def _letters(text: str) -> list[str]:
    return [re.escape(letter) for letter in text]


def _any_beginning(parts: Sequence[str]) -> re.Pattern[str]:
    pattern = ""
    for part in reversed(parts):
        pattern = f"(?:{part}{pattern})?"
    return re.compile(pattern)

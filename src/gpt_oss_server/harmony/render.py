"""OpenAI-shaped messages to a harmony prompt, straight to token ids.

Knows: harmony's message framing, what the system and developer messages say, which earlier
reasoning the model sees again. Does not know: the clock (the date is handed in; it changes once a
day, so that prompts keep a common prefix), sampling, HTTP.

Framing goes in as ids and everything else through the tokenizer's plain encoding, so that no text
of a client can open, close or forge a message.

Sources: https://github.com/openai/harmony/blob/main/docs/format.md and the chat template published
with openai/gpt-oss-20b. Where these two differ this follows format.md: a tool call is written as
the model itself writes it (`<|channel|>commentary to=functions.X <|constrain|>json`), tool output
is inserted verbatim (the template quotes it as a JSON string), and content beside tool calls is a
preamble on the commentary channel (the template puts it into analysis). The `name` of a user or an
assistant is written behind the role, as in `user:bob`, by openai-harmony's own renderer
(`src/encoding.rs`, `impl Render<Message>`), which this follows; the template drops it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

from gpt_oss_server.errors import BadRequest
from gpt_oss_server.harmony.specials import HarmonySpecials
from gpt_oss_server.harmony.tokenizer import Tokenizer
from gpt_oss_server.harmony.tools import render_tools

IDENTITY: Final = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF: Final = "2024-06"
REASONING_EFFORTS: Final = ("low", "medium", "high")
DEFAULT_EFFORT: Final = "medium"

_CHANNELS = (
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
_TOOL_CHANNEL = "Calls to these tools must go to the commentary channel: 'functions'."

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]
Part = int | str  # a special token, or text


class HarmonyRenderer:
    """Renders conversations for one vocabulary. Stateless, safe from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._specials = HarmonySpecials.of(tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        *,
        today: date,
        reasoning_effort: str | None = None,
        tools: Tools | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids, ending in `<|start|>assistant`.

        Args:
            messages: OpenAI's shapes; `content` is a string or None. All system and developer
                messages together make up the one developer message, in their order.
            today: the date that the system message states.
            reasoning_effort: low, medium (default) or high.
            tools: OpenAI's function tools.
            response_format: the `name`, `schema` and perhaps `description` of a JSON answer.

        Raises:
            BadRequest: an effort or role that harmony has not, a tool message that answers no
                call, or a `name` that could not be shown.
        """
        framer = _Framer(self._specials)
        framer.message("system", system_text(today, reasoning_effort, has_tools=bool(tools)))
        if developer := developer_text(messages, tools, response_format):
            framer.message("developer", developer)
        framer.conversation(messages)
        framer.add(self._specials.start, "assistant")
        return self._ids(framer.parts)

    def _ids(self, parts: Sequence[Part]) -> list[int]:
        encoded = iter(self._tokenizer.encode_all([p for p in parts if isinstance(p, str)]))
        ids: list[int] = []
        for part in parts:
            if isinstance(part, str):
                ids.extend(next(encoded))
            else:
                ids.append(part)
        return ids


def system_text(today: date, reasoning_effort: str | None, *, has_tools: bool) -> str:
    """What the system message says. Raises BadRequest for an unknown effort."""
    effort = reasoning_effort or DEFAULT_EFFORT
    if effort not in REASONING_EFFORTS:
        raise BadRequest(
            f"reasoning_effort must be one of {', '.join(REASONING_EFFORTS)} for this model",
            param="reasoning_effort",
        )
    meta = f"{IDENTITY}\nKnowledge cutoff: {KNOWLEDGE_CUTOFF}\nCurrent date: {today.isoformat()}"
    channels = f"{_CHANNELS}\n{_TOOL_CHANNEL}" if has_tools else _CHANNELS
    return f"{meta}\n\nReasoning: {effort}\n\n{channels}"


def developer_text(
    messages: Sequence[Message],
    tools: Tools | None,
    response_format: Mapping[str, Any] | None = None,
) -> str:
    """What the developer message says: the client's instructions, the tools and what the answer
    must look like; "" if none of them."""
    instructions = "\n\n".join(
        message["content"]
        for message in messages
        if message.get("role") in ("system", "developer") and message.get("content")
    )
    sections = []
    if instructions:
        sections.append(f"# Instructions\n\n{instructions}")
    if tools:
        sections.append(render_tools(tools))
    if response_format:
        sections.append(_response_format_text(response_format))
    return "\n\n".join(sections)


def _response_format_text(response_format: Mapping[str, Any]) -> str:
    """format.md, "Structured output"."""
    about = response_format.get("description")
    comment = "".join(f"// {line}\n" for line in (about or "").splitlines())
    schema = json.dumps(response_format["schema"], ensure_ascii=False, separators=(",", ":"))
    return f"# Response Formats\n\n## {response_format['name']}\n\n{comment}{schema}"


class _Framer:
    """Collects the parts of one prompt."""

    def __init__(self, specials: HarmonySpecials) -> None:
        self._specials = specials
        self.parts: list[Part] = []

    def add(self, *parts: Part) -> None:
        self.parts.extend(parts)

    def message(
        self, role: str, text: str, channel: str | None = None, name: str | None = None
    ) -> None:
        self._author(role, name)
        if channel is not None:
            self.add(self._specials.channel, channel)
        self.add(self._specials.message, text, self._specials.end)

    def _author(self, role: str, name: str | None) -> None:
        self.add(self._specials.start, role)
        if name:
            self.add(f":{name}")

    def conversation(self, messages: Sequence[Message]) -> None:
        """Everything but instructions, in order."""
        last_final = _last_final(messages)
        names: dict[str, str] = {}  # of the calls so far, by id
        for index, message in enumerate(messages):
            match message.get("role"):
                case "system" | "developer":
                    _check_nameless(message, index)
                case "user":
                    content = message.get("content") or ""
                    self.message("user", content, name=message.get("name"))
                case "assistant":
                    self._assistant(message, keeps_reasoning=index > last_final)
                    for call in message.get("tool_calls") or ():
                        names[call.get("id") or ""] = call["function"]["name"]
                case "tool":
                    name = _tool_name(message, names, index)
                    output = message.get("content") or ""
                    self.message(f"functions.{name} to=assistant", output, "commentary")
                case role:
                    raise BadRequest(f"unknown role {role!r}", param=f"messages[{index}].role")

    def _assistant(self, message: Message, *, keeps_reasoning: bool) -> None:
        content = message.get("content")
        name = message.get("name")
        calls = message.get("tool_calls") or ()
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if reasoning and keeps_reasoning:
            self.message("assistant", reasoning, "analysis", name)
        if calls:
            if content:
                self.message("assistant", content, "commentary", name)
            for call in calls:
                self._call(call["function"], name)
        elif content or not reasoning:
            self.message("assistant", content or "", "final", name)

    def _call(self, function: Mapping[str, Any], name: str | None) -> None:
        specials = self._specials
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._author("assistant", name)
        self.add(specials.channel)
        self.add(f"commentary to=functions.{function['name']} ", specials.constrain, "json")
        self.add(specials.message, arguments, specials.call)


def _last_final(messages: Sequence[Message]) -> int:
    """Index of the last assistant message with a final answer: reasoning up to there is dropped.

    format.md: "drop any previous CoT content on subsequent sampling if the responses by the
    assistant ended in a message to the final channel"; the reasoning that led to tool calls still
    under way is passed back in.
    """
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if (
            message.get("role") == "assistant"
            and not message.get("tool_calls")
            and message.get("content")
        ):
            return index
    return -1


def _check_nameless(message: Message, index: int) -> None:
    if message.get("name"):
        raise BadRequest(
            "this model sees all instructions as one message without an author's name",
            param=f"messages[{index}].name",
        )


def _tool_name(message: Message, names: Mapping[str, str], index: int) -> str:
    call_id = message.get("tool_call_id") or ""
    name = names.get(call_id) or message.get("name")
    if not name:
        raise BadRequest(
            f"no earlier assistant message has a tool call with id {call_id!r}",
            param=f"messages[{index}].tool_call_id",
        )
    if message.get("name") not in (None, name):
        raise BadRequest(
            "this is not the name of the function that was called", param=f"messages[{index}].name"
        )
    return str(name)

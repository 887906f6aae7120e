"""A choice's calls: what its client is told, however the tokens came."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.choice import ChoiceText
from gpt_oss_server.api.tool_calls import (
    CallDelta,
    CallsOfChoice,
    ToolCall,
    collect,
    joined,
    new_call_id,
)
from gpt_oss_server.types import TokenDelta, TokenLogprob
from tool_models import harmony, harmony_ids

ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
NEXT = "<|start|>assistant"


def call_text(name: str, arguments: str) -> str:
    head = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{head}{arguments}<|call|>"


def choice_of(*, parallel: bool = True, stops: list[str] | None = None) -> ChoiceText:
    ids = itertools.count()
    calls = CallsOfChoice(parallel=parallel, new_id=lambda: f"id{next(ids)}")
    return ChoiceText(harmony().chat_parser(tools=True), stops or [], calls=calls)


def deltas(ids: list[int], sizes: list[int], finish: Any) -> list[TokenDelta]:
    """The tokens cut into deltas of these sizes, the rest as the last one."""
    parts, rest = [], ids
    for size in sizes:
        parts.append(TokenDelta(tuple(rest[:size])))
        rest = rest[size:]
    return [*parts, TokenDelta(tuple(rest), finish=finish)]


def told(choice: ChoiceText, parts: list[TokenDelta]) -> tuple[str, str, list[ToolCall]]:
    """Content, reasoning and whole calls."""
    content, reasoning, calls = "", "", list[ToolCall]()
    for part in parts:
        text = choice.feed(part)
        content += text.content
        reasoning += text.reasoning
        collect(calls, joined(text.calls))
    return content, reasoning, calls


CASES: list[tuple[str, Any, dict[str, Any], str, list[ToolCall], str]] = [
    (
        ANALYSIS + call_text("f", '{"a": 1}'),
        "stop",
        {},
        "",
        [ToolCall("id0", "f", '{"a": 1}')],
        "tool_calls",
    ),
    (
        call_text("f", "{}") + NEXT + call_text("f", '{"b":"é"}'),
        "stop",
        {},
        "",
        [ToolCall("id0", "f", "{}"), ToolCall("id1", "f", '{"b":"é"}')],
        "tool_calls",
    ),
    (
        call_text("f", "{}") + NEXT + call_text("g", "{}"),
        "stop",
        {"parallel": False},
        "",
        [ToolCall("id0", "f", "{}")],
        "tool_calls",
    ),
    (call_text("f", ""), "stop", {}, "", [ToolCall("id0", "f", "{}")], "tool_calls"),
    (
        call_text("f", "") + NEXT + call_text("g", "[]"),
        "stop",
        {},
        "",
        [ToolCall("id0", "f", "{}"), ToolCall("id1", "g", "[]")],
        "tool_calls",
    ),
    (
        call_text("f", '{"a": "some')[:-8],
        "length",
        {},
        "",
        [ToolCall("id0", "f", '{"a": "some')],
        "length",
    ),
    (call_text("f", "")[:-8], "length", {}, "", [ToolCall("id0", "f", "")], "length"),
    (call_text("a.b", '{"x": 1}'), "stop", {}, '{"x": 1}', [], "stop"),
    (
        "<|channel|>commentary<|message|>I look.<|end|>" + NEXT + call_text("f", '{"s": "look"}'),
        "stop",
        {"stops": ["STOP"]},
        "I look.",
        [ToolCall("id0", "f", '{"s": "look"}')],
        "tool_calls",
    ),
    (
        "<|channel|>commentary<|message|>I look.<|end|>" + NEXT + call_text("f", "{}"),
        "stop",
        {"stops": ["look"]},
        "I ",
        [],
        "stop",
    ),
    (
        call_text("f", '{"s": "STOP"}'),
        "stop",
        {"stops": ["STOP"]},
        "",
        [ToolCall("id0", "f", '{"s": "STOP"}')],
        "tool_calls",
    ),
    ("<|channel|>final<|message|>Done.<|return|>", "stop", {}, "Done.", [], "stop"),
]


@pytest.mark.parametrize(("text", "end", "options", "content", "calls", "finish"), CASES)
@given(sizes=st.lists(st.integers(0, 5), max_size=20))
def test_batching_does_not_matter(
    text: str,
    end: Any,
    options: dict[str, Any],
    content: str,
    calls: list[ToolCall],
    finish: str,
    sizes: list[int],
) -> None:
    """The same content, calls and finish reason, however the tokens are batched."""
    choice = choice_of(**options)
    shown, _, made = told(choice, deltas(harmony_ids(text), sizes, end))
    assert (shown, made, choice.finish) == (content, calls, finish)


def test_deltas_in_order() -> None:
    """A call opens with id and name and no arguments; then come pieces as they are written."""
    choice = choice_of()
    ids = harmony_ids(call_text("f", '{"a": 1}'))
    found = [delta for token in ids for delta in choice.feed(TokenDelta((token,))).calls]
    assert found[0] == CallDelta(0, "", "id0", "f")
    assert {(d.index, d.id, d.name) for d in found[1:]} == {(0, None, None)}
    assert "".join(d.arguments for d in found[1:]) == '{"a": 1}'
    assert all(d.arguments for d in found[1:])
    assert len(found) > 3


def test_joined_deltas() -> None:
    """Neighbouring arguments become one delta; an opening and another call stay apart."""
    parts = [CallDelta(0, "", "a", "f"), CallDelta(0, "{"), CallDelta(0, "}")]
    parts += [CallDelta(1, "", "b", "g"), CallDelta(1, "x")]
    assert joined(parts) == [parts[0], CallDelta(0, "{}"), parts[3], parts[4]]
    assert joined([]) == []


def test_without_tools_a_call_is_not_shown() -> None:
    """No client could act on it; its tokens count."""
    ids = harmony_ids(call_text("f", "{}"))
    choice = ChoiceText(harmony().chat_parser(), [])
    assert told(choice, deltas(ids, [], "stop")) == ("", "", [])
    assert choice.finish == "stop"
    assert choice.completion_tokens == len(ids)


def test_reasoning_before_a_call_counts_as_such() -> None:
    """Its text and its tokens."""
    choice = choice_of()
    _, reasoning, _ = told(choice, deltas(harmony_ids(CASES[0][0]), [], "stop"))
    assert reasoning == "Hm."
    assert choice.reasoning_tokens == len(harmony_ids("Hm."))


def test_calls_have_no_logprobs() -> None:
    """As with OpenAI, logprobs are those of content."""
    choice = choice_of()
    text = "<|channel|>commentary<|message|>Oh<|end|>" + NEXT + call_text("f", '{"a": 1}')
    ids = harmony_ids(text)
    part = TokenDelta(tuple(ids), tuple(TokenLogprob(i, -1.0) for i in ids), "stop")
    found = choice.feed(part).logprobs
    assert [item.logprob.token_id for item in found] == harmony_ids("Oh")


def test_ids() -> None:
    """As OpenAI writes them, each another."""
    made = {new_call_id() for _ in range(100)}
    assert len(made) == 100
    assert {(name[:5], len(name)) for name in made} == {("call_", 29)}


@pytest.mark.parametrize(
    ("recipient", "taken"),
    [("get_weather", True), ("a-1", True), ("", False), ("a.b", False), ("x" * 65, False)],
)
def test_names_that_can_be_sent_back(recipient: str, taken: bool) -> None:
    """A call is told only where a later request may repeat its name."""
    parser = harmony().chat_parser(tools=True)
    pieces = [parser.feed(token) for token in harmony_ids(call_text(recipient, "{}"))]
    assert any(map(CallsOfChoice.takes, pieces)) is taken

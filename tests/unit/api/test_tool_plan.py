"""What a request's tools come to: what is shown, what is guided, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_oss_server.api.parsing import parse
from gpt_oss_server.api.schema_chat import ChatRequest
from gpt_oss_server.api.tools import TurnPlan, plan_turn
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import GrammarText, GuidedSpec
from tool_models import HERMES, LLAMA, chat_format_of, function, harmony, template_folder

USER = {"role": "user", "content": "hi"}
TOOLS = [function("a"), function("b"), function("c", strict=True)]
FREE = TOOLS[:2]
JSON_OBJECT = {"type": "json_object"}


def plan(chat_format: ChatFormat, **fields: Any) -> TurnPlan:
    body = json.dumps({"model": "m", "messages": [USER], **fields})
    return plan_turn(chat_format, parse(ChatRequest, body.encode()))


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def shown(turn: TurnPlan) -> list[str]:
    return [tool["function"]["name"] for tool in turn.shown or ()]


def called(spec: GuidedSpec | None) -> list[tuple[str, str, bool]]:
    """Kind, parameter and leniency of the grammars that a guide's states are of, in order."""
    assert spec is not None
    used = [spec.grammars[s.grammar] for s in spec.states if isinstance(s, GrammarText)]
    return [(grammar.kind, grammar.param, grammar.lenient) for grammar in used]


def parameters(index: int) -> str:
    return f"tools[{index}].function.parameters"


def test_no_tools() -> None:
    """Nothing shown, nothing looked for; a format of the answer is guided as ever."""
    assert plan(harmony()) == TurnPlan()
    assert plan(harmony(), tools=TOOLS, tool_choice="none") == TurnPlan()
    turn = plan(harmony(), response_format=JSON_OBJECT)
    assert called(turn.guide) == [("json_object", "response_format", False)]
    assert not turn.offered


def test_free_calls_are_not_guided() -> None:
    """`auto` with nothing strict leaves the model to itself; `strict` is not shown to it."""
    turn = plan(harmony(), tools=FREE)
    assert (turn.guide, turn.offered, turn.parallel) == (None, True, True)
    assert shown(turn) == ["a", "b"]
    assert (turn.shown or [])[0] == FREE[0]
    bare = {"type": "function", "function": {"name": "x", "strict": False}}
    assert plan(harmony(), tools=[bare]).shown == [
        {
            "type": "function",
            "function": {"name": "x", "parameters": {"type": "object", "properties": {}}},
        }
    ]


def test_a_strict_function_guides_all() -> None:
    """Its arguments are enforced to the letter, the others' as far as can be."""
    turn = plan(harmony(), tools=TOOLS)
    assert called(turn.guide) == [
        ("json_schema", parameters(0), True),
        ("json_schema", parameters(1), True),
        ("json_schema", parameters(2), False),
    ]


@pytest.mark.parametrize(
    ("choice", "indices"),
    [
        ("required", [0, 1, 2]),
        (named("b"), [1]),
        (allowed("required", "c", "a"), [0, 2]),
        (allowed("auto", "b"), [1]),
    ],
)
def test_a_choice_is_guided_and_all_tools_are_shown(choice: Any, indices: list[int]) -> None:
    """Only the functions chosen can be called; the prompt, and so its cached prefix, stays."""
    turn = plan(harmony(), tools=TOOLS, tool_choice=choice)
    assert [param for _, param, _ in called(turn.guide)] == [parameters(i) for i in indices]
    assert shown(turn) == ["a", "b", "c"]


def test_required_calls_leave_no_answer() -> None:
    """With `required`, no answer may come in place of a call; with `auto` it may."""
    for choice, answers in (("required", 0), ("auto", 1)):
        turn = plan(harmony(), tools=FREE, tool_choice=choice, response_format=JSON_OBJECT)
        assert [param for _, param, _ in called(turn.guide)] == [
            *map(parameters, (0, 1)),
            *["response_format"] * answers,
        ]


def test_one_call_at_most() -> None:
    """`parallel_tool_calls` false is told to those who follow the output."""
    assert not plan(harmony(), tools=FREE, parallel_tool_calls=False).parallel


def test_what_a_template_cannot_hold_its_model_to(tmp_path: Path) -> None:
    """Llama's form can be forced; beside an answer it cannot be held to a schema: a 400."""
    llama = chat_format_of(template_folder(tmp_path / "llama", LLAMA))
    assert called(plan(llama, tools=TOOLS, tool_choice=named("c")).guide) == [
        ("json_schema", parameters(2), False)
    ]
    with pytest.raises(BadRequest) as strict:
        plan(llama, tools=TOOLS)
    assert strict.value.param == "tools[2].function.strict"
    with pytest.raises(BadRequest) as both:
        plan(llama, tools=FREE, response_format=JSON_OBJECT)
    assert both.value.param == "response_format"
    turn = plan(llama, tools=FREE, tool_choice=allowed("auto", "b"))
    assert (turn.guide, shown(turn)) == (None, ["b"])


def test_a_template_that_is_guided(tmp_path: Path) -> None:
    """Where an opening is one token, strict calls are guided beside free answers."""
    hermes = chat_format_of(template_folder(tmp_path / "hermes", HERMES, marks=True))
    turn = plan(hermes, tools=TOOLS, parallel_tool_calls=False)
    assert [param for _, param, _ in called(turn.guide)] == [parameters(i) for i in range(3)]


def test_a_model_that_cannot_be_made_to_call(tmp_path: Path) -> None:
    """A template without tools: forced calls name the choice, others the tools."""
    plain = chat_format_of(template_folder(tmp_path / "plain", "{{ messages[0].content }}"))
    with pytest.raises(BadRequest) as refused:
        plan(plain, tools=FREE, tool_choice="required")
    assert refused.value.param == "tool_choice"

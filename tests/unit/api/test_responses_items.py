"""Items of a conversation, as they are stored and as a model sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.parsing import parse
from gpt_oss_server.api.responses_items import (
    Item,
    chat_messages,
    check_calls,
    input_items,
    seal,
    unseal,
)
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.errors import BadRequest


def items(*given: dict[str, Any]) -> list[Item]:
    """What a request's items become."""
    if not given:
        return []
    body = json.dumps({"model": "m", "input": given}).encode()
    return input_items(parse(ResponsesRequest, body).input)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}


def call(id: str, status: str | None = None) -> dict[str, Any]:
    made = {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}
    return made | ({"status": status} if status else {})


def output(id: str, text: str = "ok") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": text}


def shown(*given: dict[str, Any]) -> list[Any]:
    """The messages, each as (role, reasoning, content, ids of calls)."""
    return [
        (
            message["role"],
            message.get("reasoning_content"),
            message["content"],
            [made["id"] for made in message.get("tool_calls", ())],
        )
        for message in chat_messages(None, items(*given))
    ]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        pytest.param([user("a")], [("user", None, "a", [])], id="one message"),
        pytest.param(
            [user("a"), thought("t"), said("b")],
            [("user", None, "a", []), ("assistant", "t", "b", [])],
            id="reasoning belongs to what follows",
        ),
        pytest.param(
            [thought("t"), said("p"), call("1"), call("2"), output("1"), output("2")],
            [
                ("assistant", "t", "p", ["1", "2"]),
                ("tool", None, "ok", []),
                ("tool", None, "ok", []),
            ],
            id="reasoning, preamble and calls are one turn",
        ),
        pytest.param(
            [call("1"), output("1"), thought("t"), call("2"), output("2")],
            [
                ("assistant", None, None, ["1"]),
                ("tool", None, "ok", []),
                ("assistant", "t", None, ["2"]),
                ("tool", None, "ok", []),
            ],
            id="an output ends a turn",
        ),
        pytest.param(
            [said("a"), said("b")],
            [("assistant", None, "a", []), ("assistant", None, "b", [])],
            id="two messages are two turns",
        ),
        pytest.param(
            [thought("s"), thought("t"), said("a")],
            [("assistant", "s\nt", "a", [])],
            id="two thoughts",
        ),
        pytest.param(
            [thought("t")], [("assistant", "t", None, [])], id="reasoning that led to nothing"
        ),
        pytest.param(
            [call("1"), thought("t"), said("a"), output("1")],
            [
                ("assistant", None, None, ["1"]),
                ("assistant", "t", "a", []),
                ("tool", None, "ok", []),
            ],
            id="reasoning after a call begins a turn",
        ),
    ],
)
def test_turns(given: list[dict[str, Any]], messages: list[Any]) -> None:
    """What an assistant said in one go is one message."""
    assert shown(*given) == messages


def test_instructions_come_first() -> None:
    """As a system message."""
    assert chat_messages("Be brief.", items(user("a"))) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
    ]


def test_every_stored_item_has_an_id_and_its_type() -> None:
    """Ids that the client gave are kept; easy forms become full ones."""
    found = items(
        {"type": "message", "id": "msg_mine", **user("a")}, said("b"), call("1"), output("1")
    )
    assert found[0]["id"] == "msg_mine"
    assert found[0]["content"] == [{"type": "input_text", "text": "a"}]
    assert found[1]["content"] == [{"type": "output_text", "text": "b", "annotations": []}]
    assert [item["id"].partition("_")[0] for item in found] == ["msg", "msg", "fc", "fco"]
    assert len({item["id"] for item in found}) == 4


@given(st.text())
def test_sealed_reasoning_comes_back(text: str) -> None:
    """Whatever it says."""
    assert (
        unseal(seal(text.encode("utf-8", "replace").decode()))
        == text.encode("utf-8", "replace").decode()
    )


@given(st.text() | st.text(alphabet="AZaz09+/=-_").map("gors1.".__add__))
def test_foreign_seals_do_no_harm(text: str) -> None:
    """What was not sealed here is None or some text, never an error."""
    assert unseal(text) is None or isinstance(unseal(text), str)


def test_reasoning_of_others() -> None:
    """What another server encrypted is refused by name, unless its summary can stand for it."""
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    with pytest.raises(BadRequest) as caught:
        items(user("a"), foreign)
    assert caught.value.param == "input[1].encrypted_content"
    foreign["summary"] = [{"type": "summary_text", "text": "sum"}]
    assert shown(foreign, said("a")) == [("assistant", "sum", "a", [])]


@pytest.mark.parametrize(
    ("before", "new", "param"),
    [
        ([], [output("1")], "input[0].call_id"),
        ([], [output("1"), call("1")], "input[0].call_id"),
        ([call("2")], [output("2"), output("1")], "input[1].call_id"),
        ([call("1")], [user("a")], "input"),
        ([], [call("1"), user("a")], "input"),
    ],
)
def test_calls_and_outputs_belong_together(
    before: list[dict[str, Any]], new: list[dict[str, Any]], param: str
) -> None:
    """An output without its call, and a call without its output, are refused."""
    with pytest.raises(BadRequest) as caught:
        check_calls(items(*before), items(*new))
    assert caught.value.param == param


def test_calls_that_are_answered_pass() -> None:
    """In this request or the one before; a call that was cut off needs no output."""
    check_calls(items(call("1")), items(output("1"), call("2"), output("2")))
    cut = items(call("3"))
    cut[0]["status"] = "incomplete"
    check_calls(cut, items(user("a")))

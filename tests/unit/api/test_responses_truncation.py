"""`truncation: auto`: as much of the end as fits, and nothing that makes no sense alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.responses_truncation import render_fitting, room_for_prompt

Message = dict[str, Any]


def message(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def render(messages: Sequence[Message]) -> list[int]:
    """A token per character, one per message."""
    return list("".join(f"|{m['content']}" for m in messages).encode())


def fewest(messages: Sequence[Message]) -> int:
    return len(messages)


def kept(messages: list[Message], room_tokens: int) -> str:
    return bytes(render_fitting(messages, render, fewest, room_tokens)).decode()


CONVERSATION = [
    message("system", "S"),
    message("user", "u1"),
    message("assistant", "a1", tool_calls=[{"id": "c1"}]),
    message("tool", "t1", tool_call_id="c1"),
    message("developer", "D"),
    message("user", "u2"),
]


@pytest.mark.parametrize(
    ("room_tokens", "shown"),
    [
        (100, "|S|u1|a1|t1|D|u2"),
        (16, "|S|u1|a1|t1|D|u2"),
        (15, "|S|a1|t1|D|u2"),
        (13, "|S|a1|t1|D|u2"),
        (12, "|S|D|u2"),
        (7, "|S|D|u2"),
        (6, "|S|D|u2"),  # too long, for the caller to refuse
    ],
)
def test_the_beginning_goes(room_tokens: int, shown: str) -> None:
    """Instructions stay; a tool's output goes with its call."""
    assert kept(CONVERSATION, room_tokens) == shown


def test_nothing_but_instructions() -> None:
    """There is nothing to drop."""
    assert kept([message("system", "long")], 2) == "|long"


@given(st.lists(st.text("ab", max_size=5), min_size=1, max_size=20), st.integers(1, 60))
def test_no_more_goes_than_must(texts: list[str], room_tokens: int) -> None:
    """What is kept is an end of the conversation; one message more would not have had room."""
    messages = [message("user", text) for text in texts]
    shown = kept(messages, room_tokens)
    ends = [bytes(render(messages[cut:])).decode() for cut in range(len(messages))]
    assert shown == next((end for end in ends if len(end) <= room_tokens), ends[-1])


@pytest.mark.parametrize(
    ("context", "bound", "room"),
    [(4096, None, 3072), (1000, None, 750), (1000, 10, 990), (8, 9, 1)],
)
def test_room_for_the_answer(context: int, bound: int | None, room: int) -> None:
    """The bound that the client gave, or a part of the context."""
    assert room_for_prompt(context, bound) == room

"""Who a request comes from: client, priority and session."""

from __future__ import annotations

from typing import Any

import pytest

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.identity import (
    client_of,
    named_session,
    opening_session,
    priority_of,
)
from gpt_oss_server.api.services import UNDECIDED
from gpt_oss_server.errors import BadRequest


async def _never(*_: Any) -> Any:
    raise AssertionError("not used")


def exchange(client: tuple[str, int] | None = ("10.0.0.7", 5), **headers: str) -> Exchange:
    """A request with these headers; `_` in a name stands for `-`."""
    pairs = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    scope = {"method": "POST", "path": "/", "headers": pairs, "client": client}
    return Exchange(scope, _never, _never, UNDECIDED)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("digit", range(10))
def test_priorities(digit: int) -> None:
    """0 to 9, spaces around them allowed."""
    assert priority_of(exchange(x_priority=f" {digit} "), KeyRing()) == digit


def test_the_default_priority() -> None:
    """In the middle."""
    assert priority_of(exchange(), KeyRing()) == 5


def test_a_key_has_a_priority_that_its_requests_may_only_lower() -> None:
    """Its own without a header, less with one; more is a 400 that names the header."""
    keys, own = KeyRing(("sk-a", "sk-b")), (7, 2)
    assert priority_of(exchange(authorization="Bearer sk-a"), keys, own) == 7
    assert priority_of(exchange(authorization="Bearer sk-b"), keys, own) == 2
    assert priority_of(exchange(authorization="Bearer sk-a", x_priority="3"), keys, own) == 3
    with pytest.raises(BadRequest, match="at most 2 with this key") as caught:
        priority_of(exchange(authorization="Bearer sk-b", x_priority="3"), keys, own)
    assert caught.value.param == "X-Priority"


@pytest.mark.parametrize("text", ["", "10", "-1", "5.0", "high", "²", "٣", "5 5", "+5"])
def test_what_is_no_priority_is_refused_by_name(text: str) -> None:
    """400 that names the header and the range."""
    raw = text.encode().decode("latin-1")
    with pytest.raises(BadRequest) as caught:
        priority_of(exchange(x_priority=raw), KeyRing())
    assert caught.value.param == "X-Priority"
    assert caught.value.message == "priority must be a whole number from 0 to 9."


def test_a_client_is_its_key_where_there_are_keys() -> None:
    """By number, never by the key itself; the same whatever the address."""
    keys = KeyRing(("sk-a", "sk-b"))
    assert client_of(exchange(authorization="Bearer sk-b"), keys) == "key-1"
    assert client_of(exchange(("::1", 9), authorization="bearer  sk-a "), keys) == "key-0"


def test_a_client_is_its_address_where_there_are_none() -> None:
    """Without its port: every connection of a client is the same client."""
    assert client_of(exchange(), KeyRing()) == "10.0.0.7"
    assert client_of(exchange(("10.0.0.7", 6)), KeyRing()) == "10.0.0.7"
    assert client_of(exchange(None), KeyRing()) == "local"


def test_a_named_session_wins() -> None:
    """The header before `user`; a user by a hash, never by its text."""
    assert named_session(exchange(x_session_id="chat:7.a@b_c-d"), "me") == "id:chat:7.a@b_c-d"
    by_user = named_session(exchange(), "me")
    assert by_user is not None
    assert by_user.startswith("user:")
    assert "me" not in by_user.removeprefix("user:")
    assert by_user != named_session(exchange(), "you")


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "a/b", "a\tb", "ü"])
def test_what_is_no_session_id_is_refused_by_name(value: str) -> None:
    """400 that names the header."""
    with pytest.raises(BadRequest) as caught:
        named_session(exchange(x_session_id=value), None)
    assert caught.value.param == "X-Session-Id"


def test_every_turn_of_a_conversation_is_the_same_session() -> None:
    """Its beginning up to the first user message; later turns repeat that."""
    opening = [turn("system", "be brief"), turn("user", "hello")]
    first = opening_session(opening)
    later = [*opening, turn("assistant", "hi"), turn("user", "and now?")]
    assert first == opening_session(later)
    assert first.startswith("prefix:")


def test_other_conversations_are_other_sessions() -> None:
    """Another system prompt, another first question, another order."""
    sessions = {
        opening_session(messages)
        for messages in (
            [turn("system", "be brief"), turn("user", "hello")],
            [turn("system", "be long"), turn("user", "hello")],
            [turn("system", "be brief"), turn("user", "bye")],
            [turn("user", "hello")],
            [turn("user", "hello"), turn("user", "x")],
        )
    }
    assert len(sessions) == 4  # the last two begin alike


def test_who_names_no_session_has_none() -> None:
    """A plain completion is not tracked unless it is named."""
    assert named_session(exchange(), None) is None
    assert named_session(exchange(), "") is None

"""Tokens to text: reasoning, stop strings, counts, however the tokens were batched."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.choice import ChoiceText
from gpt_oss_server.api.logprobs import chat_logprobs, completion_logprobs
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.ports import Piece
from gpt_oss_server.types import TokenDelta, TokenLogprob


class Letters:
    """A parser whose token ids are code points; digits reason, `#` is framing, `!` is held back
    until the end, `$` begins a tool call."""

    def __init__(self) -> None:
        self.held = ""

    def feed(self, token_id: int) -> Piece:
        letter = chr(token_id)
        if letter == "!":
            self.held += letter
            return Piece("content", "")
        if letter == "$":
            return Piece("tool_call", "{}", "f")
        if letter == "#":
            return Piece("none")
        return Piece("reasoning" if letter.isdigit() else "content", letter)

    def finish(self) -> list[Piece]:
        return [Piece("content", self.held)] if self.held else []


def deltas(text: str, sizes: list[int], finish: Any = "stop") -> list[TokenDelta]:
    """The text's letters as tokens, cut into deltas of these sizes; the last one finishes."""
    parts: list[TokenDelta] = []
    rest = text
    for size in sizes:
        part, rest = rest[:size], rest[size:]
        if part:
            parts.append(TokenDelta(tuple(map(ord, part))))
    parts.append(TokenDelta(tuple(map(ord, rest)), finish=finish))
    return parts


def run(choice: ChoiceText, parts: list[TokenDelta]) -> tuple[str, str]:
    texts = [choice.feed(part) for part in parts]
    return "".join(t.content for t in texts), "".join(t.reasoning for t in texts)


CASES: list[tuple[str, list[str], tuple[str, str], str, tuple[int, int]]] = [
    ("12ab#", [], ("ab", "12"), "stop", (5, 2)),
    ("ab", [], ("ab", ""), "stop", (2, 0)),
    ("a1bSTOPc", ["STOP"], ("ab", "1"), "stop", (7, 1)),
    ("abST", ["STOP"], ("abST", ""), "stop", (4, 0)),
    ("a$b", [], ("ab", ""), "stop", (3, 0)),
    ("ab!", [], ("ab!", ""), "stop", (3, 0)),
    ("ab!", ["b!"], ("a", ""), "stop", (3, 0)),
]


@pytest.mark.parametrize(("text", "stops", "shown", "finish", "counts"), CASES)
@given(data=st.data())
def test_batching_does_not_matter(
    text: str,
    stops: list[str],
    shown: tuple[str, str],
    finish: str,
    counts: tuple[int, int],
    data: st.DataObject,
) -> None:
    """The text shown and the tokens counted depend on the tokens alone."""
    choice = ChoiceText(Letters(), stops)
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=8))
    assert run(choice, deltas(text, sizes)) == shown
    assert choice.finish == finish
    assert (choice.completion_tokens, choice.reasoning_tokens) == counts


@pytest.mark.parametrize("text", ["abSTc", "abSTOPcSTOP", "STOP", "ab!STO", "SabSTOP", "xy!z!"])
@given(data=st.data())
def test_logprobs_are_those_of_the_text_shown(text: str, data: st.DataObject) -> None:
    """Not a token more than the text, and never before its text, however they were batched."""
    choice = ChoiceText(Letters(), ["STOP"])
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=8))
    shown, tokens = "", ""
    for part in deltas(text, sizes):
        logprobs = tuple(TokenLogprob(token, -1.0) for token in part.token_ids)
        added = choice.feed(TokenDelta(part.token_ids, logprobs, part.finish))
        shown += added.content
        tokens += "".join(chr(item.logprob.token_id) for item in added.logprobs)
        assert len(tokens.replace("!", "")) <= len(shown)
    assert (
        tokens.replace("!", "")
        == shown.replace("!", "")
        == text.partition("STOP")[0].replace("!", "")
    )


def test_a_token_that_is_partly_shown_keeps_its_logprob() -> None:
    """A stop string may begin within a token: what is shown of it was still this token's."""

    class Words(Letters):
        def feed(self, token_id: int) -> Piece:
            return Piece("content", {1: "one ", 2: "and ST", 3: "OP two"}[token_id])

    ids = (1, 2, 3)
    whole = TokenDelta(ids, tuple(TokenLogprob(i, -1.0) for i in ids), "length")
    text = ChoiceText(Words(), ["STOP"]).feed(whole)
    assert text.content == "one and "
    assert [(item.logprob.token_id, item.offset_chars) for item in text.logprobs] == [
        (1, 0),
        (2, 4),
    ]


def test_length_is_told() -> None:
    """A choice cut by its bound says `length`; a stop string at that very place wins."""
    cut = ChoiceText(Letters(), [])
    run(cut, deltas("ab", [], "length"))
    assert cut.finish == "length"
    stopped = ChoiceText(Letters(), ["b"])
    assert run(stopped, deltas("ab", [], "length")) == ("a", "")
    assert stopped.finish == "stop"


def test_silent_stop_token() -> None:
    """The client's stop token counts and is not shown, but only where it ended the choice."""
    choice = ChoiceText(Letters(), [], silent_stop_ids={ord("b")})
    assert run(choice, [TokenDelta((ord("b"),)), *deltas("ab", [])]) == ("ba", "")
    assert choice.completion_tokens == 3


def test_nothing_after_the_end() -> None:
    """Deltas after the finish change nothing."""
    choice = ChoiceText(Letters(), ["b"])
    assert run(choice, [*deltas("ab", []), TokenDelta((ord("x"),))]) == ("a", "")
    assert choice.completion_tokens == 2


def test_cut_short_by_the_server() -> None:
    """A job that the engine cancelled by itself is an error, not a short answer."""
    with pytest.raises(EngineFailed):
        ChoiceText(Letters(), []).feed(TokenDelta((), finish="cancelled"))


def test_empty_delta_says_nothing() -> None:
    """Framing alone gives nothing to send."""
    choice = ChoiceText(Letters(), [])
    assert not choice.feed(TokenDelta((ord("#"),), cached_tokens=7))
    assert choice.cached_tokens == 7


def test_logprobs_of_content_only() -> None:
    """Only content tokens have logprobs, with the offset of their text; infinities are bounded."""
    logprobs = tuple(
        TokenLogprob(ord(letter), logprob, ((ord(letter), logprob), (ord("z"), float("-inf"))))
        for letter, logprob in [("1", -1.0), ("a", -2.0), ("b", float("-inf"))]
    )
    text = ChoiceText(Letters(), []).feed(TokenDelta(tuple(map(ord, "1ab")), logprobs))
    assert [item.offset_chars for item in text.logprobs] == [0, 1]

    def token_bytes(token_id: int) -> bytes:
        return chr(token_id).encode()

    [a, b] = chat_logprobs(text.logprobs, token_bytes).content
    assert (a.token, a.logprob, a.bytes) == ("a", -2.0, [97])
    assert [(top.token, top.logprob) for top in a.top_logprobs] == [("a", -2.0), ("z", -9999.0)]
    assert b.logprob == -9999.0
    columns = completion_logprobs(text.logprobs, token_bytes, wanted=2)
    assert columns.tokens == ["a", "b"]
    assert columns.top_logprobs == [{"a": -2.0, "z": -9999.0}, {"b": -9999.0, "z": -9999.0}]
    assert completion_logprobs(text.logprobs, token_bytes, wanted=0).top_logprobs is None

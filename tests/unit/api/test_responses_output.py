"""Tokens to output items: order, ends, and that batching does not matter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.responses_output import Closed, Grown, Opened, ResponseOutput
from gpt_oss_server.api.tool_calls import CallsOfChoice
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.ports import Piece
from gpt_oss_server.types import FinishReason, TokenDelta, TokenLogprob


def reasoning(text: str) -> Piece:
    return Piece("reasoning", text)


def content(text: str) -> Piece:
    return Piece("content", text)


def call(text: str, index: int = 0, name: str = "f") -> Piece:
    return Piece("tool_call", text, name, index)


class Scripted:
    """A parser for which token i is piece i."""

    def __init__(self, pieces: Sequence[Piece], rest: Sequence[Piece] = ()) -> None:
        self._pieces = pieces
        self._rest = list(rest)

    def feed(self, token_id: int) -> Piece:
        return self._pieces[token_id]

    def finish(self) -> list[Piece]:
        return self._rest


def output_of(
    pieces: Sequence[Piece],
    *,
    tools: bool = True,
    parallel: bool = True,
    rest: Sequence[Piece] = (),
) -> ResponseOutput:
    numbers = itertools.count(1)
    calls = CallsOfChoice(parallel=parallel, new_id=lambda: f"call_{next(numbers)}")
    ids = itertools.count()
    return ResponseOutput(
        Scripted(pieces, rest), calls if tools else None, make_id=lambda p: f"{p}_{next(ids)}"
    )


def fed(
    output: ResponseOutput, count: int, cuts: Sequence[int] = (), finish: FinishReason = "stop"
) -> list[str]:
    """Feed so many tokens, cut into deltas behind these; what changes, texts joined."""
    ends = [*sorted({cut for cut in cuts if 0 < cut < count}), count]
    told: list[list[str]] = []
    for begin, end in itertools.pairwise([0, *ends]):
        delta = TokenDelta(tuple(range(begin, end)), finish=finish if end == count else None)
        for change in output.feed(delta):
            match change:
                case Opened(item):
                    told.append(["open", item.kind, item.name])
                case Grown(_, text):
                    if told[-1][0] == "text":
                        told[-1][1] += text
                    else:
                        told.append(["text", text])
                case Closed(item):
                    told.append(["close", item.status])
    return [" ".join(filter(None, entry)) for entry in told]


def test_items_in_order() -> None:
    """Reasoning, a preamble, two calls; each opens, grows and closes before the next."""
    pieces = [
        *(Piece("none"), reasoning("r1"), reasoning("r2"), Piece("none"), content("pre")),
        *(call(""), call('{"a"'), call(":1}"), call("", 1, "g"), Piece("none")),
    ]
    output = output_of(pieces)
    assert fed(output, len(pieces)) == [
        "open reasoning",
        "text r1r2",
        "close completed",
        "open message",
        "text pre",
        "close completed",
        "open function_call f",
        'text {"a":1}',
        "close completed",
        "open function_call g",
        "text {}",
        "close completed",
    ]
    assert [item.id for item in output.items] == ["rs_0", "msg_1", "fc_2", "fc_3"]
    assert [item.call_id for item in output.items] == ["", "", "call_1", "call_2"]
    assert output.finish == "tool_calls"
    assert (output.completion_tokens, output.reasoning_tokens) == (10, 2)


@pytest.mark.parametrize(
    ("tools", "parallel", "told"),
    [
        (False, True, ["open message", "text ab", "close completed"]),
        (
            True,
            False,
            [
                *("open message", "text a", "close completed"),
                *("open function_call f", "text {}", "close completed"),
            ],
        ),
    ],
)
def test_calls_that_are_not_wanted(tools: bool, parallel: bool, told: list[str]) -> None:
    """Where none are offered a call is not shown; where one is allowed a second ends the turn."""
    pieces = [content("a"), call("{}"), call("{}", 1), content("b")]
    assert fed(output_of(pieces, tools=tools, parallel=parallel), 4) == told


def test_a_name_that_no_function_can_have() -> None:
    """Its text is the answer's: nothing is lost."""
    output = output_of([call("", 0, "a b"), call("text", 0, "a b")])
    assert fed(output, 2) == ["open message", "text text", "close completed"]
    assert output.finish == "stop"


def test_cut_off() -> None:
    """The item under way is incomplete, and gets no arguments made up for it."""
    output = output_of([reasoning("r"), call("")])
    assert fed(output, 2, finish="length") == [
        "open reasoning",
        "text r",
        "close completed",
        "open function_call f",
        "close incomplete",
    ]
    assert output.finish == "length"


def test_what_the_parser_held_back() -> None:
    """Comes before the end."""
    output = output_of([content("a")], rest=[content("�")])
    assert fed(output, 1) == ["open message", "text a�", "close completed"]


def test_nothing_after_the_end() -> None:
    """A finished output takes no more."""
    output = output_of([content("a"), content("b")])
    output.feed(TokenDelta((0,), finish="stop"))
    assert output.feed(TokenDelta((1,), finish="stop")) == []
    assert output.completion_tokens == 1


def test_a_job_that_was_cut_short_is_an_error() -> None:
    """`cancelled` is no end that a client could be told."""
    with pytest.raises(EngineFailed):
        output_of([content("a")]).feed(TokenDelta((0,), finish="cancelled"))


def test_logprobs_are_the_contents() -> None:
    """Only content has logprobs, a token with half a character too."""
    output = output_of([reasoning("r"), content(""), content("é")])
    logprobs = tuple(TokenLogprob(token, -0.5) for token in range(3))
    output.feed(TokenDelta((0, 1, 2), logprobs, "stop", cached_tokens=7))
    assert [entry.logprob.token_id for entry in output.items[1].logprobs] == [1, 2]
    assert output.items[1].text == "é"
    assert output.cached_tokens == 7


PIECES = st.lists(
    st.one_of(
        st.builds(reasoning, st.text(max_size=2)),
        st.builds(content, st.text(max_size=2)),
        st.builds(call, st.sampled_from(["", "{", "}"]), st.integers(0, 2)),
        st.just(Piece("none")),
    ),
    min_size=1,
    max_size=12,
)


@given(PIECES, st.lists(st.integers(0, 12)), st.booleans(), st.booleans())
def test_batching_does_not_matter(
    pieces: list[Piece], cuts: list[int], tools: bool, parallel: bool
) -> None:
    """However tokens come, the same is told, and every item that opens closes before the next."""
    whole = fed(output_of(pieces, tools=tools, parallel=parallel), len(pieces))
    assert fed(output_of(pieces, tools=tools, parallel=parallel), len(pieces), cuts) == whole
    states = [entry.split()[0] for entry in whole if not entry.startswith("text")]
    assert states == ["open", "close"] * (len(states) // 2)

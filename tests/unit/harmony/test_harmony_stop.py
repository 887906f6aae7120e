"""Stop strings over streamed text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.harmony.stop import StopStrings


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rule, applied to the whole text: the first completed stop, then the longest."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_any_chunking_equals_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    """Emitted text, the match, and silence after it do not depend on the pieces."""
    operator = StopStrings(stops)
    emitted, was_stopped = "", False
    for piece in pieces:
        text, stopped = operator.feed(piece)
        assert not (was_stopped and text)
        emitted += text
        was_stopped = stopped
    emitted += operator.flush()
    assert (emitted, operator.matched) == naive("".join(pieces), stops)
    assert was_stopped == (operator.matched is not None)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=5), max_size=4))
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    """After each character, what waits is the longest tail that may still become a stop."""
    operator = StopStrings(stops)
    shown = ""
    for count, char in enumerate(text, start=1):
        out, stopped = operator.feed(char)
        shown += out
        if stopped:
            return
        seen = text[:count]
        tails = [seen[i:] for i in range(count) if any(s.startswith(seen[i:]) for s in stops)]
        assert shown == seen.removesuffix(max(tails, key=len, default=""))


@pytest.mark.parametrize(
    ("stops", "pieces", "expected", "matched"),
    [
        (["END"], ["abE", "ND more"], ["ab", ""], "END"),
        (["END"], ["abE", "NO"], ["ab", "ENO"], None),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], "\n\n"),
        (["abcd", "bc"], ["abcd"], ["a"], "bc"),  # completed first, whatever began first
        (["bc", "abc"], ["xabc"], ["x"], "abc"),  # completed together: began first
        (["aab"], ["aa", "ab"], ["", "a"], "aab"),
        (["😀!"], ["hi 😀", "!"], ["hi ", ""], "😀!"),
        ([], ["any", "thing"], ["any", "thing"], None),
    ],
)
def test_cases(
    stops: list[str], pieces: list[str], expected: list[str], matched: str | None
) -> None:
    """What each piece lets through."""
    operator = StopStrings(stops)
    assert [operator.feed(piece)[0] for piece in pieces] == expected
    assert operator.matched == matched


def test_flush_gives_back_what_never_became_a_stop() -> None:
    """Text that only looked like a stop is not lost, and comes once."""
    operator = StopStrings(["STOP"])
    assert operator.feed("a ST") == ("a ", False)
    assert operator.flush() == "ST"
    assert operator.flush() == ""


def test_nothing_follows_a_stop() -> None:
    """Once stopped, more text shows nothing and stays stopped."""
    operator = StopStrings(["."])
    assert operator.feed("a.b") == ("a", True)
    assert operator.feed("c") == ("", True)
    assert operator.flush() == ""


def test_empty_stop_string_is_refused() -> None:
    """An empty string would stop everything at once."""
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])

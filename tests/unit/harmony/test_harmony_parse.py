"""Generated tokens to pieces: the published format, and every way to break it."""

from __future__ import annotations

import re

import pytest
from harmony_vocabularies import TINY, llama2_like
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.harmony.header import (
    Destination,
    could_be_header,
    destination,
    is_framing,
)
from gpt_oss_server.harmony.parse import HarmonyParser, TextParser
from gpt_oss_server.harmony.specials import HarmonySpecials
from gpt_oss_server.harmony.tokenizer import Tokenizer
from gpt_oss_server.ports import Piece

TOKENIZER = Tokenizer.from_folder(TINY)
SPECIALS = HarmonySpecials.of(TOKENIZER)

Row = tuple[str, str] | tuple[str, str, str, int]


def ids_of(text: str) -> list[int]:
    """Text with specials spelled out, to ids with specials as such."""
    known = TOKENIZER.specials()
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", text):
        ids += [known[part]] if part in known else TOKENIZER.encode(part)
    return ids


def pieces_of(ids: list[int]) -> list[Piece]:
    parser = HarmonyParser(TOKENIZER, SPECIALS)
    return [*(parser.feed(i) for i in ids), *parser.finish()]


def rows(pieces: list[Piece]) -> list[Row]:
    """Neighbouring pieces of one destination joined; framing left out."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if piece.kind == "none":
            assert piece == Piece("none")
        elif last and (last.kind, last.recipient, last.index) == (
            piece.kind,
            piece.recipient,
            piece.index,
        ):
            joined[-1] = Piece(last.kind, last.text + piece.text, last.recipient, last.index)
        else:
            joined.append(piece)
    return [
        (p.kind, p.text, p.recipient or "", p.index) if p.kind == "tool_call" else (p.kind, p.text)
        for p in joined
    ]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param(
            "<|channel|>analysis<|message|>Simple.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>2 + 2 = 4.<|return|>",
            [("reasoning", "Simple."), ("content", "2 + 2 = 4.")],
            id="format.md: reasoning, then the answer",
        ),
        pytest.param(
            "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.get_weather <|constrain|>json<|message|>{"location":"SF"}<|call|>',
            [("reasoning", "Need it."), ("tool_call", '{"location":"SF"}', "get_weather", 0)],
            id="format.md: a tool call",
        ),
        pytest.param(
            " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
            [("tool_call", "{}", "f", 0)],
            id="the recipient in the role section",
        ),
        pytest.param(
            "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
            [("tool_call", "{}", "f", 0)],
            id="no space before constrain",
        ),
        pytest.param(
            "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
            [("tool_call", "{}", "f", 0)],
            id="content type without constrain",
        ),
        pytest.param(
            "<|channel|>commentary<|message|>Plan: do it.<|end|><|start|>assistant<|channel|>"
            "commentary to=functions.a<|message|>{}<|call|><|start|>assistant<|channel|>"
            'commentary to=functions.a<|message|>{"x":1}<|call|>',
            [
                ("content", "Plan: do it."),
                ("tool_call", "{}", "a", 0),
                ("tool_call", '{"x":1}', "a", 1),
            ],
            id="format.md: a preamble; two calls of one function are told apart",
        ),
        pytest.param(
            "<|channel|>commentary to=functions.now<|message|><|call|>",
            [("tool_call", "", "now", 0)],
            id="a call without arguments is seen",
        ),
        pytest.param(
            "<|channel|>analysis to=functions.f<|message|>{}<|call|>",
            [("tool_call", "{}", "f", 0)],
            id="a call on the wrong channel is a call",
        ),
        pytest.param(
            "<|channel|>commentary to=get_weather<|message|>{}<|call|>",
            [("tool_call", "{}", "get_weather", 0)],
            id="a forgotten namespace",
        ),
        pytest.param(
            "<|channel|>analysis to=python code<|message|>1+1<|call|>",
            [("reasoning", "1+1")],
            id="a built-in tool that nobody offered stays reasoning",
        ),
        pytest.param(
            "<|channel|>commentary to=user<|message|>Hi<|end|>",
            [("content", "Hi")],
            id="commentary to the user",
        ),
        pytest.param("Hello there", [("content", "Hello there")], id="no header at all"),
        pytest.param("<|message|>Hi<|return|>", [("content", "Hi")], id="no channel"),
        pytest.param(
            "<|channel|>thoughts<|message|>Hi<|return|>", [("content", "Hi")], id="unknown channel"
        ),
        pytest.param(
            "<|channel|>final<|message|>One.<|end|> between <|start|>assistant<|message|>Two.",
            [("content", "One. between Two.")],
            id="text between messages",
        ),
        pytest.param(
            "<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Yes.",
            [("reasoning", "Hm."), ("content", "Yes.")],
            id="a forgotten end",
        ),
        pytest.param(
            "<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Yes.<|return|>",
            [("reasoning", "Hm."), ("content", "Yes.")],
            id="a channel inside a message begins the next",
        ),
        pytest.param(
            "<|channel|>final<|message|>a<|message|>b<|constrain|>c<|reserved_3|>d<|return|>",
            [("content", "abcd")],
            id="specials in odd places show nothing",
        ),
        pytest.param(
            "<|channel|>final and here is my whole answer to you",
            [("content", "final and here is my whole answer to you")],
            id="an answer where a channel should be",
        ),
        pytest.param(
            "<|channel|>Hello<|end|><|start|>assistant<|channel|>final<|message|>!",
            [("content", "Hello!")],
            id="a word that is no channel, and no message",
        ),
        pytest.param(
            "<|start|>user<|message|>Me.<|end|>",
            [("content", "Me.")],
            id="a role that is not the assistant's",
        ),
        pytest.param("<|channel|>analysis", [], id="cut off inside a header"),
        pytest.param("<|channel|>comment<|return|>", [], id="cut off inside a channel"),
        pytest.param("<|end|><|start|>assis", [], id="cut off inside a role"),
        pytest.param(" to", [("content", " to")], id="a word that looked like a recipient"),
        pytest.param(" to=functions.f", [], id="cut off inside a recipient"),
        pytest.param("\n", [("content", "\n")], id="white space only"),
        pytest.param(" to be or not", [("content", " to be or not")], id="not a recipient"),
        pytest.param(
            "<|constrain|>json<|channel|>final<|message|>x", [("content", "x")], id="odd order"
        ),
        pytest.param(
            "<|channel|>analysis<|channel|>final<|message|>x", [("content", "x")], id="two channels"
        ),
        pytest.param("", [], id="nothing"),
        pytest.param(
            "<|constrain|>Me<|channel|>Hello<|constrain|>!<|return|>",
            [("content", "MeHello!")],
            id="text of a header with a section twice keeps its order",
        ),
    ],
)
def test_outputs(output: str, expected: list[Row]) -> None:
    """Each output, well-formed or broken, goes where it belongs."""
    assert rows(pieces_of(ids_of(output))) == expected


def test_one_piece_for_each_token() -> None:
    """The announcement comes with `<|message|>`, each text with its token, framing is empty."""
    ids = ids_of("<|channel|>commentary to=functions.f<|message|>{}<|call|>")
    pieces = pieces_of(ids)
    assert len(pieces) == len(ids)
    opened = ids.index(SPECIALS.message)
    assert pieces[opened] == Piece("tool_call", "", "f", 0)
    assert "".join(p.text for p in pieces[opened + 1 : -1]) == "{}"
    assert {p.kind for p in pieces[:opened]} == {"none"}
    assert pieces[-1] == Piece("none")


def test_incomplete_character_stays_with_its_message() -> None:
    """Half an emoji at the end of reasoning becomes U+FFFD there, not in the answer."""
    half = ids_of("😀")[:2]
    ids = [*ids_of("<|channel|>analysis<|message|>a"), *half, SPECIALS.end]
    ids += ids_of("<|start|>assistant<|channel|>final<|message|>b")
    assert rows(pieces_of(ids)) == [("reasoning", "a�"), ("content", "b")]
    assert rows(pieces_of([*ids, *half])) == [("reasoning", "a�"), ("content", "b�")]


def test_a_header_without_end_is_shown() -> None:
    """What goes on like a header for ever is an answer, and comes out long before the end."""
    parser = HarmonyParser(TOKENIZER, SPECIALS)
    parser.feed(SPECIALS.channel)
    held = [parser.feed(i) for i in ids_of("a" * 400)]
    assert [p.kind for p in held].index("content") <= 200
    assert "".join(p.text for p in held) == "a" * 400


WORDS = ["assistant", "analysis", "commentary", "final", " to=", "functions.f", "json", " ", "\n"]
TEXTS = [*WORDS, "Hello", ", world", " x y z w", "t", "{", "user", "!"]
FRAMES = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"]
ALL = [*TEXTS, *FRAMES, "<|return|>", "<|refusal|>", "<|reserved_0|>"]


@given(st.lists(st.integers(-1, 1030)))
def test_random_tokens_never_raise(ids: list[int]) -> None:
    """Any ids whatever give one piece each, of a known kind."""
    pieces = pieces_of(ids)
    assert len(ids) <= len(pieces) <= len(ids) + 1
    assert {p.kind for p in pieces} <= {"content", "reasoning", "tool_call", "none"}


@given(st.lists(st.integers(0, 991)))
def test_without_specials_all_is_content(ids: list[int]) -> None:
    """Text that never opens a message is content, every character of it."""
    text = TOKENIZER.decode(ids)
    pieces = pieces_of(ids)
    if text.lstrip().startswith("to="):
        return
    assert "".join(p.text for p in pieces) == text
    assert {p.kind for p in pieces} <= {"content", "none"}


@given(st.lists(st.sampled_from(ALL), max_size=25))
def test_no_text_is_lost(parts: list[str]) -> None:
    """All text comes out, in order; only what stands in a header and reads like one may not."""
    in_header, pattern = True, ""
    for run in re.findall(r"<\|\w+\|>|(?:(?!<\|).)+", "".join(parts), re.DOTALL):
        if run.startswith("<|"):
            if run in ("<|start|>", "<|channel|>"):
                in_header = True
            elif run in ("<|message|>", "<|end|>", "<|return|>", "<|call|>"):
                in_header = False
        else:
            may_vanish = in_header and could_be_header("role", run)
            pattern += f"(?:{re.escape(run)})?" if may_vanish else re.escape(run)
    shown = "".join(p.text for p in pieces_of(ids_of("".join(parts))))
    assert re.fullmatch(pattern, shown, re.DOTALL)


@given(st.lists(st.sampled_from(ALL), max_size=15), st.lists(st.sampled_from(ALL), max_size=15))
def test_parsers_share_nothing(first: list[str], second: list[str]) -> None:
    """Two sequences fed in turns give what each gives alone."""
    sequences = [ids_of("".join(first)), ids_of("".join(second))]
    parsers = [HarmonyParser(TOKENIZER, SPECIALS) for _ in sequences]
    found: list[list[Piece]] = [[], []]
    for step in range(max(map(len, sequences))):
        for ids, parser, pieces in zip(sequences, parsers, found, strict=True):
            if step < len(ids):
                pieces.append(parser.feed(ids[step]))
    for parser, pieces in zip(parsers, found, strict=True):
        pieces.extend(parser.finish())
    assert found == [pieces_of(ids) for ids in sequences]


@pytest.mark.parametrize(
    ("role", "channel", "expected"),
    [
        ("", "final", Destination("content")),
        ("", "analysis", Destination("reasoning")),
        ("", "", Destination("content")),
        ("assistant to=functions.a.b", "commentary", Destination("tool_call", "a.b")),
        ("assistant", "commentary to=all", Destination("content")),
        ("assistant", "final to=x", Destination("content")),
        ("assistant", "commentary auto=x", Destination("content")),
    ],
)
def test_destination(role: str, channel: str, expected: Destination) -> None:
    """Where a header sends its body."""
    assert destination(role, channel) == expected


def test_framing_is_told_from_text() -> None:
    """Beginnings of known names are framing, other words are not."""
    assert is_framing("channel", "anal")
    assert is_framing("channel", "commentary to=functions.x ")
    assert is_framing("constrain", "json")
    assert is_framing("role", "functions.x to=assistant")
    assert not is_framing("channel", "Hello")
    assert not is_framing("constrain", "Hello")
    assert not is_framing("implied", " ")


def test_text_parser_hides_specials_only() -> None:
    """For completions all text is content and no special shows."""
    parser = TextParser(TOKENIZER.detokenizer(continuation=True), TOKENIZER.special_ids)
    ids = ids_of("<|channel|>final<|message|> a😀")[:-1]
    pieces = [*(parser.feed(i) for i in ids), *parser.finish()]
    assert "".join(p.text for p in pieces) == "final a�"
    assert pieces[0] == Piece("none")
    assert {p.kind for p in pieces} == {"none", "content"}
    assert parser.finish() == []


def test_harmony_needs_its_specials() -> None:
    """A vocabulary without them is refused by name."""
    with pytest.raises(Exception, match=r"lacks harmony's special tokens <\|start\|>, <\|end\|>"):
        HarmonySpecials.of(Tokenizer(llama2_like()))

"""Calls of models with a chat template: the form read off it, output taken apart, guides."""

from __future__ import annotations

import json
import random
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine.guided_closing import shortest_text
from gpt_oss_server.engine.guided_demand import demand_tokens
from gpt_oss_server.engine.guided_grammar import compiled
from gpt_oss_server.engine.guided_vocab import has_bit, load_vocabulary
from gpt_oss_server.engine.guided_walk import CompiledGrammar, Guide, Walk
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.harmony.call_forms import call_form
from gpt_oss_server.harmony.templates import ChatTemplate
from gpt_oss_server.ports import ChatFormat, Piece
from gpt_oss_server.types import Grammar, GuidedSpec
from tool_models import (
    FUNCTION_TAGS,
    HERMES,
    LLAMA,
    PLAIN,
    chat_format_of,
    function,
    ids_of,
    template_folder,
    vocabulary,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ASKED = {"role": "user", "content": "hello"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4"}

Row = tuple[str, str] | tuple[str, int, str, str]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatFormat]:
    """By name; `marked` and `special` have the Hermes marks as tokens."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "hermes": template_folder(folder / "hermes", HERMES),
        "marked": template_folder(folder / "marked", HERMES, marks=True),
        "special": template_folder(folder / "special", HERMES, special_marks=True),
        "llama": template_folder(folder / "llama", LLAMA),
        "plain": template_folder(folder / "plain", PLAIN),
        "tags": template_folder(folder / "tags", FUNCTION_TAGS, marks=True),
    }
    return {name: chat_format_of(path) for name, path in made.items()}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {}, today=lambda: date(2026, 1, 1))


def test_forms_are_read_off_templates() -> None:
    """The marks, the key of the arguments and the template's own spacing."""
    hermes, llama = call_form(template(HERMES)), call_form(template(LLAMA))
    assert hermes is not None
    assert llama is not None
    assert (hermes.opening, hermes.closing) == ("<tool_call>", "</tool_call>")
    assert hermes.head_of("f") == '<tool_call>\n{"name": "f", "arguments": '
    assert hermes.tail == "}\n</tool_call>"
    assert (llama.opening, llama.closing, llama.key) == ("", "", "parameters")
    assert llama.head_of("f") == '{"name": "f", "parameters": '
    assert llama.tail == "}"


@pytest.mark.parametrize(
    "source",
    [
        PLAIN,
        FUNCTION_TAGS,
        HERMES.replace("if tools", "if false"),
        "{{ raise_exception('no') }}",
        LLAMA.replace('{{- \'{"name"', '{{- \'Call: {"name"'),
    ],
)
def test_unknown_forms_are_told(source: str) -> None:
    """No tools shown, another way to write calls, or a template that refuses."""
    assert call_form(template(source)) is None


@pytest.mark.parametrize("name", ["plain", "tags"])
def test_tools_are_refused_where_the_template_knows_none(
    formats: dict[str, ChatFormat], name: str
) -> None:
    """A 400 that names the parameter; without tools the model chats, and no guide is offered."""
    chat = formats[name]
    with pytest.raises(BadRequest) as refused:
        chat.render_chat([ASKED], tools=[function()])
    assert refused.value.param == "tools"
    assert chat.render_chat([ASKED])
    assert chat.call_guide({"f": Grammar(kind="json_object")}, required=True) is None


def test_conversations_with_calls(formats: dict[str, ChatFormat]) -> None:
    """Tools, a call and its result in the template's words."""
    chat = formats["marked"]
    text = chat.decode(chat.render_chat([ASKED, CALLED, RESULT], tools=[function("f")]))
    assert '{"type": "function", "function": {"name": "f", "description": "Knows."' in text
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
    assert "<tool_response>\n4\n</tool_response>" in text


def test_a_template_s_own_limit_is_the_client_s_error(formats: dict[str, ChatFormat]) -> None:
    """Llama's template takes one call at once."""
    twice = {**CALLED, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    with pytest.raises(BadRequest, match="one call at once") as refused:
        formats["llama"].render_chat([ASKED, twice], tools=[function("f")])
    assert refused.value.param == "messages"


def rows(pieces: list[Piece]) -> list[Row]:
    """Neighbouring pieces of one destination joined; a call opens with its empty piece."""
    found: list[Any] = []
    for piece in pieces:
        last = found[-1] if found else None
        if piece.kind == "tool_call":
            if last and last[:2] == ("tool_call", piece.index):
                assert piece.text
                found[-1] = (*last[:3], last[3] + piece.text)
            else:
                assert not piece.text
                found.append(("tool_call", piece.index, piece.recipient, ""))
        elif piece.text:
            assert piece.kind == "content"
            if last and last[0] == "content":
                found[-1] = ("content", last[1] + piece.text)
            else:
                found.append(("content", piece.text))
    return found


def parsed(chat: ChatFormat, ids: list[int]) -> list[Row]:
    parser = chat.chat_parser(tools=True)
    return rows([*(parser.feed(i) for i in ids), *parser.finish()])


HERMES_OUTPUTS: list[tuple[str, list[Row]]] = [
    (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        [("tool_call", 0, "f", '{"a": 1}')],
    ),
    (
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n'
        '{"name": "g-2", "arguments": {"b": [1, {"c": 2}]}}\n</tool_call>\n',
        [
            ("content", "Let me see.\n"),
            ("tool_call", 0, "f", "{}"),
            ("tool_call", 1, "g-2", '{"b": [1, {"c": 2}]}'),
        ],
    ),
    (
        '<tool_call>{"name":"f","arguments":{"a":"}\\"{</tool_call>"}}</tool_call>',
        [("tool_call", 0, "f", '{"a":"}\\"{</tool_call>"}')],
    ),
    (
        '\n\n<tool_call>{"name": "f", "arguments": {"é": "😀"}}</tool_call>Done.',
        [("tool_call", 0, "f", '{"é": "😀"}'), ("content", "Done.")],
    ),
    ("Hello < world <tool", [("content", "Hello < world <tool")]),
    ("\n <tool_call>not one</tool_call>", [("content", "\n <tool_call>not one</tool_call>")]),
    ("<tool_call><tool_call>", [("content", "<tool_call><tool_call>")]),
    ('<tool_call>{"name": "f"}</tool_call>', [("content", '<tool_call>{"name": "f"}</tool_call>')]),
    ('<tool_call>{"name": "f", "argu', [("content", '<tool_call>{"name": "f", "argu')]),
    (
        '<tool_call>{"name": "f", "arguments": "x"}',
        [("content", '<tool_call>{"name": "f", "arguments": "x"}')],
    ),
    ('<tool_call>{"name": "f", "arguments": {"a": 1', [("tool_call", 0, "f", '{"a": 1')]),
    ('<tool_call>{"name": "f", "arguments": {}}\n</tool', [("tool_call", 0, "f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {}</tool_call>', [("tool_call", 0, "f", "{}")]),
    (
        '<tool_call>{"name": "f", "arguments": {"a": [</tool_call> Oh',
        [("tool_call", 0, "f", '{"a": ['), ("content", " Oh")],
    ),
    (
        '<tool_call>{"name": "f", "arguments": {}, "id": 3}</tool_call>',
        [("tool_call", 0, "f", "{}"), ("content", ', "id": 3}</tool_call>')],
    ),
    (" " * 200 + "x", [("content", " " * 200 + "x")]),
    ("", []),
    ("\n", [("content", "\n")]),
]
LLAMA_OUTPUTS: list[tuple[str, list[Row]]] = [
    ('{"name": "f", "parameters": {"a": 1}}', [("tool_call", 0, "f", '{"a": 1}')]),
    (
        '\n{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}\n',
        [("tool_call", 0, "f", "{}"), ("tool_call", 1, "g", "{}")],
    ),
    ('{"name": "f", "arguments": {}}', [("content", '{"name": "f", "arguments": {}}')]),
    ('{"temperature": 3}', [("content", '{"temperature": 3}')]),
    ("  Hello {world}", [("content", "  Hello {world}")]),
    (
        '{"name": "f", "parameters": {}} and so on',
        [("tool_call", 0, "f", "{}"), ("content", " and so on")],
    ),
    ('{"name": "f", "para', [("content", '{"name": "f", "para')]),
    (
        '{"name": "f", "parameters": {}}; {"x": 1}',
        [("tool_call", 0, "f", "{}"), ("content", '; {"x": 1}')],
    ),
    (" \n", [("content", " \n")]),
]


@pytest.mark.parametrize("name", ["hermes", "marked", "special"])
@pytest.mark.parametrize(("text", "expected"), HERMES_OUTPUTS)
def test_hermes_outputs(
    formats: dict[str, ChatFormat], name: str, text: str, expected: list[Row]
) -> None:
    """Whether its marks are spelled out, tokens or special tokens, the text is what counts."""
    options = {"marked": {"marks": True}, "special": {"special_marks": True}}.get(name, {})
    assert parsed(formats[name], ids_of(vocabulary(**options), text)) == expected


@pytest.mark.parametrize(("text", "expected"), LLAMA_OUTPUTS)
def test_llama_outputs(formats: dict[str, ChatFormat], text: str, expected: list[Row]) -> None:
    """A turn is a call, or several, or an answer."""
    ids = ids_of(vocabulary(), text + "<|eot_id|>")
    assert parsed(formats["llama"], ids) == expected


def test_calls_are_looked_for_only_where_tools_were_offered(
    formats: dict[str, ChatFormat],
) -> None:
    """Without tools the same output is an answer."""
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    parser = formats["hermes"].chat_parser()
    pieces = [*(parser.feed(i) for i in ids_of(vocabulary(), text)), *parser.finish()]
    assert rows(pieces) == [("content", text)]


def test_arguments_come_as_they_are_written(formats: dict[str, ChatFormat]) -> None:
    """Each token of the arguments gives its text at once; none waits for the call's end."""
    chat = formats["marked"]
    head = ids_of(vocabulary(marks=True), '<tool_call>{"name": "f", "arguments": ')
    parser = chat.chat_parser(tools=True)
    assert {parser.feed(i).kind for i in head} == {"none"}
    ids = ids_of(vocabulary(marks=True), '{"city": "Paris"}')
    assert parser.feed(ids[0]) == Piece("tool_call", "", "f", 0)
    texts = [parser.feed(i).text for i in ids[1:]]
    assert "".join(texts) == '{"city": "Paris"}'[: len("".join(texts))]
    assert all(texts)


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", '{"name": "f", ', '"arguments": ', '"parameters": ', "{", "}"),
    *('{"name"', ': "', '"', "\\", " ", "\n", ";", "x", "é", "<", "tool", '{"a": 1}', "}}"),
    '{"name": "f", "arguments": {}}',
    '{"name": "g", "parameters": {"b": "c"}}',
]


@given(st.sampled_from(["hermes", "llama"]), st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_the_text_decides_not_the_tokens(
    formats: dict[str, ChatFormat], name: str, fragments: list[str]
) -> None:
    """Merged tokens or single bytes: the same content and calls, and no text is lost."""
    text = "".join(fragments)
    merged = parsed(formats[name], ids_of(vocabulary(), text))
    assert parsed(formats[name], byte_ids(formats[name], text)) == merged
    assert re.fullmatch("".join(map(told_of, merged)), text, re.DOTALL)


def byte_ids(chat: ChatFormat, text: str) -> list[int]:
    """One token per byte."""
    by_byte = {chat.token_bytes(token): token for token in range(chat.vocab_size)}
    return [by_byte[bytes([byte])] for byte in text.encode()]


def told_of(row: Row) -> str:
    """A pattern of the text that a row was told of, with its framing."""
    if row[0] == "content":
        return re.escape(row[1])
    head = rf'\{{\s*"name"\s*:\s*"{row[2]}"\s*,\s*"(?:arguments|parameters)"\s*:\s*'
    tail = r"\s*\}?\s*(?:</?t?o?o?l?_?c?a?l?l?>?)?"
    return rf"[\s;]*(?:<tool_call>)?\s*{head}{re.escape(str(row[3]))}{tail}[\s;]*"


# Guides.


class Following:
    """A folder's vocabulary and walks over it, as the engine makes them."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self.vocabulary = load_vocabulary(folder, size)

    def guide(self, spec: GuidedSpec, ends: tuple[int, ...]) -> Guide:
        return Guide(spec, tuple(map(self._forged, spec.grammars)), self.vocabulary, ends)

    def _forged(self, grammar: Grammar) -> CompiledGrammar:
        matcher = compiled(self.vocabulary.tokenizer, grammar)
        closing = shortest_text(matcher, self.vocabulary, json=True)
        assert closing is not None
        demand = demand_tokens(grammar, lambda text: len(self.vocabulary.ids_of(text.encode())))
        return CompiledGrammar(matcher, closing, demand, True)

    def wander(self, walk: Walk, rng: random.Random, bound: int) -> list[int]:
        """Tokens drawn evenly from what is allowed: a model that knows nothing."""
        row = np.zeros(self.vocabulary.words, dtype=np.int32)
        tokens: list[int] = []
        while not walk.ended and len(tokens) < bound:
            assert walk.failure is None
            walk.fill(row)
            allowed = [token for token in range(self.size) if has_bit(row, token)]
            tokens.append(walk.take(rng.choice(allowed)))
        return tokens


SCHEMA = {
    "type": "object",
    "properties": {"q": {"enum": ["}", "}\n</tool_call>", "x"]}, "n": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
}
GRAMMARS = {
    "get": Grammar(kind="json_schema", source=json.dumps(SCHEMA)),
    "get_all": Grammar(kind="json_object"),
}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    ("name", "source", "required", "options"),
    [
        ("hermes", HERMES, True, {}),
        ("marked", HERMES, True, {"marks": True}),
        ("special", HERMES, True, {"special_marks": True}),
        ("marked", HERMES, False, {"marks": True}),
        ("special", HERMES, False, {"special_marks": True}),
        ("llama", LLAMA, True, {}),
    ],
)
def test_guided_calls_are_well_formed(
    tmp_path: Path,
    name: str,
    source: str,
    required: bool,
    options: dict[str, bool],
    parallel: bool,
) -> None:
    """Whatever a model says, under any bound: calls that parse, of the functions there are, with
    arguments of their schemas. A bracket inside the arguments does not end them."""
    folder = template_folder(tmp_path / name, source, **options)
    chat = chat_format_of(folder)
    spec = chat.call_guide(GRAMMARS, required=required, parallel=parallel)
    assert spec is not None
    following = Following(folder, chat.vocab_size)
    guide = following.guide(spec, chat.stop_token_ids)
    calls = 0
    for seed in range(25):
        bound = 120 + 7 * seed
        walk = Walk(guide, bound)
        tokens = following.wander(walk, random.Random(seed), bound)
        found = parsed(chat, tokens)
        made = [row for row in found if row[0] == "tool_call"]
        calls += len(made)
        assert len(made) <= 1 or parallel
        assert made or not required
        if required:
            assert walk.ended
            assert found == made
        for row in made if walk.ended else made[:-1]:
            arguments = json.loads(str(row[3]))
            assert isinstance(arguments, dict)
            if row[2] == "get":
                assert arguments["q"] in ("}", "}\n</tool_call>", "x")
            else:
                assert row[2] == "get_all"
    assert calls > 0


@pytest.mark.parametrize("name", ["hermes", "llama"])
def test_free_text_beside_guided_calls_takes_an_opening_token(
    formats: dict[str, ChatFormat], name: str
) -> None:
    """Where a call cannot be told from text by one token, there is no such guide."""
    assert formats[name].call_guide(GRAMMARS, required=False) is None
    assert formats[name].call_guide(GRAMMARS, required=True) is not None


def test_no_guide_of_answer_or_call(formats: dict[str, ChatFormat]) -> None:
    """An answer of a format in place of a call cannot be guided behind a template."""
    answer = Grammar(kind="json_object")
    assert formats["marked"].call_guide(GRAMMARS, required=False, answer=answer) is None

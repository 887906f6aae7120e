"""Which tokens a guide allows, and that it is always completed within the bound."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gpt_oss_server.engine.guided_walk import LEAST_MARGIN_TOKENS, Walk
from gpt_oss_server.types import GUIDE_END, FixedText, FreeText, Grammar, GrammarText, GuidedSpec
from guided_runs import (
    VOCAB,
    allowed_texts,
    chat_format,
    ends,
    guide_of,
    of_schema,
    shown,
    vocabulary,
    wander,
)
from guided_schemas import problem_of, random_schema

HEAVY = {
    "type": "object",
    "properties": {f"member_{i}": {"type": "string", "minLength": 3} for i in range(20)},
    "required": [f"member_{i}" for i in range(20)],
    "additionalProperties": False,
}
TEMPTING: dict[str, dict[str, Any]] = {
    "a heavy alternative": {"anyOf": [{"type": "null"}, HEAVY]},
    "a heavy optional member": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": HEAVY},
        "required": ["a"],
        "additionalProperties": False,
    },
    "an array of many": {
        "anyOf": [
            {"type": "boolean"},
            {"type": "array", "items": {"type": "integer"}, "minItems": 90},
        ]
    },
    "a long string": {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 150}]},
    "a long pattern": {"anyOf": [{"const": 1}, {"type": "string", "pattern": "^[a-c]{200}$"}]},
    "a heavy reference": {
        "$defs": {"h": HEAVY},
        "type": "array",
        "items": {"$ref": "#/$defs/h"},
    },
    "deep recursion": {
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/n",
    },
}


def whole(grammar: Grammar, bound: int) -> Walk:
    return Walk(guide_of(GuidedSpec.whole(grammar)), bound)


def steered(grammar: Grammar, text: str, bound: int = 1000) -> Walk:
    """A walk behind a text, byte by byte."""
    walk = whole(grammar, bound)
    for byte in text.encode():
        token = vocabulary().byte_ids[byte]
        assert walk.take(token) == token
    assert walk.failure is None
    return walk


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        ({"type": "boolean"}, "", {b"t", b"f", b"tr", b"true", b"fa", b"false"}),
        ({"type": "boolean"}, "tru", {b"e"}),
        ({"type": "boolean"}, "true", {b""}),
        ({"enum": [12, 15]}, "1", {b"2", b"5"}),
        ({"const": "é"}, '"\u00e9', {b'"'}),
        ({"type": "integer", "minimum": 0, "maximum": 9}, "7", {b""}),
        ({"type": "array", "maxItems": 0}, "[", {b"]"}),
        ({"type": "string", "maxLength": 2}, '"ab', {b'"'}),
    ],
)
def test_exactly_what_the_schema_allows(schema: Any, text: str, allowed: set[bytes]) -> None:
    """The mask behind a text has the tokens that go on with it, whitespace apart, and no other."""
    known = {vocabulary().bytes_of(token) for token in range(VOCAB)}
    found = {token for token in allowed_texts(steered(of_schema(schema), text)) if token.strip()}
    if b"" in allowed_texts(steered(of_schema(schema), text)):
        found.add(b"")
    assert found == {text for text in allowed if text in known or text == b""}


@pytest.mark.parametrize("seed", range(40))
def test_random_outputs_of_random_schemas_are_valid(seed: int) -> None:
    """Whatever is drawn from the masks, under whatever bound, is JSON of the schema."""
    rng = random.Random(seed)
    schema = random_schema(rng)
    guide = guide_of(GuidedSpec.whole(of_schema(schema)))
    for spare in (0, 1, rng.randrange(2, 60), 300):
        bound = guide.distance(0) + spare
        walk = Walk(guide, bound)
        tokens = wander(walk, rng, bound)
        assert walk.failure is None
        assert walk.ended
        assert problem_of(shown(tokens, chat=False), schema) is None


@pytest.mark.parametrize("schema", TEMPTING.values(), ids=list(TEMPTING))
@pytest.mark.parametrize("spare", [0, 3, 40, LEAST_MARGIN_TOKENS + 50, 400])
def test_no_token_leads_where_the_bound_cuts(schema: Any, spare: int) -> None:
    """A token that commits the text to more than there is room for is not taken, however far the
    bound seemed: every output under every bound is complete."""
    guide = guide_of(GuidedSpec.whole(of_schema(schema)))
    for seed in range(6):
        walk = Walk(guide, guide.distance(0) + spare)
        tokens = wander(walk, random.Random(seed), guide.distance(0) + spare)
        assert walk.ended
        assert problem_of(shown(tokens, chat=False), schema) is None


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="regex", source="a|b[0-9]{120}"),
        Grammar(kind="regex", source="(ab*c){2,}"),
        Grammar(kind="choice", source=json.dumps(["no", "yes, " + "certainly " * 20])),
        Grammar(kind="grammar", source='start: "x" | "(" start start ")"'),
        Grammar(kind="grammar", source='root ::= "x" | "[" root "]"'),
        Grammar(kind="json_object"),
    ],
    ids=lambda grammar: f"{grammar.kind}:{grammar.source[:12]}",
)
def test_other_grammars_are_completed_too(grammar: Grammar) -> None:
    """Regular expressions, choices, grammars and plain JSON objects end before the bound."""
    guide = guide_of(GuidedSpec.whole(grammar))
    for seed in range(8):
        bound = guide.distance(0) + 7 * seed
        walk = Walk(guide, bound)
        tokens = wander(walk, random.Random(seed), bound)
        assert walk.ended
        assert tokens[-1] in ends()
        matcher = guide.grammars[0].prototype.deep_copy()
        assert matcher.consume_tokens(tokens[:-1])
        assert matcher.is_accepting()


def test_a_free_end_is_not_called_shortened() -> None:
    """Far from its bound, an output ends as the model ends it."""
    walk = steered(of_schema({"type": "integer"}), "42")
    walk.take(ends()[0])
    assert (walk.ended, walk.shortened) == (True, False)


def test_an_end_that_the_bound_chose_is_called_shortened() -> None:
    """A digit that leaves no room for the end is replaced by the end."""
    walk = steered(of_schema({"type": "integer"}), "42", bound=3)
    assert walk.take(vocabulary().byte_ids[ord("1")]) == min(ends())
    assert (walk.ended, walk.shortened) == (True, True)


def test_a_model_without_an_end_token_ends_where_the_grammar_must() -> None:
    """Without any token that ends an output, a text that nothing can follow is the end, and so
    is a complete one without room for more."""
    guide = guide_of(GuidedSpec.whole(of_schema({"type": "boolean"})), end_ids=())
    walk = Walk(guide, 40)
    tokens = wander(walk, random.Random(1), 40)
    assert walk.ended
    assert json.loads(shown(tokens, chat=False)) in (True, False)
    numbers = guide_of(GuidedSpec.whole(of_schema({"type": "number"})), end_ids=())
    for seed in range(20):
        walk = Walk(numbers, 6)
        json.loads(shown(wander(walk, random.Random(seed), 6), chat=False))


@pytest.mark.parametrize("bound", [40, 60, 200])
def test_harmony_reasoning_leaves_room_for_the_answer(bound: int) -> None:
    """Reasoning is free text of at most its share; the final message is always complete."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    guide = guide_of(chat_format().answer_guide(of_schema(schema)))
    reasoned = 0
    for seed in range(12):
        walk = Walk(guide, bound)
        tokens = wander(walk, random.Random(seed), bound)
        assert walk.ended
        assert chat_format().decode(tokens[-1:]) == "<|return|>"
        assert problem_of(shown(tokens), schema) is None
        reasoned += bool(shown(tokens, kind="reasoning"))
    assert reasoned > 0


@pytest.mark.parametrize("required", [True, False])
def test_harmony_calls_have_valid_arguments(required: bool) -> None:
    """A call's arguments are complete under any bound; if one is required, one comes."""
    schema = {"type": "object", "properties": {"q": {"enum": ["x", "y"]}}, "required": ["q"]}
    arguments = {"get": of_schema(schema), "get_all": Grammar(kind="json_object")}
    spec = chat_format().call_guide(arguments, required=required)
    assert spec is not None
    guide = guide_of(spec)
    called = 0
    for seed in range(30):
        bound = 60 + seed
        walk = Walk(guide, bound)
        tokens = wander(walk, random.Random(seed), bound)
        text = shown(tokens, kind="tool_call")
        assert walk.ended or not required
        assert bool(text) or not required
        called += bool(text)
        if text:
            assert isinstance(json.loads(text), dict)
            assert chat_format().decode(tokens[-1:]) == "<|call|>"
    assert called > 0


def test_free_text_cannot_break_out() -> None:
    """In free text no special token is possible but those that leave it."""
    end = ends()[0]
    spec = GuidedSpec((), (FreeText({end: GUIDE_END}),))
    allowed = Walk(guide_of(spec), 10)
    assert b"" in allowed_texts(allowed)
    texts = wander(Walk(guide_of(spec), 500), random.Random(0), 500)
    assert all(vocabulary().is_text(token) for token in texts[:-1])
    assert texts[-1] == end or len(texts) == 500


def test_fixed_text_takes_only_paths_with_room() -> None:
    """Where only the shorter of two paths fits the bound, it is the only one allowed."""
    a, b, c = (vocabulary().byte_ids[byte] for byte in b"abc")
    spec = GuidedSpec((), (FixedText((((a,), GUIDE_END), ((b, c, a), GUIDE_END))),))
    assert allowed_texts(Walk(guide_of(spec), 3)) == {b"a", b"b"}
    assert allowed_texts(Walk(guide_of(spec), 2)) == {b"a"}


def test_the_shortest_output_is_measured() -> None:
    """The least length counts framing, the shortest text found and the end."""
    spec = GuidedSpec((of_schema({"const": 7}),), (GrammarText(0, {ends()[0]: GUIDE_END}),))
    assert guide_of(spec).distance(0) == 2
    header = chat_format().encode("final")
    answer = chat_format().answer_guide(of_schema({"const": 7}))
    # <|channel|> final <|message|> 7 <|return|>
    assert guide_of(answer).distance(0) == 1 + len(header) + 1 + 1 + 1


def test_a_token_that_was_not_allowed_ends_the_guide() -> None:
    """What no mask allowed is a failure with a reason, never a text that goes on unguided."""
    walk = steered(of_schema({"type": "boolean"}), "tr")
    walk.take(vocabulary().byte_ids[ord("x")])
    assert walk.failure
    assert walk.param == "response_format"

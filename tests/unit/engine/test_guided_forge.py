"""Compiling: what is refused, in what words, and that nothing hostile costs more than it may."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gpt_oss_server.engine.guided_forge import MAX_CACHED, Forge
from gpt_oss_server.engine.guided_grammar import MAX_SOURCE_BYTES, GrammarError, check_length
from gpt_oss_server.engine.guided_trial import ANSWER_WITHIN_S, Trial
from gpt_oss_server.types import Grammar
from guided_runs import FOLDER, VOCAB, of_schema

WAIT_S = 6 * ANSWER_WITHIN_S


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    made = Trial()
    yield made
    made.close()


@pytest.fixture(scope="module")
def forge() -> Forge:
    return Forge(FOLDER, VOCAB)


def chain(length: int) -> dict[str, Any]:
    """References that lead to each other, through arrays."""
    links = {
        f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)
    }
    return {"$defs": {**links, f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def doubling(depth: int) -> dict[str, Any]:
    links = {
        f"d{i}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 3}] * 3}
        for i in range(depth)
    }
    return {"$defs": {**links, f"d{depth}": {"type": "object"}}, "$ref": "#/$defs/d0"}


REFUSED = {
    "unknown type": of_schema({"type": "strin"}),
    "false": of_schema({"not": {}}),
    "unsatisfiable": of_schema({"type": "integer", "minimum": 5, "maximum": 1}),
    "remote reference": of_schema({"$ref": "https://example.com/x.json"}),
    "lookahead": of_schema({"type": "string", "pattern": "^(?=a)b$"}),
    "regex syntax": Grammar(kind="regex", source="["),
    "regex lookahead": Grammar(kind="regex", source="(?=x)"),
    "regex deep": Grammar(kind="regex", source="(" * 4000 + "a" + ")" * 4000),
    "lark undefined": Grammar(kind="grammar", source="start: foo"),
    "lark garbage": Grammar(kind="grammar", source="((((###\x00"),
    "lark without start": Grammar(kind="grammar", source='a: "b"'),
    "lark deep": Grammar(kind="grammar", source="start: " + "(" * 9000 + '"a"' + ")" * 9000),
    "gbnf": Grammar(kind="grammar", source='root ::= "a" ('),
    "doubling": of_schema(doubling(40)),
}


@pytest.mark.parametrize("grammar", REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_compiled_is_refused(trial: Trial, grammar: Grammar) -> None:
    """Each is a GrammarError of one line; the process that tries it may die, this one does not."""
    with pytest.raises(GrammarError) as refusal:
        trial.judge(grammar)
    assert "\n" not in str(refusal.value)
    assert 0 < len(str(refusal.value)) <= 250


def test_a_trial_goes_on_after_a_death() -> None:
    """A grammar that ends its process is refused; the next one is judged as ever."""
    trial = Trial()
    good = of_schema({"type": "integer"})
    trial.judge(good)
    assert trial._process is not None
    trial._process.kill()
    trial._process.wait()
    with pytest.raises(GrammarError, match="too much time or memory"):
        trial.judge(good)
    trial.judge(good)
    trial.close()


COSTLY = {
    "regex quadratic": Grammar(kind="regex", source="a?" * 2700 + "a" * 2700),
    "regex counted": Grammar(kind="regex", source="(.{0,1000}x){1000}"),
    "regex exponential": Grammar(kind="regex", source="([ab]*a[ab]{300}c)|([ab]*b[ab]{300}d)"),
    "references": of_schema(chain(4000)),
    "ambiguous": Grammar(kind="grammar", source='start: e\ne: e e | e e e | "a" | '),
    "counted rules": Grammar(kind="grammar", source='start: ((("a"~1000)~1000)~1000)~1000'),
}


@pytest.mark.parametrize("grammar", COSTLY.values(), ids=list(COSTLY))
def test_a_costly_grammar_is_answered_in_time(trial: Trial, grammar: Grammar) -> None:
    """Taken or refused, within the time and memory of a trial, and the next one is judged."""
    with contextlib.suppress(GrammarError):
        trial.judge(grammar)
    trial.judge(of_schema({"type": "integer"}))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "items": {"$ref": "#"}},
        {"enum": [f"value {i}" for i in range(5000)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(800)}},
        chain(300),
    ],
    ids=["length", "recursive", "enum", "members", "chain"],
)
def test_large_is_not_hostile(trial: Trial, schema: dict[str, Any]) -> None:
    """Recursive schemas and merely large ones compile."""
    trial.judge(of_schema(schema))


@pytest.mark.parametrize("kind", ["json_schema", "regex", "grammar", "choice"])
def test_length_is_bounded(kind: Any) -> None:
    """A source one byte too long is refused before anything reads it."""
    most = MAX_SOURCE_BYTES[kind]
    check_length(Grammar(kind=kind, source="x" * most))
    with pytest.raises(GrammarError, match=f"longer than the {most} bytes"):
        check_length(Grammar(kind=kind, source="x" * (most + 1)))
    with pytest.raises(GrammarError):
        check_length(Grammar(kind=kind, source="é" * (most // 2 + 1)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**6},
        {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
        {
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {"next": {"$ref": "#/$defs/n"}},
                    "required": ["next"],
                }
            },
            "$ref": "#/$defs/n",
        },
    ],
    ids=["long", "many", "infinite"],
)
def test_a_schema_without_a_short_text_is_refused(forge: Forge, schema: dict[str, Any]) -> None:
    """What no text of reasonable length can satisfy is refused: no bound could hold it."""
    with pytest.raises(GrammarError, match="no text of at most 16384 bytes"):
        forge.make(of_schema(schema)).result(WAIT_S)


def test_the_same_grammar_is_compiled_once(forge: Forge) -> None:
    """Whoever asks again, under whatever parameter's name, gets the same."""
    one = forge.make(of_schema({"type": "integer"}, param="a"))
    assert forge.make(of_schema({"type": "integer"}, param="b")) is one
    assert len(one.result(WAIT_S).closing.text) == 1


def test_a_refusal_is_remembered(forge: Forge) -> None:
    """A grammar that did not compile is not tried again."""
    bad = Grammar(kind="regex", source="(")
    with pytest.raises(GrammarError):
        forge.make(bad).result(WAIT_S)
    assert forge.make(bad).done()


def test_the_cache_is_bounded() -> None:
    """The longest unused is forgotten."""
    forge = Forge(FOLDER, VOCAB)
    first = forge.make(Grammar(kind="choice", source='["first"]'))
    first.result(WAIT_S)
    for n in range(MAX_CACHED):
        last = forge.make(Grammar(kind="choice", source=json.dumps([f"c{n}"])))
    assert last.result(WAIT_S).closing.text == f"c{MAX_CACHED - 1}".encode()
    assert forge.make(Grammar(kind="choice", source='["first"]')) is not first


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        (["a.c"], b"a.c"),
        (["(x|y)*"], b"(x|y)*"),
        (["a\\b\n"], b"a\\b\n"),
        (["é{2}"], "é{2}".encode()),
    ],
)
def test_choices_are_literal(forge: Forge, choices: list[str], text: bytes) -> None:
    """No character of a choice is a pattern."""
    made = forge.make(Grammar(kind="choice", source=json.dumps(choices))).result(WAIT_S)
    assert made.closing.text == text

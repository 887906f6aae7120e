"""One grammar: from a request's text to a compiled matcher, within bounds.

Knows: llguidance's notation, its limits and how it words errors. Does not know: vocabularies,
sequences, threads. What a client sends here is hostile until compiled: lengths are bounded first,
and `guided_trial` compiles in a process that may die before this one does.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from gpt_oss_server.engine.guided_dates import with_real_dates
from gpt_oss_server.types import Grammar, GrammarKind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SOURCE_BYTES: Final[dict[GrammarKind, int]] = {
    "json_object": 0,
    "json_schema": 256 << 10,
    # The compiler takes quadratic time and memory for a long regular expression.
    "regex": 8 << 10,
    "grammar": 64 << 10,
    "choice": 64 << 10,
}
COMPILE_STACK_BYTES: Final = 256 << 20
"""The compiler recurses along chains of references: 2,000 of them overflow a stack of 8 MiB.
Address space only; what is not used is never paged in."""

_SCHEMA_OPTIONS: Final[JsonCompileOptions] = {
    # Endless whitespace is valid JSON and the favourite way of a model to waste its bound.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}",
    # Said here so that a schema's own "x-guidance" cannot say otherwise.
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
}
_LENIENT_OPTIONS: Final[JsonCompileOptions] = {
    **_SCHEMA_OPTIONS,
    "lenient": True,
    "coerce_one_of": True,
}
_REGEX_SYNTAX: Final = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")
_MAX_REASON_CHARS: Final = 200


class GrammarError(Exception):
    """A grammar that cannot be used; the message is one line for the client."""


def limits() -> LLParserLimits:
    """Bounds for compiling and for each step. `verbose_errors` would quote the grammar."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


def check_length(grammar: Grammar) -> None:
    """Raises GrammarError for a source longer than its kind may be."""
    most = MAX_SOURCE_BYTES[grammar.kind]
    # Characters first: encoding a huge text only to refuse it would be work for an attacker.
    if len(grammar.source) > most or len(grammar.source.encode()) > most:
        raise GrammarError(f"longer than the {most} bytes that a {grammar.kind} may have")


def notation(grammar: Grammar) -> str:
    """The grammar as llguidance reads it. Raises GrammarError."""
    check_length(grammar)
    try:
        match grammar.kind:
            case "json_object":
                return LLMatcher.grammar_from_json_schema('{"type": "object"}', _SCHEMA_OPTIONS)
            case "json_schema":
                options = _LENIENT_OPTIONS if grammar.lenient else _SCHEMA_OPTIONS
                source = with_real_dates(grammar.source)
                return LLMatcher.grammar_from_json_schema(source, overrides=options)
            case "regex":
                return LLMatcher.grammar_from_regex(grammar.source)
            case "choice":
                choices = "|".join(map(_escaped, json.loads(grammar.source)))
                return LLMatcher.grammar_from_regex(f"(?:{choices})")
            case "grammar":
                return LLMatcher.grammar_from_lark(any_to_lark(grammar.source))
    except GrammarError:
        raise
    except Exception as error:  # noqa: BLE001 - the converters raise bare Exceptions
        raise GrammarError(one_line(str(error))) from None


def compiled(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the grammar's start. Releases Python's lock while it works; needs a thread
    with a stack of `COMPILE_STACK_BYTES`. Raises GrammarError."""
    text = notation(grammar)
    try:
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=limits())
    except BaseException as error:
        # A panic in Rust arrives as a BaseException of pyo3's own, which cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise GrammarError("the compiler gave up on it") from None
    if matcher.is_error():
        raise GrammarError(one_line(matcher.get_error()))
    return matcher


def one_line(text: str) -> str:
    """What matters of the library's messages, which quote sources over several lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if line != "<non-verbose/>"] or ["it cannot be compiled"]
    telling = next((line for line in lines if line.startswith("error: ")), lines[0])
    return telling.removeprefix("error: ")[:_MAX_REASON_CHARS]


def _escaped(choice: str) -> str:
    return _REGEX_SYNTAX.sub(lambda found: "\\" + found[0], choice)

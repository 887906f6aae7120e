"""How many more tokens one token may commit a text to: an upper bound from the grammar's source.

Knows: JSON Schema's keywords that ask for a least length; counted repetition in patterns and
grammars. Does not know: matchers, how text is cut into tokens (it is told).

`{` may open an object with forty required members. Who watches the bound on output has to know that
before the token is chosen, for nothing can be taken back afterwards. Too high a bound only costs
time, so it is generous: the most that any part of a schema asks for at least, as if the most
demanding alternative were always chosen. The whole is none of its parts, unless they refer to it:
what it asks for is known from the start.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from gpt_oss_server.types import Grammar

MOST_TOKENS: Final = 16 << 10
"""More is not told apart: no ending is searched for beyond it."""

OPENED_AT_ONCE: Final = 2
"""One token may open several parts (`[{"`), each within the one before and part of its demand, or
an optional one beside it."""

# The shortest value there is: `""`, `{}`, `0`, or a token a byte of `false`.
_LEAST_TOKENS: Final = 5
_NUMBER_TOKENS: Final = 24
_FORMAT_TOKENS: Final = 64
_PUNCTUATION_TOKENS: Final = 2  # `:` and `,`, or brackets
_NUMBER_KEYS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNT: Final = re.compile(r"\{(\d+)|~\s*(\d+)")


CountTokens = Callable[[str], int]


def demand_tokens(grammar: Grammar, count_tokens: CountTokens) -> int:
    """How many tokens one token may add to the shortest way to the end, at most about."""
    match grammar.kind:
        case "json_object":
            return _LEAST_TOKENS
        case "json_schema":
            return _of_schema(json.loads(grammar.source), count_tokens)
        case "choice":
            return min(MOST_TOKENS, max(map(count_tokens, json.loads(grammar.source))))
        case "regex" | "grammar":
            return _of_pattern(grammar.source)


def _of_schema(schema: Any, count_tokens: CountTokens) -> int:
    try:
        return min(MOST_TOKENS, OPENED_AT_ONCE * _Demands(schema, count_tokens).most())
    except RecursionError:  # a chain of references longer than Python's stack
        return MOST_TOKENS


def _of_pattern(pattern: str) -> int:
    """A token for each of its bytes and counts; times each count where groups are repeated:
    `(a{20}b){3}`."""
    counts = [max(1, int((found[1] or found[2])[:6])) for found in _COUNT.finditer(pattern)]
    total = len(pattern.encode())
    total = (
        total * math.prod(counts[:64]) if "){" in pattern or "~" in pattern else total + sum(counts)
    )
    return min(MOST_TOKENS, total)


class _Demands:
    """The demands of one schema's parts, each found once."""

    def __init__(self, root: Any, count_tokens: CountTokens) -> None:
        self._root = root
        self._count_tokens = count_tokens
        self._known: dict[int, int] = {}
        self._open: set[int] = set()
        self._most = 0
        self._root_is_part = False

    def most(self) -> int:
        """Of any part of the schema, with the name before it."""
        self._of(self._root)
        for key in ("$defs", "definitions"):
            for part in _values(self._root, key):
                self._of(part)
        if not self._root_is_part:
            self._known.pop(id(self._root), None)
        return max(self._most, *self._known.values(), _LEAST_TOKENS)

    def _of(self, part: Any) -> int:
        if not isinstance(part, Mapping):
            return _LEAST_TOKENS
        key = id(part)
        if key in self._open:
            return 0  # what is asked for at least has an end: it does not contain itself
        if key not in self._known:
            self._open.add(key)
            self._known[key] = min(MOST_TOKENS, self._sum(part))
            self._open.discard(key)
        return self._known[key]

    def _sum(self, part: Mapping[str, Any]) -> int:
        total = _LEAST_TOKENS
        total += _NUMBER_TOKENS if any(key in part for key in _NUMBER_KEYS) else 0
        values = [*_items(part, "enum"), *([part["const"]] if "const" in part else [])]
        own = max(map(self._written, values), default=0)
        own += _of_pattern(str(part["pattern"])) if "pattern" in part else 0
        self._most = max(self._most, own)
        total += max((self._of(each) for each in _items(part, "anyOf", "oneOf")), default=0)
        total += sum(self._of(each) for each in _items(part, "allOf"))
        total += self._of(self._target(part["$ref"])) if "$ref" in part else 0
        total += _count(part, "minLength")
        total += _FORMAT_TOKENS if "format" in part else 0
        return total + own + self._of_object(part) + self._of_array(part)

    def _of_object(self, part: Mapping[str, Any]) -> int:
        members = part.get("properties")
        members = members if isinstance(members, Mapping) else {}
        required = set(map(str, _items(part, "required")))
        total = 0
        for name, member in members.items():  # an optional one is known, not counted
            own = self._member(name) + self._of(member)
            self._most = max(self._most, own)
            total += own if name in required else 0
        patterns = part.get("patternProperties")
        named = patterns.items() if isinstance(patterns, Mapping) else ()
        others = [_of_pattern(str(name)) + self._of(each) for name, each in named]
        other = max(self._of(part.get("additionalProperties", True)), *others, 0)
        self._most = max(self._most, other if named else 0)
        total += sum(self._member(name) + other for name in required - set(members))
        return total + _count(part, "minProperties") * (_NUMBER_TOKENS + other)

    def _of_array(self, part: Mapping[str, Any]) -> int:
        item = self._of(part.get("items", True))
        total = sum(self._of(each) + 1 for each in _items(part, "prefixItems"))
        return total + _count(part, "minItems") * (item + 1)

    def _member(self, name: str) -> int:
        return self._written(name) + _PUNCTUATION_TOKENS

    def _written(self, value: Any) -> int:
        return self._count_tokens(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def _target(self, ref: Any) -> Any:
        """What a reference within the document points to; the root where that is unclear."""
        part = self._root
        for step in str(ref).removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            part = part.get(name, self._root) if isinstance(part, Mapping) else self._root
        self._root_is_part |= part is self._root
        return part


def _count(part: Mapping[str, Any], key: str) -> int:
    value = part.get(key, 0)
    return min(int(value), MOST_TOKENS) if isinstance(value, int | float) and value > 0 else 0


def _items(part: Mapping[str, Any], *keys: str) -> Iterable[Any]:
    return [each for key in keys if isinstance(part.get(key), list) for each in part[key]]


def _values(part: Any, key: str) -> Iterable[Any]:
    inner = part.get(key) if isinstance(part, Mapping) else None
    return inner.values() if isinstance(inner, Mapping) else ()

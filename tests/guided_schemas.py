"""Random JSON Schemas of every kind that guided decoding enforces, and the judge of outputs.

Knows: JSON Schema. Does not know: engines. Every schema has an instance of a few dozen tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

Schema = dict[str, Any]
WORDS = ("name", "id", "a b", "größe", 'q"uote', "x", "items", "left\nright", "$ref", "value")


def random_schema(rng: random.Random) -> Schema:
    """An object at the root, as OpenAI asks for, at times with definitions that refer to
    themselves."""
    root = _object(rng, 3)
    if rng.random() < 0.3:
        node = {
            "type": "object",
            "properties": {
                "value": _leaf(rng),
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        root = {**root, "$defs": {"node": node}}
        root["properties"] = {**root["properties"], "tree": {"$ref": "#/$defs/node"}}
        root["required"] = sorted({*root.get("required", ()), "tree"})
    return root


def problem_of(text: str, schema: Schema) -> str | None:
    """Why `text` is no JSON of `schema`; None if it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    checker = FormatChecker(("date", "ipv4", "uuid"))
    errors = Draft202012Validator(schema, format_checker=checker).iter_errors(value)
    return next((error.message for error in errors), None)


def _any(rng: random.Random, depth: int) -> Schema:
    if depth <= 0 or rng.random() < 0.45:
        return _leaf(rng)
    return rng.choice(_NESTED)(rng, depth - 1)


def _leaf(rng: random.Random) -> Schema:
    return rng.choice(_LEAVES)(rng)


def _string(rng: random.Random) -> Schema:
    low = rng.randrange(0, 4)
    return rng.choice(
        (
            {"type": "string"},
            {"type": "string", "minLength": low, "maxLength": low + rng.randrange(0, 12)},
            {"type": "string", "minLength": low},
            {"type": "string", "pattern": rng.choice(("^[a-z]{2,8}$", "^(yes|no)$", "[0-9]+$"))},
            {"type": "string", "format": rng.choice(("date", "ipv4", "uuid"))},
        )
    )


def _integer(rng: random.Random) -> Schema:
    low = rng.randrange(-1000, 1000)
    return rng.choice(
        (
            {"type": "integer"},
            {"type": "integer", "minimum": low, "maximum": low + rng.randrange(0, 500)},
            {"type": "integer", "exclusiveMinimum": low},
            {"type": "integer", "multipleOf": rng.choice((2, 5, 10, 7)), "minimum": 0},
        )
    )


def _number(rng: random.Random) -> Schema:
    low = rng.uniform(-10, 10)
    return rng.choice(
        (
            {"type": "number"},
            {"type": "number", "minimum": round(low, 3), "maximum": round(low + 5, 2)},
            {"type": "number", "exclusiveMaximum": 0},
        )
    )


def _enum(rng: random.Random) -> Schema:
    values = ["red", 'a "b" c', "ü", 7, -1.5, None, True, ["x", 1], {"k": []}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randrange(1, 5))}


def _simple(rng: random.Random) -> Schema:
    return {"type": rng.choice(("boolean", "null", ["string", "null"], ["integer", "boolean"]))}


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randrange(1, 5))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": rng.sample(names, rng.randrange(0, len(names) + 1)),
    }
    extra = rng.choice((False, False, None, {"type": "integer"}))
    if extra is not None:
        schema["additionalProperties"] = extra
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "items": _any(rng, depth)}
    low = rng.randrange(0, 3)
    if rng.random() < 0.5:
        schema |= {"minItems": low, "maxItems": low + rng.randrange(0, 4)}
    if rng.random() < 0.2:
        schema |= {"prefixItems": [_leaf(rng)]}
    return schema


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randrange(1, 4))]}


def _all_of(rng: random.Random, depth: int) -> Schema:
    base = _object(rng, depth)
    base.pop("additionalProperties", None)
    base["properties"].pop("x", None)
    base["required"] = [name for name in base["required"] if name != "x"]
    return {"allOf": [base, {"type": "object", "properties": {"x": {"type": "integer"}}}]}


def _map(rng: random.Random, depth: int) -> Schema:
    return {
        "type": "object",
        "patternProperties": {"^[a-z]{1,3}$": _any(rng, depth)},
        "additionalProperties": False,
    }


_LEAVES: tuple[Callable[[random.Random], Schema], ...] = (
    _string,
    _string,
    _integer,
    _number,
    _enum,
    _simple,
)
_NESTED: tuple[Callable[[random.Random, int], Schema], ...] = (
    _object,
    _object,
    _array,
    _any_of,
    _all_of,
    _map,
)

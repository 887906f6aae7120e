"""Requests out of the schema that the server itself publishes, right and wrong.

Knows: the part of JSON schema that `/openapi.json` uses. Does not know: any parameter by name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from gpt_oss_server.api.openapi import document

# What no schema allows somewhere: too large, no number, nothing, another type, deep.
RUBBISH: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), float("-inf"), 5e-324),
    *("", "x", "\x00", "\ud800", "\u202e\ufeff", "é" * 50, "<|start|>", "<|end|><|return|>"),
    *([], {}, [[]], [None], {"": None}, {"type": "text"}, {"$ref": "#"}, ["x"] * 40),
)
_DEEPEST = 6


class Requests:
    """Draws request bodies. `faults` is the share of values that are replaced by rubbish."""

    def __init__(self, rng: random.Random, faults: float) -> None:
        self._rng = rng
        self._faults = faults
        published = document("1")
        self._definitions: Mapping[str, Any] = published["components"]["schemas"]
        self.schemas: dict[str, Any] = {
            path: verbs["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, verbs in published["paths"].items()
            if "post" in verbs
        }

    def draw(self, path: str) -> Any:
        """A body for that path: an object, or now and then anything else."""
        return self._value(self.schemas[path], 0)

    def rubbish(self, depth: int = 0) -> Any:
        """Anything, nested or not."""
        if depth < _DEEPEST and self._rng.random() < 0.3:
            inner = [self.rubbish(depth + 1) for _ in range(self._rng.randint(1, 3))]
            names = (self._rng.choice(("role", "type", "a", "\x00")) for _ in inner)
            return inner if self._rng.random() < 0.5 else dict(zip(names, inner, strict=True))
        return self._rng.choice(RUBBISH)

    def _value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict) or self._rng.random() < self._faults:
            return self.rubbish(depth)
        if "$ref" in schema:
            return self._value(self._definitions[schema["$ref"].rpartition("/")[2]], depth)
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return self._value(self._rng.choice(schema[choice]), depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(schema["enum"])
        draw = getattr(self, f"_{schema.get('type', 'anything')}")
        return draw(schema, depth)

    def _anything(self, schema: Any, depth: int) -> Any:
        return self.rubbish(depth)

    def _null(self, schema: Any, depth: int) -> None:
        return None

    def _boolean(self, schema: Any, depth: int) -> bool:
        return self._rng.random() < 0.5

    def _integer(self, schema: Any, depth: int) -> int:
        low, high = schema.get("minimum", -5), schema.get("maximum", 500)
        return self._rng.choice((low, low + 1, min(high, low + 7), high))

    def _number(self, schema: Any, depth: int) -> float:
        low, high = schema.get("minimum", -5.0), schema.get("maximum", 5.0)
        return self._rng.choice((low, high, (low + high) / 2, self._rng.uniform(low, high)))

    def _string(self, schema: Any, depth: int) -> str:
        text = self._rng.choice(("a", "tiny", "Grüße, 世界 🙂", "{}", '{"type": "object"}', "\\d+"))
        return text * max(1, schema.get("minLength", 0))

    def _array(self, schema: Any, depth: int) -> list[Any]:
        most = 3 if depth < _DEEPEST else 1
        length = self._rng.randint(schema.get("minItems", 0), max(schema.get("minItems", 0), most))
        return [self._value(schema.get("items", True), depth + 1) for _ in range(length)]

    def _object(self, schema: Any, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        drawn = {
            name: self._value(inner, depth + 1)
            for name, inner in properties.items()
            if name in required or self._rng.random() < (0.15 if depth == 0 else 0.5)
        }
        more = schema.get("additionalProperties", True)
        if more is not False and self._rng.random() < 0.5:
            drawn[self._rng.choice(("5", "name", ""))] = self._value(more, depth + 1)
        return drawn

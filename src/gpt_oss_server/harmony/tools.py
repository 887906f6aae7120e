"""Function tools as the TypeScript-like declarations that gpt-oss was trained on.

Knows: how a JSON Schema reads as a TypeScript type with comments. Does not know: messages, tokens,
whether a model's arguments fit the schema.

Source: https://github.com/openai/harmony/blob/main/docs/format.md, "Function calling", and the
behaviour of the renderer published there (openai-harmony 0.0.8) where the page is silent: titles,
examples, nullable, oneOf, nested objects and defaults. Beyond it: `anyOf` reads like `oneOf`,
`const` like an enum of one, and no description of a oneOf's branch is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

MAX_DEPTH = 32
"""Nesting beyond this reads as `any`."""


def render_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """The `# Tools` section of a developer message, for OpenAI's `tools` parameter.

    Args:
        tools: `{"type": "function", "function": {"name", "description"?, "parameters"?}}`.
    """
    lines = ["# Tools", "", "## functions", "", "namespace functions {", ""]
    for tool in tools:
        function = tool["function"]
        lines += [f"// {line}" for line in (function.get("description") or "").splitlines()]
        lines += [f"type {function['name']} = {_signature(function.get('parameters'))};", ""]
    lines.append("} // namespace functions")
    return "\n".join(lines)


def _signature(parameters: Schema | None) -> str:
    if not parameters or not parameters.get("properties"):
        return "() => any"
    return f"(_: {type_of(parameters)}) => any"


def type_of(schema: object, indent: str = "") -> str:
    """A JSON Schema as a TypeScript type; `indent` is the margin of lines after the first."""
    if not isinstance(schema, Mapping) or len(indent) > 4 * MAX_DEPTH:
        return "any"
    if variants := _variants(schema):
        separator = f"\n{indent} | "
        return separator + separator.join(_variant(v, indent) for v in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(names) or "any"
    match kind:
        case "object":
            return _object(schema, indent)
        case "array":
            return f"{type_of(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
        case "number" | "integer":
            return "number"
        case "boolean" | "null":
            return str(kind)
    if choices := _choices(schema):
        return " | ".join(choices)
    return "string" if kind == "string" else "any"


def _object(schema: Schema, indent: str) -> str:
    properties, required = schema.get("properties"), schema.get("required")
    required = required if isinstance(required, list) else []
    properties = properties if isinstance(properties, Mapping) else {}
    lines = []
    if description := schema.get("description"):
        lines.append(f"{indent}// {description}")
    lines.append("{")
    for name, value in properties.items():
        mark = "" if name in required else "?"
        lines += _property(f"{indent}{name}{mark}:", value, indent)
    lines.append(indent + "}")
    return "\n".join(lines)


def _property(head: str, schema: object, indent: str) -> Iterator[str]:
    """The comment lines and the declaration of one property."""
    if not isinstance(schema, Mapping):
        yield f"{head} any,"
        return
    yield from (f"{indent}{line}" for line in _comments(schema))
    default = _default(schema)
    if variants := _variants(schema):
        if default:
            yield f"{indent}// {default}"
        yield head
        described = schema.get("description")
        for variant in variants:
            yield f"{indent} | {_variant(variant, indent, above=described)}"
        yield f"{indent},"
        return
    comment = f" // {default}" if default else ""
    yield f"{head} {_nullable(schema, type_of(schema, indent + '    '))},{comment}"


def _comments(schema: Schema) -> Iterator[str]:
    if title := schema.get("title"):
        yield f"// {title}"
        yield "//"
    if description := schema.get("description"):
        yield f"// {description}"
    listed = schema.get("examples")
    examples = [e for e in listed if isinstance(e, str)] if isinstance(listed, list) else []
    if examples:
        yield "// Examples:"
        yield from (f'// - "{example}"' for example in examples)


def _variant(schema: object, indent: str, above: object = None) -> str:
    """One branch of a oneOf, its description and default behind it."""
    text = type_of(schema, indent + "   ")
    if not isinstance(schema, Mapping):
        return text
    comments = [_default(schema)]
    if (description := schema.get("description")) and description != above:
        comments.insert(0, str(description))
    tail = " ".join(comment for comment in comments if comment)
    return _nullable(schema, text) + (f" // {tail}" if tail else "")


def _variants(schema: Schema) -> Sequence[object]:
    found = schema.get("oneOf") or schema.get("anyOf")
    return found if isinstance(found, list) else ()


def _choices(schema: Schema) -> list[str]:
    """The values of an enum or a const, as they are written in TypeScript."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return []
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _nullable(schema: Schema, text: str) -> str:
    return f"{text} | null" if schema.get("nullable") and "null" not in text else text


def _default(schema: Schema) -> str:
    """`default: …`; the published renderer leaves the quotes off the default of an enum."""
    if "default" not in schema:
        return ""
    value = schema["default"]
    if isinstance(value, str) and schema.get("enum"):
        return f"default: {value}"
    return f"default: {json.dumps(value, ensure_ascii=False)}"

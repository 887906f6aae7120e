"""A model's own chat template: where it is stored, and rendering it as transformers does.

Knows: the files and fields that hold a template, the variables and functions templates expect, the
sandbox. Does not know: tokens, harmony, what a rendered prompt is used for.

Source: transformers' `utils/chat_template_utils.py` (the environment: trim_blocks, lstrip_blocks,
`raise_exception`, `strftime_now`, `tojson` without HTML escapes, `{% break %}`, `{% generation %}`)
and `tokenization_utils_base.py` (None-valued keys are dropped, reasoning has three names). Not
imported from there, because that import costs seconds and brings torch into the front process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt_oss_server.errors import BadRequest, StartupError

# What evaluating a template on a conversation it was not written for may raise.
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class ChatTemplate:
    """A compiled template. Rendering is pure but for the date; safe from several threads.

    Args:
        source: the template's text.
        variables: what it sees beside the conversation (`bos_token` and the like).
        today: the date that `strftime_now` formats; its time of day is always 0:00, so that
            prompts keep a common prefix.

    Raises:
        StartupError: the source is not a valid template.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], *, today: Callable[[], date]
    ) -> None:
        self.source = source
        self._variables = dict(variables)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.combine(
            today(), time()
        ).strftime(form)
        try:
            self._template = environment.from_string(source)
            self._looked_at = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise StartupError(
                f"the model's chat template is invalid at line {error.lineno}: {error.message}"
            ) from error

    def knows(self, variable: str) -> bool:
        """Whether the template looks at a variable."""
        return variable in self._looked_at

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt's text. Raises BadRequest where the template refuses the conversation."""
        variables = {**self._variables, **extra}
        try:
            return self._template.render(
                messages=[_as_templates_expect(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=True,
                **variables,
            )
        except _REFUSALS as error:
            raise BadRequest(
                f"the model's chat template refused the conversation: {error}", param="messages"
            ) from error


def read_template(folder: Path, *, with_tools: bool = False) -> str | None:
    """The template of a model folder, or None. A file of its own wins over `tokenizer_config.json`;
    of several named ones "default" is taken, or "tool_use" where tools are given."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = read_json(folder / "chat_template.json").get("chat_template")
    found = found or read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        by_name = {item["name"]: item["template"] for item in found}
        found = by_name.get("default")
        if with_tools:
            found = by_name.get("tool_use", found)
    return found if isinstance(found, str) else None


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The named special tokens (`bos_token` …) of a model folder, as texts."""
    merged = read_json(folder / "special_tokens_map.json")
    merged |= read_json(folder / "tokenizer_config.json")
    texts = {}
    for name in _SPECIAL_NAMES:
        value = merged.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            texts[name] = value
    return texts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's file; {} if there is no such file.

    Raises:
        StartupError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise StartupError(f"cannot read {path}: it is not a JSON object")
    return found


def _as_templates_expect(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without None-valued keys, reasoning under every name, call arguments as objects."""
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING_NAMES if name in present), None)
    if reasoning is not None:
        present = {"thinking": reasoning, **present, "reasoning_content": reasoning}
    if calls := present.get("tool_calls"):
        present["tool_calls"] = [_with_object_arguments(call) for call in calls]
    return present


def _with_object_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI sends arguments as JSON text; templates apply `tojson` to them."""
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return {**call, "function": function}


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )

"""What a request's tools come to: what the model is shown, what it is held to.

Knows: when a choice of tools needs more than the model's good will, and how a refusal is worded.
Does not know: how a model is shown or held (its `ChatFormat` does), output.

Left to itself (`auto`, nothing strict, no format of the answer) a model writes freely. It is guided

- where it must call: `required`, a named function;
- where only some of the tools may be called;
- where a function that it may call is strict: its arguments are then as its schema says;
- where an answer in place of a call has a format.

A guided call's arguments always are a JSON object; those of a function that is not strict follow
its schema as far as the keywords can be enforced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpt_oss_server.api.json_schema import SchemaError
from gpt_oss_server.api.schema_guided import schema_grammar
from gpt_oss_server.api.schema_tools import Tool, ToolChoice
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import Grammar, GuidedSpec


class Wanted(Protocol):
    """The parts of a request that are about tools, and what they meet."""

    @property
    def tools(self) -> Sequence[Tool] | None: ...

    @property
    def chosen_tools(self) -> ToolChoice: ...

    @property
    def may_call_several(self) -> bool: ...

    @property
    def grammar(self) -> Grammar | None: ...


@dataclass(frozen=True)
class TurnPlan:
    """How one turn is to go.

    Attributes:
        shown: tools for the prompt, as `ChatFormat.render_chat` takes them; None for none.
        guide: what the output is held to; None leaves it free.
        offered: whether calls are looked for and told.
        parallel: whether there may be more than one.
    """

    shown: list[dict[str, Any]] | None = None
    guide: GuidedSpec | None = None
    offered: bool = False
    parallel: bool = True


def plan_turn(chat_format: ChatFormat, request: Wanted) -> TurnPlan:
    """Takes time that grows with the tools. Raises BadRequest, naming the parameter, where this
    model cannot be held to what is asked for."""
    choice, tools, grammar = request.chosen_tools, request.tools or (), request.grammar
    if choice.mode == "none":
        return TurnPlan(guide=None if grammar is None else chat_format.answer_guide(grammar))
    callable_tools = {
        index: tool
        for index, tool in enumerate(tools)
        if choice.names is None or tool.function.name in choice.names
    }
    narrowed = len(callable_tools) < len(tools)
    strict = [index for index, tool in callable_tools.items() if tool.function.strict]
    required = choice.mode == "required"
    guide = None
    if required or narrowed or strict or grammar is not None:
        guide = chat_format.call_guide(
            {tool.function.name: _grammar(i, tool) for i, tool in callable_tools.items()},
            required=required,
            answer=None if required else grammar,
            parallel=request.may_call_several,
        )
        if guide is None:
            _refuse_unguided(required=required, strict=strict, answer=grammar)
            tools = list(callable_tools.values())
    return TurnPlan(
        shown=[shown_tool(tool) for tool in tools],
        guide=guide,
        offered=True,
        parallel=request.may_call_several,
    )


def _grammar(index: int, tool: Tool) -> Grammar:
    param = f"tools[{index}].function.parameters"
    function = tool.function
    try:
        return schema_grammar(
            function.schema_of_arguments, strict=bool(function.strict), param=param
        )
    except SchemaError as error:
        raise BadRequest(f"Invalid value for '{param}': {error}.", param=param) from None


def _refuse_unguided(*, required: bool, strict: list[int], answer: Grammar | None) -> None:
    """Raises BadRequest unless showing the model fewer tools is all there is to do."""
    if required:
        param, problem = "tool_choice", "cannot be made to call a function"
    elif strict:
        param = f"tools[{strict[0]}].function.strict"
        problem = "cannot be held to a function's schema while it may also answer"
    elif answer is not None:
        param, problem = answer.param, "cannot be held to a format while it may also call tools"
    else:
        return
    raise BadRequest(f"Invalid value for '{param}': this model {problem}.", param=param)


def shown_tool(tool: Tool) -> dict[str, Any]:
    """A tool as `ChatFormat.render_chat` takes it, in the order and with the members that chat
    templates expect."""
    function = tool.function
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}

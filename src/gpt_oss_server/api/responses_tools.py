"""Tools and format of a response's turn, by the rules that chat completions have.

Knows: how the one API's parameters are called in the other. Does not know: the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.api.schema_tools import Tool, ToolChoice
from gpt_oss_server.api.tools import TurnPlan, plan_turn
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import Grammar


@dataclass(frozen=True)
class _Wanted:
    tools: Sequence[Tool]
    chosen_tools: ToolChoice
    may_call_several: bool
    grammar: Grammar | None


def plan_response_turn(chat_format: ChatFormat, request: ResponsesRequest) -> TurnPlan:
    """How the turn is to go. Raises BadRequest, naming the parameter, where this model cannot be
    held to what is asked for."""
    wanted = _Wanted(
        tools=[tool.as_chat_tool for tool in request.tools or ()],
        chosen_tools=request.chosen_tools,
        may_call_several=request.parallel_tool_calls is not False,
        grammar=None if request.answer_format is None else request.answer_format.grammar,
    )
    try:
        plan = plan_turn(chat_format, wanted)
    except BadRequest as refused:
        if refused.param is not None:
            refused.message = refused.message.replace(refused.param, _renamed(refused.param))
            refused.param = _renamed(refused.param)
        raise
    if plan.guide is None:
        return plan
    grammars = [
        msgspec.structs.replace(grammar, param=_renamed(grammar.param))
        for grammar in plan.guide.grammars
    ]
    return replace(plan, guide=msgspec.structs.replace(plan.guide, grammars=tuple(grammars)))


def _renamed(param: str) -> str:
    """`tools[0].function.parameters` is `tools[0].parameters` here."""
    return param.replace("].function.", "].") if param.startswith("tools[") else param

"""The response object at any moment of its life: what of the request it repeats, what came of it.

Knows: defaults as OpenAI fills them in, statuses. Does not know: tokens, events, the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.responses_output import ResponseOutput
from gpt_oss_server.api.sampling import OPENAI_DEFAULTS, SamplingDefaults, given
from gpt_oss_server.api.schema_responses import FunctionTool, ResponsesRequest
from gpt_oss_server.errors import ServerError, spec_of


@dataclass(frozen=True)
class ResponseObject:
    """One response, begun at `created_at` (Unix seconds). `model` is the id it is answered
    under; `store` whether it is meant to be kept."""

    id: str
    model: str
    created_at: int
    request: ResponsesRequest
    store: bool
    defaults: SamplingDefaults = OPENAI_DEFAULTS

    def begun(self) -> wire.Response:
        """Before there is any output."""
        request = self.request
        reasoning = request.reasoning
        return wire.Response(
            id=self.id,
            created_at=self.created_at,
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            metadata=request.metadata or {},
            model=self.model,
            output=[],
            parallel_tool_calls=request.parallel_tool_calls is not False,
            previous_response_id=request.previous_response_id,
            prompt_cache_key=request.prompt_cache_key,
            reasoning={
                "effort": None if reasoning is None else reasoning.effort,
                "summary": None if reasoning is None else reasoning.wanted_summary,
            },
            safety_identifier=request.safety_identifier,
            store=self.store,
            temperature=given(request.temperature, self.defaults.temperature),
            text={"format": _format(request), "verbosity": "medium"},
            tool_choice=_tool_choice(request),
            tools=[_tool(tool) for tool in request.tools or ()],
            top_logprobs=request.top_logprobs or 0,
            top_p=given(request.top_p, self.defaults.top_p),
            truncation=request.truncation or "disabled",
            user=request.user,
        )

    def ended(
        self,
        output: ResponseOutput,
        items: Sequence[wire.OutputItem],
        *,
        input_tokens: int,
        completed_at: int,
    ) -> wire.Response:
        """Complete, or cut off by the bound on its tokens."""
        cut = output.finish == "length"
        return msgspec.structs.replace(
            self.begun(),
            status="incomplete" if cut else "completed",
            completed_at=None if cut else completed_at,
            incomplete_details=wire.IncompleteDetails("max_output_tokens") if cut else None,
            output=list(items),
            usage=usage_of(output, input_tokens),
        )

    def failed(self, error: ServerError, items: Sequence[wire.OutputItem]) -> wire.Response:
        """Ended by an error; what there was of its output, as it was."""
        code = "rate_limit_exceeded" if spec_of(error).status == 429 else "server_error"
        return msgspec.structs.replace(
            self.begun(),
            status="failed",
            error=wire.ResponseError(code, error.message),
            output=list(items),
            store=False,
        )


def usage_of(output: ResponseOutput, input_tokens: int) -> wire.ResponseUsage:
    """The token counts of a response."""
    return wire.ResponseUsage(
        input_tokens=input_tokens,
        input_tokens_details=wire.InputTokensDetails(output.cached_tokens),
        output_tokens=output.completion_tokens,
        output_tokens_details=wire.OutputTokensDetails(output.reasoning_tokens),
        total_tokens=input_tokens + output.completion_tokens,
    )


def _format(request: ResponsesRequest) -> dict[str, Any]:
    wanted = request.answer_format
    if wanted is None:
        return {"type": "text"}
    shown = wanted.model_dump(by_alias=True, exclude_none=True)
    if wanted.type == "json_schema":
        shown.setdefault("strict", False)
    return shown


def _tool_choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }

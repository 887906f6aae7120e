"""`POST /tokenize` and `POST /detokenize`: vLLM's requests, in their useful part.

Knows: the fields. Does not know: tokenisers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gpt_oss_server.api.schema_chat import Messages
from gpt_oss_server.api.schema_common import ReasoningEffort, StrictModel, wrong
from gpt_oss_server.api.schema_tools import Tools


class TokenizeRequest(StrictModel):
    """Either `prompt` (plain text) or `messages` (rendered as a chat request would be)."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: Tools | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise wrong("give either this or 'messages'", field="prompt")
        if self.prompt is not None:
            for name in ("reasoning_effort", "tools"):
                if getattr(self, name) is not None:
                    raise wrong("only allowed with 'messages'", field=name)
        return self


class DetokenizeRequest(StrictModel):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]

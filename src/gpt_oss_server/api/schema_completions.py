"""`POST /v1/completions`: the request in OpenAI's shape, and what of it is refused.

Knows: the four forms of a prompt, legacy parameters. Does not know: tokens' meaning.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from gpt_oss_server.api.schema_common import Unsupported, wrong
from gpt_oss_server.api.schema_guided import GuidedFields

DEFAULT_MAX_TOKENS = 16
"""What OpenAI's API uses when a completion request leaves `max_tokens` open."""


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_id, value))


def _prompt_form(value: Any) -> Any:
    """Checked by hand: a union of lists would report one error per member and token."""
    is_list = isinstance(value, list) and bool(value)
    if isinstance(value, str) or (
        is_list
        and (all(isinstance(v, str) for v in value) or _is_ids(value) or all(map(_is_ids, value)))
    ):
        return value
    raise wrong(
        "should be a string, a list of strings, a list of token ids or a list of such lists, "
        "and not empty"
    )


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Prompt = Annotated[
    Any,
    AfterValidator(_prompt_form),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ]
        }
    ),
]


class CompletionRequest(GuidedFields):
    """A text completion request."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1)
    suffix: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of not in (1, self.choices_per_prompt):
            raise wrong("only 1 or the value of 'n' is supported", field="best_of")
        if self.best_of == 1 and self.choices_per_prompt > 1:
            raise wrong("must not be smaller than 'n'", field="best_of")
        if self.echo and self.logprobs is not None:
            raise wrong("logprobs of an echoed prompt are not supported yet", field="logprobs")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or a list of token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def batched(self) -> bool:
        """Whether the client sent a list of prompts, so that errors name one by its index."""
        return not isinstance(self.prompt, str) and not isinstance(self.prompt[0], int)

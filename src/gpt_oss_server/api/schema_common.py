"""What chat completions and completions have in common: the strict base and sampling parameters.

Knows: names, types and ranges as OpenAI and vLLM document them, and which parameters are refused.
Does not know: prompts, the model's vocabulary or its context length.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_N = 128
MAX_INT32 = 2**31 - 1


class StrictModel(BaseModel):
    """No coercion, no unknown fields, no NaN, no mutation, and no input echoed in errors."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


def wrong(message: str, *, field: str | None = None) -> PydanticCustomError:
    """An error for a validator to raise; `field` extends the location by one name."""
    return PydanticCustomError("invalid", "{message}", {"message": message, "field": field})


def only(*no_ops: object) -> AfterValidator:
    """A parameter that is not supported: values that change nothing pass, others are refused."""

    def check(value: object) -> object:
        # `1 == True` in Python; a parameter whose no-op is `true` must not accept 1.
        if any(type(value) is type(no_op) and value == no_op for no_op in no_ops):
            return value
        raise wrong("this parameter is not supported yet")

    return AfterValidator(check)


Unsupported = Annotated[Any, only(None)]
"""A parameter that OpenAI knows and this server cannot honour: only null passes."""


def _check_stop(value: Any) -> Any:
    """Checked by hand: a union would report one error per member, at paths that do not exist."""
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, list) or not all(isinstance(s, str) and s for s in value):
        raise wrong("should be a non-empty string or a list of non-empty strings")
    if len(value) > MAX_STOPS:
        raise wrong(f"at most {MAX_STOPS} stop sequences are allowed")
    return value


StopStringsField = Annotated[
    Any,
    AfterValidator(_check_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS},
                {"type": "null"},
            ]
        }
    ),
]


Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""What OpenAI allows as the name of an author or a function."""


class StreamOptions(StrictModel):
    """`include_obfuscation` pads chunks against traffic analysis; only "off" is supported."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(None, False)] = None


class SamplingFields(StrictModel):
    """How tokens are picked and when generation ends. None means the documented default."""

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT32)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: StopStringsField = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=MAX_N)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    # Beyond these bounds a float32 logit would overflow.
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024
    )
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check_streaming(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise wrong("only allowed when 'stream' is true", field="stream_options")
        return self

    @model_validator(mode="after")
    def _check_logit_bias(self) -> SamplingFields:
        for key in self.logit_bias or ():
            # isascii: str.isdigit accepts digits that are not decimal, such as superscripts.
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise wrong("keys must be token ids written as strings", field="logit_bias")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings, none empty."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def bias_by_token(self) -> dict[int, float]:
        return {int(key): float(value) for key, value in (self.logit_bias or {}).items()}


ReasoningEffort = Literal["low", "medium", "high"]

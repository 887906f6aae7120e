"""From a validated request and a tokenised prompt to engine jobs, and the checks between.

Knows: context lengths, the vocabulary's size, seeds, what a bound left open means. Does not know:
text, HTTP, or what the engine does with a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpt_oss_server.api.schema_common import SamplingFields
from gpt_oss_server.errors import BadRequest, ContextTooLong
from gpt_oss_server.types import EngineInfo, GuidedSpec, Job, SamplingParams

T = TypeVar("T")

SEED_RANGE = 2**63
_SEED_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, as in SplitMix64
GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing float32 logits by them would overflow."""


@dataclass(frozen=True)
class SamplingDefaults:
    """What a parameter is that a request leaves open: OpenAI's values, unless the served model
    has its own."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


OPENAI_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True)
class OutputLimit:
    """The bound on new tokens. `tokens` is None where the client left it open; `name` is the
    parameter an error should blame; `default_tokens` holds for an open bound (None: as many as
    the context has room for)."""

    tokens: int | None
    name: str = "max_tokens"
    default_tokens: int | None = None


def check_prompt_length(prompt_tokens: int, info: EngineInfo, *, param: str) -> None:
    """Raises BadRequest for an empty prompt, ContextTooLong for one that leaves no room for a
    single new token; `param` is the request field that holds the prompt."""
    if prompt_tokens == 0:
        raise BadRequest("The prompt must not be empty.", param=param)
    if prompt_tokens >= info.max_model_len:
        raise ContextTooLong(
            f"This model's maximum context length is {info.max_model_len} tokens, and at least "
            f"one is needed for the answer; the prompt has {prompt_tokens} tokens.",
            param=param,
        )


def check_fewest_tokens(fewest: int, info: EngineInfo, *, param: str) -> None:
    """Raises ContextTooLong if a prompt of at least this many tokens leaves no room for a single
    new one; to be asked before the tokens are counted, which takes long where they are many."""
    if fewest >= info.max_model_len:
        raise ContextTooLong(
            f"This model's maximum context length is {info.max_model_len} tokens, and at least "
            f"one is needed for the answer; the prompt has at least {fewest} tokens.",
            param=param,
        )


def output_tokens(limit: OutputLimit, prompt_tokens: int, info: EngineInfo) -> int:
    """The bound on new tokens to give the engine.

    Raises ContextTooLong if the client's own bound and the prompt exceed the context together; a
    bound left open is cut to the room there is.
    """
    room_tokens = info.max_model_len - prompt_tokens
    if limit.tokens is None:
        return min(limit.default_tokens or room_tokens, room_tokens)
    if limit.tokens > room_tokens:
        raise ContextTooLong(
            f"This model's maximum context length is {info.max_model_len} tokens. The request "
            f"asks for {limit.tokens + prompt_tokens} ({prompt_tokens} in the prompt, "
            f"{limit.tokens} for the answer).",
            param=limit.name,
        )
    return limit.tokens


def check_token_fields(request: SamplingFields, info: EngineInfo) -> None:
    """Raises BadRequest where `logit_bias` or `stop_token_ids` name ids outside the vocabulary."""
    if any(token >= info.vocab_size for token in request.bias_by_token):
        raise BadRequest(
            f"'logit_bias' has a token id outside the vocabulary (0 to {info.vocab_size - 1}).",
            param="logit_bias",
        )
    for index, token in enumerate(request.stop_token_ids or ()):
        if token >= info.vocab_size:
            raise BadRequest(
                f"'stop_token_ids' has an id outside the vocabulary (0 to {info.vocab_size - 1}).",
                param=f"stop_token_ids[{index}]",
            )


def sampling_params(
    request: SamplingFields,
    *,
    max_tokens: int,
    seed: int,
    turn_end_ids: Sequence[int],
    logprobs: int | None,
    guided: GuidedSpec | None = None,
    defaults: SamplingDefaults = OPENAI_DEFAULTS,
) -> SamplingParams:
    """The engine's parameters for one choice.

    `turn_end_ids` end generation besides the client's own stop ids, unless it asked to ignore
    such ends. Raises BadRequest if `min_tokens` exceeds `max_tokens`.
    """
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequest(
            f"'min_tokens' ({min_tokens}) exceeds the most tokens there can be ({max_tokens}).",
            param="min_tokens",
        )
    ends = () if request.ignore_eos else tuple(turn_end_ids)
    temperature = given(request.temperature, defaults.temperature)
    top_p = float(given(request.top_p, defaults.top_p))
    if top_p == 0:  # the smallest nucleus is the most likely token alone
        temperature, top_p = 0.0, 1.0
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=0.0 if temperature < GREEDY_BELOW else float(temperature),
        top_p=top_p,
        top_k=max(0, given(request.top_k, defaults.top_k)),
        min_p=float(given(request.min_p, defaults.min_p)),
        seed=seed % SEED_RANGE,
        presence_penalty=float(request.presence_penalty or 0.0),
        frequency_penalty=float(request.frequency_penalty or 0.0),
        repetition_penalty=float(given(request.repetition_penalty, defaults.repetition_penalty)),
        logit_bias=request.bias_by_token,
        stop_token_ids=tuple(dict.fromkeys((*ends, *(request.stop_token_ids or ())))),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        guided=guided,
    )


def given(value: T | None, default: T) -> T:
    """The value, or the default for none."""
    return default if value is None else value


def choice_seed(seed: int, choice: int) -> int:
    """The seed of a request's choice, from 0. Far from its neighbours: with `seed + choice` the
    second choice of one request would be the first of the next seed's."""
    return (seed + choice * _SEED_STEP) % SEED_RANGE


@dataclass(frozen=True)
class JobPlan:
    """What all choices of one request share."""

    request: SamplingFields
    limit: OutputLimit
    turn_end_ids: tuple[int, ...]
    logprobs: int | None
    info: EngineInfo
    draw_seed: Callable[[], int]
    guided: GuidedSpec | None = None
    defaults: SamplingDefaults = OPENAI_DEFAULTS

    def jobs(self, prompts: Sequence[list[int]], id_prefix: str) -> list[Job]:
        """`n` jobs per prompt, prompt by prompt, named `<id_prefix>-<index>`.

        The first choice of a prompt has the request's seed and the others seeds of their own, so
        that choices differ and each can be repeated. Raises ContextTooLong or BadRequest.
        """
        check_token_fields(self.request, self.info)
        base_seed = self.request.seed if self.request.seed is not None else self.draw_seed()
        jobs: list[Job] = []
        for prompt in prompts:
            max_tokens = output_tokens(self.limit, len(prompt), self.info)
            for choice in range(self.request.choices_per_prompt):
                params = sampling_params(
                    self.request,
                    max_tokens=max_tokens,
                    seed=choice_seed(base_seed, choice),
                    turn_end_ids=self.turn_end_ids,
                    logprobs=self.logprobs,
                    guided=self.guided,
                    defaults=self.defaults,
                )
                jobs.append(
                    Job(
                        id=f"{id_prefix}-{len(jobs)}",
                        prompt=prompt,
                        sampling=params,
                        max_tokens_explicit=self.limit.tokens is not None,
                    )
                )
        return jobs

"""From requests to jobs: bounds, seeds, defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.parsing import validate
from gpt_oss_server.api.sampling import (
    JobPlan,
    OutputLimit,
    SamplingDefaults,
    check_prompt_length,
    choice_seed,
    output_tokens,
)
from gpt_oss_server.api.schema_chat import ChatRequest
from gpt_oss_server.engine.fake import DEFAULT_INFO
from gpt_oss_server.errors import BadRequest, ContextTooLong
from gpt_oss_server.types import SamplingParams

INFO = msgspec.structs.replace(DEFAULT_INFO, max_model_len=100, vocab_size=50)


def plan(limit: OutputLimit | None = None, **fields: Any) -> JobPlan:
    request = validate(
        ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    )
    return JobPlan(
        request=request,
        limit=limit or OutputLimit(request.output_limit),
        turn_end_ids=(2, 3),
        logprobs=request.wanted_logprobs,
        info=INFO,
        draw_seed=lambda: 1234,
    )


def params(**fields: Any) -> SamplingParams:
    return plan(**fields).jobs([[5]], "x")[0].sampling


def test_defaults() -> None:
    """A request without parameters: plain sampling at temperature 1, a drawn seed, open end."""
    [job] = plan().jobs([[5, 6]], "chat")
    assert job.id == "chat-0"
    assert job.prompt == [5, 6]
    assert not job.max_tokens_explicit
    assert job.sampling == SamplingParams(max_tokens=98, seed=1234, stop_token_ids=(2, 3))


def test_defaults_of_the_model() -> None:
    """They hold for what a request leaves open, and for nothing that it sets."""
    own = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
    open_plan, set_plan = (
        replace(plan(**fields), defaults=own)
        for fields in (
            {},
            {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1},
        )
    )
    assert open_plan.jobs([[5, 6]], "chat")[0].sampling == SamplingParams(
        max_tokens=98,
        seed=1234,
        stop_token_ids=(2, 3),
        temperature=0.6,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        repetition_penalty=1.1,
    )
    assert set_plan.jobs([[5, 6]], "chat") == plan().jobs([[5, 6]], "chat")


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 1e-6}, "temperature", 0.0),
        ({"temperature": 0.01}, "temperature", 0.01),
        ({"top_p": 0, "temperature": 1.5}, "temperature", 0.0),
        ({"top_p": 0}, "top_p", 1.0),
        ({"top_p": 0.25}, "top_p", 0.25),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 4}, "top_k", 4),
        ({"seed": -1}, "seed", 2**63 - 1),
        ({"seed": 5}, "seed", 5),
        ({"ignore_eos": True}, "stop_token_ids", ()),
        ({"ignore_eos": True, "stop_token_ids": [9]}, "stop_token_ids", (9,)),
        ({"stop_token_ids": [9, 2, 9]}, "stop_token_ids", (2, 3, 9)),
        ({"logprobs": True}, "logprobs", 0),
    ],
)
def test_values_given_to_the_engine(fields: dict[str, Any], name: str, value: Any) -> None:
    """Each request value and what the engine is given for it."""
    assert getattr(params(**fields), name) == value


def test_choices_differ_by_seed() -> None:
    """n jobs per prompt, numbered through; the first has the request's seed."""
    jobs = plan(n=2, seed=2**63 - 1).jobs([[5], [6]], "c")
    other = 0x9E3779B97F4A7C15 - 2**63 - 1
    assert [(job.id, job.prompt, job.sampling.seed) for job in jobs] == [
        ("c-0", [5], 2**63 - 1),
        ("c-1", [5], other),
        ("c-2", [6], 2**63 - 1),
        ("c-3", [6], other),
    ]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 1_000))
def test_neighbouring_seeds_share_no_choice(seed: int, distance: int) -> None:
    """No choice of one seed is repeated by a seed near it, whatever its number."""
    mine = {choice_seed(seed, choice) for choice in range(128)}
    theirs = {choice_seed(seed + distance, choice) for choice in range(128)}
    assert len(mine) == len(theirs) == 128
    assert min(mine | theirs) >= 0
    assert not mine & theirs


@pytest.mark.parametrize(
    ("limit", "prompt_tokens", "tokens"),
    [
        (OutputLimit(90), 10, 90),
        (OutputLimit(None), 10, 90),
        (OutputLimit(None, default_tokens=16), 10, 16),
        (OutputLimit(None, default_tokens=16), 95, 5),
    ],
)
def test_output_bound(limit: OutputLimit, prompt_tokens: int, tokens: int) -> None:
    """An explicit bound stands; an open one is the default or the room there is."""
    assert output_tokens(limit, prompt_tokens, INFO) == tokens


def test_output_bound_over_the_context() -> None:
    """One token too many is refused, with the numbers and the client's own parameter."""
    with pytest.raises(ContextTooLong) as caught:
        output_tokens(OutputLimit(91, "max_completion_tokens"), 10, INFO)
    assert caught.value.param == "max_completion_tokens"
    assert caught.value.message == (
        "This model's maximum context length is 100 tokens. The request asks for 101 "
        "(10 in the prompt, 91 for the answer)."
    )


@pytest.mark.parametrize(
    ("prompt_tokens", "error"), [(0, BadRequest), (99, None), (100, ContextTooLong)]
)
def test_prompt_length(prompt_tokens: int, error: type[BadRequest] | None) -> None:
    """A prompt needs at least one token and leaves room for at least one."""
    if error is None:
        check_prompt_length(prompt_tokens, INFO, param="prompt")
        return
    with pytest.raises(error) as caught:
        check_prompt_length(prompt_tokens, INFO, param="prompt")
    assert caught.value.param == "prompt"
    assert type(caught.value) is error

"""OpenAI's own client against the server: what it sends is taken, what it gets is as it expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from byte_format import END, THINK, THOUGHT, ids_of
from live_server import MODEL, Serve

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.engine.fake import Script
from gpt_oss_server.errors import BadRequest, EngineFailed
from gpt_oss_server.types import Job

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
PROMPT = "user:hello\n"


def says(text: str, reasoning: str = "", **options: Any) -> Callable[[Job], Script]:
    """A script that reasons, answers and ends."""
    thought = (THINK, *ids_of(reasoning), THOUGHT) if reasoning else ()
    return lambda job: Script((*thought, *ids_of(text), END), **options)


def test_chat_answer_has_every_field(serve: Serve) -> None:
    """A whole chat answer carries text, reasoning, finish reason and exact token counts."""
    client = serve(says("Hi, wörld!", "hm", cached_tokens=4)).openai()
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.system_fingerprint == "fp_gpt_oss_server"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hi, wörld!"
    assert choice.message.model_extra == {"reasoning_content": "hm"}
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.usage is not None
    # Tokens: <think> h m </think>, eleven bytes (ö is two), the end.
    assert answer.usage.to_dict() == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": 16,
        "total_tokens": len(PROMPT) + 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


def test_no_reasoning_no_field(serve: Serve) -> None:
    """`reasoning_content` is left out where the model did not reason."""
    answer = serve(says("Hi")).openai().chat.completions.create(model=MODEL, messages=HELLO)
    assert "reasoning_content" not in answer.choices[0].message.to_dict()


def test_chat_stream(serve: Serve) -> None:
    """A stream opens with the role, carries reasoning then content, and ends with a reason."""
    client = serve(says("a€b", "hm")).openai()
    with client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk.to_dict() for chunk in chunks)
    deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "a"},
        {"content": "€"},
        {"content": "b"},
        {},
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 6 + ["stop"]


def test_deltas_of_one_step_are_one_chunk(serve: Serve) -> None:
    """Tokens that arrive together leave together."""
    client = serve(says("abcdef", tokens_per_delta=4)).openai()
    with client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        texts = [chunk.choices[0].delta.content for chunk in stream]
    assert texts == ["", "abcd", "ef"]


def test_stream_usage(serve: Serve) -> None:
    """With include_usage, a last chunk without choices counts the tokens; the others say null."""
    client = serve(says("Hi")).openai()
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *others, last = list(stream)
    assert all(chunk.to_dict()["usage"] is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(PROMPT)
    assert last.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_run_side_by_side(serve: Serve, stream: bool) -> None:
    """`n` gives n choices that are generated apart, and the prompt is counted once."""
    live = serve(lambda job: Script((*ids_of(f"s4{job.id[-1]}"), END)))
    request: dict[str, Any] = {"model": MODEL, "messages": HELLO, "n": 3, "seed": 40}
    client = live.openai()
    texts = {0: "", 1: "", 2: ""}
    if stream:
        with client.chat.completions.create(**request, stream=True) as chunks:
            for chunk in chunks:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        answer = client.chat.completions.create(**request)
        texts = {choice.index: choice.message.content for choice in answer.choices}
        assert answer.usage.prompt_tokens == len(PROMPT)
        assert answer.usage.completion_tokens == 12
    assert texts == {0: "s40", 1: "s41", 2: "s42"}
    assert len({job.sampling.seed for job in live.engine.jobs}) == 3
    assert live.engine.jobs[0].sampling.seed == 40


def test_stop_string_cuts_and_cancels(serve: Serve) -> None:
    """A stop string over several tokens is never shown, ends the choice and cancels the job."""
    live = serve(says("one STOP two"))
    answer = live.openai().chat.completions.create(
        model=MODEL, messages=HELLO, stop=["nope", "STOP"]
    )
    assert answer.choices[0].message.content == "one "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("one STOP")
    live.until(lambda engine: engine.active == 0 and engine.cancelled == 1)


def test_stop_string_of_one_choice_leaves_the_others(serve: Serve) -> None:
    """With n > 1, a stop string ends only the choice that wrote it."""

    def script(job: Job) -> Script:
        return Script((*ids_of("aXb" if job.sampling.seed == 7 else "cde"), END))

    live = serve(script)
    answer = live.openai().chat.completions.create(
        model=MODEL, messages=HELLO, stop="X", n=2, seed=7
    )
    assert [choice.message.content for choice in answer.choices] == ["a", "cde"]
    assert (live.engine.cancelled, live.engine.finished) == (1, 1)


def test_stop_string_is_not_looked_for_in_reasoning(serve: Serve) -> None:
    """What the model thinks does not end its answer."""
    answer = (
        serve(says("fine", "STOP"))
        .openai()
        .chat.completions.create(model=MODEL, messages=HELLO, stop="STOP")
    )
    assert answer.choices[0].message.content == "fine"


def test_held_back_text_is_delivered_at_the_end(serve: Serve) -> None:
    """Text that might have begun a stop string is not lost when the answer ends."""
    client = serve(says("abST")).openai()
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, stop="STOP", stream=True
    ) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "abST"


def test_stop_token_ids_are_silent(serve: Serve) -> None:
    """A stop token named by the client ends the answer and is not part of its text."""
    answer = (
        serve(says("abcd"))
        .openai()
        .chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"stop_token_ids": list(ids_of("c"))}
        )
    )
    assert answer.choices[0].message.content == "ab"
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_by_either_name(serve: Serve, name: str) -> None:
    """Both names of the bound cut the answer, with finish reason `length`."""
    live = serve(says("abcdef"))
    answer = live.openai().chat.completions.create(
        model=MODEL, messages=HELLO, extra_body={name: 3}
    )
    assert answer.choices[0].message.content == "abc"
    assert answer.choices[0].finish_reason == "length"
    assert live.engine.jobs[0].max_tokens_explicit


def test_open_bound_is_the_rest_of_the_context(serve: Serve) -> None:
    """Without max_tokens a job may fill the context, and the engine is told it may lower that."""
    live = serve(says("a"))
    live.openai().chat.completions.create(model=MODEL, messages=HELLO)
    [job] = live.engine.jobs
    assert job.sampling.max_tokens == 4096 - len(PROMPT)
    assert not job.max_tokens_explicit


def test_chat_logprobs(serve: Serve) -> None:
    """Each content token, and no other, has its bytes, logprob and the alternatives asked for."""
    client = serve(says("é", "h")).openai()
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.bytes for token in logprobs.content] == [[0xC3], [0xA9]]
    assert [token.logprob for token in logprobs.content] == [-0.5, -0.5]
    assert [(top.bytes, top.logprob) for top in logprobs.content[0].top_logprobs] == [
        ([0xC3], -0.5),
        ([0xC4], -1.5),
    ]


def test_chat_logprobs_in_a_stream(serve: Serve) -> None:
    """A stream carries the same logprobs as a whole answer, chunk by chunk."""
    client = serve(says("ab")).openai()
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, stream=True
    ) as stream:
        logprobs = [chunk.choices[0].logprobs for chunk in stream]
    tokens = [token.token for part in logprobs if part for token in part.content or []]
    assert tokens == ["a", "b"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_end_where_a_stop_string_begins(serve: Serve, stream: bool) -> None:
    """What is not shown has no logprobs either, streamed or not."""
    client = serve(says("abSTOPc")).openai()
    request: dict[str, Any] = {"model": MODEL, "messages": HELLO, "logprobs": True, "stop": "STOP"}
    if stream:
        with client.chat.completions.create(**request, stream=True) as chunks:
            found = [chunk.choices[0].logprobs for chunk in chunks]
    else:
        found = [client.chat.completions.create(**request).choices[0].logprobs]
    tokens = [token.token for part in found if part for token in part.content or []]
    assert tokens == ["a", "b"]


def test_sampling_parameters_reach_the_engine(serve: Serve) -> None:
    """Every parameter that the engine honours arrives with the value that was sent."""
    live = serve(says("ab"))
    live.openai().chat.completions.create(
        model="openai/tiny",
        messages=HELLO,
        temperature=0.5,
        top_p=0.9,
        seed=11,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"20": 3},
        max_tokens=9,
        extra_body={
            "top_k": 5,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "min_tokens": 1,
            "stop_token_ids": [30],
        },
    )
    params = live.engine.jobs[0].sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 5, 0.125)
    assert (params.seed, params.max_tokens, params.min_tokens) == (11, 9, 1)
    assert (params.presence_penalty, params.frequency_penalty) == (0.25, -0.5)
    assert params.repetition_penalty == 1.5
    assert params.logit_bias == {20: 3.0}
    assert params.stop_token_ids == (END, 30)
    assert not params.ignore_eos
    assert params.logprobs is None


def test_an_answer_can_be_sent_back(serve: Serve) -> None:
    """The message that the client got is accepted as history, reasoning and nulls included."""
    live = serve(says("Hi", "hm"))
    client = live.openai()
    first = client.chat.completions.create(model=MODEL, messages=HELLO)
    again = client.chat.completions.create(
        model=MODEL,
        messages=[*HELLO, first.choices[0].message, {"role": "user", "content": "more"}],
    )
    assert again.choices[0].finish_reason == "stop"
    assert bytes(t - 16 for t in live.engine.jobs[1].prompt).decode() == (
        "user:hello\nassistant:Hi\nuser:more\n"
    )


def test_completion(serve: Serve) -> None:
    """A text completion answers with text, and stops at 16 tokens unless told otherwise."""
    client = serve(says("x" * 40)).openai()
    answer = client.completions.create(model=MODEL, prompt="abc")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)


def test_completion_prompts_and_echo(serve: Serve) -> None:
    """Several prompts times n are numbered prompt by prompt; echo puts each prompt in front."""
    client = serve().openai()
    answer = client.completions.create(model=MODEL, prompt=["ab", "c"], n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "cc", "cc"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 10


def test_completion_stream(serve: Serve) -> None:
    """A streamed completion adds up to the whole one, echo first, usage last."""
    client = serve().openai()
    with client.completions.create(
        model=MODEL,
        prompt=list(ids_of("abc")),
        echo=True,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = list(stream)
    assert [chunk.choices[0].text for chunk in chunks] == ["abc", "a", "b", "c", ""]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 7


def test_completion_logprobs(serve: Serve) -> None:
    """Completion logprobs are parallel lists with offsets into the text."""
    client = serve(says("aéb")).openai()
    answer = client.completions.create(model=MODEL, prompt="x", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "\ufffd", "\ufffd", "b"]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.text_offset == [0, 1, 1, 2]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.5, "b": -1.5}


def test_models(serve: Serve) -> None:
    """Every name of the model is listed with the context length, and each can be looked up."""
    client = serve().openai()
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL, "openai/tiny"]
    assert models[0].model_extra == {"max_model_len": 4096}
    assert models[0].created == 1_700_000_000
    assert client.models.retrieve("openai/tiny").id == "openai/tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_bad_request(serve: Serve) -> None:
    """A wrong parameter raises BadRequestError with its name."""
    client = serve().openai()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"


def test_unknown_model(serve: Serve) -> None:
    """A model that is not served raises NotFoundError."""
    client = serve().openai()
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_keys(serve: Serve) -> None:
    """With keys set, any of them opens /v1 and a wrong one raises AuthenticationError."""
    live = serve(says("Hi"), services={"api_keys": KeyRing(("alpha", "beta"))})
    for key in ("alpha", "beta"):
        answer = live.openai(key).chat.completions.create(model=MODEL, messages=HELLO)
        assert answer.choices[0].message.content == "Hi"
    with pytest.raises(openai.AuthenticationError) as caught:
        live.openai("gamma").models.list()
    assert caught.value.code == "invalid_api_key"


def test_full_engine(serve: Serve) -> None:
    """A full engine raises RateLimitError with a whole number of seconds to wait."""
    client = serve(max_active=0, retry_after_s=1.2).openai()
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert caught.value.response.headers["retry-after"] == "2"


@pytest.mark.parametrize("stream", [False, True])
def test_engine_failing_before_the_first_token(serve: Serve, stream: bool) -> None:
    """A failure before any token has a status of its own, streaming or not."""
    client = serve(says("Hi", fail_after=0)).openai()
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    assert caught.value.status_code == 503
    assert caught.value.code == "engine_failed"


def test_engine_failing_in_a_stream(serve: Serve) -> None:
    """After the first token a failure comes as an error event, which the client raises."""
    error = EngineFailed("The worker died.")
    client = serve(says("Hi there", fail_after=3, error=error)).openai()
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    texts: list[str | None] = []
    with stream, pytest.raises(openai.APIError, match=r"^The worker died\.$"):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == ["", "H", "i", " "]


def test_context_too_long(serve: Serve) -> None:
    """Prompt and bound together over the context: refused with the numbers, before any job."""
    live = serve()
    with pytest.raises(openai.BadRequestError) as caught:
        live.openai().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=10**9)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_tokens"
    assert "4096" in caught.value.message
    assert str(10**9 + len(PROMPT)) in caught.value.message
    assert live.engine.jobs == []


def test_a_refused_bound_has_the_name_it_was_given(serve: Serve) -> None:
    """What the engine calls `max_tokens` may be the client's `max_completion_tokens`."""
    refused = BadRequest("'max_tokens' leaves room for 1 token.", param="max_tokens")
    live = serve(lambda _: Script((65,), fail_after=0, error=refused))
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(openai.BadRequestError) as caught:
            live.openai().chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x"}], **{name: 1}
            )
        assert caught.value.param == name
        assert f"'{name}' leaves room for 1 token." in caught.value.message

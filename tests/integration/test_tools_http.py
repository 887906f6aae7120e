"""Function tools over HTTP: OpenAI's own client, models that say what a test scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import openai
import pydantic
import pytest
from live_server import MODEL, LiveServer, Serve

from gpt_oss_server.engine.fake import DEFAULT_INFO, Script
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import Job
from tool_models import (
    HERMES,
    LLAMA,
    PLAIN,
    chat_format_of,
    function,
    harmony,
    harmony_ids,
    ids_of,
    template_folder,
    vocabulary,
)

HELLO: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
TOOLS: list[Any] = [function("weather"), function("news")]
ARGUMENTS = '{"city": "Paris"}'
REASONED = "<|channel|>analysis<|message|>I ask.<|end|><|start|>assistant"
CALL = f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}"
SECOND = '<|start|>assistant<|channel|>commentary to=functions.news<|message|>{"city": "Oslo"}'
ANSWER = "<|channel|>final<|message|>It is sunny.<|return|>"


def says(*turns: str, **options: Any) -> Callable[[Job], Script]:
    """A model that says these, one after the other, job by job."""
    left = list(turns)
    return lambda job: Script(tuple(harmony_ids(left.pop(0))), **options)


@pytest.fixture
def serve_harmony(serve: Serve) -> Callable[..., LiveServer]:
    """A server whose model speaks harmony: `serve_harmony(script)`."""

    def start(script: Callable[[Job], Script]) -> LiveServer:
        info = msgspec.structs.replace(
            DEFAULT_INFO,
            vocab_size=harmony().vocab_size,
            eos_token_ids=harmony().stop_token_ids,
        )
        return serve(script, services={"chat_format": harmony()}, info=info)

    return start


def serve_template(
    serve: Serve, folder: Path, output: str, options: dict[str, bool]
) -> tuple[LiveServer, ChatFormat]:
    """A server of a model with a chat template, which says `output`."""
    chat = chat_format_of(folder)
    info = msgspec.structs.replace(
        DEFAULT_INFO, vocab_size=chat.vocab_size, eos_token_ids=chat.stop_token_ids
    )
    ids = tuple(ids_of(vocabulary(**options), output))
    return serve(lambda job: Script(ids), services={"chat_format": chat}, info=info), chat


def ask(live: LiveServer, messages: list[Any] = HELLO, **fields: Any) -> Any:
    fields = {"tools": TOOLS, **fields}
    return live.openai().chat.completions.create(model=MODEL, messages=messages, **fields)


def deltas_of(live: LiveServer, **fields: Any) -> list[dict[str, Any]]:
    """Every chunk's delta, and with it the finish reason where there is one."""
    with ask(live, stream=True, **fields) as stream:
        choices = [chunk.choices[0] for chunk in stream]
    reasons = [{"finish": c.finish_reason} if c.finish_reason else {} for c in choices]
    return [{**c.delta.to_dict(), **why} for c, why in zip(choices, reasons, strict=True)]


Harmony = Callable[..., LiveServer]


def test_a_whole_answer_with_a_call(serve_harmony: Harmony) -> None:
    """Reasoning, one call with an id, null content, and its finish reason."""
    answer = ask(serve_harmony(says(REASONED + CALL + "<|call|>")))
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.reasoning_content == "I ask."
    assert (call.type, call.function.name, call.function.arguments) == (
        *("function", "weather"),
        ARGUMENTS,
    )
    assert call.id.startswith("call_")
    assert answer.usage.completion_tokens == len(harmony_ids(REASONED + CALL + "<|call|>"))


def test_a_streamed_call(serve_harmony: Harmony) -> None:
    """OpenAI's chunks: index, id, type and name first with no arguments, then their pieces, then
    an empty delta with the finish reason."""
    live = serve_harmony(says(REASONED + CALL + "<|call|>"))
    role, *rest = deltas_of(live)
    reasoning = [delta for delta in rest if "reasoning_content" in delta]
    opening, *pieces, last = rest[len(reasoning) :]
    assert role == {"role": "assistant", "content": ""}
    assert "".join(delta["reasoning_content"] for delta in reasoning) == "I ask."
    identity = opening["tool_calls"][0]["id"]
    assert opening == {
        "tool_calls": [
            {
                "index": 0,
                "id": identity,
                "type": "function",
                "function": {"name": "weather", "arguments": ""},
            }
        ]
    }
    texts = [delta["tool_calls"][0]["function"]["arguments"] for delta in pieces]
    assert pieces == [
        {"tool_calls": [{"index": 0, "function": {"arguments": text}}]} for text in texts
    ]
    assert len(texts) > 3
    assert "".join(texts) == ARGUMENTS
    assert last == {"finish": "tool_calls"}


@pytest.mark.parametrize("tokens_per_delta", [1, 2, 3, 7, 100])
def test_batching_does_not_matter(serve_harmony: Harmony, tokens_per_delta: int) -> None:
    """However many tokens come at once, OpenAI's client adds the chunks up to the same message."""
    text = REASONED + CALL + "<|end|>" + SECOND + "<|call|>"
    live = serve_harmony(says(text, tokens_per_delta=tokens_per_delta))
    with live.openai().chat.completions.stream(
        model=MODEL, messages=HELLO, tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        done = stream.get_final_completion()
    [choice] = done.choices
    assert [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []] == [
        ("weather", ARGUMENTS),
        ("news", '{"city": "Oslo"}'),
    ]
    assert len({call.id for call in choice.message.tool_calls or []}) == 2
    assert choice.finish_reason == "tool_calls"
    assert done.usage is not None
    assert done.usage.completion_tokens == len(harmony_ids(text))


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most(serve_harmony: Harmony, stream: bool) -> None:
    """`parallel_tool_calls` false: what comes after the first call is cut and its job cancelled."""
    live = serve_harmony(says(CALL + "<|end|>" + SECOND + "<|call|>"))
    fields: dict[str, Any] = {"parallel_tool_calls": False}
    if stream:
        deltas = deltas_of(live, **fields)
        names = [
            delta["tool_calls"][0]["function"]["name"]
            for delta in deltas
            if "id" in delta.get("tool_calls", [{}])[0]
        ]
        assert deltas[-1] == {"finish": "tool_calls"}
    else:
        [choice] = ask(live, **fields).choices
        names = [call.function.name for call in choice.message.tool_calls]
        assert choice.finish_reason == "tool_calls"
    assert names == ["weather"]
    live.until(lambda engine: engine.active == 0 and engine.cancelled == 1)


def test_several_choices(serve_harmony: Harmony) -> None:
    """Of two choices one calls, the other answers."""
    live = serve_harmony(says(CALL + "<|call|>", ANSWER))
    called, answered = ask(live, n=2).choices
    if called.message.tool_calls is None:
        called, answered = answered, called
    assert (called.finish_reason, answered.finish_reason) == ("tool_calls", "stop")
    assert answered.message.content == "It is sunny."
    assert answered.message.tool_calls is None


def test_an_agent_s_turns(serve_harmony: Harmony) -> None:
    """The message goes back as it came, with the result; reasoning is kept until the answer."""
    live = serve_harmony(says(REASONED + CALL + "<|call|>", ANSWER, ANSWER))
    first = ask(live).choices[0].message
    messages = [*HELLO, first.to_dict()]
    messages += [{"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}]
    second = ask(live, messages).choices[0]
    assert (second.message.content, second.finish_reason) == ("It is sunny.", "stop")
    later = [*messages, second.message.to_dict(), {"role": "user", "content": "Thanks."}]
    ask(live, later)
    prompts = [harmony().decode(job.prompt) for job in live.engine.jobs]
    assert "type weather = (_: {\ncity: string,\ndays?: number,\n}) => any;" in prompts[0]
    result = "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>sunny<|end|>"
    assert prompts[1].endswith(
        "<|start|>assistant<|channel|>analysis<|message|>I ask.<|end|><|start|>assistant"
        f"{CALL}<|call|>{result}<|start|>assistant"
    )
    assert "I ask." not in prompts[2]
    assert f"{CALL}<|call|>{result}" in prompts[2]


def test_an_empty_call_has_arguments(serve_harmony: Harmony) -> None:
    """A call with nothing in it is told with an empty object, which can be sent back."""
    live = serve_harmony(says("<|channel|>commentary to=functions.news<|message|><|call|>"))
    pieces = [delta["tool_calls"][0]["function"] for delta in deltas_of(live)[1:-1]]
    assert pieces == [{"name": "news", "arguments": ""}, {"arguments": "{}"}]


def test_a_call_that_breaks_off(serve_harmony: Harmony) -> None:
    """Under its bound on output the finish reason is `length` and the arguments what came."""
    live = serve_harmony(says(CALL))
    [choice] = ask(live, max_tokens=len(harmony_ids(CALL)) - 1).choices
    assert choice.finish_reason == "length"
    assert ARGUMENTS.startswith(choice.message.tool_calls[0].function.arguments)


def test_tools_that_must_not_be_called_are_not_shown(serve_harmony: Harmony) -> None:
    """With `none` the model answers, and a call it makes all the same is not told."""
    live = serve_harmony(says(CALL + "<|call|>"))
    [choice] = ask(live, tool_choice="none").choices
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert "# Tools" not in harmony().decode(live.engine.jobs[0].prompt)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": named("news")}, True),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [named("news")]},
                }
            },
            True,
        ),
        ({"tools": [function("weather", strict=True)]}, True),
    ],
)
def test_when_a_job_is_guided(serve_harmony: Harmony, fields: dict[str, Any], guided: bool) -> None:
    """Forced and strict calls are; free ones are not."""
    live = serve_harmony(says(CALL + "<|call|>"))
    ask(live, **fields)
    assert (live.engine.jobs[0].sampling.guided is not None) is guided


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str


def test_a_pydantic_tool(serve_harmony: Harmony) -> None:
    """OpenAI's `parse` gives the call's arguments as an object of the class."""
    live = serve_harmony(says(CALL.replace("weather", "Weather") + "<|call|>"))
    answer = live.openai().chat.completions.parse(
        model=MODEL, messages=HELLO, tools=[openai.pydantic_function_tool(Weather)]
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="Paris")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("source", "options", "output", "calls"),
    [
        (
            HERMES,
            {"marks": True},
            'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
            '</tool_call>\n<tool_call>\n{"name": "news", "arguments": {}}\n</tool_call><|im_end|>',
            [("weather", ARGUMENTS), ("news", "{}")],
        ),
        (
            LLAMA,
            {},
            '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>',
            [("weather", ARGUMENTS)],
        ),
    ],
)
def test_models_with_a_chat_template(
    serve: Serve,
    tmp_path: Path,
    source: str,
    options: dict[str, bool],
    output: str,
    calls: list[tuple[str, str]],
    stream: bool,
) -> None:
    """Calls in the template's own form, whole and streamed, with the text before them."""
    folder = template_folder(tmp_path / "model", source, **options)
    live, chat = serve_template(serve, folder, output, options)
    if stream:
        with live.openai().chat.completions.stream(
            model=MODEL, messages=HELLO, tools=TOOLS
        ) as events:
            [choice] = events.get_final_completion().choices
    else:
        [choice] = ask(live).choices
    made = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
    assert made == calls
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "") == output.partition("<tool_call>")[0] * (source is HERMES)
    assert '"name": "weather"' in chat.decode(live.engine.jobs[0].prompt)


def test_a_template_without_tools_refuses_them(serve: Serve, tmp_path: Path) -> None:
    """A 400 that names the parameter, and no job."""
    folder = template_folder(tmp_path / "model", PLAIN)
    live, _ = serve_template(serve, folder, "x", {})
    with pytest.raises(openai.BadRequestError) as refused:
        ask(live)
    assert refused.value.param == "tools"
    assert live.engine.jobs == []


def called(arguments: str = "{}") -> list[Any]:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": named("other")}, "tool_choice.function.name"),
        ({"tools": [function("a"), function("a")]}, "tools[1].function.name"),
        ({"tools": [function("no way")]}, "tools[0].function.name"),
        ({"tools": [function(parameters={"type": 5})]}, "tools[0].function.parameters"),
        ({"messages": called()[2:]}, "messages[0].tool_call_id"),
        (
            {"messages": called("not JSON")},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_bad_input_is_a_400_by_name(
    serve_harmony: Harmony, fields: dict[str, Any], param: str
) -> None:
    """What is wrong with tools, choices and histories is told before any job."""
    live = serve_harmony(says(ANSWER))
    with pytest.raises(openai.BadRequestError) as refused:
        ask(live, **fields)
    assert refused.value.param == param
    assert live.engine.jobs == []


@pytest.mark.parametrize("stream", [False, True])
def test_the_tier_that_served_is_told(serve_harmony: Harmony, stream: bool) -> None:
    """Where a request asks for a service tier; there is one for all."""
    live = serve_harmony(says(ANSWER, ANSWER))
    told = []
    for fields in ({"service_tier": "flex"}, {}):
        if stream:
            with ask(live, stream=True, **fields) as chunks:
                told.append({chunk.to_dict().get("service_tier") for chunk in chunks})
        else:
            told.append({ask(live, **fields).to_dict().get("service_tier")})
    assert told == [{"default"}, {None}]


def test_usage_behind_a_streamed_call(serve_harmony: Harmony) -> None:
    """The last chunk counts reasoning and arguments as well."""
    text = REASONED + CALL + "<|call|>"
    live = serve_harmony(says(text))
    with ask(live, stream=True, stream_options={"include_usage": True}) as chunks:
        usage = list(chunks)[-1].usage.to_dict()
    assert usage["completion_tokens"] == len(harmony_ids(text))
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(harmony_ids("I ask."))

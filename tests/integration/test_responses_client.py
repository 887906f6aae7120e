"""OpenAI's own client against `/v1/responses`: whole answers, streams, tools, formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from harmony_server import analysis, call, final, harmony_server, prompt_of, tokens
from live_server import MODEL, LiveServer, Serve
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.errors import BadRequest, EngineFailed
from tool_models import PLAIN, chat_format_of, template_folder

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": False,
}
TIME: dict[str, Any] = {"type": "function", "name": "time", "parameters": None, "strict": False}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def create(live: LiveServer, **fields: Any) -> Response:
    """A response, and that it is one by OpenAI's own strict types."""
    raw = live.openai().responses.with_raw_response.create(
        **{"model": MODEL, "input": "hello", **fields}
    )
    Response.model_validate(json.loads(raw.http_response.text))
    return raw.parse()


def events_of(live: LiveServer, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream as they were sent, each checked against OpenAI's strict types."""
    body = {"model": MODEL, "input": "hello", "stream": True, **fields}
    answer = live.http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def compact(events: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Names, and the text of deltas; neighbouring deltas of one kind as one."""
    found: list[tuple[str, ...]] = []
    for event in events:
        name = event["type"].removeprefix("response.")
        if "delta" not in event:
            found.append((name,))
        elif found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + event["delta"])
        else:
            found.append((name, event["delta"]))
    return found


def test_a_whole_response_has_every_field(serve: Serve) -> None:
    """Text, reasoning, status and exact token counts, in the shape of OpenAI's types."""
    said = analysis("hm") + final("Hi, wörld!")
    live = harmony_server(serve, said, cached_tokens=4)
    response = create(live, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert response.id.startswith("resp_")
    assert response.object == "response"
    assert response.model == MODEL
    assert response.status == "completed"
    assert response.error is None
    assert response.incomplete_details is None
    assert response.instructions == "Be brief."
    assert response.metadata == {"a": "b"}
    assert response.temperature == 0.5
    assert response.top_p == 1.0
    assert response.tool_choice == "auto"
    assert response.tools == []
    assert response.parallel_tool_calls is True
    assert response.truncation == "disabled"
    assert response.completed_at is not None
    assert response.text is not None
    assert response.text.to_dict() == {"format": {"type": "text"}, "verbosity": "medium"}
    assert response.output_text == "Hi, wörld!"
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.summary == []
    assert reasoning.content is not None
    assert [part.to_dict() for part in reasoning.content] == [
        {"type": "reasoning_text", "text": "hm"}
    ]
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")
    [job] = live.engine.jobs
    assert response.usage is not None
    assert response.usage.to_dict() == {
        "input_tokens": len(job.prompt),
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": len(tokens(said)),
        "output_tokens_details": {"reasoning_tokens": len(tokens("hm"))},
        "total_tokens": len(job.prompt) + len(tokens(said)),
    }
    assert "# Instructions\n\nBe brief.<|end|><|start|>user<|message|>hello" in prompt_of(job)


def test_stream_events_in_order(serve: Serve) -> None:
    """A stream tells of each item from its beginning to its end, and ends with the whole."""
    events = events_of(harmony_server(serve, analysis("hm so") + final("Hi there")))
    assert compact(events) == [
        ("created",),
        ("in_progress",),
        ("output_item.added",),
        ("content_part.added",),
        ("reasoning_text.delta", "hm so"),
        ("reasoning_text.done",),
        ("content_part.done",),
        ("output_item.done",),
        ("output_item.added",),
        ("content_part.added",),
        ("output_text.delta", "Hi there"),
        ("output_text.done",),
        ("content_part.done",),
        ("output_item.done",),
        ("completed",),
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert events[-1]["response"]["status"] == "completed"


def test_the_clients_stream_helper(serve: Serve) -> None:
    """`client.responses.stream` follows a stream and hands out the final response."""
    client = harmony_server(serve, analysis("hm") + final("Hi there")).openai()
    with client.responses.stream(model=MODEL, input="hello") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert "".join(deltas) == "Hi there"
    assert response.output_text == "Hi there"


def test_summary_is_there_when_asked_for(serve: Serve) -> None:
    """With `reasoning.summary` the reasoning comes as a summary too, streamed or not."""
    live = harmony_server(serve, analysis("hm") + final("Hi"), tokens_per_delta=100)
    reasoning = {"effort": "high", "summary": "auto"}
    whole = create(live, reasoning=reasoning)
    assert whole.reasoning is not None
    assert whole.reasoning.summary == "auto"
    assert whole.output[0].to_dict()["summary"] == [{"type": "summary_text", "text": "hm"}]
    names = [name for name, *_ in compact(events_of(live, reasoning=reasoning))]
    assert names[2:14] == [
        "output_item.added",
        "content_part.added",
        "reasoning_summary_part.added",
        "reasoning_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
    ]
    assert "Reasoning: high" in prompt_of(live.engine.jobs[0])


def test_logprobs_when_included(serve: Serve) -> None:
    """`message.output_text.logprobs` gives each token's, in deltas and in the whole."""
    live = harmony_server(serve, analysis("hm") + final("Hi"))
    fields: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = create(live, **fields).output[1].to_dict()["content"][0]
    texts = [entry["token"] for entry in part["logprobs"]]
    assert "".join(texts) == "Hi"
    assert [len(entry["top_logprobs"]) for entry in part["logprobs"]] == [2] * len(texts)
    events = events_of(live, **fields)
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [entry["token"] for e in deltas for entry in e["logprobs"]] == texts
    assert create(live).output[1].to_dict()["content"][0]["logprobs"] == []


def test_a_function_call(serve: Serve) -> None:
    """A call is an item of its own, with the model's arguments; the prompt shows the tool."""
    live = harmony_server(serve, analysis("look") + call("weather", '{"city":"Bonn"}'))
    response = create(live, tools=[WEATHER, TIME])
    assert response.status == "completed"
    called = response.output[1]
    assert called.type == "function_call"
    assert (called.name, called.arguments, called.status) == (
        "weather",
        '{"city":"Bonn"}',
        "completed",
    )
    assert called.call_id.startswith("call_")
    assert called.id is not None
    assert called.id.startswith("fc_")
    assert [tool.to_dict()["name"] for tool in response.tools] == ["weather", "time"]
    assert "type weather = (_: {" in prompt_of(live.engine.jobs[0])


def test_a_streamed_call(serve: Serve) -> None:
    """Arguments come in deltas, then whole."""
    live = harmony_server(serve, call("weather", '{"city":"Bonn"}'))
    events = events_of(live, tools=[WEATHER])
    assert compact(events) == [
        ("created",),
        ("in_progress",),
        ("output_item.added",),
        ("function_call_arguments.delta", '{"city":"Bonn"}'),
        ("function_call_arguments.done",),
        ("output_item.done",),
        ("completed",),
    ]
    assert events[2]["item"]["arguments"] == ""
    assert events[2]["item"]["name"] == "weather"
    assert events[-3]["arguments"] == '{"city":"Bonn"}'


def test_an_agents_loop(serve: Serve) -> None:
    """Call, output, answer, with everything sent back by the client: the second prompt holds the
    reasoning, the call and its output as the model wrote them."""
    live = harmony_server(
        serve, analysis("look") + call("weather", '{"city":"Bonn"}'), final("It rains.")
    )
    client = live.openai()
    items: list[Any] = [{"role": "user", "content": "Weather?"}]
    first = client.responses.create(model=MODEL, input=items, tools=[WEATHER], store=False)
    items += [item.to_dict() for item in first.output]
    call_id = first.output[1].to_dict()["call_id"]
    items.append({"type": "function_call_output", "call_id": call_id, "output": "rain"})
    second = client.responses.create(model=MODEL, input=items, tools=[WEATHER], store=False)
    assert second.output_text == "It rains."
    assert prompt_of(live.engine.jobs[1]).endswith(
        "<|start|>user<|message|>Weather?<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>look<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
        '<|message|>{"city":"Bonn"}<|call|>'
        "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>rain<|end|>"
        "<|start|>assistant"
    )


def test_sealed_reasoning_goes_round(serve: Serve) -> None:
    """`reasoning.encrypted_content` alone, sent back, is the reasoning again."""
    live = harmony_server(serve, analysis("look") + call("time", "{}"), final("Noon."))
    client = live.openai()
    fields: dict[str, Any] = {
        "model": MODEL,
        "tools": [TIME],
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    first = client.responses.create(input="Time?", **fields)
    reasoning, called = (item.to_dict() for item in first.output)
    del reasoning["content"]
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": "12:00"}
    items: list[Any] = [{"role": "user", "content": "Time?"}, reasoning, called, output]
    assert client.responses.create(input=items, **fields).output_text == "Noon."
    assert "<|channel|>analysis<|message|>look<|end|>" in prompt_of(live.engine.jobs[1])


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "name": "weather"}],
)
def test_a_call_can_be_demanded(serve: Serve, choice: Any) -> None:
    """`tool_choice` that demands a call holds the job to one, of the functions allowed."""
    live = harmony_server(serve, call("weather", '{"city":"Bonn"}'))
    create(live, tools=[WEATHER, TIME], tool_choice=choice)
    guide = live.engine.jobs[0].sampling.guided
    assert guide is not None
    assert [grammar.param for grammar in guide.grammars] == (
        ["tools[0].parameters", "tools[1].parameters"]
        if choice == "required"
        else ["tools[0].parameters"]
    )


def test_no_tools_where_none_are_wanted(serve: Serve) -> None:
    """`tool_choice: none` shows the model no tools; a call it makes all the same is not told."""
    live = harmony_server(serve, call("weather", "{}"))
    response = create(live, tools=[WEATHER], tool_choice="none")
    assert response.output == []
    assert "namespace functions" not in prompt_of(live.engine.jobs[0])


class City(BaseModel):
    name: str
    people: int


def test_a_json_answer(serve: Serve) -> None:
    """`client.responses.parse` asks for a schema; the job is held to it, the prompt says it."""
    live = harmony_server(serve, final('{"name":"Bonn","people":3}'))
    parsed = live.openai().responses.parse(model=MODEL, input="A city", text_format=City)
    assert parsed.output_parsed == City(name="Bonn", people=3)
    job = live.engine.jobs[0]
    assert job.sampling.guided is not None
    [grammar] = job.sampling.guided.grammars
    assert (grammar.kind, grammar.param) == ("json_schema", "text.format.schema")
    assert json.loads(grammar.source)["required"] == ["name", "people"]
    assert "## City" in prompt_of(job)


def test_cut_off_by_the_bound(serve: Serve) -> None:
    """`max_output_tokens` ends a response as incomplete, and its last item too."""
    live = harmony_server(serve, final("abcdefghij" * 10))
    whole = create(live, max_output_tokens=8)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.output[-1].to_dict()["status"] == "incomplete"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 8
    events = events_of(live, max_output_tokens=8)
    assert events[-1]["type"] == "response.incomplete"


def test_failure_in_a_stream(serve: Serve) -> None:
    """A stream whose engine dies ends with `response.failed`, and what there was is in it."""
    live = harmony_server(serve, final("Hello there"), fail_after=4, error=EngineFailed("It died."))
    events = events_of(live)
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "It died."}
    assert response["store"] is False
    assert response["output"][0]["status"] == "incomplete"
    deltas = "".join(event["delta"] for event in events if "delta" in event)
    assert response["output"][0]["content"][0]["text"] == deltas != ""


def test_failure_before_the_first_token(serve: Serve) -> None:
    """Nothing is streamed yet: the failure has its own status."""
    live = harmony_server(serve, final("x"), fail_after=0, error=EngineFailed("It died."))
    client = live.openai()
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(model=MODEL, input="x", stream=True)
    assert caught.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_cancels(serve: Serve, stream: bool) -> None:
    """A client that leaves takes its generation with it."""
    live = harmony_server(serve, final("Hello there"))
    live.steer(live.engine.close_gate)
    body = json.dumps({"model": MODEL, "input": "x", "stream": stream}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with live.connect() as client:
        client.sendall(head.encode() + body)
        live.until(lambda engine: engine.active == 1)
        live.steer(lambda: live.engine.let_pass(2))

        def two_steps(engine: FakeEngine) -> bool:
            return engine.stats().steps == 2

        live.until(two_steps)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == 1


def test_truncation_drops_the_beginning(serve: Serve) -> None:
    """`truncation: auto` fits a conversation that is refused otherwise; instructions stay."""
    live = harmony_server(serve, final("ok"), context_tokens=400)
    items: list[Any] = [
        message
        for turn in range(20)
        for message in (
            {"role": "user", "content": f"question {turn}"},
            {"role": "assistant", "content": f"answer {turn}"},
        )
    ]
    items.append({"role": "user", "content": "last"})
    fields: dict[str, Any] = {"instructions": "Stay.", "input": items, "max_output_tokens": 50}
    with pytest.raises(openai.BadRequestError) as caught:
        create(live, **fields)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"
    assert create(live, **fields, truncation="auto").output_text == "ok"
    prompt = prompt_of(live.engine.jobs[-1])
    assert "Stay." in prompt
    assert "question 0" not in prompt
    assert "question 19" in prompt
    assert len(live.engine.jobs[-1].prompt) <= 350


def test_headers(serve: Serve) -> None:
    """A response carries where it ran and its request id, like every answer."""
    live = harmony_server(serve, final("ok"))
    answer = live.http.post("/v1/responses", json={"model": MODEL, "input": "x"})
    assert answer.headers["x-route"] == "single_gpu"
    assert answer.headers["x-request-id"]


def test_input_tokens_are_those_of_the_response(serve: Serve) -> None:
    """Counting a prompt beforehand gives what its response then reports, whatever it is made of."""
    live = harmony_server(serve, final("yes"))
    client = live.openai().responses
    asked: list[dict[str, Any]] = [
        {"input": "hello"},
        {"input": [{"role": "user", "content": "hello"}], "instructions": "Be brief."},
        {"input": "hello", "reasoning": {"effort": "high"}, "tools": [WEATHER]},
        {"input": "hello", "tools": [WEATHER], "tool_choice": "none"},
    ]
    counts = []
    for fields in asked:
        counted = client.input_tokens.count(model=MODEL, **fields)
        assert counted.object == "response.input_tokens"
        usage = create(live, **fields).usage
        assert usage is not None
        assert counted.input_tokens == usage.input_tokens
        counts.append(counted.input_tokens)
    assert len(set(counts)) == 3
    assert counts[0] == counts[3] < counts[1] < counts[2]
    assert client.input_tokens.count(input="hello").input_tokens == counts[0]


def test_input_tokens_of_what_can_not_run(serve: Serve) -> None:
    """A conversation over the context is counted all the same; what is not part of a prompt, a
    conversation that is gone, and what a response would refuse are errors that name it."""
    live = harmony_server(serve, final("yes"))
    count = live.openai().responses.input_tokens.count
    context = live.http.post("/tokenize", json={"prompt": "x"}).json()["max_model_len"]
    assert count(model=MODEL, input="hello " * context).input_tokens > context
    for field in ("temperature", "store", "stream", "max_output_tokens"):
        answer = live.http.post(
            "/v1/responses/input_tokens", json={"model": MODEL, "input": "x", field: 1}
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    with pytest.raises(openai.BadRequestError) as refused:
        count(model=MODEL, input="x", personality="friendly")
    assert refused.value.param == "personality"
    with pytest.raises(openai.BadRequestError) as gone:
        count(model=MODEL, input="x", previous_response_id="resp_gone")
    assert gone.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        count(model="other", input="x")


def test_input_tokens_without_input(serve: Serve) -> None:
    """As in OpenAI's client there need not be any: instructions and tools count by themselves."""
    live = harmony_server(serve, final("yes"))
    count = live.openai().responses.input_tokens.count
    bare = count(model=MODEL).input_tokens
    assert count(input=[]).input_tokens == bare
    told = count(instructions="Be brief.").input_tokens
    shown = count(tools=[WEATHER]).input_tokens
    assert bare < told < shown


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_engine_name_our_parameters(serve: Serve, stream: bool) -> None:
    """A bound that has no room for what is asked is `max_output_tokens` here, in words too."""
    refused = BadRequest("'max_tokens' leaves room for 1 token.", param="max_tokens")
    live = harmony_server(serve, final("x"), fail_after=0, error=refused)
    with pytest.raises(openai.BadRequestError) as caught:
        live.openai().responses.create(model=MODEL, input="x", max_output_tokens=1, stream=stream)
    assert caught.value.param == "max_output_tokens"
    assert "'max_output_tokens' leaves room for 1 token." in caught.value.message


def test_effort_that_the_model_does_not_know(serve: Serve, tmp_path: Path) -> None:
    """Where a chat template ignores the effort, so would the answer: a 400 instead."""
    chat = chat_format_of(template_folder(tmp_path / "model", PLAIN))
    live = serve(services={"chat_format": chat})
    body = {"model": MODEL, "input": "x", "reasoning": {"effort": "high"}}
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        answer = live.http.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "reasoning.effort"
        assert "'reasoning.effort'" in answer.json()["error"]["message"]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    refused = live.http.post("/v1/chat/completions", json={**body, "reasoning_effort": "high"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_effort")
    assert live.http.post("/v1/chat/completions", json=body).status_code == 200

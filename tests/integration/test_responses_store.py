"""Stored responses over HTTP, with OpenAI's own client: continue, see, delete, restart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from harmony_server import analysis, call, final, harmony_server, prompt_of, store_at
from live_server import MODEL, LiveServer, Serve
from openai.types.responses import Response

from gpt_oss_server.api import responses_shelf
from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.responses_store.records import StoreBounds, StoredResponse
from gpt_oss_server.responses_store.sqlite import SqliteResponses
from gpt_oss_server.responses_store.thread import ResponseStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "responses.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[ResponseStore]:
    with store_at(path) as opened:
        yield opened


def create(live: LiveServer, key: str = "none", **fields: Any) -> Response:
    return live.openai(key).responses.create(**{"model": MODEL, "input": "hello", **fields})


def test_a_conversation_continues(serve: Serve, store: ResponseStore) -> None:
    """`previous_response_id` brings back the items of all turns before, not their instructions,
    and no reasoning of turns that are over."""
    live = harmony_server(serve, analysis("hm") + final("One."), final("Two."), store=store)
    first = create(live, input="first", instructions="Old.")
    second = create(live, input="second", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    create(live, input="third", previous_response_id=second.id, instructions="New.")
    assert prompt_of(live.engine.jobs[2]).endswith(
        "# Instructions\n\nNew.<|end|>"
        "<|start|>user<|message|>first<|end|>"
        "<|start|>assistant<|channel|>final<|message|>One.<|end|>"
        "<|start|>user<|message|>second<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Two.<|end|>"
        "<|start|>user<|message|>third<|end|><|start|>assistant"
    )


def test_an_output_for_a_stored_call(serve: Serve, store: ResponseStore) -> None:
    """The output of a call needs only the response before; one without a call is refused."""
    tool: Any = {"type": "function", "name": "time", "parameters": None, "strict": False}
    live = harmony_server(serve, analysis("look") + call("time", "{}"), final("Noon."), store=store)
    first = create(live, tools=[tool])
    call_id = first.output[1].to_dict()["call_id"]
    output = {"type": "function_call_output", "call_id": call_id, "output": "12:00"}
    with pytest.raises(openai.BadRequestError) as missing:
        create(live, input="And?", previous_response_id=first.id)
    assert f"No tool output found for function call {call_id}" in missing.value.message
    answer = create(live, input=[output], previous_response_id=first.id, tools=[tool])
    assert answer.output_text == "Noon."
    assert "<|channel|>analysis<|message|>look<|end|>" in prompt_of(live.engine.jobs[1])
    with pytest.raises(openai.BadRequestError) as wrong:
        create(live, input=[output | {"call_id": "call_x"}], previous_response_id=first.id)
    assert wrong.value.param == "input[0].call_id"


def test_retrieve_and_delete(serve: Serve, store: ResponseStore) -> None:
    """A response is seen as it was given, until it is deleted; then it cannot be continued."""
    live = harmony_server(serve, analysis("hm") + final("One."), store=store)
    client = live.openai()
    first = create(live, metadata={"k": "v"})
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    second = create(live, previous_response_id=first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as gone:
        create(live, previous_response_id=first.id)
    assert (gone.value.param, gone.value.code) == (
        "previous_response_id",
        "previous_response_not_found",
    )
    with pytest.raises(openai.BadRequestError) as broken:
        create(live, previous_response_id=second.id)
    assert broken.value.code == "previous_response_not_found"
    assert first.id in broken.value.message


def test_a_streamed_response_is_stored_before_it_ends(serve: Serve, store: ResponseStore) -> None:
    """When `response.completed` has come, the response can be retrieved."""
    live = harmony_server(serve, final("One."), store=store)
    client = live.openai()
    with client.responses.create(model=MODEL, input="hello", stream=True) as stream:
        *_, last = stream
    assert last.type == "response.completed"
    assert client.responses.retrieve(last.response.id).output_text == "One."


def test_store_false_keeps_nothing(serve: Serve, store: ResponseStore) -> None:
    """`store: false` leaves no trace; the answer says so."""
    live = harmony_server(serve, final("One."), store=store)
    response = create(live, store=False)
    assert response.model_extra is not None
    assert response.model_extra["store"] is False
    with pytest.raises(openai.NotFoundError):
        live.openai().responses.retrieve(response.id)


def test_input_items(serve: Serve, store: ResponseStore) -> None:
    """The items of the request, newest first, by pages; each has an id."""
    live = harmony_server(serve, final("One."), store=store)
    client = live.openai()
    items: Any = [{"role": "user", "content": f"m{n}"} for n in range(5)]
    response = create(live, input=items)
    page = client.responses.input_items.list(response.id, limit=2)
    texts = [item.to_dict()["content"][0]["text"] for item in page]
    assert texts == ["m4", "m3", "m2", "m1", "m0"]
    oldest = client.responses.input_items.list(response.id, order="asc", limit=2)
    assert [item.to_dict()["content"][0]["text"] for item in oldest.data] == ["m0", "m1"]
    assert oldest.has_more is True
    ids = [item.to_dict()["id"] for item in page]
    assert len(set(ids)) == 5
    for query, param in (
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=no", "after"),
        ("colour=red", "colour"),
        ("include[]=file_search_call.results", "include"),
    ):
        answer = live.http.get(f"/v1/responses/{response.id}/input_items?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), query


def test_item_references(serve: Serve, store: ResponseStore) -> None:
    """An item of a stored response can be given by its id alone."""
    live = harmony_server(serve, final("One."), final("Two."), store=store)
    message = create(live).output[0].to_dict()
    items: Any = [{"type": "item_reference", "id": message["id"]}, {"role": "user", "content": "?"}]
    create(live, input=items)
    assert "<|channel|>final<|message|>One.<|end|>" in prompt_of(live.engine.jobs[1])
    with pytest.raises(openai.BadRequestError) as caught:
        create(live, input=[{"role": "user", "content": "x"}, {"id": "msg_gone"}])
    assert caught.value.param == "input[1].id"


def test_nobody_sees_another_keys_responses(serve: Serve, store: ResponseStore) -> None:
    """To one key the responses of another do not exist: not to see, continue, delete or refer
    to."""
    live = harmony_server(
        serve, final("One."), store=store, services={"api_keys": KeyRing(("one", "two"))}
    )
    mine = create(live, "one")
    theirs = live.openai("two")
    for attempt in (theirs.responses.retrieve, theirs.responses.delete, theirs.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            attempt(mine.id)
    with pytest.raises(openai.NotFoundError):
        theirs.responses.input_items.list(mine.id)
    with pytest.raises(openai.BadRequestError):
        create(live, "two", previous_response_id=mine.id)
    with pytest.raises(openai.BadRequestError):
        create(live, "two", input=[{"id": mine.output[0].to_dict()["id"]}])
    with pytest.raises(openai.AuthenticationError):
        live.openai("three").responses.retrieve(mine.id)
    assert live.openai("one").responses.retrieve(mine.id).id == mine.id


def test_keys_may_be_reordered(serve: Serve, path: Path) -> None:
    """A response belongs to the key it was made with, wherever that stands in the settings."""
    with store_at(path) as store:
        keys = {"api_keys": KeyRing(("one", "two"))}
        made = create(harmony_server(serve, final("One."), store=store, services=keys), "one")
    with store_at(path) as store:
        keys = {"api_keys": KeyRing(("two", "one"))}
        live = harmony_server(serve, final("One."), store=store, services=keys)
        assert live.openai("one").responses.retrieve(made.id).id == made.id
        with pytest.raises(openai.NotFoundError):
            live.openai("two").responses.retrieve(made.id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_could_not_be_kept(serve: Serve, path: Path, stream: bool) -> None:
    """What fails to be stored at the end is answered as not stored, or fails if it was told to
    be stored."""
    with store_at(path, StoreBounds(max_count=10, max_bytes=300, max_age_s=60.0)) as store:
        live = harmony_server(serve, final("One."), store=store)
        body: dict[str, Any] = {"model": MODEL, "input": "x", "stream": stream}
        last = live.http.post("/v1/responses", json=body).text.rpartition("data: ")[2]
        assert json.loads(last).get("response", json.loads(last))["store"] is False
        refused = live.http.post("/v1/responses", json=body | {"store": True})
        if stream:
            failed = json.loads(refused.text.rpartition("data: ")[2])
            assert failed["type"] == "response.failed"
            assert failed["response"]["error"]["code"] == "server_error"
            assert failed["response"]["output"][0]["content"][0]["text"] == "One."
        else:
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "store_unavailable"


def test_cancel_is_for_the_background(serve: Serve, store: ResponseStore) -> None:
    """As in OpenAI's API a response that does not run in the background is not cancelled so."""
    live = harmony_server(serve, final("One."), store=store)
    response = create(live)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        live.openai().responses.cancel(response.id)
    with pytest.raises(openai.NotFoundError):
        live.openai().responses.cancel("resp_gone")


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/v1/responses/resp_x/colours", 404),
        ("DELETE", "/v1/responses/resp_x/input_items", 404),
        ("POST", "/v1/responses/resp_x", 404),
        ("PUT", "/v1/responses/resp_x", 405),
        ("GET", "/v1/responses", 405),
        ("GET", "/v1/responses/resp_x", 404),
        ("GET", "/v1/responses/resp_x?stream=true", 400),
        ("GET", "/v1/responses/resp_x?starting_after=3", 400),
        ("GET", "/v1/responses/%27%20OR%201=1", 404),
    ],
)
def test_odd_paths(serve: Serve, store: ResponseStore, method: str, url: str, status: int) -> None:
    """What is no request to a response is a 4xx in the envelope."""
    answer = harmony_server(serve, store=store).http.request(method, url)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_new_server_knows_the_old_ones_responses(serve: Serve, path: Path) -> None:
    """A conversation goes on after a restart."""
    with store_at(path) as store:
        first = create(harmony_server(serve, final("One."), store=store), input="first")
    with store_at(path) as store:
        live = harmony_server(serve, final("Two."), store=store)
        create(live, input="second", previous_response_id=first.id)
    assert "<|message|>first<|end|>" in prompt_of(live.engine.jobs[0])


def test_without_a_store(serve: Serve) -> None:
    """A server that stores nothing answers all the same, unless storing is insisted on."""
    live = harmony_server(serve, final("One."))
    response = create(live)
    assert response.model_extra is not None
    assert response.model_extra["store"] is False
    with pytest.raises(openai.BadRequestError) as caught:
        create(live, store=True)
    assert caught.value.param == "store"
    with pytest.raises(openai.BadRequestError) as gone:
        create(live, previous_response_id=response.id)
    assert gone.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        live.openai().responses.retrieve(response.id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_disk_harms_only_who_needs_it(serve: Serve, tmp_path: Path, stream: bool) -> None:
    """Where nothing can be written an answer comes unstored; what insists on the store gets a
    503."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with store_at(blocked / "responses.sqlite3") as store:
        live = harmony_server(serve, final("One."), store=store)
        for wanted in (None, False):
            body = {"model": MODEL, "input": "x", "stream": stream, "store": wanted}
            answer = live.http.post("/v1/responses", json=body)
            assert answer.status_code == 200
            assert '"store":false' in answer.text.rpartition("event: ")[2]
            assert "One." in answer.text
        body = {"model": MODEL, "input": "x", "stream": stream, "store": True}
        refused = live.http.post("/v1/responses", json=body)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert "retry-after" in refused.headers
        assert live.http.get("/v1/responses/resp_x").status_code == 503
        assert len(live.engine.jobs) == 2


def test_a_conversation_goes_on_without_input(serve: Serve, store: ResponseStore) -> None:
    """With `previous_response_id` there need not be any input, as in OpenAI's client."""
    live = harmony_server(serve, final("One."), final("Two."), store=store)
    first = create(live)
    responses = live.openai().responses
    counted = responses.input_tokens.count(model=MODEL, previous_response_id=first.id)
    second = responses.create(model=MODEL, previous_response_id=first.id)
    assert second.output_text == "Two."
    assert second.usage is not None
    assert second.usage.input_tokens == counted.input_tokens
    assert prompt_of(live.engine.jobs[1]).endswith("One.<|end|><|start|>assistant")
    assert responses.input_items.list(second.id).data == []


def test_references_to_one_response_read_it_once(
    serve: Serve, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many items of a large response are named: each in its place, for one reading."""
    live = harmony_server(serve, final("One."), store=store)
    items: Any = [{"role": "user", "id": f"m{n}", "content": f"text{n}"} for n in range(9)]
    create(live, input=items)
    held: list[str] = []
    whole = SqliteResponses.holding

    def holding(table: SqliteResponses, owner: str, item: str) -> StoredResponse:
        held.append(item)
        return whole(table, owner, item)

    monkeypatch.setattr(SqliteResponses, "holding", holding)
    named: Any = [{"type": "item_reference", "id": f"m{n}"} for n in (7, 2, 7, 5)]
    create(live, input=named)
    shown = prompt_of(live.engine.jobs[1])
    assert re.findall("text[0-9]", shown) == ["text7", "text2", "text7", "text5"]
    assert held == ["m7"]


def test_references_have_a_bound(
    serve: Serve, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is read for them than of a conversation; the one that is too many is named."""
    live = harmony_server(serve, final("One."), store=store, context_tokens=65_536)
    for n in range(3):
        create(live, input=[{"role": "user", "id": f"m{n}", "content": "x" * 10_000}])
    monkeypatch.setattr(responses_shelf, "MAX_HISTORY_BYTES", 30_000)
    named: Any = [{"type": "item_reference", "id": f"m{n}"} for n in range(3)]
    create(live, input=named[:2], store=False)
    with pytest.raises(openai.BadRequestError) as caught:
        create(live, input=named)
    assert caught.value.param == "input[2].id"

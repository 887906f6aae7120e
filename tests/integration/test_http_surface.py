"""What every response carries, and how everything that is not a good request is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from byte_format import END, ids_of
from harmony_server import final, harmony_server
from live_server import LiveServer, Serve

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.sampling import SamplingDefaults
from gpt_oss_server.api.services import Access, Endpoint, Limits, Services
from gpt_oss_server.dispatch.desk import Call, Lease
from gpt_oss_server.engine.fake import Script

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must be the envelope and nothing else."""
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return dict(body["error"])


def raw(live: LiveServer, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are; the status and the JSON body of the answer."""
    with live.connect() as client:
        client.sendall(request)
        response = b""
        while b"\r\n\r\n" not in response:
            response += client.recv(65_536)
        head, _, body = response.partition(b"\r\n\r\n")
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(headers[b"content-length"]):
            body += client.recv(65_536)
    return int(head.split()[1]), json.loads(body)


def test_health_live_version(serve: Serve) -> None:
    """A ready server says so."""
    live = serve(services={"version": "1.2.3"})
    assert live.http.get("/health").json() == {"status": "ready"}
    assert live.http.get("/live").json() == {"status": "live"}
    assert live.http.get("/version").json() == {"version": "1.2.3"}
    assert live.http.head("/health").status_code == 200


def test_not_ready_then_ready_then_not(serve: Serve) -> None:
    """Health follows the engine, /live does not, and requests meanwhile get 503 to retry."""
    live = serve(started=False)
    not_ready = live.http.get("/health")
    assert (not_ready.status_code, not_ready.json()) == (
        503,
        {"status": "not_ready", "reason": "not started"},
    )
    assert live.http.get("/live").status_code == 200
    assert live.http.get("/v1/models").json()["data"][0]["max_model_len"] is None
    refused = live.http.post(CHAT, json=HELLO)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
    assert error_of(refused)["code"] == "not_ready"
    live.run(live.engine.start())
    assert live.http.post(CHAT, json=HELLO).status_code == 200
    live.steer(live.engine.crash)
    assert live.http.get("/health").json()["reason"] == "the worker died"
    live.steer(live.engine.recover)
    assert live.http.get("/health").status_code == 200


def test_draining(serve: Serve) -> None:
    """While shutting down, new work is refused with 503 and health says why."""
    draining = [False]
    live = serve(services={"draining": lambda: draining[0]})
    assert live.http.post(CHAT, json=HELLO).status_code == 200
    draining[0] = True
    assert live.http.get("/health").json() == {"status": "not_ready", "reason": "shutting down"}
    refused = live.http.post(CHAT, json=HELLO)
    assert refused.status_code == 503
    assert error_of(refused)["message"] == "The server is shutting down."
    assert live.http.get("/v1/models").status_code == 200
    assert len(live.engine.jobs) == 1


def test_request_ids(serve: Serve) -> None:
    """A sane request id comes back, on errors too; another is replaced."""
    live = serve()
    for path in ("/health", "/nowhere", "/v1/models/none"):
        mine = live.http.get(path, headers={"x-request-id": "trace:7.a_b-C"})
        assert mine.headers["x-request-id"] == "trace:7.a_b-C"
    for insane in ("", "a b", "ü".encode(), "x" * 129, "a/b"):
        given = live.http.get("/health", headers={"x-request-id": insane}).headers["x-request-id"]
        assert given.startswith("req_")
        assert len(given) == 36
    streamed = live.http.post(
        CHAT, json={**HELLO, "stream": True}, headers={"x-request-id": "stream-1"}
    )
    assert streamed.headers["x-request-id"] == "stream-1"
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_route_headers(serve: Serve) -> None:
    """An answer says where it ran and why, as the desk decided; header text is made safe."""

    class Multi:
        @asynccontextmanager
        async def admit(self, call: Call) -> AsyncIterator[Lease]:
            prompt = len(call.jobs[0].prompt)
            yield Lease(call.jobs, "multi_gpu", f"big → {prompt}\r\nx: y")

    live = serve(services={"desk": Multi()})
    refused = live.http.post(CHAT, json={})
    assert refused.headers["x-route"] == "single_gpu"
    assert refused.headers["x-route-reason"] == "default: no multi-GPU trigger"
    answered = live.http.post(CHAT, json={**HELLO, "max_tokens": 5})
    assert answered.headers["x-route"] == "multi_gpu"
    assert answered.headers["x-route-reason"] == "big ? 11??x: y"


def test_default_route_headers(serve: Serve) -> None:
    """A response without a decision says so."""
    headers = serve().http.get("/health").headers
    assert headers["x-route"] == "single_gpu"
    assert headers["x-route-reason"] == "default: no multi-GPU trigger"


def test_unknown_path_and_wrong_verb(serve: Serve) -> None:
    """404 and 405 come in the envelope; 405 says what is allowed."""
    live = serve()
    unknown = live.http.get("/v1/nothing")
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "unknown_url"
    wrong = live.http.get(CHAT)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert live.http.post("/v1/models/tiny", json={}).headers["allow"] == "GET"


def test_keys_guard_v1_and_tokenize_only(serve: Serve) -> None:
    """The API key is needed for /v1 and tokenisation, not for health."""
    live = serve(services={"api_keys": KeyRing(("alpha",))})
    for path, body in (
        (CHAT, HELLO),
        ("/v1/completions", {"model": "tiny", "prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [20]}),
    ):
        refused = live.http.post(path, json=body)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert error_of(refused)["code"] == "invalid_api_key"
        wrong = live.http.post(path, json=body, headers={"authorization": "Bearer alph"})
        assert wrong.status_code == 401
        right = live.http.post(path, json=body, headers={"authorization": "bearer alpha"})
        assert right.status_code == 200
    assert live.http.get("/v1/models").status_code == 401
    for path in ("/health", "/live", "/version"):
        assert live.http.get(path).status_code == 200


def test_admin_access(serve: Serve) -> None:
    """Without an admin key loopback may; with one, only its bearer."""

    async def secret(exchange: Exchange, services: Services) -> None:
        await exchange.reply({"ok": True})

    admin = Endpoint("GET", "/admin/thing", secret, Access.ADMIN)
    local = serve(services={"extra_endpoints": (admin,)})
    assert local.http.get("/admin/thing").json() == {"ok": True}
    keyed = serve(services={"extra_endpoints": (admin,), "admin_keys": KeyRing(("root",))})
    assert keyed.http.get("/admin/thing").status_code == 401
    allowed = keyed.http.get("/admin/thing", headers={"authorization": "Bearer root"})
    assert allowed.status_code == 200


def test_tokenize_and_back(serve: Serve) -> None:
    """Tokens are counted as the generating endpoints count them, and can be turned back."""
    live = serve()
    plain = live.http.post("/tokenize", json={"prompt": "hé", "model": "tiny"}).json()
    assert plain == {"count": 3, "max_model_len": 4096, "tokens": list(ids_of("hé"))}
    chat = live.http.post("/tokenize", json={"messages": HELLO["messages"]}).json()
    usage = live.http.post(CHAT, json=HELLO).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"] == 11
    back = live.http.post("/detokenize", json={"tokens": [*ids_of("hé"), END]}).json()
    assert back == {"prompt": "hé<2>"}
    outside = live.http.post("/detokenize", json={"tokens": [20, 4000]})
    assert error_of(outside)["param"] == "tokens[1]"
    both = live.http.post("/tokenize", json={"prompt": "x", "messages": HELLO["messages"]})
    assert error_of(both)["param"] == "prompt"


def test_tokenize_shows_tools_as_the_chat_endpoint_does(serve: Serve) -> None:
    """The ids of a conversation with tools are as many as a chat's prompt has; tools that are
    wrong, or beside a plain text, are refused by name."""
    tool = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
    body = {"messages": HELLO["messages"], "tools": [tool]}
    live = harmony_server(serve, final("yes"))
    counted = live.http.post("/tokenize", json=body).json()["count"]
    bare = live.http.post("/tokenize", json={"messages": HELLO["messages"]}).json()["count"]
    chat = live.http.post("/v1/chat/completions", json={"model": "tiny", **body}).json()
    assert bare < counted == chat["usage"]["prompt_tokens"]
    for wrong, param in (
        ({"prompt": "x", "tools": [tool]}, "tools"),
        ({**body, "tools": [tool, tool]}, "tools[1].function.name"),
    ):
        answer = live.http.post("/tokenize", json=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_body_too_large_by_announcement(serve: Serve) -> None:
    """A 10 MB body is refused from its announced size, before any of it is read."""
    live = serve()
    status, body = raw(
        live,
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10485760\r\n\r\n",
    )
    assert status == 413
    assert body["error"]["code"] == "payload_too_large"
    sent = live.http.post(CHAT, content=b"x" * 10_485_760)
    assert sent.status_code == 413
    assert live.http.post(CHAT, json=HELLO).status_code == 200


def test_body_too_large_while_it_comes(serve: Serve) -> None:
    """A body of unknown length is refused as soon as it passes the limit, without its end."""
    live = serve(services={"limits": Limits(max_body_bytes=100)})
    status, body = raw(
        live,
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"65\r\n" + b"x" * 101 + b"\r\n",
    )
    assert status == 413
    assert "100 bytes" in body["error"]["message"]


def test_body_that_does_not_come(serve: Serve) -> None:
    """A body that is not complete in time is a 408, and its connection is closed."""
    live = serve(services={"limits": Limits(body_timeout_s=0.05)})
    with live.connect() as client:
        client.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{")
        answer = b""
        while received := client.recv(65_536):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close" in head
    assert json.loads(body)["error"] == {
        "message": "The request body was not complete after 0.05 seconds.",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_timeout",
    }
    assert live.http.get("/health").status_code == 200


def test_large_body_is_parsed(serve: Serve) -> None:
    """A body that is parsed in the pool gives the same errors as one parsed in place."""
    live = serve(services={"limits": Limits(parse_inline_bytes=10)})
    assert live.http.post(CHAT, json=HELLO).status_code == 200
    assert error_of(live.http.post(CHAT, json={**HELLO, "n": 0}))["param"] == "n"


@pytest.mark.parametrize(
    ("content", "content_type", "param", "message"),
    [
        (b"{}", "text/plain", "content-type", "Content-Type must be application/json."),
        (b'{"model":', "application/json", None, "not valid JSON"),
        (b"", "application/json", None, "not valid JSON"),
        (b"[1]", "application/json", None, "must be a JSON object"),
        (b'{"model":"\xff\xfe"}', "application/json", None, "not valid JSON"),
        (b'{"model":"\\ud800"}', "application/json", None, "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, "application/json", None, "recursion limit"),
        (b'{"n":' + b"9" * 5_000 + b"}", "application/json", None, "not valid JSON"),
    ],
)
def test_bodies_that_are_no_request(
    serve: Serve, content: bytes, content_type: str, param: str | None, message: str
) -> None:
    """What is not a JSON object is a 400 that says so."""
    response = serve().http.post(CHAT, content=content, headers={"content-type": content_type})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert message in error["message"]


def test_compressed_body(serve: Serve) -> None:
    """A compressed body is refused by name, not parsed as rubbish."""
    response = serve().http.post(CHAT, content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "content-encoding"


def test_a_bug_is_logged_once_without_its_text(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is a 500 with the request id; the log has its place, not its text."""
    live = serve()
    with caplog.at_level(logging.ERROR):
        response = live.http.post(
            "/v1/completions",
            json={"model": "tiny", "prompt": "explode"},
            headers={"x-request-id": "boom-1"},
        )
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "boom-1" in error_of(response)["message"]
    [record] = caplog.records
    logged = record.getMessage()
    assert "RuntimeError" in logged
    assert "byte_format.py" in logged
    assert "boom-1" in logged
    assert "could not encode" not in logged
    assert live.http.post(CHAT, json=HELLO).status_code == 200


def test_a_template_may_refuse(serve: Serve) -> None:
    """A conversation that the model's own template refuses is the client's mistake."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "unrenderable"}]}
    response = serve().http.post(CHAT, json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, {**HELLO, "logit_bias": {"1024": 1}}, "logit_bias", None),
        (CHAT, {**HELLO, "stop_token_ids": [1, 1024]}, "stop_token_ids[1]", None),
        (CHAT, {**HELLO, "min_tokens": 6, "max_tokens": 5}, "min_tokens", None),
        (CHAT, {**HELLO, "max_completion_tokens": 5000}, "max_completion_tokens", "context"),
        (
            CHAT,
            {"model": "tiny", "messages": [{"role": "user", "content": "x" * 5000}]},
            "messages",
            "context",
        ),
        ("/v1/completions", {"model": "tiny", "prompt": "x" * 4096}, "prompt", "context"),
        ("/v1/completions", {"model": "tiny", "prompt": ""}, "prompt", None),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", ""]}, "prompt[1]", None),
        ("/v1/completions", {"model": "tiny", "prompt": [[5], [5, 1024]]}, "prompt[1]", None),
        ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 129}, "prompt", None),
        ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 65, "n": 2}, "n", None),
    ],
)
def test_what_only_the_model_can_refuse(
    serve: Serve, path: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    """Checks against vocabulary and context name their parameter and create no job."""
    live = serve()
    response = live.http.post(path, json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["code"] == ("context_length_exceeded" if code else None)
    assert live.engine.jobs == []


def test_prompt_that_fills_the_context_but_for_one(serve: Serve) -> None:
    """One free place is enough for one token."""
    live = serve()
    response = live.http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 4095})
    assert response.json()["usage"]["completion_tokens"] == 1
    assert response.json()["choices"][0]["finish_reason"] == "length"


def test_a_failed_stream_has_no_done(serve: Serve) -> None:
    """A cut stream ends with an error event, not with the mark of a complete answer."""
    live = serve(lambda _: Script((*ids_of("abc"), END), fail_after=1))
    cut = live.http.post(CHAT, json={**HELLO, "stream": True}).text.split("\n\n")
    assert json.loads(cut[-2].removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert "data: [DONE]" not in cut
    whole = serve().http.post(CHAT, json={**HELLO, "stream": True}).text.split("\n\n")
    assert whole[-2] == "data: [DONE]"


def test_failure_of_one_choice_fails_the_request(serve: Serve) -> None:
    """When one of several choices fails, the request fails and the others are cancelled."""

    def script(job: Script) -> Script:
        failing = job.id.endswith("-1")  # type: ignore[attr-defined]
        return Script(ids_of("a"), fail_after=0 if failing else None)

    live = serve(script)
    body = {**HELLO, "n": 3}
    assert live.http.post(CHAT, json=body).status_code == 503
    live.until(lambda engine: engine.active == 0)
    assert (live.engine.failed, live.engine.cancelled) == (1, 2)


def test_openapi_document(serve: Serve) -> None:
    """The document describes the generating endpoints with the types that parse them."""
    document = serve(services={"version": "1.2.3"}).http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    chat = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat == {"$ref": "#/components/schemas/ChatRequest"}
    temperature = document["components"]["schemas"]["ChatRequest"]["properties"]["temperature"]
    assert temperature["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}


def test_server_s_own_bound_on_open_answers(serve: Serve) -> None:
    """A configured default bounds chat answers that the client left open, and only those."""
    live = serve(services={"limits": Limits(default_max_tokens=3)})
    open_end = live.http.post(CHAT, json=HELLO).json()
    assert open_end["usage"]["completion_tokens"] == 3
    asked = live.http.post(CHAT, json={**HELLO, "max_tokens": 7}).json()
    assert asked["usage"]["completion_tokens"] == 7
    assert [job.max_tokens_explicit for job in live.engine.jobs] == [False, True]


def test_the_models_defaults_hold_on_every_endpoint(serve: Serve) -> None:
    """A request that leaves the temperature open gets the model's, and a response says so."""
    live = harmony_server(
        serve, final("yes"), services={"sampling_defaults": SamplingDefaults(0.25, 0.5)}
    )
    plain = {"model": "tiny", "input": "x"}
    answers = [
        live.http.post(CHAT, json=HELLO),
        live.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"}),
        live.http.post("/v1/responses", json=plain),
        live.http.post("/v1/responses", json={**plain, "temperature": 1.5}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    jobs = [(job.sampling.temperature, job.sampling.top_p) for job in live.engine.jobs]
    assert jobs == [(0.25, 0.5)] * 3 + [(1.5, 0.5)]
    told = [(a.json()["temperature"], a.json()["top_p"]) for a in answers[2:]]
    assert told == [(0.25, 0.5), (1.5, 0.5)]

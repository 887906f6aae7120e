"""A hundred thousand models, users, sessions, ids and paths later, the server's memory of them is
the page it had after the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from observed_server import ObservedServer, observed_server

from gpt_oss_server.api.app import Application, build_app
from gpt_oss_server.dispatch.desk import Call
from gpt_oss_server.trace_context import trace_context
from gpt_oss_server.types import Job, SamplingParams, TokenDelta

DISTINCT = 100_000
BATCH = 10_000
MESSAGES = [{"role": "user", "content": "hello"}]
JOB = Job(id="0", prompt=[17] * 20, sampling=SamplingParams(max_tokens=2))


async def ask(app: Application, method: str, path: str, name: str, body: bytes) -> int:
    """One HTTP request as the server's protocol would hand it over; its status."""
    statuses: list[int] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"q=" + name.encode(),
        "headers": [
            (b"content-type", b"application/json"),
            (b"x-request-id", f"id-{name}".encode()),
            (b"x-session-id", f"session-{name}".encode()),
            (b"user-agent", f"agent-{name}".encode()),
        ],
        "client": (f"10.0.0.{hash(name) % 250}", 1),
    }
    await app(scope, receive, send)
    return statuses[0]


async def refuse(live: ObservedServer, app: Application, numbers: range) -> set[int]:
    """Each number a model that nobody serves, and a path that does not exist."""
    statuses = set()
    for number in numbers:
        body = msgspec.json.encode(
            {"model": f"model-{number}", "messages": MESSAGES, "user": f"user-{number}"}
        )
        statuses.add(await ask(app, "POST", "/v1/chat/completions", f"{number}", body))
        statuses.add(await ask(app, "GET", f"/path-{number}", f"{number}", b""))
    return statuses


async def admit(live: ObservedServer, numbers: range) -> None:
    """Each number a client, a session, a request id and a trace of its own, let in by the desk
    and answered with two tokens."""
    desk, journal = live.services.desk, live.services.journal
    for number in numbers:
        trail = journal.open(f"id-{number}", trace_context(None), "/v1/chat/completions", "chat")
        trail.named(f"chatcmpl-{number}", "tiny", stream=True)
        trail.planned([JOB])
        call = Call(
            request_id=f"id-{number}",
            jobs=[JOB],
            client_id=f"client-{number}",
            session_id=f"user:{number}",
            trace_id=trail.trace.trace_id,
            trail=trail,
        )
        async with desk.admit(call) as lease:
            async for delta in _two_tokens():
                trail.saw(0, delta)
                lease.saw(0, delta)
        journal.close(trail, "ok", 200)


async def _two_tokens() -> AsyncIterator[TokenDelta]:
    yield TokenDelta(token_ids=(7,), cached_tokens=0)
    yield TokenDelta(token_ids=(7,))


@pytest.fixture
def live(tmp_path: Path) -> Any:
    with observed_server(tmp_path / "log") as server:
        yield server


def test_names_chosen_by_clients_make_no_series(live: ObservedServer) -> None:
    """The page has the same series afterwards, and is no longer than its figures are; none of the
    names is on it, exemplars included."""
    app = build_app(live.services)
    live.run(refuse(live, app, range(-2, 0)))
    live.run(admit(live, range(-2, 0)))
    before = live.until_all_is_known()
    statuses = set()
    for start in range(0, DISTINCT, BATCH):
        statuses |= live.run(refuse(live, app, range(start, start + BATCH)))
        live.run(admit(live, range(start, start + BATCH)))
    after = live.samples()
    page = live.page("application/openmetrics-text")
    assert statuses == {404}
    assert after.keys() == before.keys()
    answered = "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=ok}"
    refused = "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=not_found}"
    unknown = "gpt_oss_http_requests_total{endpoint=unknown}{status=404}"
    for name in (answered, refused, unknown):
        assert after[name] - before[name] == DISTINCT, name
    for word in ("model-", "client-", "user:", "session-", "agent-", "id-", "/path-"):
        assert word not in page, word
    buckets = sum(name.split("{")[0].endswith("_bucket") for name in after)
    assert page.count("# {trace_id=") <= buckets

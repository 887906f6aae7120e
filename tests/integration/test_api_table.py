"""docs/api.md is complete, current and true: every parameter is sent to a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from harmony_server import analysis, final, harmony_server, store_at
from live_server import MODEL, LiveServer, Serve
from tools.api_table.claims import CLAIMS, SMALLEST
from tools.api_table.page import page, parameters

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
ENDPOINTS = list(CLAIMS)
TAKEN = [
    pytest.param(endpoint, name, value, id=f"{endpoint} {name} {index}")
    for endpoint, claims in CLAIMS.items()
    for name, claim in claims.items()
    for index, value in enumerate(claim.taken)
]
REFUSED = [
    pytest.param(endpoint, name, value, id=f"{endpoint} {name} {index}")
    for endpoint, claims in CLAIMS.items()
    for name, claim in claims.items()
    for index, value in enumerate(claim.refused)
]
VOLATILE = ("id", "created", "created_at", "completed_at")


@pytest.fixture
def live(serve: Serve) -> Any:
    with store_at(None) as store:
        yield harmony_server(
            serve,
            analysis("hm") + final("ok"),
            store=store,
            services={"draw_seed": lambda: 7},
        )


def ask(live: LiveServer, endpoint: str, **fields: Any) -> httpx.Response:
    return live.http.post(endpoint, json=SMALLEST[endpoint] | fields)


def shown(answer: httpx.Response) -> Any:
    """What a client sees of it, without what differs each time."""
    kind = answer.headers["content-type"]
    if kind == "application/json":
        return stable(answer.json())
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [stable(json.loads(line)) for line in lines if line.startswith("{")]


def stable(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: stable(v) for k, v in content.items() if k not in VOLATILE}
    return [stable(item) for item in content] if isinstance(content, list) else content


def asked_of_engine(live: LiveServer) -> list[Any]:
    """The jobs since the last time, without their names."""
    jobs = [msgspec.structs.replace(job, id="") for job in live.engine.jobs]
    live.engine.jobs.clear()
    return jobs


def test_the_page_is_current() -> None:
    """The committed page is what the client's types and the claims make (`make docs`)."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_parameter_is_forgotten(endpoint: str) -> None:
    """Each parameter of the client's types has a claim with a value that shows it."""
    assert set(CLAIMS[endpoint]) == set(parameters(endpoint))
    for name, claim in CLAIMS[endpoint].items():
        assert claim.taken or claim.refused, name
        assert claim.taken or claim.kind == "refused" or name == "previous_response_id", name
        assert claim.refused or claim.kind != "refused", name
        assert claim.note or claim.kind == "honoured", name


@pytest.mark.parametrize(("endpoint", "name", "value"), TAKEN)
def test_what_is_taken(live: LiveServer, endpoint: str, name: str, value: Any) -> None:
    """It is answered. What is honoured shows in the engine's job or in the answer; what has no
    effect, or was let pass, shows in neither the prompt nor the sampling."""
    claim = CLAIMS[endpoint][name]
    plain = ask(live, endpoint, **claim.given)
    jobs = asked_of_engine(live)
    answer = ask(live, endpoint, **claim.given, **{name: value})
    assert answer.status_code == 200, answer.text
    changed = asked_of_engine(live)
    if claim.kind != "honoured":
        assert changed == jobs
    elif claim.shows and value is claim.taken[0]:
        assert (changed, shown(answer)) != (jobs, shown(plain))


@pytest.mark.parametrize(("endpoint", "name", "value"), REFUSED)
def test_what_is_refused(live: LiveServer, endpoint: str, name: str, value: Any) -> None:
    """It is a 400 that names the parameter, and the engine never hears of it."""
    answer = ask(live, endpoint, **CLAIMS[endpoint][name].given, **{name: value})
    assert answer.status_code == 400, answer.text
    param = answer.json()["error"]["param"]
    assert param == name or param.startswith((f"{name}.", f"{name}[")), param
    assert live.engine.jobs == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_null_is_as_if_left_out(live: LiveServer, endpoint: str) -> None:
    """Every parameter that is not required may be null; that changes nothing."""
    ask(live, endpoint)
    jobs = asked_of_engine(live)
    nulls = {name: None for name in parameters(endpoint) if name not in SMALLEST[endpoint]}
    answer = ask(live, endpoint, **nulls)
    assert answer.status_code == 200, answer.text
    assert asked_of_engine(live) == jobs


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_unknown_parameter_is_refused(live: LiveServer, endpoint: str) -> None:
    """Nothing is ignored in silence."""
    answer = ask(live, endpoint, colour="red")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "colour"
    assert answer.json()["error"]["code"] == "unknown_parameter"


def test_previous_response_id(live: LiveServer) -> None:
    """The one parameter whose value has to be made first."""
    first = ask(live, "/v1/responses").json()
    assert first["model"] == MODEL
    asked_of_engine(live)
    second = ask(live, "/v1/responses", previous_response_id=first["id"])
    assert second.json()["previous_response_id"] == first["id"]
    [job] = asked_of_engine(live)
    assert len(job.prompt) > first["usage"]["input_tokens"]

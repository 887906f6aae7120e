"""The chat page's files over HTTP: types, confinement, caching, and who may have them."""

from __future__ import annotations

import re

import httpx
import pytest
from desk_server import MB, desk_server
from harmony_server import final, harmony_server
from live_server import Serve

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.page_files import ChatPage

TYPES = {
    "/": "text/html; charset=utf-8",
    "/page/index.html": "text/html; charset=utf-8",
    "/page/theme.css": "text/css; charset=utf-8",
    "/page/chat.js": "text/javascript; charset=utf-8",
    "/page/icon.svg": "image/svg+xml",
}


def linked(http: httpx.Client) -> set[str]:
    """Every file that the page names, and those that its modules name in turn."""
    found: set[str] = set()
    left = re.findall(r'(?:href|src)="(page/[^"]+)"', http.get("/").text)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            imports = re.findall(r'^import .* from "\./([^"]+)";$', http.get(name).text, re.M)
            left += [f"page/{module}" for module in imports]
    return found


def test_types_and_confinement(serve: Serve) -> None:
    """Each kind of file has its type, and a policy under which nothing foreign can be loaded."""
    live = serve()
    for path, content_type in TYPES.items():
        got = live.http.get(path)
        assert (got.status_code, got.headers["content-type"]) == (200, content_type)
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == "no-referrer"
        policy = got.headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert {"script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy)
        assert "unsafe" not in "".join(policy)
    assert live.http.get("/").content == live.http.get("/page/index.html").content


def test_every_file_is_there_and_used(serve: Serve) -> None:
    """What the page and its modules name is served, and nothing is packaged that nobody names."""
    live = serve()
    names = linked(live.http)
    assert {"page/chat.js", "page/api.js", "page/turns.css", "page/theme.js"} <= names
    assert [name for name in names if live.http.get(name).status_code != 200] == []
    assert {f"page/{name}" for name in ChatPage.load().names} == names | {"page/index.html"}


def test_nothing_foreign_is_named(serve: Serve) -> None:
    """No file names another server, or makes markup or code of a string."""
    live = serve()
    for name in ("", *linked(live.http)):
        text = live.http.get(f"/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z]", text), name
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text, name
        assert not re.search(r"<[^>]+ (style|on[a-z]+)=", text), name


def test_caching(serve: Serve) -> None:
    """A file is asked for again each time and, unchanged, answered with 304 and no body."""
    live = serve()
    got = live.http.get("/")
    etag = got.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    assert got.headers["cache-control"] == "no-cache"
    assert live.http.get("/page/chat.js").headers["etag"] != etag
    for offered in (etag, f'"old", {etag}', f"W/{etag}", "*"):
        same = live.http.get("/", headers={"if-none-match": offered})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in same.headers
        assert same.headers["x-request-id"].startswith("req_")
    for offered in ('"old"', etag.strip('"'), ""):
        assert live.http.get("/", headers={"if-none-match": offered}).status_code == 200
    assert live.http.get("/").status_code == 200  # the connection is still good


def test_head(serve: Serve) -> None:
    """HEAD has the headers of GET and no body."""
    live = serve()
    for path in ("/", "/page/chat.js"):
        whole, head = live.http.get(path), live.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/none.js",
        "/page/chat.js/",
        "/page/CHAT.JS",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page//etc/passwd",
        "/index.html",
        "/favicon.ico",
    ],
)
def test_no_other_names(serve: Serve, path: str) -> None:
    """Any other name is a 404 in the envelope, and no path leads out of the page's folder."""
    live = serve()
    with httpx.Client() as http:
        got = http.send(httpx.Request("GET", httpx.URL(live.url, raw_path=path.encode())))
    assert got.status_code == 404
    assert got.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_verbs(serve: Serve, method: str) -> None:
    """The page is there to be read."""
    live = serve()
    for path in ("/", "/page/chat.js"):
        got = live.http.request(method, path)
        assert (got.status_code, got.headers["allow"]) == (405, "GET")


def test_open_to_everybody(serve: Serve) -> None:
    """The page needs no key, and is there before the model is; what it asks for needs one."""
    live = serve(started=False, services={"api_keys": KeyRing(("k",)), "draining": lambda: True})
    assert live.http.get("/").status_code == 200
    assert live.http.get("/page/chat.js").status_code == 200
    assert live.http.get("/v1/models").status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_the_predicted_kv_is_told(stream: bool) -> None:
    """Chat, completions and responses say what KV cache the decision counted with."""
    asked = {
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "x" * 90}],
            "max_tokens": 2,
        },
        "/v1/completions": {"prompt": "x" * 90, "max_tokens": 2},
        "/v1/responses": {"input": "x" * 90, "max_output_tokens": 2},
    }
    with desk_server() as live:
        for path, body in asked.items():
            got = live.http.post(path, json={"model": "tiny", "stream": stream, **body})
            assert got.status_code == 200, got.text
            facts = live.records[-1].facts
            rows = facts.input_tokens + 2 - 1  # the last token is never fed
            assert got.headers["x-kv-predicted-bytes"] == str(-(-rows // 16) * MB), path
            assert facts.predicted_kv_bytes == -(-rows // 16) * MB
        assert len(live.records) == 3


def test_no_prediction_no_header(serve: Serve) -> None:
    """What nobody predicted is absent: on refusals, health, behind a desk that decides nothing."""
    live = harmony_server(serve, final("Hello."))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    for got in (
        live.http.get("/health"),
        live.http.post("/v1/chat/completions", json={}),
        live.http.post("/v1/chat/completions", json=body),
    ):
        assert "x-kv-predicted-bytes" not in got.headers

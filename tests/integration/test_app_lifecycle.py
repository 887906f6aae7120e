"""How a server process starts, serves, drains and fails; a real process over the fake engine."""

from __future__ import annotations

import contextlib
import signal
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from app_process import ServerProcess, client, complaints, running

from gpt_oss_server.listener import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


def complete(url: str, *, stream: bool) -> httpx.Response:
    """The whole answer to a short completion."""
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 5, "stream": stream}
    with client(url) as http:
        return http.post("/v1/completions", json=body)


@contextmanager
def running_request(
    server: ServerProcess, *, stream: bool = True
) -> Iterator[Future[httpx.Response]]:
    """A request that the engine has taken and that its closed gate holds."""
    url = server.url()
    server.read_until("ready")
    server.order("close")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(complete, url, stream=stream)
        server.read_until("job")
        yield answer


def test_a_server_comes_up_serves_and_ends() -> None:
    """It says where it listens, answers, and ends with 0 and a silent stderr on SIGTERM."""
    with running("steered") as server:
        url = server.url()
        assert server.read_until("loading") == f"loading; {url}/health says when it is ready"
        assert server.read_until("ready in").endswith(
            "s: tiny on cpu in float32, context 4096 tokens, KV cache for 4096 tokens"
        )
        with client(url) as http:
            assert http.get("/health").status_code == 200
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
            server.terminate()
            status, _, err = server.end()
        assert (status, complaints(err)) == (0, [])


def test_what_runs_is_finished_before_the_end() -> None:
    """After SIGTERM no connection is accepted, and the running stream still ends well."""
    with running("steered", "--shutdown-grace-s", "60") as server, running_request(server) as held:
        server.terminate()
        server.wait_for_refusal()
        assert not held.done()
        server.order("open")
        answer = held.result(timeout=30)
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        status, _, err = server.end()
        assert (status, complaints(err)) == (0, [])


@pytest.mark.parametrize("stream", [True, False])
def test_what_outlasts_the_grace_ends_with_an_error(stream: bool) -> None:
    """A request that does not end in time gets an error of its own; the exit status is 0."""
    with (
        running("steered", "--shutdown-grace-s", "0.2") as server,
        running_request(server, stream=stream) as held,
    ):
        server.terminate()
        answer = held.result(timeout=30)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_failed"
        status, _, err = server.end()
        assert status == 0
        assert complaints(err) == ["warning 1 requests still run after 0.2 s of grace: cancelled"]


def test_a_second_signal_skips_the_grace() -> None:
    """The second signal ends the server at once, and the status says so."""
    with running("steered", "--shutdown-grace-s", "600") as server, running_request(server) as held:
        server.terminate()
        server.wait_for_refusal()
        server.process.send_signal(signal.SIGINT)
        status, _, err = server.end()
        assert (status, complaints(err)) == (128 + signal.SIGINT, [])
        assert held.result(timeout=30).status_code == 503


@pytest.mark.parametrize(
    ("parts", "reason"),
    [("downloading", "preparing the model files"), ("loading", "not started")],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_http_answers_while_the_model_loads(
    parts: str, reason: str, number: signal.Signals
) -> None:
    """While it downloads or loads, /health says why it is not ready, and a signal ends it."""
    with running(parts) as server:
        url = server.url()
        with client(url) as http:
            health = http.get("/health")
            while reason not in health.text:
                health = http.get("/health")
            assert health.status_code == 503
            assert http.get("/live").status_code == 200
            chat = http.post("/v1/chat/completions", json=CHAT)
            assert (chat.status_code, chat.json()["error"]["code"]) == (503, "not_ready")
            assert "retry-after" in chat.headers
        server.process.send_signal(number)
        status, _, err = server.end()
        assert (status, complaints(err)) == (0, [])


@pytest.mark.parametrize(
    ("parts", "flags", "line"),
    [
        ("failing", (), "model needs 39 GiB and 20 GiB are free: choose a smaller one"),
        ("steered", ("--model", "/nowhere"), "model folder /nowhere does not exist"),
        (
            "no-gpu",
            ("--gpu-mode", "tensor"),
            "gpu-mode tensor needs at least 2 GPUs; this machine has 0: use --gpu-mode single",
        ),
        (
            "two-gpus",
            ("--gpu-mode", "pipeline", "--gpus", "4"),
            "gpu-mode pipeline needs at least 4 GPUs; this machine has 2: use --gpu-mode single",
        ),
        (
            "two-gpus",
            ("--gpu-mode", "auto", "--gpus", "3"),
            "gpu-mode auto needs at least 3 GPUs; this machine has 2: use --gpu-mode single",
        ),
    ],
)
def test_what_stops_a_start(parts: str, flags: tuple[str, ...], line: str) -> None:
    """A server that cannot start says so in one line and ends with 1."""
    with running(parts, *flags) as server:
        status, out, err = server.end()
        assert (status, err) == (1, f"error: {line}\n")
        # All that can be known before anything is loaded is known before it says where it listens.
        assert bool(out) == (parts == "failing")


@pytest.mark.parametrize("setting", ["log_file", "decision_log"])
def test_a_log_that_cannot_be_written_stops_a_start(tmp_path: Path, setting: str) -> None:
    """A wrong setting: one line that names it, status 2, and nothing was begun."""
    flag = f"--{setting.replace('_', '-')}"
    missing = tmp_path / "none" / "log"
    for path, reason in {
        tmp_path: f"{tmp_path} is a folder",
        missing: f"cannot write to {missing}: No such file or directory",
    }.items():
        with running("steered", flag, str(path)) as server:
            assert server.end() == (2, "", f"error: {setting}: {reason}\n")


def test_a_folder_that_is_no_model_stops_a_start(tmp_path: Path) -> None:
    """A local model is looked at before the server says where it listens."""
    with running("steered", "--model", str(tmp_path)) as server:
        line = f"error: {tmp_path} is not a model folder: it has no config.json\n"
        assert server.end() == (1, "", line)


def test_nobody_needs_to_read_what_it_says() -> None:
    """A server whose standard output is gone serves, and ends with 0."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    with running("steered", "--port", str(port)) as server:
        assert server.process.stdout is not None
        server.process.stdout.close()
        with client(f"http://127.0.0.1:{port}") as http:
            ready = False
            while not ready:
                with contextlib.suppress(httpx.TransportError):
                    ready = http.get("/health").status_code == 200
        server.terminate()
        assert server.process.wait(30) == 0
        assert server.process.stderr is not None
        assert complaints(server.process.stderr.read()) == []


def test_slow_clients_are_bounded_by_the_settings() -> None:
    """The real server, on its own event loop, gives the times and the places that it was told."""
    limits = ("--header-timeout-s", "0.2", "--body-timeout-s", "0.2", "--max-connections", "2")
    with running("steered", *limits, "--keep-alive-s", "0.3") as server:
        port = int(server.url().rpartition(":")[2])
        server.read_until("ready")

        def said(*sent: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.sendall(b"".join(sent))
                return b"".join(iter(lambda: connection.recv(65_536), b""))

        head = b"HTTP/1.1\r\nhost: x\r\n"
        assert said() == b""
        assert said(b"GET /live ", head).startswith(b"HTTP/1.1 408 ")
        assert said(b"GET /live ", head, b"\r\n").endswith(b'{"status":"live"}')
        body = said(b"POST /tokenize ", head, b"content-length: 2\r\n\r\n{")
        assert body.startswith(b"HTTP/1.1 408 ")
        assert b"not complete after 0.2 seconds" in body
        address = ("127.0.0.1", port)
        with socket.create_connection(address), socket.create_connection(address):
            assert said().startswith(b"HTTP/1.1 503 ")


def test_what_was_made_at_the_start_is_out_of_later_collections() -> None:
    """The front process has settled its heap when it says that it is ready."""
    with running("steered") as server:
        server.read_until("ready")
        assert server.process.stdin is not None
        server.process.stdin.write("frozen\n")
        server.process.stdin.flush()
        assert int(server.read_until("frozen:").split()[1]) > 10_000


def test_a_busy_port_stops_a_start() -> None:
    """A port in use is found out before anything is loaded."""
    with listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        with running("steered", "--port", port) as server:
            status, out, err = server.end()
    line = f"error: port {port} on 127.0.0.1 is in use: stop the other process or choose --port\n"
    assert (status, out, err) == (1, "", line)


def test_settings_reach_the_api() -> None:
    """Keys, the model's name, the body limit and the default bound are what the API obeys."""
    flags = ("--api-key", "sk-1", "--served-model-name", "mine", "--max-body", "1KiB")
    with running("steered", *flags, "--default-max-tokens", "3") as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            assert http.get("/v1/models").status_code == 401
            http.headers["Authorization"] = "Bearer sk-1"
            models = [model["id"] for model in http.get("/v1/models").json()["data"]]
            assert models == ["mine", "tiny"]
            assert http.post("/v1/chat/completions", json=CHAT).json()["model"] == "mine"
            open_ended = {key: value for key, value in CHAT.items() if key != "max_tokens"}
            usage = http.post("/v1/chat/completions", json=open_ended).json()["usage"]
            assert usage["completion_tokens"] == 3
            large = CHAT | {"user": "x" * 1024}
            assert http.post("/v1/chat/completions", json=large).status_code == 413

"""`gpt-oss-server calibrate` against servers that answer well, badly, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sim_upstream import TOKEN, Answer, Handler, upstream, usage, well

from gpt_oss_server import cli
from gpt_oss_server.measure.connection import address_of
from gpt_oss_server.simulate.calibrate.calibration_file import parse_calibration

QUICK = ("--minutes", "0.05", "--passes", "1", "--gpu", "unknown", "--max-clients", "8")


def calibrate(
    folder: Path, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, str, Path]:
    """Exit status, stderr's last line, the file."""
    path = folder / "mine.yaml"
    status = cli.main(["calibrate", *argv, "--output", str(path)])
    lines = capsys.readouterr().err.splitlines()
    return status, lines[-1] if lines else "", path


def test_a_server_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which `simulate` reads; a password in the address is not written down."""
    with upstream() as server:
        secret = server.url.replace("//", "//ann:secret@")
        status, error, path = calibrate(tmp_path, capsys, secret, *QUICK)
        assert status == 0, error
        text = path.read_text()
        assert "secret" not in text
        found = parse_calibration(str(path), text)
        assert (found.source, found.model, found.served.server) == (server.url, "tiny", "unknown")
        assert server.posts > len(found.loops) > 3
    argv = ["simulate", "--calibration", str(path), "--duration", "20"]
    assert cli.main(argv) == 0
    assert "calibration:" not in capsys.readouterr().out
    assert cli.main([*argv, "--model", "20b"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "  calibration: calibrated on tiny, not on 20b" in said


def unframed(handler: Handler, before: int, body: dict[str, Any]) -> None:
    """As servers without chunks answer: the end of the connection is that of the stream."""
    events = [TOKEN] * body["max_tokens"] + [usage(body)]
    if before == 12:
        events = events[:2]
    handler.send_response(200)
    handler.end_headers()
    for event in events:
        handler.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    if before != 12:
        handler.wfile.write(b"data: [DONE]\n\n")
    handler.hang_up()


def test_streams_that_end_with_their_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are whole with their last event, and broken off without it."""
    with upstream(unframed) as server:
        status, error, _ = calibrate(tmp_path, capsys, server.url, *QUICK)
        assert (status, error.endswith(": the connection broke off")) == (1, True), error
        assert 12 < server.posts < 20


def throttled(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.plain(429, {"error": {"message": "too many"}}, Retry_After="7")


def no_json(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.chunk(b"data: {not json\n\n")
    handler.end_stream()


def no_http(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.wfile.write(b"\x00\xff nonsense \r\n\r\n")
    handler.hang_up()


def no_line(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.begin_stream()
    for _ in range(20):
        handler.chunk(b"x" * 65_536)
    handler.hang_up()


def below_zero(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.event(TOKEN)
    handler.event({"usage": {"prompt_tokens": -4, "completion_tokens": 4}})
    handler.end_stream()


def hangs_up(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.event(TOKEN)
    handler.hang_up()


def stops_early(handler: Handler, before: int, body: dict[str, Any]) -> None:
    if before < 2:
        well(handler, before, body)
        return
    handler.begin_stream()
    handler.event(TOKEN)
    handler.end_stream()


def silent(handler: Handler, before: int, body: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.event(usage(body))
    handler.end_stream()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (throttled, "error: the server does not answer: status 429, too many"),
        (no_json, "error: the server does not answer: not understood: "),
        (no_http, "error: the server does not answer: not understood: "),
        (no_line, "error: the server does not answer: not understood: a line of more than 1048576"),
        (below_zero, "error: the server does not answer: not understood: "),
        (hangs_up, "error: the server does not answer: the connection broke off"),
        (stops_early, "error: stopped at 4 × 96 → 16: the stream ended before its usage came"),
        (silent, "error: stopped at 4 × 96 → 16: no answer had any text that could be seen"),
    ],
)
def test_a_server_that_does_not_answer_well_is_left_alone(
    answer: Answer, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what it did; nothing is retried, nothing is written."""
    with upstream(answer) as server:
        status, error, path = calibrate(tmp_path, capsys, server.url, *QUICK)
        assert status == 1
        assert error.startswith(says)
        assert not path.exists()
        assert server.posts <= 2 + 8


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that nobody listens at, a name that no host can have."""
    with upstream() as server:
        url = server.url
    status, error, _ = calibrate(tmp_path, capsys, url, *QUICK)
    assert (status, error.startswith(f"error: no server at {url}: cannot connect: ")) == (1, True)
    status, error, _ = calibrate(tmp_path, capsys, "http://a..b:80", *QUICK)
    assert (status, error.startswith("error: no server at http://a..b:80: cannot ")) == (1, True)


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (("--gpu", "h1000"), 2, "error: unknown GPU type h1000"),
        (("--gpu", "auto"), 2, "error: the server runs on a GPU that it does not name"),
        (("--gpu", "h100", "--tp", "0"), 2, "error: tp and pp must be at least 1"),
        (("--gpu", "rtx4090", "--model", "120b"), 1, "error: gpt_oss does not fit rtx4090-tp1"),
        (("--seed", "-1"), 2, "error: --seed must be at least 0, not -1"),
    ],
)
def test_what_cannot_be_fitted_is_not_measured(
    argv: tuple[str, ...],
    status: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said before the server is asked for a single answer."""
    with upstream() as server:
        found, error, _ = calibrate(tmp_path, capsys, server.url, *QUICK, *argv)
        assert (found, error.startswith(says)) == (status, True), error
        assert server.posts == 0


def test_a_server_that_says_odd_things_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, on one line."""
    with upstream(stats={"gpu_routing": {}, "engine": ["what"]}) as server:
        status, error, _ = calibrate(tmp_path, capsys, server.url, *QUICK)
        assert status == 1
        assert error.startswith(f"error: what {server.url} says of itself is not understood (")


def test_addresses() -> None:
    """With and without a path and a port; names and passwords stay out of what is written."""
    assert address_of("http://h/v1").url == "http://h:80"
    assert address_of("https://ann:pw@h:0/x/v1/").url == "https://h:0/x"
    assert address_of("http://[::1]:8000").url == "http://[::1]:8000"

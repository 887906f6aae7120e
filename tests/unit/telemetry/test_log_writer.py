"""Lines on their way out: nobody waits for a disk, and what is lost is counted."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trace_records import record

from gpt_oss_server.errors import StartupError
from gpt_oss_server.events import HttpAnswered, RequestEnded, WorkerRestarted
from gpt_oss_server.telemetry.log_lines import Logged, as_json
from gpt_oss_server.telemetry.logs import LogHandler, LogSink, LogWriter, log_output


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reads, writes = os.pipe()
    yield reads, writes
    os.close(reads)
    os.close(writes)


def told(message: str) -> Logged:
    return Logged(1704110400.0, logging.INFO, "a", message, None)


def messages(path: Path) -> list[str]:
    return [json.loads(line)["message"] for line in path.read_text().splitlines()]


def test_lines_come_out_in_order(tmp_path: Path) -> None:
    """Everything that was handed over before the end is written, in order, each on its line."""
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        writer = LogWriter(file.fileno())
        for number in range(1000):
            writer.put(told(str(number)))
        assert writer.close()
    assert messages(path) == [str(number) for number in range(1000)]
    assert writer.dropped == 0
    recent = [json.loads(line)["message"] for line in writer.recent()]
    assert recent == [str(number) for number in range(500, 1000)]


def test_a_disk_that_hangs_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    """With the writer stuck, handing over returns at once; what finds the queue full is counted
    as lost; what was taken arrives once the disk goes on."""
    reads, writes = pipe
    os.set_blocking(reads, True)
    stuck = threading.Event()
    filled = b"x" * 4096
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, filled)
    except BlockingIOError:
        os.set_blocking(writes, True)
    encoded = 0

    def encode(line: object) -> bytes:
        nonlocal encoded
        encoded += 1
        stuck.set()
        return as_json(line)  # type: ignore[arg-type]

    writer = LogWriter(writes, encode, capacity=10)
    writer.put(told("first"))
    assert stuck.wait(10)
    for number in range(50):
        writer.put(told(str(number)))
    taken = 51 - writer.dropped
    assert 10 <= taken <= 12
    received = b""
    while received.count(b"\n") < taken:
        received += os.read(reads, 65536).lstrip(b"x")
    assert writer.close()
    assert encoded == taken


def test_a_full_disk_is_counted_and_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Every line lost counts; the operator is told on stderr, once; nothing is raised."""
    with open("/dev/full", "wb", buffering=0) as full:
        writer = LogWriter(full.fileno())
        writer.put(told("a"))
        while not writer.dropped:
            pass
        writer.put(told("b"))
        assert writer.close()
    assert writer.dropped == 2
    assert capfd.readouterr().err == "error: cannot write the log: No space left on device\n"


def test_half_a_line_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that filled up within a line: the next line begins on a line of its own."""
    path = tmp_path / "log"
    real, calls = os.write, list[int]()
    torn = threading.Event()

    def write(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) == 1:
            return real(fd, data[:10])
        if len(calls) == 2:
            torn.set()
            raise OSError(28, "No space left on device")
        return real(fd, data)

    with path.open("ab", buffering=0) as file:
        monkeypatch.setattr("gpt_oss_server.telemetry.logs.os.write", write)
        monkeypatch.setattr("gpt_oss_server.telemetry.logs._STDERR", file.fileno())
        writer = LogWriter(file.fileno())
        writer.put(told("cut"))
        assert torn.wait(10)
        writer.put(told("whole"))
        assert writer.close()
        monkeypatch.undo()
    first, second = path.read_text().splitlines()
    assert len(first) == 10
    assert json.loads(second)["message"] == "whole"
    assert writer.dropped == 1


def test_a_line_that_cannot_be_encoded_is_one_line_lost(tmp_path: Path) -> None:
    """Half a character in a message harms no other line."""
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        writer = LogWriter(file.fileno())
        for message in ("a", "\ud800", "b"):
            writer.put(told(message))
        assert writer.close()
    assert messages(path) == ["a", "b"]
    assert writer.dropped == 1


def test_a_wrong_logging_call_is_one_line_lost(tmp_path: Path) -> None:
    """A format string that does not fit its arguments raises nothing."""
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        writer = LogWriter(file.fileno())
        handler = LogHandler(writer)
        handler.handle(logging.LogRecord("a", logging.INFO, "f", 1, "%d", ("x",), None))
        assert writer.close()
    assert (writer.dropped, path.read_text()) == (1, "")


def test_events_below_the_level_are_left_out(tmp_path: Path) -> None:
    """At level warning: restarts yes, the end of a good request no, an event without line no."""
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        writer = LogWriter(file.fileno())
        sink = LogSink(writer, logging.WARNING, unix_clock=lambda: 1704110400.0)
        sink.emit(RequestEnded(record()))
        sink.emit(HttpAnswered("/health", 200, 0.1))
        sink.emit(WorkerRestarted("gone", 1))
        sink.emit(RequestEnded(record(outcome="internal", status=500)))
        assert writer.close()
    kinds = [json.loads(line)["event_type"] for line in path.read_text().splitlines()]
    assert kinds == ["engine.restart", "request.end"]


@pytest.mark.parametrize("form", ["json", "auto", "human"])
def test_logging_goes_through_the_writer(tmp_path: Path, form: str) -> None:
    """Inside the block, what modules log reaches the file, in its form (auto: a file is no
    terminal); afterwards logging is as it was."""
    path = tmp_path / "log"
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with log_output(path, form, logging.INFO):
        logging.getLogger("somebody").info("hello")
        logging.getLogger("somebody").debug("unheard")
    assert (root.level, list(root.handlers)) == before
    text = path.read_text()
    if form == "human":
        assert text.endswith("INFO    hello\n")
    else:
        assert [json.loads(line)["message"] for line in text.splitlines()] == ["hello"]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """One line that names the setting and what is wrong."""
    with (
        pytest.raises(StartupError, match=r"log_file: cannot write to .*: Is a directory"),
        log_output(tmp_path, "json", logging.INFO),
    ):
        pass

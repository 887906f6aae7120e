"""The line writer: in order, never blocking, and what it lost is counted."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from gpt_oss_server.errors import StartupError
from gpt_oss_server.telemetry.lines import LineWriter

FULL_DISK = Path("/dev/full")


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    """What was there stays; every item is a line; closing writes what waits."""
    path = tmp_path / "lines.txt"
    path.write_text("before\n")
    writer = LineWriter(path, lambda n: f"ü{n}")
    for number in range(1000):
        writer.write(number)
    writer.close()
    assert path.read_text(encoding="utf-8") == "before\n" + "".join(f"ü{n}\n" for n in range(1000))
    assert writer.dropped == 0


def test_a_full_queue_drops_and_never_blocks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the file is stuck, what the queue cannot take is counted, and said at the end."""
    stuck, busy = threading.Event(), threading.Event()

    def encode(number: int) -> str:
        busy.set()
        stuck.wait()
        return str(number)

    path = tmp_path / "lines.txt"
    writer = LineWriter(path, encode, capacity=2)
    writer.write(0)
    assert busy.wait(10)
    for number in (1, 2, 3, 4, 5):
        writer.write(number)
    assert writer.dropped == 3
    stuck.set()
    writer.close()
    assert path.read_text() == "0\n1\n2\n"
    assert caplog.messages == [f"3 lines could not be written to {path}"]


@pytest.mark.skipif(not FULL_DISK.exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Every line is counted as lost, one error is logged, and closing raises nothing."""
    writer = LineWriter(FULL_DISK, str)
    for number in range(50):
        writer.write(number)
    writer.close()
    assert writer.dropped == 50
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.ERROR, "cannot write to /dev/full: No space left on device"),
        (logging.WARNING, "50 lines could not be written to /dev/full"),
    ]


def test_what_cannot_be_written_loses_no_other_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A lone surrogate is no UTF-8: that line is lost, the next is written."""
    path = tmp_path / "lines.txt"
    writer = LineWriter(path, str)
    for text in ("a", "\ud800", "b"):
        writer.write(text)
    writer.close()
    assert path.read_text() == "a\nb\n"
    assert writer.dropped == 1
    assert caplog.messages[0] == f"cannot write to {path}: UnicodeEncodeError"


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """At start-up, with the reason, and without a thread left behind."""
    before = threading.active_count()
    with pytest.raises(StartupError, match=r"cannot write to .*: Is a directory"):
        LineWriter(tmp_path, str)
    assert threading.active_count() == before

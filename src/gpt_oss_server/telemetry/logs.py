"""Log lines on their way out: from whoever logs, through a bounded queue, to a thread that writes.

Knows: the queue, the thread, the file or stream, Python's logging. Does not know: what a line
says. A disk that is slow or full costs lines, which are counted, and never a request its time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from gpt_oss_server.errors import StartupError
from gpt_oss_server.events import Event
from gpt_oss_server.telemetry.log_lines import (
    Line,
    Logged,
    Stamped,
    as_json,
    as_text,
    level_of,
    line_of,
    logged,
)
from gpt_oss_server.trail import CURRENT_IDS

CAPACITY = 10_000
KEPT_LINES = 500
_BATCH = 256
# Lines that come within this time are written together.
_PAUSE_S = 0.02
_CLOSE_WAIT_S = 1.0
_STDERR = 2


class LogWriter:
    """Writes lines, in order, in a thread of its own.

    `dropped` counts those that found the queue full or could not be written; the first of a row
    of failures is told on stderr. A line that was cut short (a full disk) is ended before the
    next one.
    """

    def __init__(
        self, fd: int, encode: Callable[[Line], bytes] = as_json, *, capacity: int = CAPACITY
    ) -> None:
        """`fd` is a file descriptor to write to; it stays open. `encode` gives one line's bytes
        without a line end."""
        self._fd = fd
        self._encode = encode
        self._capacity = capacity
        self._queue: queue.SimpleQueue[Logged | Stamped | None] = queue.SimpleQueue()
        self._recent: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._closing = threading.Event()
        self._torn = False
        self._failing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, item: Logged | Stamped) -> None:
        """Hand one over; never blocks."""
        if self._queue.qsize() >= self._capacity:
            self.dropped += 1
            return
        self._queue.put(item)

    def recent(self) -> list[bytes]:
        """The last lines as JSON, oldest first, whatever form they were written in."""
        return list(self._recent)

    def close(self) -> bool:
        """Write what waits, for at most a second. False if that was not enough: then the thread
        may still use the file descriptor."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(_CLOSE_WAIT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        ended = False
        while not ended:
            items = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(items) < _BATCH:
                    items.append(self._queue.get_nowait())
            ended = None in items
            self._write([item for item in items if item is not None])
            self._closing.wait(_PAUSE_S)

    def _write(self, items: list[Logged | Stamped]) -> None:
        encoded: list[bytes] = []
        for item in items:
            try:
                line = line_of(item)
                json = as_json(line)
                self._recent.append(json)
                encoded.append(json if self._encode is as_json else self._encode(line))
            except Exception:  # noqa: BLE001 - one line that cannot be written is one line lost
                self.dropped += 1
        if not encoded:
            return
        try:
            self._append(b"\n".join(encoded) + b"\n")
            self._failing = False
        except OSError as error:
            self.dropped += len(encoded)
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._failing and self._fd != _STDERR:
            with contextlib.suppress(OSError):
                os.write(_STDERR, f"error: cannot write the log: {error.strerror}\n".encode())
        self._failing = True

    def _append(self, data: bytes) -> None:
        rest = b"\n" + data if self._torn else data
        while rest:
            written = os.write(self._fd, rest)
            rest = rest[written:]
            self._torn = bool(rest)


class LogHandler(logging.Handler):
    """Takes what Python's logging brings."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(logged(record))
        except Exception:  # noqa: BLE001 - a wrong format string must not become an error
            self._writer.dropped += 1


class LogSink:
    """Takes the events that make lines, from `level` up."""

    def __init__(
        self, writer: LogWriter, level: int, unix_clock: Callable[[], float] = time.time
    ) -> None:
        self._writer = writer
        self._level = level
        self._unix_clock = unix_clock

    def emit(self, event: Event) -> None:
        level = level_of(event)
        if level is not None and level >= self._level:
            self._writer.put(Stamped(self._unix_clock(), event, CURRENT_IDS.get()))


@contextlib.contextmanager
def log_output(path: Path | None, form: str, level: int) -> Iterator[LogWriter]:
    """While the block runs, every logging call goes through one writer: to the file `path`, or
    to stderr. `form` is `json`, `human`, or `auto` (human on a terminal).

    Raises:
        StartupError: the file cannot be opened for appending.
    """
    file = None if path is None else _opened(path)
    fd = _STDERR if file is None else file.fileno()
    human = form == "human" or (form == "auto" and os.isatty(fd))
    writer = LogWriter(fd, as_text if human else as_json)
    handler = LogHandler(writer)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield writer
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        if writer.close() and file is not None:
            file.close()


def _opened(path: Path) -> FileIO:
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise StartupError(f"log_file: cannot write to {path}: {error.strerror}") from error

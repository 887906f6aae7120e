"""Lines to a file from a thread, so that a slow or full disk never blocks a request.

Knows: a bounded queue, a file, how many lines were lost. Does not know: what the lines say.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gpt_oss_server.errors import StartupError

T = TypeVar("T")
log = logging.getLogger(__name__)

_CLOSE_WAIT_S = 1.0


class LineWriter(Generic[T]):
    """Appends `encode(item)` and a line end for every item, in order.

    `dropped` counts items that found the queue full or could not be written. A line that was cut
    short (a full disk) is ended before the next one.
    """

    def __init__(self, path: Path, encode: Callable[[T], str], *, capacity: int = 10_000) -> None:
        """Raises StartupError if the file cannot be opened for appending."""
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StartupError(f"cannot write to {path}: {error.strerror}") from error
        self._path = path
        self._encode = encode
        self._queue: queue.Queue[T | None] = queue.Queue(capacity)
        self.dropped = 0
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="line-writer", daemon=True)
        self._thread.start()

    def write(self, item: T) -> None:
        """Hand an item over; never blocks."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second or two."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_WAIT_S)
            self._thread.join(_CLOSE_WAIT_S)
        if self.dropped:
            log.warning("%d lines could not be written to %s", self.dropped, self._path)

    def _run(self) -> None:
        complained = False
        with self._file:
            while (item := self._queue.get()) is not None:
                try:
                    self._append(self._encode(item).encode() + b"\n")
                    complained = False
                except (OSError, ValueError) as error:  # ValueError: text that UTF-8 has not
                    self.dropped += 1
                    if not complained:
                        reason = getattr(error, "strerror", None) or type(error).__name__
                        log.error("cannot write to %s: %s", self._path, reason)
                        complained = True

    def _append(self, line: bytes) -> None:
        rest = b"\n" + line if self._torn else line
        while rest:
            written = self._file.write(rest)
            rest = rest[written:]
            self._torn = bool(rest)

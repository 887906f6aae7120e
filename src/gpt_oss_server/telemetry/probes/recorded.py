"""A probe that plays back what it was given: for tests, demonstrations and replays.

Knows: nothing of any machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_oss_server.ports import GpuReading


class RecordedProbe:
    """Each `read` is the next entry of the recording; the last one repeats for ever.

    An entry that is an exception is raised. Raises ValueError for an empty recording.
    """

    def __init__(self, recording: Sequence[Sequence[GpuReading] | Exception]) -> None:
        if not recording:
            raise ValueError("a recording needs at least one entry")
        self._recording = tuple(recording)
        self._next = 0

    def read(self) -> Sequence[GpuReading]:
        entry = self._recording[self._next]
        self._next = min(self._next + 1, len(self._recording) - 1)
        if isinstance(entry, Exception):
            raise entry
        return tuple(entry)

    def close(self) -> None:
        """Start again from the first entry."""
        self._next = 0

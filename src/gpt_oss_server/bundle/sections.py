"""Sections of a bundle, each read on its own, so that one that fails or hangs is only missing.

Knows: how a section is read, for how long, and what the manifest says of it. Does not know: any
section. The message of an exception is shown only where it is one of ours: a library's may quote
the text that it choked on.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal

import msgspec

from gpt_oss_server import __version__
from gpt_oss_server.errors import NotReady, ServerError, StartupError
from gpt_oss_server.lifecycle import in_daemon_thread

FORMAT = 1
Status = Literal["ok", "absent", "failed", "timed_out"]
Source = Literal["server", "local"]
Read = Callable[[], Awaitable[Any]]
_BUSY = "the reading before this one has not ended"


class Absent(Exception):
    """There is nothing to show here, and that is no fault; the message says why."""


@dataclass(frozen=True)
class Section:
    """One part of a bundle. `read` gives anything that msgspec encodes; text stays text."""

    name: str
    read: Read
    limit_s: float = 2.0


class SectionState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one section. `error` says why it is not there."""

    status: Status
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Collected:
    """The sections that could be read, and the manifest of all."""

    content: dict[str, Any]
    states: dict[str, SectionState]
    source: Source
    created_unix_s: float

    def manifest(self) -> dict[str, Any]:
        created = datetime.fromtimestamp(self.created_unix_s, UTC).isoformat(timespec="seconds")
        return {
            "format": FORMAT,
            "created": created.removesuffix("+00:00") + "Z",
            "source": self.source,
            "version": __version__,
            "sections": {name: msgspec.to_builtins(state) for name, state in self.states.items()},
        }


class OnLoop:
    """Read in place: for what takes about a millisecond at most and belongs to the event loop."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    async def __call__(self) -> Any:
        return self._read()


class InThread:
    """Read in a thread of its own, which is left behind if it does not come back. While it is
    away, no second one is started."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._busy = False

    async def __call__(self) -> Any:
        if self._busy:
            raise Absent(_BUSY)
        self._busy = True

        def run() -> Any:
            try:
                return self._read()
            finally:
                self._busy = False

        return await in_daemon_thread(run)


async def collect(
    sections: Sequence[Section],
    source: Source,
    *,
    clock: Callable[[], float] = time.monotonic,
    unix_clock: Callable[[], float] = time.time,
) -> Collected:
    """Read all of them: those of the event loop one by one, letting others have it in between,
    then the rest side by side. Never raises for a section's sake."""
    created_unix_s = unix_clock()
    content: dict[str, Any] = {}
    states: dict[str, SectionState] = {}

    async def one(section: Section) -> None:
        began_s = clock()
        status: Status = "ok"
        error = None
        try:
            async with asyncio.timeout(section.limit_s):
                value = await section.read()
            content[section.name] = msgspec.to_builtins(value)
        except TimeoutError:
            status, error = "timed_out", f"no answer within {section.limit_s:g} s"
        except (Absent, NotReady) as reason:
            status, error = "absent", str(reason)
        except Exception as fault:  # noqa: BLE001 - a section that fails is only missing
            status, error = "failed", describe(fault)
        states[section.name] = SectionState(status, round(clock() - began_s, 6), error)

    rest = []
    for section in sections:
        if isinstance(section.read, OnLoop):
            await one(section)
            await asyncio.sleep(0)
        else:
            rest.append(section)
    await asyncio.gather(*(one(section) for section in rest))
    names = [section.name for section in sections]
    return Collected(
        {name: content[name] for name in names if name in content},
        {name: states[name] for name in names},
        source,
        created_unix_s,
    )


def describe(fault: BaseException) -> str:
    """What went wrong, in words that cannot quote a prompt."""
    kind = type(fault).__name__
    if isinstance(fault, ServerError | StartupError):
        return f"{kind}: {fault}"
    if isinstance(fault, OSError) and fault.strerror is not None:
        return f"{kind}: {fault.strerror}"
    frames = traceback.extract_tb(fault.__traceback__)
    if not frames:
        return kind
    last = frames[-1]
    return f"{kind} at {PurePath(last.filename).name}:{last.lineno} {last.name}"

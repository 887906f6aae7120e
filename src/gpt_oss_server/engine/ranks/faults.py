"""What to call what went wrong in an engine's process, in words that hold nothing of a prompt.

Knows: exceptions, exit statuses. Does not know: torch, who is told.
"""

from __future__ import annotations

import os
import signal
import traceback

EXIT_BROKEN = 70
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")
# oneDNN's words when there is no room for the code or scratch of a product that it knows how to
# do; where it does not, it fails before, at the "primitive descriptor".
_NO_PRIMITIVE = "could not create a primitive"
_MOST_PLACES = 16


def mishap(error: BaseException) -> str:
    """One line: that memory ran out, or the exception's kind and place. Nothing of a prompt."""
    text = str(error).strip().lower()
    said = text == _NO_PRIMITIVE or any(words in text for words in _MEMORY_WORDS)
    if said or isinstance(error, MemoryError):
        return "ran out of memory"
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {_place(frames[0])}" if frames else ""
    return f"failed with {type(error).__name__}{place}"


def places(error: BaseException) -> str:
    """One line for a log: the exception's kind and where it came from, innermost first, then the
    same of what it was raised from. Never its words, nor source lines: an exception may quote
    what it stumbled over, and that may be of a prompt."""
    told: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = traceback.extract_tb(cause.__traceback__)[-_MOST_PLACES:]
        way = " < ".join(f"{_place(frame)} {frame.name}" for frame in reversed(frames))
        told.append(f"{type(cause).__name__} at {way}" if way else type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    return ", from ".join(told)


def _place(frame: traceback.FrameSummary) -> str:
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"


def ending(returncode: int | None) -> str:
    """How a process ended, as the end of a sentence about it."""
    if returncode is None:
        return "closed its connection"
    if returncode == -signal.SIGKILL:
        return "was killed (SIGKILL), by somebody or for want of memory"
    if returncode < 0:
        return f"was killed by signal {-returncode}"
    return f"ended (exit status {returncode})"

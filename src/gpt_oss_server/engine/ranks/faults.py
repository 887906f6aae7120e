"""What to call what went wrong in a rank. Knows: exceptions, exit statuses. No torch."""

from __future__ import annotations

import os
import signal
import traceback

EXIT_BROKEN = 70
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")
# oneDNN's words when there is no room for the code or scratch of a product that it knows how to
# do; where it does not, it fails before, at the "primitive descriptor".
_NO_PRIMITIVE = "could not create a primitive"


def mishap(error: BaseException) -> str:
    """One line: that memory ran out, or the exception's kind and place. Nothing of a prompt."""
    text = str(error).strip().lower()
    said = text == _NO_PRIMITIVE or any(words in text for words in _MEMORY_WORDS)
    if said or isinstance(error, MemoryError):
        return "ran out of memory"
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {os.path.basename(frame[0].filename)}:{frame[0].lineno}" if frame else ""
    return f"failed with {type(error).__name__}{place}"


def ending(returncode: int | None) -> str:
    """How a process ended, as the end of a sentence about it."""
    if returncode is None:
        return "closed its connection"
    if returncode == -signal.SIGKILL:
        return "was killed (SIGKILL), by somebody or for want of memory"
    if returncode < 0:
        return f"was killed by signal {-returncode}"
    return f"ended (exit status {returncode})"

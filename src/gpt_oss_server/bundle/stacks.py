"""Where every thread and every task of this process is right now: places, never values.

Knows: frames. Does not know: what they do. Local variables hold prompts; none is looked at.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from types import CodeType, FrameType
from typing import Any

MAX_FRAMES = 60
MAX_TASKS = 200
_STEPS = ("async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper")
_BUNDLES_OWN = "gpt_oss_server/bundle/"


def thread_stacks() -> list[dict[str, Any]]:
    """Every thread, innermost frame last, the calling one included."""
    names = {thread.ident: thread for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        thread = names.get(ident)
        found.append(
            {
                "name": "unknown" if thread is None else thread.name,
                "native_id": None if thread is None else thread.native_id,
                "daemon": None if thread is None else thread.daemon,
                "frames": _stack(frame),
            }
        )
    return sorted(found, key=lambda one: str(one["name"]))


def task_stacks() -> list[dict[str, Any]]:
    """Every task of the running loop: its coroutine, and through what it waits, innermost last.
    At most `MAX_TASKS`; without those that read this very bundle."""
    found = []
    for task in list(asyncio.all_tasks())[:MAX_TASKS]:
        waits = list(_awaited(task.get_coro()))
        if waits and waits[0].startswith(_BUNDLES_OWN):
            continue
        found.append({"task": waits[0] if waits else "unknown", "frames": waits[-MAX_FRAMES:]})
    return sorted(found, key=lambda one: str(one["task"]))


def _stack(frame: FrameType | None) -> list[str]:
    places: list[str] = []
    while frame is not None and len(places) < MAX_FRAMES:
        places.append(_place(frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return places[::-1]


def _awaited(waiting: Any) -> Iterator[str]:
    """The chain of coroutines and generators that each wait for the next."""
    for _ in range(MAX_FRAMES):
        for kind in ("cr", "ag", "gi"):
            frame = getattr(waiting, f"{kind}_frame", None)
            if frame is not None:
                yield _place(frame.f_code, frame.f_lineno)
                following = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                waiting = getattr(waiting, following, None)
                break
        else:
            waiting = _inside(waiting)
            if waiting is None:
                return


def _inside(waiting: Any) -> Any:
    """What a step of an async generator is a step of; None for what is no such step. Only the
    garbage collector is told: without it every stream's stack would end where it is read."""
    if type(waiting).__name__ not in _STEPS:
        return None
    held = gc.get_referents(waiting)
    return next((one for one in held if isinstance(one, AsyncGenerator | Coroutine)), None)


def _place(code: CodeType, line: int | None) -> str:
    return f"{_short(code.co_filename)}:{line} {code.co_qualname}"


def _short(path: str) -> str:
    """A file as it is imported, without where it is installed."""
    entries = [entry for entry in sys.path if entry and path.startswith(entry.rstrip("/") + "/")]
    if not entries:
        return path.rpartition("/")[2]
    return path[len(max(entries, key=len).rstrip("/")) + 1 :]

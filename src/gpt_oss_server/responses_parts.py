"""The store of responses, out of settings: used by the composition root alone.

Knows: which setting becomes which part's parameter, where a file goes that nobody named. Does not
know: when the server comes up and goes down.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from gpt_oss_server.config import Settings
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.responses_store.records import StoreBounds, StoreUnavailable
from gpt_oss_server.responses_store.sqlite import SqliteResponses
from gpt_oss_server.responses_store.thread import ResponseStore

log = logging.getLogger(__name__)

AUTO, MEMORY, OFF = "auto", "memory", "off"
_FILE = Path("gpt-oss-server", "responses.sqlite3")


def check_responses_settings(settings: Settings) -> None:
    """Refuse a file that cannot be used, before anything is started. Raises ConfigError."""
    if settings.responses_store in (AUTO, MEMORY, OFF):
        return
    table = SqliteResponses(Path(settings.responses_store), _bounds(settings))
    with contextlib.closing(table):
        try:
            table.totals()
        except StoreUnavailable as error:
            raise ConfigError(
                f"responses_store: cannot use {settings.responses_store}: {error}"
            ) from None


def build_store(settings: Settings, environ: Mapping[str, str]) -> ResponseStore | None:
    """The store, None if it is off. Where `auto` finds no place for a file it is in memory, and
    the log says so. A file that is there already is cleared at once of what is too old."""
    if settings.responses_store == OFF:
        return None
    path = None
    if settings.responses_store == AUTO:
        path = _place(environ)
    elif settings.responses_store != MEMORY:
        path = Path(settings.responses_store)
    store = ResponseStore(SqliteResponses(path, _bounds(settings)))
    if path is not None and path.exists():
        store.start()
    return store


def _bounds(settings: Settings) -> StoreBounds:
    return StoreBounds(
        max_count=settings.max_responses,
        max_bytes=settings.max_responses_size,
        max_age_s=settings.max_response_age_s,
    )


def _place(environ: Mapping[str, str]) -> Path | None:
    """The file below the user's state folder, None if nothing can be written there."""
    state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = Path(state) / _FILE
    there = next((folder for folder in path.parents if folder.exists()), None)
    if path.is_absolute() and there is not None and there.is_dir() and os.access(there, os.W_OK):
        return path
    log.warning("cannot write to %s: responses are kept in memory and lost at the end", path)
    return None

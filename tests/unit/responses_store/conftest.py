"""Tables in real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from stored import BOUNDS, SteeredClock

from gpt_oss_server.responses_store.records import StoreBounds
from gpt_oss_server.responses_store.sqlite import SqliteResponses

OpenTable = Callable[..., SqliteResponses]


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.sqlite3"


@pytest.fixture
def open_table(path: Path, clock: SteeredClock) -> Iterator[OpenTable]:
    """Open the table, as often as one likes; all are closed after the test."""
    with ExitStack() as opened:

        def opening(bounds: StoreBounds = BOUNDS) -> SqliteResponses:
            return opened.enter_context(closing(SqliteResponses(path, bounds, clock=clock)))

        yield opening


@pytest.fixture
def table(open_table: OpenTable) -> SqliteResponses:
    return open_table()

"""Where responses are kept, by the settings and the machine."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gpt_oss_server.config import load
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.responses_parts import build_store, check_responses_settings
from gpt_oss_server.responses_store.sqlite import SqliteResponses
from gpt_oss_server.responses_store.thread import ResponseStore


def use(store: ResponseStore | None) -> None:
    """Have it open its table."""
    assert store is not None
    assert asyncio.run(store.ask(SqliteResponses.totals)) == (0, 0)
    store.close()


def test_a_file_that_is_named(tmp_path: Path) -> None:
    """It is made at once: a server whose file cannot be used does not start."""
    path = tmp_path / "r.sqlite3"
    settings = load({"responses_store": str(path)}, {})
    check_responses_settings(settings)
    assert path.exists()
    use(build_store(settings, {}))


@pytest.mark.parametrize("spoil", [Path.mkdir, lambda path: path.write_text("no database " * 99)])
def test_a_file_that_cannot_be_used(tmp_path: Path, spoil: object) -> None:
    """One line that names the setting."""
    path = tmp_path / "r.sqlite3"
    assert callable(spoil)
    spoil(path)
    with pytest.raises(ConfigError, match="responses_store: cannot use"):
        check_responses_settings(load({"responses_store": str(path)}, {}))


def test_the_state_folder(tmp_path: Path) -> None:
    """`auto` keeps a file there, made with the first use and not before."""
    settings = load({}, {})
    check_responses_settings(settings)
    store = build_store(settings, {"XDG_STATE_HOME": str(tmp_path / "state")})
    assert list(tmp_path.iterdir()) == []
    use(store)
    assert (tmp_path / "state" / "gpt-oss-server" / "responses.sqlite3").exists()


def test_no_state_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be written responses are kept in memory, and the log says so."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        use(build_store(load({}, {}), {"XDG_STATE_HOME": str(blocked)}))
    assert "kept in memory" in caplog.text
    assert list(tmp_path.iterdir()) == [blocked]


def test_memory_and_off(tmp_path: Path) -> None:
    """Neither makes a file."""
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert build_store(load({"responses_store": "off"}, {}), environ) is None
    use(build_store(load({"responses_store": "memory"}, {}), environ))
    assert list(tmp_path.iterdir()) == []

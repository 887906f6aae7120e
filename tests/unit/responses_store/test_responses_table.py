"""The table of responses on real SQLite files: what is kept, what goes, what survives."""

from __future__ import annotations

import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import BOUNDS, OWNER, SteeredClock, response

from gpt_oss_server.responses_store.records import (
    NotStored,
    StoreBounds,
    StoredResponse,
    StoreUnavailable,
)
from gpt_oss_server.responses_store.sqlite import SqliteResponses

OpenTable = Callable[..., SqliteResponses]


def ids(table: SqliteResponses, *wanted: str) -> list[str]:
    """Which of these are there."""
    found = []
    for id in wanted:
        try:
            found.append(table.get(OWNER, id).id)
        except NotStored:
            continue
    return found


def test_what_is_put_is_got(open_table: OpenTable) -> None:
    """A response comes back as it was, from the same table and from one opened later."""
    kept = response("a", "z", body=b'{"x":"\xc3\xa9"}')
    open_table().put(kept)
    assert open_table().get(OWNER, "a") == kept


def test_a_history_is_in_order(table: SqliteResponses) -> None:
    """A chain comes oldest first, and only the chain."""
    for id, previous in (("a", None), ("b", "a"), ("x", "a"), ("c", "b")):
        table.put(response(id, previous))
    history = table.history(OWNER, "c")
    assert [turn.id for turn in history.turns] == ["a", "b", "c"]
    assert history.complete


def test_a_broken_chain_names_what_is_missing(table: SqliteResponses) -> None:
    """A conversation whose beginning is gone cannot be continued."""
    table.put(response("b", "a"))
    with pytest.raises(NotStored) as caught:
        table.history(OWNER, "b")
    assert caught.value.id == "a"


def test_a_chain_that_bites_its_tail_ends(table: SqliteResponses) -> None:
    """A file that somebody has tampered with does not hold the thread for ever."""
    table.put(response("a", "b"))
    table.put(response("b", "a"))
    assert [turn.id for turn in table.history(OWNER, "b").turns] == ["a", "b"]


def test_a_long_history_loses_its_beginning(table: SqliteResponses) -> None:
    """No more is read than was asked for, and that it was cut is said."""
    for id, previous in (("a", None), ("b", "a"), ("c", "b")):
        table.put(response(id, previous, body=b"x" * 1000))
    history = table.history(OWNER, "c", most_bytes=2500)
    assert [turn.id for turn in history.turns] == ["b", "c"]
    assert not history.complete


def test_owners_are_apart(table: SqliteResponses) -> None:
    """To another owner nothing is there: not to get, continue, find by item or delete."""
    table.put(response("a", item_ids=("msg_1",)))
    table.put(response("b", "a", owner="other"))
    for attempt in (
        lambda: table.get("other", "a"),
        lambda: table.history("other", "b"),
        lambda: table.holding("other", "msg_1"),
        lambda: table.delete("other", "a"),
    ):
        with pytest.raises(NotStored):
            attempt()
    assert ids(table, "a") == ["a"]


def test_items_lead_to_their_responses(table: SqliteResponses) -> None:
    """An item is found as long as any response has it."""
    table.put(response("a", item_ids=("msg_1", "msg_2", "msg_1")))
    table.put(response("b", item_ids=("msg_1",)))
    assert table.holding(OWNER, "msg_2").id == "a"
    table.delete(OWNER, "a")
    assert table.holding(OWNER, "msg_1").id == "b"
    with pytest.raises(NotStored):
        table.holding(OWNER, "msg_2")


def test_the_same_id_twice_is_refused(table: SqliteResponses) -> None:
    """A second response of one id changes nothing."""
    table.put(response("a"))
    with pytest.raises(StoreUnavailable):
        table.put(response("a", body=b"other"))
    assert table.get(OWNER, "a").body == b'{"output":[]}'
    assert table.totals()[0] == 1


def test_the_count_is_bounded(open_table: OpenTable, clock: SteeredClock) -> None:
    """Beyond the count the ones not used for longest go; a chain that is used stays whole."""
    table = open_table(StoreBounds(max_count=3, max_bytes=2**20, max_age_s=1000.0))
    for id, previous in (("a", None), ("b", "a"), ("x", None)):
        clock.now_s += 1
        table.put(response(id, previous))
    clock.now_s += 1
    table.history(OWNER, "b")
    clock.now_s += 1
    table.put(response("c", "b"))
    assert ids(table, "a", "b", "c", "x") == ["a", "b", "c"]
    assert table.totals()[0] == 3


def test_the_bytes_are_bounded(open_table: OpenTable, clock: SteeredClock) -> None:
    """As many go as are in the way; one larger than everything is refused and harms none."""
    table = open_table(StoreBounds(max_count=100, max_bytes=3000, max_age_s=1000.0))
    for id in ("a", "b", "c", "d"):
        clock.now_s += 1
        table.put(response(id, body=b"x" * 600))
    table.put(response("e", body=b"x" * 1500))
    assert ids(table, "a", "b", "c", "d", "e") == ["c", "d", "e"]
    assert table.totals()[1] == sum(table.get(OWNER, id).size_bytes for id in ("c", "d", "e"))
    with pytest.raises(StoreUnavailable, match="larger than the whole store"):
        table.put(response("f", body=b"x" * 3001))
    assert ids(table, "c", "d", "e") == ["c", "d", "e"]


def test_what_is_too_old_is_gone(table: SqliteResponses, clock: SteeredClock, path: Path) -> None:
    """It is not seen from the moment on, and erased from the file at the next opportunity."""
    table.put(response("a", body=b"a secret of long ago" * 100, item_ids=("msg_1",)))
    table.put(response("b", "a", created_s=clock.now_s + 10))
    clock.now_s += BOUNDS.max_age_s
    assert ids(table, "a", "b") == ["a", "b"]
    clock.now_s += 1
    assert ids(table, "a", "b") == ["b"]
    with pytest.raises(NotStored):
        table.holding(OWNER, "msg_1")
    with pytest.raises(NotStored):
        table.history(OWNER, "b")
    assert table.expire()
    assert not table.expire()
    assert table.totals()[0] == 1
    table.close()
    assert b"a secret of long ago" not in path.read_bytes()


def test_deleted_content_is_overwritten(table: SqliteResponses, path: Path) -> None:
    """After a deletion no file has the text, and the database gives its space back."""
    table.put(response("b"))
    table.put(response("a", body=b"a secret" * 10_000))
    table.delete(OWNER, "a")
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert all(b"a secret" not in file.read_bytes() for file in files)
    assert path.stat().st_size < 80_000


def test_the_file_is_its_owners_alone(table: SqliteResponses, path: Path) -> None:
    """Nobody else on the machine reads what clients wrote."""
    table.put(response("a"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_is_opened_before_it_is_needed(table: SqliteResponses, path: Path) -> None:
    """No file without a response; looking for what is too old makes none."""
    table.expire()
    assert not path.parent.exists()


def test_two_servers_share_a_file(open_table: OpenTable) -> None:
    """What one stores the other sees, and the bounds hold for both together."""
    bounds = StoreBounds(max_count=2, max_bytes=2**20, max_age_s=1000.0)
    one, two = open_table(bounds), open_table(bounds)
    for id, table in (("a", one), ("b", two), ("c", one)):
        table.put(response(id))
    assert two.totals()[0] == 2
    assert ids(two, "c") == ["c"]


def test_a_killed_process_loses_nothing(path: Path, open_table: OpenTable) -> None:
    """What was stored when the process was killed is there, whole, and the table goes on."""
    program = (
        "import itertools, sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from stored import BOUNDS, response, SteeredClock\n"
        "from gpt_oss_server.responses_store.sqlite import SqliteResponses\n"
        "table = SqliteResponses(pathlib.Path(sys.argv[1]), BOUNDS, clock=SteeredClock())\n"
        "for number in itertools.count():\n"
        "    table.put(response(f'r{number}', body=b'x' * 5000))\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 20:
                writer.send_signal(signal.SIGKILL)
                break
        last = max([20, *map(int, writer.stdout.read().split())])
    table = open_table()
    written = [f"r{number}" for number in range(last + 1)]
    assert ids(table, *written) == written
    assert table.totals()[0] >= len(written)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    table.put(response("after"))
    assert ids(table, "after") == ["after"]


def test_a_full_disk_is_an_error_and_passes(table: SqliteResponses, path: Path) -> None:
    """A response that finds no room is refused, those before can be read and continued, and
    storing works again once there is room."""
    table.put(response("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit_bytes = path.stat().st_size + 8192
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(StoreUnavailable):
            table.put(response("b", body=b"x" * 300_000))
        assert [turn.id for turn in table.history(OWNER, "a").turns] == ["a"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    table.put(response("c", "a"))
    assert ids(table, "a", "b", "c") == ["a", "c"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no database, " * 1000), "not a database"),
        (lambda path: path.mkdir(), "directory"),
    ],
)
def test_a_file_that_cannot_be_used(
    open_table: OpenTable, path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    """It is refused with a reason and left as it is."""
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(StoreUnavailable, match=reason):
        open_table().put(response("a"))
    assert path.is_dir() or path.read_bytes() == b"no database, " * 1000


def test_another_programs_database_is_not_touched(open_table: OpenTable, path: Path) -> None:
    """A path given by mistake costs nobody their data."""
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE precious (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="another program"):
        open_table().put(response("a"))
    assert path.read_bytes() == before


def test_a_newer_file_is_not_touched(open_table: OpenTable, path: Path) -> None:
    """The file of a version with another layout is refused."""
    open_table().put(response("a"))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(StoreUnavailable, match="another version"):
        open_table().put(response("b"))


def test_a_table_in_memory(clock: SteeredClock) -> None:
    """Without a file all is the same; only the end of the process ends it."""
    table = SqliteResponses(None, BOUNDS, clock=clock)
    kept: StoredResponse = response("a")
    table.put(kept)
    with pytest.raises(StoreUnavailable):
        table.put(kept)
    assert table.get(OWNER, "a") == kept
    table.close()

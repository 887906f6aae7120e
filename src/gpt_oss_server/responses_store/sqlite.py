"""Responses in an SQLite database, a file or in memory.

Knows: the schema, what is evicted when. Does not know: threads (all calls come from one), HTTP.

The file is in WAL mode with `synchronous=NORMAL`: what was stored survives the process however it
ends; after a power failure the last moments may be missing, and the file is whole. Several
processes may share it. Deleted content is overwritten (`secure_delete`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from gpt_oss_server.responses_store.records import (
    MAX_HISTORY_BYTES,
    History,
    NotStored,
    StoreBounds,
    StoredResponse,
    StoreUnavailable,
)

APPLICATION_ID: Final = 0x67_6F_72_73
"""`gors`, in the file's header: nobody else's database is ever written to."""

SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_MS: Final = 2000
_JOURNAL_LIMIT_BYTES: Final = 4 * 2**20
_ROWS_AT_ONCE: Final = 64
_PAGES_AT_ONCE: Final = 4096
_PASSING: Final = (
    *("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_CONSTRAINT"),
    *("SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"),
)

_SCHEMA: Final = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT, created_s REAL NOT NULL,
    used_s REAL NOT NULL, body BLOB NOT NULL, input BLOB NOT NULL, size_bytes INTEGER NOT NULL
);
CREATE INDEX responses_created ON responses (created_s);
CREATE INDEX responses_used ON responses (used_s, created_s);
CREATE TABLE items (
    id TEXT NOT NULL, response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    PRIMARY KEY (id, response)
) WITHOUT ROWID;
CREATE INDEX items_response ON items (response);
CREATE TABLE totals (count INTEGER NOT NULL, size_bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER responses_added AFTER INSERT ON responses BEGIN
    UPDATE totals SET count = count + 1, size_bytes = size_bytes + new.size_bytes;
END;
CREATE TRIGGER responses_removed AFTER DELETE ON responses BEGIN
    UPDATE totals SET count = count - 1, size_bytes = size_bytes - old.size_bytes;
END;
"""
_COLUMNS: Final = "id, owner, previous, created_s, body, input, size_bytes"


class SqliteResponses:
    """The table. Every method may raise StoreUnavailable; the next call tries anew."""

    def __init__(
        self, path: Path | None, bounds: StoreBounds, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`path` is None for a table in memory. Opens nothing yet; `clock` is Unix seconds."""
        self._path = path
        self._bounds = bounds
        self._clock = clock
        self._connection: sqlite3.Connection | None = None

    def put(self, response: StoredResponse) -> None:
        """Keep a response; the oldest of the others go if the bounds ask for it."""
        size_bytes = response.size_bytes
        if size_bytes > self._bounds.max_bytes:
            raise StoreUnavailable(
                f"a response of {size_bytes} bytes is larger than the whole store may be "
                f"({self._bounds.max_bytes} bytes)"
            )
        with self._transaction() as db:
            self._expire(db)
            self._make_room(db, size_bytes)
            db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(response.id, response.owner, response.previous, response.created_s),
                    *(self._clock(), response.body, response.input, size_bytes),
                ),
            )
            pairs = [(item, response.id) for item in dict.fromkeys(response.item_ids)]
            db.executemany("INSERT INTO items VALUES (?, ?)", pairs)

    def get(self, owner: str, id: str) -> StoredResponse:
        """A response of this owner. Raises NotStored."""
        with self._reading() as db:
            return self._row(db, owner, id)

    def history(self, owner: str, id: str, most_bytes: int = MAX_HISTORY_BYTES) -> History:
        """A response and those before it, which count as used now. Raises NotStored for any of
        them that is gone."""
        turns: list[StoredResponse] = []
        seen: set[str] = set()
        left_bytes, wanted = most_bytes, id
        with self._reading() as db:
            while True:
                turn = self._row(db, owner, wanted)
                left_bytes -= turn.size_bytes
                if left_bytes < 0 and turns:
                    break
                turns.append(turn)
                seen.add(wanted)
                if turn.previous is None or turn.previous in seen:
                    break
                wanted = turn.previous
        self._touch(turns)
        return History(tuple(reversed(turns)), complete=left_bytes >= 0)

    def holding(self, owner: str, item: str) -> StoredResponse:
        """A response of this owner that has the item in its input or output. Raises NotStored
        with the item's id."""
        with self._reading() as db:
            found = db.execute(
                f"SELECT {_COLUMNS} FROM responses JOIN (SELECT response FROM items WHERE id = ?) "
                "ON response = id WHERE owner = ? AND created_s >= ? LIMIT 1",
                (item, owner, self._oldest_s()),
            ).fetchone()
        if found is None:
            raise NotStored(item)
        return _stored(found)

    def delete(self, owner: str, id: str) -> None:
        """Forget a response, content and all. Raises NotStored."""
        with self._transaction() as db:
            self._row(db, owner, id)
            db.execute("DELETE FROM responses WHERE id = ?", (id,))
        self._erase()

    def expire(self) -> bool:
        """Forget some of what is too old, and give space back; whether there is more to do. A part
        at a time, so that others get their turn between."""
        if self._connection is None and self._path is not None and not self._path.exists():
            return False
        with self._transaction() as db:
            deleted = self._expire(db)
        self._erase()
        with self._reading() as db:
            return deleted > 0 or _number(db, "freelist_count") > 0

    def totals(self) -> tuple[int, int]:
        """How many responses are kept, and their bytes."""
        with self._reading() as db:
            count, size_bytes = db.execute("SELECT count, size_bytes FROM totals").fetchone()
        return count, size_bytes

    def close(self) -> None:
        """Close the file; a later call would open it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # Inside.

    def _oldest_s(self) -> float:
        return self._clock() - self._bounds.max_age_s

    def _erase(self) -> None:
        """Give free space back, and have nothing deleted left in the journal either."""
        with self._reading() as db:
            # `execute` takes one step of a statement without rows, and so one page.
            db.executescript(
                f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE}); PRAGMA wal_checkpoint(TRUNCATE)"
            )

    def _expire(self, db: sqlite3.Connection) -> int:
        """How many have gone, no more than there is time for. Nobody sees the others meanwhile."""
        return db.execute(
            "DELETE FROM responses WHERE id IN "
            "(SELECT id FROM responses WHERE created_s < ? LIMIT ?)",
            (self._oldest_s(), _ROWS_AT_ONCE),
        ).rowcount

    def _make_room(self, db: sqlite3.Connection, size_bytes: int) -> None:
        most_count = self._bounds.max_count - 1
        most_bytes = self._bounds.max_bytes - size_bytes
        while True:
            count, used_bytes = db.execute("SELECT count, size_bytes FROM totals").fetchone()
            if count <= most_count and used_bytes <= most_bytes:
                return
            db.execute(
                "DELETE FROM responses WHERE id IN "
                "(SELECT id FROM responses ORDER BY used_s, created_s LIMIT ?)",
                (max(1, count - most_count),),
            )

    def _row(self, db: sqlite3.Connection, owner: str, id: str) -> StoredResponse:
        found = db.execute(
            f"SELECT {_COLUMNS} FROM responses WHERE id = ? AND owner = ? AND created_s >= ?",
            (id, owner, self._oldest_s()),
        ).fetchone()
        if found is None:
            raise NotStored(id)
        return _stored(found)

    def _touch(self, turns: list[StoredResponse]) -> None:
        # What can be read is of use even where nothing can be written.
        now_s = self._clock()
        with contextlib.suppress(StoreUnavailable), self._transaction() as db:
            db.executemany(
                "UPDATE responses SET used_s = ? WHERE id = ?", [(now_s, t.id) for t in turns]
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.commit()
            except BaseException:
                db.rollback()
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, opened where it is not; every failure of SQLite's becomes ours."""
        try:
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
        except (sqlite3.Error, OSError) as error:
            if self._path is not None and not _may_pass(error):
                self.close()
            raise StoreUnavailable(str(error)) from error

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            name = ":memory:"
        else:
            name = str(self._path)
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Readable for the owner alone; SQLite gives its side files the same rights.
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    _check_identity(db)
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table, or never
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA secure_delete = ON")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_LIMIT_BYTES}")
    db.execute("BEGIN IMMEDIATE")
    try:
        if _number(db, "user_version") == 0:
            for statement in _statements(_SCHEMA):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.commit()
    except BaseException:
        db.rollback()
        raise


def _check_identity(db: sqlite3.Connection) -> None:
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and _number(db, "application_id") != APPLICATION_ID:
        raise sqlite3.DatabaseError("the file is a database of another program")
    if _number(db, "user_version") not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError("the file was written by another version of this server")


def _may_pass(error: Exception) -> bool:
    """Whether the connection is still good. To open another one takes room on the disk, so that
    on a full one nothing could be read any more."""
    name = getattr(error, "sqlite_errorname", None) or ""
    return name.startswith(_PASSING)


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """The script's statements one by one: `executescript` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _stored(row: tuple[Any, ...]) -> StoredResponse:
    id, owner, previous, created_s, body, input, _ = row
    return StoredResponse(
        id=id, owner=owner, previous=previous, created_s=created_s, body=body, input=input
    )

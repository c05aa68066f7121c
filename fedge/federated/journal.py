"""The journal: what has been completed, in SQLite, one transaction per completed round.

A round is in it or it is not. After a crash the server reads the last state and goes on with the next round.
The file is locked for as long as it is open, so two servers cannot write the same one.
"""

import json
import sqlite3
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from fedge.errors import SetupError

SCHEMA = 1

_PIECE = 1 << 20  # bytes of a state that are written at a time
_ENTRIES = 256  # of a record's table that are made into text at a time

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages (name TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS state (only INTEGER PRIMARY KEY CHECK (only = 1), content BLOB NOT NULL);
"""


class Journal:
    """An open journal. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, or make it.

        Raises:
            SetupError: it cannot be opened, is no journal, is from a newer fedge, or is in use.
        """
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0.5)
        except sqlite3.Error as error:
            raise SetupError(f"cannot open the journal {path}: {error}") from None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        path = self._path
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN EXCLUSIVE")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise SetupError(f"{path} was written by a newer fedge (schema {version}); update fedge")
            if version == 0 and self._db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                raise sqlite3.DatabaseError("a database of another program")
            for statement in _TABLES.strip().split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA}")
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            busy = "locked" in str(error)
            why = "another process is using it" if busy else str(error)
            raise SetupError(f"cannot open the journal {path}: {why}") from None
        except sqlite3.DatabaseError as error:
            raise SetupError(f"{path} is not a journal of fedge: {error}") from None

    def meta(self, key: str) -> Any:
        """A value that was set once, or ``None``."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", key)
        return self._json(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: Any) -> None:
        """Set a value (what JSON can hold)."""
        self._write(("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value))))

    def stage(self, name: str) -> bytes | None:
        """What a stage before the rounds left, or ``None`` if it was not completed."""
        rows = self._read("SELECT content FROM stages WHERE name = ?", name)
        return bytes(rows[0][0]) if rows else None

    def set_stage(self, name: str, content: bytes) -> None:
        """A stage is complete."""
        self._write(("INSERT OR REPLACE INTO stages VALUES (?, ?)", (name, content)))

    def drop_stages(self, prefix: str, keep: str) -> None:
        """Forget the stages whose name starts like this, but for one."""
        sql = "DELETE FROM stages WHERE substr(name, 1, ?) = ? AND name != ?"
        self._write((sql, (len(prefix), prefix, keep)))

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        """Round ``number`` is complete: its record and the state after it, in one transaction."""
        self._write(("INSERT INTO rounds VALUES (?, ?)", (number, _text(record))), state=state)

    def set_state(self, state: bytes) -> None:
        """Replace the state between two rounds."""
        self._write(state=state)

    def state(self) -> bytes | None:
        """The state after the last completed round."""
        rows = self._read("SELECT content FROM state")
        return bytes(rows[0][0]) if rows else None

    def rounds(self) -> list[dict[str, Any]]:
        """Records of the completed rounds, in order.

        Raises:
            SetupError: they are not the rounds 1, 2, 3, ..., or damaged.
        """
        rows = self._read("SELECT number, record FROM rounds ORDER BY number")
        if [n for n, _ in rows] != list(range(1, len(rows) + 1)):
            raise SetupError(f"{self._path} is damaged: rounds are missing; start the run anew")
        return [self._json(record) for _, record in rows]

    def last_rounds(self, count: int) -> list[dict[str, Any]]:
        """Records of the last ``count`` completed rounds, or fewer, in order.

        Raises:
            SetupError: they are damaged.
        """
        rows = self._read("SELECT record FROM rounds ORDER BY number DESC LIMIT ?", str(count))
        return [self._json(record) for (record,) in reversed(rows)]

    def damaged(self, error: Exception) -> SetupError:
        """What to raise when something that was read from here makes no sense."""
        return SetupError(f"{self._path} is damaged: {error}; start the run anew")

    def _read(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self.damaged(error) from None

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError) as error:
            raise self.damaged(error) from None

    def _write(self, *statements: tuple[str, tuple[Any, ...]], state: bytes | None = None) -> None:
        """All of it in one transaction: the statements, and the state, if there is a new one."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._db.execute(sql, values)
            if state is not None:
                self._write_state(state)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise SetupError(f"cannot write the journal {self._path}: {error}") from None

    def _write_state(self, state: bytes) -> None:
        """Straight into the pages of the file: as a value, SQLite would hold it in memory twice more."""
        self._db.execute("INSERT OR REPLACE INTO state VALUES (1, zeroblob(?))", (len(state),))
        with self._db.blobopen("state", "content", 1) as blob:
            for start in range(0, len(state), _PIECE):
                blob.write(memoryview(state)[start : start + _PIECE])

    def close(self) -> None:
        """Close the file and give up its lock."""
        self._db.close()

    def __enter__(self) -> Self:
        """The journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def _text(record: Mapping[str, Any]) -> str:
    """A record as JSON, a few entries after the other: all at once, thousands of clients take megabytes."""
    return "{" + ", ".join(f"{json.dumps(key)}: {_value(value)}" for key, value in record.items()) + "}"


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value, allow_nan=False)
    entries = iter(value.items())
    parts = []
    while few := dict(islice(entries, _ENTRIES)):
        parts.append(json.dumps(few, allow_nan=False)[1:-1])
    return "{" + ", ".join(parts) + "}"

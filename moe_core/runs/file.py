"""The file of a run, run.db, as its readers open it: one connection a thread, and no tables but those that MoEscope creates.

Every read is one query, fetched whole: a reader that stayed in a transaction would make the log grow.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_core.runs.codec import START, link
from moe_core.runs.database import (
    MIGRATIONS,
    OBJECTS,
    DamagedError,
    StoreError,
    connect,
    expected_objects,
    is_file,
    normalised,
    roll_back_journal,
    strange_files,
    why_closed,
    writing,
)

# The most bytes of each that are read from a file, which may come from somebody else.
ABOUT, PROBE = 16 << 20, 64 << 20
SETTINGS = """SELECT about, probe, chain FROM run WHERE typeof(about) = 'text' AND typeof(probe) = 'blob'
              AND length(about) <= ? AND length(probe) <= ?"""
# SQLite's errors that a missing permission may cause.
CLOSED = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")


class File:
    """run.db in a run's folder. Safe to share between threads. StoreError if there is none, or files that are not plain."""

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder, self.path, self.limit = folder, folder / "run.db", limit
        if strange := strange_files(folder):
            raise StoreError(
                f"run {folder.name} is refused: its {strange[0]} is not a plain file; do not trust this folder"
            )
        if not is_file(self.path):
            raise StoreError(f"{folder} is not a run: it has no run.db; list the runs with `python -m moe_core runs`")
        self._local, self._open, self._guard = threading.local(), list[sqlite3.Connection](), threading.Lock()

    def check_schema(self) -> None:
        """A file from somebody else is not trusted: it may hold our tables and indexes and nothing else."""
        version, objects = self.query("PRAGMA user_version")[0][0], normalised(self.query(OBJECTS))
        expected = expected_objects(max(1, version))
        if foreign := sorted({name for _, name, *_ in objects - expected}):
            raise StoreError(
                f"run {self.folder.name} holds database objects that MoEscope does not make ({', '.join(foreign)[:80]}); do not trust this file"
            )
        if version > len(MIGRATIONS):
            raise StoreError(f"run {self.folder.name} was made by a later version of MoEscope; upgrade to read it")
        if objects != expected:
            raise StoreError(f"run {self.folder.name} lacks tables of a run; its file is damaged")

    def settings(self) -> tuple[str, bytes, bytes]:
        """The run's settings (JSON), its probe batch, and the first link of the chain, against which both are checked."""
        rows = self.query(SETTINGS, (ABOUT, PROBE))
        if not rows or link(START, *rows[0][:2]) != rows[0][2]:
            raise StoreError(f"run {self.folder.name} is damaged: its settings are not what was written")
        about, probe, chain = rows[0]
        return about, probe, chain

    def query(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """One SELECT, fetched whole."""
        db = getattr(self._local, "db", None)
        try:
            if db is None:
                db = self._local.db = connect(self.path, limit=self.limit)
                with self._guard:
                    self._open.append(db)
            return list(db.execute(sql, values).fetchall())
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_READONLY_ROLLBACK":
                with contextlib.suppress(sqlite3.Error, OSError):
                    if roll_back_journal(self.path):
                        return self.query(sql, values)
            why = why_closed(self.path) if name.startswith(CLOSED) else ""
            kind = DamagedError if name.startswith("SQLITE_CORRUPT") else StoreError
            raise kind(f"run {self.folder.name} cannot be read: {why or error}") from None

    def write(self, act: Callable[[sqlite3.Connection], int]) -> int:
        """One short transaction on a connection of its own."""
        try:
            db = connect(self.path, write=True)
            try:
                with writing(db):
                    return act(db)
            finally:
                db.close()
        except sqlite3.Error as error:
            raise StoreError(f"run {self.folder.name} cannot be written: {error}") from error

    def close(self) -> None:
        """Let go of the file, so that it can be sealed. A later read opens it again."""
        with self._guard:
            for db in self._open:
                db.close()
            self._open.clear()
            self._local = threading.local()

    def __del__(self) -> None:
        """A run that is dropped without close() lets go too: SQLite's connections are cycles, and until those are collected
        the trainer could not seal the run's file."""
        for db in getattr(self, "_open", ()):
            db.close()

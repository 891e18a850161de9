"""What each row of a run's record is checked against, beside the chains of blocks and of turns: a checksum of its own, and
the numbers of rows in the state. Written here, checked in runs/checked.py.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from moe_core.runs.codec import START, link
from moe_core.runs.database import MIGRATIONS, writing

SUMMED = 2  # the first user_version whose rows have sums
KEYS = {"evals": "id", "commands": "id", "snapshots": "id", "applied": "knob"}  # the tables of which each row has one
NOTHING_HELD = {"commits": 0, "blocks": 0, "evals": 0, "applied": 0, "knobs": 0, "commands": 0, "snapshots": 0}


def row_sum(table: str, row: Mapping[str, Any]) -> bytes:
    """The checksum of a row, over the names and values that are not None, so that a column added later changes no
    checksum."""
    return link(START, table, *(part for name in sorted(row) if row[name] is not None for part in (name, row[name])))


def snapshot_mark(id: int, step: int, kind: str) -> int:
    """The mark of one snapshot. The exclusive or of all marks shows whether the list of snapshots is complete."""
    return int.from_bytes(link(START, "snapshot", id, step, kind)[:8])


@cache
def fields_of(table: str, version: int) -> tuple[str, ...]:
    """The columns of a table in a file of a version, without the checksum."""
    db = sqlite3.connect(":memory:")
    db.executescript("".join(MIGRATIONS[:version]))
    names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    db.close()
    return tuple(name for name in names if name != "sum")


def insert(db: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    """Add a row with its sum, in a transaction of the caller's; its id. The id follows the last unless it is given."""
    key = KEYS[table]
    full = {key: next_id(db, table), **row}
    if version_of(db) >= SUMMED:  # a trainer of an earlier version may still be running
        full["sum"] = row_sum(table, full)
    names, marks = ", ".join(full), ", ".join("?" * len(full))
    db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", list(full.values()))  # noqa: S608
    return int(full[key])


def next_id(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT coalesce(max({KEYS[table]}), 0) + 1 FROM {table}").fetchone()[0])  # noqa: S608


def answer(db: sqlite3.Connection, command: int, step: int, result: str) -> None:
    """Write the result into a command's row."""
    row = db.execute("SELECT name, who, at FROM commands WHERE id = ?", (command,)).fetchone()
    if row:
        name, who, at = row
        insert(db, "commands", {"id": command, "name": name, "who": who, "at": at, "step": step, "result": result})


def put_state(db: sqlite3.Connection, row: Mapping[str, Any]) -> None:
    """Replace the row of the run's state, with the numbers of rows that the record holds."""
    full = {**row, "held": json.dumps(row["held"])}
    full["sum"] = row_sum("state", full)
    db.execute(f"UPDATE state SET {', '.join(f'{name} = ?' for name in full)}", list(full.values()))  # noqa: S608


def count(db: sqlite3.Connection) -> dict[str, int]:
    """The numbers of rows in a file, counted in its tables: for a file that is new, or that has none in its state yet."""
    held = dict(NOTHING_HELD)
    for name in ("blocks", "evals", "knobs", "commands"):
        held[name] = db.execute(f"SELECT coalesce(max(id), 0) FROM {name}").fetchone()[0]  # noqa: S608
    held["applied"] = db.execute("SELECT count(*) FROM applied").fetchone()[0]
    for shot in db.execute("SELECT id, step, kind FROM snapshots NOT INDEXED").fetchall():
        held["snapshots"] ^= snapshot_mark(*shot)
    return held


def upgrade(db: sqlite3.Connection) -> None:
    """Bring a file of an earlier version to this one, all or nothing. Its rows get checksums as they are."""
    version = version_of(db)
    if version == len(MIGRATIONS):
        return
    with writing(db):
        for migration in MIGRATIONS[version:]:
            for statement in statements(migration):
                db.execute(statement)
        if version < SUMMED:
            add_sums(db)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: executescript would end the transaction."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""


def add_sums(db: sqlite3.Connection) -> None:
    """Add checksums to rows that were written without."""
    for table, key in KEYS.items():
        names = fields_of(table, len(MIGRATIONS))
        for (id,) in db.execute(f"SELECT {key} FROM {table}").fetchall():  # noqa: S608
            row = db.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {key} = ?", (id,)).fetchone()  # noqa: S608
            total = row_sum(table, dict(zip(names, row, strict=True)))
            db.execute(f"UPDATE {table} SET sum = ? WHERE {key} = ?", (total, id))  # noqa: S608
    state, step, reason, pid, heartbeat = db.execute("SELECT state, step, reason, pid, heartbeat FROM state").fetchone()
    row = {"state": state, "step": step, "reason": reason, "pid": pid, "heartbeat": heartbeat, "held": count(db)}
    put_state(db, row)


def version_of(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])

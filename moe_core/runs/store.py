"""The record of a run, and the wire between trainer and dashboard: one SQLite file in WAL mode. All SQL is here.

A trainer writes through `RunWriter`, everyone else reads through `Run` and adds rows of two kinds: knob changes and
commands. Each rule below answers a fault that was produced on purpose; docs/decisions.md has the measurements.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.codec import HEADER, START, link, pack_arrays, pack_rows, unpack_arrays, unpack_rows
from moe_core.runs.series import thin
from moe_core.runs.statistics import DERIVED, derive
from moe_core.schema import STAT, TOGETHER, Column, Config, Knobs, as_dict, check_knob, from_dict, layout

COMMANDS = ("pause", "resume", "step", "stop", "checkpoint")
ENDED = ("finished", "stopped", "failed")
TIP = struct.Struct("<qq16s")  # last step, number of blocks, chain: 32 bytes, written in one go
WAL_PAGES = 1000  # the trainer moves the log into the database when it has grown to this
SEAL_FOR = 5.0  # seconds to try for while readers let go

# Append only: migration i brings a file from user_version i to i + 1.
MIGRATIONS = (
    """
    -- One row: what fixes the run. JSON: id, created, config, knobs (at the start), layout, labels, facts.
    CREATE TABLE run (id INTEGER PRIMARY KEY CHECK (id = 1), about TEXT NOT NULL, probe BLOB NOT NULL, chain BLOB NOT NULL);
    -- One row: how it stands. heartbeat is seconds since 1970, for people; whether a trainer lives is told by its lock.
    CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL, step INTEGER NOT NULL,
        reason TEXT NOT NULL, pid INTEGER NOT NULL, heartbeat REAL NOT NULL);
    -- The steps since the last commit: n rows of float32 in the run's layout, packed. The id is the order.
    CREATE TABLE blocks (id INTEGER PRIMARY KEY, first INTEGER NOT NULL, n INTEGER NOT NULL, columns INTEGER NOT NULL,
        data BLOB NOT NULL, chain BLOB NOT NULL);
    CREATE INDEX blocks_first ON blocks (first);
    -- The held-out split: metrics is JSON; text is what a language model wrote, or NULL.
    CREATE TABLE evals (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, metrics TEXT NOT NULL, text TEXT);
    -- The fixed probe batch: named arrays, packed. Old ones are thinned by age.
    CREATE TABLE snapshots (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL, data BLOB NOT NULL);
    CREATE INDEX snapshots_step ON snapshots (kind, step);
    -- What people turned. Anyone inserts; only the trainer says (in applied) at which step it took effect.
    CREATE TABLE knobs (id INTEGER PRIMARY KEY, name TEXT NOT NULL, value REAL NOT NULL, previous REAL NOT NULL,
        who TEXT NOT NULL, at REAL NOT NULL, chain BLOB NOT NULL);
    CREATE TABLE applied (knob INTEGER PRIMARY KEY, step INTEGER NOT NULL);
    -- What people asked for. step and result are the trainer's acknowledgement.
    CREATE TABLE commands (id INTEGER PRIMARY KEY, name TEXT NOT NULL, who TEXT NOT NULL, at REAL NOT NULL,
        step INTEGER, result TEXT);
    """,
)


class StoreError(ValueError):
    """A run that cannot be opened, read or written; one line that says why and what to do."""


class KnobChange(NamedTuple):
    """One turn of one knob, whose values are numbers or words. step is the first that it acted in, None until it has."""

    id: int
    name: str
    value: float | str
    previous: float | str
    who: str
    when: float
    step: int | None


class Command(NamedTuple):
    """One request to the trainer. step and result are None until it is carried out."""

    id: int
    name: str
    who: str
    when: float
    step: int | None
    result: str | None


class Pending(NamedTuple):
    knobs: list[KnobChange]
    commands: list[Command]


class Eval(NamedTuple):
    id: int
    step: int
    metrics: dict[str, float]
    text: str | None


class Block(NamedTuple):
    """Consecutive steps from `first`; rows (n, C) float32 in the run's layout."""

    id: int
    first: int
    rows: NDArray[np.float32]


class Status(NamedTuple):
    """state as Run.state; reason says why it failed or paused by itself; heartbeat_age in seconds."""

    state: str
    step: int
    reason: str
    heartbeat_age: float
    pid: int


class Batch(NamedTuple):
    """All that one transaction commits. rows (n, C) are the steps from first_step on."""

    first_step: int
    rows: NDArray[np.float32]
    evals: Sequence[tuple[int, Mapping[str, float], str | None]] = ()
    snapshots: Sequence[tuple[int, str, Mapping[str, NDArray[Any]]]] = ()
    applied: Sequence[tuple[int, int]] = ()
    acks: Sequence[tuple[int, int, str]] = ()
    state: str | None = None
    reason: str = ""


class Listed(NamedTuple):
    """A run in the list. A damaged one has a problem in its place and hides no other."""

    id: str
    state: str
    step: int
    config: Config | None
    created: float
    problem: str


# Connections


def connect(path: Path, write: bool = False, limit: float | None = None) -> sqlite3.Connection:
    """The one place that opens a database. limit: seconds after which any of its queries gives up."""
    uri = f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA mmap_size = 0")
    if write:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 4194304")
    if limit:
        deadline = [0.0]
        db.set_trace_callback(lambda _: deadline.__setitem__(0, time.monotonic() + limit))
        db.set_progress_handler(lambda: time.monotonic() > deadline[0], 10_000)
    return db


@contextlib.contextmanager
def writing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """BEGIN IMMEDIATE … COMMIT: a deferred BEGIN lost most turns beside a committing trainer, in spite of the timeout."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def expected_objects() -> set[tuple[str, str]]:
    """Every table and index that a run's file may hold; anything else (a view, a trigger) is refused."""
    db = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        db.executescript(migration)
    found = {(kind, name) for kind, name in db.execute("SELECT type, name FROM sqlite_master")}
    db.close()
    return found


# Lock: held by the trainer for life, by the kernel's account of it


def hold_lock(folder: Path) -> int:
    """Take the run's lock; StoreError if a trainer has it."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StoreError(f"run {folder.name} is being trained by another process; stop that one first") from None
    return handle


def is_alive(folder: Path) -> bool:
    """Whether a trainer holds the run's lock."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


# The trainer's side


def create_run(
    folder: Path,
    config: Config,
    knobs: Knobs,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    probe: Mapping[str, NDArray[Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> "RunWriter":
    """A new run's folder, locked, with its row written. StoreError if the folder is in use already.

    labels: the names of each label's values; probe: the fixed batch as a person sees it; facts: what sums depend on
    beside config and knobs (device, threads, versions).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.db").exists():
            raise StoreError(f"run {folder.name} exists already in {folder.parent}; choose another --run-id")
        lock = hold_lock(folder)
    except OSError as error:
        raise StoreError(f"cannot make run folder {folder}: {error.strerror}") from None
    about = {
        "id": folder.name,
        "created": time.time(),
        "config": as_dict(config),
        "knobs": as_dict(knobs),
        "layout": [list(column) for column in layout(config.layers, config.num_experts)],
        "labels": {name: list(values) for name, values in (labels or {}).items()},
        "facts": dict(facts or {}),
    }
    about_text, probe_data = json.dumps(about), pack_arrays(probe or {})
    # Made whole under another name: a run.db that exists is a run.
    temporary = folder / "run.db.new"
    temporary.unlink(missing_ok=True)
    db = sqlite3.connect(temporary, isolation_level=None)
    db.executescript("".join(MIGRATIONS))
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("INSERT INTO run VALUES (1, ?, ?, ?)", (about_text, probe_data, link(START, about_text, probe_data)))
    db.execute("INSERT INTO state VALUES (1, 'starting', 0, '', ?, ?)", (os.getpid(), time.time()))
    db.close()
    os.rename(temporary, folder / "run.db")
    return RunWriter(folder, lock)


class RunWriter:
    """The trainer's hold on its run. commit, beat and finish belong to one thread, pending to the training thread.

    knob_seen and command_seen are the last row ids that the trainer took; pending() returns what lies beyond.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self.lock = folder, lock
        self.knob_seen = self.command_seen = 0
        self.db = connect(folder / "run.db", write=True)
        if self.db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(
                f"{folder} is on a disk that cannot share memory between processes; keep runs on a local disk"
            )
        # A second connection of the trainer's own holds the write lock while the first moves the log: SQLite up to
        # 3.51.2 can lose pages when a commit meets the start of a checkpoint on another connection.
        self.guard = connect(folder / "run.db", write=True)
        self.reader = connect(folder / "run.db")
        self.tip = os.open(folder / "run.tip", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        row = self.db.execute("SELECT id, first + n - 1, chain FROM blocks ORDER BY id DESC LIMIT 1").fetchone()
        self.blocks: int
        self.step: int
        self.chain: bytes
        self.blocks, self.step, self.chain = row or (0, 0, self.db.execute("SELECT chain FROM run").fetchone()[0])
        self.thinned = 0.0

    def commit(self, batch: Batch) -> None:
        """Everything in the batch, or nothing, on the disk when this returns."""
        rows, now = batch.rows, time.time()
        with writing(self.db) as db:
            chain, blocks, step = self.chain, self.blocks, self.step
            if len(rows):
                step, blocks = batch.first_step + len(rows) - 1, blocks + 1
                data = pack_rows(rows)
                chain = link(chain, HEADER.pack(batch.first_step, *rows.shape), data)
                db.execute(
                    "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", (blocks, batch.first_step, *rows.shape, data, chain)
                )
            db.executemany(
                "INSERT INTO evals (step, metrics, text) VALUES (?, ?, ?)",
                [(at, json.dumps(dict(metrics)), text) for at, metrics, text in batch.evals],
            )
            db.executemany(
                "INSERT INTO snapshots (step, kind, at, data) VALUES (?, ?, ?, ?)",
                [(at, kind, now, pack_arrays(arrays)) for at, kind, arrays in batch.snapshots],
            )
            db.executemany("INSERT OR REPLACE INTO applied VALUES (?, ?)", batch.applied)
            db.executemany(
                "UPDATE commands SET step = ?, result = ? WHERE id = ?", [(s, r, i) for i, s, r in batch.acks]
            )
            db.execute("UPDATE state SET step = ?, heartbeat = ?, pid = ?", (step, now, os.getpid()))
            if batch.state:
                db.execute("UPDATE state SET state = ?, reason = ?", (batch.state, batch.reason))
            if now - self.thinned > 10:
                self._thin_snapshots(now)
        self.chain, self.blocks, self.step = chain, blocks, step
        os.pwrite(self.tip, TIP.pack(step, blocks, chain), 0)
        self._move_log()

    def beat(self, step: int) -> None:
        """Say that the trainer lives."""
        with writing(self.db) as db:
            db.execute("UPDATE state SET heartbeat = ?", (time.time(),))

    def pending(self) -> Pending:
        """Knob changes and commands that the trainer has not taken yet, in order."""
        newest = self.reader.execute("SELECT (SELECT max(id) FROM knobs), (SELECT max(id) FROM commands)").fetchone()
        knobs, commands = Pending([], [])
        if (newest[0] or 0) > self.knob_seen:
            knobs = [KnobChange(*row) for row in self.reader.execute(KNOB_CHANGES, (self.knob_seen,)).fetchall()]
        if (newest[1] or 0) > self.command_seen:
            commands = [Command(*row) for row in self.reader.execute(ALL_COMMANDS, (self.command_seen,)).fetchall()]
        return Pending(knobs, commands)

    def finish(self, state: str, error: str = "") -> None:
        """Write how the run ended, seal its file, let go of the lock."""
        with writing(self.db) as db:
            db.execute("UPDATE state SET state = ?, reason = ?, heartbeat = ?", (state, error, time.time()))
        for connection in (self.reader, self.guard):
            connection.close()
        seal(self.db, SEAL_FOR)
        self.db.close()
        os.close(self.tip)
        os.close(self.lock)

    def _move_log(self) -> None:
        """The log into the database once it has grown; nobody else does, and nobody commits meanwhile."""
        wal = self.folder / "run.db-wal"
        if wal.exists() and wal.stat().st_size > WAL_PAGES * 4096:
            with writing(self.guard):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _thin_snapshots(self, now: float) -> None:
        """All of the last minute, one a second of the last ten, one in ten seconds before; "full" ones a tenth as dense.

        The first stays, and so does the last. Kept is the first of each span of seconds.
        """
        self.thinned = now
        for kind, recent, middle, old in (("probe", 0.0, 1.0, 10.0), ("full", 1.0, 10.0, 60.0)):
            for span, newest, oldest in ((recent, now, now - 60), (middle, now - 60, now - 600), (old, now - 600, 0.0)):
                if span:
                    self.db.execute(
                        """DELETE FROM snapshots WHERE kind = :kind AND at > :oldest AND at <= :newest
                           AND id NOT IN (SELECT min(id) FROM snapshots WHERE kind = :kind AND at > :oldest AND at <= :newest
                                          GROUP BY CAST(at / :span AS INTEGER))
                           AND id <> (SELECT max(id) FROM snapshots WHERE kind = :kind)
                           AND id <> (SELECT min(id) FROM snapshots WHERE kind = :kind)""",
                        {"kind": kind, "oldest": oldest, "newest": newest, "span": span},
                    )


def seal(db: sqlite3.Connection, seconds: float) -> bool:
    """Out of WAL mode, so that the run opens from a full disk or a read-only medium too. Fails while a reader is connected."""
    until = time.monotonic() + seconds
    db.execute("PRAGMA busy_timeout = 200")
    while True:
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if db.execute("PRAGMA journal_mode = DELETE").fetchone()[0] == "delete":
                return True
        except sqlite3.OperationalError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.05)


# Everyone's side


KNOB_CHANGES = """SELECT id, name, value, previous, who, at, applied.step FROM knobs
                  LEFT JOIN applied ON applied.knob = knobs.id WHERE id > ? ORDER BY id"""
ALL_COMMANDS = "SELECT id, name, who, at, step, result FROM commands WHERE id > ? ORDER BY id"


class Run:
    """A run as everyone but its trainer sees it. Safe to share between threads: each has a connection of its own.

    Every read is one query, fetched whole: a reader that stayed in a transaction would make the log grow.
    """

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.path, self.limit = folder, limit
        self._file = folder / "run.db"
        if not self._file.is_file():
            raise StoreError(f"{folder} is not a run: it has no run.db; list the runs with `python -m moe_core runs`")
        self._local, self._open, self._guard = threading.local(), list[sqlite3.Connection](), threading.Lock()
        try:
            self._check_schema()
            about, probe, chain = self._query("SELECT about, probe, chain FROM run")[0]
            if link(START, about, probe) != chain:
                raise StoreError(f"run {folder.name} is damaged: its settings are not what was written")
            self.about: dict[str, Any] = json.loads(about)
            self.config, self.started_knobs = (
                from_dict(Config, self.about["config"]),
                from_dict(Knobs, self.about["knobs"]),
            )
            self.layout = [Column(*column) for column in self.about["layout"]]
        except (sqlite3.DatabaseError, IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
            self.close()
            raise StoreError(f"run {folder.name} cannot be read: {error}") from None
        except StoreError:
            self.close()
            raise
        self.id: str = folder.name
        self.labels: dict[str, list[str]] = self.about["labels"]
        self.facts: dict[str, Any] = self.about["facts"] | {"created": self.about["created"]}
        self.columns = max((c.start + c.width for c in self.layout), default=0)

    def _check_schema(self) -> None:
        """A file of a stranger is not trusted: it may hold our tables and indexes and nothing else."""
        found = {(kind, name) for kind, name in self._query("SELECT type, name FROM sqlite_master")}
        if foreign := sorted(name for _, name in found - expected_objects()):
            raise StoreError(
                f"run {self.path.name} holds what is not ours ({', '.join(foreign)[:80]}); do not trust this file"
            )
        version = self._query("PRAGMA user_version")[0][0]
        if version > len(MIGRATIONS):
            raise StoreError(f"run {self.path.name} was made by a later version of MoEscope; upgrade to read it")
        if found != expected_objects():
            raise StoreError(f"run {self.path.name} lacks tables of a run; its file is damaged")

    def _query(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        db = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = connect(self._file, limit=self.limit)
            with self._guard:
                self._open.append(db)
        try:
            return list(db.execute(sql, values).fetchall())
        except sqlite3.Error as error:
            raise StoreError(f"run {self.path.name} cannot be read: {error}") from None

    def _write(self, act: Callable[[sqlite3.Connection], int]) -> int:
        """One short transaction on a connection of its own."""
        try:
            db = connect(self._file, write=True)
            try:
                with writing(db):
                    return act(db)
            finally:
                db.close()
        except sqlite3.Error as error:
            raise StoreError(f"run {self.id} cannot be written: {error}") from None

    def close(self) -> None:
        """Let go of the file, so that it can be sealed. A later read opens it again."""
        with self._guard:
            for db in self._open:
                db.close()
            self._open.clear()
            self._local = threading.local()

    # How it stands

    @property
    def state(self) -> str:
        """starting, training, paused, finished, stopped, failed; interrupted if the trainer died without a word."""
        return self.status().state

    def status(self) -> Status:
        state, step, reason, pid, heartbeat = self._query("SELECT state, step, reason, pid, heartbeat FROM state")[0]
        if state not in ENDED and not is_alive(self.path):
            # It may have ended between the two looks.
            state, step, reason, pid, heartbeat = self._query("SELECT state, step, reason, pid, heartbeat FROM state")[
                0
            ]
            state = state if state in ENDED else "interrupted"
        return Status(state, step, reason, time.time() - heartbeat, pid)

    def steps(self) -> tuple[int, int]:
        """The first and last committed step; (0, 0) when there is none."""
        first, last = self._query("SELECT min(first), max(first + n - 1) FROM blocks")[0]
        return first or 0, last or 0

    @property
    def knobs(self) -> Knobs:
        """Where every knob stands: the start, and all turns since, taken effect or not."""
        values = as_dict(self.started_knobs)
        for change in self.knob_changes():
            values[change.name] = change.value
        return from_dict(Knobs, values)

    def knob_changes(self) -> list[KnobChange]:
        return [KnobChange(*row) for row in self._query(KNOB_CHANGES, (0,))]

    def commands(self) -> list[Command]:
        return [Command(*row) for row in self._query(ALL_COMMANDS, (0,))]

    def evals(self, after: int = 0) -> list[Eval]:
        """Evaluations whose id is beyond `after`."""
        rows = self._query("SELECT id, step, metrics, text FROM evals WHERE id > ? ORDER BY id", (after,))
        return [Eval(id, step, json.loads(metrics), text) for id, step, metrics, text in rows]

    def probe(self) -> dict[str, NDArray[Any]]:
        """The fixed probe batch as a person sees it."""
        return unpack_arrays(self._query("SELECT probe FROM run")[0][0])

    def snapshots(self, kind: str = "probe") -> NDArray[np.int64]:
        """The steps of which there is a snapshot."""
        rows = self._query("SELECT step FROM snapshots WHERE kind = ? ORDER BY step", (kind,))
        return np.array([row[0] for row in rows], np.int64)

    def snapshot(self, step: int | None = None, kind: str = "probe") -> tuple[int, dict[str, NDArray[Any]]] | None:
        """The last snapshot at or before step (of all, if None), with its own step; None if there is none."""
        rows = self._query(
            "SELECT step, data FROM snapshots WHERE kind = ? AND step <= ? ORDER BY step DESC, id DESC LIMIT 1",
            (kind, 2**62 if step is None else step),
        )
        return (rows[0][0], unpack_arrays(rows[0][1])) if rows else None

    def blocks(self, after: int = 0, first: int | None = None, last: int | None = None) -> list[Block]:
        """Blocks whose id is beyond `after` and that touch [first, last], each checked against its link of the chain.

        StoreError if one is not what was written, is missing, or is out of its place.
        """
        rows = self._query(
            """SELECT id, first, n, columns, data, chain FROM blocks
               WHERE id > ? AND first + n > ? AND first <= ? ORDER BY id""",
            (after, 0 if first is None else first, 2**62 if last is None else last),
        )
        if not rows:
            return []
        before = self._query("SELECT first + n, chain FROM blocks WHERE id = ?", (rows[0][0] - 1,))
        if not before and rows[0][0] > 1:
            raise StoreError(f"run {self.id} is damaged: block {rows[0][0] - 1} is missing")
        next_step, chain = before[0] if before else (rows[0][1], self._query("SELECT chain FROM run")[0][0])
        blocks = []
        for number, (id, start, n, columns, data, kept) in enumerate(rows, rows[0][0]):
            chain = link(chain, HEADER.pack(start, n, columns), data)
            if id != number or start != next_step or chain != kept or columns != self.columns:
                raise StoreError(
                    f"run {self.id} is damaged: block {number} (from step {next_step}) is not what was written"
                )
            blocks.append(Block(id, start, unpack_rows(data, n, columns)))
            next_step = start + n
        return blocks

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """(steps (n,), values (n,) or (n, E)) of any statistic in STATS, from step `first` to `last`, both included.

        bins: thin to about that many bins of minimum and maximum. StoreError for an unknown statistic or layer.
        """
        if stat not in STAT:
            raise StoreError(f"unknown statistic {stat!r}; there are: {', '.join(STAT)}")
        if not 0 <= layer < self.config.layers:
            raise StoreError(f"layer must be between 0 and {self.config.layers - 1}, got {layer}")
        blocks = self.blocks(first=first, last=last)
        rows = np.concatenate([b.rows for b in blocks]) if blocks else np.empty((0, self.columns), np.float32)
        start = blocks[0].first if blocks else 0
        steps = np.arange(start, start + len(rows), dtype=np.int64)
        inside = slice(
            0 if first is None else int(np.searchsorted(steps, first)),
            None if last is None else int(np.searchsorted(steps, last, "right")),
        )
        steps, values = steps[inside], pick(self.layout, rows[inside], stat, layer)
        return thin(steps, values, bins) if bins else (steps, values)

    # What anyone may ask of it

    def turn(self, who: str = "script", **knobs: float | str) -> int:
        """Turn one or more knobs: each takes effect at the top of the trainer's next step. The last row's id.

        ValueError, and nothing is turned, if one of them is unknown or out of range.
        """
        if not knobs:
            raise StoreError("turn needs a knob, for example turn(noise=0.5)")
        values: dict[str, Any] = {}
        stand = (
            self.knobs if TOGETHER & knobs.keys() else None
        )  # read only where it matters: a drag turns 20 times a second
        for name, value in knobs.items():  # in the order given, each against what stands by then
            values[name] = check_knob(self.config, name, value, stand)
            stand = stand and replace(stand, **{name: values[name]})

        def insert(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT id, chain FROM knobs ORDER BY id DESC LIMIT 1").fetchone()
            id, chain = row or (0, START)
            for name, value in values.items():
                last = db.execute("SELECT value FROM knobs WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()
                previous = last[0] if last else getattr(self.started_knobs, name)
                id, at = id + 1, time.time()
                chain = link(chain, id, name, linked(value), linked(previous), who, at)
                db.execute(
                    "INSERT INTO knobs VALUES (?, ?, ?, ?, ?, ?, ?)", (id, name, value, previous, who, at, chain)
                )
            return int(id)

        return self._write(insert)

    def command(self, name: str, who: str = "script") -> int:
        """Ask the trainer to pause, resume, step, stop or checkpoint. The row's id."""
        if name not in COMMANDS:
            raise StoreError(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
        insert = "INSERT INTO commands (name, who, at) VALUES (?, ?, ?)"
        return self._write(lambda db: int(db.execute(insert, (name, who, time.time())).lastrowid or 0))

    # Whether it is whole

    def findings(self) -> list[str]:
        """What is wrong with the record; empty if it is whole."""
        found = []
        try:
            blocks = self.blocks()
            last = blocks[-1].first + len(blocks[-1].rows) - 1 if blocks else 0
            if blocks and blocks[0].first != 1:
                found.append(f"the first recorded step is {blocks[0].first}, not 1")
            found += self._check_tip(last, blocks[-1].id if blocks else 0)
        except StoreError as error:
            found.append(str(error))
        chain = START
        for id, name, value, previous, who, at, kept in self._query("SELECT * FROM knobs ORDER BY id"):
            chain = link(chain, id, name, linked(value), linked(previous), who, at)
            if chain != kept:
                found.append(f"knob change {id} is not what was written")
                chain = kept
        for kind in ("probe", "full"):
            for id, data in self._query("SELECT id, data FROM snapshots WHERE kind = ?", (kind,)):
                try:
                    unpack_arrays(data)
                except ValueError as error:
                    found.append(f"snapshot {id}: {error}")
        return found

    def _check_tip(self, last: int, blocks: int) -> list[str]:
        """A flip in a live log silently ends it there; the tip, written after each commit, says how far it went."""
        try:
            step, _blocks, _chain = TIP.unpack((self.path / "run.tip").read_bytes())
        except (OSError, struct.error):
            return ["run.tip is missing or damaged, so steps lost from the end would not be noticed"] if blocks else []
        return [f"{step - last} steps are lost after step {last}"] if step > last else []


def linked(value: float | str) -> float | str:
    """A knob's value as the chain takes it: a column of REAL gives whole numbers back as floats, and words as they are."""
    return value if isinstance(value, str) else float(value)


def pick(columns: Sequence[Column], rows: NDArray[np.floating[Any]], stat: str, layer: int) -> NDArray[Any]:
    """One statistic of one layer out of rows (n, C) in a layout: (n,) or (n, E)."""
    wanted = DERIVED[stat][0] if stat in DERIVED else stat
    layer = -1 if STAT[wanted].shape == "" else layer
    column = next((c for c in columns if c.stat == wanted and c.layer == layer), None)
    if column is None:
        raise StoreError(f"this run has no statistic {wanted!r}: it was recorded by an earlier version")
    values = rows[:, column.start : column.start + column.width]
    if stat in DERIVED:
        return derive(stat, {wanted: values})
    return values if STAT[stat].shape == "LE" else values[:, 0]


# Finding runs


def runs_folder(runs: str | Path | None = None) -> Path:
    """Where runs live: the argument, else the variable MOE_RUNS, else ./runs."""
    return Path(runs or os.environ.get("MOE_RUNS") or "runs")


def open_run(run: str | Path, runs: str | Path | None = None, limit: float | None = None) -> Run:
    """A run by its id, a unique beginning of one, or its path. StoreError says which there are."""
    folder = runs_folder(runs)
    if (folder / str(run) / "run.db").is_file() and str(run):
        return Run(folder / str(run), limit)
    if os.sep in str(run) or Path(run).is_absolute() or isinstance(run, Path):
        return Run(Path(run), limit)
    there = _folders(folder)
    found = [path for path in there if path.name.startswith(str(run))]
    if len(found) == 1:
        return Run(found[0], limit)
    names = ", ".join(path.name for path in (found or there)[:8]) or "none"
    problem = "is the beginning of several runs" if found else "is no run"
    raise StoreError(f"{str(run)!r} {problem} in {folder}; there are: {names}")


def list_runs(runs: str | Path | None = None) -> list[Listed]:
    """Every run, the newest first. One damaged run never hides the others."""
    listed = []
    for path in _folders(runs_folder(runs)):
        try:
            run = Run(path)
            try:
                status = run.status()
                listed.append(Listed(run.id, status.state, status.step, run.config, run.facts["created"], ""))
            finally:
                run.close()
        except ValueError as error:
            listed.append(Listed(path.name, "damaged", 0, None, path.stat().st_mtime, str(error)))
    return sorted(listed, key=lambda one: -one.created)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if (path / "run.db").is_file())


def verify(run: Run) -> list[str]:
    """What is wrong with a run's record and its checkpoints; empty if all is whole."""
    found = run.findings()
    for path in sorted(run.path.glob("**/*.pt")):
        beside = path.with_name(path.name + ".sha256")
        try:
            wanted = beside.read_text().split()[0]
        except (OSError, IndexError):
            found.append(f"{path.name} has no SHA-256 beside it")
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            found.append(f"{path.name} is not what was written: its SHA-256 differs")
    return found

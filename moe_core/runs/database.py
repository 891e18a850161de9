"""The file of a run: its tables, how it is opened, the trainer's lock on it, and its seal at the end. SQL begins here.

Each rule below prevents a fault that was produced on purpose; docs/decisions.md has the measurements.
"""

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from moe_core.runs.locks import OURS, is_locked

# Append only: migration i brings a file from user_version i to i + 1.
MIGRATIONS = (
    """
    -- One row: what fixes the run. JSON: id, created, description, layout, labels, facts; of our own trainer's runs config,
    -- knobs (at the start), script and parent too.
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
    """
    -- Sums of the rows, as runs/sums.py has them; held is JSON: how many rows of each table there are.
    ALTER TABLE state ADD COLUMN held TEXT;
    ALTER TABLE state ADD COLUMN sum BLOB;
    ALTER TABLE evals ADD COLUMN sum BLOB;
    ALTER TABLE snapshots ADD COLUMN sum BLOB;
    ALTER TABLE applied ADD COLUMN sum BLOB;
    ALTER TABLE commands ADD COLUMN sum BLOB;
    """,
    """
    -- Of a run whose layers are stored apart: the parts of its blocks, whose data are then the digests of these
    -- (runs/apart.py).
    CREATE TABLE parts (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
    """,
)


# Seconds that a connection waits for another's transaction. SQLite wakes waiters in no order: with five writers on a busy
# two-core machine one turn in thousands was starved for more than five seconds.
WAIT = 20.0


JOURNAL = bytes.fromhex("d9d505f920a163d7")  # ends a journal that belongs to another (sqlite.org/fileformat.html)
LONGEST = 1 << 28  # bytes of one value that is read: a file of a stranger may claim a billion


class StoreError(ValueError):
    """A run that cannot be opened, read or written; one line that says why and what to do."""


class FolderGone(StoreError):
    """The folder of a run that trains was deleted, or moved to another disk."""


class DamagedError(StoreError):
    """SQLite cannot read a table of a damaged file. Its other tables may still be readable."""


def damage_of(error: BaseException, name: str, step: int) -> DamagedError | None:
    """What to say if SQLite found run `name` damaged while a trainer wrote or read it, after `step`; None for any other error."""
    if not getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return None
    return DamagedError(
        f"run.db of run {name} was damaged from outside while it trained, and nothing is recorded after step {step} ({error}); "
        f"put a copy of run.db back, or train anew; `verify {name}` says what can still be read"
    )


# Connections


def connect(path: Path, write: bool = False, limit: float | None = None) -> sqlite3.Connection:
    """The one place that opens a database. limit: seconds after which any of its queries gives up."""
    uri = f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
    if not write and not has_log(path) and not may_access(path.parent, os.W_OK):
        uri += "&immutable=1"  # left in WAL mode on a medium that is read only: without a log there is nothing to share
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=WAIT, check_same_thread=False)
    # A flipped bit in a text spoils that text and no other.
    db.text_factory = lambda text: text.decode("utf-8", "replace")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
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
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
                db.execute("ROLLBACK")
        raise


def is_file(path: Path) -> bool:
    """Whether there is a file; StoreError if its folder may not be read."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:
        raise StoreError(
            f"run {path.parent.name} cannot be opened: you may not look into its folder; ask whoever owns it"
        ) from None
    except OSError:
        return False


def has_log(path: Path) -> bool:
    """Whether a log of the last commits, or a journal to undo one, lies beside a database and is not empty."""
    logs = (path.with_name(path.name + end) for end in ("-wal", "-journal"))
    return any(log.stat().st_size > 0 for log in logs if log.exists())


def roll_back_journal(path: Path) -> bool:
    """Roll back the transaction of a process that was killed while it sealed a file, or opened it to train; a reader may
    not. True if no journal is left. A journal that names another file is left alone: SQLite may delete that file, whatever
    it is.
    """
    journal = path.with_name(path.name + "-journal")
    if os.path.lexists(journal):
        if not is_plain(journal):
            return False
        with open(journal, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(JOURNAL)))
            if file.read(len(JOURNAL)) == JOURNAL:
                return False
        with contextlib.closing(connect(path, write=True)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not os.path.lexists(journal)


def may_access(path: Path, mode: int) -> bool:
    """os.access for the effective user, as whom files are opened; another user may have started the process."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def why_closed(path: Path) -> str:
    """Why a database that is there cannot be opened, and what to do; "" if a permission is not the reason."""
    if not may_access(path, os.R_OK):
        return f"you may not read {path.name}; ask whoever owns it"
    if has_log(path) and not may_access(path.parent, os.W_OK):
        return "it was left with a log, and reading that needs a folder that you may write to; copy the run to such a folder"
    return ""


def is_plain(path: Path) -> bool:
    """Whether there is a file, and not a link, a pipe, a device or a folder."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def strange_files(folder: Path) -> list[str]:
    """The names of the files of a database (run.db and those beside it that SQLite opens) that are there and not plain
    files."""
    names = [f"run.db{end}" for end in ("", "-wal", "-shm", "-journal")]
    return [name for name in names if os.path.lexists(folder / name) and not is_plain(folder / name)]


OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master"


@cache
def expected_objects(version: int) -> set[tuple[str, ...]]:
    """Every table and index that a run's file of a version may hold, as the migrations create it; anything else (a view, a
    trigger, a column that computes) is refused."""
    db = sqlite3.connect(":memory:")
    for migration in MIGRATIONS[:version]:
        db.executescript(migration)
    objects = normalised(db.execute(OBJECTS))
    db.close()
    return objects


def normalised(objects: Iterable[tuple[object, ...]]) -> set[tuple[str, ...]]:
    """Rows of sqlite_master, however their SQL is broken into lines."""
    return {tuple(" ".join(str(part).split()) for part in row) for row in objects}


def leads_to(path: Path, file: os.stat_result) -> bool:
    """Whether a file is still at a path. True also if that cannot be read: a disk that fails does not mean that the file is
    gone."""
    try:
        return os.path.samestat(os.stat(path), file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def path_of(handle: int) -> Path | None:
    """Where an open folder lies now, whatever it was renamed to; None where the system does not say."""
    try:
        if hasattr(fcntl, "F_GETPATH"):
            return Path(os.fsdecode(fcntl.fcntl(handle, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
        return Path(os.readlink(f"/proc/self/fd/{handle}"))
    except OSError:
        return None


# The lock: a trainer holds it until its process ends, and the kernel knows who holds it


def hold_lock(folder: Path, wait: float = 1.0) -> int:
    """Take the run's lock; StoreError if a trainer has it, or the file cannot be opened.

    wait: seconds to try for, since a process that checks whether a trainer runs, or seals the file, holds it for a moment.
    """
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | OURS, 0o644)
    except OSError as error:
        raise StoreError(f"run {folder.name} cannot be locked: {error.strerror}") from None
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            if time.monotonic() > until:
                os.close(handle)
                raise StoreError(
                    f"run {folder.name} is being trained by another process; stop that one first"
                ) from None
        time.sleep(0.02)


def is_alive(folder: Path) -> bool:
    """Whether a trainer holds the run's lock."""
    return is_locked(folder / "lock")


def seal(db: sqlite3.Connection, seconds: float) -> bool:
    """Out of WAL mode, so that the run opens from a full disk or a read-only medium too. Fails while a reader is connected."""
    until = time.monotonic() + seconds
    db.execute("PRAGMA busy_timeout = 200")
    while True:
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if db.execute("PRAGMA journal_mode = DELETE").fetchone()[0] == "delete":
                return True
        except sqlite3.Error:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.05)


def seal_unsealed(folder: Path) -> None:
    """Seal a run that could not be sealed when it ended because a reader had it open. If somebody has it open now too, the
    next one who opens it will seal it."""
    with contextlib.suppress(StoreError, OSError, sqlite3.Error):
        lock = hold_lock(folder, wait=0)
        try:
            db = connect(folder / "run.db", write=True)
            seal(db, 0)
            db.close()
        finally:
            os.close(lock)

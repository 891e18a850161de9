"""The trainer's side of a run's record: making it, and appending to it."""

import json
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from moe_core.runs.codec import HEADER, START, TIP, link, pack_arrays, pack_rows
from moe_core.runs.database import (
    MIGRATIONS,
    FolderGone,
    StoreError,
    connect,
    hold_lock,
    leads_to,
    path_of,
    seal,
    writing,
)
from moe_core.runs.locks import OURS, sign
from moe_core.runs.log import leave_word
from moe_core.runs.room import drop_ballast, make_ballast, no_room
from moe_core.runs.rows import RESUMED, Batch, Command, KnobChange, Pending
from moe_core.runs.store import ALL_COMMANDS, KNOB_CHANGES, Run
from moe_core.runs.turns import insert_turns
from moe_core.schema import Config, Knobs, as_dict, layout

WAL_PAGES = 1000  # the trainer moves the log into the database when it has grown to this
SEAL_FOR = 5.0  # seconds to try for while readers let go
ENDS = 4  # times that it is tried to write how a run ended
READ_FOR = 5.0  # seconds for which what people ask for may be unreadable
PACE = 1.0  # seconds of training that a commit counts for at most: a pause makes no snapshot older


def create_run(
    folder: Path,
    config: Config,
    knobs: Knobs,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    probe: Mapping[str, NDArray[Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    script: Sequence[tuple[int, str, float | str]] = (),
) -> "RunWriter":
    """A new run's folder, locked, with its row written. StoreError if the folder is in use already.

    labels: the names of each label's values; probe: the fixed batch as a person sees it; facts: what sums depend on
    beside config and knobs (device, threads, versions); script: knob changes to come, as (step, knob, value).
    """
    about = {
        "config": as_dict(config),
        "knobs": as_dict(knobs),
        "layout": [list(column) for column in layout(config.layers, config.num_experts)],
        "labels": {name: list(values) for name, values in (labels or {}).items()},
        "facts": dict(facts or {}),
        "script": [list(entry) for entry in script],
    }
    made = not folder.exists()
    lock = make_file(folder, about, probe or {})
    try:
        return RunWriter(folder, lock)
    except BaseException:
        for path in (*folder.glob("run.*"), folder / "ballast"):
            path.unlink(missing_ok=True)
        os.close(lock)
        if made:
            shutil.rmtree(folder)
        raise


def make_file(
    folder: Path,
    about: Mapping[str, Any],
    probe: Mapping[str, NDArray[Any]],
    fill: Callable[[sqlite3.Connection], None] = lambda db: None,
) -> int:
    """A new run's file, with what `fill` puts in it. The handle of the run's lock; nothing is left if anything fails."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.db").exists():
            raise StoreError(f"run {folder.name} exists already in {folder.parent}; choose another --run-id")
        lock = hold_lock(folder)
    except OSError as error:
        raise StoreError(f"cannot make run folder {folder}: {error.strerror}") from None
    except StoreError:
        if made:
            folder.rmdir()
        raise
    about_text = json.dumps({"id": folder.name, "created": time.time(), **about})
    probe_data = pack_arrays(probe)
    # Made whole under another name: a run.db that exists is a run.
    temporary = folder / "run.db.new"
    temporary.unlink(missing_ok=True)
    db = None
    try:
        hold_room(folder)
        db = sqlite3.connect(temporary, isolation_level=None)
        db.executescript("".join(MIGRATIONS))
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        with writing(db):
            chain = link(START, about_text, probe_data)
            db.execute("INSERT INTO run VALUES (1, ?, ?, ?)", (about_text, probe_data, chain))
            db.execute("INSERT INTO state VALUES (1, 'starting', 0, '', ?, ?)", (os.getpid(), time.time()))
            fill(db)
        db.close()
        os.rename(temporary, folder / "run.db")
    except BaseException as error:
        if db:
            db.close()
        os.close(lock)
        temporary.unlink(missing_ok=True)
        drop_ballast(folder)
        if made:
            shutil.rmtree(folder)
        if no_room(error, folder if folder.exists() else folder.parent):
            raise StoreError(f"cannot make run folder {folder}: the disk is full") from None
        if isinstance(error, OSError | sqlite3.Error):
            raise StoreError(f"cannot make run folder {folder}: {getattr(error, 'strerror', None) or error}") from None
        raise
    return lock


def hold_room(folder: Path) -> None:
    """The ballast, which a run that begins or goes on must have."""
    if not make_ballast(folder):
        raise StoreError(
            f"there is no room for a run on the disk of {folder.parent}; make some, or choose another --runs"
        )


def resume_run(
    folder: Path, lock: int, who: str, steps: int, notes: Sequence[str] = (), moved: Mapping[str, Any] = {}
) -> "RunWriter":
    """Go on with a run whose trainer is gone. lock: as hold_lock gave it; steps: how many it shall have in all; moved:
    where its data lie now (text or data).

    What was asked of the old trainer is answered, not obeyed: a stop of yesterday must not stop the run today. Knob
    changes that it never took wait for the next step.
    """
    hold_room(folder)
    writer = RunWriter(folder, lock)
    try:
        return _resumed(writer, who, {"steps": steps, **moved}, notes)
    except (OSError, sqlite3.Error) as error:
        writer.let_go()
        raise StoreError(f"run {folder.name} cannot be gone on with: {error}") from error


def _resumed(writer: "RunWriter", who: str, how: Mapping[str, Any], notes: Sequence[str]) -> "RunWriter":
    with writing(writer.db) as db:
        db.execute("UPDATE commands SET step = ?, result = 'not obeyed: the trainer had ended' WHERE step IS NULL", (writer.step,))  # fmt: skip
        db.execute(
            "INSERT INTO commands (name, who, at, step, result) VALUES (?, ?, ?, ?, ?)",
            (RESUMED, who, time.time(), writer.step, json.dumps({**how, "notes": list(notes)})),
        )
        db.execute(
            "UPDATE state SET state = 'starting', reason = '', step = ?, pid = ?, heartbeat = ?",
            (writer.step, os.getpid(), time.time()),
        )
        writer.how = how
        writer.resumed = writer.command_seen = db.execute("SELECT max(id) FROM commands").fetchone()[0]
        writer.knob_seen = db.execute("SELECT max(knob) FROM applied").fetchone()[0] or 0
    writer.after_commit()
    return writer


class RunWriter:
    """The trainer's hold on its run. commit, beat and finish belong to one thread, pending to the training thread.

    knob_seen and command_seen are the last row ids that the trainer took; pending() returns what lies beyond. A folder that
    is renamed is followed: `folder` is where it lies now.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self.lock = folder, lock
        self.knob_seen = self.command_seen = 0
        self.resumed = 0  # the row that says that this trainer went on with the run, and how: to how many steps
        self.how: Mapping[str, Any] = {}
        self.put_off = ""  # why what follows a commit waits for the next one
        self.unread = 0.0  # since when nothing could be read
        try:
            self._open(folder)
        except (OSError, sqlite3.Error) as error:
            self.let_go()
            raise StoreError(f"run {folder.name} cannot be written: {error}") from error
        row = self.db.execute("SELECT id, first + n - 1, chain FROM blocks ORDER BY id DESC LIMIT 1").fetchone()
        self.blocks: int
        self.step: int
        self.chain: bytes
        self.blocks, self.step, self.chain = row or (0, 0, self.db.execute("SELECT chain FROM run").fetchone()[0])
        # Seconds of training, by which snapshots are thinned. A calendar's would make all of them old when it is set forward.
        (trained,) = self.db.execute("SELECT max(at) FROM snapshots WHERE typeof(at) = 'real'").fetchone()
        self.trained = self.thinned = trained if trained and math.isfinite(trained) else 0.0
        self.committed = time.monotonic()

    def _open(self, folder: Path) -> None:
        sign(self.lock, os.getpid())  # whoever started this process may have held it before
        self.place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.files = {"lock": os.fstat(self.lock), "run.db": os.stat(folder / "run.db")}
        self.db = connect(folder / "run.db", write=True)
        if self.db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(
                f"{folder} is on a disk that cannot share memory between processes; keep runs on a local disk"
            )
        # A second connection of the trainer's own holds the write lock while the first moves the log: SQLite up to
        # 3.51.2 can lose pages when a commit meets the start of a checkpoint on another connection.
        self.guard = connect(folder / "run.db", write=True)
        self.reader, self.read_from = connect(folder / "run.db"), folder
        self.tip = os.open(folder / "run.tip", os.O_RDWR | os.O_CREAT | OURS, 0o644)

    def commit(self, batch: Batch) -> None:
        """Everything in the batch, or nothing, on the disk when this returns."""
        self.follow()
        rows, now = batch.rows, time.time()
        began, self.committed = self.committed, time.monotonic()
        if len(rows):
            self.trained += min(self.committed - began, PACE)
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
                [(at, kind, self.trained, pack_arrays(arrays)) for at, kind, arrays in batch.snapshots],
            )
            db.executemany("INSERT OR REPLACE INTO applied VALUES (?, ?)", batch.applied)
            db.executemany(
                "UPDATE commands SET step = ?, result = ? WHERE id = ?", [(s, r, i) for i, s, r in batch.acks]
            )
            db.execute("UPDATE state SET step = ?, heartbeat = ?, pid = ?", (step, now, os.getpid()))
            if batch.state:
                db.execute("UPDATE state SET state = ?, reason = ?", (batch.state, batch.reason))
            if self.trained - self.thinned > 10:
                self._thin_snapshots(self.trained)
        # From here on the batch is in the record: what a full or broken disk puts off is not its failure, and is done later.
        self.chain, self.blocks, self.step = chain, blocks, step
        self.after_commit()

    def after_commit(self) -> None:
        try:
            self.write_tip()
            self._move_log()
            self.put_off = ""
        except (OSError, sqlite3.Error) as error:
            self.put_off = str(error)

    def write_tip(self) -> None:
        os.pwrite(self.tip, TIP.pack(self.step, self.blocks, self.chain), 0)

    def beat(self) -> None:
        """Say that the trainer lives."""
        self.follow()
        with writing(self.db) as db:
            db.execute("UPDATE state SET heartbeat = ?", (time.time(),))

    def follow(self) -> Path:
        """The run's folder, where it lies now. FolderGone if there is none any more."""
        if not self._is_in(self.folder):
            found = path_of(self.place)
            if found is None or not self._is_in(found):
                raise FolderGone(
                    f"the folder of run {self.folder.name}, or its record, was deleted or moved to another disk while it trained"
                )
            self._open_in(found)
        return self.folder

    def _is_in(self, folder: Path) -> bool:
        return all(leads_to(folder / name, file) for name, file in self.files.items())

    def _open_in(self, folder: Path) -> None:
        """The same file by its new path: SQLite makes and removes the files beside it by name. The new connections open it
        before the old ones let go, since the last one to do so would end the log."""
        before = self.db, self.guard
        self.db, self.guard = connect(folder / "run.db", write=True), connect(folder / "run.db", write=True)
        for connection in (self.db, self.guard):
            connection.execute("SELECT count(*) FROM state").fetchone()
        for connection in before:
            connection.close()
        self.folder = folder

    def pending(self) -> Pending:
        """Knob changes and commands that the trainer has not taken yet, in order."""
        if self.read_from != (folder := self.folder):
            self.reader.close()
            self.reader, self.read_from = connect(folder / "run.db"), folder
        try:
            pending = self._read()
        except sqlite3.Error:
            self.unread = self.unread or time.monotonic()
            if time.monotonic() - self.unread > READ_FOR:
                raise
            return Pending([], [])
        self.unread = 0.0
        return pending

    def _read(self) -> Pending:
        newest = self.reader.execute("SELECT (SELECT max(id) FROM knobs), (SELECT max(id) FROM commands)").fetchone()
        knobs, commands = Pending([], [])
        if (newest[0] or 0) > self.knob_seen:
            knobs = [KnobChange(*row) for row in self.reader.execute(KNOB_CHANGES, (self.knob_seen,)).fetchall()]
        if (newest[1] or 0) > self.command_seen:
            commands = [Command(*row) for row in self.reader.execute(ALL_COMMANDS, (self.command_seen,)).fetchall()]
        return Pending(knobs, commands)

    def turn(self, who: str, **knobs: float | str) -> None:
        """Turn knobs as anyone may; pending() then has them. For the training thread, on a connection of its own."""
        run = Run(self.follow())
        try:
            run.turn(who, **knobs)
        finally:
            run.close()

    def decide(self, who: str, seen: int, given: Collection[str], values: Mapping[str, float]) -> None:
        """Turn knobs as was decided from how the given ones stood when the last turn that was seen had this row id.

        If one of those has been turned since, nothing is turned: that turn stands.
        """
        run = Run(self.follow())

        def act(db: sqlite3.Connection) -> int:
            unseen = {name for (name,) in db.execute("SELECT name FROM knobs WHERE id > ?", (seen,))}
            return 0 if unseen.intersection(given) else insert_turns(db, run.started_knobs, values, who)

        try:
            run.write(act)
        finally:
            run.close()

    def note(self, notes: Sequence[str]) -> None:
        """What there is to say about how this trainer went on with the run."""
        with writing(self.db) as db:
            result = json.dumps({**self.how, "notes": list(notes)})
            db.execute("UPDATE commands SET result = ? WHERE id = ?", (result, self.resumed))

    def make_ballast(self) -> bool:
        return make_ballast(self.folder)

    def drop_ballast(self) -> bool:
        return drop_ballast(self.folder)

    def finish(self, state: str, error: str = "") -> str:
        """Write how the run ended, seal its file, let go of the lock. Returns why that is not in the record, or ""."""
        problem = ""
        try:
            self.follow()
        except FolderGone:
            self.let_go()
            os.close(self.lock)
            return problem  # it was said, and there is no record that could say it
        self.drop_ballast()
        self.after_commit()
        for at in range(ENDS):
            try:
                with writing(self.db) as db:
                    db.execute("UPDATE state SET state = ?, reason = ?, heartbeat = ?", (state, error, time.time()))
                problem = ""
                break
            except sqlite3.Error as failure:
                why = "the disk is full" if no_room(failure, self.folder) else str(failure)
                problem = f"the record does not say how the run ended: {why}"
                time.sleep(0.1 * at)
        if problem:
            leave_word(self.folder, f"{state}: {error}" if error else state)
        for connection in (self.reader, self.guard):
            connection.close()
        if seal(self.db, SEAL_FOR):
            (self.folder / "run.db-shm").unlink(missing_ok=True)  # of a folder that was renamed, SQLite leaves it
        self.let_go()
        os.close(self.lock)
        return problem

    def let_go(self) -> None:
        """Close what is open, but for the lock."""
        for name in ("reader", "guard", "db"):
            if hasattr(self, name):
                getattr(self, name).close()
        for name in ("tip", "place"):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def _move_log(self) -> None:
        """The log into the database once it has grown; nobody else does, and nobody commits meanwhile."""
        wal = self.folder / "run.db-wal"
        if wal.exists() and wal.stat().st_size > WAL_PAGES * 4096:
            with writing(self.guard):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _thin_snapshots(self, now: float) -> None:
        """All of the last minute of training, one a second of the last ten, one in ten seconds before; "full" ones a tenth as
        dense.

        The first stays, and so does the last. Kept is the first of each span of seconds.
        """
        self.thinned = now
        for kind, recent, middle, old in (("probe", 0.0, 1.0, 10.0), ("full", 1.0, 10.0, 60.0)):
            for span, newest, oldest in (
                (recent, now, now - 60),
                (middle, now - 60, now - 600),
                (old, now - 600, -1.0),
            ):
                if span:
                    self.db.execute(
                        """DELETE FROM snapshots WHERE kind = :kind AND at > :oldest AND at <= :newest
                           AND id NOT IN (SELECT min(id) FROM snapshots WHERE kind = :kind AND at > :oldest AND at <= :newest
                                          GROUP BY CAST(at / :span AS INTEGER))
                           AND id <> (SELECT max(id) FROM snapshots WHERE kind = :kind)
                           AND id <> (SELECT min(id) FROM snapshots WHERE kind = :kind)""",
                        {"kind": kind, "oldest": oldest, "newest": newest, "span": span},
                    )

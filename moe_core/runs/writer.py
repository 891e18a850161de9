"""The trainer's side of a run's record: appending to it. runs/begin.py makes one, and opens one again."""

import bisect
import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_core.runs.apart import Layout, insert_block
from moe_core.runs.checked import CheckedRows
from moe_core.runs.codec import HEADER, link, pack_arrays
from moe_core.runs.columns import read_layout
from moe_core.runs.database import (
    FolderGone,
    StoreError,
    connect,
    damage_of,
    leads_to,
    path_of,
    seal,
    writing,
)
from moe_core.runs.limits import read_json
from moe_core.runs.locks import OURS, sign
from moe_core.runs.log import log_problem
from moe_core.runs.room import disk_error, drop_ballast, make_ballast, no_room
from moe_core.runs.rows import Batch, Command, KnobChange, Pending
from moe_core.runs.store import COMMAND, Run
from moe_core.runs.sums import answer, count, insert, put_state, snapshot_mark, upgrade
from moe_core.runs.thinning import thin_snapshots
from moe_core.runs.tip import HALF, open_tip, raise_asked, unpack, write_trained
from moe_core.runs.turns import TURN, TURNS, insert_turns, whole_turns

WAL_PAGES = 1000  # the trainer moves the log into the database when it has grown to this
STARTING = {"state": "starting", "step": 0, "reason": ""}
SEAL_FOR = 5.0  # seconds to try to seal the file, while readers close it
END_TRIES = 4  # tries to write how a run ended
READ_FOR = 5.0  # seconds for which knob changes and commands may be unreadable
PACE = 1.0  # the most seconds of training that a commit counts for, so that a pause makes no snapshot older


class RunWriter:
    """Writes the record of the run that a trainer trains. commit, beat and finish belong to one thread, pending to the
    training thread.

    knob_seen and command_seen are the last row ids that the trainer took; pending() returns the later ones. If the
    folder is renamed, `folder` follows it.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self.lock = folder, lock
        self.knob_seen = self.command_seen = 0
        self.resumed = 0  # the id of the commands row that records this trainer's resume; how: the settings in it
        self.how: Mapping[str, Any] = {}
        self.put_off = ""  # why the work after a commit (tip and log) waits for the next one
        self.old = b""  # the half of the tip that says who asks, as it was when it last named nothing new
        self.unread = 0.0  # the time since which nothing could be read; 0: it can
        try:
            self._open(folder)
            self._read_progress()
        except (OSError, sqlite3.Error) as error:
            self.let_go()
            raise StoreError(f"run {folder.name} cannot be written: {error}") from error

    def _open(self, folder: Path) -> None:
        sign(self.lock, os.getpid())  # it may still name the process that started this one
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
        self.tip = open_tip(folder)

    def _read_progress(self) -> None:
        """How far the record has gone."""
        upgrade(self.db)
        about, self.chain_of_run = self.db.execute("SELECT about, chain FROM run").fetchone()
        settings = read_json(about, finite=False)
        self.layout = Layout(read_layout(settings["layout"]), settings.get("apart") is True)
        self.rows = CheckedRows(
            self.folder, lambda sql, values=(): self.reader.execute(sql, values).fetchall(), self.chain_of_run
        )
        row = self.db.execute("SELECT id, first + n - 1, chain FROM blocks ORDER BY id DESC LIMIT 1").fetchone()
        self.blocks: int
        self.step: int
        self.chain: bytes
        self.blocks, self.step, self.chain = row or (0, 0, self.chain_of_run)
        state = self.rows.state()
        self.state: dict[str, Any] = {"state": state.state, "reason": state.reason} if state else dict(STARTING)
        self.state["step"] = self.step
        self.held = state.held if state else count(self.db)
        # Seconds of training, by which snapshots are thinned. A calendar's would make all of them old when it is set forward.
        (trained,) = self.db.execute("SELECT max(at) FROM snapshots WHERE typeof(at) = 'real'").fetchone()
        self.trained = self.thinned = trained if trained and math.isfinite(trained) else 0.0
        self.committed = time.monotonic()
        self.moved = b"", 0  # the log that was moved into the database last, and its number of pages then

    def transact(self, act: Callable[[sqlite3.Connection], object] = lambda db: None, **state: Any) -> None:
        """One transaction that changes the record and writes the run's state. act() counts the rows that it adds in
        self.held."""
        before, self.held = self.held, dict(self.held)
        try:
            with writing(self.db) as db:
                act(db)
                self.held["commits"] += 1
                for table in ("knobs", "commands"):
                    self.held[table] = db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]  # noqa: S608
                row = {**self.state, **state, "pid": os.getpid(), "heartbeat": time.time(), "held": self.held}
                put_state(db, row)
        except BaseException:
            self.held = before
            raise
        self.state |= state

    def commit(self, batch: Batch) -> None:
        """Everything in the batch, or nothing, on the disk when this returns. ValueError for rows that do not go on where the
        record ends, or do not have its columns."""
        if len(batch.rows) and (batch.first_step, batch.rows.shape[1]) != (self.step + 1, self.layout.width):
            raise ValueError(
                f"rows must begin at step {self.step + 1} with {self.layout.width} columns, "
                f"got step {batch.first_step} with {batch.rows.shape[1]}"
            )
        self.follow()
        rows, began, self.committed = batch.rows, self.committed, time.monotonic()
        if len(rows):
            self.trained += min(self.committed - began, PACE)
        chain, blocks, step = self.chain, self.blocks, self.step
        packed = self.layout.pack(rows) if len(rows) else None
        if packed:
            step, blocks = batch.first_step + len(rows) - 1, blocks + 1
            chain = link(chain, HEADER.pack(batch.first_step, *rows.shape), packed.data)

        def act(db: sqlite3.Connection) -> None:
            if packed:
                insert_block(db, self.layout, blocks, batch.first_step, len(rows), packed, chain)
            self.held["blocks"] = blocks
            for at, metrics, text in batch.evals:
                self.held["evals"] += 1
                row = {"id": self.held["evals"], "step": at, "metrics": json.dumps(dict(metrics)), "text": text}
                insert(db, "evals", row)
            for at, kind, arrays in batch.snapshots:
                id = insert(
                    db, "snapshots", {"step": at, "kind": kind, "at": self.trained, "data": pack_arrays(arrays)}
                )
                self.held["snapshots"] ^= snapshot_mark(id, at, kind)
            for knob, at in batch.applied:
                self.held["applied"] += 1
                insert(db, "applied", {"knob": knob, "step": at})
            for id, at, result in batch.acks:
                answer(db, id, at, result)
            if self.trained - self.thinned > 10:
                self.thinned = self.trained
                self.held["snapshots"] ^= thin_snapshots(db, self.trained)

        self.transact(act, step=step, **({"state": batch.state, "reason": batch.reason} if batch.state else {}))
        # From here on the batch is in the record. What a full or broken disk prevents now is done later, and the commit
        # does not fail.
        self.chain, self.blocks, self.step = chain, blocks, step
        self.after_commit()

    def after_commit(self) -> None:
        """The tip and the log. What fails waits for the next commit, and put_off says why."""
        try:
            self.write_tip()
            self._move_log()
            self.put_off = ""
        except (OSError, sqlite3.Error) as error:
            self.put_off = str(error)
            self.reopen(error)

    def write_tip(self) -> None:
        write_trained(self.tip, self.chain_of_run, self.held["commits"], self.step)

    def beat(self) -> None:
        """Write a heartbeat: the trainer is alive."""
        self.follow()
        self.transact()

    def follow(self) -> Path:
        """The run's folder at its present path. FolderGone if it is gone."""
        if (folder := self.present()) != self.folder:
            self._open_in(folder)
        return self.folder

    def present(self) -> Path:
        """The path that the run's folder has now; nothing is opened anew, so either thread may ask. FolderGone if it is gone."""
        if self._is_in(folder := self.folder):
            return folder
        found = path_of(self.place)
        if found is None or not self._is_in(found):
            raise FolderGone(
                f"the folder of run {folder.name}, or its record, was deleted or moved to another disk while it trained"
            )
        return found

    def _is_in(self, folder: Path) -> bool:
        return all(leads_to(folder / name, file) for name, file in self.files.items())

    def _open_in(self, folder: Path) -> None:
        """The same file by its new path: SQLite makes and removes the files beside it by name. The new connections open it
        before the old ones are closed, since closing the last connection would end the log."""
        opened = [connect(folder / "run.db", write=True) for _ in range(2)]
        try:
            for connection in opened:
                connection.execute("SELECT count(*) FROM state").fetchone()
        except sqlite3.Error:
            for connection in opened:
                connection.close()
            raise
        before, (self.db, self.guard) = (self.db, self.guard), opened
        for connection in before:
            connection.close()
        self.folder = self.rows.folder = folder

    def reopen(self, error: BaseException) -> None:
        """Fresh connections after a failure of the disk: one that could not undo what it had begun fails from then on, and
        keeps others from writing. After SQLITE_FULL the same one goes on."""
        if getattr(disk_error(error), "sqlite_errorname", "SQLITE_FULL") != "SQLITE_FULL":
            with contextlib.suppress(sqlite3.Error):
                self._open_in(self.folder)

    def asked(self) -> bool:
        """Whether the tip says that somebody has turned a knob or given a command that was not taken yet. It costs a tenth of
        pending(), but misses what could not be written into the tip: call pending() now and then in any case."""
        try:
            data = os.pread(self.tip, HALF.size, HALF.size)
        except OSError:
            return True
        if data == self.old:
            return False
        turns, commands = unpack(self.chain_of_run, "asked", data) or (0, 0)
        asked = turns > self.knob_seen or commands > self.command_seen
        self.old = self.old if asked else data
        return asked

    def pending(self) -> Pending:
        """Knob changes and commands that the trainer has not taken yet, in order. A damaged one is
        not obeyed, and readers of the record note the damage. If they cannot be read now, they are read later."""
        try:
            if self.read_from != (folder := self.folder):
                self.reader.close()
                self.reader, self.read_from = connect(folder / "run.db"), folder
            pending = self._read()
        except sqlite3.Error as error:
            self.unread = self.unread or time.monotonic()
            if time.monotonic() - self.unread > READ_FOR:
                raise damage_of(error, folder.name, self.step) or error from None
            return Pending([], [])
        self.unread = 0.0
        return pending

    def _read(self) -> Pending:
        newest = self.reader.execute("SELECT (SELECT max(id) FROM knobs), (SELECT max(id) FROM commands)").fetchone()
        knobs, commands = Pending([], [])
        if (newest[0] or 0) > self.knob_seen:
            knobs = self._pending_turns()
        if (newest[1] or 0) > self.command_seen:
            rows = self.rows.rows("commands", self.command_seen)
            commands = [Command(*(row[name] for name in COMMAND)) for row in rows]
        return Pending(knobs, commands)

    def _pending_turns(self) -> list[KnobChange]:
        rows = self.reader.execute(f"{TURNS} WHERE id >= ? ORDER BY id", (self.knob_seen,)).fetchall()
        before = rows.pop(0) if rows and rows[0][0] == self.knob_seen else None
        return [KnobChange(**dict(zip(TURN, row, strict=False)), step=None) for row in whole_turns(rows, {}, before)[0]]

    def turn(self, who: str, **knobs: float | str) -> None:
        """Turn knobs as anyone may; pending() then has them. For the training thread, on a connection of its own."""
        run = Run(self.present())
        try:
            run.turn(who, knobs)
        finally:
            run.close()

    def decide(self, who: str, seen: int, given: Collection[str], values: Mapping[str, float]) -> None:
        """Turn knobs to values that were decided from the `given` knobs, as they were after the turn with row id `seen`.

        If one of the given knobs has been turned since, nothing is turned: the later turn counts.
        """
        run = Run(self.present())

        def act(db: sqlite3.Connection) -> int:
            unseen = {name for (name,) in db.execute("SELECT name FROM knobs WHERE id > ?", (seen,))}
            return 0 if unseen.intersection(given) else insert_turns(db, run.started_knobs, values, who)

        try:
            if id := run.write(act):
                raise_asked(self.folder, self.chain_of_run, turns=id)
        finally:
            run.close()

    def note(self, notes: Sequence[str]) -> None:
        """Write the notes of this trainer's resume into the record."""
        result = json.dumps({**self.how, "notes": list(notes)})
        self.transact(lambda db: answer(db, self.resumed, self.step, result))

    def make_ballast(self) -> bool:
        return make_ballast(self.folder)

    def drop_ballast(self) -> bool:
        return drop_ballast(self.folder)

    def finish(self, state: str, error: str = "") -> str:
        """Write how the run ended, seal its file, let go of the lock. Returns why that is not in the record, or ""."""
        try:
            self.follow()
            self.drop_ballast()
            problem = self._write_end(state, error)
            for connection in (self.reader, self.guard):
                connection.close()
            if seal(self.db, SEAL_FOR):
                (self.folder / "run.db-shm").unlink(missing_ok=True)  # of a folder that was renamed, SQLite leaves it
        except FolderGone:
            problem = ""  # it was reported, and there is no record left to write it into
        self.let_go()
        os.close(self.lock)
        return problem

    def _write_end(self, state: str, error: str) -> str:
        problem = ""
        for at in range(END_TRIES):
            time.sleep(0.1 * at)
            try:
                self.transact(state=state, reason=error)
                self.after_commit()
                return ""
            except sqlite3.Error as failure:
                why = "the disk is full" if no_room(failure, self.folder) else str(failure)
                problem = f"the record does not say how the run ended: {why}"
                self.reopen(failure)
        log_problem(self.folder, f"{state}: {error}" if error else state)
        return problem

    def let_go(self) -> None:
        """Close everything but the lock."""
        for name in ("reader", "guard", "db"):
            if hasattr(self, name):
                getattr(self, name).close()
        for name in ("tip", "place"):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def _move_log(self) -> None:
        """Move the log into the database once it has grown by WAL_PAGES. Nobody else does that, and nobody commits
        meanwhile.

        A reader may keep part of it from moving. It is then tried again when the log has grown by as much again, not at
        each commit.
        """
        log, pages = log_pages(self.folder / "run.db-wal")
        before = self.moved[1] if self.moved[0] == log else 0
        if pages - before >= WAL_PAGES:
            with writing(self.guard):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self.moved = log, pages


def log_pages(wal: Path) -> tuple[bytes, int]:
    """Which log a -wal file holds, by its salt, and how many pages are in it.

    Not by the file's size: a log that was moved begins again at the front, and pages of the last one stay behind
    it. Pages of the present one have its salt (sqlite.org/walformat.html), and all come before those that have not.
    """
    try:
        file = os.open(wal, os.O_RDONLY | OURS)
    except FileNotFoundError:
        return b"", 0
    try:
        header = os.pread(file, 32, 0)
        salt, page = header[16:24], int.from_bytes(header[8:12]) + 24
        if len(header) < 32:
            return b"", 0
        last = (os.fstat(file).st_size - 32) // page
        return salt, bisect.bisect_left(range(last), True, key=lambda at: os.pread(file, 8, 40 + at * page) != salt)
    finally:
        os.close(file)

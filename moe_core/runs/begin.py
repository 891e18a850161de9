"""How a trainer opens a run to write: it creates a new one, or reopens one whose trainer has ended."""

import contextlib
import json
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from moe_core.runs.apart import APART, PAGE
from moe_core.runs.codec import START, link, pack_arrays
from moe_core.runs.database import MIGRATIONS, StoreError, hold_lock, writing
from moe_core.runs.identity import identity_of
from moe_core.runs.limits import read_json
from moe_core.runs.room import drop_ballast, make_ballast, no_room
from moe_core.runs.rows import RESUMED
from moe_core.runs.sums import answer, count, insert, put_state, statements
from moe_core.runs.tip import begin_tip, write_asked
from moe_core.runs.writer import STARTING, RunWriter
from moe_core.schema import (
    STAT,
    STATS,
    Config,
    Description,
    Knobs,
    as_dict,
    columns_of,
    describe,
    probe_kind,
    stats_of_ranks,
    to_json,
)


def create_run(
    folder: Path,
    config: Config,
    knobs: Knobs,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    probe: Mapping[str, NDArray[Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    script: Sequence[tuple[int, str, float | str]] = (),
    ranks: int = 1,
) -> RunWriter:
    """A new run's folder, locked, with its row written. StoreError if the folder is in use already.

    labels: the names of each label's values; probe: the fixed batch as a person sees it; facts: what sums depend on
    beside config and knobs (device, threads, versions); script: knob changes to come, as (step, knob, value);
    ranks: how many processes train it.
    """
    description = describe(config, knobs, probe_kind(probe or {}), stats_of_ranks(ranks))
    own = {"config": as_dict(config), "knobs": as_dict(knobs), "script": [list(entry) for entry in script]}
    return create_record(folder, description, labels=labels, probe=probe, facts=facts, own=own)


def create_record(
    folder: Path,
    description: Description,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    probe: Mapping[str, NDArray[Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] = {},
) -> RunWriter:
    """A new record of whatever is described, whoever writes it. Its rows have a column for each statistic of
    description.measures, or, where it names none, for every one that is stored, in the order of schema.columns_of().

    labels, probe, facts: as in create_run(); own: what only our trainer reads. ValueError, and nothing is written, for a
    description that no reader would take; StoreError if the folder is in use already.
    """
    if unknown := [name for name in description.measures if name not in STAT or not STAT[name].stored]:
        stored = ", ".join(stat.name for stat in STATS if stat.stored)
        raise ValueError(f"measures must be of {stored}, got {', '.join(unknown)}")
    columns = columns_of(description.experts, description.measures or None)
    about = {
        "description": to_json(description),
        "layout": [list(column) for column in columns],
        "apart": columns[-1].start + columns[-1].width >= APART,
        "labels": {name: list(values) for name, values in (labels or {}).items()},
        "facts": dict(facts or {}),
        **own,
    }
    # What cannot be read must not be written.
    identity_of(read_json(json.dumps(about), finite=False), columns, probe or {})
    is_new = not folder.exists()
    lock = make_file(folder, about, probe or {})
    try:
        return RunWriter(folder, lock)
    except BaseException:
        for path in (*folder.glob("run.*"), folder / "ballast"):
            path.unlink(missing_ok=True)
        os.close(lock)
        if is_new:
            shutil.rmtree(folder)
        raise


def make_file(
    folder: Path,
    about: Mapping[str, Any],
    probe: Mapping[str, NDArray[Any]],
    fill: Callable[[sqlite3.Connection], None] = lambda db: None,
) -> int:
    """A new run's file, with the rows that `fill` adds. Returns the handle of the run's lock; if anything fails, nothing is
    left behind."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.db").exists():
            raise StoreError(f"run {folder.name} exists already in {folder.parent}; choose another name")
        lock = hold_lock(folder)
    except OSError as error:
        raise StoreError(f"cannot make run folder {folder}: {error.strerror}") from None
    except StoreError:
        if is_new:
            folder.rmdir()
        raise
    about_text = json.dumps({"id": folder.name, "created": time.time(), **about})
    probe_data = pack_arrays(probe)
    # Made whole under another name: a run.db that exists is a run.
    temporary = folder / "run.db.new"
    temporary.unlink(missing_ok=True)
    db = None
    try:
        require_room(folder)
        db = sqlite3.connect(temporary, isolation_level=None)
        if about.get("apart"):
            db.execute(f"PRAGMA page_size = {PAGE}")
        with writing(db):  # all in one: each transaction waits for the disk four times
            for migration in MIGRATIONS:
                for statement in statements(migration):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            chain = link(START, about_text, probe_data)
            db.execute("INSERT INTO run VALUES (1, ?, ?, ?)", (about_text, probe_data, chain))
            db.execute("INSERT INTO state (id, state, step, reason, pid, heartbeat) VALUES (1, '', 0, '', 0, 0.0)")
            fill(db)
            step = db.execute("SELECT coalesce(max(first + n - 1), 0) FROM blocks").fetchone()[0]
            held = count(db)
            put_state(db, {**STARTING, "step": step, "pid": os.getpid(), "heartbeat": time.time(), "held": held})
            begin_tip(folder, chain, step, held["knobs"])
        db.close()
        os.rename(temporary, folder / "run.db")
    except BaseException as error:
        if db:
            db.close()
        os.close(lock)
        temporary.unlink(missing_ok=True)
        drop_ballast(folder)
        if is_new:
            shutil.rmtree(folder)
        if no_room(error, folder if folder.exists() else folder.parent):
            raise StoreError(f"cannot make run folder {folder}: the disk is full") from None
        if isinstance(error, OSError | sqlite3.Error):
            raise StoreError(f"cannot make run folder {folder}: {getattr(error, 'strerror', None) or error}") from None
        raise
    return lock


def require_room(folder: Path) -> None:
    """Make the ballast, without which no run begins or goes on. StoreError if the disk has no room for it."""
    if not make_ballast(folder):
        raise StoreError(
            f"the disk of {folder.parent} has no room for a run; free some space, or choose another --runs"
        )


def resume_run(
    folder: Path,
    lock: int,
    who: str,
    steps: int,
    notes: Sequence[str] = (),
    moved: Mapping[str, Any] = {},
    ranks: Mapping[str, int] | None = None,
    since: float = math.inf,
) -> RunWriter:
    """Go on with a run whose trainer is gone. lock: as hold_lock gave it; steps: how many it is to have in all; moved:
    the present paths of its data (text or data); ranks: how the experts are dealt from now on, if there are several ranks; since: when
    this trainer was started, in seconds since 1970.

    Commands that the old trainer had not carried out are answered, not obeyed: yesterday's stop must not stop the run today. A stop
    that was asked while this trainer started is for it.
    Knob changes that it had not applied take effect in the next step.
    """
    require_room(folder)
    writer = RunWriter(folder, lock)
    try:
        how = {"steps": steps, **({"ranks": dict(ranks)} if ranks else {}), **moved}
        return _record_resume(writer, who, how, notes, since)
    except (OSError, sqlite3.Error) as error:
        writer.let_go()
        raise StoreError(f"run {folder.name} cannot be resumed: {error}") from error


def _record_resume(
    writer: RunWriter, who: str, how: Mapping[str, Any], notes: Sequence[str], since: float
) -> RunWriter:
    row = {"name": RESUMED, "who": who, "at": time.time(), "step": writer.step}

    def act(db: sqlite3.Connection) -> None:
        stops = []
        for command, name, asker, at in db.execute(
            "SELECT id, name, who, at FROM commands WHERE step IS NULL"
        ).fetchall():
            ours = name == "stop" and at >= since
            stops += [{"name": name, "who": asker, "at": at}] if ours else []
            words = "asked again: the trainer was starting" if ours else "not obeyed: the trainer had ended"
            answer(db, command, writer.step, words)
        writer.how, result = how, json.dumps({**how, "notes": list(notes)})
        writer.resumed = writer.command_seen = insert(db, "commands", {**row, "result": result})
        for stop in stops:
            insert(db, "commands", stop)
        writer.knob_seen = db.execute("SELECT max(knob) FROM applied").fetchone()[0] or 0

    writer.transact(act, state="starting", reason="", step=writer.step)
    writer.after_commit()
    # The old tip is not needed to notice lost steps any more: resume() has put a note of them into the record.
    with contextlib.suppress(OSError):
        write_asked(writer.tip, writer.chain_of_run, writer.held["knobs"], writer.held["commands"])
    return writer

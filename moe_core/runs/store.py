"""The record of a run as everyone but its trainer sees it: read through `Run`, which adds rows of two kinds only, knob
changes and commands. A trainer writes through `RunWriter` (runs/writer.py).
"""

import json
import math
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.ablation import Ablation, read_ablation
from moe_core.runs.codec import HEADER, START, link, unpack_arrays, unpack_rows
from moe_core.runs.database import (
    MIGRATIONS,
    OBJECTS,
    StoreError,
    connect,
    expected_objects,
    is_alive,
    plainly,
    strange_files,
    writing,
)
from moe_core.runs.log import last_problem
from moe_core.runs.measuring import Measured, bench_file, measured
from moe_core.runs.room import size_of
from moe_core.runs.rows import COMMANDS, ENDED, RESUMED, STATES, Block, Command, Eval, KnobChange, Parent, Status
from moe_core.runs.series import thin
from moe_core.runs.statistics import DERIVED, derive
from moe_core.runs.turns import checked, insert_turns, knobs_after
from moe_core.schema import STAT, TOGETHER, Column, Config, Knobs, from_dict, layout

# What a file of a stranger may make a reader take in at once.
ABOUT, PROBE, COLUMNS = 16 << 20, 64 << 20, 1 << 20
SETTINGS = """SELECT about, probe, chain FROM run WHERE typeof(about) = 'text' AND typeof(probe) = 'blob'
              AND length(about) <= ? AND length(probe) <= ?"""
STANDS = """SELECT state, step, reason, pid, heartbeat FROM state WHERE typeof(state) = 'text' AND typeof(step) = 'integer'
            AND typeof(reason) = 'text' AND length(reason) < 1000000 AND typeof(pid) = 'integer' AND typeof(heartbeat) = 'real'"""
LATELY = 200  # steps by which it is said how fast a record grows
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
        if strange := strange_files(folder):
            raise StoreError(
                f"run {folder.name} is refused: its {strange[0]} is no plain file; do not trust this folder"
            )
        if not self._file.is_file():
            raise StoreError(f"{folder} is not a run: it has no run.db; list the runs with `python -m moe_core runs`")
        self._local, self._open, self._guard = threading.local(), list[sqlite3.Connection](), threading.Lock()
        try:
            self._check_schema()
            found = self.query(SETTINGS, (ABOUT, PROBE))
            if not found or link(START, *found[0][:2]) != found[0][2]:
                raise StoreError(f"run {folder.name} is damaged: its settings are not what was written")
            self.about: dict[str, Any] = json.loads(found[0][0])
            self.config, self.started_knobs = (
                from_dict(Config, self.about["config"]),
                from_dict(Knobs, self.about["knobs"]),
            )
            for session in self.sessions():
                self.config = replace(self.config, **as_gone_on(session))
            origin = self.about.get("parent")
            self.parent = Parent(str(origin["run"]), int(origin["step"])) if origin else None
            # What `train --script` was given: (step, knob, value), in order.
            self.script = [(int(step), str(name), value) for step, name, value in self.about.get("script", ())]
            self.layout = read_layout(self.about["layout"])
            self.labels = {str(name): [str(value) for value in values] for name, values in self.about["labels"].items()}
            self.facts: dict[str, Any] = {**self.about["facts"], "created": finite(self.about["created"])}
        except StoreError:
            self.close()
            raise
        except (
            sqlite3.Error,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            self.close()
            raise StoreError(f"run {folder.name} cannot be read: {error}") from None
        self.id: str = folder.name
        self.columns = max((c.start + c.width for c in self.layout), default=0)

    def _check_schema(self) -> None:
        """A file of a stranger is not trusted: it may hold our tables and indexes and nothing else."""
        found = plainly(self.query(OBJECTS))
        if foreign := sorted({name for _, name, *_ in found - expected_objects()}):
            raise StoreError(
                f"run {self.path.name} holds what is not ours ({', '.join(foreign)[:80]}); do not trust this file"
            )
        version = self.query("PRAGMA user_version")[0][0]
        if version > len(MIGRATIONS):
            raise StoreError(f"run {self.path.name} was made by a later version of MoEscope; upgrade to read it")
        if found != expected_objects():
            raise StoreError(f"run {self.path.name} lacks tables of a run; its file is damaged")

    def query(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """One SELECT, fetched whole."""
        db = getattr(self._local, "db", None)
        try:
            if db is None:
                db = self._local.db = connect(self._file, limit=self.limit)
                with self._guard:
                    self._open.append(db)
            return list(db.execute(sql, values).fetchall())
        except sqlite3.Error as error:
            raise StoreError(f"run {self.path.name} cannot be read: {error}") from None

    def write(self, act: Callable[[sqlite3.Connection], int]) -> int:
        """One short transaction on a connection of its own."""
        try:
            db = connect(self._file, write=True)
            try:
                with writing(db):
                    return act(db)
            finally:
                db.close()
        except sqlite3.Error as error:
            raise StoreError(f"run {self.id} cannot be written: {error}") from error

    def check_layout(self) -> None:
        """StoreError if this version measures other statistics than the run holds, so that nothing can be appended."""
        if self.layout != layout(self.config.layers, self.config.num_experts):
            version = self.facts.get("versions", {}).get("moescope", "another")
            raise StoreError(
                f"run {self.id} was recorded with other statistics, by version {version}, and cannot be gone on with; "
                f"replay it, or train anew from its exported script"
            )

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
        state, step, reason, pid, heartbeat = self._stands()
        if state not in ENDED and not is_alive(self.path):
            state, step, reason, pid, heartbeat = self._stands()  # it may have ended between the two looks
            if state not in ENDED:
                state, reason = "interrupted", last_problem(self.path, heartbeat)
        return Status(state, step, reason, time.time() - heartbeat, pid)

    def _stands(self) -> tuple[str, int, str, int, float]:
        rows = self.query(STANDS)
        if not rows or rows[0][0] not in STATES or not math.isfinite(rows[0][4]):
            raise StoreError(f"run {self.path.name} is damaged: its state is none that a trainer wrote")
        found: tuple[str, int, str, int, float] = rows[0]
        return found

    def steps(self) -> tuple[int, int]:
        """The first and last committed step; (0, 0) when there is none."""
        ends = self.query(
            """SELECT (SELECT CAST(first AS INTEGER) FROM blocks ORDER BY id LIMIT 1),
                      (SELECT CAST(first + n - 1 AS INTEGER) FROM blocks ORDER BY id DESC LIMIT 1)"""
        )
        return ends[0][0] or 0, ends[0][1] or 0

    @property
    def knobs(self) -> Knobs:
        """Where every knob stands: the start, and all turns since, taken effect or not."""
        return knobs_after(self.started_knobs, self.knob_changes())

    def knobs_at(self, step: int) -> Knobs:
        """The knobs that acted in a step; for 0, those that the run started with."""
        return knobs_after(self.started_knobs, self.knob_changes(), step)

    def knob_changes(self) -> list[KnobChange]:
        return [KnobChange(*row) for row in self.query(KNOB_CHANGES, (0,))]

    def commands(self) -> list[Command]:
        return [Command(*row) for row in self.query(ALL_COMMANDS, (0,))]

    def sessions(self) -> list[dict[str, Any]]:
        """Each time that the run was resumed: who, when, after which step, its new number of steps, and notes."""
        rows = self.query("SELECT who, at, step, result FROM commands WHERE name = ? ORDER BY id", (RESUMED,))
        return [{"who": who, "when": at, "step": step, **json.loads(result)} for who, at, step, result in rows]

    def evals(self, after: int = 0) -> list[Eval]:
        """Evaluations whose id is beyond `after`."""
        rows = self.query("SELECT id, step, metrics, text FROM evals WHERE id > ? ORDER BY id", (after,))
        try:
            return [Eval(id, int(step), numbers(metrics), text) for id, step, metrics, text in rows]
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise StoreError(f"run {self.id} is damaged: an evaluation is none ({error})") from None

    def probe(self) -> dict[str, NDArray[Any]]:
        """The fixed probe batch as a person sees it."""
        return unpack_arrays(self.query("SELECT probe FROM run")[0][0])

    def snapshots(self, kind: str = "probe") -> NDArray[np.int64]:
        """The steps of which there is a snapshot."""
        rows = self.query("SELECT step FROM snapshots WHERE kind = ? ORDER BY step", (kind,))
        return np.array([row[0] for row in rows], np.int64)

    def snapshot(self, step: int | None = None, kind: str = "probe") -> tuple[int, dict[str, NDArray[Any]]] | None:
        """The last snapshot at or before step (of all, if None), with its own step; None if there is none."""
        rows = self.query(
            "SELECT step, data FROM snapshots WHERE kind = ? AND step <= ? ORDER BY step DESC, id DESC LIMIT 1",
            (kind, 2**62 if step is None else step),
        )
        return (rows[0][0], unpack_arrays(rows[0][1])) if rows else None

    def blocks(self, after: int = 0, first: int | None = None, last: int | None = None, most: int = -1) -> list[Block]:
        """Blocks whose id is beyond `after` and that touch [first, last], each checked against its link of the chain.

        most: how many at once, -1 being all. StoreError if one is not what was written, is missing, or is out of its place.
        """
        # Steps and ids rise together, so the index on steps leads to the ids and no other block is looked at.
        holding = "SELECT id FROM blocks WHERE first <= ? ORDER BY first DESC LIMIT 1"
        if first is not None and (found := self.query(holding, (first,))):
            after = max(after, found[0][0] - 1)
        end = 2**62
        if last is not None:
            end = next((row[0] for row in self.query(holding, (last,))), 0)
        rows = self.query(
            """SELECT id, first, n, columns, data, chain FROM blocks
               WHERE id > ? AND id <= ? AND first + n > ? ORDER BY id LIMIT ?""",
            (after, end, 0 if first is None else first, most),
        )
        if not rows:
            return []
        before = self.query("SELECT first + n, chain FROM blocks WHERE id = ?", (rows[0][0] - 1,))
        if not before and rows[0][0] > 1:
            raise StoreError(f"run {self.id} is damaged: block {rows[0][0] - 1} is missing")
        next_step, chain = before[0] if before else (rows[0][1], self.query("SELECT chain FROM run")[0][0])
        blocks = []
        for number, (id, start, n, columns, data, kept) in enumerate(rows, rows[0][0]):
            try:
                chain = link(chain, HEADER.pack(start, n, columns), data)
                if id != number or start != next_step or chain != kept or columns != self.columns:
                    raise ValueError("it is another")
                blocks.append(Block(id, start, unpack_rows(data, n, columns)))
            except (ValueError, TypeError, struct.error):
                raise StoreError(
                    f"run {self.id} is damaged: block {number} (from step {next_step}) is not what was written"
                ) from None
            next_step = start + n
        return blocks

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """(n, C) of the steps from first to last, both included; StoreError if they are not all there."""
        blocks = self.blocks(first=first, last=last)
        if not blocks or blocks[0].first > first or blocks[-1].first + len(blocks[-1].rows) <= last:
            raise StoreError(f"run {self.id} has no record of all steps from {first} to {last}")
        start = first - blocks[0].first
        return np.concatenate([block.rows for block in blocks])[start : start + last - first + 1]

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

    def ablation(self) -> Ablation | None:
        """What `ablate` measured last; None if it has not."""
        return read_ablation(self.path)

    def throughput_file(self) -> Path:
        """Where the throughput of a layer of this run's shape is measured to."""
        device, threads = str(self.facts.get("device", "cpu")), int(self.facts.get("threads", 1) or 1)
        return bench_file(self.path.parent, self.config, self.knobs.k, device, threads)

    def throughput(self) -> Measured:
        """Tokens a second by batch size, as far as it was measured."""
        return measured(self.throughput_file())

    def size(self) -> int:
        """Bytes that the run takes on the disk: record, checkpoints and all."""
        return size_of(self.path)

    def growth(self) -> float:
        """Bytes an hour by which the record of a run that trains grows, by its last steps; else 0.

        Snapshots are thinned and the log is moved into the file again and again, so what stays is mostly the blocks.
        """
        last = self.steps()[1]
        if not last or self.state != "training":
            return 0.0
        _, seconds = self.history("seconds", first=last - LATELY)
        taken, steps = self.query(
            """SELECT sum(length(data) + 64), sum(n) FROM blocks
               WHERE id >= (SELECT id FROM blocks WHERE first <= ? ORDER BY first DESC LIMIT 1)""",
            (max(1, last - LATELY),),
        )[0]
        return 3600 * taken / (steps * max(float(seconds.mean()), 1e-9)) if taken else 0.0

    # What anyone may ask of it

    def turn(self, who: str = "script", **knobs: float | str) -> int:
        """Turn one or more knobs: each takes effect at the top of the trainer's next step. The last row's id.

        ValueError, and nothing is turned, if one of them is unknown or out of range.
        """
        if not knobs:
            raise StoreError("turn needs a knob, for example turn(noise=0.5)")
        # Where the others stand is read only where it matters: a drag turns 20 times a second.
        values = checked(self.config, knobs, self.knobs if TOGETHER & knobs.keys() else None)
        return self.write(lambda db: insert_turns(db, self.started_knobs, values, who))

    def command(self, name: str, who: str = "script") -> int:
        """Ask the trainer to pause, resume, step, stop or checkpoint. The row's id."""
        if name not in COMMANDS:
            raise StoreError(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
        insert = "INSERT INTO commands (name, who, at) VALUES (?, ?, ?)"
        return self.write(lambda db: int(db.execute(insert, (name, who, time.time())).lastrowid or 0))


def as_gone_on(session: Mapping[str, Any]) -> dict[str, Any]:
    """What a session changed of the run's settings: its steps in all, and where its data lie."""
    changed: dict[str, Any] = {"steps": int(session["steps"])}
    if "data" in session:
        changed["data"] = str(session["data"])
    if "text" in session:
        changed["text"] = tuple(str(path) for path in session["text"])
    return changed


def read_layout(told: Any) -> list[Column]:
    """The columns that a run says it has, one behind the other; ValueError or TypeError if they are none."""
    columns = [Column(str(stat), int(layer), int(start), int(width)) for stat, layer, start, width in told]
    ends = [0, *(c.start + c.width for c in columns)]
    if any(c.start != end or c.width < 1 for c, end in zip(columns, ends, strict=False)) or ends[-1] > COLUMNS:
        raise ValueError("its layout is none")
    return columns


def finite(told: Any) -> float:
    value = float(told)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no time")
    return value


def numbers(told: str) -> dict[str, float]:
    """The metrics of an evaluation."""
    return {str(name): float(value) for name, value in json.loads(told).items()}


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

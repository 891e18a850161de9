"""The record of a run as everyone but its trainer sees it: read through `Run`, which adds rows of two kinds only, knob
changes and commands. A trainer writes through `RunWriter` (runs/writer.py).
"""

import math
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.ablation import Ablation, read_ablation
from moe_core.runs.apart import Layout
from moe_core.runs.blocks import Blocks
from moe_core.runs.checked import CheckedRows, State
from moe_core.runs.codec import unpack_arrays
from moe_core.runs.columns import read_layout
from moe_core.runs.database import StoreError, is_alive, seal_unsealed
from moe_core.runs.file import File
from moe_core.runs.identity import changed_by, deals_of, identity_of, read_time, threads_of, version_of
from moe_core.runs.limits import REASON, read_json
from moe_core.runs.log import last_problem
from moe_core.runs.measuring import NOTHING_MEASURED, Measured, bench_file, measured
from moe_core.runs.notes import read_notes
from moe_core.runs.on_devices import on_devices
from moe_core.runs.room import size_of
from moe_core.runs.rows import (
    COMMANDS,
    ENDED,
    RESUMED,
    STATES,
    Block,
    Command,
    Eval,
    KnobChange,
    Parent,
    Status,
    evaluation,
    fits,
)
from moe_core.runs.series import thin
from moe_core.runs.source import Source
from moe_core.runs.statistics import OF_DEVICES, Deal, Off, measured_by, off_spans
from moe_core.runs.sums import SUMMED, insert
from moe_core.runs.tip import raise_asked
from moe_core.runs.turns import as_knobs, check_changes, check_declared, insert_turns, knobs_after
from moe_core.schema import RENAMED, STAT, TOGETHER, Config, KnobValues, columns_of, measured_in, shortened

COMMAND = ("id", "name", "who", "at", "step", "result")
GROWTH_STEPS = 200  # the last steps, by which growth() measures
# What reading a record may raise that is not as a trainer writes it.
UNREADABLE = (sqlite3.Error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class Run:
    """A run as everyone but its trainer sees it. Safe to share between threads: each has a connection of its own."""

    options: Mapping[str, Any] = MappingProxyType({})  # as a Source: a run by itself has no choices of a page,
    others: Sequence[Source] = ()  # and no runs laid over it

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.path, self.id = folder, folder.name
        self._off: tuple[list[KnobChange], tuple[Off, ...]] | None = None  # the turns of `off`, and their spans
        self.file = File(folder, limit)
        self.query, self.write = self.file.query, self.file.write
        try:
            self.file.check_schema()
            about, probe, self.chain = self.file.settings()
            self.checked = CheckedRows(folder, self.query, self.chain)
            self.about: dict[str, Any] = read_json(about, finite=False)
            origin = self.about.get("parent")
            self.parent = Parent(str(origin["run"]), int(origin["step"])) if origin else None
            # What `train --script` was given: (step, knob, value), in order.
            self.script = [(int(step), str(name), value) for step, name, value in self.about.get("script", ())]
            self.layout = read_layout(self.about["layout"])
            self._config, self.started_knobs, self.description = identity_of(
                self.about, self.layout, unpack_arrays(probe)
            )
            for session in self.sessions():
                self._apply_session(changed_by(session))
            self.labels = {str(name): [str(value) for value in values] for name, values in self.about["labels"].items()}
            self.facts: dict[str, Any] = {**self.about["facts"], "created": read_time(self.about["created"])}
        except StoreError:
            self.close()
            raise
        except UNREADABLE as error:
            self.close()
            why = f"its settings have no {error}" if isinstance(error, KeyError) else error
            raise StoreError(f"run {folder.name} cannot be read: {why}") from None
        self.stored = Layout(self.layout, self.about.get("apart") is True)
        self.columns = self.stored.width
        self.on_devices = partial(on_devices, folder, len(self.description.layers))
        self._blocks = Blocks(self.query, self.checked, self.stored)
        self.readable = self._blocks.readable
        if os.path.lexists(folder / "run.db-wal") and not self.damage:
            self._seal_if_ended()

    @property
    def name(self) -> str:
        return read_notes(self.path).name or self.id

    @property
    def config(self) -> Config:
        """The settings that our trainer trains this run with. StoreError for a run that it cannot train."""
        if self._config is None:
            ours = self.description.origin == "trained"
            why = "with knobs or settings that this version does not know" if ours else "by another program"
            raise StoreError(
                f"run {self.id} was recorded {why} (version {version_of(self.facts)}): it can be viewed and exported, but only the "
                f"program that recorded it can train it"
            )
        return self._config

    @property
    def trainable(self) -> bool:
        """Whether this version's trainer can train the run."""
        return self._config is not None

    def _apply_session(self, changed: dict[str, Any]) -> None:
        """Take in what a session changed of the run's settings."""
        self._config = self._config and replace(self._config, **changed)
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
        self.description = replace(self.description, settings={**self.description.settings, **plain})

    def _seal_if_ended(self) -> None:
        state = self.checked.check_end()
        if state and state.state in ENDED and not self.damage:
            self.close()
            seal_unsealed(self.path)

    def check_layout(self) -> None:
        """StoreError if the run holds a statistic that this version does not measure, so that nothing can be appended. One that is
        newer than the run is not needed: a run keeps the columns that it began with."""
        names = [name for name in measured_in(self.layout) if name in STAT and STAT[name].stored]
        if self.layout != columns_of(self.description.experts, names):
            raise StoreError(
                f"run {self.id} was recorded with other statistics, by version {version_of(self.facts)}, and cannot be resumed; "
                f"replay it, or train anew from its exported script"
            )

    def close(self) -> None:
        """Let go of the file, so that it can be sealed. A later read opens it again."""
        self.file.close()

    # State and damage

    @property
    def damage(self) -> list[str]:
        """The damage in all that was read so far, a line each. The rest can be read."""
        return [f"run {self.id} is damaged: {line}" for line in list(self.checked.damage.values())]

    def look_over(self) -> list[str]:
        """Read everything that is small, so that `damage` lists what is wrong with it: all but blocks, snapshots and
        checkpoints."""
        self.status()
        self.evals()
        self.knob_changes()
        self.commands()
        self.snapshots()
        return self.damage

    def check_turns(self) -> None:
        """StoreError if the knob changes are not all what was written, so that no training can follow them."""
        self.knob_changes()
        if lines := [line for name, line in self.checked.damage.items() if name in ("knobs", "applied")]:
            raise StoreError(f"run {self.id} is damaged, and cannot be resumed, forked or replayed: {lines[0]}")

    @property
    def state(self) -> str:
        """starting, training, paused, finished, stopped, failed; interrupted if the trainer ended without writing its
        state."""
        return self.status().state

    def status(self) -> Status:
        row = self._read_state()
        if row.state not in ENDED and not is_alive(self.path):
            row = self._read_state()  # the trainer may have ended between the two reads
            if row.state not in ENDED:
                reason = row.reason if self.damage else last_problem(self.path, row.heartbeat)
                row = row._replace(state="interrupted", reason=reason)
        reason = shortened(row.reason, REASON)
        return Status(row.state, row.step, reason, time.time() - row.heartbeat, row.pid)

    def _read_state(self) -> State:
        """The state's row as the trainer wrote it; if that is damaged, one derived from the blocks."""
        row = self.checked.check_end()
        if row is None and self.checked.version() >= SUMMED:
            return State("training", self._blocks.ends()[1], self.checked.damage["state"], 0, time.time(), {})
        if row is None or row.state not in STATES or not math.isfinite(row.heartbeat):
            raise StoreError(f"run {self.path.name} is damaged: its state is not one that a trainer writes")
        return row

    def steps(self) -> tuple[int, int]:
        """The first and last committed step; (0, 0) when there is none."""
        state, (first, last) = self.checked.state(), self._blocks.ends()
        if state and last > state.step and (state := self.checked.state()) and last > state.step:
            last = state.step  # no commit came in between, so the last block's header is damaged
        return first, last

    @property
    def knobs(self) -> KnobValues:
        """Every knob's latest value: of its last turn, whether it took effect yet or not, or of the start."""
        return knobs_after(self.started_knobs, self.knob_changes())

    def knobs_at(self, step: int) -> KnobValues:
        """The knobs in force in a step; for 0, those that the run started with."""
        return knobs_after(self.started_knobs, self.knob_changes(), step)

    def knob_changes(self) -> list[KnobChange]:
        """Every turn, in order. Left out are rows of earlier versions that turned a knob to the value that it had, and
        turns of knobs that the run does not declare."""
        turns = [change for change in self.checked.turns() if change.value != change.previous]
        return [change for change in turns if change.name in self.description.knobs]

    def commands(self) -> list[Command]:
        return [Command(*(row[name] for name in COMMAND)) for row in self.checked.rows("commands")]

    def sessions(self) -> list[dict[str, Any]]:
        """Each time that the run was resumed, if it says after which step: who, when, that step, its new number of steps, notes."""
        resumed = (command for command in self.commands() if command.name == RESUMED and type(command.step) is int)
        return [{**read_json(c.result or ""), "who": c.who, "when": c.when, "step": c.step} for c in resumed]

    @property
    def deals(self) -> tuple[Deal, ...]:
        """How many ranks trained the run from which step on, and how its experts were dealt to them; nothing if that is damaged."""
        sessions = self.sessions()
        return () if "commands" in self.checked.damage else deals_of(self.about, sessions)

    def evals(self, after: int = 0) -> list[Eval]:
        """Evaluations whose id is beyond `after`."""
        experts, rows = self.description.experts, self.checked.rows("evals", after)
        try:
            return [
                evaluation(experts, row["id"], row["step"], read_json(row["metrics"], finite=False), row["text"])
                for row in rows
            ]
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise StoreError(f"run {self.id} is damaged: an evaluation is not valid ({error})") from None

    def probe(self) -> dict[str, NDArray[Any]]:
        """The fixed probe batch as a person sees it."""
        return unpack_arrays(self.file.settings()[1])

    def snapshots(self, kind: str = "probe") -> NDArray[np.int64]:
        """The steps of which there is a snapshot."""
        return np.array([step for step, _ in self.checked.snapshots(kind)], np.int64)

    def snapshot(self, step: int | None = None, kind: str = "probe") -> tuple[int, dict[str, NDArray[Any]]] | None:
        """The last snapshot at or before step (of all, if None), with its own step; None if there is none. One that is
        damaged, or not of this run's layers, is passed over."""
        for at, id in reversed(self.checked.snapshots(kind)):
            arrays = self.checked.snapshot(id) if step is None or at <= step else None
            if arrays is not None and fits(kind, arrays, self.description.experts):
                return at, arrays
        return None

    def blocks(
        self, after: int = 0, first: int | None = None, last: int | None = None, most: int = -1, part: int | None = None, gaps: bool = False
    ) -> list[Block]:  # fmt: skip
        """Blocks whose id is beyond `after` and that touch [first, last], each checked against its link of the chain.

        most: how many at once, -1 being all; with `gaps` there may be some more. part: as stored.part() has it, whose columns alone are
        read, in the layout stored.of(part). StoreError if one is not what was written, is missing, or out of place; with `gaps` that is noted
        in `damage`, its steps are NaN, and those at the end are left out.
        """
        return self._blocks.read(after, first, last, most, part, gaps)

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """(n, C) of the steps from first to last, both included; StoreError if they are not all there."""
        blocks = self.blocks(first=first, last=last)
        if not blocks or blocks[0].first > first or blocks[-1].first + len(blocks[-1].rows) <= last:
            raise StoreError(f"run {self.id} has no record of all steps from {first} to {last}")
        start = first - blocks[0].first
        return np.concatenate([block.rows for block in blocks])[start : start + last - first + 1]

    def history(
        self, stat: str, layer: int | str = 0, first: int | None = None, last: int | None = None, bins: int | None = None, gaps: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:  # fmt: skip
        """(steps (n,), values (n,) or (n, E)) of any statistic in STATS, from step `first` to `last`, both included.

        layer: its number from 0, or its name. bins: thin to about that many bins of minimum and maximum. gaps: as in blocks(). StoreError as there,
        and for an unknown statistic or layer.
        """
        if (stat := RENAMED.get(stat, stat)) not in STAT:
            raise StoreError(f"unknown statistic {stat!r}; there are: {', '.join(STAT)}")
        try:
            layer = self.description.layer(layer)
        except ValueError as error:
            raise StoreError(str(error)) from None
        deals = self.deals if stat in OF_DEVICES else ()  # reading them takes as long as a short history
        steps, values = self._blocks.statistic(stat, layer, first, last, self.off_spans(), deals, gaps)
        return thin(steps, values, bins) if bins else (steps, values)

    def off_spans(self, changes: Sequence[KnobChange] | None = None) -> tuple[Off, ...]:
        """Which experts were switched off, and when. changes: knob_changes(), if they were read before."""
        turns = [one for one in (self.knob_changes() if changes is None else changes) if one.name == "off"]
        if self._off and self._off[0] == turns:
            return self._off[1]

        try:
            spans = off_spans(self.description.experts, self.started_knobs, turns, self._blocks.counts)
        except ValueError as error:
            raise StoreError(f"run {self.id} cannot say which experts are off: {error}") from None
        self._off = turns, spans
        return spans

    def ablation(self) -> Ablation | None:
        """What `ablate` measured last; None if it has not, or if its file cannot be read, which `damage` then says."""
        experts = self.description.experts
        try:
            measured = read_ablation(self.path)
            if measured and measured.rise_LE.shape != (len(experts), max(experts)):
                raise StoreError("ablation.json is of another model; run `ablate` again")
        except StoreError as error:
            self.checked.note("ablation", str(error))
            return None
        self.checked.note("ablation", "")
        return measured

    def experts_at(self, step: int, kind: str) -> NDArray[Any] | None:
        """The probe's experts (L, N, K) of the snapshot taken at exactly this step; None if it is damaged or not there."""
        snapshot = self.snapshot(step, kind)
        return np.asarray(snapshot[1]["experts"]) if snapshot and snapshot[0] == step else None

    def throughput_file(self, knobs: KnobValues | None = None) -> Path:
        """The file of the throughput measurement for a layer of this shape, with these knobs, or the latest. StoreError if not our trainer's."""
        return bench_file(self.path.parent, self.config, int((knobs or self.knobs).k), *self.machine)

    @property
    def machine(self) -> tuple[str, int]:
        """The device and the CPU threads that our trainer trained the run with."""
        return str(self.facts.get("device", "cpu")), threads_of(self.facts, self.config) or 1

    def throughput(self, knobs: KnobValues | None = None) -> Measured:
        """Tokens a second by batch size, as far as it was measured. knobs: as throughput_file()."""
        return NOTHING_MEASURED if self._config is None else measured(self.throughput_file(knobs))

    def size(self) -> int:
        """Bytes that the run takes on the disk: record, checkpoints and all."""
        return size_of(self.path)

    def growth(self) -> float:
        """Bytes an hour by which the record of a run that trains grows, by its last steps; 0 of one that does not train, or
        does not measure how long its steps take.

        Snapshots are thinned and the log is moved into the file again and again, so what stays is mostly the blocks.
        """
        last, inherited = self.steps()[1], self.parent.step if self.parent else 0
        if last <= inherited or self.state != "training" or not measured_by(self.description, "seconds"):
            return 0.0
        _, seconds = self.history("seconds", first=max(inherited + 1, last - GROWTH_STEPS))
        blocks = self.blocks(first=max(1, last - GROWTH_STEPS))
        taken, steps = sum(block.size + 64 for block in blocks), sum(len(block.rows) for block in blocks)
        return 3600 * taken / (steps * max(float(seconds.mean()), 1e-9)) if taken else 0.0

    # Writing: knob changes and commands, by anyone

    def turn(
        self, who: str = "script", changes: Mapping[str, float | str] = MappingProxyType({}), **more: float | str
    ) -> int:
        """Turn one or more knobs: each takes effect at the top of the trainer's next step. The last row's id.

        changes: knobs by name, as a person wrote them; a mapping, so that a knob called "who" is refused like any other
        unknown one. A knob that has the value already is left as it is. ValueError, and nothing is turned, if one of them
        is unknown or out of range.
        """
        knobs = {**changes, **more}
        if not knobs:
            raise StoreError("turn needs a knob, for example turn(noise=0.5)")
        if self._config is None:
            values = check_declared(self.description, knobs)
        else:  # the other knobs' values are read only where they matter: a drag turns 20 times a second
            values = check_changes(self._config, knobs, as_knobs(self.knobs) if TOGETHER & knobs.keys() else None)
        id = self.write(lambda db: insert_turns(db, self.started_knobs, values, who))
        raise_asked(self.path, self.chain, turns=id)
        return id

    def command(self, name: str, who: str = "script") -> int:
        """Ask the trainer to pause, resume, step, stop or checkpoint. The row's id."""
        if name not in COMMANDS:
            raise StoreError(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
        # The command resume ends a pause; `resume` in obeys is to train a run on after its end.
        if (needed := "pause" if name == "resume" else name) not in self.description.obeys:
            able = ", ".join(self.description.obeys) or "nothing"
            raise StoreError(f"the program that records run {self.id} does not obey {needed}; it obeys {able}")
        id = self.write(lambda db: insert(db, "commands", {"name": name, "who": who, "at": time.time()}))
        raise_asked(self.path, self.chain, commands=id)
        return id

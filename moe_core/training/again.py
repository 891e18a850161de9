"""Training again what is recorded: to go on after a kill, to go on as a fork, or to check that a record is true.

A resume restores the newest checkpoint that the record reaches, trains the recorded steps after it with the recorded knob
changes, compares, and goes on from the last. A replay does so from step 1 and writes nothing.
"""

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from moe_core.runs import (
    Difference,
    Pending,
    Run,
    RunWriter,
    StoreError,
    fingerprint,
    first_difference,
    hold_lock,
    resume_run,
)
from moe_core.runs.compare import compared, fold
from moe_core.runs.identity import threads_of, versions_of
from moe_core.schema import Config, parse_setting
from moe_core.training import checkpoint
from moe_core.training.data import Data
from moe_core.training.loop import Notify, Trainer
from moe_core.training.machine import choose_device, facts_of
from moe_core.training.recorded import config_now, load_recorded
from moe_core.training.session import conduct

COMPARE_EVERY = 100  # steps
READ_AT_ONCE = 4096  # steps
REPORT_EVERY = 1.0  # seconds


def resume(
    run: Run,
    steps: int | None = None,
    notify: Notify = lambda event: None,
    who: str = "trainer",
    lock: int | None = None,
    moved: Mapping[str, Any] = {},
    joined: Any = None,
) -> tuple[Path, str]:
    """Go on with a run whose trainer has ended or died; returns what train() does.

    steps: how many it is to have in all (None: as before; 0: until stopped). lock: the run's, if the caller holds it.
    moved: the present paths of the run's data, if they were moved. joined: as train() has it.
    ValueError, before anything is written, for a run that is being trained, is done, or cannot be resumed here.
    """
    # Whoever started this trainer signed its lock then.
    since = time.time() if lock is None else os.fstat(lock).st_mtime
    lock = hold_lock(run.path) if lock is None else lock
    trainer = None
    try:
        run.check_layout()
        goal = run.config.steps if steps is None else parse_setting(Config, "steps", steps)
        last = run.steps()[1]
        if goal and (goal < last or (goal == last and run.state == "finished")):
            raise StoreError(
                f"{run.id} has {last} steps; give --steps above that, or 0 to train until stopped, got {goal}"
            )
        data, device, notes = prepare(run, moved, joined.device if joined else None)
        notes += run.look_over()  # before the resumed trainer overwrites the tip, which shows whether steps are lost
        config = replace(config_now(run, moved), steps=goal)
        script = [change for change in run.script if change[0] > last]

        def make() -> Trainer:
            build = joined.make if joined else Trainer
            return build(config, run.started_knobs, data, device, Nowhere(run.path), notify, script, run.layout)

        trainer = restored_or_new(make, run, last, notes)
        check_record(run, trainer.step + 1, last)
        ranks = joined.facts["ranks"] if joined else None
        writer = resume_run(run.path, lock, who, goal, notes, moved, ranks, since)
    except BaseException:
        if trainer:
            trainer.committer.close()
        os.close(lock)
        raise
    run.close()
    resumed = Run(run.path)  # its config has the new number of steps
    threads = torch.get_num_threads()
    begun = {"event": "start", "run": run.id, "path": str(run.path), "device": str(device), "threads": threads}
    notify(begun | {"ranks": joined.ranks.size if joined else 1})
    for note in notes:
        notify({"event": "note", "note": note})
    trainer.record_to(writer)
    return conduct(
        lambda: trainer, lambda trainer: go_on(trainer, resumed, last, notes, writer), writer, notify, joined
    )


def restored_or_new(make: Callable[[], Trainer], run: Run, last: int, notes: list[str]) -> Trainer:
    """A fresh trainer, restored from the newest checkpoint that fits; at step 0 if none does."""

    def restore(state: dict[str, Any]) -> Trainer:
        trainer = make()
        try:
            trainer.restore(state)
            if not belongs_to(run, state):
                raise ValueError("it belongs to another run: its loss is not the one recorded at its step")
        except BaseException:
            trainer.committer.close()
            raise
        return trainer

    return checkpoint.restore_newest(run.path, last, restore, notes.append) or make()


def belongs_to(run: Run, state: dict[str, Any]) -> bool:
    """Whether a checkpoint has the loss that the run recorded at its step. True for those of earlier versions, which have
    none."""
    if not (measured := state.get("measured")):
        return True
    row_C = run.rows(state["step"], state["step"])[0]
    recorded = [row_C[next(c.start for c in run.layout if c.stat == stat)] for stat in ("loss", "grad_norm")]
    return bool(np.array_equal(np.array(measured, np.float32), recorded, equal_nan=True))


def check_record(run: Run, first: int, last: int) -> None:
    """StoreError if steps that are to be trained again cannot be read. Called before anything is written."""
    for at in range(first, last + 1, READ_AT_ONCE):
        run.rows(at, min(last, at + READ_AT_ONCE - 1))


def go_on(trainer: Trainer, run: Run, last: int, notes: list[str], writer: RunWriter) -> str:
    """Bring a fresh trainer to where the record ends, then let it train. Returns the state in which that ended."""
    before = len(notes)
    if trainer.step:
        trainer.autobalance.recall(run, trainer.step)
    if difference := catch_up(trainer, run, last):
        notes.append(
            f"trained again, the steps up to {last} differ from the record, so the steps after them differ from an uninterrupted run: {difference}"
        )
    trainer.committer.recent.recall(run, trainer.knobs)
    for note in notes[before:]:
        trainer.notify({"event": "note", "note": note})
    trainer.evaluated = max((eval.step for eval in run.evals()), default=-1)
    run.close()  # an open reader would keep the file from being sealed
    if len(notes) > before:
        trainer.committer.put(lambda: writer.note(notes))
    if trainer.replaying:
        return "stopped"
    trainer.steer()  # the last step's decision may be missing: a kill, or the fork's step, can lie between the two
    return trainer.run()


def prepare(
    run: Run, moved: Mapping[str, Any] = {}, device: torch.device | None = None
) -> tuple[Data, torch.device, list[str]]:
    """The run's data, its device, and notes on what differs from when the run began. Sets torch's threads to the run's.

    device: this rank's, of the recorded kind; None if there is one process.

    ValueError for data or a device that is missing, and for data other than those that the run was trained on.
    """
    run.check_turns()
    data, notes = load_recorded(run, moved)
    recorded = str(run.facts.get("device", run.config.device))
    try:
        found = choose_device(recorded)
    except ValueError:
        raise StoreError(
            f"{run.id} was trained on {recorded!r}, which is not on this machine; go on with it there"
        ) from None
    device = device or found
    torch.set_num_threads(threads_of(run.facts, run.config) or 1)
    return data, device, notes + changed_facts(run.facts, facts_of(device, torch.get_num_threads()))


def changed_facts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence for each fact that floating-point sums depend on and that differs from the record now."""
    flat_before, flat_now = {**before, **versions_of(before)}, now | now["versions"]
    names = {"torch": "torch", "python": "Python", "threads": "the thread count", "device_name": "the processor", "instructions": "the instruction set"}  # fmt: skip
    return [
        f"{called} was {flat_before[name]} and is {flat_now[name]}, so the last bits may differ"
        for name, called in names.items()
        if name in flat_before and flat_before[name] != flat_now[name]
    ]


def catch_up(
    trainer: Trainer, run: Run, last: int, stop_at_difference: bool = False, digest: Any = None
) -> Difference | None:
    """Train the recorded steps up to `last`, with the recorded knob changes at their steps, and compare.

    Writes nothing into the record. Returns the first difference. Ends early, with trainer.replaying still set, when the
    trainer gets a stop. digest: a hash to which the losses and counts of this training are added.
    """
    changes, now = defaultdict(list), trainer.telemetry.columns
    for change in run.knob_changes():
        if change.step is not None:
            changes[change.step].append(change)
    trainer.replaying, difference, reported, first = True, None, -REPORT_EVERY, trainer.step + 1
    while trainer.step < last and not trainer.stopping and not (difference and stop_at_difference):
        for change in changes[trainer.step + 1]:
            trainer.take(change)
        trainer.train_step(time.perf_counter())
        trainer.read()
        if (at := trainer.step) % COMPARE_EVERY == 0 or at == last or trainer.stopping:
            _, rows_nC = trainer.telemetry.take()
            difference = difference or first_difference(run.rows(first, at), compared(run), rows_nC, now, first)
            run.close()  # an open reader would keep a live run from being sealed
            first = at + 1
            if digest:
                fold(digest, rows_nC, now)
        if time.monotonic() - reported >= REPORT_EVERY or at == last:
            reported = time.monotonic()
            trainer.notify({"event": "replay", "step": at, "of": last})
            trainer.flush()  # the answers to commands
            trainer.beat()
    trainer.replaying = trainer.step < last
    return difference


class Replayed(NamedTuple):
    """The result of a replay. step: the last one that was trained; hashes are over losses and counts, `again` is None
    unless it reached the end."""

    step: int
    difference: Difference | None
    recorded: str
    again: str | None
    notes: list[str]


class Nowhere:
    """Stands in for the writer of a training that is not recorded."""

    knob_seen = command_seen = step = 0
    put_off = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def asked(self) -> bool:
        return False

    def pending(self) -> Pending:
        return Pending([], [])

    def commit(self, batch: Any) -> None:
        pass

    def beat(self) -> None:
        pass

    def reopen(self, error: BaseException) -> None:
        pass


def replay(run: Run, notify: Notify = lambda event: None, moved: Mapping[str, Any] = {}) -> Replayed:
    """Train a run again from step 1, up to its last recorded step as of now or the first number that differs. Writes nothing."""
    last = run.steps()[1]
    if not last:
        raise StoreError(f"{run.id} has no steps yet, so there is nothing to train again")
    data, device, notes = prepare(run, moved)
    for note in notes:
        notify({"event": "note", "note": note})
    trainer = Trainer(run.config, run.started_knobs, data, device, Nowhere(run.path), notify)
    digest = hashlib.sha256()
    try:
        difference = catch_up(trainer, run, last, stop_at_difference=True, digest=digest)
    finally:
        trainer.committer.close()
    again = digest.hexdigest() if trainer.step == last else None
    return Replayed(trainer.step, difference, fingerprint(run, last), again, notes)

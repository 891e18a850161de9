"""Training again what is recorded: to go on after a kill, to go on as a fork, or to check that a record is what it says.

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
) -> tuple[Path, str]:
    """Go on with a run whose trainer has ended or died; returns as train() does.

    steps: how many it shall have in all (None: as before; 0: until stopped). lock: the run's, if the caller holds it.
    moved: where the run's data lie now, if not where they were.
    ValueError, before anything is written, for a run that is being trained, is done, or cannot be resumed here.
    """
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
        data, device, notes = prepare(run, moved)
        notes += run.look_over()  # a resumed trainer writes over the tip, which tells of steps that are lost
        config = replace(config_now(run, moved), steps=goal)
        script = [change for change in run.script if change[0] > last]

        def make() -> Trainer:
            return Trainer(config, run.started_knobs, data, device, Nowhere(run.path), notify, script, run.layout)

        trainer = restored_or_new(make, run, last, notes)
        check_record(run, trainer.step + 1, last)
        writer = resume_run(run.path, lock, who, goal, notes, moved)
    except BaseException:
        if trainer:
            trainer.committer.close()
        os.close(lock)
        raise
    run.close()
    resumed = Run(run.path)  # its config has the new number of steps
    threads = torch.get_num_threads()
    notify({"event": "start", "run": run.id, "path": str(run.path), "device": str(device), "threads": threads})
    for note in notes:
        notify({"event": "note", "note": note})
    trainer.record_to(writer)
    return conduct(lambda: trainer, lambda trainer: go_on(trainer, resumed, last, notes, writer), writer, notify)


def restored_or_new(make: Callable[[], Trainer], run: Run, last: int, notes: list[str]) -> Trainer:
    """A fresh trainer, restored from the newest checkpoint that fits; at the run's beginning if none does."""

    def restore(state: dict[str, Any]) -> Trainer:
        trainer = make()
        try:
            checkpoint.restore(trainer, state)
            if not is_of(run, state):
                raise ValueError("it is of another run: its loss is not the one recorded at its step")
        except BaseException:
            trainer.committer.close()
            raise
        return trainer

    return checkpoint.restored(run.path, last, restore, notes.append) or make()


def is_of(run: Run, state: dict[str, Any]) -> bool:
    """Whether the loss of a checkpoint's last step is the recorded one. Checkpoints of earlier versions do not have it."""
    if not (measured := state.get("measured")):
        return True
    row_C = run.rows(state["step"], state["step"])[0]
    recorded = [row_C[next(c.start for c in run.layout if c.stat == stat)] for stat in ("loss", "grad_norm")]
    return bool(np.array_equal(np.array(measured, np.float32), recorded, equal_nan=True))


def check_record(run: Run, first: int, last: int) -> None:
    """StoreError if steps that are to be trained again cannot be read. Called while nothing is written yet."""
    for at in range(first, last + 1, READ_AT_ONCE):
        run.rows(at, min(last, at + READ_AT_ONCE - 1))


def go_on(trainer: Trainer, run: Run, last: int, notes: list[str], writer: RunWriter) -> str:
    """Bring a fresh trainer to where the record ends, then let it train. Returns the state in which that ended."""
    before = len(notes)
    if trainer.step:
        trainer.autobalance.recall(run, trainer.step)
    if difference := catch_up(trainer, run, last):
        notes.append(
            f"steps up to {last} do not come out as recorded, so what follows is not as it would have been: {difference}"
        )
    trainer.committer.watch.recall(run, trainer.knobs)
    for note in notes[before:]:
        trainer.notify({"event": "note", "note": note})
    trainer.evaluated = max((eval.step for eval in run.evals()), default=-1)
    run.close()  # a reader that stays would keep the file from being sealed
    if len(notes) > before:
        trainer.committer.put(lambda: writer.note(notes))
    if trainer.replaying:
        return "stopped"
    trainer.steer()  # a kill, or the fork's step, may lie between the last step and what is decided after it
    return trainer.run()


def prepare(run: Run, moved: Mapping[str, Any] = {}) -> tuple[Data, torch.device, list[str]]:
    """The run's data, its device, and what is not as it was when the run began. Torch gets the run's thread count.

    ValueError for data or a device that is not there, and for data other than those that the run was trained on.
    """
    run.check_turns()
    data, notes = load_recorded(run, moved)
    recorded = str(run.facts.get("device", run.config.device))
    try:
        device = choose_device(recorded)
    except ValueError:
        raise StoreError(
            f"{run.id} was trained on {recorded!r}, which is not on this machine; go on with it there"
        ) from None
    torch.set_num_threads(int(run.facts.get("threads", 0)) or run.config.threads or 1)
    return data, device, notes + unlike(run.facts, facts_of(device, torch.get_num_threads()))


def unlike(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What sums depend on and is another now than in the record, a sentence each."""
    flat_before, flat_now = before | before.get("versions", {}), now | now["versions"]
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

    Writes nothing into the record. Returns where the two first part. Ends early, with trainer.replaying still set, when
    the trainer is told to stop. digest: gets the losses and counts as they came out now.
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
            run.close()  # a reader that stays would keep a live run from being sealed
            first = at + 1
            if digest:
                fold(digest, rows_nC, now)
        if time.monotonic() - reported >= REPORT_EVERY or at == last:
            reported = time.monotonic()
            trainer.notify({"event": "replay", "step": at, "of": last})
            trainer.flush()  # what was answered meanwhile
            trainer.beat()
    trainer.replaying = trainer.step < last
    return difference


class Replayed(NamedTuple):
    """What a replay found. step: how far it went; hashes are over losses and counts, `again` None unless it went to the end."""

    step: int
    difference: Difference | None
    recorded: str
    again: str | None
    notes: list[str]


class Nowhere:
    """The writer of a training that is not recorded."""

    knob_seen = command_seen = 0
    put_off = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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

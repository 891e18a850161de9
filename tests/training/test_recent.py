"""What the trainer's own watch sees: the last steps, the knobs as they were turned, and each finding once."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from moe_core.recording import recent
from moe_core.recording.committer import Committer
from moe_core.recording.recent import KEPT, Recent
from moe_core.runs import Batch, open_run
from moe_core.schema import Config, Knobs, describe, layout
from moe_core.training.again import Nowhere, resume
from moe_core.training.session import train

CONFIG = Config.for_task("plane", num_experts=8, layers=1)
COLUMNS = layout(1, 8)
UNEVEN = np.array([30, 25, 25, 0, 0, 0, 0, 0]) + 1e-3  # collapsed onto three experts, none of which every token chooses


def rows(n: int, even: bool) -> np.ndarray:
    found = np.ones((n, COLUMNS[-1].start + COLUMNS[-1].width), np.float32)
    for column in COLUMNS:
        at = found[:, column.start : column.start + column.width]
        if column.stat in ("load", "counts"):
            at[:] = 10 if even else UNEVEN
        elif column.stat in ("dead_experts", "dropped", "unreachable"):
            at[:] = 0
        elif column.stat == "bias_effect":  # no bias selects
            at[:] = np.nan
    return found


def test_a_finding_is_told_once_and_again_when_it_comes_back(monkeypatch) -> None:
    monkeypatch.setattr(recent, "EVERY", 0.0)
    monkeypatch.setattr(recent, "REST", 0)
    seen = Recent(describe(CONFIG, Knobs(w_importance=0, w_load=0)), Knobs(w_importance=0, w_load=0))
    assert seen.add(Batch(1, rows(30, True))) == []
    told = seen.add(Batch(31, rows(30, False)))
    assert [(f.rule, f.since) for f in told] == [("collapse", 31)]
    assert seen.add(Batch(61, rows(30, False))) == []
    assert seen.add(Batch(91, rows(30, True))) == []
    assert [f.since for f in seen.add(Batch(121, rows(30, False)))] == [121]
    assert seen.last == 150


def test_a_finding_that_wavers_is_told_once_however_few_steps_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(recent, "EVERY", 0.0)
    monkeypatch.setattr(recent, "REST", 0)
    seen = Recent(describe(CONFIG, Knobs(w_importance=0, w_load=0)), Knobs(w_importance=0, w_load=0))
    seen.kept = 60
    between = rows(40, True)
    for column in COLUMNS:
        if column.stat in ("load", "counts"):  # CV(load) 0.88: a collapse begins at 1 and ends at 0.8
            between[:, column.start : column.start + column.width] = [20] * 3 + [3] * 5
    told = seen.add(Batch(1, np.concatenate([rows(30, True), rows(30, False)])))
    for first in range(61, 400, 40):
        told += seen.add(Batch(first, between if first % 200 != 61 else rows(40, False)))
    assert [(f.rule, f.since) for f in told] == [("collapse", 31)]


def test_between_two_looks_it_only_keeps(monkeypatch) -> None:
    seen = Recent(describe(CONFIG, Knobs(w_importance=0, w_load=0)), Knobs(w_importance=0, w_load=0))
    seen.add(Batch(1, rows(1, True)))
    monkeypatch.setattr(seen, "next_diagnosis", float("inf"))
    assert seen.add(Batch(2, rows(40, False))) == []
    assert [f.since for f in seen.new_findings()] == [2]


def test_each_layer_is_looked_at() -> None:
    one, columns = rows(30, True), layout(2, 8)
    both = np.ones((30, columns[-1].start + columns[-1].width), np.float32)
    for column in columns:
        source = next(c for c in COLUMNS if c.stat == column.stat)
        both[:, column.start : column.start + column.width] = one[:, source.start : source.start + source.width]
        if column.stat == "load" and column.layer == 1:
            both[:, column.start : column.start + column.width] = UNEVEN
    seen = Recent(
        describe(Config.for_task("plane", num_experts=8, layers=2), Knobs(w_importance=0, w_load=0)),
        Knobs(w_importance=0, w_load=0),
    )
    seen.next_diagnosis = float("inf")
    seen.add(Batch(1, both))
    assert [(f.rule, f.layer) for f in seen.new_findings()] == [("collapse", 1)]


def test_it_keeps_the_last_steps_only_with_their_numbers() -> None:
    seen = Recent(describe(CONFIG, Knobs()), Knobs())
    for first in range(1, KEPT + 101, 50):
        seen.add(Batch(first, rows(50, True)))
    steps, load = seen.history("load")
    assert (steps[0], steps[-1], load.shape) == (101, KEPT + 100, (KEPT, 8))
    seen.add(Batch(0, rows(0, True)))
    assert seen.last == KEPT + 100


def test_knobs_are_known_by_what_changed() -> None:
    seen = Recent(describe(CONFIG, Knobs()), Knobs())
    seen.note_turns(5, Knobs())
    seen.note_turns(9, Knobs(noise=0, k=1))
    seen.note_turns(12, Knobs(noise=0.5, k=1))
    told = [(c.id, c.step, c.name, c.previous, c.value) for c in seen.knob_changes()]
    assert told == [(1, 9, "noise", 1.0, 0), (2, 9, "k", 2, 1), (3, 12, "noise", 0, 0.5)]
    assert seen.knobs.noise == 0.5


def test_a_resumed_trainer_knows_since_when_the_knobs_stand(tmp_path) -> None:
    config = Config.for_task("plane", tokens=32, d_model=8, d_hidden=8, steps=20, threads=1, checkpoint_every=0)
    folder, _ = train(config, Knobs(noise=0, w_load=0), tmp_path, "a", script=[(15, "w_load", 0.01)])
    told = []
    resume(open_run(folder), 40, told.append)
    idle = next(event for event in told if event["event"] == "alert" and event["rule"] == "idle_load_loss")
    assert idle["since"] == 15


class Disk(Nowhere):
    """A writer that takes everything."""

    def __init__(self) -> None:
        super().__init__(Path())


def test_what_came_after_the_last_look_is_found_at_the_end() -> None:
    told, seen = [], Recent(describe(CONFIG, Knobs(w_importance=0, w_load=0)), Knobs(w_importance=0, w_load=0))
    seen.next_diagnosis = float("inf")
    committer = Committer(Disk(), told.append, seen)
    committer.put(Batch(1, rows(40, False)))
    committer.settle()
    assert [event for event in told if event["event"] == "alert"] == []
    assert committer.close() == ""
    alerts = [event for event in told if event["event"] == "alert"]
    assert [(e["rule"], e["layer"], e["since"], e["step"]) for e in alerts] == [("collapse", 0, 1, 40)]


def test_settling_does_not_hang_when_nothing_can_be_written() -> None:
    class Full(Disk):
        def commit(self, batch: Batch) -> None:
            raise OSError("no room")

    committer = Committer(Full(), lambda event: None, Recent(describe(CONFIG, Knobs()), Knobs()))
    committer.put(Batch(1, rows(1, True)))
    committer.settle()
    assert "no room" in committer.close()


def test_after_a_diagnosis_that_took_long_the_next_one_waits(monkeypatch) -> None:
    seen = Recent(describe(CONFIG, Knobs()), Knobs())
    for took, next_one in ((2.0, 102.0 + 9 * 2.0), (0.01, 100.01 + 1.0)):
        clock = iter([99.0, 100.0, 100.0 + took])  # asked, begun, done
        monkeypatch.setattr(recent.time, "monotonic", lambda clock=clock: next(clock))
        seen.next_diagnosis = 0.0
        seen.add(Batch(1, rows(1, True)))
        assert seen.next_diagnosis == pytest.approx(next_one)


def test_what_is_said_of_a_resumed_run_counts_from_its_last_step() -> None:
    class Resumed(Disk):
        step = 40

        def commit(self, batch: Batch) -> None:
            error = sqlite3.DatabaseError("malformed")
            error.sqlite_errorname = "SQLITE_CORRUPT"
            raise error

    committer = Committer(Resumed(), lambda event: None, Recent(describe(CONFIG, Knobs()), Knobs()))
    committer.put(Batch(41, rows(1, True)))
    assert "nothing is recorded after step 40 (malformed)" in committer.close()

"""A full disk: the trainer pauses with the reason in the record, loses no step, and goes on by itself when there is room.

SQLite's max_page_count on the trainer's connection stands for the disk: it fails as a full one does, with SQLITE_FULL, at
the same statement each time. Dropping the ballast allows as many pages more as the ballast has bytes.
"""

import errno
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.recording import committer
from moe_core.runs import Run, RunWriter, StoreError, create_run, is_alive, list_runs, open_run, verify
from moe_core.runs.room import FULL, NAME, drop_ballast, make_ballast, no_room, room_text
from moe_core.schema import Config, Knobs, layout
from moe_core.training import again, checkpoint
from moe_core.training.session import train

ROOT = Path(__file__).parents[2]
CONFIG = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, steps=300, eval_every=500, threads=1)
NOT_BY_THE_CLOCK = [c.stat != "seconds" for c in layout(1, 4) for _ in range(c.width)]


class Disk:
    """A disk of so many pages of 4 KB under a run's writer; the ballast takes of them as long as it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pages: int, ballast: int = 80) -> None:
        self.pages, self.ballast, self.lacking = pages, ballast, threading.Event()
        self.writers: list[RunWriter] = []
        opened = RunWriter.__init__

        def init(writer: RunWriter, *args: Any) -> None:
            opened(writer, *args)
            self.writers.append(writer)
            self.limit(writer)

        def drop(writer: RunWriter) -> bool:
            gave = drop_ballast(writer.folder)
            self.limit(writer)
            return gave

        def make(writer: RunWriter) -> bool:
            (used,) = writer.db.execute("PRAGMA page_count").fetchone()
            if used + self.ballast > self.pages or not make_ballast(writer.folder):
                self.lacking.set()  # it has looked, and found none
                return False
            self.limit(writer)
            return True

        monkeypatch.setattr(RunWriter, "__init__", init)
        monkeypatch.setattr(RunWriter, "drop_ballast", drop)
        monkeypatch.setattr(RunWriter, "make_ballast", make)
        monkeypatch.setattr(committer, "AGAIN", 0.02)

    def limit(self, writer: RunWriter) -> None:
        taken = self.ballast if (writer.folder / NAME).exists() else 0
        writer.db.execute(f"PRAGMA max_page_count = {self.pages - taken}").fetchall()

    def grow(self, pages: int) -> None:
        self.pages = pages


def trained(
    runs: Path, disk: Disk, when_full: Callable[[Run], None], config: Config = CONFIG
) -> tuple[str, list[dict[str, Any]], Run]:
    """Train beside a thread that acts once the trainer has looked for room in vain; state, events, run."""
    events: list[dict[str, Any]] = []

    def act() -> None:
        if disk.lacking.wait(60):
            when_full(open_run("a", runs))

    actor = threading.Thread(target=act)
    actor.start()
    folder, state = train(config, Knobs(), runs, "a", events.append)
    assert disk.lacking.is_set(), "the disk was never full"
    actor.join()
    return state, events, Run(folder)


def rows_of(run: Run) -> np.ndarray:
    return np.concatenate([block.rows for block in run.blocks()])[:, NOT_BY_THE_CLOCK]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The rows of the same training on a large disk."""
    return rows_of(Run(train(CONFIG, Knobs(), tmp_path_factory.mktemp("runs"), "whole")[0]))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr("moe_core.training.pace.FLUSH", 0.0)  # a commit a step, whatever the machine's speed
    return Disk(monkeypatch, pages=104)


def test_a_full_disk_pauses_with_the_reason_and_the_run_goes_on_by_itself(
    tmp_path: Path, small: Disk, whole: np.ndarray
) -> None:
    seen: dict[str, Any] = {}

    def when_full(run: Run) -> None:
        status, last = run.status(), run.steps()[1]
        time.sleep(0.2)  # some looks for room
        seen.update(status=status, last=last, later=run.steps()[1], ballast=(run.path / NAME).exists())
        seen["listed"] = list_runs(run.path.parent)[0]
        run.close()
        small.grow(100_000)

    state, events, run = trained(tmp_path, small, when_full)
    assert (seen["status"].state, seen["status"].reason) == ("paused", FULL)
    assert (seen["listed"].state, seen["listed"].reason) == ("paused", FULL)
    assert 0 < seen["last"] == seen["later"] < 300  # it trains no further
    assert not seen["ballast"]
    told = [(e["event"], e.get("reason")) for e in events if e["event"] in ("paused", "resumed")]
    assert told == [("paused", FULL), ("resumed", "there is room on the disk again")]
    assert state == run.state == "finished"
    assert run.status().reason == ""
    assert run.steps() == (1, 300)
    assert verify(run) == []
    assert not (run.path / NAME).exists()  # of no use to a run that has ended
    np.testing.assert_array_equal(rows_of(run), whole)  # bit for bit as if the disk had been large


def test_the_ballast_is_made_anew_while_the_run_goes_on(tmp_path: Path, small: Disk) -> None:
    def when_full(run: Run) -> None:
        small.grow(100_000)
        while not (run.path / NAME).exists():
            time.sleep(0.01)
        run.command("stop")
        run.close()

    state, _, run = trained(tmp_path, small, when_full, Config(**{**CONFIG.__dict__, "steps": 0}))
    assert state == run.state == "stopped"
    assert verify(run) == []


def test_what_a_person_asked_for_stands_when_there_is_room_again(tmp_path: Path, small: Disk) -> None:
    """A pause that was asked for on a full disk is obeyed at once, and is still there when the disk is not full any more."""
    states: list[str] = []

    def when_full(run: Run) -> None:
        asked = run.command("pause")
        while not any(c.id == asked and c.step is not None for c in run.commands()):
            time.sleep(0.01)
        states.append(run.status().reason)
        small.grow(100_000)
        while run.status().reason:
            time.sleep(0.01)
        states.append(run.state)
        run.command("resume")
        run.close()

    state, _, run = trained(tmp_path, small, when_full)
    assert states == [FULL, "paused"]
    assert state == "finished"
    assert run.steps() == (1, 300)


def test_a_stop_on_a_full_disk_is_obeyed_and_the_ballast_holds_what_was_measured(tmp_path: Path, small: Disk) -> None:
    def when_full(run: Run) -> None:
        run.command("stop")
        run.close()

    state, _, run = trained(tmp_path, small, when_full)
    assert state == run.state == "stopped"
    first, last = run.steps()
    assert (first, run.status().step) == (1, last)
    assert 0 < last < 300
    assert verify(run) == []


def test_a_stop_that_finds_no_room_at_all_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.training.pace.FLUSH", 0.0)
    disk = Disk(monkeypatch, pages=24, ballast=0)

    def when_full(run: Run) -> None:
        run.command("stop")
        run.close()

    drop = RunWriter.drop_ballast

    def nothing_left(writer: RunWriter) -> bool:
        gave = drop(writer)
        disk.lacking.set()
        return gave

    monkeypatch.setattr(RunWriter, "drop_ballast", nothing_left)
    state, _events, run = trained(tmp_path, disk, when_full)
    assert state == run.state == "failed"
    assert "the disk is full, and what was measured after step " in run.status().reason
    assert f"after step {run.steps()[1]} did not fit" in run.status().reason
    assert verify(run) == []


def test_a_checkpoint_that_does_not_fit_pauses_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the half of one is removed at once: the record needs the room."""
    kept, calls, left = torch.save, [], []
    paused = threading.Event()

    def save(state: Any, file: Any) -> None:
        calls.append(state["step"])
        if not paused.is_set():
            left.append(sorted(path.name for path in tmp_path.glob("a/checkpoint*")))
            file.write(b"half")
            raise RuntimeError("unexpected pos") from OSError(errno.ENOSPC, "No space left on device")
        kept(state, file)

    def when_told(event: dict[str, Any]) -> None:
        if event["event"] == "paused":
            threading.Timer(0.1, paused.set).start()

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(committer, "AGAIN", 0.02)
    folder, state = train(Config(**{**CONFIG.__dict__, "steps": 20}), Knobs(), tmp_path, "a", when_told)
    assert state == "finished"
    assert len(calls) > 1
    assert set(calls) == {20}
    assert left[1:]
    assert all(names == ["checkpoint-000000020.pt.tmp"] for names in left)
    assert checkpoint.read(folder / "checkpoint-000000020.pt")["step"] == 20
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-000000020.pt", "checkpoint-000000020.pt.sha256", "lock", "run.db", "run.tip",
    ]  # fmt: skip


def test_a_stop_is_obeyed_while_the_last_checkpoint_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def save(state: Any, file: Any) -> None:
        tried.append(state["step"])
        if len(tried) > 500:
            raise RuntimeError("nobody obeyed the stop")  # or the test would wait for ever
        raise OSError(errno.ENOSPC, "No space left on device")

    events: list[dict[str, Any]] = []

    def when_told(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "paused":
            run = open_run("a", tmp_path)
            run.command("stop")
            run.close()

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(committer, "AGAIN", 0.02)
    folder, state = train(Config(**{**CONFIG.__dict__, "steps": 20}), Knobs(), tmp_path, "a", when_told)
    assert state == Run(folder).state == "finished"  # all its steps are there; what is missing is a checkpoint
    assert Run(folder).steps() == (1, 20)
    notes = [event["note"] for event in events if event["event"] == "note"]
    assert notes == ["the checkpoint of step 20 was not written: No space left on device"]
    assert list(folder.glob("checkpoint*")) == []


def test_what_comes_after_a_commit_does_not_make_it_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be moved for want of room is moved later; the steps are in the record, and not twice."""
    moved = RunWriter._move_log
    failed = []

    def move(writer: RunWriter) -> None:
        if len(failed) < 5:
            failed.append(writer.step)
            raise sqlite_full()
        moved(writer)

    monkeypatch.setattr(RunWriter, "_move_log", move)
    monkeypatch.setattr("moe_core.training.pace.FLUSH", 0.0)  # a commit after each step
    events: list[str] = []
    folder, state = train(CONFIG, Knobs(), tmp_path, "a", lambda event: events.append(event["event"]))
    assert (state, len(failed)) == ("finished", 5)
    assert "paused" not in events
    assert Run(folder).steps() == (1, 300)
    assert verify(Run(folder)) == []


def test_a_script_waits_for_room_and_is_not_lost(tmp_path: Path, small: Disk, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A turn of the trainer's own that does not fit is written when it does, before the step that it is for."""
    refused = threading.Event()
    turn = RunWriter.turn

    def full(writer: RunWriter, who: str, **knobs: Any) -> None:
        if not refused.is_set():
            refused.set()
            try:
                raise sqlite_full()
            except sqlite3.OperationalError as error:
                raise StoreError("cannot be written") from error
        turn(writer, who, **knobs)

    monkeypatch.setattr(RunWriter, "turn", full)
    small.grow(100_000)
    folder, state = train(CONFIG, Knobs(), tmp_path, "a", script=[(50, "noise", 0.5), (51, "k", 1)])
    assert state == "finished"
    assert refused.is_set()
    assert [(c.name, c.value, c.step) for c in Run(folder).knob_changes()] == [("noise", 0.5, 50), ("k", 1, 51)]


def sqlite_full() -> sqlite3.OperationalError:
    """The error of a full disk, from SQLite itself."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE t (x)")
    db.execute("PRAGMA max_page_count = 2").fetchall()
    try:
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    except sqlite3.OperationalError as error:
        return error
    finally:
        db.close()
    raise AssertionError("it was written")


TRAINER = """
import os, sys
from pathlib import Path
from moe_core.runs import RunWriter
from moe_core.runs.room import drop_ballast
from moe_core.schema import Knobs
from moe_core.recording import committer
from moe_core.training import again, pace, session
from tests.training.test_full_disk import CONFIG

def tell(event):
    print(event["event"], flush=True)

opened = RunWriter.__init__
def init(writer, *arguments):
    opened(writer, *arguments)
    writer.db.execute("PRAGMA max_page_count = 24").fetchall()
RunWriter.__init__ = init
pace.FLUSH = 0.0
session.train(CONFIG, Knobs(), sys.argv[1], "a", tell)
"""


def test_killed_on_a_full_disk_the_run_is_whole_and_goes_on_bit_for_bit(tmp_path: Path, whole: np.ndarray) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as trainer:
        assert trainer.stdout
        while (told := trainer.stdout.readline().strip()) != "paused":
            assert told, "it ended without a pause"
        run = open_run("a", tmp_path)
        while run.status().reason != FULL:  # what is said on the terminal comes first
            assert trainer.poll() is None
        assert run.state == "paused"
        trainer.send_signal(signal.SIGKILL)
    assert run.state == "interrupted"
    assert not is_alive(run.path)
    assert verify(run) == []
    last = run.steps()[1]
    assert 0 < last < 300
    folder, state = again.resume(run)
    assert state == "finished"
    assert verify(Run(folder)) == []
    np.testing.assert_array_equal(rows_of(Run(folder)), whole)


def test_what_is_for_want_of_room(tmp_path: Path) -> None:
    wrapped = StoreError("cannot be written")
    wrapped.__cause__ = sqlite_full()
    for error in (OSError(errno.ENOSPC, ""), OSError(errno.EDQUOT, ""), sqlite_full(), wrapped):
        assert no_room(error, tmp_path)
    broken = sqlite3.OperationalError("disk I/O error")
    broken.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert not no_room(broken, tmp_path)  # there is room here, so it is the disk that is broken
    assert not no_room(OSError(errno.EIO, ""), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_run_begins_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("moe_core.runs.room.os.urandom", lambda n: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
        with pytest.raises(StoreError, match="has no room for a run"):
            create_run(tmp_path / "a", CONFIG, Knobs())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ((1_200_000_000, 100_000_000.0, 9.2), "1.2 GB, 100 MB an hour, disk full in 9 h"),
        ((340_000, 0.0, None), "340 KB"),
        ((9_960_000, 1.0, 0.5), "10 MB, 0.0 KB an hour, disk full in 30 min"),
        ((3_400_000_000, 300_000_000.0, 100.0), "3.4 GB, 300 MB an hour, disk full in 4 days"),
        ((999_600, 0.0, 1e9), "1.0 MB, disk full in more than a year"),
    ],
)
def test_what_a_run_takes_in_words(taken: tuple[int, float, float | None], says: str) -> None:
    assert room_text(*taken) == says

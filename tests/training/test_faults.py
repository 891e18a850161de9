"""A disk that fails: tried again, waited for, or told of; never a traceback, and nothing that was acknowledged is lost."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_core.recording import committer
from moe_core.recording.committer import NO_ROWS
from moe_core.runs import Batch, Run, RunWriter, StoreError, create_run, list_runs, verify
from moe_core.runs.log import log_problem
from moe_core.runs.room import FULL
from moe_core.schema import Config, Knobs
from moe_core.training.session import train

ROOT = Path(__file__).parents[2]
CONFIG = Config.for_task("plane", num_experts=4, layers=1, tokens=32, d_model=8, d_hidden=8, threads=1, steps=30)


def failure(name: str) -> sqlite3.OperationalError:
    """What SQLite says of a disk that fails."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = name
    return error


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("gcc")), reason="needs Linux and gcc")
def test_injected_faults_lose_nothing_and_leave_a_reason(tmp_path: Path) -> None:
    """A few of what `python benchmarks/faults.py` does a thousand times: EIO and ENOSPC from write, fsync and open."""
    words = [sys.executable, "benchmarks/faults.py", "--injections", "24", "--json"]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["bad"] == []
    assert done.returncode == 0
    total = {name: sum(row.get(name, 0) for row in told["ended"].values()) for name in ("trials", "hit", "finished")}
    assert total["trials"] == 24
    assert total["hit"] >= 18  # a fault that lies beyond the last call is none
    assert total["finished"] > 0


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the next commits with steps fail with, one each."""
    errors: list[BaseException] = []
    commit = RunWriter.commit

    def fail(writer: RunWriter, batch: Batch) -> None:
        if errors and len(batch.rows):
            raise errors.pop()
        commit(writer, batch)

    monkeypatch.setattr(RunWriter, "commit", fail)
    monkeypatch.setattr(committer, "RETRY", 0.0)
    return errors


@pytest.mark.parametrize("name", ["SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_CANTOPEN"])
def test_what_a_disk_fails_a_few_times_is_tried_again(tmp_path: Path, failing: list[BaseException], name: str) -> None:
    events: list[dict[str, Any]] = []
    failing += [failure(name)] * committer.TRIES
    folder, state = train(CONFIG, Knobs(), tmp_path, "a", events.append)
    assert state == "finished"
    assert (Run(folder).steps(), verify(Run(folder))) == ((1, 30), [])
    notes = [event["note"] for event in events if event["event"] == "note"]
    assert notes == ["the disk failed (disk I/O error); trying again"] * committer.TRIES


def test_what_a_disk_fails_again_and_again_ends_the_run_with_the_reason(
    tmp_path: Path, failing: list[BaseException]
) -> None:
    events: list[dict[str, Any]] = []
    failing += [failure("SQLITE_IOERR_WRITE")] * 1000
    folder, state = train(CONFIG, Knobs(), tmp_path, "a", events.append)
    assert state == "failed"
    assert list_runs(tmp_path)[0].reason == "the run could not be written: disk I/O error"
    assert [e["error"] for e in events if e["event"] == "error"] == [Run(folder).status().reason]


def test_no_room_from_fsync_pauses_as_a_full_disk_does(
    tmp_path: Path, failing: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says the same of it as of a broken disk, so it is tried what the disk says to another file."""
    said = [errno.ENOSPC] * 3
    monkeypatch.setattr("moe_core.runs.room._try_to_fill", lambda folder: said.pop() if said else 0)
    monkeypatch.setattr(committer, "AGAIN", 0.02)
    events: list[dict[str, Any]] = []
    failing.append(failure("SQLITE_IOERR_FSYNC"))
    folder, state = train(CONFIG, Knobs(), tmp_path, "a", events.append)
    assert state == "finished"
    assert Run(folder).steps() == (1, 30)
    assert [event["reason"] for event in events if event["event"] == "paused"] == [FULL]


def test_a_reason_that_the_record_cannot_take_is_in_the_log_and_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []

    def broken(writer: RunWriter, *change: Any, **stands: Any) -> None:
        raise failure("SQLITE_IOERR_WRITE")

    monkeypatch.setattr(committer, "RETRY", 0.0)
    monkeypatch.setattr(RunWriter, "transact", broken)
    assert train(CONFIG, Knobs(), tmp_path, "a", events.append)[1] == "failed"
    (listed,) = list_runs(tmp_path)
    assert (listed.state, listed.reason) == ("interrupted", "failed: the run could not be written: disk I/O error")
    errors = [event["error"] for event in events if event["event"] == "error"]
    assert errors[0] == "the run could not be written: disk I/O error"
    assert errors[1].startswith("the record does not say how the run ended: ")


def test_the_log_of_an_earlier_trainer_is_no_reason(tmp_path: Path) -> None:
    log_problem(tmp_path, "nobody")
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    log_problem(writer.folder, "failed: long ago")
    os.utime(writer.folder / "trainer.log", (time.time() - 60,) * 2)
    writer.beat()
    writer.let_go()
    os.close(writer.lock)
    assert Run(tmp_path / "a").status()[:3] == ("interrupted", 0, "")


def test_what_follows_a_commit_is_put_off_and_done_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are in the record by then, and must not be there twice."""
    written, failed = RunWriter.write_tip, []

    def tip(writer: RunWriter) -> None:
        if len(failed) < 3:
            failed.append(writer.step)
            raise OSError(errno.EIO, "Input/output error")
        written(writer)

    monkeypatch.setattr(RunWriter, "write_tip", tip)
    monkeypatch.setattr("moe_core.training.pace.FLUSH", 0.0)
    events: list[dict[str, Any]] = []
    folder, state = train(CONFIG, Knobs(), tmp_path, "a", events.append)
    assert (state, len(failed), Run(folder).steps(), verify(Run(folder))) == ("finished", 3, (1, 30), [])
    notes = [event["note"] for event in events if event["event"] == "note"]
    assert notes == ["the tip and the log are left to a later commit: [Errno 5] Input/output error"]


@pytest.mark.parametrize("name", ["db", "lock", "tip"])
def test_a_run_that_cannot_be_made_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened = os.open

    def fail(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith({"db": "run.tip", "lock": "lock", "tip": "run.tip"}[name]):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *rest, **named)

    if name == "db":
        monkeypatch.setattr(RunWriter, "_open", lambda writer, folder: (_ for _ in ()).throw(failure("SQLITE_IOERR")))
    else:
        monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError, match=r"/output error|I/O error"):
        create_run(tmp_path / "a", CONFIG, Knobs())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    create_run(tmp_path / "a", CONFIG, Knobs()).finish("stopped")


def test_what_people_ask_for_is_read_again_when_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    Run(writer.folder).command("pause")
    read = writer._read

    def fail() -> Any:
        raise failure("SQLITE_CANTOPEN")

    monkeypatch.setattr(writer, "_read", fail)
    assert writer.pending() == ([], [])
    monkeypatch.setattr(writer, "_read", read)
    assert [command.name for command in writer.pending().commands] == ["pause"]
    monkeypatch.setattr(writer, "_read", fail)
    monkeypatch.setattr("moe_core.runs.writer.READ_FOR", 0.0)
    with pytest.raises(sqlite3.OperationalError):
        writer.pending(), writer.pending()
    writer.commit(Batch(0, NO_ROWS, state="paused"))
    writer.finish("stopped")


def damage(name: str) -> str:
    return (
        f"run.db of run {name} was damaged from outside while it trained, and nothing is recorded after step 0 (disk I/O error); "
        f"put a copy of run.db back, or train anew; `verify {name}` says what can still be read"
    )


@pytest.mark.parametrize("code", ["SQLITE_CORRUPT", "SQLITE_NOTADB"])
def test_a_record_that_is_damaged_while_it_is_read_ends_the_training_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def fail(writer: RunWriter) -> Any:
        writer.step = 0
        raise failure(code)

    monkeypatch.setattr(RunWriter, "_read", fail)
    monkeypatch.setattr("moe_core.runs.writer.READ_FOR", 0.0)
    events: list[dict[str, Any]] = []
    assert train(replace(CONFIG, steps=0), Knobs(), tmp_path, "a", events.append)[1] == "failed"
    assert [event["error"] for event in events if event["event"] == "error"] == [damage("a")]


def test_a_record_that_is_damaged_while_it_is_written_ends_the_training_in_a_line(
    tmp_path: Path, failing: list[BaseException]
) -> None:
    events: list[dict[str, Any]] = []
    failing += [failure("SQLITE_CORRUPT")] * 1000
    assert train(CONFIG, Knobs(), tmp_path, "a", events.append)[1] == "failed"
    assert [event["error"] for event in events if event["event"] == "error"] == [damage("a")]

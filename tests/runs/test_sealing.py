"""A run that its trainer could not seal, on disks and in folders as they are."""

import gc
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_core.runs import StoreError, create_run, hold_lock, list_runs, open_run, verify, writer
from moe_core.runs.database import JOURNAL
from moe_core.runs.rows import Batch
from moe_core.schema import Knobs
from tests.runs.test_store import CONFIG, record, rows

NOBODY = 65534


def ended_beside_a_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SEAL_FOR", 0.05)
    trainer = create_run(folder, CONFIG, Knobs())
    trainer.commit(Batch(1, rows(1, 10)))
    reader = open_run(folder)
    trainer.finish("finished")
    assert (folder / "run.db-wal").exists()
    reader.close()


def test_a_run_that_ended_beside_a_reader_is_sealed_by_whoever_opens_it_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_beside_a_reader(tmp_path / "a", monkeypatch)
    reader = open_run(tmp_path / "a")
    assert (reader.state, reader.steps()) == ("finished", (1, 10))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["lock", "run.db", "run.tip"]
    assert verify(reader) == []


def test_a_reader_that_was_dropped_keeps_no_run_from_being_sealed(tmp_path: Path) -> None:
    trainer = create_run(tmp_path / "a", CONFIG, Knobs())
    trainer.commit(Batch(1, rows(1, 10)))
    gc.disable()  # or when it is closed would hang on when garbage is collected next
    try:
        assert open_run(tmp_path / "a").steps() == (1, 10)
        trainer.finish("finished")
    finally:
        gc.enable()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["lock", "run.db", "run.tip"]


def test_one_that_somebody_reads_or_trains_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_beside_a_reader(tmp_path / "a", monkeypatch)
    lock = hold_lock(tmp_path / "a")  # a trainer goes on with it
    assert open_run(tmp_path / "a").steps() == (1, 10)
    os.close(lock)
    assert (tmp_path / "a" / "run.db-wal").exists()
    other = sqlite3.connect(tmp_path / "a" / "run.db")
    other.execute("SELECT * FROM state").fetchall()
    assert open_run(tmp_path / "a").steps() == (1, 10)
    assert (tmp_path / "a" / "run.db-wal").exists()
    other.close()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter: what lies in it is as locked as it is made."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Permissions hold for everybody but root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(before)


def locked(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def test_an_unsealed_run_on_a_read_only_medium_opens_or_says_what_to_do(
    public: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    trainer = create_run(public / "run", CONFIG, Knobs())
    trainer.commit(Batch(1, rows(1, 10)))
    trainer.transact(state="finished")
    shutil.copytree(public / "run", public / "whole")  # as a killed trainer leaves it
    shutil.copytree(public / "run", public / "log", ignore=shutil.ignore_patterns("run.db-shm"))
    trainer.finish("finished")
    ended_beside_a_reader(public / "moved", monkeypatch)
    with sqlite3.connect(public / "moved" / "run.db") as db:  # the log is in the file, which is still in WAL mode
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        shutil.copytree(public / "moved", public / "bare", ignore=shutil.ignore_patterns("run.db-*"))
        shutil.copytree(public / "moved", public / "empty", ignore=shutil.ignore_patterns("run.db-shm"))
    db.close()
    assert (public / "empty" / "run.db-wal").stat().st_size == 0
    for name in ("log", "whole", "bare", "empty"):
        locked(public / name)
    request.getfixturevalue("as_nobody")
    for name in ("whole", "bare", "empty"):
        run = open_run(public / name)
        assert (run.state, run.steps(), len(run.history("loss")[0])) == ("finished", (1, 10), 10), name
        run.close()
    with pytest.raises(StoreError, match=r"run log cannot be read: it was left with a log, .* copy the run"):
        open_run(public / "log")


def test_what_may_not_be_read_is_listed_with_its_problem_and_hides_no_other(
    public: Path, request: pytest.FixtureRequest
) -> None:
    for name in ("good", "folder", "entered", "file"):
        record(public / name)
    (public / "folder").chmod(0o000)
    (public / "entered").chmod(0o444)
    (public / "file" / "run.db").chmod(0o000)
    locked(public / "good")
    request.getfixturevalue("as_nobody")
    listed = {one.id: one.problem for one in list_runs(public, room=True)}
    assert listed.pop("good") == ""
    assert set(listed) == {"folder", "entered", "file"}
    for name, problem in listed.items():
        assert name in problem
        assert "you may not" in problem
        assert "ask whoever owns it" in problem
        with pytest.raises(StoreError, match="you may not"):
            open_run(name, public)
    assert open_run("good", public).steps() == (1, 30)


@pytest.fixture
def cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sealed run with a change half written beside its journal, as a kill leaves it."""
    record(tmp_path / "whole")
    assert not (tmp_path / "whole" / "run.db-wal").exists()
    db = sqlite3.connect(tmp_path / "whole" / "run.db", isolation_level=None)
    db.executescript(
        "PRAGMA cache_size = 1; BEGIN; UPDATE blocks SET data = zeroblob(20000); UPDATE run SET about = 'x'"
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "a")
    db.close()
    assert (tmp_path / "a" / "run.db-journal").stat().st_size > 512
    return tmp_path / "a"


def test_what_a_kill_cut_short_is_undone_by_whoever_opens_it_next(cut_short: Path) -> None:
    reader = open_run(cut_short)
    assert verify(reader) == []
    assert reader.steps() == open_run(cut_short.parent / "whole").steps()
    assert not (cut_short / "run.db-journal").exists()


def test_a_journal_that_names_a_further_file_is_left_alone(cut_short: Path) -> None:
    """SQLite would open that file, and might delete it."""
    other = cut_short.parent / "other"
    other.write_bytes(b"x\0")
    name = str(other).encode()
    with open(cut_short / "run.db-journal", "ab") as journal:
        journal.write(bytes(4) + name + len(name).to_bytes(4) + sum(name).to_bytes(4) + JOURNAL)
    with pytest.raises(StoreError, match="cannot be read"):
        open_run(cut_short)
    assert other.exists()

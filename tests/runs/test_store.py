"""The record: what was acknowledged is there, whole and unchanged, whoever died and whoever wrote beside."""

import contextlib
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moe_core.runs import (
    Batch,
    Run,
    StoreError,
    create_run,
    is_alive,
    list_runs,
    open_run,
    verify,
)
from moe_core.runs.codec import START, link, pack_arrays, pack_rows, unpack_arrays, unpack_rows
from moe_core.runs.writer import WAL_PAGES, RunWriter, log_pages
from moe_core.schema import STATS, Config, Knobs, layout

CONFIG = Config(num_experts=4, layers=2)
COLUMNS = sum(c.width for c in layout(2, 4))


def edit(folder: Path, sql: str) -> None:
    """Change a run's file behind the back of its record."""
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as db, db:
        db.execute(sql)


def rows(first: int, n: int) -> np.ndarray:
    """Rows that tell their own step: column c of step s holds s + c / 1000."""
    return (np.arange(first, first + n)[:, None] + np.arange(COLUMNS) / 1000).astype(np.float32)


def record(folder: Path, steps: int = 30, end: str | None = "finished") -> Path:
    writer = create_run(folder, CONFIG, Knobs(), probe={"tokens": np.arange(5, dtype=np.uint8)})
    writer.commit(Batch(1, rows(1, 0), state="training"))
    for first in range(1, steps + 1, 10):
        writer.commit(Batch(first, rows(first, 10)))
    if end:
        writer.finish(end)
    return folder


def test_every_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "a"))
    written = rows(1, 30)
    np.testing.assert_array_equal(np.concatenate([b.rows for b in run.blocks()]), written)
    assert run.steps() == (1, 30)
    for column in run.layout:
        steps, values = run.history(column.stat, max(column.layer, 0))
        np.testing.assert_array_equal(steps, np.arange(1, 31))
        np.testing.assert_array_equal(values.reshape(30, -1), written[:, column.start : column.start + column.width])


def test_every_statistic_has_a_value_for_every_step(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "a"))
    for stat in (stat for stat in STATS if not stat.ranks):
        steps, values = run.history(stat.name, 1)
        assert len(steps) == 30
        assert values.shape == ((30, 4) if stat.shape == "LE" else (30,))
        assert np.isfinite(values).all()


def test_a_part_of_a_history(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "a"))
    steps, values = run.history("loss", first=8, last=12)
    assert steps.tolist() == [8, 9, 10, 11, 12]
    np.testing.assert_array_equal(values, rows(8, 5)[:, 0])
    assert len(run.history("loss", first=31)[0]) == 0


@pytest.mark.parametrize(
    ("stat", "layer", "says"),
    [("los", 0, "unknown statistic 'los'"), ("load", 2, "layer must be between 0 and 1, got 2")],
)
def test_a_history_that_is_not_there(tmp_path: Path, stat: str, layer: int, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        open_run(record(tmp_path / "a")).history(stat, layer)


def test_a_run_that_ended_is_one_file_that_opens_read_only(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    assert not (folder / "run.db-wal").exists()
    copy = tmp_path / "b"
    copy.mkdir()
    shutil.copy(folder / "run.db", copy / "run.db")
    os.chmod(copy / "run.db", 0o444)
    os.chmod(copy, 0o555)
    assert open_run(copy).steps() == (1, 30)
    assert open_run(copy).state == "finished"


def test_a_run_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    record(tmp_path / "text-1")
    record(tmp_path / "text-2")
    assert open_run("text-1", tmp_path).id == "text-1"
    with pytest.raises(StoreError, match=r"the beginning of several runs.*text-1, text-2"):
        open_run("text", tmp_path)
    with pytest.raises(StoreError, match=r"is no run.*there are: text-1, text-2"):
        open_run("plane", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is not a run"):
        open_run(tmp_path / "empty")


def test_turns_are_kept_with_who_when_and_the_step_of_effect(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    run = open_run(tmp_path / "a")
    run.turn(who="me", noise=0.5, k=1)
    pending = writer.pending()
    assert [(c.name, c.value, c.previous, c.who, c.step) for c in pending.knobs] == [
        ("noise", 0.5, 1.0, "me", None),
        ("k", 1, 2, "me", None),
    ]
    writer.knob_seen = pending.knobs[-1].id
    assert writer.pending().knobs == []
    writer.commit(Batch(1, rows(1, 1), applied=[(1, 1), (2, 1)]))
    assert [c.step for c in run.knob_changes()] == [1, 1]
    run.turn(noise=0.25)
    assert run.knob_changes()[-1].previous == 0.5
    assert (run.knobs.noise, run.knobs.k, run.started_knobs) == (0.25, 1, Knobs())
    run.close()
    writer.finish("stopped")


def test_a_run_that_starts_with_one_expert_off_is_undamaged_by_a_turn_of_off(tmp_path: Path) -> None:
    """The column of values turns the word "4", the value before, into a number."""
    writer = create_run(tmp_path / "a", CONFIG, Knobs(off="4"))
    run = open_run(tmp_path / "a")
    run.turn(off="2:3")
    assert [change.value for change in writer.pending().knobs] == ["2:3"]
    assert (run.knobs.off, run.damage) == ("2:3", [])
    writer.finish("stopped")
    assert verify(run) == []


def test_a_turn_to_the_value_that_a_knob_has_is_accepted_and_not_recorded(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    run = open_run(tmp_path / "a")
    for knobs in ({"noise": 1.0}, {"noise": 0.5, "k": 2}, {"noise": 0.5}, {"off": ""}, {"strategy": "paper"}):
        run.turn(**knobs)
    assert [(c.name, c.previous, c.value) for c in run.knob_changes()] == [("noise", 1, 0.5)]
    assert len(writer.pending().knobs) == 1
    assert verify(run) == []
    writer.finish("stopped")


def test_a_row_of_an_earlier_version_that_turns_nothing_is_no_turn(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    writer = create_run(folder, CONFIG, Knobs(), probe={"tokens": np.arange(5, dtype=np.uint8)})
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as db, db:
        chain = START
        for id, value, previous in ((1, 1.0, 1.0), (2, 0.5, 1.0), (3, 0.5, 0.5)):
            chain = link(chain, id, "noise", value, previous, "me", 0.0)
            db.execute("INSERT INTO knobs VALUES (?, 'noise', ?, ?, 'me', 0.0, ?)", (id, value, previous, chain))
    writer.commit(Batch(1, rows(1, 10), applied=[(1, 1), (2, 2), (3, 3)]))
    writer.finish("finished")
    run = open_run(folder)
    assert verify(run) == []
    assert [(c.id, c.value, c.step) for c in run.knob_changes()] == [(2, 0.5, 2)]
    assert (run.knobs_at(1).noise, run.knobs.noise) == (1.0, 0.5)


def test_a_turn_is_checked_against_the_knobs_as_they_stand(tmp_path: Path) -> None:
    """CONFIG has 4 experts. Several turns at once are checked in the order given."""
    run = open_run(record(tmp_path / "a"))
    run.turn(off="1", k=3)
    for bad in ({"k": 4}, {"off": "1,2"}, {"k": 4, "off": ""}):
        with pytest.raises(ValueError, match="experts must stay on in each layer"):
            run.turn(**bad)
    run.turn(off="", k=4)
    assert (run.knobs.off, run.knobs.k) == ("", 4)
    assert len(run.knob_changes()) == 4
    assert verify(run) == []


def test_of_several_turns_one_bad_one_turns_none(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "a"))
    with pytest.raises(ValueError, match="k must be between 1 and num_experts=4, got 9"):
        run.turn(noise=0.5, k=9)
    with pytest.raises(ValueError, match="unknown knob"):
        run.turn(nose=1)
    assert run.knob_changes() == []


def test_commands_are_acknowledged(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    run = open_run(tmp_path / "a")
    asked = run.command("pause", who="me")
    (command,) = writer.pending().commands
    assert (command.id, command.name, command.step) == (asked, "pause", None)
    writer.command_seen = command.id
    writer.commit(Batch(1, rows(1, 0), acks=[(asked, 7, "done")], state="paused", reason="asked"))
    assert run.commands()[0][-2:] == (7, "done")
    assert (run.state, run.status().reason) == ("paused", "asked")
    with pytest.raises(StoreError, match="unknown command 'dance'"):
        run.command("dance")
    run.close()
    writer.finish("stopped")


def test_one_trainer_at_a_time_and_its_death_shows(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    writer = create_run(folder, CONFIG, Knobs())
    assert is_alive(folder)
    with pytest.raises(StoreError, match="exists already"):
        create_run(folder, CONFIG, Knobs())
    assert open_run(folder).state == "starting"
    os.close(writer.lock)  # what the kernel does when a process dies
    assert not is_alive(folder)
    assert open_run(folder).state == "interrupted"


WRITER = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.runs.test_store import *
writer = create_run(Path(sys.argv[1]), CONFIG, Knobs())
first = 1
while True:
    writer.commit(Batch(first, rows(first, 3), evals=[(first, {"loss": 1.0}, None)]))
    first += 3
    print(first - 1, flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start_writer(folder: Path, rest: float = 0.0) -> "subprocess.Popen[str]":
    """rest: seconds between two commits."""
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", WRITER, str(folder), str(root), str(rest)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.parametrize("lines", [1, 2, 5, 11, 40, 90, 200, 400])
def test_after_kill_9_no_acknowledged_step_is_missing(tmp_path: Path, lines: int) -> None:
    folder = tmp_path / "a"
    with start_writer(folder) as writer:
        assert writer.stdout
        acknowledged = [int(writer.stdout.readline()) for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1] if line]
    run = open_run(folder)
    assert run.state == "interrupted"
    assert run.steps()[1] >= acknowledged[-1]
    last = run.steps()[1]
    np.testing.assert_array_equal(np.concatenate([b.rows for b in run.blocks()]), rows(1, last))
    assert verify(run) == []


TURNER = """
import sys
sys.path.insert(0, sys.argv[2])
from moe_core.runs import open_run
run = open_run(__import__("pathlib").Path(sys.argv[1]))
for i in range(250):
    run.turn(who=sys.argv[3], noise=(4 * i + int(sys.argv[3])) / 1000)  # no two alike: the same value again is no turn
"""


def test_a_thousand_turns_by_four_processes_beside_a_trainer_and_none_is_lost(tmp_path: Path) -> None:
    folder, root = tmp_path / "a", Path(__file__).parents[2]
    # At most 100 commits a second, ten times a trainer's: without a rest the file is never free on a slow disk, and since
    # SQLite wakes waiters in no order, one may then wait longer than it is told to.
    with start_writer(folder, 0.01) as writer:
        assert writer.stdout
        writer.stdout.readline()
        turners = [
            subprocess.Popen([sys.executable, "-c", TURNER, str(folder), str(root), str(i)], cwd=root) for i in range(4)
        ]
        while any(turner.poll() is None for turner in turners):
            writer.stdout.readline()
        writer.kill()
        writer.stdout.read()
    assert [turner.returncode for turner in turners] == [0, 0, 0, 0]
    run = open_run(folder)
    changes = run.knob_changes()
    assert len(changes) == 1000
    for who in "0123":
        assert [c.value for c in changes if c.who == who] == [(4 * i + int(who)) / 1000 for i in range(250)]
    assert all(after.previous == before.value for before, after in itertools.pairwise(changes))
    assert verify(run) == []


def test_a_flipped_bit_in_a_block_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    with sqlite3.connect(folder / "run.db") as db:
        data = bytearray(db.execute("SELECT data FROM blocks WHERE id = 2").fetchone()[0])
        data[len(data) // 2] ^= 1
        db.execute("UPDATE blocks SET data = ? WHERE id = 2", (bytes(data),))
    db.close()
    run = open_run(folder)
    with pytest.raises(StoreError, match=r"block 2 .from step 11. is not what was written"):
        run.blocks()
    assert run.history("loss", last=10)[0].tolist() == list(range(1, 11))  # what is whole stays readable
    assert any("block 2" in finding for finding in verify(run))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DELETE FROM blocks WHERE id = 2", "blocks 2 to 3 (steps 11 to 30)"),
        ("DELETE FROM blocks WHERE id = 1", "blocks 1 to 2 (steps 1 to 20)"),
        ("UPDATE blocks SET first = first + 1 WHERE id = 3", "block 3"),
        (
            "UPDATE blocks SET data = (SELECT data FROM blocks WHERE id = 1), chain = (SELECT chain FROM blocks WHERE id = 1) WHERE id = 2",
            "blocks 2 to 3 (steps 11 to 30)",
        ),
        ("UPDATE knobs SET value = 3", "knob change 1 is not what was written"),
        ("DELETE FROM blocks WHERE id = 3", "10 steps are lost after step 20"),
        ("UPDATE snapshots SET data = x'00'", "snapshot 1 is not what was written"),
    ],
)
def test_verify_finds_what_was_changed(tmp_path: Path, damage: str, says: str) -> None:
    folder = tmp_path / "a"
    writer = create_run(folder, CONFIG, Knobs())
    writer.commit(Batch(1, rows(1, 10), snapshots=[(1, "probe", {"experts": np.zeros(3, np.uint8)})]))
    for first in (11, 21):
        writer.commit(Batch(first, rows(first, 10)))
    run = open_run(folder)
    run.turn(noise=0.5)
    run.close()
    writer.finish("finished")
    assert verify(open_run(folder)) == []
    edit(folder, damage)
    assert any(says in finding for finding in verify(open_run(folder)))


@pytest.mark.parametrize(("first", "width"), [(1, 128), (3, 128), (7, 128), (6, 127), (6, 0)])
def test_rows_that_do_not_follow_the_record_are_refused_and_nothing_is_written(
    tmp_path: Path, first: int, width: int
) -> None:
    writer = create_run(tmp_path / "a", Config(), Knobs())
    writer.commit(Batch(1, np.ones((5, 128), np.float32)))
    with pytest.raises(
        ValueError, match=f"^rows must begin at step 6 with 128 columns, got step {first} with {width}$"
    ):
        writer.commit(Batch(first, np.ones((5, width), np.float32)))
    writer.commit(Batch(6, np.ones((5, 128), np.float32)))
    writer.finish("stopped")
    assert verify(open_run(tmp_path / "a")) == []


def test_a_block_of_another_width_is_refused_though_its_chain_is_right(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", Config(), Knobs())
    writer.layout.width = 3  # as another writer would
    writer.commit(Batch(1, np.ones((5, 3), np.float32)))
    writer.finish("finished")
    with pytest.raises(StoreError, match=r"block 1 .* is not what was written"):
        open_run(tmp_path / "a").history("loss")


def test_a_turn_that_was_changed_is_named_and_no_other(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    run = open_run(folder)
    for value in (0.5, 0.4, 0.3):
        run.turn(noise=value)
    run.close()
    assert verify(open_run(folder)) == []
    last = len(open_run(folder).knob_changes())
    edit(folder, "UPDATE knobs SET value = 0.9 WHERE id = (SELECT max(id) - 1 FROM knobs)")
    assert verify(open_run(folder)) == [f"knob change {last - 1} is not what was written; the others can be read"]


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    edit(folder, "UPDATE run SET about = replace(about, '\"seed\": 0', '\"seed\": 1')")
    with pytest.raises(StoreError, match="settings are not what was written"):
        open_run(folder)


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE t (x)",
        "CREATE TRIGGER g AFTER INSERT ON knobs BEGIN DELETE FROM knobs; END",
    ],
)
def test_a_file_with_what_is_not_ours_is_refused_and_hides_no_other(tmp_path: Path, foreign: str) -> None:
    record(tmp_path / "good")
    folder = record(tmp_path / "bad")
    edit(folder, foreign)
    with pytest.raises(StoreError, match="MoEscope does not make"):
        open_run(folder)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "run.db").write_bytes(b"no database")
    listed = {one.id: one for one in list_runs(tmp_path)}
    assert listed["good"].problem == ""
    assert "MoEscope does not make" in listed["bad"].problem
    assert listed["junk"].problem


def test_a_run_of_a_later_version_says_so(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    edit(folder, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="later version"):
        open_run(folder)


def test_snapshots_old_ones_are_thinned_and_the_first_and_last_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By seconds of training: neither a calendar that is set a year forward nor a pause makes them old."""
    clock = SimpleNamespace(wall=1_000_000.0, seconds=0.0)
    stand_in = SimpleNamespace(time=lambda: clock.wall, monotonic=lambda: clock.seconds)
    monkeypatch.setattr("moe_core.runs.writer.time", stand_in)
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    writer.db.execute("PRAGMA synchronous = OFF")  # 4,500 commits that need not outlive a power cut
    of_probe = {
        "experts": np.zeros((CONFIG.layers, 1, 1), np.uint8),
        "gates": np.ones((CONFIG.layers, 1, 1), np.float16),
    }
    step = 0
    for _ in range(900 * 5):  # 15 minutes at five a second
        clock.seconds += 0.2
        step += 1
        if step == 3000:
            clock.wall += 365 * 86400
            clock.seconds += 3600
            writer.commit(Batch(step, rows(step, 0)))
        writer.commit(Batch(step, rows(step, 1), snapshots=[(step, "probe", of_probe | {"e": np.array([step])})]))
    writer.thinned = 0.0
    writer.commit(Batch(step, rows(step, 0)))
    monkeypatch.undo()
    run = open_run(tmp_path / "a")
    ages = (step - run.snapshots()) * 0.2
    assert 295 <= (ages < 60).sum() <= 301
    assert 530 <= ((ages >= 60) & (ages < 600)).sum() <= 600  # one a second; a few more where spans meet
    assert 30 <= (ages >= 600).sum() <= 45
    assert {1, step} <= set(run.snapshots().tolist())
    snapshot = run.snapshot(step=2)
    assert snapshot is not None
    assert snapshot[0] == 1
    np.testing.assert_array_equal(snapshot[1]["e"], [1])
    run.close()
    writer.finish("stopped")


def test_the_choices_that_churn_compares_are_never_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(seconds=0.0)
    stand_in = SimpleNamespace(time=lambda: 1_000_000.0, monotonic=lambda: clock.seconds)
    monkeypatch.setattr("moe_core.runs.writer.time", stand_in)
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    writer.db.execute("PRAGMA synchronous = OFF")
    for step in range(1, 1001):  # 1,000 seconds of training
        clock.seconds += 1.0
        taken = [(step, kind, {"experts": np.zeros((1, 1, 1), np.uint8)}) for kind in ("choices", "probe")]
        writer.commit(Batch(step, rows(step, 1), snapshots=taken if step % 2 == 0 else []))
    monkeypatch.undo()
    run = open_run(tmp_path / "a")
    assert run.snapshots("choices").tolist() == list(range(2, 1001, 2))
    assert len(run.snapshots("probe")) < 400
    run.close()
    writer.finish("stopped")


def test_rows_and_arrays_survive_packing() -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    values[0, 0] = np.nan
    np.testing.assert_array_equal(unpack_rows(pack_rows(values), 7, 5), values)
    arrays = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.zeros((0, 2), np.float16), "c": np.array(1.5)}
    back = unpack_arrays(pack_arrays(arrays))
    assert {name: (a.dtype, a.shape) for name, a in back.items()} == {
        name: (a.dtype, a.shape) for name, a in arrays.items()
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_a_blob_that_claims_too_little_is_refused() -> None:
    packed = pack_rows(np.zeros((1000, 50), np.float32))
    with pytest.raises(ValueError, match="wanted 4 bytes"):
        unpack_rows(packed, 1, 1)
    with pytest.raises(ValueError, match="damaged"):
        unpack_rows(packed[:-3], 1000, 50)


def test_a_reader_lets_go_when_closed_and_opens_again(tmp_path: Path) -> None:
    run = Run(record(tmp_path / "a"))
    run.close()
    assert run.steps() == (1, 30)


def test_size_and_growth_are_looked_up_where_they_are_asked_for(tmp_path: Path) -> None:
    """A run that trains at ten steps a second grows by its blocks' bytes a step, 36,000 times an hour; an ended one does not."""
    record(tmp_path / "ended")
    writer = create_run(tmp_path / "trains", CONFIG, Knobs())
    seconds = next(c.start for c in layout(CONFIG.layers, CONFIG.num_experts) if c.stat == "seconds")
    rows_nC = rows(1, 50)
    rows_nC[:, seconds] = 0.1
    writer.commit(Batch(1, rows_nC, state="training"))
    assert {(one.size, one.growth) for one in list_runs(tmp_path)} == {(0, 0.0)}
    listed = {one.id: one for one in list_runs(tmp_path, room=True)}
    writer.finish("stopped")
    assert listed["ended"].growth == 0
    assert listed["ended"].size > (tmp_path / "ended" / "run.db").stat().st_size > 0
    assert listed["trains"].growth == pytest.approx(36_000 * (len(pack_rows(rows_nC)) + 64) / 50, rel=1e-3)


def moves_of(writer: RunWriter, commits: int) -> tuple[int, int]:
    """How often the log was moved in that many commits, and how many pages those wrote."""
    moves: list[str] = []
    writer.db.set_trace_callback(lambda statement: moves.append(statement) if "wal_checkpoint" in statement else None)
    pages, seen = 0, log_pages(writer.folder / "run.db-wal")
    for _ in range(commits):
        writer.commit(Batch(writer.step + 1, rows(writer.step + 1, 2)))
        now = log_pages(writer.folder / "run.db-wal")
        pages += now[1] - (seen[1] if now[0] == seen[0] else 0)
        seen = now
    return len(moves), pages


def test_the_log_is_moved_once_in_a_thousand_pages(tmp_path: Path) -> None:
    """Also when its file has long been that large, and when a reader keeps it from being moved in full."""
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    writer.db.execute("PRAGMA synchronous = OFF")
    moves, pages = moves_of(writer, 1000)
    assert 3 * WAL_PAGES < pages < 30 * WAL_PAGES
    assert moves == pages // WAL_PAGES or moves == pages // WAL_PAGES - 1  # a few pages beyond the mark each time
    assert (tmp_path / "a" / "run.db-wal").stat().st_size < 1.2 * WAL_PAGES * 4120  # it begins again at the front
    with contextlib.closing(sqlite3.connect(tmp_path / "a" / "run.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM blocks").fetchall()
        held, more = moves_of(writer, 1000)
    assert 0 < held <= more // WAL_PAGES
    again, pages = moves_of(writer, 1000)
    assert 0 < again <= pages // WAL_PAGES + 1
    assert (tmp_path / "a" / "run.db-wal").stat().st_size < 10 * WAL_PAGES * 4120
    writer.finish("stopped")
    assert open_run(tmp_path / "a").steps() == (1, 6000)


def test_verify_beside_a_writer_that_commits_finds_nothing(tmp_path: Path) -> None:
    """It read the blocks, and then a tip that told of more."""
    folder = tmp_path / "a"
    with start_writer(folder) as writer:
        assert writer.stdout
        first = int(writer.stdout.readline())
        findings = [verify(open_run(folder)) for _ in range(20)]
        writer.kill()
        last = int(writer.stdout.read().split()[-1])
    assert findings == [[]] * 20
    assert last > first + 20  # it did commit meanwhile

"""A run of many columns, whose layers are stored apart: each is read without the others, and what is damaged is one layer's."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard import kept
from moe_core.dashboard.feed import Feed
from moe_core.runs import Batch, Run, StoreError, create_run, hold_lock, open_run, resume_run, verify
from moe_core.runs.branch import branch_off
from moe_core.schema import Config, Knobs, layout, measured_in

CONFIG = Config(num_experts=4, layers=3)
COLUMNS = sum(column.width for column in layout(3, 4))
PARTS = 4  # three layers, and what is measured once a step


def rows(first: int, n: int) -> np.ndarray:
    """Rows that tell their own step: column c of step s holds s + c / 1000."""
    return (np.arange(first, first + n)[:, None] + np.arange(COLUMNS) / 1000).astype(np.float32)


def record(folder: Path, end: str = "finished") -> Run:
    writer = create_run(folder, CONFIG, Knobs())
    for first in range(1, 31, 10):
        writer.commit(Batch(first, rows(first, 10), state="training"))
    writer.finish(end)
    return open_run(folder)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("moe_core.runs.begin.APART", 1)
    return record(tmp_path / "apart")


def edit(run: Run, sql: str, *values: int) -> None:
    run.close()
    with contextlib.closing(sqlite3.connect(run.path / "run.db")) as db, db:
        db.execute(sql, values)


def parts_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of parts that are asked for from now on."""
    asked, query = list[int](), run.query

    def noted(sql: str, values: Any = ()) -> list[Any]:
        if "JOIN parts" in sql:
            asked.extend(json.loads(values[0]))
        return query(sql, values)

    monkeypatch.setattr(run._blocks, "query", noted)
    return asked


def test_every_number_comes_back_as_it_was_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.runs.begin.APART", COLUMNS + 1)
    together = record(tmp_path / "together")
    assert (run.stored.apart, together.stored.apart) == (True, False)
    assert together.query("SELECT count(*) FROM parts") == [(0,)]
    np.testing.assert_array_equal(np.concatenate([block.rows for block in run.blocks()]), rows(1, 30))
    np.testing.assert_array_equal(run.rows(8, 12), rows(8, 5))
    for stat in measured_in(run.layout):
        for layer in range(3):
            for span in ((None, None), (8, 12), (21, 99), (31, None)):
                one, other = (each.history(stat, layer, *span) for each in (run, together))
                np.testing.assert_array_equal(one[0], other[0])
                np.testing.assert_array_equal(one[1], other[1])
    assert verify(run) == verify(together) == []


def test_a_layer_is_read_without_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = parts_read(run, monkeypatch)
    run.history("cv_load", 1, first=5, last=15)
    assert asked == [3, 7]  # of two blocks of four parts, each time the third: the layer with index 1
    asked.clear()
    run.history("load", 1, first=5, last=15)
    assert asked == []  # kept
    run.history("loss")
    assert asked == [1, 5, 9]


def test_a_long_history_is_read_in_pieces(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.runs.blocks.PIECE", 7 * 4)  # less than a block
    steps, values = run.history("task_loss", first=3, last=28)
    assert steps.tolist() == [*range(3, 29)]
    np.testing.assert_array_equal(values, rows(3, 26)[:, 1])
    edit(run, "DELETE FROM blocks WHERE id = 3")
    assert len(run.history("task_loss")[0]) == 20
    assert any("10 steps are lost after step 20" in line for line in run.damage)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE parts SET data = (SELECT data FROM parts WHERE id = 4) WHERE id = 3",
        "UPDATE parts SET data = zeroblob(20) WHERE id = 3",
        "UPDATE parts SET data = 'words' WHERE id = 3",
        "DELETE FROM parts WHERE id = 3",
    ],
)
def test_a_damaged_part_is_its_layers_only(run: Run, damage: str) -> None:
    edit(run, damage)
    assert len(run.history("load", 0)[0]) == len(run.history("loss")[0]) == 30
    assert len(run.history("load", 1, first=11)[0]) == 20
    with pytest.raises(StoreError, match=r"block 1 .from step 1. is not what was written"):
        run.history("load", 1)
    assert any("block 1" in line for line in verify(run))


@pytest.mark.parametrize("id", [-1, 3 * PARTS + 1, 10**9])
def test_parts_of_no_block_are_named_and_keep_nobody_from_resuming(run: Run, id: int) -> None:
    edit(run, "INSERT INTO parts VALUES (?, 'words')", id)
    assert verify(run) == ["1 rows of parts belong to no block"]
    writer = resume_run(run.path, hold_lock(run.path), "test", 40)
    writer.commit(Batch(31, rows(31, 10), state="training"))
    writer.finish("stopped")
    np.testing.assert_array_equal(open_run(run.path).rows(1, 40), rows(1, 40))


@pytest.mark.parametrize("size", [16, 64, 80])
def test_digests_of_other_parts_are_damage(run: Run, size: int) -> None:
    edit(run, "UPDATE blocks SET data = zeroblob(?) WHERE id = 2", size)
    with pytest.raises(StoreError, match="block 2"):
        run.history("loss")


def test_a_fork_and_a_resume_store_layers_as_their_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {}
    for name, least in (("apart", 1), ("together", COLUMNS + 1)):
        monkeypatch.setattr("moe_core.runs.begin.APART", least)
        runs[name] = record(tmp_path / name, "stopped")
    monkeypatch.undo()
    for name, run in runs.items():
        copy = tmp_path / f"fork of {name}"
        os.close(branch_off(run, 25, {}, copy))
        fork = open_run(copy)
        np.testing.assert_array_equal(fork.rows(1, 25), rows(1, 25))
        writer = resume_run(run.path, hold_lock(run.path), "test", 40)
        writer.commit(Batch(31, rows(31, 10), state="training"))
        writer.finish("stopped")
        resumed = open_run(run.path)
        np.testing.assert_array_equal(resumed.rows(1, 40), rows(1, 40))
        parts = [each.query("SELECT count(*) FROM parts")[0][0] for each in (fork, resumed)]
        assert parts == ([PARTS, 4 * PARTS] if name == "apart" else [0, 0])
        assert verify(fork) == verify(resumed) == []


def test_a_feed_reads_the_past_of_what_is_shown_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 5)
    feed = Feed(open_run(run.path))
    feed.refresh()
    asked = parts_read(feed.run, monkeypatch)
    for stat, layer in (("load", 1), ("cv_load", 1), ("loss", 0)):
        steps, values = feed.history(stat, layer, bins=100)
        np.testing.assert_array_equal(values, run.history(stat, layer)[1])
        assert steps.tolist() == [*range(1, 31)]
    assert feed.behind == 0
    assert {number % PARTS for number in asked} == {1, 3}
    asked.clear()
    np.testing.assert_array_equal(feed.history("counts", 2, 4, 18)[1], run.history("counts", 2, 4, 18)[1])
    assert asked == [4, 8]
    assert len(feed.history("counts", 2, 4, 19)[0]) == 16
    assert asked == [4, 8]  # its rows are in memory


def test_a_feed_lets_go_of_the_histories_that_nobody_asks_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 5)
    feed, clock = Feed(open_run(run.path)), [1000.0]
    feed.refresh()
    monkeypatch.setattr(kept.time, "monotonic", lambda: clock[0])
    one = 30 * (8 + 4 * 4)  # bytes of a history of four experts
    monkeypatch.setattr(kept, "HISTORIES", one)
    for layer in range(3):
        feed.history("load", layer, bins=10)
        clock[0] += 1
    assert len(feed.series) == 3  # all of them were asked for in the last minute
    clock[0] += kept.FORGOTTEN
    monkeypatch.setattr(kept, "HISTORIES", 2 * one)
    feed.history("load", 0, bins=10)
    feed.history("counts", 0, bins=10)
    assert [*feed.series] == [("load", 0, 1), ("load", 2, 1), ("counts", 0, 1)]
    np.testing.assert_array_equal(feed.history("load", 1, bins=10)[1], run.history("load", 1, bins=10)[1])

"""A run of which a block of steps is damaged: all that can be read is shown, and a line says what cannot."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.runs import Batch, Run, RunWriter, StoreError, create_run, open_run, verify
from moe_core.runs.codec import HEADER, link
from moe_core.runs.database import DamagedError
from moe_core.schema import Config, Knobs, layout
from tests.runs.test_damage import flip, flips, pages_of

EXPERTS, LAYERS, BLOCKS, EACH = 4, 2, 6, 10  # steps in each block
LAST = BLOCKS * EACH
CONFIG = Config.for_task("plane", num_experts=EXPERTS, layers=LAYERS, steps=LAST)
COLUMNS = sum(c.width for c in layout(LAYERS, EXPERTS))
PARTS = LAYERS + 1


def rows(first: int, n: int) -> np.ndarray:
    """Rows that tell their own step: column c of step s holds s + c / 1000."""
    return (np.arange(first, first + n)[:, None] + np.arange(COLUMNS) / 1000).astype(np.float32)


def commit(writer: RunWriter, block: int) -> None:
    writer.commit(Batch(first := 1 + EACH * (block - 1), rows(first, EACH), state="training"))


@pytest.fixture(params=[False, True], ids=["plain", "apart"])
def whole(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("moe_core.runs.begin.APART", 1 if request.param else COLUMNS + 1)
    writer = create_run(tmp_path / "runs" / "run", CONFIG, Knobs())
    for block in range(1, BLOCKS + 1):
        commit(writer, block)
    writer.finish("finished")
    run = open_run(writer.folder)
    assert run.stored.apart == request.param
    run.close()
    return writer.folder


def edit(folder: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as db, db:
        db.executescript(sql)


def spoil(*blocks: int) -> str:
    return "".join(f"UPDATE blocks SET data = zeroblob(length(data)) WHERE id = {id};" for id in blocks)  # noqa: S608


def steps_of(*blocks: int) -> list[int]:
    return [step for block in blocks for step in range(1 + EACH * (block - 1), 1 + EACH * block)]


# (the damage, the blocks whose steps are lost, what the line says)
DAMAGE = {
    "first": (spoil(1), [1], "block 1 (steps 1 to 10) is"),
    "middle": (spoil(3), [3], "block 3 (steps 21 to 30) is"),
    "last": (spoil(6), [6], "block 6 (steps 51 to 60) is"),
    "two in a row": (spoil(2, 3), [2, 3], "blocks 2 to 3 (steps 11 to 30) are"),
    "first and last": (spoil(1, 6), [1, 6], "block 1 (steps 1 to 10), block 6 (steps 51 to 60) are"),
    "four": (spoil(1, 2, 4, 6), [1, 2, 4, 6], "blocks 1 to 2 (steps 1 to 20), block 4 (steps 31 to 40), block 6 (steps 51 to 60) are"),
    "each other": (";".join([spoil(1, 3, 5), "UPDATE blocks SET n = 3 WHERE id = 6"]), [1, 3, 5, 6], "block 1 (steps 1 to 10), block 3 (steps 21 to 30), blocks 5 to 6 (steps 41 to 60) are"),
    "all": (spoil(*range(1, 7)), [*range(1, 7)], "blocks 1 to 6 (steps 1 to 60) are"),
    "a link": ("UPDATE blocks SET chain = zeroblob(16) WHERE id = 2", [2, 3], "blocks 2 to 3 (steps 11 to 30) are"),
    "the last link": ("UPDATE blocks SET chain = 'words' WHERE id = 6", [6], "block 6 (steps 51 to 60) is"),
    "no row": ("DELETE FROM blocks WHERE id = 3", [3, 4], "blocks 3 to 4 (steps 21 to 40) are"),
    "no first row": ("DELETE FROM blocks WHERE id = 1", [1, 2], "blocks 1 to 2 (steps 1 to 20) are"),
    "its first step, too high": ("UPDATE blocks SET first = 1000000 WHERE id = 1", [1], "block 1 (steps 1 to 10) is"),
    "its first step, too low": ("UPDATE blocks SET first = 5 WHERE id = 3", [3], "block 3 (steps 21 to 30) is"),
    "its first step, none": ("UPDATE blocks SET first = 'words' WHERE id = 3", [3], "block 3 (steps 21 to 30) is"),
    "its number of steps": ("UPDATE blocks SET n = 1000000 WHERE id = 6", [6], "block 6 (steps 51 to 60) is"),
    "its columns": ("UPDATE blocks SET columns = 1 WHERE id = 3", [3], "block 3 (steps 21 to 30) is"),
    "its data, words": ("UPDATE blocks SET data = 'words' WHERE id = 3", [3], "block 3 (steps 21 to 30) is"),
}  # fmt: skip


def check(
    steps: np.ndarray, values: np.ndarray, lost: list[int], column: int, span: range = range(1, LAST + 1)
) -> None:
    """All steps are there but for those that are lost at the end; NaN where a step is lost, the recorded value elsewhere."""
    gone, wanted = set(steps_of(*lost)), list(span)
    while wanted and set(range(wanted[-1], LAST + 1)) <= gone:
        wanted.pop()
    assert steps.tolist() == wanted
    expected = rows(span.start, len(span))[: len(wanted), column]
    np.testing.assert_array_equal(values, np.where([step in gone for step in wanted], np.nan, expected))


def column_of(stat: str, layer: int = -1) -> int:
    return next(c.start for c in layout(LAYERS, EXPERTS) if (c.stat, c.layer) == (stat, layer))


SPANS = [range(1, 61), range(7, 9), range(22, 28), range(25, 46), range(55, 61), range(11, 12), range(60, 61)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_can_be_read_of_a_damaged_record_is_read(
    whole: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, lost, says = DAMAGE[damage]
    edit(whole, change)
    for span in SPANS:  # each by a fresh reader, which knows nothing of the others
        run = Run(whole)
        check(*run.history("loss", first=span.start, last=span.stop - 1, gaps=True), lost, column_of("loss"), span)
    line = f"run run is damaged: {says} not what was written; all else can be read"
    run = Run(whole)
    for layer in range(LAYERS):
        check(*run.history("dropped", layer, gaps=True), lost, column_of("dropped", layer))
    run.history("loss", first=1, last=LAST, gaps=True)  # which is kept, and must not be given to somebody strict
    readable = max({0, *range(1, LAST + 1)} - set(steps_of(*lost)))
    assert run.readable() == readable
    assert run.damage == [line]
    for at_once in (64, 1):
        monkeypatch.setattr("moe_core.runs.whole.AT_ONCE", at_once)
        assert verify(Run(whole)) == [line.removeprefix("run run is damaged: ")]
    with pytest.raises(StoreError, match="is damaged"):  # whoever trains or judges by it
        run.history("loss", first=1, last=LAST)
    with pytest.raises(StoreError):
        Run(whole).rows(1, LAST)


def test_no_more_blocks_are_read_at_once_than_are_asked_for_but_up_to_the_next_that_is_whole(whole: Path) -> None:
    edit(whole, spoil(3, 5))
    run = Run(whole)

    def ids(after: int, most: int) -> list[int]:
        return [block.id for block in run.blocks(after=after, most=most, gaps=True)]

    assert (ids(1, 2), ids(2, 2), ids(2, 1), ids(2, 3)) == ([2, 3, 4], [3, 4], [3, 4], [3, 4, 5, 6])


@pytest.mark.parametrize(("first", "last"), [(1, 0), (1, -5), (31, 30), (61, 60), (0, 0)])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_range_of_no_steps_is_empty_and_no_damage(whole: Path, first: int, last: int, gaps: bool) -> None:
    run = Run(whole)
    assert len(run.history("loss", first=first, last=last, gaps=gaps)[0]) == 0
    assert run.damage == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_fresh_page_shows_what_can_be_read(whole: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by pieces, as of a long run."""
    change, lost, says = DAMAGE[damage]
    edit(whole, change)
    for recent in (1024, 7):
        monkeypatch.setattr("moe_core.dashboard.histories.RECENT", recent)
        monkeypatch.setattr("moe_core.dashboard.histories.PIECE", 1 if recent == 7 else 256)
        feed = Feed(Run(whole))
        feed.refresh()
        for _ in range(3 * BLOCKS):
            steps, values = feed.history("loss", bins=1000)
            feed.catch_up()
        raw = feed.history("loss", first=2, last=5)  # every step of a range, which is read when it is asked for
        check(*raw, lost if feed.last else [1], column_of("loss"), range(2, 6) if feed.last else range(0))
        check(steps, values, lost, column_of("loss"))
        assert not feed.behind
        assert feed.problem == f"run run is damaged: {says} not what was written; all else can be read"
        assert feed.steps()[1] == feed.last == Run(whole).readable()


def test_a_layer_that_is_damaged_hides_no_other(whole: Path) -> None:
    if not Run(whole).stored.apart:
        pytest.skip("its layers lie in one piece")
    edit(
        whole,
        f"UPDATE parts SET data = zeroblob(9) WHERE id = {2 * PARTS + 3}; DELETE FROM parts WHERE id = {5 * PARTS + 1}",  # noqa: S608
    )
    run = Run(whole)
    check(*run.history("dropped", 0, gaps=True), [], column_of("dropped", 0))
    assert not any("layer 2" in line for line in run.damage)  # which was not asked for
    steps, values = run.history("dropped", 1, gaps=True)
    assert steps[np.isnan(values)].tolist() == steps_of(3)
    steps, values = run.history("loss", gaps=True)
    assert steps[np.isnan(values)].tolist() == steps_of(6)
    line = "layer 2 in block 3 (steps 21 to 30), what is measured once a step in block 6 (steps 51 to 60) are not what was written; all else can be read"
    assert run.damage == [f"run run is damaged: {line}"]
    assert verify(Run(whole)) == [line]
    feed = Feed(Run(whole))
    feed.refresh()
    assert feed.last == 60
    check(*feed.history("dropped", 0, bins=1000), [], column_of("dropped", 0))
    steps, values = feed.history("dropped", 1, bins=1000)
    assert steps[np.isnan(values)].tolist() == steps_of(3)


def test_a_page_beside_a_trainer_goes_on_behind_a_block_that_is_damaged(tmp_path: Path) -> None:
    """As long as it is the last, nobody knows how many steps it has."""
    writer = create_run(tmp_path / "run", CONFIG, Knobs())
    commit(writer, 1)
    feed = Feed(open_run(writer.folder))
    feed.refresh()
    commit(writer, 2)
    edit(writer.folder, spoil(2))
    feed.refresh(now=True)
    assert feed.last == 10
    assert "block 2 (steps 11 to 20) is" in feed.problem
    commit(writer, 3)
    feed.refresh(now=True)
    commit(writer, 4)
    feed.refresh(now=True)
    assert feed.last == 40
    steps, values = feed.history("loss", bins=1000)
    assert steps[np.isnan(values)].tolist() == steps_of(2)
    writer.finish("stopped")


def test_experts_that_were_switched_off_where_the_record_is_damaged_hide_nothing(tmp_path: Path) -> None:
    """Since when such an expert had no tokens is asked of the steps before."""
    writer = create_run(tmp_path / "run", CONFIG, Knobs())
    run = open_run(writer.folder)
    commit(writer, 1)
    turn = run.turn(off="2:1")
    run.close()
    writer.commit(Batch(11, rows(11, 10), applied=[(turn, 11)], state="training"))
    writer.finish("finished")
    edit(writer.folder, spoil(1))
    feed = Feed(Run(writer.folder))
    feed.refresh()
    steps, values = feed.history("selection_share", 1, bins=1000)
    assert steps[np.isnan(values).all(1)].tolist() == steps_of(1)
    assert values[10:, 0].tolist() == [0.0] * 10


def relink(folder: Path, id: int, first: int) -> None:
    """Give a block another first step, and each block from it on a link that is right."""
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as db, db:
        [(chain,)] = db.execute("SELECT chain FROM blocks WHERE id = ?", (id - 1,))
        db.execute("UPDATE blocks SET first = ? WHERE id = ?", (first, id))
        for at, *header, data in db.execute("SELECT id, first, n, columns, data FROM blocks WHERE id >= ? ORDER BY id", (id,)).fetchall():  # fmt: skip
            chain = link(chain, HEADER.pack(*header), data)
            db.execute("UPDATE blocks SET chain = ? WHERE id = ?", (chain, at))


@pytest.mark.parametrize("first", [5, 20, 22, 25, 40, 10**12])
def test_a_strangers_block_at_other_steps_is_damage_however_it_is_linked(whole: Path, first: int) -> None:
    relink(whole, 3, first)
    run = Run(whole)
    check(*run.history("loss", gaps=True), [3], column_of("loss"))
    assert run.damage == ["run run is damaged: block 3 (steps 21 to 30) is not what was written; all else can be read"]


def test_rows_that_a_hole_cannot_have_had_take_no_memory(whole: Path) -> None:
    """A stranger's file may say that the last block begins a billion steps later."""
    edit(whole, spoil(5))
    relink(whole, 6, 10**12)
    with pytest.raises(StoreError, match=r"block 5 cannot have held 999,999,999,959 steps"):
        Run(whole).history("loss", gaps=True)
    feed = Feed(Run(whole))
    feed.refresh()
    assert "cannot have held" in feed.problem


@pytest.mark.parametrize("table", ["blocks", "blocks_first", "parts"])
def test_a_flipped_bit_among_the_steps_shows_no_other_value(whole: Path, tmp_path: Path, table: str) -> None:
    if table == "parts" and not Run(whole).stored.apart:
        pytest.skip("its layers lie in one piece")
    with contextlib.closing(sqlite3.connect(whole / "run.db")) as db:
        size = db.execute("PRAGMA page_size").fetchone()[0]
    places = [(at, size) for at in pages_of(whole / "run.db", table)]
    read = {"same": 0, "some": 0, "none": 0}
    for at, bit in flips(places, 60, seed=len(places)):
        copy = Path(shutil.copytree(whole, tmp_path / "copy"))
        flip(copy / "run.db", at, bit)
        try:
            run = Run(copy)
            steps, values = run.history("loss", gaps=True)
        except StoreError:
            read["none"] += 1
        else:
            known = ~np.isnan(values)
            np.testing.assert_array_equal(values[known], rows(1, LAST)[steps[known] - 1, column_of("loss")])
            all_there = len(steps) == LAST and known.all()
            assert all_there or run.damage
            read["same" if all_there else "some"] += 1
        finally:
            shutil.rmtree(copy)
    assert read["none"] <= 20, read  # the header of a page that names all others
    assert read["same"] + read["some"] >= 40, read


def test_a_part_that_sqlite_cannot_read_is_its_layers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.runs.begin.APART", 1)
    writer = create_run(tmp_path / "run", CONFIG, Knobs())
    for block in (1, 2, 3):
        commit(writer, block)
    writer.finish("finished")
    run = Run(writer.folder)
    part = PARTS + 2  # of the second block, the first layer

    def malformed(sql: str, values: tuple[object, ...] = ()) -> list[object]:
        if "parts" in sql and (values == (part,) or (isinstance(values[0], str) and part in json.loads(values[0]))):
            raise DamagedError("run run cannot be read: database disk image is malformed")
        return run.query(sql, values)

    monkeypatch.setattr(run._blocks, "query", malformed)
    for stat, layer, lost in (("dropped", 0, [2]), ("dropped", 1, []), ("loss", 0, [])):
        steps, values = run.history(stat, layer, gaps=True)
        assert steps[np.isnan(values)].tolist() == steps_of(*lost)
    rows_nC = np.concatenate([block.rows for block in run.blocks(gaps=True)])
    assert np.isnan(rows_nC[10:20, column_of("dropped", 0)]).all()
    assert not np.isnan(rows_nC[:, column_of("dropped", 1)]).any()


@pytest.mark.parametrize("table", ["blocks", "parts"])
def test_a_page_of_the_table_that_cannot_be_read_hides_no_other_page(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite then reads no list of blocks from the table, only from the index."""
    monkeypatch.setattr("moe_core.runs.begin.APART", COLUMNS + 1 if table == "blocks" else 1)
    writer, blocks = create_run(tmp_path / "run", CONFIG, Knobs()), 60
    noise = (
        np.random.default_rng(0).random((blocks * EACH, COLUMNS)).astype(np.float32)
    )  # or all would fit into few pages
    for block in range(blocks):
        writer.commit(Batch(1 + EACH * block, noise[EACH * block :][:EACH], state="training"))
    writer.finish("finished")
    _, *leaves = pages_of(writer.folder / "run.db", table)
    assert len(leaves) > 10
    data = bytearray((writer.folder / "run.db").read_bytes())
    data[leaves[5]] = 0xFF
    (writer.folder / "run.db").write_bytes(data)
    run, missing = Run(writer.folder), 0
    for stat, layer in (("loss", -1), ("dropped", 0), ("dropped", 1)):
        steps, values = run.history(stat, max(0, layer), gaps=True)
        known = ~np.isnan(values)
        assert steps.tolist() == list(range(1, blocks * EACH + 1))
        np.testing.assert_array_equal(values[known], noise[known, column_of(stat, layer)])
        assert (~known).sum() <= 8 * EACH
        missing += int((~known).sum())
    assert missing
    assert len(run.damage) == 1


def test_a_reading_that_fails_is_no_damage(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a disk that hangs, or a query that takes too long."""
    edit(whole, spoil(1))
    run = Run(whole)

    def slow(sql: str, values: object = ()) -> list[object]:
        if "WHERE id = ?" in sql:
            raise StoreError("run run cannot be read: interrupted")
        return run.query(sql, values)

    monkeypatch.setattr(run._blocks, "query", slow)
    with pytest.raises(StoreError, match="interrupted"):
        run.history("loss", gaps=True)
    assert run.damage == []


def test_a_trainer_that_commits_faster_than_a_damaged_record_is_read_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create_run(tmp_path / "run", CONFIG, Knobs())
    for block in (1, 2, 3):
        commit(writer, block)
    edit(writer.folder, spoil(2))
    run, committed = open_run(writer.folder), [3]

    def faster(sql: str, values: object = ()) -> list[object]:
        committed.append(committed[-1] + 1)
        assert len(committed) < 100
        commit(writer, committed[-1])
        return run.query(sql, values)

    monkeypatch.setattr(run._blocks, "query", faster)
    assert [block.id for block in run.blocks(gaps=True)][:3] == [1, 2, 3]
    run.close()
    writer.finish("stopped")

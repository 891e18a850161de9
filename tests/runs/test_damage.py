"""A record with flipped bits: whatever a person reads of it is what was written, or it is said that it is not."""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.runs import Batch, Run, RunWriter, StoreError, create_run, hold_lock, open_run, resume_run, verify
from moe_core.runs.tip import HALF, NAME, read_tip
from moe_core.schema import Config, Knobs, layout
from moe_core.training.again import resume

CONFIG = Config.for_task("plane", num_experts=2, layers=1, steps=60)
COLUMNS = sum(c.width for c in layout(1, 2))


def rows(first: int, n: int) -> np.ndarray:
    return (np.arange(first, first + n)[:, None] + np.arange(COLUMNS) / 1000).astype(np.float32)


def shots(step: int) -> list[tuple[int, str, dict[str, np.ndarray]]]:
    arrays = {"experts": np.full((1, 8, 2), step % 2, np.uint8)}
    return [(step, "probe", arrays), (step, "full", {"w_gate": np.full((1, 2, 2), step, np.float16)})]


def make(folder: Path) -> RunWriter:
    """Six blocks, each with an evaluation and snapshots; turns and commands, one of each after the last step."""
    probe = {"points": np.zeros((8, 2), np.float32)}
    writer = create_run(folder, CONFIG, Knobs(), probe=probe, labels={"class": ["0", "1"]}, facts={"device": "cpu"})
    run = open_run(folder)
    for first in range(1, 60, 10):
        turn = run.turn(who="me", noise=first / 100)
        asked = run.command("step", who="me")
        text = f"a text of step {first + 9}"
        writer.commit(
            Batch(first, rows(first, 10), [(first + 9, {"loss": 1 / first, "accuracy": 0.992}, text)], shots(first + 9),
                  [(turn, first)], [(asked, first, "done")], "training")
        )  # fmt: skip
    run.turn(who="me", k=1)
    run.command("pause", who="me")
    run.close()
    return writer


def read(run: Run) -> dict[str, Any]:
    """All that a person reads of a run, each by itself: an error, and what is read twice in two ways, count too."""
    probes, full = run.snapshots().tolist(), run.snapshots("full").tolist()
    parts: dict[str, Callable[[], Any]] = {
        "settings": lambda: (run.about, run.config, run.started_knobs, run.labels, run.facts),
        "probe": lambda: {name: array.tolist() for name, array in run.probe().items()},
        "status": lambda: run.status()[:3] + run.status()[4:],
        "steps": run.steps,
        "history": lambda: [run.history(stat)[1].tolist() for stat in ("loss", "load", "cv_load")],
        "part": lambda: [values.tolist() for values in run.history("loss", first=23, last=41)],
        "evals": run.evals,
        "later evals": lambda: run.evals(after=3),
        "turns": run.knob_changes,
        "commands": run.commands,
        "snapshots": lambda: (probes, full),
        "snapshot": lambda: [(at, kind, shot and (shot[0], {n: a.tolist() for n, a in shot[1].items()}))
                             for kind in ("probe", "full") for at in (None, 5, 35, 40) for shot in (run.snapshot(at, kind),)],
        "growth": run.growth,
    }  # fmt: skip
    return {name: part() for name, part in parts.items()}


def outcome(folder: Path, whole: dict[str, Any]) -> str:
    """same: nothing that a person reads has changed; noticed: something is said; silent: neither."""
    try:
        run = Run(folder)
    except StoreError:
        return "noticed"
    try:
        found = read(run)
        if run.damage:
            return "noticed" if verify(run) else "silent"
        return "same" if found == whole else "silent"
    except StoreError:
        return "noticed"
    finally:
        run.close()


def pages_of(file: Path, name: str) -> list[int]:
    """The offsets of the pages that a table or an index takes up: those that change or go when its rows do."""
    with sqlite3.connect(file) as db:
        size = db.execute("PRAGMA page_size").fetchone()[0]
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    db.close()
    data, found, left = file.read_bytes(), [], [root]
    while left:  # a b-tree: inner pages (2 and 5) name those below, see sqlite.org/fileformat.html
        at = (left.pop() - 1) * size
        found.append(at)
        if data[at] in (2, 5):
            cells = int.from_bytes(data[at + 3 : at + 5])
            spots = [int.from_bytes(data[at + 12 + 2 * i :][:2]) for i in range(cells)]
            left += [int.from_bytes(data[at + spot :][:4]) for spot in spots] + [int.from_bytes(data[at + 8 :][:4])]
    return found


def flips(places: list[tuple[int, int]], many: int, seed: int) -> Iterator[tuple[int, int]]:
    """Seeded (offset, bit) within places (offset, length)."""
    rng = random.Random(seed)
    for _ in range(many):
        start, length = rng.choice(places)
        yield start + rng.randrange(length), rng.randrange(8)


def flip(file: Path, at: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = make(tmp_path_factory.mktemp("damage") / "run")
    writer.finish("finished")
    return writer.folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a killed trainer leaves it: all in the log. The turn and the command at its end came after the last commit."""
    writer = make(tmp_path_factory.mktemp("damage") / "run")
    left = writer.folder.with_name("killed")
    left.mkdir()
    for name in ("run.db", "run.db-wal", NAME):
        shutil.copy(writer.folder / name, left / name)
    writer.finish("stopped")
    return left


def count_outcomes(folder: Path, file: str, places: list[tuple[int, int]], many: int, tmp_path: Path) -> dict[str, int]:
    whole = read(Run(folder))
    assert Run(folder).damage == []
    counted = dict.fromkeys(("same", "noticed", "silent"), 0)
    for at, bit in flips(places, many, seed=len(places)):
        copy = Path(shutil.copytree(folder, tmp_path / "run", dirs_exist_ok=True))
        flip(copy / file, at, bit)
        counted[outcome(copy, whole)] += 1
        shutil.rmtree(copy)
    return counted


MANY = 40  # flips of each kind
TABLES = (
    "evals",
    "applied",
    "commands",
    "snapshots",
    "snapshots_step",
    "knobs",
    "state",
    "blocks",
    "blocks_first",
    "run",
)


@pytest.mark.parametrize("table", TABLES)
def test_a_flipped_bit_in_a_table_is_noticed_or_changes_nothing(sealed: Path, tmp_path: Path, table: str) -> None:
    with sqlite3.connect(sealed / "run.db") as db:
        size = db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    places = used(sealed / "run.db", pages_of(sealed / "run.db", table), size)
    counted = count_outcomes(sealed, "run.db", places, MANY, tmp_path)
    assert counted["silent"] == 0, counted
    assert counted["noticed"] > MANY // 2 or table.endswith(("_step", "_first")), counted  # an index is not needed


def used(file: Path, pages: list[int], size: int) -> list[tuple[int, int]]:
    """Of pages, the header with the places of the cells, and the cells; not what is free between."""
    data, places = file.read_bytes(), []
    for at in pages:
        header = 12 if data[at] in (2, 5) else 8
        cells, content = int.from_bytes(data[at + 3 : at + 5]), int.from_bytes(data[at + 5 : at + 7]) or 65536
        places += [(at, header + 2 * cells), (at + content, size - content)] if cells else [(at, header)]
    return [(start, length) for start, length in places if length > 0]


def test_a_flipped_bit_anywhere_in_a_sealed_file_is_noticed_or_changes_nothing(sealed: Path, tmp_path: Path) -> None:
    size = (sealed / "run.db").stat().st_size
    counted = count_outcomes(sealed, "run.db", [(0, 100), (0, size), (0, size)], 2 * MANY, tmp_path)
    assert counted["silent"] == 0, counted
    assert counted["noticed"] > 10, counted


def test_a_flipped_bit_in_the_log_of_a_killed_run_is_noticed_or_changes_nothing(killed: Path, tmp_path: Path) -> None:
    """From a flip on, SQLite reads nothing of a log and says nothing. The end is where a turn would vanish unseen."""
    size = (killed / "run.db-wal").stat().st_size
    counted = count_outcomes(
        killed, "run.db-wal", [(0, 32), (0, size), (size - 4 * 4120, 4 * 4120)], 2 * MANY, tmp_path
    )
    assert counted["silent"] == 0, counted
    assert counted["noticed"] > 1.5 * MANY, counted


@pytest.mark.parametrize(("cut", "says"), [(1, "1 of its commands is missing"), (3, "1 of its knob changes is missing"), (60, "steps are lost")])  # fmt: skip
def test_what_is_lost_from_the_end_of_a_log_is_named(killed: Path, tmp_path: Path, cut: int, says: str) -> None:
    """cut: pages. The last transaction is the command, the one before it the turn."""
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    wal = folder / "run.db-wal"
    wal.write_bytes(wal.read_bytes()[: wal.stat().st_size - cut * 4120])
    run = Run(folder)
    assert any(says in line for line in run.look_over()), run.damage
    assert any(says in finding for finding in verify(run))


def test_every_flipped_bit_of_the_tip_is_noticed(sealed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sealed, tmp_path / "run"))
    chain = Run(folder).chain
    whole = (folder / NAME).read_bytes()
    assert len(whole) == 2 * HALF.size
    noticed = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (folder / NAME).write_bytes(data)
        noticed += read_tip(folder, chain) is None
    assert noticed == 8 * len(whole) == 512
    assert any("run.tip is missing or damaged" in finding for finding in verify(Run(folder)))
    (folder / NAME).write_bytes(whole)
    assert verify(Run(folder)) == []
    for size in (0, HALF.size, len(whole) - 1, len(whole) + 1):
        (folder / NAME).write_bytes((whole + b"x")[:size])
        assert read_tip(folder, chain) is None


DAMAGE = [
    ("UPDATE evals SET metrics = replace(metrics, '0.992', '0.892') WHERE id = 3", "evaluation 3 is not what was written; the others can be read"),
    ("UPDATE evals SET text = 'another' WHERE id = 1", "evaluation 1 is not what was written; the others can be read"),
    ("UPDATE evals SET step = 31 WHERE id = 3", "evaluation 3 is not what was written; the others can be read"),
    ("UPDATE evals SET sum = NULL WHERE id = 3", "evaluation 3 is not what was written; the others can be read"),
    ("UPDATE evals SET text = CAST(x'61ff' AS TEXT) WHERE id = 1", "evaluation 1 is not what was written; the others can be read"),
    ("DELETE FROM evals WHERE id = 6", "1 of its evaluations is missing; the others can be read"),
    ("UPDATE applied SET step = 12 WHERE knob = 2", "step of effect of knob change 2 is not what was written; the others can be read"),
    ("DELETE FROM applied WHERE knob IN (2, 3)", "2 of its steps of effect are missing; the others can be read"),
    ("UPDATE knobs SET value = 0.9 WHERE id = 2", "knob change 2 is not what was written; the others can be read"),
    ("UPDATE knobs SET chain = zeroblob(16) WHERE id = 2", "knob change 2 is not what was written; the others can be read"),
    ("DELETE FROM knobs WHERE id = 7", "1 of its knob changes is missing; the others can be read"),
    ("UPDATE commands SET result = 'not done' WHERE id = 2", "command 2 is not what was written; the others can be read"),
    ("UPDATE snapshots SET step = 25 WHERE id = 5", "the list of its snapshots is not what was written; all else can be read"),
    ("DELETE FROM snapshots WHERE id = 3", "the list of its snapshots is not what was written; all else can be read"),
    ("UPDATE snapshots SET at = at + 1 WHERE id = 5", "snapshot 5 is not what was written; the one before it is shown instead"),
    ("UPDATE state SET reason = 'none'", "the state that its trainer wrote last is not what was written; all else can be read"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), DAMAGE)
def test_what_is_damaged_is_one_line_and_the_rest_reads(sealed: Path, tmp_path: Path, change: str, says: str) -> None:
    folder, whole = Path(shutil.copytree(sealed, tmp_path / "run")), read(Run(sealed))
    with sqlite3.connect(folder / "run.db") as db:
        db.execute(change)
    db.close()
    run = Run(folder)
    found = read(run)
    assert f"run run is damaged: {says}" in run.damage
    assert says in verify(run)
    table = change.replace("FROM ", "").split()[1]
    touched = {
        "evals": {"evals", "later evals"},
        "applied": {"turns"},
        "knobs": {"turns"},
        "commands": {"commands"},
        "snapshots": {"snapshots", "snapshot"},
        "state": {"status"},
    }[table]
    assert {name for name in whole if found[name] != whole[name]} <= touched
    assert len(found["evals"]) >= 5
    assert len(found["turns"]) >= 6


def test_a_record_whose_turns_are_damaged_is_not_trained_on(sealed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sealed, tmp_path / "run"))
    with sqlite3.connect(folder / "run.db") as db:
        db.execute("UPDATE applied SET step = 12 WHERE knob = 2")
    db.close()
    before = (folder / "run.db").read_bytes()
    with pytest.raises(StoreError, match="cannot be resumed, forked or replayed: step of effect of knob change 2"):
        resume(Run(folder), 70)
    assert (folder / "run.db").read_bytes() == before


def test_a_trainer_obeys_no_request_that_was_changed(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    run = open_run(tmp_path / "a")
    for value in (0.1, 0.2, 0.3):
        run.turn(noise=value)
        run.command("step")
    with sqlite3.connect(tmp_path / "a" / "run.db") as db:
        db.execute("UPDATE knobs SET value = 0.9 WHERE id = 2")
        db.execute("UPDATE commands SET name = 'stop' WHERE id = 2")
    db.close()
    pending = writer.pending()
    assert [(turn.id, turn.value) for turn in pending.knobs] == [(1, 0.1), (3, 0.3)]
    assert [(command.id, command.name) for command in pending.commands] == [(1, "step"), (3, "step")]
    writer.knob_seen = 2
    assert [turn.id for turn in writer.pending().knobs] == [3]
    run.close()
    writer.finish("stopped")


def test_steps_that_are_lost_are_noted_by_the_trainer_that_goes_on(killed: Path, tmp_path: Path) -> None:
    """Its own tip then takes the place of the one that told of them."""
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    wal = folder / "run.db-wal"
    wal.write_bytes(wal.read_bytes()[: wal.stat().st_size - 30 * 4120])
    run = Run(folder)
    last, lines = run.steps()[1], run.look_over()
    assert 0 < last < 60
    assert any(f"{60 - last} steps are lost after step {last}" in line for line in lines)
    run.close()
    writer = resume_run(folder, hold_lock(folder), "me", 0, lines)
    writer.finish("stopped")
    after = Run(folder)
    assert verify(after) == []
    assert after.sessions()[0]["notes"] == lines

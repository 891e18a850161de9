"""A run folder that somebody sent: refused in one line, and neither it nor what lies in it hangs or harms a reader."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_core.runs import StoreError, is_alive, last_words, list_runs, open_run, read_ablation, verify
from moe_core.runs.begin import resume_run
from moe_core.runs.codec import HEADER, START, link, unpack_arrays
from moe_core.runs.database import hold_lock
from moe_core.runs.runner import spawn
from moe_core.runs.statistics import Deal
from moe_core.runs.sums import insert, row_sum
from tests.runs.test_store import record

ROOT = Path(__file__).parents[2]
BOMB = zlib.compress(bytes(300 << 20), 9)  # 300 MB of zeros in 300 KB


def sql(*statements: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        db = sqlite3.connect(folder / "run.db", isolation_level=None)
        for statement in statements:
            db.execute(statement)
        db.close()

    return change


def settings(change: Callable[[dict], object], probe: bytes | None = None) -> Callable[[Path], None]:
    """Settings of their own, with a chain that is right: anyone can compute it."""

    def act(folder: Path) -> None:
        db = sqlite3.connect(folder / "run.db", isolation_level=None)
        text, old = db.execute("SELECT about, probe FROM run").fetchone()
        about = json.loads(text)
        text = changed if isinstance(changed := change(about), str) else json.dumps(about)
        chain = link(START, text, probe or old)
        db.execute("UPDATE run SET about = ?, probe = ?, chain = ?", (text, probe or old, chain))
        db.close()

    return act


def state(**changed: object) -> Callable[[Path], None]:
    """A state of their own, with a sum that is right."""

    def act(folder: Path) -> None:
        db = sqlite3.connect(folder / "run.db", isolation_level=None)
        names = ("state", "step", "reason", "pid", "heartbeat", "held")
        row = dict(zip(names, db.execute(f"SELECT {', '.join(names)} FROM state").fetchone(), strict=True)) | changed  # noqa: S608
        db.execute(
            "UPDATE state SET state = ?, step = ?, reason = ?, pid = ?, heartbeat = ?, held = ?, sum = ?",
            [*row.values(), row_sum("state", row)],
        )
        db.close()

    return act


def another(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the place of a file."""

    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return act


def redefined(table: str, old: str, new: str) -> Callable[[Path], None]:
    """A table of ours made otherwise: a column that computes what it likes."""
    return sql(
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}'",  # noqa: S608
    )


SLOW = "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c)"
HOSTILE = {
    "view-for-a-table": (
        sql("DROP TABLE state", f"CREATE VIEW state AS SELECT {SLOW} AS state"),
        "MoEscope does not make",
    ),
    "view": (sql("CREATE VIEW steps AS SELECT * FROM blocks"), "MoEscope does not make"),
    "trigger": (sql("CREATE TRIGGER t AFTER INSERT ON knobs BEGIN DELETE FROM blocks; END"), "MoEscope does not make"),
    "extra-table": (sql("CREATE TABLE t (x)"), "MoEscope does not make"),
    "extra-index": (sql("CREATE INDEX i ON knobs (hex(zeroblob(value)))"), "MoEscope does not make"),
    "virtual-table": (sql("CREATE VIRTUAL TABLE t USING fts5(x)"), "MoEscope does not make"),
    "computing-column": (
        redefined("state", "reason TEXT NOT NULL", "reason TEXT AS (hex(zeroblob(100000000)))"),
        "MoEscope does not make",
    ),
    "no-table": (sql("DROP TABLE evals"), "lacks tables"),
    "no-settings": (sql("DELETE FROM run"), "settings"),
    "unknown-state": (state(state="\x1b[31m"), "state is not one"),
    "heartbeat-without-end": (state(heartbeat=-9e999), "state is not one"),
    "held-is-a-list": (state(held="[]"), "state is not one"),
    "held-is-deep": (state(held="[" * 9_000), "state is not one"),
    "settings-of-bytes": (sql("UPDATE run SET about = x'00'"), "settings"),
    "huge-probe": (sql("UPDATE run SET probe = zeroblob(100000000)"), "settings"),
    "deep-settings": (settings(lambda about: "[" * 100_000), "cannot be read"),
    "settings-are-a-list": (settings(lambda about: "[]"), "cannot be read"),
    "created-never": (settings(lambda about: about.update(created="never")), "cannot be read"),
    "created-without-end": (settings(lambda about: about.update(created=1e999)), "cannot be read"),
    "a-million-experts": (settings(lambda about: about["config"].update(num_experts=10**6)), "cannot be read"),
    "wide-layout": (settings(lambda about: about.update(layout=[["loss", -1, 0, 10**12]])), "cannot be read"),
    "layout-of-words": (settings(lambda about: about.update(layout="abc")), "cannot be read"),
    "no-labels": (settings(lambda about: about.pop("labels")), "its settings have no 'labels'"),
    "labels-of-numbers": (settings(lambda about: about.update(labels=7)), "cannot be read"),
    "link": (another("run.db", lambda path: path.symlink_to("../good/run.db")), "not a plain file"),
    "link-to-nothing": (another("run.db", lambda path: path.symlink_to("nowhere")), "not a plain file"),
    "link-to-itself": (another("run.db", lambda path: path.symlink_to("run.db")), "not a plain file"),
    "pipe": (another("run.db", os.mkfifo), "not a plain file"),
    "folder": (another("run.db", Path.mkdir), "not a plain file"),
    "pipe-for-the-log": (another("run.db-wal", os.mkfifo), "not a plain file"),
    "pipe-for-the-journal": (another("run.db-journal", os.mkfifo), "not a plain file"),
    "link-for-the-index": (another("run.db-shm", lambda path: path.symlink_to("../good/run.db")), "not a plain file"),
    "empty": (another("run.db", Path.touch), "lacks tables"),
    "no-database": (another("run.db", lambda path: path.write_bytes(bytes(range(256)) * 64)), "cannot be read"),
}
LOOK = """
import json, sys
from pathlib import Path
from moe_core.runs import list_runs, open_run
for listed in list_runs(sys.argv[1]):
    print(json.dumps([listed.id, listed.state, listed.problem]))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_run(path).status()
        print(json.dumps([path.name, "opens", ""]))
    except ValueError as error:
        print(json.dumps([path.name, "refused", str(error)]))
"""


def test_what_is_hostile_is_refused_in_a_line_and_harms_no_other(tmp_path: Path) -> None:
    """In a process with an end to its time and to its memory: a reader that hangs or swells is seen."""
    record(tmp_path / "good")
    for name, (change, _) in HOSTILE.items():
        change(record(tmp_path / name))
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n{LOOK}"
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    listed = {name: (state, problem) for name, state, problem in lines[: len(HOSTILE) + 1]}
    opened = {name: (state, problem) for name, state, problem in lines[len(HOSTILE) + 1 :]}
    assert (listed.pop("good"), opened.pop("good")) == (("finished", ""), ("opens", ""))
    assert listed.keys() == opened.keys() == HOSTILE.keys()
    for name, (_, says) in HOSTILE.items():
        for state, problem in (listed[name], opened[name]):
            assert state in ("damaged", "refused"), name
            assert says in problem, name
            assert "\n" not in problem, name
            assert name in problem, name


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM state",
        "UPDATE state SET state = x'00'",
        "UPDATE state SET reason = x'00'",
        "UPDATE state SET state = 'paused'",
        "UPDATE state SET step = 'many'",
        "UPDATE state SET held = 'all'",
        "UPDATE state SET held = NULL, sum = NULL",
    ],
)
def test_without_a_state_that_is_whole_the_rest_reads(tmp_path: Path, change: str) -> None:
    folder = record(tmp_path / "a")
    sql(change)(folder)
    run = open_run(folder)
    assert (run.state, run.status().step, run.steps()) == ("interrupted", 30, (1, 30))
    assert len(run.history("loss")[0]) == 30
    (line,) = run.damage
    assert "the state that its trainer wrote last is not what was written; all else can be read" in line
    (listed,) = list_runs(tmp_path)
    assert (listed.state, listed.problem) == ("interrupted", "")
    assert "not what was written" in listed.reason
    assert len(verify(run)) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE blocks SET n = 'many' WHERE id = 2", r"block 2 .from step 11. is not what was written"),
        ("UPDATE blocks SET n = 1000000000000 WHERE id = 2", r"block 2 .from step 11. is not what was written"),
        ("UPDATE blocks SET data = 'words' WHERE id = 2", r"block 2 .from step 11. is not what was written"),
    ],
)
def test_a_block_that_is_none_is_refused(tmp_path: Path, change: str, says: str) -> None:
    folder = record(tmp_path / "a")
    sql(change)(folder)
    with pytest.raises(StoreError, match=says):
        open_run(folder).blocks()
    assert verify(open_run(folder))


def test_a_block_that_swells_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    """300 KB that unpack to 300 MB, with a chain that is right."""
    folder = record(tmp_path / "a", steps=0)
    run = open_run(folder)
    rows = len(zlib.decompress(BOMB)) // (4 * run.columns)
    run.close()
    db = sqlite3.connect(folder / "run.db", isolation_level=None)
    chain = link(db.execute("SELECT chain FROM run").fetchone()[0], HEADER.pack(1, rows, run.columns), BOMB)
    db.execute("INSERT INTO blocks VALUES (1, 1, ?, ?, ?, ?)", (rows, run.columns, BOMB, chain))
    db.close()
    with pytest.raises(StoreError, match="block 1"):
        run.blocks()


def test_arrays_that_swell_or_nest_are_refused() -> None:
    for header in (b'[["a", "|u1", [314572800]]]', b"[" * 100_000, b'[["a", "|u1", [' + b"9" * 400 + b"]]]"):
        with pytest.raises(ValueError, match="damaged"):
            unpack_arrays(struct.pack("<II", len(header), 300 << 20) + header + BOMB)
    with pytest.raises(ValueError, match="damaged"):
        unpack_arrays(struct.pack("<II", 2, 0) + b"{}" + zlib.compress(b"x"))


@pytest.mark.parametrize("metrics", ["7", "[", '{"loss": "low"}', '{"loss": [1]}', "[" * 100_000])
def test_an_evaluation_that_is_none_is_refused(tmp_path: Path, metrics: str) -> None:
    folder = record(tmp_path / "a")
    db = sqlite3.connect(folder / "run.db", isolation_level=None)
    insert(db, "evals", {"step": 10, "metrics": metrics})  # with a sum that is right: anyone can compute it
    db.close()
    with pytest.raises(StoreError, match="an evaluation is not valid"):
        open_run(folder).evals()


def test_a_session_without_a_step_is_left_out_and_no_result_overwrites_the_step_of_another(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    db = sqlite3.connect(folder / "run.db", isolation_level=None)
    told = {"steps": 90, "ranks": {"data": 1, "expert": 2}, "step": "x", "who": 3, "when": []}
    for step in (None, 10, "x", 20.5):  # with sums that are right
        insert(db, "commands", {"name": "resumed", "who": "me", "at": 5.0, "step": step, "result": json.dumps(told)})
    db.close()
    run = open_run(folder)
    (session,) = run.sessions()
    assert (session["step"], session["who"], session["when"], session["steps"]) == (10, "me", 5.0, 90)
    assert run.deals == (Deal(11, 1, 2),)
    run.close()


def test_nothing_is_written_through_a_link_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("lock", "run.tip", "trainer.log", "ablation.json"):
        folder = record(tmp_path / f"link-{name}")
        another(name, lambda path: path.symlink_to(precious))(folder)
        if name == "lock":
            assert not is_alive(folder)
            with pytest.raises(StoreError, match="symbolic link"):
                hold_lock(folder)
        elif name == "run.tip":
            lock = hold_lock(folder)
            with pytest.raises(StoreError, match="symbolic link"):
                resume_run(folder, lock, "me", 0)
            os.close(lock)
            assert any("run.tip" in finding for finding in verify(open_run(folder)))
        elif name == "trainer.log":
            with pytest.raises(StoreError, match="symbolic link"):
                spawn("none", ["--help"], folder / name)
            assert last_words(folder) == "it printed nothing"
        else:
            with pytest.raises(StoreError, match="not a plain file"):
                read_ablation(folder)
        another(name, os.mkfifo)(folder)  # whoever opens it waits for its other end
        assert not is_alive(folder)
        assert last_words(folder) == "it printed nothing"
        if name == "ablation.json":
            with pytest.raises(StoreError, match="not a plain file"):
                read_ablation(folder)
        verify(open_run(folder))
    assert precious.read_text() == "mine"


def test_a_checkpoint_that_is_a_pipe_is_passed_over(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    os.mkfifo(folder / "checkpoint-000000030.pt")
    os.mkfifo(folder / "checkpoint-000000030.pt.sha256")
    assert any("not a plain file" in finding for finding in verify(open_run(folder)))

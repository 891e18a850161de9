"""What is written of a run with a damaged block of steps: exports, and forks and resumes, which need all of them."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.export.sources import Still
from moe_core.runs import Batch, Run, RunWriter
from tests.figures.record import record
from tests.runs.test_gaps import EACH, edit, spoil, steps_of


def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a batch is committed as several blocks, as a trainer does once a second."""
    whole_commit = RunWriter.commit

    def commit_each(writer: RunWriter, batch: Batch) -> None:
        for at in range(0, len(batch.rows), EACH):
            last = {"evals": batch.evals, "snapshots": batch.snapshots} if at + EACH >= len(batch.rows) else {}
            some = batch.rows[at : at + EACH]
            whole_commit(writer, Batch(batch.first_step + at, some, **last, state="training"))

    monkeypatch.setattr(RunWriter, "commit", commit_each)


@pytest.fixture(params=[False, True], ids=["plain", "apart"])
def drawn(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs `a` and `b` with all that figures are drawn from."""
    monkeypatch.setattr("moe_core.runs.begin.APART", 1 if request.param else 10**6)
    in_blocks(monkeypatch)
    for name in "ab":
        record(tmp_path / "runs" / name, "plane").close()
    monkeypatch.undo()
    return tmp_path / "runs"


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("block", [1, 3, 6])
def test_an_export_has_what_can_be_read_and_says_what_it_lacks(
    drawn: Path, block: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    edit(drawn / "a", spoil(block))
    last = block * EACH
    line = f"moe: run a is damaged: block {block} (steps {last - 9} to {last}) is not what was written; all else can be read\n"
    for words in (
        ["export", drawn / "a", "--figure", "loss", "--format", "csv,svg"],
        ["export", drawn / "b", "--with", drawn / "a", "--figure", "compare_loss", "--format", "csv"],
        ["export", drawn / "a", "--format", "csv"],
    ):
        status, _, err = command(capsys, *words, "--out", tmp_path / "out")
        assert (status, err) == (1, line), words
    table = (tmp_path / "out" / "loss.csv").read_text().splitlines()
    cells = {int(row.split(",")[0]): row.split(",")[1] for row in table[1:]}
    readable = 50 if block == 6 else 60
    assert [step for step in range(1, readable + 1) if not cells.get(step)] == ([] if block == 6 else steps_of(block))
    assert max(cells) == readable
    with contextlib.closing(Run(drawn / "a")) as run:  # "now" is the last step that can be read, for evaluations too
        still = Still(run)
        assert (still.steps(), still.evals()[-1].step) == ((1, readable), 40 if block == 6 else 60)
    status, _, err = command(capsys, "export", drawn / "a", "--format", "replay", "--out", tmp_path / "a.html")
    assert (status, err) == (1, line)
    status, _, err = command(capsys, "report", drawn / "a", "--out", tmp_path / "r.html")
    assert (status, err) == (1, line)
    report = (tmp_path / "r.html").read_text()
    assert line.removeprefix("moe: ").strip() in report
    assert (f"(mean of {'40 of ' * (block == 3)}the last 50 steps)" in report, ">nan (" in report) == (True, False)


@pytest.mark.parametrize(("block", "at"), [(1, 45), (3, 21), (6, 60)])
def test_a_fork_and_a_resume_of_what_cannot_be_read_are_refused_and_leave_nothing(
    drawn: Path, block: int, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    edit(drawn / "a", spoil(block))
    before = (drawn / "a" / "run.db").read_bytes()
    start = 1 + EACH * (block - 1)
    line = f"moe: run a is damaged: block {block} (from step {start}) is not what was written\n"
    for words in (
        ["fork", drawn / "a", "--at", at, "--run-id", "c", "--runs", drawn],
        ["fork", drawn / "a", "--at", at, "--run-id", "c", "--runs", drawn, "--detach"],
        ["train", "--resume", drawn / "a", "--steps", 70],
    ):
        assert command(capsys, *words) == (2, "", line), words
    assert sorted(path.name for path in drawn.iterdir()) == ["a", "b"]
    assert (drawn / "a" / "run.db").read_bytes() == before


def test_what_ends_before_the_damage_is_forked(drawn: Path) -> None:
    from moe_core.runs.branch import branch_off

    edit(drawn / "a", spoil(3))
    branch_off(Run(drawn / "a"), 20, {}, drawn / "c")
    fork = Run(drawn / "c")
    assert fork.steps() == (1, 20)
    np.testing.assert_array_equal(fork.rows(1, 20), Run(drawn / "b").rows(1, 20))
    assert np.isfinite(fork.rows(1, 20)).all()

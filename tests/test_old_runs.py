"""Runs that an earlier version recorded: each opens, reads as it was, verifies, exports, forks and is gone on with.

tests/fixtures/v0.1 was made by version 0.1.0 as first published, on the built-in data: one short run of each task, one of them
resumed and one with an ablation, a fork, a sweep of two cells, and a run whose trainer was killed, with its log.
expected.json beside them is what that version read from them. The text task's data is the documentation of the Python at hand.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.runs import Run, fingerprint, open_run, verify
from moe_core.runs.branch import branch_off
from moe_core.sweep import open_sweep, results, state_of
from moe_core.training.again import resume

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
# What a run may note when it is gone on with elsewhere: other sums, or for text another Python's documentation.
ELSEWHERE = ("the last bits may differ", "differ from the record")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A copy of all of them, as they were left."""
    return Path(shutil.copytree(FIXTURES, tmp_path / "runs"))


def content(run: Run) -> dict[str, Any]:
    """What a person reads of a run, small enough to be kept beside it."""
    probe, shot = run.probe(), run.snapshot()
    assert shot
    return {
        "state": run.state,
        "steps": list(run.steps()),
        "fingerprint": fingerprint(run),
        "task": run.config.task,
        "parent": list(run.parent) if run.parent else None,
        "loss": [float(value) for value in run.history("loss")[1][:: max(1, run.steps()[1] // 4)]],
        "load": run.history("load", first=run.steps()[1])[1][0].tolist(),
        "evals": [[e.step, e.metrics, e.text] for e in run.evals()],
        "turns": [[c.name, c.value, c.previous, c.who, c.step] for c in run.knob_changes()],
        "commands": [[c.name, c.who, c.step, c.result] for c in run.commands()],
        "snapshots": {kind: run.snapshots(kind).tolist() for kind in ("probe", "full")},
        "experts": [shot[0], int(np.sum(shot[1]["experts"], dtype=np.int64))],
        "probe": {name: list(array.shape) for name, array in probe.items()},
        "labels": {name: len(values) for name, values in run.labels.items()},
    }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_old_run_reads_as_it_was_and_is_whole(runs: Path, name: str) -> None:
    run = open_run(name, runs)
    assert content(run) == EXPECTED[name]
    assert verify(run) == []


@pytest.mark.parametrize("name", ["text", "digits", "plane", "fork", "killed"])
def test_an_old_run_is_exported(runs: Path, tmp_path: Path, name: str) -> None:
    assert main(["export", name, "--runs", str(runs), "--out", str(tmp_path / "out"), "--format", "csv"]) == 0
    assert len(list((tmp_path / "out").glob("*.csv"))) > 5


def test_an_old_sweep_is_finished(runs: Path) -> None:
    sweep = open_sweep("sweep", runs)
    found = results(sweep)
    assert state_of(sweep, found) == "finished"
    assert [result.ended["step"] for result in found if result.ended] == [20, 20]


def test_an_old_ablation_is_read(runs: Path) -> None:
    ablation = open_run("digits", runs).ablation()
    assert ablation
    assert ablation.step == 60
    assert ablation.rise_LE.shape == (1, 4)


@pytest.mark.parametrize("name", ["text", "digits", "plane", "fork", "killed"])
def test_an_old_run_is_gone_on_with(runs: Path, name: str) -> None:
    run = open_run(name, runs)
    before, last = content(run), run.steps()[1]
    notes: list[str] = []
    folder, state = resume(run, last + 5, lambda e: notes.append(e["note"]) if e["event"] == "note" else None)
    assert state == "finished"
    unlike = [note for note in notes if not note.endswith(ELSEWHERE[0]) and ELSEWHERE[1] not in note]
    # The first version kept no fingerprint of the data, and a resume says so.
    assert len(unlike) == 1
    assert "kept no fingerprint of its data" in unlike[0]
    after = open_run(folder)
    assert after.steps() == (1, last + 5)
    assert fingerprint(after, last) == before["fingerprint"]
    for kept in ("evals", "turns"):
        assert content(after)[kept][: len(before[kept])] == before[kept]
    assert {0, last + 5} <= set(after.snapshots().tolist())
    assert verify(after) == []


@pytest.mark.parametrize(("name", "at"), [("text", 30), ("digits", 60), ("plane", 50), ("fork", 45)])
def test_an_old_run_is_forked(runs: Path, name: str, at: int) -> None:
    parent = open_run(name, runs)
    lock = branch_off(parent, at, {"noise": 0.25}, runs / "new", at + 5)
    parent.close()
    folder, state = resume(open_run("new", runs), lock=lock)
    assert state == "finished"
    fork = open_run(folder)
    assert fork.steps() == (1, at + 5)
    assert fingerprint(fork, at) == fingerprint(open_run(name, runs), at)
    assert [turn[0] for turn in content(fork)["turns"]][-1] == "noise"
    assert verify(fork) == []


def test_no_path_of_a_machine_stands_in_them() -> None:
    found = [
        path.name
        for path in FIXTURES.rglob("*")
        if path.is_file() and re.search(rb"/(home|root|tmp|Users)/", path.read_bytes())
    ]
    assert found == []

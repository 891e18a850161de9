"""A run of a version that had fewer knobs and statistics: it reads, trains again, and goes on as what it was.

tests/fixtures/switch-v0.1 was trained before there were the knob `weigh` and the statistic task_gradient:
`train --task plane --num-experts 4 --d-model 8 --d-hidden 8 --tokens 32 --steps 40 --eval-every 20 --threads 1
--checkpoint-every 0 --strategy switch --device cpu`.
"""

import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_core import schema
from moe_core.diagnosis import diagnose
from moe_core.export.numbers import statistics
from moe_core.figures.catalog import shows, tiles_of
from moe_core.runs import StoreError, open_run, script_of, verify
from moe_core.runs.branch import branch_off
from moe_core.runs.codec import START, link
from moe_core.schema import STATS, Stat, layout, measured_in
from moe_core.training.again import replay, resume
from moe_core.training.session import train

EARLIER = Path(__file__).parents[1] / "fixtures" / "switch-v0.1"


@pytest.fixture
def earlier(tmp_path: Path):
    """A copy, since to read a run's file makes files beside it."""
    return open_run(shutil.copytree(EARLIER, tmp_path / "earlier"))


def test_it_was_weighed_over_the_kept_and_so_it_trains_again(earlier, tmp_path: Path) -> None:
    """Losses to 1e-3: another processor adds up in another order. Weighed as switch is now, it is another training."""
    knobs = earlier.started_knobs
    assert (knobs.strategy, knobs.weigh, knobs.balance_over) == ("switch", "kept", "batch")
    recorded = earlier.history("loss")[1]
    again, _ = train(earlier.config, knobs, tmp_path, "again")
    other, _ = train(earlier.config, replace(knobs, weigh="own"), tmp_path, "other")
    np.testing.assert_allclose(open_run(again).history("loss")[1], recorded, rtol=1e-3)
    assert np.abs(open_run(other).history("loss")[1] - recorded).max() > 0.01
    assert earlier.history("importance")[1].sum(1) == pytest.approx(32)  # all weight, every step
    assert open_run(other).history("importance")[1].sum(1).max() < 25
    assert "--weigh kept" in script_of(earlier)


def test_what_it_did_not_measure_is_nowhere_and_hides_nothing_else(earlier) -> None:
    with pytest.raises(
        StoreError, match="no statistic 'task_gradient': an earlier version or another program recorded it"
    ):
        earlier.history("task_gradient")
    assert tiles_of("live", earlier)[0].word == "Balanced in training"
    assert [finding.rule for finding in diagnose(earlier)] == []
    table = statistics(earlier)
    assert "loss" in table
    assert not any("task_gradient" in name for name in table)


def test_it_goes_on_and_is_forked_in_its_own_columns(earlier, tmp_path: Path) -> None:
    columns = earlier.layout
    assert resume(earlier, 60)[1] == "finished"
    run = open_run(earlier.path)
    assert (run.steps(), run.layout) == ((1, 60), columns)
    assert "task_gradient" not in measured_in(columns)
    assert run.history("counts")[1].sum() == 60 * 32 * 2
    assert verify(run) == []
    os.close(branch_off(run, 50, {"weigh": "own"}, tmp_path / "fork", 70))
    assert resume(open_run("fork", tmp_path))[1] == "finished"
    fork = open_run("fork", tmp_path)
    assert (fork.steps(), fork.knobs_at(50).weigh, fork.knobs_at(51).weigh) == ((1, 70), "kept", "own")
    assert verify(fork) == []


def test_one_that_measured_what_this_version_does_not_is_read_and_not_gone_on_with(earlier) -> None:
    """As a later version would leave it."""
    about = json.loads(json.dumps(earlier.about))
    about["layout"] = [["heat" if stat == "churn" else stat, *rest] for stat, *rest in about["layout"]]
    path = earlier.path
    earlier.close()
    with sqlite3.connect(path / "run.db") as db:
        (probe,) = db.execute("SELECT probe FROM run").fetchone()
        text = json.dumps(about)
        db.execute("DELETE FROM blocks")
        db.execute("UPDATE run SET about = ?, chain = ?", (text, link(START, text, probe)))
    db.close()
    run = open_run(path)
    assert measured_in(run.layout) != measured_in(layout(1, 4))
    with pytest.raises(StoreError, match="recorded with other statistics"):
        resume(run, 60)


NEW = {"router_margin", "router_margin_p10", "confidence", "bias_effect", "unreachable"}
FIRST = Path(__file__).parents[1] / "fixtures" / "v0.1"


@pytest.mark.parametrize("name", ["plane", "fork"])
def test_a_statistic_that_was_added_since_keeps_no_run_from_going_on(tmp_path: Path, name: str) -> None:
    """Resumed, forked and replayed in the columns that it began with; its new charts are not offered."""
    runs = Path(shutil.copytree(FIRST, tmp_path / "runs"))
    run = open_run(name, runs)
    columns, last = run.layout, run.steps()[1]
    assert not NEW & set(measured_in(columns))
    assert set(measured_in(layout(1, 4))) >= NEW
    replayed = replay(run)
    assert replayed.step >= 1
    assert replayed.again in (replayed.recorded, None)  # None: another processor's sums part it before the end
    assert (replayed.again is None) == (replayed.difference is not None)
    os.close(branch_off(run, last, {"strategy": "loss-free"}, runs / "new", last + 5))
    run.close()
    assert resume(open_run(name, runs), last + 5)[1] == "finished"
    assert resume(open_run("new", runs))[1] == "finished"
    for gone_on in (open_run(name, runs), open_run("new", runs)):
        assert gone_on.layout == columns
        assert gone_on.steps() == (1, last + 5)
        assert np.isfinite(gone_on.history("cv_load")[1]).all()
        assert verify(gone_on) == []
        assert not any(shows(gone_on, figure) for figure in ("router_margin", "confidence", "bias_effect"))
        gone_on.close()


def test_a_statistic_is_added_by_its_declaration_and_its_value_alone(earlier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version that measures one more still goes on with what this one recorded."""
    more = (*STATS, Stat("heat", "L", "heat", "", "made up"))
    monkeypatch.setattr(schema.stats, "STATS", more)
    monkeypatch.setitem(schema.stats.STAT, "heat", more[-1])
    assert "heat" in measured_in(layout(1, 4))
    columns = earlier.layout
    assert resume(earlier, 45)[1] == "finished"
    run = open_run(earlier.path)
    assert (run.layout, run.steps()) == (columns, (1, 45))

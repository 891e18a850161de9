"""How runs stand: which count, and why the others do not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.runs import Batch, create_run, open_run
from moe_core.schema import AUTOBALANCE, Knobs, layout
from moe_core.sweep import (
    StoreError,
    Sweep,
    cancel,
    end_paused,
    held,
    jobs,
    make_plan,
    make_sweep,
    result_of,
    results,
    run_sweep,
    state_of,
)
from tests.sweep.made import CONFIG, record


def test_a_run_of_other_settings_or_with_turned_knobs_does_not_count_and_is_left_alone(recorded: Sweep) -> None:
    last = jobs(recorded)[3]
    writer = record(last._replace(knobs=replace(last.knobs, noise=0.5)), recorded.runs, [1, 1, 1, 1], 0.8)
    writer.finish("finished")
    result = result_of(recorded, last)
    assert (result.state, result.ended) == ("other", None)
    assert "made with other settings" in result.problem
    told: list[dict[str, Any]] = []
    assert run_sweep(recorded, 1, tell=told.append) == "failed"  # nothing to start, and one that does not count
    assert told == []
    assert (recorded.runs / last.run_id / "run.db").exists()


def test_a_run_whose_knobs_were_turned_while_it_trained_does_not_count(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(), {}), tmp_path, "s")
    writer = record(jobs(sweep)[0], tmp_path, [1, 1, 1, 1], 0.8)
    run = open_run(writer.folder)
    change = run.turn(noise=0.5)
    run.close()
    writer.commit(Batch(61, np.empty((0, 1), np.float32), applied=[(change, 30)]))
    writer.finish("finished")
    assert "turned while it trained" in result_of(sweep, jobs(sweep)[0]).problem


def test_what_autobalance_turns_belongs_to_the_run(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(autobalance=0.1), {}), tmp_path, "s")
    writer = record(jobs(sweep)[0], tmp_path, [1, 1, 1, 1], 0.8)
    writer.turn(AUTOBALANCE, w_load=0.2)
    (change,) = writer.pending().knobs
    writer.commit(Batch(61, np.empty((0, 1), np.float32), applied=[(change.id, 30)]))
    writer.finish("finished")
    result = result_of(sweep, jobs(sweep)[0])
    assert (result.state, result.problem) == ("finished", "")
    assert result.ended


def test_a_run_that_paused_for_a_bad_loss_is_ended_and_said(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(), {}), tmp_path, "s")
    (job,) = jobs(sweep)
    writer = create_run(tmp_path / job.run_id, job.config, job.knobs)
    bad = np.full((3, sum(c.width for c in layout(1, 4))), np.nan, np.float32)
    writer.commit(Batch(1, bad, state="paused", reason="the loss of step 3 is not finite"))
    end_paused(sweep, results(sweep))
    run = open_run(writer.folder)
    assert [command.name for command in run.commands()] == ["stop"]
    run.close()
    writer.finish("stopped")
    assert result_of(sweep, job)[1:4] == ("failed", 3, "its loss or gradient was not finite at step 3")


def test_a_run_that_a_person_paused_is_waited_for(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(), {}), tmp_path, "s")
    writer = record(jobs(sweep)[0], tmp_path, [1, 1, 1, 1], 0.8, steps=3)
    writer.commit(Batch(4, np.empty((0, 1), np.float32), state="paused"))
    end_paused(sweep, results(sweep))
    run = open_run(writer.folder)
    assert run.commands() == []
    run.close()
    writer.finish("stopped")


def test_only_one_process_runs_a_sweep_and_cancel_reaches_it(recorded: Sweep) -> None:
    with held(recorded):
        assert state_of(recorded, results(recorded)) == "running"
        with pytest.raises(StoreError, match="sweep s is run by another process"), held(recorded):
            pass
        cancel(recorded)
        assert (recorded.folder / "cancel").exists()
    assert not (recorded.folder / "cancel").exists()
    cancel(recorded)  # nobody runs it: nothing is left behind
    assert not (recorded.folder / "cancel").exists()

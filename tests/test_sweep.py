"""Sweeps: what is asked for, what is trained, what a stop or a kill leaves, and the table against the runs' own records."""

import csv
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.runs import Batch, RunWriter, create_run, is_alive, open_run, verify
from moe_core.schema import BALANCE, Config, Knobs, layout
from moe_core.sweep import (
    PAPER,
    Job,
    Plan,
    StoreError,
    Sweep,
    cancel,
    ceilings,
    end_paused,
    grid,
    held,
    jobs,
    look,
    make_plan,
    make_sweep,
    open_sweep,
    pairs_of,
    progress,
    results,
    rows,
    run_sweep,
    state_of,
    sweep_ids,
    values_of,
)

ROOT = Path(__file__).parents[1]
SMALL = ["--task", "plane", "--d-model", "8", "--d-hidden", "8", "--tokens", "64", "--num-experts", "4"]
CONFIG = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, steps=60, threads=1)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WEIGHTS = {"w_importance": [0.0, 0.1], "w_load": [0.0, 0.1]}


def sweep_words(*words: str, runs: Path) -> list[str]:
    return [sys.executable, "-m", "moe_core", "sweep", "--runs", str(runs), *words]


def moe(*words: str, runs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sweep_words(*words, runs=runs), cwd=ROOT, capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )


def record(job: Job, runs: Path, load: Sequence[float], accuracy: float, steps: int = 60) -> RunWriter:
    """A run as its trainer would leave it, but for the end: the same load at every step."""
    writer = create_run(runs / job.run_id, job.config, job.knobs)
    columns = layout(job.config.layers, job.config.num_experts)
    rows = np.ones((steps, sum(c.width for c in columns)), np.float32)
    for column in columns:
        if column.stat == "load":
            rows[:, column.start : column.start + column.width] = load
    metrics = {"accuracy": accuracy, "loss": 1.0}
    writer.commit(Batch(1, rows, evals=[(steps, metrics, None)], state="training"))
    return writer


# What is asked for


def test_a_list_is_every_value_in_the_knobs_own_type() -> None:
    assert values_of("w_load", "0, 0.01 ,1") == [0.0, 0.01, 1.0]
    assert values_of("k", "1,2") == [1, 2]
    assert all(isinstance(value, int) for value in values_of("k", "1,2"))
    with pytest.raises(ValueError, match="w_load must be between 0 and 1, got 7"):
        values_of("w_load", "0,7")
    with pytest.raises(ValueError, match="w_load must be a number, got ''"):
        values_of("w_load", "0,,1")


def test_pairs_are_written_with_a_slash_and_table6_is_the_papers_six() -> None:
    assert pairs_of(["0/0", "0.2/0"]) == [{"w_importance": 0.0, "w_load": 0.0}, {"w_importance": 0.2, "w_load": 0.0}]
    assert pairs_of(["0/0 0.2/0"]) == pairs_of(["0/0,0.2/0"]) == pairs_of(["0/0", "0.2/0"])
    assert [tuple(cell.values()) for cell in pairs_of(["table6"])] == list(PAPER)
    assert len(PAPER) == 6
    with pytest.raises(ValueError, match="or table6; got '0\\.1'"):
        pairs_of(["0.1"])
    with pytest.raises(ValueError, match="w_load must be between 0 and 1, got 3"):
        pairs_of(["0/3"])


def test_a_grid_is_every_combination_once_the_last_quickest() -> None:
    a, b = [{"k": 1}, {"k": 2}], [{"noise": 0.0}, {"noise": 1.0}, {"noise": 0.0}]
    assert grid([a, b]) == (
        {"k": 1, "noise": 0.0},
        {"k": 1, "noise": 1.0},
        {"k": 2, "noise": 0.0},
        {"k": 2, "noise": 1.0},
    )
    assert grid([]) == ({},)


def test_pairs_cross_with_lists_and_jobs_take_all_cells_of_a_seed_first() -> None:
    plan = make_plan(replace(CONFIG, seed=5), Knobs(), {"k": [1, 2]}, pairs_of(["0/0 0.1/0.1"]), seeds=2)
    assert plan.swept == ("w_importance", "w_load", "k")
    assert plan.seeds == (5, 6)
    found = jobs(Sweep("s", Path(), plan))
    assert [job.run_id for job in found[:5]] == ["s-c01-s5", "s-c02-s5", "s-c03-s5", "s-c04-s5", "s-c01-s6"]
    assert [(job.knobs.w_load, job.knobs.k, job.config.seed) for job in found[1:4]] == [
        (0, 2, 5),
        (0.1, 1, 5),
        (0.1, 2, 5),
    ]


def test_the_same_plan_is_the_same_sweep_and_a_taken_name_is_refused(tmp_path: Path) -> None:
    plan = make_plan(CONFIG, Knobs(), WEIGHTS, seeds=2)
    sweep = make_sweep(plan, tmp_path)
    before = (sweep.folder / "sweep.json").read_bytes()
    assert make_sweep(plan, tmp_path) == sweep == open_sweep(sweep.id, tmp_path) == open_sweep("sweep-p", tmp_path)
    assert (sweep.folder / "sweep.json").read_bytes() == before
    other = make_plan(CONFIG, Knobs(noise=2.0), WEIGHTS, seeds=2)
    assert make_sweep(other, tmp_path).id != sweep.id
    with pytest.raises(StoreError, match="has other settings"):
        make_sweep(other, tmp_path, sweep.id)
    for bad in ("..", "a/b", "", "x" * 65, "-a"):
        with pytest.raises(StoreError, match="a sweep's name is"):
            make_sweep(plan, tmp_path / "new", bad or " ")
    assert not (tmp_path / "new").exists()
    create_run(tmp_path / "taken", CONFIG, Knobs()).finish("finished")
    with pytest.raises(StoreError, match="taken is a run"):
        make_sweep(plan, tmp_path, "taken")
    assert set(sweep_ids(tmp_path)) == {sweep.id, make_sweep(other, tmp_path).id}


def test_a_damaged_plan_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for text in ("", "[]", '{"cells": []}', '{"config": {}, "knobs": {}, "cells": [{"nonsense": 1}], "seeds": [0]}'):
        (tmp_path / "s" / "sweep.json").write_text(text)
        with pytest.raises(StoreError, match="sweep s cannot be read") as said:
            open_sweep("s", tmp_path)
        assert "\n" not in str(said.value)
    with pytest.raises(StoreError, match="is no sweep"):
        open_sweep("x", tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--w-load", "0,7", "--steps", "5"], "w_load must be between 0 and 1"),
        (["--w-load", "0,,1", "--steps", "5"], "w_load must be a number"),
        (["--w-load", "0,1"], "steps must be 1 or more"),
        (["--k", "2,5", "--steps", "5"], "k must be between 1 and num_experts=4"),
        (["--pairs", "0.1", "--steps", "5"], "a pair is written"),
        (["--pairs", "0/0", "--w-load", "0", "--steps", "5"], "--pairs sets both weights, and --w-load"),
        (["--seeds", "0", "--steps", "5"], "seeds must be a whole number from 1"),
        (["--seeds", "two", "--steps", "5"], "seeds must be a whole number"),
        (["--parallel", "0", "--steps", "5"], "parallel must be a whole number from 1"),
        (["--seeds", "9999", "--steps", "5"], "more than 1000 runs"),
        (["--steps", "5", "--csv", "nowhere/x.csv"], "has no folder"),
        (["--steps", "5", "--sweep-id", "../x"], "a sweep's name is"),
        (["--device", "cuda:77", "--steps", "5"], "is not on this machine"),
        (["--resume", "nobody"], "is no sweep"),
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_written(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_core.__main__ import main

    settings = [] if "--resume" in words else SMALL
    assert main(["sweep", "--runs", str(tmp_path / "runs"), *settings, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moe: ")
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "runs").exists()


def test_resume_takes_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moe_core.__main__ import main

    assert main(["sweep", "--runs", str(tmp_path), "--resume", "x", "--noise", "1"]) == 2
    assert "got --noise too" in capsys.readouterr().err


# The table


def test_ceilings_are_what_a_collapse_onto_k_experts_reaches() -> None:
    assert {name: round(value, 2) for name, value in ceilings(256, 4).items()} == {
        "cv_importance": 15.97,
        "cv_load": 7.94,
        "max_over_mean_load": 64,
    }
    assert [round(value, 2) for value in ceilings(16, 2).values()] == [3.87, 2.65, 8]
    load = np.array([1.0, 1, 0, 0])
    assert ceilings(4, 2)["cv_load"] == load.std() / load.mean()
    assert ceilings(4, 2)["max_over_mean_load"] == load.max() / load.mean()
    gate = np.array([1.0, 0, 0, 0])
    assert ceilings(4, 2)["cv_importance"] == pytest.approx(gate.std() / gate.mean())


@pytest.fixture
def recorded(tmp_path: Path) -> Sweep:
    """Two cells, two seeds: the first cell is done, the second has one run done and one that has not begun."""
    sweep = make_sweep(make_plan(CONFIG, Knobs(w_load=0.0), {"w_importance": [0.0, 0.3]}, seeds=2), tmp_path, "s")
    for job, load, accuracy in zip(
        jobs(sweep)[:3], ([1, 1, 0, 0], [1, 1, 1, 1], [2, 2, 1, 1]), (0.5, 0.9, 0.7), strict=True
    ):
        record(job, tmp_path, load, accuracy).finish("finished")
    return sweep


def test_a_row_is_mean_and_spread_over_the_seeds_that_count(recorded: Sweep) -> None:
    first, second = rows(recorded, results(recorded))
    assert (first["w_importance"], first["runs"], first["finished"]) == (0.0, 2, 2)
    assert first["accuracy"] == pytest.approx(0.6)
    assert first["accuracy_spread"] == pytest.approx(math.sqrt(0.02))
    assert first["cv_load"] == pytest.approx((1 + 1 / 3) / 2)
    assert first["max_over_mean_load"] == pytest.approx((2 + 4 / 3) / 2)
    assert first["cv_load_ceiling"] == 1.0
    assert first["paper_perplexity"] == 39.8  # weights 0 and 0 are in the paper, 0.3 and 0 are not
    assert (second["finished"], second["accuracy"], second["accuracy_spread"]) == (1, 0.9, None)
    assert not any(name.startswith("paper_") for name in second)
    assert first["ids"] == ["s-c01-s0", "s-c01-s1"]
    assert progress(results(recorded)) == {"finished": 3, "failed": 0, "runs": 4, "step": 180, "steps": 240}
    assert state_of(recorded, results(recorded)) == "incomplete"


def test_the_paper_stands_beside_its_own_strategy_only(recorded: Sweep) -> None:
    from moe_core.sweep import paper_row

    assert paper_row(Knobs(w_importance=0.2, w_load=0.0)) == PAPER[0.2, 0.0]
    assert paper_row(Knobs(w_importance=0.2, w_load=0.1)) is None


def test_a_run_of_other_settings_or_with_turned_knobs_does_not_count_and_is_left_alone(recorded: Sweep) -> None:
    last = jobs(recorded)[3]
    writer = record(last._replace(knobs=replace(last.knobs, noise=0.5)), recorded.runs, [1, 1, 1, 1], 0.8)
    writer.finish("finished")
    result = look(recorded, last)
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
    assert "turned while it trained" in look(sweep, jobs(sweep)[0]).problem


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
    assert look(sweep, job)[1:4] == ("failed", 3, "its loss or gradient was not finite at step 3")


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


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], Path]:
    """A real sweep, 2 x 2 with 2 seeds: the folder, its events, its CSV."""
    folder = tmp_path_factory.mktemp("sweep")
    lists = ["--w-importance", "0,0.1", "--w-load", "0,0.1"]
    done = moe(
        *SMALL, *lists, "--seeds", "2", "--steps", "60", "--sweep-id", "s", "--json", "--csv", str(folder / "t.csv"),
        runs=folder / "runs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "runs", [json.loads(line) for line in done.stdout.splitlines()], folder / "t.csv"


def test_a_sweep_trains_every_cell_and_seed_and_tells_of_it(trained: tuple[Path, list[dict[str, Any]], Path]) -> None:
    runs, events, _ = trained
    assert (events[0]["event"], events[0]["runs"], events[0]["cells"]) == ("start", 8, 4)
    assert {event["event"] for event in events} == {"start", "run", "progress", "end"}
    for state in ("started", "finished"):
        ids = [event["run"] for event in events if event["event"] == "run" and event["state"] == state]
        assert sorted(ids) == sorted(f"s-c0{cell}-s{seed}" for cell in (1, 2, 3, 4) for seed in (0, 1))
    end = events[-1]
    assert (end["event"], end["state"], end["problems"]) == ("end", "finished", {})
    assert [(row["w_importance"], row["w_load"]) for row in end["rows"]] == [(0, 0), (0, 0.1), (0.1, 0), (0.1, 0.1)]
    for row in end["rows"]:
        for run_id in row["ids"]:
            run = open_run(run_id, runs)
            assert run.steps() == (1, 60)
            assert (run.knobs.w_importance, run.knobs.w_load) == (row["w_importance"], row["w_load"])
            assert (run.config.threads, run.facts["threads"], verify(run)) == (1, 1, [])
    assert not any(is_alive(path) for path in runs.iterdir())


def test_the_tables_numbers_are_the_records(trained: tuple[Path, list[dict[str, Any]], Path]) -> None:
    runs, events, _ = trained
    for row in events[-1]["rows"]:
        records = [open_run(run_id, runs) for run_id in row["ids"]]
        for stat in BALANCE:
            means = [float(run.history(stat, first=11)[1].mean(dtype=np.float64)) for run in records]
            assert row[stat] == pytest.approx(statistics.fmean(means), rel=1e-5)
            assert row[f"{stat}_spread"] == pytest.approx(statistics.stdev(means), rel=1e-3, abs=1e-6)
        assert row["accuracy"] == pytest.approx(
            statistics.fmean(run.evals()[-1].metrics["accuracy"] for run in records)
        )
        assert row["runs"] == row["finished"] == 2


def test_the_csv_has_the_same_rows(trained: tuple[Path, list[dict[str, Any]], Path]) -> None:
    _, events, path = trained
    with open(path, newline="") as file:
        told = list(csv.DictReader(file))
    assert len(told) == 4
    for read, row in zip(told, events[-1]["rows"], strict=True):
        assert float(read["cv_load"]) == pytest.approx(row["cv_load"], rel=1e-8)
        assert read["ids"].split(" ") == row["ids"]
        assert read["paper_perplexity"] == {(0, 0): "39.8", (0.1, 0.1): "35.6"}.get(
            (row["w_importance"], row["w_load"]), ""
        )


def test_the_same_command_again_trains_nothing_and_prints_the_table(
    trained: tuple[Path, list[dict[str, Any]], Path],
) -> None:
    runs, events, _ = trained
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/run.db")}
    done = moe(
        *SMALL, "--w-importance", "0,0.1", "--w-load", "0,0.1", "--seeds", "2", "--steps", "60", "--sweep-id", "s",
        runs=runs,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/run.db")} == before
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["w_importance", "w_load", "runs"]
    row = events[-1]["rows"][0]
    assert f"{row['cv_load']:.3f} ±{row['cv_load_spread']:.3f} [3.010]" in lines[2]
    assert lines[7].split()[:5] == ["ceiling,", "4", "experts,", "k", "2"]
    assert "[ceiling, 256 experts, k 4]" in lines[8]
    assert "64.00" in lines[8]


def events_until(process: subprocess.Popen[str], done: Any) -> list[dict[str, Any]]:
    """Events as they come, up to the first that is `done`."""
    events: list[dict[str, Any]] = []
    assert process.stdout
    for line in process.stdout:
        events.append(json.loads(line))
        if done(events[-1]):
            return events
    raise AssertionError(f"the sweep ended before: {events}")


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def wait_for_steps(runs: Path, run_id: str, steps: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (runs / run_id / "run.db").exists():
            run = open_run(run_id, runs)
            last = run.steps()[1]
            run.close()
            if last >= steps:
                return
        time.sleep(0.05)
    raise AssertionError(f"{run_id} did not reach step {steps}")


def test_killed_and_interrupted_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 in the second of three runs, Ctrl-C in the third, and the end is whole."""
    words = [*SMALL, "--noise", "0.5,1,2", "--steps", "40", "--speed-limit", "10", "--parallel", "1"]
    words += ["--sweep-id", "s", "--json"]
    one, two, three = (f"s-c0{cell}-s0" for cell in (1, 2, 3))

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            sweep_words(*words, runs=tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def finished(run_id: str) -> Any:
        return lambda event: event.get("run") == run_id and event["state"] == "finished"

    def content(run_id: str) -> str:
        return hashlib.sha256((tmp_path / run_id / "run.db").read_bytes()).hexdigest()

    process = begin()
    try:
        events_until(process, finished(one))
        wait_for_steps(tmp_path, two, 3)
        kill(process)
        first, trainer = content(one), open_run(two, tmp_path).status().pid
        assert is_alive(tmp_path / two)  # its trainer goes on without the sweep

        process = begin()
        events = events_until(process, finished(two))
        assert one not in [event.get("run") for event in events]
        assert open_run(two, tmp_path).status().pid == trainer  # waited for, not started again
        wait_for_steps(tmp_path, three, 3)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        end = json.loads(out.splitlines()[-1])
        assert (process.returncode, end["event"], end["state"]) == (1, "end", "stopped")
        assert end["problems"][three].startswith("stopped at step")
        assert [row["finished"] for row in end["rows"]] == [1, 1, 0]
        assert not is_alive(tmp_path / three)
        second = content(two)
    finally:
        kill(process)

    done = moe("--resume", "s", "--json", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert [row["finished"] for row in end["rows"]] == [1, 1, 1]
    assert (content(one), content(two)) == (first, second)
    run = open_run(three, tmp_path)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 40), [])


def test_trainers_that_cannot_start_are_said_and_do_not_hold_it_up(tmp_path: Path) -> None:
    plan = Plan(replace(CONFIG, device="cuda:77"), Knobs(), ({"noise": 0.5}, {"noise": 1.0}), (0,))
    sweep, told = make_sweep(plan, tmp_path, "s"), []
    assert run_sweep(sweep, 2, tell=told.append) == "failed"
    failed = [event for event in told if event["event"] == "run" and event["state"] == "failed"]
    assert sorted(event["cell"]["noise"] for event in failed) == [0.5, 1.0]  # they train side by side
    assert all("cuda:77" in event["problem"] for event in failed)
    assert progress(results(sweep))["failed"] == 2
    assert not is_alive(sweep.folder)


def test_stopping_before_a_trainer_has_its_record_leaves_none_behind(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(replace(CONFIG, steps=10**6), Knobs(), {}), tmp_path, "s")
    asked = iter([False, True])
    assert run_sweep(sweep, 1, stopping=lambda: next(asked)) == "stopped"
    (job,) = jobs(sweep)
    assert not is_alive(tmp_path / job.run_id)
    assert not look(sweep, job).ended

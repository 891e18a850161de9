"""Sweeps that train: every cell, after a kill and a stop, and the table against the runs' own records."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.runs import fingerprint, is_alive, open_run, verify
from moe_core.schema import BALANCE, Knobs
from moe_core.sweep import Plan, jobs, make_plan, make_sweep, progress, result_of, results, run_sweep
from tests.sweep.made import CONFIG

ROOT = Path(__file__).parents[2]
SMALL = ["--task", "plane", "--d-model", "8", "--d-hidden", "8", "--tokens", "64", "--num-experts", "4"]
SWEEP = [*SMALL, "--w-importance", "0", "--w-load", "0,0.1", "--seeds", "2", "--steps", "60", "--sweep-id", "s"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def sweep_words(*words: str, runs: Path) -> list[str]:
    return [sys.executable, "-m", "moe_core", "sweep", "--runs", str(runs), *words]


def moe(*words: str, runs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sweep_words(*words, runs=runs), cwd=ROOT, capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], Path]:
    """A real sweep of two cells with two seeds: the folder, its events, its CSV."""
    folder = tmp_path_factory.mktemp("sweep")
    done = moe(*SWEEP, "--json", "--csv", str(folder / "t.csv"), runs=folder / "runs")
    assert done.returncode == 0, done.stderr
    return folder / "runs", [json.loads(line) for line in done.stdout.splitlines()], folder / "t.csv"


def test_a_sweep_trains_every_cell_and_seed_and_tells_of_it(trained: tuple[Path, list[dict[str, Any]], Path]) -> None:
    runs, events, _ = trained
    assert (events[0]["event"], events[0]["runs"], events[0]["cells"], events[0]["not_read"]) == ("start", 4, 2, {})
    assert {event["event"] for event in events} == {"start", "run", "progress", "end"}
    for state in ("started", "finished"):
        ids = [event["run"] for event in events if event["event"] == "run" and event["state"] == state]
        assert sorted(ids) == sorted(f"s-c0{cell}-s{seed}" for cell in (1, 2) for seed in (0, 1))
    end = events[-1]
    assert (end["event"], end["state"], end["problems"]) == ("end", "finished", {})
    assert [row["w_load"] for row in end["rows"]] == [0, 0.1]
    for row in end["rows"]:
        for run_id in row["ids"]:
            run = open_run(run_id, runs)
            assert run.steps() == (1, 60)
            assert (run.knobs.w_importance, run.knobs.w_load) == (0, row["w_load"])
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
    assert len(told) == 2
    for read, row in zip(told, events[-1]["rows"], strict=True):
        assert float(read["cv_load"]) == pytest.approx(row["cv_load"], rel=1e-8)
        assert read["ids"].split(" ") == row["ids"]
        assert read["paper_cv_load"] == {0: "3.01", 0.1: ""}[row["w_load"]]
        assert "paper_perplexity_per_word" not in read


def test_the_same_command_again_trains_nothing_and_prints_the_table(
    trained: tuple[Path, list[dict[str, Any]], Path],
) -> None:
    runs, events, _ = trained
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/run.db")}
    done = moe(*SWEEP, runs=runs)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/run.db")} == before
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["w_load", "runs"]
    row = events[-1]["rows"][0]
    assert f"{row['cv_load']:.3f} ±{row['cv_load_spread']:.3f} [3.01]" in lines[2]
    assert lines[5].split()[:5] == ["ceiling,", "4", "experts,", "k", "2"]
    assert "ceiling in the paper, 256 experts, k 4" in lines[6]
    assert "64.00" in lines[6]


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
    words = [*SMALL, "--noise", "0.5,1,2", "--steps", "60", "--speed-limit", "15", "--parallel", "1"]
    words += ["--sweep-id", "s", "--json"]
    one, two, three = (f"s-c0{cell}-s0" for cell in (1, 2, 3))

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            sweep_words(*words, runs=tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def finished(run_id: str) -> Any:
        return lambda event: event.get("run") == run_id and event["state"] == "finished"

    def content(run_id: str) -> tuple[str, Any]:
        """Not the file's bytes: one that ended beside a reader is sealed by whoever opens it next."""
        run = open_run(run_id, tmp_path)
        return fingerprint(run), [(eval.id, eval.step, eval.metrics) for eval in run.evals()]

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
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 60), [])


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
    assert not result_of(sweep, job).ended
